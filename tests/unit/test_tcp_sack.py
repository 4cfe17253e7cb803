"""tcp/sack: what SACK and D-SACK blocks say, and what is then sent again (RFC 2018, 6675, 2883)."""

from __future__ import annotations

from tests.unit.peer import MSS, Peer, Stack, opened, stream
from tests.unit.san import lib

RTT_MS = 20


def flying(queued: int = 10, **options: object) -> tuple[Stack, Peer, int]:
    """A connection with SACK, ten full segments out, their round trip over."""
    stack, peer, handle = opened(arena=256, sack_ok=True, rtt_ms=RTT_MS, **options)
    stack.stream(handle, 0, queued * MSS)
    assert len(peer.take_all()) == 10
    stack.poll(ms=RTT_MS)
    return stack, peer, handle


def at(*segments: tuple[int, int]) -> list[tuple[int, int]]:
    """Ranges of segments as ranges of bytes."""
    return [(a * MSS, b * MSS) for a, b in segments]


def sack(peer: Peer, ack: int, *segments: tuple[int, int]) -> None:
    peer.send("A", ack=ack * MSS, sack=at(*segments))


def numbers(peer: Peer) -> list[int]:
    """Which whole segments of the stream were sent."""
    found = peer.take_all()
    assert all(s.payload == stream(s.seq, len(s.payload)) for s in found)
    return [s.seq // MSS for s in found]


# ---- recovery -------------------------------------------------------------------------


def test_retransmission_beside_own_sack_blocks_fits_the_mtu() -> None:
    # Both directions have lost something: the blocks take their room from the payload.
    _stack, peer, _handle = flying()
    for i in range(1, 5):
        peer.send("PA", b"x" * 10, seq=100 * i, ack=0)
    peer.take_all()
    sack(peer, 0, (1, 4))
    found = peer.take_all()
    assert found and found[0].seq == 0 and found[0].sack
    assert max(len(s.frame) for s in found) <= 1514
    assert found[0].payload == stream(0, MSS - 36)  # the rest follows as the pipe has room


def test_one_hole_is_retransmitted_once() -> None:
    stack, peer, _handle = flying()
    sack(peer, 0, (1, 2))
    sack(peer, 0, (1, 3))
    peer.expect_nothing()
    sack(peer, 0, (1, 4))
    peer.expect_stream(*at((0, 1)))
    for last in range(5, 11):
        sack(peer, 0, (1, last))
    peer.expect_nothing()
    sack(peer, 10)
    stack.sleep(ms=1000)
    peer.expect_nothing()
    assert stack.counters("tcp_rexmit", "tcp_fast_rexmit", "tcp_rto") == [1, 1, 0]
    assert stack.shard.tcp.recs_used == stack.shard.tcp.recoveries_used == 0


def test_every_lost_hole_is_retransmitted_and_nothing_else() -> None:
    stack, peer, _handle = flying()
    sack(peer, 0, (1, 2))
    sack(peer, 0, (3, 4), (1, 2))
    sack(peer, 0, (3, 5), (1, 2))
    sack(peer, 0, (6, 7), (3, 5), (1, 2))
    sack(peer, 0, (6, 8), (3, 5), (1, 2))
    sack(peer, 0, (6, 9), (3, 5), (1, 2))
    sack(peer, 0, (6, 10), (3, 5), (1, 2))
    assert numbers(peer) == [0, 2, 5]
    sack(peer, 10)
    assert stack.counters("tcp_rexmit", "tcp_rto") == [3, 0]


def test_several_segments_sacked_at_once_enter_recovery_before_three_acks() -> None:
    _stack, peer, _handle = flying()
    sack(peer, 0, (1, 6))
    assert numbers(peer)[0] == 0


def test_hole_of_several_segments_goes_as_the_window_has_room() -> None:
    stack, peer, _handle = flying(congestion=lib.IX_CC_NEWRENO)
    sack(peer, 0, (4, 8))  # four lost, 8 and 9 out: pipe 2, ssthresh 5, 4 delivered
    assert numbers(peer) == [0, 1, 2]
    sack(peer, 0, (4, 9))
    assert numbers(peer) == [3]
    sack(peer, 4, (4, 9))
    peer.expect_nothing()
    assert stack.counter("tcp_rexmit") == 4


def test_recovery_sends_new_data_when_no_hole_is_lost() -> None:
    _stack, peer, _handle = flying(queued=20)
    for last in range(2, 5):
        sack(peer, 0, (1, last))
    assert numbers(peer) == [10, 11, 0]
    for last in range(5, 11):
        sack(peer, 0, (1, last))
    new = numbers(peer)
    assert new == list(range(12, 12 + len(new))) and len(new) >= 3


def test_timeout_resends_what_is_not_sacked() -> None:
    # RFC 6675 5.1: what the peer has is not sent again.
    stack, peer, _handle = flying()
    sack(peer, 0, (1, 2))
    stack.poll(ms=1)
    for ack in (0, 0):
        sack(peer, ack, (1, 2), (3, 10))
    assert numbers(peer) == [0, 2]
    stack.sleep(ms=260)  # both are lost again
    assert numbers(peer) == [0]
    sack(peer, 2, (3, 10))
    assert numbers(peer) == [2]
    sack(peer, 10)
    assert stack.counters("tcp_rto", "tcp_rexmit") == [1, 4]


def test_second_timeout_in_a_row_forgets_what_was_sacked() -> None:
    # RFC 2018 section 8: the receiver may have thrown away what it SACKed.
    stack, peer, handle = flying()
    sack(peer, 0, (1, 10))
    assert numbers(peer) == [0]
    stack.sleep(ms=800)
    assert stack.counter("tcp_rto") == 2
    assert stack.tcb(handle).sacked_bytes == 0
    peer.take_all()
    sack(peer, 1)
    assert numbers(peer) == [1, 2]


def test_peer_that_reneges_is_sent_everything_again() -> None:
    stack, peer, handle = flying()
    sack(peer, 0, (1, 10))
    assert numbers(peer) == [0]
    sack(peer, 1)  # the left edge is SACKed, and still not acknowledged
    stack.sleep(ms=300)
    assert stack.counter("tcp_rto") == 1
    assert stack.tcb(handle).sacked_bytes == 0
    assert numbers(peer)[0] == 1


def test_partial_ack_goes_on_with_what_is_lost() -> None:
    stack, peer, _handle = flying()
    sack(peer, 0, (1, 5), (6, 10))
    assert numbers(peer) == [0, 5]
    sack(peer, 5, (6, 10))
    peer.expect_nothing()
    sack(peer, 10)
    stack.sleep(ms=1000)
    peer.expect_nothing()


def test_fin_lost_is_retransmitted() -> None:
    stack, peer, handle = flying()
    stack.close(handle, write_only=True)
    peer.expect("FA", seq=10 * MSS)
    sack(peer, 10)
    stack.sleep(ms=300)
    peer.expect("FA", seq=10 * MSS)


def test_fin_behind_a_hole_of_the_last_segment() -> None:
    stack, peer, handle = opened(sack_ok=True, rtt_ms=RTT_MS)
    stack.stream(handle, 0, 5 * MSS)
    stack.close(handle, write_only=True)
    peer.take_all()
    stack.poll(ms=RTT_MS)
    peer.send("A", ack=0, sack=[(MSS, 5 * MSS + 1)])
    peer.expect_stream((0, MSS))
    peer.send("A", ack=5 * MSS + 1)
    assert peer.state == "FIN_WAIT_2"


# ---- blocks that make no sense --------------------------------------------------------


def test_blocks_that_say_nothing_are_ignored() -> None:
    stack, peer, handle = flying()
    peer.send("A", ack=2 * MSS)
    nonsense = [
        (0, MSS),  # D-SACK, below the ACK
        (2 * MSS, 3 * MSS),  # begins at the ACK: contradicts it
        (5 * MSS, 5 * MSS),  # empty
        (6 * MSS, 5 * MSS),  # backwards
        (9 * MSS, 11 * MSS),  # beyond what was sent
        (2**31, 2**31 + MSS),
    ]
    for block in nonsense:
        peer.send("A", ack=2 * MSS, sack=[block])
    assert stack.tcb(handle).sacked_bytes == stack.shard.tcp.recs_used == 0
    assert stack.counter("tcp_dupacks") == 0


def test_blocks_without_negotiation_are_ignored() -> None:
    stack, peer, handle = opened()
    stack.stream(handle, 0, 10 * MSS)
    peer.take_all()
    peer.send("A", ack=0, sack=[(MSS, 6 * MSS)])
    peer.expect_nothing()
    assert stack.shard.tcp.recs_used == 0


def test_no_record_left_repairs_all_the_same() -> None:
    stack, peer, handle = flying()
    stack.shard.tcp.rec_free, stack.shard.tcp.recovery_free = 2**32 - 1, 2**32 - 1
    for _ in range(3):
        sack(peer, 0, (1, 4))  # nothing can be noted
    stack.sleep(ms=300)
    lost = numbers(peer)
    at_ack = 0
    for _ in range(30):
        for number in lost:
            at_ack = max(at_ack, number + 1) if number <= at_ack else at_ack
        if at_ack >= 10:
            break
        sack(peer, at_ack)
        stack.sleep(ms=10)
        lost = numbers(peer)
    assert at_ack >= 10, "an ACK inside what was sent again shows the next to be missing"
    sack(peer, 10)
    assert stack.info(handle).unacked_bytes == 0
    assert stack.counter("tcp_rto") == 1


# ---- D-SACK: RFC 2883 -------------------------------------------------------------------


def test_duplicate_is_reported_first_and_once() -> None:
    stack, peer, _handle = opened(sack_ok=True)
    peer.send("PA", stream(0, 500))
    stack.sleep(ms=50)
    peer.expect("A", ack=500)
    peer.send("PA", stream(0, 500), seq=0)
    peer.expect("A", ack=500, sack=((0, 500),))
    peer.send("PA", stream(500, 100))
    stack.sleep(ms=50)
    peer.expect("A", ack=600, sack=())
    assert stack.counter("tcp_dsack_out") == 1


def test_part_that_is_old_is_reported() -> None:
    stack, peer, _handle = opened(sack_ok=True)
    peer.send("PA", stream(0, 500))
    stack.sleep(ms=50)
    peer.take()
    peer.send("PA", stream(300, 500), seq=300)
    stack.sleep(ms=50)
    peer.expect("A", ack=800, sack=((300, 500),))


def test_duplicate_out_of_order_is_reported_before_the_block_that_holds_it() -> None:
    # RFC 2883 4.1.3
    _stack, peer, _handle = opened(sack_ok=True)
    peer.send("PA", stream(500, 500), seq=500)
    peer.send("PA", stream(1500, 500), seq=1500)
    peer.take_all()
    peer.send("PA", stream(500, 500), seq=500)
    peer.expect("A", ack=0, sack=((500, 1000), (500, 1000), (1500, 2000)))


def test_duplicate_is_not_reported_without_sack() -> None:
    stack, peer, _handle = opened()
    peer.send("PA", stream(0, 500))
    stack.sleep(ms=50)
    peer.take()
    peer.send("PA", stream(0, 500), seq=0)
    peer.expect("A", ack=500, sack=())


def test_dsack_of_two_flows_goes_to_its_own() -> None:
    stack = Stack(listen=80)
    peers = [Peer(stack, sport=50000 + i, sack_ok=True) for i in range(2)]
    for peer in peers:
        peer.connect()
    for peer in peers:
        peer.send("PA", stream(0, 100))
    stack.sleep(ms=50)
    stack.sent.clear()
    for peer in peers:
        peer.put("PA", stream(0, 100), seq=0)
    stack.poll()
    frames = {int.from_bytes(frame[36:38], "big"): frame for frame in stack.sent}
    found = [peer.parse(frames[peer.sport]).sack for peer in peers]
    assert found == [(), ((0, 100),)]  # the later one took the place
