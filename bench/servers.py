"""The servers that are compared: started on the lab, ready when they say so, and stopped."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from bench.common import ROOT, BenchError, patience, program
from ixnet.control.lab import LabConfig
from ixnet.control.namespaces import in_netns, run_in_netns

# On an ordinary machine.
READY_S = 30.0
STOP_S = 5.0
# Room for items of either memcached.
MEMCACHED_MB = "1024"


@dataclass(frozen=True)
class Placement:
    """Where a server runs: queues of the link, and the core of each queue's worker."""

    queues: int
    cores: tuple[int, ...]


class Server(ABC):
    """A kind of echo server. label: how tables name it. on_dataplane: whose stack it runs on."""

    label: str
    on_dataplane = False

    @abstractmethod
    def argv(self, lab: LabConfig, port: int, placement: Placement) -> list[str]:
        """The command line."""

    @abstractmethod
    def pinned_to(self, placement: Placement) -> int | None:
        """The core that the process is pinned to from outside; None if it sees to that itself."""

    def start(self, lab: LabConfig, port: int, placement: Placement) -> RunningServer:
        """Starts it in the lab's server namespace and waits until it serves.

        Errors: BenchError with what it printed, if it ends or isn't ready within READY_S.
        """
        running = RunningServer(
            self.label, self.argv(lab, port, placement), lab, self.pinned_to(placement)
        )
        try:
            self.wait_ready(running, lab, port)
        except BaseException:
            running.stop()
            raise
        return running

    def wait_ready(self, running: RunningServer, lab: LabConfig, port: int) -> None:
        """Waits until it says that it serves. Errors: BenchError."""
        running.wait_ready()


class RunningServer:
    """A started server; as a context manager it stops at the end of the block.

    ready_line: what it said when it was ready. clean_stop: whether it ended by itself after
    SIGTERM; None while it runs.
    """

    def __init__(self, label: str, argv: Sequence[str], lab: LabConfig, cpu: int | None) -> None:
        self.label = label
        self.ready_line = ""
        self.clean_stop: bool | None = None
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed in __exit__)
        self._process = run_in_netns(
            lab.server_netns,
            argv,
            cpu,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    @property
    def pid(self) -> int:
        """Of its process; it may have started others."""
        return self._process.pid

    def printed(self) -> str:
        """All that it printed so far."""
        self._log.flush()
        return Path(f"/proc/self/fd/{self._log.fileno()}").read_text(errors="replace")

    def alive(self) -> bool:
        """Whether its process runs."""
        return self._process.poll() is None

    def wait_ready(self, patience_s: float = READY_S) -> None:
        """Waits for the line that begins with "ready". Errors: BenchError."""
        patience_s = patience(patience_s)
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            ended = not self.alive()
            for line in self.printed().splitlines():
                if line.startswith("ready"):
                    self.ready_line = line
                    return
            if ended:
                status = self._process.returncode
                raise BenchError(f"{self.label} ended with status {status}:\n{self.printed()}")
            time.sleep(0.005)
        raise BenchError(f"{self.label} was not ready after {patience_s:g} s:\n{self.printed()}")

    def stop(self) -> None:
        """SIGTERM, and SIGKILL after STOP_S."""
        if self.clean_stop is None:
            was_alive = self.alive()
            self._process.terminate()
            try:
                self._process.wait(patience(STOP_S))
                self.clean_stop = was_alive
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
                self.clean_stop = False

    def __enter__(self) -> RunningServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        self._log.close()


class KernelServer(Server):
    """kecho: C and epoll, on the kernel's stack."""

    def __init__(self, label: str = "kernel", spin: bool = False) -> None:
        self.label = label
        self._spin = spin

    def argv(self, lab: LabConfig, port: int, placement: Placement) -> list[str]:
        """The command line."""
        words = [str(program("kecho")), "--port", str(port)]
        return [*words, "--spin"] if self._spin else words

    def pinned_to(self, placement: Placement) -> int | None:
        """One thread, on the first core."""
        return placement.cores[0]


class IxnetServer(Server):
    """An app on the dataplane, started by `ixnet run`. app: its path in the tree."""

    on_dataplane = True

    def __init__(self, label: str, app: str, *run_options: str) -> None:
        self.label = label
        self._app = ROOT / app
        self._run_options = run_options

    def argv(self, lab: LabConfig, port: int, placement: Placement) -> list[str]:
        """The command line. Errors: BenchError if something is not built."""
        command = Path(sys.executable).parent / "ixnet"
        for path in (command, self._app):
            if not path.exists():
                raise BenchError(f"{path} is not there: run make build first")
        return [
            str(command),
            "run",
            "--interface",
            lab.server_if,
            "--queues",
            str(placement.queues),
            "--cores",
            ",".join(str(core) for core in placement.cores),
            *self._run_options,
            str(self._app),
            "--",
            "--port",
            str(port),
        ]

    def pinned_to(self, placement: Placement) -> int | None:
        """`ixnet run` pins its workers itself."""
        return None


class DebianMemcached(Server):
    """memcached itself, on the kernel's stack, one worker thread."""

    label = "memcached -t 1"

    def argv(self, lab: LabConfig, port: int, placement: Placement) -> list[str]:
        """The command line."""
        words = ["memcached", "-u", "root", "-t", "1", "-m", MEMCACHED_MB, "-c", "4096"]
        return [*words, "-U", "0", "-p", str(port)]

    def pinned_to(self, placement: Placement) -> int | None:
        """All of it on the first core."""
        return placement.cores[0]

    def wait_ready(self, running: RunningServer, lab: LabConfig, port: int) -> None:
        """It says nothing; it serves when it accepts. Errors: BenchError."""
        deadline = time.monotonic() + patience(READY_S)
        host = lab.server_ip.split("/")[0]
        while running.alive() and time.monotonic() < deadline:
            with contextlib.suppress(OSError), in_netns(lab.server_netns):
                socket.create_connection((host, port), timeout=1).close()
                running.ready_line = "memcached -t 1"
                return
            time.sleep(0.01)
        raise BenchError(f"memcached does not serve: {running.printed()}")


class IxnetMemcached(Server):
    """`ixnet memcached`, one worker."""

    label = "ixnet memcached"
    on_dataplane = True

    def __init__(self, *run_options: str) -> None:
        self._run_options = run_options

    def argv(self, lab: LabConfig, port: int, placement: Placement) -> list[str]:
        """The command line."""
        command = str(Path(sys.executable).parent / "ixnet")
        words = [command, "memcached", "--interface", lab.server_if, "-t", str(placement.queues)]
        words += ["--cores", ",".join(map(str, placement.cores)), "-m", MEMCACHED_MB]
        return [*words, "-c", "4096", "-p", str(port), *self._run_options]

    def pinned_to(self, placement: Placement) -> int | None:
        """It pins its workers itself."""
        return None


def _polling(busy_poll: bool) -> str:
    return "--busy-poll" if busy_poll else "--block"


def native_echo(busy_poll: bool, *run_options: str) -> Server:
    """The C echo app on the dataplane; busy_poll: never sleep, or sleep when idle."""
    return IxnetServer("ixnet native", "build/apps/echo.so", _polling(busy_poll), *run_options)


def python_echo(busy_poll: bool, *run_options: str) -> Server:
    """The Python echo app (ixnet.event) on the dataplane; busy_poll as for native_echo."""
    return IxnetServer("ixnet Python", "apps/echo.py", _polling(busy_poll), *run_options)


def ixnet_memcached(*run_options: str) -> Server:
    """The memcached server on the dataplane, never sleeping."""
    return IxnetMemcached(_polling(True), *run_options)
