/* The client of bench/load.c on the dataplane: the other end of the link for the figures that have
 * no kernel stack in them.
 *
 *     ixnet run --interface IF build/bench/app_load.so -- rr  --host IP --port N [options]
 *     ixnet run --interface IF build/bench/app_load.so -- crc --host IP --port N [options]
 *
 * Options, report and exit status are bench/load's. A message fits one frame. Every byte that comes
 * back is compared with what was sent.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <stdarg.h>
#include <time.h>

#include "bytestream.h"
#include "load_options.h"
#include "load_run.h"
#include "native/app.h"

#define NONE             UINT32_MAX
#define CRC_FAILURES_MAX 100
#define SECOND_NS        1000000000ull
#define MAX_WAIT_NS      1000000u

enum slot_state { SLOT_IDLE = 0, SLOT_CONNECTING, SLOT_OPEN, SLOT_FAILED };
enum todo { TODO_CONNECT = 1, TODO_SEND = 2, TODO_CLOSE = 4 };

struct slot {
    uint64_t handle;
    uint64_t seed;
    uint64_t addr;       /* of its message, in the send arena */
    uint64_t offset;     /* of the message under way in the stream */
    uint64_t started_ns; /* when it was sent (crc: when CONNECT was called) */
    uint32_t generation; /* of the connection: with the index, its cookie */
    uint32_t unsent;     /* bytes that SENDV has not taken */
    uint32_t unacked;    /* bytes that it took and SENT did not cover */
    uint32_t missing;    /* bytes of the echo still to come */
    uint32_t next;       /* in the queue of those with something to do */
    uint8_t state;       /* enum slot_state */
    uint8_t todo;        /* bits of enum todo */
    bool queued;
};

/* A received frame that waits to be given back; indexed by frame. */
struct lent {
    uint64_t handle, addr;
    uint32_t bytes, next;
};

struct load {
    struct run *run;
    struct ix_app *app;
    struct slot *slots;
    struct lent *lent;
    uint32_t busy_head, busy_tail, done_head;
    uint32_t *call_slot; /* [max_calls] whose CONNECT or SENDV it is, or NONE */
    uint64_t give_up_ns; /* until then a refused connection is tried again */
};

static uint64_t clock_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * SECOND_NS + (uint64_t)t.tv_nsec;
}

static void push_busy(struct load *l, uint32_t index, uint8_t todo)
{
    struct slot *s = &l->slots[index];
    s->todo |= todo;
    if (s->queued)
        return;
    s->queued = true;
    s->next = NONE;
    if (l->busy_head == NONE)
        l->busy_head = index;
    else
        l->slots[l->busy_tail].next = index;
    l->busy_tail = index;
}

__attribute__((format(printf, 4, 5))) static void fail(struct load *l, struct slot *s,
                                                       enum failure kind, const char *format, ...)
{
    struct run *r = l->run;
    r->failures[kind]++;
    r->failures_in_a_row++;
    if (!r->first_error[0]) {
        va_list args;
        va_start(args, format);
        vsnprintf(r->first_error, sizeof r->first_error, format, args);
        va_end(args);
    }
    if (s->state != SLOT_IDLE)
        r->live--;
    if (s->missing && s->state == SLOT_OPEN)
        r->busy--;
    s->state = r->opt.mode == MODE_CRC ? SLOT_IDLE : SLOT_FAILED;
    s->todo = 0;
    s->generation++;
}

/* ---- a message and its echo --------------------------------------------------- */

static void start_message(struct load *l, uint32_t index)
{
    struct slot *s = &l->slots[index];
    uint32_t bytes = l->run->opt.message_bytes;
    bytestream_fill(s->seed, s->offset, l->app->io->umem + s->addr, bytes);
    s->unsent = s->missing = bytes;
    if (l->run->opt.mode == MODE_RR)
        s->started_ns = l->run->now_ns;
    l->run->busy++;
    push_busy(l, index, TODO_SEND);
}

static void connect_slot(struct load *l, uint32_t index)
{
    struct slot *s = &l->slots[index];
    s->state = SLOT_CONNECTING;
    s->generation++;
    s->unsent = s->unacked = s->missing = 0;
    s->offset = 0;
    s->seed = bytestream_mix(s->seed + 1);
    s->started_ns = l->run->now_ns;
    l->run->live++;
    push_busy(l, index, TODO_CONNECT);
}

