"""Enough local addresses at the client's end of a lab for very many connections."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Interface
from pathlib import Path

from pyroute2 import IPRoute

from ixnet.control.lab import Lab
from ixnet.control.namespaces import in_netns

# Of a local address and one server port, and what is wasted looking for a free one.
PORTS = 64_000
USED = 0.85
# The kernel must not choose from these by itself.
RESERVED = "1024-65535"


@contextmanager
def many_addresses(lab: Lab, connections: int) -> Iterator[tuple[str, ...]]:
    """Adds local addresses to the client's interface; yields them; takes them away again."""
    count = max(1, -(-connections // int(PORTS * USED)))
    base = IPv4Interface(lab.cfg.client_ip)
    sources = tuple(str(base.ip + 10 + i) for i in range(count))
    with in_netns(lab.cfg.client_netns), IPRoute() as ipr:
        index = lab.facts.client.index
        reserved = Path("/proc/sys/net/ipv4/ip_local_reserved_ports")
        before = reserved.read_text()
        reserved.write_text(RESERVED)
        for source in sources:
            ipr.addr("add", index=index, address=source, prefixlen=base.network.prefixlen)
    try:
        yield sources
    finally:
        with in_netns(lab.cfg.client_netns), IPRoute() as ipr:
            for source in sources:
                ipr.addr("del", index=index, address=source, prefixlen=base.network.prefixlen)
            reserved.write_text(before)
