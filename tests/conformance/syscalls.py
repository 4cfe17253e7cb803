"""System calls of a script: arguments from text, results compared with it."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import termios
from dataclasses import dataclass
from typing import Any

from tests.conformance.script import Call, ScriptError
from tests.conformance.stack import Failed, Stack, ffi

PORT = 8080


@dataclass(frozen=True)
class Version:
    """What packetdrill calls --ip_version: of the packets, and of the sockets."""

    packets: int  # 4 or 6
    sockets: int
    local: str
    remote: str
    flags: str = ""  # of the stack: the same MSS as with the others

    def address(self, ip: str, port: int) -> Any:
        """The sockaddr that a socket of this kind takes for `ip`."""
        family = socket.AF_INET if self.sockets == 4 else socket.AF_INET6
        raw = family.to_bytes(2, "little") + port.to_bytes(2, "big")
        if self.sockets == 4:
            raw += socket.inet_aton(ip) + bytes(8)
        else:
            mapped = ip if self.packets == 6 else f"::ffff:{ip}"
            raw += bytes(4) + socket.inet_pton(family, mapped) + bytes(4)
        addr = ffi.new("struct sockaddr *")
        ffi.buffer(addr)[0 : len(raw)] = raw
        return addr


LOCAL, REMOTE = "192.168.0.2", "192.0.2.1"
VERSIONS = {
    "ipv4": Version(4, 4, LOCAL, REMOTE),
    "ipv6": Version(6, 6, "fd3d:a0b:17d6::2", "fd3d:fa7b:d17d::1", "mtu=1520"),
    "ipv4-mapped-ipv6": Version(4, 6, LOCAL, REMOTE),
}
address = VERSIONS["ipv4"].address
_MORE = {
    "FIONREAD": termios.FIONREAD,
    "SIOCINQ": termios.FIONREAD,
    "SIOCOUTQ": termios.TIOCOUTQ,
    "SOL_TCP": socket.IPPROTO_TCP,
    "SO_MAX_PACING_RATE": 47,
    "EPOLL_CTL_ADD": 1,
    "EPOLL_CTL_DEL": 2,
    "EPOLL_CTL_MOD": 3,
}


def number(text: str) -> int:
    """A number, a constant, or several or-ed."""
    value = 0
    for part in text.split("|"):
        part = part.strip()
        if part in _MORE:
            value |= _MORE[part]
        elif part[:1].isdigit() or part[:1] == "-":
            value |= int(part, 0)
        else:
            for module in (socket, select, fcntl, os):
                if hasattr(module, part):
                    value |= int(getattr(module, part))
                    break
            else:
                raise ScriptError(f"unknown constant {part}")
    return value


def fields(text: str) -> dict[str, str]:
    """`{a=1, b=2}`."""
    parts = (part.split("=") for part in text.strip("{}").split(","))
    return {name.strip(): value.strip() for name, value in parts}


def payload(size: int) -> bytes:
    """What a script's `...` writes."""
    return bytes(i * 7 % 251 for i in range(size))


