"""Workers killed while they change the store, over and over: it must stay whole, and go on."""

from __future__ import annotations

import itertools
import os
import random
import signal
import time

from tests.unit.san import ffi, lib

WORKERS = 3
KILLS = 80


def new_store() -> object:
    """Small: full, so that every operation has to evict as well."""
    c = ffi.new("struct ix_mc_config *")
    lib.ix_mc_config_init(c)
    c.now_ns, c.wall_s, c.hash_key = 1, 1_800_000_000, 99
    c.limit_bytes, c.item_max_bytes, c.hash_power, c.workers = 10 << 20, 2 << 20, 10, WORKERS
    why = ffi.new("char[]", 320)
    store = lib.ix_mc_new(c, why, 320)
    assert store != ffi.NULL, ffi.string(why)
    return store


def start(store: object, worker: int) -> int:
    """A process that churns."""
    pid = os.fork()
    if pid == 0:
        lib.ix_mc_churn(store, worker, random.SystemRandom().randrange(2**63), 0)
        os._exit(0)
    return pid


def kill(store: object, worker: int, pid: int) -> None:
    """Its death, which must not have been by a trap, and what the control process does then."""
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    lib.ix_mc_recover(store, worker)


def check(store: object) -> None:
    """All invariants hold."""
    wrong = lib.ix_mc_check(store)
    assert wrong == ffi.NULL, ffi.string(wrong)


def test_churn_of_one_worker_keeps_the_store_whole() -> None:
    store = new_store()
    lib.ix_mc_churn(store, 0, 12345, 20_000)
    lib.ix_mc_recover(store, 0)
    check(store)
    assert store.undone == 0  # type: ignore[attr-defined]
    lib.ix_mc_free(store)


def test_workers_killed_at_random_leave_the_store_whole_and_block_nobody() -> None:
    store = new_store()
    pids = [start(store, worker) for worker in range(WORKERS)]
    # On a busy machine many die before their first change: so more, until enough fell into one.
    for i in itertools.count():
        if i >= KILLS and i % 10 == 0 and store.undone > 5:  # type: ignore[attr-defined]
            break
        assert i < 50 * KILLS, "no death fell into a change"
        time.sleep(random.uniform(0, 0.01))
        worker = random.randrange(WORKERS)
        kill(store, worker, pids[worker])
        if i % 10 == 9:  # with all of them dead it can be looked at
            for other in range(WORKERS):
                if other != worker:
                    kill(store, other, pids[other])
            check(store)
            pids = [start(store, number) for number in range(WORKERS)]
        else:
            pids[worker] = start(store, worker)
    for worker, pid in enumerate(pids):
        kill(store, worker, pid)
    check(store)
    lib.ix_mc_churn(store, 0, 777, 5_000)
    lib.ix_mc_recover(store, 0)
    check(store)
    lib.ix_mc_free(store)
