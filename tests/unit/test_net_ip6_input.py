"""net/ip6_input: whose IPv6 packet it is, and TCP and UDP on it from end to end."""

from __future__ import annotations

import random

import pytest
from scapy.layers.inet import TCP, UDP
from scapy.layers.inet6 import (
    HBHOptUnknown,
    ICMPv6ParamProblem,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrRouting,
)
from scapy.packet import Packet, Raw

from tests.unit.peer import EADDRINUSE, EINVAL, ENETUNREACH, LOCAL, REMOTE_MAC, Peer, Stack
from tests.unit.san import ffi, lib
from tests.unit.six import LOCAL6, REMOTE6, colons, raw6, sent, stack6, to_us


def test_handshake_data_and_close_over_ipv6() -> None:
    stack = stack6(listen=80)
    stack.inject(to_us(TCP(sport=999, dport=80, seq=100, flags="S", options=[("MSS", 1440)])))
    answer = sent(stack)
    assert (answer[IPv6].src, answer[IPv6].dst) == (LOCAL6, REMOTE6)
    assert answer.dst == colons(REMOTE_MAC)
    assert answer[TCP].flags == "SA" and dict(answer[TCP].options)["MSS"] == 1440
    seq = answer[TCP].seq + 1
    stack.inject(to_us(TCP(sport=999, dport=80, seq=101, ack=seq, flags="A", window=8000)))
    knock = stack.expect("KNOCK", family=6)
    stack.accept(knock.handle)
    data = to_us(TCP(sport=999, dport=80, seq=101, ack=seq, flags="PA", window=8000) / b"hello")
    stack.inject(data)
    event = stack.expect("RECV", data=b"hello")
    assert stack.done(event) == 0
    stack.sent.clear()
    stack.sendv(knock.handle, b"world")
    reply = sent(stack)
    assert bytes(reply[TCP].payload) == b"world" and reply[TCP].ack == 106
    assert reply[IPv6].fl == answer[IPv6].fl, "one label a flow"
    stack.close(knock.handle)
    assert sent(stack)[TCP].flags.F


def test_full_segment_is_the_mtu_less_60() -> None:
    stack = stack6(listen=80)
    stack.inject(to_us(TCP(sport=9, dport=80, seq=0, flags="S", options=[("MSS", 9000)])))
    seq = sent(stack)[TCP].seq + 1
    stack.inject(to_us(TCP(sport=9, dport=80, seq=1, ack=seq, flags="A", window=60000)))
    handle = stack.expect("KNOCK").handle
    stack.accept(handle)
    stack.sendv(handle, bytes(3000))
    packet = sent(stack)
    assert len(packet) == 14 + 1500 and len(packet[TCP].payload) == 1440


def test_closed_port_is_reset() -> None:
    stack = stack6()
    stack.inject(to_us(TCP(sport=9, dport=81, seq=5, flags="S")))
    reset = sent(stack)
    assert reset[TCP].flags == "RA" and reset[TCP].ack == 6 and reset[IPv6].dst == REMOTE6


def test_connect_to_ipv6_chooses_address_and_port() -> None:
    stack = stack6()
    call = stack.queue("CONNECT", family=6, peer_port=80, cookie=5)
    ffi.memmove(call.peer, raw6(REMOTE6), 16)
    stack.poll()
    assert call.result == 0
    syn = sent(stack)
    assert (syn[IPv6].src, syn[IPv6].dst, syn[TCP].dport) == (LOCAL6, REMOTE6, 80)
    answer = TCP(sport=80, dport=syn[TCP].sport, seq=1, ack=syn[TCP].seq + 1, flags="SA")
    stack.inject(to_us(answer))
    stack.expect("CONNECTED", status=0, cookie=5)


