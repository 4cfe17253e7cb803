/* Items: made, linked into the table, held, taken out, freed. */
#include "apps/memcached/txn.h"

#include <string.h>

/* Room in a chunked item's own chunk, behind the key, for where its parts begin. */
enum { PARTS_BYTES = 8, ALLOC_TRIES = 10 };

static uint32_t *parts_of(const struct ix_mc_item *item)
{
    return (uint32_t *)(((uintptr_t)ix_mc_value(item) + 3) & ~(uintptr_t)3);
}

static struct ix_mc_class *memory_class(const struct ix_mc *mc, const struct ix_mc_item *chunk)
{
    return (struct ix_mc_class *)&mc->cls[*ix_mc_page_class(mc, ix_mc_page_of(mc, chunk))];
}

uint32_t ix_mc_parts(const struct ix_mc *mc, const struct ix_mc_item *item)
{
    uint32_t n = 0;
    if (item->bits & IX_MC_CHUNKED)
        for (uint32_t ref = *parts_of(item); ref; ref = ix_mc_at(mc, ref)->chain)
            n++;
    return n;
}

bool ix_mc_has_part(const struct ix_mc *mc, const struct ix_mc_item *item,
                    const struct ix_mc_item *chunk)
{
    if (!(item->bits & IX_MC_CHUNKED))
        return false;
    uint32_t wanted = ix_mc_ref(mc, chunk);
    for (uint32_t ref = *parts_of(item); ref; ref = ix_mc_at(mc, ref)->chain)
        if (ref == wanted)
            return true;
    return false;
}

uint64_t ix_mc_item_bytes(uint32_t nkey, uint64_t nbytes)
{
    return sizeof(struct ix_mc_item) + nkey + nbytes;
}

bool ix_mc_size_ok(const struct ix_mc *mc, uint32_t nkey, uint64_t nbytes)
{
    return ix_mc_item_bytes(nkey, nbytes) <= mc->config.item_max_bytes;
}

/* ---- memory ------------------------------------------------------------------- */

/* A chunk of the class that becomes the hold's new item, or a part of it. */
static struct ix_mc_item *take_chunk(struct ix_mc_use *use, uint32_t number, uint32_t hold,
                                     struct ix_mc_item *whole)
{
    struct ix_mc *mc = use->mc;
    struct ix_mc_class *cls = &mc->cls[number];
    uint32_t keep = use->log->locks;
    for (uint32_t i = 0; i < ALLOC_TRIES; i++) {
        ix_mc_lock(use, &cls->lock);
        uint32_t ref = ix_mc_chunk_take(use, cls);
        struct ix_mc_item *chunk = ref ? ix_mc_at(mc, ref) : NULL;
        if (ref && whole) {
            IX_MC_SET(use, chunk->chain, *parts_of(whole));
            IX_MC_SET(use, chunk->prev, ix_mc_ref(mc, whole));
            IX_MC_SET(use, chunk->state, IX_MC_PART);
            IX_MC_SET(use, *parts_of(whole), ref);
        } else if (ref) {
            chunk->bits = 0; /* before the hold: a recovery looks at it */
            chunk->refs = 0;
            IX_MC_SET(use, chunk->state, IX_MC_FILL);
            IX_MC_SET(use, use->holds[hold], ref);
        } else if (i + 1 == ALLOC_TRIES || mc->config.no_eviction) {
            cls->outofmemory++;
        }
        ix_mc_commit(use);
        ix_mc_unlock_to(use, keep);
        if (ref)
            return chunk;
        if (mc->config.no_eviction || !ix_mc_evict(use, number))
            return NULL;
    }
    return NULL;
}

