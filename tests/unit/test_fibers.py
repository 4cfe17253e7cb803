"""native/fibers: a native application on several shards of one worker, by turns."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.unit.san import ffi, lib
from tests.unit.test_app import Worker, is_quick, reply, wakes

N = 3


@contextmanager
def workers() -> Iterator[list[Worker]]:
    """Three shards of one worker, and their log empty."""
    made = [Worker() for _ in range(N)]
    link(made)
    ffi.memmove(ffi.addressof(lib, "ix_fiber_log"), bytes(ffi.sizeof("struct ix_fiber_log")),
                ffi.sizeof("struct ix_fiber_log"))  # fmt: skip
    try:
        yield made
    finally:
        for one in made:
            one.close()


def link(made: list[Worker]) -> None:
    """Makes them siblings, on the first one's socket, eventfd and flag."""
    made[0].siblings = ffi.new("struct ix_app *[]", [one.app for one in made])
    for i, one in enumerate(made):
        app = one.app
        app.siblings, app.n_siblings, app.gate_shard = made[0].siblings, len(made), i
        app.request_fd, app.kick_fd = made[0].theirs.fileno(), made[0].kick
        app.stop = made[0].stop


def run(made: list[Worker], *plans: str) -> int:
    """Runs the applications by their plans (fiber_app.h); control requests succeed."""
    words = [ffi.new("char[]", word.encode()) for word in ("app", *plans)]
    argv = ffi.new("char *[]", [*words, ffi.NULL])
    main = ffi.addressof(lib, "ix_fiber_app_main")
    with made[0].control_plane(answers):
        status = int(lib.ix_fibers_run(made[0].app, main, len(words), argv))
    assert argv[0] == words[0]
    assert all(one.app.fiber == ffi.NULL for one in made)
    return status


def answers(request: Any) -> list[Any]:
    """Success, for what is answered at all."""
    return [] if request.op in (lib.IX_REQUEST_READY, lib.IX_REQUEST_NUDGE) else [reply(request)]


def turns() -> list[int]:
    """Whose turn it was, in order."""
    return list(lib.ix_fiber_log.who[0 : lib.ix_fiber_log.n])


def cycles(one: Worker) -> int:
    """Cycles that its shard ran."""
    counters = ffi.cast("struct ix_counters *", one.app.stats.counters)
    lib.ix_shard_stats(one.shard)
    return int(counters.cycles)


def test_runs_take_turns_at_polls_each_on_a_stack_of_its_own() -> None:
    with workers() as made:
        assert run(made, "4,0,0", "4,0,0", "4,0,0") == 0
        assert turns() == [0, 1, 2] * 4
        log = lib.ix_fiber_log
        assert log.rounding_lost == 0
        assert all(cycles(one) >= 4 for one in made)
        for i in range(N):
            assert {log.stack[k] for k in range(i, 12, N)} == {log.stack[i]}
        apart = sorted(int(log.stack[i]) for i in range(N))
        assert all(b - a > 1 << 20 for a, b in itertools.pairwise(apart))
        assert len({int(ffi.cast("uintptr_t", log.argv[i])) for i in range(N)}) == N


def test_run_that_returns_early_leaves_its_shard_running() -> None:
    with workers() as made:
        assert run(made, "1,0,0", "40,0,0", "2,0,0") == 0
        assert turns() == [0, 1, 2, 1, 2] + [1] * 38
        assert all(cycles(one) >= 40 for one in made)


def test_status_of_a_run_that_fails_is_returned_at_once() -> None:
    with workers() as made:
        assert run(made, "0,0,0", "3,0,7", "0,0,0") == 7
        assert turns() == [0, 1, 2] * 3 + [0]


def test_stop_ends_all_runs() -> None:
    with workers() as made:

        def stop() -> None:
            while lib.ix_fiber_log.n < N:
                time.sleep(0.001)
            made[0].stop[0] = 1

        timer = threading.Thread(target=stop)
        timer.start()
        assert run(made, "0,1000000000,0", "0,1000000000,0", "0,1000000000,0") == 0
        timer.join()
        assert set(turns()) == {0, 1, 2}


def test_one_that_has_something_to_do_keeps_all_awake() -> None:
    with workers() as made:
        begin = time.monotonic()
        assert run(made, "60,1000000000,0", "60,0,0", "60,1000000000,0") == 0
        assert time.monotonic() - begin < 5, "60 sleeps would have taken 6 s"


def test_all_that_may_sleep_do_as_long_as_the_most_hurried() -> None:
    with workers() as made:
        begin = time.monotonic()
        assert run(made, "3,1000000000,0", "3,30000000,0", "3,1000000000,0") == 0
        assert time.monotonic() - begin >= 0.03


@pytest.mark.parametrize("count", [1, 2])
def test_ready_is_said_once_when_all_shards_run(count: int) -> None:
    with workers() as made:
        link(made[:count])
        for one in made[:count]:
            assert not made[0].said()
            one.poll()
        for one in made[:count]:
            one.poll()
        assert made[0].said() == [lib.IX_REQUEST_READY]


def test_sleep_of_one_ends_for_the_link_of_another() -> None:
    with workers() as made:
        for one in made:
            one.poll()
        assert wakes(
            made[0],
            lambda: os.write(made[2].link_write, b"x"),
            lambda: os.read(made[2].link_read, 1),
        )


def test_no_sleep_while_calls_of_another_wait() -> None:
    with workers() as made:
        for one in made:
            one.poll()
        made[1].app.io.n_calls = 1
        assert is_quick(lambda: made[0].poll(10_000_000_000))


def test_no_sleep_while_another_has_not_been_idle_for_long() -> None:
    with workers() as made:
        for one in made:
            one.app.spin_ns = 100_000_000_000
            one.poll()
        time.sleep(0.01)
        for one in (made[0], made[2]):
            one.app.idle_since_ns = 1
        assert is_quick(lambda: made[0].poll(10_000_000_000))
        made[1].app.idle_since_ns = 1
        begin = time.monotonic()
        made[0].poll(30_000_000)
        assert time.monotonic() - begin >= 0.03


def test_requests_say_whose_they_are() -> None:
    with workers() as made, made[0].control_plane(answers) as asked:
        assert made[2].listen("10.0.0.1", 80) == (0, "")
        assert lib.ix_app_abort_all(made[1].app) == 0
        assert [(r.op, r.shard) for r in asked] == [
            (lib.IX_REQUEST_CLAIM, 2),
            (lib.IX_REQUEST_LEAVE, 1),
        ]


def test_leaving_is_of_all_shards_at_once() -> None:
    with workers() as made, made[0].control_plane(answers) as asked:
        before = [cycles(one) for one in made]
        lib.ix_app_leave(made[0].app, 10_000_000_000)
        assert [(r.op, r.shard) for r in asked] == [(lib.IX_REQUEST_LEAVE, i) for i in range(N)]
        assert all(cycles(one) > old for one, old in zip(made, before, strict=True))