@pytest.mark.parametrize(("peer", "error"), [("::", EINVAL), ("ff02::1", ENETUNREACH)])
def test_connect_to_nobody_or_a_group_is_refused(peer: str, error: int) -> None:
    stack = stack6()
    call = stack.queue("CONNECT", family=6, peer_port=80)
    ffi.memmove(call.peer, raw6(peer), 16)
    stack.poll()
    assert call.result == -error


def test_listener_of_both_families_takes_both() -> None:
    stack = stack6()
    assert lib.ix_shard_listen(stack.shard, ffi.NULL, 0, 80, 77, 0) == 0
    for family in (4, 6, 0):
        assert lib.ix_shard_listen(stack.shard, ffi.NULL, family, 80, 1, 0) == -EADDRINUSE
    assert lib.ix_shard_listen(stack.shard, raw6(LOCAL6), 0, 81, 1, 0) == -EINVAL
    stack.inject(to_us(TCP(sport=999, dport=80, flags="S")))
    assert sent(stack)[TCP].flags == "SA"
    peer = Peer(stack)
    peer.connect()


def test_listener_of_one_family_leaves_the_other() -> None:
    stack = stack6(listen=80)
    peer = Peer(stack)
    peer.send("S")
    assert "R" in peer.expect("RA").flags
    assert stack.listen(80) == 0


def test_udp_over_ipv6_both_ways() -> None:
    stack = stack6()
    handle = ffi.new("uint64_t *")
    assert lib.ix_shard_udp_bind(stack.shard, ffi.NULL, 0, 53, 9, handle) == 0
    stack.inject(to_us(UDP(sport=1000, dport=53) / b"query"))
    event = stack.expect("UDP_RECV", data=b"query", family=6, cookie=9)
    assert stack.done(event) == 0
    call = stack.queue("UDP_SENDV", handle=handle[0], family=6, peer_port=1000, bytes=6)
    call.addr = stack.put_arena(b"answer")
    ffi.memmove(call.peer, raw6(REMOTE6), 16)
    stack.poll()
    assert call.result == 6
    packet = sent(stack)
    assert (packet[IPv6].src, packet[UDP].dport) == (LOCAL6, 1000)
    assert bytes(packet[UDP].payload) == b"answer" and packet[UDP].chksum


def test_udp_without_checksum_is_dropped() -> None:
    stack = stack6()
    lib.ix_shard_udp_bind(stack.shard, ffi.NULL, 6, 53, 9, ffi.new("uint64_t *"))
    stack.inject(to_us(UDP(sport=1000, dport=53, chksum=0) / b"query"))
    assert not stack.events and stack.counter("drop_udp_short") == 1


def test_extension_headers_are_stepped_over() -> None:
    stack = stack6()
    lib.ix_shard_udp_bind(stack.shard, ffi.NULL, 6, 53, 9, ffi.new("uint64_t *"))
    stack.inject(to_us(IPv6ExtHdrDestOpt() / UDP(sport=1, dport=53) / b"q"))
    stack.expect("UDP_RECV", data=b"q")
    assert stack.counter("ip6_extensions") == 1


