"""The store, under the sanitizers: memory, lists, expiry, chunks; and death at every point."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.memcached.engine import Engine
from tests.unit.san import ffi, lib


def put(verb: bytes, key: bytes, value: bytes, exptime: int = 0) -> bytes:
    """A command that stores."""
    return b"%s %s 0 %d %d\r\n%s\r\n" % (verb, key, exptime, len(value), value)


def hit(key: bytes, value: bytes) -> bytes:
    """The answer to a get."""
    return b"VALUE %s 0 %d\r\n%s\r\nEND\r\n" % (key, len(value), value)


def test_memory_full_in_every_class_evicts_the_oldest_and_keeps_the_limit() -> None:
    with Engine(limit_bytes=8 << 20) as e:
        conn = e.connect()
        for n in range(400):
            size = 50_000 if n % 2 else 300_000
            assert conn.talk(put(b"set", b"k%d" % n, bytes([n % 251]) * size)) == b"STORED\r\n"
        assert lib.ix_mc_bytes(e.mc) <= 8 << 20
        for n in (399, 398):
            size = 50_000 if n % 2 else 300_000
            value = bytes([n % 251]) * size
            assert conn.talk(b"get k%d\r\n" % n) == hit(b"k%d" % n, value)
        assert conn.talk(b"get k0 k1\r\n") == b"END\r\n"
        e.check()


def test_memory_full_of_every_class_in_turn() -> None:
    with Engine(limit_bytes=4 << 20, item_max_bytes=1 << 20) as e:
        conn = e.connect()
        for cls in range(1, e.mc.classes + 1):
            size = e.mc.cls[cls].chunk_bytes - 48 - 4 - 2
            for n in range(3 * e.mc.cls[cls].per_page // 2 if size > 2000 else 300):
                assert conn.talk(put(b"set", b"%04d" % n, b"v" * size)) == b"STORED\r\n"
        assert sum(e.mc.cls[i].pages for i in range(1, e.mc.classes + 1)) <= 4 + e.mc.classes
        e.check()


def test_evictions_disabled_full_memory_is_an_error_and_nothing_is_lost() -> None:
    with Engine(limit_bytes=2 << 20, no_eviction=1) as e:
        conn = e.connect()
        answers = [conn.talk(put(b"set", b"k%d" % n, b"x" * 100_000)) for n in range(40)]
        stored = answers.index(b"SERVER_ERROR out of memory storing object\r\n")
        assert stored >= 18 and set(answers[:stored]) == {b"STORED\r\n"}
        for n in range(stored):
            assert conn.talk(b"get k%d\r\n" % n) == hit(b"k%d" % n, b"x" * 100_000)


def test_values_of_every_size_come_back_whole() -> None:
    with Engine(limit_bytes=64 << 20, item_max_bytes=4 << 20) as e:
        conn = e.connect()
        chunk = e.mc.cls[e.mc.largest_class].chunk_bytes
        sizes = [0, 1, 1446, 1447, 16384, 16385, chunk - 60, chunk - 51, chunk - 50, chunk - 49]
        sizes += [chunk, 2 * chunk - 98, 2 * chunk - 97, 2 * chunk - 96, 2 * chunk, 3_900_000]
        for size in sizes:
            value = (b"%07d" % size * (size // 7 + 1))[:size]
            assert conn.talk(put(b"set", b"k", value)) == b"STORED\r\n"
            assert conn.talk(b"get k\r\n") == hit(b"k", value)
            assert conn.talk(put(b"append", b"k", b"end")) == b"STORED\r\n"
            assert conn.talk(put(b"prepend", b"k", b"begin")) == b"STORED\r\n"
            assert conn.talk(b"get k\r\n") == hit(b"k", b"begin" + value + b"end")
            e.check()
        too_large = b"x" * (4 << 20)
        assert conn.talk(put(b"set", b"k", too_large)).startswith(b"SERVER_ERROR object too large")
        assert conn.talk(b"get k\r\n") == b"END\r\n"


def test_expiry_is_seen_at_once_and_the_crawler_frees_what_nobody_asks_for() -> None:
    with Engine() as e:
        conn = e.connect()
        for n in range(50):
            conn.talk(put(b"set", b"k%d" % n, b"v", 10))
        conn.talk(put(b"set", b"gone", b"v", -1) + put(b"set", b"stays", b"v"))
        assert conn.talk(b"get gone k1\r\n") == hit(b"k1", b"v")
        e.sleep(9)
        assert conn.talk(b"get k1\r\n") == hit(b"k1", b"v")
        e.sleep(1)
        assert conn.talk(b"get k1\r\n") == b"END\r\n"
        for _ in range(40):
            e.sleep(0.5)
        assert lib.ix_mc_items(e.mc) == 1
        assert e.mc.crawl_reclaimed > 40 or e.mc.cls[1].reclaimed > 0


def test_flush_with_delay_takes_effect_when_it_is_due() -> None:
    with Engine() as e:
        conn = e.connect()
        assert conn.talk(put(b"set", b"k", b"v") + b"flush_all 5\r\n") == b"STORED\r\nOK\r\n"
        assert conn.talk(b"get k\r\n") == hit(b"k", b"v")
        e.sleep(6)
        assert conn.talk(b"get k\r\n") == b"END\r\n"
        assert conn.talk(put(b"set", b"k", b"w") + b"get k\r\n") == b"STORED\r\n" + hit(b"k", b"w")


def test_items_asked_for_outlive_a_flood_of_new_ones() -> None:
    with Engine(limit_bytes=4 << 20) as e:
        conn = e.connect()
        for n in range(20):
            conn.talk(put(b"set", b"hot%d" % n, b"h" * 4000))
        for n in range(90):
            flood = (put(b"set", b"cold%d-%d" % (n, i), b"c" * 4000) for i in range(20))
            conn.talk(b"".join(flood), 1900)
            if n % 3 == 0:
                for i in range(20):
                    conn.talk(b"get hot%d\r\n" % i)
                e.sleep(0.02)
        alive = [conn.talk(b"get hot%d\r\n" % i) != b"END\r\n" for i in range(20)]
        assert sum(alive) >= 18
        assert sum(e.mc.cls[i].evicted for i in range(1, 60)) > 500


def test_slow_reader_holds_the_value_that_it_reads_though_it_is_replaced() -> None:
    with Engine(arena=64) as e:
        slow, other = e.connect(), e.connect()
        value = bytes(range(256)) * 2000
        assert other.talk(put(b"set", b"k", value)) == b"STORED\r\n"
        slow.send(b"get k\r\n")
        assert other.talk(put(b"set", b"k", b"new")) == b"STORED\r\n"
        assert other.talk(b"get k\r\n") == hit(b"k", b"new")
        e.check()
        assert slow.read() == hit(b"k", value)


def test_connection_that_dies_within_data_or_an_answer_leaves_nothing() -> None:
    e = Engine(arena=64)
    one, two = e.connect(), e.connect()
    one.talk(put(b"set", b"k", b"v" * 300_000))
    one.send(b"set half 0 0 300000\r\n" + b"x" * 1000)
    two.send(b"get k\r\n")
    for conn in (one, two):
        lib.ix_fake_die(e.fake, conn.number, -104)
    e.turn(3)
    assert e.ask(b"delete k\r\n") == b"DELETED\r\n"
    assert lib.ix_mc_items(e.mc) == 0
    assert all(e.mc.cls[i].used_chunks == 0 for i in range(1, e.mc.classes + 1))
    e.close()


@pytest.mark.parametrize(
    "line",
    [b"x" * 5000, b"set " + b"k" * 5000, b" " * 200 + b"get " + b"k" * 3000],
    ids=["junk", "set", "spaces"],
)
def test_line_without_an_end_closes_the_connection(line: bytes) -> None:
    with Engine() as e:
        conn = e.connect()
        conn.send(line)
        e.turn(2)
        assert conn.c.fins == 2 and conn.c.got_bytes == 0
        lib.ix_fake_die(e.fake, conn.number, 0)
        e.turn(2)


def test_get_of_many_keys_in_one_line_is_answered() -> None:
    with Engine() as e:
        conn = e.connect()
        names = [b"key%d" % n for n in range(2000)]
        conn.talk(b"".join(put(b"set", name, name) for name in names))
        got = conn.talk(b"get " + b" ".join(names) + b"\r\n", 100)
        assert got == b"".join(hit(n, n)[:-5] for n in names) + b"END\r\n"


def test_key_too_long_for_a_get_is_refused() -> None:
    with Engine() as e:
        bad = b"CLIENT_ERROR bad command line format\r\n"
        assert e.ask(b"get a " + b"k" * 251 + b"\r\n") == bad
        assert e.ask(b"get " + b"k" * 250 + b"\r\n") == b"END\r\n"


# ---- death ----


def worker_of(engine: Engine, number: int) -> Any:
    """struct ix_mc_use of a worker."""
    use = ffi.new("struct ix_mc_use *")
    lib.ix_mc_open(use, engine.mc, number)
    lib.ix_mc_set_time(use, engine.fake.now_ns)
    return use


def test_log_left_behind_is_undone_and_its_locks_are_free() -> None:
    with Engine(workers=2) as e:
        e.ask(put(b"set", b"k", b"v"))
        use = worker_of(e, 1)
        hash_ = lib.ix_mc_hash(e.mc, b"k", 1)
        bucket = lib.ix_mc_bucket(use, hash_)
        lib.ix_mc_lock(use, ffi.addressof(bucket, "lock"))
        item = lib.ix_mc_find(use, b"k", 1, hash_)
        lib.ix_mc_lock(use, ffi.addressof(e.mc.cls[item.cls], "lock"))
        before = (bucket.head, item.time, e.mc.cls[item.cls].count[0])
        for field, owner in (("head", bucket), ("time", item)):
            at = ffi.addressof(owner, field)
            lib.ix_mc_note(use, at, getattr(owner, field), 4)
            setattr(owner, field, 12345)
        lib.ix_mc_list_remove(use, item)
        assert lib.ix_mc_check(e.mc) != ffi.NULL
        lib.ix_mc_recover(e.mc, 1)
        assert (bucket.head, item.time, e.mc.cls[item.cls].count[0]) == before
        e.check()
        assert e.ask(b"get k\r\n") == hit(b"k", b"v")


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_worker_that_dies_with_items_in_hand_gives_them_back(data: st.DataObject) -> None:
    with Engine(workers=2, item_max_bytes=4 << 20) as e:
        e.ask(put(b"set", b"k", b"v" * data.draw(st.sampled_from([10, 2_000_000]))))
        use = worker_of(e, 1)
        for hold in range(2, 2 + data.draw(st.integers(0, 5))):
            key = b"new%d" % hold
            nbytes = data.draw(st.sampled_from([2, 100, 600_000, 2_000_000]))
            hash_ = lib.ix_mc_hash(e.mc, key, len(key))
            item = lib.ix_mc_alloc(use, hold, key, len(key), hash_, 0, 0, nbytes)
            assert item != ffi.NULL
            if data.draw(st.booleans()):
                lib.ix_mc_lock(use, ffi.addressof(lib.ix_mc_bucket(use, hash_), "lock"))
                lib.ix_mc_link(use, hold, ffi.NULL)
                assert lib.ix_mc_hold(use, hold, item)
                if data.draw(st.booleans()):
                    lib.ix_mc_unlink(use, item)
                if data.draw(st.booleans()):
                    lib.ix_mc_unlock(use)
                else:
                    break
        lib.ix_mc_recover(e.mc, 1)
        e.check()
        assert not any(use.holds[i] for i in range(e.mc.holds_per_worker))
        assert e.ask(b"get k\r\n").startswith(b"VALUE k")
