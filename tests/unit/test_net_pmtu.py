"""net/pmtu: the cache of path MTUs by destination (RFC 1191, RFC 8201)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.peer import MS, Stack, ip_bytes
from tests.unit.san import ffi, lib

TEN_MINUTES = 600_000


def address(dotted: str) -> Any:
    ip = ffi.new("struct ix_ip *")
    ffi.memmove(ip, ip_bytes(dotted), 4)
    return ip


def net(stack: Stack) -> Any:
    return ffi.addressof(stack.shard.net)


def get(stack: Stack, ip: str, family: int = 4) -> int:
    return int(lib.ix_pmtu_get(net(stack), family, address(ip)))


def lower(stack: Stack, ip: str, mtu: int, family: int = 4) -> bool:
    return bool(lib.ix_pmtu_lower(net(stack), family, address(ip), mtu))


def test_unknown_path_takes_what_the_link_takes() -> None:
    assert get(Stack(mtu=1500), "10.0.0.2") == 1500


@pytest.mark.parametrize(
    "family, said, kept", [(4, 1400, 1400), (4, 68, 576), (4, 0, 576), (6, 576, 1280)]
)
def test_path_takes_less_but_never_less_than_every_host_must(
    family: int, said: int, kept: int
) -> None:
    stack = Stack()
    assert lower(stack, "10.0.0.2", said, family)
    assert get(stack, "10.0.0.2", family) == kept
    assert get(stack, "10.0.0.3", family) == 1500
    assert get(stack, "10.0.0.2", 10 - family) == 1500


@pytest.mark.parametrize("mtu", [1400, 1401, 1500, 9000, 65535])
def test_mtu_that_is_no_smaller_is_no_news(mtu: int) -> None:
    stack = Stack()
    lower(stack, "10.0.0.2", 1400)
    epoch = stack.shard.net.epoch
    assert not lower(stack, "10.0.0.2", mtu)
    assert get(stack, "10.0.0.2") == 1400
    assert stack.shard.net.epoch == epoch
    assert stack.counter("pmtu_lowered") == 1


def test_path_is_forgotten_after_ten_minutes() -> None:
    stack = Stack()
    lower(stack, "10.0.0.2", 1400)
    stack.poll(ms=300_000)
    lower(stack, "10.0.0.3", 1300)
    stack.poll(ms=TEN_MINUTES - 300_001)
    assert (get(stack, "10.0.0.2"), get(stack, "10.0.0.3")) == (1400, 1300)
    epoch = stack.shard.net.epoch
    stack.poll(ms=1)
    assert (get(stack, "10.0.0.2"), get(stack, "10.0.0.3")) == (1500, 1300)
    assert stack.shard.net.epoch != epoch  # flows look it up again
    stack.poll(ms=300_000)
    assert get(stack, "10.0.0.3") == 1500
    assert stack.shard.net.pmtu.next_ns == 2**64 - 1


def test_cache_is_bounded_and_the_oldest_goes() -> None:
    stack = Stack()
    for i in range(2000):
        stack.shard.net.now_ns = stack.now_ns + i * MS
        assert lower(stack, f"10.1.{i // 250}.{i % 250}", 1000)
        assert get(stack, f"10.1.{i // 250}.{i % 250}") == 1000
    known = [i for i in range(2000) if get(stack, f"10.1.{i // 250}.{i % 250}") == 1000]
    assert len(known) == lib.IX_PMTU_SETS * lib.IX_PMTU_WAYS
    assert sum(known) / len(known) > 1700
