"""tcp/txrec: records of what is outstanding, against a model of every byte."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.unit.peer import struct_at_line
from tests.unit.san import ffi, lib

NONE = 2**32 - 1
BASE = 2**32 - 5000  # numbers wrap around early
OUT, SACKED, LOST = lib.IX_TX_OUT, lib.IX_TX_SACKED, lib.IX_TX_LOST


class Flow:
    """A TCB with records, and for each outstanding byte when it was sent and what became of it."""

    def __init__(self, records: int = 64) -> None:
        self.recs = ffi.new("struct ix_tx_rec[]", records)
        for i in range(records):
            self.recs[i].next = i + 1 if i + 1 < records else NONE
        self.counters = ffi.new("struct ix_counters *")
        self.tcp: Any = struct_at_line("ix_tcp", recs=self.recs, rec_free=0, counters=self.counters)
        self.tcb: Any = struct_at_line("ix_tcb", mss=1000, rec_head=NONE, recovery=NONE)
        self.tcb.rec_tail = NONE
        self.tcb.flags, self.tcb.state = lib.IX_TF_SACK, lib.IX_TCP_ESTABLISHED
        self.tcb.snd_una = self.tcb.snd_max = BASE
        self.una = self.end = 0
        self.model: dict[int, tuple[int, int]] = {}  # byte: (sent_us, state)

    def seq(self, offset: int) -> int:
        return (BASE + offset) % 2**32

    def send(self, size: int) -> None:
        lib.ix_rec_sent(self.tcp, self.tcb, self.seq(self.end + size))
        for i in range(self.end, self.end + size):
            self.model[i] = (self.tcp.now_us, OUT)
        self.end += size

    def header(self, *blocks: tuple[int, int]) -> Any:
        header = ffi.new("struct ix_tcp_hdr *", {"ack": self.tcb.snd_una})
        header.sack_count = len(blocks)
        for i, (a, b) in enumerate(blocks):
            header.sack[i].start, header.sack[i].end = self.seq(a), self.seq(b)
        return header

    def sack(self, *blocks: tuple[int, int]) -> Any:
        told = ffi.new("struct ix_ack *")
        lib.ix_sack_update(self.tcp, self.tcb, self.header(*blocks), told)
        for a, b in blocks:
            for i in range(a, b):
                self.model[i] = (self.model[i][0], SACKED)
        return told

    def ack(self, to: int) -> Any:
        told = ffi.new("struct ix_ack *")
        header = self.header()
        header.ack = self.seq(to)
        lib.ix_sack_advance(self.tcp, self.tcb, header, told)
        for i in range(self.una, to):
            del self.model[i]
        self.una = to
        return told

    def records(self) -> list[tuple[int, int, int, int]]:
        """(start, end, sent_us, state) of each."""
        out, at = [], self.tcb.snd_una
        r = lib.ix_rec_first(self.tcp, self.tcb)
        while r != ffi.NULL:
            start, end = ((n - BASE) % 2**32 for n in (at, r.end))
            out.append((start, end, r.sent_us, r.state))
            at, r = r.end, lib.ix_rec_next(self.tcp, self.tcb, r)
        return out

    def check(self, exact: bool = True) -> None:
        wrong = lib.ix_rec_check(self.tcp, self.tcb)
        assert wrong == ffi.NULL, ffi.string(wrong)
        for start, end, sent_us, state in self.records():
            for i in range(start, end):
                was_us, was = self.model[i]
                if exact:
                    assert state == was
                    assert state == SACKED or sent_us == was_us
                else:  # nothing is taken for delivered that is not, or for older than it is
                    assert state != SACKED or was == SACKED
                    assert sent_us >= was_us or state == SACKED


def test_what_leaves_in_one_cycle_is_one_record() -> None:
    flow = Flow()
    for _ in range(10):
        flow.send(1000)
    assert flow.records() == [(0, 10_000, 0, OUT)]
    flow.tcp.now_us = 7
    flow.send(10)
    assert flow.records() == [(0, 10_000, 0, OUT), (10_000, 10_010, 7, OUT)]
    assert flow.tcp.recs_used == 1
    flow.ack(10_000)
    assert flow.tcp.recs_used == 0
    flow.ack(10_010)
    assert flow.records() == []


def test_sack_splits_and_neighbours_join() -> None:
    flow = Flow()
    flow.send(10_000)
    flow.sack((2000, 3000), (6000, 7000), (4000, 5000))
    assert [r[:2] for r in flow.records() if r[3] == SACKED] == [
        (2000, 3000), (4000, 5000), (6000, 7000),
    ]  # fmt: skip
    flow.sack((3000, 4000))
    lib.ix_rec_join(flow.tcp, flow.tcb)
    flow.check()
    assert [r[:2] for r in flow.records()] == [
        (0, 2000), (2000, 5000), (5000, 6000), (6000, 7000), (7000, 10_000),
    ]  # fmt: skip
    assert flow.tcb.sacked_bytes == 4000
    assert lib.ix_tcb_pipe(flow.tcb) == 6000


@pytest.mark.parametrize("records", [1, 2, 3, 5, 64])
def test_records_match_a_model_of_every_byte(records: int) -> None:
    rng = random.Random(records)
    for _ in range(60):
        flow = Flow(records)
        for _ in range(40):
            flow.tcp.now_us += rng.choice([0, 1, 1000])
            kind = rng.random()
            if kind < 0.4 or flow.end == flow.una:
                flow.send(rng.randrange(1, 40))
            elif kind < 0.8 and flow.end - flow.una > 2:
                a = rng.randrange(flow.una + 1, flow.end)
                flow.sack((a, rng.randrange(a, flow.end) + 1))
            else:
                flow.ack(rng.randrange(flow.una, flow.end) + 1)
            if rng.random() < 0.5:
                lib.ix_rec_join(flow.tcp, flow.tcb)
            flow.check(exact=records == 64)
        lib.ix_rec_drop(flow.tcp, flow.tcb)
        assert flow.tcp.recs_used == 0 == flow.tcb.rec_count


def test_flow_takes_a_bounded_number() -> None:
    most = lib.IX_TX_RECORDS_FLOW
    flow = Flow(most + 100)
    for _ in range(most + 50):
        flow.tcp.now_us += 1
        flow.send(1)
    flow.check(exact=False)
    assert flow.tcb.rec_count == flow.tcp.recs_used == most


def test_merged_record_is_as_young_as_its_youngest_part() -> None:
    flow = Flow(0)
    flow.tcp.rec_free = NONE
    flow.send(1000)
    flow.tcp.now_us = 500
    flow.send(1000)
    assert flow.records() == [(0, 2000, 500, OUT)]


def test_round_trip_times_are_of_the_oldest_and_the_latest() -> None:
    flow = Flow()
    flow.send(1000)
    flow.tcp.now_us = 300
    flow.send(1000)
    flow.tcp.now_us = 1000
    told = flow.ack(2000)
    assert (told.rtt_us, told.last_rtt_us, told.acked, told.delivered) == (1001, 701, 2000, 2000)


def test_what_was_sent_again_is_no_measure() -> None:
    flow = Flow()
    flow.send(1000)
    flow.tcb.last.again = True
    flow.tcp.now_us = 1000
    assert flow.ack(1000).rtt_us == 0


def test_bytes_are_delivered_once() -> None:
    flow = Flow()
    flow.send(5000)
    assert flow.sack((1000, 3000)).delivered == 2000
    assert flow.sack((1000, 4000)).delivered == 1000
    assert flow.ack(4500).delivered == 1500
