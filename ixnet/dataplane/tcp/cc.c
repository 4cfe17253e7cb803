/* Congestion control: what is common to all, and which algorithm a connection has.
 *
 * An algorithm says how the window grows in congestion avoidance, and what is left of it after
 * loss or a mark. Slow start, the window after a timeout or an idle time, and how the window gets
 * to its new size in recovery are the same for all (RFC 5681). A switch instead of a table of
 * pointers: direct calls, and nothing to relocate.
 */
#include "tcp/tcp.h"

static void grow(struct ix_tcb *tcb, uint32_t bytes)
{
    tcb->cwnd = IX_MIN(tcb->cwnd + bytes, (uint32_t)IX_CWND_MAX);
}

uint32_t ix_cc_initial_window(uint32_t mss)
{
    /* RFC 6928 section 2 */
    return IX_MIN(10 * mss, IX_MAX(2 * mss, 14600u));
}

bool ix_cc_known(uint64_t cc)
{
    return cc >= IX_CC_CUBIC && cc <= IX_CC_DCTCP;
}

void ix_cc_choose(struct ix_tcb *tcb, uint8_t cc)
{
    tcb->cc = cc;
    tcb->cwnd_acked = 0;
    if (cc == IX_CC_DCTCP)
        ix_dctcp_begin(tcb);
    else if (cc == IX_CC_CUBIC && tcb->ssthresh == UINT32_MAX)
        ix_hystart_begin(tcb);
    else
        tcb->cubic = (struct ix_cubic){0};
}

/* CUBIC's state takes the place of HyStart++'s when the first slow start is over. */
static void end_first_slow_start(struct ix_tcb *tcb)
{
    if (tcb->cc == IX_CC_CUBIC)
        tcb->cubic = (struct ix_cubic){0};
}

static void slow_start(struct ix_tcb *tcb, uint32_t bytes, uint32_t rtt_us)
{
    /* RFC 3465 2.2 would have one ACK count for two segments at most: that slows a connection down
     * whose peer answers a batch with one ACK, as we do. As on Linux it counts for what it says
     * (RFC 9406 4.3: without pacing 8 at most), but for one after a timeout. */
    if (tcb->flags & IX_TF_RTO)
        bytes = IX_MIN(bytes, ix_tcb_mss(tcb));
    bool first = tcb->ssthresh == UINT32_MAX;
    if (first && tcb->cc == IX_CC_CUBIC)
        bytes = ix_hystart_acked(tcb, bytes, rtt_us);
    grow(tcb, bytes);
    if (first && tcb->ssthresh != UINT32_MAX)
        end_first_slow_start(tcb);
}

void ix_cc_acked(const struct ix_tcp *tcp, struct ix_tcb *tcb, uint32_t bytes, uint32_t rtt_us)
{
    if (tcb->cwnd < tcb->ssthresh)
        slow_start(tcb, bytes, rtt_us);
    else if (tcb->cc == IX_CC_CUBIC)
        ix_cubic_avoid(tcp, tcb, bytes);
    else
        ix_newreno_avoid(tcb, bytes);
}

/* What of the window is left after a loss. */
static uint32_t reduced(struct ix_tcb *tcb, uint32_t flight_bytes)
{
    if (tcb->ssthresh == UINT32_MAX)
        end_first_slow_start(tcb);
    tcb->cwnd_acked = 0;
    uint32_t left = tcb->cc == IX_CC_CUBIC ? ix_cubic_reduced(tcb, flight_bytes)
                                           : ix_newreno_reduced(tcb, flight_bytes);
    return IX_MAX(left, 2 * ix_tcb_mss(tcb));
}

void ix_cc_lost(struct ix_tcb *tcb, uint32_t flight_bytes)
{
    tcb->ssthresh = reduced(tcb, flight_bytes);
}

void ix_cc_marked(struct ix_tcb *tcb)
{
    uint32_t left = tcb->cc == IX_CC_DCTCP ? ix_dctcp_marked(tcb) : reduced(tcb, tcb->cwnd);
    tcb->ssthresh = tcb->cwnd = IX_MAX(left, 2 * ix_tcb_mss(tcb));
    tcb->cwnd_acked = 0;
}

void ix_cc_timeout(struct ix_tcb *tcb, uint32_t flight_bytes)
{
    if (tcb->retries == 0) /* RFC 5681 3.1: a segment lost again does not halve twice */
        tcb->ssthresh = reduced(tcb, flight_bytes);
    tcb->cwnd = ix_tcb_mss(tcb);
    tcb->cwnd_acked = 0;
}

void ix_cc_undo(struct ix_tcb *tcb, uint32_t cwnd, uint32_t ssthresh, uint32_t w_max)
{
    tcb->cwnd = IX_MAX(tcb->cwnd, cwnd);
    tcb->ssthresh = ssthresh;
    tcb->cwnd_acked = 0;
    if (tcb->cc != IX_CC_CUBIC)
        return;
    if (ssthresh == UINT32_MAX)
        ix_hystart_begin(tcb);
    else /* RFC 9438 4.9.1; a new epoch begins where the old one was */
        tcb->cubic = (struct ix_cubic){.w_max = w_max, .cwnd_prior = w_max};
}

void ix_cc_restart_after_idle(const struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    /* RFC 5681 4.1 */
    tcb->cwnd = IX_MIN(tcb->cwnd, ix_cc_initial_window(ix_tcb_mss(tcb)));
    if (tcb->cc == IX_CC_CUBIC && tcb->ssthresh != UINT32_MAX)
        ix_cubic_idle(tcb, tcp->now_ms - tcb->last_tx_ms);
}
