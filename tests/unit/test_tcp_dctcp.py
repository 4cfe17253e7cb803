"""tcp/dctcp: the window shrinks with the part of the bytes that was marked (RFC 8257)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.peer import struct_at_line
from tests.unit.san import lib

MSS = 1000
ONE = 1 << 20


def flow(cwnd: int = 100 * MSS) -> Any:
    tcb = struct_at_line("ix_tcb", mss=MSS, cwnd=cwnd, ssthresh=cwnd)
    lib.ix_cc_choose(tcb, lib.IX_CC_DCTCP)
    return tcb


def window(tcb: Any, marked: float, segments: int = 100) -> None:
    """A window of ACKs, this part of them marked."""
    tcb.snd_max = tcb.snd_una + segments * MSS
    for i in range(segments):
        tcb.snd_una += MSS
        lib.ix_dctcp_acked(tcb, MSS, i < segments * marked)


def test_alpha_is_the_moving_average_of_the_marks() -> None:
    tcb, alpha = flow(), 1.0
    assert tcb.dctcp.alpha == ONE
    for marked in [0.0] * 20 + [0.5] * 40 + [1.0] * 20 + [0.1] * 50:
        window(tcb, marked)
        alpha = alpha * 15 / 16 + marked / 16
        assert tcb.dctcp.alpha / ONE == pytest.approx(alpha, abs=0.05)


def test_alpha_decays_to_nothing_and_rises_to_one() -> None:
    tcb = flow()
    for _ in range(300):
        window(tcb, 0.0, 10)
    assert tcb.dctcp.alpha / ONE < 0.001
    for _ in range(300):
        window(tcb, 1.0, 10)
    assert 0.99 < tcb.dctcp.alpha / ONE <= 1


def test_mark_takes_half_of_alpha() -> None:
    tcb = flow()
    for alpha, left in ((1.0, 50), (0.5, 75), (0.1, 95), (0.0, 100)):
        tcb.cwnd, tcb.dctcp.alpha = 100 * MSS, int(alpha * ONE)
        lib.ix_cc_marked(tcb)
        assert tcb.cwnd == tcb.ssthresh == pytest.approx(left * MSS, abs=1)


def test_window_keeps_two_segments() -> None:
    tcb = flow(2 * MSS)
    lib.ix_cc_marked(tcb)
    assert tcb.cwnd == 2 * MSS


def test_loss_halves() -> None:
    # 3.5: as conventional TCP does
    tcb = flow()
    tcb.dctcp.alpha = 0
    lib.ix_cc_lost(tcb, 100 * MSS)
    assert tcb.ssthresh == 50 * MSS
