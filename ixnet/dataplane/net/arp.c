/* ARP of own-address mode (RFC 826): answers for addresses that only the dataplane has, and learns.
 * With a shared address the kernel does all of this, and ARP never arrives here. */
#include "net/net.h"

static bool is_own(const struct ix_net *net, uint32_t ip)
{
    struct ix_ip address = ix_ip_from_v4(ip);
    return ix_net_is_own(net, 4, &address);
}

static void send(struct ix_net *net, const struct ix_mac *to, const struct ix_arp *arp)
{
    uint32_t frame = ix_net_tx_room(net) ? ix_net_alloc(net) : IX_NONE;
    if (frame == IX_NONE)
        return;
    uint8_t *data = ix_net_frame_ptr(net, frame) + IX_TX_HEADROOM;
    ix_eth_emit(data, &(struct ix_eth){.dst = *to, .src = net->mac, .type = IX_ETH_ARP});
    ix_arp_emit(data + IX_ETH_BYTES, arp);
    ix_net_stage(net, frame, data, IX_ETH_BYTES + IX_ARP_BYTES);
}

void ix_arp_ask(struct ix_net *net, uint32_t ip)
{
    static const struct ix_mac broadcast = {{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}};
    struct ix_ip target = ix_ip_from_v4(ip);
    struct ix_arp arp = {.op = IX_ARP_REQUEST,
                         .sender_mac = net->mac,
                         .sender_ip = ix_net_source_for(net, 4, &target).v4,
                         .target_ip = ip};
    if (arp.sender_ip)
        send(net, &broadcast, &arp);
}

void ix_arp_input(struct ix_net *net, const struct ix_packet *pkt)
{
    struct ix_arp arp;
    if (ix_arp_parse(pkt->data + IX_ETH_BYTES, pkt->bytes - IX_ETH_BYTES, &arp) != IX_PARSE_OK ||
        ix_mac_is_group(&arp.sender_mac)) {
        net->counters->drop_arp_bad++;
        return;
    }
    if (!net->own_address || !is_own(net, arp.target_ip))
        return;
    /* RFC 826: merge what the sender says of itself. A sender of 0 only probes (RFC 5227), and one
     * that claims our address is not to be believed. */
    struct ix_ip sender = ix_ip_from_v4(arp.sender_ip);
    if (arp.sender_ip && !ix_net_is_own(net, 4, &sender))
        ix_net_neigh_learn(net, 4, &sender, &arp.sender_mac);
    if (arp.op != IX_ARP_REQUEST)
        return;
    net->counters->arp_requests_in++;
    net->counters->arp_replies_out++;
    send(net, &arp.sender_mac,
         &(struct ix_arp){.op = IX_ARP_REPLY,
                          .sender_mac = net->mac,
                          .sender_ip = arp.target_ip,
                          .target_mac = arp.sender_mac,
                          .target_ip = arp.sender_ip});
}
