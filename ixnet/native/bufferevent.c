/* Connections with buffers: what the application asks for, and what becomes of it. See
 * bufferevent.h for the picture and evloop.h for the loop around it. */
#include "native/bufferevent.h"
#include "native/evloop.h"

#include <errno.h>
#include <string.h>

/* ---- for the application ------------------------------------------------- */

static void queue(struct ix_bev *bev)
{
    ix_evpool_queue(bev->loop->pool, &bev->changed);
}

struct ix_evbuffer *ix_bev_input(struct ix_bev *bev)
{
    return &bev->input;
}

struct ix_evbuffer *ix_bev_output(struct ix_bev *bev)
{
    return &bev->output;
}

int ix_bev_connect(struct ix_bev *bev, uint8_t family, const uint8_t *peer, uint16_t peer_port)
{
    if (!bev)
        return -EBADF;
    if (bev->state != IX_BEV_IDLE || bev->todo & IX_BEV_TODO_CONNECT)
        return -EISCONN;
    bev->family = family;
    bev->peer_port = peer_port;
    memcpy(bev->peer, peer, family == 4 ? 4 : 16);
    bev->todo |= IX_BEV_TODO_CONNECT;
    queue(bev);
    return 0;
}

/* Arms the timer for whichever of the two timeouts comes first. Progress does not move an armed
 * timer: when it runs out early, it is armed again, which is cheaper than touching the heap with
 * every packet. */
static void arm(struct ix_bev *bev)
{
    uint64_t deadline = UINT64_MAX;
    if (bev->state != IX_BEV_OPEN || bev->detached)
        return;
    if (bev->read_timeout_ns && bev->enabled & IX_BEV_READ && !bev->eof)
        deadline = bev->last_read_ns + bev->read_timeout_ns;
    if (bev->write_timeout_ns && bev->enabled & IX_BEV_WRITE &&
        bev->output.bytes + bev->inflight.bytes &&
        bev->last_write_ns + bev->write_timeout_ns < deadline)
        deadline = bev->last_write_ns + bev->write_timeout_ns;
    if (deadline != UINT64_MAX && (!bev->timer.place || deadline < bev->timer.deadline_ns))
        ix_evtimer_set(&bev->loop->timers, &bev->timer, deadline);
}

int ix_bev_enable(struct ix_bev *bev, uint32_t directions)
{
    if (!bev)
        return -EBADF;
    uint32_t added = directions & ~(uint32_t)bev->enabled & (IX_BEV_READ | IX_BEV_WRITE);
    bev->enabled |= added;
    if (added && (bev->read_timeout_ns || bev->write_timeout_ns)) {
        uint64_t now = ix_evloop_now(bev->loop);
        if (added & IX_BEV_READ)
            bev->last_read_ns = now;
        if (added & IX_BEV_WRITE)
            bev->last_write_ns = now;
        arm(bev);
    }
    queue(bev);
    return 0;
}

int ix_bev_disable(struct ix_bev *bev, uint32_t directions)
{
    if (!bev)
        return -EBADF;
    bev->enabled &= (uint8_t)~directions;
    return 0;
}

int ix_bev_want(struct ix_bev *bev, uint32_t directions)
{
    if (!bev)
        return -EBADF;
    bev->wants = directions & (IX_BEV_READ | IX_BEV_WRITE);
    return 0;
}

int ix_bev_set_watermark(struct ix_bev *bev, uint32_t directions, uint64_t low, uint64_t high)
{
    if (!bev)
        return -EBADF;
    if (directions & IX_BEV_READ) {
        bev->read_low = low;
        bev->read_high = high;
    }
    if (directions & IX_BEV_WRITE)
        bev->write_low = low;
    queue(bev);
    return 0;
}

int ix_bev_set_timeouts(struct ix_bev *bev, uint64_t read_ns, uint64_t write_ns)
{
    if (!bev)
        return -EBADF;
    bev->read_timeout_ns = read_ns;
    bev->write_timeout_ns = write_ns;
    bev->last_read_ns = bev->last_write_ns = ix_evloop_now(bev->loop);
    ix_evtimer_cancel(&bev->loop->timers, &bev->timer);
    arm(bev);
    return 0;
}

