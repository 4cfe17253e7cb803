"""The `ixnet` command: doctor, lab, run, memcached, stat, trace, bench.

Every error is one message with its cure and exit status 2; IXNET_DEBUG=1 shows where it came from.
What a command needs is imported when it runs, so that `ixnet --help` is quick.
"""

from __future__ import annotations

import io
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TextIO

import typer

from ixnet import __version__
from ixnet.cli_memcached import memcached
from ixnet.cli_trace import app as trace_app

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer
    from rich.console import Console

    from ixnet.control.doctor import Finding
    from ixnet.control.instance import Instance
    from ixnet.control.lab import LabConfig, LabFacts
    from ixnet.control.nic import IpInterface
    from ixnet.control.privileges import Privileges
    from ixnet.control.statview import Snapshot

EXIT_ERROR = 2

app = typer.Typer(
    help="A TCP/IP dataplane in user space on AF_XDP, in the manner of IX (OSDI '14).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
lab_app = typer.Typer(
    help="Two network namespaces joined by a multi-queue veth pair, to try things on.",
    no_args_is_help=True,
)
app.add_typer(lab_app, name="lab")
app.add_typer(trace_app, name="trace")
app.command()(memcached)


def main() -> None:
    """The entry point."""
    _fill_standard_streams()
    sys.stdout = _Output.stream(sys.stdout)
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except OSError as error:
        if error is not _Output.error:
            raise
        sys.exit(_unwritten(error))


class _Output(io.FileIO):
    """Standard output that remembers why it could not be written."""

    error: ClassVar[OSError | None] = None

    @classmethod
    def stream(cls, old: TextIO) -> TextIO:
        """In the place of `old`."""
        old.flush()
        raw = cls(old.fileno(), "w", closefd=False)
        through = isinstance(old, io.TextIOWrapper) and old.write_through  # python -u
        return io.TextIOWrapper(
            io.BufferedWriter(raw), old.encoding, old.errors,
            line_buffering=old.isatty(), write_through=through,
        )  # fmt: skip

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            _Output.error = error
            raise


def _unwritten(error: OSError) -> int:
    """Says so, and returns the exit status."""
    # The interpreter would try, and complain, again at its end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):  # its reader went away, and knows
        return 1
    _complain(f"ixnet: can't write standard output: {error.strerror}")
    return EXIT_ERROR


def _fill_standard_streams() -> None:
    """Where 0, 1 or 2 is closed, nothing of ours is to get its number: applications print there."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            if os.open(os.devnull, os.O_RDWR) == fd:  # else something has it already
                os.set_inheritable(fd, True)
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", closefd=False)


# ---- errors ------------------------------------------------------------------------------------


def _say(line: str) -> None:
    print(line, flush=True)


def _complain(line: str) -> None:
    with suppress(OSError):  # nobody is left to tell
        print(line, file=sys.stderr, flush=True)


def _fail(message: str, cure: str = "") -> typer.Exit:
    _complain(f"ixnet: {message}")
    if cure:
        _complain(f"  cure: {cure}")
    return typer.Exit(EXIT_ERROR)


@contextmanager
def errors() -> Iterator[None]:
    """Turns what can go wrong into one message."""
    from ixnet.control.errors import IxError

    try:
        yield
    except IxError as error:
        _debug_trace()
        raise _fail(error.message, error.cure) from error
    except typer.Exit:
        raise
    except KeyboardInterrupt as error:
        raise typer.Exit(130) from error
    except Exception as error:
        if isinstance(error, OSError) and error is _Output.error:
            raise typer.Exit(_unwritten(error)) from error
        _debug_trace()
        if _is_lab_error(error):
            raise _fail(str(error)) from error
        if isinstance(error, PermissionError):
            raise _fail(str(error), "run as root") from error
        raise _fail(
            f"unexpected {type(error).__name__}: {error}", "set IXNET_DEBUG=1 to see where"
        ) from error


def _is_lab_error(error: Exception) -> bool:
    namespaces = sys.modules.get("ixnet.control.namespaces")
    return namespaces is not None and isinstance(error, namespaces.NetnsError)


def _debug_trace() -> None:
    if os.environ.get("IXNET_DEBUG"):
        traceback.print_exc()


def _print_json(data: object) -> None:
    print(json.dumps(data, indent=2), flush=True)


# ---- version -----------------------------------------------------------------------------------


def _show_version(wanted: bool) -> None:
    if wanted:
        _say(f"ixnet {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Say the version."),
    ] = False,
) -> None:
    pass


# ---- doctor ------------------------------------------------------------------------------------

_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red", "info": "blue"}


@app.command()
def doctor(
    interface: Annotated[
        str | None, typer.Option("--interface", "-i", help="Look at this interface too.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Say what this machine and an interface can do, and the cure for what they can't.

    Exit status 1 if something is missing that ixnet needs.
    """
    with errors():
        from ixnet.control.doctor import FAIL, examine, worst

        findings = examine(interface)
        if as_json:
            _print_json([finding.as_dict() for finding in findings])
        else:
            _print_findings(findings)
        if worst(findings) == FAIL:
            raise typer.Exit(1)


def _print_findings(findings: list[Finding]) -> None:
    from rich.table import Table
    from rich.text import Text

    from ixnet.terminal import make_console

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("area", "what", "", "found", "cure"):
        table.add_column(title, overflow="fold")
    for f in findings:
        level = Text(f.level, style=_STYLES[f.level])
        table.add_row(Text(f.area), Text(f.what), level, Text(f.value), Text(f.cure))
    make_console().print(table)


# ---- lab ---------------------------------------------------------------------------------------

LabTag = Annotated[str | None, typer.Option("--name", help="A lab of this name, beside any other.")]
LabQueues = Annotated[int, typer.Option("--queues", help="Queues at each end, 1 to 64.")]
LabMtu = Annotated[int, typer.Option("--mtu", help="MTU of the link, bytes.")]
LabKill = Annotated[bool, typer.Option("--kill", help="End what runs in its namespaces.")]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]


