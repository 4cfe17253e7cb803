/* See fake_dataplane.h. */
#include "fake_dataplane.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { FRAME_SHIFT = 11, RX_OFFSET = 320, TX_HEADROOM = 128 };

static int unlisten(struct ix_app *app, const uint8_t *ip, uint8_t family, uint16_t port)
{
    (void)app, (void)ip, (void)family, (void)port;
    return 0;
}

static const struct ix_app_ops fake_ops = {.poll = ix_fake_poll, .unlisten = unlisten};
static struct ix_fake *last_made;

static void breach(struct ix_fake *f, const char *what)
{
    if (!f->violation)
        f->violation = what;
}

struct ix_fake *ix_fake_new(uint32_t pool_frames, uint32_t arena_frames, uint32_t max_calls,
                            uint32_t max_events)
{
    struct ix_fake *f = calloc(1, sizeof *f);
    f->pool_frames = pool_frames;
    f->io = (struct ix_io){.max_calls = max_calls,
                           .max_events = max_events,
                           .umem_bytes = (uint64_t)(pool_frames + arena_frames) << FRAME_SHIFT,
                           .frame_shift = FRAME_SHIFT,
                           .arena_frame = pool_frames,
                           .arena_frames = arena_frames,
                           .tx_headroom = TX_HEADROOM};
    f->io.calls = calloc(max_calls, sizeof *f->io.calls);
    f->io.events = calloc(max_events, sizeof *f->io.events);
    f->io.umem = calloc(1, f->io.umem_bytes);
    f->lent_to = calloc(pool_frames, sizeof *f->lent_to);
    f->lent_bytes = calloc(pool_frames, sizeof *f->lent_bytes);
    f->borrows = calloc(pool_frames + arena_frames, sizeof *f->borrows);
    f->free_frames = calloc(pool_frames, sizeof *f->free_frames);
    for (uint32_t i = 0; i < pool_frames; i++)
        f->free_frames[f->free_frame_count++] = i;
    f->now_ns = 1000000;
    f->step_ns = 1000;
    f->app = (struct ix_app){.shard = (struct ix_shard *)f,
                             .io = &f->io,
                             .ops = &fake_ops,
                             .request_fd = -1,
                             .link_fd = -1,
                             .spin_ns = -1,
                             .kick_fd = -1,
                             .clock = ix_fake_clock};
    last_made = f;
    return f;
}

void ix_fake_free(struct ix_fake *f)
{
    for (uint32_t i = 0; i < IX_FAKE_CONNS; i++)
        free(f->conns[i].got);
    free(f->io.calls);
    free(f->io.events);
    free(f->io.umem);
    free(f->lent_to);
    free(f->lent_bytes);
    free(f->borrows);
    free(f->free_frames);
    free(f->queued);
    free(f);
}

struct ix_app *ix_fake_app(struct ix_fake *f)
{
    return &f->app;
}

uint64_t ix_fake_clock(void)
{
    return last_made->now_ns += last_made->step_ns;
}

/* ---- events -------------------------------------------------------------- */

static struct ix_event *event(struct ix_fake *f, uint8_t type, const struct ix_fake_conn *c)
{
    if (f->queued_count == f->queued_capacity) {
        f->queued_capacity = f->queued_capacity ? 2 * f->queued_capacity : 1024;
        f->queued = realloc(f->queued, f->queued_capacity * sizeof *f->queued);
    }
    struct ix_event *ev = &f->queued[f->queued_count++];
    memset(ev, 0, sizeof *ev);
    ev->type = type;
    ev->handle = c->handle;
    ev->cookie = c->cookie;
    return ev;
}

static struct ix_fake_conn *conn_new(struct ix_fake *f, uint32_t state, uint64_t cookie)
{
    for (uint32_t i = 0; i < IX_FAKE_CONNS; i++) {
        struct ix_fake_conn *c = &f->conns[i];
        if (c->state != IX_FAKE_FREE)
            continue;
        free(c->got);
        memset(c, 0, sizeof *c);
        c->handle = (uint64_t)++f->generation << 32 | i;
        c->cookie = cookie;
        c->state = state;
        return c;
    }
    return NULL;
}

