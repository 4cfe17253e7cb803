"""shard/shard: the cycle."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.peer import MS, START_NS, TICK_NS, Peer, Stack, ethernet, opened, stream
from tests.unit.san import ffi, lib
from tests.unit.simwire import FRAME_BYTES

NEVER = 2**64 - 1


def noise(n: int) -> list[bytes]:
    """Frames that the stack drops after a look."""
    return [ethernet(b"", kind=0x88CC)] * n


# ---- batches --------------------------------------------------------------------------


def test_cycle_takes_at_most_a_batch_and_never_waits_for_one() -> None:
    stack = Stack(batch=8)
    stack.put(*noise(20))
    before = list(stack.stats.batch_hist)
    for _ in range(4):
        stack.poll()
    after = list(stack.stats.batch_hist)
    grown = {n: after[n] - before[n] for n in range(257) if after[n] != before[n]}
    assert grown == {0: 1, 4: 1, 8: 2}


@pytest.mark.parametrize(
    "batch, result", [(0, -22), (1, 0), (256, 0), (257, -22), (2**32 - 1, -22)]
)
def test_batch_is_set_within_bounds(batch: int, result: int) -> None:
    stack = Stack(batch=8, fill_target=400)
    assert lib.ix_shard_set_batch(stack.shard, batch) == result
    stack.put(*noise(300))
    stack.poll()
    taken = batch if result == 0 else 8
    assert stack.stats.batch_hist[taken] >= 1


def crowd(stack: Stack, others: int) -> None:
    """Half-open connections. A shard that has many fetches ahead what their frames need."""
    for port in range(1000, 1000 + others):
        Peer(stack, sport=port).put("S")
        if port % 32 == 0:
            stack.settle()
    stack.settle()
    assert stack.shard.tcp.in_use == others + 1


@pytest.mark.parametrize("others", [0, 512])
def test_batch_of_any_size_gives_the_same_stream(others: int) -> None:
    for batch in (1, 3, 64, 256):
        stack, peer, handle = opened(batch=batch, fill_target=300, max_flows=2048, backlog=600)
        crowd(stack, others)
        for i in range(150):
            peer.put("A", stream(10 * i, 10))
        stack.settle(200)
        assert b"".join(e.data for e in stack.events) == stream(0, 1500)
        assert stack.state(handle) == "ESTABLISHED"


@pytest.mark.parametrize("pool", [1024, 8192, 32768])
def test_application_holds_all_it_may_frames_are_left_to_receive_into(pool: int) -> None:
    stack, peer, handle = opened(pool=pool)
    stack.stream(handle, 0, 1000)
    frames = ffi.addressof(stack.shard.frames)
    while frames.count[lib.IX_FRAME_APP] < frames.lend_max:
        frame = lib.ix_frame_take_fill(frames)
        assert lib.ix_frame_from_rx(frames, frame)
        lib.ix_frame_lend(frames, frame, handle, 200, 1)
    for i in range(1000):
        peer.put("A", ack=i)
        if i % 16 == 0:
            stack.settle()
    stack.settle()
    assert stack.counter("rx_frames") >= 1000
    assert stack.info(handle).unacked_bytes == 1


# ---- the order of the cycle -----------------------------------------------------------


def test_calls_run_before_input() -> None:
    # What RECV_DONE frees in a cycle is there for what arrives in it.
    stack, peer, _handle = opened(rcvbuf_bytes=1000)
    peer.send("PA", stream(0, 1000))
    event = stack.expect("RECV")
    stack.sleep(ms=40)
    assert peer.expect("A").window == 0
    stack.queue("RECV_DONE", handle=event.handle, addr=event.addr, bytes=1000)
    peer.put("PA", stream(1000, 500))
    stack.poll()
    assert peer.take_all()[-1].window == 1000
    peer.send("PA", stream(1000, 500), seq=1000)
    stack.expect("RECV", data=stream(1000, 500))


def test_answer_to_input_leaves_in_the_same_cycle() -> None:
    stack = Stack(listen=80)
    peer = Peer(stack)
    peer.put("S")
    stack.poll()
    peer.expect("SA")


def test_events_come_in_the_cycle_of_their_cause() -> None:
    stack, peer, _handle = opened()
    peer.put("PA", b"x")
    assert stack.poll() == 1


def test_results_stand_when_poll_returns() -> None:
    stack, _peer, handle = opened()
    addr = stack.put_arena(stream(0, 10))
    calls = [stack.queue("SENDV", handle=handle, addr=addr, bytes=n) for n in (10, 0, 5)]
    stack.poll()
    assert [call.result for call in calls] == [10, -22, 5]
    assert stack.io.n_calls == 0


# ---- time -----------------------------------------------------------------------------


def test_clock_that_goes_back_stands_still() -> None:
    stack, peer, handle = opened()
    stack.stream(handle, 0, 10)
    peer.take_all()
    for back in (1, MS, START_NS):
        assert lib.ix_shard_poll(stack.shard, stack.now_ns - back) == 0
    assert stack.shard.now_ns == stack.now_ns
    stack.sleep(ms=250)
    peer.expect_stream((0, 10))


def test_clock_that_jumps_far_ahead_is_survived() -> None:
    stack, peer, handle = opened()
    stack.stream(handle, 0, 10)
    stack.now_ns += 400 * 24 * 3600 * 10**9
    stack.poll()
    peer.expect_stream((0, 10), (0, 10))
    peer.send("A")
    stack.expect("SENT", bytes=10)


def test_clock_near_its_end_is_survived() -> None:
    stack, peer, handle = opened(now_ns=2**64 - 10**12)
    stack.stream(handle, 0, 10)
    peer.take_all()
    stack.sleep(ms=250)
    peer.expect_stream((0, 10))


# ---- deadlines ------------------------------------------------------------------------


def deadline(stack: Stack) -> int:
    return int(lib.ix_shard_next_deadline(stack.shard, stack.now_ns))


def test_deadline_of_an_idle_shard_is_never() -> None:
    assert deadline(Stack()) == NEVER


def test_deadline_is_the_next_timers() -> None:
    stack = Stack()
    assert stack.call("TIMER_SET", value=5 * MS) == 0
    assert stack.now_ns < deadline(stack) <= stack.now_ns + 5 * MS + TICK_NS


def test_deadline_is_now_while_calls_or_news_wait() -> None:
    stack = Stack()
    stack.queue("NONE")
    assert deadline(stack) == stack.now_ns
    stack.poll()
    stack.ctl("LINK", value=1)
    assert deadline(stack) == stack.now_ns
    stack.poll()
    assert deadline(stack) == NEVER


def test_deadline_while_frames_are_with_the_link() -> None:
    # Nothing but a look at the ring says that a sending is over.
    stack, _peer, handle = opened()
    stack.wire.end(0).completion_delay_ns = 5 * MS
    stack.sendv(handle, b"x")
    assert deadline(stack) < stack.now_ns + 100_000
    stack.poll(ms=4)
    assert deadline(stack) <= stack.now_ns + 10 * MS


# ---- idling and system calls ----------------------------------------------------------


def test_idle_cycles_are_counted_and_make_no_system_call() -> None:
    stack = Stack()
    stack.poll()
    cycles, idle, syscalls = stack.counters("cycles", "cycles_idle", "syscalls")
    for _ in range(10):
        stack.poll()
    assert stack.counters("cycles", "cycles_idle", "syscalls") == [cycles + 10, idle + 10, syscalls]


def test_one_system_call_sends_all_of_a_cycle() -> None:
    stack = Stack(listen=80)
    for i in range(10):
        Peer(stack, sport=50000 + i).put("S")
    before = stack.counter("syscalls")
    stack.poll()
    assert len(stack.sent) == 10
    assert stack.counter("syscalls") == before + 1


# ---- FILL -----------------------------------------------------------------------------


def test_fill_is_kept_at_its_target() -> None:
    stack = Stack(fill_target=200, listen=80)
    assert stack.stats.frames_fill == 200
    Peer(stack).connect()
    stack.put(*noise(50))
    stack.settle()
    assert stack.stats.frames_fill == 200


def test_fill_that_ran_dry_is_fuller_for_a_while() -> None:
    stack = Stack(listen=80, fill_target=8, fill_max=40, batch=8)
    for expected in (16, 32, 40, 40):
        stack.inject(*noise(stack.stats.frames_fill))
        stack.settle()
        assert stack.stats.frames_fill == expected
    assert stack.counter("fill_grown") == 3
    # Not after a moment, and by half at a time; what is there stays until it is used.
    for ms, expected in ((9_999, 40), (1, 20), (9_999, 20), (1, 10), (10_000, 8), (10_000, 8)):
        stack.poll(ms)
        stack.inject(*noise(stack.stats.frames_fill - 2))
        stack.settle()
        assert stack.stats.frames_fill == expected
    assert stack.counter("fill_grown") == 3


def test_fill_that_is_not_dry_stays_at_its_target() -> None:
    stack = Stack(listen=80, fill_target=8, fill_max=64)
    for _ in range(5):
        stack.inject(*noise(7))
        stack.settle()
    assert (stack.stats.frames_fill, stack.counter("fill_grown")) == (8, 0)


def test_fill_that_ran_dry_is_filled_in_one_cycle() -> None:
    stack = Stack(listen=80, fill_target=300, fill_max=600, pool=2048, ring=1024, batch=1)
    stack.inject(*noise(300))
    assert stack.stats.frames_fill == 600


def test_pool_that_the_application_holds_leaves_frames_to_answer_with() -> None:
    stack, peer, handle = opened(fill_target=512)
    for i in range(700):
        peer.put("A", stream(i, 1), seq=i)
        stack.poll()
    s = stack.stats
    assert s.frames_app <= 512
    assert s.frames_free + s.frames_tx + s.frames_fill >= 512
    stack.sent.clear()
    assert stack.sendv(handle, b"still talking") == 13
    assert len(stack.sent) >= 1


def test_fill_starved_is_counted_and_ends() -> None:
    stack = Stack(listen=80, fill_target=4, ring=512)
    peer = Peer(stack)
    peer.connect()
    stack.shard.fill_target = 0
    stack.inject(*noise(4))
    assert stack.stats.frames_fill == 0
    assert stack.counter("fill_starved") >= 1
    stack.shard.fill_target = 4
    stack.poll()
    peer.send("PA", b"data")
    stack.expect("RECV", data=b"data")


# ---- a link that lies -----------------------------------------------------------------


class LyingLink:
    """Replaces operations of a shard's link."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.link = stack.wire.link(0)
        self.ops = ffi.new("struct ix_link_ops *", self.link.ops[0])
        self.keep: list[Any] = []
        stack.shard.link.ops = self.ops

    def rx(self, *descs: tuple[int, int]) -> None:
        """The next rx_burst() brings these (address, length)."""
        waiting = list(descs)
        kind = "uint32_t(struct ix_link *, struct ix_desc *, uint32_t)"

        @ffi.callback(kind)  # type: ignore[untyped-decorator]
        def rx_burst(_link: Any, out: Any, most: int) -> int:
            n = min(most, len(waiting))
            for i in range(n):
                out[i].addr, out[i].len = waiting.pop(0)
                out[i].flags = 0
            return n

        self.keep.append(rx_burst)
        self.ops.rx_burst = rx_burst

    def complete(self, *addrs: int) -> None:
        waiting = list(addrs)
        kind = "uint32_t(struct ix_link *, uint64_t *, uint32_t)"

        @ffi.callback(kind)  # type: ignore[untyped-decorator]
        def complete(_link: Any, out: Any, most: int) -> int:
            n = min(most, len(waiting))
            for i in range(n):
                out[i] = waiting.pop(0)
            return n

        self.keep.append(complete)
        self.ops.complete = complete


