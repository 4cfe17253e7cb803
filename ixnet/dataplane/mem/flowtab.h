/* The flow table: from a connection's addresses to its index.
 *
 * Buckets of one cache line hold eight (tag, index) pairs; a bucket that is full chains to spare
 * buckets. A tag is 16 bits of the keyed hash, so a lookup reads one bucket line and, nearly
 * always, just the flow it is looking for. Sized at creation for a load of at most half, so cost
 * does not grow with the number of flows; whatever the hashes, max_flows fit (proof in flowtab.c).
 *
 * The table does not see flows: the caller compares. Lookup iterates over candidates.
 */
#ifndef IX_MEM_FLOWTAB_H
#define IX_MEM_FLOWTAB_H

#include "base/limits.h"
#include "base/types.h"

enum { IX_FLOWTAB_WAYS = 8 };

struct ix_flow_bucket {
    uint16_t tag[IX_FLOWTAB_WAYS]; /* 0: empty; the ways in use are the first */
    uint32_t flow[IX_FLOWTAB_WAYS];
    uint32_t next; /* the spare bucket that goes on, or IX_NONE */
    uint32_t pad[3];
} IX_ALIGNED(IX_CACHE_LINE);
IX_STATIC_ASSERT(sizeof(struct ix_flow_bucket) == 64, "one line a bucket");

struct ix_flowtab {
    struct ix_flow_bucket *buckets; /* [bucket_count + spare_count] */
    uint32_t bucket_mask;           /* bucket_count - 1, a power of two */
    uint32_t spare_free;            /* free list of spare buckets, or IX_NONE */
    uint32_t spare_count;           /* spare buckets, in use or free */
    uint32_t flows;                 /* entries now */
};

/* Buckets and spares for `max_flows` flows, and their number of bytes. */
size_t ix_flowtab_bytes(uint32_t max_flows);
/* memory: ix_flowtab_bytes(max_flows) bytes, cache-line aligned. */
void ix_flowtab_init(struct ix_flowtab *t, void *memory, uint32_t max_flows);
/* Adds a flow (not IX_NONE) that is not in the table. -IX_ENOSPC: no spare bucket is left, which
 * cannot happen below max_flows. */
IX_MUST_CHECK int ix_flowtab_add(struct ix_flowtab *t, uint64_t hash, uint32_t flow);
/* Removes it; asserts that it is there. Entries of its chain may change places, so an iteration
 * that is under way must not go on. */
void ix_flowtab_del(struct ix_flowtab *t, uint64_t hash, uint32_t flow);

/* Iterator over the candidates for `hash`:
 *     struct ix_flow_iter it = ix_flowtab_iter(t, hash);
 *     while ((flow = ix_flowtab_next(t, &it)) != IX_NONE) if (equal(flow)) ...
 */
struct ix_flow_iter {
    uint32_t bucket; /* the next one to look into */
    uint32_t ways;   /* those of `flow` that are left: a bit for each byte of their tags */
    const uint32_t *flow;
    uint16_t tag;
};

static inline uint16_t ix_flowtab_tag(uint64_t hash)
{
    uint16_t tag = (uint16_t)(hash >> 48);
    return tag ? tag : 1;
}
static inline struct ix_flow_iter ix_flowtab_iter(const struct ix_flowtab *t, uint64_t hash)
{
    return (struct ix_flow_iter){.bucket = (uint32_t)hash & t->bucket_mask,
                                 .tag = ix_flowtab_tag(hash)};
}
/* The ways of a bucket that have this tag, as ix_flow_iter.ways has them. */
static inline uint32_t ix_flowtab_ways(const struct ix_flow_bucket *b, uint16_t tag)
{
    typedef uint16_t tags __attribute__((vector_size(16)));
    typedef char bytes __attribute__((vector_size(16)));
    tags have, want = (tags){0} + tag;
    __builtin_memcpy(&have, b->tag, sizeof have);
    return (uint32_t)__builtin_ia32_pmovmskb128((bytes)(have == want));
}
static inline uint32_t ix_flowtab_next(const struct ix_flowtab *t, struct ix_flow_iter *it)
{
    while (it->ways == 0) {
        if (it->bucket == IX_NONE)
            return IX_NONE;
        const struct ix_flow_bucket *b = &t->buckets[it->bucket];
        it->ways = ix_flowtab_ways(b, it->tag);
        it->flow = b->flow;
        it->bucket = b->next;
    }
    uint32_t bit = (uint32_t)__builtin_ctz(it->ways);
    it->ways &= it->ways - 1; /* both bits of a tag */
    it->ways &= it->ways - 1;
    return it->flow[bit / 2];
}

/* What lookups cost: a walk over the whole table, for tests and diagnosis. */
struct ix_flowtab_survey {
    uint64_t hit_lines; /* bucket lines read if each flow is looked up once */
    uint32_t deepest;   /* buckets in the longest chain */
    uint32_t spares;    /* spare buckets in use */
};
struct ix_flowtab_survey ix_flowtab_survey(const struct ix_flowtab *t);

/* Invariants: chains full up to their last bucket, each spare in one place, the count right. */
const char *ix_flowtab_check(const struct ix_flowtab *t);

#endif
