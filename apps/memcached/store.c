/* The store's memory: laid out, made, opened by a worker, checked. */
#include "apps/memcached/txn.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { MAGIC = 0x6d637831, HASH_POWER_MIN = 10, HASH_POWER_MAX = 32, ITEM_BYTES_USUAL = 128 };

void ix_mc_config_init(struct ix_mc_config *config)
{
    *config = (struct ix_mc_config){
        .limit_bytes = 64ull << 20,
        .item_max_bytes = 1 << 20,
        .chunk_min_bytes = 48,
        .growth_percent = 125,
        .chunk_max_bytes = IX_MC_PAGE_BYTES / 2,
        .conns_max = 1024,
        .workers = 1,
        .tcp_port = 11211,
        .backlog = 1024,
        .reqs_per_event = 20,
        .hot_percent = 20,
        .warm_percent = 40,
        .hot_factor_percent = 20,
        .warm_factor_percent = 200,
        .temp_ttl_s = -1,
        .segmented = 1,
        .lru_crawler = 1,
        .maintainer = 1,
        .maxconns_fast = 1,
        .automove = 1,
        .automove_percent = 80,
    };
}

static uint64_t place(uint64_t *end, uint64_t bytes)
{
    uint64_t at = (*end + 4095) & ~4095ull;
    *end = at + bytes;
    return at;
}

/* Fills in where everything lies; returns how many bytes it is. */
static uint64_t lay_out(struct ix_mc *mc)
{
    const struct ix_mc_config *cfg = &mc->config;
    uint32_t power = cfg->hash_power;
    if (!power)
        for (power = 16; (1ull << power) * ITEM_BYTES_USUAL < cfg->limit_bytes;)
            power++;
    mc->hash_power = power;
    mc->bucket_mask = (uint32_t)((1ull << power) - 1);
    mc->limit_pages = cfg->limit_bytes / IX_MC_PAGE_BYTES;
    /* Twice the limit: cache_memlimit may raise it. Memory that is not used costs nothing. */
    mc->pages_max = (uint32_t)(2 * mc->limit_pages + mc->classes);
    mc->holds_per_worker = cfg->conns_max + IX_MC_CONNS_SPARE + IX_MC_SPARE_HOLDS;
    uint64_t end = sizeof *mc;
    mc->workers_at = place(&end, cfg->workers * sizeof(struct ix_mc_worker));
    mc->holds_at = place(&end, (uint64_t)cfg->workers * mc->holds_per_worker * sizeof(uint32_t));
    mc->pages_at = place(&end, mc->pages_max);
    mc->free_pages_at = place(&end, mc->pages_max * sizeof(uint32_t));
    mc->rings_at = place(&end, (uint64_t)cfg->workers * IX_MC_RING_BYTES);
    mc->buckets_at = place(&end, (1ull << power) * sizeof(struct ix_mc_bucket));
    mc->area_at = place(&end, (uint64_t)mc->pages_max * IX_MC_PAGE_BYTES);
    return (end + (2u << 20) - 1) & ~((2ull << 20) - 1);
}

static const char *refuse(const struct ix_mc_config *c)
{
    if (c->limit_bytes < 1 << 20 || c->limit_bytes > 15ull << 30)
        return "the memory limit (-m) must be from 1 to 15360 megabytes";
    if (c->item_max_bytes < 1024 || c->item_max_bytes > c->limit_bytes / 2 ||
        c->item_max_bytes > 1u << 30)
        return "the item size (-I) must be from 1k to 1024m, and at most half of -m";
    if (c->growth_percent <= 100 || c->growth_percent > 10000)
        return "the growth factor (-f) must be above 1 and at most 100";
    if (c->chunk_max_bytes % 8 || c->chunk_max_bytes < 1024 ||
        c->chunk_max_bytes > IX_MC_PAGE_BYTES)
        return "slab_chunk_max must be from 1k to 1m, in steps of 8 bytes";
    if (c->chunk_min_bytes < 1 || c->chunk_min_bytes > c->chunk_max_bytes / 2)
        return "the smallest chunk (-n) must be from 1 byte to half of the largest";
    if (c->workers < 1 || c->workers > IX_MC_WORKERS_MAX)
        return "there may be 1 to 64 workers (-t)";
    if (c->conns_max < 1 || c->conns_max > 1u << 22)
        return "connections (-c) must be from 1 to 4194304";
    if (c->hash_power && (c->hash_power < HASH_POWER_MIN || c->hash_power > HASH_POWER_MAX))
        return "hashpower must be from 10 to 32";
    return NULL;
}

