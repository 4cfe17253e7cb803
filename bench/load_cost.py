"""What user space pays for a message and for a connection, in instructions, on both sides.

    .venv/bin/python bench/load_cost.py [--functions N] [--json]

Runs the load generator against the echo server, both on the dataplane, under valgrind's callgrind
(bench/load_cost.c): messages of 64 bytes on 128 connections, and 64 connections at a time that are
opened, serve one message and are closed by RST. The kernel's part of the way is left out. What is
counted is the code of this tree (functions that the compiler inlined are their callers') and what
it calls of libc's memory functions; every run gives the same numbers.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script

from bench.common import ROOT, callgrind, program

SERVER: Path = ROOT / "build/apps/echo.so"
CLIENT = ROOT / "ixnet/bench/ixload.so"
SIDES = ("client", "server")  # by callgrind's number of the thread
_OURS = re.compile(r"(?:^|/)(ixnet/(?:dataplane|native|bench)/.+|apps/.+)")
_COST = re.compile(r"[-+*\d]\d* (\d+)$")  # of a line of the source
_MEMORY = re.compile(r"_*mem(cpy|move|set|cmp)\w*$")


@dataclass(frozen=True)
class Workload:
    """What the load generator is asked for; `unit`: what costs are given for."""

    unit: str
    arguments: tuple[str, ...]
    warm: int  # messages before the first that counts
    messages: int


WORKLOADS = {
    "echo": Workload("a message", ("--connections", "128", "echo"), 3_200, 12_800),
    "connrate": Workload(
        "a connection", ("--connections", "64", "--rst", "connrate"), 3_200, 12_800
    ),
}


@dataclass(frozen=True)
class Cost:
    """One side's instructions for one unit, by function: "file function"."""

    functions: dict[str, float]

    def total(self, part: str = "") -> float:
        return sum(n for name, n in self.functions.items() if name.startswith(part))


class _Profile:
    """Reads a callgrind profile: each function's own costs."""

    def __init__(self) -> None:
        self.costs: Counter[str] = Counter()
        self._names: dict[str, str] = {}
        self._file = self._function = ""
        self._called = False  # the next line is what a call cost

    def _name(self, space: str, text: str) -> str:
        """A name, given as "(3) name" the first time and as "(3)" from then on."""
        number, _, name = text.partition(" ")
        if name:
            self._names[space + number] = name
        return self._names.get(space + number, text)

    def line(self, line: str) -> None:
        key, equals, text = line.partition("=")
        if equals and key in ("fl", "fi", "fe", "cfi", "cfl"):
            name = self._name("file", text)
            if key == "fl":
                self._file = name
        elif equals and key in ("fn", "cfn"):
            name = self._name("function", text)
            if key == "fn":
                self._function = name.partition("'")[0]
        elif equals:
            self._called = key == "calls"
        elif self._called:
            self._called = False
        elif cost := _COST.match(line):
            self._add(int(cost[1]))

    def _add(self, cost: int) -> None:
        ours = _OURS.search(self._file)
        if ours:
            self.costs[f"{ours[1]} {self._function}"] += cost
        elif _MEMORY.match(self._function):
            self.costs[f"libc {self._function}"] += cost


def measure(name: str, messages: int | None = None) -> dict[str, Cost]:
    """A workload's cost on each side. Errors: BenchError."""
    work = WORKLOADS[name]
    count = messages or work.messages
    with tempfile.TemporaryDirectory() as place:
        done = callgrind(
            Path(place) / "out", "--separate-threads=yes", "--zero-before=measured_from",
            str(program("load_cost")), str(SERVER), str(CLIENT), str(work.warm), str(count),
            "--host", "10.0.0.1", "--port", "7000", "--bytes", "64", "--seconds", "86400",
            *work.arguments,
        )  # fmt: skip
        served = int(done.stdout)
        costs = {}
        for number, side in enumerate(SIDES, 1):
            profile = _Profile()
            for line in (Path(place) / f"out-{number:02}").read_text().splitlines():
                profile.line(line)
            costs[side] = Cost({f: n / served for f, n in profile.costs.most_common()})
    return costs


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--functions", type=int, default=0, help="that many of each side's, too")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found = {name: measure(name) for name in WORKLOADS}
    if args.json:
        print(json.dumps({n: {s: c.functions for s, c in f.items()} for n, f in found.items()}))
        return
    for name, costs in found.items():
        for side, cost in costs.items():
            core = cost.total("ixnet/dataplane/")
            print(f"{name}, {side}: {cost.total():.0f} instructions {WORKLOADS[name].unit}, "
                  f"{core:.0f} of them the stack's")  # fmt: skip
            for function, n in list(cost.functions.items())[: args.functions]:
                print(f"  {n:8.1f}  {function}")


if __name__ == "__main__":
    main()
