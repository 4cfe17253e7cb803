"""ixnet/posix/: what the packet scripts of tests/conformance don't reach. One test is about one
call, through the interface that packetdrill has.
"""

from __future__ import annotations

import errno
import fcntl
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.packet import Raw

from tests.conformance.stack import Failed, Stack, ffi
from tests.conformance.syscalls import (
    LOCAL,
    PORT,
    REMOTE,
    VERSIONS,
    Version,
    address,
    payload,
)

TCP_SOCKET = (socket.AF_INET, socket.SOCK_STREAM, 0)
NONBLOCK = (socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK, 0)
UDP_SOCKET = (socket.AF_INET, socket.SOCK_DGRAM, 0)
MSS = 1000


@pytest.fixture
def stack() -> Iterator[Stack]:
    made = Stack()
    yield made
    made.check()
    made.close()


def fails(number: int, call: Callable[[], Any]) -> None:
    """Asserts the errno of a call."""
    with pytest.raises(Failed) as raised:
        call()
    assert errno.errorcode[raised.value.errno] == errno.errorcode[number]  # type: ignore[index]


def listener(stack: Stack, port: int = PORT, nonblock: bool = False, backlog: int = 8) -> int:
    fd = stack.call("socket", *(NONBLOCK if nonblock else TCP_SOCKET))
    stack.call("bind", fd, address(LOCAL, port), 16)
    stack.call("listen", fd, backlog)
    return fd


class Peer:
    """One connection's other end; its numbers are relative, ours from the SYN-ACK."""

    def __init__(self, stack: Stack, port: int = 40001, window: int = 8000) -> None:
        self.stack, self.port, self.window = stack, port, window
        self.seq, self.ack = 1000, 0
        self.put("S", options=[("MSS", MSS)])
        self.seq += 1
        answer = self.take()
        assert answer.flags == "SA"
        self.ack = answer.seq + 1
        self.put("A")

    def put(self, flags: str, data: bytes = b"", options: Any = ()) -> None:
        """A segment for the stack."""
        tcp = TCP(
            sport=self.port,
            dport=PORT,
            seq=self.seq,
            ack=self.ack,
            flags=flags,
            window=self.window,
            options=list(options),
        )
        self.stack.put(bytes(IP(src=REMOTE, dst=LOCAL) / tcp / Raw(data)))
        self.seq += len(data)

    def take(self) -> Any:
        """The next segment from the stack."""
        got = self.stack.take()
        assert got is not None, "nothing leaves"
        return IP(got[1])[TCP]

    def take_data(self) -> bytes:
        """... which carries payload; acknowledges it."""
        tcp = self.take()
        data = bytes(tcp.payload)
        self.ack = tcp.seq + len(data)
        return data


def accepted(stack: Stack, fd: int, nonblock: bool = False) -> int:
    got = stack.call("accept", fd, ffi.NULL, ffi.NULL)
    if nonblock:
        stack.call("fcntl", got, fcntl.F_SETFL, ffi.cast("long", 0o4000))
    return got


def connection(stack: Stack, nonblock: bool = False) -> tuple[int, Peer]:
    fd = listener(stack)
    peer = Peer(stack)
    return accepted(stack, fd, nonblock), peer


def recv(stack: Stack, fd: int, size: int = 4096, flags: int = 0) -> bytes:
    buffer = ffi.new("uint8_t[]", size)
    got = stack.call("recv", fd, buffer, size, flags)
    return bytes(ffi.buffer(buffer, min(got, size)))


def send(stack: Stack, fd: int, data: bytes, flags: int = 0) -> int:
    return stack.call("send", fd, data, len(data), flags)


def option(stack: Stack, fd: int, level: int, name: int) -> int:
    value, size = ffi.new("int *"), ffi.new("socklen_t *", 4)
    stack.call("getsockopt", fd, level, name, value, size)
    return int(value[0])


