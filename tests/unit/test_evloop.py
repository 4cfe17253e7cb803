"""native/evloop.c: turns, lists of what is due, records used anew."""

from __future__ import annotations

import errno
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.evfake import READ, WRITE, Loop, pattern, text
from tests.unit.san import ffi, lib

MORE = 1 << 32


def end_all(loop: Loop, *bevs: Any) -> None:
    for bev in bevs:
        loop.close(bev, lib.IX_BEV_ABORT)
    loop.turn(2)
    loop.end()


def test_turn_returns_reads_and_whether_there_is_more() -> None:
    loop = Loop()
    (a, bev_a), (b, bev_b) = loop.accept(), loop.accept()
    assert loop.turn() == 0
    loop.fake.send(a, b"x")
    loop.fake.send(b, b"x")
    assert loop.turn() == 2
    loop.fake.send(a, b"x")
    loop.fake.fin(b)
    assert loop.turn() == 1 + MORE
    loop.fake.knock(7)
    assert loop.turn() == MORE
    assert loop.early[0][1] == 7
    end_all(loop, bev_a, bev_b, lib.ix_evloop_at(loop.c, loop.early[0][0]))


def test_connection_with_many_frames_is_listed_once() -> None:
    loop = Loop()
    conn, bev = loop.accept()
    loop.fake.send(conn, pattern(50), 1)
    loop.turn()
    assert loop.read == [bev.index]
    loop.turn()
    assert loop.read == []
    end_all(loop, bev)


def test_waiting_turn_ends_when_something_is_due_or_time_is_over() -> None:
    loop = Loop()
    conn, bev = loop.accept()
    turns = loop.c.turns
    assert lib.ix_evloop_turn(loop.c, 20_000) == 0  # the clock moves a microsecond a look
    assert 10 < loop.c.turns - turns < 30
    loop.fake.send(conn, b"x")
    turns = loop.c.turns
    assert lib.ix_evloop_turn(loop.c, 10**9) == 1
    assert loop.c.turns - turns == 1
    end_all(loop, bev)


def test_stop_ends_a_turn_and_the_calls_are_kept() -> None:
    loop = Loop()
    conn, bev = loop.accept()
    stop = ffi.new("uint32_t *", 1)
    output = ffi.addressof(bev, "output")
    lib.ix_evbuffer_add(output, b"last words", 10)
    loop.fake.app.stop = stop
    assert loop.turn() == -1
    assert loop.turn() == -1
    stop[0] = 0
    loop.turn(2)
    assert loop.fake.got(conn) == b"last words"
    end_all(loop, bev)


def test_timers_run_out_in_order_and_bound_the_wait() -> None:
    loop = Loop()
    timers = ffi.new("struct ix_evtimer[3]")
    for i, delay in enumerate((30_000, 10_000, 20_000)):
        timers[i].id = i
        assert lib.ix_evloop_timer_set(loop.c, ffi.addressof(timers, i), delay) == 0
    assert lib.ix_evloop_active(loop.c)
    lib.ix_evloop_timer_cancel(loop.c, ffi.addressof(timers, 2))
    order = []
    while lib.ix_evloop_active(loop.c):
        assert lib.ix_evloop_turn(loop.c, 10**12) == MORE
        order += ffi.unpack(loop.c.timers_due, loop.c.timers_due_count)
    assert order == [1, 0]
    loop.end()


def test_many_timers_at_once_are_all_listed() -> None:
    loop = Loop()
    timers = ffi.new("struct ix_evtimer[300]")
    for i in range(300):
        timers[i].id = i
        lib.ix_evloop_timer_set(loop.c, ffi.addressof(timers, i), 0)
    loop.fake.advance(1)
    loop.turn()
    assert sorted(loop.timers) == list(range(300))
    loop.end()


def test_record_is_used_anew_under_another_generation() -> None:
    loop = Loop()
    conn, bev = loop.accept()
    first = (bev.index, bev.generation)
    loop.fake.send(conn, b"late")  # on its way when the connection is aborted
    loop.close(bev, lib.IX_BEV_ABORT)
    loop.turn(3)
    conn, again = loop.accept()
    assert (again.index, again.generation) == (first[0], first[1] + 1)
    assert again.input.bytes == 0
    end_all(loop, again)


