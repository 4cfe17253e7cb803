"""tcp/pmtu: ICMP's word on the path's MTU (RFC 1191, RFC 5927), and black holes (RFC 4821)."""

from __future__ import annotations

import pytest

from tests.unit.peer import ROUTER, Peer, Stack, ethernet, icmp_error, ipv4, opened, stream
from tests.unit.test_tcp_input import in_state


def too_long(stack: Stack, quoted: bytes, mtu: int) -> None:
    """ICMP's fragmentation needed about a frame that the shard sent."""
    error = icmp_error(quoted, code=4, rest=mtu)
    stack.inject(ethernet(ipv4(error, 1, src=ROUTER)))


def test_syn_sent_error_changes_nothing() -> None:
    # No SYN is too long; the segment size would be the attacker's choice.
    stack = Stack()
    call = stack.connect_call(80)
    too_long(stack, stack.sent.popleft(), 600)
    stack.expect_no_event()
    assert stack.tcb_state(int(call.handle)) == "SYN_SENT"
    assert stack.counters("drop_icmp_stale", "pmtu_lowered") == [1, 0]


def test_segments_in_flight_are_cut_anew_and_the_window_stays() -> None:
    stack, peer, handle = opened()
    stack.stream(handle, 0, 4000)
    sent = peer.take_all()
    cwnd = stack.info(handle).cwnd_bytes
    too_long(stack, sent[0].frame, 1000)
    assert stack.info(handle).mss == 960
    peer.expect_stream((0, 960), (960, 1920), (1920, 2880), (2880, 3840), (3840, 4000))
    assert stack.info(handle).cwnd_bytes == cwnd
    peer.send("A")
    stack.expect("SENT", bytes=4000)


def test_what_duplicate_acks_made_believe_is_lost_is_not_counted_as_arrived() -> None:
    """Without SACK each stands for a segment that arrived; then a router says that none did."""
    stack, peer, handle = opened()
    stack.stream(handle, 0, 5 * 1460)
    first = peer.take_all()[0].frame
    for _ in range(2):
        peer.send("A", ack=0)
    tcb = stack.tcb(handle)
    assert tcb.sacked_bytes == 2 * 1460
    too_long(stack, first, 1000)
    outstanding = tcb.snd_max - tcb.snd_una
    assert tcb.sacked_bytes + tcb.lost_bytes <= outstanding == 5 * 1460
    stack.sent.clear()
    peer.send("A")
    stack.expect("SENT", bytes=5 * 1460)


def test_errors_about_the_other_segments_send_nothing_more() -> None:
    stack, peer, handle = opened()
    stack.stream(handle, 0, 4000)
    sent = peer.take_all()
    for segment in sent[:2]:
        too_long(stack, segment.frame, 1000)
    assert len(peer.take_all()) == 5
    assert stack.counters("pmtu_lowered", "icmp_errors_in", "drop_icmp_stale") == [1, 1, 1]


def test_every_connection_to_that_host_follows() -> None:
    stack, peer, handle = opened()
    other = Peer(stack, sport=50001)
    other.connect()
    stack.stream(handle, 0, 1460)
    too_long(stack, peer.take().frame, 1000)
    stack.sent.clear()
    stack.stream(other.handle, 0, 2000)
    other.expect_stream((0, 960), (960, 1920), (1920, 2000))
    later = Peer(stack, sport=50002)
    assert later.knock().mss == 1460  # what we take ourselves has nothing to do with it
    assert stack.accept(later.handle) == 0
    stack.stream(later.handle, 0, 1000)
    later.expect_stream((0, 960), (960, 1000))


def test_segments_grow_again_after_ten_minutes() -> None:
    # RFC 1191 6.3
    stack, peer, handle = opened()
    stack.stream(handle, 0, 1460)
    too_long(stack, peer.take().frame, 1000)
    peer.take_all()
    peer.send("A")
    stack.poll(ms=600_001)
    stack.stream(handle, 1460, 2000)
    peer.expect_stream((1460, 2920), (2920, 3460))


@pytest.mark.parametrize("mtu, mss", [(68, 536), (576, 536), (1499, 1459)])
def test_what_is_said_has_a_lower_bound(mtu: int, mss: int) -> None:
    stack, peer, handle = opened()
    stack.stream(handle, 0, 1460)
    too_long(stack, peer.take().frame, mtu)
    assert stack.info(handle).mss == mss


@pytest.mark.parametrize(
    "size, mtu, mss", [(1460, 1500, 1460), (1460, 1600, 1460), (500, 900, 1460)]
)
def test_packet_that_fits_was_never_too_long(size: int, mtu: int, mss: int) -> None:
    # RFC 5927 7.2: the error contradicts itself.
    stack, peer, handle = opened()
    stack.stream(handle, 0, size)
    too_long(stack, peer.take().frame, mtu)
    assert stack.info(handle).mss == mss
    assert stack.counter("drop_icmp_stale") == 1
    peer.expect_nothing()


@pytest.mark.parametrize("size, mss", [(1460, 1452), (1452, 966), (960, 536), (536, 536)])
def test_router_that_does_not_say_its_mtu_has_the_next_plateau(size: int, mss: int) -> None:
    # RFC 1191 sections 5 and 7
    stack, peer, handle = opened()
    stack.stream(handle, 0, size)
    too_long(stack, peer.take().frame, 0)
    assert stack.info(handle).mss == (mss if size > 536 else 1460)