def set_option(stack: Stack, fd: int, level: int, name: int, value: int) -> None:
    stack.call("setsockopt", fd, level, name, ffi.new("int *", value), 4)


# ---- descriptors, addresses --------------------------------------------------------------------


def test_unknown_families_and_types_are_refused(stack: Stack) -> None:
    fails(errno.EAFNOSUPPORT, lambda: stack.call("socket", socket.AF_UNIX, 1, 0))
    fails(errno.ESOCKTNOSUPPORT, lambda: stack.call("socket", socket.AF_INET, 3, 0))
    fails(errno.EPROTONOSUPPORT, lambda: stack.call("socket", socket.AF_INET, 1, 17))


def test_unknown_descriptor_is_ebadf(stack: Stack) -> None:
    fd = stack.call("socket", *TCP_SOCKET)
    stack.call("close", fd)
    for call in (
        lambda: stack.call("listen", fd, 1),
        lambda: stack.call("accept", fd, ffi.NULL, ffi.NULL),
        lambda: stack.call("connect", fd, address(REMOTE, 1), 16),
        lambda: stack.call("shutdown", fd, 1),
        lambda: option(stack, fd, socket.SOL_SOCKET, socket.SO_TYPE),
        lambda: stack.call("close", fd),
    ):
        fails(errno.EBADF, call)


