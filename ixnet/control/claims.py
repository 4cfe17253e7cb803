"""Which ports are the dataplane's: checked against the kernel's sockets, then steered.

A claimed port is also *held* in the kernel, by a socket that is bound and never listens: so no
kernel service can take it afterwards unnoticed, and two dataplanes on one address can't either.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pyroute2 import DiagSocket

from ixnet.control.errors import IxError, PortTaken, RangeOverlap
from ixnet.control.nic import Nic
from ixnet.control.xdp import IpAddress, Proto, Steering

# The states that sock_diag is asked for, as bits (net/tcp_states.h). A UDP socket is CLOSE, or
# ESTABLISHED when connected.
_TCP_TIME_WAIT, _TCP_LISTEN = 6, 10
_ALL_STATES = 0xFFF
_ANY_V4, _ANY_V6 = ipaddress.IPv4Address(0), ipaddress.IPv6Address(0)
_FIRST_OUTGOING_PORT = 61000  # just above the kernel's default range of 32768 to 60999
_LAST_PORT = 65535


@dataclass(frozen=True)
class KernelSocket:
    """A TCP or UDP socket of the kernel's stack. uid: whose it is; inode: its name in /proc."""

    proto: Proto
    ip: IpAddress
    port: int
    state: int
    v6only: bool
    uid: int
    inode: int

    @property
    def listens(self) -> bool:
        """Whether frames from strangers are meant for it."""
        return self.proto is Proto.UDP or self.state == _TCP_LISTEN

    def serves(self, ip: IpAddress) -> bool:
        """Whether it gets what is sent to `ip`. A [::] socket gets IPv4 too unless v6only."""
        if self.ip == _ANY_V6:
            return ip.version == 6 or not self.v6only
        mapped = self.ip.ipv4_mapped if isinstance(self.ip, ipaddress.IPv6Address) else None
        own = mapped or self.ip
        return own == ip or (own == _ANY_V4 and ip.version == 4)


@dataclass(frozen=True)
class PortRange:
    """Local ports of outgoing flows, lo to hi, both included. families: of which they are."""

    proto: Proto
    ip: IpAddress | None
    families: tuple[int, ...]
    lo: int
    hi: int

    def __len__(self) -> int:
        return self.hi - self.lo + 1


@dataclass
class _Claim:
    users: int
    holders: dict[IpAddress, socket.socket]


_Key = tuple[Proto, IpAddress | None, int, int]
_FAMILIES = (4, 6)


