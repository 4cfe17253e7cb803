/* RACK-TLP (RFC 8985): loss from the order of sending and time, probes for tails. */
#include "tcp/tcp.h"

enum {
    MIN_RTT_WINDOW_S = 300,      /* section 6.2 step 1 leaves it open; Linux: tcp_min_rtt_wlen */
    REO_WND_PERSIST = 16,        /* recoveries for which a wider window stays (6.2 step 4) */
    MAX_ACK_DELAY_US = 200000,   /* TLP.max_ack_delay when the peer's is unknown (7.2) */
    PTO_SPARE_US = 2000,         /* timers are not exact (7.2); Linux: TCP_TIMEOUT_MIN_US */
    PTO_UNKNOWN_US = 1000000,    /* no SRTT yet (7.2) */
};

/* RACK_sent_after(): was the first sent after the second? (6.2) */
static bool sent_after(uint32_t us_a, uint32_t end_a, uint32_t us_b, uint32_t end_b)
{
    int32_t later = (int32_t)(us_a - us_b);
    return later > 0 || (later == 0 && ix_seq_gt(end_a, end_b));
}

void ix_rack_min_rtt(const struct ix_tcp *tcp, struct ix_tcb *tcb, uint32_t rtt_us)
{
    uint16_t now_s = (uint16_t)(tcp->now_ms / 1000);
    bool old = (uint16_t)(now_s - tcb->min_rtt_s) > MIN_RTT_WINDOW_S;
    if (tcb->min_rtt_us == 0 || rtt_us <= tcb->min_rtt_us || old) {
        tcb->min_rtt_us = rtt_us;
        tcb->min_rtt_s = now_s;
    }
}

/* Does the ACK answer an earlier transmission than the record's? (6.2 step 2) */
static bool answers_earlier(const struct ix_tcp *tcp, const struct ix_tcb *tcb,
                            const struct ix_tcp_hdr *hdr, uint32_t age_us)
{
    if (tcb->flags & IX_TF_TS && hdr->has_ts) {
        uint32_t echo_age_ms = tcp->now_ms + tcb->ts_offset - hdr->ts_ecr;
        if (echo_age_ms < 1u << 30 && echo_age_ms > age_us / 1000 + 1)
            return true;
    }
    return age_us < tcb->min_rtt_us;
}

inline void ix_rack_delivered(struct ix_tcp *tcp, struct ix_tcb *tcb, const struct ix_tcp_hdr *hdr,
                              const struct ix_tx_rec *r, uint32_t end)
{
    uint32_t age_us = tcp->now_us - r->sent_us;
    /* Step 3: something sent before what has arrived arrives after it. fack stays behind snd_una
     * while nothing is SACKed, and means nothing then. */
    if (ix_seq_gt(end, tcb->rack_fack) || ix_seq_leq(tcb->rack_fack, tcb->snd_una))
        tcb->rack_fack = end;
    else if (ix_seq_lt(end, tcb->rack_fack) && !r->again && tcb->sacked_bytes &&
             !(tcb->rack & IX_RACK_REORDER)) {
        tcb->rack |= IX_RACK_REORDER;
        tcp->counters->tcp_reordering++;
    }
    if (r->again && answers_earlier(tcp, tcb, hdr, age_us))
        return;
    tcb->rack_rtt_us = age_us;
    if (!(tcb->rack & IX_RACK_VALID) ||
        sent_after(r->sent_us, end, tcb->rack_sent_us, tcb->rack_end)) {
        tcb->rack |= IX_RACK_VALID;
        tcb->rack_sent_us = r->sent_us;
        tcb->rack_end = end;
    }
}

void ix_rack_dsack(struct ix_tcb *tcb)
{
    /* Step 4: a round trip with a D-SACK was too impatient. */
    if (!(tcb->rack & IX_RACK_DSACK)) {
        tcb->rack |= IX_RACK_DSACK;
        tcb->rack_dsack_end = tcb->snd_max;
        tcb->reo_mult += tcb->reo_mult < UINT8_MAX;
        tcb->reo_persist = REO_WND_PERSIST;
    }
}

void ix_rack_recovered(struct ix_tcb *tcb)
{
    if (tcb->reo_persist && --tcb->reo_persist == 0)
        tcb->reo_mult = 1;
}

/* RACK_update_reo_wnd(): 6.2 step 4 */
static uint32_t reo_wnd_us(const struct ix_tcb *tcb)
{
    bool many = tcb->sacked_bytes > (IX_TCP_DUP_THRESH - 1) * ix_tcb_mss(tcb) ||
                tcb->dupacks >= IX_TCP_DUP_THRESH;
    if (!(tcb->rack & IX_RACK_REORDER) && (tcb->flags & (IX_TF_RECOVERY | IX_TF_RTO) || many))
        return 0;
    uint64_t window_us = (uint64_t)tcb->reo_mult * tcb->min_rtt_us / 4;
    return (uint32_t)IX_MIN(window_us, (uint64_t)tcb->srtt_us);
}

