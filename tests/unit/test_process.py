"""native/process.c: a worker is tied to its parent's life."""

from __future__ import annotations

import errno
import os
import signal
import time

from tests.unit.san import lib


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
    assert time.monotonic() - begin < 10
    os.close(read)


def test_clock_is_the_monotonic_one() -> None:
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    now = lib.ix_process_now_ns()
    assert before <= now <= time.clock_gettime_ns(time.CLOCK_MONOTONIC)
