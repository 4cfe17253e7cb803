/* Local addresses, routes and neighbours: small mirrors of the kernel's tables. */
#include "net/net.h"

enum { IX_NEIGH_ASK_NS = 1000000000 }; /* RFC 1122 2.3.2.1: at most one request a second */

bool ix_net_is_local(const struct ix_net *net, uint8_t family, const struct ix_ip *ip)
{
    for (uint32_t i = 0; i < net->addr_count; i++)
        if (net->addrs[i].family == family && ix_ip_equal(&net->addrs[i].ip, ip))
            return true;
    return false;
}

int ix_net_addr_add(struct ix_net *net, uint8_t family, const struct ix_ip *ip, bool own)
{
    if (ix_net_is_local(net, family, ip))
        return 0;
    if (net->addr_count == IX_ADDRS_MAX)
        return -IX_ENOSPC;
    net->addrs[net->addr_count++] = (struct ix_addr){.ip = *ip, .family = family, .own = own};
    return 0;
}

void ix_net_addr_del(struct ix_net *net, uint8_t family, const struct ix_ip *ip)
{
    for (uint32_t i = 0; i < net->addr_count; i++)
        if (net->addrs[i].family == family && ix_ip_equal(&net->addrs[i].ip, ip)) {
            net->addrs[i] = net->addrs[--net->addr_count];
            return;
        }
}

bool ix_net_is_own(const struct ix_net *net, uint8_t family, const struct ix_ip *ip)
{
    for (uint32_t i = 0; i < net->addr_count; i++)
        if (net->addrs[i].own && net->addrs[i].family == family &&
            ix_ip_equal(&net->addrs[i].ip, ip))
            return true;
    return false;
}

static uint8_t prefix_max(uint8_t family)
{
    return family == 6 ? 128 : 32;
}

static struct ix_ip prefix_mask(uint8_t prefix)
{
    struct ix_ip mask = {.q = {0, 0}};
    for (uint32_t i = 0; i < prefix; i++)
        mask.b[i / 8] |= (uint8_t)(0x80 >> i % 8);
    return mask;
}

static struct ix_ip masked(const struct ix_ip *ip, const struct ix_ip *mask)
{
    return (struct ix_ip){.q = {ip->q[0] & mask->q[0], ip->q[1] & mask->q[1]}};
}

void ix_net_changed(struct ix_net *net)
{
    if (++net->epoch == 0)
        net->epoch = 1;
}

static uint32_t route_find(const struct ix_net *net, uint8_t family, const struct ix_ip *dst,
                           uint8_t prefix)
{
    uint32_t i = 0;
    while (i < net->route_count &&
           (net->routes[i].prefix != prefix || net->routes[i].family != family ||
            !ix_ip_equal(&net->routes[i].dst, dst)))
        i++;
    return i;
}

int ix_net_route_set(struct ix_net *net, uint8_t family, const struct ix_ip *dst, uint8_t prefix,
                     const struct ix_ip *gateway, const struct ix_ip *source)
{
    if (prefix > prefix_max(family))
        return -IX_EINVAL;
    struct ix_ip mask = prefix_mask(prefix), to = masked(dst, &mask);
    uint32_t i = route_find(net, family, &to, prefix);
    if (i == net->route_count) {
        if (net->route_count == IX_ROUTES_MAX)
            return -IX_ENOSPC;
        /* Kept longest prefix first, so that the first match is the best. */
        for (i = net->route_count++; i > 0 && net->routes[i - 1].prefix < prefix; i--)
            net->routes[i] = net->routes[i - 1];
    }
    net->routes[i] = (struct ix_route){.dst = to,
                                       .mask = mask,
                                       .gateway = *gateway,
                                       .source = *source,
                                       .family = family,
                                       .prefix = prefix};
    ix_net_changed(net);
    return 0;
}