class Claims:
    """What one dataplane instance has claimed on one interface. For one thread.

    own: addresses that only the dataplane has; the kernel's sockets are no matter to them.
    """

    def __init__(self, steering: Steering, nic: Nic, own: Iterable[IpAddress] = ()) -> None:
        self._steering = steering
        self._ifindex = nic.ifindex
        self._addresses = nic.ips
        self._own = frozenset(own)
        self._claims: dict[_Key, _Claim] = {}
        self._ranges: list[PortRange] = []

    def __enter__(self) -> Claims:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends all claims. Safe to repeat."""
        for key, claim in self._claims.items():
            self._unsteer(key)
            _close_all(claim.holders)
        for ports in self._ranges:
            for family in ports.families:
                self._steering.del_range(ports.proto, ports.ip, ports.lo, ports.hi, family)
        self.forget()

    def forget(self) -> None:
        """For a forked child: drops its copies of the holding sockets; the claims stay."""
        for claim in self._claims.values():
            _close_all(claim.holders)
        self._claims.clear()
        self._ranges.clear()

    # ---- single ports ----------------------------------------------------------------

    def claim(self, proto: Proto, ip: IpAddress | None, port: int, family: int = 0) -> None:
        """Redirects proto/ip/port to the dataplane. ip None: every address of the interface, of
        one family, or of both (0).

        The same claim again (another worker of this instance) counts, and needs as many
        unclaim()s. Errors: PortTaken when a kernel socket or another dataplane has the port, or
        this instance claimed an overlapping address; IxError for port 0.
        """
        if not 0 < port <= _LAST_PORT:
            raise IxError(f"there is no port {port} to claim", "name one of 1 to 65535")
        key = (proto, ip, port, family if ip is None else ip.version)
        if key in self._claims:
            self._claims[key].users += 1
            return
        self._refuse_overlap(key)
        addresses = self._kernel_addresses(ip, _families(key))
        self._refuse_kernel_socket(proto, addresses, port)
        holders = self._hold(proto, addresses, port)
        try:
            for each in _families(key):
                self._steering.claim(proto, ip, port, each)
        except BaseException:
            self._unsteer(key)
            _close_all(holders)
            raise
        self._claims[key] = _Claim(1, holders)

    def unclaim(self, proto: Proto, ip: IpAddress | None, port: int, family: int = 0) -> None:
        """Takes one claim() back; the last one gives the port to the kernel. KeyError if none."""
        key = (proto, ip, port, family if ip is None else ip.version)
        claim = self._claims[key]
        claim.users -= 1
        if claim.users:
            return
        self._unsteer(key)
        _close_all(claim.holders)
        del self._claims[key]

    def _unsteer(self, key: _Key) -> None:
        proto, ip, port, _ = key
        for family in _families(key):
            self._steering.unclaim(proto, ip, port, family)

    def follow(self, addresses: Iterable[IpAddress]) -> list[IxError]:
        """The interface has these addresses now: claims of every address hold their ports there,
        too. Returns what keeps them from it; such a port is claimed all the same."""
        self._addresses = tuple(addresses)
        refused: list[IxError] = []
        for key, claim in self._claims.items():
            proto, ip, port, _ = key
            if ip is not None:
                continue
            wanted = self._kernel_addresses(None, _families(key))
            for gone in claim.holders.keys() - set(wanted):
                claim.holders.pop(gone).close()
            for address in wanted:
                if address in claim.holders:
                    continue
                try:
                    self._refuse_kernel_socket(proto, (address,), port)
                    claim.holders |= self._hold(proto, (address,), port)
                except IxError as error:
                    refused.append(error)
        return refused

    @property
    def ports(self) -> frozenset[_Key]:
        """(protocol, address or None, port, family or 0 for both) of each claim."""
        return frozenset(self._claims)

    @property
    def ranges(self) -> tuple[PortRange, ...]:
        return tuple(self._ranges)

    def _refuse_overlap(self, key: _Key) -> None:
        proto, ip, port, _ = key
        for other in self._claims:
            other_proto, other_ip, other_port, _ = other
            same = (other_proto, other_port) == (proto, port)
            same = same and bool(set(_families(key)) & set(_families(other)))
            if same and (ip is None or other_ip is None or other_ip == ip):
                raise PortTaken(
                    f"{proto.name} port {port} is claimed by this dataplane "
                    f"for {other_ip or 'every address'}",
                    "claim it once, for every address, or for different ones",
                    errno.EADDRINUSE,
                )

    def _kernel_addresses(
        self, ip: IpAddress | None, families: Iterable[int]
    ) -> tuple[IpAddress, ...]:
        """The kernel's addresses that a claim takes the port from."""
        addresses = (ip,) if ip is not None else self._addresses
        return tuple(a for a in addresses if a.version in families and a not in self._own)

    def _refuse_kernel_socket(
        self, proto: Proto, addresses: Sequence[IpAddress], port: int
    ) -> None:
        for sock in kernel_sockets(proto, port):
            taken = [a for a in addresses if sock.listens and sock.serves(a)]
            if taken:
                raise _taken_by_kernel(sock)

    def _hold(
        self, proto: Proto, addresses: Sequence[IpAddress], port: int
    ) -> dict[IpAddress, socket.socket]:
        holders: dict[IpAddress, socket.socket] = {}
        try:
            for address in addresses:
                holder = _hold_port(proto, address, port, self._ifindex)
                if holder is not None:
                    holders[address] = holder
        except BaseException:
            _close_all(holders)
            raise
        return holders

    # ---- ranges ------------------------------------------------------------------------

    def reserve_outgoing(
        self,
        proto: Proto,
        queues: int,
        ip: IpAddress | None = None,
        lo: int = _FIRST_OUTGOING_PORT,
        hi: int = _LAST_PORT,
    ) -> tuple[PortRange, ...]:
        """Claims local ports lo..hi for outgoing flows of both families, or of that of `ip`, and
        splits them evenly, one part a queue.

        The kernel must not choose from them: RangeOverlap if its own range of ephemeral ports
        (net.ipv4.ip_local_port_range, less ip_local_reserved_ports) overlaps, PortTaken if one of
        its sockets has a port of them.
        """
        if not 0 < lo <= hi <= _LAST_PORT or hi - lo + 1 < queues:
            raise IxError(f"ports {lo}-{hi} can't be split among {queues} queues")
        families = _FAMILIES if ip is None else (ip.version,)
        if ip is None or ip not in self._own:
            refuse_ephemeral_overlap(lo, hi)
            self._refuse_sockets_in_range(proto, ip, families, lo, hi)
        for other in self._ranges:
            meet = other.proto is proto and bool(set(other.families) & set(families))
            if meet and other.lo <= hi and lo <= other.hi:
                raise RangeOverlap(
                    f"{proto.name} ports {other.lo}-{other.hi} are reserved by this dataplane",
                    "choose another range",
                )
        whole = PortRange(proto, ip, families, lo, hi)
        self._ranges.append(whole)
        for family in families:
            self._steering.add_range(proto, ip, lo, hi, family)
        share = len(whole) // queues
        return tuple(
            replace(
                whole,
                lo=lo + i * share,
                hi=hi if i == queues - 1 else lo + (i + 1) * share - 1,
            )
            for i in range(queues)
        )

    def _refuse_sockets_in_range(
        self, proto: Proto, ip: IpAddress | None, families: Iterable[int], lo: int, hi: int
    ) -> None:
        addresses = self._kernel_addresses(ip, families)
        for sock in kernel_sockets(proto):
            # What is left of a closed connection holds nobody up.
            if not lo <= sock.port <= hi or sock.state == _TCP_TIME_WAIT:
                continue
            if any(sock.serves(a) for a in addresses):
                raise _taken_by_kernel(sock)


