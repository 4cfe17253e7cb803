"""wire/icmp4: ICMP messages."""

from __future__ import annotations

from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP
from scapy.packet import Raw

from tests.unit.packets import CSUM, DST, HEADER, OK, SHORT, SRC, exact, is_unwritten, unwritten
from tests.unit.san import ffi, lib

ECHO = bytes(ICMP(type="echo-request", id=0x1234, seq=0x5678) / Raw(b"odd payload"))
FRAG_NEEDED = bytes(
    ICMP(type=3, code=4, nexthopmtu=1400) / IP(src=SRC, dst=DST) / TCP(sport=80, dport=5000)
)


def parse(message: bytes) -> tuple[int, Any]:
    icmp = unwritten("struct ix_icmp4")
    verdict = lib.ix_icmp4_parse(exact(message), len(message), icmp)
    assert verdict == OK or is_unwritten(icmp)
    return verdict, icmp


def test_echo_request_from_scapy_parses_to_its_fields() -> None:
    verdict, icmp = parse(ECHO)
    assert verdict == OK
    assert (icmp.type, icmp.code) == (lib.IX_ICMP4_ECHO, 0)
    assert icmp.rest == 0x12345678
    assert icmp.data_bytes == len(b"odd payload")


def test_fragmentation_needed_from_scapy_holds_the_mtu() -> None:
    verdict, icmp = parse(FRAG_NEEDED)
    assert verdict == OK
    assert (icmp.type, icmp.code) == (lib.IX_ICMP4_UNREACHABLE, lib.IX_ICMP4_FRAG_NEEDED)
    assert icmp.rest & 0xFFFF == 1400  # RFC 1191 section 4
    assert icmp.data_bytes == 40


def test_message_truncated_in_header_is_short() -> None:
    for size in range(lib.IX_ICMP4_BYTES):
        assert parse(ECHO[:size])[0] == SHORT


def test_message_truncated_in_data_has_bad_checksum() -> None:
    # ICMP has no length field: the checksum is what tells. Its last byte is no zero.
    for size in range(lib.IX_ICMP4_BYTES, len(ECHO)):
        assert parse(ECHO[:size])[0] == CSUM


def test_any_flipped_bit_is_a_bad_checksum() -> None:
    for bit in range(len(ECHO) * 8):
        broken = bytearray(ECHO)
        broken[bit // 8] ^= 0x80 >> bit % 8
        assert parse(bytes(broken))[0] == CSUM


def test_message_larger_than_any_packet_is_refused() -> None:
    assert parse(bytes(65536))[0] == HEADER


@pytest.mark.parametrize("data", [b"", b"x", b"xy", bytes(56), bytes(range(256)) * 5 + b"z"])
def test_emit_writes_what_scapy_writes(data: bytes) -> None:
    expected = bytes(ICMP(type="echo-reply", id=0xBEEF, seq=7) / Raw(data))
    icmp = ffi.new(
        "struct ix_icmp4 *",
        {"type": 0, "code": 0, "rest": 0xBEEF << 16 | 7, "data_bytes": len(data)},
    )
    message = exact(b"\xee" * lib.IX_ICMP4_BYTES + data)
    lib.ix_icmp4_emit(message, icmp)
    assert bytes(ffi.buffer(message, len(expected))) == expected


def test_emit_error_code_and_rest_are_written() -> None:
    data = FRAG_NEEDED[8:]
    icmp = ffi.new(
        "struct ix_icmp4 *", {"type": 3, "code": 4, "rest": 1400, "data_bytes": len(data)}
    )
    message = exact(bytes(8) + data)
    lib.ix_icmp4_emit(message, icmp)
    assert bytes(ffi.buffer(message, len(FRAG_NEEDED))) == FRAG_NEEDED