/* Frees what the hold has: parts one by one, so that no transaction is long. */
static void free_held(struct ix_mc_use *use, uint32_t hold)
{
    struct ix_mc *mc = use->mc;
    struct ix_mc_item *item = ix_mc_at(mc, use->holds[hold]);
    uint32_t keep = use->log->locks;
    while (item->bits & IX_MC_CHUNKED && *parts_of(item)) {
        struct ix_mc_item *part = ix_mc_at(mc, *parts_of(item));
        struct ix_mc_class *cls = memory_class(mc, part);
        ix_mc_lock(use, &cls->lock);
        IX_MC_SET(use, *parts_of(item), part->chain);
        ix_mc_chunk_put(use, cls, part);
        ix_mc_commit(use);
        ix_mc_unlock_to(use, keep);
    }
    struct ix_mc_class *cls = memory_class(mc, item);
    ix_mc_lock(use, &cls->lock);
    ix_mc_chunk_put(use, cls, item);
    IX_MC_SET(use, use->holds[hold], 0);
    ix_mc_commit(use);
    ix_mc_unlock_to(use, keep);
}

/* The last part first, so that each can be put before the others. */
static bool take_parts(struct ix_mc_use *use, uint32_t hold, struct ix_mc_item *item)
{
    struct ix_mc *mc = use->mc;
    uint32_t room = mc->cls[mc->largest_class].chunk_bytes - sizeof *item;
    uint32_t last = item->nbytes % room, left = item->nbytes;
    for (uint32_t bytes = last ? last : room; left; left -= bytes, bytes = room) {
        uint32_t number = ix_mc_class_of(mc, sizeof *item + bytes);
        struct ix_mc_item *part = take_chunk(use, number, hold, item);
        if (!part && number != mc->largest_class)
            part = take_chunk(use, mc->largest_class, hold, item);
        if (!part)
            return false;
        part->nbytes = bytes;
    }
    return true;
}

struct ix_mc_item *ix_mc_alloc(struct ix_mc_use *use, uint32_t hold, const uint8_t *key,
                               uint32_t nkey, uint32_t hash, uint32_t flags, uint32_t exptime,
                               uint32_t nbytes)
{
    struct ix_mc *mc = use->mc;
    uint64_t bytes = ix_mc_item_bytes(nkey, nbytes);
    bool chunked = bytes > mc->cls[mc->largest_class].chunk_bytes;
    if (!ix_mc_size_ok(mc, nkey, nbytes))
        return NULL;
    if (chunked)
        bytes = ix_mc_item_bytes(nkey, PARTS_BYTES);
    struct ix_mc_item *item = take_chunk(use, ix_mc_class_of(mc, bytes), hold, NULL);
    if (!item)
        return NULL;
    item->nkey = (uint8_t)nkey;
    memcpy(ix_mc_key(item), key, nkey);
    item->hash = hash;
    item->flags = flags;
    item->exptime = exptime;
    item->nbytes = nbytes;
    item->cas = 0;
    item->time = use->now_s;
    if (chunked) {
        *parts_of(item) = 0;
        item->cls = (uint8_t)mc->largest_class;
        IX_MC_ORDER(); /* a recovery frees parts only once they are said to be there */
        item->bits = IX_MC_CHUNKED;
        IX_MC_ORDER();
        if (!take_parts(use, hold, item)) {
            free_held(use, hold);
            return NULL;
        }
    }
    return item;
}

/* ---- the table ---------------------------------------------------------------- */

bool ix_mc_is_dead(const struct ix_mc_use *use, const struct ix_mc_item *item)
{
    if (item->exptime && item->exptime <= use->now_s)
        return true;
    uint32_t oldest = __atomic_load_n(&use->mc->oldest_live, __ATOMIC_RELAXED);
    if (!oldest || oldest > use->now_s)
        return false;
    uint64_t oldest_cas = __atomic_load_n(&use->mc->oldest_cas, __ATOMIC_RELAXED);
    return item->time <= oldest || (oldest_cas && item->cas && item->cas < oldest_cas);
}

