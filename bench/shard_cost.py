"""What Python pays on ixnet.shard, without the core: ns for each event and each call.

    .venv/bin/python bench/shard_cost.py [--json]

Arrays filled by hand stand in for a shard's: 64 RECV events, as many as one batch brings. The best
of many rounds, so that another load of the machine shows less.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Callable
from typing import Any

from ixnet._core import ffi
from ixnet.shard import EV_RECV, Shard

BATCH = 64
ROUNDS, REPEATS = 30, 200


class Arrays:
    """A `struct ix_app` over arrays of its own, with a batch of RECV events in it."""

    def __init__(self) -> None:
        self._events = ffi.new("struct ix_event[]", 1024)
        self._calls = ffi.new("struct ix_call[]", 1024)
        self._umem = ffi.new("uint8_t[]", 1 << 22)
        self._io = io = ffi.new("struct ix_io *")
        io.events, io.calls, io.umem = self._events, self._calls, self._umem
        io.max_events = io.max_calls = 1024
        io.umem_bytes, io.frame_shift = 1 << 22, 11
        io.arena_frame, io.arena_frames, io.tx_headroom = 1024, 64, 128
        for i in range(BATCH):
            event = self._events[i]
            event.type, event.bytes, event.handle, event.frame = EV_RECV, 64, (i << 32) + 5, i
            event.offset = 322
        self.app: Any = ffi.new("struct ix_app *")
        self.app.io = io


def measure(work: Callable[[], object]) -> float:
    """ns for each of the BATCH things that `work` does."""
    best = float("inf")
    for _ in range(ROUNDS):
        begin = time.perf_counter_ns()
        for _ in range(REPEATS):
            work()
        best = min(best, (time.perf_counter_ns() - begin) / REPEATS / BATCH)
    return best


def main() -> None:
    arrays = Arrays()
    shard = Shard(arrays.app)
    batch, calls = shard._batch, shard.calls
    batch.count = BATCH

    def columns() -> None:
        for _kind, _handle, _cookie, _frame, _offset, _length in batch.columns():
            pass

    def records() -> None:
        for _record in batch.records():
            pass

    def send() -> None:
        calls.count = 0
        for _ in range(BATCH):
            calls.send(5, 4096, 64)

    def echo() -> None:
        calls.count = 0
        for kind, handle, _, frame, offset, length in batch.columns():
            if kind == EV_RECV:
                address = (frame << 11) + offset
                calls.send(handle, address, length)
                calls.recv_done(handle, address, length)

    def payload() -> None:
        for i in range(BATCH):
            batch.payload(i)

    def objects() -> None:
        for i in range(BATCH):
            batch.event(i)

    found = {
        "an event, columns": measure(columns),
        "an event, records": measure(records),
        "a call": measure(send),
        "an echo: an event and two calls": measure(echo),
        "a view of a payload": measure(payload),
        "an event as an object": measure(objects),
    }
    if "--json" in sys.argv[1:]:
        print(json.dumps({"python": platform.python_version(), "ns": found}, indent=2))
        return
    print(f"Python {platform.python_version()}, batches of {BATCH}")
    for what, ns in found.items():
        print(f"  {what:<34}{ns:8.0f} ns")


main()
