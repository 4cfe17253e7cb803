"""link/sim_link.c: the simulated wire."""

from __future__ import annotations

import pytest

from tests.unit.san import ffi, lib
from tests.unit.simwire import FRAME_BYTES, HEADROOM, NEVER, Wire, frame, number_of

MS = 1_000_000
PPM = lib.IX_SIM_PPM


def run(wire: Wire, count: int, *, gap_ns: int = 1000, direction: int = 0) -> list[bytes]:
    """Sends numbered frames one by one, `gap_ns` apart, and returns what arrived in the end."""
    receiver = 1 - direction
    arrived = []
    for number in range(count):
        wire.send(direction, frame(number))
        wire.advance(wire.w.now_ns + gap_ns)
        arrived += wire.receive(receiver)
    while wire.next_ns != NEVER:
        wire.advance(wire.next_ns)
        arrived += wire.receive(receiver)
    return arrived


# ---- rings, as AF_XDP has them ------------------------------------------------------------


def test_sent_frame_arrives_behind_the_headroom_of_a_fill_frame() -> None:
    wire = Wire()
    wire.fill(1, [5])
    wire.send(0, frame(7, 1514))
    assert wire.rx_descs(1) == []  # not before time was moved on
    wire.advance(0)
    assert lib.ix_sim_end_ready(ffi.addressof(wire.end(1)))
    assert wire.rx_descs(1) == [(5 * FRAME_BYTES + HEADROOM, 1514)]
    assert wire.read(1, 5 * FRAME_BYTES + HEADROOM, 1514) == frame(7, 1514)
    assert not lib.ix_sim_end_ready(ffi.addressof(wire.end(1)))


def test_both_directions_are_independent() -> None:
    wire = Wire()
    wire.path(0, delay_ns=5 * MS)
    wire.fill(0)
    wire.fill(1)
    wire.send(0, frame(1))
    wire.send(1, frame(2))
    wire.advance(0)
    assert [number_of(f) for f in wire.receive(0)] == [2]
    assert wire.receive(1) == []
    wire.advance(5 * MS)
    assert [number_of(f) for f in wire.receive(1)] == [1]


def test_fill_is_used_in_order_and_low_address_bits_are_ignored() -> None:
    wire = Wire()
    addrs = ffi.new("uint64_t[]", [3 * FRAME_BYTES + 77, 1 * FRAME_BYTES])
    assert wire.link(1).ops.fill(wire.link(1), addrs, 2) == 2
    wire.send(0, frame(0), frame(1))
    wire.advance(0)
    assert [addr - HEADROOM for addr, _ in wire.rx_descs(1)] == [3 * FRAME_BYTES, FRAME_BYTES]


def test_tx_without_wakeup_stays_on_the_ring() -> None:
    wire = Wire()
    wire.fill(1)
    wire.put(0, frame(0))
    wire.advance(MS)
    assert wire.receive(1) == []
    assert wire.next_ns == NEVER
    assert wire.wakeup(0) == 1
    wire.advance(MS)
    assert len(wire.receive(1)) == 1


def test_wakeup_with_empty_tx_is_no_system_call() -> None:
    wire = Wire()
    assert wire.wakeup(0) == 0
    assert wire.end(0).counters.wakeups == 0


def test_tx_full_takes_what_fits() -> None:
    wire = Wire(tx=4)
    descs = ffi.new("struct ix_desc[]", [{"addr": 40 * FRAME_BYTES, "len": 60}] * 6)
    assert wire.link(0).ops.tx_burst(wire.link(0), descs, 6) == 4
    assert wire.link(0).ops.tx_burst(wire.link(0), descs, 6) == 0
    wire.wakeup(0)
    assert wire.link(0).ops.tx_burst(wire.link(0), descs, 6) == 4


def test_fill_full_takes_what_fits() -> None:
    wire = Wire(fill=8)
    link = wire.link(1)
    assert link.ops.fill_room(link) == 8
    assert wire.fill(1, list(range(10))) == 8
    assert link.ops.fill_room(link) == 0
    wire.send(0, frame(0))
    wire.advance(0)
    assert link.ops.fill_room(link) == 1


