"""Many connections, and too many: what happens at the ends of tables and pools.

the kernel's client, up to 1,000 connections ---- two shards, or one with small tables
"""

from __future__ import annotations

import errno
import fcntl
import random
import selectors
import socket
import struct
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ixnet.control.lab import Lab
from ixnet.control.namespaces import in_netns
from tests.interop.kit import (
    MIB,
    NATIVE_ECHO,
    PATIENCE_S,
    PORT,
    Flow,
    Service,
    answers,
    connect,
    digest,
    echo_streams,
    lab_config,
    payload,
    pump,
    receive,
    until,
)

CONNECTIONS = 1000


@pytest.fixture(scope="module")
def narrow() -> Iterator[Lab]:
    """One queue, so that one shard's limits are the service's."""
    with Lab(lab_config(queues=1)) as made:
        yield made


# ---- a thousand --------------------------------------------------------------------------------


def connect_many(lab: Lab, count: int) -> list[socket.socket]:
    """So many connections, opened at once."""
    opening: list[socket.socket] = []
    with in_netns(lab.cfg.client_netns):
        for _ in range(count):
            sock = socket.socket()
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            opening.append(sock)
    for sock in opening:
        sock.connect_ex((lab.facts.server.ip, PORT))
    with selectors.DefaultSelector() as selector:
        for sock in opening:
            selector.register(sock, selectors.EVENT_WRITE)
        while selector.get_map():
            ready = selector.select(PATIENCE_S)
            assert ready, f"{len(selector.get_map())} of {count} do not get through"
            for key, _ in ready:
                assert key.fileobj.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0  # type: ignore[union-attr]
                selector.unregister(key.fileobj)
    return opening


def exchange(sockets: list[socket.socket], rounds: int, seed: int) -> None:
    """`rounds` random messages on each connection, all at once; each answer is compared."""
    numbers = random.Random(seed)
    sent: dict[int, bytes] = {}
    got: dict[int, bytearray] = {}
    left = dict.fromkeys((s.fileno() for s in sockets), rounds)

    def send(sock: socket.socket) -> None:
        message = numbers.randbytes(numbers.randint(1, 2000))
        sent[sock.fileno()], got[sock.fileno()] = message, bytearray()
        assert sock.send(message) == len(message)

    with selectors.DefaultSelector() as selector:
        for sock in sockets:
            selector.register(sock, selectors.EVENT_READ, sock)
            send(sock)
        while selector.get_map():
            ready = selector.select(PATIENCE_S)
            assert ready, f"{len(selector.get_map())} connections stand still"
            for key, _ in ready:
                sock, fd = key.data, key.fd
                data = sock.recv(4096)
                assert data, "closed early"
                got[fd] += data
                if len(got[fd]) < len(sent[fd]):
                    continue
                assert got[fd] == sent[fd]
                left[fd] -= 1
                if left[fd]:
                    send(sock)
                else:
                    selector.unregister(sock)


@pytest.mark.parametrize("native", [False, True], ids=["commands.py", "echo.so"])
def test_thousand_connections_at_once(native: bool, tmp_path: Path) -> None:
    app, args = (NATIVE_ECHO, ["--port", str(PORT)]) if native else (None, None)
    with ExitStack() as stack:
        own = stack.enter_context(Lab(lab_config()))
        service = stack.enter_context(
            Service(own, tmp_path, app, args) if app else Service(own, tmp_path)
        )
        sockets = connect_many(own, CONNECTIONS)
        for sock in sockets:
            stack.callback(sock.close)
        if not native:
            for sock in sockets:
                sock.send(b"echo\n")
        exchange(sockets, 10, 1)
        shards = service.shards()
        assert sum(s["flows"] for s in shards) == CONNECTIONS
        # Flows are spread by a hash: each shard has its fair part, give or take.
        assert all(s["tcp_established"] > CONNECTIONS / 4 for s in shards)
        assert all(s["tcp_out"] > 10 * s["tcp_established"] for s in shards)
        for sock in sockets:
            sock.close()
        service.wait_quiet()


# ---- flow table ----------------------------------------------------------------------------------


def test_flow_table_full_syns_are_dropped_others_go_on(narrow: Lab, tmp_path: Path) -> None:
    with Service(narrow, tmp_path, options=["--max-flows", "64"]) as service, ExitStack() as stack:
        sockets = [stack.enter_context(connect(narrow, "echo")) for _ in range(64)]
        assert all(answers(sock) for sock in sockets)
        with in_netns(narrow.cfg.client_netns):
            late = stack.enter_context(socket.socket())
        late.setblocking(False)
        late.connect_ex((narrow.facts.server.ip, PORT))
        until("a SYN to be dropped", lambda: service.counters()["drop_tcp_flows"] >= 1)
        assert all(answers(sock) for sock in sockets), "those that are there go on"
        sockets.pop().close()
        # The SYN comes again, and finds room.
        late.settimeout(PATIENCE_S)
        until("room", lambda: service.shards()[0]["flows"] == 64)
        late.setblocking(True)
        late.sendall(b"echo\n")
        assert answers(late)
        late.close()
        for sock in sockets:
            sock.close()
        service.wait_quiet()


