/* The application's event loop over one shard, or over several of one worker: then there is a loop
 * a shard, chained, and a turn of the first is one of each.
 *
 * A turn hands what the bufferevents want to the dataplane, runs a cycle, books the results and
 * events, and stops as soon as a callback is due. What is due stands in lists of numbers, so that
 * an interpreter above pays for callbacks only, not for packets:
 *
 *   early  (bufferevent, listener) pairs: accepted; listener IX_EVLOOP_CONNECTED: an own connect
 * succeeded read   bufferevents whose read callback is due write  likewise late   (bufferevent,
 * events) pairs: EOF, ERROR, TIMEOUT timers ids of timers that ran out
 *
 * Call them in this order. The lists are valid until the next turn; no bufferevent's record is used
 * anew before it.
 */
#ifndef IX_NATIVE_EVLOOP_H
#define IX_NATIVE_EVLOOP_H

#include "native/app.h"
#include "native/bufferevent.h"

#define IX_EVLOOP_CONNECTED 0xffffffffu
/* In the cookie of a listener, beside its number. */
#define IX_EVLOOP_LISTENER 0x8000000000000000u
/* In what a turn returns: not only reads are due. */
#define IX_EVLOOP_MORE 0x100000000

/* A call whose result is to be looked at after the poll. */
struct ix_evpending {
    struct ix_bev *bev;
    uint32_t call; /* its index */
};

struct ix_evloop {
    struct ix_app *app;
    struct ix_evloop *next; /* of the chain that takes turns together; NULL: the last */
    struct ix_evpool *pool;
    struct ix_evtimers timers;
    struct ix_evbuffer closed; /* always empty, takes nothing: what closed bufferevents have */
    struct ix_bev **pages;     /* bufferevents, IX_EVLOOP_PAGE a page; they never move */
    uint32_t page_count;
    uint32_t free_head;           /* index of a free one, or UINT32_MAX */
    uint32_t bev_count;           /* in use, those that end by themselves included */
    uint32_t attached;            /* in use by the application */
    struct ix_evpending *pending; /* [io->max_calls] */
    uint32_t pending_count;
    uint32_t *early, *read, *write, *late, *timers_due; /* [2 * n], [n], [n], [2 * n], [timers] */
    uint32_t early_count, read_count, write_count, late_count, timers_due_count; /* entries */
    uint32_t timers_due_capacity;
    uint64_t turns;          /* how often a cycle was run */
    uint64_t knocks_refused; /* for want of memory */
};

enum { IX_EVLOOP_PAGE = 64 };

/* A loop on the application's shard, which must have no other. NULL: no memory. */
struct ix_evloop *ix_evloop_new(struct ix_app *app);
/* Adds a loop that was in no chain to the end of the one that begins with `first`. */
void ix_evloop_chain(struct ix_evloop *first, struct ix_evloop *loop);
/* Frees it, by itself. Connections are left to the dataplane: close them before, or end the shard.
 */
void ix_evloop_free(struct ix_evloop *loop);

/* Runs cycles of each loop from this one on until something is due or max_wait_ns have passed, at
 * least one. Returns how many read callbacks are due, plus IX_EVLOOP_MORE if anything else is,
 * reads of the other loops too; -1: it is time to stop. */
int64_t ix_evloop_turn(struct ix_evloop *loop, uint64_t max_wait_ns);
/* The time now on the loop's clock, ns. */
uint64_t ix_evloop_now(const struct ix_evloop *loop);
/* Is anything left to do in the chain from this loop on: bufferevents, those that were closed and
 * whose output is still being delivered too, or timers? */
uint32_t ix_evloop_active(const struct ix_evloop *loop);
/* Arms a timer of the application's; its id is listed when it runs out. Returns 0 or -ENOMEM. */
int ix_evloop_timer_set(struct ix_evloop *loop, struct ix_evtimer *timer, uint64_t delay_ns);
void ix_evloop_timer_cancel(struct ix_evloop *loop, struct ix_evtimer *timer);

/* A bufferevent without connection, or NULL: no memory. READ disabled, WRITE enabled, as in
 * libevent. */
struct ix_bev *ix_evloop_bev(struct ix_evloop *loop);
/* Bufferevent number `index`, which must have been given out. */
struct ix_bev *ix_evloop_at(const struct ix_evloop *loop, uint32_t index);
/* NULL, or which invariant does not hold. Slow. */
const char *ix_evloop_check(const struct ix_evloop *loop);

/* ---- for bufferevents ---------------------------------------------------- */

/* The next free call for bev's connection, or NULL. watch: its result is to be looked at. */
struct ix_call *ix_evloop_call(struct ix_evloop *loop, struct ix_bev *bev, uint8_t op, bool watch);
void ix_evloop_due_read(struct ix_evloop *loop, struct ix_bev *bev);
void ix_evloop_due_write(struct ix_evloop *loop, struct ix_bev *bev);
/* bev->events are due. */
void ix_evloop_due_events(struct ix_evloop *loop, struct ix_bev *bev);
/* Puts the record back on the free list. */
void ix_evloop_recycle(struct ix_evloop *loop, struct ix_bev *bev);

#endif
