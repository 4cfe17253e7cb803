/* UMEM frames and who owns each.
 *
 * The UMEM is cut into equal frames. The first pool_frames are the dataplane's pool; the rest are
 * the send arena, which the application hands out itself. Every frame has a 32-byte record here,
 * outside the UMEM, so that nobody who can write packets can write it.
 *
 *   FREE --take_fill--> FILL --from_rx--> RX --free--> FREE
 *                                         RX --lend--> APP --done (last byte)--> FREE, or TX
 *                                                           while a transmission is under way
 *   FREE --alloc------> TX --free, or tx_end (last)--> FREE
 *
 * A frame that is APP (lent, or of the arena) can be under transmission at the same time: `tx_refs`
 * counts the descriptors on the TX ring that point into it.
 *
 * Calls that the link or the application can provoke (from_rx, done, tx_end) refuse what does not
 * fit the frame's state. All others assert it: they carry out this code's own decisions.
 */
#ifndef IX_MEM_FRAME_H
#define IX_MEM_FRAME_H

#include "base/limits.h"
#include "base/types.h"

enum ix_frame_owner {
    IX_FRAME_FREE = 0,
    IX_FRAME_FILL, /* on the FILL ring, or filled and not yet taken from RX */
    IX_FRAME_RX,   /* in the stack: being parsed, or waiting in a reassembly or event queue */
    IX_FRAME_APP,  /* lent by RECV, or part of the arena */
    IX_FRAME_TX,   /* built by the stack, or no longer lent but still under transmission */
    IX_FRAME_OWNERS
};

struct ix_frame {
    uint32_t next;       /* next in the free list, or in the queue that holds it; IX_NONE: last */
    uint32_t seq;        /* RX: sequence number of the payload's first byte */
    uint64_t handle;     /* APP: whom it was lent to, who alone can give it back; 0: arena, idle.
                          * RX, out of order: the last frame of its run (tcp/recv.c) */
    uint16_t offset;     /* where the payload begins, bytes from the frame's start */
    uint16_t bytes;      /* payload length */
    uint16_t lent_bytes; /* APP: not yet given back by RECV_DONE; 0 when not lent */
    uint8_t owner;       /* enum ix_frame_owner */
    uint8_t tx_refs;     /* descriptors on TX that point into this frame */
    uint32_t flow;       /* the flow that wants to know when tx_refs becomes 0, or IX_NONE; RX, in
                          * a queue: whose it is. The caller sets and clears it; a frame that
                          * becomes FREE, or is lent, forgets it */
};
IX_STATIC_ASSERT(sizeof(struct ix_frame) == 32, "two records to a cache line");

/* As many pieces of one frame as can be under transmission at a time. */
enum { IX_FRAME_TX_REFS_MAX = UINT8_MAX };

struct ix_frames {
    struct ix_frame *meta;           /* [total] */
    uint32_t pool_frames;            /* frames 0..pool_frames-1 */
    uint32_t total;                  /* pool and arena */
    uint32_t frame_shift;            /* log2 of the frame size in bytes */
    uint32_t free_head;              /* first FREE frame, or IX_NONE */
    uint32_t count[IX_FRAME_OWNERS]; /* pool frames by owner; they add up to pool_frames */
    uint32_t lend_max;               /* most pool frames that may be APP at a time */
};

/* meta: memory for pool_frames + arena_frames records. lend_max becomes pool_frames less
 * IX_FRAMES_RESERVE, at least a quarter of the pool. */
void ix_frames_init(struct ix_frames *f, struct ix_frame *meta, uint32_t pool_frames,
                    uint32_t arena_frames, uint32_t frame_shift);

/* FREE to TX, for a frame that the stack builds. IX_NONE if the pool is empty. */
IX_MUST_CHECK uint32_t ix_frame_alloc(struct ix_frames *f);
/* FREE to FILL: takes a frame to hand to the link. IX_NONE if the pool is empty. */
IX_MUST_CHECK uint32_t ix_frame_take_fill(struct ix_frames *f);
/* FILL back to FREE, for one that did not fit on the ring. */
void ix_frame_untake_fill(struct ix_frames *f, uint32_t frame);
/* FILL to RX, when the link brings it back. Returns false (and changes nothing) if the frame is not
 * FILL or no pool frame: a descriptor that the kernel side must not have given us. */
IX_MUST_CHECK bool ix_frame_from_rx(struct ix_frames *f, uint32_t frame);
/* RX or TX (without transmissions under way) to FREE. */
void ix_frame_free(struct ix_frames *f, uint32_t frame);
/* May another frame be lent? */
static inline bool ix_frame_may_lend(const struct ix_frames *f)
{
    return f->count[IX_FRAME_APP] < f->lend_max;
}
/* RX to APP: lends `bytes` (> 0) bytes at `offset` to `handle` (not 0). */
void ix_frame_lend(struct ix_frames *f, uint32_t frame, uint64_t handle, uint16_t offset,
                   uint16_t bytes);
/* Takes back `bytes` of what was lent; with the last byte the frame goes to FREE, or to TX while
 * it is under transmission. Returns 0, or -IX_EINVAL if the frame isn't lent to `handle` or fewer
 * bytes are out. */
IX_MUST_CHECK int ix_frame_done(struct ix_frames *f, uint32_t frame, uint64_t handle,
                                uint32_t bytes);
/* Can another descriptor point into the frame? An application may send one frame on any number of
 * flows, so ask before tx_begin for a frame that is APP. */
static inline bool ix_frame_may_tx(const struct ix_frames *f, uint32_t frame)
{
    return f->meta[frame].tx_refs < IX_FRAME_TX_REFS_MAX;
}
/* A descriptor that points into the frame goes to TX. The frame is TX or APP. */
void ix_frame_tx_begin(struct ix_frames *f, uint32_t frame);
/* The link completed one. A TX frame without further descriptors becomes FREE. Returns the flow to
 * tell (the frame's `flow`) if tx_refs became 0, else IX_NONE. A completion for a frame with
 * tx_refs 0, or beyond the UMEM, is ignored and returns IX_NONE. */
uint32_t ix_frame_tx_end(struct ix_frames *f, uint32_t frame);

static inline uint64_t ix_frame_addr(const struct ix_frames *f, uint32_t frame)
{
    return (uint64_t)frame << f->frame_shift;
}
static inline uint32_t ix_frame_of(const struct ix_frames *f, uint64_t addr)
{
    return (uint32_t)(addr >> f->frame_shift);
}

/* Invariants: counts match the records, the free list holds exactly the FREE frames. Returns NULL
 * or what is wrong. */
const char *ix_frames_check(const struct ix_frames *f);

#endif
