"""mem/wheel.c: timing wheels."""

from __future__ import annotations

import random

import pytest

from tests.unit.dies import dies
from tests.unit.san import ffi, lib

TICK = 1 << 14
SPAN = 1 << 32  # ticks that the levels cover
LAST_TICK = (1 << 50) - 1


class Wheel:
    """A wheel with `count` timers."""

    def __init__(self, count: int = 64, now_ns: int = 0) -> None:
        self.timers = ffi.new("struct ix_timer[]", count)
        self.w = ffi.new("struct ix_wheel *")
        lib.ix_wheel_init(self.w, self.timers, count, now_ns)

    def check(self) -> None:
        wrong = lib.ix_wheel_check(self.w)
        assert wrong == ffi.NULL, ffi.string(wrong)

    def set(self, timer: int, deadline_ns: int) -> None:
        lib.ix_wheel_set(self.w, timer, deadline_ns)
        self.check()

    def advance(self, now_ns: int, most: int = 1000) -> list[int]:
        fired = ffi.new("uint32_t[]", most or 1)
        n = lib.ix_wheel_advance(self.w, now_ns, fired, most)
        self.check()
        return list(fired[0:n])

    def next_ns(self) -> int:
        return int(lib.ix_wheel_next_ns(self.w))


def test_unarmed_advance_fires_nothing() -> None:
    wheel = Wheel()
    assert wheel.advance(10**18) == []
    assert wheel.next_ns() == 2**64 - 1


@pytest.mark.parametrize("deadline", [1, TICK - 1, TICK, TICK + 1, 255 * TICK, 256 * TICK + 7])
@pytest.mark.parametrize("start", [0, 1, 5 * TICK, 254 * TICK, 65535 * TICK + 3])
def test_armed_fires_not_before_its_deadline_and_within_a_tick(start: int, deadline: int) -> None:
    wheel = Wheel(now_ns=start)
    wheel.set(3, start + deadline)
    assert wheel.advance(start + deadline - 1) == []
    assert lib.ix_wheel_armed(wheel.w, 3)
    due = lib.ix_wheel_deadline(wheel.w, 3)
    assert start + deadline <= due < start + deadline + TICK
    assert wheel.advance(due) == [3]
    assert not lib.ix_wheel_armed(wheel.w, 3)


@pytest.mark.parametrize("deadline", [0, 1, 99 * TICK, 100 * TICK])
def test_deadline_in_the_past_fires_at_the_next_advance(deadline: int) -> None:
    wheel = Wheel(now_ns=100 * TICK)
    wheel.set(0, deadline)
    assert wheel.next_ns() == 100 * TICK
    assert wheel.advance(100 * TICK) == [0]


def test_past_deadline_set_again_after_firing_fires_at_the_same_time_again() -> None:
    wheel = Wheel()
    for _ in range(3):
        wheel.set(0, 5 * TICK)
        assert wheel.advance(10 * TICK) == [0]
    assert wheel.advance(10 * TICK) == []


def test_armed_moved_fires_once_at_the_new_time() -> None:
    wheel = Wheel()
    wheel.set(0, 300 * TICK)
    wheel.set(0, 10 * TICK)
    wheel.set(0, 70000 * TICK)
    assert wheel.advance(69999 * TICK) == []
    assert wheel.advance(70000 * TICK) == [0]
    assert wheel.advance(80000 * TICK) == []


def test_armed_cancelled_does_not_fire() -> None:
    wheel = Wheel()
    wheel.set(0, 10 * TICK)
    lib.ix_wheel_cancel(wheel.w, 0)
    lib.ix_wheel_cancel(wheel.w, 0)
    wheel.check()
    assert wheel.next_ns() == 2**64 - 1
    assert wheel.advance(20 * TICK) == []


@pytest.mark.parametrize("cancelled", [0, 1, 2])
def test_one_of_a_slot_cancelled_leaves_the_others(cancelled: int) -> None:
    wheel = Wheel()
    for timer in range(3):
        wheel.set(timer, 10 * TICK)
    lib.ix_wheel_cancel(wheel.w, cancelled)
    wheel.check()
    assert wheel.advance(10 * TICK) == [t for t in range(3) if t != cancelled]


