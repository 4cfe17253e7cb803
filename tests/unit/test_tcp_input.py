"""tcp/input: segments arrive, state by state (RFC 9293 3.10.7, RFC 5961)."""

from __future__ import annotations

import pytest

from tests.unit.peer import (
    ECONNREFUSED,
    ECONNRESET,
    EHOSTUNREACH,
    LOCAL,
    REMOTE,
    ROUTER,
    Peer,
    Stack,
    ethernet,
    icmp_error,
    ipv4,
    opened,
)

AFTER_SYN = [
    "ESTABLISHED",
    "FIN_WAIT_1",
    "FIN_WAIT_2",
    "CLOSE_WAIT",
    "CLOSING",
    "LAST_ACK",
    "TIME_WAIT",
]
OPEN = AFTER_SYN[:-1]
RECEIVING = ["ESTABLISHED", "FIN_WAIT_1", "FIN_WAIT_2"]
FIN_OUT = ["FIN_WAIT_1", "CLOSING", "LAST_ACK"]
DEAF = ["CLOSE_WAIT", "CLOSING", "LAST_ACK", "TIME_WAIT"]


def in_state(state: str, **options: object) -> tuple[Stack, Peer]:
    """A connection in that state, its events and frames so far taken."""
    if state == "SYN_SENT":
        stack = Stack(**options)  # type: ignore[arg-type]
        call = stack.connect_call(80)
        peer = Peer(stack, port=call.local_port, sport=80, handle=int(call.handle))
        peer.expect("S")
    elif state == "SYN_RCVD":
        stack = Stack(listen=80, **options)  # type: ignore[arg-type]
        peer = Peer(stack, handle=1 << 32)
        peer.send("S")
        peer.expect("SA")
    else:
        stack, peer, handle = opened(**options)
        steps = {
            "ESTABLISHED": "",
            "FIN_WAIT_1": "close",
            "FIN_WAIT_2": "close ack",
            "CLOSE_WAIT": "fin",
            "CLOSING": "close early_fin",
            "LAST_ACK": "fin close",
            "TIME_WAIT": "close ack fin",
        }
        for step in steps[state].split():
            if step == "close":
                assert stack.close(handle, write_only=True) == 0
                peer.expect("FA")
            elif step == "ack":
                peer.send("A")
            else:
                peer.send("FA", ack=0 if step == "early_fin" else None)
                peer.expect("A", ack=1)
    stack.events.clear()
    assert peer.state == state
    if state in FIN_OUT:
        peer.rcv_nxt = 0  # so that what the peer sends does not acknowledge the FIN by the way
    peer.expect_nothing()
    return stack, peer


def shard_next(state: str) -> int:
    """The next sequence number that the shard sends in that state: 1 after a FIN."""
    return 0 if state in ("SYN_RCVD", "ESTABLISHED", "CLOSE_WAIT") else 1


# ---- LISTEN and CLOSED: 3.10.7.1, 3.10.7.2 --------------------------------------------


def test_listen_syn_opens_and_knocks() -> None:
    stack = Stack(listen=80)
    peer = Peer(stack)
    peer.send("S")
    peer.expect("SA", seq=-1, ack=0, payload=b"")
    assert stack.stats.flows_half_open == 1
    stack.expect_no_event()
    peer.send("A")
    stack.expect("KNOCK", peer=(REMOTE, 50000), local=(LOCAL, 80), family=4, cookie=77)
    assert stack.stats.flows_half_open == 0
    peer.expect_nothing()


def test_listen_syn_with_payload_opens_and_leaves_the_payload_unacknowledged() -> None:
    stack = Stack(listen=80)
    peer = Peer(stack)
    peer.send("S", b"early")
    peer.expect("SA", ack=0)
    peer.send("PA", b"early", seq=0)
    stack.expect("KNOCK")


@pytest.mark.parametrize("flags", ["A", "PA", "SA", "FA"])
def test_listen_ack_is_reset(flags: str) -> None:
    stack = Stack(listen=80)
    peer = Peer(stack)
    peer.send(flags, seq=5, ack=1000)
    peer.expect("R", seq=1000, payload=b"")
    assert stack.is_idle()


