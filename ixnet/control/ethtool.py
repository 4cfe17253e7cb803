"""What pyroute2 has no call for: the driver's name, RSS and timestamps over ioctls, and a device's
XDP features over the kernel's "netdev" generic netlink family (Linux 6.3 and later)."""

from __future__ import annotations

import array
import errno
import fcntl
import socket
import struct
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from pyroute2.netlink import NLM_F_REQUEST, genlmsg
from pyroute2.netlink.generic import GenericNetlinkSocket

_SIOCETHTOOL = 0x8946
_ETHTOOL_GDRVINFO = 0x03
_ETHTOOL_GRSSH = 0x46
# struct ethtool_rxfh up to its array: cmd, context, indirection entries, key bytes, hash function.
_RXFH = struct.Struct("IIIIB7x")
# struct ethtool_ts_info: cmd, SO_TIMESTAMPING flags, clock, transmit types, receive filters.
_ETHTOOL_GET_TS_INFO = 0x41
_TS_INFO = struct.Struct("IIiI12xI12x")
_SOF_TX_HARDWARE, _SOF_RX_HARDWARE, _SOF_RAW_HARDWARE = 1 << 0, 1 << 2, 1 << 6
# struct hwtstamp_config.
_SIOCSHWTSTAMP, _SIOCGHWTSTAMP = 0x89B0, 0x89B1
_HWTSTAMP = struct.Struct("3i")
_TX_ON, _FILTER_ALL = 1, 1
_HASH_FUNCTIONS = {1: "toeplitz", 2: "xor", 4: "crc32"}

_NETLINK_GENERIC, _SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP = 16, 270, 1
_NETDEV_CMD_DEV_GET = 1
# enum netdev_xdp_act.
_XDP_FEATURES = {
    1: "basic",
    2: "redirect",
    4: "ndo-xmit",
    8: "xsk-zerocopy",
    16: "hw-offload",
    32: "rx-sg",
    64: "ndo-xmit-sg",
}


# enum netdev_xdp_rx_metadata, enum netdev_xsk_flags.
_RX_METADATA = {1: "timestamp", 2: "hash", 4: "vlan-tag"}
_XSK_FEATURES = {1: "tx-timestamp", 2: "tx-checksum", 4: "tx-launch-time"}


@dataclass(frozen=True)
class MetadataFeatures:
    """What a driver tells XDP programs of a received frame, and AF_XDP of a sent one."""

    receive: frozenset[str]
    transmit: frozenset[str]


@dataclass(frozen=True)
class Rss:
    """How the NIC spreads flows: queue = indirection[hash % len(indirection)]."""

    function: str
    key: bytes
    indirection: tuple[int, ...]


