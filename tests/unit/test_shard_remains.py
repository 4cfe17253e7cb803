"""shard/remains: what a dead shard's memory tells of its connections, whatever is left of it."""

from __future__ import annotations

import random
from typing import Any

from tests.unit.peer import Peer, Stack
from tests.unit.san import ffi, lib


def remains(stack: Stack, at_once: int = 8) -> list[Any]:
    """All of them, read in pieces."""
    at = ffi.new("uint32_t *")
    found: list[Any] = []
    while True:
        out = ffi.new("struct ix_remains[]", at_once)
        n = lib.ix_shard_remains(stack.memory, ffi.addressof(stack.shard.cfg), at, out, at_once)
        found += [out[i] for i in range(n)]
        if n < at_once:
            return found


def test_connections_whose_peer_waits_are_told() -> None:
    stack = Stack(listen=80)
    open_, half, closing, timed = (Peer(stack, sport=50000 + i) for i in range(4))
    handle = open_.connect()
    half.send("S")
    stack.sent.clear()
    stack.close(closing.connect())
    stack.poll()
    stack.sent.clear()
    stack.close(timed.connect())
    timed.send("FA", ack=1)
    assert stack.stats.flows_time_wait == 1
    found = {int(r.key.peer_port): r for r in remains(stack)}
    assert sorted(found) == [50000, 50001, 50002], "in TIME_WAIT the peer has closed"
    tcb, told = stack.tcb(handle), found[50000]
    assert told.key.local_port == 80
    assert told.key.peer.v4 == tcb.key.peer.v4 and told.key.local.v4 == tcb.key.local.v4
    assert (told.snd_una, told.snd_max, told.rcv_nxt) == (tcb.snd_una, tcb.snd_max, tcb.rcv_nxt)


def test_data_under_way_gives_both_ends() -> None:
    stack = Stack(listen=80)
    peer = Peer(stack)
    handle = peer.connect()
    assert stack.sendv(handle, bytes(100)) == 100
    stack.poll()
    (told,) = remains(stack)
    assert (told.snd_max - told.snd_una) % 2**32 == 100


def test_a_shard_without_connections_leaves_none() -> None:
    assert remains(Stack(listen=80)) == []


def test_they_are_read_in_pieces_of_any_size() -> None:
    stack = Stack(listen=80)
    for i in range(10):
        Peer(stack, sport=50000 + i).connect()
    ports = [int(r.key.peer_port) for r in remains(stack, 64)]
    assert len(ports) == 10
    for at_once in (1, 2, 5, 10, 11):
        assert [int(r.key.peer_port) for r in remains(stack, at_once)] == ports


def test_memory_that_was_overwritten_is_only_read() -> None:
    """Under the sanitizers: nothing in it is followed, and nothing outside of it is read."""
    stack = Stack(listen=80)
    for i in range(8):
        Peer(stack, sport=50000 + i).connect()
    cfg = ffi.new("struct ix_config *", stack.shard.cfg)
    memory = ffi.buffer(stack.memory)
    dice = random.Random(1)
    for _ in range(20):
        memory[:] = dice.randbytes(len(memory))
        at = ffi.new("uint32_t *")
        out = ffi.new("struct ix_remains[]", int(cfg.max_flows))
        n = lib.ix_shard_remains(stack.memory, cfg, at, out, len(out))
        assert 0 <= n <= cfg.max_flows and at[0] == cfg.max_flows
        assert all(out[i].key.family in (4, 6) and out[i].key.peer_port for i in range(n))
