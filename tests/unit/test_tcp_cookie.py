"""tcp/cookie: handshakes that the listener does not remember (RFC 4987 3.6)."""

from __future__ import annotations

import pytest

from tests.unit.peer import MSS, Peer, Stack, opened
from tests.unit.san import lib

ALWAYS = lib.IX_COOKIES_ALWAYS
NEVER = lib.IX_COOKIES_NEVER
SLOT_MS = 2**36 / 1e6


def with_cookies(**options: object) -> Stack:
    return Stack(listen=80, syn_cookies=ALWAYS, **options)  # type: ignore[arg-type]


def flood(stack: Stack, count: int) -> None:
    """Half-open connections that nobody will finish."""
    for i in range(count):
        Peer(stack, sport=1000 + i).send("S")
    stack.sent.clear()


# ---- when -----------------------------------------------------------------------------


def test_backlog_full_of_half_open_answers_with_a_cookie_and_keeps_nothing() -> None:
    stack = Stack(listen=80, backlog=2)
    flood(stack, 2)
    assert stack.counter("tcp_cookies_sent") == 0
    peer = Peer(stack)
    peer.send("S")
    peer.expect("SA", ack=0, mss=MSS)
    assert stack.counters("tcp_cookies_sent", "drop_tcp_backlog") == [1, 0]
    assert stack.stats.flows == 2
    peer.send("A")
    stack.expect("KNOCK")
    assert stack.stats.flows == 3
    assert stack.counters("tcp_cookies_good", "tcp_established") == [1, 1]


def test_shards_limit_of_half_open_reached_answers_with_a_cookie() -> None:
    stack = Stack(listen=80, max_half_open=3)
    flood(stack, 3)
    peer = Peer(stack)
    peer.knock()
    assert stack.counter("tcp_cookies_good") == 1
    assert stack.stats.flows_half_open == 3


@pytest.mark.parametrize(
    "limits, counter",
    [({"backlog": 2}, "drop_tcp_backlog"), ({"max_half_open": 2}, "drop_tcp_half_open")],
)
def test_cookies_off_drops_the_syn(limits: dict[str, int], counter: str) -> None:
    stack = Stack(listen=80, syn_cookies=NEVER, **limits)  # type: ignore[arg-type]
    flood(stack, 2)
    peer = Peer(stack)
    peer.send("S")
    peer.expect_nothing()
    assert stack.counter(counter) == 1


def test_application_that_does_not_accept_gets_no_more_by_cookie_either() -> None:
    stack = with_cookies(backlog=1)
    late = Peer(stack, sport=50001)
    late.send("S")
    late.expect("SA")
    Peer(stack).knock()
    Peer(stack, sport=50002).send("S")
    assert not stack.sent
    late.send("A")
    late.expect_nothing()
    stack.expect_no_event()
    assert stack.counter("drop_tcp_accept_full") == 2
    assert stack.accept(1 << 32) == 0
    late.send("PA", b"again")  # what follows brings the cookie once more
    stack.expect("KNOCK", peer=("10.0.0.2", 50001))


def test_half_open_connection_waits_for_a_place_that_cookies_took() -> None:
    stack = Stack(listen=80, backlog=1)
    first = Peer(stack)
    first.send("S")
    first.expect("SA")
    Peer(stack, sport=50001).knock()  # by cookie
    first.send("A")
    stack.expect_no_event()
    assert stack.counter("drop_tcp_accept_full") == 1
    assert stack.tcb_state(1 << 32) == "SYN_RCVD"
    handle = stack.shard.tcp.flows[1].generation << 32 | 1
    assert stack.accept(handle) == 0
    first.send("A")
    stack.expect("KNOCK", peer=("10.0.0.2", 50000))


# ---- what it remembers ----------------------------------------------------------------


@pytest.mark.parametrize(
    "offered, kept",
    [(None, 536), (10, 88), (535, 88), (536, 536), (1300, 1220), (1459, 1452), (1460, 1460),
     (9000, 1460)],
)  # fmt: skip
def test_mss_is_rounded_down_to_one_of_eight(offered: int | None, kept: int) -> None:
    stack = with_cookies()
    peer = Peer(stack, mss=offered)
    peer.connect()
    assert stack.info(peer.handle).mss == kept


@pytest.mark.parametrize("wscale", [None, 0, 7, 14])
@pytest.mark.parametrize("sack_ok", [False, True])
@pytest.mark.parametrize("clock_ms", [0, 1, 31, 63, 64])
def test_timestamp_carries_window_scale_and_sack(
    wscale: int | None, sack_ok: bool, clock_ms: int
) -> None:
    stack = with_cookies()
    stack.poll(ms=clock_ms)
    peer = Peer(stack, wscale=wscale, sack_ok=sack_ok, ts=True, window=1000)
    syn_ack = peer.knock()
    assert (syn_ack.wscale is not None) == (wscale is not None)
    assert syn_ack.sack_ok == sack_ok
    tcb = stack.tcb(peer.handle)
    assert tcb.snd_wscale == (wscale or 0)
    assert bool(tcb.flags & lib.IX_TF_SACK) == sack_ok
    assert bool(tcb.flags & lib.IX_TF_WSCALE) == (wscale is not None)
    assert tcb.rcv_wscale == (syn_ack.wscale or 0)
    assert tcb.snd_wnd == 1000 << (wscale or 0)


