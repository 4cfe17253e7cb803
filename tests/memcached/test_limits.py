"""What a server is asked to bear: too many connections, full memory, dying workers."""

from __future__ import annotations

import os
import signal
from contextlib import suppress

from ixnet.control.lab import Lab
from tests.memcached.kit import Server, connect, read_until, serving, stats, talk
from tests.runtime.lab import until


def test_connections_beyond_the_limit_are_told_so(lab: Lab) -> None:
    with serving(lab, "-c", "20") as limited:
        held = [connect(lab) for _ in range(20)]
        for sock in held:
            assert talk(sock, b"version\r\n") == b"VERSION 1.6.18\r\n"
        for _ in range(100):
            assert read_until(connect(lab), b"\0") == b"ERROR Too many open connections\r\n"
        held.pop().close()
        until("there is room again", lambda: talk_once(lab, b"version\r\n").startswith(b"VERSION"))
        assert int(stats(held[0])["rejected_connections"]) >= 100
    assert limited.said


def talk_once(lab: Lab, data: bytes) -> bytes:
    """One question on a connection of its own."""
    with connect(lab) as sock:
        return talk(sock, data)


def test_worker_killed_is_replaced_and_items_stay(lab: Lab) -> None:
    running = Server(lab)
    try:
        running.wait_ready()
        sock = connect(lab)
        assert talk(sock, b"set kept 5 0 4\r\nkept\r\n") == b"STORED\r\n"
        old = set(running.worker_pids())
        for pid in old:
            os.kill(pid, signal.SIGKILL)
        until("both are back", lambda: len(ready_pids(running) - old) == 2)
        again = connect(lab)
        assert talk(again, b"get kept\r\n", b"END\r\n") == b"VALUE kept 5 4\r\nkept\r\nEND\r\n"
        assert stats(again)["worker_recoveries"] == "2"
    finally:
        assert running.end() == 0
    assert running.errors().count("was started again") == 2


def ready_pids(running: Server) -> set[int]:
    """The processes that serve."""
    return {int(w["pid"]) for w in running.live()["workers"] if w["state"] == "ready"}


def test_shutdown_ends_the_instance_where_it_is_allowed(lab: Lab) -> None:
    running = Server(lab, "-A", "-o", "modern,hash_algorithm=murmur3,idle_timeout=60")
    try:
        running.wait_ready()
        sock = connect(lab)
        assert talk(sock, b"shutdown now\r\n") == b"CLIENT_ERROR invalid shutdown mode\r\n"
        sock.sendall(b"shutdown\r\n")
        with suppress(ConnectionResetError):
            assert sock.recv(100) == b""
        assert running.wait() == 0
        assert running.errors() == ""
    finally:
        if running.process.poll() is None:
            running.process.kill()
