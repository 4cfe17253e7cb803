/* A module to test modules with: what each call does is in calls.h. */
#include "calls.h"

#include "module/module.h"

typedef long (*small_call)(struct small *small, const uint64_t arg[5]);

static long add(struct small *small, const uint64_t arg[5])
{
    small->calls++;
    return (long)(arg[0] + arg[1] + arg[2] + arg[3] + arg[4]);
}

static long store(struct small *small, const uint64_t arg[5])
{
    if (arg[0] >= SMALL_WORDS)
        return -1;
    small->word[arg[0]] = arg[1];
    return 0;
}

static long load(struct small *small, const uint64_t arg[5])
{
    return arg[0] < SMALL_WORDS ? (long)small->word[arg[0]] : -1;
}

static long kick(struct small *small, const uint64_t arg[5])
{
    small->calls++;
    return dune_module_kick((uint32_t)arg[0], (uint32_t)arg[1]);
}

/* Tables of addresses need relocation. */
static const small_call calls[SMALL_CALLS] = {
    [SMALL_ADD] = add,
    [SMALL_STORE] = store,
    [SMALL_LOAD] = load,
    [SMALL_KICK] = kick,
};

long dune_module_main(void *context, uint64_t n, const uint64_t arg[5])
{
    if (n >= SMALL_CALLS || !calls[n])
        return SMALL_UNKNOWN;
    return calls[n](context, arg);
}
