/* Segment arrives: RFC 9293 3.10.7, in its order, one helper a check. */
#include "tcp/tcp.h"

#include "wire/icmp4.h"

enum {
    PAWS_VALID_MS =
        24 * 24 * 3600 * 1000, /* RFC 7323 5.5: a timestamp older than 24 days proves nothing */
};
IX_STATIC_ASSERT((uint64_t)PAWS_VALID_MS == 24ull * 24 * 3600 * 1000, "24 days fit");

/* ---- no connection ------------------------------------------------------ */

static enum ix_verdict count_parse(struct ix_tcp *tcp, struct ix_packet *pkt, enum ix_parse parse)
{
    struct ix_counters *n = tcp->counters;
    if (parse == IX_PARSE_SHORT) {
        n->drop_tcp_short++;
    } else if (parse == IX_PARSE_HEADER) {
        n->drop_tcp_header++;
    } else if (!ix_net_partial_csum(tcp->net, pkt, 16)) {
        n->drop_tcp_csum++;
    }
    return IX_VERDICT_DROP;
}

/* CLOSED and LISTEN: 3.10.7.1 and 3.10.7.2. The connection, in SYN_RCVD, for which the segment now
 * is; NULL: it is done with. */
static IX_NOINLINE struct ix_tcb *input_no_flow(struct ix_tcp *tcp, struct ix_packet *pkt,
                                                const struct ix_tcp_hdr *hdr,
                                                const struct ix_flow_key *key, uint64_t hash)
{
    const uint8_t kind = hdr->flags & (IX_TCP_SYN | IX_TCP_ACK | IX_TCP_RST | IX_TCP_FIN);
    struct ix_listener *listener = ix_tcp_listener(tcp, key);
    if (listener && kind == IX_TCP_SYN) {
        ix_tcp_passive_open(tcp, listener, pkt, hdr, key, hash);
        return NULL;
    }
    struct ix_tcb *tcb;
    if (listener && (kind & ~IX_TCP_FIN) == IX_TCP_ACK &&
        ix_cookie_ack(tcp, listener, pkt, hdr, key, hash, &tcb))
        return tcb;
    const struct ix_config *cfg = tcp->cfg;
    bool sibling = key->local_port >= cfg->all_port_lo && key->local_port <= cfg->all_port_hi &&
                   (key->local_port < cfg->port_lo || key->local_port > cfg->port_hi);
    if (sibling && cfg->all_port_lo) { /* on the wrong queue: not ours to reset */
        tcp->counters->drop_tcp_foreign++;
        return NULL;
    }
    /* A listener answers neither (3.10.7.2, fourth), or scanners would learn of it. */
    bool headless = !(kind & (IX_TCP_SYN | IX_TCP_ACK | IX_TCP_RST));
    if (listener && (headless || kind == (IX_TCP_SYN | IX_TCP_FIN))) {
        tcp->counters->drop_tcp_flags++;
        return NULL;
    }
    tcp->counters->drop_tcp_no_listener++;
    ix_tcp_send_reset_for(tcp, pkt, hdr, pkt->l4_bytes - hdr->header_bytes);
    return NULL;
}

/* ---- SYN_SENT: 3.10.7.3 ------------------------------------------------- */

static void input_syn_sent(struct ix_tcp *tcp, struct ix_tcb *tcb, const struct ix_packet *pkt,
                           const struct ix_tcp_hdr *hdr)
{
    bool has_ack = hdr->flags & IX_TCP_ACK;
    if (has_ack && (ix_seq_leq(hdr->ack, tcb->iss) || ix_seq_gt(hdr->ack, tcb->snd_max))) {
        tcp->counters->drop_tcp_ack++;
        ix_tcp_send_reset_for(tcp, pkt, hdr, pkt->l4_bytes - hdr->header_bytes);
        return;
    }
    if (hdr->flags & IX_TCP_RST) {
        if (has_ack) {
            tcp->counters->tcp_rst_in++;
            ix_tcp_finish(tcp, tcb, -IX_ECONNREFUSED);
        }
        return;
    }
    if (!(hdr->flags & IX_TCP_SYN)) {
        tcp->counters->drop_tcp_flags++;
        return;
    }
    tcb->rcv_nxt = hdr->seq + 1;
    tcb->rcv_adv += tcb->rcv_nxt; /* held the window of our SYN, counted from 0 */
    tcb->last_ack_sent = tcb->rcv_nxt;
    tcb->snd_wl1 = hdr->seq - 1;
    tcb->snd_wl2 = tcb->iss;
    ix_tcp_take_syn_options(tcp, tcb, hdr);
    ix_ecn_take_syn(tcp, tcb, hdr->flags, pkt->ip.tos & IX_ECN_MASK);
    if (has_ack) {
        ix_tcp_established(tcp, tcb);
        ix_tcp_ack(tcp, tcb, hdr, 0);
        ix_tcp_ack_now(tcp, tcb);
        return;
    }
    /* Simultaneous open (3.5, figure 7). */
    tcb->state = IX_TCP_SYN_RCVD;
    tcp->half_open++;
    tcb->snd_wnd = hdr->window;
    tcb->flags |= IX_TF_SYN_DUE;
    ix_tcp_want_output(tcp, tcb);
}

