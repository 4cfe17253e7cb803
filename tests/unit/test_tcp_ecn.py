"""tcp/ecn: explicit congestion notification (RFC 3168), and DCTCP's receiver (RFC 8257 3.2)."""

from __future__ import annotations

import pytest

from tests.unit.peer import MSS, Peer, Stack, opened
from tests.unit.san import lib

REQUEST, OFF, DCTCP = lib.IX_ECN_REQUEST, lib.IX_ECN_OFF, lib.IX_CC_DCTCP
NOT_ECT, ECT1, ECT0, CE = 0, 1, 2, 3


def accepted(flags: str = "SEC", mark: int = NOT_ECT, **options: object) -> tuple[Stack, Peer, str]:
    """A connection that a peer opened with these flags; the flags of the SYN-ACK."""
    stack = Stack(listen=80, arena=256, **options)
    peer = Peer(stack, sack_ok=True)
    peer.send(flags, ecn=mark)
    syn_ack = peer.take()
    assert syn_ack.ecn == NOT_ECT
    peer.send("A")
    peer.handle = stack.expect("KNOCK").handle
    assert stack.accept(peer.handle, 5) == 0
    return stack, peer, syn_ack.flags


def marking(**options: object) -> tuple[Stack, Peer]:
    stack, peer, flags = accepted(**options)
    assert "E" in flags
    return stack, peer


# ---- negotiation ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "ecn", "config", "answer"),
    [
        ("SEC", NOT_ECT, {}, True),
        ("SEC", NOT_ECT, {"ecn": REQUEST}, True),
        ("SEC", NOT_ECT, {"ecn": OFF}, False),
        ("S", NOT_ECT, {"ecn": REQUEST}, False),
        ("SE", NOT_ECT, {}, False),
        ("SC", NOT_ECT, {}, False),
        ("SEC", ECT0, {}, False),  # a path that rewrites the field can't be trusted with marks
        ("SEC", CE, {}, False),
    ],
)
def test_listen_answers_an_ecn_setup_syn(
    flags: str, ecn: int, config: dict[str, int], answer: bool
) -> None:
    stack, peer, got = accepted(flags, ecn, **config)
    assert ("E" in got, "C" in got) == (answer, False)
    assert stack.info(peer.handle).ecn == answer
    stack.stream(peer.handle, 0, 100)
    assert peer.take().ecn == (ECT0 if answer else NOT_ECT)


@pytest.mark.parametrize(
    ("config", "answer", "agreed"),
    [
        ({"ecn": REQUEST}, "SAE", True),
        ({"ecn": REQUEST}, "SA", False),
        ({"ecn": REQUEST}, "SAEC", False),  # it reflects bits that it does not know
        ({"ecn": REQUEST}, "SAC", False),
        ({"congestion": DCTCP}, "SAE", True),
        ({"congestion": DCTCP, "ecn": OFF}, "SAE", False),
        ({}, "SAE", False),
    ],
)
def test_connect_asks_if_it_is_to(config: dict[str, int], answer: str, agreed: bool) -> None:
    stack = Stack(**config)
    peer = Peer(stack)
    call = stack.connect_call(80)
    peer.sport, peer.port = 80, int(call.local_port)
    syn = peer.take()
    asks = lib.IX_ECN_OFF != config.get("ecn", 0) != lib.IX_ECN_ACCEPT or (
        config.get("congestion") == DCTCP and config.get("ecn") != OFF
    )
    assert set(syn.flags) == set("SEC" if asks else "S") and syn.ecn == NOT_ECT
    peer.send(answer)
    assert set(peer.take().flags) == {"A"}
    stack.expect("CONNECTED", status=0)
    assert stack.info(call.handle).ecn == agreed


def test_syn_that_is_not_answered_is_sent_again_without_ecn() -> None:
    # RFC 3168 6.1.1.1
    stack = Stack(ecn=REQUEST)
    peer = Peer(stack)
    call = stack.connect_call(80)
    peer.sport, peer.port = 80, int(call.local_port)
    assert set(peer.take().flags) == set("SEC")
    stack.sleep(ms=1100)
    assert set(peer.take().flags) == {"S"}
    peer.send("SAE")  # to the first one, late
    peer.take()
    # 6.1.1: marks are echoed, as the peer may send ECT, but no ECT after a SYN without
    assert stack.info(call.handle).ecn
    stack.stream(call.handle, 0, 100)
    assert peer.take().ecn == NOT_ECT
    peer.send("PA", b"x", ecn=CE, ack=100)
    assert "E" in peer.take().flags


def test_syn_that_comes_again_without_ecn_stops_ect() -> None:
    stack = Stack(listen=80, arena=64)
    peer = Peer(stack)
    peer.send("SEC")
    assert "E" in peer.take().flags
    peer.send("S", seq=-1)
    assert "E" in peer.take().flags  # the SYN-ACK stays as it was
    peer.send("A")
    handle = stack.expect("KNOCK").handle
    stack.accept(handle, 5)
    stack.stream(handle, 0, 100)
    assert peer.take().ecn == NOT_ECT


# ---- receiving ----------------------------------------------------------------------------


