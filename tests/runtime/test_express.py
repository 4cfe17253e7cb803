"""Instances that send without skbs: when they do, when not, and what is left of it.

ixs0 10.77.0.1, 1 queue ------ veth ------ ixc0 10.77.0.2
the instance under test                    the kernel's own sockets, GRO on or off
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ixnet.control import server
from ixnet.control.config import RunConfig
from ixnet.control.lab import Lab, LabConfig
from ixnet.control.namespaces import in_netns
from ixnet.control.nic import Nic
from ixnet.runtime import Program
from tests.runtime.conftest import Start, started
from tests.runtime.lab import APPS, ROOT, Run, connect, in_background, receive, serves, until

LENGTH = 256 * 1024
COUNTERS = ("express_calls", "express_frames", "express_errors")
SENDS = "bursts without skbs"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    if os.geteuid() != 0:
        pytest.skip("needs root to make network namespaces")
    with Lab(LabConfig.named(f"rx{os.getpid()}", queues=1)) as made:
        yield made


@pytest.fixture(autouse=True)
def gro(lab: Lab) -> None:
    lab.set_gro(True)


def counters(run: Run) -> tuple[int, ...]:
    """express_calls, express_frames, express_errors."""
    shown = run.live()["shards"][0]["socket"]
    return tuple(shown[name] for name in COUNTERS)


def echo(lab: Lab) -> None:
    """So much at once that bursts are long."""
    data = os.urandom(LENGTH)
    with connect(lab) as sock:

        def send() -> None:
            with contextlib.suppress(OSError):  # which the receiver sees, too
                sock.sendall(data)

        sender = threading.Thread(target=send)
        sender.start()
        got = receive(sock, LENGTH)
        sender.join()
    assert got == data


def sends_by_express(lab: Lab, run: Run) -> bool:
    before = counters(run)[1]
    echo(lab)
    return counters(run)[1] > before


def link_text(run: Run) -> str:
    """What it says of how frames leave."""
    return " ".join(line for line in run.said if "skbs" in line or "frame by frame" in line)


def stopped(run: Run) -> str:
    """Ends it; what it complained of."""
    assert run.end() == 0
    return run.errors()


def test_peer_with_gro_bursts_go_without_skbs(lab: Lab, start: Start) -> None:
    run = start().wait_ready()
    assert SENDS in link_text(run) and "native" in run.said[-1]
    until("bursts", lambda: sends_by_express(lab, run))
    words = [sys.executable, "-m", "ixnet", "stat", "--json", "--name", run.name]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT)
    shown = json.loads(done.stdout)
    (shard,) = shown["shards"]
    calls, frames, errors = (shard["socket"][name] for name in COUNTERS)
    assert 0 < 8 * calls <= frames and errors == 0
    assert stopped(run) == ""


def test_worker_of_a_user_sends_so_too(lab: Lab, start: Start) -> None:
    """It has no capabilities: the call takes the program's descriptor only."""
    with tempfile.TemporaryDirectory(prefix="ixnet-express-") as place:
        Path(place).chmod(0o755)
        app = Path(shutil.copy(APPS / "echo.py", place))
        run = start(app, options=["--user", "nobody"]).wait_ready()
        until("bursts", lambda: sends_by_express(lab, run))
        assert counters(run)[2] == 0
        assert run.live()["shards"][0]["socket"]["express_refused"] == 0
        assert stopped(run) == ""


def test_peer_turns_gro_off_and_on_frames_go_on(lab: Lab, start: Start) -> None:
    run = start().wait_ready()
    until("bursts", lambda: sends_by_express(lab, run))
    for _ in range(2):
        lab.set_gro(False)
        until("none", lambda: not sends_by_express(lab, run))
        assert serves(lab)
        lab.set_gro(True)
        until("bursts", lambda: sends_by_express(lab, run))
    assert stopped(run) == ""


def test_peer_turns_gro_on_later_native_mode_uses_it(lab: Lab, start: Start) -> None:
    lab.set_gro(False)
    run = start(options=["--mode", "copy"]).wait_ready()
    assert "frame by frame" in link_text(run)
    echo(lab)
    assert counters(run) == (0, 0, 0)
    lab.set_gro(True)
    until("bursts", lambda: sends_by_express(lab, run))
    assert stopped(run) == ""


