"""NICs under test, kernels at the other end, and `ixnet run` of an echo server between them: what
the tests on real drivers share. They run in the lab's virtual machine (`make lab`).

main namespace                                       namespace far
dut0 10.78.0.1/24  igb, 2 queues ------ hub ------ peer0 10.78.0.2/24
dut1 10.78.1.1/24  virtio-net, 2 queues - taps --- peer1 10.78.1.2/24
an instance under test, kernel services              the kernel's own sockets

A veth's ends are both in namespaces of their own (ixnet/control/lab.py).
Everything is emulated, 10 to 20 times slower than a machine, which the patience here allows for.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

from ixnet.control.instance import find_instances
from ixnet.control.lab import Lab
from ixnet.control.namespaces import in_netns, run_in_netns
from ixnet.control.nic import Nic
from tests.dune.dataplane import Link
from tests.interop.kit import Flow, digest, payload, pump, receive
from tests.runtime.lab import ROOT, read_until_ready, until

PATIENCE_S = 180.0
FAR = "far"
PORT = 7070
KERNEL_PORT = 7071
ZEROCOPY = "native zero-copy"
# Of a worker, by its control plane (ixnet/control/heartbeat.py).
STOOD = ("has run no cycle for", "runs cycles again")


@dataclass(frozen=True)
class Wire:
    """A NIC under test and the kernel at the other end. near, far: their namespaces, near None: the
    main one. mode: the best that the driver gives, as an instance says it."""

    driver: str
    queues: int
    dut: str
    ip: str
    mode: str = ZEROCOPY
    far: str = FAR
    near: str | None = None

    def find(self) -> Nic:
        """What there is to know of the NIC."""
        with in_netns(self.near) if self.near else nullcontext():
            return Nic.find(self.dut)

    def set_up(self) -> None:
        """Addresses, the far end in its namespace, and a link with carrier."""
        peer = self.dut.replace("dut", "peer")
        command("ip", "link", "set", peer, "netns", FAR)
        command("ip", "-n", FAR, "addr", "add", f"{self.ip[:-1]}2/24", "dev", peer)
        command("ip", "-n", FAR, "link", "set", peer, "up")
        command("ip", "addr", "add", f"{self.ip}/24", "dev", self.dut)
        command("ip", "link", "set", self.dut, "up")
        self.wait_carrier()

    def wait_carrier(self) -> float:
        """Waits for it; returns how long that took, s."""
        began = time.monotonic()
        if self.near is None:  # a veth's never goes
            carrier = Path("/sys/class/net", self.dut, "carrier")
            until(f"a carrier on {self.dut}", lambda: carrier.read_text() == "1\n", PATIENCE_S)
        return time.monotonic() - began

    def connect(self, port: int = PORT, timeout_s: float = PATIENCE_S) -> socket.socket:
        """A connection of the far kernel."""
        with in_netns(self.far):
            sock = socket.socket()
        try:
            sock.settimeout(timeout_s)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.connect((self.ip, port))
        except BaseException:
            sock.close()
            raise
        return sock


class NicLink(Link):
    """A wire of this machine's, for the tests of tests/dune."""

    def __init__(self, wire: Wire) -> None:
        self.tag = wire.driver.replace("_", "-")
        self.near, self.near_if = wire.near, wire.dut
        self.far, self.far_if = wire.far, wire.dut.replace("dut", "peer")
        self._wire = wire

    def up(self) -> str:
        """See Link."""
        set_up_wires()
        self._wire.wait_carrier()
        return self._wire.ip


IGB = Wire("igb", 2, "dut0", "10.78.0.1")
VIRTIO = Wire("virtio_net", 2, "dut1", "10.78.1.1")


def veth(lab: Lab) -> Wire:
    """The wire that a lab is."""
    cfg, facts = lab.cfg, lab.facts.server
    mode = "generic copy" if cfg.queues == 1 else "native copy"
    return Wire(
        "veth", cfg.queues, cfg.server_if, facts.ip, mode, cfg.client_netns, cfg.server_netns
    )


@cache
def set_up_wires() -> None:
    """Both NICs' wires, once a boot: its end takes them down."""
    command("ip", "netns", "add", FAR)
    command("ip", "-n", FAR, "link", "set", "lo", "up")
    for wire in (IGB, VIRTIO):
        wire.set_up()


