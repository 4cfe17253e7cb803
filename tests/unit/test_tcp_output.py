"""tcp/output: what a connection sends, and when."""

from __future__ import annotations

from tests.unit.peer import MSS, Peer, Stack, opened, stream
from tests.unit.san import ffi, lib


def segments(start: int, count: int, size: int = MSS) -> list[tuple[int, int]]:
    """(start, end) of `count` full segments in a row."""
    return [(start + i * size, start + (i + 1) * size) for i in range(count)]


# ---- windows --------------------------------------------------------------------------


def test_initial_window_is_ten_segments() -> None:
    # RFC 6928
    stack, peer, handle = opened()
    assert stack.stream(handle, 0, 30000) == 30000
    peer.expect_stream(*segments(0, 10))
    stack.sleep(ms=100)
    peer.expect_nothing()


def test_slow_start_doubles_each_round_trip() -> None:
    stack, peer, handle = opened(arena=128)
    assert stack.stream(handle, 0, 60000) == 60000
    peer.expect_stream(*segments(0, 10))
    for i in range(5):
        peer.put("A", ack=(i + 1) * 2 * MSS)
    stack.poll()
    peer.expect_stream(*segments(14600, 20))


def test_peers_window_is_never_exceeded() -> None:
    stack, peer, handle = opened(window=4000)
    stack.stream(handle, 0, 20000)
    peer.expect_stream(*segments(0, 2))  # 1,080 more would be a silly window
    peer.send("A", ack=2 * MSS)
    peer.expect_stream(*segments(2 * MSS, 2))


def test_window_below_a_segment_is_filled() -> None:
    # RFC 9293 3.8.6.2.1 (3): at least half of the largest window that the peer offered
    stack, peer, handle = opened(window=1000)
    stack.stream(handle, 0, 3000)
    peer.expect_stream((0, 1000))
    peer.send("A", ack=1000, window=499)
    peer.expect_nothing()
    peer.send("A", ack=1000, window=500)
    peer.expect_stream((1000, 1500))


def test_window_that_shrinks_below_what_is_out_stops_sending() -> None:
    # RFC 9293 3.8.6: it SHOULD NOT be done, and must be coped with.
    stack, peer, handle = opened()
    stack.stream(handle, 0, 20000)
    peer.take_all()
    peer.send("A", ack=MSS, window=2 * MSS)
    peer.expect_nothing()
    peer.send("A", ack=10 * MSS, window=2 * MSS)
    peer.expect_stream(*segments(10 * MSS, 2))


def test_scaled_window_is_used_whole() -> None:
    stack, peer, handle = opened(arena=128, wscale=7, window=1000)
    stack.stream(handle, 0, 100000)
    assert stack.info(handle).snd_wnd == 1000 << 7
    peer.expect_stream(*segments(0, 10))


# ---- short segments -------------------------------------------------------------------


def test_nodelay_sends_short_segments_at_once() -> None:
    stack, peer, handle = opened()
    for i in range(3):
        stack.stream(handle, 5 * i, 5)
    peer.expect_stream((0, 5), (5, 10), (10, 15))


def test_short_records_of_one_batch_share_a_segment() -> None:
    stack, peer, handle = opened()
    for i in range(5):
        addr = stack.put_arena(stream(10 * i, 10))
        stack.queue("SENDV", handle=handle, addr=addr, bytes=10)
    stack.poll()
    peer.expect_stream((0, 50))


def test_nagle_holds_a_short_segment_until_all_is_acknowledged() -> None:
    stack, peer, handle = opened()
    assert stack.option(handle, "NODELAY", 0) == 0
    stack.stream(handle, 0, 5)
    peer.expect_stream((0, 5))
    stack.stream(handle, 5, 5)
    stack.stream(handle, 10, 5)
    peer.expect_nothing()
    peer.send("A")
    peer.expect_stream((5, 15))


