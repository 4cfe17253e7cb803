"""The kernel's stack as a stack under test: what Stack is, on a TUN device in a namespace.

    this process: packets                namespace ixcPID-N: the kernel's TCP
    tun file  <------------------------> ixtun 192.168.0.2/24, route to 192.0.2.0/24

Its clock is the real one.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import select
import struct
import time
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import IPRoute, netns

from ixnet.control.namespaces import in_netns
from tests.conformance.stack import Failed, ffi
from tests.conformance.syscalls import LOCAL

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
IFNAME = "ixtun"
PATIENCE_S = 120.0  # for a packet that must come
SYSCTLS = {
    # A window scale of 3 and 65,535 bytes in the SYN, as ours.
    "ipv4/tcp_rmem": "4096 262144 262144",
    # Each connection is judged by itself.
    "ipv4/tcp_no_metrics_save": "1",
    # SYNs back off from the first on (newer kernels).
    "ipv4/tcp_syn_linear_timeouts": "0",
}
_numbers = itertools.count()

ffi.cdef(
    """
    int socket(int, int, int);
    int bind(int, const struct sockaddr *, socklen_t);
    int listen(int, int);
    int accept(int, struct sockaddr *, socklen_t *);
    int connect(int, const struct sockaddr *, socklen_t);
    ssize_t recv(int, void *, size_t, int);
    ssize_t send(int, const void *, size_t, int);
    int shutdown(int, int);
    int close(int);
    int fcntl(int, int, ...);
    int ioctl(int, unsigned long, ...);
    int getsockopt(int, int, int, void *, socklen_t *);
    int setsockopt(int, int, int, const void *, socklen_t);
    int poll(struct pollfd *, nfds_t, int);
    int epoll_create(int);
    int epoll_ctl(int, int, int, struct epoll_event *);
    int epoll_wait(int, struct epoll_event *, int, int);
    """
)
_libc: Any = ffi.dlopen(None)


class Linux:
    """The kernel's TCP in a namespace of its own."""

    real_time = True

    def __init__(self) -> None:
        if os.geteuid() != 0 or not Path("/dev/net/tun").exists():
            pytest.skip("needs root and /dev/net/tun")
        self.netns = f"ixc{os.getpid()}-{next(_numbers)}"
        netns.create(self.netns)
        try:
            with in_netns(self.netns):
                self._make_tun()
        except BaseException:
            netns.remove(self.netns)
            raise
        self.fds: set[int] = set()

    def _make_tun(self) -> None:
        self.tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        request = struct.pack("16sH22x", IFNAME.encode(), IFF_TUN | IFF_NO_PI)
        fcntl.ioctl(self.tun, TUNSETIFF, request)
        for name, value in SYSCTLS.items():
            if (path := Path("/proc/sys/net", name)).exists():
                path.write_text(value)
        Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").write_text("1")
        with IPRoute() as ipr:
            (index,) = ipr.link_lookup(ifname=IFNAME)
            ipr.addr("add", index=index, address=LOCAL, prefixlen=24)
            ipr.link("set", index=index, state="up", mtu=1500)
            ipr.route("add", dst="192.0.2.0/24", oif=index)

    def call(self, name: str, *args: Any) -> int:
        """A system call. Raises Failed."""
        if name in ("send", "recv"):
            args = (*args[:-1], args[-1] | (0x4000 if name == "send" else 0))  # MSG_NOSIGNAL
        if name == "socket":
            with in_netns(self.netns):
                result = int(_libc.socket(*args))
                number = ffi.errno
        else:
            result = int(getattr(_libc, name)(*args))
            number = ffi.errno
        if result < 0:
            raise Failed(number, os.strerror(number))
        if name in ("socket", "accept", "epoll_create"):
            self.fds.add(result)
        elif name == "close":
            self.fds.discard(args[0])
        return result

    def now_us(self) -> int:
        """The clock."""
        return time.monotonic_ns() // 1000

    def sleep_us(self, us: int) -> None:
        """Lets time pass."""
        time.sleep(us / 1_000_000)

    def put(self, packet: bytes) -> None:
        """A packet for the stack, which has dealt with it on return."""
        os.write(self.tun, packet)

    def take(self) -> tuple[int, bytes] | None:
        """The next packet from it, or None if none comes."""
        if not select.select([self.tun], [], [], PATIENCE_S)[0]:
            return None
        return self.now_us(), os.read(self.tun, 65536)

    def check(self) -> None:
        """Nothing to look at."""

    def close(self) -> None:
        """Ends all of its connections, and the namespace."""
        for fd in self.fds:
            os.close(fd)
        os.close(self.tun)
        netns.remove(self.netns)
