/* What a connection does when time passes and nothing happens. */
#include "tcp/tcp.h"

enum {
    FIN_WAIT_2_MS = 60000, /* Linux: tcp_fin_timeout */
    SYN_RETRIES = 6,    /* Linux: tcp_syn_retries */
    SYNACK_RETRIES = 5, /* Linux: tcp_synack_retries */
    DATA_RETRIES = 15,  /* RFC 9293 3.8.3: R2 at least 100 s; Linux: tcp_retries2 */
    KEEPALIVE_INTERVAL_MS = 75000, /* Linux: tcp_keepalive_intvl */
    KEEPALIVE_PROBES = 9,
    PORT_TRIES = 16,      /* outgoing ports tried when the NIC's hash is unknown */
    PORT_TRY_US = 100000, /* ... for so long each */
    OVERRIDE_US = 500000, /* RFC 9293 3.8.6.2.1 (4): 0.1 to 1 s */
};

/* The NIC's spreading is unknown: the answer to this SYN may have gone to another shard's queue. */
static bool port_in_doubt(const struct ix_tcp *tcp, const struct ix_tcb *tcb)
{
    return tcb->state == IX_TCP_SYN_SENT && tcp->cfg->shard_count > 1 &&
           tcp->cfg->rss_key_bytes == 0 &&
           tcb->key.local_port >= tcp->cfg->port_lo && tcb->key.local_port <= tcp->cfg->port_hi;
}

uint32_t ix_tcp_rto_us(const struct ix_tcb *tcb)
{
    uint64_t rto_us = (uint64_t)tcb->rto_us << IX_MIN(tcb->retries, 10); /* RFC 6298 (5.5) */
    return (uint32_t)IX_MIN(rto_us, (uint64_t)IX_TCP_RTO_MAX_US);
}

/* How long one port is tried. If none of the quick tries was answered it is not the ports: from
 * then on as long as any SYN. */
static uint32_t port_try_us(const struct ix_tcb *tcb)
{
    if (tcb->retries < PORT_TRIES)
        return PORT_TRY_US;
    uint64_t wait_us = (uint64_t)tcb->rto_us << IX_MIN(tcb->retries - PORT_TRIES, 10);
    return (uint32_t)IX_MIN(wait_us, (uint64_t)IX_TCP_RTO_MAX_US);
}

static void set_rtx(struct ix_tcp *tcp, struct ix_tcb *tcb, uint8_t kind, uint32_t wait_us)
{
    tcb->rtx_kind = kind;
    ix_wheel_set(tcp->wheel, ix_tcb_timer(tcp, tcb, IX_TIMER_RTX), tcp->now_ns + wait_us * 1000ull);
}

void ix_tcp_arm_after_ack(struct ix_tcp *tcp, struct ix_tcb *tcb, uint32_t reorder_us)
{
    uint32_t probe_us = reorder_us ? 0 : ix_tlp_wait_us(tcb);
    if (reorder_us)
        set_rtx(tcp, tcb, IX_RTX_REORDER, reorder_us);
    else if (probe_us)
        set_rtx(tcp, tcb, IX_RTX_PROBE, probe_us);
    else
        ix_tcp_arm_rtx(tcp, tcb);
}

void ix_tcp_arm_after_new(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    bool armed = ix_wheel_armed(tcp->wheel, ix_tcb_timer(tcp, tcb, IX_TIMER_RTX)) &&
                 !(tcb->flags & IX_TF_PERSIST); /* else for what waited, not for what has left */
    tcb->flags &= ~IX_TF_PERSIST;
    if (armed && tcb->rtx_kind == IX_RTX_REORDER)
        return;
    uint32_t probe_us = ix_tlp_wait_us(tcb);
    if (probe_us)
        set_rtx(tcp, tcb, IX_RTX_PROBE, probe_us);
    else if (!armed)
        ix_tcp_arm_rtx(tcp, tcb);
}

