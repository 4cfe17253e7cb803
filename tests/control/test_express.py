"""Sending by the steering program over a real veth: express.c, under the sanitizers, and the
control process's side, which follows what the peer can do.

near0, express  ----- veth, 1 queue ----->  far0, GRO on
a packet socket on every interface          a packet socket
"""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from pyroute2 import IPRoute

from ixnet._core import ffi as core_ffi
from ixnet.control import ethtool
from ixnet.control import express as control
from ixnet.control.errors import IxError
from ixnet.control.namespaces import in_netns
from ixnet.control.nic import Mode, Nic, ladder
from ixnet.control.shards import Shard
from ixnet.control.xdp import EXPRESS_PATH, Steering, XdpMode
from ixnet.control.xsk import QueueSocket, Umem
from tests.control.conftest import Pair, made_pair, set_gro
from tests.control.test_nic import config
from tests.control.test_xsk_link import WAKE_TX, Reflector
from tests.unit.san import ffi, lib

KIND = 0x88B5  # IEEE 802: for local experiments
CHUNK, CHUNKS = 2048, 1024
MTU = control.MTU_MAX
MOST = int(lib.IX_XSK_EXPRESS_FRAMES)
SIZES = (14, 15, 60, 130, 1000, 1514, 2047)
PATIENCE_S = 60.0
_SO_RCVBUFFORCE = 33
_SOL_PACKET, _PACKET_RX_RING, _PACKET_VERSION, _TPACKET_V2 = 263, 5, 10, 1
_ETH_P_ALL = 3


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """Of one queue, where this process stays on one core: a veth's peer receives on the core of who
    sends, and holds 256 frames."""
    if os.geteuid() != 0:
        pytest.skip("needs root to make network namespaces")
    cores = os.sched_getaffinity(0)
    with made_pair(1) as made:
        for name, ifname in ((made.near_ns, made.near), (made.far_ns, made.far)):
            with in_netns(name), IPRoute() as ipr:
                ipr.link("set", index=ipr.link_lookup(ifname=ifname)[0], mtu=MTU)
        set_gro(made, True)
        os.sched_setaffinity(0, {min(cores)})
        yield made
        os.sched_setaffinity(0, cores)


@pytest.fixture(scope="module")
def steering(pair: Pair) -> Iterator[Steering]:
    with Steering.open(EXPRESS_PATH) as opened:
        opened.attach(pair.near_index, XdpMode.NATIVE)
        yield opened


