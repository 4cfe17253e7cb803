"""A worker in the dune placement dies: what the control plane tells of it, what its peers see, what
becomes of its queue, and that nobody else notices.

ixlab-dth-srv                                  ixlab-dth-cli
ixs0, queues 0 and 1 --------- veth --------- ixc0 + a tap that sees the wire
worker 0 echoes on PORT                        a verified stream to worker 0, all the while
worker 1 echoes on PORT + 1, and dies          connections to worker 1
a service of the kernel's own                  its client
"""

from __future__ import annotations

import os
import random
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ixnet.control.namespaces import in_netns
from ixnet.dune_shared import Symbols
from tests.dune.dataplane import (
    MODULE,
    PATIENCE_S,
    Dataplane,
    Guard,
    Link,
    Ring0,
    Veth,
    echo_once,
    kill,
)
from tests.dune.kit import ROOT

ATTACK = ROOT / "build/tests/dune/apps/attack.so"
PORT = 7000
VICTIM = 1
VICTIM_PORT = PORT + VICTIM
KERNEL_PORT = 7100
CONNECTIONS = 12
UD2 = b"\x0f\x0b"
RST = 4
ETH_P_IP = 0x0800
Note = Callable[[str], None]
pytestmark = pytest.mark.timeout(3600)  # emulated


class Tap:
    """The RSTs from a port that pass the client's end of the wire: by the port that they go to."""

    def __init__(self, dataplane: Dataplane, port: int) -> None:
        self.resets: dict[int, float] = {}
        self._port = port
        with in_netns(dataplane.link.far):
            self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_IP))
        self._sock.bind((dataplane.link.far_if, ETH_P_IP))
        self._sock.settimeout(0.1)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                frame = self._sock.recv(2048)
            except TimeoutError:
                continue
            segment = frame[14 + 4 * (frame[14] & 15) :]
            source, target = (int.from_bytes(segment[i : i + 2], "big") for i in (0, 2))
            if frame[23] == socket.IPPROTO_TCP and source == self._port and segment[13] & RST:
                self.resets.setdefault(target, time.monotonic())

    def __enter__(self) -> Tap:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._sock.close()


class Scene:
    """The instance, a stream to its other worker, and a service of the kernel beside it."""

    def __init__(self, place: Path, dataplane: Dataplane) -> None:
        self.dataplane = dataplane
        self.random = random.Random(11)
        self._orders = os.open(place / "orders", os.O_RDWR | os.O_CLOEXEC)
        self.guard = Guard(dataplane, PORT, 1)
        with dataplane.link.in_near():
            self._listener = socket.create_server((dataplane.host, KERNEL_PORT))
        self._client = dataplane.connect(KERNEL_PORT)
        self._served = self._listener.accept()[0]

    def order(self, attack: str) -> None:
        """Has worker 1 do it; there will be no answer."""
        os.write(self._orders, f"{attack}\n".encode())

    def kernel_goes_on(self) -> None:
        """A connection from before still works, and a new one can be made."""
        for client, served in ((self._client, self._served), self._new_pair()):
            client.sendall(b"kernel")
            assert served.recv(6) == b"kernel"

    def _new_pair(self) -> tuple[socket.socket, socket.socket]:
        client = self.dataplane.connect(KERNEL_PORT)
        return client, self._listener.accept()[0]

    def close(self) -> None:
        """Ends all of it."""
        self.guard.close()
        for sock in (self._client, self._served, self._listener):
            sock.close()
        os.close(self._orders)


@contextmanager
def scene_on(link: Link, place: Path) -> Iterator[Scene]:
    """It, on a link with two queues."""
    os.mkfifo(place / "orders")
    (place / "answers").touch()
    args = (str(place), str(PORT))
    with Dataplane(link, place / "log", ATTACK, args, "--keep-privileges") as dataplane:
        scene = Scene(place, dataplane.wait_ready())
        try:
            yield scene
        finally:
            scene.close()


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with scene_on(Veth("dth", 2), tmp_path_factory.mktemp("deaths")) as made:
        yield made


# ---- ways to die -------------------------------------------------------------------------------


def _killed(scene: Scene, pid: int) -> None:
    """From outside, in the middle of whatever it does."""
    kill(pid)


def _ring_3_fault(scene: Scene, pid: int) -> None:
    """The application writes to where it may not, and has no handler."""
    scene.order("die")


def _break_gate(ring0: Ring0) -> None:
    at = Symbols.load(MODULE.with_suffix(".sym")).offset("ix_gate_call")
    assert at is not None
    ring0.poke(ring0.module + at, UD2)


def _ring_0_fault(scene: Scene, pid: int) -> None:
    """The dataplane itself meets an instruction that is none, at its next call."""
    ring0 = Ring0(pid)
    _break_gate(ring0)
    ring0.close()


