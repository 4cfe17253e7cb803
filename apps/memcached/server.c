/* The server on the dataplane's batches of events and calls.
 *
 *     KNOCK -> ACCEPT;  RECV -> commands -> SENDV of arena frames;  SENT -> frames are free;
 *     input handled -> RECV_DONE;  FIN -> CLOSE
 *
 * In a turn events are only noted; then the keys of all connections that have input are hashed and
 * what they will want is prefetched; then each connection's commands are run.
 */
#include "apps/memcached/conn.h"

#include "apps/memcached/txn.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LISTENER UINT64_MAX /* the listener's cookie; connections have their index */

enum {
    WAIT_NS = 10000000, /* between turns at most: maintenance is due then */
    IDLE_LOOKS = 256    /* connections looked at in a turn for idleness */
};

void ix_mc_push(struct ix_mc_queue *q, uint32_t *next, uint32_t index)
{
    next[index] = IX_MC_NONE;
    if (q->head == IX_MC_NONE)
        q->head = index;
    else
        next[q->tail] = index;
    q->tail = index;
}

static uint32_t pop(struct ix_mc_queue *q, const uint32_t *next)
{
    uint32_t index = q->head;
    if (index != IX_MC_NONE)
        q->head = next[index];
    return index;
}

void ix_mc_ready(struct ix_mc_server *s, struct ix_mc_conn *c)
{
    uint32_t index = (uint32_t)(c - s->conns);
    if (c->queued || c->datagram)
        return;
    c->queued = true;
    c->next = IX_MC_NONE;
    if (s->ready.head == IX_MC_NONE)
        s->ready.head = index;
    else
        s->conns[s->ready.tail].next = index;
    s->ready.tail = index;
    s->ready_count++;
}

void ix_mc_call_soon(struct ix_mc_server *s, struct ix_mc_conn *c, uint8_t todo)
{
    if (c->datagram)
        return;
    c->todo |= todo;
    if (c->called)
        return;
    c->called = true;
    ix_mc_push(&s->calling, s->call_next, (uint32_t)(c - s->conns));
}

/* ---- connections -------------------------------------------------------------- */

/* The record goes back to the free ones when it is in no queue any more. */
static void release_if_idle(struct ix_mc_server *s, struct ix_mc_conn *c)
{
    if (c->open || c->queued || c->called || c->starved)
        return;
    c->next = s->conn_free;
    s->conn_free = (uint32_t)(c - s->conns);
}

static uint64_t connections(const struct ix_mc *mc)
{
    const struct ix_mc_worker *w = ix_mc_inside(mc, mc->workers_at);
    uint64_t n = 0;
    for (uint32_t i = 0; i < mc->config.workers; i++)
        n += __atomic_load_n(&w[i].curr_connections, __ATOMIC_RELAXED);
    return n;
}

static void on_knock(struct ix_mc_server *s, const struct ix_event *ev)
{
    uint32_t index = s->conn_free;
    if (index == IX_MC_NONE) {
        s->use.counts->rejected_connections++;
        ix_app_call(s->app, IX_CALL_REJECT, ev->handle);
        return;
    }
    struct ix_mc_conn *c = &s->conns[index];
    s->conn_free = c->next;
    if (!c->handle)
        s->use.log->conn_structures++;
    uint8_t *line = c->line;
    uint32_t line_room = c->line_room;
    *c = (struct ix_mc_conn){.handle = ev->handle, .in = {IX_MC_NONE, IX_MC_NONE},
                             .out_head = IX_MC_NONE, .out_unsent = IX_MC_NONE, .open = true,
                             .line = line, .line_room = line_room, .last_ns = s->use.now_ns,
                             .protocol = s->mc->config.protocol, .peer_port = ev->peer_port,
                             .family = ev->family};
    memcpy(c->peer, ev->peer, sizeof c->peer);
    memcpy(c->local, ev->local, sizeof c->local);
    ix_mc_call_soon(s, c, IX_MC_TODO_ACCEPT);
    if (connections(s->mc) >= s->mc->config.conns_max) {
        s->use.counts->rejected_connections++;
        c->state = IX_MC_ENDED;
        ix_mc_say(s, c, "ERROR Too many open connections");
        c->room = 0;
        ix_mc_call_soon(s, c, IX_MC_TODO_SEND | IX_MC_TODO_CLOSE);
        return;
    }
    c->counted = true;
    if (ix_mc_watched(&s->use, IX_MC_WATCH_CONNEVENTS))
        ix_mc_tell_conn(s, c, NULL);
    s->use.log->curr_connections++;
    s->use.counts->total_connections++;
}

