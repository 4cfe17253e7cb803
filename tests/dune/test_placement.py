"""`ixnet run --placement dune`: the application in ring 3, the dataplane in ring 0, over a veth to
the kernel's sockets. In the lab's guest everything takes 10 to 20 times as long as on a machine."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ixnet.control.lab import Lab, LabConfig
from ixnet.control.namespaces import in_netns
from tests.dune.kit import ROOT

NATIVE = ROOT / "build/apps/echo.so"
PYTHON = ROOT / "apps/echo.py"
PORT = 7070
PATIENCE_S = 900.0
STREAM_BYTES = int(os.environ.get("IX_STREAM_MIB", "2")) << 20
CONNECTIONS = 500
pytestmark = pytest.mark.timeout(3600)
Note = Callable[[str], None]


class Instance:
    """One `ixnet run --placement dune`."""

    def __init__(self, lab: Lab, app: Path, options: Sequence[str] = (), *args: str) -> None:
        self.lab = lab
        self.name = f"dune-{os.getpid()}-{time.monotonic_ns()}"
        argv = [sys.executable, "-m", "ixnet", "run", "-i", lab.cfg.server_if, "--name", self.name]
        argv += ["--placement", "dune", *options, str(app), "--", *(args or ("--port", str(PORT)))]
        self.process = lab.start_server(
            argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=ROOT
        )
        self.said: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.wait_said("ready ")

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line.rstrip("\n"))

    def wait_said(self, part: str) -> str:
        deadline = time.monotonic() + PATIENCE_S
        while not (found := [line for line in self.said if part in line]):
            assert time.monotonic() < deadline and self.process.poll() is None, self.said
            time.sleep(0.05)
        return found[0]

    def stat(self) -> dict[str, Any]:
        argv = [sys.executable, "-m", "ixnet", "stat", "--name", self.name, "--json"]
        done = subprocess.run(argv, capture_output=True, text=True, check=True, cwd=ROOT)
        return dict(json.loads(done.stdout))

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(PATIENCE_S)
        self._reader.join()
        return status


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(LabConfig.named(f"dp{os.getpid()}", queues=2)) as made:
        yield made


@contextmanager
def running(lab: Lab, app: Path, *options: str) -> Iterator[Instance]:
    """An instance that is still there at the end of the block, and ends in order."""
    instance = Instance(lab, app, options)
    try:
        yield instance
        assert instance.end() == 0, instance.said
    finally:
        with contextlib.suppress(ProcessLookupError):
            instance.process.kill()


def connect(lab: Lab) -> socket.socket:
    with in_netns(lab.cfg.client_netns):
        sock = socket.socket()
    sock.settimeout(PATIENCE_S)
    sock.connect((lab.facts.server.addresses[0].split("/")[0], PORT))
    return sock


def receive(sock: socket.socket, count: int) -> bytes:
    got = bytearray()
    while len(got) < count and (part := sock.recv(count - len(got))):
        got += part
    return bytes(got)


def stream(lab: Lab, nbytes: int) -> None:
    """So many bytes each way at once, and the end of both halves; their SHA-256 is equal."""
    data = random.Random(nbytes).randbytes(nbytes)
    got = hashlib.sha256()
    with connect(lab) as sock:

        def send() -> None:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        count = 0
        while part := sock.recv(1 << 16):
            got.update(part)
            count += len(part)
        sender.join()
    assert count == nbytes and got.digest() == hashlib.sha256(data).digest()


def guests(instance: Instance) -> list[dict[str, Any]]:
    return [worker["guest"] for worker in instance.stat()["workers"]]


@pytest.mark.parametrize(
    ("app", "kick"), [(NATIVE, "thread"), (PYTHON, "exit")], ids=["native-thread", "python-exit"]
)
def test_streams_and_connections(lab: Lab, app: Path, kick: str, note: Note) -> None:
    with running(lab, app, "--kick", kick, "--user", "nobody") as instance:
        assert "nobody, without capabilities" in instance.wait_said("runs as")
        assert "dune: application in ring 3" in instance.wait_said("placement")
        began = time.monotonic()
        stream(lab, STREAM_BYTES)
        note(f"{STREAM_BYTES >> 20} MiB each way, SHA-256 equal: {time.monotonic() - began:.1f} s")
        began = time.monotonic()
        socks = [connect(lab) for _ in range(CONNECTIONS)]
        for i, sock in enumerate(socks):
            sock.sendall(i.to_bytes(8, "big") * 8)
        for i, sock in enumerate(socks):
            assert receive(sock, 64) == i.to_bytes(8, "big") * 8
        for sock in socks:
            sock.close()
        note(f"{CONNECTIONS} connections at once: {time.monotonic() - began:.1f} s")
        stat = instance.stat()
        assert stat["placement"] == "dune" and stat["kick"] == kick
        assert stat["total"]["tcp_established"] == CONNECTIONS + 1
        assert stat["total"]["call_errors"] == 0
        for worker in stat["workers"]:
            guest = worker["guest"]
            status = Path(f"/proc/{worker['pid']}/status").read_text()
            assert "Uid:\t65534\t65534\t65534\t65534" in status
            assert "CapEff:\t0000000000000000" in status
            note(f"guest {worker['id']}: { {n: v for n, v in guest.items() if 'cycles' not in n} }")
            assert guest["module_calls"] > 100
            assert guest["gate_refused"] == guest["refused"] == 0
            assert sum(guest[f"percent_{who}"] for who in ("ring0", "ring3", "linux")) > 99
        kicks = sum(guest["kicks"] for guest in guests(instance))
        assert kicks == 0 if kick == "thread" else kicks > 100
