"""`ixnet memcached --placement dune`: requests in ring 3, the dataplane in ring 0, two workers on
one store, over a veth to the kernel's sockets."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator

import pytest

from ixnet.control.lab import Lab, LabConfig
from tests.memcached.kit import PORT, Server, connect, in_client, read_until, stats, talk
from tests.runtime.lab import until

PATIENCE_S = 900.0
LARGE = 700_000
KEYS = 300
pytestmark = pytest.mark.timeout(3600)
Note = Callable[[str], None]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(LabConfig.named(f"dm{os.getpid()}", queues=2)) as made:
        yield made


@pytest.fixture(scope="module")
def server(lab: Lab) -> Iterator[Server]:
    """Ended in order; it complains of nothing but the workers that a test kills."""
    running = Server(lab, "--placement", "dune", "-U", str(PORT), "--user", "nobody")
    try:
        running.wait_ready(PATIENCE_S)
        yield running
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(PATIENCE_S) == 0
        expected = ("killed by SIGKILL", "was started again")
        complaints = running.errors().splitlines()
        assert all(any(part in line for part in expected) for line in complaints), complaints
    finally:
        if running.process.poll() is None:
            running.process.kill()


def test_values_of_any_size_come_back_on_every_worker(lab: Lab, server: Server) -> None:
    socks = [connect(lab, timeout_s=PATIENCE_S) for _ in range(8)]  # on both queues
    large = os.urandom(LARGE)
    assert talk(socks[0], b"set large 1 0 %d\r\n%s\r\n" % (LARGE, large)) == b"STORED\r\n"
    for i, sock in enumerate(socks):
        assert talk(sock, b"set own%d 0 0 4\r\n%04d\r\n" % (i, i)) == b"STORED\r\n"
    for sock in socks:
        for i in range(len(socks)):
            got = talk(sock, b"get own%d\r\n" % i, b"END\r\n")
            assert got == b"VALUE own%d 0 4\r\n%04d\r\nEND\r\n" % (i, i)
    for sock in socks[:2]:
        sock.sendall(b"get large\r\n")
        assert read_until(sock, b"\r\nEND\r\n") == b"VALUE large 1 %d\r\n%s\r\nEND\r\n" % (
            LARGE,
            large,
        )


def test_pipelined_commands_are_answered_in_order(lab: Lab, server: Server) -> None:
    sock = connect(lab, timeout_s=PATIENCE_S)
    sock.sendall(
        b"".join(
            b"set p%d 0 0 4 noreply\r\n%04d\r\nget p%d\r\nincr p%d 1\r\n" % (i, i, i, i)
            for i in range(KEYS)
        )
        + b"mn\r\n"
    )
    expected = b"".join(
        b"VALUE p%d 0 4\r\n%04d\r\nEND\r\n%d\r\n" % (i, i, i + 1) for i in range(KEYS)
    )
    assert read_until(sock, b"MN\r\n") == expected + b"MN\r\n"


def test_statistics_tell_the_placement_and_nothing_was_refused(
    lab: Lab, server: Server, note: Note
) -> None:
    sock = connect(lab, timeout_s=PATIENCE_S)
    assert talk(sock, b"get own0\r\n", b"END\r\n").startswith(b"VALUE own0 ")
    found = stats(sock)
    assert (found["threads"], found["worker_recoveries"]) == ("2", "0")
    assert int(found["get_hits"]) > KEYS and int(found["curr_items"]) > KEYS
    assert any("dune: application in ring 3" in line for line in server.said)
    for worker in server.live()["workers"]:
        guest = worker["guest"]
        note(f"guest {worker['id']}: { {n: v for n, v in guest.items() if 'cycles' not in n} }")
        assert guest["module_calls"] > 100
        assert guest["gate_refused"] == guest["refused"] == 0


@pytest.mark.parametrize("protocol", ["-a", "-b"])
def test_memccapable_all_tests_pass(lab: Lab, server: Server, protocol: str) -> None:
    if shutil.which("memccapable") is None:
        pytest.skip("memccapable (libmemcached-tools) is not in the guest's image")
    argv = ["memccapable", "-h", lab.facts.server.ip, "-p", str(PORT), "-t", "120", protocol]
    run = in_client(lab, argv, PATIENCE_S)
    assert run.stdout.count("[pass]") == 27 and run.stdout.endswith("All tests passed\n"), run


def test_worker_killed_is_replaced_and_items_stay(lab: Lab, server: Server) -> None:
    sock = connect(lab, timeout_s=PATIENCE_S)
    assert talk(sock, b"set kept 5 0 4\r\nkept\r\n") == b"STORED\r\n"
    old = set(server.worker_pids())
    for pid in old:
        os.kill(pid, signal.SIGKILL)

    def again() -> bool:
        workers = server.live().get("workers", [])
        return sum(w["state"] == "ready" and int(w["pid"]) not in old for w in workers) == 2

    until("both are back", again, PATIENCE_S)
    sock = connect(lab, timeout_s=PATIENCE_S)
    assert talk(sock, b"get kept\r\n", b"END\r\n") == b"VALUE kept 5 4\r\nkept\r\nEND\r\n"
    assert stats(sock)["worker_recoveries"] == "2"
