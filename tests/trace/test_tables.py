"""Differences of tables, histograms, and how they are written."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ixnet.trace.tables import Durations, difference, doubling, duration, merged, rate, slot_rows


def test_difference_drops_what_stood_still_and_keeps_maxima() -> None:
    before = {"times": {(0, 1): (2, 100, 90), (0, 2): (1, 5, 5)}, "polls": {(7,): (4,)}}
    now = {"times": {(0, 1): (5, 250, 95), (0, 2): (1, 5, 5), (1, 1): (1, 8, 8)},
           "polls": {(7,): (10,)}}  # fmt: skip
    assert difference(now, before) == {
        "times": {(0, 1): (3, 150, 95), (1, 1): (1, 8, 8)},
        "polls": {(7,): (6,)},
    }
    assert difference(now, {}) == now


def test_difference_of_a_counter_that_began_anew_is_what_it_has() -> None:
    assert difference({"counters": {("socket/0/x",): (3,)}}, {"counters": {("socket/0/x",): (9,)}})[
        "counters"
    ] == {("socket/0/x",): (3,)}


def of(*values_ns: int) -> Durations:
    """As a program would have put them in."""
    found = Durations()
    for ns in values_ns:
        found.add(max(ns.bit_length() - 1, 0), (1, ns, ns))
    return found


@given(st.lists(st.integers(1, 10**10), min_size=1), st.floats(0.01, 1))
def test_quantiles_bound_the_values_by_a_factor_of_two(values: list[int], share: float) -> None:
    found = of(*values)
    exact = sorted(values)[max(-(-len(values) * share // 1), 1).__int__() - 1]
    assert exact <= found.quantile_ns(share) * 1.0001
    assert found.quantile_ns(share) <= max(2 * exact, 1)
    assert (found.count, found.total_ns, found.max_ns) == (len(values), sum(values), max(values))


def test_durations_without_any_say_nothing() -> None:
    nothing = Durations()
    assert (nothing.count, nothing.mean_ns, nothing.quantile_ns(0.99)) == (0, 0.0, 0)
    assert nothing.cells() == ["-"] * 4
    assert slot_rows(nothing) == []


def test_merged_keeps_counts_and_the_longest() -> None:
    whole = merged([of(5, 6), of(7), of(900)])
    assert whole.as_dict()["slots"] == {"4": 3, "512": 1}
    assert whole.max_ns == 900
    assert [count for _, count in slot_rows(whole)] == [3, 0, 0, 0, 0, 0, 0, 1]


@given(st.dictionaries(st.integers(0, 300), st.integers(1, 1000), min_size=1))
def test_doubling_ranges_hold_every_value(values: dict[int, int]) -> None:
    rows = doubling(values)
    assert sum(count for _, count in rows) == sum(values.values())
    for name, count in rows:
        low, _, high = name.partition("-")
        inside = range(int(low), int(high or low) + 1)
        assert count == sum(n for value, n in values.items() if value in inside)


def test_texts() -> None:
    assert [duration(ns) for ns in (0, 850, 12_300, 999_600, 1_250_000, 3.1e9, 4e12)] == [
        "0 ns", "850 ns", "12.3 us", "1,000 us", "1.25 ms", "3.1 s", "4,000 s",
    ]  # fmt: skip
    assert [rate(n, 2) for n in (0, 3, 2000)] == ["0", "1.5", "1,000"]
    assert doubling({}) == []
