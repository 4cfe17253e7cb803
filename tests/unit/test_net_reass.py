"""net/reass: fragments of UDP datagrams (RFC 791 3.2, RFC 1858, RFC 5722)."""

from __future__ import annotations

import random

import pytest

from tests.unit.packets import ipv4_csum
from tests.unit.peer import LOCAL, REMOTE, Stack, ethernet, ip_bytes, udp_datagram
from tests.unit.san import ffi, lib

PORT = 53
WAIT_MS = 30_000


def bound(**config: object) -> Stack:
    stack = Stack(**config)  # type: ignore[arg-type]
    handle = ffi.new("uint64_t *")
    assert lib.ix_shard_udp_bind(stack.shard, ffi.NULL, 4, PORT, 9, handle) == 0
    return stack


def fragment(
    payload: bytes, at: int, more: bool, *, ident: int = 7, src: str = REMOTE, proto: int = 17
) -> bytes:
    """A frame with a part of a datagram."""
    field = at // 8 | (0x2000 if more else 0)
    head = bytes([0x45, 0]) + (20 + len(payload)).to_bytes(2, "big")
    head += ident.to_bytes(2, "big") + field.to_bytes(2, "big") + bytes([64, proto, 0, 0])
    return ethernet(ipv4_csum(head + ip_bytes(src) + ip_bytes(LOCAL)) + payload)


def cut(datagram: bytes, size: int, **fields: object) -> list[bytes]:
    """Its fragments of `size` bytes each, in order."""
    return [
        fragment(datagram[at : at + size], at, at + size < len(datagram), **fields)  # type: ignore[arg-type]
        for at in range(0, len(datagram), size)
    ]


def datagram(size: int, src: str = REMOTE) -> bytes:
    return udp_datagram((4000, PORT), random.Random(size).randbytes(size), src=src)


def take(stack: Stack) -> bytes:
    """The next datagram, piece by piece; given back."""
    out = b""
    while True:
        event = stack.expect("UDP_RECV", cookie=9, peer=(REMOTE, 4000), local=(LOCAL, PORT))
        assert event.family & 0x7F == 4
        out += event.data
        assert stack.done(event) == 0
        if not event.family & lib.IX_UDP_MORE:
            return out


def is_empty(stack: Stack) -> bool:
    return bool(stack.shard.net.reass.frames == 0 and stack.stats.frames_rx == 0)


@pytest.mark.parametrize("size", [9, 100, 1480, 4096, 20_000, 65_507])
@pytest.mark.parametrize("order", ["forward", "backward", "shuffled"])
def test_datagram_is_whole_whatever_the_order(size: int, order: str) -> None:
    stack = bound()
    payload = datagram(size)[8:]
    frames = cut(datagram(size), 8 if size < 100 else 1480 if size > 4000 else 64)
    if order == "backward":
        frames.reverse()
    elif order == "shuffled":
        random.Random(3).shuffle(frames)
    for frame in frames:
        stack.expect_no_event()
        stack.inject(frame)
    assert take(stack) == payload
    stack.expect_no_event()
    assert stack.counters("ip_reassembled", "udp_in") == [1, 1]
    assert is_empty(stack)


def test_datagrams_of_two_sources_and_two_identifications_are_kept_apart() -> None:
    stack = bound()
    stack.ctl("NEIGH_SET", ip="10.0.0.3")
    whole = {}
    frames = []
    for src, ident in ((REMOTE, 1), (REMOTE, 2), ("10.0.0.3", 1)):
        data = udp_datagram((4000, PORT), f"{src} {ident}".encode() * 100, src=src)
        whole[src, ident] = data[8:]
        frames.append(cut(data, 400, ident=ident, src=src))
    for together in zip(*frames, strict=False):
        for frame in together:
            stack.inject(frame)
    for rest in frames:
        for frame in rest[min(map(len, frames)) :]:
            stack.inject(frame)
    got = {}
    data, peer = b"", ""
    while stack.events:
        event = stack.events.popleft()
        data += event.data
        assert stack.done(event) == 0
        if not event.family & lib.IX_UDP_MORE:
            got[event.peer[0], data] = True
            data = b""
    assert set(got) == {(src, data) for (src, _), data in whole.items()}
    assert peer == "" and is_empty(stack)


def test_repeated_fragment_changes_nothing() -> None:
    stack = bound()
    frames = cut(datagram(3000), 1000)
    for frame in frames[:-1]:
        stack.inject(frame, frame)
    stack.inject(frames[-1])
    assert take(stack) == datagram(3000)[8:]
    assert stack.counter("drop_ip_frag") == 3