@pytest.mark.parametrize("ts", [False, True])
def test_timestamp_is_never_ahead_of_the_clock_and_at_most_64_ms_behind(ts: bool) -> None:
    stack = with_cookies()
    for i in range(100):
        stack.poll(ms=1)
        peer = Peer(stack, sport=50000 + i, ts=ts, wscale=3, sack_ok=i % 2 == 0)
        peer.send("S")
        syn_ack = peer.expect("SA")
        assert (syn_ack.ts is not None) == ts
        if not syn_ack.ts:
            assert syn_ack.wscale is None and not syn_ack.sack_ok
            continue
        peer.send("A")
        stack.expect("KNOCK")
        handle = 1 << 32 | 0
        tcb = stack.tcb(handle)
        now = (stack.shard.tcp.now_ms + tcb.ts_offset) % 2**32
        assert 0 <= (now - syn_ack.ts[0]) % 2**32 < 64
        peer.send("R")
        stack.events.clear()
        stack.shard.tcp.flows[0].generation = 1


def test_connection_by_cookie_works_as_any_other() -> None:
    stack = with_cookies()
    peer = Peer(stack, ts=True, sack_ok=True, wscale=5)
    handle = peer.connect()
    peer.send("PA", b"hello")
    stack.expect("RECV", data=b"hello")
    stack.stream(handle, 0, 3000)
    assert sum(len(s.payload) for s in peer.take_all()) == 3000
    peer.send("A")
    stack.expect("SENT", bytes=3000)


def test_first_ack_lost_the_data_after_it_open_the_connection() -> None:
    stack = with_cookies()
    peer = Peer(stack)
    peer.send("S")
    peer.expect("SA")
    peer.send("PA", b"request")
    handle = stack.expect("KNOCK").handle
    assert stack.accept(handle) == 0
    stack.expect("RECV", data=b"request")


def test_first_ack_lost_a_keepalive_opens_the_connection() -> None:
    stack = with_cookies()
    peer = Peer(stack)
    peer.send("S")
    peer.expect("SA")
    peer.send("A", seq=-1)
    peer.expect("A", ack=0)
    stack.expect_no_event()
    stack.sleep(ms=1000)
    peer.expect("SA", seq=-1, ack=0)
    peer.send("A")  # a challenge ACK, from where it is established
    stack.expect("KNOCK")


# ---- what it refuses ------------------------------------------------------------------


@pytest.mark.parametrize("ack", [1 << 22, -(1 << 22), 1 << 26, 1 << 27, 1 << 30])
def test_guessed_cookie_is_reset(ack: int) -> None:
    stack = with_cookies()
    peer = Peer(stack)
    peer.send("S")
    peer.expect("SA")
    peer.send("A", ack=ack)
    peer.expect("R")
    stack.expect_no_event()
    assert stack.counters("tcp_cookies_good", "tcp_cookies_bad") == [0, 1]


def test_segment_that_is_not_the_first_waits_for_it() -> None:
    # A reset would end a connection whose first segment was lost; taking it would lose that.
    stack = with_cookies()
    peer = Peer(stack)
    peer.send("S")
    peer.expect("SA")
    peer.send("PA", b"second", seq=5)
    peer.expect_nothing()
    stack.expect_no_event()
    peer.send("PA", b"first", seq=0)
    stack.expect("KNOCK")


def test_cookie_of_another_port_is_reset() -> None:
    stack = with_cookies()
    peer, other = Peer(stack), Peer(stack, sport=50001)
    peer.send("S")
    peer.expect("SA")
    other.irs = peer.irs
    other.snd_nxt = other.rcv_nxt = 0
    other.send("A")
    other.expect("R")


@pytest.mark.parametrize("slots, good", [(0.9, True), (2.01, False), (4.0, False), (8.5, False)])
def test_cookie_is_good_for_its_slot_and_the_next(slots: float, good: bool) -> None:
    # START_NS lies somewhere in a slot: what is good for less than one slot is always good.
    stack = with_cookies()
    peer = Peer(stack)
    peer.send("S")
    peer.expect("SA")
    stack.sleep(ms=slots * SLOT_MS)
    other = Peer(stack, sport=50009)  # or the listener would not even look
    other.send("S")
    stack.sent.clear()
    peer.send("A")
    if good:
        stack.expect("KNOCK")
    else:
        peer.expect("R")


def test_listener_that_sent_no_cookie_of_late_looks_at_none() -> None:
    stack = with_cookies()
    peer = Peer(stack)
    peer.send("A", seq=0, ack=0)
    peer.expect("R")
    assert stack.counter("tcp_cookies_bad") == 0
    peer.send("S", seq=-1)
    peer.expect("SA")
    stack.sleep(ms=2.1 * SLOT_MS)
    peer.send("A", seq=0, ack=1 << 20)
    assert stack.counter("tcp_cookies_bad") == 0


def test_cookies_look_random() -> None:
    stack = with_cookies()
    seen = []
    for i in range(200):
        peer = Peer(stack, sport=2000 + i)
        peer.send("S")
        peer.expect("SA")
        seen.append(peer.irs)
    assert len(set(seen)) == 200
    for bit in range(32):
        assert 50 < sum(n >> bit & 1 for n in seen) < 150, bit


def test_repeated_syn_gets_the_same_cookie() -> None:
    stack = with_cookies()
    peer = Peer(stack)
    peer.send("S")
    peer.expect("SA")
    first = peer.irs
    peer.send("S", seq=-1)
    peer.expect("SA")
    assert peer.irs == first


def test_normal_connection_is_made_without_cookies() -> None:
    stack, _peer, _handle = opened()
    assert stack.counters("tcp_cookies_sent", "tcp_cookies_good") == [0, 0]
