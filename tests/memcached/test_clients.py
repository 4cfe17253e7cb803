"""pymemcache's integration tests and aiomcache's tests: what passes with Debian's memcached passes
with this server. `make memcached-clients` runs it: it fetches them (clients.py)."""

from __future__ import annotations

import os
from collections import Counter

import pytest

from ixnet.control.lab import Lab
from tests.memcached.clients import CLIENTS, Client, NotToBeHadError, prepare, run_tests
from tests.memcached.kit import PORT, Server, debians


@pytest.mark.timeout(900)
@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_what_passes_with_debians_passes(client: Client, lab: Lab, server: Server) -> None:
    if not os.environ.get("IX_MEMCACHED_CLIENTS"):
        pytest.skip("fetches other projects' tests: `make memcached-clients` runs this")
    try:
        prepare(client)
    except NotToBeHadError as why:
        pytest.skip(str(why))
    with debians() as port:
        theirs = run_tests(client, "127.0.0.1", port)
    prefix = ["nsenter", f"--net=/run/netns/{lab.cfg.client_netns}"]
    ours = run_tests(client, lab.facts.server.ip, PORT, prefix)
    print(f"{client.name} {client.version}: Debian's {dict(Counter(theirs.values()))},", end=" ")
    print(f"this server {dict(Counter(ours.values()))}")
    assert Counter(theirs.values())["passed"] > 20, theirs
    worse = {
        name: ours.get(name, "missing")
        for name, outcome in theirs.items()
        if outcome == "passed" and ours.get(name) != "passed"
    }
    assert not worse, worse
