/* Steering: which frames the dataplane gets.
 *
 * One job: look at a frame's local endpoint; if the dataplane has claimed it,
 * hand the frame to the AF_XDP socket of the queue that it arrived on. All else,
 * and everything that this program doesn't understand, goes on to the kernel,
 * so ssh, DNS and every other service of the host work as before.
 *
 * Nothing is written to a frame (steer_stamp.bpf.c, steer_hwstamp.bpf.c: before it). Fields are
 * read through a cursor that checks each step against the end of the frame. Every
 * frame leaves through settle(), which counts its verdict.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "steer.h"
#include "steer_maps.h"

/* 1: with the time of arrival before each frame (steer_stamp.bpf.c). 2: with the NIC's as well
 * (steer_hwstamp.bpf.c). */
#ifndef IX_STEER_STAMPS
#define IX_STEER_STAMPS 0
#endif

/* Defined: which also sends (steer_express.bpf.c). */
#ifdef IX_STEER_EXPRESS
#include "express_bpf.h"
#endif

#if IX_STEER_STAMPS == 2
/* The driver's own function in a program that is bound to its device (Linux 6.3; Documentation/
 * networking/xdp-rx-metadata.rst). */
extern int bpf_xdp_metadata_rx_timestamp(const struct xdp_md *ctx, __u64 *timestamp) __ksym;
#endif

struct cursor {
    void *pos;
    void *end;
    const struct ix_steer_table *table;
};

/* Takes `bytes` bytes; NULL, and the cursor stays, when the frame is too short.
 * `bytes` must be bounded for the verifier: a constant, or masked. */
static __always_inline void *take(struct cursor *cur, __u32 bytes)
{
    void *at = cur->pos;

    if (at + bytes > cur->end)
        return NULL;
    cur->pos = at + bytes;
    return at;
}

/* ---- who wants this endpoint --------------------------------------------- */

static __always_inline void put_ipv4(__u8 *to, __be32 addr)
{
    __builtin_memset(to, 0, 16);
    __builtin_memcpy(to, &addr, sizeof addr);
}

static __always_inline void set_ipv4(struct ix_steer_flow *flow, __be32 addr)
{
    flow->family = IX_STEER_IPV4;
    put_ipv4(flow->addr, addr);
}

static __always_inline void set_ipv6(struct ix_steer_flow *flow, const struct in6_addr *addr)
{
    flow->family = IX_STEER_IPV6;
    __builtin_memcpy(flow->addr, addr, sizeof flow->addr);
}

static __always_inline int same_addr(const __u8 *a, const __u8 *b)
{
    __u64 x[2], y[2];

    __builtin_memcpy(x, a, sizeof x);
    __builtin_memcpy(y, b, sizeof y);
    return x[0] == y[0] && x[1] == y[1];
}

static __always_inline int in_map(void *map, const struct ix_steer_flow *flow)
{
    struct ix_steer_addr key = {.family = flow->family};

    __builtin_memcpy(key.addr, flow->addr, sizeof key.addr);
    return bpf_map_lookup_elem(map, &key) != NULL;
}

static __always_inline int is_local(const struct ix_steer_table *t,
                                    const struct ix_steer_flow *flow)
{
    for (int i = 0; i < IX_STEER_NEAR; i++)
        if (t->near[i].family == flow->family && same_addr(t->near[i].addr, flow->addr))
            return 1;
    return t->far && in_map(&local_addrs, flow);
}

static __always_inline int is_own(const struct ix_steer_table *t, const struct ix_steer_flow *flow)
{
    return t->own_addrs && in_map(&own_addrs, flow);
}

static __always_inline int is_any(const __u8 *addr)
{
    __u64 half[2];

    __builtin_memcpy(half, addr, sizeof half);
    return (half[0] | half[1]) == 0;
}

static __always_inline int in_range(const struct ix_steer_flow *flow, int local)
{
    __u16 port = bpf_ntohs(flow->port);

    for (__u32 i = 0; i < IX_STEER_MAX_RANGES; i++) {
        __u32 key = i;
        const struct ix_steer_range *r = bpf_map_lookup_elem(&ranges, &key);

        if (!r || r->state == IX_STEER_RANGE_END)
            break;
        if (r->state != IX_STEER_RANGE_LIVE || r->family != flow->family ||
            r->proto != flow->proto || port < r->lo || port > r->hi)
            continue;
        if (is_any(r->addr) ? local : same_addr(r->addr, flow->addr))
            return 1;
    }
    return 0;
}