def test_nagle_lets_full_segments_go() -> None:
    stack, peer, handle = opened()
    stack.option(handle, "NODELAY", 0)
    stack.stream(handle, 0, 5)
    peer.expect_stream((0, 5))
    stack.stream(handle, 5, MSS + 10)
    peer.expect_stream((5, 5 + MSS))
    stack.option(handle, "NODELAY", 1)
    peer.expect_stream((5 + MSS, 15 + MSS))


def test_nagle_lets_the_last_segment_go_with_the_fin() -> None:
    stack, peer, handle = opened()
    stack.option(handle, "NODELAY", 0)
    stack.stream(handle, 0, 5)
    stack.stream(handle, 5, 5)
    peer.expect_stream((0, 5))
    stack.close(handle, write_only=True)
    peer.expect("FPA", stream(5, 5), seq=5)


def test_more_holds_a_short_segment_until_the_rest_comes() -> None:
    stack, peer, handle = opened()
    stack.stream(handle, 0, 100, flags=lib.IX_SEND_MORE)
    peer.expect_nothing()
    stack.stream(handle, 100, 100)
    peer.expect_stream((0, 200))


def test_more_lets_full_segments_go() -> None:
    stack, peer, handle = opened()
    stack.stream(handle, 0, 2 * MSS + 1, flags=lib.IX_SEND_MORE)
    peer.expect_stream(*segments(0, 2))


def test_more_without_more_goes_after_a_while() -> None:
    stack, peer, handle = opened()
    stack.stream(handle, 0, 100, flags=lib.IX_SEND_MORE)
    stack.sleep(ms=300)
    peer.expect_stream((0, 100))


def test_more_is_ended_by_close() -> None:
    stack, peer, handle = opened()
    stack.stream(handle, 0, 100, flags=lib.IX_SEND_MORE)
    stack.close(handle)
    peer.expect("FA", stream(0, 100))


# ---- flags ----------------------------------------------------------------------------


def test_psh_marks_the_end_of_what_there_is() -> None:
    stack, peer, handle = opened()
    stack.stream(handle, 0, 3000)
    assert [s.flags for s in peer.take_all()] == ["A", "A", "PA"]


def test_close_puts_the_fin_on_the_last_segment() -> None:
    stack, peer, handle = opened()
    addr = stack.put_arena(stream(0, 2000))
    stack.queue("SENDV", handle=handle, addr=addr, bytes=2000)
    stack.queue("CLOSE", handle=handle)
    stack.poll()
    peer.expect("A", stream(0, MSS), seq=0)
    peer.expect("FPA", stream(MSS, 2000 - MSS), seq=MSS)
    peer.send("A")
    stack.expect("SENT", bytes=2000)
    peer.expect_nothing()


def test_fin_waits_for_data_that_the_window_holds_back() -> None:
    stack, peer, handle = opened(window=MSS)
    stack.stream(handle, 0, 2 * MSS)
    stack.close(handle)
    peer.expect("A", stream(0, MSS))
    peer.send("A")
    peer.expect("FA", stream(MSS, MSS), seq=MSS)


def test_fin_goes_into_a_zero_window() -> None:
    stack, peer, handle = opened()
    peer.send("A", window=0)
    stack.close(handle, write_only=True)
    peer.expect("FA", seq=0)


def test_answer_carries_the_ack() -> None:
    stack, peer, handle = opened()
    peer.send("PA", b"ping")
    stack.expect("RECV")
    stack.sendv(handle, b"pong")
    peer.expect("PA", b"pong", ack=4)
    stack.sleep(ms=100)
    peer.expect_nothing()
    assert stack.counter("tcp_pure_acks") == 0


def test_burst_is_acknowledged_once_a_cycle() -> None:
    stack, peer, _handle = opened()
    for _ in range(8):
        peer.put("A", bytes(MSS))
    stack.poll()
    peer.expect("A", ack=8 * MSS)
    peer.expect_nothing()


