#include "wire/ipv6.h"

#include "wire/put.h"

/* Field offsets (RFC 8200 section 3). */
enum {
    PAYLOAD_AT = 4,
    NEXT_AT = 6,
    HOP_LIMIT_AT = 7,
    SRC_AT = 8,
    DST_AT = 24,

    UNIT_BYTES = 8, /* extension headers are multiples of it */
    OPTION_PAD1 = 0,
    OPTION_PADN = 1,
    SEGMENTS_LEFT_AT = 3,
    MORE_FRAGMENTS = 1,

    /* Codes of a parameter problem (RFC 4443 3.4). */
    BAD_FIELD = 0,
    BAD_NEXT_HEADER = 1,
    BAD_OPTION = 2,
};

enum ix_parse ix_ipv6_parse(const uint8_t *packet, size_t bytes, struct ix_ipv6 *out)
{
    if (bytes < IX_IPV6_BYTES)
        return IX_PARSE_SHORT;
    uint32_t word = ix_load_be32(packet);
    if (word >> 28 != 6)
        return IX_PARSE_VERSION;
    uint16_t payload_bytes = ix_load_be16(packet + PAYLOAD_AT);
    if (payload_bytes > bytes - IX_IPV6_BYTES)
        return IX_PARSE_SHORT;
    __builtin_memcpy(out->src, packet + SRC_AT, 16);
    __builtin_memcpy(out->dst, packet + DST_AT, 16);
    out->flow_label = word & 0xfffff;
    out->payload_bytes = payload_bytes;
    out->next = packet[NEXT_AT];
    out->hop_limit = packet[HOP_LIMIT_AT];
    out->traffic_class = (uint8_t)(word >> 20);
    return IX_PARSE_OK;
}

void ix_ipv6_emit(uint8_t *packet, const struct ix_ipv6 *ip)
{
    ix_store_be32(packet, 6u << 28 | (uint32_t)ip->traffic_class << 20 | ip->flow_label);
    ix_store_be16(packet + PAYLOAD_AT, ip->payload_bytes);
    packet[NEXT_AT] = ip->next;
    packet[HOP_LIMIT_AT] = ip->hop_limit;
    __builtin_memcpy(packet + SRC_AT, ip->src, 16);
    __builtin_memcpy(packet + DST_AT, ip->dst, 16);
}

static enum ix_ipv6_end problem(struct ix_ipv6_walk *walk, uint8_t code, uint32_t at)
{
    walk->problem_code = code;
    walk->problem_at = at;
    return IX_IPV6_PARAMETER;
}

/* The options of a hop-by-hop or destination options header [at, end) (RFC 8200 4.2). None but
 * padding is known here, so the two highest bits of a type say what becomes of the packet. */
static enum ix_ipv6_end options(const uint8_t *packet, uint32_t at, uint32_t end,
                                struct ix_ipv6_walk *walk)
{
    uint32_t unknown = 0;
    for (at += 2; at < end;) {
        uint8_t type = packet[at];
        if (type == OPTION_PAD1) {
            at++;
            continue;
        }
        if (end - at < 2 || end - at - 2 < packet[at + 1])
            return IX_IPV6_DISCARD;
        if (type != OPTION_PADN && type >> 6) {
            walk->not_to_multicast = type >> 6 == 3;
            return type >> 6 == 1 ? IX_IPV6_DISCARD : problem(walk, BAD_OPTION, at);
        }
        unknown += type != OPTION_PADN;
        if (unknown > IX_IPV6_OPTIONS_MAX)
            return IX_IPV6_DISCARD;
        at += 2u + packet[at + 1];
    }
    return IX_IPV6_UPPER;
}

enum ix_ipv6_end ix_ipv6_walk(const uint8_t *packet, const struct ix_ipv6 *ip,
                              struct ix_ipv6_walk *out)
{
    uint32_t at = IX_IPV6_BYTES, end = at + ip->payload_bytes;
    *out = (struct ix_ipv6_walk){.proto = ip->next, .next_at = NEXT_AT};
    for (uint32_t n = 0; n <= IX_IPV6_EXTENSIONS_MAX; n++) {
        enum ix_ipv6_end verdict = IX_IPV6_UPPER;
        uint8_t type = out->proto;
        out->l4_at = at;
        if (type != IX_PROTO_HOP_BY_HOP && type != IX_PROTO_ROUTING && type != IX_PROTO_FRAGMENT &&
            type != IX_PROTO_DST_OPTIONS)
            return IX_IPV6_UPPER;
        if (type == IX_PROTO_HOP_BY_HOP && n) /* only right after the IPv6 header (4.1) */
            return problem(out, BAD_NEXT_HEADER, out->next_at);
        if (end - at < UNIT_BYTES)
            return IX_IPV6_DISCARD;
        uint32_t bytes =
            type == IX_PROTO_FRAGMENT ? UNIT_BYTES : UNIT_BYTES + packet[at + 1] * UNIT_BYTES;
        if (end - at < bytes)
            return IX_IPV6_DISCARD;
        if (type == IX_PROTO_FRAGMENT) {
            uint16_t field = ix_load_be16(packet + at + 2);
            out->frag_bytes = field & 0xfff8;
            out->more_fragments = field & MORE_FRAGMENTS;
            out->frag_id = ix_load_be32(packet + at + 4);
            verdict = out->frag_bytes || out->more_fragments ? IX_IPV6_FRAG : IX_IPV6_UPPER;
        } else if (type == IX_PROTO_ROUTING) {
            /* No type is known here; type 0 has been withdrawn (RFC 5095). 4.4: those that have
             * done their work are skipped. */
            if (packet[at + SEGMENTS_LEFT_AT])
                verdict = problem(out, BAD_FIELD, at + 2);
        } else {
            verdict = options(packet, at, at + bytes, out);
        }
        out->next_at = at;
        out->proto = packet[at];
        at += bytes;
        if (verdict != IX_IPV6_UPPER) {
            out->l4_at = at;
            return verdict;
        }
    }
    return IX_IPV6_DISCARD;
}
