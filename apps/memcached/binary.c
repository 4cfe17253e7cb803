/* The binary protocol: a header of 24 bytes, extras, a key, a value; numbers in network byte
 * order. */
#include "apps/memcached/conn.h"

#include "apps/memcached/txn.h"

#include <arpa/inet.h>
#include <endian.h>
#include <stdlib.h>
#include <string.h>

enum { REQUEST = 0x80, RESPONSE = 0x81, HEADER_BYTES = 24 };

enum opcode {
    OP_GET = 0, OP_SET, OP_ADD, OP_REPLACE, OP_DELETE, OP_INCREMENT, OP_DECREMENT, OP_QUIT,
    OP_FLUSH, OP_GETQ, OP_NOOP, OP_VERSION, OP_GETK, OP_GETKQ, OP_APPEND, OP_PREPEND, OP_STAT,
    OP_SETQ, OP_ADDQ, OP_REPLACEQ, OP_DELETEQ, OP_INCREMENTQ, OP_DECREMENTQ, OP_QUITQ, OP_FLUSHQ,
    OP_APPENDQ, OP_PREPENDQ, OP_VERBOSITY, OP_TOUCH, OP_GAT, OP_GATQ,
    OP_SASL_LIST = 0x20, OP_SASL_AUTH, OP_SASL_STEP, OP_GATK = 0x23, OP_GATKQ
};

enum status {
    ST_OK = 0, ST_NOT_FOUND = 1, ST_EXISTS = 2, ST_TOO_LARGE = 3, ST_INVALID = 4, ST_NOT_STORED = 5,
    ST_NOT_A_NUMBER = 6, ST_AUTH = 0x20, ST_UNKNOWN = 0x81, ST_NO_MEMORY = 0x82
};

struct request {
    uint8_t opcode, extras;
    uint16_t nkey;
    uint32_t body, opaque;
    uint64_t cas;
    const uint8_t *extra, *key;
    uint8_t base; /* the opcode without its Q */
    bool quiet;
};

static const uint8_t quiet_of[256] = {
    [OP_SETQ] = OP_SET + 1, [OP_ADDQ] = OP_ADD + 1, [OP_REPLACEQ] = OP_REPLACE + 1,
    [OP_DELETEQ] = OP_DELETE + 1, [OP_INCREMENTQ] = OP_INCREMENT + 1,
    [OP_DECREMENTQ] = OP_DECREMENT + 1, [OP_QUITQ] = OP_QUIT + 1, [OP_FLUSHQ] = OP_FLUSH + 1,
    [OP_APPENDQ] = OP_APPEND + 1, [OP_PREPENDQ] = OP_PREPEND + 1, [OP_GETQ] = OP_GET + 1,
    [OP_GETKQ] = OP_GETK + 1, [OP_GATQ] = OP_GAT + 1, [OP_GATKQ] = OP_GATK + 1};

static uint32_t get32(const uint8_t *p)
{
    uint32_t v;
    memcpy(&v, p, 4);
    return ntohl(v);
}

static uint64_t get64(const uint8_t *p)
{
    uint64_t v;
    memcpy(&v, p, 8);
    return be64toh(v);
}

/* ---- answers ------------------------------------------------------------------ */

static void put_header(struct ix_mc_server *s, struct ix_mc_conn *c, uint16_t status,
                       uint8_t extras, uint16_t nkey, uint32_t body, uint64_t cas)
{
    uint8_t h[HEADER_BYTES] = {RESPONSE, c->opcode, 0, 0, extras, 0};
    uint16_t wide = htons(nkey);
    uint32_t number = htonl(body);
    cas = htobe64(cas);
    memcpy(h + 2, &wide, 2);
    wide = htons(status);
    memcpy(h + 6, &wide, 2);
    memcpy(h + 8, &number, 4);
    memcpy(h + 12, &c->opaque, 4);
    memcpy(h + 16, &cas, 8);
    ix_mc_put(s, c, h, sizeof h);
}

