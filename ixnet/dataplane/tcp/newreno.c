/* NewReno's window (RFC 5681, RFC 3465 for counting bytes). */
#include "tcp/tcp.h"

void ix_newreno_avoid(struct ix_tcb *tcb, uint32_t acked)
{
    tcb->cwnd_acked += acked;
    if (tcb->cwnd_acked >= tcb->cwnd) {
        tcb->cwnd_acked -= tcb->cwnd;
        tcb->cwnd = IX_MIN(tcb->cwnd + ix_tcb_mss(tcb), (uint32_t)IX_CWND_MAX);
    }
}

uint32_t ix_newreno_reduced(const struct ix_tcb *tcb, uint32_t flight_bytes)
{
    (void)tcb;
    return flight_bytes / 2; /* RFC 5681 equation (4) */
}
