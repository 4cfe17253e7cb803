"""`ixnet run --pcap`: what a shard received and sent, as other programs read it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether
from scapy.packet import Packet
from scapy.utils import rdpcap

from ixnet.control.lab import Lab, LabConfig
from ixnet.control.namespaces import in_netns
from ixnet.control.nic import Nic
from ixnet.control.recorder import RecordError, shard_paths
from tests.runtime.conftest import Start, started
from tests.runtime.lab import (
    APPS,
    ECHO_PORT,
    ROOT,
    connect,
    echo_once,
    receive,
    run_to_end,
    serves,
    until,
)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """As for the other modules, with one queue."""
    if os.geteuid() != 0:
        pytest.skip("needs root to make network namespaces")
    with Lab(LabConfig.named(f"rp{os.getpid()}", queues=1)) as made:
        yield made


def recorded(path: Path) -> list[Any]:
    """The packets of a file. Every one must be whole, in time's order, and from today."""
    packets = list(rdpcap(str(path)))
    times = [float(p.time) for p in packets]
    assert times == sorted(times)
    assert all(abs(t - time.time()) < 600 for t in times)
    return packets


def segments(path: Path, port: int) -> list[Packet]:
    """The TCP segments of the client's port."""
    return [p for p in recorded(path) if TCP in p and port in (p[TCP].sport, p[TCP].dport)]


def checksums_hold(packet: Packet) -> bool:
    """Whether IPv4's and TCP's are those that scapy computes."""
    fresh = Ether(bytes(packet))
    del fresh[IP].chksum, fresh[TCP].chksum
    fresh = Ether(bytes(fresh))
    told = packet[IP].chksum, packet[TCP].chksum
    return told == (fresh[IP].chksum, fresh[TCP].chksum)


def payload_of(packet: Packet) -> bytes:
    """What a segment carries, without Ethernet's padding."""
    tcp = packet[TCP]
    return bytes(tcp.payload)[: packet[IP].len - 20 - tcp.dataofs * 4]


def data_of(packets: list[Packet]) -> bytes:
    """The stream that these segments carry. None is missing; bytes sent again (a probe of a sender
    whose peer was slow to acknowledge) are the same bytes."""
    stream, start = b"", None
    for packet in packets:
        payload = payload_of(packet)
        if not payload:
            continue
        start = packet[TCP].seq if start is None else start
        offset = (packet[TCP].seq - start) & 0xFFFFFFFF
        again = stream[offset : offset + len(payload)]
        assert offset <= len(stream), "in order, as nothing is lost here"
        assert again == payload[: len(again)]
        stream += payload[len(again) :]
    return stream


def opening(packets: list[Packet]) -> list[str]:
    """The first three segments' flags, each counted once however often it was sent."""
    kinds = dict.fromkeys((p[TCP].sport, p[TCP].seq, str(p[TCP].flags)) for p in packets)
    return [flags for _, _, flags in kinds][:3]


def fins(packets: list[Packet]) -> set[int]:
    """The sequence numbers at which these segments end the stream."""
    ends = (p for p in packets if "F" in p[TCP].flags)
    return {(p[TCP].seq + len(payload_of(p))) & 0xFFFFFFFF for p in ends}


