/* Records of what is outstanding: RACK (RFC 8985) wants to know when each segment was sent.
 *
 * A record stands for a range of sequence numbers that was sent at one time and has had one fate; a
 * batch of segments that leaves in one cycle is one record. They cover [snd_una, snd_max) without
 * gaps, so a record needs no start. The last one lives in the TCB: a flow that sends now and then
 * never takes one from the shard's pool. SACK blocks and retransmissions split records; this is the
 * scoreboard of RFC 2018 and RFC 6675 as well.
 *
 * The pool is bounded, and so is what one flow may take. Where no record is to be had, what was
 * sent at different times becomes one (as if sent at the later one), a SACK block that would need
 * one is not noted (it is advice, RFC 2018 section 8), and a range that is sent again in part is
 * `coarse`: it counts as sent again, and an ACK that ends inside it shows the rest to be missing.
 */
#include "tcp/tcp.h"

/* Room for a record in the pool, taken; IX_NONE. */
static uint32_t take(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    uint32_t i = tcp->rec_free;
    if (i == IX_NONE || tcb->rec_count >= IX_TX_RECORDS_FLOW)
        return IX_NONE;
    tcp->rec_free = tcp->recs[i].next;
    tcp->recs_used++;
    tcb->rec_count++;
    return i;
}

static void give_back(struct ix_tcp *tcp, struct ix_tcb *tcb, uint32_t i)
{
    tcp->recs[i].next = tcp->rec_free;
    tcp->rec_free = i;
    tcp->recs_used--;
    tcb->rec_count--;
}

static void append(struct ix_tcp *tcp, struct ix_tcb *tcb, uint32_t i)
{
    tcp->recs[i].next = IX_NONE;
    *(tcb->rec_tail == IX_NONE ? &tcb->rec_head : &tcp->recs[tcb->rec_tail].next) = i;
    tcb->rec_tail = i;
}

struct ix_tx_rec *ix_rec_first(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    if (ix_tcb_flight(tcb) == 0)
        return NULL;
    return tcb->rec_head == IX_NONE ? &tcb->last : &tcp->recs[tcb->rec_head];
}

struct ix_tx_rec *ix_rec_next(struct ix_tcp *tcp, struct ix_tcb *tcb, struct ix_tx_rec *r)
{
    if (r == &tcb->last)
        return NULL;
    return r->next == IX_NONE ? &tcb->last : &tcp->recs[r->next];
}

void ix_rec_sent(struct ix_tcp *tcp, struct ix_tcb *tcb, uint32_t end)
{
    struct ix_tx_rec *last = &tcb->last;
    bool again = false, coarse = false;
    if (ix_tcb_flight(tcb)) {
        bool same = last->state == IX_TX_OUT && last->sent_us == tcp->now_us && !last->again;
        uint32_t i = same ? IX_NONE : take(tcp, tcb);
        if (i != IX_NONE) {
            tcp->recs[i] = *last;
            append(tcp, tcb, i);
        } else { /* one record for both; what was known of the fate of the first is forgotten */
            ix_rec_set_state(tcb, last, tcb->snd_max - ix_rec_last_start(tcp, tcb), IX_TX_OUT);
            again = last->again;
            coarse = last->coarse;
        }
    }
    last->end = end; /* which is snd_max */
    last->sent_us = tcp->now_us;
    last->state = IX_TX_OUT;
    last->again = again;
    last->coarse = coarse;
    last->pushed = false;
}

uint32_t ix_rec_last_start(const struct ix_tcp *tcp, const struct ix_tcb *tcb)
{
    return tcb->rec_tail == IX_NONE ? tcb->snd_una : tcp->recs[tcb->rec_tail].end;
}

void ix_rec_set_state(struct ix_tcb *tcb, struct ix_tx_rec *r, uint32_t bytes, uint8_t state)
{
    if (r->state == IX_TX_SACKED)
        tcb->sacked_bytes -= bytes;
    else if (r->state == IX_TX_LOST)
        tcb->lost_bytes -= bytes;
    if (state == IX_TX_SACKED)
        tcb->sacked_bytes += bytes;
    else if (state == IX_TX_LOST)
        tcb->lost_bytes += bytes;
    r->state = state;
    /* Without SACK what arrived is a guess from duplicate ACKs: it was not this. */
    if (state == IX_TX_LOST && !(tcb->flags & IX_TF_SACK))
        tcb->sacked_bytes = IX_MIN(tcb->sacked_bytes, ix_tcb_flight(tcb) - tcb->lost_bytes);
}

