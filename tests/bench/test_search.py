"""What is measured, and what is made of it: histograms, objectives, results, the report."""

from __future__ import annotations

import itertools
import json
import random
import struct
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from ixnet.bench import drive, plots, report, result, search, session, tables
from ixnet.bench.cli import show
from ixnet.bench.errors import BenchError
from ixnet.bench.histogram import Histogram, bucket_value_ns
from ixnet.bench.options import OutputOptions

# ---- histograms --------------------------------------------------------------------------------


def bucket(value_ns: int) -> int:
    """As load/histogram.h: 1,024 buckets for each power of two."""
    if value_ns < 1024:
        return value_ns
    shift = value_ns.bit_length() - 11
    return (shift + 1) * 1024 + (value_ns >> shift) - 1024


def test_histograms_merged_are_the_histogram_of_all() -> None:
    source = random.Random(5)
    values = [int(source.lognormvariate(11, 1.5)) + 1 for _ in range(20_000)]
    parts = [Histogram.from_buckets([[bucket(v), 1] for v in values[i::3]]) for i in range(3)]
    merged = Histogram()
    for part in parts:
        merged.add(part)
    values.sort()
    assert merged.count == len(values)
    for percent in (1, 50, 90, 99, 99.9):
        exact = values[min(len(values) - 1, int(percent / 100 * len(values)))] / 1e3
        assert merged.percentile_us(percent) == pytest.approx(exact, rel=0.02)
    assert merged.summary()["max"] == pytest.approx(values[-1] / 1e3, rel=0.002)
    assert merged.summary()["mean"] == pytest.approx(sum(values) / len(values) / 1e3, rel=0.002)


def test_a_bucket_is_a_thousandth_wide() -> None:
    for value in (5, 1023, 1024, 123_456, 987_654_321):
        assert bucket_value_ns(bucket(value)) == pytest.approx(value, rel=0.001)


def test_histogram_in_json_is_the_same_histogram() -> None:
    before = Histogram.from_buckets([[bucket(1000 * i), i] for i in range(1, 200)])
    after = Histogram(json.loads(json.dumps(before.as_dict()))["hdr"])
    assert after.count == before.count
    assert after.summary() == before.summary()
    assert Histogram().summary()["p99"] == 0


def test_curve_goes_to_the_last_sample_and_never_down() -> None:
    curve = Histogram.from_buckets([[bucket(1000 * i), 1] for i in range(1, 1001)]).curve()
    assert all(a[1] <= b[1] for a, b in itertools.pairwise(curve))
    assert curve[-1][1] == pytest.approx(1000, rel=0.01)


# ---- reports of workers -----------------------------------------------------------------------


def worker_report(completed: int, **changes: Any) -> dict[str, Any]:
    made: dict[str, Any] = {
        "mode": "echo", "target": "10.0.0.1:7", "connections": 4, "open": 4, "opened": 4,
        "message_bytes": 64, "seconds": 2.0, "cpu_seconds": 1.0, "completed": completed,
        "per_second": completed / 2, "late": 0,
        "histogram": [[bucket(5000), completed]], "slice_p99_us": [7, 9],
        "bytes": 64 * completed, "verified_bytes": 64 * completed, "port_waits": 0,
        "errors": {"refused": 0, "reset": 0}, "ok": True, "first_error": None,
    }  # fmt: skip
    return made | changes


def test_reports_of_workers_add_up() -> None:
    bad = worker_report(50, ok=False, first_error="it broke", errors={"refused": 0, "reset": 2})
    made = session.merge([worker_report(100), bad])
    assert made["completed"] == 150
    assert made["per_second"] == 75
    assert made["latency"]["count"] == 150
    assert made["bytes_per_second"] == 64 * 150 / 2
    assert made["client_cpu"] == [0.5, 0.5]
    assert made["slice_p99_us"] == 8
    assert made["errors"] == {"refused": 0, "reset": 2}
    assert (made["ok"], made["first_error"]) == (False, "it broke")


# ---- objectives -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "percentile", "limit_us"),
    [("p99=500us", "p99", 500), ("p50=0.2ms", "p50", 200), ("p999=1s", "p999", 1e6)],
)
def test_objective_is_understood(text: str, percentile: str, limit_us: float) -> None:
    assert search.Objective.parse(text) == search.Objective(percentile, limit_us)


@pytest.mark.parametrize("text", ["", "p99", "p98=1ms", "p99=1", "p99=fast", "99=1ms"])
def test_objective_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(BenchError, match="p99=500us"):
        search.Objective.parse(text)


class Server:
    """A queue: latency grows towards its capacity, beyond it the load is not carried."""

    def __init__(self, capacity: float, base_us: float = 50) -> None:
        self.capacity, self.base_us = capacity, base_us
        self.asked: list[float] = []

    def holds_up_to(self, limit_us: float) -> float:
        return self.capacity * (1 - self.base_us / limit_us)

    def measure(self, rate: float) -> dict[str, Any]:
        self.asked.append(rate)
        room = 1 - rate / self.capacity
        latency = self.base_us / room if room > 0 else 1e6
        done = min(rate, self.capacity)
        return {
            "ok": True,
            "late": 0,
            "offered": rate,
            "seconds": 1.0,
            "completed": done,
            "per_second": done,
            "latency": {"us": {"p99": latency if int(done) else 0.0}, "count": int(done)},
        }


