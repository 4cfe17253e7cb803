"""Fragments through the steering program: those of a claimed UDP datagram stay together."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop
from scapy.packet import Packet, Raw

from ixnet.control.xdp import Steering
from tests.xdp.test_steer import (
    ANYWHERE,
    CLAIMED,
    HOST,
    HOST2,
    HOST6,
    LO,
    OWN,
    PEER,
    PEER6,
    ether,
    ifindex,
    program,
    steering,
    tcp,
    udp,
    verdict,
)

__all__ = ["ifindex", "program", "steering"]  # the fixtures

FREE = CLAIMED + 2
NEXT_UDP = 17

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to load a BPF program")


def piece4(
    number: int, at: int, payload: Packet, more: bool, src: str = str(PEER), dst: str = str(HOST)
) -> Packet:
    """A fragment of a UDP datagram; `at` counts 8 bytes."""
    flags = "MF" if more else 0
    return ether() / IP(src=src, dst=dst, id=number, frag=at, flags=flags, proto=NEXT_UDP) / payload


def piece6(
    number: int, at: int, payload: Packet, more: bool, src: str = str(PEER6), dst: str = str(HOST6)
) -> Packet:
    """As piece4, over IPv6."""
    fragment = IPv6ExtHdrFragment(id=number, offset=at, m=more, nh=NEXT_UDP)
    return ether() / IPv6(src=src, dst=dst) / fragment / payload


Piece = Callable[..., Packet]
families = pytest.mark.parametrize("piece", [piece4, piece6], ids=["ipv4", "ipv6"])
REST = Raw(bytes(64))


@families
@pytest.mark.parametrize("port", [CLAIMED, ANYWHERE])
def test_fragments_go_where_the_first_went(steering: Steering, piece: Piece, port: int) -> None:
    assert verdict(steering, piece(1, 0, udp(port), True)) == "redirect_fragment"
    assert verdict(steering, piece(1, 20, REST, False)) == "redirect_fragment"
    assert verdict(steering, piece(1, 10, REST, True)) == "redirect_fragment"
    assert verdict(steering, piece(2, 10, REST, False)) == "pass_fragment", "of another datagram"


@families
def test_fragments_that_nobody_claimed_are_the_kernels(steering: Steering, piece: Piece) -> None:
    assert verdict(steering, piece(11, 0, udp(FREE), True)) == "pass_fragment"
    assert verdict(steering, piece(11, 10, REST, False)) == "pass_fragment"


@families
def test_fragment_that_overtakes_the_first_is_the_kernels(steering: Steering, piece: Piece) -> None:
    assert verdict(steering, piece(21, 10, REST, False)) == "pass_fragment"
    assert verdict(steering, piece(21, 0, udp(CLAIMED), True)) == "redirect_fragment"


@families
def test_number_used_again_follows_the_new_datagram(steering: Steering, piece: Piece) -> None:
    assert verdict(steering, piece(31, 0, udp(CLAIMED), True)) == "redirect_fragment"
    assert verdict(steering, piece(31, 0, udp(FREE), True)) == "pass_fragment"
    assert verdict(steering, piece(31, 10, REST, False)) == "pass_fragment"


def test_addresses_tell_datagrams_apart(steering: Steering) -> None:
    assert verdict(steering, piece4(41, 0, udp(ANYWHERE), True)) == "redirect_fragment"
    assert verdict(steering, piece4(41, 10, REST, False, src="10.0.0.98")) == "pass_fragment"
    assert verdict(steering, piece4(41, 10, REST, False, dst=str(HOST2))) == "pass_fragment"
    assert verdict(steering, piece6(41, 10, REST, False)) == "pass_fragment"


def test_range_of_outgoing_ports_takes_fragments(steering: Steering) -> None:
    assert verdict(steering, piece4(51, 0, udp(LO), True)) == "redirect_fragment"
    assert verdict(steering, piece4(51, 10, REST, False)) == "redirect_fragment"


def test_other_protocols_fragments_are_the_kernels(steering: Steering) -> None:
    assert verdict(steering, piece4(61, 0, udp(CLAIMED), True)) == "redirect_fragment"
    first = ether() / IP(src=str(PEER), dst=str(HOST), id=61, flags="MF") / tcp(CLAIMED)
    assert verdict(steering, first) == "pass_fragment"
    later = ether() / IP(src=str(PEER), dst=str(HOST), id=61, frag=10, proto=6) / REST
    assert verdict(steering, later) == "pass_fragment"
    assert verdict(steering, piece4(61, 10, REST, False)) == "redirect_fragment"


def test_extension_headers_before_the_fragment_header(steering: Steering) -> None:
    for extension in (IPv6ExtHdrHopByHop(), IPv6ExtHdrDestOpt()):
        base = ether() / IPv6(src=str(PEER6), dst=str(HOST6)) / extension
        first = IPv6ExtHdrFragment(id=71, m=1) / udp(CLAIMED)
        later = IPv6ExtHdrFragment(id=71, offset=10, nh=NEXT_UDP) / REST
        assert verdict(steering, base / first) == "redirect_fragment"
        assert verdict(steering, base / later) == "redirect_fragment"


@families
def test_first_fragment_too_short_for_ports_is_the_kernels(
    steering: Steering, piece: Piece
) -> None:
    for length in range(4):
        head = Raw(bytes(UDP(sport=1, dport=CLAIMED))[:length])
        assert verdict(steering, piece(81, 0, head, True)) == "pass_fragment"
    assert verdict(steering, piece(81, 10, REST, False)) == "pass_fragment"


def test_own_address_takes_all_of_them(steering: Steering) -> None:
    assert verdict(steering, piece4(91, 10, REST, False, dst=str(OWN))) == "redirect_own"


def test_more_datagrams_than_the_table_holds_go_on(steering: Steering) -> None:
    """The oldest are forgotten; the newest are known."""
    first = bytes(piece4(0, 0, udp(CLAIMED), True))
    for number in range(3000):
        steering.test_run(first[:18] + number.to_bytes(2, "big") + first[20:])
    assert verdict(steering, piece4(2999, 10, REST, False)) == "redirect_fragment"
