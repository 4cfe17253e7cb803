/* See fiber_app.h. */
#include "fiber_app.h"

#include <stdio.h>
#include <stdlib.h>

struct ix_fiber_log ix_fiber_log;

static uint32_t rounding(void)
{
    return __builtin_ia32_stmxcsr() & 0x6000;
}

static void note(const struct ix_app *app, char **argv)
{
    struct ix_fiber_log *log = &ix_fiber_log;
    if (log->n == IX_FIBER_LOG)
        return;
    log->who[log->n] = app->gate_shard;
    log->stack[log->n] = (uint64_t)(uintptr_t)__builtin_frame_address(0);
    log->argv[log->n++] = argv;
}

int ix_fiber_app_main(struct ix_app *app, int argc, char **argv)
{
    /* Each has a rounding mode of its own: callers keep it over calls, so a switch must. */
    uint32_t mine = (app->gate_shard & 3) << 13;
    unsigned turns = 0;
    unsigned long wait_ns = 0;
    int status = 0;
    if (argc < (int)app->gate_shard + 2 ||
        sscanf(argv[1 + app->gate_shard], "%u,%lu,%d", &turns, &wait_ns, &status) != 3)
        return 99;
    argv[0] = NULL; /* as getopt() may permute: the others don't see it */
    __builtin_ia32_ldmxcsr((__builtin_ia32_stmxcsr() & ~0x6000u) | mine);
    for (unsigned i = 0; !turns || i < turns; i++) {
        note(app, argv);
        if (ix_app_poll(app, wait_ns) < 0)
            break;
        ix_fiber_log.rounding_lost += rounding() != mine;
    }
    return status;
}
