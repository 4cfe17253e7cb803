"""shard/stats: what a shard shows of itself."""

from __future__ import annotations

from tests.unit.peer import COUNTERS, MSS, Peer, Stack, opened
from tests.unit.san import ffi, lib

MAGIC = int.from_bytes(b"ixnet1", "little")


def test_counters_have_names_and_meanings() -> None:
    assert len(COUNTERS) == len(set(COUNTERS)) == lib.IX_COUNTER_COUNT
    for i in range(lib.IX_COUNTER_COUNT):
        assert len(ffi.string(lib.ix_counter_meaning(i))) > 5
    for i in (lib.IX_COUNTER_COUNT, 2**32 - 1):
        assert lib.ix_counter_name(i) == ffi.NULL
        assert lib.ix_counter_meaning(i) == ffi.NULL


def test_names_stand_for_the_fields_of_the_struct() -> None:
    fields = [name for name, _ in ffi.typeof("struct ix_counters").fields]
    assert fields == COUNTERS
    stack = Stack()
    for i, name in enumerate(fields):
        setattr(stack.shard.counters, name, 1000 + i)
        assert stack.counter(name) == 1000 + i


def test_statistics_lie_at_the_start_of_the_memory() -> None:
    stack = Stack()
    stats = ffi.cast("struct ix_stats *", stack.memory)
    assert stats.magic == MAGIC
    assert stats.counter_count == lib.IX_COUNTER_COUNT
    assert stats == lib.ix_shard_stats(stack.shard)


def test_statistics_are_brought_up_to_date_every_1024_cycles() -> None:
    stack = Stack()
    stats = ffi.cast("struct ix_stats *", stack.memory)
    for _ in range(2):
        seen = stats.counters[COUNTERS.index("cycles")]
        start = stack.shard.counters.cycles
        for _ in range(1024 - start % 1024 - 1):
            lib.ix_shard_poll(stack.shard, stack.now_ns)
        assert stats.counters[COUNTERS.index("cycles")] == seen
        lib.ix_shard_poll(stack.shard, stack.now_ns)
        assert stats.counters[COUNTERS.index("cycles")] % 1024 == 0


def test_gauges_follow_connections_and_frames() -> None:
    stack = Stack(listen=80)
    a, b, c = (Peer(stack, sport=50000 + i) for i in range(3))
    ha = a.connect()
    b.send("S")
    stack.sent.clear()
    hc = c.connect()
    stack.close(hc)
    c.send("FA", ack=1)
    s = stack.stats
    assert (s.flows, s.flows_half_open, s.flows_time_wait) == (3, 1, 1)
    a.send("PA", b"data")
    s = stack.stats
    assert s.frames_app == 1
    owners = (s.frames_free, s.frames_fill, s.frames_rx, s.frames_app, s.frames_tx)
    assert sum(owners) == stack.pool
    assert s.now_ns == stack.now_ns
    assert s.timers_armed == 3  # delayed ACK, SYN-ACK, TIME_WAIT
    assert stack.state(ha) == "ESTABLISHED"


def test_connection_facts() -> None:
    stack, peer, handle = opened(window=30000, ts=True, rcvbuf_bytes=65535)
    stack.stream(handle, 0, 20000)
    peer.send("PA", b"12345", ack=0)
    info = stack.info(handle)
    assert info.mss == MSS - 12
    assert info.snd_wnd == 30000
    assert info.unacked_bytes == 10 * (MSS - 12)
    assert info.queued_bytes == 20000
    assert info.lent_bytes == 5
    assert info.cwnd_bytes == 10 * (MSS - 12)
    assert info.rcv_wnd == 65535 - 5
    assert info.retransmits == 0
    stack.sleep(ms=300)
    assert stack.info(handle).retransmits == 1
    assert stack.info(handle).rto_us > 400_000


def test_check_finds_what_is_wrong_in_any_module() -> None:
    for break_it in ("frames", "wheel", "tcp"):
        stack = Stack(listen=80)
        Peer(stack).connect()
        assert lib.ix_shard_check(stack.shard) == ffi.NULL
        if break_it == "frames":
            stack.shard.frames.count[0] += 1
        elif break_it == "wheel":
            stack.shard.wheel.armed += 1
        else:
            stack.shard.tcp.in_use += 1
        wrong = lib.ix_shard_check(stack.shard)
        assert wrong != ffi.NULL and ffi.string(wrong).decode().startswith(break_it[:4])
