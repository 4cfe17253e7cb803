"""gate/gate: ring 3's calls, which may say anything, and the gate's own time."""

from __future__ import annotations

import errno
import random
from typing import Any

import pytest

from tests.unit.peer import EINVAL, ENOENT, MS, Peer, Stack, ip_bytes
from tests.unit.san import ffi, lib

POLL: int = lib.IX_GATE_POLL
MAY_SLEEP: int = lib.IX_GATE_MAY_SLEEP_NS
LISTEN: int = lib.IX_GATE_LISTEN
UNLISTEN: int = lib.IX_GATE_UNLISTEN
LISTEN_OPTION: int = lib.IX_GATE_LISTEN_OPTION
UDP_BIND: int = lib.IX_GATE_UDP_BIND
UDP_UNBIND: int = lib.IX_GATE_UDP_UNBIND
STATS: int = lib.IX_GATE_STATS
TICKS_A_NS = 3
RATE = (1 << 32) // TICKS_A_NS


class Gate:
    """A gate with one shard, whose counter is the test's: three ticks a nanosecond."""

    def __init__(self, **options: Any) -> None:
        self.stack = Stack(**options)
        self.c = ffi.new("struct ix_gate *")
        self.tick = ffi.new("uint64_t *", 1_000_000)
        self.c.ticks = self.tick
        self.c.shard_count = 1
        self.c.entry[0].shard = self.stack.shard
        self.start_ns = self.stack.now_ns
        lib.ix_gate_set_clock(self.c, 1_000_000, self.start_ns, RATE)

    def call(self, n: int, *words: int) -> int:
        arg = ffi.new("uint64_t[5]", [word % 2**64 for word in words])
        return int(lib.ix_gate_call(self.c, n, arg))

    def pass_time(self, ns: int) -> None:
        self.tick[0] += ns * TICKS_A_NS
        self.stack.now_ns += ns

    def endpoint(self, port: int, ip: str | None = None, backlog: int = 0) -> tuple[int, int, int]:
        """ADDRESS of api/gate.h."""
        packed = ip_bytes(ip)[:4] if ip else bytes(4)
        return int.from_bytes(packed, "little"), 0, port | 4 << 16 | backlog << 32


# ---- calls


def test_a_cycle_runs_at_the_gates_time_and_gives_the_number_of_events() -> None:
    gate = Gate()
    call = gate.stack.queue("TIMER_SET", value=10 * MS, cookie=9)
    assert gate.call(POLL, 0) == 0
    assert call.result == 0
    gate.pass_time(11 * MS)
    assert gate.call(POLL, 0) == 1
    assert gate.stack.io.events[0].cookie == 9
    assert (gate.c.calls, gate.c.refused) == (2, 0)


@pytest.mark.parametrize("shard", [1, 7, 8, 2**31, 2**32, 2**63, 2**64 - 1])
@pytest.mark.parametrize("n", [POLL, MAY_SLEEP, LISTEN, UDP_BIND, STATS])
def test_a_shard_that_is_not_there_is_refused(n: int, shard: int) -> None:
    gate = Gate()
    assert gate.call(n, shard, 0, 0, 80 | 4 << 16, 0) == -ENOENT
    assert gate.c.refused == 1


def test_a_count_of_shards_beyond_the_table_opens_nothing() -> None:
    gate = Gate()
    gate.c.shard_count = 2**32 - 1
    assert gate.call(POLL, lib.IX_GATE_SHARDS) == -ENOENT


@pytest.mark.parametrize("n", [8, 9, 255, 2**32, 2**64 - 1])
def test_unknown_calls_are_refused(n: int) -> None:
    gate = Gate()
    assert gate.call(n, 0) == -errno.ENOSYS
    assert gate.c.refused == 1


def test_listen_and_unlisten() -> None:
    gate = Gate()
    assert gate.call(LISTEN, 0, *gate.endpoint(80, "10.0.0.1", backlog=5), 77) == 0
    assert gate.call(LISTEN, 0, *gate.endpoint(80, "10.0.0.1"), 78) == -errno.EADDRINUSE
    peer = Peer(gate.stack)
    peer.send("S")
    peer.expect("SA", seq=-1, ack=0)
    peer.send("A")
    gate.stack.expect("KNOCK", cookie=77)
    assert gate.call(UNLISTEN, 0, *gate.endpoint(80)) == -ENOENT
    assert gate.call(UNLISTEN, 0, *gate.endpoint(80, "10.0.0.1")) == 0


def test_listen_option_sets_what_connections_begin_with() -> None:
    gate = Gate()
    option, dctcp = lib.IX_OPT_CONGESTION, lib.IX_CC_DCTCP
    assert gate.call(LISTEN, 0, *gate.endpoint(80), 77) == 0
    assert gate.call(LISTEN_OPTION, 0, *gate.endpoint(80, backlog=option), dctcp) == 0
    assert gate.stack.info(Peer(gate.stack).connect()).congestion == dctcp
    assert gate.call(LISTEN_OPTION, 0, *gate.endpoint(80, backlog=option), 9) == -errno.EINVAL
    assert gate.call(LISTEN_OPTION, 0, *gate.endpoint(81, backlog=option), dctcp) == -ENOENT


