/* Loss recovery: when it begins, how much leaves meanwhile, when it ends or was a mistake.
 *
 * RFC 6675 with RACK (RFC 8985) in the place of its loss detection, PRR (RFC 6937) for the window;
 * RFC 6582 for peers without SACK. What recovery needs beyond the records is taken from a pool of
 * the shard; a flow that gets none reduces its window at once and never undoes it.
 */
#include "tcp/tcp.h"

static struct ix_recovery *recovery_of(const struct ix_tcp *tcp, const struct ix_tcb *tcb)
{
    return tcb->recovery == IX_NONE ? NULL : &tcp->recoveries[tcb->recovery];
}

void ix_recovery_drop(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    if (tcb->recovery == IX_NONE)
        return;
    tcp->recoveries[tcb->recovery].next = tcp->recovery_free;
    tcp->recovery_free = tcb->recovery;
    tcp->recoveries_used--;
    tcb->recovery = IX_NONE;
}

/* The window is about to be reduced: notes what it was, in case that was a mistake. */
static void begin(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    if (tcb->recovery == IX_NONE && tcp->recovery_free != IX_NONE) {
        tcb->recovery = tcp->recovery_free;
        tcp->recovery_free = tcp->recoveries[tcb->recovery].next;
        tcp->recoveries_used++;
    }
    tcb->recover = tcb->snd_max;
    struct ix_recovery *r = recovery_of(tcp, tcb);
    if (r)
        *r = (struct ix_recovery){
            .prior_cwnd = tcb->cwnd,
            .prior_ssthresh = tcb->ssthresh,
            .prior_w_max = tcb->cc == IX_CC_CUBIC && tcb->ssthresh != UINT32_MAX
                               ? tcb->cubic.w_max
                               : 0,
            .recover_fs = ix_tcb_flight(tcb),
            .until = tcb->snd_max,
        };
}

/* RFC 6937: as much leaves as the peer took, in proportion to the reduction, and not less than
 * that by the time that all is repaired. */
static void prr(struct ix_tcp *tcp, struct ix_tcb *tcb, const struct ix_ack *a, bool more_lost)
{
    struct ix_recovery *r = recovery_of(tcp, tcb);
    uint32_t pipe = ix_tcb_pipe(tcb), mss = ix_tcb_mss(tcb), count;
    if (!r) {
        tcb->cwnd = tcb->ssthresh;
        return;
    }
    r->prr_delivered += a->delivered;
    if (pipe > tcb->ssthresh) {
        uint64_t share = (uint64_t)r->prr_delivered * tcb->ssthresh;
        uint32_t due = (uint32_t)((share + r->recover_fs - 1) / r->recover_fs);
        count = due > r->prr_out ? due - r->prr_out : 0;
    } else {
        uint32_t owed = r->prr_delivered > r->prr_out ? r->prr_delivered - r->prr_out : 0;
        count = IX_MAX(owed, a->delivered);
        if (a->acked && !more_lost) /* PRR-SSRB while it goes well, else PRR-CRB */
            count += mss;
        count = IX_MIN(count, tcb->ssthresh - pipe);
    }
    if (r->prr_out == 0) /* the fast retransmission itself */
        count = IX_MAX(count, mss);
    tcb->cwnd = IX_MAX(pipe + count, mss);
}

void ix_recovery_enter(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    begin(tcp, tcb);
    tcb->flags |= IX_TF_RECOVERY | IX_TF_REXMIT_ONE;
    /* Without what limited transmit has sent (RFC 5681 3.2 step 2), and not twice for one window
     * (RFC 3168 6.1.2). */
    if (!(tcb->ecn & IX_ECNF_REDUCED))
        ix_cc_lost(tcb, IX_MIN(ix_tcb_flight(tcb), tcb->cwnd));
    ix_tlp_end(tcb);
    tcp->counters->tcp_fast_rexmit++;
    ix_tcp_want_output(tcp, tcb);
}

/* RFC 5682 step 1. Not where timestamps tell better (Eifel); not in fast recovery, nor if another
 * timeout has been answered in part since: what was sent again then can't be told from what was
 * not. The same segment lost twice is no matter, nothing else has left. forgotten: what had been
 * SACKed counts as outstanding once more, and its ACK would prove nothing. */
static void frto_begin(const struct ix_tcp *tcp, const struct ix_tcb *tcb, bool forgotten)
{
    struct ix_recovery *r = recovery_of(tcp, tcb);
    bool before = tcb->flags & IX_TF_RTO && (tcb->retries == 0 || !r || r->frto != IX_FRTO_FIRST);
    if (r)
        r->frto = !(tcb->flags & (IX_TF_TS | IX_TF_RECOVERY)) && !before && !forgotten
                      ? IX_FRTO_FIRST
                      : IX_FRTO_OFF;
}

