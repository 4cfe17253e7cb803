"""link/sim_faults.c: marks, standstills, losses by size. The other faults: test_sim_link.py."""

from __future__ import annotations

import pytest

from tests.unit.packets import words_sum
from tests.unit.peer import ethernet, ipv4
from tests.unit.san import ffi, lib
from tests.unit.simwire import NEVER, Wire, frame, number_of

MS = 1_000_000


@pytest.mark.parametrize("tos", range(0, 256, 5))
def test_mark_changes_ect_to_ce_and_the_checksum_with_it(tos: int) -> None:
    packet = ethernet(ipv4(b"payload", 6, tos=tos))
    buffer = ffi.new("uint8_t[]", packet)
    changed = lib.ix_sim_mark(buffer, len(packet))
    after = bytes(ffi.buffer(buffer, len(packet)))
    assert changed == (tos & 3 != 0)
    assert after[15] == (tos | 3 if changed else tos)
    assert words_sum(after[14:34]) == 0xFFFF
    assert after[16:24] + after[26:] == packet[16:24] + packet[26:]


@pytest.mark.parametrize("traffic_class", range(0, 256, 5))
def test_mark_changes_ect_to_ce_in_ipv6(traffic_class: int) -> None:
    packet = frame(1, ethertype=0x86DD)
    head = (6 << 28 | traffic_class << 20 | 0x12345).to_bytes(4, "big")
    packet = packet[:14] + head + packet[18:]
    buffer = ffi.new("uint8_t[]", packet)
    changed = lib.ix_sim_mark(buffer, len(packet))
    after = bytes(ffi.buffer(buffer, len(packet)))
    assert changed == (traffic_class & 3 != 0)
    marked = traffic_class | 3 if changed else traffic_class
    assert int.from_bytes(after[14:18], "big") == 6 << 28 | marked << 20 | 0x12345
    assert after[:14] + after[18:] == packet[:14] + packet[18:]


def test_mark_leaves_what_is_no_ip_packet() -> None:
    for data in (frame(1, ethertype=0x0806), frame(1, size=30), bytes(20)):
        buffer = ffi.new("uint8_t[]", data)
        assert not lib.ix_sim_mark(buffer, len(data))
        assert bytes(ffi.buffer(buffer, len(data))) == data


def test_frames_that_join_a_long_queue_are_marked() -> None:
    wire = Wire()
    wire.path(0, rate_bytes_per_s=1_000_000, mark_frames=4)
    wire.fill(1)
    wire.send(0, *[ethernet(ipv4(b"x", 6, tos=2)) for _ in range(10)])
    wire.advance(0)
    while wire.next_ns != NEVER:
        wire.advance(wire.next_ns)
    marks = [data[15] & 3 for data in wire.receive(1)]
    assert marks == [2] * 3 + [3] * 7
    assert wire.counters(0).marked == 7


def test_long_frames_are_spared_where_only_short_ones_are_lost() -> None:
    wire = Wire(ring=256, frames=512, wire_frames=256)
    wire.path(0, loss_ppm=500_000, loss_max_bytes=94)
    wire.fill(1)
    wire.send(0, *[frame(i, 94 + i % 2) for i in range(100)])
    wire.advance(0)
    arrived = [number_of(data) for data in wire.receive(1)]
    assert [n for n in arrived if n % 2] == list(range(1, 100, 2))
    assert 10 < len(arrived) - 50 < 40


def test_standstill_holds_frames_until_its_end_and_in_order() -> None:
    wire = Wire()
    wire.path(0, delay_ns=MS, spike_every_ns=100 * MS, spike_ns=30 * MS)
    wire.fill(1)
    due = []
    for i, now in enumerate((0, 69 * MS, 70 * MS, 99 * MS, 100 * MS, 199 * MS)):
        wire.advance(now)
        wire.send(0, frame(i))
        wire.advance(now)
        due.append(wire.next_ns)
    assert due == [MS, 70 * MS, 100 * MS, 100 * MS, 101 * MS, 200 * MS]
