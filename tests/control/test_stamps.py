"""Timestamps of frames: programs bound to a device, TX metadata, and why there are no better ones.

A veth tells XDP programs of timestamps, but has none; in copy mode the kernel says when it let go
of a frame. So the ways down from what a NIC with a clock does are all here.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator

import pytest

from ixnet.control import stamps
from ixnet.control.errors import IxError, ModeUnavailable, ProgramAttached
from ixnet.control.ethtool import (
    MetadataFeatures,
    StampConfig,
    metadata_features,
    set_stamp_config,
    stamp_all,
    stamp_config,
    timestamp_info,
)
from ixnet.control.nic import Mode, Nic, open_queues
from ixnet.control.xdp import HARDWARE_STAMP_PATH, Steering, XdpMode, query_attached
from ixnet.control.xsk import QueueSocket, Umem
from tests.control.conftest import Pair
from tests.control.test_nic import config
from tests.unit.san import ffi

TX_METADATA = 2


@pytest.fixture
def umem() -> Iterator[Umem]:
    made = Umem.allocate(256 * 2048)
    yield made
    made.close()


@pytest.fixture
def bare(pair: Pair) -> Nic:
    """An interface whose driver has no XDP metadata."""
    return Nic.find("lo")


def test_veth_program_is_bound_and_attaches(pair: Pair) -> None:
    nic = Nic.find(pair.near)
    features = metadata_features(nic.ifindex)
    assert features is not None and "timestamp" in features.receive
    steering, text = stamps.open_stamping(nic, None)
    with steering:
        assert text == stamps.HARDWARE
        assert query_attached(nic.ifindex) is None
        steering.attach(nic.ifindex, XdpMode.NATIVE)
        assert query_attached(nic.ifindex) is not None


def test_bound_program_runs_nowhere_else(pair: Pair) -> None:
    with Steering.open(HARDWARE_STAMP_PATH, bound_to=pair.near_index) as steering:
        with pytest.raises(IxError):
            steering.attach(pair.near_index, XdpMode.GENERIC)
        with pytest.raises(IxError):
            steering.attach(1, XdpMode.NATIVE)
        steering.attach(pair.near_index, XdpMode.NATIVE)


def test_generic_mode_asked_for_stamps_are_software(pair: Pair) -> None:
    steering, text = stamps.open_stamping(Nic.find(pair.near), Mode.GENERIC_COPY)
    with steering:
        steering.attach(pair.near_index, XdpMode.GENERIC)
        assert text.startswith("software: ") and "--mode auto" in text


def test_driver_without_metadata_stamps_are_software(bare: Nic) -> None:
    steering, text = stamps.open_stamping(bare, None)
    with steering:
        assert text.startswith("software: ") and "xdp-rx-metadata-features" in text


def test_kernel_that_tells_no_features_it_is_tried(
    bare: Nic, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stamps, "metadata_features", lambda _: None)
    with pytest.raises(ModeUnavailable):
        Steering.open(HARDWARE_STAMP_PATH, bound_to=bare.ifindex)
    steering, text = stamps.open_stamping(bare, None)
    with steering:
        assert text.startswith("software: no program can be bound to lo: load ")


@pytest.mark.parametrize("mode", [XdpMode.NATIVE, XdpMode.GENERIC])
def test_other_program_attached_is_an_error(pair: Pair, mode: XdpMode) -> None:
    with Steering.open() as other:
        other.attach(pair.near_index, mode)
        with pytest.raises(ProgramAttached):
            stamps.open_stamping(Nic.find(pair.near), None)


def test_libxdps_dispatcher_has_a_cure_of_its_own() -> None:
    assert "xdp-loader unload" in str(ProgramAttached("busy", 7, "xdp_dispatcher"))
    assert "bpftool prog show id 7" in str(ProgramAttached("busy", 7, "other"))


@pytest.mark.parametrize("wanted", [0, stamps.TX_METADATA_BYTES])
def test_sent_frames_have_room_for_metadata_if_asked(pair: Pair, umem: Umem, wanted: int) -> None:
    nic = Nic.find(pair.near)
    with Steering.open() as steering:
        opened = open_queues(nic, steering, [config(umem, tx_metadata_bytes=wanted)])
        assert opened.sockets[0].tx_metadata_bytes == wanted
        text = stamps.transmit_text(nic, opened)
        assert text.startswith("software: in copy mode" if wanted else "none: ")
        opened.close()
        # Nothing is left of the first: the queue can be had again.
        open_queues(nic, steering, [config(umem, tx_metadata_bytes=wanted)]).close()


@pytest.mark.parametrize(("features", "begins"), [
    (MetadataFeatures(frozenset(), frozenset()), "none: "),
    (MetadataFeatures(frozenset(), frozenset({"tx-timestamp"})), stamps.HARDWARE),
    (None, stamps.HARDWARE),
])  # fmt: skip
def test_zero_copy_the_drivers_features_decide(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, features: MetadataFeatures | None, begins: str
) -> None:
    class Socket:
        tx_metadata_bytes = stamps.TX_METADATA_BYTES
        zerocopy = True

    class Opened:
        sockets = (Socket(),)

    monkeypatch.setattr(stamps, "metadata_features", lambda _: features)
    assert stamps.transmit_text(Nic.find(pair.near), Opened()).startswith(begins)  # type: ignore[arg-type]


def test_copy_mode_completion_says_when_the_kernel_let_go(pair: Pair, umem: Umem) -> None:
    """The whole way of a stamp: asked for before the frame, answered there at its completion."""
    wanted = stamps.TX_METADATA_BYTES
    sock = QueueSocket.open(pair.near_index, config(umem, tx_metadata_bytes=wanted), zerocopy=False)
    link = ffi.cast("struct ix_link *", _raw(sock.link))
    assert link.tx_metadata_bytes == wanted
    at = 128 * 2048 + 256
    memory = ffi.buffer(ffi.cast("uint8_t *", umem.address + at - wanted), wanted + 64)
    memory[:] = struct.pack("=3Q", 1, 0, 0) + b"\xff" * 12 + b"\x88\xb5" + bytes(50)
    desc = ffi.new("struct ix_desc *", {"addr": at, "len": 64, "flags": TX_METADATA})
    addrs = ffi.new("uint64_t[]", 4)
    before = time.clock_gettime_ns(time.CLOCK_TAI)
    assert link.ops.tx_burst(link, desc, 1) == 1
    deadline = time.monotonic() + 60
    while not link.ops.complete(link, addrs, 4):
        link.ops.wakeup(link, 1)
        assert time.monotonic() < deadline
    after = time.clock_gettime_ns(time.CLOCK_TAI)
    stamp = struct.unpack_from("=Q", memory, 8)[0]
    assert addrs[0] == at
    assert before - 1_000_000 <= stamp <= after + 1_000_000
    sock.close()


def _raw(link: object) -> int:
    """A pointer of the product's module for the sanitized one's declarations."""
    from ixnet._core import ffi as product

    return int(product.cast("uintptr_t", link))


@pytest.mark.parametrize("wanted", [4, 12, 256])
def test_metadata_of_a_length_that_no_kernel_takes_is_an_error(
    pair: Pair, umem: Umem, wanted: int
) -> None:
    with pytest.raises(IxError, match=f"TX metadata of {wanted} bytes"):
        QueueSocket.open(pair.near_index, config(umem, tx_metadata_bytes=wanted), zerocopy=False)


# ---- the NIC's own clock -----------------------------------------------------------------------


def test_veth_has_no_clock_and_can_not_be_told_to_stamp(pair: Pair) -> None:
    info = timestamp_info(pair.near)
    assert (info.phc, info.receive_all) == (None, False)
    for call in (lambda: stamp_config(pair.near), lambda: set_stamp_config(pair.near, stamp_all())):
        with pytest.raises(OSError):
            call()


def test_structs_are_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a driver with a clock answers: include/uapi/linux/ethtool.h, net_tstamp.h."""
    asked: list[tuple[bytes, int]] = []

    def answer(ifname: str, words: bytes, number: int = 0x8946) -> bytes:
        asked.append((bytes(words), number))
        if number == 0x8946:
            return struct.pack("=IIiI3II3I", 0x41, 0x5F, 3, 0b11, 0, 0, 0, 0b10, 0, 0, 0)
        return struct.pack("=3i", 0, 1, 1)

    monkeypatch.setattr("ixnet.control.ethtool._ethtool", answer)
    info = timestamp_info("eth9")
    assert (info.phc, info.transmit, info.receive_all) == (3, True, True)
    assert len(asked[0][0]) == 44 and asked[0][0][:4] == b"\x41\0\0\0"
    assert set_stamp_config("eth9", stamp_all()) == StampConfig(0, 1, 1) == stamp_config("eth9")
    assert asked[1:] == [(struct.pack("=3i", 0, 1, 1), 0x89B0), (bytes(12), 0x89B1)]
