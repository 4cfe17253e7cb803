/* Applications for ix_fibers_run(), which write down when they have their turn. */
#ifndef IX_TESTS_FIBER_APP_H
#define IX_TESTS_FIBER_APP_H

#include "native/app.h"

enum { IX_FIBER_LOG = 256 };

struct ix_fiber_log {
    uint32_t n;
    uint32_t who[IX_FIBER_LOG];    /* the shard's number in its worker, a turn each */
    uint64_t stack[IX_FIBER_LOG];  /* where its stack was */
    char **argv[IX_FIBER_LOG];
    uint32_t rounding_lost;        /* turns that found the FPU's rounding mode changed */
};

extern struct ix_fiber_log ix_fiber_log;

/* argv[1 + n] of shard n: "TURNS,WAIT_NS,STATUS": polls so often (0: until it is time to stop), may
 * sleep so long each time, and returns that. */
int ix_fiber_app_main(struct ix_app *app, int argc, char **argv);

#endif
