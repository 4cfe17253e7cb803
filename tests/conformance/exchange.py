"""One TCP connection of a scripted peer with a stack, step by step, whichever stack it is.

Numbers in answers are relative: seq to what the stack sends next, ack to what the peer sends next.
A step's answers are what leaves before the answer to a probe that follows it at once, so nothing is
waited for, and a slow machine changes nothing.
"""

from __future__ import annotations

import itertools
import socket
from typing import Any, Protocol

from scapy.layers.inet import ICMP, IP, TCP
from scapy.packet import Raw

from tests.conformance.stack import Failed, ffi
from tests.conformance.syscalls import LOCAL, REMOTE, address

CLOSED_PORT = 9
WINDOW = 8000
_M32 = 0xFFFFFFFF
_ports = itertools.count(20000)
_probes = itertools.count(50000)
_TCP_INFO = 11
STATES = {1: "ESTABLISHED", 2: "SYN_SENT", 3: "SYN_RCVD", 4: "FIN_WAIT_1", 5: "FIN_WAIT_2"}
STATES |= {6: "TIME_WAIT", 7: "CLOSED", 8: "CLOSE_WAIT", 9: "LAST_ACK", 10: "LISTEN"}
STATES |= {11: "CLOSING"}


class UnderTest(Protocol):
    """What Stack and Linux have in common. real_time: what isn't acknowledged comes again."""

    real_time: bool

    def call(self, name: str, *args: Any) -> int: ...

    def put(self, packet: bytes) -> None: ...

    def take(self) -> tuple[int, bytes] | None: ...


def signed(number: int) -> int:
    """A difference of sequence numbers."""
    return (number & _M32) - ((number & 0x80000000) << 1)


