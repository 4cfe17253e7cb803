"""TCP segments for the tests: building them, parsing and emitting with the core, a plain model."""

from __future__ import annotations

from typing import Any

from tests.unit.packets import (
    DST,
    OK,
    SRC,
    exact,
    is_unwritten,
    raw_ip,
    unwritten,
    with_csum,
)
from tests.unit.san import ffi, lib

FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = (1 << bit for bit in range(8))
CSUM_AT = 16
# What a header holds whose options say nothing.
NO_OPTIONS: dict[str, Any] = {
    "mss": 0,
    "wscale": -1,
    "sack_ok": False,
    "has_ts": False,
    "ts_val": 0,
    "ts_ecr": 0,
    "sack": [],
}


def segment(
    options: bytes = b"",
    payload: bytes = b"",
    flags: int = ACK,
    *,
    seq: int = 0x01020304,
    ack: int = 0xF1F2F3F4,
    window: int = 0xABCD,
    offset: int | None = None,
) -> bytes:
    """A segment with the right checksum. Without `offset`, `options` must be whole words."""
    words = (20 + len(options)) // 4 if offset is None else offset
    header = (
        (40000).to_bytes(2, "big")
        + (443).to_bytes(2, "big")
        + seq.to_bytes(4, "big")
        + ack.to_bytes(4, "big")
        + bytes([words << 4, flags])
        + window.to_bytes(2, "big")
        + bytes(4)
    )
    return with_csum(header + options + payload, CSUM_AT, 6)


def as_dict(header: Any) -> dict[str, Any]:
    """The fields of a `struct ix_tcp_hdr *`, SACK blocks as pairs."""
    names = ("src_port", "dst_port", "seq", "ack", "window", "urgent", "flags", "header_bytes")
    fields: dict[str, Any] = {name: getattr(header, name) for name in names}
    fields |= {name: getattr(header, name) for name in NO_OPTIONS if name != "sack"}
    fields["sack"] = [(header.sack[i].start, header.sack[i].end) for i in range(header.sack_count)]
    return fields


def parse(data: bytes, src: str = SRC, dst: str = DST, misalign: int = 0) -> tuple[int, Any]:
    """Parses; returns the verdict and the fields (None unless it is OK)."""
    header = unwritten("struct ix_tcp_hdr")
    buffer = exact(data, misalign)
    verdict = lib.ix_tcp_parse(buffer, len(data), raw_ip(src), raw_ip(dst), header)
    if verdict != OK:
        assert is_unwritten(header)
        return verdict, None
    return verdict, as_dict(header)


def parse_ok(data: bytes) -> dict[str, Any]:
    """The fields of a segment that must parse."""
    verdict, fields = parse(data)
    assert verdict == OK
    assert fields is not None
    return dict(fields)


def options_of(data: bytes) -> dict[str, Any]:
    """What the options of a segment said."""
    fields = parse_ok(data)
    return {name: fields[name] for name in NO_OPTIONS}


def said(**options: Any) -> dict[str, Any]:
    """NO_OPTIONS with some that do say something."""
    return NO_OPTIONS | options


def header_struct(**fields: Any) -> Any:
    """A `struct ix_tcp_hdr *` for emit."""
    blocks = fields.pop("sack", [])
    values = {"wscale": -1, "sack_count": len(blocks)} | fields
    header = ffi.new("struct ix_tcp_hdr *", values)
    for i, (start, end) in enumerate(blocks):
        header.sack[i].start, header.sack[i].end = start, end
    return header


def emit(header: Any, payload: bytes = b"", src: str = SRC, dst: str = DST) -> bytes:
    """The segment that the core writes, into a buffer that ends with the header."""
    size = lib.ix_tcp_header_bytes(header)
    buffer = exact(size)
    payload_sum = lib.ix_csum_add(exact(payload), len(payload), 0)
    written = lib.ix_tcp_emit(buffer, header, raw_ip(src), raw_ip(dst), len(payload), payload_sum)
    assert written == size
    return bytes(ffi.buffer(buffer, size)) + payload


def model_options(options: bytes, flags: int) -> dict[str, Any] | None:
    """RFC 9293 3.2 in plain Python: what the options say, or None where they are malformed."""
    found = dict(NO_OPTIONS)
    syn = bool(flags & SYN)
    rest = options
    while rest and rest[0] != 0:
        if rest[0] == 1:
            rest = rest[1:]
            continue
        if len(rest) < 2 or rest[1] < 2 or rest[1] > len(rest):
            return None
        kind, size = rest[0], rest[1]
        value, rest = rest[2:size], rest[size:]
        numbers = [int.from_bytes(value[i : i + 4], "big") for i in range(0, len(value), 4)]
        if kind == 2 and size == 4 and syn:
            found["mss"] = int.from_bytes(value, "big")
        elif kind == 3 and size == 3 and syn:
            found["wscale"] = min(value[0], 14)
        elif kind == 4 and size == 2 and syn:
            found["sack_ok"] = True
        elif kind == 5 and size in (10, 18, 26, 34) and not syn:
            found["sack"] = list(zip(numbers[::2], numbers[1::2], strict=True))
        elif kind == 8 and size == 10:
            found |= {"has_ts": True, "ts_val": numbers[0], "ts_ecr": numbers[1]}
    return found
