"""Properties of the wire layer: parse of emit is identity, sums don't depend on how data is cut.

Every buffer is exactly as large as what it holds, so the sanitizer sees any access beyond it.
"""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.unit.packets import (
    HEADER,
    OK,
    SHORT,
    checksum,
    exact,
    ipv4_csum,
    raw_ip,
    unwritten,
    with_csum,
)
from tests.unit.san import ffi, lib
from tests.unit.segments import (
    ACK,
    CSUM_AT,
    NO_OPTIONS,
    SYN,
    as_dict,
    emit,
    header_struct,
    model_options,
    options_of,
    parse,
    segment,
)

wire = settings(max_examples=250)

u8, u16, u32 = (st.integers(0, (1 << bits) - 1) for bits in (8, 16, 32))
addresses = st.ip_addresses(v=4).map(str)
macs = st.binary(min_size=6, max_size=6)
payloads = st.binary(max_size=200)


def mac(data: bytes) -> dict[str, list[int]]:
    return {"b": list(data)}


# ---- checksum ------------------------------------------------------------------------------


@wire
@given(st.binary(max_size=600), st.lists(st.integers(0, 600)), st.integers(0, 15))
def test_checksum_of_any_cut_at_any_alignment_is_the_models(
    data: bytes, cuts: list[int], misalign: int
) -> None:
    total = 0
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    for start, end in itertools.pairwise(edges):
        part = lib.ix_csum_add(exact(data[start:end], misalign), end - start, 0)
        total = lib.ix_csum_append(total, part, start)
    assert lib.ix_csum_finish(total) == checksum(data)


@wire
@given(st.binary(max_size=600), u32, st.integers(0, 15), st.integers(0, 15))
def test_checksum_copy_is_checksum_and_copy(data: bytes, start: int, to: int, at: int) -> None:
    src, dst = exact(data, at), exact(len(data), to)
    copied = lib.ix_csum_copy(dst, src, len(data), start)
    added = lib.ix_csum_add(src, len(data), start)
    assert lib.ix_csum_finish(copied) == lib.ix_csum_finish(added)
    assert bytes(ffi.buffer(dst, len(data))) == data


@wire
@given(st.integers(0, (1 << 64) - 1))
def test_fold_keeps_the_sum_modulo_65535(total: int) -> None:
    folded = lib.ix_csum_fold(total)
    assert folded % 65535 == total % 65535
    assert (folded == 0) == (total == 0)


# ---- parse of emit ---------------------------------------------------------------------------


@wire
@given(macs, macs, u16)
def test_ethernet_parse_of_emit_is_identity(dst: bytes, src: bytes, kind: int) -> None:
    eth = ffi.new("struct ix_eth *", {"dst": mac(dst), "src": mac(src), "type": kind})
    frame = exact(lib.IX_ETH_BYTES)
    lib.ix_eth_emit(frame, eth)
    out = unwritten("struct ix_eth")
    assert lib.ix_eth_parse(frame, lib.IX_ETH_BYTES, out) == OK
    assert bytes(ffi.buffer(out)) == bytes(ffi.buffer(eth))


@wire
@given(u16, macs, macs, u32, u32)
def test_arp_parse_of_emit_is_identity(
    op: int, sender: bytes, target: bytes, sender_ip: int, target_ip: int
) -> None:
    arp = ffi.new("struct ix_arp *", {"op": op, "sender_mac": mac(sender)})
    arp.target_mac, arp.sender_ip, arp.target_ip = mac(target), sender_ip, target_ip
    packet = exact(lib.IX_ARP_BYTES)
    lib.ix_arp_emit(packet, arp)
    out = ffi.new("struct ix_arp *")
    assert lib.ix_arp_parse(packet, lib.IX_ARP_BYTES, out) == OK
    assert (out.op, out.sender_ip, out.target_ip) == (op, sender_ip, target_ip)
    assert (bytes(out.sender_mac.b), bytes(out.target_mac.b)) == (sender, target)


@wire
@given(
    st.fixed_dictionaries(
        {
            "src": u32,
            "dst": u32,
            "total_bytes": st.integers(20, 65535),
            "id": u16,
            "frag_bytes": st.integers(0, 8191).map(lambda units: units * 8),
            "proto": u8,
            "ttl": u8,
            "tos": u8,
            "dont_fragment": st.booleans(),
            "more_fragments": st.booleans(),
        }
    )
)
def test_ipv4_parse_of_emit_is_identity(fields: dict[str, Any]) -> None:
    packet = exact(fields["total_bytes"])
    lib.ix_ipv4_emit(packet, ffi.new("struct ix_ipv4 *", fields))
    out = unwritten("struct ix_ipv4")
    assert lib.ix_ipv4_parse(packet, fields["total_bytes"], out) == OK
    assert {name: getattr(out, name) for name in fields} == fields
    assert out.header_bytes == lib.IX_IPV4_BYTES
    assert lib.ix_ipv4_parse(packet, fields["total_bytes"] - 1, out) == SHORT


