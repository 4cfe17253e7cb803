/* The items of a memcached server, in memory that all of its workers share.
 *
 * The control process maps and makes the store before it forks the workers, so that it lies at one
 * address in all of them. What refers to an item is a 32-bit reference, in units of 8 bytes from
 * the store's first byte; 0 is none.
 *
 * A worker may be killed between any two instructions. So every change to what is shared is a
 * transaction (txn.h): the old value of each word is noted in the worker's log before it is
 * overwritten, and all locks are held until the end. ix_mc_recover() takes back what a dead worker
 * left half done, lets go of its locks, and gives back the items that it held.
 *
 * Locks are taken in this order: a bucket, classes by number, pages. Where the order is the other
 * way round (an eviction, a crawl) a bucket is only tried.
 */
#ifndef IX_MC_STORE_H
#define IX_MC_STORE_H

#include "apps/memcached/control.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    IX_MC_KEY_MAX = 250,
    IX_MC_WORKERS_MAX = 64,
    IX_MC_CLASSES_MAX = 64,      /* classes are numbered from 1 */
    IX_MC_PAGE_BYTES = 1 << 20,
    IX_MC_LOG_WORDS = 160,       /* more than any transaction changes */
    IX_MC_LOG_LOCKS = 8,
    IX_MC_SPARE_HOLDS = 2,       /* of a worker, besides one a connection: for what is freed ... */
    IX_MC_HOLD_NEW = 1,          /* ... and for an item made within a command */
    IX_MC_CONNS_SPARE = 64,      /* connections that are only told that there are too many */
    IX_MC_REF_SHIFT = 3,
    IX_MC_RING_BYTES = 256 << 10, /* of a worker's lines for who watches */
    IX_MC_MONTH_S = 60 * 60 * 24 * 30, /* longer expiry times are dates */
    IX_MC_FIRST_SECOND = 62      /* the store's clock at its creation, s: 0 means never */
};

/* What the memory of a chunk is. */
enum ix_mc_state {
    IX_MC_FREE = 0,
    IX_MC_FILL,    /* being written by who holds it */
    IX_MC_LINKED,  /* in the table and in a list */
    IX_MC_GONE,    /* taken out, and still read by who holds it */
    IX_MC_FREEING, /* held by who gives its chunks back */
    IX_MC_PART,    /* a chunk of another item's value */
    IX_MC_CAPTURED /* free, and in a page that is being emptied */
};

enum ix_mc_bits {
    IX_MC_FETCHED = 1,  /* asked for since it was stored */
    IX_MC_ACTIVE = 2,   /* ... a second time: keeps its place */
    IX_MC_CHUNKED = 4,  /* the value lies in a chain of chunks */
    IX_MC_STALE = 8,    /* meta: invalidated, may be served while one client makes it anew */
    IX_MC_TOKEN_SENT = 16, /* meta: a client was told to make it anew */
    IX_MC_BINARY_KEY = 32  /* meta: the key was given in base64 */
};

/* What can be watched. */
enum ix_mc_watch_kind {
    IX_MC_WATCH_FETCHERS = 1,
    IX_MC_WATCH_MUTATIONS = 2,
    IX_MC_WATCH_EVICTIONS = 4,
    IX_MC_WATCH_CONNEVENTS = 8,
    IX_MC_WATCH_SYSEVENTS = 16,
    IX_MC_WATCH_RAWCMDS = 32,
    IX_MC_WATCH_NOTHING = 64 /* what memcached's proxy tells */
};

enum ix_mc_segment { IX_MC_HOT = 0, IX_MC_WARM, IX_MC_COLD, IX_MC_TEMP, IX_MC_SEGMENTS };

