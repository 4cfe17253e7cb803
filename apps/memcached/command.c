/* What the commands of all protocols do to the store. */
#include "apps/memcached/conn.h"

#include "apps/memcached/txn.h"

#include <string.h>

enum { NUMBER_BYTES = 24 };

/* ---- storing ------------------------------------------------------------------ */

void ix_mc_forget(struct ix_mc_server *s, const uint8_t *key, uint32_t nkey)
{
    uint32_t hash = ix_mc_hash(s->mc, key, nkey);
    ix_mc_lock(&s->use, &ix_mc_bucket(&s->use, hash)->lock);
    struct ix_mc_item *old = ix_mc_find(&s->use, key, nkey, hash);
    if (old)
        ix_mc_unlink(&s->use, old);
    ix_mc_unlock(&s->use);
}

bool ix_mc_data_begin(struct ix_mc_server *s, struct ix_mc_conn *c, const uint8_t *key,
                      uint32_t nkey, uint32_t flags, uint32_t exptime, uint32_t nbytes,
                      bool *too_large)
{
    uint32_t hash = ix_mc_hash(s->mc, key, nkey);
    struct ix_mc_item *item = ix_mc_alloc(&s->use, ix_mc_hold_of(s, c), key, nkey, hash, flags,
                                          exptime, nbytes);
    if (!item) {
        *too_large = !ix_mc_size_ok(s->mc, nkey, nbytes);
        if (*too_large)
            s->use.counts->store_too_large++;
        else
            s->use.counts->store_no_memory++;
        if (ix_mc_watched(&s->use, IX_MC_WATCH_MUTATIONS))
            ix_mc_tell_store(&s->use, key, nkey, NULL, *too_large ? "too_large" : "no_memory",
                             c->mode);
        return false;
    }
    c->cursor = ix_mc_begin(s->mc, item);
    return true;
}

/* The values of old and new, one behind the other, in an item of the spare hold. */
static struct ix_mc_item *joined(struct ix_mc_server *s, struct ix_mc_item *old,
                                 struct ix_mc_item *added, bool append)
{
    struct ix_mc_item *item =
        ix_mc_alloc(&s->use, IX_MC_HOLD_NEW, ix_mc_key(old), old->nkey, old->hash, old->flags,
                    old->exptime, old->nbytes + added->nbytes - 2);
    if (!item)
        return NULL;
    struct ix_mc_cursor to = ix_mc_begin(s->mc, item);
    ix_mc_copy_value(s->mc, &to, append ? old : added, (append ? old : added)->nbytes - 2);
    ix_mc_copy_value(s->mc, &to, append ? added : old, (append ? added : old)->nbytes);
    item->bits |= old->bits & IX_MC_BINARY_KEY;
    return item;
}

enum cas_result { CAS_NONE, CAS_MATCH, CAS_STALE, CAS_BAD };

static enum cas_result compare_cas(const struct ix_mc_conn *c, const struct ix_mc_item *item,
                                   const struct ix_mc_item *old)
{
    if (!item->cas)
        return CAS_NONE;
    if (item->cas == old->cas)
        return CAS_MATCH;
    return c->set_stale && item->cas < old->cas ? CAS_STALE : CAS_BAD;
}

/* A cas command on an item that is there. */
static bool may_swap(struct ix_mc_server *s, struct ix_mc_item *item, const struct ix_mc_item *old,
                     enum cas_result cas)
{
    if (cas == CAS_NONE || cas == CAS_BAD) {
        s->use.log->class_cas_bad[old->cls]++;
        return false;
    }
    if (cas == CAS_STALE) { /* newer than what the client had, which it may replace all the same */
        item->exptime = old->exptime;
        item->bits |= IX_MC_STALE | (old->bits & IX_MC_TOKEN_SENT);
    }
    s->use.log->class_cas_hits[old->cls]++;
    return true;
}