/* Steps 2 and 3, in the basic variant and in that for SACK (section 3). True: the timeout was
 * spurious. */
static bool frto_ack(struct ix_tcb *tcb, struct ix_recovery *r, const struct ix_ack *a,
                     bool dup)
{
    bool sack = tcb->flags & IX_TF_SACK, second = r->frto == IX_FRTO_SECOND;
    /* (2a): a duplicate without SACK, or all is acknowledged. With SACK duplicates before the
     * answer are late news of what was sent before. */
    bool real = ix_seq_geq(tcb->snd_una, tcb->recover) || (dup && !sack);
    if (!a->acked && !dup)
        return false;
    if (!second) {
        r->frto = real ? IX_FRTO_OFF : a->acked ? IX_FRTO_NEW : r->frto;
        return false;
    }
    r->frto = IX_FRTO_OFF;
    if (a->original && (sack || a->acked))
        return true; /* (3b): what was never sent again has arrived */
    if (!sack) /* (3a): the duplicate makes no room that is seen */
        tcb->cwnd = IX_MAX(tcb->cwnd, 3 * ix_tcb_mss(tcb));
    return false;
}

bool ix_recovery_waits(const struct ix_tcp *tcp, const struct ix_tcb *tcb, bool more)
{
    struct ix_recovery *r = recovery_of(tcp, tcb);
    if (!r || !(tcb->flags & IX_TF_RTO))
        return false;
    if (r->frto == IX_FRTO_NEW)
        r->frto = more ? IX_FRTO_SECOND : IX_FRTO_OFF;
    return r->frto == IX_FRTO_SECOND;
}

void ix_recovery_timeout(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    struct ix_tx_rec *first = ix_rec_first(tcp, tcb);
    /* The peer has dropped what it had SACKed, or may have (RFC 2018 section 8): the second timeout
     * in a row takes no chance. */
    bool forget = tcb->retries > 0 || (first && first->state == IX_TX_SACKED);
    if (!(tcb->flags & (IX_TF_RTO | IX_TF_RECOVERY)))
        begin(tcp, tcb);
    ix_cc_timeout(tcb, ix_tcb_flight(tcb));
    bool sacked = forget && tcb->sacked_bytes;
    if (!(tcb->flags & IX_TF_SACK))
        tcb->sacked_bytes = 0;
    ix_rack_timeout(tcp, tcb, forget);
    ix_tlp_end(tcb);
    frto_begin(tcp, tcb, sacked);
    tcb->flags = (tcb->flags & ~IX_TF_RECOVERY) | IX_TF_RTO | IX_TF_REXMIT_ONE;
    tcb->recover = tcb->snd_max;
    tcb->dupacks = 0;
    tcb->ecn &= (uint8_t)~IX_ECNF_REDUCED;
}

void ix_recovery_resent(struct ix_tcp *tcp, struct ix_tcb *tcb, uint32_t bytes)
{
    struct ix_recovery *r = recovery_of(tcp, tcb);
    if (!r)
        return;
    r->prr_out += bytes;
    r->resent += bytes;
    if (!r->eifel && !r->resent_once) { /* RFC 3522 3.2 step (1) */
        r->first_ts = tcp->now_ms + tcb->ts_offset;
        r->eifel = true;
    }
    r->resent_once = true;
}

void ix_recovery_sent_new(struct ix_tcp *tcp, struct ix_tcb *tcb, uint32_t bytes)
{
    struct ix_recovery *r = tcb->flags & IX_TF_RECOVERY ? recovery_of(tcp, tcb) : NULL;
    if (r)
        r->prr_out += bytes;
}

/* Was the retransmission needless? RFC 3522 by timestamps: an ACK for new data echoes one from
 * before the first retransmission. RFC 2883: all that was sent again arrived twice. */
static bool was_spurious(const struct ix_tcb *tcb, struct ix_recovery *r,
                         const struct ix_tcp_hdr *hdr, const struct ix_ack *a)
{
    if (r->undone || !r->resent_once)
        return false;
    if (r->eifel && a->acked) {
        bool before = tcb->flags & IX_TF_TS && hdr->has_ts && ix_seq_lt(hdr->ts_ecr, r->first_ts);
        r->eifel = false; /* the first such ACK decides (3.2 step (4)) */
        if (before)
            return true;
    }
    if (a->has_dsack) {
        uint32_t bytes = a->dsack.end - a->dsack.start;
        r->resent -= IX_MIN(bytes, r->resent);
        return r->resent == 0;
    }
    return false;
}

