"""tcp/recovery: how much leaves in recovery (RFC 6937), and reductions that were mistakes."""

from __future__ import annotations

import pytest

from tests.unit.peer import MSS, Peer, Stack, opened
from tests.unit.san import lib
from tests.unit.test_tcp_sack import RTT_MS, flying, numbers, sack


def timed(**options: object) -> tuple[Stack, Peer, int]:
    """Timestamps and SACK, ten segments out; MSS here is what fits beside the timestamp."""
    stack, peer, handle = opened(arena=256, sack_ok=True, ts=True, rtt_ms=RTT_MS, **options)
    stack.stream(handle, 0, 20 * (MSS - 12))
    assert len(peer.take_all()) == 10
    return stack, peer, handle


SIZE = MSS - 12


# ---- proportional rate reduction --------------------------------------------------------


@pytest.mark.parametrize("cc, left", [(lib.IX_CC_NEWRENO, 0.5), (lib.IX_CC_CUBIC, 0.7)])
def test_window_shrinks_in_proportion_to_what_arrives(cc: int, left: float) -> None:
    stack, peer, handle = opened(arena=512, sack_ok=True, rtt_ms=RTT_MS, wscale=7, congestion=cc)
    tcb = stack.tcb(handle)
    tcb.cwnd, tcb.last_tx_ms = 40 * MSS, stack.now_ns // 10**6 % 2**32
    stack.stream(handle, 0, 200 * MSS)
    assert len(peer.take_all()) == 40
    stack.poll(ms=RTT_MS)
    sent = 0
    for last in range(2, 41):
        sack(peer, 0, (1, last))
        sent += len(peer.take_all())
        # never a burst: in step with the ACKs (limited transmit lets the first few go)
        assert sent <= (last - 1) * left + 4, last
    assert sent == pytest.approx(39 * left, abs=3)
    sack(peer, 40)
    assert stack.info(handle).ssthresh_bytes == pytest.approx(40 * left * MSS, abs=MSS)
    assert stack.counter("tcp_rto") == 0


def test_heavy_loss_sends_as_much_as_arrives() -> None:
    # PRR-CRB and SSRB: pipe falls below ssthresh at once
    _stack, peer, _handle = flying(queued=40, congestion=lib.IX_CC_NEWRENO)
    sack(peer, 0, (7, 10))
    assert numbers(peer) == [0, 1, 2]
    sack(peer, 1, (7, 10))
    assert len(numbers(peer)) <= 2


def test_recovery_ends_with_the_reduced_window() -> None:
    stack, peer, handle = flying(queued=10, congestion=lib.IX_CC_NEWRENO)
    sack(peer, 0, (1, 5))
    peer.take_all()
    stack.poll(ms=RTT_MS)
    sack(peer, 10)
    info = stack.info(handle)
    assert info.cwnd_bytes == info.ssthresh_bytes == 5 * MSS


def test_no_record_of_recovery_left_reduces_at_once() -> None:
    stack, peer, handle = flying(queued=40, congestion=lib.IX_CC_NEWRENO)
    stack.shard.tcp.recovery_free = 2**32 - 1
    sack(peer, 0, (1, 5))
    assert stack.info(handle).cwnd_bytes == 5 * MSS
    assert numbers(peer)[0] == 0
    sack(peer, 10)
    assert stack.shard.tcp.recoveries_used == 0


# ---- spurious retransmissions -----------------------------------------------------------


def test_spurious_timeout_is_undone_by_the_timestamp() -> None:
    # Eifel (RFC 3522): the ACK echoes a timestamp from before the retransmission.
    stack, peer, handle = timed()
    before = peer.ts_seen
    stack.sleep(ms=2 * RTT_MS + 250)  # a probe, then the timeout
    peer.take_all()
    assert stack.counter("tcp_rto") == 1
    assert stack.info(handle).cwnd_bytes == SIZE
    peer.send("A", ack=10 * SIZE, ts=(peer.ts_clock, before))
    info = stack.info(handle)
    assert (info.cwnd_bytes >= 10 * SIZE, info.ssthresh_bytes) == (True, 2**32 - 1)
    assert stack.counter("tcp_undo") == 1
    assert len(peer.take_all()) == 9  # the probe was the tenth