/* ---- the synchronized states, and SYN_RCVD: 3.10.7.4 -------------------- */

/* RFC 7323 5.3: PAWS. A segment without its timestamp should be dropped (3.2); as on Linux it is
 * judged by its numbers alone, or a middlebox that takes options away would end the connection. */
static bool timestamp_ok(struct ix_tcp *tcp, struct ix_tcb *tcb, const struct ix_tcp_hdr *hdr)
{
    if (!(tcb->flags & IX_TF_TS) || !hdr->has_ts || hdr->flags & IX_TCP_RST)
        return true;
    if (ix_seq_lt(hdr->ts_val, tcb->ts_recent) &&
        tcp->now_ms - tcb->ts_recent_ms < (uint32_t)PAWS_VALID_MS) {
        tcp->counters->drop_tcp_paws++;
        ix_tcp_challenge(tcp, tcb);
        return false;
    }
    return true;
}

/* First: the sequence number. The window's edges count as inside, as they do on Linux: a segment
 * that only repeats or just precedes still carries an ACK worth reading. */
static bool sequence_ok(struct ix_tcp *tcp, struct ix_tcb *tcb, const struct ix_tcp_hdr *hdr,
                        uint32_t payload_bytes)
{
    uint32_t end =
        hdr->seq + payload_bytes + !!(hdr->flags & IX_TCP_SYN) + !!(hdr->flags & IX_TCP_FIN);
    if (IX_LIKELY(ix_seq_geq(end, tcb->rcv_nxt) && ix_seq_leq(hdr->seq, tcb->rcv_adv)))
        return true;
    tcp->counters->drop_tcp_seq++;
    if (hdr->flags & IX_TCP_RST)
        return false;
    if (payload_bytes || tcb->state == IX_TCP_TIME_WAIT) {
        if (ix_seq_leq(end, tcb->rcv_nxt))
            ix_tcp_report_duplicate(tcp, tcb, hdr->seq, hdr->seq + payload_bytes);
        ix_tcp_ack_now(tcp, tcb);
    } else {
        ix_tcp_challenge(tcp,
                         tcb); /* limited, or two confused peers would ACK each other for ever */
    }
    return false;
}

/* Second: RST (RFC 5961 3.2): only the exact next sequence number resets. */
static void input_rst(struct ix_tcp *tcp, struct ix_tcb *tcb, const struct ix_tcp_hdr *hdr)
{
    if (tcb->state == IX_TCP_TIME_WAIT)
        return; /* TIME-WAIT assassination (RFC 1337) */
    if (hdr->seq != tcb->rcv_nxt) {
        ix_tcp_challenge(tcp, tcb);
        return;
    }
    tcp->counters->tcp_rst_in++;
    bool refused = tcb->state == IX_TCP_SYN_RCVD && !(tcb->flags & IX_TF_PASSIVE);
    ix_tcp_finish(tcp, tcb, refused ? -IX_ECONNREFUSED : -IX_ECONNRESET);
}

/* Fourth: SYN. True: the rest of the segment counts. */
static bool input_syn(struct ix_tcp *tcp, struct ix_tcb *tcb, const struct ix_tcp_hdr *hdr)
{
    bool repeated = tcb->state == IX_TCP_SYN_RCVD && hdr->seq + 1 == tcb->rcv_nxt;
    if (repeated && hdr->flags & IX_TCP_ACK) {
        ix_tcp_ack_now(tcp, tcb); /* the second half of a simultaneous open (3.5, figure 7) */
        return true;
    }
    if (repeated) {
        ix_ecn_take_syn_again(tcb, hdr->flags);
        tcb->flags |= IX_TF_SYN_DUE; /* our SYN-ACK was lost */
        ix_tcp_want_output(tcp, tcb);
    } else {
        ix_tcp_challenge(tcp, tcb); /* RFC 5961 4.2 */
    }
    return false;
}

