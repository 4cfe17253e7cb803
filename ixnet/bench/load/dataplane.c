/* The transport over the dataplane itself: an application of `ixnet run` on the batched API.
 *
 * What is sent is written into frames of the send arena, where a segment's payload begins, so that
 * it leaves from there; the frame is free again when the peer has acknowledged it.
 */
#include "load.h"

#include <errno.h>
#include <getopt.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>

#include "native/app.h"

enum todo { TODO_CONNECT = 1, TODO_SEND = 2, TODO_FINISH = 4, TODO_CLOSE = 8, TODO_ABORT = 16 };

/* What was written into a frame of the arena; indexed by frame. */
struct piece {
    uint32_t next; /* of the connection, oldest first; or free */
    uint32_t bytes, taken;
};

/* A received frame that waits to be given back; indexed by frame. */
struct lent {
    uint64_t handle, addr;
    uint32_t bytes, next;
};

static struct {
    struct ix_app *app;
    struct piece *pieces;
    uint32_t piece_free;
    struct lent *lent;
    uint32_t done_head;
    uint32_t busy_head, busy_tail; /* connections with something to do */
    uint32_t *call_conn;           /* [max_calls] whose CONNECT or SENDV it is, or NONE */
    uint32_t next_source;
} plane;

static void push_busy(struct load *l, uint32_t index, uint8_t todo)
{
    struct conn *c = &l->conns[index];
    c->todo |= todo;
    if (c->queued)
        return;
    c->queued = true;
    c->next_busy = NONE;
    if (plane.busy_head == NONE)
        plane.busy_head = index;
    else
        l->conns[plane.busy_tail].next_busy = index;
    plane.busy_tail = index;
}

static void free_first_piece(struct conn *c)
{
    uint32_t id = c->piece_first;
    c->piece_first = plane.pieces[id].next;
    plane.pieces[id].next = plane.piece_free;
    plane.piece_free = id;
}

static void free_pieces(struct conn *c)
{
    while (c->piece_first != NONE)
        free_first_piece(c);
    c->piece_unsent = NONE;
}

/* ---- what the engine asks for -------------------------------------------------------- */

int transport_connect(struct load *l, uint32_t index)
{
    struct conn *c = &l->conns[index];
    c->generation++;
    c->piece_acked = 0;
    c->closing = c->aborting = c->blocked = false;
    c->todo = 0;
    push_busy(l, index, TODO_CONNECT);
    return 0;
}

void transport_kick(struct load *l, uint32_t index)
{
    push_busy(l, index, TODO_SEND);
}

void transport_finish(struct load *l, uint32_t index)
{
    push_busy(l, index, TODO_FINISH);
}

void transport_close(struct load *l, uint32_t index, bool reset)
{
    struct conn *c = &l->conns[index];
    c->todo = 0;
    c->closing = true;
    c->aborting = reset;
    push_busy(l, index, reset ? TODO_ABORT : TODO_CLOSE);
}

/* ---- calls --------------------------------------------------------------------------- */

static struct ix_call *call_for(struct load *l, uint32_t index, uint8_t op, bool watch)
{
    struct ix_app *app = plane.app;
    struct ix_call *call = ix_app_call(app, op, op == IX_CALL_CONNECT ? 0 : l->conns[index].handle);
    if (call && watch)
        plane.call_conn[app->io->n_calls - 1] = index;
    return call;
}

static void set_address(uint8_t *to, const struct sockaddr_storage *from)
{
    if (from->ss_family == AF_INET6)
        memcpy(to, &((const struct sockaddr_in6 *)from)->sin6_addr, 16);
    else
        memcpy(to, &((const struct sockaddr_in *)from)->sin_addr, 4);
}

static bool call_connect(struct load *l, uint32_t index)
{
    const struct options *o = &l->opt;
    struct ix_call *call = call_for(l, index, IX_CALL_CONNECT, true);
    if (!call)
        return false;
    call->cookie = (uint64_t)l->conns[index].generation << 32 | index;
    call->family = o->target.ss_family == AF_INET6 ? 6 : 4;
    call->peer_port = ntohs(((const struct sockaddr_in *)&o->target)->sin_port);
    set_address(call->peer, &o->target);
    if (o->source_count)
        set_address(call->local, &o->sources[plane.next_source++ % o->source_count]);
    return true;
}

static uint64_t piece_addr(uint32_t id)
{
    const struct ix_io *io = plane.app->io;
    return ((uint64_t)(io->arena_frame + id) << io->frame_shift) + io->tx_headroom;
}

