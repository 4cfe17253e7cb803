/* A router on the simulated wire whose next link has a small MTU (RFC 1191, RFC 8201). */
#include "link/sim_link.h"
#include "wire/csum.h"
#include "wire/eth.h"
#include "wire/icmp4.h"
#include "wire/icmp6.h"
#include "wire/ipv4.h"
#include "wire/ipv6.h"

enum {
    ROUTER = 0xfe, /* the last byte of its address; the rest is the destination's */
    TTL = 64,
    QUOTE_BYTES = 20, /* of the payload of the packet that was too big */
};

static uint32_t too_big4(const uint8_t *packet, uint32_t bytes, uint32_t mtu, uint8_t *out)
{
    struct ix_ipv4 ip;
    if (ix_ipv4_parse(packet, bytes, &ip) != IX_PARSE_OK)
        return 0;
    uint8_t *message = out + IX_IPV4_BYTES;
    uint32_t quote = IX_MIN((uint32_t)ip.total_bytes, (uint32_t)ip.header_bytes + QUOTE_BYTES);
    uint32_t router;
    __builtin_memcpy(&router, packet + 16, 3);
    ((uint8_t *)&router)[3] = ROUTER;
    __builtin_memcpy(message + IX_ICMP4_BYTES, packet, quote);
    ix_icmp4_emit(message, &(struct ix_icmp4){.type = IX_ICMP4_UNREACHABLE,
                                              .code = IX_ICMP4_FRAG_NEEDED,
                                              .rest = mtu,
                                              .data_bytes = (uint16_t)quote});
    uint32_t total = IX_IPV4_BYTES + IX_ICMP4_BYTES + quote;
    ix_ipv4_emit(out, &(struct ix_ipv4){.src = router,
                                        .dst = ip.src,
                                        .total_bytes = (uint16_t)total,
                                        .proto = IX_PROTO_ICMP,
                                        .ttl = TTL});
    return total;
}

static uint32_t too_big6(const uint8_t *packet, uint32_t bytes, uint32_t mtu, uint8_t *out)
{
    struct ix_ipv6 ip;
    if (ix_ipv6_parse(packet, bytes, &ip) != IX_PARSE_OK)
        return 0;
    uint8_t *message = out + IX_IPV6_BYTES;
    uint32_t quote = IX_IPV6_BYTES + IX_MIN((uint32_t)ip.payload_bytes, (uint32_t)QUOTE_BYTES);
    struct ix_ipv6 header = {.payload_bytes = (uint16_t)(IX_ICMP6_BYTES + quote),
                             .next = IX_PROTO_ICMP6,
                             .hop_limit = TTL};
    __builtin_memcpy(header.src, ip.dst, 16);
    header.src[15] = ROUTER;
    __builtin_memcpy(header.dst, ip.src, 16);
    __builtin_memcpy(message + IX_ICMP6_BYTES, packet, quote);
    ix_icmp6_emit(message,
                  &(struct ix_icmp6){.type = IX_ICMP6_TOO_BIG,
                                     .rest = mtu,
                                     .data_bytes = (uint16_t)quote},
                  ix_csum_address(header.src), ix_csum_address(header.dst));
    ix_ipv6_emit(out, &header);
    return IX_IPV6_BYTES + header.payload_bytes;
}

uint32_t ix_sim_too_big(const uint8_t *frame, uint32_t bytes, uint32_t mtu, uint8_t *error)
{
    struct ix_eth eth;
    if (ix_eth_parse(frame, bytes, &eth) != IX_PARSE_OK)
        return 0;
    const uint8_t *packet = frame + IX_ETH_BYTES;
    uint8_t *out = error + IX_ETH_BYTES;
    bytes -= IX_ETH_BYTES;
    uint32_t packet_bytes = 0;
    if (eth.type == IX_ETH_IPV4)
        packet_bytes = too_big4(packet, bytes, mtu, out);
    else if (eth.type == IX_ETH_IPV6)
        packet_bytes = too_big6(packet, bytes, mtu, out);
    ix_eth_emit(error, &(struct ix_eth){.dst = eth.src, .src = eth.dst, .type = eth.type});
    return packet_bytes ? IX_ETH_BYTES + packet_bytes : 0;
}
