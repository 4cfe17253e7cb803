"""Dataplanes in the dune placement on veth links, with their clients, for the tests here."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from ixnet.control.instance import Instance, find_instances
from ixnet.control.lab import LabConfig, lab_down, lab_up
from ixnet.control.namespaces import in_netns, run_in_netns
from tests.dune.kit import ROOT

READY_S = 900.0
PATIENCE_S = 300.0
ECHO = ROOT / "build/apps/echo.so"
MODULE = ROOT / "ixnet/ring0.bin"


class Link:
    """A NIC and the kernel at its other end. near, far: namespaces; near None: the main one.
    tag: its name among others."""

    tag: str
    near: str | None
    near_if: str
    far: str
    far_if: str

    def up(self) -> str:
        """Makes it ready; returns the address of the near end."""
        raise NotImplementedError

    def down(self) -> None:
        """Takes it away, if it was made for this."""

    def in_near(self) -> contextlib.AbstractContextManager[None]:
        """The calling thread there."""
        return in_netns(self.near) if self.near else contextlib.nullcontext()


class Veth(Link):
    """Made for one instance: both ends in namespaces of their own."""

    def __init__(self, tag: str, queues: int) -> None:
        self.lab = LabConfig.named(tag, queues=queues)
        self.tag = tag
        self.near, self.near_if = self.lab.server_netns, self.lab.server_if
        self.far, self.far_if = self.lab.client_netns, self.lab.client_if

    def up(self) -> str:
        """See Link."""
        self.down()
        return lab_up(self.lab).server.ip

    def down(self) -> None:
        """See Link."""
        lab_down(self.lab, kill=True)


class Dataplane:
    """`ixnet run --placement dune` on a link. log: a file for what it prints; before: network()
    before it began."""

    def __init__(
        self, link: Link, log: Path, app: Path, app_args: Sequence[str], *options: str
    ) -> None:
        self.link = link
        self.name = f"dune-{link.tag}"
        self.log = log
        self._process: subprocess.Popen[str] | None = None
        self.host = link.up()
        self.before = self.network()
        argv = [
            str(Path(sys.executable).parent / "ixnet"),
            *("run", "--interface", link.near_if, "--placement", "dune"),
            *("--name", self.name, "--frames", "2048", "--max-flows", "1024", *options),
            *(str(app), "--", *app_args),
        ]
        with log.open("wb") as file:
            how: dict[str, Any] = {
                "stdin": subprocess.DEVNULL, "stdout": file, "stderr": subprocess.STDOUT,
            }  # fmt: skip
            if link.near:
                self._process = run_in_netns(link.near, argv, None, **how)
            else:
                self._process = subprocess.Popen(argv, text=True, **how)

    def __enter__(self) -> Dataplane:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self.link.down()

    def end(self) -> None:
        """Ends it in order; its link stays."""
        assert self._process is not None
        self._process.terminate()
        assert self._process.wait(PATIENCE_S) == 0, self.printed()
        self._process = None

    def network(self) -> dict[str, Any]:
        """What of the host's network an instance could leave changed: links with their flags, MTU,
        XDP program and promiscuity, addresses, routes, rules."""
        facts: dict[str, Any] = {}
        netns = ("-n", self.link.near) if self.link.near else ()
        deadline = time.monotonic() + PATIENCE_S
        while not facts or "tentative" in str(facts):  # an IPv6 address that is still looked for
            assert time.monotonic() < deadline, facts
            for what in ("-d link", "addr", "-4 route show table all", "-6 route show table all",
                         "-4 rule", "-6 rule"):  # fmt: skip
                argv = ["ip", *netns, "-j", *what.split()]
                done = subprocess.run(argv, capture_output=True, text=True, check=True)
                facts[what] = json.loads(done.stdout or "[]")
        return facts

    def expect_network(self, wanted: dict[str, Any]) -> None:
        """It is, or soon will be (a carrier may be away), as it was."""
        deadline = time.monotonic() + PATIENCE_S
        while (found := self.network()) != wanted and time.monotonic() < deadline:
            time.sleep(0.1)
        assert found == wanted

    def printed(self) -> str:
        """All that it said so far."""
        return self.log.read_text(errors="replace")

    def wait_ready(self) -> Dataplane:
        """Itself, once it serves."""
        assert self._process is not None
        deadline = time.monotonic() + READY_S
        while f"ready {self.name}" not in self.printed():
            assert self._process.poll() is None, self.printed()
            assert time.monotonic() < deadline, self.printed()
            time.sleep(0.1)
        return self

    def instance(self) -> Instance:
        """As other processes find it."""
        return next(found for found in find_instances() if found.name == self.name)

    def worker(self, number: int) -> dict[str, Any]:
        """What the control plane says of a worker now."""
        return dict(self._live()["workers"][number])

    def shard(self, number: int) -> dict[str, Any]:
        """What it says of a shard."""
        return dict(self._live()["shards"][number])

    def _live(self) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            live = self.instance().ask(PATIENCE_S)
            if live:
                return live
        raise AssertionError(f"the control plane does not answer:\n{self.printed()}")

    def wait_serving(self, number: int, other_than: int = 0) -> dict[str, Any]:
        """Waits until the worker runs (as another process than that one)."""
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            worker = self.worker(number)
            if worker["state"] == "ready" and worker["pid"] != other_than:
                return worker
            time.sleep(0.1)
        raise AssertionError(f"worker {number} does not serve:\n{self.printed()}")

    def connect(self, port: int) -> socket.socket:
        """A connection to the shard that listens there: the link spreads flows at random."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            with in_netns(self.link.far):
                sock = socket.socket()
            sock.settimeout(PATIENCE_S)
            try:
                sock.connect((self.host, port))
                return sock
            except OSError as refused:
                sock.close()
                if time.monotonic() > deadline:
                    raise AssertionError(f"no connection to port {port}: {refused}") from refused