/* 48 bytes, then the key, then the value with its \r\n. */
struct ix_mc_item {
    uint32_t chain;   /* LINKED: next in the bucket; FREE: next free one; a PART: next part */
    uint32_t next, prev; /* LINKED: in its list, towards older and newer; a PART: prev is whose */
    uint32_t time;    /* last use, s */
    uint32_t exptime; /* 0: never */
    uint32_t nbytes;  /* of the value, \r\n included; a PART: bytes of it here */
    uint32_t flags;   /* the client's */
    uint32_t hash;
    uint64_t cas;
    uint16_t refs;    /* who holds it LINKED or GONE */
    uint8_t state;    /* enum ix_mc_state */
    uint8_t bits;     /* enum ix_mc_bits */
    uint8_t cls;      /* whose list it is in; CHUNKED: the largest, whatever its memory's is */
    uint8_t segment;  /* enum ix_mc_segment */
    uint8_t nkey;
    uint8_t pad;
};

struct ix_mc_bucket {
    uint32_t lock; /* 0 or the holder's number + 1 */
    uint32_t head;
};

/* Counters of a class, changed under its lock. */
struct ix_mc_class {
    uint32_t lock;
    uint32_t chunk_bytes, per_page;
    uint32_t pages;
    uint32_t free_head, free_count;
    uint32_t kept_head, kept_count; /* free ones that the mover has looked at */
    uint32_t captured;              /* of the page that is being emptied */
    uint32_t carve_ref, carve_left; /* chunks of the newest page that were never used */
    uint32_t head[IX_MC_SEGMENTS], tail[IX_MC_SEGMENTS], count[IX_MC_SEGMENTS];
    uint64_t bytes[IX_MC_SEGMENTS]; /* of items, headers and keys included */
    uint64_t evicted, evicted_nonzero, evicted_unfetched, evicted_active;
    uint64_t expired_unfetched, reclaimed, outofmemory, crawler_reclaimed, direct_reclaims;
    uint64_t moves_to_cold, moves_to_warm, moves_within_lru;
    uint64_t total_items;
    uint64_t moved_evicted, moved_rescued; /* by the mover */
    uint64_t evicted_seen, nomem_seen; /* mover: as they were a second ago */
    uint32_t pages_seen;
    uint32_t evicted_bits, busy_bits; /* mover: the last seconds, a bit each */
    uint32_t evicted_time;
    uint32_t used_chunks;
} __attribute__((aligned(64)));

/* Counters of one worker, by nobody else changed. */
struct ix_mc_counts {
    uint64_t cmd_get, get_hits, get_misses, get_expired, get_flushed;
    uint64_t cmd_set, cmd_touch, touch_hits, touch_misses, cmd_flush, cmd_meta;
    uint64_t delete_hits, delete_misses, incr_hits, incr_misses, decr_hits, decr_misses;
    uint64_t cas_hits, cas_misses, cas_badval, store_too_large, store_no_memory;
    uint64_t bytes_read, bytes_written, total_connections, rejected_connections;
    uint64_t conn_yields, listen_disabled, idle_kicks, udp_requests;
};

struct ix_mc_log_word {
    uint64_t at, old;
    uint32_t bytes;
};

struct ix_mc_worker {
    /* the transaction under way */
    uint32_t words, locks;
    uint64_t lock_at[IX_MC_LOG_LOCKS];
    struct ix_mc_log_word word[IX_MC_LOG_WORDS];
    /* what others read */
    uint32_t curr_connections;
    uint32_t conn_structures;
    uint32_t watching;               /* kinds that its watchers want */
    uint64_t ring_claimed, ring_written; /* bytes: watch.c */
    struct ix_mc_counts counts;
    struct ix_mc_counts since; /* subtracted from them: `stats reset` */
    uint64_t class_hits[IX_MC_CLASSES_MAX][IX_MC_SEGMENTS];
    uint64_t class_sets[IX_MC_CLASSES_MAX], class_touches[IX_MC_CLASSES_MAX];
    uint64_t class_deletes[IX_MC_CLASSES_MAX], class_incrs[IX_MC_CLASSES_MAX];
    uint64_t class_decrs[IX_MC_CLASSES_MAX], class_cas_hits[IX_MC_CLASSES_MAX];
    uint64_t class_cas_bad[IX_MC_CLASSES_MAX];
} __attribute__((aligned(64)));

