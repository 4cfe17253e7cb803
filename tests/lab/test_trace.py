"""`ixnet trace` on real traffic, in the lab's virtual machine (`make lab`), where bcc and the
kernel's headers are: what it says is held against what others count.

A trace begins and ends while nothing moves, or its counts lie between two readings around each end.
Wires as in wires.py. Where a test is of one driver alone, that is where the driver matters.
"""

from __future__ import annotations

import ipaddress
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

if os.environ.get("IX_LAB_TRACING") != "1":
    pytest.skip(
        "needs bcc and a kernel's headers: `make lab` runs this in a virtual machine that has them "
        "(lab.py run --tracing)",
        allow_module_level=True,
    )

from ixnet.control.lab import Lab
from ixnet.control.namespaces import in_netns
from ixnet.control.xdp import Proto, Steering, XdpMode
from ixnet.control.xsk import QueueConfig, QueueSocket, Umem
from ixnet.trace import needs
from ixnet.trace.program import KPROBES
from tests.interop.kit import NATIVE_ECHO, lab_config
from tests.lab.wires import (
    IGB,
    PATIENCE_S,
    PORT,
    Service,
    Wire,
    command,
    conversations,
    echoes,
    note,
    set_up_wires,
    veth,
)
from tests.runtime.lab import ROOT, until

UNCLAIMED = 9999
# A worker's longest sleep, and as long again until it runs here.
SLEEP_S = 0.2
BATCH = 64  # frames that a call sends at most, where nothing else is asked for
HOG_S = 0.5
pytestmark = pytest.mark.timeout(900)


