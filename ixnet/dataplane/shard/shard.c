/* One cycle of a shard (IX, OSDI '14, figure 1b): run to completion, adaptive batching.
 *
 * The order is the design. Transmissions are reclaimed before calls need frames; calls run before
 * input, so that what they free is there; the FILL ring is refilled before anything runs that could
 * take long; output comes last, so that one segment carries all that the cycle has to say.
 */
#include "shard/shard.h"

enum {
    STATS_EVERY = 1024, /* cycles between two updates of the gauges */
    RECLAIM_MAX_NS = 10000000,
    /* How many frames ahead things are fetched. */
    FRAME_AHEAD = 8,
    BUCKET_AHEAD = 4,
    TCB_AHEAD = 2,
};

/* 1. Frames whose sending is over. */
static uint32_t reclaim(struct ix_shard *shard)
{
    uint64_t addrs[IX_BATCH_MAX];
    uint32_t total = 0, n;
    do {
        n = shard->link->ops->complete(shard->link, addrs, IX_BATCH_MAX);
        for (uint32_t i = 0; i < n; i++) {
            uint32_t flow = ix_frame_tx_end(&shard->frames, ix_frame_of(&shard->frames, addrs[i]));
            if (flow == IX_NONE)
                continue;
            struct ix_tcb *tcb = &shard->tcp.flows[flow];
            if (--tcb->pinned == 0 && tcb->flags & IX_TF_EV_DEAD)
                ix_tcp_want_event(&shard->tcp, tcb, 0);
            ix_tcp_release(&shard->tcp, tcb);
        }
        total += n;
    } while (n == IX_BATCH_MAX && total < IX_TX_STAGE);
    if (total) {
        shard->tx_out -= IX_MIN(total, shard->tx_out);
        shard->tx_moved_ns = shard->now_ns;
    }
    return total;
}

/* 3. Timers due by now. */
static uint32_t run_timers(struct ix_shard *shard)
{
    uint32_t fired[IX_TIMERS_PER_CYCLE];
    uint32_t n = ix_wheel_advance(&shard->wheel, shard->now_ns, fired, IX_TIMERS_PER_CYCLE);
    uint32_t flow_timers = shard->cfg.max_flows * IX_TIMERS_PER_FLOW;
    for (uint32_t i = 0; i < n; i++) {
        if (fired[i] >= flow_timers)
            ix_shard_app_timer(shard, fired[i] - flow_timers);
        else if (shard->tcp.flows[fired[i] / IX_TIMERS_PER_FLOW].state != IX_TCP_CLOSED)
            ix_tcp_timer_fired(&shard->tcp,
                               fired[i]); /* else: an earlier one of this batch ended the flow */
    }
    return n;
}

#define FILL_GROWN_NS 10000000000ull

/* Frames on FILL are used in turn: the fewer there are, the likelier caches remember each. But a
 * worker that wasn't run for a moment loses what comes when they are used up, or what a NIC's own
 * ring has no frames for. So there are more for a while once the link has taken all that it was
 * given. True if it has. */
static bool follow_dryness(struct ix_shard *shard, uint32_t room)
{
    const struct ix_config *cfg = &shard->cfg;
    bool dry = room == shard->link->fill_entries && shard->frames.count[IX_FRAME_FILL];
    if (IX_LIKELY(!dry && shard->fill_target == cfg->fill_target))
        return false;
    if (dry && shard->fill_target < cfg->fill_max) {
        shard->fill_target = IX_MIN(2 * shard->fill_target, cfg->fill_max);
        shard->counters.fill_grown++;
    }
    if (dry) {
        shard->fill_dry_ns = shard->now_ns;
    } else if (shard->now_ns - shard->fill_dry_ns >= FILL_GROWN_NS) {
        shard->fill_target = IX_MAX(shard->fill_target / 2, cfg->fill_target);
        shard->fill_dry_ns = shard->now_ns;
    }
    return dry;
}

