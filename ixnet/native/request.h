/* What a worker says to the control plane over its SOCK_SEQPACKET socket, one record a message.
 *
 * CLAIM, UNCLAIM and LEAVE are answered by one struct ix_reply with the same sequence number; READY
 * and NUDGE are not answered. The control plane trusts none of it: it checks length, magic and
 * every field.
 */
#ifndef IX_NATIVE_REQUEST_H
#define IX_NATIVE_REQUEST_H

#ifndef IX_CDEF
#include <stdint.h>
#endif

enum ix_request_op {
    IX_REQUEST_CLAIM = 1,   /* redirect proto/ip/port to the dataplane */
    IX_REQUEST_UNCLAIM = 2, /* one claim of this shard less */
    IX_REQUEST_READY = 3,   /* the worker runs all its shards */
    IX_REQUEST_NUDGE = 4,   /* the shard's ring holds a request (a neighbour to resolve) */
    IX_REQUEST_LEAVE = 5    /* the application ended: abort the shard's connections */
};

enum { IX_REQUEST_MAGIC = 0x69786371 };

struct ix_request {
    uint32_t magic; /* IX_REQUEST_MAGIC */
    uint32_t sequence;
    uint8_t op;     /* enum ix_request_op */
    uint8_t family; /* 4 or 6; 0: both, of which `ip` is every address */
    uint8_t proto;  /* IPPROTO_TCP, IPPROTO_UDP */
    uint8_t shard;  /* whose: its number in the worker */
    uint16_t port;  /* host byte order */
    uint16_t pad2;
    uint8_t ip[16]; /* network byte order, IPv4 in the first 4 bytes; all 0: every address */
};

struct ix_reply {
    uint32_t sequence;
    int32_t error;  /* 0 or -errno */
    char text[248]; /* the reason and its cure, NUL-terminated; empty on success */
};

#endif
