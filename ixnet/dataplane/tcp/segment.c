/* One segment: header, payload from where it lies or copied, and out. */
#include "tcp/tcp.h"

#include "wire/csum.h"

enum {
    CHALLENGE_MS = 500
}; /* RFC 5961 section 7 leaves the limit open; Linux: tcp_invalid_ratelimit */

/* Is there something that lies out of order, or came twice, for SACK blocks to tell? */
static bool sack_due(const struct ix_tcb *tcb)
{
    return (tcb->ooo_head != IX_NONE || tcb->rack & IX_RACK_DSACK_DUE) && tcb->flags & IX_TF_SACK;
}

/* Fields that every segment with ACK has; no option but the timestamp. */
static inline __attribute__((always_inline)) struct ix_tcp_hdr
plain_header(const struct ix_tcp *tcp, const struct ix_tcb *tcb, uint32_t seq, uint8_t flags,
             uint32_t window, bool has_ts)
{
    return (struct ix_tcp_hdr){
        .src_port = tcb->key.local_port,
        .dst_port = tcb->key.peer_port,
        .seq = seq,
        .ack = tcb->rcv_nxt,
        .window = (uint16_t)IX_MIN(window, 65535u),
        .flags = flags,
        .wscale = -1,
        .has_ts = has_ts,
        .ts_val = has_ts ? tcp->now_ms + tcb->ts_offset : 0,
        .ts_ecr = has_ts ? tcb->ts_recent : 0,
    };
}

static void fill_header(const struct ix_tcp *tcp, const struct ix_tcb *tcb, uint32_t seq,
                        uint8_t flags, uint32_t window, struct ix_tcp_hdr *hdr)
{
    *hdr = plain_header(tcp, tcb, seq, flags, window, tcb->flags & IX_TF_TS);
    if (!(flags & IX_TCP_ACK))
        hdr->ack = 0;
    if (flags & IX_TCP_SYN) {
        hdr->mss = tcb->own_mss;
        /* A shift of 0 is said too: silence would forbid the peer's shift (RFC 7323 2.2). */
        hdr->wscale = tcb->flags & IX_TF_WSCALE ? (int8_t)tcb->rcv_wscale : -1;
        hdr->sack_ok = tcb->flags & IX_TF_SACK;
    } else if (sack_due(tcb)) {
        uint32_t max = tcb->flags & IX_TF_TS ? IX_SACK_BLOCKS_TX : IX_SACK_BLOCKS_RX;
        uint32_t n = 0;
        if (tcb->rack & IX_RACK_DSACK_DUE && tcp->dsack_flow == ix_tcb_index(tcp, tcb))
            hdr->sack[n++] = tcp->dsack; /* first, and once (RFC 2883 section 4) */
        n += ix_tcp_sack_blocks(tcp, tcb, &hdr->sack[n], max - n);
        hdr->sack_count = (uint8_t)n;
    }
}

/* Can [at, at + bytes) leave from where it lies? Its headers are written just before it, so that
 * space must hold nothing of value: the old headers of a received frame, or the headroom of an
 * arena frame, and in neither case bytes of the same extent, which may have to be sent again; and
 * no other transmission of the frame may be under way, which reads headers of its own there. */
static bool fits_in_place(const struct ix_tcp *tcp, const struct ix_extent *extent, uint32_t offset,
                          uint32_t bytes, uint32_t headers)
{
    const struct ix_frames *frames = tcp->net->frames;
    if (IX_UNLIKELY(offset) || IX_UNLIKELY(extent->bytes < bytes))
        return false;
    uint32_t frame = ix_frame_of(frames, extent->addr);
    uint32_t start = (uint32_t)(extent->addr - ix_frame_addr(frames, frame));
    const struct ix_frame *meta = &frames->meta[frame];
    if (IX_UNLIKELY(start < headers) || IX_UNLIKELY(start + bytes > 1u << frames->frame_shift) ||
        IX_UNLIKELY(meta->tx_refs))
        return false;
    if (frame < frames->pool_frames)
        return start == meta->offset && meta->owner == IX_FRAME_APP;
    return start == IX_TX_HEADROOM && tcp->cfg->sg_inplace;
}