/* RFC 4015, RFC 9438 4.9: as if it had not happened. */
static void undo(struct ix_tcp *tcp, struct ix_tcb *tcb, struct ix_recovery *r)
{
    uint32_t at = tcb->snd_una;
    for (struct ix_tx_rec *i = ix_rec_first(tcp, tcb); i; at = i->end, i = ix_rec_next(tcp, tcb, i))
        if (i->state == IX_TX_LOST)
            ix_rec_set_state(tcb, i, i->end - at, IX_TX_OUT);
    tcb->flags &= ~(IX_TF_RTO | IX_TF_RECOVERY | IX_TF_REXMIT_ONE);
    tcb->dupacks = 0;
    r->undone = true;
    ix_cc_undo(tcb, r->prior_cwnd, r->prior_ssthresh, r->prior_w_max);
    tcp->counters->tcp_undo++;
}

/* RFC 6582 3.2 step 3 (1) for both kinds of peers: not more at once than a segment on top of what
 * is out. */
static void end(struct ix_tcb *tcb)
{
    tcb->cwnd = tcb->ssthresh;
    if (!(tcb->flags & IX_TF_SACK))
        tcb->cwnd = IX_MIN(tcb->cwnd, IX_MAX(ix_tcb_pipe(tcb), ix_tcb_mss(tcb)) + ix_tcb_mss(tcb));
    tcb->flags &= ~(IX_TF_RECOVERY | IX_TF_REXMIT_ONE);
    ix_rack_recovered(tcb);
}

/* The segment at snd_una is missing. */
static void first_is_lost(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    struct ix_tx_rec *r = ix_rec_first(tcp, tcb);
    uint32_t bytes = r->end - tcb->snd_una, mss = ix_tcb_mss(tcb);
    if (r->state != IX_TX_OUT)
        return;
    if (bytes > mss) {
        struct ix_tx_rec *head = ix_rec_split(tcp, tcb, r, tcb->snd_una + mss);
        if (head) {
            r = head;
            bytes = mss;
        }
    }
    ix_rec_set_state(tcb, r, bytes, IX_TX_LOST);
}

/* Peers without SACK: RFC 6582. sacked_bytes is then a guess: a segment for each duplicate ACK. */
static void detect_newreno(struct ix_tcp *tcp, struct ix_tcb *tcb, const struct ix_tcp_hdr *hdr,
                           struct ix_ack *a, bool dup)
{
    uint32_t mss = ix_tcb_mss(tcb), flight = ix_tcb_flight(tcb);
    if (dup && !(tcb->flags & IX_TF_RTO)) {
        uint32_t most = flight - tcb->lost_bytes - IX_MIN(flight - tcb->lost_bytes, mss);
        uint32_t before = tcb->sacked_bytes;
        tcb->sacked_bytes = IX_MIN(before + mss, IX_MAX(most, before));
        a->delivered = tcb->sacked_bytes - before;
    } else if (a->acked) {
        uint32_t guessed = tcb->sacked_bytes;
        bool goes_on = tcb->flags & IX_TF_RECOVERY && ix_seq_lt(tcb->snd_una, tcb->recover);
        uint32_t gone = goes_on ? (a->acked > mss ? a->acked - mss : 0) : guessed;
        tcb->sacked_bytes -= IX_MIN(gone, guessed);
        a->delivered = a->acked - IX_MIN(a->acked, guessed - tcb->sacked_bytes);
        if (goes_on) { /* a partial ACK: 3.2 step 3 (2) */
            first_is_lost(tcp, tcb);
            tcb->flags |= IX_TF_REXMIT_ONE;
        }
        if (ix_tcb_flight(tcb) < tcb->sacked_bytes + tcb->lost_bytes)
            tcb->sacked_bytes = ix_tcb_flight(tcb) - tcb->lost_bytes;
    }
    /* 3.2 step 2: not for what was outstanding at a timeout, nor at `recover` itself: the
     * duplicates may be answers to segments sent twice. */
    if (dup && tcb->dupacks == IX_TCP_DUP_THRESH && ix_seq_gt(hdr->ack, tcb->recover) &&
        !(tcb->flags & (IX_TF_RECOVERY | IX_TF_RTO)))
        first_is_lost(tcp, tcb);
}

/* Loss, as far as the ACK tells. Returns when to look again, us; 0: need not. */
static uint32_t detect(struct ix_tcp *tcp, struct ix_tcb *tcb, const struct ix_tcp_hdr *hdr,
                       struct ix_ack *a, bool dup)
{
    if (!(tcb->flags & IX_TF_SACK)) {
        detect_newreno(tcp, tcb, hdr, a, dup);
        return 0;
    }
    if (a->hole) {
        first_is_lost(tcp, tcb);
        a->hole = false;
    }
    if (tcb->sacked_bytes == 0 && !(tcb->flags & (IX_TF_RECOVERY | IX_TF_RTO)))
        return 0;
    uint32_t wait_us = ix_rack_detect(tcp, tcb);
    ix_rec_join(tcp, tcb);
    return wait_us;
}

