"""tcp/autotune: windows that grow with what is read and sent."""

from __future__ import annotations

import pytest

from tests.unit.peer import MSS, Peer, Stack, opened, stream
from tests.unit.san import lib

START, MOST = 65_536, 400_000


def tuned(**options: object) -> tuple[Stack, Peer, int]:
    """A connection with 10 ms of round-trip time whose window may grow."""
    stack = Stack(listen=80, rcvbuf_bytes=START, rcvbuf_max_bytes=MOST, **options)  # type: ignore[arg-type]
    peer = Peer(stack, wscale=7, ts=True)
    peer.send("S")
    peer.expect("SA")
    stack.poll(ms=10)
    peer.send("A")
    peer.handle = stack.expect("KNOCK").handle
    assert stack.accept(peer.handle) == 0
    return stack, peer, peer.handle


def read(stack: Stack, peer: Peer, size: int) -> None:
    """The peer sends so much, and the application takes it."""
    while size:
        part = min(size, 1448)
        size -= part
        peer.send("A", stream(0, part))
        while stack.events:
            event = stack.expect("RECV")
            assert stack.done(event) == 0
    stack.sent.clear()


def test_own_window_scale_leaves_room_to_grow() -> None:
    stack = Stack(listen=80, rcvbuf_bytes=START, rcvbuf_max_bytes=MOST)
    assert Peer(stack, wscale=0).knock().wscale == 3


def test_receive_window_grows_while_the_application_reads_more_each_round_trip() -> None:
    stack, peer, handle = tuned()
    seen = []
    for size in (20_000, 40_000, 80_000, 160_000):
        read(stack, peer, size)
        stack.poll(ms=10)
        read(stack, peer, 1000)
        seen.append(stack.tcb(handle).rcvbuf_bytes)
    assert seen == sorted(seen) and seen[0] >= START
    assert seen[-1] > 4 * START
    assert seen[-1] <= MOST


def test_receive_window_never_exceeds_its_limit() -> None:
    stack, peer, handle = tuned()
    for _ in range(6):
        read(stack, peer, 300_000)
        stack.poll(ms=10)
    assert stack.tcb(handle).rcvbuf_bytes == MOST


def test_receive_window_stays_while_the_application_reads_nothing() -> None:
    stack, peer, handle = tuned()
    for _ in range(40):
        peer.send("A", bytes(1448))
        stack.poll(ms=10)
    assert stack.tcb(handle).rcvbuf_bytes == START


def test_receive_window_that_was_set_stays() -> None:
    stack, peer, handle = tuned()
    assert stack.option(handle, "RCVBUF", START) == 0
    for _ in range(4):
        read(stack, peer, 150_000)
        stack.poll(ms=10)
    assert stack.tcb(handle).rcvbuf_bytes == START


def test_configured_limit_alone_means_no_growth() -> None:
    stack = Stack(rcvbuf_bytes=START)
    assert stack.shard.cfg.rcvbuf_max_bytes == START


@pytest.mark.parametrize("pool, most", [(1024, 370_688), (2048, 741_376), (65536, 4 << 20)])
def test_default_limit_is_bounded_by_the_pool(pool: int, most: int) -> None:
    from tests.unit.san import ffi

    cfg = ffi.new("struct ix_config *", {"pool_frames": pool, "max_flows": 16})
    assert lib.ix_shard_bytes(cfg) > 0
    assert cfg.rcvbuf_bytes == 262_144
    assert cfg.rcvbuf_max_bytes == most


# ---- sending --------------------------------------------------------------------------


def test_send_limit_follows_twice_the_congestion_window() -> None:
    stack, peer, handle = opened(sndbuf_bytes=4000, sndbuf_max_bytes=100_000, arena=128)
    assert stack.stream(handle, 0, 60_000) == 2 * 14_600
    peer.take_all()
    peer.send("A")
    sent = stack.expect("SENT", bytes=14_600)
    cwnd = stack.info(handle).cwnd_bytes
    assert cwnd > 14_600
    assert sent.window == 2 * cwnd - 14_600
    assert stack.stream(handle, 0, 100_000) == 2 * cwnd - 14_600


def test_send_limit_has_a_limit() -> None:
    stack, _peer, handle = opened(sndbuf_bytes=4000, sndbuf_max_bytes=20_000)
    assert stack.stream(handle, 0, 60_000) == 20_000


def test_send_limit_that_was_set_stays() -> None:
    stack, _peer, handle = opened(sndbuf_bytes=4000, sndbuf_max_bytes=100_000)
    assert stack.option(handle, "SNDBUF", 5000) == 0
    assert stack.stream(handle, 0, 60_000) == 5000
    for bad in (0, MSS - 1000, 1 << 31):
        assert stack.option(handle, "SNDBUF", bad) == -22
