"""native/evbuffer.c: byte queues against bytearrays, and no frame lost or given back twice."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.evmem import SEGMENT, Memory, content, kinds
from tests.unit.san import ffi, lib

LENT, ARENA, HEAP = lib.IX_EVEXTENT_LENT, lib.IX_EVEXTENT_ARENA, lib.IX_EVEXTENT_HEAP
EBADF = 9
# Sizes around what matters: nothing, one, a segment, a chunk of heap, several of them.
SIZES = st.one_of(
    st.integers(0, 40),
    st.sampled_from([SEGMENT - 1, SEGMENT, SEGMENT + 1, 4080, 4081, 9000]),
)


def pattern(start: int, size: int) -> bytes:
    """Bytes that tell where they belong."""
    return bytes((start + i) * 37 % 251 for i in range(size))


class Pair:
    """C buffers and the bytearrays that they must equal: an owner's input and output, two more."""

    def __init__(self) -> None:
        self.memory = Memory(frames=256, arena_frames=6)
        self.owner = self.memory.owner()
        self.other = self.memory.owner()
        self.c = [
            self.memory.buffer(self.owner),
            self.memory.buffer(self.owner, sends=True),
            self.memory.buffer(),
            self.memory.buffer(self.other, sends=True),
        ]
        self.model = [bytearray() for _ in self.c]
        self.written = 0

    def fresh(self, size: int) -> bytes:
        self.written += size
        return pattern(self.written - size, size)

    def check(self) -> None:
        self.memory.take_back()
        self.memory.check()
        for b, model in zip(self.c, self.model, strict=True):
            assert content(b) == bytes(model)

    # ---- what can be done to buffer i, as hypothesis calls it with sizes and another buffer

    def add(self, i: int, n: int, _: int, __: int) -> None:
        data = self.fresh(n)
        assert lib.ix_evbuffer_add(self.c[i], data, n) == 0
        self.model[i] += data

    def prepend(self, i: int, n: int, _: int, __: int) -> None:
        data = self.fresh(n)
        assert lib.ix_evbuffer_prepend(self.c[i], data, n) == 0
        self.model[i][:0] = data

    def receive(self, i: int, n: int, _: int, __: int) -> None:
        n = min(max(n, 1), SEGMENT)
        if not self.memory.free:
            return
        data = self.fresh(n)
        self.memory.add_lent(self.c[i], data, handle=self.written)
        self.model[i] += data

    def move_all(self, i: int, _: int, __: int, j: int) -> None:
        assert lib.ix_evbuffer_add_buffer(self.c[j], self.c[i]) == 0
        if i != j:
            self.model[j] += self.model[i]
            self.model[i].clear()

    def move(self, i: int, n: int, _: int, j: int) -> None:
        moved = lib.ix_evbuffer_remove_buffer(self.c[i], self.c[j], n)
        assert moved == min(n, len(self.model[i]))
        if i != j:
            self.model[j] += self.model[i][:moved]
            del self.model[i][:moved]

    def drain(self, i: int, n: int, _: int, __: int) -> None:
        assert lib.ix_evbuffer_drain(self.c[i], n) == min(n, len(self.model[i]))
        del self.model[i][:n]

    def remove(self, i: int, n: int, _: int, __: int) -> None:
        out = ffi.new("uint8_t[]", n + 1)
        got = lib.ix_evbuffer_remove(self.c[i], out, n)
        assert bytes(ffi.buffer(out, got)) == bytes(self.model[i][:n])
        del self.model[i][:n]

    def take(self, i: int, n: int, _: int, __: int) -> None:
        data = lib.ix_evbuffer_take(self.c[i], n)
        if n > len(self.model[i]):
            assert not data
            return
        assert ffi.unpack(data, n) == bytes(self.model[i][:n])
        del self.model[i][:n]

    def pullup(self, i: int, n: int, _: int, __: int) -> None:
        data = lib.ix_evbuffer_pullup(self.c[i], n)
        if n > len(self.model[i]):
            assert not data
        else:
            assert ffi.unpack(data, n) == bytes(self.model[i][:n])

    def pullup_all(self, i: int, _: int, __: int, ___: int) -> None:
        data = lib.ix_evbuffer_pullup(self.c[i], -1)
        assert ffi.unpack(data, len(self.model[i])) == bytes(self.model[i])

    def copyout(self, i: int, n: int, m: int, _: int) -> None:
        out = ffi.new("uint8_t[]", n + 1)
        got = lib.ix_evbuffer_copyout(self.c[i], m, out, n)
        assert bytes(ffi.buffer(out, got)) == bytes(self.model[i][m : m + n])

    def peek(self, i: int, n: int, _: int, __: int) -> None:
        most = n % 4
        vectors = ffi.new("struct ix_evvec[]", most + 1)
        count = lib.ix_evbuffer_peek(self.c[i], vectors, most)
        seen = b"".join(bytes(ffi.buffer(v.data, v.bytes)) for v in vectors[0 : min(count, most)])
        assert bytes(self.model[i]).startswith(seen)
        assert count > most or seen == bytes(self.model[i])

    def search(self, i: int, n: int, m: int, _: int) -> None:
        what = bytes(self.model[i][n : n + 1 + m % 5]) or b"?"
        found = lib.ix_evbuffer_search(self.c[i], what, len(what), m)
        assert found == self.model[i].find(what, m)

    def send(self, i: int, n: int, _: int, __: int) -> None:
        """What a flush does: the first extent to the dataplane, or a part of it."""
        b = self.c[i]
        if not b.sends or not b.head:
            return
        at = ffi.addressof(b, "head")
        e = lib.ix_evbuffer_sendable(b, at)
        if not e:
            assert not self.memory.pool.arena_free_count or b.owner.arena_frames >= 2
            return
        assert e.kind != HEAP and e == b.head
        taken = min(n, e.bytes)
        if taken:
            flight = self.memory.buffer(b.owner)
            assert lib.ix_evbuffer_shift(b, flight, taken) == 0
            assert content(flight) == bytes(self.model[i][:taken])
            del self.model[i][:taken]
            lib.ix_evbuffer_clear(flight)
            self.memory.buffers.remove(flight)