/* The next piece to hand over: what SENDV refused, or what there is to send now. */
static uint32_t next_piece(struct load *l, uint32_t index, uint32_t after)
{
    struct conn *c = &l->conns[index];
    uint32_t id = after == NONE ? c->piece_unsent : plane.pieces[after].next;
    if (id != NONE || c->unsent == NONE || plane.piece_free == NONE)
        return id;
    id = plane.piece_free;
    struct piece *p = &plane.pieces[id];
    plane.piece_free = p->next;
    uint8_t *memory = plane.app->io->umem + piece_addr(id);
    *p = (struct piece){.next = NONE, .bytes = load_fill(l, index, memory, l->opt.segment_bytes)};
    if (c->piece_first == NONE)
        c->piece_first = id;
    else
        plane.pieces[c->piece_last].next = id;
    c->piece_last = id;
    if (c->piece_unsent == NONE)
        c->piece_unsent = id;
    return id;
}

/* False: the array is full. */
static bool call_sendv(struct load *l, uint32_t index)
{
    struct conn *c = &l->conns[index];
    const struct ix_io *io = plane.app->io;
    struct ix_call *last = NULL;
    if (c->blocked)
        return true; /* SENT or the result asks again */
    for (uint32_t id = NONE;;) {
        if (io->n_calls == io->max_calls)
            return false;
        if ((id = next_piece(l, index, id)) == NONE)
            return c->unsent == NONE; /* else no frame is free */
        if (last)
            last->flags = IX_SEND_MORE;
        last = call_for(l, index, IX_CALL_SENDV, true);
        const struct piece *p = &plane.pieces[id];
        last->addr = piece_addr(id) + p->taken;
        last->bytes = p->bytes - p->taken;
        if (p->next == NONE && c->unsent == NONE)
            return true;
    }
}

static bool call_close(struct load *l, uint32_t index, uint16_t flags)
{
    struct ix_call *call = call_for(l, index, IX_CALL_CLOSE, false);
    if (call)
        call->flags = flags;
    return call != NULL;
}

/* False: not all of it could be done now. */
static bool run_todo(struct load *l, uint32_t index)
{
    struct conn *c = &l->conns[index];
    if (c->todo & (TODO_CONNECT | TODO_ABORT)) {
        if (c->todo & TODO_CONNECT && !call_connect(l, index))
            return false;
        c->todo &= (uint8_t)~TODO_CONNECT;
        if (c->todo & TODO_ABORT && !call_for(l, index, IX_CALL_ABORT, false))
            return false;
        c->todo &= (uint8_t)~TODO_ABORT; /* DEAD follows */
    }
    if (c->todo & TODO_SEND && !call_sendv(l, index))
        return false;
    c->todo &= (uint8_t)~TODO_SEND;
    if (!(c->todo & (TODO_FINISH | TODO_CLOSE)) || c->piece_first != NONE)
        return true; /* SENT asks again */
    if (c->todo & TODO_FINISH && !call_close(l, index, IX_CLOSE_WRITE))
        return false;
    c->todo &= (uint8_t)~TODO_FINISH;
    if (c->todo & TODO_CLOSE) {
        if (!call_close(l, index, 0))
            return false;
        c->todo = 0;
        c->generation++; /* its DEAD means nothing any more */
        load_closed(l, index);
    }
    return true;
}

/* Fills the array. Returns how many calls at its beginning are RECV_DONE, whose results nobody
 * asks for. */
static uint32_t put_calls(struct load *l)
{
    struct ix_io *io = plane.app->io;
    while (plane.done_head != NONE && io->n_calls < io->max_calls / 2) {
        struct lent *x = &plane.lent[plane.done_head];
        struct ix_call *call = ix_app_call(plane.app, IX_CALL_RECV_DONE, x->handle);
        call->addr = x->addr;
        call->bytes = x->bytes;
        plane.done_head = x->next;
    }
    uint32_t done = io->n_calls;
    for (uint32_t last = plane.busy_tail, index = NONE; plane.busy_head != NONE && index != last;) {
        index = plane.busy_head;
        plane.busy_head = l->conns[index].next_busy;
        l->conns[index].queued = false;
        if (!run_todo(l, index))
            push_busy(l, index, 0);
    }
    return done;
}

/* SENDV took a prefix: what is behind it follows when the peer has acknowledged something. */
static void on_taken(struct load *l, uint32_t index, int32_t result)
{
    struct conn *c = &l->conns[index];
    if (result < 0 || c->piece_unsent == NONE)
        return; /* DEAD says why */
    struct piece *p = &plane.pieces[c->piece_unsent];
    p->taken += (uint32_t)result;
    if (p->taken == p->bytes) {
        c->piece_unsent = p->next;
        return;
    }
    c->blocked = true;
    if (c->piece_first == c->piece_unsent && !p->taken) { /* nothing to be acknowledged either */
        c->blocked = false;
        push_busy(l, index, TODO_SEND);
    }
}

