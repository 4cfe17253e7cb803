"""The steering program through BPF_PROG_TEST_RUN: each frame must get exactly the verdict named.

Queue 0, where the kernel has test frames arrive, has an AF_XDP socket unless a test takes it out,
so that REDIRECT verdicts are real.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.dot11 import LLC
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_RR
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6PacketTooBig,
    ICMPv6Unknown,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
)
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw

from ixnet.control.errors import IxError, NotBuilt, PortTaken, TableFull
from ixnet.control.xdp import EXPRESS_PATH, OBJECT_PATH, Proto, Steering, verdict_names
from tests.xdp.testrun import opened, veth

AF_XDP = 44
PASS, REDIRECT = 2, 4

HOST = ipaddress.IPv4Address("10.0.0.1")
HOST2 = ipaddress.IPv4Address("10.0.0.2")
OWN = ipaddress.IPv4Address("10.0.0.50")
PEER = ipaddress.IPv4Address("10.0.0.99")
HOST6 = ipaddress.IPv6Address("fd00::1")
PEER6 = ipaddress.IPv6Address("fd00::99")
OWN6 = ipaddress.IPv6Address("fd00::50")
CLAIMED, ANYWHERE, LO, HI = 7000, 7001, 61000, 61999

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to load a BPF program")


@pytest.fixture(scope="module", params=[OBJECT_PATH, EXPRESS_PATH], ids=["plain", "express"])
def program(request: pytest.FixtureRequest) -> Path:
    """The object: that which also sends steers as the other."""
    return Path(request.param)


@pytest.fixture(scope="module")
def ifindex() -> Iterator[int]:
    """Where frames come in."""
    with veth() as made:
        yield made


@pytest.fixture(scope="module")
def steering(program: Path, ifindex: int) -> Iterator[Steering]:
    """HOST:CLAIMED and *:ANYWHERE are claimed for TCP and UDP, LO-HI for TCP to any local address;
    HOST, HOST2 and HOST6 are local; OWN and OWN6 are the dataplane's own."""
    with opened(program, ifindex) as s, socket.socket(AF_XDP, socket.SOCK_RAW) as xsk:
        s.set_socket(0, xsk.fileno())
        s.sync_local([HOST, HOST2, HOST6])
        for proto in (Proto.TCP, Proto.UDP):
            s.claim(proto, HOST, CLAIMED)
            s.claim(proto, HOST6, CLAIMED)
            s.claim(proto, None, ANYWHERE)
            s.claim(proto, None, ANYWHERE, family=6)
        s.add_range(Proto.TCP, None, LO, HI)
        s.add_range(Proto.UDP, HOST, LO, LO)
        s.add_own(OWN)
        s.add_own(OWN6)
        yield s


def verdict(steering: Steering, frame: Packet | bytes) -> str:
    """The one verdict that the program counts for a frame; its action must fit."""
    before = steering.verdicts()
    action = steering.test_run(bytes(frame))
    after = steering.verdicts()
    changed = [name for name in after if after[name] != before[name]]
    assert [after[name] - before[name] for name in changed] == [1]
    assert action == (REDIRECT if changed[0].startswith("redirect") else PASS)
    return changed[0]


def ether() -> Packet:
    return Ether(src="02:00:00:00:00:99", dst="02:00:00:00:00:01")


def ip(dst: ipaddress.IPv4Address = HOST, **fields: object) -> Packet:
    return ether() / IP(src=str(PEER), dst=str(dst), **fields)


def ip6(dst: ipaddress.IPv6Address | str = HOST6) -> Packet:
    return ether() / IPv6(src=str(PEER6), dst=str(dst))


def tcp(port: int) -> Packet:
    return TCP(sport=40000, dport=port, flags="S")


def udp(port: int) -> Packet:
    return UDP(sport=40000, dport=port) / Raw(b"payload")


def quoted(src: ipaddress.IPv4Address, proto: Packet, **fields: object) -> bytes:
    """The start of a packet that this host sent, as an ICMP error quotes it."""
    return bytes(IP(src=str(src), dst=str(PEER), **fields) / proto)[: 20 + 8]


QUOTED6 = bytes(IPv6(src=str(HOST6), dst=str(PEER6)) / TCP(sport=CLAIMED))[:48]


