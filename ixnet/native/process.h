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

/* The calling process, whose only thread this is, and what it will run have no capability any more
 * and can't get one, not by a program with a set-user-ID bit either. Where uid isn't UINT32_MAX it
 * becomes that user, with these groups, of which the first is its own; Linux forgets about
 * ix_process_follow() then: call that again. hide: no other process of the user can read or trace
 * this one (after a change of the user none can anyway). Returns 0 or -errno: do not go on then. */
int ix_process_drop(uint32_t uid, const uint32_t *groups, uint32_t n_groups, int hide);

/* CLOCK_MONOTONIC now, ns. */
uint64_t ix_process_now_ns(void);

#endif
