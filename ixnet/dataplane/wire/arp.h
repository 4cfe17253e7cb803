/* ARP for IPv4 over Ethernet (RFC 826). */
#ifndef IX_WIRE_ARP_H
#define IX_WIRE_ARP_H

#include "wire/eth.h"

enum { IX_ARP_BYTES = 28, IX_ARP_REQUEST = 1, IX_ARP_REPLY = 2 };

struct ix_arp {
    uint16_t op;
    struct ix_mac sender_mac, target_mac;
    uint32_t sender_ip, target_ip; /* as they lie in memory */
};

enum ix_parse ix_arp_parse(const uint8_t *packet, size_t bytes, struct ix_arp *out);
/* Writes IX_ARP_BYTES bytes. */
void ix_arp_emit(uint8_t *packet, const struct ix_arp *arp);

#endif
