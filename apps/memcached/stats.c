/* Statistics, by memcached's names. Those of all workers are summed; reading them takes no lock, so
 * they may be a moment apart. */
#include "apps/memcached/conn.h"

#include <arpa/inet.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct text {
    char *p;
    uint32_t n, room;
    bool failed;
};

__attribute__((format(printf, 2, 3))) static void put(struct text *t, const char *format, ...)
{
    char line[256];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(line, sizeof line, format, args);
    va_end(args);
    if (n < 0 || (size_t)n >= sizeof line || t->failed)
        return;
    if (t->n + (uint32_t)n + 8 > t->room) {
        uint32_t room = t->room ? 2 * t->room : 8192;
        char *p = realloc(t->p, room);
        if (!p) {
            t->failed = true;
            return;
        }
        t->p = p;
        t->room = room;
    }
    t->n += (uint32_t)sprintf(t->p + t->n, "STAT %s\r\n", line);
}

static void put_u64(struct text *t, const char *name, uint64_t value)
{
    put(t, "%s %llu", name, (unsigned long long)value);
}

static const struct ix_mc_worker *worker(const struct ix_mc *mc, uint32_t i)
{
    return (const struct ix_mc_worker *)ix_mc_inside(mc, mc->workers_at) + i;
}

/* Every counter of the workers, less what they were at the last reset. */
static struct ix_mc_counts sum(const struct ix_mc *mc)
{
    struct ix_mc_counts all;
    uint64_t *to = (uint64_t *)&all;
    memset(&all, 0, sizeof all);
    for (uint32_t w = 0; w < mc->config.workers; w++) {
        const uint64_t *now = (const uint64_t *)&worker(mc, w)->counts;
        const uint64_t *since = (const uint64_t *)&worker(mc, w)->since;
        for (uint32_t i = 0; i < sizeof all / sizeof *to; i++)
            to[i] += now[i] - since[i];
    }
    return all;
}

void ix_mc_stats_reset(struct ix_mc_server *s)
{
    struct ix_mc *mc = s->mc;
    for (uint32_t w = 0; w < mc->config.workers; w++) {
        struct ix_mc_worker *other = (struct ix_mc_worker *)worker(mc, w);
        other->since = other->counts;
    }
    for (uint32_t i = 1; i <= mc->classes; i++) {
        struct ix_mc_class *cls = &mc->cls[i];
        cls->evicted = cls->evicted_nonzero = cls->evicted_unfetched = cls->evicted_active = 0;
        cls->expired_unfetched = cls->reclaimed = cls->outofmemory = cls->crawler_reclaimed = 0;
        cls->moves_to_cold = cls->moves_to_warm = cls->moves_within_lru = 0;
        cls->total_items = 0;
    }
}

/* ---- groups ------------------------------------------------------------------- */

static void put_counts(struct text *t, const struct ix_mc_counts *n)
{
    const struct {
        const char *name;
        uint64_t value;
    } rows[] = {{"cmd_get", n->cmd_get},
                {"cmd_set", n->cmd_set},
                {"cmd_flush", n->cmd_flush},
                {"cmd_touch", n->cmd_touch},
                {"cmd_meta", n->cmd_meta},
                {"get_hits", n->get_hits},
                {"get_misses", n->get_misses},
                {"get_expired", n->get_expired},
                {"get_flushed", n->get_flushed},
                {"delete_misses", n->delete_misses},
                {"delete_hits", n->delete_hits},
                {"incr_misses", n->incr_misses},
                {"incr_hits", n->incr_hits},
                {"decr_misses", n->decr_misses},
                {"decr_hits", n->decr_hits},
                {"cas_misses", n->cas_misses},
                {"cas_hits", n->cas_hits},
                {"cas_badval", n->cas_badval},
                {"touch_hits", n->touch_hits},
                {"touch_misses", n->touch_misses},
                {"store_too_large", n->store_too_large},
                {"store_no_memory", n->store_no_memory},
                {"auth_cmds", 0},
                {"auth_errors", 0},
                {"idle_kicks", n->idle_kicks},
                {"bytes_read", n->bytes_read},
                {"bytes_written", n->bytes_written}};
    for (uint32_t i = 0; i < sizeof rows / sizeof *rows; i++)
        put_u64(t, rows[i].name, rows[i].value);
}

