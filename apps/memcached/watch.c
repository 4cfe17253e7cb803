/* `watch`: connections to which the server tells what it does.
 *
 * Each worker writes lines into a ring of its own in the store, while anybody watches; a watcher,
 * of any worker, reads all rings. A writer says how far it will write before it does, and how far
 * it has written afterwards, so that a reader that was overtaken knows it and tells what it
 * skipped, in bytes. Nothing is locked, and a writer that dies leaves its last line unsaid.
 */
#include "apps/memcached/conn.h"

#include "apps/memcached/txn.h"

#include <arpa/inet.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LINE_BYTES = 960, SKIPPED_BYTES = 64 };

/* Before each line in a ring. */
struct entry {
    uint32_t bytes, kind;
};

struct ix_mc_watcher {
    uint32_t kinds;
    uint64_t at[IX_MC_WORKERS_MAX]; /* what was read of each worker's ring */
};

static uint8_t *ring_of(const struct ix_mc *mc, uint32_t worker)
{
    return (uint8_t *)ix_mc_inside(mc, mc->rings_at) + (uint64_t)worker * IX_MC_RING_BYTES;
}

static struct ix_mc_worker *worker_of(const struct ix_mc *mc, uint32_t worker)
{
    return (struct ix_mc_worker *)ix_mc_inside(mc, mc->workers_at) + worker;
}

/* ---- writing ------------------------------------------------------------------ */

static uint64_t write_at(uint8_t *ring, uint64_t at, const void *data, uint32_t n)
{
    uint32_t begin = (uint32_t)(at % IX_MC_RING_BYTES), first = IX_MC_RING_BYTES - begin;
    first = first < n ? first : n;
    memcpy(ring + begin, data, first);
    memcpy(ring, (const uint8_t *)data + first, n - first);
    return at + n;
}

__attribute__((format(printf, 3, 4))) static void say(struct ix_mc_use *use, uint32_t kind,
                                                      const char *format, ...)
{
    struct ix_mc *mc = use->mc;
    struct ix_mc_worker *w = use->log;
    char line[LINE_BYTES];
    uint64_t ran_ns = use->now_ns - mc->start_ns;
    va_list args;
    int n = snprintf(line, sizeof line, "ts=%llu.%llu gid=%llu ",
                     (unsigned long long)(mc->start_wall_s + ran_ns / 1000000000),
                     (unsigned long long)(ran_ns / 1000 % 1000000),
                     (unsigned long long)__atomic_add_fetch(&mc->lines_told, 1, __ATOMIC_RELAXED));
    va_start(args, format);
    n += vsnprintf(line + n, sizeof line - (size_t)n, format, args);
    va_end(args);
    if (n >= (int)sizeof line - 1)
        return; /* no key is so long */
    line[n++] = '\n';
    struct entry e = {(uint32_t)n, kind};
    uint8_t *ring = ring_of(mc, use->number - 1);
    uint64_t at = w->ring_written;
    __atomic_store_n(&w->ring_claimed, at + sizeof e + e.bytes, __ATOMIC_RELEASE);
    IX_MC_ORDER();
    at = write_at(ring, write_at(ring, at, &e, sizeof e), line, e.bytes);
    __atomic_store_n(&w->ring_written, at, __ATOMIC_RELEASE);
}

/* Its key as text, in the buffer. */
static const char *uri(char *to, const uint8_t *key, uint32_t nkey)
{
    to[ix_mc_uri_text((uint8_t *)to, key, nkey)] = 0;
    return to;
}

void ix_mc_tell_get(struct ix_mc_use *use, const uint8_t *key, uint32_t nkey,
                    const struct ix_mc_item *item, const char *status)
{
    char text[3 * IX_MC_KEY_MAX + 1];
    say(use, IX_MC_WATCH_FETCHERS, "type=item_get key=%s status=%s clsid=%u cfd=%u size=%u",
        uri(text, key, nkey), status, item ? item->cls : 0, use->conn,
        item ? item->nbytes - 2 : 0);
}

