"""`ixnet bench connections`: throughput and memory as the connections held rise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ixnet.bench.client import Client
from ixnet.bench.drive import Benchmark, Target, checked, open_session
from ixnet.bench.errors import BenchError
from ixnet.bench.memory import available_mib, held_mib
from ixnet.bench.outcome import Outcome
from ixnet.bench.session import Progress

STEPS = (1_000, 10_000, 50_000, 100_000, 250_000, 500_000, 1_000_000)
# Connections opened in a second, at the least; else something is wrong.
SLOWEST_OPENING = 200


def parse_steps(text: str | None, most: int) -> list[int]:
    """Rising numbers of connections; without a text from 1,000 on to `most`. Errors: BenchError."""
    if text is None:
        return [*(step for step in STEPS if step < most), most]
    try:
        steps = [int(word.replace("_", "")) for word in text.split(",")]
    except ValueError:
        steps = []
    if not steps or steps[0] < 1 or steps != sorted(set(steps)):
        raise BenchError(f"--steps {text} are no rising numbers", "write them like 1000,10000")
    return steps


def parse_pids(text: str | None) -> list[int]:
    """Processes that there are. Errors: BenchError."""
    words = text.split(",") if text else []
    for word in words:
        if not (word.isdecimal() and Path(f"/proc/{word}").exists()):
            raise BenchError(
                f"--server-pid {word} is no process here", "use numbers of processes that run"
            )
    return [int(word) for word in words]


def run_steps(
    client: Client,
    benchmark: Benchmark,
    targets: Sequence[Target],
    held: Sequence[int],
    server_pids: Sequence[int],
    progress: Progress,
) -> Outcome:
    """Each target once, from few connections to many, as far as it got. Errors: BenchError if
    nothing was measured."""
    outcome = Outcome(
        [{"label": t.label, "target": f"{t.host}:{t.port}", "steps": []} for t in targets]
    )
    with outcome.gathering():
        for target, entry in zip(targets, list(outcome.entries), strict=True):
            before_mib = available_mib()

            def say(what: str, label: str = target.label) -> None:
                progress(f"{label}: {what}")

            with open_session(client, benchmark, target, say) as session:
                outcome.facts = session.facts
                for count in held:
                    session.open(count, patience_s=30 + count / SLOWEST_OPENING)
                    run = checked(session.run(benchmark.plan))
                    memory = {
                        "server": held_mib(server_pids) if server_pids else None,
                        "client": held_mib(session.pids),
                        "machine": round(before_mib - available_mib(), 1),
                    }
                    step = {"connections": count, "run": run, "memory_mib": memory}
                    entry["steps"].append(step)
    return outcome
