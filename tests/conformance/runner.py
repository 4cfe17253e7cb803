"""Runs a script against the stack behind the packetdrill interface, in virtual time."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any

from scapy.layers.inet import ICMP, IP, TCP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6PacketTooBig,
    ICMPv6ParamProblem,
    IPv6,
)
from scapy.packet import Raw

from tests.conformance.script import Call, Event, Icmp, Packet, Script, ScriptError, When
from tests.conformance.stack import Stack
from tests.conformance.syscalls import PORT, VERSIONS, Calls, payload

TOLERANCE_US = 4000  # packetdrill's default
TS_TOLERANCE_MS = 10
PEER_PORT = 40001
HANG_S = 120.0  # real time that a blocking call may take to begin or end
_CODES = {
    "net_unreachable": 0,
    "host_unreachable": 1,
    "protocol_unreachable": 2,
    "port_unreachable": 3,
    "frag_needed": 4,
}
_M32 = 0xFFFFFFFF


@dataclass
class Connection:
    """The connection under test: script numbers to live ones."""

    peer_port: int
    local_port: int
    isn: int | None = None  # ours
    peer_isn: int = 0
    timestamps: dict[int, int] = field(default_factory=dict)  # TSval in the script: live


@dataclass
class Blocking:
    """A call in a second thread."""

    event: Event
    thread: threading.Thread
    until_us: int
    error: list[BaseException] = field(default_factory=list)
    ended_us: list[int] = field(default_factory=list)


def _live_options(packet: Packet, conn: Connection) -> list[tuple[str, Any]]:
    """Inbound options, for scapy."""
    out: list[tuple[str, Any]] = []
    for text in packet.options or ():
        kind, *words = text.split()
        if kind == "mss":
            out.append(("MSS", int(words[0])))
        elif kind == "sackOK":
            out.append(("SAckOK", b""))
        elif kind == "wscale":
            out.append(("WScale", int(words[0])))
        elif kind == "nop":
            out.append(("NOP", None))
        elif kind == "eol":
            out.append(("EOL", None))
        elif kind == "TS":
            echo = int(words[3])
            out.append(("Timestamp", (int(words[1]), conn.timestamps.get(echo, echo))))
        elif kind == "sack":
            edges = [int(n) for word in words for n in word.split(":")]
            out.append(("SAck", tuple((n + (conn.isn or 0)) & _M32 for n in edges)))
        else:
            raise ScriptError(f"unknown option {text}")
    return out


def _script_options(tcp: Any, wanted: tuple[str, ...], conn: Connection) -> tuple[str, ...]:
    """Outbound options as a script writes them; notes live timestamps under the script's."""
    out = []
    for (kind, value), want in zip(tcp.options, [*wanted, *[""] * 40], strict=False):
        if kind == "Timestamp":
            name = want.split()
            if name[:1] == ["TS"]:
                out.append(f"TS val {_shown_tsval(int(name[2]), value[0], conn)} ecr {value[1]}")
            else:
                out.append(f"TS val {value[0]} ecr {value[1]}")
        elif kind == "SAck":
            pairs = zip(value[::2], value[1::2], strict=True)
            edges = (f"{a - conn.peer_isn & _M32}:{b - conn.peer_isn & _M32}" for a, b in pairs)
            out.append("sack " + " ".join(edges))
        else:
            names = {"MSS": f"mss {value}", "SAckOK": "sackOK", "WScale": f"wscale {value}"}
            out.append(names.get(kind, kind.lower()))
    return tuple(out)


def _shown_tsval(name: int, live: int, conn: Connection) -> str:
    """A TSval as the script has it. Ours are milliseconds, so the first gives the others' distance;
    they may be off by as much as times may."""
    if not conn.timestamps:
        conn.timestamps[name] = live
    first, first_live = next(iter(conn.timestamps.items()))
    off = (live - first_live - (name - first)) & _M32
    if min(off, 2**32 - off) > TS_TOLERANCE_MS:
        return str((live - first_live + first) & _M32)
    conn.timestamps[name] = live
    return str(name)