static void put_connections(struct text *t, const struct ix_mc *mc, const struct ix_mc_counts *n)
{
    uint64_t now = 0, made = 0;
    for (uint32_t w = 0; w < mc->config.workers; w++) {
        now += worker(mc, w)->curr_connections;
        made += worker(mc, w)->conn_structures;
    }
    put_u64(t, "max_connections", mc->config.conns_max);
    put_u64(t, "curr_connections", now);
    put_u64(t, "total_connections", n->total_connections);
    put_u64(t, "rejected_connections", n->rejected_connections);
    put_u64(t, "connection_structures", made);
}

static void put_lru(struct text *t, const struct ix_mc *mc)
{
    struct ix_mc_class a;
    memset(&a, 0, sizeof a);
    for (uint32_t i = 1; i <= mc->classes; i++) {
        const struct ix_mc_class *cls = &mc->cls[i];
        a.evicted += cls->evicted;
        a.evicted_unfetched += cls->evicted_unfetched;
        a.evicted_active += cls->evicted_active;
        a.expired_unfetched += cls->expired_unfetched;
        a.reclaimed += cls->reclaimed;
        a.crawler_reclaimed += cls->crawler_reclaimed;
        a.moves_to_cold += cls->moves_to_cold;
        a.moves_to_warm += cls->moves_to_warm;
        a.moves_within_lru += cls->moves_within_lru;
        a.total_items += cls->total_items;
        a.moved_evicted += cls->moved_evicted;
        a.moved_rescued += cls->moved_rescued;
    }
    put_u64(t, "bytes", ix_mc_bytes(mc));
    put_u64(t, "curr_items", ix_mc_items(mc));
    put_u64(t, "total_items", a.total_items);
    put_u64(t, "slab_global_page_pool", mc->pages_free);
    put_u64(t, "slab_reassign_rescues", a.moved_rescued);
    put_u64(t, "slab_reassign_evictions_nomem", a.moved_evicted);
    put_u64(t, "slab_reassign_running", mc->move_page != 0);
    put_u64(t, "slabs_moved", mc->pages_moved);
    put_u64(t, "expired_unfetched", a.expired_unfetched);
    put_u64(t, "evicted_unfetched", a.evicted_unfetched);
    put_u64(t, "evicted_active", a.evicted_active);
    put_u64(t, "evictions", a.evicted);
    put_u64(t, "reclaimed", a.reclaimed);
    put_u64(t, "crawler_reclaimed", a.crawler_reclaimed);
    put_u64(t, "crawler_items_checked", mc->crawl_checked);
    put_u64(t, "moves_to_cold", a.moves_to_cold);
    put_u64(t, "moves_to_warm", a.moves_to_warm);
    put_u64(t, "moves_within_lru", a.moves_within_lru);
}

static void general(struct text *t, const struct ix_mc_server *s)
{
    const struct ix_mc *mc = s->mc;
    struct ix_mc_counts n = sum(mc);
    uint32_t up = s->use.now_s - IX_MC_FIRST_SECOND;
    put_u64(t, "pid", mc->pid);
    put_u64(t, "uptime", up);
    put_u64(t, "time", mc->start_wall_s + up);
    put(t, "version %s", IX_MC_VERSION);
    put(t, "server ixnet");
    put_u64(t, "pointer_size", 64);
    put_connections(t, mc, &n);
    put_counts(t, &n);
    put_u64(t, "limit_maxbytes", mc->limit_pages * IX_MC_PAGE_BYTES);
    put_u64(t, "accepting_conns", 1);
    put_u64(t, "listen_disabled_num", 0);
    put_u64(t, "threads", mc->config.workers);
    put_u64(t, "conn_yields", n.conn_yields);
    put_u64(t, "hash_power_level", mc->hash_power);
    put_u64(t, "hash_bytes", sizeof(struct ix_mc_bucket) << mc->hash_power);
    put_u64(t, "hash_is_expanding", 0);
    put_u64(t, "lru_crawler_running", mc->crawl_run);
    put_u64(t, "lru_crawler_starts", mc->crawl_started);
    put_u64(t, "worker_recoveries", mc->recoveries);
    put_u64(t, "worker_updates_undone", mc->undone);
    put_lru(t, mc);
}

static const char *yes(bool on)
{
    return on ? "yes" : "no";
}

