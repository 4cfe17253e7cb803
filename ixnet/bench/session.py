"""Load workers under command: their connections stay open from one measurement to the next."""

from __future__ import annotations

import contextlib
import itertools
import json
import mmap
import os
import secrets
import statistics
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from ixnet.bench.client import Client
from ixnet.bench.errors import BenchError, failure
from ixnet.bench.histogram import Histogram

# load/control.h.
_MAGIC = 0x6978627463746C31
_WORKERS_MAX = 64
_COMMAND = struct.Struct("=Q4Q2dQ")  # from `op` on
_WORKER = struct.Struct("=5Q3Q")
_HEAD_BYTES = 16 * 8
_PAGE_BYTES = _HEAD_BYTES + _WORKERS_MAX * _WORKER.size
_OPEN, _LOAD, _RUN, _QUIT = 1, 2, 3, 4

READY_S = 120.0
POLL_S = 0.002
# While a measurement runs: who looks often takes its core from the client or the server, and is
# what the 99th percentile shows.
RUNNING_POLL_S = 0.25
# How far ahead a common start lies.
LEAD_NS = 5_000_000

Progress = Callable[[str], None]


class ControlPage:
    """The page shared with the workers."""

    def __init__(self, path: Path, workers: int) -> None:
        self.path = path
        self._number = 0
        path.write_bytes(bytes(_PAGE_BYTES))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), _PAGE_BYTES)
        self._put(0, _MAGIC)
        self._put(10, workers)

    def _put(self, word: int, value: int) -> None:
        struct.pack_into("=Q", self._map, 8 * word, value)

    def command(
        self,
        op: int,
        connections: int = 0,
        start_ns: int = 0,
        warmup_ns: int = 0,
        measure_ns: int = 0,
        rate: float = 0.0,
        probe_rate: float = 0.0,
        window: int = 0,
    ) -> int:
        """Gives a command to all workers; returns its number. rate: of each worker."""
        _COMMAND.pack_into(
            self._map, 16, op, connections, start_ns, warmup_ns, measure_ns, rate, probe_rate,
            window,
        )  # fmt: skip
        self._number += 1
        # The workers look at this last. x86 keeps the order of stores.
        self._put(1, self._number)
        return self._number

    def worker(self, index: int) -> WorkerState:
        """What a worker says of itself."""
        fields = _WORKER.unpack_from(self._map, _HEAD_BYTES + index * _WORKER.size)
        return WorkerState(bool(fields[0]), fields[1], bool(fields[2]), fields[3], fields[4])

    def result_path(self, index: int) -> Path:
        """Where a worker puts the result of its last command."""
        return self.path.with_name(f"{self.path.name}.{index}")

    def close(self) -> None:
        """Unmaps it."""
        self._map.close()


@dataclass(frozen=True)
class WorkerState:
    """done: the last command that was carried out. open: connections. completed: requests."""

    ready: bool
    done: int
    failed: bool
    open: int
    completed: int


@dataclass(frozen=True)
class RunPlan:
    """One measurement. rate: of all workers together, requests/s; 0: closed loop. window: most
    requests under way in all, 0: as many as fit."""

    seconds: float = 2.0
    warmup_s: float = 0.2
    rate: float = 0.0
    probe_rate: float = 1000.0
    window: int = 0


_names = itertools.count()


