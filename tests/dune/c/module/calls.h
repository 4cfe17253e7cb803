/* What the test module does, by number of call. */
#ifndef SMALL_CALLS_H
#define SMALL_CALLS_H

#include <stdint.h>

#define SMALL_WORDS   (1u << 16)
#define SMALL_UNKNOWN (-77)

enum {
    SMALL_ADD,   /* the sum of all five */
    SMALL_STORE, /* word[a0] = a1; -1: no such word */
    SMALL_LOAD,  /* word[a0] */
    SMALL_KICK,  /* dune_module_kick(a0, a1) */
    SMALL_CALLS,
};

/* The module's context, in the data windows. */
struct small {
    uint64_t calls;
    uint64_t word[SMALL_WORDS];
};

#endif
