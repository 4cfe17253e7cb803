"""net/icmp4: echo for own addresses, errors in both directions."""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.packet import Raw

from tests.unit.packets import words_sum
from tests.unit.peer import (
    LOCAL,
    REMOTE,
    ROUTER,
    Packet,
    Peer,
    Stack,
    ethernet,
    icmp_error,
    icmp_message,
    ipv4,
    opened,
    udp_datagram,
)


def echo_request(size: int = 56) -> bytes:
    return bytes(IP(src=REMOTE, dst=LOCAL) / ICMP(type=8, id=7, seq=9) / Raw(bytes(range(size))))


def icmp(message: bytes, src: str = ROUTER) -> bytes:
    return ethernet(ipv4(message, 1, src=src))


# ---- echo -----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 55, 56, 255])
def test_echo_to_an_own_address_is_answered(size: int) -> None:
    stack = Stack(own_address=1)
    stack.inject(ethernet(echo_request(size)))
    answer = Packet.parse(stack.sent.popleft())
    assert (answer.proto, answer.src, answer.dst) == (1, LOCAL, REMOTE)
    assert answer.l4[:2] == b"\0\0"
    assert answer.l4[4:] == echo_request(size)[24:]
    assert words_sum(answer.l4) == 0xFFFF
    assert stack.counters("icmp_in", "icmp_echo_replies") == [1, 1]


def test_echo_to_a_shared_address_is_the_kernels() -> None:
    stack = Stack()
    stack.inject(ethernet(echo_request()))
    assert not stack.sent


def test_echo_longer_than_the_mtu_is_not_answered() -> None:
    stack = Stack(own_address=1, mtu=576)
    message = icmp_message(8, 0, 0, bytes(576 - 28))
    stack.inject(icmp(message))
    assert len(stack.sent) == 1
    stack.inject(icmp(message + b"\0\0"))
    assert len(stack.sent) == 1


# ---- errors in ------------------------------------------------------------------------


def test_bad_checksum_and_truncation_are_counted() -> None:
    stack = Stack(own_address=1)
    message = bytearray(icmp_message(8, 0, 0, b"data"))
    message[9] ^= 1
    stack.inject(icmp(bytes(message)))
    stack.inject(icmp(b"\x08\0\xf7\xff"))
    assert not stack.sent
    assert stack.counters("drop_icmp_bad", "icmp_in") == [2, 0]


@pytest.mark.parametrize("kind", [0, 4, 5, 9, 13, 15, 17, 40, 255])
def test_other_types_are_of_no_use(kind: int) -> None:
    # Redirects and source quench among them: neither is believed (RFC 6633, RFC 5927 section 6).
    stack = Stack(own_address=1)
    stack.inject(icmp(icmp_message(kind, 0, 0, bytes(28))))
    assert not stack.sent
    assert stack.counter("drop_icmp_unknown") == 1


@pytest.mark.parametrize("size", range(28))
def test_quote_cut_short_is_counted(size: int) -> None:
    stack, peer, handle = opened()
    stack.sendv(handle, b"data")
    frame = peer.take().frame
    stack.inject(icmp(icmp_message(3, 4, 1000, frame[14 : 14 + size])))
    assert stack.counters("drop_icmp_bad", "icmp_errors_in") == [1, 0]


@pytest.mark.parametrize("at, value", [(0, 0x65), (0, 0x44), (0, 0x4F), (9, 1), (15, 99)])
def test_quote_that_is_not_ours_is_counted(at: int, value: int) -> None:
    # Another version, header lengths, another protocol, another source.
    stack, peer, handle = opened()
    stack.sendv(handle, b"data")
    quote = bytearray(peer.take().frame[14:42])
    quote[at] = value
    stack.inject(icmp(icmp_message(3, 4, 1000, bytes(quote))))
    assert stack.counters("drop_icmp_bad", "icmp_errors_in") == [1, 0]


def test_quote_with_ip_options_is_understood() -> None:
    stack, peer, handle = opened()
    stack.sendv(handle, b"data")
    sent = peer.take().frame
    quote = b"\x46" + sent[15:34] + b"\x01" * 4 + sent[34:42]
    stack.inject(icmp(icmp_message(3, 1, 0, quote)))
    assert stack.counter("icmp_errors_in") == 1


def test_quote_of_an_unknown_flow_is_stale() -> None:
    stack = Stack()
    quote = bytes(IP(src=LOCAL, dst=REMOTE) / TCP(sport=80, dport=5))
    stack.inject(icmp(icmp_message(3, 1, 0, quote[:28])))
    assert stack.counter("drop_icmp_stale") == 1


def test_error_about_udp_changes_nothing() -> None:
    stack = Stack()
    quote = bytes(IP(src=LOCAL, dst=REMOTE) / UDP(sport=80, dport=5))
    stack.inject(icmp(icmp_message(3, 3, 0, quote[:28])))
    stack.expect_no_event()
    assert not stack.sent


# ---- errors out -----------------------------------------------------------------------


def test_port_unreachable_quotes_header_and_eight_bytes() -> None:
    stack = Stack()
    datagram = ipv4(udp_datagram((9, 4000), b"payload"), 17)
    stack.inject(ethernet(datagram))
    answer = Packet.parse(stack.sent.popleft())
    assert (answer.src, answer.dst) == (LOCAL, REMOTE)
    assert answer.l4[:2] == b"\x03\x03" and answer.l4[8:] == datagram[:28]
    assert words_sum(answer.l4) == 0xFFFF
    assert stack.counter("icmp_errors_out") == 1


def test_unreachable_answers_no_broadcast_frame() -> None:
    stack = Stack()
    stack.inject(ethernet(ipv4(udp_datagram((9, 4000), b"x"), 17), dst=b"\xff" * 6))
    assert not stack.sent


def test_errors_are_limited() -> None:
    # 50 at once, 1,000 a second
    stack = Stack()
    frame = ethernet(ipv4(udp_datagram((9, 4000), b"x"), 17))

    def burst(n: int) -> int:
        before = len(stack.sent)
        for _ in range(n // 50):
            stack.put(*[frame] * 50)
            stack.settle()
        return len(stack.sent) - before

    assert burst(200) == 50
    stack.poll(ms=10)
    assert burst(50) == 10
    stack.poll(ms=1000)
    assert burst(200) == 50
    assert stack.counter("icmp_rate_limited") == 150 + 40 + 150


def test_error_about_an_error_is_never_sent() -> None:
    stack = Stack()
    peer = Peer(stack)
    stack.inject(icmp(icmp_error(peer.segment("A"), kind=3, code=3)))
    assert not stack.sent