@pytest.mark.parametrize("guess", [100, 40_000, 5_000_000])
def test_search_finds_the_knee_from_any_guess(guess: float) -> None:
    server = Server(100_000)
    objective = search.Objective("p99", 500)
    found = search.highest_load(server.measure, objective, guess)
    wanted = server.holds_up_to(500)
    assert wanted * 0.96 <= found.rate <= wanted
    assert found.run is not None
    assert found.run["offered"] == found.rate
    assert len(found.runs) == len(server.asked) < 30


def test_search_in_vain_finds_nothing() -> None:
    found = search.highest_load(Server(1e5, 900).measure, search.Objective("p99", 500), 1000)
    assert (found.rate, found.run) == (0, None)


def test_search_looks_below_what_was_a_fluke() -> None:
    server = Server(100_000)

    def lucky(rate: float) -> dict[str, Any]:
        run = server.measure(rate)
        if len(server.asked) == 1:
            run["latency"]["us"]["p99"] = 1.0
            run["completed"] = run["per_second"] = rate
        return run

    found = search.highest_load(lucky, search.Objective("p99", 500), 95_000)
    assert 0 < found.rate <= server.holds_up_to(500)


def test_objective_that_no_load_holds_is_not_held_by_a_run_without_replies() -> None:
    server = Server(1e5)
    found = search.highest_load(server.measure, search.Objective("p99", 1), 100)
    assert min(server.asked) < 1, "so few are due that none is measured"
    assert found.rate == 0 and found.run is None
    entry = {
        "label": "a", "objective": "p99 <= 1 us", "slo": [{"rate": 0.0, "run": None}],
        "highest_rate": dict.fromkeys(("median", "least", "most"), 0.0),
    }  # fmt: skip
    shown: dict[str, Any] = {"kind": "echo", "targets": [entry]}
    assert tables.rows_of(shown)[1] == [["a", "p99 <= 1 us", "0", "0", "0", "-", "-"]]
    assert tables.remarks(shown) == ["a: no load that was tried held p99 <= 1 us"]


def test_curve_is_the_median_of_its_rounds() -> None:
    def run(offered: float, p99: float) -> dict[str, Any]:
        us = {"p50": p99 / 2, "p99": p99, "p999": p99 * 2}
        return {"offered": offered, "per_second": offered - 1, "latency": {"us": us}}

    rounds = [[run(10, 900), run(20, 40)], [run(12, 30), run(22, 50)], [run(11, 31)]]
    shown = {"kind": "echo", "targets": [{"label": "a", "sweep": rounds}]}
    assert tables.rows_of(shown)[1] == [
        ["a", "11", "10", "15.5 us", "31.0 us", "62.0 us"],
        ["a", "21", "20", "22.5 us", "45.0 us", "90.0 us"],
    ]


def test_objective_by_slices_is_that_of_the_median_one() -> None:
    objective = search.Objective("p99", 500, by_slices=True)
    paused = Server(1e5).measure(1000)
    paused["latency"]["us"]["p99"] = 4000.0
    assert objective.held_by(paused | {"slice_p99_us": 90})
    assert not objective.held_by(paused | {"slice_p99_us": 501})
    assert not objective.held_by(paused | {"slice_p99_us": None})
    assert not search.Objective("p99", 500).held_by(paused | {"slice_p99_us": 90})


def test_errors_and_late_requests_break_an_objective() -> None:
    objective = search.Objective("p99", 500)
    good = Server(1e5).measure(1000)
    assert objective.held_by(good)
    assert not objective.held_by(good | {"ok": False})
    assert not objective.held_by(good | {"late": 1})
    assert not objective.held_by(good | {"completed": 800})
    assert not objective.held_by(good | {"probes": {"latency": {"us": {"p99": 501}, "count": 9}}})


def test_sweep_rises_to_the_peak_in_smaller_and_smaller_steps() -> None:
    rates = search.sweep_rates(1000, 8)
    assert len(rates) == 8
    assert rates == sorted(rates)
    assert rates[0] > 0 and rates[-1] < 1000
    steps = [b - a for a, b in itertools.pairwise(rates)]
    assert steps == sorted(steps, reverse=True)


@pytest.mark.parametrize(
    ("text", "label", "host", "family"),
    [("10.0.0.1:7", "10.0.0.1:7", "10.0.0.1", 4), ("ix=[fd00::1]:11211", "ix", "fd00::1", 6)],
)
def test_target_is_understood(text: str, label: str, host: str, family: int) -> None:
    target = drive.Target.parse(text)
    assert (target.label, target.host, target.family) == (label, host, family)


@pytest.mark.parametrize("text", ["10.0.0.1", "10.0.0.1:0", "10.0.0.1:x", ":7", "a=b"])
def test_target_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(BenchError, match="is no target"):
        drive.Target.parse(text)


