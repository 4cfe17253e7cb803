/* What a flow has to send, decided once a cycle: retransmissions, new data, FIN, ACK.
 *
 * Runs after all input and all calls of the cycle, so that one segment carries everything: the
 * answer to a request carries its ACK, and a burst of arrivals is acknowledged once.
 */
#include "tcp/tcp.h"

static bool timer_armed(struct ix_tcp *tcp, struct ix_tcb *tcb, uint32_t kind)
{
    return ix_wheel_armed(tcp->wheel, ix_tcb_timer(tcp, tcb, kind));
}

static bool send_syn(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    uint8_t flags = IX_TCP_SYN | (tcb->state == IX_TCP_SYN_RCVD ? IX_TCP_ACK : 0);
    flags |= ix_ecn_syn_flags(tcp, tcb);
    if (!ix_tcp_send_segment(tcp, tcb, tcb->iss, 0, flags, false))
        return false;
    tcb->flags &= ~(IX_TF_SYN_DUE | IX_TF_ACK_NOW);
    if (tcb->snd_max == tcb->iss)
        ix_rec_sent(tcp, tcb, tcb->iss + 1);
    if (!timer_armed(tcp, tcb, IX_TIMER_RTX))
        ix_tcp_arm_rtx(tcp, tcb);
    return true;
}

/* Payload that fits beside the options that this segment will carry. */
static uint32_t segment_max(const struct ix_tcb *tcb)
{
    uint32_t mss = ix_tcb_mss(tcb);
    if ((tcb->ooo_head != IX_NONE || tcb->rack & IX_RACK_DSACK_DUE) && tcb->flags & IX_TF_SACK)
        mss -= 4 + 8 * (tcb->flags & IX_TF_TS ? IX_SACK_BLOCKS_TX : IX_SACK_BLOCKS_RX);
    return mss;
}

/* The end of what the peer's window allows. */
static uint32_t window_end(const struct ix_tcb *tcb)
{
    return tcb->snd_una + tcb->snd_wnd;
}

static uint32_t peer_room(const struct ix_tcb *tcb)
{
    uint32_t out = ix_tcb_flight(tcb);
    return tcb->snd_wnd > out ? tcb->snd_wnd - out : 0;
}

static uint32_t unsent_bytes(const struct ix_tcb *tcb)
{
    uint32_t end = ix_tcb_data_end(tcb);
    return ix_seq_lt(tcb->snd_max, end) ? end - tcb->snd_max : 0;
}

/* A run: segments that leave one after the other and that Linux would have given to its device as
 * one packet (GSO). PSH ends a run of two or more, so that receivers that merge segments hand them
 * on then; RFC 9293 3.9.1.2 leaves it open. A segment that is alone is better delayed: it has PSH
 * only where a SENDV ended. */
struct run {
    uint32_t count; /* segments of it that have left */
    uint32_t most;  /* 0: not yet reckoned */
};

/* One more segment of it leaves; more: another of it follows. Is it the last, and not alone? */
static bool ends_run(struct run *run, bool more)
{
    uint32_t count = ++run->count;
    if (more)
        return false;
    run->count = 0;
    return count > 1;
}

/* A place in the records: r begins at `at`; r NULL: behind the last. */
struct place {
    struct ix_tx_rec *r;
    uint32_t at;
    struct run run; /* what was sent again just before it */
};

/* A run that is sent again ends where it ended the first time: as if all were as long as the
 * latest. */
static bool run_ended(const struct ix_tcp *tcp, const struct ix_tcb *tcb, struct run *run,
                      uint32_t at, uint32_t max)
{
    uint32_t off = ix_seq_lt(at, tcb->run_start) ? tcb->run_start - at : at - tcb->run_start;
    if (run->most == 0)
        run->most = ix_pace_run(tcp, tcb, max);
    return off % (run->most * max) == 0;
}

/* Sends again what the record at `place` holds: at most one segment; the FIN counts as one. Moves
 * the place behind it. False if nothing went. room: what may go now, this segment included. */
