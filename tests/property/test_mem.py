"""mem/: frame pool, timing wheels and flow table against models in Python.

Each rule does the same to the C code and to the model and compares what both say; after every step
the C code's own check of its invariants runs.
"""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from tests.unit.san import ffi, lib
from tests.unit.test_flowtab import Table

SETTINGS = settings(max_examples=100, stateful_step_count=60, deadline=None, database=None)

# ---- frame pool -----------------------------------------------------------------------

FREE, FILL, RX, APP, TX = (
    lib.IX_FRAME_FREE,
    lib.IX_FRAME_FILL,
    lib.IX_FRAME_RX,
    lib.IX_FRAME_APP,
    lib.IX_FRAME_TX,
)
POOL, ARENA = 6, 2
HANDLES = (1, 2)


def one_of(frames: list[int], pick: int) -> int:
    """One of the frames, chosen by a number."""
    return frames[pick % len(frames)]


class FramesMachine(RuleBasedStateMachine):
    """Each rule picks a frame that the call fits, so that frames get far in their lives. `intrude`
    makes the calls that the link and the application can provoke, on any frame; those that don't
    fit must be refused. Calls that would trip an assertion are left out."""

    picks = st.integers(0, POOL + ARENA - 1)
    frames = st.integers(0, POOL + ARENA + 1)

    def __init__(self) -> None:
        super().__init__()
        self.meta = ffi.new("struct ix_frame[]", POOL + ARENA)
        self.f = ffi.new("struct ix_frames *")
        lib.ix_frames_init(self.f, self.meta, POOL, ARENA, 11)
        self.owner = [FREE] * POOL + [APP] * ARENA
        self.refs = [0] * (POOL + ARENA)
        self.lent: dict[int, tuple[int, int]] = {}  # frame: (handle, bytes out)
        self.flow: dict[int, int] = {}

    @initialize(lent=st.integers(0, POOL))
    def begin_in_mid_traffic(self, lent: int) -> None:
        for _ in range(lent):
            self.take_fill()
            self.from_rx(0)
            self.lend(0, HANDLES[0], 3)

    def _owned(self, *owners: int) -> list[int]:
        return [frame for frame, owner in enumerate(self.owner) if owner in owners]

    def _freed(self, frame: int) -> None:
        self.owner[frame] = FREE
        self.flow.pop(frame, None)

    def _taken(self, frame: int, owner: int) -> None:
        if FREE in self.owner:
            assert self.owner[frame] == FREE
            self.owner[frame] = owner
        else:
            assert frame == lib.IX_NONE

    @rule()
    def alloc(self) -> None:
        self._taken(lib.ix_frame_alloc(self.f), TX)

    @rule()
    def take_fill(self) -> None:
        self._taken(lib.ix_frame_take_fill(self.f), FILL)

    @precondition(lambda self: self._owned(FILL))
    @rule(pick=picks)
    def untake_fill(self, pick: int) -> None:
        frame = one_of(self._owned(FILL), pick)
        lib.ix_frame_untake_fill(self.f, frame)
        self._freed(frame)

    def _from_rx(self, frame: int) -> None:
        legal = frame in self._owned(FILL)
        assert lib.ix_frame_from_rx(self.f, frame) == legal
        if legal:
            self.owner[frame] = RX

    @precondition(lambda self: self._owned(FILL))
    @rule(pick=picks)
    def from_rx(self, pick: int) -> None:
        self._from_rx(one_of(self._owned(FILL), pick))

    def _may_be_freed(self) -> list[int]:
        return [frame for frame in self._owned(RX, TX) if not self.refs[frame]]

    @precondition(_may_be_freed)
    @rule(pick=picks)
    def free(self, pick: int) -> None:
        frame = one_of(self._may_be_freed(), pick)
        lib.ix_frame_free(self.f, frame)
        self._freed(frame)

    @precondition(lambda self: self._owned(RX))
    @rule(pick=picks, handle=st.sampled_from(HANDLES), nbytes=st.integers(1, 5))
    def lend(self, pick: int, handle: int, nbytes: int) -> None:
        # The reserve is the caller's to keep; lending beyond it is a decision, not an error.
        assert lib.ix_frame_may_lend(self.f) == (len(self._owned(APP)) - ARENA < self.f.lend_max)
        frame = one_of(self._owned(RX), pick)
        lib.ix_frame_lend(self.f, frame, handle, 10, nbytes)
        self.owner[frame] = APP
        self.lent[frame] = (handle, nbytes)

    def _done(self, frame: int, handle: int, nbytes: int) -> None:
        to, out = self.lent.get(frame, (None, 0))
        legal = to == handle and nbytes <= out
        result = lib.ix_frame_done(self.f, frame, handle, nbytes)
        assert result == (0 if legal else -lib.IX_EINVAL)
        if not legal:
            return
        self.lent[frame] = (handle, out - nbytes)
        if out == nbytes:
            del self.lent[frame]
            if self.refs[frame]:
                self.owner[frame] = TX
            else:
                self._freed(frame)

    @precondition(lambda self: self.lent)
    @rule(pick=picks, handle=st.sampled_from((0, *HANDLES)), nbytes=st.integers(0, 6))
    def done(self, pick: int, handle: int, nbytes: int) -> None:
        self._done(one_of(sorted(self.lent), pick), handle, nbytes)

    @precondition(lambda self: self.lent)
    @rule(pick=picks)
    def done_with_all(self, pick: int) -> None:
        frame = one_of(sorted(self.lent), pick)
        self._done(frame, *self.lent[frame])

    @rule(pick=picks, flow=st.none() | st.integers(0, 3))
    def tx_begin(self, pick: int, flow: int | None) -> None:
        frame = one_of(self._owned(APP, TX), pick)
        lib.ix_frame_tx_begin(self.f, frame)
        self.refs[frame] += 1
        if flow is not None:
            self.meta[frame].flow = self.flow[frame] = flow

    def _tx_end(self, frame: int) -> None:
        told = lib.ix_frame_tx_end(self.f, frame)
        if frame >= POOL + ARENA or self.refs[frame] == 0:
            assert told == lib.IX_NONE
            return
        self.refs[frame] -= 1
        if self.refs[frame]:
            assert told == lib.IX_NONE
            return
        assert told == self.flow.get(frame, lib.IX_NONE)
        if self.owner[frame] == TX:
            self._freed(frame)

    @precondition(lambda self: any(self.refs))
    @rule(pick=picks)
    def tx_end(self, pick: int) -> None:
        self._tx_end(one_of([f for f, refs in enumerate(self.refs) if refs], pick))

    @rule(frame=frames, handle=st.sampled_from((0, *HANDLES)), nbytes=st.integers(0, 6))
    def intrude(self, frame: int, handle: int, nbytes: int) -> None:
        self._from_rx(frame)
        self._done(frame, handle, nbytes)
        self._tx_end(frame)

    @invariant()
    def same_as_model(self) -> None:
        wrong = lib.ix_frames_check(self.f)
        assert wrong == ffi.NULL, ffi.string(wrong)
        for frame in range(POOL + ARENA):
            m = self.meta[frame]
            assert m.owner == self.owner[frame]
            assert m.tx_refs == self.refs[frame]
            assert m.flow == self.flow.get(frame, lib.IX_NONE)
            if frame in self.lent:
                assert (m.handle, m.lent_bytes) == self.lent[frame]
        for owner in range(lib.IX_FRAME_OWNERS):
            assert self.f.count[owner] == self.owner[:POOL].count(owner)


