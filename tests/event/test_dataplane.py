"""ixnet.event on the real core: two shards over the simulated wire, on virtual time.

tests/dune/test_event.py runs the same in the dune placement.
"""

from __future__ import annotations

import errno
import hashlib
import random
from typing import Any

import pytest

from ixnet.control.errors import PortTaken
from tests.event.driver import ADDRESS
from tests.event.placement import Pair, event

EV_READ, EV_WRITE = event.EV_READ, event.EV_WRITE
EOF, ERROR, READING = event.BEV_EVENT_EOF, event.BEV_EVENT_ERROR, event.BEV_EVENT_READING
CONNECTED = event.BEV_EVENT_CONNECTED
PORT = 7


def serve_echo(pair: Pair) -> list[Any]:
    """An echo server on end 0; the list is of those that it accepted."""
    accepted = []

    def on_read(bev: Any) -> None:
        bev.output.add_buffer(bev.input)

    def on_accept(_: Any, bev: Any) -> None:
        accepted.append(bev)
        bev.setcb(on_read)
        bev.enable(EV_READ)

    event.Listener(pair.base[0], ("", PORT), on_accept)
    return accepted


class Client:
    """Writes `data` to the echo server as soon as it is connected, and keeps what comes back."""

    def __init__(self, pair: Pair, data: bytes, port: int = PORT) -> None:
        self.data = data
        self.got = bytearray()
        self.events: list[int] = []
        self.bev = event.BufferEvent(pair.base[1])
        self.bev.setcb(self.on_read, None, self.on_event)
        self.bev.enable(EV_READ)
        at = pair.parts.index(self.bev._part)
        self.bev.connect((ADDRESS[1 - at], port))

    def on_read(self, bev: Any) -> None:
        self.got += bev.read()

    def on_event(self, bev: Any, events: int) -> None:
        self.events.append(events)
        if events == CONNECTED:
            bev.write(self.data)

    @property
    def done(self) -> bool:
        return len(self.got) == len(self.data)


def test_request_is_echoed_from_where_it_lies() -> None:
    pair = Pair()
    accepted = serve_echo(pair)
    client = Client(pair, b"hello, dataplane")
    pair.turn_until(lambda: client.done)
    assert (bytes(client.got), client.events) == (client.data, [CONNECTED])
    ip, port = client.bev.getsockname()
    assert (ip, accepted[0].getpeername()) == (ADDRESS[1], (ADDRESS[1], port))
    assert pair.base[0]._loop.pool.arena_free_count == pair.app[0].io.arena_frames
    pair.end()


def test_close_after_echo_ends_both_sides_in_order() -> None:
    pair = Pair()
    accepted = serve_echo(pair)
    client = Client(pair, b"x" * 5000)
    pair.turn_until(lambda: client.done)
    client.bev.shutdown()
    pair.turn_until(lambda: len(client.events) == 2)
    assert client.events == [CONNECTED, EOF | READING]
    assert accepted[0].closed
    client.bev.close()
    pair.end()


def test_refused_connection_is_an_error_event() -> None:
    pair = Pair()
    client = Client(pair, b"", port=9)
    pair.turn_until(lambda: bool(client.events))
    assert client.events == [ERROR | READING]
    assert client.bev.error == errno.ECONNREFUSED
    pair.end()


def test_aborted_connection_is_a_reset_for_the_peer() -> None:
    pair = Pair()
    accepted = serve_echo(pair)
    client = Client(pair, b"x")
    pair.turn_until(lambda: client.done)
    accepted[0].abort()
    pair.turn_until(lambda: len(client.events) == 2)
    assert client.bev.error == errno.ECONNRESET
    pair.end()


def test_connection_refused_in_the_accept_callback_is_a_reset() -> None:
    pair = Pair()
    event.Listener(pair.base[0], ("", PORT), lambda _, bev: bev.abort())
    client = Client(pair, b"x")
    pair.turn_until(lambda: bool(client.events) and client.events[-1] != CONNECTED)
    assert client.bev.error == errno.ECONNRESET
    pair.end()


def test_megabytes_pass_both_ways_through_small_buffers() -> None:
    pair = Pair(rcvbuf_bytes=20_000, sndbuf_bytes=30_000)
    serve_echo(pair)
    client = Client(pair, random.Random(1).randbytes(1 << 20))
    pair.turn_until(lambda: client.done)
    assert hashlib.sha256(client.got).digest() == hashlib.sha256(client.data).digest()
    pair.check()
    pair.end()