def fragments(payload: bytes, size: int, nh: int = 17) -> list[bytes]:
    """Frames with the parts of what an IPv6 packet carries."""
    return [
        to_us(
            IPv6ExtHdrFragment(nh=nh, offset=at // 8, m=int(at + size < len(payload)), id=7)
            / Raw(payload[at : at + size])
        )
        for at in range(0, len(payload), size)
    ]


def udp_payload(data: bytes) -> bytes:
    """A datagram's bytes, its checksum right."""
    return bytes(IPv6(bytes(IPv6(src=REMOTE6, dst=LOCAL6) / UDP(sport=1, dport=53) / data)).payload)


def test_datagram_is_put_together_from_fragments_in_any_order() -> None:
    stack = stack6()
    lib.ix_shard_udp_bind(stack.shard, ffi.NULL, 6, 53, 9, ffi.new("uint64_t *"))
    data = random.Random(5).randbytes(5000)
    stack.inject(*reversed(fragments(udp_payload(data), 1200)))
    got, more = b"", True
    while more:
        event = stack.expect("UDP_RECV")
        got += event.data
        more = bool(event.family & lib.IX_UDP_MORE)
        assert event.family & 0x7F == 6
        assert stack.done(event) == 0
    assert got == data and stack.counter("ip_reassembled") == 1


def test_fragments_that_overlap_spoil_their_datagram() -> None:
    stack = stack6()
    lib.ix_shard_udp_bind(stack.shard, ffi.NULL, 6, 53, 9, ffi.new("uint64_t *"))
    first, last = fragments(udp_payload(bytes(1600)), 1000)
    overlap = to_us(IPv6ExtHdrFragment(nh=17, offset=50, m=1, id=7) / Raw(bytes(800)))
    stack.inject(first, overlap, last)
    stack.expect_no_event()
    assert stack.counter("drop_reass_overlap") == 1


def test_fragment_of_tcp_is_counted() -> None:
    stack = stack6()
    stack.inject(fragments(bytes(64), 32, nh=6)[0])
    assert stack.counter("drop_ip_frag") == 1 and not stack.sent


def test_ragged_fragment_is_answered_with_the_length_that_is_wrong() -> None:
    stack = stack6()  # RFC 8200 4.5
    stack.inject(to_us(IPv6ExtHdrFragment(nh=17, m=1) / Raw(udp_payload(bytes(5)))))
    answer = sent(stack)[ICMPv6ParamProblem]
    assert (answer.code, answer.ptr) == (0, 4) and stack.counter("drop_ip_frag") == 1


def test_fragment_beyond_the_longest_packet_is_answered_with_its_offset() -> None:
    stack = stack6()  # RFC 8200 4.5
    stack.inject(to_us(IPv6ExtHdrFragment(nh=17, offset=8191, m=0) / Raw(udp_payload(bytes(8)))))
    answer = sent(stack)[ICMPv6ParamProblem]
    assert (answer.code, answer.ptr) == (0, 42) and stack.counter("drop_ip_frag") == 1


@pytest.mark.parametrize(
    ("payload", "code", "pointer"),
    [
        (IPv6ExtHdrRouting(segleft=1, addresses=[REMOTE6]) / UDP(), 0, 42),
        (Raw(b"x" * 20), 1, 6),
        (IPv6ExtHdrDestOpt(options=[HBHOptUnknown(otype=0x9E)]) / UDP(), 2, 42),
    ],
)
def test_parameter_problem_is_answered(payload: Packet, code: int, pointer: int) -> None:
    stack = stack6()
    stack.inject(to_us(payload, **({"nh": 99} if code == 1 else {})))
    packet = sent(stack)
    assert (packet[ICMPv6ParamProblem].code, packet[ICMPv6ParamProblem].ptr) == (code, pointer)
    assert packet[IPv6].dst == REMOTE6


@pytest.mark.parametrize("src", ["::", "::1", "ff02::1", "::ffff:10.0.0.2", LOCAL6])
def test_impossible_source_is_dropped(src: str) -> None:
    stack = stack6(listen=80)
    stack.inject(to_us(TCP(dport=80, flags="S"), src=src))
    assert stack.counter("drop_ip_src") == 1 and not stack.sent


@pytest.mark.parametrize("dst", ["2001:db8::9", "ff02::1", "ff02::1:ff00:1"])
def test_packet_to_others_is_dropped(dst: str) -> None:
    stack = stack6(listen=80)
    stack.inject(to_us(TCP(dport=80, flags="S"), dst=dst))
    assert stack.counter("drop_ip_dst") == 1 and not stack.sent


def test_ipv4_address_is_no_ipv6_address() -> None:
    stack = Stack(listen=80)
    stack.inject(to_us(TCP(dport=80, flags="S"), dst=f"::{LOCAL}"))
    assert stack.counter("drop_ip_dst") == 1