void ix_tcp_arm_rtx(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    uint32_t wait_us =
        IX_UNLIKELY(port_in_doubt(tcp, tcb)) ? port_try_us(tcb) : ix_tcp_rto_us(tcb);
    if (tcb->flags & IX_TF_PERSIST && tcb->snd_wnd) /* no probe: data that waits for company */
        wait_us = IX_MIN(wait_us, (uint32_t)OVERRIDE_US);
    if (IX_UNLIKELY(tcb->user_timeout_ms && tcb->retries)) { /* not beyond the user's patience */
        uint32_t gone_ms = tcp->now_ms - tcb->rtx_start_ms;
        uint32_t left_ms = tcb->user_timeout_ms > gone_ms ? tcb->user_timeout_ms - gone_ms : 1;
        wait_us = (uint32_t)IX_MIN(wait_us, left_ms * 1000ull);
    }
    set_rtx(tcp, tcb, IX_RTX_TIMEOUT, wait_us);
}

void ix_tcp_await_fin(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    uint32_t wait_ms = tcb->fin_wait_ms ? tcb->fin_wait_ms : (uint32_t)FIN_WAIT_2_MS;
    ix_wheel_set(tcp->wheel, ix_tcb_timer(tcp, tcb, IX_TIMER_KEEP),
                 tcp->now_ns + wait_ms * 1000000ull);
}

static void give_up(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    tcp->counters->tcp_timeouts++;
    if (ix_tcb_synchronized(tcb))
        ix_tcp_send_reset(tcp, tcb);
    ix_tcp_finish(tcp, tcb, tcb->soft_error ? -(int32_t)tcb->soft_error : -IX_ETIMEDOUT);
}

/* Moves a connection in SYN_SENT to another local port. */
static void next_port(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    uint16_t port = ix_tcp_choose_port(tcp, &tcb->key);
    uint32_t flow = ix_tcb_index(tcp, tcb);
    if (port == 0)
        return;
    ix_flowtab_del(&tcp->table, tcb->hash, flow);
    tcb->key.local_port = port;
    tcb->hash = ix_tcp_hash(tcp, &tcb->key);
    int err = ix_flowtab_add(&tcp->table, tcb->hash, flow);
    IX_ASSERT(err == 0); /* an entry was just freed */
    ix_tcp_set_iss(tcb, ix_tcp_isn(tcp, &tcb->key));
    ix_rec_drop(tcp, tcb);
    tcb->rcv_adv = 0;
}

/* Has the peer been silent for longer than the connection allows? (RFC 9293 3.8.3, RFC 5482) */
static bool out_of_patience(const struct ix_tcp *tcp, struct ix_tcb *tcb, uint32_t max_retries)
{
    if (tcb->retries == 0)
        tcb->rtx_start_ms = tcp->now_ms - tcb->rto_us / 1000;
    if (tcb->user_timeout_ms)
        return tcp->now_ms - tcb->rtx_start_ms >= tcb->user_timeout_ms;
    return tcb->retries >= max_retries;
}

static void syn_timeout(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    bool active = tcb->state == IX_TCP_SYN_SENT, in_doubt = port_in_doubt(tcp, tcb);
    uint32_t retries = tcb->syn_retries ? tcb->syn_retries : SYN_RETRIES;
    uint32_t max = active ? retries + (in_doubt ? PORT_TRIES : 0) : SYNACK_RETRIES;
    if (active && ix_net_unreachable(tcp->net, tcb->key.family, &tcb->key.peer)) {
        ix_tcp_finish(tcp, tcb, -IX_EHOSTUNREACH);
        return;
    }
    if (out_of_patience(tcp, tcb, max)) {
        give_up(tcp, tcb);
        return;
    }
    if (in_doubt)
        next_port(tcp, tcb);
    tcb->retries++;
    tcb->flags |= IX_TF_SYN_DUE;
    tcb->last.again = true; /* Karn: its answer is no measure (RFC 6298 section 3) */
    tcb->retransmits++;
    tcp->counters->tcp_rexmit++;
    ix_tcp_arm_rtx(tcp, tcb);
    ix_tcp_want_output(tcp, tcb);
}

/* A segment that the peer must answer: one before what it expects (RFC 9293 3.8.4 for
 * keepalives; 3.8.6.1 asks for a byte of new data to probe a window, Linux and BSD elicit the same
 * answer without one). */
