/* The text protocol: storing, fetching, counting, deleting. See admin.c for the rest, meta.c for
 * the commands of two letters. */
#include "apps/memcached/conn.h"

#include "apps/memcached/txn.h"

#include <string.h>

static const char bad_line[] = "CLIENT_ERROR bad command line format";

/* Cuts a line at its spaces. */
static void split(const uint8_t *line, uint32_t n, struct ix_mc_words *w)
{
    const uint8_t *end = line + n;
    w->count = 0;
    w->rest = NULL;
    w->end = end;
    while (line < end) {
        if (*line == ' ') {
            line++;
            continue;
        }
        if (w->count == IX_MC_TOKENS - 1) {
            w->rest = line;
            break;
        }
        const uint8_t *space = memchr(line, ' ', (size_t)(end - line));
        const uint8_t *stop = space ? space : end;
        w->word[w->count++] = (struct ix_mc_token){line, (uint32_t)(stop - line)};
        line = stop;
    }
    w->word[w->count] = (struct ix_mc_token){w->rest, 0};
}

/* ---- get, gets, gat, gats ----------------------------------------------------- */

/* A key too long spoils the whole command: look before anything is answered. */
static bool keys_are_short(const uint8_t *at, const uint8_t *end)
{
    if (end - at <= IX_MC_KEY_MAX)
        return true;
    while (at < end) {
        const uint8_t *space = memchr(at, ' ', (size_t)(end - at));
        const uint8_t *stop = space ? space : end;
        if (stop - at > IX_MC_KEY_MAX)
            return false;
        at = stop + 1;
    }
    return true;
}

static void begin_get(struct ix_mc_server *s, struct ix_mc_conn *c, const uint8_t *keys,
                      const uint8_t *end, bool with_cas)
{
    if (!keys_are_short(keys, end)) {
        ix_mc_say(s, c, bad_line);
        return;
    }
    c->state = IX_MC_GET_KEYS;
    c->with_cas = with_cas;
    c->key_at = keys;
    c->keys_end = end;
}

enum { HEAD_BYTES = 64 }; /* of the line before a value, without the key; at most */

/* Writes that line; returns its end. */
static uint8_t *head_text(uint8_t *p, const struct ix_mc_item *item, bool with_cas)
{
    memcpy(p, "VALUE ", 6);
    memcpy(p + 6, ix_mc_key(item), item->nkey);
    p += 6 + item->nkey;
    *p++ = ' ';
    p = ix_mc_u64_text(p, item->flags);
    *p++ = ' ';
    p = ix_mc_u64_text(p, item->nbytes - 2);
    if (with_cas) {
        *p++ = ' ';
        p = ix_mc_u64_text(p, item->cas);
    }
    memcpy(p, "\r\n", 2);
    return p + 2;
}

static void fetch(struct ix_mc_server *s, struct ix_mc_conn *c, const uint8_t *key, uint32_t nkey)
{
    struct ix_mc_use *use = &s->use;
    uint32_t hash = ix_mc_hash(s->mc, key, nkey);
    ix_mc_lock(use, &ix_mc_bucket(use, hash)->lock);
    struct ix_mc_item *item = ix_mc_find(use, key, nkey, hash);
    if (c->touch) {
        use->counts->cmd_touch++;
        use->counts->touch_hits += item != NULL;
        use->counts->touch_misses += item == NULL;
    } else {
        use->counts->cmd_get++;
        use->counts->get_misses += item == NULL;
        use->counts->get_hits += item != NULL;
    }
    if (item) {
        if (c->touch) {
            item->exptime = c->exptime;
            use->log->class_touches[item->cls]++;
        } else {
            use->log->class_hits[item->cls][item->segment]++;
        }
        uint8_t head[IX_MC_KEY_MAX + HEAD_BYTES];
        ix_mc_put(s, c, head, (uint32_t)(head_text(head, item, c->with_cas) - head));
        ix_mc_bump(use, item);
        ix_mc_put_value(s, c, item, item->nbytes);
    }
    ix_mc_unlock(use);
}