# ---- retransmission by timeout --------------------------------------------------------


def test_timeout_sends_one_segment_then_goes_on_as_acks_come() -> None:
    stack, peer, handle = opened()
    stack.stream(handle, 0, 5 * MSS)
    peer.take_all()
    stack.sleep(ms=201)
    peer.expect_stream((0, MSS))
    peer.send("A", ack=MSS)
    peer.expect_stream(*segments(MSS, 2))
    peer.send("A", ack=3 * MSS)
    peer.expect_stream(*segments(3 * MSS, 2))
    peer.send("A", ack=5 * MSS)
    peer.expect_nothing()
    assert stack.counters("tcp_rto", "tcp_rexmit") == [1, 5]


def test_timeout_and_an_ack_of_everything_sends_nothing_twice() -> None:
    # Only the ACKs were lost.
    stack, peer, handle = opened()
    stack.stream(handle, 0, 5 * MSS)
    peer.take_all()
    stack.sleep(ms=201)
    peer.expect_stream((0, MSS))
    peer.send("A", ack=5 * MSS)
    peer.expect_nothing()
    stack.expect("SENT", bytes=5 * MSS)
    stack.stream(handle, 5 * MSS, 10)
    peer.expect_stream((5 * MSS, 5 * MSS + 10))


def test_timeout_repeats_the_fin() -> None:
    stack, peer, handle = opened()
    stack.stream(handle, 0, 10)
    stack.close(handle, write_only=True)
    peer.take_all()
    stack.sleep(ms=201)
    peer.expect("FPA", stream(0, 10), seq=0)
    peer.send("A", ack=10)
    stack.sleep(ms=500)
    peer.expect("FA", seq=10)
    peer.send("A", ack=11)
    stack.sleep(ms=5000)
    peer.expect_nothing()


# ---- back-pressure --------------------------------------------------------------------


def test_tx_ring_full_goes_on_in_order() -> None:
    stack = Stack(listen=80, ring=8)
    peer = Peer(stack)
    handle = peer.connect()
    stack.wire.end(0).completion_delay_ns = 1_000_000
    stack.stream(handle, 0, 20000)
    assert len(stack.sent) == 8
    assert stack.counter("tx_full") == 1
    stack.sleep(ms=5)
    peer.expect_stream(*segments(0, 10))
    peer.send("A")
    stack.sleep(ms=5)


def test_pool_exhausted_goes_on_when_frames_come_back() -> None:
    stack = Stack(listen=80, fill_target=900, ring=2048, max_calls=128)
    peers = [Peer(stack, sport=50000 + i) for i in range(16)]
    for peer in peers:
        peer.connect()
    stack.wire.end(0).completion_delay_ns = 1_000_000
    for peer in peers:
        addr = stack.put_arena(stream(0, 10 * MSS), offset=0)
        stack.queue("SENDV", handle=peer.handle, addr=addr, bytes=10 * MSS)
    stack.poll()
    assert stack.counter("tx_no_frame") > 0
    stack.sleep(ms=3)
    by_port: dict[int, list[bytes]] = {}
    for frame in stack.sent:
        by_port.setdefault(int.from_bytes(frame[36:38], "big"), []).append(frame)
    for peer in peers:
        peer.sport = peer.sport
        found = [peer.parse(frame) for frame in by_port[peer.sport]]
        assert [(s.seq, s.end) for s in found] == segments(0, 10)


def test_idle_connection_starts_again_with_the_initial_window() -> None:
    # RFC 5681 4.1
    stack, peer, handle = opened(arena=128)
    stack.stream(handle, 0, 30 * MSS)
    peer.take_all()
    for i in range(15):
        peer.put("A", ack=(i + 1) * 2 * MSS)
        stack.poll()
    assert stack.info(handle).cwnd_bytes >= 20 * MSS
    stack.sleep(ms=300)
    peer.take_all()
    stack.stream(handle, 30 * MSS, 20 * MSS)
    assert len(peer.take_all()) == 10


