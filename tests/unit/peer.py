"""One shard on a simulated wire against a scripted peer, in virtual time.

    stack = Stack(listen=80)             # a shard, its wire and its application's side
    peer = Peer(stack)                   # a host at the wire's other end, one TCP connection of it
    handle = peer.connect()              # SYN, SYN-ACK, ACK, KNOCK, ACCEPT
    peer.send("PA", b"hello")            # from here on by hand: flags, payload, seq, ack, options
    stack.expect("RECV", data=b"hello")  # the next event
    peer.expect_nothing()                # no frame: the ACK is delayed
    stack.sleep(ms=40)
    peer.expect("A", ack=5)              # the next frame that the shard sent

Sequence numbers are relative: 0 is the first byte of payload, the SYN is -1, in both directions.
Flags are letters: S, A, F, R, P, U, E (ECE), C (CWR); P is compared only where it is asked for.
What the shard sends is parsed here, in plain Python, and its checksums are verified. After every
cycle the invariants of shard and wire are checked, and that the shard treated its frames as AF_XDP
wants.
"""

from __future__ import annotations

import random
import socket
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from tests.unit.packets import ipv4_csum, pseudo_bytes, with_csum, words_sum
from tests.unit.san import ffi, lib
from tests.unit.simwire import FRAME_BYTES, Wire, aligned

LOCAL, REMOTE, ROUTER = "10.0.0.1", "10.0.0.2", "10.0.0.254"
LOCAL_MAC = bytes.fromhex("02000000aa01")
REMOTE_MAC = bytes.fromhex("02000000bb02")
MSS = 1460
MS = 1_000_000
TICK_NS = 1 << lib.IX_WHEEL_TICK_SHIFT
START_NS = 5_000_000_000_000
FLAGS = "FSRPAUEC"  # bit 0 first; E: ECE, C: CWR
EVENTS = {
    getattr(lib, f"IX_EV_{name}"): name
    for name in ["KNOCK", "CONNECTED", "RECV", "SENT", "DEAD", "UDP_RECV", "UDP_SENT", "TIMER"]
}
STATES = [
    "CLOSED",
    "SYN_SENT",
    "SYN_RCVD",
    "ESTABLISHED",
    "FIN_WAIT_1",
    "FIN_WAIT_2",
    "CLOSE_WAIT",
    "CLOSING",
    "LAST_ACK",
    "TIME_WAIT",
]
COUNTERS = [ffi.string(lib.ix_counter_name(i)).decode() for i in range(lib.IX_COUNTER_COUNT)]

EPERM, ENOENT, EAGAIN, EINVAL, ENOSPC, EPIPE, EMSGSIZE = 1, 2, 11, 22, 28, 32, 90
EADDRINUSE, EADDRNOTAVAIL, ENETDOWN, ENETUNREACH, ECONNABORTED = 98, 99, 100, 101, 103
ECONNRESET, ENOBUFS, ENOTCONN, ETIMEDOUT, ECONNREFUSED, EHOSTUNREACH = 104, 105, 107, 110, 111, 113


def ip_bytes(dotted: str) -> bytes:
    return socket.inet_aton(dotted)


def bits(letters: str) -> int:
    """Flags as a number."""
    return sum(1 << FLAGS.index(letter) for letter in letters)


def signed(number: int) -> int:
    """A difference of sequence numbers."""
    return (number & 0xFFFFFFFF) - ((number & 0x80000000) << 1)


_STREAM = random.Random(1).randbytes(1 << 20)


def stream(start: int, size: int) -> bytes:
    """Bytes `start` to `start + size` of the stream that the tests send."""
    return _STREAM[start : start + size]


def pages(size: int) -> Any:
    """Zeroed memory at a page."""
    raw = ffi.new("uint8_t[]", size + 4096)
    skip = -int(ffi.cast("uintptr_t", raw)) % 4096
    return ffi.gc(ffi.cast("uint8_t *", raw + skip), lambda _, keep=raw: None)


