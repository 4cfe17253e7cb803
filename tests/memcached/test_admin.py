"""Commands about the server rather than about one item, under the sanitizers."""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

import pytest

from tests.memcached.engine import Conn, Engine
from tests.unit.san import ffi, lib


def store(conn: Conn, key: bytes, value: bytes, exptime: int = 0) -> None:
    """A set that succeeds."""
    line = b"set %s 0 %d %d\r\n%s\r\n" % (key, exptime, len(value), value)
    assert conn.talk(line) == b"STORED\r\n"


# ---- dumps ----


def dumped(text: bytes) -> dict[bytes, dict[str, str]]:
    """The lines of a metadump, by key."""
    assert text.endswith(b"END\r\n")
    found = {}
    for line in text[: -len(b"END\r\n")].decode().splitlines():
        fields = dict(word.split("=", 1) for word in line.split(" "))
        found[unquote_to_bytes(fields.pop("key"))] = fields
    return found


def test_metadump_tells_of_every_item_once() -> None:
    with Engine() as e:
        conn = e.connect()
        names = [b"key%d" % n for n in range(2000)] + [b"\xff%" + b"k" * 248]
        for n, name in enumerate(names):
            store(conn, name, b"v" * (n % 700), 0 if n % 3 else 500)
        assert conn.talk(b"delete key7\r\n") == b"DELETED\r\n"
        conn.talk(b"get key9\r\n")
        found = dumped(conn.talk(b"lru_crawler metadump all\r\n"))
        assert set(found) == set(names) - {b"key7"}
        assert (found[b"key9"]["fetch"], found[b"key10"]["fetch"]) == ("yes", "no")
        assert found[b"key10"]["exp"] == "-1" and found[b"key10"]["la"] == "1800000000"
        assert found[b"key9"]["exp"] == "1800000500"
        assert found[b"key100"]["size"] == str(48 + 6 + 100 + 2)
        hashed = dumped(conn.talk(b"lru_crawler metadump hash\r\n"))
        assert set(hashed) == set(found)


def test_metadump_of_classes_tells_of_theirs() -> None:
    with Engine() as e:
        conn = e.connect()
        for size in (10, 200, 3000):
            store(conn, b"k%d" % size, b"v" * size)
        found = dumped(conn.talk(b"lru_crawler metadump all\r\n"))
        classes = {key: fields["cls"].encode() for key, fields in found.items()}
        two = dumped(
            conn.talk(b"lru_crawler metadump %s,%s\r\n" % (classes[b"k10"], classes[b"k3000"]))
        )
        assert set(two) == {b"k10", b"k3000"}
        assert conn.talk(b"lru_crawler metadump 0\r\n") == b"BADCLASS invalid class id\r\n"
        assert conn.talk(b"lru_crawler metadump x\r\n") == b"BADCLASS invalid class id\r\n"
        assert dumped(conn.talk(b"lru_crawler metadump 63\r\n")) == {}


def test_metadump_goes_at_its_readers_speed_and_commands_behind_it_wait() -> None:
    with Engine(arena=64) as e:
        slow, other = e.connect(), e.connect()
        for n in range(3000):
            store(other, b"key%d" % n, b"v")
        slow.send(b"lru_crawler metadump all\r\nmn\r\n")
        e.turn(20)
        assert slow.c.got_bytes < 100_000
        store(other, b"more", b"v")
        got = slow.read()
        assert got.endswith(b"END\r\nMN\r\n")
        assert len(dumped(got[: -len(b"MN\r\n")])) in (3000, 3001)


def test_expired_and_flushed_items_are_not_dumped() -> None:
    with Engine(lru_crawler=1) as e:
        conn = e.connect()
        store(conn, b"soon", b"v", 2)
        store(conn, b"stays", b"v")
        e.sleep(3)
        assert set(dumped(conn.talk(b"lru_crawler metadump all\r\n"))) == {b"stays"}
        assert conn.talk(b"flush_all\r\n") == b"OK\r\n"
        assert conn.talk(b"lru_crawler metadump all\r\n") == b"END\r\n"


def test_dumps_disabled_are_refused() -> None:
    with Engine(no_dump=1) as e:
        assert e.ask(b"lru_crawler metadump all\r\n") == b"ERROR metadump not allowed\r\n"
        refusal = b"CLIENT_ERROR stats cachedump not allowed\r\n"
        assert e.ask(b"stats cachedump 1 0\r\n") == refusal


