/* Threads and processes: what thread.c and exec.c share. */
#ifndef DUNE_THREAD_H
#define DUNE_THREAD_H

#include "shim/shim.h"

/* Words of dune_vcpu.fork_scratch, thread.c's own. */
#define DUNE_THREAD_ROBUST 0 /* head of ring 3's robust list; 0: none */

#define DUNE_ROBUST_HEAD_BYTES 24 /* of struct robust_list_head, the only length Linux knows */

/* Blocks all signals on this host thread. Returns the host's mask before, for
 * dune_signals_restore(); *guest is what ring 3 believes its mask to be. */
uint64_t dune_signals_block(struct dune_vcpu *cpu, uint64_t *guest);
void dune_signals_restore(uint64_t mask);

/* This thread is about to end: does what Linux does for the robust mutexes that it still holds. */
void dune_robust_release(struct dune_vcpu *cpu);

/* Makes the call anew, always, as Linux does after -ERESTARTNOINTR. */
long dune_again(struct dune_vcpu *cpu, const struct dune_call *call);

#endif
