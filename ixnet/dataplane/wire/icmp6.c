#include "wire/icmp6.h"

#include "wire/csum.h"
#include "wire/ipv6.h"

enum {
    CODE_AT = 1,
    CSUM_AT = 2,
    REST_AT = 4,
    TARGET_AT = 8,
    OPTION_SOURCE_MAC = 1, /* RFC 4861 4.6.1 */
    OPTION_TARGET_MAC = 2,
    OPTION_UNIT = 8, /* what an option's length counts */
};

enum ix_parse ix_icmp6_parse(const uint8_t *message, size_t bytes, uint32_t src_sum,
                             uint32_t dst_sum, struct ix_icmp6 *out)
{
    if (bytes < IX_ICMP6_BYTES)
        return IX_PARSE_SHORT;
    if (bytes > UINT16_MAX)
        return IX_PARSE_HEADER;
    uint32_t pseudo = ix_csum_pseudo4(src_sum, dst_sum, IX_PROTO_ICMP6, (uint32_t)bytes);
    if (ix_csum_finish(ix_csum_add(message, bytes, pseudo)) != 0)
        return IX_PARSE_CSUM;
    out->type = message[0];
    out->code = message[CODE_AT];
    out->rest = ix_load_be32(message + REST_AT);
    out->data_bytes = (uint16_t)(bytes - IX_ICMP6_BYTES);
    return IX_PARSE_OK;
}

void ix_icmp6_emit(uint8_t *message, const struct ix_icmp6 *icmp, uint32_t src_sum,
                   uint32_t dst_sum)
{
    uint32_t bytes = (uint32_t)IX_ICMP6_BYTES + icmp->data_bytes;
    message[0] = icmp->type;
    message[CODE_AT] = icmp->code;
    ix_store_be16(message + CSUM_AT, 0);
    ix_store_be32(message + REST_AT, icmp->rest);
    uint32_t pseudo = ix_csum_pseudo4(src_sum, dst_sum, IX_PROTO_ICMP6, bytes);
    uint16_t csum = ix_csum_finish(ix_csum_add(message, bytes, pseudo));
    __builtin_memcpy(message + CSUM_AT, &csum, 2);
}

static uint8_t mac_option(uint8_t type)
{
    return type == IX_ICMP6_SOLICIT ? OPTION_SOURCE_MAC : OPTION_TARGET_MAC;
}

enum ix_parse ix_nd_parse(const uint8_t *message, size_t bytes, struct ix_nd *out)
{
    struct ix_nd nd = {.type = message[0]};
    if (bytes < IX_ND_BYTES)
        return IX_PARSE_SHORT;
    /* A group has no neighbour, and code is 0 (7.1.1, 7.1.2). */
    if (message[CODE_AT] || message[TARGET_AT] == 0xff)
        return IX_PARSE_HEADER;
    if (nd.type == IX_ICMP6_ADVERT)
        nd.flags = message[REST_AT] & (IX_ND_ROUTER | IX_ND_SOLICITED | IX_ND_OVERRIDE);
    __builtin_memcpy(nd.target, message + TARGET_AT, 16);
    /* 4.6: an option of length 0 makes the whole message invalid, unknown ones are skipped. Each
     * step is 8 bytes at least. */
    for (size_t at = IX_ND_BYTES; at < bytes;) {
        if (bytes - at < OPTION_UNIT)
            return IX_PARSE_HEADER;
        size_t option_bytes = (size_t)message[at + 1] * OPTION_UNIT;
        if (option_bytes == 0 || option_bytes > bytes - at)
            return IX_PARSE_HEADER;
        if (message[at] == mac_option(nd.type) && option_bytes == IX_ND_MAC_BYTES) {
            nd.has_mac = true;
            __builtin_memcpy(nd.mac.b, message + at + 2, 6);
        }
        at += option_bytes;
    }
    *out = nd;
    return IX_PARSE_OK;
}

uint32_t ix_nd_emit(uint8_t *message, const struct ix_nd *nd, uint32_t src_sum, uint32_t dst_sum)
{
    uint32_t bytes = IX_ND_BYTES + (nd->has_mac ? IX_ND_MAC_BYTES : 0u);
    __builtin_memcpy(message + TARGET_AT, nd->target, 16);
    if (nd->has_mac) {
        message[IX_ND_BYTES] = mac_option(nd->type);
        message[IX_ND_BYTES + 1] = 1;
        __builtin_memcpy(message + IX_ND_BYTES + 2, nd->mac.b, 6);
    }
    ix_icmp6_emit(message,
                  &(struct ix_icmp6){.type = nd->type,
                                     .rest = (uint32_t)nd->flags << 24,
                                     .data_bytes = (uint16_t)(bytes - IX_ICMP6_BYTES)},
                  src_sum, dst_sum);
    return bytes;
}
