"""Neighbours and routes are the kernel's: this mirrors them, and asks it for missing ones.

One rtnetlink socket for the kernel's notifications, read without blocking from the control
plane's loop; pyroute2 decodes. If the kernel had to drop notifications (ENOBUFS), all is read
anew and only what differs is told.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl import (
    RTM_DELADDR,
    RTM_DELLINK,
    RTM_DELNEIGH,
    RTM_DELROUTE,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWNEIGH,
    RTM_NEWROUTE,
)
from pyroute2.netlink.rtnl.marshal import MarshalRtnl

from ixnet.control.nic import IpInterface, interface_address, usable_address
from ixnet.control.xdp import IpAddress

IpNetwork: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

_FAMILIES = (socket.AF_INET, socket.AF_INET6)
# rtnetlink(7): multicast groups as bits of sockaddr_nl.nl_groups.
_GROUP_LINK, _GROUP_NEIGH = 0x1, 0x4
_GROUP_IPV4_ADDR, _GROUP_IPV4_ROUTE = 0x10, 0x40
_GROUP_IPV6_ADDR, _GROUP_IPV6_ROUTE = 0x100, 0x400
# linux/neighbour.h: states in which the MAC address may be used.
_NUD_VALID = 0x02 | 0x40 | 0x80 | 0x04 | 0x08 | 0x10
_NUD_FAILED = 0x20
_NTF_USE = 0x01
_NLM_F_REPLACE = 0x100
_RT_TABLE_MAIN = 254
_RTN_UNICAST = 1
_RTM_F_CLONED = 0x200  # not a route of the table, but what was learned of one of its destinations
_RECEIVE_BYTES = 65536
_SOCKET_BUFFER_BYTES = 1 << 20
_DISCARD_PORT = 9  # RFC 863


@dataclass(frozen=True)
class Route:
    """A unicast route of the main table through the mirrored interface.

    gateway None: the destination is on the link. source: the address that the kernel prefers to
    send from, or None. Lower metric wins among equal destinations.
    """

    destination: IpNetwork
    gateway: IpAddress | None
    source: IpAddress | None
    metric: int


@dataclass(frozen=True)
class LinkState:
    """The interface itself. present False: it was removed, and nothing more will come."""

    present: bool
    up: bool
    carrier: bool
    mtu: int
    mac: bytes


class Observer(Protocol):
    """Whom a NeighbourMirror tells. Called from start() and process(), in order."""

    def on_neigh(self, ip: IpAddress, mac: bytes | None) -> None:
        """A neighbour's MAC address, 6 bytes. None: it has none any more, or resolve() failed."""

    def on_route(self, route: Route, present: bool) -> None:
        """A route was added (present) or removed. A change is a removal and an addition."""

    def on_address(self, address: IpInterface, present: bool) -> None:
        """The interface got or lost an address."""

    def on_link(self, state: LinkState) -> None:
        """The interface's state changed."""


@dataclass
class _Known:
    """What the observer was told so far."""

    neighbours: dict[IpAddress, bytes]
    routes: set[Route]
    addresses: set[IpInterface]
    link: LinkState | None


