/* Pages of 1 MiB, each cut into chunks of one class's size. */
#include "apps/memcached/txn.h"

bool ix_mc_classes_make(struct ix_mc *mc)
{
    const struct ix_mc_config *cfg = &mc->config;
    uint64_t bytes = sizeof(struct ix_mc_item) + cfg->chunk_min_bytes;
    uint32_t n = 0;
    while (n + 2 < IX_MC_CLASSES_MAX && bytes * cfg->growth_percent / 100 < cfg->chunk_max_bytes) {
        bytes = (bytes + 7) & ~7ull;
        mc->cls[++n].chunk_bytes = (uint32_t)bytes;
        bytes = bytes * cfg->growth_percent / 100;
    }
    mc->cls[++n].chunk_bytes = cfg->chunk_max_bytes;
    mc->classes = mc->largest_class = n;
    for (uint32_t i = 1; i <= n; i++)
        mc->cls[i].per_page = IX_MC_PAGE_BYTES / mc->cls[i].chunk_bytes;
    return n > 1;
}

uint32_t ix_mc_class_of(const struct ix_mc *mc, uint64_t bytes)
{
    uint32_t low = 1, high = mc->classes;
    if (bytes > mc->cls[high].chunk_bytes)
        return 0;
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if (bytes <= mc->cls[middle].chunk_bytes)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

uint8_t *ix_mc_page_class(const struct ix_mc *mc, uint32_t page)
{
    return (uint8_t *)ix_mc_inside(mc, mc->pages_at) + page;
}

uint32_t ix_mc_page_of(const struct ix_mc *mc, const struct ix_mc_item *chunk)
{
    return (uint32_t)(((uintptr_t)chunk - (uintptr_t)mc - mc->area_at) / IX_MC_PAGE_BYTES);
}

struct ix_mc_item *ix_mc_chunk_at(const struct ix_mc *mc, uint32_t page, uint32_t cls,
                                  uint32_t chunk)
{
    return ix_mc_inside(mc, mc->area_at + (uint64_t)page * IX_MC_PAGE_BYTES +
                                (uint64_t)chunk * mc->cls[cls].chunk_bytes);
}

/* Pages below the limit go to who asks; beyond it each class may have its first one, or values of
 * its size could never be stored. */
static bool take_page(struct ix_mc_use *use, struct ix_mc_class *cls)
{
    struct ix_mc *mc = use->mc;
    uint32_t *freed = ix_mc_inside(mc, mc->free_pages_at);
    bool found = true;
    uint32_t page = 0;
    ix_mc_lock(use, &mc->pages_lock);
    uint32_t used = mc->pages_made - mc->pages_free;
    if (used >= mc->limit_pages && cls->pages) {
        found = false;
    } else if (mc->pages_free) {
        page = freed[mc->pages_free - 1];
        IX_MC_SET(use, mc->pages_free, mc->pages_free - 1);
    } else if (mc->pages_made < mc->pages_max) {
        page = mc->pages_made;
        IX_MC_SET(use, mc->pages_made, page + 1);
    } else {
        found = false;
    }
    if (found) {
        uint32_t number = (uint32_t)(cls - mc->cls);
        IX_MC_SET(use, *ix_mc_page_class(mc, page), number);
        IX_MC_SET(use, cls->pages, cls->pages + 1);
        IX_MC_SET(use, cls->carve_ref, ix_mc_ref(mc, ix_mc_chunk_at(mc, page, number, 0)));
        IX_MC_SET(use, cls->carve_left, cls->per_page);
    }
    return found; /* the lock stays until the transaction ends */
}

uint32_t ix_mc_chunk_take(struct ix_mc_use *use, struct ix_mc_class *cls)
{
    struct ix_mc *mc = use->mc;
    uint32_t ref = cls->free_head;
    if (ref) {
        IX_MC_SET(use, cls->free_head, ix_mc_at(mc, ref)->chain);
        IX_MC_SET(use, cls->free_count, cls->free_count - 1);
    } else if (cls->kept_head) {
        ref = cls->kept_head;
        IX_MC_SET(use, cls->kept_head, ix_mc_at(mc, ref)->chain);
        IX_MC_SET(use, cls->kept_count, cls->kept_count - 1);
    } else {
        if (!cls->carve_left && !take_page(use, cls))
            return 0;
        ref = cls->carve_ref;
        IX_MC_SET(use, cls->carve_ref, ref + (cls->chunk_bytes >> IX_MC_REF_SHIFT));
        IX_MC_SET(use, cls->carve_left, cls->carve_left - 1);
    }
    IX_MC_SET(use, cls->used_chunks, cls->used_chunks + 1);
    struct ix_mc_item *chunk = ix_mc_at(mc, ref);
    IX_MC_SET(use, chunk->cls, cls - mc->cls);
    return ref;
}

void ix_mc_chunk_put(struct ix_mc_use *use, struct ix_mc_class *cls, struct ix_mc_item *chunk)
{
    const struct ix_mc *mc = use->mc;
    IX_MC_SET(use, cls->used_chunks, cls->used_chunks - 1);
    if (__builtin_expect(mc->move_page != 0, 0) && mc->move_phase != IX_MC_PUT_BACK &&
        ix_mc_page_of(mc, chunk) == mc->move_page - 1) { /* its page is being emptied */
        IX_MC_SET(use, chunk->state, IX_MC_CAPTURED);
        IX_MC_SET(use, cls->captured, cls->captured + 1);
        return;
    }
    IX_MC_SET(use, chunk->state, IX_MC_FREE);
    IX_MC_SET(use, chunk->chain, cls->free_head);
    IX_MC_SET(use, cls->free_head, ix_mc_ref(mc, chunk));
    IX_MC_SET(use, cls->free_count, cls->free_count + 1);
}

bool ix_mc_set_limit(struct ix_mc_use *use, uint64_t limit_bytes)
{
    struct ix_mc *mc = use->mc;
    uint64_t pages = limit_bytes / IX_MC_PAGE_BYTES;
    if (pages + mc->classes > mc->pages_max) /* addresses were set aside at the start */
        return false;
    __atomic_store_n(&mc->limit_pages, pages, __ATOMIC_RELAXED);
    return true;
}
