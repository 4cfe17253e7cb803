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

inline void ix_tcp_update_window(struct ix_tcp *tcp, struct ix_tcb *tcb,
                                 const struct ix_tcp_hdr *hdr)
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

/* After a retransmission only timestamps tell which transmission an ACK answers (RFC 7323 4.1).
 * Without a sample the backed-off timeout would stay for as long as every segment is sent twice. */
static void sample_timestamp(struct ix_tcp *tcp, struct ix_tcb *tcb, const struct ix_tcp_hdr *hdr)
{
    uint32_t rtt_ms = tcp->now_ms + tcb->ts_offset - hdr->ts_ecr;
    if (tcb->flags & IX_TF_TS && hdr->has_ts && rtt_ms < 1u << 30)
        ix_tcp_rtt_sample(tcb, rtt_ms * 1000000ull);
}

/* Round-trip times of what has newly arrived. */
static void sample_rtt(struct ix_tcp *tcp, struct ix_tcb *tcb, const struct ix_tcp_hdr *hdr,
                       const struct ix_ack *a)
{
    if (a->rtt_us) {
        ix_rack_min_rtt(tcp, tcb, a->last_rtt_us);
        ix_tcp_rtt_sample(tcb, (a->rtt_us - 1) * 1000ull);
    } else if (a->acked && !a->has_dsack && (a->acked > 1 || tcb->srtt_us)) {
        /* Not where the first ACK was lost and this one answers a duplicate: that does not move
         * the peer's TS.Recent, so the echo is as old as what it answered first. Such are a SYN
         * that was sent again, and what D-SACK reports. */
        sample_timestamp(tcp, tcb, hdr);
    }
}

/* snd_una moves to the segment's ACK. */
static void advance(struct ix_tcp *tcp, struct ix_tcb *tcb, const struct ix_tcp_hdr *hdr,
                    struct ix_ack *a)
{
    uint32_t data = IX_MIN(hdr->ack - tcb->snd_una, tcb->queued_bytes);
    if (IX_UNLIKELY(tcb->retries)) {
        tcb->rto_us = ix_tcp_rto_us(tcb); /* Karn: backed off until there is a new sample */
        tcb->retries = 0;
    }
    if (data) {
        ix_sendq_acked(tcp, tcb, data);
        tcb->sent_bytes += data;
        ix_tcp_want_event(tcp, tcb, 0);
    }
    ix_sack_advance(tcp, tcb, hdr, a);
    if (ix_seq_gt(tcb->snd_una - tcb->max_wnd, tcb->ack_floor))
        tcb->ack_floor = tcb->snd_una - tcb->max_wnd;
    tcb->dupacks = 0;
    const uint32_t elsewhere = IX_TF_RECOVERY | IX_TF_RTO | IX_TF_SACK;
    if (!(tcb->flags & elsewhere) && hdr->ack - tcb->recover > 1u << 30)
        tcb->recover = hdr->ack - 1; /* or after 2 GiB without a loss it would seem to lie ahead */
    if (IX_UNLIKELY(tcb->ecn & IX_ECNF_ON) && data && !(hdr->flags & IX_TCP_SYN))
        ix_ecn_acked(tcp, tcb, a->acked, hdr->flags);
}

/* Timer and output, after all that the ACK has changed. */
static void follow_up(struct ix_tcp *tcp, struct ix_tcb *tcb, const struct ix_ack *a,
                      uint32_t reorder_us)
{
    if (ix_tcb_flight(tcb) == 0) {
        ix_wheel_cancel(tcp->wheel, ix_tcb_timer(tcp, tcb, IX_TIMER_RTX)); /* RFC 6298 (5.2) */
        ix_rec_drop(tcp, tcb);
        ix_tlp_end(tcb);
        ix_rack_idle(tcb);
    } else if (a->acked || reorder_us || (a->sack_news && tcb->rtx_kind != IX_RTX_TIMEOUT)) {
        ix_tcp_arm_after_ack(tcp, tcb, reorder_us); /* (5.3) */
    }
    if (tcb->lost_bytes || ix_tcb_data_end(tcb) != tcb->snd_max ||
        tcb->flags & (IX_TF_CLOSED_WR | IX_TF_RECOVERY)) {
        if (tcb->flags & IX_TF_NO_PUSH) /* MSG_MORE holds until the next ACK, TCP_CORK longer */
            tcb->flags &= ~IX_TF_MORE;
        ix_tcp_want_output(tcp, tcb);
    }
}

void ix_tcp_ack(struct ix_tcp *tcp, struct ix_tcb *tcb, const struct ix_tcp_hdr *hdr,
                uint32_t payload_bytes)
{
    struct ix_ack a = {0};
    bool sack = tcb->flags & IX_TF_SACK;
    uint32_t window = (uint32_t)hdr->window << tcb->snd_wscale;
    /* RFC 5681 section 2: outstanding data, no data, no FIN, same ACK, same window. */
    bool same = hdr->ack == tcb->snd_una && ix_tcb_flight(tcb) && payload_bytes == 0 &&
                !(hdr->flags & IX_TCP_FIN) && window == tcb->snd_wnd;
    /* Before the blocks: what they say is sent after what the ACK covers. */
    if (ix_seq_gt(hdr->ack, tcb->snd_una))
        advance(tcp, tcb, hdr, &a);
    if (IX_UNLIKELY(hdr->sack_count) && sack) /* of an ACK that others overtook, too */
        ix_sack_update(tcp, tcb, hdr, &a);
    ix_tcp_update_window(tcp, tcb, hdr);
    /* With SACK: a block that tells something new (RFC 6675 section 2), whatever else. */
    bool dup = a.acked == 0 && (sack ? a.sack_news : same) && !(tcb->flags & IX_TF_PERSIST);
    if (dup) {
        tcp->counters->tcp_dupacks++;
        tcb->dupacks += tcb->dupacks < UINT8_MAX;
    }
    if (!a.acked && !dup && !a.has_dsack && !(tcb->rack & IX_RACK_TLP_OUT))
        return;
    sample_rtt(tcp, tcb, hdr, &a);
    uint32_t reorder_us = ix_recovery_ack(tcp, tcb, hdr, &a, dup);
    follow_up(tcp, tcb, &a, reorder_us);
}