def test_recording_holds_a_connection_from_syn_to_fin(
    lab: Lab, start: Start, tmp_path: Path
) -> None:
    path = tmp_path / "t.pcap"
    message = bytes(range(256)) * 100
    run = start(options=["--pcap", str(path)]).wait_ready()
    assert any(str(path) in line for line in run.said)
    with connect(lab) as sock:
        port = sock.getsockname()[1]
        sock.sendall(message)
        assert receive(sock, len(message)) == message
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b""
    shown = until("its counters", lambda: run.live()["shards"][0]["pcap"])
    assert shown["frames_recorded"] > 30 and shown["frames_lost"] == 0
    table = subprocess.run(
        [sys.executable, "-m", "ixnet", "stat", "--name", run.name],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert "frames_recorded" in table
    assert run.end() == 0, run.errors()

    found = segments(path, port)
    came = [p for p in found if p[TCP].sport == port]
    left = [p for p in found if p[TCP].dport == port]
    assert opening(found) == ["S", "SA", "A"]
    assert data_of(came) == data_of(left) == message
    assert len(fins(came)) == len(fins(left)) == 1
    assert all(checksums_hold(p) for p in found)
    assert path.read_bytes()[:4] == (0xA1B23C4D).to_bytes(4, "little"), "nanoseconds"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_end_of_the_instance_is_recorded(lab: Lab, start: Start, tmp_path: Path) -> None:
    path = tmp_path / "t.pcap"
    run = start(options=["--pcap", str(path)]).wait_ready()
    with connect(lab) as sock:
        sock.sendall(b"x")
        assert receive(sock, 1) == b"x"
        assert run.end() == 0
        port = sock.getsockname()[1]
        sent = [p for p in segments(path, port) if p[TCP].dport == port]
        assert "R" in sent[-1][TCP].flags


def test_snaplen_keeps_the_headers_and_tells_the_length(
    lab: Lab, start: Start, tmp_path: Path
) -> None:
    path = tmp_path / "t.pcap"
    run = start(options=["--pcap", str(path), "--snaplen", "66"]).wait_ready()
    assert echo_once(lab, message=bytes(1000)) == bytes(1000)
    assert run.end() == 0
    packets = recorded(path)
    assert max(len(p) for p in packets) == 66
    assert max(p.wirelen for p in packets) == 1066


def test_each_shard_has_a_file_and_an_older_one_is_overwritten(tmp_path: Path) -> None:
    older = tmp_path / "t.1.pcap"
    older.write_bytes(b"older" * 100_000)
    older.chmod(0o644)
    with Lab(LabConfig.named(f"rq{os.getpid()}", queues=2)) as two, started(two) as begin:
        run = begin(options=["--pcap", str(tmp_path / "t.pcap")]).wait_ready()
        ports = set()
        for _ in range(16):
            with connect(two) as sock:
                ports.add(sock.getsockname()[1])
                sock.sendall(b"x")
                assert receive(sock, 1) == b"x"
        assert run.end() == 0
    seen = []
    for i in range(2):
        packets = [p for p in recorded(tmp_path / f"t.{i}.pcap") if TCP in p]
        seen.append({p[TCP].sport for p in packets} - {ECHO_PORT})
    assert all(seen), "each queue has some of 16 flows"
    assert not seen[0] & seen[1]
    assert seen[0] | seen[1] == ports
    assert not (tmp_path / "t.pcap").exists()


# ---- refusing to start ---------------------------------------------------------------------------


def make_fifo(path: Path) -> None:
    """A named pipe, which would block."""
    os.mkfifo(path)


def make_link(path: Path) -> None:
    """A symbolic link to a file that must stay as it is."""
    (path.parent / "other").write_bytes(b"theirs")
    path.symlink_to(path.parent / "other")


def make_bad_parent(path: Path) -> None:
    """A file where a directory should be."""
    path.parent.rmdir()
    path.parent.write_bytes(b"theirs")


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda path: path.parent.rmdir(), "No such file or directory"),
        (make_bad_parent, "Not a directory"),
        (Path.mkdir, "is a directory"),
        (make_fifo, "not a regular file"),
        (make_link, "not a regular file"),
    ],
    ids=["no directory", "no directory but a file", "directory", "fifo", "symbolic link"],
)
def test_start_with_a_file_that_can_not_be_written_is_refused(
    lab: Lab, tmp_path: Path, make: Callable[[Path], None], why: str
) -> None:
    path = tmp_path / "into" / "t.pcap"
    path.parent.mkdir()
    make(path)
    status, said, err = run_to_end(
        lab, APPS / "echo.py", str(ECHO_PORT), options=["--pcap", str(path)]
    )
    assert status == 2
    assert said == [], "it said so before anything was set up"
    assert why in err and "cure: name a" in err and "Traceback" not in err
    with in_netns(lab.cfg.server_netns):
        assert Nic.find(lab.cfg.server_if).program is None
    other = tmp_path / "into" / "other"
    assert not other.exists() or other.read_bytes() == b"theirs"


