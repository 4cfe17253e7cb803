/* TCBs: where they come from, how they are found, and how they end. */
#include "tcp/tcp.h"

/* Needed only by flows that lose segments: one for every eight is plenty. */
static uint32_t recovery_count(const struct ix_config *cfg)
{
    return IX_MAX(cfg->max_flows / 8, 64u);
}

/* What leaves in different cycles before it is acknowledged. */
static uint32_t rec_count(const struct ix_config *cfg)
{
    return IX_MIN(IX_MAX(4 * cfg->pool_frames, cfg->max_flows / 8), (uint32_t)IX_TX_RECORDS_MAX);
}

static size_t align_line(size_t bytes)
{
    return (bytes + IX_CACHE_LINE - 1) & ~(size_t)(IX_CACHE_LINE - 1);
}

size_t ix_tcp_arena_bytes(const struct ix_config *cfg)
{
    return align_line(sizeof(struct ix_tcb) * cfg->max_flows) +
           align_line(ix_flowtab_bytes(cfg->max_flows)) +
           align_line(sizeof(struct ix_extent) * cfg->max_extents) +
           align_line(sizeof(struct ix_tx_rec) * rec_count(cfg)) +
           align_line(sizeof(struct ix_recovery) * recovery_count(cfg));
}

static void *take(uint8_t **memory, size_t bytes)
{
    void *taken = *memory;
    *memory += align_line(bytes);
    return taken;
}

static void init_keys(struct ix_tcp *tcp, const struct ix_config *cfg)
{
    /* One independent key a purpose, derived from the configuration's secret. */
    struct ix_key *keys[] = {&tcp->flow_key, &tcp->isn_key, &tcp->port_key, &tcp->ts_key};
    for (uint32_t i = 0; i < IX_ARRAY_LEN(keys); i++)
        *keys[i] = (struct ix_key){{cfg->secret[2 * i], cfg->secret[2 * i + 1]}};
    static const char cookie[2] = {'c', 'C'};
    for (uint32_t i = 0; i < 2; i++) /* no flow key is one byte long */
        tcp->cookie_key.k[i] = ix_siphash(&tcp->isn_key, &cookie[i], 1);
}

void ix_tcp_init(struct ix_tcp *tcp, const struct ix_config *cfg, void *memory)
{
    uint8_t *at = memory;
    tcp->cfg = cfg;
    tcp->max_flows = cfg->max_flows;
    tcp->flows = take(&at, sizeof(struct ix_tcb) * cfg->max_flows);
    ix_flowtab_init(&tcp->table, take(&at, ix_flowtab_bytes(cfg->max_flows)), cfg->max_flows);
    tcp->max_extents = cfg->max_extents;
    tcp->extents = take(&at, sizeof(struct ix_extent) * cfg->max_extents);
    tcp->max_recs = rec_count(cfg);
    tcp->recs = take(&at, sizeof(struct ix_tx_rec) * tcp->max_recs);
    tcp->max_recoveries = recovery_count(cfg);
    tcp->recoveries = take(&at, sizeof(struct ix_recovery) * tcp->max_recoveries);
    for (uint32_t i = 0; i < cfg->max_flows; i++) {
        tcp->flows[i].generation = 1;
        tcp->flows[i].index = i;
        tcp->flows[i].out_next = i + 1 < cfg->max_flows ? i + 1 : IX_NONE;
    }
    for (uint32_t i = 0; i < cfg->max_extents; i++)
        tcp->extents[i].next = i + 1 < cfg->max_extents ? i + 1 : IX_NONE;
    for (uint32_t i = 0; i < tcp->max_recs; i++)
        tcp->recs[i].next = i + 1 < tcp->max_recs ? i + 1 : IX_NONE;
    for (uint32_t i = 0; i < tcp->max_recoveries; i++)
        tcp->recoveries[i].next = i + 1 < tcp->max_recoveries ? i + 1 : IX_NONE;
    tcp->output = tcp->events = tcp->tw = (struct ix_flow_list){IX_NONE, IX_NONE};
    init_keys(tcp, cfg);
}

inline struct ix_tcb *ix_tcp_find(struct ix_tcp *tcp, const struct ix_flow_key *key, uint64_t hash)
{
    struct ix_flow_iter it = ix_flowtab_iter(&tcp->table, hash);
    uint32_t flow;
    while ((flow = ix_flowtab_next(&tcp->table, &it)) != IX_NONE)
        if (IX_LIKELY(ix_flow_key_equal(&tcp->flows[flow].key, key)))
            return &tcp->flows[flow];
    return NULL;
}

