"""`ixnet trace wakeups`: the system calls that a dataplane makes on its AF_XDP sockets."""

from __future__ import annotations

import enum
import errno
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
from ixnet.trace.target import Target

MEMBERS = (
    Member("task_struct", "files"),
    Member("files_struct", "fdt"),
    Member("fdtable", "max_fds"),
    Member("fdtable", "fd"),
    Member("file", "private_data"),
    Member("socket", "sk"),
    Member("sock_common", "skc_family"),
    Member("xdp_sock", "dev"),
    Member("xdp_sock", "queue_id"),
)
# Called for each frame, in the sender's own system call, in copy mode.
FRAME = Kprobe(
    ("__dev_direct_xmit",),
    "frame_sent",
    lost="how many frames each call sent (their mean is told)",
)
NO_QUEUE = 0xFFFFFFFF


class Call(enum.IntEnum):
    """System calls; xdp/trace/wakeups.c has the same."""

    SENDTO = 0
    RECVFROM = 1
    POLL = 2


# What they are for here (link/xsk.c, native/app.c).
_SAID = {
    Call.SENDTO: "sendto: send what is on TX",
    Call.RECVFROM: "recvfrom: fetch, refill",
    Call.POLL: "poll: sleep",
}


@dataclass
class Caller:
    """One process's calls of one kind on one queue's socket. results: by errno, 0 for success;
    sent: how many calls sent so many frames. queue: None for a call on several, or that doesn't
    tell."""

    queue: int | None
    pid: int
    call: Call
    times: Durations = field(default_factory=Durations)
    results: dict[int, int] = field(default_factory=dict)
    sent: dict[int, int] = field(default_factory=dict)

    @property
    def calls(self) -> int:
        """How many."""
        return sum(self.results.values())

    def errors(self) -> dict[str, int]:
        """Those that failed, by the error's name."""
        return {
            errno.errorcode.get(number, str(number)): count
            for number, count in sorted(self.results.items())
            if number
        }


@dataclass(frozen=True)
class WakeupsReport:
    """What was seen in some seconds. counters: by shard, what its own counters grew by.
    per_call: whether frames were counted call by call."""

    target: Target
    seconds: float
    callers: list[Caller]
    counters: dict[int, dict[str, int]]
    per_call: bool

    @classmethod
    def of(cls, target: Target, change: Sample, seconds: float, per_call: bool) -> WakeupsReport:
        """From the program's table, and the shards' counters."""
        found: dict[tuple[int, int, int], Caller] = {}
        for (queue, pid, call, error, frames, slot), value in change["calls"].items():
            known = None if queue == NO_QUEUE else queue
            caller = found.setdefault((queue, pid, call), Caller(known, pid, Call(call)))
            caller.times.add(slot, value)
            caller.results[error] = caller.results.get(error, 0) + value[0]
            if call == Call.SENDTO:
                caller.sent[frames] = caller.sent.get(frames, 0) + value[0]
        counters: dict[int, dict[str, int]] = {}
        for (shard, name), (value,) in change["counters"].items():
            counters.setdefault(shard, {})[name] = value
        return cls(target, seconds, [found[key] for key in sorted(found)], counters, per_call)

    def who(self, caller: Caller) -> str:
        """In words."""
        if worker := self.target.worker_of(caller.pid):
            return worker.name
        if self.target.instance is not None and caller.pid == self.target.instance.pid:
            return "control process (--kick thread)"
        return f"process {caller.pid}"

    @property
    def sent(self) -> dict[int, int]:
        """Frames a sendto, over all."""
        whole: dict[int, int] = {}
        for caller in self.callers if self.per_call else ():
            for frames, calls in caller.sent.items():
                whole[frames] = whole.get(frames, 0) + calls
        return whole

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "calls": [
                {
                    "queue": c.queue,
                    "pid": c.pid,
                    "worker": w.number if (w := self.target.worker_of(c.pid)) else None,
                    "call": c.call.name.lower(),
                    "count": c.calls,
                    "errors": c.errors(),
                    "time": c.times.as_dict(),
                    "frames_a_call": (
                        {str(n): c.sent[n] for n in sorted(c.sent)} if self.per_call else None
                    ),
                }
                for c in self.callers
            ],
            "shards": {str(shard): values for shard, values in self.counters.items()},
        }

    def render(self) -> RenderableType:
        """For people."""
        if not self.callers:
            return Text(f"nobody called the AF_XDP sockets of {self.target.interface}")
        titles = ("queue", "who", "call", "calls", "a second", "of its time")
        table = grid(*titles, *DURATION_TITLES, "errors", left=3)
        for c in self.callers:
            share = f"{c.times.total_ns / self.seconds / 1e9:.1%}"
            errors = ", ".join(f"{name} {count:,}" for name, count in c.errors().items())
            queue = "-" if c.queue is None else str(c.queue)
            cells = (f"{c.calls:,}", rate(c.calls, self.seconds), share)
            table.add_row(
                queue, self.who(c), _SAID[c.call], *cells, *c.times.cells(), errors or "none"
            )
        parts: list[RenderableType] = [table]
        for shard, values in self.counters.items():
            frames, calls = values.get("tx_frames", 0), values.get("syscalls", 0)
            mean = f", {frames / calls:.1f} frames sent a wakeup" if calls else ""
            text = f"shard {shard} counts {calls:,} wakeups, {frames:,} frames sent{mean}"
            parts.append(Text(text))
        if self.sent:
            parts += [Text(), bars("frames sent by a call", doubling(self.sent))]
        kicks = merged(c.times for c in self.callers if c.call in (Call.SENDTO, Call.RECVFROM))
        parts += [Text(), bars("time of a sendto or recvfrom", slot_rows(kicks))]
        return Group(*parts)


class WakeupsTool(Tool):
    """See Tool."""

    def __init__(self, target: Target) -> None:
        super().__init__(target, "wakeups", MEMBERS, (FRAME,))
        self._per_call = not self.lost
        if target.instance is not None and "zero" in str(target.instance.facts.get("mode")):
            self._per_call = False
            self.lost.append("frames of each call: with zero-copy the driver sends them later")

    def sample(self) -> Sample:
        """Calls, and what the shards count themselves."""
        found = {"calls": self._program.read("calls"), "counters": {}}
        instance = self._target.instance
        if instance is not None and instance.is_alive():
            from ixnet.control.stats import read_instance

            for reading in read_instance(instance):
                for name in ("syscalls", "wakeup_errors", "tx_frames"):
                    found["counters"][reading.shard_id, name] = (reading.values[name],)
        return found

    def report(self, change: Sample, seconds: float) -> WakeupsReport:
        """What they say."""
        return WakeupsReport.of(self._target, change, seconds, self._per_call)
