"""tcp/recv: received data, reassembly, the window that is advertised, SACK blocks sent."""

from __future__ import annotations

import pytest

from tests.unit.peer import MSS, Peer, Stack, opened, stream
from tests.unit.san import lib


def put_stream(peer: Peer, start: int, end: int, **fields: int) -> None:
    peer.put("A", stream(start, end - start), seq=start, **fields)


def send_stream(peer: Peer, start: int, end: int) -> None:
    put_stream(peer, start, end)
    peer.stack.poll()


# ---- reassembly -----------------------------------------------------------------------


def test_gap_is_filled_and_everything_delivered_in_order() -> None:
    stack, peer, _handle = opened()
    send_stream(peer, 1000, 2000)
    send_stream(peer, 3000, 4000)
    stack.expect_no_event()
    peer.expect("A", ack=0)
    peer.expect("A", ack=0)
    send_stream(peer, 0, 1000)
    peer.expect("A", ack=2000)  # at once: RFC 5681 4.2
    send_stream(peer, 2000, 3000)
    peer.expect("A", ack=4000)
    assert stack.received() == stream(0, 4000)
    assert stack.counter("tcp_ooo") == 2


def test_overlaps_are_cut() -> None:
    stack, peer, _handle = opened()
    for start, end in [(500, 900), (300, 600), (850, 1000), (200, 950), (100, 1000), (0, 150)]:
        send_stream(peer, start, end)
    assert stack.received() == stream(0, 1000)
    send_stream(peer, 900, 1100)
    assert stack.received() == stream(1000, 100)


@pytest.mark.parametrize(
    "covering", [(50, 560), (100, 500), (100, 510), (150, 350), (90, 300), (200, 300), (200, 450)]
)
def test_segment_over_several_holes_joins_what_it_touches(covering: tuple[int, int]) -> None:
    stack, peer, _handle = opened(sack_ok=True)
    held = set()
    for start, end in [(100, 200), (300, 400), (450, 500), covering]:
        send_stream(peer, start, end)
        held |= set(range(start, end))
    edges = [n for n in sorted(held) if n - 1 not in held]
    sacked = {n for start, end in peer.take_all()[-1].sack for n in range(start, end)}
    assert sacked == held and len(edges) <= 3
    send_stream(peer, 0, 600)
    assert stack.received() == stream(0, 600)
    assert stack.stats.frames_rx == 0


def test_duplicates_out_of_order_are_counted() -> None:
    stack, peer, _handle = opened()
    for _ in range(2):
        send_stream(peer, 100, 200)
    send_stream(peer, 120, 180)
    assert stack.counters("tcp_ooo", "tcp_dup_data") == [1, 2]
    assert stack.stats.frames_rx == 1


def test_each_segment_out_of_order_gets_a_duplicate_ack() -> None:
    # RFC 5681 4.2: the sender counts them. Without SACK one a batch would not do.
    stack, peer, _handle = opened()
    for i in range(1, 5):
        put_stream(peer, i * 100, i * 100 + 100)
    stack.poll()
    acks = peer.take_all()
    assert len(acks) >= 4
    assert all((s.flags, s.ack) == ("A", 0) for s in acks)


def test_more_holes_than_the_limit_are_dropped() -> None:
    stack, peer, _handle = opened(sack_ok=True, pool=2048)
    for i in range(lib.IX_OOO_RUNS_MAX + 3):
        put_stream(peer, 2 * i + 1, 2 * i + 2)
        stack.poll()
    assert stack.counters("tcp_ooo", "drop_tcp_ooo_limit") == [lib.IX_OOO_RUNS_MAX, 3]
    send_stream(peer, 0, 600)
    stack.settle()
    assert stack.received() == stream(0, 600)
    assert stack.stats.frames_rx == 0


def test_whole_window_behind_one_hole_is_kept_up_to_a_quarter_of_the_frames() -> None:
    size = 260  # too long to be copied behind the one before
    stack, peer, _handle = opened(sack_ok=True, wscale=7, pool=4096)
    most = (4096 - lib.IX_FRAMES_RESERVE) // 4
    for i in range(most + 3):
        put_stream(peer, 1 + size * i, 1 + size * (i + 1))
        stack.poll()
    assert stack.counters("tcp_ooo", "drop_tcp_ooo_limit") == [most, 3]
    assert peer.take_all()[-1].sack == ((1, 1 + size * most),)
    send_stream(peer, 0, 1)
    stack.settle()
    assert stack.received() == stream(0, 1 + size * most)
    assert stack.stats.frames_rx == 0