static void grow(struct ix_tcp *tcp, struct ix_tcb *tcb, const struct ix_ack *a)
{
    /* RFC 7661's point: a window that is not used says nothing of the network. What was SACKed
     * before is not counted again: limited transmit has sent in its place. */
    if (a->acked && tcb->flags & IX_TF_CWND_LIMITED && !(tcb->ecn & IX_ECNF_REDUCED))
        ix_cc_acked(tcp, tcb, IX_MIN(a->acked, a->delivered), a->last_rtt_us);
}

/* Recovery's beginning and end, and the window. */
static void move_on(struct ix_tcp *tcp, struct ix_tcb *tcb, const struct ix_ack *a,
                    uint32_t lost_before)
{
    bool past = ix_seq_geq(tcb->snd_una, tcb->recover);
    bool ended = tcb->flags & IX_TF_RECOVERY && past;
    if (ended)
        end(tcb);
    if (tcb->flags & IX_TF_RTO && past)
        tcb->flags &= ~(IX_TF_RTO | IX_TF_REXMIT_ONE);
    if (tcb->lost_bytes && !(tcb->flags & (IX_TF_RECOVERY | IX_TF_RTO)))
        ix_recovery_enter(tcp, tcb);
    if (tcb->flags & IX_TF_RECOVERY)
        prr(tcp, tcb, a, tcb->lost_bytes > lost_before);
    else if (!ended)
        grow(tcp, tcb, a);
}

/* Was nothing lost, sent again, SACKed or probed for, as far as anybody knows? Then there is
 * nothing to find out or to end, and all that look_closely() does is to let the window grow. */
static bool calm(const struct ix_tcb *tcb, const struct ix_ack *a)
{
    return (tcb->flags & (IX_TF_SACK | IX_TF_RECOVERY | IX_TF_RTO)) == IX_TF_SACK &&
           tcb->recovery == IX_NONE && (tcb->sacked_bytes | tcb->lost_bytes) == 0 &&
           !(tcb->rack & IX_RACK_TLP_OUT) && !a->hole && !a->has_dsack;
}

static IX_NOINLINE uint32_t look_closely(struct ix_tcp *tcp, struct ix_tcb *tcb,
                                         const struct ix_tcp_hdr *hdr, struct ix_ack *a, bool dup)
{
    uint32_t lost_before = tcb->lost_bytes;
    struct ix_recovery *r = recovery_of(tcp, tcb);
    if (r && (was_spurious(tcb, r, hdr, a) ||
              (r->frto != IX_FRTO_OFF && tcb->flags & IX_TF_RTO && frto_ack(tcb, r, a, dup))))
        undo(tcp, tcb, r);
    if (a->has_dsack && tcb->flags & IX_TF_SACK)
        ix_rack_dsack(tcb);
    if (ix_tlp_ack(tcb, hdr, a) && !(tcb->flags & (IX_TF_RECOVERY | IX_TF_RTO))) {
        ix_cc_lost(tcb, ix_tcb_flight(tcb) + a->acked); /* RFC 8985 7.4.2 */
        tcb->cwnd = IX_MIN(tcb->cwnd, tcb->ssthresh);
    }
    uint32_t wait_us = detect(tcp, tcb, hdr, a, dup);
    move_on(tcp, tcb, a, lost_before);
    /* A D-SACK may still come within a round trip. */
    r = recovery_of(tcp, tcb);
    if (r && !(tcb->flags & (IX_TF_RECOVERY | IX_TF_RTO))) {
        if (!r->over) {
            r->over = true;
            r->until = tcb->snd_max;
        } else if (r->undone || ix_seq_gt(tcb->snd_una, r->until)) {
            ix_recovery_drop(tcp, tcb);
        }
    }
    return wait_us;
}

inline uint32_t ix_recovery_ack(struct ix_tcp *tcp, struct ix_tcb *tcb,
                                const struct ix_tcp_hdr *hdr, struct ix_ack *a, bool dup)
{
    if (IX_UNLIKELY(!calm(tcb, a)))
        return look_closely(tcp, tcb, hdr, a, dup);
    grow(tcp, tcb, a);
    return 0;
}

void ix_recovery_look(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    static const struct ix_ack nothing;
    uint32_t lost_before = tcb->lost_bytes;
    uint32_t wait_us = ix_rack_detect(tcp, tcb);
    move_on(tcp, tcb, &nothing, lost_before);
    ix_tcp_arm_after_ack(tcp, tcb, wait_us);
    ix_tcp_want_output(tcp, tcb);
}