static void put_error(struct ix_mc_server *s, struct ix_mc_conn *c, enum status status,
                      const char *text)
{
    static const struct {
        enum status status;
        const char *text;
    } usual[] = {{ST_NO_MEMORY, "Out of memory"},
                 {ST_UNKNOWN, "Unknown command"},
                 {ST_NOT_FOUND, "Not found"},
                 {ST_INVALID, "Invalid arguments"},
                 {ST_EXISTS, "Data exists for key."},
                 {ST_TOO_LARGE, "Too large."},
                 {ST_NOT_A_NUMBER, "Non-numeric server-side value for incr or decr"},
                 {ST_NOT_STORED, "Not stored."},
                 {ST_AUTH, "Auth failure."}};
    for (uint32_t i = 0; !text; i++)
        if (usual[i].status == status)
            text = usual[i].text;
    put_header(s, c, status, 0, 0, (uint32_t)strlen(text), 0);
    ix_mc_put(s, c, text, (uint32_t)strlen(text));
}

static void put_done(struct ix_mc_server *s, struct ix_mc_conn *c, const void *body, uint32_t n,
                     uint64_t cas)
{
    if (c->quiet)
        return;
    put_header(s, c, ST_OK, 0, 0, n, cas);
    ix_mc_put(s, c, body, n);
}

static void swallow(struct ix_mc_conn *c, uint32_t bytes)
{
    c->state = IX_MC_SWALLOW;
    c->left = bytes;
}

/* ---- get, touch, gat ---------------------------------------------------------- */

static void put_item(struct ix_mc_server *s, struct ix_mc_conn *c, const struct request *r,
                     struct ix_mc_item *item)
{
    bool with_key = r->base == OP_GETK || r->base == OP_GATK;
    uint32_t value = r->base == OP_TOUCH ? 0 : item->nbytes - 2;
    uint32_t flags = htonl(item->flags);
    put_header(s, c, ST_OK, 4, with_key ? r->nkey : 0, 4 + (with_key ? r->nkey : 0) + value,
               item->cas);
    ix_mc_put(s, c, &flags, 4);
    if (with_key)
        ix_mc_put(s, c, r->key, r->nkey);
    if (value)
        ix_mc_put_value(s, c, item, value);
}

static void get(struct ix_mc_server *s, struct ix_mc_conn *c, const struct request *r)
{
    struct ix_mc_use *use = &s->use;
    bool touch = r->extras, with_key = r->base == OP_GETK || r->base == OP_GATK;
    uint32_t hash = ix_mc_hash(s->mc, r->key, r->nkey);
    ix_mc_lock(use, &ix_mc_bucket(use, hash)->lock);
    struct ix_mc_item *item = ix_mc_find(use, r->key, r->nkey, hash);
    use->counts->cmd_touch += touch;
    use->counts->cmd_get += !touch;
    if (item) {
        use->counts->touch_hits += touch;
        use->counts->get_hits += !touch;
        if (touch) {
            item->exptime = ix_mc_expiry(use, get32(r->extra));
            use->log->class_touches[item->cls]++;
        } else {
            use->log->class_hits[item->cls][item->segment]++;
        }
        put_item(s, c, r, item);
        ix_mc_bump(use, item);
    } else {
        use->counts->touch_misses += touch;
        use->counts->get_misses += !touch;
        if (!c->quiet && with_key) {
            put_header(s, c, ST_NOT_FOUND, 0, r->nkey, r->nkey, 0);
            ix_mc_put(s, c, r->key, r->nkey);
        } else if (!c->quiet) {
            put_error(s, c, ST_NOT_FOUND, NULL);
        }
    }
    ix_mc_unlock(use);
}

/* ---- set and its kin ---------------------------------------------------------- */

