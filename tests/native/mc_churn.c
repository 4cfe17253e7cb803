/* See mc_churn.h. */
#include "mc_churn.h"

#include "apps/memcached/txn.h"

#include <stdio.h>
#include <string.h>

enum { KEYS = 400, HOLDS = 8, KEY_BYTES = 8 };

static uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static uint32_t size_of(uint64_t draw)
{
    static const uint32_t sizes[] = {3, 20, 70, 300, 5000, 70000, 1200000, 40};
    return sizes[draw % 8] + (uint32_t)(draw >> 8) % 16;
}

/* The value is the key's number over and over. */
static void fill(struct ix_mc_use *use, struct ix_mc_item *item, uint8_t mark)
{
    struct ix_mc_cursor cursor = ix_mc_begin(use->mc, item);
    for (uint32_t left = item->nbytes; left;) {
        uint8_t *bytes;
        uint32_t n = ix_mc_run(use->mc, &cursor, left, &bytes);
        memset(bytes, mark, n);
        left -= n;
    }
}

static void verify(struct ix_mc_use *use, struct ix_mc_item *item, uint8_t mark)
{
    struct ix_mc_cursor cursor = ix_mc_begin(use->mc, item);
    for (uint32_t left = item->nbytes; left;) {
        uint8_t *bytes;
        uint32_t n = ix_mc_run(use->mc, &cursor, left, &bytes);
        if (bytes[0] != mark || bytes[n - 1] != mark)
            __builtin_trap();
        left -= n;
    }
}

static void store(struct ix_mc_use *use, const uint8_t *key, uint32_t hash, uint32_t hold,
                  uint64_t draw, uint8_t mark)
{
    struct ix_mc_item *item = ix_mc_alloc(use, hold, key, KEY_BYTES, hash, 0,
                                          draw % 5 ? 0 : use->now_s + 1, size_of(draw));
    if (!item)
        return;
    fill(use, item, mark);
    ix_mc_lock(use, &ix_mc_bucket(use, hash)->lock);
    struct ix_mc_item *old = ix_mc_find(use, key, KEY_BYTES, hash);
    ix_mc_link(use, hold, old);
    ix_mc_unlock(use);
}

static void look_up(struct ix_mc_use *use, const uint8_t *key, uint32_t hash, uint32_t hold,
                    uint64_t draw, uint8_t mark)
{
    ix_mc_lock(use, &ix_mc_bucket(use, hash)->lock);
    struct ix_mc_item *item = ix_mc_find(use, key, KEY_BYTES, hash);
    if (item) {
        ix_mc_bump(use, item);
        verify(use, item, mark);
        if (draw % 4 == 0)
            ix_mc_hold(use, hold, item);
        if (draw % 3 == 0)
            ix_mc_unlink(use, item);
    }
    ix_mc_unlock(use);
}

void ix_mc_churn(struct ix_mc *mc, uint32_t worker, uint64_t seed, uint64_t operations)
{
    struct ix_mc_use use;
    uint64_t random = seed | 1, now_ns = mc->start_ns;
    ix_mc_open(&use, mc, worker);
    for (uint64_t i = 0; !operations || i < operations; i++) {
        uint64_t draw = next_random(&random);
        uint32_t number = (uint32_t)(draw >> 40) % KEYS;
        uint32_t hold = IX_MC_SPARE_HOLDS + (uint32_t)(draw >> 32) % HOLDS;
        char key[KEY_BYTES + 1];
        snprintf(key, sizeof key, "key%05u", number);
        uint32_t hash = ix_mc_hash(mc, (uint8_t *)key, KEY_BYTES);
        ix_mc_set_time(&use, now_ns += 1000000);
        if (use.holds[hold]) {
            verify(&use, ix_mc_at(mc, use.holds[hold]),
                   ix_mc_key(ix_mc_at(mc, use.holds[hold]))[KEY_BYTES - 1]);
            ix_mc_drop(&use, hold);
        } else if (draw % 2) {
            store(&use, (uint8_t *)key, hash, hold, draw >> 3, (uint8_t)key[KEY_BYTES - 1]);
        } else {
            look_up(&use, (uint8_t *)key, hash, hold, draw >> 3, (uint8_t)key[KEY_BYTES - 1]);
        }
        ix_mc_maintain(&use);
        ix_mc_crawl(&use);
        if (draw % 64 == 1)
            ix_mc_move_start(&use, -1, (int32_t)(draw >> 20) % (int32_t)(mc->classes + 1));
        ix_mc_move(&use);
    }
}
