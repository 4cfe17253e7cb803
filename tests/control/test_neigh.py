"""The mirror of neighbours, routes, addresses and link state against a live kernel."""

from __future__ import annotations

import ipaddress
import select
import socket
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
from pyroute2 import IPRoute

from ixnet.control import neigh
from ixnet.control.namespaces import in_netns
from ixnet.control.neigh import LinkState, NeighbourMirror, Route, best_route
from ixnet.control.nic import IpInterface, Nic
from ixnet.control.xdp import IpAddress
from tests.control.conftest import FAR_IP, NEAR_IP, Pair

IPv4 = ipaddress.IPv4Address
IFA_F_NODAD = 0x02
MAC = "02:00:00:00:00:09"
ON_LINK = ipaddress.IPv4Network("10.77.0.0/24")


class Told:
    """An observer that keeps what it was told, in order."""

    def __init__(self) -> None:
        self.neighbours: list[tuple[IpAddress, bytes | None]] = []
        self.routes: list[tuple[Route, bool]] = []
        self.addresses: list[tuple[IpInterface, bool]] = []
        self.links: list[LinkState] = []

    def on_neigh(self, ip: IpAddress, mac: bytes | None) -> None:
        self.neighbours.append((ip, mac))

    def on_route(self, route: Route, present: bool) -> None:
        self.routes.append((route, present))

    def on_address(self, address: IpInterface, present: bool) -> None:
        self.addresses.append((address, present))

    def on_link(self, state: LinkState) -> None:
        self.links.append(state)


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def mirror(pair: Pair, told: Told) -> Iterator[NeighbourMirror]:
    with NeighbourMirror(pair.near_index, told, resolve_interval_s=0.1) as m:
        yield m


@pytest.fixture
def ipr(pair: Pair) -> Iterator[IPRoute]:
    with IPRoute() as route:
        yield route