static bool resend(struct ix_tcp *tcp, struct ix_tcb *tcb, struct place *place, uint32_t room)
{
    struct ix_tx_rec *r = place->r;
    uint32_t at = place->at;
    uint32_t bytes = r->end - at, end = ix_tcb_data_end(tcb);
    uint32_t left = ix_seq_lt(at, end) ? end - at : 0;
    uint32_t max = segment_max(tcb), data = IX_MIN(IX_MIN(bytes, left), max);
    if (ix_seq_gt(at + data, window_end(tcb))) /* the peer took some of it back */
        data = ix_seq_lt(at, window_end(tcb)) ? window_end(tcb) - at : 0;
    bool record = false;
    if (IX_UNLIKELY(tcb->records) && data) {
        uint32_t whole = ix_sendq_record(tcp, tcb, at, data + 1);
        record = whole <= data;
        data = IX_MIN(data, whole);
    }
    bool fin = data == left && data < bytes && (tcb->flags & IX_TF_FIN_SENT);
    bool push = record || (data == bytes && r->pushed) ||
                (data && data == left && !(tcb->flags & IX_TF_NO_PUSH));
    bool more = data < bytes && data < left && data + max <= room;
    more = more && !record && !run_ended(tcp, tcb, &place->run, at + data, max);
    push |= ends_run(&place->run, more);
    uint8_t flags = IX_TCP_ACK | (push ? IX_TCP_PSH : 0) | (fin ? IX_TCP_FIN : 0);
    if (data + fin == 0 || !ix_tcp_send_segment(tcp, tcb, at, data, flags, false))
        return false;
    if (data + fin < bytes) {
        struct ix_tx_rec *head = ix_rec_split(tcp, tcb, r, at + data + fin);
        r->coarse |= !head;
        r = head ? head : r;
    }
    ix_rec_set_state(tcb, r, r->end - at, IX_TX_OUT);
    r->sent_us = tcp->now_us;
    r->again = true;
    tcb->retransmits++;
    tcp->counters->tcp_rexmit++;
    tcb->last_tx_ms = tcp->now_ms;
    ix_recovery_resent(tcp, tcb, data + fin);
    if (at == tcb->snd_una && tcb->rtx_kind == IX_RTX_TIMEOUT)
        ix_tcp_arm_rtx(tcp, tcb); /* its answer deserves a whole timeout */
    place->r = ix_rec_next(tcp, tcb, r);
    place->at = r->end;
    return true;
}

/* How many more bytes the network may hold of this flow. SACK blocks and duplicate ACKs make room
 * before it is known whether they mean a loss: limited transmit (RFC 3042). */
static uint32_t congestion_room(const struct ix_tcb *tcb, uint32_t window)
{
    uint32_t pipe = ix_tcb_pipe(tcb);
    return window > pipe ? window - pipe : 0;
}

/* What is lost, as far as the window has room for it; the first segment of a recovery whatever the
 * window says (RFC 6675 section 5 step 4.3). */
static bool send_lost(struct ix_tcp *tcp, struct ix_tcb *tcb, uint32_t window)
{
    struct place place = {ix_rec_first(tcp, tcb), tcb->snd_una, {0, 0}};
    if (tcb->flags & IX_TF_REXMIT_ONE && place.r && place.r->state != IX_TX_SACKED &&
        !resend(tcp, tcb, &place, congestion_room(tcb, window)))
        return ix_seq_leq(window_end(tcb), place.at); /* the peer has no room: it will tell */
    tcb->flags &= ~IX_TF_REXMIT_ONE;
    if (tcb->flags & IX_TF_RTO &&
        ix_recovery_waits(tcp, tcb, unsent_bytes(tcb) && peer_room(tcb)))
        return true;
    while (place.r && tcb->lost_bytes && ix_tcb_pipe(tcb) + ix_tcb_mss(tcb) <= window) {
        if (place.r->state != IX_TX_LOST)
            place = (struct place){ix_rec_next(tcp, tcb, place.r), place.r->end, {0, 0}};
        else if (!resend(tcp, tcb, &place, congestion_room(tcb, window)))
            return ix_seq_leq(window_end(tcb), place.at);
    }
    return true;
}

/* May a segment that is not full go now? Nagle's algorithm and the sender's side of silly window
 * avoidance (RFC 9293 3.7.4 and 3.8.6.2.1). As on Linux only a short segment in flight holds the
 * next (Minshall's change): the end of what is longer than a segment leaves at once. */
static inline __attribute__((always_inline)) bool
short_segment_ok(const struct ix_tcb *tcb, uint32_t bytes, uint32_t unsent)
{
    if (bytes == unsent && (tcb->flags & IX_TF_CLOSED_WR))
        return true;
    if (bytes == unsent && !(tcb->flags & IX_TF_MORE) &&
        (!(tcb->flags & IX_TF_NAGLE) || tcb->short_end - tcb->snd_una - 1 >= ix_tcb_flight(tcb)))
        return true;
    return bytes > 0 && bytes >= tcb->max_wnd / 2;
}

