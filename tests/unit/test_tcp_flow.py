"""tcp/flow: where TCBs come from, how they are found, and how they end."""

from __future__ import annotations

import pytest

from tests.unit.peer import Peer, Stack, ethernet, ipv4, opened, tcp_segment
from tests.unit.san import ffi, lib


def check(stack: Stack) -> str | None:
    wrong = lib.ix_tcp_check(ffi.addressof(stack.shard.tcp))
    return None if wrong == ffi.NULL else ffi.string(wrong).decode()


def conns(stack: Stack) -> list[int]:
    """The handles that ix_shard_next_conn() walks over."""
    index, out = ffi.new("uint32_t *"), []
    while handle := lib.ix_shard_next_conn(stack.shard, index):
        out.append(int(handle))
    return out


def test_tcb_stays_small() -> None:
    # An idle connection: at most 1 KiB, with its part of the tables.
    per_flow = []
    for flows in (1024, 65536):
        cfg = ffi.new("struct ix_config *", {"pool_frames": 1024, "max_flows": flows})
        per_flow.append(lib.ix_shard_bytes(cfg))
    assert (per_flow[1] - per_flow[0]) / (65536 - 1024) <= 1024


def test_connections_come_and_go_and_nothing_is_left() -> None:
    stack = Stack(listen=80, max_flows=4)
    handles = set()
    for i in range(40):
        peer = Peer(stack, sport=50000 + i)
        handle = peer.connect()
        handles.add(handle)
        peer.send("R")
        stack.expect("DEAD")
    assert len(handles) == 40
    assert stack.is_idle()
    assert stack.counters("tcp_passive_opens", "tcp_established", "tcp_aborted") == [40, 40, 40]


def test_generation_skips_zero() -> None:
    stack, peer, handle = opened(max_flows=1)
    stack.tcb(handle).generation = 2**32 - 1
    peer.send("R")
    assert stack.expect("DEAD").handle >> 32 == 2**32 - 1
    assert Peer(stack, sport=50001).connect() >> 32 == 1


def test_walk_shows_the_applications_connections() -> None:
    stack = Stack(listen=80)
    peers = [Peer(stack, sport=50000 + i) for i in range(3)]
    handles = [peer.connect() for peer in peers]
    assert sorted(conns(stack)) == sorted(handles)
    stack.close(handles[0])
    peers[0].expect("FA")
    peers[0].send("FA")
    peers[1].send("R")
    stack.events.clear()
    assert conns(stack) == [handles[2]]  # TIME_WAIT is nobody's any more
    info = ffi.new("struct ix_conn_info *")
    assert lib.ix_shard_conn_info(stack.shard, handles[0], info) == -2


def test_time_wait_list_keeps_its_order() -> None:
    stack = Stack(listen=80, time_wait_ms=1000)
    peers = []
    for i in range(4):
        peer = Peer(stack, sport=50000 + i)
        handle = peer.connect()
        stack.close(handle)
        peer.expect("FA")
        peer.send("FA")
        peer.expect("A")
        stack.events.clear()
        stack.sleep(ms=100)
        peers.append(peer)
    peers[1].send("FA", seq=0)  # to the end
    stack.sent.clear()
    assert stack.stats.flows_time_wait == 4
    stack.sleep(ms=620)
    assert stack.stats.flows_time_wait == 3
    stack.sleep(ms=310)
    assert stack.stats.flows_time_wait == 1
    peers[1].send("FA", seq=0)
    peers[1].expect("A")


def corrupt_count(stack: Stack, tcb: object) -> None:
    stack.shard.tcp.in_use += 1


def corrupt_queue(stack: Stack, tcb: object) -> None:
    tcb.queued_bytes += 1  # type: ignore[attr-defined]


def corrupt_key(stack: Stack, tcb: object) -> None:
    tcb.key.peer_port ^= 1  # type: ignore[attr-defined]


def corrupt_numbers(stack: Stack, tcb: object) -> None:
    tcb.snd_una += 100_000  # type: ignore[attr-defined]


def corrupt_timer(stack: Stack, tcb: object) -> None:
    lib.ix_wheel_cancel(stack.shard.tcp.wheel, (1 << 32 & 0xFFFFFFF) * 3)


def corrupt_half_open(stack: Stack, tcb: object) -> None:
    stack.shard.tcp.half_open += 1


@pytest.mark.parametrize(
    "corrupt",
    [
        corrupt_count,
        corrupt_queue,
        corrupt_key,
        corrupt_numbers,
        corrupt_timer,
        corrupt_half_open,
    ],
)
def test_check_finds_what_is_wrong(corrupt: object) -> None:
    # The check itself: what every other test and the simulation rely on.
    stack, _peer, handle = opened()
    stack.sendv(handle, b"data")
    assert check(stack) is None
    corrupt(stack, stack.tcb(handle))  # type: ignore[operator]
    assert check(stack) is not None


def test_many_connections_are_told_apart() -> None:
    stack = Stack(listen=80, max_flows=256, fill_target=256)
    peers = [Peer(stack, sport=1000 + i, iss=7919 * i) for i in range(200)]
    for peer in peers:
        peer.connect(cookie=peer.sport)
    for peer in peers:
        peer.put("PA", str(peer.sport).encode())
    stack.settle()
    for event in stack.events:
        assert event.data == str(event.cookie).encode()
    assert len(stack.events) == 200


SEGMENT = tcp_segment((1, 2), 0, 0, 0x10, 0)


def expected(stack: Stack, frame: bytes) -> int:
    buffer = ffi.from_buffer("uint8_t[]", frame) if frame else ffi.new("uint8_t[1]")
    return int(lib.ix_tcp_expect(ffi.addressof(stack.shard.tcp), buffer, len(frame)))


def test_frame_to_come_is_expected_for_its_connection() -> None:
    stack, peer, handle = opened()
    frame = ethernet(ipv4(tcp_segment((peer.sport, peer.port), 0, 0, 0x10, 0), 6))
    assert expected(stack, frame) == stack.tcb(handle).hash
    lib.ix_tcp_prefetch(ffi.addressof(stack.shard.tcp), stack.tcb(handle).hash)


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        ethernet(ipv4(SEGMENT, 6))[:53],
        ethernet(ipv4(SEGMENT, 17)),
        ethernet(b"\x46" + ipv4(SEGMENT, 6)[1:]),
        ethernet(bytes(60), kind=0x86DD),
    ],
    ids=["empty", "short", "UDP", "options", "IPv6"],
)
def test_frame_to_come_that_is_not_plain_tcp_is_expected_for_nobody(frame: bytes) -> None:
    stack = Stack()
    assert expected(stack, frame) == 0
    lib.ix_tcp_prefetch(ffi.addressof(stack.shard.tcp), 0)
    lib.ix_tcp_prefetch(ffi.addressof(stack.shard.tcp), 2**64 - 1)
