#include "wire/udp.h"

#include "wire/ipv4.h"
#include "wire/put.h"

enum { DST_PORT_AT = 2, LENGTH_AT = 4, CSUM_AT = 6 };

enum ix_parse ix_udp_parse(const uint8_t *datagram, size_t bytes, uint32_t src, uint32_t dst,
                           struct ix_udp *out)
{
    if (bytes < IX_UDP_BYTES)
        return IX_PARSE_SHORT;
    uint16_t total_bytes = ix_load_be16(datagram + LENGTH_AT);
    if (total_bytes < IX_UDP_BYTES)
        return IX_PARSE_HEADER;
    if (total_bytes > bytes)
        return IX_PARSE_SHORT;
    bool has_csum = ix_load_be16(datagram + CSUM_AT) != 0;
    if (has_csum) {
        uint32_t pseudo = ix_csum_pseudo4(src, dst, IX_PROTO_UDP, total_bytes);
        if (ix_csum_finish(ix_csum_add(datagram, total_bytes, pseudo)) != 0)
            return IX_PARSE_CSUM;
    }
    out->src_port = ix_load_be16(datagram);
    out->dst_port = ix_load_be16(datagram + DST_PORT_AT);
    out->total_bytes = total_bytes;
    out->has_csum = has_csum;
    return IX_PARSE_OK;
}

void ix_udp_emit(uint8_t *datagram, const struct ix_udp *udp, uint32_t src, uint32_t dst,
                 uint32_t payload_sum)
{
    uint32_t pseudo = ix_csum_pseudo4(src, dst, IX_PROTO_UDP, udp->total_bytes);
    struct ix_put put = {.at = datagram, .sum = (uint64_t)pseudo + payload_sum};
    ix_put_be16x2(&put, udp->src_port, udp->dst_port);
    ix_put_be16x2(&put, udp->total_bytes, 0);
    if (!udp->has_csum)
        return;
    uint16_t csum = ix_put_finish(&put);
    if (csum == 0) /* RFC 768: a zero field means that there is no checksum; -0 is the same sum */
        csum = 0xffff;
    __builtin_memcpy(datagram + CSUM_AT, &csum, 2);
}
