"""shard/farewell_hosted: a RST for each connection of a dead shard, as the kernel sends it.

A namespace of its own: lo, with the peer's address on it; a packet socket looks on.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest
from pyroute2 import IPRoute, netns
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from ixnet.control.namespaces import in_netns
from tests.unit.peer import LOCAL, REMOTE, Peer, Stack
from tests.unit.san import ffi, lib

NETNS = f"ixfarewell{os.getpid()}"
ETH_P_IP = 0x0800


@pytest.fixture
def wire() -> Iterator[socket.socket]:
    if os.geteuid() != 0:
        pytest.skip("namespaces need root")
    netns.create(NETNS)
    try:
        with in_netns(NETNS), IPRoute() as ip:
            ip.link("set", index=1, state="up")
            ip.addr("add", index=1, address=REMOTE, prefixlen=32)
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_IP))
            with sock:
                sock.bind(("lo", ETH_P_IP))
                sock.settimeout(1.0)
                yield sock
    finally:
        netns.remove(NETNS)


def resets(wire: socket.socket) -> list[IP]:
    """The RSTs that arrived, each once; the kernel's own answers to them are none."""
    found = []
    while True:
        try:
            data, where = wire.recvfrom(2048)
        except TimeoutError:
            return found
        if where[2] != socket.PACKET_OUTGOING:
            found.append(Ether(data)[IP])


def farewell(stack: Stack) -> int:
    return int(lib.ix_farewell(stack.memory, ffi.addressof(stack.shard.cfg), 0))


def test_each_connection_is_reset_by_the_number_its_peer_expects(wire: socket.socket) -> None:
    stack = Stack(listen=80)
    peers = [Peer(stack, sport=50000 + i) for i in range(3)]
    handles = [peer.connect() for peer in peers]
    assert farewell(stack) == 3
    packets = {packet[TCP].dport: packet for packet in resets(wire)}
    assert sorted(packets) == [50000, 50001, 50002]
    for port, handle in zip(sorted(packets), handles, strict=True):
        packet, tcb = packets[port], stack.tcb(handle)
        assert (packet.src, packet.dst, packet[TCP].sport) == (LOCAL, REMOTE, 80)
        assert packet[TCP].flags == "RA" and len(packet) == 40
        assert (packet[TCP].seq, packet[TCP].ack) == (tcb.snd_max, tcb.rcv_nxt)
        again = IP(bytes(packet))
        del again.chksum, again[TCP].chksum
        assert bytes(IP(bytes(again))) == bytes(packet), "its checksums are right"


def test_data_under_way_gets_two(wire: socket.socket) -> None:
    stack = Stack(listen=80)
    handle = Peer(stack).connect()
    assert stack.sendv(handle, bytes(100)) == 100
    stack.poll()
    tcb = stack.tcb(handle)
    assert farewell(stack) == 1
    assert [packet[TCP].seq for packet in resets(wire)] == [tcb.snd_max, tcb.snd_una]


def test_more_than_one_batch_is_sent(wire: socket.socket) -> None:
    stack = Stack(listen=80, max_flows=256, backlog=256, max_events=512)
    for i in range(150):
        Peer(stack, sport=50000 + i).connect()
    assert farewell(stack) == 150
    assert len({packet[TCP].dport for packet in resets(wire)}) == 150


def test_a_peer_that_cannot_be_reached_is_left_out(wire: socket.socket) -> None:
    stack = Stack(listen=80)
    Peer(stack).connect()
    with IPRoute() as ip:
        ip.flush_addr(index=1)
        ip.flush_routes(table=255)
    farewell(stack)
    assert resets(wire) == []