def test_fill_empty_drops_and_counts() -> None:
    wire = Wire()
    wire.fill(1, [0, 1])
    wire.send(0, *(frame(i) for i in range(5)))
    wire.advance(0)
    assert [number_of(f) for f in wire.receive(1, refill=False)] == [0, 1]
    assert wire.counters().no_fill == 3
    wire.check()


def test_rx_full_drops_and_keeps_fill() -> None:
    wire = Wire(rx=4)
    wire.fill(1)
    wire.send(0, *(frame(i) for i in range(6)))
    room = wire.link(1).ops.fill_room(wire.link(1))
    wire.advance(0)
    assert wire.counters().rx_full == 2
    assert wire.link(1).ops.fill_room(wire.link(1)) == room + 4
    assert len(wire.receive(1)) == 4


def test_frame_longer_than_the_chunk_behind_headroom_is_dropped() -> None:
    wire = Wire()
    wire.fill(1)
    wire.send(0, frame(0, FRAME_BYTES - HEADROOM), frame(1, FRAME_BYTES - HEADROOM + 1))
    wire.advance(0)
    assert [number_of(f) for f in wire.receive(1)] == [0]
    assert wire.counters().too_long == 1


@pytest.mark.parametrize(
    ("addr", "size", "flags"),
    [
        (40 * FRAME_BYTES + 2000, 60, 0),  # leaves its chunk
        (64 * FRAME_BYTES, 60, 0),  # behind the UMEM
        (2**64 - 60, 60, 0),
        (40 * FRAME_BYTES, 2**32 - 1, 0),
        (40 * FRAME_BYTES, 13, 0),  # shorter than an Ethernet header
        (40 * FRAME_BYTES, 60, 1),
    ],
)
def test_invalid_tx_descriptor_is_skipped_and_never_completes(
    addr: int, size: int, flags: int
) -> None:
    wire = Wire()
    wire.put_desc(0, addr, size, flags)
    good = wire.put(0, frame(1))
    wire.wakeup(0)
    assert wire.complete(0) == [good]
    assert wire.end(0).counters.tx_invalid == 1
    assert wire.counters().sent == 1


def test_invalid_fill_address_is_skipped() -> None:
    wire = Wire()
    wire.fill(1, [64, 2])
    wire.send(0, frame(0))
    wire.advance(0)
    assert wire.rx_descs(1) == [(2 * FRAME_BYTES + HEADROOM, 60)]
    assert wire.end(1).counters.fill_invalid == 1


def test_completion_comes_in_order_with_the_address_as_it_was_put() -> None:
    wire = Wire()
    addrs = [50 * FRAME_BYTES + 128, 40 * FRAME_BYTES + 3]
    for addr in addrs:
        wire.put(0, frame(0), addr)
    assert wire.complete(0) == []
    wire.wakeup(0)
    assert wire.complete(0, most=1) == addrs[:1]
    assert wire.complete(0) == addrs[1:]


def test_completion_delayed_keeps_frames_in_flight() -> None:
    wire = Wire()
    wire.fill(1)
    wire.end(0).completion_delay_ns = 3 * MS
    addr = wire.put(0, frame(0))
    wire.wakeup(0)
    assert wire.next_ns == 0  # the arrival
    wire.advance(0)
    assert len(wire.receive(1)) == 1
    assert wire.next_ns == 3 * MS
    wire.advance(3 * MS - 1)
    assert wire.complete(0) == []
    assert not lib.ix_sim_end_ready(ffi.addressof(wire.end(0)))
    wire.advance(3 * MS)
    assert lib.ix_sim_end_ready(ffi.addressof(wire.end(0)))
    assert wire.complete(0) == [addr]
    assert wire.next_ns == NEVER