static enum ix_mc_stored link_as(struct ix_mc_server *s, struct ix_mc_conn *c, uint32_t hold,
                                 struct ix_mc_item *item, struct ix_mc_item *old)
{
    ix_mc_link(&s->use, hold, old);
    if (c->is_meta && c->given_cas)
        item->cas = c->given_cas;
    c->new_cas = item->cas;
    return IX_MC_STORED;
}

static enum ix_mc_stored replace_old(struct ix_mc_server *s, struct ix_mc_conn *c,
                                     struct ix_mc_item *item, struct ix_mc_item *old)
{
    enum cas_result cas = compare_cas(c, item, old);
    uint32_t hold = ix_mc_hold_of(s, c);
    switch (c->mode) {
    case IX_MC_MODE_ADD:
        old->time = s->use.now_s; /* as if it had been asked for */
        return IX_MC_NOT_STORED;
    case IX_MC_MODE_CAS:
        if (!may_swap(s, item, old, cas))
            return IX_MC_EXISTS;
        break;
    case IX_MC_MODE_APPEND:
    case IX_MC_MODE_PREPEND:
        if (cas != CAS_NONE && cas != CAS_MATCH)
            return IX_MC_EXISTS;
        item = joined(s, old, item, c->mode == IX_MC_MODE_APPEND);
        if (!item)
            return IX_MC_NOT_STORED;
        hold = IX_MC_HOLD_NEW;
        break;
    default:
        break;
    }
    return link_as(s, c, hold, item, old);
}

static enum ix_mc_stored link_first(struct ix_mc_server *s, struct ix_mc_conn *c,
                                    struct ix_mc_item *item)
{
    if (c->mode == IX_MC_MODE_CAS) {
        s->use.counts->cas_misses++;
        return IX_MC_NOT_FOUND;
    }
    if (c->mode != IX_MC_MODE_ADD && c->mode != IX_MC_MODE_SET)
        return IX_MC_NOT_STORED;
    return link_as(s, c, ix_mc_hold_of(s, c), item, NULL);
}

enum ix_mc_stored ix_mc_store_held(struct ix_mc_server *s, struct ix_mc_conn *c)
{
    static const char *const status[] = {"not_stored", "stored", "exists", "not_found",
                                         "no_memory"};
    struct ix_mc_use *use = &s->use;
    uint32_t hold = ix_mc_hold_of(s, c);
    struct ix_mc_item *item = ix_mc_at(s->mc, use->holds[hold]), told;
    uint8_t key[IX_MC_KEY_MAX]; /* the item may be gone when it is told of */
    told.nkey = 0;
    c->new_cas = 0;
    use->counts->cmd_set++;
    use->log->class_sets[item->cls]++;
    ix_mc_lock(use, &ix_mc_bucket(use, item->hash)->lock);
    struct ix_mc_item *old = ix_mc_find(use, ix_mc_key(item), item->nkey, item->hash);
    if (ix_mc_watched(use, IX_MC_WATCH_MUTATIONS)) {
        memcpy(key, ix_mc_key(item), item->nkey);
        told = *item;
    }
    enum ix_mc_stored stored = old ? replace_old(s, c, item, old) : link_first(s, c, item);
    ix_mc_unlock(use);
    if (ix_mc_watched(use, IX_MC_WATCH_MUTATIONS) && told.nkey)
        ix_mc_tell_store(use, key, told.nkey, &told, status[stored], c->mode);
    return stored;
}

struct ix_mc_item *ix_mc_make(struct ix_mc_server *s, const uint8_t *key, uint32_t nkey,
                              uint32_t hash, uint32_t flags, uint32_t exptime, const void *value,
                              uint32_t bytes)
{
    struct ix_mc_item *item = ix_mc_alloc(&s->use, IX_MC_HOLD_NEW, key, nkey, hash, flags,
                                          exptime, bytes + 2);
    if (!item)
        return NULL;
    memcpy(ix_mc_value(item), value, bytes);
    memcpy(ix_mc_value(item) + bytes, "\r\n", 2);
    ix_mc_link(&s->use, IX_MC_HOLD_NEW, NULL);
    return item;
}

/* ---- incr, decr --------------------------------------------------------------- */

