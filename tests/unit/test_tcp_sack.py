"""tcp/sack: the scoreboard, and recovery with it (RFC 2018, RFC 6675)."""

from __future__ import annotations

from tests.unit.peer import MSS, Peer, Stack, opened, stream, struct_at_line
from tests.unit.san import ffi, lib


def flying(queued: int = 10) -> tuple[Stack, Peer, int]:
    """A connection with SACK, ten full segments out."""
    stack, peer, handle = opened(arena=256, sack_ok=True, congestion=lib.IX_CC_NEWRENO)
    stack.stream(handle, 0, queued * MSS)
    assert len(peer.take_all()) == 10
    return stack, peer, handle


def at(*segments: tuple[int, int]) -> list[tuple[int, int]]:
    """Ranges of segments as ranges of bytes."""
    return [(a * MSS, b * MSS) for a, b in segments]


def sack(peer: Peer, ack: int, *segments: tuple[int, int]) -> None:
    peer.send("A", ack=ack * MSS, sack=at(*segments))


# ---- recovery -------------------------------------------------------------------------


def test_retransmission_beside_own_sack_blocks_fits_the_mtu() -> None:
    # Both directions have lost something: the blocks take their room from the payload.
    _stack, peer, _handle = flying()
    for i in range(1, 5):
        peer.send("PA", b"x" * 10, seq=100 * i, ack=0)
    peer.take_all()
    sack(peer, 0, (1, 4))
    found = peer.take_all()
    assert found and found[0].seq == 0 and found[0].sack
    assert max(len(s.frame) for s in found) <= 1514
    assert found[0].payload == stream(0, MSS - 36)  # the rest follows as the pipe has room


def test_one_hole_is_retransmitted_once() -> None:
    stack, peer, _handle = flying()
    sack(peer, 0, (1, 2))
    sack(peer, 0, (1, 3))
    peer.expect_nothing()
    sack(peer, 0, (1, 4))
    peer.expect_stream(*at((0, 1)))
    for last in range(5, 11):
        sack(peer, 0, (1, last))
    peer.expect_nothing()
    sack(peer, 10)
    stack.sleep(ms=1000)
    peer.expect_nothing()
    assert stack.counters("tcp_rexmit", "tcp_fast_rexmit", "tcp_rto") == [1, 1, 0]
    assert stack.shard.tcp.boards_used == 0