static struct ix_fake_conn *find(struct ix_fake *f, uint64_t handle)
{
    struct ix_fake_conn *c = &f->conns[(uint32_t)handle % IX_FAKE_CONNS];
    return c->state != IX_FAKE_FREE && c->handle == handle ? c : NULL;
}

int ix_fake_knock(struct ix_fake *f, uint64_t cookie)
{
    struct ix_fake_conn *c = conn_new(f, IX_FAKE_KNOCKED, cookie);
    if (!c)
        return -1;
    struct ix_event *ev = event(f, IX_EV_KNOCK, c);
    ev->family = 4;
    memcpy(ev->peer, (uint8_t[]){10, 0, 0, 2}, 4);
    memcpy(ev->local, (uint8_t[]){10, 0, 0, 1}, 4);
    ev->peer_port = (uint16_t)(40000 + (c - f->conns));
    ev->local_port = 7;
    return (int)(c - f->conns);
}

static bool lend(struct ix_fake *f, struct ix_fake_conn *c, const uint8_t *data, uint32_t bytes)
{
    if (!f->free_frame_count)
        return false;
    uint32_t frame = f->free_frames[--f->free_frame_count];
    if (data)
        memcpy(f->io.umem + ((uint64_t)frame << FRAME_SHIFT) + RX_OFFSET, data, bytes);
    f->lent_to[frame] = c->handle;
    f->lent_bytes[frame] = bytes;
    c->lent_bytes += bytes;
    struct ix_event *ev = event(f, IX_EV_RECV, c);
    ev->frame = frame;
    ev->offset = RX_OFFSET;
    ev->bytes = bytes;
    return true;
}

uint64_t ix_fake_send(struct ix_fake *f, uint32_t conn, const uint8_t *data, uint64_t bytes,
                      uint32_t frame_bytes)
{
    uint64_t done = 0;
    while (done < bytes) {
        uint32_t part = bytes - done < frame_bytes ? (uint32_t)(bytes - done) : frame_bytes;
        if (!lend(f, &f->conns[conn], data + done, part))
            break;
        done += part;
    }
    return done;
}

void ix_fake_fin(struct ix_fake *f, uint32_t conn)
{
    event(f, IX_EV_RECV, &f->conns[conn]);
}

static uint32_t sum(const uint8_t *data, uint32_t bytes)
{
    uint32_t s = bytes;
    for (uint32_t i = 0; i < bytes; i++)
        s = s * 31 + data[i];
    return s;
}

/* The oldest borrowed memory goes back. */
static void unborrow(struct ix_fake *f, struct ix_fake_conn *c)
{
    struct ix_fake_borrow *b = &c->borrowed[c->borrow_head];
    if (!f->generate_bytes && sum(f->io.umem + b->addr, b->bytes) != b->sum)
        breach(f, "memory changed while SENDV had borrowed it");
    f->borrows[b->addr >> FRAME_SHIFT]--;
    c->borrow_head = (c->borrow_head + 1) % IX_FAKE_BORROWS;
    c->borrow_count--;
    c->borrowed_bytes -= b->bytes;
}

uint64_t ix_fake_ack(struct ix_fake *f, uint32_t conn, uint64_t bytes)
{
    struct ix_fake_conn *c = &f->conns[conn];
    uint64_t open = c->borrowed_bytes - c->acked;
    uint64_t n = bytes < open ? bytes : open;
    if (!n)
        return 0;
    uint64_t total = c->acked + n;
    while (c->borrow_count && total >= c->borrowed[c->borrow_head].bytes) {
        total -= c->borrowed[c->borrow_head].bytes;
        unborrow(f, c);
    }
    c->acked = (uint32_t)total;
    struct ix_event *ev = event(f, IX_EV_SENT, c);
    uint64_t held = c->borrowed_bytes - c->acked;
    ev->bytes = (uint32_t)n;
    ev->window = !f->sndbuf_bytes          ? UINT32_MAX
                 : held < f->sndbuf_bytes ? (uint32_t)(f->sndbuf_bytes - held)
                                          : 0;
    return n;
}

void ix_fake_die(struct ix_fake *f, uint32_t conn, int32_t status)
{
    struct ix_fake_conn *c = &f->conns[conn];
    while (c->borrow_count)
        unborrow(f, c);
    c->acked = 0;
    event(f, IX_EV_DEAD, c)->status = status;
    c->state = IX_FAKE_FREE;
}

