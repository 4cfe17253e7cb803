/* Listeners, and both ways to open a connection. */
#include "tcp/tcp.h"

/* How far beyond what the connection before has sent a new one begins; as Linux. */
enum { BEYOND_OLD = 65537 };

struct ix_listener *ix_tcp_listener(struct ix_tcp *tcp, const struct ix_flow_key *key)
{
    struct ix_listener *wild = NULL;
    if (IX_UNLIKELY(key->local_port == 0)) /* it marks slots that are free */
        return NULL;
    for (uint32_t i = 0; i < tcp->listener_count; i++) {
        struct ix_listener *l = &tcp->listeners[i];
        if (l->port != key->local_port || !ix_families_meet(l->family, key->family))
            continue;
        if (l->family && ix_ip_equal(&l->ip, &key->local))
            return l; /* the exact address before the wildcard */
        if (ix_ip_is_zero(&l->ip))
            wild = l;
    }
    return wild;
}

uint8_t ix_tcp_scale_for(uint32_t bytes)
{
    uint32_t beyond = bytes >> 16;
    return beyond ? (uint8_t)IX_MIN(32 - __builtin_clz(beyond), 14) : 0;
}

void ix_tcp_set_iss(struct ix_tcb *tcb, uint32_t iss)
{
    tcb->iss = iss;
    tcb->snd_una = tcb->snd_max = tcb->recover = iss;
    tcb->ack_floor = iss + 1;
}

void ix_tcp_begin_after(struct ix_tcb *tcb, uint32_t end)
{
    if (ix_seq_leq(tcb->iss, end))
        ix_tcp_set_iss(tcb, end + BEYOND_OLD);
}

/* Our side's offers; take_syn_options() withdraws what the peer does not offer too. rcvbuf_bytes,
 * mss: 0, or limits of this connection's own. */
static void offer(struct ix_tcp *tcp, struct ix_tcb *tcb, uint32_t rcvbuf_bytes, uint32_t mss)
{
    uint8_t without = tcp->cfg->without;
    tcb->flags |= (without & IX_WITHOUT_TIMESTAMPS ? 0u : IX_TF_TS) |
                  (without & IX_WITHOUT_SACK ? 0u : IX_TF_SACK) |
                  (without & IX_WITHOUT_WINDOW_SCALING ? 0u : IX_TF_WSCALE);
    if (tcb->flags & IX_TF_WSCALE)
        tcb->rcv_wscale =
            ix_tcp_scale_for(rcvbuf_bytes ? rcvbuf_bytes : tcp->cfg->rcvbuf_max_bytes);
    if (rcvbuf_bytes) {
        tcb->rcvbuf_bytes = rcvbuf_bytes;
        tcb->drs_bytes = UINT32_MAX;
    }
    tcb->ts_offset = ix_tcp_ts_offset(tcp, &tcb->key);
    ix_tcp_set_iss(tcb, ix_tcp_isn(tcp, &tcb->key));
    tcb->mss = ix_tcp_own_mss(tcp, tcb->key.family);
    if (mss)
        tcb->mss = (uint16_t)IX_MIN(mss, (uint32_t)tcb->mss);
    tcb->own_mss = tcb->mss;
    tcb->flags |= IX_TF_SYN_DUE;
    ix_tcp_want_output(tcp, tcb);
}

void ix_tcp_take_syn_options(struct ix_tcp *tcp, struct ix_tcb *tcb, const struct ix_tcp_hdr *hdr)
{
    uint32_t peer_mss = hdr->mss ? hdr->mss : IX_MSS_DEFAULT; /* RFC 9293 3.7.1 */
    tcb->mss = (uint16_t)IX_MIN(IX_MAX(peer_mss, (uint32_t)IX_MSS_MIN), (uint32_t)tcb->mss);
    if (hdr->has_ts) {
        tcb->ts_recent = hdr->ts_val;
        tcb->ts_recent_ms = tcp->now_ms;
    } else {
        tcb->flags &= ~IX_TF_TS;
    }
    if (!hdr->sack_ok)
        tcb->flags &= ~IX_TF_SACK;
    if (hdr->wscale >= 0 && tcb->flags & IX_TF_WSCALE) {
        tcb->snd_wscale = (uint8_t)hdr->wscale;
    } else {
        tcb->flags &= ~IX_TF_WSCALE;
        tcb->snd_wscale = tcb->rcv_wscale = 0;
    }
}

