"""net/nd: Neighbor Discovery of own-address mode, and the kernel's neighbours without it."""

from __future__ import annotations

from typing import Any

import pytest
from scapy.layers.inet import TCP
from scapy.layers.inet6 import (
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
)
from scapy.packet import Packet

from tests.unit.peer import LOCAL_MAC, REMOTE_MAC, Stack
from tests.unit.san import ffi, lib
from tests.unit.six import LOCAL6, REMOTE6, colons, ctl6, frame, raw6, sent, stack6, to_us

GROUP, GROUP_MAC = "ff02::1:ff00:1", bytes.fromhex("3333ff000001")


def solicit(*, src: str = REMOTE6, dst: str = GROUP, target: str = LOCAL6, mac: bool = True,
            hop_limit: int = 255) -> bytes:  # fmt: skip
    message: Packet = ICMPv6ND_NS(tgt=target)
    if mac:
        message = message / ICMPv6NDOptSrcLLAddr(lladdr=colons(REMOTE_MAC))
    ip = IPv6(src=src, dst=dst, hlim=hop_limit)
    return frame(ip / message, dst=GROUP_MAC if dst == GROUP else LOCAL_MAC)


def advertise(**flags: Any) -> bytes:
    option = ICMPv6NDOptDstLLAddr(lladdr=colons(REMOTE_MAC))
    return to_us(ICMPv6ND_NA(tgt=REMOTE6, **({"R": 0, "S": 1, "O": 1} | flags)) / option, hlim=255)


def known(stack: Stack) -> bool:
    net = ffi.addressof(stack.shard.net)
    ip = ffi.new("struct ix_ip *")
    ffi.memmove(ip.b, raw6(REMOTE6), 16)
    return bool(lib.ix_net_neigh(net, 6, ip) != ffi.NULL)


def connect(stack: Stack) -> None:
    call = stack.queue("CONNECT", family=6, peer_port=80)
    ffi.memmove(call.peer, raw6(REMOTE6), 16)
    stack.poll()
    assert call.result == 0


@pytest.mark.parametrize("dst", [GROUP, LOCAL6])
def test_solicitation_for_an_own_address_is_answered_and_learned_from(dst: str) -> None:
    stack = stack6(own_address=1, neighbour=False)
    stack.inject(solicit(dst=dst))
    packet = sent(stack)
    advert = packet[ICMPv6ND_NA]
    assert (packet[IPv6].src, packet[IPv6].dst, packet[IPv6].hlim) == (LOCAL6, REMOTE6, 255)
    assert (advert.tgt, advert.R, advert.S, advert.O) == (LOCAL6, 0, 1, 1)
    assert packet[ICMPv6NDOptDstLLAddr].lladdr == colons(LOCAL_MAC)
    assert known(stack)


def new_address(shard_id: int = 0) -> Stack:
    """A shard that has just been given an own address."""
    stack = Stack(own_address=1, shard_id=shard_id, shard_count=2)
    ctl6(stack, "ADDR_ADD", LOCAL6, value=1)
    ctl6(stack, "ROUTE_SET")
    stack.poll()
    return stack


def duplicate(stack: Stack) -> tuple[int, bytes, bytes]:
    """What the control plane is told: whether ours is new, the address, the other's MAC."""
    message = ffi.new("struct ix_ctl_msg *")
    assert lib.ix_ctl_recv(stack.shard, message) == 1
    assert message.type == lib.IX_CTL_DUPLICATE
    return message.value, bytes(message.ip), bytes(message.mac)


def test_new_address_is_probed_then_announced() -> None:
    stack = new_address()  # RFC 4862 5.4.2, RFC 4861 7.2.6
    packet = sent(stack)
    assert (packet.dst, packet[IPv6].src, packet[IPv6].dst) == (colons(GROUP_MAC), "::", GROUP)
    assert packet[ICMPv6ND_NS].tgt == LOCAL6 and ICMPv6NDOptSrcLLAddr not in packet
    assert packet[IPv6].hlim == 255
    stack.sleep(999)
    assert not stack.sent
    stack.sleep(1)
    packet = sent(stack)
    advert = packet[ICMPv6ND_NA]
    assert (packet.dst, packet[IPv6].dst) == ("33:33:00:00:00:01", "ff02::1")
    assert (advert.tgt, advert.S, advert.O) == (LOCAL6, 0, 1)
    stack.sleep(10_000)
    assert not stack.sent


def test_one_shard_probes_for_all() -> None:
    stack = new_address(shard_id=1)
    stack.sleep(1000)
    assert not stack.sent


def test_new_address_is_used_but_overrides_nobody() -> None:
    stack = new_address()  # RFC 4429 3.3
    stack.sent.clear()
    stack.inject(solicit())
    assert (sent(stack)[ICMPv6ND_NA].S, stack.counter("nd_duplicates")) == (1, 0)
    stack.inject(solicit())
    assert sent(stack)[ICMPv6ND_NA].O == 0


