"""tcp/pace: what the window allows is spread over the round trip (IX_OPT_PACING)."""

from __future__ import annotations

import pytest

from tests.unit.peer import MSS, TICK_NS, Peer, Stack, opened
from tests.unit.san import lib

RTT_MS = 20
BY_WINDOW = 2**64 - 1


def paced(value: int = BY_WINDOW, **options: object) -> tuple[Stack, Peer, int]:
    options = {"arena": 512, "sack_ok": True, "rtt_ms": RTT_MS, "wscale": 7} | options
    stack, peer, handle = opened(**options)
    assert stack.option(handle, "PACING", value) == 0
    return stack, peer, handle


def flow_over(stack: Stack, peer: Peer, us: int, step_us: int = 100) -> list[tuple[int, int]]:
    """What leaves in so many microseconds: (when, how many segments)."""
    out = []
    for at in range(0, us, step_us):
        stack.poll(ms=(step_us * 1000) / 1e6)
        if found := peer.take_all():
            out.append((at + step_us, len(found)))
    return out


def second_flight(**options: object) -> tuple[Stack, Peer, int]:
    """The first flight was acknowledged; the window is known, and nothing is in flight."""
    stack, peer, handle = paced(**options)
    stack.stream(handle, 0, 10 * MSS)
    assert len(peer.take_all()) == 10
    stack.poll(ms=RTT_MS)
    peer.send("A", ack=10 * MSS)
    tcb = stack.tcb(handle)
    tcb.cwnd, tcb.ssthresh = 40 * MSS, 40 * MSS
    return stack, peer, handle


def test_first_flight_leaves_at_once() -> None:
    # RFC 6928: there is no measure yet
    stack, peer, handle = paced()
    stack.stream(handle, 0, 20 * MSS)
    assert len(peer.take_all()) == 10


def test_rate_is_told() -> None:
    stack, _peer, handle = second_flight()
    srtt_us = stack.tcb(handle).srtt_us
    assert stack.info(handle).pace_rate == 40 * MSS * 120 * 10_000 // srtt_us
    stack.tcb(handle).ssthresh = 41 * MSS
    assert stack.info(handle).pace_rate == 40 * MSS * 200 * 10_000 // srtt_us
    assert stack.option(handle, "PACING", 50_000) == 0
    assert stack.info(handle).pace_rate == 50_000
    assert stack.option(handle, "PACING", 0) == 0
    assert stack.info(handle).pace_rate == 2**64 - 1


def test_window_is_spread_over_the_round_trip() -> None:
    stack, peer, handle = second_flight()
    stack.stream(handle, 10 * MSS, 100 * MSS)
    first = len(peer.take_all())
    assert 2 <= first <= 4
    sent = flow_over(stack, peer, RTT_MS * 1000)
    assert max(count for _, count in sent) <= 4  # a millisecond's, and what a late timer missed
    total = first
    for at, count in sent:
        total += count
        if total < 40:  # 1.2 windows a round trip
            assert total * RTT_MS * 1000 / (40 * 1.2) == pytest.approx(at, abs=2600)
    assert total == 40
    assert stack.counter("tcp_rto") == stack.counter("tcp_rexmit") == 0


def test_slow_start_is_not_held_back() -> None:
    # Two windows a round trip: as fast as ACKs make it grow.
    stack, peer, handle = second_flight()
    stack.tcb(handle).ssthresh = 2**32 - 1
    stack.stream(handle, 10 * MSS, 100 * MSS)
    total = len(peer.take_all())
    total += sum(count for _, count in flow_over(stack, peer, RTT_MS * 500 + 1000))
    assert total == 40


def test_limit_of_the_application_is_kept() -> None:
    rate = 1_460_000  # a segment a millisecond
    stack, peer, handle = second_flight(value=rate)
    stack.stream(handle, 10 * MSS, 100 * MSS)
    first = len(peer.take_all())
    sent = flow_over(stack, peer, 15_000)
    assert first + sum(count for _, count in sent) == pytest.approx(16, abs=2)