def _lab_config(name: str | None, **changes: Any) -> LabConfig:
    from ixnet.control.lab import LabConfig

    return LabConfig(**changes) if name is None else LabConfig.named(name, **changes)


@lab_app.command("up")
def lab_up(
    queues: LabQueues = 2,
    mtu: LabMtu = 1500,
    name: LabTag = None,
    kill: LabKill = False,
    as_json: AsJson = False,
) -> None:
    """Bring the lab up, or find that it is."""
    with errors():
        from ixnet.control.lab import lab_up as bring_up

        facts = bring_up(_lab_config(name, queues=queues, mtu=mtu), kill)
        if as_json:
            _print_json(facts.as_dict())
            return
        _say("lab is up" if facts.created else "lab was up already")
        _say_lab(facts)


@lab_app.command("down")
def lab_down(name: LabTag = None, kill: LabKill = False) -> None:
    """Take the lab down."""
    with errors():
        from ixnet.control.lab import lab_down as take_down

        was_there = take_down(_lab_config(name), kill)
        _say("lab is down" if was_there else "there was no lab")


@lab_app.command("status")
def lab_status(
    queues: LabQueues = 2, mtu: LabMtu = 1500, name: LabTag = None, as_json: AsJson = False
) -> None:
    """Say whether the lab is up. Exit status 1 if it is not."""
    with errors():
        from ixnet.control.lab import lab_status as look

        status = look(_lab_config(name, queues=queues, mtu=mtu))
        if as_json:
            facts = status.facts.as_dict() if status.facts is not None else None
            _print_json({"state": status.state, "problems": status.problems, "facts": facts})
        else:
            _say(f"lab is {status.state}")
            for problem in status.problems:
                _say(f"  {problem}")
            if status.facts is not None:
                _say_lab(status.facts)
        if status.state != "up":
            raise typer.Exit(1)


def _say_lab(facts: LabFacts) -> None:
    for end in (facts.server, facts.client):
        addresses = ", ".join(end.addresses)
        _say(f"  {end.netns:<16}{end.interface}  {addresses}")
        _say(f"  {'':<16}{end.rx_queues} queues, MTU {end.mtu}, {end.mac}")
    _say(f"  to run something in it: nsenter --net=/run/netns/{facts.server.netns} COMMAND")


# ---- run ---------------------------------------------------------------------------------------