class NeighbourMirror:
    """Mirrors one interface's neighbours, routes, addresses and state to an Observer.

    resolve_interval_s: a neighbour is asked for at most once in so many seconds. Used by one
    thread, in the network namespace where it was made.
    """

    def __init__(self, ifindex: int, observer: Observer, resolve_interval_s: float = 0.2) -> None:
        self.ifindex = ifindex
        self.resyncs = 0  # how often notifications were lost and all was read anew
        self._observer = observer
        self._interval_s = resolve_interval_s
        self._asked_s: dict[IpAddress, float] = {}
        self._known = _Known({}, set(), set(), None)
        self._marshal = MarshalRtnl()
        self._ipr = IPRoute()
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )
        self._socket.setblocking(False)
        with contextlib.suppress(OSError):
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SOCKET_BUFFER_BYTES)

    def __enter__(self) -> NeighbourMirror:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the sockets. Safe to repeat."""
        self._socket.close()
        self._ipr.close()

    def fileno(self) -> int:
        """Readable when process() has something to do."""
        return self._socket.fileno()

    # ---- the kernel's state ------------------------------------------------------------

    def start(self) -> None:
        """Subscribes, then tells the observer all there is. Subscribed first, so that no change
        between the two is missed; one seen twice is told once."""
        groups = _GROUP_IPV4_ADDR | _GROUP_IPV4_ROUTE | _GROUP_IPV6_ADDR | _GROUP_IPV6_ROUTE
        self._socket.bind((0, groups | _GROUP_LINK | _GROUP_NEIGH))
        self._read_all()

    def process(self) -> int:
        """Takes all waiting notifications, without blocking. Returns how many there were."""
        n = 0
        while True:
            try:
                data = self._socket.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                return n
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self.resyncs += 1
                self._read_all()
                continue
            for message in self._marshal.parse(data):
                n += 1
                self._take(message)

    @property
    def neighbours(self) -> dict[IpAddress, bytes]:
        """A copy of the neighbours known now."""
        return dict(self._known.neighbours)

    @property
    def routes(self) -> frozenset[Route]:
        return frozenset(self._known.routes)

    @property
    def addresses(self) -> frozenset[IpInterface]:
        return frozenset(self._known.addresses)

    @property
    def link(self) -> LinkState | None:
        return self._known.link

    def _read_all(self) -> None:
        """Reads everything and tells what differs from what was told."""
        seen = _Known({}, set(), set(), None)
        # The kernel's dump of links says whether the interface is still there at all.
        links = [m for m in self._ipr.get_links() if m["index"] == self.ifindex]
        self._tell_link(_link_state(links[0]) if links else _GONE)
        for family in _FAMILIES if links else ():
            for message in self._ipr.get_addr(family=family, index=self.ifindex):
                address = usable_address(message)
                if address is not None:
                    seen.addresses.add(address)
            for message in self._ipr.get_routes(family=family):
                if route := self._route(message):
                    seen.routes.add(route)
            for message in self._ipr.get_neighbours(family=family, ifindex=self.ifindex):
                ip, mac = _neighbour(message)
                if ip is not None and mac is not None:
                    seen.neighbours[ip] = mac
        self._tell_sets(seen)

    def _tell_sets(self, seen: _Known) -> None:
        for address in self._known.addresses - seen.addresses:
            self._tell_address(address, False)
        for address in seen.addresses - self._known.addresses:
            self._tell_address(address, True)
        for route in self._known.routes - seen.routes:
            self._tell_route(route, False)
        for route in seen.routes - self._known.routes:
            self._tell_route(route, True)
        for ip in list(self._known.neighbours.keys() - seen.neighbours.keys()):
            self._tell_neigh(ip, None)
        for ip, mac in seen.neighbours.items():
            self._tell_neigh(ip, mac)

    def _take(self, message: Any) -> None:
        """One notification."""
        kind = message["header"]["type"]
        if kind in (RTM_NEWNEIGH, RTM_DELNEIGH):
            if message["family"] in _FAMILIES and message["ifindex"] == self.ifindex:
                ip, mac = _neighbour(message)
                if ip is not None:
                    self._tell_neigh(ip, mac if kind == RTM_NEWNEIGH else None)
                    self._tell_failed(ip, message["state"])
        elif kind in (RTM_NEWROUTE, RTM_DELROUTE):
            route = self._route(message)
            if route:
                self._tell_route(route, kind == RTM_NEWROUTE)
            if message["header"]["flags"] & _NLM_F_REPLACE:
                self._drop_replaced(message, route)
        elif kind in (RTM_NEWADDR, RTM_DELADDR):
            if message["family"] in _FAMILIES and message["index"] == self.ifindex:
                self._take_address(message, kind == RTM_NEWADDR)
        elif kind in (RTM_NEWLINK, RTM_DELLINK) and message["index"] == self.ifindex:
            self._take_link(message, kind == RTM_DELLINK)

    def _drop_replaced(self, message: Any, new: Route | None) -> None:
        """Of a route that takes another's place the kernel tells only the new one."""
        if message["type"] != _RTN_UNICAST or _table(message) != _RT_TABLE_MAIN:
            return
        what = _destination(message), message.get_attr("RTA_PRIORITY") or 0
        for route in [r for r in self._known.routes if (r.destination, r.metric) == what]:
            if route != new:
                self._tell_route(route, False)

    def _take_address(self, message: Any, new: bool) -> None:
        address = usable_address(message)
        if address is not None:
            self._tell_address(address, new)
        elif new:  # it was usable, perhaps, and has been found to be another's
            self._tell_address(interface_address(message), False)

    def _take_link(self, message: Any, gone: bool) -> None:
        before = self._known.link
        state = _GONE if gone else _link_state(message)
        self._tell_link(state)
        # When a link goes down the kernel drops its routes without a word about each
        # (fib_sync_down_dev), so look at all of them.
        if before and (before.up, before.carrier) != (state.up, state.carrier):
            self._read_all()

    # ---- telling, each thing once ----------------------------------------------------------

    def _tell_neigh(self, ip: IpAddress, mac: bytes | None) -> None:
        if self._known.neighbours.get(ip) == mac:
            return
        if mac is None:
            del self._known.neighbours[ip]
        else:
            self._known.neighbours[ip] = mac
            self._asked_s.pop(ip, None)
        self._observer.on_neigh(ip, mac)

    def _tell_failed(self, ip: IpAddress, state: int) -> None:
        """The kernel gave up on an address that was asked for: nobody answered its ARP."""
        if state & _NUD_FAILED and ip in self._asked_s and ip not in self._known.neighbours:
            self._observer.on_neigh(ip, None)

    def _tell_route(self, route: Route, present: bool) -> None:
        if (route in self._known.routes) == present:
            return
        (self._known.routes.add if present else self._known.routes.remove)(route)
        self._observer.on_route(route, present)

    def _tell_address(self, address: IpInterface, present: bool) -> None:
        if (address in self._known.addresses) == present:
            return
        (self._known.addresses.add if present else self._known.addresses.remove)(address)
        self._observer.on_address(address, present)

    def _tell_link(self, state: LinkState) -> None:
        if state == self._known.link:
            return
        self._known.link = state
        self._observer.on_link(state)

    def _route(self, message: Any) -> Route | None:
        """The route of a message, if it is one that the mirror is for."""
        if (
            message["family"] not in _FAMILIES
            or message["type"] != _RTN_UNICAST
            or message["flags"] & _RTM_F_CLONED
            or _table(message) != _RT_TABLE_MAIN
            or message.get_attr("RTA_OIF") != self.ifindex
        ):
            return None
        gateway, source = message.get_attr("RTA_GATEWAY"), message.get_attr("RTA_PREFSRC")
        return Route(
            _destination(message),
            ipaddress.ip_address(gateway) if gateway else None,
            ipaddress.ip_address(source) if source else None,
            message.get_attr("RTA_PRIORITY") or 0,
        )

    # ---- asking the kernel -------------------------------------------------------------------

    def resolve(self, ip: IpAddress, confirm: bool = False) -> bool:
        """Asks the kernel to find a neighbour's MAC address; on_neigh tells when it has, or that
        it gave up (after some 3 s). confirm: ask even if it is known, as it may have changed.

        Returns False when nothing was asked: it is known, or was asked for less than
        resolve_interval_s ago. A failing address costs one question an interval.
        """
        now_s = time.monotonic()
        if ip in self._known.neighbours and not confirm:
            return False
        if now_s - self._asked_s.get(ip, -1e9) < self._interval_s:
            return False
        self._forget_old_questions(now_s)
        self._asked_s[ip] = now_s
        try:
            # As if a packet for it were waiting (NTF_USE): the kernel starts to ask by ARP or ND.
            self._ipr.neigh(
                "replace", dst=str(ip), ifindex=self.ifindex, family=_family(ip),
                state="none", flags=_NTF_USE,
            )  # fmt: skip
        except NetlinkError:
            self._probe_by_datagram(ip)
        return True

    def _probe_by_datagram(self, ip: IpAddress) -> None:
        """The other way to make the kernel ask: a datagram to the discard port."""
        kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        to = (str(ip), _DISCARD_PORT, 0, self.ifindex if ip.is_link_local else 0)
        with contextlib.suppress(OSError), socket.socket(_family(ip), kind) as probe:
            probe.sendto(b"", to if ip.version == 6 else to[:2])

    def _forget_old_questions(self, now_s: float) -> None:
        if len(self._asked_s) < 4096:
            return
        recent = {ip: s for ip, s in self._asked_s.items() if now_s - s < self._interval_s}
        self._asked_s = recent