static void on_recv(struct ix_mc_server *s, const struct ix_event *ev)
{
    struct ix_mc_conn *c = &s->conns[ev->cookie];
    if (!ev->bytes) {
        c->eof = true;
        ix_mc_ready(s, c);
        return;
    }
    s->extents[ev->frame] = (struct ix_mc_extent){
        .handle = ev->handle, .next = IX_MC_NONE, .offset = ev->offset, .bytes = ev->bytes};
    if (c->in.head == IX_MC_NONE)
        c->in.head = ev->frame;
    else
        s->extents[c->in.tail].next = ev->frame;
    c->in.tail = ev->frame;
    if (c->state == IX_MC_ENDED || c->closing)
        ix_mc_input_drop(s, c);
    else
        ix_mc_ready(s, c);
}

static void free_first(struct ix_mc_server *s, struct ix_mc_conn *c)
{
    uint32_t frame = c->out_head;
    c->out_head = s->frames[frame].next;
    c->out_count--;
    ix_mc_frame_free(s, frame);
}

static void on_sent(struct ix_mc_server *s, const struct ix_event *ev)
{
    struct ix_mc_conn *c = &s->conns[ev->cookie];
    c->acked += ev->bytes;
    s->use.counts->bytes_written += ev->bytes;
    while (c->out_head != c->out_unsent && c->acked >= s->frames[c->out_head].bytes) {
        c->acked -= s->frames[c->out_head].bytes;
        free_first(s, c);
    }
    c->blocked = false;
    if (c->out_unsent != IX_MC_NONE)
        ix_mc_call_soon(s, c, IX_MC_TODO_SEND);
    if (c->in.head != IX_MC_NONE || c->emit_left || c->blob || c->state == IX_MC_GET_KEYS ||
        c->state == IX_MC_DUMP || c->eof)
        ix_mc_ready(s, c);
}

static void end_conn(struct ix_mc_server *s, struct ix_mc_conn *c)
{
    while (c->out_head != IX_MC_NONE)
        free_first(s, c);
    c->out_unsent = IX_MC_NONE;
    ix_mc_input_drop(s, c);
    ix_mc_drop(&s->use, ix_mc_hold_of(s, c));
    ix_mc_watch_end(s, c);
    if (ix_mc_watched(&s->use, IX_MC_WATCH_CONNEVENTS) && c->counted)
        ix_mc_tell_conn(s, c, c->idle ? "idle_timeout" : "normal");
    free(c->blob);
    free(c->line);
    c->blob = c->line = NULL;
    c->line_room = c->line_bytes = c->emit_left = 0;
    c->open = false;
    s->use.log->curr_connections -= c->counted;
    c->counted = false;
    release_if_idle(s, c);
}

/* ---- calls -------------------------------------------------------------------- */

/* False: the array is full. */
static bool send_frames(struct ix_mc_server *s, struct ix_mc_conn *c)
{
    const struct ix_io *io = s->app->io;
    struct ix_call *last = NULL;
    for (uint32_t frame = c->out_unsent; frame != IX_MC_NONE; frame = s->frames[frame].next) {
        const struct ix_mc_frame *f = &s->frames[frame];
        struct ix_call *call = ix_app_call(s->app, IX_CALL_SENDV, c->handle);
        if (!call)
            return false;
        if (last)
            last->flags = IX_SEND_MORE;
        call->addr = ((uint64_t)(io->arena_frame + frame) << io->frame_shift) + io->tx_headroom +
                     f->taken;
        call->bytes = f->bytes - f->taken;
        s->call_conn[io->n_calls - 1] = (uint32_t)(c - s->conns);
        last = call;
    }
    return true;
}