int ix_bev_option(struct ix_bev *bev, uint32_t which, uint64_t value)
{
    if (!bev)
        return -EBADF;
    if (which < 1 || which > IX_BEV_OPTIONS)
        return -EINVAL;
    bev->option_value[which - 1] = value;
    bev->options |= (uint16_t)(1u << (which - 1));
    queue(bev);
    return 0;
}

int ix_bev_trigger(struct ix_bev *bev, uint32_t directions)
{
    if (!bev)
        return -EBADF;
    bev->triggered |= directions & (IX_BEV_READ | IX_BEV_WRITE);
    queue(bev);
    return 0;
}

int ix_bev_shutdown(struct ix_bev *bev)
{
    if (!bev)
        return -EBADF;
    if (bev->state == IX_BEV_DEAD || (bev->state == IX_BEV_IDLE && !bev->todo))
        return -ENOTCONN;
    bev->todo |= IX_BEV_TODO_SHUTDOWN;
    queue(bev);
    return 0;
}

int ix_bev_close(struct ix_bev *bev, uint32_t how)
{
    if (!bev)
        return -EBADF;
    ix_evtimer_cancel(&bev->loop->timers, &bev->timer);
    ix_evbuffer_clear(&bev->input);
    ix_evbuffer_clear(&bev->backlog);
    bev->wants = bev->triggered = bev->events = 0;
    bev->detached = 1;
    bev->loop->attached--;
    /* A CLOSE of a connection that is being opened would open it first: give up at once if
     * there is nothing to deliver. */
    if (how == IX_BEV_ABORT || (bev->state == IX_BEV_CONNECTING && !bev->output.bytes)) {
        ix_evbuffer_clear(&bev->output);
        bev->todo |= IX_BEV_TODO_ABORT;
    } else {
        if (how == IX_BEV_DROP)
            ix_evbuffer_clear(&bev->output);
        bev->enabled |= IX_BEV_WRITE;
        bev->todo |= IX_BEV_TODO_CLOSE;
    }
    queue(bev);
    return 0;
}

/* ---- what callbacks are due ---------------------------------------------- */

static void check_read(struct ix_bev *bev)
{
    if (bev->wants & bev->enabled & IX_BEV_READ && bev->input.bytes &&
        bev->input.bytes >= bev->read_low)
        ix_evloop_due_read(bev->loop, bev);
}

/* FIN is told once everything before it can be read. */
static void check_eof(struct ix_bev *bev)
{
    if (bev->eof != 1 || bev->backlog.bytes || !(bev->enabled & IX_BEV_READ) || bev->detached)
        return;
    bev->eof = 2;
    bev->events |= IX_BEV_EOF | IX_BEV_READING;
    ix_evloop_due_events(bev->loop, bev);
}

/* Lets the application see what it may. */
static void refill_input(struct ix_bev *bev)
{
    if (bev->backlog.bytes && bev->enabled & IX_BEV_READ) {
        uint64_t room = !bev->read_high                     ? UINT64_MAX
                        : bev->input.bytes < bev->read_high ? bev->read_high - bev->input.bytes
                                                            : 0;
        if (room && ix_evbuffer_remove_buffer(&bev->backlog, &bev->input, room) > 0)
            check_read(bev);
    }
    check_eof(bev);
}

/* The end that nobody asked for: reported when DEAD comes. */
static void fail(struct ix_bev *bev, int32_t error)
{
    if (!bev->error)
        bev->error = error;
    bev->todo |= IX_BEV_TODO_ABORT;
    queue(bev);
}

/* ---- calls --------------------------------------------------------------- */

static bool flush_abort(struct ix_bev *bev)
{
    if (bev->state == IX_BEV_IDLE || bev->state == IX_BEV_DEAD) {
        bev->todo = 0;
        if (bev->detached)
            ix_evloop_recycle(bev->loop, bev);
        return true;
    }
    bool knocked = bev->state == IX_BEV_KNOCKED;
    /* Nothing is reported of a rejected KNOCK, so its record is free at once. */
    if (!ix_evloop_call(bev->loop, bev, knocked ? IX_CALL_REJECT : IX_CALL_ABORT, !knocked))
        return false;
    bev->todo = 0;
    bev->state = IX_BEV_CLOSING;
    ix_evbuffer_clear(&bev->output);
    bev->output.discards = 1;
    if (knocked && bev->detached)
        ix_evloop_recycle(bev->loop, bev);
    else if (knocked)
        ix_bev_on_end(bev, -ECONNABORTED);
    return true;
}

