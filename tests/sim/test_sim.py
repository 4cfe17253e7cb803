"""Two shards and their applications on a lossy wire with virtual time, one seed after the other.

What is simulated stands in tests/native/sim_driver.h, what is checked in sim_check.c.

``make sim SEEDS=20000 FIRST=1``
    more seeds than the thousand of ``make test``, without the sanitizers;
``make sim SEED=123``
    that seed alone, with every frame, call and event to stderr.
"""

from __future__ import annotations

import os
import re
import subprocess
from typing import Any

import pytest

from tests.sim.seeds import PLAIN, ROOT, SANITIZED, Failure, Outcome, play, play_here
from tests.unit.san import ffi, lib

SEEDS = int(os.environ.get("IX_SIM_SEEDS") or 1000)
FIRST = int(os.environ.get("IX_SIM_FIRST") or 1)
PROGRAM = PLAIN if os.environ.get("IX_SIM_SEEDS") else SANITIZED


def plan(seed: int, **changes: Any) -> Any:
    """The case of a seed, with some of its fields changed."""
    case = ffi.new("struct ix_simd_case *")
    lib.ix_simd_plan(seed, case)
    for name, value in changes.items():
        setattr(case, name, value)
    return case


def run(case: Any) -> Any:
    """Plays a case; the result's `failure` is empty if all is well."""
    result = ffi.new("struct ix_simd_result *")
    status = lib.ix_simd_run(case, result)
    assert (status == 0) == (not ffi.string(result.failure))
    return result


def failure(result: Any) -> str:
    return str(ffi.string(result.failure).decode())


def explain(case: Any, result: Any) -> str:
    text = ffi.new("char[]", 4096)
    lib.ix_simd_describe(case, text, 4096)
    return str(Failure(case.seed, f"{failure(result)}\n{ffi.string(text).decode()}"))


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    return play(PROGRAM, range(FIRST, FIRST + SEEDS))


@pytest.mark.timeout(3600)
def test_two_shards_on_a_lossy_wire(outcome: Outcome) -> None:
    print(
        f"\nsimulation: {outcome.seeds} seeds, {outcome.totals['steps']} polls, "
        f"{outcome.totals['bytes']} bytes, {outcome.totals['orderly']} connections in order, "
        f"{len(outcome.failures)} failures"
    )
    assert outcome.seeds == SEEDS
    if outcome.failures:
        pytest.fail(outcome.report(), pytrace=False)


# What the thousand seeds must have met, or they test less than they seem to.
COUNTERS_MET = (
    "tx_full tx_inplace tx_copied arp_learned arp_replies_out neigh_misses "
    "drop_neigh drop_ip_csum drop_tcp_csum drop_tcp_short drop_tcp_no_listener drop_tcp_backlog "
    "drop_tcp_flows drop_tcp_seq drop_tcp_ack drop_tcp_paws drop_tcp_lend_limit "
    "drop_tcp_ooo_limit drop_tcp_closed "
    "tcp_rexmit tcp_rto tcp_fast_rexmit tcp_lost_rexmits tcp_tlp tcp_undo "
    "tcp_reordering tcp_dsack_in tcp_dsack_out tcp_dupacks tcp_ooo tcp_dup_data "
    "tcp_delayed_acks tcp_probes tcp_keepalives tcp_challenge_acks tcp_rst_in tcp_rst_out "
    "tcp_cookies_sent tcp_cookies_good "
    "tcp_closed tcp_aborted tcp_time_wait tcp_time_wait_reused calls call_errors events_full "
    "ctl_messages wakeup_errors "
    "tcp_ecn tcp_ce_in tcp_ece_reductions "
    "nd_solicits_in nd_adverts_out "
    "tx_no_frame icmp_in icmp_errors_in pmtu_lowered pmtu_black_holes"
)
WIRE_MET = "marked dup reordered corrupted overflow lost too_big errors no_fill rx_full link_down"


def test_the_seeds_reach_every_corner(outcome: Outcome) -> None:
    if outcome.seeds < 1000:
        pytest.skip("fewer than 1,000 seeds were run")
    met = [f"counters.{name}" for name in COUNTERS_MET.split()]
    met += [f"wire.{name}" for name in WIRE_MET.split()]
    assert [name for name in met if not outcome.totals[name]] == []
    assert outcome.totals["orderly"] > 5 * outcome.seeds
    assert outcome.totals["lossless"] > outcome.seeds / 100


@pytest.mark.parametrize(
    ("canary", "says"),
    [
        ("FLIP_PAYLOAD", "of the stream is wrong"),
        ("FORGET_DONE", "frames left"),
        ("TOUCH_BORROWED", "of the stream is wrong"),
        ("LOSE_SENT", "DEAD says 0; sent|bytes are queued"),
        ("LOSE_EOF", "eof 0|nothing left to wait for"),
        ("REPEAT_RECV", "which is lent already"),
        ("BLACK_HOLE", "says -110|not over"),
        ("ASSERTION", r"assertion failed: in_pool\(f, frame\)"),
    ],
)
def test_canary_is_found(canary: str, says: str) -> None:
    # A fault of our own making, so that the checks are seen to fail. It may hit what does not
    # matter (a segment that was a duplicate), so not each one must be found.
    found = loose = seed = 0
    while loose < 10 and seed < 300:
        seed += 1
        case = plan(seed, odd_ppm=0, canary=getattr(lib, f"IX_SIMD_{canary}"))
        result = run(case)
        loose += result.canary
        found += re.search(says, failure(result)) is not None
        assert not failure(result) or result.canary, explain(case, result)
    assert loose == 10 and found >= 8, f"{found} of {loose} found"