def test_timeout_that_was_needed_is_not_undone() -> None:
    stack, peer, handle = timed()
    stack.sleep(ms=2 * RTT_MS + 250)
    peer.take_all()
    peer.send("A", ack=SIZE)  # echoes the retransmission's
    assert stack.counter("tcp_undo") == 0
    assert stack.info(handle).cwnd_bytes <= 2 * SIZE
    peer.send("A", ack=2 * SIZE, ts=(peer.ts_clock, peer.ts_seen - 1000))  # only the first counts
    assert stack.counter("tcp_undo") == 0


def test_spurious_fast_retransmission_is_undone_by_d_sack() -> None:
    # RFC 2883: all that was sent again arrived twice.
    stack, peer, handle = flying(queued=40)
    sack(peer, 0, (1, 5))
    assert 0 in numbers(peer)
    assert stack.info(handle).ssthresh_bytes == 7 * MSS
    stack.poll(ms=1)
    sack(peer, 10)
    peer.take_all()
    stack.poll(ms=RTT_MS)
    peer.send("A", ack=10 * MSS, sack=[(0, MSS)])
    info = stack.info(handle)
    assert (info.cwnd_bytes >= 10 * MSS, info.ssthresh_bytes) == (True, 2**32 - 1)
    assert stack.counters("tcp_undo", "tcp_dsack_in") == [1, 1]


def test_d_sack_of_a_part_undoes_nothing() -> None:
    stack, peer, _handle = flying(queued=40)
    sack(peer, 0, (2, 6))
    assert numbers(peer)[:2] == [0, 1]
    stack.poll(ms=1)
    sack(peer, 10)
    peer.send("A", ack=10 * MSS, sack=[(0, MSS)])
    assert stack.counter("tcp_undo") == 0


def test_cubic_goes_on_where_it_was_after_an_undo() -> None:
    # RFC 9438 4.9
    stack, peer, handle = flying(queued=40)
    tcb = stack.tcb(handle)
    tcb.ssthresh = 10 * MSS
    tcb.cubic.w_max, tcb.cubic.epoch_ms = 123 * MSS, 0
    sack(peer, 0, (1, 5))
    peer.take_all()
    assert tcb.cubic.w_max != 123 * MSS
    peer.send("A", ack=5 * MSS, sack=[(0, MSS)])
    assert tcb.cubic.w_max == 123 * MSS
    assert tcb.ssthresh == 10 * MSS


# ---- F-RTO (RFC 5682): connections without timestamps ------------------------------------


def timed_out(*, sack_ok: bool, queued: int = 20) -> tuple[Stack, Peer, int]:
    """Ten segments out, no answer, and the first sent again after the timeout."""
    stack, peer, handle = opened(arena=256, sack_ok=sack_ok, rtt_ms=RTT_MS)
    stack.stream(handle, 0, queued * MSS)
    assert len(peer.take_all()) == 10
    while stack.counter("tcp_rto") == 0:
        stack.poll(ms=20)
    assert numbers(peer)[-1] == 0
    return stack, peer, handle


@pytest.mark.parametrize("sack_ok", [False, True])
def test_late_acks_after_a_timeout_undo_it(sack_ok: bool) -> None:
    stack, peer, handle = timed_out(sack_ok=sack_ok)
    # a probe may have sent one new segment before the timeout
    next_new = stack.tcb(handle).snd_max - stack.tcb(handle).snd_una
    peer.send("A", ack=MSS)
    # (2b): two segments that nobody has, in the place of what may only be late
    assert [s.seq for s in peer.take_all()] == [next_new, next_new + MSS]
    assert stack.counter("tcp_undo") == 0
    peer.send("A", ack=2 * MSS)  # (3b): the second was sent once
    info = stack.info(handle)
    assert (info.cwnd_bytes >= 10 * MSS, info.ssthresh_bytes) == (True, 2**32 - 1)
    assert stack.counter("tcp_undo") == 1
    assert all(s.seq > next_new for s in peer.take_all())  # nothing else is sent again
    peer.send("A", ack=10 * MSS)
    assert stack.counter("tcp_rexmit") <= 2


def test_late_sack_after_a_timeout_undoes_it() -> None:
    stack, peer, handle = timed_out(sack_ok=True)
    peer.send("A", ack=MSS)
    assert len(peer.take_all()) == 2
    sack(peer, 1, (3, 4))  # sent once, before the timeout
    assert stack.counter("tcp_undo") == 1
    assert stack.info(handle).ssthresh_bytes == 2**32 - 1