/* The exact claim first, then the same port on any local address, then the
 * ranges. A wildcard covers the host's own addresses only: frames that the host
 * forwards carry claimed port numbers too, and are none of our business. */
static __always_inline enum ix_steer_verdict claimed(const struct ix_steer_table *t,
                                                     const struct ix_steer_flow *flow)
{
    __u32 kind = ix_steer_kind(flow->family, flow->proto) & (IX_STEER_KINDS - 1);
    __u8 wants = t->wants[kind][flow->port];
    int local;

    if (!wants)
        return IX_STEER_PASS_UNCLAIMED;
    if (wants & IX_STEER_WANT_SOMEWHERE && bpf_map_lookup_elem(&claims, flow))
        return IX_STEER_REDIRECT_CLAIM;
    local = is_local(t, flow);
    if (local && wants & IX_STEER_WANT_EVERYWHERE)
        return IX_STEER_REDIRECT_CLAIM;
    if (wants & IX_STEER_WANT_RANGE && in_range(flow, local))
        return IX_STEER_REDIRECT_RANGE;
    return IX_STEER_PASS_UNCLAIMED;
}

/* ---- transport ------------------------------------------------------------ */

/* The first four bytes of TCP and UDP alike. */
struct ports {
    __be16 source;
    __be16 dest;
};

static __always_inline enum ix_steer_verdict on_transport(struct cursor *cur,
                                                          struct ix_steer_flow *flow)
{
    const struct ports *ports = take(cur, sizeof *ports);

    if (!ports)
        return IX_STEER_PASS_TRUNCATED;
    flow->port = ports->dest;
    return claimed(cur->table, flow);
}

enum piece { WHOLE, FIRST_FRAGMENT, LATER_FRAGMENT };

/* Of a datagram in fragments only the first has the ports, so the others go where it went. One that
 * overtakes the first goes to the kernel, where it expires. TCP's are the kernel's to refuse. */
static __always_inline enum ix_steer_verdict on_fragment(struct cursor *cur, enum piece piece,
                                                         struct ix_steer_flow *flow,
                                                         const struct ix_steer_datagram *datagram)
{
    __u64 now = bpf_ktime_get_ns();
    const __u64 *first;

    if (piece == LATER_FRAGMENT) {
        first = bpf_map_lookup_elem(&datagrams, datagram);
        return first && now - *first < IX_STEER_DATAGRAM_NS ? IX_STEER_REDIRECT_FRAGMENT
                                                            : IX_STEER_PASS_FRAGMENT;
    }
    if (flow->proto != IPPROTO_UDP || on_transport(cur, flow) < IX_STEER_REDIRECT_CLAIM) {
        /* Numbers come again: what follows is not that claimed one's. */
        bpf_map_delete_elem(&datagrams, datagram);
        return IX_STEER_PASS_FRAGMENT;
    }
    bpf_map_update_elem(&datagrams, datagram, &now, BPF_ANY);
    return IX_STEER_REDIRECT_FRAGMENT;
}

/* The packet that an ICMP error quotes is one that this host sent, so its
 * *source* is our endpoint (RFC 792; RFC 1122 3.2.2: hand the error to the user
 * of the quoted flow). */
static __always_inline enum ix_steer_verdict on_quoted(struct cursor *cur,
                                                       struct ix_steer_flow *flow)
{
    const struct ports *ports;

    if (flow->proto != IPPROTO_TCP && flow->proto != IPPROTO_UDP)
        return IX_STEER_PASS_ICMP;
    ports = take(cur, sizeof *ports);
    if (!ports)
        return IX_STEER_PASS_TRUNCATED;
    flow->port = ports->source;
    return claimed(cur->table, flow) == IX_STEER_PASS_UNCLAIMED ? IX_STEER_PASS_ICMP
                                                                : IX_STEER_REDIRECT_ICMP;
}

/* Steps over an IPv4 header with its options. NULL, and *why set, if it can't. */
static __always_inline const struct iphdr *take_ipv4(struct cursor *cur,
                                                     enum ix_steer_verdict *why)
{
    const struct iphdr *ip = take(cur, sizeof *ip);

    *why = IX_STEER_PASS_TRUNCATED;
    if (!ip)
        return NULL;
    if (ip->version != 4 || ip->ihl < 5) {
        *why = IX_STEER_PASS_MALFORMED;
        return NULL;
    }
    /* The mask bounds the step for the verifier; ihl is 4 bits, at most 40 bytes are left. */
    return take(cur, (ip->ihl * 4 - sizeof *ip) & 0x3f) ? ip : NULL;
}

