"""tcp/newreno: congestion control and recovery without SACK (RFC 5681, RFC 6582)."""

from __future__ import annotations

from tests.unit.peer import MSS, Peer, Stack, opened, struct_at_line
from tests.unit.san import lib

NEWRENO = {"congestion": lib.IX_CC_NEWRENO}


def flying(segments: int = 10, queued: int = 20, **options: object) -> tuple[Stack, Peer, int]:
    """A connection with `segments` full segments out, and more queued."""
    stack, peer, handle = opened(arena=256, **NEWRENO, **options)
    stack.stream(handle, 0, queued * MSS)
    assert len(peer.take_all()) == min(segments, 10)
    return stack, peer, handle


def test_third_duplicate_ack_retransmits_the_first_segment_alone() -> None:
    stack, peer, handle = flying(queued=10)
    for _ in range(2):
        peer.send("A", ack=0)
        peer.expect_nothing()
    peer.send("A", ack=0)
    peer.expect_stream((0, MSS))
    assert stack.info(handle).ssthresh_bytes == 5 * MSS
    assert stack.counters("tcp_fast_rexmit", "tcp_dupacks") == [1, 3]


def test_first_two_duplicate_acks_let_one_new_segment_go_each() -> None:
    # Limited transmit, RFC 3042
    stack, peer, handle = flying()
    peer.send("A", ack=0)
    peer.expect_stream((10 * MSS, 11 * MSS))
    peer.send("A", ack=0)
    peer.expect_stream((11 * MSS, 12 * MSS))
    assert stack.info(handle).cwnd_bytes == 10 * MSS
    peer.send("A", ack=0)
    peer.expect_stream((0, MSS))


