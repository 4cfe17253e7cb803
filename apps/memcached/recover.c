/* After a worker's death. */
#include "apps/memcached/txn.h"

#include <string.h>

static void put_back(const struct ix_mc_log_word *word)
{
    memcpy((void *)(uintptr_t)word->at, &word->old, word->bytes); /* little-endian */
    IX_MC_ORDER();
}

/* Words first: while the locks are kept nobody sees them. */
void ix_mc_recover(struct ix_mc *mc, uint32_t worker)
{
    struct ix_mc_use use;
    ix_mc_open(&use, mc, worker);
    struct ix_mc_worker *log = use.log;
    if (log->words || log->locks)
        __atomic_add_fetch(&mc->undone, 1, __ATOMIC_RELAXED);
    while (log->words) {
        put_back(&log->word[log->words - 1]);
        log->words--;
        IX_MC_ORDER();
    }
    while (log->locks) {
        uint32_t *lock = (uint32_t *)(uintptr_t)log->lock_at[log->locks - 1];
        uint32_t holder = use.number;
        __atomic_compare_exchange_n(lock, &holder, 0, false, __ATOMIC_RELEASE, __ATOMIC_RELAXED);
        log->locks--;
        IX_MC_ORDER();
    }
    for (uint32_t i = 0; i < mc->holds_per_worker; i++)
        ix_mc_drop(&use, i);
    log->curr_connections = log->watching = 0;
    ix_mc_watch_sum(mc);
    __atomic_add_fetch(&mc->recoveries, 1, __ATOMIC_RELAXED);
}
