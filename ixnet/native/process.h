/* What a worker process needs of Linux that Python has no call for.
 */
#ifndef IX_NATIVE_PROCESS_H
#define IX_NATIVE_PROCESS_H

#ifndef IX_CDEF
#include <stdint.h>
#endif

/* Ties the calling process to its parent: it is killed when the parent dies, and is known as
 * `name` (15 characters). parent_pid: who the parent was before the fork; -ESRCH when it is gone
 * already. */
int ix_process_follow(int parent_pid, const char *name);

/* CLOCK_MONOTONIC now, ns. */
uint64_t ix_process_now_ns(void);

#endif
