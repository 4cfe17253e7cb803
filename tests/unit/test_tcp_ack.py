"""tcp/ack: round-trip times, windows, and what an acceptable ACK gives back."""

from __future__ import annotations

import random

from tests.unit.peer import MSS, Peer, Stack, opened, stream, struct_at_line
from tests.unit.san import lib


def rfc_6298(samples: list[float]) -> tuple[float, float, float]:
    """srtt, rttvar and RTO of section 2, in us, with the least of 200 ms."""
    srtt, rttvar = samples[0], samples[0] / 2
    for sample in samples[1:]:
        rttvar = 0.75 * rttvar + 0.25 * abs(srtt - sample)
        srtt = 0.875 * srtt + 0.125 * sample
    return srtt, rttvar, srtt + max(4 * rttvar, 200_000)


def test_round_trip_estimates_follow_rfc_6298() -> None:
    rng = random.Random(4)
    for scale in (10, 1000, 100_000, 10_000_000):
        tcb = struct_at_line("ix_tcb")
        samples: list[float] = []
        for _ in range(60):
            samples.append(scale * rng.uniform(0.5, 3) + 10)
            lib.ix_tcp_rtt_sample(tcb, int(samples[-1] * 1000))
            srtt, rttvar, rto = rfc_6298(samples)
            slack = 20 + scale / 1000  # whole microseconds
            assert abs(tcb.srtt_us - srtt) < slack
            assert abs(tcb.rttvar_us - rttvar) < slack
            assert abs(tcb.rto_us - min(rto, 120_000_000)) < 5 * slack


def test_round_trip_of_nothing_and_of_ages_are_bounded() -> None:
    tcb = struct_at_line("ix_tcb")
    lib.ix_tcp_rtt_sample(tcb, 0)
    assert tcb.srtt_us >= 1 and tcb.rto_us >= 200_000
    for _ in range(50):
        lib.ix_tcp_rtt_sample(tcb, 2**63)
    assert tcb.rto_us == 120_000_000
    for _ in range(200):
        lib.ix_tcp_rtt_sample(tcb, 0)
    assert 1 <= tcb.srtt_us < 10_000


def test_oldest_of_what_an_ack_covers_is_the_sample() -> None:
    stack, peer, handle = opened()
    stack.stream(handle, 0, 2 * MSS)
    stack.poll(ms=30)
    stack.stream(handle, 2 * MSS, 10)
    stack.poll(ms=20)
    peer.send("A", ack=MSS)
    srtt = 50_000 / 8
    assert abs(stack.info(handle).srtt_us - srtt) < 50
    peer.send("A", ack=2 * MSS + 10)  # 50 ms for the first, 20 for the second
    srtt += (50_000 - srtt) / 8
    assert abs(stack.info(handle).srtt_us - srtt) < 50
    assert stack.tcb(handle).min_rtt_us <= 20_002


def test_late_ack_of_a_syn_that_was_sent_again_is_no_sample() -> None:
    stack = Stack(listen=80)
    peer = Peer(stack, ts=True)
    peer.send("S")
    peer.take()
    first = peer.ts_seen
    stack.sleep(ms=3500)  # two more SYN-ACKs, whose ACKs are lost
    peer.take_all()
    peer.send("A", ts=(peer.ts_clock, first))
    handle = stack.expect("KNOCK").handle
    assert (stack.info(handle).srtt_us, stack.info(handle).rto_us) == (0, 3_000_000)


def test_ack_of_a_duplicate_is_no_sample() -> None:
    stack, peer, handle = opened(sack_ok=True, ts=True, rtt_ms=20)
    size = MSS - 12
    stack.stream(handle, 0, size)
    peer.take()
    first, srtt = peer.ts_seen, stack.info(handle).srtt_us
    stack.sleep(ms=1000)  # the ACK was lost
    peer.take_all()
    peer.send("A", ack=size, sack=[(0, size)], ts=(peer.ts_clock, first))
    assert stack.info(handle).srtt_us == srtt


def test_cumulative_ack_gives_everything_below_back() -> None:
    stack, peer, handle = opened()
    for i in range(5):
        stack.stream(handle, 100 * i, 100)
    peer.send("A", ack=250)
    stack.expect("SENT", bytes=250)
    info = stack.info(handle)
    assert (info.unacked_bytes, info.queued_bytes) == (250, 250)
    peer.send("A", ack=500)
    stack.expect("SENT", bytes=250)
    assert stack.info(handle).unacked_bytes == 0


def test_ack_of_the_fin_alone_is_no_data() -> None:
    stack, peer, handle = opened()
    stack.sendv(handle, b"data")
    stack.close(handle, write_only=True)
    peer.send("A", ack=4)
    stack.expect("SENT", bytes=4)
    peer.send("A", ack=5)
    stack.expect_no_event()
    assert peer.state == "FIN_WAIT_2"


def test_window_of_an_older_segment_is_not_believed() -> None:
    # RFC 9293 3.10.7.4, fifth: SND.WL1 and SND.WL2
    stack, peer, handle = opened()
    peer.send("A", b"12345", window=5000)
    assert stack.info(handle).snd_wnd == 5000
    peer.send("A", seq=0, window=60000)  # overtaken by the one before
    assert stack.info(handle).snd_wnd == 5000
    peer.send("A", seq=5, window=4000)
    assert stack.info(handle).snd_wnd == 4000


def test_window_of_an_older_ack_is_not_believed() -> None:
    stack, peer, handle = opened()
    stack.stream(handle, 0, 1000)
    peer.send("A", ack=800, window=5000)
    peer.send("A", ack=300, window=60000)
    assert stack.info(handle).snd_wnd == 5000


def test_window_comes_with_data_too() -> None:
    stack, peer, handle = opened()
    peer.send("A", window=0)
    stack.stream(handle, 0, 100)
    peer.expect_nothing()
    peer.send("PA", b"data", window=1000)
    peer.expect("PA", stream(0, 100), ack=4)