def rival_advert(mac: bytes = REMOTE_MAC, src: str = LOCAL6) -> bytes:
    message = ICMPv6ND_NA(tgt=LOCAL6, R=0, S=0, O=1) / ICMPv6NDOptDstLLAddr(lladdr=colons(mac))
    all_nodes = bytes.fromhex("333300000001")
    return frame(IPv6(src=src, dst="ff02::1", hlim=255) / message, dst=all_nodes, src=mac)


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("src", [LOCAL6, REMOTE6])
def test_rival_is_told_of_and_not_believed(new: bool, src: str) -> None:
    stack = new_address()
    stack.sleep(0 if new else 1000)
    stack.inject(rival_advert(src=src))
    assert duplicate(stack) == (new, raw6(LOCAL6), REMOTE_MAC)
    stack.inject(rival_advert(LOCAL_MAC))  # an echo of our own, by a loop in the network
    assert stack.counter("nd_duplicates") == 1


def test_two_that_probe_at_once_are_rivals() -> None:
    stack = new_address()  # RFC 4862 5.4.3
    stack.inject(solicit(src="::", mac=False))
    assert duplicate(stack) == (1, raw6(LOCAL6), REMOTE_MAC)


def test_probe_for_a_duplicate_is_answered_to_all() -> None:
    stack = stack6(own_address=1, neighbour=False)
    stack.inject(solicit(src="::", mac=False))
    packet = sent(stack)
    assert (packet.dst, packet[IPv6].dst, packet[ICMPv6ND_NA].S) == (
        "33:33:00:00:00:01",
        "ff02::1",
        0,
    )


@pytest.mark.parametrize(
    "bad",
    [{"hop_limit": 254}, {"src": "::", "mac": True}, {"src": "::", "mac": False, "dst": LOCAL6}],
)
def test_invalid_solicitation_is_dropped(bad: dict[str, Any]) -> None:
    stack = stack6(own_address=1, neighbour=False)
    stack.inject(solicit(**bad))
    assert not stack.sent and stack.counter("drop_nd_bad") == 1 and not known(stack)


def test_solicitation_for_another_is_left_alone() -> None:
    stack = stack6(own_address=1, neighbour=False)
    stack.inject(solicit(target="2001:db8:1::1"))
    assert not stack.sent and not known(stack)


def test_shared_address_leaves_discovery_to_the_kernel() -> None:
    stack = stack6(neighbour=False)
    stack.inject(solicit(dst=LOCAL6))
    stack.inject(advertise())
    assert not stack.sent and not known(stack)


def test_own_address_solicits_what_it_lacks() -> None:
    stack = stack6(own_address=1, neighbour=False)
    connect(stack)
    packet = sent(stack)
    assert (packet.dst, packet[IPv6].dst) == ("33:33:ff:00:00:02", "ff02::1:ff00:2")
    assert packet[ICMPv6ND_NS].tgt == REMOTE6
    assert packet[ICMPv6NDOptSrcLLAddr].lladdr == colons(LOCAL_MAC)
    stack.inject(advertise())
    stack.sleep(ms=1500)
    syn = sent(stack)
    assert syn[TCP].flags == "S" and syn.dst == colons(REMOTE_MAC)


def test_unsolicited_advertisement_is_not_learned() -> None:
    stack = stack6(own_address=1, neighbour=False)
    stack.inject(advertise(S=0))
    assert not known(stack)


def test_advertisement_overrides_only_if_it_says_so() -> None:
    other = bytes.fromhex("020000000999")
    for override in (0, 1):
        stack = stack6(own_address=1, neighbour=False)
        ctl6(stack, "NEIGH_SET", REMOTE6, mac=other)
        stack.inject(advertise(O=override))
        connect(stack)
        assert sent(stack).dst == colons(REMOTE_MAC if override else other)


def test_kernel_is_asked_for_a_shared_addresss_neighbour() -> None:
    stack = stack6(neighbour=False)
    connect(stack)
    message = ffi.new("struct ix_ctl_msg *")
    assert lib.ix_ctl_recv(stack.shard, message)
    assert (message.type, message.family) == (lib.IX_CTL_NEIGH_MISS, 6)
    assert bytes(message.ip) == raw6(REMOTE6) and not stack.sent


def test_source_is_of_the_destinations_scope_and_nearest() -> None:
    stack = Stack()
    for ip in ("fe80::1", "2001:db8:1::1", "2001:db8:2::1"):
        ctl6(stack, "ADDR_ADD", ip)
    ctl6(stack, "ROUTE_SET")
    ctl6(stack, "ROUTE_SET", "2001:db8:7::", prefix=48, source="2001:db8:1::1")
    stack.poll()
    net = ffi.addressof(stack.shard.net)
    for dst, want in [
        ("fe80::2", "fe80::1"),
        ("2001:db8:2::9", "2001:db8:2::1"),
        ("2001:db8:1::9", "2001:db8:1::1"),
        ("2001:db8:7::9", "2001:db8:1::1"),
    ]:
        ip = ffi.new("struct ix_ip *")
        ffi.memmove(ip.b, raw6(dst), 16)
        assert bytes(lib.ix_net_source_for(net, 6, ip).b) == raw6(want)
