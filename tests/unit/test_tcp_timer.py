"""tcp/timer: what a connection does when time passes and nothing happens."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tests.unit.peer import ENOENT, ETIMEDOUT, MS, MSS, Peer, Stack, opened, stream

SECOND = 1000


def times(stack: Stack, ms: int) -> list[float]:
    """Lets time pass; when frames were sent meanwhile, ms from now."""
    start, out = stack.now_ns, []
    until = start + ms * MS
    while stack.deadline <= until:
        stack.now_ns = max(stack.now_ns + 1000, stack.deadline)
        before = len(stack.sent)
        stack.poll()
        out += [(stack.now_ns - start) / MS] * (len(stack.sent) - before)
    stack.now_ns = until
    stack.poll()
    return out


def near(found: list[float], wanted: list[float]) -> bool:
    """Equal but for the tick of the timing wheel."""
    return len(found) == len(wanted) and all(
        0 <= f - w < 0.1 for f, w in zip(found, wanted, strict=True)
    )


# ---- handshakes -----------------------------------------------------------------------


def test_syn_sent_silence_repeats_the_syn_and_gives_up() -> None:
    # RFC 6298 (2.1), (5.5): 1 s, doubled each time
    stack = Stack()
    handle = int(stack.connect_call().handle)
    peer = Peer(stack, port=0, sport=80)
    found = times(stack, 128 * SECOND)
    assert near(found, [1000, 3000, 7000, 15000, 31000, 63000])
    peer.port = int.from_bytes(stack.sent[0][34:36], "big")
    assert all((s.flags, s.seq) == ("S", -1) for s in peer.take_all())
    stack.expect("CONNECTED", handle=handle, status=-ETIMEDOUT)
    assert stack.call("ABORT", handle=handle) == -ENOENT
    assert stack.is_idle()
    assert stack.counter("tcp_timeouts") == 1


def test_syn_rcvd_silence_repeats_the_syn_ack_and_forgets() -> None:
    stack = Stack(listen=80)
    peer = Peer(stack)
    peer.send("S")
    peer.expect("SA")
    assert near(times(stack, 64 * SECOND), [1000, 3000, 7000, 15000, 31000])
    assert all(s.flags == "SA" and s.ack == 0 for s in peer.take_all())
    stack.expect_no_event()
    assert stack.is_idle()


def test_handshake_measures_the_round_trip() -> None:
    stack = Stack(listen=80)
    peer = Peer(stack)
    peer.send("S")
    peer.expect("SA")
    stack.sleep(ms=50)
    peer.send("A")
    info = stack.info(stack.expect("KNOCK").handle)
    assert abs(info.srtt_us - 50_000) < 100
    assert abs(info.rto_us - (50_000 + 200_000)) < 200  # srtt + max(4 * rttvar, 200 ms)


def test_handshake_after_a_lost_syn_starts_with_3_s_and_one_segment() -> None:
    # RFC 6298 (5.7), RFC 5681 3.1
    stack = Stack(listen=80)
    peer = Peer(stack)
    peer.send("S")
    stack.sleep(ms=1100)
    stack.sent.popleft()
    peer.expect("SA")
    peer.send("A")
    handle = stack.expect("KNOCK").handle
    stack.accept(handle)
    stack.stream(handle, 0, 3 * MSS)
    peer.expect_stream((0, MSS))
    assert near(times(stack, 4 * SECOND), [3000])


# ---- data -----------------------------------------------------------------------------


def test_established_silence_backs_off_and_gives_up() -> None:
    # RFC 9293 3.8.3: R2 corresponds to at least 100 s
    stack, peer, handle = opened()
    stack.stream(handle, 0, 10)
    peer.expect_stream((0, 10))
    found = times(stack, 2000 * SECOND)
    steps = [0.2 * 2**i for i in range(10)] + [120] * 5
    due = [round(1000 * sum(steps[: i + 1])) for i in range(15)]
    assert all(abs(f - w) < 2 for f, w in zip(found, [*due, due[-1] + 120_000], strict=True))
    sent = peer.take_all()
    assert all((s.seq, s.payload) == (0, stream(0, 10)) for s in sent[:-1])
    assert sent[-1].flags == "RA" and sent[-1].seq == 10
    stack.expect("DEAD", status=-ETIMEDOUT)
    assert stack.is_idle()


def test_established_ack_resets_the_give_up_count() -> None:
    stack, peer, handle = opened()
    stack.stream(handle, 0, 2 * MSS)
    stack.sleep(ms=60 * SECOND)
    peer.take_all()
    peer.send("A", ack=MSS)
    stack.sleep(ms=800 * SECOND)
    assert peer.state == "ESTABLISHED"


def test_timer_restarts_when_data_is_acknowledged() -> None:
    # RFC 6298 (5.3)
    stack, peer, handle = opened()
    stack.stream(handle, 0, 2 * MSS)
    peer.take_all()
    stack.sleep(ms=150)
    peer.send("A", ack=MSS)
    stack.sleep(ms=150)
    peer.expect_nothing()


def test_timer_stops_when_all_is_acknowledged() -> None:
    # RFC 6298 (5.2)
    stack, peer, handle = opened()
    stack.stream(handle, 0, MSS)
    peer.take_all()
    peer.send("A")
    assert stack.stats.timers_armed == 0


def test_retransmitted_data_gives_no_sample_and_keeps_the_back_off() -> None:
    # Karn's algorithm: the backed-off timeout stays until something sent once is acknowledged.
    stack, peer, handle = opened()
    srtt = stack.info(handle).srtt_us
    stack.stream(handle, 0, 10)
    stack.sleep(ms=700)  # sent at 0, 200 and 600 ms
    assert len(peer.take_all()) == 3
    peer.send("A")
    assert stack.info(handle).srtt_us == srtt
    assert 795_000 < stack.info(handle).rto_us < 805_000
    stack.stream(handle, 10, 10)
    peer.take_all()
    stack.sleep(ms=500)
    peer.expect_nothing()
    peer.send("A")
    assert stack.info(handle).srtt_us > srtt
    assert stack.info(handle).rto_us != 800_000


def test_round_trip_longer_than_the_timeout_is_learned() -> None:
    # Without Karn's back-off every segment would be sent twice for ever.
    stack, peer, handle = opened()
    for i in range(12):
        stack.stream(handle, 10 * i, 10)
        stack.sleep(ms=900)
        sent = len(peer.take_all())
        peer.send("A")
    assert sent == 1
    assert stack.info(handle).srtt_us > 300_000


@pytest.mark.parametrize("timeout", [300, 1000, 5000, 130_000])
def test_user_timeout_ends_the_connection(timeout: int) -> None:
    # RFC 9293 3.8.3, RFC 5482
    stack, peer, handle = opened()
    assert stack.option(handle, "USER_TIMEOUT_NS", timeout * MS) == 0
    stack.stream(handle, 0, 10)
    stack.sleep(ms=timeout - 5)
    assert peer.state == "ESTABLISHED"
    stack.sleep(ms=10)
    stack.expect("DEAD", status=-ETIMEDOUT)
    assert stack.sent[-1][47] == 0x14  # RST, ACK


def test_user_timeout_of_a_connect_spaces_syns_as_ever() -> None:
    stack = Stack()
    handle = int(stack.connect_call().handle)
    stack.option(handle, "USER_TIMEOUT_NS", 5000 * MS)
    stack.sent.clear()
    assert near(times(stack, 4900), [1000, 3000])
    stack.expect_no_event()
    stack.sleep(ms=200)
    stack.expect("CONNECTED", status=-ETIMEDOUT)
    assert stack.is_idle()


def test_user_timeout_counts_from_the_probe_that_was_not_answered() -> None:
    # A keepalive probe is out when the application sends: that is no reason to give up at once.
    stack, peer, handle = opened()
    stack.sleep(ms=60 * SECOND)
    stack.option(handle, "KEEPALIVE_NS", 1000 * MS)
    stack.option(handle, "USER_TIMEOUT_NS", 5000 * MS)
    stack.sleep(ms=1000)
    peer.expect("A", seq=-1)
    stack.stream(handle, 0, 10)
    assert 2 <= len(times(stack, 3000)) <= 4
    assert peer.state == "ESTABLISHED"
    peer.take_all()
    stack.sleep(ms=2100)
    stack.expect("DEAD", status=-ETIMEDOUT)


# ---- zero window ----------------------------------------------------------------------


def closed_window(**options: object) -> tuple[Stack, Peer, int]:
    """A connection with 3,000 bytes to send into a window of 0."""
    stack, peer, handle = opened(**options)
    peer.send("A", window=0)
    assert stack.stream(handle, 0, 3000) == 3000
    peer.expect_nothing()
    return stack, peer, handle


def test_zero_window_is_probed_with_back_off() -> None:
    # RFC 9293 3.8.6.1
    stack, peer, _handle = closed_window()
    assert near(times(stack, 7 * SECOND), [200, 600, 1400, 3000, 6200])
    for probe in peer.take_all():
        assert (probe.flags, probe.seq, probe.payload) == ("A", -1, b"")
    assert stack.counter("tcp_probes") == 5


def test_zero_window_answered_is_kept_open_for_ever() -> None:
    stack, peer, _handle = closed_window()
    for _ in range(40):
        stack.sleep(ms=130 * SECOND)  # probes come 120 s apart at last
        assert peer.take_all()
        peer.send("A", window=0)
    assert peer.state == "ESTABLISHED"


def test_zero_window_silence_gives_up() -> None:
    stack, _peer, _handle = closed_window()
    stack.sleep(ms=2000 * SECOND)
    stack.expect("DEAD", status=-ETIMEDOUT)


def test_zero_window_reopened_sends_at_once() -> None:
    stack, peer, _handle = closed_window()
    stack.sleep(ms=SECOND)
    peer.take_all()
    peer.send("A", window=65535)
    peer.expect_stream((0, MSS), (MSS, 2 * MSS), (2 * MSS, 3000))
    assert near(times(stack, SECOND), [200, 600])


def test_window_too_small_to_be_worth_filling_is_filled_after_a_while() -> None:
    # RFC 9293 3.8.6.2.1 (4)
    stack, peer, _handle = closed_window()
    peer.send("A", window=100)
    peer.expect_nothing()
    stack.sleep(ms=250)
    peer.expect_stream((0, 100))
    peer.send("A", window=100)
    peer.expect_stream((100, 200))


def test_window_too_small_is_filled_though_the_peer_keeps_talking() -> None:
    # Found by tests/property/test_sender.py: each of its segments put the timer off.
    stack, peer, handle = opened()
    stack.stream(handle, 0, 10)
    stack.sleep(ms=5000)  # the timeout is backed off far
    peer.take_all()
    peer.send("A", ack=10, window=1000)
    stack.stream(handle, 10, 3000)
    peer.expect_nothing()
    sent, waited = [], 0
    while not sent:
        stack.sleep(ms=90)
        waited += 90
        peer.send("PA", b"news", window=1000)
        sent = [(s.seq, len(s.payload)) for s in peer.take_all() if s.payload]
    assert sent == [(10, 1000)]
    assert 400 < waited < 700


def test_window_closed_behind_data_in_flight_is_probed() -> None:
    stack, peer, handle = opened()
    stack.stream(handle, 0, 2 * MSS)
    peer.take_all()
    peer.send("A", ack=MSS, window=0)
    stack.sleep(ms=SECOND)
    assert peer.take_all()
    peer.send("A", ack=MSS, window=65535)
    stack.settle()
    peer.expect_stream((MSS, 2 * MSS))


# ---- delayed ACK ----------------------------------------------------------------------


def test_delayed_ack_comes_after_40_ms() -> None:
    stack, peer, _handle = opened()
    peer.send("PA", b"x")
    assert near(times(stack, SECOND), [40])
    assert stack.counter("tcp_delayed_acks") == 1


def test_delayed_ack_counts_from_the_last_segment_that_waits() -> None:
    stack, peer, handle = opened()
    peer.send("PA", b"x")
    stack.sleep(ms=20)
    stack.sendv(handle, b"answer")  # carries the ACK
    peer.send("PA", b"y", ack=6)
    peer.take_all()
    assert [round(t) for t in times(stack, SECOND)] == [40]


def test_second_segment_is_acknowledged_at_once() -> None:
    stack, peer, _handle = opened()
    peer.send("PA", b"x")
    peer.expect_nothing()
    peer.send("PA", b"y")
    peer.expect("A", ack=2)
    stack.sleep(ms=SECOND)
    peer.expect_nothing()


def test_ack_does_not_wait_after_a_pause_longer_than_the_timeout() -> None:
    # RFC 5681 4.1: the peer begins slowly after such a pause, and there is nothing to wait for.
    stack, peer, handle = opened()
    stack.sleep(ms=3 * SECOND)
    peer.send("PA", b"x")  # the first is no pause's end
    assert near(times(stack, SECOND), [40])
    peer.take_all()
    rto_ms = stack.tcb(handle).rto_us // 1000
    stack.sleep(ms=rto_ms + 100)
    peer.send("PA", b"y")
    stack.settle()
    peer.expect("A", ack=2)
    stack.sleep(ms=rto_ms // 2)
    peer.send("PA", b"z")
    assert near(times(stack, SECOND), [40])


def test_ack_waits_for_the_answer_of_one_that_answers_after_a_pause_too() -> None:
    stack, peer, handle = opened()
    for number in range(3):
        peer.send("PA", b"x", ack=6 * number)
        peer.expect_nothing()
        stack.sleep(ms=10)
        stack.sendv(handle, b"answer")
        peer.expect("PA", ack=number + 1)
        peer.send("A", ack=6 * (number + 1))
        stack.sleep(ms=3 * SECOND)
        peer.expect_nothing()


# ---- keepalive ------------------------------------------------------------------------


def test_keepalive_probes_an_idle_connection() -> None:
    # RFC 9293 3.8.4
    stack, peer, handle = opened()
    assert stack.option(handle, "KEEPALIVE_NS", 10 * 10**9) == 0
    assert near(times(stack, 11 * SECOND), [10_000])
    probe = peer.expect("A", seq=-1, ack=0)
    assert probe.payload == b""
    peer.send("A")
    assert near(times(stack, 11 * SECOND), [10_000])
    assert stack.counter("tcp_keepalives") == 2


def test_keepalive_unanswered_nine_times_gives_up() -> None:
    stack, _peer, handle = opened()
    stack.option(handle, "KEEPALIVE_NS", 10**9)
    found = times(stack, 20 * SECOND)
    assert len(found) == 10  # nine probes and an RST
    stack.expect("DEAD", status=-ETIMEDOUT)
    assert stack.is_idle()


def test_keepalive_is_silent_while_the_peer_talks() -> None:
    stack, peer, handle = opened()
    stack.option(handle, "KEEPALIVE_NS", 10**9)
    for _ in range(10):
        stack.sleep(ms=900)
        peer.send("A")
    peer.expect_nothing()


def test_keepalive_off_is_off() -> None:
    stack, peer, handle = opened()
    stack.option(handle, "KEEPALIVE_NS", 10**9)
    stack.option(handle, "KEEPALIVE_NS", 0)
    stack.sleep(ms=10 * SECOND)
    peer.expect_nothing()
    assert stack.stats.timers_armed == 0


def test_keepalive_with_user_timeout_gives_up_by_it() -> None:
    stack, _peer, handle = opened()
    stack.option(handle, "KEEPALIVE_NS", 10**9)
    stack.option(handle, "USER_TIMEOUT_NS", 3 * 10**9)
    stack.sleep(ms=2900)  # counted from when the peer was last heard of, as Linux has it
    stack.expect_no_event()
    stack.sleep(ms=200)
    stack.expect("DEAD", status=-ETIMEDOUT)


# ---- FIN_WAIT_2 -----------------------------------------------------------------------


def test_fin_wait_2_of_a_closed_application_ends_after_a_minute() -> None:
    stack, peer, handle = opened()
    stack.close(handle)
    peer.expect("FA")
    peer.send("A")
    stack.sleep(ms=59 * SECOND)
    stack.expect_no_event()
    stack.sleep(ms=2 * SECOND)
    stack.expect("DEAD", status=0)
    assert stack.is_idle()


def test_fin_wait_2_of_a_half_close_lasts() -> None:
    stack, peer, handle = opened()
    stack.close(handle, write_only=True)
    peer.expect("FA")
    peer.send("A")
    stack.sleep(ms=1000 * SECOND)
    assert peer.state == "FIN_WAIT_2"
    stack.close(handle)
    stack.sleep(ms=61 * SECOND)
    stack.expect("DEAD", status=0)


# ---- outgoing ports when the NIC's spreading is unknown --------------------------------


def test_syn_sent_unanswered_tries_other_ports() -> None:
    stack = Stack(shard_count=2)
    call = stack.connect_call()
    assert call.result == 0
    found = times(stack, SECOND)
    assert near(found[:3], [100, 200, 300])
    ports = [int.from_bytes(frame[34:36], "big") for frame in stack.sent]
    assert len(set(ports)) == len(ports)
    peer = Peer(stack, port=ports[-1], sport=80, handle=int(call.handle))
    peer.parse(stack.sent[-1])
    peer.send("SA")
    stack.expect("CONNECTED", status=0, local=("10.0.0.1", ports[-1]))


def test_intervals_of_a_fixed_port_do_not_change() -> None:
    stack = Stack(shard_count=2)
    stack.connect_call(local_port=1234)
    found = times(stack, 4 * SECOND)
    assert [round(b - a) for a, b in pairwise([0, *found])] == [1000, 2000]


def test_zero_window_answered_is_probed_with_back_off() -> None:
    # RFC 9293 3.8.6.1: the interval grows although the peer answers each probe
    stack, peer, _handle = closed_window()
    times = []
    for _ in range(6):
        before = stack.counter("tcp_probes")
        while stack.counter("tcp_probes") == before:
            stack.sleep(ms=20)
        times.append(stack.now_ns)
        peer.take_all()
        peer.send("A", window=0)
    gaps = [b - a for a, b in pairwise(times)]
    assert all(b > 1.7 * a for a, b in pairwise(gaps)), gaps
