"""native/process.c: a worker is tied to its parent's life, and lets go of privileges."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.san import ffi, lib

NOBODY, NOGROUP = 65534, 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to have what is let go")


def test_process_that_lost_its_parent_is_told() -> None:
    pid = os.fork()
    if pid == 0:  # in a child: it ties itself to its parent's life
        gone = lib.ix_process_follow(os.getppid() + 1_000_000, b"x") == -errno.ESRCH
        there = lib.ix_process_follow(os.getppid(), b"ixnet/test") == 0
        with open("/proc/self/comm") as comm:
            named = comm.read() == "ixnet/test\n"
        os._exit(0 if gone and there and named else 1)
    assert os.waitpid(pid, 0)[1] == 0


def test_child_is_killed_when_its_parent_dies() -> None:
    read, write = os.pipe()
    parent = os.fork()
    if parent == 0:
        child = os.fork()
        if child == 0:
            followed = lib.ix_process_follow(os.getppid(), b"x")
            os.write(write, os.getpid().to_bytes(4, "little") if followed == 0 else bytes(4))
            time.sleep(60)
            os._exit(0)
        time.sleep(60)
        os._exit(0)
    child_pid = int.from_bytes(os.read(read, 4), "little")
    assert child_pid
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    os.close(write)
    # The pipe's last writer is the child: its end is the end of the file.
    begin = time.monotonic()
    assert os.read(read, 1) == b""
    assert time.monotonic() - begin < 30, "it would have ended by itself after 60 s"
    os.close(read)


def test_clock_is_the_monotonic_one() -> None:
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    now = lib.ix_process_now_ns()
    assert before <= now <= time.clock_gettime_ns(time.CLOCK_MONOTONIC)


# ---- privileges


def in_child(checks: Callable[[], object]) -> None:
    """Runs them in a child; one that raises fails the test."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            checks()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0


def drop(uid: int = 2**32 - 1, groups: tuple[int, ...] = (0,), hide: int = 0) -> int:
    return int(lib.ix_process_drop(uid, ffi.new("uint32_t[]", groups), len(groups), hide))


def capabilities(status: str) -> set[str]:
    """All sets of a /proc/PID/status; {0}: none has any."""
    return {line.split()[1].lstrip("0") for line in status.splitlines() if line.startswith("Cap")}


@needs_root
@pytest.mark.parametrize("uid", [2**32 - 1, NOBODY])
def test_dropped_capabilities_are_gone_for_ever(uid: int) -> None:
    def checks() -> None:
        assert drop(uid, (NOGROUP,)) == 0
        own = Path("/proc/self/status").read_text()
        run = subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True)
        for status in (own, run.stdout):
            assert capabilities(status) == {""}
            assert "NoNewPrivs:\t1" in status
        with pytest.raises(PermissionError):
            os.setuid(1)
        with pytest.raises(PermissionError):
            socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)

    in_child(checks)


@needs_root
def test_dropped_to_a_user_has_its_groups_alone() -> None:
    def checks() -> None:
        assert drop(NOBODY, (NOGROUP, 12345)) == 0
        assert os.getresuid() == (NOBODY,) * 3 and os.getresgid() == (NOGROUP,) * 3
        assert sorted(os.getgroups()) == [12345, NOGROUP]
        with pytest.raises(PermissionError):
            os.kill(1, 0)

    in_child(checks)


@needs_root
def test_another_user_without_the_right_is_refused() -> None:
    def checks() -> None:
        os.setresuid(NOBODY, NOBODY, NOBODY)
        assert drop(1, (1,)) == -errno.EPERM
        assert drop() == 0

    in_child(checks)


@needs_root
@pytest.mark.parametrize("hide", [0, 1])
def test_hidden_process_can_not_be_read_by_its_user(hide: int) -> None:
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        ok = drop(hide=hide) == 0
        os.write(tell, b"1" if ok else b"0")
        time.sleep(60)
        os._exit(0)
    assert os.read(ready, 1) == b"1"

    def checks() -> None:
        assert drop() == 0
        try:
            open(f"/proc/{pid}/mem", "rb").close()
            assert not hide
        except PermissionError:
            assert hide

    try:
        in_child(checks)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(ready)
        os.close(tell)