class Capture:
    """All frames of our kind that come to the far end, in order. Copied on arrival: who sent them
    has their memory back at once, and uses it again."""

    _SLOT, _SLOTS = 4096, 1024

    def __init__(self, pair: Pair) -> None:
        with in_netns(pair.far_ns):
            self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            self._sock.setsockopt(_SOL_PACKET, _PACKET_VERSION, _TPACKET_V2)
            ring = struct.pack("4I", 16 * self._SLOT, self._SLOTS // 16, self._SLOT, self._SLOTS)
            self._sock.setsockopt(_SOL_PACKET, _PACKET_RX_RING, ring)
            self._ring = mmap.mmap(self._sock.fileno(), self._SLOTS * self._SLOT)
            self._sock.bind((pair.far, KIND))
        self._next = 0

    def close(self) -> None:
        self._ring.close()
        self._sock.close()

    def wait(self, seconds: float) -> bool:
        return bool(select.select([self._sock], [], [], seconds)[0])

    def take(self) -> list[bytes]:
        taken: list[bytes] = []
        while True:
            at = self._next * self._SLOT
            status, _, length, mac = struct.unpack_from("3IH", self._ring, at)  # tpacket2_hdr
            if not status:
                return taken
            taken.append(self._ring[at + mac : at + mac + length])
            struct.pack_into("I", self._ring, at, 0)
            self._next = (self._next + 1) % self._SLOTS


class Sender:
    """Frames in a UMEM, and ways to send them to the far end."""

    def __init__(self, pair: Pair, steering: Steering, umem: Umem | None = None) -> None:
        self.umem = umem or Umem.allocate(CHUNKS * CHUNK)
        self._owns_umem = umem is None
        out = ffi.new("struct ix_express **")
        steer = ffi.cast("struct ix_steer *", int(core_ffi.cast("uintptr_t", steering.raw)))
        assert lib.ix_express_open(steer, pair.near_index, out) == 0
        self.express = out[0]
        self._refused_before = int(lib.ix_express_refused(self.express))
        self.far = Capture(pair)
        with in_netns(pair.near_ns):
            all_kinds = socket.htons(_ETH_P_ALL)
            self.near = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, all_kinds)
        self.near.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 16 << 20)
        self.near.setblocking(False)
        with in_netns(pair.far_ns):
            self._to = Nic.find(pair.far).mac
        self._count = 0
        self._random = random.Random(1)

    def close(self) -> None:
        lib.ix_express_close(self.express)
        if self._owns_umem:
            self.umem.close()
        self.far.close()
        self.near.close()

    def make(self, sizes: Sequence[int], first: int = 0) -> tuple[list[bytes], Any]:
        """New frames, no two alike, and their descriptors."""
        frames, descs = [], ffi.new("struct ix_desc[]", max(len(sizes), 1))
        for i, size in enumerate(sizes):
            self._count += 1
            head = self._to + b"\x02\x00" + self._count.to_bytes(4, "big") + KIND.to_bytes(2, "big")
            frames.append(head + self._random.randbytes(size - len(head)))
            descs[i] = {"addr": (first + i) * CHUNK, "len": size, "flags": 0}
            at = ffi.cast("uint8_t *", self.umem.address + descs[i].addr)
            ffi.buffer(at, size)[:] = frames[-1]
        return frames, descs

    def send(self, descs: Any, n: int) -> int:
        umem = ffi.cast("uint8_t *", self.umem.address)
        return int(lib.ix_express_send(self.express, umem, descs, n))

    def mixed(self, n: int, first: int = 0) -> tuple[list[bytes], Any]:
        return self.make([self._random.choice(SIZES) for _ in range(n)], first)

    @property
    def refused(self) -> int:
        return int(lib.ix_express_refused(self.express)) - self._refused_before

    def arrived(self) -> list[bytes]:
        """What came to the far end before a frame that is sent now."""
        got: list[bytes] = []
        marks: list[bytes] = []
        deadline = time.monotonic() + PATIENCE_S
        while not (marks and got and got[-1] in marks):
            assert time.monotonic() < deadline, f"no frame arrives, {len(got)} so far"
            if not self.far.wait(0):
                mark, descs = self.make([60])
                marks += mark
                assert self.send(descs, 1) == 1
                self.far.wait(0.1)
            got += self.far.take()
        return [frame for frame in got if frame not in marks]

    def nothing_came_back(self) -> None:
        """The sender's own kernel saw none of them: no blank, and none made of one."""
        with contextlib.suppress(BlockingIOError):
            while True:
                frame, (ifname, *_) = self.near.recvfrom(4096)
                assert ifname != "lo", frame
                assert frame[12:14] != KIND.to_bytes(2, "big"), frame


@pytest.fixture
def sender(pair: Pair, steering: Steering) -> Iterator[Sender]:
    made = Sender(pair, steering)
    yield made
    made.nothing_came_back()
    assert made.refused == 0
    made.close()


def in_order(got: list[bytes], sent: list[bytes]) -> bool:
    """Whether these are some of those sent, each at most once."""
    rest = iter(sent)
    return all(frame in rest for frame in got)


# ---- express.c -------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 8, 64, 65, 128, 300, MOST])
def test_burst_arrives_whole_in_order_and_once(sender: Sender, n: int) -> None:
    """A veth drops what is more than 256 frames behind, if its peer didn't run in between: such a
    burst may lose some, and is tried again."""
    for _ in range(3):  # the memory of the first one is used again by the others
        for attempt in range(20):
            frames, descs = sender.mixed(n)
            assert sender.send(descs, n) == n
            got = sender.arrived()
            assert in_order(got, frames)
            if got == frames:
                break
            assert n > 128 and attempt < 19, f"{len(got)} of {n} arrived"
    assert sender.send(descs, 0) == 0


@pytest.mark.parametrize("size", SIZES)
def test_frames_of_each_size_arrive_as_they_are(sender: Sender, size: int) -> None:
    frames, descs = sender.make([size] * 32)
    assert sender.send(descs, 32) == 32
    assert sender.arrived() == frames


def test_lo_is_down_bursts_go_on(sender: Sender) -> None:
    with IPRoute() as ipr:
        ipr.link("set", index=1, state="down")
        frames, descs = sender.mixed(100)
        assert sender.send(descs, 100) == 100
        assert sender.arrived() == frames
        ipr.link("set", index=1, state="up")


