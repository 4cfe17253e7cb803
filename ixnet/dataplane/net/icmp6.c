/* ICMPv6 (RFC 4443): echo for own addresses, errors in both directions. */
#include "net/net.h"
#include "wire/csum.h"
#include "wire/icmp4.h"
#include "wire/icmp6.h"

enum { QUOTE_BYTES = 8 }; /* what is needed of the quoted transport header */

static struct ix_flow_key back_to(const struct ix_packet *pkt)
{
    return (struct ix_flow_key){.peer = pkt->src, .local = pkt->dst, .family = 6};
}

/* Sends the message whose data lie behind `message`, back to the MAC that pkt came from. */
static void send(struct ix_net *net, const struct ix_packet *pkt, uint32_t frame, uint8_t *message,
                 const struct ix_icmp6 *icmp, const struct ix_ip *src)
{
    struct ix_flow_key key = back_to(pkt);
    key.local = *src;
    ix_icmp6_emit(message, icmp, ix_csum_address(src->b), ix_csum_address(key.peer.b));
    ix_net_output(net, frame, message, (uint32_t)IX_ICMP6_BYTES + icmp->data_bytes, IX_PROTO_ICMP6,
                  0, &key, &pkt->eth.src);
}

static void echo(struct ix_net *net, const struct ix_packet *pkt, const struct ix_icmp6 *icmp)
{
    uint32_t frame = ix_net_tx_room(net) ? ix_net_alloc(net) : IX_NONE;
    if (frame == IX_NONE)
        return;
    uint8_t *message = ix_net_frame_ptr(net, frame) + IX_TX_HEADROOM;
    __builtin_memcpy(message + IX_ICMP6_BYTES, pkt->l4 + IX_ICMP6_BYTES, icmp->data_bytes);
    struct ix_icmp6 reply = *icmp;
    reply.type = IX_ICMP6_ECHO_REPLY;
    send(net, pkt, frame, message, &reply, &pkt->dst);
    net->counters->icmp_echo_replies++;
}

/* The message in ICMP's terms. False: it is none of use, or made up. */
static bool translate(const struct ix_icmp6 *icmp, struct ix_icmp_error *error)
{
    switch (icmp->type) {
    case IX_ICMP6_TOO_BIG: /* RFC 8201 section 4: not below IPv6's least MTU */
        error->type = IX_ICMP4_UNREACHABLE;
        error->code = IX_ICMP4_FRAG_NEEDED;
        error->mtu = icmp->rest;
        return icmp->rest >= IX_IPV6_MTU_MIN;
    case IX_ICMP6_UNREACHABLE:
        error->type = IX_ICMP4_UNREACHABLE;
        error->code = icmp->code == IX_ICMP6_PORT       ? IX_ICMP4_PORT
                      : icmp->code == IX_ICMP6_NO_ROUTE ? IX_ICMP4_NET
                                                        : IX_ICMP4_HOST;
        return true;
    case IX_ICMP6_PARAMETER: /* a next header that nobody knows is a protocol unreachable */
        error->type =
            icmp->code == IX_ICMP6_NEXT_HEADER ? IX_ICMP4_UNREACHABLE : IX_ICMP4_PARAMETER;
        error->code = icmp->code == IX_ICMP6_NEXT_HEADER ? IX_ICMP4_PROTOCOL : 0;
        return true;
    default:
        error->type = IX_ICMP4_TIME_EXCEEDED;
        error->code = icmp->code;
        return true;
    }
}

