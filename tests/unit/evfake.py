"""The fake dataplane (tests/native/fake_dataplane.h) and a loop on it; the test plays the peers."""

from __future__ import annotations

from typing import Any

from tests.unit.san import ffi, lib

LISTENER = 1
READ, WRITE = lib.IX_BEV_READ, lib.IX_BEV_WRITE
ALL = 2**64 - 1
CALLS = {
    "CONNECT": lib.IX_CALL_CONNECT,
    "ACCEPT": lib.IX_CALL_ACCEPT,
    "REJECT": lib.IX_CALL_REJECT,
    "SENDV": lib.IX_CALL_SENDV,
    "RECV_DONE": lib.IX_CALL_RECV_DONE,
    "CLOSE": lib.IX_CALL_CLOSE,
    "ABORT": lib.IX_CALL_ABORT,
}


class Fake:
    """A fake dataplane. Its clock moves a microsecond with each look at it."""

    def __init__(
        self, frames: int = 128, arena: int = 16, calls: int = 64, events: int = 64
    ) -> None:
        self.c = ffi.gc(lib.ix_fake_new(frames, arena, calls, events), lib.ix_fake_free)
        self.app = lib.ix_fake_app(self.c)

    # ---- the peers

    def knock(self, listener: int = LISTENER) -> int:
        conn: int = lib.ix_fake_knock(self.c, lib.IX_EVLOOP_LISTENER | listener)
        assert conn >= 0
        return conn

    def send(self, conn: int, data: bytes, frame_bytes: int = 1448) -> None:
        assert lib.ix_fake_send(self.c, conn, data, len(data), frame_bytes) == len(data)

    def fin(self, conn: int) -> None:
        lib.ix_fake_fin(self.c, conn)

    def ack(self, conn: int, size: int = ALL) -> int:
        return int(lib.ix_fake_ack(self.c, conn, size))

    def die(self, conn: int, status: int = 0) -> None:
        lib.ix_fake_die(self.c, conn, status)

    def connected(self, port: int, status: int = 0) -> int:
        conn: int = lib.ix_fake_find_connect(self.c, port)
        assert conn >= 0, "nobody connects there"
        lib.ix_fake_connected(self.c, conn, status)
        return conn

    # ---- what is seen of the user

    def got(self, conn: int) -> bytes:
        """What the peer was sent."""
        c = self.c.conns[conn]
        return bytes(ffi.buffer(c.got, c.got_bytes)) if c.got else b""

    def fins(self, conn: int) -> int:
        """1: closed for writing, 2: CLOSE was called."""
        return int(self.c.conns[conn].fins)

    def called(self, name: str) -> int:
        """How often a call was made."""
        return int(self.c.calls[CALLS[name]])

    def lent_bytes(self, conn: int) -> int:
        return int(self.c.conns[conn].lent_bytes)

    def advance(self, seconds: float) -> None:
        self.c.now_ns += int(seconds * 1e9)

    def check(self) -> None:
        assert not self.c.violation, ffi.string(self.c.violation)


class Loop:
    """A loop on a fake dataplane, driven through its C functions."""

    def __init__(self, **fake: int) -> None:
        self.fake = Fake(**fake)
        self.c = lib.ix_evloop_new(self.fake.app)
        self.early: list[tuple[int, int]] = []
        self.read: list[int] = []
        self.write: list[int] = []
        self.late: list[tuple[int, int]] = []
        self.timers: list[int] = []

    def turn(self, times: int = 1) -> int:
        """Runs turns of one cycle each; what was due in the last stands in the lists."""
        due = 0
        for _ in range(times):
            due = lib.ix_evloop_turn(self.c, 0)
            if due < 0:
                return due
            c = self.c
            self.early = self._pairs(c.early, c.early_count)
            self.read = ffi.unpack(c.read, c.read_count) if c.read_count else []
            self.write = ffi.unpack(c.write, c.write_count) if c.write_count else []
            self.late = self._pairs(c.late, c.late_count)
            self.timers = ffi.unpack(c.timers_due, c.timers_due_count) if c.timers_due_count else []
            self.check()
        return int(due)

    @staticmethod
    def _pairs(flat: Any, count: int) -> list[tuple[int, int]]:
        return [(flat[2 * i], flat[2 * i + 1]) for i in range(count)]

    def accept(self, enable: int = READ | WRITE, want: int = READ | WRITE) -> tuple[int, Any]:
        """A peer connects and is taken: its number, and the bufferevent."""
        conn = self.fake.knock()
        self.turn()
        ((index, listener),) = self.early
        assert listener == LISTENER
        bev = lib.ix_evloop_at(self.c, index)
        lib.ix_bev_enable(bev, enable)
        lib.ix_bev_want(bev, want)
        self.turn()
        return conn, bev

    def close(self, bev: Any, how: int = lib.IX_BEV_FLUSH) -> None:
        assert lib.ix_bev_close(bev, how) == 0

    def check(self) -> None:
        self.fake.check()
        wrong = lib.ix_evloop_check(self.c)
        assert not wrong, ffi.string(wrong)

    def end(self) -> None:
        """Everything must be back: frames, arena, records."""
        self.turn(3)
        c, pool = self.c, self.c.pool
        assert (c.bev_count, c.attached) == (0, 0)
        assert lib.ix_fake_frames_lent(self.fake.c) == 0
        assert pool.arena_free_count == self.fake.c.io.arena_frames
        assert (pool.extents_used, pool.heap_bytes, pool.lent_bytes) == (0, 0, 0)
        lib.ix_evloop_free(c)


def text(b: Any) -> bytes:
    """The content of a buffer."""
    return ffi.unpack(lib.ix_evbuffer_pullup(b, -1), b.bytes) if b.bytes else b""


def pattern(size: int, start: int = 0) -> bytes:
    """Bytes that tell where they belong."""
    return bytes((start + i) * 37 % 251 for i in range(size))
