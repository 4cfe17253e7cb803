/* A link: where frames come from and go to.
 *
 * The shard knows nothing of AF_XDP; it calls these operations. Frames are
 * named by descriptors that point into the link's UMEM, one contiguous range
 * that is cut into equal chunks ("frames" in mem/frame.h). The four queues and
 * their ownership rules are AF_XDP's (kernel Documentation/networking/af_xdp.rst):
 * FILL gives empty frames to the link, RX brings them back filled, TX gives
 * frames to send, COMPLETION brings them back sent.
 *
 * Implementations: xsk.c (AF_XDP), sim_link.c (virtual wire), pcap_link.c (recorder
 * around another link). None of them blocks, and none keeps state outside its
 * own struct.
 */
#ifndef IX_LINK_LINK_H
#define IX_LINK_LINK_H

#include "base/types.h"

/* One frame on a ring. */
struct ix_desc {
    uint64_t addr;  /* byte offset of the first frame byte in the UMEM */
    uint32_t len;   /* frame bytes, Ethernet header included, no FCS */
    uint32_t flags; /* IX_DESC_* */
};

/* RX: the link knows that the sender left the L4 checksum unfinished. */
#define IX_DESC_PARTIAL_CSUM 1u
/* TX: the link's tx_metadata_bytes before the frame ask something of the driver. The value is the
 * kernel's XDP_TX_METADATA. The stack never sets it. */
#define IX_DESC_TX_METADATA 2u

/* What wakeup() is asked to push along; both may be set. */
#define IX_WAKE_TX 1u /* descriptors were put on TX since the last wakeup */
#define IX_WAKE_RX 2u /* the caller found RX empty */

struct ix_link;

struct ix_link_ops {
    /* Takes up to max received descriptors. The frames are the caller's until
     * given back with fill(). Returns how many. */
    uint32_t (*rx_burst)(struct ix_link *link, struct ix_desc *out, uint32_t max);
    /* Queues n descriptors to send, in order. The link owns the frames until
     * complete() returns them. Returns how many fitted (possibly 0). */
    uint32_t (*tx_burst)(struct ix_link *link, const struct ix_desc *descs, uint32_t n);
    /* Takes up to max addresses of frames whose sending is over. An address
     * may point anywhere into its chunk. Returns how many. */
    uint32_t (*complete)(struct ix_link *link, uint64_t *addrs, uint32_t max);
    /* Gives n empty frames (chunk start addresses) to receive into. Returns
     * how many fitted. */
    uint32_t (*fill)(struct ix_link *link, const uint64_t *addrs, uint32_t n);
    /* How many frames fill() would take now. */
    uint32_t (*fill_room)(struct ix_link *link);
    /* Pushes the other side along, at most one system call (or VM exit), and
     * none when the rings say that none is needed. `what` is IX_WAKE_*.
     * Returns the number of system calls made, with those of tx_burst() since
     * the last time, or -errno when the link is gone (-ENETDOWN, -ENXIO). */
    int (*wakeup)(struct ix_link *link, uint32_t what);
};

struct ix_link {
    const struct ix_link_ops *ops;
    uint8_t *umem;        /* first byte of the UMEM as this side maps it */
    uint64_t umem_bytes;  /* its length, a multiple of the frame size */
    uint32_t frame_shift; /* log2 of the frame size in bytes: 11 or 12 */
    uint32_t rx_headroom; /* bytes the link leaves free before a received frame, at least */
    uint32_t fill_entries; /* what fill_room() says when every frame given is taken; 0: not told */
    uint32_t tx_metadata_bytes; /* before each frame on TX, the driver's; 0: there are none */
};

static inline void *ix_link_ptr(const struct ix_link *link, uint64_t addr)
{
    return link->umem + addr;
}

#endif
