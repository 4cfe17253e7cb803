"""`ixnet bench`: its commands."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ixnet.bench.client import Client
from ixnet.bench.drive import Benchmark, Target, run_benchmark
from ixnet.bench.errors import BenchError
from ixnet.bench.latency import check_stamps, parse_protocols, run_latency
from ixnet.bench.options import (
    ClientOptions,
    GoalOptions,
    LoadOptions,
    OutputOptions,
    command,
)
from ixnet.bench.options import Target as Targets
from ixnet.bench.outcome import Outcome
from ixnet.bench.result import check_writable, make_result, read_result, write_result
from ixnet.bench.search import Objective
from ixnet.bench.session import Progress, RunPlan, Session
from ixnet.bench.steps import parse_pids, parse_steps, run_steps
from ixnet.bench.tables import remarks, result_table
from ixnet.terminal import make_console

# A dataplane's start, and its NIC's, on a slow machine.
START_S = 150

Bytes = Annotated[int, typer.Option("--bytes", "-b", min=1, max=1 << 30, help="Bytes a message.")]

app = typer.Typer(
    help="Load and latency, over kernel sockets or over ixnet itself.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@contextmanager
def shown_progress() -> Iterator[Progress]:
    """A line on the terminal that says what goes on; nothing where there is no terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _: None
        return
    with console.status("") as status:
        yield lambda text: status.update(text)


def make_client(options: ClientOptions) -> Client:
    """Errors: IxError."""
    from ixnet.control.cores import parse_cores

    return Client(
        transport=options.client,
        netns=options.netns,
        interface=options.interface,
        cores=parse_cores(options.cores) if options.cores else (),
        processes=options.processes,
        queues=options.queues,
        mode=options.mode,
        busy_poll=options.busy_poll,
        spin=options.spin,
        frames=options.frames,
        max_flows=options.max_flows,
        ports=options.ports,
        own_address=options.own_address,
        placement=options.placement,
        sources=tuple(options.source.split(",")) if options.source else (),
    )


def make_benchmark(
    mode: str, words: list[str], load: LoadOptions, goal: GoalOptions | None = None
) -> Benchmark:
    """Errors: BenchError."""
    if load.rate and goal and (goal.slo or goal.sweep):
        which = "--slo" if goal.slo else "--sweep"
        raise BenchError(f"{which} chooses the rates by itself", "leave --rate out")
    if load.arrival not in ("poisson", "fixed"):
        raise BenchError(f"--arrival {load.arrival} is not known", "use poisson or fixed")
    more = ["--seed", str(load.seed), "--timeout", str(load.timeout), "--wait", str(load.wait)]
    if load.arrival == "fixed":
        more.append("--fixed")
    return Benchmark(
        mode=mode,
        words=(*words, *more),
        connections=load.connections,
        depth=load.depth,
        probes=load.probes,
        plan=RunPlan(load.seconds, load.warmup, load.rate, load.probe_rate, load.window),
        rounds=load.repeat,
        objective=Objective.parse(goal.slo) if goal and goal.slo else None,
        sweep=goal.sweep if goal else 0,
    )


def notes_of(output: OutputOptions) -> dict[str, str]:
    """Errors: BenchError."""
    notes: dict[str, str] = {}
    for note in output.note or []:
        key, equals, value = note.partition("=")
        if not equals:
            raise BenchError(f"--note {note} is no KEY=VALUE")
        notes[key] = value
    return notes


def check_output(output: OutputOptions) -> None:
    """Before what takes long. Errors: BenchError."""
    notes_of(output)
    if output.json and output.json != "-":
        check_writable(Path(output.json))


def give(kind: str, output: OutputOptions, options: dict[str, Any], outcome: Outcome) -> None:
    """Shows a result, and writes it where it was asked for. Ends the process, with its status, if
    it is only a part."""
    result = make_result(
        kind, outcome.facts, options, outcome.entries, stopped=outcome.stopped
    ) | {"notes": notes_of(output)}  # fmt: skip
    show(output, result)
    if outcome.status:
        raise typer.Exit(outcome.status)


def show(output: OutputOptions, result: dict[str, Any]) -> None:
    """On the terminal, and into the file."""
    if output.json == "-":
        json.dump(result, sys.stdout, indent=1)
        print()
        return
    console = make_console()
    console.print(result_table(result))
    for line in remarks(result):
        console.print(line, style="dim", highlight=False, soft_wrap=True)
    if output.json:
        write_result(Path(output.json), result)


