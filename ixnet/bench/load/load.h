/* A load worker: one thread that drives many connections over one transport.
 *
 * engine.c decides when a request goes out on which connection and records when its reply came;
 * workload.c and memcached.c say what the bytes are; kernel.c or dataplane.c carry them. Requests
 * are pulled: the transport asks for bytes (load_fill) when it has room for them.
 */
#ifndef IX_BENCH_LOAD_H
#define IX_BENCH_LOAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "bytestream.h"
#include "control.h"
#include "histogram.h"
#include "options.h"
#include "random.h"

#define NONE           UINT32_MAX
#define SECOND_NS      1000000000ull
/* Where the machine stops for some ms now and then (a virtual one does), a percentile of all that
 * was measured says more of that than of the server: the median of short slices does not. */
#define SLICE_NS       20000000ull
#define SLICES_MAX     4096
#define CONNECTING_MAX 256 /* connects in flight: within any sane listen backlog */

enum conn_state {
    CONN_IDLE = 0,   /* not connected */
    CONN_CONNECTING, /* connect is under way */
    CONN_OPEN,
    CONN_FINISHING,  /* all is back and FIN is sent: waiting for the server's FIN */
    CONN_CLOSING,    /* the transport is done with it soon */
    CONN_DONE,       /* closed in order, and not to be opened again */
    CONN_FAILED      /* ended by an error, which is counted */
};

enum failure {
    FAIL_REFUSED,
    FAIL_RESET,
    FAIL_CLOSED,
    FAIL_TIMEOUT,
    FAIL_MISMATCH,
    FAIL_OTHER,
    FAILURES
};

/* A request that waits for its reply. */
struct request {
    uint64_t due_ns;     /* when it was to be sent: its latency counts from here */
    uint32_t wire_bytes; /* of the whole request */
    uint32_t item;       /* memcached: which item */
    uint32_t next;       /* on the same connection, or in the free list */
    uint32_t store;      /* memcached: 1 SET, 0 GET */
};

struct conn {
    uint32_t first, last;      /* its requests, oldest first */
    uint32_t unsent;           /* the first of them that is not wholly handed over, or NONE */
    uint32_t unsent_at;        /* bytes of it that are */
    uint32_t send_at, recv_at; /* positions in the byte stream */
    uint32_t got;              /* bytes of the oldest one's reply so far ... */
    uint32_t reply_bytes;      /* ... and all of them, once the first has come */
    uint32_t messages_left;    /* transfer */
    uint32_t next;             /* in a list of its group */
    uint32_t requests;         /* under way */
    uint8_t state;             /* enum conn_state */
    uint8_t group;
    uint8_t retries;
    bool listed;
    bool closing, aborting, blocked; /* from here on the transport's */
    bool queued;
    uint8_t todo;
    uint32_t generation, next_busy;
    uint32_t piece_first, piece_last, piece_unsent, piece_acked;
    union {
        uint64_t handle; /* dataplane */
        int fd;          /* kernel */
    };
    struct pending *pending; /* kernel: what the socket did not take */
};

struct list {
    uint32_t head, tail;
};

/* Connections with one schedule and one histogram: the load, or the probes beside it. */
struct group {
    uint32_t conn_count;    /* that may be open by now */
    uint32_t window;        /* closed loop */
    double rate;            /* open loop, or 0 */
    uint64_t next_due_ns;   /* open loop: when the next request is to go out */
    double next_due_rest;   /* ... fractions of a ns */
    uint32_t under_way;
    struct list spare;      /* connections that can take a request, in turn */
    uint64_t completed;     /* while measuring */
    uint64_t late;          /* open loop: due in the window and not sent to the end */
    struct histogram latency;
    struct histogram slice; /* of the slice that runs */
    uint64_t slice_to_ns;
    uint32_t slices;
    uint32_t slice_p99_us[SLICES_MAX]; /* of those that are over */
};

enum { GROUP_LOAD, GROUP_PROBE, GROUPS };

struct load {
    struct options opt;
    uint64_t now_ns;      /* the latest reading of the clock */
    uint64_t progress_ns; /* when something last moved */
    uint64_t from_ns, to_ns; /* the measured time; 0 while there is none */
    uint64_t give_up_ns;  /* until then a refused connection is tried again */
    bool issuing;         /* requests go out */
    bool measuring;       /* within the measured time */
    bool preloading;
    bool over;            /* ended before its time; the reason is on record */
    struct conn *conns;
    uint32_t conn_count;  /* of both groups; probes are the last */
    struct list to_connect;
    uint32_t connecting, open, opened, live; /* opened: in all; live: not idle, done or failed */
    uint32_t failures_in_a_row; /* connrate */
    struct request *requests;
    uint32_t request_count, request_free;
    struct rng rng;
    uint64_t verified_bytes, window_bytes; /* in all; while measuring */
    uint64_t completed;                    /* in all */
    uint64_t transferred;                  /* transfer: connections that are through */
    uint64_t port_waits;                   /* no local port was free for a moment */
    uint64_t failures[FAILURES];
    char first_error[256];
    double elapsed_s, cpu_s; /* of the measured time */
    struct group groups[GROUPS];
    struct memcached *memcached;
    struct control_worker *self; /* what ixnet bench sees; never NULL */
    struct bytestream stream;
};

