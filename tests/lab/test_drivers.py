"""ixnet on real NIC drivers, in the lab's virtual machine (`make lab`): igb and virtio-net.

main namespace                                       namespace far
dut0 10.78.0.1/24  igb, 2 queues ------ hub ------ peer0 10.78.0.2/24
dut1 10.78.1.1/24  virtio-net, 1 queue - hub ----- peer1 10.78.1.2/24
an instance under test, kernel services              the kernel's own sockets

Everything is emulated, 10 to 20 times slower than a machine, which the patience here allows for.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

if os.environ.get("IX_LAB") != "1":
    pytest.skip(
        "needs real NIC drivers: `make lab` runs this in a virtual machine of its own",
        allow_module_level=True,
    )

from ixnet.control.namespaces import in_netns
from ixnet.control.nic import Nic
from tests.interop.kit import MIB, NATIVE_ECHO, PYTHON_ECHO, Flow, digest, payload, pump, receive
from tests.runtime.lab import ROOT, until

PATIENCE_S = 180.0
FAR = "far"
PORT = 7070
KERNEL_PORT = 7071
STREAM_BYTES = 4 * MIB
CONNECTIONS = 100
MESSAGES = 10
pytestmark = pytest.mark.timeout(600)


@dataclass(frozen=True)
class Wire:
    """A NIC under test and the kernel at the other end."""

    number: int
    driver: str
    queues: int

    @property
    def dut(self) -> str:
        """The NIC under test."""
        return f"dut{self.number}"

    @property
    def ip(self) -> str:
        """Its address."""
        return f"10.78.{self.number}.1"

    def set_up(self) -> None:
        """Addresses, the far end in its namespace, and a link with carrier."""
        n, peer = self.number, f"peer{self.number}"
        command("ip", "link", "set", peer, "netns", FAR)
        command("ip", "-n", FAR, "addr", "add", f"10.78.{n}.2/24", "dev", peer)
        command("ip", "-n", FAR, "link", "set", peer, "up")
        command("ip", "addr", "add", f"{self.ip}/24", "dev", self.dut)
        command("ip", "link", "set", self.dut, "up")
        self.wait_carrier()

    def wait_carrier(self) -> float:
        """Waits for it; returns how long that took, s."""
        began = time.monotonic()
        carrier = Path("/sys/class/net", self.dut, "carrier")
        until(f"a carrier on {self.dut}", lambda: carrier.read_text() == "1\n", PATIENCE_S)
        return time.monotonic() - began

    def connect(self, port: int = PORT, timeout_s: float = PATIENCE_S) -> socket.socket:
        """A connection of the far kernel."""
        with in_netns(FAR):
            sock = socket.socket()
        try:
            sock.settimeout(timeout_s)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.connect((self.ip, port))
        except BaseException:
            sock.close()
            raise
        return sock


IGB = Wire(0, "igb", 2)
VIRTIO = Wire(1, "virtio_net", 1)


@dataclass(frozen=True)
class Case:
    """One way to run the echo server."""

    wire: Wire
    app: Path
    mode: str  # as the option has it
    expected: str  # as the instance says it
    options: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        kind = "native" if self.app is NATIVE_ECHO else "python"
        return "-".join([self.wire.driver, self.mode, kind, *(o.strip("-") for o in self.options)])


ZEROCOPY = "native zero-copy"
CASES = (
    Case(IGB, NATIVE_ECHO, "auto", ZEROCOPY),
    Case(IGB, PYTHON_ECHO, "auto", ZEROCOPY),
    Case(IGB, NATIVE_ECHO, "zerocopy", ZEROCOPY, ("--busy-poll",)),
    Case(IGB, NATIVE_ECHO, "copy", "native copy"),
    Case(IGB, NATIVE_ECHO, "generic", "generic copy"),
    Case(VIRTIO, NATIVE_ECHO, "auto", ZEROCOPY),
    Case(VIRTIO, PYTHON_ECHO, "auto", ZEROCOPY),
    Case(VIRTIO, NATIVE_ECHO, "copy", "native copy"),
    Case(VIRTIO, NATIVE_ECHO, "zerocopy", ZEROCOPY, ("--busy-poll",)),
)


class Service:
    """`ixnet run` of an echo server. said: its lines up to the one that says it is ready."""

    def __init__(self, case: Case) -> None:
        self.case = case
        argv = [sys.executable, "-m", "ixnet", "run", "-i", case.wire.dut, "--name", "lab"]
        argv += ["--mode", case.mode, *case.options, str(case.app), "--", "--port", str(PORT)]
        self.process = subprocess.Popen(
            argv, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self.said: list[str] = []
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while not self.said or not self.said[-1].startswith("ready"):
                assert selector.select(PATIENCE_S), f"not ready: {self.said}"
                line = self.process.stdout.readline()
                assert line, f"ended before it was ready: {self.said}, {self.end(0)}"
                self.said.append(line.rstrip("\n"))

    def end(self, number: int) -> tuple[int, str]:
        """Sends a signal (0: none) and waits; returns the exit status and its standard error."""
        if number:
            self.process.send_signal(number)
        try:
            _, errors = self.process.communicate(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        return self.process.returncode, errors

    def stat(self) -> dict[str, object]:
        """What `ixnet stat --json` says."""
        text = command(sys.executable, "-m", "ixnet", "stat", "--json", "--name", "lab")
        found = json.loads(text)
        return dict(found[0] if isinstance(found, list) else found)


def command(*argv: str) -> str:
    """A program's output; it must succeed."""
    done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, f"{' '.join(argv)}: {done.stderr}"
    return done.stdout


