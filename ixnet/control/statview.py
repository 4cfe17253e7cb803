"""Running instances' counters as a table or as JSON: what `ixnet stat` shows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ixnet.control.instance import Instance, InstanceError
from ixnet.control.stats import (
    GAUGES,
    ShardFile,
    ShardReading,
    busy_ratio,
    mean_batch,
    meanings,
    total,
)


@dataclass(frozen=True)
class Snapshot:
    """One look at an instance. live: what only its control plane knows, {} if it does not answer.

    taken_s: CLOCK_MONOTONIC, s.
    """

    instance: Instance
    readings: list[ShardReading]
    live: dict[str, Any]
    taken_s: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        shards = []
        live = {shard["id"]: shard for shard in self.live.get("shards", [])}
        for fact, reading in zip(self.instance.facts["shards"], self.readings, strict=True):
            batches = {str(n): count for n, count in reading.batches.items()}
            shards.append(
                {
                    **fact,
                    **live.get(fact["id"], {}),
                    "now_ns": reading.now_ns,
                    "stats": reading.values,
                    "batches": batches,
                }
            )
        return {
            **self.instance.facts,
            **self.live,
            "shards": shards,
            "total": total(self.readings),
        }


class InstanceReader:
    """Keeps an instance's statistics mapped, to look at them again and again.

    Errors: StatsError if they can't be read; InstanceError while there are none.
    """

    def __init__(self, instance: Instance) -> None:
        if "shards" not in instance.facts:
            raise InstanceError(
                f"{instance.name} is still starting and has no counters yet",
                "ask again when it is ready",
            )
        self._instance = instance
        self._files = [
            ShardFile(instance.shard_path(int(shard["id"])), int(shard["id"]))
            for shard in instance.facts["shards"]
        ]

    def look(self) -> Snapshot:
        """The statistics now."""
        return Snapshot(
            self._instance,
            [file.read() for file in self._files],
            self._instance.ask(),
            time.monotonic(),
        )


def render(now: Snapshot, before: Snapshot | None, show_all: bool) -> RenderableType:
    """The table. before: an earlier look, to show rates a second; show_all: counters of 0 too."""
    parts: list[RenderableType] = [_heading(now), _shard_table(now, before, show_all)]
    verdicts = now.live.get("verdicts", {})
    if verdicts:
        parts.append(_verdict_table(verdicts, show_all))
    for title, key, whose in (
        ("AF_XDP socket", "socket", "shard"),
        ("guest", "guest", "worker"),
        ("pcap file", "pcap", "shard"),
    ):
        table = _live_table(now, title, key, whose, show_all)
        if table is not None:
            parts.append(table)
    for warning in now.live.get("warnings", []):
        parts.append(Text(f"note: {warning}", style="yellow"))
    return Group(*parts)


def _heading(now: Snapshot) -> Text:
    facts, live = now.instance.facts, now.live
    age_s = max(0, int(time.time() - facts.get("started", time.time())))
    claims = ", ".join(live.get("claims", facts.get("claims", []))) or "none"
    states = ", ".join(_state(w) for w in live.get("workers", [])) or "?"
    lines = (
        f"{facts['name']}: {facts['interface']} ({facts.get('driver') or 'no driver'}), "
        f"{facts.get('mode')}, {facts.get('placement')}, pid {facts['pid']}, "
        f"up {age_s // 60} min {age_s % 60} s",
        f"app {' '.join(facts.get('app', []))}; claims: {claims}; workers: {states}",
    )
    return Text("\n".join(lines))


def _state(worker: dict[str, Any]) -> str:
    stalled_s = worker.get("stalled_s")
    stalled = f", no cycle for {stalled_s:.0f} s" if stalled_s else ""
    return f"{worker['id']} {worker['state']}{stalled}"


def _shard_table(now: Snapshot, before: Snapshot | None, show_all: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for fact in now.instance.facts["shards"]:
        worker = fact.get("worker", fact["id"])
        where = f"q{fact['queue']}, w{worker}, c{fact['core']}"
        table.add_column(f"shard {fact['id']} ({where})", justify="right")
    table.add_column("total", justify="right")
    if before is not None:
        table.add_column("a second", justify="right")
    table.add_column("meaning", style="dim")
    sums, said = total(now.readings), meanings()
    rates = _rates(now, before) if before is not None else None
    derived = (
        ("busy cycles", [f"{busy_ratio(r.values):.1%}" for r in now.readings]),
        ("mean batch", [f"{mean_batch(r.batches):.1f}" for r in now.readings]),
    )
    for label, cells in derived:
        table.add_row(label, *cells, "", *([""] if rates is not None else []), "")
    for name, value in sums.items():
        if not value and not show_all and name not in GAUGES[:1]:
            continue
        cells = [f"{r.values.get(name, 0):,}" for r in now.readings]
        rate = [] if rates is None else [rates.get(name, "")]
        style = "yellow" if value and name.startswith("drop_") else ""
        table.add_row(name, *cells, f"{value:,}", *rate, said.get(name, ""), style=style)
    return table


def _rates(now: Snapshot, before: Snapshot) -> dict[str, str]:
    """Change a second of every counter; gauges have none."""
    seconds = max(now.taken_s - before.taken_s, 1e-9)
    old = total(before.readings)
    return {
        name: f"{(value - old.get(name, 0)) / seconds:,.0f}"
        for name, value in total(now.readings).items()
        if name not in GAUGES
    }


def _verdict_table(verdicts: dict[str, int], show_all: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", title_justify="left")
    table.add_column("XDP verdict")
    table.add_column("frames", justify="right")
    for name, frames in verdicts.items():
        if frames or show_all:
            table.add_row(name, f"{frames:,}")
    return table


def _live_table(now: Snapshot, title: str, key: str, whose: str, show_all: bool) -> Table | None:
    """What the control plane says of each shard, or each worker, under `key`."""
    columns: Sequence[dict[str, Any]] = now.live.get(whose + "s", [])
    names = list(dict.fromkeys(name for one in columns for name in one.get(key, {})))
    shown = [n for n in names if show_all or any(one[key].get(n) for one in columns)]
    if not shown:
        return None
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(title)
    for one in columns:
        table.add_column(f"{whose} {one['id']}", justify="right")
    for name in shown:
        table.add_row(name, *(f"{one[key].get(name, 0):,}" for one in columns))
    return table
