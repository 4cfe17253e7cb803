"""The shim's path broker: what it never opens, its descriptors, races, rules, sockets."""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .pathbroker import (
    AT_FDCWD,
    EMPTY_PATH,
    EXEC,
    FIRST_FD,
    FOLLOW,
    NET,
    PERMISSIVE,
    READ,
    RULES,
    SIGNAL,
    TIMES,
    TREE,
    WRITE,
    Broker,
    broker,
    error,
    how,
    library,
    module_broker,
)

__all__ = ["broker", "library", "module_broker"]  # fixtures

# ---- what is never opened --------------------------------------------------------------------


def ways_to(path: str, base: Path) -> list[str]:
    """Names of one object: absolute, relative, by links and procfs's magic."""
    base.mkdir(exist_ok=True)
    link, chain, parent = base / "link", base / "chain", base / "parent"
    for made in (link, chain, parent):
        made.unlink(missing_ok=True)
    link.symlink_to(path)
    chain.symlink_to("link")
    parent.symlink_to(os.path.dirname(path))
    name = os.path.basename(path)
    return [
        path, "/" + path, path.replace("/", "//./"), os.path.relpath(path), str(link), str(chain),
        f"{parent}/{name}", f"{parent}/../{os.path.basename(os.path.realpath(parent))}/{name}",
        f"/proc/self/root{path}", f"/proc/{os.getpid()}/root{path}",
        f"/proc/self/task/{os.getpid()}/root{path}", f"/proc/thread-self/root/{path}",
        f"/proc/self/cwd/{os.path.relpath(path)}",
    ]  # fmt: skip


def dangers() -> list[str]:
    tid = os.getpid()
    found = [
        "/dev/kvm", "/dev/mem", "/dev/kmem", "/dev/port", "/dev/userfaultfd", "/dev/vhost-net",
        "/proc/kcore", "/proc/self/mem", "/proc/thread-self/mem", f"/proc/{tid}/mem",
        f"/proc/self/task/{tid}/mem", f"/proc/{os.getppid()}/mem", "/proc/1/mem",
    ]  # fmt: skip
    return [path for path in found if os.path.exists(path)]


@RULES
@pytest.mark.parametrize("path", dangers())
def test_no_way_to_a_danger_opens_it(
    broker: Broker, tmp_path: Path, path: str, ruled: bool
) -> None:
    if ruled:
        broker.rules(PERMISSIVE)
    for way in ways_to(path, tmp_path / "ways"):
        for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR | os.O_CREAT, os.O_PATH,
                      os.O_RDONLY | os.O_NONBLOCK, 3):  # fmt: skip
            assert error(broker.call("open", way, flags, 0o600)) == "EACCES", (way, oct(flags))
            assert error(broker.call("openat", AT_FDCWD, way, flags, 0o600)) == "EACCES"
            mode = 0o600 if flags & os.O_CREAT else 0
            got = broker.call("openat2", AT_FDCWD, way, how(flags & ~3 | flags & 2, mode), 24)
            assert error(got) == "EACCES", (way, oct(flags))
        assert error(broker.call("creat", way, 0o600)) == "EACCES"
    # by a descriptor that somebody got outside
    outside = os.open(path, os.O_PATH)
    try:
        for name in ("self", "thread-self", str(os.getpid())):
            way = f"/proc/{name}/fd/{outside}"
            assert error(broker.call("open", way, os.O_RDWR)) == "EACCES"
        directory = os.open(os.path.dirname(path), os.O_RDONLY)
        assert error(broker.call("openat", directory, os.path.basename(path), 0)) == "EACCES"
        os.close(directory)
    finally:
        os.close(outside)