/* At most a burst; how many. */
static uint32_t give_frames(struct ix_shard *shard, uint32_t want)
{
    uint64_t addrs[IX_BATCH_MAX];
    struct ix_frames *frames = &shard->frames;
    uint32_t n = 0;
    want = IX_MIN(want, (uint32_t)IX_BATCH_MAX);
    while (n < want) {
        uint32_t frame = ix_frame_take_fill(frames);
        if (frame == IX_NONE)
            break;
        addrs[n++] = ix_frame_addr(frames, frame);
    }
    uint32_t taken = n ? shard->link->ops->fill(shard->link, addrs, n) : 0;
    for (uint32_t i = taken; i < n; i++)
        ix_frame_untake_fill(frames, ix_frame_of(frames, addrs[i]));
    return taken;
}

/* 5. Empty frames for the NIC. */
static void refill(struct ix_shard *shard, uint32_t received)
{
    struct ix_frames *frames = &shard->frames;
    /* Those that this cycle took from RX still count as FILL: they are looked at later. */
    uint32_t have = frames->count[IX_FRAME_FILL] - IX_MIN(received, frames->count[IX_FRAME_FILL]);
    uint32_t room = shard->link->ops->fill_room(shard->link);
    bool dry = follow_dryness(shard, room);
    uint32_t want = have < shard->fill_target ? shard->fill_target - have : 0;
    want = IX_MIN(want, room);
    /* Frames to answer with come first: an ACK that can't leave holds more than one that can't
     * arrive. At most half of what is never lent, or with all the rest lent none would be left to
     * receive into. */
    uint32_t spare = frames->count[IX_FRAME_FREE];
    uint32_t keep = IX_MIN(frames->pool_frames / 16, (uint32_t)IX_FRAMES_RESERVE / 2);
    want = IX_MIN(want, spare > keep ? spare - keep : 0);
    uint32_t taken = want ? give_frames(shard, want) : 0;
    for (uint32_t n = taken; dry && n && taken < want; taken += n)
        n = give_frames(shard, want - taken);
    if (have + taken == 0)
        shard->counters.fill_starved++;
}

static enum ix_verdict input_one(struct ix_shard *shard, struct ix_packet *pkt)
{
    enum ix_verdict verdict = ix_net_input(&shard->net, pkt);
    struct ix_icmp_error error;
    if (IX_LIKELY(verdict == IX_VERDICT_TCP))
        return ix_tcp_input(&shard->tcp, pkt);
    switch (verdict) {
    case IX_VERDICT_UDP:
        return ix_udp_input(&shard->udp, pkt);
    case IX_VERDICT_ICMP:
        if (ix_icmp4_input(&shard->net, pkt, &error) && error.proto == IX_PROTO_TCP)
            ix_tcp_icmp_error(&shard->tcp, &error);
        return IX_VERDICT_DROP;
    case IX_VERDICT_ICMP6:
        if (ix_icmp6_input(&shard->net, pkt, &error) && error.proto == IX_PROTO_TCP)
            ix_tcp_icmp_error(&shard->tcp, &error);
        return IX_VERDICT_DROP;
    default:
        return verdict;
    }
}

/* A hint, given before the descriptor is checked: an address, not a pointer into the UMEM. Headers
 * of 66 bytes and a short payload are two lines or three. */
static void prefetch_frame(const struct ix_link *link, const struct ix_desc *desc)
{
    uintptr_t at = (uintptr_t)link->umem + desc->addr;
    __builtin_prefetch((const void *)at);
    __builtin_prefetch((const void *)(at + IX_CACHE_LINE));
    if (desc->len > 2 * IX_CACHE_LINE)
        __builtin_prefetch((const void *)(at + 2 * IX_CACHE_LINE));
}

/* While frame i is looked at, what later ones need is fetched: of the one FRAME_AHEAD behind it the
 * frame; then, with more connections than the cache holds, of nearer ones the bucket of the flow
 * table, and the TCB. `hash` keeps what is known of frames between the two. */
