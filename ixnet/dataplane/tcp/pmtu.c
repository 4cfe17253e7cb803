/* What a connection makes of the path's MTU: ICMP errors, and their absence. */
#include "tcp/tcp.h"

enum {
    BLACK_HOLE_RETRIES = 3, /* Linux: tcp_retries1 */
    BLACK_HOLE_MSS = 1024,  /* the first guess, then halves (RFC 4821 7.2; Linux: tcp_base_mss) */
    NARROW_RETRIES = 6,     /* until those: nearly every path carries the first guess */
};

/* RFC 1191 section 7: what a router that does not say its MTU may have. */
static const uint16_t plateaus[] = {4352, 2002, 1492, 1006, IX_MTU_MIN};

static uint32_t below(uint32_t bytes)
{
    uint32_t i = 0;
    while (i + 1 < IX_ARRAY_LEN(plateaus) && plateaus[i] >= bytes)
        i++;
    return plateaus[i];
}

/* Payload that fits into a packet of `mtu` bytes, options not subtracted. */
static uint32_t mss_of(const struct ix_tcb *tcb, uint32_t mtu)
{
    return mtu - ix_tcb_headers(tcb);
}

void ix_tcp_path_mtu(struct ix_tcp *tcp, struct ix_tcb *tcb, const struct ix_icmp_error *error)
{
    /* A SYN is never too long, and a packet no longer than the MTU either: made up (RFC 5927 7.2).
     */
    uint32_t mtu = error->mtu ? error->mtu : below(error->quoted_bytes);
    if (!ix_tcb_synchronized(tcb) || mtu >= error->quoted_bytes ||
        !ix_pmtu_lower(tcp->net, tcb->key.family, &tcb->key.peer, mtu)) {
        tcp->counters->drop_icmp_stale++;
        return;
    }
    tcp->counters->icmp_errors_in++;
    /* Whatever was too long is lost, and that is no sign of congestion (RFC 1191 section 6.4 asks
     * for the window to stay): cut anew from snd_una on. */
    (void)ix_net_dst_ready(tcp->net, &tcb->key, &tcb->dst);
    uint32_t at = tcb->snd_una;
    for (struct ix_tx_rec *r = ix_rec_first(tcp, tcb); r; r = ix_rec_next(tcp, tcb, r)) {
        if (r->state == IX_TX_OUT)
            ix_rec_set_state(tcb, r, r->end - at, IX_TX_LOST);
        at = r->end;
    }
    tcb->flags |= IX_TF_REXMIT_ONE;
    ix_tcp_want_output(tcp, tcb);
}

void ix_tcp_black_hole(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    /* What is sent again and again may be shorter than a full segment, and than the first guess. */
    uint32_t bytes = IX_MIN(ix_tcb_mss_now(tcb), tcb->queued_bytes);
    uint32_t enough = bytes > BLACK_HOLE_MSS ? BLACK_HOLE_RETRIES : NARROW_RETRIES;
    if (tcb->retries < enough || !ix_tcb_synchronized(tcb) || tcb->snd_wnd == 0)
        return;
    uint32_t smaller = bytes > BLACK_HOLE_MSS ? BLACK_HOLE_MSS : bytes / 2;
    smaller = IX_MAX(smaller, mss_of(tcb, IX_MTU_MIN));
    /* A segment that was short anyway is not lost for its length. */
    if (smaller >= bytes)
        return;
    if (ix_pmtu_lower(tcp->net, tcb->key.family, &tcb->key.peer, smaller + ix_tcb_headers(tcb))) {
        tcp->counters->pmtu_black_holes++;
        (void)ix_net_dst_ready(tcp->net, &tcb->key, &tcb->dst);
    }
}