def test_a_device_is_what_its_number_says(broker: Broker, tmp_path: Path) -> None:
    for name, major, minor, bad in (
        ("a", 10, 232, True), ("b", 1, 1, True), ("c", 1, 2, True), ("d", 1, 4, True),
        ("e", 202, 0, True), ("f", 10, 238, True), ("null", 1, 3, False), ("zero", 1, 5, False),
    ):  # fmt: skip
        os.mknod(tmp_path / name, stat.S_IFCHR | 0o666, os.makedev(major, minor))
        fd = broker.call("open", str(tmp_path / name), os.O_RDONLY)
        assert error(fd) == "EACCES" if bad else fd >= 0, name
        if fd >= 0:
            os.close(fd)
    for line in Path("/proc/misc").read_text().splitlines():
        minor, driver = line.split()
        node = tmp_path / f"misc{minor}"
        os.mknod(node, stat.S_IFCHR | 0o666, os.makedev(10, int(minor)))
        fd = broker.call("open", str(node), os.O_PATH)
        bad = driver.startswith(("kvm", "userfaultfd", "vhost", "vfio", "iommu", "snapshot"))
        assert (error(fd) == "EACCES") == bad, driver
        if fd >= 0:
            os.close(fd)


def test_other_files_of_procfs_and_sysfs_open(broker: Broker) -> None:
    for path in (
        "/proc/self/maps", "/proc/self/status", "/proc/meminfo", "/proc/self/mountinfo",
        "/proc/sys/kernel/osrelease", "/proc/net/dev",
        "/sys/kernel/mm/transparent_hugepage/enabled",
    ):  # fmt: skip
        if os.path.exists(path):
            fd = broker.call("open", path, os.O_RDONLY)
            assert fd >= 0, path
            os.close(fd)


def test_a_bind_mounted_file_of_procfs_is_refused(tmp_path: Path, library: Path) -> None:
    """In a mount namespace of its own, where /proc/self/mem has another name."""
    code = f"""
import ctypes, os
from tests.unit.pathbroker import *
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x20000) == 0 and libc.mount(b"", b"/", b"", 0x44000, None) == 0
target = {str(tmp_path / "innocent")!r}
open(target, "w").close()
assert libc.mount(b"/proc/self/mem", target.encode(), b"", 4096, None) == 0
broker = Broker(Path({str(library)!r}))
assert os.path.getsize(target) == 0 and os.open(target, os.O_RDWR) > 0
print(error(broker.call("open", target, os.O_RDWR)), broker.lib.paths_why())
"""
    done = alone(code)
    assert done.startswith("EACCES b'a file of procfs under another name'"), done


def alone(code: str) -> str:
    """Runs it in a fresh interpreter: for what would upset this one."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=TREE, capture_output=True, text=True, timeout=240
    )
    print(done.stderr)
    assert done.returncode == 0
    return done.stdout


# ---- the shim's descriptors ------------------------------------------------------------------


def test_the_shims_descriptors_are_nobodys(broker: Broker, tmp_path: Path) -> None:
    mine = os.open("/dev/null", os.O_RDONLY)
    for theirs in (FIRST_FD, FIRST_FD + 1, FIRST_FD + 2, 0x7FFFFFFF):
        assert error(broker.call("close", theirs)) == "EBADF"
        assert error(broker.call("dup", theirs)) == "EBADF"
        assert error(broker.call("dup2", theirs, 50)) == "EBADF"
        assert error(broker.call("dup2", mine, theirs)) == "EBADF"
        assert error(broker.call("dup2", theirs, theirs)) == "EBADF"
        assert error(broker.call("dup3", mine, theirs, 0)) == "EBADF"
        for command in (0, 1, 2, 3, 4, 1030):
            assert error(broker.call("fcntl", theirs, command, 0)) == "EBADF"
        assert error(broker.call("fcntl", mine, 0, theirs)) == "EINVAL"
        assert error(broker.call("fcntl", mine, 1027, theirs)) == "EBADF"
        assert error(broker.call("openat", theirs, "self/mem", 0)) == "EBADF"
        assert error(broker.call("openat", theirs, "version", 0)) == "EBADF"
        for name in ("self", "thread-self", str(os.getpid())):
            assert error(broker.call("open", f"/proc/{name}/fd/{theirs}", 0)) == "ENOENT"
        fd = broker.call("openat", theirs, "/dev/null", 0)
        assert fd >= 0
        os.close(fd)
    os.close(mine)


def test_close_range_stops_below_the_shims_descriptors(library: Path) -> None:
    code = f"""