#define IPV4_OFFSET_MASK 0x1fff
#define IPV4_MORE        0x2000

/* RFC 792 and RFC 4443 2.1 alike: 8 bytes, then the quoted packet in errors. */
struct icmp {
    __u8 type;
    __u8 code;
    __be16 check;
    __be32 rest;
};

enum {
    ICMP4_UNREACHABLE = 3,
    ICMP4_TIME_EXCEEDED = 11,
    ICMP4_PARAMETER = 12,
    ICMP6_UNREACHABLE = 1,
    ICMP6_PARAMETER = 4,
    ICMP6_SOLICIT = 135,
    ICMP6_ADVERT = 136,
};

static __always_inline enum ix_steer_verdict on_icmp4(struct cursor *cur)
{
    const struct icmp *icmp = take(cur, sizeof *icmp);
    struct ix_steer_flow flow = {};
    enum ix_steer_verdict why;
    const struct iphdr *quoted;

    if (!icmp)
        return IX_STEER_PASS_TRUNCATED;
    /* Redirects stay with the kernel, whose routes they change. */
    if (icmp->type != ICMP4_UNREACHABLE && icmp->type != ICMP4_TIME_EXCEEDED &&
        icmp->type != ICMP4_PARAMETER)
        return IX_STEER_PASS_ICMP;
    quoted = take_ipv4(cur, &why);
    if (!quoted)
        return why;
    if (quoted->frag_off & bpf_htons(IPV4_OFFSET_MASK))
        return IX_STEER_PASS_ICMP;
    set_ipv4(&flow, quoted->saddr);
    flow.proto = quoted->protocol;
    return on_quoted(cur, &flow);
}

/* Solicitations of an own address come to a group; advertisements about one, to all nodes, are what
 * another one says that has it, too. Those that answer our own questions come to the address. */
static __always_inline enum ix_steer_verdict on_neighbour(struct cursor *cur)
{
    const struct in6_addr *target = take(cur, sizeof *target);
    struct ix_steer_flow flow = {};

    if (!target)
        return IX_STEER_PASS_TRUNCATED;
    set_ipv6(&flow, target);
    return is_own(cur->table, &flow) ? IX_STEER_REDIRECT_ND : IX_STEER_PASS_ICMP;
}

static __always_inline enum ix_steer_verdict on_icmp6(struct cursor *cur)
{
    const struct icmp *icmp = take(cur, sizeof *icmp);
    const struct ipv6hdr *quoted;
    struct ix_steer_flow flow = {};

    if (!icmp)
        return IX_STEER_PASS_TRUNCATED;
    if (icmp->type == ICMP6_SOLICIT || icmp->type == ICMP6_ADVERT)
        return on_neighbour(cur);
    if (icmp->type < ICMP6_UNREACHABLE || icmp->type > ICMP6_PARAMETER)
        return IX_STEER_PASS_ICMP;
    quoted = take(cur, sizeof *quoted);
    if (!quoted)
        return IX_STEER_PASS_TRUNCATED;
    if (quoted->version != 6)
        return IX_STEER_PASS_MALFORMED;
    set_ipv6(&flow, &quoted->saddr);
    flow.proto = quoted->nexthdr;
    return on_quoted(cur, &flow);
}

/* ---- network -------------------------------------------------------------- */

static __always_inline enum ix_steer_verdict on_fragment4(struct cursor *cur,
                                                          const struct iphdr *ip,
                                                          struct ix_steer_flow *flow)
{
    struct ix_steer_datagram datagram = {.family = IX_STEER_IPV4, .id = ip->id};
    int later = (ip->frag_off & bpf_htons(IPV4_OFFSET_MASK)) != 0;

    /* Each protocol has numbers of its own. */
    if (ip->protocol != IPPROTO_UDP)
        return IX_STEER_PASS_FRAGMENT;
    put_ipv4(datagram.src, ip->saddr);
    put_ipv4(datagram.dst, ip->daddr);
    return on_fragment(cur, later ? LATER_FRAGMENT : FIRST_FRAGMENT, flow, &datagram);
}

