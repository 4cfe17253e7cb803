"""The course of a trace, with a tool that only counts; whom it finds; what the command answers."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import RenderableType

from ixnet.control import instance as instance_module
from ixnet.control.errors import IxError, UnknownInterface
from ixnet.control.instance import Instance, InstanceError, process_start_ticks
from ixnet.trace import needs
from ixnet.trace import target as target_module
from ixnet.trace.session import LIVE_CHECK_S, Options, Tool, run
from ixnet.trace.tables import Sample
from ixnet.trace.target import Target, find_target, workers_of

ROOT = Path(__file__).resolve().parents[2]
LO = Target("lo", 1, 0, 0)


class Counting(Tool):
    """No program: its table counts its samples."""

    def __init__(self) -> None:
        self.lost = ["the far side"]
        self.samples = 0
        self.late = 7
        self.closed = False
        self.on_sample = lambda n: None
        self.followed: list[Target] = []

    def sample(self) -> Sample:
        self.samples += 1
        self.on_sample(self.samples)
        return {"n": {(0,): (self.samples,)}}

    def report(self, change: Sample, seconds: float) -> Any:
        count = change["n"][0,][0]

        class Report:
            def as_dict(self) -> dict[str, Any]:
                return {"count": count}

            def render(self) -> RenderableType:
                return f"count {count}"

        return Report()

    def follow(self, target: Target) -> None:
        self.followed.append(target)

    def missed(self) -> int:
        return 7 if self.samples < 2 else self.late

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def lines() -> list[str]:
    return []


def trace(tool: Counting, options: Options, lines: list[str], target: Target = LO) -> list[str]:
    """Runs it; returns what it complained of."""
    said: list[str] = []
    run(tool, target, options, lambda text: lines.append(str(text)), said.append)
    assert tool.closed
    return said


def test_what_the_kernel_passed_over_is_told_if_there_was_any(
    lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    tool = Counting()
    assert len(trace(tool, Options(seconds=0.1), lines)) == 2
    tool = Counting()
    tool.late = 10
    said = trace(tool, Options(seconds=0.1, as_json=True), lines)
    assert said[-1].startswith("ixnet: 3 events of the machine's came while")
    assert json.loads(capsys.readouterr().out)["missed"] == 3


def test_intervals_show_their_own_part_and_the_summary_all(lines: list[str]) -> None:
    tool = Counting()
    said = trace(tool, Options(seconds=0.5, interval=0.2), lines)
    counts = [line for line in lines if line.startswith("count")]
    assert counts[-1] == f"count {tool.samples - 1}"
    assert counts[:-1] == ["count 1"] * (tool.samples - 1)
    assert said[0] == "ixnet: not told: the far side" and "ctrl-C" in said[1]


def test_json_is_an_object_a_line(lines: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    trace(Counting(), Options(seconds=0.3, interval=0.1, as_json=True), lines)
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == []
    assert [one["kind"] for one in found[:-1]] == ["interval"] * (len(found) - 1)
    assert (found[-1]["kind"], found[-1]["interface"]) == ("summary", "lo")
    assert found[-1]["count"] == sum(one["count"] for one in found[:-1])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_the_summary(lines: list[str], number: signal.Signals) -> None:
    tool = Counting()
    before = signal.getsignal(number)
    tool.on_sample = lambda n: os.kill(os.getpid(), number) if n == 1 else None
    trace(tool, Options(), lines)
    assert lines[-1] == "count 1" and signal.getsignal(number) is before


def test_the_instances_end_ends_it(lines: list[str], tmp_path: Path) -> None:
    gone = Instance(tmp_path / "web", {"pid": os.getpid(), "start_ticks": 1})
    trace(Counting(), Options(), lines, Target("lo", 1, 0, 0, (), gone))
    assert lines[-1] == "count 1"


def test_a_tool_that_fails_is_unloaded(lines: list[str]) -> None:
    tool = Counting()

    def fail(n: int) -> None:
        if n == 2:
            raise IxError("the table is gone")

    tool.on_sample = fail
    with pytest.raises(IxError):
        run(tool, LO, Options(seconds=0.1), lambda _: None, lambda _: None)
    assert tool.closed


@pytest.mark.parametrize("options", [{"seconds": 0.0}, {"interval": -1.0}, {"seconds": 1e9}])
def test_times_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(IxError, match="out of range"):
        Options(**options)


# ---- whom --------------------------------------------------------------------------------------


LIVE: dict[str, Any] = {
    "workers": [
        {"id": 0, "pid": 100, "state": "ready"},
        {"id": 1, "pid": 0, "state": "waiting"},
    ]
}


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Instance]:
    """A running instance on lo with two shards, whose control process is this one."""
    monkeypatch.setattr(instance_module, "run_directories", lambda: (tmp_path,))
    monkeypatch.setattr(target_module, "query_attached", lambda _: None)
    place = tmp_path / "web"
    place.mkdir()
    facts = {
        "name": "web",
        "pid": os.getpid(),
        "start_ticks": process_start_ticks(os.getpid()),
        "interface": "lo",
        "netns": os.stat("/proc/self/ns/net").st_ino,
        "shards": [{"id": 0, "queue": 4, "core": 2}, {"id": 1, "queue": 5, "core": 3}],
    }
    (place / "instance.json").write_text(json.dumps(facts))
    monkeypatch.setitem(LIVE, "workers", list(LIVE["workers"]))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place / "control"))
        listener.listen()

        def answer() -> None:
            while True:
                try:
                    asker, _ = listener.accept()
                except OSError:
                    return
                with asker:
                    asker.sendall(json.dumps(LIVE).encode())

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield Instance(place, facts)
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.mark.parametrize("words", [("web", None), (None, "lo"), (None, None), ("web", "lo")])
def test_an_instance_is_found_by_name_or_interface(
    web: Instance, words: tuple[str | None, str | None]
) -> None:
    found = find_target(*words)
    assert found.instance is not None and found.instance.name == "web"
    assert (found.interface, found.ifindex) == ("lo", socket.if_nametoindex("lo"))
    assert [(w.number, w.pid, w.core, w.queues) for w in found.workers] == [(0, 100, 2, (4,))]
    assert found.worker_of(100) is found.workers[0] and found.worker_of(5) is None


def test_an_interface_alone_will_do(web: Instance, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target_module, "find_instances", lambda: [])
    found = find_target(None, "lo")
    assert found.instance is None and found.workers == () and found.title() == "lo"
    assert found.netns == os.stat("/proc/self/ns/net").st_ino


def test_names_that_fit_nothing_are_refused(web: Instance) -> None:
    with pytest.raises(UnknownInterface, match="no interface nope0"):
        find_target(None, "nope0")
    with pytest.raises(InstanceError, match="runs on lo, not on eth7"):
        find_target("web", "eth7")
    with pytest.raises(InstanceError, match="no instance is called 'db'"):
        find_target("db", None)


def test_a_worker_that_is_started_again_is_followed(web: Instance, lines: list[str]) -> None:
    tool, found = Counting(), find_target("web", None)
    LIVE["workers"][1] = {"id": 1, "pid": 101, "state": "ready"}
    said = trace(tool, Options(seconds=LIVE_CHECK_S * 1.5), lines, found)
    (followed,) = tool.followed
    assert [worker.pid for worker in followed.workers] == [100, 101]
    assert said[-1] == "ixnet: worker 1 was started again (process 101)"


def test_workers_with_several_shards_have_all_their_queues() -> None:
    shards = [{"id": n, "worker": n % 2, "queue": n, "core": 4 + n % 2} for n in range(4)]
    live = {"workers": [{"id": 0, "pid": 7}, {"id": 1, "pid": 8}]}
    found = workers_of({"shards": shards}, live)
    assert [(w.pid, w.core, w.queues) for w in found] == [(7, 4, (0, 2)), (8, 5, (1, 3))]


# ---- the command ---------------------------------------------------------------------------------


def ixnet(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ixnet", "trace", *words],
        capture_output=True, text=True, check=False, cwd=ROOT, timeout=240,
    )  # fmt: skip


def test_help_names_the_tools() -> None:
    told = ixnet("--help").stdout
    assert all(tool in told for tool in ("drops", "napi", "wakeups", "preempt"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("napi", "--name", "no-such-instance"), "no instance is called 'no-such-instance'"),
        (("drops", "-i", "nope0"), "there is no interface nope0"),
        (("wakeups", "-i", "lo", "--seconds", "0"), "--seconds 0 is out of range"),
    ],
)
def test_wrong_arguments_are_one_message_with_a_cure(words: tuple[str, ...], message: str) -> None:
    done = ixnet(*words)
    assert done.returncode == 2 and done.stdout == ""
    assert message in done.stderr and "cure: " in done.stderr and "Traceback" not in done.stderr


def test_a_machine_that_cannot_trace_says_why_and_the_cure() -> None:
    problem = needs.problem()
    if problem is None:
        pytest.skip("this machine has all that tracing needs")
    done = ixnet("napi", "-i", "lo", "--seconds", "1")
    assert done.returncode == 2
    assert f"ixnet: {problem.message}" in done.stderr and f"cure: {problem.cure}" in done.stderr
