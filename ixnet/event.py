"""Events and buffered connections in libevent's terms, on the shards of a worker.

An echo server::

    base = EventBase()

    def on_read(bev: BufferEvent) -> None:
        bev.output.add_buffer(bev.input)

    def on_accept(listener: Listener, bev: BufferEvent) -> None:
        bev.setcb(on_read)
        bev.enable(EV_READ)

    Listener(base, ("", 7), on_accept)
    base.dispatch()

The names are libevent's (``event_base``, ``evconnlistener``, ``bufferevent``, ``evbuffer``) as
classes. What lies between the dataplane and a callback is done in C (native/evloop.h): Python runs
for callbacks, not for packets, and received bytes that are moved to an output buffer are sent
from where they lie. One base serves all shards of a worker, in turn, and belongs to the thread that
runs it; nothing here may be called from another thread.

A callback that raises does not end the loop: see `EventBase.on_error`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from ixnet._core import ffi, lib
from ixnet.address import ip_text, listen_ip, listen_port, pack_ip
from ixnet.congestion import congestion_number, pacing_number
from ixnet.control.errors import from_errno
from ixnet.evbuffer import (
    EVBUFFER_EOL_ANY,
    EVBUFFER_EOL_CRLF,
    EVBUFFER_EOL_CRLF_STRICT,
    EVBUFFER_EOL_LF,
    EVBUFFER_EOL_NUL,
    Buffer,
    BytesLike,
    refuse,
)

__all__ = [
    "BEV_EVENT_CONNECTED",
    "BEV_EVENT_EOF",
    "BEV_EVENT_ERROR",
    "BEV_EVENT_READING",
    "BEV_EVENT_TIMEOUT",
    "BEV_EVENT_WRITING",
    "EVBUFFER_EOL_ANY",
    "EVBUFFER_EOL_CRLF",
    "EVBUFFER_EOL_CRLF_STRICT",
    "EVBUFFER_EOL_LF",
    "EVBUFFER_EOL_NUL",
    "EVLOOP_NONBLOCK",
    "EVLOOP_NO_EXIT_ON_EMPTY",
    "EVLOOP_ONCE",
    "EV_PERSIST",
    "EV_READ",
    "EV_WRITE",
    "Buffer",
    "BufferEvent",
    "Event",
    "EventBase",
    "Listener",
]

EV_READ: Final = 0x02
EV_WRITE: Final = 0x04
EV_PERSIST: Final = 0x10

EVLOOP_ONCE: Final = 0x01
EVLOOP_NONBLOCK: Final = 0x02
EVLOOP_NO_EXIT_ON_EMPTY: Final = 0x04

BEV_EVENT_READING: Final = 0x01
BEV_EVENT_WRITING: Final = 0x02
BEV_EVENT_EOF: Final = 0x10
BEV_EVENT_ERROR: Final = 0x20
BEV_EVENT_TIMEOUT: Final = 0x40
BEV_EVENT_CONNECTED: Final = 0x80

Address = tuple[str, int]
DataCallback = Callable[["BufferEvent"], object]
EventCallback = Callable[["BufferEvent", int], object]
AcceptCallback = Callable[["Listener", "BufferEvent"], object]
ErrorCallback = Callable[["BufferEvent | None", Exception], object]
_Due = tuple[Callable[[Iterator[Any]], None], Iterator[Any], "_Part | None"]

# A turn comes back to Python at least this often, so that signal handlers run.
_SLICE_NS: Final = 50_000_000
_WHY_BYTES: Final = 512
_MORE: Final[int] = 1 << 32
_READS: Final[int] = _MORE - 1
_CONNECTED: Final[int] = 0xFFFFFFFF
_FLUSH, _DROP, _ABORT = 0, 1, 2

# As globals, these cost one dictionary look-up less for each use.
_add: Any = lib.ix_evbuffer_add
_unpack: Any = ffi.unpack
_from_buffer: Any = ffi.from_buffer


def _ignore(*_: object) -> None:
    """A callback that is not set."""


def _close_at_end(bev: BufferEvent, events: int) -> None:
    """What happens without an event callback: the end of the connection closes the bufferevent."""
    if not events & BEV_EVENT_CONNECTED:
        bev.close()


class BufferEvent:
    """A connection with an `input` and an `output` buffer.

    Without arguments but the base it is not connected: see `connect`. One that is made in a
    connection's callback is on the same shard, so that what one receives the other sends without a
    copy; others are on the base's shards in turn. What is added to output is
    sent when the callback has returned. EV_WRITE is enabled from the start, EV_READ is not: until
    then nothing that arrives is shown.

    The base holds it until it is closed. Close it when an event callback says EOF or ERROR; without
    event callback that is done for you.
    """

    __slots__ = (
        "__weakref__", "_c", "_eventcb", "_part", "_readcb", "_writecb", "ctx", "index", "input",
        "output",
    )  # fmt: skip

    def __init__(self, base: EventBase) -> None:
        part = base._near() or base._in_turn()
        c = lib.ix_evloop_bev(part.loop)
        if not c:
            raise MemoryError
        self._attach(part, c, c.index)

    def _attach(self, part: _Part, c: Any, index: int) -> None:
        self._part = part
        self._c = c
        self.index = index
        self.input = Buffer._of(part.base, lib.ix_bev_input(c))
        self.output = Buffer._of(part.base, lib.ix_bev_output(c))
        self._readcb: DataCallback = _ignore
        self._writecb: DataCallback = _ignore
        self._eventcb: EventCallback = _close_at_end
        self.ctx: Any = None  # yours
        table = part.table
        if index >= len(table):
            table.extend([part.base._nobody] * (index + 1 - len(table)))
        table[index] = self

    def setcb(
        self,
        readcb: DataCallback | None = None,
        writecb: DataCallback | None = None,
        eventcb: EventCallback | None = None,
    ) -> None:
        """Sets the callbacks; None: none.

        readcb(bev): there is new input, at least the low watermark of EV_READ.
        writecb(bev): the dataplane took output, and its low watermark or less is left.
        eventcb(bev, events): BEV_EVENT_* bits. CONNECTED; or EOF, ERROR (see `error`) or TIMEOUT,
        with READING or WRITING.
        """
        wants = (EV_READ if readcb else 0) | (EV_WRITE if writecb else 0)
        self._check(lib.ix_bev_want(self._c, wants))
        self._readcb = readcb or _ignore
        self._writecb = writecb or _ignore
        self._eventcb = eventcb or _close_at_end

    @staticmethod
    def _check(code: int) -> None:
        if code < 0:
            refuse(code)

    def enable(self, events: int) -> None:
        """Turns EV_READ and/or EV_WRITE on. Errors: BrokenPipeError (closed)."""
        if code := lib.ix_bev_enable(self._c, events):
            refuse(code)

    def disable(self, events: int) -> None:
        """Turns EV_READ and/or EV_WRITE off: nothing new is shown in input, or sent from output."""
        self._check(lib.ix_bev_disable(self._c, events))

    def write(self, data: BytesLike) -> None:
        """Appends a copy of data to output. Errors: BrokenPipeError (closed), MemoryError."""
        if type(data) is not bytes:
            data = _from_buffer(data)
        if code := _add(self.output._c, data, len(data)):
            refuse(code)

    def read(self, n: int | None = None) -> bytes:
        """Takes at most n bytes (None: all) out of input; b"" if there are none."""
        return self.input.remove(n)

    def connect(self, address: Address) -> None:
        """Opens a connection to (IP address, port); eventcb hears CONNECTED or ERROR.

        Errors: ValueError (no address), OSError EISCONN (in use already).
        """
        ip, port = address
        family, packed = pack_ip(ip)
        if not 0 < port < 65536:
            raise ValueError(f"{port} is not a port")
        self._check(lib.ix_bev_connect(self._c, family, packed, port))

    def setwatermark(self, events: int, low: int = 0, high: int = 0) -> None:
        """EV_READ: readcb from low input bytes on, and input takes no more than high (0: no limit);
        more stays in the dataplane's window. EV_WRITE: writecb when output has fallen to low bytes.
        Errors: ValueError for marks that can't be, such as a low one that input never reaches.
        """
        if not (0 <= low < 1 << 32 and 0 <= high < 1 << 32):
            raise ValueError(f"marks of {low} and {high} bytes can't be")
        if events & EV_READ and 0 < high < low:
            raise ValueError(f"input that stops at {high} bytes never has {low}")
        self._check(lib.ix_bev_set_watermark(self._c, events, low, high))

    def set_timeouts(self, read: float | None = None, write: float | None = None) -> None:
        """Event TIMEOUT, and the direction disabled, after so many seconds in which nothing was
        received with EV_READ enabled, or nothing that was sent acknowledged. None: never.
        """
        code = lib.ix_bev_set_timeouts(self._c, _nanoseconds(read or 0), _nanoseconds(write or 0))
        self._check(code)

    def set_nodelay(self, on: bool) -> None:
        """Off: small segments are held while others are in flight (RFC 9293 3.7.4). On at first."""
        self._check(lib.ix_bev_option(self._c, lib.IX_OPT_NODELAY, on))

    def set_keepalive(self, seconds: float, interval: float = 0, probes: int = 0) -> None:
        """Probes the peer after so long without a sign of it (RFC 9293 3.8.4); 0: never.

        interval: seconds between probes; 0: 75, but not more than `seconds`. probes: how many go
        unanswered before the connection ends with ETIMEDOUT; 0: 9.
        """
        every = _nanoseconds(interval)
        self._check(lib.ix_bev_option(self._c, lib.IX_OPT_KEEPALIVE_INTERVAL_NS, every))
        self._check(lib.ix_bev_option(self._c, lib.IX_OPT_KEEPALIVE_PROBES, probes))
        self._check(lib.ix_bev_option(self._c, lib.IX_OPT_KEEPALIVE_NS, _nanoseconds(seconds)))

    def set_linger(self, seconds: float) -> None:
        """After close() what the peer hasn't acknowledged in so long is given up by a reset; 0: as
        long as retransmissions take. abort() is a linger of no time.
        """
        self._check(lib.ix_bev_option(self._c, lib.IX_OPT_LINGER_NS, _nanoseconds(seconds)))

    def set_buffers(self, receive: int | None = None, send: int | None = None) -> None:
        """Fixes the receive window, and how much may be sent and not yet acknowledged, in bytes;
        they no longer grow with use. None: left as it is. Errors: IxError below 536, above 1 GiB.
        """
        for option, size in ((lib.IX_OPT_RCVBUF, receive), (lib.IX_OPT_SNDBUF, send)):
            if size is not None:
                if not 536 <= size <= 1 << 30:
                    raise from_errno(-errno.EINVAL, f"set a buffer of {size} bytes")
                self._check(lib.ix_bev_option(self._c, option, size))

    def set_user_timeout(self, seconds: float) -> None:
        """Aborts when data stays unacknowledged for so long (RFC 9293 3.8.3); 0: the default."""
        self._check(lib.ix_bev_option(self._c, lib.IX_OPT_USER_TIMEOUT_NS, _nanoseconds(seconds)))

    def set_congestion(self, name: str) -> None:
        """Congestion control of what is sent: "cubic", "newreno" or "dctcp" (which asks for ECN
        if it is set before connect()). Errors: ValueError.
        """
        self._check(lib.ix_bev_option(self._c, lib.IX_OPT_CONGESTION, congestion_number(name)))

    def set_pacing(self, pacing: bool | int) -> None:
        """Spreads what is sent over the round trip: True by window and round-trip time, a number at
        most so many bytes a second too; False or 0: as the window lets it go. Errors: ValueError.
        """
        self._check(lib.ix_bev_option(self._c, lib.IX_OPT_PACING, pacing_number(pacing)))

    def trigger(self, events: int) -> None:
        """Makes readcb (EV_READ) and/or writecb (EV_WRITE) run in the next turn."""
        self._check(lib.ix_bev_trigger(self._c, events))

    def shutdown(self) -> None:
        """Ends the outgoing direction once output is delivered; reading goes on."""
        self._check(lib.ix_bev_shutdown(self._c))

    def close(self) -> None:
        """Delivers what is in output, ends the connection, and gives this object up: input and
        output are empty from now on, and no callback runs. Closing twice does nothing.
        """
        self._end(_FLUSH)

    def free(self) -> None:
        """As close, but drops output that the dataplane has not taken yet (bufferevent_free)."""
        self._end(_DROP)

    def abort(self) -> None:
        """As close, but resets the connection at once."""
        self._end(_ABORT)

    def _end(self, how: int) -> None:
        c = self._c
        if not c:
            return
        part = self._part
        self._c = ffi.NULL
        self.input._c = self.output._c = part.closed
        self._readcb = self._writecb = self._eventcb = _ignore
        part.table[self.index] = part.base._nobody
        lib.ix_bev_close(c, how)

    @property
    def closed(self) -> bool:
        """Whether close, free or abort was called."""
        return not self._c

    @property
    def error(self) -> int:
        """The errno that ended the connection, after event ERROR; 0 before, and once closed."""
        return self._c.error if self._c else 0

    def getpeername(self) -> Address:
        """The peer's (address, port). Errors: OSError ENOTCONN."""
        return self._address("peer")

    def getsockname(self) -> Address:
        """The own (address, port). Errors: OSError ENOTCONN."""
        return self._address("local")

    def _address(self, which: str) -> Address:
        c = self._c
        if not c or not c.family:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        return ip_text(getattr(c, which), c.family), getattr(c, which + "_port")

    def __repr__(self) -> str:
        return f"<BufferEvent {self.index}{' closed' if self.closed else ''}>"


