"""native/recorder.c: what passes a link is in a file, whatever happens to the writer."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scapy.utils import rdpcap

from tests.unit.san import ffi, lib
from tests.unit.simwire import FRAME_BYTES, Wire, frame

FILE_HEADER = lib.IX_PCAP_FILE_HEADER_BYTES
RECORD_HEADER = lib.IX_PCAP_RECORD_HEADER_BYTES


class Recording:
    """A recorder around end 0 of a simulated wire, on an open file."""

    def __init__(self, fd: int, snap: int = 0) -> None:
        self.fd = fd
        nbytes = lib.ix_recorder_bytes()
        self.memory = ffi.new("uint64_t[]", nbytes // 8 + 1)
        self.r = lib.ix_recorder_init(self.memory, nbytes, fd, snap)
        assert self.r != ffi.NULL
        self.attach()

    def attach(self) -> None:
        """Attaches it to a new link, as when a worker is started (again)."""
        self.wire = Wire()
        assert lib.ix_recorder_attach(self.r, self.wire.link(0)) == 0
        self.link: Any = lib.ix_recorder_link(self.r)

    def send(self, *data: bytes) -> None:
        descs = []
        for i, one in enumerate(data):
            addr = (self.wire.frames // 2 + i) * FRAME_BYTES
            ffi.memmove(self.wire.umem[0] + addr, one, len(one))
            descs.append({"addr": addr, "len": len(one)})
        n = self.link.ops.tx_burst(self.link, ffi.new("struct ix_desc[]", descs), len(descs))
        assert n == len(descs)

    def cycle(self, *data: bytes, now_ns: int | None = None) -> None:
        """One cycle that sends these frames."""
        lib.ix_recorder_begin(self.r, lib.ix_process_now_ns() if now_ns is None else now_ns)
        self.send(*data)
        lib.ix_recorder_end(self.r)

    def counters(self) -> tuple[int, int, int]:
        """(recorded, lost, bytes)"""
        return self.r.frames_recorded, self.r.frames_lost, self.r.file_bytes


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with something older in it."""
    file = tmp_path / "t.pcap"
    file.write_bytes(b"older" * 1000)
    return file


@pytest.fixture
def rec(path: Path) -> Iterator[Recording]:
    """A recording into `path`."""
    fd = os.open(path, os.O_RDWR)
    yield Recording(fd)
    os.close(fd)


def frames(path: Path) -> list[bytes]:
    """What the file holds."""
    return [bytes(p) for p in rdpcap(str(path))]


def test_each_cycle_leaves_a_whole_file_in_wall_clock_time(path: Path, rec: Recording) -> None:
    before = time.time()
    rec.cycle(frame(1), frame(2, 1514))
    assert frames(path) == [frame(1), frame(2, 1514)]
    rec.cycle(frame(3))
    assert frames(path) == [frame(1), frame(2, 1514), frame(3)]
    assert rec.counters() == (3, 0, path.stat().st_size)
    for packet in rdpcap(str(path)):
        assert before - 1 < float(packet.time) < time.time() + 1


def test_attach_alone_empties_the_file_and_a_cycle_writes_the_header(
    path: Path, rec: Recording
) -> None:
    assert path.stat().st_size == 0
    rec.cycle()
    assert path.stat().st_size == FILE_HEADER
    assert frames(path) == []


def test_snap_length_reaches_the_file(path: Path) -> None:
    with path.open("r+b") as file:
        Recording(file.fileno(), snap=60).cycle(frame(1, 1514))
    assert frames(path) == [frame(1, 1514)[:60]]


def test_record_written_by_half_is_trimmed_and_recording_goes_on(
    path: Path, rec: Recording
) -> None:
    rec.cycle(frame(1))
    whole = path.stat().st_size
    # What a worker leaves that is killed in the middle of a write.
    rec.send(frame(2), frame(3))
    os.pwrite(rec.fd, b"torn" * 9, whole)
    lib.ix_recorder_trim(rec.r)
    assert path.stat().st_size == whole
    assert frames(path) == [frame(1)]
    os.pwrite(rec.fd, b"torn" * 9, whole)
    rec.attach()
    rec.cycle(frame(4))
    assert frames(path) == [frame(1), frame(4)]
    assert rec.counters() == (2, 2, path.stat().st_size)


def test_attach_to_what_can_not_be_emptied_is_refused() -> None:
    fd = os.open("/dev/full", os.O_RDWR)
    memory = ffi.new("uint64_t[]", lib.ix_recorder_bytes() // 8 + 1)
    r = lib.ix_recorder_init(memory, lib.ix_recorder_bytes(), fd, 0)
    try:
        # No regular file: ixnet run refuses it long before.
        assert lib.ix_recorder_attach(r, Wire().link(0)) == -errno.EINVAL
    finally:
        os.close(fd)


def test_write_that_fails_keeps_what_was_whole_and_counts_the_rest(path: Path) -> None:
    with path.open("r+b") as file, path.open("rb") as unwritable:
        rec = Recording(file.fileno())
        rec.cycle(frame(1))
        rec.r.fd = unwritable.fileno()
        rec.cycle(frame(2), frame(3))
        assert rec.r.error == -errno.EBADF
        assert rec.counters() == (1, 2, path.stat().st_size)
        # It stays ended, for a worker that is started again too; frames still pass.
        rec.r.fd = file.fileno()
        rec.cycle(frame(4))
        rec.attach()
        rec.cycle(frame(5))
        assert rec.r.error == -errno.EBADF
        assert rec.counters() == (1, 4, path.stat().st_size)
        assert lib.ix_pcap_link_check(ffi.addressof(rec.r, "pcap")) == ffi.NULL
    assert frames(path) == [frame(1)]


def test_senseless_setup_is_refused() -> None:
    nbytes = lib.ix_recorder_bytes()
    memory = ffi.new("uint64_t[]", nbytes // 8 + 1)
    init = lib.ix_recorder_init
    assert init(memory, nbytes - 1, 0, 0) == ffi.NULL
    assert init(memory, nbytes, -1, 0) == ffi.NULL
    assert init(memory, nbytes, 0, lib.IX_PCAP_SNAP_BYTES_MAX + 1) == ffi.NULL