/* Changes a short value where it lies; the rest of it becomes spaces. */
static void overwrite(struct ix_mc_server *s, struct ix_mc_item *item, const uint8_t *text,
                      uint32_t n)
{
    uint8_t *value = ix_mc_value(item);
    IX_MC_SET(&s->use, item->cas, ix_mc_new_cas(&s->use));
    for (uint32_t i = 0; i + 2 < item->nbytes; i++) {
        uint8_t ch = i < n ? text[i] : ' ';
        if (value[i] != ch)
            IX_MC_SET(&s->use, value[i], ch);
    }
    ix_mc_commit(&s->use);
    item->time = s->use.now_s;
}

enum ix_mc_delta ix_mc_add_delta(struct ix_mc_server *s, const uint8_t *key, uint32_t nkey,
                                 uint32_t hash, bool incr, uint64_t delta, uint64_t cas,
                                 uint8_t *text, uint32_t *bytes, struct ix_mc_item **item)
{
    struct ix_mc_use *use = &s->use;
    uint64_t value;
    struct ix_mc_item *old = *item = ix_mc_find(use, key, nkey, hash);
    if (!old) {
        ++*(incr ? &use->counts->incr_misses : &use->counts->decr_misses);
        return IX_MC_DELTA_MISS;
    }
    if (old->nbytes <= 2 || old->bits & IX_MC_CHUNKED)
        return IX_MC_DELTA_NAN;
    if (cas && old->cas != cas)
        return IX_MC_DELTA_CAS;
    if (!ix_mc_u64(ix_mc_value(old), old->nbytes, &value))
        return IX_MC_DELTA_NAN;
    if (incr)
        value += delta;
    else
        value = delta > value ? 0 : value - delta;
    ++*(incr ? &use->counts->incr_hits : &use->counts->decr_hits);
    ++(incr ? use->log->class_incrs : use->log->class_decrs)[old->cls];
    *bytes = (uint32_t)(ix_mc_u64_text(text, value) - text);
    if (*bytes + 2 <= old->nbytes && old->nbytes <= NUMBER_BYTES && !old->refs) {
        overwrite(s, old, text, *bytes);
        return IX_MC_DELTA_OK;
    }
    struct ix_mc_item *fresh = ix_mc_alloc(use, IX_MC_HOLD_NEW, key, nkey, hash, old->flags,
                                           old->exptime,
                                           *bytes + 2 > old->nbytes ? *bytes + 2 : old->nbytes);
    if (!fresh)
        return IX_MC_DELTA_NOMEM;
    memset(ix_mc_value(fresh), ' ', fresh->nbytes - 2);
    memcpy(ix_mc_value(fresh), text, *bytes);
    memcpy(ix_mc_value(fresh) + fresh->nbytes - 2, "\r\n", 2);
    fresh->bits |= old->bits & (*bytes + 2 > old->nbytes ? IX_MC_BINARY_KEY
                                                         : IX_MC_BINARY_KEY | IX_MC_FETCHED);
    ix_mc_link(use, IX_MC_HOLD_NEW, old);
    *item = fresh;
    return IX_MC_DELTA_OK;
}

/* ---- flush_all ---------------------------------------------------------------- */

/* Nothing is freed: what is older than this counts as gone from now on. Items of this very second
 * are told apart by their CAS ids. */
void ix_mc_flush(struct ix_mc_server *s, int64_t delay_s)
{
    struct ix_mc *mc = s->mc;
    uint32_t oldest = delay_s > 0 ? ix_mc_expiry(&s->use, delay_s) : s->use.now_s;
    s->use.counts->cmd_flush++;
    if (mc->config.no_cas) {
        __atomic_store_n(&mc->oldest_live, oldest, __ATOMIC_RELAXED);
        return;
    }
    if (oldest - 1 <= s->use.now_s)
        __atomic_store_n(&mc->oldest_cas, ix_mc_new_cas(&s->use), __ATOMIC_RELAXED);
    __atomic_store_n(&mc->oldest_live, oldest - 1, __ATOMIC_RELAXED);
}
