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
    if (tcb->snd_max == tcb->iss) {
        tcb->snd_nxt = tcb->snd_max = tcb->iss + 1;
        tcb->rtt_seq = tcb->snd_max;
        tcb->rtt_start_ns = tcp->now_ns;
        tcb->flags |= IX_TF_TIMING;
    }
    if (!timer_armed(tcp, tcb, IX_TIMER_RTX))
        ix_tcp_arm_rtx(tcp, tcb);
    return true;
}

/* Payload that fits beside the options that this segment will carry. */
static uint32_t segment_max(const struct ix_tcb *tcb)
{
    uint32_t mss = ix_tcb_mss(tcb);
    if (tcb->ooo_head != IX_NONE && tcb->flags & IX_TF_SACK)
        mss -= 4 + 8 * (tcb->flags & IX_TF_TS ? IX_SACK_BLOCKS_TX : IX_SACK_BLOCKS_RX);
    return mss;
}

/* Sends again what lies at seq: at most `bytes` sequence numbers, at most one segment; the FIN
 * counts as one. Returns how many went. */
static uint32_t resend(struct ix_tcp *tcp, struct ix_tcb *tcb, uint32_t seq, uint32_t bytes)
{
    uint32_t left = ix_seq_lt(seq, ix_tcb_data_end(tcb)) ? ix_tcb_data_end(tcb) - seq : 0;
    uint32_t data = IX_MIN(IX_MIN(bytes, left), segment_max(tcb));
    bool fin = data == left && data < bytes && (tcb->flags & IX_TF_FIN_SENT);
    uint8_t flags = IX_TCP_ACK | (data == left ? IX_TCP_PSH : 0) | (fin ? IX_TCP_FIN : 0);
    if (data + fin == 0 || !ix_tcp_send_segment(tcp, tcb, seq, data, flags, false))
        return 0;
    tcb->flags &=
        ~IX_TF_TIMING; /* Karn: an ACK could mean either transmission (RFC 6298 section 3) */
    tcb->retransmits++;
    tcp->counters->tcp_rexmit++;
    tcb->last_tx_ms = tcp->now_ms;
    if (tcb->sack_board != IX_NONE) {
        struct ix_sack_board *board = &tcp->boards[tcb->sack_board];
        board->high_rxt = ix_seq_max(board->high_rxt, seq + data + fin);
    }
    return data + fin;
}

/* Fast retransmission: the first segment of a recovery or partial ACK, then every hole that the
 * scoreboard calls lost, as far as the pipe has room (RFC 6675 section 5 step C). */
static bool send_lost(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    uint32_t seq, bytes;
    if (tcb->flags & IX_TF_REXMIT_ONE && ix_tcb_flight(tcb)) {
        if (!resend(tcp, tcb, tcb->snd_una, ix_tcb_flight(tcb)))
            return false;
        tcb->flags &= ~IX_TF_REXMIT_ONE;
    }
    if (!(tcb->flags & IX_TF_RECOVERY) || tcb->sack_board == IX_NONE)
        return true;
    uint32_t pipe = ix_sack_pipe(tcp, tcb);
    while (pipe + ix_tcb_mss(tcb) <= tcb->cwnd && ix_sack_next_hole(tcp, tcb, &seq, &bytes)) {
        uint32_t sent = resend(tcp, tcb, seq, bytes);
        if (sent == 0)
            return false;
        pipe += sent;
        tcp->counters->tcp_sack_rexmit++;
    }
    return true;
}

/* How many more bytes the network may hold of this flow. */
static uint32_t congestion_room(const struct ix_tcp *tcp, const struct ix_tcb *tcb)
{
    uint32_t window = tcb->cwnd, out = tcb->snd_nxt - tcb->snd_una;
    if (tcb->flags & IX_TF_RECOVERY && tcb->sack_board != IX_NONE)
        out = ix_sack_pipe(tcp, tcb);
    else if (!(tcb->flags & (IX_TF_RECOVERY | IX_TF_RTO)) && tcb->dupacks && tcb->dupacks < 3)
        window += tcb->dupacks * ix_tcb_mss(tcb); /* limited transmit (RFC 3042) */
    return window > out ? window - out : 0;
}

static uint32_t peer_room(const struct ix_tcb *tcb)
{
    uint32_t out = tcb->snd_nxt - tcb->snd_una;
    return tcb->snd_wnd > out ? tcb->snd_wnd - out : 0;
}

/* May a segment that is not full go now? Nagle's algorithm and the sender's side of silly window
 * avoidance (RFC 9293 3.7.4 and 3.8.6.2.1). */
static bool short_segment_ok(const struct ix_tcb *tcb, uint32_t bytes, uint32_t unsent)
{
    if (ix_seq_lt(tcb->snd_nxt, tcb->snd_max)) /* it was sent like this before */
        return true;
    if (bytes == unsent && (tcb->flags & IX_TF_CLOSED_WR))
        return true;
    bool idle = tcb->snd_nxt == tcb->snd_una;
    if (bytes == unsent && !(tcb->flags & IX_TF_MORE) && (idle || !(tcb->flags & IX_TF_NAGLE)))
        return true;
    return bytes > 0 && bytes >= tcb->max_wnd / 2;
}

