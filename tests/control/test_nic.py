"""NIC facts, the mode ladder, and what happens to the interface around them."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from ixnet._core import ffi, lib
from ixnet.control.errors import (
    InterfaceGone,
    IxError,
    ModeUnavailable,
    MtuTooLarge,
    NoSuchQueue,
    ProgramAttached,
    QueueBusy,
    UnknownInterface,
)
from ixnet.control.nic import Mode, Nic, OpenedQueues, ladder, largest_mtu, open_queues
from ixnet.control.xdp import Proto, Steering, XdpMode, query_attached, require_capabilities
from ixnet.control.xsk import QueueConfig, QueueSocket, Umem, UmemKind, place_bytes
from tests.control.conftest import NEAR_IP, Pair

FRAMES = 256


@pytest.fixture
def umems() -> Iterator[list[Umem]]:
    made = [Umem.allocate(FRAMES * 2048) for _ in range(2)]
    yield made
    for umem in made:
        umem.close()


@pytest.fixture
def steering() -> Iterator[Steering]:
    with Steering.open() as s:
        yield s


def config(memory: Umem, queue: int = 0, **changes: object) -> QueueConfig:
    fields: dict[str, object] = {
        "queue": queue,
        "umem": memory.address,
        "umem_bytes": memory.nbytes,
        "fill": range(0, 64 * 2048, 2048),
        "fill_entries": 128,
        "completion_entries": 128,
        "rx_entries": 128,
        "tx_entries": 128,
    }
    return QueueConfig(**{**fields, **changes})  # type: ignore[arg-type]


def set_link(nic: Nic, **change: object) -> None:
    with IPRoute() as ipr:
        ipr.link("set", index=nic.ifindex, **change)


# ---- facts ---------------------------------------------------------------------------------


def test_veth_is_found_its_facts_are_right(pair: Pair) -> None:
    nic = Nic.find(pair.near)
    assert (nic.name, nic.ifindex, nic.kind, nic.driver) == (
        "near0",
        pair.near_index,
        "veth",
        "veth",
    )
    assert nic.mtu == 1500
    assert nic.up and nic.carrier
    assert nic.queues == (0, 1)
    assert nic.channels is not None and (nic.channels.rx, nic.channels.tx) == (2, 2)
    assert NEAR_IP in nic.ips
    assert len(nic.mac) == 6 and nic.mac_text.count(":") == 5
    assert nic.program is None
    assert nic.offloads["tx-checksum-ip-generic"] is True
    assert nic.rss is None
    if nic.xdp_features is not None:
        assert {"basic", "redirect"} <= nic.xdp_features
        assert "xsk-zerocopy" not in nic.xdp_features


def test_link_goes_down_facts_follow(pair: Pair) -> None:
    nic = Nic.find(pair.near)
    set_link(nic, state="down")
    assert not nic.refresh().up
    assert any("is down" in warning for warning in nic.refresh().warnings())


@pytest.mark.parametrize("name", ["nosuch0", "", "far-too-long-for-an-interface"])
def test_unknown_interface_error_names_the_known(pair: Pair, name: str) -> None:
    with pytest.raises(UnknownInterface, match="near0"):
        Nic.find(name)


def test_mtu_beyond_frame_error_names_the_cure(pair: Pair) -> None:
    nic = Nic.find(pair.near)
    nic.check_frame(2048)
    set_link(nic, mtu=largest_mtu(2048) + 1)
    with pytest.raises(MtuTooLarge, match="4096 bytes") as caught:
        nic.refresh().check_frame(2048)
    assert f"mtu {largest_mtu(2048)}" in caught.value.cure
    nic.refresh().check_frame(4096)
    set_link(nic, mtu=9000)
    with pytest.raises(MtuTooLarge) as caught:
        nic.refresh().check_frame(4096)
    assert "use frames" not in caught.value.cure


def test_frames_of_nics_that_round_buffers_to_kib(pair: Pair) -> None:
    # With 2048 bytes and zero-copy an igb takes frames of 1024 bytes at most (tests/lab saw it).
    igb = dataclasses.replace(Nic.find(pair.near), driver="igb", mtu=1500)
    with pytest.raises(MtuTooLarge, match="1010"):
        igb.check_frame(2048)
    igb.check_frame(4096)
    dataclasses.replace(igb, mtu=1010).check_frame(2048)
    with pytest.raises(MtuTooLarge, match="3058"):
        dataclasses.replace(igb, mtu=3059).check_frame(4096)


def test_not_root_error_names_capabilities(pair: Pair) -> None:
    pid = os.fork()
    if pid == 0:
        status = 1
        with contextlib.suppress(BaseException):
            os.setuid(65534)
            try:
                require_capabilities()
            except IxError as error:
                status = 0 if "CAP_NET_ADMIN" in error.message and error.cure else 2
        os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


# ---- the ladder --------------------------------------------------------------------------------


def test_ladder_on_veth_ends_in_native_copy_and_says_why(
    pair: Pair, umems: list[Umem], steering: Steering
) -> None:
    nic = Nic.find(pair.near)
    opened = open_queues(nic, steering, [config(u, q) for q, u in enumerate(umems)])
    assert opened.mode is Mode.NATIVE_COPY
    (attempt,) = opened.attempts
    assert attempt.mode is Mode.NATIVE_ZEROCOPY
    assert os.strerror(errno.EOPNOTSUPP) in attempt.reason
    assert [s.zerocopy for s in opened.sockets] == [False, False]
    program = nic.refresh().program
    assert program is not None
    assert (program.mode, program.prog_id) == (XdpMode.NATIVE, steering.prog_id)
    opened.close()
    assert query_attached(nic.ifindex) is None


def test_veth_of_one_queue_is_better_off_with_generic_copy(
    pair: Pair, umems: list[Umem], steering: Steering
) -> None:
    with IPRoute() as ipr:
        ipr.link("add", ifname="one0", kind="veth", peer="one1")
    nic = Nic.find("one0")
    assert ladder(nic) == (Mode.NATIVE_ZEROCOPY, Mode.GENERIC_COPY, Mode.NATIVE_COPY)
    assert ladder(dataclasses.replace(nic, queues=(0, 1))) == tuple(Mode)
    assert ladder(dataclasses.replace(nic, kind="", driver="igb")) == tuple(Mode)
    opened = open_queues(nic, steering, [config(umems[0])])
    assert opened.mode is Mode.GENERIC_COPY
    assert [attempt.mode for attempt in opened.attempts] == [Mode.NATIVE_ZEROCOPY]
    opened.close()


def test_generic_mode_asked_for_is_what_comes(
    pair: Pair, umems: list[Umem], steering: Steering
) -> None:
    nic = Nic.find(pair.near)
    opened = open_queues(nic, steering, [config(umems[0])], Mode.GENERIC_COPY)
    assert (opened.mode, opened.attempts) == (Mode.GENERIC_COPY, ())
    attached = query_attached(nic.ifindex)
    assert attached is not None and attached.mode is XdpMode.GENERIC
    opened.close()


def test_zero_copy_asked_for_on_veth_is_an_error(
    pair: Pair, umems: list[Umem], steering: Steering
) -> None:
    nic = Nic.find(pair.near)
    with pytest.raises(ModeUnavailable, match="native zero-copy"):
        open_queues(nic, steering, [config(umems[0])], Mode.NATIVE_ZEROCOPY)
    assert query_attached(nic.ifindex) is None
    # And nothing is left of the attempt: the next one has all it needs.
    open_queues(nic, steering, [config(umems[0])]).close()


def test_native_xdp_refused_ladder_ends_in_generic(
    pair: Pair, umems: list[Umem], steering: Steering
) -> None:
    """A bridge has no native XDP."""
    with IPRoute() as ipr:
        ipr.link("add", ifname="br0", kind="bridge")
    opened = open_queues(Nic.find("br0"), steering, [config(umems[0])])
    assert opened.mode is Mode.GENERIC_COPY
    assert [a.mode for a in opened.attempts] == [Mode.NATIVE_ZEROCOPY, Mode.NATIVE_COPY]
    assert all("native mode" in a.reason for a in opened.attempts)
    opened.close()


@pytest.mark.parametrize("mode", [XdpMode.NATIVE, XdpMode.GENERIC])
def test_other_program_attached_is_not_clobbered(
    pair: Pair, umems: list[Umem], steering: Steering, mode: XdpMode
) -> None:
    nic = Nic.find(pair.near)
    with Steering.open() as other:
        other.attach(nic.ifindex, mode)
        for wanted in (None, Mode.NATIVE_COPY, Mode.GENERIC_COPY):
            with pytest.raises(ProgramAttached) as caught:
                open_queues(nic, steering, [config(umems[0])], wanted)
            assert caught.value.prog_id == other.prog_id
            assert caught.value.name == "ix_steer"
            assert str(other.prog_id) in str(caught.value)
        there = query_attached(nic.ifindex)
        assert there is not None and there.prog_id == other.prog_id and there.mode is mode
    open_queues(nic, steering, [config(umems[0])]).close()


def test_queue_bound_already_is_an_error(pair: Pair, umems: list[Umem], steering: Steering) -> None:
    nic = Nic.find(pair.near)
    taken = QueueSocket.open(nic.ifindex, config(umems[1]), zerocopy=False)
    with pytest.raises(QueueBusy, match="queue 0"):
        open_queues(nic, steering, [config(umems[0], retry_ms=50)])
    assert query_attached(nic.ifindex) is None
    opened = open_queues(nic, steering, [config(umems[0], 1)])
    opened.close()
    taken.close()
    # Released a moment late: the retry covers it.
    open_queues(nic, steering, [config(umems[0])]).close()


def test_second_queue_fails_first_is_closed_again(
    pair: Pair, umems: list[Umem], steering: Steering
) -> None:
    nic = Nic.find(pair.near)
    taken = QueueSocket.open(nic.ifindex, config(umems[1], 1), zerocopy=False)
    with pytest.raises(QueueBusy, match="queue 1"):
        open_queues(nic, steering, [config(umems[0], 0), config(umems[1], 1, retry_ms=50)])
    taken.close()
    open_queues(nic, steering, [config(umems[0], 0), config(umems[1], 1)]).close()


def test_queue_that_is_not_there_is_an_error(
    pair: Pair, umems: list[Umem], steering: Steering
) -> None:
    with pytest.raises(NoSuchQueue, match="no queue 2"):
        open_queues(Nic.find(pair.near), steering, [config(umems[0], 2)])


def rights(address: int) -> str:
    """As /proc/self/maps has them."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, permits = line.split()[:2]
        low, high = (int(word, 16) for word in span.split("-"))
        if low <= address < high:
            return permits
    return ""


