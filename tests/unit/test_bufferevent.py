"""native/bufferevent.c: what a connection does with each event, call and result."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from tests.unit.evfake import ALL, READ, WRITE, Loop, pattern, text
from tests.unit.san import ffi, lib

READING, WRITING = lib.IX_BEV_READING, lib.IX_BEV_WRITING
EOF, ERROR, TIMEOUT = lib.IX_BEV_EOF, lib.IX_BEV_ERROR, lib.IX_BEV_TIMEOUT
FLUSH, DROP, ABORT = lib.IX_BEV_FLUSH, lib.IX_BEV_DROP, lib.IX_BEV_ABORT
CONNECTED = lib.IX_EVLOOP_CONNECTED


def bury(loop: Loop, conn: int) -> None:
    """The dataplane reports the end of a connection that was closed here."""
    loop.fake.ack(conn)
    loop.fake.die(conn)


def echo(bev: Any) -> None:
    assert (
        lib.ix_evbuffer_add_buffer(ffi.addressof(bev, "output"), ffi.addressof(bev, "input")) == 0
    )


def add(bev: Any, data: bytes) -> None:
    assert lib.ix_evbuffer_add(ffi.addressof(bev, "output"), data, len(data)) == 0


def received(bev: Any) -> bytes:
    return text(ffi.addressof(bev, "input"))


def drain(bev: Any, size: int = ALL) -> None:
    lib.ix_evbuffer_drain(ffi.addressof(bev, "input"), size)


# ---- a connection's life


def test_knock_is_accepted_and_its_addresses_are_known() -> None:
    loop = Loop()
    conn, bev = loop.accept()
    assert bev.state == lib.IX_BEV_OPEN
    assert (bytes(bev.peer[0:4]), bev.peer_port) == (b"\x0a\0\0\2", 40000 + conn)
    assert (bytes(bev.local[0:4]), bev.local_port) == (b"\x0a\0\0\1", 7)
    loop.close(bev)
    loop.turn()
    bury(loop, conn)
    loop.end()


def test_echoed_frame_is_lent_until_sent_covers_all_of_it() -> None:
    loop = Loop()
    conn, bev = loop.accept()
    loop.fake.send(conn, b"hello")
    loop.turn()
    assert loop.read == [bev.index]
    echo(bev)
    loop.turn()
    assert loop.fake.got(conn) == b"hello"
    loop.fake.ack(conn, 4)
    loop.turn(3)
    assert loop.fake.called("RECV_DONE") == 0
    loop.fake.ack(conn)
    loop.turn(2)
    assert loop.fake.called("RECV_DONE") == 1
    assert loop.fake.called("SENDV") == 1
    loop.close(bev)
    loop.turn()
    bury(loop, conn)
    loop.end()


def test_unread_input_holds_the_window_and_drained_input_opens_it() -> None:
    loop = Loop()
    conn, bev = loop.accept()
    loop.fake.send(conn, pattern(1000), 400)
    loop.turn(2)
    assert loop.fake.lent_bytes(conn) == 1000
    drain(bev, 500)
    loop.turn()
    assert loop.fake.lent_bytes(conn) == 500
    assert received(bev) == pattern(500, 500)
    loop.close(bev)
    loop.turn()
    bury(loop, conn)
    loop.end()


def test_accept_that_fails_is_an_error_event() -> None:
    loop = Loop()
    loop.fake.c.accept_error = errno.ENOENT
    _, bev = loop.accept()
    assert loop.late == [(bev.index, ERROR | READING)]
    assert bev.error == errno.ECONNABORTED
    loop.close(bev)
    loop.end()


def test_dead_between_knock_and_accept_is_an_error_event() -> None:
    loop = Loop()
    conn = loop.fake.knock()
    loop.fake.die(conn, -errno.ECONNRESET)  # told with the listener's cookie
    loop.turn()
    ((index, _),) = loop.early
    bev = lib.ix_evloop_at(loop.c, index)
    loop.turn()
    assert loop.late == [(index, ERROR | READING)]
    loop.close(bev)
    loop.end()


def test_accepted_and_at_once_aborted_is_rejected() -> None:
    loop = Loop()
    loop.fake.knock()
    loop.turn()
    loop.close(lib.ix_evloop_at(loop.c, loop.early[0][0]), ABORT)
    loop.turn()
    assert (loop.fake.called("REJECT"), loop.fake.called("ACCEPT")) == (1, 0)
    loop.end()


def test_accepted_and_at_once_closed_is_accepted_then_closed() -> None:
    loop = Loop()
    conn = loop.fake.knock()
    loop.turn()
    loop.close(lib.ix_evloop_at(loop.c, loop.early[0][0]))
    loop.turn()
    assert loop.fake.fins(conn) == 2
    bury(loop, conn)
    loop.end()


# ---- connecting


def connect(loop: Loop, port: int = 80) -> Any:
    bev = lib.ix_evloop_bev(loop.c)
    lib.ix_bev_enable(bev, READ)
    lib.ix_bev_want(bev, READ | WRITE)
    assert lib.ix_bev_connect(bev, 4, b"\x0a\0\0\2", port) == 0
    return bev


def test_connect_sends_what_was_written_before() -> None:
    loop = Loop()
    bev = connect(loop)
    add(bev, b"early")
    loop.turn(2)
    assert bev.state == lib.IX_BEV_CONNECTING
    conn = loop.fake.connected(80)
    loop.turn()
    assert loop.early == [(bev.index, CONNECTED)]
    assert (loop.late, bev.local_port) == ([], 50000)
    loop.turn()
    assert loop.fake.got(conn) == b"early"
    loop.close(bev)
    loop.turn()
    bury(loop, conn)
    loop.end()


def test_connect_refused_is_an_error_event() -> None:
    loop = Loop()
    bev = connect(loop)
    loop.turn()
    loop.fake.connected(80, -errno.ECONNREFUSED)
    loop.turn()
    assert loop.late == [(bev.index, ERROR | READING)]
    assert bev.error == errno.ECONNREFUSED
    loop.close(bev)
    loop.end()


def test_connect_call_that_fails_is_an_error_event() -> None:
    loop = Loop()
    loop.fake.c.connect_error = errno.EADDRNOTAVAIL
    bev = connect(loop)
    loop.turn()
    assert loop.late == [(bev.index, ERROR | READING)]
    assert bev.error == errno.EADDRNOTAVAIL
    loop.close(bev)
    loop.end()


def test_connect_twice_is_refused() -> None:
    loop = Loop()
    bev = connect(loop)
    assert lib.ix_bev_connect(bev, 4, b"\x0a\0\0\2", 81) == -errno.EISCONN
    loop.turn()
    assert lib.ix_bev_connect(bev, 4, b"\x0a\0\0\2", 81) == -errno.EISCONN
    loop.close(bev, ABORT)
    loop.turn(2)
    loop.end()


def test_closed_while_connecting_gives_up_at_once() -> None:
    loop = Loop()
    bev = connect(loop)
    loop.turn()
    loop.close(bev)
    loop.turn()
    assert loop.fake.called("ABORT") == 1
    loop.end()


def test_closed_while_connecting_with_output_delivers_it() -> None:
    loop = Loop()
    bev = connect(loop)
    add(bev, b"parting")
    loop.turn()
    loop.close(bev)
    loop.turn()
    conn = loop.fake.connected(80)
    loop.turn(4)
    assert (loop.fake.got(conn), loop.fake.fins(conn)) == (b"parting", 2)
    bury(loop, conn)
    loop.end()


def test_never_connected_is_closed_without_a_call() -> None:
    loop = Loop()
    loop.close(lib.ix_evloop_bev(loop.c))
    loop.turn()
    assert sum(loop.fake.c.calls) == 0
    loop.end()


# ---- output and back-pressure


@pytest.mark.parametrize("most", [1, 7, 700])
def test_sendv_that_takes_a_part_loses_and_doubles_nothing(most: int) -> None:
    loop = Loop()
    conn, bev = loop.accept()
    loop.fake.c.sendv_max = most
    data = pattern(most * 9 + 3)
    loop.fake.send(conn, data, 2 * most)
    loop.turn()
    echo(bev)
    add(bev, b"tail")
    for _ in range(120):
        loop.turn()
        loop.fake.ack(conn)
    assert loop.fake.got(conn) == data + b"tail"
    loop.close(bev)
    loop.turn()
    bury(loop, conn)
    loop.end()


def test_full_send_buffer_waits_for_sent() -> None:
    loop = Loop()
    conn, bev = loop.accept()
    loop.fake.c.sndbuf_bytes = 1000
    add(bev, pattern(3000))
    loop.turn(4)
    assert (len(loop.fake.got(conn)), bev.output.bytes, bev.blocked) == (1000, 2000, 1)
    sendv = loop.fake.called("SENDV")
    loop.turn(5)
    assert loop.fake.called("SENDV") == sendv
    for _ in range(6):
        loop.fake.ack(conn)
        loop.turn(2)
    assert loop.fake.got(conn) == pattern(3000)
    loop.close(bev)
    loop.turn()
    bury(loop, conn)
    loop.end()


def test_each_sent_makes_room_for_as_much() -> None:
    loop = Loop()
    conn, bev = loop.accept()
    loop.fake.c.sndbuf_bytes = 1000
    add(bev, pattern(3000))
    loop.turn(2)
    for acked in (300, 600):
        loop.fake.ack(conn, 300)
        loop.turn(2)
        assert len(loop.fake.got(conn)) == 1000 + acked
    loop.close(bev, ABORT)
    loop.turn()
    loop.end()


def test_refused_with_nothing_in_flight_is_tried_again() -> None:
    loop = Loop()
    conn, bev = loop.accept()
    loop.fake.c.refuse_sendv = 5
    add(bev, b"again")
    loop.turn(8)
    assert loop.fake.got(conn) == b"again"
    loop.close(bev)
    loop.turn()
    bury(loop, conn)
    loop.end()


def test_small_array_of_calls_delays_and_loses_nothing() -> None:
    loop = Loop(calls=4, frames=64)
    peers = [loop.accept() for _ in range(6)]
    for conn, _ in peers:
        loop.fake.send(conn, pattern(50, conn), 10)
    loop.turn()
    assert sorted(loop.read) == sorted(bev.index for _, bev in peers)
    for _, bev in peers:
        echo(bev)
    for _ in range(40):
        loop.turn()
        for conn, _ in peers:
            loop.fake.ack(conn)
    for conn, bev in peers:
        assert loop.fake.got(conn) == pattern(50, conn)
        loop.close(bev)
    loop.turn(4)
    for conn, _ in peers:
        bury(loop, conn)
    loop.turn(8)
    loop.end()


def test_more_than_the_arena_holds_is_sent_in_the_end() -> None:
    loop = Loop(arena=4)
    conn, bev = loop.accept()
    data = pattern(60_000)
    add(bev, data)
    for _ in range(60):
        loop.turn()
        loop.fake.ack(conn)
    assert loop.fake.got(conn) == data
    loop.close(bev)
    loop.turn()
    bury(loop, conn)
    loop.end()


def test_peer_that_stopped_reading_leaves_arena_frames_to_others() -> None:
    loop = Loop(arena=8)
    (_, slow_bev), (quick, quick_bev) = loop.accept(), loop.accept()
    add(slow_bev, pattern(40_000))
    loop.turn(3)
    data = pattern(20_000)
    add(quick_bev, data)
    for _ in range(20):
        loop.turn()
        loop.fake.ack(quick)
    assert loop.fake.got(quick) == data
    for bev in (slow_bev, quick_bev):
        loop.close(bev, ABORT)
    loop.turn(2)
    loop.end()


def test_starved_of_arena_frames_goes_on_when_others_free_some() -> None:
    loop = Loop(arena=4)
    hogs = [loop.accept() for _ in range(3)]
    for _, bev in hogs:
        add(bev, pattern(1448 * 2))
    loop.turn(2)
    assert loop.c.pool.arena_free_count == 0
    conn, bev = loop.accept()
    add(bev, b"me too")
    loop.turn(3)
    assert loop.fake.got(conn) == b""
    for hog, _ in hogs:
        loop.fake.ack(hog)
    loop.turn(3)
    assert loop.fake.got(conn) == b"me too"
    for _, each in [*hogs, (conn, bev)]:
        loop.close(each, ABORT)
    loop.turn(2)
    loop.end()


def test_bytes_taken_behind_a_gap_abort_the_connection() -> None:
    loop = Loop()
    conn, bev = loop.accept()
    loop.fake.c.refuse_sendv = 1
    loop.fake.send(conn, b"abcdef", 3)
    loop.turn()
    echo(bev)  # two frames: the first SENDV takes nothing, the second all
    loop.turn(2)
    assert loop.fake.called("ABORT") == 1
    assert (loop.late, bev.error) == ([(bev.index, ERROR | READING)], errno.EPROTO)
    loop.close(bev)
    loop.end()


def test_write_disabled_holds_output_back() -> None:
    loop = Loop()
    conn, bev = loop.accept()
    lib.ix_bev_disable(bev, WRITE)
    add(bev, b"later")
    loop.turn(3)
    assert loop.fake.got(conn) == b""
    lib.ix_bev_enable(bev, WRITE)
    loop.turn()
    assert loop.fake.got(conn) == b"later"
    loop.close(bev)
    loop.turn()
    bury(loop, conn)
    loop.end()


def test_write_callback_is_due_at_the_low_watermark() -> None:
    loop = Loop()
    conn, bev = loop.accept()
    loop.fake.c.sndbuf_bytes = 100
    lib.ix_bev_set_watermark(bev, WRITE, 150, 0)
    add(bev, pattern(400))
    due = []
    for _ in range(5):
        loop.turn()
        due.append((bev.output.bytes, loop.write == [bev.index]))
        loop.fake.ack(conn)
        loop.turn()
        due.append((bev.output.bytes, loop.write == [bev.index]))
    assert [d for size, d in due if size > 150] == [False] * 4
    assert (100, True) in due and (0, True) in due
    loop.close(bev)
    loop.turn()
    bury(loop, conn)
    loop.end()


# ---- input: watermarks, READ off


def test_read_callback_is_due_from_the_low_watermark_on() -> None:
    loop = Loop()
    conn, bev = loop.accept()
    lib.ix_bev_set_watermark(bev, READ, 10, 0)
    loop.fake.send(conn, pattern(9))
    loop.turn()
    assert loop.read == []
    loop.fake.send(conn, b"x")
    loop.turn()
    assert loop.read == [bev.index]
    loop.close(bev)
    loop.turn()
    bury(loop, conn)
    loop.end()


def test_high_watermark_bounds_input_and_the_rest_follows() -> None:
    loop = Loop()
    conn, bev = loop.accept()
    lib.ix_bev_set_watermark(bev, READ, 0, 100)
    loop.fake.send(conn, pattern(250), 60)
    seen = b""
    for _ in range(5):
        loop.turn()
        assert bev.input.bytes <= 100
        assert (loop.read == [bev.index]) == bool(bev.input.bytes)
        seen += received(bev)
        drain(bev)
    assert seen == pattern(250)
    loop.close(bev)
    loop.turn()
    bury(loop, conn)
    loop.end()


def test_read_disabled_shows_nothing_until_enabled() -> None:
    loop = Loop()
    conn, bev = loop.accept(enable=WRITE)
    loop.fake.send(conn, b"secret")
    loop.fake.fin(conn)
    loop.turn()
    assert (loop.read, loop.late, bev.input.bytes) == ([], [], 0)
    lib.ix_bev_enable(bev, READ)
    loop.turn()
    assert (loop.read, loop.late) == ([bev.index], [(bev.index, EOF | READING)])
    assert received(bev) == b"secret"
    loop.close(bev)
    loop.turn()
    bury(loop, conn)
    loop.end()


def test_eof_waits_for_input_behind_the_high_watermark() -> None:
    loop = Loop()
    conn, bev = loop.accept()
    lib.ix_bev_set_watermark(bev, READ, 0, 4)
    loop.fake.send(conn, b"abcdef")
    loop.fake.fin(conn)
    loop.turn()
    assert (loop.read, loop.late) == ([bev.index], [])
    drain(bev)
    loop.turn()
    assert (loop.read, loop.late) == ([bev.index], [(bev.index, EOF | READING)])
    loop.turn(3)
    assert loop.late == []
    loop.close(bev)
    loop.turn()
    bury(loop, conn)
    loop.end()


def test_without_callback_nothing_is_listed() -> None:
    loop = Loop()
    conn, bev = loop.accept(want=0)
    loop.fake.send(conn, b"abc")
    add(bev, b"def")
    loop.turn(2)
    assert (loop.read, loop.write) == ([], [])
    lib.ix_bev_want(bev, READ)
    lib.ix_bev_trigger(bev, READ | WRITE)
    loop.turn()
    assert (loop.read, loop.write) == ([bev.index], [])
    loop.close(bev)
    loop.turn()
    bury(loop, conn)
    loop.end()


# ---- ends


def test_close_delivers_output_first() -> None:
    loop = Loop()
    conn, bev = loop.accept()
    loop.fake.c.sndbuf_bytes = 10
    add(bev, pattern(35))
    loop.close(bev)
    for _ in range(6):
        loop.turn(3)
        assert (loop.fake.fins(conn) == 2) == (len(loop.fake.got(conn)) == 35)
        loop.fake.ack(conn)
    assert loop.fake.got(conn) == pattern(35)
    bury(loop, conn)
    loop.end()


def test_drop_ends_without_what_was_not_taken() -> None:
    loop = Loop()
    conn, bev = loop.accept()
    loop.fake.c.sndbuf_bytes = 10
    add(bev, pattern(35))
    loop.turn()
    loop.close(bev, DROP)
    loop.turn()
    assert (len(loop.fake.got(conn)), loop.fake.fins(conn)) == (10, 2)
    bury(loop, conn)
    loop.end()


def test_abort_resets_and_gives_everything_back() -> None:
    loop = Loop()
    conn, bev = loop.accept()
    loop.fake.send(conn, pattern(100), 10)
    loop.turn()
    echo(bev)
    loop.turn()
    loop.fake.send(conn, pattern(100), 10)
    loop.turn()
    loop.close(bev, ABORT)
    loop.turn(2)
    assert loop.fake.called("ABORT") == 1
    loop.end()


def test_close_with_write_disabled_still_delivers() -> None:
    loop = Loop()
    conn, bev = loop.accept()
    lib.ix_bev_disable(bev, WRITE)
    add(bev, b"bye")
    loop.close(bev)
    loop.turn(3)
    assert (loop.fake.got(conn), loop.fake.fins(conn)) == (b"bye", 2)
    bury(loop, conn)
    loop.end()


def test_data_for_a_closed_bufferevent_is_given_back() -> None:
    loop = Loop()
    conn, bev = loop.accept()
    loop.close(bev)
    loop.fake.send(conn, pattern(100))
    loop.turn(2)
    loop.fake.send(conn, pattern(100))
    loop.turn(2)
    assert loop.fake.lent_bytes(conn) == 0
    bury(loop, conn)
    loop.end()


def test_shutdown_ends_output_and_input_goes_on() -> None:
    loop = Loop()
    conn, bev = loop.accept()
    add(bev, b"last")
    lib.ix_bev_shutdown(bev)
    loop.turn(3)
    assert (loop.fake.got(conn), loop.fake.fins(conn)) == (b"last", 1)
    loop.fake.send(conn, b"still")
    loop.fake.fin(conn)
    loop.fake.ack(conn)
    loop.fake.die(conn)
    loop.turn()
    assert (loop.read, loop.late) == ([bev.index], [(bev.index, EOF | READING)])
    assert received(bev) == b"still"
    assert lib.ix_bev_shutdown(bev) == -errno.ENOTCONN
    loop.close(bev)
    loop.end()


def test_reset_in_the_middle_gives_everything_back_and_is_told_once() -> None:
    loop = Loop()
    conn, bev = loop.accept()
    loop.fake.c.sndbuf_bytes = 25
    loop.fake.send(conn, pattern(100), 10)
    loop.turn()
    echo(bev)
    loop.turn()
    loop.fake.send(conn, b"unread")
    loop.fake.die(conn, -errno.ECONNRESET)
    loop.turn()
    assert loop.late == [(bev.index, ERROR | READING)]
    assert (bev.error, bev.output.bytes, bev.inflight.bytes) == (errno.ECONNRESET, 0, 0)
    assert received(bev) == b"unread"
    echo(bev)  # to a dead connection: dropped
    add(bev, b"more")
    loop.turn(2)
    assert (bev.output.bytes, loop.late) == (0, [])
    loop.close(bev)
    loop.end()


def test_death_of_a_closed_connection_is_not_told() -> None:
    loop = Loop()
    conn, bev = loop.accept()
    loop.close(bev)
    loop.turn()
    loop.fake.die(conn, -errno.ECONNRESET)
    loop.turn()
    assert loop.late == []
    loop.end()


def test_close_that_meets_a_dead_connection_ends() -> None:
    loop = Loop()
    conn, bev = loop.accept()
    loop.fake.die(conn, -errno.ETIMEDOUT)  # its DEAD comes with the poll that runs CLOSE
    loop.close(bev)
    loop.turn()
    assert loop.late == []
    loop.end()


def test_void_pointer_is_refused_everywhere() -> None:
    null = ffi.NULL
    for refused in (
        lib.ix_bev_enable(null, READ),
        lib.ix_bev_disable(null, READ),
        lib.ix_bev_want(null, READ),
        lib.ix_bev_set_watermark(null, READ, 0, 0),
        lib.ix_bev_set_timeouts(null, 0, 0),
        lib.ix_bev_option(null, 1, 0),
        lib.ix_bev_trigger(null, READ),
        lib.ix_bev_shutdown(null),
        lib.ix_bev_connect(null, 4, b"abcd", 1),
        lib.ix_bev_close(null, FLUSH),
    ):
        assert refused == -errno.EBADF


# ---- options and timeouts


def test_options_are_set_once_open() -> None:
    loop = Loop()
    bev = connect(loop)
    assert lib.ix_bev_option(bev, lib.IX_OPT_NODELAY, 0) == 0
    assert lib.ix_bev_option(bev, lib.IX_OPT_KEEPALIVE_NS, 5) == 0
    assert lib.ix_bev_option(bev, 0, 1) == lib.ix_bev_option(bev, 10, 1) == -errno.EINVAL
    loop.turn()
    conn = loop.fake.connected(80)
    loop.turn(2)
    option = loop.fake.c.conns[conn].option
    assert (option[lib.IX_OPT_NODELAY], option[lib.IX_OPT_KEEPALIVE_NS]) == (0, 5)
    loop.close(bev, ABORT)
    loop.turn()
    loop.end()


def tick(loop: Loop, seconds: float) -> list[tuple[int, int]]:
    loop.fake.advance(seconds)
    loop.turn()
    return loop.late


def test_read_timeout_counts_from_the_last_data() -> None:
    loop = Loop()
    conn, bev = loop.accept()
    lib.ix_bev_set_timeouts(bev, 10**9, 0)
    assert tick(loop, 0.9) == []
    loop.fake.send(conn, b"x")
    assert tick(loop, 0.05) == []
    assert tick(loop, 0.9) == []
    assert tick(loop, 0.2) == [(bev.index, TIMEOUT | READING)]
    assert not bev.enabled & READ
    assert tick(loop, 5) == []
    lib.ix_bev_enable(bev, READ)
    assert tick(loop, 0.9) == []
    assert tick(loop, 0.2) == [(bev.index, TIMEOUT | READING)]
    loop.close(bev, ABORT)
    loop.turn()
    loop.end()


def test_write_timeout_counts_while_something_is_unacknowledged() -> None:
    loop = Loop()
    conn, bev = loop.accept()
    lib.ix_bev_set_timeouts(bev, 0, 10**9)
    assert tick(loop, 5) == []
    add(bev, pattern(10))
    loop.turn()
    assert tick(loop, 0.9) == []
    loop.fake.ack(conn, 5)
    loop.turn()
    assert tick(loop, 0.9) == []
    assert tick(loop, 0.2) == [(bev.index, TIMEOUT | WRITING)]
    assert not bev.enabled & WRITE
    loop.close(bev, ABORT)
    loop.turn()
    loop.end()


def test_timeout_ends_with_the_connection() -> None:
    loop = Loop()
    conn, bev = loop.accept()
    lib.ix_bev_set_timeouts(bev, 10**9, 10**9)
    loop.fake.die(conn, -errno.ECONNRESET)
    loop.turn()
    assert tick(loop, 5) == []
    loop.close(bev)
    loop.end()