struct ix_mc {
    uint64_t magic;
    uint64_t map_bytes;
    struct ix_mc_config config;
    uint64_t start_ns, start_wall_s;
    uint32_t watching;              /* kinds that anybody wants */
    uint64_t lines_told;
    uint64_t pid;                   /* of who made it */
    uint64_t cas_next;              /* the last id given out; atomic */
    uint32_t oldest_live;           /* flush_all: s; 0: none */
    uint64_t oldest_cas;
    uint32_t bucket_mask, hash_power;
    uint32_t classes;               /* the number of the last */
    uint32_t pages_max, pages_made, pages_lock;
    uint32_t pages_free;            /* entries of free_pages in use */
    uint64_t limit_pages;           /* by cache_memlimit */
    uint32_t largest_class;
    uint32_t holds_per_worker;
    uint64_t buckets_at, pages_at, free_pages_at, holds_at, workers_at; /* bytes */
    uint64_t rings_at, area_at;
    /* maintenance: a turn is taken by who moves the time on */
    uint64_t maintain_due_ns, crawl_due_ns;
    uint32_t maintain_class;
    uint32_t crawl_page, crawl_chunk; /* where the crawler is */
    uint32_t crawl_run;             /* 1: a walk over all pages is under way */
    uint32_t crawl_started;         /* walks begun */
    uint64_t crawl_checked, crawl_reclaimed;
    uint32_t stopping;              /* `shutdown` was asked for: all workers end */
    /* the mover: one page at a time */
    uint32_t move_lock;
    uint32_t move_page;             /* which is being emptied, + 1; 0: none */
    uint32_t move_from, move_to;    /* its class, and whose it will be; 0: nobody's */
    uint32_t move_phase;            /* enum ix_mc_move_phase */
    uint32_t move_chunk, move_passes; /* where the walk over it is; walks done */
    uint64_t move_due_ns, judge_due_ns, pages_moved;
    uint64_t recoveries, undone;
    struct ix_mc_class cls[IX_MC_CLASSES_MAX];
};

/* A worker's own view; private memory. */
struct ix_mc_use {
    struct ix_mc *mc;
    struct ix_mc_worker *log;
    uint32_t *holds;       /* [holds_per_worker] */
    struct ix_mc_bucket *buckets;
    struct ix_mc_counts *counts;
    uint32_t number;       /* of the worker + 1: what it writes into locks */
    uint32_t now_s;
    uint64_t now_ns;
    uint32_t conn;         /* whose command is under way, for who watches */
};

/* Where a value's bytes are written or read next. */
struct ix_mc_cursor {
    struct ix_mc_item *part; /* the item itself, or one of its parts */
    uint32_t at;             /* bytes of it done */
};

static inline struct ix_mc_item *ix_mc_at(const struct ix_mc *mc, uint32_t ref)
{
    return (struct ix_mc_item *)((uintptr_t)mc + ((uint64_t)ref << IX_MC_REF_SHIFT));
}

static inline uint32_t ix_mc_ref(const struct ix_mc *mc, const struct ix_mc_item *item)
{
    return (uint32_t)(((uintptr_t)item - (uintptr_t)mc) >> IX_MC_REF_SHIFT);
}

static inline uint8_t *ix_mc_key(const struct ix_mc_item *item)
{
    return (uint8_t *)(item + 1);
}

static inline uint8_t *ix_mc_value(const struct ix_mc_item *item)
{
    return (uint8_t *)(item + 1) + item->nkey;
}

static inline struct ix_mc_bucket *ix_mc_bucket(const struct ix_mc_use *use, uint32_t hash)
{
    return &use->buckets[hash & use->mc->bucket_mask];
}

static inline void *ix_mc_inside(const struct ix_mc *mc, uint64_t at)
{
    return (uint8_t *)(uintptr_t)mc + at;
}

/* ---- store.c: see control.h too ----------------------------------------------- */