@wire
@given(u8, u8, u32, payloads)
def test_icmp_parse_of_emit_is_identity(kind: int, code: int, rest: int, data: bytes) -> None:
    icmp = ffi.new(
        "struct ix_icmp4 *", {"type": kind, "code": code, "rest": rest, "data_bytes": len(data)}
    )
    message = exact(b"\xee" * 8 + data)
    lib.ix_icmp4_emit(message, icmp)
    out = unwritten("struct ix_icmp4")
    assert lib.ix_icmp4_parse(message, 8 + len(data), out) == OK
    assert (out.type, out.code, out.rest, out.data_bytes) == (kind, code, rest, len(data))


@wire
@given(u16, u16, st.booleans(), u32, u32, payloads, st.binary(max_size=20))
def test_udp_parse_of_emit_is_identity(
    src_port: int,
    dst_port: int,
    has_csum: bool,
    src: int,
    dst: int,
    payload: bytes,
    padding: bytes,
) -> None:
    fields = {"src_port": src_port, "dst_port": dst_port, "total_bytes": 8 + len(payload)}
    udp = ffi.new("struct ix_udp *", fields | {"has_csum": has_csum})
    datagram = exact(b"\xee" * 8 + payload + padding)
    payload_sum = lib.ix_csum_add(datagram + 8, len(payload), 0)
    lib.ix_udp_emit(datagram, udp, src, dst, payload_sum)
    out = unwritten("struct ix_udp")
    size = 8 + len(payload) + len(padding)
    assert lib.ix_udp_parse(datagram, size, src, dst, out) == OK
    assert {name: getattr(out, name) for name in fields} == fields
    assert out.has_csum == has_csum


blocks = st.tuples(u32, u32)
basic = {"src_port": u16, "dst_port": u16, "seq": u32, "ack": u32, "window": u16, "urgent": u16}


@st.composite
def tcp_headers(draw: st.DrawFn) -> dict[str, Any]:
    """Every header that emit can write: only options that have a meaning in the segment."""
    fields: dict[str, Any] = draw(st.fixed_dictionaries(basic))
    fields |= NO_OPTIONS | {"flags": draw(u8), "has_ts": draw(st.booleans())}
    if fields["has_ts"]:
        fields |= {"ts_val": draw(u32), "ts_ecr": draw(u32)}
    if fields["flags"] & SYN:
        fields |= {"mss": draw(u16), "wscale": draw(st.integers(-1, 14))}
        fields["sack_ok"] = draw(st.booleans())
    else:
        most = lib.IX_SACK_BLOCKS_TX if fields["has_ts"] else lib.IX_SACK_BLOCKS_RX
        fields["sack"] = draw(st.lists(blocks, max_size=most))
    return fields


@wire
@given(tcp_headers(), addresses, addresses, payloads)
def test_tcp_parse_of_emit_is_identity(
    fields: dict[str, Any], src: str, dst: str, payload: bytes
) -> None:
    header = header_struct(**fields)
    data = emit(header, payload, src, dst)
    verdict, parsed = parse(data, src, dst)
    assert verdict == OK
    assert parsed == fields | {"header_bytes": len(data) - len(payload)}


@wire
@given(tcp_headers())
def test_tcp_emit_of_parse_is_identity(fields: dict[str, Any]) -> None:
    # The other way round: parsing lost nothing, and the layout has one form.
    data = emit(header_struct(**fields))
    assert emit(header_struct(**parse(data)[1])) == data


# ---- bytes from anyone -------------------------------------------------------------------------

kinds = st.sampled_from([0, 1, 2, 3, 4, 5, 8, 30, 254, 255])


@st.composite
def option_bytes(draw: st.DrawFn) -> bytes:
    """Options that look like options, with lengths right, wrong and absurd; cut at a word."""
    found = b""
    while len(found) < 40 and draw(st.integers(0, 7)):
        kind = draw(kinds)
        size = draw(st.one_of(st.sampled_from([0, 1, 2, 3, 4, 10, 18, 26, 34]), u8))
        found += bytes([kind]) if kind < 2 else bytes([kind, size])
        if kind >= 2:
            found += draw(st.binary(min_size=min(size, 40), max_size=40))[: max(size - 2, 0)]
    found = found[:40]
    return found + b"\1" * (-len(found) % 4)


# Any bytes, cut to whole words.
noise = st.binary(max_size=40).map(lambda data: data[: len(data) & ~3])


@settings(wire, max_examples=800)
@given(
    st.one_of(option_bytes(), noise),
    st.sampled_from([SYN, ACK, SYN | ACK]),
    st.binary(max_size=12),
)
@example(b"\x01\x01\x08\x0a" + bytes(8), SYN, b"")
@example(b"\x05\x22" + bytes(32) + b"\x01\x01", ACK, b"")
@example(b"\x01" * 39 + b"\x05", ACK, b"\x0a" + bytes(8))
def test_tcp_any_options_say_what_the_model_says(
    options: bytes, flags: int, payload: bytes
) -> None:
    expected = model_options(options, flags)
    data = segment(options, payload, flags)
    if expected is None:
        assert parse(data)[0] == HEADER
    else:
        assert options_of(data) == expected