struct ix_tcb *ix_tcp_half_open(struct ix_tcp *tcp, struct ix_listener *listener,
                                const struct ix_packet *pkt, const struct ix_tcp_hdr *hdr,
                                const struct ix_flow_key *key, uint64_t hash)
{
    struct ix_tcb *tcb = ix_tcp_new(tcp, key, hash);
    if (!tcb) {
        tcp->counters->drop_tcp_flows++;
        return NULL;
    }
    listener->pending++;
    listener->connections++;
    tcb->accepted_by = (uint16_t)(listener - tcp->listeners + 1);
    tcb->listener = (uint32_t)(listener - tcp->listeners);
    tcb->cookie = listener->cookie;
    tcb->state = IX_TCP_SYN_RCVD;
    tcb->flags |= IX_TF_PASSIVE;
    tcp->half_open++;
    tcp->counters->tcp_passive_opens++;
    tcb->rcv_nxt = tcb->rcv_adv = tcb->last_ack_sent = hdr->seq + 1;
    tcb->snd_wl1 = hdr->seq;
    tcb->snd_wnd = hdr->window;
    /* Until the neighbour is known the answer goes back to where the SYN came from. */
    tcb->dst = (struct ix_dst){.mac = pkt->eth.src, .valid = true, .provisional = true};
    tcb->quick_acks = listener->quick_acks;
    if (listener->cc)
        ix_cc_choose(tcb, listener->cc);
    if (listener->pace_set)
        ix_pace_choose(tcb, listener->pace_max);
    offer(tcp, tcb, listener->rcvbuf_bytes, listener->mss);
    ix_tcp_take_syn_options(tcp, tcb, hdr);
    ix_ecn_take_syn(tcp, tcb, hdr->flags, pkt->ip.tos & IX_ECN_MASK);
    return tcb;
}

/* A listener remembers as many half-open connections as its backlog has room for, and the shard a
 * limit of its own; beyond that the peer has to. One whose application does not ACCEPT gets no
 * more of either kind. */
void ix_tcp_passive_open(struct ix_tcp *tcp, struct ix_listener *listener,
                         const struct ix_packet *pkt, const struct ix_tcp_hdr *hdr,
                         const struct ix_flow_key *key, uint64_t hash)
{
    if (ix_mac_is_group(&pkt->eth.dst) || ix_net_is_many(tcp->net, key->family, &key->peer)) {
        tcp->counters->drop_tcp_many++;
        return;
    }
    if (listener->complete >= listener->backlog) {
        tcp->counters->drop_tcp_accept_full++;
        return;
    }
    if (ix_listener_full(listener)) {
        tcp->counters->drop_tcp_connections++;
        return;
    }
    bool full = listener->pending >= listener->backlog;
    bool crowded = tcp->half_open >= tcp->cfg->max_half_open;
    uint8_t cookies = tcp->cfg->syn_cookies;
    if (cookies == IX_COOKIES_ALWAYS || ((full || crowded) && cookies != IX_COOKIES_NEVER)) {
        ix_cookie_answer(tcp, listener, pkt, hdr, key);
        return;
    }
    if (full)
        tcp->counters->drop_tcp_backlog++;
    else if (crowded)
        tcp->counters->drop_tcp_half_open++;
    else
        (void)ix_tcp_half_open(tcp, listener, pkt, hdr, key, hash);
}

