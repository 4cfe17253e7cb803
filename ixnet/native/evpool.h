/* What all byte queues of one loop share: extent records, the send arena's frames, and what was
 * released and is to be given back. See evbuffer.h for the queues.
 *
 * An extent is a stretch of bytes in one of three places:
 *
 *   LENT   a received frame, lent by RECV: read-only, given back by RECV_DONE when the extent
 *          is released. Moves between buffers, and out again by SENDV, without a copy.
 *   ARENA  a frame of the send arena. Only in buffers with an owner, the one who asked for it;
 *          elsewhere it moves as a HEAP copy.
 *   HEAP   malloc'ed memory: buffers without an owner, and what the arena had no room for.
 *
 * Released means: no buffer holds it any more. LENT extents then wait in the pool's `done` queue
 * until the loop has room for a RECV_DONE call; the memory of the others is free at once.
 *
 * All of this is the application's side, hosted C: it uses libc, and of the dataplane only the io
 * arrays' memory. Nothing here is thread-safe: a pool belongs to the thread that runs its loop.
 */
#ifndef IX_NATIVE_EVPOOL_H
#define IX_NATIVE_EVPOOL_H

#ifndef IX_CDEF
#include "api/api.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#endif

/* Payload bytes put into an arena frame: one full segment of a 1,500-byte MTU with timestamps
 * (20 IP + 20 TCP + 12), so that bulk data goes out in full segments from where it lies. */
enum { IX_EVPOOL_SEGMENT_BYTES = 1448 };
/* The arena frames that every owner may have, however little is left for the others. */
enum { IX_EVPOOL_FAIR_FRAMES = 2 };

enum ix_evextent_kind { IX_EVEXTENT_LENT = 1, IX_EVEXTENT_ARENA = 2, IX_EVEXTENT_HEAP = 3 };

struct ix_evchunk; /* counted heap memory */

struct ix_evextent {
    struct ix_evextent *next;
    uint8_t *data;  /* first byte */
    uint32_t bytes; /* how many; never 0 in a buffer */
    uint8_t kind;   /* enum ix_evextent_kind */
    union {
        uint64_t handle;          /* LENT: whom RECV lent it to */
        struct ix_evchunk *chunk; /* HEAP: what data lies in */
    };
};

/* Whoever must hear of changes to a buffer: a bufferevent. Its place in the queue of the changed.
 */
struct ix_evowner {
    struct ix_evowner *next;
    uint32_t arena_frames; /* frames of the arena that its buffers hold */
    uint8_t queued;        /* 1: in the queue */
};

struct ix_arena_frame {
    struct ix_evowner *owner; /* whose buffers hold it; NULL: free */
    uint32_t extents;         /* how many extents lie in it */
    uint32_t end;             /* offset behind the last byte in use */
};

struct ix_evpool {
    struct ix_io *io;
    uint32_t references;
    struct ix_evextent *free_extents;
    struct ix_evslab *slabs;                   /* the memory of all extent records */
    struct ix_evextent *done_head, *done_tail; /* released LENT extents, to be given back */
    struct ix_evextent *taken;                 /* what the last ix_evbuffer_take() took */
    struct ix_evowner *changed_head, *changed_tail;
    struct ix_arena_frame *arena; /* [io->arena_frames] */
    uint32_t *arena_free;         /* stack of free arena frames, [io->arena_frames] */
    uint32_t arena_free_count;
    uint32_t segment_bytes; /* payload bytes put into an arena frame */
    uint64_t extents_used;  /* records not on the free list */
    uint64_t lent_bytes;    /* lent by RECV and not yet in a RECV_DONE call */
    uint64_t heap_bytes;    /* payload memory malloc'ed */
};

/* A pool on io's arena, with one reference; every buffer made by ix_evbuffer_new() holds one more.
 * NULL: no memory. */
struct ix_evpool *ix_evpool_new(struct ix_io *io);
/* Gives a reference up. The last one frees the pool; nothing is given back to the dataplane then.
 */
void ix_evpool_unref(struct ix_evpool *pool);
/* NULL, or which invariant does not hold. For tests; slow. */
const char *ix_evpool_check(const struct ix_evpool *pool);

/* Puts the owner at the end of the queue of the changed, if it isn't in it. */
void ix_evpool_queue(struct ix_evpool *pool, struct ix_evowner *owner);
/* Takes the first of the changed, or NULL. */
struct ix_evowner *ix_evpool_unqueue(struct ix_evpool *pool);

/* A LENT extent, in no buffer yet. NULL: no memory; the bytes are still the caller's to give back.
 */
struct ix_evextent *ix_evextent_lent(struct ix_evpool *pool, uint8_t *data, uint32_t bytes,
                                     uint64_t handle);
/* An empty ARENA extent at the start of a fresh frame. NULL: the arena has none for this owner now.
 */
struct ix_evextent *ix_evextent_arena(struct ix_evpool *pool, struct ix_evowner *owner);
/* An empty HEAP extent with room for `room` bytes and, put before data, `front` more. NULL: no
 * memory. */
struct ix_evextent *ix_evextent_heap(struct ix_evpool *pool, size_t room, size_t front);
/* How many bytes can be appended at the extent's end, in place. */
uint32_t ix_evextent_room(const struct ix_evpool *pool, const struct ix_evextent *e);
/* Appends n bytes, at most its room. */
void ix_evextent_append(struct ix_evpool *pool, struct ix_evextent *e, const void *data,
                        uint32_t n);
/* Puts bytes before the first one, where there is room for it. Returns how many of the last of n
 * fitted. */
uint32_t ix_evextent_put_front(struct ix_evextent *e, const uint8_t *data, size_t n);
/* Cuts: e keeps the first n bytes; returns the rest, or NULL: no memory. 0 < n < e->bytes. */
struct ix_evextent *ix_evextent_split(struct ix_evpool *pool, struct ix_evextent *e, uint32_t n);
/* Makes sure that one extent record is at hand, so that one trim or split can't fail. */
bool ix_evpool_reserve(struct ix_evpool *pool);
/* Gives the extent up. */
void ix_evextent_release(struct ix_evpool *pool, struct ix_evextent *e);
/* Releases a chain of them. */
void ix_evextent_release_all(struct ix_evpool *pool, struct ix_evextent *e);
/* Releases only the first n bytes, fewer than all: a LENT part is given back by itself. Returns 0
 * or -ENOMEM. */
int ix_evextent_trim(struct ix_evpool *pool, struct ix_evextent *e, uint32_t n);

/* Releases what the last ix_evbuffer_take() took. */
void ix_evpool_drop_taken(struct ix_evpool *pool);
/* Takes the first released LENT extent, for a RECV_DONE call. False: there is none. */
bool ix_evpool_pop_done(struct ix_evpool *pool, uint64_t *handle, uint64_t *addr, uint32_t *bytes);

#endif