def test_connections_with_holes_leave_frames_for_what_fills_them() -> None:
    stack = Stack(listen=80)
    peers = [Peer(stack, sport=50000 + i, sack_ok=True) for i in range(3)]
    for peer in peers:
        peer.connect()
    for i in range(250):
        for peer in peers:
            put_stream(peer, 2 * i + 1, 2 * i + 2)
        stack.poll()
    assert stack.counter("drop_tcp_ooo_limit") > 0
    assert stack.stats.frames_rx <= stack.shard.frames.lend_max // 2 + 1
    stack.sent.clear()
    for peer in peers:
        peer.send("A", stream(0, 500), seq=0)
    got: dict[int, bytes] = {peer.handle: b"" for peer in peers}
    stack.settle()
    for event in stack.events:
        got[event.handle] += event.data
    assert all(data == stream(0, 500) for data in got.values())


def test_reset_frees_what_was_out_of_order_and_not_delivered() -> None:
    stack, peer, _handle = opened()
    send_stream(peer, 100, 200)
    send_stream(peer, 300, 400)
    peer.send("R", seq=0)
    stack.expect("DEAD")
    assert stack.is_idle()


# ---- the window -----------------------------------------------------------------------


def test_window_of_the_syn_is_unscaled_then_grows_to_the_buffer() -> None:
    stack = Stack(listen=80, rcvbuf_bytes=262144)
    peer = Peer(stack, wscale=7)
    syn_ack = peer.knock()
    assert (syn_ack.window, syn_ack.wscale) == (65535, 3)
    stack.accept(peer.handle)
    peer.send("PA", b"12")
    stack.sleep(ms=40)
    assert peer.expect("A").window == (262144 - 2) >> 3


def test_window_without_scaling_stays_below_64_kib() -> None:
    stack = Stack(listen=80, rcvbuf_bytes=262144)
    peer = Peer(stack)
    syn_ack = peer.knock()
    assert (syn_ack.window, syn_ack.wscale) == (65535, None)


def test_window_closes_with_what_is_lent_and_opens_with_recv_done() -> None:
    stack, peer, _handle = opened(rcvbuf_bytes=4 * MSS)
    for i in range(4):
        send_stream(peer, i * MSS, (i + 1) * MSS)
    windows = [s.window for s in peer.take_all()]
    assert windows[-1] == 0
    events = [stack.expect("RECV") for _ in range(4)]
    assert stack.done(events[0]) == 0
    peer.expect_nothing()  # one segment is not worth an update
    assert stack.done(events[1]) == 0
    peer.expect("A", window=2 * MSS, ack=4 * MSS)
    for event in events[2:]:
        assert stack.done(event) == 0
    peer.expect("A", window=4 * MSS)


def test_zero_window_takes_nothing_and_answers_probes() -> None:
    stack, peer, handle = opened(rcvbuf_bytes=2 * MSS)
    send_stream(peer, 0, MSS)
    send_stream(peer, MSS, 2 * MSS)
    assert peer.expect("A").window == 0
    stack.events.clear()
    send_stream(peer, 2 * MSS, 2 * MSS + 1)
    assert peer.expect("A", ack=2 * MSS).window == 0
    stack.expect_no_event()
    assert stack.info(handle).rcv_wnd == 0


def test_silly_window_is_not_offered() -> None:
    # RFC 9293 3.8.6.2.2: opened by a segment at least, or half of the buffer.
    stack, peer, _handle = opened(rcvbuf_bytes=10 * MSS)
    for i in range(10):
        send_stream(peer, i * MSS, (i + 1) * MSS)
    peer.take_all()
    event = stack.expect("RECV")
    for _ in range(10):
        assert stack.done(event, 100) == 0
        stack.sleep(ms=500)
        peer.send("A", seq=10 * MSS - 1)  # a probe
        assert peer.expect("A").window == 0
    assert stack.done(event) == -22  # more than is still lent
    assert stack.done(event, MSS - 1000) == 0
    stack.sleep(ms=1000)
    peer.send("A", seq=10 * MSS - 1)
    assert peer.take_all()[-1].window == MSS


