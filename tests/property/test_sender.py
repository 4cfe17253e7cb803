"""What a connection sends, against a peer that loses, delays, SACKs and closes its window at will.

Every segment holds the stream's bytes for its number, none lies beyond the window that the peer
ever offered, and when the peer's troubles end everything arrives.
"""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.peer import Peer, Segment, Stack, opened, stream

SETTINGS = settings(max_examples=120, deadline=None, database=None)
LIMIT = 60_000


class Receiver:
    """A peer's receive side, with losses as told."""

    def __init__(self, stack: Stack, peer: Peer, window: int) -> None:
        self.stack, self.peer = stack, peer
        self.have = bytearray(LIMIT + 1)
        self.window = window
        self.next = self.edge = 0
        self.fin: int | None = None

    def take(self, lost: list[bool]) -> None:
        """Takes what was sent; lost[i] says what becomes of the i-th segment."""
        for i, segment in enumerate(self.peer.take_all()):
            self.judge(segment)
            if lost and lost[i % len(lost)]:
                continue
            self.have[segment.seq : segment.seq + len(segment.payload)] = b"\1" * len(
                segment.payload
            )
            if "F" in segment.flags:
                self.fin = segment.seq + len(segment.payload)
            while self.have[self.next]:
                self.next += 1

    def judge(self, segment: Segment) -> None:
        assert "R" not in segment.flags
        assert segment.payload == stream(segment.seq, len(segment.payload))
        if segment.payload:
            assert segment.seq + len(segment.payload) <= self.edge, "beyond the window"

    def blocks(self) -> list[tuple[int, int]]:
        """Up to three blocks of what lies beyond the gap."""
        out, at = [], self.have.find(b"\1", self.next)
        while at >= 0 and len(out) < 3:
            end = self.have.find(b"\0", at)
            out.append((at, end))
            at = self.have.find(b"\1", end)
        return out

    @property
    def ack(self) -> int:
        return self.next + (self.fin == self.next)

    def answer(self, window: int | None = None) -> None:
        """An ACK, with SACK blocks where they were negotiated."""
        window = self.window if window is None else window
        self.edge = max(self.edge, self.next + window)
        options: dict[str, Any] = {}
        if self.peer.sack_ok and (blocks := self.blocks()):
            options["sack"] = blocks
        self.peer.send("A", ack=self.ack, window=window, **options)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.integers(1, 9000)),
        st.tuples(st.just("take"), st.lists(st.booleans(), max_size=6)),
        st.tuples(st.just("answer"), st.none()),
        st.tuples(st.just("window"), st.integers(0, 20000)),
        st.tuples(st.just("sleep"), st.sampled_from([1, 50, 300, 2000])),
    ),
    max_size=40,
)


@SETTINGS
@given(
    steps=steps,
    window=st.sampled_from([1000, 4000, 20000, 65535]),
    offers=st.fixed_dictionaries({"sack_ok": st.booleans(), "ts": st.booleans()}),
    nagle=st.booleans(),
)
def test_everything_arrives_whatever_the_peer_does(
    steps: list[tuple[str, Any]], window: int, offers: dict[str, Any], nagle: bool
) -> None:
    stack, peer, handle = opened(arena=512, window=window, **offers)
    receiver, queued = Receiver(stack, peer, window), 0
    receiver.edge = window
    stack.option(handle, "NODELAY", not nagle)
    for what, value in steps:
        if what == "send":
            size = min(value, LIMIT - queued)
            queued += stack.stream(handle, queued, size) if size else 0
        elif what == "take":
            receiver.take(value)
        elif what == "answer":
            receiver.answer()
        elif what == "window":
            receiver.answer(value)
        else:
            stack.sleep(ms=value)
    stack.close(handle, write_only=True)
    for _ in range(200):
        receiver.take([])
        if receiver.fin is not None and receiver.next == receiver.fin:
            break
        receiver.answer()
        if not stack.sent:
            stack.sleep(ms=3000)
    assert receiver.next == receiver.fin == queued
    receiver.answer()
    assert peer.state == "FIN_WAIT_2"
    assert sum(e.bytes for e in stack.events if e.type == "SENT") == queued
    stack.poll()
    assert stack.shard.tcp.extents_used == 0
    assert stack.shard.tcp.recs_used == stack.shard.tcp.recoveries_used == 0
