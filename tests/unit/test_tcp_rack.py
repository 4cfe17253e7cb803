"""tcp/rack: loss by time and order of sending, and tail loss probes (RFC 8985)."""

from __future__ import annotations

from tests.unit.peer import MSS, Peer, Stack, opened
from tests.unit.san import ffi, lib
from tests.unit.test_tcp_sack import RTT_MS, flying, numbers, sack


def far(**options: object) -> tuple[Stack, Peer, int]:
    """A connection with SACK whose handshake took a round trip."""
    return opened(arena=256, sack_ok=True, rtt_ms=RTT_MS, **options)


# ---- RACK -------------------------------------------------------------------------------


def test_hole_below_one_sacked_segment_is_lost_after_the_reordering_window() -> None:
    # 6.2 step 5: RACK.rtt + a quarter of the least round trip; the timer is a little later
    stack, peer, _handle = flying()
    sack(peer, 0, (1, 2))
    peer.expect_nothing()
    stack.sleep(ms=RTT_MS / 4 - 1)
    peer.expect_nothing()
    stack.sleep(ms=3.5)
    assert numbers(peer) == [0]
    assert stack.counters("tcp_rto", "tcp_tlp") == [0, 0]


def test_probe_waits_for_a_delayed_ack_only_behind_a_lone_segment() -> None:
    # 7.2: FlightSize is one segment; two that are short are two
    stack, peer, handle = far()
    stack.stream(handle, 0, 10)
    alone_us = lib.ix_tlp_wait_us(ffi.addressof(stack.tcb(handle)))
    stack.poll(ms=1)
    stack.stream(handle, 10, 10)
    assert len(peer.take_all()) == 2
    srtt_us = stack.tcb(handle).srtt_us
    assert alone_us == min(2 * srtt_us + 200_000, stack.info(handle).rto_us)
    assert lib.ix_tlp_wait_us(ffi.addressof(stack.tcb(handle))) == 2 * srtt_us + 2000


def test_reordered_segment_that_comes_in_time_is_not_sent_again() -> None:
    stack, peer, handle = flying()
    sack(peer, 0, (1, 3))
    stack.poll(ms=2)
    sack(peer, 3)
    stack.sleep(ms=30)
    assert stack.counters("tcp_rexmit", "tcp_fast_rexmit", "tcp_reordering") == [0, 0, 1]
    assert stack.tcb(handle).rack & lib.IX_RACK_REORDER


def test_three_sacked_segments_wait_too_once_reordering_was_seen() -> None:
    # 6.2 step 4: DupThresh counts only while nothing was ever reordered.
    stack, peer, handle = flying(queued=30)
    sack(peer, 0, (1, 3))
    sack(peer, 3)
    peer.take_all()
    stack.poll(ms=RTT_MS)
    sack(peer, 3, (4, 9))
    assert 3 not in numbers(peer)
    stack.sleep(ms=6)
    assert 3 in numbers(peer)
    assert stack.info(handle).retransmits == 1


def test_dsack_widens_the_window_and_calm_recoveries_narrow_it() -> None:
    # 6.2 step 4: reo_wnd_mult, reo_wnd_persist
    stack, peer, handle = flying(queued=30)
    tcb = stack.tcb(handle)
    sack(peer, 0, (1, 5))
    assert 0 in numbers(peer)
    peer.send("A", ack=5 * MSS, sack=[(0, MSS)])  # it had only been late
    assert (tcb.reo_mult, tcb.reo_persist) == (2, 16)
    peer.send("A", ack=5 * MSS, sack=[(0, MSS)])  # once a round trip
    assert tcb.reo_mult == 2
    for i in range(16):
        assert tcb.reo_mult == 2, i
        lib.ix_rack_recovered(ffi.addressof(tcb))
    assert tcb.reo_mult == 1


def test_lost_retransmission_is_found_and_sent_once_more() -> None:
    stack, peer, _handle = flying(queued=40)
    sack(peer, 0, (1, 5))
    assert numbers(peer)[0] == 0
    stack.poll(ms=RTT_MS)
    sack(peer, 0, (1, 10))
    after = numbers(peer)
    assert after and 0 not in after  # new data: sent after the retransmission
    stack.poll(ms=RTT_MS)
    sack(peer, 0, (1, after[-1] + 1))
    stack.sleep(ms=6)
    assert 0 in numbers(peer)
    assert stack.counters("tcp_lost_rexmits", "tcp_rto") == [1, 0]


def test_after_an_hour_of_silence_what_is_in_flight_is_not_lost() -> None:
    # Transmissions are compared on a clock that goes round in 71 minutes: what arrived before the
    # silence would seem to have been sent after all that is out now.
    stack, peer, handle = far()
    stack.stream(handle, 0, MSS)
    peer.take_all()
    stack.poll(ms=RTT_MS)
    sack(peer, 1)
    stack.poll(ms=40 * 60 * 1000)
    stack.stream(handle, MSS, 10 * MSS)
    assert len(peer.take_all()) == 10
    stack.poll(ms=RTT_MS)
    sack(peer, 1, (2, 5))
    assert numbers(peer) == [1]
    assert stack.tcb(handle).lost_bytes == 0