/* Cookies have brought so many that the listener has no place for this one yet: our SYN-ACK asks
 * for its ACK again, as on Linux. */
static bool accept_queue_full(const struct ix_tcp *tcp, const struct ix_tcb *tcb)
{
    if (tcb->listener == IX_NONE)
        return false;
    const struct ix_listener *listener = &tcp->listeners[tcb->listener];
    return listener->complete >= listener->backlog;
}

/* Of a segment that is not a plain ACK second, fourth, and what comes first of the fifth. True: the
 * rest of the segment counts. */
static IX_NOINLINE bool input_control(struct ix_tcp *tcp, struct ix_tcb *tcb,
                                      const struct ix_tcp_hdr *hdr)
{
    if (hdr->flags & IX_TCP_RST) {
        input_rst(tcp, tcb, hdr);
        return false;
    }
    if (hdr->flags & IX_TCP_SYN && !input_syn(tcp, tcb, hdr))
        return false;
    if (hdr->flags & IX_TCP_ACK)
        return true;
    tcp->counters->drop_tcp_flags++;
    return false;
}

/* Fifth: the ACK field. False: the segment is dropped. */
static bool ack_ok(struct ix_tcp *tcp, struct ix_tcb *tcb, struct ix_packet *pkt,
                   const struct ix_tcp_hdr *hdr)
{
    if (tcb->state == IX_TCP_SYN_RCVD) {
        if (ix_seq_lt(hdr->ack, tcb->snd_una) || ix_seq_gt(hdr->ack, tcb->snd_max) ||
            hdr->ack == tcb->iss) {
            tcp->counters->drop_tcp_ack++;
            ix_tcp_send_reset_for(tcp, pkt, hdr, 0);
            return false;
        }
        if (accept_queue_full(tcp, tcb)) {
            tcp->counters->drop_tcp_accept_full++;
            return false;
        }
        tcb->snd_wnd = (uint32_t)hdr->window << tcb->snd_wscale;
        tcb->max_wnd = tcb->snd_wnd;
        tcb->snd_wl1 = hdr->seq;
        tcb->snd_wl2 = hdr->ack;
        ix_tcp_established(tcp, tcb);
        return true;
    }
    /* RFC 5961 5.2: an ACK of what was never sent, or from before any window, is a guess; and so is
     * one from before the connection. */
    if (ix_seq_gt(hdr->ack, tcb->snd_max) ||
        ix_seq_lt(hdr->ack, tcb->ack_floor)) {
        tcp->counters->drop_tcp_ack++;
        ix_tcp_challenge(tcp, tcb);
        return false;
    }
    return true;
}

/* Our FIN and all before it is acknowledged. False: the TCB is gone. */
static bool fin_acked(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    switch (tcb->state) {
    case IX_TCP_FIN_WAIT_1:
        tcb->state = IX_TCP_FIN_WAIT_2;
        if (tcb->flags & IX_TF_CLOSED_RD)
            ix_tcp_await_fin(tcp, tcb);
        return true;
    case IX_TCP_CLOSING:
        ix_tcp_enter_time_wait(tcp, tcb);
        return true;
    case IX_TCP_LAST_ACK:
        ix_tcp_finish(tcp, tcb, 0);
        return false;
    default:
        return true;
    }
}

/* Eighth: the peer's FIN was taken in order. */
static void fin_received(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    switch (tcb->state) {
    case IX_TCP_ESTABLISHED:
        tcb->state = IX_TCP_CLOSE_WAIT;
        break;
    case IX_TCP_FIN_WAIT_1: /* had our FIN been acknowledged, this would be FIN_WAIT_2 */
        tcb->state = IX_TCP_CLOSING;
        break;
    case IX_TCP_FIN_WAIT_2:
        ix_tcp_enter_time_wait(tcp, tcb);
        break;
    default:
        break;
    }
}

