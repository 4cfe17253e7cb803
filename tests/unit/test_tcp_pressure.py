"""tcp/pressure: frames are used up: what is had back, and from whom.

The peers here send byte by byte, each byte in a frame of its own, and the application keeps what it
gets, as one does whose answers are not acknowledged.
"""

from __future__ import annotations

from collections import deque

from tests.unit.peer import ENOBUFS, MSS, Event, Peer, Stack, opened, stream
from tests.unit.san import lib

STARVED_MS = 110  # more than pressure.c waits


def shard(**options: int) -> Stack:
    return Stack(listen=80, **{"max_flows": 64} | options)


def left(stack: Stack) -> int:
    frames = stack.shard.frames
    held = frames.count[lib.IX_FRAME_APP] + frames.count[lib.IX_FRAME_RX]
    return int(frames.lend_max - held)


def connected(stack: Stack, sport: int) -> Peer:
    """A connection, made while other events wait to be looked at."""
    kept, stack.events = stack.events, deque()
    stack.sent.clear()
    peer = Peer(stack, sport=sport)
    peer.connect()
    kept.extend(stack.events)
    stack.events = kept
    return peer


def take_frames(stack: Stack, each: int = 1 << 20) -> list[Peer]:
    """Greedy peers, one after the other, until no frame is left but the one that the next segment
    comes in. The first holds the most."""
    peers: list[Peer] = []
    while left(stack) > 1:
        peers.append(connected(stack, 50000 + len(peers)))
        before, sent = -1, 0
        while before != left(stack) and sent < each:
            before = left(stack)
            peers[-1].send("A", stream(sent, 1), seq=sent)
            sent += 1
    stack.sent.clear()
    return peers


def is_served(stack: Stack, peer: Peer) -> bool:
    stack.sent.clear()
    peer.send("A", stream(0, 100), seq=0)
    return b"".join(e.data for e in held_by(stack, peer)) == stream(0, 100)


def give_back(stack: Stack, events: list[Event]) -> None:
    for event in events:
        assert stack.done(event) == 0


def held_by(stack: Stack, peer: Peer) -> list[Event]:
    return [e for e in stack.events if e.type == "RECV" and e.handle == peer.handle]


def test_no_frame_left_resets_the_one_that_holds_the_most_and_serves_the_others() -> None:
    stack = shard()
    greedy = take_frames(stack)
    assert len(greedy) > 5
    peer = connected(stack, 60000)
    stack.sent.clear()
    assert not is_served(stack, peer)
    stack.sleep(ms=STARVED_MS)
    first = greedy[0]
    assert stack.counter("tcp_pressure_resets") == 1
    assert [e.handle for e in stack.events if e.type == "DEAD"] == [first.handle]
    assert next(e.status for e in stack.events if e.type == "DEAD") == -ENOBUFS
    to_first = first.sport.to_bytes(2, "big")
    stack.sent = deque(frame for frame in stack.sent if frame[36:38] == to_first)
    assert first.take_all()[-1].flags == "RA"
    held = held_by(stack, first)
    assert len(held) == max(len(held_by(stack, p)) for p in greedy) == 256
    give_back(stack, held)
    assert is_served(stack, peer)
    stack.sleep(ms=10 * STARVED_MS)
    assert stack.counter("tcp_pressure_resets") == 1, "enough came back"
    assert all(stack.state(p.handle) == "ESTABLISHED" for p in [*greedy[1:], peer])


def test_frames_of_those_reset_that_are_not_back_yet_count_as_left() -> None:
    stack = shard()
    take_frames(stack)
    peer = connected(stack, 60000)
    for _ in range(STARVED_MS):  # the application is slow to see the DEAD
        is_served(stack, peer)
        stack.sleep(ms=1)
    assert stack.counter("tcp_pressure_resets") == 1
    assert left(stack) == 1


def test_resets_go_on_until_a_sixteenth_is_left() -> None:
    stack = shard(pool=4096, max_flows=256, rcvbuf_bytes=16384)  # 32 frames each
    greedy = take_frames(stack, each=32)
    peer = connected(stack, 60000)
    is_served(stack, peer)
    stack.sleep(ms=STARVED_MS)
    dead = [e.handle for e in stack.events if e.type == "DEAD"]
    assert len(dead) == stack.counter("tcp_pressure_resets") == 3584 // 16 // 32
    assert len(set(dead)) == len(dead) < len(greedy)


def test_frames_that_come_back_in_time_save_everybody() -> None:
    stack = shard()
    greedy = take_frames(stack)
    peer = connected(stack, 60000)
    assert not is_served(stack, peer)
    stack.sleep(ms=50)
    give_back(stack, held_by(stack, greedy[0])[:40])
    stack.sleep(ms=STARVED_MS)
    assert stack.counter("tcp_pressure_resets") == 0
    assert is_served(stack, peer)