void ix_mc_tell_store(struct ix_mc_use *use, const uint8_t *key, uint32_t nkey,
                      const struct ix_mc_item *item, const char *status, uint32_t mode)
{
    static const char *const commands[] = {"null",    "add",    "set", "replace",
                                           "append", "prepend", "cas"};
    char text[3 * IX_MC_KEY_MAX + 1];
    say(use, IX_MC_WATCH_MUTATIONS,
        "type=item_store key=%s status=%s cmd=%s ttl=%u clsid=%u cfd=%u size=%u",
        uri(text, key, nkey), status, commands[mode],
        item && item->exptime ? item->exptime - use->now_s : 0, item ? item->cls : 0, use->conn,
        item ? item->nbytes - 2 : 0);
}

void ix_mc_tell_eviction(struct ix_mc_use *use, const struct ix_mc_item *item)
{
    char text[3 * IX_MC_KEY_MAX + 1];
    say(use, IX_MC_WATCH_EVICTIONS,
        "type=eviction key=%s fetch=%s ttl=%lld la=%u clsid=%u size=%u",
        uri(text, ix_mc_key(item), item->nkey), item->bits & IX_MC_FETCHED ? "yes" : "no",
        item->exptime ? (long long)item->exptime - use->now_s : -1, use->now_s - item->time,
        item->cls, item->nbytes - 2);
}

void ix_mc_tell_move(struct ix_mc_use *use, uint32_t from, uint32_t to)
{
    say(use, IX_MC_WATCH_SYSEVENTS, "type=slab_move src=%u dst=%u", from, to);
}

void ix_mc_tell_line(struct ix_mc_use *use, const uint8_t *line, uint32_t n)
{
    say(use, IX_MC_WATCH_RAWCMDS, "<%u %.*s", use->conn, n < 500 ? (int)n : 500, line);
}

void ix_mc_tell_conn(struct ix_mc_server *s, const struct ix_mc_conn *c, const char *reason)
{
    char ip[INET6_ADDRSTRLEN] = "";
    inet_ntop(c->family == 6 ? AF_INET6 : AF_INET, c->peer, ip, sizeof ip);
    say(&s->use, IX_MC_WATCH_CONNEVENTS, "type=%s rip=%s rport=%u transport=tcp%s%s cfd=%u",
        reason ? "conn_close" : "conn_new", ip, c->peer_port, reason ? " reason=" : "",
        reason ? reason : "", (uint32_t)(c - s->conns));
}

/* ---- reading ------------------------------------------------------------------ */

static void read_at(const uint8_t *ring, uint64_t at, void *to, uint32_t n)
{
    uint32_t begin = (uint32_t)(at % IX_MC_RING_BYTES), first = IX_MC_RING_BYTES - begin;
    first = first < n ? first : n;
    memcpy(to, ring + begin, first);
    memcpy((uint8_t *)to + first, ring, n - first);
}

/* Whether what was read from there on was still what was written there. */
static bool is_whole(const struct ix_mc_worker *w, uint64_t at)
{
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    return __atomic_load_n(&w->ring_claimed, __ATOMIC_ACQUIRE) - at <= IX_MC_RING_BYTES;
}

/* Passes on the next line of a worker that is of interest. False: it said nothing more. */
static bool pass_on(struct ix_mc_server *s, struct ix_mc_conn *c, uint32_t worker)
{
    const struct ix_mc_worker *w = worker_of(s->mc, worker);
    const uint8_t *ring = ring_of(s->mc, worker);
    uint64_t *at = &c->watcher->at[worker];
    for (uint64_t end; *at != (end = __atomic_load_n(&w->ring_written, __ATOMIC_ACQUIRE));) {
        struct entry e;
        char line[LINE_BYTES];
        read_at(ring, *at, &e, sizeof e);
        bool whole = is_whole(w, *at) && e.bytes <= sizeof line;
        if (whole) {
            read_at(ring, *at + sizeof e, line, e.bytes);
            whole = is_whole(w, *at);
        }
        if (!whole) {
            char text[SKIPPED_BYTES];
            int n = snprintf(text, sizeof text, "skipped=%llu\n", (unsigned long long)(end - *at));
            *at = end;
            ix_mc_put(s, c, text, (uint32_t)n);
            return true;
        }
        *at += sizeof e + e.bytes;
        if (e.kind & c->watcher->kinds) {
            ix_mc_put(s, c, line, e.bytes);
            return true;
        }
    }
    return false;
}

bool ix_mc_watch_step(struct ix_mc_server *s, struct ix_mc_conn *c)
{
    ix_mc_input_drop(s, c); /* a watcher has nothing more to say */
    for (uint32_t i = 0; i < s->mc->config.workers; i++)
        if (pass_on(s, c, i))
            return true;
    return false;
}

