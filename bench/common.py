"""What every benchmark needs: where the programs are, running the client."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from rich.console import Console

from ixnet.bench.client import load_file
from ixnet.bench.errors import BenchError
from ixnet.control.lab import LabConfig
from ixnet.control.namespaces import run_in_netns

ROOT = Path(__file__).resolve().parent.parent
SERVER_CORE = 1
CLIENT_CORE = 0
# What the start of an interpreter takes where the limits were chosen.
START_S = 0.03
STARTS = 3


def program(name: str) -> Path:
    """A built C program of bench/, by its path there. IX_BENCH_BUILD names another build tree."""
    path = Path(os.environ.get("IX_BENCH_BUILD", ROOT / "build" / "bench")) / name
    if not os.access(path, os.X_OK):
        raise BenchError(f"{path} is not there: run make build first")
    return path


def callgrind(out: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs a program under valgrind's callgrind: `words` are options and its command line, profiles
    go to files that begin with `out`. Errors: BenchError."""
    argv = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", *words]
    try:
        return subprocess.run(argv, capture_output=True, text=True, check=True)
    except FileNotFoundError as error:
        raise BenchError("valgrind is not there: apt-get install valgrind") from error
    except subprocess.CalledProcessError as error:
        raise BenchError(f"{' '.join(argv)} failed:\n{error.stderr}") from error


@cache
def slowness() -> float:
    """How many times slower this machine is than those that limits were chosen for; 1 at least.

    An interpreter's start is measured, of what every server's start is made: programs executed,
    files read, pages touched. It takes 10 to 20 times as long where everything is emulated.
    """
    least = float("inf")
    for _ in range(STARTS):
        began = time.monotonic()
        subprocess.run([sys.executable, "-I", "-c", "pass"], check=True)
        least = min(least, time.monotonic() - began)
    return max(1.0, least / START_S)


def patience(seconds: float) -> float:
    """A limit that is `seconds` on an ordinary machine, for this one."""
    return seconds * slowness()


def report_console() -> Console:
    """Where tables go: as wide as the terminal, or wide enough for them in a file."""
    console = Console()
    return console if console.is_terminal else Console(width=110)


def option_words(options: Mapping[str, object]) -> list[str]:
    """Command-line words of options: {"max_bytes": 9} is --max-bytes 9, True a bare --option."""
    words: list[str] = []
    for name, value in options.items():
        if value is False or value is None:
            continue
        words.append("--" + name.replace("_", "-"))
        if value is not True:
            words.append(str(value))
    return words


def run_load(
    lab: LabConfig,
    mode: str,
    host: str,
    port: int,
    cpu: int | None = CLIENT_CORE,
    deadline_s: float = 60.0,
    timeout_s: float = 10.0,
    **options: object,
) -> dict[str, Any]:
    """Runs the load generator, over the kernel, in the lab's client namespace; returns its report.

    The report of a run with errors is returned too (its "ok" is false). deadline_s: for all of it;
    timeout_s: without progress; both more on a slow machine. Errors: BenchError if there is no
    report, or the client was still running then.
    """
    deadline_s = patience(deadline_s)
    common = {"host": host, "port": port, "timeout": f"{patience(timeout_s):.1f}"}
    words = option_words({**common, **options})
    process = run_in_netns(
        lab.client_netns,
        [str(load_file("ixload")), mode, *words],
        cpu,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        out, err = process.communicate(timeout=deadline_s)
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"load {mode} was still running after {deadline_s:g} s") from error
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    try:
        report: dict[str, Any] = json.loads(out)
    except ValueError as error:
        raise BenchError(
            f"load {mode} ended with status {process.returncode}: {err.strip() or 'no report'}"
        ) from error
    return report