static void probe(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    /* If it can't be sent now the timer brings the next one. */
    (void)ix_tcp_send_segment(tcp, tcb, tcb->snd_una - 1, 0, IX_TCP_ACK, false);
}

/* A peer that answers may keep its window closed as long as it likes (RFC 9293 3.8.6.1), but not an
 * application that has closed and gone: nobody would ever end that. */
static bool probes_exhausted(const struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    if (tcb->unanswered == 0)
        tcb->rtx_start_ms = tcp->now_ms;
    /* One probe without an answer is no silence yet: Linux limits its answers to two a second. */
    if (tcb->user_timeout_ms && tcb->unanswered > 1 &&
        tcp->now_ms - tcb->rtx_start_ms >= tcb->user_timeout_ms)
        return true;
    return tcb->unanswered >= DATA_RETRIES ||
           (tcb->flags & IX_TF_CLOSED_RD && tcb->retries >= DATA_RETRIES);
}

static void persist_timeout(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    if (tcb->snd_wnd == 0 && probes_exhausted(tcp, tcb)) {
        give_up(tcp, tcb);
        return;
    }
    tcp->counters->tcp_probes++;
    if (tcb->snd_wnd) { /* smaller than was worth filling: fill it now (RFC 9293 3.8.6.2.1 (4)) */
        tcb->retries = 0; /* what goes now is sent for the first time */
        tcb->max_wnd = tcb->snd_wnd;
        tcb->flags &= ~(IX_TF_MORE | IX_TF_NO_PUSH | IX_TF_PERSIST);
        ix_tcp_want_output(tcp, tcb);
    } else {
        tcb->retries++; /* probes back off as retransmissions do (RFC 9293 3.8.6.1) */
        tcb->unanswered++;
        probe(tcp, tcb);
    }
    ix_tcp_arm_rtx(tcp, tcb);
}

static void data_timeout(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    bool closed_window = tcb->snd_wnd == 0; /* the peer took its window back with data in flight */
    if (closed_window ? probes_exhausted(tcp, tcb) : out_of_patience(tcp, tcb, DATA_RETRIES)) {
        give_up(tcp, tcb);
        return;
    }
    tcb->unanswered += closed_window;
    tcp->counters->tcp_rto++;
    ix_recovery_timeout(tcp, tcb);
    tcb->retries++;
    tcb->flags &= ~IX_TF_MORE;
    ix_tcp_black_hole(tcp, tcb);
    if (closed_window) {
        tcb->flags &= ~IX_TF_REXMIT_ONE;
        probe(tcp, tcb);
    }
    ix_tcp_arm_rtx(tcp, tcb);
    ix_tcp_want_output(tcp, tcb);
}

/* Nothing went out: there was no route, or the neighbour was unknown. */
static void unsent_timeout(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    if (out_of_patience(tcp, tcb, DATA_RETRIES)) {
        give_up(tcp, tcb);
        return;
    }
    tcb->retries++;
    ix_tcp_want_output(tcp, tcb);
}

/* Tail loss probe: RFC 8985 7.3. The timeout follows. */
static void probe_fired(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    ix_tcp_arm_rtx(tcp, tcb);
    if (ix_tcb_flight(tcb) == 0)
        return;
    tcb->rack |= IX_RACK_TLP_DUE;
    tcb->flags &= ~IX_TF_MORE;
    ix_tcp_want_output(tcp, tcb);
}

static void rtx_fired(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    uint8_t kind = tcb->rtx_kind;
    tcb->rtx_kind = IX_RTX_TIMEOUT;
    if (kind == IX_RTX_REORDER && ix_tcb_flight(tcb)) {
        ix_recovery_look(tcp, tcb);
        return;
    }
    if (kind == IX_RTX_PROBE) {
        probe_fired(tcp, tcb);
        return;
    }
    if (tcb->state == IX_TCP_SYN_SENT || tcb->state == IX_TCP_SYN_RCVD)
        syn_timeout(tcp, tcb);
    else if (tcb->flags & IX_TF_PERSIST)
        persist_timeout(tcp, tcb);
    else if (ix_tcb_flight(tcb))
        data_timeout(tcp, tcb);
    else
        unsent_timeout(tcp, tcb);
}