static void look_at_results(struct load *l, uint32_t from, uint32_t n_calls)
{
    for (uint32_t i = from; i < n_calls; i++) {
        const struct ix_call *call = &plane.app->io->calls[i];
        uint32_t index = plane.call_conn[i];
        plane.call_conn[i] = NONE;
        if (index == NONE)
            continue;
        if (call->op == IX_CALL_SENDV)
            on_taken(l, index, call->result);
        else if (call->result >= 0)
            l->conns[index].handle = call->handle;
        else
            load_connected(l, index, -call->result);
    }
}

/* ---- events -------------------------------------------------------------------------- */

static void give_back(const struct ix_event *ev)
{
    struct lent *x = &plane.lent[ev->frame];
    x->handle = ev->handle;
    x->addr = ((uint64_t)ev->frame << plane.app->io->frame_shift) + ev->offset;
    x->bytes = ev->bytes;
    x->next = plane.done_head;
    plane.done_head = ev->frame;
}

static void on_sent(struct load *l, uint32_t index, uint32_t bytes)
{
    struct conn *c = &l->conns[index];
    c->piece_acked += bytes;
    while (c->piece_first != c->piece_unsent &&
           c->piece_acked >= plane.pieces[c->piece_first].bytes) {
        c->piece_acked -= plane.pieces[c->piece_first].bytes;
        free_first_piece(c);
    }
    c->blocked = false;
    l->progress_ns = l->now_ns;
    if (c->piece_unsent != NONE || c->unsent != NONE)
        push_busy(l, index, TODO_SEND);
    else if (c->todo)
        push_busy(l, index, 0);
}

static void on_dead(struct load *l, uint32_t index, int32_t status)
{
    struct conn *c = &l->conns[index];
    free_pieces(c);
    c->generation++;
    c->todo = 0;
    if (c->closing)
        load_closed(l, index);
    else
        load_broken(l, index, status ? -status : ECONNRESET);
}

static void on_event(struct load *l, const struct ix_event *ev)
{
    uint32_t index = (uint32_t)ev->cookie;
    if (ev->type == IX_EV_RECV && ev->bytes)
        give_back(ev);
    if (l->conns[index].generation != ev->cookie >> 32)
        return; /* of a connection that was closed or failed */
    if (ev->type == IX_EV_RECV && ev->bytes)
        load_received(l, index, ix_app_payload(plane.app, ev), ev->bytes);
    else if (ev->type == IX_EV_RECV)
        load_peer_closed(l, index);
    else if (ev->type == IX_EV_SENT)
        on_sent(l, index, ev->bytes);
    else if (ev->type == IX_EV_DEAD)
        on_dead(l, index, ev->status);
    else if (ev->type == IX_EV_CONNECTED)
        load_connected(l, index, -ev->status);
}

bool transport_turn(struct load *l, uint64_t wait_ns)
{
    uint32_t done = put_calls(l);
    uint32_t n_calls = plane.app->io->n_calls;
    bool more = plane.busy_head != NONE || plane.done_head != NONE;
    int n = ix_app_poll(plane.app, more ? 0 : wait_ns);
    l->now_ns = clock_ns();
    if (n < 0)
        return false;
    look_at_results(l, done, n_calls);
    for (int i = 0; i < n; i++)
        on_event(l, &plane.app->io->events[i]);
    return true;
}

/* ---- start --------------------------------------------------------------------------- */

static bool take_memory(void)
{
    const struct ix_io *io = plane.app->io;
    plane.pieces = calloc(io->arena_frames + 1, sizeof *plane.pieces);
    plane.lent = calloc(io->arena_frame, sizeof *plane.lent);
    plane.call_conn = calloc(io->max_calls, sizeof *plane.call_conn);
    if (!plane.pieces || !plane.lent || !plane.call_conn)
        return false;
    memset(plane.call_conn, 0xff, io->max_calls * sizeof *plane.call_conn);
    plane.busy_head = plane.done_head = plane.piece_free = NONE;
    for (uint32_t i = io->arena_frames; i-- > 0;) {
        plane.pieces[i].next = plane.piece_free;
        plane.piece_free = i;
    }
    return true;
}

int ix_app_main(struct ix_app *app, int argc, char **argv)
{
    struct load *l = calloc(1, sizeof *l);
    int status = 1;
    optind = 1;
    plane.app = app;
    if (!l || !take_memory()) {
        fprintf(stderr, "ixload: no memory\n");
    } else {
        parse_options(&l->opt, argc, argv);
        l->opt.worker += app->shard_id;
        uint32_t room = (1u << app->io->frame_shift) - app->io->tx_headroom;
        if (l->opt.segment_bytes > room)
            usage("--segment is more than a frame holds");
        status = load_main(l);
        load_free(l);
    }
    free(l);
    free(plane.pieces);
    free(plane.lent);
    free(plane.call_conn);
    return status;
}