@pytest.mark.parametrize("others", [0, 512])
def test_frames_that_were_never_given_are_not_taken(others: int) -> None:
    stack, peer, _handle = opened(max_flows=2048, backlog=600)
    crowd(stack, others)
    peer.send("PA", b"data")
    event = stack.expect("RECV")
    assert stack.shard.frames.meta[1000].owner == lib.IX_FRAME_FREE
    link = LyingLink(stack)
    link.rx(
        (event.addr, 60),  # lent
        (1000 * FRAME_BYTES + 256, 60),  # free
        (stack.io.arena_frame * FRAME_BYTES, 60),  # the application's
        (stack.io.umem_bytes, 60),
        (2**63, 60),
        (stack.io.umem_bytes - 59, 60),
        (stack.io.umem_bytes - 1, 2**32 - 1),
        (2**64 - 60, 60),
    )
    before = stack.counter("rx_frames")
    stack.poll()
    assert stack.counter("rx_frames") == before
    assert stack.stats.frames_app == 1


def test_completions_of_frames_that_were_never_sent_are_ignored() -> None:
    stack, _peer, _handle = opened()
    link = LyingLink(stack)
    arena = stack.io.arena_frame * FRAME_BYTES
    link.complete(0, arena, stack.io.umem_bytes - 1, stack.io.umem_bytes, 2**63)
    stack.poll()
    stack.poll()
    assert stack.stats.frames_tx <= 1


def test_more_timers_than_a_cycle_runs_go_on_in_the_next() -> None:
    most = lib.IX_TIMERS_PER_CYCLE
    stack = Stack(max_timers=most + 50, max_events=1024, max_calls=1024)
    for i in range(most + 50):
        stack.queue("TIMER_SET", value=MS, cookie=i)
    stack.poll()
    stack.poll(ms=2)
    assert len(stack.events) == most
    assert deadline(stack) <= stack.now_ns
    stack.poll()
    assert len(stack.events) == most + 50
    assert {e.cookie for e in stack.events} == set(range(most + 50))