static void ack_fired(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    int32_t wait_ms = (int32_t)(tcb->ack_due_ms - tcp->now_ms);
    if (tcb->unacked_segs && wait_ms > 0)
        ix_wheel_set(tcp->wheel, ix_tcb_timer(tcp, tcb, IX_TIMER_ACK),
                     tcp->now_ns + (uint32_t)wait_ms * 1000000ull);
    if (IX_UNLIKELY(tcb->flags & IX_TF_PACE_HELD))
        ix_pace_fired(tcp, tcb);
    if (tcb->unacked_segs == 0 || wait_ms > 0)
        return; /* it left with data meanwhile, or is not due yet */
    tcp->counters->tcp_delayed_acks++;
    ix_tcp_ack_now(tcp, tcb);
}

static void keepalive_fired(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    uint32_t idle_ms = tcp->now_ms - tcb->last_rx_ms, wait_ms = tcb->keepalive_ms;
    uint32_t most = tcb->keepalive_probes ? tcb->keepalive_probes : (uint32_t)KEEPALIVE_PROBES;
    uint32_t interval_ms = tcb->keepalive_interval_ms;
    if (wait_ms == 0)
        return;
    if (!interval_ms)
        interval_ms = IX_MIN((uint32_t)KEEPALIVE_INTERVAL_MS, wait_ms);
    /* Counted from when the peer was last heard of: its answer to a probe begins a new idle time,
     * and the timer must not come later than that ends. */
    uint64_t due_ms = tcb->keepalive_ms + (uint64_t)tcb->retries * interval_ms;
    /* What probes a window shows as well that the peer is there, and has the count to itself. */
    bool idle = ix_tcb_flight(tcb) == 0 && !(tcb->flags & IX_TF_PERSIST);
    if (idle && idle_ms >= due_ms) {
        bool patience_over = tcb->user_timeout_ms
                                 ? idle_ms >= tcb->user_timeout_ms
                                 : tcb->retries >= most;
        if (tcb->retries && patience_over) {
            give_up(tcp, tcb);
            return;
        }
        if (tcb->retries++ == 0)
            tcb->rtx_start_ms = tcp->now_ms; /* of data that is sent before the answer comes, too */
        tcp->counters->tcp_keepalives++;
        probe(tcp, tcb);
        wait_ms = IX_MIN(interval_ms, wait_ms);
    } else if (idle) {
        wait_ms = (uint32_t)IX_MIN(due_ms - idle_ms, (uint64_t)wait_ms);
    } else if (idle_ms < wait_ms) {
        wait_ms -= idle_ms;
    }
    ix_wheel_set(tcp->wheel, ix_tcb_timer(tcp, tcb, IX_TIMER_KEEP),
                 tcp->now_ns + wait_ms * 1000000ull);
}

static void linger_over(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    tcp->counters->tcp_linger_resets++;
    ix_tcp_send_reset(tcp, tcb);
    ix_tcp_finish(tcp, tcb, -IX_ETIMEDOUT);
}

void ix_tcp_timer_fired(struct ix_tcp *tcp, uint32_t timer)
{
    struct ix_tcb *tcb = &tcp->flows[timer / IX_TIMERS_PER_FLOW];
    IX_ASSERT(tcb->hash && tcb->state != IX_TCP_CLOSED);
    switch (timer % IX_TIMERS_PER_FLOW) {
    case IX_TIMER_RTX:
        rtx_fired(tcp, tcb);
        break;
    case IX_TIMER_ACK:
        ack_fired(tcp, tcb);
        break;
    default:
        if (tcb->state == IX_TCP_TIME_WAIT)
            ix_tcp_finish(tcp, tcb, 0);
        else if (tcb->state == IX_TCP_FIN_WAIT_2 && tcb->flags & IX_TF_CLOSED_RD)
            ix_tcp_finish(tcp, tcb, 0); /* the peer never closed; the application has long gone */
        else if (ix_tcb_lingers(tcb))
            linger_over(tcp, tcb);
        else
            keepalive_fired(tcp, tcb);
    }
}
