"""The course of a trace: load, wait, show what each interval added, and at the end all of it."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from rich.console import RenderableType

from ixnet.control.errors import IxError
from ixnet.trace.tables import Sample, difference
from ixnet.trace.target import Target

LIVE_CHECK_S = 1.0


class Report(Protocol):
    """What a tool found in some seconds."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""

    def render(self) -> RenderableType:
        """For people."""


class Tool(Protocol):
    """One of `ixnet trace`'s. Made, it is loaded. lost: what this kernel can't tell."""

    lost: list[str]

    def sample(self) -> Sample:
        """Its tables now. Everything in them only grows."""

    def report(self, change: Sample, seconds: float) -> Report:
        """What a change of the tables says."""

    def close(self) -> None:
        """Unloads it."""


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
            first = before = tool.sample()
            began = shown = time.monotonic()
            complain(f"tracing {target.title()}; ctrl-C ends it and shows the summary")
            for moment, is_last in _moments(began, options):
                ended = _wait(stop, moment, target)
                now, taken = tool.sample(), time.monotonic()
                last = is_last or ended
                if options.interval is not None and taken > shown:
                    change = difference(now, before)
                    part = tool.report(change, taken - shown)
                    _show(part, "interval", taken - shown, target, options, show)
                before, shown = now, taken
                if last:
                    whole = tool.report(difference(now, first), taken - began)
                    _show(whole, "summary", taken - began, target, options, show)
                    return
    finally:
        tool.close()


def _wait(stop: threading.Event, moment: float, target: Target) -> bool:
    """Waits for a moment; whether something ended the trace before it."""
    while (left := moment - time.monotonic()) > 0:
        if stop.wait(min(left, LIVE_CHECK_S)):
            return True
        if target.instance is not None and not target.instance.is_alive():
            return True
    return False


def _show(
    report: Report,
    kind: str,
    seconds: float,
    target: Target,
    options: Options,
    show: Callable[[RenderableType], None],
) -> None:
    if options.as_json:
        facts = {
            "kind": kind,
            "seconds": round(seconds, 3),
            "interface": target.interface,
            "instance": target.instance.name if target.instance is not None else None,
        }
        print(json.dumps({**facts, **report.as_dict()}), flush=True)
        return
    show(f"\n{kind}: {seconds:.1f} s of {target.title()}")
    show(report.render())
