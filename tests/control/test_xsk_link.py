"""Real packets over AF_XDP: a reflector on link/xsk.c in the near namespace, kernel sockets in the
far one."""

from __future__ import annotations

import errno
import ipaddress
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pyroute2 import IPRoute

from ixnet.control.namespaces import in_netns
from ixnet.control.nic import Nic
from ixnet.control.xdp import Proto, Steering, XdpMode
from ixnet.control.xsk import Umem
from tests.control.conftest import NEAR_IP, Pair
from tests.unit.san import ffi, lib

PORT = 7777
FRAMES, FRAME_BYTES = 512, 2048
FILLED = FRAMES // 2
WAKE_TX, WAKE_RX = 1, 2


class Reflector:
    """One queue's socket and a loop that sends each frame back to where it came from."""

    def __init__(self, ifindex: int, queue: int, busy_poll_us: int = 0) -> None:
        self.umem = Umem.allocate(FRAMES * FRAME_BYTES)
        fill = ffi.new("uint64_t[]", list(range(0, FILLED * FRAME_BYTES, FRAME_BYTES)))
        config = ffi.new(
            "struct ix_xsk_config *",
            {
                "ifindex": ifindex,
                "queue": queue,
                "umem": ffi.cast("void *", self.umem.address),
                "umem_bytes": FRAMES * FRAME_BYTES,
                "frame_shift": 11,
                "fill_entries": FRAMES,
                "completion_entries": FRAMES,
                "rx_entries": FRAMES,
                "tx_entries": FRAMES,
                "busy_poll_us": busy_poll_us,
                "busy_poll_budget": 64 if busy_poll_us else 0,
                "retry_ms": 2000,
                "initial_fill": fill,
                "n_initial_fill": FILLED,
            },
        )
        out = ffi.new("struct ix_xsk_socket **")
        err = ffi.new("char[]", 256)
        assert lib.ix_xsk_open(config, out, err, 256) == 0, ffi.string(err)
        self.socket = out[0]
        self.link = lib.ix_xsk_link(self.socket)
        self.descs = ffi.new("struct ix_desc[]", 64)
        self.addrs = ffi.new("uint64_t[]", 64)
        self.outside = FRAMES - FILLED  # frames that never went near the rings
        self.reflected = 0
        self.frames: list[bytes] = []
        self.last_wakeup = 0

    def fileno(self) -> int:
        return int(lib.ix_xsk_fd(self.socket))

    def close(self) -> None:
        lib.ix_xsk_close(self.socket)
        self.umem.close()

    def cycle(self) -> int:
        """Completions to FILL, RX to TX, one wakeup. Returns the frames reflected."""
        ops = self.link.ops
        n = ops.complete(self.link, self.addrs, 64)
        for i in range(n):
            self.addrs[i] &= ~(FRAME_BYTES - 1)
        assert ops.fill(self.link, self.addrs, n) == n
        n = ops.rx_burst(self.link, self.descs, 64)
        for i in range(n):
            self._turn_around(self.descs[i])
        assert ops.tx_burst(self.link, self.descs, n) == n
        self.last_wakeup = ops.wakeup(self.link, (WAKE_TX if n else 0) | (0 if n else WAKE_RX))
        self.reflected += n
        assert lib.ix_xsk_check(lib.ix_xsk_rings(self.socket)) == ffi.NULL
        return int(n)

    def _turn_around(self, desc: Any) -> None:
        """Swaps MAC addresses, IPv4 addresses and ports; the checksums stay right by that."""
        assert desc.addr % FRAME_BYTES >= self.link.rx_headroom >= 256
        frame = ffi.buffer(ffi.cast("uint8_t *", self.umem.address + desc.addr), desc.len)
        data = bytes(frame)
        self.frames.append(data)
        swapped = data[6:12] + data[:6] + data[12:26] + data[30:34] + data[26:30]
        frame[:] = swapped + data[36:38] + data[34:36] + data[38:]


@pytest.fixture
def steering(pair: Pair) -> Iterator[Steering]:
    with Steering.open() as s:
        s.sync_local([NEAR_IP])
        s.claim(Proto.UDP, None, PORT)
        yield s


Start = Callable[..., list[Reflector]]


