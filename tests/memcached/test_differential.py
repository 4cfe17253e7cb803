"""Streams of commands to this server and to Debian's memcached: every byte must be the same."""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.memcached.engine import Engine
from tests.memcached.kit import debians

MAX_ITEM = 16384
EXAMPLES = int(os.environ.get("IX_MEMCACHED_EXAMPLES", "200"))


class Pair:
    """Both servers, with the same history."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self.start()

    def start(self) -> None:
        self._stack.close()
        self.port = self._stack.enter_context(
            debians("-m", "32", "-I", str(MAX_ITEM), "-o", "slab_chunk_max=8192")
        )
        self.engine = Engine(
            limit_bytes=32 << 20, item_max_bytes=MAX_ITEM, chunk_max_bytes=MAX_ITEM // 2
        )

    def close(self) -> None:
        self.engine.close()
        self._stack.close()

    def theirs(self, data: bytes, cuts: list[int]) -> bytes:
        got = b""
        with socket.create_connection(("127.0.0.1", self.port), 10) as sock:
            for part in pieces(data, cuts):
                try:
                    sock.sendall(part)
                except OSError:
                    break
            with suppress(OSError):
                sock.shutdown(socket.SHUT_WR)
                while part := sock.recv(1 << 20):
                    got += part
        return got

    def ours(self, data: bytes, cuts: list[int], frame_bytes: int) -> bytes:
        conn = self.engine.connect()
        for part in pieces(data, cuts):
            conn.send(part, frame_bytes)
        return conn.finish()

    def compare(self, data: bytes, cuts: list[int], frame_bytes: int = 1448) -> None:
        """A difference must show twice, the second time between fresh servers: the clocks of the
        two don't tick together."""
        for _ in range(2):
            ours, theirs = self.ours(data, cuts, frame_bytes), self.theirs(data, cuts)
            if ours == theirs:
                return
            self.start()
        assert ours == theirs, (data, ours, theirs)


