"""wire/ipv4: header validation and output."""

from __future__ import annotations

import random
from typing import Any

import pytest
from scapy.layers.inet import IP, IPOption
from scapy.packet import Raw

from tests.unit.packets import (
    CSUM,
    DST,
    HEADER,
    OK,
    SHORT,
    SRC,
    VERSION,
    exact,
    ipv4_csum,
    is_unwritten,
    raw_ip,
    unwritten,
)
from tests.unit.san import ffi, lib

PACKET = bytes(IP(src=SRC, dst=DST, proto=6, ttl=61, tos=0x2E, id=0xABCD) / Raw(bytes(40)))


def parse(packet: bytes) -> tuple[int, Any]:
    ip = unwritten("struct ix_ipv4")
    verdict = lib.ix_ipv4_parse(exact(packet), len(packet), ip)
    assert verdict == OK or is_unwritten(ip)
    return verdict, ip


def changed(at: int, data: str, packet: bytes = PACKET) -> bytes:
    """`packet` with the bytes `data` (hex) at `at` and its checksum made right again."""
    new = bytes.fromhex(data)
    packet = packet[:at] + new + packet[at + len(new) :]
    size = max((packet[0] & 15) * 4, 20)
    return ipv4_csum(packet[:size]) + packet[size:]


def test_header_from_scapy_parses_to_its_fields() -> None:
    verdict, ip = parse(PACKET)
    assert verdict == OK
    assert (ip.src, ip.dst) == (raw_ip(SRC), raw_ip(DST))
    assert (ip.total_bytes, ip.header_bytes, ip.id, ip.frag_bytes) == (60, 20, 0xABCD, 0)
    assert (ip.proto, ip.ttl, ip.tos) == (6, 61, 0x2E)
    assert not ip.dont_fragment and not ip.more_fragments


@pytest.mark.parametrize(
    ("flags", "offset", "dont", "more"),
    [("DF", 0, True, False), ("MF", 0, False, True), ("MF", 185, False, True), ("", 8191, 0, 0)],
)
def test_fragment_fields_from_scapy_parse(flags: str, offset: int, dont: bool, more: bool) -> None:
    verdict, ip = parse(bytes(IP(src=SRC, dst=DST, flags=flags, frag=offset) / Raw(b"x" * 8)))
    assert verdict == OK
    assert (ip.dont_fragment, ip.more_fragments, ip.frag_bytes) == (dont, more, offset * 8)


def test_options_of_every_length_are_skipped() -> None:
    for words in range(11):
        options = [IPOption(b"\x01" * (words * 4))] if words else []
        packet = bytes(IP(src=SRC, dst=DST, proto=17, options=options) / Raw(b"payload"))
        verdict, ip = parse(packet)
        assert verdict == OK
        assert (ip.header_bytes, ip.total_bytes) == (20 + 4 * words, len(packet))


def test_packet_truncated_anywhere_is_short() -> None:
    # Inside the header and, since the total length tells, inside the payload too.
    for size in range(len(PACKET)):
        assert parse(PACKET[:size])[0] == SHORT


def test_header_with_options_truncated_in_them_is_short() -> None:
    packet = bytes(IP(src=SRC, dst=DST, options=[IPOption(b"\x01" * 40)]))
    for size in range(20, 60):
        assert parse(packet[:size])[0] == SHORT


def test_total_length_below_received_leaves_padding_out() -> None:
    # Ethernet pads short frames (RFC 894).
    verdict, ip = parse(PACKET + bytes(6))
    assert verdict == OK
    assert ip.total_bytes == 60


@pytest.mark.parametrize("first", ["05", "35", "55", "65", "f5"])
def test_other_version_is_refused(first: str) -> None:
    assert parse(changed(0, first))[0] == VERSION


def test_header_length_below_minimum_is_refused() -> None:
    for words in range(5):
        assert parse(changed(0, f"4{words:x}"))[0] == HEADER


def test_total_length_below_header_is_refused() -> None:
    for total in range(20):
        assert parse(changed(2, f"{total:04x}"))[0] == HEADER
    options = bytes(IP(src=SRC, dst=DST, options=[IPOption(b"\x01" * 8)]) / Raw(bytes(8)))
    assert parse(changed(2, f"{27:04x}", options))[0] == HEADER
    assert parse(changed(2, f"{28:04x}", options))[0] == OK


def test_total_length_beyond_received_is_short() -> None:
    assert parse(changed(2, f"{61:04x}"))[0] == SHORT
    assert parse(changed(2, "ffff"))[0] == SHORT


def test_any_flipped_bit_is_refused() -> None:
    packet = bytes(IP(src=SRC, dst=DST, options=[IPOption(b"\x01" * 12)]) / Raw(bytes(32)))
    for bit in range(32 * 8):
        broken = bytearray(packet)
        broken[bit // 8] ^= 0x80 >> bit % 8
        assert parse(bytes(broken))[0] != OK, bit


def test_flipped_payload_bit_is_not_this_layer_s() -> None:
    assert parse(PACKET[:-1] + b"\x01")[0] == OK


def test_bad_checksum_is_named() -> None:
    assert parse(PACKET[:10] + b"\0\0" + PACKET[12:])[0] == CSUM
    assert parse(PACKET[:8] + b"\x01" + PACKET[9:])[0] == CSUM


def test_emit_random_headers_writes_what_scapy_writes() -> None:
    rng = random.Random(4)
    for _ in range(300):
        src, dst = (".".join(str(rng.randrange(256)) for _ in "1234") for _ in "12")
        total, ident, ttl = rng.randrange(20, 65536), rng.randrange(65536), rng.randrange(256)
        tos, proto, offset = rng.randrange(256), rng.randrange(256), rng.randrange(8192)
        flags = rng.choice(["", "DF", "MF", "MF+DF"])
        header = IP(src=src, dst=dst, len=total, id=ident, ttl=ttl, tos=tos, proto=proto)
        header.flags, header.frag = flags, offset
        ip = ffi.new(
            "struct ix_ipv4 *",
            {
                "src": raw_ip(src),
                "dst": raw_ip(dst),
                "total_bytes": total,
                "id": ident,
                "frag_bytes": offset * 8,
                "header_bytes": 0,
                "proto": proto,
                "ttl": ttl,
                "tos": tos,
                "dont_fragment": "DF" in flags,
                "more_fragments": "MF" in flags,
            },
        )
        packet = exact(lib.IX_IPV4_BYTES)
        lib.ix_ipv4_emit(packet, ip)
        assert bytes(ffi.buffer(packet, lib.IX_IPV4_BYTES)) == bytes(header)