def test_blocks_of_one_ack_are_no_reordering() -> None:
    stack, peer, _handle = flying()
    sack(peer, 2, (7, 8), (3, 5))
    assert stack.counter("tcp_reordering") == 0


def test_answer_to_the_first_transmission_is_no_measure_of_the_second() -> None:
    # 6.2 step 2: an ACK sooner than any round trip
    stack, peer, handle = flying()
    sack(peer, 0, (1, 5))
    rtt_us = stack.tcb(handle).rack_rtt_us
    stack.poll(ms=1)
    sack(peer, 5)
    assert stack.tcb(handle).rack_rtt_us == rtt_us


# ---- tail loss probes -------------------------------------------------------------------


def test_probe_sends_the_last_segment_after_two_round_trips() -> None:
    stack, peer, handle = far()
    stack.stream(handle, 0, 4 * MSS)
    peer.take_all()
    stack.sleep(ms=2 * RTT_MS)
    peer.expect_nothing()
    stack.sleep(ms=3)
    assert numbers(peer) == [3]
    assert stack.counters("tcp_tlp", "tcp_rto") == [1, 0]


def test_probe_of_a_lost_tail_starts_recovery() -> None:
    stack, peer, handle = far()
    stack.stream(handle, 0, 8 * MSS)
    peer.take_all()
    stack.poll(ms=RTT_MS)
    sack(peer, 5)
    stack.sleep(ms=2 * RTT_MS + 3)
    assert numbers(peer) == [7]
    stack.poll(ms=RTT_MS)
    sack(peer, 5, (7, 8))
    stack.sleep(ms=RTT_MS / 4 + 1)
    assert numbers(peer) == [5]
    sack(peer, 6, (7, 8))
    assert numbers(peer) == [6]
    assert stack.counters("tcp_rto", "tcp_fast_rexmit") == [0, 1]


def test_probe_sends_new_data_if_there_is_some() -> None:
    stack, peer, handle = flying(queued=30)
    stack.sleep(ms=2 * RTT_MS)
    assert numbers(peer) == [10]
    assert stack.counters("tcp_tlp", "tcp_rexmit") == [1, 0]
    assert stack.info(handle).cwnd_bytes == 10 * MSS


def test_probe_that_repaired_a_loss_reduces_the_window() -> None:
    # 7.4.2: else nobody would have noticed it
    stack, peer, handle = far(congestion=lib.IX_CC_NEWRENO)
    stack.stream(handle, 0, 10 * MSS)
    peer.take_all()
    stack.poll(ms=RTT_MS)
    sack(peer, 9)
    assert stack.info(handle).ssthresh_bytes == 2**32 - 1
    tcb = stack.tcb(handle)
    tcb.rttvar_us, tcb.rto_us = 200_000, 1_000_000  # one segment: the probe waits 200 ms longer
    stack.stream(handle, 10 * MSS, MSS)
    peer.take_all()
    sack(peer, 10)
    stack.sleep(ms=300)
    assert numbers(peer) == [10]
    assert stack.counters("tcp_tlp", "tcp_rto") == [1, 0]
    stack.stream(handle, 11 * MSS, MSS)
    sack(peer, 12)
    assert stack.info(handle).ssthresh_bytes < 10 * MSS


def test_probe_that_was_needless_leaves_the_window() -> None:
    stack, peer, handle = far()
    stack.stream(handle, 0, 4 * MSS)
    peer.take_all()
    stack.sleep(ms=2 * RTT_MS + 3)
    assert numbers(peer) == [3]
    peer.send("A", ack=4 * MSS, sack=[(3 * MSS, 4 * MSS)])  # both arrived
    assert stack.info(handle).cwnd_bytes >= 10 * MSS
    assert stack.info(handle).ssthresh_bytes == 2**32 - 1


def test_one_probe_a_flight_then_the_timeout() -> None:
    stack, peer, handle = far()
    stack.stream(handle, 0, 4 * MSS)
    peer.take_all()
    stack.sleep(ms=600)
    assert numbers(peer) == [3, 0]
    assert stack.counters("tcp_tlp", "tcp_rto") == [1, 1]


def test_no_probe_without_sack_or_in_recovery() -> None:
    stack, peer, handle = opened(rtt_ms=RTT_MS)
    stack.stream(handle, 0, 4 * MSS)
    peer.take_all()
    stack.sleep(ms=150)
    peer.expect_nothing()
    stack, peer, handle = flying()
    sack(peer, 0, (1, 5))
    peer.take_all()
    stack.sleep(ms=100)
    assert stack.counter("tcp_tlp") == 0
