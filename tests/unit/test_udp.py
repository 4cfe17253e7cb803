"""wire/udp: datagram headers, lengths and the optional checksum."""

from __future__ import annotations

from typing import Any

import pytest
from scapy.layers.inet import IP, UDP
from scapy.packet import Raw

from tests.unit.packets import (
    CSUM,
    DST,
    HEADER,
    OK,
    SHORT,
    SRC,
    exact,
    is_unwritten,
    raw_ip,
    unwritten,
    with_csum,
)
from tests.unit.san import ffi, lib


def built(payload: bytes, src: str = SRC, dst: str = DST, **fields: Any) -> bytes:
    """The UDP part of what scapy sends."""
    return bytes(IP(src=src, dst=dst) / UDP(sport=5353, dport=53, **fields) / Raw(payload))[20:]


DATAGRAM = built(b"odd payload")


def parse(datagram: bytes, src: str = SRC, dst: str = DST) -> tuple[int, Any]:
    udp = unwritten("struct ix_udp")
    verdict = lib.ix_udp_parse(exact(datagram), len(datagram), raw_ip(src), raw_ip(dst), udp)
    assert verdict == OK or is_unwritten(udp)
    return verdict, udp


@pytest.mark.parametrize("payload", [b"", b"x", b"xy", bytes(1472), b"\xff" * 1471])
def test_datagram_from_scapy_parses_to_its_fields(payload: bytes) -> None:
    verdict, udp = parse(built(payload))
    assert verdict == OK
    assert (udp.src_port, udp.dst_port) == (5353, 53)
    assert udp.total_bytes == 8 + len(payload)
    assert udp.has_csum


def test_datagram_without_checksum_parses_unchecked() -> None:
    verdict, udp = parse(built(b"anything", chksum=0))
    assert verdict == OK
    assert not udp.has_csum


def test_datagram_truncated_anywhere_is_short() -> None:
    for size in range(len(DATAGRAM)):
        assert parse(DATAGRAM[:size])[0] == SHORT


def test_length_field_below_header_is_refused() -> None:
    for length in range(8):
        assert parse(built(b"12345678", len=length))[0] == HEADER


def test_length_field_beyond_received_is_short() -> None:
    assert parse(built(b"1234", len=13))[0] == SHORT
    assert parse(built(b"1234", len=65535))[0] == SHORT


def test_length_field_below_received_counts_for_the_checksum() -> None:
    # What follows is padding of the IP payload, and no part of the datagram.
    for padding in (b"\0", b"junk", b"\xff" * 33):
        verdict, udp = parse(DATAGRAM + padding)
        assert verdict == OK
        assert udp.total_bytes == len(DATAGRAM)
    assert parse(with_csum(DATAGRAM + b"junk", 6, 17))[0] == CSUM


def test_any_flipped_bit_is_refused() -> None:
    for bit in range(len(DATAGRAM) * 8):
        broken = bytearray(DATAGRAM)
        broken[bit // 8] ^= 0x80 >> bit % 8
        assert parse(bytes(broken))[0] != OK, bit


def test_other_addresses_are_a_bad_checksum() -> None:
    assert parse(DATAGRAM, src="10.1.2.4")[0] == CSUM
    assert parse(DATAGRAM, dst="192.0.2.78")[0] == CSUM


def emit(payload: bytes, has_csum: bool = True, ports: tuple[int, int] = (5353, 53)) -> bytes:
    udp = ffi.new(
        "struct ix_udp *",
        {
            "src_port": ports[0],
            "dst_port": ports[1],
            "total_bytes": 8 + len(payload),
            "has_csum": has_csum,
        },
    )
    header = exact(lib.IX_UDP_BYTES)
    payload_sum = lib.ix_csum_add(exact(payload), len(payload), 0)
    lib.ix_udp_emit(header, udp, raw_ip(SRC), raw_ip(DST), payload_sum)
    return bytes(ffi.buffer(header, lib.IX_UDP_BYTES)) + payload


@pytest.mark.parametrize("payload", [b"", b"x", b"xy", b"odd payload", bytes(range(256)) * 4])
def test_emit_writes_what_scapy_writes(payload: bytes) -> None:
    assert emit(payload) == built(payload)


def test_emit_without_checksum_leaves_the_field_zero() -> None:
    assert emit(b"payload", has_csum=False) == built(b"payload", chksum=0)


def test_emit_checksum_that_comes_out_zero_is_sent_as_ones() -> None:
    # Search the payload whose sum makes the checksum 0: the word that the checksum itself was.
    value = emit(b"\0\0")[6:8]
    datagram = emit(value)
    assert datagram[6:8] == b"\xff\xff"
    assert parse(datagram)[0] == OK
