/* The text protocol's meta commands: mg, ms, md, ma, mn, me. Each flag is a letter, some with a
 * value behind it; the answer repeats those that ask for something, in their order. */
#include "apps/memcached/flags.h"

#include "apps/memcached/txn.h"

#include <stdio.h>
#include <string.h>

enum { FLAG_WORDS_MAX = 19, OPAQUE_MAX = 32, ANSWER_BYTES = 1024 };

static const char bad_line[] = "CLIENT_ERROR bad command line format";

/* ---- answers ------------------------------------------------------------------ */

struct answer {
    uint8_t text[ANSWER_BYTES];
    uint8_t *p;
    bool opaque_too_long;
};

static void put_text(struct answer *a, const void *text, uint32_t n)
{
    memcpy(a->p, text, n);
    a->p += n;
}

static void put_number(struct answer *a, char letter, uint64_t value)
{
    *a->p++ = ' ';
    *a->p++ = (uint8_t)letter;
    a->p = ix_mc_u64_text(a->p, value);
}

static void put_key(struct answer *a, const uint8_t *key, uint32_t nkey, bool binary)
{
    put_text(a, " k", 2);
    if (!binary) {
        put_text(a, key, nkey);
        return;
    }
    a->p += ix_mc_base64_encode(key, nkey, a->p);
    put_text(a, " b", 2);
}

static void put_opaque(struct answer *a, const struct ix_mc_token *t)
{
    if (t->n > OPAQUE_MAX) {
        a->opaque_too_long = true;
        return;
    }
    *a->p++ = ' ';
    put_text(a, t->at, t->n);
}

/* What any answer may have: O and k. */
static void put_common(struct answer *a, const struct ix_mc_flags *f)
{
    for (uint32_t i = f->first; i < f->w->count; i++) {
        const struct ix_mc_token *t = &f->w->word[i];
        if (t->at[0] == 'O')
            put_opaque(a, t);
        else if (t->at[0] == 'k')
            put_key(a, f->key, f->nkey, f->binary_key);
    }
}

static void put_ttl(const struct ix_mc_use *use, struct answer *a, const struct ix_mc_item *item)
{
    if (item->exptime)
        put_number(a, 't', item->exptime - use->now_s);
    else
        put_text(a, " t-1", 4);
}

static void send_answer(struct ix_mc_server *s, struct ix_mc_conn *c, struct answer *a)
{
    put_text(a, "\r\n", 2);
    ix_mc_put(s, c, a->text, (uint32_t)(a->p - a->text));
}

/* ---- mg ----------------------------------------------------------------------- */

static const char opaque_too_long[] = "CLIENT_ERROR opaque token too long";

/* Only one client is told to make a stale, missing or soon expiring item anew (W); others are told
 * that one was (Z). */
static void put_tokens(struct answer *a, struct ix_mc_item *item, bool won)
{
    bool sent = item->bits & IX_MC_TOKEN_SENT;
    if (sent)
        put_text(a, " Z", 2);
    if (item->bits & IX_MC_STALE) {
        put_text(a, " X", 2);
        won |= !sent;
    }
    if (won) {
        put_text(a, " W", 2);
        item->bits |= IX_MC_TOKEN_SENT;
    }
}

static bool hit_flag(struct ix_mc_use *use, struct answer *a, const struct ix_mc_flags *f,
                     const struct ix_mc_token *t, struct ix_mc_item *item, bool created)
{
    switch (t->at[0]) {
    case 'T':
        item->exptime = f->exptime;
        break;
    case 'N':
        if (created)
            item->exptime = f->vivify_exptime;
        return created;
    case 'R':
        return !(item->bits & IX_MC_TOKEN_SENT) && !created && item->exptime &&
               item->exptime < f->recache;
    case 's':
        put_number(a, 's', item->nbytes - 2);
        break;
    case 't':
        put_ttl(use, a, item);
        break;
    case 'c':
        put_number(a, 'c', item->cas);
        break;
    case 'f':
        put_number(a, 'f', item->flags);
        break;
    case 'l':
        put_number(a, 'l', use->now_s - item->time);
        break;
    case 'h':
        put_number(a, 'h', !!(item->bits & IX_MC_FETCHED));
        break;
    case 'O':
        put_opaque(a, t);
        break;
    case 'k':
        put_key(a, ix_mc_key(item), item->nkey, item->bits & IX_MC_BINARY_KEY);
        break;
    default:
        break;
    }
    return false;
}

