/* UDP headers (RFC 768). */
#ifndef IX_WIRE_UDP_H
#define IX_WIRE_UDP_H

#include "base/types.h"
#include "wire/parse.h"

enum { IX_UDP_BYTES = 8 };

struct ix_udp {
    uint16_t src_port, dst_port; /* host order */
    uint16_t total_bytes;        /* header and payload */
    bool has_csum;
};

/* src, dst: see ix_csum_pseudo4(). bytes: the size of the IP payload. The UDP length field is what
 * counts, for the checksum too; it may be smaller than `bytes`, but not larger. A zero checksum
 * means that there is none. */
enum ix_parse ix_udp_parse(const uint8_t *datagram, size_t bytes, uint32_t src, uint32_t dst,
                           struct ix_udp *out);
/* Writes the header. payload_sum: ix_csum_add() of the payload. A checksum of 0 is sent as 0xffff;
 * without has_csum the field is 0 and payload_sum is not used. */
void ix_udp_emit(uint8_t *datagram, const struct ix_udp *udp, uint32_t src, uint32_t dst,
                 uint32_t payload_sum);

#endif
