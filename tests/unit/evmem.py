"""Memory as the application sees it, for tests of buffers: a UMEM with lent frames and an arena."""

from __future__ import annotations

from typing import Any

from tests.unit.san import ffi, lib

FRAME_SHIFT = 11
FRAME_BYTES = 1 << FRAME_SHIFT
RX_OFFSET = 300
HEADROOM = 128
SEGMENT = lib.IX_EVPOOL_SEGMENT_BYTES


class Memory:
    """A pool (native/evpool.h) on its own UMEM, and who holds which lent frame."""

    def __init__(self, frames: int = 64, arena_frames: int = 8) -> None:
        self.umem = ffi.new("uint8_t[]", (frames + arena_frames) * FRAME_BYTES)
        self.io = ffi.new("struct ix_io *")
        self.io.umem = self.umem
        self.io.umem_bytes = len(self.umem)
        self.io.frame_shift = FRAME_SHIFT
        self.io.arena_frame = frames
        self.io.arena_frames = arena_frames
        self.io.tx_headroom = HEADROOM
        self.pool = lib.ix_evpool_new(self.io)
        self.free = list(range(frames))
        self.lent: dict[int, tuple[int, int]] = {}  # frame: handle, bytes
        self.buffers: list[Any] = []
        self.owners: list[Any] = []

    def lend(self, data: bytes, handle: int = 1) -> Any:
        """Puts data into a frame as the dataplane would; returns where it lies."""
        frame = self.free.pop()
        at = self.umem + frame * FRAME_BYTES + RX_OFFSET
        ffi.memmove(at, data, len(data))
        self.lent[frame] = (handle, len(data))
        return at

    def take_back(self) -> int:
        """Does what the loop does with released extents; returns how many bytes came."""
        handle, addr = ffi.new("uint64_t *"), ffi.new("uint64_t *")
        size = ffi.new("uint32_t *")
        total = 0
        while lib.ix_evpool_pop_done(self.pool, handle, addr, size):
            frame = addr[0] >> FRAME_SHIFT
            owner, left = self.lent[frame]
            assert owner == handle[0]
            assert 0 < size[0] <= left, "given back twice"
            self.lent[frame] = (owner, left - size[0])
            total += size[0]
            if left == size[0]:
                del self.lent[frame]
                self.free.append(frame)
        return total

    def owner(self) -> Any:
        """An owner of buffers, which lives as long as this."""
        self.owners.append(ffi.new("struct ix_evowner *"))
        return self.owners[-1]

    def buffer(self, owner: Any = None, sends: bool = False) -> Any:
        """A buffer, of an owner if one is given."""
        b = ffi.new("struct ix_evbuffer *")
        lib.ix_evbuffer_init(b, self.pool, owner or ffi.NULL)
        b.sends = sends
        self.buffers.append(b)
        return b

    def add_lent(self, b: Any, data: bytes, handle: int = 1) -> None:
        assert lib.ix_evbuffer_add_lent(b, self.lend(data, handle), len(data), handle) == 0

    def lent_bytes(self) -> int:
        return sum(left for _, left in self.lent.values())

    def check(self) -> None:
        """Every invariant of the pool and its buffers; what is lent is somewhere."""
        for wrong in (
            lib.ix_evpool_check(self.pool),
            *(lib.ix_evbuffer_check(b) for b in self.buffers),
        ):
            assert not wrong, ffi.string(wrong)
        assert self.pool.lent_bytes == self.lent_bytes()

    def end(self) -> None:
        """Drops everything, and checks that every frame and record is back."""
        for b in self.buffers:
            lib.ix_evbuffer_clear(b)
        lib.ix_evpool_drop_taken(self.pool)
        self.take_back()
        self.check()
        assert not self.lent
        assert self.pool.arena_free_count == self.io.arena_frames
        assert (self.pool.extents_used, self.pool.heap_bytes) == (0, 0)
        lib.ix_evpool_unref(self.pool)


def content(b: Any) -> bytes:
    """All bytes of a buffer, which keeps them."""
    out = ffi.new("uint8_t[]", b.bytes + 1)
    assert lib.ix_evbuffer_copyout(b, 0, out, b.bytes) == b.bytes
    return bytes(ffi.buffer(out, b.bytes))


def kinds(b: Any) -> list[int]:
    """The kinds of a buffer's extents."""
    found, extent = [], b.head
    while extent:
        found.append(extent.kind)
        extent = extent.next
    return found
