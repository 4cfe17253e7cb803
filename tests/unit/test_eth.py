"""wire/eth: Ethernet II headers."""

from __future__ import annotations

import pytest
from scapy.layers.l2 import Ether

from tests.unit.packets import OK, SHORT, exact, is_poisoned, is_unwritten, unwritten
from tests.unit.san import ffi, lib

FRAME = bytes(Ether(dst="02:00:5e:10:00:01", src="02:00:5e:10:00:fe", type=0x86DD))


def mac(text: str) -> dict[str, list[int]]:
    return {"b": list(bytes.fromhex(text.replace(":", "")))}


def test_header_from_scapy_parses_to_its_fields() -> None:
    eth = ffi.new("struct ix_eth *")
    assert lib.ix_eth_parse(exact(FRAME), len(FRAME), eth) == OK
    assert bytes(eth.dst.b) == bytes.fromhex("02005e100001")
    assert bytes(eth.src.b) == bytes.fromhex("02005e1000fe")
    assert eth.type == lib.IX_ETH_IPV6


def test_header_truncated_anywhere_is_short() -> None:
    for size in range(lib.IX_ETH_BYTES):
        eth = unwritten("struct ix_eth")
        assert lib.ix_eth_parse(exact(FRAME[:size]), size, eth) == SHORT
        assert is_unwritten(eth)


@pytest.mark.parametrize("kind", [0, 46, 1500, 0x0800, 0x0806, 0x8100, 0xFFFF])
def test_header_of_any_type_parses_for_the_caller_to_judge(kind: int) -> None:
    frame = FRAME[:12] + kind.to_bytes(2, "big")
    eth = ffi.new("struct ix_eth *")
    assert lib.ix_eth_parse(exact(frame), len(frame), eth) == OK
    assert eth.type == kind


def test_emit_writes_what_scapy_writes_and_no_more() -> None:
    eth = ffi.new(
        "struct ix_eth *",
        {"dst": mac("02:00:5e:10:00:01"), "src": mac("02:00:5e:10:00:fe"), "type": 0x86DD},
    )
    frame = exact(lib.IX_ETH_BYTES)
    assert is_poisoned(frame + lib.IX_ETH_BYTES)
    lib.ix_eth_emit(frame, eth)
    assert bytes(ffi.buffer(frame, lib.IX_ETH_BYTES)) == FRAME


def test_mac_equal_any_byte_different_is_unequal() -> None:
    one = ffi.new("struct ix_mac *", mac("02:00:5e:10:00:01"))
    assert lib.ix_mac_equal(one, ffi.new("struct ix_mac *", mac("02:00:5e:10:00:01")))
    for place in range(6):
        other = ffi.new("struct ix_mac *", mac("02:00:5e:10:00:01"))
        other.b[place] ^= 0x80
        assert not lib.ix_mac_equal(one, other)


@pytest.mark.parametrize(
    ("address", "group"),
    [
        ("ff:ff:ff:ff:ff:ff", True),
        ("01:00:5e:00:00:01", True),
        ("33:33:00:00:00:01", True),
        ("02:00:00:00:00:01", False),
        ("fe:ff:ff:ff:ff:ff", False),
    ],
)
def test_mac_group_bit_tells_multicast(address: str, group: bool) -> None:
    assert lib.ix_mac_is_group(ffi.new("struct ix_mac *", mac(address))) == group
