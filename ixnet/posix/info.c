/* TCP_INFO: what Linux tells of a connection, from what the core knows. */
#include "posix/sock.h"

#include <linux/tcp.h>
#include <string.h>

enum { /* net/tcp.h: TCP_CA_Open and so on; what else Linux shows of its defaults */
    CA_OPEN = 0,
    CA_DISORDER = 1,
    CA_RECOVERY = 3,
    CA_LOSS = 4,
    REORDERING = 3,
    ATO_US = 40000,
};

/* Linux's numbers (net/tcp_states.h) of enum ix_tcp_state's. */
uint8_t ix_sock_info(const struct ix_posix *p, const struct ix_sock *s, struct ix_conn_info *info)
{
    static const uint8_t states[] = {7, 2, 3, 1, 4, 5, 8, 11, 9, 6};
    *info = (struct ix_conn_info){.pace_rate = UINT64_MAX};
    if (s->state == IX_SOCK_LISTEN)
        return 10;
    if (!s->handle || ix_shard_conn_info(p->cfg.shard, s->handle, info))
        return 7;
    return info->state < sizeof states ? states[info->state] : 7;
}

static uint32_t segments(uint32_t bytes, uint32_t mss)
{
    return (bytes + mss - 1) / mss;
}

static uint8_t options(const struct ix_conn_info *info)
{
    return (uint8_t)((info->timestamps ? TCPI_OPT_TIMESTAMPS : 0) |
                     (info->sack ? TCPI_OPT_SACK : 0) |
                     (info->snd_wscale >= 0 ? TCPI_OPT_WSCALE : 0) |
                     (info->ecn ? TCPI_OPT_ECN : 0));
}

void ix_sock_tcp_info(const struct ix_posix *p, const struct ix_sock *s, struct tcp_info *out)
{
    struct ix_conn_info info;
    memset(out, 0, sizeof *out);
    out->tcpi_state = ix_sock_info(p, s, &info);
    uint32_t mss = info.mss ? info.mss : 1;
    out->tcpi_ca_state = info.recovery == 2       ? CA_LOSS
                         : info.recovery           ? CA_RECOVERY
                         : info.sacked_bytes > 0   ? CA_DISORDER
                                                   : CA_OPEN;
    out->tcpi_retransmits = info.retries;
    out->tcpi_backoff = info.retries;
    out->tcpi_probes = info.probes;
    out->tcpi_options = options(&info);
    out->tcpi_snd_wscale = info.snd_wscale > 0 ? (uint8_t)info.snd_wscale & 15 : 0;
    out->tcpi_rcv_wscale = info.rcv_wscale > 0 ? (uint8_t)info.rcv_wscale & 15 : 0;
    out->tcpi_rto = info.rto_us;
    out->tcpi_ato = ATO_US;
    out->tcpi_snd_mss = info.mss;
    out->tcpi_rcv_mss = info.rcv_mss < info.mss || !info.mss ? info.rcv_mss : info.mss;
    out->tcpi_advmss = info.rcv_mss;
    out->tcpi_pmtu = info.path_mtu;
    out->tcpi_rtt = info.srtt_us;
    out->tcpi_rttvar = info.rttvar_us;
    out->tcpi_min_rtt = info.min_rtt_us ? info.min_rtt_us : UINT32_MAX;
    out->tcpi_reordering = REORDERING;
    out->tcpi_snd_cwnd = info.cwnd_bytes / mss;
    out->tcpi_snd_ssthresh =
        info.ssthresh_bytes == UINT32_MAX ? INT32_MAX : info.ssthresh_bytes / mss;
    out->tcpi_unacked = segments(info.unacked_bytes, mss);
    out->tcpi_sacked = segments(info.sacked_bytes, mss);
    out->tcpi_lost = segments(info.lost_bytes, mss);
    out->tcpi_total_retrans = info.retransmits;
    out->tcpi_last_data_sent = info.sent_ms_ago;
    out->tcpi_last_data_recv = out->tcpi_last_ack_recv = info.heard_ms_ago;
    out->tcpi_notsent_bytes =
        info.queued_bytes > info.unacked_bytes ? info.queued_bytes - info.unacked_bytes : 0;
    out->tcpi_rcv_space = out->tcpi_rcv_ssthresh = info.rcvbuf_bytes;
    out->tcpi_max_pacing_rate = s->opt.pacing;
    out->tcpi_pacing_rate = info.pace_rate;
}
