/* A memcached client's requests, in the text protocol, on items whose keys and values follow from
 * their number: so every reply is known to the byte before it comes.
 *
 * Sizes and mixes are those of Atikoglu et al., "Workload Analysis of a Large-Scale Key-Value
 * Store", SIGMETRICS '12: ETC by the model of its section 5 (key sizes GEV(30.7984, 8.20449,
 * 0.078688); value sizes by table up to 14 bytes, generalized Pareto(214.476, 0.348238) beyond; 30
 * GETs to a SET), USR as its section 3 describes it (keys of 16 or 21 bytes, values of 2, 99.8%
 * GETs).
 */
#include "load.h"

#include <errno.h>
#include <stdlib.h>

#define KEY_MAX   250u
#define VALUE_MAX (1000u * 1024u) /* an item of a MiB with its head, memcached's default limit */
#define TRACE     (1u << 20)      /* requests drawn ahead, a power of two */

struct item {
    uint32_t value_bytes;
    uint16_t value_at; /* in the byte stream */
    uint8_t key_bytes;
};

struct memcached {
    struct item *items;
    uint32_t *trace; /* item numbers, drawn ahead: the draw takes longer than the request */
    uint32_t trace_at;
    double gets;
    uint32_t store_next; /* preloading: the next item of this worker's share */
    uint64_t get_hits, get_misses, sets;
};

/* Value sizes of up to 14 bytes: the share of each. */
static const double small_values[15] = {0.00536, 0.00047, 0.17820, 0.09239, 0.00018,
                                        0.02740, 0.00065, 0.00606, 0.00023, 0.00837,
                                        0.00837, 0.08989, 0.00092, 0.00326, 0.01980};

static uint32_t etc_value_bytes(double u)
{
    for (uint32_t i = 0; i < 15; i++) {
        if (u < small_values[i])
            return i;
        u -= small_values[i];
    }
    double rest = 1;
    for (uint32_t i = 0; i < 15; i++)
        rest -= small_values[i];
    /* What is left of u is even over the rest. */
    double bytes = 15 + pareto(1 - u / rest, 214.476, 0.348238);
    return bytes < VALUE_MAX ? (uint32_t)bytes : VALUE_MAX;
}

static uint32_t etc_key_bytes(double u)
{
    double bytes = extreme_value(u, 30.7984, 8.20449, 0.078688);
    return bytes < 1 ? 1 : bytes > KEY_MAX ? KEY_MAX : (uint32_t)bytes;
}

/* A key has its item's number in it, so it has at least as many bytes as that has hex digits. */
static uint32_t digits(uint32_t items)
{
    uint32_t n = 1;
    while (n < 8 && (items - 1) >> (4 * n))
        n++;
    return n;
}

/* Sizes of an item. False: no workload of this name. */
static bool choose_sizes(const char *workload, struct rng *rng, uint32_t *key, uint32_t *value)
{
    double u = rng_unit(rng), v = rng_unit(rng);
    char end;
    if (strcmp(workload, "etc") == 0) {
        *key = etc_key_bytes(u);
        *value = etc_value_bytes(v);
    } else if (strcmp(workload, "usr") == 0) {
        *key = u < 0.5 ? 16 : 21;
        *value = 2;
    } else if (sscanf(workload, "%u,%u%c", key, value, &end) != 2 || *key < 1 || *key > KEY_MAX ||
               *value > VALUE_MAX) {
        return false;
    }
    return true;
}

/* The same for every worker, and for every run with this seed. */
static void make_items(struct load *l)
{
    struct memcached *m = l->memcached;
    const struct options *o = &l->opt;
    struct rng rng = {.state = bytestream_word(o->seed, 0x6974656d)};
    uint32_t least = digits(o->items);
    for (uint32_t i = 0; i < o->items; i++) {
        uint32_t key = 1, value = 0;
        if (!choose_sizes(o->workload, &rng, &key, &value))
            usage("--workload takes etc, usr, or KEY,VALUE bytes");
        m->items[i] = (struct item){.value_bytes = value,
                                    .value_at = (uint16_t)bytestream_start(o->seed, i),
                                    .key_bytes = (uint8_t)(key < least ? least : key)};
    }
}

