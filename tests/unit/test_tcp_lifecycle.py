"""Options that bound a connection's life: linger, keepalive, user timeout, connections at a time;
and the rules of TIME_WAIT (RFC 1337, RFC 6191)."""

from __future__ import annotations

import pytest

from tests.unit.peer import EINVAL, ENOENT, ETIMEDOUT, Peer, Stack, opened
from tests.unit.san import ffi, lib
from tests.unit.test_tcp_input import in_state

S = 1_000_000_000


# ---- linger ---------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["ESTABLISHED", "CLOSE_WAIT"])
def test_close_lingers_and_resets_what_is_not_acknowledged(state: str) -> None:
    stack, peer = in_state(state)
    assert stack.option(peer.handle, "LINGER_NS", 2 * S) == 0
    stack.stream(peer.handle, 0, 1000)
    assert stack.close(peer.handle) == 0
    stack.sleep(ms=1990)
    stack.expect_no_event()
    stack.sent.clear()
    stack.sleep(ms=20)
    peer.expect("RA")
    stack.expect("DEAD", status=-ETIMEDOUT)
    assert stack.counter("tcp_linger_resets") == 1
    assert stack.is_idle()


def test_close_simultaneous_lingers_too() -> None:
    stack, peer, handle = opened()
    stack.option(handle, "LINGER_NS", S)
    stack.close(handle)
    peer.expect("FA")
    peer.send("FA", ack=0)
    assert peer.state == "CLOSING"
    stack.sleep(ms=1010)
    stack.expect("DEAD", status=-ETIMEDOUT)


def test_close_acknowledged_in_time_ends_in_order() -> None:
    stack, peer, handle = opened()
    stack.option(handle, "LINGER_NS", 2 * S)
    stack.stream(handle, 0, 1000)
    stack.close(handle)
    peer.take_all()
    peer.send("A")
    assert peer.state == "FIN_WAIT_2"
    stack.sleep(ms=5000)
    assert peer.state == "FIN_WAIT_2"  # the peer's half is another matter
    peer.send("FA")
    stack.expect("SENT", bytes=1000)
    stack.expect("DEAD", status=0)


def test_linger_set_after_close_counts_from_then() -> None:
    stack, peer, handle = opened()
    stack.option(handle, "KEEPALIVE_NS", S)
    stack.close(handle)
    peer.expect("FA")
    stack.sleep(ms=500)
    assert stack.option(handle, "LINGER_NS", 3 * S) == 0
    stack.sleep(ms=2990)
    stack.expect_no_event()
    stack.sleep(ms=20)
    stack.expect("DEAD", status=-ETIMEDOUT)
    assert stack.is_idle()


def test_half_close_does_not_linger() -> None:
    stack, peer, handle = opened()
    stack.option(handle, "LINGER_NS", S)
    stack.close(handle, write_only=True)
    stack.sleep(ms=1500)
    assert peer.state == "FIN_WAIT_1"
    stack.expect_no_event()


def test_keepalive_set_while_lingering_leaves_the_end_where_it_is() -> None:
    stack, _peer, handle = opened()
    stack.option(handle, "LINGER_NS", S)
    stack.close(handle)
    stack.option(handle, "KEEPALIVE_NS", 60 * S)
    stack.sleep(ms=1010)
    stack.expect("DEAD", status=-ETIMEDOUT)


# ---- keepalive and user timeout -------------------------------------------------------


def test_keepalive_begins_anew_with_the_answer_however_long_the_interval() -> None:
    stack, peer, handle = opened()
    stack.option(handle, "KEEPALIVE_INTERVAL_NS", 75 * S)
    stack.option(handle, "KEEPALIVE_NS", 10 * S)
    for _ in range(3):
        stack.sleep(ms=9_900)
        peer.expect_nothing()
        stack.sleep(ms=150)
        peer.expect("A", seq=-1 + peer.rcv_nxt)
        peer.send("A")
    stack.sleep(ms=10_100)
    peer.expect("A")  # not answered
    stack.sleep(ms=74_000)
    peer.expect_nothing()
    stack.sleep(ms=2_000)
    peer.expect("A")


def test_close_waits_for_the_peers_fin_as_long_as_it_is_told() -> None:
    stack, peer, handle = opened()
    stack.option(handle, "FIN_WAIT_NS", 3 * S)
    stack.close(handle)
    peer.expect("FA")
    peer.send("A")
    stack.sleep(ms=2_900)
    assert stack.stats.flows == 1
    stack.sleep(ms=200)
    assert stack.stats.flows == 0


def test_tos_stands_in_every_segment_without_its_ecn_bits() -> None:
    stack, _, handle = opened()
    stack.option(handle, "TOS", 0x2F)
    stack.sendv(handle, b"x")
    assert stack.sent.popleft()[15] == 0x2C


def test_keepalive_interval_and_probes_say_when_a_silent_peer_is_given_up() -> None:
    stack, peer, handle = opened()
    assert stack.option(handle, "KEEPALIVE_INTERVAL_NS", 2 * S) == 0
    assert stack.option(handle, "KEEPALIVE_PROBES", 3) == 0
    assert stack.option(handle, "KEEPALIVE_NS", 10 * S) == 0
    times = []
    start = stack.now_ns
    while not stack.events:
        stack.now_ns = max(stack.now_ns + 1000, stack.deadline)
        stack.poll()
        if stack.sent and "R" not in peer.take().flags:
            times.append(round((stack.now_ns - start) / S))
    assert times == [10, 12, 14]
    assert round((stack.now_ns - start) / S) == 16
    stack.expect("DEAD", status=-ETIMEDOUT)