def test_reader_that_stops_closes_the_window_and_goes_on() -> None:
    pair = Pair(rcvbuf_bytes=16_000)
    accepted: list[Any] = []
    event.Listener(pair.base[0], ("", PORT), lambda _, bev: accepted.append(bev))
    client = Client(pair, random.Random(2).randbytes(100_000))
    pair.turn_until(lambda: bool(accepted) and bool(client.events))
    pair.turn(3000)
    assert (len(accepted[0].input), client.got) == (0, b"")
    assert len(client.bev.output) + client.bev._c.inflight.bytes >= 84_000
    taken = bytearray()

    def on_read(bev: Any) -> None:
        taken.extend(bev.read(3000))
        bev.trigger(EV_READ if len(bev.input) else 0)

    accepted[0].setwatermark(EV_READ, 0, 4000)
    accepted[0].setcb(on_read)
    accepted[0].enable(EV_READ)
    pair.turn_until(lambda: len(taken) == 100_000)
    assert taken == client.data
    pair.end()


def test_more_connections_than_calls_fit() -> None:
    pair = Pair(max_calls=64, max_events=64)
    serve_echo(pair)
    clients = [Client(pair, random.Random(n).randbytes(200 + n)) for n in range(100)]
    pair.turn_until(lambda: all(client.done for client in clients))
    assert all(client.got == client.data for client in clients)
    pair.end()


def test_connections_one_after_the_other_leave_nothing_behind() -> None:
    pair = Pair()
    serve_echo(pair)
    for n in range(30):
        client = Client(pair, bytes([n]) * (n + 1))
        pair.turn_until(lambda c=client: c.done)
        client.bev.close()
    pair.end()


@pytest.mark.parametrize("seed", range(12))
def test_lossy_wire_loses_and_doubles_nothing(seed: int) -> None:
    draw = random.Random(seed)
    pair = Pair(seed, rcvbuf_bytes=draw.choice([8_000, 60_000, 262_144]))
    for direction in range(2):
        pair.wire.path(
            direction,
            delay_ns=draw.choice([10_000, 200_000]),
            loss_ppm=draw.choice([0, 5_000, 50_000]),
            dup_ppm=draw.choice([0, 10_000]),
            reorder_ppm=draw.choice([0, 20_000]),
            reorder_hold_ns=100_000,
            corrupt_ppm=draw.choice([0, 5_000]),
        )
    serve_echo(pair)
    clients = [Client(pair, draw.randbytes(draw.choice([1, 3000, 40_000]))) for _ in range(6)]
    pair.turn_until(lambda: all(client.done for client in clients), seconds=600)
    for client in clients:
        assert client.got == client.data
    for direction in range(2):
        pair.wire.path(direction, delay_ns=10_000)
    pair.end()


@pytest.mark.parametrize("seed", range(8))
def test_connections_die_in_the_middle_and_everything_comes_back(seed: int) -> None:
    draw = random.Random(seed)
    pair = Pair(seed)
    accepted = serve_echo(pair)
    clients = [Client(pair, draw.randbytes(60_000)) for _ in range(10)]
    for _ in range(40):
        pair.turn(draw.randrange(1, 12))
        victim = draw.choice([c.bev for c in clients] + accepted)
        draw.choice([victim.abort, victim.close, victim.free])()
    pair.end()


def test_proxy_between_two_connections_copies_nothing() -> None:
    pair = Pair()
    serve_echo(pair)
    ends: list[Any] = []

    def pump(bev: Any) -> None:
        other = ends[1] if bev is ends[0] else ends[0]
        other.output.add_buffer(bev.input)

    def on_accept(_: Any, bev: Any) -> None:
        # Out again through the same wire, to an echo server at the other end.
        back = event.BufferEvent(pair.base[0])
        back.connect((ADDRESS[1], PORT + 1))
        ends.extend((bev, back))
        for each in ends:
            each.setcb(pump)
            each.enable(EV_READ)

    def echo(bev: Any) -> None:
        bev.output.add_buffer(bev.input)

    def on_far(_: Any, bev: Any) -> None:
        bev.setcb(echo)
        bev.enable(EV_READ)

    event.Listener(pair.base[0], ("", PORT + 2), on_accept)
    event.Listener(pair.base[1], ("", PORT + 1), on_far)
    client = Client(pair, random.Random(3).randbytes(100_000), port=PORT + 2)
    pair.turn_until(lambda: client.done)
    assert client.got == client.data
    assert pair.base[0]._loop.pool.heap_bytes == 0
    pair.end()


# ---- one base on both shards ------------------------------------------------------------------


def other_end(bev: Any) -> str:
    """The address of the end that a connection of the base isn't on."""
    return ADDRESS[1 - bev._part.base._parts.index(bev._part)]


