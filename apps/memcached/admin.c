/* The text protocol: what is about the server rather than about one item. */
#include "apps/memcached/conn.h"

#include "apps/memcached/txn.h"

#include <string.h>

static bool noreply(struct ix_mc_conn *c, const struct ix_mc_words *w)
{
    if (ix_mc_is(&w->word[w->count - 1], "noreply"))
        c->noreply = true;
    return c->noreply;
}

static void flush_all(struct ix_mc_server *s, struct ix_mc_conn *c, const struct ix_mc_words *w)
{
    int32_t delay = 0;
    if (w->count > 3) {
        ix_mc_say(s, c, "ERROR");
        return;
    }
    bool quiet = noreply(c, w);
    if (s->mc->config.no_flush) {
        s->use.counts->cmd_flush++;
        ix_mc_say(s, c, "CLIENT_ERROR flush_all not allowed");
        return;
    }
    if (w->count != (quiet ? 2 : 1) && !ix_mc_i32(w->word[1].at, w->word[1].n, &delay)) {
        s->use.counts->cmd_flush++;
        ix_mc_say(s, c, "CLIENT_ERROR invalid exptime argument");
        return;
    }
    ix_mc_flush(s, delay);
    ix_mc_say(s, c, "OK");
}

static void verbosity(struct ix_mc_server *s, struct ix_mc_conn *c, const struct ix_mc_words *w)
{
    uint32_t level;
    if (w->count != 2 && w->count != 3) {
        ix_mc_say(s, c, "ERROR");
        return;
    }
    noreply(c, w);
    if (!ix_mc_u32(w->word[1].at, w->word[1].n, &level)) {
        ix_mc_say(s, c, "CLIENT_ERROR bad command line format");
        return;
    }
    s->mc->config.verbose = level > 2 ? 2 : level;
    ix_mc_say(s, c, "OK");
}

static void memlimit(struct ix_mc_server *s, struct ix_mc_conn *c, const struct ix_mc_words *w)
{
    uint32_t mebibytes;
    if (w->count != 2 && w->count != 3) {
        ix_mc_say(s, c, "ERROR");
        return;
    }
    noreply(c, w);
    if (!ix_mc_u32(w->word[1].at, w->word[1].n, &mebibytes))
        ix_mc_say(s, c, "ERROR");
    else if (mebibytes < 8)
        ix_mc_say(s, c, "MEMLIMIT_TOO_SMALL cannot set maxbytes to less than 8m");
    else if (mebibytes > 1000000000)
        ix_mc_say(s, c, "MEMLIMIT_ADJUST_FAILED input value is megabytes not bytes");
    else if (ix_mc_set_limit(&s->use, (uint64_t)mebibytes << 20))
        ix_mc_say(s, c, "OK");
    else
        ix_mc_say(s, c, "MEMLIMIT_ADJUST_FAILED out of bounds or unable to adjust");
}

static void reassign(struct ix_mc_server *s, struct ix_mc_conn *c, const struct ix_mc_token *t)
{
    static const char *const said[] = {
        [IX_MC_MOVE_OK] = "OK",
        [IX_MC_MOVE_BUSY] = "BUSY currently processing reassign request",
        [IX_MC_MOVE_BAD_CLASS] = "BADCLASS invalid src or dst class id",
        [IX_MC_MOVE_NO_SPARE] = "NOSPARE source class has no spare pages",
        [IX_MC_MOVE_SAME] = "SAME src and dst class are identical"};
    int32_t from, to;
    if (s->mc->config.no_reassign)
        ix_mc_say(s, c, "CLIENT_ERROR slab reassignment disabled");
    else if (!ix_mc_i32(t[2].at, t[2].n, &from) || !ix_mc_i32(t[3].at, t[3].n, &to))
        ix_mc_say(s, c, "CLIENT_ERROR bad command line format");
    else
        ix_mc_say(s, c, said[ix_mc_move_start(&s->use, from, to)]);
}

static const char *automove(struct ix_mc_config *cfg, const struct ix_mc_words *w)
{
    const struct ix_mc_token *t = w->word;
    uint32_t level;
    double ratio;
    if (ix_mc_is(&t[2], "ratio")) {
        if (w->count < 4 || !ix_mc_fraction(t[3].at, t[3].n, &ratio))
            return "ERROR";
        cfg->automove_percent = ratio > 0 && ratio < 1000 ? (uint32_t)(ratio * 100) : 0;
        return "OK";
    }
    if (!ix_mc_u32(t[2].at, t[2].n, &level))
        return "CLIENT_ERROR bad command line format";
    if (level > 2)
        return "ERROR";
    cfg->automove = (uint8_t)level;
    return "OK";
}