uint64_t clock_ns(void);
uint64_t seconds_ns(double seconds);

/* ---- engine.c ---- */

/* Takes memory for connections. Returns 0 or -errno. */
int load_init(struct load *l);
void load_free(struct load *l);
/* One turn of the loop, at most until until_ns. False: it is time to end. */
bool load_turn(struct load *l, uint64_t until_ns);
/* Lets `connections` of the load's and all probes be opened, and waits until they are. */
bool load_open(struct load *l, uint32_t connections);
void load_issue(struct load *l);
/* A request of this kind on a connection, due at due_ns. */
void load_start(struct load *l, uint32_t index, uint64_t due_ns);
__attribute__((format(printf, 3, 4))) void load_note(struct load *l, enum failure kind,
                                                     const char *format, ...);
bool load_failed(const struct load *l);
/* connrate: what waits for a local port is not begun any more. */
void load_drop_waiting(struct load *l);
void list_push(struct load *l, struct list *list, uint32_t index);
uint32_t list_pop(struct load *l, struct list *list);

/* What the transport tells. */
void load_connected(struct load *l, uint32_t index, int error);
void load_received(struct load *l, uint32_t index, const uint8_t *data, uint32_t bytes);
void load_peer_closed(struct load *l, uint32_t index);
void load_broken(struct load *l, uint32_t index, int error);
void load_closed(struct load *l, uint32_t index);
/* Takes at most `room` bytes of what is to be sent on a connection. */
uint32_t load_fill(struct load *l, uint32_t index, uint8_t *out, uint32_t room);

/* ---- run.c ---- */

/* The whole life of a worker whose transport stands. Returns the exit status. */
int load_main(struct load *l);

/* ---- workload.c, memcached.c ---- */

void workload_choose(struct load *l, struct conn *c, uint32_t index, struct request *r);
/* Writes bytes [at, at + n) of a request; on an echo connection the stream goes on by n. */
void workload_render(struct load *l, struct conn *c, const struct request *r, uint32_t at,
                     uint8_t *out, uint32_t n);
/* How long the reply is that begins with `first`; 0 if no reply does. */
uint32_t workload_reply_bytes(struct load *l, const struct request *r, uint8_t first);
/* Whether these are the next n bytes of the reply, at `at`. */
bool workload_matches(struct load *l, struct conn *c, const struct request *r, uint32_t at,
                      const uint8_t *data, uint32_t n);

int memcached_init(struct load *l);
void memcached_free(struct load *l);
void memcached_choose(struct load *l, struct request *r);
void memcached_render(struct load *l, const struct request *r, uint32_t at, uint8_t *out,
                      uint32_t n);
uint32_t memcached_reply_bytes(struct load *l, const struct request *r, uint8_t first);
bool memcached_matches(struct load *l, const struct request *r, uint32_t reply_bytes, uint32_t at,
                       const uint8_t *data, uint32_t n);
void memcached_count(struct load *l, const struct request *r, uint32_t reply_bytes);
void memcached_reset_counts(struct load *l);
void memcached_report(const struct load *l, FILE *out);
/* Of this worker's share of the items. */
void memcached_begin_storing(struct load *l);
bool memcached_more_to_store(const struct load *l);

/* ---- report.c ---- */

void load_report(const struct load *l, FILE *out);

/* ---- kernel.c or dataplane.c ---- */

/* Begins to connect. 0, -EADDRNOTAVAIL when no local port is free at the moment, or -errno. */
int transport_connect(struct load *l, uint32_t index);
/* There is something to send. */
void transport_kick(struct load *l, uint32_t index);
/* FIN, after all that was handed over; load_peer_closed() follows. */
void transport_finish(struct load *l, uint32_t index);
/* Ends it in order, or by RST; load_closed() follows, perhaps at once. */
void transport_close(struct load *l, uint32_t index, bool reset);
/* Handles what there is to handle, waiting at most wait_ns for it. False: stop. */
bool transport_turn(struct load *l, uint64_t wait_ns);

#endif
