/* Neighbor Discovery of own-address mode (RFC 4861): answers for addresses that only the dataplane
 * has, and learns. With a shared address the kernel does all of this, and it never arrives here.
 *
 * Solicitations come to a multicast address of the target's. The control plane joins that group in
 * the kernel, which so tells the NIC's filter and, by MLD, the switches. A new address is in use at
 * once, while it is asked whether others have it (RFC 4429): the operator means it to be ours.
 */
#include "net/net.h"
#include "wire/csum.h"
#include "wire/icmp6.h"

#define DOUBT_NS 1000000000ull /* RFC 4861 section 10: RETRANS_TIMER */

static const struct ix_ip all_nodes = {.b = {0xff, 2, [15] = 1}};
static const struct ix_mac all_nodes_mac = {{0x33, 0x33, 0, 0, 0, 1}};

/* ff02::1:ff00:0/104 and the target's last 24 bits (RFC 4291 2.7.1). */
static struct ix_ip group_of(const struct ix_ip *ip)
{
    return (struct ix_ip){.b = {0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, ip->b[13], ip->b[14],
                                ip->b[15]}};
}

bool ix_nd_is_group(const struct ix_net *net, const struct ix_ip *group)
{
    if (!net->own_address || group->b[0] != 0xff)
        return false;
    if (ix_ip_equal(group, &all_nodes))
        return true;
    for (uint32_t i = 0; i < net->addr_count; i++) {
        struct ix_ip mine = group_of(&net->addrs[i].ip);
        if (net->addrs[i].own && net->addrs[i].family == 6 && ix_ip_equal(&mine, group))
            return true;
    }
    return false;
}

static void send(struct ix_net *net, const struct ix_nd *nd, const struct ix_ip *src,
                 const struct ix_ip *dst, const struct ix_mac *to)
{
    uint32_t frame = ix_net_tx_room(net) ? ix_net_alloc(net) : IX_NONE;
    if (frame == IX_NONE)
        return;
    uint8_t *message = ix_net_frame_ptr(net, frame) + IX_TX_HEADROOM;
    uint32_t bytes = ix_nd_emit(message, nd, ix_csum_address(src->b), ix_csum_address(dst->b));
    struct ix_ipv6 ip = {.next = IX_PROTO_ICMP6, .hop_limit = IX_ND_HOP_LIMIT};
    __builtin_memcpy(ip.src, src->b, 16);
    __builtin_memcpy(ip.dst, dst->b, 16);
    ix_net_output6(net, frame, message, bytes, &ip, to);
}

/* From :: it is a probe, which names no MAC (RFC 4861 4.3). */
static void solicit(struct ix_net *net, const struct ix_ip *ip, const struct ix_ip *src)
{
    struct ix_ip group = group_of(ip);
    /* RFC 2464 section 7: 33:33 and the group's last 32 bits. */
    struct ix_mac to = {{0x33, 0x33, group.b[12], group.b[13], group.b[14], group.b[15]}};
    struct ix_nd nd = {
        .type = IX_ICMP6_SOLICIT, .has_mac = !ix_ip_is_zero(src), .mac = net->mac};
    __builtin_memcpy(nd.target, ip->b, 16);
    send(net, &nd, src, &group, &to);
}

void ix_nd_ask(struct ix_net *net, const struct ix_ip *ip)
{
    struct ix_ip src = ix_net_source_for(net, 6, ip);
    if (!ix_ip_is_zero(&src))
        solicit(net, ip, &src);
}

static void advertise(struct ix_net *net, const struct ix_ip *target, uint8_t flags,
                      const struct ix_ip *dst, const struct ix_mac *to)
{
    /* RFC 4429 3.3: while it is in doubt nobody's entry is overridden. */
    bool doubt = net->nd_doubt_ns != UINT64_MAX;
    struct ix_nd nd = {.type = IX_ICMP6_ADVERT,
                       .flags = flags | (doubt ? 0 : IX_ND_OVERRIDE),
                       .has_mac = true,
                       .mac = net->mac};
    __builtin_memcpy(nd.target, target->b, 16);
    send(net, &nd, target, dst, to);
    net->counters->nd_adverts_out++;
}