static void mg_hit(struct ix_mc_server *s, struct ix_mc_conn *c, const struct ix_mc_flags *f,
                   struct ix_mc_item *item, bool created)
{
    struct answer a;
    bool won = false;
    a.p = a.text;
    a.opaque_too_long = false;
    put_text(&a, f->value ? "VA " : "HD", f->value ? 3 : 2);
    if (f->value)
        a.p = ix_mc_u64_text(a.p, item->nbytes - 2);
    for (uint32_t i = f->first; i < f->w->count; i++)
        won |= hit_flag(&s->use, &a, f, &f->w->word[i], item, created);
    if (a.opaque_too_long) {
        ix_mc_say_error(s, c, opaque_too_long);
        return;
    }
    put_tokens(&a, item, won);
    send_answer(s, c, &a);
    if (f->value)
        ix_mc_put_value(s, c, item, item->nbytes);
    if (!f->no_update)
        ix_mc_bump(&s->use, item);
    s->use.log->class_hits[item->cls][item->segment]++;
}

static void mg_miss(struct ix_mc_server *s, struct ix_mc_conn *c, const struct ix_mc_flags *f)
{
    struct answer a;
    a.p = a.text;
    a.opaque_too_long = false;
    put_text(&a, "EN", 2);
    put_common(&a, f);
    if (a.opaque_too_long)
        ix_mc_say_error(s, c, opaque_too_long);
    else if (!f->quiet)
        send_answer(s, c, &a);
}

static void meta_get(struct ix_mc_server *s, struct ix_mc_conn *c, const struct ix_mc_words *w)
{
    struct ix_mc_use *use = &s->use;
    struct ix_mc_flags f;
    if (w->count > FLAG_WORDS_MAX) {
        ix_mc_say_error(s, c, "CLIENT_ERROR options flags are too long");
        return;
    }
    if (!ix_mc_flags_parse(use, &f, w, 2)) {
        ix_mc_say_error(s, c, f.wrong);
        return;
    }
    uint32_t hash = ix_mc_hash(s->mc, f.key, f.nkey);
    ix_mc_lock(use, &ix_mc_bucket(use, hash)->lock);
    struct ix_mc_item *item = ix_mc_find(use, f.key, f.nkey, hash);
    bool created = false;
    if (!item && f.vivify) {
        item = ix_mc_make(s, f.key, f.nkey, hash, 0, 0, "", 0);
        created = item != NULL;
    }
    use->counts->cmd_get += !f.has_ttl;
    use->counts->cmd_touch += f.has_ttl;
    if (item) {
        use->counts->get_hits += !f.has_ttl;
        use->counts->touch_hits += f.has_ttl;
        mg_hit(s, c, &f, item, created);
    } else {
        use->counts->get_misses += !f.has_ttl;
        use->counts->touch_misses += f.has_ttl;
        mg_miss(s, c, &f);
    }
    ix_mc_unlock(use);
}

/* ---- ms ----------------------------------------------------------------------- */

static uint8_t store_mode(uint8_t letter)
{
    switch (letter) {
    case 'E':
        return IX_MC_MODE_ADD;
    case 'A':
        return IX_MC_MODE_APPEND;
    case 'P':
        return IX_MC_MODE_PREPEND;
    case 'R':
        return IX_MC_MODE_REPLACE;
    case 0:
    case 'S':
        return IX_MC_MODE_SET;
    default:
        return 0;
    }
}

/* Notes which of O, k and c the answer is to have. False: the opaque is too long. */
static bool stash(struct ix_mc_conn *c, const struct ix_mc_flags *f)
{
    c->stash_bytes = 0;
    for (uint32_t i = f->first; i < f->w->count; i++) {
        const struct ix_mc_token *t = &f->w->word[i];
        uint32_t n = t->at[0] == 'O' ? t->n : 1;
        if (!strchr("Okc", t->at[0]))
            continue;
        if (n > OPAQUE_MAX)
            return false;
        memcpy(&c->stash[c->stash_bytes], t->at, n);
        c->stash_bytes += (uint8_t)n;
        c->stash[c->stash_bytes++] = ' ';
    }
    return true;
}

