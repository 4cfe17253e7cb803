/* Hierarchical timing wheels (Varghese and Lauck 1987, scheme 7), as IX has them: 16 us
 * resolution, no allocation.
 *
 * Timers live in one array and are named by index; the owner gives the index its meaning. Setting,
 * moving and cancelling are O(1), and touch no other timer unless one is set anew, or to before
 * where it waits; a timer never fires early, and fires at most one tick late plus the caller's own
 * delay.
 */
#ifndef IX_MEM_WHEEL_H
#define IX_MEM_WHEEL_H

#include "base/limits.h"
#include "base/types.h"

enum {
    IX_WHEEL_TICK_SHIFT = 14, /* one tick is 2^14 ns = 16.384 us */
    IX_WHEEL_BITS = 8,
    IX_WHEEL_SLOTS = 1 << IX_WHEEL_BITS,
    /* 2^32 ticks: 19.5 hours; later deadlines are parked in one slot and sorted in when the span
     * begins in which they lie. */
    IX_WHEEL_LEVELS = 4,
};

struct ix_timer {
    uint32_t next; /* in its slot; IX_NONE: the last */
    uint32_t prev; /* in its slot; the first one's prev is the last */
    uint32_t slot; /* level * IX_WHEEL_SLOTS + slot, not later than its tick; IX_NONE: in none */
    uint32_t armed; /* 0: no more than its place is left, until time reaches that */
    uint64_t tick; /* fires when the wheel's time reaches this tick */
};

struct ix_wheel {
    struct ix_timer *timers;
    uint32_t count; /* how many timers there are */
    uint32_t armed; /* how many are armed */
    uint32_t linked; /* how many are in a slot */
    uint64_t now;   /* the tick that was handled last; none that is armed is earlier */
    uint32_t head[IX_WHEEL_LEVELS * IX_WHEEL_SLOTS];     /* first timer of a slot, or IX_NONE */
    uint64_t busy[IX_WHEEL_LEVELS][IX_WHEEL_SLOTS / 64]; /* bit set: slot not empty */
};

void ix_wheel_init(struct ix_wheel *w, struct ix_timer *timers, uint32_t count, uint64_t now_ns);
/* Arms timer `id`, or moves it. A deadline in the past counts as now and fires at the next advance,
 * one in the last 16 us before 2^64 ns as the last tick that there is. */
void ix_wheel_set(struct ix_wheel *w, uint32_t id, uint64_t deadline_ns);
/* Disarms it. One that is not armed stays so. */
void ix_wheel_cancel(struct ix_wheel *w, uint32_t id);
static inline bool ix_wheel_armed(const struct ix_wheel *w, uint32_t id)
{
    return w->timers[id].armed;
}
/* When timer `id` is due, ns (rounded up to a tick). Only if armed. */
static inline uint64_t ix_wheel_deadline(const struct ix_wheel *w, uint32_t id)
{
    return w->timers[id].tick << IX_WHEEL_TICK_SHIFT;
}
/* Moves time on to now_ns and takes out up to `max` due timers, disarmed, in `fired`, in order of
 * their ticks; those of one tick in the order in which they were set, but for those that were moved
 * to it. Returns how many. If it
 * returns max there may be more: call again with the same now_ns (a bounded number of times, if a
 * handler can set a timer for now). Cost is proportional to what fires and to non-empty slots
 * passed, not to the time that passed. A clock that goes backward is taken as standing still. */
uint32_t ix_wheel_advance(struct ix_wheel *w, uint64_t now_ns, uint32_t *fired, uint32_t max);
/* A time not later than the next timer's deadline, ns (a level boundary, or where one waits that
 * was moved or cancelled, may be earlier); UINT64_MAX if none is armed. */
uint64_t ix_wheel_next_ns(const struct ix_wheel *w);

/* Invariants: each armed timer in a slot that time reaches before its tick or at it, lists and busy
 * bits right. */
const char *ix_wheel_check(const struct ix_wheel *w);

#endif
