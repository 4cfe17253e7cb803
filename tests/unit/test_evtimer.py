"""native/evtimer.c: the heap of timers."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.san import ffi, lib

NEVER = 2**64 - 1


class Heap:
    """A heap of `count` timers, the model of which is a dict of deadlines."""

    def __init__(self, count: int) -> None:
        self.c = ffi.new("struct ix_evtimers *")
        lib.ix_evtimers_init(self.c)
        self.timers = ffi.new("struct ix_evtimer[]", count)
        for i in range(count):
            self.timers[i].id = i
        self.model: dict[int, int] = {}

    def timer(self, i: int) -> Any:
        return ffi.addressof(self.timers, i)

    def set(self, i: int, deadline: int) -> None:
        assert lib.ix_evtimer_set(self.c, self.timer(i), deadline) == 0
        self.model[i] = deadline

    def cancel(self, i: int) -> None:
        lib.ix_evtimer_cancel(self.c, self.timer(i))
        self.model.pop(i, None)

    def pop(self, now: int) -> int | None:
        timer = lib.ix_evtimers_pop(self.c, now)
        if not timer:
            assert all(deadline > now for deadline in self.model.values())
            return None
        assert timer.place == 0
        assert self.model.pop(timer.id) == timer.deadline_ns <= now
        assert all(deadline >= timer.deadline_ns for deadline in self.model.values())
        return int(timer.id)

    def check(self) -> None:
        wrong = lib.ix_evtimers_check(self.c)
        assert not wrong, ffi.string(wrong)
        assert self.c.count == len(self.model)
        assert lib.ix_evtimers_next(self.c) == min(self.model.values(), default=NEVER)
        assert {i for i in range(len(self.timers)) if self.timers[i].place} == set(self.model)


def test_empty_heap_has_nothing_due() -> None:
    heap = Heap(1)
    heap.check()
    assert heap.pop(NEVER) is None
    heap.cancel(0)
    heap.check()


def test_armed_timer_set_anew_moves_both_ways() -> None:
    heap = Heap(3)
    for i, deadline in enumerate((10, 20, 30)):
        heap.set(i, deadline)
    heap.set(0, 25)
    heap.set(2, 5)
    heap.check()
    assert [heap.pop(NEVER) for _ in range(4)] == [2, 1, 0, None]


def test_timer_is_due_at_its_deadline_and_not_before() -> None:
    heap = Heap(1)
    heap.set(0, 100)
    assert heap.pop(99) is None
    assert heap.pop(100) == 0


def test_timer_that_takes_the_place_of_a_cancelled_one_may_move_up() -> None:
    heap = Heap(7)
    for i, deadline in enumerate((0, 10, 1, 11, 12, 2, 3)):
        heap.set(i, deadline)
    heap.cancel(3)  # the last one, due at 3, lands below the one due at 10
    heap.check()
    assert [heap.pop(NEVER) for _ in range(6)] == [0, 2, 5, 6, 1, 4]


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("set"), st.integers(0, 199), st.integers(0, 50)),
            st.tuples(st.just("cancel"), st.integers(0, 199), st.just(0)),
            st.tuples(st.just("pop"), st.just(0), st.integers(0, 60)),
        ),
        max_size=400,
    )
)
def test_heap_agrees_with_model(steps: list[tuple[str, int, int]]) -> None:
    heap = Heap(200)
    for what, i, value in steps:
        if what == "set":
            heap.set(i, value)
        elif what == "cancel":
            heap.cancel(i)
        else:
            heap.pop(value)
        heap.check()
    while heap.pop(NEVER) is not None:
        heap.check()
    lib.ix_evtimers_destroy(heap.c)
