/* Ethernet and IPv4 input: validation, and whose packet it is (RFC 1122 3.2.1). */
#include "net/net.h"
#include "wire/csum.h"
#include "wire/icmp4.h"

/* 0.0.0.0/8, 127.0.0.0/8, multicast and above are no host's source address (RFC 1122 3.2.1.3). */
static bool source_impossible(uint32_t src)
{
    uint8_t first = (uint8_t)src; /* memory order: the first octet is the low byte */
    return first == 0 || first == 127 || first >= 224;
}

IX_NOINLINE enum ix_verdict ix_ip_count_parse(struct ix_net *net, enum ix_parse parse)
{
    switch (parse) {
    case IX_PARSE_VERSION:
        net->counters->drop_ip_version++;
        break;
    case IX_PARSE_HEADER:
        net->counters->drop_ip_header++;
        break;
    case IX_PARSE_CSUM:
        net->counters->drop_ip_csum++;
        break;
    default:
        net->counters->drop_ip_short++;
    }
    return IX_VERDICT_DROP;
}

/* Only UDP's are put together: TCP has no need of fragments, as each of its segments has DF. */
enum ix_verdict ix_ip_fragment(struct ix_net *net, struct ix_packet *pkt, uint32_t id, uint32_t at,
                               bool more)
{
    if (pkt->ip.proto != IX_PROTO_UDP) {
        net->counters->drop_ip_frag++;
        return IX_VERDICT_DROP;
    }
    const struct ix_fragment fragment = {
        .src = pkt->src,
        .dst = pkt->dst,
        .id = id,
        .at = at,
        .bytes = pkt->l4_bytes,
        .offset = (uint16_t)(pkt->l4 - ix_net_frame_ptr(net, pkt->frame)),
        .family = pkt->family,
        .more = more,
    };
    if (!ix_reass_add(net, &fragment, pkt->frame, &pkt->fragments))
        return IX_VERDICT_DROP;
    return pkt->fragments == IX_NONE ? IX_VERDICT_KEPT : IX_VERDICT_UDP;
}

static enum ix_verdict ip4_input(struct ix_net *net, struct ix_packet *pkt)
{
    struct ix_counters *n = net->counters;
    enum ix_parse parse =
        ix_ipv4_parse(pkt->data + IX_ETH_BYTES, pkt->bytes - IX_ETH_BYTES, &pkt->ip);
    if (IX_UNLIKELY(parse != IX_PARSE_OK))
        return ix_ip_count_parse(net, parse);
    pkt->family = 4;
    pkt->src = ix_ip_from_v4(pkt->ip.src);
    pkt->dst = ix_ip_from_v4(pkt->ip.dst);
    if (IX_UNLIKELY(!ix_net_is_local(net, 4, &pkt->dst))) {
        n->drop_ip_dst++;
        return IX_VERDICT_DROP;
    }
    /* A packet from one of our own addresses came from a liar (the land attack). */
    bool own = pkt->ip.src == pkt->ip.dst ||
               (net->addr_count > 1 && ix_net_is_local(net, 4, &pkt->src));
    if (IX_UNLIKELY(source_impossible(pkt->ip.src) || own)) {
        n->drop_ip_src++;
        return IX_VERDICT_DROP;
    }
    pkt->l4 = pkt->data + IX_ETH_BYTES + pkt->ip.header_bytes;
    pkt->l4_bytes = (uint32_t)pkt->ip.total_bytes - pkt->ip.header_bytes;
    pkt->fragments = IX_NONE;
    if (IX_UNLIKELY(pkt->ip.more_fragments || pkt->ip.frag_bytes))
        return ix_ip_fragment(net, pkt, pkt->ip.id, pkt->ip.frag_bytes, pkt->ip.more_fragments);
    switch (pkt->ip.proto) {
    case IX_PROTO_TCP:
        return IX_VERDICT_TCP;
    case IX_PROTO_UDP:
        return IX_VERDICT_UDP;
    case IX_PROTO_ICMP:
        return IX_VERDICT_ICMP;
    default:
        n->drop_ip_proto++;
        ix_icmp4_unreachable(net, pkt, IX_ICMP4_PROTOCOL);
        return IX_VERDICT_DROP;
    }
}

enum ix_verdict ix_net_input(struct ix_net *net, struct ix_packet *pkt)
{
    struct ix_counters *n = net->counters;
    if (IX_UNLIKELY(ix_eth_parse(pkt->data, pkt->bytes, &pkt->eth) != IX_PARSE_OK)) {
        n->drop_eth_short++;
        return IX_VERDICT_DROP;
    }
    /* A NIC in promiscuous mode, or a switch that floods, brings others' frames. */
    if (IX_UNLIKELY(!ix_mac_equal(&pkt->eth.dst, &net->mac) && !ix_mac_is_group(&pkt->eth.dst))) {
        n->drop_eth_dst++;
        return IX_VERDICT_DROP;
    }
    if (IX_LIKELY(pkt->eth.type == IX_ETH_IPV4))
        return ip4_input(net, pkt);
    if (pkt->eth.type == IX_ETH_IPV6)
        return ix_ip6_input(net, pkt);
    if (pkt->eth.type == IX_ETH_ARP)
        ix_arp_input(net, pkt);
    else
        n->drop_eth_type++;
    return IX_VERDICT_DROP;
}

bool ix_net_partial_csum(struct ix_net *net, const struct ix_packet *pkt, uint32_t field)
{
    uint32_t pseudo =
        ix_csum_pseudo4(ix_csum_address(pkt->src.b), ix_csum_address(pkt->dst.b), pkt->ip.proto,
                        pkt->l4_bytes);
    uint16_t stored;
    __builtin_memcpy(&stored, pkt->l4 + field, sizeof stored);
    if (!ix_csum_is_partial(stored, pseudo) && !(pkt->flags & IX_DESC_PARTIAL_CSUM))
        return false;
    net->counters->drop_partial_csum++;
    if (!net->partial_csum_told)
        ix_ctl_request(net->shard, &(struct ix_ctl_msg){.type = IX_CTL_PARTIAL_CSUM});
    net->partial_csum_told = true;
    return true;
}
