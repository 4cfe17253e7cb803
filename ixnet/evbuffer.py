"""Byte queues in libevent's terms (evbuffer); ixnet.event gives them to connections.

The content is a chain of stretches that lie where they came from: frames that the dataplane lent,
frames of the send arena, heap memory (native/evpool.h).
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any, Final

from ixnet._core import ffi, lib

if TYPE_CHECKING:
    from ixnet.event import EventBase

EVBUFFER_EOL_ANY: Final = 0
EVBUFFER_EOL_CRLF: Final = 1
EVBUFFER_EOL_CRLF_STRICT: Final = 2
EVBUFFER_EOL_LF: Final = 3
EVBUFFER_EOL_NUL: Final = 4

BytesLike = bytes | bytearray | memoryview

_ALL: Final = (1 << 64) - 1
_IN_UMEM: Final = (lib.IX_EVEXTENT_LENT, lib.IX_EVEXTENT_ARENA)

# As globals, these cost one dictionary look-up less for each use.
_add: Any = lib.ix_evbuffer_add
_move: Any = lib.ix_evbuffer_add_buffer
_take: Any = lib.ix_evbuffer_take
_pullup: Any = lib.ix_evbuffer_pullup
_unpack: Any = ffi.unpack
_from_buffer: Any = ffi.from_buffer


def refuse(code: int) -> None:
    """Raises what a negative return of a buffer's or bufferevent's C function means."""
    if code == -errno.ENOMEM:
        raise MemoryError
    if code == -errno.EBADF:
        raise BrokenPipeError(errno.EBADF, "the bufferevent is closed")
    raise OSError(-code, os.strerror(-code))


class Buffer:
    """A queue of bytes: what was received, what is to be sent, or one of your own (`Buffer(base)`).

    Bytes that came from the dataplane stay where it put them until they are removed: holding
    them keeps the connection's receive window closed by as much. Moving them to another buffer of
    the same base copies nothing, unless the buffers are of connections on different shards.
    """

    __slots__ = ("_base", "_c")

    def __init__(self, base: EventBase) -> None:
        c = lib.ix_evbuffer_new((base._near() or base._parts[0]).loop.pool)
        if not c:
            raise MemoryError
        self._base = base
        self._c = ffi.gc(c, lib.ix_evbuffer_free)

    @classmethod
    def _of(cls, base: EventBase, c: Any) -> Buffer:
        buffer = cls.__new__(cls)
        buffer._base = base
        buffer._c = c
        return buffer

    def __len__(self) -> int:
        return self._c.bytes  # type: ignore[no-any-return]

    def __bool__(self) -> bool:
        return self._c.bytes != 0  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        return f"<Buffer of {len(self)} bytes>"

    def add(self, data: BytesLike) -> None:
        """Appends a copy of data. Errors: BrokenPipeError (bufferevent closed), MemoryError."""
        if type(data) is not bytes:
            data = _from_buffer(data)
        if code := _add(self._c, data, len(data)):
            refuse(code)

    def prepend(self, data: BytesLike) -> None:
        """Puts a copy of data in front. Errors as add."""
        view = _from_buffer(data)
        if code := lib.ix_evbuffer_prepend(self._c, view, len(view)):
            refuse(code)

    def add_buffer(self, other: Buffer) -> None:
        """Moves all of other's content to the end of this one. Errors as add."""
        if code := _move(self._c, other._c):
            refuse(code)

    def remove_buffer(self, other: Buffer, n: int) -> int:
        """Moves at most n bytes off the front to the end of other; returns how many."""
        moved: int = lib.ix_evbuffer_remove_buffer(self._c, other._c, n)
        if moved < 0:
            refuse(moved)
        return moved

    def remove(self, n: int | None = None) -> bytes:
        """Takes at most n bytes (None: all) off the front and returns them."""
        c = self._c
        size: int = c.bytes
        if n is not None and n < size:
            size = n
        if size <= 0:
            return b""
        data = _take(c, size)
        if not data:
            raise MemoryError
        return _unpack(data, size)  # type: ignore[no-any-return]

    def readinto(self, target: bytearray | memoryview) -> int:
        """Takes bytes off the front into target, as many as it holds; returns how many."""
        view = _from_buffer(target, require_writable=True)
        return lib.ix_evbuffer_remove(self._c, view, len(view))  # type: ignore[no-any-return]

    def drain(self, n: int | None = None) -> int:
        """Drops at most n bytes (None: all) off the front; returns how many."""
        return lib.ix_evbuffer_drain(  # type: ignore[no-any-return]
            self._c, _ALL if n is None else n
        )

    def copyout(self, n: int | None = None) -> bytes:
        """A copy of the first n bytes (None: all), at most all; they stay."""
        size = len(self) if n is None else min(n, len(self))
        if size <= 0:
            return b""
        data = _pullup(self._c, size)
        if not data:
            raise MemoryError
        return _unpack(data, size)  # type: ignore[no-any-return]

    def pullup(self, n: int | None = None) -> memoryview:
        """The first n bytes (None: all) as one read-only view, made contiguous if need be.

        What one received frame holds is shown where it lies: the view means these bytes until they
        are removed or moved away, or the callback returns. Errors: ValueError (fewer than n bytes).
        """
        size = len(self) if n is None else n
        if not 0 <= size <= len(self):
            raise ValueError(f"{size} bytes asked for, {len(self)} there")
        data = _pullup(self._c, size)
        if not data:
            raise MemoryError
        return self._view(self._c.head.kind if size else 0, data, size)

    def peek(self) -> list[memoryview]:
        """The content as it lies, in stretches; read-only views with the lifetime of pullup's."""
        count = lib.ix_evbuffer_peek(self._c, ffi.NULL, 0)
        vectors = ffi.new("struct ix_evvec[]", count)
        lib.ix_evbuffer_peek(self._c, vectors, count)
        views = []
        extent = self._c.head
        for vector in vectors:
            views.append(self._view(extent.kind, vector.data, vector.bytes))
            extent = extent.next
        return views

    @staticmethod
    def _view(kind: int, data: Any, size: int) -> memoryview:
        # UMEM stays mapped, so a view that is used for too long shows other bytes; heap memory
        # does not, and is copied.
        view = ffi.buffer(data, size)
        return memoryview(view if kind in _IN_UMEM else bytes(view)).toreadonly()

    def search(self, what: bytes, start: int = 0) -> int:
        """The position of what at or after start, or -1."""
        if start < 0:
            raise ValueError("start is negative")
        return lib.ix_evbuffer_search(  # type: ignore[no-any-return]
            self._c, what, len(what), start
        )

    def readln(self, style: int = EVBUFFER_EOL_CRLF) -> bytes | None:
        """Takes a line off the front and returns it without its end; None if none has ended yet.

        style: EVBUFFER_EOL_*.
        """
        end = ffi.new("uint32_t *")
        at = lib.ix_evbuffer_search_eol(self._c, style, end)
        if at < 0:
            return None
        line = self.remove(at)
        self.drain(end[0])
        return line
