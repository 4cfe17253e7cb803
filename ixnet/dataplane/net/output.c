/* The way out: headers, and the stage of frames that the cycle sends at its end. */
#include "net/net.h"

uint32_t ix_net_alloc(struct ix_net *net)
{
    uint32_t frame = ix_frame_alloc(net->frames);
    if (IX_UNLIKELY(frame == IX_NONE))
        net->counters->tx_no_frame++;
    return frame;
}

void ix_net_output6(struct ix_net *net, uint32_t frame, uint8_t *l4, uint32_t l4_bytes,
                    const struct ix_ipv6 *ip, const struct ix_mac *to)
{
    uint8_t *packet = l4 - IX_IPV6_BYTES;
    uint8_t *data = packet - IX_ETH_BYTES;
    struct ix_ipv6 header = *ip;
    header.payload_bytes = (uint16_t)l4_bytes;
    ix_ipv6_emit(packet, &header);
    ix_eth_put(data, to, &net->mac, IX_ETH_IPV6);
    ix_net_stage(net, frame, data, IX_ETH_BYTES + IX_IPV6_BYTES + l4_bytes);
}

/* The same for all packets of a flow, and no help in guessing anything (RFC 6437 section 3). */
static uint32_t flow_label(const struct ix_net *net, const struct ix_flow_key *key)
{
    return (uint32_t)ix_flow_hash(&net->neigh_key, key) & 0xfffff;
}

void ix_net_output6_flow(struct ix_net *net, uint32_t frame, uint8_t *l4, uint32_t l4_bytes,
                         uint8_t proto, uint8_t tos, const struct ix_flow_key *key,
                         const struct ix_mac *to)
{
    struct ix_ipv6 ip = {.flow_label = flow_label(net, key),
                         .next = proto,
                         .hop_limit = IX_NET_TTL,
                         .traffic_class = tos};
    __builtin_memcpy(ip.src, key->local.b, 16);
    __builtin_memcpy(ip.dst, key->peer.b, 16);
    ix_net_output6(net, frame, l4, l4_bytes, &ip, to);
}

uint32_t ix_net_flush(struct ix_net *net)
{
    uint32_t waiting = net->tx_tail - net->tx_head;
    uint32_t sent = 0;
    if (waiting)
        sent = net->link->ops->tx_burst(net->link, &net->tx[net->tx_head], waiting);
    net->tx_head += sent;
    if (net->tx_head == net->tx_tail) {
        net->tx_head = net->tx_tail = 0;
        return sent;
    }
    net->counters->tx_full++;
    /* What did not fit goes first next time; move it down so that the whole stage is usable. */
    uint32_t rest = net->tx_tail - net->tx_head;
    for (uint32_t i = 0; i < rest && net->tx_head; i++)
        net->tx[i] = net->tx[net->tx_head + i];
    net->tx_head = 0;
    net->tx_tail = rest;
    return sent;
}