class Listener:
    """Takes connections to a TCP address (evconnlistener)."""

    __slots__ = ("_base", "_callback", "_id", "_ip", "address")

    def __init__(
        self,
        base: EventBase,
        address: Address,
        callback: AcceptCallback,
        backlog: int = 0,
        congestion: str | None = None,
        connections: int = 0,
        v6only: bool = False,
        pacing: bool | int | None = None,
    ) -> None:
        """Claims the address for the instance and listens on it in the base's shards.

        address: (IP address, port). "" or "::" is every local address, of IPv6 alone with v6only;
        "0.0.0.0" every one of IPv4.
        callback(listener, bev): a peer has connected; give bev callbacks and enable(EV_READ) it.
        Closing or aborting bev there refuses the peer. backlog: how many may wait; 0: 1,024.
        congestion: of its connections, as in BufferEvent.set_congestion(); None: the instance's.
        connections: how many a shard may have at a time; 0: any number. pacing: of its connections,
        as in BufferEvent.set_pacing(); None: the instance's.
        Errors: PortTaken and others of ixnet.control.errors, with the reason.
        """
        options = [
            ("congestion", lib.IX_OPT_CONGESTION, congestion_number(congestion) or None),
            ("connections", lib.IX_OPT_CONNECTIONS, connections or None),
            ("pacing", lib.IX_OPT_PACING, None if pacing is None else pacing_number(pacing)),
        ]
        self._base = base
        self._callback = callback
        self.address = address
        self._id = base._next_id()
        self._ip = listen_ip(address[0], v6only)
        listen_port(address[1])
        begun: list[_Part] = []
        try:
            for part in base._parts:
                self._listen(part.app, backlog)
                begun.append(part)
                self._set(part.app, options)
        except BaseException:
            self._unlisten(begun)
            raise
        base._listeners[self._id] = self

    def _listen(self, app: Any, backlog: int) -> None:
        why = ffi.new("char[]", _WHY_BYTES)
        ip, port = self._ip, self.address[1]
        cookie = lib.IX_EVLOOP_LISTENER | self._id
        code = self._base._listen(app, ip, port, cookie, backlog, why, _WHY_BYTES)
        if code < 0:
            text, _, cure = ffi.string(why).decode(errors="replace").partition(" (cure: ")
            what = f"listen on port {port}" + (f": {text}" if text else "")
            raise from_errno(code, what, cure.removesuffix(")"))

    def _set(self, app: Any, options: Iterable[tuple[str, int, int | None]]) -> None:
        for name, option, value in options:
            if value is None:
                continue
            if not 0 <= value < 1 << 64:
                raise ValueError(f"{name}={value} is out of range")
            code = lib.ix_app_listen_option(app, self._ip, self.address[1], option, value)
            if code < 0:
                raise from_errno(code, f"listen on port {self.address[1]} with {name}={value}")

    def _unlisten(self, parts: Iterable[_Part]) -> None:
        for part in parts:
            lib.ix_app_unlisten(part.app, self._ip, self.address[1])

    def close(self) -> None:
        """Ends listening; connections stay. Closing twice does nothing."""
        if self._base._listeners.pop(self._id, None):
            self._unlisten(self._base._parts)


