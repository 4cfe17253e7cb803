"""tcp/calls: the application's calls, none of which is trusted."""

from __future__ import annotations

import pytest

from tests.unit.peer import (
    ECONNABORTED,
    ECONNRESET,
    EINVAL,
    ENOENT,
    ENOTCONN,
    EPIPE,
    MSS,
    Peer,
    Stack,
    opened,
    stream,
)
from tests.unit.san import lib
from tests.unit.simwire import FRAME_BYTES

CONNECTION_CALLS = ["ACCEPT", "REJECT", "SENDV", "CLOSE", "ABORT", "OPTION"]


# ---- handles --------------------------------------------------------------------------


@pytest.mark.parametrize("op", CONNECTION_CALLS)
def test_forged_handles_are_refused(op: str) -> None:
    stack, peer, handle = opened()
    addr = stack.put_arena(b"x")
    forged = [
        0,
        1,
        handle + 1,  # another index
        handle + (1 << 32),  # the next generation
        handle - (1 << 32),
        handle | lib.IX_HANDLE_UDP << 28,
        handle | lib.IX_HANDLE_TIMER << 28,
        handle | 0xF << 28,
        handle | 0xFFFFFFF,
        2**64 - 1,
    ]
    for value in forged:
        assert stack.call(op, handle=value, addr=addr, bytes=1) == -ENOENT, hex(value)
    assert peer.state == "ESTABLISHED"
    assert stack.counters("calls_stale", "call_errors") == [len(forged)] * 2


@pytest.mark.parametrize("op", CONNECTION_CALLS)
def test_stale_handles_are_refused_when_the_slot_is_used_again(op: str) -> None:
    stack, peer, old = opened(max_flows=1)
    peer.send("R")
    stack.expect("DEAD")
    new = Peer(stack, sport=50001).connect()
    assert new & 0xFFFFFFFF == old & 0xFFFFFFFF and new != old
    addr = stack.put_arena(b"x")
    assert stack.call(op, handle=old, addr=addr, bytes=1) == -ENOENT
    assert stack.state(new) == "ESTABLISHED"


@pytest.mark.parametrize("op", [12, 99, 255])
def test_unknown_calls_are_refused(op: int) -> None:
    stack, _peer, handle = opened()
    call = stack.queue("NONE", handle=handle)
    call.op = op
    stack.poll()
    assert call.result == -EINVAL


def test_call_none_does_nothing() -> None:
    stack = Stack()
    assert stack.call("NONE", handle=2**64 - 1) == 0


def test_more_calls_than_the_array_holds_are_not_read() -> None:
    stack = Stack()
    stack.io.n_calls = 2**32 - 1
    stack.poll()
    assert stack.counter("calls") == stack.io.max_calls


# ---- ACCEPT, REJECT -------------------------------------------------------------------


def test_accept_puts_the_cookie_and_works_once() -> None:
    stack, peer, handle = opened()
    assert stack.accept(handle) == -EINVAL
    assert stack.call("REJECT", handle=handle) == -EINVAL
    peer.send("PA", b"x")
    stack.expect("RECV", cookie=5)


@pytest.mark.parametrize("op", ["ACCEPT", "REJECT"])
def test_accept_of_an_outgoing_connection_is_refused(op: str) -> None:
    stack = Stack()
    peer = Peer(stack)
    assert stack.call(op, handle=peer.answer()) == -EINVAL


@pytest.mark.parametrize("op", ["SENDV", "CLOSE"])
def test_knocking_connection_takes_no_calls_before_accept(op: str) -> None:
    stack = Stack(listen=80)
    peer = Peer(stack)
    peer.knock()
    addr = stack.put_arena(b"x")
    assert stack.call(op, handle=peer.handle, addr=addr, bytes=1) == -ENOTCONN


def test_accept_after_the_peer_has_gone_is_stale() -> None:
    stack = Stack(listen=80)
    peer = Peer(stack)
    peer.knock()
    peer.send("R")
    stack.expect("DEAD", status=-ECONNRESET)
    assert stack.accept(peer.handle) == -ENOENT


