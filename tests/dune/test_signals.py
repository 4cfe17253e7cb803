"""Signals in ring 3: the same programs bare and in the guest, and the same words from both.

signals.c is about those that others send, faults.c about those that an instruction makes.
open_signals.c has no bare run: ring 0's signals, and those of threads outside beside it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.dune.kit import Result

PROGRAMS = Path(__file__).with_name("c")
Run = Callable[..., Result]


def cases(program: str) -> list[str]:
    """The names in its table."""
    text = (PROGRAMS / f"{program}.c").read_text()
    return re.findall(r'\{"(\w+)", \w+\}', text[text.index("int main(") :])


def assert_same(run_program: Run, program: str, case: str, **more: object) -> None:
    bare = run_program(program, "bare", case, **more)
    guest = run_program(program, "dune", case, status=None, **more)
    assert (guest.status, guest.stdout) == (bare.status, bare.stdout), str(guest)


@pytest.mark.parametrize("case", [case for case in cases("signals") if case != "storm"])
def test_signals_sent_are_as_outside(run_program: Run, case: str) -> None:
    assert_same(run_program, "signals", case)


@pytest.mark.parametrize("case", cases("faults"))
def test_signals_of_faults_are_as_outside(run_program: Run, case: str) -> None:
    assert_same(run_program, "faults", case)


@pytest.mark.parametrize("case", cases("open_signals"))
def test_signals_of_ring0_and_of_threads_outside(run_program: Run, case: str) -> None:
    assert run_program("open_signals", case).stdout == "done\n"


def test_signals_5000_at_1khz_leave_every_register_alone(
    run_program: Run, note: Callable[[str], None]
) -> None:
    done = run_program("signals", "dune", "storm", timeout=800)
    assert done.stdout == "no register changed\n"
    note(f"signal storm in ring 3: {done.stderr.strip()}")