def _nanoseconds(seconds: float) -> int:
    if seconds < 0:
        raise ValueError("a time can't be negative")
    return int(seconds * 1e9)


class Event:
    """A timer: runs callback(event) some time after `add`; with EV_PERSIST again and again."""

    __slots__ = ("_base", "_c", "_callback", "_interval_ns", "_persist")

    def __init__(self, base: EventBase, callback: Callable[[Event], object], what: int = 0) -> None:
        self._base = base
        self._callback = callback
        self._persist = bool(what & EV_PERSIST)
        self._interval_ns = 0
        self._c = ffi.new("struct ix_evtimer *", {"id": base._next_id()})

    def add(self, seconds: float) -> None:
        """Arms it to run out in so many seconds, anew if it is armed. Errors: ValueError."""
        self._interval_ns = _nanoseconds(seconds)
        self._arm()

    def _arm(self) -> None:
        if lib.ix_evloop_timer_set(self._base._loop, self._c, self._interval_ns):
            raise MemoryError
        self._base._timers[self._c.id] = self

    def delete(self) -> None:
        """Disarms it; nothing happens if it isn't armed."""
        lib.ix_evloop_timer_cancel(self._base._loop, self._c)
        self._base._timers.pop(self._c.id, None)

    @property
    def pending(self) -> bool:
        """Whether it is armed."""
        return self._c.id in self._base._timers

    def _ran_out(self) -> None:
        if self._persist:
            self._arm()
        self._callback(self)


