/* The network layer of a shard: addresses, routes, neighbours, and the way out.
 *
 * Routes and neighbours are mirrors of the kernel's, kept by the control plane through
 * messages; the shard asks for what it lacks and never decides for itself, except in
 * own-address mode, where it also learns from ARP and Neighbor Discovery.
 */
#ifndef IX_NET_NET_H
#define IX_NET_NET_H

#include "api/api.h"
#include "api/config.h"
#include "base/counters.h"
#include "base/limits.h"
#include "link/link.h"
#include "mem/frame.h"
#include "net/addr.h"
#include "net/pmtu.h"
#include "net/reass.h"
#include "wire/arp.h"
#include "wire/eth.h"
#include "wire/ipv4.h"
#include "wire/ipv6.h"

/* A received frame on its way up. The parsed parts point into the frame. */
struct ix_packet {
    uint8_t *data;     /* first byte of the frame */
    uint32_t bytes;    /* of the frame */
    uint32_t frame;    /* which UMEM frame */
    uint32_t flags;    /* IX_DESC_* */
    struct ix_eth eth;
    struct ix_ip src, dst;
    uint8_t family;    /* 4 or 6 */
    uint8_t hop_limit; /* IPv6 */
    struct ix_ipv4 ip; /* of an IPv6 packet only proto, tos and total_bytes */
    uint8_t *l4;       /* first byte after the IP header */
    uint32_t l4_bytes; /* to the end of the IP packet; padding is cut off */
    /* UDP, of a datagram that came in fragments: its frames (net/reass.h), of which this is one.
     * IX_NONE: it is whole. */
    uint32_t fragments;
};

/* What a layer's input function says of a packet. */
enum ix_verdict {
    IX_VERDICT_DROP, /* done with it; the frame can be freed. Counted where it was decided */
    IX_VERDICT_KEPT, /* the layer keeps the frame */
    IX_VERDICT_TCP,  /* hand it to TCP, ... */
    IX_VERDICT_UDP,
    IX_VERDICT_ICMP,
    IX_VERDICT_ICMP6,
};

struct ix_addr {
    struct ix_ip ip;
    uint8_t family;
    bool own; /* only the dataplane has it */
};

struct ix_route {
    struct ix_ip dst, mask; /* dst is masked */
    struct ix_ip gateway;   /* 0: on link */
    struct ix_ip source;    /* preferred source address; 0: any local one */
    uint8_t family, prefix;
};

enum ix_neigh_state { IX_NEIGH_EMPTY = 0, IX_NEIGH_WANTED, IX_NEIGH_KNOWN, IX_NEIGH_GONE };

struct ix_neigh {
    struct ix_ip ip;
    struct ix_mac mac;
    uint8_t family;
    uint8_t state;     /* enum ix_neigh_state; GONE keeps the probe chain */
    bool learned;      /* from ARP or ND, not from the kernel */
    uint64_t asked_ns; /* when resolution was last asked for; 0: not since it was known */
};

/* Where a flow's frames go: kept by the flow, brought up to date by ix_net_resolve(). */
struct ix_dst {
    struct ix_mac mac;
    bool valid;       /* mac can be used */
    bool provisional; /* mac is where the SYN came from, or where the neighbour was before it went;
                         it is being resolved */
    uint32_t epoch;   /* net->epoch at which mac was looked up */
    uint16_t mtu;     /* of the path, likewise; 0: not looked up yet */
};

struct ix_net {
    struct ix_link *link;
    struct ix_frames *frames;
    struct ix_counters *counters;
    struct ix_shard *shard; /* for requests to the control plane */
    uint64_t now_ns;
    uint64_t random;        /* state of ix_random() */
    struct ix_mac mac;
    bool own_address;       /* answers ARP, ND and echo for its own addresses */
    bool carrier;
    bool partial_csum_told;
    uint32_t mtu;
    uint32_t epoch; /* counts changes of routes and neighbours; never 0 */
    uint16_t ip_id;

