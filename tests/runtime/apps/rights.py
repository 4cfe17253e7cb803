"""Answers each connection's first word with what this worker's process may do. Arguments: PORT.

who: user, group and capabilities. control: whether it may signal the control process. admin: what
became of calls that take a capability. write PATH: whether the file can be opened for writing.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ixnet.event import EV_READ, EventBase, Listener


def tried(act: Callable[[], object]) -> str:
    """Its error's number, or 0."""
    try:
        act()
    except OSError as error:
        return str(error.errno)
    return "0"


def who() -> str:
    """User, group, effective and bounding set."""
    lines = Path("/proc/self/status").read_text().splitlines()
    sets = [line.split()[1].lstrip("0") for line in lines if line.startswith(("CapEff", "CapBnd"))]
    return f"{os.getuid()} {os.getgid()} {''.join(sets) or 'none'}"


def admin() -> str:
    """Raw sockets and another root directory."""
    raw = tried(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP))
    return f"{raw} {tried(lambda: os.chroot('/'))}"


def answer(order: str) -> str:
    """To an order."""
    word, _, path = order.partition(" ")
    if word == "who":
        return who()
    if word == "control":
        return tried(lambda: os.kill(os.getppid(), 0))
    if word == "admin":
        return admin()
    return tried(lambda: os.close(os.open(path, os.O_WRONLY)))


def on_read(conn: Any) -> None:
    if (line := conn.input.readln()) is not None:
        conn.write(f"{answer(line.decode())}\n".encode())


def on_accept(_: Any, conn: Any) -> None:
    conn.setcb(on_read)
    conn.enable(EV_READ)


base = EventBase()
listener = Listener(base, ("", int(sys.argv[1])), on_accept)
base.dispatch()
