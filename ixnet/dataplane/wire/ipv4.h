/* IPv4 headers (RFC 791; validation as RFC 1122 3.2.1). */
#ifndef IX_WIRE_IPV4_H
#define IX_WIRE_IPV4_H

#include "base/types.h"
#include "wire/parse.h"
#include "wire/put.h"

enum { IX_IPV4_BYTES = 20, IX_PROTO_ICMP = 1, IX_PROTO_TCP = 6, IX_PROTO_UDP = 17 };
/* Where some fields lie (RFC 791 3.1). */
enum { IX_IPV4_TTL_AT = 8, IX_IPV4_PROTO_AT = 9, IX_IPV4_SRC_AT = 12, IX_IPV4_DST_AT = 16 };
/* Flags beside the fragment offset. */
enum { IX_IPV4_DONT_FRAGMENT = 0x4000, IX_IPV4_MORE_FRAGMENTS = 0x2000 };
/* The ECN field of the TOS byte (RFC 3168 section 5). */
enum { IX_ECN_NOT_ECT = 0, IX_ECN_ECT1 = 1, IX_ECN_ECT0 = 2, IX_ECN_CE = 3, IX_ECN_MASK = 3 };

struct ix_ipv4 {
    uint32_t src, dst;    /* as they lie in memory (network order) */
    uint16_t total_bytes; /* header and payload; never more than was received */
    uint16_t id;
    uint16_t frag_bytes;  /* fragment offset in bytes */
    uint8_t header_bytes; /* 20..60; options are skipped */
    uint8_t proto, ttl, tos;
    bool dont_fragment, more_fragments;
};

/* Checks version, header length, total length against `bytes`, and the header checksum. */
enum ix_parse ix_ipv4_parse(const uint8_t *packet, size_t bytes, struct ix_ipv4 *out);
/* Writes a header of IX_IPV4_BYTES bytes, checksum included; header_bytes is ignored. */
void ix_ipv4_emit(uint8_t *packet, const struct ix_ipv4 *ip);
/* The same inline: of what the caller writes into *ip little is left to do. */
static inline __attribute__((always_inline)) void ix_ipv4_put(uint8_t *packet,
                                                              const struct ix_ipv4 *ip)
{
    uint16_t fragment = (uint16_t)(ip->frag_bytes / 8 |
                                   (ip->dont_fragment ? IX_IPV4_DONT_FRAGMENT : 0) |
                                   (ip->more_fragments ? IX_IPV4_MORE_FRAGMENTS : 0));
    uint32_t ttl_proto = ix_swap16((uint16_t)(ip->ttl << 8 | ip->proto)), csum;
    struct ix_put put = {.at = packet, .sum = ttl_proto};
    ix_put_be16x2(&put, (uint16_t)(0x4500 | ip->tos), ip->total_bytes);
    ix_put_be16x2(&put, ip->id, fragment);
    put.at += 4;
    ix_put_raw32(&put, ip->src);
    ix_put_raw32(&put, ip->dst);
    csum = ix_put_finish(&put);
    csum = csum << 16 | ttl_proto;
    __builtin_memcpy(packet + IX_IPV4_TTL_AT, &csum, 4);
}

#endif