# ---- timing wheels -----------------------------------------------------------------------

TIMERS = 12
TICK_SHIFT = lib.IX_WHEEL_TICK_SHIFT
LAST_TICK = (2**64 - 1) >> TICK_SHIFT
# Times near and across the boundaries of each level, in ns.
spans = st.one_of(
    st.integers(0, 3 << TICK_SHIFT),
    st.builds(
        lambda level, ticks, ns: max(0, (ticks << TICK_SHIFT + 8 * level) + ns),
        st.integers(0, 4),
        st.integers(0, 300),
        st.integers(-(1 << TICK_SHIFT) - 1, (1 << TICK_SHIFT) + 1),
    ),
    st.integers(0, 2**64 - 1),
)


class WheelMachine(RuleBasedStateMachine):
    """The model is a sorted list of (tick, timer)."""

    @initialize(now=spans)
    def start(self, now: int) -> None:
        self.now = min(now, 2**64 - 1)
        self.tick = self.now >> TICK_SHIFT  # that the wheel has handled
        self.timers = ffi.new("struct ix_timer[]", TIMERS)
        self.w = ffi.new("struct ix_wheel *")
        lib.ix_wheel_init(self.w, self.timers, TIMERS, self.now)
        self.armed: dict[int, int] = {}  # timer: tick

    def _set(self, timer: int, deadline: int) -> None:
        lib.ix_wheel_set(self.w, timer, deadline)
        self.armed[timer] = max(min(-(-deadline >> TICK_SHIFT), LAST_TICK), self.tick)

    @rule(timer=st.integers(0, TIMERS - 1), delay=spans)
    def set_later(self, timer: int, delay: int) -> None:
        self._set(timer, min(self.now + delay, 2**64 - 1))

    @rule(timer=st.integers(0, TIMERS - 1), deadline=spans)
    def set_anywhere(self, timer: int, deadline: int) -> None:
        self._set(timer, min(deadline, 2**64 - 1))

    @rule(timer=st.integers(0, TIMERS - 1))
    def cancel(self, timer: int) -> None:
        lib.ix_wheel_cancel(self.w, timer)
        self.armed.pop(timer, None)

    def _advance(self, now: int, most: int) -> None:
        target = max(now >> TICK_SHIFT, self.tick)
        due = sorted(tick for tick in self.armed.values() if tick <= target)
        fired = ffi.new("uint32_t[]", most + 1)
        n = lib.ix_wheel_advance(self.w, now, fired, most)
        assert len(due[:most]) == n
        for timer, tick in zip(fired[0:n], due, strict=False):
            assert self.armed.pop(timer) == tick
            self.tick = tick
        if n < most:
            self.tick = target

    @rule(span=spans, most=st.integers(0, TIMERS + 1))
    def advance(self, span: int, most: int) -> None:
        self.now = min(self.now + span, 2**64 - 1)
        self._advance(self.now, most)

    @rule(back=spans)
    def clock_goes_backward(self, back: int) -> None:
        self._advance(max(0, self.now - back), TIMERS)

    @precondition(lambda self: self.armed)
    @rule()
    def sleep_until_next(self) -> None:
        # However far away, it takes at most a wakeup per level and one per span.
        before = len(self.armed)
        first = min(self.armed.values())
        wakeups = 0
        while len(self.armed) == before:
            nxt = lib.ix_wheel_next_ns(self.w)
            assert nxt <= first << TICK_SHIFT
            if wakeups > 4:  # spans without a timer are jumped over, to keep this short
                nxt = first << TICK_SHIFT
            self.now = max(self.now, nxt)
            self._advance(self.now, 1)
            wakeups += 1

    @invariant()
    def same_as_model(self) -> None:
        if not hasattr(self, "w"):
            return
        wrong = lib.ix_wheel_check(self.w)
        assert wrong == ffi.NULL, ffi.string(wrong)
        assert self.w.armed == len(self.armed)
        for timer in range(TIMERS):
            assert lib.ix_wheel_armed(self.w, timer) == (timer in self.armed)
            if timer in self.armed:
                due = self.armed[timer] << TICK_SHIFT
                assert lib.ix_wheel_deadline(self.w, timer) == due
        following = lib.ix_wheel_next_ns(self.w)
        if self.armed:
            assert following <= min(self.armed.values()) << TICK_SHIFT
        else:
            assert following == 2**64 - 1