class Exchange:
    """A connection on ports of its own. fd: the connection's socket; -1: none yet."""

    def __init__(
        self, stack: UnderTest, timestamps: bool = False, backlog: int = 8, window: int = WINDOW
    ) -> None:
        self.stack, self.backlog, self.window = stack, backlog, window
        self.port, self.peer_port = next(_ports), next(_ports)
        self.fd = self.listener = -1
        self.seq = 1_000_000  # what the peer sends next
        self.ack = 0  # what the stack sends next
        self.end: int | None = None  # of the data that it sent so far
        self.timestamps = timestamps
        self.clock, self.echo = 1000, 0

    # ---- the peer

    def segment(
        self,
        flags: str,
        seq: int = 0,
        ack: int = 0,
        data: bytes = b"",
        options: Any = None,
        **more: Any,
    ) -> bytes:
        """A segment; seq and ack are relative to what is next."""
        if options is None:
            options = [("Timestamp", (self.clock, self.echo))] if self.timestamps else []
        tcp = TCP(
            sport=self.peer_port,
            dport=self.port,
            seq=self.seq + seq & _M32,
            ack=self.ack + ack & _M32 if "A" in flags else 0,
            flags=flags,
            window=more.get("window", self.window),
            options=options,
        )
        whole = IP(src=REMOTE, dst=LOCAL) / tcp
        return bytes(whole / Raw(data) if data else whole)

    def put(self, flags: str, **fields: Any) -> list[str]:
        """Sends one, and returns the answers."""
        self.stack.put(self.segment(flags, **fields))
        return self.answers()

    def answers(self) -> list[str]:
        """What leaves for this connection by now."""
        return [self.show(tcp) for tcp in self.packets()]

    def packets(self) -> list[Any]:
        """The same, as packets."""
        probe = next(_probes)
        syn = TCP(sport=probe, dport=CLOSED_PORT, seq=1, flags="S")
        self.stack.put(bytes(IP(src=REMOTE, dst=LOCAL) / syn))
        out = []
        while True:
            got = self.stack.take()
            assert got is not None, "the probe of a closed port is not answered"
            packet = IP(got[1])
            if TCP in packet and packet[TCP].sport == CLOSED_PORT:
                if packet[TCP].dport == probe:
                    return out
            elif self._is_new(packet):
                out.append(packet[TCP])

    def _is_ours(self, packet: Any) -> bool:
        return TCP in packet and packet[TCP].dport == self.peer_port

    def _is_new(self, packet: Any) -> bool:
        """Of this connection, and not a SYN, FIN or data once more because the machine was slow."""
        if not self._is_ours(packet):
            return False
        flags, size = packet[TCP].flags, len(packet[TCP].payload)
        if self.stack.real_time and size:
            end = int(packet[TCP].seq) + size
            if self.end is not None and signed(end - self.end) <= 0:
                return False
            self.end = end
        old = self.ack and signed(int(packet[TCP].seq) - self.ack) < 0
        return not (self.stack.real_time and old and (flags & 1 or flags & 0x12 == 2))

    def of(self, raw: bytes) -> Any:
        """The segment in a packet, if it is of this connection."""
        packet = IP(raw)
        return packet[TCP] if self._is_ours(packet) else None

    def wait(self) -> Any:
        """The next packet for this connection, however late: Linux delays the ACK of a FIN."""
        while True:
            got = self.stack.take()
            assert got is not None, "nothing comes"
            packet = IP(got[1])
            if self._is_new(packet):
                return packet[TCP]

    def show(self, tcp: Any) -> str:
        """`FLAGS seq ack bytes`, as short as can be; the ISN of a SYN is nobody's business."""
        text = str(tcp.flags).replace("P", "")
        seq = signed(int(tcp.seq) - self.ack)
        if tcp.seq == 0:
            text += " seq=0"
        elif seq and not tcp.flags & 2:
            text += f" seq{seq:+d}"
        if "A" in text:
            ack = signed(int(tcp.ack) - self.seq)
            text += f" ack{ack:+d}" if ack else ""
        size = len(tcp.payload)
        return text + (f" {size} bytes" if size else "")

    def expect(self, want: str) -> Any:
        """Exactly one answer to what was done before, which looks like this. Returns it."""
        got = self.packets()
        assert [self.show(tcp) for tcp in got] == [want]
        return got[0]

    # ---- the application

    def state(self) -> str:
        """What TCP_INFO says of the socket."""
        info, size = ffi.new("uint8_t[256]"), ffi.new("socklen_t *", 256)
        self.stack.call("getsockopt", self.fd, socket.IPPROTO_TCP, _TCP_INFO, info, size)
        return STATES[info[0]]

    def error(self) -> int:
        """SO_ERROR."""
        value, size = ffi.new("int *"), ffi.new("socklen_t *", 4)
        self.stack.call("getsockopt", self.fd, socket.SOL_SOCKET, socket.SO_ERROR, value, size)
        return int(value[0])

    def option(self, level: int, name: int, *value: int) -> None:
        """setsockopt() with one number, or a linger structure's two."""
        raw = ffi.new("int[]", list(value))
        self.stack.call("setsockopt", self.fd, level, name, raw, 4 * len(value))

    def write(self, data: bytes) -> int:
        return self.stack.call("send", self.fd, data, len(data), 0)

    def read(self, size: int = 65536) -> bytes | None:
        """What is there; None: nothing yet."""
        buffer = ffi.new("uint8_t[]", size)
        try:
            got = self.stack.call("recv", self.fd, buffer, size, socket.MSG_DONTWAIT)
        except Failed as failed:
            if failed.errno == 11:
                return None
            raise
        return bytes(ffi.buffer(buffer, got))

    def shutdown(self) -> None:
        self.stack.call("shutdown", self.fd, socket.SHUT_WR)

    def close(self) -> None:
        self.stack.call("close", self.fd)
        self.fd = -1

    # ---- to a state

    def to(self, state: str) -> Exchange:
        """Brings a new connection into a state of RFC 9293."""
        getattr(self, f"_{state.lower()}")()
        return self

    def _closed(self) -> None:
        pass

    def _listen(self) -> None:
        kind = socket.SOCK_STREAM | socket.SOCK_NONBLOCK
        self.listener = self.fd = self.stack.call("socket", socket.AF_INET, kind, 0)
        self.stack.call("bind", self.fd, address(LOCAL, self.port), 16)
        self.stack.call("listen", self.fd, self.backlog)

    def syn_options(self) -> list[Any]:
        """Of the peer's SYN."""
        stamp = [("Timestamp", (self.clock, self.echo))] if self.timestamps else []
        return [("MSS", 1000), *stamp]

    def _syn_rcvd(self) -> None:
        self._listen()
        self.stack.put(self.segment("S", options=self.syn_options()))
        (syn_ack,) = self.packets()
        assert syn_ack.flags == "SA" and syn_ack.ack == self.seq + 1
        self.seq, self.ack = self.seq + 1, int(syn_ack.seq) + 1
        self._take_clock(syn_ack)

    def _take_clock(self, tcp: Any) -> None:
        for kind, value in tcp.options:
            if kind == "Timestamp":
                self.echo = value[0]

    def accept(self) -> None:
        """Takes the connection that the handshake made."""
        self.fd = self.stack.call("accept", self.listener, ffi.NULL, ffi.NULL)

    def _established(self) -> None:
        self._syn_rcvd()
        assert self.put("A") == []
        self.accept()

    def _syn_sent(self) -> None:
        kind = socket.SOCK_STREAM | socket.SOCK_NONBLOCK
        self.fd = self.stack.call("socket", socket.AF_INET, kind, 0)
        try:
            self.stack.call("connect", self.fd, address(REMOTE, self.peer_port), 16)
        except Failed as failed:
            assert failed.errno == 115  # EINPROGRESS
        (syn,) = self.packets()
        assert syn.flags == "S"
        self.port, self.ack = int(syn.sport), int(syn.seq) + 1
        self._take_clock(syn)

    def _fin_wait_1(self) -> None:
        self._established()
        self.shutdown()
        self.expect("FA")
        self.ack += 1

    def _fin_wait_2(self) -> None:
        self._fin_wait_1()
        assert self.put("A") == []

    def _peer_fin(self, ack: int = 0) -> None:
        self.stack.put(self.segment("FA", ack=ack))
        assert self.show(self.wait()) == "A ack+1"
        self.seq += 1

    def _close_wait(self) -> None:
        self._established()
        self._peer_fin()

    def _last_ack(self) -> None:
        self._close_wait()
        self.shutdown()
        self.expect("FA")
        self.ack += 1

    def _closing(self) -> None:
        self._fin_wait_1()
        self._peer_fin(ack=-1)

    def _time_wait(self) -> None:
        self._fin_wait_2()
        self._peer_fin()


def unreachable(exchange: Exchange, code: int, seq: int, mtu: int = 0) -> None:
    """An ICMP error about a segment of the stack's, at a relative sequence number."""
    tcp = TCP(sport=exchange.port, dport=exchange.peer_port, seq=exchange.ack + seq & _M32)
    quote = bytes(IP(src=LOCAL, dst=REMOTE) / tcp)[:28]
    error = ICMP(type=3, code=code, nexthopmtu=mtu)
    exchange.stack.put(bytes(IP(src=REMOTE, dst=LOCAL) / error / Raw(quote)))
