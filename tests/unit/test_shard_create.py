"""shard/create: a shard's memory, and what a configuration may say."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.peer import Peer, Stack, pages, stream
from tests.unit.san import ffi, lib
from tests.unit.simwire import FRAME_BYTES, Wire

GOOD = {"pool_frames": 1024, "arena_frames": 16, "max_flows": 16}


def config(**fields: Any) -> Any:
    return ffi.new("struct ix_config *", GOOD | fields)


def create(wire: Wire, cfg: Any, *, less: int = 0, fill: Any = ffi.NULL) -> tuple[Any, Any]:
    """The shard (or NULL) and its memory."""
    size = lib.ix_shard_bytes(cfg)
    memory = pages(size)
    return lib.ix_shard_create(memory, size - less, cfg, wire.link(0), fill), memory


def test_defaults_are_put_into_the_configuration() -> None:
    cfg = config(max_flows=0)
    assert lib.ix_shard_bytes(cfg) > 0
    assert (cfg.shard_count, cfg.max_flows, cfg.batch, cfg.mtu) == (1, 65536, 64, 1500)
    assert (cfg.max_events, cfg.max_calls, cfg.max_timers) == (1024, 1024, 1024)
    assert (cfg.rcvbuf_bytes, cfg.sndbuf_bytes, cfg.time_wait_ms) == (262144, 1048576, 60000)
    assert (cfg.fill_target, cfg.max_extents) == (512, 4096)


@pytest.mark.parametrize(
    "fields",
    [
        {"shard_id": 1},
        {"shard_id": 4, "shard_count": 4},
        {"max_flows": lib.IX_FLOWS_MAX + 1},
        {"max_events": 63},
        {"max_events": 2**20 + 1},
        {"max_calls": 63},
        {"max_calls": 2**20 + 1},
        {"max_timers": lib.IX_APP_TIMERS_MAX + 1},
        {"pool_frames": lib.IX_POOL_FRAMES_MIN - 1},
        {"pool_frames": lib.IX_FRAMES_MAX + 1},
        {"arena_frames": lib.IX_FRAMES_MAX + 1},
        {"batch": 257},
        {"fill_target": 1024 - 64 + 1},
        {"fill_max": 1024 - 64 + 1},
        {"fill_target": 100, "fill_max": 99},
        {"rcvbuf_bytes": 535},
        {"rcvbuf_bytes": 2**30 + 1},
        {"sndbuf_bytes": 535},
        {"sndbuf_bytes": 2**30 + 1},
        {"mtu": 575},
        {"port_lo": 2, "port_hi": 1},
        {"rss_key_bytes": 65},
        {"rss_table_len": 513},
    ],
)
def test_configuration_that_cannot_be_is_refused(fields: dict[str, int]) -> None:
    cfg = config(**fields)
    assert lib.ix_shard_bytes(cfg) == 0
    wire = Wire(frames=1040)
    assert lib.ix_shard_create(pages(4096), 4096, cfg, wire.link(0), ffi.NULL) == ffi.NULL


def test_size_is_whole_pages_and_grows_with_what_it_holds() -> None:
    small = lib.ix_shard_bytes(config())
    assert small % 4096 == 0
    for name in (
        "max_flows",
        "max_events",
        "max_calls",
        "max_timers",
        "pool_frames",
        "max_extents",
    ):
        assert lib.ix_shard_bytes(config(**{name: 8192})) > small, name


def test_too_little_memory_is_refused() -> None:
    shard, _ = create(Wire(frames=1040), config(), less=1)
    assert shard == ffi.NULL


@pytest.mark.parametrize("frames", [1024, 1032])
def test_umem_too_small_is_refused(frames: int) -> None:
    shard, _ = create(Wire(frames=frames), config())
    assert shard == ffi.NULL


def test_no_link_is_refused() -> None:
    cfg = config()
    size = lib.ix_shard_bytes(cfg)
    assert lib.ix_shard_create(pages(size), size, cfg, ffi.NULL, ffi.NULL) == ffi.NULL


@pytest.mark.parametrize("mtu, fits", [(1500, True), (2048 - 14 - 128, True), (2048, False)])
def test_mtu_must_fit_a_frame(mtu: int, fits: bool) -> None:
    shard, _ = create(Wire(frames=1040), config(mtu=mtu))
    assert (shard != ffi.NULL) == fits


def test_frames_for_the_fill_ring_are_handed_out_at_creation() -> None:
    cfg = config(fill_target=100)
    fill = ffi.new("uint64_t[]", 100)
    shard, memory = create(Wire(frames=1040), cfg, fill=fill)
    addresses = list(fill)
    assert len(set(addresses)) == 100
    assert all(a % FRAME_BYTES == 0 and a < 1024 * FRAME_BYTES for a in addresses)
    assert lib.ix_shard_stats(shard).frames_fill == 100
    assert lib.ix_shard_check(shard) == ffi.NULL
    assert memory is not None


def test_shared_arrays_lie_on_pages_of_their_own_at_the_end() -> None:
    # What the application may write must not share a page with what only the dataplane may.
    cfg = config()
    size = lib.ix_shard_bytes(cfg)
    shard, memory = create(Wire(frames=1040), cfg)
    base = int(ffi.cast("uintptr_t", memory))
    io = lib.ix_shard_io(shard)
    at = int(ffi.cast("uintptr_t", io)) - base
    assert at % 4096 == 0
    ends = []
    for array, count, kind in (
        (io.events, io.max_events, "struct ix_event"),
        (io.calls, io.max_calls, "struct ix_call"),
    ):
        start = int(ffi.cast("uintptr_t", array)) - base
        assert start % 64 == 0 and start >= at + ffi.sizeof("struct ix_io")
        ends.append(start + count * ffi.sizeof(kind))
    assert size - 4096 < max(ends) <= size
    for private in ("flows", "extents", "recs", "recoveries"):
        assert int(ffi.cast("uintptr_t", getattr(shard.tcp, private))) - base < at
    assert int(ffi.cast("uintptr_t", shard.frames.meta)) - base < at


def test_io_tells_the_application_where_things_are() -> None:
    io = Stack(pool=2048, arena=32).io
    assert (io.arena_frame, io.arena_frames, io.frame_shift) == (2048, 32, 11)
    assert io.umem_bytes == 2080 * FRAME_BYTES
    assert io.tx_headroom == lib.IX_TX_HEADROOM


def conversation(secret: int) -> list[bytes]:
    stack = Stack(listen=80, secret=secret)
    peer = Peer(stack, ts=True, sack_ok=True)
    handle = peer.connect()
    stack.stream(handle, 0, 5000)
    peer.send("A", stream(100, 10), seq=100)
    stack.sleep(ms=500)
    return list(stack.sent)


def test_same_secret_and_clock_give_the_same_frames() -> None:
    assert conversation(1) == conversation(1) != conversation(2)


def test_two_shards_do_not_know_each_other() -> None:
    a, b = Stack(listen=80), Stack(listen=80, secret=2)
    pa, pb = Peer(a), Peer(b)
    ha, hb = pa.connect(), pb.connect()
    pa.send("PA", b"for a")
    pb.send("R")
    a.expect("RECV", handle=ha, data=b"for a")
    b.expect("DEAD", handle=hb)
    assert a.state(ha) == "ESTABLISHED"
