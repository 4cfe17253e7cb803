"""shard/calls: the application's timers."""

from __future__ import annotations

import random

from tests.unit.peer import EINVAL, ENOENT, ENOSPC, MS, TICK_NS, Event, Stack
from tests.unit.san import lib


def set_timer(stack: Stack, ms: float, *, handle: int = 0, cookie: int = 0, flags: int = 0) -> int:
    """TIMER_SET in a cycle of its own. Returns the handle, or -errno."""
    value = int(ms * MS)
    call = stack.queue("TIMER_SET", value=value, handle=handle, cookie=cookie, flags=flags)
    stack.poll()
    return int(call.handle) if call.result == 0 else int(call.result)


def test_timer_fires_once_with_its_cookie() -> None:
    stack = Stack()
    handle = set_timer(stack, 10, cookie=42)
    assert handle > 0
    stack.sleep(ms=9.9)
    stack.expect_no_event()
    stack.sleep(ms=0.1)
    stack.expect("TIMER", handle=handle, cookie=42)
    stack.sleep(ms=1000)
    stack.expect_no_event()


def test_timer_is_never_early_and_at_most_a_tick_late() -> None:
    rng = random.Random(2)
    stack = Stack(max_timers=64)
    due = {}
    for i in range(64):
        ms = rng.choice([0.001, 0.016, 0.5, 3, 40, 5000]) * rng.random()
        due[i] = stack.now_ns + int(ms * MS)
        stack.queue("TIMER_SET", value=int(ms * MS), cookie=i)
    stack.poll()
    fired: dict[int, int] = {}
    while len(fired) < 64:
        stack.now_ns = max(stack.now_ns, stack.deadline)
        stack.poll()
        fired |= {e.cookie: stack.now_ns for e in stack.events}
        stack.events.clear()
    assert all(0 <= fired[i] - due[i] <= TICK_NS for i in due)


def test_timer_set_anew_moves() -> None:
    stack = Stack()
    handle = set_timer(stack, 10, cookie=1)
    stack.sleep(ms=5)
    assert set_timer(stack, 10, handle=handle, cookie=2) == handle
    stack.sleep(ms=9)
    stack.expect_no_event()
    stack.sleep(ms=1)
    stack.expect("TIMER", handle=handle, cookie=2)
    stack.expect_no_event()


def test_timer_cancelled_is_silent_and_void() -> None:
    stack = Stack()
    handle = set_timer(stack, 10)
    assert set_timer(stack, 0, handle=handle, flags=lib.IX_TIMER_CANCEL) == handle
    stack.sleep(ms=20)
    stack.expect_no_event()
    assert set_timer(stack, 1, handle=handle) == -ENOENT
    assert stack.stats.timers_armed == 0


def test_timer_fired_is_void() -> None:
    stack = Stack()
    handle = set_timer(stack, 1)
    stack.sleep(ms=2)
    stack.expect("TIMER")
    assert set_timer(stack, 1, handle=handle) == -ENOENT
    again = set_timer(stack, 1)
    assert again != handle and again & 0xFFFFFFF == handle & 0xFFFFFFF
    assert set_timer(stack, 1, handle=handle, flags=lib.IX_TIMER_CANCEL) == -ENOENT


def test_timer_of_no_delay_fires_at_once() -> None:
    stack = Stack()
    handle = set_timer(stack, 0)
    stack.sleep(ms=0)
    stack.expect("TIMER", handle=handle)


def test_timer_of_a_month_is_kept() -> None:
    stack = Stack()
    handle = set_timer(stack, 30 * 24 * 3600 * 1000)
    stack.now_ns += 30 * 24 * 3600 * 10**9 - 10 * MS
    stack.poll()
    stack.expect_no_event()
    stack.sleep(ms=20)
    stack.expect("TIMER", handle=handle)


def test_timer_of_nonsense_is_refused() -> None:
    stack = Stack(max_timers=2)
    call = stack.queue("TIMER_SET", value=2**64 - 1)
    stack.poll()
    assert call.result == -EINVAL
    handle = set_timer(stack, 1)
    for forged in (handle + 1, handle + (1 << 32), handle & ~(0xF << 28), 1, 2**64 - 1):
        assert set_timer(stack, 1, handle=forged) == -ENOENT
    assert set_timer(stack, 1) > 0
    assert set_timer(stack, 1) == -ENOSPC
    stack.sleep(ms=2)
    assert set_timer(stack, 1) > 0


def test_timer_made_and_cancelled_in_one_call_leaves_nothing() -> None:
    stack = Stack(max_timers=1)
    for _ in range(3):
        assert set_timer(stack, 1, flags=lib.IX_TIMER_CANCEL) > 0
    assert set_timer(stack, 1) > 0


def test_without_timers_none_is_made() -> None:
    # max_timers 0 means the default.
    stack = Stack(max_timers=0)
    assert stack.cfg.max_timers == 1024


def crowded(stack: Stack) -> tuple[int, list[Event]]:
    """All timers due in one cycle; the handle of the one whose event finds no room."""
    handles = []
    for i in range(stack.io.max_events + 1):
        call = stack.queue("TIMER_SET", value=MS, cookie=i)
        if stack.io.n_calls == stack.io.max_calls:
            stack.poll()
        handles.append(call)
    stack.poll()
    stack.poll(ms=3)
    told = {e.handle for e in stack.events}
    left = [int(h.handle) for h in handles if int(h.handle) not in told]
    first = list(stack.events)
    stack.events.clear()
    return left[0], first


def crowd() -> Stack:
    return Stack(max_timers=65, max_events=64, max_calls=128)


def test_timer_event_without_room_comes_with_the_next_cycle() -> None:
    stack = crowd()
    left, first = crowded(stack)
    assert len(first) == 64
    assert stack.deadline <= stack.now_ns
    stack.poll()
    stack.expect("TIMER", handle=left)
    assert stack.deadline > stack.now_ns


def test_timer_event_without_room_can_be_cancelled() -> None:
    stack = crowd()
    left, _ = crowded(stack)
    assert set_timer(stack, 0, handle=left, flags=lib.IX_TIMER_CANCEL) == left
    stack.sleep(ms=10)
    stack.expect_no_event()
    assert stack.shard.timers_due == 0


def test_timer_event_without_room_can_be_set_anew() -> None:
    stack = crowd()
    left, _ = crowded(stack)
    assert set_timer(stack, 5, handle=left, cookie=7) == left
    stack.expect_no_event()
    stack.sleep(ms=5)
    stack.expect("TIMER", handle=left, cookie=7)
    stack.expect_no_event()


def test_calls_and_errors_are_counted() -> None:
    stack = Stack()
    for op in ("NONE", "SENDV", "NONE"):
        stack.queue(op)
    stack.poll()
    assert stack.counters("calls", "call_errors", "calls_stale") == [3, 1, 1]
