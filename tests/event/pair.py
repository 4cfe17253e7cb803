"""Two shards on the simulated wire, an EventBase on each, one virtual clock.

Pair().base[0] (10.0.0.1) ==== wire ==== (10.0.0.2) Pair().base[1]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.event.sanitized import event
from tests.unit.san import ffi, lib
from tests.unit.simwire import Wire, aligned

MS = 1_000_000
POOL, ARENA = 1024, 128
ADDRESS = ("10.0.0.1", "10.0.0.2")


def _packed(ip: str) -> list[int]:
    return [int(part) for part in ip.split(".")]


class Pair:
    """The wire and its two ends; faults are set with `wire.path`."""

    def __init__(self, seed: int = 1, **config: int) -> None:
        self.now_ns = 1000 * MS
        self.wire = Wire(seed, now_ns=self.now_ns, frames=POOL + ARENA, wire_frames=4096, ring=1024)
        for direction in range(2):
            self.wire.path(direction, delay_ns=20_000)
        self._clock = ffi.callback("uint64_t(void)", lambda: self.now_ns)
        self._memory: list[Any] = []
        self.shard = [self._make_shard(i, seed, config) for i in range(2)]
        self.app = [self._make_app(i) for i in range(2)]
        self.base = [event.EventBase(app) for app in self.app]
        for base in self.base:
            base.on_error = self._raise
        self.turn()

    @staticmethod
    def _raise(_: Any, error: Exception) -> None:
        raise error

    def _make_shard(self, i: int, seed: int, config: dict[str, int]) -> Any:
        cfg = ffi.new(
            "struct ix_config *",
            {
                "now_ns": self.now_ns,
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
            }
            | config,
        )
        size = lib.ix_shard_bytes(cfg)
        assert size
        raw = aligned(size + 4096)
        memory = raw + -int(ffi.cast("uintptr_t", raw)) % 4096
        self._memory += [cfg, raw]
        shard = lib.ix_shard_create(memory, size, cfg, self.wire.link(i), ffi.NULL)
        assert shard
        self._tell(shard, lib.IX_CTL_ADDR_ADD, ip=ADDRESS[i])
        self._tell(shard, lib.IX_CTL_ROUTE_SET, ip="10.0.0.0", prefix=24)
        self._tell(shard, lib.IX_CTL_NEIGH_SET, ip=ADDRESS[1 - i], mac=[2, 0, 0, 0, 0, 2 - i])
        return shard

    @staticmethod
    def _tell(shard: Any, kind: int, ip: str, **fields: Any) -> None:
        message = {"type": kind, "family": 4, "ip": _packed(ip)} | fields
        assert lib.ix_ctl_send(shard, ffi.new("struct ix_ctl_msg *", message)) == 0

    def _make_app(self, i: int) -> Any:
        return ffi.new(
            "struct ix_app *",
            {
                "shard": self.shard[i],
                "io": lib.ix_shard_io(self.shard[i]),
                "ops": lib.ix_app_inline_ops(),
                "request_fd": -1,
                "link_fd": -1,
                "spin_ns": -1,
                "kick_fd": -1,
                "clock": self._clock,
                "stats": lib.ix_shard_stats(self.shard[i]),
            },
        )

    def turn(self, times: int = 1, step_ns: int = 5000) -> None:
        """Runs both ends once, `step_ns` later."""
        for _ in range(times):
            self.now_ns += step_ns
            lib.ix_sim_wire_advance(self.wire.w, self.now_ns)
            for base in self.base:
                base.loop(event.EVLOOP_NONBLOCK | event.EVLOOP_NO_EXIT_ON_EMPTY)

    def turn_until(self, done: Callable[[], bool], seconds: float = 60.0) -> None:
        """Turns until something is so; steps over time in which nothing would happen."""
        end_ns = self.now_ns + int(seconds * 1e9)
        while not done():
            assert self.now_ns < end_ns, "it takes too long"
            self.turn()
            if not any(base._loop.pool.changed_head for base in self.base):
                self._skip_idle_time()

    def _skip_idle_time(self) -> None:
        due = min(
            self.wire.next_ns,
            *(lib.ix_shard_next_deadline(shard, self.now_ns) for shard in self.shard),
            *(lib.ix_evtimers_next(ffi.addressof(base._loop, "timers")) for base in self.base),
        )
        if self.now_ns < due < 2**63:
            self.now_ns = due

    def check(self) -> None:
        """The invariants of both ends and the wire."""
        self.wire.check()
        for shard, base in zip(self.shard, self.base, strict=True):
            for wrong in (lib.ix_shard_check(shard), lib.ix_evloop_check(base._loop)):
                assert not wrong, ffi.string(wrong)

    def end(self) -> None:
        """Closes everything; all frames must come back."""
        for base in self.base:
            for bev in list(base._table):
                bev.abort()
        self.turn_until(lambda: not any(base._loop.bev_count for base in self.base))
        self.turn_until(lambda: not any(lib.ix_shard_stats(shard).flows for shard in self.shard))
        self.turn(4)
        self.check()
        for shard, base in zip(self.shard, self.base, strict=True):
            stats, pool = lib.ix_shard_stats(shard), base._loop.pool
            assert stats.frames_app == 0
            assert (pool.lent_bytes, pool.heap_bytes) == (0, 0)
            assert pool.arena_free_count == ARENA
