/* Pages that go from one class to another: `slabs reassign`, `slabs automove`, a lower limit.
 *
 * One page at a time is emptied, a little in each turn: free chunks of its class are gone through
 * and those of the page CAPTURED; what is freed there is captured, too (slabs.c); items are moved
 * to other chunks of the class while it has free ones, and evicted when it hasn't. A page whose
 * chunks are all captured belongs to nobody, and becomes the other class's. What a reader or a
 * writer holds is waited for; a page that doesn't get empty stays where it is.
 *
 * Who has move_lock takes the turn. All else is transactions: a worker that dies leaves a move from
 * which the next one goes on.
 */
#include "apps/memcached/txn.h"

#include <string.h>
#include <sys/mman.h>

enum {
    MOVE_NS = 10000000,           /* between two turns */
    JUDGE_NS = 1000000000,        /* between two looks at who has too much */
    SORT_CHUNKS = 100,            /* free ones, in a transaction: fewer than the log has words */
    SORTS = 8,                    /* transactions in a turn */
    WALK_CHUNKS = 200,            /* looked at in a turn */
    WALK_BYTES = 256 << 10,       /* of items moved in a turn */
    PASSES_MAX = 3000,            /* over a page, before it is left where it is: half a minute */
    WINDOW = 30,                  /* s that a class is watched for */
    PAGES_KEPT = 2                /* automove leaves so many with a class that has items */
};

static bool is_in_page(const struct ix_mc *mc, uint32_t ref, uint32_t page)
{
    return ix_mc_page_of(mc, ix_mc_at(mc, ref)) == page;
}

/* ---- beginning and end -------------------------------------------------------- */

/* A page of the class, but the one that it takes unused chunks from. False: it has none. */
static bool choose_page(const struct ix_mc *mc, uint32_t from, uint32_t *page)
{
    const struct ix_mc_class *cls = &mc->cls[from];
    for (*page = 0; *page < mc->pages_made; ++*page)
        if (*ix_mc_page_class(mc, *page) == from &&
            !(cls->carve_left && is_in_page(mc, cls->carve_ref, *page)))
            return true;
    return false;
}

static enum ix_mc_move begin(struct ix_mc_use *use, uint32_t from, uint32_t to)
{
    struct ix_mc *mc = use->mc;
    struct ix_mc_class *cls = &mc->cls[from];
    uint32_t keep = use->log->locks, page;
    if (mc->move_page)
        return IX_MC_MOVE_BUSY;
    ix_mc_lock(use, &cls->lock);
    bool some = cls->pages >= 2 && choose_page(mc, from, &page);
    if (some) {
        IX_MC_SET(use, mc->move_from, from);
        IX_MC_SET(use, mc->move_to, to);
        IX_MC_SET(use, mc->move_chunk, 0);
        IX_MC_SET(use, mc->move_passes, 0);
        IX_MC_SET(use, mc->move_phase, IX_MC_SORT);
        IX_MC_SET(use, mc->move_page, page + 1);
        ix_mc_commit(use);
        if (ix_mc_watched(use, IX_MC_WATCH_SYSEVENTS))
            ix_mc_tell_move(use, from, to);
    }
    ix_mc_unlock_to(use, keep);
    return some ? IX_MC_MOVE_OK : IX_MC_MOVE_NO_SPARE;
}

/* Every chunk of the page is captured: nobody but us looks at it. */
static void finish(struct ix_mc_use *use)
{
    struct ix_mc *mc = use->mc;
    uint32_t page = mc->move_page - 1, from = mc->move_from, to = mc->move_to;
    uint32_t keep = use->log->locks, *freed = ix_mc_inside(mc, mc->free_pages_at);
    uint64_t at = mc->area_at + (uint64_t)page * IX_MC_PAGE_BYTES;
    struct ix_mc_class *old = &mc->cls[from], *new = &mc->cls[to];
    if (to || madvise(ix_mc_inside(mc, at), IX_MC_PAGE_BYTES, MADV_REMOVE))
        memset(ix_mc_inside(mc, at), 0, IX_MC_PAGE_BYTES);
    ix_mc_lock(use, &mc->cls[to && to < from ? to : from].lock);
    if (to)
        ix_mc_lock(use, &mc->cls[to < from ? from : to].lock);
    ix_mc_lock(use, &mc->pages_lock);
    IX_MC_SET(use, old->pages, old->pages - 1);
    IX_MC_SET(use, old->captured, 0);
    if (to && !new->carve_left) {
        IX_MC_SET(use, *ix_mc_page_class(mc, page), to);
        IX_MC_SET(use, new->pages, new->pages + 1);
        IX_MC_SET(use, new->carve_ref, (uint32_t)(at >> IX_MC_REF_SHIFT));
        IX_MC_SET(use, new->carve_left, new->per_page);
    } else {
        IX_MC_SET(use, *ix_mc_page_class(mc, page), 0);
        IX_MC_SET(use, freed[mc->pages_free], page);
        IX_MC_SET(use, mc->pages_free, mc->pages_free + 1);
    }
    IX_MC_SET(use, mc->pages_moved, mc->pages_moved + 1);
    IX_MC_SET(use, mc->move_page, 0);
    ix_mc_commit(use);
    ix_mc_unlock_to(use, keep);
}