def test_completion_not_taken_stops_tx() -> None:
    wire = Wire(completion=2)
    wire.fill(1)
    for number in range(3):
        wire.put(0, frame(number))
    wire.wakeup(0)
    wire.advance(MS)
    assert len(wire.receive(1)) == 2
    assert wire.next_ns == NEVER
    assert len(wire.complete(0)) == 2
    assert wire.next_ns == MS  # room again: the sending that was begun goes on
    wire.advance(MS)
    assert [number_of(f) for f in wire.receive(1)] == [2]


def test_tx_budget_leaves_the_rest_for_later() -> None:
    wire = Wire()
    wire.fill(1)
    wire.end(0).tx_budget = 2
    for number in range(5):
        wire.put(0, frame(number))
    wire.wakeup(0)
    assert wire.counters().sent == 2
    wire.wakeup(0)
    assert wire.counters().sent == 4
    wire.advance(wire.next_ns)
    assert wire.counters().sent == 5
    assert [number_of(f) for f in wire.receive(1)] == list(range(5))


def test_end_down_refuses_wakeup_and_drops_arrivals_until_up_again() -> None:
    wire = Wire()
    wire.fill(0)
    wire.fill(1)
    lib.ix_sim_end_set_down(ffi.addressof(wire.end(1)), True)
    wire.put(1, frame(9))
    assert wire.wakeup(1) == -lib.IX_ENETDOWN
    wire.send(0, frame(0))
    wire.advance(0)
    assert wire.counters().link_down == 1
    lib.ix_sim_end_set_down(ffi.addressof(wire.end(1)), False)
    assert wire.wakeup(1) == 1
    wire.send(0, frame(1))
    wire.advance(0)
    assert [number_of(f) for f in wire.receive(0)] == [9]
    assert [number_of(f) for f in wire.receive(1)] == [1]


# ---- watching how frames are treated ---------------------------------------------------------


def test_frame_changed_while_it_is_sent_is_noticed() -> None:
    wire = Wire()
    addr = wire.put(0, frame(0))
    other = wire.put(0, frame(1))
    wire.wakeup(0)
    wire.umem[0][addr + 59] ^= 1
    wire.umem[0][other + 60] ^= 1  # behind the frame: nobody's business
    wire.complete(0)
    assert wire.end(0).counters.tx_modified == 1