def test_every_lost_hole_is_retransmitted_and_nothing_else() -> None:
    # 0, 2 and 5 lost; 8 and 9 not yet known to be.
    stack, peer, _handle = flying()
    sack(peer, 0, (1, 2))
    sack(peer, 0, (3, 4), (1, 2))
    sack(peer, 0, (3, 5), (1, 2))
    sack(peer, 0, (6, 7), (3, 5), (1, 2))
    sack(peer, 0, (6, 8), (3, 5), (1, 2))
    got = [(s.seq // MSS, s.end // MSS) for s in peer.take_all()]
    assert got == [(0, 1), (2, 3)]  # above 5 only two segments are SACKed yet
    sack(peer, 0, (6, 9), (3, 5), (1, 2))
    peer.expect_stream(*at((5, 6)))
    sack(peer, 0, (6, 10), (3, 5), (1, 2))
    peer.expect_nothing()
    sack(peer, 10)
    assert stack.counters("tcp_rexmit", "tcp_rto") == [3, 0]


def test_several_segments_sacked_at_once_enter_recovery_before_three_acks() -> None:
    # RFC 6675 section 5: IsLost() counts, not the number of ACKs.
    _stack, peer, _handle = flying()
    sack(peer, 0, (1, 6))
    peer.expect_stream(*at((0, 1)))


def test_hole_of_several_segments_goes_as_the_pipe_has_room() -> None:
    stack, peer, handle = flying()
    sack(peer, 0, (4, 8))  # four lost, 8 and 9 out: pipe 2, window 5
    peer.expect_stream(*at((0, 1), (1, 2), (2, 3)))
    assert stack.info(handle).cwnd_bytes == 5 * MSS
    sack(peer, 0, (4, 9))
    peer.expect_stream(*at((3, 4)))
    sack(peer, 4, (4, 9))
    peer.expect_nothing()


def test_recovery_sends_new_data_when_no_hole_is_lost() -> None:
    _stack, peer, _handle = flying(queued=20)
    for last in range(2, 5):
        sack(peer, 0, (1, last))
    got = peer.take_all()
    assert [(s.seq // MSS, s.end // MSS) for s in got] == [(10, 11), (11, 12), (0, 1)]
    for last in range(5, 11):
        sack(peer, 0, (1, last))
    new = [(s.seq // MSS, s.end // MSS) for s in peer.take_all()]
    assert new == [(12 + i, 13 + i) for i in range(len(new))] and len(new) >= 3


def test_lost_retransmission_is_left_to_the_timeout() -> None:
    stack, peer, _handle = flying()
    for last in range(2, 11):
        sack(peer, 0, (1, last))
    peer.expect_stream(*at((0, 1)))
    stack.sleep(ms=250)
    peer.expect_stream(*at((0, 1)))
    assert stack.counter("tcp_rto") == 1


def test_timeout_forgets_the_scoreboard() -> None:
    # RFC 2018 section 8: the receiver may have thrown away what it SACKed.
    stack, peer, _handle = flying()
    sack(peer, 0, (1, 3))
    stack.sleep(ms=250)
    peer.expect_stream(*at((0, 1)))
    assert stack.shard.tcp.boards_used == 0
    sack(peer, 1)
    peer.expect_stream(*at((1, 2), (2, 3)))


def test_partial_ack_goes_on_with_the_scoreboard() -> None:
    stack, peer, _handle = flying()
    sack(peer, 0, (1, 5), (6, 10))
    peer.expect_stream(*at((0, 1), (5, 6)))
    sack(peer, 5, (6, 10))
    peer.expect_nothing()
    sack(peer, 10)
    stack.sleep(ms=1000)
    peer.expect_nothing()


def test_fin_lost_is_retransmitted() -> None:
    stack, peer, handle = flying()
    stack.close(handle, write_only=True)
    peer.expect("FA", seq=10 * MSS)
    sack(peer, 10)
    stack.sleep(ms=250)
    peer.expect("FA", seq=10 * MSS)


def test_fin_behind_a_hole_of_the_last_segment() -> None:
    stack, peer, handle = opened(sack_ok=True)
    stack.stream(handle, 0, 5 * MSS)
    stack.close(handle, write_only=True)
    peer.take_all()
    peer.send("A", ack=0, sack=[(MSS, 5 * MSS + 1)])
    peer.expect_stream((0, MSS))
    peer.send("A", ack=5 * MSS + 1)
    assert peer.state == "FIN_WAIT_2"


# ---- blocks that make no sense --------------------------------------------------------


def test_blocks_that_say_nothing_are_ignored() -> None:
    stack, peer, _handle = flying()
    peer.send("A", ack=2 * MSS)
    nonsense = [
        (0, MSS),  # D-SACK, below the ACK
        (2 * MSS, 3 * MSS),  # begins at the ACK: contradicts it
        (5 * MSS, 5 * MSS),  # empty
        (6 * MSS, 5 * MSS),  # backwards
        (9 * MSS, 11 * MSS),  # beyond what was sent
        (2**31, 2**31 + MSS),
    ]
    for block in nonsense:
        peer.send("A", ack=2 * MSS, sack=[block])
    assert stack.shard.tcp.boards_used == 0


def test_blocks_without_negotiation_are_ignored() -> None:
    stack, peer, handle = opened()
    stack.stream(handle, 0, 10 * MSS)
    peer.take_all()
    peer.send("A", ack=0, sack=[(MSS, 6 * MSS)])
    peer.expect_nothing()
    assert stack.shard.tcp.boards_used == 0


def test_no_board_left_recovers_as_newreno_does() -> None:
    stack, peer, handle = flying()
    stack.shard.tcp.board_free = 2**32 - 1
    for last in range(2, 5):
        sack(peer, 0, (1, last))
    peer.expect_stream(*at((0, 1)))
    sack(peer, 4)
    peer.expect_stream(*at((4, 5)))
    assert stack.tcb(handle).sack_board == 2**32 - 1


# ---- the scoreboard itself ------------------------------------------------------------


class Board:
    """A TCB with a scoreboard, and the functions on it. Numbers count from snd_una, near 2^32."""

    BASE = 2**32 - 5000

    def __init__(self, flight: int = 100_000) -> None:
        self.boards = ffi.new("struct ix_sack_board[2]")
        self.boards[0].next = 1
        self.boards[1].next = 2**32 - 1
        self.tcp = struct_at_line("ix_tcp", boards=self.boards, board_free=0)
        self.tcb = struct_at_line("ix_tcb", mss=1000, sack_board=2**32 - 1)
        self.tcb.flags = lib.IX_TF_SACK
        self.tcb.snd_una = self.BASE
        self.tcb.snd_max = self.seq(flight)

    def seq(self, offset: int) -> int:
        return (self.BASE + offset) % 2**32

    def update(self, *blocks: tuple[int, int]) -> None:
        header = ffi.new("struct ix_tcp_hdr *", {"ack": self.tcb.snd_una})
        for first in range(0, len(blocks), 4):
            part = blocks[first : first + 4]
            header.sack_count = len(part)
            for i, (a, b) in enumerate(part):
                header.sack[i].start, header.sack[i].end = self.seq(a), self.seq(b)
            lib.ix_sack_update(self.tcp, self.tcb, header)

    @property
    def ranges(self) -> list[tuple[int, int]]:
        board = self.boards[0]
        return [
            ((r.start - self.BASE) % 2**32, (r.end - self.BASE) % 2**32)
            for r in board.range[0 : board.count]
        ]

    def is_lost(self, offset: int) -> bool:
        return bool(lib.ix_sack_is_lost(self.tcp, self.tcb, self.seq(offset)))

    def pipe(self) -> int:
        return int(lib.ix_sack_pipe(self.tcp, self.tcb))

    def next_hole(self) -> tuple[int, int] | None:
        out = ffi.new("uint32_t[2]")
        if not lib.ix_sack_next_hole(self.tcp, self.tcb, out, out + 1):
            return None
        return (out[0] - self.BASE) % 2**32, int(out[1])

    def advance(self, offset: int) -> None:
        self.tcb.snd_una = self.seq(offset)
        lib.ix_sack_advance(self.tcp, self.tcb)


def test_board_merges_what_touches_or_overlaps() -> None:
    board = Board()
    board.update((2000, 3000), (6000, 7000), (4000, 5000))
    assert board.ranges == [(2000, 3000), (4000, 5000), (6000, 7000)]
    board.update((3000, 4000))
    assert board.ranges == [(2000, 5000), (6000, 7000)]
    board.update((1500, 9000))
    assert board.ranges == [(1500, 9000)]
    board.update((2000, 3000))
    assert board.ranges == [(1500, 9000)]
    assert lib.ix_sack_sacked_bytes(board.tcp, board.tcb) == 7500


def test_board_matches_a_set_of_bytes() -> None:
    import random

    rng = random.Random(7)
    for _ in range(50):
        board, model = Board(flight=4000), set[int]()
        for _ in range(12):
            a = rng.randrange(1, 3990)
            b = rng.randrange(a + 1, min(a + 500, 4000) + 1)
            board.update((a, b))
            model |= set(range(a, b))
        assert {n for a, b in board.ranges for n in range(a, b)} == model
        cut = rng.randrange(4000)
        board.advance(cut)
        if board.tcb.sack_board != 2**32 - 1:
            assert {n for a, b in board.ranges for n in range(a, b)} == {
                n for n in model if n >= cut
            }


def test_board_full_forgets_rather_than_breaks() -> None:
    board = Board()
    blocks = [(2000 * i, 2000 * i + 1000) for i in range(1, 20)]
    board.update(*blocks)
    assert board.ranges == blocks[: lib.IX_SACK_RANGES]
    board.update((2500, 50000))  # still merges
    assert board.ranges == [(2000, 50000)]


def test_lost_is_what_has_three_segments_or_ranges_above() -> None:
    board = Board()
    board.update((1000, 3000))
    assert not board.is_lost(0)  # exactly 2 * SMSS is not more
    board.update((3000, 3001))
    assert board.is_lost(0)
    scattered = Board()
    scattered.update((1000, 1010), (2000, 2010))
    assert not scattered.is_lost(0)
    scattered.update((3000, 3010))
    assert scattered.is_lost(999)
    assert not scattered.is_lost(1500)


def test_pipe_counts_what_is_in_the_network() -> None:
    # RFC 6675 SetPipe(): neither SACKed nor lost, and what was sent again.
    board = Board(flight=10_000)
    assert board.pipe() == 10_000
    board.update((2000, 3000))
    assert board.pipe() == 9000
    board.update((4000, 8000))
    assert board.pipe() == 2000  # [8000, 10000): both holes are lost
    board.boards[0].high_rxt = board.seq(1000)
    assert board.pipe() == 3000
    board.boards[0].high_rxt = board.seq(2000)
    assert board.pipe() == 4000


def test_next_hole_walks_the_lost_ones() -> None:
    board = Board(flight=10_000)
    board.update((2000, 3000), (4000, 8000), (9000, 9500))
    assert board.next_hole() == (0, 2000)
    board.boards[0].high_rxt = board.seq(1460)
    assert board.next_hole() == (1460, 540)
    board.boards[0].high_rxt = board.seq(2000)
    assert board.next_hole() == (3000, 1000)
    board.boards[0].high_rxt = board.seq(4000)
    assert board.next_hole() is None  # [8000, 9000) has one range above


def test_advance_drops_the_board_when_it_is_empty() -> None:
    board = Board()
    board.update((2000, 3000))
    board.advance(3000)
    assert board.tcb.sack_board == 2**32 - 1
    assert board.tcp.boards_used == 0
