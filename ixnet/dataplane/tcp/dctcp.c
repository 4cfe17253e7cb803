/* DCTCP (RFC 8257): the window shrinks by as much of it as was marked. */
#include "tcp/tcp.h"

/* Section 4.2: g = 1/16. DCTCP.Alpha is kept in units of 2^-20. */
enum { G_SHIFT = 4, ALPHA_SHIFT = 20 };

void ix_dctcp_begin(struct ix_tcb *tcb)
{
    /* 3.3: Alpha begins at 1, for a loss of half of the window if the first is marked. */
    tcb->dctcp = (struct ix_dctcp){.alpha = 1u << ALPHA_SHIFT, .window_end = tcb->snd_max};
}

void ix_dctcp_acked(struct ix_tcb *tcb, uint32_t acked, bool marked)
{
    struct ix_dctcp *d = &tcb->dctcp;
    d->acked += acked;
    d->marked += marked ? acked : 0;
    if (!ix_seq_gt(tcb->snd_una, d->window_end))
        return;
    /* 3.3 steps 5 to 8: once a window of data */
    uint64_t part = d->acked ? ((uint64_t)d->marked << ALPHA_SHIFT) / d->acked : 0;
    d->alpha += (uint32_t)(part >> G_SHIFT) - (d->alpha >> G_SHIFT);
    d->alpha = IX_MIN(d->alpha, 1u << ALPHA_SHIFT);
    d->window_end = tcb->snd_max;
    d->acked = d->marked = 0;
}

uint32_t ix_dctcp_marked(const struct ix_tcb *tcb)
{
    /* 3.3 step 9: cwnd = cwnd * (1 - Alpha / 2) */
    return tcb->cwnd - (uint32_t)((uint64_t)tcb->cwnd * tcb->dctcp.alpha >> (ALPHA_SHIFT + 1));
}