uint64_t ix_tcp_expect(const struct ix_tcp *tcp, const uint8_t *frame, uint32_t bytes)
{
    const uint8_t *ip = frame + IX_ETH_BYTES, *ports = ip + IX_IPV4_BYTES;
    if (bytes < IX_ETH_BYTES + IX_IPV4_BYTES + IX_TCP_BYTES || ip[0] != 0x45 ||
        ip[IX_IPV4_PROTO_AT] != IX_PROTO_TCP)
        return 0;
    struct ix_flow_key key = {
        .peer_port = ix_load_be16(ports), .local_port = ix_load_be16(ports + 2), .family = 4};
    __builtin_memcpy(&key.peer.v4, ip + IX_IPV4_SRC_AT, 4);
    __builtin_memcpy(&key.local.v4, ip + IX_IPV4_DST_AT, 4);
    uint64_t hash = ix_tcp_hash(tcp, &key);
    __builtin_prefetch(&tcp->table.buckets[(uint32_t)hash & tcp->table.bucket_mask]);
    return hash;
}

void ix_tcp_prefetch(const struct ix_tcp *tcp, uint64_t hash)
{
    struct ix_flow_iter it = ix_flowtab_iter(&tcp->table, hash);
    uint32_t flow = hash ? ix_flowtab_next(&tcp->table, &it) : IX_NONE;
    if (flow != IX_NONE)
        ix_tcp_prefetch_flow(tcp, flow);
}

void ix_tcp_prefetch_flow(const struct ix_tcp *tcp, uint32_t flow)
{
    const uint8_t *tcb = (const uint8_t *)&tcp->flows[flow];
    for (uint32_t at = 0; at < sizeof(struct ix_tcb); at += IX_CACHE_LINE)
        __builtin_prefetch(tcb + at);
    __builtin_prefetch(&tcp->wheel->timers[flow * IX_TIMERS_PER_FLOW]);
}

struct ix_tcb *ix_tcp_of_handle(struct ix_tcp *tcp, uint64_t handle)
{
    uint32_t index = ix_handle_index(handle);
    if (IX_UNLIKELY(ix_handle_kind(handle) != 0 || index >= tcp->max_flows))
        return NULL;
    struct ix_tcb *tcb = &tcp->flows[index];
    if (IX_UNLIKELY(tcb->generation != ix_handle_generation(handle) ||
                    (tcb->flags & IX_TF_DETACHED) || tcb->hash == 0))
        return NULL;
    return tcb;
}

static inline uint32_t *next_of(struct ix_tcb *tcb, size_t next_offset)
{
    return (uint32_t *)(void *)((uint8_t *)tcb + next_offset);
}

static inline void list_append(struct ix_tcp *tcp, struct ix_flow_list *list, struct ix_tcb *tcb,
                               size_t next_offset)
{
    uint32_t flow = ix_tcb_index(tcp, tcb);
    *next_of(tcb, next_offset) = IX_NONE;
    if (list->tail == IX_NONE)
        list->head = flow;
    else
        *next_of(&tcp->flows[list->tail], next_offset) = flow;
    list->tail = flow;
}

void ix_tcp_want_output(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    if (tcb->flags & IX_TF_ON_OUTPUT)
        return;
    tcb->flags |= IX_TF_ON_OUTPUT;
    list_append(tcp, &tcp->output, tcb, offsetof(struct ix_tcb, out_next));
}

void ix_tcp_want_event(struct ix_tcp *tcp, struct ix_tcb *tcb, uint32_t flags)
{
    tcb->flags |= flags;
    if (tcb->flags & IX_TF_ON_EVENTS)
        return;
    tcb->flags |= IX_TF_ON_EVENTS;
    list_append(tcp, &tcp->events, tcb, offsetof(struct ix_tcb, ev_next));
}

/* Does nothing but the timer wait for it? */
static bool is_idle(const struct ix_tcb *tcb)
{
    return tcb->flags & IX_TF_DETACHED && !tcb->pinned &&
           !(tcb->flags & (IX_TF_ON_OUTPUT | IX_TF_ON_EVENTS));
}

