/* Fragments of UDP datagrams, until a datagram is whole (RFC 791 3.2, RFC 8200 4.5).
 *
 * Each fragment stays in the frame that it came in; a datagram is a list of frames. All that a
 * stranger can make us hold is bounded: datagrams, frames, datagrams of one source, and time.
 */
#ifndef IX_NET_REASS_H
#define IX_NET_REASS_H

#include "base/limits.h"
#include "net/addr.h"

struct ix_net;

enum {
    IX_REASS_MAX = 64,        /* datagrams at a time */
    IX_REASS_PER_SOURCE = 8,  /* ... of one source address */
    IX_REASS_FRAMES_MAX = 512, /* frames that they hold together; at most a sixteenth of the pool */
};

/* One fragment: what the IP headers say. */
struct ix_fragment {
    struct ix_ip src, dst;
    uint32_t id;
    uint32_t at, bytes; /* its part of the datagram; at is a multiple of 8 */
    uint16_t offset;    /* where it begins in its frame */
    uint8_t family;
    bool more;          /* others follow */
};

/* A datagram of which a part is here. */
struct ix_reass_datagram {
    struct ix_ip src, dst;
    uint64_t until_ns; /* 0: the slot is free */
    uint32_t id;
    uint32_t head;  /* frames by offset, linked by `next`; their `seq` is the offset */
    uint32_t have;  /* bytes that are here */
    uint32_t total; /* bytes in all; 0: the last fragment is missing */
    uint32_t frames;
    uint8_t family;
};

struct ix_reass {
    uint64_t next_ns; /* not later than the first that is given up; UINT64_MAX: none */
    uint32_t frames;
    struct ix_reass_datagram slots[IX_REASS_MAX];
};

void ix_reass_init(struct ix_reass *reass);
/* Takes a fragment; the frame must be RX. True: the frame is kept. *head is IX_NONE, or the first
 * frame of a datagram that this one made whole: `seq`, `offset`, `bytes` of each say where its part
 * lies, and all of them are the caller's. False: dropped (counted). */
bool ix_reass_add(struct ix_net *net, const struct ix_fragment *fragment, uint32_t frame,
                  uint32_t *head);
/* Frees the frames of a list. */
void ix_reass_free(struct ix_net *net, uint32_t head);
/* Gives up what has waited too long. */
void ix_reass_expire(struct ix_net *net);
/* Invariants: NULL, or what is wrong. */
const char *ix_reass_check(const struct ix_net *net);

#endif