struct ix_mc_item *ix_mc_find(struct ix_mc_use *use, const uint8_t *key, uint32_t nkey,
                              uint32_t hash)
{
    struct ix_mc *mc = use->mc;
    for (uint32_t ref = ix_mc_bucket(use, hash)->head; ref;) {
        struct ix_mc_item *item = ix_mc_at(mc, ref);
        if (item->hash != hash || item->nkey != nkey || memcmp(ix_mc_key(item), key, nkey)) {
            ref = item->chain;
            continue;
        }
        if (__builtin_expect(!ix_mc_is_dead(use, item), 1)) {
            if (ix_mc_watched(use, IX_MC_WATCH_FETCHERS))
                ix_mc_tell_get(use, key, nkey, item, "found");
            return item;
        }
        bool expired = item->exptime && item->exptime <= use->now_s;
        use->counts->get_expired += expired;
        use->counts->get_flushed += !expired;
        if (ix_mc_watched(use, IX_MC_WATCH_FETCHERS))
            ix_mc_tell_get(use, key, nkey, item, expired ? "expired" : "flushed");
        ix_mc_unlink(use, item);
        return NULL;
    }
    if (ix_mc_watched(use, IX_MC_WATCH_FETCHERS))
        ix_mc_tell_get(use, key, nkey, NULL, "not_found");
    return NULL;
}

/* The words of an item's way out; its bucket and class are locked. True: free_held(0) must follow,
 * when the class is not locked any more. */
static bool take_out(struct ix_mc_use *use, struct ix_mc_item *item)
{
    struct ix_mc *mc = use->mc;
    uint32_t *link = &ix_mc_bucket(use, item->hash)->head, ref = ix_mc_ref(mc, item);
    while (*link != ref)
        link = &ix_mc_at(mc, *link)->chain;
    IX_MC_SET(use, *link, item->chain);
    ix_mc_list_remove(use, item);
    if (item->refs) {
        IX_MC_SET(use, item->state, IX_MC_GONE);
        return false;
    }
    if (item->bits & IX_MC_CHUNKED) {
        IX_MC_SET(use, item->state, IX_MC_FREEING);
        IX_MC_SET(use, use->holds[0], ref);
        return true;
    }
    ix_mc_chunk_put(use, &mc->cls[item->cls], item);
    return false;
}

void ix_mc_unlink(struct ix_mc_use *use, struct ix_mc_item *item)
{
    uint32_t keep = use->log->locks;
    ix_mc_lock(use, &use->mc->cls[item->cls].lock);
    bool more = take_out(use, item);
    ix_mc_commit(use);
    ix_mc_unlock_to(use, keep);
    if (more)
        free_held(use, 0);
}

static uint32_t first_segment(const struct ix_mc_use *use, const struct ix_mc_item *item)
{
    const struct ix_mc_config *cfg = &use->mc->config;
    if (!cfg->segmented)
        return IX_MC_COLD;
    bool brief = cfg->temp_ttl_s >= 0 && item->exptime &&
                 item->exptime - use->now_s <= (uint32_t)cfg->temp_ttl_s;
    return brief ? IX_MC_TEMP : IX_MC_HOT;
}

/* Links the hold's item into its bucket and the segment's list, in place of `old` if that isn't
 * NULL. */
static void link_in(struct ix_mc_use *use, uint32_t hold, struct ix_mc_item *old, uint32_t segment,
                    uint32_t added)
{
    struct ix_mc *mc = use->mc;
    uint32_t ref = use->holds[hold], keep = use->log->locks;
    struct ix_mc_item *item = ix_mc_at(mc, ref);
    struct ix_mc_bucket *bucket = ix_mc_bucket(use, item->hash);
    uint32_t low = old && old->cls < item->cls ? old->cls : item->cls;
    uint32_t high = old && old->cls > item->cls ? old->cls : item->cls;
    ix_mc_lock(use, &mc->cls[low].lock);
    if (high != low)
        ix_mc_lock(use, &mc->cls[high].lock);
    bool more = old && take_out(use, old);
    IX_MC_SET(use, item->chain, bucket->head);
    IX_MC_SET(use, bucket->head, ref);
    IX_MC_SET(use, item->state, IX_MC_LINKED);
    ix_mc_list_add(use, item, segment);
    struct ix_mc_class *cls = &mc->cls[item->cls];
    IX_MC_SET(use, cls->total_items, cls->total_items + added);
    IX_MC_SET(use, use->holds[hold], 0);
    ix_mc_commit(use);
    ix_mc_unlock_to(use, keep);
    if (more)
        free_held(use, 0);
}

