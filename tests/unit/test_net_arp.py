"""net/arp: own-address mode (RFC 826, RFC 5227)."""

from __future__ import annotations

import pytest
from scapy.layers.l2 import ARP, Ether

from tests.unit.peer import LOCAL, LOCAL_MAC, REMOTE, REMOTE_MAC, Peer, Stack, ethernet

STRANGER, STRANGER_MAC = "10.0.0.77", bytes.fromhex("020000000077")


def text(mac: bytes) -> str:
    return mac.hex(":")


def arp(
    op: int = 1, *, sender: str = STRANGER, mac: bytes = STRANGER_MAC, dst: str = LOCAL
) -> bytes:
    return bytes(ARP(op=op, hwsrc=text(mac), psrc=sender, hwdst=text(bytes(6)), pdst=dst))


def own(**options: object) -> Stack:
    return Stack(own_address=1, neighbour=False, **options)  # type: ignore[arg-type]


def neighbours(stack: Stack) -> int:
    return int(stack.shard.net.neigh_count)


def test_request_for_the_own_address_is_answered_and_learned() -> None:
    stack = own()
    stack.inject(ethernet(arp(), kind=0x0806, dst=b"\xff" * 6, src=STRANGER_MAC))
    reply = Ether(stack.sent.popleft())
    assert (reply.src, reply.dst) == (text(LOCAL_MAC), text(STRANGER_MAC))
    assert (reply[ARP].op, reply[ARP].hwsrc, reply[ARP].psrc) == (2, text(LOCAL_MAC), LOCAL)
    assert (reply[ARP].hwdst, reply[ARP].pdst) == (text(STRANGER_MAC), STRANGER)
    assert stack.counters("arp_requests_in", "arp_replies_out", "arp_learned") == [1, 1, 1]
    assert neighbours(stack) == 1


def test_request_for_another_address_is_ignored() -> None:
    stack = own()
    stack.inject(ethernet(arp(dst="10.0.0.3"), kind=0x0806))
    assert not stack.sent
    assert neighbours(stack) == 0


def test_shared_address_leaves_arp_to_the_kernel() -> None:
    stack = Stack(neighbour=False)
    stack.inject(ethernet(arp(), kind=0x0806))
    assert not stack.sent
    assert neighbours(stack) == 0


def test_address_shared_with_the_kernel_is_not_answered_in_own_mode() -> None:
    stack = own(address=None)
    stack.ctl("ADDR_ADD", ip=LOCAL, value=0)
    stack.inject(ethernet(arp(), kind=0x0806))
    assert not stack.sent


def test_probe_is_answered_but_teaches_nothing() -> None:
    # RFC 5227 2.1.1: sender address 0
    stack = own()
    stack.inject(ethernet(arp(sender="0.0.0.0"), kind=0x0806))
    assert len(stack.sent) == 1
    assert neighbours(stack) == 0


def test_claim_of_the_own_address_is_not_believed() -> None:
    stack = own()
    stack.inject(ethernet(arp(sender=LOCAL), kind=0x0806))
    assert neighbours(stack) == 0


@pytest.mark.parametrize("mac", [b"\xff" * 6, bytes.fromhex("01005e000001")])
def test_group_address_as_sender_is_malformed(mac: bytes) -> None:
    stack = own()
    stack.inject(ethernet(arp(mac=mac), kind=0x0806))
    assert not stack.sent
    assert stack.counter("drop_arp_bad") == 1


@pytest.mark.parametrize("size", [1, 8, 27])
def test_truncated_packet_is_malformed(size: int) -> None:
    stack = own()
    stack.inject(ethernet(arp(), kind=0x0806)[: 14 + size])
    assert stack.counter("drop_arp_bad") == 1


@pytest.mark.parametrize("at, value", [(0, 9), (2, 0x86), (4, 8), (5, 16)])
def test_other_hardware_or_protocol_is_malformed(at: int, value: int) -> None:
    stack = own()
    data = bytearray(arp())
    data[at] = value
    stack.inject(ethernet(bytes(data), kind=0x0806))
    assert stack.counter("drop_arp_bad") == 1


def test_reply_brings_the_waiting_connection_on() -> None:
    stack = own()
    call = stack.connect_call()
    request = Ether(stack.sent.popleft())
    assert request.dst == "ff:ff:ff:ff:ff:ff"
    assert (request[ARP].op, request[ARP].psrc, request[ARP].pdst) == (1, LOCAL, REMOTE)
    assert not stack.sent
    stack.inject(ethernet(arp(2, sender=REMOTE, mac=REMOTE_MAC), kind=0x0806))
    stack.sleep(ms=1000)
    peer = Peer(stack, port=int(call.local_port), sport=80)
    assert peer.expect("S").to_mac == REMOTE_MAC


def test_request_is_repeated_once_a_second_while_there_is_something_to_send() -> None:
    stack = own()
    stack.connect_call()
    stack.sleep(ms=15_500)
    asked = [frame for frame in stack.sent if frame[12:14] == b"\x08\x06"]
    assert 4 <= len(asked) <= 16  # with each SYN that is due