# ---- results and their report ------------------------------------------------------------------


def some_run(rate: float) -> dict[str, Any]:
    made = session.merge([worker_report(int(rate), histogram=[[bucket(9000), int(rate)]])])
    return made | {"offered": rate}


def some_result(kind: str, **entry: Any) -> dict[str, Any]:
    client = {"transport": "ixnet", "mode": "native copy", "cores": [0], "driver": "veth"}
    whole = {"label": "a <b>", "target": "10.0.0.1:7", "runs": [], "slo": [], "sweep": []} | entry
    return result.make_result(kind, client, {"bytes": 64}, [whole], ["ixnet", "bench", kind])


def results() -> list[tuple[str, dict[str, Any]]]:
    runs = [some_run(1000), some_run(2000)]
    held = {"rate": 900.0, "run": runs[0], "runs": runs}
    rate = {"median": 900.0, "least": 900.0, "most": 900.0}
    step = {"connections": 1000, "run": runs[0], "memory_mib": {"server": 10.0, "client": None}}
    stage = {"name": "wire to core", "clock": "software", "latency": runs[0]["latency"]}
    return [
        ("one.json", some_result("echo", runs=runs, median=search.median_run(runs))),
        ("two.json", some_result("echo", sweep=[runs])),
        ("slo.json", some_result("memcached", slo=[held], highest_rate=rate, objective="p99")),
        ("stream.json", some_result("stream", runs=runs, median=search.median_run(runs))),
        ("conns.json", some_result("connections", steps=[step, step | {"connections": 10_000}])),
        ("latency.json", some_result("latency", probes=[{"protocol": "udp", "stages": [stage]}])),
    ]


class Page(HTMLParser):
    """Counts elements, and notes what the page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}
        self.fetched: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.fetched += [v or "" for k, v in attrs if k in ("src", "href")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_report_is_one_page_with_tables_and_plots_of_every_result(tmp_path: Path) -> None:
    report.write_report(tmp_path / "page.html", results())
    text = (tmp_path / "page.html").read_text()
    page = Page()
    page.feed(text)
    assert page.open == []
    assert page.fetched == []
    assert page.counts["table"] == 6
    assert page.counts["svg"] == len(report.plots_of(results())) >= 7
    assert "a &lt;b&gt;" in text and "a <b>" not in text.replace('"a <b>', "")
    assert "NaN" not in text
    data = text.split('id="results">')[1].split("</script>")[0]
    assert json.loads(data)["one.json"]["targets"][0]["label"] == "a <b>"


def test_each_plot_is_written_as_a_png(tmp_path: Path) -> None:
    """In a process of its own: matplotlib's exceptions in C++ are too much for a preloaded ASan."""
    for name, made in results():
        result.write_result(tmp_path / name, made)
    argv = [sys.executable, "-m", "ixnet", "bench", "report", "-o", str(tmp_path / "page.html")]
    argv += ["--png", str(tmp_path / "new"), *(str(tmp_path / name) for name, _ in results())]
    subprocess.run(argv, check=True, timeout=200, capture_output=True)
    written = list((tmp_path / "new").iterdir())
    assert len(written) == len(report.plots_of(results()))
    for path in written:
        head = path.read_bytes()[:24]
        assert head.startswith(b"\x89PNG\r\n\x1a\n")
        assert struct.unpack(">II", head[16:24]) == (1200, 675)


def test_pngs_without_matplotlib_are_an_error_with_its_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(BenchError, match=r"ixnet\[report\]"):
        report.write_pngs(tmp_path, results())


def test_result_is_read_back_and_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    made = results()[0][1]
    result.write_result(path, made)
    assert result.read_result(path) == made
    assert {"machine", "versions", "client", "command", "options", "time"} <= made.keys()
    for text in ("{}", "[]", "no JSON"):
        path.write_text(text)
        with pytest.raises(BenchError):
            result.read_result(path)
    with pytest.raises(BenchError, match="No such file"):
        result.read_result(tmp_path / "none.json")


def test_ticks_are_round_and_cover_the_range() -> None:
    assert plots.nice_ticks(0, 97, False) == [0, 20, 40, 60, 80, 100]
    assert plots.nice_ticks(3, 4500, True) == [1, 10, 100, 1000, 10_000]
    ticks = plots.nice_ticks(0, 0, False)
    assert ticks[-1] > 0


def test_label_with_brackets_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    spread = {"median": 1.0, "least": 1.0, "most": 1.0}
    us = dict.fromkeys(("p50", "p99", "p999", "max"), spread)
    median = {"per_second": spread, "us": us}
    targets = [{"label": name, "median": median} for name in ("[fd77:100::1]:7000", "a[/b]", ":x:")]
    facts: dict[str, Any] = {
        "machine": {"cpu": "c", "cores": 1, "kernel": "6"},
        "client": {"transport": "kernel", "cores": [0]},
    }
    show(OutputOptions(), {"kind": "echo", "targets": targets, **facts})
    shown = capsys.readouterr().out
    assert "[fd77:100::1]:7000 " in shown and "a[/b] " in shown and ":x: " in shown