static const char *begin_set(struct ix_mc_server *s, struct ix_mc_conn *c,
                             const struct ix_mc_flags *f, uint32_t nbytes)
{
    bool too_large;
    c->mode = store_mode(f->mode);
    if (!stash(c, f))
        return c->mode ? opaque_too_long : "CLIENT_ERROR invalid mode for ms M token";
    if (!c->mode)
        return "CLIENT_ERROR invalid mode for ms M token";
    if (f->has_cas && (c->mode == IX_MC_MODE_SET || c->mode == IX_MC_MODE_REPLACE))
        c->mode = IX_MC_MODE_CAS;
    if (!ix_mc_data_begin(s, c, f->key, f->nkey, f->client_flags, f->exptime, nbytes,
                          &too_large)) {
        ix_mc_forget(s, f->key, f->nkey);
        return too_large ? "SERVER_ERROR object too large for cache"
                         : "SERVER_ERROR out of memory storing object";
    }
    struct ix_mc_item *item = ix_mc_at(s->mc, s->use.holds[ix_mc_hold_of(s, c)]);
    item->cas = f->cas;
    if (f->binary_key)
        item->bits |= IX_MC_BINARY_KEY;
    c->noreply = f->quiet;
    c->set_stale = f->stale && c->mode == IX_MC_MODE_CAS;
    c->given_cas = f->has_new_cas ? f->new_cas : 0;
    c->is_meta = true;
    return NULL;
}

static void meta_set(struct ix_mc_server *s, struct ix_mc_conn *c, const struct ix_mc_words *w)
{
    struct ix_mc_flags f;
    int32_t bytes;
    if (w->count < 3 || w->count > FLAG_WORDS_MAX) {
        ix_mc_say_error(s, c, w->count < 3 ? bad_line : "CLIENT_ERROR options flags too long");
        return;
    }
    if (!ix_mc_i32(w->word[2].at, w->word[2].n, &bytes) || bytes < 0 || bytes > INT32_MAX - 2) {
        ix_mc_say_error(s, c, bad_line);
        return;
    }
    const char *wrong = NULL;
    if (ix_mc_flags_parse(&s->use, &f, w, 3))
        wrong = begin_set(s, c, &f, (uint32_t)bytes + 2);
    else
        wrong = f.wrong;
    c->left = (uint64_t)bytes + 2;
    c->state = wrong ? IX_MC_SWALLOW : IX_MC_READ_DATA;
    if (wrong)
        ix_mc_say_error(s, c, wrong);
}

void ix_mc_meta_data(struct ix_mc_server *s, struct ix_mc_conn *c, enum ix_mc_stored stored,
                     const struct ix_mc_token *key, bool binary_key)
{
    static const char codes[][3] = {"NS", "HD", "EX", "NF"};
    struct answer a;
    a.p = a.text;
    bool quiet = c->noreply && stored == IX_MC_STORED;
    c->noreply = false;
    put_text(&a, codes[stored], 2);
    for (uint32_t i = 0; i < c->stash_bytes; i++) {
        const uint8_t *word = &c->stash[i];
        const uint8_t *end = memchr(word, ' ', c->stash_bytes - i);
        struct ix_mc_token t = {word, (uint32_t)(end - word)};
        if (*word == 'k')
            put_key(&a, key->at, key->n, binary_key);
        else if (*word == 'c')
            put_number(&a, 'c', c->new_cas);
        else
            put_opaque(&a, &t);
        i += t.n;
    }
    if (!quiet)
        send_answer(s, c, &a);
}

/* ---- md ----------------------------------------------------------------------- */

/* The item stays, to be served until somebody has made it anew. */
static void invalidate(struct ix_mc_server *s, const struct ix_mc_flags *f, struct ix_mc_item *item)
{
    struct ix_mc_use *use = &s->use;
    if (f->has_ttl)
        IX_MC_SET(use, item->exptime, f->exptime);
    IX_MC_SET(use, item->bits, (item->bits | IX_MC_STALE) & ~IX_MC_TOKEN_SENT);
    IX_MC_SET(use, item->cas, f->has_new_cas ? f->new_cas : ix_mc_new_cas(use));
    ix_mc_commit(use);
}

