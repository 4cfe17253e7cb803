"""The bare AF_XDP pair: frames move, and nothing stays attached."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest

from bench.limit import run as limit
from ixnet.control.lab import Lab, lab_status
from tests.bench.conftest import PATIENCE_S

LOSS_US = 50_000  # pingpong.c's: after so long without any arrival what is under way is lost


def xdp_attached(lab: Lab) -> list[bool]:
    facts = lab_status(lab.cfg).facts
    assert facts is not None
    return [facts.server.xdp_attached, facts.client.xdp_attached]


@pytest.mark.parametrize("generic", [False, True])
@pytest.mark.parametrize("busy_poll", [False, True])
@pytest.mark.parametrize("outstanding", [1, 64, 512])
def test_frames_go_round(lab: Lab, generic: bool, busy_poll: bool, outstanding: int) -> None:
    how: dict[str, object] = {"generic": generic, "busy_poll": busy_poll}
    with limit.reflector(lab, 1, **how):
        assert xdp_attached(lab)[0]
        report = limit.pingpong(lab, 0, outstanding, 0.2, **how)
    assert report["received"] > 0
    assert report["received"] <= report["sent"]
    # Frames that came late, as the reflector waited for a core, were made up for, too.
    assert report["lost"] < report["sent"] / 10 or report["us"]["max"] > LOSS_US
    assert report["mode"] == ("generic copy" if generic else "native copy")
    assert 0 < report["us"]["p50"] <= report["us"]["max"]
    assert report["rx_ring_full"] == report["tx_invalid"] == 0
    assert xdp_attached(lab) == [False, False]


def test_a_queue_each(lab: Lab) -> None:
    # The generator's queue 1 ends at the reflector's queue 1, and at no other.
    with limit.reflector(lab, 1, queue=1):
        assert limit.pingpong(lab, 0, 4, 0.2, queue=1)["received"] > 0
        with pytest.raises(limit.BenchError, match='"received": 0'):
            limit.pingpong(lab, 0, 4, 0.2, queue=0)


def test_the_reflector_counts_what_it_sent_back(lab: Lab, programs: Path) -> None:
    argv = [str(programs / "limit/reflect"), "--interface", lab.cfg.server_if]
    reflector = lab.start_server(argv, stdout=subprocess.PIPE)
    assert reflector.stdout is not None
    assert reflector.stdout.readline() == f"ready {lab.cfg.server_if} queue 0 native copy\n"
    report = limit.pingpong(lab, 0, 8, 0.2, bytes=1514)
    reflector.terminate()
    counted = json.loads(reflector.stdout.readline())
    assert reflector.wait(PATIENCE_S) == 0
    assert report["frame_bytes"] == 1514
    assert counted["frames"] >= report["received"]


def test_killed_it_leaves_nothing_and_can_be_started_again(lab: Lab, programs: Path) -> None:
    argv = [str(programs / "limit/reflect"), "--interface", lab.cfg.server_if]
    for _ in range(2):
        reflector = lab.start_server(argv, stdout=subprocess.PIPE)
        assert reflector.stdout is not None
        assert reflector.stdout.readline().startswith("ready")
        reflector.send_signal(signal.SIGKILL)
        reflector.wait()
    assert xdp_attached(lab) == [False, False]


@pytest.mark.parametrize(
    ("queue", "cause"), [(0, "the queue has an owner"), (1, "another XDP program is attached")]
)
def test_another_owner_is_not_pushed_aside(
    lab: Lab, programs: Path, queue: int, cause: str
) -> None:
    with limit.reflector(lab, 1, busy_poll=True):
        second = [str(programs / "limit/reflect"), "--interface", lab.cfg.server_if]
        other = lab.start_server([*second, "--queue", str(queue)], stderr=subprocess.PIPE)
        _, err = other.communicate(timeout=PATIENCE_S)
        assert other.returncode == 1
        assert cause in err
        assert limit.pingpong(lab, 0, 4, 0.2)["received"] > 0


def test_zero_copy_is_refused_where_there_is_none(lab: Lab) -> None:
    with (
        pytest.raises(limit.BenchError, match="zero-copy: Operation not supported"),
        limit.reflector(lab, 1, zero_copy=True),
    ):
        pass


@pytest.mark.parametrize(
    ("words", "status", "cause"),
    [
        (["reflect"], 2, "which --interface"),
        (["reflect", "--interface", "nowhere0"], 1, "no interface nowhere0"),
        (["reflect", "--interface", "lo", "--queue", "x"], 2, "x is not a number"),
        (["reflect", "--interface", "lo", "--generic", "--zero-copy"], 2, "no zero-copy"),
        (["reflect", "--walk"], 2, "usage"),
        (["pingpong", "--interface", "lo"], 2, "--destination"),
        (["pingpong", "--interface", "lo", "--destination", "1:2:3"], 2, "not an Ethernet address"),
        (["pingpong", "--outstanding", "513"], 2, "from 1 to 512"),
        (["pingpong", "--bytes", "73"], 2, "from 74 to 1514"),
    ],
)
def test_wrong_options_are_refused(
    programs: Path, words: list[str], status: int, cause: str
) -> None:
    argv = [str(programs / "limit" / words[0]), *words[1:]]
    run = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE_S)
    assert run.returncode == status
    assert cause in run.stderr


def test_summary_takes_medians() -> None:
    def run(rate: float, p50: float) -> dict[str, object]:
        us = {"p50": p50, "p99": 9.0}
        return {
            "per_second": rate,
            "us": us,
            "lost": 1,
            "mode": "native copy",
            "busy_poll": True,
            "napi_id": 7,
        }

    [row] = limit.summary({16: [run(100, 3), run(300, 1), run(200, 2)]})
    assert row["per_second"] == 200
    assert (row["least"], row["most"]) == (100, 300)
    assert row["p50_us"] == 2
    assert row["lost"] == 3
