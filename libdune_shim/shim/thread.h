/* Threads and processes: what thread.c and exec.c share. */
#ifndef DUNE_THREAD_H
#define DUNE_THREAD_H

#include "shim/shim.h"

/* Words of dune_vcpu.fork_scratch, thread.c's own. */
#define DUNE_THREAD_ROBUST    0 /* head of ring 3's robust list; 0: none */
#define DUNE_THREAD_MASK      1 /* a child's signal mask, until it starts */
#define DUNE_THREAD_EXEC_AREA 2 /* number of the exec area it holds, from 1 */

#define DUNE_THREAD_STATUS 3 /* of a thread that left: what it ended with */

#define DUNE_ROBUST_HEAD_BYTES 24 /* of struct robust_list_head, the only length Linux knows */

/* This thread is about to end: does what Linux does for the robust mutexes that it still holds. */
void dune_robust_release(struct dune_vcpu *cpu);

/* Gives back what exec.c holds for this thread: a vfork child doesn't come back from exec. */
void dune_exec_area_give(struct dune_vcpu *cpu);

#endif
