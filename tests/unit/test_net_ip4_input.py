"""net/ip4_input: what Ethernet and IPv4 let through, and what they count (RFC 1122 3.2.1)."""

from __future__ import annotations

import pytest
from scapy.layers.inet import IP, TCP, UDP, IPOption, fragment
from scapy.packet import Raw

from tests.unit.packets import exact, ipv4_csum
from tests.unit.peer import COUNTERS, LOCAL, LOCAL_MAC, REMOTE, Peer, Stack, ethernet, ipv4, opened
from tests.unit.san import ffi, lib


def packet(**fields: object) -> bytes:
    """A UDP datagram to the shard's endpoint, as scapy makes it."""
    return bytes(IP(**({"src": REMOTE, "dst": LOCAL} | fields)) / UDP(sport=9, dport=7) / b"data")


def drops(stack: Stack) -> dict[str, int]:
    return {name: n for name in COUNTERS if name.startswith("drop_") and (n := stack.counter(name))}


def endpoint() -> Stack:
    stack = Stack()
    handle = ffi.new("uint64_t *")
    assert lib.ix_shard_udp_bind(stack.shard, ffi.NULL, 4, 7, 1, handle) == 0
    return stack


def refix(data: bytes, at: int, value: int) -> bytes:
    """An IP packet with one header byte changed and the checksum made right."""
    out = bytearray(data)
    out[at] = value
    size = (out[0] & 15) * 4
    return ipv4_csum(bytes(out[:20])) + bytes(out[20:]) if size == 20 else bytes(out)


def test_good_packet_is_delivered() -> None:
    stack = endpoint()
    stack.inject(ethernet(packet()))
    stack.expect("UDP_RECV", data=b"data", peer=(REMOTE, 9), local=(LOCAL, 7))
    assert drops(stack) == {}


@pytest.mark.parametrize("size", [0, 1, 13])
def test_frame_shorter_than_ethernet_is_counted(size: int) -> None:
    # AF_XDP and the simulated wire bring none; whatever link comes next may.
    stack = Stack()
    data = exact(ethernet(b"")[:size])
    pkt = ffi.new("struct ix_packet *", {"data": data, "bytes": size})
    assert lib.ix_net_input(ffi.addressof(stack.shard.net), pkt) == lib.IX_VERDICT_DROP
    assert drops(stack) == {"drop_eth_short": 1}


@pytest.mark.parametrize("kind", [0x8100, 0x88CC, 0, 0xFFFF, 40])
def test_other_ethertypes_are_counted(kind: int) -> None:
    stack = Stack()
    stack.inject(ethernet(packet(), kind=kind))
    assert drops(stack) == {"drop_eth_type": 1}


def test_frame_to_another_mac_is_counted() -> None:
    stack = endpoint()
    stack.inject(ethernet(packet(), dst=bytes.fromhex("02000000aa02")))
    assert drops(stack) == {"drop_eth_dst": 1}


def test_frame_to_a_group_mac_is_taken() -> None:
    stack = endpoint()
    stack.inject(ethernet(packet(), dst=b"\xff" * 6))
    stack.expect("UDP_RECV")


@pytest.mark.parametrize("size", [14, 20, 33])
def test_truncated_header_is_counted(size: int) -> None:
    stack = Stack()
    stack.inject(ethernet(packet())[:size])
    assert drops(stack) == {"drop_ip_short": 1}


def test_total_length_beyond_the_frame_is_counted() -> None:
    stack = Stack()
    stack.inject(ethernet(refix(packet(), 3, 200)))
    assert drops(stack) == {"drop_ip_short": 1}


@pytest.mark.parametrize("first", [0x55, 0x65, 0x05])
def test_other_versions_are_counted(first: int) -> None:
    stack = Stack()
    stack.inject(ethernet(bytes([first]) + packet()[1:]))
    assert drops(stack) == {"drop_ip_version": 1}


@pytest.mark.parametrize("words", range(5))
def test_header_length_below_five_words_is_counted(words: int) -> None:
    stack = Stack()
    stack.inject(ethernet(refix(packet(), 0, 0x40 | words)))
    assert drops(stack) == {"drop_ip_header": 1}


