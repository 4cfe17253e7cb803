/* Each class keeps its items in four lists, newest first: HOT for new ones, WARM for those that
 * were asked for again, COLD from whose end items are evicted, TEMP for those that soon expire.
 *
 * Being asked for only sets a bit in the item; the lists are put in order in passing.
 */
#include "apps/memcached/txn.h"

enum {
    EVICT_LOOKS = 64,      /* items looked at for one that can be freed */
    MAINTAIN_NS = 10000000, /* between two turns, of all workers together */
    MAINTAIN_MOVES = 1000  /* a turn */
};

static uint64_t bytes_of(const struct ix_mc_item *item)
{
    return ix_mc_item_bytes(item->nkey, item->nbytes);
}

void ix_mc_list_add(struct ix_mc_use *use, struct ix_mc_item *item, uint32_t segment)
{
    struct ix_mc *mc = use->mc;
    struct ix_mc_class *cls = &mc->cls[item->cls];
    uint32_t ref = ix_mc_ref(mc, item), first = cls->head[segment];
    IX_MC_SET(use, item->segment, segment);
    IX_MC_SET(use, item->prev, 0);
    IX_MC_SET(use, item->next, first);
    if (first)
        IX_MC_SET(use, ix_mc_at(mc, first)->prev, ref);
    else
        IX_MC_SET(use, cls->tail[segment], ref);
    IX_MC_SET(use, cls->head[segment], ref);
    IX_MC_SET(use, cls->count[segment], cls->count[segment] + 1);
    IX_MC_SET(use, cls->bytes[segment], cls->bytes[segment] + bytes_of(item));
}

void ix_mc_list_remove(struct ix_mc_use *use, struct ix_mc_item *item)
{
    struct ix_mc *mc = use->mc;
    struct ix_mc_class *cls = &mc->cls[item->cls];
    uint32_t segment = item->segment;
    if (item->prev)
        IX_MC_SET(use, ix_mc_at(mc, item->prev)->next, item->next);
    else
        IX_MC_SET(use, cls->head[segment], item->next);
    if (item->next)
        IX_MC_SET(use, ix_mc_at(mc, item->next)->prev, item->prev);
    else
        IX_MC_SET(use, cls->tail[segment], item->prev);
    IX_MC_SET(use, cls->count[segment], cls->count[segment] - 1);
    IX_MC_SET(use, cls->bytes[segment], cls->bytes[segment] - bytes_of(item));
}

static void move_to(struct ix_mc_use *use, struct ix_mc_item *item, uint32_t segment)
{
    ix_mc_list_remove(use, item);
    ix_mc_list_add(use, item, segment);
    ix_mc_commit(use);
}

/* ---- evictions ---------------------------------------------------------------- */

static void count_eviction(struct ix_mc_use *use, struct ix_mc_class *cls,
                           const struct ix_mc_item *item)
{
    if (ix_mc_is_dead(use, item)) {
        cls->reclaimed++;
        cls->expired_unfetched += !(item->bits & IX_MC_FETCHED);
        return;
    }
    if (ix_mc_watched(use, IX_MC_WATCH_EVICTIONS))
        ix_mc_tell_eviction(use, item);
    cls->evicted++;
    cls->evicted_time = use->now_s - item->time;
    cls->evicted_nonzero += item->exptime != 0;
    cls->evicted_unfetched += !(item->bits & IX_MC_FETCHED);
    cls->evicted_active += !!(item->bits & IX_MC_ACTIVE);
}

/* The class was locked first (lock number `keep`), then the bucket. Freeing wants it the other way
 * round: the class is let go, and the bucket's lock alone keeps the item. */
static void free_found(struct ix_mc_use *use, struct ix_mc_class *cls, struct ix_mc_item *item,
                       uint32_t keep)
{
    count_eviction(use, cls, item);
    ix_mc_unlock_early(use, keep);
    ix_mc_unlink(use, item);
    ix_mc_unlock_to(use, keep);
}

/* Frees the oldest item of the segment that can be freed, or moves on those that were asked for. */
static bool evict_from(struct ix_mc_use *use, struct ix_mc_class *cls, uint32_t segment)
{
    struct ix_mc *mc = use->mc;
    uint32_t keep = use->log->locks;
    ix_mc_lock(use, &cls->lock);
    uint32_t ref = cls->tail[segment];
    for (uint32_t i = 0; ref && i < EVICT_LOOKS; i++) {
        struct ix_mc_item *item = ix_mc_at(mc, ref);
        ref = item->prev;
        if (!ix_mc_trylock(use, &ix_mc_bucket(use, item->hash)->lock))
            continue;
        bool active = item->bits & IX_MC_ACTIVE && segment != IX_MC_TEMP && mc->config.segmented &&
                      i < EVICT_LOOKS / 2 && !ix_mc_is_dead(use, item);
        if (active) {
            item->bits &= (uint8_t)~IX_MC_ACTIVE;
            cls->moves_to_warm++;
            move_to(use, item, IX_MC_WARM);
        } else if (!item->refs) {
            free_found(use, cls, item, keep);
            return true;
        }
        ix_mc_unlock(use);
    }
    ix_mc_unlock_to(use, keep);
    return false;
}

