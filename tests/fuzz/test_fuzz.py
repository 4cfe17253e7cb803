"""The fuzz targets' corpus played once, without mutation; and that the fuzzer can find something.

`make fuzz SECONDS=n` fuzzes (tests/fuzz/run.py).
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.fuzz.run import CANARIES, CORPUS, ROOT, SHARES, canary_found, fuzzer
from tests.unit.san import lib

LAST_INPUT = ROOT / "build/sanitizer.input"  # make test shows files of this name when it dies


def inputs(target: str) -> list[Path]:
    return sorted(path for path in (CORPUS / target).iterdir())


@pytest.mark.parametrize("target", SHARES)
def test_corpus_plays_without_a_fault(target: str) -> None:
    play = getattr(lib, f"ix_fuzz_{target}")
    files = inputs(target)
    assert len(files) >= 20
    for path in files:
        LAST_INPUT.write_text(f"fuzz: {target}: {path.relative_to(ROOT)}\n")
        data = path.read_bytes()
        assert play(data, len(data)) == 0
    LAST_INPUT.unlink()


@pytest.fixture(scope="module")
def built() -> None:
    """The fuzzers, where this machine has libFuzzer."""
    probe = subprocess.run(
        ["clang", "-fsanitize=fuzzer", "-x", "c", "-", "-o", "/dev/null"],
        input="int LLVMFuzzerTestOneInput(void){return 0;}",
        text=True,
        capture_output=True,
        check=False,
    )
    if probe.returncode:
        pytest.skip("libFuzzer is not installed: `make fuzz` does it")
    subprocess.run(["make", "fuzz-locked"], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize("target", SHARES)
@pytest.mark.usefixtures("built")
def test_same_input_reaches_the_same_edges(target: str) -> None:
    # From whatever the last input left, from a new world, and from a copy: else a finding might
    # not be found again, and libFuzzer would keep inputs for what is chance.
    run = fuzzer(target, "-runs=0", CORPUS / target, seconds=120, repeat=True)
    assert run.returncode == 0, run.stderr[-2000:]


@pytest.mark.parametrize("name", CANARIES)
@pytest.mark.usefixtures("built")
def test_canary_is_found(name: str) -> None:
    assert canary_found(name) == ""
