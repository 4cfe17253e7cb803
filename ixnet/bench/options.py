"""The options of `ixnet bench`, declared once and shared by its commands.

A command is a function of frozen dataclasses; `command` gives it one option for each of their
fields.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_type_hints

import typer

Target = Annotated[
    list[str],
    typer.Argument(
        metavar="[LABEL=]HOST:PORT...", help="Servers; several are measured in turns.",
        show_default=False,
    ),
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ClientOptions:
    """Where the load comes from."""

    client: Annotated[
        str, typer.Option(metavar="WHAT", help="kernel sockets, or ixnet as the client.")
    ] = "kernel"
    interface: Annotated[
        str | None, typer.Option("--interface", "-i", help="The client's interface (ixnet).")
    ] = None
    netns: Annotated[
        str | None, typer.Option(metavar="NAME", help="The client's network namespace.")
    ] = None
    cores: Annotated[
        str | None, typer.Option(metavar="LIST", help="Cores of the workers, in turn.")
    ] = None
    processes: Annotated[
        int, typer.Option(metavar="N", min=1, max=64, help="Processes (kernel).")
    ] = 1
    queues: Annotated[
        int, typer.Option(metavar="N", min=1, max=64, help="Queues, a worker each (ixnet).")
    ] = 1
    mode: Annotated[
        str, typer.Option(metavar="MODE", help="AF_XDP mode: auto, zerocopy, copy, generic.")
    ] = "auto"
    busy_poll: Annotated[bool, typer.Option("--busy-poll/--block", help="Never sleep (ixnet).")] = (
        True
    )
    spin: Annotated[bool, typer.Option("--spin", help="Never sleep (kernel).")] = False
    frames: Annotated[
        int | None, typer.Option(metavar="N", help="UMEM frames a queue (ixnet).")
    ] = None
    max_flows: Annotated[
        int | None, typer.Option(metavar="N", help="Connections a queue can hold (ixnet).")
    ] = None
    ports: Annotated[str | None, typer.Option(metavar="LO-HI", help="Local ports (ixnet).")] = None
    own_address: Annotated[
        str | None, typer.Option(metavar="IP/PREFIX", help="An address of its own (ixnet).")
    ] = None
    placement: Annotated[
        str, typer.Option(metavar="WHERE", help="Of the dataplane: inline or dune (ixnet).")
    ] = "inline"
    source: Annotated[
        str | None, typer.Option(metavar="IP,...", help="Local addresses, used in turn.")
    ] = None


@dataclasses.dataclass(frozen=True)
class LoadOptions:
    """How much, when, for how long."""

    connections: Annotated[
        int, typer.Option("--connections", "-c", min=1, max=4_000_000, help="In all.")
    ] = 16
    depth: Annotated[
        int,
        typer.Option(
            metavar="D", min=1, max=65_535, help="Most requests under way on a connection."
        ),
    ] = 1
    window: Annotated[
        int,
        typer.Option(
            metavar="W",
            min=0,
            max=4_000_000,
            help="Most requests under way in all; 0: as many as fit.",
        ),
    ] = 0
    rate: Annotated[
        float,
        typer.Option(
            metavar="R",
            min=0,
            max=1_000_000_000,
            help="Open loop: requests/s in all; 0: closed loop.",
        ),
    ] = 0
    arrival: Annotated[
        str, typer.Option(metavar="HOW", help="Open loop: poisson, or fixed intervals.")
    ] = "poisson"
    probes: Annotated[
        int,
        typer.Option(
            metavar="N", min=0, max=10_000, help="Connections beside the load that only measure."
        ),
    ] = 0
    probe_rate: Annotated[
        float, typer.Option(metavar="R", min=0, max=1_000_000_000, help="Their requests/s.")
    ] = 1000
    seconds: Annotated[
        float, typer.Option("--seconds", "-t", min=0.01, max=86_400, help="Measured time.")
    ] = 2
    warmup: Annotated[
        float, typer.Option(metavar="S", min=0, max=86_400, help="Time before that.")
    ] = 0.5
    repeat: Annotated[
        int, typer.Option("--repeat", "-n", min=1, max=1000, help="Rounds; targets alternate.")
    ] = 3
    seed: Annotated[
        int,
        typer.Option(metavar="N", min=0, max=4_503_599_627_370_496, help="Of all that is random."),
    ] = 1
    timeout: Annotated[
        float,
        typer.Option(metavar="S", min=0.1, max=86_400, help="Most time without any progress."),
    ] = 10
    wait: Annotated[
        float,
        typer.Option(
            metavar="S", min=0, max=86_400, help="Most time to wait for the server to listen."
        ),
    ] = 0


@dataclasses.dataclass(frozen=True)
class GoalOptions:
    """What is looked for."""

    slo: Annotated[
        str | None,
        typer.Option(metavar="P=TIME", help="Find the highest load that holds it: p99=500us."),
    ] = None
    sweep: Annotated[
        int,
        typer.Option(metavar="N", min=0, max=1000, help="A latency-throughput curve of N points."),
    ] = 0


@dataclasses.dataclass(frozen=True)
class OutputOptions:
    """Where the result goes."""

    json: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write the result; - prints it.")
    ] = None
    note: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Kept in the result, to tell runs apart."),
    ] = None


def command(
    app: typer.Typer, name: str, **defaults: Any
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes a function of option dataclasses (and plain arguments) a command.

    defaults: of options, by field name, where this command's differ.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(function, include_extras=True)
        groups: dict[str, type[Any]] = {}
        parameters: list[inspect.Parameter] = []
        for parameter in inspect.signature(function).parameters.values():
            kind = hints[parameter.name]
            if not dataclasses.is_dataclass(kind):
                parameters.append(parameter.replace(annotation=kind))
                continue
            assert isinstance(kind, type)
            groups[parameter.name] = kind
            fields = get_type_hints(kind, include_extras=True)
            for field in dataclasses.fields(kind):
                parameters.append(
                    inspect.Parameter(
                        field.name,
                        inspect.Parameter.POSITIONAL_OR_KEYWORD,
                        default=defaults.get(field.name, field.default),
                        annotation=fields[field.name],
                    )
                )

        def run(**given: Any) -> None:
            arguments: dict[str, Any] = {}
            for group, kind in groups.items():
                names = [field.name for field in dataclasses.fields(kind)]
                arguments[group] = kind(**{n: given.pop(n) for n in names})
            function(**given, **arguments)

        run.__name__ = name
        run.__doc__ = function.__doc__
        run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            sorted(parameters, key=lambda p: p.default is not inspect.Parameter.empty)
        )
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        app.command(name)(run)
        return run

    return decorate
