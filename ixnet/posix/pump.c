/* Cycles of the shard, what their events mean for sockets, and waiting for them. */
#include "posix/sock.h"

#include <errno.h>
#include <string.h>

enum { CYCLES_MAX = 256 }; /* of one pump: a peer that never stops must not hold the lock */

void ix_sock_wake(struct ix_posix *p, struct ix_sock *s, uint32_t events)
{
    p->changed = true;
    ix_epoll_note(p, s, events);
}

/* There is room: ix_posix_new() wants as many calls as events, and an event makes at most one. */
void ix_sock_later(struct ix_posix *p, const struct ix_call *call)
{
    p->io->calls[p->io->n_calls++] = *call;
}

static void connected(struct ix_posix *p, struct ix_sock *s, const struct ix_event *event)
{
    if (event->status) {
        s->state = IX_SOCK_DEAD;
        s->handle = 0;
        s->error = -event->status;
        s->eof = s->wr_shut = true;
        ix_sock_wake(p, s, EPOLLIN | EPOLLOUT | EPOLLERR | EPOLLHUP | EPOLLRDHUP);
        return;
    }
    s->state = IX_SOCK_CONNECTED;
    s->fresh = true;
    s->local.port = event->local_port;
    s->local.family = event->family;
    __builtin_memcpy(s->local.ip, event->local, sizeof s->local.ip);
    ix_sock_wake(p, s, EPOLLOUT);
}

static void dead(struct ix_posix *p, struct ix_sock *s, const struct ix_event *event)
{
    s->state = IX_SOCK_DEAD;
    s->handle = 0;
    /* The peer had said that it sends no more: what a reset takes away is our half (Linux:
     * tcp_reset()). */
    s->error = event->status == -ECONNRESET && s->eof ? EPIPE : -event->status;
    if (s->error == ECONNABORTED) /* our own ABORT */
        s->error = 0;
    s->eof = s->wr_shut = true;
    ix_sock_drop_sent(p, s);
    ix_sock_wake(p, s, EPOLLIN | EPOLLOUT | EPOLLHUP | EPOLLRDHUP | (s->error ? EPOLLERR : 0u));
}

static void give_back(struct ix_posix *p, const struct ix_event *event)
{
    bool udp = event->type == IX_EV_UDP_RECV;
    uint64_t addr = ((uint64_t)event->frame << p->io->frame_shift) + event->offset;
    ix_sock_later(p, &(struct ix_call){.op = udp ? IX_CALL_UDP_RECV_DONE : IX_CALL_RECV_DONE,
                                       .handle = event->handle,
                                       .addr = addr,
                                       .bytes = event->bytes});
}

static void take_event(struct ix_posix *p, const struct ix_event *event)
{
    uint32_t index = (uint32_t)event->cookie;
    struct ix_sock *s = index < p->cfg.max_sockets ? &p->socks[index] : NULL;
    bool ours = s && s->kind != IX_SOCK_FREE && s->generation == (uint32_t)(event->cookie >> 32);
    bool payload = event->type == IX_EV_RECV || event->type == IX_EV_UDP_RECV;
    if (!ours || (payload && !s->fds)) {
        if (payload && event->bytes)
            give_back(p, event);
        if (!ours)
            return;
    }
    switch (event->type) {
    case IX_EV_KNOCK:
        ix_sock_knock(p, s, event);
        break;
    case IX_EV_CONNECTED:
        connected(p, s, event);
        break;
    case IX_EV_RECV:
    case IX_EV_UDP_RECV:
        if (s->fds)
            ix_sock_received(p, s, event);
        break;
    case IX_EV_SENT:
        ix_sock_acked(p, s, event->bytes);
        break;
    case IX_EV_DEAD:
        if (s->state == IX_SOCK_LISTEN)
            ix_sock_knock_dead(p, s, event);
        else
            dead(p, s, event);
        break;
    default:
        break;
    }
    ix_sock_release(p, s);
}

/* One cycle, and its events. Calls that events give rise to stand in io->calls afterwards. */
static void cycle(struct ix_posix *p)
{
    int events = ix_shard_poll(p->cfg.shard, ix_posix_now(p));
    for (int i = 0; i < events; i++)
        take_event(p, &p->io->events[i]);
}

/* Until nothing is left to do at this time: answers that a flow held back for a cycle, events that
 * found no room, calls of the events' own. */
static void settle(struct ix_posix *p)
{
    for (uint32_t i = 0; i < CYCLES_MAX; i++) {
        uint64_t now_ns = ix_posix_now(p);
        if (p->io->n_calls == 0 && ix_shard_next_deadline(p->cfg.shard, now_ns) > now_ns)
            return;
        cycle(p);
    }
}

void ix_sock_cycle(struct ix_posix *p, uint32_t n)
{
    p->io->n_calls = n;
    cycle(p);
    settle(p);
}