@app.command(context_settings={"allow_interspersed_args": False})
def run(
    interface: Annotated[
        str, typer.Option("--interface", "-i", help="The interface, in this network namespace.")
    ],
    program: Annotated[
        Path, typer.Argument(metavar="APP", help="A Python script, or a .so with ix_app_main().")
    ],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[-- ARGS]...", help="The application's own.")
    ] = None,
    queues: Annotated[str, typer.Option(metavar="N|all", help="How many NIC queues.")] = "all",
    workers: Annotated[
        int | None,
        typer.Option(
            metavar="W",
            help="How many workers run the queues, each its share in turn (a worker a queue).",
        ),
    ] = None,
    cores: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="Cores of the workers, in turn, like 1 or 2,4-7."),
    ] = None,
    mode: Annotated[
        str, typer.Option(metavar="MODE", help="AF_XDP mode: auto, zerocopy, copy, generic.")
    ] = "auto",
    busy_poll: Annotated[
        bool,
        typer.Option("--busy-poll/--block", help="Never sleep, or sleep when there is no work."),
    ] = False,
    spin_us: Annotated[
        int | None,
        typer.Option(metavar="US", help="Idle time before sleeping (50; 0 on a shared core)."),
    ] = None,
    batch: Annotated[
        int, typer.Option(metavar="B", help="Most frames a cycle takes, 1 to 256.")
    ] = 64,
    frames: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="UMEM frames a queue (32,768, or what a sixteenth of the memory allows); half as "
            "many more to send from.",
        ),
    ] = None,
    huge_pages: Annotated[
        str, typer.Option(metavar="WHICH", help="Huge pages: auto, yes, no.")
    ] = "auto",
    own_address: Annotated[
        list[str] | None,
        typer.Option(
            metavar="IP/PREFIX",
            help="An address that only the dataplane has; one of IPv4 and one of IPv6, if wanted.",
        ),
    ] = None,
    placement: Annotated[
        str,
        typer.Option(
            metavar="WHERE",
            help="Where the dataplane runs: inline, in the application's process; or dune, in "
            "ring 0 of a KVM guest around it, where the application can't touch it.",
        ),
    ] = "inline",
    kick: Annotated[
        str | None,
        typer.Option(
            metavar="HOW",
            help="With dune, who makes the system calls that wake the NIC's driver: exit, the "
            "guest (default); thread, a thread on another core, so that the guest never exits.",
        ),
    ] = None,
    user: Annotated[
        str | None,
        typer.Option(
            metavar="USER[:GROUP]",
            help="Who the workers become, so that the application can do no more than this user.",
        ),
    ] = None,
    keep_privileges: Annotated[
        bool,
        typer.Option(
            "--keep-privileges",
            help="Workers keep the capabilities that ixnet run has; otherwise they have none.",
        ),
    ] = False,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="The instance's name, for stat.")
    ] = None,
    max_flows: Annotated[
        int, typer.Option(metavar="N", help="Connections a queue can hold.")
    ] = 65_536,
    ports: Annotated[
        str,
        typer.Option(metavar="LO-HI", help="Local ports of outgoing connections."),
    ] = "61000-65535",
    restart_workers: Annotated[
        bool,
        typer.Option(
            "--restart-workers/--no-restart-workers", help="Start a worker that died again."
        ),
    ] = True,
    congestion: Annotated[
        str, typer.Option(metavar="NAME", help="Congestion control: cubic, newreno, dctcp.")
    ] = "cubic",
    ecn: Annotated[
        str,
        typer.Option(metavar="WHEN", help="ECN: accept it, request it with CONNECT too, off."),
    ] = "accept",
    pacing: Annotated[
        bool,
        typer.Option(
            "--pacing/--no-pacing", help="Spread what is sent over the round trip, not in bursts."
        ),
    ] = False,
    syn_cookies: Annotated[
        str,
        typer.Option(metavar="WHEN", help="SYN cookies: when the backlog is full, never, always."),
    ] = "full",
    mss_max: Annotated[
        int | None,
        typer.Option(metavar="BYTES", help="No segment is larger, in neither direction."),
    ] = None,
    pcap: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Record every frame that a shard receives and sends, for tcpdump or Wireshark to "
            "read; one file a shard, several are numbered (t.pcap: t.0.pcap). New files are "
            "private; a regular file is overwritten, anything else refused. Traffic waits for "
            "the disk; if it is full, recording ends and traffic goes on.",
        ),
    ] = None,
    timestamps: Annotated[
        bool,
        typer.Option(
            "--timestamps", help="Write when it arrived before each frame (ixnet bench latency)."
        ),
    ] = False,
    snaplen: Annotated[
        int | None,
        typer.Option(metavar="BYTES", help="Record only so much of each frame (65535: all)."),
    ] = None,
) -> None:
    """Run an application on an interface's queues.

    A line that begins with "ready" on standard output says that all workers serve. SIGINT and
    SIGTERM end it in order; a second one at once.
    """
    with errors():
        from ixnet.control.config import RunConfig
        from ixnet.control.cores import parse_cores
        from ixnet.control.server import run_instance
        from ixnet.runtime import Program

        config = RunConfig(
            interface=interface,
            program=Program(program, _own_arguments(arguments or [])),
            queues=_parse_queues(queues),
            workers=workers,
            cores=parse_cores(cores) if cores is not None else None,
            mode=mode,
            busy_poll=busy_poll,
            spin_us=spin_us,
            batch=batch,
            frames=frames,
            huge_pages=huge_pages,
            own_addresses=tuple(map(_parse_address, own_address or [])),
            placement=placement,
            kick=kick,
            name=name,
            max_flows=max_flows,
            ports=_parse_ports(ports),
            restart_workers=restart_workers,
            congestion=congestion,
            ecn=ecn,
            pacing=pacing,
            syn_cookies=syn_cookies,
            mss_max=mss_max,
            privileges=_privileges(user, keep_privileges),
            pcap=pcap,
            snaplen=snaplen,
            timestamps=timestamps,
        )
        status = run_instance(config, _say, _complain)
    raise typer.Exit(status)


