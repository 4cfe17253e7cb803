/* Pacing: what the window allows leaves spread over the round trip instead of in bursts.
 *
 * The rate is a window per smoothed round-trip time, times 2 in slow start and 1.2 in congestion
 * avoidance (Linux: tcp_pacing_ss_ratio, tcp_pacing_ca_ratio), so that a window that grows is not
 * held back by it; or the limit that the application set. One pass of output sends what the rate
 * gives in a millisecond, two segments at least and 64 KiB at most; the next may when by the rate
 * that has left. Where the path takes less than a millisecond there and back that would be the
 * window anyway: nothing is reckoned, and no timer set. The first flight leaves at once (RFC 6928).
 *
 * There is no timer for it: the delayed ACK's may stand earlier than the ACK is due, and serves
 * both (timer.c).
 */
#include "tcp/tcp.h"

enum {
    RTT_MIN_US = 1000,
    QUANTUM_US = 1000,
    QUANTUM_MAX = 65536,
    HELD_MAX_US = 1000000, /* whatever the limit: one pass a second leaves */
    SLOW_START_PERCENT = 200,
    AVOIDANCE_PERCENT = 120,
    /* A run of segments (output.c), as Linux has it: what leaves in 2^-10 s at the pace, and more
     * where the path is short (tcp_tso_rtt_log). */
    RUN_US = 1000000 >> 10,
    RUN_MAX = 65536 - 321, /* a packet of segmentation offload, without the room for headers */
    RUN_RTT_SHIFT = 9,
};

void ix_pace_choose(struct ix_tcb *tcb, uint32_t max)
{
    tcb->flags = max ? tcb->flags | IX_TF_PACED : tcb->flags & ~IX_TF_PACED;
    tcb->pace_max = max;
}

static bool limited(const struct ix_tcb *tcb)
{
    return tcb->pace_max && tcb->pace_max != IX_PACE_BY_WINDOW;
}

/* Bytes that leave in `us` at this time's rate. */
static uint64_t bytes_in(const struct ix_tcb *tcb, uint32_t us)
{
    uint64_t window = IX_MAX(tcb->cwnd, ix_tcb_pipe(tcb));
    uint32_t percent = tcb->cwnd < tcb->ssthresh ? SLOW_START_PERCENT : AVOIDANCE_PERCENT;
    uint64_t bytes = tcb->srtt_us ? window * percent * us / (100ull * tcb->srtt_us) : UINT64_MAX;
    return limited(tcb) ? IX_MIN(bytes, (uint64_t)tcb->pace_max * us / 1000000) : bytes;
}

uint64_t ix_pace_rate(const struct ix_tcb *tcb)
{
    return tcb->flags & IX_TF_PACED ? bytes_in(tcb, 1000000) : UINT64_MAX;
}

/* What one pass may send. */
static uint32_t quantum(const struct ix_tcb *tcb)
{
    uint64_t bytes = IX_MIN(bytes_in(tcb, QUANTUM_US), (uint64_t)QUANTUM_MAX);
    return IX_MAX((uint32_t)bytes, 2 * ix_tcb_mss(tcb));
}

/* How much longer what was sent takes to leave at the rate, us. */
static uint32_t held_us(const struct ix_tcp *tcp, const struct ix_tcb *tcb)
{
    uint32_t us = tcb->pace_us - tcp->now_us;
    return us > HELD_MAX_US ? 0 : us; /* passed, be it so long ago that the clock went round */
}

uint32_t ix_pace_window(const struct ix_tcp *tcp, const struct ix_tcb *tcb)
{
    if ((tcb->min_rtt_us < RTT_MIN_US && !limited(tcb)) || tcb->pace_us == 0)
        return tcb->cwnd;
    uint32_t more = held_us(tcp, tcb) ? 0 : quantum(tcb);
    return IX_MIN(tcb->cwnd, ix_tcb_pipe(tcb) + more);
}

/* More waits until the rate allows it. */
static void hold(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    uint32_t timer = ix_tcb_timer(tcp, tcb, IX_TIMER_ACK);
    uint64_t due_ns = tcp->now_ns + held_us(tcp, tcb) * 1000ull;
    tcb->flags |= IX_TF_PACE_HELD;
    if (!ix_wheel_armed(tcp->wheel, timer) || ix_wheel_deadline(tcp->wheel, timer) > due_ns)
        ix_wheel_set(tcp->wheel, timer, due_ns);
}

void ix_pace_sent(struct ix_tcp *tcp, struct ix_tcb *tcb, uint32_t bytes, uint32_t window,
                  bool more)
{
    if (tcb->min_rtt_us < RTT_MIN_US && !limited(tcb))
        return;
    if (bytes) {
        uint64_t rate = IX_MAX(bytes_in(tcb, 1000000), (uint64_t)1), took_us = 0;
        uint32_t held = held_us(tcp, tcb), late_us = tcp->now_us - tcb->pace_us;
        if (tcb->pace_us)
            took_us = bytes * 1000000ull / rate;
        if (!held) /* the timer was late: part of it is made up for */
            took_us -= IX_MIN(took_us / 2, (uint64_t)late_us);
        tcb->pace_us = tcp->now_us + (uint32_t)IX_MIN(held + took_us, (uint64_t)HELD_MAX_US);
        tcb->pace_us += tcb->pace_us == 0;
    }
    if (more && window < tcb->cwnd && ix_tcb_pipe(tcb) + ix_tcb_mss(tcb) > window)
        hold(tcp, tcb);
}

uint32_t ix_pace_run(const struct ix_tcp *tcp, const struct ix_tcb *tcb, uint32_t max)
{
    uint64_t bytes = IX_MIN(bytes_in(tcb, RUN_US), (uint64_t)RUN_MAX);
    uint32_t shift = tcb->min_rtt_us >> RUN_RTT_SHIFT;
    bytes = IX_MIN(bytes + (shift < 32 ? RUN_MAX >> shift : 0), (uint64_t)RUN_MAX);
    return IX_MAX((uint32_t)bytes / max, IX_MAX(tcp->cfg->run_min, 2u));
}

uint32_t ix_pace_spare(const struct ix_tcb *tcb)
{
    return tcb->cwnd < tcb->ssthresh ? tcb->cwnd / 2 : quantum(tcb) + 2 * ix_tcb_mss(tcb);
}

void ix_pace_fired(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    if (held_us(tcp, tcb)) { /* it was for the ACK */
        hold(tcp, tcb);
        return;
    }
    tcb->flags &= ~IX_TF_PACE_HELD;
    ix_tcp_want_output(tcp, tcb);
}
