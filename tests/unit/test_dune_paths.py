"""The shim's path broker against the kernel's own calls, without a guest.

Each case makes the same call twice, in two equal trees: plainly, and through the broker's
``dune_do_NAME()``. Result, errno and what it did to the tree must be the same.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import itertools
import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .pathbroker import (
    AT_FDCWD,
    EMPTY_PATH,
    FOLLOW,
    NOFOLLOW,
    PERMISSIVE,
    REMOVEDIR,
    RULES,
    TIMES,
    TMPFILE_BIT,
    Arg,
    Broker,
    Pair,
    broker,
    how,
    module_broker,
    pair,
    snapshot,
)

__all__ = ["broker", "module_broker", "pair"]  # fixtures

PATHS = (
    "", "f", "f/", "f/x", "f/.", "d", "d/", "d//", "d/.", "d/..", "d/x", "d/new", "d/new/", ".",
    "..", "./", "/", "//", "l_f", "l_f/", "l_d", "l_d/", "l_d/x", "l_d/new", "l_ds", "dangling",
    "dangling/", "dang2", "dang_d", "dang_s", "dang_p", "loop", "loop/", "loop2", "loop/x", "abs",
    "absdang", "up", "fifo", "l_fifo", "ll", "d/back", "d/dd", "long", "missing", "missing/",
    "missing/x", "d//x", "./f", "d/../f", "sock", "null", "empty", "e", "x" * 255, "x" * 256,
    "./" * 2047 + "f", "./" * 2048 + "f", "/dev/null", "ROOT/f", "ROOT/new", "ROOT/d/../l_f",
    "/proc/self/cwd/f", "/proc/self/cwd/new", "/proc/self/cwd", "/proc/self/root",
    "/proc/thread-self/cwd/d", "/proc/self/root/dev/null", "/proc/self/fd/DIR/f",
    "/proc/self/fd/DIR/new2", "/proc/self/fd/FILE", "/proc/self/fd/PIPE", "/dev/fd/FILE",
    "/proc/self/fd/9999", "/proc/self/exe", "/proc/self/status", "/proc/mounts", "/proc/self",
    "\xff",
)  # fmt: skip


class Descriptors:
    """Some that paths name: a directory, a file, a pipe. Of the tree that is current."""

    def __init__(self, root: Path) -> None:
        os.chdir(root)
        self.root = root
        self.directory = os.open("d", os.O_RDONLY)
        self.file = os.open("f", os.O_RDONLY)
        self.pipe = os.pipe()

    def path(self, text: str) -> str:
        for name, value in (("DIR", self.directory), ("FILE", self.file), ("PIPE", self.pipe[1])):
            text = text.replace(f"fd/{name}", f"fd/{value}")
        return text.replace("ROOT", str(self.root))

    def close(self) -> None:
        for fd in (self.directory, self.file, *self.pipe):
            os.close(fd)


def describe(fd: int, root: Path) -> tuple[Any, ...]:
    """What a descriptor is, comparably between the trees. Closes it."""
    try:
        what = os.fstat(fd)
        flags = fcntl_flags(fd) & ~os.O_NOFOLLOW
        name = os.readlink(f"/proc/self/fd/{fd}").replace(str(root), "ROOT")
        if not stat.S_ISREG(what.st_mode) or "#" in name or "pipe" in name:
            name = name.split("#")[0].split(":")[0]
        size = what.st_size if stat.S_ISREG(what.st_mode) and "/proc" not in name else 0
        return (stat.S_IFMT(what.st_mode), size, flags, os.get_inheritable(fd), name)
    finally:
        os.close(fd)


def fcntl_flags(fd: int) -> int:

    return fcntl.fcntl(fd, fcntl.F_GETFL)


Make = Callable[[str, Descriptors], int]


def both(broker: Broker, pair: Pair, step: Callable[[Any, Descriptors], Any]) -> tuple[Any, Any]:
    """The step's result with the plain call, and with the broker's."""
    results = []
    for root, call in zip(pair.roots, (broker.plain, broker.call), strict=True):
        open_ones = Descriptors(root)
        try:
            results.append(step(call, open_ones))
        finally:
            open_ones.close()
    return results[0], results[1]


ACCESS_MODES = (os.O_RDONLY, os.O_WRONLY, os.O_RDWR, 3)
OPEN_FLAGS = (
    os.O_CREAT, os.O_EXCL, os.O_NOFOLLOW, os.O_DIRECTORY, os.O_TRUNC, os.O_PATH, TMPFILE_BIT,
)  # fmt: skip


def flag_sets() -> list[int]:
    every = []
    for mode in ACCESS_MODES:
        for n in range(4 if mode == os.O_WRONLY else 3):
            for some in itertools.combinations(OPEN_FLAGS, n):
                every.append(mode | sum(some))
    return every


@RULES
def test_open_of_each_kind_with_each_flags_is_as_the_kernels(
    broker: Broker, pair: Pair, ruled: bool
) -> None:
    if ruled:
        broker.rules(PERMISSIVE)
    wrong = []
    for flags, path in itertools.product(flag_sets(), PATHS):

        def step(call: Any, at: Descriptors, path: str = path, flags: int = flags) -> Any:
            fd = call("open", at.path(path), flags | os.O_NONBLOCK, 0o640)
            return describe(fd, at.root) if fd >= 0 else errno.errorcode[-fd]

        plain, ours = both(broker, pair, step)
        if flags & (os.O_CREAT | os.O_TRUNC | TMPFILE_BIT):
            trees = [snapshot(root) for root in pair.roots]
            if trees[0] != trees[1]:
                wrong.append((path[:40], oct(flags), "trees", set(trees[0]) ^ set(trees[1])))
            if trees[0] != pair.fresh or trees[1] != pair.fresh:
                pair.restore()
        if plain != ours:
            wrong.append((path[:40], oct(flags), plain, ours))
    assert not wrong, f"{len(wrong)} differ: {wrong[:12]}"


@RULES
@pytest.mark.parametrize("resolve", [0, 1, 2, 4, 8, 16], ids=str)
def test_openat2_with_resolve_flags_is_as_the_kernels(
    broker: Broker, pair: Pair, ruled: bool, resolve: int
) -> None:
    if ruled:
        broker.rules(PERMISSIVE)
    wrong = []
    for flags in (os.O_RDONLY, os.O_PATH, os.O_PATH | os.O_NOFOLLOW, os.O_CREAT | os.O_WRONLY):
        for path in PATHS:
            leads_away = path in ("dangling", "dang2", "dang_d", "dang_p", "dang_s", "d/dd",
                                  "abs", "absdang", "null")  # fmt: skip
            if resolve in (8, 16) and flags & os.O_CREAT and leads_away:
                continue  # a dangling link in a scope is -EXDEV: path_open.c says so

            def step(call: Any, at: Descriptors, path: str = path, flags: int = flags) -> Any:
                here = os.open(at.root, os.O_PATH)
                extra = 0 if flags & os.O_PATH else os.O_NONBLOCK
                given = how(flags | extra, 0o600 if flags & os.O_CREAT else 0, resolve)
                fd = call("openat2", here, at.path(path), given, len(given))
                os.close(here)
                return describe(fd, at.root) if fd >= 0 else errno.errorcode[-fd]

            plain, ours = both(broker, pair, step)
            if flags & os.O_CREAT:
                pair.restore()
            if plain != ours:
                wrong.append((path[:40], oct(flags), plain, ours))
    assert not wrong, f"{len(wrong)} differ: {wrong[:12]}"


def test_openat2_with_odd_structures_is_as_the_kernels(broker: Broker) -> None:
    for given, size in (
        (how(0), 8), (how(0) + bytes(8), 32), (how(0) + b"\1" + bytes(7), 32), (how(0), 0),
        (how(1 << 40), 24), (how(0, 0o600), 24), (how(os.O_CREAT, 1 << 20), 24),
        (how(0, 0, 1 << 30), 24), (how(os.O_PATH | os.O_TRUNC), 24), (bytes(5000), 5000),
        (how(os.O_CREAT | os.O_DIRECTORY), 24), (how(0, 0, 8 | 16), 24),
    ):  # fmt: skip
        results = [call("openat2", AT_FDCWD, "/missing", given, size)
                   for call in (broker.plain, broker.call)]  # fmt: skip
        assert results[0] == results[1], (given, size)
    assert broker.call("openat2", AT_FDCWD, "/", how(0, 0, 32), 24) == -errno.EAGAIN
    assert broker.call("openat2", AT_FDCWD, "/", 8, 24) == -errno.EFAULT


Step = Callable[[Any, Descriptors, str], Any]


def numbers(nr: str, *rest: Arg) -> Step:
    """A call whose first argument is the path."""
    return lambda call, at, path: call(nr, path, *rest)


def at_call(nr: str, *rest: Arg) -> Step:
    """A call whose first two arguments are a directory and the path."""
    return lambda call, at, path: call(nr, AT_FDCWD, path, *rest)


def filling(nr: str, size: int, *rest: Arg, before: tuple[Arg, ...] = ()) -> Step:
    """Fills a buffer behind the path (and `before`): the result and what of it is comparable."""

    def step(call: Any, at: Descriptors, path: str) -> Any:
        buffer = ctypes.create_string_buffer(size)
        directory = () if nr in ("stat", "lstat", "statfs") else (AT_FDCWD,)
        result = call(nr, *directory, path, *before, buffer, *rest)
        if nr == "statx":
            return result, buffer.raw[28:30]
        return result, buffer.raw[24:28] if nr != "statfs" else buffer.raw[:8]

    return step


def reading(nr: str, *before: Arg) -> Step:
    def step(call: Any, at: Descriptors, path: str) -> Any:
        buffer = ctypes.create_string_buffer(64)
        result = call(nr, *before, path, buffer, 64)
        return result, buffer.raw.replace(os.fsencode(at.root), b"")[:4]

    return step


def going(call: Any, at: Descriptors, path: str) -> Any:
    result = call("chdir", path)
    where = os.getcwd().replace(str(at.root), "ROOT")
    os.chdir(at.root)
    return result, where


def watching(mask: int) -> Step:
    libc = ctypes.CDLL(None)

    def step(call: Any, at: Descriptors, path: str) -> Any:
        fd = libc.inotify_init1(os.O_CLOEXEC)
        result = call("inotify_add_watch", fd, path, mask)
        os.close(fd)
        return result

    return step


def attribute_times(path: str) -> tuple[int, int] | None:
    what = os.stat(path, follow_symlinks=False)
    return int(what.st_mtime), int(what.st_atime)


META: dict[str, Step] = {
    "stat": filling("stat", 144),
    "lstat": filling("lstat", 144),
    "newfstatat": filling("newfstatat", 144, 0),
    "newfstatat_nofollow": filling("newfstatat", 144, NOFOLLOW),
    "newfstatat_empty": filling("newfstatat", 144, EMPTY_PATH),
    "newfstatat_odd": filling("newfstatat", 144, 0x40000),
    "statx": filling("statx", 256, before=(0, 0x7FF)),
    "statx_nofollow": filling("statx", 256, before=(NOFOLLOW, 0x7FF)),
    "statfs": filling("statfs", 120),
    **{f"access{m}": numbers("access", m) for m in (0, 1, 2, 4, 7, 8)},
    "faccessat": at_call("faccessat", 4),
    "faccessat2": at_call("faccessat2", 4, NOFOLLOW | 0x200),
    "faccessat2_odd": at_call("faccessat2", 4, 0x40000),
    "readlink": reading("readlink"),
    "readlinkat": reading("readlinkat", AT_FDCWD),
    "readlink_0": lambda call, at, path: call("readlink", path, bytes(8), 0),
    "chdir": going,
    "inotify": watching(2),
    "inotify_dir": watching(2 | 0x01000000),
    "chmod": numbers("chmod", 0o604),
    "fchmodat": at_call("fchmodat", 0o700),
    "fchmodat2": at_call("fchmodat2", 0o701, NOFOLLOW),
    "chown": numbers("chown", 12, 13),
    "lchown": numbers("lchown", 12, 13),
    "fchownat": at_call("fchownat", 14, 15, 0),
    "fchownat_nofollow": at_call("fchownat", 14, 15, NOFOLLOW),
    "fchownat_odd": at_call("fchownat", 14, 15, 0x40000),
    "utime": numbers("utime", struct.pack("2q", 50, 60)),
    "utimes": numbers("utimes", TIMES),
    "futimesat": at_call("futimesat", TIMES),
    "utimensat": at_call("utimensat", TIMES, 0),
    "utimensat_nofollow": at_call("utimensat", TIMES, NOFOLLOW),
    "utimensat_odd": at_call("utimensat", TIMES, 0x40000),
    "truncate": numbers("truncate", 3),
    "setxattr": numbers("setxattr", "user.a", b"value", 5, 0),
    "lsetxattr": numbers("lsetxattr", "user.a", b"value", 5, 0),
    "lsetxattr_trusted": numbers("lsetxattr", "trusted.a", b"value", 5, 0),
    "getxattr": numbers("getxattr", "user.a", bytes(16), 16),
    "lgetxattr": numbers("lgetxattr", "user.a", bytes(16), 16),
    "listxattr": numbers("listxattr", bytes(16), 16),
    "llistxattr": numbers("llistxattr", bytes(16), 16),
    "removexattr": numbers("removexattr", "user.a"),
    "lremovexattr": numbers("lremovexattr", "user.a"),
    "mkdir": numbers("mkdir", 0o750),
    "mkdirat": at_call("mkdirat", 0o750),
    "rmdir": numbers("rmdir"),
    "unlink": numbers("unlink"),
    "unlinkat": at_call("unlinkat", 0),
    "unlinkat_dir": at_call("unlinkat", REMOVEDIR),
    "unlinkat_odd": at_call("unlinkat", 0x40000),
    "symlink": lambda call, at, path: call("symlink", "target", path),
    "symlinkat": lambda call, at, path: call("symlinkat", "target", AT_FDCWD, path),
    "mknod": numbers("mknod", 0o010600, 0),
    "mknodat": at_call("mknodat", 0o100600, 0),
    "rename_from": lambda call, at, path: call("rename", path, "renamed"),
    "rename_to": lambda call, at, path: call("rename", "e", path),
    "rename_dir_to": lambda call, at, path: call("renameat", AT_FDCWD, "empty", AT_FDCWD, path),
    "exchange": lambda call, at, path: call("renameat2", AT_FDCWD, "e", AT_FDCWD, path, 2),
    "noreplace": lambda call, at, path: call("renameat2", AT_FDCWD, "e", AT_FDCWD, path, 1),
    "link_from": lambda call, at, path: call("link", path, "linked"),
    "link_to": lambda call, at, path: call("link", "e", path),
    "linkat_follow": lambda call, at, path: call(
        "linkat", AT_FDCWD, path, AT_FDCWD, "linked", FOLLOW
    ),
}
# What is not a matter of the tree: don't change the machine.
OUTSIDE = ("..", "/", "//", "d/..", "up", "null", "/dev/", "/proc/self/root", "/proc/m")
READS = ("stat", "lstat", "newf", "statx", "access", "facc", "readlink", "chdir", "inotify", "getx",
         "listx", "lgetx", "llist")  # fmt: skip


@RULES
@pytest.mark.parametrize("name", META)
def test_other_calls_with_a_path_are_as_the_kernels(
    broker: Broker, pair: Pair, name: str, ruled: bool
) -> None:
    if ruled:
        broker.rules(PERMISSIVE)
    wrong = []
    for path in PATHS:
        if not name.startswith(READS) and path.startswith(OUTSIDE) and path not in ("d/..",):
            continue
        if name.startswith(("chmod", "fchmod", "chown", "fchown")) and "/proc" in path:
            continue

        def step(call: Any, at: Descriptors, path: str = path) -> Any:
            return META[name](call, at, at.path(path))

        plain, ours = both(broker, pair, step)
        if not name.startswith(READS):
            trees = [snapshot(root) for root in pair.roots]
            if trees[0] != trees[1]:
                wrong.append((path[:40], "trees", set(trees[0]) ^ set(trees[1])))
            if "utim" in name:
                times = [attribute_times(str(root / "f")) for root in pair.roots]
                if times[0] != times[1] and path in ("f", "l_f", "./f"):
                    wrong.append((path[:40], times))
            pair.restore()
        if plain != ours and not (name == "inotify_dir" and path.startswith("/proc")):
            wrong.append((path[:40], plain, ours))
    assert not wrong, f"{len(wrong)} differ: {wrong[:12]}"
