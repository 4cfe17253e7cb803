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

static uint32_t prefix_mask(uint8_t prefix)
{
    return prefix == 0 ? 0 : ix_swap32(UINT32_MAX << (32 - prefix));
}

void ix_net_changed(struct ix_net *net)
{
    if (++net->epoch == 0)
        net->epoch = 1;
}

static uint32_t route_find(const struct ix_net *net, uint32_t dst, uint8_t prefix)
{
    uint32_t i = 0;
    while (i < net->route_count &&
           (net->routes[i].prefix != prefix || net->routes[i].dst != dst))
        i++;
    return i;
}

int ix_net_route_set(struct ix_net *net, uint32_t dst, uint8_t prefix, uint32_t gateway,
                     uint32_t source)
{
    if (prefix > 32)
        return -IX_EINVAL;
    uint32_t mask = prefix_mask(prefix);
    uint32_t i = route_find(net, dst & mask, prefix);
    if (i == net->route_count) {
        if (net->route_count == IX_ROUTES_MAX)
            return -IX_ENOSPC;
        /* Kept longest prefix first, so that the first match is the best. */
        for (i = net->route_count++; i > 0 && net->routes[i - 1].prefix < prefix; i--)
            net->routes[i] = net->routes[i - 1];
    }
    net->routes[i] = (struct ix_route){.dst = dst & mask,
                                       .mask = mask,
                                       .gateway = gateway,
                                       .source = source,
                                       .prefix = prefix};
    ix_net_changed(net);
    return 0;
}

void ix_net_route_del(struct ix_net *net, uint32_t dst, uint8_t prefix)
{
    if (prefix > 32)
        return;
    uint32_t i = route_find(net, dst & prefix_mask(prefix), prefix);
    if (i == net->route_count)
        return;
    net->route_count--;
    for (; i < net->route_count; i++)
        net->routes[i] = net->routes[i + 1];
    ix_net_changed(net);
}

const struct ix_route *ix_net_route(const struct ix_net *net, uint32_t dst)
{
    for (uint32_t i = 0; i < net->route_count; i++)
        if ((dst & net->routes[i].mask) == net->routes[i].dst)
            return &net->routes[i];
    return NULL;
}

uint32_t ix_net_source_for(const struct ix_net *net, uint32_t dst)
{
    const struct ix_route *route = ix_net_route(net, dst);
    if (route && route->source)
        return route->source;
    for (uint32_t i = 0; i < net->addr_count; i++)
        if (net->addrs[i].family == 4)
            return net->addrs[i].ip.v4;
    return 0;
}

static uint32_t neigh_home(const struct ix_net *net, uint32_t ip)
{
    return (uint32_t)ix_hash_words(&net->neigh_key, ip, 0, 0) & (IX_ARRAY_LEN(net->neigh) - 1);
}

/* The slot of `ip`, or the one where it would go; NULL if the table is full. */
static struct ix_neigh *neigh_slot(struct ix_net *net, uint32_t ip)
{
    const uint32_t mask = IX_ARRAY_LEN(net->neigh) - 1;
    uint32_t at = neigh_home(net, ip);
    struct ix_neigh *reuse = NULL;
    for (uint32_t n = 0; n <= mask; n++, at = (at + 1) & mask) {
        struct ix_neigh *slot = &net->neigh[at];
        if (slot->state == IX_NEIGH_EMPTY)
            return reuse ? reuse : slot;
        if (slot->ip == ip)
            return slot;
        if (slot->state == IX_NEIGH_GONE && !reuse)
            reuse = slot;
    }
    return reuse;
}

/* The slot of `ip`, or NULL. */
static const struct ix_neigh *neigh_find(const struct ix_net *net, uint32_t ip)
{
    const uint32_t mask = IX_ARRAY_LEN(net->neigh) - 1;
    uint32_t at = neigh_home(net, ip);
    for (uint32_t n = 0; n <= mask; n++, at = (at + 1) & mask) {
        const struct ix_neigh *slot = &net->neigh[at];
        if (slot->state == IX_NEIGH_EMPTY)
            return NULL;
        if (slot->ip == ip)
            return slot;
    }
    return NULL;
}

const struct ix_neigh *ix_net_neigh(const struct ix_net *net, uint32_t ip)
{
    const struct ix_neigh *slot = neigh_find(net, ip);
    return slot && slot->state == IX_NEIGH_KNOWN ? slot : NULL;
}

bool ix_net_unreachable(const struct ix_net *net, uint32_t ip)
{
    const struct ix_route *route = ix_net_route(net, ip);
    if (!route)
        return true;
    const struct ix_neigh *slot = neigh_find(net, route->gateway ? route->gateway : ip);
    return slot && slot->state == IX_NEIGH_GONE && slot->asked_ns;
}