STEPS = [
    "add", "prepend", "receive", "move_all", "move", "drain", "remove", "take", "pullup",
    "pullup_all", "copyout", "peek", "search", "send",
]  # fmt: skip


@settings(max_examples=250)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(STEPS), st.integers(0, 3), SIZES, st.integers(0, 60), st.integers(0, 3)
        ),
        max_size=40,
    )
)
def test_buffers_agree_with_bytearrays(steps: list[tuple[str, int, int, int, int]]) -> None:
    pair = Pair()
    for name, i, n, m, j in steps:
        getattr(pair, name)(i, n, m, j)
        pair.check()
    pair.memory.end()
    assert (pair.owner.arena_frames, pair.other.arena_frames) == (0, 0)


def filled(*parts: bytes) -> tuple[Memory, Any]:
    """A buffer that holds each part in a frame of its own."""
    memory = Memory()
    b = memory.buffer()
    for part in parts:
        memory.add_lent(b, part)
    return memory, b


def test_received_bytes_move_to_output_without_copy() -> None:
    memory, b = filled(b"abc", b"def")
    owner = memory.owner()
    output = memory.buffer(owner, sends=True)
    before = [b.head.data, b.head.next.data]
    assert lib.ix_evbuffer_add_buffer(output, b) == 0
    assert [output.head.data, output.head.next.data] == before
    assert kinds(output) == [LENT, LENT]
    assert memory.take_back() == 0
    memory.end()