def test_further_duplicate_acks_let_more_go_as_the_window_shrinks() -> None:
    # PRR (RFC 6937): one for every two that arrive, until the window is half
    stack, peer, _handle = flying(queued=40)
    for _ in range(3):
        peer.send("A", ack=0)
    assert [s.seq // MSS for s in peer.take_all()] == [10, 11, 0]
    for _ in range(8):
        peer.send("A", ack=0)
    new = peer.take_all()
    assert [s.seq // MSS for s in new] == list(range(12, 12 + len(new)))
    assert 3 <= len(new) <= 5
    assert stack.counter("tcp_fast_rexmit") == 1


def test_partial_ack_retransmits_the_next_hole_at_once() -> None:
    stack, peer, handle = flying(queued=10)
    for _ in range(3):
        peer.send("A", ack=0)
    peer.expect_stream((0, MSS))
    peer.send("A", ack=4 * MSS)
    peer.expect_stream((4 * MSS, 5 * MSS))
    peer.send("A", ack=7 * MSS)
    peer.expect_stream((7 * MSS, 8 * MSS))
    peer.send("A", ack=10 * MSS)
    peer.expect_nothing()
    assert stack.info(handle).cwnd_bytes <= 5 * MSS
    assert stack.counters("tcp_fast_rexmit", "tcp_rexmit") == [1, 3]


def test_full_ack_ends_recovery_with_half_the_window() -> None:
    stack, peer, handle = flying(queued=30)
    for _ in range(5):
        peer.send("A", ack=0)
    peer.take_all()
    out = stack.tcb(handle).snd_max
    peer.send("A", ack=(out - peer.irs - 1) % 2**32)
    info = stack.info(handle)
    assert info.cwnd_bytes <= info.ssthresh_bytes
    assert len(peer.take_all()) * MSS <= info.cwnd_bytes


def test_duplicate_acks_count_from_the_last_advance() -> None:
    stack, peer, _handle = flying(queued=10)
    for ack in (0, 0, MSS, MSS, MSS, 2 * MSS, 2 * MSS, 2 * MSS):
        peer.send("A", ack=ack)
    peer.expect_nothing()
    assert stack.counters("tcp_dupacks", "tcp_fast_rexmit") == [6, 0]
    peer.send("A", ack=2 * MSS)
    peer.expect_stream((2 * MSS, 3 * MSS))


def test_duplicate_ack_needs_the_same_window_and_no_payload() -> None:
    # RFC 5681 section 2
    stack, peer, _handle = flying(queued=10)
    for i in range(4):
        peer.send("A", ack=0, window=60000 + i)
    for _ in range(4):
        peer.send("A", b"data", ack=0)
    peer.take_all()
    assert stack.counters("tcp_dupacks", "tcp_rexmit") == [0, 0]


def test_duplicate_ack_of_nothing_outstanding_does_not_count() -> None:
    stack, peer, _handle = opened()
    for _ in range(5):
        peer.send("A")
    assert stack.counter("tcp_dupacks") == 0


def test_second_loss_in_one_window_halves_once() -> None:
    stack, peer, handle = flying(queued=10)
    for _ in range(3):
        peer.send("A", ack=0)
    peer.send("A", ack=4 * MSS)
    for _ in range(5):
        peer.send("A", ack=4 * MSS)
    assert stack.info(handle).ssthresh_bytes == 5 * MSS
    assert stack.counter("tcp_fast_rexmit") == 1


def test_timeout_collapses_to_one_segment() -> None:
    stack, peer, handle = flying(queued=10)
    stack.sleep(ms=201)
    peer.expect_stream((0, MSS))
    info = stack.info(handle)
    assert (info.cwnd_bytes, info.ssthresh_bytes) == (MSS, 5 * MSS)


def test_second_timeout_keeps_ssthresh() -> None:
    stack, _peer, handle = flying(queued=10)
    stack.sleep(ms=201 + 402)
    assert stack.counter("tcp_rto") == 2
    assert stack.info(handle).ssthresh_bytes == 5 * MSS


def test_timeout_in_recovery_ends_it() -> None:
    stack, peer, handle = flying(queued=10)
    for _ in range(3):
        peer.send("A", ack=0)
    peer.expect_stream((0, MSS))
    stack.sleep(ms=250)
    peer.expect_stream((0, MSS))
    assert stack.info(handle).cwnd_bytes == MSS


def test_duplicate_acks_after_a_timeout_do_not_retransmit_again() -> None:
    # RFC 6582 3.2 step 2 and section 6: they come from segments sent twice.
    stack, peer, handle = flying(queued=30)
    stack.sleep(ms=201)
    peer.expect_stream((0, MSS))
    peer.send("A", ack=3 * MSS)
    peer.take_all()
    for _ in range(4):
        peer.send("A", ack=3 * MSS)
    assert stack.counter("tcp_fast_rexmit") == 0
    peer.send("A", ack=10 * MSS)
    peer.take_all()
    for _ in range(4):
        peer.send("A", ack=10 * MSS)
    assert stack.counter("tcp_fast_rexmit") == 0, "the ACK must cover more than `recover`"
    peer.send("A", ack=11 * MSS)
    for _ in range(3):
        peer.send("A", ack=11 * MSS)
    assert stack.counter("tcp_fast_rexmit") == 1
    assert stack.info(handle).unacked_bytes > 0


def test_recovery_still_works_when_2_gib_went_without_a_loss() -> None:
    # `recover` must not fall so far behind that comparing with it turns over.
    stack, peer, handle = flying()
    tcb = stack.tcb(handle)
    tcb.recover = (tcb.snd_una - 2**31 + 500) % 2**32
    peer.send("A", ack=MSS)
    peer.take_all()
    for _ in range(3):
        peer.send("A", ack=MSS)
    assert stack.counter("tcp_fast_rexmit") == 1


def test_congestion_avoidance_adds_a_segment_a_window() -> None:
    stack, peer, handle = flying(queued=40)
    stack.tcb(handle).ssthresh = 10 * MSS
    at = 0
    for _ in range(10):
        at += MSS
        peer.send("A", ack=at)
    assert stack.info(handle).cwnd_bytes == 11 * MSS
    for _ in range(10):
        at += MSS
        peer.send("A", ack=at)
    assert stack.info(handle).cwnd_bytes == 11 * MSS
    peer.send("A", ack=at + MSS)
    assert stack.info(handle).cwnd_bytes == 12 * MSS


def test_window_that_is_not_used_does_not_grow() -> None:
    stack, peer, handle = opened()
    for i in range(50):
        stack.stream(handle, 100 * i, 100)
        peer.take_all()
        peer.send("A")
    assert stack.info(handle).cwnd_bytes == 10 * MSS


def test_acks_of_single_bytes_do_not_inflate_the_window() -> None:
    # ACK division (RFC 3465 section 1): bytes count, not ACKs.
    stack, peer, handle = flying(queued=10)
    for i in range(MSS // 20):
        peer.put("A", ack=i + 1)
    stack.poll()
    stack.poll()
    assert stack.info(handle).cwnd_bytes <= 10 * MSS + MSS // 20


def test_congestion_avoidance_keeps_what_is_left_over() -> None:
    # RFC 3465 2.1: bytes acknowledged beyond a window count for the next.
    tcb = struct_at_line("ix_tcb", mss=1000, cwnd=10_000, ssthresh=1000)
    for acked, cwnd in ((9000, 10_000), (3000, 11_000), (9000, 12_000), (11_999, 12_000)):
        lib.ix_newreno_avoid(tcb, acked)
        assert tcb.cwnd == cwnd
    lib.ix_newreno_avoid(tcb, 1)
    assert tcb.cwnd == 13_000
