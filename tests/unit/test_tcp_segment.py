"""tcp/segment: one segment: header, payload in place or copied, pins; resets; challenge ACKs."""

from __future__ import annotations

import itertools

import pytest

from tests.unit.peer import MS, MSS, Event, Peer, Stack, opened, stream
from tests.unit.simwire import FRAME_BYTES


def umem(stack: Stack, addr: int, size: int) -> bytes:
    return stack.wire.read(0, addr, size)


def hold_completions(stack: Stack, ms: int = 50) -> None:
    stack.wire.end(0).completion_delay_ns = ms * MS


# ---- headers --------------------------------------------------------------------------


def test_numbers_of_ip_headers_rise_and_ttl_is_64() -> None:
    stack, peer, handle = opened()
    stack.stream(handle, 0, 5 * MSS)
    frames = [s.frame for s in peer.take_all()]
    ids = [int.from_bytes(frame[18:20], "big") for frame in frames]
    assert [(b - a) % 65536 for a, b in itertools.pairwise(ids)] == [1, 1, 1, 1]
    assert {frame[22] for frame in frames} == {64}


# ---- timestamps: RFC 7323 4.3 ---------------------------------------------------------


def test_tsval_is_a_clock_of_milliseconds() -> None:
    stack, peer, handle = opened(ts=True)
    stack.sendv(handle, b"x")
    first = peer.take().ts
    stack.poll(ms=123)
    stack.sendv(handle, b"y")
    second = peer.take().ts
    assert first and second and (second[0] - first[0]) % 2**32 == 123


def test_delayed_ack_echoes_the_earliest_segments_timestamp() -> None:
    stack, peer, _handle = opened(ts=True)
    clock = peer.ts_clock
    peer.send("PA", b"a", ts=(clock + 5, peer.ts_seen))
    peer.send("PA", b"b", ts=(clock + 9, peer.ts_seen))
    assert peer.expect("A").ts == (peer.ts_seen, (clock + 5) % 2**32)
    assert stack.counter("drop_tcp_paws") == 0


def test_out_of_order_segment_does_not_move_the_echo() -> None:
    _stack, peer, _handle = opened(ts=True)
    clock = peer.ts_clock
    peer.send("PA", b"c", seq=2, ts=(clock + 9, peer.ts_seen))
    assert peer.take_all()[-1].ts == (peer.ts_seen, clock)
    peer.send("PA", b"ab", seq=0, ts=(clock + 3, peer.ts_seen))
    assert peer.expect("A", ack=3).ts == (peer.ts_seen, (clock + 3) % 2**32)


# ---- in place or copied ---------------------------------------------------------------


def test_arena_payload_at_the_headroom_is_sent_in_place() -> None:
    stack, peer, handle = opened()
    addr = stack.put_arena(stream(0, 1000))
    before = umem(stack, addr + 1000, 200)
    assert stack.call("SENDV", handle=handle, addr=addr, bytes=1000) == 1000
    peer.expect_stream((0, 1000))
    assert stack.counters("tx_inplace", "tx_copied") == [1, 0]
    assert umem(stack, addr, 1000) == stream(0, 1000)
    assert umem(stack, addr + 1000, 200) == before


@pytest.mark.parametrize("offset", [0, 127, 129, 1000])
def test_arena_payload_elsewhere_is_copied_and_nothing_is_written(offset: int) -> None:
    stack, peer, handle = opened()
    addr = stack.put_arena(stream(0, 1000), offset=offset)
    frame = addr // FRAME_BYTES * FRAME_BYTES
    before = umem(stack, frame, FRAME_BYTES)
    assert stack.call("SENDV", handle=handle, addr=addr, bytes=1000) == 1000
    peer.expect_stream((0, 1000))
    assert stack.counters("tx_inplace", "tx_copied") == [0, 1]
    assert umem(stack, frame, FRAME_BYTES) == before


def test_arena_payload_is_copied_where_in_place_is_off() -> None:
    stack, peer, handle = opened(sg_inplace=0)
    stack.stream(handle, 0, 1000)
    peer.expect_stream((0, 1000))
    assert stack.counters("tx_inplace", "tx_copied") == [0, 1]