def icmp_error(kind: int, quote: bytes) -> Packet:
    return ip() / ICMP(type=kind, code=1) / Raw(quote)


def five(extension: Packet) -> Packet:
    frame = ip6()
    for _ in range(5):
        frame = frame / extension.copy()
    return frame


LONG_OPTIONS = IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(200))])


# ---- claims ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        pytest.param(ip() / tcp(CLAIMED), "redirect_claim", id="tcp"),
        pytest.param(ip() / udp(CLAIMED), "redirect_claim", id="udp"),
        pytest.param(ip6() / tcp(CLAIMED), "redirect_claim", id="tcp6"),
        pytest.param(ip6() / udp(CLAIMED), "redirect_claim", id="udp6"),
        pytest.param(ip(HOST2) / tcp(CLAIMED), "pass_unclaimed", id="other-local-address"),
        pytest.param(ip() / tcp(CLAIMED + 2), "pass_unclaimed", id="other-port"),
        pytest.param(
            ip() / TCP(sport=CLAIMED, dport=22), "pass_unclaimed", id="claimed-source-port"
        ),
        pytest.param(ip(HOST) / tcp(ANYWHERE), "redirect_claim", id="any-on-first-address"),
        pytest.param(ip(HOST2) / udp(ANYWHERE), "redirect_claim", id="any-on-second-address"),
        pytest.param(ip6() / tcp(ANYWHERE), "redirect_claim", id="any-on-ipv6-address"),
        pytest.param(ip(PEER) / tcp(ANYWHERE), "pass_unclaimed", id="any-not-for-forwarded"),
        pytest.param(ip6(PEER6) / tcp(ANYWHERE), "pass_unclaimed", id="any-not-for-forwarded6"),
        pytest.param(
            ip(ipaddress.IPv4Address("255.255.255.255")) / udp(ANYWHERE),
            "pass_unclaimed",
            id="any-not-for-broadcast",
        ),
        pytest.param(
            ip6() / IPv6ExtHdrHopByHop() / tcp(CLAIMED), "redirect_claim", id="hop-by-hop"
        ),
        pytest.param(ip6() / LONG_OPTIONS / tcp(CLAIMED), "redirect_claim", id="long-options6"),
        pytest.param(ip6() / IPv6ExtHdrRouting() / tcp(CLAIMED), "redirect_claim", id="routing"),
        pytest.param(
            ip6() / IPv6ExtHdrFragment(m=0) / udp(CLAIMED), "redirect_claim", id="atomic-fragment"
        ),
        pytest.param(
            ip6()
            / IPv6ExtHdrHopByHop()
            / IPv6ExtHdrDestOpt()
            / IPv6ExtHdrRouting()
            / IPv6ExtHdrFragment()
            / tcp(CLAIMED),
            "redirect_claim",
            id="four-extensions",
        ),
        pytest.param(ip(proto=132) / Raw(bytes(tcp(CLAIMED))), "pass_protocol", id="sctp"),
        pytest.param(
            ip(options=[IPOption_RR(routers=["0.0.0.0"] * 3)]) / tcp(CLAIMED),
            "redirect_claim",
            id="ip-options",
        ),
        pytest.param(
            ip(options=[IPOption_RR(routers=["0.0.0.0"] * 9)]) / tcp(CLAIMED),
            "redirect_claim",
            id="most-ip-options",
        ),
    ],
)
def test_claimed_frame_arrives_verdict(steering: Steering, frame: Packet, expected: str) -> None:
    assert verdict(steering, frame) == expected


def test_options_that_look_like_ports_are_skipped(steering: Steering) -> None:
    """The four bytes after the fixed header are options here; the real port is not claimed."""
    header = bytes(ip(proto=6, ihl=6))
    options = CLAIMED.to_bytes(2, "big") * 2
    assert verdict(steering, header + options + bytes(tcp(22))) == "pass_unclaimed"