    /* Frames built in this cycle, in order; [tx_head, tx_tail) wait for the link. */
    uint32_t tx_head, tx_tail;
    struct ix_desc tx[IX_TX_STAGE];

    /* Own IPv6 addresses that are new, in doubt until then (RFC 4862 5.4); UINT64_MAX: none. */
    uint64_t nd_doubt_ns;
    bool nd_speaks; /* this shard asks about them, and announces them */

    uint64_t icmp_tokens_ns; /* token bucket for ICMP errors: time credit, see icmp4.c */

    uint32_t addr_count, route_count;
    struct ix_addr addrs[IX_ADDRS_MAX];
    struct ix_route routes[IX_ROUTES_MAX]; /* longest prefix first */
    struct ix_neigh neigh[2 * IX_NEIGH_MAX]; /* open addressing */
    uint32_t neigh_count, neigh_learned;
    uint32_t neigh_purged; /* epoch in which those that are gone were last taken out of `neigh` */
    struct ix_key neigh_key;
    struct ix_pmtu_cache pmtu;
    struct ix_reass reass;
};

/* ---- tables (tables.c) */
/* What an ix_dst holds is looked up again. */
void ix_net_changed(struct ix_net *net);
bool ix_net_is_local(const struct ix_net *net, uint8_t family, const struct ix_ip *ip);
int ix_net_addr_add(struct ix_net *net, uint8_t family, const struct ix_ip *ip, bool own);
void ix_net_addr_del(struct ix_net *net, uint8_t family, const struct ix_ip *ip);
int ix_net_route_set(struct ix_net *net, uint8_t family, const struct ix_ip *dst, uint8_t prefix,
                     const struct ix_ip *gateway, const struct ix_ip *source);
void ix_net_route_del(struct ix_net *net, uint8_t family, const struct ix_ip *dst, uint8_t prefix);
const struct ix_route *ix_net_route(const struct ix_net *net, uint8_t family,
                                    const struct ix_ip *dst);
/* Is it all hosts' of a network on link, or of any (RFC 1122 3.2.1.3: {N, -1}, {-1, -1}), or a
 * group's? */
bool ix_net_is_many(const struct ix_net *net, uint8_t family, const struct ix_ip *ip);
void ix_net_neigh_set(struct ix_net *net, uint8_t family, const struct ix_ip *ip,
                      const struct ix_mac *mac);
/* The same from ARP or ND: at most half of the table, so that a liar can't keep the kernel's out.
 */
void ix_net_neigh_learn(struct ix_net *net, uint8_t family, const struct ix_ip *ip,
                        const struct ix_mac *mac);
void ix_net_neigh_del(struct ix_net *net, uint8_t family, const struct ix_ip *ip);
const struct ix_neigh *ix_net_neigh(const struct ix_net *net, uint8_t family,
                                    const struct ix_ip *ip);
/* Is there no route to ip, or did nobody answer when its next hop was asked for? */
bool ix_net_unreachable(const struct ix_net *net, uint8_t family, const struct ix_ip *ip);
/* The source address for packets to dst: the route's, else a local one, of IPv6 the best by RFC
 * 6724; 0 if none. */
struct ix_ip ix_net_source_for(const struct ix_net *net, uint8_t family, const struct ix_ip *dst);
/* Makes *dst usable for packets to `ip`: route, next hop, MAC. False if the MAC isn't known; then
 * it has been asked for (at most once a second a neighbour). A provisional MAC is used meanwhile.
 */
bool ix_net_resolve(struct ix_net *net, uint8_t family, const struct ix_ip *ip, struct ix_dst *dst);
static inline bool ix_net_dst_ready(struct ix_net *net, const struct ix_flow_key *key,
                                    struct ix_dst *dst)
{
    return IX_LIKELY(dst->epoch == net->epoch) ||
           ix_net_resolve(net, key->family, &key->peer, dst);
}

