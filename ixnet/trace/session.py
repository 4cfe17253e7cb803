"""The course of a trace: load, wait, show what each interval added, and at the end all of it."""

from __future__ import annotations

import json
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

from rich.console import RenderableType

from ixnet.control.errors import IxError
from ixnet.trace.program import Kprobe, Member, Program
from ixnet.trace.tables import Sample, difference
from ixnet.trace.target import Target, new_workers

LIVE_CHECK_S = 1.0
MISSED = "events of the machine's came while a CPU traced another one: counts may lack some"


class Report(Protocol):
    """What a tool found in some seconds."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""

    def render(self) -> RenderableType:
        """For people."""


class Tool(ABC):
    """One of `ixnet trace`'s: made, it is loaded. lost: what this kernel can't tell. Errors:
    TraceError.

    name: of its program. members, kprobes, constants: what that needs besides what all need.
    tells_workers: whether it has a table `workers`, by pid.
    """

    def __init__(
        self,
        target: Target,
        name: str,
        members: Sequence[Member] = (),
        kprobes: Sequence[Kprobe] = (),
        constants: Mapping[str, int] | None = None,
        tells_workers: bool = True,
    ) -> None:
        own = {"IX_IFINDEX": target.ifindex, "IX_NETNS": target.netns, **(constants or {})}
        self._program = Program(name, own, members, kprobes)
        self._tells_workers = tells_workers
        self.lost = list(self._program.lost)
        self.follow(target)

    def follow(self, target: Target) -> None:
        """Whom it looks at; again if there are more workers."""
        self._target = target
        for worker in target.workers if self._tells_workers else ():
            self._program.put("workers", worker.pid, worker.number)

    @abstractmethod
    def sample(self) -> Sample:
        """Its tables now. Everything in them only grows."""

    @abstractmethod
    def report(self, change: Sample, seconds: float) -> Report:
        """What a change of the tables says."""

    def missed(self) -> int:
        """See Program."""
        return self._program.missed()

    def close(self) -> None:
        """Unloads it."""
        self._program.close()


@dataclass(frozen=True)
class Options:
    """How long, how often, and for whom. seconds: None, until a signal; interval: None, only the
    summary."""

    seconds: float | None = None
    interval: float | None = None
    as_json: bool = False

    def __post_init__(self) -> None:
        for name, value in (("--seconds", self.seconds), ("--interval", self.interval)):
            if value is not None and not 0.1 <= value <= 1e6:
                raise IxError(f"{name} {value:g} is out of range", "use 0.1 to 1000000")


@contextmanager
def _until_signalled() -> Iterator[threading.Event]:
    """An event that SIGINT or SIGTERM sets; a second one acts as ever."""
    stop = threading.Event()
    old = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def on_signal(number: int, _: Any) -> None:
        stop.set()
        signal.signal(number, old[signal.Signals(number)])

    for number in old:
        signal.signal(number, on_signal)
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _moments(began: float, options: Options) -> Iterator[tuple[float, bool]]:
    """When to show something, and whether it is the last time. Endless without a limit."""
    end = began + options.seconds if options.seconds is not None else float("inf")
    n = 1
    while options.interval is not None and began + n * options.interval < end:
        yield began + n * options.interval, False
        n += 1
    yield end, True


class Session:
    """One trace. tool: loaded, closed at the end."""

    def __init__(
        self, tool: Tool, target: Target, complain: Callable[[str], None], stop: threading.Event
    ) -> None:
        self.tool = tool
        self.target = target
        self._complain = complain
        self._stop = stop

    def wait(self, moment: float) -> bool:
        """Waits for a moment; whether something ended the trace before it."""
        while (left := moment - time.monotonic()) > 0:
            if self._stop.wait(min(left, LIVE_CHECK_S)):
                return True
            if self.target.instance is not None and not self.target.instance.is_alive():
                return True
            self._follow()
        return False

    def _follow(self) -> None:
        """A worker that was started again is another process."""
        fresh = new_workers(self.target)
        if not fresh:
            return
        self.target = replace(self.target, workers=(*self.target.workers, *fresh))
        self.tool.follow(self.target)
        for worker in fresh:
            self._complain(f"ixnet: {worker.name} was started again (process {worker.pid})")


def run(
    tool: Tool,
    target: Target,
    options: Options,
    show: Callable[[RenderableType], None],
    complain: Callable[[str], None],
) -> None:
    """Traces until the time is over, a signal comes or the instance ends. The tool is closed."""
    try:
        for text in tool.lost:
            complain(f"ixnet: not told: {text}")
        with _until_signalled() as stop:
            session = Session(tool, target, complain, stop)
            first = before = tool.sample()
            missed_before = tool.missed()
            began = shown = time.monotonic()
            complain(f"tracing {target.title()}; ctrl-C ends it and shows the summary")
            for moment, is_last in _moments(began, options):
                ended = session.wait(moment)
                now, taken = tool.sample(), time.monotonic()
                if options.interval is not None and taken > shown:
                    part = tool.report(difference(now, before), taken - shown)
                    _show(part, "interval", taken - shown, target, options, show)
                before, shown = now, taken
                if is_last or ended:
                    whole = tool.report(difference(now, first), taken - began)
                    if missed := tool.missed() - missed_before:
                        complain(f"ixnet: {missed} {MISSED}")
                    facts = {"missed": missed}
                    _show(whole, "summary", taken - began, target, options, show, facts)
                    return
    finally:
        tool.close()


def _show(
    report: Report,
    kind: str,
    seconds: float,
    target: Target,
    options: Options,
    show: Callable[[RenderableType], None],
    more: Mapping[str, int] | None = None,
) -> None:
    if options.as_json:
        facts = {
            "kind": kind,
            "seconds": round(seconds, 3),
            "interface": target.interface,
            "instance": target.instance.name if target.instance is not None else None,
        }
        print(json.dumps({**facts, **(more or {}), **report.as_dict()}), flush=True)
        return
    show(f"\n{kind}: {seconds:.1f} s of {target.title()}")
    show(report.render())
