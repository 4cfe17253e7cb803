"""tcp/cubic: the window against RFC 9438 in floating point."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.peer import struct_at_line
from tests.unit.san import lib

MSS = 1460
BETA, C = 0.7, 0.4
ALPHA = 3 * (1 - BETA) / (1 + BETA)


def avoiding(cwnd: int, w_max: int, rtt_ms: int = 100) -> tuple[Any, Any]:
    """A shard's TCP and a TCB that begins congestion avoidance."""
    tcp = struct_at_line("ix_tcp", now_ms=1000)
    tcb = struct_at_line("ix_tcb", mss=MSS, cwnd=cwnd, ssthresh=cwnd, srtt_us=rtt_ms * 1000)
    tcb.cc = lib.IX_CC_CUBIC
    tcb.cubic.w_max = tcb.cubic.cwnd_prior = w_max
    return tcp, tcb


class Model:
    """RFC 9438 section 4 in segments and seconds."""

    def __init__(self, cwnd: float, w_max: float) -> None:
        self.cwnd = self.w_est = cwnd
        self.prior = w_max
        self.w_max = max(w_max, cwnd)
        self.k = ((self.w_max - cwnd) / C) ** (1 / 3)

    def w(self, t: float) -> float:
        return C * (t - self.k) ** 3 + self.w_max

    def ack(self, t: float, rtt: float, segments: float) -> None:
        self.w_est += (ALPHA if self.w_est < self.prior else 1) * segments / self.cwnd
        if self.w(t) < self.w_est:
            self.cwnd = max(self.cwnd, self.w_est)
        else:
            target = min(max(self.w(t + rtt), self.cwnd), 1.5 * self.cwnd)
            self.cwnd += (target - self.cwnd) / self.cwnd * segments


@pytest.mark.parametrize("rtt_ms", [10, 100, 300])
@pytest.mark.parametrize("cwnd, w_max", [(70, 100), (700, 1000), (50, 20), (7, 10), (2000, 9000)])
def test_window_grows_as_the_rfc_says(rtt_ms: int, cwnd: int, w_max: int) -> None:
    tcp, tcb = avoiding(cwnd * MSS, w_max * MSS, rtt_ms)
    model = Model(cwnd, w_max)
    t_ms, steps = 0, 10
    for _ in range(20_000 // rtt_ms):
        for _ in range(steps):  # a window's ACKs, spread over the round trip
            segments = tcb.cwnd / MSS / steps
            tcp.now_ms = 1000 + t_ms
            lib.ix_cubic_avoid(tcp, tcb, int(segments * MSS))
            model.ack(t_ms / 1000, rtt_ms / 1000, segments)
            t_ms += rtt_ms // steps
        assert tcb.cwnd / MSS == pytest.approx(model.cwnd, rel=0.05, abs=2)
    assert tcb.cwnd > cwnd * MSS


def test_plateau_is_reached_after_k() -> None:
    tcp, tcb = avoiding(70 * MSS, 100 * MSS)
    lib.ix_cubic_avoid(tcp, tcb, MSS)
    # (30 / 0.4) ** (1/3) s
    assert tcb.cubic.k_ms == pytest.approx(4217, abs=2)
    for _ in range(42):
        tcp.now_ms += 100
        lib.ix_cubic_avoid(tcp, tcb, tcb.cwnd)
    assert tcb.cwnd == pytest.approx(100 * MSS, rel=0.02)


def test_growth_is_at_most_half_a_window_a_round_trip() -> None:
    # 4.5: target = 1.5 cwnd at most
    tcp, tcb = avoiding(10 * MSS, 0)
    lib.ix_cubic_avoid(tcp, tcb, MSS)
    tcp.now_ms += 60_000
    before = tcb.cwnd
    lib.ix_cubic_avoid(tcp, tcb, before)
    assert tcb.cwnd <= 1.5 * before + MSS


def test_loss_leaves_seven_tenths_and_fast_convergence_yields() -> None:
    _tcp, tcb = avoiding(100 * MSS, 0)
    assert lib.ix_cubic_reduced(tcb, 100 * MSS) == 70 * MSS
    assert tcb.cubic.w_max == tcb.cubic.cwnd_prior == 100 * MSS
    tcb.cwnd = 70 * MSS
    assert lib.ix_cubic_reduced(tcb, 70 * MSS) == 49 * MSS
    assert tcb.cubic.w_max == 70 * MSS * 17 // 20  # 4.7: (1 + beta) / 2
    assert tcb.cubic.cwnd_prior == 70 * MSS


def test_idle_time_does_not_count() -> None:
    tcp, tcb = avoiding(70 * MSS, 100 * MSS)
    lib.ix_cubic_avoid(tcp, tcb, MSS)
    tcp.now_ms += 100_000
    lib.ix_cubic_idle(tcb, 100_000)
    before = tcb.cwnd
    lib.ix_cubic_avoid(tcp, tcb, MSS)
    assert tcb.cwnd - before < MSS


def test_extremes_do_not_overflow() -> None:
    for cwnd, w_max in ((2**30, 2**30), (2 * 88, 2**30), (2**30, 0)):
        for mss in (88, 1460, 65000):
            tcp, tcb = avoiding(cwnd, w_max)
            tcb.mss = mss
            for step_ms in (0, 1, 1000, 10**6, 2**31):
                tcp.now_ms = (tcp.now_ms + step_ms) % 2**32
                lib.ix_cubic_avoid(tcp, tcb, 2**30)
                assert min(cwnd, 2**30) <= tcb.cwnd <= 2**30
