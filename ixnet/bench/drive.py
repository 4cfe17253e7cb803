"""Carries out a benchmark: targets in turns, each with what was asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ixnet.bench.client import Client
from ixnet.bench.errors import BenchError
from ixnet.bench.search import Objective, highest_load, median_run, sweep_rates
from ixnet.bench.session import Progress, RunPlan, Session

# A closed loop looks for the peak before a search or a sweep, for so long.
PEAK_S = 0.5


@dataclass(frozen=True)
class Target:
    """A server. host: an IP address."""

    label: str
    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Target:
        """From [LABEL=]HOST:PORT, an IPv6 address in brackets. Errors: BenchError."""
        label, equals, place = text.rpartition("=")
        host, colon, port = place.rpartition(":")
        host = host.strip("[]")
        if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise BenchError(f"{text} is no target", "write it like 192.0.2.1:7000")
        return cls(label if equals else place, host, int(port))

    @property
    def words(self) -> list[str]:
        """For the load generator."""
        return ["--host", self.host, "--port", str(self.port)]

    @property
    def family(self) -> int:
        """4 or 6."""
        return 6 if ":" in self.host else 4


@dataclass(frozen=True)
class Benchmark:
    """What to do to each target.

    mode, words: the load generator's. prepare: what a session needs before it is measured.
    """

    mode: str
    words: tuple[str, ...]
    connections: int
    depth: int = 1
    probes: int = 0
    plan: RunPlan = field(default_factory=RunPlan)
    rounds: int = 1
    objective: Objective | None = None
    sweep: int = 0
    prepare: Callable[[Session], object] = lambda _: None


def run_benchmark(
    client: Client, benchmark: Benchmark, targets: Sequence[Target], progress: Progress
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Runs it against the targets in turns; returns the client's facts, and an entry a target for
    the result file. Errors: BenchError."""
    entries = [
        {"label": t.label, "target": f"{t.host}:{t.port}", "runs": [], "slo": [], "sweep": []}
        for t in targets
    ]
    facts: dict[str, Any] = {}
    order = list(zip(targets, entries, strict=True))
    for number in range(benchmark.rounds):
        turn = number % len(order)
        for target, entry in [*order[turn:], *order[:turn]]:
            where = f"round {number + 1} of {benchmark.rounds}: {target.label}"

            def say(what: str, where: str = where) -> None:
                progress(f"{where}: {what}")

            with open_session(client, benchmark, target, say) as session:
                facts = session.facts
                _measure(session, benchmark, entry, say)
    for entry in entries:
        _summarize(entry, benchmark)
    return facts, entries


def open_session(
    client: Client, benchmark: Benchmark, target: Target, progress: Progress
) -> Session:
    """A session of the benchmark against a target, not yet entered."""
    words = [benchmark.mode, *target.words, *benchmark.words]
    if client.transport == "ixnet":
        words += ["--segment", str(client.segment_bytes(target.family))]
    return Session(
        client,
        words,
        benchmark.connections,
        benchmark.depth,
        benchmark.probes,
        benchmark.plan.window,
        progress,
    )


def _measure(
    session: Session, benchmark: Benchmark, entry: dict[str, Any], progress: Progress
) -> None:
    session.open(benchmark.connections)
    benchmark.prepare(session)
    plan = benchmark.plan
    if not benchmark.objective and not benchmark.sweep:
        entry["runs"].append(checked(session.run(plan)))
        return
    peak = checked(session.run(_at(plan, 0, min(plan.seconds, PEAK_S))))["per_second"]

    def measure(rate: float) -> dict[str, Any]:
        progress(f"offering {rate:,.0f}/s")
        return session.run(_at(plan, rate, plan.seconds))

    if benchmark.objective:
        found = highest_load(measure, benchmark.objective, max(peak / 2, 100.0))
        entry["slo"].append({"rate": found.rate, "run": found.run, "runs": found.runs})
    if benchmark.sweep:
        entry["sweep"].append([measure(rate) for rate in sweep_rates(peak, benchmark.sweep)])


def _at(plan: RunPlan, rate: float, seconds: float) -> RunPlan:
    return RunPlan(seconds, plan.warmup_s, rate, plan.probe_rate, plan.window)


def checked(run: dict[str, Any]) -> dict[str, Any]:
    """The run itself. Errors: BenchError if something went wrong in it."""
    if not run["ok"]:
        raise BenchError(str(run["first_error"]))
    return run


def _summarize(entry: dict[str, Any], benchmark: Benchmark) -> None:
    if entry["runs"]:
        entry["median"] = median_run(entry["runs"])
    if benchmark.objective:
        rates = sorted(found["rate"] for found in entry["slo"])
        entry["objective"] = str(benchmark.objective)
        entry["highest_rate"] = {
            "median": rates[len(rates) // 2],
            "least": rates[0],
            "most": rates[-1],
        }