# ---- ranges ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        pytest.param(ip() / tcp(LO - 1), "pass_unclaimed", id="below"),
        pytest.param(ip() / tcp(LO), "redirect_range", id="first"),
        pytest.param(ip() / tcp(HI), "redirect_range", id="last"),
        pytest.param(ip() / tcp(HI + 1), "pass_unclaimed", id="above"),
        pytest.param(ip(HOST2) / tcp(LO), "redirect_range", id="other-local-address"),
        pytest.param(ip(PEER) / tcp(LO), "pass_unclaimed", id="not-a-local-address"),
        pytest.param(ip6() / tcp(LO), "pass_unclaimed", id="other-family"),
        pytest.param(ip() / udp(LO), "redirect_range", id="udp-of-one-port"),
        pytest.param(ip() / udp(LO + 1), "pass_unclaimed", id="udp-above-one-port"),
        pytest.param(ip(HOST2) / udp(LO), "pass_unclaimed", id="udp-other-address"),
    ],
)
def test_range_port_at_edge_verdict(steering: Steering, frame: Packet, expected: str) -> None:
    assert verdict(steering, frame) == expected


def test_range_deleted_before_another_leaves_the_other(steering: Steering) -> None:
    for lo in (50000, 50100, 50200):
        steering.add_range(Proto.TCP, HOST, lo, lo + 9)
    steering.del_range(Proto.TCP, HOST, 50000, 50009)
    assert verdict(steering, ip() / tcp(50005)) == "pass_unclaimed"
    assert verdict(steering, ip() / tcp(50205)) == "redirect_range"
    steering.add_range(Proto.TCP, HOST, 50300, 50309)
    assert verdict(steering, ip() / tcp(50305)) == "redirect_range"
    for lo in (50100, 50200, 50300):
        steering.del_range(Proto.TCP, HOST, lo, lo + 9)
        assert verdict(steering, ip() / tcp(lo)) == "pass_unclaimed"


# ---- what is passed ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        pytest.param(
            ether() / Dot1Q(vlan=5) / IP(dst=str(HOST)) / tcp(CLAIMED), "pass_vlan", id="one-tag"
        ),
        pytest.param(
            ether() / Dot1AD(vlan=5) / Dot1Q(vlan=6) / IP(dst=str(HOST)) / tcp(CLAIMED),
            "pass_vlan",
            id="two-tags",
        ),
        pytest.param(
            ether() / Dot1Q(vlan=5) / Dot1Q(vlan=6) / Dot1Q(vlan=7) / IP(dst=str(OWN)),
            "pass_vlan",
            id="three-tags",
        ),
        pytest.param(ip(flags="DF") / udp(CLAIMED), "redirect_claim", id="dont-fragment"),
        pytest.param(ip(version=5) / tcp(CLAIMED), "pass_malformed", id="version-5"),
        pytest.param(ip(ihl=4) / tcp(CLAIMED), "pass_malformed", id="ihl-4"),
        pytest.param(ip(proto=47) / Raw(b"gre"), "pass_protocol", id="gre"),
        pytest.param(ip() / ICMP(type=8) / Raw(b"ping"), "pass_icmp", id="ping"),
        pytest.param(
            five(IPv6ExtHdrDestOpt()) / tcp(CLAIMED), "pass_extension", id="five-extensions"
        ),
        pytest.param(
            ether() / IPv6(src=str(PEER6), dst=str(HOST6), nh=51) / tcp(CLAIMED),
            "pass_extension",
            id="authentication",
        ),
        pytest.param(ip6() / IPv6ExtHdrDestOpt() / tcp(22), "pass_unclaimed", id="unclaimed6"),
        pytest.param(ip6() / ICMPv6EchoRequest(), "pass_icmp", id="ping6"),
        pytest.param(ip6() / ICMPv6ND_NS(tgt=str(HOST6)), "pass_icmp", id="neighbour-solicitation"),
        pytest.param(
            ether() / ARP(op=1, pdst=str(HOST), psrc=str(PEER)), "pass_arp", id="arp-for-kernel"
        ),
        pytest.param(ether() / LLC() / Raw(b"stp"), "pass_other", id="802.3"),
        pytest.param(Ether(type=0x88CC) / Raw(bytes(46)), "pass_other", id="unknown-ethertype"),
    ],
)
def test_frame_of_the_kernel_arrives_passed(
    steering: Steering, frame: Packet, expected: str
) -> None:
    assert verdict(steering, frame) == expected


