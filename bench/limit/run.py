"""Measures the limit of a link: bare AF_XDP frames, one core each end, nothing else in between.

python -m bench.limit.run [--seconds T] [--rounds N] [--mode MODE] [--bytes N]
                          [--no-busy-poll] [--json FILE]

--mode auto: as ixnet would with GRO on at both ends; express: so, or not at all (native copy with
bursts sent without skbs, ixnet/control/express.py); native, generic: as the modes say, GRO off.
--bytes: of a frame, Ethernet's header included.
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
from contextlib import contextmanager, nullcontext
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
from ixnet.control.express import open_express, why_not
from ixnet.control.lab import Lab, LabConfig, LabError
from ixnet.control.namespaces import in_netns
from ixnet.control.nic import Mode, Nic, ladder

MODES = ("auto", "express", "native", "generic")
OUTSTANDING = (1, 16, 128, 512)
# Ethernet, IPv4, TCP with timestamps: a bare frame as long as that of a message of 64 bytes, and a
# full one.
HEADER_BYTES = 14 + 20 + 32
FRAME_BYTES = 64 + HEADER_BYTES
FULL_FRAME_BYTES = 1514
READY_S = 60.0


def same_as_ixnet(lab: Lab) -> dict[str, object]:
    """Options of both ends, so that bare frames go the way that ixnet's go on this link."""
    nics = []
    for name, interface in lab.cfg.ends:
        with in_netns(name):
            nics.append(Nic.find(interface))
    modes = ladder(nics[0])
    best = next(mode for mode in modes if mode is not Mode.NATIVE_ZEROCOPY)  # no veth has that
    return {
        "generic": best is Mode.GENERIC_COPY,
        "busy_poll": True,
        "express": express_object() if _sends_by_express(nics, best) else None,
    }


def express_object() -> Path:
    """What --express of both programs takes."""
    return program("limit/reflect").with_name("redirect.bpf.o")


def _sends_by_express(nics: Sequence[Nic], mode: Mode) -> bool:
    if not all(nic.takes_xdp_frames and not why_not(nic, mode) for nic in nics):
        return False
    with open_express() or nullcontext() as steering:
        return steering is not None


@contextmanager
def reflector(lab: Lab, cpu: int | None, **options: object) -> Iterator[dict[str, Any]]:
    """A reflector on the server's end of a lab, ready, for the length of the block, after which
    its report is in the dict."""
    report: dict[str, Any] = {}
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
            yield report
        finally:
            lab.stop(process)
        if process.returncode == 0:
            report.update(json.loads(_read(log.fileno()).splitlines()[-1]))


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
    express: Path | None = None,
    outstanding: Sequence[int] = OUTSTANDING,
    frame_bytes: int = FRAME_BYTES,
) -> dict[int, list[dict[str, Any]]]:
    """Reports of every round by frames outstanding, the reflector started anew for each round."""
    reports: dict[int, list[dict[str, Any]]] = {count: [] for count in outstanding}
    how: dict[str, object] = {"generic": generic, "busy_poll": busy_poll, "express": express}
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


def options_of(lab: Lab, mode: str) -> dict[str, Any]:
    """Sets the link for one of MODES; options of both ends. Errors: BenchError if it can't be
    had."""
    if mode in ("generic", "native"):
        return {"generic": mode == "generic"}
    lab.set_gro(True)
    how = same_as_ixnet(lab)
    if mode == "express" and how["express"] is None:
        raise BenchError("no express here: needs Linux 6.3 and CAP_PERFMON")
    return how


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="bench.limit", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=1.0, help="measured time a point")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mode", choices=MODES, default="auto")
    parser.add_argument("--bytes", type=int, default=FRAME_BYTES)
    parser.add_argument("--no-busy-poll", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    console = report_console()
    try:
        with Lab(LabConfig.named("limit", queues=1)) as lab:
            how = options_of(lab, args.mode) | {"busy_poll": not args.no_busy_poll}
            reports = measure(lab, args.seconds, args.rounds, frame_bytes=args.bytes, **how)
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
