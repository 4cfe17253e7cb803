"""The open way: into ring 0 and back, ring 3 from there, page tables. Counts exits."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from tests.dune import kit

RING0 = (
    "round_trips", "libc", "refusals", "run_user", "calls_of_ring0", "vectors_kept",
    "user_from_ring0", "user_from_outside", "nested_runs", "ended_by_handler",
)  # fmt: skip
TABLES = (
    "alias", "protect", "unmap", "supervisor_pages", "execute", "walks", "other_threads",
    "refusals",
)  # fmt: skip
# Program, case, figure, the most that it may be.
COUNTED = (
    ("ring0", "entering", "exits_entering", 49),
    ("ring0", "run_user_costs", "exits_per_1000_run_user", 0),
    ("ring0", "calls_to_ring0", "exits_per_1000_calls_to_ring0", 0),
    ("ring0", "forwarded_calls", "exits_per_1000_forwarded_calls", 1000),
    ("tables", "roots", "exits_per_1000_root_switches", 0),
    ("tables", "appel", "exits_per_64_protections_and_faults", 0),
)

Run = Callable[..., kit.Result]


@pytest.mark.parametrize("case", RING0)
def test_ring0(run_program: Run, case: str) -> None:
    run_program("ring0", case)


@pytest.mark.parametrize("case", TABLES)
def test_tables(run_program: Run, case: str) -> None:
    run_program("tables", case)


@pytest.mark.parametrize(("program", "case", "figure", "most"), COUNTED)
def test_exits_counted(
    run_program: Run, note: Callable[[str], None], program: str, case: str, figure: str, most: int
) -> None:
    output = run_program(program, case).stdout
    found = re.search(rf"^{figure} (\d+)$", output, flags=re.M)
    assert found, output
    note(f"{figure}: {found[1]}")
    assert int(found[1]) <= most


def test_prints_from_both_rings(run_program: Run) -> None:
    assert "from ring 0: Name 5.00\n" in run_program("ring0", "libc").stdout
    assert "from ring 3\n" in run_program("ring0", "user_from_outside").stdout
