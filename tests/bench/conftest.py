"""The benchmarks' programs, and a lab to run them on.

ixlab-...-srv                                  ixlab-...-cli
ixs0 10.77.0.1, fd77:6978::1  --- veth ---  ixc0 10.77.0.2, fd77:6978::2
kecho, reflect                 2 queues     ixload, pingpong
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.checks import tcp_counters
from ixnet.bench.client import load_file
from ixnet.control.lab import Lab, LabConfig
from tests.runtime.lab import until

ROOT = Path(__file__).resolve().parents[2]
HOST = "10.77.0.1"
# For what ends soon, on a machine that is slow and has much else to do.
PATIENCE_S = 200.0
PROGRAMS = {
    "kecho": "kecho.c",
    "limit/reflect": "limit/reflect.c",
    "limit/pingpong": "limit/pingpong.c",
    "limit/redirect.bpf.o": "limit/redirect.bpf.c",
}

# Sides of the load generator that have a name in the tests.
MODES = {
    "echo": ("echo",),
    "connrate": ("connrate",),
    "many": ("transfer", "--max-bytes", "4096"),
    "stream": ("transfer", "--messages", "1", "--bytes", str(1 << 30)),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() == 0:
        return
    needs_root = pytest.mark.skip(reason="network namespaces need root")
    for item in items:
        if "lab" in getattr(item, "fixturenames", ()):
            item.add_marker(needs_root)


def _is_current(built: Path, source: Path) -> bool:
    headers = (ROOT / "bench/limit").glob("*.h")
    newest = max(p.stat().st_mtime for p in (source, *headers))
    return built.exists() and built.stat().st_mtime > newest


@pytest.fixture(scope="session", autouse=True)
def programs() -> Path:
    """Where the C programs lie, where bench.common.program() finds them. Those that are older than
    their sources are built now."""
    built = ROOT / "build/bench"
    if not all(_is_current(built / p, ROOT / "bench" / source) for p, source in PROGRAMS.items()):
        make = ["flock", "build/.lock", "make", "--no-print-directory"]
        subprocess.run([*make, *(f"build/bench/{p}" for p in PROGRAMS)], cwd=ROOT, check=True)
    return built


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(LabConfig.named(f"b{os.getpid()}", queues=2)) as made:
        yield made


@pytest.fixture
def start_kecho(lab: Lab, programs: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts kecho with the options given and waits for its "ready"; ended after the test."""
    started: list[subprocess.Popen[str]] = []

    def start(*options: str) -> subprocess.Popen[str]:
        process = lab.start_server([str(programs / "kecho"), *options], stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline().startswith("ready")
        return process

    yield start
    lab.stop(*started)


class Loader:
    """Runs ixload in the client's namespace. Every run must end within PATIENCE_S."""

    def __init__(self, lab: Lab, program: Path) -> None:
        self._lab = lab
        self._program = program

    def start(self, mode: str, *options: str, host: str = HOST) -> subprocess.Popen[str]:
        argv = [str(self._program), *MODES[mode], "--host", host, *options]
        return self._lab.start_client(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def finish(self, process: subprocess.Popen[str]) -> tuple[int, dict[str, Any]]:
        try:
            out, err = process.communicate(timeout=PATIENCE_S)
        finally:
            self._lab.stop(process)
        assert not err, err
        report: dict[str, Any] = json.loads(out)
        assert report["ok"] == (process.returncode == 0)
        return process.returncode, report

    def wait_busy(self) -> None:
        """Waits until requests go to and fro: until the server's kernel has got many more segments
        than the opening of some connections takes."""
        before = tcp_counters(self._lab.cfg.server_netns)["InSegs"]
        until(
            "traffic",
            lambda: tcp_counters(self._lab.cfg.server_netns)["InSegs"] > before + 200,
            PATIENCE_S,
        )

    def run(self, mode: str, *options: str, host: str = HOST) -> tuple[int, dict[str, Any]]:
        return self.finish(self.start(mode, *options, host=host))


@pytest.fixture
def load(lab: Lab) -> Loader:
    return Loader(lab, load_file("ixload"))
