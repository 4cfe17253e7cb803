"""A shard that stands still is told of once, and once when it runs again."""

from __future__ import annotations

import os

import pytest

from ixnet.control import heartbeat
from ixnet.control.heartbeat import STALLED_S, Heartbeat

READ = heartbeat._waited_ns
S = 1_000_000_000
PID = os.getpid()


@pytest.fixture(autouse=True)
def waited(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How long the process waited for a core, ns; in tests no machine's load decides."""
    ns = [0]
    monkeypatch.setattr(heartbeat, "_waited_ns", lambda _: ns[0])
    return ns


def test_no_cycle_yet_is_no_trouble() -> None:
    heart = Heartbeat()
    assert heart.look(PID, 0, 100 * S) == ""
    assert (heart.stalled_s, heart.text()) == (0, "")


def test_a_late_cycle_is_told_once_and_its_return_too() -> None:
    heart = Heartbeat()
    said = [heart.look(PID, 10 * S, 10 * S + i * S // 10) for i in range(50)]
    told = [text for text in said if text]
    assert len(told) == 1 and "no cycle for 2 s" in told[0]
    assert said.index(told[0]) == STALLED_S * 10
    assert heart.stalled_s == pytest.approx(4.9)
    assert heart.look(PID, 15 * S, 15 * S + 1) == "runs cycles again, after 4.9 s"
    assert (heart.stalled_s, heart.text()) == (0, "")
    assert heart.look(PID, 15 * S, 15 * S + 2) == ""


def test_a_cycle_now_and_then_is_another_stall_each_time() -> None:
    heart = Heartbeat()
    told = ""
    for i in range(100):  # looked at every 100 ms; a cycle every 3 s
        now = 10 * S + i * S // 10
        told += heart.look(PID, now - now % (3 * S), now)
    assert told.count("no cycle") == told.count("again") == 3


def test_time_without_a_core_is_not_counted(waited: list[int]) -> None:
    heart = Heartbeat()
    for i in range(50):
        now = 10 * S + i * S // 10
        waited[0] = i * S // 10
        assert heart.look(PID, 10 * S, now) == ""
    assert heart.look(PID, 10 * S, now + 2 * S)


def test_time_in_which_nobody_looked_is_not_counted() -> None:
    heart = Heartbeat()
    assert heart.look(PID, 10 * S, 10 * S + S // 10) == ""
    for i in range(14):  # five seconds later, and on from there
        assert heart.look(PID, 10 * S, 15 * S + i * S // 10) == ""
    assert "no cycle for 2 s" in heart.look(PID, 10 * S, 15 * S + 14 * S // 10)


def test_waiting_for_a_core_is_read_of_linux() -> None:
    """More and more for a process that shares its core; nothing for one that is gone."""
    before = READ(PID)
    assert 0 <= before <= READ(PID)
    assert READ(2**22 + 1) == 0
