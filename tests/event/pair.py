"""Two shards on the simulated wire, an EventBase on each, one virtual clock.

Pair().base[0] (10.0.0.1) ==== wire ==== (10.0.0.2) Pair().base[1]
"""

from __future__ import annotations

from typing import Any

from tests.event.driver import ARENA, POOL, WIRE_DELAY_NS, Driver, packed, shard_config
from tests.event.sanitized import event
from tests.unit.san import ffi, lib
from tests.unit.simwire import Wire, aligned


class Pair(Driver):
    """The wire and its two ends; faults are set with `wire.path`."""

    event, lib, ffi = event, lib, ffi

    def __init__(self, seed: int = 1, **config: int) -> None:
        super().__init__()
        self.wire = Wire(seed, now_ns=self.now_ns, frames=POOL + ARENA, wire_frames=4096, ring=1024)
        for direction in range(2):
            self.wire.path(direction, delay_ns=WIRE_DELAY_NS)
        self._clock = ffi.callback("uint64_t(void)", lambda: self.now_ns)
        self._memory: list[Any] = []
        self.shard = [self._make_shard(i, seed, config) for i in range(2)]
        self.app = [self._make_app(i) for i in range(2)]
        self.start()

    def _make_shard(self, i: int, seed: int, config: dict[str, int]) -> Any:
        cfg = ffi.new("struct ix_config *", shard_config(i, seed, self.now_ns, config))
        size = lib.ix_shard_bytes(cfg)
        assert size
        raw = aligned(size + 4096)
        memory = raw + -int(ffi.cast("uintptr_t", raw)) % 4096
        self._memory += [cfg, raw]
        shard = lib.ix_shard_create(memory, size, cfg, self.wire.link(i), ffi.NULL)
        assert shard
        return shard

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

    def tell(self, i: int, kind: int, ip: str, **fields: Any) -> None:
        message = {"type": kind, "family": 4, "ip": packed(ip)} | fields
        assert lib.ix_ctl_send(self.shard[i], ffi.new("struct ix_ctl_msg *", message)) == 0

    def advance(self) -> None:
        lib.ix_sim_wire_advance(self.wire.w, self.now_ns)

    def next_ns(self) -> int:
        deadlines = [lib.ix_shard_next_deadline(shard, self.now_ns) for shard in self.shard]
        return int(min(self.wire.next_ns, *deadlines))

    def check_core(self) -> None:
        self.wire.check()
        for shard in self.shard:
            wrong = lib.ix_shard_check(shard)
            assert not wrong, ffi.string(wrong)
