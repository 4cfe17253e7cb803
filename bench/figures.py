"""The figures that ixnet is held to: each beside its goal, peers alternating in one run.

    python -m bench.figures [--seconds T] [--rounds N] [--quick] [--only NAME,...] [--json FILE]
                            [--readme FILE] [--html FILE]

On a veth pair with one queue, the server on one core and the client on the other. The client is
`ixnet bench` over ixnet, so that it is not what is measured; the stream is from one kernel to the
other, or from one dataplane to the other. The link is set for each server as it serves best: GRO
at both ends is on for ixnet, which then sends without skbs, and off for the kernel; for one request
at a time it is off for both. memcached is Debian's, -t 1, where it is installed.
connections needs some 3 GiB of memory. --quick: 10 minutes at most, without connections.
--readme replaces the figures between its marks.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.common import CLIENT_CORE, SERVER_CORE, BenchError, report_console
from bench.compare import PLACEMENT
from bench.limit.run import (
    FRAME_BYTES,
    FULL_FRAME_BYTES,
    HEADER_BYTES,
    pingpong,
    reflector,
    same_as_ixnet,
)
from bench.manyconns import many_addresses
from bench.servers import (
    DebianMemcached,
    KernelServer,
    RunningServer,
    Server,
    ixnet_memcached,
    native_echo,
)
from ixnet.bench.client import Client
from ixnet.bench.drive import Benchmark, Target, checked, open_session
from ixnet.bench.machine import machine
from ixnet.bench.memory import held_mib
from ixnet.bench.result import make_result, write_result
from ixnet.bench.search import Objective, highest_load, median_run
from ixnet.bench.session import RunPlan, Session
from ixnet.bench.tables import us
from ixnet.control.lab import Lab, LabConfig, LabError, lab_down

PORT = 7000
MEMCACHED_PORT = 11211
# Of the median slice of 20 ms: this machine may be virtual, and its pauses are not the server's.
OBJECTIVE = Objective("p99", 500.0, by_slices=True)
# Of a connection's life with a reset at its end: SYN, SYN-ACK, request, reply, RST.
CONNECTION_FRAMES = 5
MARKS = ("<!-- figures:begin -->", "<!-- figures:end -->")
LADDER_MARKS = ("<!-- ladder:begin -->", "<!-- ladder:end -->")
STEPS = (1_000, 10_000, 50_000, 100_000, 250_000, 500_000, 1_000_000)
HELD, HELD_MOST = 250_000, STEPS[-1]


@dataclass
class Figure:
    """One line of the table. ours, reference: medians. goal: of ours / reference, None: there is
    none; at_most: it may not be more, else not less. entries: of both sides, for the report."""

    name: str
    title: str
    unit: str
    goal: float | None
    ours: float
    reference: float
    versus: str
    at_most: bool = False
    detail: str = ""
    entries: list[dict[str, Any]] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """Ours to the reference."""
        return self.ours / self.reference if self.reference else 0.0

    @property
    def met(self) -> bool:
        """Whether the goal is."""
        if self.goal is None:
            return True
        return self.ratio <= self.goal if self.at_most else self.ratio >= self.goal


@dataclass(frozen=True)
class Setting:
    """What every measurement needs."""

    lab: Lab
    seconds: float
    rounds: int
    say: Callable[[str], None]

    @property
    def host(self) -> str:
        """The server's address."""
        return self.lab.facts.server.ip

    def client(self, transport: str = "ixnet", **more: Any) -> Client:
        """On the client's end, on its core."""
        cfg = self.lab.cfg
        how: dict[str, Any] = {"netns": cfg.client_netns, "cores": (CLIENT_CORE,), **more}
        return Client(transport, interface=cfg.client_if, **how)

    def plan(self, warmup_s: float = 1.0, **more: Any) -> RunPlan:
        """A measurement of the length, after what cores of a virtual machine take to be fast."""
        return RunPlan(self.seconds, warmup_s=warmup_s, **more)


Measure = Callable[[Setting, Target], dict[str, Any]]