struct ix_mc *ix_mc_new(const struct ix_mc_config *config, char *why, size_t why_bytes)
{
    static struct ix_mc plan; /* too large for some stacks */
    const char *wrong = refuse(config);
    memset(&plan, 0, sizeof plan);
    plan.config = *config;
    if (!wrong && !ix_mc_classes_make(&plan))
        wrong = "with -n, -f and slab_chunk_max like these there are no slab classes";
    if (wrong) {
        snprintf(why, why_bytes, "%s", wrong);
        return NULL;
    }
    uint64_t bytes = lay_out(&plan);
    struct ix_mc *mc = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                            MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mc == MAP_FAILED) {
        snprintf(why, why_bytes, "no %llu MiB of addresses: %s",
                 (unsigned long long)(bytes >> 20), strerror(errno));
        return NULL;
    }
    *mc = plan;
    mc->magic = MAGIC;
    mc->map_bytes = bytes;
    mc->pid = (uint64_t)getpid();
    mc->start_ns = config->now_ns;
    mc->start_wall_s = config->wall_s;
    if (config->large_pages) /* where the kernel likes; it is only faster */
        (void)madvise(mc, bytes, MADV_HUGEPAGE);
    return mc;
}

void ix_mc_free(struct ix_mc *mc)
{
    if (mc)
        munmap(mc, mc->map_bytes);
}

void ix_mc_open(struct ix_mc_use *use, struct ix_mc *mc, uint32_t worker)
{
    *use = (struct ix_mc_use){
        .mc = mc,
        .log = (struct ix_mc_worker *)ix_mc_inside(mc, mc->workers_at) + worker,
        .holds = (uint32_t *)ix_mc_inside(mc, mc->holds_at) +
                 (uint64_t)worker * mc->holds_per_worker,
        .buckets = ix_mc_inside(mc, mc->buckets_at),
        .number = worker + 1,
        .now_s = IX_MC_FIRST_SECOND,
    };
    use->counts = &use->log->counts;
}

void ix_mc_set_time(struct ix_mc_use *use, uint64_t now_ns)
{
    use->now_ns = now_ns;
    uint64_t ran_ns = now_ns > use->mc->start_ns ? now_ns - use->mc->start_ns : 0;
    use->now_s = (uint32_t)(ran_ns / 1000000000) + IX_MC_FIRST_SECOND;
}

uint32_t ix_mc_expiry(const struct ix_mc_use *use, int64_t exptime)
{
    if (exptime == 0)
        return 0;
    if (exptime < 0)
        return 1;
    if (exptime <= IX_MC_MONTH_S)
        return (uint32_t)exptime + use->now_s;
    int64_t zero = (int64_t)use->mc->start_wall_s - IX_MC_FIRST_SECOND;
    return exptime <= zero ? 1 : (uint32_t)(exptime - zero);
}

uint64_t ix_mc_new_cas(struct ix_mc_use *use)
{
    if (use->mc->config.no_cas)
        return 0;
    return __atomic_add_fetch(&use->mc->cas_next, 1, __ATOMIC_RELAXED);
}

uint64_t ix_mc_items(const struct ix_mc *mc)
{
    uint64_t n = 0;
    for (uint32_t i = 1; i <= mc->classes; i++)
        for (uint32_t s = 0; s < IX_MC_SEGMENTS; s++)
            n += mc->cls[i].count[s];
    return n;
}

uint64_t ix_mc_bytes(const struct ix_mc *mc)
{
    uint64_t n = 0;
    for (uint32_t i = 1; i <= mc->classes; i++)
        for (uint32_t s = 0; s < IX_MC_SEGMENTS; s++)
            n += mc->cls[i].bytes[s];
    return n;
}

/* ---- invariants --------------------------------------------------------------- */

static const char *check_lists(struct ix_mc *mc, const struct ix_mc_class *cls, uint64_t *linked)
{
    for (uint32_t s = 0; s < IX_MC_SEGMENTS; s++) {
        uint32_t n = 0, before = 0;
        uint64_t bytes = 0;
        for (uint32_t ref = cls->head[s]; ref; before = ref, ref = ix_mc_at(mc, ref)->next) {
            struct ix_mc_item *item = ix_mc_at(mc, ref);
            if (item->state != IX_MC_LINKED || item->segment != s || item->cls != cls - mc->cls)
                return "an item is in a list that isn't its own";
            if (item->prev != before)
                return "a list's links don't fit";
            bytes += ix_mc_item_bytes(item->nkey, item->nbytes);
            if (++n > cls->count[s])
                return "a list is longer than its count";
        }
        if (n != cls->count[s] || bytes != cls->bytes[s] || before != cls->tail[s])
            return "a list is not as its count, bytes or end say";
        *linked += n;
    }
    return NULL;
}

static const char *check_table(struct ix_mc *mc, uint64_t linked)
{
    const struct ix_mc_bucket *buckets = ix_mc_inside(mc, mc->buckets_at);
    uint64_t found = 0;
    for (uint64_t i = 0; i <= mc->bucket_mask; i++) {
        if (buckets[i].lock)
            return "a bucket is locked";
        for (uint32_t ref = buckets[i].head; ref; ref = ix_mc_at(mc, ref)->chain) {
            struct ix_mc_item *item = ix_mc_at(mc, ref);
            if (item->state != IX_MC_LINKED || (item->hash & mc->bucket_mask) != i)
                return "an item is in a bucket that isn't its own";
            if (item->hash != ix_mc_hash(mc, ix_mc_key(item), item->nkey))
                return "an item's hash isn't its key's";
            if (++found > linked)
                return "a bucket has an item that no list has";
        }
    }
    return found == linked ? NULL : "a list has an item that no bucket has";
}

