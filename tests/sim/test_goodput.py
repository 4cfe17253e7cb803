"""Goodput of one stream against loss and round-trip time, for each congestion control.

goodput.txt is a snapshot under review: the simulation repeats exactly, so any change of TCP that
moves a figure shows there. ``IX_GOODPUT_WRITE=1 make test PYTEST_ARGS=tests/sim/test_goodput.py``
writes it anew; ``make sim`` prints and compares it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.sim.test_sim import MS, calm, explain, failure, run
from tests.unit.san import lib

SNAPSHOT = Path(__file__).with_name("goodput.txt")
NAMES = {"cubic": lib.IX_CC_CUBIC, "newreno": lib.IX_CC_NEWRENO, "dctcp": lib.IX_CC_DCTCP}
RTTS_MS = (1, 20, 100)
LOSSES_PPM = (0, 1_000, 10_000, 30_000)
BYTES, SEEDS = 1_000_000, (1, 2)
HEAD = """\
Goodput of one stream of 1 MB, Mbit/s: the mean of two seeds. 100 Mbit/s, a queue of 100 frames
that marks ECT from 20 on (DCTCP asks for ECN), receive window 1 MiB, random loss both ways.
NewReno, 1 ms: one of the two overflows the queue with its very last segment, and what probes for a
lone segment waits 200 ms for a delayed ACK (RFC 8985 7.2); where that doesn't happen it has 92.8.

 RTT ms   loss %      cubic    newreno      dctcp
