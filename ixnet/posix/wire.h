/* A link whose other end is function calls: IP packets are put in and taken out one by one.
 *
 * What is put waits until the shard polls; what it sends stands ready with its time. Ethernet
 * exists only inside: packets go out whatever MAC they are for, and come in from the router's. */
#ifndef IX_POSIX_WIRE_H
#define IX_POSIX_WIRE_H

#include "api/api.h"
#include "link/link.h"

#include <stdbool.h>
#include <stddef.h>

struct ix_wire;

/* frames: of the UMEM, 4 KiB each. NULL: no memory. */
struct ix_wire *ix_wire_new(uint32_t frames);
void ix_wire_free(struct ix_wire *wire);
/* What ix_shard_create() wants. */
struct ix_link *ix_wire_link(struct ix_wire *wire);
/* The dataplane's MAC, and the router's, from which everything comes. */
extern const uint8_t ix_wire_mac[6], ix_wire_router_mac[6];

/* A packet arrives; a TCP segment of more than 1,500 bytes as several. Returns 0, -EMSGSIZE,
 * -EINVAL (neither IPv4 nor IPv6), or -ENOBUFS: no empty frame is left, as on a NIC. */
int ix_wire_put(struct ix_wire *wire, const void *packet, size_t bytes);
/* The oldest packet that was sent: its bytes (at most `max`), and at which now_ns. Returns its
 * length, or 0 if there is none. */
size_t ix_wire_take(struct ix_wire *wire, void *packet, size_t max, uint64_t *now_ns);
/* The time that packets sent from now on carry. */
void ix_wire_set_now(struct ix_wire *wire, uint64_t now_ns);

#endif