def _ethtool(ifname: str, buffer: bytes | bytearray, number: int = _SIOCETHTOOL) -> bytes:
    """An ioctl of an interface with `buffer` in and out. OSError as the kernel has it."""
    data = array.array("B", buffer)
    request = struct.pack("16sP16x", ifname.encode(), data.buffer_info()[0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, number, request)
    return data.tobytes()


def driver_name(ifname: str) -> str:
    """The driver, as ethtool -i has it; "" if the interface has none to name."""
    buffer = bytearray(196)
    struct.pack_into("I", buffer, 0, _ETHTOOL_GDRVINFO)
    try:
        out = _ethtool(ifname, buffer)
    except OSError:
        return ""
    return out[4:36].split(b"\0", 1)[0].decode(errors="replace")


def rss(ifname: str) -> Rss | None:
    """Hash function, key and indirection table; None where the driver has no RSS to tell of."""
    head = bytearray(_RXFH.pack(_ETHTOOL_GRSSH, 0, 0, 0, 0))
    try:
        _, _, entries, key_bytes, _ = _RXFH.unpack_from(_ethtool(ifname, head))
        if not entries or not key_bytes:
            return None
        whole = bytearray(_RXFH.pack(_ETHTOOL_GRSSH, 0, entries, key_bytes, 0))
        whole += bytes(4 * entries + key_bytes)
        out = _ethtool(ifname, whole)
    except OSError:
        return None
    function = _RXFH.unpack_from(out)[4]
    table = struct.unpack_from(f"{entries}I", out, _RXFH.size)
    key_at = _RXFH.size + 4 * entries
    return Rss(
        _HASH_FUNCTIONS.get(function, f"function {function}"),
        out[key_at : key_at + key_bytes],
        table,
    )


@dataclass(frozen=True)
class TimestampInfo:
    """What an interface can stamp, as ethtool -T has it. phc: number of its clock, /dev/ptpN, None
    if it has none. transmit, receive_all: by that clock."""

    phc: int | None
    transmit: bool
    receive_all: bool


def timestamp_info(ifname: str) -> TimestampInfo:
    """OSError as the kernel has it."""
    out = _ethtool(ifname, _TS_INFO.pack(_ETHTOOL_GET_TS_INFO, 0, -1, 0, 0))
    _, flags, phc, transmit, receive = _TS_INFO.unpack(out)
    hardware = flags & _SOF_RAW_HARDWARE
    return TimestampInfo(
        phc=phc if phc >= 0 else None,
        transmit=bool(hardware and flags & _SOF_TX_HARDWARE and transmit & 1 << _TX_ON),
        receive_all=bool(hardware and flags & _SOF_RX_HARDWARE and receive & 1 << _FILTER_ALL),
    )


@dataclass(frozen=True)
class StampConfig:
    """struct hwtstamp_config: what a NIC stamps by its clock."""

    flags: int
    tx_type: int
    rx_filter: int


def stamp_all(received: bool = True, sent: bool = True) -> StampConfig:
    """Every frame of these directions, none of the others."""
    return StampConfig(0, _TX_ON if sent else 0, _FILTER_ALL if received else 0)


def stamp_config(ifname: str) -> StampConfig:
    """What it stamps now (SIOCGHWTSTAMP). OSError as the kernel has it."""
    return StampConfig(*_HWTSTAMP.unpack(_ethtool(ifname, bytes(_HWTSTAMP.size), _SIOCGHWTSTAMP)))


def set_stamp_config(ifname: str, config: StampConfig) -> StampConfig:
    """What it shall stamp (SIOCSHWTSTAMP); returns what it will. OSError as the kernel has it."""
    words = _HWTSTAMP.pack(config.flags, config.tx_type, config.rx_filter)
    return StampConfig(*_HWTSTAMP.unpack(_ethtool(ifname, words, _SIOCSHWTSTAMP)))


class _NetdevMessage(genlmsg):  # type: ignore[misc]
    nla_map = (
        ("NETDEV_A_DEV_UNSPEC", "none"),
        ("NETDEV_A_DEV_IFINDEX", "uint32"),
        ("NETDEV_A_DEV_PAD", "none"),
        ("NETDEV_A_DEV_XDP_FEATURES", "uint64"),
        ("NETDEV_A_DEV_XDP_ZC_MAX_SEGS", "uint32"),
        ("NETDEV_A_DEV_XDP_RX_METADATA_FEATURES", "uint64"),
        ("NETDEV_A_DEV_XSK_FEATURES", "uint64"),
    )


def _netdev(ifindex: int) -> Any:
    """The kernel's answer about a device; None if it can't tell."""
    message = _NetdevMessage()
    message["cmd"] = _NETDEV_CMD_DEV_GET
    message["version"] = 1
    message["attrs"] = [("NETDEV_A_DEV_IFINDEX", ifindex)]
    sock = GenericNetlinkSocket()
    try:
        sock.bind("netdev", _NetdevMessage)
        (answer,) = sock.nlm_request(message, msg_type=sock.prid, msg_flags=NLM_F_REQUEST)
    except Exception:
        # No such family before 6.3: pyroute2 reports it in several ways.
        return None
    finally:
        sock.close()
    return answer


def _names(answer: Any, attribute: str, names: dict[int, str]) -> frozenset[str]:
    bits = answer.get_attr(attribute) or 0
    return frozenset(name for bit, name in names.items() if bits & bit)


def xdp_features(ifindex: int) -> frozenset[str] | None:
    """What the driver says that it can do with XDP; None if this kernel can't tell."""
    answer = _netdev(ifindex)
    return None if answer is None else _names(answer, "NETDEV_A_DEV_XDP_FEATURES", _XDP_FEATURES)


class FeatureNews:
    """Tells when the XDP features of some device of this network namespace may have changed:
    a descriptor for a selector."""

    def __init__(self) -> None:
        """Errors: OSError, or what pyroute2 raises, where this kernel can't tell."""
        with closing(GenericNetlinkSocket()) as asking:
            asking.bind("netdev", _NetdevMessage)
            group = asking.mcast_groups["mgmt"]
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_GENERIC)
        try:
            self._sock.bind((0, 0))
            self._sock.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, group)
        except OSError:
            self._sock.close()
            raise

    def fileno(self) -> int:
        """The descriptor, readable when there is news."""
        return self._sock.fileno()

    def drain(self) -> None:
        """Takes the news: what they are is asked for anew, as some may be lost (ENOBUFS)."""
        while True:
            try:
                self._sock.recv(1, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise

    def close(self) -> None:
        """Safe to repeat."""
        self._sock.close()


def metadata_features(ifindex: int) -> MetadataFeatures | None:
    """Of timestamps and the like; None if this kernel can't tell."""
    answer = _netdev(ifindex)
    if answer is None:
        return None
    return MetadataFeatures(
        _names(answer, "NETDEV_A_DEV_XDP_RX_METADATA_FEATURES", _RX_METADATA),
        _names(answer, "NETDEV_A_DEV_XSK_FEATURES", _XSK_FEATURES),
    )