def test_timers_fire_in_order_of_ticks_over_all_levels() -> None:
    ticks = [1, 2, 255, 256, 257, 511, 512, 65535, 65536, 65537, 2**24 - 1, 2**24, 2**24 + 1]
    ticks += [SPAN - 1, SPAN, SPAN + 1, 3 * SPAN + 5, LAST_TICK]
    order = list(range(len(ticks)))
    random.Random(1).shuffle(order)
    wheel = Wheel()
    for timer in order:
        wheel.set(timer, ticks[timer] * TICK)
    assert wheel.advance(LAST_TICK * TICK) == list(range(len(ticks)))


def test_timers_of_one_tick_fire_in_the_order_of_being_set() -> None:
    wheel = Wheel()
    tick = 3 * 2**16 + 5
    order = list(range(50))
    random.Random(2).shuffle(order)
    for step, timer in enumerate(order):
        # Time goes on meanwhile, so that some are set on a high level and some on a low one.
        wheel.advance((tick * step // 50) * TICK)
        wheel.set(timer, tick * TICK)
    assert wheel.advance(tick * TICK) == order


def test_more_due_than_asked_for_come_with_further_calls() -> None:
    wheel = Wheel()
    for timer in range(10):
        wheel.set(timer, (1 + timer // 4) * TICK)
    assert wheel.advance(100 * TICK, most=3) == [0, 1, 2]
    assert wheel.advance(100 * TICK, most=0) == []
    # Between the calls the wheel's time stands at the tick at hand, not at 100.
    assert wheel.next_ns() == TICK
    assert wheel.advance(100 * TICK, most=3) == [3, 4, 5]
    assert wheel.advance(100 * TICK, most=30) == [6, 7, 8, 9]
    assert wheel.advance(100 * TICK, most=30) == []


def test_clock_going_backward_stands_still() -> None:
    wheel = Wheel()
    wheel.advance(1000 * TICK)
    wheel.set(0, 1001 * TICK)
    assert wheel.advance(5 * TICK) == []
    assert wheel.advance(1001 * TICK) == [0]


@pytest.mark.parametrize("jump", [2**64 - 1, 1 << 60, (SPAN + 1) * TICK, SPAN * TICK - 1])
def test_jump_of_time_fires_all_that_is_due_and_only_that(jump: int) -> None:
    wheel = Wheel(count=200)
    deadlines = [random.Random(seed).randrange(1 << (14 + seed % 50)) for seed in range(200)]
    for timer, deadline in enumerate(deadlines):
        wheel.set(timer, deadline)
    # Rounding up to ticks; what lies beyond the last tick counts as that tick.
    ticks = [min(-(-d // TICK), LAST_TICK) for d in deadlines]
    expected = sorted((t for t in range(200) if ticks[t] <= jump // TICK), key=lambda t: ticks[t])
    assert wheel.advance(jump) == expected


def test_jump_over_thousands_of_spans_costs_one_pass_over_the_parked() -> None:
    # 2^18 spans of 19.5 hours. Were the parked timers sorted in at each of them, it would take
    # 2.6e10 steps, and this test minutes.
    count = 100_000
    wheel = Wheel(count=count)
    for timer in range(count):
        lib.ix_wheel_set(wheel.w, timer, (LAST_TICK - count + 1 + timer) * TICK)
    assert wheel.advance((LAST_TICK - count) * TICK) == []
    assert wheel.advance(2**64 - 1, most=count) == list(range(count))


def test_deadline_at_the_end_of_time_fires_there() -> None:
    wheel = Wheel()
    wheel.set(0, 2**64 - 1)
    assert lib.ix_wheel_deadline(wheel.w, 0) == LAST_TICK * TICK
    assert wheel.advance(LAST_TICK * TICK - 1) == []
    assert wheel.advance(2**64 - 1) == [0]


def test_moved_later_stays_in_its_place_until_time_reaches_that() -> None:
    wheel = Wheel()
    for timer in range(3):
        wheel.set(timer, 300 * TICK)
    place = wheel.timers[1].slot
    for tick in (5000, 301, 256):
        wheel.set(1, tick * TICK)
        assert wheel.timers[1].slot == place
        assert lib.ix_wheel_deadline(wheel.w, 1) == tick * TICK
    wheel.set(1, 255 * TICK)  # before its slot's turn
    assert wheel.timers[1].slot != place
    assert wheel.advance(255 * TICK) == [1]
    wheel.set(0, 70000 * TICK)
    assert wheel.timers[0].slot == place
    assert wheel.advance(69999 * TICK) == [2]
    assert wheel.advance(70000 * TICK) == [0]
    assert wheel.w.linked == 0


def test_cancelled_keeps_its_place_and_can_be_set_again_there() -> None:
    wheel = Wheel()
    wheel.set(0, 300 * TICK)
    place = wheel.timers[0].slot
    lib.ix_wheel_cancel(wheel.w, 0)
    wheel.check()
    assert not lib.ix_wheel_armed(wheel.w, 0)
    assert wheel.next_ns() == 2**64 - 1
    wheel.set(0, 400 * TICK)
    assert wheel.timers[0].slot == place
    assert wheel.advance(399 * TICK) == []
    assert wheel.advance(400 * TICK) == [0]


@pytest.mark.parametrize("first", [3, 300, 70000, 2**24, SPAN + 1])
def test_cancelled_leaves_the_wheel_when_time_reaches_its_place(first: int) -> None:
    wheel = Wheel()
    wheel.set(0, first * TICK)
    lib.ix_wheel_cancel(wheel.w, 0)
    assert wheel.advance((first - 1) // 256 * TICK) == []
    assert wheel.w.linked == 1
    assert wheel.advance(first * TICK) == []
    assert wheel.w.linked == 0


@pytest.mark.parametrize("moved", [SPAN - 1, 5, SPAN + 5, 5 * SPAN])
def test_parked_and_moved_fires_at_the_new_time(moved: int) -> None:
    wheel = Wheel()
    wheel.set(0, 2 * SPAN * TICK)
    wheel.set(0, moved * TICK)
    assert wheel.advance((moved - 1) * TICK) == []
    assert wheel.advance(moved * TICK) == [0]


def test_fewer_asked_for_than_due_with_moved_ones_between() -> None:
    wheel = Wheel()
    for timer in range(6):
        wheel.set(timer, 10 * TICK)
    for timer in (0, 3, 5):
        wheel.set(timer, 20 * TICK)
    lib.ix_wheel_cancel(wheel.w, 1)
    assert wheel.advance(10 * TICK, most=1) == [2]
    assert wheel.advance(30 * TICK, most=2) == [4, 0]
    assert wheel.advance(30 * TICK) == [3, 5]


def test_next_ns_is_exact_below_256_ticks_and_never_late_above() -> None:
    wheel = Wheel(now_ns=7 * TICK)
    wheel.set(1, 200 * TICK)
    assert wheel.next_ns() == 200 * TICK
    assert wheel.advance(200 * TICK) == [1]
    wheel.set(0, 70000 * TICK)
    steps = 0
    while not (fired := wheel.advance(wheel.next_ns())):
        assert wheel.next_ns() <= 70000 * TICK
        steps += 1
    assert fired == [0]
    assert steps <= 3  # one per level: sleeping until next_ns() ends there soon


def test_foreign_timer_dies() -> None:
    wheel = Wheel(count=4)
    assert dies(lambda: lib.ix_wheel_set(wheel.w, 4, 0))
    assert dies(lambda: lib.ix_wheel_cancel(wheel.w, 4))


@pytest.mark.parametrize("what", ["busy bit", "slot", "tick", "count", "cycle", "prev"])
def test_check_finds_damage(what: str) -> None:
    wheel = Wheel()
    for timer in range(3):
        wheel.set(timer, 300 * TICK)
    if what == "busy bit":
        wheel.w.busy[2][1] |= 4
    elif what == "slot":
        wheel.timers[1].slot += 1
    elif what == "tick":
        wheel.timers[1].tick = 5
    elif what == "count":
        wheel.w.armed += 1
    elif what == "cycle":
        wheel.timers[2].next = 0
    else:
        wheel.timers[2].prev = 0
    assert lib.ix_wheel_check(wheel.w) != ffi.NULL
