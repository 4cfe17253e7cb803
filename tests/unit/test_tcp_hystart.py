"""tcp/hystart: slow start ends on a rising round-trip time (RFC 9406)."""

from __future__ import annotations

from typing import Any

from tests.unit.peer import struct_at_line
from tests.unit.san import lib

MSS = 1000
NEVER = 2**32 - 1


class Flow:
    """A TCB in its first slow start, and rounds of ACKs for it."""

    def __init__(self) -> None:
        self.tcp = struct_at_line("ix_tcp", now_ms=1000)
        self.tcb: Any = struct_at_line("ix_tcb", mss=MSS, cwnd=10 * MSS, ssthresh=NEVER)
        lib.ix_cc_choose(self.tcb, lib.IX_CC_CUBIC)

    def round(self, *rtts_ms: float) -> int:
        """Sends a window and takes ACKs of two segments each with these round-trip times; how much
        the window grew."""
        before = self.tcb.cwnd
        self.tcb.snd_max = self.tcb.snd_una + 2 * MSS * len(rtts_ms)
        if self.tcb.hystart.round_end == self.tcb.snd_una:
            self.tcb.hystart.round_end = self.tcb.snd_max
        for rtt_ms in rtts_ms:
            self.tcb.snd_una += 2 * MSS
            lib.ix_cc_acked(self.tcp, self.tcb, 2 * MSS, int(rtt_ms * 1000))
        return int(self.tcb.cwnd - before)


def test_steady_round_trips_double_the_window() -> None:
    flow = Flow()
    for _ in range(6):
        assert flow.round(*[20.0] * 10) == 20 * MSS
    assert flow.tcb.ssthresh == NEVER


def test_rising_round_trips_slow_down_and_then_end_slow_start() -> None:
    flow = Flow()
    flow.round(*[20.0] * 10)
    assert flow.round(*[25.0] * 10) < 20 * MSS  # more than 4 ms up: CSS from the eighth sample on
    assert flow.tcb.hystart.css_base_us == 25_000
    rounds = 0
    while flow.tcb.ssthresh == NEVER:
        assert flow.round(*[25.0] * 10) <= 6 * MSS  # a quarter
        rounds += 1
    assert rounds <= 5
    assert flow.tcb.ssthresh <= flow.tcb.cwnd <= flow.tcb.ssthresh + MSS


def test_passing_rise_goes_back_to_slow_start() -> None:
    flow = Flow()
    flow.round(*[20.0] * 10)
    flow.round(*[26.0] * 10)
    assert flow.tcb.hystart.css_base_us != NEVER
    flow.round(*[20.0] * 10)
    assert flow.tcb.hystart.css_base_us == NEVER
    assert flow.round(*[20.0] * 10) == 20 * MSS


def test_few_samples_prove_nothing() -> None:
    # N_RTT_SAMPLE = 8
    flow = Flow()
    flow.round(*[20.0] * 10)
    flow.round(*[40.0] * 7)
    assert flow.tcb.hystart.css_base_us == NEVER


def test_threshold_lies_between_4_and_16_ms() -> None:
    for base, below, above in ((1.0, 4.5, 5.5), (80.0, 89.0, 91.0), (400.0, 415.0, 417.0)):
        flow = Flow()
        flow.round(*[base] * 10)
        flow.round(*[below] * 10)
        assert flow.tcb.hystart.css_base_us == NEVER, base
        flow = Flow()
        flow.round(*[base] * 10)
        flow.round(*[above] * 10)
        assert flow.tcb.hystart.css_base_us != NEVER, base


def test_acks_without_a_round_trip_time_count_no_sample() -> None:
    flow = Flow()
    assert flow.round(*[0.0] * 20) == 40 * MSS
    assert flow.tcb.hystart.samples == 0


def test_loss_ends_the_first_slow_start_and_cubic_takes_over() -> None:
    flow = Flow()
    flow.round(*[20.0] * 10)
    lib.ix_cc_lost(flow.tcb, 30 * MSS)
    assert flow.tcb.ssthresh == 21 * MSS
    assert flow.tcb.cubic.w_max == 30 * MSS and flow.tcb.cubic.epoch_ms == 0