static void update(struct ix_mc_server *s, struct ix_mc_conn *c, const struct request *r)
{
    static const uint8_t modes[] = {[OP_SET] = IX_MC_MODE_SET,
                                    [OP_ADD] = IX_MC_MODE_ADD,
                                    [OP_REPLACE] = IX_MC_MODE_REPLACE,
                                    [OP_APPEND] = IX_MC_MODE_APPEND,
                                    [OP_PREPEND] = IX_MC_MODE_PREPEND};
    uint32_t bytes = r->body - r->nkey - r->extras;
    uint32_t flags = r->extras ? get32(r->extra) : 0;
    uint32_t exptime = r->extras ? ix_mc_expiry(&s->use, get32(r->extra + 4)) : 0;
    bool too_large = true;
    c->is_meta = c->set_stale = false;
    c->mode = modes[r->base];
    if (bytes > INT32_MAX - 2 ||
        !ix_mc_data_begin(s, c, r->key, r->nkey, flags, exptime, bytes + 2, &too_large)) {
        put_error(s, c, too_large ? ST_TOO_LARGE : ST_NO_MEMORY,
                  too_large ? NULL : "Out of memory allocating item");
        swallow(c, bytes);
        if (r->base == OP_SET)
            ix_mc_forget(s, r->key, r->nkey);
        return;
    }
    ix_mc_at(s->mc, s->use.holds[ix_mc_hold_of(s, c)])->cas = r->cas;
    if (r->cas && r->extras)
        c->mode = IX_MC_MODE_CAS;
    c->state = IX_MC_READ_DATA;
    c->left = bytes;
}

void ix_mc_binary_data(struct ix_mc_server *s, struct ix_mc_conn *c)
{
    ix_mc_write(s->mc, &c->cursor, "\r\n", 2);
    switch (ix_mc_store_held(s, c)) {
    case IX_MC_STORED:
        put_done(s, c, NULL, 0, c->new_cas);
        break;
    case IX_MC_EXISTS:
        put_error(s, c, ST_EXISTS, NULL);
        break;
    case IX_MC_NOT_FOUND:
        put_error(s, c, ST_NOT_FOUND, NULL);
        break;
    default:
        put_error(s, c,
                  c->mode == IX_MC_MODE_ADD       ? ST_EXISTS
                  : c->mode == IX_MC_MODE_REPLACE ? ST_NOT_FOUND
                                                  : ST_NOT_STORED,
                  NULL);
        break;
    }
    ix_mc_drop(&s->use, ix_mc_hold_of(s, c));
}

/* ---- incr, delete, flush, stat ------------------------------------------------ */

static void delta(struct ix_mc_server *s, struct ix_mc_conn *c, const struct request *r)
{
    struct ix_mc_use *use = &s->use;
    uint64_t by = get64(r->extra), first = get64(r->extra + 8), value = 0;
    uint32_t expiry = get32(r->extra + 16), n = 0;
    bool incr = r->base == OP_INCREMENT;
    uint8_t text[24];
    struct ix_mc_item *item;
    uint32_t hash = ix_mc_hash(s->mc, r->key, r->nkey);
    ix_mc_lock(use, &ix_mc_bucket(use, hash)->lock);
    enum ix_mc_delta result =
        ix_mc_add_delta(s, r->key, r->nkey, hash, incr, by, r->cas, text, &n, &item);
    if (result == IX_MC_DELTA_MISS && expiry != UINT32_MAX) {
        n = (uint32_t)(ix_mc_u64_text(text, first) - text);
        item = ix_mc_make(s, r->key, r->nkey, hash, 0, ix_mc_expiry(use, expiry), text, n);
        result = item ? IX_MC_DELTA_OK : IX_MC_DELTA_NOMEM;
    }
    if (result == IX_MC_DELTA_OK) {
        ix_mc_u64(text, n, &value);
        value = htobe64(value);
        put_done(s, c, &value, sizeof value, item->cas);
    } else {
        static const enum status codes[] = {ST_OK, ST_NOT_A_NUMBER, ST_NOT_FOUND, ST_EXISTS,
                                            ST_NO_MEMORY};
        put_error(s, c, codes[result],
                  result == IX_MC_DELTA_NOMEM ? "Out of memory incrementing value" : NULL);
    }
    ix_mc_unlock(use);
}

