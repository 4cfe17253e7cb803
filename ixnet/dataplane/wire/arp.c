#include "wire/arp.h"

/* Field offsets for Ethernet and IPv4 addresses (RFC 826, "Packet format"). */
enum {
    HARDWARE_AT = 0,
    PROTOCOL_AT = 2,
    HARDWARE_BYTES_AT = 4,
    PROTOCOL_BYTES_AT = 5,
    OP_AT = 6,
    SENDER_MAC_AT = 8,
    SENDER_IP_AT = 14,
    TARGET_MAC_AT = 18,
    TARGET_IP_AT = 24,

    HARDWARE_ETHERNET = 1,
};

enum ix_parse ix_arp_parse(const uint8_t *packet, size_t bytes, struct ix_arp *out)
{
    if (bytes < IX_ARP_BYTES)
        return IX_PARSE_SHORT;
    if (ix_load_be16(packet + HARDWARE_AT) != HARDWARE_ETHERNET ||
        ix_load_be16(packet + PROTOCOL_AT) != IX_ETH_IPV4)
        return IX_PARSE_VERSION;
    if (packet[HARDWARE_BYTES_AT] != 6 || packet[PROTOCOL_BYTES_AT] != 4)
        return IX_PARSE_HEADER;
    out->op = ix_load_be16(packet + OP_AT);
    __builtin_memcpy(out->sender_mac.b, packet + SENDER_MAC_AT, 6);
    __builtin_memcpy(out->target_mac.b, packet + TARGET_MAC_AT, 6);
    __builtin_memcpy(&out->sender_ip, packet + SENDER_IP_AT, 4);
    __builtin_memcpy(&out->target_ip, packet + TARGET_IP_AT, 4);
    return IX_PARSE_OK;
}

void ix_arp_emit(uint8_t *packet, const struct ix_arp *arp)
{
    ix_store_be16(packet + HARDWARE_AT, HARDWARE_ETHERNET);
    ix_store_be16(packet + PROTOCOL_AT, IX_ETH_IPV4);
    packet[HARDWARE_BYTES_AT] = 6;
    packet[PROTOCOL_BYTES_AT] = 4;
    ix_store_be16(packet + OP_AT, arp->op);
    __builtin_memcpy(packet + SENDER_MAC_AT, arp->sender_mac.b, 6);
    __builtin_memcpy(packet + TARGET_MAC_AT, arp->target_mac.b, 6);
    __builtin_memcpy(packet + SENDER_IP_AT, &arp->sender_ip, 4);
    __builtin_memcpy(packet + TARGET_IP_AT, &arp->target_ip, 4);
}