def test_flow_table_full_of_time_wait_gives_the_oldest_up(narrow: Lab, tmp_path: Path) -> None:
    with Service(narrow, tmp_path, options=["--max-flows", "64"]) as service:
        for seed in range(200):
            with connect(narrow, f"source 10 {seed}") as sock:
                assert receive(sock, 11) == payload(10, seed)
        until("the last TIME_WAIT", lambda: service.counters()["tcp_time_wait"] == 200)
        assert service.counters()["drop_tcp_flows"] == 0
        service.wait_quiet()


# ---- frames --------------------------------------------------------------------------------------


def test_application_holds_what_some_send_and_others_are_served(
    narrow: Lab, tmp_path: Path
) -> None:
    """Small messages, a frame each: the pool would be empty long before the windows are. Those who
    have as many frames as are left wait at the peers until the application gives some back."""
    with (
        Service(narrow, tmp_path, options=["--frames", "1024"]) as service,
        ExitStack() as stack,
    ):
        holders = [stack.enter_context(connect(narrow, "hold enough")) for _ in range(8)]
        sent = [bytearray() for _ in holders]
        for sock in holders:
            sock.setblocking(False)

        def push() -> bool:
            for i, sock in enumerate(holders):
                message = bytes([i]) * 50
                try:
                    sent[i] += message[: sock.send(message)]
                except BlockingIOError:
                    continue
            return service.counters()["drop_tcp_lend_limit"] > 20

        until("frames to run out", push)
        counters = service.counters()
        assert 400 <= counters["frames_app"] < 512
        with connect(narrow, "echo") as late:
            late.sendall(b"not waiting")
            assert receive(late, 11) == b"not waiting"
        (tmp_path / "enough").touch()
        for i, sock in enumerate(holders):
            flow = Flow(sock, bytes([i]) * 100_000)
            pump([flow])
            assert flow.got.decode() == digest(bytes(sent[i]) + flow.data) + "\n"
        service.wait_quiet()
        echo_streams(narrow, 4, MIB // 4)
        service.wait_quiet()


def unacknowledged(sock: socket.socket) -> int:
    """Bytes that were sent and are not acknowledged."""
    return int.from_bytes(fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)), sys.byteorder)


def test_those_who_use_up_the_frames_in_turn_are_reset_and_others_served(
    narrow: Lab, tmp_path: Path
) -> None:
    """Each takes half of what the others have left, until there is nothing. Those that hold the
    most have to go then; their peers and the application are told."""
    with (
        Service(narrow, tmp_path, options=["--frames", "1024"]) as service,
        ExitStack() as stack,
    ):
        holders: list[socket.socket] = []
        while not service.counters()["tcp_pressure_resets"]:
            assert len(holders) < 100
            holders.append(stack.enter_context(connect(narrow, "hold enough")))
            holders[-1].setblocking(False)
            holders[-1].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            taken = time.monotonic()
            while time.monotonic() < taken + 0.1:  # then it has what it can have
                if unacknowledged(holders[-1]) < 8:
                    holders[-1].send(b"x")
                    taken = time.monotonic()
        with connect(narrow, "echo") as late:
            late.sendall(b"served all the same")
            assert receive(late, 19) == b"served all the same"
        counters = service.counters()
        assert 1 <= counters["tcp_pressure_resets"] < len(holders) / 2
        gone = 0
        for sock in holders:
            gone += sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET
        assert gone == counters["tcp_pressure_resets"]
        (tmp_path / "enough").touch()
        for sock in holders:
            sock.close()
        service.wait_quiet()


def test_echoes_hold_every_frame_streams_come_through(narrow: Lab, tmp_path: Path) -> None:
    """An echo gives a frame back when its own answer is acknowledged: with more in flight than
    frames there are, that must not end in everybody waiting for everybody."""
    with Service(narrow, tmp_path, options=["--frames", "1024"]) as service:
        echo_streams(narrow, 64, 128 * 1024)
        service.wait_quiet()


def test_more_sources_than_the_arena_holds_streams_come_through(
    narrow: Lab, tmp_path: Path
) -> None:
    with Service(narrow, tmp_path, options=["--frames", "1024"]) as service:
        flows = [Flow(connect(narrow, f"source {MIB // 2} {seed}")) for seed in range(32)]
        pump(flows)
        for seed, flow in enumerate(flows):
            assert digest(flow.got) == digest(payload(MIB // 2, seed))
            flow.sock.close()
        service.wait_quiet()


def test_smallest_batch_serves(narrow: Lab, tmp_path: Path) -> None:
    with Service(narrow, tmp_path, options=["--batch", "1"]) as service:
        echo_streams(narrow, 16, 64 * 1024)
        service.wait_quiet()


def test_largest_batch_and_busy_polling_serve(narrow: Lab, tmp_path: Path) -> None:
    with Service(narrow, tmp_path, options=["--batch", "256", "--busy-poll"]) as service:
        echo_streams(narrow, 16, 64 * 1024)
        service.wait_quiet()


def test_generic_mode_serves(narrow: Lab, tmp_path: Path) -> None:
    with Service(narrow, tmp_path, options=["--mode", "generic"]) as service:
        echo_streams(narrow, 4, MIB)
        service.wait_quiet()
