"""The multicast groups that solicitations of own IPv6 addresses come to.

The kernel joins them: it tells the NIC's filter, reports the membership to routers and switches
by MLD (RFC 3810, or 2710 where a router asks in that), and answers their queries. Where IPv6 is off
on the interface it can't; then the NIC's filter alone is told.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import Iterable, Iterator
from ipaddress import IPv6Address

from ixnet.control.xdp import IpAddress

# linux/if_packet.h
_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, _PACKET_MR_MULTICAST = 263, 1, 0


def solicited_node(ip: IPv6Address) -> IPv6Address:
    """The group of everybody whose address ends like this (RFC 4291 2.7.1)."""
    return IPv6Address(b"\xff\x02" + bytes(9) + b"\x01\xff" + ip.packed[13:])


def group_mac(group: IPv6Address) -> bytes:
    """What its frames are sent to (RFC 2464 section 7)."""
    return b"\x33\x33" + group.packed[12:]


@contextlib.contextmanager
def joined(ifindex: int, addresses: Iterable[IpAddress]) -> Iterator[list[str]]:
    """Joins the groups of the IPv6 ones among `addresses` for the length of the block. Gives what
    is wrong, in words."""
    with contextlib.ExitStack() as stack:
        problems = []
        for ip in addresses:
            if isinstance(ip, IPv6Address):
                group = solicited_node(ip)
                try:
                    stack.enter_context(_join(ifindex, group))
                except OSError as error:
                    stack.enter_context(_join_filter(ifindex, group))
                    problems.append(
                        f"the kernel can't join {group} ({errno.errorcode.get(error.errno or 0)}): "
                        f"switches that watch MLD may hide {ip} (cure: turn the interface's IPv6 "
                        "on, sysctl net.ipv6.conf.INTERFACE.disable_ipv6=0)"
                    )
        yield problems


def _join(ifindex: int, group: IPv6Address) -> socket.socket:
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    try:
        membership = struct.pack("@16sI", group.packed, ifindex)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, membership)
    except OSError:
        sock.close()
        raise
    return sock


def _join_filter(ifindex: int, group: IPv6Address) -> socket.socket:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
    mreq = struct.pack("@iHH8s", ifindex, _PACKET_MR_MULTICAST, 6, group_mac(group))
    sock.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, mreq)
    return sock
