"""link/pcap_link.c: the recorder around another link."""

from __future__ import annotations

import io
from decimal import Decimal
from typing import Any

import pytest
from scapy.layers.l2 import Ether
from scapy.utils import rdpcap

from tests.unit.san import ffi, lib
from tests.unit.simwire import FRAME_BYTES, Wire, frame

FILE_HEADER = lib.IX_PCAP_FILE_HEADER_BYTES
RECORD_HEADER = lib.IX_PCAP_RECORD_HEADER_BYTES


class Recorder:
    """A recorder around end 0 of a simulated wire."""

    def __init__(self, size: int = 1 << 16, snap: int = 0) -> None:
        self.wire = Wire()
        self.wire.fill(0)
        self.wire.fill(1)
        self.buffer = ffi.new("uint8_t[]", size)
        self.p = ffi.new("struct ix_pcap_link *")
        inner = self.wire.link(0)
        assert lib.ix_pcap_link_init(self.p, inner, self.buffer, size, snap) == 0
        self.link = ffi.addressof(self.p[0], "link")

    def at(self, now_ns: int) -> None:
        lib.ix_pcap_link_set_now(self.p, now_ns)

    def put(self, *data: bytes) -> int:
        """Sends frames through the recorder; returns how many were accepted."""
        descs = []
        for i, one in enumerate(data):
            addr = (self.wire.frames // 2 + i) * FRAME_BYTES
            ffi.memmove(self.wire.umem[0] + addr, one, len(one))
            descs.append({"addr": addr, "len": len(one)})
        return int(
            self.link.ops.tx_burst(self.link, ffi.new("struct ix_desc[]", descs), len(descs))
        )

    def receive(self, *data: bytes) -> int:
        """Has frames arrive and takes them through the recorder; returns how many there were."""
        self.wire.send(1, *data)
        self.wire.advance(0)
        out = ffi.new("struct ix_desc[]", 64)
        return int(self.link.ops.rx_burst(self.link, out, 64))

    def take(self) -> bytes:
        assert lib.ix_pcap_link_check(self.p) == ffi.NULL
        size = ffi.new("size_t *")
        data = lib.ix_pcap_link_take(self.p, size)
        return bytes(ffi.buffer(data, size[0]))

    def packets(self) -> Any:
        return rdpcap(io.BytesIO(self.take()))


def test_rx_and_tx_are_recorded_as_scapy_reads_them() -> None:
    rec = Recorder()
    rec.at(1_700_000_000_123_456_789)
    rec.put(frame(1), frame(2, 1514))
    rec.at(1_700_000_001_000_000_001)
    rec.receive(frame(3, 99))
    packets = rec.packets()
    assert [bytes(p) for p in packets] == [frame(1), frame(2, 1514), frame(3, 99)]
    assert all(isinstance(p, Ether) for p in packets)
    assert [Decimal(p.time) for p in packets] == [
        Decimal("1700000000.123456789"),
        Decimal("1700000000.123456789"),
        Decimal("1700000001.000000001"),
    ]
    assert (rec.p.records, rec.p.left_out) == (3, 0)


def test_nothing_recorded_is_a_file_without_packets() -> None:
    assert len(Recorder().packets()) == 0


def test_taken_in_pieces_is_one_file() -> None:
    rec = Recorder()
    file = b""
    for number in range(5):
        rec.put(frame(number))
        file += rec.take()
    assert rec.take() == b""
    assert [bytes(p) for p in rdpcap(io.BytesIO(file))] == [frame(n) for n in range(5)]


def test_snap_length_cuts_the_bytes_kept_and_tells_the_length() -> None:
    rec = Recorder(snap=54)
    rec.put(frame(0, 1514), frame(1, 54), frame(2, 14))
    packets = rec.packets()
    assert [bytes(p) for p in packets] == [frame(0, 1514)[:54], frame(1, 54), frame(2, 14)]
    assert [p.wirelen for p in packets] == [1514, 54, 14]


def test_buffer_full_leaves_whole_records_out_and_counts_them() -> None:
    rec = Recorder(size=FILE_HEADER + 2 * (RECORD_HEADER + 60))
    assert rec.put(*(frame(n) for n in range(4))) == 4
    assert (rec.p.records, rec.p.left_out) == (2, 2)
    file = rec.take()
    rec.put(frame(9))
    file += rec.take()
    assert [bytes(p) for p in rdpcap(io.BytesIO(file))] == [frame(0), frame(1), frame(9)]


def test_frames_that_tx_did_not_accept_are_not_recorded() -> None:
    rec = Recorder()
    room = 64
    assert rec.put(*[frame(0)] * 32) == 32
    assert rec.put(*[frame(0)] * 32) == 32
    assert rec.put(frame(1)) == 0
    assert rec.p.records == room


def test_descriptor_outside_the_umem_is_not_read() -> None:
    rec = Recorder()
    end = rec.wire.frames * FRAME_BYTES
    descs = ffi.new(
        "struct ix_desc[]",
        [{"addr": end, "len": 1}, {"addr": end - 10, "len": 11}, {"addr": 2**64 - 1, "len": 60}],
    )
    assert rec.link.ops.tx_burst(rec.link, descs, 3) == 3
    assert (rec.p.records, rec.p.left_out) == (0, 3)


def test_every_operation_reaches_the_inner_link() -> None:
    rec = Recorder()
    inner = rec.wire.link(0)
    ops = rec.link.ops
    for name in ("umem", "umem_bytes", "frame_shift", "rx_headroom"):
        assert getattr(rec.link, name) == getattr(inner, name)
    rec.put(frame(5))
    assert ops.wakeup(rec.link, lib.IX_WAKE_TX) == 1
    addrs = ffi.new("uint64_t[]", 4)
    assert ops.complete(rec.link, addrs, 4) == 1
    assert addrs[0] == rec.wire.frames // 2 * FRAME_BYTES
    room = ops.fill_room(rec.link)
    assert room == inner.ops.fill_room(inner) > 1
    assert ops.fill(rec.link, ffi.new("uint64_t[]", [50 * FRAME_BYTES]), 1) == 1
    assert ops.fill_room(rec.link) == room - 1
    rec.wire.advance(0)
    assert rec.wire.receive(1) == [frame(5)]
    lib.ix_sim_end_set_down(ffi.addressof(rec.wire.end(0)), True)
    assert ops.wakeup(rec.link, lib.IX_WAKE_TX) == -lib.IX_ENETDOWN


@pytest.mark.parametrize(
    ("size", "snap"),
    [(FILE_HEADER - 1, 0), (0, 0), (1000, lib.IX_PCAP_SNAP_BYTES_MAX + 1)],
)
def test_senseless_setup_is_refused(size: int, snap: int) -> None:
    rec = Recorder()
    init = lib.ix_pcap_link_init
    assert init(rec.p, rec.wire.link(0), rec.buffer, size, snap) == -lib.IX_EINVAL
    assert init(rec.p, ffi.NULL, rec.buffer, 1000, 0) == -lib.IX_EINVAL
    assert init(rec.p, rec.wire.link(0), ffi.NULL, 1000, 0) == -lib.IX_EINVAL
