"""Two shards on one vCPU: both NIC queues are one worker's, its gate has an entry for each."""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ixnet.control.instance import find_instance
from ixnet.control.lab import Lab, LabConfig
from tests.dune.test_placement import (
    NATIVE,
    PATIENCE_S,
    PYTHON,
    Instance,
    connect,
    receive,
    running,
    stream,
)
from tests.runtime.lab import fresh_readings

STREAM_BYTES = 1 << 20
# Until both queues have some: all on one happens once in 2^31 times.
CONNECTIONS = 32
OPTIONS = ("--queues", "2", "--workers", "1")
pytestmark = pytest.mark.timeout(3600)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(LabConfig.named(f"ds{os.getpid()}", queues=2)) as made:
        yield made


def of_shards(instance: Instance, name: str) -> list[int]:
    """A counter of each shard, now. Not by `ixnet stat`: a process takes its time in the lab."""
    return [reading.values[name] for reading in fresh_readings(find_instance(instance.name))]


def wait_serving(instance: Instance, other_than: int) -> None:
    """Until the one worker runs, as another process."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        for worker in find_instance(instance.name).ask(PATIENCE_S).get("workers", []):
            if worker["state"] == "ready" and worker["pid"] != other_than:
                return
        assert time.monotonic() < deadline, instance.said
        time.sleep(0.1)


def echo(sock: socket.socket, message: bytes) -> None:
    sock.sendall(message)
    assert receive(sock, len(message)) == message


@pytest.mark.parametrize(
    ("app", "kick"), [(NATIVE, "exit"), (PYTHON, "thread")], ids=["native-exit", "python-thread"]
)
def test_two_queues_on_one_vcpu_are_served(
    lab: Lab, app: Path, kick: str, note: Callable[[str], None]
) -> None:
    with running(lab, app, *OPTIONS, "--kick", kick) as instance, ExitStack() as stack:
        stream(lab, STREAM_BYTES)
        socks = [stack.enter_context(connect(lab)) for _ in range(CONNECTIONS)]
        for i, sock in enumerate(socks):
            echo(sock, bytes([i]) * 3000)
        stat = instance.stat()
        (worker,) = stat["workers"]
        assert [shard["worker"] for shard in stat["shards"]] == [0, 0]
        opened = of_shards(instance, "tcp_passive_opens")
        assert sum(opened) == CONNECTIONS + 1 and all(opened), opened
        guest = worker["guest"]
        note(f"opened {opened}, guest { {n: v for n, v in guest.items() if 'cycles' not in n} }")
        assert guest["gate_refused"] == guest["refused"] == 0
        wakeups = of_shards(instance, "syscalls")
        assert all(wakeups), wakeups
        if kick == "thread":
            assert guest["kicks"] == 0
        else:
            assert 0 < guest["kicks"] <= sum(wakeups)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_guest_that_dies_leaves_no_connection_of_either_shard(
    lab: Lab, number: signal.Signals
) -> None:
    with running(lab, NATIVE, *OPTIONS) as instance, ExitStack() as stack:
        socks = [stack.enter_context(connect(lab)) for _ in range(CONNECTIONS)]
        for sock in socks:
            echo(sock, b"before")
        assert all(of_shards(instance, "flows"))
        pid = instance.stat()["workers"][0]["pid"]
        os.kill(pid, number)
        look = select.poll()
        for sock in socks:
            look.register(sock, 0)
        deadline = time.monotonic() + PATIENCE_S
        while sum(bool(events & select.POLLERR) for _, events in look.poll(0)) < CONNECTIONS:
            assert time.monotonic() < deadline, instance.said
            time.sleep(0.05)
        instance.wait_said(f"worker 0 (queues 0, 1) ended: killed by {number.name}, "
                           f"{CONNECTIONS} connections reset")  # fmt: skip
        wait_serving(instance, pid)
        again = [stack.enter_context(connect(lab)) for _ in range(CONNECTIONS)]
        for sock in again:
            echo(sock, b"again")
        assert all(of_shards(instance, "flows"))