static void meta_delete(struct ix_mc_server *s, struct ix_mc_conn *c, const struct ix_mc_words *w)
{
    struct ix_mc_use *use = &s->use;
    struct ix_mc_flags f;
    struct answer a;
    if (w->count > FLAG_WORDS_MAX || !ix_mc_flags_parse(use, &f, w, 2)) {
        ix_mc_say_error(s, c, w->count > FLAG_WORDS_MAX ? "CLIENT_ERROR options flags too long"
                                                        : "CLIENT_ERROR invalid or duplicate flag");
        return;
    }
    a.p = a.text + 2;
    a.opaque_too_long = false;
    put_common(&a, &f);
    if (a.opaque_too_long) {
        ix_mc_say_error(s, c, opaque_too_long);
        return;
    }
    const char *code = "HD";
    uint32_t hash = ix_mc_hash(s->mc, f.key, f.nkey);
    ix_mc_lock(use, &ix_mc_bucket(use, hash)->lock);
    struct ix_mc_item *item = ix_mc_find(use, f.key, f.nkey, hash);
    if (!item || (f.has_cas && item->cas != f.cas)) {
        code = item ? "EX" : "NF";
        use->counts->delete_misses++;
    } else if (f.stale) {
        invalidate(s, &f, item);
    } else {
        use->counts->delete_hits++;
        use->log->class_deletes[item->cls]++;
        ix_mc_unlink(use, item);
    }
    ix_mc_unlock(use);
    memcpy(a.text, code, 2);
    if (!f.quiet || code[0] != 'H')
        send_answer(s, c, &a);
}

/* ---- ma ----------------------------------------------------------------------- */

static void ma_hit(struct ix_mc_server *s, struct ix_mc_conn *c, const struct ix_mc_flags *f,
                   struct ix_mc_item *item, bool created, const uint8_t *text, uint32_t n)
{
    struct answer a;
    a.p = a.text;
    a.opaque_too_long = false;
    put_text(&a, f->value ? "VA " : "HD", f->value ? 3 : 2);
    if (f->value)
        a.p = ix_mc_u64_text(a.p, n);
    if (f->has_new_cas)
        item->cas = f->new_cas;
    for (uint32_t i = f->first; i < f->w->count; i++) {
        const struct ix_mc_token *t = &f->w->word[i];
        if (strchr("ctO", t->at[0]))
            hit_flag(&s->use, &a, f, t, item, created);
        else if (t->at[0] == 'T')
            item->exptime = f->exptime;
        else if (t->at[0] == 'N' && created)
            item->exptime = f->vivify_exptime;
        else if (t->at[0] == 'k')
            put_key(&a, f->key, f->nkey, f->binary_key);
    }
    if (f->value) {
        put_text(&a, "\r\n", 2);
        put_text(&a, text, n);
    }
    if (a.opaque_too_long)
        ix_mc_say_error(s, c, opaque_too_long);
    else if (!f->quiet || created)
        send_answer(s, c, &a);
}

static void ma_no_item(struct ix_mc_server *s, struct ix_mc_conn *c, const struct ix_mc_flags *f,
                       const char *code)
{
    struct answer a;
    a.p = a.text;
    a.opaque_too_long = false;
    put_text(&a, code, 2);
    put_common(&a, f);
    if (a.opaque_too_long)
        ix_mc_say_error(s, c, opaque_too_long);
    else
        send_answer(s, c, &a);
}

/* The bucket is locked. */
static void ma_locked(struct ix_mc_server *s, struct ix_mc_conn *c, const struct ix_mc_flags *f,
                      uint32_t hash, bool incr)
{
    uint8_t text[24];
    uint32_t n = 0;
    bool created = false;
    struct ix_mc_item *item;
    enum ix_mc_delta result = ix_mc_add_delta(s, f->key, f->nkey, hash, incr, f->delta, f->cas,
                                              text, &n, &item);
    if (result == IX_MC_DELTA_MISS && f->vivify) {
        n = (uint32_t)(ix_mc_u64_text(text, f->initial) - text);
        item = ix_mc_make(s, f->key, f->nkey, hash, 0, 0, text, n);
        created = item != NULL;
        result = item ? IX_MC_DELTA_OK : IX_MC_DELTA_NOMEM;
    }
    if (result == IX_MC_DELTA_OK)
        ma_hit(s, c, f, item, created, text, n);
    else if (result == IX_MC_DELTA_NAN)
        ix_mc_say_error(s, c, "CLIENT_ERROR cannot increment or decrement non-numeric value");
    else if (result == IX_MC_DELTA_NOMEM)
        ix_mc_say_error(s, c, f->vivify ? "SERVER_ERROR Out of memory allocating new item"
                                        : "SERVER_ERROR out of memory");
    else
        ma_no_item(s, c, f, result == IX_MC_DELTA_MISS ? "NF" : "EX");
}

