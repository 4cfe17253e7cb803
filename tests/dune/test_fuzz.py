"""Random system calls from a sealed ring 3 leave the vault as it is, and the host side alive.

45 seconds from a fixed seed. IX_FUZZ_SECONDS=600 for ten minutes, IX_FUZZ_SEED for another seed:

    tests/lab/lab.py run --timeout 900 -- env IX_FUZZ_SECONDS=600 \
        .venv/bin/python -m pytest -s tests/dune/test_fuzz.py
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.dune.kit import Result

SECONDS = int(os.environ.get("IX_FUZZ_SECONDS", "45"))
SEED = int(os.environ.get("IX_FUZZ_SEED", "1"))
# A round that begins before the time is up is finished; emulated, it takes long to start and end.
LATER_S = 600


@pytest.mark.timeout(SECONDS + 2 * LATER_S)
def test_random_calls_never_change_the_vault(
    run_program: Callable[..., Result], note: Callable[[str], None]
) -> None:
    before = [Path(name).stat().st_mode for name in ("/", "/run", "/dev/kvm")]
    result = run_program("fuzz", str(SEED), str(SECONDS), timeout=SECONDS + LATER_S)
    # It runs as root: what it does to files must not reach the tests behind it.
    assert [Path(name).stat().st_mode for name in ("/", "/run", "/dev/kvm")] == before
    line = result.stdout.splitlines()[-1]
    note(f"fuzz, seed {SEED}, {SECONDS} s: {line}")
    count = {name: int(value) for name, value in re.findall(r"(\w+) (\d+)", line)}
    # It did something: calls that worked, calls that were refused, looks at the vault.
    assert count["executions"] > 5 * SECONDS
    assert count["succeeded"] > count["executions"] // 100
    assert count["refused"] > count["executions"] // 100
    assert count["checks"] > SECONDS // 45
    assert count["module_calls"] > SECONDS // 5
    # A worker that ends at once would find nothing.
    assert count["crashed"] + count["ended"] + count["stuck"] <= count["rounds"]


@pytest.mark.parametrize(
    ("canary", "found"),
    [("idt", "changed: IDT"), ("secret", "a secret of the vault's is in ring 3")],
)
def test_planted_change_is_found(
    run_program: Callable[..., Result], canary: str, found: str
) -> None:
    result = run_program("fuzz", "1", "1", canary, timeout=LATER_S, status=1)
    assert found in result.stderr
