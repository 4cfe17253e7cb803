/* What the test module does, by number of call. */
#ifndef SMALL_CALLS_H
#define SMALL_CALLS_H

#include <stdint.h>

#define SMALL_WORDS   (1u << 16)
#define SMALL_BALLAST (1u << 17)
#define SMALL_UNKNOWN (-77)
#define SMALL_SECRET  0x5ec2e75ec2e75ec2ull

enum {
    SMALL_ADD,     /* the sum of all five */
    SMALL_STORE,   /* word[a0] = a1; -1: no such word */
    SMALL_LOAD,    /* word[a0] */
    SMALL_KICK,    /* dune_module_kick(a0, a1) */
    SMALL_SPIN,    /* a0 turns of a loop (a million at most), between `begun` and `ended` */
    SMALL_VECTORS, /* leaves the secret in all vector registers (a0: AVX's too), MXCSR changed */
    SMALL_BALLAST_WORD, /* a0 of a table of constants */
    SMALL_HARMLESS, /* what follows may end the process */
    SMALL_PEEK = SMALL_HARMLESS, /* what lies at address a0 */
    SMALL_POKE,    /* a1 to address a0 */
    SMALL_TRAP,    /* an assertion fails */
    SMALL_DEEP,    /* uses up the stack */
    SMALL_TRIPLE,  /* no exception can be delivered any more, and then there is one */
    SMALL_CALLS,
};

/* The module's context, in the data windows. */
struct small {
    uint64_t calls, begun, ended;
    uint64_t word[SMALL_WORDS];
};

#endif
