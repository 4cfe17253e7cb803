"""tcp/deliver: events, in the order in which things happened, and none lost."""

from __future__ import annotations

from tests.unit.peer import ECONNABORTED, ECONNRESET, Peer, Stack, opened, stream

LONG = 300  # bytes; what is shorter shares a frame with what came before it


def fill_up(stack: Stack, filler: int = 60) -> None:
    """Arms so many timers due now that only few events fit into the next cycle's array."""
    for i in range(filler):
        stack.queue("TIMER_SET", value=1, cookie=i)
    stack.poll()
    stack.now_ns += 1_000_000


def test_events_of_one_cycle_are_in_order() -> None:
    stack, peer, handle = opened()
    stack.sendv(handle, b"question")
    peer.take_all()
    peer.put("PA", b"answer", ack=8)
    peer.put("FA", ack=8)
    stack.poll()
    assert [e.type for e in stack.events] == ["SENT", "RECV", "RECV"]
    assert [e.bytes for e in stack.events] == [8, 6, 0]
    assert {e.cookie for e in stack.events} == {5}


def test_everything_at_once_ends_with_dead() -> None:
    stack, peer, handle = opened()
    stack.sendv(handle, b"question")
    stack.close(handle, write_only=True)
    peer.take_all()
    peer.put("PA", b"answer", ack=9)
    peer.put("FA", ack=9)
    stack.poll()
    assert [(e.type, e.bytes, e.status) for e in stack.events] == [
        ("SENT", 8, 0),
        ("RECV", 6, 0),
        ("RECV", 0, 0),
        ("DEAD", 0, 0),
    ]


def test_acks_of_one_cycle_make_one_sent() -> None:
    stack, peer, handle = opened()
    stack.stream(handle, 0, 1000)
    for ack in (1, 300, 999):
        peer.put("A", ack=ack)
    stack.poll()
    stack.expect("SENT", bytes=999)
    stack.expect_no_event()


def test_reset_takes_back_what_was_not_delivered() -> None:
    # Payload and RST in one batch: the data may be lost, the end is told.
    stack, peer, _handle = opened()
    peer.put("PA", b"data")
    peer.put("R")
    stack.poll()
    assert stack.events.pop().status == -ECONNRESET
    assert stack.stats.frames_rx == 0


def test_sent_before_a_reset_is_told() -> None:
    stack, peer, handle = opened()
    stack.sendv(handle, b"question")
    peer.put("A", ack=8)
    peer.put("R")
    stack.poll()
    stack.expect("SENT", bytes=8)
    stack.expect("DEAD")


def test_nothing_is_told_before_accept() -> None:
    stack = Stack(listen=80)
    peer = Peer(stack)
    peer.knock()
    peer.send("PA", b"data")
    peer.send("FA")
    stack.expect_no_event()
    peer.send("R")
    stack.expect("DEAD", status=-ECONNRESET, handle=peer.handle)
    assert stack.is_idle()


def test_close_drops_what_was_not_delivered_and_sent_goes_on() -> None:
    stack, peer, handle = opened()
    stack.sendv(handle, b"bye")
    stack.close(handle)
    peer.take_all()
    peer.send("FA")
    stack.expect("SENT", bytes=3)
    stack.expect("DEAD", status=0)  # no RECV for the FIN


def test_event_array_full_loses_nothing() -> None:
    stack, peer, _handle = opened(max_events=64, fill_target=256, batch=128)
    for i in range(200):
        peer.put("A", stream(LONG * i, LONG))
    got, polls = b"", 0
    while len(got) < 200 * LONG:
        stack.poll()
        polls += 1
        assert len(stack.events) <= 64 and polls < 10
        got += b"".join(e.data for e in stack.events)
        stack.events.clear()
    assert got == stream(0, 200 * LONG)
    assert stack.counter("events_full") >= 2
    assert stack.deadline >= stack.now_ns


def test_event_array_full_wants_another_cycle_at_once() -> None:
    stack, peer, _handle = opened(max_events=64, batch=128)
    for i in range(100):
        peer.put("A", stream(LONG * i, LONG))
    stack.poll()
    assert len(stack.events) == 64
    assert stack.deadline <= stack.now_ns
    stack.poll()
    assert len(stack.events) == 100


