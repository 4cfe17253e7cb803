/* CUBIC (RFC 9438), in bytes and milliseconds. */
#include "tcp/tcp.h"

/* beta_cubic = 0.7 (4.6), C = 0.4 segments/s^3 (section 5), alpha_cubic = 3 (1 - beta) / (1 + beta)
 * = 9/17 (4.3). */
enum { BETA_10 = 7, ALPHA_UP = 9, ALPHA_DOWN = 17, T_MAX_MS = 80000 };

/* The largest r with r^3 <= x. */
static uint32_t cube_root(uint64_t x)
{
    uint64_t root = 0;
    for (uint32_t bit = 21; bit-- > 0;) {
        uint64_t next = root | 1ull << bit;
        if (next * next * next <= x)
            root = next;
    }
    return (uint32_t)root;
}

/* A congestion avoidance stage begins (4.2, 4.10). */
static void begin_epoch(const struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    struct ix_cubic *c = &tcb->cubic;
    c->epoch_ms = tcp->now_ms ? tcp->now_ms : 1;
    c->k_ms = 0;
    if (c->w_max > tcb->cwnd) /* K = cbrt((W_max - cwnd_epoch) / C) s; C = 2/5 */
        c->k_ms = cube_root((c->w_max - tcb->cwnd) * 2500000000ull / ix_tcb_mss(tcb));
    else
        c->w_max = tcb->cwnd;
    c->w_est = tcb->cwnd;
    c->est_acked = 0;
    tcb->cwnd_acked = 0;
}

/* W_cubic(t) (4.2, figure 1), bytes. */
static uint32_t w_cubic(const struct ix_tcb *tcb, uint32_t t_ms)
{
    const struct ix_cubic *c = &tcb->cubic;
    uint64_t away_ms = IX_MIN(t_ms > c->k_ms ? t_ms - c->k_ms : c->k_ms - t_ms, (uint32_t)T_MAX_MS);
    uint64_t bytes = away_ms * away_ms * away_ms / 1000 * 2 * ix_tcb_mss(tcb) / 5000000;
    bytes = IX_MIN(bytes, (uint64_t)IX_CWND_MAX);
    if (t_ms > c->k_ms)
        return c->w_max + (uint32_t)bytes;
    return c->w_max > bytes ? c->w_max - (uint32_t)bytes : 0;
}

/* W_est: what Reno would have (4.3, figure 4). */
static void grow_estimate(struct ix_tcb *tcb, uint32_t acked)
{
    struct ix_cubic *c = &tcb->cubic;
    uint64_t window = tcb->cwnd;
    if (c->w_est < c->cwnd_prior)
        window = window * ALPHA_DOWN / ALPHA_UP;
    c->est_acked += acked;
    if (c->est_acked >= window) {
        c->est_acked -= (uint32_t)window;
        c->w_est = IX_MIN(c->w_est + ix_tcb_mss(tcb), (uint32_t)IX_CWND_MAX);
    }
}

void ix_cubic_avoid(const struct ix_tcp *tcp, struct ix_tcb *tcb, uint32_t acked)
{
    struct ix_cubic *c = &tcb->cubic;
    if (c->epoch_ms == 0)
        begin_epoch(tcp, tcb);
    uint32_t t_ms = tcp->now_ms - c->epoch_ms;
    grow_estimate(tcb, acked);
    if (w_cubic(tcb, t_ms) < c->w_est) { /* the Reno-friendly region */
        tcb->cwnd = IX_MAX(tcb->cwnd, c->w_est);
        return;
    }
    /* 4.4 and 4.5: towards W_cubic(t + RTT), by at most half of the window a round trip. */
    uint32_t target = w_cubic(tcb, t_ms + tcb->srtt_us / 1000);
    target = IX_MIN(target, tcb->cwnd + tcb->cwnd / 2);
    if (target <= tcb->cwnd)
        return;
    tcb->cwnd_acked += IX_MIN(acked, tcb->cwnd);
    uint64_t step = (uint64_t)(target - tcb->cwnd) * tcb->cwnd_acked / tcb->cwnd;
    if (step) {
        tcb->cwnd = IX_MIN(tcb->cwnd + (uint32_t)step, (uint32_t)IX_CWND_MAX);
        tcb->cwnd_acked = 0;
    }
}

uint32_t ix_cubic_reduced(struct ix_tcb *tcb, uint32_t flight_bytes)
{
    struct ix_cubic *c = &tcb->cubic;
    uint32_t window = IX_MAX(tcb->cwnd, flight_bytes);
    c->cwnd_prior = window;
    /* Fast convergence (4.7): a flow that did not get as far as last time makes room for new ones.
     */
    c->w_max = window < c->w_max ? (uint32_t)(window * (10ull + BETA_10) / 20) : window;
    c->epoch_ms = 0;
    /* 4.6 allows the window in the place of what is in flight, if it does not grow while the
     * application uses less of it, as here. What is in flight is whole segments, so less each time;
     * and one loss in a conversation of short messages would leave two segments. */
    return (uint32_t)(window * (uint64_t)BETA_10 / 10);
}

void ix_cubic_idle(struct ix_tcb *tcb, uint32_t idle_ms)
{
    /* 4.2.1 and section 5.8: time in which nothing was sent is none in which the window may have
     * grown. */
    if (tcb->cubic.epoch_ms)
        tcb->cubic.epoch_ms += idle_ms;
}
