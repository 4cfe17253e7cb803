"""bench/load_cost: both sides' instructions are counted, and the same each time."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from bench import load_cost
from bench.common import ROOT, program
from ixnet.bench.errors import BenchError


@pytest.fixture
def valgrind() -> None:
    if shutil.which("valgrind") is None:
        pytest.skip("no valgrind (cure: apt-get install valgrind)")


@pytest.mark.parametrize("name", list(load_cost.WORKLOADS))
def test_both_sides_are_told_apart_and_cost_the_same_again(name: str, valgrind: None) -> None:
    costs = load_cost.measure(name, 640)
    assert costs == load_cost.measure(name, 640)
    client, server = (costs[side] for side in load_cost.SIDES)
    for cost in (client, server):
        stack = cost.total("ixnet/dataplane/")
        assert 0 < stack < cost.total() < 100_000
        assert not any("bench/pair.h" in name or "bench/load_cost.c" in name
                       for name in cost.functions)  # fmt: skip
    assert client.total("ixnet/bench/load/") and not client.total("apps/")
    assert server.total("apps/echo.c") and not server.total("ixnet/bench/")


def test_connections_pay_for_their_opening(valgrind: None) -> None:
    message, connection = load_cost.measure("echo", 640), load_cost.measure("connrate", 640)
    for side in load_cost.SIDES:
        assert connection[side].total("ixnet/dataplane/tcp/open.c")
        assert not message[side].total("ixnet/dataplane/tcp/open.c")
        assert connection[side].total() > message[side].total()


def test_server_that_does_not_load_is_an_error(valgrind: None, monkeypatch: pytest.MonkeyPatch
                                               ) -> None:  # fmt: skip
    monkeypatch.setattr(load_cost, "SERVER", ROOT / "README.md")
    with pytest.raises(BenchError, match="load_cost"):
        load_cost.measure("echo", 640)


def test_count_is_what_was_asked_for() -> None:
    argv = [
        str(program("load_cost")), str(load_cost.SERVER), str(load_cost.CLIENT), "640", "640",
        "--host", "10.0.0.1", "--seconds", "3600", *load_cost.WORKLOADS["connrate"].arguments,
    ]  # fmt: skip
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert int(done.stdout) == 640
