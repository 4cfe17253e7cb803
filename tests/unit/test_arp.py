"""wire/arp: ARP for IPv4 over Ethernet."""

from __future__ import annotations

from typing import Any

import pytest
from scapy.layers.l2 import ARP

from tests.unit.packets import (
    HEADER,
    OK,
    SHORT,
    VERSION,
    exact,
    is_unwritten,
    raw_ip,
    unwritten,
)
from tests.unit.san import ffi, lib

FIELDS: dict[str, Any] = {"hwsrc": "02:00:00:00:00:01", "psrc": "10.0.0.1", "pdst": "10.0.0.2"}
REQUEST = bytes(ARP(op=1, hwdst="00:00:00:00:00:00", **FIELDS))
REPLY = bytes(ARP(op=2, hwdst="02:00:00:00:00:02", **FIELDS))


def changed(at: int, data: str) -> bytes:
    """REQUEST with the bytes `data` (hex) at offset `at`."""
    new = bytes.fromhex(data)
    return REQUEST[:at] + new + REQUEST[at + len(new) :]


@pytest.mark.parametrize(
    ("packet", "op", "target"),
    [(REQUEST, lib.IX_ARP_REQUEST, "00" * 6), (REPLY, lib.IX_ARP_REPLY, "020000000002")],
)
def test_packet_from_scapy_parses_to_its_fields(packet: bytes, op: int, target: str) -> None:
    arp = ffi.new("struct ix_arp *")
    assert lib.ix_arp_parse(exact(packet), len(packet), arp) == OK
    assert arp.op == op
    assert bytes(arp.sender_mac.b) == bytes.fromhex("020000000001")
    assert bytes(arp.target_mac.b) == bytes.fromhex(target)
    assert arp.sender_ip == raw_ip("10.0.0.1")
    assert arp.target_ip == raw_ip("10.0.0.2")


def test_packet_with_ethernet_padding_parses() -> None:
    packet = REQUEST + bytes(18)
    assert lib.ix_arp_parse(exact(packet), len(packet), ffi.new("struct ix_arp *")) == OK


def test_packet_truncated_anywhere_is_short() -> None:
    for size in range(lib.IX_ARP_BYTES):
        arp = unwritten("struct ix_arp")
        assert lib.ix_arp_parse(exact(REQUEST[:size]), size, arp) == SHORT
        assert is_unwritten(arp)


@pytest.mark.parametrize(
    ("packet", "verdict"),
    [
        (changed(0, "0006"), VERSION),  # IEEE 802 networks
        (changed(0, "0100"), VERSION),
        (changed(2, "86dd"), VERSION),
        (changed(4, "08"), HEADER),
        (changed(4, "00"), HEADER),
        (changed(5, "10"), HEADER),
        (changed(5, "ff"), HEADER),
    ],
)
def test_packet_of_other_hardware_or_protocol_is_refused(packet: bytes, verdict: int) -> None:
    arp = unwritten("struct ix_arp")
    assert lib.ix_arp_parse(exact(packet), len(packet), arp) == verdict
    assert is_unwritten(arp)


def test_packet_of_unknown_operation_parses_for_the_caller_to_judge() -> None:
    arp = ffi.new("struct ix_arp *")
    assert lib.ix_arp_parse(exact(changed(6, "0009")), lib.IX_ARP_BYTES, arp) == OK
    assert arp.op == 9


def test_emit_writes_what_scapy_writes_and_no_more() -> None:
    arp = ffi.new("struct ix_arp *")
    assert lib.ix_arp_parse(exact(REPLY), len(REPLY), arp) == OK
    packet = exact(lib.IX_ARP_BYTES)
    lib.ix_arp_emit(packet, arp)
    assert bytes(ffi.buffer(packet, lib.IX_ARP_BYTES)) == REPLY