class Service:
    """`ixnet run` of an echo server on PORT. said: its lines up to the one that it is ready."""

    def __init__(self, wire: Wire, app: Path, *options: str) -> None:
        argv = [sys.executable, "-m", "ixnet", "run", "-i", wire.dut, "--name", "lab"]
        argv += [*options, str(app), "--", "--port", str(PORT)]
        how: dict[str, Any] = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        if wire.near:
            self.process = run_in_netns(wire.near, argv, None, **how)
        else:
            self.process = subprocess.Popen(argv, text=True, **how)
        self.said = read_until_ready(self.process, PATIENCE_S)
        is_ready = self.said and self.said[-1].startswith("ready")
        assert is_ready, f"not ready, or not in time: {self.said}, {self.end(0)}"

    def __enter__(self) -> Service:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Whatever happened, it is gone."""
        if self.process.poll() is None:
            self.process.kill()
            _, errors = self.process.communicate()
            note(f"killed; it said {errors!r}")

    @property
    def mode(self) -> str:
        """The mode that it found, as it says it."""
        return self.said[-1].split(", ")[1]

    def end(self, number: int) -> tuple[int, str]:
        """Sends a signal (0: none) and waits; returns the exit status and its standard error,
        without what it told of workers that got no CPU: this whole machine may stand at times."""
        if number:
            self.process.send_signal(number)
        try:
            _, errors = self.process.communicate(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        lines = errors.splitlines(keepends=True)
        stood = [line for line in lines if any(words in line for words in STOOD)]
        for line in stood:
            note(line.rstrip())
        return self.process.returncode, "".join(line for line in lines if line not in stood)

    def live(self) -> dict[str, Any]:
        """What its control plane says of itself."""
        found = next(instance for instance in find_instances() if instance.name == "lab")
        return until("an answer of the control plane", lambda: found.ask(PATIENCE_S), PATIENCE_S)

    def stat(self) -> dict[str, Any]:
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


# ---- what a case must do ---------------------------------------------------------------------


def echoes(sock: socket.socket, message: bytes = b"who is there?") -> bool:
    """Whether the message comes back."""
    sock.sendall(message)
    return receive(sock, len(message)) == message


def stream(wire: Wire, nbytes: int) -> float:
    """One connection, both ways at once, ended by half-close; returns the seconds it took."""
    began = time.monotonic()
    with wire.connect() as sock:
        flow = Flow(sock, payload(nbytes, 1), seed=1)
        pump([flow], PATIENCE_S)
        assert digest(flow.got) == digest(flow.data)
    return time.monotonic() - began


def conversations(wire: Wire, connections: int, messages: int) -> float:
    """Many connections at once, each with messages that are answered before the next one."""
    began = time.monotonic()
    socks = [wire.connect() for _ in range(connections)]
    try:
        for round_ in range(messages):
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


_TROUBLE = ("tx_no_frame", "fill_starved", "wakeup_errors", "call_errors", "calls_stale")
_SOCKET_DROPS = ("rx_dropped", "rx_invalid_descs", "tx_invalid_descs", "rx_ring_full")


# What a peer sends again because this slow machine answered late (a FIN, after all has ended), and
# what does not fit behind a frame that the emulated wire lost.
_AGAIN = ("drop_tcp_seq", "drop_tcp_no_listener", "drop_tcp_ooo_limit")


def expect_counters(stat: dict[str, Any], wire: Wire, connections: int) -> None:
    """Nothing was dropped by the core (but what came again), by the kernel at the socket, or for
    want of frames, and the queues shared the connections."""
    total: dict[str, int] = stat["total"]
    shards: list[dict[str, dict[str, int]]] = stat["shards"]
    shown = ("rx_frames", "tx_frames", "tcp_established", "tx_inplace", "tx_copied", "syscalls")
    for i, shard in enumerate(shards):
        values = shard["stats"]
        note(f"shard {i}: " + ", ".join(f"{name} {values[name]}" for name in shown))
    odd = {n: v for n, v in total.items() if v and (n.startswith("drop_") or n in _TROUBLE)}
    note(f"drops and troubles: {odd or 'none'}; rexmit {total['tcp_rexmit']}")
    sockets = [shard["socket"] for shard in shards]
    note(f"sockets: {[{n: v for n, v in s.items() if v} for s in sockets]}")
    note(f"verdicts: { {n: v for n, v in stat['verdicts'].items() if v} }")
    assert not set(odd) - set(_AGAIN)
    for one in sockets:
        assert not any(one.get(n) for n in _SOCKET_DROPS), one
    assert total["tcp_established"] >= connections + 2
    assert not stat["verdicts"].get("pass_no_socket")
    if wire.queues > 1:
        took = [shard["stats"]["tcp_established"] for shard in shards]
        assert min(took) >= connections // 10, f"connections by queue: {took}"
