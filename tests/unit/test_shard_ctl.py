"""shard/ctl: the control plane's ring."""

from __future__ import annotations

import pytest

from tests.unit.peer import EAGAIN, ENETDOWN, LOCAL, REMOTE_MAC, Peer, Stack
from tests.unit.san import ffi, lib


def test_ring_full_says_try_again_and_loses_nothing() -> None:
    stack = Stack(route=False)
    sent = 0
    while stack.ctl("ROUTE_SET", ip=f"10.{sent % 256}.0.0", prefix=16) == 0:
        sent += 1
    assert sent == lib.IX_CTL_RING
    assert stack.ctl("LINK", value=1) == -EAGAIN
    stack.poll()
    assert stack.ctl("LINK", value=1) == 0
    stack.settle()
    assert stack.shard.net.route_count == lib.IX_CTL_RING


def test_news_are_taken_a_few_a_cycle() -> None:
    # A burst of route changes must not delay packets.
    stack = Stack()
    before = stack.counter("ctl_messages")
    for i in range(40):
        stack.ctl("ROUTE_SET", ip=f"10.{i}.0.0", prefix=16)
    counts = []
    for _ in range(4):
        stack.poll()
        counts.append(stack.counter("ctl_messages") - before)
    assert counts == [16, 32, 40, 40]


def test_requests_full_are_dropped_and_counted() -> None:
    stack = Stack(neighbour=False, max_flows=1024, max_calls=1024)
    for i in range(300):
        peer = f"10.0.{1 + i // 250}.{1 + i % 250}"
        stack.queue("CONNECT", family=4, peer=peer, peer_port=80)
    stack.poll()
    assert stack.counter("ctl_full") == 300 - lib.IX_CTL_RING
    found = 0
    while request := stack.request():
        assert request[0] == lib.IX_CTL_NEIGH_MISS
        found += 1
    assert found == lib.IX_CTL_RING


def test_rings_go_round_for_ever() -> None:
    stack = Stack()
    stack.shard.news.head = stack.shard.news.tail = 2**32 - 10
    for i in range(40):
        assert stack.ctl("ADDR_ADD", ip=LOCAL) == 0
        if i % 3 == 0:
            stack.poll()
    stack.settle()
    assert stack.shard.news.head == stack.shard.news.tail == 30


@pytest.mark.parametrize(
    "kind", ["NEIGH_SET", "NEIGH_DEL", "ROUTE_SET", "ROUTE_DEL", "NEIGH_MISS", "NONE"]
)
def test_unknown_family_and_unknown_news_change_nothing(kind: str) -> None:
    stack = Stack()
    net = stack.shard.net
    before = (net.route_count, net.neigh_count, net.addr_count, net.epoch)
    stack.ctl(kind, ip="10.0.0.7", mac=REMOTE_MAC, family=5, prefix=200)
    stack.poll()
    assert (net.route_count, net.neigh_count, net.addr_count, net.epoch) == before


@pytest.mark.parametrize("prefix", [33, 200, 255])
def test_route_with_an_impossible_prefix_is_ignored(prefix: int) -> None:
    stack = Stack()
    stack.ctl("ROUTE_SET", ip="10.0.0.0", prefix=prefix)
    stack.ctl("ROUTE_DEL", ip="10.0.0.0", prefix=prefix)
    stack.poll()
    assert stack.shard.net.route_count == 1


def test_carrier_is_noted() -> None:
    stack = Stack()
    stack.ctl("LINK", value=0)
    stack.poll()
    assert not stack.shard.net.carrier
    stack.ctl("LINK", value=1)
    stack.poll()
    assert stack.shard.net.carrier


def test_abort_all_resets_every_connection() -> None:
    stack = Stack(listen=80)
    peers = [Peer(stack, sport=50000 + i) for i in range(3)]
    for peer in peers:
        peer.connect()
    half = Peer(stack, sport=50010)
    half.send("S")
    half.expect("SA")
    call = stack.connect_call()
    stack.sent.clear()
    stack.ctl("ABORT_ALL")
    stack.poll()
    for peer in peers:
        peer.expect("RA")
        stack.expect("DEAD", handle=peer.handle, status=-ENETDOWN)
    half.expect("RA", seq=0)
    stack.expect("CONNECTED", handle=call.handle, status=-ENETDOWN)
    stack.expect_no_event()
    assert stack.is_idle()


@pytest.mark.parametrize("ring", [64, 1024])
def test_abort_all_of_more_connections_than_the_stage_holds(ring: int) -> None:
    """... and the ring: the rest is told in later cycles."""
    room = {"max_flows": 1024, "max_half_open": 1024, "max_events": 1024}
    stack = Stack(listen=80, pool=4096, fill_target=min(256, ring), ring=ring, **room)
    for i in range(600):
        peer = Peer(stack, sport=10000 + i)
        peer.send("S")
        peer.expect("SA")
    stack.ctl("ABORT_ALL")
    stack.settle()
    assert len(stack.sent) == 600
    assert stack.is_idle()


def test_messages_are_copied_whole() -> None:
    stack = Stack()
    message = ffi.new("struct ix_ctl_msg *")
    ffi.memmove(message, bytes(range(ffi.sizeof("struct ix_ctl_msg"))), 12)
    message.type = lib.IX_CTL_NEIGH_MISS
    lib.ix_ctl_request(stack.shard, message)
    copy = ffi.new("struct ix_ctl_msg *")
    assert lib.ix_ctl_recv(stack.shard, copy) == 1
    assert bytes(ffi.buffer(copy)) == bytes(ffi.buffer(message))
    assert lib.ix_ctl_recv(stack.shard, copy) == 0