def test_limit_is_kept_on_the_shortest_path_too() -> None:
    stack, peer, handle = paced(1_460_000, rtt_ms=0)
    stack.stream(handle, 0, 2 * MSS)
    assert len(peer.take_all()) == 2
    peer.send("A", ack=2 * MSS)
    stack.poll(ms=5)
    stack.stream(handle, 2 * MSS, 8 * MSS)
    assert len(peer.take_all()) == 2
    assert len(flow_over(stack, peer, 10_000)) >= 3


def test_short_path_sets_no_timer() -> None:
    # Less than a millisecond there and back: a millisecond's worth is the window.
    stack, peer, handle = paced(rtt_ms=0)
    stack.stream(handle, 0, 5 * MSS)
    assert len(peer.take_all()) == 5
    peer.send("A", ack=5 * MSS)
    stack.poll(ms=1)
    stack.stream(handle, 5 * MSS, 10 * MSS)
    assert len(peer.take_all()) == 10
    assert not stack.tcb(handle).flags & lib.IX_TF_PACE_HELD


def test_without_it_nothing_is_held() -> None:
    stack, peer, handle = second_flight(value=0)
    stack.stream(handle, 10 * MSS, 100 * MSS)
    assert len(peer.take_all()) == 40


def test_acks_while_held_send_nothing_more() -> None:
    stack, peer, handle = second_flight(value=1_460_000)
    stack.stream(handle, 10 * MSS, 100 * MSS)
    assert len(peer.take_all()) == 2
    for i in (1, 2):
        peer.send("A", ack=(10 + i) * MSS)
        peer.expect_nothing()
    assert flow_over(stack, peer, 3000)


@pytest.mark.parametrize("rate, due_ms", [(146_000, 10), (1, 40)])
def test_delayed_ack_keeps_its_time_beside_the_pace(rate: int, due_ms: int) -> None:
    # Both wait for one timer: the ACK leaves with what the pace lets go, or by itself.
    stack, peer, handle = second_flight(value=rate)
    stack.stream(handle, 10 * MSS, 4 * MSS)
    assert len(peer.take_all()) == 2
    stack.tcb(handle).quick_acks = 0
    peer.send("PA", b"x" * 10, ack=10 * MSS)
    stack.sleep(ms=due_ms - 1)
    peer.expect_nothing()
    stack.sleep(ms=2)
    found = peer.take_all()
    assert [(len(s.payload), s.ack) for s in found] == ([(MSS, 10)] * 2 if rate > 1 else [(0, 10)])


def test_timeout_and_probe_do_not_wait() -> None:
    stack, peer, handle = second_flight(value=1)  # a byte a second
    stack.stream(handle, 10 * MSS, 2 * MSS)
    assert len(peer.take_all()) == 2
    while stack.counter("tcp_tlp") == 0:
        stack.poll(ms=5)
    assert len(peer.take_all()) == 1
    while stack.counter("tcp_rto") == 0:
        stack.poll(ms=5)
    assert [s.seq for s in peer.take_all()] == [10 * MSS]


def test_retransmissions_are_paced() -> None:
    stack, peer, handle = second_flight()
    stack.stream(handle, 10 * MSS, 40 * MSS)
    flow_over(stack, peer, RTT_MS * 1000)
    # the first twenty are lost
    peer.send("A", ack=10 * MSS, sack=[(30 * MSS, 50 * MSS)])
    first = len(peer.take_all())
    assert 1 <= first <= 4
    sent = [count for _, count in flow_over(stack, peer, RTT_MS * 1000)]
    assert first + sum(sent) >= 8 and max(sent) <= 4


