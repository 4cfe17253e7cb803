"""link/sim_router.c: packets that are too long for the path, and what their sender is told."""

from __future__ import annotations

from scapy.layers.inet import ICMP, IP, TCP
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6
from scapy.layers.l2 import Ether

from tests.unit.packets import words_sum
from tests.unit.peer import ethernet, ipv4
from tests.unit.simwire import Wire, frame


def test_packet_longer_than_the_path_s_mtu_is_dropped_and_an_error_sent_back() -> None:
    wire = Wire()
    wire.path(0, mtu=600, delay_ns=5)
    wire.fill(0)
    wire.fill(1)
    fits = ethernet(ipv4(bytes(580), 6))
    too_big = ethernet(ipv4(bytes(range(200)) * 3, 6, src="10.0.0.1", dst="10.0.9.2"))
    wire.send(0, fits, too_big)
    wire.advance(5)
    assert wire.receive(1) == [fits]
    [back] = wire.receive(0)
    error = Ether(back)
    assert (error.dst, error.src) == (Ether(too_big).src, Ether(too_big).dst)
    assert (error[IP].src, error[IP].dst) == ("10.0.9.254", "10.0.0.1")
    assert words_sum(back[14:34]) == 0xFFFF
    assert (error[ICMP].type, error[ICMP].code, error[ICMP].nexthopmtu) == (3, 4, 600)
    assert bytes(error[ICMP].payload) == too_big[14 : 14 + 40]
    assert words_sum(back[34:]) == 0xFFFF
    assert (wire.counters(0).too_big, wire.counters(1).errors) == (1, 1)


def test_ipv6_packet_longer_than_the_path_s_mtu_is_dropped_and_an_error_sent_back() -> None:
    wire = Wire()
    wire.path(0, mtu=1280)
    wire.fill(0)
    wire.fill(1)
    packet = Ether() / IPv6(src="2001:db8::1", dst="2001:db8:9::2") / TCP() / bytes(1300)
    wire.send(0, bytes(packet))
    wire.advance(0)
    assert wire.receive(1) == []
    [back] = wire.receive(0)
    error = Ether(back)
    assert (error[IPv6].src, error[IPv6].dst) == ("2001:db8:9::fe", "2001:db8::1")
    assert error[ICMPv6PacketTooBig].mtu == 1280
    assert bytes(error[ICMPv6PacketTooBig].payload) == bytes(packet)[14 : 14 + 60]
    sum_as_sent = error[ICMPv6PacketTooBig].cksum
    del error[ICMPv6PacketTooBig].cksum
    assert Ether(bytes(error))[ICMPv6PacketTooBig].cksum == sum_as_sent


def test_router_that_is_mute_only_drops_and_arp_is_never_too_big() -> None:
    wire = Wire()
    wire.path(0, mtu=600, mute=True)
    wire.path(1, mtu=600)
    for i in range(2):
        wire.fill(i)
        wire.send(i, ethernet(ipv4(bytes(600), 6)) if i == 0 else frame(1, 700, ethertype=0x0806))
    wire.advance(0)
    assert wire.receive(0) == wire.receive(1) == []
    assert (wire.counters(0).too_big, wire.counters(1).too_big) == (1, 1)
    assert wire.counters(0).errors == wire.counters(1).errors == 0