def test_one_base_on_two_shards_serves_connections_of_both() -> None:
    pair = Pair()
    pair.join()
    accepted = serve_echo(pair)
    clients = []
    for _ in range(6):
        client = Client(pair, random.Random(1).randbytes(30_000))
        clients.append(client)
    # They are on the shards in turn; each connects to the other one's listener.
    assert [client.bev._part for client in clients] == pair.parts * 3
    pair.turn_until(lambda: all(client.done for client in clients))
    assert len(accepted) == 6
    assert [sum(bev._part is part for bev in accepted) for part in pair.parts] == [3, 3]
    pair.end()


def test_connection_made_in_a_callback_is_on_the_shard_of_that_callback() -> None:
    pair = Pair()
    pair.join()
    made = []

    def on_accept(_: Any, bev: Any) -> None:
        made.append((bev, event.BufferEvent(pair.base[0]), event.Buffer(pair.base[0])))

    event.Listener(pair.base[0], ("", PORT), on_accept)
    clients = [event.BufferEvent(pair.base[0]) for _ in range(4)]
    for bev in clients:
        bev.connect((other_end(bev), PORT))
    pair.turn_until(lambda: len(made) == 4)
    for accepted, own, buffer in made:
        assert own._part is accepted._part
        assert buffer._c.pool == accepted._part.loop.pool
    pair.end()


def test_bytes_move_from_a_connection_of_one_shard_to_one_of_the_other() -> None:
    pair = Pair()
    pair.join()
    accepted: list[Any] = []
    got = bytearray()

    def cross(bev: Any) -> None:
        accepted[1 - accepted.index(bev)].output.add_buffer(bev.input)

    def on_accept(_: Any, bev: Any) -> None:
        accepted.append(bev)
        bev.setcb(cross)
        bev.enable(EV_READ)

    event.Listener(pair.base[0], ("", PORT), on_accept)
    near, far = (event.BufferEvent(pair.base[0]) for _ in range(2))
    for bev in near, far:
        bev.connect((other_end(bev), PORT))
    far.setcb(lambda bev: got.extend(bev.read()))
    far.enable(EV_READ)
    pair.turn_until(lambda: len(accepted) == 2)
    assert accepted[0]._part is not accepted[1]._part
    data = random.Random(2).randbytes(200_000)
    near.write(data)
    pair.turn_until(lambda: len(got) == len(data))
    assert bytes(got) == data
    del near, far
    pair.end()


def test_a_listener_that_one_shard_refuses_listens_on_none() -> None:
    pair = Pair()
    pair.join()
    second = pair.app[1]
    assert pair.lib.ix_app_listen(second, b"", PORT, 1, 0, pair.ffi.NULL, 0) == 0
    with pytest.raises(PortTaken, match="port 7"):
        event.Listener(pair.base[0], ("", PORT), lambda *_: None)
    assert pair.lib.ix_app_unlisten(second, b"", PORT) == 0
    listener = event.Listener(pair.base[0], ("", PORT), lambda *_: None)
    listener.close()
    listener = event.Listener(pair.base[0], ("", PORT), lambda *_: None)
    listener.close()
    pair.end()


@pytest.mark.parametrize("connections", [1 << 30, -1, 1 << 70])
def test_a_listener_with_an_option_that_is_refused_listens_on_none(connections: int) -> None:
    pair = Pair()
    pair.join()
    with pytest.raises(Exception, match=f"connections={connections}"):
        event.Listener(pair.base[0], ("", PORT), lambda *_: None, connections=connections)
    assert not pair.base[0]._listeners
    for app in pair.app:
        assert pair.lib.ix_app_listen(app, b"", PORT, 1, 0, pair.ffi.NULL, 0) == 0
    pair.end()


@pytest.mark.parametrize(
    ("low", "high"), [(2, 1), (5000, 1000), (-1, 0), (0, -1), (1 << 32, 0), (0, 1 << 32)]
)
def test_watermarks_that_can_not_be_are_refused(low: int, high: int) -> None:
    """A low mark above the high one was taken: input stopped, and the callback never ran."""
    pair = Pair()
    bev = event.BufferEvent(pair.base[1])
    with pytest.raises(ValueError, match=str(low)):
        bev.setwatermark(EV_READ, low, high)
    bev.setwatermark(EV_READ, 5, 5)
    bev.setwatermark(EV_READ, 5, 0)
    bev.setwatermark(EV_WRITE, 5, 1)
    bev.close()
    pair.end()


def test_timer_and_input_of_both_shards_are_due_in_one_dispatch() -> None:
    pair = Pair()
    pair.join()
    accepted = serve_echo(pair)
    clients = [Client(pair, b"x") for _ in range(2)]
    ran: list[float] = []
    pair.base[0].timer(0.001, lambda _: ran.append(pair.base[0].now))
    begin = pair.base[0].now
    pair.turn_until(lambda: bool(ran) and all(client.done for client in clients))
    assert ran[0] - begin >= 0.001 and len(accepted) == 2
    pair.end()
