/* Two shards and the simulated wire between them in ring 0, for the event API's tests in ring 3
 * (tests/dune/event_pair.py, which knows these layouts too).
 */
#ifndef TESTS_DUNE_PAIR_H
#define TESTS_DUNE_PAIR_H

#include <stdint.h>

/* What the test wrote at the module's context before it entered: where everything lies. Two struct
 * ix_config follow at PAIR_CONFIGS. */
struct pair_setup {
    uint64_t seed, now_ns;
    uint64_t umem[2], umem_bytes;
    uint64_t shard[2], shard_bytes[2];
    uint64_t wire, wire_bytes;
    uint64_t page; /* ring 3 has it too: arguments and texts */
};

enum { PAIR_CONFIGS = 4096, PAIR_STATE = 65536, PAIR_TEXT = 256 };

/* Calls beside the gate's (api/gate.h). Results: 0 or more, or -errno. */
enum pair_call {
    PAIR_MAKE = 0x80, /* all of it; once, first */
    PAIR_ADVANCE,     /* now_ns: the wire's clock and the gate's */
    PAIR_PATH,        /* direction; in the page: delay_ns, loss_ppm, dup_ppm, reorder_ppm,
                       * reorder_hold_ns, corrupt_ppm, 8 bytes each */
    PAIR_NEXT_NS,     /* when the wire does something next; -1: never */
    PAIR_DEADLINE,    /* shard: when it has something to do; -1: never */
    PAIR_TELL,        /* shard; in the page: struct ix_ctl_msg */
    PAIR_CHECK        /* 1: an invariant is broken; in the page: which */
};

#endif