/* After one new segment of `bytes` (and FIN): numbers, records. */
static void sent_new(struct ix_tcp *tcp, struct ix_tcb *tcb, uint32_t bytes, bool fin)
{
    ix_rec_sent(tcp, tcb, tcb->snd_max + bytes + fin);
    if (fin)
        tcb->flags |= IX_TF_FIN_SENT;
    ix_recovery_sent_new(tcp, tcb, bytes);
    tcb->last_tx_ms = tcp->now_ms;
}

static bool fin_due(const struct ix_tcb *tcb)
{
    return (tcb->flags & (IX_TF_CLOSED_WR | IX_TF_FIN_SENT)) == IX_TF_CLOSED_WR;
}

/* A segment that ends no SENDV leaves: does it end a run? unsent, room: behind it. New data leaves
 * in two runs a window at least. */
static bool new_ends_run(const struct ix_tcp *tcp, struct ix_tcb *tcb, struct run *run,
                         uint32_t unsent, uint32_t room, uint32_t max)
{
    uint32_t next = IX_MIN(IX_MIN(unsent, max), room);
    if (run->count == 0)
        tcb->run_start = tcb->snd_max;
    bool more = next && (next == max || short_segment_ok(tcb, next, unsent));
    if (more && run->most == 0)
        run->most = IX_MIN(ix_pace_run(tcp, tcb, max), tcb->cwnd / max / 2);
    return ends_run(run, more && run->count + 1 < run->most);
}

/* New data. */
static bool send_data(struct ix_tcp *tcp, struct ix_tcb *tcb, uint32_t window)
{
    struct run run = {0, 0};
    uint32_t unsent = unsent_bytes(tcb);
    bool fin = fin_due(tcb);
    while (unsent || fin) {
        uint32_t max = segment_max(tcb);
        bool probe = tcb->rack & IX_RACK_TLP_DUE; /* RFC 8985 7.3: whatever the window says */
        uint32_t room = IX_MIN(probe ? max : congestion_room(tcb, window), peer_room(tcb));
        uint32_t bytes = IX_MIN(IX_MIN(unsent, max), room);
        bool record = false;
        if (IX_UNLIKELY(tcb->records) && bytes) {
            uint32_t whole = bytes;
            bytes = ix_sendq_record(tcp, tcb, tcb->snd_max, bytes);
            record = bytes < whole;
        }
        bool all = bytes == unsent, last = fin && all;
        if (bytes < max && !record && !(last && unsent == 0) &&
            (bytes == 0 || !short_segment_ok(tcb, bytes, unsent)))
            return true;
        bool pushed = record || (bytes && all && !(tcb->flags & IX_TF_NO_PUSH));
        bool push = pushed;
        if (pushed)
            run.count = 0;
        else if (bytes)
            push = new_ends_run(tcp, tcb, &run, unsent - bytes, room - bytes, max);
        uint8_t flags = IX_TCP_ACK | (push ? IX_TCP_PSH : 0) | (last ? IX_TCP_FIN : 0);
        if (!ix_tcp_send_segment(tcp, tcb, tcb->snd_max, bytes, flags, true))
            return false;
        sent_new(tcp, tcb, bytes, last);
        tcb->last.pushed = pushed;
        if (bytes < max)
            tcb->short_end = tcb->snd_max;
        if (probe)
            ix_tlp_sent(tcp, tcb, false);
        if (all) /* and with it the FIN */
            break;
        unsent -= bytes;
    }
    return true;
}

/* Is cwnd all but full? */
static bool fills_window(const struct ix_tcb *tcb, uint32_t spare)
{
    return ix_tcb_pipe(tcb) + spare >= tcb->cwnd;
}