class Runner:
    """One run of one script."""

    def __init__(self, script: Script, flags: str = "", version: str = "ipv4") -> None:
        self.script = script
        self.version = VERSIONS[version]
        self.stack = Stack(",".join(filter(None, [self.version.flags, script.flags, flags])))
        self.calls = Calls(self.stack, self.version)
        self.conn: Connection | None = None
        self.listening = False
        self.connecting = False
        self.blocking: list[Blocking] = []
        self.start_us = self.stack.now_us()
        self.before_us = self.start_us
        self.last_sent: dict[int, Any] = {}  # by script sequence number, for ICMP errors

    def run(self) -> None:
        """Runs all events. Raises ScriptError."""
        for event in self.script.events:
            try:
                self._event(event)
                self.stack.check()
            except ScriptError as error:
                where = f"{self.script.path.name}:{event.line}"
                raise ScriptError(f"{where}: {error}\n    {event.text}") from None
        self._join(all_of_them=True)

    # ---- time

    def _span(self, when: When) -> tuple[int, int]:
        base = self.before_us if when.relative else self.start_us
        return base + when.start, base + (when.start if when.end is None else when.end)

    def _event(self, event: Event) -> None:
        start, end = self._span(event.when)
        outbound = isinstance(event.what, Packet) and not event.what.inbound
        if outbound:
            assert isinstance(event.what, Packet)
            self._expect(event.what, event.when, start, end)
            return
        while (now := self.stack.now_us()) < start:
            self.stack.sleep_us(start - now)
        self.before_us = max(start, self.before_us)
        self._join(all_of_them=False)
        if isinstance(event.what, Call):
            self._call(event, event.what, start)
        elif isinstance(event.what, Icmp):
            self._send_icmp(event.what)
        else:
            self._send(event.what)

    # ---- system calls

    def _call(self, event: Event, call: Call, start: int) -> None:
        self.listening |= call.name == "listen"
        if call.name == "connect":
            self.connecting = True
        if call.block_until is None:
            self.calls.run(call)
            return
        until = start + call.block_until.start
        if not call.block_until.relative:
            until = self.start_us + call.block_until.start
        sleepers = self.stack.sleepers()
        blocking = Blocking(event, threading.Thread(), until)

        def body() -> None:
            try:
                self.calls.run(call)
            except BaseException as error:
                blocking.error.append(error)
            blocking.ended_us.append(self.stack.now_us())

        blocking.thread = threading.Thread(target=body, daemon=True)
        blocking.thread.start()
        deadline = time.monotonic() + HANG_S
        while blocking.thread.is_alive() and self.stack.sleepers() == sleepers:
            if time.monotonic() > deadline:
                raise ScriptError("the call neither waits nor ends")
            time.sleep(0.0002)
        self.blocking.append(blocking)

    def _join(self, all_of_them: bool) -> None:
        """Looks at blocking calls that have ended; at the end of the script at all."""
        left = []
        for blocking in self.blocking:
            if all_of_them and (now := self.stack.now_us()) < blocking.until_us:
                self.stack.sleep_us(blocking.until_us - now + TOLERANCE_US)
            if all_of_them or self.stack.sleepers() == 0:
                blocking.thread.join(HANG_S)
            if blocking.thread.is_alive():
                if all_of_them:
                    raise ScriptError(f"still waits at the end: {blocking.event.text}")
                left.append(blocking)
                continue
            if blocking.error:
                raise ScriptError(f"{blocking.event.text}: {blocking.error[0]}")
            late = blocking.ended_us[0] - blocking.until_us
            if abs(late) > TOLERANCE_US:
                raise ScriptError(f"{blocking.event.text}: ended {late} us late")
        self.blocking = left

    # ---- packets

    def _segment(self, packet: Packet) -> bytes:
        conn = self.conn
        if conn is None:
            conn = self.conn = Connection(PEER_PORT, PORT, None, packet.seq)
        ack = 0 if packet.ack is None else packet.ack + (conn.isn or 0)
        tcp = TCP(
            sport=conn.peer_port,
            dport=conn.local_port,
            seq=packet.seq & _M32,
            ack=ack & _M32,
            flags=packet.flags.replace(".", "A").replace("W", "C"),
            window=packet.window or 0,
            options=_live_options(packet, conn),
        )
        whole = self._to_us() / tcp
        return bytes(whole / Raw(payload(packet.payload)) if packet.payload else whole)

    def _send(self, packet: Packet) -> None:
        self.stack.put(self._segment(packet))

    def _send_icmp(self, icmp: Icmp) -> None:
        quoted = self.last_sent.get(icmp.seq)
        if quoted is None:
            raise ScriptError("no such segment was sent")
        if self.version.packets == 6:
            self.stack.put(bytes(self._to_us() / _icmp6(icmp) / Raw(bytes(quoted)[: 40 + 8])))
            return
        error = ICMP(type=3, code=_CODES[icmp.code], nexthopmtu=icmp.mtu)
        quote = bytes(quoted)[: 20 + 8]
        self.stack.put(bytes(self._to_us() / error / Raw(quote)))

    def _to_us(self) -> Any:
        header = IP if self.version.packets == 4 else IPv6
        return header(src=self.version.remote, dst=self.version.local)

    def _next(self) -> tuple[int, Any]:
        got = self.stack.take()
        if got is None:
            raise ScriptError("no packet leaves any more")
        header = IP if self.version.packets == 4 else IPv6
        when, packet = got[0], header(got[1])
        if TCP not in packet:
            raise ScriptError(f"not a TCP segment: {packet.summary()}")
        checksum = packet[TCP].chksum
        del packet[TCP].chksum
        packet = header(bytes(packet))
        if packet[TCP].chksum != checksum:
            raise ScriptError("a wrong TCP checksum")
        return when, packet

    def _learn(self, packet: Packet, tcp: Any) -> Connection:
        """Our ISN, and for connect() the ports."""
        if self.connecting and packet.flags in ("S", "SE", "SEW", "SEC") and not self.listening:
            self.connecting = False
            self.conn = Connection(int(tcp.dport), int(tcp.sport))
        if self.conn is None:
            raise ScriptError(f"a segment of no connection: {tcp.summary()}")
        if self.conn.isn is None and "S" in packet.flags:
            self.conn.isn = int(tcp.seq) - packet.seq & _M32
        return self.conn

    def _expect(self, packet: Packet, when: When, start: int, end: int) -> None:
        at_us, first = self._next()
        conn = self._learn(packet, first[TCP])
        late = at_us - (start if at_us < start else min(at_us, end))
        if not when.any and abs(late) > TOLERANCE_US:
            raise ScriptError(
                f"left {late} us {'late' if late > 0 else 'early'}: {_show(first, conn)}"
            )
        self.before_us = max(at_us, self.before_us)
        tcp, size = first[TCP], len(first[TCP].payload)
        seq, last = int(tcp.seq) - (conn.isn or 0) & _M32, tcp
        while size < packet.payload and size:  # several segments make up what the script names
            _, more = self._next()
            if int(more[TCP].seq) - (conn.isn or 0) & _M32 != seq + size:
                raise ScriptError(f"does not follow: {_show(more, conn)}")
            size, last = size + len(more[TCP].payload), more[TCP]
        self._compare(packet, conn, seq, size, last)
        self.last_sent[seq] = first

    def _compare(self, packet: Packet, conn: Connection, seq: int, size: int, tcp: Any) -> None:
        flags = str(tcp.flags).replace("A", ".").replace("C", "W")
        got: dict[str, Any] = {"flags": "".join(sorted(flags)), "seq": seq, "bytes": size}
        want: dict[str, Any] = {
            "flags": "".join(sorted(packet.flags)),
            "seq": packet.seq,
            "bytes": packet.payload,
        }
        if packet.ack is not None:
            got["ack"], want["ack"] = int(tcp.ack) - conn.peer_isn & _M32, packet.ack
        if packet.window is not None:
            got["win"], want["win"] = int(tcp.window), packet.window
        if packet.options is not None:
            got["options"] = _script_options(tcp, packet.options, conn)
            want["options"] = packet.options
        if got != want:
            wrong = {k: v for k, v in got.items() if v != want[k]}
            raise ScriptError(f"expected { ({k: want[k] for k in wrong}) }, got {wrong}")


