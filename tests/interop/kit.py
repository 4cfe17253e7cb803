"""What the tests against the kernel's TCP share: services on the dataplane, and the kernel's side.

The kernel's side is driven from the test itself: a socket made inside `in_netns` stays in that
namespace.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import selectors
import signal
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from pyroute2 import IPRoute

from ixnet.control.lab import Lab, LabConfig
from ixnet.control.namespaces import in_netns
from tests.runtime.lab import PATIENCE_S, ROOT, Run, until

APPS = Path(__file__).parent / "apps"
COMMANDS = APPS / "commands.py"
NATIVE_ECHO = ROOT / "build" / "apps" / "echo.so"
PYTHON_ECHO = ROOT / "apps" / "echo.py"
PORT = 7070
CHUNK_MAX = 60_000
MIB = 1 << 20
_numbers = itertools.count()


def lab_config(**changes: Any) -> LabConfig:
    """A lab of this process's own, unlike any other."""
    tag = f"ixt{os.getpid()}-{next(_numbers)}"
    return LabConfig(server_netns=f"{tag}-srv", client_netns=f"{tag}-cli", **changes)


class Service(Run):
    """An instance that runs an application, by default apps/commands.py on PORT.

    directory: where commands.py reports, and looks for the files that tests make.
    """

    def __init__(
        self,
        lab: Lab,
        directory: Path,
        app: Path = COMMANDS,
        args: Sequence[str] | None = None,
        options: Sequence[str] = (),
        **more: Any,
    ) -> None:
        self.directory = directory
        self.ended = False  # by a test
        self.status = 0  # with which it is to end
        self.may_say: tuple[str, ...] = ()  # lines of its standard error contain one of these
        if args is None:
            args = [str(PORT), str(directory)]
        super().__init__(lab, app, args, options, **more)

    def __enter__(self) -> Service:
        self.wait_ready()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Ends it; what it said to standard error, an exit status and lost frames fail the test."""
        if kind is not None:
            self.lab.stop(self.process)
            return
        try:
            if not self.ended:
                assert self.process.poll() is None, f"ended by itself: {self.errors()}"
                self.end()
            assert self.process.returncode == self.status
            for line in self.errors().splitlines():
                assert any(text in line for text in self.may_say), line
        finally:
            self.lab.stop(self.process)

    def end(self, number: int = signal.SIGTERM) -> int:
        """As Run's; the end of the block then only looks at what it left."""
        self.ended = True
        return super().end(number)

    def shards(self) -> list[dict[str, int]]:
        """Each shard's gauges and counters."""
        return [reading.values for reading in self.readings()]

    def reports(self) -> list[str]:
        """What commands.py reported so far."""
        path = self.directory / "reports"
        return path.read_text().splitlines() if path.exists() else []

    def wait_report(self, line: str, patience_s: float = PATIENCE_S) -> None:
        """Waits for a report, and takes it away."""
        until(f"the report {line!r}", lambda: line in self.reports(), patience_s)
        left = self.reports()
        left.remove(line)
        (self.directory / "reports").write_text("".join(f"{r}\n" for r in left))

    def wait_quiet(self, patience_s: float = PATIENCE_S) -> None:
        """Waits until no connection is left but those in TIME_WAIT, and no frame is lost: all are
        free, or in the hands of the link to receive into."""

        def quiet() -> bool:
            return all(
                s["flows"] == s["flows_time_wait"]
                and s["frames_app"] == s["frames_tx"] == s["frames_rx"] == 0
                for s in self.shards()
            )

        until("connections and frames to be given back", quiet, patience_s)


def kernel_socket(netns: str, ip: str, kind: int = socket.SOCK_STREAM) -> socket.socket:
    """A socket of the kernel's in a namespace, of the family of `ip`."""
    with in_netns(netns):
        return socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, kind)


# ---- connections -----------------------------------------------------------------------------


def connect(
    lab: Lab,
    command: str = "",
    port: int = PORT,
    ip: str = "",
    timeout_s: float = PATIENCE_S,
    rcvbuf: int = 0,
    mss: int = 0,
    nodelay: bool = True,
) -> socket.socket:
    """A connection of the client's kernel; the command is sent as its first line.

    rcvbuf: SO_RCVBUF, bytes; mss: TCP_MAXSEG; both before the handshake, 0: the kernel's own.
    """
    sock = kernel_socket(lab.cfg.client_netns, ip)
    try:
        sock.settimeout(timeout_s)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, nodelay)
        if rcvbuf:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
        if mss:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, mss)
        sock.connect((ip or lab.facts.server.ip, port))
        if command:
            sock.sendall(command.encode() + b"\n")
    except BaseException:
        sock.close()
        raise
    return sock


