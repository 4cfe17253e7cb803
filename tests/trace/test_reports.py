"""What tools say of tables, which are canned here."""

from __future__ import annotations

import errno
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from ixnet.control.instance import Instance, InstanceError
from ixnet.trace.drops import drop_reasons, drops_report, instance_counters, redirect_error
from ixnet.trace.napi import UNTIMED, NapiReport, PollBy
from ixnet.trace.preempt import Cause, PreemptReport, PreemptTool, core_places, steal_ticks
from ixnet.trace.tables import Sample
from ixnet.trace.target import Target, WorkerPlace
from ixnet.trace.wakeups import NO_QUEUE, Call, WakeupsReport

WORKERS = (WorkerPlace(0, 100, 2, (0,)), WorkerPlace(1, 101, 3, (1, 2)))
SECONDS = 2.0


def target(**facts: Any) -> Target:
    """Two workers on eth1."""
    instance = Instance(
        Path("/run/ixnet/web"), {"pid": os.getpid(), "mode": "native copy", **facts}
    )
    return Target("eth1", 4, 99, 7, WORKERS, instance)


def shown(report: Any) -> str:
    """As a terminal that is wide enough has it; JSON must be possible too."""
    json.dumps(report.as_dict())
    console = Console(file=io.StringIO(), width=200)
    console.print(report.render())
    return str(console.file.getvalue())  # type: ignore[attr-defined]


# ---- napi --------------------------------------------------------------------------------------

POLLS: Sample = {
    "polls": {
        (2, PollBy.SOFTIRQ, 100, 1, 10): (10, 11_000, 1_500),
        (2, PollBy.SOFTIRQ, 100, 64, 14): (2, 40_000, 21_000),
        (0, PollBy.KSOFTIRQD, 0, 0, UNTIMED): (3, 0, 0),
        (3, PollBy.BUSY_POLL, 101, 5, UNTIMED): (4, 0, 0),
    }
}


def test_napi_histogram_sums_to_the_frames() -> None:
    found = NapiReport.of(target(), POLLS, SECONDS).as_dict()
    assert (found["polls"], found["frames"]) == (19, 10 + 128 + 20)
    assert found["frames_a_poll"] == {"0": 3, "1": 10, "5": 4, "64": 2}
    by = {(p["cpu"], p["by"]): p for p in found["pollers"]}
    assert by[2, "softirq"]["worker"] == 0 and by[3, "busy_poll"]["worker"] == 1
    assert by[2, "softirq"]["time"]["count"] == 12
    assert by[2, "softirq"]["time"]["max_ns"] == 21_000
    assert by[3, "busy_poll"]["time"]["count"] == 0


def test_napi_table_says_who_and_how_often() -> None:
    text = shown(NapiReport.of(target(), POLLS, SECONDS))
    assert "softirq in worker 0's time" in text and "busy poll of worker 1" in text
    assert "ksoftirqd" in text
    assert [line.split()[1] for line in text.splitlines() if line.startswith("64-127")] == ["2"]


def test_napi_notes_a_busy_poll_that_does_not_run_or_is_elsewhere() -> None:
    busy = target(busy_poll=True)
    (note,) = NapiReport.of(busy, POLLS, SECONDS).notes()
    assert note.startswith("worker 0 busy-polls, but")
    polls = {(9, PollBy.BUSY_POLL, 101, 1, 9): (1, 600, 600), (2, 2, 100, 1, 9): (1, 600, 600)}
    moved: Sample = {"polls": polls}
    (note,) = NapiReport.of(busy, moved, SECONDS).notes()
    assert note == "worker 1 polled on other cores than its own (3)"
    assert NapiReport.of(target(), POLLS, SECONDS).notes() == []


def test_napi_without_polls_says_so() -> None:
    assert "nobody polled eth1" in shown(NapiReport.of(target(), {"polls": {}}, 1))


# ---- drops -------------------------------------------------------------------------------------

FORMAT = """name: kfree_skb
print fmt: "protocol=%u reason: %s", REC->protocol, __print_symbolic(REC->reason,
 { 2, "NOT_SPECIFIED" }, { 3, "NO_SOCKET" }, { 0x10001, "MAC_OTHER" })
"""


def drops(change: Sample) -> Any:
    """The report, of a kernel with two functions."""
    empty: Sample = {"redirects": {}, "exceptions": {}, "frees": {}, "counters": {}}
    names = {0xF0: "tcp_v4_rcv", 0xF1: "ip_rcv_core"}
    return drops_report(
        target(), {**empty, **change}, SECONDS, drop_reasons(FORMAT), names.__getitem__
    )


