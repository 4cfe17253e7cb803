"""ixnet.event.Buffer: queues of bytes as Python sees them."""

from __future__ import annotations

import gc
from typing import Any

import pytest

from tests.event.sanitized import Server, event
from tests.unit.evfake import pattern


def received(*parts: bytes) -> tuple[Server, Any]:
    """A server's input buffer with each part in a frame of its own."""
    server = Server(lambda _, bev: bev.enable(event.EV_READ))
    conn, bev = server.connect()
    for part in parts:
        server.fake.send(conn, part)
    server.turn()
    return server, bev.input


def test_length_and_truth() -> None:
    server, buffer = received(b"abc", b"de")
    assert (len(buffer), bool(buffer), repr(buffer)) == (5, True, "<Buffer of 5 bytes>")
    buffer.drain()
    assert (len(buffer), bool(buffer)) == (0, False)
    server.end()


def test_remove_takes_at_most_what_is_there() -> None:
    server, buffer = received(b"abc", b"de")
    assert [buffer.remove(n) for n in (0, 2, 2, 9, 9)] == [b"", b"ab", b"cd", b"e", b""]
    assert buffer.remove(-1) == b""
    server.end()


def test_copyout_keeps() -> None:
    server, buffer = received(b"abc", b"de")
    assert [buffer.copyout(n) for n in (0, 4, None, 9)] == [b"", b"abcd", b"abcde", b"abcde"]
    assert len(buffer) == 5
    server.end()


def test_readinto_fills_what_it_is_given() -> None:
    server, buffer = received(b"abc", b"de")
    target = bytearray(4)
    assert (buffer.readinto(target), target) == (4, b"abcd")
    assert (buffer.readinto(memoryview(target)[1:3]), target) == (1, b"aecd")
    with pytest.raises((TypeError, BufferError)):
        buffer.readinto(b"constant")
    server.end()


def test_drain_says_how_many() -> None:
    server, buffer = received(b"abc", b"de")
    assert (buffer.drain(4), buffer.drain(4), buffer.drain()) == (4, 1, 0)
    server.end()


def test_add_and_prepend() -> None:
    server, buffer = received(b"abc")
    buffer.add(bytearray(b"de"))
    buffer.prepend(b"<<")
    buffer.prepend(b"<")
    assert buffer.remove() == b"<<<abcde"
    server.end()


def test_views_are_read_only_and_lie_in_the_frame() -> None:
    server, buffer = received(b"abc", b"de")
    view = buffer.pullup(3)
    assert (view, view.readonly) == (b"abc", True)
    frame = server.fake.c.io.umem + (int(buffer._c.head.data - server.fake.c.io.umem))
    frame[0] = ord("X")
    assert view == b"Xbc"
    assert [bytes(v) for v in buffer.peek()] == [b"Xbc", b"de"]
    assert server.fake.lent_bytes(0) == 5
    server.end()


def test_view_across_frames_is_a_copy_that_outlives_the_buffer() -> None:
    server, buffer = received(b"abc", b"de")
    view = buffer.pullup()
    assert server.fake.lent_bytes(0) == 5
    buffer.drain()
    server.turn(2)
    assert view == b"abcde"
    assert server.fake.lent_bytes(0) == 0
    server.end()


def test_pullup_of_too_much_is_refused() -> None:
    server, buffer = received(b"abc")
    assert buffer.pullup(0) == b""
    for n in (4, -1):
        with pytest.raises(ValueError, match="asked for"):
            buffer.pullup(n)
    server.end()


def test_search() -> None:
    server, buffer = received(b"abc", b"abcd")
    assert [buffer.search(b"ca"), buffer.search(b"abc", 1), buffer.search(b"x")] == [2, 3, -1]
    with pytest.raises(ValueError, match="negative"):
        buffer.search(b"a", -1)
    server.end()


def test_readln_takes_whole_lines_only() -> None:
    server, buffer = received(b"GET / HT", b"TP/1.0\r", b"\n\r\nrest\n", b"half")
    assert [buffer.readln() for _ in range(4)] == [b"GET / HTTP/1.0", b"", b"rest", None]
    assert buffer.remove() == b"half"
    buffer.add(b"a\nb\0c")
    assert buffer.readln(event.EVBUFFER_EOL_CRLF_STRICT) is None
    assert buffer.readln(event.EVBUFFER_EOL_NUL) == b"a\nb"
    server.end()


def test_buffer_of_its_own_moves_to_output() -> None:
    server = Server()
    conn, bev = server.connect()
    own = event.Buffer(server.base)
    own.add(pattern(5000))
    assert own.remove_buffer(bev.output, 1000) == 1000
    bev.output.add_buffer(own)
    for _ in range(4):
        server.turn()
        server.fake.ack(conn)
    assert server.fake.got(conn) == pattern(5000)
    server.end()


def test_received_bytes_kept_in_a_buffer_outlive_their_connection() -> None:
    server, buffer = received(b"abc", b"de")
    own = event.Buffer(server.base)
    own.add_buffer(buffer)
    server.accepted[0].abort()
    server.turn(3)
    assert own.remove() == b"abcde"
    server.end()


def test_proxy_sends_what_another_connection_received() -> None:
    server = Server(lambda _, bev: bev.enable(event.EV_READ))
    (a, bev_a), (b, bev_b) = server.connect(), server.connect()
    server.fake.send(a, pattern(3000), 500)
    server.turn()
    bev_b.output.add_buffer(bev_a.input)
    server.turn()
    assert server.fake.got(b) == pattern(3000)
    bev_a.abort()  # what it received is still under way to b
    server.turn(2)
    assert server.fake.called("RECV_DONE") == 0
    server.fake.ack(b)
    server.turn(2)
    assert server.fake.called("RECV_DONE") == 6
    server.end()


def test_buffers_between_two_bases_copy() -> None:
    one, two = Server(), Server()
    a, b = event.Buffer(one.base), event.Buffer(two.base)
    a.add(b"across")
    b.add_buffer(a)
    assert (len(a), b.remove()) == (0, b"across")
    one.end()
    two.end()


def test_buffer_may_go_after_its_base() -> None:
    server = Server()
    own = event.Buffer(server.base)
    own.add(b"abc")
    server.end()
    del server
    gc.collect()
    assert own.remove() == b"abc"


def test_large_write_overflows_the_arena_and_arrives() -> None:
    server = Server(arena=4)
    conn, bev = server.connect()
    data = pattern(300_000)
    bev.write(data)
    for _ in range(300):
        server.turn()
        server.fake.ack(conn)
    assert server.fake.got(conn) == data
    server.end()
