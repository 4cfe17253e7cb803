"""What a NIC is, and which AF_XDP mode it gives: facts and the mode ladder."""

from __future__ import annotations

import enum
import errno
import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from pyroute2 import IPRoute
from pyroute2.ethtool import Ethtool
from pyroute2.netlink.exceptions import NetlinkError

from ixnet.control import ethtool
from ixnet.control.errors import (
    InterfaceGone,
    IxError,
    ModeUnavailable,
    MtuTooLarge,
    NoSuchQueue,
    NotPermitted,
    ProgramAttached,
    QueueBusy,
    UnknownInterface,
)
from ixnet.control.xdp import (
    AttachedProgram,
    IpAddress,
    Steering,
    XdpMode,
    query_attached,
    require_capabilities,
)
from ixnet.control.xsk import QueueConfig, QueueSocket

# linux/if_addr.h
_IFA_F_OPTIMISTIC, _IFA_F_DADFAILED, _IFA_F_TENTATIVE = 0x04, 0x08, 0x40
IpInterface: TypeAlias = ipaddress.IPv4Interface | ipaddress.IPv6Interface

ETHERNET_HEADER_BYTES = 14
XDP_HEADROOM_BYTES = 256  # the kernel keeps them free before each received frame
# These NICs count the size of a receive buffer in KiB (SRRCTL.BSIZEPKT), and in zero-copy mode
# their drivers round what the UMEM frame has room for down to that (igb_setup_srrctl,
# igc_configure_rx_ring, ixgbe_configure_srrctl). A longer frame is split and lost: of a frame of
# 2048 bytes, 1024 are used.
_BUFFER_UNIT_BYTES = {"igb": 1024, "igc": 1024, "ixgbe": 1024}

# The offloads that decide what a dataplane sees, by ethtool's names.
_OFFLOADS = (
    "tx-checksum-ip-generic",
    "tx-checksum-ipv4",
    "rx-checksum",
    "tx-tcp-segmentation",
    "tx-generic-segmentation",
    "rx-gro",
    "rx-lro",
    "rx-vlan-hw-parse",
    "tx-vlan-hw-insert",
)


@dataclass(frozen=True)
class Channels:
    """ethtool -l: queues by kind. A combined one receives and sends."""

    rx: int
    tx: int
    combined: int
    rx_max: int
    tx_max: int
    combined_max: int


@dataclass(frozen=True)
class Rings:
    """ethtool -g: the NIC's own descriptor rings, entries."""

    rx: int
    tx: int
    rx_max: int
    tx_max: int


