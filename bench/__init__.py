"""Benchmarks: what is measured, with what, and the demo's driver.

kecho.c is the yardstick (an epoll echo server on the kernel's stack), ixnet/bench the client,
limit/ the bare AF_XDP pair that gives the limit of a link, demo.py what `make demo` runs.
"""