# ---- ICMP errors ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [3, 11, 12])
def test_icmp_error_about_claimed_flow_is_redirected(steering: Steering, kind: int) -> None:
    ours = TCP(sport=CLAIMED, dport=33333)
    assert verdict(steering, icmp_error(kind, quoted(HOST, ours))) == "redirect_icmp"


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        pytest.param(
            icmp_error(3, quoted(HOST2, TCP(sport=LO))), "redirect_icmp", id="port-in-range"
        ),
        pytest.param(
            icmp_error(3, quoted(HOST2, UDP(sport=ANYWHERE))), "redirect_icmp", id="any-address"
        ),
        pytest.param(
            icmp_error(3, quoted(HOST, TCP(sport=22, dport=CLAIMED))),
            "pass_icmp",
            id="claimed-port-at-the-peer",
        ),
        pytest.param(
            icmp_error(3, quoted(PEER, TCP(sport=ANYWHERE))), "pass_icmp", id="not-from-here"
        ),
        pytest.param(icmp_error(5, quoted(HOST, TCP(sport=CLAIMED))), "pass_icmp", id="redirect"),
        pytest.param(icmp_error(4, quoted(HOST, TCP(sport=CLAIMED))), "pass_icmp", id="quench"),
        pytest.param(
            icmp_error(3, quoted(HOST, TCP(sport=CLAIMED), frag=3)),
            "pass_icmp",
            id="quotes-a-later-fragment",
        ),
        pytest.param(icmp_error(3, quoted(HOST, ICMP(type=8))), "pass_icmp", id="quotes-a-ping"),
        pytest.param(icmp_error(3, b"\x65" + bytes(27)), "pass_malformed", id="quotes-nonsense"),
        pytest.param(
            ip6() / ICMPv6PacketTooBig() / Raw(QUOTED6),
            "redirect_icmp",
            id="packet-too-big6",
        ),
        pytest.param(
            ip6()
            / ICMPv6DestUnreach()
            / Raw(bytes(IPv6(src=str(HOST6), dst=str(PEER6)) / TCP(sport=22))[:48]),
            "pass_icmp",
            id="unclaimed6",
        ),
        pytest.param(
            ip6() / ICMPv6Unknown(type=0) / Raw(bytes(4) + QUOTED6),
            "pass_icmp",
            id="reserved-type6",
        ),
        pytest.param(
            ip6() / ICMPv6DestUnreach() / Raw(b"\x45" + QUOTED6[1:]),
            "pass_malformed",
            id="quotes-nonsense6",
        ),
    ],
)
def test_icmp_error_about_other_packet_verdict(
    steering: Steering, frame: Packet, expected: str
) -> None:
    assert verdict(steering, frame) == expected


# ---- own address ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        pytest.param(ip(OWN) / tcp(1), "redirect_own", id="any-tcp-port"),
        pytest.param(ip(OWN) / ICMP(type=8), "redirect_own", id="ping"),
        pytest.param(ip(OWN, frag=7) / udp(1), "redirect_own", id="fragment"),
        pytest.param(ip(OWN, proto=47) / Raw(b"x"), "redirect_own", id="any-protocol"),
        pytest.param(ether() / ARP(op=1, pdst=str(OWN)), "redirect_arp", id="arp-request"),
        pytest.param(ether() / ARP(op=2, pdst=str(OWN)), "redirect_arp", id="arp-reply"),
        pytest.param(
            ether() / ARP(op=2, psrc=str(OWN), pdst=str(PEER)), "pass_arp", id="arp-between-others"
        ),
        pytest.param(ip6(OWN6) / tcp(1), "redirect_own", id="any-tcp-port6"),
        pytest.param(ip6(OWN6) / ICMPv6EchoRequest(), "redirect_own", id="ping6"),
        pytest.param(ip6(OWN6) / IPv6ExtHdrFragment(m=1) / udp(1), "redirect_own", id="fragment6"),
        pytest.param(
            ip6(OWN6) / ICMPv6ND_NA(tgt=str(PEER6)), "redirect_own", id="answered-solicitation"
        ),
        pytest.param(
            ip6("ff02::1:ff00:50") / ICMPv6ND_NS(tgt=str(OWN6)), "redirect_nd", id="solicitation"
        ),
        pytest.param(
            ip6("ff02::1") / ICMPv6ND_NA(tgt=str(OWN6)), "redirect_nd", id="rival's-advertisement"
        ),
        pytest.param(
            ip6("ff02::1:ff00:50") / ICMPv6ND_NS(tgt="fd00:1::50"),
            "pass_icmp",
            id="solicitation-of-another-in-the-group",
        ),
        pytest.param(
            ip6("ff02::1") / ICMPv6ND_NA(tgt=str(PEER6)), "pass_icmp", id="other's-advertisement"
        ),
        pytest.param(
            ether() / ARP(hwtype=6, hwlen=6, pdst=str(OWN)) / Raw(bytes(18)),
            "pass_arp",
            id="arp-not-ethernet",
        ),
        pytest.param(
            ether() / ARP(ptype=0x86DD, plen=4, psrc=bytes(4), pdst=OWN.packed) / Raw(bytes(18)),
            "pass_arp",
            id="arp-not-ipv4",
        ),
    ],
)
def test_own_address_frame_arrives_verdict(
    steering: Steering, frame: Packet, expected: str
) -> None:
    assert verdict(steering, frame) == expected