def test_open_window_grows_by_segments_not_by_bytes() -> None:
    stack, peer, _handle = opened(rcvbuf_bytes=10 * MSS)
    for i in range(4):
        send_stream(peer, i * MSS, (i + 1) * MSS)
    events = [stack.expect("RECV") for _ in range(4)]
    peer.take_all()

    def edge() -> int:
        peer.send("A", stream(0, 1), seq=0)  # a repeated byte asks for an ACK
        segment = peer.expect("A")
        return segment.ack + segment.window

    assert edge() == 10 * MSS
    assert stack.done(events[0], MSS - 1) == 0
    assert edge() == 10 * MSS
    assert stack.done(events[0], 1) == 0
    assert edge() == 11 * MSS


def test_right_edge_never_moves_left() -> None:
    stack, peer, handle = opened(rcvbuf_bytes=20000)
    edge = 20000
    assert stack.option(handle, "RCVBUF", 2000) == 0
    at = 0
    while at < 20000 - MSS:
        send_stream(peer, at, at + MSS)
        at += MSS
        for s in peer.take_all():
            assert s.ack + s.window >= edge
    assert stack.counter("drop_tcp_wnd") == 0
    stack.received()
    send_stream(peer, at, at + MSS)
    stack.sleep(ms=40)
    assert peer.take_all()[-1].window <= 2000


def test_data_across_the_windows_edge_is_cut() -> None:
    stack, peer, _handle = opened(rcvbuf_bytes=1000)
    send_stream(peer, 0, 1400)
    assert stack.expect("RECV").data == stream(0, 1000)
    assert stack.counter("drop_tcp_wnd") == 400
    assert peer.take_all() == []
    stack.sleep(ms=40)
    peer.expect("A", ack=1000, window=0)


def test_pool_running_low_lowers_the_window() -> None:
    stack = Stack(listen=80, rcvbuf_bytes=65535)
    hog, peer = Peer(stack), Peer(stack, sport=50001)
    hog.connect()
    peer.connect()
    for i in range(400):
        put_stream(hog, i, i + 1)
        stack.poll()
    hog.take_all()
    send_stream(peer, 0, 100)
    stack.sleep(ms=40)
    assert peer.take_all()[-1].window == 65535 - 100  # what was offered stays
    for i in range(100, 10000, 100):
        send_stream(peer, i, i + 100)
    last = peer.take_all()[-1]
    assert last.ack + last.window == 65535


def test_lend_limit_drops_and_goes_on_after_recv_done() -> None:
    stack, peer, _handle = opened()
    for i in range(600):
        send_stream(peer, i, i + 1)
    lent = len(stack.events)
    assert stack.counter("drop_tcp_lend_limit") > 0
    assert 250 < lent <= 256  # half of what can be lent, for one connection
    assert stack.tcb(peer.handle).rcv_nxt == (peer.iss + 1 + lent) % 2**32
    assert stack.received() == stream(0, lent)
    send_stream(peer, lent, lent + 100)
    assert stack.received() == stream(lent, 100)


@pytest.mark.parametrize("hole", [0, 1])
def test_peers_whose_bytes_nobody_takes_leave_a_part_for_the_others(hole: int) -> None:
    """Byte by byte, each in a frame of its own: to an application that takes none of them, and
    behind a hole."""
    stack = Stack(listen=80)
    greedy = [Peer(stack, sport=50000 + i, sack_ok=True) for i in range(6)]
    for peer in greedy:
        peer.connect()
    for i in range(300):
        for peer in greedy:
            put_stream(peer, (1 + hole) * i + hole, (1 + hole) * i + hole + 1)
        stack.poll()
    frames = stack.shard.frames
    most = frames.lend_max // (1 + hole)
    held = frames.count[lib.IX_FRAME_APP] + frames.count[lib.IX_FRAME_RX]
    assert most // 7 * 6 - 6 <= held <= most // 7 * 6 + 6
    stack.sent.clear()
    stack.events.clear()
    modest = Peer(stack, sport=51000)
    modest.connect()
    for i in range(0, 3000, 100):
        send_stream(modest, i, i + 100)
    assert stack.tcb(modest.handle).rcv_nxt == (modest.iss + 1 + 3000) % 2**32


