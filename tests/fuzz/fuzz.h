/* Fuzzing: two targets on a whole shard, over a link and a clock that are plain memory.
 *
 * An input is a header of 16 bytes, which says in what state the shard starts, and records of 64
 * bytes, which say what happens to it, one after the other: so a mutation can add, drop, swap and
 * splice whole events. The state is reached once; from then on it is copied (snapshots.c).
 * After each record all invariants of the shard must hold, and at the end,
 * when everything is given back, every frame must be in the pool and no timer may be left.
 */
#ifndef IX_TESTS_FUZZ_FUZZ_H
#define IX_TESTS_FUZZ_FUZZ_H

#include "base/types.h"

enum { FUZZ_RECORD_BYTES = 64, FUZZ_HEADER_BYTES = 16, FUZZ_RECORDS_MAX = 48 };

/* Where the shard starts. */
struct fuzz_header {
    uint8_t state;     /* modulo FUZZ_STATES: enum ix_tcp_state of the main connection; 0: LISTEN */
    uint8_t options;   /* FUZZ_*: what the peer's SYN offers, and how the shard is set up */
    uint8_t segments;  /* modulo 32: full segments that the application has queued */
    uint8_t holes;     /* modulo 8: segments that the peer has sent out of order */
    uint8_t tx_delay;  /* modulo 4: polls until a frame sent completes */
    uint8_t mss;       /* the peer's MSS: 88 + 8 * mss */
    uint16_t window;   /* the peer's window */
    uint8_t version;   /* FUZZ_IPV6: the shard's network is IPv6's, else IPv4's */
    uint8_t pad[7];
};

enum {
    FUZZ_STATES = 10,
    FUZZ_IPV6 = 6,
    /* header options */
    FUZZ_TS = 1,
    FUZZ_SACK = 2,
    FUZZ_WSCALE = 4,
    FUZZ_OWN_ADDRESS = 8,
    FUZZ_SMALL_BUFFER = 16,
    FUZZ_SMALL_BACKLOG = 32,
    FUZZ_COPY = 64, /* nothing leaves from where it lies */
    FUZZ_HOLD = 128, /* the application gives nothing back by itself */
};

/* What happens next, for the target on packets. */
enum fuzz_op {
    FUZZ_SEGMENT = 0, /* a TCP segment of the main connection, or of another (which) */
    FUZZ_PACKET,      /* an IP packet of any kind, a fragment maybe */
    FUZZ_ICMP,        /* an ICMP error about the main connection; of ICMPv6 other messages, too */
    FUZZ_TIME,        /* time passes: seq ms, modulo 128 s */
    FUZZ_CALL,        /* a sensible call of the application */
    FUZZ_DONE,        /* the application gives back what it holds */
    FUZZ_UPSET,       /* the control plane has news */
    FUZZ_FRAME,       /* a frame that is no more than bytes */
    FUZZ_OPS,
};

/* The oddly named fields are those of a segment; what others take from them stands in packets.c. */
struct fuzz_record {
    uint8_t op;       /* modulo FUZZ_OPS */
    uint8_t flags;    /* TCP flags */
    uint8_t seq_base; /* what seq counts from: see packets.c */
    uint8_t ack_base; /* likewise */
    int32_t seq, ack;
    uint16_t window;
    uint16_t bytes;   /* of payload */
    uint8_t options_bytes;
    uint8_t ts;       /* 0: no timestamp by itself, 1: a good one, 2: an old one, 3: a new one */
    uint8_t which;    /* 0: main connection; else another peer port */
    uint8_t more;
    uint8_t options[40]; /* raw */
    uint8_t pad[4];
};

/* Play an input. Return 0; anything wrong ends the process with a message. */
int ix_fuzz_packets(const uint8_t *data, size_t size);
int ix_fuzz_calls(const uint8_t *data, size_t size);

#endif