def alternate(
    setting: Setting,
    name: str,
    port: int,
    servers: Sequence[Server],
    measure: Measure,
    also: Callable[[], None] = lambda: None,
    gro: bool = True,
) -> list[dict[str, Any]]:
    """Starts and measures the servers in turns; an entry a server, with its runs. also: what else
    has its turn in each round. gro: at both ends of the link while ixnet serves, and for `also`."""
    entries: list[dict[str, Any]] = [
        {"label": s.label, "target": f"{setting.host}:{port}", "runs": [], "slo": [], "sweep": []}
        for s in servers
    ]
    order = list(zip(servers, entries, strict=True))
    for number in range(setting.rounds):
        turn = number % len(order)
        for server, entry in [*order[turn:], *order[:turn]]:
            setting.say(f"{name}: round {number + 1} of {setting.rounds}: {server.label}")
            setting.lab.set_gro(gro and server.on_dataplane)
            with server.start(setting.lab.cfg, port, PLACEMENT) as running:
                entry["server"] = running.ready_line
                found = measure(setting, Target(server.label, setting.host, port))
                entry["slo" if "rate" in found else "runs"].append(found)
        setting.lab.set_gro(gro)
        also()
    for entry in entries:
        if entry["runs"]:
            entry["median"] = median_run(entry["runs"])
        if entry["slo"]:
            rates = sorted(found["rate"] for found in entry["slo"])
            entry["objective"] = str(OBJECTIVE)
            entry["highest_rate"] = {
                "median": statistics.median(rates), "least": rates[0], "most": rates[-1],
            }  # fmt: skip
    return entries


def session_of(setting: Setting, benchmark: Benchmark, target: Target, **client: Any) -> Session:
    """A session from the client's end, over ixnet unless said otherwise."""
    return open_session(setting.client(**client), benchmark, target, lambda _: None)


def run_once(setting: Setting, benchmark: Benchmark, target: Target, **client: Any) -> Any:
    """Opens all connections, runs once."""
    with session_of(setting, benchmark, target, **client) as session:
        session.open(benchmark.connections)
        benchmark.prepare(session)
        return checked(session.run(benchmark.plan))


# ---- the figures -------------------------------------------------------------------------------


def memcached_servers() -> list[Server]:
    """Debian's and ours. Errors: BenchError without Debian's."""
    if shutil.which("memcached") is None:
        raise BenchError("memcached is not installed", "apt-get install memcached")
    return [DebianMemcached(), ixnet_memcached()]


def memcached_benchmark(setting: Setting, connections: int, depth: int) -> Benchmark:
    """ETC."""
    return Benchmark(
        "memcached", ("--workload", "etc", "--items", "100000"), connections, depth,
        plan=setting.plan(), prepare=Session.load,
    )  # fmt: skip


def memcached_slo(setting: Setting) -> list[Figure]:
    """The highest load that holds the objective."""

    def measure(setting: Setting, target: Target) -> dict[str, Any]:
        benchmark = memcached_benchmark(setting, 32, 8)
        with session_of(setting, benchmark, target) as session:
            session.open(benchmark.connections)
            session.load()
            peak = checked(session.run(setting.plan()))["per_second"]
            found = highest_load(
                lambda rate: session.run(setting.plan(0.3, rate=rate)), OBJECTIVE, peak / 2
            )
        return {"rate": found.rate, "run": found.run, "runs": found.runs}

    entries = alternate(setting, "memcached", MEMCACHED_PORT, memcached_servers(), measure)
    debian, ours = (entry["highest_rate"]["median"] for entry in entries)
    title = "memcached, ETC: highest load at a p99 of 500 us (median slice of 20 ms)"
    return [Figure("memcached", title, "/s", 3.6, ours, debian, "memcached -t 1", entries=entries)]


def memcached_unloaded(setting: Setting) -> list[Figure]:
    """One connection, one request at a time."""

    def measure(setting: Setting, target: Target) -> dict[str, Any]:
        made: dict[str, Any] = run_once(setting, memcached_benchmark(setting, 1, 1), target)
        return made

    servers = memcached_servers()
    entries = alternate(setting, "unloaded", MEMCACHED_PORT, servers, measure, gro=False)
    made = []
    for percentile in ("p50", "p99"):
        debian, ours = (entry["median"]["us"][percentile]["median"] for entry in entries)
        made.append(
            Figure(
                "unloaded",
                f"memcached, unloaded: {percentile}",
                "us",
                0.25,
                ours,
                debian,
                "memcached -t 1",
                True,
                entries=entries if percentile == "p50" else [],
            )
        )
    return made


class BareFrames:
    """What the link can do: bare frames that come back a second, 128 on their way. Called once a
    round."""

    def __init__(self, setting: Setting, name: str, frame_bytes: int) -> None:
        self._setting, self._name, self._bytes = setting, name, frame_bytes
        self._rates: list[float] = []

    def __call__(self) -> None:
        setting, how = self._setting, same_as_ixnet(self._setting.lab)
        setting.say(f"{self._name}: round {len(self._rates) + 1} of {setting.rounds}: bare frames")
        with reflector(setting.lab, SERVER_CORE, **how):
            sent = {"bytes": self._bytes, **how}
            run = pingpong(setting.lab, CLIENT_CORE, 128, setting.seconds, **sent)
            self._rates.append(run["per_second"])

    @property
    def per_second(self) -> float:
        """Of the median round."""
        return statistics.median(self._rates)