class Trace:
    """`ixnet trace TOOL --json`, from when it is loaded to its summary. intervals: those before
    it."""

    def __init__(self, *words: str, netns: str | None = None) -> None:
        enter = ["nsenter", f"--net=/run/netns/{netns}"] if netns else []
        began = time.monotonic()
        self.process = subprocess.Popen(
            [*enter, sys.executable, "-m", "ixnet", "trace", *words, "--json"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip
        self.said: list[str] = []
        assert self.process.stderr is not None
        while not self.said or not self.said[-1].startswith("tracing"):
            line = self.process.stderr.readline()
            assert line, f"ended before it traced: {self.said}"
            self.said.append(line.rstrip("\n"))
        note(f"trace {' '.join(words)}: loaded after {time.monotonic() - began:.1f} s")

    def __enter__(self) -> Trace:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def end(self) -> dict[str, Any]:
        """As ctrl-C does; returns the summary."""
        self.process.send_signal(signal.SIGINT)
        out, errors = self.process.communicate(timeout=PATIENCE_S)
        assert self.process.returncode == 0, errors
        *self.intervals, found = map(json.loads, out.splitlines())
        assert found["kind"] == "summary"
        assert all(one["kind"] == "interval" for one in self.intervals)
        if found["missed"]:
            note(f"missed {found['missed']}")
        return dict(found)


class Bracket:
    """How much something grew while a trace ran: read before and after either end of it."""

    def __init__(self, read: Callable[[], int]) -> None:
        self._read = read
        self._outer = read()

    def began(self) -> None:
        """The trace runs."""
        self._inner = self._read()

    def ends(self) -> None:
        """It is about to end."""
        self._least = self._read() - self._inner

    def holds(self, count: int, missed: int) -> bool:
        """Whether a trace that has ended may have counted this, if it missed so many events."""
        most = self._read() - self._outer
        note(f"{self._least} - {missed} <= {count} <= {most}")
        return self._least - missed <= count <= most


def plausible(time: dict[str, Any], seconds: float) -> bool:
    """Whether durations, one after the other in one thread, can have been in these seconds, or
    begun a little before. (The maximum of a slot may be an earlier one's, in the same slot.)"""
    assert sum(time["slots"].values()) == time["count"]
    assert time["p50_ns"] <= time["p99_ns"] <= time["max_ns"] < 2 * time["total_ns"]
    return bool(0 < time["total_ns"] <= (seconds + SLEEP_S) * 1e9)


@pytest.fixture(scope="module", autouse=True)
def able() -> None:
    """The lab has all that tracing needs."""
    assert needs.problem() is None


@pytest.fixture(scope="module")
def veth_wire() -> Iterator[Wire]:
    """Two namespaces, two queues."""
    with Lab(lab_config(queues=2)) as lab:
        yield veth(lab)


@pytest.fixture(params=["veth", "igb"])
def wire(request: pytest.FixtureRequest) -> Wire:
    """Each driver."""
    if request.param == "igb":
        set_up_wires()
        return IGB
    found: Wire = request.getfixturevalue("veth_wire")
    return found


def serve(wire: Wire, *options: str) -> Service:
    """The echo server, once it answers."""
    with ExitStack() as stack:
        service = stack.enter_context(Service(wire, NATIVE_ECHO, *options))
        wire.wait_carrier()
        with wire.connect() as sock:
            assert echoes(sock)
        stack.pop_all()
        return service


def quiet(read: Callable[[], int]) -> None:
    """Waits until a counter stands still for a second."""
    while True:
        before = read()
        time.sleep(1.0)
        if read() == before:
            return


def verdicts(service: Service) -> int:
    """Frames that the steering program has seen."""
    return sum(service.live()["verdicts"].values())


def shard_sum(service: Service, name: str) -> int:
    """A counter, over the shards."""
    return int(service.stat()["total"][name])


# ---- napi --------------------------------------------------------------------------------------


def test_napi_histogram_sums_to_the_frames(wire: Wire) -> None:
    with serve(wire) as service:
        quiet(lambda: verdicts(service))
        bracket = Bracket(lambda: verdicts(service))
        with Trace("napi", "--name", "lab", "--interval", "1") as trace:
            bracket.began()
            conversations(wire, 20, 5)
            quiet(lambda: verdicts(service))
            bracket.ends()
            found = trace.end()
        summed = sum(int(n) * count for n, count in found["frames_a_poll"].items())
        assert summed == found["frames"] >= 100  # a message each at least
        assert bracket.holds(summed, found["missed"])
        assert sum(found["frames_a_poll"].values()) == found["polls"]
        assert sum(p["frames"] for p in found["pollers"]) == found["frames"]
        assert sum(one["frames"] for one in trace.intervals) == found["frames"]
        timed = [p for p in found["pollers"] if p["time"]["count"]]
        assert timed and all(p["time"]["count"] <= p["polls"] for p in timed)
        assert all(plausible(p["time"], found["seconds"]) for p in timed)
        note(f"polls by {sorted({p['by'] for p in found['pollers']})}")


@pytest.fixture
def lone_igb() -> Iterator[Wire]:
    """With one queue, so that the one worker gets every flow."""
    set_up_wires()
    command("ethtool", "-L", IGB.dut, "combined", "1")
    try:
        yield replace(IGB, queues=1)
    finally:
        command("ethtool", "-L", IGB.dut, "combined", str(IGB.queues))


def test_napi_sees_busy_polling_on_the_workers_core(lone_igb: Wire) -> None:
    with serve(lone_igb, "--cores", "1", "--busy-poll") as service:
        worker = service.live()["workers"][0]
        with Trace("napi", "--name", "lab") as trace:
            time.sleep(2.0)
            found = trace.end()
        busy = [p for p in found["pollers"] if p["by"] == "busy_poll"]
        assert busy and {p["pid"] for p in busy} == {worker["pid"]}
        assert {p["cpu"] for p in busy} == {1} and found["notes"] == []
        note(f"{sum(p['polls'] for p in busy)} busy polls of {found['polls']}")
        if KPROBES.exists():
            assert all(p["time"]["count"] > 0 for p in busy)


# ---- wakeups -----------------------------------------------------------------------------------


def test_wakeups_are_those_that_the_workers_count(wire: Wire) -> None:
    with serve(wire) as service:
        quiet(lambda: verdicts(service))
        calls = Bracket(lambda: shard_sum(service, "syscalls"))
        sent = Bracket(lambda: shard_sum(service, "tx_frames"))
        with Trace("wakeups", "--name", "lab") as trace:
            calls.began()
            sent.began()
            conversations(wire, 20, 5)
            quiet(lambda: verdicts(service))
            calls.ends()
            sent.ends()
            found = trace.end()
        times = {c["call"]: c["time"] for c in found["calls"]}
        note(str({call: (time["count"], time["p50_ns"]) for call, time in times.items()}))
        assert all(plausible(c["time"], found["seconds"]) for c in found["calls"])
        sleeps = [c for c in found["calls"] if c["call"] == "poll"]
        assert {(c["queue"], c["worker"]) for c in sleeps} == {(0, 0), (1, 1)}
        kicks = [c for c in found["calls"] if c["call"] in ("sendto", "recvfrom")]
        note(f"{ {(c['queue'], c['call']): (c['count'], c['errors']) for c in kicks} }")
        assert calls.holds(sum(c["count"] for c in kicks), found["missed"])
        assert {c["worker"] for c in kicks} == {0, 1} and {c["queue"] for c in kicks} == {0, 1}
        assert all(c["time"]["count"] == c["count"] for c in kicks)
        if service.mode == "native copy" and not trace.said[0].startswith("ixnet: not told"):
            frames = [c["frames_a_call"] for c in kicks if c["call"] == "sendto"]
            told = sum(int(n) * k for one in frames for n, k in one.items())
            assert sent.holds(told, found["missed"] * BATCH)  # a call that was missed had so many
        else:
            assert all(c["frames_a_call"] is None for c in kicks)


def test_wakeups_of_protected_workers_are_their_exits(veth_wire: Wire) -> None:
    """In the dune placement: calls are made outside of the guest, by the same process."""
    with serve(veth_wire, "--placement", "dune") as service:
        quiet(lambda: verdicts(service))
        calls = Bracket(lambda: shard_sum(service, "syscalls"))
        with Trace("wakeups", "--name", "lab") as trace:
            calls.began()
            conversations(veth_wire, 20, 2)
            quiet(lambda: verdicts(service))
            calls.ends()
            found = trace.end()
        kicks = [c for c in found["calls"] if c["call"] == "sendto"]
        assert calls.holds(sum(c["count"] for c in kicks), found["missed"])
        assert {(c["queue"], c["worker"]) for c in kicks} == {(0, 0), (1, 1)}
        sleeps = [c for c in found["calls"] if c["call"] == "poll"]
        assert {(c["queue"], c["worker"]) for c in sleeps} == {(None, 0), (None, 1)}


# ---- drops -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "rx_entries", "filled", "counter"),
    [("ENOBUFS", 64, 256, "rx_ring_full"), ("ENOMEM", 256, 32, "rx_dropped")],
)
def test_drops_of_sockets_have_the_reason_and_count_of_the_kernel(
    veth_wire: Wire, error: str, rx_entries: int, filled: int, counter: str
) -> None:
    """No instance: sockets of our own, whose rings are as small as it takes."""
    near, far = veth_wire.near, veth_wire.far
    assert near is not None
    with ExitStack() as stack:
        nic = veth_wire.find()
        sockets = []
        with in_netns(near):
            steering = stack.enter_context(Steering.open())
            steering.sync_local([ipaddress.ip_address(veth_wire.ip)])
            steering.claim(Proto.UDP, None, PORT)
            steering.attach(nic.ifindex, XdpMode.NATIVE)
            for queue in nic.queues:
                umem = Umem.allocate(256 * 2048)
                stack.callback(umem.close)
                fill = range(0, filled * 2048, 2048)
                config = QueueConfig(
                    queue, umem.address, umem.nbytes, fill=fill, rx_entries=rx_entries
                )
                sockets.append(QueueSocket.open(nic.ifindex, config, zerocopy=False))
                stack.callback(sockets[-1].close)
                steering.set_socket(queue, sockets[-1].fileno())
        trace = stack.enter_context(Trace("drops", "-i", veth_wire.dut, netns=near))
        with in_netns(far):
            sender = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        send_all(
            600,
            lambda _: sender.sendto(b"one too many", (veth_wire.ip, PORT)),
            lambda: steering.verdicts()["redirect_claim"],
        )
        found = trace.end()
        counts = [sock.kernel_stats()[counter] for sock in sockets]
        counted = dict(zip(nic.queues, counts, strict=True))
        assert refused(found, error, counted)
        assert sum(counts) == 600 - min(rx_entries, filled)  # one flow: one queue


def refused(found: dict[str, Any], error: str, counted: dict[int, int]) -> bool:
    """Whether the frames that sockets refused are those that they counted, by queue."""
    told = {r["queue"]: r["frames"] for r in found["redirect_errors"]}
    note(f"{error}: {told} of {counted}")
    assert {r["errno"] for r in found["redirect_errors"]} == {error}
    less = [count - told.get(queue, 0) for queue, count in counted.items()]
    return bool(min(less) >= 0 and sum(less) <= found["missed"])


def redirected(service: Service) -> int:
    """Frames that the steering program gave to sockets."""
    return int(service.live()["verdicts"]["redirect_claim"])


def send_all(frames: int, send: Callable[[int], object], seen: Callable[[], int]) -> None:
    """Sends them, a hundred at a time until the steering program has seen those: a veth's ring
    holds 256."""
    for n in range(frames):
        if n % 100 == 0:
            until(f"{n} frames", lambda n=n: seen() >= n, PATIENCE_S)
        send(n)
    until("all frames", lambda: seen() >= frames, PATIENCE_S)


def unanswered(wire: Wire) -> socket.socket:
    """Of the far kernel: TCP segments by hand."""
    with in_netns(wire.far):
        return socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)


