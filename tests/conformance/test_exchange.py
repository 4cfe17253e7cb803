"""What takes more than one segment, against ixnet and against Linux with the same expectations.

Where they are expected to differ the test says so, and why. Times of Linux's are real, so only
their order and rough proportions are looked at, and in the long form alone (`make conformance`).
"""

from __future__ import annotations

import errno
import itertools
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.exchange import Exchange, UnderTest, unreachable
from tests.conformance.stack import Failed

HOST, PORT, FRAG_NEEDED = 1, 3, 4
TCP_KEEPIDLE = socket.TCP_KEEPIDLE


def data_of(packets: list[Any]) -> bytes:
    """The payload of packets in a row."""
    return b"".join(bytes(tcp.payload) for tcp in packets)


# ---- RFC 9293 3.5: opening ----------------------------------------------------------------------


def test_simultaneous_open_connects(stack: UnderTest) -> None:
    # 3.5, figure 7
    e = Exchange(stack).to("SYN_SENT")
    assert e.put("S", options=[("MSS", 1000)]) == ["SA ack+1"]
    e.seq += 1
    assert e.state() == "SYN_RCVD"
    assert e.put("SA", seq=-1) == ["A"]
    assert e.state() == "ESTABLISHED"
    assert e.put("PA", data=b"x") == ["A ack+1"]


def test_syn_repeated_is_answered_again(stack: UnderTest) -> None:
    # 3.10.7.4: the SYN-ACK was lost
    e = Exchange(stack).to("SYN_RCVD")
    assert e.put("S", seq=-1, options=e.syn_options()) == ["SA"]
    assert e.put("A") == []
    e.accept()
    assert e.state() == "ESTABLISHED"


def test_half_open_is_found_by_the_next_syn(stack: UnderTest) -> None:
    # 3.5.1, RFC 5961 4.2: a peer that has forgotten resets what the challenge ACK tells it
    e = Exchange(stack).to("ESTABLISHED")
    assert e.put("S", seq=5000, options=e.syn_options()) == ["A"]
    assert e.put("R") == []
    assert e.error() == errno.ECONNRESET


def test_half_open_is_found_by_data(stack: UnderTest) -> None:
    # 3.5.1, figure 10
    e = Exchange(stack).to("ESTABLISHED")
    e.write(b"anybody there?")
    e.expect("A 14 bytes")
    assert e.put("R") == []
    with pytest.raises(Failed) as failed:
        e.read()
    assert failed.value.errno == errno.ECONNRESET


def test_listener_full_leaves_syns_unanswered(stack: UnderTest) -> None:
    # Linux: listen(1) holds two connections, and drops further SYNs: without a RST peers try again
    first = Exchange(stack, backlog=1).to("LISTEN")
    peers = []
    for _ in range(2):
        e = Exchange(stack)
        e.port, e.listener = first.port, first.listener
        stack.put(e.segment("S", options=e.syn_options()))
        (syn_ack,) = e.packets()
        e.seq, e.ack = e.seq + 1, int(syn_ack.seq) + 1
        assert e.put("A") == []
        peers.append(e)
    late = Exchange(stack)
    late.port = first.port
    assert late.put("S", options=late.syn_options()) == []
    for e in peers:
        e.accept()
        assert e.put("PA", data=b"x") == ["A ack+1"]
    assert late.put("S", options=late.syn_options()) == ["SA ack+1"]


# ---- RFC 7323: timestamps -----------------------------------------------------------------------


def test_timestamps_are_echoed(stack: UnderTest) -> None:
    e = Exchange(stack, timestamps=True).to("ESTABLISHED")
    e.clock += 50
    stack.put(e.segment("PA", data=b"x"))
    (ack,) = e.packets()
    assert dict(ack.options)["Timestamp"][1] == e.clock


def test_paws_drops_what_is_from_the_past(stack: UnderTest) -> None:
    # 5.3 R1
    e = Exchange(stack, timestamps=True).to("ESTABLISHED")
    e.clock -= 500
    assert e.put("PA", data=b"old") == ["A"]
    assert e.read() is None
    e.clock += 500
    assert e.put("PA", data=b"new") == ["A ack+3"]
    assert e.read() == b"new"


def test_paws_lets_resets_pass(stack: UnderTest) -> None:
    # 5.2: a RST is not subject to it
    e = Exchange(stack, timestamps=True).to("ESTABLISHED")
    e.clock -= 500
    assert e.put("R") == []
    assert e.error() == errno.ECONNRESET


def test_segment_without_its_timestamp(stack: UnderTest) -> None:
    # 3.2: it should be dropped; both take it.
    e = Exchange(stack, timestamps=True).to("ESTABLISHED")
    assert e.put("PA", data=b"x", options=[]) == ["A ack+1"]
    assert e.read() == b"x"


# ---- RFC 9293 3.6: closing ----------------------------------------------------------------------


