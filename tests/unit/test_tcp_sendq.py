"""tcp/sendq: borrowed memory between SENDV and SENT."""

from __future__ import annotations

import random

from tests.unit.peer import MSS, opened, stream
from tests.unit.san import lib


def test_queue_emptied_then_longer_data_is_sent_from_its_start() -> None:
    # Sent in place, acknowledged, and its extent used again for more than it held before.
    stack, peer, handle = opened()
    stack.sendv(handle, b"short")
    peer.expect("PA", b"short")
    peer.send("A")
    stack.sendv(handle, b"something longer")
    peer.expect("PA", b"something longer", seq=5)


def test_records_side_by_side_share_an_extent() -> None:
    stack, peer, handle = opened(max_extents=2, window=MSS)
    addr = stack.put_arena(stream(0, 8000))
    for i in range(8):
        assert stack.call("SENDV", handle=handle, addr=addr + 1000 * i, bytes=1000) == 1000
    assert stack.shard.tcp.extents_used == 1
    got = b""
    for _ in range(8):
        got += b"".join(s.payload for s in peer.take_all())
        peer.send("A")
    assert got == stream(0, 8000)
    assert stack.shard.tcp.extents_used == 0


def test_acknowledgement_inside_a_record_keeps_the_rest() -> None:
    stack, peer, handle = opened()
    for start, size in ((0, 500), (500, 300), (800, 1)):
        stack.stream(handle, start, size)
    peer.take_all()
    for ack, left in ((499, 302), (501, 300), (800, 1), (801, 0)):
        peer.send("A", ack=ack)
        info = stack.info(handle)
        assert info.queued_bytes == left
    assert sum(e.bytes for e in stack.events) == 801
    assert stack.shard.tcp.extents_used == 0


def test_retransmission_walks_the_queue_from_any_place() -> None:
    stack, peer, handle = opened()
    records = [(0, 700), (700, 1), (701, 900), (1601, 1000), (2601, 40)]
    for start, size in records:
        stack.stream(handle, start, size)
    peer.take_all()
    for ack in (0, 650, 700, 701, 1700, 2640):
        peer.send("A", ack=ack)
        stack.sleep(ms=150_000)
        sent = peer.take_all()
        assert ack in [s.seq for s in sent]
        for s in sent:
            assert s.payload == stream(s.seq, len(s.payload))


def test_queue_grows_while_a_timeout_is_repaired() -> None:
    stack, peer, handle = opened()
    stack.stream(handle, 0, 3 * MSS)
    peer.take_all()
    stack.sleep(ms=201)
    peer.expect_stream((0, MSS))
    stack.stream(handle, 3 * MSS, 100)
    peer.expect_nothing()
    got: dict[int, bytes] = {}
    at = MSS  # what is new leaves first (F-RTO)
    for _ in range(8):
        peer.send("A", ack=at)
        got |= {s.seq: s.payload for s in peer.take_all()}
        while at in got:
            at += len(got[at])
    assert at == 3 * MSS + 100
    assert all(payload == stream(seq, len(payload)) for seq, payload in got.items())


def test_many_random_records_arrive_whole() -> None:
    rng = random.Random(3)
    stack, peer, handle = opened(window=20000, max_extents=64, arena=128)
    sent, got = 0, b""
    while len(got) < 100_000:
        size = rng.choice([1, 7, 100, 1460, 1461, 2000, 5000])
        size = min(size, 100_000 - sent)
        if size:
            sent += max(0, stack.stream(handle, sent, size))
        for s in peer.take_all():
            if s.seq == len(got):
                got += s.payload
            else:
                assert s.payload == stream(s.seq, len(s.payload))
        if rng.random() < 0.5:
            peer.send("A", ack=len(got))
        stack.events.clear()
    assert got == stream(0, 100_000)


def test_no_extent_left_no_later_record_is_taken_before_a_refused_one() -> None:
    stack, peer, handle = opened(max_extents=2)
    peer.send("A", window=0)
    first, second = stack.put_arena(stream(0, 100)), stack.put_arena(stream(100, 200))
    calls = [
        stack.queue("SENDV", handle=handle, addr=addr, bytes=100)
        for addr in (first, second, first, second + 100)
    ]
    stack.poll()
    assert [call.result for call in calls] == [100, 100, 0, 0]


# ---- records and pushes (MSG_EOR, MSG_MORE) ----------------------------------------------


def test_no_segment_holds_bytes_of_two_records() -> None:
    # The window lets a part go first; the records wait together and stay apart.
    stack, peer, handle = opened(window=1000)
    stack.stream(handle, 0, 1000)
    stack.stream(handle, 1000, 300, flags=lib.IX_SEND_EOR)
    stack.stream(handle, 1300, 500, flags=lib.IX_SEND_EOR)
    stack.stream(handle, 1800, 100)
    assert [len(s.payload) for s in peer.take_all()] == [1000]
    peer.window = 30_000
    peer.send("A", ack=1000)
    sent = peer.take_all()
    assert [(s.seq, len(s.payload)) for s in sent] == [(1000, 300), (1300, 500), (1800, 100)]
    assert all("P" in s.flags for s in sent)


def test_record_longer_than_a_segment_is_cut_as_any() -> None:
    stack, peer, handle = opened(arena=64)
    stack.stream(handle, 0, 2 * MSS + 10, flags=lib.IX_SEND_EOR)
    stack.stream(handle, 2 * MSS + 10, 10)
    assert [len(s.payload) for s in peer.take_all()] == [MSS, MSS, 10, 10]


def test_retransmission_keeps_records_apart() -> None:
    stack, peer, handle = opened()
    for i in range(4):
        stack.stream(handle, 100 * i, 100, flags=lib.IX_SEND_EOR)
    assert len(peer.take_all()) == 4
    while stack.counter("tcp_rto") == 0:
        stack.poll(ms=20)
    peer.send("A", ack=100)
    peer.send("A", ack=200)
    assert {len(s.payload) for s in peer.take_all()} == {100}


def test_record_taken_in_part_does_not_end() -> None:
    # The application will send the rest, and that is of the record still.
    stack, _peer, handle = opened(window=0)
    stack.option(handle, "SNDBUF", 1000)
    assert stack.stream(handle, 0, 1200, flags=lib.IX_SEND_EOR) == 1000
    assert not stack.tcb(handle).records


def test_part_that_more_follows_is_not_pushed() -> None:
    stack, peer, handle = opened(arena=64)
    stack.stream(handle, 0, MSS, flags=lib.IX_SEND_MORE)
    assert [s.flags for s in peer.take_all()] == ["A"]
    stack.stream(handle, MSS, MSS, flags=lib.IX_SEND_MORE | lib.IX_SEND_CORKED)
    assert [s.flags for s in peer.take_all()] == ["PA"]
    stack.stream(handle, 2 * MSS, 10, flags=lib.IX_SEND_MORE)
    peer.expect_nothing()
    stack.stream(handle, 2 * MSS + 10, 10)
    assert [(s.flags, len(s.payload)) for s in peer.take_all()] == [("PA", 20)]