@pytest.mark.parametrize("options", [["--timestamps"], ["--mode", "generic"]])
def test_where_it_can_not_be_had_frames_go_one_by_one(
    lab: Lab, start: Start, options: list[str]
) -> None:
    run = start(options=options).wait_ready()
    assert SENDS not in link_text(run)
    echo(lab)
    assert counters(run) == (0, 0, 0)
    assert stopped(run) == ""


def test_two_queues_frames_go_one_by_one() -> None:
    with Lab(LabConfig.named(f"ry{os.getpid()}", queues=2)) as two, started(two) as begin:
        two.set_gro(True)
        run = begin().wait_ready()
        assert SENDS not in link_text(run)
        for _ in range(4):
            echo(two)
        assert all(shard["socket"]["express_calls"] == 0 for shard in run.live()["shards"])
        assert stopped(run) == ""


@pytest.mark.parametrize(
    ("changes", "queues"),
    [({"placement": "dune"}, (0,)), ({"mode": "generic"}, (0,)), ({}, (0, 1))],
    ids=["dune", "generic", "two-queues"],
)
def test_program_that_sends_is_not_loaded_where_nothing_would_use_it(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], queues: tuple[int, ...]
) -> None:
    def load() -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(server, "open_express", load)
    config = RunConfig(interface="veth9", program=Program(Path("app.py")), **changes)
    plane = server.ControlPlane(config, print, print)
    nic = SimpleNamespace(kind="veth", queues=queues, mtu=1500)
    plane.nic = nic  # type: ignore[assignment]
    assert plane._express_steering() is None
    monkeypatch.setattr(server, "open_express", lambda: None)
    assert plane._express_steering() is None


def test_object_that_can_not_be_loaded_plain_program_serves(
    lab: Lab, start: Start, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.o"
    bad.write_bytes(b"no object")
    wrapper = tmp_path / "wrapper.py"
    wrapper.write_text(
        "import pathlib, runpy, sys\n"
        "import ixnet.control.express as express\n"
        f"express.EXPRESS_PATH = pathlib.Path({str(bad)!r})\n"
        "sys.argv = ['ixnet', *sys.argv[4:]]\n"
        "runpy.run_module('ixnet', run_name='__main__', alter_sys=True)\n"
    )
    run = start(prefix=[sys.executable, str(wrapper)], env={"PYTHONPATH": str(ROOT)}).wait_ready()
    assert "not allowed by this kernel or these rights" in link_text(run)
    echo(lab)
    assert counters(run) == (0, 0, 0)
    assert stopped(run) == ""


# ---- deaths --------------------------------------------------------------------------------------


def flood(lab: Lab) -> AbstractContextManager[None]:
    """Echoes in the background until the block's end, whatever becomes of them."""

    def work() -> None:
        with contextlib.suppress(OSError, AssertionError):
            echo(lab)

    return in_background(work)


def test_worker_killed_in_traffic_is_started_again_and_sends_so(lab: Lab, start: Start) -> None:
    run = start().wait_ready()
    for _ in range(2):
        with flood(lab):
            calls = counters(run)[0]
            until("calls", partial(lambda n: counters(run)[0] > n, calls))
            (victim,) = run.worker_pids()
            os.kill(victim, signal.SIGKILL)
            until("its end", partial(run.is_over, victim))
            until("its restart", lambda: run.states() == ["ready"])
        until("service", lambda: serves(lab))
        until("bursts", lambda: sends_by_express(lab, run))
    lab.set_gro(False)
    until("none", lambda: not sends_by_express(lab, run))
    assert run.end() == 0
    assert "killed by SIGKILL" in run.errors()


def test_control_process_killed_in_traffic_leaves_nothing(lab: Lab, start: Start) -> None:
    def state() -> list[Any]:
        ends = []
        for end in (lab.facts.server, lab.facts.client):
            with in_netns(end.netns):
                nic = Nic.find(end.interface)
            ends.append((nic.offloads, nic.xdp_features, nic.program, nic.up, nic.mtu, nic.ips))
        return ends

    before = state()
    run = start().wait_ready()
    (worker,) = run.worker_pids()
    with flood(lab):
        until("calls", lambda: counters(run)[0] > 0)
        os.kill(run.control_pid(), signal.SIGKILL)
        until("the worker's end", lambda: not Path(f"/proc/{worker}").exists())
    until("all to be as before", lambda: state() == before)
    again = start().wait_ready()
    until("bursts", lambda: sends_by_express(lab, again))
    assert stopped(again) == ""
    assert state() == before