void ix_net_route_del(struct ix_net *net, uint8_t family, const struct ix_ip *dst, uint8_t prefix)
{
    if (prefix > prefix_max(family))
        return;
    struct ix_ip mask = prefix_mask(prefix), to = masked(dst, &mask);
    uint32_t i = route_find(net, family, &to, prefix);
    if (i == net->route_count)
        return;
    net->route_count--;
    for (; i < net->route_count; i++)
        net->routes[i] = net->routes[i + 1];
    ix_net_changed(net);
}

const struct ix_route *ix_net_route(const struct ix_net *net, uint8_t family,
                                    const struct ix_ip *dst)
{
    for (uint32_t i = 0; i < net->route_count; i++) {
        const struct ix_route *route = &net->routes[i];
        struct ix_ip part = masked(dst, &route->mask);
        if (route->family == family && ix_ip_equal(&part, &route->dst))
            return route;
    }
    return NULL;
}

bool ix_net_is_many(const struct ix_net *net, uint8_t family, const struct ix_ip *ip)
{
    if (ix_ip_is_group(ip, family))
        return true;
    if (family != 4 || (ip->b[3] & 3) != 3)
        return false;
    const struct ix_route *route = ix_net_route(net, family, ip);
    if (!route || !ix_ip_is_zero(&route->gateway) || route->prefix == 0 ||
        route->prefix > 30) /* RFC 3021: of two addresses none is for all */
        return false;
    for (uint32_t i = 0; i < 4; i++)
        if ((ip->b[i] | route->mask.b[i]) != 0xff)
            return false;
    return true;
}

/* fe80::/10, the only scope of unicast but the global one (RFC 6724 3.1). */
static bool link_local6(const struct ix_ip *ip)
{
    return ip->b[0] == 0xfe && (ip->b[1] & 0xc0) == 0x80;
}

/* How many bits both begin with. */
static uint32_t common_bits(const struct ix_ip *a, const struct ix_ip *b)
{
    uint32_t bits = 0;
    while (bits < 128 && !((a->b[bits / 8] ^ b->b[bits / 8]) & 0x80 >> bits % 8))
        bits++;
    return bits;
}

/* RFC 6724 section 5, as far as the shard knows what it asks for: rule 2 (scope), then rule 8
 * (longest matching prefix). */
static uint32_t rank6(const struct ix_ip *candidate, const struct ix_ip *dst)
{
    bool same_scope = link_local6(candidate) == link_local6(dst);
    return (same_scope ? 256u : 0u) + common_bits(candidate, dst) + 1;
}

struct ix_ip ix_net_source_for(const struct ix_net *net, uint8_t family, const struct ix_ip *dst)
{
    const struct ix_route *route = ix_net_route(net, family, dst);
    if (route && !ix_ip_is_zero(&route->source))
        return route->source;
    struct ix_ip best = {.q = {0, 0}};
    uint32_t best_rank = 0;
    for (uint32_t i = 0; i < net->addr_count; i++) {
        if (net->addrs[i].family != family)
            continue;
        uint32_t rank = family == 6 ? rank6(&net->addrs[i].ip, dst) : 1;
        if (rank > best_rank) {
            best = net->addrs[i].ip;
            best_rank = rank;
        }
    }
    return best;
}

static uint32_t neigh_home(const struct ix_net *net, uint8_t family, const struct ix_ip *ip)
{
    uint64_t hash = ix_hash_words(&net->neigh_key, ip->q[0], ip->q[1], family);
    return (uint32_t)hash & (IX_ARRAY_LEN(net->neigh) - 1);
}

static bool is_at(const struct ix_neigh *slot, uint8_t family, const struct ix_ip *ip)
{
    return slot->family == family && ix_ip_equal(&slot->ip, ip);
}