def note(text: str) -> None:
    """A line for the report, shown whether or not the test passes (the lab runs pytest -s)."""
    print(f"    {text}", flush=True)


@contextmanager
def kernel_echo() -> Iterator[None]:
    """An echo service on the kernel's stack, at every address of this side."""
    listener = socket.create_server(("0.0.0.0", KERNEL_PORT))

    def serve(sock: socket.socket) -> None:
        with sock:
            while data := sock.recv(65536):
                sock.sendall(data)

    def accept() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(sock,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


@pytest.fixture(scope="module", autouse=True)
def wires() -> Iterator[None]:
    """Both wires, which the virtual machine's end takes down, and the kernel's service."""
    command("ip", "netns", "add", FAR)
    command("ip", "-n", FAR, "link", "set", "lo", "up")
    for wire in (IGB, VIRTIO):
        wire.set_up()
    with kernel_echo():
        yield


def echoes(sock: socket.socket, message: bytes = b"who is there?") -> bool:
    """Whether the message comes back."""
    sock.sendall(message)
    return receive(sock, len(message)) == message


def expect_clean(wire: Wire) -> None:
    """The NIC is the kernel's again: no program, no instance, and its services answer."""
    until("the program to be gone", lambda: Nic.find(wire.dut).program is None, PATIENCE_S)
    wire.wait_carrier()
    with wire.connect(KERNEL_PORT) as sock:
        assert echoes(sock, payload(100_000, 5))
    assert "xdp" not in command("ip", "link", "show", wire.dut)


# ---- what a case must do ---------------------------------------------------------------------


def stream(wire: Wire) -> float:
    """One connection, both ways at once, ended by half-close; returns the seconds it took."""
    began = time.monotonic()
    with wire.connect() as sock:
        flow = Flow(sock, payload(STREAM_BYTES, 1), seed=1)
        pump([flow], PATIENCE_S)
        assert digest(flow.got) == digest(flow.data)
    return time.monotonic() - began


def conversations(wire: Wire) -> float:
    """Many connections at once, each with messages that are answered before the next one."""
    began = time.monotonic()
    socks = [wire.connect() for _ in range(CONNECTIONS)]
    try:
        for round_ in range(MESSAGES):
            sent = [payload(1 + (i * 37 + round_ * 101) % 3000, i) for i in range(len(socks))]
            for sock, message in zip(socks, sent, strict=True):
                sock.sendall(message)
            for sock, message in zip(socks, sent, strict=True):
                assert receive(sock, len(message)) == message
    finally:
        for sock in socks:
            sock.close()
    return time.monotonic() - began


def half_close(wire: Wire) -> None:
    """The far end stops sending first; what is under way still comes back, then the end."""
    with wire.connect() as sock:
        sock.sendall(message := payload(20_000, 3))
        sock.shutdown(socket.SHUT_WR)
        assert receive(sock, len(message) + 1) == message


def expect_counters(service: Service, wire: Wire) -> None:
    """Nothing was dropped by the core, by the kernel at the socket, or for want of frames."""
    stat = service.stat()
    total: dict[str, int] = stat["total"]  # type: ignore[assignment]
    shards: list[dict[str, dict[str, int]]] = stat["shards"]  # type: ignore[assignment]
    workers: list[dict[str, dict[str, int]]] = stat["workers"]  # type: ignore[assignment]
    shown = ("rx_frames", "tx_frames", "tcp_established", "tx_inplace", "tx_copied", "syscalls")
    for i, shard in enumerate(shards):
        values = shard["stats"]
        note(f"shard {i}: " + ", ".join(f"{name} {values[name]}" for name in shown))
    odd = {n: v for n, v in total.items() if v and (n.startswith("drop_") or n in _TROUBLE)}
    note(f"drops and troubles: {odd or 'none'}; rexmit {total['tcp_rexmit']}")
    sockets = [w["socket"] for w in workers]
    note(f"sockets: {[{n: v for n, v in s.items() if v} for s in sockets]}")
    note(f"verdicts: { {n: v for n, v in stat['verdicts'].items() if v} }")  # type: ignore[attr-defined]
    assert not odd
    for one in sockets:
        assert not any(one.get(n) for n in _SOCKET_DROPS), one
    assert total["tcp_established"] >= CONNECTIONS + 2
    assert not stat["verdicts"].get("pass_no_socket")  # type: ignore[attr-defined]
    if wire.queues > 1:
        took = [shard["stats"]["tcp_established"] for shard in shards]
        assert min(took) >= CONNECTIONS // 10, f"connections by queue: {took}"


_TROUBLE = ("tx_no_frame", "fill_starved", "wakeup_errors", "call_errors", "calls_stale")
_SOCKET_DROPS = ("rx_dropped", "rx_invalid_descs", "tx_invalid_descs", "rx_ring_full")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_echo(case: Case) -> None:
    wire = case.wire
    assert Nic.find(wire.dut).driver == wire.driver
    assert len(Nic.find(wire.dut).queues) == wire.queues
    with wire.connect(KERNEL_PORT) as held:
        assert echoes(held)
        began = time.monotonic()
        service = Service(case)
        try:
            note(f"ready after {time.monotonic() - began:.1f} s; {' | '.join(service.said[:6])}")
            assert service.said[-1].split(", ")[1] == case.expected
            assert case.mode != "auto" or not any(" not " in line for line in service.said)
            # igb takes its link down for seconds when a program or a socket comes.
            note(f"carrier {wire.wait_carrier():.1f} s later")
            began = time.monotonic()
            with wire.connect() as sock:
                assert echoes(sock)
            note(f"first answer {time.monotonic() - began:.1f} s later")
            note(f"{STREAM_BYTES >> 20} MiB each way, SHA-256 equal: {stream(wire):.1f} s")
            note(f"{CONNECTIONS} connections x {MESSAGES} messages: {conversations(wire):.1f} s")
            half_close(wire)
            assert echoes(held, payload(50_000, 2))  # from before the program came
            with wire.connect(KERNEL_PORT) as sock:
                assert echoes(sock, payload(50_000, 4))
            expect_counters(service, wire)
            status, errors = service.end(signal.SIGTERM)
            assert (status, errors) == (0, "")
            expect_clean(wire)
            assert echoes(held)
        finally:
            if service.process.poll() is None:
                service.process.kill()
                service.process.communicate()


@pytest.mark.parametrize("wire", [IGB, VIRTIO], ids=lambda wire: wire.driver)
def test_killed_in_traffic(wire: Wire) -> None:
    service = Service(Case(wire, NATIVE_ECHO, "auto", ZEROCOPY))
    stop = threading.Event()

    def talk() -> None:
        with wire.connect() as sock:
            sock.settimeout(2.0)
            while not stop.is_set():
                try:
                    if not echoes(sock, bytes(5000)):
                        return
                except OSError:
                    return

    talkers = [threading.Thread(target=talk) for _ in range(4)]
    for talker in talkers:
        talker.start()
    time.sleep(3.0)
    began = time.monotonic()
    assert service.end(signal.SIGKILL)[0] == -signal.SIGKILL
    stop.set()
    for talker in talkers:
        talker.join()
    expect_clean(wire)
    note(f"clean {time.monotonic() - began:.1f} s after the kill")
    # The next one starts at once, in the same mode.
    again = Service(Case(wire, NATIVE_ECHO, "auto", ZEROCOPY))
    try:
        assert again.said[-1].split(", ")[1] == ZEROCOPY
        with wire.connect() as sock:
            assert echoes(sock)
        assert again.end(signal.SIGTERM) == (0, "")
    finally:
        if again.process.poll() is None:
            again.process.kill()
    expect_clean(wire)