def test_own_address_given_up_is_the_kernels_again(steering: Steering) -> None:
    other = ipaddress.IPv4Address("10.0.0.51")
    steering.add_own(other)
    assert verdict(steering, ip(other) / tcp(1)) == "redirect_own"
    steering.del_own(other)
    assert verdict(steering, ip(other) / tcp(1)) == "pass_unclaimed"


# ---- truncation and nonsense -----------------------------------------------------------------

# (frame, bytes that the program must see before it can say more than "truncated")
_NEEDED = [
    pytest.param(ip() / tcp(CLAIMED), 14 + 20 + 4, "redirect_claim", id="tcp"),
    pytest.param(
        ip(options=[IPOption_RR(routers=["0.0.0.0"] * 9)]) / tcp(CLAIMED),
        14 + 60 + 4,
        "redirect_claim",
        id="options",
    ),
    pytest.param(ip6() / tcp(CLAIMED), 14 + 40 + 4, "redirect_claim", id="tcp6"),
    pytest.param(ether() / ARP(pdst=str(OWN)), 14 + 28, "redirect_arp", id="arp"),
    pytest.param(
        ip6() / LONG_OPTIONS / IPv6ExtHdrFragment() / tcp(CLAIMED),
        14 + 40 + 208 + 8 + 4,
        "redirect_claim",
        id="extensions",
    ),
    pytest.param(
        ip6("ff02::1:ff00:50") / ICMPv6ND_NS(tgt=str(OWN6)),
        14 + 40 + 24,
        "redirect_nd",
        id="solicitation",
    ),
    pytest.param(
        icmp_error(3, quoted(HOST, TCP(sport=CLAIMED))),
        14 + 20 + 8 + 20 + 4,
        "redirect_icmp",
        id="icmp",
    ),
    pytest.param(
        ether() / Dot1AD(vlan=5) / Dot1Q(vlan=6) / IP(dst=str(HOST)) / tcp(CLAIMED),
        14 + 8,
        "pass_vlan",
        id="vlan",
    ),
]


@pytest.mark.parametrize(("frame", "needed", "expected"), _NEEDED)
def test_frame_cut_at_every_byte_is_passed_until_the_ports_are_there(
    steering: Steering, frame: Packet, needed: int, expected: str
) -> None:
    whole = bytes(frame)
    assert needed <= len(whole)
    # BPF_PROG_TEST_RUN takes no frame shorter than an Ethernet header.
    for length in range(14, len(whole) + 1):
        wanted = "pass_truncated" if length < needed else expected
        assert verdict(steering, whole[:length]) == wanted, length


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    start=st.sampled_from([b"\x08\x00\x45", b"\x08\x00\x4f", b"\x86\xdd\x60", b"\x08\x06\0", b""]),
    rest=st.binary(min_size=2, max_size=200),
)
def test_random_bytes_arrive_nothing_unclaimed_is_redirected(
    steering: Steering, start: bytes, rest: bytes
) -> None:
    frame = bytes(12) + start + rest
    if len(frame) < 14:
        return
    action = steering.test_run(frame)
    assert action in (PASS, REDIRECT)
    if action == REDIRECT:
        known = [a.packed for a in (HOST, HOST2, HOST6, OWN, OWN6)]
        assert any(address in frame for address in known)


