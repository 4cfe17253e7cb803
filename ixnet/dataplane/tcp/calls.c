/* The application's calls on connections. Everything in a record is checked here: the other side of
 * it is not trusted. */
#include "tcp/tcp.h"

static int call_accept(struct ix_tcp *tcp, struct ix_tcb *tcb, const struct ix_call *call)
{
    if (!(tcb->flags & IX_TF_KNOCKED) || tcb->flags & IX_TF_ACCEPTED)
        return -IX_EINVAL;
    tcb->flags |= IX_TF_ACCEPTED;
    tcb->cookie = call->cookie;
    ix_tcp_leave_backlog(tcp, tcb);
    ix_tcp_want_event(tcp, tcb, 0); /* what has arrived since */
    return 0;
}

static int call_reject(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    if (!(tcb->flags & IX_TF_KNOCKED) || tcb->flags & IX_TF_ACCEPTED)
        return -IX_EINVAL;
    ix_tcp_send_reset(tcp, tcb);
    tcb->flags = (tcb->flags & ~IX_TF_EVENTS) | IX_TF_DETACHED;
    ix_tcp_finish(tcp, tcb, -IX_ECONNABORTED);
    return 0;
}

/* The two of nearly all calls are apart from the others, and save what they alone need. */
static IX_NOINLINE int call_sendv(struct ix_tcp *tcp, struct ix_tcb *tcb,
                                  const struct ix_call *call)
{
    if (!(tcb->flags & IX_TF_ACCEPTED))
        return -IX_ENOTCONN;
    if (tcb->flags & IX_TF_CLOSED_WR ||
        (tcb->state != IX_TCP_ESTABLISHED && tcb->state != IX_TCP_CLOSE_WAIT))
        return -IX_EPIPE;
    if (call->bytes > INT32_MAX || !ix_net_sendable(tcp->net, call->addr, call->bytes))
        return -IX_EINVAL;
    uint32_t taken = ix_sendq_append(tcp, tcb, call->addr, call->bytes);
    bool more = call->flags & IX_SEND_MORE && taken == call->bytes;
    tcb->flags &= ~(IX_TF_MORE | IX_TF_NO_PUSH);
    if (more)
        tcb->flags |= IX_TF_MORE | (call->flags & IX_SEND_CORKED ? 0 : IX_TF_NO_PUSH);
    if (IX_UNLIKELY(call->flags & IX_SEND_EOR) && taken && taken == call->bytes)
        tcp->extents[tcb->q_tail].eor = tcb->records = true;
    ix_tcp_want_output(tcp, tcb);
    return (int)taken;
}

static IX_NOINLINE int call_recv_done(struct ix_tcp *tcp, const struct ix_call *call)
{
    struct ix_frames *frames = tcp->net->frames;
    uint64_t handle = call->handle;
    uint32_t frame = ix_frame_of(frames, call->addr), bytes = call->bytes;
    if (call->addr >= tcp->net->link->umem_bytes || frame >= frames->pool_frames ||
        ix_handle_kind(handle) != 0)
        return -IX_EINVAL;
    int err = ix_frame_done(frames, frame, handle, bytes);
    if (err)
        return err;
    struct ix_tcb *tcb = ix_tcp_of_handle(tcp, handle);
    if (tcb) {
        IX_ASSERT(tcb->lent_bytes >= bytes);
        tcb->lent_bytes -= bytes;
        tcb->held_frames -= frames->meta[frame].handle != handle;
        if (tcp->now_ms != tcb->drs_ms)
            ix_tcp_tune_receive(tcp, tcb);
        if (ix_tcp_window_update_due(tcp, tcb))
            ix_tcp_ack_now(tcp, tcb);
    } else if (tcp->pressure.owed) {
        tcp->pressure.owed--;
    }
    return 0;
}

/* Closed, and its time is limited: from now on. */
static void arm_linger(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    if (ix_tcb_lingers(tcb))
        ix_wheel_set(tcp->wheel, ix_tcb_timer(tcp, tcb, IX_TIMER_KEEP),
                     tcp->now_ns + tcb->linger_ms * 1000000ull);
}

/* CLOSE: RFC 9293 3.10.4 */
static int call_close(struct ix_tcp *tcp, struct ix_tcb *tcb, const struct ix_call *call)
{
    if ((tcb->flags & (IX_TF_ACCEPTED | IX_TF_PASSIVE)) == IX_TF_PASSIVE)
        return -IX_ENOTCONN;
    if (!(call->flags & IX_CLOSE_WRITE)) {
        /* RFC 1122 4.2.2.13 would reset a connection that is closed with data not yet delivered.
         * What waits here waits for room in the event array, which the application can't know of,
         * and a reset would cost it the answer that it has sent: so the rule begins with what comes
         * next. */
        tcb->flags |= IX_TF_CLOSED_RD;
        ix_tcp_drop_queues(tcp, tcb);
    } else if (tcb->flags & IX_TF_CLOSED_WR) {
        return -IX_EPIPE;
    }
    switch (tcb->state) {
    case IX_TCP_SYN_SENT:
        ix_tcp_finish(tcp, tcb, -IX_ECONNABORTED);
        return 0;
    case IX_TCP_ESTABLISHED:
        tcb->state = IX_TCP_FIN_WAIT_1;
        break;
    case IX_TCP_CLOSE_WAIT:
        tcb->state = IX_TCP_LAST_ACK;
        break;
    case IX_TCP_FIN_WAIT_2: /* half closed before; now nobody waits for the peer */
        ix_tcp_await_fin(tcp, tcb);
        break;
    default:
        break;
    }
    tcb->flags = (tcb->flags | IX_TF_CLOSED_WR) & ~IX_TF_MORE;
    arm_linger(tcp, tcb);
    ix_tcp_want_output(tcp, tcb);
    return 0;
}