class Calls:
    """Runs the calls of one script on one stack; maps its descriptors to live ones."""

    def __init__(self, stack: Stack, version: Version = VERSIONS["ipv4"]) -> None:
        self.stack = stack
        self.version = version
        self.size = 16 if version.sockets == 4 else 28
        self.fds: dict[int, int] = {}

    def run(self, call: Call) -> None:
        """Runs one call and compares its result."""
        handler = getattr(self, f"_{call.name}", None)
        if handler is None:
            raise ScriptError(f"{call.name}() is not in the subset")
        try:
            result, error = handler(call, *call.args), None
        except Failed as failed:
            result, error = -1, errno.errorcode.get(failed.errno or 0, str(failed.errno))
        makes_fd = call.name in ("socket", "accept", "epoll_create", "dup")
        if makes_fd and result >= 0 and call.result >= 0:
            self.fds[call.result] = result
            result = call.result
        if result != call.result or (call.errno and error != call.errno):
            raise ScriptError(
                f"expected {call.result} {call.errno or ''}, got {result} {error or ''}"
            )

    def _fd(self, text: str) -> int:
        script = int(text)
        return self.fds.get(script, script)

    def _socket(self, call: Call, domain: str, kind: str, protocol: str) -> int:
        family = socket.AF_INET if self.version.sockets == 4 else socket.AF_INET6
        return self.stack.call("socket", family, number(kind), number(protocol))

    def _bind(self, call: Call, fd: str, addr: str, size: str) -> int:
        at = self.version.address(self.version.local, PORT)
        return self.stack.call("bind", self._fd(fd), at, self.size)

    def _listen(self, call: Call, fd: str, backlog: str) -> int:
        return self.stack.call("listen", self._fd(fd), int(backlog))

    def _accept(self, call: Call, fd: str, addr: str, size: str) -> int:
        room, peer = ffi.new("socklen_t *", self.size), ffi.new("struct sockaddr *")
        result = self.stack.call("accept", self._fd(fd), peer, room)
        raw, ip_at = bytes(ffi.buffer(peer)), 4 if self.size == 16 else 8
        wanted = bytes(ffi.buffer(self.version.address(self.version.remote, 0)))
        ip_bytes = 4 if self.size == 16 else 16
        if room[0] != self.size or raw[ip_at:][:ip_bytes] != wanted[ip_at:][:ip_bytes]:
            raise ScriptError(f"accept() says that the peer is {raw[: room[0]].hex()}")
        return result

    def _connect(self, call: Call, fd: str, addr: str, size: str) -> int:
        to = self.version.address(self.version.remote, PORT)
        return self.stack.call("connect", self._fd(fd), to, self.size)

    def _read(self, call: Call, fd: str, buf: str, size: str) -> int:
        return self._recv(call, fd, buf, size, "0")

    def _recv(self, call: Call, fd: str, buf: str, size: str, flags: str) -> int:
        buffer = ffi.new("uint8_t[]", int(size))
        return self.stack.call("recv", self._fd(fd), buffer, int(size), number(flags))

    def _write(self, call: Call, fd: str, buf: str, size: str) -> int:
        return self._send(call, fd, buf, size, "0")

    def _send(self, call: Call, fd: str, buf: str, size: str, flags: str) -> int:
        data = payload(int(size))
        return self.stack.call("send", self._fd(fd), data, len(data), number(flags))

    def _shutdown(self, call: Call, fd: str, how: str) -> int:
        return self.stack.call("shutdown", self._fd(fd), number(how))

    def _close(self, call: Call, fd: str) -> int:
        return self.stack.call("close", self._fd(fd))

    def _fcntl(self, call: Call, fd: str, command: str, arg: str = "0") -> int:
        value = ffi.cast("long", number(arg))
        return self.stack.call("fcntl", self._fd(fd), number(command), value)

    def _ioctl(self, call: Call, fd: str, request: str, value: str) -> int:
        out = ffi.new("int *")
        result = self.stack.call("ioctl", self._fd(fd), number(request), out)
        if out[0] != int(value.strip("[]")):
            raise ScriptError(f"expected {value}, got [{out[0]}]")
        return result

    def _setsockopt(self, call: Call, fd: str, level: str, name: str, value: str, size: str) -> int:
        if value.startswith("{"):
            linger = fields(value)
            raw: Any = ffi.new("struct linger *", [int(linger["onoff"]), int(linger["linger"])])
        else:
            raw = ffi.new("int *", number(value.strip("[]")))
        args = (self._fd(fd), number(level), number(name), raw, int(size))
        return self.stack.call("setsockopt", *args)

    def _getsockopt(self, call: Call, fd: str, level: str, name: str, value: str, size: str) -> int:
        raw, room = ffi.new("int *"), ffi.new("socklen_t *", 4)
        result = self.stack.call("getsockopt", self._fd(fd), number(level), number(name), raw, room)
        wanted = value.strip("[]")
        if wanted != "..." and raw[0] != number(_errno(wanted)):
            raise ScriptError(f"expected {value}, got [{raw[0]}]")
        return result

    def _poll(self, call: Call, fds: str, count: str, timeout: str) -> int:
        wanted = [fields(part) for part in fds.strip("[]").split("},")]
        entries = [(self._fd(w["fd"]), number(w["events"]), 0) for w in wanted]
        raw = ffi.new("struct pollfd[]", entries)
        result = self.stack.call("poll", raw, len(entries), int(timeout))
        for entry, want in zip(raw, wanted, strict=True):
            if entry.revents != number(want["revents"]):
                raise ScriptError(f"expected {want['revents']}, got {entry.revents:#x}")
        return result

    def _epoll_create(self, call: Call, size: str) -> int:
        return self.stack.call("epoll_create", int(size))

    def _epoll_ctl(self, call: Call, epfd: str, op: str, fd: str, event: str) -> int:
        want = fields(event)
        raw = ffi.new("struct epoll_event *", [number(want["events"]), int(want["fd"])])
        return self.stack.call("epoll_ctl", self._fd(epfd), number(op), self._fd(fd), raw)

    def _epoll_wait(self, call: Call, epfd: str, *rest: str) -> int:
        *wanted, most, timeout = rest
        raw = ffi.new("struct epoll_event[]", int(most))
        result = self.stack.call("epoll_wait", self._fd(epfd), raw, int(most), int(timeout))
        for got, want in zip(raw, map(fields, wanted if result else []), strict=False):
            if got.events != number(want["events"]) or got.data != int(want["fd"]):
                raise ScriptError(f"expected {want}, got events={got.events:#x}, fd={got.data}")
        return result


def _errno(text: str) -> str:
    return str(getattr(errno, text)) if text in errno.errorcode.values() else text