/* The slot of `ip`, or the one where it would go; NULL if the table is full. */
static struct ix_neigh *neigh_slot(struct ix_net *net, uint8_t family, const struct ix_ip *ip)
{
    const uint32_t mask = IX_ARRAY_LEN(net->neigh) - 1;
    uint32_t at = neigh_home(net, family, ip);
    struct ix_neigh *reuse = NULL;
    for (uint32_t n = 0; n <= mask; n++, at = (at + 1) & mask) {
        struct ix_neigh *slot = &net->neigh[at];
        if (slot->state == IX_NEIGH_EMPTY)
            return reuse ? reuse : slot;
        if (is_at(slot, family, ip))
            return slot;
        if (slot->state == IX_NEIGH_GONE && !reuse)
            reuse = slot;
    }
    return reuse;
}

/* The slot of `ip`, or NULL. */
static const struct ix_neigh *neigh_find(const struct ix_net *net, uint8_t family,
                                         const struct ix_ip *ip)
{
    const uint32_t mask = IX_ARRAY_LEN(net->neigh) - 1;
    uint32_t at = neigh_home(net, family, ip);
    for (uint32_t n = 0; n <= mask; n++, at = (at + 1) & mask) {
        const struct ix_neigh *slot = &net->neigh[at];
        if (slot->state == IX_NEIGH_EMPTY)
            return NULL;
        if (is_at(slot, family, ip))
            return slot;
    }
    return NULL;
}

const struct ix_neigh *ix_net_neigh(const struct ix_net *net, uint8_t family,
                                    const struct ix_ip *ip)
{
    const struct ix_neigh *slot = neigh_find(net, family, ip);
    return slot && slot->state == IX_NEIGH_KNOWN ? slot : NULL;
}

static const struct ix_ip *next_hop(const struct ix_route *route, const struct ix_ip *ip)
{
    return route && !ix_ip_is_zero(&route->gateway) ? &route->gateway : ip;
}

bool ix_net_unreachable(const struct ix_net *net, uint8_t family, const struct ix_ip *ip)
{
    const struct ix_route *route = ix_net_route(net, family, ip);
    if (!route)
        return true;
    const struct ix_neigh *slot = neigh_find(net, family, next_hop(route, ip));
    return slot && slot->state == IX_NEIGH_GONE && slot->asked_ns;
}

/* Empties a slot, and moves up what was put further on because of it. */
static void neigh_remove(struct ix_net *net, uint32_t hole)
{
    const uint32_t mask = IX_ARRAY_LEN(net->neigh) - 1;
    net->neigh_count--;
    for (uint32_t at = (hole + 1) & mask; net->neigh[at].state != IX_NEIGH_EMPTY;
         at = (at + 1) & mask) {
        uint32_t home = neigh_home(net, net->neigh[at].family, &net->neigh[at].ip);
        if (((at - home) & mask) < ((at - hole) & mask))
            continue; /* its search begins behind the hole */
        net->neigh[hole] = net->neigh[at];
        hole = at;
    }
    net->neigh[hole] = (struct ix_neigh){.state = IX_NEIGH_EMPTY};
}

/* The table is full: those that are gone leave it. Once an epoch, as it walks over all slots. */
static void neigh_purge(struct ix_net *net)
{
    if (net->neigh_purged == net->epoch)
        return;
    net->neigh_purged = net->epoch;
    for (uint32_t i = 0; i < IX_ARRAY_LEN(net->neigh); i++)
        while (net->neigh[i].state == IX_NEIGH_GONE)
            neigh_remove(net, i);
}

static struct ix_neigh *neigh_take(struct ix_net *net, uint8_t family, const struct ix_ip *ip)
{
    if (net->neigh_count == IX_NEIGH_MAX)
        neigh_purge(net);
    struct ix_neigh *slot = neigh_slot(net, family, ip);
    if (!slot)
        return NULL;
    if (slot->state == IX_NEIGH_EMPTY) {
        /* Half of the slots stay empty, or a miss would walk the whole table. */
        if (net->neigh_count == IX_NEIGH_MAX)
            return NULL;
        net->neigh_count++;
    }
    if (slot->state == IX_NEIGH_EMPTY || !is_at(slot, family, ip))
        *slot = (struct ix_neigh){.ip = *ip, .family = family, .state = IX_NEIGH_WANTED};
    return slot;
}