static void slabs(struct ix_mc_server *s, struct ix_mc_conn *c, const struct ix_mc_words *w)
{
    const struct ix_mc_token *t = w->word;
    if (w->count == 4 && ix_mc_is(&t[1], "reassign")) {
        reassign(s, c, t);
    } else if (w->count >= 3 && ix_mc_is(&t[1], "automove")) {
        noreply(c, w);
        ix_mc_say(s, c, automove(&s->mc->config, w));
    } else {
        ix_mc_say(s, c, "ERROR");
    }
}

static void lru_tune(struct ix_mc_server *s, struct ix_mc_conn *c, const struct ix_mc_token *t)
{
    struct ix_mc_config *cfg = &s->mc->config;
    uint32_t hot, warm;
    double hot_factor, warm_factor;
    if (!ix_mc_u32(t[2].at, t[2].n, &hot) || !ix_mc_u32(t[3].at, t[3].n, &warm) ||
        !ix_mc_fraction(t[4].at, t[4].n, &hot_factor) ||
        !ix_mc_fraction(t[5].at, t[5].n, &warm_factor)) {
        ix_mc_say(s, c, "ERROR");
    } else if (hot > 80 || warm > 80 - hot) {
        ix_mc_say(s, c, "ERROR hot and warm pcts must not exceed 80");
    } else if (hot_factor <= 0 || warm_factor <= 0 || hot_factor > 1e6 || warm_factor > 1e6) {
        ix_mc_say(s, c, "ERROR hot/warm age factors must be greater than 0");
    } else {
        cfg->hot_percent = hot;
        cfg->warm_percent = warm;
        cfg->hot_factor_percent = (uint32_t)(hot_factor * 100);
        cfg->warm_factor_percent = (uint32_t)(warm_factor * 100);
        ix_mc_say(s, c, "OK");
    }
}

static void lru(struct ix_mc_server *s, struct ix_mc_conn *c, const struct ix_mc_words *w)
{
    struct ix_mc_config *cfg = &s->mc->config;
    const struct ix_mc_token *t = w->word;
    int32_t ttl;
    if (w->count < 2) {
        ix_mc_say(s, c, "ERROR");
        return;
    }
    noreply(c, w);
    if (ix_mc_is(&t[1], "tune") && w->count >= 6) {
        lru_tune(s, c, t);
    } else if (ix_mc_is(&t[1], "mode") && w->count >= 3) {
        bool flat = ix_mc_is(&t[2], "flat"), segmented = ix_mc_is(&t[2], "segmented");
        if (flat || segmented)
            cfg->segmented = segmented;
        ix_mc_say(s, c, flat || segmented ? "OK" : "ERROR");
    } else if (ix_mc_is(&t[1], "temp_ttl") && w->count >= 3) {
        bool number = ix_mc_i32(t[2].at, t[2].n, &ttl);
        if (number)
            cfg->temp_ttl_s = ttl < 0 ? -1 : ttl;
        ix_mc_say(s, c, number ? "OK" : "ERROR");
    } else {
        ix_mc_say(s, c, "ERROR");
    }
}

/* `all`, or numbers with commas between them: a bit each. False: no such class. */
static bool classes_named(const struct ix_mc_token *t, uint64_t *classes)
{
    const uint8_t *at = t->at, *end = t->at + t->n;
    *classes = UINT64_MAX;
    if (ix_mc_is(t, "all"))
        return true;
    for (*classes = 0; at < end;) {
        const uint8_t *comma = memchr(at, ',', (size_t)(end - at)), *stop = comma ? comma : end;
        uint32_t number;
        if (stop > at) { /* memcached, too, lets commas stand together */
            if (!ix_mc_u32(at, (uint32_t)(stop - at), &number) || !number ||
                number >= IX_MC_CLASSES_MAX)
                return false;
            *classes |= 1ull << number;
        }
        at = stop + 1;
    }
    return true;
}

