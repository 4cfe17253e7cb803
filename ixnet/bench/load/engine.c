/* When requests go out, on which connection, and how long their replies took.
 *
 * Open loop: the schedule says when each request is due, whatever the server does, and its latency
 * counts from then. If every connection is full the request waits, and the wait is part of its
 * latency. Closed loop: a number of requests is kept under way. In both, connections that can take
 * a request wait in a list and get theirs in turn.
 */
#include "load.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#define HUGE_BYTES       ((size_t)2 << 20)
#define CONNECT_RETRIES  20  /* per connection, for a full backlog */
#define FAILURES_MAX     100 /* in a row: then the server is gone */
#define WAIT_MAX_NS      10000000ull
#define WAIT_FOR_PORT_NS 1000000ull

uint64_t clock_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * SECOND_NS + (uint64_t)t.tv_nsec;
}

uint64_t seconds_ns(double seconds)
{
    return (uint64_t)(seconds * 1e9);
}

void list_push(struct load *l, struct list *list, uint32_t index)
{
    struct conn *c = &l->conns[index];
    c->listed = true;
    c->next = NONE;
    *(list->head == NONE ? &list->head : &l->conns[list->tail].next) = index;
    list->tail = index;
}

uint32_t list_pop(struct load *l, struct list *list)
{
    uint32_t index = list->head;
    if (index != NONE) {
        list->head = l->conns[index].next;
        l->conns[index].listed = false;
    }
    return index;
}

/* ---- failures ---------------------------------------------------------------------- */

void load_note(struct load *l, enum failure kind, const char *format, ...)
{
    l->failures[kind]++;
    if (l->first_error[0])
        return;
    va_list args;
    va_start(args, format);
    vsnprintf(l->first_error, sizeof l->first_error, format, args);
    va_end(args);
}

bool load_failed(const struct load *l)
{
    for (int i = 0; i < FAILURES; i++) {
        if (l->failures[i])
            return true;
    }
    return false;
}

static enum failure failure_of_errno(int error)
{
    switch (error) {
    case ECONNREFUSED:
        return FAIL_REFUSED;
    case ECONNRESET:
    case EPIPE:
        return FAIL_RESET;
    case ETIMEDOUT:
        return FAIL_TIMEOUT;
    default:
        return FAIL_OTHER;
    }
}

static struct group *group_of(struct load *l, const struct conn *c)
{
    return &l->groups[c->group];
}

static inline void free_request(struct load *l, struct conn *c, struct group *g)
{
    uint32_t id = c->first;
    c->first = l->requests[id].next;
    if (c->first == NONE)
        c->last = NONE;
    l->requests[id].next = l->request_free;
    l->request_free = id;
    c->requests--;
    c->got = c->reply_bytes = 0;
    g->under_way--;
}

/* The transport has nothing of it any more. */
static void settle(struct load *l, uint32_t index, enum conn_state end)
{
    struct conn *c = &l->conns[index];
    c->state = (uint8_t)end;
    if (l->opt.mode == MODE_CONNRATE) {
        c->state = CONN_IDLE;
        list_push(l, &group_of(l, c)->spare, index);
    }
}

static void fail(struct load *l, uint32_t index, enum failure kind, const char *what)
{
    struct conn *c = &l->conns[index];
    load_note(l, kind, "connection %u to %s: %s", index, l->opt.target_text, what);
    if (++l->failures_in_a_row >= FAILURES_MAX && l->opt.mode == MODE_CONNRATE)
        l->over = true;
    while (c->requests)
        free_request(l, c, group_of(l, c));
    c->unsent = NONE;
}

/* Of a connection that the transport still has. */
static __attribute__((cold, noinline)) void fail_open(struct load *l, uint32_t index,
                                                      enum failure kind, const char *what)
{
    fail(l, index, kind, what);
    l->conns[index].retries = CONNECT_RETRIES; /* marks it as failed */
    l->conns[index].state = CONN_CLOSING;
    transport_close(l, index, true);
}

