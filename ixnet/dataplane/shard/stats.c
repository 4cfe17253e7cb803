/* What a shard shows of itself. */
#include "shard/shard.h"

static const uint64_t stats_magic = 0x3174656e7869ull; /* "ixnet1" */

struct counter {
    const char *name, *meaning;
};

static const struct counter counter_list[] = {
#define X(name, meaning) {#name, meaning},
    IX_COUNTERS(X)
#undef X
};

const char *ix_counter_name(uint32_t i)
{
    return i < IX_COUNTER_COUNT ? counter_list[i].name : NULL;
}

const char *ix_counter_meaning(uint32_t i)
{
    return i < IX_COUNTER_COUNT ? counter_list[i].meaning : NULL;
}

void ix_shard_update_stats(struct ix_shard *shard)
{
    struct ix_stats *s = &shard->stats;
    s->now_ns = shard->now_ns;
    s->flows = shard->tcp.in_use;
    s->flows_half_open = shard->tcp.half_open;
    s->flows_time_wait = shard->tcp.time_wait;
    s->frames_free = shard->frames.count[IX_FRAME_FREE];
    s->frames_fill = shard->frames.count[IX_FRAME_FILL];
    s->frames_rx = shard->frames.count[IX_FRAME_RX];
    s->frames_app = shard->frames.count[IX_FRAME_APP];
    s->frames_tx = shard->frames.count[IX_FRAME_TX];
    s->timers_armed = shard->wheel.armed;
    s->counter_count = IX_COUNTER_COUNT;
    __builtin_memcpy(s->counters, &shard->counters, sizeof shard->counters);
    /* Last, so that a reader in another process never takes half-made statistics for whole ones. */
    __atomic_store_n(&s->magic, stats_magic, __ATOMIC_RELEASE);
}

struct ix_stats *ix_shard_stats(struct ix_shard *shard)
{
    ix_shard_update_stats(shard);
    return &shard->stats;
}

const char *ix_shard_check(struct ix_shard *shard)
{
    const char *wrong = ix_frames_check(&shard->frames);
    if (!wrong)
        wrong = ix_wheel_check(&shard->wheel);
    if (!wrong)
        wrong = ix_reass_check(&shard->net);
    if (!wrong)
        wrong = ix_tcp_check(&shard->tcp);
    return wrong;
}

int ix_shard_conn_info(struct ix_shard *shard, uint64_t handle, struct ix_conn_info *info)
{
    struct ix_tcb *tcb = ix_tcp_of_handle(&shard->tcp, handle);
    if (!tcb)
        return -IX_ENOENT;
    *info = (struct ix_conn_info){
        .family = tcb->key.family,
        .state = tcb->state,
        .peer_port = tcb->key.peer_port,
        .local_port = tcb->key.local_port,
        .mss = ix_tcb_mss(tcb),
        .congestion = tcb->cc,
        .ecn = !!(tcb->ecn & IX_ECNF_ON),
        .cwnd_bytes = tcb->cwnd,
        .ssthresh_bytes = tcb->ssthresh,
        .srtt_us = tcb->srtt_us,
        .rto_us = ix_tcp_rto_us(tcb),
        .snd_wnd = tcb->snd_wnd,
        .rcv_wnd = tcb->rcv_adv - tcb->rcv_nxt,
        .unacked_bytes = ix_tcb_flight(tcb),
        .queued_bytes = tcb->queued_bytes,
        .lent_bytes = tcb->lent_bytes,
        .retransmits = tcb->retransmits,
        .timestamps = !!(tcb->flags & IX_TF_TS),
        .sack = !!(tcb->flags & IX_TF_SACK),
        .snd_wscale = tcb->flags & IX_TF_WSCALE ? (int8_t)tcb->snd_wscale : -1,
        .rcv_wscale = tcb->flags & IX_TF_WSCALE ? (int8_t)tcb->rcv_wscale : -1,
        .recovery = tcb->flags & IX_TF_RTO ? 2 : !!(tcb->flags & IX_TF_RECOVERY),
        .reordering = !!(tcb->rack & IX_RACK_REORDER),
        .retries = tcb->retries,
        .probes = tcb->unanswered,
        .rttvar_us = tcb->rttvar_us,
        .min_rtt_us = tcb->min_rtt_us,
        .rcv_mss = tcb->own_mss,
        .path_mtu = tcb->dst.mtu ? tcb->dst.mtu : shard->net.mtu,
        .sacked_bytes = tcb->sacked_bytes,
        .lost_bytes = tcb->lost_bytes,
        .rcvbuf_bytes = tcb->rcvbuf_bytes,
        .sndbuf_bytes = ix_tcp_send_limit(&shard->tcp, tcb),
        .pace_rate = ix_pace_rate(tcb),
        .sent_ms_ago = shard->tcp.now_ms - tcb->last_tx_ms,
        .heard_ms_ago = shard->tcp.now_ms - tcb->last_rx_ms,
    };
    __builtin_memcpy(info->peer, tcb->key.peer.b, sizeof info->peer);
    __builtin_memcpy(info->local, tcb->key.local.b, sizeof info->local);
    return 0;
}

uint64_t ix_shard_next_conn(struct ix_shard *shard, uint32_t *index)
{
    while (*index < shard->tcp.max_flows) {
        struct ix_tcb *tcb = &shard->tcp.flows[(*index)++];
        if (tcb->hash && !(tcb->flags & IX_TF_DETACHED))
            return ix_tcb_handle(&shard->tcp, tcb);
    }
    return 0;
}
