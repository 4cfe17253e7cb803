"""The lab: two namespaces and the veth pair between them, made, looked at and taken down.

Needs root. Each test has a lab of its own, under a name that no other run uses.
"""

from __future__ import annotations

import itertools
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyroute2 import IPRoute, netns
from pyroute2.ethtool.ioctl import IoctlEthtool

from ixnet.control import lab
from ixnet.control.lab import Lab, LabConfig, LabError, lab_down, lab_status, lab_up
from ixnet.control.namespaces import (
    NetnsError,
    in_netns,
    netns_path,
    processes_in_netns,
    run_in_netns,
)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

ROOT = Path(__file__).resolve().parents[2]
_numbers = itertools.count()


@pytest.fixture
def cfg() -> Iterator[LabConfig]:
    """A configuration whose lab is gone after the test, whatever the test did to it."""
    made = LabConfig.named(f"t{os.getpid()}-{next(_numbers)}")
    yield made
    for name in (made.server_netns, made.client_netns):
        if netns_path(name).exists():
            netns.remove(name)


def with_changes(cfg: LabConfig, **changes: object) -> LabConfig:
    return LabConfig(**{**cfg.__dict__, **changes})


def run_python(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


def host_links() -> set[str]:
    with IPRoute() as ipr:
        return {link.get("IFLA_IFNAME") for link in ipr.get_links()}


def namespace_of(pid: int) -> int:
    return Path(f"/proc/{pid}/ns/net").stat().st_ino


def listener(cfg: LabConfig, family: int, host: str) -> socket.socket:
    with in_netns(cfg.server_netns):
        sock = socket.socket(family, socket.SOCK_STREAM)
    sock.bind((host, 7000))
    sock.listen()
    return sock


def wait_for(condition: object, patience_s: float = 60.0) -> bool:
    assert callable(condition)
    deadline = time.monotonic() + patience_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return bool(condition())


# ---- up and down ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "host"), [(socket.AF_INET, "10.77.0.1"), (socket.AF_INET6, "fd77:6978::1")]
)
@pytest.mark.parametrize("static", [False, True])
def test_up_carries_tcp_at_once(cfg: LabConfig, family: int, host: str, static: bool) -> None:
    lab_up(with_changes(cfg, static_neighbours=static))
    with listener(cfg, family, host) as server, in_netns(cfg.client_netns):
        client = socket.socket(family, socket.SOCK_STREAM)
        client.settimeout(60)
        with client:
            client.connect((host, 7000))
            accepted, _ = server.accept()
            with accepted:
                client.sendall(b"question")
                assert accepted.recv(100) == b"question"


def test_up_reports_what_it_made(cfg: LabConfig) -> None:
    facts = lab_up(with_changes(cfg, queues=3, mtu=1400))
    assert facts.created
    assert (facts.server.interface, facts.client.interface) == ("ixs0", "ixc0")
    assert facts.server.ip == "10.77.0.1"
    assert facts.client.ip == "10.77.0.2"
    for end in (facts.server, facts.client):
        assert (end.up, end.mtu, end.rx_queues, end.tx_queues) == (True, 1400, 3, 3)
        assert not any(end.offloads.values())
        assert len(end.offloads) >= 5
        assert end.sysctls["net/ipv4/tcp_tw_reuse"] == "1"
    assert facts.as_dict()["server"]["mac"] == cfg.server_mac


def test_up_gives_both_ends_the_same_channels(cfg: LabConfig) -> None:
    lab_up(with_changes(cfg, queues=4))
    for name, ifname in cfg.ends:
        with in_netns(name):
            tool = IoctlEthtool(ifname)
            channels = tool.get_channels()
            tool.close()
        assert (channels["rx_count"], channels["tx_count"]) == (4, 4)


def test_up_twice_finds_the_first(cfg: LabConfig) -> None:
    first = lab_up(cfg)
    inode = netns_path(cfg.server_netns).stat().st_ino
    second = lab_up(cfg)
    assert (first.created, second.created) == (True, False)
    assert netns_path(cfg.server_netns).stat().st_ino == inode
    assert second.server == first.server


@pytest.mark.parametrize(
    "changes", [{"queues": 4}, {"mtu": 1300}, {"static_neighbours": True}, {"server_if": "other0"}]
)
def test_up_with_another_configuration_replaces(cfg: LabConfig, changes: dict[str, object]) -> None:
    lab_up(cfg)
    changed = with_changes(cfg, **changes)
    assert lab_status(changed).state == "partial"
    assert lab_up(changed).created
    assert lab_status(changed).state == "up"