void ix_fake_connected(struct ix_fake *f, uint32_t conn, int32_t status)
{
    struct ix_fake_conn *c = &f->conns[conn];
    struct ix_event *ev = event(f, IX_EV_CONNECTED, c);
    ev->status = status;
    ev->family = 4;
    memcpy(ev->local, (uint8_t[]){10, 0, 0, 1}, 4);
    ev->local_port = 50000;
    c->state = status ? IX_FAKE_FREE : IX_FAKE_OPEN;
}

int ix_fake_find_connect(const struct ix_fake *f, uint16_t port)
{
    for (int i = 0; i < IX_FAKE_CONNS; i++)
        if (f->conns[i].state == IX_FAKE_CONNECTING && f->conns[i].peer_port == port)
            return i;
    return -1;
}

uint32_t ix_fake_frames_lent(const struct ix_fake *f)
{
    return f->pool_frames - f->free_frame_count;
}

/* ---- calls --------------------------------------------------------------- */

static bool may_send(struct ix_fake *f, uint64_t addr, uint32_t bytes)
{
    uint64_t frame = addr >> FRAME_SHIFT;
    if (addr + bytes > f->io.umem_bytes || (addr + bytes - 1) >> FRAME_SHIFT != frame)
        return false;
    return frame >= f->pool_frames || f->lent_to[frame];
}

static int32_t sendv(struct ix_fake *f, struct ix_fake_conn *c, const struct ix_call *call)
{
    if (c->state != IX_FAKE_OPEN || c->fins)
        return -EPIPE;
    if (!call->bytes || !may_send(f, call->addr, call->bytes)) {
        breach(f, "SENDV of memory that is neither the arena's nor lent");
        return -EINVAL;
    }
    if (f->refuse_sendv) {
        f->refuse_sendv--;
        return 0;
    }
    uint32_t take = call->bytes;
    if (f->sendv_max && take > f->sendv_max)
        take = f->sendv_max;
    uint64_t held = c->borrowed_bytes - c->acked;
    if (f->sndbuf_bytes && held + take > f->sndbuf_bytes)
        take = held < f->sndbuf_bytes ? (uint32_t)(f->sndbuf_bytes - held) : 0;
    if (take < call->bytes || c->borrow_count == IX_FAKE_BORROWS) {
        bool again = c->short_poll == f->polls;
        c->short_poll = f->polls;
        if (again || !take || c->borrow_count == IX_FAKE_BORROWS)
            return 0;
    } else if (c->short_poll == f->polls) {
        return 0; /* what follows a gap is not taken */
    }
    uint32_t at = (c->borrow_head + c->borrow_count++) % IX_FAKE_BORROWS;
    c->borrowed_bytes += take;
    f->borrows[call->addr >> FRAME_SHIFT]++;
    c->borrowed[at] = (struct ix_fake_borrow){.addr = call->addr, .bytes = take};
    if (f->generate_bytes)
        return (int32_t)take;
    c->borrowed[at].sum = sum(f->io.umem + call->addr, take);
    if (c->got_bytes + take > c->got_capacity) {
        c->got_capacity = 2 * (c->got_bytes + take);
        c->got = realloc(c->got, c->got_capacity);
    }
    memcpy(c->got + c->got_bytes, f->io.umem + call->addr, take);
    c->got_bytes += take;
    return (int32_t)take;
}

static int32_t recv_done(struct ix_fake *f, const struct ix_call *call)
{
    uint64_t frame = call->addr >> FRAME_SHIFT;
    if (frame >= f->pool_frames || !call->bytes || f->lent_to[frame] != call->handle ||
        f->lent_bytes[frame] < call->bytes) {
        breach(f, "RECV_DONE of memory that was not lent to this handle");
        return -EINVAL;
    }
    f->lent_bytes[frame] -= call->bytes;
    struct ix_fake_conn *c = find(f, call->handle);
    if (c)
        c->lent_bytes -= call->bytes;
    if (!f->lent_bytes[frame]) {
        if (f->borrows[frame])
            breach(f, "RECV_DONE of a frame that SENDV has borrowed");
        f->lent_to[frame] = 0;
        f->free_frames[f->free_frame_count++] = (uint32_t)frame;
    }
    return 0;
}

