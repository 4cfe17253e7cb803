/* Programs that run a case bare or in ring 3, for the same output: PROGRAM bare|dune CASE. */
#ifndef BOTH_H
#define BOTH_H

#include "dune.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct both_case {
    const char *name;
    void (*run)(void);
};

/* Says what is wrong and where, and ends the process: in a child, too. */
#define CHECK(condition) \
    do { \
        if (!(condition)) { \
            dprintf(1, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
            _exit(99); \
        } \
    } while (0)

static inline void both_enter(const char *how)
{
    struct dune_config config = {.flags = DUNE_SEALED | DUNE_SKIP_SELF_TEST};

    if (strcmp(how, "bare") == 0)
        return;
    if (getenv("DUNE_TEST_NO_PKEY"))
        config.flags |= DUNE_NO_PKEY;
    if (dune_init(&config) != 0 || dune_enter_user() != 0) {
        fprintf(stderr, "%s\n", dune_error());
        exit(98);
    }
}

static inline int both_main(int argc, char **argv, const struct both_case *cases)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc >= 3) {
        for (; cases->name; cases++) {
            if (strcmp(cases->name, argv[2]) != 0)
                continue;
            both_enter(argv[1]);
            cases->run();
            return 0;
        }
    }
    fprintf(stderr, "%s bare|dune CASE\n", argv[0]);
    return 2;
}

#endif
