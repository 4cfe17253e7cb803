"""net/icmp6: echo, errors that come in, errors that go out."""

from __future__ import annotations

import pytest
from scapy.layers.inet import TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6PacketTooBig,
    ICMPv6ParamProblem,
    ICMPv6TimeExceeded,
    IPv6,
)
from scapy.packet import Packet

from tests.unit.peer import ECONNREFUSED, EHOSTUNREACH, Stack
from tests.unit.san import ffi
from tests.unit.six import LOCAL6, REMOTE6, raw6, sent, stack6, to_us


def connecting() -> tuple[Stack, Packet]:
    stack = stack6()
    call = stack.queue("CONNECT", family=6, peer_port=80, cookie=5)
    ffi.memmove(call.peer, raw6(REMOTE6), 16)
    stack.poll()
    return stack, sent(stack)[IPv6]


def established() -> tuple[Stack, int]:
    """A connection with a full segment outstanding; its handle."""
    stack = stack6(listen=80)
    stack.inject(to_us(TCP(sport=9, dport=80, seq=0, flags="S", options=[("MSS", 1440)])))
    seq = sent(stack)[TCP].seq + 1
    stack.inject(to_us(TCP(sport=9, dport=80, seq=1, ack=seq, flags="A", window=60000)))
    handle = stack.expect("KNOCK").handle
    stack.accept(handle)
    stack.sendv(handle, bytes(1440))
    return stack, handle


def test_echo_is_answered_with_an_own_address_only() -> None:
    for own in (0, 1):
        stack = stack6(own_address=own)
        stack.inject(to_us(ICMPv6EchoRequest(id=3, seq=4, data=b"ping")))
        assert len(stack.sent) == own
    reply = sent(stack)[ICMPv6EchoReply]
    assert (reply.id, reply.seq, reply.data) == (3, 4, b"ping")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ICMPv6DestUnreach(code=4), -ECONNREFUSED),
        (ICMPv6DestUnreach(code=0), -EHOSTUNREACH),
        (ICMPv6DestUnreach(code=3), -EHOSTUNREACH),
        (ICMPv6ParamProblem(code=1), -ECONNREFUSED),
    ],
)
def test_error_about_a_syn_ends_it(error: Packet, status: int) -> None:
    stack, syn = connecting()
    stack.inject(to_us(error / syn, src="2001:db8::fe"))
    stack.expect("CONNECTED", status=status)


def test_time_exceeded_about_a_syn_is_soft() -> None:
    stack, syn = connecting()
    stack.inject(to_us(ICMPv6TimeExceeded() / syn))
    stack.expect_no_event()
    assert stack.counter("icmp_errors_in") == 1


def test_too_big_makes_segments_smaller_and_sends_again() -> None:
    stack, _ = established()
    packet = sent(stack)[IPv6]
    stack.inject(to_us(ICMPv6PacketTooBig(mtu=1300) / packet, src="2001:db8::fe"))
    assert stack.counter("icmp_errors_in") == 1
    stack.poll()
    again = sent(stack)
    assert len(again) == 14 + 1300 and again[TCP].seq == packet[TCP].seq


def test_too_big_below_the_least_mtu_is_not_believed() -> None:
    stack, _ = established()
    packet = sent(stack)[IPv6]
    stack.inject(to_us(ICMPv6PacketTooBig(mtu=1279) / packet))
    assert stack.counter("drop_icmp_bad") == 1 and not stack.sent


def test_error_about_anothers_packet_is_dropped() -> None:
    stack, syn = connecting()
    quoted = IPv6(src="2001:db8::77", dst=REMOTE6) / syn[TCP]
    stack.inject(to_us(ICMPv6DestUnreach(code=4) / quoted))
    stack.expect_no_event()
    assert stack.counter("drop_icmp_bad") == 1


def test_datagram_to_a_closed_port_is_answered() -> None:
    stack = stack6()
    stack.inject(to_us(UDP(sport=1, dport=2) / bytes(1400)))
    packet = sent(stack)
    assert packet[ICMPv6DestUnreach].code == 4
    assert len(packet[IPv6]) == 1280, "as much as fits into the least MTU"
    assert packet[IPv6].src == LOCAL6


def test_errors_are_limited_and_none_answers_an_error() -> None:
    stack = stack6()
    for _ in range(100):
        stack.inject(to_us(UDP(sport=1, dport=2)))
    assert stack.counter("icmp_errors_out") <= 50 < 50 + stack.counter("icmp_rate_limited")
    stack.sent.clear()
    stack.poll(ms=1000)
    stack.inject(to_us(ICMPv6DestUnreach(code=4) / IPv6(src=LOCAL6, dst=REMOTE6) / UDP() / b"x"))
    assert not stack.sent


def test_bad_checksum_is_counted() -> None:
    stack = stack6(own_address=1)
    stack.inject(to_us(ICMPv6EchoRequest(cksum=1)))
    assert stack.counter("drop_icmp_bad") == 1