/* Seventh and eighth: payload and FIN. */
static enum ix_verdict input_text(struct ix_tcp *tcp, struct ix_tcb *tcb, struct ix_packet *pkt,
                                  const struct ix_tcp_hdr *hdr, uint32_t payload_bytes)
{
    bool fin = hdr->flags & IX_TCP_FIN;
    if (payload_bytes == 0 && !fin)
        return IX_VERDICT_DROP;
    if (!ix_tcb_receives(tcb)) {
        if (tcb->state == IX_TCP_TIME_WAIT && fin)
            ix_tcp_enter_time_wait(tcp, tcb);
        tcp->counters->drop_tcp_closed += payload_bytes != 0;
        ix_tcp_ack_now(tcp, tcb);
        return IX_VERDICT_DROP;
    }
    if (tcb->flags & IX_TF_CLOSED_RD && payload_bytes &&
        ix_seq_gt(hdr->seq + payload_bytes, tcb->rcv_nxt)) {
        /* Data that nobody will read: tell the peer (RFC 1122 4.2.2.13). */
        tcp->counters->drop_tcp_closed++;
        ix_tcp_send_reset_for(tcp, pkt, hdr, payload_bytes);
        ix_tcp_finish(tcp, tcb, -IX_ECONNRESET);
        return IX_VERDICT_DROP;
    }
    enum ix_verdict verdict = ix_tcp_data(tcp, tcb, pkt, hdr);
    if (tcb->flags & IX_TF_FIN_RCVD)
        fin_received(tcp, tcb);
    else if (fin && payload_bytes == 0)
        ix_tcp_ack_now(tcp, tcb);
    return verdict;
}

static enum ix_verdict input_flow(struct ix_tcp *tcp, struct ix_tcb *tcb, struct ix_packet *pkt,
                                  const struct ix_tcp_hdr *hdr)
{
    uint32_t payload_bytes = pkt->l4_bytes - hdr->header_bytes;
    if (!timestamp_ok(tcp, tcb, hdr) || !sequence_ok(tcp, tcb, hdr, payload_bytes))
        return IX_VERDICT_DROP;
    const uint8_t control = hdr->flags & (IX_TCP_RST | IX_TCP_SYN | IX_TCP_ACK);
    if (IX_UNLIKELY(control != IX_TCP_ACK) && !input_control(tcp, tcb, hdr))
        return IX_VERDICT_DROP;
    if (!ack_ok(tcp, tcb, pkt, hdr))
        return IX_VERDICT_DROP;
    /* RFC 7323 4.3 (3). Not before the ACK has proved good: one forged timestamp from the future
     * would make PAWS drop all that follows. */
    if (hdr->has_ts && ix_seq_leq(hdr->seq, tcb->last_ack_sent)) {
        tcb->ts_recent = hdr->ts_val;
        tcb->ts_recent_ms = tcp->now_ms;
    }
    tcb->last_rx_ms = tcp->now_ms;
    tcb->unanswered = tcb->soft_error = 0;
    if (ix_tcb_flight(tcb) == 0 && !(tcb->flags & IX_TF_PERSIST))
        tcb->retries = 0; /* the peer lives: keepalive starts afresh */
    if (IX_UNLIKELY(tcb->ecn & IX_ECNF_ON) && payload_bytes)
        ix_ecn_data(tcp, tcb, pkt->ip.tos, hdr->flags);
    ix_tcp_ack(tcp, tcb, hdr, payload_bytes);
    if (IX_UNLIKELY((tcb->flags & IX_TF_FIN_SENT) && tcb->snd_una == tcb->snd_max) &&
        !fin_acked(tcp, tcb))
        return IX_VERDICT_DROP;
    return input_text(tcp, tcb, pkt, hdr, payload_bytes);
}

/* A SYN that may follow on a connection in TIME_WAIT (RFC 9293 3.10.7.4, RFC 6191 section 2): a
 * newer timestamp, or the same or none and a higher sequence number. True: the old connection is
 * gone, and had sent all before *end. */
