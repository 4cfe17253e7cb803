/* ICMP (RFC 792), the messages that a host needs. */
#ifndef IX_WIRE_ICMP4_H
#define IX_WIRE_ICMP4_H

#include "base/types.h"
#include "wire/parse.h"

enum {
    IX_ICMP4_BYTES = 8,
    IX_ICMP4_ECHO_REPLY = 0,
    IX_ICMP4_UNREACHABLE = 3,
    IX_ICMP4_ECHO = 8,
    IX_ICMP4_TIME_EXCEEDED = 11,
    IX_ICMP4_PARAMETER = 12,
    /* codes of UNREACHABLE */
    IX_ICMP4_NET = 0,
    IX_ICMP4_HOST = 1,
    IX_ICMP4_PROTOCOL = 2,
    IX_ICMP4_PORT = 3,
    IX_ICMP4_FRAG_NEEDED = 4,
};

struct ix_icmp4 {
    uint8_t type, code;
    uint32_t rest;       /* second word, host order: id and sequence, or next-hop MTU (RFC 1191) */
    uint16_t data_bytes; /* bytes after the 8-byte header */
};

/* Checks the checksum over all `bytes`. */
enum ix_parse ix_icmp4_parse(const uint8_t *message, size_t bytes, struct ix_icmp4 *out);
/* Writes the 8-byte header; the data_bytes bytes after it must be there already, since the
 * checksum covers them. */
void ix_icmp4_emit(uint8_t *message, const struct ix_icmp4 *icmp);

#endif
