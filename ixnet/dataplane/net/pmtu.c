/* Path MTUs: learned from errors and from silence, forgotten after a while. */
#include "net/pmtu.h"

#include "net/net.h"

enum { MTU_MIN_V6 = 1280 }; /* RFC 8200 section 5 */
#define AGE_NS 600000000000ull /* RFC 1191 6.3: 10 minutes, and not before 5 after a decrease */

void ix_pmtu_init(struct ix_pmtu_cache *cache)
{
    *cache = (struct ix_pmtu_cache){.next_ns = UINT64_MAX};
}

/* The set of an address. Keyed, so that nobody can choose whose entries his own push out. */
static uint32_t set_of(const struct ix_net *net, const struct ix_ip *ip)
{
    return (uint32_t)ix_hash_words(&net->neigh_key, ip->q[0], ip->q[1], 1) % IX_PMTU_SETS;
}

static bool holds(const struct ix_pmtu *slot, uint8_t family, const struct ix_ip *ip)
{
    return slot->until_ns && slot->family == family && ix_ip_equal(&slot->ip, ip);
}

uint32_t ix_pmtu_get(const struct ix_net *net, uint8_t family, const struct ix_ip *ip)
{
    if (IX_LIKELY(net->pmtu.next_ns == UINT64_MAX))
        return net->mtu;
    const struct ix_pmtu *set = net->pmtu.slots[set_of(net, ip)];
    for (uint32_t i = 0; i < IX_PMTU_WAYS; i++)
        if (holds(&set[i], family, ip))
            return IX_MIN((uint32_t)set[i].mtu, net->mtu);
    return net->mtu;
}

bool ix_pmtu_lower(struct ix_net *net, uint8_t family, const struct ix_ip *ip, uint32_t mtu)
{
    struct ix_pmtu *set = net->pmtu.slots[set_of(net, ip)], *slot = &set[0];
    mtu = IX_MAX(mtu, family == 6 ? (uint32_t)MTU_MIN_V6 : (uint32_t)IX_MTU_MIN);
    if (mtu >= ix_pmtu_get(net, family, ip))
        return false;
    /* Its own place, or a free one, or that of the oldest. */
    for (uint32_t i = 0; i < IX_PMTU_WAYS; i++) {
        if (holds(&set[i], family, ip)) {
            slot = &set[i];
            break;
        }
        if (set[i].until_ns < slot->until_ns)
            slot = &set[i];
    }
    *slot = (struct ix_pmtu){
        .ip = *ip, .until_ns = net->now_ns + AGE_NS, .mtu = (uint16_t)mtu, .family = family};
    net->pmtu.next_ns = IX_MIN(net->pmtu.next_ns, slot->until_ns);
    net->counters->pmtu_lowered++;
    ix_net_changed(net);
    return true;
}

void ix_pmtu_age(struct ix_net *net)
{
    struct ix_pmtu *slots = &net->pmtu.slots[0][0];
    net->pmtu.next_ns = UINT64_MAX;
    for (uint32_t i = 0; i < IX_PMTU_SETS * IX_PMTU_WAYS; i++) {
        if (slots[i].until_ns && slots[i].until_ns <= net->now_ns) {
            slots[i].until_ns = 0;
            ix_net_changed(net);
        } else if (slots[i].until_ns) {
            net->pmtu.next_ns = IX_MIN(net->pmtu.next_ns, slots[i].until_ns);
        }
    }
}
