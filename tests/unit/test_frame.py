"""mem/frame.c: who owns each UMEM frame."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.dies import dies
from tests.unit.san import ffi, lib

POOL = 8
ARENA = 4
HANDLE = 0x1_0000_0007


class Frames:
    """A pool of `pool` frames and an arena of `arena`."""

    def __init__(self, pool: int = POOL, arena: int = ARENA, shift: int = 11) -> None:
        self.meta = ffi.new("struct ix_frame[]", pool + arena)
        self.f = ffi.new("struct ix_frames *")
        lib.ix_frames_init(self.f, self.meta, pool, arena, shift)
        self.check()

    def check(self) -> None:
        wrong = lib.ix_frames_check(self.f)
        assert wrong == ffi.NULL, ffi.string(wrong)

    def owner(self, frame: int) -> int:
        return int(self.meta[frame].owner)

    def count(self, owner: int) -> int:
        return int(self.f.count[owner])

    def received(self) -> int:
        """A frame that went through FILL and came back by RX."""
        frame = int(lib.ix_frame_take_fill(self.f))
        assert lib.ix_frame_from_rx(self.f, frame)
        return frame

    def lent(self, nbytes: int = 100, handle: int = HANDLE) -> int:
        frame = self.received()
        lib.ix_frame_lend(self.f, frame, handle, 300, nbytes)
        return frame


@pytest.fixture
def frames() -> Frames:
    return Frames()


def test_init_pool_is_free_and_arena_is_the_applications(frames: Frames) -> None:
    owners = [frames.owner(i) for i in range(POOL + ARENA)]
    assert owners == [lib.IX_FRAME_FREE] * POOL + [lib.IX_FRAME_APP] * ARENA
    assert [frames.count(o) for o in range(lib.IX_FRAME_OWNERS)] == [POOL, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("pool", "lend_max"),
    [(8, 2), (600, 150), (1000, 488), (4096, 4096 - 512), (3, 0), (0, 0)],
)
def test_init_keeps_a_reserve_from_lending(pool: int, lend_max: int) -> None:
    assert Frames(pool=pool).f.lend_max == lend_max


def test_init_too_many_frames_dies() -> None:
    f = ffi.new("struct ix_frames *")
    most = lib.IX_FRAMES_MAX
    assert dies(lambda: lib.ix_frames_init(f, ffi.NULL, most, 1, 11))
    assert dies(lambda: lib.ix_frames_init(f, ffi.NULL, 1, 2**32 - 1, 11))
    assert dies(lambda: lib.ix_frames_init(f, ffi.NULL, 1, 0, 13))


def test_pool_alloc_gives_every_frame_once_then_none(frames: Frames) -> None:
    got = [lib.ix_frame_alloc(frames.f) for _ in range(POOL)]
    assert sorted(got) == list(range(POOL))
    assert lib.ix_frame_alloc(frames.f) == lib.IX_NONE
    assert lib.ix_frame_take_fill(frames.f) == lib.IX_NONE
    frames.check()


def test_freed_frame_is_the_next_allocated(frames: Frames) -> None:
    taken = [lib.ix_frame_alloc(frames.f) for _ in range(3)]
    lib.ix_frame_free(frames.f, taken[1])
    assert lib.ix_frame_alloc(frames.f) == taken[1]


def test_fill_untaken_is_free_again(frames: Frames) -> None:
    frame = lib.ix_frame_take_fill(frames.f)
    assert frames.count(lib.IX_FRAME_FILL) == 1
    lib.ix_frame_untake_fill(frames.f, frame)
    assert frames.owner(frame) == lib.IX_FRAME_FREE
    frames.check()


@pytest.mark.parametrize("frame", [0, POOL, POOL + ARENA, 2**32 - 1])
def test_from_rx_of_what_is_not_on_fill_is_refused(frames: Frames, frame: int) -> None:
    assert not lib.ix_frame_from_rx(frames.f, frame)
    frames.check()


def test_from_rx_twice_is_refused(frames: Frames) -> None:
    frame = frames.received()
    assert not lib.ix_frame_from_rx(frames.f, frame)
    assert frames.owner(frame) == lib.IX_FRAME_RX


def test_received_free_returns_to_pool(frames: Frames) -> None:
    lib.ix_frame_free(frames.f, frames.received())
    assert frames.count(lib.IX_FRAME_FREE) == POOL
    frames.check()


def test_free_of_fill_app_or_sent_frame_dies(frames: Frames) -> None:
    fill = lib.ix_frame_take_fill(frames.f)
    lent = frames.lent()
    sending = lib.ix_frame_alloc(frames.f)
    lib.ix_frame_tx_begin(frames.f, sending)
    for frame in (fill, lent, sending, POOL, 2**32 - 1):
        assert dies(lambda frame=frame: lib.ix_frame_free(frames.f, frame))
    lib.ix_frame_tx_end(frames.f, sending)
    assert dies(lambda: lib.ix_frame_free(frames.f, sending))  # freed by the completion


def test_lend_of_what_is_not_received_dies(frames: Frames) -> None:
    tx = lib.ix_frame_alloc(frames.f)
    rx = frames.received()
    lend = lib.ix_frame_lend
    assert dies(lambda: lend(frames.f, tx, HANDLE, 0, 1))
    assert dies(lambda: lend(frames.f, POOL, HANDLE, 0, 1))
    assert dies(lambda: lend(frames.f, rx, 0, 0, 1))
    assert dies(lambda: lend(frames.f, rx, HANDLE, 0, 0))
    assert dies(lambda: lend(frames.f, rx, HANDLE, 2000, 49))
    assert not dies(lambda: lend(frames.f, rx, HANDLE, 2000, 48))


def test_lent_done_in_parts_is_free_after_the_last_byte(frames: Frames) -> None:
    frame = frames.lent(100)
    for part in (1, 0, 98):
        assert lib.ix_frame_done(frames.f, frame, HANDLE, part) == 0
        assert frames.owner(frame) == lib.IX_FRAME_APP
    assert lib.ix_frame_done(frames.f, frame, HANDLE, 1) == 0
    assert frames.owner(frame) == lib.IX_FRAME_FREE
    frames.check()


@pytest.mark.parametrize(
    ("handle", "nbytes"),
    [(HANDLE + 1, 1), (0, 1), (HANDLE, 101), (HANDLE, 2**16 + 1), (HANDLE, 2**32 - 1)],
)
def test_lent_done_by_another_or_of_too_much_is_refused(
    frames: Frames, handle: int, nbytes: int
) -> None:
    frame = frames.lent(100)
    assert lib.ix_frame_done(frames.f, frame, handle, nbytes) == -lib.IX_EINVAL
    assert frames.meta[frame].lent_bytes == 100
    frames.check()


def test_done_of_what_is_not_lent_is_refused(frames: Frames) -> None:
    returned = frames.lent(10)
    assert lib.ix_frame_done(frames.f, returned, HANDLE, 10) == 0
    received = frames.received()
    for frame in (returned, received, POOL, POOL + ARENA, 2**32 - 1):
        for handle in (0, HANDLE):
            assert lib.ix_frame_done(frames.f, frame, handle, 0) == -lib.IX_EINVAL
            assert lib.ix_frame_done(frames.f, frame, handle, 1) == -lib.IX_EINVAL
    frames.check()


def test_lending_stops_at_the_reserve(frames: Frames) -> None:
    lent = 0
    while lib.ix_frame_may_lend(frames.f):
        frames.lent()
        lent += 1
    assert lent == frames.f.lend_max == POOL // 4


def test_lent_and_sent_frame_done_first_waits_for_its_completion(frames: Frames) -> None:
    # An echo: the payload goes out from where it came in, and is given back at once.
    frame = frames.lent(100)
    lib.ix_frame_tx_begin(frames.f, frame)
    assert lib.ix_frame_done(frames.f, frame, HANDLE, 100) == 0
    assert frames.owner(frame) == lib.IX_FRAME_TX
    frames.check()
    lib.ix_frame_tx_end(frames.f, frame)
    assert frames.owner(frame) == lib.IX_FRAME_FREE
    frames.check()


def test_lent_and_sent_frame_completed_first_stays_lent(frames: Frames) -> None:
    frame = frames.lent(100)
    lib.ix_frame_tx_begin(frames.f, frame)
    lib.ix_frame_tx_end(frames.f, frame)
    assert frames.owner(frame) == lib.IX_FRAME_APP
    assert lib.ix_frame_done(frames.f, frame, HANDLE, 100) == 0
    assert frames.owner(frame) == lib.IX_FRAME_FREE


def test_completion_of_the_last_of_several_names_the_flow(frames: Frames) -> None:
    frame = lib.ix_frame_alloc(frames.f)
    frames.meta[frame].flow = 42
    for _ in range(3):
        lib.ix_frame_tx_begin(frames.f, frame)
    assert [lib.ix_frame_tx_end(frames.f, frame) for _ in range(3)] == [lib.IX_NONE] * 2 + [42]
    assert frames.meta[frame].flow == lib.IX_NONE  # forgotten, now that it is free


def test_arena_frame_completed_stays_the_applications(frames: Frames) -> None:
    frames.meta[POOL].flow = 5
    for _ in range(2):
        lib.ix_frame_tx_begin(frames.f, POOL)
        assert lib.ix_frame_tx_end(frames.f, POOL) == 5
        assert frames.owner(POOL) == lib.IX_FRAME_APP
    frames.check()


@pytest.mark.parametrize("frame", [0, POOL, POOL + ARENA, 2**32 - 1])
def test_completion_of_what_was_not_sent_is_ignored(frames: Frames, frame: int) -> None:
    assert lib.ix_frame_tx_end(frames.f, frame) == lib.IX_NONE
    frames.check()


def test_tx_begin_of_free_fill_or_received_frame_dies(frames: Frames) -> None:
    fill = lib.ix_frame_take_fill(frames.f)
    received = frames.received()
    free = next(i for i in range(POOL) if frames.owner(i) == lib.IX_FRAME_FREE)
    for frame in (fill, received, free, POOL + ARENA):
        assert dies(lambda frame=frame: lib.ix_frame_tx_begin(frames.f, frame))


def test_frame_sent_from_many_flows_has_a_limit_that_can_be_asked_for(frames: Frames) -> None:
    begun = 0
    while lib.ix_frame_may_tx(frames.f, POOL):
        lib.ix_frame_tx_begin(frames.f, POOL)
        begun += 1
    assert begun == lib.IX_FRAME_TX_REFS_MAX
    assert dies(lambda: lib.ix_frame_tx_begin(frames.f, POOL))


def test_address_and_frame_are_each_others_inverse() -> None:
    frames = Frames(shift=12)
    assert lib.ix_frame_addr(frames.f, 5) == 5 * 4096
    assert lib.ix_frame_of(frames.f, 5 * 4096 + 4095) == 5


def breakage(frames: Frames, what: str) -> None:
    """Damages the records as a bug would."""
    meta: Any = frames.meta
    lent, free = frames.lent(), int(frames.f.free_head)
    if what == "lent to nobody":
        meta[lent].handle = 0
    elif what == "count off":
        frames.f.count[lib.IX_FRAME_TX] += 1
    elif what == "free list cut":
        meta[free].next = lib.IX_NONE
    elif what == "free list cycle":
        meta[meta[free].next].next = free
    elif what == "foreign on free list":
        meta[free].next = lent
    elif what == "free but sent":
        meta[free].tx_refs = 1
    elif what == "arena taken":
        meta[POOL].owner = lib.IX_FRAME_RX
    else:
        meta[free].owner = 9


@pytest.mark.parametrize(
    "what",
    [
        "lent to nobody",
        "count off",
        "free list cut",
        "free list cycle",
        "foreign on free list",
        "free but sent",
        "arena taken",
        "no such owner",
    ],
)
def test_check_finds_damage(frames: Frames, what: str) -> None:
    breakage(frames, what)
    assert lib.ix_frames_check(frames.f) != ffi.NULL