void ix_net_neigh_set(struct ix_net *net, uint8_t family, const struct ix_ip *ip,
                      const struct ix_mac *mac)
{
    struct ix_neigh *slot = neigh_take(net, family, ip);
    if (!slot || (slot->state == IX_NEIGH_KNOWN && ix_mac_equal(&slot->mac, mac)))
        return;
    slot->mac = *mac;
    slot->state = IX_NEIGH_KNOWN;
    ix_net_changed(net);
}

void ix_net_neigh_learn(struct ix_net *net, uint8_t family, const struct ix_ip *ip,
                        const struct ix_mac *mac)
{
    struct ix_neigh *slot = neigh_slot(net, family, ip);
    bool known = slot && slot->state != IX_NEIGH_EMPTY && is_at(slot, family, ip);
    if (!slot || (!known && net->neigh_learned == IX_NEIGH_MAX / 2))
        return;
    ix_net_neigh_set(net, family, ip, mac);
    slot = neigh_slot(net, family, ip);
    if (!slot || !is_at(slot, family, ip) || slot->state != IX_NEIGH_KNOWN)
        return;
    if (!known) {
        slot->learned = true;
        net->neigh_learned++;
    }
    net->counters->arp_learned++;
}

void ix_net_neigh_del(struct ix_net *net, uint8_t family, const struct ix_ip *ip)
{
    struct ix_neigh *slot = neigh_slot(net, family, ip);
    if (!slot || slot->state == IX_NEIGH_EMPTY || !is_at(slot, family, ip))
        return;
    if (slot->state == IX_NEIGH_KNOWN)
        slot->asked_ns = 0; /* it went by itself; only a question can have failed */
    net->neigh_learned -= slot->learned;
    slot->learned = false;
    slot->state = IX_NEIGH_GONE;
    ix_net_changed(net);
}

static void neigh_ask(struct ix_net *net, uint8_t family, const struct ix_ip *ip)
{
    struct ix_neigh *slot = neigh_take(net, family, ip);
    net->counters->neigh_misses++;
    if (slot) {
        if (slot->asked_ns && net->now_ns - slot->asked_ns < IX_NEIGH_ASK_NS)
            return;
        slot->asked_ns = net->now_ns;
        if (slot->state == IX_NEIGH_GONE)
            slot->state = IX_NEIGH_WANTED;
    }
    struct ix_ctl_msg msg = {.type = IX_CTL_NEIGH_MISS, .family = family};
    __builtin_memcpy(msg.ip, ip->b, 16);
    ix_ctl_request(net->shard, &msg);
    if (net->own_address && family == 6)
        ix_nd_ask(net, ip);
    else if (net->own_address)
        ix_arp_ask(net, ip->v4);
}

bool ix_net_resolve(struct ix_net *net, uint8_t family, const struct ix_ip *ip, struct ix_dst *dst)
{
    const struct ix_route *route = ix_net_route(net, family, ip);
    dst->mtu = (uint16_t)IX_MIN(ix_pmtu_get(net, family, ip), 65535u);
    if (!route && !dst->provisional) {
        net->counters->drop_no_route++;
        dst->valid = false;
        return false;
    }
    const struct ix_ip *hop = next_hop(route, ip);
    const struct ix_neigh *neigh = ix_net_neigh(net, family, hop);
    if (neigh) {
        *dst = (struct ix_dst){
            .mac = neigh->mac, .valid = true, .epoch = net->epoch, .mtu = dst->mtu};
        return true;
    }
    neigh_ask(net, family, hop);
    dst->provisional |= dst->valid; /* the old MAC serves until the answer comes */
    dst->valid = dst->provisional;
    return dst->valid;
}