/* ---- free chunks -------------------------------------------------------------- */

/* Goes through some of the class's free chunks: those of the page are captured, others wait in a
 * second list. False: there are no more. */
static bool sort_some(struct ix_mc_use *use, struct ix_mc_class *cls, uint32_t page)
{
    struct ix_mc *mc = use->mc;
    uint32_t keep = use->log->locks, captured = 0, kept = 0;
    ix_mc_lock(use, &cls->lock);
    uint32_t ref = cls->free_head, kept_head = cls->kept_head;
    while (ref && captured + kept < SORT_CHUNKS) {
        struct ix_mc_item *chunk = ix_mc_at(mc, ref);
        uint32_t next = chunk->chain;
        if (is_in_page(mc, ref, page)) {
            IX_MC_SET(use, chunk->state, IX_MC_CAPTURED);
            captured++;
        } else {
            IX_MC_SET(use, chunk->chain, kept_head);
            kept_head = ref;
            kept++;
        }
        ref = next;
    }
    IX_MC_SET(use, cls->free_head, ref);
    IX_MC_SET(use, cls->free_count, cls->free_count - captured - kept);
    IX_MC_SET(use, cls->kept_head, kept_head);
    IX_MC_SET(use, cls->kept_count, cls->kept_count + kept);
    IX_MC_SET(use, cls->captured, cls->captured + captured);
    if (!ref) { /* the first list is empty: the second one takes its place */
        IX_MC_SET(use, cls->free_head, cls->kept_head);
        IX_MC_SET(use, cls->free_count, cls->kept_count);
        IX_MC_SET(use, cls->kept_head, 0);
        IX_MC_SET(use, cls->kept_count, 0);
        IX_MC_SET(use, mc->move_phase, IX_MC_WALK);
    }
    ix_mc_commit(use);
    ix_mc_unlock_to(use, keep);
    return ref != 0;
}

/* ---- items -------------------------------------------------------------------- */

/* Another chunk gets what the item is. False: the class has none that is free. */
static bool rescue(struct ix_mc_use *use, struct ix_mc_item *item)
{
    struct ix_mc *mc = use->mc;
    const struct ix_mc_class *cls = &mc->cls[mc->move_from];
    if (!cls->free_count && !cls->carve_left)
        return false;
    struct ix_mc_item *copy =
        ix_mc_alloc(use, IX_MC_HOLD_NEW, ix_mc_key(item), item->nkey, item->hash, item->flags,
                    item->exptime, item->nbytes);
    if (!copy)
        return false;
    struct ix_mc_cursor to = ix_mc_begin(mc, copy);
    ix_mc_copy_value(mc, &to, item, item->nbytes);
    ix_mc_relink(use, IX_MC_HOLD_NEW, item);
    return true;
}

