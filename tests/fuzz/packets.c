/* The target on what arrives: segments, packets, ICMP errors and frames, in every state. */
#include "tests/fuzz/world.h"

#include <string.h>

#include "wire/icmp4.h"
#include "wire/icmp6.h"
#include "wire/udp.h"

static uint32_t base_of_seq(const struct ix_tcb *tcb, uint8_t base)
{
    const uint32_t bases[] = {tcb->rcv_nxt, tcb->rcv_adv, tcb->fin_seq, WORLD_ISS,
                              tcb->rcv_nxt - tcb->rcvbuf_bytes};
    return bases[base % IX_ARRAY_LEN(bases)];
}

static uint32_t base_of_ack(const struct ix_tcb *tcb, uint8_t base)
{
    const uint32_t bases[] = {tcb->snd_una, tcb->snd_max, tcb->recover, tcb->snd_una - tcb->max_wnd,
                              tcb->snd_una + tcb->snd_wnd};
    return bases[base % IX_ARRAY_LEN(bases)];
}

static void put_timestamp(struct world *w, const struct ix_tcb *tcb, uint8_t how,
                          struct ix_tcp_hdr *hdr)
{
    static const int32_t ages[] = {0, 0, -1000, 1000};
    if (how % 4 == 0 || (!(tcb->flags & IX_TF_TS) && !(hdr->flags & IX_TCP_SYN)))
        return;
    hdr->has_ts = true;
    hdr->ts_val = tcb->ts_recent + (uint32_t)ages[how % 4];
    hdr->ts_ecr = w->shard->tcp.now_ms + tcb->ts_offset - how / 4;
}

static void segment(struct world *w, const struct fuzz_record *r)
{
    const struct ix_tcb *tcb = world_tcb(w);
    struct ix_tcp_hdr hdr = {.flags = r->flags,
                             .seq = base_of_seq(tcb, r->seq_base) + (uint32_t)r->seq,
                             .ack = base_of_ack(tcb, r->ack_base) + (uint32_t)r->ack,
                             .window = r->window,
                             .urgent = r->more,
                             .wscale = -1};
    put_timestamp(w, tcb, r->ts, &hdr);
    uint8_t options[40];
    memcpy(options, r->options, sizeof options);
    /* SACK blocks that begin a record's options count from snd_una, or none would ever fit. */
    if (r->options[0] == 5 && r->options[1] <= 34)
        for (uint32_t at = 2; at + 4 <= r->options[1]; at += 4)
            ix_store_be32(options + at, ix_load_be32(options + at) % 65536 + tcb->snd_una);
    uint16_t port = (uint16_t)(w->key.peer_port + r->which);
    world_segment(w, port, &hdr, options, r->options_bytes, r->bytes % 1500u);
}

/* Of an IPv6 packet: options begins with the type, if it is one that has a length. */
static void extension(struct world *w, const struct fuzz_record *r)
{
    static const uint8_t types[] = {IX_PROTO_HOP_BY_HOP, IX_PROTO_ROUTING, IX_PROTO_DST_OPTIONS};
    uint32_t units = r->options_bytes / 8;
    if (!w->six || !units || r->seq_base % 4 == 0)
        return;
    w->extension_type = types[r->seq_base % 4 - 1];
    w->extension_bytes = IX_MIN(units, 5u) * 8;
    memcpy(w->extension, r->options, w->extension_bytes);
    if (r->ack_base % 4) /* else its length is what the record says */
        w->extension[1] = (uint8_t)(w->extension_bytes / 8 - 1);
}

/* An IPv4 packet: flags is the protocol, seq the identification, ack the fragment offset in units
 * of 8, more bit 0 MF, bit 1 a proper UDP header in front. */
static void packet(struct world *w, const struct fuzz_record *r)
{
    static const uint8_t protocols[] = {IX_PROTO_UDP, IX_PROTO_TCP, IX_PROTO_ICMP};
    uint8_t payload[1500] = {0};
    uint32_t bytes = r->bytes % 1480u;
    for (uint32_t i = 0; i < bytes; i++)
        payload[i] = r->options[i % sizeof r->options];
    uint8_t proto = r->flags < 128 ? protocols[r->flags % 3] : r->flags;
    extension(w, r);
    if (r->more & 2 && bytes >= IX_UDP_BYTES)
        ix_udp_emit(payload,
                    &(struct ix_udp){.src_port = 1000,
                                     .dst_port = WORLD_UDP_PORT,
                                     .total_bytes = r->window ? r->window : (uint16_t)bytes},
                    world_sum(w, world_peer_ip), world_sum(w, world_ip), 0);
    world_packet(w,
                 &(struct ix_ipv4){.src = world_peer_ip + ((uint32_t)r->which << 24),
                                   .dst = world_ip,
                                   .id = (uint16_t)r->seq,
                                   .frag_bytes = (uint16_t)((r->ack & 0x1fff) * 8),
                                   .more_fragments = r->more & 1,
                                   .proto = proto,
                                   .ttl = 64},
                 payload, bytes);
}

