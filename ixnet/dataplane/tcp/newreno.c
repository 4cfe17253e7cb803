/* NewReno congestion control (RFC 5681, RFC 6582, RFC 3465 for counting bytes). */
#include "tcp/tcp.h"

uint32_t ix_cc_initial_window(uint32_t mss)
{
    /* RFC 6928 section 2 */
    return IX_MIN(10 * mss, IX_MAX(2 * mss, 14600u));
}

/* Keeps cwnd below what a window can ever be, so that sums don't wrap. */
static void grow(struct ix_tcb *tcb, uint32_t bytes)
{
    tcb->cwnd = IX_MIN(tcb->cwnd + bytes, 1u << 30);
}

void ix_cc_acked(struct ix_tcb *tcb, uint32_t bytes)
{
    uint32_t mss = ix_tcb_mss(tcb);
    /* Slow start: one ACK counts for L segments at most. L = 2 (RFC 3465 2.2) would slow a peer
     * down that answers a batch with one ACK, as we do; 8 without pacing (RFC 9406 4.3), 1 after
     * a timeout. */
    if (tcb->cwnd < tcb->ssthresh) {
        grow(tcb, IX_MIN(bytes, (tcb->flags & IX_TF_RTO ? 1 : 8) * mss));
        return;
    }
    tcb->cwnd_acked += bytes;
    if (tcb->cwnd_acked >= tcb->cwnd) {
        tcb->cwnd_acked -= tcb->cwnd;
        grow(tcb, mss);
    }
}

/* RFC 5681 equation (4) */
static uint32_t half_flight(const struct ix_tcb *tcb, uint32_t flight_bytes)
{
    return IX_MAX(flight_bytes / 2, 2 * ix_tcb_mss(tcb));
}

void ix_cc_enter_recovery(struct ix_tcb *tcb, uint32_t flight_bytes)
{
    tcb->ssthresh = half_flight(tcb, flight_bytes);
    tcb->cwnd = tcb->ssthresh;
    tcb->cwnd_acked = 0;
    if (!(tcb->flags & IX_TF_SACK)) /* RFC 5681 3.2 step 3: the three segments that have left */
        grow(tcb, 3 * ix_tcb_mss(tcb));
}

void ix_cc_timeout(struct ix_tcb *tcb, uint32_t flight_bytes)
{
    if (tcb->retries == 0) /* RFC 5681 3.1: a segment lost again does not halve twice */
        tcb->ssthresh = half_flight(tcb, flight_bytes);
    tcb->cwnd = ix_tcb_mss(tcb);
    tcb->cwnd_acked = 0;
}

void ix_cc_restart_after_idle(struct ix_tcb *tcb)
{
    /* RFC 5681 4.1 */
    tcb->cwnd = IX_MIN(tcb->cwnd, ix_cc_initial_window(ix_tcb_mss(tcb)));
}
