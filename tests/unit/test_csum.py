"""wire/csum: the Internet checksum against the plain model, in both builds."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.unit.packets import (
    checksum,
    exact,
    is_poisoned,
    pseudo_bytes,
    raw_ip,
    words_sum,
)
from tests.unit.released import load_library
from tests.unit.san import ffi, lib

SIZES = [*range(0, 200), 255, 256, 257, 319, 320, 511, 512, 513, 1023, 1459, 1460, 1461, 4096, 9001]
# Values around the carries, of an earlier part.
SUMS = [0, 1, 0xFFFE, 0xFFFF, 0x10000, 0xFFFEFFFF, 0xFFFF0000, 0xFFFFFFFE, 0xFFFFFFFF]


@pytest.fixture(scope="module", params=["sanitized", "released"])
def core(request: pytest.FixtureRequest) -> Any:
    if request.param == "sanitized":
        return lib
    return load_library(
        "uint32_t ix_csum_add(uintptr_t, size_t, uint32_t);"
        "uint32_t ix_csum_copy(uintptr_t, uintptr_t, size_t, uint32_t);"
    )


def add(core: Any, buffer: Any, size: int, start: int) -> int:
    if core is lib:
        return int(core.ix_csum_add(buffer, size, start))
    return int(core.ix_csum_add(int(ffi.cast("uintptr_t", buffer)), size, start))


def copy(core: Any, dst: Any, src: Any, size: int, start: int) -> int:
    if core is lib:
        return int(core.ix_csum_copy(dst, src, size, start))
    addresses = [int(ffi.cast("uintptr_t", p)) for p in (dst, src)]
    return int(core.ix_csum_copy(*addresses, size, start))


def finished(data: bytes, start: int = 0) -> int:
    """What ix_csum_finish() must give for `data` after a part that summed to `start`."""
    total = words_sum(data) + (start & 0xFFFF) + (start >> 16)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def test_sum_every_size_and_start_matches_model(core: Any) -> None:
    for size in SIZES:
        data = random.Random(size).randbytes(size)
        buffer = exact(data)
        for start in SUMS:
            got = lib.ix_csum_finish(add(core, buffer, size, start))
            assert got == finished(data, start), f"start {start:#x}"


def test_sum_any_alignment_matches_model(core: Any) -> None:
    for misalign in range(1, 16):
        for size in (1, 7, 8, 9, 20, 33, 63, 64, 65, 100, 129, 1460):
            data = random.Random(size).randbytes(size)
            assert lib.ix_csum_finish(add(core, exact(data, misalign), size, 0)) == checksum(data)


@pytest.mark.parametrize("fill", [0x00, 0xFF])
def test_sum_of_extreme_bytes_loses_no_carry(core: Any, fill: int) -> None:
    for size in (2, 8, 16, 64, 66, 128, 1460, 65535):
        data = bytes([fill]) * size
        for start in SUMS:
            got = lib.ix_csum_finish(add(core, exact(data), size, start))
            assert got == finished(data, start), (size, hex(start))


def test_sum_single_set_byte_counts_once(core: Any) -> None:
    for place in range(0, 65):
        for size in range(place + 1, 130):
            data = bytes(place) + b"\x80" + bytes(size - place - 1)
            assert lib.ix_csum_finish(add(core, exact(data), size, 0)) == checksum(data)


def test_copy_every_size_copies_and_sums(core: Any) -> None:
    for size in SIZES:
        data = random.Random(~size).randbytes(size)
        for to_misalign, from_misalign in ((0, 0), (2, 6), (1, 0), (0, 3)):
            dst, src = exact(size, to_misalign), exact(data, from_misalign)
            total = copy(core, dst, src, size, 0x12345678)
            assert lib.ix_csum_finish(total) == finished(data, 0x12345678)
            assert bytes(ffi.buffer(dst, size)) == data
            assert bytes(ffi.buffer(src, size)) == data


def test_copy_into_larger_region_leaves_the_rest(core: Any) -> None:
    for size in range(0, 200):
        data = random.Random(size).randbytes(size)
        whole = exact(size + 64)
        copy(core, whole + 32, exact(data), size, 0)
        assert bytes(ffi.buffer(whole, size + 64)) == b"\xee" * 32 + data + b"\xee" * 32


def test_sum_of_20_bytes_matches_model() -> None:
    rng = random.Random(10)
    for data in [bytes(20), b"\xff" * 20, *(rng.randbytes(20) for _ in range(200))]:
        assert lib.ix_csum_finish(lib.ix_csum_20(exact(data))) == checksum(data)


def test_parts_of_any_even_split_add_up() -> None:
    data = random.Random(7).randbytes(151)
    for split in range(0, 151, 2):
        first = lib.ix_csum_add(exact(data[:split]), split, 0)
        assert lib.ix_csum_finish(
            lib.ix_csum_add(exact(data[split:]), 151 - split, first)
        ) == checksum(data)
        second = lib.ix_csum_add(exact(data[split:]), 151 - split, 0)
        assert lib.ix_csum_finish(lib.ix_csum_combine(first, second)) == checksum(data)


def test_parts_of_any_split_append() -> None:
    data = random.Random(8).randbytes(150)
    for split in range(151):
        first = lib.ix_csum_add(exact(data[:split]), split, 0)
        second = lib.ix_csum_add(exact(data[split:]), 150 - split, 0)
        assert lib.ix_csum_finish(lib.ix_csum_append(first, second, split)) == checksum(data)


def test_combine_largest_sums_keeps_carry() -> None:
    for a in SUMS:
        for b in SUMS:
            whole = a.to_bytes(4, "little") + b.to_bytes(4, "little")
            assert lib.ix_csum_finish(lib.ix_csum_combine(a, b)) == checksum(whole)


def test_data_with_its_checksum_finishes_to_zero() -> None:
    data = random.Random(9).randbytes(60)
    data += checksum(data).to_bytes(2, "little")
    assert lib.ix_csum_finish(lib.ix_csum_add(exact(data), 62, 0)) == 0


@pytest.mark.parametrize(
    ("src", "dst"),
    [("10.0.0.1", "10.0.0.2"), ("0.0.0.0", "0.0.0.0"), ("255.255.255.255", "255.255.255.255")],
)
def test_pseudo_header_matches_model(src: str, dst: str) -> None:
    for proto in (1, 6, 17, 255):
        for size in (0, 1, 8, 20, 0x00FF, 0xFF00, 1480, 65535):
            total = lib.ix_csum_pseudo4(raw_ip(src), raw_ip(dst), proto, size)
            assert lib.ix_csum_finish(total) == checksum(pseudo_bytes(src, dst, proto, size))


def test_pseudo_header_sum_just_below_carry_keeps_it() -> None:
    # Addresses that, with protocol and length, sum to 2^33 - 1: folding once would carry out of
    # 32 bits and lose the one.
    size = 0x1234
    rest = (6 << 8) + int.from_bytes(size.to_bytes(2, "big"), "little")
    src = 0xFFFFFFFF
    dst = (1 << 33) - 1 - src - rest
    total = lib.ix_csum_pseudo4(src, dst, 6, size)
    data = src.to_bytes(4, "little") + dst.to_bytes(4, "little") + rest.to_bytes(4, "little")
    assert lib.ix_csum_finish(total) == checksum(data)


def test_partial_checksum_field_with_bare_pseudo_sum_is_recognised() -> None:
    pseudo = lib.ix_csum_pseudo4(raw_ip("10.0.0.1"), raw_ip("10.0.0.2"), 6, 1480)
    stored = words_sum(pseudo_bytes("10.0.0.1", "10.0.0.2", 6, 1480))
    assert lib.ix_csum_is_partial(stored, pseudo)
    for wrong in (stored ^ 1, stored ^ 0xFFFF, 0, 0xFFFF, (stored + 1) & 0xFFFF):
        assert not lib.ix_csum_is_partial(wrong, pseudo)


def test_empty_region_without_bytes_is_not_read(core: Any) -> None:
    buffer = exact(16) + 16
    assert is_poisoned(buffer)
    assert add(core, buffer, 0, 77) == 77
    assert copy(core, buffer, buffer, 0, 78) == 78
