"""tcp/cc: what all congestion controls share, and how one is chosen."""

from __future__ import annotations

import pytest

from tests.unit.peer import EINVAL, ENOENT, MSS, Peer, Stack, opened, struct_at_line
from tests.unit.san import ffi, lib

CUBIC, NEWRENO, DCTCP = lib.IX_CC_CUBIC, lib.IX_CC_NEWRENO, lib.IX_CC_DCTCP


@pytest.mark.parametrize("mss, window", [(536, 5360), (1460, 14600), (2000, 14600), (9000, 18000)])
def test_initial_window_follows_rfc_6928(mss: int, window: int) -> None:
    assert lib.ix_cc_initial_window(mss) == window


@pytest.mark.parametrize("cc", [CUBIC, NEWRENO, DCTCP])
def test_slow_start_counts_all_bytes_of_an_ack(cc: int) -> None:
    tcp = struct_at_line("ix_tcp")
    tcb = struct_at_line("ix_tcb", mss=1000, cwnd=10_000, ssthresh=2**32 - 1)
    lib.ix_cc_choose(tcb, cc)
    lib.ix_cc_acked(tcp, tcb, 500, 0)
    assert tcb.cwnd == 10_500
    lib.ix_cc_acked(tcp, tcb, 50_000, 0)
    assert tcb.cwnd == 60_500
    tcb.flags = lib.IX_TF_RTO
    lib.ix_cc_acked(tcp, tcb, 5000, 0)
    assert tcb.cwnd == 61_500


@pytest.mark.parametrize("cc, left, left_of_1", [(CUBIC, 7, 7), (NEWRENO, 5, 2), (DCTCP, 5, 2)])
def test_loss_leaves_what_the_algorithm_says(cc: int, left: int, left_of_1: int) -> None:
    tcb = struct_at_line("ix_tcb", mss=1000, cwnd=10_000, ssthresh=2**32 - 1)
    lib.ix_cc_choose(tcb, cc)
    lib.ix_cc_lost(tcb, 10_000)
    assert tcb.ssthresh == left * 1000 and tcb.cwnd == 10_000
    lib.ix_cc_lost(tcb, 1000)
    # CUBIC: of the window (RFC 9438 4.6); others: of what is in flight, two segments at least
    assert tcb.ssthresh == left_of_1 * 1000


@pytest.mark.parametrize("cc", [CUBIC, NEWRENO, DCTCP])
@pytest.mark.parametrize("ssthresh", [1000, 2**32 - 1])
def test_window_is_bounded(cc: int, ssthresh: int) -> None:
    tcp = struct_at_line("ix_tcp", now_ms=5)
    tcb = struct_at_line("ix_tcb", mss=1460, cwnd=2**30 - 10, ssthresh=ssthresh)
    lib.ix_cc_choose(tcb, cc)
    for _ in range(10):
        tcp.now_ms += 100_000
        lib.ix_cc_acked(tcp, tcb, 2**30, 0)
    assert 2**30 - 10 <= tcb.cwnd <= 2**30


def test_listener_gives_its_connections_their_congestion_control() -> None:
    stack = Stack(listen=80, congestion=NEWRENO)
    first = Peer(stack)
    assert stack.info(first.connect()).congestion == NEWRENO
    option = lib.IX_OPT_CONGESTION
    assert lib.ix_shard_listen_option(stack.shard, ffi.NULL, 4, 80, option, DCTCP) == 0
    second = Peer(stack, sport=50001)
    assert stack.info(second.connect()).congestion == DCTCP
    assert stack.info(first.handle).congestion == NEWRENO
    for port, what, value, error in (
        (81, option, DCTCP, ENOENT),
        (80, option, 4, EINVAL),
        (80, option, 0, EINVAL),
        (80, lib.IX_OPT_RCVBUF, 500, EINVAL),
    ):
        assert lib.ix_shard_listen_option(stack.shard, ffi.NULL, 4, port, what, value) == -error


def test_default_is_cubic() -> None:
    stack, _peer, handle = opened()
    assert stack.info(handle).congestion == CUBIC


def test_option_changes_it_and_keeps_the_window() -> None:
    stack, peer, handle = opened(arena=128)
    stack.stream(handle, 0, 10 * MSS)
    peer.take_all()
    peer.send("A", ack=10 * MSS)
    window = stack.info(handle).cwnd_bytes
    for cc in (DCTCP, NEWRENO, CUBIC):
        assert stack.option(handle, "CONGESTION", cc) == 0
        assert stack.info(handle).congestion == cc
        assert stack.info(handle).cwnd_bytes == window
    assert stack.option(handle, "CONGESTION", 0) == -EINVAL
    assert stack.option(handle, "CONGESTION", 2**33 + 1) == -EINVAL


def test_connect_names_its_own() -> None:
    stack = Stack()
    peer = Peer(stack, port=80)
    call = stack.connect_call(80, bytes=NEWRENO)
    assert call.result == 0
    assert stack.info(call.handle).congestion == NEWRENO
    assert stack.connect_call(81, bytes=9).result == -EINVAL
    assert peer.take_all


def test_window_restarts_after_an_idle_time() -> None:
    # RFC 5681 4.1
    stack, peer, handle = opened(arena=256)
    at = 0
    for _ in range(4):
        stack.stream(handle, at, 10 * MSS)
        at += 10 * MSS
        peer.take_all()
        peer.send("A", ack=at)
        stack.poll(ms=1)
    assert stack.info(handle).cwnd_bytes > 10 * MSS
    stack.sleep(ms=2000)
    stack.stream(handle, at, 40 * MSS)
    assert len(peer.take_all()) == 10
    assert stack.info(handle).cwnd_bytes == 10 * MSS
