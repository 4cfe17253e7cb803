/* Addresses and the key that names a flow, wide enough for both families. */
#ifndef IX_NET_ADDR_H
#define IX_NET_ADDR_H

#include "base/hash.h"
#include "base/types.h"
#include "wire/csum.h"

/* An IP address as it lies in a packet. IPv4: v4, the rest 0. */
struct ix_ip {
    union {
        uint8_t b[16];
        uint32_t v4;
        uint64_t q[2];
    };
};

static inline struct ix_ip ix_ip_from_v4(uint32_t v4)
{
    return (struct ix_ip){.q = {v4, 0}};
}
static inline bool ix_ip_equal(const struct ix_ip *a, const struct ix_ip *b)
{
    return a->q[0] == b->q[0] && a->q[1] == b->q[1];
}
/* Group addresses: 224.0.0.0 and above, ff00::/8. */
static inline bool ix_ip_is_group(const struct ix_ip *a, uint8_t family)
{
    return family == 6 ? a->b[0] == 0xff : a->b[0] >= 224;
}
static inline bool ix_ip_is_zero(const struct ix_ip *a)
{
    return (a->q[0] | a->q[1]) == 0;
}

/* Its part of a pseudo header's sum (wire/csum.h). */
static inline uint32_t ix_ip_sum(const struct ix_ip *ip, uint8_t family)
{
    return IX_LIKELY(family == 4) ? ip->v4 : ix_csum_address(ip->b);
}

/* Could something of family a take what comes with family b? 0 is both. */
static inline bool ix_families_meet(uint8_t a, uint8_t b)
{
    return a == b || a == 0 || b == 0;
}

/* Both ends of a connection as this side sees it. 40 bytes, compared as five words. */
struct ix_flow_key {
    struct ix_ip peer, local;
    uint16_t peer_port, local_port; /* host order */
    uint8_t family;                 /* 4 or 6 */
    uint8_t pad[3];                 /* 0 */
};
IX_STATIC_ASSERT(sizeof(struct ix_flow_key) == 40, "no holes: keys are compared as memory");

/* Sets ports and family: as one word, for so it is read when keys are compared, and a load that
 * spans several stores waits for them. */
static inline void ix_flow_key_set(struct ix_flow_key *key, uint16_t peer_port, uint16_t local_port,
                                   uint8_t family)
{
    uint64_t word = peer_port | (uint64_t)local_port << 16 | (uint64_t)family << 32;
    __builtin_memcpy((uint8_t *)key + offsetof(struct ix_flow_key, peer_port), &word, sizeof word);
}

static inline bool ix_flow_key_equal(const struct ix_flow_key *a, const struct ix_flow_key *b)
{
    uint64_t x, y; /* ports and family */
    __builtin_memcpy(&x, (const uint8_t *)a + offsetof(struct ix_flow_key, peer_port), sizeof x);
    __builtin_memcpy(&y, (const uint8_t *)b + offsetof(struct ix_flow_key, peer_port), sizeof y);
    return ((a->peer.q[0] ^ b->peer.q[0]) | (a->peer.q[1] ^ b->peer.q[1]) |
            (a->local.q[0] ^ b->local.q[0]) | (a->local.q[1] ^ b->local.q[1]) | (x ^ y)) == 0;
}

static inline uint64_t ix_flow_hash(const struct ix_key *secret, const struct ix_flow_key *key)
{
    uint64_t ports = (uint64_t)key->peer_port << 16 | key->local_port;
    if (IX_LIKELY(key->family == 4))
        return ix_hash_words(secret, key->peer.q[0] | key->local.q[0] << 32, ports, 4);
    uint64_t h = ix_hash_words(secret, key->peer.q[0], key->peer.q[1], ports);
    return ix_hash_words(secret, h ^ key->local.q[0], key->local.q[1], 6);
}

#endif
