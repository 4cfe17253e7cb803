"""Received data against a model: a bytearray and the set of bytes that have arrived.

Whatever the order, overlap, repetition and batching of the segments, the application gets the
stream once and in order, and the acknowledgement is the end of its first gap.
"""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.peer import Peer, Stack, opened, stream
from tests.unit.san import lib

SETTINGS = settings(max_examples=150, deadline=None, database=None)
SIZE = 3000

pieces = st.lists(
    st.tuples(st.integers(0, SIZE - 1), st.integers(1, 700)).map(
        lambda p: (p[0], min(p[0] + p[1], SIZE))
    ),
    max_size=40,
)
cuts = st.lists(st.integers(1, SIZE - 1), max_size=30).map(
    lambda c: sorted({0, 1400, 2800, SIZE, *c})
)
offers = st.fixed_dictionaries({"sack_ok": st.booleans(), "ts": st.booleans()})
batches = st.lists(st.integers(1, 8), min_size=1, max_size=8)


class Model:
    """What has arrived, and the end of the first gap."""

    def __init__(self) -> None:
        self.arrived = bytearray(SIZE)
        self.next = 0

    def take(self, start: int, end: int) -> None:
        self.arrived[start:end] = b"\1" * (end - start)
        while self.next < SIZE and self.arrived[self.next]:
            self.next += 1

    def holds(self, start: int, end: int) -> bool:
        return all(self.arrived[start:end])


def shard_next(stack: Stack, peer: Peer) -> int:
    """rcv_nxt of the shard, as the peer counts."""
    return int((stack.tcb(peer.handle).rcv_nxt - peer.iss - 1) % 2**32)


def take_payload(stack: Stack) -> bytes:
    """Takes the RECV events and gives their frames back."""
    out = b""
    while stack.events and stack.events[0].type == "RECV" and stack.events[0].bytes:
        event = stack.expect("RECV")
        out += event.data
        stack.queue("RECV_DONE", handle=event.handle, addr=event.addr, bytes=event.bytes)
    return out


@SETTINGS
@given(pieces=pieces, offers=offers, batches=batches)
def test_any_pieces_give_the_stream_once_and_in_order(
    pieces: list[tuple[int, int]], offers: dict[str, Any], batches: list[int]
) -> None:
    stack, peer, _handle = opened(**offers)
    model, got = Model(), b""
    todo = [*pieces, *((i, min(i + 500, SIZE)) for i in range(0, SIZE, 500))]
    turn = 0
    while todo:
        n = batches[turn % len(batches)]
        turn += 1
        for start, end in todo[:n]:
            model.take(start, end)
            peer.put("A", stream(start, end - start), seq=start)
        todo = todo[n:]
        stack.poll()
        got += take_payload(stack)
        assert shard_next(stack, peer) == model.next
        assert got == stream(0, model.next)
        for segment in peer.take_all():
            assert segment.ack <= model.next
            for i, (start, end) in enumerate(segment.sack):
                if i == 0 and end <= segment.ack:  # a duplicate (RFC 2883)
                    assert 0 <= start < end
                    continue
                assert start > segment.ack and model.holds(start, end)
    assert got == stream(0, SIZE)
    stack.poll()
    assert stack.stats.frames_rx == stack.stats.frames_app == 0


@SETTINGS
@given(pieces=pieces, fin_first=st.integers(0, 40))
def test_fin_counts_when_everything_before_it_is_there(
    pieces: list[tuple[int, int]], fin_first: int
) -> None:
    stack, peer, _handle = opened()
    model = Model()
    todo: list[tuple[int, int] | None] = [*pieces, (0, 1000), (1000, 2000), (2000, SIZE)]
    todo.insert(min(fin_first, len(todo)), None)
    fin_seen = False
    for piece in todo:
        if piece is None:
            fin_seen = True
            peer.send("FA", seq=SIZE)
        else:
            model.take(*piece)
            peer.send("A", stream(piece[0], piece[1] - piece[0]), seq=piece[0])
        complete = fin_seen and model.next == SIZE
        assert peer.state == ("CLOSE_WAIT" if complete else "ESTABLISHED")
        assert shard_next(stack, peer) == model.next + complete
    got = take_payload(stack)
    assert got == stream(0, SIZE)
    stack.expect("RECV", bytes=0)
    stack.expect_no_event()


