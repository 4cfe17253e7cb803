"""`ixnet trace`: what the kernel does around a dataplane, by programs for bcc (xdp/trace/)."""
