"""`ixnet bench` as a whole, on a virtual link, over kernel sockets and over ixnet."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ixnet.bench.result import SCHEMA
from ixnet.control.lab import Lab, LabConfig

Kecho = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """One queue: a veth spreads flows over several as it likes, and ixnet has to find out."""
    with Lab(LabConfig.named(f"c{os.getpid()}", queues=1)) as made:
        yield made


def bench(*words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "ixnet", "bench", *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=100)


def client_words(lab: Lab, client: str) -> list[str]:
    words = ["--netns", lab.cfg.client_netns, "--client", client]
    return [*words, "--interface", lab.cfg.client_if, "--block"] if client == "ixnet" else words


@pytest.fixture
def measure(lab: Lab, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Runs a command and returns its result file, whose frame is checked."""

    def run(kind: str, client: str, *words: str) -> dict[str, Any]:
        path = tmp_path / "result.json"
        done = bench(kind, *client_words(lab, client), "--json", str(path), *words)
        assert done.returncode == 0, done.stdout + done.stderr
        made: dict[str, Any] = json.loads(path.read_text())
        assert (made["schema"], made["kind"]) == (SCHEMA, kind)
        assert made["client"]["transport"] == client
        assert made["client"]["mode"] in ("kernel sockets", "native copy")
        assert made["machine"]["cores"] >= 1 and made["versions"]["ixnet"]
        assert "bench" in made["command"]
        return made

    return run


Measure = Callable[..., dict[str, Any]]
SHORT = ("--repeat", "1", "--seconds", "0.3", "--warmup", "0.1")


@pytest.mark.parametrize("client", ["kernel", "ixnet"])
def test_echo_alternates_between_targets_and_verifies(
    start_kecho: Kecho, measure: Measure, client: str
) -> None:
    start_kecho()
    words = ("a=10.77.0.1:7000", "b=10.77.0.1:7000", *SHORT, "--probes", "1")
    made = measure("echo", client, *words)
    assert [entry["label"] for entry in made["targets"]] == ["a", "b"]
    for entry in made["targets"]:
        [run] = entry["runs"]
        assert run["ok"]
        assert run["connections"] == 16 and run["opened"] == 17
        assert run["verified_bytes"] >= 64 * run["completed"] > 0
        assert run["latency"]["count"] == run["completed"]
        assert run["probes"]["completed"] > 0


def test_echo_open_loop_from_two_processes(start_kecho: Kecho, measure: Measure) -> None:
    start_kecho()
    words = ("10.77.0.1:7000", *SHORT, "--rate", "2000", "--arrival", "fixed", "--processes", "2")
    made = measure("echo", "kernel", *words)
    [run] = made["targets"][0]["runs"]
    assert run["workers"] == 2
    # Every request that was due is in the histogram, however late it was answered.
    assert run["latency"]["count"] == pytest.approx(600, abs=4)


def test_slo_and_sweep_are_found_and_reported(
    start_kecho: Kecho, measure: Measure, tmp_path: Path
) -> None:
    start_kecho()
    words = ("10.77.0.1:7000", "--repeat", "1", "--seconds", "0.1", "--warmup", "0.02")
    made = measure("echo", "kernel", *words, "--slo", "p50=10s", "--sweep", "2")
    [entry] = made["targets"]
    assert entry["highest_rate"]["median"] > 0
    assert len(entry["sweep"][0]) == 2
    page = tmp_path / "page.html"
    done = bench("report", str(tmp_path / "result.json"), "-o", str(page))
    assert done.returncode == 0, done.stderr
    assert page.read_text().count("<svg") >= 2


@pytest.mark.parametrize("client", ["kernel", "ixnet"])
def test_connrate_opens_serves_and_closes(
    start_kecho: Kecho, measure: Measure, client: str
) -> None:
    kecho = start_kecho()
    made = measure("connrate", client, "10.77.0.1:7000", *SHORT)
    [run] = made["targets"][0]["runs"]
    assert run["ok"] and run["completed"] > 0
    kecho.terminate()
    assert kecho.stdout is not None
    assert int(kecho.stdout.readline().split()[1]) == run["opened"] >= run["completed"]


@pytest.mark.parametrize("client", ["kernel", "ixnet"])
def test_stream_carries_large_messages(start_kecho: Kecho, measure: Measure, client: str) -> None:
    start_kecho()
    made = measure("stream", client, "10.77.0.1:7000", *SHORT, "--bytes", "100000")
    [run] = made["targets"][0]["runs"]
    assert run["ok"] and run["bytes"] > 0
    assert run["verified_bytes"] >= 100_000


@pytest.mark.parametrize("client", ["kernel", "ixnet"])
def test_connections_rise_and_each_has_its_turn(
    start_kecho: Kecho, measure: Measure, client: str
) -> None:
    kecho = start_kecho()
    words = ("10.77.0.1:7000", "--steps", "50,400", "--window", "10", "--server-pid")
    made = measure("connections", client, *words, str(kecho.pid), "-t", "0.3", "--warmup", "0")
    [entry] = made["targets"]
    assert [step["connections"] for step in entry["steps"]] == [50, 400]
    assert [step["run"]["open"] for step in entry["steps"]] == [50, 400]
    assert all(step["run"]["completed"] > 0 for step in entry["steps"])
    assert all(step["memory_mib"]["server"] > 0 for step in entry["steps"])
    assert all(step["memory_mib"]["client"] > 1 for step in entry["steps"])


@pytest.mark.parametrize("client", ["kernel", "ixnet"])
def test_nobody_listening_is_an_error_that_says_so(lab: Lab, client: str) -> None:
    done = bench("echo", *client_words(lab, client), "10.77.0.1:7999", *SHORT)
    assert done.returncode == 2
    assert "10.77.0.1:7999: Connection refused" in done.stderr


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["echo"], "Missing argument"),
        (["echo", "nowhere"], "nowhere is no target"),
        (["echo", "10.0.0.1:7", "--client", "other"], "there is no client other"),
        (["echo", "10.0.0.1:7", "--client", "ixnet"], "needs an interface"),
        (["echo", "10.0.0.1:7", "--slo", "soon"], "p99=500us"),
        (["echo", "10.0.0.1:7", "--arrival", "late"], "poisson or fixed"),
        (["connrate", "10.0.0.1:7", "--end", "bang"], "rst or fin"),
        (["connections", "10.0.0.1:7", "--steps", "9,3"], "no rising numbers"),
        (["report", "/dev/null"], "is not JSON"),
    ],
)
def test_mistakes_are_one_message(words: list[str], part: str) -> None:
    done = bench(*words)
    assert done.returncode == 2
    assert part in done.stderr
