"""bench/gate_cost: the workload runs in both placements; the protection costs what it may."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from bench import gate_cost
from bench.common import program


@pytest.mark.parametrize("placement", ["inline", "dune"])
@pytest.mark.parametrize("workload", list(gate_cost.WORKLOADS))
def test_every_round_is_a_batch(placement: str, workload: str) -> None:
    argv = [program("gate_cost"), placement, workload, "10"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    messages, cycles = map(int, done.stdout.split())
    assert messages == 10 * 64
    assert 10 <= cycles <= 10 * 8


def test_switch_is_counted_to_its_end() -> None:
    assert 60 < gate_cost.switch_instructions() < 400


@pytest.mark.parametrize("workload", list(gate_cost.WORKLOADS))
def test_protection_costs_at_most_15_percent(workload: str) -> None:
    if shutil.which("valgrind") is None:
        pytest.skip("no valgrind (cure: apt-get install valgrind)")
    inline, messages, _ = gate_cost.measure("inline", workload, 20)
    dune, same, cycles = gate_cost.measure("dune", workload, 20)
    assert same == messages == 20 * 64
    assert dune > inline
    assert dune + gate_cost.switch_instructions() * cycles <= 1.15 * inline