void load_closed(struct load *l, uint32_t index)
{
    l->open--;
    settle(l, index, l->conns[index].retries == CONNECT_RETRIES ? CONN_FAILED : CONN_DONE);
}

/* ---- connecting -------------------------------------------------------------------- */

static void connect_failed(struct load *l, uint32_t index, int error)
{
    struct conn *c = &l->conns[index];
    bool patient = error == ECONNREFUSED && l->now_ns < l->give_up_ns;
    bool full = (error == ECONNRESET || error == ETIMEDOUT) && c->retries < CONNECT_RETRIES &&
                l->opt.mode != MODE_CONNRATE;
    if (patient || full) {
        c->retries += full;
        c->state = CONN_IDLE;
        list_push(l, &l->to_connect, index);
        return;
    }
    fail(l, index, failure_of_errno(error), strerror(error));
    settle(l, index, CONN_FAILED);
}

/* False: not now, no local port is free. */
static bool begin_connect(struct load *l, uint32_t index)
{
    struct conn *c = &l->conns[index];
    c->send_at = c->recv_at = bytestream_start(l->opt.seed, l->opened + index);
    c->state = CONN_CONNECTING;
    int err = transport_connect(l, index);
    if (err == -EADDRNOTAVAIL || err == -EAGAIN) {
        l->port_waits++;
        c->state = CONN_IDLE;
        list_push(l, &l->to_connect, index);
        return false;
    }
    if (err)
        connect_failed(l, index, -err);
    else
        l->connecting++;
    return true;
}

static void connect_waiting(struct load *l)
{
    while (l->connecting < CONNECTING_MAX && l->to_connect.head != NONE) {
        if (!begin_connect(l, list_pop(l, &l->to_connect)))
            return;
    }
}

void load_connected(struct load *l, uint32_t index, int error)
{
    struct conn *c = &l->conns[index];
    l->connecting--;
    if (error == EADDRNOTAVAIL) {
        l->port_waits++;
        c->state = CONN_IDLE;
        list_push(l, &l->to_connect, index);
        return;
    }
    if (error) {
        connect_failed(l, index, error);
        return;
    }
    c->state = CONN_OPEN;
    c->retries = 0;
    l->open++;
    l->opened++;
    l->progress_ns = l->now_ns;
    if (c->requests)
        transport_kick(l, index);
    else
        list_push(l, &group_of(l, c)->spare, index);
}

/* ---- requests ---------------------------------------------------------------------- */

static bool grow_requests(struct load *l)
{
    uint32_t count = l->request_count ? 2 * l->request_count : 1024;
    struct request *more = realloc(l->requests, count * sizeof *more);
    if (!more)
        return false;
    for (uint32_t i = count; i-- > l->request_count;) {
        more[i].next = l->request_free;
        l->request_free = i;
    }
    l->requests = more;
    l->request_count = count;
    return true;
}

static inline __attribute__((always_inline)) void start(struct load *l, uint32_t index,
                                                        uint64_t due_ns)
{
    struct conn *c = &l->conns[index];
    if (l->request_free == NONE && !grow_requests(l)) {
        load_note(l, FAIL_OTHER, "no memory for more requests");
        l->over = true;
        return;
    }
    uint32_t id = l->request_free;
    struct request *r = &l->requests[id];
    l->request_free = r->next;
    *r = (struct request){.due_ns = due_ns, .next = NONE};
    workload_choose(l, c, index, r);
    if (c->first == NONE)
        c->first = id;
    else
        l->requests[c->last].next = id;
    c->last = id;
    if (c->unsent == NONE) {
        c->unsent = id;
        c->unsent_at = 0;
    }
    c->requests++;
    group_of(l, c)->under_way++;
    if (c->state == CONN_OPEN)
        transport_kick(l, index);
    else if (c->state == CONN_IDLE && !c->listed)
        list_push(l, &l->to_connect, index);
}

void load_start(struct load *l, uint32_t index, uint64_t due_ns)
{
    start(l, index, due_ns);
}