static void meta_arithmetic(struct ix_mc_server *s, struct ix_mc_conn *c,
                            const struct ix_mc_words *w)
{
    struct ix_mc_flags f;
    if (w->count > FLAG_WORDS_MAX || !ix_mc_flags_parse(&s->use, &f, w, 2)) {
        ix_mc_say_error(s, c, w->count > FLAG_WORDS_MAX ? "CLIENT_ERROR options flags too long"
                                                        : "CLIENT_ERROR invalid or duplicate flag");
        return;
    }
    bool incr = !f.mode || f.mode == 'I' || f.mode == '+';
    if (!incr && f.mode != 'D' && f.mode != '-') {
        ix_mc_say_error(s, c, "CLIENT_ERROR invalid mode for ma M token");
        return;
    }
    uint32_t hash = ix_mc_hash(s->mc, f.key, f.nkey);
    ix_mc_lock(&s->use, &ix_mc_bucket(&s->use, hash)->lock);
    ma_locked(s, c, &f, hash, incr);
    ix_mc_unlock(&s->use);
}

/* ---- me, and which ------------------------------------------------------------ */

static void meta_debug(struct ix_mc_server *s, struct ix_mc_conn *c, const struct ix_mc_words *w)
{
    struct ix_mc_use *use = &s->use;
    struct ix_mc_flags f = {.key = w->word[1].at, .nkey = w->word[1].n};
    if (w->count >= 3 && ix_mc_is(&w->word[2], "b")) {
        ix_mc_flags_key(&f);
        if (f.wrong) {
            ix_mc_say(s, c, bad_line);
            return;
        }
    }
    uint32_t hash = ix_mc_hash(s->mc, f.key, f.nkey);
    use->counts->cmd_meta++;
    ix_mc_lock(use, &ix_mc_bucket(use, hash)->lock);
    struct ix_mc_item *item = ix_mc_find(use, f.key, f.nkey, hash);
    char line[ANSWER_BYTES] = "EN";
    if (item) {
        uint8_t name[400];
        bool binary = item->bits & IX_MC_BINARY_KEY;
        uint32_t n = item->nkey;
        if (binary)
            n = ix_mc_base64_encode(ix_mc_key(item), item->nkey, name);
        int age = item->exptime ? (int)(use->now_s - item->exptime) : -1;
        snprintf(line, sizeof line, "ME %.*s exp=%d la=%u cas=%llu fetch=%s cls=%u size=%llu",
                 (int)n, binary ? name : ix_mc_key(item), age, use->now_s - item->time,
                 (unsigned long long)item->cas, item->bits & IX_MC_FETCHED ? "yes" : "no",
                 item->cls, (unsigned long long)ix_mc_item_bytes(item->nkey, item->nbytes));
    }
    ix_mc_unlock(use);
    ix_mc_say(s, c, line);
}

void ix_mc_meta_command(struct ix_mc_server *s, struct ix_mc_conn *c, struct ix_mc_words *w)
{
    uint8_t which = w->word[0].at[1];
    if (which == 'n')
        ix_mc_say(s, c, "MN");
    else if (!strchr("gsdae", which))
        ix_mc_say(s, c, "ERROR");
    else if (w->count < 2)
        ix_mc_say(s, c, which == 'e' ? bad_line : "ERROR");
    else if (w->word[1].n > IX_MC_KEY_MAX)
        ix_mc_say(s, c, bad_line);
    else if (which == 'g')
        meta_get(s, c, w);
    else if (which == 's')
        meta_set(s, c, w);
    else if (which == 'd')
        meta_delete(s, c, w);
    else if (which == 'a')
        meta_arithmetic(s, c, w);
    else
        meta_debug(s, c, w);
}
