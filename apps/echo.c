/* A TCP echo server in C on the batched API of the dataplane:
 *
 *     ixnet run --interface IF build/apps/echo.so -- [--address IP] [--port N]
 *
 * No byte is copied: each received frame is sent back from where it lies, and given back to the
 * dataplane when the peer has acknowledged it.
 *
 *     KNOCK -> ACCEPT;  RECV -> SENDV of the same bytes;  SENT -> RECV_DONE;  FIN -> CLOSE
 */
#include "native/app.h"

#include <arpa/inet.h>
#include <getopt.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NONE        UINT32_MAX
#define LISTENER    UINT64_MAX /* the listener's cookie; connections have their index */
#define MAX_WAIT_NS 100000000u

/* What was received in a frame. A frame is lent once at a time, so these need no allocation: they
 * are indexed by frame. */
struct extent {
    uint64_t handle;
    uint32_t next; /* frame of the next extent in its queue, or NONE */
    uint32_t offset;
    uint32_t bytes;
    uint32_t taken; /* how many of them SENDV took */
};

struct queue {
    uint32_t head, tail;
};

enum todo { TODO_ACCEPT = 1, TODO_SEND = 2, TODO_CLOSE = 4 };

struct conn {
    uint64_t handle;
    struct queue lent; /* oldest first: taken by SENDV and not acknowledged, then not taken */
    uint32_t unsent;   /* the first of them that is not wholly taken, or NONE */
    uint32_t acked;    /* bytes of the oldest that are acknowledged */
    uint32_t room;     /* bytes that SENDV takes, as far as is known; UINT32_MAX: try */
    uint32_t next;     /* in the queue of those that have something to do, or free */
    uint8_t todo;      /* bits of enum todo */
    bool queued, open, closing, blocked;
};

struct echo {
    struct ix_app *app;
    struct extent *extents; /* [frames of the dataplane's pool] */
    struct conn *conns;
    uint32_t conn_count, free_conn;
    struct queue busy;   /* connections with something to do */
    struct queue done;   /* extents to give back */
    uint32_t *call_conn; /* [max_calls] whose ACCEPT or SENDV it is, or NONE */
};

/* ---- queues ---------------------------------------------------------------- */

static void push_extent(struct echo *e, struct queue *q, uint32_t frame)
{
    e->extents[frame].next = NONE;
    if (q->head == NONE)
        q->head = frame;
    else
        e->extents[q->tail].next = frame;
    q->tail = frame;
}

static uint32_t pop_extent(struct echo *e, struct queue *q)
{
    uint32_t frame = q->head;
    if (frame != NONE)
        q->head = e->extents[frame].next;
    return frame;
}

static void push_busy(struct echo *e, uint32_t index, uint8_t todo)
{
    struct conn *c = &e->conns[index];
    c->todo |= todo;
    if (c->queued)
        return;
    c->queued = true;
    c->next = NONE;
    if (e->busy.head == NONE)
        e->busy.head = index;
    else
        e->conns[e->busy.tail].next = index;
    e->busy.tail = index;
}

/* Is there no use in SENDV before SENT comes? */
static bool is_full(const struct conn *c)
{
    return c->blocked || c->room == 0;
}

/* ---- connections ----------------------------------------------------------- */

static bool grow(struct echo *e)
{
    uint32_t count = e->conn_count ? 2 * e->conn_count : 1024;
    struct conn *conns = realloc(e->conns, count * sizeof *conns);
    if (!conns)
        return false;
    memset(conns + e->conn_count, 0, (count - e->conn_count) * sizeof *conns);
    for (uint32_t i = count; i-- > e->conn_count;) {
        conns[i].next = e->free_conn;
        e->free_conn = i;
    }
    e->conns = conns;
    e->conn_count = count;
    return true;
}

static void on_knock(struct echo *e, const struct ix_event *ev)
{
    if (e->free_conn == NONE && !grow(e)) {
        ix_app_call(e->app, IX_CALL_REJECT, ev->handle);
        return;
    }
    uint32_t index = e->free_conn;
    struct conn *c = &e->conns[index];
    e->free_conn = c->next;
    *c = (struct conn){.handle = ev->handle,
                       .lent = {NONE, NONE},
                       .unsent = NONE,
                       .room = UINT32_MAX,
                       .open = true};
    push_busy(e, index, TODO_ACCEPT);
}

