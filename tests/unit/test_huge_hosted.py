"""base/huge_hosted.c: memory that is mapped already, put on huge pages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.unit.san import ffi, lib

HUGE = 2 << 20


def huge_kib(at: int) -> int:
    """Of the mapping that begins there."""
    found = re.search(rf"^{at:x}-.*?^VmFlags", Path("/proc/self/smaps").read_text(), re.M | re.S)
    assert found
    return sum(map(int, re.findall(r"(?:ShmemPmdMapped|AnonHugePages): +(\d+)", found[0])))


def test_shared_memory_moves_to_huge_pages_and_keeps_what_is_in_it() -> None:
    mem, got, kind = ffi.new("void **"), ffi.new("uint64_t *"), ffi.new("uint32_t *")
    assert lib.ix_umem_alloc(2 * HUGE, 0, mem, got, kind) == 0
    assert kind[0] == lib.IX_UMEM_PAGES
    memory = ffi.buffer(mem[0], 2 * HUGE)
    memory[:] = text = bytes(range(256)) * (2 * HUGE // 256)
    try:
        is_huge = lib.ix_huge_collapse(mem[0], 2 * HUGE)
        assert memory[:] == text
        if not is_huge:
            pytest.skip("this kernel has no huge pages for shared memory (MADV_COLLAPSE)")
        assert huge_kib(int(ffi.cast("uintptr_t", mem[0]))) in (HUGE >> 10, 2 * HUGE >> 10)
    finally:
        lib.ix_umem_free(mem[0], got[0])


def test_memory_without_a_whole_huge_page_is_left_as_it_is() -> None:
    memory = ffi.new("char[]", b"text")
    assert lib.ix_huge_collapse(memory, len(memory)) == 0
    assert ffi.string(memory) == b"text"


def test_region_that_is_collapsed_says_whether_it_is() -> None:
    region = ffi.new("struct ix_region *")
    nbytes = 4 * HUGE
    assert lib.ix_region_map(region, nbytes, lib.IX_REGION_COLLAPSED, -1, 0) == 0
    at = int(ffi.cast("uintptr_t", region.base))
    assert bool(region.huge) == (huge_kib(at) > 0)
    assert bytes(ffi.buffer(region.base, nbytes)) == bytes(nbytes)
    lib.ix_region_unmap(region)