static void metadump(struct ix_mc_server *s, struct ix_mc_conn *c, const struct ix_mc_token *which)
{
    uint64_t classes = UINT64_MAX;
    if (!s->mc->config.lru_crawler)
        ix_mc_say(s, c, "CLIENT_ERROR lru crawler disabled");
    else if (s->mc->config.no_dump)
        ix_mc_say(s, c, "ERROR metadump not allowed");
    else if (!ix_mc_is(which, "hash") && !classes_named(which, &classes))
        ix_mc_say(s, c, "BADCLASS invalid class id");
    else if (c->datagram)
        ix_mc_say(s, c, "ERROR");
    else
        ix_mc_dump_begin(c, classes);
}

static void lru_crawler(struct ix_mc_server *s, struct ix_mc_conn *c, const struct ix_mc_words *w)
{
    const struct ix_mc_token *t = w->word;
    uint64_t classes;
    uint32_t number;
    if (w->count == 3 && ix_mc_is(&t[1], "crawl")) {
        if (!s->mc->config.lru_crawler) {
            ix_mc_say(s, c, "CLIENT_ERROR lru crawler disabled");
            return;
        }
        ix_mc_say(s, c, !classes_named(&t[2], &classes) ? "BADCLASS invalid class id"
                        : ix_mc_crawl_start(&s->use)
                            ? "OK"
                            : "BUSY currently processing crawler request");
    } else if (w->count == 3 && ix_mc_is(&t[1], "metadump")) {
        metadump(s, c, &t[2]);
    } else if (w->count == 3 && (ix_mc_is(&t[1], "tocrawl") || ix_mc_is(&t[1], "sleep"))) {
        /* How it shares the cores with requests is fixed: what is asked for changes nothing. */
        bool good = ix_mc_u32(t[2].at, t[2].n, &number);
        ix_mc_say(s, c, !good ? "CLIENT_ERROR bad command line format"
                        : ix_mc_is(&t[1], "sleep") && number > 1000000
                            ? "CLIENT_ERROR sleep must be one second or less"
                            : "OK");
    } else if (w->count == 2 && (ix_mc_is(&t[1], "enable") || ix_mc_is(&t[1], "disable"))) {
        s->mc->config.lru_crawler = ix_mc_is(&t[1], "enable");
        ix_mc_say(s, c, "OK");
    } else {
        ix_mc_say(s, c, "ERROR");
    }
}

/* The control process ends when its workers have come to an end. */
static void shut_down(struct ix_mc_server *s, struct ix_mc_conn *c, const struct ix_mc_words *w)
{
    if (!s->mc->config.shutdown_command) {
        ix_mc_say(s, c, "ERROR: shutdown not enabled");
    } else if (w->count == 1 || (w->count == 2 && ix_mc_is(&w->word[1], "graceful"))) {
        c->state = IX_MC_ENDED;
        __atomic_store_n(&s->mc->stopping, 1, __ATOMIC_RELAXED);
    } else {
        ix_mc_say(s, c, "CLIENT_ERROR invalid shutdown mode");
    }
}

bool ix_mc_admin_command(struct ix_mc_server *s, struct ix_mc_conn *c, struct ix_mc_words *w)
{
    static const struct {
        const char *name;
        void (*run)(struct ix_mc_server *, struct ix_mc_conn *, const struct ix_mc_words *);
    } commands[] = {{"stats", ix_mc_text_stats}, {"flush_all", flush_all},
                    {"verbosity", verbosity},    {"cache_memlimit", memlimit},
                    {"slabs", slabs},            {"lru", lru},
                    {"lru_crawler", lru_crawler}};
    const struct ix_mc_token *name = &w->word[0], *last = &w->word[w->count - 1];
    for (uint32_t i = 0; i < sizeof commands / sizeof *commands; i++) {
        if (ix_mc_is(name, commands[i].name)) {
            commands[i].run(s, c, w);
            return true;
        }
    }
    if (ix_mc_is(name, "version"))
        ix_mc_say(s, c, "VERSION " IX_MC_VERSION);
    else if (ix_mc_is(name, "quit"))
        c->state = IX_MC_ENDED;
    else if (ix_mc_is(name, "shutdown"))
        shut_down(s, c, w);
    else if (ix_mc_is(name, "watch"))
        ix_mc_watch(s, c, w);
    else if (last->n >= 5 && !memcmp(last->at, "HTTP/", 5)) /* a browser, or worse */
        c->state = IX_MC_ENDED;
    else
        return false;
    return true;
}
