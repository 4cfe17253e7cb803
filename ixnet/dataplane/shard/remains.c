/* What the memory of a shard still tells when the process that ran it has died.
 *
 * It died anywhere in a cycle, or because it overwrote this memory. So nothing in it is followed:
 * no pointer, no list, no count; only the array of TCBs, which lies where the configuration says.
 */
#include "shard/shard.h"

static bool peer_waits(const struct ix_tcb *tcb)
{
    return tcb->hash != 0 && (tcb->key.family == 4 || tcb->key.family == 6) &&
           tcb->state > IX_TCP_CLOSED && tcb->state < IX_TCP_TIME_WAIT && tcb->key.peer_port != 0 &&
           tcb->key.local_port != 0 && !ix_ip_is_zero(&tcb->key.peer);
}

uint32_t ix_shard_remains(const void *memory, const struct ix_config *cfg, uint32_t *at,
                          struct ix_remains *out, uint32_t max)
{
    const struct ix_tcb *flows = ix_shard_flows(memory, cfg);
    uint32_t n = 0;
    for (; *at < cfg->max_flows && n < max; (*at)++) {
        const struct ix_tcb *tcb = &flows[*at];
        if (peer_waits(tcb))
            out[n++] = (struct ix_remains){.key = tcb->key,
                                           .snd_una = tcb->snd_una,
                                           .snd_max = tcb->snd_max,
                                           .rcv_nxt = tcb->rcv_nxt};
    }
    return n;
}