/* Gathers payload from the cursor on into dst; returns its checksum and moves the cursor. */
static IX_NOINLINE uint32_t gather(const struct ix_tcp *tcp,
                                   struct ix_send_cursor *at, uint8_t *dst,
                                   uint32_t bytes)
{
    uint32_t sum = 0, done = 0;
    while (done < bytes) {
        IX_ASSERT(at->extent != IX_NONE);
        const struct ix_extent *extent = &tcp->extents[at->extent];
        uint32_t part = IX_MIN(bytes - done, extent->bytes - at->offset);
        uint32_t part_sum = ix_csum_copy(
            dst + done, ix_link_ptr(tcp->net->link, extent->addr + at->offset), part, 0);
        sum = ix_csum_append(sum, part_sum, done);
        done += part;
        at->offset += part;
        if (at->offset == extent->bytes)
            *at = (struct ix_send_cursor){.extent = extent->next};
    }
    return sum;
}

/* Where a segment's payload ended up. */
struct placed {
    uint32_t frame;
    uint8_t *payload;
    uint32_t sum;
};

static void pin(struct ix_tcp *tcp, struct ix_tcb *tcb, uint32_t frame)
{
    tcp->net->frames->meta[frame].flow = ix_tcb_index(tcp, tcb);
    tcb->pinned++;
}

static inline __attribute__((always_inline)) bool place(struct ix_tcp *tcp, struct ix_tcb *tcb,
                                                        uint32_t seq, uint32_t bytes,
                                                        bool in_place, uint32_t headers,
                                                        struct placed *out)
{
    struct ix_net *net = tcp->net;
    struct ix_send_cursor at = {.extent = IX_NONE};
    if (bytes) {
        at = ix_sendq_seek(tcp, tcb, seq);
        IX_ASSERT(at.extent != IX_NONE);
    }
    if (bytes && in_place &&
        fits_in_place(tcp, &tcp->extents[at.extent], at.offset, bytes, headers)) {
        uint64_t addr = tcp->extents[at.extent].addr + at.offset;
        out->frame = ix_frame_of(net->frames, addr);
        out->payload = ix_link_ptr(net->link, addr);
        out->sum = ix_csum_add(out->payload, bytes, 0);
        at.offset += bytes;
        pin(tcp, tcb, out->frame);
        net->counters->tx_inplace++;
    } else {
        out->frame = ix_net_alloc(net);
        if (out->frame == IX_NONE)
            return false;
        out->payload = ix_net_frame_ptr(net, out->frame) + IX_TX_HEADROOM;
        out->sum = bytes ? gather(tcp, &at, out->payload, bytes) : 0;
        net->counters->tx_copied += bytes != 0;
    }
    if (bytes && in_place) { /* new data: the next segment goes on from here */
        at.seq = seq + bytes;
        tcb->cursor = at;
    }
    return true;
}

/* What an ACK that leaves settles. */
static void ack_sent(struct ix_tcp *tcp, struct ix_tcb *tcb, bool pure)
{
    tcb->last_ack_sent = tcb->rcv_nxt;
    if (!pure && tcb->unacked_segs) /* an answer: from now on ACKs may wait for one */
        tcb->quick_acks = 0;
    tcb->unacked_segs = 0;
    tcb->flags &= ~(IX_TF_ACK_NOW | IX_TF_ACK_HELD);
    if (IX_UNLIKELY(tcb->rack & IX_RACK_DSACK_DUE)) {
        tcb->rack &= (uint8_t)~IX_RACK_DSACK_DUE;
        tcp->counters->tcp_dsack_out++;
    }
    if (pure)
        tcp->counters->tcp_pure_acks++;
}