def payload(n: int, seed: int) -> bytes:
    """What `source N SEED` sends, too."""
    return random.Random(seed).randbytes(n)


def digest(data: bytes) -> str:
    """As commands.py's summary says it."""
    return f"{len(data)} {hashlib.sha256(data).hexdigest()}"


@dataclass
class Flow:
    """One connection to be pumped: what it sends, in pieces of random size, and what it got."""

    sock: socket.socket
    data: bytes = b""
    seed: int = 0
    expected: int | None = None  # bytes after which it is done; None: at the end of the stream
    end_after_sending: bool = True
    got: bytearray = field(default_factory=bytearray)
    sent: int = 0
    done: bool = False

    def __post_init__(self) -> None:
        self._sizes = random.Random(self.seed)
        self._left = memoryview(self.data)
        self.sock.setblocking(False)
        self.writes = bool(self.data) or self.end_after_sending

    def write(self) -> None:
        """Sends one piece; at the end ends this half."""
        if self._left:
            size = self._sizes.randint(1, CHUNK_MAX)
            n = self.sock.send(self._left[:size])
            self._left = self._left[n:]
            self.sent += n
        if not self._left:
            self.writes = False
            if self.end_after_sending:
                self.sock.shutdown(socket.SHUT_WR)

    def read(self) -> None:
        """Receives one piece."""
        data = self.sock.recv(self._sizes.randint(1, CHUNK_MAX))
        self.got += data
        self.done = not data or len(self.got) == self.expected


def pump(flows: Sequence[Flow], patience_s: float = PATIENCE_S) -> None:
    """Runs all flows at once to their ends. Fails when nothing moves for patience_s."""
    with selectors.DefaultSelector() as selector:
        masks: dict[int, int] = {}
        for flow in flows:
            masks[id(flow)] = selectors.EVENT_READ | selectors.EVENT_WRITE
            selector.register(flow.sock, masks[id(flow)], flow)
        while selector.get_map():
            ready = selector.select(patience_s)
            stuck = [f for f in flows if not (f.done and not f.writes)]
            assert ready, f"{len(stuck)} of {len(flows)} stand still: {_progress(stuck[:3])}"
            for key, mask in ready:
                flow: Flow = key.data
                try:
                    if mask & selectors.EVENT_READ and not flow.done:
                        flow.read()
                    if mask & selectors.EVENT_WRITE and flow.writes:
                        flow.write()
                except BlockingIOError:
                    continue
                wanted = (0 if flow.done else selectors.EVENT_READ) | (
                    selectors.EVENT_WRITE if flow.writes else 0
                )
                if not wanted:
                    selector.unregister(flow.sock)
                elif wanted != masks[id(flow)]:
                    masks[id(flow)] = wanted
                    selector.modify(flow.sock, wanted, flow)


def _progress(flows: Sequence[Flow]) -> str:
    return ", ".join(f"sent {f.sent} of {len(f.data)}, got {len(f.got)}" for f in flows)


def echo_streams(
    lab: Lab, count: int, n: int, command: str = "echo", patience_s: float = PATIENCE_S, **more: Any
) -> None:
    """`count` connections at once echo n random bytes each, ends included; all are compared."""
    flows = []
    try:
        for i in range(count):
            flows.append(Flow(connect(lab, command, **more), payload(n, i), seed=i))
        pump(flows, patience_s)
        for flow in flows:
            assert digest(flow.got) == digest(flow.data)
    finally:
        for flow in flows:
            flow.sock.close()


def connect_out(lab: Lab, service: Service, ip: str, to: str, listen: str = "0.0.0.0") -> None:
    """commands.py's proxy connects from ip to the client's kernel at `to`, which listens at
    `listen`; a MiB each way arrives whole."""
    with listening(lab.cfg.client_netns, listen) as target:
        command = f"proxy {to} {target.getsockname()[1]}"
        with connect(lab, command, ip=ip) as near:
            far, peer = target.accept()
            with far:
                assert peer[0] == ip
                flows = [Flow(near, payload(MIB, 1), 1), Flow(far, payload(MIB, 2), 2)]
                pump(flows)
                assert digest(flows[1].got) == digest(flows[0].data)
                assert digest(flows[0].got) == digest(flows[1].data)
    service.wait_quiet()


def send_and_sink(sock: socket.socket, n: int, seed: int) -> None:
    """Sends n bytes to a `sink` or `hold`, and compares its answer."""
    flow = Flow(sock, payload(n, seed), seed)
    pump([flow])
    assert flow.got.decode() == digest(flow.data) + "\n"