def test_rings_lie_where_they_are_wanted(pair: Pair, umems: list[Umem]) -> None:
    nbytes, at = place_bytes(128), ffi.new("uint64_t *")
    assert lib.ix_placed_reserve(nbytes, 4096, at) == 0
    place = int(at[0])
    for _ in range(2):  # the place can be used again
        sock = QueueSocket.open(pair.near_index, config(umems[0], place=place), zerocopy=False)
        assert int(ffi.cast("uintptr_t", sock.link)) == place
        assert sock.zerocopy is False and sock.kernel_stats()["rx_dropped"] == 0
        # The struct and four rings, a page each.
        assert {rights(place + page * 4096) for page in range(5)} == {"rw-s"}
        sock.close()
        assert {rights(place + at) for at in range(0, nbytes, 4096)} == {"---p"}
    lib.ix_placed_release(place, nbytes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rx_entries": 100}, "powers of two"),
        ({"tx_entries": 0}, "powers of two"),
        ({"fill": range(0, 2048 * 200, 2048)}, "do not fit"),
        ({"fill": [2048 * 100_000]}, "outside the UMEM"),
        ({"frame_shift": 13}, "2048 or 4096"),
        ({"umem_bytes": 5000}, "multiple"),
        ({"umem": 0}, "page-aligned"),
    ],
)
def test_bad_configuration_is_named(
    pair: Pair, umems: list[Umem], changes: dict[str, object], words: str
) -> None:
    with pytest.raises(IxError, match=words):
        QueueSocket.open(pair.near_index, config(umems[0], **changes), zerocopy=False)


