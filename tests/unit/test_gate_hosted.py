"""gate/gate_hosted: the control plane's side of a gate: its clock, and the thread that kicks."""

from __future__ import annotations

import socket
import time
from typing import Any

from tests.unit.peer import Stack, pages
from tests.unit.san import ffi, lib


def make(by_word: bool) -> tuple[Stack, Any, Any, Any]:
    stack = Stack()
    rings = pages(1 << 16)
    memory = pages(1 << 13)
    assert lib.ix_gate_host_bytes() <= 1 << 13
    rings_socket = ffi.cast("struct ix_xsk_socket *", rings)
    host = lib.ix_gate_host_make(memory, int(by_word))
    assert lib.ix_gate_host_add(host, stack.shard, rings_socket) == 0
    return stack, host, ffi.cast("struct ix_gate *", host), (rings, memory)


def monotonic_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)


def test_a_gates_clock_agrees_with_linux() -> None:
    _stack, host, gate, _kept = make(by_word=False)
    for _ in range(4):
        before = monotonic_ns()
        now = int(lib.ix_gate_now(gate))
        after = monotonic_ns()
        assert before - 100_000 <= now <= after + 100_000
        time.sleep(0.6)
        lib.ix_gate_host_set_clock(host)
    assert gate.clock.sequence % 2 == 0


def test_calls_are_counted_for_who_asks() -> None:
    _stack, host, gate, _kept = make(by_word=False)
    lib.ix_gate_call(gate, lib.IX_GATE_STATS, [0] * 5)
    lib.ix_gate_call(gate, lib.IX_GATE_STATS, [9, 0, 0, 0, 0])
    assert (lib.ix_gate_host_calls(host), lib.ix_gate_host_refused(host)) == (2, 1)
    assert gate.entry[0].kick_word == ffi.NULL


def test_a_gate_takes_several_shards_each_with_a_word_of_its_own() -> None:
    stack, host, gate, kept = make(by_word=True)
    rings_socket = ffi.cast("struct ix_xsk_socket *", kept[0])
    for number in range(1, lib.IX_GATE_SHARDS):
        assert lib.ix_gate_host_add(host, stack.shard, rings_socket) == number
    assert lib.ix_gate_host_add(host, stack.shard, rings_socket) == -lib.IX_ENOSPC
    words = {int(ffi.cast("uintptr_t", gate.entry[i].kick_word)) for i in range(gate.shard_count)}
    assert len(words) == lib.IX_GATE_SHARDS
    # Ring 0 sets one while the kicker takes another: no two in one line.
    assert all(word % 64 == 0 for word in words)
    for number in range(lib.IX_GATE_SHARDS):
        assert lib.ix_gate_call(gate, lib.IX_GATE_STATS, [number, 0, 0, 0, 0]) == 0


def test_the_kicker_sends_what_a_gates_word_asks_for() -> None:
    _stack, host, gate, _kept = make(by_word=True)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    kicker = lib.ix_kicker_start(2, -1)
    assert kicker != ffi.NULL
    try:
        lib.ix_kicker_set(kicker, 1, host, 0, theirs.fileno())
        word = gate.entry[0].kick_word
        for _ in range(3):
            word[0] = lib.IX_XSK_KICK_TX
            ours.settimeout(60)
            assert ours.recv(10) == b""
        until = time.monotonic() + 60
        while lib.ix_kicker_calls(kicker, 1) < 3 and time.monotonic() < until:
            time.sleep(0.001)
        assert lib.ix_kicker_calls(kicker, 1) == 3
        ours.send(b"x")
        word[0] = lib.IX_XSK_KICK_RX
        while lib.ix_kicker_calls(kicker, 1) < 4 and time.monotonic() < until:
            time.sleep(0.001)
        # A place that was given up is not looked at any more.
        lib.ix_kicker_set(kicker, 1, ffi.NULL, 0, -1)
        word[0] = lib.IX_XSK_KICK_TX
        time.sleep(0.05)
        assert word[0] == lib.IX_XSK_KICK_TX
        assert lib.ix_kicker_calls(kicker, 0) == 0
    finally:
        lib.ix_kicker_stop(kicker)
        ours.close()
        theirs.close()
