"""The path broker in the guest: calls with paths and descriptors, bare and in ring 3."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from .kit import PROGRAMS, Result, run

Sandbox = Callable[..., Result]
PATHS = PROGRAMS / "paths"
# Without rules, and with rules that allow everything: the second goes through every check.
POLICIES = {
    "open": "permissive",
    "ruled": "read /\nwrite /\nexec /\nfork yes\nnetwork yes\nsignal yes\nlog none\n",
}
TIMEOUT_S = 600.0


@pytest.fixture
def place(tmp_path: Path) -> Callable[[], Path]:
    """Makes an empty directory: always the same name."""

    def make() -> Path:
        made = tmp_path / "tree"
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir()
        return made

    return make


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("case", ["open", "names", "fifo", "limit"])
def test_calls_answer_as_outside(
    sandbox: Sandbox, place: Callable[[], Path], case: str, policy: str
) -> None:
    bare = run([PATHS, case, place()], timeout=TIMEOUT_S).expect(0)
    inside = sandbox(POLICIES[policy], PATHS, case, place(), timeout=TIMEOUT_S).expect(0)
    differ = [
        (plain, ours)
        for plain, ours in zip(bare.stdout.splitlines(), inside.stdout.splitlines(), strict=False)
        if plain != ours
    ]
    assert not differ, f"{len(differ)} differ: {differ[:10]}"
    assert len(bare.stdout) == len(inside.stdout) > 0


@pytest.mark.parametrize("policy", POLICIES)
def test_links_that_flip_to_dangers_are_never_opened(
    sandbox: Sandbox,
    place: Callable[[], Path],
    policy: str,
    note: Callable[[str], None],
) -> None:
    assert os.path.exists("/dev/kvm")
    done = sandbox(POLICIES[policy], PATHS, "race", place(), timeout=TIMEOUT_S).expect(0)
    found = list(map(int, re.findall(r"\d+", done.stdout)))
    note(f"paths, race ({policy}): {done.stdout.strip()}")
    assert len(found) == 4 and found[3] == 0
    assert found[0] > 0 and found[1] > 0
