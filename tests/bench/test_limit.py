"""The bare AF_XDP pair: frames move, and nothing stays attached."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
from pyroute2 import IPRoute

from bench.limit import run as limit
from ixnet.control.lab import Lab, LabConfig
from ixnet.control.namespaces import in_netns
from ixnet.control.xdp import OBJECT_PATH, query_attached
from tests.bench.conftest import PATIENCE_S
from tests.runtime.lab import until


def xdp_attached(lab: Lab) -> list[bool]:
    attached = []
    for name, interface in lab.cfg.ends:
        with in_netns(name):
            attached.append(query_attached(socket.if_nametoindex(interface)) is not None)
    return attached


def counter(netns: str, interface: str, name: str) -> int:
    """Of the kernel's of an interface."""
    with in_netns(netns), IPRoute() as ipr:
        (link,) = ipr.link("get", ifname=interface)
        return int(link.get_attr("IFLA_STATS64")[name])


def link_drops(lab: Lab) -> int:
    """Frames that the veth dropped: 256 wait there at most, while the other end lacks a core."""
    return sum(counter(*end, name) for end in lab.cfg.ends for name in ("rx_dropped", "tx_dropped"))


def run_pair(lab: Lab, outstanding: int, size: int = 130, **how: object) -> list[dict[str, Any]]:
    """Reports of the generator and the reflector, of which is checked what holds in every mode."""
    drops = link_drops(lab)
    with limit.reflector(lab, 1, **how) as reflected:
        assert xdp_attached(lab)[0]
        report = limit.pingpong(lab, 0, outstanding, 0.2, bytes=size, **how)
    assert 0 < report["received"] <= report["sent"]
    assert report["rx_ring_full"] == report["tx_invalid"] == reflected["tx_invalid"] == 0
    # While it lacks a core more and more are sent, to make up for what comes late.
    full = any(reflected[name] for name in ("rx_dropped", "rx_ring_full", "fill_ring_empty"))
    assert report["missing"] == 0 or full or link_drops(lab) > drops
    return [report, reflected]


@pytest.mark.parametrize("generic", [False, True])
@pytest.mark.parametrize("busy_poll", [False, True])
@pytest.mark.parametrize("outstanding", [1, 64, 512])
def test_frames_go_round(lab: Lab, generic: bool, busy_poll: bool, outstanding: int) -> None:
    how: dict[str, object] = {"generic": generic, "busy_poll": busy_poll}
    report, reflected = run_pair(lab, outstanding, **how)
    assert reflected["frames"] >= report["received"]
    assert report["mode"] == ("generic copy" if generic else "native copy")
    assert 0 < report["us"]["p50"] <= report["us"]["max"]
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


# ---- bursts sent without skbs --------------------------------------------------------------------

SO_RCVBUFFORCE = 33
TYPE = 0x88B5  # of Ethernet, for experiments: no kernel answers it
BURST, ROUNDS = 64, 20


@pytest.fixture(scope="module")
def express_lab() -> Iterator[Lab]:
    with Lab(LabConfig.named(f"x{os.getpid()}", queues=1)) as made:
        made.set_gro(True)
        if limit.same_as_ixnet(made)["express"] is None:
            pytest.skip("no express here: needs Linux 6.3 and CAP_PERFMON")
        yield made


@pytest.mark.parametrize("outstanding", [15, 16, 64, 512])
def test_bursts_of_sixteen_and_more_go_by_express(express_lab: Lab, outstanding: int) -> None:
    how = limit.same_as_ixnet(express_lab)
    assert how["generic"] is False
    report, reflected = run_pair(express_lab, outstanding, 1514, **how)
    assert report["mode"] == "native copy, express"
    assert report["reordered"] == 0
    for end in report, reflected:
        assert end["express_errors"] == end["express_refused"] == 0
        assert end["express_frames"] >= 16 * end["express_calls"]
    assert report["express_frames"] <= report["sent"]
    if outstanding < 16:
        assert report["express_frames"] == 0
    else:  # the first frames of all are a burst
        assert report["express_frames"] > 0


def frame(lab: Lab, payload: bytes, back: bool = False) -> bytes:
    """An Ethernet frame from the client's end to the server's, or the other way."""
    ends = [bytes.fromhex(mac.replace(":", "")) for mac in (lab.cfg.server_mac, lab.cfg.client_mac)]
    return b"".join(ends[::-1] if back else ends) + TYPE.to_bytes(2, "big") + payload


