"""Results as one HTML page that needs nothing else: tables and plots, peers side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from ixnet.bench.errors import BenchError
from ixnet.bench.histogram import Histogram
from ixnet.bench.plots import COLOURS, Axis, Plot, Series, svg, usable
from ixnet.bench.search import median_sweep
from ixnet.bench.tables import place, remarks, rows_of

Results = Sequence[tuple[str, dict[str, Any]]]

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #202124; max-width: 72rem; margin: 2rem auto;
       padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.5rem; }
table { border-collapse: collapse; margin: .8rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .8rem; border-bottom: 1px solid #dadce0; text-align: right; }
th:first-child, td:first-child { text-align: left; }
.facts { color: #5f6368; font-size: .9rem; }
.plots { display: flex; flex-wrap: wrap; gap: 1rem; }
svg { width: 34rem; max-width: 100%; border: 1px solid #dadce0; border-radius: 4px; }
svg text { font: 11px system-ui, sans-serif; fill: #3c4043; } svg .title { font-size: 13px; }
svg .grid { stroke: #e8eaed; } svg .line { fill: none; stroke-width: 1.8; }
code { font-size: .85rem; overflow-wrap: anywhere; }
"""

_PERCENT_TICKS = ((1.0, "0%"), (10.0, "90%"), (100.0, "99%"), (1e3, "99.9%"), (1e4, "99.99%"))


# ---- what is plotted ---------------------------------------------------------------------------


def plots_of(results: Results) -> list[Plot]:
    """All plots that the results have the figures for: one a kind, all peers in it."""
    made: list[Plot] = []
    kinds = list(dict.fromkeys(result["kind"] for _, result in results))
    for kind in kinds:
        peers = [(name, r) for name, r in results if r["kind"] == kind]
        for build in (_sweep, _slo, _throughput, _distribution, _connections, _stages):
            plot = build(kind, peers)
            if plot is not None and usable(plot):
                made.append(plot)
    return made


def _peer_name(name: str, result: dict[str, Any], entry: dict[str, Any], peers: Results) -> str:
    label = f"{entry['label']} ({result['client']['transport']} client)"
    return label if len(peers) == 1 else f"{Path(name).stem}: {label}"


def _entries(peers: Results, key: str) -> list[tuple[str, dict[str, Any]]]:
    return [
        (_peer_name(name, result, entry, peers), entry)
        for name, result in peers
        for entry in result["targets"]
        if entry.get(key)
    ]


def _sweep(kind: str, peers: Results) -> Plot | None:
    series = [
        Series(
            f"{name}, p99",
            tuple(
                (r["per_second"], r["latency"]["us"]["p99"]) for r in median_sweep(entry["sweep"])
            ),
        )
        for name, entry in _entries(peers, "sweep")
    ]
    if not series:
        return None
    return Plot(
        f"{kind}: latency over throughput",
        Axis("achieved, requests/s"),
        Axis("p99, us", logarithmic=True),
        tuple(series),
    )


def _bar_plot(title: str, unit: str, figures: Sequence[tuple[str, float]]) -> Plot | None:
    if not figures:
        return None
    series = tuple(Series(name, ((0.0, value),)) for name, value in figures)
    return Plot(title, Axis(""), Axis(unit), series, bars=True, labels=("",))


def _slo(kind: str, peers: Results) -> Plot | None:
    found = _entries(peers, "slo")
    if not found:
        return None
    return _bar_plot(
        f"{kind}: highest load at {found[0][1]['objective']}",
        "requests/s",
        [(name, entry["highest_rate"]["median"]) for name, entry in found],
    )


def _throughput(kind: str, peers: Results) -> Plot | None:
    found = _entries(peers, "median")
    if kind == "stream":
        figures = [(n, e["median"]["bytes_per_second"]["median"] / 1e6) for n, e in found]
        return _bar_plot("stream: throughput each way", "MB/s", figures)
    figures = [(n, e["median"]["per_second"]["median"]) for n, e in found]
    return _bar_plot(f"{kind}: throughput", "requests/s", figures)


def _distribution(kind: str, peers: Results) -> Plot | None:
    series = []
    for name, entry in _entries(peers, "runs"):
        merged = Histogram()
        for run in entry["runs"]:
            merged.add(Histogram(run["latency"]["hdr"]))
        points = tuple((100 / (100 - p), us) for p, us in merged.curve() if p < 100)
        series.append(Series(name, points))
    if not series or kind == "stream":
        return None
    return Plot(
        f"{kind}: latency by percentile",
        Axis("share of requests not slower", logarithmic=True),
        Axis("us", logarithmic=True),
        tuple(series),
        ticks=_PERCENT_TICKS,
    )