static void delete(struct ix_mc_server *s, struct ix_mc_conn *c, const struct request *r)
{
    struct ix_mc_use *use = &s->use;
    uint32_t hash = ix_mc_hash(s->mc, r->key, r->nkey);
    ix_mc_lock(use, &ix_mc_bucket(use, hash)->lock);
    struct ix_mc_item *item = ix_mc_find(use, r->key, r->nkey, hash);
    bool other = item && r->cas && r->cas != item->cas;
    if (item && !other) {
        use->counts->delete_hits++;
        use->log->class_deletes[item->cls]++;
        ix_mc_unlink(use, item);
    } else if (!item) {
        use->counts->delete_misses++;
    }
    ix_mc_unlock(use);
    if (other)
        put_error(s, c, ST_EXISTS, NULL);
    else if (item)
        put_done(s, c, NULL, 0, 0);
    else
        put_error(s, c, ST_NOT_FOUND, NULL);
}

static void flush(struct ix_mc_server *s, struct ix_mc_conn *c, const struct request *r)
{
    if (s->mc->config.no_flush) {
        put_error(s, c, ST_AUTH, NULL);
        return;
    }
    ix_mc_flush(s, r->extras ? get32(r->extra) : 0);
    put_done(s, c, NULL, 0, 0);
}

static void put_stat(uint8_t **p, const struct ix_mc_conn *c, const char *name, uint32_t nname,
                     const char *value, uint32_t nvalue)
{
    uint8_t h[HEADER_BYTES] = {RESPONSE, c->opcode};
    uint16_t wide = htons((uint16_t)nname);
    uint32_t body = htonl(nname + nvalue);
    memcpy(h + 2, &wide, 2);
    memcpy(h + 8, &body, 4);
    memcpy(h + 12, &c->opaque, 4);
    memcpy(*p, h, sizeof h);
    memcpy(*p + sizeof h, name, nname);
    memcpy(*p + sizeof h + nname, value, nvalue);
    *p += sizeof h + nname + nvalue;
}

/* The text protocol's lines, each as an answer of its own, and an empty one at the end. */
static void stat(struct ix_mc_server *s, struct ix_mc_conn *c, const struct request *r)
{
    uint32_t n = 0, lines = 1;
    char *text = NULL;
    if (r->nkey >= 5 && !memcmp(r->key, "reset", 5))
        ix_mc_stats_reset(s);
    else if (!(text = ix_mc_stats_text(s, r->key, r->nkey, &n))) {
        put_error(s, c, ST_NOT_FOUND, NULL);
        return;
    }
    for (uint32_t i = 0; i < n; i++)
        lines += text[i] == '\n';
    uint8_t *blob = malloc(n + (uint64_t)lines * HEADER_BYTES), *p = blob;
    if (!blob) {
        free(text);
        put_error(s, c, ST_NO_MEMORY, "Out of memory generating stats");
        return;
    }
    for (const char *line = text, *end; line && line < text + n; line = end + 2) {
        end = memchr(line, '\r', (size_t)(text + n - line));
        const char *name = line + 5, *space = memchr(name, ' ', (size_t)(end - name));
        put_stat(&p, c, name, (uint32_t)(space - name), space + 1, (uint32_t)(end - space - 1));
    }
    put_stat(&p, c, NULL, 0, NULL, 0);
    free(text);
    ix_mc_put_blob(s, c, blob, (uint32_t)(p - blob));
}

/* ---- which -------------------------------------------------------------------- */