static int option_keepalive(struct ix_tcp *tcp, struct ix_tcb *tcb, uint64_t ms)
{
    tcb->keepalive_ms = (uint32_t)ms;
    /* That timer may already wait for the peer's FIN, or for the end of lingering. */
    if ((tcb->state == IX_TCP_FIN_WAIT_2 && tcb->flags & IX_TF_CLOSED_RD) || ix_tcb_lingers(tcb))
        return 0;
    if (tcb->keepalive_ms && tcb->state != IX_TCP_TIME_WAIT && tcb->state != IX_TCP_CLOSED)
        ix_wheel_set(tcp->wheel, ix_tcb_timer(tcp, tcb, IX_TIMER_KEEP),
                     tcp->now_ns + (uint64_t)tcb->keepalive_ms * 1000000);
    return 0;
}

/* Options that are times: of 0, or from 1 ms to 12 days. */
static int option_time(struct ix_tcp *tcp, struct ix_tcb *tcb, const struct ix_call *call)
{
    uint64_t ms = call->value ? IX_MAX(call->value / 1000000, (uint64_t)1) : 0;
    if (ms > 1u << 30)
        return -IX_EINVAL;
    if (call->bytes == IX_OPT_KEEPALIVE_NS)
        return option_keepalive(tcp, tcb, ms);
    *(call->bytes == IX_OPT_USER_TIMEOUT_NS ? &tcb->user_timeout_ms
      : call->bytes == IX_OPT_LINGER_NS     ? &tcb->linger_ms
      : call->bytes == IX_OPT_FIN_WAIT_NS   ? &tcb->fin_wait_ms
                                            : &tcb->keepalive_interval_ms) = (uint32_t)ms;
    if (call->bytes == IX_OPT_LINGER_NS)
        arm_linger(tcp, tcb);
    return 0;
}

static int call_option(struct ix_tcp *tcp, struct ix_tcb *tcb, const struct ix_call *call)
{
    switch (call->bytes) {
    case IX_OPT_NODELAY:
        tcb->flags = call->value ? tcb->flags & ~IX_TF_NAGLE : tcb->flags | IX_TF_NAGLE;
        tcb->flags &= ~IX_TF_MORE;
        ix_tcp_want_output(tcp, tcb);
        return 0;
    case IX_OPT_KEEPALIVE_NS:
    case IX_OPT_KEEPALIVE_INTERVAL_NS:
    case IX_OPT_USER_TIMEOUT_NS:
    case IX_OPT_LINGER_NS:
    case IX_OPT_FIN_WAIT_NS:
        return option_time(tcp, tcb, call);
    case IX_OPT_KEEPALIVE_PROBES:
        if (call->value > 127)
            return -IX_EINVAL;
        tcb->keepalive_probes = (uint8_t)call->value;
        return 0;
    case IX_OPT_SNDBUF:
        if (call->value < IX_MSS_DEFAULT || call->value > 1u << 30)
            return -IX_EINVAL;
        tcb->sndbuf_bytes = (uint32_t)call->value;
        return 0;
    case IX_OPT_CONGESTION:
        if (!ix_cc_known(call->value))
            return -IX_EINVAL;
        ix_cc_choose(tcb, (uint8_t)call->value);
        return 0;
    case IX_OPT_PACING:
        ix_pace_choose(tcb, ix_pace_of_option(call->value));
        ix_tcp_want_output(tcp, tcb);
        return 0;
    case IX_OPT_RCVBUF:
        if (call->value < IX_MSS_DEFAULT || call->value > 1u << 30)
            return -IX_EINVAL;
        tcb->rcvbuf_bytes = (uint32_t)IX_MIN(call->value, 65535ull << tcb->rcv_wscale);
        tcb->drs_bytes = UINT32_MAX;
        return 0;
    case IX_OPT_TOS:
        tcb->tos = (uint8_t)(call->value & ~(uint64_t)IX_ECN_MASK);
        return 0;
    case IX_OPT_QUICKACK:
        tcb->quick_acks = (uint8_t)IX_MIN(call->value, 255ull);
        if (tcb->quick_acks && tcb->unacked_segs)
            ix_tcp_ack_now(tcp, tcb);
        return 0;
    default:
        return -IX_EINVAL;
    }
}

static IX_NOINLINE int call_other(struct ix_tcp *tcp, struct ix_tcb *tcb,
                                  const struct ix_call *call)
{
    switch (call->op) {
    case IX_CALL_ACCEPT:
        return call_accept(tcp, tcb, call);
    case IX_CALL_REJECT:
        return call_reject(tcp, tcb);
    case IX_CALL_CLOSE:
        return call_close(tcp, tcb, call);
    case IX_CALL_ABORT:
        ix_tcp_send_reset(tcp, tcb);
        ix_tcp_finish(tcp, tcb, -IX_ECONNABORTED);
        return 0;
    case IX_CALL_OPTION:
        return call_option(tcp, tcb, call);
    default:
        return -IX_EINVAL;
    }
}

int ix_tcp_call(struct ix_tcp *tcp, struct ix_call *call)
{
    if (call->op == IX_CALL_RECV_DONE)
        return call_recv_done(tcp, call);
    if (call->op == IX_CALL_CONNECT)
        return ix_tcp_active_open(tcp, call);
    struct ix_tcb *tcb = ix_tcp_of_handle(tcp, call->handle);
    if (!tcb) {
        tcp->counters->calls_stale++;
        return -IX_ENOENT;
    }
    return IX_LIKELY(call->op == IX_CALL_SENDV) ? call_sendv(tcp, tcb, call)
                                                : call_other(tcp, tcb, call);
}
