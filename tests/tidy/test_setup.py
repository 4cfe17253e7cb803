"""The set-up says what it can't have, and what to do about it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.tidy import tree


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A tree that holds what the set-up script reads, and a folder bin/ to shadow commands."""
    (tmp_path / ".ci").mkdir()
    (tmp_path / "bin").mkdir()
    shutil.copy(tree.ROOT / ".ci/setup.sh", tmp_path / ".ci/setup.sh")
    shutil.copy(tree.ROOT / "pyproject.toml", tmp_path / "pyproject.toml")
    return tmp_path


def shadow(clone: Path, command: str, script: str) -> None:
    """Puts a command before the system's."""
    path = clone / "bin" / command
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def run_setup(clone: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the set-up in the clone."""
    return subprocess.run(
        ["bash", ".ci/setup.sh"],
        cwd=clone,
        env={"PATH": f"{clone}/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(clone)}
        | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_packages_missing_and_not_root_names_them_and_the_command(clone: Path) -> None:
    shadow(clone, "dpkg-query", "echo not-installed")
    shadow(clone, "id", "echo 1000")
    run = run_setup(clone)
    assert run.returncode == 1
    assert "only root can install" in run.stderr and "libxdp-dev" in run.stderr
    assert "cure: run as root: apt-get update && apt-get install" in run.stderr


def test_mirror_out_of_reach_shows_apts_words_and_the_cure(clone: Path) -> None:
    shadow(clone, "dpkg-query", "echo not-installed")
    shadow(clone, "id", "echo 0")
    shadow(clone, "apt-get", 'echo "E: no such host" >&2; exit 100')
    run = run_setup(clone)
    assert run.returncode == 1
    assert "E: no such host" in run.stderr
    assert "cure: check that this machine reaches a Debian mirror" in run.stderr


def test_package_index_out_of_reach_leaves_no_stamp_and_names_the_cure(clone: Path) -> None:
    shadow(clone, "dpkg-query", "echo installed")
    run = run_setup(
        clone,
        PIP_CONFIG_FILE="/dev/null",
        PIP_INDEX_URL="http://127.0.0.1:9/",
        PIP_RETRIES="0",
    )
    assert run.returncode == 1
    assert "cure: check that this machine reaches a Python package index" in run.stderr
    assert not (clone / ".venv/ixnet-setup").exists()


def test_all_there_does_nothing_and_says_nothing() -> None:
    if not (tree.ROOT / ".venv/ixnet-setup").exists():
        pytest.skip("this tree was not set up by .ci/setup.sh")
    run = run_setup(tree.ROOT)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
