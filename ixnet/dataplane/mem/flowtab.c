/* The flow table.
 *
 * Invariant: a chain is full up to its last bucket, whose entries are its first ways. Adding goes
 * to the end and deleting fills the hole with the chain's last entry, so a chain of k flows is
 * ceil(k / 8) buckets long, of which ceil(k / 8) - 1 = floor((k - 1) / 8) are spares.
 */
#include "mem/flowtab.h"

/* Two entries of room for every flow: a load of at most half. */
static uint32_t bucket_count(uint32_t max_flows)
{
    uint32_t count = 1;
    while (count * (IX_FLOWTAB_WAYS / 2) < max_flows)
        count *= 2;
    return count;
}

/* Enough, whatever the hashes: n flows in chains of k1 + k2 + ... = n use
 * sum floor((ki - 1) / 8) <= (n - 1) / 8 spares, the most when all hashes are equal. */
static uint32_t spare_count(uint32_t max_flows)
{
    return (max_flows + IX_FLOWTAB_WAYS - 1) / IX_FLOWTAB_WAYS;
}
IX_STATIC_ASSERT(IX_FLOWS_MAX <= UINT32_MAX / IX_FLOWTAB_WAYS, "bucket_count() must not overflow");

size_t ix_flowtab_bytes(uint32_t max_flows)
{
    IX_ASSERT(max_flows <= IX_FLOWS_MAX);
    return ((size_t)bucket_count(max_flows) + spare_count(max_flows)) *
           sizeof(struct ix_flow_bucket);
}

static void put_spare(struct ix_flowtab *t, uint32_t bucket)
{
    t->buckets[bucket].next = t->spare_free;
    t->spare_free = bucket;
}

void ix_flowtab_init(struct ix_flowtab *t, void *memory, uint32_t max_flows)
{
    IX_ASSERT(max_flows <= IX_FLOWS_MAX && (uintptr_t)memory % IX_CACHE_LINE == 0);
    uint32_t count = bucket_count(max_flows), spares = spare_count(max_flows);
    *t = (struct ix_flowtab){
        .buckets = memory,
        .bucket_mask = count - 1,
        .spare_free = IX_NONE,
        .spare_count = spares,
    };
    for (uint32_t i = 0; i < count + spares; i++)
        t->buckets[i] = (struct ix_flow_bucket){.next = IX_NONE};
    for (uint32_t i = count + spares; i > count; i--)
        put_spare(t, i - 1);
}

/* How many entries of a bucket are in use; they are its first. */
static uint32_t used_ways(const struct ix_flow_bucket *b)
{
    uint32_t used = 0;
    while (used < IX_FLOWTAB_WAYS && b->tag[used] != 0)
        used++;
    return used;
}

int ix_flowtab_add(struct ix_flowtab *t, uint64_t hash, uint32_t flow)
{
    IX_ASSERT(flow != IX_NONE);
    struct ix_flow_bucket *b = &t->buckets[(uint32_t)hash & t->bucket_mask];
    while (b->next != IX_NONE)
        b = &t->buckets[b->next];
    uint32_t way = used_ways(b);
    if (way == IX_FLOWTAB_WAYS) {
        uint32_t spare = t->spare_free;
        if (spare == IX_NONE)
            return -IX_ENOSPC;
        t->spare_free = t->buckets[spare].next;
        t->buckets[spare].next = IX_NONE;
        b->next = spare;
        b = &t->buckets[spare];
        way = 0;
    }
    b->tag[way] = ix_flowtab_tag(hash);
    b->flow[way] = flow;
    t->flows++;
    return 0;
}

void ix_flowtab_del(struct ix_flowtab *t, uint64_t hash, uint32_t flow)
{
    uint16_t tag = ix_flowtab_tag(hash);
    struct ix_flow_bucket *hole = NULL, *before = NULL;
    struct ix_flow_bucket *b = &t->buckets[(uint32_t)hash & t->bucket_mask];
    uint32_t hole_way = 0;
    for (;;) {
        for (uint32_t way = 0; way < IX_FLOWTAB_WAYS && !hole; way++) {
            if (b->tag[way] != tag || b->flow[way] != flow)
                continue;
            hole = b;
            hole_way = way;
        }
        if (b->next == IX_NONE)
            break;
        before = b;
        b = &t->buckets[b->next];
    }
    IX_ASSERT(hole != NULL);
    uint32_t last_way = used_ways(b) - 1;
    hole->tag[hole_way] = b->tag[last_way];
    hole->flow[hole_way] = b->flow[last_way];
    b->tag[last_way] = 0;
    t->flows--;
    if (last_way == 0 && before) {
        put_spare(t, before->next);
        before->next = IX_NONE;
    }
}

struct ix_flowtab_survey ix_flowtab_survey(const struct ix_flowtab *t)
{
    struct ix_flowtab_survey s = {0};
    for (uint32_t i = 0; i <= t->bucket_mask; i++) {
        uint32_t depth = 0;
        for (uint32_t b = i; b != IX_NONE; b = t->buckets[b].next) {
            uint32_t used = used_ways(&t->buckets[b]);
            depth++;
            s.hit_lines += (uint64_t)used * depth;
            s.spares += b > t->bucket_mask;
        }
        s.deepest = IX_MAX(s.deepest, depth);
    }
    return s;
}

/* Checks one chain; adds its flows and spares to the totals. */
static const char *check_chain(const struct ix_flowtab *t, uint32_t first, uint32_t *flows,
                               uint32_t *spares)
{
    for (uint32_t i = first; i != IX_NONE; i = t->buckets[i].next) {
        const struct ix_flow_bucket *b = &t->buckets[i];
        uint32_t used = used_ways(b);
        for (uint32_t way = used; way < IX_FLOWTAB_WAYS; way++)
            if (b->tag[way] != 0)
                return "flowtab: a bucket has a hole";
        if (b->next != IX_NONE && used < IX_FLOWTAB_WAYS)
            return "flowtab: a bucket before the last is not full";
        if (i != first && used == 0)
            return "flowtab: an empty spare is chained";
        if (b->next != IX_NONE &&
            (b->next <= t->bucket_mask || b->next - t->bucket_mask > t->spare_count))
            return "flowtab: a chain goes on outside the spares";
        if (b->next != IX_NONE && ++*spares > t->spare_count)
            return "flowtab: a spare is in use twice";
        *flows += used;
    }
    return NULL;
}

const char *ix_flowtab_check(const struct ix_flowtab *t)
{
    uint32_t flows = 0, spares = 0;
    for (uint32_t i = 0; i <= t->bucket_mask; i++) {
        const char *wrong = check_chain(t, i, &flows, &spares);
        if (wrong)
            return wrong;
    }
    for (uint32_t i = t->spare_free; i != IX_NONE; i = t->buckets[i].next) {
        if (i <= t->bucket_mask || i - t->bucket_mask > t->spare_count || ++spares > t->spare_count)
            return "flowtab: the spare list leads astray";
        if (used_ways(&t->buckets[i]) != 0)
            return "flowtab: a free spare holds flows";
    }
    if (spares != t->spare_count)
        return "flowtab: a spare is lost";
    return flows == t->flows ? NULL : "flowtab: the count of flows is wrong";
}