bool ix_mc_text_quick(struct ix_mc_server *s, struct ix_mc_conn *c)
{
    static const char end[5] = "END\r\n";
    struct ix_mc_use *use = &s->use;
    uint32_t bytes = sizeof end;
    ix_mc_lock(use, &ix_mc_bucket(use, c->pre_hash)->lock);
    struct ix_mc_item *item = ix_mc_find(use, c->pre_key, c->pre_nkey, c->pre_hash);
    if (item && (item->nbytes > IX_MC_FRAME_BYTES || item->bits & IX_MC_CHUNKED))
        bytes = UINT32_MAX;
    else if (item)
        bytes += HEAD_BYTES + item->nkey + item->nbytes;
    uint8_t *to = ix_mc_reserve(s, c, bytes), *p = to;
    if (!to) {
        ix_mc_unlock(use);
        return false;
    }
    use->counts->cmd_get++;
    use->counts->get_misses += item == NULL;
    use->counts->get_hits += item != NULL;
    if (item) {
        use->log->class_hits[item->cls][item->segment]++;
        p = head_text(p, item, false);
        memcpy(p, ix_mc_value(item), item->nbytes);
        p += item->nbytes;
        ix_mc_bump(use, item);
    }
    ix_mc_unlock(use);
    memcpy(p, end, sizeof end);
    ix_mc_filled(s, c, (uint32_t)(p - to) + sizeof end);
    return true;
}

bool ix_mc_text_key(struct ix_mc_server *s, struct ix_mc_conn *c)
{
    const uint8_t *at = c->key_at, *end = c->keys_end;
    while (at < end && *at == ' ')
        at++;
    if (at == end) {
        ix_mc_put(s, c, "END\r\n", 5);
        return false;
    }
    const uint8_t *space = memchr(at, ' ', (size_t)(end - at));
    const uint8_t *stop = space ? space : end;
    fetch(s, c, at, (uint32_t)(stop - at));
    c->key_at = stop;
    return true;
}

static void get(struct ix_mc_server *s, struct ix_mc_conn *c, const struct ix_mc_words *w)
{
    bool with_cas = ix_mc_is(&w->word[0], "gets");
    c->touch = false;
    if (w->count < 2)
        ix_mc_say(s, c, "ERROR");
    else
        begin_get(s, c, w->word[1].at, w->end, with_cas);
}

static void get_and_touch(struct ix_mc_server *s, struct ix_mc_conn *c,
                          const struct ix_mc_words *w)
{
    int32_t exptime;
    if (w->count < 2) {
        ix_mc_say(s, c, "ERROR");
    } else if (!ix_mc_i32(w->word[1].at, w->word[1].n, &exptime)) {
        ix_mc_say(s, c, "CLIENT_ERROR invalid exptime argument");
    } else { /* no keys at all are none that are there */
        c->touch = true;
        c->exptime = ix_mc_expiry(&s->use, exptime);
        begin_get(s, c, w->count < 3 ? w->end : w->word[2].at, w->end,
                  ix_mc_is(&w->word[0], "gats"));
    }
}

/* ---- set and its kin ---------------------------------------------------------- */

static bool noreply(struct ix_mc_conn *c, const struct ix_mc_words *w)
{
    if (w->count && ix_mc_is(&w->word[w->count - 1], "noreply"))
        c->noreply = true;
    return c->noreply;
}

static void swallow(struct ix_mc_conn *c, uint64_t bytes)
{
    c->state = IX_MC_SWALLOW;
    c->left = bytes;
}

static void store(struct ix_mc_server *s, struct ix_mc_conn *c, const struct ix_mc_words *w,
                  enum ix_mc_mode mode)
{
    const struct ix_mc_token *t = w->word;
    uint32_t want = mode == IX_MC_MODE_CAS ? 6 : 5, flags;
    int32_t exptime, bytes;
    uint64_t cas = 0;
    bool too_large;
    if (w->count != want && w->count != want + 1) {
        ix_mc_say(s, c, "ERROR");
        return;
    }
    noreply(c, w);
    if (t[1].n > IX_MC_KEY_MAX || !ix_mc_u32(t[2].at, t[2].n, &flags) ||
        !ix_mc_i32(t[3].at, t[3].n, &exptime) || !ix_mc_i32(t[4].at, t[4].n, &bytes) ||
        (mode == IX_MC_MODE_CAS && !ix_mc_u64(t[5].at, t[5].n, &cas)) || bytes < 0 ||
        bytes > INT32_MAX - 2) {
        ix_mc_say(s, c, bad_line);
        return;
    }
    c->mode = (uint8_t)mode;
    c->is_meta = c->set_stale = false;
    if (!ix_mc_data_begin(s, c, t[1].at, t[1].n, flags, ix_mc_expiry(&s->use, exptime),
                          (uint32_t)bytes + 2, &too_large)) {
        ix_mc_say(s, c, too_large ? "SERVER_ERROR object too large for cache"
                                  : "SERVER_ERROR out of memory storing object");
        swallow(c, (uint64_t)bytes + 2);
        /* An old value must not outlive the failure to store a new one. */
        if (mode == IX_MC_MODE_SET)
            ix_mc_forget(s, t[1].at, t[1].n);
        return;
    }
    ix_mc_at(s->mc, s->use.holds[ix_mc_hold_of(s, c)])->cas = cas;
    c->state = IX_MC_READ_DATA;
    c->left = (uint64_t)bytes + 2;
}