def test_accept_in_the_cycle_that_brings_the_reset() -> None:
    stack = Stack(listen=80)
    peer = Peer(stack)
    peer.knock()
    peer.put("R")
    assert stack.accept(peer.handle) == 0
    stack.expect("DEAD", cookie=5, status=-ECONNRESET)


# ---- SENDV ----------------------------------------------------------------------------


def test_sendv_of_memory_that_is_not_the_applications_is_refused() -> None:
    stack, peer, handle = opened()
    peer.send("PA", stream(0, 100))
    event = stack.expect("RECV")
    end = stack.io.umem_bytes
    arena = stack.io.arena_frame * FRAME_BYTES
    bad = [
        (end, 1),
        (end - 1, 2),
        (2**64 - 1, 1),
        (2**64 - 1, 2**32 - 1),
        (arena, 2**32 - 1),
        (arena, 2**31),
        (arena, 0),
        (arena - 1, 1),
        (0, 1),
        (event.addr - 1, 2),  # the headers
        (event.addr, 101),  # the frame's tail
        (event.addr + 100, 1),
        (event.addr, FRAME_BYTES),
    ]
    for addr, size in bad:
        assert stack.call("SENDV", handle=handle, addr=addr, bytes=size) == -EINVAL, (addr, size)
    assert stack.info(handle).queued_bytes == 0
    assert stack.call("SENDV", handle=handle, addr=end - 10, bytes=10) == 10


def test_sendv_of_a_frame_given_back_is_refused() -> None:
    stack, peer, handle = opened()
    peer.send("PA", b"data")
    event = stack.expect("RECV")
    stack.done(event)
    assert stack.call("SENDV", handle=handle, addr=event.addr, bytes=4) == -EINVAL


def test_sendv_beyond_the_buffer_is_taken_in_part() -> None:
    stack, peer, handle = opened(sndbuf_bytes=5000)
    assert stack.stream(handle, 0, 4000) == 4000
    assert stack.stream(handle, 4000, 4000) == 1000
    assert stack.stream(handle, 5000, 4000) == 0
    peer.expect_stream((0, MSS), (MSS, 2 * MSS), (2 * MSS, 4000), (4000, 5000))
    peer.send("A", ack=3000)
    stack.expect("SENT", bytes=3000)
    assert stack.stream(handle, 5000, 4000) == 3000


def test_sendv_without_a_free_extent_takes_nothing() -> None:
    stack, peer, handle = opened(max_extents=2, window=1)
    for i in range(2):
        assert stack.stream(handle, 10 * i, 10) == 10
    assert stack.stream(handle, 20, 10) == 0
    peer.send("A", ack=0, window=1000)
    peer.take_all()
    peer.send("A")
    assert stack.stream(handle, 20, 10) == 10
    assert stack.shard.tcp.extents_used == 1


@pytest.mark.parametrize("write_only", [True, False])
def test_sendv_after_close_is_refused(write_only: bool) -> None:
    stack, _peer, handle = opened()
    stack.close(handle, write_only=write_only)
    assert stack.sendv(handle, b"x") == -EPIPE


def test_sendv_before_connected_is_refused() -> None:
    stack = Stack()
    handle = int(stack.connect_call().handle)
    assert stack.sendv(handle, b"x") == -ENOTCONN


def test_sendv_after_the_peers_fin_works() -> None:
    stack, peer, handle = opened()
    peer.send("FA")
    peer.expect("A")
    assert stack.sendv(handle, b"still here") == 10
    peer.expect("PA", b"still here")


# ---- RECV_DONE ------------------------------------------------------------------------


