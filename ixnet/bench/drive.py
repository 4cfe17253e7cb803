"""Carries out a benchmark: targets in turns, each with what was asked for."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ixnet.bench.client import Client
from ixnet.bench.errors import BenchError, failure
from ixnet.bench.outcome import Outcome
from ixnet.bench.search import Objective, highest_load, median_run, sweep_rates
from ixnet.bench.session import Progress, RunPlan, Session

# A closed loop looks for the peak before a search or a sweep, for so long.
PEAK_S = 0.5


def address_of(host: str) -> str:
    """A host's address, the first that the resolver has. Errors: BenchError."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise BenchError(
            f"{host} does not resolve: {why}", "check the name, or give an IP address"
        ) from error
    return str(found[0][4][0])


@dataclass(frozen=True)
class Target:
    """A server. host: an IP address."""

    label: str
    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Target:
        """From [LABEL=]HOST:PORT, an IPv6 address in brackets; a name is looked up. Errors:
        BenchError."""
        label, equals, place = text.rpartition("=")
        host, colon, port = place.rpartition(":")
        host = host.strip("[]")
        if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise BenchError(f"{text} is no target", "write it like 192.0.2.1:7000")
        return cls(label if equals else place, address_of(host), int(port))

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
) -> Outcome:
    """Runs it against the targets in turns; an entry a target for the result file, as far as it
    got. Errors: BenchError if nothing was measured."""
    outcome = Outcome(
        [
            {"label": t.label, "target": f"{t.host}:{t.port}", "runs": [], "slo": [], "sweep": []}
            for t in targets
        ]
    )
    order = list(zip(targets, outcome.entries, strict=True))
    with outcome.gathering():
        for number in range(benchmark.rounds):
            turn = number % len(order)
            for target, entry in [*order[turn:], *order[:turn]]:
                where = f"round {number + 1} of {benchmark.rounds}: {target.label}"

                def say(what: str, where: str = where) -> None:
                    progress(f"{where}: {what}")

                with open_session(client, benchmark, target, say) as session:
                    outcome.facts = session.facts
                    _measure(session, benchmark, entry, say)
    for entry in outcome.entries:
        _summarize(entry, benchmark)
    return outcome


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
        for i, rate in enumerate(sweep_rates(peak, benchmark.sweep)):
            run = measure(rate)
            if i == 0:
                entry["sweep"].append([])
            entry["sweep"][-1].append(run)


def _at(plan: RunPlan, rate: float, seconds: float) -> RunPlan:
    return RunPlan(seconds, plan.warmup_s, rate, plan.probe_rate, plan.window)


def checked(run: dict[str, Any]) -> dict[str, Any]:
    """The run itself. Errors: BenchError if something went wrong in it."""
    if not run["ok"]:
        raise failure(str(run["first_error"]))
    if not run["completed"]:
        raise failure(f"{run['target']}: no reply came back in the measured time")
    return run


def _summarize(entry: dict[str, Any], benchmark: Benchmark) -> None:
    if entry["runs"]:
        entry["median"] = median_run(entry["runs"])
    if benchmark.objective and entry["slo"]:
        rates = sorted(found["rate"] for found in entry["slo"])
        entry["objective"] = str(benchmark.objective)
        entry["highest_rate"] = {
            "median": rates[len(rates) // 2],
            "least": rates[0],
            "most": rates[-1],
        }