static bool run_todo(struct ix_mc_server *s, struct ix_mc_conn *c)
{
    struct ix_call *call;
    if (c->todo & IX_MC_TODO_ACCEPT) {
        if (!(call = ix_app_call(s->app, IX_CALL_ACCEPT, c->handle)))
            return false;
        call->cookie = (uint64_t)(c - s->conns);
        s->call_conn[s->app->io->n_calls - 1] = (uint32_t)(c - s->conns);
        c->todo &= (uint8_t)~IX_MC_TODO_ACCEPT;
    }
    if (c->todo & IX_MC_TODO_SEND && !c->blocked && !send_frames(s, c))
        return false;
    c->todo &= (uint8_t)~IX_MC_TODO_SEND;
    if (c->todo & IX_MC_TODO_CLOSE && c->out_unsent == IX_MC_NONE && !c->emit_left && !c->blob) {
        if (!ix_app_call(s->app, IX_CALL_CLOSE, c->handle))
            return false;
        c->todo = 0;
        c->closing = true;
        ix_mc_input_drop(s, c);
    }
    return true;
}

/* Fills the array of calls. What does not fit waits for the next turn. */
static void put_calls(struct ix_mc_server *s)
{
    struct ix_io *io = s->app->io;
    while (s->done.head != IX_MC_NONE && io->n_calls < io->max_calls / 2) {
        uint32_t frame = s->done.head;
        const struct ix_mc_extent *x = &s->extents[frame];
        struct ix_call *call = ix_app_call(s->app, IX_CALL_RECV_DONE, x->handle);
        if (x->handle == s->udp_handle && s->udp_handle)
            call->op = IX_CALL_UDP_RECV_DONE;
        call->addr = ((uint64_t)frame << io->frame_shift) + x->offset;
        call->bytes = x->bytes;
        s->done.head = x->next;
    }
    if (!ix_mc_udp_calls(s))
        return;
    for (uint32_t last = s->calling.tail, index = IX_MC_NONE;
         s->calling.head != IX_MC_NONE && index != last;) {
        index = pop(&s->calling, s->call_next);
        struct ix_mc_conn *c = &s->conns[index];
        c->called = false;
        if (!c->open) {
            release_if_idle(s, c);
        } else if (!run_todo(s, c)) {
            ix_mc_call_soon(s, c, 0);
            break;
        }
    }
}

/* SENDV took a prefix: what is behind it follows when the peer has acknowledged something. */
static void on_taken(struct ix_mc_server *s, struct ix_mc_conn *c, const struct ix_call *call)
{
    if (call->result < 0 || c->out_unsent == IX_MC_NONE)
        return;                           /* DEAD says why */
    if (c->blocked && call->result > 0) { /* behind a gap: no stream any more */
        ix_app_call(s->app, IX_CALL_ABORT, c->handle);
        return;
    }
    struct ix_mc_frame *f = &s->frames[c->out_unsent];
    f->taken += (uint32_t)call->result;
    if (f->taken == f->bytes)
        c->out_unsent = f->next;
    else
        c->blocked = true;
}

static void look_at_results(struct ix_mc_server *s, uint32_t n_calls)
{
    const struct ix_io *io = s->app->io;
    for (uint32_t i = 0; i < n_calls; i++) {
        uint32_t index = s->call_conn[i];
        if (index == IX_MC_NONE)
            continue;
        s->call_conn[i] = IX_MC_NONE;
        if (io->calls[i].op == IX_CALL_UDP_SENDV) {
            if (io->calls[i].result < 0)
                ix_mc_frame_free(s, index); /* lost, as datagrams may be */
            continue;
        }
        struct ix_mc_conn *c = &s->conns[index];
        if (io->calls[i].op == IX_CALL_ACCEPT) {
            if (io->calls[i].result < 0) /* the peer was faster */
                end_conn(s, c);
            continue;
        }
        if (io->calls[i].op != IX_CALL_SENDV || !c->open)
            continue;
        on_taken(s, c, &io->calls[i]);
        /* Nothing is under way that would be acknowledged: ask again. */
        if (c->blocked && c->out_head == c->out_unsent && !s->frames[c->out_unsent].taken) {
            c->blocked = false;
            ix_mc_call_soon(s, c, IX_MC_TODO_SEND);
        } else if (c->todo || (c->out_unsent != IX_MC_NONE && !c->blocked)) {
            ix_mc_call_soon(s, c, IX_MC_TODO_SEND);
        }
    }
}

/* ---- a turn ------------------------------------------------------------------- */