def test_event_array_full_serves_every_connection_in_turn() -> None:
    stack = Stack(listen=80, max_events=64, batch=256, fill_target=256)
    peers = [Peer(stack, sport=50000 + i) for i in range(8)]
    for peer in peers:
        peer.connect()
    for i in range(20):
        for peer in peers:
            peer.put("A", stream(10 * i, 10))
    got: dict[int, bytes] = {peer.handle: b"" for peer in peers}
    for _ in range(4):
        stack.poll()
        for event in stack.events:
            got[event.handle] += event.data
        stack.events.clear()
    assert all(data == stream(0, 200) for data in got.values())


def test_event_array_full_delays_knock_connected_eof_and_dead() -> None:
    stack = Stack(listen=80, max_events=64, max_timers=64)
    closing, knocking = Peer(stack), Peer(stack, sport=50001)
    handle = closing.connect()
    stack.close(handle, write_only=True)
    closing.take_all()
    call = stack.connect_call()
    answering = Peer(stack, port=int(call.local_port), sport=80, handle=int(call.handle))
    answering.expect("S")
    knocking.send("S")
    knocking.expect("SA")
    fill_up(stack, 64)
    closing.put("FA")
    knocking.put("A")
    answering.put("SA")
    stack.poll()
    assert {e.type for e in stack.events} == {"TIMER"} and len(stack.events) == 64
    stack.events.clear()
    stack.poll()
    found = [(e.type, e.handle) for e in stack.events]
    assert found == [
        ("RECV", handle),
        ("DEAD", handle),
        ("KNOCK", found[2][1]),
        ("CONNECTED", answering.handle),
    ]


def test_connected_not_told_yet_then_reset_is_told_as_a_failure() -> None:
    stack = Stack(max_events=64, max_timers=64)
    call = stack.connect_call()
    peer = Peer(stack, port=int(call.local_port), sport=80)
    peer.expect("S")
    fill_up(stack, 64)
    peer.put("SA")
    stack.poll()
    assert all(e.type == "TIMER" for e in stack.events)
    stack.events.clear()
    peer.put("R")
    stack.poll()
    stack.expect("CONNECTED", status=-ECONNRESET)
    stack.expect_no_event()
    assert stack.is_idle()


def test_knock_not_told_yet_then_reset_is_never_told() -> None:
    stack = Stack(listen=80, max_events=64, max_timers=64)
    peer = Peer(stack)
    peer.send("S")
    fill_up(stack, 64)
    peer.put("A", ack=0)
    peer.irs = 0
    stack.sent.clear()
    stack.poll()
    stack.events.clear()
    stack.poll()
    assert len(stack.events) <= 1


def connecting_without_room() -> tuple[Stack, Peer, int]:
    """A connection that was opened, and whose CONNECTED finds no room."""
    stack = Stack()
    call = stack.connect_call()
    peer = Peer(stack, port=int(call.local_port), sport=80, handle=int(call.handle))
    peer.expect("S")
    stack.shard.io.max_events = 0
    peer.send("SA")
    peer.take_all()
    stack.expect_no_event()
    return stack, peer, peer.handle


def test_connected_that_waits_is_told_before_an_orderly_end() -> None:
    stack, peer, handle = connecting_without_room()
    peer.send("FA")
    stack.close(handle)
    peer.take_all()
    peer.send("A")
    stack.shard.io.max_events = 64
    stack.settle()
    stack.expect("CONNECTED", handle=handle, status=0)
    stack.expect("DEAD", handle=handle, status=0)
    stack.expect_no_event()
    assert stack.is_idle()


def test_connected_that_waits_is_all_that_is_told_of_a_failure() -> None:
    stack, peer, handle = connecting_without_room()
    stack.close(handle)
    peer.take_all()
    peer.send("FA", ack=1)
    assert peer.state == "TIME_WAIT"
    stack.call("ABORT", handle=handle)
    stack.shard.io.max_events = 64
    stack.settle()
    stack.expect("CONNECTED", handle=handle, status=-ECONNABORTED)
    stack.expect_no_event()
    assert stack.is_idle()
