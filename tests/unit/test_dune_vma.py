"""libdune_shim/shim/vma.c: what is mapped where, by ioctl and by reading /proc/self/maps."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path
from typing import Any

import cffi
import pytest

from tests.unit import san  # skips where the sanitizers' runtime is missing

assert san
TREE = Path(__file__).resolve().parents[2]
FLAGS = {"r": 1, "w": 2, "x": 4}


def _build() -> tuple[Any, Any]:
    made = TREE / "build" / "tests" / "unit" / "dune_vma.so"
    made.parent.mkdir(parents=True, exist_ok=True)
    flags = "-std=gnu11 -O1 -g -shared -fPIC -Wall -Werror -fsanitize=address,undefined"
    source = Path(__file__).with_name("dune_vma.c")
    command = ["gcc", *flags.split(), "-fno-sanitize-recover=all", f"-I{TREE / 'libdune_shim'}"]
    subprocess.run([*command, "-o", str(made), str(source)], check=True)
    ffi = cffi.FFI()
    ffi.cdef(
        "int test_ask(int how, int fd, uint64_t address, uint64_t out[3]);"
        "int test_descriptors(int pid, int child);"
    )
    return ffi, ffi.dlopen(str(made))


ffi, lib = _build()


def ask(how: int, fd: int, address: int) -> tuple[int, tuple[int, ...]]:
    out = ffi.new("uint64_t[3]")
    error = lib.test_ask(how, fd, address, out)
    return error, tuple(out) if not error else ()


@pytest.fixture
def sleeper() -> Any:
    """A process whose mappings don't change."""
    process = subprocess.Popen(["sleep", "60"])
    try:
        while b"sleep" not in Path(f"/proc/{process.pid}/cmdline").read_bytes():
            pass
        while "libc" not in (text := Path(f"/proc/{process.pid}/maps").read_text()):
            pass
        subprocess.run(["sleep", "0.2"], check=True)
        text = Path(f"/proc/{process.pid}/maps").read_text()
        yield process.pid, text
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("how", [0, 1])
def test_each_mapping_is_found_by_its_first_and_last_byte(how: int, sleeper: Any) -> None:
    pid, text = sleeper
    fd = os.open(f"/proc/{pid}/maps", os.O_RDONLY)
    try:
        if how == 0 and ask(0, fd, 0)[0] == -errno.ENOTTY:
            pytest.skip("PROCMAP_QUERY came with Linux 6.11")
        mappings = []
        for line in text.splitlines():
            where, flags, *_ = line.split()
            low, high = (int(number, 16) for number in where.split("-"))
            if low < 1 << 47:  # not the vsyscall page, which the ioctl doesn't know
                mappings.append((low, high, sum(FLAGS.get(flag, 0) for flag in flags[:3])))
        assert len(mappings) > 10
        ends = {high for _, high, _ in mappings} - {low for low, *_ in mappings}
        for low, high, flags in mappings:
            for address in (low, high - 1, (low + high) // 2):
                assert ask(how, fd, address) == (0, (low, high, flags))
        for address in (0, *ends):
            assert ask(how, fd, address)[0] == -errno.ENOENT
    finally:
        os.close(fd)


def test_forked_process_opens_its_own_descriptor() -> None:
    assert lib.test_descriptors(os.getpid(), os.getpid() + 1) >= 0