def test_greedy_peers_one_after_the_other_leave_frames_too() -> None:
    """Each holds as many as its buffer is charged for, not half of what is left."""
    stack = Stack(listen=80, pool=4096, rcvbuf_bytes=32768)
    for i in range(12):
        peer = Peer(stack, sport=50000 + i)
        peer.connect()
        for k in range(100):
            send_stream(peer, k, k + 1)
        assert stack.tcb(peer.handle).rcv_nxt == (peer.iss + 1 + 64) % 2**32
        stack.sent.clear()
        stack.events.clear()
    assert stack.shard.frames.count[lib.IX_FRAME_APP] == 12 * 64


def test_small_segments_are_charged_for_until_they_are_given_back() -> None:
    stack, peer, handle = opened(pool=4096, rcvbuf_bytes=32768)
    for i in range(0, 6500, 100):
        send_stream(peer, i, i + 100)
    assert stack.counter("drop_tcp_lend_limit") == 1
    assert stack.tcb(handle).rcv_nxt == (peer.iss + 1 + 6400) % 2**32
    assert stack.received() == stream(0, 6400)
    for i in range(6400, 12800, 1000):
        send_stream(peer, i, i + 1000)
    assert stack.received() == stream(6400, 6400 + 600)
    assert stack.tcb(handle).rcv_adv - stack.tcb(handle).rcv_nxt >= 16384


# ---- SACK blocks ----------------------------------------------------------------------


def test_sack_blocks_begin_with_the_latest() -> None:
    # RFC 2018 section 4
    _stack, peer, _handle = opened(sack_ok=True)
    a, b, c = (100, 200), (300, 400), (500, 600)
    for block, wanted in [(a, [a]), (c, [c, a]), (b, [b, c, a])]:
        send_stream(peer, *block)
        assert list(peer.expect("A", ack=0).sack) == wanted
    send_stream(peer, 200, 300)  # joins a and b
    assert list(peer.expect("A").sack) == [(100, 400), c]
    send_stream(peer, 550, 700)
    assert list(peer.expect("A").sack) == [(500, 700), (100, 400)]
    send_stream(peer, 0, 100)
    assert list(peer.expect("A", ack=400).sack) == [(500, 700)]
    send_stream(peer, 400, 500)
    assert list(peer.expect("A", ack=700).sack) == []


def test_sack_blocks_that_were_reported_before_follow_the_latest_first() -> None:
    # RFC 2018 section 4: "repeating the most recently reported SACK blocks"
    _stack, peer, _handle = opened(sack_ok=True)
    blocks = [(start, start + 100) for start in (900, 100, 700, 300, 500)]
    for count, block in enumerate(blocks, 1):
        send_stream(peer, *block)
        assert list(peer.expect("A").sack)[:3] == blocks[max(count - 3, 0) : count][::-1]
    send_stream(peer, 1000, 1100)  # the oldest grows, and is the latest
    assert list(peer.expect("A").sack)[:3] == [(900, 1100), (500, 600), (300, 400)]


def test_sack_blocks_are_four_and_three_beside_a_timestamp() -> None:
    for ts, most in ((False, 4), (True, 3)):
        stack, peer, _handle = opened(sack_ok=True, ts=ts)
        for i in range(1, 7):
            send_stream(peer, 200 * i, 200 * i + 100)
        stack.poll()
        sack = peer.take_all()[-1].sack
        assert len(sack) == most
        assert sack[0] == (1200, 1300)


def test_sack_blocks_come_once_a_batch() -> None:
    stack, peer, _handle = opened(sack_ok=True)
    for i in range(1, 4):
        put_stream(peer, 200 * i, 200 * i + 100)
    stack.poll()
    assert len(peer.expect("A").sack) == 3
    peer.expect_nothing()


def test_sack_not_negotiated_is_not_sent() -> None:
    _stack, peer, _handle = opened()
    send_stream(peer, 100, 200)
    assert peer.take_all()[-1].sack == ()


def test_data_beside_sack_blocks_fits_the_mtu() -> None:
    stack, peer, handle = opened(sack_ok=True, ts=True)
    for i in range(1, 5):
        send_stream(peer, 200 * i, 200 * i + 100)
    peer.take_all()
    stack.stream(handle, 0, 3000)
    found = peer.take_all()
    assert all(len(s.frame) <= 1514 for s in found)
    assert b"".join(s.payload for s in found) == stream(0, 3000)
    assert found[0].sack
