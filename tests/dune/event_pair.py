"""Two ends for the tests of tests/event: shards and wire in ring 0, the event bases in ring 3.

Making a Pair puts this process into ring 3 for good, so each test has a process of its own. The
module in ring 0 (tests/dune/pair) makes everything; its memory, in the data windows, is::

    struct pair_setup, two struct ix_config; the module's own state    ring 0 alone
    a page for arguments and texts                                     ring 3 too
    the wire; each shard but for its statistics and its arrays         ring 0 alone
    statistics (read), arrays (read, write) and UMEM (pool: read)      ring 3 too
"""

from __future__ import annotations

import os
import struct
from typing import Any

from ixnet import dune, event
from ixnet._core import ffi, lib
from tests.dune.kit import PROGRAMS
from tests.event.driver import ARENA, POOL, WIRE_DELAY_NS, Driver, packed, shard_config

PAGE = 4096
HUGE = 2 << 20
FRAME_BYTES = 2048
# pair.h
CONFIGS, STATE, STATE_BYTES, TEXT = 4096, 65536, 65536, 256
MAKE, ADVANCE, PATH, NEXT_NS, DEADLINE, TELL, CHECK = range(0x80, 0x87)
WIRE_BYTES = 24 << 20
PATH_FIELDS = (
    "delay_ns", "loss_ppm", "dup_ppm", "reorder_ppm", "reorder_hold_ns", "corrupt_ppm",
)  # fmt: skip
NEVER = 2**64 - 1


def _up(nbytes: int, unit: int) -> int:
    return -(-nbytes // unit) * unit


class Window:
    """Memory of ring 0, some of which ring 3 has as well. One memfd, whose last descriptor goes
    when this does."""

    def __init__(self, nbytes: int) -> None:
        self.place = dune.reserve(nbytes)
        self.fd = os.memfd_create("pair")
        os.ftruncate(self.fd, nbytes)
        self._map(self.place.data, nbytes, 0, lib.IX_PLACED_WRITE | lib.IX_PLACED_FILL)

    def _map(self, at: int, nbytes: int, offset: int, flags: int) -> None:
        assert lib.ix_placed_map(at, nbytes, self.fd, offset, flags) == 0

    def show(self, offset: int, *parts: tuple[int, int]) -> int:
        """Shows ring 3 parts of it, one behind the other: (bytes, flags). Returns the address."""
        at = ffi.new("uint64_t *")
        assert lib.ix_placed_reserve(sum(nbytes for nbytes, _ in parts), HUGE, at) == 0
        done = 0
        for nbytes, flags in parts:
            self._map(at[0] + done, nbytes, offset + done, flags | lib.IX_PLACED_FILL)
            done += nbytes
        return int(at[0])

    def write(self, offset: int, data: bytes) -> None:
        """Before this process is in ring 3."""
        ffi.memmove(ffi.cast("uint8_t *", self.place.data + offset), data, len(data))


class Path:
    """The wire's faults, as tests set them."""

    def __init__(self, pair: Pair) -> None:
        self._pair = pair

    def path(self, direction: int = 0, **fields: int) -> None:
        """Sets a direction's path; fields not named are 0."""
        assert not set(fields) - set(PATH_FIELDS)
        self._pair.put(struct.pack("6Q", *(fields.get(name, 0) for name in PATH_FIELDS)))
        assert dune.call(PATH, direction) == 0


class Pair(Driver):
    """The wire and its two ends; faults are set with `wire.path`."""

    event, lib, ffi = event, lib, ffi

    def __init__(self, seed: int = 1, **config: int) -> None:
        super().__init__()
        self.wire = Path(self)
        self._clock = ffi.callback("uint64_t(void)", lambda: self.now_ns)
        self._configs = [
            ffi.new(
                "struct ix_config *",
                shard_config(i, seed, self.now_ns, config | {"sg_inplace": 0}),
            )
            for i in range(2)
        ]
        self._lay_out(seed)
        image = (PROGRAMS / "pair.bin").read_bytes()
        module = dune.Module(image, context=self._window.place.data)
        dune.init(sealed=True, self_test=False, place=self._window.place, module=module)
        dune.enter_user()
        assert dune.ring() == 3
        assert dune.call(MAKE) == 0
        for direction in range(2):
            self.wire.path(direction, delay_ns=WIRE_DELAY_NS)
        self.app = [self._make_app(i) for i in range(2)]
        self.start()

    def _lay_out(self, seed: int) -> None:
        sizes = [_up(int(lib.ix_shard_bytes(config)), PAGE) for config in self._configs]
        assert all(sizes)
        page = STATE + STATE_BYTES
        wire = page + PAGE
        shards = [wire + WIRE_BYTES, wire + WIRE_BYTES + sizes[0]]
        umem_bytes = (POOL + ARENA) * FRAME_BYTES
        umem = _up(sum((shards[1], sizes[1])), HUGE)
        self._window = window = Window(umem + 2 * umem_bytes)
        data, write = window.place.data, lib.IX_PLACED_WRITE
        self._page = window.show(page, (PAGE, write))
        self._stats_at, self._io = [], []
        for i, config in enumerate(self._configs):
            exact, shared = int(lib.ix_shard_bytes(config)), int(lib.ix_shard_shared_bytes(config))
            self._stats_at.append(
                window.show(shards[i], (_up(ffi.sizeof("struct ix_stats"), PAGE), 0))
            )
            self._io.append(window.show(shards[i] + exact - shared, (shared, write)))
            config.app_io = self._io[i]
            pool = POOL * FRAME_BYTES
            at = umem + i * umem_bytes
            config.app_umem = window.show(at, (pool, 0), (umem_bytes - pool, write))
            window.write(CONFIGS + i * ffi.sizeof("struct ix_config"), bytes(ffi.buffer(config)[:]))
        exact_sizes = [int(lib.ix_shard_bytes(config)) for config in self._configs]
        words = (
            seed, self.now_ns, data + umem, data + umem + umem_bytes, umem_bytes,
            data + shards[0], data + shards[1], *exact_sizes, data + wire, WIRE_BYTES, data + page,
        )  # fmt: skip
        window.write(0, struct.pack("12Q", *words))
        os.close(window.fd)

    def _make_app(self, i: int) -> Any:
        return ffi.new(
            "struct ix_app *",
            {
                "io": ffi.cast("struct ix_io *", self._io[i]),
                "ops": lib.ix_app_gate_ops(),
                "gate_shard": i,
                "request_fd": -1,
                "link_fd": -1,
                "spin_ns": -1,
                "kick_fd": -1,
                "clock": self._clock,
                "stats": ffi.cast("struct ix_stats *", self._stats_at[i]),
            },
        )

    def put(self, data: bytes) -> None:
        """Arguments for the module."""
        ffi.memmove(ffi.cast("uint8_t *", self._page), data, len(data))

    def tell(self, i: int, kind: int, ip: str, **fields: Any) -> None:
        message = {"type": kind, "family": 4, "ip": packed(ip)} | fields
        self.put(bytes(ffi.buffer(ffi.new("struct ix_ctl_msg *", message))[:]))
        assert dune.call(TELL, i) == 0

    def advance(self) -> None:
        assert dune.call(ADVANCE, self.now_ns) == 0

    def next_ns(self) -> int:
        times = (dune.call(NEXT_NS), dune.call(DEADLINE, 0), dune.call(DEADLINE, 1))
        return min(NEVER if ns < 0 else ns for ns in times)

    def check_core(self) -> None:
        wrong = dune.call(CHECK)
        assert wrong == 0, ffi.string(ffi.cast("char *", self._page), TEXT)