def _own_arguments(words: list[str]) -> tuple[str, ...]:
    """The application's arguments: APP -- ARGS and APP ARGS are the same."""
    return tuple(words[1:] if words[:1] == ["--"] else words)


def _privileges(user: str | None, keep: bool) -> Privileges:
    from ixnet.control.config import ConfigError
    from ixnet.control.privileges import Privileges, User

    if user is None:
        return Privileges(keep=keep)
    if keep:
        raise ConfigError("--user can't keep privileges", "leave --keep-privileges out")
    return Privileges(User.find(user))


def _parse_queues(text: str) -> int | None:
    from ixnet.control.config import ConfigError

    if text == "all":
        return None
    if not text.isdecimal():
        raise ConfigError(f"--queues {text} is no number", "use a number, or all")
    return int(text)


def _parse_ports(text: str) -> tuple[int, int]:
    from ixnet.control.config import ConfigError

    low, dash, high = text.partition("-")
    if not (dash and low.isdecimal() and high.isdecimal()):
        raise ConfigError(f"--ports {text} is no range", "write it like 61000-65535")
    return int(low), int(high)


def _parse_address(text: str) -> IpInterface:
    from ipaddress import ip_interface

    from ixnet.control.config import ConfigError

    try:
        if "/" not in text:
            raise ValueError("no prefix length")
        return ip_interface(text)
    except ValueError as error:
        raise ConfigError(
            f"--own-address {text}: {error}", "write it like 192.0.2.1/24 or 2001:db8::1/64"
        ) from error


# ---- stat --------------------------------------------------------------------------------------


@app.command()
def stat(
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which instance, if several run.")
    ] = None,
    as_json: AsJson = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Again and again.")] = False,
    interval: Annotated[float, typer.Option(metavar="S", help="Seconds between, 0.1 to 3600.")] = 1,
    show_all: Annotated[bool, typer.Option("--all", "-a", help="Counters of 0 too.")] = False,
) -> None:
    """Show the counters of a running instance."""
    with errors():
        from ixnet.control.instance import find_instance
        from ixnet.control.statview import InstanceReader, render

        instance = find_instance(name)
        interval = min(max(interval, 0.1), 3600)
        looks = _looks(instance, InstanceReader(instance).look, interval if watch else None)
        if as_json:
            for now in looks:
                _print_json(now.as_dict())
            return
        from ixnet.terminal import make_console

        console = make_console()
        before = None
        with (
            _screen(console)
            if watch and console.is_terminal
            else nullcontext(console.print) as show
        ):
            for now in looks:
                show(render(now, before, show_all))
                before = now
        if watch:
            _say("the instance has ended")


def _looks(
    instance: Instance, look: Callable[[], Snapshot], interval_s: float | None
) -> Iterator[Snapshot]:
    """One look; with an interval one after the other until the instance ends."""
    yield look()
    while interval_s is not None:
        time.sleep(interval_s)
        now = look()
        if not instance.is_alive():
            return
        yield now


@contextmanager
def _screen(console: Console) -> Iterator[Callable[[Any], None]]:
    """The terminal's whole screen, shown anew by each call."""
    from rich.live import Live

    with Live(console=console, auto_refresh=False, screen=True) as live:
        yield lambda table: live.update(table, refresh=True)


# ---- bench -------------------------------------------------------------------------------------


@app.command(
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def bench(context: typer.Context) -> None:
    """Load and latency: echo, memcached, connections, connrate, stream, latency; report."""
    with errors():
        from ixnet.bench.cli import app as bench_app

        bench_app(context.args, prog_name="ixnet bench")
