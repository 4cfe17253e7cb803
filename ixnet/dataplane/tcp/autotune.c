/* Windows that grow with use: how much the application may leave unread, and how much unsent.
 *
 * A window that is always as large as a long fast path needs would let every idle peer take its
 * share of the frames; one that is small would slow the few that need more.
 */
#include "tcp/tcp.h"

enum { SPARE_SEGMENTS = 16 }; /* as Linux: the sender's window may have grown meanwhile */

/* Dynamic right-sizing (Fisk and Feng, 2001), as Linux does it: what the application took in one
 * round trip, twice over, as the sender doubles its window in that time; and more by as much as it
 * took more than before. */
void ix_tcp_tune_receive(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    const struct ix_frames *frames = tcp->net->frames;
    uint32_t most = tcp->cfg->rcvbuf_max_bytes, gone_ms = tcp->now_ms - tcb->drs_ms;
    if (tcb->rcvbuf_bytes >= most || tcb->drs_bytes == UINT32_MAX ||
        gone_ms < IX_MAX(tcb->srtt_us / 1000, 1u))
        return;
    uint32_t taken_seq = tcb->rcv_nxt - tcb->lent_bytes, taken = taken_seq - tcb->drs_seq;
    uint32_t before = tcb->drs_bytes;
    tcb->drs_ms = tcp->now_ms;
    tcb->drs_seq = taken_seq;
    /* Few frames left: the window is already smaller than its limit. */
    uint32_t held = frames->count[IX_FRAME_APP] + frames->count[IX_FRAME_RX];
    if (taken <= before || taken > 1u << 30 || held > frames->pool_frames / 2)
        return;
    tcb->drs_bytes = taken;
    uint64_t want = 2ull * taken + SPARE_SEGMENTS * ix_tcb_mss(tcb);
    want += want * (taken - before) / IX_MAX(before, 1u);
    want = IX_MIN(want, (uint64_t)most);
    tcb->rcvbuf_bytes = IX_MAX(tcb->rcvbuf_bytes, (uint32_t)want);
}

/* RFC 9293 has no say in it; Linux's rule: twice what the network takes, so that the next window is
 * there when this one is acknowledged. */
uint32_t ix_tcp_send_limit(const struct ix_tcp *tcp, const struct ix_tcb *tcb)
{
    if (tcb->sndbuf_bytes)
        return tcb->sndbuf_bytes;
    uint32_t want = IX_MAX(tcp->cfg->sndbuf_bytes, 2 * tcb->cwnd);
    return IX_MIN(want, tcp->cfg->sndbuf_max_bytes);
}