def test_bind_taken_port_needs_reuseaddr_and_no_listener(stack: Stack) -> None:
    one, two = stack.call("socket", *TCP_SOCKET), stack.call("socket", *TCP_SOCKET)
    for fd in (one, two):
        set_option(stack, fd, socket.SOL_SOCKET, socket.SO_REUSEADDR, fd == one)
    stack.call("bind", one, address(LOCAL, PORT), 16)
    fails(errno.EADDRINUSE, lambda: stack.call("bind", two, address(LOCAL, PORT), 16))
    set_option(stack, two, socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    stack.call("bind", two, address(LOCAL, PORT), 16)
    stack.call("listen", one, 1)
    fails(errno.EADDRINUSE, lambda: stack.call("listen", two, 1))


def test_bind_wrong_address_is_refused(stack: Stack) -> None:
    fd = stack.call("socket", *TCP_SOCKET)
    fails(errno.EINVAL, lambda: stack.call("bind", fd, address(LOCAL, PORT), 7))
    wrong = address(LOCAL, PORT)
    wrong.sa_family = socket.AF_INET6
    fails(errno.EAFNOSUPPORT, lambda: stack.call("bind", fd, wrong, 16))


def test_listen_without_bind_chooses_a_port(stack: Stack) -> None:
    fd = stack.call("socket", *NONBLOCK)
    stack.call("listen", fd, 1)
    fails(errno.EAGAIN, lambda: stack.call("accept", fd, ffi.NULL, ffi.NULL))
    assert option(stack, fd, socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1


def test_calls_that_do_not_fit_the_state(stack: Stack) -> None:
    fresh = stack.call("socket", *TCP_SOCKET)
    fails(errno.EINVAL, lambda: stack.call("accept", fresh, ffi.NULL, ffi.NULL))
    fails(errno.ENOTCONN, lambda: recv(stack, fresh))
    fails(errno.EPIPE, lambda: send(stack, fresh, b"x"))
    fails(errno.ENOTCONN, lambda: stack.call("shutdown", fresh, 1))
    fd, _ = connection(stack)
    fails(errno.EISCONN, lambda: stack.call("connect", fd, address(REMOTE, 1), 16))
    fails(errno.EINVAL, lambda: stack.call("listen", fd, 1))
    fails(errno.EINVAL, lambda: recv(stack, fd, flags=socket.MSG_OOB))


def test_accept_gives_the_peers_address(stack: Stack) -> None:
    fd = listener(stack)
    Peer(stack, port=40123)
    addr, size = ffi.new("struct sockaddr *"), ffi.new("socklen_t *", 16)
    stack.call("accept", fd, addr, size)
    raw = bytes(ffi.buffer(addr, 8))
    assert size[0] == 16
    assert raw[2:8] == (40123).to_bytes(2, "big") + socket.inet_aton(REMOTE)


# ---- listeners ---------------------------------------------------------------------------------


def test_listener_closed_resets_who_waits(stack: Stack) -> None:
    fd = listener(stack)
    peer = Peer(stack)
    stack.call("close", fd)
    assert "R" in peer.take().flags


def test_peer_reset_before_accept_is_told_by_read(stack: Stack) -> None:
    fd = listener(stack)
    peer = Peer(stack)
    peer.put("R")
    child = accepted(stack, fd)
    fails(errno.ECONNRESET, lambda: recv(stack, child))
    assert recv(stack, child) == b""


def test_backlog_full_leaves_syn_unanswered(stack: Stack) -> None:
    fd = listener(stack, backlog=1, nonblock=True)
    peers = [Peer(stack, port=40001 + i) for i in range(2)]
    tcp = TCP(sport=40009, dport=PORT, seq=1, flags="S")
    stack.put(bytes(IP(src=REMOTE, dst=LOCAL) / tcp))
    for peer in peers:
        child = accepted(stack, fd)
        peer.put("PA", b"hello")
        assert recv(stack, child) == b"hello"
        assert peer.take().flags == "A"
    fails(errno.EAGAIN, lambda: accepted(stack, fd))


# ---- streams -----------------------------------------------------------------------------------


def test_read_takes_what_several_segments_brought(stack: Stack) -> None:
    fd, peer = connection(stack)
    data = payload(2500)
    for start in range(0, 2500, MSS):
        peer.put("A", data[start : start + MSS])
    assert recv(stack, fd, 700) == data[:700]
    assert recv(stack, fd) == data[700:]


def test_peek_leaves_and_trunc_throws_away(stack: Stack) -> None:
    fd, peer = connection(stack)
    peer.put("PA", b"0123456789")
    assert recv(stack, fd, flags=socket.MSG_PEEK) == b"0123456789"
    buffer = ffi.new("uint8_t[]", 4)
    assert stack.call("recv", fd, buffer, 4, socket.MSG_TRUNC) == 4
    assert bytes(ffi.buffer(buffer)) == bytes(4)
    assert recv(stack, fd) == b"456789"


def test_readv_and_writev_gather(stack: Stack) -> None:
    fd, peer = connection(stack)
    parts = [ffi.new("uint8_t[]", b"abc"), ffi.new("uint8_t[]", b"defgh")]
    vecs = ffi.new("struct iovec[2]", [(parts[0], 3), (parts[1], 5)])
    assert stack.call("writev", fd, vecs, 2) == 8
    assert peer.take_data() == b"abcdefgh"
    peer.put("PA", b"ABCDEFGH")
    assert stack.call("readv", fd, vecs, 2) == 8
    assert [bytes(ffi.buffer(p, n)) for p, n in zip(parts, (3, 5), strict=True)] == [
        b"ABC",
        b"DEFGH",
    ]


def test_large_write_arrives_whole(stack: Stack) -> None:
    fd, peer = connection(stack)
    data = payload(200_000)
    assert send(stack, fd, data) == len(data)
    got = bytearray()
    while len(got) < len(data):
        got += peer.take_data()
        peer.put("A")
    assert bytes(got) == data


def test_full_send_buffer_is_eagain_until_acknowledged(stack: Stack) -> None:
    fd, peer = connection(stack, nonblock=True)
    set_option(stack, fd, socket.SOL_SOCKET, socket.SO_SNDBUF, 3000)
    assert option(stack, fd, socket.SOL_SOCKET, socket.SO_SNDBUF) == 6000
    assert send(stack, fd, payload(9000)) == 8000  # buffers of half the peer's window, while < 6000
    fails(errno.EAGAIN, lambda: send(stack, fd, b"x"))
    waits = ffi.new("struct pollfd *", (fd, select.POLLOUT, 0))
    assert stack.call("poll", waits, 1, 0) == 0
    out = ffi.new("int *")
    stack.call("ioctl", fd, 0x5411, out)
    assert out[0] == 8000
    for _ in range(8):
        peer.take_data()
    peer.put("A")
    assert stack.call("poll", waits, 1, 0) == 1
    stack.call("ioctl", fd, 0x5411, out)
    assert out[0] == 0
    assert send(stack, fd, b"x") == 1


def test_receive_timeout_is_eagain(stack: Stack) -> None:
    fd, _ = connection(stack)
    tv = ffi.new("struct timeval *", (0, 300_000))
    stack.call("setsockopt", fd, socket.SOL_SOCKET, socket.SO_RCVTIMEO, tv, 16)
    start = stack.now_us()
    fails(errno.EAGAIN, lambda: recv(stack, fd))
    assert abs(stack.now_us() - start - 300_000) < 2000


def test_shutdown_read_ends_the_stream(stack: Stack) -> None:
    fd, _ = connection(stack)
    stack.call("shutdown", fd, socket.SHUT_RD)
    assert recv(stack, fd) == b""
    assert send(stack, fd, b"still") == 5


def test_reset_after_end_of_stream_is_epipe(stack: Stack) -> None:
    fd, peer = connection(stack)
    peer.put("FA")
    peer.seq += 1
    peer.put("R")
    assert option(stack, fd, socket.SOL_SOCKET, socket.SO_ERROR) == errno.EPIPE
    assert option(stack, fd, socket.SOL_SOCKET, socket.SO_ERROR) == 0


@pytest.mark.parametrize(
    ("level", "name", "value"),
    [
        (socket.SOL_SOCKET, socket.SO_REUSEADDR, 1),
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
        (socket.IPPROTO_TCP, socket.TCP_CORK, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 77),
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 12345),
    ],
)
def test_option_is_remembered_and_inherited(
    stack: Stack, level: int, name: int, value: int
) -> None:
    fd = listener(stack)
    assert option(stack, fd, level, name) != value
    set_option(stack, fd, level, name, value)
    Peer(stack)
    assert option(stack, accepted(stack, fd), level, name) == value


def congestion(stack: Stack, fd: int) -> bytes:
    value, size = ffi.new("char[16]"), ffi.new("socklen_t *", 16)
    stack.call("getsockopt", fd, socket.IPPROTO_TCP, socket.TCP_CONGESTION, value, size)
    return bytes(ffi.string(value))


def test_congestion_control_is_chosen_by_linux_names(stack: Stack) -> None:
    fd = listener(stack)
    assert congestion(stack, fd) == b"cubic"
    level, name = socket.IPPROTO_TCP, socket.TCP_CONGESTION
    stack.call("setsockopt", fd, level, name, b"reno", 4)
    Peer(stack)
    child = accepted(stack, fd)
    assert congestion(stack, child) == b"reno"
    stack.call("setsockopt", child, level, name, b"dctcp", 5)
    assert congestion(stack, child) == b"dctcp"
    fails(errno.ENOENT, lambda: stack.call("setsockopt", child, level, name, b"bbr", 3))


def test_unknown_option_is_enoprotoopt(stack: Stack) -> None:
    fd = stack.call("socket", *TCP_SOCKET)
    fails(errno.ENOPROTOOPT, lambda: set_option(stack, fd, socket.SOL_SOCKET, 9999, 1))
    fails(errno.ENOPROTOOPT, lambda: option(stack, fd, socket.IPPROTO_TCP, 9999))
    fails(errno.ENOPROTOOPT, lambda: option(stack, fd, socket.IPPROTO_IP, 99))


def test_tcp_info_tells_state_and_sizes(stack: Stack) -> None:
    fd, _ = connection(stack)
    info, size = ffi.new("uint8_t[256]"), ffi.new("socklen_t *", 256)
    stack.call("getsockopt", fd, socket.IPPROTO_TCP, socket.TCP_INFO, info, size)
    assert info[0] == 1  # TCP_ESTABLISHED
    assert size[0] >= 104
    assert int.from_bytes(bytes(ffi.buffer(info)[16:20]), "little") == MSS
    assert int.from_bytes(bytes(ffi.buffer(info)[80:84]), "little") == 10  # cwnd


def test_tcp_info_tells_the_rate_of_the_pace(stack: Stack) -> None:
    fd, _ = connection(stack)
    info, size = ffi.new("uint8_t[256]"), ffi.new("socklen_t *", 256)

    def rate() -> int:
        stack.call("getsockopt", fd, socket.IPPROTO_TCP, socket.TCP_INFO, info, size)
        return int.from_bytes(bytes(ffi.buffer(info)[104:112]), "little")

    assert rate() == 2**64 - 1
    set_option(stack, fd, socket.SOL_SOCKET, 47, 10_000)  # SO_MAX_PACING_RATE
    assert rate() == 10_000


# ---- epoll -------------------------------------------------------------------------------------


def watch(stack: Stack, epoll: int, op: int, fd: int, events: int) -> None:
    stack.call("epoll_ctl", epoll, op, fd, ffi.new("struct epoll_event *", (events, fd)))


def ready(stack: Stack, epoll: int, timeout_ms: int = 0) -> list[tuple[int, int]]:
    events = ffi.new("struct epoll_event[8]")
    n = stack.call("epoll_wait", epoll, events, 8, timeout_ms)
    return [(int(e.data), int(e.events)) for e in events[0:n]]


def test_epoll_oneshot_is_silent_until_rearmed(stack: Stack) -> None:
    fd, peer = connection(stack)
    epoll = stack.call("epoll_create", 1)
    watch(stack, epoll, 1, fd, select.EPOLLIN | select.EPOLLONESHOT)
    peer.put("PA", b"a")
    assert ready(stack, epoll) == [(fd, select.EPOLLIN)]
    peer.put("PA", b"b")
    assert ready(stack, epoll) == []
    watch(stack, epoll, 3, fd, select.EPOLLIN | select.EPOLLONESHOT)
    assert ready(stack, epoll) == [(fd, select.EPOLLIN)]


def test_epoll_ctl_errors_and_closed_descriptors(stack: Stack) -> None:
    fd, peer = connection(stack)
    epoll = stack.call("epoll_create", 1)
    fails(errno.ENOENT, lambda: watch(stack, epoll, 2, fd, 0))
    fails(errno.ENOENT, lambda: watch(stack, epoll, 3, fd, 0))
    watch(stack, epoll, 1, fd, select.EPOLLIN)
    fails(errno.EEXIST, lambda: watch(stack, epoll, 1, fd, select.EPOLLIN))
    fails(errno.EINVAL, lambda: watch(stack, epoll, 1, epoll, select.EPOLLIN))
    fails(errno.EINVAL, lambda: watch(stack, fd, 1, fd, select.EPOLLIN))
    peer.put("PA", b"a")
    assert ready(stack, epoll) == [(fd, select.EPOLLIN)]
    stack.call("close", fd)
    assert ready(stack, epoll) == []


def test_epoll_serves_sockets_in_turn(stack: Stack) -> None:
    listening = listener(stack)
    epoll = stack.call("epoll_create", 1)
    peers = [Peer(stack, port=40001 + i) for i in range(3)]
    fds = [accepted(stack, listening) for _ in peers]
    for fd, peer in zip(fds, peers, strict=True):
        watch(stack, epoll, 1, fd, select.EPOLLIN)
        peer.put("PA", b"x")
    one = ffi.new("struct epoll_event[1]")
    seen = []
    for _ in range(6):
        assert stack.call("epoll_wait", epoll, one, 1, 0) == 1
        seen.append(int(one[0].data))
    assert seen == fds * 2


def test_epoll_edge_says_when_the_send_buffer_empties(stack: Stack) -> None:
    fd, peer = connection(stack, nonblock=True)
    set_option(stack, fd, socket.SOL_SOCKET, socket.SO_SNDBUF, 3000)
    epoll = stack.call("epoll_create", 1)
    watch(stack, epoll, 1, fd, select.EPOLLOUT | select.EPOLLET)
    assert ready(stack, epoll) == [(fd, select.EPOLLOUT)]
    assert send(stack, fd, payload(9000)) == 8000
    assert ready(stack, epoll) == []
    for _ in range(8):
        peer.take_data()
        peer.put("A")
    assert ready(stack, epoll) == [(fd, select.EPOLLOUT)]
    assert ready(stack, epoll) == []


# ---- datagrams ---------------------------------------------------------------------------------


def datagram(stack: Stack, data: bytes, port: int = 40001) -> None:
    udp = UDP(sport=port, dport=PORT) / Raw(data)
    stack.put(bytes(IP(src=REMOTE, dst=LOCAL) / udp))


def test_udp_receives_with_address_and_answers(stack: Stack) -> None:
    fd = stack.call("socket", *UDP_SOCKET)
    stack.call("bind", fd, address(LOCAL, PORT), 16)
    datagram(stack, b"question")
    buffer, addr = ffi.new("uint8_t[64]"), ffi.new("struct sockaddr *")
    size = ffi.new("socklen_t *", 16)
    assert stack.call("recvfrom", fd, buffer, 64, 0, addr, size) == 8
    assert bytes(ffi.buffer(buffer, 8)) == b"question"
    assert stack.call("sendto", fd, b"answer", 6, 0, addr, size[0]) == 6
    got = stack.take()
    assert got is not None
    packet = IP(got[1])
    assert (packet.dst, packet[UDP].dport, bytes(packet[UDP].payload)) == (REMOTE, 40001, b"answer")


def test_udp_short_buffer_truncates_one_datagram(stack: Stack) -> None:
    fd = stack.call("socket", *UDP_SOCKET)
    stack.call("bind", fd, address(LOCAL, PORT), 16)
    datagram(stack, b"0123456789")
    datagram(stack, b"next")
    out = ffi.new("int *")
    stack.call("ioctl", fd, 0x541B, out)
    assert out[0] == 10
    assert recv(stack, fd, 4) == b"0123"
    assert recv(stack, fd) == b"next"


def test_udp_errors(stack: Stack) -> None:
    fd = stack.call("socket", socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, 0)
    fails(errno.EDESTADDRREQ, lambda: send(stack, fd, b"x"))
    fails(errno.EAGAIN, lambda: recv(stack, fd))
    fails(errno.EOPNOTSUPP, lambda: stack.call("listen", fd, 1))
    stack.call("connect", fd, address(REMOTE, 53), 16)
    fails(errno.EMSGSIZE, lambda: send(stack, fd, bytes(5000)))
    assert send(stack, fd, b"x") == 1


# ---- IPv6 and both families --------------------------------------------------------------------

SIX, MAPPED = VERSIONS["ipv6"], VERSIONS["ipv4-mapped-ipv6"]


def bound6(stack: Stack, kind: int, v6only: bool = False, port: int = PORT) -> int:
    """An IPv6 socket on every address."""
    fd = stack.call("socket", socket.AF_INET6, kind, 0)
    set_option(stack, fd, socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6only)
    stack.call("bind", fd, SIX.address("::", port), 28)
    return fd


def syn(stack: Stack, version: Version) -> str:
    """The flags that a SYN is answered with."""
    header = IPv6 if version.packets == 6 else IP
    to_us = header(src=version.remote, dst=version.local)
    stack.put(bytes(to_us / TCP(sport=5, dport=PORT, seq=1, flags="S")))
    got = stack.take()
    assert got is not None
    return str(header(got[1])[TCP].flags)


@pytest.mark.parametrize("v6only", [False, True])
def test_ipv6_listener_takes_ipv4_unless_told_not_to(stack: Stack, v6only: bool) -> None:
    fd = bound6(stack, socket.SOCK_STREAM, v6only)
    assert option(stack, fd, socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == v6only
    stack.call("listen", fd, 8)
    assert syn(stack, SIX) == "SA"
    assert syn(stack, MAPPED) == ("RA" if v6only else "SA")


def test_bind_of_both_families_meets_that_of_one(stack: Stack) -> None:
    bound6(stack, socket.SOCK_STREAM)
    fd = stack.call("socket", *TCP_SOCKET)
    fails(errno.EADDRINUSE, lambda: stack.call("bind", fd, address(LOCAL, PORT), 16))
    bound6(stack, socket.SOCK_STREAM, v6only=True, port=PORT + 1)
    stack.call("bind", fd, address(LOCAL, PORT + 1), 16)


def test_v6only_is_for_ipv6_and_before_bind(stack: Stack) -> None:
    v6only = (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    four = stack.call("socket", *TCP_SOCKET)
    fails(errno.ENOPROTOOPT, lambda: set_option(stack, four, *v6only))
    bound = bound6(stack, socket.SOCK_STREAM)
    fails(errno.EINVAL, lambda: set_option(stack, bound, *v6only))
    only = stack.call("socket", socket.AF_INET6, socket.SOCK_STREAM, 0)
    set_option(stack, only, *v6only)
    mapped = MAPPED.address(REMOTE, 1)
    fails(errno.EINVAL, lambda: stack.call("bind", only, mapped, 28))
    fails(errno.ENETUNREACH, lambda: stack.call("connect", only, mapped, 28))


@pytest.mark.parametrize("version", [SIX, MAPPED])
def test_ipv6_datagrams_come_and_go_in_either_family(stack: Stack, version: Version) -> None:
    fd = bound6(stack, socket.SOCK_DGRAM)
    header = IPv6 if version.packets == 6 else IP
    to_us = header(src=version.remote, dst=version.local)
    stack.put(bytes(to_us / UDP(sport=4000, dport=PORT) / Raw(b"question")))
    buffer, addr = ffi.new("uint8_t[64]"), ffi.new("struct sockaddr *")
    size = ffi.new("socklen_t *", 28)
    assert stack.call("recvfrom", fd, buffer, 64, 0, addr, size) == 8
    assert bytes(ffi.buffer(addr)) == bytes(ffi.buffer(version.address(version.remote, 4000)))
    assert stack.call("sendto", fd, b"answer", 6, 0, addr, size[0]) == 6
    got = stack.take()
    assert got is not None
    packet = header(got[1])
    assert (packet.src, packet.dst) == (version.local, version.remote)
    assert bytes(packet[UDP].payload) == b"answer"


# ---- threads -----------------------------------------------------------------------------------


def test_many_threads_wait_each_for_its_own(stack: Stack) -> None:
    listening = listener(stack)
    peers, fds = [], []
    for i in range(8):
        peers.append(Peer(stack, port=40001 + i))
        fds.append(accepted(stack, listening))
    got: dict[int, bytes] = {}
    order: list[int] = []

    def wait(i: int) -> None:
        got[i] = recv(stack, fds[i])
        order.append(i)

    threads = [threading.Thread(target=wait, args=(i,), daemon=True) for i in range(8)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 120
    while stack.sleepers() < 8:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    for i in (3, 1, 7, 0, 2, 6, 5, 4):
        peers[i].put("PA", b"for %d" % i)
        threads[i].join(120)
    assert got == {i: b"for %d" % i for i in range(8)}
    assert order == [3, 1, 7, 0, 2, 6, 5, 4]


def test_threads_write_and_read_at_once(stack: Stack) -> None:
    """Several threads in one layer while the driver feeds it: nothing is lost or doubled."""
    listening = listener(stack)
    peers = [Peer(stack, port=40001 + i) for i in range(4)]
    fds = [accepted(stack, listening) for _ in peers]
    totals = [0] * 4

    def serve(i: int) -> None:
        while totals[i] < 20 * 100:
            data = recv(stack, fds[i])
            totals[i] += len(data)
            assert send(stack, fds[i], data) == len(data)

    threads = [threading.Thread(target=serve, args=(i,), daemon=True) for i in range(4)]
    for thread in threads:
        thread.start()
    echoed = [0] * 4
    deadline = time.monotonic() + 120
    for round_number in range(20):
        for peer in peers:
            peer.put("PA", payload(100))
        while min(echoed) < (round_number + 1) * 100:
            assert time.monotonic() < deadline
            got = stack.take()
            if got is None:
                time.sleep(0.001)
                continue
            tcp = IP(got[1])[TCP]
            peer = peers[tcp.dport - 40001]
            size = len(bytes(tcp.payload))
            if size and tcp.seq == peer.ack:
                echoed[tcp.dport - 40001] += size
                peer.ack += size
                peer.put("A")
    for thread in threads:
        thread.join(120)
    assert totals == [2000] * 4 == echoed


@pytest.mark.parametrize("size", [1461, 3000, 4001, 10_000])
def test_segment_longer_than_the_mtu_arrives_whole(stack: Stack, size: int) -> None:
    listening = listener(stack)
    peer = Peer(stack)
    peer.put("A")
    fd = stack.call("accept", listening, ffi.NULL, ffi.NULL)
    data = payload(size)
    peer.put("FA", data=data)
    stack.sleep_us(50_000)
    got, buffer = b"", ffi.new("uint8_t[]", size)
    while (n := stack.call("recv", fd, buffer, size, 0)) > 0:
        got += bytes(ffi.buffer(buffer, n))
    assert got == data, "and the end of the stream behind it"


def test_second_listen_changes_the_backlog_for_syns(stack: Stack) -> None:
    fd = listener(stack, backlog=0)
    stack.call("listen", fd, 4)
    peers = [Peer(stack, port=41_000 + i) for i in range(3)]
    for peer in peers:
        peer.put("A")
    for _ in peers:
        stack.call("accept", fd, ffi.NULL, ffi.NULL)


def test_options_are_kept_as_linux_keeps_them(stack: Stack) -> None:
    fd = stack.call("socket", *TCP_SOCKET)
    tcp, ip = socket.IPPROTO_TCP, socket.IPPROTO_IP
    for level, name, value in (
        (tcp, socket.TCP_KEEPINTVL, 7),
        (tcp, socket.TCP_KEEPCNT, 3),
        (tcp, socket.TCP_MAXSEG, 1000),
        (tcp, socket.TCP_LINGER2, 5),
        (ip, socket.IP_TOS, 0x20),
    ):
        set_option(stack, fd, level, name, value)
        assert option(stack, fd, level, name) == value
    for name, bad in ((socket.TCP_KEEPINTVL, 0), (socket.TCP_KEEPCNT, 128), (socket.TCP_MAXSEG, 5)):
        fails(errno.EINVAL, lambda name=name, bad=bad: set_option(stack, fd, tcp, name, bad))


def test_pointer_into_the_first_page_is_efault(stack: Stack) -> None:
    fd, _ = connection(stack)
    null = ffi.cast("void *", 8)
    fails(errno.EFAULT, lambda: stack.call("send", fd, null, 10, 0))
    fails(errno.EFAULT, lambda: stack.call("recv", fd, null, 10, 0))
    fails(errno.EFAULT, lambda: stack.call("setsockopt", fd, 6, 1, null, 4))