uint32_t load_fill(struct load *l, uint32_t index, uint8_t *out, uint32_t room)
{
    struct conn *c = &l->conns[index];
    uint32_t n = 0;
    while (c->unsent != NONE && n < room) {
        const struct request *r = &l->requests[c->unsent];
        uint32_t left = r->wire_bytes - c->unsent_at;
        uint32_t part = room - n < left ? room - n : left;
        part = part < BYTESTREAM_SLICE ? part : BYTESTREAM_SLICE;
        workload_render(l, c, r, c->unsent_at, out + n, part);
        n += part;
        c->unsent_at += part;
        if (c->unsent_at == r->wire_bytes) {
            c->unsent = r->next;
            c->unsent_at = 0;
        }
    }
    return n;
}

/* When the request after the one that was due is. */
static void advance_schedule(struct load *l, struct group *g)
{
    double mean_ns = 1e9 / g->rate;
    double gap_ns = l->opt.fixed ? mean_ns : exponential(rng_unit(&l->rng), mean_ns);
    gap_ns += g->next_due_rest;
    uint64_t whole = (uint64_t)gap_ns;
    g->next_due_rest = gap_ns - (double)whole;
    g->next_due_ns += whole;
}

/* The next connection that can take a request, or NONE. Those that ended meanwhile are dropped. */
static uint32_t pop_spare(struct load *l, struct group *g)
{
    uint32_t index;
    do
        index = list_pop(l, &g->spare);
    while (index != NONE && l->conns[index].state > CONN_OPEN);
    return index;
}

/* On the next connection that can take it. False: there is none. */
static inline __attribute__((always_inline)) bool issue_one(struct load *l, struct group *g,
                                                            uint64_t due_ns)
{
    uint32_t index = pop_spare(l, g);
    if (index == NONE)
        return false;
    struct conn *c = &l->conns[index];
    start(l, index, due_ns);
    if (c->state == CONN_OPEN && c->requests < l->opt.depth && !c->listed)
        list_push(l, &g->spare, index);
    return true;
}

static void issue_group(struct load *l, struct group *g)
{
    if (!l->issuing)
        return;
    if (g->rate > 0) {
        while (g->next_due_ns <= l->now_ns && g->next_due_ns < l->to_ns) {
            if (!issue_one(l, g, g->next_due_ns))
                return;
            advance_schedule(l, g);
        }
        return;
    }
    while (g->under_way < g->window && g->spare.head != NONE) {
        if (l->preloading && !memcached_more_to_store(l)) {
            l->issuing = false;
            return;
        }
        issue_one(l, g, l->now_ns);
    }
}

void load_issue(struct load *l)
{
    for (int i = 0; i < GROUPS; i++)
        issue_group(l, &l->groups[i]);
}

static void record_slice(struct group *g, uint64_t now_ns, uint64_t took_ns)
{
    if (now_ns >= g->slice_to_ns) {
        if (g->slice.count && g->slices < SLICES_MAX)
            g->slice_p99_us[g->slices++] = (uint32_t)(histogram_quantile_ns(&g->slice, 0.99) / 1e3);
        histogram_reset(&g->slice);
        g->slice_to_ns = now_ns + SLICE_NS;
    }
    histogram_add(&g->slice, took_ns);
}

/* The latency, if the request is one of the measured time. */
static void record(struct load *l, struct group *g, const struct request *r)
{
    bool counts = g->rate > 0 ? r->due_ns >= l->from_ns && r->due_ns < l->to_ns : l->measuring;
    if (counts) {
        histogram_add(&g->latency, l->now_ns - r->due_ns);
        record_slice(g, l->now_ns, l->now_ns - r->due_ns);
    }
    if (l->measuring)
        g->completed++;
}

