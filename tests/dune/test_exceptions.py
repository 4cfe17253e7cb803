"""Exceptions: handlers in ring 0, signals where nobody handles them, a clear end at worst."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable

import pytest

from tests.dune import kit

CASES = (
    "registers_kept", "nested", "ended_by_exception", "signals_outside", "signals_in_ring0",
    "signals_in_ring3", "declined",
)  # fmt: skip

Run = Callable[..., kit.Result]


@pytest.mark.parametrize("case", CASES)
def test_exceptions(run_program: Run, case: str) -> None:
    run_program("exceptions", case)


def test_handlers_of_each_vector_take_no_exit(
    run_program: Run, note: Callable[[str], None]
) -> None:
    output = run_program("exceptions", "handlers").stdout
    assert "exits_per_1000_exceptions 0\n" in output
    note("exits_per_1000_exceptions: 0 (#DE #BP #UD #GP #PF, from ring 0 and from ring 3)")


def test_unhandled_fault_without_signal_handler_kills_by_sigsegv(run_program: Run) -> None:
    assert run_program("exceptions", "killed", status=-signal.SIGSEGV).stdout == "now\n"


@pytest.mark.parametrize("case", ["bad_stack", "no_idt"])
def test_exception_without_stack_or_idt_ends_with_registers(run_program: Run, case: str) -> None:
    ended = run_program("exceptions", case, status=-signal.SIGABRT)
    assert "the guest is ended" in ended.stderr
    for name in ("rip", "rsp", "cr2", "rax", "r15"):
        assert re.search(rf"\b{name} [0-9a-f]+", ended.stderr), name


def test_bad_stack_is_said_with_where_it_was_used(run_program: Run) -> None:
    ended = run_program("exceptions", "bad_stack", status=-signal.SIGABRT)
    assert re.search(r"ring 0's stack .* rsp 4000000000000000\b", ended.stderr), ended.stderr