# ---- sockets, tables, object -------------------------------------------------------------------


def test_queue_without_socket_claimed_frame_is_passed_and_counted(steering: Steering) -> None:
    with socket.socket(AF_XDP, socket.SOCK_RAW) as xsk:
        steering.set_socket(0, None)
        assert verdict(steering, ip() / tcp(CLAIMED)) == "pass_no_socket"
        assert verdict(steering, ip(OWN) / tcp(1)) == "pass_no_socket"
        assert verdict(steering, ip() / tcp(22)) == "pass_unclaimed"
        steering.set_socket(0, None)
        steering.set_socket(0, xsk.fileno())
        assert verdict(steering, ip() / tcp(CLAIMED)) == "redirect_claim"
    # The kernel takes a closed socket out of the map by itself.
    assert verdict(steering, ip() / tcp(CLAIMED)) == "pass_no_socket"


@pytest.fixture
def fresh(program: Path, ifindex: int) -> Iterator[Steering]:
    with opened(program, ifindex) as s, socket.socket(AF_XDP, socket.SOCK_RAW) as xsk:
        s.set_socket(0, xsk.fileno())
        yield s


def test_empty_maps_nothing_is_redirected(fresh: Steering) -> None:
    for frame in (ip() / tcp(CLAIMED), ip() / udp(0), ip6() / tcp(0), ip(PEER) / tcp(LO)):
        assert verdict(fresh, frame) == "pass_unclaimed"


def test_claim_ended_frame_is_passed(fresh: Steering) -> None:
    fresh.claim(Proto.TCP, HOST, CLAIMED)
    assert verdict(fresh, ip() / tcp(CLAIMED)) == "redirect_claim"
    fresh.unclaim(Proto.TCP, HOST, CLAIMED)
    fresh.unclaim(Proto.TCP, HOST, CLAIMED)
    assert verdict(fresh, ip() / tcp(CLAIMED)) == "pass_unclaimed"


def test_claim_stays_when_others_end_even_twice(fresh: Steering) -> None:
    """The program looks into `claims` only where the loader's table says so."""
    fresh.sync_local([HOST])
    for one, ip_of in ((CLAIMED, HOST), (CLAIMED + 2, None)):
        fresh.claim(Proto.TCP, ip_of, one)
        fresh.claim(Proto.TCP, ip_of, one + 1)
        for _ in range(2):
            fresh.unclaim(Proto.TCP, ip_of, one)
        assert verdict(fresh, ip() / tcp(one)) == "pass_unclaimed"
        assert verdict(fresh, ip() / tcp(one + 1)) == "redirect_claim"


def test_wildcard_claim_follows_the_local_addresses(fresh: Steering) -> None:
    fresh.claim(Proto.TCP, None, CLAIMED)
    assert verdict(fresh, ip() / tcp(CLAIMED)) == "pass_unclaimed"
    fresh.sync_local([HOST])
    assert verdict(fresh, ip() / tcp(CLAIMED)) == "redirect_claim"
    fresh.sync_local([HOST2])
    assert verdict(fresh, ip() / tcp(CLAIMED)) == "pass_unclaimed"
    assert verdict(fresh, ip(HOST2) / tcp(CLAIMED)) == "redirect_claim"


def test_port_claimed_on_two_addresses_stays_with_the_second(fresh: Steering) -> None:
    fresh.claim(Proto.TCP, HOST, CLAIMED)
    fresh.claim(Proto.TCP, HOST2, CLAIMED)
    fresh.unclaim(Proto.TCP, HOST, CLAIMED)
    assert verdict(fresh, ip() / tcp(CLAIMED)) == "pass_unclaimed"
    assert verdict(fresh, ip(HOST2) / tcp(CLAIMED)) == "redirect_claim"
    fresh.unclaim(Proto.TCP, HOST2, CLAIMED)
    assert verdict(fresh, ip(HOST2) / tcp(CLAIMED)) == "pass_unclaimed"