def wait(mirror: NeighbourMirror, condition: Callable[[], bool], seconds: float = 60) -> None:
    """Runs the mirror as a control loop does, until the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        left = deadline - time.monotonic()
        assert left > 0, "not told in time"
        if select.select([mirror], [], [], left)[0]:
            mirror.process()


def far_mac(pair: Pair) -> bytes:
    with in_netns(pair.far_ns):
        return Nic.find(pair.far).mac


def test_start_tells_what_there_is(
    pair: Pair, mirror: NeighbourMirror, told: Told, ipr: IPRoute
) -> None:
    ipr.neigh("add", dst="10.77.0.9", lladdr=MAC, ifindex=pair.near_index, state="permanent")
    mirror.start()
    assert told.neighbours == [(IPv4("10.77.0.9"), bytes.fromhex(MAC.replace(":", "")))]
    assert (Route(ON_LINK, None, NEAR_IP, 0), True) in told.routes
    assert told.addresses == [(ipaddress.IPv4Interface(f"{NEAR_IP}/24"), True)]
    assert told.links[-1].up and told.links[-1].mtu == 1500
    mirror.process()
    assert len(told.neighbours) == 1


def test_missing_neighbour_is_resolved_by_the_kernel(
    pair: Pair, mirror: NeighbourMirror, told: Told
) -> None:
    mirror.start()
    assert told.neighbours == []
    assert mirror.resolve(FAR_IP) is True
    wait(mirror, lambda: bool(told.neighbours))
    assert told.neighbours == [(FAR_IP, far_mac(pair))]
    assert mirror.neighbours == {FAR_IP: far_mac(pair)}
    assert mirror.resolve(FAR_IP) is False


def test_resolve_twice_at_once_asks_once(
    mirror: NeighbourMirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror.start()
    now_s = time.monotonic()
    monkeypatch.setattr(neigh, "time", SimpleNamespace(monotonic=lambda: now_s))
    missing = IPv4("10.77.0.77")
    assert mirror.resolve(missing) is True
    assert mirror.resolve(missing) is False
    now_s += 0.11
    assert mirror.resolve(missing) is True


def test_nobody_answers_observer_is_told_none(mirror: NeighbourMirror, told: Told) -> None:
    mirror.start()
    missing = IPv4("10.77.0.77")
    mirror.resolve(missing)
    # Three questions, a second apart (net.ipv4.neigh.*.mcast_solicit, retrans_time_ms).
    wait(mirror, lambda: (missing, None) in told.neighbours)
    assert mirror.neighbours == {}


def test_datagram_fallback_resolves_too(pair: Pair, mirror: NeighbourMirror, told: Told) -> None:
    mirror.start()
    mirror._probe_by_datagram(FAR_IP)
    wait(mirror, lambda: (FAR_IP, far_mac(pair)) in told.neighbours)


def test_neighbour_changes_and_goes_each_is_told_once(
    pair: Pair, mirror: NeighbourMirror, told: Told, ipr: IPRoute
) -> None:
    mirror.start()
    ip = IPv4("10.77.0.9")
    for lladdr in (MAC, MAC, "02:00:00:00:00:0a"):
        ipr.neigh("replace", dst=str(ip), lladdr=lladdr, ifindex=pair.near_index, state="permanent")
    ipr.neigh("del", dst=str(ip), ifindex=pair.near_index)
    wait(mirror, lambda: len(told.neighbours) >= 3)
    assert [mac and mac[-1] for _, mac in told.neighbours] == [9, 10, None]


def test_neighbour_of_other_interface_is_not_told(
    mirror: NeighbourMirror, told: Told, ipr: IPRoute
) -> None:
    mirror.start()
    ipr.link("add", ifname="dummy0", kind="bridge")
    other = ipr.link_lookup(ifname="dummy0")[0]
    ipr.link("set", index=other, state="up")
    ipr.addr("add", index=other, address="10.88.0.1", prefixlen=24)
    ipr.neigh("add", dst="10.88.0.9", lladdr=MAC, ifindex=other, state="permanent")
    mirror.process()
    assert told.neighbours == []
    assert all(address.ip != IPv4("10.88.0.1") for address, _ in told.addresses)
    on_link = {ON_LINK, ipaddress.IPv6Network("fe80::/64")}
    assert {route.destination for route, _ in told.routes} <= on_link


def test_routes_added_and_removed_are_told(
    mirror: NeighbourMirror, told: Told, ipr: IPRoute
) -> None:
    mirror.start()
    told.routes.clear()
    net = ipaddress.IPv4Network("10.9.0.0/16")
    ipr.route("add", dst=str(net), gateway=str(FAR_IP))
    ipr.route("add", dst="default", gateway=str(FAR_IP), priority=7)
    ipr.route("del", dst=str(net), gateway=str(FAR_IP))
    wait(mirror, lambda: len(told.routes) >= 3)
    via = Route(net, FAR_IP, None, 0)
    default = Route(ipaddress.IPv4Network("0.0.0.0/0"), FAR_IP, None, 7)
    assert told.routes == [(via, True), (default, True), (via, False)]
    assert best_route(mirror.routes, IPv4("8.8.8.8")) == default


def test_route_that_is_replaced_is_told_as_gone(
    mirror: NeighbourMirror, told: Told, ipr: IPRoute
) -> None:
    mirror.start()
    told.routes.clear()
    net = ipaddress.IPv4Network("10.9.0.0/16")
    other = IPv4("10.77.0.3")
    ipr.route("add", dst=str(net), gateway=str(FAR_IP))
    ipr.route("replace", dst=str(net), gateway=str(other))
    wait(mirror, lambda: len(told.routes) >= 3)
    old, new = Route(net, FAR_IP, None, 0), Route(net, other, None, 0)
    assert told.routes == [(old, True), (new, True), (old, False)]


def test_ipv6_is_mirrored(pair: Pair, mirror: NeighbourMirror, told: Told, ipr: IPRoute) -> None:
    near, far = ipaddress.IPv6Address("fd77::1"), ipaddress.IPv6Address("fd77::2")
    with in_netns(pair.far_ns), IPRoute() as there:
        index = there.link_lookup(ifname=pair.far)[0]
        there.addr("add", index=index, address=str(far), prefixlen=64, flags=IFA_F_NODAD)
    mirror.start()
    ipr.addr("add", index=pair.near_index, address=str(near), prefixlen=64, flags=IFA_F_NODAD)
    wait(mirror, lambda: (ipaddress.ip_interface(f"{near}/64"), True) in told.addresses)
    on_link = Route(ipaddress.IPv6Network("fd77::/64"), None, None, 256)
    wait(mirror, lambda: (on_link, True) in told.routes)
    ipr.route("add", dst="default", gateway=str(far), family=socket.AF_INET6)
    default = Route(ipaddress.IPv6Network("::/0"), far, None, 1024)
    wait(mirror, lambda: (default, True) in told.routes)
    assert mirror.resolve(far)
    wait(mirror, lambda: (far, far_mac(pair)) in told.neighbours)
    assert not any(ip.is_multicast for ip in mirror.neighbours)
    ipr.route("del", dst="default", gateway=str(far), family=socket.AF_INET6)
    wait(mirror, lambda: (default, False) in told.routes)
    ipr.addr("delete", index=pair.near_index, address=str(near), prefixlen=64)
    wait(mirror, lambda: (ipaddress.ip_interface(f"{near}/64"), False) in told.addresses)


def test_address_is_told_once_it_is_known_to_be_nobody_elses(
    pair: Pair, mirror: NeighbourMirror, told: Told, ipr: IPRoute
) -> None:
    free, taken = ipaddress.IPv6Address("fd77::7"), ipaddress.IPv6Address("fd77::2")
    with in_netns(pair.far_ns), IPRoute() as there:
        index = there.link_lookup(ifname=pair.far)[0]
        there.addr("add", index=index, address=str(taken), prefixlen=64, flags=IFA_F_NODAD)
    mirror.start()
    for address in (free, taken):
        ipr.addr("add", index=pair.near_index, address=str(address), prefixlen=64)
    mirror.process()
    assert not any(address.ip == free for address, _ in told.addresses)
    wait(mirror, lambda: any(address.ip == free for address, _ in told.addresses))
    assert not any(address.ip == taken for address, _ in told.addresses)


def test_address_added_and_removed_is_told(
    pair: Pair, mirror: NeighbourMirror, told: Told, ipr: IPRoute
) -> None:
    mirror.start()
    told.addresses.clear()
    ipr.addr("add", index=pair.near_index, address="10.77.0.8", prefixlen=24)
    ipr.addr("delete", index=pair.near_index, address="10.77.0.8", prefixlen=24)
    wait(mirror, lambda: len(told.addresses) >= 2)
    address = ipaddress.IPv4Interface("10.77.0.8/24")
    assert told.addresses == [(address, True), (address, False)]


def test_link_down_takes_routes_and_neighbours_with_it(
    pair: Pair, mirror: NeighbourMirror, told: Told, ipr: IPRoute
) -> None:
    mirror.start()
    mirror.resolve(FAR_IP)
    wait(mirror, lambda: FAR_IP in mirror.neighbours)
    ipr.link("set", index=pair.near_index, state="down")
    wait(mirror, lambda: mirror.link is not None and not mirror.link.up)
    wait(mirror, lambda: not mirror.neighbours)
    assert mirror.routes == frozenset()
    ipr.link("set", index=pair.near_index, state="up")
    wait(mirror, lambda: bool(mirror.routes))
    assert mirror.link is not None and mirror.link.up


def test_interface_removed_observer_is_told(
    pair: Pair, mirror: NeighbourMirror, told: Told, ipr: IPRoute
) -> None:
    mirror.start()
    ipr.link("del", index=pair.near_index)
    wait(mirror, lambda: not told.links[-1].present)
    assert (mirror.addresses, mirror.routes, mirror.neighbours) == (frozenset(), frozenset(), {})


def test_notifications_lost_mirror_reads_anew(
    pair: Pair, mirror: NeighbourMirror, told: Told, ipr: IPRoute
) -> None:
    mirror._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    mirror.start()
    for last in range(3, 200):
        ipr.neigh(
            "add", dst=f"10.77.0.{last}", lladdr=MAC, ifindex=pair.near_index, state="permanent"
        )
    wait(mirror, lambda: len(mirror.neighbours) == 197)
    assert mirror.resyncs >= 1


def test_best_route_is_the_longest_prefix_then_the_lowest_metric() -> None:
    def route(net: str, metric: int) -> Route:
        return Route(ipaddress.IPv4Network(net), None, None, metric)

    wide, narrow, worse = route("10.0.0.0/8", 0), route("10.1.0.0/16", 5), route("10.1.0.0/16", 9)
    assert best_route([wide, worse, narrow], IPv4("10.1.2.3")) == narrow
    assert best_route([wide, worse, narrow], IPv4("10.2.2.3")) == wide
    assert best_route([wide, worse, narrow], IPv4("11.0.0.1")) is None