static void on_recv(struct echo *e, const struct ix_event *ev)
{
    uint32_t index = (uint32_t)ev->cookie;
    struct conn *c = &e->conns[index];
    if (!ev->bytes) {
        push_busy(e, index, TODO_CLOSE);
        return;
    }
    e->extents[ev->frame] =
        (struct extent){.handle = ev->handle, .offset = ev->offset, .bytes = ev->bytes};
    if (c->closing) {
        push_extent(e, &e->done, ev->frame);
        return;
    }
    push_extent(e, &c->lent, ev->frame);
    if (c->unsent == NONE)
        c->unsent = ev->frame;
    if (!is_full(c))
        push_busy(e, index, TODO_SEND);
}

static void on_sent(struct echo *e, const struct ix_event *ev)
{
    struct conn *c = &e->conns[ev->cookie];
    c->acked += ev->bytes;
    while (c->lent.head != c->unsent && c->acked >= e->extents[c->lent.head].bytes) {
        uint32_t frame = pop_extent(e, &c->lent);
        c->acked -= e->extents[frame].bytes;
        push_extent(e, &e->done, frame);
    }
    c->blocked = false;
    c->room = ev->window;
    if (c->unsent != NONE)
        push_busy(e, (uint32_t)ev->cookie, TODO_SEND);
}

/* The record goes back to the free ones, at once or when it leaves the queue of the busy. */
static void release(struct echo *e, uint32_t index)
{
    e->conns[index].next = e->free_conn;
    e->free_conn = index;
}

static void on_dead(struct echo *e, const struct ix_event *ev)
{
    uint32_t index = (uint32_t)ev->cookie, frame;
    struct conn *c = &e->conns[index];
    while ((frame = pop_extent(e, &c->lent)) != NONE)
        push_extent(e, &e->done, frame);
    c->open = false;
    if (!c->queued)
        release(e, index);
}

/* ---- calls ------------------------------------------------------------------ */

/* As far as there is room. False: the array is full. */
static bool send_lent(struct echo *e, uint32_t index)
{
    struct conn *c = &e->conns[index];
    struct ix_call *last = NULL;
    uint32_t shift = e->app->io->frame_shift;
    uint64_t asked = 0;
    for (uint32_t frame = c->unsent; frame != NONE && asked < c->room;
         frame = e->extents[frame].next) {
        const struct extent *x = &e->extents[frame];
        struct ix_call *call = ix_app_call(e->app, IX_CALL_SENDV, c->handle);
        if (!call)
            return false;
        if (last)
            last->flags = IX_SEND_MORE;
        call->addr = ((uint64_t)frame << shift) + x->offset + x->taken;
        call->bytes = x->bytes - x->taken;
        asked += call->bytes;
        e->call_conn[e->app->io->n_calls - 1] = index;
        last = call;
    }
    return true;
}

static bool run_todo(struct echo *e, uint32_t index)
{
    struct conn *c = &e->conns[index];
    struct ix_call *call;
    if (c->todo & TODO_ACCEPT) {
        if (!(call = ix_app_call(e->app, IX_CALL_ACCEPT, c->handle)))
            return false;
        call->cookie = index;
        e->call_conn[e->app->io->n_calls - 1] = index;
        c->todo &= (uint8_t)~TODO_ACCEPT;
    }
    if (c->todo & TODO_SEND && !send_lent(e, index))
        return false;
    c->todo &= (uint8_t)~TODO_SEND;
    if (c->todo & TODO_CLOSE && c->unsent == NONE) {
        if (!ix_app_call(e->app, IX_CALL_CLOSE, c->handle))
            return false;
        c->todo = 0;
        c->closing = true;
    }
    return true;
}

/* Fills the array of calls. What does not fit waits for the next turn. */
static void put_calls(struct echo *e)
{
    struct ix_io *io = e->app->io;
    while (e->done.head != NONE && io->n_calls < io->max_calls / 2) {
        uint32_t frame = pop_extent(e, &e->done);
        const struct extent *x = &e->extents[frame];
        struct ix_call *call = ix_app_call(e->app, IX_CALL_RECV_DONE, x->handle);
        call->addr = ((uint64_t)frame << io->frame_shift) + x->offset;
        call->bytes = x->bytes;
    }
    for (uint32_t last = e->busy.tail, index = NONE; e->busy.head != NONE && index != last;) {
        index = e->busy.head;
        struct conn *c = &e->conns[index];
        e->busy.head = c->next;
        c->queued = false;
        if (!c->open) {
            release(e, index);
        } else if (!run_todo(e, index)) {
            push_busy(e, index, 0);
            break;
        }
    }
}