def flags(peer: Peer) -> list[str]:
    return [s.flags for s in peer.take_all()]


def test_run_that_the_window_ends_is_pushed_and_a_lone_segment_is_not() -> None:
    # RFC 9293 3.9.1.2 leaves it open; receivers that merge segments go by it.
    stack, peer, handle = opened(window=2 * MSS + 100)
    stack.stream(handle, 0, 6 * MSS)
    assert flags(peer) == ["A", "PA"]
    peer.send("A", window=MSS)
    assert flags(peer) == ["A"]


def test_run_is_half_of_the_window_where_the_path_is_short() -> None:
    stack, peer, handle = opened()
    stack.stream(handle, 0, 9 * MSS + 1)
    assert flags(peer) == ["A"] * 4 + ["PA"] + ["A"] * 4 + ["PA"]


def test_run_is_what_leaves_in_a_millisecond_and_two_segments_at_least() -> None:
    stack, peer, handle = opened(rtt_ms=100)
    stack.stream(handle, 0, 5 * MSS)
    assert flags(peer) == ["A", "PA", "A", "PA", "PA"]
    tcb = stack.tcb(handle)
    tcb.cwnd, tcb.srtt_us = 100 * MSS, 50_000  # 292 KB twice in 50 ms: 3.9 segments in 2^-10 s
    assert lib.ix_pace_run(ffi.addressof(stack.shard.tcp), ffi.addressof(tcb), MSS) == 3


def test_run_has_the_configured_number_of_segments() -> None:
    stack, peer, handle = opened(rtt_ms=100, run_min=4)
    stack.stream(handle, 0, 6 * MSS)
    assert flags(peer) == ["A", "A", "A", "PA", "A", "PA"]


def test_run_of_one_segment_where_the_window_is_less_than_four() -> None:
    stack, peer, handle = opened(rtt_ms=100)
    stack.tcb(handle).cwnd = 3 * MSS
    stack.stream(handle, 0, 6 * MSS)
    assert flags(peer) == ["A", "A", "A"]


def test_end_of_a_write_is_pushed_again_and_other_segments_are_not() -> None:
    stack, peer, handle = opened(rtt_ms=100)
    for start, count in ((0, 1), (1, 3), (4, 1)):
        stack.stream(handle, start * MSS, count * MSS)
        stack.sleep(ms=1)
    assert flags(peer) == ["PA", "A", "PA", "PA", "PA"]
    while not stack.counter("tcp_rexmit"):
        stack.sleep(ms=10)
    assert flags(peer) == ["PA"]
    for acked, expected in ((1, ["A", "PA"]), (3, ["PA", "PA"])):
        peer.send("A", ack=acked * MSS)
        assert flags(peer) == expected


def test_end_of_a_long_write_does_not_wait_behind_full_segments() -> None:
    # Minshall's change of Nagle's algorithm
    stack, peer, handle = opened()
    stack.option(handle, "NODELAY", 0)
    stack.stream(handle, 0, MSS + 10)
    peer.expect_stream((0, MSS), (MSS, MSS + 10))
    stack.stream(handle, MSS + 10, 10)
    peer.expect_nothing()
    peer.send("A", ack=MSS)
    peer.expect_nothing()
    peer.send("A", ack=MSS + 10)
    peer.expect_stream((MSS + 10, MSS + 20))


def test_more_ends_with_an_ack_and_cork_does_not() -> None:
    for cork in (0, lib.IX_SEND_CORKED):
        stack, peer, handle = opened()
        stack.stream(handle, 0, 2 * MSS + 10, flags=lib.IX_SEND_MORE | cork)
        peer.expect_stream(*segments(0, 2))
        peer.send("A", ack=MSS)
        if cork:
            peer.expect_nothing()
        else:
            peer.expect("A", stream(2 * MSS, 10), seq=2 * MSS)
