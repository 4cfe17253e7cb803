/* Events: what a flow has to tell, in the order in which it happened. */
#include "tcp/tcp.h"

static struct ix_event *event_for(struct ix_tcp *tcp, const struct ix_tcb *tcb, uint8_t type)
{
    struct ix_event *event = ix_io_event(tcp->io, type);
    if (event) {
        event->handle = ix_tcb_handle(tcp, tcb);
        event->cookie = tcb->cookie;
    }
    return event;
}

static void put_addresses(struct ix_event *event, const struct ix_tcb *tcb)
{
    event->family = tcb->key.family;
    event->peer_port = tcb->key.peer_port;
    event->local_port = tcb->key.local_port;
    __builtin_memcpy(event->peer, tcb->key.peer.b, sizeof event->peer);
    __builtin_memcpy(event->local, tcb->key.local.b, sizeof event->local);
}

static IX_NOINLINE bool deliver_opening(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    bool knock = tcb->flags & IX_TF_EV_KNOCK;
    struct ix_event *event = event_for(tcp, tcb, knock ? IX_EV_KNOCK : IX_EV_CONNECTED);
    if (!event)
        return false;
    put_addresses(event, tcb);
    tcb->flags &= ~(IX_TF_EV_KNOCK | IX_TF_EV_CONNECTED);
    if (knock) {
        tcb->flags |= IX_TF_KNOCKED;
        return true;
    }
    event->status = tcb->dead_status;
    tcb->flags |= tcb->dead_status ? IX_TF_DETACHED : IX_TF_ACCEPTED;
    return true;
}

static bool deliver_sent(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    struct ix_event *event = event_for(tcp, tcb, IX_EV_SENT);
    if (!event)
        return false;
    event->bytes = tcb->sent_bytes;
    event->window = ix_sendq_room(tcp, tcb);
    tcb->sent_bytes = 0;
    return true;
}

static bool deliver_payload(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    struct ix_frames *frames = tcp->net->frames;
    while (tcb->wait_head != IX_NONE) {
        uint32_t frame = tcb->wait_head;
        struct ix_frame *meta = &frames->meta[frame];
        struct ix_event *event = event_for(tcp, tcb, IX_EV_RECV);
        if (!event)
            return false;
        event->frame = frame;
        event->offset = meta->offset;
        event->bytes = meta->bytes;
        tcb->wait_head = meta->next;
        ix_frame_lend(frames, frame, ix_tcb_handle(tcp, tcb), meta->offset, meta->bytes);
    }
    tcb->wait_tail = IX_NONE;
    return true;
}

static IX_NOINLINE bool deliver_dead(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    /* Memory that the NIC still reads is not given back: the last completion comes here again. */
    if (tcb->pinned)
        return true;
    struct ix_event *event = event_for(tcp, tcb, IX_EV_DEAD);
    if (!event)
        return false;
    event->status = tcb->dead_status;
    tcb->flags = (tcb->flags & ~IX_TF_EV_DEAD) | IX_TF_DETACHED;
    ix_tcp_drop_queues(tcp, tcb); /* of one that was never ACCEPTed */
    return true;
}

bool ix_tcp_deliver(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    if (tcb->flags & IX_TF_DETACHED)
        return true;
    if (tcb->flags & (IX_TF_EV_KNOCK | IX_TF_EV_CONNECTED) && !deliver_opening(tcp, tcb))
        return false;
    if (tcb->flags & IX_TF_ACCEPTED && !(tcb->flags & IX_TF_DETACHED)) {
        if (tcb->sent_bytes && !deliver_sent(tcp, tcb))
            return false;
        if (!(tcb->flags & IX_TF_CLOSED_RD)) {
            if (tcb->wait_head != IX_NONE && !deliver_payload(tcp, tcb))
                return false;
            if (tcb->flags & IX_TF_EV_EOF && !event_for(tcp, tcb, IX_EV_RECV))
                return false;
        }
        tcb->flags &= ~IX_TF_EV_EOF;
    }
    if (tcb->flags & IX_TF_EV_DEAD)
        return deliver_dead(tcp, tcb);
    return true;
}
