/* IPv6 input: validation, extension headers, and whose packet it is (RFC 8200). */
#include "net/net.h"
#include "wire/icmp6.h"

enum { PAYLOAD_LENGTH_AT = 4, FRAGMENT_OFFSET_AT = 2 };

/* Groups, ::1 and IPv4-mapped addresses are no host's source address (RFC 4291 2.5.3, 2.7; RFC 4942
 * 2.2). :: is that of one who has none yet: only Neighbor Discovery has an answer to it. */
static bool source_impossible(const struct ix_ip *src, uint8_t proto)
{
    const uint64_t one = 1ull << 56; /* as it lies in memory */
    if (ix_ip_is_group(src, 6))
        return true;
    if (src->q[0])
        return false;
    bool mapped = src->b[10] == 0xff && src->b[11] == 0xff && src->b[8] == 0 && src->b[9] == 0;
    return src->q[1] == one || mapped || (src->q[1] == 0 && proto != IX_PROTO_ICMP6);
}

static enum ix_verdict by_protocol(struct ix_net *net, struct ix_packet *pkt, uint32_t next_at)
{
    bool group = ix_ip_is_group(&pkt->dst, 6);
    if (pkt->ip.proto == IX_PROTO_ICMP6)
        return IX_VERDICT_ICMP6;
    if (group) { /* of groups there are only those for Neighbor Discovery */
        net->counters->drop_ip_dst++;
        return IX_VERDICT_DROP;
    }
    if (pkt->ip.proto == IX_PROTO_TCP)
        return IX_VERDICT_TCP;
    if (pkt->ip.proto == IX_PROTO_UDP)
        return IX_VERDICT_UDP;
    net->counters->drop_ip_proto++;
    if (pkt->ip.proto != IX_PROTO_NONE) /* RFC 8200 4.7 */
        ix_icmp6_error(net, pkt, IX_ICMP6_PARAMETER, IX_ICMP6_NEXT_HEADER, next_at, false);
    return IX_VERDICT_DROP;
}

/* RFC 8200 4.5: what can't be a fragment is answered, with the field that says so. */
static enum ix_verdict fragment_input(struct ix_net *net, struct ix_packet *pkt,
                                      const struct ix_ipv6_walk *walk)
{
    bool ragged = walk->more_fragments && pkt->l4_bytes % 8;
    if (ragged || walk->frag_bytes + pkt->l4_bytes > 65535) {
        uint32_t at = ragged ? PAYLOAD_LENGTH_AT : walk->next_at + FRAGMENT_OFFSET_AT;
        net->counters->drop_ip_frag++;
        ix_icmp6_error(net, pkt, IX_ICMP6_PARAMETER, 0, at, false);
        return IX_VERDICT_DROP;
    }
    return ix_ip_fragment(net, pkt, walk->frag_id, walk->frag_bytes, walk->more_fragments);
}

enum ix_verdict ix_ip6_input(struct ix_net *net, struct ix_packet *pkt)
{
    struct ix_counters *n = net->counters;
    const uint8_t *packet = pkt->data + IX_ETH_BYTES;
    struct ix_ipv6 ip;
    struct ix_ipv6_walk walk;
    enum ix_parse parse = ix_ipv6_parse(packet, pkt->bytes - IX_ETH_BYTES, &ip);
    if (IX_UNLIKELY(parse != IX_PARSE_OK))
        return ix_ip_count_parse(net, parse);
    pkt->family = 6;
    pkt->fragments = IX_NONE;
    pkt->hop_limit = ip.hop_limit;
    __builtin_memcpy(pkt->src.b, ip.src, 16);
    __builtin_memcpy(pkt->dst.b, ip.dst, 16);
    if (IX_UNLIKELY(!ix_net_is_local(net, 6, &pkt->dst) && !ix_nd_is_group(net, &pkt->dst))) {
        n->drop_ip_dst++;
        return IX_VERDICT_DROP;
    }
    enum ix_ipv6_end end = ix_ipv6_walk(packet, &ip, &walk);
    pkt->ip = (struct ix_ipv4){.proto = walk.proto,
                               .tos = ip.traffic_class,
                               .total_bytes = (uint16_t)(IX_MIN(
                                   (uint32_t)IX_IPV6_BYTES + ip.payload_bytes, 65535u))};
    /* From one of our own addresses comes what a liar sends, or one who has it, too: what that one
     * says to all is for Neighbor Discovery to hear. */
    bool own = ix_net_is_local(net, 6, &pkt->src) &&
               (walk.proto != IX_PROTO_ICMP6 || !ix_ip_is_group(&pkt->dst, 6));
    if (IX_UNLIKELY(source_impossible(&pkt->src, walk.proto) || own)) {
        n->drop_ip_src++;
        return IX_VERDICT_DROP;
    }
    pkt->l4 = pkt->data + IX_ETH_BYTES + walk.l4_at;
    pkt->l4_bytes = IX_IPV6_BYTES + ip.payload_bytes - walk.l4_at;
    n->ip6_extensions += walk.l4_at > IX_IPV6_BYTES;
    switch (end) {
    case IX_IPV6_UPPER:
        return by_protocol(net, pkt, walk.next_at);
    case IX_IPV6_FRAG:
        return fragment_input(net, pkt, &walk);
    case IX_IPV6_PARAMETER:
        ix_icmp6_error(net, pkt, IX_ICMP6_PARAMETER, walk.problem_code, walk.problem_at,
                       walk.problem_code == IX_ICMP6_OPTION && !walk.not_to_multicast);
        n->drop_ip6_extension++;
        return IX_VERDICT_DROP;
    default:
        n->drop_ip6_extension++;
        return IX_VERDICT_DROP;
    }
}
