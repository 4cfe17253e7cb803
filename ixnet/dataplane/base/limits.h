/* Every maximum of the core in one place, with the relations between them.
 *
 * Run-time sizes (flows, frames, ...) come with struct ix_config; what stands
 * here bounds them, or is fixed because a structure or a loop rests on it.
 */
#ifndef IX_BASE_LIMITS_H
#define IX_BASE_LIMITS_H

#include "base/types.h"

enum {
    /* Cycle: the most frames taken from RX before the application runs (IX: B = 64). */
    IX_BATCH_DEFAULT = 64,
    IX_BATCH_MAX = 256,
    /* Frames built in one cycle and not yet on the TX ring. A cycle stops
     * building when it is full and goes on in the next. */
    IX_TX_STAGE = 512,
    /* Control messages applied per cycle, so that a burst of route changes can't delay packets. */
    IX_CTL_PER_CYCLE = 16,
    IX_CTL_RING = 256,
    IX_TIMERS_PER_CYCLE = 256,

    IX_FRAME_SHIFT_MIN = 11,
    IX_FRAME_SHIFT_MAX = 12,
    IX_FRAMES_MAX = 1 << 20,
    /* Few enough for simulations of what happens when there are too few; 1,024 serve well. */
    IX_POOL_FRAMES_MIN = 64,
    /* Frames that are never lent to the application, so that ACKs can always come in and
     * go out: without them an application that holds everything it received until its echo
     * is acknowledged would wait for an ACK that has no frame to arrive in. */
    IX_FRAMES_RESERVE = 512,
    /* Bytes at the start of a frame that output keeps for headers:
     * 14 Ethernet + 4 VLAN + 40 IPv6 + 60 TCP = 118, rounded up. */
    IX_TX_HEADROOM = 128,

    IX_FLOWS_MAX = 1 << 22,
    IX_LISTENERS_MAX = 256,
    IX_UDP_MAX = 256,
    IX_APP_TIMERS_MAX = 1 << 16,
    IX_NEIGH_MAX = 1024,
    IX_ROUTES_MAX = 256,
    IX_ADDRS_MAX = 32,

    IX_HEADERS_MAX = 118,
    IX_MTU_MIN = 576,   /* RFC 1122 3.3.3: every host takes 576 bytes */
    IX_MSS_MIN = 88,    /* what Linux takes as the least, net.ipv4.tcp_min_snd_mss less options */
    IX_MSS_DEFAULT = 536, /* RFC 9293 3.7.1 */
    IX_SACK_BLOCKS_RX = 4,  /* what fits into 40 bytes of options (RFC 2018 section 3) */
    IX_SACK_BLOCKS_TX = 3,  /* ... beside a timestamp */
    IX_TX_RECORDS_MAX = 1 << 18, /* of what is outstanding, in a shard ... */
    IX_TX_RECORDS_FLOW = 1024,   /* ... and of one flow; each ACK in recovery walks over them */
    IX_OOO_RUNS_MAX = 256, /* pieces of a flow's stream that wait behind holes; each arrival there
                            * walks over them. Frames: a quarter of what can be lent */
    IX_BACKLOG_DEFAULT = 1024,
};

IX_STATIC_ASSERT(IX_TX_STAGE >= IX_BATCH_MAX, "a full batch must be answerable in its cycle");
IX_STATIC_ASSERT(IX_TX_HEADROOM >= IX_HEADERS_MAX, "headers must fit before the payload");

#endif