static bool flush_open(struct ix_bev *bev)
{
    struct ix_call *call;
    if (bev->todo & IX_BEV_TODO_ACCEPT) {
        call = ix_evloop_call(bev->loop, bev, IX_CALL_ACCEPT, true);
        if (!call)
            return false;
        bev->todo &= (uint16_t)~IX_BEV_TODO_ACCEPT;
        bev->state = IX_BEV_OPEN;
        if (bev->read_timeout_ns || bev->write_timeout_ns)
            arm(bev);
    } else if (bev->todo & IX_BEV_TODO_CONNECT) {
        call = ix_evloop_call(bev->loop, bev, IX_CALL_CONNECT, true);
        if (!call)
            return false;
        bev->todo &= (uint16_t)~IX_BEV_TODO_CONNECT;
        bev->state = IX_BEV_CONNECTING;
        call->handle = 0;
        call->family = bev->family;
        call->peer_port = bev->peer_port;
        memcpy(call->peer, bev->peer, sizeof call->peer);
        if (bev->options & 1u << (IX_OPT_CONGESTION - 1)) { /* its SYN may have to ask for ECN */
            call->bytes = (uint32_t)bev->option_value[IX_OPT_CONGESTION - 1];
            bev->options &= (uint16_t) ~(1u << (IX_OPT_CONGESTION - 1));
        }
    }
    return true;
}

static bool flush_options(struct ix_bev *bev)
{
    for (uint32_t i = 0; bev->options; i++) {
        if (!(bev->options & 1u << i))
            continue;
        struct ix_call *call = ix_evloop_call(bev->loop, bev, IX_CALL_OPTION, false);
        if (!call)
            return false;
        call->bytes = i + 1;
        call->value = bev->option_value[i];
        bev->options &= (uint16_t) ~(1u << i);
    }
    return true;
}

/* Is there no use in SENDV before SENT comes? */
static bool waits_for_sent(const struct ix_bev *bev)
{
    return bev->inflight.bytes && (bev->blocked || bev->room == 0);
}

/* A SENDV for each extent of output that there is room for. They stay in output until the results
 * are known, which is before the application runs again. */
static bool flush_output(struct ix_bev *bev)
{
    const struct ix_io *io = bev->loop->app->io;
    struct ix_evextent **at = &bev->output.head;
    struct ix_call *last = NULL;
    uint64_t asked = 0;
    bev->blocked = 0;
    if (!bev->inflight.bytes)
        bev->room = UINT32_MAX;
    /* A single connection gets at most a quarter of the array. */
    for (uint32_t quota = io->max_calls / 4; *at && quota && asked < bev->room; quota--) {
        struct ix_evextent *e = ix_evbuffer_sendable(&bev->output, at);
        if (!e) {
            /* Others hold the arena, and nothing of this connection's will say when to go on. */
            if (!last && !bev->inflight.bytes)
                queue(bev);
            return true;
        }
        struct ix_call *call = ix_evloop_call(bev->loop, bev, IX_CALL_SENDV, true);
        if (!call)
            return false;
        if (last)
            last->flags |= IX_SEND_MORE;
        call->addr = (uint64_t)(e->data - io->umem);
        call->bytes = e->bytes;
        asked += e->bytes;
        last = call;
        at = &e->next;
    }
    return true;
}

static bool flush_end(struct ix_bev *bev)
{
    if (!(bev->todo & (IX_BEV_TODO_CLOSE | IX_BEV_TODO_SHUTDOWN)) || bev->output.bytes)
        return true;
    struct ix_call *call = ix_evloop_call(bev->loop, bev, IX_CALL_CLOSE, true);
    if (!call)
        return false;
    if (bev->todo & IX_BEV_TODO_CLOSE)
        bev->state = IX_BEV_CLOSING;
    else
        call->flags = IX_CLOSE_WRITE;
    bev->todo = 0;
    return true;
}

static void flush_triggered(struct ix_bev *bev)
{
    if (bev->triggered & bev->wants & IX_BEV_READ)
        ix_evloop_due_read(bev->loop, bev);
    if (bev->triggered & bev->wants & IX_BEV_WRITE)
        ix_evloop_due_write(bev->loop, bev);
    bev->triggered = 0;
}

