/* Byte queues in libevent's terms over the dataplane's memory: chains of extents (evpool.h). What
 * RECV lent is queued, moved from queue to queue and sent again without a copy.
 */
#ifndef IX_NATIVE_EVBUFFER_H
#define IX_NATIVE_EVBUFFER_H

#include "native/evpool.h"

struct ix_evbuffer {
    struct ix_evextent *head, *tail;
    uint64_t bytes; /* length of the content */
    struct ix_evpool *pool;
    struct ix_evowner *owner; /* who hears of changes; NULL: nobody */
    uint8_t sends;            /* 1: what is added goes to the owner's arena frames, for SENDV */
    uint8_t has_arena;        /* 1: may hold ARENA extents */
    uint8_t discards;         /* 1: takes everything and keeps nothing (its connection is over) */
    uint8_t closed;           /* 1: takes nothing: -EBADF (its bufferevent was closed) */
};

/* A stretch of contiguous bytes, for ix_evbuffer_peek(). */
struct ix_evvec {
    const uint8_t *data;
    uint64_t bytes;
};

void ix_evbuffer_init(struct ix_evbuffer *b, struct ix_evpool *pool, struct ix_evowner *owner);
/* A buffer by itself, without owner. NULL: no memory. */
struct ix_evbuffer *ix_evbuffer_new(struct ix_evpool *pool);
void ix_evbuffer_free(struct ix_evbuffer *b);
/* NULL, or which invariant does not hold. For tests; slow. */
const char *ix_evbuffer_check(const struct ix_evbuffer *b);

/* Appends, or puts in front, a copy of n bytes. Returns 0, -ENOMEM (nothing added) or -EBADF. */
int ix_evbuffer_add(struct ix_evbuffer *b, const void *data, size_t n);
int ix_evbuffer_prepend(struct ix_evbuffer *b, const void *data, size_t n);
/* Appends what RECV lent. Returns 0, or -ENOMEM: then the memory is still the caller's to give
 * back. */
int ix_evbuffer_add_lent(struct ix_evbuffer *b, uint8_t *data, uint32_t n, uint64_t handle);
/* Moves all of `from` to the end of `to`, without a copy where the extents may move. Returns 0,
 * -ENOMEM (a prefix moved) or -EBADF (nothing moved). */
int ix_evbuffer_add_buffer(struct ix_evbuffer *to, struct ix_evbuffer *from);
/* Moves at most n bytes. Returns how many, -ENOMEM or -EBADF. */
int64_t ix_evbuffer_remove_buffer(struct ix_evbuffer *from, struct ix_evbuffer *to, uint64_t n);

/* Drops at most n bytes off the front. Returns how many. */
uint64_t ix_evbuffer_drain(struct ix_evbuffer *b, uint64_t n);
/* Copies at most n bytes from `offset` on to `out`. Returns how many. */
uint64_t ix_evbuffer_copyout(const struct ix_evbuffer *b, uint64_t offset, void *out, uint64_t n);
/* copyout from the front, then drain. */
uint64_t ix_evbuffer_remove(struct ix_evbuffer *b, void *out, uint64_t n);
/* Makes the first n bytes contiguous (n < 0: all) and returns them; NULL when there are fewer or no
 * memory. Valid until the buffer changes. */
const char *ix_evbuffer_pullup(struct ix_evbuffer *b, int64_t n);
/* Takes the first n bytes (as pullup) out of the buffer. Valid until the next take from a buffer of
 * this pool, or the loop's next turn. */
const char *ix_evbuffer_take(struct ix_evbuffer *b, uint64_t n);
/* The content as it lies, at most max stretches. Returns how many there are in the buffer. */
uint32_t ix_evbuffer_peek(const struct ix_evbuffer *b, struct ix_evvec *out, uint32_t max);

/* The position of the first `what` (n > 0 bytes) at or after start, or -1. */
int64_t ix_evbuffer_search(const struct ix_evbuffer *b, const void *what, size_t n, uint64_t start);

/* Line ends as libevent names them. */
enum ix_eol_style {
    IX_EOL_ANY = 0,         /* any run of CR and LF */
    IX_EOL_CRLF = 1,        /* LF, with a CR before it or not */
    IX_EOL_CRLF_STRICT = 2, /* CR LF */
    IX_EOL_LF = 3,
    IX_EOL_NUL = 4
};
/* The position of the first line end, with its length in *eol_bytes, or -1. */
int64_t ix_evbuffer_search_eol(const struct ix_evbuffer *b, uint32_t style, uint32_t *eol_bytes);

/* ---- for the loop -------------------------------------------------------- */

/* The extent at *at as one that SENDV can take: of HEAP bytes, a first part goes to an arena frame
 * in front of the rest. NULL: the arena has no frame for this owner now, or no memory. */
struct ix_evextent *ix_evbuffer_sendable(struct ix_evbuffer *b, struct ix_evextent **at);
/* Moves the first n bytes, at most the first extent, to the end of `to`, a buffer of the same
 * owner; tells nobody. Returns 0 or -ENOMEM. */
int ix_evbuffer_shift(struct ix_evbuffer *from, struct ix_evbuffer *to, uint32_t n);
/* Drops everything; tells nobody. */
void ix_evbuffer_clear(struct ix_evbuffer *b);

#endif
