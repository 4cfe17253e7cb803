/* What libdune, in guest ring 0, has the shim's code do: changes of page tables. The shim's text
 * lies in the vault, where a fetch never faults and a signal never stops the vCPU for good, so that
 * vault->lock can be held in ring 0. */
#ifndef DUNE_RING0_H
#define DUNE_RING0_H

#include "shim/shim.h"

enum dune_ring0_what {
    DUNE_RING0_MAP,
    DUNE_RING0_PROTECT,
    DUNE_RING0_UNMAP,
    DUNE_RING0_FOLLOW,
    DUNE_RING0_LOOKUP,
    DUNE_RING0_WALK,  /* without the lock */
    DUNE_RING0_CLONE, /* result: made */
    DUNE_RING0_FREE,
    DUNE_RING0_SWITCH, /* va: what has to be there afterwards; source: as well */
    DUNE_RING0_HOOKS,  /* handler, flags: for ring 3's system calls */
};

struct dune_ring0_call {
    uint32_t what; /* enum dune_ring0_what */
    uint32_t flags;
    struct dune_root *root, *made;
    uint64_t va, source, bytes;
    struct dune_entry *entry;
    int (*visit)(const struct dune_entry *entry, void *arg);
    void *arg;
    dune_handler handler;
};

#pragma GCC visibility push(hidden)
/* On the stack of the caller, in ring 0. 0 or -errno. */
long dune_ring0_call(struct dune_vcpu *cpu, struct dune_ring0_call *call);
/* Host side: libdune's own calls that ring 0 makes. False: none of them. */
bool dune_ring0_own_call(struct dune_vcpu *cpu, uint64_t nr, uint64_t argument, uint64_t *result);
/* Host side: the sum over all vCPUs of KVM's own counters. 0: this kernel doesn't tell. */
uint64_t dune_count_exits(struct dune_vault *vault);
#pragma GCC visibility pop

#endif