/* Popular items lie all over the key space, not side by side: their rank is not their number. */
static void draw_trace(struct load *l)
{
    const struct options *o = &l->opt;
    struct zipf zipf = {0};
    if (o->zipf > 0)
        zipf_init(&zipf, o->zipf, o->items);
    for (uint32_t i = 0; i < TRACE; i++) {
        uint64_t rank = o->zipf > 0 ? zipf_draw(&zipf, &l->rng) : rng_next(&l->rng);
        l->memcached->trace[i] = (uint32_t)(rank * 2654435761u % o->items);
    }
}

int memcached_init(struct load *l)
{
    struct memcached *m = l->memcached = calloc(1, sizeof *m);
    if (!m || !(m->items = calloc(l->opt.items, sizeof *m->items)) ||
        !(m->trace = calloc(TRACE, sizeof *m->trace)))
        return -ENOMEM;
    make_items(l);
    draw_trace(l);
    m->gets = l->opt.gets;
    if (m->gets < 0)
        m->gets = strcmp(l->opt.workload, "usr") == 0 ? 0.998 : 30.0 / 31;
    return 0;
}

void memcached_free(struct load *l)
{
    if (l->memcached) {
        free(l->memcached->items);
        free(l->memcached->trace);
    }
    free(l->memcached);
}

/* ---- the bytes ----------------------------------------------------------------------- */

struct part {
    const void *bytes;
    uint32_t count;
};

/* A request or a reply: its first line, the value, what ends it. */
struct message {
    struct part parts[3];
    char line[KEY_MAX + 48];
};

static uint32_t decimal_digits(uint32_t n)
{
    uint32_t count = 1;
    while (n >= 10) {
        n /= 10;
        count++;
    }
    return count;
}

static char *put_number(char *to, uint32_t n)
{
    uint32_t count = decimal_digits(n);
    for (uint32_t i = count; i-- > 0; n /= 10)
        to[i] = (char)('0' + n % 10);
    return to + count;
}

static char *put_text(char *to, const char *text)
{
    size_t n = strlen(text);
    memcpy(to, text, n);
    return to + n;
}

/* The item's number in hex, then letters. */
static char *put_key(char *to, const struct item *item, uint32_t number)
{
    static const char hex[] = "0123456789abcdef";
    for (uint32_t i = 0; i < item->key_bytes; i++, number >>= 4)
        to[i] = i < 8 && i < item->key_bytes ? hex[number & 15] : (char)('a' + i % 26);
    return to + item->key_bytes;
}

static const struct item *item_of(const struct load *l, const struct request *r)
{
    return &l->memcached->items[r->item];
}

static void set_parts(struct load *l, struct message *m, const struct item *item, char *line_end,
                      const char *tail)
{
    m->parts[0] = (struct part){m->line, (uint32_t)(line_end - m->line)};
    m->parts[1] = (struct part){bytestream_at(&l->stream, item->value_at), item->value_bytes};
    m->parts[2] = (struct part){tail, (uint32_t)strlen(tail)};
}

static void make_request(struct load *l, const struct request *r, struct message *m)
{
    const struct item *item = item_of(l, r);
    char *at = put_key(put_text(m->line, r->store ? "set " : "get "), item, r->item);
    if (r->store)
        at = put_number(put_text(at, " 0 0 "), item->value_bytes);
    at = put_text(at, "\r\n");
    set_parts(l, m, item, at, "\r\n");
    if (!r->store)
        m->parts[1].count = m->parts[2].count = 0;
}

static void make_hit(struct load *l, const struct request *r, struct message *m)
{
    const struct item *item = item_of(l, r);
    char *at = put_key(put_text(m->line, "VALUE "), item, r->item);
    at = put_text(put_number(put_text(at, " 0 "), item->value_bytes), "\r\n");
    set_parts(l, m, item, at, "\r\nEND\r\n");
}