/* The oldest request of a connection has its whole reply. */
static void complete(struct load *l, uint32_t index)
{
    struct conn *c = &l->conns[index];
    struct group *g = group_of(l, c);
    record(l, g, &l->requests[c->first]);
    if (l->memcached)
        memcached_count(l, &l->requests[c->first], c->reply_bytes);
    free_request(l, c, g);
    l->completed++;
    l->self->completed = l->completed;
    l->failures_in_a_row = 0;
    switch (l->opt.mode) {
    case MODE_CONNRATE:
        c->state = CONN_CLOSING;
        transport_close(l, index, l->opt.reset);
        return;
    case MODE_TRANSFER:
        if (c->messages_left) {
            c->messages_left--;
            load_start(l, index, l->now_ns);
        } else {
            c->state = CONN_FINISHING;
            transport_finish(l, index);
        }
        return;
    default:
        if (!c->listed)
            list_push(l, &g->spare, index);
        issue_group(l, g);
    }
}

static __attribute__((cold, noinline)) void fail_reply(struct load *l, uint32_t index,
                                                       const uint8_t *data, uint32_t bytes)
{
    char what[96];
    snprintf(what, sizeof what, "no reply to what was asked: %.*s", bytes < 60 ? (int)bytes : 60,
             (const char *)data);
    fail_open(l, index, FAIL_MISMATCH, what);
}

void load_received(struct load *l, uint32_t index, const uint8_t *data, uint32_t bytes)
{
    struct conn *c = &l->conns[index];
    l->progress_ns = l->now_ns;
    while (bytes && (c->state == CONN_OPEN || c->state == CONN_FINISHING)) {
        if (c->first == NONE) {
            fail_open(l, index, FAIL_MISMATCH, "more came back than was asked for");
            return;
        }
        const struct request *r = &l->requests[c->first];
        if (!c->got)
            c->reply_bytes = workload_reply_bytes(l, r, data[0]);
        if (!c->reply_bytes) {
            fail_reply(l, index, data, bytes);
            return;
        }
        uint32_t left = c->reply_bytes - c->got, n = bytes < left ? bytes : left;
        n = n < BYTESTREAM_SLICE ? n : BYTESTREAM_SLICE;
        if (!workload_matches(l, c, r, c->got, data, n)) {
            fail_open(l, index, FAIL_MISMATCH, "the reply differs from what it should be");
            return;
        }
        l->verified_bytes += n;
        if (l->measuring)
            l->window_bytes += n;
        c->got += n;
        data += n;
        bytes -= n;
        if (c->got < c->reply_bytes)
            continue;
        if (c->unsent == c->first || (bytes && c->requests == 1)) {
            fail_open(l, index, FAIL_MISMATCH, "more came back than was asked for");
            return;
        }
        complete(l, index);
    }
}

void load_peer_closed(struct load *l, uint32_t index)
{
    struct conn *c = &l->conns[index];
    l->progress_ns = l->now_ns;
    if (c->state == CONN_FINISHING) {
        l->transferred++;
        c->state = CONN_CLOSING;
        transport_close(l, index, false);
    } else if (c->state == CONN_OPEN) {
        char what[96];
        snprintf(what, sizeof what,
                 "the server closed it, after %u bytes of a reply to %u requests", c->got,
                 c->requests);
        fail_open(l, index, FAIL_CLOSED, what);
    }
}

void load_broken(struct load *l, uint32_t index, int error)
{
    struct conn *c = &l->conns[index];
    if (c->state == CONN_CONNECTING) {
        load_connected(l, index, error);
        return;
    }
    l->open--;
    if (c->state != CONN_CLOSING)
        fail(l, index, failure_of_errno(error), strerror(error));
    settle(l, index, CONN_FAILED);
}

void load_drop_waiting(struct load *l)
{
    uint32_t index;
    while ((index = list_pop(l, &l->to_connect)) != NONE) {
        struct conn *c = &l->conns[index];
        while (c->requests)
            free_request(l, c, group_of(l, c));
        c->unsent = NONE;
        list_push(l, &group_of(l, c)->spare, index);
    }
}

/* ---- the loop ---------------------------------------------------------------------- */