/* The echo is whole and the message's memory is ours again. */
static void message_done(struct load *l, uint32_t index)
{
    struct slot *s = &l->slots[index];
    struct run *r = l->run;
    r->busy--;
    r->progress_ns = r->now_ns;
    r->failures_in_a_row = 0;
    s->offset += r->opt.message_bytes;
    if (r->measuring) {
        r->completed++;
        histogram_add(&r->latency, r->now_ns - s->started_ns);
    }
    if (r->opt.mode == MODE_CRC)
        push_busy(l, index, TODO_CLOSE);
    else if (!r->draining)
        start_message(l, index);
}

static void on_recv(struct load *l, uint32_t index, const struct ix_event *ev)
{
    struct slot *s = &l->slots[index];
    struct run *r = l->run;
    uint32_t at = r->opt.message_bytes - s->missing;
    if (!ev->bytes) {
        fail(l, s, FAIL_CLOSED, "connection %u: the server closed it", index);
        ix_app_call(l->app, IX_CALL_ABORT, ev->handle);
        return;
    }
    if (ev->bytes > s->missing ||
        !bytestream_matches(s->seed, s->offset + at, ix_app_payload(l->app, ev), ev->bytes)) {
        fail(l, s, FAIL_MISMATCH, "connection %u: the echo differs from what was sent", index);
        ix_app_call(l->app, IX_CALL_ABORT, ev->handle);
        return;
    }
    r->verified_bytes += ev->bytes;
    s->missing -= ev->bytes;
    if (!s->missing && !s->unacked)
        message_done(l, index);
}

static void on_sent(struct load *l, uint32_t index, const struct ix_event *ev)
{
    struct slot *s = &l->slots[index];
    s->unacked -= ev->bytes;
    if (s->unsent)
        push_busy(l, index, TODO_SEND);
    else if (!s->missing && !s->unacked)
        message_done(l, index);
}

static void on_end(struct load *l, uint32_t index, int32_t status)
{
    struct slot *s = &l->slots[index];
    if (status == -ECONNREFUSED && l->run->now_ns < l->give_up_ns) {
        l->run->live--;
        s->state = SLOT_IDLE;
        return;
    }
    enum failure kind = status == -ECONNREFUSED ? FAIL_REFUSED
                        : status == -ECONNRESET ? FAIL_RESET
                        : status == -ETIMEDOUT  ? FAIL_TIMEOUT
                                                : FAIL_OTHER;
    fail(l, s, kind, "connection %u: %s", index, strerror(-status));
}

static void on_event(struct load *l, const struct ix_event *ev)
{
    uint32_t index = (uint32_t)ev->cookie;
    struct slot *s = &l->slots[index];
    if (ev->type == IX_EV_RECV && ev->bytes) {
        struct lent *x = &l->lent[ev->frame];
        x->handle = ev->handle;
        x->addr = ((uint64_t)ev->frame << l->app->io->frame_shift) + ev->offset;
        x->bytes = ev->bytes;
        x->next = l->done_head;
        l->done_head = ev->frame;
    }
    if (s->generation != ev->cookie >> 32)
        return; /* of a connection that was closed or failed */
    if (ev->type == IX_EV_RECV) {
        on_recv(l, index, ev);
    } else if (ev->type == IX_EV_SENT) {
        on_sent(l, index, ev);
    } else if (ev->type == IX_EV_DEAD) {
        on_end(l, index, ev->status ? ev->status : -ECONNRESET);
    } else if (ev->type == IX_EV_CONNECTED && ev->status) {
        on_end(l, index, ev->status);
    } else if (ev->type == IX_EV_CONNECTED) {
        s->state = SLOT_OPEN;
        l->run->opened++;
        l->run->progress_ns = l->run->now_ns;
        if (l->run->opt.mode == MODE_CRC)
            start_message(l, index);
    }
}

/* ---- calls ---------------------------------------------------------------------- */

static struct ix_call *call_for(struct load *l, uint32_t index, uint8_t op, bool watch)
{
    struct slot *s = &l->slots[index];
    struct ix_call *call = ix_app_call(l->app, op, op == IX_CALL_CONNECT ? 0 : s->handle);
    if (call && watch)
        l->call_slot[l->app->io->n_calls - 1] = index;
    return call;
}

