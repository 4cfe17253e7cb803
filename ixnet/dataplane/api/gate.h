/* The gate: how an application in ring 3 reaches shards that lie in ring 0. Each call is one system
 * call of libdune's (DUNE_CALL_MODULE + its number), with up to five words; what they say is
 * checked, and a call that can't be is refused with -EINVAL or -ENOENT and counted. Part of the
 * cdef; see api.h for the rules.
 */
#ifndef IX_API_GATE_H
#define IX_API_GATE_H

enum { IX_GATE_SHARDS = 8 }; /* that a gate can have at most */

/* Argument 0 is always the shard's number, from 0. Results are those of the functions of api.h with
 * the same names. ADDRESS: two words, the address's 16 bytes as in struct ix_event (all 0: every
 * address); then the port, the family << 16 and the backlog << 32 in one word. */
enum ix_gate_call {
    IX_GATE_POLL = 0,         /* one cycle, at the gate's own time */
    IX_GATE_MAY_SLEEP_NS = 1, /* how long there is nothing to do, ns; 2^63 - 1: for ever */
    IX_GATE_LISTEN = 2,       /* ADDRESS, cookie */
    IX_GATE_UNLISTEN = 3,     /* ADDRESS */
    IX_GATE_UDP_BIND = 4,     /* ADDRESS, cookie; the result is the handle */
    IX_GATE_UDP_UNBIND = 5,   /* handle */
    IX_GATE_STATS = 6,        /* brings the statistics up to date */
    IX_GATE_LISTEN_OPTION = 7 /* ADDRESS, the option in the backlog's place; value */
};

#endif