def _bench(
    kind: str,
    benchmark: Benchmark,
    target: list[str],
    client: ClientOptions,
    output: OutputOptions,
    options: dict[str, Any],
) -> None:
    check_output(output)
    targets = [Target.parse(text) for text in target]
    with shown_progress() as progress:
        sender = make_client(client).towards(targets[0].host)
        outcome = run_benchmark(sender, benchmark, targets, progress)
    give(kind, output, options, outcome)


@command(app, "echo")
def echo(
    target: Targets,
    client: ClientOptions,
    load: LoadOptions,
    goal: GoalOptions,
    output: OutputOptions,
    bytes_: Bytes = 64,
) -> None:
    """Messages that come back; every byte is compared."""
    benchmark = make_benchmark("echo", ["--bytes", str(bytes_)], load, goal)
    _bench(
        "echo", benchmark, target, client, output,
        {"bytes": bytes_, **asdict(load), **asdict(goal)},
    )  # fmt: skip


@command(app, "memcached", connections=32, depth=4)
def memcached(
    target: Targets,
    client: ClientOptions,
    load: LoadOptions,
    goal: GoalOptions,
    output: OutputOptions,
    workload: Annotated[
        str,
        typer.Option(
            metavar="W", help="Sizes and mix: etc, usr (Atikoglu et al.), or KEY,VALUE bytes."
        ),
    ] = "etc",
    items: Annotated[
        int, typer.Option(metavar="N", min=1, max=1 << 28, help="Items that there are.")
    ] = 100_000,
    gets: Annotated[
        float | None,
        typer.Option(metavar="SHARE", min=0, max=1, help="Share of GETs; none: the workload's."),
    ] = None,
    zipf: Annotated[
        float,
        typer.Option(metavar="S", min=0, max=10, help="Exponent of popularity; 0: all are alike."),
    ] = 0.99,
    preload: Annotated[
        bool, typer.Option("--preload/--no-preload", help="Store the items first.")
    ] = True,
) -> None:
    """A memcached client's requests in the text protocol; every byte of the replies is compared."""
    words = ["--workload", workload, "--items", str(items), "--zipf", str(zipf)]
    if gets is not None:
        words += ["--gets", str(gets)]
    benchmark = make_benchmark("memcached", words, load, goal)
    if preload:
        benchmark = replace(benchmark, prepare=Session.load)
    own = {"workload": workload, "items": items, "gets": gets, "zipf": zipf, "preload": preload}
    _bench("memcached", benchmark, target, client, output, {**own, **asdict(load), **asdict(goal)})


@command(app, "connrate")
def connrate(
    target: Targets,
    client: ClientOptions,
    load: LoadOptions,
    goal: GoalOptions,
    output: OutputOptions,
    bytes_: Bytes = 64,
    end: Annotated[
        str, typer.Option(metavar="HOW", help="How the client ends connections: rst or fin.")
    ] = "rst",
) -> None:
    """Connections opened, served with one message, and closed, each second.

    By RST as IX's authors did: a client that closes by FIN holds each port for a minute, and soon
    has none.
    """
    if end not in ("rst", "fin"):
        raise BenchError(f"--end {end} is not known", "use rst or fin")
    words = ["--bytes", str(bytes_), *(["--rst"] if end == "rst" else [])]
    benchmark = make_benchmark("connrate", words, load, goal)
    own = {"bytes": bytes_, "end": end}
    _bench("connrate", benchmark, target, client, output, {**own, **asdict(load), **asdict(goal)})


@command(app, "stream", connections=1, depth=4)
def stream(
    target: Targets,
    client: ClientOptions,
    load: LoadOptions,
    output: OutputOptions,
    bytes_: Bytes = 1 << 20,
) -> None:
    """Large messages through an echo server: bytes each way; every one is compared."""
    benchmark = make_benchmark("echo", ["--bytes", str(bytes_)], load)
    _bench("stream", benchmark, target, client, output, {"bytes": bytes_, **asdict(load)})