static void settings(struct text *t, const struct ix_mc_server *s)
{
    static const char *const protocols[] = {"auto-negotiate", "ascii", "binary"};
    const struct ix_mc *mc = s->mc;
    const struct ix_mc_config *c = &mc->config;
    put_u64(t, "maxbytes", mc->limit_pages * IX_MC_PAGE_BYTES);
    put_u64(t, "maxconns", c->conns_max);
    put_u64(t, "tcpport", c->tcp_port);
    put_u64(t, "udpport", c->udp_port);
    put(t, "inter %s", c->listen[0] ? c->listen : "NULL");
    put_u64(t, "verbosity", c->verbose);
    put_u64(t, "oldest", mc->oldest_live);
    put(t, "evictions %s", c->no_eviction ? "off" : "on");
    put(t, "domain_socket NULL");
    put(t, "shutdown_command %s", yes(c->shutdown_command));
    put(t, "growth_factor %.2f", c->growth_percent / 100.0);
    put_u64(t, "chunk_size", c->chunk_min_bytes);
    put_u64(t, "num_threads", c->workers);
    put(t, "stat_key_prefix :");
    put(t, "detail_enabled no");
    put_u64(t, "reqs_per_event", IX_MC_TURN_COMMANDS);
    put(t, "cas_enabled %s", yes(!c->no_cas));
    put_u64(t, "tcp_backlog", c->backlog);
    put(t, "binding_protocol %s", protocols[c->protocol]);
    put(t, "auth_enabled_sasl no");
    put(t, "auth_enabled_ascii no");
    put_u64(t, "item_size_max", c->item_max_bytes);
    put(t, "maxconns_fast yes");
    put_u64(t, "hashpower_init", c->hash_power);
    put(t, "slab_reassign %s", yes(!c->no_reassign));
    put_u64(t, "slab_automove", c->automove);
    put(t, "slab_automove_ratio %.2f", c->automove_percent / 100.0);
    put_u64(t, "slab_automove_window", 30);
    put_u64(t, "slab_chunk_max", c->chunk_max_bytes);
    put(t, "lru_crawler %s", yes(c->lru_crawler));
    put(t, "flush_enabled %s", yes(!c->no_flush));
    put(t, "dump_enabled %s", yes(!c->no_dump));
    put(t, "hash_algorithm folded multiplications");
    put(t, "lru_maintainer_thread %s", yes(c->maintainer));
    put(t, "lru_segmented %s", yes(c->segmented));
    put_u64(t, "hot_lru_pct", c->hot_percent);
    put_u64(t, "warm_lru_pct", c->warm_percent);
    put(t, "hot_max_factor %.2f", c->hot_factor_percent / 100.0);
    put(t, "warm_max_factor %.2f", c->warm_factor_percent / 100.0);
    put(t, "temp_lru %s", yes(c->temp_ttl_s >= 0));
    put(t, "temporary_ttl %d", c->temp_ttl_s >= 0 ? c->temp_ttl_s : 61);
    put_u64(t, "idle_timeout", c->idle_timeout_s);
    put(t, "track_sizes %s", yes(c->track_sizes));
}

static uint64_t class_sum(const struct ix_mc *mc, uint64_t offset, uint32_t index)
{
    uint64_t n = 0;
    for (uint32_t w = 0; w < mc->config.workers; w++)
        n += ((const uint64_t *)((const uint8_t *)worker(mc, w) + offset))[index];
    return n;
}

#define CLASS_SUM(mc, field, i) class_sum(mc, offsetof(struct ix_mc_worker, field), i)

static uint32_t age(const struct ix_mc_server *s, const struct ix_mc_class *cls, uint32_t segment)
{
    uint32_t ref = cls->tail[segment];
    return ref ? s->use.now_s - ix_mc_at(s->mc, ref)->time : 0;
}

static void items_of(struct text *t, const struct ix_mc_server *s, uint32_t i)
{
    static const char *const names[] = {"hot", "warm", "cold", "temp"};
    const struct ix_mc_class *cls = &s->mc->cls[i];
    uint64_t number = 0, bytes = 0;
    for (uint32_t g = 0; g < IX_MC_SEGMENTS; g++) {
        number += cls->count[g];
        bytes += cls->bytes[g];
    }
    if (!number)
        return;
    const struct {
        const char *name;
        uint64_t value;
    } rows[] = {{"age_hot", age(s, cls, IX_MC_HOT)},
                {"age_warm", age(s, cls, IX_MC_WARM)},
                {"age", age(s, cls, IX_MC_COLD)},
                {"mem_requested", bytes},
                {"evicted", cls->evicted},
                {"evicted_nonzero", cls->evicted_nonzero},
                {"evicted_time", cls->evicted_time},
                {"outofmemory", cls->outofmemory},
                {"tailrepairs", 0},
                {"reclaimed", cls->reclaimed},
                {"expired_unfetched", cls->expired_unfetched},
                {"evicted_unfetched", cls->evicted_unfetched},
                {"evicted_active", cls->evicted_active},
                {"crawler_reclaimed", cls->crawler_reclaimed},
                {"moves_to_cold", cls->moves_to_cold},
                {"moves_to_warm", cls->moves_to_warm},
                {"moves_within_lru", cls->moves_within_lru}};
    put(t, "items:%u:number %llu", i, (unsigned long long)number);
    for (uint32_t g = 0; g < IX_MC_SEGMENTS; g++)
        if (g != IX_MC_TEMP || s->mc->config.temp_ttl_s >= 0)
            put(t, "items:%u:number_%s %u", i, names[g], cls->count[g]);
    for (uint32_t r = 0; r < sizeof rows / sizeof *rows; r++)
        put(t, "items:%u:%s %llu", i, rows[r].name, (unsigned long long)rows[r].value);
    for (uint32_t g = 0; g < IX_MC_SEGMENTS; g++)
        put(t, "items:%u:hits_to_%s %llu", i, names[g],
            (unsigned long long)CLASS_SUM(s->mc, class_hits, i * IX_MC_SEGMENTS + g));
}