def test_down_leaves_nothing(cfg: LabConfig) -> None:
    links = host_links()
    lab_up(cfg)
    assert host_links() == links  # not even while it is up
    assert lab_down(cfg)
    assert host_links() == links
    assert not netns_path(cfg.server_netns).exists()
    assert not netns_path(cfg.client_netns).exists()


def test_down_twice_says_that_there_was_nothing(cfg: LabConfig) -> None:
    lab_up(cfg)
    assert lab_down(cfg)
    assert not lab_down(cfg)


def test_two_labs_live_side_by_side(cfg: LabConfig) -> None:
    other = LabConfig.named(f"t{os.getpid()}-{next(_numbers)}")
    with Lab(cfg), Lab(other):
        assert lab_status(cfg).state == lab_status(other).state == "up"
        lab_down(other)
        assert lab_status(cfg).state == "up"


# ---- what the wire carries --------------------------------------------------------------------


def test_bulk_tcp_is_whole_on_the_wire(cfg: LabConfig) -> None:
    # Neither segments longer than the MTU nor unfinished checksums, in either direction.
    lab_up(cfg)
    with in_netns(cfg.server_netns):
        tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003))
    tap.bind((cfg.server_if, 0x0003))
    tap.settimeout(1.0)
    with (
        listener(cfg, socket.AF_INET, "10.77.0.1") as server,
        in_netns(cfg.client_netns),
        socket.create_connection(("10.77.0.1", 7000), 60) as client,
    ):
        accepted, _ = server.accept()
        with accepted:
            for sender, receiver in ((client, accepted), (accepted, client)):
                sender.sendall(bytes(range(256)) * 128)
                left = 256 * 128
                while left:
                    left -= len(receiver.recv(left))
    segments = 0
    with tap:
        while True:
            try:
                frame = tap.recv(65536)
            except TimeoutError:
                break
            assert len(frame) <= 14 + 1500
            if frame[12:14] == b"\x08\x00" and frame[23] == 6:
                assert tcp_checksum_is_right(frame[14:]), frame.hex()
                segments += 1
    assert segments > 40


def tcp_checksum_is_right(packet: bytes) -> bool:
    """RFC 9293 3.1, over the pseudo-header too."""
    header_bytes = (packet[0] & 15) * 4
    total_bytes = int.from_bytes(packet[2:4], "big")
    segment = packet[header_bytes:total_bytes]
    data = packet[12:20] + bytes([0, 6]) + len(segment).to_bytes(2, "big") + segment
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total == 0xFFFF


# ---- other people's things --------------------------------------------------------------------


@pytest.mark.parametrize("which", ["server_netns", "client_netns"])
@pytest.mark.parametrize("mark", ["", "ixnet-lab of+another"])
def test_a_foreign_namespace_is_refused_and_left(cfg: LabConfig, which: str, mark: str) -> None:
    name = getattr(cfg, which)
    lab._create_netns(name, mark)
    inode = netns_path(name).stat().st_ino
    assert lab_status(cfg).state == "foreign"
    for change in (lab_up, lab_down):
        with pytest.raises(LabError, match=f"{name} exists and is not this lab's"):
            change(cfg)
    assert netns_path(name).stat().st_ino == inode
    other = cfg.client_netns if which == "server_netns" else cfg.server_netns
    assert not netns_path(other).exists()


def test_a_foreign_file_in_the_place_of_a_namespace_is_left(cfg: LabConfig) -> None:
    path = netns_path(cfg.server_netns)
    path.parent.mkdir(exist_ok=True)
    path.write_text("something of somebody")
    try:
        with pytest.raises(LabError, match="not this lab's"):
            lab_up(cfg)
        assert path.read_text() == "something of somebody"
    finally:
        path.unlink()


def test_the_empty_file_of_a_killed_creation_is_cleared(cfg: LabConfig) -> None:
    netns_path(cfg.client_netns).parent.mkdir(exist_ok=True)
    netns_path(cfg.client_netns).touch()
    assert lab_up(cfg).created
    assert lab_status(cfg).state == "up"


# ---- failures half-way ------------------------------------------------------------------------