/* The packet that an error quotes: ours, so its source is our end. We send no extension headers. */
static bool parse_quote(const struct ix_packet *pkt, const struct ix_icmp6 *icmp,
                        struct ix_icmp_error *error)
{
    const uint8_t *quote = pkt->l4 + IX_ICMP6_BYTES, *l4 = quote + IX_IPV6_BYTES;
    if (icmp->data_bytes < IX_IPV6_BYTES + QUOTE_BYTES || quote[0] >> 4 != 6)
        return false;
    *error = (struct ix_icmp_error){
        .proto = quote[6],
        .key = {.peer_port = ix_load_be16(l4 + 2), .local_port = ix_load_be16(l4), .family = 6},
        .seq = ix_load_be32(l4 + 4),
        .quoted_bytes = (uint32_t)ix_load_be16(quote + 4) + IX_IPV6_BYTES,
    };
    __builtin_memcpy(error->key.local.b, quote + 8, 16);
    __builtin_memcpy(error->key.peer.b, quote + 24, 16);
    return ix_ip_equal(&error->key.local, &pkt->dst) &&
           (error->proto == IX_PROTO_TCP || error->proto == IX_PROTO_UDP) &&
           translate(icmp, error);
}

bool ix_icmp6_input(struct ix_net *net, const struct ix_packet *pkt, struct ix_icmp_error *error)
{
    struct ix_icmp6 icmp;
    if (ix_icmp6_parse(pkt->l4, pkt->l4_bytes, ix_csum_address(pkt->src.b),
                       ix_csum_address(pkt->dst.b), &icmp) != IX_PARSE_OK) {
        net->counters->drop_icmp_bad++;
        return false;
    }
    net->counters->icmp_in++;
    bool group = ix_ip_is_group(&pkt->dst, 6);
    if (icmp.type == IX_ICMP6_SOLICIT || icmp.type == IX_ICMP6_ADVERT) {
        ix_nd_input(net, pkt);
    } else if (icmp.type == IX_ICMP6_ECHO && !group && !ix_ip_is_zero(&pkt->src)) {
        if (net->own_address &&
            (uint32_t)icmp.data_bytes + IX_ICMP6_BYTES + IX_IPV6_BYTES <= net->mtu)
            echo(net, pkt, &icmp);
    } else if (icmp.type >= IX_ICMP6_UNREACHABLE && icmp.type <= IX_ICMP6_PARAMETER) {
        if (parse_quote(pkt, &icmp, error))
            return true;
        net->counters->drop_icmp_bad++;
    } else {
        net->counters->drop_icmp_unknown++;
    }
    return false;
}

void ix_icmp6_error(struct ix_net *net, const struct ix_packet *pkt, uint8_t type, uint8_t code,
                    uint32_t rest, bool always)
{
    bool group = ix_ip_is_group(&pkt->dst, 6) || ix_mac_is_group(&pkt->eth.dst);
    bool about_error = pkt->ip.proto == IX_PROTO_ICMP6 &&
                       (pkt->l4_bytes == 0 || pkt->l4[0] < IX_ICMP6_ECHO);
    /* RFC 4443 2.4 (e): none about an error, a group, or one that is nobody. */
    if ((group && !always) || about_error || ix_ip_is_zero(&pkt->src) || !ix_icmp_may_send(net))
        return;
    struct ix_ip src = group ? ix_net_source_for(net, 6, &pkt->src) : pkt->dst;
    uint32_t frame = ix_net_tx_room(net) ? ix_net_alloc(net) : IX_NONE;
    if (frame == IX_NONE)
        return;
    uint8_t *message = ix_net_frame_ptr(net, frame) + IX_TX_HEADROOM;
    /* As much of the packet as fits into the least MTU (2.4 (c)). */
    uint32_t mtu = IX_MIN((uint32_t)IX_IPV6_MTU_MIN, net->mtu);
    uint32_t most = mtu - IX_IPV6_BYTES - IX_ICMP6_BYTES;
    uint32_t quote = IX_MIN((uint32_t)pkt->ip.total_bytes, most);
    __builtin_memcpy(message + IX_ICMP6_BYTES, pkt->data + IX_ETH_BYTES, quote);
    struct ix_icmp6 icmp = {
        .type = type, .code = code, .rest = rest, .data_bytes = (uint16_t)quote};
    send(net, pkt, frame, message, &icmp, &src);
    net->counters->icmp_errors_out++;
}