void ix_sock_calls(struct ix_posix *p, struct ix_call *calls, uint32_t n)
{
    settle(p); /* there may be calls that events gave rise to */
    memcpy(p->io->calls, calls, n * sizeof *calls);
    p->io->n_calls = n;
    int events = ix_shard_poll(p->cfg.shard, ix_posix_now(p));
    memcpy(calls, p->io->calls, n * sizeof *calls);
    for (int i = 0; i < events; i++)
        take_event(p, &p->io->events[i]);
    settle(p);
}

int ix_sock_call(struct ix_posix *p, struct ix_call *call)
{
    ix_sock_calls(p, call, 1);
    return call->result;
}

/* ---- waiting */

static bool any_due(const struct ix_posix *p, uint64_t now_ns)
{
    for (const struct ix_sock_wait *w = p->waits; w; w = w->next)
        if (w->asleep && w->deadline_ns <= now_ns)
            return true;
    return false;
}

/* Wakes all who sleep: they look for themselves whether it was for them. */
static void wake_sleepers(struct ix_posix *p)
{
    p->changed = false;
    for (struct ix_sock_wait *w = p->waits; w; w = w->next) {
        if (!w->asleep)
            continue;
        w->asleep = false;
        w->woken = true;
        p->unsettled++;
    }
    pthread_cond_broadcast(&p->wake);
}

static void unsettle(struct ix_posix *p, struct ix_sock_wait *w)
{
    if (!w->woken)
        return;
    w->woken = false;
    p->woken_ns = ix_posix_now(p);
    if (--p->unsettled == 0)
        pthread_cond_broadcast(&p->settled);
}

void ix_posix_leave(struct ix_posix *p)
{
    if (p->changed || any_due(p, ix_posix_now(p)))
        wake_sleepers(p);
    while (p->cfg.env.lockstep && p->unsettled)
        pthread_cond_wait(&p->settled, &p->lock);
    pthread_mutex_unlock(&p->lock);
}

void ix_posix_pump(struct ix_posix *p)
{
    ix_posix_enter(p);
    cycle(p);
    settle(p);
    ix_posix_leave(p);
}

static uint64_t next_deadline(const struct ix_posix *p)
{
    uint64_t next_ns = ix_shard_next_deadline(p->cfg.shard, ix_posix_now((struct ix_posix *)p));
    for (const struct ix_sock_wait *w = p->waits; w; w = w->next)
        if (w->deadline_ns < next_ns)
            next_ns = w->deadline_ns;
    return next_ns;
}

uint64_t ix_posix_next_deadline(struct ix_posix *p)
{
    ix_posix_enter(p);
    uint64_t next_ns = next_deadline(p);
    pthread_mutex_unlock(&p->lock);
    return next_ns;
}

uint32_t ix_posix_sleepers(struct ix_posix *p)
{
    uint32_t n = 0;
    ix_posix_enter(p);
    for (const struct ix_sock_wait *w = p->waits; w; w = w->next)
        n += w->asleep;
    pthread_mutex_unlock(&p->lock);
    return n;
}

uint64_t ix_posix_woken_ns(struct ix_posix *p)
{
    ix_posix_enter(p);
    uint64_t woken_ns = p->woken_ns;
    pthread_mutex_unlock(&p->lock);
    return woken_ns;
}

uint64_t ix_posix_deadline(struct ix_posix *p, uint64_t ns)
{
    uint64_t now_ns = ix_posix_now(p);
    return ns < IX_POSIX_NEVER - now_ns ? now_ns + ns : IX_POSIX_NEVER;
}

static void put_wait(struct ix_posix *p, struct ix_sock_wait *w)
{
    for (struct ix_sock_wait *at = p->waits; at; at = at->next)
        if (at == w)
            return;
    w->next = p->waits;
    p->waits = w;
}

bool ix_sock_wait(struct ix_posix *p, struct ix_sock_wait *w)
{
    const struct ix_posix_env *env = &p->cfg.env;
    if (w->deadline_ns <= ix_posix_now(p))
        return false;
    put_wait(p, w);
    if (p->changed)
        wake_sleepers(p);
    uint64_t until_ns = next_deadline(p);
    /* What it slept for before is settled only now that it is certain to sleep again. */
    w->asleep = true;
    unsettle(p, w);
    pthread_mutex_unlock(&p->lock);
    bool drives = env->drive(env->arg, until_ns);
    pthread_mutex_lock(&p->lock);
    if (drives) {
        w->asleep = false; /* a pump of its own must not wait for itself */
        unsettle(p, w);
        pthread_mutex_unlock(&p->lock);
        ix_posix_pump(p);
        pthread_mutex_lock(&p->lock);
    }
    while (w->asleep)
        pthread_cond_wait(&p->wake, &p->lock);
    return true;
}

void ix_sock_wait_end(struct ix_posix *p, struct ix_sock_wait *w)
{
    for (struct ix_sock_wait **at = &p->waits; *at; at = &(*at)->next) {
        if (*at != w)
            continue;
        *at = w->next;
        break;
    }
    w->asleep = false;
    unsettle(p, w);
}