def test_orderly_close_ends_in_time_wait(stack: UnderTest) -> None:
    e = Exchange(stack).to("FIN_WAIT_2")
    assert e.put("FA") == ["A ack+1"]
    e.seq += 1
    assert e.put("FA", seq=-1) == ["A"]
    # RFC 1337: a RST doesn't end it. With Linux's default (tcp_rfc1337 0) it does.
    assert e.put("R") == []
    assert e.put("FA", seq=-1) == (["R"] if stack.real_time else ["A"])


def test_simultaneous_close_ends_in_time_wait(stack: UnderTest) -> None:
    e = Exchange(stack).to("CLOSING")
    assert e.put("A") == []
    assert e.put("FA", seq=-1) == ["A"]


def test_time_wait_is_reused_by_a_newer_syn(stack: UnderTest) -> None:
    # RFC 6191, RFC 9293 3.10.7.4
    e = Exchange(stack, timestamps=True).to("TIME_WAIT")
    e.clock += 100
    stack.put(e.segment("S", seq=100, options=e.syn_options()))
    (syn_ack,) = e.packets()
    assert syn_ack.flags == "SA"
    assert syn_ack.ack == e.seq + 101


def test_time_wait_answers_an_older_syn(stack: UnderTest) -> None:
    e = Exchange(stack, timestamps=True).to("TIME_WAIT")
    e.clock -= 100
    assert e.put("S", seq=-500, options=e.syn_options()) == ["A"]


def test_linger_zero_resets(stack: UnderTest) -> None:
    # 3.10.5
    e = Exchange(stack).to("ESTABLISHED")
    e.option(socket.SOL_SOCKET, socket.SO_LINGER, 1, 0)
    e.close()
    assert e.answers() == ["RA"]
    assert e.put("A") == ["R"]


def test_close_with_unread_data_resets(stack: UnderTest) -> None:
    # RFC 2525 2.17
    e = Exchange(stack).to("ESTABLISHED")
    assert e.put("PA", data=b"unread") == ["A ack+6"]
    e.seq += 6
    e.close()
    assert e.answers() == ["RA"]


def test_data_after_close_is_reset(stack: UnderTest) -> None:
    # RFC 1122 4.2.2.13
    e = Exchange(stack).to("ESTABLISHED")
    e.close()
    e.expect("FA")
    e.ack += 1
    (answer,) = e.put("PA", data=b"nobody reads this")
    assert answer.startswith("R")


def test_half_close_goes_on_receiving(stack: UnderTest) -> None:
    e = Exchange(stack).to("FIN_WAIT_2")
    assert e.put("PA", data=b"still") == ["A ack+5"]
    assert e.read() == b"still"


def test_fin_out_of_order_waits_for_the_data_before(stack: UnderTest) -> None:
    e = Exchange(stack).to("ESTABLISHED")
    assert e.put("FA", seq=5) == ["A"]
    assert e.state() == "ESTABLISHED"
    stack.put(e.segment("PA", data=b"12345"))
    assert e.show(e.wait()) == "A ack+6"
    assert (e.read(), e.read()) == (b"12345", b"")
    assert e.state() == "CLOSE_WAIT"


def test_fin_with_data_is_taken_after_it(stack: UnderTest) -> None:
    e = Exchange(stack).to("ESTABLISHED")
    stack.put(e.segment("FPA", data=b"last words"))
    assert e.show(e.wait()) == "A ack+11"
    assert (e.read(), e.read()) == (b"last words", b"")


# ---- RFC 9293 3.8.6: windows --------------------------------------------------------------------


def test_no_more_than_the_window_is_sent(stack: UnderTest) -> None:
    e = Exchange(stack, window=2000).to("ESTABLISHED")
    e.write(bytes(5000))
    assert len(data_of(e.packets())) == 2000
    e.ack += 2000
    stack.put(e.segment("A", window=8000))
    assert len(data_of(e.packets())) == 3000


def test_zero_window_stops_and_its_update_goes_on(stack: UnderTest) -> None:
    e = Exchange(stack).to("ESTABLISHED")
    assert e.put("A", window=0) == []
    e.write(b"patience")
    assert e.answers() == []
    assert e.put("A", window=4000) == ["A 8 bytes"]


def test_window_taken_back_is_survived(stack: UnderTest) -> None:
    # 3.8.6: "robust against window shrinking"
    e = Exchange(stack).to("ESTABLISHED")
    e.write(bytes(3000))
    assert len(data_of(e.packets())) == 3000
    e.ack += 1000
    assert e.put("A", window=0) == []
    e.ack += 2000
    assert e.put("A", window=4000) == []
    assert e.state() == "ESTABLISHED"
    e.write(b"more")
    e.expect("A 4 bytes")


