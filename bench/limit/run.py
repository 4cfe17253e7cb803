"""Measures the limit of a link: bare AF_XDP frames, one core each end, nothing else in between.

python -m bench.limit.run [--seconds T] [--rounds N] [--mode auto|native|generic] [--bytes N]
                          [--no-busy-poll] [--json FILE]

--mode auto: as ixnet would. --bytes: of a frame, Ethernet's header included.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.table import Table

from bench.common import (
    CLIENT_CORE,
    SERVER_CORE,
    BenchError,
    option_words,
    program,
    report_console,
)
from ixnet.bench.machine import Machine, machine
from ixnet.control.lab import Lab, LabConfig, LabError
from ixnet.control.namespaces import in_netns
from ixnet.control.nic import Mode, Nic, ladder

OUTSTANDING = (1, 16, 128, 512)
# Ethernet, IPv4, TCP with timestamps: a bare frame as long as that of a message of 64 bytes, and a
# full one.
HEADER_BYTES = 14 + 20 + 32
FRAME_BYTES = 64 + HEADER_BYTES
FULL_FRAME_BYTES = 1514
READY_S = 60.0


def same_as_ixnet(lab: Lab) -> dict[str, object]:
    """Options of both ends, so that bare frames go the way that ixnet's go on this link."""
    with in_netns(lab.cfg.server_netns):
        modes = ladder(Nic.find(lab.cfg.server_if))
    best = next(mode for mode in modes if mode is not Mode.NATIVE_ZEROCOPY)  # no veth has that
    return {"generic": best is Mode.GENERIC_COPY, "busy_poll": True}


@contextmanager
def reflector(lab: Lab, cpu: int | None, **options: object) -> Iterator[None]:
    """A reflector on the server's end of a lab, ready, for the length of the block."""
    argv = [
        str(program("limit/reflect")),
        *option_words({"interface": lab.cfg.server_if, **options}),
    ]
    with tempfile.TemporaryFile("w+") as log:
        process = lab.start_server(argv, cpu, stdout=log, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + READY_S
            while not (said := _read(log.fileno())).startswith("ready"):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise BenchError(f"the reflector does not serve: {said.strip()}")
                time.sleep(0.005)
            yield
        finally:
            lab.stop(process)


def _read(fd: int) -> str:
    return Path(f"/proc/self/fd/{fd}").read_text(errors="replace")


def pingpong(
    lab: Lab, cpu: int | None, outstanding: int, seconds: float, **options: object
) -> dict[str, Any]:
    """Runs the generator on the client's end and returns its report.

    Errors: BenchError if it can't run, or no frame came back.
    """
    words = option_words(
        {
            "interface": lab.cfg.client_if,
            "destination": lab.cfg.server_mac,
            "source": lab.cfg.client_mac,
            "outstanding": outstanding,
            "seconds": seconds,
            **options,
        }
    )
    process = lab.start_client(
        [str(program("limit/pingpong")), *words],
        cpu,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        out, err = process.communicate(timeout=seconds + READY_S)
    except subprocess.TimeoutExpired as error:
        raise BenchError("the generator did not end in time") from error
    finally:
        lab.stop(process)
    if process.returncode != 0:
        raise BenchError(f"the generator failed: {err.strip() or out.strip()}")
    report: dict[str, Any] = json.loads(out)
    return report


def measure(
    lab: Lab,
    seconds: float = 1.0,
    rounds: int = 3,
    generic: bool = False,
    busy_poll: bool = True,
    outstanding: Sequence[int] = OUTSTANDING,
    frame_bytes: int = FRAME_BYTES,
) -> dict[int, list[dict[str, Any]]]:
    """Reports of every round by frames outstanding, the reflector started anew for each round."""
    reports: dict[int, list[dict[str, Any]]] = {count: [] for count in outstanding}
    how: dict[str, object] = {"generic": generic, "busy_poll": busy_poll}
    for _ in range(rounds):
        with reflector(lab, SERVER_CORE, **how):
            for count in outstanding:
                reports[count].append(
                    pingpong(lab, CLIENT_CORE, count, seconds, bytes=frame_bytes, **how)
                )
    return reports


def summary(reports: dict[int, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Medians, least and most over the rounds."""
    rows = []
    for count, runs in reports.items():
        rates = [run["per_second"] for run in runs]
        rows.append(
            {
                "outstanding": count,
                "per_second": statistics.median(rates),
                "least": min(rates),
                "most": max(rates),
                "p50_us": statistics.median(run["us"]["p50"] for run in runs),
                "p99_us": statistics.median(run["us"]["p99"] for run in runs),
                "lost": sum(run["lost"] for run in runs),
                "mode": runs[0]["mode"],
                "busy_poll": runs[0]["busy_poll"],
                "napi_id": runs[0]["napi_id"],
            }
        )
    return rows


def table(rows: list[dict[str, Any]], on: Machine) -> Table:
    """The rows as a table for people."""
    made = Table(
        title=f"Limit of the link: bare AF_XDP, {rows[0]['mode']}, {_waiting(rows[0])}",
        caption=f"{on.cpu}, {on.cores} cores, Linux {on.kernel}; "
        f"generator on core {CLIENT_CORE}, reflector on core {SERVER_CORE}",
    )
    for name in ("outstanding", "round trips/s", "least", "most", "p50 us", "p99 us", "lost"):
        made.add_column(name, justify="right")
    for row in rows:
        made.add_row(
            str(row["outstanding"]),
            *(f"{row[key]:,.0f}" for key in ("per_second", "least", "most")),
            f"{row['p50_us']:.2f}",
            f"{row['p99_us']:.2f}",
            str(row["lost"]),
        )
    return made


def _waiting(row: dict[str, Any]) -> str:
    if row["busy_poll"] and row["napi_id"]:
        return "busy polling"
    if row["busy_poll"]:
        return "spinning (this kernel can't busy-poll a socket in copy mode)"
    return "spinning"


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="bench.limit", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=1.0, help="measured time a point")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mode", choices=("auto", "native", "generic"), default="auto")
    parser.add_argument("--bytes", type=int, default=FRAME_BYTES)
    parser.add_argument("--no-busy-poll", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    console = report_console()
    try:
        with Lab(LabConfig.named("limit", queues=1)) as lab:
            auto = bool(same_as_ixnet(lab)["generic"])
            generic = {"auto": auto, "native": False, "generic": True}[args.mode]
            reports = measure(
                lab,
                args.seconds,
                args.rounds,
                generic=generic,
                busy_poll=not args.no_busy_poll,
                frame_bytes=args.bytes,
            )
    except (BenchError, LabError) as error:
        print(f"bench.limit: {error}", file=sys.stderr)
        return 1
    rows = summary(reports)
    on = machine()
    console.print(table(rows, on))
    if args.json:
        record = {"machine": on.as_dict(), "rows": rows, "runs": reports}
        args.json.write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