def test_recv_done_in_parts_adds_up() -> None:
    stack, peer, handle = opened()
    peer.send("PA", stream(0, 100))
    event = stack.expect("RECV")
    assert stack.done(event, 60) == 0
    assert stack.info(handle).lent_bytes == 40
    assert stack.stats.frames_app == 1
    assert stack.done(event, 41) == -EINVAL
    assert stack.done(event, 0) == 0
    assert stack.done(event, 40) == 0
    assert stack.stats.frames_app == 0
    assert stack.done(event, 1) == -EINVAL
    assert stack.done(event, 0) == -EINVAL


def test_recv_done_twice_does_not_open_the_window_twice() -> None:
    stack, peer, handle = opened(rcvbuf_bytes=3000)
    peer.send("PA", stream(0, 1000))
    event = stack.expect("RECV")
    assert stack.done(event) == 0
    assert stack.done(event) == -EINVAL
    assert stack.info(handle).lent_bytes == 0


def test_recv_done_with_any_address_in_the_frame() -> None:
    stack, peer, handle = opened()
    peer.send("PA", b"data")
    event = stack.expect("RECV")
    addr = event.frame * FRAME_BYTES + FRAME_BYTES - 1
    assert stack.call("RECV_DONE", handle=handle, addr=addr, bytes=4) == 0


def test_recv_done_forged_is_refused() -> None:
    stack = Stack(listen=80)
    a, b = Peer(stack), Peer(stack, sport=50001)
    a.connect()
    b.connect()
    a.send("PA", b"data")
    event = stack.expect("RECV")
    arena = stack.io.arena_frame * FRAME_BYTES
    for handle, addr, size in [
        (b.handle, event.addr, 4),  # another connection's
        (a.handle + (1 << 32), event.addr, 4),
        (0, event.addr, 4),
        (a.handle | 1 << 28, event.addr, 4),
        (a.handle, event.addr + FRAME_BYTES, 4),
        (a.handle, arena, 4),
        (a.handle, stack.io.umem_bytes, 4),
        (a.handle, 2**64 - 1, 4),
        (a.handle, event.addr, 5),
        (a.handle, event.addr, 2**32 - 1),
    ]:
        assert stack.call("RECV_DONE", handle=handle, addr=addr, bytes=size) == -EINVAL
    assert stack.info(a.handle).lent_bytes == 4
    assert stack.done(event) == 0


def test_recv_done_after_dead_gives_the_frame_back() -> None:
    stack, peer, _handle = opened()
    peer.send("PA", b"data")
    event = stack.expect("RECV")
    peer.send("R")
    stack.expect("DEAD")
    assert stack.stats.frames_app == 1
    assert stack.done(event) == 0
    assert stack.is_idle()


def test_recv_done_after_dead_does_not_touch_the_connection_that_took_the_slot() -> None:
    stack, peer, _handle = opened(max_flows=1)
    peer.send("PA", b"data")
    event = stack.expect("RECV")
    peer.send("R")
    stack.expect("DEAD")
    again = Peer(stack, sport=50001)
    handle = again.connect()
    again.send("PA", b"other")
    assert stack.done(event) == 0
    assert stack.info(handle).lent_bytes == 5


# ---- CLOSE, ABORT ---------------------------------------------------------------------


def test_close_then_data_resets_the_connection() -> None:
    # RFC 1122 4.2.2.13
    stack, peer, handle = opened()
    stack.close(handle)
    peer.expect("FA")
    peer.send("PA", b"nobody reads this")
    peer.expect("R", seq=1)
    stack.expect("DEAD", status=-ECONNRESET)
    assert stack.is_idle()


def test_close_then_repeated_old_data_does_not_reset() -> None:
    stack, peer, handle = opened()
    peer.send("PA", b"data")
    stack.received()
    stack.close(handle)
    peer.take_all()
    peer.send("PA", b"data", seq=0)
    peer.expect("A", ack=4)
    assert peer.state == "FIN_WAIT_2"


def test_close_gives_waiting_frames_back_and_the_window_stays() -> None:
    stack, peer, handle = opened(batch=128)
    for i in range(100):
        peer.put("A", stream(10 * i, 10))
    stack.poll()
    assert stack.close(handle) == 0
    assert stack.stats.frames_rx == 0
    while stack.events:
        assert stack.done(stack.expect("RECV")) == 0
    assert stack.info(handle).lent_bytes == 0