/* Who holds what: each item that is not linked or free has a holder, each reader is counted. */
static const char *check_holds(struct ix_mc *mc)
{
    const uint32_t *holds = ix_mc_inside(mc, mc->holds_at);
    int64_t writers = 0, readers = 0, parts = 0;
    for (uint64_t i = 0; i < (uint64_t)mc->config.workers * mc->holds_per_worker; i++) {
        uint8_t state = holds[i] ? ix_mc_at(mc, holds[i])->state : IX_MC_FREE;
        writers += state == IX_MC_FILL || state == IX_MC_FREEING;
        readers += state == IX_MC_LINKED || state == IX_MC_GONE;
        if (holds[i] && (state == IX_MC_FREE || state == IX_MC_PART))
            return "what is held is no item";
    }
    for (uint32_t page = 0; page < mc->pages_made; page++) {
        uint32_t number = *ix_mc_page_class(mc, page);
        for (uint32_t i = 0; number && i < mc->cls[number].per_page; i++) {
            struct ix_mc_item *item = ix_mc_chunk_at(mc, page, number, i);
            bool shown = item->state == IX_MC_LINKED || item->state == IX_MC_GONE;
            writers -= item->state == IX_MC_FILL || item->state == IX_MC_FREEING;
            readers -= shown ? item->refs : 0;
            parts -= item->state == IX_MC_PART;
            if (item->state == IX_MC_GONE && !item->refs)
                return "an item is neither linked nor held";
            if (shown || item->state == IX_MC_FILL || item->state == IX_MC_FREEING)
                parts += ix_mc_parts(mc, item);
        }
    }
    if (writers || readers)
        return "an item is held by nobody, or by more than it counts";
    return parts ? "a part belongs to no item" : NULL;
}

static void count_chunk(const struct ix_mc_item *chunk, uint32_t *used, uint32_t *captured)
{
    *captured += chunk->state == IX_MC_CAPTURED;
    *used += chunk->state != IX_MC_FREE && chunk->state != IX_MC_CAPTURED;
}

/* Every chunk is in one place: free, captured, never used, or in use as its state says. */
static const char *check_chunks(struct ix_mc *mc)
{
    uint32_t used[IX_MC_CLASSES_MAX] = {0}, captured[IX_MC_CLASSES_MAX] = {0};
    for (uint32_t page = 0; page < mc->pages_made; page++) {
        uint32_t number = *ix_mc_page_class(mc, page);
        for (uint32_t i = 0; number && i < mc->cls[number].per_page; i++)
            count_chunk(ix_mc_chunk_at(mc, page, number, i), &used[number], &captured[number]);
    }
    for (uint32_t n = 1; n <= mc->classes; n++) {
        const struct ix_mc_class *cls = &mc->cls[n];
        uint32_t listed = 0;
        for (uint32_t ref = cls->free_head; ref; ref = ix_mc_at(mc, ref)->chain) {
            if (ix_mc_at(mc, ref)->state != IX_MC_FREE || ++listed > cls->free_count)
                return "a free list holds what isn't free, or a ring";
        }
        for (uint32_t ref = cls->kept_head; ref; ref = ix_mc_at(mc, ref)->chain) {
            if (ix_mc_at(mc, ref)->state != IX_MC_FREE ||
                ++listed > cls->free_count + cls->kept_count)
                return "a list of kept chunks holds what isn't free, or a ring";
        }
        if (listed != cls->free_count + cls->kept_count || used[n] != cls->used_chunks ||
            captured[n] != cls->captured)
            return "chunks are not as their counts say";
        if ((uint64_t)cls->pages * cls->per_page != (uint64_t)cls->used_chunks + cls->free_count +
                                                        cls->kept_count + cls->captured +
                                                        cls->carve_left)
            return "a chunk is lost";
        if (cls->lock)
            return "a class is locked";
    }
    return NULL;
}

const char *ix_mc_check(struct ix_mc *mc)
{
    uint64_t linked = 0;
    const char *wrong = NULL;
    for (uint32_t i = 1; i <= mc->classes && !wrong; i++)
        wrong = check_lists(mc, &mc->cls[i], &linked);
    if (!wrong)
        wrong = check_table(mc, linked);
    if (!wrong)
        wrong = check_chunks(mc);
    if (!wrong)
        wrong = check_holds(mc);
    if (!wrong && (mc->pages_lock || mc->move_lock))
        wrong = "the pages are locked";
    return wrong;
}
