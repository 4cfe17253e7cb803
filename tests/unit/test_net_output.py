"""net/output: headers, and the stage of frames that a cycle sends at its end."""

from __future__ import annotations

from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from tests.unit.peer import (
    EAGAIN,
    LOCAL,
    LOCAL_MAC,
    MS,
    REMOTE,
    REMOTE_MAC,
    Packet,
    Peer,
    Stack,
    ethernet,
    icmp_message,
    ipv4,
    opened,
)
from tests.unit.san import ffi, lib


def test_frame_reads_well_to_scapy() -> None:
    stack, _peer, handle = opened()
    stack.sendv(handle, b"data")
    raw = stack.sent.popleft()
    frame = Ether(raw)
    assert (frame.dst, frame.src) == (REMOTE_MAC.hex(":"), LOCAL_MAC.hex(":"))
    ip = frame[IP]
    assert (ip.src, ip.dst, ip.ttl, ip.tos, ip.flags, ip.frag) == (LOCAL, REMOTE, 64, 0, "DF", 0)
    assert (ip.len, ip.proto) == (44, 6)
    wanted = bytes(ip)
    del ip.chksum, frame[TCP].chksum
    assert bytes(IP(bytes(ip)))[: len(wanted)] == wanted


def ping(number: int) -> bytes:
    return ethernet(ipv4(icmp_message(8, 0, number, b""), 1))


def pong_numbers(stack: Stack) -> list[int]:
    return [int.from_bytes(Packet.parse(frame).l4[4:8], "big") for frame in stack.sent]


def test_stage_keeps_what_the_ring_refuses_in_order() -> None:
    stack = Stack(ring=4, own_address=1)
    stack.wire.end(0).completion_delay_ns = MS
    for i in range(0, 12, 4):
        stack.inject(*[ping(n) for n in range(i, i + 4)])
    assert len(stack.sent) < 12
    assert stack.counter("tx_full") > 0
    assert stack.deadline <= stack.now_ns
    stack.sleep(ms=10)
    assert pong_numbers(stack) == list(range(12))


def test_stage_full_drops_answers_and_makes_calls_wait() -> None:
    stack = Stack(own_address=1, pool=2048, ring=256)
    handle = ffi.new("uint64_t *")
    assert lib.ix_shard_udp_bind(stack.shard, ffi.NULL, 4, 53, 0, handle) == 0
    stack.wire.end(0).completion_delay_ns = MS
    for first in range(0, 1100, 50):  # 256 on their way, 256 on the ring, 512 staged
        stack.inject(*[ping(n) for n in range(first, first + 50)])
    addr = stack.put_arena(b"x")
    fields = {"handle": handle[0], "addr": addr, "bytes": 1, "family": 4, "peer": REMOTE}
    assert stack.call("UDP_SENDV", peer_port=9, **fields) == -EAGAIN
    stack.sleep(ms=10)
    assert pong_numbers(stack) == list(range(len(stack.sent)))
    assert 1024 <= len(stack.sent) < 1100
    assert stack.call("UDP_SENDV", peer_port=9, **fields) == 1
    stack.sleep(ms=10)
    assert stack.is_idle()


def test_link_down_loses_nothing() -> None:
    stack, peer, handle = opened()
    lib.ix_sim_end_set_down(ffi.addressof(stack.wire.w.end[0]), True)
    stack.sendv(handle, b"data")
    assert not stack.sent
    assert stack.counter("wakeup_errors") > 0
    lib.ix_sim_end_set_down(ffi.addressof(stack.wire.w.end[0]), False)
    stack.sleep(ms=300)
    assert peer.expect("PA", b"data").seq == 0
    peer.send("A")
    stack.expect("SENT", bytes=4)


def test_bytes_and_frames_are_counted() -> None:
    stack = Stack(listen=80)
    peer = Peer(stack)
    peer.connect()
    sent, received = 60 - 2, 60 * 2
    assert stack.counters("tx_frames", "tx_bytes", "tcp_out") == [1, sent, 1]
    assert stack.counters("rx_frames", "rx_bytes", "tcp_in") == [2, received, 2]