def take_source(sock: socket.socket, n: int, seed: int) -> None:
    """Receives what `source N SEED` sends, and compares it."""
    flow = Flow(sock)
    pump([flow])
    assert digest(flow.got) == digest(payload(n, seed))


def receive(sock: socket.socket, length: int) -> bytes:
    """Exactly so many bytes, or fewer at the end of the stream."""
    got = bytearray()
    while len(got) < length and (data := sock.recv(length - len(got))):
        got += data
    return bytes(got)


def answers(sock: socket.socket, message: bytes = b"still there?") -> bool:
    """Whether an echo comes back on this connection."""
    sock.sendall(message)
    return receive(sock, len(message)) == message


# ---- what the kernel knows of a connection (struct tcp_info, uapi/linux/tcp.h) ------------------


@dataclass(frozen=True)
class TcpInfo:
    """Some of TCP_INFO. backoff: time-outs, or zero-window probes, in a row."""

    state: int
    backoff: int
    timestamps: bool
    sack: bool
    window_scaling: bool
    rcv_mss: int
    snd_mss: int
    rto_us: int


def tcp_info(sock: socket.socket) -> TcpInfo:
    """What the kernel says of its end."""
    raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    state, _, _, _, backoff, options = struct.unpack_from("6B", raw)
    rto_us, _, snd_mss, rcv_mss = struct.unpack_from("4I", raw, 8)
    return TcpInfo(
        state=state,
        backoff=backoff,
        timestamps=bool(options & 1),
        sack=bool(options & 2),
        window_scaling=bool(options & 4),
        rcv_mss=rcv_mss,
        snd_mss=snd_mss,
        rto_us=rto_us,
    )


# ---- the kernel's side -----------------------------------------------------------------------


@contextmanager
def sysctls(netns: str, values: dict[str, str]) -> Iterator[None]:
    """Sets sysctls (names with slashes, below /proc/sys) of a namespace for a while."""
    with in_netns(netns):
        before = {name: Path("/proc/sys", name).read_text() for name in values}
        for name, value in values.items():
            Path("/proc/sys", name).write_text(value)
    try:
        yield
    finally:
        with in_netns(netns):
            for name, value in before.items():
                Path("/proc/sys", name).write_text(value)


@contextmanager
def iproute(netns: str) -> Iterator[IPRoute]:
    """Netlink in a namespace."""
    with in_netns(netns), IPRoute() as ipr:
        yield ipr


@contextmanager
def listening(
    netns: str, ip: str = "0.0.0.0", port: int = 0, backlog: int = 64
) -> Iterator[socket.socket]:
    """A listening socket of the kernel's in a namespace."""
    with kernel_socket(netns, ip) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.settimeout(PATIENCE_S)
        sock.bind((ip, port))
        sock.listen(backlog)
        yield sock


def ping(netns: str, ip: str, timeout_s: float = PATIENCE_S, data: bytes = b"ixnet" * 20) -> bool:
    """One ICMP echo request; whether its answer came."""
    if ":" in ip:
        return _ping6(netns, ip, timeout_s, data)
    with in_netns(netns):
        sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    with sock:
        number, sequence = os.getpid() & 0xFFFF, next(_numbers) & 0xFFFF
        rest = struct.pack("!HH", number, sequence) + data
        sock.sendto(
            struct.pack("!BBH", 8, 0, _checksum(b"\x08\x00\x00\x00" + rest)) + rest, (ip, 0)
        )
        deadline = time.monotonic() + timeout_s
        while (left := deadline - time.monotonic()) > 0:
            sock.settimeout(left)
            try:
                packet = sock.recv(4096)
            except TimeoutError:
                break
            icmp = packet[(packet[0] & 15) * 4 :]
            if icmp[:2] == b"\0\0" and icmp[4:] == rest:
                return True
    return False


def _ping6(netns: str, ip: str, timeout_s: float, data: bytes) -> bool:
    """The same by ICMPv6, whose checksums are the kernel's."""
    with in_netns(netns):
        sock = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
    with sock:
        rest = struct.pack("!HH", os.getpid() & 0xFFFF, next(_numbers) & 0xFFFF) + data
        sock.sendto(struct.pack("!BBH", 128, 0, 0) + rest, (ip, 0))
        deadline = time.monotonic() + timeout_s
        while (left := deadline - time.monotonic()) > 0:
            sock.settimeout(left)
            try:
                packet = sock.recv(4096)
            except TimeoutError:
                break
            if packet[0] == 129 and packet[4:] == rest:
                return True
    return False


def _checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data[: len(data) & ~1]))
    total += data[-1] << 8 if len(data) % 2 else 0
    total = (total & 0xFFFF) + (total >> 16)
    return ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