static void on_event(struct ix_mc_server *s, const struct ix_event *ev)
{
    switch (ev->type) {
    case IX_EV_KNOCK:
        on_knock(s, ev);
        break;
    case IX_EV_RECV:
        on_recv(s, ev);
        break;
    case IX_EV_SENT:
        on_sent(s, ev);
        break;
    case IX_EV_DEAD:
        if (ev->cookie != LISTENER) /* else ACCEPT fails */
            end_conn(s, &s->conns[ev->cookie]);
        break;
    case IX_EV_UDP_RECV:
        ix_mc_udp_recv(s, ev);
        break;
    case IX_EV_UDP_SENT:
        ix_mc_frame_free(s, ev->frame - s->app->io->arena_frame);
        break;
    default:
        break;
    }
}

/* First what all of them will want is fetched into the cache, then they are served. */
static void serve_ready(struct ix_mc_server *s)
{
    uint32_t n = s->ready_count;
    if (n > 1) {
        for (uint32_t i = s->ready.head; i != IX_MC_NONE; i = s->conns[i].next)
            ix_mc_look(s, &s->conns[i]);
        for (uint32_t i = s->ready.head; i != IX_MC_NONE; i = s->conns[i].next) {
            const struct ix_mc_conn *c = &s->conns[i];
            uint32_t ref = c->pre_valid ? ix_mc_bucket(&s->use, c->pre_hash)->head : 0;
            if (ref)
                __builtin_prefetch(ix_mc_at(s->mc, ref));
        }
    }
    while (n-- && s->ready.head != IX_MC_NONE) {
        struct ix_mc_conn *c = &s->conns[s->ready.head];
        s->ready.head = c->next;
        s->ready_count--;
        c->queued = false;
        if (!c->open)
            release_if_idle(s, c);
        else if (!c->closing)
            ix_mc_input(s, c);
        c->pre_valid = false;
    }
}

static void feed_starved(struct ix_mc_server *s)
{
    while (s->starved.head != IX_MC_NONE && s->arena_free_count > IX_MC_FRAMES_FAIR) {
        struct ix_mc_conn *c = &s->conns[pop(&s->starved, s->starve_next)];
        c->starved = false;
        if (c->open)
            ix_mc_ready(s, c);
        else
            release_if_idle(s, c);
    }
}

/* -o idle_timeout: closes connections that are between commands and were silent for too long. Few
 * are looked at in a turn, all of them every now and then. */
static void close_idle(struct ix_mc_server *s)
{
    uint64_t most_ns = s->mc->config.idle_timeout_s * 1000000000ull;
    for (uint32_t i = 0; most_ns && i < IDLE_LOOKS; i++) {
        struct ix_mc_conn *c = &s->conns[s->idle_at];
        s->idle_at = s->idle_at + 2 < s->conn_count ? s->idle_at + 1 : 0;
        if (!c->open || c->closing || c->state != IX_MC_READ_COMMAND || c->in.head != IX_MC_NONE ||
            c->out_head != IX_MC_NONE || s->use.now_ns - c->last_ns <= most_ns)
            continue;
        s->use.counts->idle_kicks++;
        c->idle = true;
        c->state = IX_MC_ENDED;
        ix_mc_call_soon(s, c, IX_MC_TODO_CLOSE);
    }
}

int ix_mc_server_turn(struct ix_mc_server *s, uint64_t max_wait_ns)
{
    const struct ix_io *io = s->app->io;
    put_calls(s);
    uint32_t n_calls = io->n_calls;
    bool more = s->done.head != IX_MC_NONE || s->calling.head != IX_MC_NONE ||
                s->ready.head != IX_MC_NONE;
    int n = ix_app_poll(s->app, more ? 0 : max_wait_ns);
    if (n < 0)
        return -1;
    ix_mc_set_time(&s->use, s->app->now_ns);
    look_at_results(s, n_calls);
    for (int i = 0; i < n; i++)
        on_event(s, &io->events[i]);
    feed_starved(s);
    if (s->watcher_count)
        ix_mc_watch_wake(s);
    serve_ready(s);
    ix_mc_maintain(&s->use);
    ix_mc_crawl(&s->use);
    ix_mc_move(&s->use);
    close_idle(s);
    return n;
}