@settings(wire, max_examples=800)
@given(st.binary(max_size=100), st.booleans())
def test_tcp_any_bytes_parse_within_bounds(data: bytes, good_csum: bool) -> None:
    if good_csum and len(data) >= 20:
        data = with_csum(data, CSUM_AT, 6)
    out = unwritten("struct ix_tcp_hdr")
    src, dst = raw_ip("10.1.2.3"), raw_ip("192.0.2.77")
    verdict = lib.ix_tcp_parse(exact(data), len(data), src, dst, out)
    if verdict == OK:
        fields = as_dict(out)
        assert 20 <= fields["header_bytes"] <= min(60, len(data))
        assert -1 <= fields["wscale"] <= 14
        assert len(fields["sack"]) <= lib.IX_SACK_BLOCKS_RX


@wire
@given(st.binary(max_size=100), st.booleans())
def test_ipv4_any_bytes_parse_within_bounds(data: bytes, good_csum: bool) -> None:
    if good_csum and len(data) >= 20:
        size = min(max(data[0] & 15, 5) * 4, len(data))
        data = bytes([0x40 | data[0] & 15]) + data[1:]
        data = ipv4_csum(data[:size]) + data[size:]
    out = unwritten("struct ix_ipv4")
    if lib.ix_ipv4_parse(exact(data), len(data), out) == OK:
        assert 20 <= out.header_bytes <= out.total_bytes <= len(data)


@wire
@given(st.binary(max_size=64), u32, u32)
def test_other_headers_any_bytes_parse_within_bounds(data: bytes, src: int, dst: int) -> None:
    buffer, size = exact(data), len(data)
    lib.ix_eth_parse(buffer, size, unwritten("struct ix_eth"))
    lib.ix_arp_parse(buffer, size, unwritten("struct ix_arp"))
    lib.ix_icmp4_parse(buffer, size, unwritten("struct ix_icmp4"))
    out = unwritten("struct ix_udp")
    if lib.ix_udp_parse(buffer, size, src, dst, out) == OK:
        assert 8 <= out.total_bytes <= size


# ---- IPv6 ----------------------------------------------------------------------------------

address6 = st.binary(min_size=16, max_size=16).map(list)


@wire
@given(
    st.fixed_dictionaries(
        {
            "src": address6,
            "dst": address6,
            "flow_label": st.integers(0, 0xFFFFF),
            "next": u8,
            "hop_limit": u8,
            "traffic_class": u8,
        }
    ),
    payloads,
)
def test_ipv6_parse_of_emit_is_identity(fields: dict[str, Any], payload: bytes) -> None:
    header = ffi.new("struct ix_ipv6 *", fields | {"payload_bytes": len(payload)})
    packet = exact(bytes(40) + payload)
    lib.ix_ipv6_emit(packet, header)
    out = unwritten("struct ix_ipv6")
    assert lib.ix_ipv6_parse(packet, 40 + len(payload), out) == OK
    for name in [*fields, "payload_bytes"]:
        got, want = getattr(out, name), getattr(header, name)
        assert (list(got) == list(want)) if name in ("src", "dst") else got == want
    walk = ffi.new("struct ix_ipv6_walk *")
    lib.ix_ipv6_walk(packet, out, walk)
    assert walk.l4_at <= 40 + len(payload)


@wire
@given(u8, u8, u32, payloads, u32, u32)
def test_icmp6_parse_of_emit_is_identity(
    kind: int, code: int, rest: int, data: bytes, src: int, dst: int
) -> None:
    fields = {"type": kind, "code": code, "rest": rest, "data_bytes": len(data)}
    message, out = exact(bytes(8) + data), unwritten("struct ix_icmp6")
    lib.ix_icmp6_emit(message, ffi.new("struct ix_icmp6 *", fields), src, dst)
    assert lib.ix_icmp6_parse(message, 8 + len(data), src, dst, out) == OK
    assert {name: getattr(out, name) for name in fields} == fields


@wire
@given(st.booleans(), st.integers(0, 7), st.booleans(), address6, macs)
def test_nd_parse_of_emit_is_identity(
    advert: bool, flags: int, has_mac: bool, target: list[int], address: bytes
) -> None:
    target[0] = min(target[0], 254)  # a group has no neighbour
    fields = {
        "type": 136 if advert else 135,
        "flags": flags << 5 if advert else 0,
        "has_mac": has_mac,
        "target": target,
        "mac": mac(address if has_mac else bytes(6)),
    }
    message, out = exact(32), unwritten("struct ix_nd")
    size = lib.ix_nd_emit(message, ffi.new("struct ix_nd *", fields), 1, 2)
    assert size == (32 if has_mac else 24)
    assert lib.ix_nd_parse(exact(bytes(ffi.buffer(message, size))), size, out) == OK
    assert (out.type, out.flags, out.has_mac) == (fields["type"], fields["flags"], has_mac)
    assert list(out.target) == target
    assert bytes(out.mac.b) == (address if has_mac else bytes(6))