def _show(packet: Any, conn: Connection) -> str:
    tcp = packet[TCP]
    seq = int(tcp.seq) - (conn.isn or 0) & _M32
    return f"{tcp.flags} {seq}({len(tcp.payload)}) ack {int(tcp.ack) - conn.peer_isn & _M32}"


def _icmp6(icmp: Icmp) -> Any:
    """What ICMPv6 says instead."""
    if icmp.code == "frag_needed":
        return ICMPv6PacketTooBig(mtu=icmp.mtu + 20)  # the MSS is the same
    if icmp.code == "protocol_unreachable":
        return ICMPv6ParamProblem(code=1, ptr=6)
    codes = {"net_unreachable": 0, "host_unreachable": 3, "port_unreachable": 4}
    return ICMPv6DestUnreach(code=codes[icmp.code])


def run(script: Script, flags: str = "", version: str = "ipv4") -> None:
    """Runs a script on a stack of its own, as with packetdrill's --ip_version."""
    runner = Runner(script, flags, version)
    try:
        runner.run()
        left = [f"{p.summary()}" for p in _left(runner.stack)]
        if left:
            raise ScriptError(f"{script.path.name}: sent and not expected: {left}")
    finally:
        if not runner.blocking:
            runner.stack.close()


def _left(stack: Stack) -> list[Any]:
    """What has left by now: nothing more may happen for it, so only the time that passed counts."""
    now, out = stack.now_us(), []
    while (got := stack.take()) is not None and got[0] <= now:
        out.append(IP(got[1]) if got[1][0] >> 4 == 4 else IPv6(got[1]))
    return out