class _Part:
    """What a base has of one shard: `struct ix_app *`, its `struct ix_evloop *`, and the
    bufferevents on it by their numbers."""

    __slots__ = ("app", "base", "closed", "loop", "table")

    def __init__(self, base: EventBase, app: Any) -> None:
        if not app.io.arena_frames:
            raise ValueError("the shard has no send arena: give it arena_frames")
        loop = lib.ix_evloop_new(app)
        if not loop:
            raise MemoryError
        self.base = base
        self.app = app
        self.loop = ffi.gc(loop, lib.ix_evloop_free)
        self.closed = ffi.addressof(self.loop, "closed")
        self.table: list[BufferEvent] = []

    def collect(self, add: Callable[[_Due], None]) -> None:
        """Puts what a turn found due into the order in which it runs."""
        loop = self.loop
        if n := loop.early_count:
            add((self._run_early, _pairs(_unpack(loop.early, 2 * n)), self))
        if n := loop.read_count:
            add((self.run_reads, iter(_unpack(loop.read, n)), self))
        if n := loop.write_count:
            add((self._run_writes, iter(_unpack(loop.write, n)), self))
        if n := loop.late_count:
            add((self._run_late, _pairs(_unpack(loop.late, 2 * n)), self))
        if n := loop.timers_due_count:
            add((self.base._run_timers, iter(_unpack(loop.timers_due, n)), None))

    def run_reads(self, due: Iterator[int]) -> None:
        """Runs read callbacks."""
        table = self.table
        for index in due:
            bev = table[index]
            try:
                bev._readcb(bev)
            except Exception as error:
                self.base._failed(bev, error)

    def _run_writes(self, due: Iterator[int]) -> None:
        table = self.table
        for index in due:
            bev = table[index]
            try:
                bev._writecb(bev)
            except Exception as error:
                self.base._failed(bev, error)

    def _run_early(self, due: Iterator[tuple[int, int]]) -> None:
        for index, listener_id in due:
            if listener_id == _CONNECTED:
                self._tell(index, BEV_EVENT_CONNECTED)
            else:
                self._accept(index, listener_id)

    def _run_late(self, due: Iterator[tuple[int, int]]) -> None:
        for index, events in due:
            self._tell(index, events)

    def _tell(self, index: int, events: int) -> None:
        bev = self.table[index]
        try:
            bev._eventcb(bev, events)
        except Exception as error:
            self.base._failed(bev, error)

    def _accept(self, index: int, listener_id: int) -> None:
        bev = BufferEvent.__new__(BufferEvent)
        bev._attach(self, lib.ix_evloop_at(self.loop, index), index)
        listener = self.base._listeners.get(listener_id)
        if listener is None:
            bev.abort()
            return
        try:
            listener._callback(listener, bev)
        except Exception as error:
            self.base._failed(bev, error)