/* What a connection with ECN says in a segment: flags, and its part of the IP header's TOS byte. */
static uint8_t mark(struct ix_tcb *tcb, bool new_data, uint8_t *flags)
{
    if (!(*flags & (IX_TCP_SYN | IX_TCP_RST)))
        *flags |= ix_ecn_flags(tcb, new_data);
    return new_data && !(tcb->ecn & IX_ECNF_MUTE) ? IX_ECN_ECT0 : IX_ECN_NOT_ECT;
}

/* usual, a constant for each caller: IPv4, a timestamp and no other option. */
static inline __attribute__((always_inline)) bool send(struct ix_tcp *tcp, struct ix_tcb *tcb,
                                                       uint32_t seq, uint32_t bytes, uint8_t flags,
                                                       bool in_place, bool usual)
{
    struct ix_net *net = tcp->net;
    struct placed placed;
    if (IX_UNLIKELY(!ix_net_tx_room(net) || !ix_net_dst_ready(net, &tcb->key, &tcb->dst)))
        return false;
    uint8_t tos = tcb->tos, family = usual ? 4 : tcb->key.family;
    if (IX_UNLIKELY(tcb->ecn & IX_ECNF_ON))
        tos |= mark(tcb, bytes && !ix_seq_lt(seq, tcb->snd_max), &flags);
    uint32_t window = ix_tcp_receive_window(tcp, tcb);
    uint32_t header_bytes = IX_TCP_BYTES + IX_TCP_TS_BYTES;
    struct ix_tcp_hdr hdr;
    if (usual || !(flags & IX_TCP_SYN)) /* whose window is never scaled (RFC 7323 2.2) */
        window >>= tcb->rcv_wscale;
    if (!usual) {
        fill_header(tcp, tcb, seq, flags, window, &hdr);
        header_bytes = ix_tcp_header_bytes(&hdr);
    }
    uint32_t lower_bytes = ix_ip_header_bytes(family) + IX_ETH_BYTES;
    if (!place(tcp, tcb, seq, bytes, in_place, header_bytes + lower_bytes, &placed))
        return false;
    uint8_t *segment = placed.payload - header_bytes;
    uint32_t src = ix_ip_sum(&tcb->key.local, family), dst = ix_ip_sum(&tcb->key.peer, family);
    if (usual) {
        struct ix_tcp_hdr plain = plain_header(tcp, tcb, seq, flags, window, true);
        ix_tcp_emit_plain(segment, &plain, src, dst, bytes, placed.sum);
    } else {
        ix_tcp_emit(segment, &hdr, src, dst, bytes, placed.sum);
    }
    if (usual)
        ix_net_output4(net, placed.frame, segment, header_bytes + bytes, IX_PROTO_TCP, tos,
                       tcb->key.local.v4, tcb->key.peer.v4, &tcb->dst.mac);
    else
        ix_net_output(net, placed.frame, segment, header_bytes + bytes, IX_PROTO_TCP, tos,
                      &tcb->key, &tcb->dst.mac);
    net->counters->tcp_out++;
    /* A probe's old number makes the peer drop it with its ACK unread: one that is due stays due.
     */
    if ((usual || flags & IX_TCP_ACK) && !ix_seq_lt(seq, tcb->snd_una))
        ack_sent(tcp, tcb, bytes == 0 && !(flags & (IX_TCP_SYN | IX_TCP_FIN | IX_TCP_RST)));
    return true;
}

static IX_NOINLINE bool send_unusual(struct ix_tcp *tcp, struct ix_tcb *tcb,
                                     uint32_t seq, uint32_t bytes, uint8_t flags,
                                     bool in_place)
{
    return send(tcp, tcb, seq, bytes, flags, in_place, false);
}

bool ix_tcp_send_segment(struct ix_tcp *tcp, struct ix_tcb *tcb, uint32_t seq, uint32_t bytes,
                         uint8_t flags, bool in_place)
{
    if (IX_LIKELY((flags & (IX_TCP_SYN | IX_TCP_ACK)) == IX_TCP_ACK && tcb->flags & IX_TF_TS &&
                  tcb->key.family == 4 && !sack_due(tcb)))
        return send(tcp, tcb, seq, bytes, flags, in_place, true);
    return send_unusual(tcp, tcb, seq, bytes, flags, in_place);
}

