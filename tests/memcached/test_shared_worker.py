"""Both queues on one worker: two servers on one store, by turns in one thread."""

from __future__ import annotations

import os
import signal

from ixnet.control.lab import Lab
from tests.memcached.kit import Server, connect, serving, stats, talk
from tests.runtime.lab import until

# All on one of two queues happens once in 2^31 times.
CONNECTIONS = 32
WORKERS = ("--workers", "1")


def value(i: int) -> bytes:
    """Of connection i; every fourth is larger than what is copied out at once."""
    return bytes([97 + i % 26]) * (400_000 if i % 4 == 0 else 100)


def test_connections_of_both_queues_share_the_store(lab: Lab) -> None:
    with serving(lab, *WORKERS) as server:
        socks = [connect(lab) for _ in range(CONNECTIONS)]
        for i, sock in enumerate(socks):
            data = value(i)
            assert talk(sock, b"set k%d 0 0 %d\r\n%s\r\n" % (i, len(data), data)) == b"STORED\r\n"
        for i in range(CONNECTIONS):
            data = value(i)
            wanted = b"VALUE k%d 0 %d\r\n%s\r\nEND\r\n" % (i, len(data), data)
            assert talk(socks[i - 1], b"get k%d\r\n" % i, b"END\r\n") == wanted
        # All at once: each of the two servers has answers on their way when the other has its turn.
        for sock in socks:
            sock.sendall(b"".join(b"get k%d\r\n" % i for i in range(0, CONNECTIONS, 4)))
        for sock in socks:
            got = b""
            while got.count(b"END\r\n") < CONNECTIONS // 4:
                got += sock.recv(1 << 20)
            assert got == b"".join(
                b"VALUE k%d 0 %d\r\n%s\r\nEND\r\n" % (i, len(value(i)), value(i))
                for i in range(0, CONNECTIONS, 4)
            )
        flows = [reading.values["flows"] for reading in server.readings()]
        assert sum(flows) == CONNECTIONS and all(flows), flows
        for sock in socks:
            sock.close()


def test_worker_killed_is_replaced_for_both_queues_and_items_stay(lab: Lab) -> None:
    server = Server(lab, *WORKERS)
    try:
        server.wait_ready()
        sock = connect(lab)
        assert talk(sock, b"set kept 5 0 4\r\nkept\r\n") == b"STORED\r\n"
        (old,) = server.worker_pids()
        os.kill(old, signal.SIGKILL)
        until(
            "its successor", lambda: server.states() == ["ready"] and server.worker_pids() != [old]
        )
        again = [connect(lab) for _ in range(CONNECTIONS)]
        for one in again:
            assert talk(one, b"get kept\r\n", b"END\r\n") == b"VALUE kept 5 4\r\nkept\r\nEND\r\n"
        flows = [reading.values["flows"] for reading in server.readings()]
        assert all(flows), flows
        assert stats(again[0])["worker_recoveries"] == "2"
    finally:
        assert server.end() == 0
    assert server.errors().count("was started again") == 1