@pytest.mark.parametrize("at", [0, 1, 9])
@pytest.mark.parametrize("what", ["too long", "too short", "with flags"])
def test_frame_that_express_can_not_send_ends_the_burst(sender: Sender, at: int, what: str) -> None:
    frames, descs = sender.make([60] * 10)
    if what == "with flags":
        descs[at].flags = 1
    else:
        descs[at].len = CHUNK if what == "too long" else 13
    assert sender.send(descs, 10) == at
    assert sender.arrived() == frames[:at]


def test_burst_above_the_most_is_sent_so_far(sender: Sender) -> None:
    _, descs = sender.make([60] * (MOST + 1))
    assert sender.send(descs, MOST + 1) == MOST


def test_frame_that_can_not_be_read_is_lost_and_counted(pair: Pair, steering: Steering) -> None:
    sender = Sender(pair, steering)
    frames, descs = sender.make([60] * 10)
    descs[4].addr = 1 << 60
    assert sender.send(descs, 10) == 10
    assert sender.arrived() == frames[:4] + frames[5:]
    assert sender.refused == 1
    sender.nothing_came_back()
    sender.close()


def test_forked_child_sends_what_it_wrote(sender: Sender) -> None:
    """As a worker does; the program reads the memory of who calls."""
    frames, descs = sender.mixed(40)
    pid = os.fork()
    if pid == 0:
        status = 1
        with contextlib.suppress(BaseException):
            for i, frame in enumerate(frames):
                at = ffi.cast("uint8_t *", sender.umem.address + i * CHUNK)
                ffi.buffer(at, len(frame))[:] = frame
            status = 0 if sender.send(descs, 40) == 40 else 2
        os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    assert sender.arrived() == frames


# ---- with the rings --------------------------------------------------------------------------


def drain(reflector: Reflector) -> list[int]:
    """Wakeups until TX is empty; the frames that completed."""
    ops, link, done = reflector.link.ops, reflector.link, []
    x = lib.ix_xsk_rings(reflector.socket)
    what, deadline = WAKE_TX, time.monotonic() + PATIENCE_S
    while True:
        assert ops.wakeup(link, what) >= 0
        what = 0
        while n := ops.complete(link, reflector.addrs, 64):
            done += [int(reflector.addrs[i]) for i in range(n)]
        if x.tx.consumer[0] == x.tx.cached_prod:
            break
        assert time.monotonic() < deadline
    assert lib.ix_xsk_check(x) == ffi.NULL
    return done


def test_bursts_by_both_ways_arrive_in_order_and_complete_once(
    pair: Pair, steering: Steering
) -> None:
    """Short ones by TX; long ones by express, unless TX has something."""
    sizes = random.Random(2)
    reflector = Reflector(pair.near_index, 0)
    sender = Sender(pair, steering, reflector.umem)
    lib.ix_express_use(sender.express, reflector.socket, 8)
    stats = lib.ix_xsk_rings(reflector.socket).stats
    for _ in range(30):
        sent: list[bytes] = []
        addrs: list[int] = []
        for _ in range(3):
            n = sizes.randint(1, 30)
            frames, descs = sender.mixed(n, first=len(sent))
            assert reflector.link.ops.tx_burst(reflector.link, descs, n) == n
            sent += frames
            addrs += [descs[i].addr for i in range(n)]
        assert sorted(drain(reflector)) == sorted(addrs)
        assert sender.arrived() == sent
    assert stats.express_frames > 300 and stats.kicks_tx > 10
    assert stats.express_errors == 0
    sender.nothing_came_back()
    reflector.close()
    sender.close()


# ---- the control process's side --------------------------------------------------------------