/* The list has those alone that may be given up: so the first one is found at once. */
static void tw_append(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    if (tcb->flags & IX_TF_ON_TW || !is_idle(tcb))
        return;
    tcb->tw_prev = tcp->tw.tail;
    list_append(tcp, &tcp->tw, tcb, offsetof(struct ix_tcb, tw_next));
    tcb->flags |= IX_TF_ON_TW;
}

static void tw_remove(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    if (!(tcb->flags & IX_TF_ON_TW))
        return;
    if (tcb->tw_prev == IX_NONE)
        tcp->tw.head = tcb->tw_next;
    else
        tcp->flows[tcb->tw_prev].tw_next = tcb->tw_next;
    if (tcb->tw_next == IX_NONE)
        tcp->tw.tail = tcb->tw_prev;
    else
        tcp->flows[tcb->tw_next].tw_prev = tcb->tw_prev;
    tcb->flags &= ~IX_TF_ON_TW;
}

/* The table is full: the connection that has waited longest in TIME_WAIT makes room, as Linux's
 * does. One that has to answer something meanwhile leaves the list until it has. */
static bool reclaim_time_wait(struct ix_tcp *tcp)
{
    while (tcp->tw.head != IX_NONE) {
        struct ix_tcb *tcb = &tcp->flows[tcp->tw.head];
        if (is_idle(tcb)) {
            ix_tcp_finish(tcp, tcb, 0);
            return tcp->free_head != IX_NONE;
        }
        tw_remove(tcp, tcb);
    }
    return false;
}

struct ix_tcb *ix_tcp_new(struct ix_tcp *tcp, const struct ix_flow_key *key, uint64_t hash)
{
    if (tcp->free_head == IX_NONE && !reclaim_time_wait(tcp))
        return NULL;
    uint32_t flow = tcp->free_head;
    struct ix_tcb *tcb = &tcp->flows[flow];
    if (ix_flowtab_add(&tcp->table, hash, flow) < 0)
        return NULL;
    tcp->free_head = tcb->out_next;
    tcp->in_use++;
    *tcb = (struct ix_tcb){
        .key = *key,
        .generation = tcb->generation,
        .index = flow,
        .hash = hash,
        .rcvbuf_bytes = tcp->cfg->rcvbuf_bytes,
        .drs_bytes = ix_cc_initial_window(IX_MSS_DEFAULT),
        .wait_head = IX_NONE,
        .wait_tail = IX_NONE,
        .ooo_head = IX_NONE,
        .q_head = IX_NONE,
        .q_tail = IX_NONE,
        .cursor = {.extent = IX_NONE},
        .rec_head = IX_NONE,
        .rec_tail = IX_NONE,
        .recovery = IX_NONE,
        .reo_mult = 1,
        .listener = IX_NONE,
        .mss = IX_MSS_DEFAULT,
        .rto_us = 1000000, /* RFC 6298 (2.1) */
        .ssthresh = UINT32_MAX,
        .last_rx_ms = tcp->now_ms,
        .ack_due_ms = tcp->now_ms + INT32_MAX, /* no data yet */
    };
    ix_cc_choose(tcb, tcp->cfg->congestion ? tcp->cfg->congestion : IX_CC_CUBIC);
    ix_pace_choose(tcb, tcp->cfg->pacing ? IX_PACE_BY_WINDOW : 0);
    return tcb;
}

void ix_tcp_leave_backlog(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    if (tcb->listener == IX_NONE)
        return;
    struct ix_listener *listener = &tcp->listeners[tcb->listener];
    listener->pending--;
    listener->complete -= tcb->state != IX_TCP_SYN_RCVD;
    tcb->listener = IX_NONE;
}

void ix_tcp_leave_listener(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    if (tcb->accepted_by)
        tcp->listeners[tcb->accepted_by - 1].connections--;
    tcb->accepted_by = 0;
}

static void cancel_timers(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    for (uint32_t kind = 0; kind < IX_TIMERS_PER_FLOW; kind++)
        ix_wheel_cancel(tcp->wheel, ix_tcb_timer(tcp, tcb, kind));
}