# ---- the kernel's sockets and settings ---------------------------------------------------------


def kernel_sockets(proto: Proto, port: int | None = None) -> tuple[KernelSocket, ...]:
    """The kernel's sockets of this namespace, by sock_diag(7); those of one local port, or all."""
    found: list[KernelSocket] = []
    with DiagSocket() as diag:
        diag.bind()
        for family in (socket.AF_INET, socket.AF_INET6):
            for message in diag.get_sock_stats(
                family=family, states=_ALL_STATES, protocol=int(proto), sport=port or 0
            ):
                sock = _kernel_socket(proto, message)
                # The kernel ignores sport for some protocols; look once more.
                if sock and (port is None or sock.port == port):
                    found.append(sock)
    return tuple(found)


def _kernel_socket(proto: Proto, message: Any) -> KernelSocket | None:
    address = message.get("idiag_src")
    if not isinstance(address, str):
        return None
    return KernelSocket(
        proto=proto,
        ip=ipaddress.ip_address(address),
        port=message["idiag_sport"],
        state=message["idiag_state"],
        v6only=bool(message.get_attr("INET_DIAG_SKV6ONLY")),
        uid=message["idiag_uid"],
        inode=message["idiag_inode"],
    )


def _taken_by_kernel(sock: KernelSocket) -> PortTaken:
    who = _process_of(sock.inode)
    return PortTaken(
        f"the kernel has a {sock.proto.name} socket on {sock.ip} port {sock.port}"
        + (f", of {who}" if who else ""),
        f"stop {who or 'the service (ss -ltunp names it)'}, or choose another port",
        errno.EADDRINUSE,
    )