def test_slowest_pace_sends_once_a_second() -> None:
    stack, peer, handle = second_flight(value=1)
    stack.stream(handle, 10 * MSS, 20 * MSS)
    assert len(peer.take_all()) == 2
    peer.send("A", ack=12 * MSS)
    peer.expect_nothing()
    stack.sleep(ms=1001)
    assert len(peer.take_all()) == 2


def test_nothing_in_flight_and_held_is_no_closed_window() -> None:
    stack, peer, handle = second_flight(value=1)
    stack.stream(handle, 10 * MSS, 20 * MSS)
    peer.take_all()
    peer.send("A", ack=12 * MSS)
    assert not stack.tcb(handle).flags & lib.IX_TF_PERSIST
    assert stack.tcb(handle).flags & lib.IX_TF_PACE_HELD


def test_held_flow_uses_its_window() -> None:
    # Or the window of a paced flow would not grow in slow start.
    stack, peer, handle = second_flight()
    tcb = stack.tcb(handle)
    tcb.ssthresh, tcb.cwnd = 2**32 - 1, 20 * MSS
    stack.stream(handle, 10 * MSS, 100 * MSS)
    peer.take_all()
    flow_over(stack, peer, 6_000)
    assert lib.IX_TF_PACE_HELD & tcb.flags and lib.IX_TF_CWND_LIMITED & tcb.flags
    before = tcb.cwnd
    peer.send("A", ack=12 * MSS)
    assert tcb.cwnd > before


def test_limit_below_the_window_does_not_let_it_grow() -> None:
    stack, peer, handle = second_flight(value=146_000)
    tcb = stack.tcb(handle)
    stack.stream(handle, 10 * MSS, 100 * MSS)
    peer.take_all()
    flow_over(stack, peer, 20_000)
    before = tcb.cwnd
    peer.send("A", ack=12 * MSS)
    assert tcb.cwnd == before and not tcb.flags & lib.IX_TF_CWND_LIMITED


def test_clock_that_went_round_holds_nothing() -> None:
    stack, peer, handle = second_flight()
    stack.tcb(handle).pace_us = (stack.now_ns // 1000 + 1_000_001) % 2**32
    stack.stream(handle, 10 * MSS, 4 * MSS)
    assert len(peer.take_all()) >= 2


def test_idle_time_is_no_credit() -> None:
    stack, peer, handle = second_flight()
    stack.stream(handle, 10 * MSS, 4 * MSS)
    flow_over(stack, peer, RTT_MS * 1000)
    peer.send("A", ack=14 * MSS)
    stack.sleep(ms=5000)
    stack.stream(handle, 14 * MSS, 50 * MSS)
    assert len(peer.take_all()) <= 4  # and the window has restarted (RFC 5681 4.1)
    assert stack.info(handle).cwnd_bytes == 10 * MSS


def test_listener_gives_its_connections_a_pace() -> None:
    stack = Stack(listen=80, arena=64)
    ip = [0, 0, 0, 0]
    option = lib.ix_shard_listen_option
    assert option(stack.shard, ip, 4, 80, lib.IX_OPT_PACING, 5_000_000) == 0
    handle = Peer(stack).connect()
    tcb = stack.tcb(handle)
    assert tcb.flags & lib.IX_TF_PACED and tcb.pace_max == 5_000_000


@pytest.mark.parametrize("pacing", [0, 1])
def test_instance_says_whether_others_are_paced(pacing: int) -> None:
    stack, _peer, handle = opened(pacing=pacing)
    assert bool(stack.tcb(handle).flags & lib.IX_TF_PACED) == bool(pacing)


def test_timer_is_one_tick_late_at_most() -> None:
    stack, peer, handle = second_flight()
    stack.stream(handle, 10 * MSS, 20 * MSS)
    peer.take_all()
    due = (stack.tcb(handle).pace_us - stack.now_ns // 1000) % 2**32
    stack.poll(ms=(due * 1000 - TICK_NS) / 1e6)
    peer.expect_nothing()
    stack.poll(ms=(2 * TICK_NS) / 1e6)
    assert peer.take_all()
