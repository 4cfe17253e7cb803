/* HyStart++ (RFC 9406): slow start ends when the round-trip time shows that a queue builds up,
 * before the queue overflows. Only in the first slow start of a connection (4.3). */
#include "tcp/tcp.h"

enum {
    MIN_RTT_THRESH_US = 4000, /* constants of 4.3 */
    MAX_RTT_THRESH_US = 16000,
    MIN_RTT_DIVISOR = 8,
    N_RTT_SAMPLE = 8,
    CSS_GROWTH_DIVISOR = 4,
    CSS_ROUNDS = 5,
};

static void begin_round(struct ix_tcb *tcb)
{
    struct ix_hystart *h = &tcb->hystart;
    h->round_end = tcb->snd_max;
    h->last_min_us = h->min_us;
    h->min_us = UINT32_MAX;
    h->samples = 0;
}

void ix_hystart_begin(struct ix_tcb *tcb)
{
    tcb->hystart = (struct ix_hystart){.round_end = tcb->snd_max,
                                       .min_us = UINT32_MAX,
                                       .last_min_us = UINT32_MAX,
                                       .css_base_us = UINT32_MAX};
}

/* Slow start to Conservative Slow Start, and back if the rise was a passing one. */
static void judge(struct ix_hystart *h)
{
    if (h->samples < N_RTT_SAMPLE || h->last_min_us == UINT32_MAX)
        return;
    if (h->css_base_us == UINT32_MAX) {
        uint32_t thresh_us = IX_MIN(IX_MAX(h->last_min_us / MIN_RTT_DIVISOR,
                                           (uint32_t)MIN_RTT_THRESH_US),
                                    (uint32_t)MAX_RTT_THRESH_US);
        if (h->min_us >= h->last_min_us + thresh_us) {
            h->css_base_us = h->min_us;
            h->css_rounds = 0;
        }
    } else if (h->min_us < h->css_base_us) {
        h->css_base_us = UINT32_MAX;
    }
}

uint32_t ix_hystart_acked(struct ix_tcb *tcb, uint32_t bytes, uint32_t rtt_us)
{
    struct ix_hystart *h = &tcb->hystart;
    if (rtt_us) {
        h->min_us = IX_MIN(h->min_us, rtt_us);
        h->samples += h->samples < UINT8_MAX;
        judge(h);
    }
    bool css = h->css_base_us != UINT32_MAX;
    if (ix_seq_geq(tcb->snd_una, h->round_end)) {
        begin_round(tcb);
        if (css && ++h->css_rounds >= CSS_ROUNDS)
            tcb->ssthresh = tcb->cwnd;
    }
    return css ? bytes / CSS_GROWTH_DIVISOR : bytes;
}
