"""What the application shares with the shard may hold anything, and change at any time."""

from __future__ import annotations

import random
import time

import pytest

from tests.unit.peer import MS, Peer, Stack
from tests.unit.san import ffi, lib

CALL_BYTES = int(ffi.sizeof("struct ix_call"))


def words_worth_trying(stack: Stack, handles: list[int]) -> list[int]:
    """Parts of calls that mean something: operations with flags, handles, addresses, lengths."""
    operations = [op | 4 << 8 | flags << 16 for op in range(13) for flags in (0, 1)]
    frames = stack.cfg.pool_frames + stack.cfg.arena_frames
    places = [frame << 11 | offset for frame in range(0, frames, 97) for offset in (0, 128, 320)]
    lengths = [0, 1, 64, 1448, 4096, 2**31, 2**32 - 1, 2**63]
    return operations + handles + places + lengths


def connections(stack: Stack, count: int) -> tuple[list[Peer], list[int]]:
    peers = [Peer(stack, sport=5000 + i) for i in range(count)]
    return peers, [peer.connect() for peer in peers]


def test_what_is_written_over_struct_ix_io_means_nothing_to_the_shard() -> None:
    stack = Stack()
    calls, events = stack.io.calls, stack.io.events
    io = ffi.cast("uint8_t *", stack.io)
    ffi.memmove(io, b"\xff" * int(ffi.sizeof("struct ix_io")), int(ffi.sizeof("struct ix_io")))
    stack.io.n_calls = 1
    ffi.memmove(calls, bytes(CALL_BYTES), CALL_BYTES)
    calls[0].op, calls[0].value = lib.IX_CALL_TIMER_SET, MS
    assert lib.ix_shard_poll(stack.shard, stack.now_ns) == 0
    assert calls[0].result == 0 and calls[0].handle
    stack.now_ns += 2 * MS
    assert lib.ix_shard_poll(stack.shard, stack.now_ns) == 1
    assert events[0].type == lib.IX_EV_TIMER
    assert lib.ix_shard_check(stack.shard) == ffi.NULL


def test_events_and_calls_are_told_where_the_application_has_them() -> None:
    here = Stack()
    memory = int(ffi.cast("uintptr_t", here.io))
    there = Stack(app_io=memory + 2**40, app_umem=2**41)
    offset = int(ffi.cast("uintptr_t", here.io.events)) - memory
    assert int(ffi.cast("uintptr_t", there.io.events)) == memory + 2**40 + offset
    assert int(ffi.cast("uintptr_t", there.io.umem)) == 2**41
    assert lib.ix_shard_shared_bytes(there.cfg) % 4096 == 0
    end = int(ffi.cast("uintptr_t", there.memory)) + lib.ix_shard_bytes(there.cfg)
    assert int(ffi.cast("uintptr_t", there.io)) + lib.ix_shard_shared_bytes(there.cfg) == end


@pytest.mark.parametrize("seed", range(4))
def test_forged_calls_harm_only_their_own_connections(seed: int) -> None:
    """Records of parts that mean something, in any combination: an answer each, a sound shard."""
    rng = random.Random(seed)
    stack = Stack(listen=80)
    peers, handles = connections(stack, 6)
    words = words_worth_trying(stack, handles)
    honest, handle = peers[5], handles[5]
    words = [word for word in words if word != handle]
    operations = words[:26]
    for turn in range(400):
        for _ in range(8):
            call = stack.queue("NONE")
            record = [rng.choice(operations), *(rng.choice(words) for _ in range(7))]
            ffi.memmove(
                ffi.addressof(call), b"".join(w.to_bytes(8, "little") for w in record), CALL_BYTES
            )
        if turn % 16 == 0:
            peers[rng.randrange(5)].send("PA", b"y" * 100)
        stack.poll(ms=1)
        stack.events.clear()
        stack.sent.clear()
    assert stack.counter("call_errors") > 1000
    assert stack.state(handle) == "ESTABLISHED"
    honest.send("PA", b"all is well")
    assert stack.received() == b"all is well"


@pytest.mark.parametrize("seed", range(3))
def test_records_that_change_while_they_are_read(seed: int) -> None:
    """A second thread writes all over the shared part; the sanitizers and the shard's own check say
    that nothing but answers came of it."""
    stack = Stack(listen=80)
    _, handles = connections(stack, 6)
    words = words_worth_trying(stack, handles)
    shared = lib.ix_shard_shared_bytes(stack.cfg)
    racer = lib.ix_racer_start(stack.io, shared, words, len(words), seed + 1)
    until = time.monotonic() + 1.0
    cycles = 0
    while time.monotonic() < until or cycles <= 100:
        stack.now_ns += 100_000
        stack.io.n_calls = stack.cfg.max_calls
        stack.wire.advance(stack.now_ns)
        events = lib.ix_shard_poll(stack.shard, stack.now_ns)
        assert 0 <= events <= stack.cfg.max_events
        wrong = lib.ix_shard_check(stack.shard)
        assert wrong == ffi.NULL, ffi.string(wrong)
        cycles += 1
    assert lib.ix_racer_stop(racer) > 1000 and cycles > 100
    assert stack.counter("calls") > cycles and stack.counter("call_errors") > 0
