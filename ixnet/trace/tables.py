"""Samples of a program's tables: their difference, durations in them, and how they are shown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table as Grid

from ixnet.trace.program import Table

# All tables of a program at one moment, by name.
Sample = dict[str, Table]
BAR_WIDTH = 40


def difference(now: Sample, before: Sample) -> Sample:
    """What was added between two moments. A value's first two members are sums; a third is a
    maximum, and stays: it is right to within its histogram's slot, which is part of the key. What
    is less than before began anew, with a worker that did."""
    changed: Sample = {}
    for name, table in now.items():
        old = before.get(name, {})
        rows = {}
        for key, value in table.items():
            was = old.get(key, (0,) * len(value))
            if value[0] < was[0]:
                was = (0,) * len(value)
            row = tuple(
                v - w if i < 2 else v for i, (v, w) in enumerate(zip(value, was, strict=True))
            )
            if row[0]:
                rows[key] = row
        changed[name] = rows
    return changed


@dataclass
class Durations:
    """A histogram of durations. slots: slot s has (count, total ns, longest ns) of those of 2^s to
    2^(s+1) - 1 ns (xdp/trace/common.h)."""

    slots: dict[int, tuple[int, int, int]] = field(default_factory=dict)

    def add(self, slot: int, value: tuple[int, ...]) -> None:
        """Adds what a table has of a slot."""
        count, total, longest = self.slots.get(slot, (0, 0, 0))
        self.slots[slot] = (count + value[0], total + value[1], max(longest, value[2]))

    @property
    def count(self) -> int:
        """How many."""
        return sum(count for count, _, _ in self.slots.values())

    @property
    def total_ns(self) -> int:
        """All of them together."""
        return sum(total for _, total, _ in self.slots.values())

    @property
    def max_ns(self) -> int:
        """The longest."""
        return max((longest for _, _, longest in self.slots.values()), default=0)

    @property
    def mean_ns(self) -> float:
        """Their mean; 0 without any."""
        return self.total_ns / self.count if self.count else 0.0

    def quantile_ns(self, share: float) -> int:
        """At least this share was no longer: the end of a slot, or the longest if that is less."""
        left = share * self.count
        for slot in sorted(self.slots):
            left -= self.slots[slot][0]
            if left <= 1e-9:
                return min((2 << slot) - 1, self.max_ns)
        return self.max_ns

    def as_dict(self) -> dict[str, Any]:
        """For JSON; slots by the least duration that they hold, ns."""
        return {
            "count": self.count,
            "total_ns": self.total_ns,
            "max_ns": self.max_ns,
            "p50_ns": self.quantile_ns(0.5),
            "p99_ns": self.quantile_ns(0.99),
            "slots": {str(1 << slot): self.slots[slot][0] for slot in sorted(self.slots)},
        }

    def cells(self) -> list[str]:
        """For a table: mean, p50, p99, longest."""
        if not self.count:
            return ["-"] * 4
        values = (self.mean_ns, self.quantile_ns(0.5), self.quantile_ns(0.99), self.max_ns)
        return [duration(value) for value in values]


DURATION_TITLES = ("mean", "p50 <=", "p99 <=", "longest")


def duration(ns: float) -> str:
    """A duration with three figures: 850 ns, 12.3 us, 1.25 ms, 3.1 s."""
    for unit, size in (("s", 1e9), ("ms", 1e6), ("us", 1e3)):
        if ns >= size:
            return f"{ns / size:.3g} {unit}" if ns < 999.5 * size else f"{ns / size:,.0f} {unit}"
    return f"{ns:.0f} ns"


def rate(count: float, seconds: float) -> str:
    """How many a second."""
    value = count / max(seconds, 1e-9)
    return f"{value:,.0f}" if value >= 10 or not value else f"{value:.2g}"


def grid(*titles: str, left: int = 1) -> Grid:
    """An empty table like those of `ixnet stat`; all but the first `left` columns are numbers."""
    table = Grid(box=None, pad_edge=False, header_style="bold")
    for i, title in enumerate(titles):
        table.add_column(title, justify="left" if i < left else "right", no_wrap=True)
    return table


def doubling(values: Mapping[int, int]) -> list[tuple[str, int]]:
    """A histogram of numbers by ranges that double: 0, 1, 2-3, 4-7, ... up to the largest."""
    if not values:
        return []
    found = [0] * (max(values).bit_length() + 1)
    for value, count in values.items():
        found[value.bit_length()] += count
    names = ["0", "1", *(f"{1 << n}-{(2 << n) - 1}" for n in range(1, len(found) - 1))]
    return list(zip(names, found, strict=False))


def bars(title: str, rows: Sequence[tuple[str, int]]) -> Grid:
    """A histogram drawn with characters."""
    table = grid(title, "count", "", left=1)
    table.columns[2].justify = "left"
    most = max((count for _, count in rows), default=0)
    for name, count in rows:
        table.add_row(name, f"{count:,}", "#" * round(BAR_WIDTH * count / most) if most else "")
    return table


def slot_rows(durations: Durations) -> list[tuple[str, int]]:
    """Rows of bars(): every slot from the shortest to the longest."""
    if not durations.slots:
        return []
    low, high = min(durations.slots), max(durations.slots)
    counts = {slot: value[0] for slot, value in durations.slots.items()}
    return [
        (f"{duration(1 << slot)} - {duration(2 << slot)}", counts.get(slot, 0))
        for slot in range(low, high + 1)
    ]


def merged(parts: Iterable[Durations]) -> Durations:
    """All of them in one."""
    whole = Durations()
    for part in parts:
        for slot, value in part.slots.items():
            whole.add(slot, value)
    return whole