static bool reuse_time_wait(struct ix_tcp *tcp, struct ix_tcb *tcb, const struct ix_tcp_hdr *hdr,
                            uint32_t *end)
{
    if (!(tcb->flags & IX_TF_DETACHED) || tcb->pinned ||
        (hdr->flags & (IX_TCP_SYN | IX_TCP_ACK | IX_TCP_RST | IX_TCP_FIN)) != IX_TCP_SYN)
        return false;
    bool newer = hdr->has_ts && tcb->flags & IX_TF_TS && hdr->ts_val != tcb->ts_recent
                     ? ix_seq_gt(hdr->ts_val, tcb->ts_recent)
                     : ix_seq_gt(hdr->seq, tcb->rcv_nxt);
    if (!newer || !ix_tcp_listener(tcp, &tcb->key) ||
        tcb->flags & (IX_TF_ON_OUTPUT | IX_TF_ON_EVENTS))
        return false;
    tcp->counters->tcp_time_wait_reused++;
    *end = tcb->snd_max;
    ix_tcp_finish(tcp, tcb, 0);
    return true;
}

enum ix_verdict ix_tcp_input(struct ix_tcp *tcp, struct ix_packet *pkt)
{
    struct ix_tcp_hdr hdr;
    enum ix_parse parse = ix_tcp_parse(pkt->l4, pkt->l4_bytes, ix_ip_sum(&pkt->src, pkt->family),
                                       ix_ip_sum(&pkt->dst, pkt->family), &hdr);
    if (IX_UNLIKELY(parse != IX_PARSE_OK))
        return count_parse(tcp, pkt, parse);
    tcp->counters->tcp_in++;
    struct ix_flow_key key = {.peer = pkt->src, .local = pkt->dst};
    ix_flow_key_set(&key, hdr.src_port, hdr.dst_port, pkt->family);
    uint64_t hash = ix_tcp_hash(tcp, &key);
    struct ix_tcb *tcb = ix_tcp_find(tcp, &key, hash);
    if (IX_UNLIKELY(!tcb) && (tcb = input_no_flow(tcp, pkt, &hdr, &key, hash)) == NULL)
        return IX_VERDICT_DROP;
    if (IX_UNLIKELY(tcb->state == IX_TCP_TIME_WAIT)) {
        uint32_t end;
        if (reuse_time_wait(tcp, tcb, &hdr, &end)) {
            (void)input_no_flow(tcp, pkt, &hdr, &key, hash); /* a SYN */
            if ((tcb = ix_tcp_find(tcp, &key, hash)) != NULL)
                ix_tcp_begin_after(tcb, end);
            return IX_VERDICT_DROP;
        }
    }
    if (IX_UNLIKELY(tcb->state <= IX_TCP_SYN_SENT)) {
        if (tcb->state == IX_TCP_SYN_SENT)
            input_syn_sent(tcp, tcb, pkt, &hdr);
        else /* closed, its last event not yet taken */
            ix_tcp_send_reset_for(tcp, pkt, &hdr, pkt->l4_bytes - hdr.header_bytes);
        return IX_VERDICT_DROP;
    }
    return input_flow(tcp, tcb, pkt, &hdr);
}

void ix_tcp_icmp_error(struct ix_tcp *tcp, const struct ix_icmp_error *error)
{
    struct ix_tcb *tcb = ix_tcp_find(tcp, &error->key, ix_tcp_hash(tcp, &error->key));
    /* RFC 5927 4.1: an error about something that isn't outstanding was made up, or is too late. */
    if (!tcb || tcb->state == IX_TCP_CLOSED || ix_seq_lt(error->seq, tcb->snd_una) ||
        ix_seq_geq(error->seq, tcb->snd_max)) {
        tcp->counters->drop_icmp_stale++;
        return;
    }
    if (error->type == IX_ICMP4_UNREACHABLE && error->code == IX_ICMP4_FRAG_NEEDED) {
        ix_tcp_path_mtu(tcp, tcb, error);
        return;
    }
    tcp->counters->icmp_errors_in++;
    bool port = error->code == IX_ICMP4_PORT || error->code == IX_ICMP4_PROTOCOL;
    if (error->type == IX_ICMP4_UNREACHABLE)
        tcb->soft_error = port ? IX_ECONNREFUSED : IX_EHOSTUNREACH;
    if (tcb->state == IX_TCP_SYN_SENT && error->type == IX_ICMP4_UNREACHABLE) {
        /* Not yet connected: the user is told (RFC 1122 4.2.3.9). Later such errors are soft (RFC
         * 5927 5.2): the reason that is given when the connection times out. */
        ix_tcp_finish(tcp, tcb, -(int32_t)tcb->soft_error);
    }
}