@pytest.mark.parametrize(
    "name, value",
    [
        ("KEEPALIVE_PROBES", 128),
        ("KEEPALIVE_INTERVAL_NS", 1 << 63),
        ("LINGER_NS", 1 << 63),
        ("USER_TIMEOUT_NS", 1 << 63),
        ("CONNECTIONS", 1),
    ],
)
def test_option_out_of_range_is_refused(name: str, value: int) -> None:
    stack, _peer, handle = opened()
    assert stack.option(handle, name, value) == -EINVAL


@pytest.mark.parametrize("name", ["LINGER_NS", "USER_TIMEOUT_NS", "KEEPALIVE_NS"])
def test_time_below_a_millisecond_is_one(name: str) -> None:
    stack, peer, handle = opened()
    assert stack.option(handle, name, 1) == 0
    tcb = stack.tcb(handle)
    assert 1 in (tcb.linger_ms, tcb.user_timeout_ms, tcb.keepalive_ms)
    assert peer.state == "ESTABLISHED"


# ---- connections of a listener --------------------------------------------------------


def limit(stack: Stack, most: int, port: int = 80) -> int:
    number = lib.IX_OPT_CONNECTIONS
    return int(lib.ix_shard_listen_option(stack.shard, ffi.NULL, 4, port, number, most))


@pytest.mark.parametrize("cookies", [lib.IX_COOKIES_NEVER, lib.IX_COOKIES_ALWAYS])
def test_listener_takes_no_more_connections_than_it_may(cookies: int) -> None:
    stack = Stack(listen=80, syn_cookies=cookies)
    assert limit(stack, 2) == 0
    first, second, third = (Peer(stack, sport=50000 + i) for i in range(3))
    first.connect()
    second.connect()
    third.send("S")
    third.expect_nothing()
    assert stack.counter("drop_tcp_connections") == 1
    first.send("R")
    stack.expect("DEAD")
    third.send("S", seq=-1)
    third.expect("SA")


def test_connection_in_time_wait_does_not_count() -> None:
    stack = Stack(listen=80)
    limit(stack, 1)
    peer = Peer(stack)
    stack.close(peer.connect())
    peer.expect("FA")
    peer.send("FA")
    peer.expect("A")
    assert stack.stats.flows_time_wait == 1
    stack.events.clear()
    Peer(stack, sport=50001).knock()


def test_cookie_that_comes_back_too_late_finds_no_place() -> None:
    stack = Stack(listen=80, syn_cookies=lib.IX_COOKIES_ALWAYS)
    limit(stack, 1)
    late = Peer(stack)
    late.send("S")
    late.expect("SA")
    Peer(stack, sport=50001).connect()
    late.send("A")
    late.expect_nothing()
    assert stack.counter("drop_tcp_connections") == 1
    assert stack.shard.tcp.listeners[0].connections == 1


def test_listener_that_ends_leaves_its_slot_with_nobody_counted() -> None:
    stack = Stack(listen=80)
    peer = Peer(stack)
    handle = peer.connect()
    assert stack.shard.tcp.listeners[0].connections == 1
    stack.unlisten(80)
    assert stack.listen(81) == 0
    assert limit(stack, 1, 81) == 0
    stack.call("ABORT", handle=handle)
    assert stack.shard.tcp.listeners[0].connections == 0
    assert limit(stack, 1) == -ENOENT


# ---- TIME_WAIT ------------------------------------------------------------------------


@pytest.mark.parametrize("seq", [0, -1, 5, 100_000])
def test_time_wait_is_not_ended_by_a_reset(seq: int) -> None:
    # RFC 1337 section 2, F1
    stack, peer = in_state("TIME_WAIT")
    peer.send("R", seq=peer.snd_nxt + seq)
    assert peer.state == "TIME_WAIT"
    stack.expect_no_event()


def test_time_wait_old_duplicate_data_is_acknowledged_and_changes_nothing() -> None:
    # RFC 1337 section 1, H1 and H3: the ACK must not bring the peer's next connection down, and
    # ours must not take the data.
    stack, peer = in_state("TIME_WAIT")
    peer.send("PA", b"old", seq=-3)
    peer.expect("A", ack=1)
    assert peer.state == "TIME_WAIT"
    stack.expect_no_event()


@pytest.mark.parametrize(
    "ts_ahead, seq_ahead, reused",
    [
        (1, -5000, True),  # RFC 6191 section 2: newer timestamp
        (0, 1000, True),  # the same one: the number decides
        (0, -1000, False),
        (-1, 1000, False),
        (None, 1000, True),  # without timestamps the number decides
        (None, -1000, False),
    ],
)
def test_time_wait_reuse_follows_rfc_6191(
    ts_ahead: int | None, seq_ahead: int, reused: bool
) -> None:
    stack, peer = in_state("TIME_WAIT", ts=True)
    ts = None if ts_ahead is None else (peer.ts_clock + ts_ahead, 0)
    peer.send("S", seq=peer.snd_nxt + seq_ahead, ts=ts)
    answers = peer.take_all()
    assert any("S" in answer.flags for answer in answers) == reused
    assert stack.counter("tcp_time_wait_reused") == reused


def test_time_wait_is_not_ended_by_a_syn_that_would_open_nothing() -> None:
    stack, peer = in_state("TIME_WAIT", ts=True)
    peer.send("SF", seq=peer.snd_nxt + 1000, ts=(peer.ts_clock + 1, 0))
    assert stack.counters("tcp_time_wait_reused", "drop_tcp_flags") == [0, 0]
    assert peer.state == "TIME_WAIT"
