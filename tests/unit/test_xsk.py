"""link/xsk.c: the AF_XDP rings, with this test as the kernel on the other side of them."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from tests.unit.san import ffi, lib

ENTRIES = 8
TX, RX = 1, 2  # IX_WAKE_TX, IX_WAKE_RX
ZEROCOPY, NEED_WAKEUP, BUSY_POLL = 1, 2, 4  # IX_XSK_MODE_*
KICK_TX, KICK_RX = 1, 2  # IX_XSK_KICK_*
NEAR_WRAP = 0xFFFF_FFFC


class Kernel:
    """The four rings, the kernel's side of them, and a kick that answers as told.

    start: the index at which all rings begin, as they may be anywhere in 32 bits.
    """

    def __init__(self, mode: int = NEED_WAKEUP, start: int = 0) -> None:
        self.words = ffi.new("uint32_t[4][3]")  # producer, consumer, flags of each ring
        self.umem = ffi.new("uint8_t[65536]")
        self.x = ffi.new("struct ix_xsk *")
        self.entries: dict[str, Any] = {}
        for i, name in enumerate(("rx", "tx", "fill", "completion")):
            ring = getattr(self.x, name)
            kind = "struct ix_desc[]" if name in ("rx", "tx") else "uint64_t[]"
            self.entries[name] = ffi.new(kind, ENTRIES)
            self.words[i][0] = self.words[i][1] = start
            ring.producer, ring.consumer = self.words[i] + 0, self.words[i] + 1
            ring.flags, ring.entries, ring.mask = self.words[i] + 2, self.entries[name], ENTRIES - 1
        self.x.link.umem, self.x.link.umem_bytes = self.umem, 65536
        self.x.link.frame_shift = 11
        self.x.mode = mode
        self.kicks: list[int] = []
        self.answer = 0
        self.context = ffi.new("int *")
        self._kick = ffi.callback("int(void *, uint32_t)", self._kicked)
        self.x.kick, self.x.kick_ctx = self._kick, self.context
        lib.ix_xsk_init(self.x)
        self.link = ffi.addressof(self.x, "link")
        self.ops = self.link.ops

    def _kicked(self, ctx: Any, what: int) -> int:
        assert ctx == self.context
        self.kicks.append(what)
        return self.answer

    # The kernel's side.

    def put_rx(self, *descs: tuple[int, int]) -> None:
        for addr, length in descs:
            at = self.words[0][0] & (ENTRIES - 1)
            self.entries["rx"][at] = {"addr": addr, "len": length, "flags": 0xFF}
            self.words[0][0] = (self.words[0][0] + 1) & 0xFFFF_FFFF

    def put_completion(self, *addrs: int) -> None:
        for addr in addrs:
            self.entries["completion"][self.words[3][0] & (ENTRIES - 1)] = addr
            self.words[3][0] = (self.words[3][0] + 1) & 0xFFFF_FFFF

    def take(self, ring: int, n: int) -> list[Any]:
        name = ("rx", "tx", "fill", "completion")[ring]
        taken = []
        for _ in range(n):
            assert self.words[ring][1] != self.words[ring][0], "the kernel would read garbage"
            entry = self.entries[name][self.words[ring][1] & (ENTRIES - 1)]
            taken.append((entry.addr, entry.len, entry.flags) if ring == 1 else entry)
            self.words[ring][1] = (self.words[ring][1] + 1) & 0xFFFF_FFFF
        return taken

    def flag(self, ring: int, on: bool) -> None:
        self.words[ring][2] = int(on)

    # Our side.

    def rx(self, most: int = ENTRIES) -> list[tuple[int, int, int]]:
        out = ffi.new("struct ix_desc[]", most)
        n = self.ops.rx_burst(self.link, out, most)
        self.check()
        return [(out[i].addr, out[i].len, out[i].flags) for i in range(n)]

    def tx(self, *descs: tuple[int, int]) -> int:
        array = ffi.new("struct ix_desc[]", [{"addr": a, "len": n, "flags": 0} for a, n in descs])
        n = int(self.ops.tx_burst(self.link, array, len(descs)))
        self.check()
        return n

    def complete(self, most: int = ENTRIES) -> list[int]:
        out = ffi.new("uint64_t[]", most)
        n = self.ops.complete(self.link, out, most)
        self.check()
        return [int(out[i]) for i in range(n)]

    def fill(self, *addrs: int) -> int:
        n = int(self.ops.fill(self.link, ffi.new("uint64_t[]", list(addrs)), len(addrs)))
        self.check()
        return n

    def fill_room(self) -> int:
        return int(self.ops.fill_room(self.link))

    def wakeup(self, what: int) -> int:
        return int(self.ops.wakeup(self.link, what))

    def check(self) -> None:
        wrong = lib.ix_xsk_check(self.x)
        assert wrong == ffi.NULL, ffi.string(wrong)


@pytest.fixture(params=[0, NEAR_WRAP], ids=["from-0", "indices-wrap"])
def kernel(request: pytest.FixtureRequest) -> Kernel:
    return Kernel(start=request.param)


# ---- the four rings -------------------------------------------------------------------------


def test_rx_empty_gives_nothing(kernel: Kernel) -> None:
    assert kernel.rx() == []


def test_rx_frames_come_in_order_without_the_kernels_options(kernel: Kernel) -> None:
    kernel.put_rx((256, 60), (2304, 61), (4352, 62))
    assert kernel.rx(2) == [(256, 60, 0), (2304, 61, 0)]
    assert kernel.words[0][1] == (kernel.words[0][0] - 1) & 0xFFFF_FFFF
    kernel.put_rx((6400, 63))
    assert kernel.rx() == [(4352, 62, 0)]
    assert kernel.rx() == [(6400, 63, 0)]


def test_rx_many_rounds_nothing_lost_or_doubled(kernel: Kernel) -> None:
    seen = []
    for i in range(10 * ENTRIES):
        kernel.put_rx((2048 * (i % 16) + 256, 60 + i))
        if i % 3 == 2:
            seen += kernel.rx()
    while more := kernel.rx():
        seen += more
    assert [length for _, length, _ in seen] == [60 + i for i in range(10 * ENTRIES)]


def test_tx_takes_what_fits_and_no_more(kernel: Kernel) -> None:
    assert kernel.tx(*[(2048 * i, 100 + i) for i in range(ENTRIES + 3)]) == ENTRIES
    assert kernel.x.stats.tx_full == 1
    assert kernel.tx((0, 1)) == 0
    assert kernel.take(1, 2) == [(0, 100, 0), (2048, 101, 0)]
    assert kernel.tx((64, 1), (65, 2), (66, 3)) == 2
    assert [d[1] for d in kernel.take(1, ENTRIES)] == [102, 103, 104, 105, 106, 107, 1, 2]


def test_tx_of_nothing_changes_nothing(kernel: Kernel) -> None:
    before = kernel.words[1][0]
    assert kernel.tx() == 0
    assert kernel.words[1][0] == before


def test_completions_come_back_as_sent(kernel: Kernel) -> None:
    kernel.put_completion(300, 2500, 4097)
    assert kernel.complete(2) == [300, 2500]
    assert kernel.complete() == [4097]
    assert kernel.complete() == []


def test_fill_room_follows_the_kernel(kernel: Kernel) -> None:
    assert kernel.fill_room() == ENTRIES
    assert kernel.fill(*range(0, 2048 * 5, 2048)) == 5
    assert kernel.fill_room() == ENTRIES - 5
    assert kernel.fill(*range(0, 2048 * 5, 2048)) == 3
    assert kernel.fill_room() == 0
    assert kernel.take(2, 4) == [0, 2048, 4096, 6144]
    assert kernel.fill_room() == 4


def test_init_takes_over_what_is_on_the_rings_already() -> None:
    kernel = Kernel()
    kernel.fill(0, 2048)
    kernel.put_rx((256, 60))
    lib.ix_xsk_init(kernel.x)
    assert kernel.fill_room() == ENTRIES - 2
    assert kernel.rx() == [(256, 60, 0)]


def test_check_names_the_broken_ring(kernel: Kernel) -> None:
    kernel.x.fill.cached_prod = kernel.x.fill.cached_cons + ENTRIES + 1 & 0xFFFF_FFFF
    assert ffi.string(lib.ix_xsk_check(kernel.x)) == b"FILL indices"


# ---- wakeup: copy mode, where the TX flag is always up --------------------------------------


@pytest.fixture
def copying() -> Kernel:
    kernel = Kernel(NEED_WAKEUP)
    kernel.flag(1, True)
    return kernel


@pytest.mark.parametrize("what", [0, TX, RX, TX | RX])
def test_copy_mode_nothing_to_send_no_kick(copying: Kernel, what: int) -> None:
    assert copying.wakeup(what) == 0
    assert copying.kicks == []


@pytest.mark.parametrize("what", [TX, TX | RX])
def test_copy_mode_frames_to_send_one_kick(copying: Kernel, what: int) -> None:
    copying.tx((0, 60))
    assert copying.wakeup(what) == 1
    assert copying.kicks == [KICK_TX]


def test_copy_mode_kernel_sent_part_next_wakeup_kicks_again(copying: Kernel) -> None:
    copying.tx((0, 60), (2048, 60), (4096, 60))
    copying.answer = -errno.EAGAIN
    assert copying.wakeup(TX) == 1
    copying.take(1, 2)
    copying.answer = 0
    assert copying.wakeup(RX) == 1
    assert copying.kicks == [KICK_TX, KICK_TX]
    copying.take(1, 1)
    assert copying.wakeup(RX) == 0
    assert (copying.x.stats.kick_again, copying.x.stats.kicks_leftover) == (1, 1)


def test_copy_mode_idle_rx_makes_no_system_call(copying: Kernel) -> None:
    assert [copying.wakeup(RX) for _ in range(100)] == [0] * 100


# ---- wakeup: zero-copy ----------------------------------------------------------------------


def test_zero_copy_flag_down_no_kick() -> None:
    kernel = Kernel(ZEROCOPY | NEED_WAKEUP)
    kernel.tx((0, 60))
    assert kernel.wakeup(TX | RX) == 0
    kernel.flag(1, True)
    assert kernel.wakeup(TX) == 1
    assert kernel.kicks == [KICK_TX]


def test_zero_copy_nic_lags_kicks_are_rare_but_come() -> None:
    kernel = Kernel(ZEROCOPY | NEED_WAKEUP)
    kernel.flag(1, True)
    kernel.tx((0, 60))
    assert kernel.wakeup(TX) == 1
    assert sum(kernel.wakeup(RX) for _ in range(64)) == 4
    kernel.take(1, 1)
    assert sum(kernel.wakeup(RX) for _ in range(64)) == 0


def test_fill_flag_raised_kick_at_once_then_rarely() -> None:
    kernel = Kernel(ZEROCOPY | NEED_WAKEUP)
    assert kernel.wakeup(RX) == 0
    kernel.flag(2, True)
    assert kernel.wakeup(RX) == 1
    assert kernel.kicks == [KICK_RX]
    assert sum(kernel.wakeup(RX) for _ in range(32)) == 2
    kernel.flag(2, False)
    assert kernel.wakeup(RX) == 0
    kernel.flag(2, True)
    assert kernel.wakeup(RX) == 1
    assert kernel.wakeup(0) == 0


def test_both_are_due_one_kick_is_made() -> None:
    kernel = Kernel(ZEROCOPY | NEED_WAKEUP)
    kernel.flag(1, True)
    kernel.flag(2, True)
    kernel.tx((0, 60))
    assert kernel.wakeup(TX | RX) == 1
    assert kernel.kicks == [KICK_TX]


def test_without_need_wakeup_only_sending_kicks() -> None:
    kernel = Kernel(0)
    assert kernel.wakeup(RX) == 0
    kernel.tx((0, 60))
    assert kernel.wakeup(TX) == 1
    assert kernel.kicks == [KICK_TX]


# ---- wakeup: busy polling -------------------------------------------------------------------


@pytest.mark.parametrize("mode", [BUSY_POLL, BUSY_POLL | NEED_WAKEUP, BUSY_POLL | ZEROCOPY])
def test_busy_polling_every_empty_rx_polls_the_nic(mode: int) -> None:
    kernel = Kernel(mode)
    assert [kernel.wakeup(RX) for _ in range(5)] == [1] * 5
    assert kernel.kicks == [KICK_RX] * 5
    assert kernel.wakeup(0) == 0


def test_busy_polling_sending_covers_receiving() -> None:
    kernel = Kernel(BUSY_POLL | ZEROCOPY | NEED_WAKEUP)
    kernel.tx((0, 60))
    assert kernel.wakeup(TX | RX) == 1
    assert kernel.kicks == [KICK_TX]
    kernel.take(1, 1)
    assert kernel.wakeup(TX | RX) == 1
    assert kernel.kicks == [KICK_TX, KICK_RX]


def test_busy_polling_zerocopy_tx_that_lags_is_kicked_now_and_then() -> None:
    # The NIC is looked at meanwhile.
    kernel = Kernel(BUSY_POLL | ZEROCOPY)
    kernel.tx((0, 60))
    assert kernel.wakeup(TX | RX) == 1
    for _ in range(16):
        kernel.wakeup(RX)
    assert kernel.kicks == [KICK_TX] + [KICK_RX] * 15 + [KICK_TX]


# ---- wakeup: errors -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "counter"),
    [
        (errno.EAGAIN, "kick_again"),
        (errno.EBUSY, "kick_busy"),
        (errno.ENOBUFS, "kick_nobufs"),
        (errno.EINTR, "kick_intr"),
    ],
)
def test_kick_fails_for_the_moment_it_is_counted(copying: Kernel, error: int, counter: str) -> None:
    copying.tx((0, 60))
    copying.answer = -error
    assert copying.wakeup(TX) == 1
    assert getattr(copying.x.stats, counter) == 1
    copying.answer = 0
    assert copying.wakeup(0) == 1


@pytest.mark.parametrize("error", [errno.ENETDOWN, errno.ENXIO, errno.EBADF])
def test_kick_fails_for_good_it_is_reported(copying: Kernel, error: int) -> None:
    copying.tx((0, 60))
    copying.answer = -error
    assert copying.wakeup(TX) == -error


# ---- express ---------------------------------------------------------------------------------

FROM = 4
ROOM = int(lib.IX_XSK_EXPRESS_FRAMES)


class Express:
    """Another way to send, which takes as many frames as it is told, or all.

    bursts: what it was asked for, (addr, len) each.
    """

    def __init__(self, kernel: Kernel) -> None:
        self.bursts: list[list[tuple[int, int]]] = []
        self.takes: int | None = None
        self.kernel = kernel
        self.context = ffi.new("int *")
        self._send = ffi.callback(
            "int(struct ix_xsk *, const struct ix_desc *, uint32_t)", self._sent
        )
        kernel.x.express, kernel.x.express_ctx = self._send, self.context
        kernel.x.express_from = FROM

    def _sent(self, x: Any, descs: Any, n: int) -> int:
        assert (x, x.express_ctx) == (self.kernel.x, self.context)
        self.bursts.append([(descs[i].addr, descs[i].len) for i in range(n)])
        return n if self.takes is None else self.takes

    def stats(self) -> tuple[int, int, int]:
        stats = self.kernel.x.stats
        return stats.express_calls, stats.express_frames, stats.express_errors


def frames(n: int, first: int = 0) -> list[tuple[int, int]]:
    return [(2048 * i, 60 + i) for i in range(first, first + n)]


def addrs(descs: list[tuple[int, int]]) -> list[int]:
    return [addr for addr, _ in descs]


@pytest.fixture
def express(kernel: Kernel) -> Express:
    kernel.flag(1, True)
    return Express(kernel)


def test_express_burst_long_enough_goes_by_it_and_completes_once(
    kernel: Kernel, express: Express
) -> None:
    before = kernel.words[1][0]
    assert kernel.tx(*frames(FROM)) == FROM
    assert kernel.tx(*frames(ENTRIES + 3, FROM)) == ENTRIES + 3
    assert express.bursts == [frames(FROM), frames(ENTRIES + 3, FROM)]
    assert kernel.words[1][0] == before, "nothing is on TX"
    done = kernel.complete(2) + kernel.complete(ROOM) + kernel.complete(ROOM)
    assert sorted(done) == addrs(frames(FROM + ENTRIES + 3))
    assert express.stats() == (2, FROM + ENTRIES + 3, 0)
    assert kernel.x.stats.tx_full == 0


def test_express_short_burst_goes_by_tx(kernel: Kernel, express: Express) -> None:
    assert kernel.tx(*frames(FROM - 1)) == FROM - 1
    assert kernel.tx() == 0
    assert express.bursts == []
    assert [d[:2] for d in kernel.take(1, FROM - 1)] == frames(FROM - 1)
    assert kernel.complete() == []


def test_express_while_tx_is_not_drained_all_go_by_tx_in_order(
    kernel: Kernel, express: Express
) -> None:
    assert kernel.tx(*frames(2)) == 2
    assert kernel.tx(*frames(FROM, 2)) == FROM
    kernel.take(1, 1)
    assert kernel.tx(*frames(FROM, 2 + FROM)) == ENTRIES - 1 - FROM
    assert express.bursts == []
    assert [d[:2] for d in kernel.take(1, ENTRIES)] == frames(ENTRIES, 1)
    assert kernel.tx(*frames(FROM)) == FROM
    assert express.bursts == [frames(FROM)]
    assert express.stats() == (1, FROM, 0)


def test_express_completions_of_both_ways_are_all_told(kernel: Kernel, express: Express) -> None:
    kernel.tx((0, 60), (2048, 60))
    kernel.take(1, 2)
    kernel.tx(*frames(FROM, 2))
    kernel.put_completion(0, 2048)
    done: list[int] = []
    while more := kernel.complete(3):
        done += more
    assert sorted(done) == addrs(frames(2 + FROM))


@pytest.mark.parametrize("taken", [1, FROM, FROM + 1])
def test_express_takes_a_part_the_rest_goes_by_tx(
    kernel: Kernel, express: Express, taken: int
) -> None:
    express.takes = taken
    assert kernel.tx(*frames(FROM + 2)) == FROM + 2
    left = frames(FROM + 2 - taken, taken)
    assert [d[:2] for d in kernel.take(1, len(left))] == left
    assert sorted(kernel.complete()) == addrs(frames(taken))
    assert express.stats() == (1, taken, 0)


def test_express_takes_a_part_what_tx_has_no_room_for_stays_the_callers(
    kernel: Kernel, express: Express
) -> None:
    express.takes = 3
    assert kernel.tx(*frames(ENTRIES + 5)) == ENTRIES + 3
    assert [d[:2] for d in kernel.take(1, ENTRIES)] == frames(ENTRIES, 3)
    assert kernel.x.stats.tx_full == 1


@pytest.mark.parametrize("answer", [0, -errno.ENOMEM, -errno.EPERM, -errno.ENXIO])
def test_express_fails_all_go_by_tx_and_it_is_counted(
    kernel: Kernel, express: Express, answer: int
) -> None:
    express.takes = answer
    assert kernel.tx(*frames(FROM)) == FROM
    assert [d[:2] for d in kernel.take(1, FROM)] == frames(FROM)
    assert kernel.complete() == []
    assert express.stats() == (0, 0, 1)
    assert kernel.wakeup(TX) == 1, "the call was made"
    express.takes = None
    assert kernel.tx(*frames(FROM)) == FROM
    assert express.stats() == (1, FROM, 1)


def test_express_has_room_for_so_many_until_they_complete(kernel: Kernel, express: Express) -> None:
    assert kernel.tx(*frames(ROOM - 2)) == ROOM - 2
    assert kernel.tx(*frames(FROM, ROOM)) == FROM
    assert express.bursts[1] == frames(2, ROOM)
    assert [d[:2] for d in kernel.take(1, 2)] == frames(2, ROOM + 2)
    assert kernel.tx(*frames(FROM, 2 * ROOM)) == FROM
    assert len(express.bursts) == 2, "no room, no call"
    kernel.take(1, FROM)
    assert sorted(kernel.complete(ROOM)) == addrs([*frames(ROOM - 2), *frames(2, ROOM)])
    assert kernel.tx(*frames(FROM)) == FROM
    assert len(express.bursts) == 3


def test_express_burst_above_its_room_is_sent_as_far_as_it_goes(
    kernel: Kernel, express: Express
) -> None:
    assert kernel.tx(*frames(ROOM + ENTRIES + 1)) == ROOM + ENTRIES
    assert express.bursts == [frames(ROOM)]
    assert [d[:2] for d in kernel.take(1, ENTRIES)] == frames(ENTRIES, ROOM)


def test_express_calls_are_told_by_the_next_wakeup(kernel: Kernel, express: Express) -> None:
    kernel.tx(*frames(FROM))
    kernel.tx(*frames(FROM))
    assert kernel.wakeup(TX) == 2
    assert kernel.wakeup(TX) == 0
    assert kernel.kicks == []
    kernel.tx(*frames(FROM))
    kernel.tx((0, 60))
    assert kernel.wakeup(TX) == 2, "the call and a kick"
    assert kernel.kicks == [KICK_TX]


def test_express_link_is_gone_the_wakeup_says_so(kernel: Kernel, express: Express) -> None:
    express.takes = kernel.answer = -errno.ENETDOWN
    kernel.tx(*frames(FROM))
    assert kernel.wakeup(TX) == -errno.ENETDOWN
    kernel.answer = 0
    assert kernel.wakeup(0) == 1, "the frames wait on TX"


def test_express_is_switched_off_and_on_between_bursts(kernel: Kernel, express: Express) -> None:
    kernel.tx(*frames(FROM))
    kernel.x.express_from = 0xFFFF_FFFF
    assert kernel.tx(*frames(FROM, FROM)) == FROM
    assert len(express.bursts) == 1
    assert sorted(kernel.complete()) == addrs(frames(FROM)), "those from before are told of"
    kernel.take(1, FROM)
    kernel.x.express_from = FROM - 1
    kernel.tx(*frames(FROM - 1))
    assert express.bursts[1:] == [frames(FROM - 1)]


def test_express_is_none_after_init(kernel: Kernel, express: Express) -> None:
    kernel.tx(*frames(FROM))
    lib.ix_xsk_init(kernel.x)
    assert kernel.x.express == ffi.NULL
    assert kernel.tx(*frames(FROM)) == FROM
    assert kernel.complete() == []
    assert express.stats() == (0, 0, 0)


def test_check_more_frames_by_express_than_there_is_room(kernel: Kernel) -> None:
    kernel.x.n_express_done = ROOM + 1
    assert ffi.string(lib.ix_xsk_check(kernel.x)) == b"frames sent by express"
