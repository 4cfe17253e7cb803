/* What an acceptable ACK does to the send side: window, RTT, congestion, recovery. */
#include "tcp/tcp.h"

enum {
    RTO_MIN_US = 200000, /* RFC 6298 (2.4) says 1 s, "SHOULD"; Linux and others take 200 ms */
};

void ix_tcp_rtt_sample(struct ix_tcb *tcb, uint64_t rtt_ns)
{
    /* RFC 6298 section 2, in microseconds */
    uint32_t rtt_us = (uint32_t)IX_MIN(rtt_ns / 1000 + 1, (uint64_t)IX_TCP_RTO_MAX_US);
    if (tcb->srtt_us == 0) {
        tcb->srtt_us = rtt_us;
        tcb->rttvar_us = rtt_us / 2;
    } else {
        uint32_t error = tcb->srtt_us > rtt_us ? tcb->srtt_us - rtt_us : rtt_us - tcb->srtt_us;
        tcb->rttvar_us += error / 4 - tcb->rttvar_us / 4;
        tcb->srtt_us += rtt_us / 8 - tcb->srtt_us / 8;
        if (tcb->srtt_us == 0)
            tcb->srtt_us = 1;
    }
    uint32_t rto_us = tcb->srtt_us + IX_MAX(4 * tcb->rttvar_us, (uint32_t)RTO_MIN_US);
    tcb->rto_us = IX_MIN(rto_us, (uint32_t)IX_TCP_RTO_MAX_US);
}

void ix_tcp_update_window(struct ix_tcp *tcp, struct ix_tcb *tcb, const struct ix_tcp_hdr *hdr)
{
    /* RFC 9293 3.10.7.4, fifth: only from a segment that is not older than the last one used. The
     * later ACK decides first: data sent again has an old number and still brings news, and a
     * window that did not follow snd_una would reach further than the peer ever said. */
    if (ix_seq_lt(hdr->ack, tcb->snd_wl2) ||
        (hdr->ack == tcb->snd_wl2 && ix_seq_lt(hdr->seq, tcb->snd_wl1)))
        return;
    uint32_t window = hdr->flags & IX_TCP_SYN ? hdr->window
                                              : (uint32_t)hdr->window << tcb->snd_wscale;
    bool opened = window > tcb->snd_wnd;
    if (opened && (tcb->queued_bytes || tcb->flags & IX_TF_CLOSED_WR))
        ix_tcp_want_output(tcp, tcb);
    tcb->snd_wnd = window;
    tcb->max_wnd = IX_MAX(tcb->max_wnd, window);
    tcb->snd_wl1 = hdr->seq;
    tcb->snd_wl2 = hdr->ack;
    /* Not for a segment that says the same again: a talkative peer would put the timer off for
     * ever. */
    if (opened && tcb->flags & IX_TF_PERSIST) {
        tcb->flags &= ~IX_TF_PERSIST;
        tcb->retries = 0;
        ix_wheel_cancel(tcp->wheel, ix_tcb_timer(tcp, tcb, IX_TIMER_RTX));
        ix_tcp_want_output(tcp, tcb);
    }
}

static void enter_recovery(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    tcb->flags |= IX_TF_RECOVERY | IX_TF_REXMIT_ONE;
    tcb->recover = tcb->snd_max;
    if (tcb->sack_board != IX_NONE)
        tcp->boards[tcb->sack_board].high_rxt = tcb->snd_una;
    ix_cc_lost(tcb, ix_tcb_flight(tcb));
    tcb->cwnd = tcb->ssthresh;
    if (!(tcb->flags & IX_TF_SACK)) /* RFC 5681 3.2 step 3: the three segments that have left */
        tcb->cwnd += 3 * ix_tcb_mss(tcb);
    tcp->counters->tcp_fast_rexmit++;
    ix_tcp_want_output(tcp, tcb);
}

/* A duplicate ACK, or one with news from the scoreboard. */
static void duplicate(struct ix_tcp *tcp, struct ix_tcb *tcb, const struct ix_tcp_hdr *hdr)
{
    tcp->counters->tcp_dupacks++;
    if (tcb->dupacks < 255)
        tcb->dupacks++;
    if (tcb->flags & IX_TF_RECOVERY) {
        if (tcb->sack_board == IX_NONE)
            tcb->cwnd += ix_tcb_mss(tcb); /* RFC 5681 3.2 step 4: a segment has left the network */
        ix_tcp_want_output(tcp, tcb);
        return;
    }
    bool lost = tcb->dupacks >= IX_TCP_DUP_THRESH || ix_sack_is_lost(tcp, tcb, tcb->snd_una);
    /* RFC 6582 3.2 step 2: not for what was outstanding at a timeout; and at `recover` itself the
     * duplicates may be answers to segments sent twice, unless a new SACK block says otherwise. */
    bool beyond = tcb->flags & IX_TF_SACK ? ix_seq_geq(hdr->ack, tcb->recover)
                                          : ix_seq_gt(hdr->ack, tcb->recover);
    if (lost && !(tcb->flags & IX_TF_RTO) && beyond)
        enter_recovery(tcp, tcb);
    else
        ix_tcp_want_output(tcp, tcb); /* limited transmit */
}