def test_who_is_served_more_often_than_refused_resets_nobody() -> None:
    stack = shard()
    greedy = take_frames(stack)
    peer = connected(stack, 60000)
    assert not is_served(stack, peer)
    frames = held_by(stack, greedy[0])
    for i in range(3):
        give_back(stack, frames[i : i + 1])
        peer.send("A", stream(i, 1), seq=i)
        give_back(stack, held_by(stack, peer)[-1:])
        peer.send("A", stream(i, 1), seq=i)
    assert stack.shard.tcp.pressure.taken > stack.shard.tcp.pressure.refused
    stack.sleep(ms=STARVED_MS)
    assert stack.counter("tcp_pressure_resets") == 0
    assert stack.shard.tcp.pressure.since_ns == 0


def test_data_of_connections_not_accepted_is_found_too() -> None:
    stack = shard()
    hog = Peer(stack, sport=40000)
    hog.knock()
    for i in range(600):  # too long for copies
        hog.put("A", stream(300 * i, 300), seq=300 * i)
        stack.poll()
    take_frames(stack)
    peer = connected(stack, 60000)
    assert not is_served(stack, peer)
    stack.sent.clear()
    stack.sleep(ms=STARVED_MS)
    assert stack.counter("tcp_pressure_resets") == 1
    assert is_served(stack, peer), "its frames are free at once"


def test_last_frame_opens_the_window_by_a_segment_beside_timestamps() -> None:
    """Or whose SYN is answered with a window of 0 sends nothing that could be refused."""
    stack = shard()
    take_frames(stack)
    peer = Peer(stack, sport=60000, ts=True)
    stack.events.clear()
    stack.sent.clear()
    assert peer.knock().window == MSS - 12
    assert stack.accept(peer.handle) == 0
    peer.send("A", b"x")
    stack.expect_no_event()
    stack.sleep(ms=STARVED_MS)
    assert stack.counter("tcp_pressure_resets") == 1


def test_what_waits_out_of_order_goes_before_anybody_is_reset() -> None:
    stack = shard()
    holes = Peer(stack, sport=49000, sack_ok=True)
    holes.connect()
    for i in range(120):
        holes.send("A", stream(2 * i + 1, 1), seq=2 * i + 1)
    sport = 41000
    while left(stack) > 1:
        hog = connected(stack, sport := sport + 1)
        for i in range(left(stack) // 2):  # what it may have: none is refused
            hog.send("A", stream(i, 1), seq=i)
    peer = connected(stack, 60000)
    assert not is_served(stack, peer)
    assert is_served(stack, peer), "in the very next cycle"
    assert stack.counter("tcp_ooo_pruned") == 60, "what is farther away"
    assert stack.counter("tcp_pressure_resets") == 0
    stack.sent.clear()
    holes.send("A", stream(0, 1), seq=0)
    assert holes.take_all()[-1].ack == 2, "the nearer half is kept"
    for i in range(0, 240, 60):
        holes.send("A", stream(i, 60), seq=i)
    events = [e for e in stack.events if e.handle == holes.handle and e.type == "RECV"]
    assert b"".join(e.data for e in events) == stream(0, 240)


def test_small_segments_behind_a_hole_share_frames() -> None:
    stack, peer, _handle = opened(sack_ok=True)
    for i in range(1, 1000):
        peer.send("A", stream(i, 1), seq=i)
    assert stack.tcb(peer.handle).ooo_count == 32
    assert stack.counter("tcp_collapsed") == 999 - 32
    assert peer.take_all()[-1].sack == ((1, 1000),)
    peer.send("A", stream(0, 1), seq=0)
    assert stack.received() == stream(0, 1000)
    assert stack.stats.frames_rx == 0


def test_copies_join_what_lies_behind_them() -> None:
    stack, peer, _handle = opened(sack_ok=True)
    for i in range(1, 100, 2):  # 50 pieces
        peer.send("A", stream(i, 1), seq=i)
    for i in range(2, 100, 2):
        peer.send("A", stream(i, 1), seq=i)
    assert peer.take_all()[-1].sack == ((1, 100),)
    assert stack.counter("tcp_collapsed") == 49
    peer.send("A", stream(0, 100), seq=0)
    assert stack.received() == stream(0, 100)
    assert stack.stats.frames_rx == 0


def test_small_segments_that_nobody_accepts_share_frames() -> None:
    stack = Stack(listen=80)
    peer = Peer(stack)
    peer.knock()
    for i in range(2000):
        peer.put("A", stream(i, 1), seq=i)
        stack.poll()
    assert stack.tcb(peer.handle).held_frames < 40
    assert stack.accept(peer.handle) == 0
    assert stack.received() == stream(0, 2000)
    assert stack.tcb(peer.handle).held_frames == 0