def test_chunk_given_twice_or_given_and_sent_is_noticed() -> None:
    wire = Wire()
    wire.fill(0, [1, 2])
    assert wire.end(0).counters.misuse == 0
    wire.fill(0, [1])
    assert wire.end(0).counters.misuse == 1
    wire.put(0, frame(0), 2 * FRAME_BYTES)  # on FILL: may be written at any time
    assert wire.end(0).counters.misuse == 2
    sent = wire.put(0, frame(0))
    wire.fill(0, [sent // FRAME_BYTES])  # still being read by the link
    assert wire.end(0).counters.misuse == 3


def test_chunk_received_sent_completed_and_filled_again_is_no_misuse() -> None:
    wire = Wire()
    wire.fill(1, [0])
    for number in range(3):
        wire.send(0, frame(number))
        wire.advance(0)
        ((addr, size),) = wire.rx_descs(1)
        assert wire.put_desc(1, addr, size) and wire.put_desc(1, addr, size)  # sent back, twice
        wire.wakeup(1)
        assert wire.complete(1) == [addr, addr]
        wire.fill(1, [0])
    for i in range(2):
        assert wire.end(i).counters.misuse == wire.end(i).counters.tx_modified == 0


# ---- time -----------------------------------------------------------------------------------


def test_delay_is_exact() -> None:
    wire = Wire(now_ns=10 * MS)
    wire.path(delay_ns=5 * MS)
    wire.fill(1)
    wire.send(0, frame(0))
    assert wire.next_ns == 15 * MS
    wire.advance(15 * MS - 1)
    assert wire.receive(1) == []
    assert lib.ix_sim_wire_in_flight(wire.w, 0) == 1
    wire.advance(15 * MS)
    assert len(wire.receive(1)) == 1


def test_clock_going_backward_stands_still() -> None:
    wire = Wire(now_ns=10 * MS)
    wire.advance(5 * MS)
    assert wire.w.now_ns == 10 * MS


def test_rate_spaces_frames_by_their_bytes() -> None:
    wire = Wire()
    wire.path(rate_bytes_per_s=1_000_000, delay_ns=7)  # 1 us a byte
    wire.fill(1)
    wire.send(0, frame(0, 100), frame(1, 1000), frame(2, 50))
    due = []
    while wire.next_ns != NEVER:
        due.append(wire.next_ns)
        wire.advance(wire.next_ns)
    assert due == [100_007, 1_100_007, 1_150_007]


def test_queue_full_overflows_until_the_rate_has_let_frames_go() -> None:
    wire = Wire()
    wire.path(rate_bytes_per_s=1_000_000, queue_frames=3)
    wire.fill(1)
    wire.send(0, *(frame(i, 100) for i in range(5)))
    assert wire.counters().overflow == 2
    wire.advance(100_000)  # the first has left
    wire.send(0, frame(5, 100), frame(6, 100))
    assert wire.counters().overflow == 3
    wire.advance(MS)
    assert [number_of(f) for f in wire.receive(1)] == [0, 1, 2, 5]


def test_wire_full_overflows() -> None:
    wire = Wire(wire_frames=4)
    wire.path(delay_ns=MS)
    wire.fill(1)
    wire.send(0, *(frame(i) for i in range(6)))
    assert wire.counters().overflow == 2
    wire.advance(MS)
    assert len(wire.receive(1)) == 4
    wire.send(0, frame(6))
    assert wire.counters().overflow == 2


def test_jitter_spreads_arrivals_without_reordering() -> None:
    wire = Wire()
    wire.path(delay_ns=MS, jitter_ns=MS)
    wire.fill(1)
    delays = []
    for number in range(200):
        wire.send(0, frame(number))
        start = wire.w.now_ns
        wire.advance(wire.next_ns)
        delays.append(wire.w.now_ns - start)
        assert [number_of(f) for f in wire.receive(1)] == [number]
    assert MS <= min(delays) < 1.1 * MS
    assert 1.9 * MS < max(delays) <= 2 * MS
    # Far closer to each other than the jitter is wide, but in order all the same.
    arrived = run(wire, 200, gap_ns=MS // 20)
    assert [number_of(f) for f in arrived] == list(range(200))


# ---- faults ---------------------------------------------------------------------------------


def test_drop_by_number_drops_exactly_those() -> None:
    wire = Wire()
    wire.path(drop=[0, 3, 4, 100], faults_until_ns=1)
    wire.fill(1)
    assert [number_of(f) for f in run(wire, 6)] == [1, 2, 5]
    assert wire.counters().dropped == 3


def test_loss_has_its_rate_and_everything_else_arrives_in_order() -> None:
    wire = Wire(seed=5)
    wire.path(loss_ppm=PPM // 5)
    wire.fill(1)
    numbers = [number_of(f) for f in run(wire, 2000)]
    assert numbers == sorted(set(numbers))
    assert wire.counters().lost == 2000 - len(numbers)
    assert 320 < wire.counters().lost < 480


def test_loss_burst_loses_at_least_that_many_in_a_row() -> None:
    wire = Wire(seed=5)
    wire.path(loss_ppm=PPM // 100, loss_burst_frames=5)
    wire.fill(1)
    arrived = {number_of(f) for f in run(wire, 1500)}
    fates = "".join("." if n in arrived else "x" for n in range(1500))
    bursts = [b for b in fates.strip("x").split(".") if b]  # but what the end cut off
    assert len(bursts) > 5
    assert min(map(len, bursts)) == 5


def test_loss_certain_loses_all_and_never_loses_none() -> None:
    wire = Wire()
    wire.fill(1)
    wire.path(loss_ppm=PPM)
    assert run(wire, 20) == []
    wire.path(loss_ppm=0)
    assert len(run(wire, 20)) == 20


def test_dup_arrives_twice_with_the_same_bytes() -> None:
    wire = Wire(seed=2)
    wire.path(dup_ppm=PPM // 4)
    wire.fill(1)
    arrived = run(wire, 400)
    assert len(arrived) == 400 + wire.counters().dup
    assert 60 < wire.counters().dup < 140
    assert {number_of(f) for f in arrived} == set(range(400))
    assert all(f == frame(number_of(f)) for f in arrived)


def test_reorder_holds_frames_back_for_the_given_time() -> None:
    wire = Wire(seed=4)
    wire.path(delay_ns=10_000, reorder_ppm=PPM // 10, reorder_hold_ns=5000)
    wire.fill(1)
    numbers = [number_of(f) for f in run(wire, 400, gap_ns=1000)]
    assert sorted(numbers) == list(range(400))
    late = [n for i, n in enumerate(numbers) if i and n < max(numbers[:i])]
    assert len(late) > 10
    assert len(late) <= wire.counters().reordered < 80
    # Held for 5 frame times: overtaken by 5 frames (or 4, at once with the 5th), unless some of
    # those are held themselves.
    assert all(1 <= max(numbers[: numbers.index(n)]) - n <= 5 for n in late)


def test_corrupt_flips_one_bit_behind_the_ethernet_header() -> None:
    wire = Wire(seed=6)
    wire.path(corrupt_ppm=PPM)
    wire.fill(1)
    seen = set()
    for number in range(300):
        sent = frame(number)
        wire.send(0, sent)
        wire.advance(0)
        (got,) = wire.receive(1)
        changed = [(i, a ^ b) for i, (a, b) in enumerate(zip(sent, got, strict=True)) if a != b]
        assert len(changed) == 1
        assert changed[0][0] >= 14
        assert changed[0][1].bit_count() == 1
        seen.add(changed[0][0])
    assert wire.counters().corrupted == 300
    assert min(seen) == 14 and max(seen) == 59


def test_corrupt_spares_what_no_checksum_covers() -> None:
    wire = Wire()
    wire.path(corrupt_ppm=PPM)
    wire.fill(1)
    arp, short = frame(0, ethertype=0x0806), frame(0, 14)
    wire.send(0, arp, short)
    wire.advance(0)
    assert wire.receive(1) == [arp, short]
    assert wire.counters().corrupted == 0


def test_corrupt_frame_duplicated_arrives_once_intact() -> None:
    wire = Wire()
    wire.path(corrupt_ppm=PPM, dup_ppm=PPM)
    wire.fill(1)
    wire.send(0, frame(1))
    wire.advance(0)
    got = wire.receive(1)
    assert len(got) == 2
    assert got.count(frame(1)) == 1


def test_held_frame_duplicated_arrives_once_in_time() -> None:
    wire = Wire()
    wire.path(reorder_ppm=PPM, reorder_hold_ns=MS, dup_ppm=PPM)
    wire.fill(1)
    wire.send(0, frame(1))
    arrivals = []
    while wire.next_ns != NEVER:
        wire.advance(wire.next_ns)
        arrivals += [(wire.w.now_ns, f) for f in wire.receive(1)]
    assert arrivals == [(0, frame(1)), (MS, frame(1))]


def test_faults_stop_at_their_time() -> None:
    wire = Wire()
    wire.path(loss_ppm=PPM, dup_ppm=PPM, corrupt_ppm=PPM, faults_until_ns=50_000)
    wire.fill(1)
    arrived = run(wire, 100, gap_ns=1000)
    assert arrived == [frame(n) for n in range(50, 100)]


FAULTS = {
    "loss_ppm": PPM // 10,
    "dup_ppm": PPM // 10,
    "reorder_ppm": PPM // 10,
    "corrupt_ppm": PPM // 10,
}
TIMES = {"delay_ns": 10_000, "jitter_ns": 3_000, "reorder_hold_ns": 20_000}


def fates(seed: int, direction: int = 0, **fields: int) -> list[bytes]:
    wire = Wire(seed)
    wire.path(direction, **(FAULTS | TIMES | fields))
    wire.fill(1 - direction)
    return run(wire, 300, direction=direction)


def test_run_repeats_exactly_with_the_same_seed_only() -> None:
    assert fates(1) == fates(1)
    assert fates(1) != fates(2)
    assert fates(1) != fates(1, direction=1)


@pytest.mark.parametrize("off", [f for f in FAULTS if f != "loss_ppm"])
def test_fault_switched_off_leaves_the_losses_as_they_were(off: str) -> None:
    assert {number_of(f) for f in fates(1, corrupt_ppm=0)} == {
        number_of(f) for f in fates(1, corrupt_ppm=0, **{off: 0} if off != "corrupt_ppm" else {})
    }


def test_fate_does_not_depend_on_frames_of_the_other_direction() -> None:
    alone = fates(1)
    wire = Wire(1)
    wire.path(0, **FAULTS, **TIMES)
    wire.path(1, **FAULTS, **TIMES)
    wire.fill(0)
    wire.fill(1)
    arrived = []
    for number in range(300):
        wire.send(0, frame(number))
        wire.send(1, frame(number + 1000))
        wire.advance(wire.w.now_ns + 1000)
        wire.receive(0)
        arrived += wire.receive(1)
    wire.advance(2**40)
    arrived += wire.receive(1)
    assert sorted(arrived) == sorted(alone)


# ---- set-up -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("fill_entries", 0),
        ("rx_entries", 3),
        ("tx_entries", 1 << 17),
        ("completion_entries", 48),
        ("frame_shift", 10),
        ("frame_shift", 13),
        ("umem_bytes", 0),
        ("umem_bytes", FRAME_BYTES + 1),
        ("rx_headroom", FRAME_BYTES),
    ],
)
def test_senseless_setup_is_refused(field: str, value: int) -> None:
    wire = Wire()
    setattr(wire.setup.end[1], field, value)
    assert lib.ix_sim_wire_bytes(wire.setup) == 0
    assert lib.ix_sim_wire_init(wire.w, wire.setup, wire.memory) == -lib.IX_EINVAL


@pytest.mark.parametrize("frames", [0, 3, 1 << 17])
def test_senseless_wire_length_is_refused(frames: int) -> None:
    wire = Wire()
    wire.setup.wire_frames = frames
    assert lib.ix_sim_wire_bytes(wire.setup) == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("loss_ppm", PPM + 1),
        ("dup_ppm", PPM + 1),
        ("reorder_ppm", PPM + 1),
        ("corrupt_ppm", PPM + 1),
        ("loss_burst_frames", lib.IX_SIM_BURST_MAX + 1),
        ("drops", lib.IX_SIM_DROPS_MAX + 1),
    ],
)
def test_senseless_path_is_refused(field: str, value: int) -> None:
    wire = Wire()
    path = ffi.new("struct ix_sim_path *", {field: value})
    assert lib.ix_sim_wire_set_path(wire.w, 0, path) == -lib.IX_EINVAL
    path = ffi.new("struct ix_sim_path *")
    assert lib.ix_sim_wire_set_path(wire.w, 2, path) == -lib.IX_EINVAL


@pytest.mark.parametrize("what", ["vanished", "slot lost", "slot twice", "heap", "ring"])
def test_check_finds_damage(what: str) -> None:
    wire = Wire()
    wire.path(delay_ns=MS)
    wire.send(0, frame(0))
    wire.advance(1)
    wire.send(0, frame(1))
    direction = wire.w.direction[0]
    if what == "vanished":
        direction.counters.sent += 1
    elif what == "slot lost":
        direction.free_slot = direction.slots[direction.free_slot].next
    elif what == "slot twice":
        direction.slots[direction.free_slot].next = direction.free_slot
    elif what == "heap":
        direction.slots[direction.heap[1]].due_ns = 0
    else:
        wire.end(0).rx.head = 65
    assert lib.ix_sim_wire_check(wire.w) != ffi.NULL