# ---- flow table ---------------------------------------------------------------------------

MOST_FLOWS = 70
# Few distinct hashes, so that equal ones, equal tags and equal buckets are the rule.
hashes = st.one_of(
    st.sampled_from([0, 1, 1 << 48, 0xFFFF << 48 | 1]),
    st.builds(lambda tag, bucket: tag << 48 | bucket, st.integers(0, 2), st.integers(0, 40)),
    st.integers(0, 2**64 - 1),
)


class FlowtabMachine(RuleBasedStateMachine):
    """The model is a dict from flow to hash."""

    flows = Bundle("flows")

    def __init__(self) -> None:
        super().__init__()
        self.table = Table(MOST_FLOWS)
        self.model: dict[int, int] = {}
        self.next_flow = 0

    @rule(target=flows, value=hashes, count=st.integers(1, 12))
    def add(self, value: int, count: int) -> Any:
        count = min(count, MOST_FLOWS - len(self.model))
        added = range(self.next_flow, self.next_flow + count)
        for flow in added:
            assert lib.ix_flowtab_add(self.table.t, value, flow) == 0
            self.model[flow] = value
        self.next_flow += count
        return multiple(*added)

    @rule(flow=consumes(flows))
    def delete(self, flow: int) -> None:
        lib.ix_flowtab_del(self.table.t, self.model.pop(flow), flow)

    @rule(value=hashes)
    def look_up(self, value: int) -> None:
        # Candidates: every flow of that hash, and others only of the same bucket and tag.
        found = self.table.candidates(value)
        assert len(set(found)) == len(found)
        tag = lib.ix_flowtab_tag(value)
        mask = self.table.t.bucket_mask
        expected = {
            flow
            for flow, other in self.model.items()
            if other & mask == value & mask and lib.ix_flowtab_tag(other) == tag
        }
        assert set(found) == expected

    @invariant()
    def same_as_model(self) -> None:
        self.table.check()
        assert self.table.t.flows == len(self.model)

    def teardown(self) -> None:
        for flow, value in self.model.items():
            assert flow in self.table.candidates(value)


FramesMachine.TestCase.settings = SETTINGS
WheelMachine.TestCase.settings = SETTINGS
FlowtabMachine.TestCase.settings = SETTINGS
TestFrames = FramesMachine.TestCase
TestWheel = WheelMachine.TestCase
TestFlowtab = FlowtabMachine.TestCase
