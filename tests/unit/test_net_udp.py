"""net/udp: endpoints, datagrams in and out."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.packets import pseudo_bytes, words_sum
from tests.unit.peer import (
    EADDRINUSE,
    EADDRNOTAVAIL,
    EAGAIN,
    EINVAL,
    EMSGSIZE,
    ENETUNREACH,
    ENOENT,
    ENOSPC,
    LOCAL,
    REMOTE,
    Packet,
    Stack,
    ethernet,
    ip_bytes,
    ipv4,
    stream,
    udp_datagram,
)
from tests.unit.san import ffi, lib
from tests.unit.simwire import FRAME_BYTES

SECOND_LOCAL = "10.0.0.9"


def bind(stack: Stack, port: int = 53, ip: str | None = None, cookie: int = 9) -> int:
    handle = ffi.new("uint64_t *")
    address = ffi.new("uint8_t[16]", ip_bytes(ip)) if ip else ffi.NULL
    result = lib.ix_shard_udp_bind(stack.shard, address, 4, port, cookie, handle)
    return int(handle[0]) if result == 0 else int(result)


def endpoint(**options: Any) -> tuple[Stack, int]:
    stack = Stack(**options)
    handle = bind(stack)
    assert handle > 0
    return stack, handle


def datagram(payload: bytes, port: int = 53, dst: str = LOCAL) -> bytes:
    return ethernet(ipv4(udp_datagram((4000, port), payload, dst=dst), 17, dst=dst))


def sendv(stack: Stack, handle: int, data: bytes, /, **fields: Any) -> int:
    call: dict[str, Any] = {"handle": handle, "addr": stack.put_arena(data) if data else 0}
    call |= {"bytes": len(data), "family": 4, "peer": REMOTE, "peer_port": 4000}
    return stack.call("UDP_SENDV", **(call | fields))


# ---- endpoints ------------------------------------------------------------------------


def test_bind_twice_is_refused_and_unbind_frees() -> None:
    stack = Stack()
    handle = bind(stack)
    assert bind(stack) == -EADDRINUSE
    assert bind(stack, ip=LOCAL) > 0
    assert bind(stack, port=0) == -EINVAL
    assert lib.ix_shard_udp_unbind(stack.shard, handle) == 0
    assert lib.ix_shard_udp_unbind(stack.shard, handle) == -ENOENT
    again = bind(stack)
    assert again > 0 and again != handle
    assert sendv(stack, handle, b"x") == -ENOENT


def test_endpoints_have_a_limit() -> None:
    stack = Stack()
    for i in range(lib.IX_UDP_MAX):
        assert bind(stack, port=1000 + i) > 0
    assert bind(stack, port=1) == -ENOSPC


def test_unknown_family_is_refused() -> None:
    stack = Stack()
    out = ffi.new("uint64_t *")
    assert lib.ix_shard_udp_bind(stack.shard, ffi.NULL, 5, 53, 0, out) == -EINVAL


def test_exact_endpoint_comes_before_the_wildcard() -> None:
    stack = Stack()
    stack.ctl("ADDR_ADD", ip=SECOND_LOCAL)
    bind(stack, cookie=1)
    bind(stack, ip=SECOND_LOCAL, cookie=2)
    stack.poll()
    stack.inject(datagram(b"a"), datagram(b"b", dst=SECOND_LOCAL))
    stack.expect("UDP_RECV", cookie=1, data=b"a", local=(LOCAL, 53))
    stack.expect("UDP_RECV", cookie=2, data=b"b", local=(SECOND_LOCAL, 53))


# ---- in -------------------------------------------------------------------------------


def test_datagram_is_lent_until_done() -> None:
    stack, handle = endpoint()
    stack.inject(datagram(b"question"))
    event = stack.expect(
        "UDP_RECV",
        handle=handle,
        cookie=9,
        data=b"question",
        peer=(REMOTE, 4000),
        local=(LOCAL, 53),
        family=4,
    )
    assert stack.stats.frames_app == 1
    assert stack.done(event, 3) == 0
    assert stack.done(event) == -EINVAL
    assert stack.done(event, 5) == 0
    assert stack.done(event, 0) == -EINVAL
    assert stack.stats.frames_app == 0
    assert stack.counter("udp_in") == 1


def test_done_forged_is_refused() -> None:
    stack, handle = endpoint()
    stack.inject(datagram(b"data"))
    event = stack.expect("UDP_RECV")
    for value, addr in [
        (handle + (1 << 32), event.addr),
        (handle + 1, event.addr),
        (handle & ~(0xF << 28), event.addr),  # looks like a connection
        (0, event.addr),
        (handle, event.addr + FRAME_BYTES),
        (handle, 2**64 - 1),
        (handle, stack.io.arena_frame * FRAME_BYTES),
    ]:
        assert stack.call("UDP_RECV_DONE", handle=value, addr=addr, bytes=4) == -EINVAL
    assert stack.call("RECV_DONE", handle=handle, addr=event.addr, bytes=4) == -EINVAL
    assert stack.done(event) == 0


def test_done_after_unbind_gives_the_frame_back() -> None:
    stack, handle = endpoint()
    stack.inject(datagram(b"data"))
    event = stack.expect("UDP_RECV")
    lib.ix_shard_udp_unbind(stack.shard, handle)
    assert stack.done(event) == 0
    assert stack.is_idle()


def test_empty_datagram_is_told_and_lends_nothing() -> None:
    stack, _handle = endpoint()
    stack.inject(datagram(b""))
    stack.expect("UDP_RECV", bytes=0, peer=(REMOTE, 4000))
    assert stack.stats.frames_app == 0


def test_bad_checksum_and_lengths_are_counted() -> None:
    stack, _handle = endpoint()
    frame = bytearray(datagram(b"data"))
    frame[42] ^= 1
    stack.inject(bytes(frame))
    assert stack.counter("drop_udp_csum") == 1
    for size in (0, 7, 13, 65535):
        bad = bytearray(udp_datagram((4000, 53), b"data"))
        bad[4:8] = size.to_bytes(2, "big") + b"\0\0"
        stack.inject(ethernet(ipv4(bytes(bad), 17)))
    stack.inject(ethernet(ipv4(b"\0" * 7, 17)))
    assert stack.counter("drop_udp_short") == 5
    stack.expect_no_event()


def test_datagram_without_checksum_is_taken() -> None:
    stack, _handle = endpoint()
    plain = bytearray(udp_datagram((4000, 53), b"data"))
    plain[6:8] = b"\0\0"
    stack.inject(ethernet(ipv4(bytes(plain), 17)))
    stack.expect("UDP_RECV", data=b"data")


def test_event_array_full_drops_and_counts() -> None:
    stack, _handle = endpoint(max_events=64, batch=128)
    stack.put(*[datagram(b"x")] * 100)
    stack.poll()
    assert len(stack.events) == 64
    assert stack.counter("drop_udp_full") == 36
    assert stack.stats.frames_app == 64


def test_lend_limit_drops_and_counts() -> None:
    stack, _handle = endpoint()
    for _ in range(30):
        stack.put(*[datagram(b"x")] * 20)
        stack.settle()
    assert stack.counter("drop_udp_full") > 0
    assert len(stack.events) == stack.stats.frames_app <= 512


# ---- out ------------------------------------------------------------------------------


def test_datagram_leaves_and_its_memory_comes_back_in_the_same_cycle() -> None:
    stack, handle = endpoint()
    assert sendv(stack, handle, b"answer", cookie=4) == 6
    event = stack.expect("UDP_SENT", handle=handle, cookie=4, bytes=6)
    assert stack.wire.read(0, event.addr, 6) == b"answer"
    packet = Packet.parse(stack.sent.popleft())
    assert (packet.src, packet.dst, packet.proto) == (LOCAL, REMOTE, 17)
    assert packet.l4[:6] == bytes([0, 53, 15, 160, 0, 14])
    assert packet.l4[8:] == b"answer"
    assert words_sum(pseudo_bytes(LOCAL, REMOTE, 17, 14) + packet.l4) == 0xFFFF


def test_received_datagram_is_sent_back_as_it_lies() -> None:
    stack, handle = endpoint()
    stack.inject(datagram(stream(0, 1400)))
    event = stack.expect("UDP_RECV")
    call = {"handle": handle, "addr": event.addr, "bytes": 1400}
    assert sendv(stack, handle, b"", **call) == 1400
    assert Packet.parse(stack.sent.popleft()).l4[8:] == stream(0, 1400)
    stack.expect("UDP_SENT")
    assert stack.done(event) == 0


def test_checksum_of_zero_is_sent_as_ffff() -> None:
    # RFC 768: a field of 0 would say that there is none.
    stack, handle = endpoint()
    for i in range(0, 65536, 257):
        data = i.to_bytes(2, "big")
        pseudo = pseudo_bytes(LOCAL, REMOTE, 17, 10) + bytes([0, 53, 15, 160, 0, 10, 0, 0])
        if words_sum(pseudo + data) == 0xFFFF:
            break
    rest = 0xFFFF - words_sum(pseudo)
    assert sendv(stack, handle, rest.to_bytes(2, "little")) == 2
    assert Packet.parse(stack.sent.popleft()).l4[6:8] == b"\xff\xff"


def test_empty_datagram_leaves_whatever_its_address() -> None:
    stack, handle = endpoint()
    for addr in (0, 2**64 - 1):
        assert sendv(stack, handle, b"", addr=addr) == 0
        assert len(Packet.parse(stack.sent.popleft()).l4) == 8


@pytest.mark.parametrize(
    "fields, error",
    [
        ({"family": 5}, EINVAL),
        ({"family": 6}, EINVAL),  # the endpoint is an IPv4 one
        ({"family": 0}, EINVAL),
        ({"peer_port": 0}, EINVAL),
        ({"addr": 0, "bytes": 1}, EINVAL),
        ({"addr": 2**64 - 1, "bytes": 1}, EINVAL),
        ({"bytes": 2**32 - 1}, EINVAL),
        ({"bytes": 1473}, EMSGSIZE),
        ({"handle": 0}, ENOENT),
        ({"handle": 2**64 - 1}, ENOENT),
    ],
)
def test_nonsense_is_refused(fields: dict[str, int], error: int) -> None:
    stack, handle = endpoint()
    assert sendv(stack, handle, b"data", **fields) == -error
    assert not stack.sent
    stack.expect_no_event()


def test_largest_datagram_fits_the_mtu() -> None:
    stack, handle = endpoint()
    assert sendv(stack, handle, stream(0, 1472)) == 1472
    assert len(stack.sent.popleft()) == 1514


def test_bound_address_is_the_source() -> None:
    stack = Stack()
    stack.ctl("ADDR_ADD", ip=SECOND_LOCAL)
    handle = bind(stack, ip=SECOND_LOCAL)
    assert sendv(stack, handle, b"x") == 1
    assert Packet.parse(stack.sent.popleft()).src == SECOND_LOCAL


def test_unknown_neighbour_asks_and_says_try_again() -> None:
    stack, handle = endpoint(neighbour=False)
    assert sendv(stack, handle, b"x") == -EAGAIN
    assert stack.request() == (lib.IX_CTL_NEIGH_MISS, REMOTE)
    stack.ctl("NEIGH_SET", ip=REMOTE, mac=bytes.fromhex("020000000055"))
    assert sendv(stack, handle, b"x") == 1


def test_no_route_or_no_address_is_final() -> None:
    stack, handle = endpoint(route=False)
    assert sendv(stack, handle, b"x") == -ENETUNREACH
    stack, handle = endpoint(address=None)
    assert sendv(stack, handle, b"x") == -EADDRNOTAVAIL


def test_full_event_array_says_try_again() -> None:
    stack, handle = endpoint(max_events=64, max_calls=128)
    calls = []
    for _ in range(70):
        addr = stack.put_arena(b"x")
        calls.append(
            stack.queue(
                "UDP_SENDV",
                handle=handle,
                addr=addr,
                bytes=1,
                family=4,
                peer=REMOTE,
                peer_port=4000,
            )
        )
    stack.poll()
    assert [call.result for call in calls] == [1] * 64 + [-EAGAIN] * 6
    assert len(stack.sent) == len(stack.events) == 64


# ---- what no application should say ---------------------------------------------------


def test_port_0_is_nobodys_even_after_unbind() -> None:
    # A free slot has port 0; the table is looked at only while something is bound.
    stack, handle = endpoint()
    bind(stack, port=54)
    lib.ix_shard_udp_unbind(stack.shard, handle)
    stack.inject(datagram(b"to port 0", port=0))
    stack.expect_no_event()
    assert stack.counter("drop_udp_port") == 1


def test_memory_behind_the_last_frame_is_not_sent() -> None:
    # A UMEM on huge pages may be longer than its frames.
    stack, handle = endpoint()
    end = stack.io.umem_bytes
    stack.wire.link(0).umem_bytes = end + (2 << 20)
    assert sendv(stack, handle, b"x", addr=end) == -EINVAL
    assert sendv(stack, handle, b"x", addr=end - 1, bytes=2) == -EINVAL
    assert sendv(stack, handle, b"x", addr=end - 1) == 1


def test_size_that_wraps_is_too_large() -> None:
    # With headers added 2^32 - 20 bytes seem to be few. Only a UMEM beyond 4 GiB has room for them.
    stack, handle = endpoint()
    call = ffi.new("struct ix_call *", {"handle": handle, "family": 4, "peer_port": 4000})
    call.addr, call.bytes = stack.put_arena(b"x"), 2**32 - 20
    stack.shard.frames.total = 1 << 22
    stack.wire.link(0).umem_bytes = 1 << 33
    result = lib.ix_udp_send(ffi.addressof(stack.shard.udp), call)
    stack.shard.frames.total = stack.pool + stack.arena
    assert result == -EMSGSIZE