# In sim.mk: each is a build with one line of the core changed.
CORE_CANARIES = {
    "old": "of the stream is wrong",
    "csum": "of the stream is wrong",
    "rtx": "without a retransmission timer",
    "reuse": "misuse|nothing left to wait for",
    "armed": "their counts differ",
    "hole": "not over",
}


@pytest.fixture(scope="module")
def built() -> None:
    subprocess.run(["make", "sim-canaries-locked"], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize("canary", CORE_CANARIES)
@pytest.mark.usefixtures("built")
def test_fault_of_the_core_is_found(canary: str) -> None:
    program, found = ROOT / "build/sim" / canary, Outcome()
    for first in range(1, 1001, 50):
        found.add(play_here(program, first, first + 49))
        if found.failures:
            break
    assert any(re.search(CORE_CANARIES[canary], f.what) for f in found.failures), found.report()


def calm(
    seed: int, *, bytes: int, delay_ns: int, rcvbuf: int = 262_144, conns: int = 1, **path: int
) -> Any:
    """One-way streams between two quick applications; both directions take delay_ns."""
    case = plan(seed, conns=conns, bytes=bytes, plain=True, chunk_max=16_000)
    case.pattern = 1 + lib.SIM_ONE_WAY
    case.odd_ppm = case.pause_ppm = case.nonsense_ppm = case.upset_count = case.check_every = 0
    case.spread_ns = 1
    case.own_address = case.cookies = case.grow = case.six = case.gateway = False
    case.wire_frames = 8192
    for i in range(2):
        case.path[i] = ffi.new("struct ix_sim_path *", {"delay_ns": delay_ns, **path})[0]
        side = case.side[i]
        side.poll_ns, side.idle_polls_ppm, side.back_ppm = 5_000, 0, 0
        side.max_flows, side.max_events, side.max_calls, side.max_extents = 160, 256, 256, 0
        side.pool_frames, side.arena_frames, side.fill_target = 4096, 512, 2048
        side.batch, side.mtu, side.frame_shift, side.ring_entries = 64, 1500, 11, 4096
        side.rcvbuf_bytes, side.sndbuf_bytes, side.backlog = rcvbuf, 0, 0
        side.completion_delay_ns, side.tx_budget, side.pacing = 0, 0, False
        side.fill_at_creation = side.arena_frames_only = False
    return case


MS = 1_000_000


@pytest.mark.parametrize("rcvbuf", [1_500, 3_000, 6_000, 20_000, 65_535, 262_144])
def test_stream_through_a_window_takes_one_round_trip_a_window(rcvbuf: int) -> None:
    size, rtt = 200_000, 10 * MS
    for seed in range(1, 6):
        case = calm(seed, bytes=size, delay_ns=rtt // 2, rcvbuf=rcvbuf)
        result = run(case)
        assert not failure(result), explain(case, result)
        assert result.lossless and result.bytes == size
        assert result.counters.tcp_probes == 0
        # handshake and closing, slow start from ten segments, then a window a round trip
        rounds = 3 + 6 + size / (rcvbuf // 1448 * 1448)
        print(f"window {rcvbuf}: {result.over_ns / rtt:.1f} round trips")
        assert result.over_ns < rounds * rtt


@pytest.mark.parametrize(
    ("loss_ppm", "rounds", "most_timeouts"),
    [(1_000, 14, 0.3), (10_000, 45, 1.0), (30_000, 135, 3.0)],
)
def test_stream_with_losses_recovers_without_many_timeouts(
    loss_ppm: int, rounds: int, most_timeouts: float
) -> None:
    # Means of 20 seeds; the bounds are half as much again as when this was written.
    size, rtt = 400_000, 10 * MS
    over = timeouts = 0
    for seed in range(1, 21):
        case = calm(seed, bytes=size, delay_ns=rtt // 2, loss_ppm=loss_ppm)
        result = run(case)
        assert not failure(result), explain(case, result)
        over += result.over_ns / rtt / 20
        timeouts += result.counters.tcp_rto / 20
    print(f"loss {loss_ppm} ppm: {over:.1f} round trips, {timeouts:.2f} timeouts")
    assert over < rounds and timeouts < most_timeouts


def test_same_seed_runs_the_same_way() -> None:
    for seed in (3, 14, 15):
        first, second = run(plan(seed)), run(plan(seed))
        assert bytes(ffi.buffer(first)) == bytes(ffi.buffer(second))


def test_connections_that_use_up_the_frames_stop_nobody() -> None:
    """Echo servers with few frames, each byte of a stream in a frame of its own, and half of the
    peers stop reading for a while: as many as hold too much are reset, all others get through."""
    resets = orderly = 0
    for seed in range(1, 37):
        case = plan(seed, conns=20, bytes=60_000, chunk_max=16, pause_ppm=500_000, greedy=True)
        case.pattern = 1 + lib.SIM_ECHO
        case.odd_ppm = case.nonsense_ppm = case.upset_count = 0
        for side in case.side:
            side.pool_frames, side.fill_target, side.max_flows = (64 << seed % 3), 16, 160
        result = run(case)
        assert not failure(result), explain(case, result)
        resets += result.counters.tcp_pressure_resets
        orderly += result.orderly
    print(f"{orderly} of {36 * 20} connections in order, {resets} reset")
    assert resets >= 3 and orderly + resets == 36 * 20