static void items(struct text *t, const struct ix_mc_server *s)
{
    for (uint32_t i = 1; i <= s->mc->classes; i++)
        items_of(t, s, i);
}

static void slabs(struct text *t, const struct ix_mc_server *s)
{
    const struct ix_mc *mc = s->mc;
    uint64_t pages = 0, active = 0;
    for (uint32_t i = 1; i <= mc->classes; i++) {
        const struct ix_mc_class *cls = &mc->cls[i];
        uint64_t chunks = (uint64_t)cls->pages * cls->per_page, hits = 0;
        if (!cls->pages)
            continue;
        pages += cls->pages;
        active++;
        for (uint32_t g = 0; g < IX_MC_SEGMENTS; g++)
            hits += CLASS_SUM(mc, class_hits, i * IX_MC_SEGMENTS + g);
        const struct {
            const char *name;
            uint64_t value;
        } rows[] = {{"chunk_size", cls->chunk_bytes},
                    {"chunks_per_page", cls->per_page},
                    {"total_pages", cls->pages},
                    {"total_chunks", chunks},
                    {"used_chunks", cls->used_chunks},
                    {"free_chunks", chunks - cls->used_chunks},
                    {"free_chunks_end", 0},
                    {"get_hits", hits},
                    {"cmd_set", CLASS_SUM(mc, class_sets, i)},
                    {"delete_hits", CLASS_SUM(mc, class_deletes, i)},
                    {"incr_hits", CLASS_SUM(mc, class_incrs, i)},
                    {"decr_hits", CLASS_SUM(mc, class_decrs, i)},
                    {"cas_hits", CLASS_SUM(mc, class_cas_hits, i)},
                    {"cas_badval", CLASS_SUM(mc, class_cas_bad, i)},
                    {"touch_hits", CLASS_SUM(mc, class_touches, i)}};
        for (uint32_t r = 0; r < sizeof rows / sizeof *rows; r++)
            put(t, "%u:%s %llu", i, rows[r].name, (unsigned long long)rows[r].value);
    }
    put_u64(t, "active_slabs", active);
    put_u64(t, "total_malloced", pages * IX_MC_PAGE_BYTES);
}

/* Items by size, in steps of 32 bytes, found by a walk over the memory. */
static void sizes(struct text *t, const struct ix_mc_server *s)
{
    const struct ix_mc *mc = s->mc;
    enum { STEP = 32 };
    uint32_t count = mc->config.item_max_bytes / STEP + 1;
    uint32_t *found = mc->config.track_sizes ? calloc(count, sizeof *found) : NULL;
    if (!found) {
        put(t, "sizes_status disabled");
        return;
    }
    for (uint32_t page = 0; page < mc->pages_made; page++) {
        uint32_t number = *ix_mc_page_class(mc, page);
        for (uint32_t i = 0; number && i < mc->cls[number].per_page; i++) {
            const struct ix_mc_item *item = ix_mc_chunk_at(mc, page, number, i);
            uint64_t bucket = (ix_mc_item_bytes(item->nkey, item->nbytes) + STEP - 1) / STEP;
            if (item->state == IX_MC_LINKED && bucket < count)
                found[bucket]++;
        }
    }
    for (uint32_t i = 0; i < count; i++)
        if (found[i])
            put(t, "%u %u", i * STEP, found[i]);
    free(found);
}

