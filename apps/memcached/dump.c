/* Lists of what is stored: `stats cachedump` of one class, `lru_crawler metadump` of everything.
 *
 * A metadump is a state of its connection: it walks over the memory a little in each step and goes
 * at the speed at which the client reads. Chunks are looked at without a lock; what is found again
 * in its locked bucket is told.
 */
#include "apps/memcached/conn.h"

#include "apps/memcached/txn.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    CACHEDUMP_BYTES = 2 << 20, /* of text, at most, as memcached has it */
    STEP_CHUNKS = 16           /* looked at in a step: a turn has many steps */
};

uint32_t ix_mc_uri_text(uint8_t *to, const uint8_t *from, uint32_t n)
{
    static const char digits[] = "0123456789ABCDEF";
    uint8_t *p = to;
    for (uint32_t i = 0; i < n; i++) {
        uint8_t ch = from[i], lower = ch | 0x20;
        bool plain = (lower >= 'a' && lower <= 'z') || (ch >= '0' && ch <= '9') || ch == '-' ||
                     ch == '.' || ch == '_' || ch == '~';
        if (plain) {
            *p++ = ch;
            continue;
        }
        *p++ = '%';
        *p++ = (uint8_t)digits[ch >> 4];
        *p++ = (uint8_t)digits[ch & 15];
    }
    return (uint32_t)(p - to);
}

/* A time of the store's clock as a date, s. */
static unsigned long long date(const struct ix_mc *mc, uint32_t time)
{
    return mc->start_wall_s + time - IX_MC_FIRST_SECOND;
}

/* ---- cachedump ---------------------------------------------------------------- */

static uint32_t put_item(const struct ix_mc *mc, uint8_t *to, const struct ix_mc_item *item)
{
    memcpy(to, "ITEM ", 5);
    memcpy(to + 5, ix_mc_key(item), item->nkey);
    return 5 + item->nkey +
           (uint32_t)sprintf((char *)to + 5 + item->nkey, " [%u b; %llu s]\r\n", item->nbytes - 2,
                             item->exptime ? date(mc, item->exptime) : 0);
}

uint8_t *ix_mc_cachedump(struct ix_mc_server *s, uint32_t number, uint32_t limit, uint32_t *bytes)
{
    enum { LINE_BYTES = IX_MC_KEY_MAX + 64 };
    struct ix_mc *mc = s->mc;
    struct ix_mc_class *cls = &mc->cls[number];
    uint8_t *text = malloc(CACHEDUMP_BYTES);
    uint32_t n = 0, shown = 0, keep = s->use.log->locks;
    if (!text)
        return NULL;
    if (number && number <= mc->classes) {
        ix_mc_lock(&s->use, &cls->lock);
        for (uint32_t ref = cls->head[IX_MC_COLD]; ref && (!limit || shown < limit);
             ref = ix_mc_at(mc, ref)->next) {
            const struct ix_mc_item *item = ix_mc_at(mc, ref);
            if (item->bits & IX_MC_BINARY_KEY)
                continue;
            if (n + LINE_BYTES > CACHEDUMP_BYTES)
                break;
            n += put_item(mc, text + n, item);
            shown++;
        }
        ix_mc_unlock_to(&s->use, keep);
    }
    memcpy(text + n, "END\r\n", 5);
    *bytes = n + 5;
    return text;
}

/* ---- metadump ----------------------------------------------------------------- */

void ix_mc_dump_begin(struct ix_mc_conn *c, uint64_t classes)
{
    c->state = IX_MC_DUMP;
    c->left = classes;
    c->dump_page = c->dump_chunk = 0;
}

/* Tells of one item, if it is one. */
static void tell(struct ix_mc_server *s, struct ix_mc_conn *c, struct ix_mc_item *item)
{
    struct ix_mc_use *use = &s->use;
    uint8_t line[3 * IX_MC_KEY_MAX + 200];
    uint32_t n = 0;
    struct ix_mc_bucket *bucket =
        ix_mc_bucket(use, __atomic_load_n(&item->hash, __ATOMIC_RELAXED));
    ix_mc_lock(use, &bucket->lock);
    if (ix_mc_is_linked(use, bucket, item) && c->left >> item->cls & 1 &&
        !ix_mc_is_dead(use, item)) {
        memcpy(line, "key=", 4);
        n = 4 + ix_mc_uri_text(line + 4, ix_mc_key(item), item->nkey);
        n += (uint32_t)sprintf(
            (char *)line + n, " exp=%lld la=%llu cas=%llu fetch=%s cls=%u size=%llu\n",
            item->exptime ? (long long)date(s->mc, item->exptime) : -1, date(s->mc, item->time),
            (unsigned long long)item->cas, item->bits & IX_MC_FETCHED ? "yes" : "no", item->cls,
            (unsigned long long)ix_mc_item_bytes(item->nkey, item->nbytes));
    }
    ix_mc_unlock(use);
    ix_mc_put(s, c, line, n);
}

void ix_mc_dump_step(struct ix_mc_server *s, struct ix_mc_conn *c)
{
    struct ix_mc *mc = s->mc;
    for (uint32_t i = 0; i < STEP_CHUNKS; i++) {
        if (c->dump_page >= __atomic_load_n(&mc->pages_made, __ATOMIC_ACQUIRE)) {
            ix_mc_put(s, c, "END\r\n", 5);
            c->state = IX_MC_READ_COMMAND;
            return;
        }
        uint8_t cls = *ix_mc_page_class(mc, c->dump_page);
        if (!cls || c->dump_chunk >= mc->cls[cls].per_page) {
            c->dump_page++;
            c->dump_chunk = 0;
            continue;
        }
        struct ix_mc_item *item = ix_mc_chunk_at(mc, c->dump_page, cls, c->dump_chunk++);
        if (__atomic_load_n(&item->state, __ATOMIC_RELAXED) == IX_MC_LINKED) {
            tell(s, c, item);
            return; /* whether there is room for another is looked at between steps */
        }
    }
}