def test_drops_add_up_cpus_and_give_errors_their_meaning() -> None:
    redirects = {(1, -errno.ENOBUFS, 0): (5,), (1, -errno.ENOBUFS, 3): (2,), (0, -12, 0): (4,)}
    report = drops({"redirects": redirects})
    assert report.as_dict()["redirect_errors"] == [
        {"queue": 0, "errno": "ENOMEM", "frames": 4},
        {"queue": 1, "errno": "ENOBUFS", "frames": 7},
    ]
    assert report.total == 11
    text = shown(report)
    assert "queue 1: ENOBUFS" in text and "RX ring full" in text and "FILL ring empty" in text


@pytest.mark.parametrize(
    ("error", "said"),
    [(-errno.ENXIO, "no AF_XDP socket"), (-errno.EINVAL, "another interface"), (-9999, "")],
)
def test_redirect_errors_are_explained(error: int, said: str) -> None:
    name, meaning = redirect_error(error)
    assert said in meaning and (name or said)
    assert redirect_error(-9999)[0] == "9999"


def test_freed_packets_have_reason_function_and_protocol() -> None:
    frees = {(0xF0, 3, 0x0800): (8,), (0xF1, 77, 0x86DD): (1,)}
    found = drops({"frees": frees}).as_dict()["kfree_skb"]
    assert found == [
        {"reason": "NO_SOCKET", "function": "tcp_v4_rcv", "protocol": 0x800, "packets": 8},
        {"reason": "reason 77", "function": "ip_rcv_core", "protocol": 0x86DD, "packets": 1},
    ]
    assert drop_reasons(FORMAT)[0x10001] == "MAC_OTHER"


def test_others_counters_stand_beside() -> None:
    live = {
        "workers": [{"id": 1, "socket": {"rx_ring_full": 3, "tx_full": 9}}],
        "verdicts": {"pass_no_socket": 6, "redirect_claim": 1000},
    }
    flat = instance_counters(live)
    assert flat == {"socket/1/rx_ring_full": 3, "verdict/pass_no_socket": 6}
    by_shard = {"shards": live["workers"], "workers": [{"id": 0, "pid": 5}]}
    assert instance_counters(by_shard) == {"socket/1/rx_ring_full": 3}
    counters = flat | {"nic/rx_missed_errors": 2, "shard/drop_tcp_csum": 4}
    report = drops({"counters": {(name,): (n,) for name, n in counters.items()},
                    "exceptions": {(4, 0): (2,), (4, 1): (1,)}})  # fmt: skip
    assert report.sockets == {1: {"rx_ring_full": 3}}
    assert report.exceptions == {"REDIRECT": 3}
    text = shown(report)
    for part in ("pass_no_socket", "rx_missed_errors", "drop_tcp_csum", "socket of shard 1"):
        assert part in text


# ---- wakeups -----------------------------------------------------------------------------------

CALLS: Sample = {
    "calls": {
        (0, 100, Call.SENDTO, 0, 1, 12): (60, 300_000, 8_000),
        (0, 100, Call.SENDTO, 0, 32, 12): (30, 150_000, 7_000),
        (0, 100, Call.SENDTO, errno.EAGAIN, 32, 12): (10, 50_000, 7_000),
        (NO_QUEUE, 101, Call.POLL, 0, 0, 20): (5, 9_000_000, 2_000_000),
        (1, os.getpid(), Call.RECVFROM, 0, 0, 12): (2, 10_000, 5_000),
    },
    "counters": {(0, "syscalls"): (100,), (0, "tx_frames"): (1340,)},
}


def test_wakeups_are_counted_by_caller_call_and_result() -> None:
    found = WakeupsReport.of(target(), CALLS, SECONDS, True).as_dict()
    send = next(c for c in found["calls"] if c["call"] == "sendto")
    assert (send["count"], send["errors"], send["worker"]) == (100, {"EAGAIN": 10}, 0)
    assert send["frames_a_call"] == {"1": 60, "32": 40}
    assert (send["time"]["count"], send["time"]["total_ns"]) == (100, 500_000)
    sleep = next(c for c in found["calls"] if c["call"] == "poll")
    assert sleep["queue"] is None and sleep["worker"] == 1
    assert found["shards"] == {"0": {"syscalls": 100, "tx_frames": 1340}}


