/* Plays seeds of the simulation, one after the other; tests/sim/seeds.py reads what it says.
 *
 *     ixsim [-t] FIRST LAST
 *
 * -t: every frame, call and event to stderr. On stdout a line each: "seed N" before each seed,
 * "failed N: what", then the case in lines that begin with two blanks, and, at the end, "total NAME
 * NUMBER". Exits with 1 if any failed.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/native/sim_driver.h"

enum { SEED_SECONDS_MAX = 300 }; /* for one that hangs; the slowest take seconds */

static void add(struct ix_simd_result *total, const struct ix_simd_result *r)
{
    total->steps += r->steps;
    total->bytes += r->bytes;
    total->orderly += r->orderly;
    total->lossless += r->lossless;
#define X(name, meaning) total->counters.name += r->counters.name;
    IX_COUNTERS(X)
#undef X
#define X(name, meaning) total->wire.name += r->wire.name;
    IX_SIM_COUNTERS(X)
#undef X
}

static void tell_total(const struct ix_simd_result *total)
{
    printf("total steps %lu\ntotal bytes %lu\n", total->steps, total->bytes);
    printf("total orderly %u\ntotal lossless %u\n", total->orderly, total->lossless);
#define X(name, meaning) printf("total counters." #name " %lu\n", total->counters.name);
    IX_COUNTERS(X)
#undef X
#define X(name, meaning) printf("total wire." #name " %lu\n", total->wire.name);
    IX_SIM_COUNTERS(X)
#undef X
}

static void tell_failure(const struct ix_simd_case *c, const struct ix_simd_result *r)
{
    char text[4096];
    (void)ix_simd_describe(c, text, sizeof text);
    printf("failed %lu: %s\n", c->seed, r->failure);
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n"))
        printf("  %s\n", line);
}

int main(int argc, char **argv)
{
    bool trace = argc == 4 && strcmp(argv[1], "-t") == 0;
    if (argc != 3 + trace) {
        fprintf(stderr, "usage: ixsim [-t] FIRST LAST\n");
        return 2;
    }
    uint64_t seed = strtoull(argv[argc - 2], NULL, 0), last = strtoull(argv[argc - 1], NULL, 0);
    static struct ix_simd_result total, result;
    bool failed = false;
    for (; seed <= last; seed++) {
        struct ix_simd_case c;
        printf("seed %lu\n", seed);
        fflush(stdout);
        alarm(SEED_SECONDS_MAX);
        ix_simd_plan(seed, &c);
        c.trace = trace;
        if (ix_simd_run(&c, &result)) {
            tell_failure(&c, &result);
            failed = true;
        }
        add(&total, &result);
    }
    tell_total(&total);
    return failed;
}