def test_drops_of_a_stopped_worker_and_of_others(veth_wire: Wire) -> None:
    wire = veth_wire
    with ExitStack() as stack:
        service = stack.enter_context(serve(wire))
        quiet(lambda: verdicts(service))
        trace = stack.enter_context(Trace("drops", "--name", "lab"))
        # Without a checksum: the shards' own affair.
        raw = stack.enter_context(unanswered(wire))
        head = struct.pack("!HHIIBBHHH", 4000, PORT, 1, 1, 0x50, 0x10, 1000, 0, 0)
        for _ in range(30):
            raw.sendto(head, (wire.ip, 0))
        until("bad checksums", lambda: shard_sum(service, "drop_tcp_csum") >= 30, PATIENCE_S)
        # To the kernel, where nobody listens.
        with in_netns(wire.far), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            for _ in range(10):
                other.sendto(b"anybody?", (wire.ip, UNCLAIMED))
        # And more than a worker's rings hold while it stands still.
        pids = [worker["pid"] for worker in service.live()["workers"]]
        try:
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            before = redirected(service)
            send_all(
                6000,
                lambda n: raw.sendto(struct.pack("!H", 4000 + n % 7) + head[2:], (wire.ip, 0)),
                lambda: redirected(service) - before,
            )
            found = trace.end()
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
        live = service.live()
        shards = live.get("shards", live["workers"])
        counted = {shard["id"]: shard["socket"]["rx_dropped"] for shard in shards}
        assert refused(found, "ENOMEM", counted)
        assert found["shards"].get("drop_tcp_csum") == 30
        note(f"freed {found['kfree_skb']}")
        freed = {f["reason"]: f["packets"] for f in found["kfree_skb"]}
        assert 10 - found["missed"] <= freed["NO_SOCKET"] <= 10