/* What the application has still to be told when the connection ends. */
static void announce_end(struct ix_tcp *tcp, struct ix_tcb *tcb, int32_t status)
{
    if (tcb->flags & IX_TF_DETACHED)
        return;
    bool unknown = (tcb->flags & IX_TF_PASSIVE) && !(tcb->flags & IX_TF_KNOCKED);
    tcb->dead_status = status;
    if (unknown) /* the application never heard of it */
        tcb->flags = (tcb->flags & ~IX_TF_EVENTS) | IX_TF_DETACHED;
    else if (status && !(tcb->flags & (IX_TF_ACCEPTED | IX_TF_KNOCKED))) {
        tcb->flags &= ~IX_TF_EVENTS; /* CONNECT failed, and that is all there is to say */
        ix_tcp_want_event(tcp, tcb, IX_TF_EV_CONNECTED);
    } else /* after a CONNECTED that still waits */
        ix_tcp_want_event(tcp, tcb, IX_TF_EV_DEAD);
}

void ix_tcp_finish(struct ix_tcp *tcp, struct ix_tcb *tcb, int32_t status)
{
    if (tcb->state == IX_TCP_SYN_RCVD)
        tcp->half_open--;
    if (tcb->state != IX_TCP_CLOSED && tcb->state != IX_TCP_TIME_WAIT)
        *(status ? &tcp->counters->tcp_aborted : &tcp->counters->tcp_closed) += 1;
    tcp->time_wait -= tcb->state == IX_TCP_TIME_WAIT;
    tw_remove(tcp, tcb);
    cancel_timers(tcp, tcb);
    ix_tcp_leave_backlog(tcp, tcb);
    ix_tcp_leave_listener(tcp, tcb);
    tcb->state = IX_TCP_CLOSED;
    ix_sendq_drop(tcp, tcb);
    ix_rec_drop(tcp, tcb);
    if (status) {
        /* A reset discards what was not delivered; an orderly end has nothing left or delivers it.
         * The end of the stream goes too, or what came before it would seem to be complete. */
        ix_tcp_drop_queues(tcp, tcb);
        tcb->flags &= ~IX_TF_EV_EOF;
    }
    announce_end(tcp, tcb, status);
    if (tcb->flags & IX_TF_DETACHED)
        ix_tcp_drop_queues(tcp, tcb);
    ix_tcp_release(tcp, tcb);
}

void ix_tcp_enter_time_wait(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    uint64_t wait_ns = (uint64_t)tcp->cfg->time_wait_ms * 1000000;
    if (tcb->state != IX_TCP_TIME_WAIT) {
        tcb->state = IX_TCP_TIME_WAIT;
        tcp->counters->tcp_time_wait++;
        tcp->counters->tcp_closed++;
        cancel_timers(tcp, tcb);
        ix_sendq_drop(tcp, tcb);
        ix_rec_drop(tcp, tcb);
        ix_tcp_leave_listener(tcp, tcb);
        tcp->time_wait++;
        if (!(tcb->flags & IX_TF_DETACHED)) {
            tcb->dead_status = 0;
            ix_tcp_want_event(tcp, tcb, IX_TF_EV_DEAD);
        }
    }
    /* A retransmitted FIN restarts the timer (RFC 9293 3.10.7.4): to the end of the list. */
    tw_remove(tcp, tcb);
    tw_append(tcp, tcb);
    ix_wheel_set(tcp->wheel, ix_tcb_timer(tcp, tcb, IX_TIMER_KEEP), tcp->now_ns + wait_ns);
}

void ix_tcp_release_ended(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    if (tcb->state == IX_TCP_TIME_WAIT)
        tw_append(tcp, tcb);
    if (tcb->state != IX_TCP_CLOSED || tcb->hash == 0 || !is_idle(tcb))
        return;
    uint32_t flow = ix_tcb_index(tcp, tcb);
    IX_ASSERT(tcb->wait_head == IX_NONE && tcb->ooo_head == IX_NONE && tcb->q_head == IX_NONE);
    ix_flowtab_del(&tcp->table, tcb->hash, flow);
    tcb->hash = 0;
    if (++tcb->generation == 0)
        tcb->generation = 1;
    tcb->out_next = tcp->free_head;
    tcp->free_head = flow;
    tcp->in_use--;
}

