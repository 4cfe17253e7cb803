"""A simulated wire (link/sim_link.h) for tests, with its memory and UMEMs."""

from __future__ import annotations

from typing import Any

from tests.unit.san import ffi, lib

FRAME_SHIFT = 11
FRAME_BYTES = 1 << FRAME_SHIFT
HEADROOM = lib.IX_SIM_RX_HEADROOM
NEVER = 2**64 - 1


def aligned(size: int) -> Any:
    """Memory at a cache line; keep the result as long as it is in use."""
    raw = ffi.new("uint8_t[]", size + 64)
    skip = -int(ffi.cast("uintptr_t", raw)) % 64
    # A slice of the buffer keeps nothing alive by itself; gc() ties the two together.
    return ffi.gc(ffi.cast("uint8_t *", raw + skip), lambda _, keep=raw: None)


def frame(number: int, size: int = 60, ethertype: int = 0x0800) -> bytes:
    """A frame that can be told from others, with a valid Ethernet header."""
    head = bytes(range(12)) + ethertype.to_bytes(2, "big") + number.to_bytes(4, "big")
    return (head + bytes((number + i) & 0xFF for i in range(size)))[:size]


def number_of(data: bytes) -> int:
    """The number that frame() was given."""
    return int.from_bytes(data[14:18], "big")


class Wire:
    """Two ends and the wire between them.

    The lower half of each end's frames is for receiving, the upper half for sending.
    """

    def __init__(
        self,
        seed: int = 1,
        *,
        now_ns: int = 0,
        frames: int = 64,
        wire_frames: int = 256,
        ring: int = 64,
        headroom: int = HEADROOM,
        **rings: int,
    ) -> None:
        self.frames = frames
        self.umem = [aligned(frames * FRAME_BYTES) for _ in range(2)]
        self.setup = ffi.new("struct ix_sim_setup *")
        self.setup.seed = seed
        self.setup.now_ns = now_ns
        self.setup.wire_frames = wire_frames
        for i in range(2):
            end = self.setup.end[i]
            end.umem = self.umem[i]
            end.umem_bytes = frames * FRAME_BYTES
            end.frame_shift = FRAME_SHIFT
            end.rx_headroom = headroom
            for name in ("fill", "rx", "tx", "completion"):
                setattr(end, f"{name}_entries", rings.get(name, ring))
        self.memory = aligned(lib.ix_sim_wire_bytes(self.setup))
        self.w = ffi.new("struct ix_sim_wire *")
        assert lib.ix_sim_wire_init(self.w, self.setup, self.memory) == 0
        self.next_tx = [frames // 2, frames // 2]

    # ---- the wire

    def check(self) -> None:
        wrong = lib.ix_sim_wire_check(self.w)
        assert wrong == ffi.NULL, ffi.string(wrong)

    def path(self, direction: int = 0, *, drop: list[int] | None = None, **fields: int) -> None:
        """Sets a direction's path; fields not named are 0."""
        path = ffi.new("struct ix_sim_path *", fields)
        for i, number in enumerate(drop or []):
            path.drop[i] = number
        path.drops = len(drop or [])
        assert lib.ix_sim_wire_set_path(self.w, direction, path) == 0

    def advance(self, now_ns: int) -> None:
        lib.ix_sim_wire_advance(self.w, now_ns)
        self.check()

    @property
    def next_ns(self) -> int:
        return int(lib.ix_sim_wire_next_ns(self.w))

    def counters(self, direction: int = 0) -> Any:
        return self.w.direction[direction].counters

    def end(self, i: int) -> Any:
        return self.w.end[i]

    def link(self, i: int) -> Any:
        return ffi.addressof(self.w.end[i], "link")

    # ---- the link operations of an end

    def fill(self, i: int, chunks: list[int] | None = None) -> int:
        """Gives frames to receive into: those named, or the whole lower half."""
        chunks = list(range(self.frames // 2)) if chunks is None else chunks
        addrs = ffi.new("uint64_t[]", [c * FRAME_BYTES for c in chunks])
        return int(self.link(i).ops.fill(self.link(i), addrs, len(chunks)))

    def put(self, i: int, data: bytes, addr: int | None = None) -> int:
        """Writes a frame to the UMEM (the next send frame, or addr) and puts it on TX. Returns its
        address, or -1 if TX is full."""
        if addr is None:
            addr = self.next_tx[i] * FRAME_BYTES
            half = self.frames // 2
            self.next_tx[i] = half + (self.next_tx[i] - half + 1) % half
        ffi.memmove(self.umem[i] + addr, data, len(data))
        return addr if self.put_desc(i, addr, len(data)) else -1

    def put_desc(self, i: int, addr: int, size: int, flags: int = 0) -> int:
        desc = ffi.new("struct ix_desc[]", [{"addr": addr, "len": size, "flags": flags}])
        return int(self.link(i).ops.tx_burst(self.link(i), desc, 1))

    def wakeup(self, i: int) -> int:
        return int(self.link(i).ops.wakeup(self.link(i), lib.IX_WAKE_TX))

    def send(self, i: int, *data: bytes) -> None:
        """Puts frames on the wire at once and takes their completions as far as there are any."""
        for one in data:
            assert self.put(i, one) >= 0
            self.wakeup(i)
            self.complete(i)
        self.check()

    def complete(self, i: int, most: int = 64) -> list[int]:
        addrs = ffi.new("uint64_t[]", most)
        n = self.link(i).ops.complete(self.link(i), addrs, most)
        return list(addrs[0:n])

    def rx_descs(self, i: int, most: int = 64) -> list[tuple[int, int]]:
        descs = ffi.new("struct ix_desc[]", most)
        n = self.link(i).ops.rx_burst(self.link(i), descs, most)
        assert all(descs[k].flags == 0 for k in range(n))
        return [(int(descs[k].addr), int(descs[k].len)) for k in range(n)]

    def read(self, i: int, addr: int, size: int) -> bytes:
        return bytes(ffi.buffer(self.umem[i] + addr, size))

    def receive(self, i: int, *, refill: bool = True) -> list[bytes]:
        """Takes all that is on RX, and gives its frames back to FILL."""
        out = []
        while got := self.rx_descs(i):
            out += [self.read(i, addr, size) for addr, size in got]
            if refill:
                self.fill(i, [addr // FRAME_BYTES for addr, _ in got])
        self.check()
        return out