bool ix_bev_flush(struct ix_bev *bev)
{
    if (bev->todo & IX_BEV_TODO_ABORT)
        return flush_abort(bev);
    if (bev->detached && (bev->state == IX_BEV_DEAD ||
                          (bev->state == IX_BEV_IDLE && !(bev->todo & IX_BEV_TODO_CONNECT)))) {
        ix_evloop_recycle(bev->loop, bev);
        return true;
    }
    if (bev->triggered)
        flush_triggered(bev);
    if (!flush_open(bev))
        return false;
    refill_input(bev);
    if (bev->state != IX_BEV_OPEN)
        return true;
    if (bev->options && !flush_options(bev))
        return false;
    if (bev->output.bytes && bev->enabled & IX_BEV_WRITE && !waits_for_sent(bev)) {
        if (bev->write_timeout_ns && !bev->inflight.bytes) {
            bev->last_write_ns = bev->loop->app->now_ns;
            arm(bev);
        }
        if (!flush_output(bev))
            return false;
    }
    return !bev->todo || flush_end(bev);
}

/* ---- results ------------------------------------------------------------- */

void ix_bev_sent_to_dataplane(struct ix_bev *bev, const struct ix_call *call)
{
    if (!bev->output.head || bev->state == IX_BEV_DEAD)
        return;
    if (call->result < 0) {
        /* A void handle: DEAD says why. Anything else is a call that can never succeed. */
        bev->blocked = 1;
        if (call->result != -ENOENT)
            fail(bev, -call->result);
        return;
    }
    uint32_t taken = (uint32_t)call->result;
    if (taken > call->bytes || (taken && bev->blocked) ||
        (taken && ix_evbuffer_shift(&bev->output, &bev->inflight, taken))) {
        /* Bytes were taken behind others that were not: the stream has a hole. */
        fail(bev, EPROTO);
        return;
    }
    bev->room -= IX_MIN(bev->room, taken);
    if (taken < call->bytes)
        bev->blocked = 1;
    /* Back-pressure is over when SENT comes; without anything in flight, ask again next time. */
    if (bev->output.bytes ? !waits_for_sent(bev) : bev->todo)
        queue(bev);
    if (taken && bev->wants & IX_BEV_WRITE && bev->output.bytes <= bev->write_low)
        ix_evloop_due_write(bev->loop, bev);
}

void ix_bev_call_failed(struct ix_bev *bev, const struct ix_call *call)
{
    if (call->op == IX_CALL_ACCEPT)
        ix_bev_on_end(bev, call->result == -ENOENT ? -ECONNABORTED : call->result);
    else if (call->op == IX_CALL_CONNECT)
        ix_bev_on_end(bev, call->result);
    else if (call->result == -ENOENT)
        return; /* the connection is over: DEAD is on its way */
    else if (call->op == IX_CALL_CLOSE)
        fail(bev, -call->result);
    else /* ABORT: nothing more can be asked */
        ix_bev_on_end(bev, -ECONNABORTED);
}

/* ---- events -------------------------------------------------------------- */

static uint8_t *payload(const struct ix_bev *bev, const struct ix_event *ev)
{
    const struct ix_io *io = bev->loop->app->io;
    return io->umem + ((uint64_t)ev->frame << io->frame_shift) + ev->offset;
}

void ix_bev_on_recv(struct ix_bev *bev, const struct ix_event *ev)
{
    struct ix_evpool *pool = bev->loop->pool;
    if (!ev->bytes) {
        bev->eof = bev->eof ? bev->eof : 1;
        check_eof(bev);
        return;
    }
    if (bev->detached || bev->state == IX_BEV_DEAD) {
        struct ix_evextent *e = ix_evextent_lent(pool, payload(bev, ev), ev->bytes, ev->handle);
        if (e)
            ix_evextent_release(pool, e);
        return;
    }
    bool direct = bev->enabled & IX_BEV_READ && !bev->read_high && !bev->backlog.bytes;
    struct ix_evbuffer *b = direct ? &bev->input : &bev->backlog;
    if (ix_evbuffer_add_lent(b, payload(bev, ev), ev->bytes, ev->handle)) {
        fail(bev, ENOMEM);
        return;
    }
    if (bev->read_timeout_ns)
        bev->last_read_ns = bev->loop->app->now_ns;
    if (direct)
        check_read(bev);
    else
        refill_input(bev);
}

