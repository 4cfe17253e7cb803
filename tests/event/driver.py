"""Two event bases, each on a shard of its own, a wire between the shards, and one virtual clock:
the part of it that is the same wherever the shards lie.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

MS = 1_000_000
POOL, ARENA = 1024, 128
ADDRESS = ("10.0.0.1", "10.0.0.2")
WIRE_DELAY_NS = 20_000


def packed(ip: str) -> list[int]:
    """An address's bytes."""
    return [int(part) for part in ip.split(".")]


def shard_config(i: int, seed: int, now_ns: int, more: dict[str, int]) -> dict[str, Any]:
    """Fields of end i's struct ix_config."""
    return {
        "now_ns": now_ns,
        "secret": [seed * 100 + 10 * i + k for k in range(8)],
        "max_flows": 256,
        "pool_frames": POOL,
        "arena_frames": ARENA,
        "port_lo": 40000,
        "port_hi": 49999,
        "all_port_lo": 40000,
        "all_port_hi": 49999,
        "mac": [2, 0, 0, 0, 0, 1 + i],
        "sg_inplace": 1,
        "time_wait_ms": 10,
    } | more


class Driver:
    """Turns both ends. A subclass makes them, and reaches them: event, lib and ffi are the modules
    that they are made with."""

    event: Any
    lib: Any
    ffi: Any

    def __init__(self) -> None:
        self.now_ns = 1000 * MS
        self.app: list[Any] = []
        self.base: list[Any] = []  # of each end
        self.bases: list[Any] = []  # those that there are
        self.parts: list[Any] = []  # what they have of each shard

    def start(self) -> None:
        """Once both ends stand, with an app each."""
        for i in range(2):
            self.tell(i, self.lib.IX_CTL_ADDR_ADD, ip=ADDRESS[i])
            self.tell(i, self.lib.IX_CTL_ROUTE_SET, ip="10.0.0.0", prefix=24)
            mac = [2, 0, 0, 0, 0, 2 - i]
            self.tell(i, self.lib.IX_CTL_NEIGH_SET, ip=ADDRESS[1 - i], mac=mac)
        self._use([self.event.EventBase(app) for app in self.app])
        self.base = self.bases

    def join(self) -> None:
        """Makes it one base on both shards, before anything else."""
        self._use([self.event.EventBase(self.app)])
        self.base = self.bases * 2

    def _use(self, bases: list[Any]) -> None:
        self.bases = bases
        self.parts = [part for base in bases for part in base._parts]
        for base in bases:
            base.on_error = self._raise
        self.turn()

    @staticmethod
    def _raise(_: Any, error: Exception) -> None:
        raise error

    # ---- for the subclass

    def advance(self) -> None:
        """The wire's time is now_ns."""
        raise NotImplementedError

    def next_ns(self) -> int:
        """When wire or shards do something next."""
        raise NotImplementedError

    def tell(self, i: int, kind: int, ip: str, **fields: Any) -> None:
        """A message of the control plane to shard i."""
        raise NotImplementedError

    def check_core(self) -> None:
        """The invariants of shards and wire."""
        raise NotImplementedError

    # ---- for tests

    def turn(self, times: int = 1, step_ns: int = 5000) -> None:
        """Runs both ends once, `step_ns` later."""
        for _ in range(times):
            self.now_ns += step_ns
            self.advance()
            for base in self.bases:
                base.loop(self.event.EVLOOP_NONBLOCK | self.event.EVLOOP_NO_EXIT_ON_EMPTY)

    def turn_until(self, done: Callable[[], bool], seconds: float = 60.0) -> None:
        """Turns until something is so; steps over time in which nothing would happen."""
        end_ns = self.now_ns + int(seconds * 1e9)
        while not done():
            assert self.now_ns < end_ns, "it takes too long"
            self.turn()
            if not any(part.loop.pool.changed_head for part in self.parts):
                self._skip_idle_time()

    def _skip_idle_time(self) -> None:
        timers = [self.ffi.addressof(part.loop, "timers") for part in self.parts]
        due = min(self.next_ns(), *(self.lib.ix_evtimers_next(t) for t in timers))
        if self.now_ns < due < 2**63:
            self.now_ns = due

    def check(self) -> None:
        """The invariants of both ends and the wire."""
        self.check_core()
        for part in self.parts:
            wrong = self.lib.ix_evloop_check(part.loop)
            assert not wrong, self.ffi.string(wrong)

    def _stats(self, i: int) -> Any:
        return self.app[i].ops.stats(self.app[i])

    def end(self) -> None:
        """Closes everything; all frames must come back."""
        for part in self.parts:
            for bev in list(part.table):
                bev.abort()
        self.turn_until(lambda: not any(part.loop.bev_count for part in self.parts))
        self.turn_until(lambda: not any(self._stats(i).flows for i in range(2)))
        self.turn(4)
        self.check()
        for i, part in enumerate(self.parts):
            pool = part.loop.pool
            assert self._stats(i).frames_app == 0
            assert (pool.lent_bytes, pool.heap_bytes) == (0, 0)
            assert pool.arena_free_count == ARENA