def test_start_with_a_file_that_is_being_written_is_refused(
    lab: Lab, start: Start, tmp_path: Path
) -> None:
    path = tmp_path / "t.pcap"
    run = start(options=["--pcap", str(path)]).wait_ready()
    with Lab(LabConfig.named(f"rq{os.getpid()}", queues=1)) as other:
        status, _, err = run_to_end(other, APPS / "echo.py", "1", options=["--pcap", str(path)])
    assert status == 2 and "is being written" in err
    assert serves(lab)
    assert run.end() == 0
    assert len(recorded(path)) > 5


def test_snaplen_without_a_file_is_refused(lab: Lab) -> None:
    status, _, err = run_to_end(lab, APPS / "echo.py", "1", options=["--snaplen", "96"])
    assert status == 2 and "cure: add --pcap PATH" in err


def test_what_is_no_file_is_refused_for_several_shards_too() -> None:
    with pytest.raises(RecordError, match="/dev/null is there already, and is not a regular file"):
        shard_paths(Path("/dev/null"), 2)


# ---- while running -------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB. Asked for before `start`, so that nothing runs on it at its end."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("no tmpfs can be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_disk_full_ends_the_recording_and_traffic_goes_on(
    lab: Lab, small_disk: Path, start: Start
) -> None:
    path = small_disk / "t.pcap"
    run = start(options=["--pcap", str(path)]).wait_ready()
    message = os.urandom(200_000)
    for _ in range(3):
        with connect(lab) as sock:
            feeder = threading.Thread(target=sock.sendall, args=(message,))
            feeder.start()
            assert receive(sock, len(message)) == message
            feeder.join()
    until("the news", lambda: any("ENOSPC" in warning for warning in run.live()["warnings"]))
    shown = run.live()
    assert shown["workers"][0]["state"] == "ready"
    pcap = shown["shards"][0]["pcap"]
    assert pcap["frames_lost"] > pcap["frames_recorded"] > 10
    assert len(recorded(path)) == pcap["frames_recorded"]
    assert path.stat().st_size == pcap["file_bytes"] <= 65536
    assert run.end() == 0
    err = run.errors()
    assert err.count("recording into") == 1 and "traffic goes on" in err and "cure: " in err


def test_worker_killed_leaves_whole_records_and_its_successor_goes_on(
    lab: Lab, start: Start, tmp_path: Path
) -> None:
    path = tmp_path / "t.pcap"
    run = start(options=["--pcap", str(path)]).wait_ready()
    with connect(lab) as sock:
        first = sock.getsockname()[1]

        def flood() -> None:
            with contextlib.suppress(OSError):
                while True:
                    sock.sendall(bytes(8192))
                    receive(sock, 8192)

        flooder = threading.Thread(target=flood)
        flooder.start()
        until("some records", lambda: path.stat().st_size > 100_000)
        os.kill(victim := run.worker_pids()[0], signal.SIGKILL)
        until("its end", lambda: run.is_over(victim))
        left = Path(shutil.copy(path, tmp_path / "left.pcap"))
        # The kernel may have reset the connection already, whose frames are its own now.
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
        flooder.join()
    until("its restart", lambda: run.states() == ["ready"])
    with connect(lab) as sock:
        second = sock.getsockname()[1]
        sock.sendall(b"again")
        assert receive(sock, 5) == b"again"
    assert run.end() == 0
    before = recorded(left)
    assert len(before) > 60
    assert opening(segments(left, first)) == ["S", "SA", "A"]
    after = recorded(path)
    assert [bytes(p) for p in after[: len(before)]] == [bytes(p) for p in before]
    assert opening(segments(path, second)) == ["S", "SA", "A"]