def test_wakeups_table_says_who_calls_and_the_mean() -> None:
    text = shown(WakeupsReport.of(target(), CALLS, SECONDS, True))
    assert "EAGAIN 10" in text and "control process (--kick thread)" in text
    assert "shard 0 counts 100 wakeups, 1,340 frames sent, 13.4 frames sent a wakeup" in text
    assert "frames sent by a call" in text


def test_wakeups_without_the_probe_tell_no_frames_a_call() -> None:
    report = WakeupsReport.of(target(), CALLS, SECONDS, False)
    assert all(call["frames_a_call"] is None for call in report.as_dict()["calls"])
    assert "frames sent by a call" not in shown(report)


# ---- preempt -----------------------------------------------------------------------------------

LOSSES: Sample = {
    "losses": {
        (100, Cause.WAIT_PREEMPTED, 0, 20): (3, 4_000_000, 1_900_000),
        (100, Cause.BY_TASK, 555, 20): (2, 3_000_000, 1_900_000),
        (100, Cause.BY_TASK, 0, 10): (1, 1_500, 1_500),
        (100, Cause.BY_IRQ, 24, 11): (7, 21_000, 4_000),
        (100, Cause.BY_VECTOR, 0, 12): (8, 40_000, 7_000),
        (101, Cause.BY_SOFTIRQ, 3, 13): (1, 9_000, 9_000),
        (101, Cause.BY_OWN_SOFTIRQ, 3, 13): (4, 36_000, 10_000),
        (999, Cause.BY_SOFTIRQ, 3, 13): (1, 9_000, 9_000),
    },
    "steal": {(2,): (os.sysconf("SC_CLK_TCK"),), (7,): (5,)},
}
NAMES = {("task", 555): "hog", ("irq", 24): "eth1-TxRx-0"}


def test_preempt_names_what_took_the_core_and_for_how_long() -> None:
    first, second = PreemptReport.of(target(), LOSSES, SECONDS, NAMES).as_dict()["workers"]
    assert [loss["text"] for loss in first["losses"]] == [
        "preempted, until it ran again",
        "task hog (555)",
        "interrupt: timer",
        "interrupt 24 eth1-TxRx-0",
        "the idle task: the core woke up",
    ]
    assert (first["core"], first["steal_s"], second["steal_s"]) == (2, 1.0, 0.0)
    assert [loss["text"] for loss in second["losses"]] == [
        "softirq NET_RX in its own system calls",
        "softirq NET_RX",
    ]


def test_preempt_table_shows_few_lines_of_many_tasks() -> None:
    many = {(100, Cause.BY_TASK, 1000 + n, 12): (1, 5000, 5000) for n in range(50)}
    text = shown(PreemptReport.of(target(), {"losses": many, "steal": {}}, 1, {}))
    assert "38 more" in text and len(text.splitlines()) < 25
    text = shown(PreemptReport.of(target(), LOSSES, SECONDS, NAMES))
    assert "the hypervisor (steal)" in text and "50.00%" in text and "preempted for" in text


def test_preempt_without_an_instance_says_what_it_needs() -> None:
    with pytest.raises(InstanceError, match="no instance runs on eth1"):
        PreemptTool(Target("eth1", 4, 99, 0))


def test_cores_hold_their_workers_in_places() -> None:
    shared = tuple(WorkerPlace(n, 100 + n, 1, (n,)) for n in range(6))
    assert core_places(shared) == {4: 105, 5: 104, 6: 103, 7: 102}, "the newest"
    assert core_places(WORKERS) == {8: 100, 12: 101}


def test_steal_is_read_of_each_cpu_alone() -> None:
    text = "cpu  1 2 3 4 5 6 7 80 9 0\ncpu0 1 2 3 4 5 6 7 30 9 0\ncpu11 1 2 3 4 5 6 7 50\nintr 5\n"
    assert steal_ticks(text) == {0: 30, 11: 50}


# ---- all ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "report",
    [
        lambda t, c: NapiReport.of(t, c, 0.0),
        lambda t, c: WakeupsReport.of(t, c, 0.0, True),
        lambda t, c: PreemptReport.of(t, c, 1.0, {}),
        lambda t, c: drops_report(t, c, 0.0, {}, hex),
    ],
)
def test_nothing_at_all_can_be_shown(report: Callable[[Target, Sample], Any]) -> None:
    tables = ("polls", "calls", "counters", "losses", "steal", "redirects",
              "exceptions", "frees")  # fmt: skip
    nothing: Sample = {name: {} for name in tables}
    shown(report(target(), nothing))
    assert SimpleNamespace(**report(target(), nothing).as_dict())