@pytest.mark.parametrize(
    "evil",
    [
        (bytes(1000), 504, True),  # over the end of one and the beginning of the next
        (bytes(8), 8, True),  # inside
        (bytes(1400), 0, True),  # all of it and more
        (bytes(100), 2000, False),  # a second end
        (bytes(8), 4000, True),  # beyond the end
    ],
)
def test_overlap_spoils_the_datagram(evil: tuple[bytes, int, bool]) -> None:
    # RFC 5722 section 4
    stack = bound()
    frames = cut(datagram(2992), 1000)
    stack.inject(frames[0], frames[2])
    stack.inject(fragment(*evil))
    assert stack.counter("drop_reass_overlap") == 1
    assert is_empty(stack)
    stack.inject(frames[1])
    stack.expect_no_event()


@pytest.mark.parametrize(
    "wrong",
    [
        fragment(bytes(7), 0, True),  # no multiple of 8, and not the last
        fragment(bytes(12), 8, True),
        fragment(b"", 8, True),
        fragment(bytes(4), 0, False),  # unfragmented, in truth, and too short
        fragment(bytes(1400), 64_800, False),  # longer than a packet can be
    ],
)
def test_fragment_that_can_not_be_is_dropped(wrong: bytes) -> None:
    stack = bound()
    stack.inject(wrong)
    assert is_empty(stack)


@pytest.mark.parametrize("proto", [1, 6, 50])
def test_fragments_of_other_protocols_are_dropped(proto: int) -> None:
    stack = bound()
    stack.inject(fragment(bytes(800), 0, True, proto=proto))
    assert stack.counter("drop_ip_frag") == 1 and is_empty(stack)


def test_datagram_with_a_wrong_checksum_is_dropped_and_nothing_is_kept() -> None:
    stack = bound()
    data = bytearray(datagram(3000))
    data[2000] ^= 1
    for frame in cut(bytes(data), 1000):
        stack.inject(frame)
    stack.expect_no_event()
    assert stack.counter("drop_udp_csum") == 1 and is_empty(stack)


@pytest.mark.parametrize("length", [2000, 3009, 0, 7])
def test_datagram_whose_length_contradicts_is_dropped(length: int) -> None:
    stack = bound()
    data = bytearray(datagram(3000))
    data[4:8] = length.to_bytes(2, "big") + b"\0\0"
    for frame in cut(bytes(data), 1000):
        stack.inject(frame)
    stack.expect_no_event()
    assert stack.counter("drop_udp_short") == 1 and is_empty(stack)


def test_datagram_to_no_endpoint_is_dropped() -> None:
    stack = bound()
    for frame in cut(udp_datagram((4000, 99), bytes(3000)), 1000):
        stack.inject(frame)
    assert stack.counter("drop_udp_port") == 1 and is_empty(stack)


# ---- bounds ---------------------------------------------------------------------------


def test_rest_that_never_comes_is_given_up_after_a_while() -> None:
    stack = bound()
    stack.inject(cut(datagram(3000), 1000)[0])
    stack.poll(ms=WAIT_MS - 1)
    assert stack.shard.net.reass.frames == 1
    assert stack.deadline <= stack.now_ns + 2_000_000
    stack.poll(ms=1)
    assert is_empty(stack)
    assert stack.counter("drop_reass_timeout") == 1


def test_one_source_has_eight_datagrams_at_most() -> None:
    stack = bound()
    stack.ctl("NEIGH_SET", ip="10.0.0.3")
    other = cut(udp_datagram((4000, PORT), bytes(900), src="10.0.0.3"), 480, src="10.0.0.3")
    stack.inject(other[0])
    for ident in range(100):
        stack.now_ns += 1000
        stack.inject(fragment(bytes(800), 0, True, ident=ident))
    assert stack.shard.net.reass.frames == lib.IX_REASS_PER_SOURCE + 1
    assert stack.counter("drop_reass_full") == 100 - lib.IX_REASS_PER_SOURCE
    stack.inject(other[1])
    assert stack.counter("ip_reassembled") == 1


def test_flood_from_many_sources_holds_a_sixteenth_of_the_pool_at_most() -> None:
    stack = bound(pool=1024)
    for i in range(300):
        stack.now_ns += 1000
        src = f"10.0.{1 + i % 20}.7"
        stack.inject(fragment(bytes(64), 64 * (i // 20), True, ident=1, src=src))
        assert stack.shard.net.reass.frames <= 64
    assert stack.counter("drop_reass_full") > 0


def test_application_that_is_behind_loses_the_whole_datagram() -> None:
    stack = bound(batch=256)
    stack.put(*cut(datagram(65_507), 1480))  # in one batch with others that take the event array
    for ident in (8, 9, 10):
        stack.put(*cut(datagram(20_000), 1480, ident=ident))
    for _ in range(8):
        stack.cycle()
    whole = stack.counter("udp_in")
    assert stack.counter("drop_udp_full") == 4 - whole > 0
    got = 0
    for event in list(stack.events):
        assert stack.done(event) == 0
        got += not event.family & lib.IX_UDP_MORE
    assert got == whole
    assert is_empty(stack)
