/* The application's calls, and its timers. */
#include "shard/shard.h"

enum { CALLS_AHEAD = 4 }; /* whose connection is on its way to the cache */

static uint32_t wheel_id(const struct ix_shard *shard, uint32_t timer)
{
    return shard->cfg.max_flows * IX_TIMERS_PER_FLOW + timer;
}

static struct ix_app_timer *timer_of_handle(struct ix_shard *shard, uint64_t handle)
{
    uint32_t index = ix_handle_index(handle);
    if (ix_handle_kind(handle) != IX_HANDLE_TIMER || index >= shard->cfg.max_timers)
        return NULL;
    struct ix_app_timer *timer = &shard->timers[index];
    return timer->in_use && timer->generation == ix_handle_generation(handle) ? timer : NULL;
}

static void timer_free(struct ix_shard *shard, struct ix_app_timer *timer)
{
    if (timer->due)
        shard->timers_due--;
    timer->due = timer->in_use = false;
    if (++timer->generation == 0)
        timer->generation = 1;
    timer->next = shard->timer_free;
    shard->timer_free = (uint32_t)(timer - shard->timers);
}

static int call_timer_set(struct ix_shard *shard, struct ix_call *call)
{
    struct ix_app_timer *timer;
    if (call->value > 1ull << 62)
        return -IX_EINVAL;
    if (call->handle == 0) {
        if (shard->timer_free == IX_NONE)
            return -IX_ENOSPC;
        timer = &shard->timers[shard->timer_free];
        shard->timer_free = timer->next;
        timer->in_use = true;
        call->handle =
            ix_handle_make(IX_HANDLE_TIMER, (uint32_t)(timer - shard->timers), timer->generation);
    } else {
        timer = timer_of_handle(shard, call->handle);
        if (!timer)
            return -IX_ENOENT;
    }
    uint32_t id = wheel_id(shard, (uint32_t)(timer - shard->timers));
    if (call->flags & IX_TIMER_CANCEL) {
        ix_wheel_cancel(&shard->wheel, id);
        timer_free(shard, timer);
        return 0;
    }
    if (timer->due) {
        timer->due = false;
        shard->timers_due--;
    }
    timer->cookie = call->cookie;
    ix_wheel_set(&shard->wheel, id, shard->now_ns + call->value);
    return 0;
}

static bool timer_event(struct ix_shard *shard, struct ix_app_timer *timer)
{
    struct ix_event *event = ix_io_event(&shard->io, IX_EV_TIMER);
    if (!event)
        return false;
    event->handle =
        ix_handle_make(IX_HANDLE_TIMER, (uint32_t)(timer - shard->timers), timer->generation);
    event->cookie = timer->cookie;
    timer_free(shard, timer);
    return true;
}

void ix_shard_app_timer(struct ix_shard *shard, uint32_t index)
{
    struct ix_app_timer *timer = &shard->timers[index];
    if (!timer_event(shard, timer)) {
        timer->due = true;
        shard->timers_due++;
    }
}

void ix_shard_deliver_timers(struct ix_shard *shard)
{
    for (uint32_t i = 0; i < shard->cfg.max_timers && shard->timers_due; i++)
        if (shard->timers[i].due && !timer_event(shard, &shard->timers[i]))
            return;
}

static int run_one(struct ix_shard *shard, struct ix_call *call)
{
    switch (call->op) {
    case IX_CALL_UDP_SENDV:
        return ix_udp_send(&shard->udp, call);
    case IX_CALL_UDP_RECV_DONE:
        return ix_udp_recv_done(&shard->udp, call);
    case IX_CALL_TIMER_SET:
        return call_timer_set(shard, call);
    case IX_CALL_NONE:
        return 0;
    default:
        return ix_tcp_call(&shard->tcp, call);
    }
}

/* With more connections than the cache holds: the connection of a later call, on which something is
 * sent that it is not an answer to, was last touched long ago. A hint: nothing is checked yet. */
static void prefetch(const struct ix_shard *shard, const struct ix_call *call)
{
    uint32_t flow = ix_handle_index(call->handle);
    if (call->op == IX_CALL_SENDV && flow < shard->cfg.max_flows)
        ix_tcp_prefetch_flow(&shard->tcp, flow);
}

void ix_shard_run_calls(struct ix_shard *shard, uint32_t n)
{
    n = IX_MIN(n, shard->io.max_calls);
    bool far = shard->tcp.in_use >= IX_MANY_FLOWS;
    for (uint32_t i = 0; i < n; i++) {
        /* The application may change the record meanwhile: what is checked and what is used is one
         * copy. The compiler must not look at the record again instead. */
        struct ix_call *shared = &shard->io.calls[i], call = *shared;
        __asm__ volatile("" : "+m"(call));
        if (far && i + CALLS_AHEAD < n)
            prefetch(shard, shared + CALLS_AHEAD);
        int result = run_one(shard, &call);
        shared->result = result;
        if (call.op == IX_CALL_CONNECT || call.op == IX_CALL_TIMER_SET) {
            shared->handle = call.handle;
            shared->local_port = call.local_port;
        }
        shard->counters.call_errors += result < 0;
    }
    shard->counters.calls += n;
    shard->io.shared->n_calls = 0;
}