def test_error_about_acknowledged_data_is_stale() -> None:
    stack, peer, handle = opened()
    stack.stream(handle, 0, 1460)
    sent = peer.take().frame
    peer.send("A")
    too_long(stack, sent, 1000)
    assert stack.counter("drop_icmp_stale") == 1
    assert stack.info(handle).mss == 1460


def test_retransmission_in_recovery_is_cut_anew_too() -> None:
    stack, peer, handle = opened(sack_ok=True)
    stack.stream(handle, 0, 8 * 1460)
    sent = peer.take_all()
    peer.rcv_nxt = 0
    for i in (2, 3, 4):
        peer.send("A", sack=[(1460, i * 1460)])
    peer.take_all()
    peer.rcv_nxt = 0
    too_long(stack, sent[0].frame, 1000)
    resent = peer.take_all()
    assert resent[0].seq == 0 and len(resent[0].payload) == 960
    assert resent[0].payload == stream(0, 960)


def test_datagram_longer_than_the_path_is_refused() -> None:
    stack, peer, handle = opened()
    stack.stream(handle, 0, 1460)
    too_long(stack, peer.take().frame, 1000)
    from tests.unit.san import ffi, lib

    udp = ffi.new("uint64_t *")
    assert lib.ix_shard_udp_bind(stack.shard, ffi.NULL, 4, 53, 1, udp) == 0
    addr = stack.put_arena(bytes(1000))
    fields = {"handle": udp[0], "addr": addr, "family": 4, "peer": peer.ip, "peer_port": 9}
    assert stack.call("UDP_SENDV", bytes=973, **fields) == -90
    assert stack.call("UDP_SENDV", bytes=972, **fields) == 972


# ---- black holes ----------------------------------------------------------------------


def lose(stack: Stack, peer: Peer, timeouts: int) -> None:
    """Nothing arrives any more, for so many timeouts."""
    before = stack.counter("tcp_rto")
    while stack.counter("tcp_rto") < before + timeouts:
        stack.now_ns = max(stack.now_ns + 1000, stack.deadline)
        stack.poll()
    stack.settle()


def test_silence_about_long_segments_makes_them_shorter_step_by_step() -> None:
    stack, peer, handle = opened()
    stack.stream(handle, 0, 3000)
    lose(stack, peer, 2)
    assert stack.info(handle).mss == 1460
    for mss in (1024, 1024, 1024, 536, 536):
        stack.sent.clear()
        lose(stack, peer, 1)
        assert stack.info(handle).mss == mss
        assert len(peer.take().payload) == mss
    assert stack.counter("pmtu_black_holes") == 2
    peer.rcv_nxt = 536
    peer.send("A")
    stack.expect("SENT", bytes=536)
    assert max(len(s.payload) for s in peer.take_all()) <= 536


def test_silence_about_a_segment_below_the_first_guess_makes_it_shorter_too() -> None:
    # The path may be narrower than the guess that most paths carry.
    stack, peer, handle = opened()
    stack.stream(handle, 0, 903)
    lose(stack, peer, 5)
    assert stack.info(handle).mss == 1460
    stack.sent.clear()
    lose(stack, peer, 1)
    assert stack.info(handle).mss == 536
    assert [len(s.payload) for s in peer.take_all()] == [536, 367]


def test_silence_about_short_segments_means_nothing() -> None:
    stack, peer, handle = opened()
    stack.stream(handle, 0, 536)
    lose(stack, peer, 7)
    assert stack.info(handle).mss == 1460
    assert stack.counter("pmtu_black_holes") == 0


def test_closed_window_is_no_black_hole() -> None:
    stack, peer, handle = opened()
    stack.stream(handle, 0, 3000)
    peer.rcv_nxt = 0
    peer.send("A", window=0)
    lose(stack, peer, 5)
    assert stack.info(handle).mss == 1460


# ---- MSS clamping ---------------------------------------------------------------------


def test_mss_max_clamps_both_directions() -> None:
    stack = Stack(listen=80, mss_max=1000)
    peer = Peer(stack)
    assert peer.knock().mss == 1000
    assert stack.accept(peer.handle) == 0
    stack.stream(peer.handle, 0, 2000)
    peer.expect_stream((0, 1000), (1000, 2000))


# ---- soft errors: RFC 1122 4.2.3.9 ----------------------------------------------------


@pytest.mark.parametrize("code, status", [(1, -113), (3, -111)])
def test_unreachable_is_the_reason_given_when_the_connection_times_out(
    code: int, status: int
) -> None:
    stack, peer = in_state("ESTABLISHED")
    stack.option(peer.handle, "USER_TIMEOUT_NS", 3_000_000_000)
    stack.sendv(peer.handle, b"data")
    error = icmp_error(peer.expect("PA").frame, code=code)
    stack.inject(ethernet(ipv4(error, 1, src=ROUTER)))
    assert peer.state == "ESTABLISHED"
    stack.sleep(ms=4000)
    stack.expect("DEAD", status=status)


def test_unreachable_is_forgotten_when_the_peer_is_heard_of() -> None:
    stack, peer = in_state("ESTABLISHED")
    stack.option(peer.handle, "USER_TIMEOUT_NS", 3_000_000_000)
    stack.sendv(peer.handle, b"data")
    error = icmp_error(peer.expect("PA").frame, code=1)
    stack.inject(ethernet(ipv4(error, 1, src=ROUTER)))
    peer.rcv_nxt = 2
    peer.send("A")
    stack.expect("SENT", bytes=2)
    stack.sleep(ms=9000)
    stack.expect("DEAD", status=-110)