/* An ICMP error about the main connection: flags the type, ts the code, window the MTU. */
static void icmp4(struct world *w, const struct fuzz_record *r)
{
    static const uint8_t types[] = {IX_ICMP4_UNREACHABLE, IX_ICMP4_TIME_EXCEEDED,
                                    IX_ICMP4_PARAMETER, 4, 5, IX_ICMP4_ECHO};
    const struct ix_tcb *tcb = world_tcb(w);
    uint8_t message[IX_ICMP4_BYTES + IX_IPV4_BYTES + 8] = {0};
    uint8_t *quote = message + IX_ICMP4_BYTES, *l4 = quote + IX_IPV4_BYTES;
    ix_ipv4_emit(quote, &(struct ix_ipv4){.src = world_ip,
                                          .dst = world_peer_ip,
                                          .total_bytes = 1500,
                                          .proto = r->more & 1 ? IX_PROTO_UDP : IX_PROTO_TCP,
                                          .ttl = 60});
    ix_store_be16(l4, w->key.local_port);
    ix_store_be16(l4 + 2, w->key.peer_port);
    ix_store_be32(l4 + 4, base_of_ack(tcb, r->ack_base) + (uint32_t)r->ack);
    ix_icmp4_emit(message, &(struct ix_icmp4){.type = types[r->flags % IX_ARRAY_LEN(types)],
                                              .code = r->ts % 16,
                                              .rest = r->window,
                                              .data_bytes = IX_IPV4_BYTES + 8});
    uint32_t from = r->which ? world_peer_ip + ((uint32_t)r->which << 24) : world_peer_ip;
    world_packet(w,
                 &(struct ix_ipv4){.src = from, .dst = world_ip, .proto = IX_PROTO_ICMP, .ttl = 60},
                 message, r->bytes % 4 ? sizeof message : r->bytes % sizeof message);
}

/* The same of ICMPv6, and Neighbor Discovery: more bit 1 about the shard's own address, bit 2 from
 * beyond a router. The options of its messages are the record's. */
static void icmp6(struct world *w, const struct fuzz_record *r)
{
    static const uint8_t types[] = {IX_ICMP6_UNREACHABLE, IX_ICMP6_TOO_BIG, IX_ICMP6_TIME_EXCEEDED,
                                    IX_ICMP6_PARAMETER,   IX_ICMP6_ECHO,    IX_ICMP6_SOLICIT,
                                    IX_ICMP6_ADVERT,      IX_ICMP6_ECHO_REPLY};
    uint8_t type = types[r->flags % IX_ARRAY_LEN(types)], message[96] = {0};
    uint8_t *data = message + IX_ICMP6_BYTES;
    struct ix_ip own = world_address(w, world_ip), peer = world_address(w, world_peer_ip);
    uint32_t from = world_peer_ip + ((uint32_t)r->which << 24);
    struct ix_icmp6 icmp = {.type = type, .code = r->ts % 8, .rest = r->window};
    if (type < IX_ICMP6_ECHO) {
        struct ix_ipv6 quote = {.payload_bytes = 1440,
                                .next = r->more & 1 ? IX_PROTO_UDP : IX_PROTO_TCP};
        uint8_t *l4 = data + IX_IPV6_BYTES;
        memcpy(quote.src, own.b, 16);
        memcpy(quote.dst, peer.b, 16);
        ix_ipv6_emit(data, &quote);
        ix_store_be16(l4, w->key.local_port);
        ix_store_be16(l4 + 2, w->key.peer_port);
        ix_store_be32(l4 + 4, base_of_ack(world_tcb(w), r->ack_base) + (uint32_t)r->ack);
        icmp.data_bytes = IX_IPV6_BYTES + 8;
    } else {
        memcpy(data, r->more & 2 ? own.b : peer.b, 16);
        memcpy(data + 16, r->options, sizeof r->options);
        icmp.rest = (uint32_t)r->seq;
        icmp.code = r->ts % 16 == 15;
        icmp.data_bytes = (uint16_t)(16 + IX_MIN(r->options_bytes, sizeof r->options));
    }
    if (r->bytes % 4 == 1)
        icmp.data_bytes = (uint16_t)(r->bytes % (icmp.data_bytes + 1u));
    ix_icmp6_emit(message, &icmp, world_sum(w, from), world_sum(w, world_ip));
    world_packet(w,
                 &(struct ix_ipv4){.src = from,
                                   .dst = world_ip,
                                   .proto = IX_PROTO_ICMP,
                                   .ttl = r->more & 4 ? 64 : IX_ND_HOP_LIMIT},
                 message, IX_ICMP6_BYTES + icmp.data_bytes);
}