def test_many_failed_binds_leak_nothing(pair: Pair, umems: list[Umem]) -> None:
    fds, maps = len(os.listdir("/proc/self/fd")), Path("/proc/self/maps").read_text().count("\n")
    for _ in range(20):
        with pytest.raises(IxError):
            QueueSocket.open(pair.near_index, config(umems[0]), zerocopy=True)
        QueueSocket.open(pair.near_index, config(umems[0]), zerocopy=False).close()
    assert len(os.listdir("/proc/self/fd")) == fds
    assert Path("/proc/self/maps").read_text().count("\n") <= maps + 5


def test_busy_polling_is_on_or_says_why_not(pair: Pair, umems: list[Umem]) -> None:
    sock = QueueSocket.open(pair.near_index, config(umems[0], busy_poll_us=20), zerocopy=False)
    if sock.busy_poll_problem is None:
        with socket.socket(44, socket.SOCK_RAW, 0, fileno=os.dup(sock.fileno())) as raw:
            assert raw.getsockopt(socket.SOL_SOCKET, 46) == 20
            assert raw.getsockopt(socket.SOL_SOCKET, 69) == 1
    else:
        assert "E" in sock.busy_poll_problem
    assert sock.tx_budget >= 32
    sock.close()


# ---- the end ------------------------------------------------------------------------------------