def raw_socket(lab: Lab) -> socket.socket:
    """At the client's end, with room for more than a burst of pages."""
    with in_netns(lab.cfg.client_netns):
        link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(TYPE))
    link.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 20)
    link.bind((lab.cfg.client_if, TYPE))
    link.settimeout(PATIENCE_S)
    return link


@contextmanager
def stopped(process: subprocess.Popen[str]) -> Iterator[None]:
    process.send_signal(signal.SIGSTOP)
    stat = Path(f"/proc/{process.pid}/stat")
    until("standstill", lambda: stat.read_text().rpartition(") ")[2][0] == "T", PATIENCE_S)
    yield
    process.send_signal(signal.SIGCONT)


def send_all(lab: Lab, link: socket.socket, frames: list[bytes]) -> None:
    """Until the server's end has taken them off the link."""
    end = (lab.cfg.server_netns, lab.cfg.server_if, "rx_packets")
    goal = counter(*end) + len(frames)
    for sent in frames:
        link.send(sent)
    until("frames taken", lambda: counter(*end) >= goal, PATIENCE_S)


def test_bursts_come_back_whole_in_order_and_all(express_lab: Lab, programs: Path) -> None:
    """Bursts that go by express, single frames that go by the TX ring in between."""
    lab, random = express_lab, Random(1)
    argv = [str(programs / "limit/reflect"), "--interface", lab.cfg.server_if]
    argv += ["--express", str(limit.express_object())]
    reflect = lab.start_server(argv, stdout=subprocess.PIPE)
    assert reflect.stdout is not None
    assert reflect.stdout.readline() == f"ready {lab.cfg.server_if} queue 0 native copy, express\n"
    try:
        with raw_socket(lab) as link:
            for number in range(2 * ROUNDS):
                frames = 1 if number % 2 else BURST
                payloads = [random.randbytes(random.randint(46, 1500)) for _ in range(frames)]
                # While it stands still all of them gather on its RX ring.
                with stopped(reflect):
                    send_all(lab, link, [frame(lab, payload) for payload in payloads])
                got = [link.recv(2048) for _ in payloads]
                assert got == [frame(lab, payload, back=True) for payload in payloads]
        reflect.terminate()
        counted = json.loads(reflect.stdout.readline())
        assert reflect.wait(PATIENCE_S) == 0
    finally:
        lab.stop(reflect)
    assert counted["express_errors"] == counted["express_refused"] == 0
    assert counted["rx_dropped"] == counted["rx_ring_full"] == counted["fill_ring_empty"] == 0
    # The kernel shows what one poll of it took together, and the last may come later.
    assert counted["express_frames"] >= ROUNDS * BURST / 2
    assert counted["express_frames"] <= counted["frames"] - ROUNDS
    assert xdp_attached(lab) == [False, False]


@pytest.mark.parametrize("gro", [True, False])
def test_same_as_ixnet_follows_what_the_link_takes(express_lab: Lab, gro: bool) -> None:
    express_lab.set_gro(gro)
    try:
        how = limit.same_as_ixnet(express_lab)
    finally:
        express_lab.set_gro(True)
    assert how["generic"] is not gro
    assert how["express"] == (limit.express_object() if gro else None)


def test_several_queues_have_no_express(lab: Lab) -> None:
    assert limit.same_as_ixnet(lab)["express"] is None


@pytest.mark.parametrize(
    ("name", "cause"),
    [("steer_express.bpf.o", "has no program limit_redirect"), ("nowhere.o", "can't open")],
)
def test_an_object_without_the_program_is_refused(express_lab: Lab, name: str, cause: str) -> None:
    with (
        pytest.raises(limit.BenchError, match=cause),
        limit.reflector(express_lab, None, express=OBJECT_PATH.with_name(name)),
    ):
        pass


@pytest.mark.parametrize(
    ("words", "status", "cause"),
    [
        (["reflect"], 2, "which --interface"),
        (["reflect", "--interface", "nowhere0"], 1, "no interface nowhere0"),
        (["reflect", "--interface", "lo", "--queue", "x"], 2, "x is not a number"),
        (["reflect", "--interface", "lo", "--generic", "--zero-copy"], 2, "no zero-copy"),
        (["reflect", "--interface", "lo", "--generic", "--express", "x"], 2, "native XDP"),
        (["pingpong", "--interface", "lo", "--zero-copy", "--express", "x"], 2, "native XDP"),
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