uint32_t ix_rack_detect(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    if (tcb->rack & IX_RACK_DSACK && ix_seq_geq(tcb->snd_una, tcb->rack_dsack_end))
        tcb->rack &= (uint8_t)~IX_RACK_DSACK;
    if (!(tcb->rack & IX_RACK_VALID))
        return 0;
    uint32_t wait_us = 0, allowed_us = tcb->rack_rtt_us + reo_wnd_us(tcb), at = tcb->snd_una;
    for (struct ix_tx_rec *r = ix_rec_first(tcp, tcb); r;
         at = r->end, r = ix_rec_next(tcp, tcb, r)) {
        if (r->state != IX_TX_OUT ||
            !sent_after(tcb->rack_sent_us, tcb->rack_end, r->sent_us, r->end))
            continue;
        uint32_t age_us = tcp->now_us - r->sent_us;
        /* What was sent again in this cycle can't be lost yet, be the round trip as short as it
         * likes. */
        uint32_t least_us = allowed_us + (allowed_us == 0 && r->again);
        if (age_us < least_us) {
            wait_us = IX_MAX(wait_us, least_us - age_us);
            continue;
        }
        tcp->counters->tcp_lost_rexmits += r->again;
        ix_rec_set_state(tcb, r, r->end - at, IX_TX_LOST);
    }
    /* As on Linux somewhat later: what is late by a little more is not sent again for nothing. */
    return wait_us + IX_MIN(wait_us / 8, (uint32_t)PTO_SPARE_US);
}

void ix_rack_timeout(struct ix_tcp *tcp, struct ix_tcb *tcb, bool forget)
{
    /* 6.3: the first segment, and what RACK would call lost by now. */
    uint32_t allowed_us = tcb->rack_rtt_us + reo_wnd_us(tcb), at = tcb->snd_una;
    bool known = tcb->rack_rtt_us && tcb->flags & IX_TF_SACK && !forget;
    if (!known)
        ix_rack_idle(tcb);
    for (struct ix_tx_rec *r = ix_rec_first(tcp, tcb); r;
         at = r->end, r = ix_rec_next(tcp, tcb, r)) {
        bool lost = at == tcb->snd_una || !known || tcp->now_us - r->sent_us >= allowed_us;
        if (r->state == IX_TX_OUT ? lost : r->state == IX_TX_SACKED && forget)
            ix_rec_set_state(tcb, r, r->end - at, IX_TX_LOST);
    }
}

/* ---- tail loss probes: section 7 --------------------------------------------------- */

inline uint32_t ix_tlp_wait_us(const struct ix_tcb *tcb)
{
    const uint32_t instead = IX_TF_RECOVERY | IX_TF_RTO | IX_TF_PERSIST;
    if (IX_UNLIKELY((tcb->flags & (IX_TF_SACK | instead)) != IX_TF_SACK ||
                    tcb->state < IX_TCP_ESTABLISHED || tcb->retries || tcb->sacked_bytes ||
                    tcb->rack & IX_RACK_TLP_OUT || ix_tcb_flight(tcb) == 0))
        return 0;
    bool lone = tcb->rec_head == IX_NONE && ix_tcb_flight(tcb) <= ix_tcb_mss(tcb);
    uint32_t spare_us = lone ? (uint32_t)MAX_ACK_DELAY_US : PTO_SPARE_US;
    uint32_t wait_us = tcb->srtt_us ? 2 * tcb->srtt_us + spare_us : (uint32_t)PTO_UNKNOWN_US;
    return IX_MIN(wait_us, ix_tcp_rto_us(tcb)); /* in the timeout's place where that is sooner */
}

void ix_tlp_sent(struct ix_tcp *tcp, struct ix_tcb *tcb, bool again)
{
    tcb->rack = (uint8_t)((tcb->rack & ~IX_RACK_TLP_DUE) | IX_RACK_TLP_OUT |
                          (again ? IX_RACK_TLP_AGAIN : 0));
    tcb->tlp_end = tcb->snd_max;
    tcp->counters->tcp_tlp++;
}

void ix_tlp_end(struct ix_tcb *tcb)
{
    tcb->rack &= (uint8_t)~(IX_RACK_TLP_OUT | IX_RACK_TLP_AGAIN | IX_RACK_TLP_DUE);
}

bool ix_tlp_ack(struct ix_tcb *tcb, const struct ix_tcp_hdr *hdr, const struct ix_ack *a)
{
    /* TLP_process_ack(): 7.4.2 */
    if (!(tcb->rack & IX_RACK_TLP_OUT) || ix_seq_lt(hdr->ack, tcb->tlp_end))
        return false;
    if (!(tcb->rack & IX_RACK_TLP_AGAIN) || (a->has_dsack && a->dsack.end == tcb->tlp_end)) {
        ix_tlp_end(tcb);
    } else if (ix_seq_gt(hdr->ack, tcb->tlp_end)) {
        ix_tlp_end(tcb);
        return true; /* it repaired the only loss: without it nobody would have noticed */
    } else if (a->acked == 0 && hdr->sack_count == 0) {
        ix_tlp_end(tcb); /* a duplicate from a peer without D-SACK */
    }
    return false;
}
