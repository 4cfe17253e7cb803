"""The comparison: the same client against several servers over the same link, in alternation."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from bench.common import SERVER_CORE, BenchError, run_load
from bench.servers import Placement, Server
from ixnet.control.lab import LabConfig

# One queue and one core for everybody.
PLACEMENT = Placement(queues=1, cores=(SERVER_CORE,))
MESSAGE_BYTES = 64
SLOTS = 16


@dataclass(frozen=True)
class Point:
    """One measurement of a server."""

    key: str
    mode: str
    connections: int


@dataclass(frozen=True)
class Row:
    """One line of the table. path: where the figure is in the report of its point."""

    title: str
    point: str
    path: tuple[str, ...]
    unit: str
    lower_is_better: bool = False


POINTS = (
    Point("rr1", "echo", 1),
    Point("rr16", "echo", 16),
    Point("rr128", "echo", 128),
    Point("rr1024", "echo", 1024),
    Point("crc16", "connrate", SLOTS),
)

ROWS = (
    Row("round trip p50, 1 connection", "rr1", ("us", "p50"), "us", True),
    Row("round trip p99, 1 connection", "rr1", ("us", "p99"), "us", True),
    Row("requests/s, 1 connection", "rr1", ("per_second",), "/s"),
    Row("requests/s, 16 connections", "rr16", ("per_second",), "/s"),
    Row("requests/s, 128 connections", "rr128", ("per_second",), "/s"),
    Row("requests/s, 1,024 connections", "rr1024", ("per_second",), "/s"),
    Row(f"connect-request-close/s, {SLOTS} slots", "crc16", ("per_second",), "/s"),
)


@dataclass
class Comparison:
    """Reports by server label and point, one a round; problems: what went wrong, if anything."""

    labels: tuple[str, ...]
    runs: dict[str, dict[str, list[dict[str, Any]]]]
    ready_lines: dict[str, str]
    problems: list[str]

    def figures(self, label: str, row: Row) -> list[float]:
        """A row's figure of every round that has one."""
        return [float(_at(report, row.path)) for report in self.runs[label][row.point]]

    def median(self, label: str, row: Row) -> float | None:
        """Over the rounds; None without any."""
        figures = self.figures(label, row)
        return statistics.median(figures) if figures else None

    def ratio(self, label: str, row: Row) -> float | None:
        """A server's median to that of the first server; None if either is lacking."""
        own, base = self.median(label, row), self.median(self.labels[0], row)
        return own / base if own is not None and base else None

    def as_dict(self) -> dict[str, Any]:
        """Medians, spread and ratios by row, and every single report."""
        rows = []
        for row in ROWS:
            by_server = {}
            for label in self.labels:
                figures = self.figures(label, row)
                by_server[label] = {
                    "median": self.median(label, row),
                    "least": min(figures, default=None),
                    "most": max(figures, default=None),
                    "ratio": self.ratio(label, row),
                }
            rows.append({"title": row.title, "unit": row.unit, "servers": by_server})
        return {
            "placement": {"queues": PLACEMENT.queues, "cores": list(PLACEMENT.cores)},
            "rows": rows,
            "ready_lines": self.ready_lines,
            "problems": self.problems,
            "runs": self.runs,
        }


def _at(report: dict[str, Any], path: Sequence[str]) -> Any:
    found: Any = report
    for key in path:
        found = found[key]
    return found


def compare(
    lab: LabConfig,
    host: str,
    port: int,
    servers: Sequence[Server],
    rounds: int,
    seconds: float,
    progress: Callable[[str], None],
) -> Comparison:
    """Measures all points of one server after the other, several rounds, each in another order.

    seconds: of measuring a point. A server that fails is on record as a problem and left out from
    then on; the others go on.
    """
    labels = tuple(server.label for server in servers)
    result = Comparison(labels, {label: {p.key: [] for p in POINTS} for label in labels}, {}, [])
    failed: set[str] = set()
    for number in range(rounds):
        turn = number % len(servers)
        for server in (*servers[turn:], *servers[:turn]):
            if server.label in failed:
                continue
            progress(f"round {number + 1} of {rounds}: {server.label}")
            try:
                _measure(lab, host, port, server, seconds, result)
            except BenchError as error:
                failed.add(server.label)
                result.problems.append(f"{server.label}: {error}")
    return result


def _measure(
    lab: LabConfig, host: str, port: int, server: Server, seconds: float, result: Comparison
) -> None:
    with server.start(lab, port, PLACEMENT) as running:
        result.ready_lines[server.label] = running.ready_line
        for point in POINTS:
            report = run_load(
                lab,
                point.mode,
                host,
                port,
                connections=point.connections,
                bytes=MESSAGE_BYTES,
                seconds=seconds,
            )
            if not report["ok"]:
                raise BenchError(f"{point.key}: {report['first_error']}")
            result.runs[server.label][point.key].append(report)
    if not running.clean_stop:
        result.problems.append(f"{server.label} did not end by itself on SIGTERM")


def table(result: Comparison, caption: str) -> Table:
    """The figures for people: medians, and ratios to the first server."""
    made = Table(title="64-byte requests, one queue, one core", caption=caption)
    made.add_column("", justify="left")
    made.add_column(result.labels[0], justify="right")
    for label in result.labels[1:]:
        made.add_column(label, justify="right")
        made.add_column("ratio", justify="right")
    for row in ROWS:
        cells = [_number(result.median(result.labels[0], row), row)]
        for label in result.labels[1:]:
            cells += [
                _number(result.median(label, row), row),
                _ratio(result.ratio(label, row), row),
            ]
        made.add_row(row.title, *cells)
    return made


def _number(value: float | None, row: Row) -> str:
    if value is None:
        return "-"
    return f"{value:.1f} us" if row.unit == "us" else f"{value:,.0f}"


def _ratio(value: float | None, row: Row) -> str:
    if value is None:
        return "-"
    better = value < 1 if row.lower_is_better else value > 1
    return f"[{'green' if better else 'red'}]{value:.2f}x[/]"