static bool ends_well(const struct ix_mc_server *s, struct ix_mc_item *item)
{
    struct ix_mc_cursor cursor = ix_mc_begin(s->mc, item);
    uint8_t last[2] = {0, 0}, *bytes;
    if (!(item->bits & IX_MC_CHUNKED))
        return !memcmp(ix_mc_value(item) + item->nbytes - 2, "\r\n", 2);
    for (uint32_t left = item->nbytes; left;) {
        uint32_t n = ix_mc_run(s->mc, &cursor, left, &bytes);
        last[0] = n > 1 ? bytes[n - 2] : last[1];
        last[1] = bytes[n - 1];
        left -= n;
    }
    return last[0] == '\r' && last[1] == '\n';
}

void ix_mc_text_data(struct ix_mc_server *s, struct ix_mc_conn *c)
{
    static const char *const said[] = {"NOT_STORED", "STORED", "EXISTS", "NOT_FOUND"};
    uint32_t hold = ix_mc_hold_of(s, c);
    struct ix_mc_item *item = ix_mc_at(s->mc, s->use.holds[hold]);
    uint8_t key[IX_MC_KEY_MAX];
    struct ix_mc_token name = {key, item->nkey};
    bool binary_key = item->bits & IX_MC_BINARY_KEY;
    if (c->is_meta) /* the item may be gone when the answer is made */
        memcpy(key, ix_mc_key(item), item->nkey);
    if (!ends_well(s, item)) {
        s->use.log->class_sets[item->cls]++;
        s->use.counts->cmd_set++;
        if (c->is_meta)
            c->noreply = false;
        ix_mc_say(s, c, "CLIENT_ERROR bad data chunk");
    } else {
        enum ix_mc_stored stored = ix_mc_store_held(s, c);
        if (c->is_meta)
            ix_mc_meta_data(s, c, stored, &name, binary_key);
        else
            ix_mc_say(s, c, said[stored]);
    }
    c->set_stale = c->is_meta = false;
    ix_mc_drop(&s->use, hold);
}

/* ---- delete, touch, incr, decr ------------------------------------------------ */

static void delete(struct ix_mc_server *s, struct ix_mc_conn *c, const struct ix_mc_words *w)
{
    struct ix_mc_use *use = &s->use;
    const struct ix_mc_token *t = &w->word[1];
    if (w->count < 2 || w->count > 4) {
        ix_mc_say(s, c, "ERROR");
        return;
    }
    if (w->count > 2) {
        bool zero = ix_mc_is(&w->word[2], "0"), quiet = noreply(c, w);
        if (w->count == 3 ? !zero && !quiet : !zero || !quiet) {
            ix_mc_say(s, c, "CLIENT_ERROR bad command line format.  Usage: delete <key> [noreply]");
            return;
        }
    }
    if (t->n > IX_MC_KEY_MAX) {
        ix_mc_say(s, c, bad_line);
        return;
    }
    uint32_t hash = ix_mc_hash(s->mc, t->at, t->n);
    ix_mc_lock(use, &ix_mc_bucket(use, hash)->lock);
    struct ix_mc_item *item = ix_mc_find(use, t->at, t->n, hash);
    if (item) {
        use->counts->delete_hits++;
        use->log->class_deletes[item->cls]++;
        ix_mc_unlink(use, item);
    } else {
        use->counts->delete_misses++;
    }
    ix_mc_unlock(use);
    ix_mc_say(s, c, item ? "DELETED" : "NOT_FOUND");
}

/* Of a command with a key and a number; what is wrong is said. */
static bool takes_key_and_number(struct ix_mc_server *s, struct ix_mc_conn *c,
                                 const struct ix_mc_words *w)
{
    if (w->count != 3 && w->count != 4) {
        ix_mc_say(s, c, "ERROR");
        return false;
    }
    noreply(c, w);
    if (w->word[1].n > IX_MC_KEY_MAX) {
        ix_mc_say(s, c, bad_line);
        return false;
    }
    return true;
}

