"""The dataplane at both ends of the link, against the link's limit; and what a connection costs.

    python -m bench.native [--seconds T] [--rounds N] [--json FILE]

Each round measures bare AF_XDP frames (bench/limit) and, on the same link right after, the native
client (ixnet/bench/load) against the native echo server, so that their ratio is of one machine in
one mood. GRO is on at both ends, so that both send without skbs (ixnet/control/express.py). Memory
comes from the shard's own layout: what a million connections more would take.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from bench.common import CLIENT_CORE, SERVER_CORE, BenchError, report_console
from bench.compare import PLACEMENT
from bench.limit.run import FRAME_BYTES, pingpong, reflector, same_as_ixnet
from bench.servers import native_echo
from ixnet._core import ffi, lib
from ixnet.bench.client import load_file
from ixnet.bench.machine import machine
from ixnet.control.lab import Lab, LabConfig, LabError, lab_down

PORT = 7000
CONNECTIONS = (1, 16, 128, 512)


def bytes_per_connection() -> float:
    """Bytes of a shard that each connection it can hold adds: TCB, timers, flow table."""

    def shard_bytes(flows: int) -> int:
        cfg = ffi.new("struct ix_config *", {"max_flows": flows, "pool_frames": 4096})
        return int(lib.ix_shard_bytes(cfg))

    few, many = 1 << 16, 1 << 20
    return (shard_bytes(many) - shard_bytes(few)) / (many - few)


def run_client(lab: Lab, connections: int, seconds: float) -> dict[str, Any]:
    """Runs the native client once and returns its report. Errors: BenchError."""
    argv = [
        str(Path(sys.executable).parent / "ixnet"),
        *("run", "--interface", lab.cfg.client_if, "--cores", str(CLIENT_CORE), "--busy-poll"),
        "--no-restart-workers",
        *("--name", "bench-client", str(load_file("ixload.so")), "--", "echo"),
        *("--host", str(lab.facts.server.ip), "--port", str(PORT)),
        *("--connections", str(connections), "--seconds", str(seconds)),
    ]
    client = lab.start_client(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        out, err = client.communicate(timeout=seconds + 30)
    except subprocess.TimeoutExpired as error:
        raise BenchError("the native client did not end in time") from error
    finally:
        lab.stop(client)
    for line in out.splitlines():
        if line.startswith("{"):
            report: dict[str, Any] = json.loads(line)
            if report["ok"]:
                return report
            raise BenchError(f"the native client: {report['first_error']}")
    raise BenchError(f"the native client gave no report:\n{out}{err}")


def measure(lab: Lab, seconds: float, rounds: int) -> dict[int, dict[str, list[dict[str, Any]]]]:
    """Reports by connections: "limit" and "ixnet", one a round."""
    runs: dict[int, dict[str, list[dict[str, Any]]]] = {
        count: {"limit": [], "ixnet": []} for count in CONNECTIONS
    }
    how = same_as_ixnet(lab)
    for _ in range(rounds):
        with reflector(lab, SERVER_CORE, **how):
            for count in CONNECTIONS:
                limit = pingpong(lab, CLIENT_CORE, count, seconds, bytes=FRAME_BYTES, **how)
                runs[count]["limit"].append(limit)
        with native_echo(busy_poll=True).start(lab.cfg, PORT, PLACEMENT):
            for count in CONNECTIONS:
                runs[count]["ixnet"].append(run_client(lab, count, seconds))
    return runs


def rows(runs: dict[int, dict[str, list[dict[str, Any]]]]) -> list[dict[str, Any]]:
    """Medians over the rounds, and ixnet's share of the limit."""
    made = []
    for count, both in runs.items():
        rate = {k: statistics.median(r["per_second"] for r in v) for k, v in both.items()}
        p50 = {k: statistics.median(r["us"]["p50"] for r in v) for k, v in both.items()}
        made.append(
            {
                "connections": count,
                "mode": both["limit"][0]["mode"],
                "limit_per_second": rate["limit"],
                "ixnet_per_second": rate["ixnet"],
                "share": rate["ixnet"] / rate["limit"],
                "limit_p50_us": p50["limit"],
                "ixnet_p50_us": p50["ixnet"],
                "p50_ratio": p50["ixnet"] / p50["limit"],
            }
        )
    return made


def table(figures: list[dict[str, Any]], memory: float) -> Table:
    """The figures for people."""
    on = machine()
    made = Table(
        title="Native client and native echo, dataplane at both ends, 64-byte messages",
        caption=f"{on.cpu}, {on.cores} cores, Linux {on.kernel}; veth, {figures[0]['mode']}, "
        f"inline; {memory:.0f} bytes of memory a connection",
    )
    for name in ("connections", "limit/s", "ixnet/s", "share", "limit p50", "ixnet p50", "ratio"):
        made.add_column(name, justify="right")
    for row in figures:
        made.add_row(
            str(row["connections"]),
            f"{row['limit_per_second']:,.0f}",
            f"{row['ixnet_per_second']:,.0f}",
            f"{row['share']:.0%}",
            f"{row['limit_p50_us']:.2f} us",
            f"{row['ixnet_p50_us']:.2f} us",
            f"{row['p50_ratio']:.2f}x",
        )
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="bench.native", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=1.0, help="measured time a point")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    config = LabConfig.named("native", queues=1)
    memory = bytes_per_connection()
    try:
        lab_down(config, kill=True)  # what a killed run may have left
        with Lab(config) as lab:
            lab.set_gro(True)
            runs = measure(lab, args.seconds, args.rounds)
    except (BenchError, LabError) as error:
        print(f"bench.native: {error}", file=sys.stderr)
        return 1
    figures = rows(runs)
    report_console().print(table(figures, memory))
    if args.json:
        record = {"machine": machine().as_dict(), "bytes_per_connection": memory, "rows": figures}
        args.json.write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
