#include "wire/ipv4.h"

/* Field offsets (RFC 791 3.1). */
enum {
    TOS_AT = 1,
    TOTAL_AT = 2,
    ID_AT = 4,
    FRAGMENT_AT = 6,

    OFFSET_MASK = 0x1fff, /* in units of 8 bytes */
};

/* header_bytes is a constant where there are no options: then the checksum needs no loop. */
static inline __attribute__((always_inline)) enum ix_parse
parse(const uint8_t *packet, size_t bytes, size_t header_bytes, struct ix_ipv4 *out)
{
    size_t total_bytes = ix_load_be16(packet + TOTAL_AT);
    if (header_bytes < IX_IPV4_BYTES || total_bytes < header_bytes)
        return IX_PARSE_HEADER;
    if (total_bytes > bytes)
        return IX_PARSE_SHORT;
    uint32_t sum = header_bytes == IX_IPV4_BYTES ? ix_csum_20(packet)
                                                 : ix_csum_add(packet, header_bytes, 0);
    if (ix_csum_finish(sum) != 0)
        return IX_PARSE_CSUM;

    uint16_t fragment = ix_load_be16(packet + FRAGMENT_AT);
    __builtin_memcpy(&out->src, packet + IX_IPV4_SRC_AT, 4);
    __builtin_memcpy(&out->dst, packet + IX_IPV4_DST_AT, 4);
    out->total_bytes = (uint16_t)total_bytes;
    out->id = ix_load_be16(packet + ID_AT);
    out->frag_bytes = (uint16_t)((fragment & OFFSET_MASK) * 8);
    out->header_bytes = (uint8_t)header_bytes;
    out->proto = packet[IX_IPV4_PROTO_AT];
    out->ttl = packet[IX_IPV4_TTL_AT];
    out->tos = packet[TOS_AT];
    out->dont_fragment = fragment & IX_IPV4_DONT_FRAGMENT;
    out->more_fragments = fragment & IX_IPV4_MORE_FRAGMENTS;
    return IX_PARSE_OK;
}

static IX_NOINLINE enum ix_parse parse_unusual(const uint8_t *packet, size_t bytes,
                                               struct ix_ipv4 *out)
{
    if (packet[0] >> 4 != 4)
        return IX_PARSE_VERSION;
    return parse(packet, bytes, (packet[0] & 0xf) * 4u, out);
}

inline enum ix_parse ix_ipv4_parse(const uint8_t *packet, size_t bytes, struct ix_ipv4 *out)
{
    if (bytes < IX_IPV4_BYTES)
        return IX_PARSE_SHORT;
    if (IX_LIKELY(packet[0] == (4 << 4 | IX_IPV4_BYTES / 4)))
        return parse(packet, bytes, IX_IPV4_BYTES, out);
    return parse_unusual(packet, bytes, out);
}

void ix_ipv4_emit(uint8_t *packet, const struct ix_ipv4 *ip)
{
    ix_ipv4_put(packet, ip);
}