def _connections(kind: str, peers: Results) -> Plot | None:
    series = [
        Series(name, tuple((s["connections"], s["run"]["per_second"]) for s in entry["steps"]))
        for name, entry in _entries(peers, "steps")
    ]
    if not series:
        return None
    return Plot(
        "connections: throughput over connections held",
        Axis("connections", logarithmic=True),
        Axis("requests/s"),
        tuple(series),
    )


def _stages(kind: str, peers: Results) -> Plot | None:
    found = _entries(peers, "probes")
    stages = [s["name"] for _, e in found for p in e["probes"] for s in p["stages"]]
    labels = tuple(dict.fromkeys(stages))
    if not labels:
        return None
    series = [
        Series(
            f"{name}, {probe['protocol']}",
            tuple(
                (float(labels.index(s["name"])), s["latency"]["us"]["p50"]) for s in probe["stages"]
            ),
        )
        for name, entry in found
        for probe in entry["probes"]
    ]
    return Plot(
        "latency: p50 by stage", Axis(""), Axis("us"), tuple(series), bars=True, labels=labels
    )


# ---- the page ----------------------------------------------------------------------------------


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(title)}</th>" for title in titles)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _facts(result: dict[str, Any]) -> str:
    lines = [escape(place(result)), escape(result["time"])]
    versions = ", ".join(f"{k} {v}" for k, v in result["versions"].items())
    lines.append(escape(versions))
    if result.get("notes"):
        lines.append(escape(", ".join(f"{k}: {v}" for k, v in result["notes"].items())))
    lines.append(f"<code>{escape(' '.join(map(str, result['command'])))}</code>")
    return f'<p class="facts">{"<br>".join(lines)}</p>'


def page(results: Results) -> str:
    """The whole of it. The results themselves lie in it too, as JSON."""
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>ixnet bench</title><style>{_STYLE}</style></head><body><h1>ixnet bench</h1>",
        '<div class="plots">',
        *(svg(plot) for plot in plots_of(results)),
        "</div>",
    ]
    for name, result in results:
        titles, rows = rows_of(result)
        parts.append(f"<h2>{escape(result['kind'])} <small>{escape(name)}</small></h2>")
        parts += [_facts(result), _table(titles, rows)]
        parts += [f'<p class="facts">{escape(line)}</p>' for line in remarks(result)]
    data = json.dumps(dict(results)).replace("<", "\\u003c")
    parts.append(f'<script type="application/json" id="results">{data}</script></body></html>')
    return "\n".join(parts)


def write_report(path: Path, results: Results) -> None:
    """Writes the page. Errors: BenchError."""
    try:
        path.write_text(page(results))
    except OSError as error:
        raise BenchError(f"{path}: {error.strerror}") from error


def write_pngs(folder: Path, results: Results) -> list[Path]:
    """Each plot as a PNG file; returns their paths. Errors: BenchError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BenchError("PNG needs matplotlib", "pip install 'ixnet[report]'") from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BenchError(f"{folder}: {error.strerror}") from error
    written = []
    for i, plot in enumerate(plots_of(results)):
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        _draw(figure.subplots(), plot)
        stem = "".join(c if c.isalnum() else "-" for c in plot.title.lower())
        path = folder / f"{i + 1:02}-{stem.strip('-')}.png"
        figure.savefig(path, dpi=150)
        written.append(path)
    return written


def _draw(axes: Any, plot: Plot) -> None:
    series = usable(plot)
    for i, s in enumerate(series):
        xs, ys = [x for x, _ in s.points], [y for _, y in s.points]
        colour = COLOURS[i % len(COLOURS)]
        if plot.bars:
            width = 0.7 / len(series)
            axes.bar([x + (i - len(series) / 2) * width for x in xs], ys, width, label=s.name,
                     color=colour, align="edge")  # fmt: skip
        else:
            marker = "o" if len(xs) <= 40 else ""
            axes.plot(xs, ys, marker=marker, markersize=3, label=s.name, color=colour)
    if plot.x.logarithmic:
        axes.set_xscale("log")
    if plot.y.logarithmic:
        axes.set_yscale("log")
    if plot.bars:
        axes.set_xticks(range(len(plot.labels)), plot.labels)
    elif plot.ticks:
        axes.set_xticks([x for x, _ in plot.ticks], [text for _, text in plot.ticks])
    axes.set_title(plot.title)
    axes.set_xlabel(plot.x.title)
    axes.set_ylabel(plot.y.title)
    axes.grid(True, alpha=0.3)
    axes.legend(fontsize="small")