def receive(sock: socket.socket, nbytes: int) -> bytes:
    """Exactly so many bytes; fewer only at the stream's end."""
    parts = bytearray()
    while len(parts) < nbytes and (part := sock.recv(nbytes - len(parts))):
        parts += part
    return bytes(parts)


def echo_once(sock: socket.socket, nbytes: int, source: random.Random) -> None:
    """Sends random bytes; they come back."""
    sent = source.randbytes(nbytes)
    sock.sendall(sent)
    got = receive(sock, nbytes)
    assert got == sent, f"{len(got)} bytes came back of {nbytes}, or others"


class Guard:
    """A verified echo stream that runs all the while: traffic that no attack may harm."""

    def __init__(self, dataplane: Dataplane, port: int, seed: int) -> None:
        self.messages = 0
        self.problem = ""
        self._sock = dataplane.connect(port)
        self._random = random.Random(seed)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                echo_once(self._sock, self._random.randrange(1, 3000), self._random)
                self.messages += 1
                time.sleep(0.005)
        except (OSError, AssertionError) as error:
            self.problem = f"{error!r} after {self.messages} messages"

    def unharmed(self, more: int = 3) -> None:
        """It goes on: so many messages more than now come back."""
        wanted = self.messages + more
        deadline = time.monotonic() + PATIENCE_S
        while not self.problem and self.messages < wanted and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not self.problem and self.messages >= wanted, self.problem or "the stream stands"

    def close(self) -> None:
        """Ends it."""
        self._stop.set()
        self._thread.join()
        self._sock.close()


# ---- ring 0's memory, seen from outside ----------------------------------------------------------


def _closed_maps(pid: int) -> Iterator[tuple[int, int, str]]:
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        low, high = (int(word, 16) for word in fields[0].split("-"))
        yield low, high, fields[1]


class Ring0:
    """The code of a worker's ring 0 (the shim and the dataplane), reached by /proc/PID/mem, which
    only the host's root may open. module: where the dataplane's image begins."""

    # libdune_shim/shim/layout.h
    MODULES_AT = 0x04000000
    BLOCKS_AT = 0x10000000
    BLOCKS_BYTES = 0x10000000
    BLOCK = 1 << 17
    IDT_AT = 0x3000
    IMAGE_BYTES = 0x00100000
    WINDOW = 1 << 30
    PAGE = 4096

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._file = os.open(f"/proc/{pid}/mem", os.O_RDWR | os.O_CLOEXEC)
        self._base = self._find()
        self.module = self._base + self.MODULES_AT
        self._shim = self._read(self._base, self.IMAGE_BYTES)
        self._blocks = {block: self._constants(block) for block in self._used_blocks()}
        self._maps = self._vault_maps()

    def _read(self, at: int, nbytes: int) -> bytes:
        return os.pread(self._file, nbytes, at)

    def _find(self) -> int:
        magic = MODULE.read_bytes()[:8]
        for low, _, _ in _closed_maps(self._pid):
            if low % self.WINDOW == self.MODULES_AT:
                with contextlib.suppress(OSError):
                    if self._read(low, 8) == magic:
                        return low - self.MODULES_AT
        raise AssertionError(f"no module in process {self._pid}")

    def _used_blocks(self) -> Iterator[int]:
        """The vCPUs' blocks: each begins with code."""
        first = self._base + self.BLOCKS_AT
        for block in range(first, first + self.BLOCKS_BYTES, self.BLOCK):
            if any(self._read(block, 8)):
                yield block

    def _constants(self, block: int) -> bytes:
        """What of it never changes: entry stubs, and the gates of exceptions."""
        return self._read(block, self.PAGE) + self._read(block + self.IDT_AT, self.PAGE)

    def _vault_maps(self) -> list[tuple[int, int, str]]:
        """The mappings of image and module, and their rights."""
        end = self._base + self.MODULES_AT + self.IMAGE_BYTES * 4
        return [m for m in _closed_maps(self._pid) if self._base <= m[0] < end]

    def check(self) -> None:
        """Shim, entry stubs and gates are as they were; the dataplane's code is what the file has;
        rights too."""
        image = MODULE.read_bytes()
        text, text_end = struct.unpack_from("<2Q", image, 16)
        code = self._read(self.module + text, text_end - text)
        assert code == image[text:text_end], "the dataplane's code changed"
        assert self._read(self._base, self.IMAGE_BYTES) == self._shim, "the shim changed"
        for block, constants in self._blocks.items():
            assert self._constants(block) == constants, "a vCPU's stubs or gates changed"
        assert self._vault_maps() == self._maps, "the vault's mappings changed"

    def poke(self, at: int, data: bytes) -> None:
        """Breaks it, as no ring 3 can."""
        assert os.pwrite(self._file, data, at) == len(data)

    def poke_idts(self) -> None:
        """Leaves no vCPU a handler for any exception."""
        for block in self._used_blocks():
            self.poke(block + self.IDT_AT, bytes(self.PAGE))

    def close(self) -> None:
        """Lets go of it."""
        os.close(self._file)


def kill(pid: int) -> None:
    """SIGKILL to a worker of the test's own."""
    os.kill(pid, signal.SIGKILL)
