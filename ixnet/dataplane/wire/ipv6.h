/* IPv6 headers and what may stand between them and the transport header (RFC 8200). */
#ifndef IX_WIRE_IPV6_H
#define IX_WIRE_IPV6_H

#include "base/types.h"
#include "wire/ipv4.h"
#include "wire/parse.h"

enum {
    IX_IPV6_BYTES = 40,
    IX_IPV6_MTU_MIN = 1280,     /* RFC 8200 section 5 */
    IX_IPV6_EXTENSIONS_MAX = 8, /* headers walked; more than any sender has use for */
    IX_IPV6_OPTIONS_MAX = 8,    /* options in a header, padding aside (RFC 8504 5.3) */

    /* Next Header values (IANA, protocol numbers). */
    IX_PROTO_HOP_BY_HOP = 0,
    IX_PROTO_ROUTING = 43,
    IX_PROTO_FRAGMENT = 44,
    IX_PROTO_ICMP6 = 58,
    IX_PROTO_NONE = 59,
    IX_PROTO_DST_OPTIONS = 60,
};

struct ix_ipv6 {
    uint8_t src[16], dst[16];
    uint32_t flow_label;    /* 20 bits */
    uint16_t payload_bytes; /* all after the header; never more than was received */
    uint8_t next, hop_limit, traffic_class;
};

/* What a walk over the extension headers ends at. */
enum ix_ipv6_end {
    IX_IPV6_UPPER,     /* `proto` begins at l4_at */
    IX_IPV6_FRAG,      /* a fragment of a longer packet: frag_* are set, l4_at is what it carries */
    IX_IPV6_DISCARD,   /* to be dropped in silence: malformed, too much, or an option wants it */
    IX_IPV6_PARAMETER, /* to be answered with a parameter problem: problem_code, problem_at */
};

struct ix_ipv6_walk {
    uint32_t l4_at;      /* offset from the IPv6 header */
    uint32_t next_at;    /* offset of the field that says `proto` */
    uint32_t problem_at; /* offset of the field in question */
    uint32_t frag_id;
    uint16_t frag_bytes; /* fragment offset in bytes */
    uint8_t proto;
    uint8_t problem_code;  /* RFC 4443 3.4 */
    bool more_fragments;
    bool not_to_multicast; /* an option's type forbids the answer if the packet went to a group */
};

/* Checks version and payload length against `bytes`. */
enum ix_parse ix_ipv6_parse(const uint8_t *packet, size_t bytes, struct ix_ipv6 *out);
/* Writes IX_IPV6_BYTES bytes. */
void ix_ipv6_emit(uint8_t *packet, const struct ix_ipv6 *ip);
/* Steps over extension headers of a packet that was parsed (RFC 8200 section 4). An atomic fragment
 * is stepped over, too (RFC 6946). */
enum ix_ipv6_end ix_ipv6_walk(const uint8_t *packet, const struct ix_ipv6 *ip,
                              struct ix_ipv6_walk *out);

#endif
