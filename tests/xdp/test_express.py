"""The steering program that also sends: blanks become the frames that were put up, or are dropped.

What the program reads lies in this process: BPF_PROG_TEST_RUN runs it here. The kernel's side, live
frames, is in tests/control/test_express.py.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import random
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from ixnet._core import ffi, lib
from ixnet.control.xdp import EXPRESS_PATH, OBJECT_PATH, Steering
from tests.xdp.testrun import LO, run_frame, veth

DROP, REDIRECT = 1, 4
BLANK = bytes(14)
FRAMES, LIMIT = 512, 2048  # IX_STEER_EXPRESS_FRAMES, IX_STEER_EXPRESS_BYTES
LENGTHS = (14, 15, 60, 1514, 2047)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to load a BPF program")


class Sender:
    """The program, and what it shares with who sends (struct ix_steer_express)."""

    def __init__(self, steering: Steering) -> None:
        self.steering = steering
        self._map = mmap.mmap(steering.map_fd("express"), 8 + 16 * FRAMES)
        self._memory: list[ctypes.Array[ctypes.c_char]] = []

    def close(self) -> None:
        self._map.close()

    def put_up(self, frames: Sequence[bytes | tuple[int, int]]) -> None:
        """Frames, or addresses and lengths."""
        for i, frame in enumerate(frames):
            if isinstance(frame, bytes):
                self._memory.append(ctypes.create_string_buffer(frame, len(frame)))
                entry = ctypes.addressof(self._memory[-1]), len(frame)
            else:
                entry = frame
            struct.pack_into("2Q", self._map, 8 + 16 * i, *entry)
        self.set_next(0)

    def reset(self) -> None:
        struct.pack_into("2I", self._map, 0, 0, 0)

    def set_next(self, number: int) -> None:
        struct.pack_into("I", self._map, 0, number)

    @property
    def next(self) -> int:
        return int(struct.unpack_from("2I", self._map)[0])

    @property
    def refused(self) -> int:
        return int(struct.unpack_from("2I", self._map)[1])

    def run(self, blank: bytes = BLANK) -> tuple[int, bytes]:
        """What becomes of one blank."""
        return run_frame(self.steering, blank, LO)


@pytest.fixture(scope="module")
def opened() -> Iterator[Sender]:
    """Sends to a veth."""
    with veth() as ifindex, Steering.open(EXPRESS_PATH) as steering:
        out = ffi.new("struct ix_express **")
        assert lib.ix_express_open(steering.raw, ifindex, out) == 0
        lib.ix_express_close(out[0])
        made = Sender(steering)
        yield made
        made.close()


@pytest.fixture
def sender(opened: Sender) -> Sender:
    """With no frame refused yet."""
    opened.reset()
    return opened


@pytest.mark.parametrize("blank", LENGTHS)
@pytest.mark.parametrize("length", LENGTHS)
def test_blank_becomes_the_frame_that_was_put_up(sender: Sender, length: int, blank: int) -> None:
    frame = random.Random(length).randbytes(length)
    sender.put_up([frame])
    before = sender.steering.verdicts()
    assert sender.run(bytes(blank)) == (REDIRECT, frame)
    assert (sender.next, sender.refused) == (1, 0)
    assert sender.steering.verdicts() == before, "nothing was steered"


def test_blanks_become_the_frames_in_order(sender: Sender) -> None:
    frames = [bytes([i % 251]) * (14 + i) for i in range(FRAMES)]
    sender.put_up(frames)
    assert [sender.run() for _ in frames] == [(REDIRECT, frame) for frame in frames]
    assert sender.next == FRAMES


@pytest.mark.parametrize("held", [BLANK, bytes(12) + b"\x08\x00", b"\xff" * 14, b"\xff" * 900])
def test_what_a_blank_holds_does_not_count(sender: Sender, held: bytes) -> None:
    """It may be an earlier frame, whose memory is used again."""
    sender.put_up([b"a frame of 14 B"[:14]])
    assert sender.run(held) == (REDIRECT, b"a frame of 14 B"[:14])


@pytest.mark.parametrize("number", [FRAMES, FRAMES + 1, 0xFFFF_FFFF])
def test_more_blanks_than_frames_are_dropped(sender: Sender, number: int) -> None:
    sender.put_up([bytes(60)])
    sender.set_next(number)
    assert sender.run()[0] == DROP
    assert (sender.next, sender.refused) == (number, 0)


@pytest.mark.parametrize("length", [0, 1, 13, LIMIT, LIMIT + 1, LIMIT + 60, 1 << 32 | 60, 1 << 63])
def test_length_that_no_frame_has_is_dropped_and_counted(sender: Sender, length: int) -> None:
    memory = ctypes.create_string_buffer(2 * LIMIT)
    sender.put_up([(ctypes.addressof(memory), length), bytes(60)])
    assert sender.run()[0] == DROP
    assert sender.refused == 1
    assert sender.run() == (REDIRECT, bytes(60)), "the next one goes"
    assert (sender.next, sender.refused) == (2, 1)


@pytest.mark.parametrize("at", ["null", "unmapped", "kernel", "end of a mapping"])
def test_address_that_can_not_be_read_is_dropped_and_counted(sender: Sender, at: str) -> None:
    page = mmap.mmap(-1, mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(page))
    libc = ctypes.CDLL(None)
    assert libc.mprotect(ctypes.c_void_p(start), mmap.PAGESIZE, 0) == 0
    address = {
        "null": 0,
        "unmapped": start,
        "kernel": 0xFFFF_8880_0000_1000,
        "end of a mapping": start - 1,
    }[at]
    sender.put_up([(address, 60), bytes(60)])
    assert sender.run()[0] == DROP
    assert sender.refused == 1
    assert sender.run() == (REDIRECT, bytes(60))


def test_before_it_is_told_where_to_nothing_goes_out() -> None:
    with Steering.open(EXPRESS_PATH) as steering:
        sender = Sender(steering)
        sender.put_up([bytes(60)])
        assert sender.run()[0] == DROP
        sender.close()


def test_open_of_a_program_that_does_not_send_is_refused() -> None:
    out = ffi.new("struct ix_express **")
    with Steering.open(OBJECT_PATH) as steering:
        assert lib.ix_express_open(steering.raw, 1, out) == -errno.ENOENT
    assert out[0] == ffi.NULL


def test_open_for_an_interface_that_is_not_there_is_refused(sender: Sender) -> None:
    out = ffi.new("struct ix_express **")
    fds = len(os.listdir("/proc/self/fd"))
    assert lib.ix_express_open(sender.steering.raw, 0x7FFF_FFFF, out) < 0
    assert out[0] == ffi.NULL
    assert len(os.listdir("/proc/self/fd")) == fds


def test_open_and_close_leave_nothing(sender: Sender) -> None:
    def held() -> tuple[int, int]:
        maps = Path("/proc/self/maps").read_text().count("bpf-map")
        return len(os.listdir("/proc/self/fd")), maps

    before = held()
    for _ in range(3):
        out = ffi.new("struct ix_express **")
        assert lib.ix_express_open(sender.steering.raw, LO, out) == 0
        assert held() != before
        lib.ix_express_close(out[0])
        assert held() == before
    lib.ix_express_close(ffi.NULL)
