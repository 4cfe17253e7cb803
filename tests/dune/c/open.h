/* Programs that use libdune the open way: PROGRAM CASE. Figures are printed as "name value". */
#ifndef OPEN_H
#define OPEN_H

#include "dune.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct open_case {
    const char *name;
    void (*run)(void);
};

/* Says what is wrong and where, and ends the process. */
#define CHECK(condition) \
    do { \
        if (!(condition)) { \
            dprintf(1, "%s:%d: not so: %s (dune: %s)\n", __FILE__, __LINE__, #condition, \
                    dune_error()); \
            _exit(99); \
        } \
    } while (0)

/* The same with both values. */
#define EQUAL(one, other) \
    do { \
        long long a_ = (long long)(one), b_ = (long long)(other); \
        if (a_ != b_) { \
            dprintf(1, "%s:%d: %s is %lld (0x%llx), not %lld (0x%llx) (dune: %s)\n", __FILE__, \
                    __LINE__, #one, a_, a_, b_, b_, dune_error()); \
            _exit(99); \
        } \
    } while (0)

static inline struct dune_stats open_stats(void)
{
    struct dune_stats stats;

    EQUAL(dune_stats(&stats), 0);
    return stats;
}

static inline void open_ring0(void)
{
    EQUAL(dune_init(NULL), 0);
    EQUAL(dune_enter(), 0);
    EQUAL(dune_ring(), 0);
}

static inline void open_leave(void)
{
    EQUAL(dune_leave(), 0);
    EQUAL(dune_ring(), -1);
}

static inline int open_main(int argc, char **argv, const struct open_case *cases)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (; argc == 2 && cases->name; cases++) {
        if (strcmp(cases->name, argv[1]) == 0) {
            cases->run();
            return 0;
        }
    }
    fprintf(stderr, "%s CASE\n", argv[0]);
    return 2;
}

#endif
