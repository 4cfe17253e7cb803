/* The insides of the simulation, shared by tests/native/sim_*.c. */
#ifndef IX_TESTS_SIM_WORLD_H
#define IX_TESTS_SIM_WORLD_H

#include "shard/shard.h"
#include "tests/native/sim_driver.h"

enum {
    SIM_CONNS_MAX = 64,
    SIM_BLOCK_BYTES = 256,  /* the arena is handed out in such pieces */
    SIM_PORT_FIRST = 40000, /* outgoing ports that shards choose themselves */
    SIM_PORT_LAST = 40999,
    SIM_POOL = 1024, /* frames of a shard, or fewer where the plan has it so */
    SIM_SERVER_PORT = 80, /* listened to on both sides */
    SIM_CLOSED_PORT = 81, /* never listened to */
    SIM_GATEWAY = 0xfd,   /* the last byte of the addresses of routers next to the sides */
};
#define SIM_NEVER UINT64_MAX
#define SIM_MS    1000000ull
#define SIM_S     1000000000ull

enum sim_kind {
    SIM_ORDERLY = 0, /* every byte arrives, both sides close */
    SIM_SIMOPEN,     /* the same, but both sides CONNECT */
    SIM_ABORT,       /* one end ABORTs in the middle */
    SIM_CLOSE_EARLY, /* one end CLOSEs while the other still sends */
    SIM_REJECT,      /* the acceptor REJECTs */
    SIM_REFUSED,     /* nobody listens */
    SIM_CANCEL,      /* the opener gives up before the answer */
    SIM_KINDS
};

enum sim_pattern { SIM_ONE_WAY = 0, SIM_BULK, SIM_REQUESTS, SIM_ECHO, SIM_ECHO_COPY, SIM_PATTERNS };

enum sim_end_state {
    SIM_IDLE = 0,
    SIM_OPENING, /* CONNECT made */
    SIM_KNOCKED,
    SIM_OPEN,
    SIM_OVER, /* DEAD, or CONNECT failed */
};

/* A piece of memory on its way through SENDV. */
struct sim_chunk {
    uint64_t addr;
    uint32_t bytes;
    uint32_t accepted; /* by SENDV */
    uint32_t frame;    /* of a received frame that is echoed; IX_NONE: arena */
    uint32_t next;     /* in its end's queue, or the free list; IX_NONE */
};

/* A received frame that an application holds. */
struct sim_held {
    uint64_t handle;   /* 0: not held */
    uint64_t position; /* in the stream */
    uint32_t end;      /* of which end: conn * 2 + end */
    uint32_t next;     /* in the list of frames to give back */
    uint16_t offset, bytes, returned;
    bool echoing; /* a chunk needs it */
};

struct sim_end {
    uint32_t state; /* enum sim_end_state */
    int32_t status;
    uint64_t handle;
    uint32_t id; /* conn * 2 + end */
    uint32_t side;
    bool close_wr, close_rd; /* CLOSE was made */
    bool eof;
    bool calling;    /* SENDV is among the calls of the next poll */
    bool told_epipe; /* a call said that the connection is over */
    bool again;      /* it was over, and knocks once more */
    /* plan */
    uint32_t tx_total, rx_total;
    uint32_t chunk_max;   /* bytes per SENDV */
    uint32_t hold_frames; /* gives frames back when it has so many */
    uint32_t quit_at;     /* bytes received and sent at which it aborts or closes early; IX_NONE */
    uint32_t pause_at;    /* bytes received at which it stops reading; IX_NONE */
    uint64_t pause_ns, keepalive_ns;
    uint32_t rcvbuf_bytes;
    bool quit_after_close; /* ABORT follows CLOSE at once */
    bool close_half, close_after_eof, nagle, send_more, options_set;
    /* progress */
    uint32_t tx_made, tx_accepted, tx_sent; /* bytes put in chunks, taken by SENDV, told by SENT */
    uint32_t rx_got, held_bytes;            /* received; of it lent, RECV_DONE not yet run */
    bool paused, blocked;                   /* blocked: SENDV took nothing */
    uint64_t timer, timer_due_ns;
    uint32_t chunk_head, chunk_tail; /* oldest first; accepted ones stay until SENT */
    uint32_t chunk_next;             /* the first that SENDV has not taken whole */
    uint32_t sent_of_head;
    uint32_t done_head, done_tail, done_count; /* frames to give back */
    uint64_t done_due_ns;                      /* when at the latest */
};

struct sim_conn {
    uint32_t kind, pattern;
    uint32_t opener;            /* side */
    uint32_t after;             /* connection that must be over first; IX_NONE */
    uint16_t port, server_port; /* of the opener (0: the shard chooses), of the acceptor */
    uint16_t given_port;        /* that the shard chose */
    uint64_t start_ns, accept_delay_ns, accept_at_ns;
    uint32_t tries;          /* CONNECTs that failed for reasons that pass */
    uint32_t request, reply; /* SIM_REQUESTS: bytes of each message */
    uint64_t key[2];         /* of the streams from end 0 and from end 1 */
    struct sim_end end[2];   /* [0] opens */
};

struct sim_call {
    uint32_t end; /* conn * 2 + end; IX_NONE */
    uint32_t chunk;
    bool nonsense; /* must be refused */
};

/* Looks into frames on their way, and changes one if it is to. First in the chain of links. */
struct sim_tap {
    struct ix_link link;
    struct ix_link *inner;
    struct sim_world *world;
    uint32_t side;
};

