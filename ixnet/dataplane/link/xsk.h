/* A link over an AF_XDP socket: the ring side of it.
 *
 * The four rings are plain memory shared with the kernel, so this file needs no
 * libc and makes no system call of its own: when the kernel must be pushed along,
 * it calls `kick`, which the side that set the socket up supplies (a sendto or
 * recvfrom in a process, a VM exit in a guest). xsk_setup.h makes the socket.
 *
 * Each ring has one producer and one consumer, with free-running 32-bit indices
 * (kernel Documentation/networking/af_xdp.rst, net/xdp/xsk_queue.h):
 *
 *   ring        producer  consumer  entries
 *   FILL        we        kernel    uint64_t, address of an empty chunk
 *   RX          kernel    we        struct ix_desc
 *   TX          we        kernel    struct ix_desc
 *   COMPLETION  kernel    we        uint64_t, address as it was on TX
 */
#ifndef IX_LINK_XSK_H
#define IX_LINK_XSK_H

#ifndef IX_CDEF
#include "base/types.h"
#include "link/link.h"
#endif

/* One ring as this side sees it. */
struct ix_xsk_ring {
    uint32_t *producer;   /* shared: next index the producer will write */
    uint32_t *consumer;   /* shared: next index the consumer will read */
    uint32_t *flags;      /* shared: bit 0, the kernel wants to be woken (FILL, TX) */
    void *entries;        /* shared: `mask + 1` entries */
    uint32_t mask;        /* number of entries, a power of two, less 1 */
    uint32_t cached_prod; /* our own index where we produce, else the last one seen */
    uint32_t cached_cons; /* our own index where we consume, else the last one seen */
};

/* struct ix_xsk.mode */
enum ix_xsk_mode {
    IX_XSK_MODE_ZEROCOPY = 1,    /* the NIC reads and writes the UMEM itself */
    IX_XSK_MODE_NEED_WAKEUP = 2, /* the rings' flags say when a kick is needed */
    IX_XSK_MODE_BUSY_POLL = 4    /* the kernel polls the NIC inside our kicks only */
};

/* What kick() is asked for: exactly one of them. */
enum ix_xsk_kick {
    IX_XSK_KICK_TX = 1, /* send what is on TX; when busy polling, receive too */
    IX_XSK_KICK_RX = 2  /* receive, take new frames from FILL */
};

/* Counters of one link; never reset. */
struct ix_xsk_stats {
    uint64_t kicks_tx;       /* kicks asked to send */
    uint64_t kicks_rx;       /* kicks asked to receive only */
    uint64_t kicks_leftover; /* of kicks_tx: nothing new, but TX not yet drained */
    uint64_t kick_again;     /* kick said EAGAIN: the kernel's batch is full, work left */
    uint64_t kick_busy;      /* EBUSY */
    uint64_t kick_nobufs;    /* ENOBUFS */
    uint64_t kick_intr;      /* EINTR */
    uint64_t tx_full;        /* tx_burst could not queue all it was given */
    uint64_t express_calls;  /* bursts that went by express ... */
    uint64_t express_frames; /* ... and their frames */
    uint64_t express_errors; /* calls of it that sent nothing; the frames went by TX */
    uint64_t express_refused; /* of express_frames: could not be made and are lost */
};

#define IX_XSK_EXPRESS_FRAMES 512u /* that one burst sends by express at most */

struct ix_xsk {
    struct ix_link link;            /* first: a struct ix_link * is a struct ix_xsk * */
    struct ix_xsk_ring rx;          /* we consume */
    struct ix_xsk_ring tx;          /* we produce */
    struct ix_xsk_ring fill;        /* we produce */
    struct ix_xsk_ring completion;  /* we consume */
    /* Makes one system call, or its like. Returns 0 or -errno. */
    int (*kick)(void *ctx, uint32_t what);
    void *kick_ctx;
    /* Another way to send than TX, faster for many frames at once; NULL: there is none. One system
     * call. Returns how many of the first frames it sent, which are free again, or -errno. Counts
     * express_refused. */
    int (*express)(struct ix_xsk *x, const struct ix_desc *descs, uint32_t n);
    void *express_ctx;
    uint32_t express_from;   /* frames of a burst from which on; another process may change it */
    uint32_t express_waits;  /* calls of it that wakeup() has not yet told of */
    uint32_t n_express_done; /* frames sent by it that complete() has not yet told of */
    uint64_t express_done[IX_XSK_EXPRESS_FRAMES];
    uint32_t mode;       /* enum ix_xsk_mode, any of them */
    uint32_t tx_waited;  /* wakeups in a row that left a lagging TX alone */
    uint32_t rx_waited;  /* wakeups in a row that left a raised FILL flag alone */
    struct ix_xsk_stats stats;
};

/* Prepares x over rings that are mapped already: x->link's UMEM fields, the
 * rings' pointers and masks, kick, kick_ctx and mode are set by the caller; this
 * sets the operations and takes over the indices as the rings have them. */
void ix_xsk_init(struct ix_xsk *x);

/* The invariants: each ring's indices within its size of each other. Returns NULL, or
 * what is wrong. */
const char *ix_xsk_check(const struct ix_xsk *x);

#endif