/* How long the transport may wait: until something is to be sent, or the caller wants to know. */
static uint64_t may_wait_ns(const struct load *l, uint64_t until_ns)
{
    uint64_t wake_ns = l->now_ns + (l->to_connect.head != NONE ? WAIT_FOR_PORT_NS : WAIT_MAX_NS);
    wake_ns = until_ns < wake_ns ? until_ns : wake_ns;
    for (int i = 0; i < GROUPS; i++) {
        const struct group *g = &l->groups[i];
        if (l->issuing && g->rate > 0 && g->spare.head != NONE && g->next_due_ns < wake_ns)
            wake_ns = g->next_due_ns;
    }
    return wake_ns > l->now_ns ? wake_ns - l->now_ns : 0;
}

static void check_progress(struct load *l)
{
    uint32_t under_way = l->connecting + l->groups[0].under_way + l->groups[1].under_way;
    if (l->opt.mode == MODE_TRANSFER)
        under_way += l->open;
    if (!under_way)
        l->progress_ns = l->now_ns;
    if (l->now_ns > l->progress_ns && l->now_ns - l->progress_ns > seconds_ns(l->opt.timeout_s)) {
        if (l->open)
            load_note(l, FAIL_TIMEOUT, "%s: nothing moved for %g s; %u of %u connections are open",
                      l->opt.target_text, l->opt.timeout_s, l->open, l->conn_count);
        else
            load_note(l, FAIL_TIMEOUT, "%s: no connection opened in %g s", l->opt.target_text,
                      l->opt.timeout_s);
        l->over = true;
    }
}

bool load_turn(struct load *l, uint64_t until_ns)
{
    connect_waiting(l);
    load_issue(l);
    if (!transport_turn(l, may_wait_ns(l, until_ns))) {
        load_note(l, FAIL_OTHER, "interrupted");
        l->over = true;
    }
    l->self->open = l->open;
    check_progress(l);
    return !l->over;
}

bool load_open(struct load *l, uint32_t connections)
{
    struct group *g = &l->groups[GROUP_LOAD], *probes = &l->groups[GROUP_PROBE];
    uint32_t first_probe = l->conn_count - l->opt.probes;
    bool lazily = l->opt.mode == MODE_CONNRATE;
    l->now_ns = l->progress_ns = clock_ns();
    for (; g->conn_count < connections && g->conn_count < first_probe; g->conn_count++)
        list_push(l, lazily ? &g->spare : &l->to_connect, g->conn_count);
    for (; probes->conn_count < l->opt.probes; probes->conn_count++)
        list_push(l, lazily ? &probes->spare : &l->to_connect, first_probe + probes->conn_count);
    while (!lazily && l->open < g->conn_count + probes->conn_count) {
        if (load_failed(l) || !load_turn(l, UINT64_MAX))
            return false;
    }
    return true;
}

int load_init(struct load *l)
{
    l->conn_count = l->opt.connections + l->opt.probes;
    size_t bytes = l->conn_count * sizeof *l->conns;
    if (posix_memalign((void **)&l->conns, HUGE_BYTES, bytes))
        return -ENOMEM;
    madvise(l->conns, bytes, MADV_HUGEPAGE); /* a million of them: a miss of the TLB each turn */
    memset(l->conns, 0, bytes);
    l->request_free = NONE;
    l->to_connect = (struct list){NONE, NONE};
    l->rng.state = bytestream_word(l->opt.seed, l->opt.worker);
    for (int i = 0; i < GROUPS; i++)
        l->groups[i].spare = (struct list){NONE, NONE};
    bool transfer = l->opt.mode == MODE_TRANSFER;
    for (uint32_t i = 0; i < l->conn_count; i++) {
        l->conns[i] = (struct conn){.first = NONE, .last = NONE, .unsent = NONE, .fd = -1,
                                    .piece_first = NONE, .piece_unsent = NONE,
                                    .messages_left = transfer ? l->opt.messages - 1 : 0,
                                    .group = i >= l->opt.connections};
    }
    bytestream_init(&l->stream);
    return l->opt.mode == MODE_MEMCACHED ? memcached_init(l) : 0;
}

void load_free(struct load *l)
{
    memcached_free(l);
    free(l->conns);
    free(l->requests);
}