class Follower:
    """An Express over a socket of its own."""

    def __init__(self, pair: Pair, steering: Steering) -> None:
        nic = Nic.find(pair.near)
        self.umem = Umem.allocate(256 * 2048)
        self.socket = QueueSocket.open(nic.ifindex, config(self.umem), False)
        self.shard = SimpleNamespace(socket=self.socket, extra_fds=[])
        self.express = control.Express(nic, steering, cast(Shard, self.shard))

    @property
    def from_frames(self) -> int:
        raw = int(core_ffi.cast("uintptr_t", self.socket.raw))
        return int(lib.ix_xsk_rings(ffi.cast("struct ix_xsk_socket *", raw)).express_from)

    def follow_until(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not done():
            assert select.select([self.express], [], [], deadline - time.monotonic())[0]
            self.express.on_news()

    def close(self) -> None:
        self.socket.close()
        self.express.close()
        self.umem.close()


OFF = 0xFFFF_FFFF


def descriptors() -> list[str]:
    """What this process has open."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/self/fd/{name}").split(":")[0])
    return sorted(found)


@pytest.fixture
def follower(pair: Pair, steering: Steering) -> Iterator[Follower]:
    set_gro(pair, True)
    before = descriptors()
    made = Follower(pair, steering)
    yield made
    made.close()
    assert descriptors() == before
    set_gro(pair, True)


def test_peer_turns_gro_off_and_on_express_follows(pair: Pair, follower: Follower) -> None:
    assert follower.express.on and follower.from_frames == control.FROM_FRAMES
    assert len(follower.shard.extra_fds) == 1
    for _ in range(3):
        set_gro(pair, False)
        follower.follow_until(lambda: not follower.express.on)
        assert follower.from_frames == OFF
        set_gro(pair, True)
        follower.follow_until(lambda: follower.express.on)
        assert follower.from_frames == control.FROM_FRAMES


def test_peer_gets_a_native_program_instead_of_gro(pair: Pair, follower: Follower) -> None:
    set_gro(pair, False)
    follower.follow_until(lambda: not follower.express.on)
    with in_netns(pair.far_ns), Steering.open() as other:
        other.attach(Nic.find(pair.far).ifindex, XdpMode.NATIVE)
        follower.follow_until(lambda: follower.express.on)
    set_gro(pair, False)  # the veth turned it on with the program
    follower.follow_until(lambda: not follower.express.on)


def test_more_news_than_the_socket_holds_the_last_state_counts(
    pair: Pair, follower: Follower
) -> None:
    news = socket.socket(fileno=os.dup(follower.express.fileno()))
    with news:
        news.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    for _ in range(40):
        set_gro(pair, False)
        set_gro(pair, True)
    set_gro(pair, False)
    follower.follow_until(lambda: not follower.express.on)
    while select.select([follower.express], [], [], 0)[0]:
        follower.express.on_news()
    assert follower.from_frames == OFF
    set_gro(pair, True)
    follower.follow_until(lambda: follower.express.on)


def test_restart_new_socket_is_told(follower: Follower) -> None:
    follower.shard.socket = None
    follower.express.follow()
    follower.shard.socket = follower.socket
    follower.express.follow()
    assert follower.from_frames == control.FROM_FRAMES


def test_kernel_without_news_is_an_error_and_leaves_nothing(
    pair: Pair, steering: Steering, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise OSError(95, "no such family")

    monkeypatch.setattr(ethtool, "FeatureNews", refuse)
    shard = SimpleNamespace(socket=None, extra_fds=[])
    before = descriptors()
    with pytest.raises(IxError, match="no news"):
        control.Express(Nic.find(pair.near), steering, cast(Shard, shard))
    assert descriptors() == before and shard.extra_fds == []


def test_program_that_does_not_send_is_an_error(pair: Pair) -> None:
    shard = SimpleNamespace(socket=None, extra_fds=[])
    with Steering.open() as plain, pytest.raises(IxError):
        control.Express(Nic.find(pair.near), plain, cast(Shard, shard))


def test_object_that_can_not_be_loaded_is_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = descriptors()
    for path in (tmp_path / "none.o", tmp_path / "bad.o"):
        monkeypatch.setattr(control, "EXPRESS_PATH", path)
        assert control.open_express() is None
        (tmp_path / "bad.o").write_bytes(b"no object" * 100)
    assert descriptors() == before


def test_where_it_can_not_be_had_the_reason_is_given(pair: Pair) -> None:
    nic = Nic.find(pair.near)
    assert control.why_not(nic, None) == control.why_not(nic, Mode.NATIVE_COPY) == ""
    for mode in (Mode.GENERIC_COPY, Mode.NATIVE_ZEROCOPY):
        assert mode.value in control.why_not(nic, mode)
    assert "MTU" in control.why_not(replace(nic, mtu=MTU + 1), None)
    assert "ring" in control.why_not(Nic.find("lo"), None)
    with made_pair(2) as two:
        assert "core" in control.why_not(Nic.find(two.near), None)


def test_ladder_prefers_native_where_frames_can_go_out_without_skbs(pair: Pair) -> None:
    assert ladder(Nic.find(pair.near))[1] is Mode.NATIVE_COPY
    set_gro(pair, False)
    assert not Nic.find(pair.near).takes_xdp_frames
    assert ladder(Nic.find(pair.near))[1] is Mode.GENERIC_COPY
    set_gro(pair, True)