/* Moves or evicts the item that the chunk is, or is a part of. Returns how many bytes it had. */
static uint32_t empty_chunk(struct ix_mc_use *use, struct ix_mc_item *chunk)
{
    struct ix_mc *mc = use->mc;
    uint8_t state = __atomic_load_n(&chunk->state, __ATOMIC_RELAXED);
    uint32_t owner = state == IX_MC_PART ? __atomic_load_n(&chunk->prev, __ATOMIC_RELAXED) : 0;
    struct ix_mc_item *item = owner ? ix_mc_at(mc, owner) : chunk;
    uint32_t bytes = 0;
    if (state != IX_MC_LINKED && !owner)
        return 0;
    struct ix_mc_bucket *bucket =
        ix_mc_bucket(use, __atomic_load_n(&item->hash, __ATOMIC_RELAXED));
    ix_mc_lock(use, &bucket->lock);
    if (ix_mc_is_linked(use, bucket, item) && (!owner || ix_mc_has_part(mc, item, chunk))) {
        struct ix_mc_class *cls = &mc->cls[mc->move_from];
        bytes = item->nbytes;
        if (ix_mc_is_dead(use, item) || !rescue(use, item)) {
            cls->moved_evicted += !ix_mc_is_dead(use, item);
            ix_mc_unlink(use, item);
        } else {
            cls->moved_rescued++;
        }
    }
    ix_mc_unlock(use);
    return bytes;
}

/* Gives back what was captured of a page that stays. */
static void put_back(struct ix_mc_use *use, struct ix_mc_class *cls, struct ix_mc_item *chunk)
{
    uint32_t keep = use->log->locks;
    ix_mc_lock(use, &cls->lock);
    if (chunk->state == IX_MC_CAPTURED) {
        IX_MC_SET(use, cls->captured, cls->captured - 1);
        IX_MC_SET(use, chunk->state, IX_MC_FREE);
        IX_MC_SET(use, chunk->chain, cls->free_head);
        IX_MC_SET(use, cls->free_head, ix_mc_ref(use->mc, chunk));
        IX_MC_SET(use, cls->free_count, cls->free_count + 1);
        ix_mc_commit(use);
    }
    ix_mc_unlock_to(use, keep);
}

/* The end of a pass over the page. */
static void end_pass(struct ix_mc_use *use, struct ix_mc_class *cls)
{
    struct ix_mc *mc = use->mc;
    mc->move_chunk = 0;
    mc->move_passes++;
    if (mc->move_phase == IX_MC_PUT_BACK) {
        mc->move_page = 0;
    } else if (cls->captured == cls->per_page) {
        finish(use);
    } else if (mc->move_passes >= PASSES_MAX) {
        uint32_t keep = use->log->locks;
        ix_mc_lock(use, &cls->lock); /* who frees a chunk looks at it under this */
        mc->move_phase = IX_MC_PUT_BACK;
        ix_mc_unlock_to(use, keep);
    }
}

static void walk_some(struct ix_mc_use *use, struct ix_mc_class *cls, uint32_t page)
{
    struct ix_mc *mc = use->mc;
    uint32_t bytes = 0;
    for (uint32_t i = 0; i < WALK_CHUNKS && bytes < WALK_BYTES; i++) {
        if (mc->move_chunk >= cls->per_page) {
            end_pass(use, cls);
            return;
        }
        struct ix_mc_item *chunk = ix_mc_chunk_at(mc, page, mc->move_from, mc->move_chunk++);
        if (mc->move_phase == IX_MC_PUT_BACK)
            put_back(use, cls, chunk);
        else
            bytes += empty_chunk(use, chunk);
    }
}

/* ---- who has too much --------------------------------------------------------- */

/* What happened in the last second, a bit each in what is known of the last WINDOW. */
static void watch_class(struct ix_mc_class *cls)
{
    bool evicted = cls->evicted != cls->evicted_seen;
    bool busy = evicted || cls->outofmemory != cls->nomem_seen || cls->pages > cls->pages_seen;
    cls->evicted_bits = cls->evicted_bits << 1 | evicted;
    cls->busy_bits = cls->busy_bits << 1 | busy;
    cls->evicted_seen = cls->evicted;
    cls->nomem_seen = cls->outofmemory;
    cls->pages_seen = cls->pages;
}

static uint32_t age_of(const struct ix_mc_use *use, const struct ix_mc_class *cls)
{
    uint32_t ref = cls->tail[IX_MC_COLD];
    return ref ? use->now_s - ix_mc_at(use->mc, ref)->time : 0;
}

/* Which class gives a page to which: memcached's rules. A class with free chunks enough for more
 * than two pages and a quiet time behind it gives one back; one whose items get old gives one to
 * one that evicted young ones in most of the last seconds. False: none. */