def struct_at_line(name: str, **fields: Any) -> Any:
    """A new `struct name *` at a cache line, which C's alignment of some structs asks for."""
    memory = aligned(ffi.sizeof(f"struct {name}"))
    pointer = ffi.gc(ffi.cast(f"struct {name} *", memory), lambda _, keep=memory: None)
    for key, value in fields.items():
        setattr(pointer, key, value)
    return pointer


# ---- frames ---------------------------------------------------------------------------


def ethernet(
    payload: bytes, *, dst: bytes = LOCAL_MAC, src: bytes = REMOTE_MAC, kind: int = 0x0800
) -> bytes:
    """A frame, padded to Ethernet's least length."""
    return (dst + src + kind.to_bytes(2, "big") + payload).ljust(60, b"\0")


def ipv4(payload: bytes, proto: int, src: str = REMOTE, dst: str = LOCAL, tos: int = 0) -> bytes:
    head = bytes([0x45, tos]) + (20 + len(payload)).to_bytes(2, "big") + b"\x12\x34\x40\0"
    return ipv4_csum(head + bytes([64, proto, 0, 0]) + ip_bytes(src) + ip_bytes(dst)) + payload


def tcp_options(
    *,
    mss: int | None = None,
    wscale: int | None = None,
    sack_ok: bool = False,
    ts: tuple[int, int] | None = None,
    sack: Iterable[tuple[int, int]] = (),
) -> bytes:
    """Options, padded; numbers as they go on the wire."""
    out = b""
    if mss is not None:
        out += b"\x02\x04" + mss.to_bytes(2, "big")
    if wscale is not None:
        out += b"\x01\x03\x03" + bytes([wscale])
    if sack_ok:
        out += b"\x01\x01\x04\x02"
    if ts is not None:
        out += b"\x01\x01\x08\x0a" + b"".join((t & 0xFFFFFFFF).to_bytes(4, "big") for t in ts)
    blocks = [(n & 0xFFFFFFFF).to_bytes(4, "big") for pair in sack for n in pair]
    if blocks:
        out += b"\x01\x01\x05" + bytes([2 + 4 * len(blocks)]) + b"".join(blocks)
    return out