bool ix_mc_evict(struct ix_mc_use *use, uint32_t number)
{
    static const uint8_t order[] = {IX_MC_COLD, IX_MC_HOT, IX_MC_WARM, IX_MC_TEMP};
    for (uint32_t i = 0; i < sizeof order; i++)
        if (evict_from(use, &use->mc->cls[number], order[i]))
            return true;
    return false;
}

/* ---- maintenance -------------------------------------------------------------- */

/* How old, s, the end of a list is. */
static uint32_t tail_age(const struct ix_mc_use *use, const struct ix_mc_class *cls,
                         uint32_t segment)
{
    uint32_t ref = cls->tail[segment];
    return ref ? use->now_s - ix_mc_at(use->mc, ref)->time : 0;
}

/* What becomes of the oldest item of a segment. False: it stays where it is. */
static bool look_at_tail(struct ix_mc_use *use, struct ix_mc_class *cls, uint32_t segment,
                         uint64_t limit_bytes, uint64_t age_max)
{
    uint32_t ref = cls->tail[segment];
    struct ix_mc_item *item = ref ? ix_mc_at(use->mc, ref) : NULL;
    if (!item || !ix_mc_trylock(use, &ix_mc_bucket(use, item->hash)->lock))
        return false;
    bool moved = true;
    if (item->bits & IX_MC_ACTIVE && segment != IX_MC_TEMP) {
        item->bits &= (uint8_t)~IX_MC_ACTIVE;
        if (segment == IX_MC_WARM)
            cls->moves_within_lru++;
        else
            cls->moves_to_warm++;
        move_to(use, item, IX_MC_WARM);
    } else if ((segment == IX_MC_HOT || segment == IX_MC_WARM) &&
               (cls->bytes[segment] > limit_bytes || use->now_s - item->time > age_max)) {
        cls->moves_to_cold++;
        move_to(use, item, IX_MC_COLD);
    } else {
        moved = false;
    }
    ix_mc_unlock(use);
    return moved;
}

/* Frees what has expired at the end of a segment. */
static void reap_tail(struct ix_mc_use *use, struct ix_mc_class *cls, uint32_t segment)
{
    for (uint32_t i = 0; i < EVICT_LOOKS; i++) {
        uint32_t keep = use->log->locks, ref;
        if (!ix_mc_trylock(use, &cls->lock))
            return;
        ref = cls->tail[segment];
        struct ix_mc_item *item = ref ? ix_mc_at(use->mc, ref) : NULL;
        if (!item || !ix_mc_is_dead(use, item) || item->refs ||
            !ix_mc_trylock(use, &ix_mc_bucket(use, item->hash)->lock)) {
            ix_mc_unlock_to(use, keep);
            return;
        }
        if (item->refs) {
            ix_mc_unlock_to(use, keep);
            return;
        }
        free_found(use, cls, item, keep);
    }
}

static uint32_t maintain_class(struct ix_mc_use *use, struct ix_mc_class *cls, uint32_t moves)
{
    const struct ix_mc_config *cfg = &use->mc->config;
    uint32_t keep = use->log->locks;
    reap_tail(use, cls, IX_MC_TEMP);
    reap_tail(use, cls, IX_MC_COLD);
    if (!cfg->segmented || !ix_mc_trylock(use, &cls->lock))
        return moves;
    uint64_t all = cls->bytes[IX_MC_HOT] + cls->bytes[IX_MC_WARM] + cls->bytes[IX_MC_COLD];
    uint64_t cold_age = tail_age(use, cls, IX_MC_COLD);
    if (!cold_age)
        cold_age = UINT32_MAX;
    while (moves && look_at_tail(use, cls, IX_MC_HOT, all * cfg->hot_percent / 100,
                                 cold_age * cfg->hot_factor_percent / 100))
        moves--;
    while (moves && look_at_tail(use, cls, IX_MC_WARM, all * cfg->warm_percent / 100,
                                 cold_age * cfg->warm_factor_percent / 100))
        moves--;
    while (moves && look_at_tail(use, cls, IX_MC_COLD, 0, 0))
        moves--;
    ix_mc_unlock_to(use, keep);
    return moves;
}

void ix_mc_maintain(struct ix_mc_use *use)
{
    struct ix_mc *mc = use->mc;
    uint64_t due = __atomic_load_n(&mc->maintain_due_ns, __ATOMIC_RELAXED);
    if (use->now_ns < due || !mc->config.maintainer ||
        !__atomic_compare_exchange_n(&mc->maintain_due_ns, &due, use->now_ns + MAINTAIN_NS, false,
                                     __ATOMIC_RELAXED, __ATOMIC_RELAXED))
        return;
    uint32_t moves = MAINTAIN_MOVES;
    for (uint32_t i = 0; i < mc->classes && moves; i++) {
        uint32_t number = __atomic_add_fetch(&mc->maintain_class, 1, __ATOMIC_RELAXED);
        struct ix_mc_class *cls = &mc->cls[1 + number % mc->classes];
        if (cls->pages)
            moves = maintain_class(use, cls, moves);
    }
}
