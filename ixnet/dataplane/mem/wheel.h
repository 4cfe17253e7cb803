/* Hierarchical timing wheels (Varghese and Lauck 1987, scheme 7), as IX has them: 16 us resolution, no allocation.
 *
 * Timers live in one array and are named by index; the owner gives the index its meaning. Setting, moving and
 * cancelling are O(1); a timer never fires early, and fires at most one tick late plus the caller's own delay.
 */
#ifndef IX_MEM_WHEEL_H
#define IX_MEM_WHEEL_H

#include "base/limits.h"
#include "base/types.h"

enum {
    IX_WHEEL_TICK_SHIFT = 14, /* one tick is 2^14 ns = 16.384 us */
    IX_WHEEL_BITS = 8,
    IX_WHEEL_SLOTS = 1 << IX_WHEEL_BITS,
    IX_WHEEL_LEVELS = 4, /* 2^32 ticks: 19.5 hours; later deadlines are parked in the last slot and re-sorted */
};

struct ix_timer {
    uint32_t next, prev; /* in its slot; IX_NONE at the ends */
    uint32_t slot;       /* level * IX_WHEEL_SLOTS + slot; IX_NONE: not armed */
    uint32_t pad;
    uint64_t tick;       /* fires when the wheel's time reaches this tick */
};

struct ix_wheel {
    struct ix_timer *timers;
    uint32_t count;
    uint32_t armed; /* how many are armed */
    uint64_t now;   /* ticks handled so far */
    uint32_t head[IX_WHEEL_LEVELS * IX_WHEEL_SLOTS];
    uint64_t busy[IX_WHEEL_LEVELS][IX_WHEEL_SLOTS / 64]; /* bit set: slot not empty */
};

void ix_wheel_init(struct ix_wheel *w, struct ix_timer *timers, uint32_t count, uint64_t now_ns);
/* Arms timer `id`, or moves it. A deadline in the past fires at the next advance. */
void ix_wheel_set(struct ix_wheel *w, uint32_t id, uint64_t deadline_ns);
void ix_wheel_cancel(struct ix_wheel *w, uint32_t id);
static inline bool ix_wheel_armed(const struct ix_wheel *w, uint32_t id)
{
    return w->timers[id].slot != IX_NONE;
}
/* When timer `id` is due, ns (rounded up to a tick). Only if armed. */
static inline uint64_t ix_wheel_deadline(const struct ix_wheel *w, uint32_t id)
{
    return w->timers[id].tick << IX_WHEEL_TICK_SHIFT;
}
/* Moves time on to now_ns and takes out up to `max` due timers, disarmed, in `fired`, in order of their ticks. Returns how many. If it
 * returns max there may be more: call again with the same now_ns. Cost is proportional to what fires and to
 * non-empty slots passed, not to the time that passed. A clock that goes backward is taken as standing still. */
uint32_t ix_wheel_advance(struct ix_wheel *w, uint64_t now_ns, uint32_t *fired, uint32_t max);
/* A time not later than the next timer's deadline, ns (a level boundary may be earlier); UINT64_MAX if none is armed. */
uint64_t ix_wheel_next_ns(const struct ix_wheel *w);

const char *ix_wheel_check(const struct ix_wheel *w);

#endif