/* A call on the main connection, as an application would make it. */
static void call(struct world *w, const struct fuzz_record *r)
{
    static const uint8_t sensible[] = {IX_CALL_SENDV, IX_CALL_SENDV, IX_CALL_SENDV, IX_CALL_CLOSE,
                                       IX_CALL_ABORT, IX_CALL_OPTION, IX_CALL_CONNECT};
    struct ix_call *c = world_call(w, sensible[r->which % IX_ARRAY_LEN(sensible)]);
    c->flags = r->flags & 3;
    c->handle = w->handle;
    c->bytes = r->bytes;
    if (c->op == IX_CALL_OPTION) {
        c->bytes = r->bytes % 16;
        c->value = (uint64_t)(uint32_t)r->seq * (r->more & 1 ? 1000000u : 1u);
    } else if (c->op == IX_CALL_CONNECT) {
        struct ix_ip peer = world_address(w, world_peer_ip);
        c->family = world_family(w);
        c->peer_port = r->bytes;
        memcpy(c->peer, peer.b, sizeof c->peer);
    } else {
        uint32_t offset = r->more & 1 ? IX_TX_HEADROOM : r->window % 1024u;
        c->addr = ((uint64_t)(WORLD_POOL + r->more % 16u) << w->link.frame_shift) + offset;
        if (r->more & 2 && w->lent_count) { /* an echo */
            c->addr = w->lent[w->lent_count - 1].addr;
            c->bytes = w->lent[w->lent_count - 1].bytes;
        }
    }
}

static void upset(struct world *w, const struct fuzz_record *r)
{
    struct ix_ctl_msg msg = {
        .type = r->which % 9, .family = world_family(w), .value = r->more & 1};
    struct ix_ip ip = world_address(w, r->which & 16 ? world_peer_ip : world_ip);
    memcpy(msg.ip, ip.b, sizeof msg.ip);
    memcpy(msg.mac, world_peer_mac.b, 6);
    msg.prefix = r->more >> 1;
    if (r->which & 128)
        w->stuck = !w->stuck;
    else
        (void)ix_ctl_send(w->shard, &msg);
}

static void play(struct world *w, const struct fuzz_record *r)
{
    switch (r->op % FUZZ_OPS) {
    case FUZZ_SEGMENT:
        segment(w, r);
        break;
    case FUZZ_PACKET:
        packet(w, r);
        break;
    case FUZZ_ICMP:
        (w->six ? icmp6 : icmp4)(w, r);
        break;
    case FUZZ_TIME:
        w->now_ns += ((uint32_t)r->seq % 131072u) * 1000000ull;
        break;
    case FUZZ_CALL:
        call(w, r);
        break;
    case FUZZ_DONE:
        world_give_back(w, r->bytes ? r->bytes : UINT32_MAX);
        break;
    case FUZZ_UPSET:
        upset(w, r);
        break;
    default:
        world_inject(w, (const uint8_t *)r + 1, IX_MIN(r->more, FUZZ_RECORD_BYTES - 1));
    }
}

int ix_fuzz_packets(const uint8_t *data, size_t size)
{
    struct world *w = world_make(data, size);
    for (size_t at = FUZZ_HEADER_BYTES; at + FUZZ_RECORD_BYTES <= size; at += FUZZ_RECORD_BYTES) {
        struct fuzz_record r;
        memcpy(&r, data + at, sizeof r);
        play(w, &r);
        if (!(r.pad[0] & 1)) /* else the next record comes in the same batch */
            world_poll(w);
    }
    world_end(w);
    return 0;
}
