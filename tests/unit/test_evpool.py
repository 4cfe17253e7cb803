"""native/evpool.c: extents, the send arena, what is given back."""

from __future__ import annotations

from tests.unit.evmem import FRAME_BYTES, FRAME_SHIFT, HEADROOM, SEGMENT, Memory
from tests.unit.san import ffi, lib


def test_arena_extent_starts_behind_the_headroom_of_a_fresh_frame() -> None:
    memory = Memory(arena_frames=2)
    owner = memory.owner()
    extents = [lib.ix_evextent_arena(memory.pool, owner) for _ in range(2)]
    addresses = [int(e.data - memory.umem) for e in extents]
    assert {a % FRAME_BYTES for a in addresses} == {HEADROOM}
    assert {a >> FRAME_SHIFT for a in addresses} == {64, 65}
    assert owner.arena_frames == 2
    assert not lib.ix_evextent_arena(memory.pool, owner)
    for e in extents:
        lib.ix_evextent_release(memory.pool, e)
    assert owner.arena_frames == 0
    memory.end()


def test_arena_half_empty_gives_each_owner_a_few_frames_only() -> None:
    memory = Memory(arena_frames=16)
    owners = [memory.owner() for _ in range(5)]
    extents = []

    def take_all(owner: object) -> int:
        count = 0
        while e := lib.ix_evextent_arena(memory.pool, owner):
            extents.append(e)
            count += 1
        return count

    assert take_all(owners[0]) == 8
    assert [take_all(o) for o in owners[1:]] == [2, 2, 2, 2]
    assert take_all(memory.owner()) == 0
    memory.check()
    for e in extents:
        lib.ix_evextent_release(memory.pool, e)
    memory.end()


def test_arena_frame_is_free_when_its_last_extent_is() -> None:
    memory = Memory()
    owner = memory.owner()
    e = lib.ix_evextent_arena(memory.pool, owner)
    lib.ix_evextent_append(memory.pool, e, b"abcdef", 6)
    rest = lib.ix_evextent_split(memory.pool, e, 2)
    assert (bytes(ffi.buffer(e.data, e.bytes)), bytes(ffi.buffer(rest.data, rest.bytes))) == (
        b"ab",
        b"cdef",
    )
    lib.ix_evextent_release(memory.pool, e)
    assert memory.pool.arena_free_count == 7
    memory.check()
    lib.ix_evextent_release(memory.pool, rest)
    assert memory.pool.arena_free_count == 8
    memory.end()


def test_only_the_last_extent_of_a_frame_grows() -> None:
    memory = Memory()
    e = lib.ix_evextent_arena(memory.pool, memory.owner())
    assert lib.ix_evextent_room(memory.pool, e) == SEGMENT
    lib.ix_evextent_append(memory.pool, e, b"abcd", 4)
    rest = lib.ix_evextent_split(memory.pool, e, 1)
    assert lib.ix_evextent_room(memory.pool, e) == 0
    assert lib.ix_evextent_room(memory.pool, rest) == SEGMENT - 4
    lib.ix_evextent_release(memory.pool, e)
    lib.ix_evextent_release(memory.pool, rest)
    memory.end()


def test_lent_extent_takes_no_more() -> None:
    memory = Memory()
    e = lib.ix_evextent_lent(memory.pool, memory.lend(b"abc"), 3, 1)
    assert lib.ix_evextent_room(memory.pool, e) == 0
    assert lib.ix_evextent_put_front(e, b"x", 1) == 0
    lib.ix_evextent_release(memory.pool, e)
    memory.end()


def test_trimmed_lent_extent_gives_back_what_was_trimmed() -> None:
    memory = Memory()
    e = lib.ix_evextent_lent(memory.pool, memory.lend(b"abcdef", handle=9), 6, 9)
    assert lib.ix_evextent_trim(memory.pool, e, 4) == 0
    assert memory.take_back() == 4
    memory.check()
    lib.ix_evextent_release(memory.pool, e)
    assert memory.take_back() == 2
    memory.end()


def test_released_extents_are_given_back_in_order() -> None:
    memory = Memory()
    handle, addr = ffi.new("uint64_t *"), ffi.new("uint64_t *")
    size = ffi.new("uint32_t *")
    for n in range(3):
        memory.lent[n] = (n, 1)
        e = lib.ix_evextent_lent(memory.pool, memory.umem + n * FRAME_BYTES, 1, n)
        lib.ix_evextent_release(memory.pool, e)
    for n in range(3):
        assert lib.ix_evpool_pop_done(memory.pool, handle, addr, size)
        assert (handle[0], addr[0], size[0]) == (n, n * FRAME_BYTES, 1)
        del memory.lent[n]
    assert not lib.ix_evpool_pop_done(memory.pool, handle, addr, size)
    memory.end()


def test_heap_extent_has_room_in_front_and_behind() -> None:
    memory = Memory()
    e = lib.ix_evextent_heap(memory.pool, 10000, 8)
    assert lib.ix_evextent_room(memory.pool, e) >= 10000
    lib.ix_evextent_append(memory.pool, e, b"tail", 4)
    assert lib.ix_evextent_put_front(e, b"0123456789", 10) == 8
    assert bytes(ffi.buffer(e.data, e.bytes)) == b"23456789tail"
    assert lib.ix_evextent_put_front(e, b"x", 1) == 0
    lib.ix_evextent_release(memory.pool, e)
    memory.end()


def test_owner_is_queued_once_and_in_order() -> None:
    memory = Memory()
    owners = [memory.owner() for _ in range(3)]
    for i in (0, 1, 0, 2, 1):
        lib.ix_evpool_queue(memory.pool, owners[i])
    assert [lib.ix_evpool_unqueue(memory.pool) for _ in range(4)] == [*owners, ffi.NULL]
    lib.ix_evpool_queue(memory.pool, owners[1])
    assert lib.ix_evpool_unqueue(memory.pool) == owners[1]
    memory.end()


def test_pool_outlives_its_loop_while_a_buffer_holds_it() -> None:
    memory = Memory()
    b = lib.ix_evbuffer_new(memory.pool)
    assert lib.ix_evbuffer_add(b, b"abc", 3) == 0
    lib.ix_evpool_unref(memory.pool)
    assert b.bytes == 3
    lib.ix_evbuffer_free(b)
    lib.ix_evbuffer_free(ffi.NULL)