def pieces(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    """data, cut at these places."""
    places = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    for begin, end in itertools.pairwise(places):
        yield data[begin:end]


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    both = Pair()
    yield both
    both.close()


def in_full(commands: list[bytes], last: bytes = b"") -> bytes:
    """Commands, with a clean beginning; and lines at the end that make up for data that is missing:
    memcached answers nothing any more when a connection ends within data."""
    return b"flush_all\r\n" + b"".join(commands) + b"\r\n\r\nmn\r\n" + last


# ---- commands ----

keys = st.sampled_from([b"a", b"b", b"key", b"k" * 250, b"\xff\xfe\x01", b"a" * 251])
# A key too long makes memcached forget what it was to answer to the commands before: not imitated.
good_keys = st.sampled_from([b"a", b"b", b"key", b"k" * 250, b"\xff\xfe\x01"])
short_keys = st.sampled_from([b"a", b"b", b"key"])
numbers = st.one_of(
    st.sampled_from(
        [
            b"0",
            b"1",
            b"2",
            b"-1",
            b"+3",
            b"4294967295",
            b"4294967296",
            b"18446744073709551615",
            b"18446744073709551616",
            b"2147483647",
            b"2147483648",
            b"-2147483649",
            b"x",
            b"1x",
            b"1\t",
            b"\t7",
            b"0x10",
            b"-0",
            b"1000",
            b"9223372036854775808",
        ]
    ),
    st.integers(-5, 300).map(lambda n: b"%d" % n),
)
flags = st.one_of(st.sampled_from([b"0", b"0", b"5"]), numbers)
exptimes = st.one_of(st.sampled_from([b"0", b"0", b"0", b"-1", b"1000"]), numbers)
values = st.one_of(
    st.sampled_from([b"", b"x", b"10", b"9", b"18446744073709551615", b"99 ", b"12abc", b"\r\n"]),
    st.binary(max_size=40),
    st.integers(0, 20000).map(lambda n: (b"z" * 99 + b"\n") * (n // 100) + b"z" * (n % 100)),
)
noreply = st.sampled_from([b"", b"", b"", b" noreply", b" noreply2"])


def _stored(
    verb: bytes, key: bytes, flag: bytes, exptime: bytes, value: bytes, off: int, quiet: bytes
) -> bytes:
    return b"%s %s %s %s %d%s\r\n%s\r\n" % (
        verb,
        key,
        flag,
        exptime,
        max(len(value) + off, -3),
        quiet,
        value,
    )


off_by = st.sampled_from([0] * 12 + [-1, 1])
stores = st.builds(
    _stored,
    st.sampled_from([b"set", b"set", b"set", b"add", b"replace", b"append", b"prepend"]),
    keys,
    flags,
    exptimes,
    values,
    off_by,
    noreply,
)
swaps = st.builds(
    lambda key, value, cas, quiet: (
        b"cas %s 0 0 %d %s%s\r\n%s\r\n" % (key, len(value), cas, quiet, value)
    ),
    short_keys,
    st.binary(max_size=8),
    st.one_of(st.integers(1, 9).map(lambda n: b"%d" % n), numbers),
    noreply,
)
gets = st.builds(
    lambda verb, names: verb + b" " + b" ".join(names) + b"\r\n",
    st.sampled_from([b"get", b"gets"]),
    st.lists(good_keys, min_size=0, max_size=30),
)
gats = st.builds(
    lambda verb, when, names: verb + b" " + when + b" " + b" ".join(names) + b"\r\n",
    st.sampled_from([b"gat", b"gats"]),
    exptimes,
    st.lists(good_keys, min_size=0, max_size=4),
)
counts = st.builds(
    lambda verb, key, n, quiet: b"%s %s %s%s\r\n" % (verb, key, n, quiet),
    st.sampled_from([b"incr", b"decr"]),
    keys,
    numbers,
    noreply,
)
simple = st.one_of(
    st.builds(
        lambda k, q: b"delete %s%s\r\n" % (k, q),
        keys,
        st.sampled_from([b"", b" 0", b" noreply", b" 0 noreply", b" 5"]),
    ),
    st.builds(lambda k, e, q: b"touch %s %s%s\r\n" % (k, e, q), keys, exptimes, noreply),
    st.sampled_from(
        [
            b"version\r\n",
            b"verbosity 0\r\n",
            b"verbosity\r\n",
            b"verbosity x\r\n",
            b"\r\n",
            b"\n",
            b"x\r\n",
            b"get\r\n",
            b"get \r\n",
            b"set\r\n",
            b"set a\r\n",
            b"flush_all\r\n",
            b"flush_all noreply\r\n",
            b"flush_all 0\r\n",
            b"flush_all x\r\n",
            b"flush_all 1 2 3\r\n",
            b"cache_memlimit\r\n",
            b"cache_memlimit 1\r\n",
            b"cache_memlimit x\r\n",
            b"lru\r\n",
            b"lru mode flat\r\n",
            b"lru mode segmented\r\n",
            b"lru mode x\r\n",
            b"lru tune 10 20 0.2 2.0\r\n",
            b"lru tune 50 50 0.2 2\r\n",
            b"lru temp_ttl 10\r\n",
            b"lru temp_ttl -1\r\n",
            b"slabs\r\n",
            b"slabs automove 0\r\n",
            b"slabs automove x\r\n",
            b"slabs automove 1\r\n",
            b"slabs automove 3\r\n",
            b"slabs automove ratio 0.8\r\n",
            b"slabs automove ratio\r\n",
            b"slabs reassign 1 1\r\n",
            b"slabs reassign 1 x\r\n",
            b"slabs reassign 99 1\r\n",
            b"slabs reassign\r\n",
            b"stats cachedump\r\n",
            b"stats cachedump 1\r\n",
            b"stats cachedump x 1\r\n",
            b"stats cachedump 64 1\r\n",
            b"stats cachedump 40 1\r\n",
            b"lru_crawler metadump\r\n",
            b"lru_crawler crawl 0\r\n",
            b"lru_crawler crawl x\r\n",
            b"shutdown graceful\r\n",
            b"lru_crawler\r\n",
            b"lru_crawler tocrawl 5\r\n",
            b"lru_crawler sleep 5\r\n",
            b"lru_crawler sleep 9999999\r\n",
            b"stats foo\r\n",
            b"stats reset\r\n",
            b"nonsense\r\n",
            b"incr a\r\n",
            b"touch a\r\n",
            b"gat\r\n",
            b"gat 0\r\n",
            b"gat x a\r\n",
            b"delete\r\n",
            b"GET a\r\n",
            b"  get   a   b  \r\n",
            b"get a\0 b\r\n",
            b"get a\n",
            b"bget a\r\n",
            b"shutdown\r\n",
        ]
    ),
)
streams = st.lists(st.one_of(stores, stores, gets, gats, counts, simple, swaps), max_size=25)
cuts = st.lists(st.integers(0, 1 << 20), max_size=4)


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=not os.environ.get("IX_MEMCACHED_EXAMPLES"),
    suppress_health_check=list(HealthCheck),
)
@given(streams, cuts, st.sampled_from([1448, 1448, 7, 100]), st.sampled_from([b"", b"quit\r\n"]))
def test_text_commands(
    pair: Pair, commands: list[bytes], cut: list[int], frame: int, last: bytes
) -> None:
    pair.compare(in_full(commands, last), cut, frame)


# ---- meta ----

meta_keys = st.sampled_from([b"a", b"b", b"key", b"YQ==", b"Zm9v", b"%%%", b"k" * 250, b"k" * 251])
opaque = st.sampled_from([b"O1", b"Oabc", b"O", b"O" + b"x" * 31, b"O" + b"x" * 32])


def flag_words(*choices: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return st.lists(st.one_of(*choices), max_size=8).map(
        lambda words: b"".join(b" " + word for word in words)
    )


def with_number(*letters: bytes) -> st.SearchStrategy[bytes]:
    return st.builds(lambda a, b: a + b, st.sampled_from(letters), numbers)


plain = st.sampled_from([b"b", b"c", b"f", b"h", b"k", b"l", b"q", b"s", b"t", b"u", b"v", b"I"])
odd = st.sampled_from([b"!", b"c", b"vv", b"\xff", b"P", b"L", b"MS", b"M"])
mode = st.sampled_from([b"ME", b"MA", b"MP", b"MR", b"MS", b"MX", b"MI", b"MD", b"M+", b"M-"])
mgs = st.builds(
    lambda k, f: b"mg " + k + f + b"\r\n",
    meta_keys,
    flag_words(
        plain,
        plain,
        opaque,
        with_number(b"N", b"R", b"T"),
        st.sampled_from([b"N1000", b"T1000", b"R5", b"R2000"]),
    ),
)
mss = st.builds(
    lambda k, v, off, f: b"ms %s %d%s\r\n%s\r\n" % (k, max(len(v) + off, 0), f, v),
    meta_keys,
    values,
    off_by,
    flag_words(
        plain,
        opaque,
        mode,
        with_number(b"C", b"F", b"T"),
        st.sampled_from([b"C1", b"T0", b"T1000"]),
    ),
)
mds = st.builds(
    lambda k, f: b"md " + k + f + b"\r\n",
    meta_keys,
    flag_words(plain, opaque, with_number(b"C", b"T"), st.sampled_from([b"I", b"T1000", b"q"])),
)
mas = st.builds(
    lambda k, f: b"ma " + k + f + b"\r\n",
    meta_keys,
    flag_words(
        plain,
        opaque,
        mode,
        with_number(b"C", b"N", b"J", b"D", b"T"),
        st.sampled_from([b"N0", b"v", b"D5"]),
    ),
)
others = st.sampled_from(
    [
        b"mn\r\n",
        b"mg\r\n",
        b"ms a\r\n",
        b"ms a x\r\n",
        b"me\r\n",
        b"me nothing\r\n",
        b"mx a\r\n",
        b"md\r\n",
        b"ma\r\n",
        b"mg a !\r\n",
        b"mg a c c\r\n",
    ]
)


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=not os.environ.get("IX_MEMCACHED_EXAMPLES"),
    suppress_health_check=list(HealthCheck),
)
@given(st.lists(st.one_of(mgs, mss, mss, mds, mas, others, gets, stores), max_size=25), cuts)
def test_meta_commands(pair: Pair, commands: list[bytes], cut: list[int]) -> None:
    pair.compare(in_full(commands), cut)


# ---- binary ----


def request(
    op: int,
    key: bytes = b"",
    extras: bytes = b"",
    value: bytes = b"",
    cas: int = 0,
    opaque_: int = 7,
    off: int = 0,
) -> bytes:
    """One request of the binary protocol."""
    body = extras + key + value
    return (
        bytes((0x80, op))
        + len(key).to_bytes(2, "big")
        + bytes((len(extras), 0, 0, 0))
        + max(len(body) + off, 0).to_bytes(4, "big")
        + opaque_.to_bytes(4, "big")
        + cas.to_bytes(8, "big")
        + body
    )


bkeys = st.sampled_from([b"a", b"b", b"key", b"k" * 250])
cas_ids = st.sampled_from([0, 0, 0, 1, 2, 3])
binary = st.one_of(
    st.builds(request, st.sampled_from([0, 9, 12, 13, 4, 20]), bkeys, cas=cas_ids),
    st.builds(
        request,
        st.sampled_from([1, 2, 3, 17, 18, 19]),
        bkeys,
        st.sampled_from([bytes(8), b"\0\0\0\5\0\0\0\0", b"\0\0\0\1\0\0\4\0"]),
        values,
        cas_ids,
    ),
    st.builds(request, st.sampled_from([14, 15, 25, 26]), bkeys, value=values, cas=cas_ids),
    st.builds(
        lambda op, key, delta, first, expiry: request(
            op, key, delta.to_bytes(8, "big") + first.to_bytes(8, "big") + expiry.to_bytes(4, "big")
        ),
        st.sampled_from([5, 6, 21, 22]),
        bkeys,
        st.integers(0, 20),
        st.integers(0, 99),
        st.sampled_from([0, 0xFFFFFFFF, 1000]),
    ),
    st.builds(
        request,
        st.sampled_from([0x1C, 0x1D, 0x1E, 0x23, 0x24]),
        bkeys,
        st.sampled_from([bytes(4), b"\0\0\4\0"]),
    ),
    st.builds(request, st.sampled_from([8, 24, 10, 11, 10, 11])),
    st.builds(request, st.sampled_from([0x1B, 0x20, 0x50, 0xFF])),
    st.builds(request, st.sampled_from([0x21, 0x22]), bkeys),
)
# What ends the connection must come last: bytes left unread there would make the kernel reset it.
closing = st.one_of(
    st.sampled_from([b"", request(7), request(23), request(0, b"k" * 251), request(1, off=-1)]),
    st.builds(
        request,
        st.sampled_from([*range(6), *range(8, 16), 0x1C, 0x1D]),
        st.sampled_from([b"", b"a"]),
        st.just(bytes(3)),
    ),
)


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=not os.environ.get("IX_MEMCACHED_EXAMPLES"),
    suppress_health_check=list(HealthCheck),
)
@given(st.lists(binary, max_size=20), cuts, st.sampled_from([1448, 11]), closing)
def test_binary_requests(
    pair: Pair, requests: list[bytes], cut: list[int], frame: int, last: bytes
) -> None:
    pair.compare(b"".join([request(8), *requests, request(10), last]), cut, frame)
