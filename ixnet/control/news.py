"""Turns what the kernel says of an interface into control messages for shards.

A shard keeps one route a destination, the kernel may have several of different metric: the board
knows all of them and tells the shards of the best. In own-address mode the shards have that
address alone, and the kernel's routes are used with it as their source.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Any

from ixnet._core import lib
from ixnet.control.neigh import LinkState, Route
from ixnet.control.workers import control_message

# base/limits.h: what a shard can hold; more is not sent.
ROUTES_MAX = 256
ADDRESSES_MAX = 16

Tell = Callable[[Sequence[Any]], None]


class NewsBoard:
    """An Observer (control/neigh.py) that tells shards by `tell`, and can tell a new one all of it.

    on_change: called after addresses or the link's state changed.
    """

    def __init__(
        self, tell: Tell, own: IPv4Interface | None, on_change: Callable[[], None]
    ) -> None:
        self._tell = tell
        self._own = own
        self._on_change = on_change
        self.neighbours: dict[IPv4Address, bytes] = {}
        self.addresses: set[IPv4Interface] = set()
        self.link: LinkState | None = None
        self._routes: dict[IPv4Network, list[Route]] = {}
        if own is not None:
            self._add_route(Route(own.network, None, own.ip, 0))

    # ---- Observer --------------------------------------------------------------------------

    def on_neigh(self, ip: IPv4Address, mac: bytes | None) -> None:
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

    def on_address(self, address: IPv4Interface, present: bool) -> None:
        """See neigh.Observer."""
        (self.addresses.add if present else self.addresses.discard)(address)
        if self._own is None:
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
        if self._own is not None:
            messages.append(control_message(lib.IX_CTL_ADDR_ADD, self._own.ip, value=1))
        else:
            for address in sorted(self.addresses)[:ADDRESSES_MAX]:
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

    def _best(self, destination: IPv4Network) -> Route | None:
        return min(self._routes.get(destination, []), key=lambda r: r.metric, default=None)

    def _route_message(self, route: Route, kind: int | None = None) -> Any:
        network = route.destination
        return control_message(
            lib.IX_CTL_ROUTE_SET if kind is None else kind,
            network.network_address,
            prefix=network.prefixlen,
            gateway=route.gateway,
            source=self._own.ip if self._own is not None else route.source,
        )

    @staticmethod
    def _link_message(state: LinkState) -> Any:
        value = 1 if state.up and state.carrier else 0
        return control_message(lib.IX_CTL_LINK, value=value)
