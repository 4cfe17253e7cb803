"""`ixnet bench`: load, latency, and reports of both.

load/ is the load generator in C, client.py starts its workers, session.py commands them through a
shared page, search.py decides what to run, report.py shows results side by side.
"""