bool ix_tcp_send_bare(struct ix_tcp *tcp, const struct ix_packet *pkt, const struct ix_tcp_hdr *hdr)
{
    struct ix_net *net = tcp->net;
    uint32_t frame = ix_net_tx_room(net) ? ix_net_alloc(net) : IX_NONE;
    if (frame == IX_NONE)
        return false;
    uint8_t *segment = ix_net_frame_ptr(net, frame) + IX_TX_HEADROOM;
    struct ix_flow_key key = {.peer = pkt->src,
                              .local = pkt->dst,
                              .peer_port = hdr->dst_port,
                              .local_port = hdr->src_port,
                              .family = pkt->family};
    uint32_t bytes = ix_tcp_emit(segment, hdr, ix_ip_sum(&pkt->dst, pkt->family),
                                 ix_ip_sum(&pkt->src, pkt->family), 0, 0);
    ix_net_output(net, frame, segment, bytes, IX_PROTO_TCP, 0, &key, &pkt->eth.src);
    net->counters->tcp_out++;
    return true;
}

void ix_tcp_send_reset_for(struct ix_tcp *tcp, const struct ix_packet *pkt,
                           const struct ix_tcp_hdr *hdr, uint32_t payload_bytes)
{
    if (hdr->flags & IX_TCP_RST || ix_mac_is_group(&pkt->eth.dst))
        return;
    struct ix_tcp_hdr reset = {
        .src_port = hdr->dst_port, .dst_port = hdr->src_port, .flags = IX_TCP_RST, .wscale = -1};
    if (hdr->flags & IX_TCP_ACK) {
        reset.seq = hdr->ack;
    } else {
        reset.flags |= IX_TCP_ACK;
        reset.ack = hdr->seq + payload_bytes + !!(hdr->flags & IX_TCP_SYN) +
                    !!(hdr->flags & IX_TCP_FIN);
    }
    tcp->counters->tcp_rst_out += ix_tcp_send_bare(tcp, pkt, &reset);
}

void ix_tcp_send_reset(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    if (tcb->state == IX_TCP_SYN_SENT || tcb->state == IX_TCP_CLOSED ||
        tcb->state == IX_TCP_TIME_WAIT)
        return;
    /* The peer takes only the next number that it expects, and answers others with a challenge ACK
     * (RFC 5961). */
    if (ix_tcp_send_segment(tcp, tcb, tcb->snd_max, 0, IX_TCP_RST | IX_TCP_ACK, false))
        tcp->counters->tcp_rst_out++;
}

/* RFC 5961 section 7 wants a limit for all connections together. A fixed one tells whoever counts
 * the challenges that he gets himself how many others got (CVE-2016-5696): so each second's is
 * drawn anew, from half of the limit to one and a half. */
static bool challenge_budget(struct ix_tcp *tcp)
{
    uint32_t second = (uint32_t)(tcp->now_ns / 1000000000), limit = tcp->cfg->challenge_acks;
    if (tcp->challenge_s != second) {
        tcp->challenge_s = second;
        uint64_t random = ix_siphash(&tcp->cookie_key, &second, sizeof second);
        tcp->challenge_left = limit / 2 + (uint32_t)(random % (limit + 1));
    }
    if (tcp->challenge_left == 0) {
        tcp->counters->tcp_challenge_limited++;
        return false;
    }
    tcp->challenge_left--;
    return true;
}

void ix_tcp_challenge(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    if ((tcb->challenge_ms && tcp->now_ms - tcb->challenge_ms < CHALLENGE_MS) ||
        !challenge_budget(tcp))
        return;
    tcb->challenge_ms = tcp->now_ms ? tcp->now_ms : 1;
    tcp->counters->tcp_challenge_acks++;
    ix_tcp_ack_now(tcp, tcb);
}
