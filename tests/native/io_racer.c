/* See io_racer.h. */
#include "io_racer.h"

#include <pthread.h>
#include <stdlib.h>

struct ix_racer {
    pthread_t thread;
    volatile uint64_t *words;
    size_t n_words;
    uint64_t *pool;
    uint32_t n_pool;
    uint64_t random, written;
    uint32_t stop;
};

static uint64_t next_random(struct ix_racer *r)
{
    r->random ^= r->random << 13;
    r->random ^= r->random >> 7;
    r->random ^= r->random << 17;
    return r->random;
}

static void *race(void *argument)
{
    struct ix_racer *r = argument;
    while (!__atomic_load_n(&r->stop, __ATOMIC_RELAXED)) {
        uint64_t word = next_random(r), at = next_random(r) % r->n_words;
        if (r->n_pool && next_random(r) % 8)
            word = r->pool[next_random(r) % r->n_pool];
        r->words[at] = word;
        r->written++;
    }
    return NULL;
}

struct ix_racer *ix_racer_start(void *memory, size_t bytes, const uint64_t *pool, uint32_t n_pool,
                                uint64_t seed)
{
    struct ix_racer *r = calloc(1, sizeof *r);
    r->words = memory;
    r->n_words = bytes / 8;
    r->pool = calloc(n_pool + 1, 8);
    for (uint32_t i = 0; i < n_pool; i++)
        r->pool[i] = pool[i];
    r->n_pool = n_pool;
    r->random = seed | 1;
    pthread_create(&r->thread, NULL, race, r);
    return r;
}

uint64_t ix_racer_stop(struct ix_racer *r)
{
    __atomic_store_n(&r->stop, 1, __ATOMIC_RELAXED);
    pthread_join(r->thread, NULL);
    uint64_t written = r->written;
    free(r->pool);
    free(r);
    return written;
}