static void prefetch(const struct ix_shard *shard, uint32_t i, uint32_t n, uint64_t *hash)
{
    const struct ix_link *link = shard->link;
    if (i + FRAME_AHEAD < n)
        prefetch_frame(link, &shard->rx[i + FRAME_AHEAD]);
    if (shard->tcp.in_use < IX_MANY_FLOWS)
        return;
    if (i + BUCKET_AHEAD < n) {
        const struct ix_desc *desc = &shard->rx[i + BUCKET_AHEAD];
        bool sound = desc->addr + desc->len <= link->umem_bytes && desc->addr < link->umem_bytes;
        hash[(i + BUCKET_AHEAD) % FRAME_AHEAD] =
            sound ? ix_tcp_expect(&shard->tcp, ix_link_ptr(link, desc->addr), desc->len) : 0;
    }
    if (i + TCB_AHEAD < n)
        ix_tcp_prefetch(&shard->tcp, hash[(i + TCB_AHEAD) % FRAME_AHEAD]);
}

/* 4 and 6. What has arrived, through the stack. */
static uint32_t receive(struct ix_shard *shard)
{
    struct ix_link *link = shard->link;
    uint32_t n = link->ops->rx_burst(link, shard->rx, shard->batch);
    refill(shard, n);
    uint64_t hash[FRAME_AHEAD] = {0};
    for (uint32_t i = 0; i < IX_MIN(n, (uint32_t)FRAME_AHEAD); i++)
        prefetch_frame(link, &shard->rx[i]);
    for (uint32_t i = 0; i < n; i++) {
        struct ix_desc *desc = &shard->rx[i];
        prefetch(shard, i, n, hash);
        uint32_t frame = ix_frame_of(&shard->frames, desc->addr);
        if (desc->addr >= link->umem_bytes || !ix_frame_from_rx(&shard->frames, frame))
            continue;
        struct ix_packet pkt; /* not zeroed for each frame: the layers fill in what they find */
        pkt.data = ix_link_ptr(link, desc->addr);
        pkt.bytes = desc->len;
        pkt.frame = frame;
        pkt.flags = desc->flags;
        shard->counters.rx_frames++;
        shard->counters.rx_bytes += desc->len;
        if (input_one(shard, &pkt) == IX_VERDICT_DROP)
            ix_frame_free(&shard->frames, frame);
    }
    shard->stats.batch_hist[n]++;
    return n;
}

/* 7. One pass over the flows that have something to send. */
static void output(struct ix_shard *shard)
{
    struct ix_tcp *tcp = &shard->tcp;
    uint32_t last = tcp->output.tail;
    while (tcp->output.head != IX_NONE && ix_net_tx_room(&shard->net)) {
        uint32_t flow = tcp->output.head;
        struct ix_tcb *tcb = &tcp->flows[flow];
        tcp->output.head = tcb->out_next;
        if (tcp->output.head == IX_NONE)
            tcp->output.tail = IX_NONE;
        tcb->flags &= ~IX_TF_ON_OUTPUT;
        if (!ix_tcp_output(tcp, tcb))
            ix_tcp_want_output(tcp, tcb); /* goes on in the next cycle */
        ix_tcp_release(tcp, tcb);
        if (flow == last)
            break;
    }
}

/* 9. Events. A flow that finds the array full stays first in line. */
static void deliver(struct ix_shard *shard)
{
    struct ix_tcp *tcp = &shard->tcp;
    uint32_t last = tcp->events.tail;
    if (shard->timers_due)
        ix_shard_deliver_timers(shard);
    while (tcp->events.head != IX_NONE) {
        uint32_t flow = tcp->events.head;
        struct ix_tcb *tcb = &tcp->flows[flow];
        if (!ix_tcp_deliver(tcp, tcb)) {
            shard->counters.events_full++;
            return;
        }
        tcp->events.head = tcb->ev_next;
        if (tcp->events.head == IX_NONE)
            tcp->events.tail = IX_NONE;
        tcb->flags &= ~IX_TF_ON_EVENTS;
        ix_tcp_release(tcp, tcb);
        if (flow == last)
            break;
    }
}

/* 8. At most one wakeup of the kernel. */
static void wake(struct ix_shard *shard, uint32_t sent, uint32_t received)
{
    uint32_t what = (sent || shard->tx_pending ? IX_WAKE_TX : 0) | (received ? 0 : IX_WAKE_RX);
    int err = shard->link->ops->wakeup(shard->link, what);
    if (err < 0)
        shard->counters.wakeup_errors++;
    else
        shard->counters.syscalls += (uint32_t)err;
    shard->tx_pending = shard->net.tx_tail != shard->net.tx_head;
}