def test_rest_of_a_long_record_is_copied() -> None:
    stack, peer, handle = opened()
    stack.stream(handle, 0, 4000)
    peer.expect_stream((0, MSS), (MSS, 2 * MSS), (2 * MSS, 4000))
    assert stack.counters("tx_inplace", "tx_copied") == [1, 2]


def test_record_shorter_than_the_segment_is_gathered() -> None:
    # Two records that share a segment can't both lie in place.
    stack, peer, handle = opened()
    for start, size in ((0, 100), (100, 101), (201, 7), (208, 900)):
        addr = stack.put_arena(stream(start, size))
        stack.queue("SENDV", handle=handle, addr=addr, bytes=size)
    stack.poll()
    peer.expect_stream((0, 1108))
    assert stack.counters("tx_inplace", "tx_copied") == [0, 1]


def test_arena_frame_still_under_transmission_is_copied() -> None:
    stack, peer, handle = opened()
    hold_completions(stack)
    addr = stack.put_arena(stream(0, 500))
    for _ in range(2):
        assert stack.call("SENDV", handle=handle, addr=addr, bytes=500) == 500
    first, second = peer.take_all()
    assert first.payload == second.payload == stream(0, 500)
    assert stack.counters("tx_inplace", "tx_copied") == [1, 1]
    stack.sleep(ms=60)
    peer.send("A")
    assert stack.call("SENDV", handle=handle, addr=addr, bytes=500) == 500
    assert stack.counter("tx_inplace") == 2


def test_retransmission_is_copied() -> None:
    stack, peer, handle = opened()
    stack.stream(handle, 0, 500)
    stack.sleep(ms=250)
    assert [s.payload for s in peer.take_all()] == [stream(0, 500)] * 2
    assert stack.counters("tx_inplace", "tx_copied") == [1, 1]


def echoed(stack: Stack, event: Event, size: int | None = None, skip: int = 0) -> int:
    """Sends what was received back as it lies."""
    size = event.bytes - skip if size is None else size
    return stack.call("SENDV", handle=event.handle, addr=event.addr + skip, bytes=size)


@pytest.mark.parametrize("ts", [False, True])
def test_received_buffer_sent_back_goes_in_place(ts: bool) -> None:
    stack, peer, _handle = opened(ts=ts)
    peer.send("PA", stream(0, 1400))
    event = stack.expect("RECV")
    assert echoed(stack, event) == 1400
    peer.expect_stream((0, 1400))
    assert stack.counters("tx_inplace", "tx_copied") == [1, 0]
    peer.send("A")
    stack.expect("SENT", bytes=1400)
    assert stack.done(event) == 0
    assert stack.stats.frames_app == 0


def test_received_buffer_whose_headers_are_shorter_than_ours_goes_in_place() -> None:
    # The options of our header reach into the headroom before the frame.
    stack, peer, _handle = opened(ts=True, sack_ok=True)
    peer.send("A", stream(10, 10), seq=10)
    peer.send("A", stream(30, 10), seq=30)
    peer.take_all()
    peer.send("A", stream(0, 10), seq=0)
    event = stack.expect("RECV", data=stream(0, 10))
    peer.take_all()
    assert echoed(stack, event) == 10
    segment = peer.expect("PA", stream(0, 10))
    assert segment.sack and segment.ts
    assert stack.counter("tx_inplace") == 1


def test_part_of_a_received_buffer_is_copied() -> None:
    stack, peer, _handle = opened()
    peer.send("PA", stream(0, 1000))
    event = stack.expect("RECV")
    assert echoed(stack, event, skip=10) == 990
    peer.expect("PA", stream(10, 990))
    assert event.data == umem(stack, event.addr, 1000)
    assert echoed(stack, event, size=400) == 400
    peer.expect("PA", stream(0, 400))
    assert stack.counters("tx_inplace", "tx_copied") == [1, 1]


def test_received_buffer_given_back_under_transmission_comes_free_with_the_completion() -> None:
    stack, peer, _handle = opened()
    hold_completions(stack)
    peer.send("PA", stream(0, 100))
    event = stack.expect("RECV")
    echoed(stack, event)
    peer.expect_stream((0, 100))
    peer.send("A")
    assert stack.done(event) == 0
    assert (stack.stats.frames_app, stack.stats.frames_tx) == (0, 1)
    stack.sleep(ms=60)
    assert stack.stats.frames_tx == 0


