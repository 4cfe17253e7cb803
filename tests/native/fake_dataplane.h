/* A dataplane that honours the records of api/api.h and knows no network: tests play the peer.
 *
 * It watches its user: `violation` names the first breach of the API's rules (memory that was not
 * lent given back, lent twice, changed while it was borrowed, ...). Faults can be set: SENDV that
 * takes less than all, a small array of events.
 */
#ifndef IX_TESTS_FAKE_DATAPLANE_H
#define IX_TESTS_FAKE_DATAPLANE_H

#include "native/app.h"

enum { IX_FAKE_CONNS = 4096, IX_FAKE_BORROWS = 256 };

enum ix_fake_state { IX_FAKE_FREE = 0, IX_FAKE_KNOCKED, IX_FAKE_CONNECTING, IX_FAKE_OPEN };

/* Memory that SENDV borrowed. */
struct ix_fake_borrow {
    uint64_t addr;
    uint32_t bytes;
    uint32_t sum; /* of its bytes: they must not change */
};

struct ix_fake_conn {
    uint64_t handle, cookie;
    uint32_t state;      /* enum ix_fake_state */
    uint32_t fins;       /* 1: closed for writing, 2: CLOSE was called */
    uint64_t lent_bytes; /* in RECV events, not in RECV_DONE calls yet */
    struct ix_fake_borrow borrowed[IX_FAKE_BORROWS]; /* a ring, the oldest at borrow_head */
    uint32_t borrow_head, borrow_count;
    uint64_t borrowed_bytes;
    uint32_t acked; /* bytes of the oldest that SENT covered */
    uint8_t *got;   /* what the peer was sent, [got_bytes] */
    uint64_t got_bytes, got_capacity;
    uint64_t option[8];  /* as OPTION set them */
    uint64_t short_poll; /* the poll in which SENDV took less than all: it takes no more then */
    uint16_t peer_port;  /* of a CONNECT */
};

struct ix_fake {
    struct ix_io io;
    struct ix_app app;
    struct ix_fake_conn conns[IX_FAKE_CONNS];
    uint64_t *lent_to;    /* [pool frames] handle, 0: free */
    uint32_t *lent_bytes; /* [pool frames] */
    uint32_t *borrows;    /* [all frames] extents that SENDV has borrowed in it */
    uint32_t *free_frames, free_frame_count;
    uint32_t pool_frames;
    struct ix_event *queued; /* events that wait for the next poll, [queued_capacity] */
    uint32_t queued_count, queued_capacity;
    uint32_t generation;
    const char *violation; /* NULL while the rules are kept */
    /* faults */
    uint32_t sendv_max;     /* bytes that one SENDV takes at most; 0: any number */
    uint32_t sndbuf_bytes;  /* bytes that a connection borrows at most; 0: any number */
    uint32_t refuse_sendv;  /* so many SENDV take nothing */
    uint32_t accept_error;  /* errno of the next ACCEPT; 0: it succeeds */
    uint32_t connect_error; /* likewise, of CONNECT */
    /* a generator of load, for measuring: each poll every open connection gets a request whose
     * answer came */
    uint32_t generate_bytes; /* 0: off */
    uint32_t generate_max;   /* requests a poll */
    uint32_t generate_next;
    uint64_t generated, answered;
    uint64_t calls[12]; /* how many of each op were run */
    uint64_t polls;
    uint64_t now_ns; /* virtual time; step_ns more with each look at it */
    uint64_t step_ns;
};

/* NULL: no memory. max_calls, max_events: lengths of the arrays. */
struct ix_fake *ix_fake_new(uint32_t pool_frames, uint32_t arena_frames, uint32_t max_calls,
                            uint32_t max_events);
void ix_fake_free(struct ix_fake *fake);
struct ix_app *ix_fake_app(struct ix_fake *fake);
/* The clock of the last fake made; ix_app.clock has no argument. */
uint64_t ix_fake_clock(void);
int ix_fake_poll(struct ix_app *app, uint64_t now_ns);

/* The peer. Connections are known by their number. */
/* A handshake completed at a listener; -1: no room. */
int ix_fake_knock(struct ix_fake *fake, uint64_t cookie);
/* Sends bytes, at most `frame_bytes` in a frame. Returns how many: all unless frames ran out. */
uint64_t ix_fake_send(struct ix_fake *fake, uint32_t conn, const uint8_t *data, uint64_t bytes,
                      uint32_t frame_bytes);
void ix_fake_fin(struct ix_fake *fake, uint32_t conn);
/* Acknowledges at most so many bytes more. Returns how many there were. */
uint64_t ix_fake_ack(struct ix_fake *fake, uint32_t conn, uint64_t bytes);
/* The connection ends. */
void ix_fake_die(struct ix_fake *fake, uint32_t conn, int32_t status);
/* A CONNECT comes to its end. */
void ix_fake_connected(struct ix_fake *fake, uint32_t conn, int32_t status);
/* The number of the connection whose CONNECT named this port, or -1. */
int ix_fake_find_connect(const struct ix_fake *fake, uint16_t port);
/* Frames lent at the moment, of all connections, dead ones included. */
uint32_t ix_fake_frames_lent(const struct ix_fake *fake);

#endif
