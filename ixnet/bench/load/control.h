/* The page that `ixnet bench` and its load workers share: commands to all of them, and a line of
 * each about itself. Python reads and writes it by offset (ixnet/bench/session.py), so every field
 * has 8 bytes.
 *
 * A command is written field by field and counts when `number` changes; a worker that has carried
 * it out writes that number to `done`, after its result file.
 */
#ifndef IX_BENCH_CONTROL_H
#define IX_BENCH_CONTROL_H

#include <stdint.h>

#define CONTROL_MAGIC   0x6978627463746c31ull
#define CONTROL_WORKERS 64

enum control_op {
    CONTROL_OPEN = 1, /* hold `connections` connections */
    CONTROL_LOAD = 2, /* memcached: store this worker's share of the items */
    CONTROL_RUN = 3,  /* warm up and measure */
    CONTROL_QUIT = 4
};

/* What one worker is doing. */
struct control_worker {
    uint64_t ready; /* 1: it waits for commands */
    uint64_t done;  /* number of the last command that it carried out */
    uint64_t failed; /* 1: that command failed; its result says why */
    uint64_t open;   /* connections open now */
    uint64_t completed; /* requests since it began */
    uint64_t pad[3];
};

struct control {
    uint64_t magic;
    uint64_t number; /* of the command below; 0: none yet */
    uint64_t op;     /* enum control_op */
    uint64_t connections; /* OPEN: of each worker */
    uint64_t start_ns;    /* RUN: when the warm-up begins, CLOCK_MONOTONIC; 0: now */
    uint64_t warmup_ns, measure_ns;
    double rate;          /* RUN: requests a second of each worker; 0: closed loop */
    double probe_rate;    /* ... of its probes; 0: closed loop */
    uint64_t window;      /* RUN: most requests under way, of each worker; 0: as many as fit */
    uint64_t workers;
    uint64_t pad[5];
    struct control_worker worker[CONTROL_WORKERS];
};

#endif