def test_received_buffer_sent_on_two_connections_arrives_on_both() -> None:
    stack = Stack(listen=80)
    a, b = Peer(stack), Peer(stack, sport=50001)
    a.connect()
    b.connect()
    hold_completions(stack)
    a.send("PA", stream(0, 700))
    event = stack.expect("RECV")
    for peer in (a, b):
        stack.queue("SENDV", handle=peer.handle, addr=event.addr, bytes=700)
    stack.poll()
    a.expect("PA", stream(0, 700))
    b.expect("PA", stream(0, 700))
    assert stack.counters("tx_inplace", "tx_copied") == [1, 1]


def test_buffer_of_another_connection_may_be_sent() -> None:
    # A proxy: what arrives here leaves there.
    stack = Stack(listen=80)
    a, b = Peer(stack), Peer(stack, sport=50001)
    a.connect()
    b.connect()
    a.send("PA", stream(0, 700))
    event = stack.expect("RECV")
    assert stack.call("SENDV", handle=b.handle, addr=event.addr, bytes=700) == 700
    b.expect("PA", stream(0, 700))
    b.send("A")
    assert stack.done(event) == 0


# ---- pins -----------------------------------------------------------------------------


def test_dead_waits_for_the_nic_to_be_done_with_borrowed_memory() -> None:
    stack, peer, handle = opened()
    hold_completions(stack)
    stack.stream(handle, 0, 500)
    peer.take_all()
    assert stack.tcb(handle).pinned == 1
    peer.send("R")
    stack.expect_no_event()
    stack.sleep(ms=40)
    stack.expect_no_event()
    stack.sleep(ms=20)
    stack.expect("DEAD", handle=handle)
    assert stack.is_idle()


def test_dead_waits_for_every_pin() -> None:
    stack, _peer, handle = opened()
    hold_completions(stack)
    for i in range(3):
        stack.stream(handle, 10 * i, 10)
        stack.poll(ms=10)
    assert stack.tcb(handle).pinned == 3
    assert stack.call("ABORT", handle=handle) == 0
    stack.sleep(ms=35)
    assert stack.tcb(handle).pinned == 1
    stack.expect_no_event()
    stack.sleep(ms=20)
    stack.expect("DEAD", status=-103)


def test_copied_data_does_not_pin() -> None:
    stack, peer, handle = opened()
    hold_completions(stack)
    addr = stack.put_arena(stream(0, 100), offset=0)
    stack.call("SENDV", handle=handle, addr=addr, bytes=100)
    peer.take_all()
    peer.send("R")
    stack.expect("DEAD")


def test_time_wait_is_not_reclaimed_or_reused_while_pinned() -> None:
    stack, peer, handle = opened(max_flows=1)
    hold_completions(stack, ms=500)
    stack.stream(handle, 0, 10)
    stack.close(handle)
    peer.take_all()
    peer.send("FA")
    peer.take_all()
    stack.expect("SENT", bytes=10)
    stack.expect_no_event()  # DEAD waits
    assert peer.state == "TIME_WAIT"
    Peer(stack, sport=50001).send("S")
    assert stack.counter("drop_tcp_flows") == 1
    stack.sleep(ms=600)
    stack.expect("DEAD", status=0)
    stack.sent.clear()
    Peer(stack, sport=50001).connect()


# ---- resets ---------------------------------------------------------------------------


def test_abort_resets_at_the_highest_number_sent() -> None:
    # The peer expects the number after all that it got.
    stack, peer, handle = opened()
    stack.stream(handle, 0, 3 * MSS)
    stack.sleep(ms=250)
    peer.take_all()
    stack.call("ABORT", handle=handle)
    peer.expect("RA", seq=3 * MSS, ack=0)
    stack.expect("DEAD", status=-103)


def test_challenge_acks_of_two_connections_are_counted_apart() -> None:
    stack = Stack(listen=80)
    peers = [Peer(stack, sport=50000 + i) for i in range(3)]
    for peer in peers:
        peer.connect()
    for peer in peers:
        peer.send("R", seq=100)
        peer.expect("A")
        peer.send("R", seq=100)
        peer.expect_nothing()