def _hold_until_killed(nic: Nic, umem: Umem, fork_worker: bool) -> tuple[int, int]:
    """A process that attaches and opens a queue; with a forked worker that forgets the link.
    Returns the pids (worker 0 if none) when it is up."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid:
        os.close(write_end)
        with os.fdopen(read_end) as told:
            return pid, int(told.readline())
    try:
        steering = Steering.open()
        opened: OpenedQueues = open_queues(nic, steering, [config(umem)])
        assert opened.sockets
        worker = os.fork() if fork_worker else 0
        if fork_worker and worker == 0:
            steering.forget()
            time.sleep(60)
            os._exit(0)
        os.write(write_end, f"{worker}\n".encode())
        time.sleep(60)
    finally:
        os._exit(1)


def _wait_until_detached(ifindex: int) -> None:
    deadline = time.monotonic() + 30
    while query_attached(ifindex) is not None:
        assert time.monotonic() < deadline, "the XDP link outlived its process"
        time.sleep(0.01)


@pytest.mark.parametrize("fork_worker", [False, True])
def test_process_killed_link_disappears_and_restart_works(
    pair: Pair, umems: list[Umem], steering: Steering, fork_worker: bool
) -> None:
    nic = Nic.find(pair.near)
    pid, worker = _hold_until_killed(nic, umems[0], fork_worker)
    assert query_attached(nic.ifindex) is not None
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    _wait_until_detached(nic.ifindex)
    if worker:
        # It holds the socket still, so the queue is busy; the network is the kernel's all the same.
        os.kill(worker, signal.SIGKILL)
    open_queues(nic, steering, [config(umems[0])]).close()


def test_interface_removed_while_open_close_is_clean(
    pair: Pair, umems: list[Umem], steering: Steering
) -> None:
    nic = Nic.find(pair.near)
    opened = open_queues(nic, steering, [config(umems[0])])
    with IPRoute() as ipr:
        ipr.link("del", index=nic.ifindex)
    with pytest.raises(UnknownInterface):
        nic.refresh()
    opened.close()
    with pytest.raises(IxError):
        QueueSocket.open(nic.ifindex, config(umems[0]), zerocopy=False)


def test_interface_missing_attach_is_an_error(pair: Pair, steering: Steering) -> None:
    with pytest.raises((UnknownInterface, InterfaceGone)):
        steering.attach(9999, XdpMode.NATIVE)


def test_kernel_services_go_on_while_attached(
    pair: Pair, umems: list[Umem], steering: Steering
) -> None:
    """Nothing claimed: TCP of the kernel crosses the attached program untouched."""
    from ixnet.control.namespaces import in_netns

    nic = Nic.find(pair.near)
    opened = open_queues(nic, steering, [config(u, q) for q, u in enumerate(umems)])
    steering.sync_local(nic.ips)
    steering.claim(Proto.TCP, None, 7777)
    with socket.create_server((str(NEAR_IP), 8888)) as server:
        with in_netns(pair.far_ns):
            client = socket.create_connection((str(NEAR_IP), 8888), timeout=60)
        with client, server.accept()[0] as served:
            client.sendall(b"over the kernel's stack")
            assert served.recv(100) == b"over the kernel's stack"
    counts = steering.verdicts()
    assert counts["pass_unclaimed"] >= 3
    assert sum(n for name, n in counts.items() if name.startswith("redirect")) == 0
    opened.close()


# ---- UMEM memory ----------------------------------------------------------------------------


def test_umem_is_aligned_shared_and_says_its_pages() -> None:
    umem = Umem.allocate(3 << 20)
    assert umem.nbytes == 4 << 20
    assert umem.address % (2 << 20) == 0
    assert umem.kind in UmemKind
    umem.close()
    umem.close()


def test_umem_without_huge_pages_is_on_base_pages() -> None:
    umem = Umem.allocate(1 << 20, huge_pages=False)
    assert umem.kind is UmemKind.PAGES
    umem.close()


def test_umem_of_impossible_size_is_an_error() -> None:
    with pytest.raises(IxError):
        Umem.allocate(1 << 60)
