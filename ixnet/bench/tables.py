"""Results as tables for a terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from ixnet.bench.search import median_sweep


def us(value: float) -> str:
    """A duration for people."""
    if value >= 1e6:
        return f"{value / 1e6:.2f} s"
    if value >= 1e4:
        return f"{value / 1e3:.1f} ms"
    return f"{value:.1f} us"


def place(result: dict[str, Any]) -> str:
    """On what, and how, in one line."""
    on, client = result["machine"], result["client"]
    words = [f"{on['cpu']}, {on['cores']} cores, Linux {on['kernel']}"]
    words.append(f"client: {client['transport']}, {client.get('mode', '')}".rstrip(", "))
    words.append(f"cores {','.join(map(str, client['cores']))}")
    if client.get("driver"):
        words.append(f"{client['driver']}")
    return "; ".join(words)


def rows_of(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Column titles and cells, by kind of result."""
    kind = result["kind"]
    if kind == "connections":
        return _connections_rows(result)
    if kind == "latency":
        return _latency_rows(result)
    if any(entry.get("slo") for entry in result["targets"]):
        return _slo_rows(result)
    if any(entry.get("sweep") for entry in result["targets"]):
        return _sweep_rows(result)
    if kind == "stream":
        return _stream_rows(result)
    return _run_rows(result)


def _run_rows(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    titles = ["server", "requests/s", "least", "most", "p50", "p99", "p99.9", "max"]
    rows = []
    for entry in result["targets"]:
        median = entry["median"]
        rate, latency = median["per_second"], median.get("probe_us", median["us"])
        rows.append(
            [entry["label"], *(f"{rate[k]:,.0f}" for k in ("median", "least", "most"))]
            + [us(latency[k]["median"]) for k in ("p50", "p99", "p999", "max")]
        )
    return titles, rows


def _slo_rows(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    titles = ["server", "objective", "highest requests/s", "least", "most", "p50 there", "p99"]
    rows = []
    for entry in result["targets"]:
        rate = entry["highest_rate"]
        best = max(entry["slo"], key=lambda found: found["rate"])["run"]
        latency = best["latency"]["us"] if best else None
        rows.append(
            [entry["label"], entry["objective"]]
            + [f"{rate[k]:,.0f}" for k in ("median", "least", "most")]
            + [us(latency[k]) if latency else "-" for k in ("p50", "p99")]
        )
    return titles, rows


def _sweep_rows(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    titles = ["server", "offered/s", "achieved/s", "p50", "p99", "p99.9"]
    rows = []
    for entry in result["targets"]:
        for run in median_sweep(entry["sweep"]):
            latency = run["latency"]["us"]
            rows.append(
                [entry["label"], f"{run['offered']:,.0f}", f"{run['per_second']:,.0f}"]
                + [us(latency[k]) for k in ("p50", "p99", "p999")]
            )
    return titles, rows


def _stream_rows(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    titles = ["server", "MB/s each way", "least", "most"]
    rows = []
    for entry in result["targets"]:
        rate = entry["median"]["bytes_per_second"]
        rows.append(
            [entry["label"], *(f"{rate[k] / 1e6:,.1f}" for k in ("median", "least", "most"))]
        )
    return titles, rows


def _connections_rows(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    titles = ["server", "connections", "requests/s", "of the peak", "p50", "p99"]
    titles += ["server MiB", "client MiB", "machine MiB"]
    rows = []
    for entry in result["targets"]:
        peak = max((step["run"]["per_second"] for step in entry["steps"]), default=0.0)
        for step in entry["steps"]:
            run, memory = step["run"], step["memory_mib"]
            latency = run["latency"]["us"]
            share = f"{run['per_second'] / peak:.0%}" if peak else "-"
            rows.append(
                [entry["label"], f"{step['connections']:,}", f"{run['per_second']:,.0f}", share]
                + [us(latency["p50"]), us(latency["p99"])]
                + [f"{memory[k]:,.0f}" if memory.get(k) is not None else "-"
                   for k in ("server", "client", "machine")]
            )  # fmt: skip
    return titles, rows


def _latency_rows(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    titles = ["server", "protocol", "stage", "clock", "p50", "p90", "p99", "max"]
    rows = []
    for entry in result["targets"]:
        for probe in entry["probes"]:
            for stage in probe["stages"]:
                latency = stage["latency"]["us"]
                rows.append(
                    [entry["label"], probe["protocol"], stage["name"], stage["clock"]]
                    + [us(latency[k]) for k in ("p50", "p90", "p99", "max")]
                )
    return titles, rows


def remarks(result: dict[str, Any]) -> list[str]:
    """What there is to say beside the table: that it is only a part, what was not sent in time,
    whose stamps and why not better ones."""
    found: list[str] = []
    if result.get("stopped"):
        found.append(f"only a part: {result['stopped']}")
    for entry in result["targets"]:
        if entry.get("slo") and not any(search["rate"] for search in entry["slo"]):
            found.append(f"{entry['label']}: no load that was tried held {entry['objective']}")
        late = [run for run in entry.get("runs") or [] if run["offered"] and run["late"]]
        if late:
            found.append(
                f"{entry['label']}: of {late[0]['offered']:,.0f}/s that were due, "
                f"{sum(run['late'] for run in late):,} requests could not be sent to the end of "
                "the measured time; their wait is in the latencies"
            )
        for probe in entry.get("probes", []):
            for direction in ("received", "transmitted"):
                stamps = probe.get(direction)
                if stamps is None:
                    continue
                why = f"; not better ones: {stamps['why']}" if stamps["why"] else ""
                found.append(f"stamps of what is {direction}: {stamps['source']}{why}")
            if probe.get("clock_error_ns"):
                found.append(
                    f"the NIC's clock is compared with the system's within "
                    f"{us(probe['clock_error_ns'] / 1e3)}"
                )
    return list(dict.fromkeys(found))


def result_table(result: dict[str, Any]) -> Table:
    """A result for people."""
    titles, rows = rows_of(result)
    made = Table(title=f"ixnet bench {result['kind']}", caption=place(result))
    for i, title in enumerate(titles):
        made.add_column(title, justify="left" if i == 0 else "right")
    for row in rows:
        made.add_row(*row)
    return made
