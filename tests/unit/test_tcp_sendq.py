"""tcp/sendq: borrowed memory between SENDV and SENT."""

from __future__ import annotations

import random

from tests.unit.peer import MSS, opened, stream


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
    got, at = b"", MSS
    for _ in range(4):
        peer.send("A", ack=at)
        for s in peer.take_all():
            if s.seq == at:
                at = s.end
                got += s.payload
    assert got == stream(MSS, 2 * MSS + 100)


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