/* What is lost, then what is new. False if some of it has to wait for the next cycle. */
static bool send_stream(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    if (ix_tcb_flight(tcb) == 0 && tcb->srtt_us && !(tcp->cfg->without & IX_WITHOUT_IDLE_RESTART) &&
        (tcp->now_ms - tcb->last_tx_ms) * 1000ull > tcb->rto_us)
        ix_cc_restart_after_idle(tcp, tcb);
    bool paced = tcb->flags & IX_TF_PACED;
    uint32_t window = IX_UNLIKELY(paced) ? ix_pace_window(tcp, tcb) : tcb->cwnd;
    uint32_t before = tcb->snd_max, pipe = IX_UNLIKELY(paced) ? ix_tcb_pipe(tcb) : 0;
    bool repaired = !(tcb->lost_bytes || tcb->flags & IX_TF_REXMIT_ONE) ||
                    send_lost(tcp, tcb, window);
    bool all = repaired && send_data(tcp, tcb, window);
    if (tcb->snd_max != before)
        ix_tcp_arm_after_new(tcp, tcb);
    bool near = fills_window(tcb, 2u * tcb->mss); /* options take a part of that */
    bool limited = IX_UNLIKELY(near) && fills_window(tcb, 2 * ix_tcb_mss(tcb));
    if (IX_UNLIKELY(paced)) {
        bool more = tcb->lost_bytes || (peer_room(tcb) && unsent_bytes(tcb));
        ix_pace_sent(tcp, tcb, ix_tcb_pipe(tcb) - pipe, window, all && more);
        if (window < tcb->cwnd)
            limited = fills_window(tcb, ix_pace_spare(tcb));
    }
    /* Judged here, where it is known what there was to send: one batch can hold the ACKs of a
     * whole window. */
    if (all && IX_UNLIKELY(limited))
        tcb->flags |= IX_TF_CWND_LIMITED;
    else if (all)
        tcb->flags &= ~IX_TF_CWND_LIMITED;
    return all;
}

/* A probe found nothing new to send: the last segment once more (RFC 8985 7.3). */
static void probe_again(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    struct ix_tx_rec *r = &tcb->last;
    uint32_t at = ix_rec_last_start(tcp, tcb), max = segment_max(tcb);
    tcb->rack &= (uint8_t)~IX_RACK_TLP_DUE;
    if (ix_tcb_flight(tcb) == 0 || r->state != IX_TX_OUT)
        return;
    bool fin_too = tcb->flags & IX_TF_FIN_SENT;
    if (r->end - at > max + fin_too) {
        uint32_t bytes = r->end - fin_too - tcb->run_start; /* the last of them may be short */
        at = bytes ? tcb->run_start + (bytes - 1) / max * max : r->end - max - fin_too;
        if (!ix_rec_split(tcp, tcb, r, at))
            return;
    }
    struct place place = {r, at, {0, 0}};
    if (resend(tcp, tcb, &place, 0)) /* else the timeout, which is armed, will see to it */
        ix_tlp_sent(tcp, tcb, true);
}

/* Something is queued, nothing is in flight, and no timer will bring it up again: probe (RFC
 * 9293 3.8.6.1). */
static void persist_if_stuck(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    if (ix_tcb_flight(tcb) || (unsent_bytes(tcb) == 0 && !fin_due(tcb)) ||
        timer_armed(tcp, tcb, IX_TIMER_RTX) || tcb->flags & IX_TF_PACE_HELD)
        return;
    tcb->flags |= IX_TF_PERSIST;
    ix_tcp_arm_rtx(tcp, tcb);
}

/* The application is about to be told what this ACK is for, and what it answers leaves in the next
 * cycle, which follows at once: one segment then carries both. Never held twice. */
static bool hold_ack(struct ix_tcb *tcb)
{
    if (!(tcb->flags & IX_TF_ON_EVENTS) || tcb->flags & (IX_TF_ACK_HELD | IX_TF_DETACHED))
        return false;
    tcb->flags |= IX_TF_ACK_HELD;
    return true;
}

bool ix_tcp_output(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    if (tcb->state == IX_TCP_CLOSED)
        return true;
    if (IX_UNLIKELY(!ix_net_dst_ready(tcp->net, &tcb->key, &tcb->dst))) {
        /* The retransmission timer tries again; by then it is resolved. */
        tcp->counters->drop_neigh++;
        tcb->flags &= ~IX_TF_ACK_NOW;
        if (!timer_armed(tcp, tcb, IX_TIMER_RTX) && tcb->state != IX_TCP_TIME_WAIT)
            ix_tcp_arm_rtx(tcp, tcb);
        return true;
    }
    if (tcb->flags & IX_TF_SYN_DUE && !send_syn(tcp, tcb))
        return false;
    if (IX_LIKELY(tcb->state == IX_TCP_ESTABLISHED) ||
        (tcb->state > IX_TCP_ESTABLISHED && tcb->state != IX_TCP_TIME_WAIT)) {
        if (!send_stream(tcp, tcb))
            return false;
        if (tcb->rack & IX_RACK_TLP_DUE)
            probe_again(tcp, tcb);
        persist_if_stuck(tcp, tcb);
    }
    if (!(tcb->flags & IX_TF_ACK_NOW) || tcb->state == IX_TCP_SYN_SENT)
        return true;
    if (hold_ack(tcb))
        return false;
    return ix_tcp_send_segment(tcp, tcb, ix_tcb_ack_seq(tcb), 0, IX_TCP_ACK, false);
}
