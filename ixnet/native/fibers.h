/* Several runs of one application in one thread, each on a stack of its own.
 *
 * A native application is written for one shard: ix_app_main() loops on ix_app_poll(). In a worker
 * that runs several shards it is called once for each of them, and ix_app_poll() is where one run
 * stands still while the others have their turn: one cycle, and what the application makes of it,
 * of each shard after the other. Nothing else switches, so between two polls a run has the thread
 * to itself. What is static in an application is shared by the runs of one worker.
 */
#ifndef IX_NATIVE_FIBERS_H
#define IX_NATIVE_FIBERS_H

#ifndef IX_CDEF
#include "native/app.h"
#endif

struct ix_fiber;

/* Calls app_main for each of app's siblings, and returns when all calls have: 0, or as soon as one
 * returned anything else, that; the others are not gone on with then. `argv` has argc words and a
 * NULL, copied for each run. -ENOMEM: nothing was called. */
int ix_fibers_run(struct ix_app *app, int (*app_main)(struct ix_app *, int, char **), int argc,
                  char **argv);

/* In a run's ix_app_poll(): the others have their turn. max_wait_ns: how long this one may sleep.
 * Returns how long all of them may. */
uint64_t ix_fibers_pass(struct ix_app *app, uint64_t max_wait_ns);

#endif
