/* ICMPv6 (RFC 4443) and the messages of Neighbor Discovery (RFC 4861) that a host needs. */
#ifndef IX_WIRE_ICMP6_H
#define IX_WIRE_ICMP6_H

#include "base/types.h"
#include "wire/eth.h"
#include "wire/parse.h"

enum {
    IX_ICMP6_BYTES = 8,
    IX_ICMP6_UNREACHABLE = 1,
    IX_ICMP6_TOO_BIG = 2,
    IX_ICMP6_TIME_EXCEEDED = 3,
    IX_ICMP6_PARAMETER = 4,
    IX_ICMP6_ECHO = 128,
    IX_ICMP6_ECHO_REPLY = 129,
    IX_ICMP6_SOLICIT = 135,
    IX_ICMP6_ADVERT = 136,
    /* codes of UNREACHABLE */
    IX_ICMP6_NO_ROUTE = 0,
    IX_ICMP6_PROHIBITED = 1,
    IX_ICMP6_SCOPE = 2,
    IX_ICMP6_ADDRESS = 3,
    IX_ICMP6_PORT = 4,
    /* codes of PARAMETER */
    IX_ICMP6_NEXT_HEADER = 1,
    IX_ICMP6_OPTION = 2,

    IX_ND_HOP_LIMIT = 255, /* no router has passed it on (RFC 4861 3.1) */
    IX_ND_BYTES = 24,      /* without options */
    IX_ND_MAC_BYTES = 8,   /* the option with a link-layer address */
    IX_ND_ROUTER = 0x80,   /* flags of an advertisement (RFC 4861 4.4) */
    IX_ND_SOLICITED = 0x40,
    IX_ND_OVERRIDE = 0x20,
};

struct ix_icmp6 {
    uint8_t type, code;
    uint32_t rest;       /* second word, host order: id and sequence, MTU, pointer */
    uint16_t data_bytes; /* bytes after the 8-byte header */
};

/* A neighbor solicitation or advertisement. */
struct ix_nd {
    uint8_t type;  /* IX_ICMP6_SOLICIT or IX_ICMP6_ADVERT */
    uint8_t flags; /* IX_ND_*; 0 in a solicitation */
    bool has_mac;  /* the option with the sender's (solicitation) or target's address is there */
    uint8_t target[16];
    struct ix_mac mac;
};

/* src_sum, dst_sum: ix_csum_address() of the addresses, for the pseudo header. Checks the checksum
 * over all `bytes`. */
enum ix_parse ix_icmp6_parse(const uint8_t *message, size_t bytes, uint32_t src_sum,
                             uint32_t dst_sum, struct ix_icmp6 *out);
/* Writes the 8-byte header; the data_bytes bytes after it must be there already, since the
 * checksum covers them. */
void ix_icmp6_emit(uint8_t *message, const struct ix_icmp6 *icmp, uint32_t src_sum,
                   uint32_t dst_sum);

/* The message whose ICMPv6 header was parsed (RFC 4861 7.1, as far as the message itself says it).
 */
enum ix_parse ix_nd_parse(const uint8_t *message, size_t bytes, struct ix_nd *out);
/* Writes the whole message, checksum included, and returns its length. */
uint32_t ix_nd_emit(uint8_t *message, const struct ix_nd *nd, uint32_t src_sum, uint32_t dst_sum);

#endif
