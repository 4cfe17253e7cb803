/* What a worker gives an application: its shard, and the loop's turn of the crank.
 *
 * A native application is a shared object with
 *     int ix_app_main(struct ix_app *app, int argc, char **argv);
 * which `ixnet run` calls for each shard; it loops on ix_app_poll() until that returns negative,
 * and returns its exit status. The shards of one worker have one thread, in which their calls take
 * turns at ix_app_poll() (fibers.h): what is static is theirs in common. The Python layers
 * (ixnet.shard, ixnet.event) stand on the same functions. Nothing here runs in ring 0: it is the
 * application's side.
 */
#ifndef IX_NATIVE_APP_H
#define IX_NATIVE_APP_H

#ifndef IX_CDEF
#include "api/api.h"
#include "api/config.h"
#endif

struct ix_app;
struct ix_fiber;
struct ix_recorder;

/* Shards of one worker at most: as many as an instance can have queues. */
enum { IX_APP_SIBLINGS = 256 };

/* How an application reaches its shard: by calls in the inline placement, through the gate in the
 * dune one. family: 4, 6 or 0 for both; ip: 16 bytes in network byte order, IPv4 in the first 4,
 * all 0: every local address. Results as the functions of api/api.h with these names give them. */
struct ix_app_ops {
    /* Runs one cycle. now_ns is the application's clock; a gate has its own. */
    int (*poll)(struct ix_app *app, uint64_t now_ns);
    /* How long the caller may sleep, ns; UINT64_MAX: as long as it likes. */
    uint64_t (*may_sleep_ns)(struct ix_app *app, uint64_t now_ns);
    int (*listen)(struct ix_app *app, const uint8_t *ip, uint8_t family, uint16_t port,
                  uint64_t cookie, uint32_t backlog);
    int (*listen_option)(struct ix_app *app, const uint8_t *ip, uint8_t family, uint16_t port,
                         uint32_t option, uint64_t value);
    int (*unlisten)(struct ix_app *app, const uint8_t *ip, uint8_t family, uint16_t port);
    int (*udp_bind)(struct ix_app *app, const uint8_t *ip, uint8_t family, uint16_t port,
                    uint64_t cookie, uint64_t *handle);
    int (*udp_unbind)(struct ix_app *app, uint64_t handle);
    const struct ix_stats *(*stats)(struct ix_app *app); /* brought up to date; never NULL */
};

/* Those of the inline placement. */
const struct ix_app_ops *ix_app_inline_ops(void);

struct ix_app {
    struct ix_shard *shard; /* for ops; NULL where the application can't reach it */
    struct ix_io *io;
    const struct ix_app_ops *ops;
    int request_fd;         /* SOCK_SEQPACKET to the control plane; -1: none, claims succeed */
    int link_fd;            /* becomes readable when frames arrive; -1: never block */
    int64_t spin_ns;        /* idle time before blocking in poll(2) on link_fd; -1: never block */
    const volatile uint32_t *stop; /* set to 1 by the control plane or a signal handler */
    uint32_t shard_id, shard_count;
    uint32_t gate_shard;    /* the shard's number in its worker, and at its gate (gateops.h) */
    uint32_t n_siblings;    /* shards that this worker runs in turn; 0, 1: this one alone */
    struct ix_app **siblings; /* [n_siblings] this one too, by gate_shard */
    struct ix_fiber *fiber; /* whose poll gives the others their turn; NULL: the application does */
    uint64_t now_ns;        /* CLOCK_MONOTONIC at the last poll */
    uint64_t idle_since_ns; /* 0: the last poll found something to do */
    uint64_t (*clock)(void); /* NULL: CLOCK_MONOTONIC; tests put virtual time here */
    const struct ix_stats *stats; /* the shard's, to tell what is idle; NULL: no events is */
    int kick_fd;            /* eventfd, readable when the control plane has news; 0 or -1: none */
    uint32_t serving;       /* 1 from the first poll on */
    uint32_t sequence;      /* of the last request; siblings, on one socket, begin far apart */
    uint64_t misses_told;   /* neighbours missed when the control plane was last told so ... */
    uint64_t misses_told_ns; /* ... and when */
    struct ix_recorder *recorder; /* writes to a file what passes the shard's link; NULL: none */
};

/* One cycle: runs io->calls[0..n_calls), and returns the number of events in io->events. Blocks
 * only when idle for spin_ns, with all its siblings, at most until a deadline of one of them or
 * `max_wait_ns`, or until one's link_fd is readable. Returns -1 when it is time to stop. Siblings
 * are to be polled in turn; who has no ix_app_main() a shard sees to it himself. */
int ix_app_poll(struct ix_app *app, uint64_t max_wait_ns);

/* Claims proto/ip/port with the control plane (all workers of an instance share one claim), then
 * listens in this shard. ip: an address of either family as text. Every address is "0.0.0.0" of
 * IPv4, IX_APP_V6ONLY of IPv6, and NULL, "" or "::" of both. Returns 0 or -errno: -EADDRINUSE when
 * the kernel or another dataplane has the port. `why` gets the reason as text. */
#define IX_APP_V6ONLY "v6only"

int ix_app_listen(struct ix_app *app, const char *ip, uint16_t port, uint64_t cookie,
                  uint32_t backlog, char *why, size_t why_bytes);
/* What later connections of that listener begin with, as ix_shard_listen_option(). */
int ix_app_listen_option(struct ix_app *app, const char *ip, uint16_t port, uint32_t option,
                         uint64_t value);
int ix_app_unlisten(struct ix_app *app, const char *ip, uint16_t port);
int ix_app_udp_bind(struct ix_app *app, const char *ip, uint16_t port, uint64_t cookie,
                    uint64_t *handle, char *why, size_t why_bytes);
int ix_app_udp_unbind(struct ix_app *app, uint64_t handle, const char *ip, uint16_t port);

/* Asks the control plane for IX_CTL_ABORT_ALL, and to end the shard's claims. Returns 0 or -errno.
 */
int ix_app_abort_all(struct ix_app *app);
/* After the application's end: does so for all siblings, and runs cycles until none has a flow left
 * or drain_ns have passed. */
void ix_app_leave(struct ix_app *app, uint64_t drain_ns);

/* Loads the shared object at `path` and runs its ix_app_main(), once a sibling. Returns what that
 * returned (the first that is not 0), with *ran 1; or -errno with *ran 0 and the reason in `why`.
 */
int ix_app_run_native(struct ix_app *app, const char *path, int argc, char **argv, int *ran,
                      char *why, size_t why_bytes);

#ifndef IX_CDEF
/* The next free call record, zeroed, or NULL when the array is full: then poll first. */
static inline struct ix_call *ix_app_call(struct ix_app *app, uint8_t op, uint64_t handle)
{
    struct ix_io *io = app->io;
    if (io->n_calls == io->max_calls)
        return NULL;
    struct ix_call *call = &io->calls[io->n_calls++];
    __builtin_memset(call, 0, sizeof *call);
    call->op = op;
    call->handle = handle;
    return call;
}

static inline const uint8_t *ix_app_payload(const struct ix_app *app, const struct ix_event *ev)
{
    return app->io->umem + (((uint64_t)ev->frame << app->io->frame_shift) + ev->offset);
}
#endif

#endif