def tcp_segment(
    ports: tuple[int, int],
    seq: int,
    ack: int,
    flags: int,
    window: int,
    options: bytes = b"",
    payload: bytes = b"",
    *,
    src: str = REMOTE,
    dst: str = LOCAL,
) -> bytes:
    """A segment with raw numbers and the right checksum."""
    header = b"".join(port.to_bytes(2, "big") for port in ports)
    header += (seq & 0xFFFFFFFF).to_bytes(4, "big") + (ack & 0xFFFFFFFF).to_bytes(4, "big")
    header += bytes([(20 + len(options)) // 4 << 4, flags]) + window.to_bytes(2, "big") + bytes(4)
    return with_csum(header + options + payload, 16, 6, src, dst)


def udp_datagram(
    ports: tuple[int, int], payload: bytes, *, src: str = REMOTE, dst: str = LOCAL
) -> bytes:
    header = b"".join(port.to_bytes(2, "big") for port in ports)
    data = header + (8 + len(payload)).to_bytes(2, "big") + b"\0\0" + payload
    return with_csum(data, 6, 17, src, dst)


def icmp_message(kind: int, code: int, rest: int, data: bytes) -> bytes:
    """An ICMP message with the right checksum; `rest` is the word after it."""
    message = bytes([kind, code, 0, 0]) + rest.to_bytes(4, "big") + data
    value = words_sum(message) ^ 0xFFFF
    return message[:2] + value.to_bytes(2, "little") + message[4:]


def icmp_error(quoted: bytes, *, kind: int = 3, code: int = 3, rest: int = 0) -> bytes:
    """An ICMP error that quotes the IP header and 8 bytes of a frame."""
    return icmp_message(kind, code, rest, quoted[14 : 14 + 28])


@dataclass(frozen=True)
class Packet:
    """An IPv4 packet that the shard sent."""

    frame: bytes
    proto: int
    src: str
    dst: str
    ttl: int
    l4: bytes
    tos: int = 0

    @classmethod
    def parse(cls, frame: bytes) -> Packet:
        assert frame[6:12] == LOCAL_MAC
        assert frame[12:14] == b"\x08\x00" and frame[14] == 0x45
        total = int.from_bytes(frame[16:18], "big")
        assert len(frame) == 14 + total, "the frame has a tail"
        assert frame[20:22] == b"\x40\0", "don't fragment"
        assert words_sum(frame[14:34]) == 0xFFFF, "IPv4 checksum"
        src, dst = socket.inet_ntoa(frame[26:30]), socket.inet_ntoa(frame[30:34])
        return cls(frame, frame[23], src, dst, frame[22], frame[34:], frame[15])


@dataclass(frozen=True)
class Segment:
    """A TCP segment that the shard sent; seq, ack and sack as the Peer that parsed it counts."""

    frame: bytes
    to_mac: bytes
    flags: str
    seq: int
    ack: int
    window: int
    payload: bytes
    mss: int | None = None
    wscale: int | None = None
    sack_ok: bool = False
    ts: tuple[int, int] | None = None
    sack: tuple[tuple[int, int], ...] = ()
    ecn: int = 0  # the IP header's field

    @property
    def end(self) -> int:
        return self.seq + len(self.payload) + ("S" in self.flags) + ("F" in self.flags)


def parse_options(options: bytes) -> dict[str, Any]:
    found: dict[str, Any] = {}
    while options and options[0] != 0:
        if options[0] == 1:
            options = options[1:]
            continue
        kind, size = options[0], options[1]
        value, options = options[2:size], options[size:]
        numbers = [int.from_bytes(value[i : i + 4], "big") for i in range(0, len(value), 4)]
        if kind == 2:
            found["mss"] = int.from_bytes(value, "big")
        elif kind == 3:
            found["wscale"] = value[0]
        elif kind == 4:
            found["sack_ok"] = True
        elif kind == 5:
            found["sack"] = tuple(zip(numbers[::2], numbers[1::2], strict=True))
        elif kind == 8:
            found["ts"] = (numbers[0], numbers[1])
        else:
            raise AssertionError(f"option {kind}")
    return found


# ---- the shard's side -----------------------------------------------------------------


@dataclass(frozen=True)
class Event:
    """An event as it was at the end of its cycle, payload read."""

    type: str
    handle: int
    cookie: int
    bytes: int
    status: int
    window: int
    frame: int
    offset: int
    data: bytes
    peer: tuple[str, int]
    local: tuple[str, int]
    family: int

    @property
    def addr(self) -> int:
        return self.frame * FRAME_BYTES + self.offset


class Stack:
    """A shard with one address, a default route on link and REMOTE as neighbour."""

    def __init__(
        self,
        *,
        listen: int | None = None,
        cookie: int = 77,
        backlog: int = 0,
        address: str | None = LOCAL,
        route: bool = True,
        neighbour: bool = True,
        pool: int = 1024,
        arena: int = 64,
        ring: int = 512,
        now_ns: int = START_NS,
        secret: int = 1,
        **config: Any,
    ) -> None:
        self.now_ns = now_ns
        self.wire = Wire(1, now_ns=now_ns, frames=pool + arena, wire_frames=1024, ring=ring)
        self.wire.fill(1)
        self.pool, self.arena = pool, arena
        self.cfg = ffi.new(
            "struct ix_config *",
            {
                "now_ns": now_ns,
                "secret": [secret * 1000 + i for i in range(8)],
                "max_flows": 16,
                "max_events": 64,
                "max_calls": 64,
                "max_timers": 8,
                "max_extents": 256,
                "pool_frames": pool,
                "arena_frames": arena,
                "fill_target": 128,
                "port_lo": 40000,
                "port_hi": 40999,
                "all_port_lo": 40000,
                "all_port_hi": 40999,
                "mac": list(LOCAL_MAC),
                "sg_inplace": 1,
            }
            | config,
        )
        size = lib.ix_shard_bytes(self.cfg)
        assert size > 0, "the configuration is refused"
        self.memory = pages(size)
        self.shard = lib.ix_shard_create(self.memory, size, self.cfg, self.wire.link(0), ffi.NULL)
        assert self.shard != ffi.NULL
        self.io = lib.ix_shard_io(self.shard)
        self.events: deque[Event] = deque()
        self.sent: deque[bytes] = deque()  # frames that the shard sent
        self.next_arena = 0
        self.results: list[int] = []
        if address:
            self.ctl("ADDR_ADD", ip=address, value=self.cfg.own_address)
        if route:
            self.ctl("ROUTE_SET", ip="0.0.0.0")
        if neighbour:
            self.ctl("NEIGH_SET", ip=REMOTE, mac=REMOTE_MAC)
        self.poll()
        if listen:
            assert self.listen(listen, cookie=cookie, backlog=backlog) == 0

    # ---- time

    def poll(self, ms: float = 0) -> int:
        """Runs one cycle, `ms` later, and the next where an ACK was held back for what the
        application might have to say. Returns the number of events."""
        self.now_ns += int(ms * MS)
        n = self.cycle()
        if n < self.io.max_events and any(
            self.shard.tcp.flows[i].flags & lib.IX_TF_ACK_HELD for i in range(self.cfg.max_flows)
        ):
            n += self.cycle()
        return n

    def cycle(self) -> int:
        """Runs one cycle. Returns the number of events."""
        self.wire.advance(self.now_ns)
        n = lib.ix_shard_poll(self.shard, self.now_ns)
        assert n == self.io.n_events
        self.events.extend(self._event(self.io.events[i]) for i in range(n))
        self.wire.advance(self.now_ns)
        self.sent.extend(self.wire.receive(1))
        self.check()
        return int(n)

    def sleep(self, ms: float) -> None:
        """Lets time pass (and two ticks of the timing wheel), with a cycle whenever the shard wants
        one."""
        until = self.now_ns + int(ms * MS) + 2 * TICK_NS
        for _ in range(10000):
            due = self.deadline
            if due > until:
                break
            self.now_ns = max(self.now_ns + 1000, due)  # what is stuck tries again and again
            self.poll()
        else:
            raise AssertionError("the shard never comes to rest")
        self.now_ns = until
        self.poll()

    @property
    def deadline(self) -> int:
        """When the shard has to run again by itself, ns."""
        if lib.ix_sim_end_ready(ffi.addressof(self.wire.w.end[0])):
            return self.now_ns
        mine = int(lib.ix_shard_next_deadline(self.shard, self.now_ns))
        return min(mine, self.wire.next_ns)

    def settle(self, most: int = 100) -> None:
        """Cycles at the same time until nothing is left to do."""
        for _ in range(most):
            self.poll()
            if self.deadline > self.now_ns:
                return
        raise AssertionError("the shard never comes to rest")

    def check(self) -> None:
        wrong = lib.ix_shard_check(self.shard)
        assert wrong == ffi.NULL, ffi.string(wrong)
        for name in ("tx_invalid", "fill_invalid", "tx_modified", "misuse"):
            assert getattr(self.wire.end(0).counters, name) == 0, name

    # ---- frames in

    def put(self, *frames: bytes) -> None:
        """Puts frames on the wire; the next cycle finds them."""
        self.wire.send(1, *frames)

    def inject(self, *frames: bytes) -> None:
        self.put(*frames)
        self.poll()

    # ---- control plane

    def ctl(
        self,
        kind: str,
        *,
        ip: str = "0.0.0.0",
        mac: bytes = bytes(6),
        gateway: str = "0.0.0.0",
        source: str = "0.0.0.0",
        family: int = 4,
        **fields: int,
    ) -> int:
        message = ffi.new("struct ix_ctl_msg *", {"family": family} | fields)
        message.type = getattr(lib, f"IX_CTL_{kind}")
        message.mac = list(mac)
        for name, value in (("ip", ip), ("gateway", gateway), ("source", source)):
            ffi.memmove(getattr(message, name), ip_bytes(value), 4)
        return int(lib.ix_ctl_send(self.shard, message))

    def request(self) -> tuple[int, str] | None:
        """The next request to the control plane: type and address."""
        message = ffi.new("struct ix_ctl_msg *")
        if not lib.ix_ctl_recv(self.shard, message):
            return None
        return int(message.type), socket.inet_ntoa(bytes(message.ip)[:4])

    def listen(
        self, port: int, ip: str | None = None, *, cookie: int = 77, backlog: int = 0
    ) -> int:
        address = ffi.new("uint8_t[16]", ip_bytes(ip)) if ip else ffi.NULL
        return int(lib.ix_shard_listen(self.shard, address, 4, port, cookie, backlog))

    def unlisten(self, port: int, ip: str | None = None) -> int:
        address = ffi.new("uint8_t[16]", ip_bytes(ip)) if ip else ffi.NULL
        return int(lib.ix_shard_unlisten(self.shard, address, 4, port))

    # ---- application: calls

    def queue(self, op: str, **fields: Any) -> Any:
        """Puts one call into the array; the next cycle runs it. Returns the record."""
        call = self.io.calls[self.io.n_calls]
        self.io.n_calls += 1
        ffi.memmove(ffi.addressof(call), bytes(ffi.sizeof("struct ix_call")), 64)
        call.op = getattr(lib, f"IX_CALL_{op}")
        for name, value in fields.items():
            if name in ("peer", "local"):
                ffi.memmove(getattr(call, name), ip_bytes(value), 4)
            else:
                setattr(call, name, value)
        return call

    def call(self, op: str, **fields: Any) -> int:
        """Runs one call in a cycle of its own; its result."""
        call = self.queue(op, **fields)
        call.result = -9999
        self.poll()
        return int(call.result)

    def put_arena(self, data: bytes, offset: int | None = None) -> int:
        """Writes data into fresh arena frames; returns its UMEM address."""
        offset = self.io.tx_headroom if offset is None else offset
        frames = -(-(offset + len(data)) // FRAME_BYTES)
        if self.next_arena + frames > self.arena:
            self.next_arena = 0
        addr = (self.io.arena_frame + self.next_arena) * FRAME_BYTES + offset
        self.next_arena += frames
        ffi.memmove(self.io.umem + addr, data, len(data))
        return addr

    def sendv(self, handle: int, data: bytes, *, flags: int = 0, offset: int | None = None) -> int:
        addr = self.put_arena(data, offset)
        return self.call("SENDV", handle=handle, addr=addr, bytes=len(data), flags=flags)

    def done(self, event: Event, size: int | None = None) -> int:
        op = "UDP_RECV_DONE" if event.type == "UDP_RECV" else "RECV_DONE"
        size = event.bytes if size is None else size
        return self.call(op, handle=event.handle, addr=event.addr, bytes=size)

    def accept(self, handle: int, cookie: int = 5) -> int:
        return self.call("ACCEPT", handle=handle, cookie=cookie)

    def stream(self, handle: int, start: int, size: int, *, flags: int = 0) -> int:
        """SENDV of that part of the test's stream."""
        return self.sendv(handle, stream(start, size), flags=flags)

    def close(self, handle: int, *, write_only: bool = False) -> int:
        flags = lib.IX_CLOSE_WRITE if write_only else 0
        return self.call("CLOSE", handle=handle, flags=flags)

    def option(self, handle: int, name: str, value: int) -> int:
        number = getattr(lib, f"IX_OPT_{name}")
        return self.call("OPTION", handle=handle, bytes=number, value=value)

    def connect_call(self, port: int = 80, **fields: Any) -> Any:
        """CONNECT to REMOTE in a cycle of its own; the record with result and handle."""
        fields = {"family": 4, "peer": REMOTE, "peer_port": port, "cookie": 5} | fields
        call = self.queue("CONNECT", **fields)
        self.poll()
        return call

    # ---- application: events

    def _event(self, e: Any) -> Event:
        kind = EVENTS[e.type]
        lent = kind in ("RECV", "UDP_RECV") and e.bytes
        at = e.frame * FRAME_BYTES + e.offset
        return Event(
            type=kind,
            handle=int(e.handle),
            cookie=int(e.cookie),
            bytes=int(e.bytes),
            status=int(e.status) if kind in ("CONNECTED", "DEAD") else 0,
            window=int(e.window) if kind == "SENT" else 0,
            frame=int(e.frame) if kind in ("RECV", "UDP_RECV", "UDP_SENT") else 0,
            offset=int(e.offset),
            data=bytes(ffi.buffer(self.io.umem + at, e.bytes)) if lent else b"",
            peer=(socket.inet_ntoa(bytes(e.peer)[:4]), int(e.peer_port)),
            local=(socket.inet_ntoa(bytes(e.local)[:4]), int(e.local_port)),
            family=int(e.family),
        )

    def expect(self, kind: str, **want: Any) -> Event:
        """Takes the next event; it must be of this type and have these fields."""
        assert self.events, f"no event, {kind} expected"
        event = self.events.popleft()
        assert event.type == kind, event
        for name, value in want.items():
            assert getattr(event, name) == value, (name, value, event)
        return event

    def expect_no_event(self) -> None:
        assert not self.events, list(self.events)

    def received(self) -> bytes:
        """Takes all events, which must be RECV, gives the payload back; it joined."""
        out = b""
        while self.events:
            event = self.expect("RECV")
            out += event.data
            if event.bytes:
                assert self.done(event) == 0
        return out

    # ---- looking inside

    def counter(self, name: str) -> int:
        return int(lib.ix_shard_stats(self.shard).counters[COUNTERS.index(name)])

    def counters(self, *names: str) -> list[int]:
        return [self.counter(name) for name in names]

    @property
    def stats(self) -> Any:
        return lib.ix_shard_stats(self.shard)

    def info(self, handle: int) -> Any:
        info = ffi.new("struct ix_conn_info *")
        assert lib.ix_shard_conn_info(self.shard, handle, info) == 0
        return info

    def state(self, handle: int) -> str:
        """The state of a connection that the application still has."""
        return STATES[self.info(handle).state]

    def tcb(self, handle: int) -> Any:
        """The connection's TCB, whether the application still has it or not."""
        return self.shard.tcp.flows[handle & 0xFFFFFFF]

    def tcb_state(self, handle: int) -> str:
        return STATES[self.tcb(handle).state]

    def is_idle(self) -> bool:
        """No connection is left, no frame is out of the pool but for FILL, no timer is set."""
        self.poll()  # frames whose sending is over
        s = self.stats
        return bool(
            s.flows == 0
            and s.frames_rx == s.frames_app == s.frames_tx == 0
            and s.timers_armed == 0
            and self.shard.tcp.extents_used == 0
            and self.shard.tcp.recs_used == self.shard.tcp.recoveries_used == 0
        )


# ---- the peer's side ------------------------------------------------------------------


@dataclass
class Peer:
    """A host, and one TCP connection of it that does only what the test says.

    `ts`, `sack_ok`, `wscale`, `mss`: what its SYN offers. `snd_nxt` and `rcv_nxt` (relative) are
    the defaults for seq and ack; send() and expect() move them.
    """

    stack: Stack
    port: int = 80
    sport: int = 50000
    ip: str = REMOTE
    local: str = LOCAL
    mac: bytes = REMOTE_MAC
    iss: int = 0xFFFFFF00  # wraps early
    window: int = 65535
    mss: int | None = MSS
    wscale: int | None = None
    sack_ok: bool = False
    ts: bool = False
    ts_clock: int = 0xFFFFFFF0  # wraps as well
    irs: int = 0  # the shard's ISN; 0 until it is seen
    snd_nxt: int = -1
    rcv_nxt: int = -1
    handle: int = 0
    ts_seen: int = 0
    options: dict[str, Any] = field(default_factory=dict)  # of the shard's SYN

    # ---- sending

    def segment(
        self,
        flags: str,
        payload: bytes = b"",
        *,
        seq: int | None = None,
        ack: int | None = None,
        window: int | None = None,
        ecn: int = 0,
        **options: Any,
    ) -> bytes:
        """A frame of this connection. ecn: the IP header's field."""
        seq = self.snd_nxt if seq is None else seq
        ack = self.rcv_nxt if ack is None else ack
        if "S" in flags:
            options = self._syn_options() | options
        if self.ts and "ts" not in options and "R" not in flags:
            options["ts"] = (self.ts_clock, self.ts_seen if "A" in flags else 0)
        if options.get("ts", ...) is None:
            del options["ts"]
        if "sack" in options:
            options["sack"] = [(self.irs + 1 + a, self.irs + 1 + b) for a, b in options["sack"]]
        raw = tcp_segment(
            (self.sport, self.port),
            self.iss + 1 + seq,
            self.irs + 1 + ack if "A" in flags else 0,
            bits(flags),
            self.window if window is None else window,
            tcp_options(**options),
            payload,
            src=self.ip,
            dst=self.local,
        )
        return ethernet(ipv4(raw, 6, self.ip, self.local, ecn), src=self.mac)

    def _syn_options(self) -> dict[str, Any]:
        return {"mss": self.mss, "wscale": self.wscale, "sack_ok": self.sack_ok}

    def put(self, flags: str, payload: bytes = b"", **fields: Any) -> bytes:
        """Puts a segment on the wire without running the shard; returns the frame."""
        frame = self.segment(flags, payload, **fields)
        seq = fields.get("seq", self.snd_nxt)
        self.snd_nxt = max(self.snd_nxt, seq + len(payload) + ("S" in flags) + ("F" in flags))
        self.stack.put(frame)
        return frame

    def send(self, flags: str, payload: bytes = b"", **fields: Any) -> bytes:
        """Sends a segment and runs the shard once."""
        frame = self.put(flags, payload, **fields)
        self.stack.poll()
        return frame

    # ---- receiving

    def parse(self, frame: bytes) -> Segment:
        packet = Packet.parse(frame)
        assert packet.proto == 6, packet
        assert (packet.src, packet.dst) == (self.local, self.ip)
        data = packet.l4
        pseudo = pseudo_bytes(packet.src, packet.dst, 6, len(data))
        assert words_sum(pseudo + data) == 0xFFFF, "TCP checksum"
        words = [int.from_bytes(data[i : i + 2], "big") for i in range(0, 20, 2)]
        assert words[0] == self.port, "ports"
        if self.sport == 0:
            self.sport = words[1]
        assert words[1] == self.sport, "ports"
        seq, ack = words[2] << 16 | words[3], words[4] << 16 | words[5]
        flags = "".join(letter for i, letter in enumerate(FLAGS) if data[13] >> i & 1)
        if "S" in flags:
            self.irs = seq
        offset = (data[12] >> 4) * 4
        options = parse_options(data[20:offset])
        if "sack" in options:
            base = self.iss + 1
            options["sack"] = tuple(
                (signed(a - base), signed(b - base)) for a, b in options["sack"]
            )
        segment = Segment(
            frame=frame,
            to_mac=frame[:6],
            flags=flags,
            seq=signed(seq - self.irs - 1),
            ack=signed(ack - self.iss - 1) if "A" in flags else 0,
            window=words[7],
            payload=data[offset:],
            ecn=packet.tos & 3,
            **options,
        )
        if "S" in flags:
            self.options = options
        if segment.ts:
            self.ts_seen = segment.ts[0]
        if "R" not in flags and segment.seq <= self.rcv_nxt:
            self.rcv_nxt = max(self.rcv_nxt, segment.end)
        return segment

    def take(self) -> Segment:
        """The next frame that the shard sent, parsed."""
        assert self.stack.sent, "no frame was sent"
        return self.parse(self.stack.sent.popleft())

    def take_all(self) -> list[Segment]:
        out = []
        while self.stack.sent:
            out.append(self.take())
        return out

    def expect(self, flags: str, payload: bytes | None = None, **want: Any) -> Segment:
        """Takes the next segment; it must have these flags and fields. A field's value may be a
        predicate."""
        segment = self.take()
        seen = segment.flags if "P" in flags else segment.flags.replace("P", "")
        assert sorted(seen) == sorted(flags), (flags, segment)
        if payload is None and not set("SFR") & set(flags) and "P" not in flags:
            payload = b""
        if payload is not None:
            assert segment.payload == payload, segment
        for name, value in want.items():
            found = getattr(segment, name)
            good = value(found) if isinstance(value, Callable) else found == value
            assert good, (name, value, segment)
        return segment

    def expect_nothing(self) -> None:
        assert not self.stack.sent, [self.parse(frame) for frame in self.stack.sent]

    def expect_stream(self, *ranges: tuple[int, int]) -> None:
        """Takes all segments: they must be these (start, end) parts of the test's stream."""
        found = self.take_all()
        assert [(s.seq, s.seq + len(s.payload)) for s in found] == list(ranges)
        for s in found:
            assert s.payload == stream(s.seq, len(s.payload)), s

    # ---- what most tests start with

    def knock(self, rtt_ms: float = 0, **syn: Any) -> Segment:
        """SYN, SYN-ACK, ACK after rtt_ms, up to KNOCK. Returns the SYN-ACK; `handle` is set."""
        self.send("S", **syn)
        syn_ack = self.expect("SA", seq=-1, ack=0)
        if rtt_ms:
            self.stack.poll(ms=rtt_ms)
        self.send("A")
        event = self.stack.expect("KNOCK")
        self.handle = event.handle
        self.expect_nothing()
        return syn_ack

    def connect(self, cookie: int = 5, **syn: Any) -> int:
        """A connection that the shard's application accepted. Returns its handle."""
        self.knock(**syn)
        assert self.stack.accept(self.handle, cookie) == 0
        self.expect_nothing()
        self.stack.expect_no_event()
        return self.handle

    def answer(self, cookie: int = 5, **syn: Any) -> int:
        """A connection that the shard opens to this peer. Returns its handle."""
        call = self.stack.connect_call(self.port, cookie=cookie)
        assert call.result == 0
        self.sport, self.port = self.port, int(call.local_port)
        self.handle = int(call.handle)
        self.expect("S", seq=-1)
        self.send("SA", **syn)
        self.expect("A", seq=0, ack=0)
        self.stack.expect("CONNECTED", handle=self.handle, cookie=cookie, status=0)
        return self.handle

    @property
    def state(self) -> str:
        return self.stack.tcb_state(self.handle)


def opened(**options: Any) -> tuple[Stack, Peer, int]:
    """A passive connection in ESTABLISHED; rtt_ms: of its handshake. Options that Peer has are the
    peer's, others the stack's."""
    rtt_ms = options.pop("rtt_ms", 0)
    mine = {k: options.pop(k) for k in list(options) if k in Peer.__dataclass_fields__}
    stack = Stack(listen=80, **options)
    peer = Peer(stack, **mine)
    return stack, peer, peer.connect(rtt_ms=rtt_ms)