@dataclass(frozen=True)
class Nic:
    """One interface as the kernel described it when asked; refresh() asks again.

    mtu in bytes without the Ethernet header. queues: those that can have an AF_XDP socket. kind:
    the kernel's word for a virtual interface ("veth"), "" for hardware. xdp_features: None where
    the kernel doesn't tell (before 6.3). offloads: by ethtool's names; one that the driver doesn't
    know is absent. rss: None where there is none to read.
    """

    name: str
    ifindex: int
    mac: bytes
    mtu: int
    driver: str
    kind: str
    up: bool
    carrier: bool
    queues: tuple[int, ...]
    channels: Channels | None
    rings: Rings | None
    offloads: Mapping[str, bool] = field(hash=False)
    program: AttachedProgram | None
    xdp_features: frozenset[str] | None
    rss: ethtool.Rss | None
    addresses: tuple[IpInterface, ...]

    @classmethod
    def find(cls, name: str) -> Nic:
        """Looks an interface up by name, in this process's network namespace.

        Errors: UnknownInterface, with the names that there are.
        """
        with IPRoute() as ipr:
            link = _find_link(ipr, name)
            addresses = _addresses(ipr, link["index"])
        channels = _channels(name)
        return cls(
            name=name,
            ifindex=link["index"],
            mac=bytes.fromhex((link.get_attr("IFLA_ADDRESS") or "").replace(":", "")),
            mtu=link.get_attr("IFLA_MTU"),
            driver=ethtool.driver_name(name),
            kind=(link.get_attr("IFLA_LINKINFO") or _NO_ATTRS).get_attr("IFLA_INFO_KIND") or "",
            up=bool(link["flags"] & 1),
            carrier=bool(link.get_attr("IFLA_CARRIER")),
            queues=_usable_queues(link, channels),
            channels=channels,
            rings=_rings(name),
            offloads=_offloads(name),
            program=query_attached(link["index"]),
            xdp_features=ethtool.xdp_features(link["index"]),
            rss=ethtool.rss(name),
            addresses=addresses,
        )

    def refresh(self) -> Nic:
        """The same interface as it is now. UnknownInterface if it was removed or renamed."""
        return Nic.find(self.name)

    @property
    def ips(self) -> tuple[IpAddress, ...]:
        """The interface's own addresses, without prefix lengths."""
        return tuple(address.ip for address in self.addresses)

    @property
    def takes_xdp_frames(self) -> bool:
        """Whether the driver sends XDP frames now (ndo_xdp_xmit). A veth does while its peer has a
        native XDP program or GRO on."""
        return "ndo-xmit" in (self.xdp_features or ())

    @property
    def mac_text(self) -> str:
        return self.mac.hex(":")

    def largest_mtu(self, frame_bytes: int, headroom: int = 0) -> int:
        """The largest MTU whose frames this NIC puts into a UMEM frame, in every mode."""
        return largest_mtu(frame_bytes, headroom, _BUFFER_UNIT_BYTES.get(self.driver, 1))

    def check_frame(self, frame_bytes: int, headroom: int = 0) -> None:
        """Raises MtuTooLarge unless a full frame fits a UMEM frame of `frame_bytes` bytes."""
        most = self.largest_mtu(frame_bytes, headroom)
        if self.mtu <= most:
            return
        cure = f"ip link set dev {self.name} mtu {most}"
        if frame_bytes < 4096 and self.mtu <= self.largest_mtu(4096, headroom):
            cure = f"use frames of 4096 bytes, or: {cure}"
        raise MtuTooLarge(
            f"the MTU of {self.name} is {self.mtu}; a frame of {frame_bytes} bytes holds {most}",
            cure,
            errno.EMSGSIZE,
        )

    def check_queues(self, wanted: Sequence[int]) -> None:
        """Raises NoSuchQueue if the interface lacks one of the queues."""
        lacking = sorted(set(wanted) - set(self.queues))
        if not lacking:
            return
        cure = f"use queues {self.queues[0]}-{self.queues[-1]}"
        if self.channels and max(lacking) < max(self.channels.rx_max, self.channels.combined_max):
            kind = "combined" if self.channels.combined_max else "rx N tx"
            cure += f", or: ethtool -L {self.name} {kind} {max(lacking) + 1}".replace(
                "N", str(max(lacking) + 1)
            )
        raise NoSuchQueue(
            f"{self.name} has {len(self.queues)} queues, no queue {lacking[0]}", cure, errno.EINVAL
        )

    def warnings(self) -> tuple[str, ...]:
        """What will work badly or not as expected, each with its cure."""
        found = []
        if not self.up:
            found.append(f"{self.name} is down (cure: ip link set dev {self.name} up)")
        elif not self.carrier:
            found.append(f"{self.name} has no carrier (cure: connect it, or set its peer up)")
        if self.offloads.get("rx-lro"):
            found.append(f"LRO merges frames (cure: ethtool -K {self.name} lro off)")
        if self.offloads.get("rx-vlan-hw-parse") and self.kind != "veth":
            found.append(
                "the NIC strips VLAN tags before the XDP program can see them, so tagged frames "
                f"count as untagged (cure if there are VLANs: ethtool -K {self.name} rxvlan off)"
            )
        if self.kind == "veth":
            found.append(
                "veth: the peer must send finished checksums, whole segments and VLAN tags in the "
                "frame (cure: at the peer, ethtool -K PEER tx off tso off gso off txvlan off)"
            )
        return tuple(found)