class EventBase:
    """The loop over a worker's shards."""

    def __init__(self, app: Any = None) -> None:
        """app: the `struct ix_app *` to run on, or several of one worker; None: all of this
        worker's. A shard has one loop.

        Errors: NotInWorker (the program was not started by `ixnet run`), ValueError (a shard has
        no send arena).
        """
        if app is None:
            from ixnet.runtime import current_apps

            app = current_apps()
        apps = app if isinstance(app, (list, tuple)) else (app,)
        self._parts = [_Part(self, one) for one in apps]
        self._loop, self._table = self._parts[0].loop, self._parts[0].table
        for part in self._parts[1:]:
            lib.ix_evloop_chain(self._loop, part.loop)
        self._listen: Callable[..., int] = lib.ix_app_listen
        self._nobody = BufferEvent.__new__(BufferEvent)
        self._nobody._c = ffi.NULL
        self._nobody._readcb = self._nobody._writecb = self._nobody._eventcb = _ignore
        self._listeners: dict[int, Listener] = {}
        self._timers: dict[int, Event] = {}
        self._ids = 0
        # What is due and has not run: (who runs them, an iterator over them, of which shard).
        self._due: deque[_Due] = deque()
        self._turns = 0  # whose is the next connection that is near to no shard
        self._leave = False  # at once
        self._exit = False  # when all that is due has run
        self._running = False
        self.on_error: ErrorCallback = self._report

    def _next_id(self) -> int:
        self._ids = self._ids % (_CONNECTED - 1) + 1
        return self._ids

    def _near(self) -> _Part | None:
        """The shard whose connection's callback runs; None: none does."""
        return self._due[0][2] if self._due and self._running else None

    def _in_turn(self) -> _Part:
        self._turns += 1
        return self._parts[self._turns % len(self._parts) - 1]

    def dispatch(self) -> int:
        """Runs until told to stop. Returns 0, or 1 when there is nothing left to do or deliver."""
        return self.loop()

    def loop(self, flags: int = 0) -> int:
        """Runs callbacks as they become due. Returns as dispatch.

        flags: EVLOOP_ONCE: until some have run. EVLOOP_NONBLOCK: only what is due after one
        cycle. EVLOOP_NO_EXIT_ON_EMPTY: goes on without listener, connection or timer.
        """
        if self._running:
            raise RuntimeError("the loop is running")
        self._running = True
        self._leave = False
        loop, queue, turn = self._loop, self._due, lib.ix_evloop_turn
        first = self._parts[0]
        wait = 0 if flags & EVLOOP_NONBLOCK else _SLICE_NS
        try:
            while True:
                if queue:
                    self._run(queue)
                    if self._leave or flags & (EVLOOP_ONCE | EVLOOP_NONBLOCK):
                        return 0
                if self._exit:
                    return 0
                if not (
                    self._listeners or flags & EVLOOP_NO_EXIT_ON_EMPTY or lib.ix_evloop_active(loop)
                ):
                    return 1
                due = turn(loop, wait)
                if 0 < due < _MORE:
                    queue.append((first.run_reads, iter(_unpack(loop.read, due)), first))
                elif due > 0:
                    for part in self._parts:
                        part.collect(queue.append)
                elif due < 0 or flags & EVLOOP_NONBLOCK:
                    return 0
        finally:
            self._running = self._exit = False

    def _run(self, queue: deque[_Due]) -> None:
        """Runs what is due; loopbreak() leaves the rest for the next loop()."""
        while queue and not self._leave:
            run, iterator, _ = queue[0]
            run(iterator)
            if queue[0][1] is iterator:
                queue.popleft()

    def _run_timers(self, due: Iterator[int]) -> None:
        for timer_id in due:
            event = self._timers.get(timer_id)
            # Deleted, or added anew, since it ran out?
            if event is None or event._c.place:
                continue
            del self._timers[timer_id]
            try:
                event._ran_out()
            except Exception as error:
                self._failed(None, error)

    def _failed(self, bev: BufferEvent | None, error: Exception) -> None:
        """A callback raised: says so, and resets its connection, whose state nobody knows now."""
        if bev is not None:
            bev.abort()
        self.on_error(bev, error)

    @staticmethod
    def _report(bev: BufferEvent | None, error: Exception) -> None:
        """on_error(bev, error): hears of an exception that a callback raised. bev, already aborted,
        is None for a timer. Set your own; this one prints the traceback. What it raises leaves
        dispatch(). Exceptions that are no Exception (KeyboardInterrupt) leave dispatch() at once.
        """
        who = f"callback of {bev!r}" if bev is not None else "timer"
        with contextlib.suppress(OSError):
            sys.stderr.write(f"ixnet.event: {who} raised:\n")
            traceback.print_exception(error, file=sys.stderr)

    def timer(
        self, seconds: float, callback: Callable[[Event], object], persist: bool = False
    ) -> Event:
        """An Event that runs out in so many seconds; persist: then every so many seconds."""
        event = Event(self, callback, EV_PERSIST if persist else 0)
        event.add(seconds)
        return event

    def loopbreak(self) -> None:
        """Leaves dispatch() when the callback that runs has returned; what else is due stays so."""
        self._leave = True
        if self._due:
            # The loop that runs ends for want of more; _run() sees that there is.
            run, iterator, part = self._due[0]
            self._due[0] = (run, iter(list(iterator)), part)

    def loopexit(self, seconds: float = 0.0) -> None:
        """Leaves dispatch() in so many seconds, when all callbacks that are due have run."""
        if seconds:
            self.timer(seconds, lambda _: self.loopexit())
        else:
            self._exit = True

    @property
    def now(self) -> float:
        """The loop's clock, seconds."""
        return lib.ix_evloop_now(self._loop) / 1e9  # type: ignore[no-any-return]


def _pairs(flat: Iterable[int]) -> Iterator[tuple[int, int]]:
    numbers = iter(flat)
    return zip(numbers, numbers, strict=True)