def test_bad_checksum_is_counted() -> None:
    stack = Stack()
    data = bytearray(packet())
    data[8] ^= 1  # the TTL
    stack.inject(ethernet(bytes(data)))
    assert drops(stack) == {"drop_ip_csum": 1}


@pytest.mark.parametrize("dst", ["10.0.0.3", "10.0.0.255", "255.255.255.255", "224.0.0.1"])
def test_other_destinations_are_counted(dst: str) -> None:
    stack = endpoint()
    stack.inject(ethernet(packet(dst=dst)))
    assert drops(stack) == {"drop_ip_dst": 1}


@pytest.mark.parametrize(
    "src",
    ["0.0.0.0", "0.1.2.3", "127.0.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", LOCAL],
)
def test_impossible_sources_are_counted(src: str) -> None:
    stack = endpoint()
    stack.inject(ethernet(packet(src=src)))
    stack.expect_no_event()
    assert drops(stack) == {"drop_ip_src": 1}
    assert not stack.sent


def test_land_attack_opens_nothing() -> None:
    stack = Stack(listen=80)
    syn = bytes(IP(src=LOCAL, dst=LOCAL) / TCP(sport=80, dport=80, flags="S"))
    stack.inject(ethernet(syn, src=LOCAL_MAC))
    assert not stack.sent
    assert stack.stats.flows == 0
    assert drops(stack) == {"drop_ip_src": 1}


def test_source_of_another_local_address_is_a_lie_too() -> None:
    stack = endpoint()
    stack.ctl("ADDR_ADD", ip="10.0.0.9")
    stack.inject(ethernet(packet(src="10.0.0.9")))
    stack.expect_no_event()
    assert drops(stack) == {"drop_ip_src": 1}


def test_fragments_of_a_datagram_are_put_together_and_of_a_segment_counted() -> None:
    stack = endpoint()
    for l4, dropped in ((UDP(sport=9, dport=7), 0), (TCP(sport=9, dport=7), 3)):
        parts = fragment(IP(src=REMOTE, dst=LOCAL) / l4 / Raw(bytes(2000)), fragsize=1000)
        for part in parts:
            stack.inject(ethernet(bytes(part)))
        assert stack.counters("ip_reassembled", "drop_ip_frag") == [1, dropped]


@pytest.mark.parametrize("proto", [0, 2, 47, 50, 132, 255])
def test_other_protocols_are_unreachable(proto: int) -> None:
    stack = Stack()
    stack.inject(ethernet(ipv4(b"payload!", proto)))
    assert drops(stack) == {"drop_ip_proto": 1}
    answer = stack.sent.popleft()
    assert answer[34:36] == b"\x03\x02"
    assert answer[42:70] == ipv4(b"payload!", proto)


@pytest.mark.parametrize("words", range(1, 11))
def test_options_are_skipped(words: int) -> None:
    stack = endpoint()
    stack.inject(ethernet(packet(options=[IPOption(b"\x01" * (4 * words))])))
    stack.expect("UDP_RECV", data=b"data")


def test_padding_is_cut_off() -> None:
    stack, peer, _handle = opened()
    peer.send("PA", b"x")  # 55 bytes, padded to 60
    stack.expect("RECV", data=b"x")


def test_every_length_of_a_truncated_segment_is_survived() -> None:
    stack, peer, _handle = opened()
    frame = peer.segment("PA", b"data")
    for size in range(14, 58):  # what follows is padding
        stack.inject(frame[:size])
    stack.expect_no_event()
    assert drops(stack) == {"drop_ip_short": 58 - 14}


def test_ttl_of_zero_reaches_its_destination() -> None:
    # RFC 1122 3.2.1.7: a host must not discard a datagram just because its TTL is low.
    stack = endpoint()
    stack.inject(ethernet(packet(ttl=0)))
    stack.expect("UDP_RECV")


def test_rx_of_many_kinds_leaks_nothing() -> None:
    stack = Stack()
    peer = Peer(stack)
    for _ in range(300):
        stack.inject(b"\0" * 60, ethernet(packet()), peer.segment("A"), ethernet(b"", kind=0x0806))
    stack.sent.clear()
    assert stack.is_idle()
