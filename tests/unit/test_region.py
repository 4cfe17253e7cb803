"""native/region.c: memory that workers share with the control plane."""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest

from tests.unit.san import ffi, lib


def test_region_shares_its_head_with_the_file_and_its_body_with_children(tmp_path: Any) -> None:
    path = tmp_path / "head"
    path.write_bytes(bytes(8192))
    region = ffi.new("struct ix_region *")
    with path.open("r+b") as file:
        assert lib.ix_region_map(region, 100_000, 0, file.fileno(), 8192) == 0
    assert int(ffi.cast("uintptr_t", region.base)) % 4096 == 0
    memory = ffi.buffer(region.base, 100_000)
    assert bytes(memory) == bytes(100_000)
    memory[0:4], memory[8188:8196] = b"head", b"headbody"
    assert path.read_bytes()[:4] == b"head"
    assert path.read_bytes()[-4:] == b"head", "the file ends where the body begins"
    pid = os.fork()
    if pid == 0:
        memory[99_999:100_000] = b"!"
        os._exit(0)
    os.waitpid(pid, 0)
    assert memory[99_999:100_000] == b"!"
    lib.ix_region_unmap(region)
    assert region.base == ffi.NULL
    lib.ix_region_unmap(region)


@pytest.mark.parametrize(
    ("nbytes", "fd", "head"), [(0, -1, 0), (8192, -1, 4096), (8192, 0, 0), (8192, 0, 100),
                               (4096, 0, 8192)]
)  # fmt: skip
def test_region_of_nonsense_is_refused(nbytes: int, fd: int, head: int) -> None:
    region = ffi.new("struct ix_region *")
    assert lib.ix_region_map(region, nbytes, 0, fd, head) == -errno.EINVAL
    assert region.map == ffi.NULL


def test_region_on_huge_pages_that_are_not_there_is_enomem() -> None:
    try:
        with open("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages") as file:
            free = int(file.read())
    except OSError:
        pytest.skip("no 2 MiB pages on this kernel")
    region = ffi.new("struct ix_region *")
    assert lib.ix_region_map(region, (free + 1) << 21, 1, -1, 0) == -errno.ENOMEM
    assert region.map == ffi.NULL