/* False: the array is full. */
static bool run_todo(struct load *l, uint32_t index)
{
    struct slot *s = &l->slots[index];
    struct ix_call *call;
    if (s->todo & TODO_CONNECT) {
        if (!(call = call_for(l, index, IX_CALL_CONNECT, true)))
            return false;
        const struct sockaddr_in *target = (const struct sockaddr_in *)&l->run->opt.target;
        call->cookie = (uint64_t)s->generation << 32 | index;
        call->family = 4;
        call->peer_port = ntohs(target->sin_port);
        memcpy(call->peer, &target->sin_addr, 4);
    }
    if (s->todo & TODO_SEND && s->unsent) {
        if (!(call = call_for(l, index, IX_CALL_SENDV, true)))
            return false;
        call->addr = s->addr + l->run->opt.message_bytes - s->unsent;
        call->bytes = s->unsent;
    }
    if (s->todo & TODO_CLOSE) {
        if (!call_for(l, index, IX_CALL_CLOSE, false))
            return false;
        l->run->live--;
        s->state = SLOT_IDLE;
        s->generation++;
    }
    s->todo = 0;
    return true;
}

static void put_calls(struct load *l)
{
    struct ix_io *io = l->app->io;
    while (l->done_head != NONE && io->n_calls < io->max_calls / 2) {
        struct lent *x = &l->lent[l->done_head];
        struct ix_call *call = ix_app_call(l->app, IX_CALL_RECV_DONE, x->handle);
        call->addr = x->addr;
        call->bytes = x->bytes;
        l->done_head = x->next;
    }
    for (uint32_t last = l->busy_tail, index = NONE; l->busy_head != NONE && index != last;) {
        index = l->busy_head;
        l->busy_head = l->slots[index].next;
        l->slots[index].queued = false;
        if (!run_todo(l, index)) {
            push_busy(l, index, 0);
            return;
        }
    }
}

static void look_at_results(struct load *l, uint32_t n_calls)
{
    for (uint32_t i = 0; i < n_calls; i++) {
        const struct ix_call *call = &l->app->io->calls[i];
        uint32_t index = l->call_slot[i];
        l->call_slot[i] = NONE;
        if (index == NONE)
            continue;
        struct slot *s = &l->slots[index];
        if (call->op == IX_CALL_CONNECT && call->result >= 0) {
            s->handle = call->handle;
        } else if (call->op == IX_CALL_CONNECT && call->result == -EADDRNOTAVAIL) {
            l->run->port_waits++;
            l->run->live--;
            s->state = SLOT_IDLE;
        } else if (call->op == IX_CALL_CONNECT) {
            on_end(l, index, call->result);
        } else if (call->result >= 0) {
            s->unsent -= (uint32_t)call->result;
            s->unacked += (uint32_t)call->result;
            if (s->unsent && !s->unacked)
                push_busy(l, index, TODO_SEND);
        } /* else DEAD says why */
    }
}

/* ---- the run ----------------------------------------------------------------------- */

/* One cycle. False: it is time to end. */
static bool turn(struct load *l)
{
    struct run *r = l->run;
    put_calls(l);
    uint32_t n_calls = l->app->io->n_calls;
    bool more = l->busy_head != NONE || l->done_head != NONE;
    int n = ix_app_poll(l->app, more ? 0 : MAX_WAIT_NS);
    r->now_ns = clock_ns();
    if (n < 0) {
        r->over = true;
        return false;
    }
    look_at_results(l, n_calls);
    for (int i = 0; i < n; i++)
        on_event(l, &l->app->io->events[i]);
    if (r->now_ns > r->progress_ns &&
        r->now_ns - r->progress_ns > (uint64_t)(r->opt.timeout_s * 1e9)) {
        r->failures[FAIL_TIMEOUT]++;
        snprintf(r->first_error, sizeof r->first_error,
                 "nothing moved for %g s; %u of %u connections are open", r->opt.timeout_s, r->live,
                 r->opt.connections);
        r->over = true;
    }
    if (r->failures_in_a_row >= CRC_FAILURES_MAX)
        r->over = true;
    return !r->over;
}

static void connect_idle(struct load *l)
{
    for (uint32_t i = 0; i < l->run->opt.connections; i++)
        if (l->slots[i].state == SLOT_IDLE)
            connect_slot(l, i);
}

/* Until a point in time; in crc mode every slot that is free connects again. */
static bool turn_until(struct load *l, uint64_t until_ns)
{
    struct run *r = l->run;
    while (r->now_ns < until_ns) {
        if (r->opt.mode == MODE_CRC && r->live < r->opt.connections)
            connect_idle(l);
        if (r->opt.mode == MODE_RR && !r->live)
            return false;
        if (!turn(l))
            return false;
    }
    return true;
}