static void recovery_ack(struct ix_tcp *tcp, struct ix_tcb *tcb, uint32_t acked)
{
    uint32_t mss = ix_tcb_mss(tcb);
    if (ix_seq_geq(tcb->snd_una, tcb->recover)) { /* all of it is repaired */
        tcb->cwnd = IX_MIN(tcb->ssthresh,
                           IX_MAX(ix_tcb_flight(tcb), mss) + mss); /* RFC 6582 3.2 step 3 (1) */
        tcb->flags &= ~(IX_TF_RECOVERY | IX_TF_REXMIT_ONE);
        return;
    }
    if (tcb->sack_board != IX_NONE)
        return; /* the scoreboard says what is next */
    /* Partial ACK: the next segment is missing as well; deflate (RFC 6582 3.2 step 3 (2)). */
    tcb->flags |= IX_TF_REXMIT_ONE;
    tcb->cwnd = tcb->cwnd > acked ? tcb->cwnd - acked : mss;
    if (acked >= mss)
        tcb->cwnd += mss;
    ix_tcp_want_output(tcp, tcb);
}

static void congestion_ack(struct ix_tcp *tcp, struct ix_tcb *tcb, uint32_t acked, uint32_t rtt_us)
{
    if (tcb->flags & IX_TF_RECOVERY) {
        recovery_ack(tcp, tcb, acked);
        return;
    }
    /* RFC 7661's point: a window that is not used says nothing of the network. */
    if (tcb->flags & IX_TF_CWND_LIMITED && !(tcb->ecn & IX_ECNF_REDUCED))
        ix_cc_acked(tcp, tcb, acked, rtt_us);
    if (tcb->flags & IX_TF_RTO && ix_seq_geq(tcb->snd_una, tcb->recover))
        tcb->flags &= ~IX_TF_RTO;
}

/* After a retransmission only timestamps tell which transmission an ACK answers (RFC 7323 4.1).
 * Without a sample the backed-off timeout would stay for as long as every segment is sent twice. */
static void sample_timestamp(struct ix_tcp *tcp, struct ix_tcb *tcb, const struct ix_tcp_hdr *hdr)
{
    uint32_t rtt_ms = tcp->now_ms + tcb->ts_offset - hdr->ts_ecr;
    if (tcb->flags & IX_TF_TS && hdr->has_ts && rtt_ms < 1u << 30)
        ix_tcp_rtt_sample(tcb, rtt_ms * 1000000ull);
}

/* snd_una moves to the segment's ACK. */
static void advance(struct ix_tcp *tcp, struct ix_tcb *tcb, const struct ix_tcp_hdr *hdr)
{
    uint32_t ack = hdr->ack, acked = ack - tcb->snd_una;
    uint32_t data = IX_MIN(acked, tcb->queued_bytes), rtt_us = 0;

    tcb->rto_us = ix_tcp_rto_us(tcb); /* Karn: backed off until there is a new sample */
    tcb->retries = 0;
    if (!(tcb->flags & IX_TF_TIMING)) {
        sample_timestamp(tcp, tcb, hdr);
    } else if (ix_seq_geq(ack, tcb->rtt_seq)) {
        tcb->flags &= ~IX_TF_TIMING;
        uint64_t rtt_ns = tcp->now_ns - tcb->rtt_start_ns;
        rtt_us = (uint32_t)IX_MIN(rtt_ns / 1000 + 1, (uint64_t)IX_TCP_RTO_MAX_US);
        ix_tcp_rtt_sample(tcb, rtt_ns);
    }
    if (data) {
        ix_sendq_acked(tcp, tcb, data);
        tcb->sent_bytes += data;
        ix_tcp_want_event(tcp, tcb, 0);
    }
    tcb->snd_una = ack;
    if (ix_seq_lt(tcb->snd_nxt, ack))
        tcb->snd_nxt = ack;
    tcb->dupacks = 0;
    if (!(tcb->flags & (IX_TF_RECOVERY | IX_TF_RTO)) && ack - tcb->recover > 1u << 30)
        tcb->recover = ack - 1; /* or after 2 GiB without a loss it would seem to lie ahead */
    ix_sack_advance(tcp, tcb);
    if (IX_UNLIKELY(tcb->ecn & IX_ECNF_ON))
        ix_ecn_acked(tcp, tcb, acked, hdr->flags);
    congestion_ack(tcp, tcb, acked, rtt_us);
    if (ix_tcb_flight(tcb) == 0) {
        ix_wheel_cancel(tcp->wheel, ix_tcb_timer(tcp, tcb, IX_TIMER_RTX)); /* RFC 6298 (5.2) */
        ix_sack_drop(tcp, tcb);
    } else {
        ix_tcp_arm_rtx(tcp, tcb); /* (5.3) */
    }
    if (ix_tcb_data_end(tcb) != tcb->snd_nxt || tcb->flags & (IX_TF_CLOSED_WR | IX_TF_RECOVERY))
        ix_tcp_want_output(tcp, tcb);
}

void ix_tcp_ack(struct ix_tcp *tcp, struct ix_tcb *tcb, const struct ix_tcp_hdr *hdr,
                uint32_t payload_bytes)
{
    bool sack = tcb->flags & IX_TF_SACK, sack_news = false;
    if (IX_UNLIKELY(hdr->sack_count) && sack)
        sack_news = ix_sack_update(tcp, tcb, hdr);
    if (ix_seq_gt(hdr->ack, tcb->snd_una)) {
        advance(tcp, tcb, hdr);
        ix_tcp_update_window(tcp, tcb, hdr);
        return;
    }
    uint32_t window = (uint32_t)hdr->window << tcb->snd_wscale;
    /* RFC 5681 section 2: outstanding data, no data, no FIN, same ACK, same window. With SACK: a
     * block that tells something new (RFC 6675 section 2), whatever the window and the payload. */
    bool same = payload_bytes == 0 && !(hdr->flags & IX_TCP_FIN) && window == tcb->snd_wnd;
    bool dup = hdr->ack == tcb->snd_una && ix_tcb_flight(tcb) && (sack ? sack_news : same);
    ix_tcp_update_window(tcp, tcb, hdr);
    if (dup && !(tcb->flags & IX_TF_PERSIST))
        duplicate(tcp, tcb, hdr);
}
