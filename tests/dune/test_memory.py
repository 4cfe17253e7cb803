"""Memory in the guest: as Linux maps it, with the signals that Linux sends, at a known cost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from .kit import PROGRAMS, Result, run

SIGNALS_AND_CALLS = (
    "unmapped",
    "fetches",
    "beyond",
    "memfd",
    "one-permission",
    "calls",
    "heap",
    "sparse",
    "hugetlb",
    "advice",
    "write-execute",
)
THREADED = ("stacks", "race", "moving")
TRAPS = ("exceptions", "aligned", "stepping")
TOUCHES = 1000


def same(program: str, ring: str, case: str, env: dict[str, str] | None = None) -> None:
    """Fails unless the program says and ends in that ring as it does outside."""
    bare = run([PROGRAMS / program, "bare", case], timeout=800)
    inside = run([PROGRAMS / program, ring, case], timeout=800, env=env)
    if (inside.status, inside.stdout) != (bare.status, bare.stdout):
        pytest.fail(f"outside: {bare}\n\ninside: {inside}", pytrace=False)
    bare.expect()


@pytest.mark.parametrize("case", SIGNALS_AND_CALLS + THREADED)
def test_ring3_memory_is_as_outside(case: str) -> None:
    same("memory", "dune", case)


def test_ring3_reserved_huge_pages_are_as_outside(note: Callable[[str], None]) -> None:
    reserved = Path("/proc/sys/vm/nr_hugepages")
    reserved.write_text("8")
    try:
        note(f"huge pages reserved: {reserved.read_text().strip()}")
        same("memory", "dune", "hugetlb")
        same("memory", "ring0", "hugetlb")
    finally:
        reserved.write_text("0")


@pytest.mark.parametrize("case", ("calls", "unmapped", "write-execute"))
def test_ring3_memory_is_as_outside_without_protection_keys(case: str) -> None:
    same("memory", "dune", case, {"DUNE_TEST_NO_PKEY": "1"})


@pytest.mark.parametrize("case", SIGNALS_AND_CALLS)
def test_ring0_memory_is_as_outside(case: str) -> None:
    same("memory", "ring0", case)


@pytest.mark.parametrize("case", TRAPS)
def test_ring3_exceptions_are_linuxs_signals(case: str) -> None:
    same("traps", "dune", case)


def test_ring3_vsyscall_page_is_emulated(run_program: Callable[..., Result]) -> None:
    # Where the host's kernel has none (vsyscall=none), a bare run ends by SIGSEGV.
    lines = run_program("traps", "dune", "vsyscall").stdout.splitlines()
    assert lines[0] == "the time is told"
    assert lines[-1].startswith("  signal 11 ")


# ---- what it costs ---------------------------------------------------------------------------


def counts(result: Result) -> dict[str, int]:
    return {
        name: int(value)
        for name, value in (line.rsplit(" ", 1) for line in result.stdout.splitlines())
    }


def test_ring0_first_touch_of_a_page_is_at_most_one_exit(
    run_program: Callable[..., Result], note: Callable[[str], None]
) -> None:
    found = counts(run_program("exits", "touches"))
    assert found["written exits"] == found["read exits"] == 0
    if "written all" in found:
        # One nested fault a page, seen by KVM alone; and what the timer interrupts meanwhile.
        assert found["written all"] <= TOUCHES * 1.1 + 200
        note(f"{TOUCHES - 1} pages first written: {found['written all']} exits, all KVM's own")


def test_ring0_first_touch_of_a_window_is_one_exit(run_program: Callable[..., Result]) -> None:
    assert counts(run_program("exits", "windows"))["windows exits"] == 20


def test_ring0_write_xor_execute_costs_no_exit_but_the_calls(
    run_program: Callable[..., Result], note: Callable[[str], None]
) -> None:
    found = counts(run_program("exits", "execute"))
    assert found["flips exits"] == found["flips calls"] == 200
    assert found["run exits"] == 0  # mmap() at a fixed address permits at once
    assert found["found exits"] <= 2  # elsewhere the first fetch asks, once a mapping
    note("write, mprotect, run, mprotect: 2 exits, those of the calls")


def test_ring0_stack_grows(run_program: Callable[..., Result]) -> None:
    found = counts(run_program("exits", "stack"))
    assert found["stack faults"] >= 1


# ---- what KVM can't do, or not by itself -------------------------------------------------------


def test_ring0_mappings_that_kvm_cannot_read(run_program: Callable[..., Result]) -> None:
    assert "secret" in counts(run_program("exits", "unreadable"))


def test_ring0_more_windows_than_physical_addresses_is_sigbus(
    run_program: Callable[..., Result], note: Callable[[str], None]
) -> None:
    found = counts(run_program("exits", "narrow"))
    assert 20 <= found["windows"] < 32
    note(f"35 physical bits: {found['windows']} GiB touched beside the program's own")