/* Empties a slot, and moves up what was put further on because of it. */
static void neigh_remove(struct ix_net *net, uint32_t hole)
{
    const uint32_t mask = IX_ARRAY_LEN(net->neigh) - 1;
    net->neigh_count--;
    for (uint32_t at = (hole + 1) & mask; net->neigh[at].state != IX_NEIGH_EMPTY;
         at = (at + 1) & mask) {
        if (((at - neigh_home(net, net->neigh[at].ip)) & mask) < ((at - hole) & mask))
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

static struct ix_neigh *neigh_take(struct ix_net *net, uint32_t ip)
{
    if (net->neigh_count == IX_NEIGH_MAX)
        neigh_purge(net);
    struct ix_neigh *slot = neigh_slot(net, ip);
    if (!slot)
        return NULL;
    if (slot->state == IX_NEIGH_EMPTY) {
        /* Half of the slots stay empty, or a miss would walk the whole table. */
        if (net->neigh_count == IX_NEIGH_MAX)
            return NULL;
        net->neigh_count++;
    }
    if (slot->state == IX_NEIGH_EMPTY || slot->ip != ip)
        *slot = (struct ix_neigh){.ip = ip, .state = IX_NEIGH_WANTED};
    return slot;
}

void ix_net_neigh_set(struct ix_net *net, uint32_t ip, const struct ix_mac *mac)
{
    struct ix_neigh *slot = neigh_take(net, ip);
    if (!slot || (slot->state == IX_NEIGH_KNOWN && ix_mac_equal(&slot->mac, mac)))
        return;
    slot->mac = *mac;
    slot->state = IX_NEIGH_KNOWN;
    ix_net_changed(net);
}

void ix_net_neigh_learn(struct ix_net *net, uint32_t ip, const struct ix_mac *mac)
{
    struct ix_neigh *slot = neigh_slot(net, ip);
    bool known = slot && slot->state != IX_NEIGH_EMPTY && slot->ip == ip;
    if (!slot || (!known && net->neigh_learned == IX_NEIGH_MAX / 2))
        return;
    ix_net_neigh_set(net, ip, mac);
    slot = neigh_slot(net, ip);
    if (!slot || slot->ip != ip || slot->state != IX_NEIGH_KNOWN)
        return;
    if (!known) {
        slot->learned = true;
        net->neigh_learned++;
    }
    net->counters->arp_learned++;
}

void ix_net_neigh_del(struct ix_net *net, uint32_t ip)
{
    struct ix_neigh *slot = neigh_slot(net, ip);
    if (!slot || slot->state == IX_NEIGH_EMPTY || slot->ip != ip)
        return;
    if (slot->state == IX_NEIGH_KNOWN)
        slot->asked_ns = 0; /* it went by itself; only a question can have failed */
    net->neigh_learned -= slot->learned;
    slot->learned = false;
    slot->state = IX_NEIGH_GONE;
    ix_net_changed(net);
}

static void neigh_ask(struct ix_net *net, uint32_t ip)
{
    struct ix_neigh *slot = neigh_take(net, ip);
    net->counters->neigh_misses++;
    if (slot) {
        if (slot->asked_ns && net->now_ns - slot->asked_ns < IX_NEIGH_ASK_NS)
            return;
        slot->asked_ns = net->now_ns;
        if (slot->state == IX_NEIGH_GONE)
            slot->state = IX_NEIGH_WANTED;
    }
    struct ix_ctl_msg msg = {.type = IX_CTL_NEIGH_MISS, .family = 4};
    __builtin_memcpy(msg.ip, &ip, 4);
    ix_ctl_request(net->shard, &msg);
    if (net->own_address)
        ix_arp_ask(net, ip);
}

bool ix_net_resolve(struct ix_net *net, uint32_t ip, struct ix_dst *dst)
{
    const struct ix_route *route = ix_net_route(net, ip);
    struct ix_ip to = ix_ip_from_v4(ip);
    dst->mtu = (uint16_t)IX_MIN(ix_pmtu_get(net, 4, &to), 65535u);
    if (!route && !dst->provisional) {
        net->counters->drop_no_route++;
        dst->valid = false;
        return false;
    }
    uint32_t hop = route && route->gateway ? route->gateway : ip;
    const struct ix_neigh *neigh = ix_net_neigh(net, hop);
    if (neigh) {
        *dst = (struct ix_dst){
            .mac = neigh->mac, .valid = true, .epoch = net->epoch, .mtu = dst->mtu};
        return true;
    }
    neigh_ask(net, hop);
    dst->provisional |= dst->valid; /* the old MAC serves until the answer comes */
    dst->valid = dst->provisional;
    return dst->valid;
}
