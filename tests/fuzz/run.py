"""Runs the fuzz targets: `make fuzz SECONDS=n` is this.

First the canaries, each a build with one line of the core changed, which must be found; then the
targets, the one on packets for three quarters of the time. What they find lies in
build/fuzz/findings; `build/fuzz/packets FILE` plays it again. Inputs that reach new code are
kept in build/fuzz/corpus-*, those of the tree in tests/fuzz/corpus.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build/fuzz"
CORPUS = Path(__file__).parent / "corpus"
RECORD_LIMIT = 16 + 48 * 64
# name: target. What each breaks stands in fuzz.mk; how that shows depends on what is tried first.
CANARIES = {"ack": "packets", "option": "packets", "frame": "calls"}
FOUND = re.compile(r"SUMMARY: (libFuzzer|AddressSanitizer|UndefinedBehaviorSanitizer)")
SHARES = {"packets": 0.75, "calls": 0.25}


def fuzzer(
    program: str, *arguments: str | Path, seconds: float, repeat: bool = False
) -> subprocess.CompletedProcess[str]:
    """Runs a fuzzer; what it finds goes to build/fuzz/findings.

    `repeat`: each input is played three times, and must reach the same edges."""
    findings = BUILD / "findings"
    findings.mkdir(parents=True, exist_ok=True)
    return subprocess.run(
        [
            BUILD / program,
            f"-max_len={RECORD_LIMIT}",
            f"-max_total_time={int(seconds)}",
            f"-artifact_prefix={findings}/{program}-",
            "-print_final_stats=1",
            *arguments,
        ],
        env=os.environ
        | {"ASAN_OPTIONS": "detect_leaks=0"}
        | ({"FUZZ_REPEAT": "1"} if repeat else {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )


def canary_found(name: str, seconds: float = 120) -> str:
    """Empty if the fuzzer finds the canary, from the corpus of the tree and a fixed seed."""
    target = CANARIES[name]
    with tempfile.TemporaryDirectory() as kept:  # new inputs go to the first folder
        folders = (kept, CORPUS / target)
        run = fuzzer(f"canary-{name}", "-seed=1", "-timeout=3", *folders, seconds=seconds)
    for path in (BUILD / "findings").glob(f"canary-{name}-*"):
        path.unlink()
    if run.returncode == 0:
        return f"canary {name} was not found in {seconds:.0f} s"
    return "" if FOUND.search(run.stderr) else f"canary {name}: {run.stderr[-2000:]}"


def fuzz(target: str, seconds: float) -> bool:
    """Fuzzes a target; prints what came of it. True if nothing was found."""
    kept = BUILD / f"corpus-{target}"
    kept.mkdir(exist_ok=True)
    run = fuzzer(target, "-timeout=20", kept, CORPUS / target, seconds=seconds)
    numbers = {
        what: found[-1] if (found := re.findall(pattern, run.stderr)) else "?"
        for what, pattern in {
            "executions": r"number_of_executed_units: (\d+)",
            "edges": r"cov: (\d+)",
            "of": r"\((\d+) PCs\)",
            "inputs kept": r"corp: (\d+)",
        }.items()
    }
    print(f"{target}: {', '.join(f'{what} {number}' for what, number in numbers.items())}")
    if run.returncode:
        print(run.stderr[-4000:])
        print(f"{target}: found something; the input is in build/fuzz/findings")
    return run.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    seconds = parser.parse_args().seconds
    for name in CANARIES:
        wrong = canary_found(name)
        print(wrong or f"canary {name}: found")
        if wrong:
            return 1
    good = [fuzz(target, max(share * seconds, 1)) for target, share in SHARES.items()]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
