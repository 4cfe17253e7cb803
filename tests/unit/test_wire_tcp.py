"""wire/tcp: TCP headers and options, in and out."""

from __future__ import annotations

import random
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP
from scapy.packet import Raw

from tests.unit.packets import CSUM, DST, HEADER, OK, SHORT, SRC, with_csum
from tests.unit.san import lib
from tests.unit.segments import (
    ACK,
    CSUM_AT,
    FIN,
    NO_OPTIONS,
    PSH,
    SYN,
    emit,
    header_struct,
    model_options,
    options_of,
    parse,
    parse_ok,
    said,
    segment,
)

NOP = b"\x01"
TS = b"\x08\x0a\x11\x22\x33\x44\x55\x66\x77\x88"
TS_SAID = {"has_ts": True, "ts_val": 0x11223344, "ts_ecr": 0x55667788}


def scapy_segment(payload: bytes = b"", **fields: Any) -> bytes:
    """The TCP part of what scapy sends."""
    return bytes(IP(src=SRC, dst=DST) / TCP(**fields) / Raw(payload))[20:]


def padded(options: bytes) -> bytes:
    return options + bytes(-len(options) % 4)


# ---- parsing: fields ------------------------------------------------------------------


@pytest.mark.parametrize("payload", [b"", b"x", b"odd payload", bytes(1460), b"\xff" * 1459])
def test_segment_from_scapy_parses_to_its_fields(payload: bytes) -> None:
    data = scapy_segment(
        payload, sport=1234, dport=80, seq=0xFFFFFFFF, ack=7, window=65535, urgptr=9, flags="PA"
    )
    assert parse_ok(data) == NO_OPTIONS | {
        "src_port": 1234,
        "dst_port": 80,
        "seq": 0xFFFFFFFF,
        "ack": 7,
        "window": 65535,
        "urgent": 9,
        "flags": PSH | ACK,
        "header_bytes": 20,
    }


def test_every_flag_combination_is_passed_on() -> None:
    for flags in range(256):
        assert parse_ok(segment(flags=flags))["flags"] == flags


def test_reserved_bits_are_ignored() -> None:
    # RFC 9293 3.1, Rsrvd: must be ignored in received segments.
    for reserved in range(16):
        data = bytearray(segment())
        data[12] |= reserved
        verdict, fields = parse(with_csum(bytes(data), CSUM_AT, 6))
        assert verdict == OK
        assert fields["header_bytes"] == 20


def test_any_alignment_parses_alike() -> None:
    data = segment(NOP * 2 + TS, b"payload")
    for misalign in range(1, 8):
        assert parse(data, misalign=misalign) == (OK, parse_ok(data))


# ---- parsing: lengths and checksum -----------------------------------------------------


def test_segment_truncated_in_header_is_short() -> None:
    data = segment(NOP * 2 + TS + NOP * 28, b"payload")
    for size in range(60):
        assert parse(data[:size])[0] == SHORT


def test_segment_truncated_in_payload_has_bad_checksum() -> None:
    data = segment(NOP * 2 + TS, b"payload")
    for size in range(32, len(data)):
        assert parse(data[:size])[0] == CSUM


def test_data_offset_below_minimum_is_refused() -> None:
    for words in range(5):
        assert parse(segment(payload=bytes(64), offset=words))[0] == HEADER


def test_data_offset_beyond_segment_is_short() -> None:
    for words in range(6, 16):
        assert parse(segment(payload=bytes(words * 4 - 21), offset=words))[0] == SHORT
        assert parse(segment(payload=bytes(words * 4 - 20), offset=words))[0] == OK