def echo(setting: Setting) -> list[Figure]:
    """128 connections: against the kernel's server, and against bare frames."""
    benchmark = Benchmark("echo", ("--bytes", "64"), 128, plan=setting.plan())
    servers: list[Server] = [KernelServer("kernel"), native_echo(True)]

    def measure(setting: Setting, target: Target) -> dict[str, Any]:
        made: dict[str, Any] = run_once(setting, benchmark, target)
        return made

    bare = BareFrames(setting, "echo", FRAME_BYTES)
    entries = alternate(setting, "echo", PORT, servers, measure, bare)
    kernel, ours = (entry["median"]["per_second"]["median"] for entry in entries)
    limit = bare.per_second
    return [
        Figure("echo", "echo, 128 connections", "/s", 3.0, ours, kernel, "kernel C epoll",
               entries=entries),
        Figure("echo", "echo, share of the bare AF_XDP reflector", "/s", 0.7, ours, limit,
               "bench/limit"),
    ]  # fmt: skip


def connrate(setting: Setting) -> list[Figure]:
    """Opened, served with one message, closed; 128 at a time."""
    benchmark = Benchmark("connrate", ("--bytes", "64", "--rst"), 128, plan=setting.plan())
    servers: list[Server] = [KernelServer("kernel"), native_echo(True)]

    def measure(setting: Setting, target: Target) -> dict[str, Any]:
        made: dict[str, Any] = run_once(setting, benchmark, target)
        return made

    bare = BareFrames(setting, "connrate", FRAME_BYTES)
    entries = alternate(setting, "connrate", PORT, servers, measure, bare)
    kernel, ours = (entry["median"]["per_second"]["median"] for entry in entries)
    limit = bare.per_second * 2 / CONNECTION_FRAMES
    title = "connections opened, served, closed"
    return [
        Figure("connrate", title, "/s", 4.0, ours, kernel, "kernel C epoll", entries=entries),
        Figure("connrate", f"{title}: share of as many bare frames", "/s", None, ours, limit,
               "bench/limit"),
    ]  # fmt: skip


def stream(setting: Setting) -> list[Figure]:
    """Large messages, echoed; dataplane to dataplane against kernel to kernel."""
    benchmark = Benchmark("echo", ("--bytes", str(1 << 20)), 1, 4, plan=setting.plan())
    servers: list[Server] = [KernelServer("kernel"), native_echo(True)]

    def measure(setting: Setting, target: Target) -> dict[str, Any]:
        transport = "kernel" if target.label == "kernel" else "ixnet"
        made: dict[str, Any] = run_once(setting, benchmark, target, transport=transport)
        return made

    bare = BareFrames(setting, "stream", FULL_FRAME_BYTES)
    entries = alternate(setting, "stream", PORT, servers, measure, bare)
    kernel, ours = (entry["median"]["bytes_per_second"]["median"] / 1e6 for entry in entries)
    title = "stream, one connection, 1 MiB messages, each way"
    versus = "kernel to kernel, offloads off"
    limit = bare.per_second * (FULL_FRAME_BYTES - HEADER_BYTES) / 1e6
    return [
        Figure("stream", title, "MB/s", 1.0, ours, kernel, versus, entries=entries),
        Figure("stream", "stream, share of bare full frames", "MB/s", None, ours, limit,
               "bench/limit"),
    ]  # fmt: skip


