"""`ixnet bench` as a whole, on a virtual link, over kernel sockets and over ixnet."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.servers import DebianMemcached, Placement
from ixnet.bench.result import SCHEMA
from ixnet.control.lab import Lab, LabConfig
from ixnet.control.namespaces import in_netns
from tests.bench.conftest import HOST, PATIENCE_S

Kecho = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """One queue: a veth spreads flows over several as it likes, and ixnet has to find out."""
    with Lab(LabConfig.named(f"c{os.getpid()}", queues=1)) as made:
        yield made


def bench(*words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "ixnet", "bench", *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE_S)


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
        modes = {"kernel": ["kernel sockets"], "ixnet": ["generic copy", "native copy"]}
        assert made["client"]["mode"] in modes[client]  # times of arrival need a native one
        assert made["machine"]["cores"] >= 1 and made["versions"]["ixnet"]
        assert made["machine"]["kernel"] and made["client"]["placement"]
        assert made["client"]["driver"] == "veth" and made["client"]["mode"]
        assert "bench" in made["command"]
        return made

    return run


Measure = Callable[..., dict[str, Any]]
SHORT = ("--repeat", "1", "--seconds", "0.5", "--warmup", "0.1")


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
    assert run["latency"]["count"] == pytest.approx(1000, abs=4)


def test_slo_and_sweep_are_found_and_reported(
    start_kecho: Kecho, measure: Measure, tmp_path: Path
) -> None:
    start_kecho()
    words = ("10.77.0.1:7000", "--repeat", "1", "--seconds", "0.2", "--warmup", "0.02")
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


@pytest.fixture
def start_memcached(lab: Lab) -> Iterator[None]:
    """Debian's memcached on port 11211."""
    if shutil.which("memcached") is None:
        pytest.skip("memcached is not installed (apt-get install memcached)")
    server = DebianMemcached()
    with server.start(lab.cfg, 11211, Placement(queues=1, cores=(0,))):
        yield


@pytest.mark.usefixtures("start_memcached")
@pytest.mark.parametrize("client", ["kernel", "ixnet"])
def test_memcached_items_are_stored_and_come_back(measure: Measure, client: str) -> None:
    words = ("10.77.0.1:11211", *SHORT, "--items", "2000", "--gets", "0.9", "-t", "1")
    made = measure("memcached", client, *words)
    [run] = made["targets"][0]["runs"]
    assert run["ok"]
    assert run["get_hits"] > run["sets"] > 0
    assert run["get_misses"] == 0
    assert run["get_hits"] + run["sets"] == run["completed"]


@pytest.fixture
def udp_echo(lab: Lab) -> Iterator[None]:
    """Sends datagrams to port 7000 back."""
    with in_netns(lab.cfg.server_netns):
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        server.bind((HOST, 7000))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                data, peer = server.recvfrom(2000)
                if not data:
                    return
                server.sendto(data, peer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield
    with contextlib.suppress(OSError):
        server.shutdown(socket.SHUT_RDWR)  # wakes recvfrom()
    thread.join(5)
    server.close()


@pytest.mark.usefixtures("udp_echo")
@pytest.mark.parametrize("client", ["kernel", "ixnet"])
def test_latency_is_the_sum_of_its_stages(
    start_kecho: Kecho, measure: Measure, client: str
) -> None:
    start_kecho()
    words = ("10.77.0.1:7000", "--repeat", "1", "--seconds", "0.5", "--warmup", "0.1")
    made = measure("latency", client, *words, "--timeout", "60")
    probes = made["targets"][0]["probes"]
    assert [probe["protocol"] for probe in probes] == ["udp", "tcp"]
    for probe in probes:
        assert probe["incomplete"] == 0
        assert len(probe["stages"]) == {"kernel": 5, "ixnet": 6}[client]
        assert {stage["latency"]["count"] for stage in probe["stages"]} != {0}
        *stages, whole = [stage["latency"]["us"]["mean"] for stage in probe["stages"]]
        assert sum(stages) == pytest.approx(whole, rel=0.05)
        assert all(stage["clock"].startswith("software") for stage in probe["stages"])


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
        (["echo", "10.0.0.1:7", "--slo", "p99=0us"], "p99=500us"),
        (["echo", "10.0.0.1:7", "--slo", "p99=1.2.3us"], "p99=500us"),
        (["echo", "10.0.0.1:7", "--slo", "p99=1ms", "--rate", "5"], "leave --rate out"),
        (["echo", "10.0.0.1:7", "--sweep", "3", "--rate", "5"], "leave --rate out"),
        (["echo", "127.0.0.1:7", "--source", "192.0.2.9"], "cure: give addresses that an interfa"),
        (["echo", "10.0.0.1:7", "--arrival", "late"], "poisson or fixed"),
        (["connrate", "10.0.0.1:7", "--end", "bang"], "rst or fin"),
        (["connections", "10.0.0.1:7", "--steps", "9,3"], "no rising numbers"),
        (["connections", "10.0.0.1:7", "--server-pid", "x"], "--server-pid x is no process here"),
        (["connections", "10.0.0.1:7", "--server-pid", "4194305"], "is no process here"),
        (["latency", "10.0.0.1:7", "--protocol", "icmp"], "use udp, tcp"),
        (["report", "/dev/null"], "is not JSON"),
        (["report", "-o", "-", "/dev/null"], "name one: -o report.html"),
    ],
)
def test_mistakes_are_one_message(words: list[str], part: str) -> None:
    done = bench(*words)
    assert done.returncode == 2
    assert part in done.stderr
