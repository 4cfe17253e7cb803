"""ixnet.event on a fake dataplane: what callbacks see, and when."""

from __future__ import annotations

import errno
import gc
import itertools
import signal
import weakref
from typing import Any

import pytest

from tests.event.sanitized import Server, event
from tests.unit.evfake import pattern

EV_READ, EV_WRITE = event.EV_READ, event.EV_WRITE
EOF, ERROR, READING = event.BEV_EVENT_EOF, event.BEV_EVENT_ERROR, event.BEV_EVENT_READING
TIMEOUT, CONNECTED = event.BEV_EVENT_TIMEOUT, event.BEV_EVENT_CONNECTED


class Recorder:
    """Callbacks that write down what they were called with."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def on_read(self, bev: Any) -> None:
        self.calls.append(("read", bev.index))

    def on_write(self, bev: Any) -> None:
        self.calls.append(("write", bev.index))

    def on_event(self, bev: Any, events: int) -> None:
        self.calls.append((events, bev.index))

    def accept(self, _: Any, bev: Any) -> None:
        bev.setcb(self.on_read, self.on_write, self.on_event)
        bev.enable(EV_READ)


def echo_server(**fake: int) -> Server:
    def on_read(bev: Any) -> None:
        bev.output.add_buffer(bev.input)

    def on_accept(_: Any, bev: Any) -> None:
        bev.setcb(on_read)
        bev.enable(EV_READ)

    return Server(on_accept, **fake)


# ---- connections


def test_echo_sends_back_what_came() -> None:
    server = echo_server()
    peers = [server.connect()[0] for _ in range(3)]
    for round_ in range(4):
        for conn in peers:
            server.fake.send(conn, pattern(900, 900 * round_), 100)
        server.turn(2)
        for conn in peers:
            server.fake.ack(conn)
    for conn in peers:
        assert server.fake.got(conn) == pattern(3600)
    server.end()


def test_eof_without_event_callback_delivers_output_and_closes() -> None:
    server = echo_server()
    conn, bev = server.connect()
    server.fake.send(conn, b"last")
    server.fake.fin(conn)
    server.turn(3)
    assert (server.fake.got(conn), server.fake.fins(conn), bev.closed) == (b"last", 2, True)
    server.fake.ack(conn)
    server.fake.die(conn)
    server.end()


def test_callbacks_of_a_turn_come_data_first_then_its_end() -> None:
    seen = Recorder()
    server = Server(seen.accept)
    conn, bev = server.connect()
    server.fake.send(conn, b"x")
    server.fake.fin(conn)
    bev.write(b"y")
    server.turn()
    assert seen.calls == [("read", 0), ("write", 0), (EOF | READING, 0)]
    server.end()


def test_error_event_says_why() -> None:
    seen = Recorder()
    server = Server(seen.accept)
    conn, bev = server.connect()
    server.fake.die(conn, -errno.ETIMEDOUT)
    server.turn()
    assert seen.calls == [(ERROR | READING, 0)]
    assert bev.error == errno.ETIMEDOUT
    bev.close()
    server.end()


def test_connect_tells_connected_then_data() -> None:
    seen = Recorder()
    server = Server()
    bev = event.BufferEvent(server.base)
    bev.setcb(seen.on_read, None, seen.on_event)
    bev.enable(EV_READ)
    bev.connect(("10.0.0.9", 99))
    with pytest.raises(OSError, match="connected"):
        bev.connect(("10.0.0.9", 99))
    server.turn()
    conn = server.fake.connected(99)
    server.fake.send(conn, b"hi")
    server.turn()
    assert seen.calls == [(CONNECTED, bev.index), ("read", bev.index)]
    assert bev.getpeername() == ("10.0.0.9", 99)
    assert bev.getsockname() == ("10.0.0.1", 50000)
    server.end()


@pytest.mark.parametrize("address", [("example", 1), ("10.0.0", 1), ("10.0.0.1", 0), ("::1::", 1)])
def test_connect_refuses_what_is_no_address(address: tuple[str, int]) -> None:
    server = Server()
    with pytest.raises(ValueError, match="not a"):
        event.BufferEvent(server.base).connect(address)
    server.end()


def test_closed_bufferevent_refuses_everything_and_closing_twice_does_nothing() -> None:
    server = echo_server()
    conn, bev = server.connect()
    assert bev.getpeername() == ("10.0.0.2", 40000)
    server.fake.send(conn, b"abc")
    server.turn()
    bev.close()
    bev.close()
    bev.abort()
    assert (bev.closed, bev.error, len(bev.input), len(bev.output)) == (True, 0, 0, 0)
    assert bev.read() == b""
    assert "closed" in repr(bev)
    other = event.Buffer(server.base)
    other.add(b"kept")
    for refused in (
        lambda: bev.write(b"x"),
        lambda: bev.output.add(b"x"),
        lambda: bev.output.prepend(b"x"),
        lambda: bev.output.add_buffer(other),
        lambda: other.remove_buffer(bev.output, 2),
        lambda: bev.enable(EV_READ),
        lambda: bev.disable(EV_READ),
        lambda: bev.setcb(),
        lambda: bev.setwatermark(EV_READ),
        lambda: bev.set_timeouts(1),
        lambda: bev.set_nodelay(True),
        lambda: bev.trigger(EV_READ),
        lambda: bev.shutdown(),
        lambda: bev.connect(("10.0.0.1", 1)),
    ):
        with pytest.raises(BrokenPipeError):
            refused()
    with pytest.raises(OSError, match="not connected"):
        bev.getpeername()
    assert other.remove() == b"kept"
    server.turn(3)
    server.fake.ack(conn)
    server.fake.die(conn)
    server.end()


def test_connection_that_another_callback_closed_gets_no_more_callbacks() -> None:
    server = Server()
    bevs: list[Any] = []
    calls = []

    def on_read(bev: Any) -> None:
        calls.append(bev)
        for other in bevs:
            if other is not bev:
                other.abort()

    for _ in range(3):
        bev = server.connect()[1]
        bev.setcb(on_read)
        bev.enable(EV_READ)
        bevs.append(bev)
    for conn in range(3):
        server.fake.send(conn, b"x")
    server.turn()
    assert calls == [bevs[0]]
    server.end()


def test_write_of_each_kind_of_bytes() -> None:
    server = Server()
    conn, bev = server.connect()
    for data in (b"ab", bytearray(b"cd"), memoryview(b"xefx")[1:3], b""):
        bev.write(data)
        bev.output.add(data)
    server.turn()
    assert server.fake.got(conn) == b"ababcdcdefef"
    with pytest.raises(TypeError):
        bev.write("text")
    server.end()


def test_shutdown_free_and_abort_reach_the_dataplane() -> None:
    server = Server()
    ends = {}
    for how in ("shutdown", "free", "abort"):
        conn, bev = server.connect()
        server.fake.c.sndbuf_bytes = 1
        bev.write(b"abc")
        server.turn()
        server.fake.c.sndbuf_bytes = 0
        getattr(bev, how)()
        server.turn(2)
        ends[how] = (server.fake.got(conn), server.fake.fins(conn))
        if how == "shutdown":
            server.fake.ack(conn)
            server.turn(3)
            ends[how] = (server.fake.got(conn), server.fake.fins(conn))
    assert ends == {"shutdown": (b"abc", 1), "free": (b"a", 2), "abort": (b"a", 0)}
    assert server.fake.called("ABORT") == 1
    for conn in range(2):
        server.fake.die(conn)
    server.end()


def test_options_reach_the_dataplane() -> None:
    server = Server()
    conn, bev = server.connect()
    bev.set_nodelay(False)
    bev.set_keepalive(1.5)
    bev.set_user_timeout(2)
    server.turn()
    assert list(server.fake.c.conns[conn].option)[1:4] == [0, 1_500_000_000, 2_000_000_000]
    server.end()


def test_watermarks_and_trigger() -> None:
    seen = Recorder()
    server = Server(seen.accept)
    conn, bev = server.connect()
    bev.setwatermark(EV_READ, 3, 5)
    server.fake.send(conn, b"ab")
    server.turn()
    assert seen.calls == []
    server.fake.send(conn, b"cdefg")
    server.turn()
    assert (seen.calls, len(bev.input)) == ([("read", 0)], 5)
    bev.trigger(EV_READ | EV_WRITE)
    server.turn()
    assert seen.calls[1:] == [("read", 0), ("write", 0)]
    server.end()


def test_read_timeout_is_an_event() -> None:
    seen = Recorder()
    server = Server(seen.accept)
    _, bev = server.connect()
    bev.set_timeouts(read=0.5)
    server.fake.advance(0.4)
    server.turn()
    assert seen.calls == []
    server.fake.advance(0.2)
    server.turn()
    assert seen.calls == [(TIMEOUT | READING, 0)]
    with pytest.raises(ValueError, match="negative"):
        bev.set_timeouts(-1)
    server.end()


def test_closed_bufferevents_are_let_go() -> None:
    server = echo_server()
    _, bev = server.connect()
    gone = weakref.ref(bev)
    bev.ctx = {"a cycle": bev}
    bev.abort()
    server.accepted.clear()
    del bev
    server.turn(2)
    gc.collect()
    assert gone() is None
    server.end()


def test_record_used_anew_is_another_bufferevent() -> None:
    server = echo_server()
    _, first = server.connect()
    first.abort()
    server.turn(2)
    conn, second = server.connect()
    assert (second.index, first.closed, second.closed) == (first.index, True, False)
    first.abort()
    server.fake.send(conn, b"abc")
    server.turn(2)
    assert server.fake.got(conn) == b"abc"
    server.end()


# ---- errors in callbacks


def test_exception_aborts_its_connection_and_the_others_go_on(capsys: Any) -> None:
    server = Server()
    del server.base.on_error

    def on_read(bev: Any) -> None:
        if bev.read() == b"bad":
            raise RuntimeError("no such luck")
        bev.write(b"fine")

    for _ in range(2):
        bev = server.connect()[1]
        bev.setcb(on_read)
        bev.enable(EV_READ)
    server.base.on_error = event.EventBase._report
    server.fake.send(0, b"bad")
    server.fake.send(1, b"good")
    server.turn(2)
    assert server.accepted[0].closed
    assert server.fake.called("ABORT") == 1
    assert server.fake.got(1) == b"fine"
    err = capsys.readouterr().err
    assert "RuntimeError: no such luck" in err and "on_read" in err
    server.end()


@pytest.mark.parametrize("where", ["accept", "write", "event", "timer"])
def test_on_error_hears_of_every_kind_of_callback(where: str) -> None:
    def fail(*_: object) -> None:
        raise KeyError(where)

    def on_accept(listener: Any, bev: Any) -> None:
        bev.setcb(None, fail if where == "write" else None, fail if where == "event" else None)
        bev.enable(EV_READ)
        if where == "accept":
            fail()

    server = Server(on_accept)
    heard = []
    server.base.on_error = lambda bev, error: heard.append((bev is None, type(error)))
    conn, bev = server.connect()
    if where == "write":
        bev.write(b"x")
    elif where == "event":
        server.fake.fin(conn)
    elif where == "timer":
        server.base.timer(0, fail)
    server.turn(2)
    assert heard == [(where == "timer", KeyError)]
    assert bev.closed == (where != "timer")
    server.end()


def test_on_error_that_raises_leaves_the_loop_and_loses_nothing() -> None:
    server = Server()  # its on_error raises
    calls = []

    def on_read(bev: Any) -> None:
        calls.append(bev.index)
        if bev.index == 1:
            raise RuntimeError("out")

    for _ in range(4):
        bev = server.connect()[1]
        bev.setcb(on_read)
        bev.enable(EV_READ)
    for conn in range(4):
        server.fake.send(conn, b"x")
    with pytest.raises(RuntimeError, match="out"):
        server.turn()
    assert calls == [0, 1]
    server.turn()
    assert calls == [0, 1, 2, 3]
    server.end()


# ---- the loop


def test_dispatch_ends_when_nothing_is_left() -> None:
    server = echo_server()
    _, bev = server.connect()
    server.listener.close()
    server.listener.close()
    ran = []
    server.base.timer(0.001, lambda _: (ran.append(1), bev.abort()))
    assert server.base.dispatch() == 1
    assert ran == [1]
    assert server.base.loop(event.EVLOOP_NONBLOCK | event.EVLOOP_NO_EXIT_ON_EMPTY) == 0
    server.end()


def test_dispatch_goes_on_until_closed_connections_are_delivered() -> None:
    server = echo_server()
    conn, bev = server.connect()
    server.listener.close()
    bev.write(b"bye")
    bev.close()
    delivered = []

    def look(_: Any) -> None:
        delivered.append((server.fake.got(conn), server.fake.fins(conn)))
        server.fake.die(conn)

    server.base.timer(0.001, look)
    assert server.base.dispatch() == 1
    assert delivered == [(b"bye", 2)]
    server.end()


def test_knock_for_a_closed_listener_is_rejected() -> None:
    server = echo_server()
    server.fake.knock(server.listener._id)
    server.listener.close()
    server.turn(0)
    server.base.loop(event.EVLOOP_NONBLOCK | event.EVLOOP_NO_EXIT_ON_EMPTY)
    server.base.loop(event.EVLOOP_NONBLOCK | event.EVLOOP_NO_EXIT_ON_EMPTY)
    assert server.fake.called("REJECT") == 1
    server.end()


def test_loopexit_runs_what_is_due_and_loopbreak_does_not() -> None:
    server = Server()
    calls = []

    def on_read(bev: Any) -> None:
        calls.append(bev.index)
        if len(calls) == 2:
            (server.base.loopbreak if breaking else server.base.loopexit)()

    for _ in range(4):
        bev = server.connect()[1]
        bev.setcb(on_read)
        bev.enable(EV_READ)
    for breaking in (False, True):
        calls.clear()
        for conn in range(4):
            server.fake.send(conn, b"x")
        assert server.base.dispatch() == 0
        assert calls == ([0, 1] if breaking else [0, 1, 2, 3])
    calls.append(9)  # so that the others do not break again
    server.turn()
    assert calls == [0, 1, 9, 2, 3]
    server.end()


def test_loopbreak_keeps_accepted_connections_and_events() -> None:
    server = Server(lambda *_: server.base.loopbreak())
    for _ in range(3):
        server.fake.knock(server.listener._id)
    for n in range(1, 4):
        server.base.dispatch()
        assert len(server.accepted) == n
    server.end()


def test_loopexit_after_a_time() -> None:
    server = echo_server()
    start = server.base.now
    server.base.loopexit(0.01)
    assert server.base.dispatch() == 0
    assert 0.01 <= server.base.now - start < 0.02
    server.end()


def test_loop_once_waits_for_the_first_callback() -> None:
    server = echo_server()
    ran = []
    server.base.timer(0.01, lambda _: ran.append(1))
    assert server.base.loop(event.EVLOOP_ONCE) == 0
    assert ran == [1]
    server.end()


def test_loop_in_a_callback_is_refused() -> None:
    server = echo_server()
    heard = []
    server.base.on_error = lambda _, error: heard.append(str(error))
    server.base.timer(0, lambda _: server.base.dispatch())
    server.turn(2)
    assert heard == ["the loop is running"]
    server.end()


def test_keyboard_interrupt_leaves_a_quiet_loop() -> None:
    server = echo_server()
    server.fake.c.step_ns = 100_000  # half a thousand looks at the clock are a slice

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        with pytest.raises(KeyboardInterrupt):
            server.base.dispatch()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    server.turn()
    server.end()


def test_stop_of_the_worker_ends_dispatch() -> None:
    server = echo_server()
    stop = event.ffi.new("uint32_t *", 1)
    server.fake.app.stop = stop
    assert server.base.dispatch() == 0
    server.fake.app.stop = event.ffi.NULL
    server.end()


def test_base_without_arena_is_refused() -> None:
    server = Server()
    server.fake.c.io.arena_frames = 0
    with pytest.raises(ValueError, match="arena"):
        event.EventBase(server.fake.app)
    server.fake.c.io.arena_frames = 16
    server.end()


def test_listener_that_is_refused_says_why() -> None:
    server = Server()

    def refuse(app: Any, ip: Any, port: int, cookie: int, backlog: int, why: Any, size: int) -> int:
        text = b"the kernel has it (cure: stop sshd)"
        event.ffi.memmove(why, text + b"\0", len(text) + 1)
        return -errno.EADDRINUSE

    server.base._listen = refuse
    with pytest.raises(Exception, match="listen on port 22: the kernel has it") as caught:
        event.Listener(server.base, ("10.0.0.1", 22), lambda *_: None)
    assert (caught.value.errnum, caught.value.cure) == (errno.EADDRINUSE, "stop sshd")
    assert len(server.base._listeners) == 1
    server.end()


# ---- timers


def run_for(server: Server, seconds: float) -> None:
    server.base.loopexit(seconds)
    server.base.dispatch()


def test_timers_run_in_order_once() -> None:
    server = Server()
    order = []
    for delay in (0.003, 0.001, 0.002):
        server.base.timer(delay, lambda _, d=delay: order.append(d))
    run_for(server, 0.01)
    assert order == [0.001, 0.002, 0.003]
    server.end()


def test_persistent_timer_runs_until_deleted() -> None:
    server = Server()
    count = itertools.count(1)

    def tick(timer: Any) -> None:
        if next(count) == 3:
            timer.delete()

    timer = server.base.timer(0.001, tick, persist=True)
    assert timer.pending
    run_for(server, 0.01)
    assert (next(count), timer.pending) == (4, False)
    server.end()


def test_timer_deleted_or_added_anew_by_another_callback_does_not_run_late() -> None:
    server = Server()
    ran: list[str] = []
    timers: dict[str, Any] = {}

    def first(_: Any) -> None:
        ran.append("first")
        timers["deleted"].delete()
        timers["again"].add(0.005)

    timers["first"] = server.base.timer(0.001, first)
    timers["deleted"] = server.base.timer(0.0011, lambda _: ran.append("deleted"))
    timers["again"] = server.base.timer(0.0012, lambda _: ran.append("again"))
    server.fake.advance(0.002)  # all three are due at once
    server.turn()
    assert ran == ["first"]
    run_for(server, 0.01)
    assert ran == ["first", "again"]
    with pytest.raises(ValueError, match="negative"):
        timers["again"].add(-1)
    server.end()


def test_unreferenced_timer_runs() -> None:
    server = Server()
    ran = []
    server.base.timer(0.001, lambda _: ran.append(1))
    gc.collect()
    run_for(server, 0.01)
    assert ran == [1]
    server.end()