def test_changes_of_an_owners_buffer_queue_the_owner() -> None:
    memory = Memory()
    owner = memory.owner()
    b, plain = memory.buffer(owner), memory.buffer()
    changes = [
        lambda: lib.ix_evbuffer_add(b, b"abcdefgh", 8),
        lambda: lib.ix_evbuffer_prepend(b, b"x", 1),
        lambda: lib.ix_evbuffer_drain(b, 1),
        lambda: lib.ix_evbuffer_take(b, 1),
        lambda: lib.ix_evbuffer_remove_buffer(b, plain, 1),
        lambda: lib.ix_evbuffer_add_buffer(b, plain),
        lambda: lib.ix_evbuffer_remove(b, ffi.new("char[8]"), 2),
    ]
    for change in changes:
        change()
        assert lib.ix_evpool_unqueue(memory.pool) == owner
    nothing = [
        lambda: lib.ix_evbuffer_add(b, b"", 0),
        lambda: lib.ix_evbuffer_drain(b, 0),
        lambda: lib.ix_evbuffer_add_buffer(b, plain),
        lambda: lib.ix_evbuffer_pullup(b, 1),
        lambda: lib.ix_evbuffer_add(plain, b"x", 1),
    ]
    for change in nothing:
        change()
        assert not lib.ix_evpool_unqueue(memory.pool)
    memory.end()


def test_small_writes_share_an_arena_frame() -> None:
    memory = Memory()
    b = memory.buffer(memory.owner(), sends=True)
    for i in range(20):
        lib.ix_evbuffer_add(b, pattern(i * 70, 70), 70)
    assert kinds(b) == [ARENA]
    lib.ix_evbuffer_add(b, pattern(1400, 100), 100)
    assert kinds(b) == [ARENA, ARENA]
    assert b.head.bytes == SEGMENT
    assert content(b) == pattern(0, 1500)
    memory.end()


def test_write_beyond_the_arena_overflows_to_the_heap_and_loses_nothing() -> None:
    memory = Memory(arena_frames=4)
    owner = memory.owner()
    b = memory.buffer(owner, sends=True)
    data = pattern(0, 100_000)
    assert lib.ix_evbuffer_add(b, data, len(data)) == 0
    assert kinds(b) == [ARENA, ARENA, HEAP]
    assert content(b) == data
    sent = b""
    while b.bytes:
        e = lib.ix_evbuffer_sendable(b, ffi.addressof(b, "head"))
        assert e and e.kind == ARENA
        sent += bytes(ffi.buffer(e.data, e.bytes))
        flight = memory.buffer(owner)
        lib.ix_evbuffer_shift(b, flight, e.bytes)
        lib.ix_evbuffer_clear(flight)
    assert sent == data
    memory.end()


def test_sendable_packs_small_heap_extents_into_one_frame() -> None:
    memory = Memory(arena_frames=4)
    owner = memory.owner()
    b = memory.buffer(owner, sends=True)
    for i in range(5):
        plain = memory.buffer()
        lib.ix_evbuffer_add(plain, pattern(i * 10, 10), 10)
        lib.ix_evbuffer_add_buffer(b, plain)
    assert kinds(b) == [HEAP] * 5
    e = lib.ix_evbuffer_sendable(b, ffi.addressof(b, "head"))
    assert (e.kind, e.bytes, kinds(b)) == (ARENA, 50, [ARENA])
    assert content(b) == pattern(0, 50)
    memory.check()
    memory.end()


def test_arena_bytes_leave_their_owner_as_a_copy() -> None:
    memory = Memory()
    owner = memory.owner()
    b, plain = memory.buffer(owner, sends=True), memory.buffer()
    lib.ix_evbuffer_add(b, b"hello", 5)
    assert lib.ix_evbuffer_add_buffer(plain, b) == 0
    assert (kinds(plain), content(plain), owner.arena_frames) == ([HEAP], b"hello", 0)
    memory.end()


def test_bytes_of_another_pool_are_copied_and_given_back_there() -> None:
    (one, a), two = filled(b"abc", b"def"), Memory()
    b = two.buffer()
    assert lib.ix_evbuffer_add_buffer(b, a) == 0
    assert one.take_back() == 6
    assert (content(b), kinds(b), a.bytes) == (b"abcdef", [HEAP], 0)
    one.end()
    two.end()


def test_pullup_copies_only_what_is_asked_for() -> None:
    memory, b = filled(b"abc", b"def", b"ghi")
    assert ffi.unpack(lib.ix_evbuffer_pullup(b, 2), 2) == b"ab"
    assert kinds(b) == [LENT, LENT, LENT]
    assert ffi.unpack(lib.ix_evbuffer_pullup(b, 4), 4) == b"abcd"
    assert kinds(b) == [HEAP, LENT, LENT]
    assert memory.take_back() == 4
    assert content(b) == b"abcdefghi"
    assert lib.ix_evbuffer_pullup(b, 0)
    assert not lib.ix_evbuffer_pullup(b, 10)
    memory.end()