@pytest.mark.parametrize("sack_ok", [False, True])
def test_loss_of_a_window_is_no_mistake(sack_ok: bool) -> None:
    stack, peer, handle = timed_out(sack_ok=sack_ok)
    first_new = (stack.tcb(handle).snd_max - stack.tcb(handle).snd_una) // MSS
    peer.send("A", ack=MSS)
    assert numbers(peer) == [first_new, first_new + 1]
    # only the new ones arrive: (3a)
    peer.send("A", ack=MSS, sack=[(first_new * MSS, (first_new + 1) * MSS)] if sack_ok else [])
    assert stack.counter("tcp_undo") == 0
    assert numbers(peer)[:1] == [1]
    peer.send("A", ack=2 * MSS)
    assert 2 in numbers(peer)
    assert stack.counter("tcp_undo") == 0


def test_first_answer_covers_all_is_no_proof() -> None:
    # (2a): without SACK the hole at the start may have been the only one.
    stack, peer, handle = timed_out(sack_ok=False)
    peer.send("A", ack=10 * MSS)
    assert stack.counter("tcp_undo") == 0
    assert stack.info(handle).ssthresh_bytes < 10 * MSS


def test_duplicate_first_is_no_proof() -> None:
    # (2a), basic variant: the usual recovery, however the next ACK looks.
    stack, peer, _handle = timed_out(sack_ok=False)
    peer.send("A", ack=0)
    peer.send("A", ack=MSS)
    assert numbers(peer) == [1, 2]
    peer.send("A", ack=2 * MSS)
    assert stack.counter("tcp_undo") == 0


def test_nothing_new_to_send_is_the_usual_recovery() -> None:
    stack, peer, _handle = timed_out(sack_ok=False, queued=10)
    peer.send("A", ack=MSS)
    assert numbers(peer) == [1, 2]
    peer.send("A", ack=2 * MSS)
    assert stack.counter("tcp_undo") == 0


def test_same_segment_timed_out_twice_can_still_be_a_mistake() -> None:
    stack, peer, handle = timed_out(sack_ok=False)
    while stack.counter("tcp_rto") == 1:
        stack.poll(ms=20)
    assert numbers(peer) == [0]
    peer.send("A", ack=MSS)
    assert numbers(peer) == [10, 11]
    peer.send("A", ack=2 * MSS)
    assert stack.counter("tcp_undo") == 1
    assert stack.info(handle).cwnd_bytes >= 10 * MSS


def test_timeout_after_a_part_was_repaired_decides_nothing() -> None:
    # Step 1: in recovery from a timeout already.
    stack, peer, _handle = timed_out(sack_ok=False, queued=10)
    peer.send("A", ack=MSS)
    assert numbers(peer) == [1, 2]
    while stack.counter("tcp_rto") == 1:
        stack.poll(ms=20)
    assert numbers(peer) == [1]
    stack.stream(_handle, 10 * MSS, 10 * MSS)
    peer.send("A", ack=2 * MSS)
    assert 2 in numbers(peer)
    peer.send("A", ack=4 * MSS)
    assert stack.counter("tcp_undo") == 0


def test_sacks_forgotten_at_a_timeout_prove_nothing() -> None:
    # The peer had SACKed what it now acknowledges: that did not arrive since.
    stack, peer, _handle = timed_out(sack_ok=True)
    sack(peer, 0, (2, 4))
    peer.take_all()
    while stack.counter("tcp_rto") == 1:
        stack.poll(ms=20)
    peer.take_all()
    peer.send("A", ack=MSS)
    peer.take_all()
    peer.send("A", ack=4 * MSS)
    assert stack.counter("tcp_undo") == 0


# ---- marks and losses in one window -----------------------------------------------------


def test_loss_in_a_window_that_was_reduced_for_a_mark_does_not_reduce_again() -> None:
    stack = Stack(listen=80, arena=256, congestion=lib.IX_CC_NEWRENO)
    peer = Peer(stack, sack_ok=True)
    peer.send("SEC")
    peer.take()
    stack.poll(ms=RTT_MS)
    peer.send("A")
    handle = stack.expect("KNOCK").handle
    stack.accept(handle, 5)
    stack.stream(handle, 0, 30 * MSS)
    peer.take_all()
    stack.poll(ms=RTT_MS)
    peer.send("AE", ack=MSS)
    assert stack.info(handle).ssthresh_bytes == 5 * MSS
    sack(peer, 1, (2, 8))
    assert 1 in numbers(peer)
    assert stack.info(handle).ssthresh_bytes == 5 * MSS
