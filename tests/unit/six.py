"""A shard with an IPv6 address, and frames to it made and read by scapy."""

from __future__ import annotations

import socket
from typing import Any

from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from tests.unit.peer import LOCAL_MAC, REMOTE_MAC, Stack
from tests.unit.san import ffi, lib

LOCAL6, REMOTE6 = "2001:db8::1", "2001:db8::2"


def raw6(text: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6, text)


def ctl6(stack: Stack, kind: str, ip: str = "::", *, mac: bytes = bytes(6), **fields: Any) -> None:
    """A control message with IPv6 addresses."""
    message = ffi.new("struct ix_ctl_msg *", {"family": 6})
    message.type = getattr(lib, f"IX_CTL_{kind}")
    message.mac = list(mac)
    for name, value in {"ip": ip, **fields}.items():
        if name in ("ip", "gateway", "source"):
            ffi.memmove(getattr(message, name), raw6(value), 16)
        else:
            setattr(message, name, value)
    assert lib.ix_ctl_send(stack.shard, message) == 0


def stack6(*, neighbour: bool = True, listen: int | None = None, **config: Any) -> Stack:
    """A shard with both families' addresses, routes and, if wanted, neighbours."""
    stack = Stack(**config)
    ctl6(stack, "ADDR_ADD", LOCAL6, value=config.get("own_address", 0))
    ctl6(stack, "ROUTE_SET")
    if neighbour:
        ctl6(stack, "NEIGH_SET", REMOTE6, mac=REMOTE_MAC)
    stack.poll()
    if config.get("own_address"):  # by then it is known that nobody else has it
        stack.sent.clear()
        stack.sleep(1000)
        stack.sent.clear()
    if listen:
        assert lib.ix_shard_listen(stack.shard, ffi.NULL, 6, listen, 77, 0) == 0
    return stack


def colons(mac: bytes) -> str:
    return mac.hex(":")


def frame(packet: Packet, dst: bytes = LOCAL_MAC, src: bytes = REMOTE_MAC) -> bytes:
    return bytes(Ether(dst=colons(dst), src=colons(src)) / packet)


def to_us(payload: Packet, **fields: Any) -> bytes:
    """A frame with `payload` from REMOTE6 to LOCAL6."""
    return frame(IPv6(**({"src": REMOTE6, "dst": LOCAL6} | fields)) / payload)


def sent(stack: Stack) -> Packet:
    """The next frame that the shard sent; its checksums are scapy's own."""
    data = stack.sent.popleft()
    packet = Ether(data)
    assert packet.src == colons(LOCAL_MAC)
    again = packet.copy()
    for name in ("chksum", "cksum"):  # not those of a packet that an error quotes
        if name in again[IPv6].payload.fields:
            again[IPv6].payload.delfieldval(name)
    assert bytes(again) == data, "checksum"
    return packet