void ix_mc_link(struct ix_mc_use *use, uint32_t hold, struct ix_mc_item *old)
{
    struct ix_mc_item *item = ix_mc_at(use->mc, use->holds[hold]);
    item->time = use->now_s;
    item->cas = ix_mc_new_cas(use);
    link_in(use, hold, old, first_segment(use, item), 1);
}

void ix_mc_relink(struct ix_mc_use *use, uint32_t hold, struct ix_mc_item *old)
{
    struct ix_mc_item *item = ix_mc_at(use->mc, use->holds[hold]);
    item->time = old->time;
    item->cas = old->cas;
    item->bits |= old->bits & (uint8_t)~IX_MC_CHUNKED;
    link_in(use, hold, old, old->segment, 0);
}

/* ---- holds -------------------------------------------------------------------- */

bool ix_mc_hold(struct ix_mc_use *use, uint32_t hold, struct ix_mc_item *item)
{
    if (item->refs == UINT16_MAX)
        return false;
    IX_MC_SET(use, item->refs, item->refs + 1);
    IX_MC_SET(use, use->holds[hold], ix_mc_ref(use->mc, item));
    ix_mc_commit(use);
    return true;
}

void ix_mc_drop(struct ix_mc_use *use, uint32_t hold)
{
    uint32_t keep = use->log->locks;
    if (!use->holds[hold])
        return;
    struct ix_mc_item *item = ix_mc_at(use->mc, use->holds[hold]);
    if (item->state == IX_MC_FILL || item->state == IX_MC_FREEING) {
        free_held(use, hold);
        return;
    }
    ix_mc_lock(use, &ix_mc_bucket(use, item->hash)->lock);
    bool last = item->state == IX_MC_GONE && item->refs == 1;
    IX_MC_SET(use, item->refs, item->refs - 1);
    if (last)
        IX_MC_SET(use, item->state, IX_MC_FREEING);
    else
        IX_MC_SET(use, use->holds[hold], 0);
    ix_mc_commit(use);
    ix_mc_unlock_to(use, keep);
    if (last)
        free_held(use, hold);
}

/* ---- values ------------------------------------------------------------------- */

struct ix_mc_cursor ix_mc_begin(const struct ix_mc *mc, struct ix_mc_item *item)
{
    bool chunked = item->bits & IX_MC_CHUNKED;
    return (struct ix_mc_cursor){.part = chunked ? ix_mc_at(mc, *parts_of(item)) : item};
}

uint32_t ix_mc_run(const struct ix_mc *mc, struct ix_mc_cursor *cursor, uint32_t left,
                   uint8_t **bytes)
{
    struct ix_mc_item *part = cursor->part;
    bool chunked = part->state == IX_MC_PART;
    if (chunked && cursor->at == part->nbytes && part->chain) {
        *cursor = (struct ix_mc_cursor){.part = ix_mc_at(mc, part->chain)};
        part = cursor->part;
    }
    uint32_t n = part->nbytes - cursor->at;
    *bytes = (chunked ? (uint8_t *)(part + 1) : ix_mc_value(part)) + cursor->at;
    n = n < left ? n : left;
    cursor->at += n;
    return n;
}

void ix_mc_write(const struct ix_mc *mc, struct ix_mc_cursor *cursor, const void *data, uint32_t n)
{
    const uint8_t *from = data;
    while (n) {
        uint8_t *to;
        uint32_t part = ix_mc_run(mc, cursor, n, &to);
        memcpy(to, from, part);
        from += part;
        n -= part;
    }
}

void ix_mc_copy_value(const struct ix_mc *mc, struct ix_mc_cursor *to, struct ix_mc_item *from,
                      uint32_t n)
{
    struct ix_mc_cursor cursor = ix_mc_begin(mc, from);
    while (n) {
        uint8_t *bytes;
        uint32_t part = ix_mc_run(mc, &cursor, n, &bytes);
        ix_mc_write(mc, to, bytes, part);
        n -= part;
    }
}
