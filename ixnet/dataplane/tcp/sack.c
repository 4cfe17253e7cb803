/* What arrived, as the peer says it: SACK blocks (RFC 2018), D-SACK (RFC 2883), cumulative ACKs.
 * All of it goes into the flow's records (txrec.c). */
#include "tcp/tcp.h"

/* [at, r->end) has arrived, which was not known before. */
static inline void delivered(struct ix_tcp *tcp, struct ix_tcb *tcb, const struct ix_tcp_hdr *hdr,
                             struct ix_ack *a, const struct ix_tx_rec *r, uint32_t at,
                             uint32_t end)
{
    a->delivered += end - at;
    if (!r->again) {
        uint32_t rtt_us = tcp->now_us - r->sent_us + 1;
        a->rtt_us = IX_MAX(a->rtt_us, rtt_us);
        a->last_rtt_us = a->last_rtt_us ? IX_MIN(a->last_rtt_us, rtt_us) : rtt_us;
        a->original |= ix_seq_leq(end, tcb->recover);
    }
    ix_rack_delivered(tcp, tcb, hdr, r, end);
}

/* Marks what of [start, end) is outstanding as arrived. */
static IX_NOINLINE void mark(struct ix_tcp *tcp, struct ix_tcb *tcb, const struct ix_tcp_hdr *hdr,
                             struct ix_ack *a, const struct ix_tcp_sack *block)
{
    uint32_t at = tcb->snd_una;
    for (struct ix_tx_rec *r = ix_rec_first(tcp, tcb); r && ix_seq_lt(at, block->end);
         at = r->end, r = ix_rec_next(tcp, tcb, r)) {
        if (r->state == IX_TX_SACKED || ix_seq_leq(r->end, block->start))
            continue;
        if (ix_seq_lt(at, block->start)) {
            struct ix_tx_rec *head = ix_rec_split(tcp, tcb, r, block->start);
            if (!head)
                continue;
            at = head->end;
            r = ix_rec_next(tcp, tcb, head);
        }
        if (ix_seq_gt(r->end, block->end)) {
            struct ix_tx_rec *head = ix_rec_split(tcp, tcb, r, block->end);
            if (!head)
                continue;
            r = head;
        }
        a->sack_news = true;
        delivered(tcp, tcb, hdr, a, r, at, r->end);
        ix_rec_set_state(tcb, r, r->end - at, IX_TX_SACKED);
    }
}

/* RFC 2883 section 4: the first block reports a duplicate if the ACK covers it, or the second
 * block does. */
static bool is_dsack(const struct ix_tcp_hdr *hdr)
{
    const struct ix_tcp_sack *first = &hdr->sack[0], *second = &hdr->sack[1];
    if (!ix_seq_lt(first->start, first->end))
        return false;
    return ix_seq_leq(first->end, hdr->ack) ||
           (hdr->sack_count > 1 && ix_seq_geq(first->start, second->start) &&
            ix_seq_leq(first->end, second->end));
}

void ix_sack_update(struct ix_tcp *tcp, struct ix_tcb *tcb, const struct ix_tcp_hdr *hdr,
                    struct ix_ack *a)
{
    uint32_t i = 0;
    if (is_dsack(hdr)) {
        a->dsack = hdr->sack[0];
        a->has_dsack = true;
        tcp->counters->tcp_dsack_in++;
        i = 1;
    }
    /* The lowest first, or what one ACK reports at once would seem to have been reordered. */
    struct ix_tcp_sack blocks[IX_SACK_BLOCKS_RX];
    uint32_t count = 0;
    for (; i < hdr->sack_count; i++) {
        uint32_t at = count++;
        for (; at && ix_seq_lt(hdr->sack[i].start, blocks[at - 1].start); at--)
            blocks[at] = blocks[at - 1];
        blocks[at] = hdr->sack[i];
    }
    for (i = 0; i < count; i++) {
        const struct ix_tcp_sack *block = &blocks[i];
        /* Only what is outstanding and above the ACK; others are lies or old. */
        if (ix_seq_lt(block->start, block->end) && ix_seq_gt(block->start, hdr->ack) &&
            ix_seq_gt(block->start, tcb->snd_una) && ix_seq_leq(block->end, tcb->snd_max))
            mark(tcp, tcb, hdr, a, block);
    }
}

/* From record to record. */
static IX_NOINLINE void walk(struct ix_tcp *tcp, struct ix_tcb *tcb, const struct ix_tcp_hdr *hdr,
                             struct ix_ack *a)
{
    uint32_t at = tcb->snd_una;
    while (ix_seq_lt(at, hdr->ack)) {
        struct ix_tx_rec *r = tcb->rec_head == IX_NONE ? &tcb->last : &tcp->recs[tcb->rec_head];
        bool whole = ix_seq_leq(r->end, hdr->ack);
        uint32_t end = whole ? r->end : hdr->ack;
        uint8_t state = r->state;
        if (state != IX_TX_SACKED)
            delivered(tcp, tcb, hdr, a, r, at, end);
        ix_rec_set_state(tcb, r, end - at, IX_TX_OUT); /* no longer counted */
        if (!whole) {
            r->state = state;
            if (r->coarse && state == IX_TX_OUT)
                a->hole = true;
        } else if (r != &tcb->last) {
            ix_rec_drop_first(tcp, tcb);
        }
        at = end;
    }
}

inline void ix_sack_advance(struct ix_tcp *tcp, struct ix_tcb *tcb, const struct ix_tcp_hdr *hdr,
                            struct ix_ack *a)
{
    const struct ix_tx_rec *last = &tcb->last;
    a->acked = hdr->ack - tcb->snd_una;
    /* All that is out left at one time and is there: no sum changes. */
    if (IX_LIKELY(tcb->rec_head == IX_NONE && last->end == hdr->ack && last->state == IX_TX_OUT))
        delivered(tcp, tcb, hdr, a, last, tcb->snd_una, hdr->ack);
    else
        walk(tcp, tcb, hdr, a);
    tcb->snd_una = hdr->ack;
}
