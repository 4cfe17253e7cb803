"""`ixnet bench latency`: one message at a time, and where its time goes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ixnet.bench.client import Client, load_file
from ixnet.bench.drive import Target
from ixnet.bench.errors import BenchError, failure
from ixnet.bench.histogram import Histogram
from ixnet.bench.nicclock import NicClock, stamping
from ixnet.bench.outcome import Outcome
from ixnet.bench.session import Progress

PROTOCOLS = ("udp", "tcp")
RECEIVED = ("auto", "hardware", "software")
TRANSMITTED = ("auto", "hardware", "completion", "software")
_DIRECTIONS = {"received": "received", "transmitted": "sent"}


def parse_protocols(text: str) -> tuple[str, ...]:
    """Errors: BenchError."""
    protocols = tuple(text.split(","))
    if not set(protocols) <= set(PROTOCOLS):
        raise BenchError(f"--protocol {text} is not known", "use udp, tcp, or udp,tcp")
    return protocols


def check_stamps(received: str, transmitted: str) -> None:
    """Errors: BenchError."""
    for option, value, known in (
        ("received", received, RECEIVED),
        ("transmitted", transmitted, TRANSMITTED),
    ):
        if value not in known:
            raise BenchError(f"--{option} {value} is not known", f"use one of: {', '.join(known)}")


def _printed(text: str, label: str, begins: str = "") -> str:
    """What an instance of ixnet printed under a label, without how it begins; "" if nothing."""
    found = re.search(rf"^\s*{label}\s+{begins}(.*)$", text, re.MULTILINE)
    return found.group(1) if found else ""


def explain(report: dict[str, Any], clock: NicClock, printed: str) -> None:
    """Says in a report why its stamps are no better ones, as far as anybody knows: the NIC, the
    instance of ixnet (what it printed), the program itself."""
    for direction, name in _DIRECTIONS.items():
        stamps = report[direction]
        if stamps["source"] == "hardware" or stamps["why"] == "as asked":
            continue
        text = _printed(printed, "stamps", f"{name}: ")
        if text.startswith(("software: ", "none: ")):
            stamps["why"] = text.partition(": ")[2]
        elif (why := getattr(clock, direction)) and not (
            stamps["asked"] and stamps["why"].startswith("the driver gave none: ") and text
        ):
            stamps["why"] = why


def merge_probes(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Several rounds of one protocol as one."""
    made = {key: reports[0][key] for key in ("protocol", "bytes")}
    for key in ("sent", "lost", "incomplete"):
        made[key] = sum(report[key] for report in reports)
    made["clock_error_ns"] = max(report["clock_error_ns"] for report in reports)
    for direction in _DIRECTIONS:
        sources = {report[direction]["source"] for report in reports}
        if len(sources) > 1:
            raise BenchError(
                f"stamps of what was {direction} were {' and '.join(sorted(sources))} in turn",
                f"ask for one: --{direction} software",
            )
        made[direction] = {key: reports[0][direction][key] for key in ("source", "why")}
    made["stages"] = []
    for i, stage in enumerate(reports[0]["stages"]):
        merged = Histogram()
        for report in reports:
            merged.add(Histogram.from_buckets(report["stages"][i]["histogram"]))
        made["stages"].append(
            {"name": stage["name"], "clock": stage["clock"], "latency": merged.as_dict()}
        )
    return made


def _failed(protocol: str, target: Target, text: str) -> BenchError:
    """What a ping says of a server; one that nobody answers may be of the wrong protocol."""
    error = failure(f"{protocol} ping to {target.label}: {text}")
    if not any(part in text for part in ("Connection refused", "did not answer", "no reply")):
        return error
    other = "tcp" if protocol == "udp" else "udp"
    hint = f"if it serves {other.upper()} alone: --protocol {other}"
    return BenchError(error.message, f"{error.cure}; {hint}")


def ping(
    client: Client,
    target: Target,
    protocol: str,
    words: Sequence[str],
    patience_s: float,
    clock: NicClock,
) -> dict[str, Any]:
    """One round of one protocol; the program's report. Errors: BenchError."""
    argv = [protocol, *target.words, *words]
    if clock.path is not None:
        argv += ["--clock", str(clock.path)]
    # A file of its own: what ixnet prints meanwhile would come in between.
    with tempfile.NamedTemporaryFile(prefix="ixnet-ping-") as file:
        argv += ["--report", file.name]
        if client.transport == "ixnet":
            name = f"ping-{os.getpid()}"
            process = client.start(client.run_argv("ixping.so", argv, name, "--timestamps"))
        else:
            argv = [str(load_file("ixping")), *argv]
            process = client.start(argv, client.cores[0] if client.cores else None)
        try:
            out, _ = process.communicate(timeout=patience_s)
        except subprocess.TimeoutExpired as error:
            raise BenchError(f"the pings did not end in {patience_s:g} s") from error
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate()
        text = Path(file.name).read_text()
    try:
        report: dict[str, Any] = json.loads(text)
    except ValueError as error:
        raise failure(f"no report of the pings: {out.strip()}") from error
    explain(report, clock, out)
    report["mode"] = _printed(out, "mode") or "kernel sockets"
    for direction in _DIRECTIONS:
        if report["error"] and report["begun"] and report[direction]["source"] == "auto":
            raise BenchError(
                f"{protocol} ping to {target.label}: not the stamps of what is {direction} that "
                f"were asked for: {report[direction]['why']}",
                f"--{direction} auto takes the best that there are",
            )
    if report["error"]:
        raise _failed(protocol, target, report["error"])
    if not any(stage["histogram"] for stage in report["stages"]):
        raise _failed(protocol, target, "no reply came back in time")
    return report


def run_latency(
    client: Client,
    targets: Sequence[Target],
    protocols: Sequence[str],
    words: Sequence[str],
    rounds: int,
    patience_s: float,
    progress: Progress,
) -> Outcome:
    """Targets and protocols in turns; an entry a target, as far as it got. Errors: BenchError if
    nothing was measured."""
    outcome = Outcome(
        [{"label": t.label, "target": f"{t.host}:{t.port}", "probes": []} for t in targets],
        client.describe(),
    )
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    entries = list(zip(targets, list(outcome.entries), strict=True))
    with outcome.gathering():
        for number in range(rounds):
            for target, entry in entries:
                for protocol in protocols:
                    progress(f"round {number + 1} of {rounds}: {target.label}, {protocol}")
                    with stamping(client, target.host) as clock:
                        report = ping(client, target, protocol, words, patience_s, clock)
                    reports = found.setdefault((target.label, protocol), [])
                    reports.append(report)
                    merged = [p for p in entry["probes"] if p["protocol"] != protocol]
                    entry["probes"] = [*merged, merge_probes(reports)]
                    outcome.facts["mode"] = report["mode"]
    return outcome