def _process_of(inode: int) -> str:
    """ "process 12 (sshd)" for a socket's inode; "" if it can't be found."""
    if not inode:
        return ""
    wanted = f"socket:[{inode}]"
    for fd in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if str(fd.readlink()) == wanted:
                pid = fd.parts[2]
                return f"process {pid} ({Path('/proc', pid, 'comm').read_text().strip()})"
        except OSError:
            continue
    return ""


def _families(key: _Key) -> tuple[int, ...]:
    return (key[3],) if key[3] else _FAMILIES


def _hold_port(proto: Proto, address: IpAddress, port: int, ifindex: int) -> socket.socket | None:
    """A socket bound to the port; None if only TIME_WAIT keeps the kernel from binding it.

    Errors: PortTaken; IxError if the address is not this host's.
    """
    kind = socket.SOCK_STREAM if proto is Proto.TCP else socket.SOCK_DGRAM
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    scope = ifindex if address.is_link_local else 0
    holder = socket.socket(family, kind | socket.SOCK_CLOEXEC)
    if proto is Proto.UDP:
        # It never reads; what the program passes while a queue has no socket must not pile up.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    try:
        at = (str(address), port)
        holder.bind((*at, 0, scope) if address.version == 6 else at)
        return holder
    except OSError as error:
        holder.close()
        if error.errno == errno.EADDRINUSE and _only_time_wait(proto, address, port):
            return None
        raise _bind_error(error, proto, address, port) from error


def _only_time_wait(proto: Proto, address: IpAddress, port: int) -> bool:
    """Whether remains of closed connections, and nothing else that shows, have the port."""
    there = [s for s in kernel_sockets(proto, port) if s.serves(address)]
    return bool(there) and all(s.state == _TCP_TIME_WAIT for s in there)


def _bind_error(error: OSError, proto: Proto, address: IpAddress, port: int) -> IxError:
    if error.errno == errno.EADDRINUSE:
        return PortTaken(
            f"another dataplane, or a kernel socket, holds {proto.name} port {port} on {address}",
            "stop it, or choose another port",
            errno.EADDRINUSE,
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return IxError(
            f"{address} is not an address of this host",
            "add it to the interface, or take it as an own address",
            errno.EADDRNOTAVAIL,
        )
    return IxError(f"bind {address} port {port}: {error.strerror}", "", error.errno or 0)


def _close_all(holders: Mapping[IpAddress, socket.socket]) -> None:
    for holder in holders.values():
        holder.close()


def ephemeral_range() -> tuple[int, int]:
    """The ports that the kernel chooses from for outgoing connections, both included."""
    low, high = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    return int(low), int(high)


def reserved_ports() -> list[tuple[int, int]]:
    """Ports that the kernel's choice leaves out (ip_local_reserved_ports), as ranges."""
    text = Path("/proc/sys/net/ipv4/ip_local_reserved_ports").read_text().strip()
    ranges = []
    for part in filter(None, text.split(",")):
        low, _, high = part.partition("-")
        ranges.append((int(low), int(high or low)))
    return sorted(ranges)


def refuse_ephemeral_overlap(lo: int, hi: int) -> None:
    """Raises RangeOverlap if the kernel could choose a port of lo..hi for itself."""
    low, high = ephemeral_range()
    first, last = max(lo, low), min(hi, high)
    for reserved_lo, reserved_hi in reserved_ports():
        if reserved_lo <= first <= reserved_hi:
            first = reserved_hi + 1
    if first > last:
        return
    raise RangeOverlap(
        f"ports {lo}-{hi} overlap with the kernel's own range {low}-{high}",
        f"sysctl -w net.ipv4.ip_local_reserved_ports={lo}-{hi}, "
        'or sysctl -w net.ipv4.ip_local_port_range="32768 60999"',
        errno.EADDRINUSE,
    )