def largest_mtu(frame_bytes: int, headroom: int = 0, unit_bytes: int = 1) -> int:
    """The largest MTU whose frames fit a UMEM frame; the kernel drops longer ones (rx_dropped).

    unit_bytes: what the NIC's receive buffers are a multiple of.
    """
    room = frame_bytes - XDP_HEADROOM_BYTES - headroom
    return room - room % unit_bytes - ETHERNET_HEADER_BYTES


# ---- reading facts ---------------------------------------------------------------------


class _NoAttrs:
    def get_attr(self, name: str) -> None:
        return None


_NO_ATTRS = _NoAttrs()


def _find_link(ipr: IPRoute, name: str) -> Any:
    try:
        links = list(ipr.link("get", ifname=name)) if 0 < len(name) < 16 else []
    except NetlinkError as error:
        if error.code not in (errno.ENODEV, errno.EINVAL):
            raise
        links = []
    if links:
        return links[0]
    names = sorted(link.get_attr("IFLA_IFNAME") for link in ipr.get_links())
    raise UnknownInterface(
        f"there is no interface {name!r} in this network namespace",
        f"name one of: {', '.join(names)}",
        errno.ENODEV,
    )


def _addresses(ipr: IPRoute, ifindex: int) -> tuple[IpInterface, ...]:
    found = (usable_address(message) for message in ipr.get_addr(index=ifindex))
    return tuple(address for address in found if address is not None)


def interface_address(message: Any) -> IpInterface:
    """Of rtnetlink's message about one. IFA_LOCAL is our own side of a point-to-point link; IPv6
    has IFA_ADDRESS only."""
    text = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
    return ipaddress.ip_interface(f"{text}/{message['prefixlen']}")


def usable_address(message: Any) -> IpInterface | None:
    """The same; None for an IPv6 address that may be another's (RFC 4862 5.4)."""
    flags = message.get_attr("IFA_FLAGS") or message["flags"]
    if flags & _IFA_F_DADFAILED or (flags & _IFA_F_TENTATIVE and not flags & _IFA_F_OPTIMISTIC):
        return None
    return interface_address(message)


def _channels(name: str) -> Channels | None:
    tool = Ethtool()
    try:
        c = tool.get_channels(name)
    except Exception:  # pyroute2 raises its own kinds where the driver has no channels to tell of
        return None
    finally:
        tool.close()
    return Channels(
        int(c.rx_count),
        int(c.tx_count),
        int(c.combined_count),
        int(c.max_rx),
        int(c.max_tx),
        int(c.max_combined),
    )


def _rings(name: str) -> Rings | None:
    tool = Ethtool()
    try:
        r = tool.get_rings(name)
    except Exception:  # as above
        return None
    finally:
        tool.close()
    if r.rx is None or r.tx is None:
        return None
    return Rings(int(r.rx), int(r.tx), int(r.rx_max or 0), int(r.tx_max or 0))


def _offloads(name: str) -> dict[str, bool]:
    tool = Ethtool()
    try:
        features = tool.get_features(name).features
    except Exception:  # as above
        return {}
    finally:
        tool.close()
    return {key: bool(features[key].enable) for key in _OFFLOADS if key in features}


def _usable_queues(link: Any, channels: Channels | None) -> tuple[int, ...]:
    """A socket needs a receive and a send queue of the same number."""
    if channels:
        n = min(channels.rx, channels.tx) + channels.combined
    else:
        n = min(link.get_attr("IFLA_NUM_RX_QUEUES") or 1, link.get_attr("IFLA_NUM_TX_QUEUES") or 1)
    return tuple(range(max(n, 1)))


# ---- the ladder --------------------------------------------------------------------------


class Mode(enum.Enum):
    """AF_XDP modes, best first on a NIC; ladder() knows where they are not."""

    NATIVE_ZEROCOPY = "native zero-copy"
    NATIVE_COPY = "native copy"
    GENERIC_COPY = "generic copy"

    @property
    def xdp_mode(self) -> XdpMode:
        return XdpMode.GENERIC if self is Mode.GENERIC_COPY else XdpMode.NATIVE


@dataclass(frozen=True)
class Attempt:
    """A mode that could not be had, and why."""

    mode: Mode
    reason: str

    def __str__(self) -> str:
        return f"{self.mode.value}: {self.reason}"