static bool well_formed(const struct request *r)
{
    uint32_t value = r->body - r->nkey - r->extras;
    switch (r->base) {
    case OP_VERSION:
    case OP_NOOP:
    case OP_QUIT:
    case OP_SASL_LIST:
        return !r->body;
    case OP_FLUSH:
        return !r->nkey && !value && (!r->extras || r->extras == 4);
    case OP_SET:
    case OP_ADD:
    case OP_REPLACE:
        return r->extras == 8 && r->nkey;
    case OP_GET:
    case OP_GETK:
    case OP_DELETE:
        return !r->extras && r->nkey && !value;
    case OP_INCREMENT:
    case OP_DECREMENT:
        return r->extras == 20 && r->nkey && !value;
    case OP_APPEND:
    case OP_PREPEND:
    case OP_SASL_AUTH:
    case OP_SASL_STEP:
        return !r->extras && r->nkey;
    case OP_STAT:
        return !r->extras;
    case OP_TOUCH:
    case OP_GAT:
    case OP_GATK:
        return r->extras == 4 && r->nkey;
    default:
        return true;
    }
}

static void run(struct ix_mc_server *s, struct ix_mc_conn *c, const struct request *r)
{
    switch (r->base) {
    case OP_VERSION:
        put_done(s, c, IX_MC_VERSION, sizeof IX_MC_VERSION - 1, 0);
        break;
    case OP_NOOP:
        put_done(s, c, NULL, 0, 0);
        break;
    case OP_QUIT:
        put_done(s, c, NULL, 0, 0);
        c->state = IX_MC_ENDED;
        break;
    case OP_FLUSH:
        flush(s, c, r);
        break;
    case OP_SET:
    case OP_ADD:
    case OP_REPLACE:
    case OP_APPEND:
    case OP_PREPEND:
        update(s, c, r);
        break;
    case OP_GET:
    case OP_GETK:
    case OP_TOUCH:
    case OP_GAT:
    case OP_GATK:
        get(s, c, r);
        break;
    case OP_DELETE:
        delete(s, c, r);
        break;
    case OP_INCREMENT:
    case OP_DECREMENT:
        delta(s, c, r);
        break;
    case OP_STAT:
        stat(s, c, r);
        break;
    default: /* SASL's among them */
        put_error(s, c, ST_UNKNOWN, NULL);
        swallow(c, r->body - (r->base >= OP_SASL_LIST && r->base <= OP_SASL_STEP ? r->nkey : 0));
        break;
    }
}

bool ix_mc_binary_command(struct ix_mc_server *s, struct ix_mc_conn *c)
{
    const uint8_t *h = ix_mc_peek(s, c, HEADER_BYTES);
    if (!h)
        return false;
    struct request r = {.opcode = h[1], .extras = h[4], .nkey = (uint16_t)(h[2] << 8 | h[3]),
                        .body = get32(h + 8), .cas = get64(h + 16)};
    bool good = h[0] == REQUEST;
    uint32_t head = HEADER_BYTES + r.extras + r.nkey;
    memcpy(&c->opaque, h + 12, 4);
    if (good && !(h = ix_mc_peek(s, c, head)))
        return false;
    c->opcode = r.opcode;
    c->quiet = quiet_of[r.opcode];
    r.base = c->quiet ? quiet_of[r.opcode] - 1 : r.opcode;
    r.extra = h + HEADER_BYTES;
    r.key = r.extra + r.extras;
    if (!good) {
        c->state = IX_MC_ENDED;
    } else if ((uint64_t)r.nkey + r.extras > r.body) {
        put_error(s, c, ST_UNKNOWN, NULL);
        c->state = IX_MC_ENDED;
    } else if (r.nkey > IX_MC_KEY_MAX || !well_formed(&r)) {
        put_error(s, c, ST_INVALID, NULL);
        c->state = IX_MC_ENDED;
    } else {
        run(s, c, &r);
    }
    if (c->state == IX_MC_ENDED)
        ix_mc_input_drop(s, c);
    else
        ix_mc_consume(s, c, head);
    return true;
}