def test_pullup_of_an_empty_buffer_is_not_null() -> None:
    memory = Memory()
    assert lib.ix_evbuffer_pullup(memory.buffer(), -1)
    assert not lib.ix_evbuffer_pullup(memory.buffer(), 1)
    memory.end()


def test_taken_bytes_stay_lent_until_the_next_take() -> None:
    memory, b = filled(b"abc", b"def")
    data = lib.ix_evbuffer_take(b, 3)
    assert memory.take_back() == 0
    assert ffi.unpack(data, 3) == b"abc"
    lib.ix_evbuffer_take(b, 1)
    assert memory.take_back() == 3
    lib.ix_evpool_drop_taken(memory.pool)
    assert memory.take_back() == 1
    memory.end()


def test_closed_buffer_refuses_and_keeps_the_source() -> None:
    memory, b = filled(b"abc")
    closed = memory.buffer()
    closed.closed = 1
    assert lib.ix_evbuffer_add(closed, b"x", 1) == -EBADF
    assert lib.ix_evbuffer_prepend(closed, b"x", 1) == -EBADF
    assert lib.ix_evbuffer_add_buffer(closed, b) == -EBADF
    assert lib.ix_evbuffer_remove_buffer(b, closed, 1) == -EBADF
    assert (content(b), content(closed)) == (b"abc", b"")
    memory.end()


def test_discarding_buffer_takes_and_keeps_nothing() -> None:
    memory, b = filled(b"abc")
    sink = memory.buffer()
    sink.discards = 1
    assert lib.ix_evbuffer_add(sink, b"x", 1) == 0
    assert lib.ix_evbuffer_prepend(sink, b"x", 1) == 0
    assert lib.ix_evbuffer_add_buffer(sink, b) == 0
    assert (b.bytes, sink.bytes) == (0, 0)
    assert memory.take_back() == 3
    memory.end()


@pytest.mark.parametrize("what", [b"x", b"xy", b"wxyz", b"yz", b"\0"])
def test_search_across_extents(what: bytes) -> None:
    memory, b = filled(b"xxw", b"x", b"yz", b"xy\0z")
    text = b"xxwxyzxy\0z"
    for start in range(len(text) + 2):
        found = lib.ix_evbuffer_search(b, what, len(what), start)
        assert found == text.find(what, start), start
    assert lib.ix_evbuffer_search(b, b"", 0, 0) == -1
    memory.end()


STYLES = {
    "any": lib.IX_EOL_ANY,
    "crlf": lib.IX_EOL_CRLF,
    "strict": lib.IX_EOL_CRLF_STRICT,
    "lf": lib.IX_EOL_LF,
    "nul": lib.IX_EOL_NUL,
}


@pytest.mark.parametrize(
    ("style", "text", "at", "size"),
    [
        ("any", b"ab\r\n\r\ncd", 2, 4),
        ("any", b"ab\n\rcd", 2, 2),
        ("any", b"ab\r", 2, 1),
        ("any", b"abc", -1, 1),
        ("crlf", b"ab\r\ncd", 2, 2),
        ("crlf", b"ab\ncd\r\n", 2, 1),
        ("crlf", b"\nab", 0, 1),
        ("crlf", b"ab\rcd", -1, 1),
        ("strict", b"a\nb\rc\r\nd", 5, 2),
        ("strict", b"a\nb\rc\r", -1, 2),
        ("lf", b"ab\r\ncd", 3, 1),
        ("nul", b"ab\0cd", 2, 1),
    ],
)
def test_line_ends_wherever_the_extents_are_cut(
    style: str, text: bytes, at: int, size: int
) -> None:
    for cut in range(1, len(text) + 1):
        memory, b = filled(*(p for p in (text[:cut], text[cut:]) if p))
        length = ffi.new("uint32_t *")
        assert lib.ix_evbuffer_search_eol(b, STYLES[style], length) == at
        if at >= 0:
            assert length[0] == size
        memory.end()
