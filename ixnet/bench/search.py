"""What to measure: the highest load that holds an objective, sweeps, and medians of rounds."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from ixnet.bench.errors import BenchError

_PERCENTILES = {"p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0, "p999": 99.9}
_UNITS = {"ns": 1e-3, "us": 1.0, "ms": 1e3, "s": 1e6}

# Of what was offered: less, and the server (or the client) did not keep up.
ACHIEVED_SHARE = 0.98
# How often the guess is doubled, or halved, to get an objective between two rates.
BRACKET_STEPS = 12


@dataclass(frozen=True)
class Objective:
    """A percentile of latency and its limit, us. From "p99=500us". by_slices: p99 of the median
    slice of 20 ms instead, which the machine's own pauses don't decide."""

    percentile: str
    limit_us: float
    by_slices: bool = False

    @classmethod
    def parse(cls, text: str) -> Objective:
        """Errors: BenchError."""
        match = re.fullmatch(r"(p\d+)\s*=\s*(\d+(?:\.\d*)?|\.\d+)\s*(ns|us|ms|s)", text)
        if not match or match.group(1) not in _PERCENTILES or not float(match.group(2)):
            raise BenchError(
                f"--slo {text} is not understood",
                f"write it like p99=500us; percentiles are {', '.join(_PERCENTILES)}",
            )
        return cls(match.group(1), float(match.group(2)) * _UNITS[match.group(3)])

    def __str__(self) -> str:
        return f"{self.percentile} <= {self.limit_us:g} us"

    def held_by(self, run: dict[str, Any]) -> bool:
        """Whether a run held it: in time, as much as was offered, and without an error. One in
        which nothing was measured held nothing: few are due at low rates, perhaps none."""
        group = run["probes"] if run.get("probes") else run
        if not group["latency"]["count"]:
            return False
        latency = group["latency"]["us"][self.percentile]
        if self.by_slices:
            latency = math.inf if group["slice_p99_us"] is None else group["slice_p99_us"]
        due = run["offered"] * run["seconds"]
        # A Poisson process may well have three standard deviations fewer.
        kept_up = run["completed"] >= ACHIEVED_SHARE * due - 3 * math.sqrt(due)
        return bool(run["ok"] and kept_up and run["late"] == 0 and latency <= self.limit_us)


@dataclass
class Found:
    """rate: the highest offered load that held, requests/s; 0: none did. runs: all that were made,
    in order."""

    rate: float = 0.0
    run: dict[str, Any] | None = None
    runs: list[dict[str, Any]] = field(default_factory=list)


def highest_load(
    measure: Callable[[float], dict[str, Any]],
    objective: Objective,
    guess: float,
    precision: float = 0.03,
    confirm: int = 1,
    steps_max: int = 24,
) -> Found:
    """The highest rate whose run holds the objective, within `precision` of it.

    From `guess` on doubled, or halved, until it lies between two rates; then bisected. `confirm`
    more runs at the rate found must hold too by their majority, or it is looked for below.
    """
    found = Found()

    def holds(rate: float) -> bool:
        run = measure(rate)
        found.runs.append(run)
        held = objective.held_by(run)
        if held and rate > found.rate:
            found.rate, found.run = rate, run
        return held

    low, high = _bracket(holds, guess)
    while low and high - low > precision * high and len(found.runs) < steps_max:
        middle = (low + high) / 2
        if holds(middle):
            low = middle
        else:
            high = middle
    while found.rate and confirm and len(found.runs) < 2 * steps_max:
        rate = found.rate
        again = [measure(rate) for _ in range(confirm)]
        found.runs += again
        if 2 * sum(objective.held_by(run) for run in again) >= confirm:
            break
        found.rate, found.run = 0.0, None
        while not found.rate and len(found.runs) < 2 * steps_max:
            rate *= 1 - 2 * precision
            holds(rate)
    return found


def _bracket(holds: Callable[[float], bool], guess: float) -> tuple[float, float]:
    """(low, high): low held and high did not; low is 0 if nothing held."""
    if holds(guess):
        low = guess
        for _ in range(BRACKET_STEPS):
            if not holds(2 * low):
                return low, 2 * low
            low *= 2
        return low, 2 * low
    high = guess
    for _ in range(BRACKET_STEPS):
        if holds(high / 2):
            return high / 2, high
        high /= 2
    return 0.0, high


def sweep_rates(peak: float, points: int) -> list[float]:
    """Rates along a latency-throughput curve, up to the peak, denser towards it."""
    if points < 2:
        return [peak * 0.9]
    return [peak * (1 - (1 - i / (points + 1)) ** 1.5) for i in range(1, points + 1)]


def median_run(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians, least and most of the figures of several rounds."""
    made: dict[str, Any] = {"rounds": len(runs)}
    for key in ("per_second", "bytes_per_second"):
        values = [run[key] for run in runs]
        made[key] = _spread(values)
    made["us"] = {
        name: _spread([run["latency"]["us"][name] for run in runs])
        for name in runs[0]["latency"]["us"]
    }
    if all(run.get("probes") for run in runs):
        made["probe_us"] = {
            name: _spread([run["probes"]["latency"]["us"][name] for run in runs])
            for name in runs[0]["probes"]["latency"]["us"]
        }
    return made


def median_sweep(rounds: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Medians of each point of a curve over its rounds; the last round may have ended early."""
    points = []
    for runs in zip_longest(*rounds):
        made = [run for run in runs if run is not None]
        point: dict[str, Any] = {
            key: statistics.median(run[key] for run in made) for key in ("offered", "per_second")
        }
        us = {
            name: statistics.median(run["latency"]["us"][name] for run in made)
            for name in made[0]["latency"]["us"]
        }
        points.append({**point, "latency": {"us": us}})
    return points


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}
