"""native/plan.c: the frames that a shard will receive into first."""

from __future__ import annotations

import errno

from tests.unit.san import ffi, lib
from tests.unit.simwire import Wire, aligned


def test_planned_frames_are_those_that_the_shard_gives_away() -> None:
    wire = Wire(frames=2048, ring=64)
    cfg = ffi.new("struct ix_config *")
    cfg.pool_frames, cfg.max_flows, cfg.fill_target = 1024, 64, 256
    nbytes = lib.ix_shard_bytes(cfg)
    raw = aligned(nbytes + 4096)
    memory = raw + -int(ffi.cast("uintptr_t", raw)) % 4096
    link = ffi.addressof(wire.w.end[0], "link")
    planned, given = ffi.new("uint64_t[]", 256), ffi.new("uint64_t[]", 256)
    n = lib.ix_plan_fill(memory, nbytes, cfg, link.umem, link.umem_bytes, 11, 256, planned)
    assert n == 256
    assert not any(ffi.buffer(memory, nbytes)[:]), "as if nothing had been there"
    assert lib.ix_shard_create(memory, nbytes, cfg, link, given) != ffi.NULL
    assert list(planned) == list(given)
    assert len(set(planned)) == 256
    cfg.mtu = 9000
    assert lib.ix_plan_fill(memory, nbytes, cfg, link.umem, link.umem_bytes, 11, 256, planned) == (
        -errno.EINVAL
    )
