"""`ixnet memcached` in a lab of its own, for tests; and Debian's memcached beside it.

ixlab-TAG-srv                          ixlab-TAG-cli
ixs0 10.77.0.1/24 ------ veth ------ ixc0 10.77.0.2/24
the server under test                the kernel's own sockets
"""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from ixnet.control.lab import Lab
from ixnet.control.namespaces import in_netns
from tests.runtime.lab import PATIENCE_S, ROOT, Run

PORT = 11211
PEER_PORT = 11311
_numbers = itertools.count()


class Server(Run):
    """One `ixnet memcached` in the lab's server namespace."""

    def __init__(self, lab: Lab, *options: str) -> None:
        self.lab = lab
        self.name = f"memcached-{os.getpid()}-{next(_numbers)}"
        argv = [sys.executable, "-m", "ixnet", "memcached", "-i", lab.cfg.server_if]
        argv += ["--name", self.name, *options]
        self.process = lab.start_server(
            argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, env=dict(os.environ)
        )
        self.said: list[str] = []


@contextmanager
def serving(lab: Lab, *options: str) -> Iterator[Server]:
    """A server that is ready, ended in order."""
    server = Server(lab, *options)
    try:
        yield server.wait_ready()
        assert server.end() == 0
        assert server.errors() == ""
    finally:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()


def connect(lab: Lab, port: int = PORT, timeout_s: float = PATIENCE_S) -> socket.socket:
    """A connection of the client's kernel to the server."""
    with in_netns(lab.cfg.client_netns):
        sock = socket.create_connection((lab.facts.server.ip, port), timeout=timeout_s)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock


def talk(sock: socket.socket, data: bytes, end: bytes = b"\r\n") -> bytes:
    """Sends, and reads up to the end given."""
    sock.sendall(data)
    return read_until(sock, end)


def read_until(sock: socket.socket, end: bytes) -> bytes:
    """Reads until what was read ends so, or the connection does."""
    got = b""
    while not got.endswith(end):
        part = sock.recv(1 << 20)
        if not part:
            break
        got += part
    return got


def stats(sock: socket.socket, group: str = "") -> dict[str, str]:
    """STAT lines as a dictionary."""
    lines = talk(sock, f"stats {group}".rstrip().encode() + b"\r\n", b"END\r\n").decode()
    rows = (line.split(" ", 2) for line in lines.splitlines() if line.startswith("STAT "))
    return {name: value for _, name, value in rows}


def in_client(
    lab: Lab, argv: Sequence[str], timeout_s: float = 2 * PATIENCE_S
) -> subprocess.CompletedProcess[str]:
    """Runs a program in the client's namespace."""
    if shutil.which(argv[0]) is None:
        pytest.skip(f"{argv[0]} is not installed (.ci/setup.sh installs it)")
    return subprocess.run(
        ["nsenter", f"--net=/run/netns/{lab.cfg.client_netns}", *argv],
        capture_output=True, text=True, check=False, timeout=timeout_s,
    )  # fmt: skip


@contextmanager
def debians(*options: str) -> Iterator[int]:
    """Debian's memcached on the loopback; yields its port."""
    program = shutil.which("memcached")
    if program is None:
        pytest.skip("memcached is not installed (.ci/setup.sh installs it)")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    argv = [program, "-u", "root", "-l", "127.0.0.1", "-p", str(port), "-t", "1", *options]
    with subprocess.Popen(argv) as process:
        try:
            deadline = time.monotonic() + PATIENCE_S
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    assert time.monotonic() < deadline
                    time.sleep(0.02)
            yield port
        finally:
            process.kill()