from tests.unit.pathbroker import *
broker = Broker(Path({str(library)!r}))
assert broker.call("close_range", 3, 0xffffffff, 2) == -errno.EINVAL
assert broker.call("close_range", 9, 3, 0) == -errno.EINVAL
assert broker.call("close_range", FIRST_FD, 0xffffffff, 0) == 0
assert broker.call("close_range", 3, 0xffffffff, 4) == 0
assert broker.call("close_range", 3, 0xffffffff, 0) == 0
assert broker.call("close_range", 0, FIRST_FD - 1, 4) == 0
print(sorted(map(int, os.listdir("/proc/self/fd")))[:6])
fd = broker.call("open", "/dev/null", 0)
print(error(broker.call("open", "/proc/self/mem", 0)), fd)
"""
    lines = alone(code).splitlines()
    assert lines[0] == f"[0, 1, 2, 3, {FIRST_FD}, {FIRST_FD + 1}]"  # 3: listdir's own
    assert lines[1] == "EACCES 3"


def test_descriptors_end_at_ring_3s_limit(library: Path) -> None:
    code = f"""
from tests.unit.pathbroker import *
broker = Broker(Path({str(library)!r}))
lib = broker.lib
assert lib.paths_limits() == FIRST_FD << 32 | FIRST_FD
assert lib.paths_set_limit(20, 10) == -errno.EINVAL
assert lib.paths_set_limit(20, FIRST_FD + 1) == -errno.EPERM
assert lib.paths_set_limit(30, 600) == 0
got = []
while (fd := broker.call("open", "/dev/null", 0)) >= 0:
    got.append(fd)
print(error(fd), got[-1], error(broker.call("dup", 0)), error(broker.call("fcntl", 0, 0, 30)),
      error(broker.call("fcntl", 0, 0, 0)), error(broker.call("dup2", 0, 30)),
      error(broker.call("openat", AT_FDCWD, "/tmp", os.O_TMPFILE | 2, 0o600)),
      error(broker.call("socket", 1, 1, 0)))
assert broker.call("stat", "/dev/null", ctypes.create_string_buffer(144)) == 0
"""
    lines = alone(code).splitlines()
    assert lines[0] == "EMFILE 29 EMFILE EINVAL EMFILE EBADF EMFILE EMFILE"


def test_a_lookup_keeps_the_processs_record_locks(broker: Broker, tmp_path: Path) -> None:
    """fcntl() locks fall when any descriptor of the file is closed."""
    broker.rules(PERMISSIVE)
    path = tmp_path / "locked"
    path.write_text("x")
    fd = os.open(path, os.O_RDWR)
    fcntl.lockf(fd, fcntl.LOCK_EX)
    assert broker.call("fchmod", fd, 0o600) == 0
    assert broker.call("stat", str(path), ctypes.create_string_buffer(144)) == 0
    assert broker.call("utimensat", fd, 0, TIMES, 0) == 0
    test = "import fcntl,sys; f=open(sys.argv[1],'r+'); fcntl.lockf(f, fcntl.LOCK_EX|fcntl.LOCK_NB)"
    held = subprocess.run([sys.executable, "-c", test, str(path)], capture_output=True)
    os.close(fd)
    assert b"BlockingIOError" in held.stderr


# ---- races -----------------------------------------------------------------------------------


@pytest.mark.parametrize("ruled", [0, 1], ids=["open", "ruled"])
@pytest.mark.parametrize("over", [0, 1], ids=["link", "link_and_low_descriptors"])
def test_a_link_that_flips_to_a_danger_never_opens_it(
    library: Path, tmp_path: Path, ruled: int, over: int
) -> None:
    (tmp_path / "good").write_text("good")
    code = f"""
