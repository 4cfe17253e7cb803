"""What pyroute2 has no call for: the driver's name and RSS over the ethtool ioctl, and a device's
XDP features over the kernel's "netdev" generic netlink family (Linux 6.3 and later)."""

from __future__ import annotations

import array
import fcntl
import socket
import struct
from dataclasses import dataclass

from pyroute2.netlink import NLM_F_REQUEST, genlmsg
from pyroute2.netlink.generic import GenericNetlinkSocket

_SIOCETHTOOL = 0x8946
_ETHTOOL_GDRVINFO = 0x03
_ETHTOOL_GRSSH = 0x46
# struct ethtool_rxfh up to its array: cmd, context, indirection entries, key bytes, hash function.
_RXFH = struct.Struct("IIIIB7x")
_HASH_FUNCTIONS = {1: "toeplitz", 2: "xor", 4: "crc32"}

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


@dataclass(frozen=True)
class Rss:
    """How the NIC spreads flows: queue = indirection[hash % len(indirection)]."""

    function: str
    key: bytes
    indirection: tuple[int, ...]


def _ethtool(ifname: str, buffer: bytearray) -> bytes:
    """SIOCETHTOOL with `buffer` in and out. OSError as the kernel has it."""
    data = array.array("B", buffer)
    request = struct.pack("16sP16x", ifname.encode(), data.buffer_info()[0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, _SIOCETHTOOL, request)
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


def xdp_features(ifindex: int) -> frozenset[str] | None:
    """What the driver says that it can do with XDP; None if this kernel can't tell."""
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
    bits = answer.get_attr("NETDEV_A_DEV_XDP_FEATURES") or 0
    return frozenset(name for bit, name in _XDP_FEATURES.items() if bits & bit)
