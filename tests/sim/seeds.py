"""Plays seeds of the simulation in as many processes as there are cores.

``make sim`` plays 20,000 with the core as it is built for use, ``make test`` the first thousand
with the sanitizers. A failing seed, and one that its process dies of, does not end the rest: each
is reported, with the command that repeats it.
"""

from __future__ import annotations

import os
import subprocess
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PLAIN, SANITIZED = ROOT / "build/ixsim", ROOT / "build/san/ixsim"
PER_PROCESS = 50


@dataclass(frozen=True)
class Failure:
    seed: int
    what: str

    def __str__(self) -> str:
        return f"{self.what}\nreproduce: make sim SEED={self.seed}"


@dataclass
class Outcome:
    """What seeds came to: how many, what they counted, those that failed."""

    seeds: int = 0
    totals: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)

    def add(self, other: Outcome) -> None:
        self.seeds += other.seeds
        self.totals.update(other.totals)
        self.failures += other.failures

    def report(self) -> str:
        return "\n\n".join(str(f) for f in sorted(self.failures, key=lambda f: f.seed))


def parse(lines: Iterator[str]) -> tuple[Outcome, int | None]:
    """What a process said, and the seed that it was at when it ended early."""
    outcome, at = Outcome(), None
    for line in lines:
        word, _, rest = line.rstrip("\n").partition(" ")
        if word == "seed":
            at = int(rest)
            outcome.seeds += 1
        elif word == "failed":
            outcome.failures.append(Failure(int(rest.partition(":")[0]), f"seed {rest}"))
        elif word == "" and outcome.failures:
            failure = outcome.failures[-1]
            outcome.failures[-1] = Failure(failure.seed, f"{failure.what}\n {rest}")
        elif word == "total":
            name, number = rest.split()
            outcome.totals[name] += int(number)
            at = None
    return outcome, at


def play_here(program: Path, first: int, last: int) -> Outcome:
    """Plays seeds one after the other; a process that dies of one is followed by another."""
    whole = Outcome()
    while first <= last:
        process = subprocess.run(
            [program, str(first), str(last)],
            env=os.environ | {"ASAN_OPTIONS": "detect_leaks=0"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        outcome, at = parse(iter(process.stdout.splitlines()))
        whole.add(outcome)
        if at is None:
            if process.returncode not in (0, 1):
                raise RuntimeError(f"{program}: {process.returncode}: {process.stderr}")
            break
        how = f"seed {at}: the process died ({process.returncode})"
        whole.failures.append(Failure(at, f"{how}\n{process.stderr[-4000:]}"))
        first = at + 1
    return whole


def play(program: Path, seeds: range) -> Outcome:
    """Plays seeds in as many processes as there are cores."""
    pieces = deque(
        (first, min(first + PER_PROCESS, seeds.stop) - 1)
        for first in range(seeds.start, seeds.stop, PER_PROCESS)
    )
    whole = Outcome()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for outcome in pool.map(lambda piece: play_here(program, *piece), pieces):
            whole.add(outcome)
    return whole
