"""Memory that is shared with workers: where a shard lies in the inline placement."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ixnet._core import ffi, lib
from ixnet.control.errors import from_errno
from ixnet.control.stats import stats_bytes


class Region:
    """Memory shared with later children (native/region.h). head: file of its first pages."""

    def __init__(self, nbytes: int, huge: str, head: Path | None = None) -> None:
        self._region = ffi.new("struct ix_region *")
        fd, head_bytes = -1, 0
        if head is not None:
            head_bytes = stats_bytes()
            fd = os.open(head, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            if fd >= 0:
                os.ftruncate(fd, head_bytes)
            result = -1
            if huge != "no":
                how = lib.IX_REGION_HUGETLB
                result = lib.ix_region_map(self._region, nbytes, how, fd, head_bytes)
            if result < 0 and huge != "yes":
                how = lib.IX_REGION_COLLAPSED if huge == "auto" else lib.IX_REGION_SMALL
                result = lib.ix_region_map(self._region, nbytes, how, fd, head_bytes)
        finally:
            if fd >= 0:
                os.close(fd)
        if result < 0:
            cure = "free memory, or ask for fewer flows and frames"
            if huge == "yes":
                cure = huge_pages_cure(nbytes)
            raise from_errno(result, f"get {nbytes >> 20} MiB of memory for a shard", cure)

    @property
    def base(self) -> Any:
        """Its first byte, as a cffi pointer."""
        return self._region.base

    @property
    def nbytes(self) -> int:
        """Usable bytes."""
        return int(self._region.bytes)

    @property
    def is_huge(self) -> bool:
        """Whether it lies on huge pages."""
        return bool(self._region.huge)

    def zero(self) -> None:
        """Zeroes all of it."""
        chunk = bytes(1 << 20)
        for at in range(0, self.nbytes, len(chunk)):
            ffi.memmove(self.base + at, chunk, min(len(chunk), self.nbytes - at))

    def close(self) -> None:
        """Unmaps it. Safe to repeat."""
        lib.ix_region_unmap(self._region)


def huge_pages_cure(nbytes: int) -> str:
    """How to get huge pages for `nbytes` bytes more."""
    return f"set more aside: sysctl vm.nr_hugepages (at least {(nbytes >> 21) + 1} free for this)"
