/* A shard: everything that one NIC queue owns, and the cycle that runs it.
 *
 * Reading order: shard.c (the numbered cycle), calls.c (the application's calls), ctl.c (the
 * control plane's ring), create.c (memory), stats.c, remains.c (after a death).
 */
#ifndef IX_SHARD_SHARD_H
#define IX_SHARD_SHARD_H

#include "tcp/tcp.h"

/* A one-way ring between two threads or processes: one writer, one reader. */
struct ix_ctl_ring {
    uint32_t head IX_ALIGNED(IX_CACHE_LINE); /* next to read; the reader's */
    uint32_t tail IX_ALIGNED(IX_CACHE_LINE); /* next to write; the writer's */
    struct ix_ctl_msg slots[IX_CTL_RING];
};

/* An application's timer. Free ones are linked by `next`. */
struct ix_app_timer {
    uint64_t cookie;
    uint32_t generation;
    uint32_t next;
    bool in_use;
    bool due; /* fired, the event waits for room */
};

/* From so many connections on the cache doesn't hold them. */
#define IX_MANY_FLOWS 512u

struct ix_shard {
    struct ix_stats stats; /* first: at offset 0 of the shard's memory */
    /* On a page of its own: strangers may map the statistics. */
    struct ix_ctl_ring news IX_ALIGNED(4096); /* control plane to shard */
    struct ix_ctl_ring requests; /* shard to control plane */

    struct ix_config cfg;
    struct ix_counters counters;
    struct ix_arrays io;
    struct ix_link *link;
    uint64_t now_ns; /* of the current cycle; never goes back */
    uint32_t batch;
    bool tx_pending; /* the last flush left work with the kernel side */
    uint32_t tx_out; /* frames handed to the link and not yet completed */
    uint64_t tx_moved_ns; /* when that number last changed */
    uint32_t fill_target; /* frames kept on FILL now: cfg.fill_target to cfg.fill_max */
    uint64_t fill_dry_ns; /* when that was last found too few, or halved */

    struct ix_frames frames;
    struct ix_wheel wheel;
    struct ix_net net;
    struct ix_tcp tcp;
    struct ix_udp_table udp;

    struct ix_app_timer *timers;
    uint32_t timer_free, timers_due;
    uint32_t abort_left; /* flows that IX_CTL_ABORT_ALL has still to look at */
    struct ix_desc rx[IX_BATCH_MAX];
};

/* ---- calls.c */
/* How many calls wait, as the application says: any number. One read, as it may change. */
static inline uint32_t ix_shard_call_count(const struct ix_shard *shard)
{
    return __atomic_load_n(&shard->io.shared->n_calls, __ATOMIC_RELAXED);
}
/* The first n records of the array; n as the application says, unchecked. */
void ix_shard_run_calls(struct ix_shard *shard, uint32_t n);
/* A timer of the application fired. */
void ix_shard_app_timer(struct ix_shard *shard, uint32_t index);
/* TIMER events that found no room before. */
void ix_shard_deliver_timers(struct ix_shard *shard);
/* ---- ctl.c */
void ix_shard_take_news(struct ix_shard *shard);
/* IX_CTL_ABORT_ALL, as far as the link takes RSTs. */
void ix_shard_abort_some(struct ix_shard *shard);
/* ---- create.c */
/* Where the TCBs lie in a shard's memory; cfg as ix_shard_bytes() left it. */
const struct ix_tcb *ix_shard_flows(const void *memory, const struct ix_config *cfg);
/* ---- remains.c */
/* A connection whose peer doesn't know yet that this side has died. */
struct ix_remains {
    struct ix_flow_key key;
    uint32_t snd_una, snd_max; /* what the peer expects next lies between them, both included */
    uint32_t rcv_nxt;
};
/* Reads up to `max` of them out of a dead shard's memory, whatever state that is in, from TCB *at
 * on, which moves behind the last that was looked at. Returns how many; fewer than `max`: these
 * were the last. */
uint32_t ix_shard_remains(const void *memory, const struct ix_config *cfg, uint32_t *at,
                          struct ix_remains *out, uint32_t max);
/* ---- stats.c */
void ix_shard_update_stats(struct ix_shard *shard);

#endif