@pytest.fixture
def start(pair: Pair, steering: Steering) -> Iterator[Start]:
    """Attaches and opens both queues; both, as the kernel at the far end chooses the queue."""
    opened: list[Reflector] = []

    def run(mode: XdpMode = XdpMode.NATIVE, busy_poll_us: int = 0) -> list[Reflector]:
        steering.attach(pair.near_index, mode)
        for queue in Nic.find(pair.near).queues:
            opened.append(Reflector(pair.near_index, queue, busy_poll_us))
            steering.set_socket(queue, opened[-1].fileno())
        return opened

    yield run
    for reflector in opened:
        reflector.close()


@pytest.fixture
def client(pair: Pair) -> Iterator[socket.socket]:
    with in_netns(pair.far_ns):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(60)
    sock.connect((str(NEAR_IP), PORT))
    yield sock
    sock.close()


def run_until(reflectors: list[Reflector], done: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, [r.reflected for r in reflectors]
        for reflector in reflectors:
            reflector.cycle()


def readable(sock: socket.socket) -> bool:
    return bool(select.select([sock], [], [], 0)[0])


@pytest.mark.parametrize("busy_poll_us", [0, 20], ids=["wakeup", "busy-poll"])
@pytest.mark.parametrize("mode", [XdpMode.NATIVE, XdpMode.GENERIC], ids=["native", "generic"])
def test_datagrams_of_all_sizes_come_back_whole(
    start: Start, client: socket.socket, steering: Steering, mode: XdpMode, busy_poll_us: int
) -> None:
    reflectors = start(mode, busy_poll_us)
    sizes = [*range(0, 1472, 97), 1472]
    for round_number in range(20):
        sent = [bytes([round_number]) * size for size in sizes]
        for payload in sent:
            client.send(payload)
        got: list[bytes] = []

        def all_back(got: list[bytes] = got, want: int = len(sent)) -> bool:
            while readable(client):
                got.append(client.recv(2000))
            return len(got) == want

        run_until(reflectors, all_back)
        assert sorted(got) == sorted(sent)
    total = 20 * len(sizes)
    assert sum(r.reflected for r in reflectors) == total
    assert steering.verdicts()["redirect_claim"] == total


def test_frames_all_come_back_to_fill(start: Start, client: socket.socket) -> None:
    """More datagrams than the UMEM has frames: each frame goes round several times."""
    reflectors = start()
    for _ in range(4 * FRAMES // 64):
        for _ in range(64):
            client.send(b"x" * 100)
        run_until(reflectors, lambda: readable(client))
        for _ in range(64):
            run_until(reflectors, lambda: readable(client))
            client.recv(200)
    assert sum(r.reflected for r in reflectors) == 4 * FRAMES
    for reflector in reflectors:
        for _ in range(50):
            reflector.cycle()
        rings = lib.ix_xsk_rings(reflector.socket)
        on_fill = rings.fill.producer[0] - rings.fill.consumer[0] & 0xFFFF_FFFF
        assert 0 < on_fill <= FILLED
        stats = ffi.new("struct ix_xsk_kernel_stats *")
        assert lib.ix_xsk_kernel_stats(reflector.socket, stats) == 0
        assert (stats.rx_dropped, stats.rx_invalid_descs, stats.tx_invalid_descs) == (0, 0, 0)
        assert (stats.rx_ring_full, stats.rx_fill_ring_empty_descs) == (0, 0)


def test_copy_mode_burst_larger_than_a_kick_is_sent_by_further_wakeups(
    pair: Pair, start: Start, client: socket.socket
) -> None:
    reflector = start()[0]
    with socket.socket(44, socket.SOCK_RAW, 0, fileno=os.dup(reflector.fileno())) as raw:
        # The kernel's default, which newer kernels let a socket raise (XDP_MAX_TX_SKB_BUDGET).
        if lib.ix_xsk_tx_budget(reflector.socket) > 32:
            raw.setsockopt(283, 9, 32)
    near, far = Nic.find(pair.near), None
    with in_netns(pair.far_ns):
        far = Nic.find(pair.far)
    frame = _udp_frame(near.mac, far.mac, client.getsockname()[1])
    array = ffi.new("struct ix_desc[]", 100)
    for i in range(100):
        addr = (FILLED + i) * FRAME_BYTES
        ffi.buffer(ffi.cast("uint8_t *", reflector.umem.address + addr), len(frame))[:] = frame
        array[i] = {"addr": addr, "len": len(frame), "flags": 0}
    ops = reflector.link.ops
    assert ops.tx_burst(reflector.link, array, 100) == 100
    calls = 0
    while reflector.link.ops.wakeup(reflector.link, WAKE_TX if calls == 0 else 0):
        calls += 1
        assert calls < 50
    assert calls >= 4
    stats = lib.ix_xsk_rings(reflector.socket).stats
    assert stats.kick_again >= 3 and stats.kicks_leftover == calls - 1
    for _ in range(100):
        assert client.recv(100) == b"from the near end"


def _udp_frame(near_mac: bytes, far_mac: bytes, port: int) -> bytes:
    from scapy.layers.inet import IP, UDP
    from scapy.layers.l2 import Ether

    ether = Ether(src=near_mac.hex(":"), dst=far_mac.hex(":"))
    ip = IP(src=str(NEAR_IP), dst="10.77.0.2")
    return bytes(ether / ip / UDP(sport=PORT, dport=port) / b"from the near end")


def test_socket_becomes_readable_when_a_frame_arrives(start: Start, client: socket.socket) -> None:
    reflectors = start()
    assert select.select(reflectors, [], [], 0)[0] == []
    client.send(b"hello")
    (ready,) = select.select(reflectors, [], [], 5)[0]
    assert ready.cycle() == 1
    assert client.recv(10) == b"hello"


def test_forked_child_runs_the_rings_parent_reads_the_counters(
    start: Start, client: socket.socket, steering: Steering
) -> None:
    reflectors = start()
    pid = os.fork()
    if pid == 0:
        try:
            steering.forget()
            while True:
                for reflector in reflectors:
                    reflector.cycle()
        finally:
            os._exit(1)
    try:
        for i in range(200):
            client.send(b"%d" % i)
            assert client.recv(10) == b"%d" % i
        sent = [lib.ix_xsk_rings(r.socket).stats.kicks_tx for r in reflectors]
        assert sum(sent) == 200
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    # The child is gone, the sockets are not: the parent takes the rings over.
    client.send(b"again")
    run_until(reflectors, lambda: readable(client))
    assert client.recv(10) == b"again"


def test_link_down_is_reported_link_up_goes_on(
    pair: Pair, start: Start, client: socket.socket
) -> None:
    reflectors = start(busy_poll_us=20)
    if lib.ix_xsk_busy_poll_status(reflectors[0].socket) != 0:
        pytest.skip("this kernel refused busy polling; without it an idle link makes no call")
    with IPRoute() as ipr:
        ipr.link("set", index=pair.near_index, state="down")
        reflectors[0].cycle()
        assert reflectors[0].last_wakeup == -errno.ENETDOWN
        ipr.link("set", index=pair.near_index, state="up")
    client.send(b"back")
    run_until(reflectors, lambda: readable(client))
    assert client.recv(10) == b"back"
    assert reflectors[0].last_wakeup >= 0


def test_interface_removed_is_reported(pair: Pair, start: Start) -> None:
    reflectors = start(busy_poll_us=20)
    if lib.ix_xsk_busy_poll_status(reflectors[0].socket) != 0:
        pytest.skip("this kernel refused busy polling; without it an idle link makes no call")
    with IPRoute() as ipr:
        ipr.link("del", index=pair.near_index)
    reflectors[0].cycle()
    assert reflectors[0].last_wakeup in (-errno.ENETDOWN, -errno.ENXIO)


def test_own_address_arp_and_ping_reach_the_link(
    start: Start, steering: Steering, pair: Pair
) -> None:
    own = ipaddress.IPv4Address("10.77.0.50")
    steering.add_own(own)
    reflectors = start()
    with in_netns(pair.far_ns), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.sendto(b"x", (str(own), 1))
    run_until(reflectors, lambda: any(r.reflected for r in reflectors))
    (frame,) = [f for r in reflectors for f in r.frames][:1]
    assert frame[12:14] == b"\x08\x06" and frame[38:42] == own.packed
    assert steering.verdicts()["redirect_arp"] >= 1


def test_vlan_tagged_frame_to_a_claimed_port_is_the_kernels(
    pair: Pair, start: Start, steering: Steering
) -> None:
    reflectors = start()
    near_mac = Nic.find(pair.near).mac
    with in_netns(pair.far_ns), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind((pair.far, 0))
        plain = _udp_frame(bytes.fromhex("020000000009"), near_mac, PORT)
        plain = plain[:26] + plain[30:34] + plain[26:30] + plain[34:]  # from far to near
        raw.send(plain[:12] + b"\x81\x00\x00\x05" + plain[12:])
        raw.send(plain)
    run_until(reflectors, lambda: any(r.reflected for r in reflectors))
    assert [f[12:14] for r in reflectors for f in r.frames] == [b"\x08\x00"]
    assert steering.verdicts()["pass_vlan"] == 1
