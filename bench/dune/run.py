"""The Dune paper's Tables 2 and 3 (OSDI '12) as measured here: Linux and Dune side by side.

python -m bench.dune.run [--rounds N] [--json FILE]

Rounds alternate; figures are medians. The exits are the same on any sound KVM; times are not, and
where KVM itself is emulated not even their ratios mean anything. So the report says which it was.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table

from bench.common import BenchError, program, report_console
from ixnet import dune

PAPER = {  # cycles: Linux, Dune
    "getpid": (138, 895),
    "getpid, ring 3": (138, 895),
    "pagefault": (2687, 5093),
    "pagewalk": (35.8, 86.4),
    "ptrace": (27317, 1091),
    "trap": (2821, 587),
    "appel1": (701413, 94496),
    "appel2": (684909, 94854),
}
LINUX_NAME = {"getpid, ring 3": "getpid"}
TABLE_2 = ("getpid", "getpid, ring 3", "pagefault", "pagewalk")
TABLE_3 = ("ptrace", "intercept", "trap", "appel1", "appel2")
SIDES = ("linux", "dune")


@dataclass(frozen=True)
class Figure:
    """One operation on one side; medians over the rounds."""

    ns: float
    exits: float  # to user space
    all_exits: float  # those that KVM handled itself included


def one_round(side: str) -> dict[str, Figure]:
    """Runs the program once. Errors: BenchError."""
    run = subprocess.run(
        [program("dune/tables"), side], capture_output=True, text=True, check=False
    )
    if run.returncode != 0:
        raise BenchError(f"tables {side} ended with {run.returncode}: {run.stderr.strip()}")
    rows = [line.split("\t") for line in run.stdout.splitlines()]
    return {name: Figure(*map(float, values)) for name, *values in rows}


def median(rounds: Sequence[dict[str, Figure]], name: str) -> Figure:
    """Each of an operation's figures by itself."""
    of = [figures[name] for figures in rounds]
    return Figure(
        *(
            statistics.median(getattr(f, field) for f in of)
            for field in ("ns", "exits", "all_exits")
        )
    )


def describe(report: dune.Report) -> str:
    """Which KVM this is."""
    emulated = "hypervisor" in Path("/proc/cpuinfo").read_text()
    return (
        f"{report.vendor}, Linux {report.kernel}, {os.cpu_count()} CPUs"
        f"{', itself a virtual machine' if emulated else ''}: "
        f"an exit {report.exit_ns / 1e3:.1f} us, ring 3 to 0 and back {report.ring_switch_ns} ns, "
        f"{report.ring0_ps_per_instruction} ps an instruction in ring 0"
    )


def table(title: str, names: Sequence[str], figures: dict[str, dict[str, Figure]]) -> Table:
    """One of the paper's tables."""
    result = Table(title=title)
    heads = ("operation", "Linux", "Dune", "Dune : Linux", "paper's", "exits", "with KVM's own")
    for head in heads:
        result.add_column(head, justify="left" if head == "operation" else "right")
    for name in names:
        linux, ours = figures["linux"][LINUX_NAME.get(name, name)], figures["dune"][name]
        paper = PAPER.get(name)
        result.add_row(
            name,
            f"{linux.ns:,.0f} ns",
            f"{ours.ns:,.0f} ns",
            f"{ours.ns / linux.ns:.2f}",
            f"{paper[1] / paper[0]:.2f}" if paper else "",
            f"{ours.exits:.3f}",
            f"{ours.all_exits:.3f}",
        )
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints; 1 where KVM is unfit or something failed."""
    parser = argparse.ArgumentParser(prog="bench.dune.run", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    report = dune.probe()
    if not report.fit:
        print(
            f"dune: this machine's KVM is unfit: {report.reason} ({report.cure})", file=sys.stderr
        )
        return 1
    rounds: dict[str, list[dict[str, Figure]]] = {side: [] for side in SIDES}
    try:
        for _ in range(args.rounds):
            for side in SIDES:
                rounds[side].append(one_round(side))
    except BenchError as error:
        print(f"dune: {error}", file=sys.stderr)
        return 1
    figures = {side: {n: median(rounds[side], n) for n in rounds[side][0]} for side in SIDES}
    console = report_console()
    console.print(describe(report))
    console.print(table("Table 2: costs more in Dune", TABLE_2, figures))
    console.print(table("Table 3: costs less in Dune", TABLE_3, figures))
    if args.json:
        plain = {side: {n: asdict(f) for n, f in of.items()} for side, of in figures.items()}
        args.json.write_text(json.dumps({"kvm": report.as_dict(), "figures": plain}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