def test_udp_bind_gives_a_handle() -> None:
    gate = Gate()
    handle = gate.call(UDP_BIND, 0, *gate.endpoint(53), 5)
    assert handle > 0
    assert gate.call(UDP_BIND, 0, *gate.endpoint(53), 5) == -errno.EADDRINUSE
    assert gate.call(UDP_UNBIND, 0, handle) == 0
    assert gate.call(UDP_UNBIND, 0, handle) == -ENOENT


@pytest.mark.parametrize("n", [LISTEN, LISTEN_OPTION, UNLISTEN, UDP_BIND])
@pytest.mark.parametrize("third", [0, 80 | 5 << 16, 80 | 7 << 16, 80 | 4 << 16 | 1 << 24, 4 << 16])
def test_addresses_that_are_none_are_refused(n: int, third: int) -> None:
    gate = Gate()
    assert gate.call(n, 0, 0, 0, third, 0) in (-EINVAL, -ENOENT)
    assert gate.c.refused == 1


def test_stats_are_brought_up_to_date() -> None:
    gate = Gate(listen=80)
    Peer(gate.stack).connect()
    assert gate.stack.shard.stats.flows == 0
    assert gate.call(STATS, 0) == 0
    assert gate.stack.shard.stats.flows == 1


def test_how_long_one_may_sleep() -> None:
    gate = Gate()
    gate.call(POLL, 0)
    assert gate.call(MAY_SLEEP, 0) == 2**63 - 1
    gate.stack.queue("TIMER_SET", value=10 * MS)
    assert gate.call(MAY_SLEEP, 0) == 0
    gate.call(POLL, 0)
    assert 5 * MS < gate.call(MAY_SLEEP, 0) <= 11 * MS
    gate.pass_time(20 * MS)
    assert gate.call(MAY_SLEEP, 0) == 0


@pytest.mark.parametrize("seed", range(3))
def test_any_words_do_no_harm(seed: int) -> None:
    rng = random.Random(seed)
    gate = Gate(listen=80)
    peer = Peer(gate.stack)
    handle = peer.connect()
    worth = [0, 1, 4 << 16, 80 | 4 << 16, handle, 2**31, 2**32, 2**63, 2**64 - 1]
    for _ in range(3000):
        words = [rng.choice(worth) if rng.random() < 0.8 else rng.getrandbits(64) for _ in "abcd"]
        gate.call(rng.randrange(9), rng.choice([0, 0, 0, 1, 2**64 - 1]), *words)
        gate.pass_time(1000)
    gate.stack.check()
    assert gate.stack.state(handle) == "ESTABLISHED"


# ---- time


def now(gate: Gate) -> int:
    return int(lib.ix_gate_now(gate.c)) - gate.start_ns


def test_time_follows_the_counter() -> None:
    gate = Gate()
    gate.pass_time(1_000_000_000)
    assert abs(now(gate) - 1_000_000_000) < 2
    gate.pass_time(24 * 3600 * 1_000_000_000)  # a day: the product has more than 64 bits
    assert abs(now(gate) - 86_401 * 1_000_000_000) < 100_000


def test_time_never_goes_back() -> None:
    gate = Gate()
    gate.pass_time(5000)
    late = now(gate)
    lib.ix_gate_set_clock(gate.c, gate.tick[0], gate.start_ns + 1000, RATE)
    assert now(gate) == late
    gate.tick[0] = 0  # the counter itself goes back: a thread moved to another socket
    assert now(gate) == late
    lib.ix_gate_set_clock(gate.c, 0, gate.start_ns + 9000, RATE)
    assert now(gate) == 9000


def test_time_stands_still_while_the_clock_is_being_set() -> None:
    gate = Gate()
    gate.pass_time(5000)
    before = now(gate)
    gate.c.clock.sequence += 1  # the writer was taken off its core
    gate.pass_time(5000)
    assert now(gate) == before
    assert gate.call(POLL, 0) == 0
    gate.c.clock.sequence += 1
    assert abs(now(gate) - 10_000) < 2


def test_a_clock_that_drifts_is_set_right_by_news() -> None:
    """Linux slews its clock by 500 ppm at most: what news a second apart leave of that."""
    gate = Gate()
    linux_ns = gate.start_ns
    for _ in range(10):
        gate.pass_time(1_000_000_000)
        linux_ns += 1_000_500_000
        assert abs(int(lib.ix_gate_now(gate.c)) - linux_ns) <= 510_000
        lib.ix_gate_set_clock(gate.c, gate.tick[0], linux_ns, RATE)
        assert int(lib.ix_gate_now(gate.c)) == linux_ns
