"""The Dune paper's tables can be made, and the exits in them are what the design promises."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.dune.kit import ROOT

# Exits to user space per operation: system calls for Linux exactly one, what ring 0 does none.
ONE = ("getpid", "getpid, ring 3", "ptrace")
NONE = ("pagefault", "pagewalk", "intercept", "trap", "appel1", "appel2")
SLACK = 0.01  # first touches of windows, signals


@dataclass(frozen=True)
class Tables:
    """One round of both tables: as printed; by side, operation, figure."""

    text: str
    figures: dict[str, dict[str, dict[str, float]]]


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    """`python -m bench dune`."""
    file = tmp_path_factory.mktemp("bench") / "tables.json"
    words = ["bench", "--rounds", "1", "--json", str(file), "dune"]
    run = subprocess.run(
        [sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True, timeout=800
    )
    assert run.returncode == 0, run.stdout + run.stderr
    made = file.with_stem("tables-dune").read_text()
    return Tables(run.stdout, json.loads(made)["figures"])


@pytest.mark.parametrize("name", ONE)
def test_call_for_linux_takes_one_exit(tables: Tables, name: str) -> None:
    assert tables.figures["dune"][name]["exits"] == pytest.approx(1, abs=SLACK)


@pytest.mark.parametrize("name", NONE)
def test_what_ring_0_does_takes_no_exit(tables: Tables, name: str) -> None:
    assert tables.figures["dune"][name]["exits"] == pytest.approx(0, abs=SLACK)


def test_both_sides_are_measured(tables: Tables, note: Callable[[str], None]) -> None:
    note(tables.text)
    assert {*NONE, *ONE} == set(tables.figures["dune"])
    assert all(figure["ns"] > 0 for side in tables.figures.values() for figure in side.values())