def test_cachedump_lists_a_class_as_far_as_the_limit() -> None:
    with Engine(segmented=0) as e:
        conn = e.connect()
        for n in range(5):
            store(conn, b"k%d" % n, b"v" * n, 100 if n == 4 else 0)
        lines = [b"ITEM k4 [4 b; 1800000100 s]\r\n"]
        lines += [b"ITEM k%d [%d b; 0 s]\r\n" % (n, n) for n in (3, 2, 1, 0)]
        assert conn.talk(b"stats cachedump 1 0\r\n") == b"".join(lines) + b"END\r\n"
        assert conn.talk(b"stats cachedump 1 2\r\n") == b"".join(lines[:2]) + b"END\r\n"
        assert conn.talk(b"stats cachedump 2 0\r\n") == b"END\r\n"
        assert conn.talk(b"stats cachedump 64 0\r\n") == b"CLIENT_ERROR Illegal slab id\r\n"
        assert conn.talk(b"stats cachedump 1\r\n") == b"CLIENT_ERROR bad command line\r\n"


# ---- connections and the end ----


def test_connection_that_is_silent_for_too_long_is_closed() -> None:
    with Engine(idle_timeout_s=10) as e:
        idle, busy, within = e.connect(), e.connect(), e.connect()
        within.send(b"set k 0 0 5\r\nab")
        for _ in range(4):
            assert busy.talk(b"mn\r\n") == b"MN\r\n"
            e.sleep(4)
        e.turn(3)
        assert [c.c.fins for c in (idle, busy, within)] == [2, 0, 0]
        assert re.search(rb"STAT idle_kicks 1\r\n", busy.talk(b"stats\r\n"))
        assert within.talk(b"cde\r\n") == b"STORED\r\n"
        lib.ix_fake_die(e.fake, idle.number, 0)
        e.turn(2)


@pytest.mark.parametrize(
    ("line", "answer", "stopping"),
    [
        (b"shutdown\r\n", b"", 1),
        (b"shutdown graceful\r\n", b"", 1),
        (b"shutdown x\r\n", b"CLIENT_ERROR invalid shutdown mode\r\n", 0),
    ],
)
def test_shutdown(line: bytes, answer: bytes, stopping: int) -> None:
    with Engine(shutdown_command=1) as e:
        assert e.ask(line) == answer
        assert e.mc.stopping == stopping
    with Engine() as e:
        assert e.ask(line) == b"ERROR: shutdown not enabled\r\n"
        assert not e.mc.stopping


# ---- pages that move ----


def classes_of(e: Engine, *sizes: int) -> list[int]:
    """The class of a value of each of these sizes, with a key of 5 bytes."""
    return [lib.ix_mc_class_of(e.mc, 48 + 5 + size + 2) for size in sizes]


def moved(e: Engine) -> None:
    """Lets a move come to its end."""
    for _ in range(2000):
        if not e.mc.move_page:
            return
        e.sleep(0.011)
    raise AssertionError("a move does not end")


