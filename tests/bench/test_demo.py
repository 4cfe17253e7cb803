"""The demo's driver, with the kernel's server in every place, and its checks against what they are
there to find."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from bench import checks, compare, servers
from bench import demo as demo_module
from bench.common import BenchError
from ixnet.control.lab import Lab, LabConfig, lab_down, lab_status
from ixnet.control.namespaces import in_netns
from tests.bench.conftest import HOST, PATIENCE_S, ROOT
from tests.runtime.lab import until

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")


# ---- the whole --------------------------------------------------------------------------------


started: list[subprocess.Popen[str]] = []


@pytest.fixture
def tag() -> Any:
    made = f"d{os.getpid()}"
    yield made
    while started:
        demo = started.pop()
        demo.kill()  # it may hold the lock of all labs
        demo.wait()
    lab_down(LabConfig.named(made), kill=True)


def start_demo(tag: str, *options: str) -> subprocess.Popen[str]:
    argv = [sys.executable, str(ROOT / "bench/demo.py"), "--server-only", "kernel", "--tag", tag]
    demo = subprocess.Popen(
        [*argv, "--quick", *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    started.append(demo)
    return demo


def wait_for_checks(demo: subprocess.Popen[str]) -> None:
    """Until it is in the midst of its checks: it said that the server is ready."""
    assert demo.stdout is not None
    while not (line := demo.stdout.readline()).startswith("kernel: ready"):
        assert line, "it ended"


def is_gone(tag: str) -> bool:
    return lab_status(LabConfig.named(tag)).state == "absent"


@as_root
def test_demo_runs_through_and_leaves_nothing(tag: str, tmp_path: Path) -> None:
    demo = start_demo(tag, "--json", str(tmp_path / "demo.json"), "--seconds", "0.1")
    out, _ = demo.communicate(timeout=PATIENCE_S)
    assert demo.returncode == 0, out
    assert "all checks passed" in out
    assert is_gone(tag)
    record = json.loads((tmp_path / "demo.json").read_text())
    assert record["ok"] is True
    assert len(record["checks"]) >= 5
    assert record["machine"]["cores"] == os.cpu_count()
    assert record["lab"]["server"]["rx_queues"] == 2
    rows = record["comparison"]["rows"]
    assert len(rows) == 7
    for row in rows:
        assert row["servers"]["kernel"]["ratio"] == 1
        for figures in row["servers"].values():
            # 0: nothing was completed in 0.1 s of a machine that stood still.
            assert 0 <= figures["least"] <= figures["median"] <= figures["most"]
    assert any(row["servers"]["kernel"]["most"] > 0 for row in rows)


@as_root
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("when", ["starting", "checking"])
def test_demo_interrupted_leaves_nothing(tag: str, signum: int, when: str) -> None:
    demo = start_demo(tag, "--seconds", "60")
    if when == "starting":
        time.sleep(0.3)
    else:
        wait_for_checks(demo)
    demo.send_signal(signum)
    out, _ = demo.communicate(timeout=PATIENCE_S)
    # At 0.3 s the interpreter may not have come as far as the demo itself.
    early = (-signum, 1) if when == "starting" else ()
    assert demo.returncode in (128 + signum, *early), out
    assert is_gone(tag)


def test_a_signal_gets_out_of_an_event_loop() -> None:
    """Netlink runs in one: an exception that it swallowed would leave the demo waiting for ever."""
    loop = asyncio.new_event_loop()
    loop.call_soon(demo_module._interrupted, signal.SIGTERM, None)
    loop.call_later(5, loop.stop)
    with pytest.raises(KeyboardInterrupt):
        loop.run_forever()
    loop.close()


@as_root
def test_demo_clears_what_a_killed_one_left(tag: str) -> None:
    killed = start_demo(tag, "--seconds", "60")
    wait_for_checks(killed)
    killed.kill()
    killed.communicate()
    again = start_demo(tag, "--no-compare")
    out, _ = again.communicate(timeout=PATIENCE_S)
    assert again.returncode == 0, out
    assert is_gone(tag)


@as_root
def test_demo_leaves_a_foreign_namespace_alone(tag: str) -> None:
    from pyroute2 import netns

    from ixnet.control import lab as lab_module

    name = LabConfig.named(tag).server_netns
    lab_module._create_netns(name, "somebody else's")
    try:
        demo = start_demo(tag)
        out, _ = demo.communicate(timeout=PATIENCE_S)
        assert demo.returncode == 2
        assert "is not this lab's" in " ".join(out.split())
    finally:
        netns.remove(name)


def test_demo_without_programs_names_the_cure(tag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    monkeypatch.setenv("IX_BENCH_BUILD", "/nonexistent")
    demo = start_demo(tag)
    out, _ = demo.communicate(timeout=PATIENCE_S)
    assert demo.returncode == 2
    assert "run make build" in " ".join(out.split())
    assert is_gone(tag)


# ---- the checks find what they are there for --------------------------------------------------


def serve_once(lab: Lab, port: int, behaviour: Any) -> threading.Thread:
    with in_netns(lab.cfg.server_netns):
        listener = socket.create_server((HOST, port))

    def serve() -> None:
        with listener:
            connection, _ = listener.accept()
        with connection:
            behaviour(connection)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    return thread


def faithful(connection: socket.socket) -> None:
    while data := connection.recv(65536):
        connection.sendall(data)


def alters_one_bit(connection: socket.socket) -> None:
    seen = 0
    while data := connection.recv(65536):
        if seen <= 1_500_000 < seen + len(data):
            data = data[:-1] + bytes([data[-1] ^ 1])
        seen += len(data)
        connection.sendall(data)


def swallows_the_end(connection: socket.socket) -> None:
    for _ in range(5):
        connection.sendall(connection.recv(65536))


def adds_one_byte(connection: socket.socket) -> None:
    faithful(connection)
    connection.sendall(b"!")


@pytest.mark.parametrize(
    ("behaviour", "finding"),
    [
        (faithful, ""),
        (alters_one_bit, "received"),
        (swallows_the_end, "bytes came back|reset|Broken pipe"),
        (adds_one_byte, "more came back"),
    ],
)
def test_check_stream(lab: Lab, behaviour: Any, finding: str) -> None:
    thread = serve_once(lab, 7100, behaviour)
    check = checks.check_stream(lab.cfg, HOST, 7100, mib=2)
    thread.join(5)
    assert check.ok == (not finding), check.detail
    if finding:
        assert any(word in check.detail for word in finding.split("|")), check.detail


def test_check_stream_without_a_server(lab: Lab) -> None:
    check = checks.check_stream(lab.cfg, HOST, 7101, mib=1)
    assert not check.ok
    assert "refused" in check.detail


def test_check_many_passes_and_fails(lab: Lab) -> None:
    placement = servers.Placement(queues=1, cores=(1,))
    with servers.KernelServer().start(lab.cfg, 7102, placement):
        assert checks.check_many(lab.cfg, HOST, 7102, connections=50, messages=5).ok
    missing = checks.check_many(lab.cfg, HOST, 7102, connections=50, messages=5)
    assert not missing.ok
    assert "refused" in missing.detail


def test_prober_counts_what_fails(lab: Lab) -> None:
    placement = servers.Placement(queues=1, cores=(1,))
    well, refused = (
        checks.Prober(lab.cfg, HOST, 7103, interval_s=0.02, patience_s=60) for _ in range(2)
    )
    delta: dict[str, int] = {}
    with checks.kernel_tcp_counted(lab.cfg.server_netns, delta):
        with servers.KernelServer().start(lab.cfg, 7103, placement):
            began = time.monotonic()
            well.start()
            until("answers", lambda: len(well.latencies_s) > 10)
            well.stop()
            seconds = time.monotonic() - began
        refused.start()
        until("failures", lambda: len(refused.failures) > 2)
        refused.stop()
    found = well.check()
    assert found.ok, found.detail
    assert 10 < found.facts["answered"] <= seconds / 0.02 + 1
    after = refused.check()
    assert not after.ok
    assert (after.facts["failed"] > 2, after.facts["answered"]) == (True, 0)
    # What the kernel counted itself is the same number, and one more would be found.
    assert checks.check_bypass(delta, well.connected).ok
    assert not checks.check_bypass(delta, well.connected - 1).ok


def test_prober_that_never_asked_is_no_success(lab: Lab) -> None:
    assert not checks.Prober(lab.cfg, HOST, 7104).check().ok


def test_check_spread_wants_every_queue(lab: Lab) -> None:
    assert checks.check_spread([10, 3], 2).ok
    assert not checks.check_spread([10, 0], 2).ok
    assert not checks.check_spread([10], 2).ok
    assert len(checks.queue_packets(lab.cfg.server_netns, lab.cfg.server_if)) == 2


# ---- servers ----------------------------------------------------------------------------------


class Odd(servers.Server):
    """A shell command in the place of a server."""

    label = "odd"

    def __init__(self, script: str) -> None:
        self._script = script

    def argv(self, lab: LabConfig, port: int, placement: servers.Placement) -> list[str]:
        return ["sh", "-c", self._script]

    def pinned_to(self, placement: servers.Placement) -> int | None:
        return None


PLACEMENT = servers.Placement(queues=1, cores=(1,))


def test_server_that_ends_at_once_is_shown_with_its_reason(lab: Lab) -> None:
    with pytest.raises(BenchError, match=r"(?s)odd ended with status 3.*no such interface"):
        Odd("echo no such interface >&2; exit 3").start(lab.cfg, 1, PLACEMENT)


def test_server_that_never_gets_ready(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers.RunningServer.wait_ready, "__defaults__", (3.0,))
    monkeypatch.setattr(servers, "patience", lambda seconds: seconds)
    with pytest.raises(BenchError, match=r"(?s)not ready after 3 s.*thinking"):
        Odd("echo thinking; exec sleep 60").start(lab.cfg, 1, PLACEMENT)
    facts = lab_status(lab.cfg).facts
    assert facts is not None
    assert facts.server.processes == {}


def test_server_says_ready_and_stops(lab: Lab) -> None:
    with Odd("echo first; echo ready, 2 queues; exec sleep 60").start(
        lab.cfg, 1, PLACEMENT
    ) as running:
        assert running.ready_line == "ready, 2 queues"
        assert running.alive()
    assert running.clean_stop
    assert not running.alive()


def test_server_that_ignores_sigterm_is_killed_and_told(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "STOP_S", 0.2)
    script = "trap '' TERM; echo ready; while :; do sleep 0.05; done"
    with Odd(script).start(lab.cfg, 1, PLACEMENT) as running:
        pass
    assert running.clean_stop is False
    assert not running.alive()


# ---- the comparison ---------------------------------------------------------------------------


def test_comparison_takes_medians_and_ratios() -> None:
    def report(rate: float, p50: float) -> dict[str, Any]:
        return {"per_second": rate, "us": {"p50": p50, "p99": 10 * p50}}

    def runs(*rates: float) -> dict[str, list[dict[str, Any]]]:
        return {point.key: [report(r, 1e6 / r) for r in rates] for point in compare.POINTS}

    result = compare.Comparison(("base", "other"), {}, {}, [])
    result.runs = {"base": runs(100, 300, 200), "other": runs(500, 400, 100)}
    latency, rate = compare.ROWS[0], compare.ROWS[4]
    assert result.median("base", rate) == 200
    assert result.ratio("other", rate) == 2
    assert result.ratio("base", rate) == 1
    assert result.ratio("other", latency) == pytest.approx(0.5)
    result.runs["other"] = runs()
    assert result.ratio("other", rate) is None
    assert result.as_dict()["rows"][0]["servers"]["other"]["most"] is None
    assert compare.table(result, "").row_count == len(compare.ROWS)


def test_comparison_goes_on_without_a_server_that_fails(lab: Lab) -> None:
    tried: list[str] = []
    kinds = [servers.KernelServer("kernel"), Odd("echo broken; exit 1")]
    result = compare.compare(lab.cfg, HOST, 7105, kinds, 2, 0.05, tried.append)
    assert tried == ["round 1 of 2: kernel", "round 1 of 2: odd", "round 2 of 2: kernel"]
    assert len(result.problems) == 1
    assert "broken" in result.problems[0]
    assert all(len(reports) == 2 for reports in result.runs["kernel"].values())
    assert result.median("odd", compare.ROWS[0]) is None


def test_comparison_turns_the_order(lab: Lab) -> None:
    tried: list[str] = []
    kinds = [servers.KernelServer(label) for label in ("a", "b", "c")]
    point = compare.POINTS[0]
    compare.POINTS, before = (point,), compare.POINTS
    try:
        compare.compare(lab.cfg, HOST, 7106, kinds, 3, 0.02, lambda w: tried.append(w[-1]))
    finally:
        compare.POINTS = before
    assert "".join(tried) == "abcbcacab"
