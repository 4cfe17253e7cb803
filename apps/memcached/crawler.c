/* The walk over all memory, page by page and a little in each turn, that frees what has expired
 * wherever it stands in its list.
 *
 * It looks at chunks without a lock, so what it sees may be changing; only what it finds again in
 * its locked bucket is believed.
 */
#include "apps/memcached/txn.h"

enum {
    CRAWL_NS = 10000000,         /* between two turns */
    CRAWL_CHUNKS = 1000,         /* looked at in a turn */
    CRAWL_PAUSE_NS = 1000000000, /* between two walks */
};

bool ix_mc_is_linked(const struct ix_mc_use *use, const struct ix_mc_bucket *bucket,
                     const struct ix_mc_item *item)
{
    uint32_t wanted = ix_mc_ref(use->mc, item);
    for (uint32_t ref = bucket->head; ref; ref = ix_mc_at(use->mc, ref)->chain)
        if (ref == wanted)
            return true;
    return false;
}

static void look_at(struct ix_mc_use *use, struct ix_mc_item *item)
{
    struct ix_mc *mc = use->mc;
    if (__atomic_load_n(&item->state, __ATOMIC_RELAXED) != IX_MC_LINKED)
        return;
    mc->crawl_checked++;
    if (!ix_mc_is_dead(use, item))
        return;
    struct ix_mc_bucket *bucket =
        ix_mc_bucket(use, __atomic_load_n(&item->hash, __ATOMIC_RELAXED));
    if (!ix_mc_trylock(use, &bucket->lock))
        return;
    if (ix_mc_is_linked(use, bucket, item) && ix_mc_is_dead(use, item) && !item->refs) {
        mc->cls[item->cls].crawler_reclaimed++;
        mc->crawl_reclaimed++;
        ix_mc_unlink(use, item);
    }
    ix_mc_unlock(use);
}

bool ix_mc_crawl_start(struct ix_mc_use *use)
{
    struct ix_mc *mc = use->mc;
    uint32_t off = 0;
    if (!__atomic_compare_exchange_n(&mc->crawl_run, &off, 1, false, __ATOMIC_RELAXED,
                                     __ATOMIC_RELAXED))
        return false;
    mc->crawl_page = mc->crawl_chunk = 0;
    mc->crawl_started++;
    return true;
}

/* One turn at a time: who moves crawl_due_ns on has the walk's state for the next 10 ms. A worker
 * that dies in it leaves state from which the next one goes on. */
void ix_mc_crawl(struct ix_mc_use *use)
{
    struct ix_mc *mc = use->mc;
    uint64_t due = __atomic_load_n(&mc->crawl_due_ns, __ATOMIC_RELAXED);
    if (use->now_ns < due || !mc->config.lru_crawler ||
        !__atomic_compare_exchange_n(&mc->crawl_due_ns, &due, use->now_ns + CRAWL_NS, false,
                                     __ATOMIC_RELAXED, __ATOMIC_RELAXED))
        return;
    if (!mc->crawl_run && !ix_mc_crawl_start(use))
        return;
    uint32_t pages = __atomic_load_n(&mc->pages_made, __ATOMIC_ACQUIRE);
    for (uint32_t i = 0; i < CRAWL_CHUNKS; i++) {
        if (mc->crawl_page >= pages) {
            mc->crawl_run = 0;
            __atomic_store_n(&mc->crawl_due_ns, use->now_ns + CRAWL_PAUSE_NS, __ATOMIC_RELAXED);
            return;
        }
        uint8_t cls = *ix_mc_page_class(mc, mc->crawl_page);
        if (!cls || mc->crawl_chunk >= mc->cls[cls].per_page) {
            mc->crawl_page++;
            mc->crawl_chunk = 0;
            continue;
        }
        look_at(use, ix_mc_chunk_at(mc, mc->crawl_page, cls, mc->crawl_chunk++));
    }
}
