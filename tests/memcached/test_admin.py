"""Commands about the server rather than about one item, under the sanitizers."""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

import pytest

from tests.memcached.engine import Conn, Engine
from tests.unit.san import lib


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
