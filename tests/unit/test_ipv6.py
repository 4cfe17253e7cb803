"""wire/ipv6: the header, and the walk over what may stand behind it."""

from __future__ import annotations

import random
from typing import Any

import pytest
from scapy.layers.inet import TCP, UDP
from scapy.layers.inet6 import (
    HBHOptUnknown,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    Pad1,
    PadN,
)
from scapy.packet import Packet, Raw

from tests.unit.packets import OK, SHORT, VERSION, exact, is_unwritten, unwritten
from tests.unit.san import ffi, lib

SRC, DST = "2001:db8::1:2", "2001:db8:ffff::77"
BASE = IPv6(src=SRC, dst=DST, tc=0x2E, fl=0xABCDE, hlim=61)


def parse(packet: bytes) -> tuple[int, Any]:
    ip = unwritten("struct ix_ipv6")
    verdict = lib.ix_ipv6_parse(exact(packet), len(packet), ip)
    assert verdict == OK or is_unwritten(ip)
    return verdict, ip


def walk(packet: bytes | Packet) -> tuple[int, Any]:
    packet = bytes(packet)
    verdict, ip = parse(packet)
    assert verdict == OK
    found = ffi.new("struct ix_ipv6_walk *")
    return int(lib.ix_ipv6_walk(exact(packet), ip, found)), found


def unknown(kind: int, size: int = 2) -> HBHOptUnknown:
    return HBHOptUnknown(otype=kind, optlen=size, optdata=b"x" * size)


def test_header_from_scapy_parses_to_its_fields() -> None:
    packet = bytes(BASE / TCP() / Raw(b"payload"))
    verdict, ip = parse(packet)
    assert verdict == OK
    assert bytes(ip.src) == packet[8:24] and bytes(ip.dst) == packet[24:40]
    assert (ip.flow_label, ip.traffic_class, ip.hop_limit) == (0xABCDE, 0x2E, 61)
    assert (ip.payload_bytes, ip.next) == (27, 6)


def test_emitted_header_is_scapys() -> None:
    packet = bytes(BASE / UDP() / Raw(b"x"))
    _, ip = parse(packet)
    out = exact(40)
    lib.ix_ipv6_emit(out, ip)
    assert bytes(ffi.buffer(out, 40)) == packet[:40]


def test_truncated_is_short_and_padding_is_not_payload() -> None:
    packet = bytes(BASE / UDP() / Raw(b"payload"))
    assert all(parse(packet[:size])[0] == SHORT for size in range(len(packet)))
    verdict, ip = parse(packet + b"\0" * 9)
    assert (verdict, ip.payload_bytes) == (OK, 15)
    assert parse(b"\x40" + packet[1:])[0] == VERSION


HBH = IPv6ExtHdrHopByHop(options=[PadN(optdata=b"\0" * 4)])
DEST = IPv6ExtHdrDestOpt(options=[Pad1(), Pad1(), unknown(0x1E), PadN(optdata=b"")])
DONE = IPv6ExtHdrRouting(type=4, segleft=0, addresses=[DST])
ATOMIC = IPv6ExtHdrFragment(offset=0, m=0, id=7)


@pytest.mark.parametrize(
    "chain", [[], [HBH], [DEST], [DONE], [ATOMIC], [HBH, DEST, DONE, ATOMIC, DEST], [DEST] * 8]
)
def test_known_headers_are_stepped_over(chain: list[Packet]) -> None:
    packet: Packet = BASE
    for header in chain:
        packet = packet / header.copy()
    end, found = walk(packet / UDP(sport=1, dport=2) / Raw(b"x"))
    assert (end, found.proto) == (lib.IX_IPV6_UPPER, 17)
    assert found.l4_at == len(bytes(packet))
    assert bytes(packet / UDP())[found.next_at] == 17


def test_more_headers_than_the_bound_are_discarded() -> None:
    packet: Packet = BASE
    for _ in range(lib.IX_IPV6_EXTENSIONS_MAX + 1):
        packet = packet / DEST.copy()
    assert walk(packet / UDP())[0] == lib.IX_IPV6_DISCARD


@pytest.mark.parametrize(("offset", "more"), [(0, 1), (185, 1), (185, 0)])
def test_fragment_is_told(offset: int, more: int) -> None:
    packet = BASE / IPv6ExtHdrFragment(nh=17, offset=offset, m=more, id=0x12345678) / Raw(b"x" * 8)
    end, found = walk(packet)
    assert end == lib.IX_IPV6_FRAG
    assert (found.frag_bytes, found.more_fragments) == (offset * 8, bool(more))
    assert (found.frag_id, found.proto, found.l4_at) == (0x12345678, 17, 48)


@pytest.mark.parametrize(
    ("kind", "end", "not_to_multicast"),
    [(0x1E, "UPPER", 0), (0x5E, "DISCARD", 0), (0x9E, "PARAMETER", 0), (0xDE, "PARAMETER", 1)],
)
def test_unknown_option_does_what_its_type_says(kind: int, end: str, not_to_multicast: int) -> None:
    for header in (IPv6ExtHdrHopByHop, IPv6ExtHdrDestOpt):
        got, found = walk(BASE / header(options=[unknown(kind)]) / UDP())
        assert got == getattr(lib, f"IX_IPV6_{end}")
        assert found.not_to_multicast == bool(not_to_multicast)
        if end == "PARAMETER":
            assert (found.problem_code, found.problem_at) == (2, 42)


def test_too_many_options_are_discarded() -> None:
    most = lib.IX_IPV6_OPTIONS_MAX
    for n, end in ((most, lib.IX_IPV6_UPPER), (most + 1, lib.IX_IPV6_DISCARD)):
        options = [unknown(0x1E) for _ in range(n)]
        assert walk(BASE / IPv6ExtHdrDestOpt(options=options) / UDP())[0] == end


def test_routing_header_with_work_left_is_a_parameter_problem() -> None:
    for kind in (0, 4, 250):
        header = IPv6ExtHdrRouting(type=kind, segleft=1, addresses=[DST])
        end, found = walk(BASE / header / UDP())
        assert end == lib.IX_IPV6_PARAMETER
        assert (found.problem_code, found.problem_at) == (0, 42)


def test_hop_by_hop_elsewhere_is_a_parameter_problem() -> None:
    end, found = walk(BASE / DEST.copy() / HBH.copy() / UDP())
    assert end == lib.IX_IPV6_PARAMETER
    assert (found.problem_code, found.problem_at) == (1, 40)


def test_cut_inside_a_header_is_discarded() -> None:
    whole = bytes(BASE / HBH.copy() / DEST.copy() / UDP())
    for size in range(len(whole) - 8):
        cut = whole[:4] + (max(size - 40, 0)).to_bytes(2, "big") + whole[6:size]
        if size >= 40 and size not in (40 + len(bytes(HBH)),):
            assert walk(cut)[0] == lib.IX_IPV6_DISCARD


def test_noise_never_reads_beyond_its_end() -> None:
    # Every buffer is exactly as long as the packet, so the sanitizer sees a step too far.
    rng = random.Random(6)
    for _ in range(3000):
        body = bytearray(rng.randbytes(rng.randrange(0, 120)))
        for at in range(0, len(body), 8):
            body[at] = rng.choice([0, 43, 44, 60, 17, body[at]])
        head = bytes(BASE)[:4] + len(body).to_bytes(2, "big")
        head += bytes([rng.choice([0, 43, 44, 60])]) + bytes(BASE)[7:40]
        end, found = walk(head + bytes(body))
        if end == lib.IX_IPV6_UPPER:
            assert found.l4_at <= 40 + len(body)
