"""Threads, processes, exec and the emulated calls: the same program bare and in ring 3 says the
same and ends the same."""

from __future__ import annotations

import re

import pytest

from .kit import PROGRAMS, Result, run, run_program

THREADS = (
    "storage",
    "turns",
    "destructors",
    "robust-threads",
    "robust-processes",
    "cancel",
    "leave-main",
    "group",
    "sequence",
    "detached",
    "inherits",
    "early",
)
PROCESSES = (
    "fork-pipe",
    "fork-many",
    "fork-nested",
    "fork-thread",
    "fork-signals",
    "fork-memory",
    "statuses",
    "vfork-exec",
    "spawn",
    "spawn-threads",
    "shells",
    "exec",
    "exec-at",
    "exec-thread",
    "exec-long",
    "exec-errors",
    "exec-script",
)
ODDS = ("bases", "bases-threads", "options", "terminal", "sockets", "limits", "cpu")
TIMEOUT_S = 600.0
# What ring 3 is refused, where Linux would do as asked: see emulate.c and thread.c.
CLOSED = """\
seccomp -22
dispatch -22
memory map -22
time stamp -22
tracer -22
write xor execute -22
unshare descriptors -22
namespace -1
input -25
"""


def same(program: str, case: str) -> Result:
    """The program in ring 3, after a comparison with itself outside."""
    bare = run([PROGRAMS / program, "bare", case], timeout=TIMEOUT_S)
    inside = run([PROGRAMS / program, "dune", case], timeout=TIMEOUT_S)
    if (inside.status, inside.stdout) != (bare.status, bare.stdout):
        pytest.fail(f"outside: {bare}\n\nin ring 3: {inside}", pytrace=False)
    return inside


@pytest.mark.parametrize("case", THREADS)
def test_ring3_threads_behave_as_outside(case: str) -> None:
    same("threads", case)


@pytest.mark.parametrize("case", PROCESSES)
def test_ring3_processes_behave_as_outside(case: str) -> None:
    same("processes", case)


@pytest.mark.parametrize("case", ODDS)
def test_ring3_emulated_calls_answer_as_linux(case: str) -> None:
    same("odds", case)


def test_ring3_calls_that_bind_the_host_side_are_refused() -> None:
    assert run_program("odds", "dune", "closed").stdout == CLOSED
    assert run_program("threads", "dune", "refusals").stdout == "refused\n"


def test_open_threads_in_sequence_reuse_their_vcpus() -> None:
    result = run_program("threads", "pool", timeout=TIMEOUT_S)
    found = re.search(r"^vCPUs (\d+)$", result.stdout, re.MULTILINE)
    # A thread's vCPU is free once the kernel has forgotten the thread: a moment after the join, or
    # more where the machine is busy.
    assert found and 2 <= int(found[1]) <= 64


def test_open_program_makes_threads_and_processes_in_either_ring() -> None:
    """A child of fork goes on in its parent's ring; a thread that ring 0 makes is in ring 3. The
    fork's status is 4 * (20 + the grandchild's ring) + the child's ring."""
    assert run_program("open_processes", timeout=TIMEOUT_S).stdout.splitlines() == [
        "ring 0: ring 0, a thread's 3, fork 80, vfork 3, spawn 30, system 4",
        "ring 3, by ring 0: ring 3, a thread's 3, fork 95, vfork 3, spawn 30, system 4",
        "handled 1",
        "outside: ring -1, a thread's -1, fork 75, vfork 3, spawn 30, system 4",
    ]