void ix_mc_watch_wake(struct ix_mc_server *s)
{
    for (uint32_t i = 0; i < s->watcher_count; i++) {
        struct ix_mc_conn *c = &s->conns[s->watchers[i]];
        for (uint32_t w = 0; w < s->mc->config.workers; w++)
            if (c->watcher->at[w] !=
                __atomic_load_n(&worker_of(s->mc, w)->ring_written, __ATOMIC_RELAXED))
                ix_mc_ready(s, c);
    }
}

/* ---- beginning and end -------------------------------------------------------- */

/* Tells all workers what is of interest to anybody. */
static void announce(struct ix_mc_server *s)
{
    uint32_t kinds = 0;
    for (uint32_t i = 0; i < s->watcher_count; i++)
        kinds |= s->conns[s->watchers[i]].watcher->kinds;
    __atomic_store_n(&s->use.log->watching, kinds, __ATOMIC_SEQ_CST);
    ix_mc_watch_sum(s->mc);
}

/* A word that two change at once may be wrong for as long as until the next maintenance. */
void ix_mc_watch_sum(struct ix_mc *mc)
{
    uint32_t kinds = 0;
    for (uint32_t i = 0; i < mc->config.workers; i++)
        kinds |= __atomic_load_n(&worker_of(mc, i)->watching, __ATOMIC_SEQ_CST);
    if (mc->watching != kinds)
        __atomic_store_n(&mc->watching, kinds, __ATOMIC_SEQ_CST);
}

static uint32_t kind_named(const struct ix_mc_token *t)
{
    static const struct {
        const char *name;
        uint32_t kind;
    } kinds[] = {{"fetchers", IX_MC_WATCH_FETCHERS},     {"mutations", IX_MC_WATCH_MUTATIONS},
                 {"evictions", IX_MC_WATCH_EVICTIONS},   {"connevents", IX_MC_WATCH_CONNEVENTS},
                 {"sysevents", IX_MC_WATCH_SYSEVENTS},   {"rawcmds", IX_MC_WATCH_RAWCMDS},
                 {"proxyreqs", IX_MC_WATCH_NOTHING},     {"proxyevents", IX_MC_WATCH_NOTHING},
                 {"proxyuser", IX_MC_WATCH_NOTHING}};
    for (uint32_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (ix_mc_is(t, kinds[i].name))
            return kinds[i].kind;
    return 0;
}

void ix_mc_watch(struct ix_mc_server *s, struct ix_mc_conn *c, const struct ix_mc_words *w)
{
    uint32_t kinds = w->count < 2 ? IX_MC_WATCH_FETCHERS : 0;
    if (s->mc->config.no_watch) {
        ix_mc_say(s, c, "CLIENT_ERROR watch commands not allowed");
        return;
    }
    for (uint32_t i = 1; i < w->count; i++) {
        uint32_t kind = kind_named(&w->word[i]);
        if (!kind || c->datagram) {
            ix_mc_say(s, c, "ERROR");
            return;
        }
        kinds |= kind;
    }
    if (s->watcher_count == IX_MC_WATCHERS || c->datagram) {
        ix_mc_say(s, c, "WATCHER_TOO_MANY log watcher limit reached");
        return;
    }
    c->watcher = calloc(1, sizeof *c->watcher);
    if (!c->watcher) {
        ix_mc_say(s, c, "WATCHER_FAILED failed to add log watcher");
        return;
    }
    c->watcher->kinds = kinds;
    for (uint32_t i = 0; i < s->mc->config.workers; i++)
        c->watcher->at[i] = __atomic_load_n(&worker_of(s->mc, i)->ring_written, __ATOMIC_ACQUIRE);
    s->watchers[s->watcher_count++] = (uint32_t)(c - s->conns);
    c->state = IX_MC_WATCH;
    announce(s);
    ix_mc_say(s, c, "OK");
}

void ix_mc_watch_end(struct ix_mc_server *s, struct ix_mc_conn *c)
{
    if (!c->watcher)
        return;
    for (uint32_t i = 0; i < s->watcher_count; i++) {
        if (s->watchers[i] == (uint32_t)(c - s->conns)) {
            s->watchers[i] = s->watchers[--s->watcher_count];
            break;
        }
    }
    free(c->watcher);
    c->watcher = NULL;
    announce(s);
}
