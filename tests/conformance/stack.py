"""The packetdrill interface of a stack, from Python: the shared object that packetdrill loads.

The interface is read from ixnet/posix/packetdrill.h, so that what runs here is what packetdrill
would run.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import cffi
import pytest

ROOT = Path(__file__).parents[2]
HEADER = ROOT / "ixnet/posix/packetdrill.h"
LIBRARY = ROOT / "build/san/ixnet-packetdrill.so"

_TYPES = """
typedef unsigned int socklen_t;
typedef unsigned long nfds_t;
typedef unsigned int useconds_t;
typedef int64_t loff_t;
struct sockaddr { uint16_t sa_family; uint8_t data[26]; };
struct iovec { void *iov_base; size_t iov_len; };
struct msghdr { void *msg_name; socklen_t msg_namelen; struct iovec *msg_iov; size_t msg_iovlen;
                void *msg_control; size_t msg_controllen; int msg_flags; };
struct pollfd { int fd; short events; short revents; };
struct timeval { long tv_sec; long tv_usec; };
struct linger { int l_onoff; int l_linger; };
struct timezone;
#pragma pack(push, 1)
struct epoll_event { uint32_t events; uint64_t data; };
#pragma pack(pop)
"""


def _ffi() -> cffi.FFI:
    ffi = cffi.FFI()
    header = HEADER.read_text()
    interface = re.search(r"^struct packetdrill_interface \{.*?^\};", header, re.S | re.M)
    assert interface is not None
    packed, plain = _TYPES.split("#pragma pack(push, 1)")[1], _TYPES.split("#pragma")[0]
    ffi.cdef(plain)
    ffi.cdef(packed.replace("#pragma pack(pop)", ""), packed=True)
    ffi.cdef(interface[0])
    ffi.cdef(
        "void packetdrill_interface_init(const char *, struct packetdrill_interface *);"
        "unsigned ixnet_packetdrill_sleepers(void *);"
        "const char *ixnet_packetdrill_check(void *);"
    )
    return ffi


ffi = _ffi()
_lib: Any = None


def library() -> Any:
    """The shared object, loaded once. It is built with the sanitizers: see tests/unit/san.py."""
    global _lib
    if _lib is None:
        if "libasan.so" not in Path("/proc/self/maps").read_text():
            pytest.skip("needs the sanitizers' runtime: run `make test`", allow_module_level=True)
        _lib = ffi.dlopen(str(LIBRARY))
    return _lib


class Failed(OSError):
    """A system call returned -1; errno is set."""


class Stack:
    """One stack under test, with a clock of its own. The thread that makes it drives the clock."""

    real_time = False

    def __init__(self, flags: str = "") -> None:
        self._ifc = ffi.new("struct packetdrill_interface *")
        # As the machine has its sysctls is no matter here.
        flags = ",".join(filter(None, ["sysctls=0", flags]))
        library().packetdrill_interface_init(flags.encode(), self._ifc)
        self._open = True

    def call(self, name: str, *args: Any) -> int:
        """A function of the interface. Raises Failed."""
        result = int(getattr(self._ifc, name)(self._ifc.userdata, *args))
        if result < 0:
            raise Failed(ffi.errno, os.strerror(ffi.errno))
        return result

    def now_us(self) -> int:
        """The clock, which moves on by this."""
        tv = ffi.new("struct timeval *")
        self.call("gettimeofday", tv, ffi.NULL)
        return int(tv.tv_sec) * 1_000_000 + int(tv.tv_usec)

    def sleep_us(self, us: int) -> None:
        """Lets time pass."""
        self.call("usleep", us)

    def put(self, packet: bytes) -> None:
        """A packet for the stack."""
        self.call("netdev_send", packet, len(packet))

    def take(self) -> tuple[int, bytes] | None:
        """The next packet from it, with its time. Lets time pass until there is one; None: there
        will never be one."""
        buffer, room, time = (
            ffi.new("uint8_t[65536]"),
            ffi.new("size_t *", 65536),
            ffi.new("long long *"),
        )
        self.call("netdev_receive", buffer, room, time)
        return (int(time[0]), bytes(ffi.buffer(buffer, room[0]))) if room[0] else None

    def sleepers(self) -> int:
        """How many calls of other threads wait."""
        return int(library().ixnet_packetdrill_sleepers(self._ifc.userdata))

    def check(self) -> None:
        """Asserts the shard's invariants."""
        wrong = library().ixnet_packetdrill_check(self._ifc.userdata)
        assert wrong == ffi.NULL, ffi.string(wrong).decode()

    def close(self) -> None:
        """Frees it; its sockets go with it."""
        if self._open:
            self._open = False
            self._ifc.free(self._ifc.userdata)