def test_event_of_an_old_generation_touches_nothing() -> None:
    loop = Loop()
    conn, bev = loop.accept()
    old = loop.fake.c.conns[conn].cookie
    loop.close(bev, lib.IX_BEV_ABORT)
    loop.turn(3)
    conn, again = loop.accept()
    loop.fake.c.conns[conn].cookie, cookie = old, loop.fake.c.conns[conn].cookie
    loop.fake.send(conn, b"stray")
    loop.turn(2)
    assert (again.input.bytes, loop.fake.lent_bytes(conn)) == (0, 0)
    loop.fake.c.conns[conn].cookie = cookie
    end_all(loop, again)


def test_many_connections_at_once() -> None:
    loop = Loop(events=256, calls=256, frames=1024)
    conns = [loop.fake.knock() for _ in range(300)]
    accepted = []
    for _ in range(3):
        loop.turn()
        accepted += [lib.ix_evloop_at(loop.c, i) for i, _ in loop.early]
    assert len({bev.index for bev in accepted}) == 300
    for bev in accepted:
        lib.ix_bev_enable(bev, READ)
        lib.ix_bev_want(bev, READ)
    loop.turn(2)
    for conn in conns:
        loop.fake.send(conn, b"x")
    read: list[int] = []
    for _ in range(2):
        loop.turn()
        read += loop.read
    assert sorted(read) == sorted(bev.index for bev in accepted)
    for bev in accepted:
        loop.close(bev, lib.IX_BEV_ABORT)
    loop.turn(4)
    loop.end()


def test_active_until_the_last_connection_has_ended() -> None:
    loop = Loop()
    assert not lib.ix_evloop_active(loop.c)
    conn, bev = loop.accept()
    loop.close(bev)
    loop.turn(2)
    assert lib.ix_evloop_active(loop.c)
    loop.fake.die(conn)
    loop.turn(2)
    assert not lib.ix_evloop_active(loop.c)
    loop.end()


# ---- random peers and a random application, against a model of every stream


