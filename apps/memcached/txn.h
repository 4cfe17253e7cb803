/* Locks that a dead process doesn't keep, and words that go back to what they were.
 *
 * x86 keeps the order of stores, so it is enough that the compiler does: an entry of the log is
 * complete before it counts, and counts before the word changes.
 */
#ifndef IX_MC_TXN_H
#define IX_MC_TXN_H

#include "apps/memcached/store.h"

#include <sched.h>

#define IX_MC_ORDER() __asm__ volatile("" ::: "memory")

/* What a waiting worker does after so many looks: the holder may share its core. */
enum { IX_MC_SPINS = 2000 };

static inline bool ix_mc_trylock(struct ix_mc_use *use, uint32_t *lock)
{
    struct ix_mc_worker *log = use->log;
    uint32_t expected = 0;
    if (__atomic_load_n(lock, __ATOMIC_RELAXED))
        return false;
    /* Noted first: a lock that is noted and not ours is harmless. */
    log->lock_at[log->locks] = (uintptr_t)lock;
    IX_MC_ORDER();
    log->locks++;
    IX_MC_ORDER();
    if (__atomic_compare_exchange_n(lock, &expected, use->number, false, __ATOMIC_ACQUIRE,
                                    __ATOMIC_RELAXED))
        return true;
    log->locks--;
    return false;
}

static inline void ix_mc_lock(struct ix_mc_use *use, uint32_t *lock)
{
    for (uint32_t i = 0; !ix_mc_trylock(use, lock); i++) {
        __builtin_ia32_pause();
        if (i >= IX_MC_SPINS)
            sched_yield();
    }
}

/* Lets go of the lock that was taken last. Words that were changed under it must be committed. */
static inline void ix_mc_unlock(struct ix_mc_use *use)
{
    struct ix_mc_worker *log = use->log;
    uint32_t *lock = (uint32_t *)(uintptr_t)log->lock_at[log->locks - 1];
    __atomic_store_n(lock, 0, __ATOMIC_RELEASE);
    IX_MC_ORDER();
    log->locks--;
    IX_MC_ORDER();
}

/* Lets go of one that was not taken last. */
static inline void ix_mc_unlock_early(struct ix_mc_use *use, uint32_t index)
{
    struct ix_mc_worker *log = use->log;
    __atomic_store_n((uint32_t *)(uintptr_t)log->lock_at[index], 0, __ATOMIC_RELEASE);
    IX_MC_ORDER();
    log->lock_at[index] = log->lock_at[log->locks - 1]; /* twice there is harmless */
    IX_MC_ORDER();
    log->locks--;
    IX_MC_ORDER();
}

/* Lets go of all but the `keep` locks that were taken first. */
static inline void ix_mc_unlock_to(struct ix_mc_use *use, uint32_t keep)
{
    while (use->log->locks > keep)
        ix_mc_unlock(use);
}

static inline void ix_mc_note(struct ix_mc_use *use, void *at, uint64_t old, uint32_t bytes)
{
    struct ix_mc_worker *log = use->log;
    if (__builtin_expect(log->words == IX_MC_LOG_WORDS, 0))
        __builtin_trap();
    log->word[log->words] = (struct ix_mc_log_word){(uintptr_t)at, old, bytes};
    IX_MC_ORDER();
    log->words++;
    IX_MC_ORDER();
}

/* Changes a field so that it can be taken back. */
#define IX_MC_SET(use, field, value)                                                               \
    do {                                                                                           \
        __typeof__(&(field)) at_ = &(field);                                                       \
        ix_mc_note(use, at_, *at_, sizeof *at_);                                                   \
        *at_ = (__typeof__(*at_))(value);                                                          \
        IX_MC_ORDER();                                                                             \
    } while (0)

/* From here on the changes stay. */
static inline void ix_mc_commit(struct ix_mc_use *use)
{
    IX_MC_ORDER();
    use->log->words = 0;
    IX_MC_ORDER();
}

#endif
