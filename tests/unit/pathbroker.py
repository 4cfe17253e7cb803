"""The shim's path broker without a guest: the library that the tests call, trees, fixtures."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import socket
import stat
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

TREE = Path(__file__).resolve().parents[2]
FIRST_FD = 700
AT_FDCWD = -100
EMPTY_PATH, NOFOLLOW, FOLLOW, REMOVEDIR = 0x1000, 0x100, 0x400, 0x200
READ, WRITE, EXEC = 1, 2, 4
NET, SIGNAL = 1, 16
TMPFILE_BIT = os.O_TMPFILE & ~os.O_DIRECTORY
NR = {
    "open": 2, "close": 3, "stat": 4, "lstat": 6, "access": 21, "dup": 32, "dup2": 33,
    "socket": 41, "connect": 42, "sendto": 44, "bind": 49, "fcntl": 72, "truncate": 76,
    "chdir": 80, "rename": 82, "mkdir": 83, "rmdir": 84, "creat": 85, "link": 86, "unlink": 87,
    "symlink": 88, "readlink": 89, "chmod": 90, "fchmod": 91, "chown": 92, "fchown": 93,
    "lchown": 94, "utime": 132, "mknod": 133, "statfs": 137, "chroot": 161, "setxattr": 188,
    "lsetxattr": 189, "fsetxattr": 190, "getxattr": 191, "lgetxattr": 192, "listxattr": 194,
    "llistxattr": 195, "removexattr": 197, "lremovexattr": 198, "fremovexattr": 199,
    "utimes": 235, "inotify_add_watch": 254, "openat": 257, "mkdirat": 258, "mknodat": 259,
    "fchownat": 260, "futimesat": 261, "newfstatat": 262, "unlinkat": 263, "renameat": 264,
    "linkat": 265, "symlinkat": 266, "readlinkat": 267, "fchmodat": 268, "faccessat": 269,
    "utimensat": 280, "dup3": 292, "renameat2": 316, "statx": 332, "close_range": 436,
    "openat2": 437, "faccessat2": 439, "fchmodat2": 452,
}  # fmt: skip

Arg = int | str | bytes | Any


class Broker:
    """The two ways to make a call. Results as the kernel's: negative numbers are errnos."""

    def __init__(self, library: Path) -> None:
        self.lib = ctypes.CDLL(str(library))
        for name in ("paths_call", "paths_plain"):
            function = getattr(self.lib, name)
            function.restype = ctypes.c_long
            function.argtypes = [ctypes.c_long] + [ctypes.c_uint64] * 6
        self.lib.paths_why.restype = ctypes.c_char_p
        self.lib.paths_limits.restype = ctypes.c_uint64
        self.lib.paths_set_limit.restype = ctypes.c_long
        self.lib.paths_set_limit.argtypes = [ctypes.c_uint64] * 2
        assert self.lib.paths_init(FIRST_FD) == 0

    def _call(self, function: Callable[..., int], name: str, args: tuple[Arg, ...]) -> int:
        keep: list[Any] = []
        words: list[int] = []
        for arg in args:
            if isinstance(arg, int):
                words.append(arg & (1 << 64) - 1)
                continue
            if isinstance(arg, str):
                arg = os.fsencode(arg) + b"\0"
            if isinstance(arg, bytes):
                arg = ctypes.create_string_buffer(arg, len(arg))
            keep.append(arg)
            words.append(ctypes.addressof(arg))
        return function(NR[name], *words, *[0] * (6 - len(words)))

    def call(self, name: str, *args: Arg) -> int:
        return self._call(self.lib.paths_call, name, args)

    def plain(self, name: str, *args: Arg) -> int:
        return self._call(self.lib.paths_plain, name, args)

    def rules(self, *rules: tuple[str | Path, int], denied: int = 0, exe: str = "") -> None:
        self.lib.paths_no_rules()
        for path, access in rules:
            self.lib.paths_rule(os.fsencode(path), access)
        self.lib.paths_set(denied, os.fsencode(exe))


