/* ICMP for IPv4: echo for own addresses, errors in both directions. */
#include "net/net.h"
#include "wire/icmp4.h"
#include "wire/icmp6.h"
#include "wire/tcp.h"
#include "wire/udp.h"

enum {
    ICMP_ERROR_COST_NS = 1000000,    /* 1,000 errors a second on average ... */
    ICMP_ERROR_BURST_NS = 50000000,  /* ... and 50 at once (Linux: icmp_msgs_burst) */
    ICMP_QUOTE_BYTES = 8,            /* of the offending packet's payload (RFC 792) */
};

static void send(struct ix_net *net, const struct ix_packet *pkt, uint32_t frame, uint8_t *message,
                 uint32_t bytes)
{
    /* Back to the MAC that it came from: no neighbour lookup for answers (RFC 1122 3.3.1.1 allows
     * it). */
    ix_net_output4(net, frame, message, bytes, IX_PROTO_ICMP, 0, pkt->ip.dst, pkt->ip.src,
                   &pkt->eth.src);
}

static void echo(struct ix_net *net, const struct ix_packet *pkt, const struct ix_icmp4 *icmp)
{
    uint32_t frame = ix_net_tx_room(net) ? ix_net_alloc(net) : IX_NONE;
    if (frame == IX_NONE)
        return;
    uint8_t *message = ix_net_frame_ptr(net, frame) + IX_TX_HEADROOM;
    __builtin_memcpy(message + IX_ICMP4_BYTES, pkt->l4 + IX_ICMP4_BYTES, icmp->data_bytes);
    ix_icmp4_emit(message, &(struct ix_icmp4){.type = IX_ICMP4_ECHO_REPLY,
                                              .rest = icmp->rest,
                                              .data_bytes = icmp->data_bytes});
    send(net, pkt, frame, message, IX_ICMP4_BYTES + icmp->data_bytes);
    net->counters->icmp_echo_replies++;
}

/* The packet that an error quotes: ours, so its source is our end. */
static bool parse_quote(const struct ix_packet *pkt, const struct ix_icmp4 *icmp,
                        struct ix_icmp_error *error)
{
    const uint8_t *quote = pkt->l4 + IX_ICMP4_BYTES;
    if (icmp->data_bytes < IX_IPV4_BYTES || quote[0] >> 4 != 4)
        return false;
    uint32_t header_bytes = (quote[0] & 15) * 4u;
    if (header_bytes < IX_IPV4_BYTES || icmp->data_bytes < header_bytes + ICMP_QUOTE_BYTES)
        return false;
    const uint8_t *l4 = quote + header_bytes;
    uint32_t src, dst;
    __builtin_memcpy(&src, quote + 12, 4);
    __builtin_memcpy(&dst, quote + 16, 4);
    *error = (struct ix_icmp_error){
        .type = icmp->type,
        .code = icmp->code,
        .proto = quote[9],
        .key = {.peer = ix_ip_from_v4(dst),
                .local = ix_ip_from_v4(src),
                .peer_port = ix_load_be16(l4 + 2),
                .local_port = ix_load_be16(l4),
                .family = 4},
        .seq = ix_load_be32(l4 + 4),
        .mtu = icmp->rest & 0xffff,
        .quoted_bytes = ix_load_be16(quote + 2),
    };
    return src == pkt->ip.dst && (error->proto == IX_PROTO_TCP || error->proto == IX_PROTO_UDP);
}

bool ix_icmp4_input(struct ix_net *net, const struct ix_packet *pkt, struct ix_icmp_error *error)
{
    struct ix_icmp4 icmp;
    if (ix_icmp4_parse(pkt->l4, pkt->l4_bytes, &icmp) != IX_PARSE_OK) {
        net->counters->drop_icmp_bad++;
        return false;
    }
    net->counters->icmp_in++;
    switch (icmp.type) {
    case IX_ICMP4_ECHO:
        if (net->own_address &&
            (uint32_t)icmp.data_bytes + IX_ICMP4_BYTES + IX_IPV4_BYTES <= net->mtu)
            echo(net, pkt, &icmp);
        return false;
    case IX_ICMP4_UNREACHABLE:
    case IX_ICMP4_TIME_EXCEEDED:
    case IX_ICMP4_PARAMETER:
        if (parse_quote(pkt, &icmp, error))
            return true;
        net->counters->drop_icmp_bad++;
        return false;
    default:
        net->counters->drop_icmp_unknown++;
        return false;
    }
}

/* A token bucket kept as time: each error costs ICMP_ERROR_COST_NS of credit, of which at most
 * ICMP_ERROR_BURST_NS is saved up. */
bool ix_icmp_may_send(struct ix_net *net)
{
    uint64_t floor = net->now_ns > ICMP_ERROR_BURST_NS ? net->now_ns - ICMP_ERROR_BURST_NS : 0;
    if (net->icmp_tokens_ns < floor)
        net->icmp_tokens_ns = floor;
    if (net->icmp_tokens_ns + ICMP_ERROR_COST_NS > net->now_ns) {
        net->counters->icmp_rate_limited++;
        return false;
    }
    net->icmp_tokens_ns += ICMP_ERROR_COST_NS;
    return true;
}

void ix_icmp4_unreachable(struct ix_net *net, const struct ix_packet *pkt, uint8_t code)
{
    /* RFC 1122 3.2.2: never about an ICMP error, a broadcast, or a fragment other than the first.
     */
    if (pkt->ip.proto == IX_PROTO_ICMP || ix_mac_is_group(&pkt->eth.dst) || !ix_icmp_may_send(net))
        return;
    uint32_t frame = ix_net_tx_room(net) ? ix_net_alloc(net) : IX_NONE;
    if (frame == IX_NONE)
        return;
    uint8_t *message = ix_net_frame_ptr(net, frame) + IX_TX_HEADROOM;
    uint32_t quote = pkt->ip.header_bytes + IX_MIN(pkt->l4_bytes, (uint32_t)ICMP_QUOTE_BYTES);
    __builtin_memcpy(message + IX_ICMP4_BYTES, pkt->data + IX_ETH_BYTES, quote);
    ix_icmp4_emit(message, &(struct ix_icmp4){.type = IX_ICMP4_UNREACHABLE,
                                              .code = code,
                                              .data_bytes = (uint16_t)quote});
    send(net, pkt, frame, message, IX_ICMP4_BYTES + quote);
    net->counters->icmp_errors_out++;
}

void ix_icmp_port_unreachable(struct ix_net *net, const struct ix_packet *pkt)
{
    if (pkt->family == 6)
        ix_icmp6_error(net, pkt, IX_ICMP6_UNREACHABLE, IX_ICMP6_PORT, 0, false);
    else
        ix_icmp4_unreachable(net, pkt, IX_ICMP4_PORT);
}