/* ---- start -------------------------------------------------------------------- */

static bool take_memory(struct ix_mc_server *s)
{
    const struct ix_io *io = s->app->io;
    s->conn_count = s->mc->config.conns_max + IX_MC_CONNS_SPARE;
    s->extents = calloc(io->arena_frame, sizeof *s->extents);
    s->frames = calloc(io->arena_frames, sizeof *s->frames);
    s->arena_free = calloc(io->arena_frames, sizeof *s->arena_free);
    s->conns = calloc(s->conn_count, sizeof *s->conns);
    s->call_next = calloc(s->conn_count, sizeof *s->call_next);
    s->starve_next = calloc(s->conn_count, sizeof *s->starve_next);
    s->call_conn = calloc(io->max_calls, sizeof *s->call_conn);
    return s->extents && s->frames && s->arena_free && s->conns && s->call_next &&
           s->starve_next && s->call_conn;
}

struct ix_mc_server *ix_mc_server_new(struct ix_app *app, struct ix_mc *mc)
{
    const struct ix_mc_queue empty = {IX_MC_NONE, IX_MC_NONE};
    struct ix_mc_server *s = calloc(1, sizeof *s);
    if (!s)
        return NULL;
    s->app = app;
    s->mc = mc;
    s->ready = s->calling = s->starved = s->done = s->udp_out = empty;
    s->conn_free = IX_MC_NONE;
    ix_mc_open(&s->use, mc, app->shard_id);
    if (!take_memory(s)) {
        ix_mc_server_free(s);
        return NULL;
    }
    for (uint32_t i = s->conn_count - 1; i-- > 0;) { /* the last is for datagrams */
        s->conns[i].next = s->conn_free;
        s->conn_free = i;
    }
    for (uint32_t i = app->io->arena_frames; i-- > 0;)
        s->arena_free[s->arena_free_count++] = i;
    memset(s->call_conn, 0xff, app->io->max_calls * sizeof *s->call_conn);
    s->use.log->curr_connections = s->use.log->conn_structures = 0;
    return s;
}

void ix_mc_server_free(struct ix_mc_server *s)
{
    for (uint32_t i = 0; s->conns && i < s->conn_count; i++)
        if (s->conns[i].open)
            end_conn(s, &s->conns[i]);
    void *const memory[] = {s->extents, s->frames, s->arena_free, s->conns, s->call_next,
                            s->starve_next, s->call_conn, s->udp_to, s};
    for (uint32_t i = 0; i < sizeof memory / sizeof *memory; i++)
        free(memory[i]);
}

static int serve(struct ix_mc_server *s)
{
    const struct ix_mc_config *cfg = &s->mc->config;
    const char *ip = cfg->listen[0] ? cfg->listen : NULL;
    char why[320] = "no memory";
    if (cfg->tcp_port && ix_app_listen(s->app, ip, (uint16_t)cfg->tcp_port, LISTENER, cfg->backlog,
                                       why, sizeof why)) {
        fprintf(stderr, "memcached: can't serve TCP port %u: %s\n", cfg->tcp_port, why);
        return 1;
    }
    if (cfg->udp_port && ix_mc_udp_open(s, ip, (uint16_t)cfg->udp_port, why, sizeof why)) {
        fprintf(stderr, "memcached: can't serve UDP port %u: %s\n", cfg->udp_port, why);
        return 1;
    }
    while (!__atomic_load_n(&s->mc->stopping, __ATOMIC_RELAXED) &&
           ix_mc_server_turn(s, WAIT_NS) >= 0)
        continue;
    return 0;
}

/* argv[1]: the store's address, which `ixnet memcached` made before it forked this worker. */
int ix_app_main(struct ix_app *app, int argc, char **argv)
{
    struct ix_mc *mc = argc == 2 ? (struct ix_mc *)(uintptr_t)strtoull(argv[1], NULL, 16) : NULL;
    struct ix_mc_server *s = mc ? ix_mc_server_new(app, mc) : NULL;
    if (!s) {
        fprintf(stderr, mc ? "memcached: no memory\n"
                           : "memcached: start it with: ixnet memcached --interface IF\n");
        return mc ? 1 : 2;
    }
    int status = serve(s);
    ix_mc_server_free(s);
    return status;
}