from tests.unit.pathbroker import *
base = {str(tmp_path)!r}
broker = Broker(Path({str(library)!r}))
if {ruled}:
    broker.rules(PERMISSIVE)
file = os.open("/dev/null", os.O_RDWR)
first = os.dup(0)
os.close(first)
counts = (ctypes.c_long * 4)()
race = broker.lib.paths_race
race.argtypes = [ctypes.c_char_p] * 3 + [ctypes.c_int] * 3 + [ctypes.c_long, ctypes.c_uint64]
race.argtypes = [*race.argtypes, ctypes.c_void_p]
race.restype = None
race(f"{{base}}/link".encode(), f"{{base}}/good".encode(), b"/proc/self/mem", first,
     first + 2 if {over} else first - 1, file, 20000, os.O_RDWR, counts)
print(*counts)
"""
    opened, refused, others, wrong = map(int, alone(code).split())
    assert wrong == 0
    assert opened > 0 and refused > 0, (opened, refused, others, wrong)


@RULES
def test_a_link_put_where_a_file_is_being_made_is_not_followed(
    broker: Broker, tmp_path: Path, ruled: bool
) -> None:
    if ruled:
        broker.rules(PERMISSIVE)
    new, other = tmp_path / "new", tmp_path / "other"
    for target, flags, wanted in (
        ("/proc/self/mem", os.O_CREAT | os.O_RDWR, "EACCES"),
        ("/proc/self/mem", os.O_CREAT | os.O_RDWR | os.O_EXCL, "EEXIST"),
        ("loop", os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, "ELOOP"),
    ):
        new.unlink(missing_ok=True)

        def plant(target: str = target) -> None:
            if not os.path.lexists(new):
                os.symlink(target, new)

        hook = ctypes.CFUNCTYPE(None)(plant)
        broker.lib.paths_before(hook)
        try:
            assert error(broker.call("open", str(new), flags, 0o600)) == wanted
        finally:
            broker.lib.paths_before(None)
    # and one that dangles is made at its end, as by the kernel
    new.unlink()
    new.symlink_to("other")
    fd = broker.call("open", str(new), os.O_CREAT | os.O_RDWR, 0o600)
    assert fd >= 0 and other.exists()
    os.close(fd)


# ---- rules -----------------------------------------------------------------------------------


@pytest.fixture
def ruled_tree(broker: Broker, tmp_path: Path) -> Iterator[Path]:
    """box: ro (read), rw (read and write), rw/secret (nothing), out (write), x (execute)."""
    here = os.getcwd()
    box = tmp_path.resolve() / "box"
    for name in ("ro", "rw/sub", "rw/secret", "out", "x", "none"):
        (box / name).mkdir(parents=True)
        (box / name / "file").write_text(name)
    (box / "rw" / "only").write_text("only")
    (box / "rwx").mkdir()
    (box / "rwx" / "file").write_text("beside it")
    (box / "x" / "run").write_text("#!/bin/true\n")
    (box / "x" / "run").chmod(0o755)
    for name, target in (("to_ro", "../ro/file"), ("to_none", "../none/file"),
                         ("to_none_dir", "../none"), ("dangling", "../ro/made"),
                         ("to_self", "/proc/self")):  # fmt: skip
        (box / "rw" / name).symlink_to(target)
    broker.rules(
        (box / "ro", READ), (box / "rw", READ | WRITE), (box / "rw/secret", 0),
        (box / "out", WRITE), (box / "x", READ | EXEC), (box / "rw/only", READ),
        ("/proc/self", READ),
    )  # fmt: skip
    os.chdir(box / "rw")
    yield box
    os.chdir(here)


def test_the_longest_rule_counts(broker: Broker, ruled_tree: Path) -> None:
    cases = (
        ("../ro/file", os.O_RDONLY, True), ("../ro/file", os.O_WRONLY, False),
        ("../ro/file", os.O_RDWR, False), ("../ro/file", os.O_RDONLY | os.O_TRUNC, False),
        ("../ro/file", 3, False), ("../ro/file", os.O_PATH, True),
        ("../ro/new", os.O_WRONLY | os.O_CREAT, False),
        ("../ro/new", os.O_RDONLY | os.O_CREAT, False),
        ("../ro/new", os.O_RDONLY | os.O_CREAT | os.O_EXCL, False),
        ("../ro", os.O_RDWR | os.O_TMPFILE, False), ("../ro", os.O_RDONLY, True),
        ("sub/file", os.O_RDWR | os.O_TRUNC, True), ("sub/new", os.O_RDWR | os.O_CREAT, True),
        ("sub", os.O_RDWR | os.O_TMPFILE, True), ("../rwx/file", os.O_RDONLY, False),
        ("secret/file", os.O_RDONLY, False),
        ("secret", os.O_RDONLY, False), ("secret", os.O_PATH, False),
        ("sub/../secret/file", os.O_RDONLY, False), ("only", os.O_RDONLY, True),
        ("only", os.O_WRONLY, False), ("../out/file", os.O_WRONLY, True),
        ("../out/file", os.O_RDONLY, False), ("../out/new", os.O_WRONLY | os.O_CREAT, True),
        ("../out/new2", os.O_RDWR | os.O_CREAT, False), ("../none/file", os.O_RDONLY, False),
        ("to_ro", os.O_RDONLY, True), ("to_ro", os.O_WRONLY, False),
        ("to_none", os.O_RDONLY, False), ("to_none_dir/file", os.O_RDONLY, False),
        ("dangling", os.O_WRONLY | os.O_CREAT, False), ("..", os.O_RDONLY, False),
        ("..", os.O_PATH, True), ("/", os.O_PATH, True), ("/", os.O_RDONLY, False),
        ("/etc/passwd", os.O_RDONLY, False), ("/etc", os.O_PATH, False),
        ("/proc/self/status", os.O_RDONLY, True), ("to_self/status", os.O_RDONLY, True),
        (f"/proc/{os.getpid()}/status", os.O_RDONLY, True),
        (f"/proc/{os.getppid()}/status", os.O_RDONLY, False),
        ("/proc/self/comm", os.O_WRONLY, False),
        ("/proc/self/cwd/sub/file", os.O_RDONLY, True),
        ("/proc/self/cwd/secret/file", os.O_RDONLY, False),
        ("/proc/self/root/etc/passwd", os.O_RDONLY, False),
        ("/proc/self/cwd/made", os.O_WRONLY | os.O_CREAT, True),
        ("/proc/self/cwd/secret/made", os.O_WRONLY | os.O_CREAT, False),
    )  # fmt: skip
    for path, flags, allowed in cases:
        fd = broker.call("open", path, flags, 0o600)
        assert fd >= 0 if allowed else error(fd) == "EACCES", (path, oct(flags), error(fd))
        if fd >= 0:
            os.close(fd)
    assert not (ruled_tree / "ro" / "made").exists() and not (ruled_tree / "ro" / "new").exists()


def test_a_refusal_says_what_and_why(broker: Broker, ruled_tree: Path) -> None:
    before = broker.lib.paths_refusals()
    assert error(broker.call("open", "to_none", os.O_RDONLY)) == "EACCES"
    assert broker.lib.paths_refusals() == before + 1
    assert broker.lib.paths_why().decode() == f"no rule lets it read {ruled_tree}/none/file"


def test_looking_needs_a_rule_at_or_below(broker: Broker, ruled_tree: Path) -> None:
    buffer = ctypes.create_string_buffer(256)
    for path, allowed in (
        ("/", True), (str(ruled_tree), True), ("sub/file", True), ("secret/file", False),
        ("to_none", False), ("/etc", False), ("../out/file", True), ("/proc/self", True),
    ):  # fmt: skip
        wanted = "EACCES" if not allowed else "succeeded (0)"
        assert error(broker.call("stat", path, buffer)) == wanted, path
        assert error(broker.call("statx", AT_FDCWD, path, 0, 0x7FF, buffer)) == wanted, path
        assert error(broker.call("access", path, 0)) == wanted, path
    assert broker.call("lstat", "to_none", buffer) == 0
    assert broker.call("readlink", "to_none", buffer, 256) == 12
    assert error(broker.call("readlink", "../none/file", buffer, 256)) == "EACCES"
    assert error(broker.call("chdir", "../none")) == "EACCES"
    assert broker.call("chdir", "..") == 0
    assert broker.call("access", "ro/file", 4) == 0
    assert error(broker.call("access", "ro/file", 2)) == "EACCES"
    assert error(broker.call("access", "ro/file", 1)) == "EACCES"
    assert broker.call("access", "x/run", 1) == 0
    assert broker.call("access", "x", 1) == 0
    assert error(broker.call("chroot", "ro")) == "EPERM"


def test_changes_need_a_writable_name(broker: Broker, ruled_tree: Path) -> None:
    value = b"v"
    for name in ("../ro/file", "only", "secret/file", "to_ro", "to_none_dir/file"):
        assert error(broker.call("chmod", name, 0o777)) == "EACCES"
        assert error(broker.call("chown", name, 1, 1)) == "EACCES"
        assert error(broker.call("truncate", name, 0)) == "EACCES"
        assert error(broker.call("utimensat", AT_FDCWD, name, TIMES, 0)) == "EACCES"
        assert error(broker.call("setxattr", name, "user.a", value, 1, 0)) == "EACCES"
    for name in ("../ro/new", "secret/new", "to_none_dir/new", "/etc/new"):
        assert error(broker.call("mkdir", name, 0o777)) == "EACCES"
        assert error(broker.call("symlink", "x", name)) == "EACCES"
        assert error(broker.call("mknod", name, 0o10600, 0)) == "EACCES"
        assert error(broker.call("rename", "sub/file", name)) == "EACCES"
        assert error(broker.call("link", "sub/file", name)) == "EACCES"
    for name in ("../ro/file", "only", "secret/file", "to_none_dir/file"):
        assert error(broker.call("unlink", name)) == "EACCES"
        assert error(broker.call("rename", name, "sub/moved")) == "EACCES"
    assert error(broker.call("mknod", "dev", 0o20600, os.makedev(1, 1))) == "EPERM"
    assert broker.call("mkdir", "fresh", 0o777) == 0
    assert broker.call("rename", "sub/file", "fresh/file") == 0
    assert broker.call("unlink", "fresh/file") == 0 and broker.call("rmdir", "fresh") == 0


def test_a_descriptor_for_reading_is_not_enough_to_change_the_inode(
    broker: Broker, ruled_tree: Path
) -> None:
    fd = os.open("../ro/file", os.O_RDONLY)
    for name, args in (
        ("fchmod", (0o777,)), ("fchown", (1, 1)), ("fsetxattr", ("user.a", b"v", 1, 0)),
        ("fremovexattr", ("user.a",)), ("utimensat", (0, TIMES, 0)),
        ("fchownat", ("", 1, 1, EMPTY_PATH)), ("fchmodat2", ("", 0o777, EMPTY_PATH)),
    ):  # fmt: skip
        assert error(broker.call(name, fd, *args)) == "EACCES", name
    buffer = ctypes.create_string_buffer(144)
    assert broker.call("newfstatat", fd, "", buffer, EMPTY_PATH) == 0
    assert error(broker.call("open", f"/proc/self/fd/{fd}", os.O_RDWR)) == "EACCES"
    again = broker.call("open", f"/proc/self/fd/{fd}", os.O_RDONLY)
    assert again >= 0
    os.close(again)
    os.close(fd)
    fd = os.open("sub/file", os.O_RDONLY)
    assert broker.call("fchmod", fd, 0o601) == 0 and broker.call("utimensat", fd, 0, TIMES, 0) == 0
    assert os.fstat(fd).st_mode & 0o777 == 0o601 and os.fstat(fd).st_mtime == 2000
    os.close(fd)


def test_a_new_name_gives_no_wider_rights(broker: Broker, ruled_tree: Path) -> None:
    assert error(broker.call("link", "../ro/file", "sub/linked")) == "EXDEV"
    assert error(broker.call("link", "../out/file", "sub/linked")) == "EXDEV"
    assert error(broker.call("rename", "../out/file", "sub/moved")) == "EXDEV"
    fd = os.open("../ro/file", os.O_RDONLY)
    proc = f"/proc/self/fd/{fd}"
    assert error(broker.call("linkat", AT_FDCWD, proc, AT_FDCWD, "sub/l", FOLLOW)) == "EXDEV"
    assert error(broker.call("linkat", fd, "", AT_FDCWD, "sub/l", EMPTY_PATH)) == "EXDEV"
    os.close(fd)
    assert error(broker.call("rename", ".", "../out/rw")) == "EXDEV"
    assert error(broker.call("rename", str(ruled_tree / "rw"), "../out/rw")) == "EXDEV"
    assert broker.call("link", "sub/file", "../out/linked") == 0
    assert error(broker.call("renameat2", AT_FDCWD, "sub/file", AT_FDCWD, "../out/file", 2)) == (
        "EXDEV"
    )
    made = broker.call("open", "sub", os.O_RDWR | os.O_TMPFILE, 0o600)
    assert broker.call("linkat", AT_FDCWD, f"/proc/self/fd/{made}", AT_FDCWD, "sub/t", FOLLOW) == 0
    os.close(made)
    assert (ruled_tree / "rw" / "sub" / "t").exists()


def test_nameless_objects_are_reached_by_own_descriptors_only(
    broker: Broker, ruled_tree: Path
) -> None:
    one, two = os.pipe()
    memory = os.memfd_create("etc")
    removed = os.open("sub/gone", os.O_RDWR | os.O_CREAT)
    os.unlink("sub/gone")
    foreign = subprocess.Popen(["sleep", "60"], stdin=subprocess.PIPE)
    try:
        for fd in (one, memory, removed):
            for name in ("/proc/self/fd", "/proc/thread-self/fd", f"/proc/{os.getpid()}/fd",
                         "/dev/fd"):  # fmt: skip
                got = broker.call("open", f"{name}/{fd}", os.O_RDWR)
                assert got >= 0, (name, fd, error(got))
                os.close(got)
        os.symlink(f"/proc/self/fd/{one}", "sub/pipe")
        got = broker.call("open", "sub/pipe", os.O_RDWR)
        assert got >= 0
        os.close(got)
        for path in (f"/proc/{foreign.pid}/fd/0", f"/proc/{foreign.pid}/exe"):
            assert os.path.exists(path)
            assert error(broker.call("open", path, os.O_RDONLY)) == "EACCES", path
        os.symlink(f"/proc/{foreign.pid}/fd/0", "sub/foreign")
        assert error(broker.call("open", "sub/foreign", os.O_RDONLY)) == "EACCES"
        assert broker.call("fchmod", one, 0o600) == 0
    finally:
        foreign.kill()
        foreign.communicate()
        for fd in (one, two, memory, removed):
            os.close(fd)


def test_the_program_is_its_own_exe(broker: Broker, tmp_path: Path) -> None:
    (tmp_path / "program").write_text("the program")
    broker.rules(exe=str(tmp_path / "program"))
    mode = ctypes.create_string_buffer(144)
    for ruled in (False, True):
        if ruled:
            broker.rules(PERMISSIVE, exe=str(tmp_path / "program"))
        for path in ("/proc/self/exe", "/proc/thread-self/exe", f"/proc/{os.getpid()}/exe"):
            buffer = ctypes.create_string_buffer(512)
            got = broker.call("readlink", path, buffer, 512)
            assert buffer.value.decode() == str(tmp_path / "program") and got == len(buffer.value)
            assert broker.call("readlinkat", AT_FDCWD, path, buffer, 4) == 4
            fd = broker.call("open", path, os.O_RDONLY)
            assert os.read(fd, 100) == b"the program"
            os.close(fd)
            assert broker.call("stat", path, mode) == 0
            assert struct.unpack_from("q", mode.raw, 48)[0] == len("the program")
        (tmp_path / "exe").unlink(missing_ok=True)
        (tmp_path / "exe").write_text("another exe")
        fd = broker.call("open", str(tmp_path / "exe"), os.O_RDONLY)
        assert os.read(fd, 100) == b"another exe"
        os.close(fd)
        assert broker.call("stat", str(tmp_path / "exe"), mode) == 0


# ---- sockets ---------------------------------------------------------------------------------


def address(path: str) -> bytes:
    return struct.pack("H", socket.AF_UNIX) + os.fsencode(path)


def test_sockets_by_path_follow_the_rules(broker: Broker, ruled_tree: Path) -> None:
    served = socket.socket(socket.AF_UNIX)
    client = socket.socket(socket.AF_UNIX)
    for path, wanted in (("../ro/s", "EACCES"), ("secret/s", "EACCES"), ("missing/s", "ENOENT"),
                         ("sub/file", "EADDRINUSE"), ("sub/s", "succeeded (0)")):  # fmt: skip
        given = address(path)
        assert error(broker.call("bind", served.fileno(), given, len(given))) == wanted, path
    served.listen()
    assert stat.S_ISSOCK(os.stat("sub/s").st_mode)
    os.link("sub/s", "../ro/s")
    for path, wanted in (("../ro/s", "EACCES"), ("sub/file", "ECONNREFUSED"),
                         ("sub/none", "ENOENT"), ("sub/s", "succeeded (0)")):  # fmt: skip
        given = address(path) + b"\0"
        assert error(broker.call("connect", client.fileno(), given, len(given))) == wanted, path
    served.close()
    client.close()


def test_without_the_net_only_unix_sockets_remain(broker: Broker, tmp_path: Path) -> None:
    broker.rules(denied=NET)
    inet = socket.socket()
    for family in (socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK, socket.AF_PACKET):
        assert error(broker.call("socket", family, socket.SOCK_RAW, 0)) == "EACCES"
    given = struct.pack("HH4s8x", socket.AF_INET, 0x5000, b"\x7f\0\0\1")
    assert error(broker.call("connect", inet.fileno(), given, len(given))) == "EACCES"
    assert error(broker.call("bind", inet.fileno(), given, len(given))) == "EACCES"
    made = broker.call("socket", socket.AF_UNIX, socket.SOCK_STREAM, 0)
    assert made >= 0
    given = address("\0abstract")
    assert error(broker.call("bind", made, given, len(given))) == "EACCES"
    given = address(str(tmp_path / "s"))
    assert broker.call("bind", made, given, len(given)) == 0
    os.close(made)
    inet.close()
    broker.rules()
    assert error(broker.call("socket", 21, socket.SOCK_SEQPACKET, 0)) == "EAFNOSUPPORT"


def test_file_owners_are_oneself_where_signals_are_denied(broker: Broker) -> None:
    broker.rules(denied=SIGNAL)
    fd = os.open("/dev/null", os.O_RDONLY)
    set_owner, set_owner_ex = 8, 15
    assert broker.call("fcntl", fd, set_owner, os.getpid()) == 0
    assert error(broker.call("fcntl", fd, set_owner, 1)) == "EPERM"
    assert error(broker.call("fcntl", fd, set_owner, -os.getpid() & 0xFFFFFFFF)) == "EPERM"
    assert error(broker.call("fcntl", fd, set_owner_ex, struct.pack("ii", 1, 1))) == "EPERM"
    assert broker.call("fcntl", fd, set_owner_ex, struct.pack("ii", 1, os.getpid())) == 0
    os.close(fd)