def test_drops_tell_frames_of_a_queue_without_a_socket(veth_wire: Wire) -> None:
    wire = veth_wire
    with ExitStack() as stack:
        service = stack.enter_context(Service(wire, NATIVE_ECHO, "--queues", "1"))
        trace = stack.enter_context(Trace("drops", "--name", "lab"))
        # The far kernel's choice of a queue goes by the flow: one of many goes to the other queue.
        raw = stack.enter_context(unanswered(wire))
        for n in range(64):
            head = struct.pack("!HHIIBBHHH", 4000 + n, PORT, 1, 1, 0x50, 0x10, 1000, 0, 0)
            for cpu in (0, 1):
                os.sched_setaffinity(0, {cpu})
                raw.sendto(head, (wire.ip, 0))
        os.sched_setaffinity(0, {0, 1})
        until(
            "a frame on the other queue",
            lambda: service.live()["verdicts"]["pass_no_socket"] > 0,
            PATIENCE_S,
        )
        quiet(lambda: verdicts(service))
        found = trace.end()
        assert found["verdicts"]["pass_no_socket"] == service.live()["verdicts"]["pass_no_socket"]
        assert found["redirect_errors"] == []


# ---- preempt -----------------------------------------------------------------------------------


def cpu_s(pid: int) -> float:
    """CPU time of a process, s."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_preempt_sees_a_hog_on_the_workers_core() -> None:
    with (
        Lab(lab_config(queues=1)) as lab,
        serve(veth(lab), "--cores", "1", "--busy-poll") as service,
    ):
        worker = service.live()["workers"][0]["pid"]
        with Trace("preempt", "--name", "lab") as trace:
            hog = subprocess.Popen(
                ["taskset", "-c", "1", sys.executable, "-S", "-c", "while True: pass"]
            )
            try:
                until("the hog to run", lambda: cpu_s(hog.pid) >= 2 * HOG_S, PATIENCE_S)
                found = trace.end()
            finally:
                hog.kill()
                hog.wait()
        (one,) = found["workers"]
        assert (one["pid"], one["core"]) == (worker, 1)
        losses = {(loss["cause"], loss["what"]): loss["time"] for loss in one["losses"]}
        note(str([(x["text"], x["time"]["count"], x["time"]["total_ns"]) for x in one["losses"]]))
        assert losses["by_task", hog.pid]["total_ns"] >= HOG_S * 1e9
        assert losses["wait_preempted", 0]["total_ns"] >= HOG_S * 1e9
        assert losses["by_vector", 0]["count"] > 0  # the timer's


# ---- the end -------------------------------------------------------------------------------------


def test_killed_leaves_no_probe_behind(veth_wire: Wire) -> None:
    programs = Path("/sys/kernel/debug/tracing/kprobe_events")
    with serve(veth_wire) as service:
        with Trace("wakeups", "--name", "lab") as trace:
            trace.process.kill()
            trace.process.wait()
        assert not programs.exists() or programs.read_text() == ""
        with Trace("wakeups", "--name", "lab", "--seconds", "600") as again:
            assert service.end(signal.SIGTERM)[0] == 0
            out, _ = again.process.communicate(timeout=PATIENCE_S)
        assert json.loads(out.splitlines()[-1])["kind"] == "summary"