def build(made: Path, *flags: str) -> Path:
    command = ["gcc", "-std=gnu11", "-O1", "-g", "-fPIC", "-shared", "-D_GNU_SOURCE", "-Wall"]
    command += [*flags, f"-I{TREE}/libdune_shim", str(TREE / "tests/unit/dune_paths.c")]
    subprocess.run([*command, "-o", str(made), "-lpthread"], check=True)
    return made


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For processes of their own, which have no sanitizer."""
    return build(tmp_path_factory.mktemp("paths") / "paths.so")


@pytest.fixture(scope="module")
def module_broker(tmp_path_factory: pytest.TempPathFactory) -> Broker:
    sanitized = "libasan.so" in Path("/proc/self/maps").read_text()
    flags = ["-fsanitize=address"] if sanitized else []
    return Broker(build(tmp_path_factory.mktemp("paths") / "sanitized.so", *flags))


@pytest.fixture
def broker(module_broker: Broker) -> Iterator[Broker]:
    before = sorted(os.listdir("/proc/self/fd"))
    module_broker.rules()
    yield module_broker
    module_broker.rules()
    assert sorted(os.listdir("/proc/self/fd")) == before, "a descriptor leaked"


def make_tree(root: Path) -> None:
    """One of each kind of thing that a path can lead to."""
    shutil.rmtree(root, ignore_errors=True)
    (root / "d" / "sub").mkdir(parents=True)
    (root / "empty").mkdir()
    (root / "f").write_text("hello")
    (root / "d" / "x").write_text("x")
    (root / "e").write_text("#!/bin/true")
    (root / "e").chmod(0o755)
    (root / "sticky").mkdir()
    for link, target in (
        ("l_f", "f"), ("l_d", "d"), ("l_ds", "d/"), ("dangling", "nothere"),
        ("dang2", "dangling"), ("dang_d", "d/new"), ("dang_s", "nothere/"),
        ("dang_p", "nothere/deep"), ("loop", "loop"), ("loop2", "loop3"), ("loop3", "loop2"),
        ("abs", str(root / "f")), ("absdang", str(root / "absnew")), ("up", "../"),
        ("l_fifo", "fifo"), ("ll", "l_f"), ("d/back", "../f"), ("long", "x" * 300),
        ("d/dd", "../d/made"), ("null", "/dev/null"), ("stdin", "/proc/self/fd/0"),
    ):  # fmt: skip
        (root / link).symlink_to(target)
    os.mkfifo(root / "fifo")
    with socket.socket(socket.AF_UNIX) as made:
        here = os.open(root, os.O_PATH)
        made.bind(f"/proc/self/fd/{here}/sock")
        os.close(here)


def snapshot(root: Path) -> list[tuple[Any, ...]]:
    """What is in the tree, times left out."""
    found: list[tuple[Any, ...]] = []
    for directory, names, files in os.walk(root):
        for name in sorted(names + files):
            path = os.path.join(directory, name)
            what = os.lstat(path)
            target = ""
            if stat.S_ISLNK(what.st_mode):
                target = os.readlink(path).replace(str(root), "ROOT")
            found.append(
                (os.path.relpath(path, root), what.st_mode, what.st_nlink, what.st_uid,
                 what.st_size if stat.S_ISREG(what.st_mode) else 0, target)
            )  # fmt: skip
    return sorted(found)


class Pair:
    """Two equal trees; the process's directory is set to the one in use."""

    def __init__(self, base: Path) -> None:
        self.roots = (base / "plain", base / "broker")
        for root in self.roots:
            make_tree(root)
        self.fresh = snapshot(self.roots[0])

    def restore(self) -> None:
        for root in self.roots:
            if snapshot(root) != self.fresh:
                make_tree(root)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    here = os.getcwd()
    umask = os.umask(0o022)
    yield Pair(tmp_path)
    os.umask(umask)
    os.chdir(here)


PERMISSIVE = ("/", READ | WRITE | EXEC)
RULES = pytest.mark.parametrize("ruled", [False, True], ids=["open", "ruled"])


def how(flags: int, mode: int = 0, resolve: int = 0) -> bytes:
    return struct.pack("QQQ", flags, mode, resolve)


def error(result: int) -> str:
    return errno.errorcode[-result] if result < 0 else f"succeeded ({result})"


TIMES = struct.pack("4q", 1000, 0, 2000, 0)