/* ---- input (ip4_input.c, arp.c, icmp4.c, ip6_input.c, nd.c, icmp6.c) */
/* Ethernet and IP: validates, and says whose packet it is. */
enum ix_verdict ix_net_input(struct ix_net *net, struct ix_packet *pkt);
enum ix_verdict ix_ip6_input(struct ix_net *net, struct ix_packet *pkt);
enum ix_verdict ix_ip_count_parse(struct ix_net *net, enum ix_parse parse);
/* A part of a longer packet: [at, at + l4_bytes) of what its headers carry. */
enum ix_verdict ix_ip_fragment(struct ix_net *net, struct ix_packet *pkt, uint32_t id, uint32_t at,
                               bool more);
void ix_arp_input(struct ix_net *net, const struct ix_packet *pkt);
/* Broadcasts a request for `ip`: own-address mode only. */
void ix_arp_ask(struct ix_net *net, uint32_t ip);
/* A neighbor solicitation or advertisement, `bytes` bytes, checksum verified: answers for own
 * addresses, and learns. */
void ix_nd_input(struct ix_net *net, const struct ix_packet *pkt);
/* An own address is new: whether others have it is asked, if this shard is to, and awaited. */
void ix_nd_begin(struct ix_net *net, const struct ix_ip *ip, bool speaks);
/* Nobody has objected: all are told of the own addresses (RFC 4861 7.2.6). */
void ix_nd_settle(struct ix_net *net);
/* Solicits `ip`: own-address mode only. */
void ix_nd_ask(struct ix_net *net, const struct ix_ip *ip);
/* Is `group` that of all nodes, or the solicited-node address (RFC 4291 2.7.1) of an own one? */
bool ix_nd_is_group(const struct ix_net *net, const struct ix_ip *group);
bool ix_net_is_own(const struct ix_net *net, uint8_t family, const struct ix_ip *ip);

/* Was the bad checksum at `field` (offset in the segment) left to hardware that isn't there? Such a
 * sender puts the pseudo header's sum into the field. Counted, and the control plane is told once.
 */
bool ix_net_partial_csum(struct ix_net *net, const struct ix_packet *pkt, uint32_t field);

/* What an ICMP error says of a flow. ICMPv6 is put in ICMP's terms: type and code of IPv4 that mean
 * the same, TOO_BIG as FRAG_NEEDED. */
struct ix_icmp_error {
    uint8_t type, code, proto;
    struct ix_flow_key key;
    uint32_t seq; /* TCP: sequence number of the segment that caused it */
    uint32_t mtu; /* FRAG_NEEDED: next-hop MTU, 0 if not given */
    uint32_t quoted_bytes; /* total length of the packet that caused it, as it was quoted */
};
/* Answers echo requests for own addresses; returns true and fills *error for an error about a TCP
 * or UDP flow. */
bool ix_icmp4_input(struct ix_net *net, const struct ix_packet *pkt, struct ix_icmp_error *error);
/* Sends a destination unreachable with `code` about pkt, rate limited (RFC 1122 3.2.2, RFC
 * 1812 4.3.2.8). */
void ix_icmp4_unreachable(struct ix_net *net, const struct ix_packet *pkt, uint8_t code);
/* Shares its rate limit. True: an error may leave now. */
bool ix_icmp_may_send(struct ix_net *net);
/* As ix_icmp4_input(), and hands neighbor discovery on. */
bool ix_icmp6_input(struct ix_net *net, const struct ix_packet *pkt, struct ix_icmp_error *error);
/* Sends an ICMPv6 error about pkt unless RFC 4443 2.4 (e) forbids it. `rest`: see struct ix_icmp6.
 * always: even if the packet went to a group. */
void ix_icmp6_error(struct ix_net *net, const struct ix_packet *pkt, uint8_t type, uint8_t code,
                    uint32_t rest, bool always);
/* Nobody listens on the port: the error of pkt's family. */
void ix_icmp_port_unreachable(struct ix_net *net, const struct ix_packet *pkt);

