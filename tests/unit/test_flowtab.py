"""mem/flowtab.c: the flow table."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest

from tests.unit.dies import dies
from tests.unit.san import ffi, lib

MASK64 = 2**64 - 1


def mix(value: int) -> int:
    """A 64-bit hash of a number: splitmix64's, as base/hash.h has it."""
    state = ffi.new("uint64_t *", value)
    return int(lib.ix_random(state))


class Table:
    """A flow table in memory of its own, aligned as it wants it."""

    def __init__(self, most: int) -> None:
        size = lib.ix_flowtab_bytes(most)
        raw = ffi.new("uint8_t[]", size + 64)
        skip = -int(ffi.cast("uintptr_t", raw)) % 64
        self.memory = raw
        self.t = ffi.new("struct ix_flowtab *")
        lib.ix_flowtab_init(self.t, raw + skip, most)

    def check(self) -> None:
        wrong = lib.ix_flowtab_check(self.t)
        assert wrong == ffi.NULL, ffi.string(wrong)

    def add(self, entries: Iterable[tuple[int, int]]) -> None:
        for value, flow in entries:
            assert lib.ix_flowtab_add(self.t, value, flow) == 0

    def candidates(self, value: int) -> list[int]:
        """What a lookup offers, in its order."""
        it = ffi.new("struct ix_flow_iter *", lib.ix_flowtab_iter(self.t, value))
        found = []
        while (flow := lib.ix_flowtab_next(self.t, it)) != lib.IX_NONE:
            found.append(int(flow))
        return found


def test_empty_lookup_finds_nothing() -> None:
    table = Table(100)
    assert table.candidates(0) == table.candidates(MASK64) == []
    table.check()


def test_added_is_found_and_deleted_is_not() -> None:
    table = Table(100)
    table.add([(0xABCD_0000_0000_0001, 7)])
    assert table.candidates(0xABCD_0000_0000_0001) == [7]
    assert table.candidates(0xABCE_0000_0000_0001) == []  # same bucket, another tag
    assert table.candidates(0xABCD_0000_0000_0002) == []  # same tag, another bucket
    lib.ix_flowtab_del(table.t, 0xABCD_0000_0000_0001, 7)
    assert table.candidates(0xABCD_0000_0000_0001) == []
    table.check()


@pytest.mark.parametrize("value", [0, 5, 0xFFFF_FFFF, 1 << 48, 0xFFFF << 48])
def test_hash_with_tag_zero_or_any_other_is_kept(value: int) -> None:
    table = Table(8)
    table.add([(value, 1)])
    assert table.candidates(value) == [1]
    table.check()


@pytest.mark.parametrize("most", [0, 1, 2, 7, 8, 9, 63, 64, 65, 1000])
@pytest.mark.parametrize("values", ["equal", "one bucket", "random"])
def test_max_flows_fit_whatever_the_hashes(most: int, values: str) -> None:
    def value(flow: int) -> int:
        if values == "equal":
            return 42
        return flow << 48 if values == "one bucket" else mix(flow)

    table = Table(most)
    table.add((value(flow), flow) for flow in range(most))
    table.check()
    for flow in range(most):
        assert flow in table.candidates(value(flow))
    order = list(range(most))
    random.Random(most).shuffle(order)
    for flow in order:
        lib.ix_flowtab_del(table.t, value(flow), flow)
    table.check()
    assert table.t.flows == 0
    assert lib.ix_flowtab_survey(table.t).spares == 0


def test_spares_exhausted_add_is_refused_and_changes_nothing() -> None:
    table = Table(8)  # one spare bucket: 16 equal hashes fit, which is more than was promised
    table.add((1, flow) for flow in range(16))
    assert lib.ix_flowtab_add(table.t, 1, 99) == -lib.IX_ENOSPC
    assert sorted(table.candidates(1)) == list(range(16))
    table.check()
    lib.ix_flowtab_del(table.t, 1, 3)
    table.add([(1, 99)])
    assert sorted(table.candidates(1)) == [f for f in range(16) if f != 3] + [99]


@pytest.mark.parametrize("deleted", range(20))
def test_chain_hole_is_filled_from_its_end(deleted: int) -> None:
    table = Table(64)
    table.add((1, flow) for flow in range(20))
    lib.ix_flowtab_del(table.t, 1, deleted)
    assert sorted(table.candidates(1)) == [f for f in range(20) if f != deleted]
    table.check()


def test_delete_of_what_is_not_there_dies() -> None:
    table = Table(64)
    table.add([(1, 5)])
    assert dies(lambda: lib.ix_flowtab_del(table.t, 1, 6))
    assert dies(lambda: lib.ix_flowtab_del(table.t, 1 | 1 << 50, 5))
    assert dies(lambda: lib.ix_flowtab_add(table.t, 1, lib.IX_NONE))


def test_unaligned_memory_or_too_many_flows_dies() -> None:
    t = ffi.new("struct ix_flowtab *")
    assert dies(lambda: lib.ix_flowtab_init(t, ffi.cast("void *", 4096 + 8), 8))
    assert dies(lambda: lib.ix_flowtab_bytes(lib.IX_FLOWS_MAX + 1))


def test_load_is_at_most_half_and_spares_cover_the_worst_case() -> None:
    for most in [*range(1, 200), 4096, 4097, 100_000]:
        table = Table(most)
        assert (table.t.bucket_mask + 1) * lib.IX_FLOWTAB_WAYS >= 2 * most
        assert table.t.spare_count >= most / 8


def test_million_flows_cost_what_few_cost() -> None:
    # Counted, not timed: bucket lines read by looking up each flow once, and the flows that a
    # lookup has to be compared with in vain.
    cost = {}
    for flows in (1 << 14, 1 << 20):
        table = Table(flows)
        table.add((mix(flow), flow) for flow in range(flows))
        survey = lib.ix_flowtab_survey(table.t)
        sample = range(0, flows, flows // 5000)
        vain = sum(len(table.candidates(mix(flow))) - 1 for flow in sample)
        cost[flows] = survey.hit_lines / flows
        assert survey.deepest <= 4
        assert vain / len(sample) < 0.001
        assert all(flow in table.candidates(mix(flow)) for flow in sample)
    assert cost[1 << 20] < 1.05
    assert abs(cost[1 << 20] - cost[1 << 14]) < 0.01


@pytest.mark.parametrize("what", ["hole", "count", "lost spare", "shared spare", "not full"])
def test_check_finds_damage(what: str) -> None:
    table = Table(64)
    table.add((0, flow) for flow in range(20))
    buckets = table.t.buckets
    spare = buckets[0].next
    if what == "hole":
        buckets[0].tag[3] = 0
    elif what == "count":
        table.t.flows += 1
    elif what == "lost spare":
        table.t.spare_free = buckets[table.t.spare_free].next
    elif what == "shared spare":
        table.t.spare_free = spare
    else:
        buckets[1].next = spare
    assert lib.ix_flowtab_check(table.t) != ffi.NULL