/* Runs are as long as they can be, and their first frames name the last ones. */
static const char *check_ooo(const struct ix_tcp *tcp, const struct ix_tcb *tcb)
{
    const struct ix_frame *meta = tcp->net->frames->meta;
    uint32_t frames = 0, runs = 0, end = tcb->rcv_nxt, last = IX_NONE, before = IX_NONE;
    for (uint32_t i = tcb->ooo_head; i != IX_NONE; before = i, i = meta[i].next, frames++) {
        if (ix_seq_lt(meta[i].seq, end) || meta[i].owner != IX_FRAME_RX)
            return "tcp: out-of-order frames overlap or are not RX";
        if (meta[i].seq != end || before == IX_NONE) {
            if (before != last)
                return "tcp: a run of out-of-order frames ends elsewhere";
            last = (uint32_t)meta[i].handle;
            runs++;
        }
        end = meta[i].seq + meta[i].bytes;
    }
    if (before != last)
        return "tcp: the last run of out-of-order frames ends elsewhere";
    return frames == tcb->ooo_count && runs == tcb->ooo_runs ? NULL : "tcp: ooo_count is wrong";
}

static const char *check_flow(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    if (tcb != &tcp->flows[tcb->index])
        return "tcp: a flow has another's index";
    if (tcb->hash != ix_tcp_hash(tcp, &tcb->key) || ix_tcp_find(tcp, &tcb->key, tcb->hash) != tcb)
        return "tcp: a flow is not found under its key";
    if (ix_seq_gt(tcb->snd_una, tcb->snd_max))
        return "tcp: snd_una beyond snd_max";
    if (ix_seq_gt(tcb->rcv_nxt, tcb->rcv_adv))
        return "tcp: rcv_nxt beyond the window's right edge";
    uint64_t queued = 0;
    uint32_t extent = tcb->q_head;
    for (; extent != IX_NONE; extent = tcp->extents[extent].next)
        queued += tcp->extents[extent].bytes;
    if (queued != (uint64_t)tcb->queued_bytes + tcb->q_head_off)
        return "tcp: queued_bytes is not the sum of the extents";
    const char *wrong = check_ooo(tcp, tcb);
    if (wrong)
        return wrong;
    if (tcb->state == IX_TCP_CLOSED && !(tcb->flags & (IX_TF_ON_EVENTS | IX_TF_ON_OUTPUT)) &&
        !tcb->pinned)
        return "tcp: a closed flow that nothing waits for";
    if (tcb->flags & IX_TF_ON_TW && tcb->state != IX_TCP_TIME_WAIT)
        return "tcp: a flow on TIME_WAIT's list is in another state";
    if (tcb->state == IX_TCP_TIME_WAIT && is_idle(tcb) && !(tcb->flags & IX_TF_ON_TW))
        return "tcp: a flow in TIME_WAIT that could be given up is not on the list";
    bool outstanding = ix_tcb_flight(tcb) > 0 && tcb->state != IX_TCP_TIME_WAIT;
    if (outstanding && !(tcb->flags & IX_TF_ON_OUTPUT) && tcb->state != IX_TCP_CLOSED &&
        !ix_wheel_armed(tcp->wheel, ix_tcb_timer(tcp, tcb, IX_TIMER_RTX)))
        return "tcp: data outstanding without a retransmission timer";
    return tcb->state == IX_TCP_CLOSED || tcb->state == IX_TCP_TIME_WAIT ? NULL
                                                                        : ix_rec_check(tcp, tcb);
}

const char *ix_tcp_check(struct ix_tcp *tcp)
{
    uint32_t live = 0, time_wait = 0, half_open = 0, recs = 0, recoveries = 0;
    const char *wrong = ix_flowtab_check(&tcp->table);
    for (uint32_t i = 0; i < tcp->max_flows && !wrong; i++) {
        struct ix_tcb *tcb = &tcp->flows[i];
        if (tcb->hash == 0)
            continue;
        live++;
        time_wait += tcb->state == IX_TCP_TIME_WAIT;
        half_open += tcb->state == IX_TCP_SYN_RCVD;
        recs += tcb->rec_count;
        recoveries += tcb->recovery != IX_NONE;
        wrong = check_flow(tcp, tcb);
    }
    if (wrong)
        return wrong;
    if (live != tcp->in_use || tcp->table.flows != live)
        return "tcp: in_use is wrong";
    if (recs != tcp->recs_used || recoveries != tcp->recoveries_used)
        return "tcp: recs_used or recoveries_used is wrong";
    if (time_wait != tcp->time_wait || half_open != tcp->half_open)
        return "tcp: time_wait or half_open is wrong";
    return NULL;
}
