"""Turns what the kernel says of an interface into control messages for shards.

A shard keeps one route a destination, the kernel may have several of different metric: the board
knows all of them and tells the shards of the best. In own-address mode the shards have those
addresses alone, and the kernel's routes are used with that of their family as their source.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from ixnet._core import ffi, lib
from ixnet.control.neigh import IpNetwork, LinkState, Route
from ixnet.control.nic import IpInterface
from ixnet.control.xdp import IpAddress

# base/limits.h: what a shard can hold; more is not sent.
ROUTES_MAX = 256
ADDRESSES_MAX = 32

Tell = Callable[[Sequence[Any]], None]


def control_message(
    kind: int,
    ip: IpAddress | None = None,
    *,
    prefix: int = 32,
    mac: bytes = bytes(6),
    gateway: IpAddress | None = None,
    source: IpAddress | None = None,
    value: int = 0,
) -> Any:
    """A `struct ix_ctl_msg *`; kind: IX_CTL_*. Its family is that of `ip`."""
    message = ffi.new("struct ix_ctl_msg *")
    message.type, message.prefix, message.value = kind, prefix, value
    message.family = ip.version if ip is not None else 4
    message.mac = mac
    for field, address in (("ip", ip), ("gateway", gateway), ("source", source)):
        if address is not None:
            ffi.memmove(getattr(message, field), address.packed, len(address.packed))
    return message


def message_ip(message: Any) -> IpAddress:
    """The address that a control message is about."""
    packed = bytes(ffi.buffer(message.ip, 16))
    return IPv6Address(packed) if message.family == 6 else IPv4Address(packed[:4])


class NewsBoard:
    """An Observer (control/neigh.py) that tells shards by `tell`, and can tell a new one all of it.

    on_change: called after addresses or the link's state changed.
    """

    def __init__(
        self, tell: Tell, own: Sequence[IpInterface], on_change: Callable[[], None]
    ) -> None:
        """own: at most one a family; empty where the kernel's addresses are shared."""
        self._tell = tell
        self._own = {address.version: address for address in own}
        self._on_change = on_change
        self.neighbours: dict[IpAddress, bytes] = {}
        self.addresses: set[IpInterface] = set()
        self.link: LinkState | None = None
        self._routes: dict[IpNetwork, list[Route]] = {}
        for address in own:
            self._add_route(Route(address.network, None, address.ip, 0))

    # ---- Observer --------------------------------------------------------------------------

    def on_neigh(self, ip: IpAddress, mac: bytes | None) -> None:
        """See neigh.Observer."""
        if mac is None:
            self.neighbours.pop(ip, None)
            self._tell([control_message(lib.IX_CTL_NEIGH_DEL, ip)])
        else:
            self.neighbours[ip] = mac
            self._tell([control_message(lib.IX_CTL_NEIGH_SET, ip, mac=mac)])

    def on_route(self, route: Route, present: bool) -> None:
        """See neigh.Observer."""
        before = self._best(route.destination)
        if present:
            self._add_route(route)
        elif route in self._routes.get(route.destination, []):
            self._routes[route.destination].remove(route)
        after = self._best(route.destination)
        if after is None:
            self._routes.pop(route.destination, None)
            if before is not None:
                self._tell([self._route_message(before, lib.IX_CTL_ROUTE_DEL)])
        elif after != before:
            self._tell([self._route_message(after)])

    def on_address(self, address: IpInterface, present: bool) -> None:
        """See neigh.Observer."""
        (self.addresses.add if present else self.addresses.discard)(address)
        if not self._own:
            kind = lib.IX_CTL_ADDR_ADD if present else lib.IX_CTL_ADDR_DEL
            self._tell([control_message(kind, address.ip)])
        self._on_change()

    def on_link(self, state: LinkState) -> None:
        """See neigh.Observer."""
        self.link = state
        self._tell([self._link_message(state)])
        self._on_change()

    # ---- all of it ---------------------------------------------------------------------------

    def snapshot(self) -> list[Any]:
        """The messages that tell a new shard everything."""
        messages = []
        if self.link is not None:
            messages.append(self._link_message(self.link))
        for own in self._own.values():
            messages.append(control_message(lib.IX_CTL_ADDR_ADD, own.ip, value=1))
        if not self._own:
            addresses = sorted(self.addresses, key=lambda a: (a.version, a.ip.packed))
            for address in addresses[:ADDRESSES_MAX]:
                messages.append(control_message(lib.IX_CTL_ADDR_ADD, address.ip))
        # The longest prefixes are the ones whose loss would send packets elsewhere.
        for network in sorted(self._routes, key=lambda n: -n.prefixlen)[:ROUTES_MAX]:
            best = self._best(network)
            if best is not None:
                messages.append(self._route_message(best))
        for ip, mac in self.neighbours.items():
            messages.append(control_message(lib.IX_CTL_NEIGH_SET, ip, mac=mac))
        return messages

    def _add_route(self, route: Route) -> None:
        self._routes.setdefault(route.destination, []).append(route)

    def _best(self, destination: IpNetwork) -> Route | None:
        return min(self._routes.get(destination, []), key=lambda r: r.metric, default=None)

    def _route_message(self, route: Route, kind: int | None = None) -> Any:
        network = route.destination
        own = self._own.get(network.version)
        return control_message(
            lib.IX_CTL_ROUTE_SET if kind is None else kind,
            network.network_address,
            prefix=network.prefixlen,
            gateway=route.gateway,
            source=own.ip if own is not None else route.source,
        )

    @staticmethod
    def _link_message(state: LinkState) -> Any:
        value = 1 if state.up and state.carrier else 0
        return control_message(lib.IX_CTL_LINK, value=value)
