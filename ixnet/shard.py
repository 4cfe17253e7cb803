"""The low-level batched interface: one shard, arrays of events and calls, no object per packet.

A worker's loop asks for a batch of events, reads it column by column or record by record, writes
its answers into the array of calls, and asks again. One turn is one call into the core, which runs
with the GIL released::

    shard = Shard()
    shard.listen(7, cookie=1)
    calls = shard.calls
    while (batch := shard.poll()) is not None:
        for kind, handle, cookie, frame, offset, length in batch.columns():
            if kind == EV_KNOCK:
                calls.accept(handle, cookie=0)
            ...

Everything that a batch shows lies in memory that the core writes again in the next `poll`: copy
what must live longer. Payload is different: it is lent, and stays until `CallBatch.recv_done`.
(IX, OSDI '14, section 3; the records are those of dataplane/api/api.h.)
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ixnet._core import ffi, lib
from ixnet.address import ip_text, listen_ip, listen_port, pack_ip
from ixnet.congestion import congestion_number, pacing_number
from ixnet.control.errors import IxError, from_errno

EV_KNOCK: int = lib.IX_EV_KNOCK
EV_CONNECTED: int = lib.IX_EV_CONNECTED
EV_RECV: int = lib.IX_EV_RECV
EV_SENT: int = lib.IX_EV_SENT
EV_DEAD: int = lib.IX_EV_DEAD
EV_UDP_RECV: int = lib.IX_EV_UDP_RECV
EV_UDP_SENT: int = lib.IX_EV_UDP_SENT
EV_TIMER: int = lib.IX_EV_TIMER

OPT_NODELAY: int = lib.IX_OPT_NODELAY
OPT_KEEPALIVE_NS: int = lib.IX_OPT_KEEPALIVE_NS
OPT_USER_TIMEOUT_NS: int = lib.IX_OPT_USER_TIMEOUT_NS
OPT_RCVBUF: int = lib.IX_OPT_RCVBUF
OPT_CONGESTION: int = lib.IX_OPT_CONGESTION
OPT_SNDBUF: int = lib.IX_OPT_SNDBUF
OPT_LINGER_NS: int = lib.IX_OPT_LINGER_NS
OPT_KEEPALIVE_INTERVAL_NS: int = lib.IX_OPT_KEEPALIVE_INTERVAL_NS
OPT_KEEPALIVE_PROBES: int = lib.IX_OPT_KEEPALIVE_PROBES
OPT_CONNECTIONS: int = lib.IX_OPT_CONNECTIONS
OPT_PACING: int = lib.IX_OPT_PACING

_RECORD_BYTES = 64
_UDP_MORE: int = lib.IX_UDP_MORE
# struct ix_event: type, offset, bytes, handle, cookie, frame, peer_port, local_port.
_EVENT = struct.Struct("<BxHIQQIHH32x")
# struct ix_call with its union taken as `local`, and without addresses.
_CALL = struct.Struct("<BBHiQQ16sIHH16s")
_CALL_NO_PEER = struct.Struct("<BBHiQQQQIHH16x")
_REASON_BYTES = 320

_OP_CONNECT: int = lib.IX_CALL_CONNECT
_OP_ACCEPT: int = lib.IX_CALL_ACCEPT
_OP_REJECT: int = lib.IX_CALL_REJECT
_OP_SENDV: int = lib.IX_CALL_SENDV
_OP_RECV_DONE: int = lib.IX_CALL_RECV_DONE
_OP_CLOSE: int = lib.IX_CALL_CLOSE
_OP_ABORT: int = lib.IX_CALL_ABORT
_OP_UDP_SENDV: int = lib.IX_CALL_UDP_SENDV
_OP_UDP_RECV_DONE: int = lib.IX_CALL_UDP_RECV_DONE
_OP_TIMER_SET: int = lib.IX_CALL_TIMER_SET
_OP_OPTION: int = lib.IX_CALL_OPTION


class CallsFull(IxError, BufferError):
    """The array of calls holds no more: poll first. Nothing was added."""


class ArenaFull(IxError, BufferError):
    """Every frame of the send arena is borrowed: wait for SENT events."""


def _check_layout() -> None:
    """The formats above say where fields lie; refuses to work with a core that puts them
    elsewhere.
    """
    wanted = {
        "struct ix_event": {"offset": 2, "bytes": 4, "handle": 8, "cookie": 16, "frame": 24}
        | {"peer_port": 28, "local_port": 30, "peer": 32, "local": 48},
        "struct ix_call": {"flags": 2, "result": 4, "handle": 8, "cookie": 16, "addr": 24}
        | {"value": 32, "local": 24, "bytes": 40, "peer_port": 44, "local_port": 46, "peer": 48},
    }
    for name, fields in wanted.items():
        found = {field: ffi.offsetof(name, field) for field in fields}
        if ffi.sizeof(name) != _RECORD_BYTES or found != fields:
            raise IxError(f"{name} of ixnet._core is not the one ixnet.shard was written for")


_check_layout()


@dataclass(frozen=True)
class Event:
    """One event as an object, for when that is worth its cost; fields as in struct ix_event.

    address: UMEM offset of the payload, bytes. status: 0 or -errno. peer, local: (address, port) of
    the events that have them. more: UDP_RECV, the datagram goes on in the next event. What an event
    type does not name is 0.
    """

    type: int
    handle: int
    cookie: int
    bytes: int
    address: int
    status: int
    peer: tuple[str, int]
    local: tuple[str, int]
    more: bool = False


class EventBatch:
    """The events of one `Shard.poll`. The same object every time: valid until the next poll.

    The columns are read-only memoryviews over the records themselves (a strided view: nothing is
    copied until `.tolist()`); index i of each belongs to event i.
    """

    __slots__ = (
        "_all", "_bytes", "_cookies", "_frames", "_handles", "_offsets", "_shard", "_statuses",
        "_types", "count", "raw",
    )  # fmt: skip

    def __init__(self, shard: Shard, io: Any) -> None:
        self._shard = shard
        self.raw = io.events  # cffi struct ix_event *
        self.count = 0
        self._all = memoryview(ffi.buffer(io.events, io.max_events * _RECORD_BYTES)).toreadonly()
        words, halves = self._all.cast("I"), self._all.cast("H")
        longs = self._all.cast("Q")
        self._types = self._all[0::64]
        self._offsets = halves[1::32]
        self._bytes = words[1::16]
        self._handles = longs[1::8]
        self._cookies = longs[2::8]
        self._frames = words[6::16]
        self._statuses = self._all.cast("i")[6::16]

    def __len__(self) -> int:
        return self.count

    @property
    def types(self) -> memoryview:
        """Event types, EV_*."""
        return self._types[: self.count]

    @property
    def handles(self) -> memoryview:
        """The connection, UDP endpoint or timer of each event."""
        return self._handles[: self.count]

    @property
    def cookies(self) -> memoryview:
        """What the application gave with accept, connect, listen or timer."""
        return self._cookies[: self.count]

    @property
    def lengths(self) -> memoryview:
        """Payload bytes (RECV, UDP_*) or bytes acknowledged (SENT)."""
        return self._bytes[: self.count]

    @property
    def windows(self) -> memoryview:
        """Bytes that send() takes now, of SENT; no meaning elsewhere."""
        return self._frames[: self.count]

    @property
    def statuses(self) -> memoryview:
        """0 or -errno, of CONNECTED and DEAD; no meaning elsewhere."""
        return self._statuses[: self.count]

    def columns(self) -> Iterator[tuple[int, int, int, int, int, int]]:
        """(type, handle, cookie, frame, offset, length) of each event, in order."""
        n = self.count
        return zip(
            self._types[:n].tolist(),
            self._handles[:n].tolist(),
            self._cookies[:n].tolist(),
            self._frames[:n].tolist(),
            self._offsets[:n].tolist(),
            self._bytes[:n].tolist(),
            strict=True,
        )

    def records(self) -> Iterator[tuple[int, int, int, int, int, int, int, int]]:
        """(type, offset, length, handle, cookie, frame or status, peer port, local port) of each
        event.
        """
        return _EVENT.iter_unpack(self._all[: self.count * _RECORD_BYTES])

    def address(self, index: int) -> int:
        """Where the payload of event `index` lies: its UMEM offset, bytes."""
        return (self._frames[index] << self._shard.frame_shift) + self._offsets[index]

    def payload(self, index: int) -> memoryview:
        """The payload of event `index`, read-only and not copied; valid until its recv_done."""
        return self._shard.view(self.address(index), self._bytes[index])

    @contextmanager
    def borrow(self, index: int) -> Iterator[memoryview]:
        """The payload of a RECV or UDP_RECV event for a while: given back at the end of the `with`.

        The memoryview is released then, and using it raises ValueError. Errors: CallsFull, when the
        payload can't be given back now; it is still lent then.
        """
        shard = self._shard
        address, length = self.address(index), self._bytes[index]
        kind, handle = self._types[index], self._handles[index]
        view = shard.view(address, length)
        try:
            yield view
        finally:
            view.release()
            if length:  # an empty datagram, or the end of a stream, lends nothing
                calls = shard.calls
                give_back = calls.udp_recv_done if kind == EV_UDP_RECV else calls.recv_done
                give_back(handle, address, length)

    def more(self, index: int) -> bool:
        """Is event `index` a part of a datagram that goes on in the next event? So it is with those
        that came in fragments.
        """
        return bool(self.raw[index].type == EV_UDP_RECV and self.raw[index].family & _UDP_MORE)

    def event(self, index: int) -> Event:
        """Event `index` as an object of its own, which outlives the batch."""
        if not 0 <= index < self.count:
            raise IndexError(index)
        raw = self.raw[index]
        return Event(
            type=raw.type,
            handle=raw.handle,
            cookie=raw.cookie,
            bytes=raw.bytes,
            address=self.address(index) if raw.type not in (EV_CONNECTED, EV_DEAD) else 0,
            status=raw.status if raw.type in (EV_CONNECTED, EV_DEAD) else 0,
            peer=(ip_text(raw.peer, raw.family), raw.peer_port),
            local=(ip_text(raw.local, raw.family), raw.local_port),
            more=self.more(index),
        )


class CallBatch:
    """Calls for the next `Shard.poll`, written straight into the shared array, in order.

    Each method returns the call's index; after the poll, `results[index]` is what became of it: >=
    0, or -errno. Results stand until the first call of the next batch. All raise CallsFull when
    the array is full.
    """

    __slots__ = ("_buffer", "_handles", "_io", "_limit", "_results", "count", "done")

    def __init__(self, io: Any) -> None:
        self._io = io
        self._buffer = ffi.buffer(io.calls, io.max_calls * _RECORD_BYTES)
        view = memoryview(self._buffer)
        self._results = view.cast("i")[1::16].toreadonly()
        self._handles = view.cast("Q")[1::8].toreadonly()
        self._limit = int(io.max_calls)
        self.count = 0  # calls waiting for the next poll
        self.done = 0  # calls that the last poll ran

    @property
    def room(self) -> int:
        """How many calls fit before the next poll."""
        return self._limit - self.count

    @property
    def results(self) -> memoryview:
        """What became of each call of the last poll: >= 0, or -errno."""
        return self._results[: self.done]

    @property
    def handles(self) -> memoryview:
        """Handles of the calls of the last poll: connect and timer put theirs here."""
        return self._handles[: self.done]

    def _add(
        self, op: int, handle: int, cookie: int = 0, addr: int = 0, value: int = 0, length: int = 0,
        flags: int = 0,
    ) -> int:  # fmt: skip
        at = self.count
        if at >= self._limit:
            raise CallsFull(f"{at} calls wait already", "poll first")
        _CALL_NO_PEER.pack_into(
            self._buffer, at * 64, op, 0, flags, 0, handle, cookie, addr, value, length, 0, 0
        )
        self.count = at + 1
        return at

    def connect(
        self,
        ip: str,
        port: int,
        cookie: int = 0,
        local_ip: str | None = None,
        local_port: int = 0,
        congestion: str | None = None,
    ) -> int:
        """Opens a connection; the handle stands in `handles` after the poll, the outcome in
        CONNECTED. congestion: "cubic", "newreno" or "dctcp"; None: the instance's.
        """
        at = self.count
        if at >= self._limit:
            raise CallsFull(f"{at} calls wait already", "poll first")
        family, peer = pack_ip(ip)
        local_family, local = pack_ip(local_ip) if local_ip else (family, bytes(16))
        if local_family != family:
            raise ValueError(f"{local_ip} can't be the own address towards {ip}")
        _CALL.pack_into(
            self._buffer, at * 64, _OP_CONNECT, family, 0, 0, 0, cookie, local,
            congestion_number(congestion), port, local_port, peer,
        )  # fmt: skip
        self.count = at + 1
        return at

    def accept(self, handle: int, cookie: int = 0) -> int:
        """Takes a KNOCKed connection; `cookie` comes back with each of its events."""
        return self._add(_OP_ACCEPT, handle, cookie)

    def reject(self, handle: int) -> int:
        """Resets a KNOCKed connection."""
        return self._add(_OP_REJECT, handle)

    def send(self, handle: int, address: int, length: int, more: bool = False) -> int:
        """Appends `length` bytes at UMEM offset `address` to the stream, borrowed until SENT
        covers them.

        The result may be less than `length` under back-pressure. more: hold back a partial segment.
        """
        # _add() by hand: this and recv_done are the calls of every message.
        at = self.count
        if at >= self._limit:
            raise CallsFull(f"{at} calls wait already", "poll first")
        _CALL_NO_PEER.pack_into(
            self._buffer, at * 64, _OP_SENDV, 0, more, 0, handle, 0, address, 0, length, 0, 0
        )
        self.count = at + 1
        return at

    def recv_done(self, handle: int, address: int, length: int) -> int:
        """Gives back `length` bytes that RECV lent; the receive window opens by as much."""
        at = self.count
        if at >= self._limit:
            raise CallsFull(f"{at} calls wait already", "poll first")
        _CALL_NO_PEER.pack_into(
            self._buffer, at * 64, _OP_RECV_DONE, 0, 0, 0, handle, 0, address, 0, length, 0, 0
        )
        self.count = at + 1
        return at

    def close(self, handle: int) -> int:
        """Ends the stream in order: what was accepted is delivered, then FIN; nothing more is
        read.
        """
        return self._add(_OP_CLOSE, handle)

    def close_write(self, handle: int) -> int:
        """Ends this direction only (FIN); RECV goes on."""
        return self._add(_OP_CLOSE, handle, flags=lib.IX_CLOSE_WRITE)

    def abort(self, handle: int) -> int:
        """Resets the connection at once; DEAD follows."""
        return self._add(_OP_ABORT, handle)

    def udp_send(self, handle: int, address: int, length: int, ip: str, port: int) -> int:
        """Sends one datagram from UMEM offset `address`; its memory is free again with UDP_SENT."""
        at = self.count
        if at >= self._limit:
            raise CallsFull(f"{at} calls wait already", "poll first")
        family, peer = pack_ip(ip)
        _CALL.pack_into(
            self._buffer, at * 64, _OP_UDP_SENDV, family, 0, 0, handle, 0,
            address.to_bytes(16, "little"), length, port, 0, peer,
        )  # fmt: skip
        self.count = at + 1
        return at

    def udp_recv_done(self, handle: int, address: int, length: int) -> int:
        """Gives back the datagram of `length` bytes that lies at UMEM offset `address`."""
        return self._add(_OP_UDP_RECV_DONE, handle, addr=address, length=length)

    def timer(self, delay_ns: int, cookie: int = 0, handle: int = 0) -> int:
        """A one-shot timer in delay_ns: a new one (handle 0; see `handles`), or `handle` again."""
        return self._add(_OP_TIMER_SET, handle, cookie, value=delay_ns)

    def timer_cancel(self, handle: int) -> int:
        """Drops a timer."""
        return self._add(_OP_TIMER_SET, handle, flags=lib.IX_TIMER_CANCEL)

    def option(self, handle: int, option: int, value: int) -> int:
        """Sets a connection's option OPT_* to `value`."""
        return self._add(_OP_OPTION, handle, value=value, length=option)