static bool open_all(struct load *l)
{
    struct run *r = l->run;
    while (r->opened < r->opt.connections) {
        if (r->live < r->opt.connections)
            connect_idle(l);
        if (!turn(l) || any_failure(r))
            return false;
    }
    for (uint32_t i = 0; i < r->opt.connections; i++)
        start_message(l, i);
    return true;
}

static void run_load(struct load *l)
{
    struct run *r = l->run;
    r->now_ns = r->progress_ns = clock_ns();
    l->give_up_ns = r->now_ns + (uint64_t)(r->opt.wait_s * 1e9);
    if (r->opt.mode == MODE_RR && !open_all(l))
        return;
    if (!turn_until(l, r->now_ns + (uint64_t)(r->opt.warmup_s * 1e9)))
        return;
    r->measuring = true;
    r->completed = 0;
    histogram_reset(&r->latency);
    uint64_t from_ns = r->now_ns = clock_ns();
    turn_until(l, from_ns + (uint64_t)(r->opt.seconds * 1e9));
    r->measuring = false;
    r->elapsed_s = (double)(r->now_ns - from_ns) / 1e9;
}

/* Ends what is open in order, and waits for replies that are still due. */
static void finish(struct load *l)
{
    struct run *r = l->run;
    uint64_t until_ns = r->now_ns + (uint64_t)(r->opt.timeout_s * 1e9);
    r->draining = true;
    /* crc: transactions whose connection is still being opened are carried through. */
    const uint32_t *left = r->opt.mode == MODE_CRC ? &r->live : &r->busy;
    while (!r->over && *left && r->now_ns < until_ns)
        turn(l);
    if (*left && !r->over) {
        r->failures[FAIL_TIMEOUT]++;
        snprintf(r->first_error, sizeof r->first_error, "%u replies are still missing", *left);
    }
    for (uint32_t i = 0; i < r->opt.connections; i++)
        if (l->slots[i].state == SLOT_OPEN)
            push_busy(l, i, TODO_CLOSE);
    while (!r->over && (l->busy_head != NONE || l->done_head != NONE))
        turn(l);
}

/* Messages lie side by side in the frames of the send arena, the first of each where it can be sent
 * from. */
static bool place_messages(struct load *l)
{
    const struct ix_io *io = l->app->io;
    uint32_t bytes = l->run->opt.message_bytes;
    uint32_t per_frame = ((1u << io->frame_shift) - io->tx_headroom) / bytes;
    uint32_t used = 0;
    /* As few in a frame as there is room for. */
    while (used < per_frame && (uint64_t)used * io->arena_frames < l->run->opt.connections)
        used++;
    if (!used || (uint64_t)used * io->arena_frames < l->run->opt.connections)
        return false;
    for (uint32_t i = 0; i < l->run->opt.connections; i++)
        l->slots[i].addr = ((uint64_t)(io->arena_frame + i / used) << io->frame_shift) +
                           io->tx_headroom + (uint64_t)(i % used) * bytes;
    return true;
}

int ix_app_main(struct ix_app *app, int argc, char **argv)
{
    (void)raise_fd_limit; /* no descriptors here */
    struct run *r = calloc(1, sizeof *r);
    struct load l = {.run = r, .app = app, .busy_head = NONE, .busy_tail = NONE, .done_head = NONE};
    optind = 1;
    parse_options(&r->opt, argc, argv);
    if (r->opt.mode != MODE_RR && r->opt.mode != MODE_CRC)
        usage("on the dataplane there are the modes rr and crc");
    if (r->opt.target.ss_family != AF_INET)
        usage("--host takes an IPv4 address here");
    l.slots = calloc(r->opt.connections, sizeof *l.slots);
    l.lent = calloc(app->io->arena_frame, sizeof *l.lent);
    l.call_slot = calloc(app->io->max_calls, sizeof *l.call_slot);
    int status = 2;
    if (!l.slots || !l.lent || !l.call_slot || !place_messages(&l)) {
        fprintf(stderr, "load: no room in the send arena for %u messages of %u bytes\n",
                r->opt.connections, r->opt.message_bytes);
    } else {
        memset(l.call_slot, 0xff, app->io->max_calls * sizeof *l.call_slot);
        for (uint32_t i = 0; i < r->opt.connections; i++)
            l.slots[i].seed = bytestream_word(r->opt.seed, i);
        run_load(&l);
        finish(&l);
        report(r);
        fflush(stdout);
        status = any_failure(r) ? 1 : 0;
    }
    free(l.slots);
    free(l.lent);
    free(l.call_slot);
    free(r);
    return status;
}