/* After one new segment of `bytes` (and FIN): numbers, timing, timer. */
static void sent_new(struct ix_tcp *tcp, struct ix_tcb *tcb, uint32_t bytes, bool fin)
{
    bool again = ix_seq_lt(tcb->snd_nxt, tcb->snd_max);
    tcb->snd_nxt += bytes + fin;
    if (fin)
        tcb->flags |= IX_TF_FIN_SENT;
    if (again) {
        tcb->retransmits++;
        tcp->counters->tcp_rexmit++;
        tcb->flags &= ~IX_TF_TIMING;
    } else if (!(tcb->flags & IX_TF_TIMING)) {
        tcb->flags |= IX_TF_TIMING;
        tcb->rtt_seq = tcb->snd_nxt;
        tcb->rtt_start_ns = tcp->now_ns;
    }
    tcb->snd_max = ix_seq_max(tcb->snd_max, tcb->snd_nxt);
    tcb->last_tx_ms = tcp->now_ms;
    if (!timer_armed(tcp, tcb, IX_TIMER_RTX) || tcb->flags & IX_TF_PERSIST) {
        tcb->flags &= ~IX_TF_PERSIST;
        ix_tcp_arm_rtx(tcp, tcb);
    }
}

static bool fin_due(const struct ix_tcb *tcb)
{
    if (!(tcb->flags & IX_TF_CLOSED_WR))
        return false;
    if (!(tcb->flags & IX_TF_FIN_SENT))
        return true;
    bool acked = tcb->snd_una == tcb->snd_max;
    return !acked && tcb->snd_nxt != ix_tcb_data_end(tcb) + 1;
}

static uint32_t unsent_bytes(const struct ix_tcb *tcb)
{
    uint32_t end = ix_tcb_data_end(tcb);
    return ix_seq_lt(tcb->snd_nxt, end) ? end - tcb->snd_nxt : 0;
}

/* New data, or old data once more after a timeout moved snd_nxt back. */
static bool send_data(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    if (ix_tcb_flight(tcb) == 0 && tcb->srtt_us &&
        tcp->now_ms - tcb->last_tx_ms > tcb->rto_us / 1000)
        ix_cc_restart_after_idle(tcp, tcb);
    for (;;) {
        uint32_t unsent = unsent_bytes(tcb);
        bool fin = fin_due(tcb);
        if (unsent == 0 && !fin)
            return true;
        uint32_t max = segment_max(tcb);
        uint32_t room = IX_MIN(congestion_room(tcp, tcb), peer_room(tcb));
        uint32_t bytes = IX_MIN(IX_MIN(unsent, max), room);
        fin = fin && bytes == unsent;
        if (bytes < max && !(fin && unsent == 0) &&
            (bytes == 0 || !short_segment_ok(tcb, bytes, unsent)))
            return true;
        uint8_t flags =
            IX_TCP_ACK | (bytes && bytes == unsent ? IX_TCP_PSH : 0) | (fin ? IX_TCP_FIN : 0);
        bool first_time = tcb->snd_nxt == tcb->snd_max;
        if (!ix_tcp_send_segment(tcp, tcb, tcb->snd_nxt, bytes, flags, first_time))
            return false;
        sent_new(tcp, tcb, bytes, fin);
    }
}

/* Something is queued, nothing is in flight, and no timer will bring it up again: probe (RFC
 * 9293 3.8.6.1). */
static void persist_if_stuck(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    if (ix_tcb_flight(tcb) || (unsent_bytes(tcb) == 0 && !fin_due(tcb)) ||
        timer_armed(tcp, tcb, IX_TIMER_RTX))
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
    if (IX_UNLIKELY(!ix_net_dst_ready(tcp->net, tcb->key.peer.v4, &tcb->dst))) {
        /* The retransmission timer tries again; by then it is resolved. */
        tcp->counters->drop_neigh++;
        tcb->flags &= ~IX_TF_ACK_NOW;
        if (!timer_armed(tcp, tcb, IX_TIMER_RTX) && tcb->state != IX_TCP_TIME_WAIT)
            ix_tcp_arm_rtx(tcp, tcb);
        return true;
    }
    if (tcb->flags & IX_TF_SYN_DUE && !send_syn(tcp, tcb))
        return false;
    if (tcb->state >= IX_TCP_ESTABLISHED && tcb->state != IX_TCP_TIME_WAIT) {
        if (tcb->flags & (IX_TF_REXMIT_ONE | IX_TF_RECOVERY) && !send_lost(tcp, tcb))
            return false;
        if (!send_data(tcp, tcb))
            return false;
        /* Judged here, where it is known what there was to send: one batch can hold the ACKs of a
         * whole window. */
        if (ix_tcb_flight(tcb) + 2 * ix_tcb_mss(tcb) >= tcb->cwnd)
            tcb->flags |= IX_TF_CWND_LIMITED;
        else
            tcb->flags &= ~IX_TF_CWND_LIMITED;
        persist_if_stuck(tcp, tcb);
    }
    if (!(tcb->flags & IX_TF_ACK_NOW) || tcb->state == IX_TCP_SYN_SENT)
        return true;
    if (hold_ack(tcb))
        return false;
    return ix_tcp_send_segment(tcp, tcb, ix_tcb_ack_seq(tcb), 0, IX_TCP_ACK, false);
}
