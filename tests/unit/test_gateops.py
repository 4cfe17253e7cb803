"""native/gateops: outside of a guest there is no gate, and every operation says so.

What they do in a guest is tested in one: tests/dune/test_placement.py."""

from __future__ import annotations

import errno

from tests.unit.san import ffi, lib


def test_without_a_gate_every_operation_fails() -> None:
    app = ffi.new("struct ix_app *")
    stats = ffi.new("struct ix_stats *")
    app.stats = stats
    ops = lib.ix_app_gate_ops()
    ip = bytes(16)
    handle = ffi.new("uint64_t *", 5)
    assert ops.poll(app, 0) == -errno.ENOSYS
    assert ops.may_sleep_ns(app, 0) == 0
    assert ops.listen(app, ip, 4, 80, 1, 0) == -errno.ENOSYS
    assert ops.unlisten(app, ip, 4, 80) == -errno.ENOSYS
    assert ops.udp_bind(app, ip, 4, 80, 1, handle) == -errno.ENOSYS
    assert handle[0] == 5
    assert ops.udp_unbind(app, 5) == -errno.ENOSYS
    assert ops.stats(app) == stats