/* worker: 0 .. config.workers-1. */
void ix_mc_open(struct ix_mc_use *use, struct ix_mc *mc, uint32_t worker);
void ix_mc_set_time(struct ix_mc_use *use, uint64_t now_ns);
/* An expiry time as clients give it: 0 never, negative at once, up to 30 days from now, else a
 * date. Returns s on the store's clock. */
uint32_t ix_mc_expiry(const struct ix_mc_use *use, int64_t exptime);
uint64_t ix_mc_new_cas(struct ix_mc_use *use);
/* ---- watch.c: lines for who watches ------------------------------------------- */

static inline bool ix_mc_watched(const struct ix_mc_use *use, uint32_t kind)
{
    return __builtin_expect(__atomic_load_n(&use->mc->watching, __ATOMIC_RELAXED) & kind, 0);
}
/* item: NULL if there is none. */
void ix_mc_tell_get(struct ix_mc_use *use, const uint8_t *key, uint32_t nkey,
                    const struct ix_mc_item *item, const char *status);
void ix_mc_tell_store(struct ix_mc_use *use, const uint8_t *key, uint32_t nkey,
                      const struct ix_mc_item *item, const char *status, uint32_t mode);
void ix_mc_tell_eviction(struct ix_mc_use *use, const struct ix_mc_item *item);
void ix_mc_tell_move(struct ix_mc_use *use, uint32_t from, uint32_t to);
/* Sums up again what is wanted: a worker that had watchers is gone. */
void ix_mc_watch_sum(struct ix_mc *mc);

/* ---- hash.c ------------------------------------------------------------------- */

uint32_t ix_mc_hash(const struct ix_mc *mc, const uint8_t *key, uint32_t nkey);

/* ---- slabs.c ------------------------------------------------------------------ */

bool ix_mc_classes_make(struct ix_mc *mc);
/* The smallest class with chunks of so many bytes, or 0. */
uint32_t ix_mc_class_of(const struct ix_mc *mc, uint64_t bytes);
/* Takes a chunk, under the class's lock and in its transaction. 0: none is free, and no page. */
uint32_t ix_mc_chunk_take(struct ix_mc_use *use, struct ix_mc_class *cls);
void ix_mc_chunk_put(struct ix_mc_use *use, struct ix_mc_class *cls, struct ix_mc_item *chunk);
bool ix_mc_set_limit(struct ix_mc_use *use, uint64_t limit_bytes);
/* Page number of a chunk; the class that has a page. */
uint32_t ix_mc_page_of(const struct ix_mc *mc, const struct ix_mc_item *chunk);
uint8_t *ix_mc_page_class(const struct ix_mc *mc, uint32_t page);
/* cls: the page's class. Who holds no lock looks it up once: a page may become another class's. */
struct ix_mc_item *ix_mc_chunk_at(const struct ix_mc *mc, uint32_t page, uint32_t cls,
                                  uint32_t chunk);

/* ---- mover.c ------------------------------------------------------------------ */

enum ix_mc_move_phase {
    IX_MC_SORT = 0, /* free chunks of the class are gone through */
    IX_MC_WALK,     /* what is in the page is moved or evicted */
    IX_MC_PUT_BACK  /* it did not get empty: what was captured is given back */
};
enum ix_mc_move { IX_MC_MOVE_OK = 0, IX_MC_MOVE_BUSY, IX_MC_MOVE_BAD_CLASS, IX_MC_MOVE_NO_SPARE,
                  IX_MC_MOVE_SAME };
/* Begins to move a page. from: -1 any; to: 0 nobody. */
enum ix_mc_move ix_mc_move_start(struct ix_mc_use *use, int32_t from, int32_t to);
/* Now and then: goes on with the move, or sees whether one is due. Short. */
void ix_mc_move(struct ix_mc_use *use);

/* ---- items.c ------------------------------------------------------------------ */

/* An item's bytes of memory for one of such a key and value. */
uint64_t ix_mc_item_bytes(uint32_t nkey, uint64_t nbytes);
/* How many chunks its value lies in, besides its own; 0: in that. */
uint32_t ix_mc_parts(const struct ix_mc *mc, const struct ix_mc_item *item);
/* Whether that chunk is one of them. */
bool ix_mc_has_part(const struct ix_mc *mc, const struct ix_mc_item *item,
                    const struct ix_mc_item *chunk);