def test_data_beyond_the_window_is_refused(stack: UnderTest) -> None:
    # 3.10.7.4: what fits is taken, an ACK says where the window is
    e = Exchange(stack).to("ESTABLISHED")
    e.option(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sent = 0
    for _ in range(400):
        stack.put(e.segment("PA", data=bytes(1000)))
        ack = e.packets()[-1:] or [e.wait()]
        took = int(ack[0].ack) - e.seq
        e.seq, sent = e.seq + took, sent + took
        if took < 1000:
            break
    assert took < 1000
    got = 0
    while (data := e.read()) is not None:
        got += len(data)
    assert got == sent
    e.packets()
    stack.put(e.segment("PA", data=b"x"))
    assert e.show(e.wait()) == "A ack+1"


# ---- ICMP: RFC 1122 4.2.3.9, RFC 5927 -----------------------------------------------------------


def test_port_unreachable_refuses_a_connect(stack: UnderTest) -> None:
    e = Exchange(stack).to("SYN_SENT")
    unreachable(e, PORT, seq=-1)
    assert e.error() == errno.ECONNREFUSED


def test_host_unreachable_fails_a_connect(stack: UnderTest) -> None:
    e = Exchange(stack).to("SYN_SENT")
    unreachable(e, HOST, seq=-1)
    assert e.error() == errno.EHOSTUNREACH


@pytest.mark.parametrize("code", [HOST, PORT])
def test_unreachable_is_soft_on_a_connection(stack: UnderTest, code: int) -> None:
    e = Exchange(stack).to("ESTABLISHED")
    e.write(b"hello")
    e.expect("A 5 bytes")
    unreachable(e, code, seq=0)
    assert e.state() == "ESTABLISHED"
    e.ack += 5
    assert e.put("PA", data=b"still here") == ["A ack+10"]


def test_icmp_about_what_is_not_outstanding_is_ignored(stack: UnderTest) -> None:
    # RFC 5927 4.1
    e = Exchange(stack).to("SYN_SENT")
    unreachable(e, PORT, seq=100_000)
    assert (e.error(), e.state()) == (0, "SYN_SENT")


# ---- time: real for Linux -----------------------------------------------------------------------


def times_of(e: Exchange, count: int) -> list[tuple[int, str]]:
    """When the next packets left, in microseconds, and how they look."""
    out: list[tuple[int, str]] = []
    while len(out) < count:
        got = e.stack.take()
        assert got is not None
        tcp = e.of(got[1])
        if tcp is not None:
            out.append((got[0], e.show(tcp)))
    return out


def assert_doubles(times: list[int]) -> None:
    """Each distance about twice the one before."""
    gaps = [b - a for a, b in itertools.pairwise(times)]
    for a, b in itertools.pairwise(gaps):
        assert 1.6 < b / a < 2.5, gaps


def test_retransmissions_back_off(stack: UnderTest, in_long_form: None) -> None:
    # RFC 6298 (5.5)
    e = Exchange(stack).to("ESTABLISHED")
    e.write(b"lost")
    sent = times_of(e, 5)
    assert {show for _, show in sent} == {"A 4 bytes"}
    assert_doubles([t for t, _ in sent[1:]])


def test_window_probes_back_off(stack: UnderTest, in_long_form: None) -> None:
    # RFC 9293 3.8.6.1; a probe is one number before the window
    e = Exchange(stack).to("ESTABLISHED")
    assert e.put("A", window=0) == []
    e.write(b"patience")
    times = []
    for _ in range(4):
        ((at_us, show),) = times_of(e, 1)
        assert show == "A seq-1"
        times.append(at_us)
        assert e.put("A", window=0) == []
    assert_doubles(times)


def test_keepalive_probes_one_before(stack: UnderTest, in_long_form: None) -> None:
    # RFC 9293 3.8.4
    e = Exchange(stack).to("ESTABLISHED")
    e.option(socket.IPPROTO_TCP, TCP_KEEPIDLE, 1)
    e.option(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    assert times_of(e, 1)[0][1] == "A seq-1"
    assert e.put("A") == []
    assert e.state() == "ESTABLISHED"


def test_syn_and_its_answer_back_off(stack: UnderTest, in_long_form: None) -> None:
    # RFC 6298 (2.1), (5.5)
    active = Exchange(stack).to("SYN_SENT")
    assert_doubles([t for t, _ in times_of(active, 3)])
    active.close()
    active.packets()
    passive = Exchange(stack).to("SYN_RCVD")
    assert_doubles([t for t, _ in times_of(passive, 3)])


def test_fin_comes_again(stack: UnderTest, in_long_form: None) -> None:
    e = Exchange(stack).to("ESTABLISHED")
    e.shutdown()
    assert {show for _, show in times_of(e, 3)} == {"FA"}
    e.ack += 1
    e.put("A")
    assert e.state() == "FIN_WAIT_2"


def test_every_exchange_has_a_row_in_the_table() -> None:
    table = (Path(__file__).parent / "README.md").read_text()
    tests = [name for name in globals() if name.startswith("test_") and "row_in" not in name]
    assert [name for name in tests if f"`{name}`" not in table] == []
