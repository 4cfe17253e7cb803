/* Ethernet II headers (IEEE 802.3 clause 3). */
#ifndef IX_WIRE_ETH_H
#define IX_WIRE_ETH_H

#include "base/types.h"
#include "wire/parse.h"

enum { IX_ETH_BYTES = 14, IX_ETH_ARP = 0x0806, IX_ETH_IPV4 = 0x0800, IX_ETH_IPV6 = 0x86dd };

struct ix_mac {
    uint8_t b[6];
};

struct ix_eth {
    struct ix_mac dst, src;
    uint16_t type; /* EtherType, host order */
};

enum ix_parse ix_eth_parse(const uint8_t *frame, size_t bytes, struct ix_eth *out);
/* Both write IX_ETH_BYTES bytes. type: host order. */
static inline void ix_eth_put(uint8_t *frame, const struct ix_mac *dst, const struct ix_mac *src,
                              uint16_t type)
{
    __builtin_memcpy(frame, dst->b, sizeof dst->b);
    __builtin_memcpy(frame + sizeof dst->b, src->b, sizeof src->b);
    ix_store_be16(frame + sizeof dst->b + sizeof src->b, type);
}
void ix_eth_emit(uint8_t *frame, const struct ix_eth *eth);

static inline bool ix_mac_equal(const struct ix_mac *a, const struct ix_mac *b)
{
    return __builtin_memcmp(a->b, b->b, 6) == 0;
}
static inline bool ix_mac_is_group(const struct ix_mac *a)
{
    return a->b[0] & 1;
}

#endif
