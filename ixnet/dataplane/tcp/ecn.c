/* Explicit congestion notification: RFC 3168 section 6.1, and how DCTCP changes the receiver's
 * side (RFC 8257 3.2).
 *
 * Both sides must agree in their SYNs. A side that has sent or received a SYN without ECN as well
 * echoes marks, and sends none that could be marked (6.1.1). Data, and nothing else, is then sent
 * as ECT(0): not what is sent again (6.1.5), pure ACKs (6.1.4) or probes (6.1.6).
 */
#include "tcp/tcp.h"

bool ix_ecn_wanted(const struct ix_tcp *tcp, const struct ix_tcb *tcb)
{
    return tcp->cfg->ecn == IX_ECN_REQUEST ||
           (tcb->cc == IX_CC_DCTCP && tcp->cfg->ecn != IX_ECN_OFF);
}

uint8_t ix_ecn_syn_flags(const struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    if (tcb->state == IX_TCP_SYN_RCVD)
        return tcb->ecn & IX_ECNF_ON ? IX_TCP_ECE : 0;
    /* 6.1.1.1: who drops SYNs for their bits gets one without, and then there is no ECN. */
    if (tcb->retries || !ix_ecn_wanted(tcp, tcb)) {
        tcb->ecn |= IX_ECNF_MUTE;
        return 0;
    }
    tcb->ecn |= IX_ECNF_ASKED;
    return IX_TCP_ECE | IX_TCP_CWR;
}

void ix_ecn_take_syn(const struct ix_tcp *tcp, struct ix_tcb *tcb, uint8_t flags, bool ect)
{
    const uint8_t both = IX_TCP_ECE | IX_TCP_CWR;
    bool agreed;
    if (flags & IX_TCP_ACK) /* both bits: a peer that reflects what it does not know (6.1.1) */
        agreed = tcb->ecn & IX_ECNF_ASKED && (flags & both) == IX_TCP_ECE;
    else /* 6.1.1: a SYN is not ECT; one that is comes from a path that rewrites the field. When
          * both sides open, both must have asked. */
        agreed = tcp->cfg->ecn != IX_ECN_OFF && (flags & both) == both && !ect &&
                 (tcb->flags & IX_TF_PASSIVE || tcb->ecn & IX_ECNF_ASKED);
    tcb->ecn = agreed ? IX_ECNF_ON | (tcb->ecn & IX_ECNF_MUTE) : 0;
    tcp->counters->tcp_ecn += agreed;
}

void ix_ecn_take_syn_again(struct ix_tcb *tcb, uint8_t flags)
{
    const uint8_t both = IX_TCP_ECE | IX_TCP_CWR;
    if ((flags & both) != both) /* 6.1.1: it fell back, or is not what it was */
        tcb->ecn |= IX_ECNF_MUTE;
}

void ix_ecn_data(struct ix_tcp *tcp, struct ix_tcb *tcb, uint8_t tos, uint8_t flags)
{
    bool ce = (tos & IX_ECN_MASK) == IX_ECN_CE;
    tcp->counters->tcp_ce_in += ce;
    if (tcb->cc == IX_CC_DCTCP) {
        bool was = tcb->ecn & IX_ECNF_ECE;
        if (ce == was)
            return;
        /* 8257 3.2: what came before the change is acknowledged as it was; each ACK then speaks of
         * one kind of segments. */
        if (tcb->unacked_segs)
            (void)ix_tcp_send_segment(tcp, tcb, ix_tcb_ack_seq(tcb), 0, IX_TCP_ACK, false);
        tcb->ecn ^= IX_ECNF_ECE;
        ix_tcp_ack_now(tcp, tcb);
        return;
    }
    if (flags & IX_TCP_CWR) /* 6.1.3: the sender has seen it; a mark from now on is another one */
        tcb->ecn &= (uint8_t)~IX_ECNF_ECE;
    if (ce) {
        tcb->ecn |= IX_ECNF_ECE;
        ix_tcp_ack_now(tcp, tcb);
    }
}

void ix_ecn_acked(struct ix_tcp *tcp, struct ix_tcb *tcb, uint32_t acked, uint8_t flags)
{
    bool ece = flags & IX_TCP_ECE;
    if (tcb->cc == IX_CC_DCTCP)
        ix_dctcp_acked(tcb, acked, ece);
    bool again = tcb->ecn & IX_ECNF_REDUCED;
    if (again && ix_seq_geq(tcb->snd_una, tcb->cwr_end))
        tcb->ecn &= (uint8_t)~IX_ECNF_REDUCED; /* this ACK still speaks of what was out then */
    /* 6.1.2: once a window of data, and not on top of what a loss in it did. */
    if (!ece || again || tcb->flags & (IX_TF_RECOVERY | IX_TF_RTO))
        return;
    tcp->counters->tcp_ece_reductions++;
    ix_cc_marked(tcb);
    tcb->cwr_end = tcb->snd_max;
    tcb->ecn |= IX_ECNF_REDUCED | IX_ECNF_CWR;
}

uint8_t ix_ecn_flags(struct ix_tcb *tcb, bool new_data)
{
    uint8_t flags = tcb->ecn & IX_ECNF_ECE ? IX_TCP_ECE : 0;
    if (tcb->ecn & IX_ECNF_CWR && new_data) { /* 6.1.2: with the first new data after it */
        tcb->ecn &= (uint8_t)~IX_ECNF_CWR;
        flags |= IX_TCP_CWR;
    }
    return flags;
}
