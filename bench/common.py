"""What every benchmark needs: where the programs are, what machine this is, running the client."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from ixnet.control.lab import LabConfig
from ixnet.control.namespaces import run_in_netns

ROOT = Path(__file__).resolve().parent.parent
SERVER_CORE = 1
CLIENT_CORE = 0


class BenchError(Exception):
    """A benchmark can't be run, or didn't end as it should; the message says why."""


def program(name: str) -> Path:
    """A built C program of bench/, by its path there. IX_BENCH_BUILD names another build tree."""
    path = Path(os.environ.get("IX_BENCH_BUILD", ROOT / "build" / "bench")) / name
    if not os.access(path, os.X_OK):
        raise BenchError(f"{path} is not there: run make build first")
    return path


@dataclass(frozen=True)
class Machine:
    """What a figure depends on besides the code. memory_gib: of the whole machine."""

    cpu: str
    cores: int
    memory_gib: float
    kernel: str
    hypervisor: bool
    load_average: float
    time: str

    def as_dict(self) -> dict[str, Any]:
        """A plain dict, for JSON."""
        return asdict(self)


def machine() -> Machine:
    """Looks at the machine as it is now."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Machine(
        cpu=model.group(1) if model else platform.machine(),
        cores=os.cpu_count() or 1,
        memory_gib=round(pages / 2**30, 1),
        kernel=platform.release(),
        hypervisor=bool(re.search(r"^flags\s*:.*\bhypervisor\b", cpuinfo, re.MULTILINE)),
        load_average=os.getloadavg()[0],
        time=time.strftime("%Y-%m-%d %H:%M:%S %z"),
    )


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
    **options: object,
) -> dict[str, Any]:
    """Runs bench/load in the lab's client namespace and returns its report.

    The report of a run with errors is returned too (its "ok" is false). Errors: BenchError if there
    is no report, or the client was still running after deadline_s seconds.
    """
    words = option_words({"host": host, "port": port, **options})
    process = run_in_netns(
        lab.client_netns,
        [str(program("load")), mode, *words],
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
