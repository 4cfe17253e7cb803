"""Reads what shards show of themselves (struct ix_stats), from within or from another process."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ixnet._core import ffi, lib
from ixnet.control.errors import IxError
from ixnet.control.instance import Instance

PAGE_BYTES = 4096
# struct ix_stats.magic: "ixnet1" (dataplane/shard/stats.c).
STATS_MAGIC = int.from_bytes(b"ixnet1", "little")
GAUGES = (
    "flows", "flows_half_open", "flows_time_wait", "frames_free", "frames_fill", "frames_rx",
    "frames_app", "frames_tx", "timers_armed",
)  # fmt: skip
GAUGE_MEANINGS = {
    "flows": "connections in any state",
    "flows_half_open": "connections whose handshake is not complete",
    "flows_time_wait": "connections in TIME_WAIT",
    "frames_free": "pool frames that are free",
    "frames_fill": "pool frames given to the link to receive into",
    "frames_rx": "pool frames being looked at, or kept for reassembly",
    "frames_app": "pool frames lent to the application",
    "frames_tx": "pool frames on their way out",
    "timers_armed": "timers that wait",
}


class StatsError(IxError):
    """Statistics can't be read; the message says whose and why."""


def stats_bytes() -> int:
    """Length of the file that shows a shard's statistics: whole pages."""
    size = int(ffi.sizeof("struct ix_stats"))
    return (size + PAGE_BYTES - 1) // PAGE_BYTES * PAGE_BYTES


def counter_names() -> tuple[str, ...]:
    """The names of the counters, in the order of the array."""
    names: list[str] = []
    while (name := lib.ix_counter_name(len(names))) != ffi.NULL:
        names.append(ffi.string(name).decode())
    return tuple(names)


def meanings() -> dict[str, str]:
    """What each gauge and counter says."""
    found = dict(GAUGE_MEANINGS)
    for i, name in enumerate(counter_names()):
        found[name] = ffi.string(lib.ix_counter_meaning(i)).decode()
    return found


def stats_dict(stats: Any) -> dict[str, int]:
    """Gauges and counters by name, of a `struct ix_stats *`."""
    values = {name: int(getattr(stats, name)) for name in GAUGES}
    count = min(int(stats.counter_count), len(stats.counters))
    counters = ffi.unpack(stats.counters, count)
    values.update(zip(counter_names(), counters, strict=False))
    return values


def batch_histogram(stats: Any) -> dict[int, int]:
    """How many cycles took n frames from RX, for the n that occurred."""
    return {n: count for n, count in enumerate(ffi.unpack(stats.batch_hist, 257)) if count}


@dataclass(frozen=True)
class ShardReading:
    """One shard's statistics at one moment. now_ns: CLOCK_MONOTONIC of its last cycle."""

    shard_id: int
    values: dict[str, int]
    batches: dict[int, int]
    now_ns: int


class ShardFile:
    """A shard's statistics file, mapped read-only. Errors: StatsError if it is none."""

    def __init__(self, path: Path, shard_id: int) -> None:
        self.shard_id = shard_id
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), stats_bytes(), prot=mmap.PROT_READ)
        except PermissionError as error:
            raise StatsError(f"{path} is not for this user to read", "run as root") from error
        except (OSError, ValueError) as error:
            raise StatsError(f"can't read {path}: {error}", "is the instance ending?") from error
        self._stats = ffi.cast("struct ix_stats *", ffi.from_buffer(self._map))
        if self._stats.magic != STATS_MAGIC:
            raise StatsError(
                f"{path} holds no statistics, or those of another version of ixnet",
                "try again, with the ixnet that the instance runs",
            )

    def read(self) -> ShardReading:
        """The statistics now. Counters are read one by one while the shard runs on."""
        stats = self._stats
        return ShardReading(
            self.shard_id, stats_dict(stats), batch_histogram(stats), int(stats.now_ns)
        )


def read_instance(instance: Instance) -> list[ShardReading]:
    """The statistics of every shard of a running instance."""
    readings: list[ShardReading] = []
    for shard in instance.facts.get("shards", []):
        shard_id = int(shard["id"])
        readings.append(ShardFile(instance.shard_path(shard_id), shard_id).read())
    return readings


def total(readings: Iterable[ShardReading]) -> dict[str, int]:
    """The sum over shards, by name."""
    result: dict[str, int] = {}
    for reading in readings:
        for name, value in reading.values.items():
            result[name] = result.get(name, 0) + value
    return result


def mean_batch(batches: Mapping[int, int]) -> float:
    """Frames per cycle, over the cycles that took any."""
    cycles = sum(count for n, count in batches.items() if n)
    return sum(n * count for n, count in batches.items()) / cycles if cycles else 0.0


def busy_ratio(values: Mapping[str, int]) -> float:
    """Share of the cycles that found something to do."""
    cycles = values.get("cycles", 0)
    return 1 - values.get("cycles_idle", 0) / cycles if cycles else 0.0