def test_claim_is_of_one_family_and_protocol(fresh: Steering) -> None:
    fresh.sync_local([HOST, HOST6])
    fresh.claim(Proto.UDP, None, CLAIMED, family=6)
    assert verdict(fresh, ip6() / udp(CLAIMED)) == "redirect_claim"
    for frame in (ip() / udp(CLAIMED), ip() / tcp(CLAIMED), ip6() / tcp(CLAIMED)):
        assert verdict(fresh, frame) == "pass_unclaimed"


def test_more_local_addresses_than_the_table_has_room_for(fresh: Steering) -> None:
    many = [ipaddress.IPv4Address("10.1.0.0") + n for n in range(20)]
    fresh.claim(Proto.TCP, None, CLAIMED)
    for present in (many, many[10:], [*many[:5], *many[12:]], many[19:], [], many[:9]):
        fresh.sync_local(present)
        for at in many:
            expected = "redirect_claim" if at in present else "pass_unclaimed"
            assert verdict(fresh, ip(at) / tcp(CLAIMED)) == expected, at


def test_ranges_that_overlap_end_one_by_one(fresh: Steering) -> None:
    fresh.sync_local([HOST])
    fresh.add_range(Proto.TCP, None, 100, 200)
    fresh.add_range(Proto.TCP, HOST, 150, 250)
    fresh.add_range(Proto.UDP, None, 100, 200)
    fresh.del_range(Proto.TCP, None, 100, 200)
    for port, expected in ((100, "pass_unclaimed"), (150, "redirect_range"),
                           (250, "redirect_range"), (251, "pass_unclaimed")):  # fmt: skip
        assert verdict(fresh, ip() / tcp(port)) == expected, port
    fresh.del_range(Proto.TCP, HOST, 150, 250)
    assert verdict(fresh, ip() / tcp(150)) == "pass_unclaimed"
    assert verdict(fresh, ip() / udp(150)) == "redirect_range"


def test_claim_made_twice_is_refused(fresh: Steering) -> None:
    fresh.claim(Proto.TCP, HOST, CLAIMED)
    with pytest.raises(PortTaken):
        fresh.claim(Proto.TCP, HOST, CLAIMED)
    fresh.claim(Proto.UDP, HOST, CLAIMED)
    fresh.claim(Proto.TCP, None, CLAIMED)
    with pytest.raises(PortTaken):
        fresh.claim(Proto.TCP, None, CLAIMED)


def test_seventeenth_range_is_refused(fresh: Steering) -> None:
    for i in range(16):
        fresh.add_range(Proto.TCP, HOST, 1000 * i + 1, 1000 * i + 999)
    with pytest.raises(TableFull):
        fresh.add_range(Proto.TCP, HOST, 60001, 60999)
    assert verdict(fresh, ip() / tcp(15500)) == "redirect_range"
    fresh.del_range(Proto.TCP, HOST, 7001, 7999)
    fresh.add_range(Proto.TCP, HOST, 60001, 60999)
    assert verdict(fresh, ip() / tcp(60500)) == "redirect_range"


@pytest.mark.parametrize(("lo", "hi"), [(0, 5), (9, 8)])
def test_range_without_ports_is_refused(fresh: Steering, lo: int, hi: int) -> None:
    with pytest.raises(IxError):
        fresh.add_range(Proto.TCP, HOST, lo, hi)


def test_verdict_names_are_those_of_the_header() -> None:
    header = Path(__file__).parents[2] / "xdp" / "steer.h"
    names = re.findall(r'^    X\(\w+, "(\w+)"', header.read_text(), re.MULTILINE)
    assert list(verdict_names()) == names
    assert all(verdict_names().values())


def test_object_missing_says_how_to_build_it(tmp_path: Path) -> None:
    with pytest.raises(NotBuilt, match="make build"):
        Steering.open(tmp_path / "none.o")


def test_object_is_nonsense_open_fails_with_text(tmp_path: Path) -> None:
    bad = tmp_path / "bad.o"
    bad.write_bytes(b"not an ELF file" * 100)
    with pytest.raises(IxError, match=r"bad\.o"):
        Steering.open(bad)


def test_closed_steering_is_used_error() -> None:
    steering = Steering.open()
    steering.close()
    steering.close()
    with pytest.raises(IxError, match="closed"):
        steering.verdicts()