/* SENDV took a prefix: what is behind it follows when the peer has acknowledged something. */
static void on_taken(struct echo *e, struct conn *c, const struct ix_call *call)
{
    if (call->result < 0 || c->unsent == NONE)
        return;                           /* DEAD says why */
    if (c->blocked && call->result > 0) { /* behind a gap: no stream any more */
        ix_app_call(e->app, IX_CALL_ABORT, c->handle);
        return;
    }
    struct extent *x = &e->extents[c->unsent];
    x->taken += (uint32_t)call->result;
    c->room -= IX_MIN(c->room, (uint32_t)call->result);
    if (x->taken == x->bytes)
        c->unsent = x->next;
    else
        c->blocked = true;
}

static void look_at_results(struct echo *e, uint32_t n_calls)
{
    const struct ix_io *io = e->app->io;
    for (uint32_t i = 0; i < n_calls; i++) {
        uint32_t index = e->call_conn[i];
        if (index == NONE)
            continue;
        e->call_conn[i] = NONE;
        struct conn *c = &e->conns[index];
        if (io->calls[i].op == IX_CALL_ACCEPT) {
            if (io->calls[i].result < 0) { /* the peer was faster */
                c->open = false;
                if (!c->queued)
                    release(e, index);
            }
            continue;
        }
        on_taken(e, c, &io->calls[i]);
        /* Nothing is under way that would be acknowledged: ask again. */
        if (is_full(c) && c->unsent != NONE && c->lent.head == c->unsent &&
            !e->extents[c->unsent].taken) {
            c->blocked = false;
            c->room = UINT32_MAX;
            push_busy(e, index, TODO_SEND);
        } else if (c->todo || (c->unsent != NONE && !is_full(c))) {
            push_busy(e, index, TODO_SEND);
        }
    }
}

static int serve(struct echo *e)
{
    struct ix_io *io = e->app->io;
    for (;;) {
        put_calls(e);
        uint32_t n_calls = io->n_calls;
        bool more = e->done.head != NONE || e->busy.head != NONE;
        int n = ix_app_poll(e->app, more ? 0 : MAX_WAIT_NS);
        if (n < 0)
            return 0;
        look_at_results(e, n_calls);
        for (int i = 0; i < n; i++) {
            const struct ix_event *ev = &io->events[i];
            if (ev->type == IX_EV_KNOCK)
                on_knock(e, ev);
            else if (ev->type == IX_EV_RECV)
                on_recv(e, ev);
            else if (ev->type == IX_EV_SENT)
                on_sent(e, ev);
            else if (ev->type == IX_EV_DEAD && ev->cookie != LISTENER)
                on_dead(e, ev); /* else ACCEPT fails */
        }
    }
}

/* ---- start ------------------------------------------------------------------- */

static int usage(const char *why)
{
    fprintf(stderr, "echo: %s\nusage: echo.so [--address IP] [--port N]\n", why);
    return 2;
}

int ix_app_main(struct ix_app *app, int argc, char **argv)
{
    static const struct option known[] = {{"address", required_argument, NULL, 'a'},
                                          {"port", required_argument, NULL, 'p'},
                                          {NULL, 0, NULL, 0}};
    const char *address = NULL;
    long port = 7;
    char why[320] = "";
    optind = 1;
    for (int opt; (opt = getopt_long(argc, argv, "", known, NULL)) != -1;) {
        if (opt == 'a')
            address = optarg;
        else if (opt != 'p' || (port = strtol(optarg, NULL, 10)) < 1 || port > 65535)
            return usage("unknown option, or --port not from 1 to 65535");
    }
    struct echo e = {.app = app, .free_conn = NONE, .busy = {NONE, NONE}, .done = {NONE, NONE}};
    e.extents = calloc(app->io->arena_frame, sizeof *e.extents);
    e.call_conn = calloc(app->io->max_calls, sizeof *e.call_conn);
    int status = 1;
    if (e.call_conn)
        memset(e.call_conn, 0xff, app->io->max_calls * sizeof *e.call_conn);
    if (!e.extents || !e.call_conn)
        fprintf(stderr, "echo: no memory\n");
    else if (ix_app_listen(app, address, (uint16_t)port, LISTENER, 0, why, sizeof why))
        fprintf(stderr, "echo: can't listen on port %ld: %s\n", port, why);
    else
        status = serve(&e);
    free(e.extents);
    free(e.call_conn);
    free(e.conns);
    return status;
}
