/* Simulation: two shards, each with an application, over the simulated wire, on virtual time.
 *
 * Everything follows from one seed: sizes, faults, connections, what the applications do and when.
 * ix_simd_plan() draws a case from the seed, ix_simd_run() plays it and checks all along; what it
 * checks stands at the head of sim_check.c. A test may change a case before it is run.
 */
#ifndef IX_TESTS_SIM_DRIVER_H
#define IX_TESTS_SIM_DRIVER_H

#include "base/counters.h"
#include "link/sim_link.h"

/* A fault of ours that the checks must find, to show that they can. */
enum ix_simd_canary {
    IX_SIMD_HEALTHY = 0,
    IX_SIMD_FLIP_PAYLOAD,   /* a payload byte changes on the way, and the checksum with it */
    IX_SIMD_FORGET_DONE,    /* an application never gives one frame back */
    IX_SIMD_TOUCH_BORROWED, /* an application writes to memory that SENDV has borrowed */
    IX_SIMD_LOSE_SENT,      /* one SENT event disappears */
    IX_SIMD_LOSE_EOF,       /* one end of stream disappears */
    IX_SIMD_REPEAT_RECV,    /* one RECV event comes twice */
    IX_SIMD_BLACK_HOLE,     /* one direction stops carrying frames for good */
    IX_SIMD_ASSERTION,      /* a function of the core is called against its rules */
};

/* One side: its shard's configuration, its link, and how it is polled. */
struct ix_simd_side {
    uint64_t clock_ns;       /* what its clock says when the simulation's says 0 */
    uint64_t poll_ns;        /* least time between two polls */
    uint32_t idle_polls_ppm; /* chance of polling although nothing calls for it */
    uint32_t back_ppm;       /* chance that a poll's clock has gone back */
    uint32_t pool_frames, arena_frames, frame_shift, fill_target, batch;
    uint32_t max_flows, max_events, max_calls, max_extents, max_timers;
    uint32_t rcvbuf_bytes, sndbuf_bytes, mtu, time_wait_ms, backlog;
    uint8_t congestion, ecn; /* enum ix_congestion, enum ix_ecn */
    bool pacing;
    uint32_t ring_entries; /* of FILL, RX, TX, COMPLETION */
    uint64_t completion_delay_ns;
    uint32_t tx_budget;
    bool sg_inplace, arena_frames_only, fill_at_creation, reordered_accepts;
};

/* Something that happens to a side from outside. */
enum ix_simd_upset_kind {
    IX_SIMD_STALL, /* it is not polled for a while */
    IX_SIMD_DOWN,  /* its link is down for a while */
    IX_SIMD_NEIGH, /* its neighbour disappears for a while */
    IX_SIMD_JUMP,  /* its clock jumps forward, by for_ns */
    IX_SIMD_NARROW, /* the path of what it sends has a smaller MTU for a while */
};
struct ix_simd_upset {
    uint64_t at_ns, for_ns;
    uint32_t side, kind; /* kind: enum ix_simd_upset_kind */
};
enum { IX_SIMD_UPSETS = 6 };

struct ix_simd_case {
    uint64_t seed;
    struct ix_sim_path path[2]; /* [side]: of what that side sends */
    struct ix_simd_side side[2];
    uint32_t wire_frames;
    uint64_t faults_until_ns; /* every fault is over by then */
    bool cookies; /* every connection is opened by a SYN cookie; all keep themselves alive, as an
                   * opener whose last ACK was lost may have nothing to say */
    bool grow; /* windows grow with use, up to eight times what they are at first */
    bool gateway; /* each reaches the other by a router's address, not by its own */
    bool own_address;         /* neighbours by ARP or ND over the wire, else they are told */
    bool six;                 /* all over IPv6 */
    bool wrap_isn;            /* sequence numbers of the first connection wrap around early */
    uint32_t conns;           /* connections in all */
    uint32_t odd_ppm;         /* chance that a connection does not end in order */
    uint32_t pause_ppm;       /* chance that an end stops reading for a while */
    uint32_t chunk_max;       /* most bytes per SENDV; 0: each end draws its own */
    uint32_t pattern;         /* of every connection: enum sim_pattern + 1; 0: each draws its own */
    bool greedy;        /* connections may use up the frames, and be reset for it */
    bool plain;         /* nothing is held back, and options stay as they are: for judging speed */
    uint64_t spread_ns; /* connections start within this time */
    uint64_t bytes;     /* of all streams together, about */
    uint32_t nonsense_ppm; /* chance of a call that must be refused, per poll */
    uint32_t upset_count;
    struct ix_simd_upset upsets[IX_SIMD_UPSETS];
    uint32_t check_every; /* a shard's invariants after every so many of its polls; 0: only at the
                           * end */
    uint32_t canary;      /* enum ix_simd_canary */
    bool trace;           /* every frame, call and event to stderr */
};

struct ix_simd_result {
    char failure[1024]; /* empty: all is well */
    uint64_t steps;     /* polls */
    uint64_t now_ns;    /* virtual time at the end */
    uint64_t over_ns;   /* ... when the last connection ended */
    uint64_t bytes;     /* delivered to applications */
    uint32_t orderly;   /* connections that ended in order */
    uint32_t canary;    /* 1: the case's canary was let loose */
    uint32_t lossless;  /* 1: no frame was lost on the way, so nothing may have been resent */
    struct ix_counters counters; /* of both shards together */
    struct ix_sim_counters wire; /* of both directions together */
};

/* Draws the case of a seed. */
void ix_simd_plan(uint64_t seed, struct ix_simd_case *c);
/* What the case is, in a few lines. Returns the length, at most `bytes` - 1. */
int ix_simd_describe(const struct ix_simd_case *c, char *out, size_t bytes);
/* Plays it. Returns 0, or -1 with result->failure set. */
int ix_simd_run(const struct ix_simd_case *c, struct ix_simd_result *result);

#endif
