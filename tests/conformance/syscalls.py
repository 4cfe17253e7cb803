"""System calls of a script: arguments from text, results compared with it."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import termios
from typing import Any

from tests.conformance.script import Call, ScriptError
from tests.conformance.stack import Failed, Stack, ffi

PORT = 8080
LOCAL, REMOTE = "192.168.0.2", "192.0.2.1"
_MORE = {
    "FIONREAD": termios.FIONREAD,
    "SIOCINQ": termios.FIONREAD,
    "SIOCOUTQ": termios.TIOCOUTQ,
    "SOL_TCP": socket.IPPROTO_TCP,
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


def address(ip: str, port: int) -> Any:
    """A sockaddr_in."""
    raw = (
        socket.AF_INET.to_bytes(2, "little")
        + port.to_bytes(2, "big")
        + socket.inet_aton(ip)
        + bytes(8)
    )
    addr = ffi.new("struct sockaddr *")
    ffi.buffer(addr)[0 : len(raw)] = raw
    return addr


def payload(size: int) -> bytes:
    """What a script's `...` writes."""
    return bytes(i * 7 % 251 for i in range(size))


class Calls:
    """Runs the calls of one script on one stack; maps its descriptors to live ones."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
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
        return self.stack.call("socket", socket.AF_INET, number(kind), number(protocol))

    def _bind(self, call: Call, fd: str, addr: str, size: str) -> int:
        return self.stack.call("bind", self._fd(fd), address(LOCAL, PORT), 16)

    def _listen(self, call: Call, fd: str, backlog: str) -> int:
        return self.stack.call("listen", self._fd(fd), int(backlog))

    def _accept(self, call: Call, fd: str, addr: str, size: str) -> int:
        room = ffi.new("socklen_t *", 16)
        return self.stack.call("accept", self._fd(fd), ffi.new("struct sockaddr *"), room)

    def _connect(self, call: Call, fd: str, addr: str, size: str) -> int:
        return self.stack.call("connect", self._fd(fd), address(REMOTE, PORT), 16)

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