struct sim_side {
    struct ix_config cfg;
    void *memory;
    struct ix_shard *shard;
    struct ix_io *io;
    struct sim_tap tap;
    uint64_t clock_ns;
    uint64_t last_ns, earliest_ns, app_next_ns, stalled_until_ns;
    uint64_t shard_ns; /* the latest time that the shard was told */
    bool idle_poll;
    uint32_t polls;
    uint32_t idle_run; /* polls in a row that found nothing to do, though it had asked for them */
    struct sim_call *calls;
    struct sim_chunk *chunks;
    uint32_t chunk_free, chunk_count, chunks_used;
    uint8_t *blocks; /* 1: in use */
    uint32_t block_count, blocks_used;
    bool arena_full; /* nothing was found, and nothing was given back since */
    struct sim_held *held;
    uint32_t held_count;
    uint32_t next_conn; /* whose turn it is to make calls */
    uint64_t listener_cookie;
};

struct sim_world {
    const struct ix_simd_case *c;
    struct ix_simd_result *result;
    uint64_t now_ns;
    uint64_t random;
    struct ix_sim_wire wire;
    void *wire_memory;
    uint8_t *umem[2];
    struct sim_side side[2];
    struct sim_conn conns[SIM_CONNS_MAX];
    uint32_t conn_count;
    uint32_t upset_state[IX_SIMD_UPSETS]; /* bit 0: begun, bit 1: ended */
    bool quitting;                        /* no new connections */
    bool canary_done;
};

/* ---- chance (sim_plan.c) */
static inline bool sim_chance(uint64_t *random, uint32_t ppm)
{
    return ix_random(random) % 1000000 < ppm;
}
/* Evenly from lo to hi, both included. */
static inline uint64_t sim_range(uint64_t *random, uint64_t lo, uint64_t hi)
{
    return lo + ix_random(random) % (hi - lo + 1);
}
/* From lo to hi, every order of magnitude as likely as every other. */
uint64_t sim_log_range(uint64_t *random, uint64_t lo, uint64_t hi);
/* Draws the connections of a case. */
void sim_plan_conns(struct sim_world *w);

/* ---- streams (sim_stream.c) */
void sim_stream_fill(uint64_t key, uint64_t position, uint8_t *out, uint32_t bytes);
/* Index of the first wrong byte, or `bytes`. */
uint32_t sim_stream_check(uint64_t key, uint64_t position, const uint8_t *data, uint32_t bytes);

/* ---- the applications (sim_app.c makes calls, sim_events.c takes results and events) */
void sim_app_act(struct sim_world *w, struct sim_side *side);
void sim_app_results(struct sim_world *w, struct sim_side *side, uint32_t n_calls);
void sim_app_events(struct sim_world *w, struct sim_side *side);
bool sim_conn_over(const struct sim_world *w, const struct sim_conn *conn);
/* Frames go to the list of those to give back. */
void sim_give_back(struct sim_side *side, struct sim_end *end, uint32_t frame);
void sim_chunk_append(struct sim_side *side, struct sim_end *end, uint64_t addr, uint32_t bytes,
                      uint32_t frame);
/* The oldest chunk is the application's again. */
void sim_chunk_drop_head(struct sim_world *w, struct sim_side *side, struct sim_end *end);
static inline uint64_t sim_cookie(uint32_t end)
{
    return 0x5113000000000000ull | end;
}
static inline struct sim_end *sim_end_of(struct sim_world *w, uint32_t end)
{
    return &w->conns[end / 2].end[end % 2];
}
static inline uint8_t sim_family(const struct sim_world *w)
{
    return w->c->six ? 6 : 4;
}
/* 10.0.0.1 and 10.0.0.2, or 2001:db8::1 and 2001:db8::2. */
static inline struct ix_ip sim_side_ip(const struct sim_world *w, uint32_t side)
{
    if (!w->c->six)
        return ix_ip_from_v4(ix_swap32(0x0a000001 + side));
    return (struct ix_ip){.b = {0x20, 1, 0xd, 0xb8, [15] = (uint8_t)(side + 1)}};
}
/* Whom it sends to on the wire. */
static inline struct ix_ip sim_next_hop(const struct sim_world *w, uint32_t side)
{
    struct ix_ip ip = sim_side_ip(w, 1 - side);
    if (w->c->gateway)
        ip.b[w->c->six ? 15 : 3] = SIM_GATEWAY;
    return ip;
}
static inline struct ix_mac sim_side_mac(uint32_t side)
{
    return (struct ix_mac){{2, 0, 0, 0, 0, (uint8_t)(side + 1)}};
}

/* ---- sim_tap.c */
void sim_tap_init(struct sim_world *w, uint32_t side, struct ix_link *inner);
void sim_trace(const struct sim_world *w, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* ---- sim_check.c: the invariants of one shard; of the wire, and what follows for connections; all
 * of it, and more, at the end */
void sim_check_shard(struct sim_world *w, uint32_t side);
void sim_check_wire(struct sim_world *w);
void sim_check_conns(struct sim_world *w);
void sim_check_end(struct sim_world *w);

/* ---- sim_guard.c: runs, and says what assertion ended it, or NULL */
const char *sim_guarded(void (*run)(struct sim_world *), struct sim_world *w);

/* ---- sim_driver.c: the first failure is kept */
void sim_fail(struct sim_world *w, const char *format, ...) __attribute__((format(printf, 2, 3)));
static inline bool sim_failed(const struct sim_world *w)
{
    return w->result->failure[0] != 0;
}

#endif