class Session:
    """The workers of one client against one target, for the length of a with block.

    words: the load generator's command line without what this class adds. Errors: BenchError, with
    what the workers printed.
    """

    def __init__(
        self,
        client: Client,
        words: Sequence[str],
        connections: int,
        depth: int = 1,
        probes: int = 0,
        window: int = 0,
        progress: Progress = lambda _: None,
    ) -> None:
        """connections, window: of all workers together, the most that will be asked for."""
        self.client = client
        self._words = list(words)
        self._each = max(1, -(-connections // client.workers))
        self._depth = depth
        self._probes = probes
        each_way = self._each * depth + probes
        self._under_way = min(window + probes, each_way) if window else each_way
        self._progress = progress
        self._processes: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Session:
        self._folder = tempfile.TemporaryDirectory(prefix="ixnet-bench-")
        self._page = ControlPage(Path(self._folder.name) / "control", self.client.workers)
        self.name = f"bench-{os.getpid()}-{next(_names)}-{secrets.token_hex(2)}"
        words = [*self._words, "--control", str(self._page.path)]
        words += ["--connections", str(self._each)]
        if self._depth > 1:
            words += ["--depth", str(self._depth)]
        if self._probes:
            words += ["--probes", str(self._probes)]
        try:
            self._processes = self.client.start_workers(
                words, self._each + self._probes, self._under_way, self.name
            )
            self._wait(lambda w: w.ready, READY_S, "the load workers to start")
            self.facts = self._facts()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None and self._alive():
            self._page.command(_QUIT)
        self._end()

    def _end(self) -> None:
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.01)
        for process in self._processes:
            if process.poll() is None and self.client.transport == "ixnet":
                # The control process of the instance ends when its workers have.
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(3)
            if process.poll() is None:
                process.terminate()
            try:
                process.wait(8)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()
        self._page.close()
        self._folder.cleanup()

    def _alive(self) -> bool:
        return all(process.poll() is None for process in self._processes)

    def _printed(self) -> str:
        texts = []
        for process in self._processes:
            if process.poll() is not None and process.stdout is not None:
                # What is wrong stands before the list of options, which are not the user's.
                texts.append(process.stdout.read().partition("\nusage: ")[0])
        return "\n".join(dict.fromkeys(text.strip() for text in texts))

    def _facts(self) -> dict[str, Any]:
        facts = self.client.describe()
        if self.client.transport == "ixnet":
            from ixnet.control.instance import find_instance

            instance = find_instance(self.name).facts
            facts |= {k: instance[k] for k in ("mode", "huge_pages", "cores", "batch", "placement")}
        return facts

    @property
    def pids(self) -> list[int]:
        """Of the processes that were started; they may have started others."""
        return [process.pid for process in self._processes]

    def states(self) -> list[WorkerState]:
        """What all workers say of themselves."""
        return [self._page.worker(i) for i in range(self.client.workers)]

    def _wait(
        self,
        until: Callable[[WorkerState], bool],
        patience_s: float,
        what: str,
        at_least_s: float = 0.0,
    ) -> None:
        began = time.monotonic()
        deadline = began + patience_s
        shown, before = time.monotonic(), sum(w.completed for w in self.states())
        while not all(until(w) for w in self.states()):
            now = time.monotonic()
            if not self._alive():
                said = self._printed() or "it said nothing"
                raise failure(f"a load worker ended: {said}")
            if now > deadline:
                raise BenchError(f"waited {patience_s:g} s for {what}")
            if now - shown > 0.2:
                completed = sum(w.completed for w in self.states())
                opened = sum(w.open for w in self.states())
                rate = (completed - before) / (now - shown)
                self._progress(f"{opened:,} connections, {rate:,.0f} requests/s")
                shown, before = now, completed
            rest_s = began + at_least_s - now
            time.sleep(min(rest_s, RUNNING_POLL_S) if rest_s > 0 else POLL_S)

    def _carry_out(
        self, patience_s: float, what: str, op: int, at_least_s: float = 0.0, **fields: Any
    ) -> dict[str, Any]:
        number = self._page.command(op, **fields)
        self._wait(lambda w: w.done == number, patience_s, what, at_least_s)
        reports = [
            json.loads(self._page.result_path(i).read_text()) for i in range(self.client.workers)
        ]
        return merge(reports)

    def open(self, connections: int, patience_s: float = 120.0) -> dict[str, Any]:
        """Holds so many connections, of all workers together (never fewer than before)."""
        each = min(self._each, -(-connections // self.client.workers))
        made = self._carry_out(patience_s, "connections to open", _OPEN, connections=each)
        if not made["ok"]:
            raise failure(str(made["first_error"]))
        return made

    def load(self, patience_s: float = 300.0) -> dict[str, Any]:
        """memcached: stores all items."""
        made = self._carry_out(patience_s, "the items to be stored", _LOAD)
        if not made["ok"]:
            raise failure(f"storing items: {made['first_error']}")
        return made

    def run(self, plan: RunPlan) -> dict[str, Any]:
        """One measurement; the merged report, whose "ok" may be false."""
        workers = self.client.workers
        made = self._carry_out(
            plan.seconds + plan.warmup_s + 60,
            "a measurement to end",
            _RUN,
            at_least_s=plan.seconds + plan.warmup_s,
            start_ns=time.monotonic_ns() + LEAD_NS,
            warmup_ns=int(plan.warmup_s * 1e9),
            measure_ns=int(plan.seconds * 1e9),
            rate=plan.rate / workers,
            probe_rate=plan.probe_rate,
            window=-(-plan.window // workers),
        )
        made["offered"] = plan.rate
        return made


def _latency(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    merged = Histogram()
    for report in reports:
        merged.add(Histogram.from_buckets(report["histogram"]))
    return merged.as_dict()


def _group(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    p99s = [p99 for report in reports for p99 in report["slice_p99_us"]]
    return {
        "completed": sum(r["completed"] for r in reports),
        "per_second": sum(r["per_second"] for r in reports),
        "late": sum(r["late"] for r in reports),
        "latency": _latency(reports),
        "slice_p99_us": statistics.median(p99s) if p99s else None,
    }


def merge(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Several workers' reports of one command as one."""
    first = reports[0]
    seconds = max(r["seconds"] for r in reports)
    made: dict[str, Any] = {
        "mode": first["mode"],
        "target": first["target"],
        "workers": len(reports),
        "seconds": seconds,
        **_group(reports),
    }
    for key in ("connections", "open", "opened", "bytes", "verified_bytes", "port_waits"):
        made[key] = sum(r[key] for r in reports)
    for key in ("get_hits", "get_misses", "sets"):
        if key in first:
            made[key] = sum(r[key] for r in reports)
    made["bytes_per_second"] = made["bytes"] / seconds if seconds else 0.0
    made["client_cpu"] = [r["cpu_seconds"] / r["seconds"] if r["seconds"] else 0 for r in reports]
    if "probes" in first:
        made["probes"] = _group([r["probes"] for r in reports])
    made["errors"] = {k: sum(r["errors"][k] for r in reports) for k in first["errors"]}
    made["ok"] = all(r["ok"] for r in reports)
    made["first_error"] = next((r["first_error"] for r in reports if r["first_error"]), None)
    return made
