"""What `make demo` runs: an echo server on the dataplane, checked and measured from outside.

    .venv/bin/python bench/demo.py [--json FILE] [--quick] [--seconds T] [--rounds N]
                                 [--placement inline|dune]

Brings the lab up (two network namespaces and a veth pair), starts the Python echo server on the
dataplane in one of them with 2 queues, and drives it from the other with ordinary kernel sockets;
then measures it, the native echo server, and a C epoll server on the kernel's stack with the same
client. Whatever happens, nothing of it stays behind. Exit status: 0, 1 if a check failed, 2 if the
demo can't run at all, 128 + signal if it was interrupted.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script

from rich.console import Console
from rich.panel import Panel

from bench.checks import (
    Check,
    Prober,
    check_bypass,
    check_many,
    check_spread,
    check_stream,
    kernel_tcp_counted,
    queue_packets,
)
from bench.common import (
    CLIENT_CORE,
    SERVER_CORE,
    BenchError,
    patience,
    report_console,
    slowness,
)
from bench.compare import PLACEMENT, Comparison, compare, table
from bench.servers import (
    STOP_S,
    KernelServer,
    Placement,
    RunningServer,
    Server,
    native_echo,
    python_echo,
)
from ixnet.bench.machine import Machine, machine
from ixnet.control.config import PLACEMENTS
from ixnet.control.errors import IxError
from ixnet.control.guest import require_fit
from ixnet.control.lab import LabConfig, lab_down, lab_up
from ixnet.control.namespaces import NetnsError

PORT = 7000
SECOND_PORT = 7001
# One worker beside the client, as there may be no more than two cores; so these workers sleep when
# they have nothing to do, while those that are measured have a core for themselves and busy-poll.
CHECKS_PLACEMENT = Placement(queues=2, cores=(SERVER_CORE, CLIENT_CORE))


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status."""
    args = _arguments(argv)
    console = report_console()
    # The lab's identity does not depend on the number of queues.
    wide = LabConfig.named(args.tag, queues=CHECKS_PLACEMENT.queues)
    narrow = LabConfig.named(args.tag, queues=PLACEMENT.queues)
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, _interrupted)
    started = time.monotonic()
    try:
        try:
            lab_down(wide, kill=True)  # what a killed run may have left
            record = _demo(args, console, wide, narrow)
        finally:
            _deaf_to_signals()
            lab_down(wide, kill=True)
    except (BenchError, NetnsError, IxError) as error:
        console.print(f"[red]The demo can't go on:[/] {error}", highlight=False)
        return 2
    except _Interrupted as interrupted:
        console.print(f"interrupted by {signal.Signals(interrupted.signum).name}; cleaned up")
        return 128 + interrupted.signum
    record["seconds"] = time.monotonic() - started
    if args.json:
        args.json.write_text(json.dumps(record, indent=1) + "\n")
    verdict = "[green]all checks passed[/]" if record["ok"] else "[red]a check failed[/]"
    console.print(f"{verdict} in {record['seconds']:.0f} s")
    return 0 if record["ok"] else 1


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="demo", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything here as well")
    parser.add_argument("--quick", action="store_true", help="one short round, for a first look")
    parser.add_argument("--seconds", type=float, help="measured time a point (1.2)")
    parser.add_argument("--rounds", type=int, help="rounds of the comparison (3)")
    parser.add_argument("--tag", default="demo", help="in the names of the lab's namespaces")
    parser.add_argument(
        "--placement", default="inline", choices=PLACEMENTS, help="where the dataplane runs"
    )
    parser.add_argument("--no-compare", action="store_true", help="the checks only")
    parser.add_argument("--no-checks", action="store_true", help="the comparison only")
    parser.add_argument(
        "--server-only",
        choices=("kernel",),
        help="the kernel's server in every place, to try the demo itself",
    )
    args = parser.parse_args(argv)
    args.seconds = args.seconds or (0.4 if args.quick else 1.2)
    args.rounds = args.rounds or (1 if args.quick else 3)
    if args.seconds <= 0 or args.rounds <= 0:
        parser.error("--seconds and --rounds must be above 0")
    return args


class _Interrupted(KeyboardInterrupt):
    """A signal asked the demo to end. Of the exceptions of one's own, asyncio's loops (pyroute2
    has them) let only those out that are a KeyboardInterrupt or a SystemExit."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


def _interrupted(signum: int, frame: FrameType | None) -> NoReturn:
    raise _Interrupted(signum)


def _deaf_to_signals() -> None:
    """Cleaning up takes less than a second and is not to be cut short."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)