static void begin(struct ix_shard *shard, uint64_t now_ns)
{
    if (now_ns > shard->now_ns) /* a clock that goes back stands still */
        shard->now_ns = now_ns;
    shard->net.now_ns = shard->tcp.now_ns = shard->now_ns;
    shard->tcp.now_ms = (uint32_t)(shard->now_ns / 1000000);
    shard->tcp.now_us = (uint32_t)(shard->now_ns / 1000);
    if (IX_UNLIKELY(shard->now_ns >= shard->net.pmtu.next_ns))
        ix_pmtu_age(&shard->net);
    if (IX_UNLIKELY(shard->now_ns >= shard->net.reass.next_ns))
        ix_reass_expire(&shard->net);
    if (IX_UNLIKELY(shard->now_ns >= shard->net.nd_doubt_ns))
        ix_nd_settle(&shard->net);
    shard->io.n_events = 0;
    shard->counters.cycles++;
}

int ix_shard_poll(struct ix_shard *shard, uint64_t now_ns)
{
    begin(shard, now_ns);
    if (IX_UNLIKELY(shard->news.head != __atomic_load_n(&shard->news.tail, __ATOMIC_ACQUIRE)))
        ix_shard_take_news(shard);
    else if (IX_UNLIKELY(shard->abort_left))
        ix_shard_abort_some(shard);
    uint32_t work = reclaim(shard);
    uint32_t n_calls = ix_shard_call_count(shard);
    work += n_calls;
    if (n_calls)
        ix_shard_run_calls(shard, n_calls);
    work += run_timers(shard);
    ix_tcp_relieve(&shard->tcp);
    uint32_t received = receive(shard);
    output(shard);
    uint32_t sent = ix_net_flush(&shard->net);
    if (sent) {
        shard->tx_out += sent;
        shard->tx_moved_ns = shard->now_ns;
    }
    wake(shard, sent, received);
    deliver(shard);
    uint32_t events = shard->io.n_events;
    shard->io.shared->n_events = events;
    shard->counters.events += events;
    if (work + received + sent + events == 0)
        shard->counters.cycles_idle++;
    if (shard->counters.cycles % STATS_EVERY == 0)
        ix_shard_update_stats(shard);
    return (int)events;
}

/* Nothing else says that a sending is over, and what one wakeup left on the TX ring waits for the
 * next: a look soon after frames have moved, and ever later ones if they don't. */
static uint64_t next_reclaim_ns(const struct ix_shard *shard, uint64_t now_ns)
{
    if (shard->tx_out == 0)
        return UINT64_MAX;
    uint64_t still_ns = now_ns > shard->tx_moved_ns ? now_ns - shard->tx_moved_ns : 0;
    return now_ns + IX_MIN(still_ns / 4, (uint64_t)RECLAIM_MAX_NS);
}

uint64_t ix_shard_next_deadline(struct ix_shard *shard, uint64_t now_ns)
{
    /* With TX or the pool exhausted nothing leaves before something completes: no need to spin. */
    bool stuck = shard->tx_out && (shard->net.tx_head != shard->net.tx_tail ||
                                   shard->frames.count[IX_FRAME_FREE] == 0);
    bool output = shard->tcp.output.head != IX_NONE || shard->net.tx_head != shard->net.tx_tail;
    if ((output && !stuck) || shard->abort_left || shard->tcp.events.head != IX_NONE ||
        shard->timers_due ||
        ix_shard_call_count(shard) ||
        shard->news.head != __atomic_load_n(&shard->news.tail, __ATOMIC_ACQUIRE))
        return now_ns;
    uint64_t timer_ns = ix_wheel_next_ns(&shard->wheel);
    uint64_t reclaim_ns = next_reclaim_ns(shard, now_ns);
    uint64_t net_ns = IX_MIN(shard->net.reass.next_ns, shard->net.nd_doubt_ns);
    net_ns = IX_MIN(net_ns, ix_tcp_relief_ns(&shard->tcp));
    return IX_MIN(IX_MIN(timer_ns, reclaim_ns), net_ns);
}