@pytest.mark.parametrize("flags", ["", "F", "P", "U", "FPU", "SF", "R", "RA", "SR"])
def test_listen_other_flags_are_dropped(flags: str) -> None:
    # 3.10.7.2, fourth: "Drop the segment"; what scanners send tells them nothing.
    stack = Stack(listen=80)
    peer = Peer(stack)
    peer.send(flags, seq=5, ack=1000)
    peer.expect_nothing()
    assert stack.is_idle()


def test_closed_syn_is_reset() -> None:
    stack = Stack()
    peer = Peer(stack)
    peer.send("S", b"abc")
    peer.expect("RA", ack=3, to_mac=peer.mac, window=0)
    assert stack.counters("drop_tcp_no_listener", "tcp_rst_out") == [1, 1]


def test_closed_ack_is_reset_with_its_number() -> None:
    stack = Stack()
    peer = Peer(stack)
    peer.send("FPA", b"abc", seq=7, ack=4000)
    peer.expect("R", seq=4000)


@pytest.mark.parametrize("flags", ["R", "RA", "SR"])
def test_closed_rst_is_dropped(flags: str) -> None:
    stack = Stack()
    peer = Peer(stack)
    peer.send(flags, ack=4)
    peer.expect_nothing()


@pytest.mark.parametrize("flags, length", [("SF", 2), ("", 0)])
def test_closed_nonsense_is_reset_as_anything_is(flags: str, length: int) -> None:
    peer = Peer(Stack())
    seq = peer.snd_nxt
    peer.send(flags)
    answer = peer.take()
    assert answer.flags == "RA" and answer.ack == seq + length


def test_closed_group_mac_is_never_reset() -> None:
    stack = Stack()
    frame = Peer(stack).segment("S")
    stack.inject(b"\xff" * 6 + frame[6:])
    assert not stack.sent


def test_closed_port_of_another_shard_is_left_alone() -> None:
    stack = Stack(all_port_lo=30000)
    Peer(stack, port=30000).send("A")
    assert not stack.sent
    Peer(stack, port=39999).send("S")
    assert stack.counter("drop_tcp_foreign") == 2
    Peer(stack, port=29999).send("S")
    assert len(stack.sent) == 1


# ---- SYN_SENT: 3.10.7.3 ---------------------------------------------------------------


def test_syn_sent_syn_ack_establishes() -> None:
    stack, peer = in_state("SYN_SENT")
    peer.send("SA")
    peer.expect("A", seq=0, ack=0)
    stack.expect("CONNECTED", status=0, peer=(REMOTE, 80), local=(LOCAL, peer.port))
    assert peer.state == "ESTABLISHED"