static __always_inline enum ix_steer_verdict on_ipv4(struct cursor *cur)
{
    struct ix_steer_flow flow = {};
    enum ix_steer_verdict why;
    const struct iphdr *ip = take_ipv4(cur, &why);

    if (!ip)
        return why;
    /* Before the look at fragments: the kernel has no use for any of it. */
    set_ipv4(&flow, ip->daddr);
    if (is_own(cur->table, &flow))
        return IX_STEER_REDIRECT_OWN;
    flow.proto = ip->protocol;
    if (ip->frag_off & bpf_htons(IPV4_OFFSET_MASK | IPV4_MORE))
        return on_fragment4(cur, ip, &flow);
    switch (ip->protocol) {
    case IPPROTO_TCP:
    case IPPROTO_UDP:
        return on_transport(cur, &flow);
    case IPPROTO_ICMP:
        return on_icmp4(cur);
    default:
        return IX_STEER_PASS_PROTOCOL;
    }
}

/* RFC 8200 4.2 to 4.6: what these have in common. `length` is that of the fragment header only by
 * chance: there it is reserved. */
struct extension {
    __u8 next;
    __u8 length; /* in 8 bytes, the first 8 not counted */
    __be16 field; /* a fragment's offset and flag */
    __be32 rest;
};

#define IPV6_EXTENSIONS_MAX 4 /* more than any sender has use for; the kernel may see to others */
#define IPV6_OFFSET 0xfff8
#define IPV6_MORE   0x0001

/* Steps over those extension headers that the dataplane steps over, too, or of a later fragment to
 * where its part of the datagram begins. *next: the first header after them. False, and *why set,
 * if the transport header isn't reached. */
static __always_inline int take_extensions(struct cursor *cur, __u8 *next, enum piece *piece,
                                           __be32 *id, enum ix_steer_verdict *why)
{
    for (int i = 0; i <= IPV6_EXTENSIONS_MAX; i++) {
        const struct extension *ext;

        if (*next != IPPROTO_HOPOPTS && *next != IPPROTO_ROUTING && *next != IPPROTO_DSTOPTS &&
            *next != IPPROTO_FRAGMENT)
            return 1;
        if (i == IPV6_EXTENSIONS_MAX)
            break;
        ext = take(cur, sizeof *ext);
        *why = IX_STEER_PASS_TRUNCATED;
        if (!ext)
            return 0;
        if (*next == IPPROTO_FRAGMENT) {
            *id = ext->rest;
            if (ext->field & bpf_htons(IPV6_OFFSET)) {
                *piece = LATER_FRAGMENT;
                return 1;
            }
            /* RFC 6946: one that is the whole packet is no fragment. */
            if (ext->field & bpf_htons(IPV6_MORE))
                *piece = FIRST_FRAGMENT;
        } else if (!take(cur, (ext->length * 8) & 0x7f8)) { /* the mask is for the verifier */
            return 0;
        }
        *next = ext->next;
    }
    *why = IX_STEER_PASS_EXTENSION;
    return 0;
}

static __always_inline enum ix_steer_verdict on_ipv6(struct cursor *cur)
{
    const struct ipv6hdr *ip = take(cur, sizeof *ip);
    struct ix_steer_datagram datagram = {.family = IX_STEER_IPV6};
    struct ix_steer_flow flow = {};
    enum ix_steer_verdict why;
    enum piece piece = WHOLE;
    __u8 next;

    if (!ip)
        return IX_STEER_PASS_TRUNCATED;
    if (ip->version != 6)
        return IX_STEER_PASS_MALFORMED;
    set_ipv6(&flow, &ip->daddr);
    if (is_own(cur->table, &flow))
        return IX_STEER_REDIRECT_OWN;
    next = ip->nexthdr;
    if (!take_extensions(cur, &next, &piece, &datagram.id, &why))
        return why;
    flow.proto = next;
    if (piece != WHOLE) {
        __builtin_memcpy(datagram.src, &ip->saddr, sizeof datagram.src);
        __builtin_memcpy(datagram.dst, &ip->daddr, sizeof datagram.dst);
        return on_fragment(cur, piece, &flow, &datagram);
    }
    switch (next) {
    case IPPROTO_TCP:
    case IPPROTO_UDP:
        return on_transport(cur, &flow);
    case IPPROTO_ICMPV6:
        return on_icmp6(cur);
    case IPPROTO_AH:
    case IPPROTO_MH:
        return IX_STEER_PASS_EXTENSION;
    default:
        return IX_STEER_PASS_PROTOCOL;
    }
}

/* RFC 826, as it stands on Ethernet with IPv4 addresses. */
struct arp_ipv4 {
    __be16 hardware;
    __be16 protocol;
    __u8 hardware_bytes;
    __u8 protocol_bytes;
    __be16 op;
    __u8 sender_mac[ETH_ALEN];
    __u8 sender_ip[4];
    __u8 target_mac[ETH_ALEN];
    __u8 target_ip[4];
};