@command(app, "connections", repeat=1, connections=250_000, window=256)
def connections(
    target: Targets,
    client: ClientOptions,
    load: LoadOptions,
    output: OutputOptions,
    bytes_: Bytes = 64,
    steps: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...", help="How many are held, rising; none: from 1,000 to --connections."
        ),
    ] = None,
    server_pid: Annotated[
        str | None,
        typer.Option(metavar="PID,...", help="Processes whose memory is the server's."),
    ] = None,
) -> None:
    """Connections held rise step by step, each sending a message in turn; throughput and memory.

    A local address has one connection for each of its ports: beyond that, several are needed
    (--source), or a wider range of ports (--ports).
    """
    held = parse_steps(steps, load.connections)
    benchmark = make_benchmark("echo", ["--bytes", str(bytes_)], load)
    benchmark = replace(benchmark, connections=held[-1])
    pids = parse_pids(server_pid)
    check_output(output)
    targets = [Target.parse(text) for text in target]
    with shown_progress() as progress:
        sender = make_client(client).towards(targets[0].host)
        outcome = run_steps(sender, benchmark, targets, held, pids, progress)
    options = {"bytes": bytes_, "steps": held, **asdict(load)}
    give("connections", output, options, outcome)


@command(app, "latency")
def latency(
    target: Targets,
    client: ClientOptions,
    output: OutputOptions,
    protocol: Annotated[str, typer.Option(metavar="WHICH", help="udp, tcp, or both.")] = "udp,tcp",
    bytes_: Annotated[
        int, typer.Option("--bytes", "-b", min=64, max=1400, help="Bytes a message.")
    ] = 64,
    seconds: Annotated[
        float, typer.Option("--seconds", "-t", min=0.01, max=86400, help="Measured time.")
    ] = 1,
    warmup: Annotated[
        float, typer.Option(metavar="S", min=0, max=86400, help="Time before that.")
    ] = 0.2,
    interval: Annotated[
        float, typer.Option(metavar="S", min=0, max=60, help="Between two messages; 0: at once.")
    ] = 0,
    timeout: Annotated[
        float, typer.Option(metavar="S", min=0.001, max=60, help="For a reply.")
    ] = 1,
    repeat: Annotated[
        int, typer.Option("--repeat", "-n", min=1, max=1000, help="Rounds; targets alternate.")
    ] = 3,
    received: Annotated[
        str, typer.Option(metavar="WHOSE", help="Stamps: auto, hardware or software.")
    ] = "auto",
    transmitted: Annotated[
        str, typer.Option(metavar="WHOSE", help="Stamps: auto, hardware, completion, software.")
    ] = "auto",
) -> None:
    """One message at a time to an echo server and back, stage by stage.

    The stages' ends are timestamps of the NIC where it has a clock and the driver tells, else of
    the kernel or of the dataplane; the result says whose, and why not better ones. completion: over
    ixnet in copy mode, when the kernel let go of the frame. What is asked for by name is an error
    if it is not there.
    """
    check_stamps(received, transmitted)
    words = ["--bytes", str(bytes_), "--seconds", str(seconds), "--warmup", str(warmup)]
    words += ["--interval", str(interval), "--timeout", str(timeout)]
    words += ["--received", received, "--transmitted", transmitted]
    check_output(output)
    targets = [Target.parse(text) for text in target]
    with shown_progress() as progress:
        outcome = run_latency(
            make_client(client).towards(targets[0].host), targets, parse_protocols(protocol),
            words, repeat, seconds + warmup + timeout + START_S, progress,
        )  # fmt: skip
    options = {"protocol": protocol, "bytes": bytes_, "seconds": seconds, "interval": interval}
    give("latency", output, options, outcome)


@app.command("report")
def report(
    files: Annotated[list[Path], typer.Argument(metavar="FILES...", help="Results in JSON.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The page.")
    ] = Path("report.html"),
    png: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="The plots as PNG files, too (needs ixnet[report])."),
    ] = None,
) -> None:
    """One self-contained HTML page of several results, side by side."""
    from ixnet.bench.report import write_pngs, write_report

    if str(output) == "-":
        raise BenchError("the page goes to a file", "name one: -o report.html")
    results = [(path.name, read_result(path)) for path in files]
    write_report(output, results)
    print(f"{output}: {len(results)} result{'s' if len(results) > 1 else ''}")
    if png is not None:
        for path in write_pngs(png, results):
            print(path)