static void touch(struct ix_mc_server *s, struct ix_mc_conn *c, const struct ix_mc_words *w)
{
    struct ix_mc_use *use = &s->use;
    const struct ix_mc_token *t = &w->word[1];
    int32_t exptime;
    if (!takes_key_and_number(s, c, w))
        return;
    if (!ix_mc_i32(t[1].at, t[1].n, &exptime)) {
        ix_mc_say(s, c, "CLIENT_ERROR invalid exptime argument");
        return;
    }
    uint32_t hash = ix_mc_hash(s->mc, t->at, t->n);
    ix_mc_lock(use, &ix_mc_bucket(use, hash)->lock);
    struct ix_mc_item *item = ix_mc_find(use, t->at, t->n, hash);
    use->counts->cmd_touch++;
    if (item) {
        item->exptime = ix_mc_expiry(use, exptime);
        ix_mc_bump(use, item);
        use->counts->touch_hits++;
        use->log->class_touches[item->cls]++;
    } else {
        use->counts->touch_misses++;
    }
    ix_mc_unlock(use);
    ix_mc_say(s, c, item ? "TOUCHED" : "NOT_FOUND");
}

static void arithmetic(struct ix_mc_server *s, struct ix_mc_conn *c, const struct ix_mc_words *w,
                       bool incr)
{
    struct ix_mc_use *use = &s->use;
    const struct ix_mc_token *t = &w->word[1];
    uint64_t delta;
    char text[24];
    uint32_t n = 0;
    struct ix_mc_item *item;
    if (!takes_key_and_number(s, c, w))
        return;
    if (!ix_mc_u64(t[1].at, t[1].n, &delta)) {
        ix_mc_say(s, c, "CLIENT_ERROR invalid numeric delta argument");
        return;
    }
    uint32_t hash = ix_mc_hash(s->mc, t->at, t->n);
    ix_mc_lock(use, &ix_mc_bucket(use, hash)->lock);
    enum ix_mc_delta result = ix_mc_add_delta(s, t->at, t->n, hash, incr, delta, 0,
                                              (uint8_t *)text, &n, &item);
    ix_mc_unlock(use);
    text[n] = 0;
    if (result == IX_MC_DELTA_OK)
        ix_mc_say(s, c, text);
    else if (result == IX_MC_DELTA_MISS)
        ix_mc_say(s, c, "NOT_FOUND");
    else if (result == IX_MC_DELTA_NOMEM)
        ix_mc_say(s, c, "SERVER_ERROR out of memory");
    else
        ix_mc_say(s, c, "CLIENT_ERROR cannot increment or decrement non-numeric value");
}

/* ---- which -------------------------------------------------------------------- */

static bool data_command(struct ix_mc_server *s, struct ix_mc_conn *c, const struct ix_mc_words *w)
{
    static const struct {
        const char *name;
        enum ix_mc_mode mode;
    } stores[] = {{"set", IX_MC_MODE_SET},         {"add", IX_MC_MODE_ADD},
                  {"replace", IX_MC_MODE_REPLACE}, {"append", IX_MC_MODE_APPEND},
                  {"prepend", IX_MC_MODE_PREPEND}, {"cas", IX_MC_MODE_CAS}};
    const struct ix_mc_token *name = &w->word[0];
    for (uint32_t i = 0; i < sizeof stores / sizeof *stores; i++) {
        if (ix_mc_is(name, stores[i].name)) {
            store(s, c, w, stores[i].mode);
            return true;
        }
    }
    if (ix_mc_is(name, "get") || ix_mc_is(name, "gets") || ix_mc_is(name, "bget"))
        get(s, c, w);
    else if (ix_mc_is(name, "gat") || ix_mc_is(name, "gats"))
        get_and_touch(s, c, w);
    else if (ix_mc_is(name, "delete"))
        delete(s, c, w);
    else if (ix_mc_is(name, "incr") || ix_mc_is(name, "decr"))
        arithmetic(s, c, w, name->at[0] == 'i');
    else if (ix_mc_is(name, "touch"))
        touch(s, c, w);
    else
        return false;
    return true;
}

void ix_mc_text_command(struct ix_mc_server *s, struct ix_mc_conn *c, const uint8_t *line,
                        uint32_t n)
{
    struct ix_mc_words w;
    c->noreply = false;
    if (n > 4 && !memcmp(line, "get ", 4)) { /* most are these, and short */
        const uint8_t *at = line + 4, *end = line + n;
        while (at < end && *at == ' ')
            at++;
        c->touch = false;
        if (at < end)
            begin_get(s, c, at, end, false);
        else
            ix_mc_say(s, c, "ERROR");
        return;
    }
    split(line, n, &w);
    const struct ix_mc_token *name = &w.word[0];
    if (!w.count || name->n < 2)
        ix_mc_say(s, c, "ERROR");
    else if (name->n == 2 && name->at[0] == 'm')
        ix_mc_meta_command(s, c, &w);
    else if (!data_command(s, c, &w) && !ix_mc_admin_command(s, c, &w))
        ix_mc_say(s, c, "ERROR");
}