void ix_nd_begin(struct ix_net *net, const struct ix_ip *ip, bool speaks)
{
    static const struct ix_ip nobody = {.q = {0, 0}};
    net->nd_speaks = speaks;
    net->nd_doubt_ns = net->now_ns + DOUBT_NS;
    if (speaks)
        solicit(net, ip, &nobody);
}

void ix_nd_settle(struct ix_net *net)
{
    net->nd_doubt_ns = UINT64_MAX;
    for (uint32_t i = 0; i < net->addr_count && net->nd_speaks; i++)
        if (net->addrs[i].own && net->addrs[i].family == 6)
            advertise(net, &net->addrs[i].ip, 0, &all_nodes, &all_nodes_mac);
}

/* The control plane tells the operator, and what to do is his. */
static void tell_duplicate(struct ix_net *net, const struct ix_ip *ip, const struct ix_mac *rival)
{
    struct ix_ctl_msg msg = {
        .type = IX_CTL_DUPLICATE, .family = 6, .value = net->nd_doubt_ns != UINT64_MAX};
    __builtin_memcpy(msg.ip, ip->b, 16);
    __builtin_memcpy(msg.mac, rival->b, 6);
    net->counters->nd_duplicates++;
    ix_ctl_request(net->shard, &msg);
}

/* RFC 4861 7.2.4. One who asks from :: tests whether the address is free: all nodes are told. */
static void answer(struct ix_net *net, const struct ix_packet *pkt, const struct ix_ip *target)
{
    if (ix_ip_is_zero(&pkt->src))
        advertise(net, target, 0, &all_nodes, &all_nodes_mac);
    else
        advertise(net, target, IX_ND_SOLICITED, &pkt->src, &pkt->eth.src);
}

void ix_nd_input(struct ix_net *net, const struct ix_packet *pkt)
{
    struct ix_nd nd;
    struct ix_ip target;
    bool probe = ix_ip_is_zero(&pkt->src), group = ix_ip_is_group(&pkt->dst, 6);
    /* 7.1.1, 7.1.2: not from beyond a router; a probe goes to the group and names no MAC; an
     * advertisement to all answers nobody. */
    if (pkt->hop_limit != IX_ND_HOP_LIMIT ||
        ix_nd_parse(pkt->l4, pkt->l4_bytes, &nd) != IX_PARSE_OK ||
        (nd.has_mac && ix_mac_is_group(&nd.mac)) ||
        (nd.type == IX_ICMP6_SOLICIT && probe && (nd.has_mac || !group)) ||
        (nd.type == IX_ICMP6_ADVERT && (probe || (group && nd.flags & IX_ND_SOLICITED)))) {
        net->counters->drop_nd_bad++;
        return;
    }
    if (!net->own_address)
        return;
    __builtin_memcpy(target.b, nd.target, 16);
    bool own = ix_net_is_own(net, 6, &target);
    bool rival = own && !ix_mac_equal(&pkt->eth.src, &net->mac) &&
                 (nd.type == IX_ICMP6_ADVERT || (probe && net->nd_doubt_ns != UINT64_MAX));
    if (rival)
        tell_duplicate(net, &target, &pkt->eth.src);
    if (nd.type == IX_ICMP6_SOLICIT) {
        if (!own)
            return;
        net->counters->nd_solicits_in++;
        if (nd.has_mac && !ix_net_is_own(net, 6, &pkt->src))
            ix_net_neigh_learn(net, 6, &pkt->src, &nd.mac);
        answer(net, pkt, &target);
    } else if (!own && nd.has_mac) {
        /* 7.2.5: nothing is learned of one who was not asked for; the first answer counts unless a
         * later one overrides it. */
        const struct ix_neigh *known = ix_net_neigh(net, 6, &target);
        if (nd.flags & IX_ND_SOLICITED && (!known || nd.flags & IX_ND_OVERRIDE))
            ix_net_neigh_learn(net, 6, &target, &nd.mac);
    }
}