static int pick_addresses(struct ix_tcp *tcp, const struct ix_call *call, struct ix_flow_key *key)
{
    *key = (struct ix_flow_key){
        .peer_port = call->peer_port, .local_port = call->local_port, .family = call->family};
    uint8_t family = call->family;
    if (family != 4 && family != 6)
        return -IX_EINVAL;
    __builtin_memcpy(key->peer.b, call->peer, family == 6 ? 16 : 4);
    __builtin_memcpy(key->local.b, call->local, family == 6 ? 16 : 4);
    if (key->peer_port == 0 || ix_ip_is_zero(&key->peer))
        return -IX_EINVAL;
    if (ix_net_is_many(tcp->net, family, &key->peer)) /* RFC 1122 4.2.3.10; as Linux says it */
        return -IX_ENETUNREACH;
    if (ix_ip_is_zero(&key->local))
        key->local = ix_net_source_for(tcp->net, family, &key->peer);
    if (!ix_net_is_local(tcp->net, family, &key->local))
        return -IX_EADDRNOTAVAIL;
    if (ix_ip_equal(&key->peer, &key->local))
        return -IX_EINVAL; /* frames to oneself never leave the NIC */
    if (!tcp->net->carrier)
        return -IX_ENETDOWN;
    if (!ix_net_route(tcp->net, family, &key->peer))
        return -IX_ENETUNREACH;
    if (key->local_port == 0)
        key->local_port = ix_tcp_choose_port(tcp, key);
    return key->local_port ? 0 : -IX_EADDRNOTAVAIL;
}

int ix_tcp_active_open(struct ix_tcp *tcp, struct ix_call *call)
{
    struct ix_flow_key key;
    int err = pick_addresses(tcp, call, &key);
    if (err)
        return err;
    uint64_t hash = ix_tcp_hash(tcp, &key);
    if ((call->bytes && !ix_cc_known(call->bytes)) || call->open.zero ||
        call->open.syn_retries > IX_SYN_RETRIES_MAX ||
        !ix_tcp_rcvbuf_ok(call->open.rcvbuf_bytes) || !ix_tcp_mss_ok(call->open.mss))
        return -IX_EINVAL;
    if (call->local_port && ix_tcp_find(tcp, &key, hash))
        return -IX_EADDRINUSE; /* one that was chosen is free */
    struct ix_tcb *tcb = ix_tcp_new(tcp, &key, hash);
    if (!tcb)
        return -IX_ENOBUFS;
    tcb->state = IX_TCP_SYN_SENT;
    tcb->cookie = call->cookie;
    if (call->bytes)
        ix_cc_choose(tcb, (uint8_t)call->bytes);
    tcp->counters->tcp_active_opens++;
    offer(tcp, tcb, call->open.rcvbuf_bytes, call->open.mss);
    tcb->syn_retries = call->open.syn_retries;
    call->handle = ix_tcb_handle(tcp, tcb);
    call->local_port = key.local_port;
    return 0;
}

void ix_tcp_established(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    if (tcb->state == IX_TCP_SYN_RCVD)
        tcp->half_open--;
    if (tcb->listener != IX_NONE)
        tcp->listeners[tcb->listener].complete++;
    tcb->state = IX_TCP_ESTABLISHED;
    tcb->cwnd = ix_cc_initial_window(ix_tcb_mss(tcb));
    ix_cc_choose(tcb, tcb->cc); /* rounds are counted from here */
    if (tcb->retries) { /* our SYN was lost, or late: RFC 6298 (5.7), RFC 5681 3.1 */
        tcb->cwnd = ix_tcb_mss(tcb);
        tcb->rto_us = 3000000;
        tcb->retries = 0;
    }
    tcb->flags &= ~IX_TF_SYN_DUE;
    tcb->drs_seq = tcb->rcv_nxt;
    tcb->drs_ms = tcp->now_ms;
    tcp->counters->tcp_established++;
    ix_tcp_want_event(tcp, tcb, tcb->flags & IX_TF_PASSIVE ? IX_TF_EV_KNOCK : IX_TF_EV_CONNECTED);
    if (tcb->flags & IX_TF_CLOSED_WR) { /* closed while the handshake ran */
        tcb->state = IX_TCP_FIN_WAIT_1;
        ix_tcp_want_output(tcp, tcb);
    }
}