def test_half_close_goes_on_receiving() -> None:
    stack, peer, handle = opened()
    assert stack.close(handle, write_only=True) == 0
    assert stack.close(handle, write_only=True) == -EPIPE
    peer.expect("FA")
    for i in range(10):
        peer.send("PA", stream(100 * i, 100))
    assert stack.received() == stream(0, 1000)
    peer.send("FA")
    stack.expect("RECV", bytes=0)
    stack.expect("DEAD", status=0)


def test_half_close_then_close_reads_no_more() -> None:
    stack, peer, handle = opened()
    stack.close(handle, write_only=True)
    peer.expect("FA")
    peer.send("A")
    assert stack.close(handle) == 0
    peer.send("PA", b"data")
    peer.expect("R")
    stack.expect("DEAD", status=-ECONNRESET)


def test_close_twice_is_harmless() -> None:
    stack, peer, handle = opened()
    assert stack.close(handle) == 0
    assert stack.close(handle) == 0
    peer.expect("FA")
    peer.expect_nothing()


def test_close_delivers_what_was_accepted_before() -> None:
    stack, peer, handle = opened(window=2 * MSS)
    stack.stream(handle, 0, 5 * MSS)
    stack.close(handle)
    got = b""
    for _ in range(5):
        for s in peer.take_all():
            got += s.payload
        peer.send("A")
    assert got == stream(0, 5 * MSS)
    assert peer.state == "FIN_WAIT_2"


def test_abort_resets_and_gives_everything_back() -> None:
    stack, peer, handle = opened()
    stack.stream(handle, 0, 30000)
    peer.take_all()
    assert stack.call("ABORT", handle=handle) == 0
    peer.expect("RA", seq=10 * MSS)
    stack.expect("DEAD", status=-ECONNABORTED)
    assert stack.call("ABORT", handle=handle) == -ENOENT
    assert stack.is_idle()


# ---- OPTION ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "number, value",
    [
        (0, 1),
        (5, 0),
        (5, 4),
        (6, 1),
        (2**32 - 1, 1),
        (lib.IX_OPT_RCVBUF, 0),
        (lib.IX_OPT_RCVBUF, 535),
        (lib.IX_OPT_RCVBUF, 2**30 + 1),
        (lib.IX_OPT_RCVBUF, 2**64 - 1),
        (lib.IX_OPT_KEEPALIVE_NS, 2**64 - 1),
        (lib.IX_OPT_USER_TIMEOUT_NS, 2**64 - 1),
    ],
)
def test_option_refuses_nonsense(number: int, value: int) -> None:
    stack, _peer, handle = opened()
    assert stack.call("OPTION", handle=handle, bytes=number, value=value) == -EINVAL


def test_quickack_acknowledges_segments_at_once_until_answered() -> None:
    stack, peer, handle = opened()
    assert stack.option(handle, "QUICKACK", 3) == 0
    for i in range(2):
        peer.send("PA", b"x")
        stack.settle()
        peer.expect("A", ack=i + 1)
    peer.put("PA", b"x")
    stack.sendv(handle, b"answer")
    peer.expect("PA", b"answer", ack=3)
    peer.send("PA", b"x", ack=6)
    stack.settle()
    peer.expect_nothing()


def test_quickack_lets_go_of_an_ack_that_waits() -> None:
    stack, peer, handle = opened()
    peer.send("PA", b"x")
    stack.settle()
    peer.expect_nothing()
    assert stack.option(handle, "QUICKACK", 1) == 0
    peer.expect("A", ack=1)


def test_rcvbuf_is_bounded_by_the_window_scale() -> None:
    stack, _peer, handle = opened()
    assert stack.option(handle, "RCVBUF", 1 << 20) == 0
    assert stack.tcb(handle).rcvbuf_bytes == 65535