struct ix_tx_rec *ix_rec_split(struct ix_tcp *tcp, struct ix_tcb *tcb, struct ix_tx_rec *r,
                               uint32_t at)
{
    uint32_t i = take(tcp, tcb);
    if (i == IX_NONE)
        return NULL;
    struct ix_tx_rec *new = &tcp->recs[i];
    *new = *r;
    if (r == &tcb->last) { /* it stays the last: the new one is the part before */
        new->end = at;
        new->pushed = false;
        append(tcp, tcb, i);
        return new;
    }
    r->end = at;
    r->pushed = false;
    r->next = i;
    if (new->next == IX_NONE)
        tcb->rec_tail = i;
    return r;
}

void ix_rec_drop_first(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    uint32_t i = tcb->rec_head;
    IX_ASSERT(i != IX_NONE);
    tcb->rec_head = tcp->recs[i].next;
    if (tcb->rec_head == IX_NONE)
        tcb->rec_tail = IX_NONE;
    give_back(tcp, tcb, i);
}

/* May two neighbours, `bytes` together, be one record? When a SACKed one was sent does not matter
 * any more. The end of a SENDV stays one, but what fits into a segment is sent again in one, as
 * Linux has it (tcp_retrans_try_collapse()). */
static bool alike(const struct ix_tcb *tcb, const struct ix_tx_rec *a, const struct ix_tx_rec *b,
                  uint32_t bytes)
{
    if (a->state != b->state)
        return false;
    return a->state == IX_TX_SACKED ||
           (a->sent_us == b->sent_us && a->again == b->again && a->coarse == b->coarse &&
            (!a->pushed || bytes <= ix_tcb_mss(tcb)));
}

void ix_rec_join(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    uint32_t before = IX_NONE, start = tcb->snd_una;
    for (uint32_t i = tcb->rec_head; i != IX_NONE;) {
        struct ix_tx_rec *r = &tcp->recs[i];
        uint32_t next = r->next;
        const struct ix_tx_rec *behind = next == IX_NONE ? &tcb->last : &tcp->recs[next];
        if (!alike(tcb, r, behind, behind->end - start)) {
            before = i;
            start = r->end;
        } else { /* the one behind takes over its range */
            *(before == IX_NONE ? &tcb->rec_head : &tcp->recs[before].next) = next;
            if (next == IX_NONE)
                tcb->rec_tail = before;
            give_back(tcp, tcb, i);
        }
        i = next;
    }
}

void ix_rec_drop(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    while (tcb->rec_head != IX_NONE)
        ix_rec_drop_first(tcp, tcb);
    tcb->sacked_bytes = tcb->lost_bytes = 0;
    ix_recovery_drop(tcp, tcb);
}

const char *ix_rec_check(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    uint32_t at = tcb->snd_una, count = 0, sacked = 0, lost = 0;
    if (ix_tcb_flight(tcb) == 0)
        return tcb->rec_count || tcb->sacked_bytes || tcb->lost_bytes
                   ? "tcp: records of what is not outstanding"
                   : NULL;
    for (struct ix_tx_rec *r = ix_rec_first(tcp, tcb); r; r = ix_rec_next(tcp, tcb, r), count++) {
        if (!ix_seq_lt(at, r->end))
            return "tcp: records of what is outstanding are out of order";
        sacked += r->state == IX_TX_SACKED ? r->end - at : 0;
        lost += r->state == IX_TX_LOST ? r->end - at : 0;
        at = r->end;
    }
    if (at != tcb->snd_max || count != tcb->rec_count + 1u)
        return "tcp: records do not cover what is outstanding";
    if (lost != tcb->lost_bytes || (tcb->flags & IX_TF_SACK && sacked != tcb->sacked_bytes))
        return "tcp: lost_bytes or sacked_bytes is wrong";
    if ((uint64_t)tcb->lost_bytes + tcb->sacked_bytes > ix_tcb_flight(tcb))
        return "tcp: more is lost and delivered than is outstanding";
    return NULL;
}
