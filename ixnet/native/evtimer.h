/* Timers of the application's loop: a binary heap of deadlines. The records are their owners' and
 * stand in the heap while they are armed. Unlike TIMER_SET they cost no call, and there may be any
 * number.
 */
#ifndef IX_NATIVE_EVTIMER_H
#define IX_NATIVE_EVTIMER_H

#ifndef IX_CDEF
#include <stdint.h>
#endif

struct ix_evtimer {
    uint64_t deadline_ns;
    uint32_t place; /* in the heap, from 1; 0: not armed */
    uint32_t id;    /* the owner's, to know it by */
    uint32_t kind;  /* the owner's */
};

struct ix_evtimers {
    struct ix_evtimer **heap; /* [count], the earliest first; children of i at 2i + 1 and 2i + 2 */
    uint32_t count, capacity;
};

void ix_evtimers_init(struct ix_evtimers *timers);
void ix_evtimers_destroy(struct ix_evtimers *timers);
/* Arms the timer, anew if it was armed. Returns 0 or -ENOMEM. */
int ix_evtimer_set(struct ix_evtimers *timers, struct ix_evtimer *timer, uint64_t deadline_ns);
/* Disarms it; nothing happens if it wasn't armed. */
void ix_evtimer_cancel(struct ix_evtimers *timers, struct ix_evtimer *timer);
/* The earliest deadline, or UINT64_MAX. */
uint64_t ix_evtimers_next(const struct ix_evtimers *timers);
/* Takes the earliest timer that is due by now_ns out of the heap, or returns NULL. */
struct ix_evtimer *ix_evtimers_pop(struct ix_evtimers *timers, uint64_t now_ns);
/* NULL, or which invariant does not hold. */
const char *ix_evtimers_check(const struct ix_evtimers *timers);

#endif