static void put_address(struct text *t, uint32_t i, const char *name, uint8_t family,
                        const uint8_t *ip, uint32_t port)
{
    char text[INET6_ADDRSTRLEN] = "";
    inet_ntop(family == 6 ? AF_INET6 : AF_INET, ip, text, sizeof text);
    if (family == 6)
        put(t, "%u:%s tcp6:[%s]:%u", i, name, text, port);
    else
        put(t, "%u:%s tcp:%s:%u", i, name, text, port);
}

static void conns(struct text *t, const struct ix_mc_server *s)
{
    static const char *const states[] = {
        [IX_MC_READ_COMMAND] = "conn_parse_cmd", [IX_MC_GET_KEYS] = "conn_mwrite",
        [IX_MC_READ_DATA] = "conn_nread",        [IX_MC_SWALLOW] = "conn_swallow",
        [IX_MC_DUMP] = "conn_watch",             [IX_MC_WATCH] = "conn_watch",
        [IX_MC_ENDED] = "conn_closing"};
    for (uint32_t i = 0; i < s->conn_count; i++) {
        const struct ix_mc_conn *c = &s->conns[i];
        if (!c->open)
            continue;
        put_address(t, i, "addr", c->family, c->peer, c->peer_port);
        put_address(t, i, "listen_addr", c->family, c->local, s->mc->config.tcp_port);
        put(t, "%u:state %s", i, states[c->state]);
        put(t, "%u:secs_since_last_cmd %llu", i,
            (unsigned long long)((s->use.now_ns - c->last_ns) / 1000000000));
    }
}

char *ix_mc_stats_text(struct ix_mc_server *s, const uint8_t *group, uint32_t n, uint32_t *bytes)
{
    static const struct {
        const char *name;
        void (*fill)(struct text *, const struct ix_mc_server *);
    } groups[] = {{"", general},   {"settings", settings}, {"items", items},
                  {"slabs", slabs}, {"sizes", sizes},       {"conns", conns}};
    struct ix_mc_token name = {n ? group : (const uint8_t *)"", n};
    for (uint32_t i = 0; i < sizeof groups / sizeof *groups; i++) {
        if (!ix_mc_is(&name, groups[i].name))
            continue;
        struct text t = {.p = calloc(1, 8192), .room = 8192};
        t.failed = !t.p;
        groups[i].fill(&t, s);
        *bytes = t.failed ? 0 : t.n;
        return t.p;
    }
    return NULL;
}

static void cachedump(struct ix_mc_server *s, struct ix_mc_conn *c, const struct ix_mc_words *w)
{
    const struct ix_mc_token *t = &w->word[2];
    uint32_t number, limit, n;
    uint8_t *text;
    if (s->mc->config.no_dump)
        ix_mc_say(s, c, "CLIENT_ERROR stats cachedump not allowed");
    else if (w->count < 4)
        ix_mc_say(s, c, "CLIENT_ERROR bad command line");
    else if (!ix_mc_u32(t[0].at, t[0].n, &number) || !ix_mc_u32(t[1].at, t[1].n, &limit))
        ix_mc_say(s, c, "CLIENT_ERROR bad command line format");
    else if (number >= IX_MC_CLASSES_MAX)
        ix_mc_say(s, c, "CLIENT_ERROR Illegal slab id");
    else if (!(text = ix_mc_cachedump(s, number, limit, &n)))
        ix_mc_say(s, c, "SERVER_ERROR out of memory writing stats");
    else
        ix_mc_put_blob(s, c, text, n);
}

void ix_mc_text_stats(struct ix_mc_server *s, struct ix_mc_conn *c, const struct ix_mc_words *w)
{
    const struct ix_mc_token *t = &w->word[1];
    bool on = w->count > 1 && ix_mc_is(t, "sizes_enable");
    uint32_t n = 0;
    if (w->count > 1 && ix_mc_is(t, "reset")) {
        ix_mc_stats_reset(s);
        ix_mc_say(s, c, "RESET");
        return;
    }
    if (on || (w->count > 1 && ix_mc_is(t, "sizes_disable"))) {
        s->mc->config.track_sizes = on;
        ix_mc_say(s, c, on ? "STAT sizes_status enabled\r\nEND"
                           : "STAT sizes_status disabled\r\nEND");
        return;
    }
    if (w->count > 1 && ix_mc_is(t, "cachedump")) {
        cachedump(s, c, w);
        return;
    }
    char *text = ix_mc_stats_text(s, t->at, w->count > 1 ? t->n : 0, &n);
    if (!text) {
        ix_mc_say(s, c, "ERROR");
        return;
    }
    memcpy(text + n, "END\r\n", 5); /* put() keeps room for it */
    ix_mc_put_blob(s, c, (uint8_t *)text, n + 5);
}