def test_a_failure_in_the_middle_leaves_nothing(
    cfg: LabConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(5, "made to fail")

    monkeypatch.setattr(lab, "_configure_end", fail)
    with pytest.raises(LabError, match="made to fail"):
        lab_up(cfg)
    assert lab_status(cfg).state == "absent"


@pytest.mark.parametrize("where", ["_link_namespaces", "_offloads_off", "_facts"])
def test_a_kill_in_the_middle_is_cleared_by_the_next(cfg: LabConfig, where: str) -> None:
    killed = run_python(
        "import os, sys\n"
        "from ixnet.control import lab\n"
        f"lab.{where} = lambda *a, **k: os.kill(os.getpid(), 9)\n"
        "lab.lab_up(lab.LabConfig(server_netns=sys.argv[1], client_netns=sys.argv[2]))\n",
        cfg.server_netns,
        cfg.client_netns,
    )
    killed.communicate(timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert lab_status(cfg).state in ("partial", "up")
    lab_up(cfg)
    assert lab_status(cfg).state == "up"
    assert lab_down(cfg)


def test_status_names_what_was_broken(cfg: LabConfig) -> None:
    lab_up(cfg)
    with in_netns(cfg.client_netns), IPRoute() as ipr:
        ipr.link("set", index=ipr.link_lookup(ifname=cfg.client_if)[0], state="down")
    status = lab_status(cfg)
    assert status.state == "partial"
    assert any("up is False" in problem for problem in status.problems)
    assert lab_up(cfg).created
    netns.remove(cfg.client_netns)
    assert lab_status(cfg).state == "partial"
    assert lab_up(cfg).created


def test_without_root_the_cure_is_named(cfg: LabConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for call in (lab_up, lab_down, lab_status):
        with pytest.raises(LabError, match="need root"):
            call(cfg)


@pytest.mark.parametrize(
    "changes",
    [
        {"queues": 0},
        {"queues": 65},
        {"mtu": 1279},
        {"server_netns": "a/b"},
        {"client_netns": ""},
        {"client_netns": "ixlab-srv"},
        {"client_netns": "\xfc"},
        {"client_netns": "n" * 256},
        {"client_if": "sixteen-letters-"},
        {"server_if": "lo"},
    ],
)
def test_a_configuration_that_cannot_be_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(LabError):
        LabConfig(**changes)


@pytest.mark.parametrize("tag", ["", "../x", "a b", "\xfc", "n" * 65])
def test_a_tag_that_is_no_name_is_refused(tag: str) -> None:
    with pytest.raises(LabError, match="is no name for a lab: use letters, digits"):
        LabConfig.named(tag)


# ---- processes in it --------------------------------------------------------------------------


def test_down_refuses_while_something_runs_and_names_it(cfg: LabConfig) -> None:
    lab_up(cfg)
    process = run_in_netns(cfg.server_netns, ["sleep", "60"])
    assert wait_for(lambda: "sleep" in processes_in_netns(cfg.server_netns).values())
    with pytest.raises(LabError, match=rf"sleep \({process.pid}\)"):
        lab_down(cfg)
    with pytest.raises(LabError, match="sleep"):
        lab_up(with_changes(cfg, queues=4))
    assert process.poll() is None
    assert lab_status(cfg).state == "up"
    assert lab_down(cfg, kill=True)
    assert process.wait(60) == -signal.SIGTERM


def test_the_end_of_the_block_ends_what_ignores_sigterm(cfg: LabConfig) -> None:
    with Lab(cfg) as made:
        stubborn = made.start_client(
            ["sh", "-c", "trap '' TERM; echo set; while :; do sleep 0.1; done"],
            stdout=subprocess.PIPE,
        )
        assert stubborn.stdout is not None
        assert stubborn.stdout.readline() == "set\n"
    assert stubborn.returncode == -signal.SIGKILL
    assert lab_status(cfg).state == "absent"


def test_an_error_in_the_block_takes_the_lab_down(cfg: LabConfig) -> None:
    with pytest.raises(ZeroDivisionError), Lab(cfg) as made:
        process = made.start_server(["sleep", "60"])
        raise ZeroDivisionError
    assert process.poll() is not None
    assert lab_status(cfg).state == "absent"


def test_a_started_program_is_where_it_should_be(cfg: LabConfig) -> None:
    lab_up(cfg)
    process = run_in_netns(cfg.client_netns, ["sleep", "60"], cpu=0)
    try:
        assert wait_for(lambda: "sleep" in processes_in_netns(cfg.client_netns).values())
        assert namespace_of(process.pid) == netns_path(cfg.client_netns).stat().st_ino
        # bpffs under /sys stays visible: the mounts are the caller's.
        assert os.readlink(f"/proc/{process.pid}/ns/mnt") == os.readlink("/proc/self/ns/mnt")
        assert os.sched_getaffinity(process.pid) == {0}
    finally:
        process.kill()
        process.wait()


def test_a_started_program_ends_with_a_killed_parent(cfg: LabConfig) -> None:
    lab_up(cfg)
    parent = run_python(
        "import sys, time\n"
        "from ixnet.control.namespaces import run_in_netns\n"
        "print(run_in_netns(sys.argv[1], ['sleep', '60']).pid, flush=True)\n"
        "time.sleep(60)\n",
        cfg.server_netns,
    )
    assert parent.stdout is not None
    assert int(parent.stdout.readline()) > 0
    assert wait_for(lambda: "sleep" in processes_in_netns(cfg.server_netns).values())
    parent.kill()
    parent.communicate()
    assert wait_for(lambda: not processes_in_netns(cfg.server_netns))


def test_in_netns_holds_for_one_thread_and_one_block(cfg: LabConfig) -> None:
    lab_up(cfg)
    home = os.readlink("/proc/thread-self/ns/net")
    seen: list[str] = []
    with in_netns(cfg.server_netns):
        inside = os.readlink("/proc/thread-self/ns/net")
        with in_netns(cfg.client_netns):
            nested = os.readlink("/proc/thread-self/ns/net")
        assert os.readlink("/proc/thread-self/ns/net") == inside
        elsewhere = threading.Thread(target=lambda: seen.append(os.readlink("/proc/self/ns/net")))
        elsewhere.start()
        elsewhere.join()
    with pytest.raises(ZeroDivisionError), in_netns(cfg.server_netns):
        raise ZeroDivisionError
    assert os.readlink("/proc/thread-self/ns/net") == home
    assert len({home, inside, nested}) == 3


def test_a_namespace_that_is_not_there_is_an_error() -> None:
    with pytest.raises(NetnsError, match="no-such-place"), in_netns("no-such-place"):
        pass
    with pytest.raises(NetnsError, match="no-such-place"):
        run_in_netns("no-such-place", ["true"])
    assert processes_in_netns("no-such-place") == {}


def test_status_with_xdp_attached_is_still_up(cfg: LabConfig) -> None:
    # A veth turns GRO on by itself while it has an XDP program, and off afterwards.
    facts = lab_up(cfg)
    with in_netns(cfg.server_netns), IPRoute() as ipr:
        ipr.link("set", index=facts.server.index, xdp_fd=xdp_pass_fd())
    status = lab_status(cfg)
    assert status.state == "up", status.problems
    assert status.facts is not None
    assert status.facts.server.xdp_attached
    assert not status.facts.client.xdp_attached


def xdp_pass_fd() -> int:
    """A loaded XDP program that passes everything, by the bare bpf(2) call."""
    import ctypes

    instructions = struct.pack("<BBhi", 0xB7, 0, 0, 2) + struct.pack("<BBhi", 0x95, 0, 0, 0)
    code = ctypes.create_string_buffer(instructions)
    gpl = ctypes.create_string_buffer(b"GPL")
    xdp_type, prog_load, bpf_syscall = 6, 5, 321
    attributes = struct.pack("<IIQQ", xdp_type, 2, ctypes.addressof(code), ctypes.addressof(gpl))
    attributes = attributes.ljust(72, b"\0")
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    libc = ctypes.CDLL(None, use_errno=True)
    fd = int(libc.syscall(bpf_syscall, prog_load, buffer, len(attributes)))
    assert fd >= 0, os.strerror(ctypes.get_errno())
    return fd


def test_signal_while_a_thread_starts_leaves_nothing_going_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Interrupted(threading.Thread):
        """Its start() is cut short as by a signal's handler, while it runs already."""

        def start(self) -> None:
            super().start()
            raise KeyboardInterrupt

    release, done = threading.Event(), threading.Event()

    def work() -> None:
        release.wait(60)
        done.set()

    timer = threading.Timer(0.2, release.set)
    timer.start()
    monkeypatch.setattr(lab.threading, "Thread", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        lab._run_in_thread(work)
    assert done.is_set()
    timer.join()