static __always_inline enum ix_steer_verdict on_arp(struct cursor *cur)
{
    const struct arp_ipv4 *arp = take(cur, sizeof *arp);
    struct ix_steer_flow flow = {};
    __be32 target;

    if (!arp)
        return IX_STEER_PASS_TRUNCATED;
    if (arp->hardware != bpf_htons(1) || arp->protocol != bpf_htons(ETH_P_IP) ||
        arp->hardware_bytes != ETH_ALEN || arp->protocol_bytes != sizeof target)
        return IX_STEER_PASS_ARP;
    __builtin_memcpy(&target, arp->target_ip, sizeof target);
    set_ipv4(&flow, target);
    return is_own(cur->table, &flow) ? IX_STEER_REDIRECT_ARP : IX_STEER_PASS_ARP;
}

/* ---- link ----------------------------------------------------------------- */

struct vlan_tag {
    __be16 tci;
    __be16 ethertype;
};

static __always_inline int is_vlan(__be16 ethertype)
{
    return ethertype == bpf_htons(ETH_P_8021Q) || ethertype == bpf_htons(ETH_P_8021AD);
}

static __always_inline enum ix_steer_verdict classify(struct cursor *cur)
{
    const struct ethhdr *eth = take(cur, sizeof *eth);
    __be16 type;
    int tags = 0;

    if (!eth)
        return IX_STEER_PASS_TRUNCATED;
    type = eth->h_proto;
    for (int i = 0; i < 2 && is_vlan(type); i++) {
        const struct vlan_tag *tag = take(cur, sizeof *tag);

        if (!tag)
            return IX_STEER_PASS_TRUNCATED;
        type = tag->ethertype;
        tags++;
    }
    /* A tagged frame belongs to a VLAN interface of the kernel; its addresses
     * are not the ones that were claimed here. */
    if (tags)
        return IX_STEER_PASS_VLAN;
    switch (type) {
    case bpf_htons(ETH_P_IP):
        return on_ipv4(cur);
    case bpf_htons(ETH_P_IPV6):
        return on_ipv6(cur);
    case bpf_htons(ETH_P_ARP):
        return on_arp(cur);
    default:
        return IX_STEER_PASS_OTHER;
    }
}

/* Where a driver has no room for metadata the frame goes on without a stamp. */
static __always_inline void stamp(struct xdp_md *ctx)
{
    struct ix_steer_stamp *meta;
    __u64 device_ns = 0;
    int error = 1;

#if IX_STEER_STAMPS == 2
    error = bpf_xdp_metadata_rx_timestamp(ctx, &device_ns);
#endif
    if (bpf_xdp_adjust_meta(ctx, -(int)sizeof *meta))
        return;
    meta = (void *)(long)ctx->data_meta;
    if ((void *)(meta + 1) > (void *)(long)ctx->data)
        return;
    meta->magic = IX_STEER_STAMP_MAGIC;
    meta->arrived_ns = bpf_ktime_get_ns();
    meta->device_ns = device_ns;
    meta->device_error = error;
    meta->pad = 0;
}

/* The only way out: counts the verdict and acts on it. A claimed frame whose
 * queue has no socket goes on to the kernel (it answers with a reset or ICMP). */
static __always_inline int settle(struct xdp_md *ctx, enum ix_steer_verdict v)
{
    int action = XDP_PASS;
    __u32 key;
    __u64 *count;

    if (v >= IX_STEER_REDIRECT_CLAIM) {
        action = bpf_redirect_map(&xsks, ctx->rx_queue_index, XDP_PASS);
        if (action != XDP_REDIRECT)
            v = IX_STEER_PASS_NO_SOCKET;
    }
    key = v;
    count = bpf_map_lookup_elem(&verdicts, &key);
    if (count)
        *count += 1;
    if (IX_STEER_STAMPS && action == XDP_REDIRECT)
        stamp(ctx);
    return action;
}

SEC("xdp")
int ix_steer(struct xdp_md *ctx)
{
    struct cursor cur = {
        .pos = (void *)(long)ctx->data,
        .end = (void *)(long)ctx->data_end,
    };
    const __u32 only = 0;

#ifdef IX_STEER_EXPRESS
    if (ctx->ingress_ifindex == IX_STEER_EXPRESS_FROM)
        return express_make(ctx);
#endif
    cur.table = bpf_map_lookup_elem(&table, &only);
    if (!cur.table) /* for the verifier: an array has all of its entries */
        return XDP_PASS;
    return settle(ctx, classify(&cur));
}

char LICENSE[] SEC("license") = "GPL";
