"""`ixnet trace preempt`: what kept workers, ready to run, from their cores."""

from __future__ import annotations

import enum
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from ixnet.control.instance import InstanceError
from ixnet.trace.needs import TRACEFS
from ixnet.trace.session import Tool
from ixnet.trace.tables import DURATION_TITLES, Durations, Sample, bars, grid, rate, slot_rows
from ixnet.trace.target import Target, WorkerPlace

CORE_WORKERS = 4
# Lines for the causes of a worker, in a table.
LINES_MAX = 12
SOFTIRQS = (
    "HI", "TIMER", "NET_TX", "NET_RX", "BLOCK", "IRQ_POLL", "TASKLET", "SCHED", "HRTIMER", "RCU",
)  # fmt: skip
VECTORS = ("timer", "reschedule", "call function", "call function (one)")


class Cause(enum.IntEnum):
    """Why time was lost; xdp/trace/preempt.c has the same."""

    WAIT_PREEMPTED = 0
    WAIT_WOKEN = 1
    BY_TASK = 2
    BY_IRQ = 3
    BY_VECTOR = 4
    BY_SOFTIRQ = 5
    BY_OWN_SOFTIRQ = 6


_WAITS = {
    Cause.WAIT_PREEMPTED: "preempted, until it ran again",
    Cause.WAIT_WOKEN: "woken, until it ran",
}


@dataclass
class Loss:
    """One cause. name: a task's or an interrupt's, "" if it went before it could be asked for."""

    worker: WorkerPlace
    cause: Cause
    what: int
    name: str
    times: Durations = field(default_factory=Durations)

    def text(self) -> str:
        """In words."""
        if self.cause in _WAITS:
            return _WAITS[self.cause]
        if self.cause is Cause.BY_TASK:
            if not self.what:
                return "the idle task: the core woke up"
            return f"task {self.name or '?'} ({self.what})"
        if self.cause is Cause.BY_IRQ:
            return f"interrupt {self.what} {self.name}".rstrip()
        if self.cause is Cause.BY_VECTOR:
            return f"interrupt: {_named(VECTORS, self.what)}"
        kind = _named(SOFTIRQS, self.what)
        own = " in its own system calls" if self.cause is Cause.BY_OWN_SOFTIRQ else ""
        return f"softirq {kind}{own}"


def _named(names: tuple[str, ...], n: int) -> str:
    return names[n] if n < len(names) else str(n)