def connections(setting: Setting) -> list[Figure]:
    """Held connections rise; each has its turn."""
    server = native_echo(True, "--max-flows", str(HELD_MOST + HELD_MOST // 16))
    benchmark = Benchmark(
        "echo", ("--bytes", "64", "--timeout", "30"), HELD_MOST, plan=setting.plan(window=256)
    )
    steps: list[dict[str, Any]] = []
    setting.lab.set_gro(True)
    with (
        many_addresses(setting.lab, HELD_MOST) as sources,
        server.start(setting.lab.cfg, PORT, PLACEMENT) as running,
    ):
        target = Target(server.label, setting.host, PORT)
        client = {"sources": sources, "ports": "1100-65535"}
        with session_of(setting, benchmark, target, **client) as session:
            for count in STEPS:
                setting.say(f"connections: {count:,} held")
                session.open(count, patience_s=600)
                runs = [checked(session.run(benchmark.plan)) for _ in range(setting.rounds)]
                runs.sort(key=lambda run: float(run["per_second"]))
                memory = _memory(running, session)
                steps.append(
                    {"connections": count, "run": runs[len(runs) // 2], "memory_mib": memory}
                )
    entry = {"label": server.label, "target": f"{setting.host}:{PORT}", "steps": steps}
    peak = max(step["run"]["per_second"] for step in steps)
    at = next(step for step in steps if step["connections"] == HELD)
    mib = steps[-1]["memory_mib"]["server"]
    return [
        Figure("connections", f"{HELD:,} connections held: requests/s", "/s", 0.6,
               at["run"]["per_second"], peak, "the peak", entries=[entry]),
        Figure("connections", f"{HELD_MOST:,} connections held: server's memory", "GiB", 1.0,
               mib / 1024, 4.0, "4 GiB", True),
    ]  # fmt: skip


def _memory(running: RunningServer, session: Session) -> dict[str, float | None]:
    return {"server": held_mib([running.pid]), "client": held_mib(session.pids), "machine": None}


FIGURES: dict[str, Callable[[Setting], list[Figure]]] = {
    "memcached": memcached_slo,
    "unloaded": memcached_unloaded,
    "echo": echo,
    "connrate": connrate,
    "stream": stream,
    "connections": connections,
}
KINDS = {"unloaded": "memcached"}


# ---- what is shown -----------------------------------------------------------------------------


def number(value: float, unit: str) -> str:
    """A figure with its unit."""
    return f"{value:,.0f}{unit}" if unit == "/s" else f"{value:,.2f} {unit}"


def _goal(figure: Figure) -> str:
    if figure.goal is None:
        return ""
    return f"{'at most ' if figure.at_most else ''}{figure.goal:g}x"


def rows(figures: Sequence[Figure]) -> list[list[str]]:
    """Cells: title, ours, reference, against what, ratio, goal, whether it is met."""
    return [
        [f.title, number(f.ours, f.unit), number(f.reference, f.unit), f.versus,
         f"{f.ratio:.2f}x", _goal(f), "" if f.goal is None else "yes" if f.met else "no"]
        for f in figures
    ]  # fmt: skip


TITLES = ("", "ixnet", "reference", "", "ratio", "goal", "met")


def table(figures: Sequence[Figure], rounds: int, mode: str) -> Table:
    """For people."""
    made = Table(title="The figures", caption=_where(rounds, mode))
    for i, title in enumerate(TITLES):
        made.add_column(title, justify="left" if i in (0, 3) else "right")
    for row, figure in zip(rows(figures), figures, strict=True):
        made.add_row(*row[:-1], f"[{'green' if figure.met else 'red'}]{row[-1]}[/]")
    return made


def _where(rounds: int, mode: str) -> str:
    on = machine()
    virtual = " (virtual machine)" if on.hypervisor else ""
    return (
        f"{on.cpu}, {on.cores} cores{virtual}, Linux {on.kernel}, {on.time[:10]}; veth, "
        f"{mode}, placement inline; server on core {SERVER_CORE}, client on core {CLIENT_CORE}; "
        f"medians of {rounds} alternating rounds"
    )


def markdown(figures: Sequence[Figure], rounds: int, mode: str) -> str:
    """For the README."""
    lines = [f"`make bench`, {_where(rounds, mode)}. The client is `ixnet bench` over ixnet.", ""]
    lines += ["| | ixnet | reference | | ratio | goal |", "| --- | --- | --- | --- | --- | --- |"]
    for row in rows(figures):
        lines.append("| " + " | ".join(row[:6]) + " |")
    return "\n".join(lines)


def ladder(figures: Sequence[Figure], rounds: int, mode: str) -> str:
    """For the README: throughput and memory at each step of the connections held."""
    (steps,) = (entry["steps"] for figure in figures for entry in figure.entries)
    peak = max(step["run"]["per_second"] for step in steps)
    lines = [
        f"Connections held, each sending 64 bytes in turn, 256 under way; {_where(rounds, mode)}.",
        "",
        "| connections | requests/s | of the peak | p50 | p99 | server | client |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for step in steps:
        run, memory = step["run"], step["memory_mib"]
        took = [us(run["latency"]["us"][name]) for name in ("p50", "p99")]
        held = [f"{memory[side]:,.0f} MiB" for side in ("server", "client")]
        share = f"{run['per_second'] / peak:.0%}"
        cells = [f"{step['connections']:,}", f"{run['per_second']:,.0f}", share, *took, *held]
        lines.append("| " + " | ".join(cells) + " |")
    at, most = figures
    lines += [
        "",
        f"Goals: {HELD:,} connections at {at.goal:.0%} of the peak or more: {at.ratio:.0%}. "
        f"{HELD_MOST:,} in {most.reference:g} GiB or less: {most.ours:.2f} GiB.",
    ]
    return "\n".join(lines)


def write_readme(path: Path, figures: Sequence[Figure], rounds: int, mode: str) -> None:
    """Replaces those of its two blocks that were measured. Errors: BenchError without marks."""
    held = [figure for figure in figures if figure.name == "connections"]
    others = [figure for figure in figures if figure.name != "connections"]
    if others:
        put_into(path, markdown(others, rounds, mode))
    if held:
        put_into(path, ladder(held, rounds, mode), LADDER_MARKS)


def parts(path: Path, marks: tuple[str, str] = MARKS) -> tuple[str, int, int]:
    """A file's text, and where the marks are in it. Errors: BenchError without them."""
    try:
        whole = path.read_text()
    except OSError as error:
        raise BenchError(f"{path}: {error.strerror}") from error
    begin, end = whole.find(marks[0]), whole.find(marks[1])
    if begin < 0 or end < begin:
        raise BenchError(f"{path} has no marks {marks[0]} and {marks[1]}")
    return whole, begin, end


def put_into(path: Path, text: str, marks: tuple[str, str] = MARKS) -> None:
    """Replaces what lies between the marks. Errors: BenchError without them."""
    whole, begin, end = parts(path, marks)
    path.write_text(f"{whole[:begin]}{marks[0]}\n{text}\n{whole[end:]}")


def results_of(figures: Sequence[Figure], client: dict[str, Any]) -> list[tuple[str, Any]]:
    """As results of `ixnet bench`, for its report."""
    made = []
    for figure in figures:
        if figure.entries:
            kind = KINDS.get(figure.name, figure.name)
            notes = {"figure": figure.title}
            result = make_result(kind, client, {}, figure.entries) | {"notes": notes}
            made.append((f"{figure.name}.json", result))
    return made


def measure_all(
    names: Sequence[str], seconds: float, rounds: int, console: Console
) -> tuple[list[Figure], dict[str, Any], list[str]]:
    """The figures named, the client's facts, and what went wrong: a figure that can't be measured
    is left out. Errors: LabError."""
    config = LabConfig.named("figures", queues=1)
    lab_down(config, kill=True)  # what a killed run may have left
    figures: list[Figure] = []
    problems: list[str] = []
    with Lab(config) as lab, console.status("measuring") as status:
        setting = Setting(lab, seconds, rounds, lambda text: status.update(text))
        lab.set_gro(True)
        best = "generic copy" if same_as_ixnet(lab)["generic"] else "native copy"
        mode = f"{best} with GRO at both ends (off for the kernel and one request at a time)"
        client = setting.client().describe() | {"mode": mode}
        for name in names:
            try:
                figures += FIGURES[name](setting)
            except BenchError as error:
                problems.append(f"{name}: {error}")
    return figures, client, problems


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="bench.figures", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=1.0, help="measured time a point")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="without connections")
    parser.add_argument("--only", metavar="NAME,...", help=", ".join(FIGURES))
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--readme", type=Path, metavar="FILE")
    parser.add_argument("--html", type=Path, metavar="FILE", help="the report of ixnet bench")
    args = parser.parse_args(argv)
    names = args.only.split(",") if args.only else list(FIGURES)
    if unknown := set(names) - set(FIGURES):
        parser.error(f"no figure {', '.join(sorted(unknown))}; there are {', '.join(FIGURES)}")
    if args.quick and not args.only:
        names.remove("connections")
    console = report_console()
    try:
        for marks in (MARKS, LADDER_MARKS) if args.readme else ():
            parts(args.readme, marks)  # before what takes minutes
        figures, client, problems = measure_all(names, args.seconds, args.rounds, console)
        if args.readme and figures:
            write_readme(args.readme, figures, args.rounds, client["mode"])
    except (BenchError, LabError) as error:
        print(f"bench.figures: {error}", file=sys.stderr)
        return 1
    console.print(table(figures, args.rounds, client["mode"]))
    for problem in problems:
        print(f"bench.figures: {problem}", file=sys.stderr)
    results = results_of(figures, client)
    if args.json:
        lines = [asdict(f) | {"ratio": f.ratio, "met": f.met} for f in figures]
        record = {"machine": machine().as_dict(), "rounds": args.rounds, "figures": lines}
        args.json.write_text(json.dumps(record, indent=1) + "\n")
        for name, result in results:
            write_result(args.json.with_name(f"{args.json.stem}-{name}"), result)
    if args.html:
        from ixnet.bench.report import write_report

        write_report(args.html, results)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