def fill(conn: Conn, prefix: bytes, count: int, size: int) -> list[bytes]:
    """So many values of a size; returns their keys."""
    names = [b"%s%04d" % (prefix, n) for n in range(count)]
    for name in names:
        store(conn, name, (name * (size // 5 + 1))[:size])
    return names


def alive(conn: Conn, names: list[bytes], size: int) -> list[bytes]:
    """Those that are still there, whole."""
    found = []
    for name in names:
        got = conn.talk(b"get %s\r\n" % name)
        if got != b"END\r\n":
            value = (name * (size // 5 + 1))[:size]
            assert got == b"VALUE %s 0 %d\r\n%s\r\nEND\r\n" % (name, size, value)
            found.append(name)
    return found


def test_reassigned_page_belongs_to_the_other_class_and_free_chunks_rescue_its_items() -> None:
    with Engine(automove=0) as e:
        conn = e.connect()
        a, b = classes_of(e, 20_000, 100)
        names = fill(conn, b"a", 3 * e.mc.cls[a].per_page, 20_000)
        gone = [name for n, name in enumerate(names) if n % 3]
        for name in gone:
            assert conn.talk(b"delete %s\r\n" % name) == b"DELETED\r\n"
        cas = conn.talk(b"gets %s\r\n" % names[0]).split(b"\r\n")[0].split(b" ")[-1]
        before = (e.mc.cls[a].pages, e.mc.cls[b].pages)
        assert conn.talk(b"slabs reassign %d %d\r\n" % (a, b)) == b"OK\r\n"
        assert conn.talk(b"slabs reassign %d %d\r\n" % (a, b)).startswith(b"BUSY ")
        moved(e)
        assert (e.mc.cls[a].pages, e.mc.cls[b].pages) == (before[0] - 1, before[1] + 1)
        e.check()
        assert alive(conn, names, 20_000) == [n for n in names if n not in gone]
        assert conn.talk(b"gets %s\r\n" % names[0]).split(b"\r\n")[0].endswith(b" " + cas)
        assert alive(conn, fill(conn, b"b", 500, 100), 100)
        e.check()


def test_reassigned_page_that_is_full_evicts_what_finds_no_other_place() -> None:
    with Engine(automove=0, limit_bytes=8 << 20) as e:
        conn = e.connect()
        a, b = classes_of(e, 20_000, 3000)
        names = fill(conn, b"a", 4 * e.mc.cls[a].per_page, 20_000)
        assert conn.talk(b"slabs reassign -1 %d\r\n" % b) == b"OK\r\n"
        moved(e)
        left = alive(conn, names, 20_000)
        assert len(left) == 3 * e.mc.cls[a].per_page
        assert e.mc.cls[a].moved_evicted == e.mc.cls[a].per_page


def test_page_with_parts_of_large_values_moves_with_them() -> None:
    with Engine(automove=0, limit_bytes=32 << 20, item_max_bytes=4 << 20) as e:
        conn = e.connect()
        largest = e.mc.largest_class
        names = fill(conn, b"l", 6, 1_300_000)
        assert conn.talk(b"delete %s\r\n" % names[1]) == b"DELETED\r\n"
        for _ in range(3):
            assert conn.talk(b"slabs reassign %d 1\r\n" % largest) == b"OK\r\n"
            moved(e)
            e.check()
        assert set(alive(conn, names, 1_300_000)) <= set(names) - {names[1]}
        assert e.mc.cls[1].pages >= 1 and e.mc.pages_moved == 3


def test_page_that_a_slow_reader_holds_moves_when_it_lets_go() -> None:
    with Engine(arena=64, automove=0) as e:
        slow, conn = e.connect(), e.connect()
        a, b = classes_of(e, 300_000, 100)
        names = fill(conn, b"a", 2 * e.mc.cls[a].per_page, 300_000)
        for name in names:
            slow.send(b"get %s\r\n" % name)
        assert conn.talk(b"slabs reassign %d %d\r\n" % (a, b)) == b"OK\r\n"
        for _ in range(50):
            e.sleep(0.011)
        assert e.mc.move_page
        e.check()
        assert slow.read().count(b"VALUE ") >= e.mc.cls[a].per_page
        moved(e)
        assert e.mc.pages_moved == 1


def test_writer_that_never_ends_keeps_its_page() -> None:
    with Engine(automove=0) as e:
        writer, conn = e.connect(), e.connect()
        a, b = classes_of(e, 300_000, 100)
        writer.send(b"set aaaaa 0 0 300000\r\n" + b"x" * 1000)
        fill(conn, b"a", 2 * e.mc.cls[a].per_page, 300_000)
        assert conn.talk(b"slabs reassign %d %d\r\n" % (a, b)) == b"OK\r\n"
        for _ in range(4000):
            e.sleep(0.011)
        assert not e.mc.move_page and e.mc.pages_moved == 0
        e.check()
        assert writer.talk(b"x" * 299_000 + b"\r\n") == b"STORED\r\n"


def test_what_can_not_be_reassigned_is_told() -> None:
    with Engine() as e:
        conn = e.connect()
        store(conn, b"k", b"v")
        for line, answer in (
            (b"1 1", b"SAME src and dst class are identical"),
            (b"1 2", b"NOSPARE source class has no spare pages"),
            (b"100 1", b"BADCLASS invalid src or dst class id"),
            (b"1 x", b"CLIENT_ERROR bad command line format"),
        ):
            assert conn.talk(b"slabs reassign " + line + b"\r\n") == answer + b"\r\n"
    with Engine(no_reassign=1) as e:
        assert e.ask(b"slabs reassign 1 2\r\n") == b"CLIENT_ERROR slab reassignment disabled\r\n"


def test_automove_gives_free_pages_back_and_memory_goes_where_evictions_are() -> None:
    with Engine(limit_bytes=16 << 20) as e:
        conn = e.connect()
        a, b = classes_of(e, 50_000, 500)
        names = fill(conn, b"a", 14 * e.mc.cls[a].per_page, 50_000)
        for name in names[:-20]:
            conn.talk(b"delete %s\r\n" % name)
        for _ in range(4000):
            e.sleep(0.1)
        assert e.mc.pages_free >= 8
        assert len(alive(conn, names[-20:], 50_000)) == 20
        e.check()
        fill(conn, b"b", 5 * e.mc.cls[b].per_page, 500)
        assert e.mc.cls[b].pages >= 5 and not e.mc.cls[b].evicted


def test_lower_memory_limit_gives_pages_back() -> None:
    with Engine(limit_bytes=20 << 20) as e:
        conn = e.connect()
        names = fill(conn, b"a", 350, 50_000)
        assert conn.talk(b"cache_memlimit 8\r\n") == b"OK\r\n"
        for _ in range(400):
            e.sleep(0.1)
        assert e.mc.pages_made - e.mc.pages_free <= 8
        e.check()
        assert 100 < len(alive(conn, names, 50_000)) < 200


# ---- watch ----


def watching(e: Engine, kinds: bytes = b"") -> Conn:
    """A connection that watches."""
    conn = e.connect()
    assert conn.talk(b"watch%s\r\n" % kinds) == b"OK\r\n"
    return conn


def told(conn: Conn) -> list[dict[str, str]]:
    """The lines that came, as fields; they are numbered in order."""
    lines = conn.read().decode().splitlines()
    rows = [dict(word.split("=", 1) for word in line.split(" ")) for line in lines]
    numbers = [int(row.pop("gid")) for row in rows]
    assert numbers == sorted(numbers)
    assert all(row.pop("ts").startswith("18000000") for row in rows)
    return rows


def test_watcher_is_told_of_fetches_and_of_nothing_else() -> None:
    with Engine() as e:
        watcher, conn = watching(e), e.connect()
        store(conn, b"a", b"four")
        conn.talk(b"get a\r\nget b\x01\r\nmg a v\r\n")
        rows = told(watcher)
        assert {row["type"] for row in rows} == {"item_get"}
        assert [(row["key"], row["status"]) for row in rows] == [
            ("a", "not_found"), ("a", "found"), ("b%01", "not_found"), ("a", "found"),
        ]  # fmt: skip
        assert rows[1]["size"] == "4" and rows[1]["clsid"] == "1"


def test_watcher_is_told_of_mutations_evictions_and_connections() -> None:
    with Engine(limit_bytes=2 << 20) as e:
        watcher = watching(e, b" mutations evictions connevents")
        conn = e.connect()
        conn.talk(b"set a 0 100 4\r\nfour\r\nadd a 0 0 1\r\nx\r\n")
        rows = told(watcher)
        assert [row["type"] for row in rows] == ["conn_new", "item_store", "item_store"]
        assert (rows[0]["rip"], rows[0]["transport"]) == ("10.0.0.2", "tcp")
        assert rows[1]["status"] == "stored" and rows[1]["cmd"] == "set" and rows[1]["ttl"] == "100"
        assert rows[2]["status"] == "not_stored" and rows[2]["cmd"] == "add"
        fill(conn, b"l", 8, 400_000)
        evictions = [row for row in told(watcher) if row["type"] == "eviction"]
        assert evictions[0]["key"] == "l0000" and evictions[0]["size"] == "400000"
        assert conn.finish() == b""
        assert told(watcher)[-1]["reason"] == "normal"


def test_watcher_that_is_slow_is_told_what_it_missed() -> None:
    with Engine(arena=64) as e:
        watcher, conn = watching(e, b" fetchers rawcmds"), e.connect()
        for _ in range(40):
            conn.talk(b"get %s\r\n" % (b"k" * 200) * 100)
        text = watcher.read()
        assert b"\nskipped=" in text
        conn.talk(b"get again\r\n")
        assert watcher.read().endswith(b"key=again status=not_found clsid=0 cfd=1 size=0\n")


def test_watchers_end_and_then_nothing_is_written() -> None:
    with Engine() as e:
        one, two, conn = watching(e), watching(e, b" mutations"), e.connect()
        assert e.mc.watching == 3
        assert one.finish() == b"" and e.mc.watching == 2
        lib.ix_fake_die(e.fake, two.number, -104)
        e.turn(2)
        assert e.mc.watching == 0
        before = e.mc.lines_told
        store(conn, b"a", b"v")
        assert e.mc.lines_told == before
        assert conn.talk(b"watch nonsense\r\n") == b"ERROR\r\n"
        many = [watching(e) for _ in range(20)]
        refusal = b"WATCHER_TOO_MANY log watcher limit reached\r\n"
        assert conn.talk(b"watch\r\n") == refusal
        assert all(watcher.finish() == b"" for watcher in many)
    with Engine(no_watch=1) as e:
        assert e.ask(b"watch\r\n") == b"CLIENT_ERROR watch commands not allowed\r\n"


def test_watcher_of_one_worker_is_told_what_another_does() -> None:
    with Engine(workers=2) as e:
        watcher, other = watching(e), ffi.new("struct ix_mc_use *")
        lib.ix_mc_open(other, e.mc, 1)
        lib.ix_mc_set_time(other, e.fake.now_ns)
        assert lib.ix_mc_find(other, b"k", 1, lib.ix_mc_hash(e.mc, b"k", 1)) == ffi.NULL
        assert [row["key"] for row in told(watcher)] == ["k"]
        lib.ix_mc_recover(e.mc, 1)
        assert e.mc.watching == 1