@pytest.mark.parametrize("ack", [-1, -2, 1, 1000, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize("flags", ["A", "SA"])
def test_syn_sent_unacceptable_ack_is_reset(flags: str, ack: int) -> None:
    stack, peer = in_state("SYN_SENT")
    peer.send(flags, ack=ack)
    assert (peer.expect("R").seq - ack) % 2**32 == 0
    assert peer.state == "SYN_SENT"
    stack.expect_no_event()


@pytest.mark.parametrize("ack", [-1, 1])
def test_syn_sent_rst_with_unacceptable_ack_is_dropped(ack: int) -> None:
    _stack, peer = in_state("SYN_SENT")
    peer.send("RA", ack=ack)
    peer.expect_nothing()
    assert peer.state == "SYN_SENT"


def test_syn_sent_rst_with_ack_refuses() -> None:
    stack, peer = in_state("SYN_SENT")
    peer.send("RA")
    stack.expect("CONNECTED", status=-ECONNREFUSED, handle=peer.handle, cookie=5)
    peer.expect_nothing()
    assert stack.is_idle()


def test_syn_sent_rst_without_ack_is_dropped() -> None:
    _stack, peer = in_state("SYN_SENT")
    peer.send("R")
    assert peer.state == "SYN_SENT"
    peer.expect_nothing()


@pytest.mark.parametrize("flags", ["A", "PA", "FA", "F", ""])
def test_syn_sent_neither_syn_nor_rst_is_dropped(flags: str) -> None:
    _stack, peer = in_state("SYN_SENT")
    peer.send(flags, seq=3, ack=0)
    assert peer.state == "SYN_SENT"
    peer.expect_nothing()


def test_syn_sent_syn_opens_simultaneously() -> None:
    # 3.5, figure 7. The peer's SYN-ACK repeats its SYN; its ACK alone does too.
    stack, peer = in_state("SYN_SENT")
    peer.send("S")
    peer.expect("SA", seq=-1, ack=0)
    assert peer.state == "SYN_RCVD"
    peer.send("A")
    stack.expect("CONNECTED", status=0)
    assert peer.state == "ESTABLISHED"
    assert stack.sendv(peer.handle, b"x") == 1
    peer.expect("PA", b"x", seq=0)


def test_syn_rcvd_syn_ack_of_a_simultaneous_open_establishes() -> None:
    stack, peer = in_state("SYN_SENT")
    peer.send("S")
    peer.expect("SA")
    peer.send("SA", seq=-1)
    stack.expect("CONNECTED", status=0)
    peer.expect("A", seq=0, ack=0)
    assert peer.state == "ESTABLISHED"


def test_syn_rcvd_rst_of_a_simultaneous_open_refuses() -> None:
    stack, peer = in_state("SYN_SENT")
    peer.send("S")
    peer.expect("SA")
    peer.send("R")
    stack.expect("CONNECTED", status=-ECONNREFUSED)
    assert stack.is_idle()


# ---- first: sequence number -----------------------------------------------------------


@pytest.mark.parametrize("state", AFTER_SYN)
def test_data_before_the_window_is_acknowledged_again(state: str) -> None:
    stack, peer = in_state(state)
    peer.send("PA", b"old", seq=peer.snd_nxt - 10)
    peer.expect("A", ack=peer.snd_nxt)
    stack.expect_no_event()
    assert peer.state == state
    assert stack.counter("drop_tcp_seq") == 1


@pytest.mark.parametrize("state", AFTER_SYN)
def test_data_beyond_the_window_is_acknowledged_again(state: str) -> None:
    stack, peer = in_state(state)
    peer.send("PA", b"far", seq=peer.snd_nxt + 10_000_000)
    peer.expect("A")
    stack.expect_no_event()
    assert peer.state == state
    assert stack.counter("drop_tcp_seq") == 1


@pytest.mark.parametrize("state", OPEN)
def test_pure_ack_outside_the_window_is_challenged_once(state: str) -> None:
    _stack, peer = in_state(state)
    peer.send("A", seq=peer.snd_nxt - 10)
    peer.expect("A", ack=peer.snd_nxt)
    peer.send("A", seq=peer.snd_nxt + 10_000_000)
    peer.expect_nothing()
    assert peer.state == state


# ---- second: RST ----------------------------------------------------------------------


@pytest.mark.parametrize("state", OPEN)
def test_rst_exact_ends_the_connection(state: str) -> None:
    stack, peer = in_state(state)
    peer.send("R")
    stack.expect("DEAD", status=-ECONNRESET, handle=peer.handle, cookie=5)
    stack.expect_no_event()
    peer.expect_nothing()
    assert stack.is_idle()
    assert stack.counters("tcp_rst_in", "tcp_aborted") == [1, 1]


def test_syn_rcvd_rst_exact_returns_to_listen_without_a_word() -> None:
    stack, peer = in_state("SYN_RCVD", backlog=1)
    peer.send("R")
    stack.expect_no_event()
    assert stack.is_idle()
    Peer(stack, sport=50001).knock()  # its place in the backlog is free


def test_time_wait_rst_is_ignored() -> None:
    # RFC 1337: or a stray RST ends TIME_WAIT early.
    _stack, peer = in_state("TIME_WAIT")
    peer.send("R")
    assert peer.state == "TIME_WAIT"
    peer.expect_nothing()


@pytest.mark.parametrize("state", ["SYN_RCVD", *OPEN])
@pytest.mark.parametrize("offset", [1, 1000, 65535])
def test_rst_in_window_is_challenged(state: str, offset: int) -> None:
    # RFC 5961 3.2
    stack, peer = in_state(state)
    at = peer.snd_nxt
    peer.send("R", seq=at + offset)
    peer.expect("A", ack=at, seq=shard_next(state))
    assert peer.state == state
    stack.expect_no_event()


@pytest.mark.parametrize("state", ["SYN_RCVD", *OPEN])
@pytest.mark.parametrize("offset", [-1, -1000, 10_000_000, 2**31 - 1])
def test_rst_outside_the_window_is_dropped(state: str, offset: int) -> None:
    _stack, peer = in_state(state)
    peer.send("R", seq=peer.snd_nxt + offset)
    peer.expect_nothing()
    assert peer.state == state


def test_established_rst_with_payload_and_ack_resets() -> None:
    stack, peer = in_state("ESTABLISHED")
    peer.send("RA", b"reason", ack=12345)
    stack.expect("DEAD", status=-ECONNRESET)


# ---- fourth: SYN ----------------------------------------------------------------------


def test_syn_rcvd_repeated_syn_gets_its_syn_ack_again() -> None:
    _stack, peer = in_state("SYN_RCVD")
    peer.send("S", seq=-1)
    peer.expect("SA", seq=-1, ack=0)
    assert peer.state == "SYN_RCVD"


@pytest.mark.parametrize("state", ["SYN_RCVD", *OPEN])
@pytest.mark.parametrize("offset", [0, 1, 1000, 10_000_000, -10_000_000])
def test_syn_is_challenged(state: str, offset: int) -> None:
    # RFC 5961 4.2: whatever its sequence number.
    stack, peer = in_state(state)
    at, expected = peer.snd_nxt, shard_next(state)
    peer.send("S", seq=at + offset)
    peer.expect("A", seq=expected, ack=at)
    assert peer.state == state
    stack.expect_no_event()


@pytest.mark.parametrize("offset", [0, -1, -1000])
def test_time_wait_older_syn_is_challenged(offset: int) -> None:
    _stack, peer = in_state("TIME_WAIT")
    at = peer.snd_nxt
    peer.send("S", seq=at + offset)
    peer.expect("A", ack=at, seq=1)
    assert peer.state == "TIME_WAIT"


@pytest.mark.parametrize("offset", [1, 1000, 10_000_000])
def test_time_wait_newer_syn_opens_anew(offset: int) -> None:
    stack, peer = in_state("TIME_WAIT")
    old_irs = peer.irs
    again = Peer(stack, iss=peer.iss + 1 + peer.snd_nxt + offset)
    stack.poll(ms=1)
    again.connect()
    assert again.handle != peer.handle
    assert 0 < (again.irs - old_irs) % 2**32 < 2**31, "ISNs of one connection rise"
    assert stack.counters("tcp_time_wait_reused", "tcp_established") == [1, 2]


def test_time_wait_reused_begins_beyond_what_was_sent() -> None:
    # RFC 1122 4.2.2.13: a connection that sent faster than the ISN clock runs is ahead of it.
    stack, peer, handle = opened()
    stack.sendv(handle, b"x" * 1000)
    peer.take()
    peer.send("A")
    stack.close(handle)
    peer.expect("FA")
    peer.send("FA")
    peer.expect("A")
    stack.poll(ms=1)
    stack.events.clear()
    end = (peer.irs + 1 + peer.rcv_nxt) % 2**32  # the FIN is before it
    again = Peer(stack, iss=peer.iss + 1 + peer.snd_nxt + 1)
    again.connect()
    assert (again.irs - end) % 2**32 == 65537


def test_time_wait_syn_without_listener_is_not_reused() -> None:
    stack, peer = in_state("TIME_WAIT")
    assert stack.unlisten(80) == 0
    peer.send("S", seq=peer.snd_nxt + 1000)
    peer.expect("A")
    assert stack.stats.flows_time_wait == 1


def test_time_wait_syn_is_judged_by_its_timestamp() -> None:
    # RFC 6191 section 2: newer timestamp, whatever the sequence number.
    stack, peer = in_state("TIME_WAIT", ts=True)
    peer.send("S", seq=peer.snd_nxt + 1000, ts=(peer.ts_clock - 1, 0))
    peer.expect("A")
    assert stack.stats.flows_time_wait == 1
    again = Peer(stack, iss=peer.iss - 5000, ts=True, ts_clock=peer.ts_clock + 1)
    again.connect()
    assert stack.counter("tcp_time_wait_reused") == 1


def test_time_wait_syn_of_the_same_timestamp_needs_a_newer_sequence_number() -> None:
    stack, peer = in_state("TIME_WAIT", ts=True)
    peer.send("S", seq=peer.snd_nxt)
    peer.expect("A")
    Peer(stack, iss=peer.iss + 1000, ts=True).connect()


# ---- fifth: ACK -----------------------------------------------------------------------


@pytest.mark.parametrize("state", ["SYN_RCVD", *AFTER_SYN])
def test_segment_without_ack_is_dropped(state: str) -> None:
    stack, peer = in_state(state)
    peer.send("P", b"data", seq=peer.snd_nxt)
    peer.expect_nothing()
    assert peer.state == state
    assert stack.counter("drop_tcp_flags") == 1


@pytest.mark.parametrize("ack", [-1, -2, 1, 1000])
def test_syn_rcvd_unacceptable_ack_is_reset(ack: int) -> None:
    stack, peer = in_state("SYN_RCVD")
    peer.send("A", ack=ack)
    peer.expect("R", seq=ack)
    assert peer.state == "SYN_RCVD"
    peer.send("A")
    stack.expect("KNOCK")


@pytest.mark.parametrize("state", OPEN)
@pytest.mark.parametrize("ahead", [1, 100_000, 2**31 - 100])
def test_ack_of_what_was_never_sent_is_challenged(state: str, ahead: int) -> None:
    # RFC 5961 5.2; its payload is not taken.
    stack, peer = in_state(state)
    at, expected = peer.snd_nxt, shard_next(state)
    peer.send("PA", b"data", ack=expected + ahead)
    peer.expect("A", seq=expected, ack=at)
    stack.expect_no_event()
    assert peer.state == state


@pytest.mark.parametrize("state", OPEN)
def test_ack_older_than_any_window_is_challenged(state: str) -> None:
    stack, peer = in_state(state)
    peer.send("PA", b"data", ack=-70000)
    peer.expect("A")
    stack.expect_no_event()
    assert stack.counter("drop_tcp_ack") == 1


@pytest.mark.parametrize("state", ["ESTABLISHED", "FIN_WAIT_1", "FIN_WAIT_2"])
def test_old_ack_within_the_window_is_ignored_but_its_payload_taken(state: str) -> None:
    stack, peer, handle = opened()
    stack.sendv(handle, b"before")
    peer.expect("PA", b"before")
    peer.send("A")
    if state != "ESTABLISHED":
        stack.close(handle, write_only=True)
        peer.expect("FA")
        if state == "FIN_WAIT_2":
            peer.send("A")
    stack.events.clear()
    peer.send("PA", b"data", ack=1)
    stack.expect("RECV", data=b"data")
    assert peer.state == state


@pytest.mark.parametrize("state", OPEN)
def test_ack_from_before_the_connection_is_challenged(state: str) -> None:
    # RFC 5961 5.2, as Linux reads it: no ACK is older than what was ever acknowledged.
    _stack, peer = in_state(state)
    peer.send("A", ack=-1)
    peer.expect("A")
    assert peer.state == state
    assert _stack.counter("tcp_challenge_acks") == 1


def test_fin_wait_1_ack_of_the_fin_moves_to_fin_wait_2() -> None:
    stack, peer = in_state("FIN_WAIT_1")
    peer.send("A", ack=1)
    assert peer.state == "FIN_WAIT_2"
    peer.expect_nothing()
    stack.expect_no_event()


def test_closing_ack_of_the_fin_moves_to_time_wait() -> None:
    stack, peer = in_state("CLOSING")
    peer.send("A", ack=1)
    assert peer.state == "TIME_WAIT"
    stack.expect("DEAD", status=0)


def test_last_ack_ack_of_the_fin_closes() -> None:
    stack, peer = in_state("LAST_ACK")
    peer.send("A", ack=1)
    stack.expect("DEAD", status=0)
    assert stack.is_idle()
    assert stack.counters("tcp_closed", "tcp_aborted") == [1, 0]


# ---- seventh: data --------------------------------------------------------------------


@pytest.mark.parametrize("state", RECEIVING)
def test_data_in_order_is_lent_and_acknowledged_late(state: str) -> None:
    stack, peer = in_state(state)
    peer.send("PA", b"hello")
    event = stack.expect("RECV", handle=peer.handle, cookie=5, data=b"hello")
    stack.sleep(ms=39)
    peer.expect_nothing()
    stack.sleep(ms=1)
    peer.expect("A", seq=shard_next(state), ack=5)
    assert stack.done(event) == 0
    assert peer.state == state


@pytest.mark.parametrize("state", RECEIVING)
def test_data_repeated_is_acknowledged_and_not_delivered_again(state: str) -> None:
    stack, peer = in_state(state)
    peer.send("PA", b"hello")
    assert stack.received() == b"hello"
    stack.sleep(ms=40)
    peer.expect("A", ack=5)
    peer.send("PA", b"hello", seq=0)
    peer.expect("A", ack=5)
    stack.expect_no_event()
    assert stack.counter("tcp_dup_data") == 1


@pytest.mark.parametrize("state", DEAF)
def test_data_after_the_fin_is_acknowledged_and_dropped(state: str) -> None:
    stack, peer = in_state(state)
    at = peer.snd_nxt
    peer.send("PA", b"more")
    peer.expect("A", ack=at)
    stack.expect_no_event()
    assert peer.state == state
    assert stack.counter("drop_tcp_closed") == 1


def test_data_with_the_handshakes_ack_is_kept_until_accept() -> None:
    stack, peer = in_state("SYN_RCVD")
    peer.send("PA", b"request")
    handle = stack.expect("KNOCK").handle
    stack.expect_no_event()
    peer.send("FPA", b" more")
    peer.expect("A", ack=13)
    stack.expect_no_event()
    assert stack.accept(handle, cookie=9) == 0
    assert stack.expect("RECV", cookie=9).data == b"request"
    assert stack.expect("RECV", cookie=9).data == b" more"
    stack.expect("RECV", bytes=0, cookie=9)
    stack.expect_no_event()


# ---- eighth: FIN ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "state, after",
    [
        ("ESTABLISHED", "CLOSE_WAIT"),
        ("FIN_WAIT_1", "CLOSING"),
        ("FIN_WAIT_2", "TIME_WAIT"),
    ],
)
def test_fin_is_acknowledged_at_once(state: str, after: str) -> None:
    stack, peer = in_state(state)
    peer.send("FA")
    peer.expect("A", ack=1)
    stack.expect("RECV", bytes=0, handle=peer.handle)
    assert peer.state == after
    if after == "TIME_WAIT":
        stack.expect("DEAD", status=0)
    stack.expect_no_event()


def test_fin_wait_1_fin_that_acknowledges_ours_moves_to_time_wait() -> None:
    stack, peer = in_state("FIN_WAIT_1")
    peer.send("FA", ack=1)
    peer.expect("A", seq=1, ack=1)
    stack.expect("RECV", bytes=0)
    stack.expect("DEAD", status=0)
    assert peer.state == "TIME_WAIT"


@pytest.mark.parametrize("state", RECEIVING)
def test_fin_with_data_delivers_both(state: str) -> None:
    stack, peer = in_state(state)
    peer.send("FPA", b"bye")
    peer.expect("A", ack=4)
    stack.expect("RECV", data=b"bye")
    stack.expect("RECV", bytes=0)


@pytest.mark.parametrize("state", RECEIVING)
def test_fin_before_missing_data_waits_for_it(state: str) -> None:
    stack, peer = in_state(state)
    peer.send("FA", seq=4)
    peer.expect("A", ack=0)
    stack.expect_no_event()
    assert peer.state == state
    peer.send("PA", b"data", seq=0)
    peer.expect("A", ack=5)
    stack.expect("RECV", data=b"data")
    stack.expect("RECV", bytes=0)


def test_fin_repeated_with_data_taken_before_counts_once() -> None:
    stack, peer = in_state("ESTABLISHED")
    peer.send("PA", b"data")
    peer.send("FPA", b"data", seq=0)
    peer.expect("A", ack=5)
    assert stack.received() == b"data"
    assert peer.state == "CLOSE_WAIT"


@pytest.mark.parametrize("state", DEAF)
def test_fin_repeated_is_acknowledged_again(state: str) -> None:
    stack, peer = in_state(state)
    peer.send("FA", seq=peer.snd_nxt - 1)
    peer.expect("A", ack=peer.snd_nxt)
    stack.expect_no_event()
    assert peer.state == state


def test_fin_beyond_the_window_is_not_taken() -> None:
    stack, peer = in_state("ESTABLISHED", rcvbuf_bytes=600)
    peer.send("FA", b"x" * 700)
    assert peer.state == "ESTABLISHED"
    assert stack.counter("drop_tcp_wnd") == 100
    stack.expect("RECV", bytes=600)
    stack.expect_no_event()


# ---- TIME_WAIT ------------------------------------------------------------------------


def test_time_wait_ends_after_2_msl() -> None:
    stack, peer = in_state("TIME_WAIT", time_wait_ms=5000)
    stack.sleep(ms=4999)
    assert stack.stats.flows_time_wait == 1
    stack.sleep(ms=1)
    assert stack.is_idle()
    peer.expect_nothing()


def test_time_wait_repeated_fin_starts_it_anew() -> None:
    stack, peer = in_state("TIME_WAIT", time_wait_ms=5000)
    stack.sleep(ms=4000)
    peer.send("FA", seq=0)
    peer.expect("A", ack=1)
    stack.sleep(ms=4999)
    assert stack.stats.flows_time_wait == 1
    stack.sleep(ms=1)
    assert stack.is_idle()


# ---- PAWS and timestamps: RFC 7323 ----------------------------------------------------


def test_established_older_timestamp_is_challenged_and_dropped() -> None:
    stack, peer = in_state("ESTABLISHED", ts=True)
    peer.send("PA", b"data", ts=(peer.ts_clock - 1, peer.ts_seen))
    peer.expect("A", ack=0)
    stack.expect_no_event()
    assert stack.counter("drop_tcp_paws") == 1


def test_established_equal_and_wrapped_timestamps_are_taken() -> None:
    stack, peer = in_state("ESTABLISHED", ts=True)
    peer.send("PA", b"equal")
    peer.ts_clock = 3  # was 2^32 - 16
    peer.send("PA", b" newer")
    assert stack.received() == b"equal newer"


def test_established_missing_timestamp_is_taken() -> None:
    # RFC 7323 3.2 would have it dropped; Linux takes it.
    stack, peer = in_state("ESTABLISHED", ts=True)
    peer.send("PA", b"data", ts=None)
    assert stack.received() == b"data"
    assert stack.counter("drop_tcp_paws") == 0


def test_established_rst_needs_no_timestamp() -> None:
    stack, peer = in_state("ESTABLISHED", ts=True)
    peer.send("R")
    stack.expect("DEAD", status=-ECONNRESET)


def test_established_timestamp_after_24_days_of_silence_is_taken() -> None:
    # RFC 7323 5.5
    stack, peer = in_state("ESTABLISHED", ts=True)
    peer.send("PA", b"x", ts=(peer.ts_clock - 1, peer.ts_seen))
    assert stack.counter("drop_tcp_paws") == 1
    stack.now_ns += 25 * 24 * 3600 * 10**9
    stack.poll()
    peer.send("PA", b"data", seq=0, ts=(peer.ts_clock - 1, peer.ts_seen))
    stack.expect("RECV", data=b"data")


def test_established_timestamp_beside_an_impossible_ack_is_not_taken() -> None:
    # Or one guess of the sequence number alone would make PAWS drop the connection's segments.
    stack, peer = in_state("ESTABLISHED", ts=True)
    peer.send("PA", b"evil", ack=1000, ts=(peer.ts_clock + 2**30, peer.ts_seen))
    peer.expect("A", ack=0)
    peer.send("PA", b"good", seq=0)
    stack.expect("RECV", data=b"good")
    assert stack.counter("drop_tcp_paws") == 0


# ---- RFC 5961: challenge ACKs are limited ---------------------------------------------


def test_challenge_acks_are_limited_to_two_a_second() -> None:
    stack, peer = in_state("ESTABLISHED")
    for _ in range(100):
        peer.send("R", seq=100)
        stack.sleep(ms=20)
    assert 4 <= stack.counter("tcp_challenge_acks") <= 5
    assert len(stack.sent) == stack.counter("tcp_challenge_acks")


def test_challenge_acks_of_all_connections_have_a_limit_that_varies() -> None:
    # RFC 5961 section 7; CVE-2016-5696: nobody may count out how many others got.
    stack = Stack(listen=80, challenge_acks=10)
    peers = [Peer(stack, sport=50000 + i) for i in range(16)]
    for peer in peers:
        peer.connect()
    seen = []
    for _ in range(12):
        stack.now_ns = (stack.now_ns // 10**9 + 1) * 10**9
        before = stack.counter("tcp_challenge_acks")
        for peer in peers:
            peer.send("R", seq=100)
        seen.append(stack.counter("tcp_challenge_acks") - before)
    assert all(5 <= n <= 15 for n in seen) and len(set(seen)) > 3
    limited = stack.counter("tcp_challenge_limited")
    assert limited == 12 * 16 - sum(seen) > 0


# ---- ICMP errors about a connection: RFC 5927, RFC 1191 -------------------------------


def send_error(stack: Stack, quoted: bytes, **error: int) -> None:
    stack.inject(ethernet(ipv4(icmp_error(quoted, **error), 1, src=ROUTER)))


@pytest.mark.parametrize(
    "code, status", [(3, -ECONNREFUSED), (2, -ECONNREFUSED), (0, -EHOSTUNREACH), (1, -EHOSTUNREACH)]
)
def test_syn_sent_icmp_unreachable_fails_the_connect(code: int, status: int) -> None:
    stack = Stack()
    stack.connect_call(80)
    send_error(stack, stack.sent.popleft(), code=code)
    stack.expect("CONNECTED", status=status)
    assert stack.is_idle()
    assert stack.counter("icmp_errors_in") == 1


def test_syn_sent_icmp_error_of_another_sequence_number_is_stale() -> None:
    stack = Stack()
    stack.connect_call(80)
    syn = bytearray(stack.sent.popleft())
    syn[38] ^= 1
    send_error(stack, bytes(syn))
    stack.expect_no_event()
    assert stack.counters("drop_icmp_stale", "icmp_errors_in") == [1, 0]


def test_established_icmp_unreachable_is_soft() -> None:
    stack, peer = in_state("ESTABLISHED")
    stack.sendv(peer.handle, b"data")
    send_error(stack, peer.expect("PA").frame, code=1)
    assert peer.state == "ESTABLISHED"
    assert stack.counter("icmp_errors_in") == 1


# ---- what the parser refuses ----------------------------------------------------------


def test_partial_checksum_is_named_once_to_the_control_plane() -> None:
    from tests.unit.packets import pseudo_bytes, words_sum
    from tests.unit.san import lib

    stack, peer = in_state("ESTABLISHED")
    for _ in range(2):
        frame = bytearray(peer.segment("PA", b"data"))
        size = int.from_bytes(frame[16:18], "big") - 20
        partial = words_sum(pseudo_bytes(REMOTE, LOCAL, 6, size))
        frame[50:52] = partial.to_bytes(2, "little")
        stack.inject(bytes(frame))
    assert stack.counters("drop_partial_csum", "drop_tcp_csum") == [2, 0]
    assert stack.request() == (lib.IX_CTL_PARTIAL_CSUM, "0.0.0.0")
    assert stack.request() is None