def test_any_flipped_bit_is_refused() -> None:
    data = segment(NOP * 2 + TS, b"odd payload")
    for bit in range(len(data) * 8):
        broken = bytearray(data)
        broken[bit // 8] ^= 0x80 >> bit % 8
        verdict = parse(bytes(broken))[0]
        assert verdict in (CSUM, HEADER, SHORT), bit
        assert verdict == CSUM or bit // 8 == 12


def test_other_addresses_are_a_bad_checksum() -> None:
    assert parse(segment(), src="10.1.2.4")[0] == CSUM
    assert parse(segment(), dst="192.0.2.78")[0] == CSUM


def test_malformed_options_under_bad_checksum_are_a_bad_checksum() -> None:
    # So that noise on the wire is not counted as a broken peer.
    data = bytearray(segment(b"\x02\x00\x00\x00"))
    data[4] ^= 1
    assert parse(bytes(data))[0] == CSUM


# ---- parsing: options --------------------------------------------------------------------


def test_timestamp_in_its_usual_place_is_read() -> None:
    assert options_of(segment(NOP * 2 + TS)) == said(**TS_SAID)
    assert options_of(segment(NOP * 2 + TS, flags=SYN)) == said(**TS_SAID)


def test_timestamp_in_any_place_is_read() -> None:
    for before in range(31):
        options = padded(NOP * before + TS)
        if len(options) <= 40:
            assert options_of(segment(options)) == said(**TS_SAID), before


def test_usual_layout_with_wrong_timestamp_length_is_walked() -> None:
    # One byte apart from the usual word: the length says 9, the tenth byte is a NOP.
    options = NOP * 2 + b"\x08\x09" + bytes(7) + NOP
    assert options_of(segment(options)) == NO_OPTIONS


def test_scapy_syn_options_are_read() -> None:
    data = scapy_segment(
        flags="S",
        options=[
            ("MSS", 1460),
            ("SAckOK", b""),
            ("Timestamp", (0x11223344, 0x55667788)),
            ("NOP", None),
            ("WScale", 7),
        ],
    )
    assert options_of(data) == said(mss=1460, sack_ok=True, wscale=7, **TS_SAID)


@pytest.mark.parametrize("blocks", range(1, 5))
def test_scapy_sack_blocks_are_read(blocks: int) -> None:
    numbers = [0xFFFFFFF0 + 0x11 * i & 0xFFFFFFFF for i in range(2 * blocks)]
    data = scapy_segment(flags="A", options=[("NOP", None)] * 2 + [("SAck", tuple(numbers))])
    pairs = list(zip(numbers[::2], numbers[1::2], strict=True))
    assert options_of(data) == said(sack=pairs)


@pytest.mark.parametrize("options", ["02040000", "0204ffff", "02040001"])
def test_mss_of_any_value_is_passed_on_and_zero_means_none(options: str) -> None:
    expected = int(options[4:], 16)
    assert options_of(segment(bytes.fromhex(options), flags=SYN)) == said(mss=expected)


def test_window_scale_above_14_is_14() -> None:
    # RFC 7323 2.3.
    for shift in range(256):
        options = bytes([1, 3, 3, shift])
        assert options_of(segment(options, flags=SYN)) == said(wscale=min(shift, 14))


@pytest.mark.parametrize("options", ["020405b4", "01030307", "01010402"])
def test_syn_option_without_syn_is_ignored(options: str) -> None:
    # RFC 7323 2.2 for the scale; RFC 9293 3.7.1 and RFC 2018 section 2 for the others.
    for flags in (ACK, FIN | ACK, 0):
        assert options_of(segment(bytes.fromhex(options), flags=flags)) == NO_OPTIONS
    assert options_of(segment(bytes.fromhex(options), flags=SYN | ACK)) != NO_OPTIONS


def test_sack_in_syn_is_ignored() -> None:
    options = NOP * 2 + b"\x05\x0a" + bytes(8)
    assert options_of(segment(options, flags=SYN)) == NO_OPTIONS
    assert options_of(segment(options)) == said(sack=[(0, 0)])


def test_repeated_option_last_one_counts() -> None:
    options = bytes.fromhex("020405b4 02040218 03030201 03030501")
    assert options_of(segment(options, flags=SYN)) == said(mss=0x218, wscale=5)
    sack = b"\x05\x12" + bytes(16) + b"\x05\x0a" + b"\1" * 8
    assert options_of(segment(padded(sack))) == said(sack=[(0x01010101, 0x01010101)])


def test_known_option_of_wrong_length_is_ignored() -> None:
    right = {2: {4}, 3: {3}, 4: {2}, 5: {10, 18, 26, 34}, 8: {10}}
    for kind, sizes in right.items():
        for flags in (SYN, ACK):
            for size in range(2, 41):
                if size in sizes:
                    continue
                options = padded(bytes([kind, size]) + b"\x07" * (size - 2))
                assert options_of(segment(options, flags=flags)) == NO_OPTIONS, (kind, size)


def test_known_option_of_wrong_length_what_follows_is_read() -> None:
    options = b"\x02\x03\x05" + NOP + TS + b"\x03\x03\x09" + NOP * 3
    assert options_of(segment(options, flags=SYN)) == said(wscale=9, **TS_SAID)


def test_known_option_of_wrong_length_earlier_one_stays() -> None:
    sack = b"\x05\x0a" + bytes(8)
    for wrong in (b"\x05\x02", b"\x05\x09" + b"\xff" * 7, b"\x08\x02", b"\x03\x02"):
        options = TS + sack + wrong
        assert options_of(segment(padded(options))) == said(sack=[(0, 0)], **TS_SAID)


def test_unknown_option_of_every_kind_and_length_is_skipped() -> None:
    known = {0, 1, 2, 3, 4, 5, 8}
    for kind in set(range(256)) - known:
        for size in (2, 3, 4, 29, 30):
            options = padded(bytes([kind, size]) + b"\xff" * (size - 2) + TS)
            assert options_of(segment(options)) == said(**TS_SAID), (kind, size)


def test_end_of_options_what_follows_is_not_read() -> None:
    # Not even to see whether it is well formed (RFC 9293 3.2).
    assert options_of(segment(b"\x00" + TS + NOP)) == NO_OPTIONS
    assert options_of(segment(b"\x00\x02\x00\xff")) == NO_OPTIONS
    assert options_of(segment(NOP + TS + b"\x00" + b"\xff" * 4)) == said(**TS_SAID)


def test_no_operations_of_every_length_say_nothing() -> None:
    for words in range(11):
        fields = parse_ok(segment(NOP * 4 * words))
        assert fields["header_bytes"] == 20 + 4 * words
        assert {name: fields[name] for name in NO_OPTIONS} == NO_OPTIONS


def test_option_length_below_two_is_refused() -> None:
    # RFC 9293 3.2, MUST-7; a length of zero would never end.
    for kind in range(2, 256):
        for size in (0, 1):
            assert parse(segment(bytes([kind, size, 0, 0])))[0] == HEADER


def test_option_beyond_header_is_refused_even_if_payload_follows() -> None:
    for kind in (2, 3, 4, 5, 8, 30, 255):
        for words in range(1, 11):
            room = 4 * words
            for at in range(room - 1):
                for size in {room - at + 1, room - at + 2, 255}:
                    options = NOP * at + bytes([kind, size]) + NOP * (room - at - 2)
                    assert parse(segment(options, bytes(300)))[0] == HEADER
                    assert parse(segment(options))[0] == HEADER


def test_option_without_length_byte_is_refused() -> None:
    for words in range(1, 11):
        options = NOP * (4 * words - 1) + b"\x08"
        assert parse(segment(options))[0] == HEADER
        assert parse(segment(options, TS))[0] == HEADER


def test_random_options_match_model() -> None:
    rng = random.Random(5)
    kinds = [0, 1, 2, 3, 4, 5, 8, 30]
    for _ in range(3000):
        size = rng.randrange(11) * 4
        options = bytes(
            rng.choice(kinds) if rng.random() < 0.5 else rng.randrange(12) for _ in range(size)
        )
        flags = rng.choice([SYN, ACK, SYN | ACK])
        expected = model_options(options, flags)
        data = segment(options, rng.randbytes(rng.randrange(4)), flags)
        if expected is None:
            assert parse(data)[0] == HEADER, options.hex()
        else:
            assert options_of(data) == expected, options.hex()


def test_usual_syn_with_any_byte_changed_matches_model() -> None:
    usual = bytes.fromhex(LINUX_SYN[0][0])
    for flags in (SYN, SYN | ACK, ACK):
        for at in range(len(usual)):
            for byte in range(256):
                options = usual[:at] + bytes([byte]) + usual[at + 1 :]
                expected = model_options(options, flags)
                data = segment(options, flags=flags)
                if expected is None:
                    assert parse(data)[0] == HEADER, options.hex()
                else:
                    assert options_of(data) == expected, options.hex()


@pytest.mark.parametrize("more", [b"\x00" * 4, NOP * 4, b"\x02\x04\x00\x09"])
def test_options_after_those_of_the_usual_syn_are_read(more: bytes) -> None:
    options = bytes.fromhex(LINUX_SYN[0][0]) + more
    assert options_of(segment(options, flags=SYN)) == model_options(options, SYN)


# ---- writing -------------------------------------------------------------------------------

# As Linux 6.18 wrote them on its loopback with the sysctls tcp_timestamps, tcp_sack and
# tcp_window_scaling on and off; mss and timestamps as they came.
LINUX_SYN = [
    ("0204ffd70402080a344a5693000000000103030a", SYN),
    ("0204ffd70402080afbca4a38344a56930103030a", SYN | ACK),
    ("0204ffd70101080a080abcdf000000000103030a", SYN),
    ("0204ffd70101080ab1f01433080abcdf0103030a", SYN | ACK),
    ("0204ffd7010104020103030a", SYN),
    ("0204ffd70103030a", SYN),
    ("0204ffd7", SYN),
    ("0204ffd70402080a52a93c3e00000000", SYN),
    ("0204ffd701010402", SYN),
]


@pytest.mark.parametrize(("options", "flags"), LINUX_SYN)
def test_emit_syn_options_stand_as_linux_writes_them(options: str, flags: int) -> None:
    data = segment(bytes.fromhex(options), flags=flags)
    fields = parse_ok(data)
    assert fields["mss"] == 65495
    assert emit(header_struct(**fields)) == data


def test_emit_timestamp_stands_as_linux_writes_it() -> None:
    data = segment(NOP * 2 + TS, b"odd payload", ACK | PSH)
    assert emit(header_struct(**parse_ok(data)), b"odd payload") == data


@pytest.mark.parametrize("payload", [b"", b"x", bytes(1460), bytes(range(256)) * 5])
def test_emit_without_options_writes_what_scapy_writes(payload: bytes) -> None:
    expected = scapy_segment(
        payload, sport=1, dport=65535, seq=3, ack=0xFFFFFFFE, window=5, urgptr=6, flags="FRPAUEC"
    )
    header = header_struct(
        src_port=1, dst_port=65535, seq=3, ack=0xFFFFFFFE, window=5, urgent=6, flags=0xFD
    )
    assert emit(header, payload) == expected


def test_emit_sack_blocks_stand_after_the_timestamp() -> None:
    blocks = [(1, 2), (0xFFFFFFFE, 3), (5, 6)]
    header = header_struct(flags=ACK, sack=blocks, **TS_SAID)
    expected = [
        ("NOP", None),
        ("NOP", None),
        ("Timestamp", (TS_SAID["ts_val"], TS_SAID["ts_ecr"])),
        ("NOP", None),
        ("NOP", None),
        ("SAck", tuple(number for block in blocks for number in block)),
    ]
    data = emit(header)
    assert data == scapy_segment(
        sport=0, dport=0, seq=0, ack=0, window=0, flags="A", options=expected
    )
    assert len(data) == 60


@pytest.mark.parametrize(("has_ts", "most"), [(False, 4), (True, 3)])
def test_emit_sack_blocks_beyond_room_are_left_out(has_ts: bool, most: int) -> None:
    blocks = [(10 * i, 10 * i + 5) for i in range(4)]
    for count in range(5):
        data = emit(header_struct(flags=ACK, has_ts=has_ts, sack=blocks[:count]))
        assert options_of(data) == said(has_ts=has_ts, sack=blocks[: min(count, most)])


def test_emit_options_without_meaning_are_left_out() -> None:
    everything: dict[str, Any] = {"mss": 1460, "wscale": 7, "sack_ok": True, "sack": [(1, 2)]}
    assert options_of(emit(header_struct(flags=ACK, **everything))) == said(sack=[(1, 2)])
    syn = options_of(emit(header_struct(flags=SYN, **everything)))
    assert syn == said(**everything) | {"sack": []}


def test_emit_every_combination_of_syn_options_has_the_size_it_said() -> None:
    for mss in (0, 1460):
        for sack_ok in (False, True):
            for has_ts in (False, True):
                for wscale in (-1, 0, 14):
                    options: dict[str, Any] = {"mss": mss, "sack_ok": sack_ok}
                    options |= {"has_ts": has_ts, "wscale": wscale}
                    header = header_struct(flags=SYN, **options)
                    size = lib.ix_tcp_header_bytes(header)
                    assert size % 4 == 0
                    assert size <= 40
                    assert options_of(emit(header)) == said(**options)


# ---- sequence numbers ----------------------------------------------------------------------


@pytest.mark.parametrize("base", [0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF])
def test_sequence_comparison_wraps(base: int) -> None:
    assert lib.ix_seq_leq(base, base) and lib.ix_seq_geq(base, base)
    assert not lib.ix_seq_lt(base, base) and not lib.ix_seq_gt(base, base)
    for ahead in (1, 2, 0x10000, 0x7FFFFFFE, 0x7FFFFFFF):
        later = base + ahead & 0xFFFFFFFF
        assert lib.ix_seq_lt(base, later) and lib.ix_seq_leq(base, later)
        assert lib.ix_seq_gt(later, base) and lib.ix_seq_geq(later, base)
        assert not lib.ix_seq_gt(base, later) and not lib.ix_seq_geq(base, later)
        assert lib.ix_seq_max(base, later) == lib.ix_seq_max(later, base) == later
