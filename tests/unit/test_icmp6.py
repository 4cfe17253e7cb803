"""wire/icmp6: ICMPv6 and the messages of Neighbor Discovery."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptMTU,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
)
from scapy.packet import Packet

from tests.unit.packets import CSUM, HEADER, OK, SHORT, exact, is_unwritten, unwritten
from tests.unit.san import ffi, lib

SRC, DST = "fe80::1", "2001:db8::2"
MAC = "02:00:00:00:00:0a"


def raw(ip: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6, ip)


def sums() -> tuple[int, int]:
    return lib.ix_csum_address(exact(raw(SRC))), lib.ix_csum_address(exact(raw(DST)))


def message(layer: Packet) -> bytes:
    return bytes(IPv6(src=SRC, dst=DST) / layer)[40:]


def nd_parse(data: bytes) -> tuple[int, Any]:
    nd = unwritten("struct ix_nd")
    verdict = lib.ix_nd_parse(exact(data), len(data), nd)
    assert verdict == OK or is_unwritten(nd)
    return verdict, nd


def test_echo_from_scapy_parses_and_emits_the_same() -> None:
    data = message(ICMPv6EchoRequest(id=0x1234, seq=5, data=b"odd"))
    icmp = ffi.new("struct ix_icmp6 *")
    assert lib.ix_icmp6_parse(exact(data), len(data), *sums(), icmp) == OK
    assert (icmp.type, icmp.code, icmp.rest, icmp.data_bytes) == (128, 0, 0x12340005, 3)
    out = exact(b"\xee" * 8 + b"odd")
    lib.ix_icmp6_emit(out, icmp, *sums())
    assert bytes(ffi.buffer(out, len(data))) == data


def test_any_changed_bit_fails_the_checksum() -> None:
    data = message(ICMPv6EchoRequest(data=b"x"))
    icmp = ffi.new("struct ix_icmp6 *")
    for bit in range(len(data) * 8):
        bad = bytearray(data)
        bad[bit // 8] ^= 1 << bit % 8
        assert lib.ix_icmp6_parse(exact(bad), len(bad), *sums(), icmp) == CSUM
    for size in range(8):
        assert lib.ix_icmp6_parse(exact(data[:size]), size, *sums(), icmp) == SHORT


@pytest.mark.parametrize(
    ("layer", "kind", "flags", "has_mac"),
    [
        (ICMPv6ND_NS(tgt=DST) / ICMPv6NDOptSrcLLAddr(lladdr=MAC), 135, 0, True),
        (ICMPv6ND_NS(tgt=DST), 135, 0, False),
        (ICMPv6ND_NA(tgt=DST, R=1, S=1, O=1) / ICMPv6NDOptDstLLAddr(lladdr=MAC), 136, 0xE0, True),
        (ICMPv6ND_NA(tgt=DST, R=0, S=1, O=0), 136, 0x40, False),
    ],
)
def test_nd_from_scapy_parses_and_emits_the_same(
    layer: Packet, kind: int, flags: int, has_mac: bool
) -> None:
    data = message(layer)
    verdict, nd = nd_parse(data)
    assert verdict == OK
    assert (nd.type, nd.flags, nd.has_mac) == (kind, flags, has_mac)
    assert bytes(nd.target) == raw(DST)
    assert not has_mac or bytes(nd.mac.b) == bytes.fromhex(MAC.replace(":", ""))
    out = exact(len(data))
    assert lib.ix_nd_emit(out, nd, *sums()) == len(data)
    assert bytes(ffi.buffer(out, len(data))) == data


def test_nd_skips_options_that_it_does_not_know() -> None:
    layers = ICMPv6ND_NS(tgt=DST) / ICMPv6NDOptMTU() / ICMPv6NDOptSrcLLAddr(lladdr=MAC)
    verdict, nd = nd_parse(message(layers))
    assert (verdict, nd.has_mac) == (OK, True)
    # The other kind's option is not the sender's address.
    verdict, nd = nd_parse(message(ICMPv6ND_NS(tgt=DST) / ICMPv6NDOptDstLLAddr(lladdr=MAC)))
    assert (verdict, nd.has_mac) == (OK, False)


def test_nd_malformed_is_refused() -> None:
    good = message(ICMPv6ND_NS(tgt=DST) / ICMPv6NDOptSrcLLAddr(lladdr=MAC))
    for size in range(1, len(good)):
        assert nd_parse(good[:size])[0] == (SHORT if size < 24 else OK if size == 24 else HEADER)
    assert nd_parse(good[:25] + b"\0" + good[26:])[0] == HEADER  # an option of length 0
    assert nd_parse(good[:25] + b"\x02" + good[26:])[0] == HEADER
    assert nd_parse(good[:1] + b"\x01" + good[2:])[0] == HEADER
    assert nd_parse(good[:8] + b"\xff" + good[9:])[0] == HEADER