static int32_t connect_to(struct ix_fake *f, struct ix_call *call)
{
    if (f->connect_error) {
        int32_t error = -(int32_t)f->connect_error;
        f->connect_error = 0;
        return error;
    }
    struct ix_fake_conn *c = conn_new(f, IX_FAKE_CONNECTING, call->cookie);
    if (!c)
        return -ENOSPC;
    c->peer_port = call->peer_port;
    call->handle = c->handle;
    return 0;
}

static int32_t accept_it(struct ix_fake *f, struct ix_fake_conn *c, const struct ix_call *call)
{
    if (c->state != IX_FAKE_KNOCKED) {
        breach(f, "ACCEPT of a connection that did not knock");
        return -EINVAL;
    }
    if (f->accept_error) {
        int32_t error = -(int32_t)f->accept_error;
        f->accept_error = 0;
        c->state = IX_FAKE_FREE;
        return error;
    }
    c->cookie = call->cookie;
    c->state = IX_FAKE_OPEN;
    return 0;
}

static int32_t run(struct ix_fake *f, struct ix_call *call)
{
    f->calls[call->op]++;
    if (call->op == IX_CALL_RECV_DONE)
        return recv_done(f, call);
    if (call->op == IX_CALL_CONNECT)
        return connect_to(f, call);
    struct ix_fake_conn *c = find(f, call->handle);
    if (!c)
        return -ENOENT;
    switch (call->op) {
    case IX_CALL_ACCEPT:
        return accept_it(f, c, call);
    case IX_CALL_REJECT:
        if (c->state != IX_FAKE_KNOCKED)
            breach(f, "REJECT of a connection that did not knock");
        c->state = IX_FAKE_FREE;
        return 0;
    case IX_CALL_SENDV:
        return sendv(f, c, call);
    case IX_CALL_CLOSE:
        if (c->fins == 2 || (c->fins && call->flags & IX_CLOSE_WRITE))
            breach(f, "CLOSE of a closed connection");
        c->fins = call->flags & IX_CLOSE_WRITE ? 1 : 2;
        return 0;
    case IX_CALL_ABORT:
        ix_fake_die(f, (uint32_t)(c - f->conns), -ECONNABORTED);
        return 0;
    case IX_CALL_OPTION:
        if (call->bytes < IX_ARRAY_LEN(c->option))
            c->option[call->bytes] = call->value;
        return 0;
    default:
        breach(f, "a call that the loop does not use");
        return -EINVAL;
    }
}

/* ---- a cycle ------------------------------------------------------------- */

/* Acknowledges what was answered, and sends the next requests, round robin. */
static void generate(struct ix_fake *f)
{
    uint32_t made = 0;
    for (uint32_t i = 0; i < IX_FAKE_CONNS && made < f->generate_max; i++) {
        struct ix_fake_conn *c = &f->conns[f->generate_next];
        f->generate_next = (f->generate_next + 1) % IX_FAKE_CONNS;
        if (c->state == IX_FAKE_FREE) {
            f->generate_next = 0; /* they are numbered from 0 on */
            continue;
        }
        bool answered = c->borrowed_bytes == f->generate_bytes;
        if (c->state != IX_FAKE_OPEN || (c->lent_bytes && !answered))
            continue;
        if (answered)
            f->answered++;
        ix_fake_ack(f, (uint32_t)(c - f->conns), UINT64_MAX);
        if (lend(f, c, NULL, f->generate_bytes)) {
            f->generated++;
            made++;
        }
    }
}

int ix_fake_poll(struct ix_app *app, uint64_t now_ns)
{
    struct ix_fake *f = (struct ix_fake *)app->shard;
    (void)now_ns;
    f->polls++;
    if (f->io.n_calls > f->io.max_calls)
        breach(f, "more calls than there is room for");
    for (uint32_t i = 0; i < f->io.n_calls; i++)
        f->io.calls[i].result = run(f, &f->io.calls[i]);
    f->io.n_calls = 0;
    if (f->generate_bytes)
        generate(f);
    uint32_t n = f->queued_count < f->io.max_events ? f->queued_count : f->io.max_events;
    if (n) {
        memcpy(f->io.events, f->queued, n * sizeof *f->queued);
        memmove(f->queued, f->queued + n, (f->queued_count - n) * sizeof *f->queued);
    }
    f->queued_count -= n;
    f->io.n_events = n;
    return (int)n;
}
