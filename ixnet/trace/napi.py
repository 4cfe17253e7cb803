"""`ixnet trace napi`: who polls the interface's queues, where, how many frames at a time."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from ixnet.trace.program import Kprobe, Member
from ixnet.trace.session import Tool
from ixnet.trace.tables import (
    DURATION_TITLES,
    Durations,
    Sample,
    bars,
    doubling,
    grid,
    merged,
    rate,
    slot_rows,
)
from ixnet.trace.target import Target, WorkerPlace

MEMBERS = (Member("napi_struct", "dev"),)
# In place of a duration's slot; xdp/trace/napi.c has the same.
UNTIMED = 0xFF
BUSY_LOOP = Kprobe(
    ("napi_busy_loop", "__napi_busy_loop"), "busy_begins", "busy_ends", "the time of busy polls"
)


class PollBy(enum.IntEnum):
    """Who polls; xdp/trace/napi.c has the same."""

    SOFTIRQ = 0
    KSOFTIRQD = 1
    BUSY_POLL = 2
    KTHREAD = 3


_SAID = {
    PollBy.SOFTIRQ: "softirq",
    PollBy.KSOFTIRQD: "ksoftirqd",
    PollBy.BUSY_POLL: "busy poll",
    PollBy.KTHREAD: "NAPI thread",
}


@dataclass
class Poller:
    """One that polls on one CPU. pid: of a softirq the worker in whose time it ran, or 0. works:
    how many polls took so many frames."""

    cpu: int
    by: PollBy
    pid: int
    works: dict[int, int] = field(default_factory=dict)
    times: Durations = field(default_factory=Durations)

    @property
    def polls(self) -> int:
        """How many."""
        return sum(self.works.values())

    @property
    def frames(self) -> int:
        """What they took together."""
        return sum(work * count for work, count in self.works.items())


@dataclass(frozen=True)
class NapiReport:
    """What was seen in some seconds."""

    target: Target
    seconds: float
    pollers: list[Poller]

    @classmethod
    def of(cls, target: Target, change: Sample, seconds: float) -> NapiReport:
        """From the program's table."""
        found: dict[tuple[int, int, int], Poller] = {}
        for (cpu, by, pid, frames, slot), value in change["polls"].items():
            poller = found.setdefault((cpu, by, pid), Poller(cpu, PollBy(by), pid))
            poller.works[frames] = poller.works.get(frames, 0) + value[0]
            if slot != UNTIMED:
                poller.times.add(slot, value)
        return cls(target, seconds, [found[key] for key in sorted(found)])

    @property
    def works(self) -> dict[int, int]:
        """Frames a poll, over all."""
        whole: dict[int, int] = {}
        for poller in self.pollers:
            for work, count in poller.works.items():
                whole[work] = whole.get(work, 0) + count
        return dict(sorted(whole.items()))

    def who(self, poller: Poller) -> str:
        """In words."""
        worker = self.target.worker_of(poller.pid)
        said = _SAID[poller.by]
        if poller.by is PollBy.SOFTIRQ:
            return f"{said} in {worker.name}'s time" if worker else said
        if worker is not None:
            return f"{said} of {worker.name}"
        return f"{said} of process {poller.pid}" if poller.pid else said

    def notes(self) -> list[str]:
        """Whether workers that busy-poll do so, on their own cores."""
        instance = self.target.instance
        if instance is None or not instance.facts.get("busy_poll"):
            return []
        return [note for worker in self.target.workers if (note := self._note(worker))]

    def _note(self, worker: WorkerPlace) -> str:
        own = [p for p in self.pollers if p.by is PollBy.BUSY_POLL and p.pid == worker.pid]
        here = sum(poller.polls for poller in own if poller.cpu == worker.core)
        if not own:
            return f"{worker.name} busy-polls, but the kernel polled nothing for it"
        if sum(poller.polls for poller in own) > here:
            return f"{worker.name} polled on other cores than its own ({worker.core})"
        return ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "polls": sum(poller.polls for poller in self.pollers),
            "frames": sum(poller.frames for poller in self.pollers),
            "frames_a_poll": {str(work): count for work, count in self.works.items()},
            "pollers": [
                {
                    "cpu": p.cpu,
                    "by": p.by.name.lower(),
                    "pid": p.pid,
                    "worker": w.number if (w := self.target.worker_of(p.pid)) else None,
                    "polls": p.polls,
                    "frames": p.frames,
                    "frames_a_poll": {str(n): p.works[n] for n in sorted(p.works)},
                    "time": p.times.as_dict(),
                }
                for p in self.pollers
            ],
            "notes": self.notes(),
        }

    def render(self) -> RenderableType:
        """For people."""
        titles = ("cpu", "by", "polls", "polls/s", "frames", "frames/poll", "of the CPU")
        table = grid(*titles, *DURATION_TITLES, left=2)
        for p in self.pollers:
            mean = f"{p.frames / p.polls:.1f}" if p.polls else "-"
            share = f"{p.times.total_ns / self.seconds / 1e9:.1%}" if p.times.count else "-"
            cells = (f"{p.polls:,}", rate(p.polls, self.seconds), f"{p.frames:,}", mean, share)
            table.add_row(str(p.cpu), self.who(p), *cells, *p.times.cells())
        if not self.pollers:
            return Text(f"nobody polled {self.target.interface}")
        parts: list[RenderableType] = [table, Text()]
        parts.append(bars("frames in a poll", doubling(self.works)))
        times = merged(poller.times for poller in self.pollers)
        parts += [Text(), bars("time of a poll", slot_rows(times))]
        parts += [Text(f"note: {note}", style="yellow") for note in self.notes()]
        return Group(*parts)


class NapiTool(Tool):
    """See Tool."""

    def __init__(self, target: Target) -> None:
        super().__init__(target, "napi", MEMBERS, (BUSY_LOOP,))

    def sample(self) -> Sample:
        """Polls and their times."""
        return {"polls": self._program.read("polls")}

    def report(self, change: Sample, seconds: float) -> NapiReport:
        """What they say."""
        return NapiReport.of(self._target, change, seconds)