bool ix_mc_size_ok(const struct ix_mc *mc, uint32_t nkey, uint64_t nbytes);
/* A new item that hold `hold` has, FILL, its key copied. NULL: no memory. */
struct ix_mc_item *ix_mc_alloc(struct ix_mc_use *use, uint32_t hold, const uint8_t *key,
                               uint32_t nkey, uint32_t hash, uint32_t flags, uint32_t exptime,
                               uint32_t nbytes);
/* Gives up what the hold has: a new item is freed, one that is read let go. */
void ix_mc_drop(struct ix_mc_use *use, uint32_t hold);
/* Lets the hold have an item that is linked. The bucket is locked. False: too many have it. */
bool ix_mc_hold(struct ix_mc_use *use, uint32_t hold, struct ix_mc_item *item);

/* The item of that key that lives, or NULL. The bucket is locked. One that has expired is taken
 * out. */
struct ix_mc_item *ix_mc_find(struct ix_mc_use *use, const uint8_t *key, uint32_t nkey,
                              uint32_t hash);
/* Links the new item of the hold, in place of `old` if that isn't NULL; with a new CAS id. */
void ix_mc_link(struct ix_mc_use *use, uint32_t hold, struct ix_mc_item *old);
/* The new item of the hold is a copy of `old` and takes its place, as if nothing had happened. */
void ix_mc_relink(struct ix_mc_use *use, uint32_t hold, struct ix_mc_item *old);
/* Takes an item out. The bucket is locked. */
void ix_mc_unlink(struct ix_mc_use *use, struct ix_mc_item *item);
bool ix_mc_is_dead(const struct ix_mc_use *use, const struct ix_mc_item *item);
/* An item was asked for. The bucket is locked. */
static inline void ix_mc_bump(struct ix_mc_use *use, struct ix_mc_item *item)
{
    if (item->bits & IX_MC_ACTIVE)
        return;
    if (item->bits & IX_MC_FETCHED) {
        item->bits |= IX_MC_ACTIVE;
        item->time = use->now_s;
    } else {
        item->bits |= IX_MC_FETCHED;
    }
}

/* Values in chunks or not. */
struct ix_mc_cursor ix_mc_begin(const struct ix_mc *mc, struct ix_mc_item *item);
/* The bytes at the cursor that lie together, of at most `left`. */
uint32_t ix_mc_run(const struct ix_mc *mc, struct ix_mc_cursor *cursor, uint32_t left,
                   uint8_t **bytes);
void ix_mc_write(const struct ix_mc *mc, struct ix_mc_cursor *cursor, const void *data,
                 uint32_t n);
void ix_mc_copy_value(const struct ix_mc *mc, struct ix_mc_cursor *to, struct ix_mc_item *from,
                      uint32_t n);

/* ---- lru.c -------------------------------------------------------------------- */

void ix_mc_list_add(struct ix_mc_use *use, struct ix_mc_item *item, uint32_t segment);
void ix_mc_list_remove(struct ix_mc_use *use, struct ix_mc_item *item);
/* Frees one item of the class, which is not locked. False: nothing can be freed. */
bool ix_mc_evict(struct ix_mc_use *use, uint32_t cls);
/* Once in a while: segments kept to their shares, items that have expired freed. Short. */
void ix_mc_maintain(struct ix_mc_use *use);
/* ---- crawler.c ---------------------------------------------------------------- */
/* Is that chunk an item in this (locked) bucket? */
bool ix_mc_is_linked(const struct ix_mc_use *use, const struct ix_mc_bucket *bucket,
                     const struct ix_mc_item *item);
void ix_mc_crawl(struct ix_mc_use *use);
/* Starts a walk. False: one is under way. */
bool ix_mc_crawl_start(struct ix_mc_use *use);
#endif