class SendArena:
    """Hands out the frames of the send arena: UMEM memory that the application may write.

    One frame holds `capacity` bytes from `take()`'s address on, and is sent from where it lies.
    Give a frame back when SENT covered its bytes.
    """

    def __init__(self, io: Any, umem: memoryview) -> None:
        self._umem = umem
        shift, headroom = int(io.frame_shift), int(io.tx_headroom)
        first = int(io.arena_frame)
        self.capacity = (1 << shift) - headroom
        self._free = [((first + i) << shift) + headroom for i in range(int(io.arena_frames))]
        self._free.reverse()

    def __len__(self) -> int:
        """Frames that are free."""
        return len(self._free)

    def take(self) -> int:
        """A free frame's address (UMEM offset of its payload). Errors: ArenaFull."""
        if not self._free:
            raise ArenaFull("every frame of the send arena is borrowed", "wait for SENT events")
        return self._free.pop()

    def give(self, address: int) -> None:
        """Takes back what `take` handed out."""
        self._free.append(address)

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Copies `data` (at most `capacity` bytes) to a taken frame."""
        if len(data) > self.capacity:
            raise ValueError(f"{len(data)} bytes do not fit a frame of {self.capacity}")
        self._umem[address : address + len(data)] = data


class Shard:
    """One shard from the application's side. Belongs to one thread.

    app: the worker's `struct ix_app *`; None takes the one that `ixnet run` made for this process.
    Errors: ixnet.runtime.NotInWorker if there is none, IxError if there are several: see `shards`.
    """

    def __init__(self, app: Any = None) -> None:
        if app is None:
            from ixnet.runtime import current_app

            app = current_app()
        self.app = app
        self._io = app.io
        self.frame_shift = int(app.io.frame_shift)
        self._umem = memoryview(ffi.buffer(app.io.umem, app.io.umem_bytes))
        self._lent = self._umem.toreadonly()
        self._batch = EventBatch(self, app.io)
        self.calls = CallBatch(app.io)
        self.arena = SendArena(app.io, self._umem)

    @property
    def shard_id(self) -> int:
        """This shard's number, 0 to shard_count - 1."""
        return int(self.app.shard_id)

    @property
    def shard_count(self) -> int:
        """How many shards the instance has."""
        return int(self.app.shard_count)

    def view(self, address: int, length: int) -> memoryview:
        """`length` bytes at UMEM offset `address`, read-only; what it shows lasts as long as it is
        lent.
        """
        return self._lent[address : address + length]

    def poll(self, max_wait_ns: int = 0) -> EventBatch | None:
        """Runs the calls and one cycle; returns the events, or None when it is time to stop.

        max_wait_ns: how long it may sleep when there is nothing to do (and the instance does not
        busy-poll); 0 never sleeps. The batch is valid until the next poll.
        """
        calls = self.calls
        if calls.count:
            self._io.n_calls = calls.count
        calls.done = calls.count
        calls.count = 0
        n: int = lib.ix_app_poll(self.app, max_wait_ns)
        batch = self._batch
        if n < 0:
            batch.count = 0
            return None
        batch.count = n
        return batch

    def listen(
        self,
        port: int,
        ip: str | None = None,
        cookie: int = 0,
        backlog: int = 0,
        congestion: str | None = None,
        connections: int = 0,
        v6only: bool = False,
        pacing: bool | int | None = None,
    ) -> None:
        """Claims TCP ip:port for the instance and listens in this shard. ip: None or "::" is every
        local address, of IPv6 alone with v6only; "0.0.0.0" every one of IPv4.

        cookie: comes with each KNOCK. backlog: connections not yet accepted at most; 0: 1,024.
        congestion: of its connections, "cubic", "newreno" or "dctcp"; None: the instance's.
        connections: how many there may be at a time; 0: any number. pacing: True spreads what they
        send over the round trip, a number is a limit in bytes a second too; None: the instance's.
        Errors: PortTaken and others of ixnet.control.errors, with the reason.
        """
        options = [
            ("congestion", OPT_CONGESTION, congestion_number(congestion) or None),
            ("connections", OPT_CONNECTIONS, connections or None),
            ("pacing", OPT_PACING, None if pacing is None else pacing_number(pacing)),
        ]
        why = ffi.new("char[]", _REASON_BYTES)
        address = listen_ip(ip, v6only)
        code = lib.ix_app_listen(
            self.app, address, listen_port(port), cookie, backlog, why, _REASON_BYTES
        )
        _check(code, f"listen on port {port}", why)
        try:
            for name, option, value in options:
                if value is not None:
                    code = lib.ix_app_listen_option(self.app, address, port, option, value)
                    _check(code, f"listen on port {port} with {name}={value}")
        except BaseException:
            lib.ix_app_unlisten(self.app, address, port)
            raise

    def unlisten(self, port: int, ip: str | None = None, v6only: bool = False) -> None:
        """Ends what `listen` began; established connections stay."""
        address = listen_ip(ip, v6only)
        _check(lib.ix_app_unlisten(self.app, address, port), f"end listening on port {port}")

    def udp_bind(
        self, port: int, ip: str | None = None, cookie: int = 0, v6only: bool = False
    ) -> int:
        """Claims UDP ip:port for the instance; returns the endpoint's handle. Addresses and errors
        as with listen.
        """
        why = ffi.new("char[]", _REASON_BYTES)
        handle = ffi.new("uint64_t *")
        address = listen_ip(ip, v6only)
        code = lib.ix_app_udp_bind(
            self.app, address, listen_port(port), cookie, handle, why, _REASON_BYTES
        )
        _check(code, f"bind UDP port {port}", why)
        return int(handle[0])

    def udp_unbind(
        self, handle: int, port: int, ip: str | None = None, v6only: bool = False
    ) -> None:
        """Ends what `udp_bind` began."""
        address = listen_ip(ip, v6only)
        code = lib.ix_app_udp_unbind(self.app, handle, address, port)
        _check(code, f"release UDP port {port}")

    def connect(
        self,
        ip: str,
        port: int,
        cookie: int = 0,
        local_ip: str | None = None,
        local_port: int = 0,
        congestion: str | None = None,
    ) -> int:
        """Queues a connection for the next poll; see CallBatch.connect."""
        return self.calls.connect(ip, port, cookie, local_ip, local_port, congestion)

    def stats(self) -> dict[str, int]:
        """The shard's gauges and counters by name, as of now."""
        from ixnet.control.stats import stats_dict

        return stats_dict(self.app.ops.stats(self.app))


def shards() -> list[Shard]:
    """All shards of this worker (--workers makes it several). They are to be polled in turn: what
    `poll` may sleep, it sleeps only when none of them has anything to do.

    Errors: ixnet.runtime.NotInWorker.
    """
    from ixnet.runtime import current_apps

    return [Shard(app) for app in current_apps()]


def _check(code: int, doing: str, why: Any = None) -> None:
    """Raises for a -errno; why: the reason and cure that the control plane gave, as C text."""
    if code >= 0:
        return
    text = ffi.string(why).decode(errors="replace") if why is not None else ""
    message, _, cure = text.removesuffix(")").partition(" (cure: ")
    raise from_errno(code, f"{doing}: {message}" if message else doing, cure)
