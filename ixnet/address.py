"""IP addresses as text and as the dataplane's records have them: 16 bytes, IPv4 in the first 4."""

from __future__ import annotations

import errno
import socket
from typing import Any

from ixnet._core import ffi
from ixnet.control.errors import IxError

_MAPPED = bytes(10) + b"\xff\xff"  # RFC 4291 2.5.5.2
# native/app.h: IX_APP_V6ONLY
_V6ONLY = b"v6only"


def pack_ip(ip: str) -> tuple[int, bytes]:
    """(4 or 6, its 16 bytes). An IPv4-mapped address is the IPv4 one; a zone (fe80::1%eth1) is left
    out, as a dataplane has one interface. Errors: ValueError.
    """
    try:
        if ":" not in ip:
            return 4, socket.inet_pton(socket.AF_INET, ip) + bytes(12)
        packed = socket.inet_pton(socket.AF_INET6, ip.partition("%")[0])
    except OSError:
        raise ValueError(f"{ip!r} is not an IP address") from None
    if packed.startswith(_MAPPED):
        return 4, packed[12:] + bytes(12)
    return 6, packed


def ip_text(raw: Any, family: int) -> str:
    """The address in a record's 16 bytes; that of IPv4 if family is none."""
    if family & 7 == 6:
        return socket.inet_ntop(socket.AF_INET6, bytes(ffi.buffer(raw, 16)))
    return socket.inet_ntop(socket.AF_INET, bytes(ffi.buffer(raw, 4)))


def listen_port(port: int) -> int:
    """The same. Errors: IxError if it is none."""
    if not 0 < port <= 65535:
        raise IxError(f"{port} is no port", "use 1 to 65535", errno.EINVAL)
    return port


def listen_ip(ip: str | None, v6only: bool = False) -> Any:
    """What ix_app_listen() and its like take for it. Errors: ValueError if IPv6 only is asked of
    one address.
    """
    if v6only:
        if ip not in (None, "", "::"):
            raise ValueError(f"v6only is about every address, not about {ip}")
        return _V6ONLY
    return ip.encode() if ip else ffi.NULL
