#include "wire/icmp4.h"

#include "wire/csum.h"

enum { CODE_AT = 1, CSUM_AT = 2, REST_AT = 4 };

enum ix_parse ix_icmp4_parse(const uint8_t *message, size_t bytes, struct ix_icmp4 *out)
{
    if (bytes < IX_ICMP4_BYTES)
        return IX_PARSE_SHORT;
    if (bytes > UINT16_MAX) /* more than an IPv4 packet holds */
        return IX_PARSE_HEADER;
    if (ix_csum_finish(ix_csum_add(message, bytes, 0)) != 0)
        return IX_PARSE_CSUM;
    out->type = message[0];
    out->code = message[CODE_AT];
    out->rest = ix_load_be32(message + REST_AT);
    out->data_bytes = (uint16_t)(bytes - IX_ICMP4_BYTES);
    return IX_PARSE_OK;
}

void ix_icmp4_emit(uint8_t *message, const struct ix_icmp4 *icmp)
{
    message[0] = icmp->type;
    message[CODE_AT] = icmp->code;
    ix_store_be16(message + CSUM_AT, 0);
    ix_store_be32(message + REST_AT, icmp->rest);
    uint16_t csum = ix_csum_finish(ix_csum_add(message, IX_ICMP4_BYTES + icmp->data_bytes, 0));
    __builtin_memcpy(message + CSUM_AT, &csum, 2);
}