@dataclass(frozen=True)
class OpenedQueues:
    """An interface in the dataplane's hands: the mode it gave, why no better one, the sockets."""

    mode: Mode
    attempts: tuple[Attempt, ...]
    sockets: tuple[QueueSocket, ...]
    steering: Steering

    def close(self) -> None:
        """Detaches the steering program and closes the sockets. Safe to repeat."""
        if self.steering.ifindex is not None:
            self.steering.detach()
        for sock in self.sockets:
            sock.close()


def ladder(nic: Nic) -> tuple[Mode, ...]:
    """The modes in the order in which they are tried.

    A veth copies each frame once more for a native program (its skb's memory is not from a page
    pool), and allocates a page for the copy. The generic hook takes the skb as it comes: bare
    frames of 130 bytes go round 1.2 times as often there, of 1514 bytes 1.3 times
    (bench/limit). But it finds all frames on queue 0, whatever queue they were sent on; and where
    frames can go out and come in without skbs (control/express.py), native copy is twice as fast.
    """
    if nic.kind == "veth" and len(nic.queues) == 1 and not nic.takes_xdp_frames:
        return (Mode.NATIVE_ZEROCOPY, Mode.GENERIC_COPY, Mode.NATIVE_COPY)
    return tuple(Mode)


# These end the walk: a worse mode would not do better.
_FATAL = (NotPermitted, ProgramAttached, QueueBusy, UnknownInterface, InterfaceGone)


def open_queues(
    nic: Nic, steering: Steering, queues: Sequence[QueueConfig], mode: Mode | None = None
) -> OpenedQueues:
    """Attaches the steering program and opens one socket a queue, in the best mode there is.

    mode None: those of ladder(), the first that works for all queues; else that one or
    ModeUnavailable. The sockets are in the XSKMAP when this returns; nothing is
    claimed yet, so nothing is redirected. On an error all is as before.

    Errors: NoSuchQueue, MtuTooLarge, ProgramAttached, QueueBusy, NotPermitted, UnknownInterface,
    InterfaceGone; ModeUnavailable with every attempt's reason.
    """
    require_capabilities()
    nic.check_queues([config.queue for config in queues])
    for config in queues:
        nic.check_frame(1 << config.frame_shift, config.headroom)
    attempts: list[Attempt] = []
    for rung in [mode] if mode else ladder(nic):
        try:
            sockets = _try_mode(nic, steering, queues, rung)
        except _FATAL:
            if steering.ifindex is not None:
                steering.detach()
            raise
        except IxError as error:
            attempts.append(Attempt(rung, error.message))
            continue
        return OpenedQueues(rung, tuple(attempts), sockets, steering)
    if steering.ifindex is not None:
        steering.detach()
    tried = "; ".join(map(str, attempts))
    cure = "let the mode be chosen" if mode else "use another interface or driver"
    raise ModeUnavailable(f"{nic.name} ({nic.driver}) can't do {tried}", cure, errno.EOPNOTSUPP)


def _try_mode(
    nic: Nic, steering: Steering, queues: Sequence[QueueConfig], mode: Mode
) -> tuple[QueueSocket, ...]:
    """One rung. The program goes first: in some drivers attaching it resets the queues."""
    if steering.mode is not mode.xdp_mode:
        if steering.ifindex is not None:
            steering.detach()
        steering.attach(nic.ifindex, mode.xdp_mode)
    sockets: list[QueueSocket] = []
    try:
        for config in queues:
            zerocopy = mode is Mode.NATIVE_ZEROCOPY
            sockets.append(QueueSocket.open(nic.ifindex, config, zerocopy))
        for sock in sockets:
            steering.set_socket(sock.queue, sock.fileno())
    except BaseException:
        # A closed socket leaves the XSKMAP by itself.
        for sock in sockets:
            sock.close()
        raise
    return tuple(sockets)


def busy_poll_available() -> bool:
    """Whether this kernel was built with busy polling (CONFIG_NET_RX_BUSY_POLL)."""
    return Path("/proc/sys/net/core/busy_poll").exists()