def conversation(cuts: list[int], batches: list[int], offers: dict[str, Any]) -> tuple[Any, ...]:
    """Sends the stream in order, cut there; what the application saw, and the end."""
    stack, peer, handle = opened(**offers)
    edges, got, turn = list(itertools.pairwise(cuts)), b"", 0
    while edges:
        n = batches[turn % len(batches)]
        turn += 1
        for start, end in edges[:n]:
            peer.put("A", stream(start, end - start), seq=start)
        edges = edges[n:]
        stack.poll()
        got += take_payload(stack)
    peer.send("FA", seq=SIZE)
    got += take_payload(stack)
    stack.expect("RECV", bytes=0)
    stack.expect_no_event()
    stack.sendv(handle, b"the same answer")
    payload = [s for s in peer.take_all() if s.payload][-1]
    return got, peer.state, payload.payload, payload.seq, payload.ack


@SETTINGS
@given(cuts=cuts, batches=batches, offers=offers)
def test_results_do_not_depend_on_segmentation(
    cuts: list[int], batches: list[int], offers: dict[str, Any]
) -> None:
    in_one_go = conversation([0, 1400, 2800, SIZE], [1], offers)
    assert conversation(cuts, batches, offers) == in_one_go
    assert in_one_go[0] == stream(0, SIZE)


@SETTINGS
@given(
    pieces=pieces,
    rcvbuf=st.integers(lib.IX_MSS_DEFAULT, SIZE),
    give_back=st.lists(st.booleans(), min_size=1, max_size=10),
)
def test_small_buffer_never_takes_more_than_it_offered(
    pieces: list[tuple[int, int]], rcvbuf: int, give_back: list[bool]
) -> None:
    stack, peer, handle = opened(rcvbuf_bytes=rcvbuf)
    edge, held, got = rcvbuf, [], b""
    for i, (start, end) in enumerate(pieces):
        peer.send("A", stream(start, end - start), seq=start)
        for segment in peer.take_all():
            assert segment.ack + segment.window >= edge, "the right edge moved left"
            edge = segment.ack + segment.window
        while stack.events:
            event = stack.expect("RECV")
            got += event.data
            held.append(event)
        if give_back[i % len(give_back)]:
            while held:
                assert stack.done(held.pop()) == 0
        info = stack.info(handle)
        assert info.lent_bytes == sum(e.bytes for e in held)
        assert info.lent_bytes + info.rcv_wnd <= rcvbuf
        assert shard_next(stack, peer) <= edge
    assert got == stream(0, len(got))


@SETTINGS
@given(
    pieces=st.lists(
        st.tuples(st.integers(0, SIZE - 1), st.integers(1, 300)).map(
            lambda p: (p[0], min(p[0] + p[1], SIZE))
        ),
        max_size=80,
    ),
    offers=offers,
    keeps=st.integers(0, 20),
)
def test_short_of_frames_loses_nothing_that_was_acknowledged(
    pieces: list[tuple[int, int]], offers: dict[str, Any], keeps: int
) -> None:
    """The application keeps what it has got until it has so many events: what comes is copied
    together, refused, and given up again."""
    stack, peer, _handle = opened(pool=64, fill_target=16, **offers)
    model, got = Model(), b""
    todo = [*pieces, *((i, min(i + 100, SIZE)) for i in range(0, SIZE, 100))]
    for start, end in todo:
        model.take(start, end)
        peer.put("A", stream(start, end - start), seq=start)
        stack.poll()
        if len(stack.events) > keeps:
            got += take_payload(stack)
    while shard_next(stack, peer) < SIZE:
        got += take_payload(stack)
        stack.poll()
        before = shard_next(stack, peer)
        peer.put("A", stream(before, min(100, SIZE - before)), seq=before)
        stack.poll()
        assert shard_next(stack, peer) > before
        for segment in peer.take_all():
            assert segment.ack <= shard_next(stack, peer)
            for start, end in segment.sack[1:]:
                assert model.holds(start, end)
    got += take_payload(stack)
    assert got == stream(0, SIZE)
    stack.poll()
    assert stack.stats.frames_rx == stack.stats.frames_app == 0
