"""`ixnet trace`: the command line of the tracing tools."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ixnet.trace.session import Tool
    from ixnet.trace.target import Target


app = typer.Typer(
    help="What the kernel does around an instance: drops, polls, system calls, lost cores.",
    no_args_is_help=True,
)

Name = Annotated[
    str | None, typer.Option("--name", metavar="NAME", help="Which instance, if several run.")
]
Interface = Annotated[
    str | None,
    typer.Option(
        "--interface", "-i", metavar="IF", help="An interface, with or without an instance."
    ),
]
Seconds = Annotated[
    float | None, typer.Option(metavar="N", help="How long (until ctrl-C or SIGTERM).")
]
Interval = Annotated[
    float | None, typer.Option(metavar="S", help="Also show what every S seconds added.")
]
AsJson = Annotated[bool, typer.Option("--json", help="For programs: one object a line.")]


def _maker(tool: str) -> Callable[[Target], Tool]:
    """What makes a tool; each is loaded when it is asked for."""
    if tool == "drops":
        from ixnet.trace.drops import DropsTool

        return DropsTool
    if tool == "napi":
        from ixnet.trace.napi import NapiTool

        return NapiTool
    if tool == "wakeups":
        from ixnet.trace.wakeups import WakeupsTool

        return WakeupsTool
    from ixnet.trace.preempt import PreemptTool

    return PreemptTool


def _trace(
    tool: str,
    name: str | None,
    interface: str | None,
    seconds: float | None,
    interval: float | None,
    as_json: bool,
) -> None:
    from ixnet.cli import errors
    from ixnet.terminal import make_console
    from ixnet.trace.needs import require
    from ixnet.trace.session import Options, run
    from ixnet.trace.target import find_target

    with errors():
        options = Options(seconds, interval, as_json)
        target = find_target(name, interface)
        require()
        run(_maker(tool)(target), target, options, make_console().print, _complain)


def _complain(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


# What each says of itself, in the order of `ixnet trace --help`.
TOOLS = {
    "drops": "Where frames end before a shard has them: refused, given up by the driver, freed.",
    "napi": "Who polls the NIC's queues, on which CPU, how many frames at a time, how long.",
    "wakeups": "The system calls on AF_XDP sockets: how many, how long, frames a call.",
    "preempt": "What kept workers from their cores: tasks, interrupts, softirqs, the hypervisor.",
}


def _add(tool: str, said: str) -> None:
    @app.command(tool, help=said)
    def command(
        name: Name = None,
        interface: Interface = None,
        seconds: Seconds = None,
        interval: Interval = None,
        as_json: AsJson = False,
    ) -> None:
        _trace(tool, name, interface, seconds, interval, as_json)


for _tool, _said in TOOLS.items():
    _add(_tool, _said)