_GONE = LinkState(present=False, up=False, carrier=False, mtu=0, mac=b"")


def _link_state(message: Any) -> LinkState:
    return LinkState(
        present=True,
        up=bool(message["flags"] & 1),
        carrier=bool(message.get_attr("IFLA_CARRIER")),
        mtu=message.get_attr("IFLA_MTU") or 0,
        mac=_mac(message.get_attr("IFLA_ADDRESS")) or b"",
    )


def _table(message: Any) -> int:
    return int(message.get_attr("RTA_TABLE") or message["table"])


def _destination(message: Any) -> IpNetwork:
    default = "::" if message["family"] == socket.AF_INET6 else "0.0.0.0"
    return ipaddress.ip_network(f"{message.get_attr('RTA_DST') or default}/{message['dst_len']}")


def _family(ip: IpAddress) -> socket.AddressFamily:
    return socket.AF_INET6 if ip.version == 6 else socket.AF_INET


def _neighbour(message: Any) -> tuple[IpAddress | None, bytes | None]:
    """(address, MAC or None while there is no usable one); (None, None) if it has no address, or
    that of a group, which the kernel lists, too."""
    text = message.get_attr("NDA_DST")
    if not text or ipaddress.ip_address(text).is_multicast:
        return None, None
    usable = message["state"] & _NUD_VALID
    mac = _mac(message.get_attr("NDA_LLADDR")) if usable else None
    return ipaddress.ip_address(text), mac


def _mac(text: str | None) -> bytes | None:
    if not text:
        return None
    raw = bytes.fromhex(text.replace(":", ""))
    return raw if len(raw) == 6 else None


def best_route(routes: Iterable[Route], ip: IpAddress) -> Route | None:
    """The route that the kernel would take to `ip` among these: longest prefix, then metric."""
    fitting = [route for route in routes if ip in route.destination]
    return min(fitting, key=lambda r: (-r.destination.prefixlen, r.metric), default=None)