/* Calls for each run of bytes within [at, at + n): copies it to out, or compares it with it. */
static bool walk(const struct message *m, uint32_t at, uint8_t *copy_to, const uint8_t *compare,
                 uint32_t n)
{
    for (int i = 0; i < 3 && n; i++) {
        uint32_t count = m->parts[i].count;
        if (at >= count) {
            at -= count;
            continue;
        }
        uint32_t part = count - at < n ? count - at : n;
        const uint8_t *bytes = (const uint8_t *)m->parts[i].bytes + at;
        if (copy_to) {
            memcpy(copy_to, bytes, part);
            copy_to += part;
        } else {
            if (memcmp(compare, bytes, part) != 0)
                return false;
            compare += part;
        }
        n -= part;
        at = 0;
    }
    return n == 0;
}

void memcached_choose(struct load *l, struct request *r)
{
    struct memcached *m = l->memcached;
    if (l->preloading) {
        r->item = m->store_next;
        r->store = 1;
        m->store_next += l->opt.workers;
    } else {
        r->item = m->trace[m->trace_at++ & (TRACE - 1)];
        r->store = rng_unit(&l->rng) >= m->gets;
    }
    const struct item *item = item_of(l, r);
    r->wire_bytes = 4 + item->key_bytes + 2;
    if (r->store)
        r->wire_bytes += 5 + decimal_digits(item->value_bytes) + item->value_bytes + 2;
}

void memcached_render(struct load *l, const struct request *r, uint32_t at, uint8_t *out,
                      uint32_t n)
{
    struct message m;
    make_request(l, r, &m);
    walk(&m, at, out, NULL, n);
}

static const char stored[] = "STORED\r\n", missed[] = "END\r\n";

uint32_t memcached_reply_bytes(struct load *l, const struct request *r, uint8_t first)
{
    const struct item *item = item_of(l, r);
    if (r->store)
        return first == 'S' ? sizeof stored - 1 : 0;
    if (first == 'E')
        return sizeof missed - 1;
    if (first != 'V')
        return 0;
    return 6 + item->key_bytes + 3 + decimal_digits(item->value_bytes) + 2 + item->value_bytes +
           2 + (uint32_t)sizeof missed - 1;
}

static bool is_miss(const struct request *r, uint32_t reply_bytes)
{
    return !r->store && reply_bytes == sizeof missed - 1;
}

bool memcached_matches(struct load *l, const struct request *r, uint32_t reply_bytes, uint32_t at,
                       const uint8_t *data, uint32_t n)
{
    if (r->store)
        return memcmp(data, stored + at, n) == 0;
    if (is_miss(r, reply_bytes))
        return memcmp(data, missed + at, n) == 0;
    struct message m;
    make_hit(l, r, &m);
    return walk(&m, at, NULL, data, n);
}

/* ---- counts, and the items' storing --------------------------------------------------- */

void memcached_count(struct load *l, const struct request *r, uint32_t reply_bytes)
{
    if (!l->measuring)
        return;
    if (r->store)
        l->memcached->sets++;
    else if (is_miss(r, reply_bytes))
        l->memcached->get_misses++;
    else
        l->memcached->get_hits++;
}

void memcached_reset_counts(struct load *l)
{
    struct memcached *m = l->memcached;
    if (m)
        m->get_hits = m->get_misses = m->sets = 0;
}

void memcached_report(const struct load *l, FILE *out)
{
    const struct memcached *m = l->memcached;
    if (m)
        fprintf(out, "\"get_hits\": %llu, \"get_misses\": %llu, \"sets\": %llu, ",
                (unsigned long long)m->get_hits, (unsigned long long)m->get_misses,
                (unsigned long long)m->sets);
}

void memcached_begin_storing(struct load *l)
{
    l->memcached->store_next = l->opt.worker;
}

bool memcached_more_to_store(const struct load *l)
{
    return l->memcached->store_next < l->opt.items;
}
