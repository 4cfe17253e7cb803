"""Claims against the kernel's sockets and against other claims."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from ixnet.control.claims import (
    Claims,
    KernelSocket,
    ephemeral_range,
    kernel_sockets,
    refuse_ephemeral_overlap,
)
from ixnet.control.errors import IxError, PortTaken, RangeOverlap
from ixnet.control.namespaces import in_netns
from ixnet.control.nic import Nic
from ixnet.control.xdp import Proto, Steering
from tests.control.conftest import FAR_IP, NEAR_IP, Pair

IFA_F_NODAD = 0x02
TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM
OTHER_IP = ipaddress.IPv4Address("10.77.0.7")
PORT_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
RESERVED = Path("/proc/sys/net/ipv4/ip_local_reserved_ports")


@pytest.fixture
def claims(pair: Pair) -> Iterator[Claims]:
    with IPRoute() as ipr:
        ipr.addr("add", index=pair.near_index, address=str(OTHER_IP), prefixlen=24)
    with Steering.open() as steering, Claims(steering, Nic.find(pair.near)) as c:
        yield c


def listener(kind: int, address: str, port: int, v6only: bool = False) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
    if ":" in address:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(v6only))
    sock.bind((address, port))
    if kind == TCP:
        sock.listen()
    return sock


# ---- against the kernel -------------------------------------------------------------------


@pytest.mark.parametrize("proto", [Proto.TCP, Proto.UDP])
@pytest.mark.parametrize(
    ("has", "wants", "taken"),
    [
        ("0.0.0.0", None, True),
        ("0.0.0.0", NEAR_IP, True),
        (str(NEAR_IP), None, True),
        (str(NEAR_IP), NEAR_IP, True),
        (str(NEAR_IP), OTHER_IP, False),
        ("127.0.0.1", None, False),
        ("::", None, True),
    ],
)
def test_kernel_service_has_port_claim_is_refused_where_they_overlap(
    claims: Claims, proto: Proto, has: str, wants: ipaddress.IPv4Address | None, taken: bool
) -> None:
    with listener(TCP if proto is Proto.TCP else UDP, has, 7000):
        if not taken:
            claims.claim(proto, wants, 7000)
            return
        with pytest.raises(PortTaken, match=f"process {os.getpid()}") as caught:
            claims.claim(proto, wants, 7000)
        assert "7000" in caught.value.message and caught.value.cure
        assert not claims.ports
    claims.claim(proto, wants, 7000)


def test_kernel_service_of_ipv6_only_does_not_take_ipv4s_port(claims: Claims) -> None:
    with listener(TCP, "::", 7000, v6only=True):
        claims.claim(Proto.TCP, None, 7000)


IP6 = ipaddress.IPv6Address("fd77::1")


@pytest.fixture
def claims6(pair: Pair) -> Iterator[Claims]:
    """Claims on an interface that has IP6, too, and a link-local address."""
    with IPRoute() as ipr:
        for address in (str(IP6), "fe80::1"):
            ipr.addr("add", index=pair.near_index, address=address, prefixlen=64, flags=IFA_F_NODAD)
    with Steering.open() as steering, Claims(steering, Nic.find(pair.near)) as c:
        yield c


@pytest.mark.parametrize("proto", [Proto.TCP, Proto.UDP])
@pytest.mark.parametrize(
    ("has", "v6only", "wants", "family", "taken"),
    [
        ("::", True, None, 0, True),
        ("::", True, None, 6, True),
        ("::", True, None, 4, False),
        ("::", False, NEAR_IP, 4, True),
        ("::", True, IP6, 6, True),
        (str(IP6), True, None, 0, True),
        (str(IP6), True, None, 4, False),
        ("0.0.0.0", False, None, 6, False),
        ("::1", True, None, 0, False),
    ],
)
def test_claim_of_ipv6_meets_the_kernels_service(
    claims6: Claims,
    proto: Proto,
    has: str,
    v6only: bool,
    wants: ipaddress.IPv4Address | ipaddress.IPv6Address | None,
    family: int,
    taken: bool,
) -> None:
    with listener(TCP if proto is Proto.TCP else UDP, has, 7000, v6only):
        if taken:
            with pytest.raises(PortTaken):
                claims6.claim(proto, wants, 7000, family)
        else:
            claims6.claim(proto, wants, 7000, family)


def test_claimed_port_is_held_on_ipv6_too(claims6: Claims, pair: Pair) -> None:
    claims6.claim(Proto.TCP, None, 7000)
    for address in ("::", str(IP6)):
        with pytest.raises(OSError, match="in use"):
            listener(TCP, address, 7000, v6only=True)
    with socket.socket(socket.AF_INET6, TCP) as sock, pytest.raises(OSError, match="in use"):
        sock.bind(("fe80::1", 7000, 0, pair.near_index))
    claims6.unclaim(Proto.TCP, None, 7000)
    listener(TCP, "::", 7000).close()
    claims6.claim(Proto.TCP, None, 7000, 6)
    listener(TCP, "0.0.0.0", 7000).close()
    with pytest.raises(PortTaken):
        claims6.claim(Proto.TCP, None, 7000)
    claims6.claim(Proto.TCP, None, 7000, 4)


def test_claims_follow_the_addresses(claims6: Claims, pair: Pair) -> None:
    new = ipaddress.IPv6Address("fd77::8")
    claims6.claim(Proto.TCP, None, 7000)
    claims6.claim(Proto.TCP, IP6, 7001)
    with IPRoute() as ipr:
        ipr.addr("add", index=pair.near_index, address=str(new), prefixlen=64, flags=IFA_F_NODAD)
        ipr.addr("add", index=pair.near_index, address=str(OTHER_IP), prefixlen=24)
    listener(TCP, str(new), 7000).close()
    assert claims6.follow([NEAR_IP, new]) == []
    with pytest.raises(OSError, match="in use"):
        listener(TCP, str(new), 7000)
    listener(TCP, str(new), 7001).close()
    listener(TCP, str(OTHER_IP), 7000).close()
    with listener(TCP, str(OTHER_IP), 7000):
        (refused,) = claims6.follow([NEAR_IP, OTHER_IP])
        assert isinstance(refused, PortTaken) and str(OTHER_IP) in str(refused)


def test_outgoing_ports_are_of_both_families(claims6: Claims) -> None:
    (ports,) = claims6.reserve_outgoing(Proto.TCP, 1)
    assert ports.families == (4, 6)
    with pytest.raises(RangeOverlap, match="reserved"):
        claims6.reserve_outgoing(Proto.TCP, 1, IP6)


def test_other_protocol_of_the_kernel_is_no_obstacle(claims: Claims) -> None:
    with listener(UDP, "0.0.0.0", 7000):
        claims.claim(Proto.TCP, None, 7000)


def test_claimed_port_is_held_against_the_kernel_until_unclaimed(claims: Claims) -> None:
    claims.claim(Proto.TCP, None, 7000)
    for address in ("0.0.0.0", str(NEAR_IP)):
        with pytest.raises(OSError, match="in use"):
            listener(TCP, address, 7000)
    claims.unclaim(Proto.TCP, None, 7000)
    listener(TCP, "0.0.0.0", 7000).close()


def test_closed_service_left_time_wait_port_can_be_claimed(claims: Claims, pair: Pair) -> None:
    server = listener(TCP, str(NEAR_IP), 7000)
    with in_netns(pair.far_ns):
        client = socket.create_connection((str(NEAR_IP), 7000), timeout=60)
    served = server.accept()[0]
    served.close()  # closing first leaves TIME_WAIT on this side
    assert client.recv(1) == b""
    client.close()
    server.close()
    assert any(s.state == 6 for s in kernel_sockets(Proto.TCP, 7000))
    claims.claim(Proto.TCP, NEAR_IP, 7000)


def test_address_that_is_not_here_claim_names_the_cure(claims: Claims) -> None:
    with pytest.raises(IxError, match="own address"):
        claims.claim(Proto.TCP, FAR_IP, 7000)


def test_own_address_kernel_services_do_not_matter(pair: Pair) -> None:
    own = ipaddress.IPv4Address("10.77.0.50")
    with (
        listener(TCP, "0.0.0.0", 7000),
        Steering.open() as steering,
        Claims(steering, Nic.find(pair.near), own=[own]) as claims,
    ):
        claims.claim(Proto.TCP, own, 7000)
        claims.reserve_outgoing(Proto.TCP, 1, own, 1024, 65535)


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_port_out_of_bounds_is_refused(claims: Claims, port: int) -> None:
    with pytest.raises(IxError, match="no port"):
        claims.claim(Proto.TCP, None, port)


# ---- against other claims --------------------------------------------------------------------


def test_two_workers_claim_the_same_it_ends_with_the_second(claims: Claims) -> None:
    claims.claim(Proto.TCP, None, 7000)
    claims.claim(Proto.TCP, None, 7000)
    claims.unclaim(Proto.TCP, None, 7000)
    assert (Proto.TCP, None, 7000, 0) in claims.ports
    claims.unclaim(Proto.TCP, None, 7000)
    assert not claims.ports
    with pytest.raises(KeyError):
        claims.unclaim(Proto.TCP, None, 7000)


@pytest.mark.parametrize(("first", "second"), [(None, NEAR_IP), (NEAR_IP, None)])
def test_overlapping_claim_of_this_dataplane_is_refused(
    claims: Claims,
    first: ipaddress.IPv4Address | None,
    second: ipaddress.IPv4Address | None,
) -> None:
    claims.claim(Proto.TCP, first, 7000)
    with pytest.raises(PortTaken, match="this dataplane"):
        claims.claim(Proto.TCP, second, 7000)


def test_another_dataplane_has_the_port_claim_is_refused(claims: Claims, pair: Pair) -> None:
    claims.claim(Proto.TCP, None, 7000)
    claims.claim(Proto.UDP, NEAR_IP, 7000)
    with Steering.open() as steering, Claims(steering, Nic.find(pair.near)) as other:
        for proto in Proto:
            # Its holding socket is seen: bound UDP always, bound TCP by the failing bind().
            with pytest.raises(PortTaken, match="port 7000"):
                other.claim(proto, None, 7000)
        other.claim(Proto.UDP, OTHER_IP, 7000)


def test_claims_closed_ports_are_free(claims: Claims, pair: Pair) -> None:
    claims.claim(Proto.TCP, None, 7000)
    claims.reserve_outgoing(Proto.TCP, 2)
    claims.close()
    claims.close()
    with Steering.open() as steering, Claims(steering, Nic.find(pair.near)) as other:
        other.claim(Proto.TCP, None, 7000)
        other.reserve_outgoing(Proto.TCP, 2)


# ---- outgoing ranges ---------------------------------------------------------------------------


@pytest.mark.parametrize("queues", [1, 2, 3, 7])
def test_outgoing_range_is_split_among_queues_without_gap(claims: Claims, queues: int) -> None:
    parts = claims.reserve_outgoing(Proto.TCP, queues)
    assert len(parts) == queues
    ports = [port for part in parts for port in range(part.lo, part.hi + 1)]
    assert ports == list(range(61000, 65536))
    assert max(map(len, parts)) - min(map(len, parts)) < queues


def test_range_overlaps_with_the_kernels_error_names_the_cure(claims: Claims) -> None:
    low, high = ephemeral_range()
    with pytest.raises(RangeOverlap, match="ip_local_reserved_ports=60000-65535"):
        claims.reserve_outgoing(Proto.TCP, 2, lo=60000)
    with pytest.raises(RangeOverlap):
        refuse_ephemeral_overlap(high, high)
    refuse_ephemeral_overlap(high + 1, 65535)
    refuse_ephemeral_overlap(low - 10, low - 1)


def test_range_that_the_kernel_leaves_out_is_accepted(claims: Claims) -> None:
    RESERVED.write_text("50000-54999,55000-56000")
    claims.reserve_outgoing(Proto.TCP, 2, lo=50000, hi=56000)
    with pytest.raises(RangeOverlap):
        claims.reserve_outgoing(Proto.UDP, 2, lo=50000, hi=56001)


def test_kernel_configured_into_our_range_is_refused(claims: Claims) -> None:
    PORT_RANGE.write_text("32768 65000")
    with pytest.raises(RangeOverlap, match="32768-65000"):
        claims.reserve_outgoing(Proto.TCP, 2)


def test_kernel_socket_in_the_range_is_refused(claims: Claims) -> None:
    with listener(TCP, "0.0.0.0", 62000), pytest.raises(PortTaken, match="62000"):
        claims.reserve_outgoing(Proto.TCP, 2)
    claims.reserve_outgoing(Proto.TCP, 2)


def test_range_reserved_twice_is_refused(claims: Claims) -> None:
    claims.reserve_outgoing(Proto.TCP, 2, lo=61000, hi=62000)
    with pytest.raises(RangeOverlap, match="this dataplane"):
        claims.reserve_outgoing(Proto.TCP, 2, lo=62000, hi=63000)
    claims.reserve_outgoing(Proto.UDP, 2, lo=62000, hi=63000)


def test_range_smaller_than_the_queues_is_refused(claims: Claims) -> None:
    with pytest.raises(IxError, match="split"):
        claims.reserve_outgoing(Proto.TCP, 3, lo=61000, hi=61001)


# ---- the kernel's sockets ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "v6only", "asked", "serves"),
    [
        ("0.0.0.0", False, "10.0.0.1", True),
        ("0.0.0.0", False, "fd00::1", False),
        ("::", False, "10.0.0.1", True),
        ("::", True, "10.0.0.1", False),
        ("::", True, "fd00::1", True),
        ("::ffff:10.0.0.1", False, "10.0.0.1", True),
        ("10.0.0.1", False, "10.0.0.2", False),
    ],
)
def test_kernel_socket_serves_what_its_address_covers(
    address: str, v6only: bool, asked: str, serves: bool
) -> None:
    sock = KernelSocket(Proto.TCP, ipaddress.ip_address(address), 80, 10, v6only, 0, 0)
    assert sock.serves(ipaddress.ip_address(asked)) is serves