void ix_bev_on_sent(struct ix_bev *bev, uint64_t bytes, uint32_t window)
{
    bev->inflight_acked += bytes;
    bev->room = window;
    while (bev->inflight.head && bev->inflight_acked >= bev->inflight.head->bytes) {
        bev->inflight_acked -= bev->inflight.head->bytes;
        ix_evbuffer_drain(&bev->inflight, bev->inflight.head->bytes);
    }
    if (bev->write_timeout_ns)
        bev->last_write_ns = bev->loop->app->now_ns;
    bev->blocked = 0;
    if (bev->output.bytes || bev->todo)
        queue(bev);
}

void ix_bev_on_end(struct ix_bev *bev, int32_t status)
{
    if (bev->state == IX_BEV_DEAD)
        return;
    ix_evtimer_cancel(&bev->loop->timers, &bev->timer);
    ix_evbuffer_clear(&bev->inflight);
    ix_evbuffer_clear(&bev->output);
    bev->inflight_acked = 0;
    bev->output.discards = 1;
    bev->state = IX_BEV_DEAD;
    bev->todo = 0;
    queue(bev);
    if (bev->detached)
        return;
    if (!bev->error && status < 0)
        bev->error = -status;
    if (bev->error) {
        bev->events |= IX_BEV_ERROR | IX_BEV_READING;
        ix_evloop_due_events(bev->loop, bev);
    } else if (!bev->eof) {
        bev->eof = 1;
        check_eof(bev);
    }
}

void ix_bev_on_connected(struct ix_bev *bev, const struct ix_event *ev)
{
    if (ev->status < 0) {
        ix_bev_on_end(bev, ev->status);
        return;
    }
    if (bev->state != IX_BEV_CONNECTING)
        return;
    bev->handle = ev->handle;
    bev->state = IX_BEV_OPEN;
    if (ev->family) {
        bev->local_port = ev->local_port;
        memcpy(bev->local, ev->local, sizeof bev->local);
    }
    if (bev->read_timeout_ns || bev->write_timeout_ns) {
        bev->last_read_ns = bev->last_write_ns = bev->loop->app->now_ns;
        arm(bev);
    }
    queue(bev);
    if (bev->detached)
        return;
    bev->events |= IX_BEV_CONNECTED;
    ix_evloop_due_events(bev->loop, bev);
}

void ix_bev_on_timer(struct ix_bev *bev)
{
    uint64_t now = bev->loop->app->now_ns;
    if (bev->state != IX_BEV_OPEN || bev->detached)
        return;
    if (bev->read_timeout_ns && bev->enabled & IX_BEV_READ && !bev->eof &&
        bev->last_read_ns + bev->read_timeout_ns <= now) {
        bev->enabled &= (uint8_t)~IX_BEV_READ;
        bev->events |= IX_BEV_TIMEOUT | IX_BEV_READING;
    }
    if (bev->write_timeout_ns && bev->enabled & IX_BEV_WRITE &&
        bev->output.bytes + bev->inflight.bytes &&
        bev->last_write_ns + bev->write_timeout_ns <= now) {
        bev->enabled &= (uint8_t)~IX_BEV_WRITE;
        bev->events |= IX_BEV_TIMEOUT | IX_BEV_WRITING;
    }
    if (bev->events & IX_BEV_TIMEOUT)
        ix_evloop_due_events(bev->loop, bev);
    arm(bev);
}

/* ---- invariants ---------------------------------------------------------- */

const char *ix_bev_check(const struct ix_bev *bev)
{
    const struct ix_evbuffer *buffers[] = {&bev->input, &bev->output, &bev->backlog,
                                           &bev->inflight};
    for (int i = 0; i < 4; i++) {
        const char *wrong = ix_evbuffer_check(buffers[i]);
        if (wrong)
            return wrong;
        if (bev->state == IX_BEV_FREE && buffers[i]->bytes)
            return "a free bufferevent holds bytes";
    }
    if (bev->inflight.head ? bev->inflight_acked >= bev->inflight.head->bytes
                           : bev->inflight_acked != 0)
        return "more is acknowledged than in flight";
    if (bev->state == IX_BEV_DEAD && (bev->inflight.bytes || bev->output.bytes))
        return "a dead connection holds output";
    return NULL;
}