def test_mark_is_echoed_until_cwr() -> None:
    stack, peer = marking()
    peer.send("PA", b"1", ecn=ECT0)
    stack.sleep(ms=50)
    peer.expect("A")
    peer.send("PA", b"2", ecn=CE)
    peer.expect("AE", ack=2)  # at once
    for _ in range(4):
        peer.send("PA", b"34", ecn=ECT0)
    assert {"E" in s.flags for s in peer.take_all()} == {True}
    stack.stream(peer.handle, 0, 10)
    assert "E" in peer.take().flags  # data says it too
    peer.send("PAC", b"5", ecn=ECT0, ack=10)
    peer.send("PA", b"6", ecn=ECT0)
    assert [s.flags for s in peer.take_all()] == ["A"]
    peer.send("PAC", b"7", ecn=CE)  # marked again
    peer.expect("AE")
    assert stack.counter("tcp_ce_in") == 2


def test_mark_on_a_pure_ack_or_without_ecn_means_nothing() -> None:
    stack, peer = marking()
    peer.send("A", ecn=CE)
    peer.send("PA", b"x" * 10, ecn=ECT0)
    stack.sleep(ms=50)
    peer.expect("A")
    stack, peer, _handle = opened()
    peer.send("PA", b"x" * 10, ecn=CE)
    stack.sleep(ms=50)
    peer.expect("A")


def test_dctcp_acknowledges_each_change_of_marks_at_once() -> None:
    stack, peer = marking(congestion=DCTCP)
    peer.send("PA", b"a" * 100, ecn=ECT0)
    peer.expect_nothing()  # delayed
    peer.send("PA", b"b" * 100, ecn=CE)
    first, second = peer.take_all()
    assert (first.ack, "E" in first.flags) == (100, False)
    assert (second.ack, "E" in second.flags) == (200, True)
    peer.send("PA", b"c" * 100, ecn=CE)
    stack.sleep(ms=50)
    assert "E" in peer.take().flags
    peer.send("PA", b"d" * 100, ecn=ECT0)
    assert ["E" in s.flags for s in peer.take_all()] == [False]


# ---- sending ------------------------------------------------------------------------------


def test_only_new_data_is_ect() -> None:
    stack, peer = marking()
    stack.stream(peer.handle, 0, 10 * MSS)
    assert {s.ecn for s in peer.take_all()} == {ECT0}
    peer.send("A", ack=0, sack=[(MSS, 6 * MSS)])
    again = peer.take_all()
    assert again and {s.ecn for s in again if s.seq < 10 * MSS} == {NOT_ECT}  # RFC 3168 6.1.5
    peer.send("PA", b"x" * 10, ack=10 * MSS)
    stack.sleep(ms=50)
    assert peer.take().ecn == NOT_ECT  # a pure ACK
    peer.send("A", ack=10 * MSS, window=0)
    stack.stream(peer.handle, 10 * MSS, 10)
    stack.sleep(ms=300)
    assert peer.take().ecn == NOT_ECT  # a probe


def test_echo_reduces_once_a_window_and_says_cwr() -> None:
    stack, peer = marking(congestion=lib.IX_CC_NEWRENO)
    stack.stream(peer.handle, 0, 30 * MSS)
    peer.take_all()
    peer.send("AE", ack=2 * MSS)
    assert stack.info(peer.handle).cwnd_bytes == 5 * MSS
    for i in range(3, 11):
        peer.send("AE", ack=i * MSS)
    assert stack.info(peer.handle).cwnd_bytes == 5 * MSS
    new = peer.take_all()
    assert ["C" in s.flags for s in new] == [True] + [False] * (len(new) - 1)
    assert stack.counters("tcp_ece_reductions", "tcp_rexmit") == [1, 0]
    peer.send("AE", ack=12 * MSS)  # the next window is marked as well
    assert stack.info(peer.handle).cwnd_bytes < 5 * MSS
    assert stack.counter("tcp_ece_reductions") == 2


def test_echo_on_the_ack_of_all_that_was_sent_reduces_too() -> None:
    stack, peer = marking(congestion=lib.IX_CC_NEWRENO)
    stack.stream(peer.handle, 0, MSS)
    peer.take_all()
    peer.send("AE", ack=MSS)
    assert stack.info(peer.handle).cwnd_bytes == 5 * MSS
    stack.stream(peer.handle, MSS, MSS)
    assert "C" in peer.take().flags


def test_echo_without_negotiation_is_ignored() -> None:
    stack, peer, handle = opened()
    stack.stream(handle, 0, 10 * MSS)
    peer.take_all()
    peer.send("AE", ack=2 * MSS)
    assert stack.info(handle).cwnd_bytes >= 10 * MSS
    assert stack.counter("tcp_ece_reductions") == 0


def test_dctcp_reduces_by_what_was_marked() -> None:
    stack, peer = marking(congestion=DCTCP)
    stack.tcb(peer.handle).dctcp.alpha = 1 << 18  # a quarter
    stack.stream(peer.handle, 0, 20 * MSS)
    peer.take_all()
    stack.tcb(peer.handle).dctcp.window_end = stack.tcb(peer.handle).snd_max
    peer.send("AE", ack=MSS)
    assert stack.info(peer.handle).cwnd_bytes == pytest.approx(10 * MSS * 7 / 8, abs=MSS / 10)