static bool judge(const struct ix_mc_use *use, uint32_t *from, uint32_t *to)
{
    const struct ix_mc *mc = use->mc;
    const uint32_t window = (1u << WINDOW) - 1;
    uint32_t old_age = 0, young_age = UINT32_MAX;
    *from = *to = 0;
    for (uint32_t i = 1; i <= mc->classes; i++) {
        const struct ix_mc_class *cls = &mc->cls[i];
        uint64_t idle = (uint64_t)cls->free_count + cls->kept_count + cls->carve_left;
        uint32_t age = age_of(use, cls);
        if (2 * idle > 5ull * cls->per_page && !(cls->busy_bits & window) && cls->pages > 1) {
            *from = i;
            *to = 0;
            return true;
        }
        if (cls->pages > PAGES_KEPT && age > old_age) {
            *from = i;
            old_age = age;
        }
        bool evicts = mc->config.automove == 2
                          ? cls->evicted_bits & 1
                          : __builtin_popcount(cls->evicted_bits & window) > WINDOW / 2 &&
                                cls->evicted_bits & 1;
        if (evicts && age < young_age) {
            *to = i;
            young_age = age;
        }
    }
    return *from && *to && *from != *to &&
           (mc->config.automove == 2 ||
            (uint64_t)young_age * 100 < (uint64_t)old_age * mc->config.automove_percent);
}

/* The class with the most pages gives one back while there are more than the limit allows. */
static bool beyond_limit(const struct ix_mc *mc, uint32_t *from)
{
    *from = 1;
    if (mc->pages_made - mc->pages_free <= mc->limit_pages)
        return false;
    for (uint32_t i = 2; i <= mc->classes; i++)
        if (mc->cls[i].pages > mc->cls[*from].pages)
            *from = i;
    return mc->cls[*from].pages > 1;
}

static void look_for_work(struct ix_mc_use *use)
{
    struct ix_mc *mc = use->mc;
    uint32_t from, to = 0;
    if (mc->config.no_reassign || use->now_ns < mc->judge_due_ns)
        return;
    mc->judge_due_ns = use->now_ns + JUDGE_NS;
    for (uint32_t i = 1; i <= mc->classes; i++)
        watch_class(&mc->cls[i]);
    if (mc->config.automove && (beyond_limit(mc, &from) || judge(use, &from, &to)))
        begin(use, from, to);
}

/* ---- called from elsewhere ---------------------------------------------------- */

enum ix_mc_move ix_mc_move_start(struct ix_mc_use *use, int32_t from, int32_t to)
{
    struct ix_mc *mc = use->mc;
    int32_t classes = (int32_t)mc->classes;
    if (from == to)
        return IX_MC_MOVE_SAME;
    if (from == -1) {
        from = 1;
        for (int32_t i = 2; i <= classes; i++)
            if (i != to && (from == to || mc->cls[i].pages > mc->cls[from].pages))
                from = i;
    }
    if (from < 0 || from > classes || to < 0 || to > classes)
        return IX_MC_MOVE_BAD_CLASS;
    if (!from) /* free pages go to who asks first */
        return mc->pages_free ? IX_MC_MOVE_OK : IX_MC_MOVE_NO_SPARE;
    if (!ix_mc_trylock(use, &mc->move_lock))
        return IX_MC_MOVE_BUSY;
    enum ix_mc_move result = begin(use, (uint32_t)from, (uint32_t)to);
    ix_mc_unlock(use);
    return result;
}

void ix_mc_move(struct ix_mc_use *use)
{
    struct ix_mc *mc = use->mc;
    uint64_t due = __atomic_load_n(&mc->move_due_ns, __ATOMIC_RELAXED);
    if (use->now_ns < due ||
        !__atomic_compare_exchange_n(&mc->move_due_ns, &due, use->now_ns + MOVE_NS, false,
                                     __ATOMIC_RELAXED, __ATOMIC_RELAXED) ||
        !ix_mc_trylock(use, &mc->move_lock))
        return;
    if (mc->move_page) {
        struct ix_mc_class *cls = &mc->cls[mc->move_from];
        uint32_t page = mc->move_page - 1;
        for (uint32_t i = 0; i < SORTS && mc->move_phase == IX_MC_SORT; i++)
            if (!sort_some(use, cls, page))
                break;
        if (mc->move_phase != IX_MC_SORT)
            walk_some(use, cls, page);
    } else {
        look_for_work(use);
    }
    ix_mc_unlock(use);
}