@dataclass(frozen=True)
class PreemptReport:
    """What was seen in some seconds. steal: by core, seconds that the hypervisor took."""

    target: Target
    seconds: float
    losses: list[Loss]
    steal: dict[int, float]

    @classmethod
    def of(
        cls, target: Target, change: Sample, seconds: float, names: Mapping[tuple[str, int], str]
    ) -> PreemptReport:
        """From the program's tables. names: of ("task", tid) and ("irq", number)."""
        found: dict[tuple[int, int, int], Loss] = {}
        for (pid, cause, what, slot), value in change["losses"].items():
            worker = target.worker_of(pid)
            if worker is None:
                continue
            kind = "task" if cause == Cause.BY_TASK else "irq"
            name = names.get((kind, what), "")
            key = (pid, cause, what)
            loss = found.setdefault(key, Loss(worker, Cause(cause), what, name))
            loss.times.add(slot, value)
        tick = os.sysconf("SC_CLK_TCK")
        steal = {core: value / tick for (core,), (value,) in change.get("steal", {}).items()}
        return cls(target, seconds, list(found.values()), steal)

    def of_worker(self, worker: WorkerPlace) -> list[Loss]:
        """Its losses: the waits first, then who took most."""
        own = [loss for loss in self.losses if loss.worker is worker]
        return sorted(own, key=lambda loss: (loss.cause not in _WAITS, -loss.times.total_ns))

    def waits(self, worker: WorkerPlace) -> Durations:
        """How long it was preempted."""
        for loss in self.losses:
            if loss.worker is worker and loss.cause is Cause.WAIT_PREEMPTED:
                return loss.times
        return Durations()

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "workers": [
                {
                    "worker": worker.number,
                    "pid": worker.pid,
                    "core": worker.core,
                    "steal_s": self.steal.get(worker.core, 0.0),
                    "losses": [
                        {
                            "cause": loss.cause.name.lower(),
                            "what": loss.what,
                            "name": loss.name,
                            "text": loss.text(),
                            "time": loss.times.as_dict(),
                        }
                        for loss in self.of_worker(worker)
                    ],
                }
                for worker in self.target.workers
            ]
        }

    def render(self) -> RenderableType:
        """For people."""
        parts: list[RenderableType] = []
        for worker in self.target.workers:
            title = f"{worker.name} (pid {worker.pid}, core {worker.core})"
            table = grid(title, "times", "a second", "total", "of the time", *DURATION_TITLES)
            losses = self.of_worker(worker)
            for loss in losses[:LINES_MAX]:
                times = loss.times
                share = f"{times.total_ns / self.seconds / 1e9:.2%}"
                total = f"{times.total_ns / 1e6:,.2f} ms"
                cells = (f"{times.count:,}", rate(times.count, self.seconds), total, share)
                style = "bold" if loss.cause in _WAITS else ""
                table.add_row(loss.text(), *cells, *times.cells(), style=style)
            if rest := losses[LINES_MAX:]:
                took = sum(loss.times.total_ns for loss in rest) / 1e6
                table.add_row(f"{len(rest)} more (--json)", "", "", f"{took:,.2f} ms")
            if steal := self.steal.get(worker.core):
                share = f"{steal / self.seconds:.2%}"
                table.add_row("the hypervisor (steal)", "", "", f"{steal * 1e3:,.0f} ms", share)
            parts += [table, Text()]
            if (waits := self.waits(worker)).count:
                parts += [bars("preempted for", slot_rows(waits)), Text()]
        return Group(*parts)


def steal_ticks(text: str) -> dict[int, int]:
    """By CPU, from /proc/stat: clock ticks that the hypervisor gave to others (proc(5))."""
    found = {}
    for line in text.splitlines():
        name, *fields = line.split()
        if name.startswith("cpu") and name[3:].isdecimal() and len(fields) > 7:
            found[int(name[3:])] = int(fields[7])
    return found


def core_places(workers: tuple[WorkerPlace, ...]) -> dict[int, int]:
    """The program's table `cores`: workers' pids by place, the newest first. More than CORE_WORKERS
    on a core are told of, but not which task kept them from it."""
    places: dict[int, int] = {}
    for worker in reversed(workers):
        first = worker.core * CORE_WORKERS
        for place in range(first, first + CORE_WORKERS):
            if place not in places:
                places[place] = worker.pid
                break
    return places


class PreemptTool(Tool):
    """See Tool. Errors: InstanceError, too, without an instance."""

    def __init__(self, target: Target) -> None:
        if not target.workers:
            raise InstanceError(
                f"no instance runs on {target.interface}, so there are no workers to look at",
                "start one with ixnet run",
            )
        vectors = (TRACEFS / "irq_vectors").exists()
        super().__init__(target, "preempt", constants={"IX_HAVE_VECTORS": int(vectors)})
        if not vectors:
            self.lost.append("the timer's interrupts and those between CPUs (no irq_vectors)")

    def sample(self) -> Sample:
        """Losses, and the hypervisor's."""
        steal = steal_ticks(Path("/proc/stat").read_text())
        return {
            "losses": self._program.read("losses"),
            "steal": {(core,): (ticks,) for core, ticks in steal.items()},
        }

    def report(self, change: Sample, seconds: float) -> PreemptReport:
        """What they say."""
        names = {
            (kind, key[0]): str(value[0])
            for kind in ("task", "irq")
            for key, value in self._program.read(f"{kind}_names").items()
        }
        return PreemptReport.of(self._target, change, seconds, names)

    def follow(self, target: Target) -> None:
        """See Tool."""
        super().follow(target)
        for place, pid in core_places(target.workers).items():
            self._program.put("cores", place, pid)