class Model:
    """Connections whose peers and application do random things; checks both streams of each."""

    def __init__(self, calls: int, arena: int) -> None:
        self.loop = Loop(calls=calls, arena=arena, frames=96, events=16)
        self.live: dict[int, dict[str, Any]] = {}  # by the fake's number

    def step(self, what: str, which: int, size: int) -> None:
        if what == "accept":
            if len(self.live) < 5:
                conn, bev = self.loop.accept()
                self.live[conn] = {"bev": bev, "sent": 0, "read": 0, "written": b""}
            return
        if what == "turn":
            self.loop.turn(1 + size % 3)
            return
        if self.live:
            conn = sorted(self.live)[which % len(self.live)]
            getattr(self, what)(conn, self.live[conn], size)

    def send(self, conn: int, c: dict[str, Any], size: int) -> None:
        data = pattern(size, c["sent"])
        c["sent"] += lib.ix_fake_send(self.loop.fake.c, conn, data, size, 1 + size // 3)

    def ack(self, conn: int, _: dict[str, Any], size: int) -> None:
        self.loop.fake.ack(conn, size)

    def read(self, _: int, c: dict[str, Any], size: int) -> None:
        b = ffi.addressof(c["bev"], "input")
        data = text(b)[:size]
        assert data == pattern(len(data), c["read"])
        c["read"] += len(data)
        lib.ix_evbuffer_drain(b, size)

    def echo(self, _: int, c: dict[str, Any], size: int) -> None:
        bev = c["bev"]
        data = text(ffi.addressof(bev, "input"))[:size]
        moved = lib.ix_evbuffer_remove_buffer(
            ffi.addressof(bev, "input"), ffi.addressof(bev, "output"), size
        )
        assert moved == len(data)
        c["read"] += moved
        c["written"] += data

    def write(self, _: int, c: dict[str, Any], size: int) -> None:
        data = pattern(size, 7)
        assert lib.ix_evbuffer_add(ffi.addressof(c["bev"], "output"), data, size) == 0
        c["written"] += data

    def limit(self, _: int, c: dict[str, Any], size: int) -> None:
        lib.ix_bev_set_watermark(c["bev"], READ, 0, size)

    def toggle(self, _: int, c: dict[str, Any], size: int) -> None:
        bev, which = c["bev"], (READ, WRITE)[size % 2]
        turn = lib.ix_bev_disable if bev.enabled & which else lib.ix_bev_enable
        turn(bev, which)

    def faults(self, _: int, __: dict[str, Any], size: int) -> None:
        fake = self.loop.fake.c
        fake.sendv_max = size % 50
        fake.sndbuf_bytes = 0 if size % 3 else 1 + size

    def abort(self, conn: int, c: dict[str, Any], _: int) -> None:
        self.loop.close(c["bev"], lib.IX_BEV_ABORT)
        del self.live[conn]

    def reset(self, conn: int, c: dict[str, Any], _: int) -> None:
        self.loop.fake.die(conn, -errno.ECONNRESET)
        self.loop.turn()
        self.loop.close(c["bev"])
        del self.live[conn]
        self.loop.turn()

    def finish(self) -> None:
        """Without faults all that was written arrives, and all that was sent can be read."""
        fake = self.loop.fake
        fake.c.sendv_max = fake.c.sndbuf_bytes = 0
        for c in self.live.values():
            lib.ix_bev_set_watermark(c["bev"], READ, 0, 0)
            lib.ix_bev_enable(c["bev"], READ | WRITE)
        for _ in range(400):
            self.loop.turn()
            for conn, c in self.live.items():
                fake.ack(conn)
                self.read(conn, c, 1 << 20)
        for conn, c in self.live.items():
            assert fake.got(conn) == c["written"]
            assert c["read"] == c["sent"]
            self.loop.close(c["bev"], lib.IX_BEV_ABORT)
        self.loop.turn(20)
        self.loop.end()


ACTIONS = [
    "accept", "turn", "turn", "send", "send", "ack", "ack", "read", "echo", "echo", "write",
    "limit", "toggle", "faults", "abort", "reset",
]  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([4, 9, 64]),
    st.sampled_from([2, 5, 16]),
    st.lists(
        st.tuples(
            st.sampled_from(ACTIONS),
            st.integers(0, 4),
            st.one_of(st.integers(0, 60), st.integers(0, 3000)),
        ),
        max_size=60,
    ),
)
def test_streams_are_whole_whatever_happens(
    calls: int, arena: int, steps: list[tuple[str, int, int]]
) -> None:
    model = Model(calls, arena)
    model.step("accept", 0, 0)
    for step in steps:
        model.step(*step)
    model.finish()


def test_turn_of_a_chain_is_one_cycle_of_each_loop() -> None:
    first, second = Loop(), Loop()
    lib.ix_evloop_chain(first.c, second.c)
    assert first.turn() == 0
    assert (first.c.turns, second.c.turns) == (1, 1)
    conn = second.fake.knock()
    assert first.turn() == MORE
    assert (first.c.early_count, second.c.early_count) == (0, 1)
    bev = lib.ix_evloop_at(second.c, second.c.early[0])
    lib.ix_bev_enable(bev, READ)
    lib.ix_bev_want(bev, READ)
    first.turn()
    second.fake.send(conn, b"x")
    assert first.turn() == MORE, "the reads of another loop are no reads of the first"
    assert second.c.read_count == 1
    assert first.turn() == 0 and second.c.read_count == 0
    assert lib.ix_evloop_active(first.c) == 1
    second.close(bev)
    first.turn()
    second.fake.die(conn)
    first.turn(2)
    assert lib.ix_evloop_active(first.c) == 0
    first.end()
    second.end()


def test_stop_in_the_middle_of_a_chain_comes_after_what_is_due() -> None:
    first, second = Loop(), Loop()
    lib.ix_evloop_chain(first.c, second.c)
    first.turn()
    stop = ffi.new("uint32_t *", 1)
    second.fake.app.stop = stop
    first.fake.knock()
    assert first.turn() == MORE
    first.fake.app.stop = stop
    assert first.turn() == -1
