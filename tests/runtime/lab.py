"""Instances of `ixnet run` in a lab of their own, for tests.

ixlab-TAG-srv                          ixlab-TAG-cli
ixs0 10.77.0.1/24 ------ veth ------ ixc0 10.77.0.2/24
the instance under test                the kernel's own sockets
"""

from __future__ import annotations

import itertools
import os
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

from ixnet.control.instance import Instance, find_instances
from ixnet.control.lab import Lab
from ixnet.control.namespaces import in_netns
from ixnet.control.stats import ShardReading, read_instance, total

APPS = Path(__file__).parent / "apps"
ROOT = Path(__file__).resolve().parents[2]
ECHO_PORT = 7777
# For what ends soon, on a machine that is slow and has much else to do.
PATIENCE_S = 100.0
_numbers = itertools.count()


def until(what: str, done: Callable[[], Any], patience_s: float = PATIENCE_S) -> Any:
    """Waits for `done` to give something true, and returns it."""
    deadline = time.monotonic() + patience_s
    while not (result := done()):
        assert time.monotonic() < deadline, f"waited {patience_s:g} s for {what}"
        time.sleep(0.02)
    return result


def read_until_ready(process: subprocess.Popen[str], patience_s: float) -> list[str]:
    """The lines that it prints, up to the one that begins with "ready" or to its end. It is killed
    if that takes too long."""
    assert process.stdout is not None
    said: list[str] = []
    # No select(): a line that came together with the one before is in the pipe no more.
    killer = threading.Timer(patience_s, process.kill)
    killer.start()
    try:
        for line in iter(process.stdout.readline, ""):
            said.append(line.rstrip("\n"))
            if line.startswith("ready"):
                break
    finally:
        killer.cancel()
    return said


@contextmanager
def in_background(work: Callable[[], None]) -> Iterator[None]:
    """Runs `work` again and again in a thread for the length of the block; its failure is ours."""
    halt = threading.Event()
    failures: list[BaseException] = []
    rounds = 0

    def run() -> None:
        nonlocal rounds
        try:
            while not halt.is_set():
                work()
                rounds += 1
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        halt.set()
        thread.join()
    if failures:
        raise failures[0]
    assert rounds, "the work was never done"


def fresh_readings(instance: Instance) -> list[ShardReading]:
    """Each shard's statistics, no older than this question: a shard brings them up to date when it
    goes to sleep, and every 1,024 cycles."""
    began = time.monotonic_ns()
    found: list[ShardReading] = []

    def are_fresh() -> bool:
        found[:] = read_instance(instance)
        return all(reading.now_ns >= began for reading in found)

    until("statistics", are_fresh)
    return found


class Run:
    """One `ixnet run` in the lab's server namespace. said: the lines of its standard output."""

    def __init__(
        self,
        lab: Lab,
        app: Path,
        args: Sequence[str] = (),
        options: Sequence[str] = (),
        prefix: Sequence[str] = (),
        env: dict[str, str] | None = None,
    ) -> None:
        self.lab = lab
        self.name = f"test-{os.getpid()}-{next(_numbers)}"
        argv = [*prefix, sys.executable, "-m", "ixnet", "run", "-i", lab.cfg.server_if]
        argv += ["--name", self.name, "--frames", "2048", "--max-flows", "4096", *options]
        self.process = lab.start_server(
            [*argv, str(app), "--", *args],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, **(env or {})},
        )
        self.said: list[str] = []

    def wait_ready(self, patience_s: float = PATIENCE_S) -> Run:
        """Reads on until the line that begins with "ready"."""
        self.said = read_until_ready(self.process, patience_s)
        is_ready = self.said and self.said[-1].startswith("ready")
        assert is_ready, f"not ready, or not in time: {self.said}, {self.errors()}"
        return self

    def instance(self) -> Instance:
        """What it shows of itself in its directory."""
        found = [i for i in find_instances() if i.name == self.name]
        assert found, f"{self.name} is not to be found"
        return found[0]

    def live(self) -> dict[str, Any]:
        """What its control plane answers."""
        return self.instance().ask(PATIENCE_S)

    def worker_pids(self) -> list[int]:
        """The workers' processes, by shard."""
        return [int(w["pid"]) for w in self.live()["workers"]]

    def states(self) -> list[str]:
        """The workers' states, by shard."""
        return [w["state"] for w in self.live().get("workers", [])]

    def is_over(self, worker_pid: int) -> bool:
        """Whether a worker's process has ended and the control plane knows; another one may serve
        in its place already."""
        workers = self.live().get("workers", [])
        return bool(workers) and all(
            w["state"] != "ready" for w in workers if w["pid"] == worker_pid
        )

    def counters(self) -> dict[str, int]:
        """The sum over the shards."""
        return total(self.readings())

    def readings(self) -> list[ShardReading]:
        """Each shard's statistics."""
        return fresh_readings(self.instance())

    def control_pid(self) -> int:
        """The control plane's process."""
        return self.instance().pid

    def end(self, number: int = signal.SIGTERM) -> int:
        """Sends a signal and waits; returns the exit status."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """The exit status, when it ends."""
        return self.process.wait(PATIENCE_S)

    def errors(self) -> str:
        """Its standard error, once it has ended."""
        assert self.process.stderr is not None
        self.process.wait(PATIENCE_S)
        return self.process.stderr.read()


def run_to_end(
    lab: Lab, app: Path, *args: str, patience_s: float = PATIENCE_S, **more: Any
) -> tuple[int, list[str], str]:
    """An instance that ends by itself: exit status, lines of standard output, standard error."""
    run = Run(lab, app, args, **more)
    try:
        out, err = run.process.communicate(timeout=patience_s)
    finally:
        if run.process.poll() is None:
            run.process.kill()
    return run.process.returncode, out.splitlines(), err


def connect(lab: Lab, port: int = ECHO_PORT, timeout_s: float = PATIENCE_S) -> socket.socket:
    """A connection of the client's kernel to the server's address."""
    with in_netns(lab.cfg.client_netns):
        return socket.create_connection((lab.facts.server.ip, port), timeout=timeout_s)


def echo_once(
    lab: Lab, port: int = ECHO_PORT, message: bytes = b"hello", timeout_s: float = PATIENCE_S
) -> bytes:
    """Sends one message and returns what comes back."""
    with connect(lab, port, timeout_s) as sock:
        sock.sendall(message)
        return receive(sock, len(message))


def receive(sock: socket.socket, length: int) -> bytes:
    """Exactly so many bytes, or fewer at the end of the stream."""
    got = b""
    while len(got) < length:
        data = sock.recv(length - len(got))
        if not data:
            break
        got += data
    return got


def serves(lab: Lab, port: int = ECHO_PORT) -> bool:
    """Whether a message comes back."""
    try:
        return echo_once(lab, port, timeout_s=PATIENCE_S / 5) == b"hello"
    except OSError:
        return False
