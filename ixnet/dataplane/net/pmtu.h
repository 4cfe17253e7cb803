/* Path MTUs that are smaller than the link's (RFC 1191, RFC 8201): a small cache by destination. */
#ifndef IX_NET_PMTU_H
#define IX_NET_PMTU_H

#include "base/limits.h"
#include "net/addr.h"

struct ix_net;

enum { IX_PMTU_WAYS = 4, IX_PMTU_SETS = 64 };

struct ix_pmtu {
    struct ix_ip ip;
    uint64_t until_ns; /* when it is forgotten, and the link's MTU tried again; 0: free */
    uint16_t mtu;
    uint8_t family;
};

struct ix_pmtu_cache {
    uint64_t next_ns; /* not later than the first that is to be forgotten; UINT64_MAX: none */
    struct ix_pmtu slots[IX_PMTU_SETS][IX_PMTU_WAYS];
};

void ix_pmtu_init(struct ix_pmtu_cache *cache);
/* The MTU of the way to ip, IP header included: the link's unless a smaller one is known. */
uint32_t ix_pmtu_get(const struct ix_net *net, uint8_t family, const struct ix_ip *ip);
/* The way to ip takes no more than `mtu`; not below IX_MTU_MIN (IPv6: 1280). False if that is no
 * news. What was kept in ix_dst.mtu is looked up again. */
bool ix_pmtu_lower(struct ix_net *net, uint8_t family, const struct ix_ip *ip, uint32_t mtu);
/* Forgets what is too old. */
void ix_pmtu_age(struct ix_net *net);

#endif
