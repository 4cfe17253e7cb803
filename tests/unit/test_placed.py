"""native/placed: memory at chosen addresses, and mappings of it with other rights."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from tests.unit.san import ffi, lib

PAGE = 4096
WRITE, FILL = 1, 2


def reserve(nbytes: int, align: int = PAGE) -> int:
    at = ffi.new("uint64_t *")
    assert lib.ix_placed_reserve(nbytes, align, at) == 0
    return int(at[0])


def rights(at: int) -> str:
    """As /proc/self/maps has them; "" where nothing is."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, permits = line.split()[:2]
        low, high = (int(word, 16) for word in span.split("-"))
        if low <= at < high:
            return permits
    return ""


def test_two_mappings_of_one_memory_with_different_rights() -> None:
    fd = os.memfd_create("t", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 4 * PAGE)
    at, alias = reserve(8 * PAGE, 2 << 20), reserve(2 * PAGE)
    assert at % (2 << 20) == 0
    assert lib.ix_placed_map(at + PAGE, 4 * PAGE, fd, 0, WRITE | FILL) == 0
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, 0x10)  # F_SEAL_FUTURE_WRITE
    assert lib.ix_placed_map(alias, 2 * PAGE, fd, PAGE, WRITE) == -errno.EPERM
    assert lib.ix_placed_map(alias, 2 * PAGE, fd, PAGE, FILL) == 0
    os.close(fd)
    ffi.memmove(ffi.cast("char *", at + 2 * PAGE), b"seen", 4)
    assert bytes(ffi.buffer(ffi.cast("char *", alias), 4)) == b"seen"
    assert (rights(at), rights(at + PAGE), rights(alias)) == ("---p", "rw-s", "r--s")
    assert lib.ix_placed_clear(at + PAGE, 4 * PAGE) == 0
    assert rights(at + PAGE) == "---p"
    assert lib.ix_placed_release(at, 8 * PAGE) == 0
    assert lib.ix_placed_release(alias, 2 * PAGE) == 0


@pytest.mark.parametrize(
    ("nbytes", "align"), [(0, PAGE), (100, PAGE), (PAGE, 100), (PAGE, 3 * PAGE)]
)
def test_reservations_that_cant_be(nbytes: int, align: int) -> None:
    assert lib.ix_placed_reserve(nbytes, align, ffi.new("uint64_t *")) == -errno.EINVAL


def test_nothing_is_mapped_at_an_odd_address() -> None:
    assert lib.ix_placed_map(0, PAGE, -1, 0, WRITE) == -errno.EINVAL
    assert lib.ix_placed_map(4097, PAGE, -1, 0, WRITE) == -errno.EINVAL