/* ---- output (output.c) */
enum { IX_NET_TTL = 64 }; /* RFC 1122 3.2.1.7, IANA's default; IPv6's hop limit, too */
static inline bool ix_net_tx_room(const struct ix_net *net)
{
    return net->tx_tail < IX_TX_STAGE;
}
/* Takes a frame of the pool for a packet, or IX_NONE (counted). Headers end and payload begins at
 * IX_TX_HEADROOM. */
uint32_t ix_net_alloc(struct ix_net *net);
static inline uint8_t *ix_net_frame_ptr(const struct ix_net *net, uint32_t frame)
{
    return net->link->umem + ix_frame_addr(net->frames, frame);
}
/* Stages a frame that is complete, `data` its first byte. The caller has checked ix_net_tx_room().
 */
static inline void ix_net_stage(struct ix_net *net, uint32_t frame, const uint8_t *data,
                                uint32_t bytes)
{
    IX_ASSERT(net->tx_tail < IX_TX_STAGE);
    ix_frame_tx_begin(net->frames, frame);
    struct ix_desc *desc = &net->tx[net->tx_tail++];
    desc->addr = (uint64_t)(data - net->link->umem);
    desc->len = bytes;
    desc->flags = 0;
    net->counters->tx_frames++;
    net->counters->tx_bytes += bytes;
}
/* Puts IPv4 and Ethernet headers before the l4_bytes bytes at `l4` and stages the frame. tos: the
 * header's byte of that name, ECN field included. */
static inline __attribute__((always_inline)) void
ix_net_output4(struct ix_net *net, uint32_t frame, uint8_t *l4, uint32_t l4_bytes, uint8_t proto,
               uint8_t tos, uint32_t src, uint32_t dst, const struct ix_mac *to)
{
    uint8_t *packet = l4 - IX_IPV4_BYTES;
    uint8_t *data = packet - IX_ETH_BYTES;
    ix_ipv4_put(packet, &(struct ix_ipv4){.src = src,
                                          .dst = dst,
                                          .total_bytes = (uint16_t)(IX_IPV4_BYTES + l4_bytes),
                                          .id = net->ip_id++,
                                          .proto = proto,
                                          .tos = tos,
                                          .ttl = IX_NET_TTL,
                                          .dont_fragment = true});
    ix_eth_put(data, to, &net->mac, IX_ETH_IPV4);
    ix_net_stage(net, frame, data, IX_ETH_BYTES + IX_IPV4_BYTES + l4_bytes);
}
/* The same with an IPv6 header. */
void ix_net_output6(struct ix_net *net, uint32_t frame, uint8_t *l4, uint32_t l4_bytes,
                    const struct ix_ipv6 *ip, const struct ix_mac *to);
/* The same, from one end of a flow to the other. */
void ix_net_output6_flow(struct ix_net *net, uint32_t frame, uint8_t *l4, uint32_t l4_bytes,
                         uint8_t proto, uint8_t tos, const struct ix_flow_key *key,
                         const struct ix_mac *to);
/* Of either family. */
static inline __attribute__((always_inline)) void
ix_net_output(struct ix_net *net, uint32_t frame, uint8_t *l4, uint32_t l4_bytes, uint8_t proto,
              uint8_t tos, const struct ix_flow_key *key, const struct ix_mac *to)
{
    if (IX_LIKELY(key->family == 4))
        ix_net_output4(net, frame, l4, l4_bytes, proto, tos, key->local.v4, key->peer.v4, to);
    else
        ix_net_output6_flow(net, frame, l4, l4_bytes, proto, tos, key, to);
}
static inline uint32_t ix_ip_header_bytes(uint8_t family)
{
    return family == 6 ? IX_IPV6_BYTES : IX_IPV4_BYTES;
}
/* Hands staged frames to the link. Returns how many went. */
uint32_t ix_net_flush(struct ix_net *net);

/* Asks the control plane for something (shard/ctl.c); dropped and counted if its ring is full. */
void ix_ctl_request(struct ix_shard *shard, const struct ix_ctl_msg *msg);

#endif