def _triple_fault(scene: Scene, pid: int) -> None:
    """... and there is no way to deliver that: neither #UD nor #DF has a handler."""
    ring0 = Ring0(pid)
    ring0.poke_idts()
    _break_gate(ring0)
    ring0.close()


REGISTERS = r"\n.* +rip \w{16} +rsp \w{16} +rflags \w{16}.*\n"
# What the control plane must have said, in this order.
DEATHS = {
    "sigkill": (_killed, [r"ended: killed by SIGKILL, \d+ connections reset; starting it again"]),
    "ring-3-fault": (
        _ring_3_fault,
        [
            r"a signal without a handler \(0x\w+\), in ring 3, thread \d+; ends by SIGSEGV",
            REGISTERS,
            r"#0 +\w+ ring 3: attack\.so attack_die\+0x",
            r"#\d+ +\w+ ring 3: libixnet\.so \w+\+0x",
            r"#\d+ +\w+ ring 3: attack\.so echo_main\+0x",
            r"ended: killed by SIGSEGV, \d+ connections reset; starting it again",
        ],
    ),
    "ring-0-fault": (
        _ring_0_fault,
        [
            r"an exception in the module \(0x6\), in ring 0, thread \d+; ends by SIGABRT",
            REGISTERS,
            r"#0 +\w+ module: ix_gate_call\+0x0",
            r"#\d+ +\w+ ring 3: libixnet\.so \w+\+0x",
            r"#\d+ +\w+ ring 3: attack\.so echo_main\+0x",
            r"rsp\+0x0 +\w+ (shim|module): \w+\+0x",  # it has no frame of its own yet
            r"ended: killed by SIGABRT, \d+ connections reset; starting it again",
        ],
    ),
    "triple-fault": (
        _triple_fault,
        [
            r"triple fault \(0x\w+\), in ring \d, thread \d+; ends by SIGABRT",
            REGISTERS,  # KVM decides what they are then
            r"ended: killed by SIGABRT, \d+ connections reset; starting it again",
        ],
    ),
}


def expect_said(text: str, patterns: list[str]) -> None:
    """Each, behind the one before."""
    at = 0
    for pattern in patterns:
        found = re.compile(pattern).search(text, at)
        assert found, f"{pattern!r} is not in:\n{text[at:]}"
        at = found.end() - 1


def expect_resets(socks: list[socket.socket], began: float, tap: Tap) -> float:
    """Each peer gets ECONNRESET, by a RST that was seen on the wire; the seconds until the last."""
    for sock in socks:
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    seconds = time.monotonic() - began
    ports = {sock.getsockname()[1] for sock in socks}
    deadline = time.monotonic() + PATIENCE_S
    while not ports <= set(tap.resets) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert ports <= set(tap.resets), f"no RST to {ports - set(tap.resets)}"
    return seconds


@pytest.mark.parametrize("how", DEATHS)
def test_death_is_told_and_stays_alone(scene: Scene, note: Note, how: str) -> None:
    dataplane = scene.dataplane
    die, patterns = DEATHS[how]
    pid, before = dataplane.worker(VICTIM)["pid"], dataplane.network()
    said = len(dataplane.printed())
    socks = [dataplane.connect(VICTIM_PORT) for _ in range(CONNECTIONS)]
    for sock in socks:
        echo_once(sock, 500, scene.random)
    with Tap(dataplane, VICTIM_PORT) as tap:
        began = time.monotonic()
        die(scene, pid)
        seconds = expect_resets(socks, began, tap)
    for sock in socks:
        sock.close()
    scene.guard.unharmed()
    scene.kernel_goes_on()
    dataplane.wait_serving(VICTIM, other_than=pid)
    assert dataplane.shard(VICTIM)["socket"], "no socket on its queue"
    with dataplane.connect(VICTIM_PORT) as sock:
        echo_once(sock, 5000, scene.random)
    text = dataplane.printed()[said:]
    expect_said(text, [*patterns, f"worker {VICTIM} was started again"])
    told = re.search(r"SIG\w+, (\d+) connections reset", text)
    assert told and int(told[1]) >= CONNECTIONS, text
    scene.guard.unharmed()
    scene.kernel_goes_on()
    dataplane.expect_network(before)
    note(f"{CONNECTIONS} peers had ECONNRESET {seconds:.2f} s after it died")


def test_end_leaves_the_host_as_it_was(tmp_path: Path) -> None:
    """A worker that died and came back doesn't change how the instance ends."""
    args = (str(tmp_path), str(PORT))
    with Dataplane(Veth("dte", 1), tmp_path / "log", ATTACK, args) as dataplane:
        pid = dataplane.wait_ready().worker(0)["pid"]
        kill(pid)
        dataplane.wait_serving(0, other_than=pid)
        assert dataplane.network() != dataplane.before, "it has no XDP program to take away"
        dataplane.end()
        dataplane.expect_network(dataplane.before)
