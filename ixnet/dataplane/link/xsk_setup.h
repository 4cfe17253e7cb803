/* Sets up what link/xsk.h runs on: the UMEM's memory and an AF_XDP socket over
 * it. Hosted: libxdp, system calls, files. Nothing here is needed again while
 * frames flow.
 *
 * All memory is MAP_SHARED and the datapath knows the socket by its descriptor
 * alone, so one process may set a socket up and a forked child run it.
 *
 * Functions return 0 or -errno; where they take `err`, it gets a sentence
 * that says what was tried ("" on success).
 */
#ifndef IX_LINK_XSK_SETUP_H
#define IX_LINK_XSK_SETUP_H

#ifndef IX_CDEF
#include <stddef.h>
#include <stdint.h>
#endif

struct ix_link;
struct ix_xsk;
struct ix_xsk_socket;

/* What the memory for a UMEM turned out to be. */
enum ix_umem_kind {
    IX_UMEM_HUGETLB = 1, /* 2 MiB pages of the hugetlb pool */
    IX_UMEM_THP = 2,     /* ordinary shared memory, and the kernel did use huge pages */
    IX_UMEM_PAGES = 3    /* ordinary shared memory in base pages */
};

/* Takes at least `bytes` bytes of zeroed memory, shared with children, aligned to
 * and a multiple of 2 MiB, every page of it present. *got_bytes and *kind (enum
 * ix_umem_kind) say what it is. huge_pages 0: base pages, don't try for more.
 * -ENOMEM, -EINVAL. */
int ix_umem_alloc(uint64_t bytes, int huge_pages, void **mem, uint64_t *got_bytes, uint32_t *kind);

/* Gives it back; no socket may use it any more. */
void ix_umem_free(void *mem, uint64_t bytes);

enum ix_xsk_open_flags {
    IX_XSK_OPEN_ZEROCOPY = 1,      /* bind with XDP_ZEROCOPY; else with XDP_COPY */
    IX_XSK_OPEN_NO_NEED_WAKEUP = 2 /* don't use the rings' need_wakeup flags */
};

/* What to open. Borrowed during ix_xsk_open() only, except the UMEM's memory. */
struct ix_xsk_config {
    uint32_t ifindex;
    uint32_t queue;
    void *umem;           /* MAP_SHARED memory, page-aligned; stays the caller's */
    uint64_t umem_bytes;  /* a multiple of the frame size */
    uint32_t frame_shift; /* 11 or 12 */
    uint32_t headroom;    /* bytes to keep free before a received frame, besides the kernel's 256 */
    /* Ring sizes, powers of two. */
    uint32_t fill_entries;
    uint32_t completion_entries;
    uint32_t rx_entries;
    uint32_t tx_entries;
    uint32_t flags;            /* enum ix_xsk_open_flags */
    uint32_t busy_poll_us;     /* SO_BUSY_POLL; 0: no busy polling */
    uint32_t busy_poll_budget; /* SO_BUSY_POLL_BUDGET, frames; 0: the kernel's own */
    uint32_t retry_ms;         /* how long to wait for a queue that is being released */
    /* Chunk addresses put on FILL before the socket is bound: some drivers take
     * their receive buffers at bind and never again (igb with zero-copy). At most
     * fill_entries; they are the link's from then on. May be NULL, 0. */
    const uint64_t *initial_fill;
    uint32_t n_initial_fill;
    /* Where the rings and struct ix_xsk are to lie: ix_xsk_place_bytes() bytes of reserved
     * addresses, page-aligned, the caller's; ix_xsk_close() leaves them reserved. NULL: anywhere.
     */
    void *place;
    /* Bytes before each frame on TX that are the driver's, a multiple of 8 below 256: every frame
     * must lie at least so far into its chunk. 0: none. Where the kernel can't (before 6.11), the
     * socket is opened without: ix_xsk_tx_metadata_bytes() says what it is. */
    uint32_t tx_metadata_bytes;
};

/* How many bytes `place` must have for rings of config's sizes. */
uint64_t ix_xsk_place_bytes(const struct ix_xsk_config *config);

/* The kernel's counters of a socket (XDP_STATISTICS), frames. */
struct ix_xsk_kernel_stats {
    uint64_t rx_dropped;               /* too long for a chunk, and the like */
    uint64_t rx_invalid_descs;         /* bad addresses on FILL */
    uint64_t tx_invalid_descs;         /* bad descriptors on TX */
    uint64_t rx_ring_full;             /* we did not take frames fast enough */
    uint64_t rx_fill_ring_empty_descs; /* no frame on FILL to receive into */
    uint64_t tx_ring_empty_descs;      /* the kernel came for work and found none */
};

/* Opens an AF_XDP socket on a queue. Attaches no XDP program and enters no map.
 *
 * -EBUSY: the queue has a socket already, retried for retry_ms. -EOPNOTSUPP: the
 * driver can't do the mode. -EINVAL: no such queue, bad sizes. -EPERM. -ENODEV.
 * On failure nothing is left open, and the frames of initial_fill are the caller's. */
int ix_xsk_open(const struct ix_xsk_config *config, struct ix_xsk_socket **out, char *err,
                size_t err_bytes);

/* Closes the socket and unmaps its rings. Every frame is the caller's again. For
 * the process that opened it; a forked child just ends. NULL is fine. */
void ix_xsk_close(struct ix_xsk_socket *socket);

/* The descriptor, to poll() and to enter into the XSKMAP. */
int ix_xsk_fd(const struct ix_xsk_socket *socket);

/* The link that the shard takes. Valid until ix_xsk_close(). Its memory is shared
 * with forked children, so a parent can read the counters of a child's link; only
 * one of them may call its operations. */
struct ix_link *ix_xsk_link(struct ix_xsk_socket *socket);

/* The same, as the rings' own type (link/xsk.h). */
struct ix_xsk *ix_xsk_rings(struct ix_xsk_socket *socket);

/* 1 if the kernel runs this socket with zero-copy, 0 if it copies, -errno. */
int ix_xsk_is_zerocopy(const struct ix_xsk_socket *socket);

/* 0: busy polling as asked for. -errno: the kernel refused it, and the socket
 * works without. -ENODATA: it was not asked for. */
int ix_xsk_busy_poll_status(const struct ix_xsk_socket *socket);

/* Frames that one copy-mode kick sends at most (32 before kernel 6.17). */
uint32_t ix_xsk_tx_budget(const struct ix_xsk_socket *socket);

/* What stands before each frame on TX for the driver; 0: nothing. */
uint32_t ix_xsk_tx_metadata_bytes(const struct ix_xsk_socket *socket);

int ix_xsk_kernel_stats(const struct ix_xsk_socket *socket, struct ix_xsk_kernel_stats *out);

/* This side's counters, in the order of struct ix_xsk_stats (link/xsk.h): fills at most
 * n values and returns how many there are. ix_xsk_stat_name(i) is NULL past the end. */
uint32_t ix_xsk_stats(const struct ix_xsk_socket *socket, uint64_t *values, uint32_t n);
const char *ix_xsk_stat_name(uint32_t i);

#endif