def _demo(
    args: argparse.Namespace, console: Console, wide: LabConfig, narrow: LabConfig
) -> dict[str, Any]:
    run_options = ("--placement", args.placement)
    if args.placement == "dune":
        require_fit()
    on = machine()
    console.print(_header(on, wide, args.placement))
    record: dict[str, Any] = {
        "machine": on.as_dict(),
        "placement": args.placement,
        "checks": [],
        "comparison": None,
    }
    checks: list[Check] = []
    if not args.no_checks:
        dut: Server = (
            KernelServer("kernel") if args.server_only else python_echo(False, *run_options)
        )
        checks += _run_checks(console, wide, dut, on_dataplane=not args.server_only, record=record)
    if not args.no_compare:
        servers: list[Server] = [
            KernelServer("kernel"),
            native_echo(True, *run_options),
            python_echo(True, *run_options),
        ]
        if args.server_only:
            servers = [KernelServer(label) for label in ("kernel", "kernel (2)", "kernel (3)")]
        comparison = _run_comparison(args, console, narrow, servers)
        record["comparison"] = comparison.as_dict()
        console.print(table(comparison, _caption(on, comparison)))
        checks.append(_comparison_check(comparison))
        _print_check(console, checks[-1])
    record["checks"] = [check.as_dict() for check in checks]
    record["ok"] = all(check.ok for check in checks)
    return record


def _header(on: Machine, lab: LabConfig, placement: str) -> Panel:
    lines = [
        f"machine    {on.cpu}, {on.cores} cores, {on.memory_gib} GiB"
        f"{', virtual' if on.hypervisor else ''}; load average {on.load_average:.2f}",
        f"kernel     Linux {on.kernel}",
        f"link       veth, MTU {lab.mtu}, checksum and segmentation offload off",
        f"placement  {placement}; server on core {SERVER_CORE}, client on core {CLIENT_CORE}",
        f"time       {on.time}",
    ]
    if slowness() >= 2:
        lines.append(f"patience   {slowness():.0f} times the usual: this machine is slow")
    return Panel("\n".join(lines), title="ixnet demo", expand=False, highlight=True)


def _caption(on: Machine, comparison: Comparison) -> str:
    said = [f"{label}: {line}" for label, line in comparison.ready_lines.items()]
    return "\n".join([f"{on.cpu}, Linux {on.kernel}; ratios to {comparison.labels[0]}", *said])


def _print_check(console: Console, check: Check) -> None:
    mark = "[green]ok  [/]" if check.ok else "[red]FAIL[/]"
    console.print(f"{mark} {check.name}: {check.detail}", highlight=False)


def _run_checks(
    console: Console, lab: LabConfig, dut: Server, on_dataplane: bool, record: dict[str, Any]
) -> list[Check]:
    """Part one: correctness, with the second service running beside it all the while."""
    facts = lab_up(lab)
    host = facts.server.ip
    record["lab"] = facts.as_dict()
    second = KernelServer("second service").start(lab, SECOND_PORT, CHECKS_PLACEMENT)
    with second, dut.start(lab, PORT, CHECKS_PLACEMENT) as running:
        console.print(f"{dut.label}: {running.ready_line}", highlight=False)
        record["ready_line"] = running.ready_line
        prober = Prober(lab, host, SECOND_PORT)
        delta: dict[str, int] = {}
        with kernel_tcp_counted(lab.server_netns, delta):
            prober.start()
            try:
                checks = [check_stream(lab, host, PORT, mib=64)]
                _print_check(console, checks[-1])
                checks.append(check_many(lab, host, PORT, connections=1000, messages=100))
                _print_check(console, checks[-1])
            finally:
                prober.stop()
        later = [prober.check()]
        if on_dataplane:
            later.append(check_bypass(delta, prober.connected))
            counts = queue_packets(lab.server_netns, lab.server_if)
            later.append(check_spread(counts, CHECKS_PLACEMENT.queues))
        later.append(_alive_check(running, second))
    later.append(
        Check(
            "the server ends on SIGTERM",
            bool(running.clean_stop),
            f"by itself, within {patience(STOP_S):.0f} s",
        )
    )
    for check in later:
        _print_check(console, check)
    lab_down(lab, kill=True)
    return checks + later


def _alive_check(*servers: RunningServer) -> Check:
    gone = [server for server in servers if not server.alive()]
    detail = "; ".join(f"{s.label} ended:\n{s.printed()}" for s in gone)
    return Check("both servers are still there", not gone, detail or "as they should be")


def _run_comparison(
    args: argparse.Namespace, console: Console, lab: LabConfig, servers: Sequence[Server]
) -> Comparison:
    """Part two: the figures, on a link with one queue."""
    host = lab_up(lab).server.ip
    with console.status("measuring") as status:
        return compare(
            lab,
            host,
            PORT,
            servers,
            args.rounds,
            args.seconds,
            lambda what: status.update(f"measuring, {what}"),
        )


def _comparison_check(comparison: Comparison) -> Check:
    return Check(
        "every measurement ran without an error, every reply verified",
        not comparison.problems,
        "; ".join(comparison.problems) or f"{len(comparison.labels)} servers",
    )


if __name__ == "__main__":
    sys.exit(main())
