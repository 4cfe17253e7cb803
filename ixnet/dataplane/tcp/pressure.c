/* No frames are left: what is had back, and from whom.
 *
 * Windows and frames_most() (recv.c) keep any connection from holding much, but many that each hold
 * what they may can use up the pool, for as long as their peers read no answer. As Linux does when
 * tcp_mem is exceeded (tcp_prune_queue()), what waits out of order goes first. Linux then resets
 * what nobody owns any more; here frames are lent to the application, so the connection that holds
 * the most has to go: when those that hold few were refused more often than served for a while.
 */
#include "tcp/tcp.h"

enum {
    STARVED_MS = 100, /* less than a peer's least retransmission timeout */
    LOOK_MOST = 256,  /* frames a cycle */
    STRIDE = 7919,    /* between them, so that they are a sample of all; a prime */
    PRUNE_MOST = 256, /* frames a cycle */
};

void ix_tcp_starved(struct ix_tcp *tcp, bool in_order)
{
    struct ix_pressure *p = &tcp->pressure;
    p->prune = true;
    if (!in_order) /* it comes again, in order */
        return;
    if (p->since_ns == 0) {
        p->since_ns = tcp->now_ns;
        p->refused = p->taken = p->owed = 0;
    }
    p->refused++;
}

/* The connection that holds a pool frame, if it can be ended. */
static struct ix_tcb *holder(struct ix_tcp *tcp, const struct ix_frame *frame)
{
    struct ix_tcb *tcb = NULL;
    if (frame->owner == IX_FRAME_APP)
        tcb = ix_tcp_of_handle(tcp, frame->handle);
    else if (frame->owner == IX_FRAME_RX && frame->flow != IX_NONE)
        tcb = &tcp->flows[frame->flow];
    return tcb && ix_tcb_synchronized(tcb) && tcb->state != IX_TCP_TIME_WAIT ? tcb : NULL;
}

/* Looks at frames spread over the pool: who holds many is found by one of them. */
static void look(struct ix_tcp *tcp, struct ix_tcb **most, struct ix_tcb **ooo)
{
    const struct ix_frames *frames = tcp->net->frames;
    uint32_t stride = frames->pool_frames % STRIDE ? STRIDE : 1, hand = tcp->pressure.hand;
    *most = *ooo = NULL;
    for (uint32_t i = 0; i < IX_MIN(frames->pool_frames, (uint32_t)LOOK_MOST); i++) {
        hand = (hand + stride) % frames->pool_frames;
        struct ix_tcb *tcb = holder(tcp, &frames->meta[hand]);
        if (!tcb)
            continue;
        if (!*most || tcb->held_frames > (*most)->held_frames)
            *most = tcb;
        if (tcb->ooo_count > (*ooo ? (*ooo)->ooo_count : 0))
            *ooo = tcb;
    }
    tcp->pressure.hand = hand;
}

/* Resets the connection that holds the most, until frames enough are left or on their way back.
 * False if that is so. */
static bool reset_one(struct ix_tcp *tcp, struct ix_tcb *most)
{
    struct ix_pressure *p = &tcp->pressure;
    uint32_t lend_max = tcp->net->frames->lend_max;
    if (p->refused <= p->taken || !most || most->held_frames == 0 ||
        ix_tcp_frames_left(tcp, lend_max) + p->owed >= IX_MAX(lend_max / 16, 1u))
        return false;
    ix_tcp_send_reset(tcp, most);
    ix_tcp_finish(tcp, most, -IX_ENOBUFS);
    p->owed += most->held_frames;
    tcp->counters->tcp_pressure_resets++;
    return true;
}

void ix_tcp_relieve(struct ix_tcp *tcp)
{
    struct ix_pressure *p = &tcp->pressure;
    bool due = p->since_ns && tcp->now_ns >= ix_tcp_relief_ns(tcp);
    struct ix_tcb *most, *ooo;
    if (IX_LIKELY(!p->prune && !due))
        return;
    look(tcp, &most, &ooo);
    if (p->prune && ooo)
        tcp->counters->tcp_ooo_pruned += ix_tcp_prune(tcp, ooo, PRUNE_MOST);
    p->prune = false;
    if (due && !reset_one(tcp, most))
        p->since_ns = 0;
}

uint64_t ix_tcp_relief_ns(const struct ix_tcp *tcp)
{
    uint64_t since_ns = tcp->pressure.since_ns;
    return since_ns ? since_ns + STARVED_MS * 1000000ull : UINT64_MAX;
}