"""


def case(seed: int, name: str, rtt_ms: int, loss_ppm: int, **path: int) -> Any:
    fields = {"rate_bytes_per_s": 12_500_000, "queue_frames": 100, "mark_frames": 20} | path
    made = calm(
        seed, bytes=BYTES, delay_ns=rtt_ms * MS // 2, rcvbuf=1 << 20, loss_ppm=loss_ppm, **fields
    )
    for side in made.side:
        side.congestion = NAMES[name]
        side.ecn = lib.IX_ECN_ACCEPT
    return made


def goodput(name: str, rtt_ms: int, loss_ppm: int) -> float:
    over_ns = 0
    for seed in SEEDS:
        made = case(seed, name, rtt_ms, loss_ppm)
        result = run(made)
        assert not failure(result), explain(made, result)
        assert result.bytes == BYTES
        over_ns += result.over_ns
    return len(SEEDS) * BYTES * 8 / over_ns * 1000


def test_goodput_table_is_as_reviewed() -> None:
    table = HEAD
    for rtt_ms in RTTS_MS:
        for loss_ppm in LOSSES_PPM:
            row = [goodput(name, rtt_ms, loss_ppm) for name in NAMES]
            table += f"{rtt_ms:7} {loss_ppm / 10_000:8.1f}" + "".join(f"{g:11.2f}" for g in row)
            table += "\n"
    print(f"\n{table}")
    if os.environ.get("IX_GOODPUT_WRITE"):
        SNAPSHOT.write_text(table)
    assert table == SNAPSHOT.read_text(), "if it is meant: IX_GOODPUT_WRITE=1, and say why"


# ---- what each kind of trouble may cost -----------------------------------------------------


def totals(rtt_ms: int = 20, loss_ppm: int = 0, **path: int) -> tuple[float, Any]:
    """Mbit/s of CUBIC over ten seeds without a rate, and what was counted."""
    count: dict[str, int] = {}
    over_ns = 0
    for seed in range(1, 11):
        unlimited = {"rate_bytes_per_s": 0, "queue_frames": 0, "mark_frames": 0}
        made = case(seed, "cubic", rtt_ms, loss_ppm, **unlimited | path)
        result = run(made)
        assert not failure(result), explain(made, result)
        over_ns += result.over_ns
        for name in dir(result.counters):
            count[name] = count.get(name, 0) + getattr(result.counters, name)
        for name in ("lost", "reordered"):
            count[name] = count.get(name, 0) + getattr(result.wire, name)
    mbits = 10 * BYTES * 8 / over_ns * 1000
    print({k: v for k, v in count.items() if v and k.startswith("tcp_")}, f"{mbits:.1f} Mbit/s")
    return mbits, count


def test_loss_of_acks_alone_costs_no_retransmission_of_data_that_arrived() -> None:
    calm_mbits, _ = totals()
    mbits, count = totals(loss_ppm=100_000, loss_max_bytes=94)
    assert count["lost"] > 10
    assert count["tcp_fast_rexmit"] == 0
    assert count["tcp_rexmit"] <= count["tcp_tlp"] + count["tcp_rto"] + 10  # SYNs too
    assert mbits > calm_mbits / 20  # a window's only ACK is lost as likely as any


@pytest.mark.parametrize("name", ["newreno", "cubic"])
def test_retransmissions_that_the_queue_drops_are_found_without_a_timeout(name: str) -> None:
    # RFC 8985 6.2: what was sent after them arrives. Slow start has overflowed the queue, and it is
    # still full when recovery begins.
    for seed in range(1, 6):
        result = run(case(seed, name, 1, 0))
        assert result.counters.tcp_lost_rexmits > 0 and result.counters.tcp_rto == 0
        # 1 MB at 100 Mbit/s takes 80 ms. A probe waits so long only for the very last segment.
        assert result.over_ns < (100 + 215 * result.counters.tcp_tlp) * MS
        assert result.counters.tcp_tlp <= 1


def test_bursts_are_repaired_without_many_timeouts() -> None:
    _, count = totals(loss_ppm=1_000, loss_burst_frames=8)
    assert count["lost"] > 30
    assert count["tcp_rto"] <= 5
    assert count["tcp_rexmit"] < 2 * count["lost"]


def test_reordering_is_learned() -> None:
    # Each tenth frame comes 3 ms late, less than a quarter of the round trip: once reordering was
    # seen the window of RFC 8985 section 6.2 step 4 covers it. Until then each frame that
    # comes late costs all that it was overtaken by.
    _, count = totals(reorder_ppm=100_000, reorder_hold_ns=3 * MS)
    assert count["reordered"] > 500 and count["tcp_reordering"] >= 8
    assert count["tcp_rto"] == 0
    assert count["tcp_rexmit"] < count["reordered"] / 2


def test_needless_retransmissions_of_what_was_overtaken_are_undone() -> None:
    # 9 ms late: beyond the window, and D-SACKs say so.
    _, count = totals(reorder_ppm=30_000, reorder_hold_ns=9 * MS)
    assert count["tcp_dsack_in"] > 0 and count["tcp_undo"] > 0
    assert count["tcp_rto"] == 0


def test_standstills_cause_timeouts_that_are_undone() -> None:
    # 260 ms in each 400 nothing arrives, and nothing is lost.
    _, count = totals(spike_every_ns=400 * MS, spike_ns=260 * MS)
    assert count["lost"] == 0 and count["tcp_rto"] > 0
    assert count["tcp_undo"] >= count["tcp_rto"] / 2
    assert count["tcp_rexmit"] <= count["tcp_tlp"] + 2 * count["tcp_rto"]


def test_pacing_spares_a_queue_shorter_than_the_window() -> None:
    # 20 ms at 100 Mbit/s is 170 frames; the queue holds 10. In bursts the window overflows it long
    # before the link is full.
    over_ns = {}
    for pacing in (False, True):
        over_ns[pacing] = 0
        for seed in range(1, 4):
            made = case(seed, "cubic", 20, 0, queue_frames=10, mark_frames=0)
            for side in made.side:
                side.pacing = pacing
            result = run(made)
            assert not failure(result), explain(made, result)
            assert result.counters.tcp_rto == 0
            over_ns[pacing] += result.over_ns
    print(over_ns)
    assert over_ns[True] < over_ns[False] * 0.8
