"""base/memops: the core's own memcpy and kin, in both builds, around every change of method."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.unit.packets import exact
from tests.unit.released import ROOT, load_object
from tests.unit.san import ffi, lib

# Methods change at 4, 8, 16, 32 and 1024 bytes.
SIZES = [*range(0, 140), 255, 256, 257, 1000, 1023, 1024, 1025, 1460, 2048, 4097]

WRAPPER = """
#include "base/memops.h"
void *t_memcpy(void *d, void *s, size_t n) { return memcpy(d, s, n); }
void *t_memmove(void *d, void *s, size_t n) { return memmove(d, s, n); }
void *t_memset(void *d, int v, size_t n) { return memset(d, v, n); }
int t_memcmp(void *a, void *b, size_t n) { return memcmp(a, b, n); }
"""
# Addresses go in as numbers: the library has another FFI instance than the buffers.
CDEF = """
uintptr_t t_memcpy(uintptr_t, uintptr_t, size_t);
uintptr_t t_memmove(uintptr_t, uintptr_t, size_t);
uintptr_t t_memset(uintptr_t, int, size_t);
int t_memcmp(uintptr_t, uintptr_t, size_t);
"""


class Memory:
    """The four functions of one build, on cffi pointers."""

    def __init__(self, released: Any) -> None:
        self._released = released

    def call(self, name: str, *arguments: Any) -> int:
        if self._released is None:
            result = getattr(lib, f"ix_base_{name}")(*arguments)
        else:
            plain = [
                int(ffi.cast("uintptr_t", a)) if isinstance(a, ffi.CData) else a for a in arguments
            ]
            result = getattr(self._released, f"t_{name}")(*plain)
        return int(ffi.cast("intptr_t", result))


@pytest.fixture(scope="module", params=["sanitized", "released"])
def memory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Memory:
    if request.param == "sanitized":
        return Memory(None)
    folder = tmp_path_factory.mktemp("memops")
    return Memory(load_object("ixnet/dataplane/base/memops.c", WRAPPER, CDEF, folder))


def address(pointer: Any) -> int:
    return int(ffi.cast("intptr_t", pointer))


def test_memcpy_every_size_copies_that_and_no_more(memory: Memory) -> None:
    for size in SIZES:
        data = random.Random(size).randbytes(size)
        for to_misalign, from_misalign in ((0, 0), (1, 0), (0, 3), (6, 2)):
            dst, src = exact(size, to_misalign), exact(data, from_misalign)
            assert memory.call("memcpy", dst, src, size) == address(dst)
            assert bytes(ffi.buffer(dst, size)) == data
        whole = exact(size + 64)
        memory.call("memcpy", whole + 32, exact(data), size)
        assert bytes(ffi.buffer(whole, size + 64)) == b"\xee" * 32 + data + b"\xee" * 32


def test_memmove_overlapping_either_way_moves(memory: Memory) -> None:
    for size in SIZES:
        data = random.Random(size).randbytes(size + 200)
        for shift in (0, 1, 2, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 100, 200):
            for to, start in ((0, shift), (shift, 0)):
                block = exact(data)
                expected = bytearray(data)
                expected[to : to + size] = data[start : start + size]
                assert memory.call("memmove", block + to, block + start, size) == address(
                    block + to
                )
                assert bytes(ffi.buffer(block, len(data))) == bytes(expected), (to, start)


def test_memmove_apart_copies(memory: Memory) -> None:
    for size in SIZES:
        data = random.Random(size).randbytes(size)
        dst = exact(size)
        memory.call("memmove", dst, exact(data), size)
        assert bytes(ffi.buffer(dst, size)) == data


def test_memset_every_size_fills_that_and_no_more(memory: Memory) -> None:
    for size in SIZES:
        for value in (0, 0x5A, 0xFF, 0x1A5, -1):
            exactly = exact(size)
            assert memory.call("memset", exactly, value, size) == address(exactly)
            whole = exact(size + 64)
            memory.call("memset", whole + 32, value, size)
            middle = bytes([value & 0xFF]) * size
            assert bytes(ffi.buffer(exactly, size)) == middle
            assert bytes(ffi.buffer(whole, size + 64)) == b"\xee" * 32 + middle + b"\xee" * 32


def test_memcmp_first_difference_decides(memory: Memory) -> None:
    for size in [1, 2, 3, 4, 6, 7, 8, 9, 15, 16, 17, 24, 31, 64, 65]:
        data = random.Random(size).randbytes(size)
        assert memory.call("memcmp", exact(data), exact(data, 3), size) == 0
        for place in range(size):
            # What follows the difference says the opposite, and must not count.
            low, high = bytearray(data), bytearray(data)
            low[place], high[place] = 0x7F, 0x80
            for after in range(place + 1, size):
                low[after], high[after] = 0xFF, 0x00
            assert memory.call("memcmp", exact(low), exact(high, 1), size) < 0
            assert memory.call("memcmp", exact(high), exact(low, 1), size) > 0


def test_memcmp_of_nothing_is_equal(memory: Memory) -> None:
    assert memory.call("memcmp", exact(b"a"), exact(b"b"), 0) == 0


def test_shipped_object_calls_nothing_not_even_itself() -> None:
    # gcc knows a copying loop when it sees one, and would call memcpy from inside memcpy.
    shipped = ROOT / "build/core/ixnet/dataplane/base/memops.o"
    if not shipped.exists():
        pytest.skip("memops.o is not built: run `make build`")
    run = subprocess.run(
        ["objdump", "-dr", "--no-show-raw-insn", str(shipped)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "<ix_base_memcpy>:" in run.stdout or "<memcpy>:" in run.stdout
    calls = [
        line for line in run.stdout.splitlines() if "\tcall" in line or "R_X86_64_PLT32" in line
    ]
    assert calls == []


def test_shipped_names_are_hidden(tmp_path: Path) -> None:
    # Visible, they would take the place of libc's in the process that loads the core.
    shipped = ROOT / "build/core/ixnet/dataplane/base/memops.o"
    if not shipped.exists():
        pytest.skip("memops.o is not built: run `make build`")
    run = subprocess.run(
        ["readelf", "-sW", str(shipped)], capture_output=True, text=True, check=True
    )
    seen = {
        fields[7]: fields[5] for line in run.stdout.splitlines() if len(fields := line.split()) == 8
    }
    for name in ("memcpy", "memmove", "memset", "memcmp"):
        assert seen[name] == "HIDDEN"
        assert seen[f"ix_base_{name}"] == "HIDDEN"
