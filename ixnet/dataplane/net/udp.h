/* UDP endpoints (RFC 768). */
#ifndef IX_NET_UDP_H
#define IX_NET_UDP_H

#include "net/net.h"

struct ix_udp_end {
    struct ix_ip ip;   /* all 0: every local address */
    uint16_t port;     /* 0: the slot is free */
    uint8_t family;    /* 4, 6, or 0: both, then ip is all 0 */
    uint32_t generation;
    uint64_t cookie;
};

/* The arrays as the shard knows them. The application can write all of struct ix_io and of the
 * records at any time, so what the shard relies on it keeps here, and of the shared memory it reads
 * a field once and then its copy. */
struct ix_arrays {
    struct ix_io *shared;    /* n_calls is read, n_calls and n_events are written */
    struct ix_call *calls;   /* read by copies, result and handle written */
    struct ix_event *events; /* only written */
    uint32_t max_calls;
    uint32_t n_events, max_events;
};

struct ix_udp_table {
    struct ix_net *net;
    struct ix_arrays *io;
    struct ix_udp_end ends[IX_UDP_MAX];
    uint32_t in_use;
};

/* Endpoint handles carry this in bits 28..31, so that they can't be taken for connections. */
enum { IX_HANDLE_UDP = 1, IX_HANDLE_TIMER = 2 };
static inline uint64_t ix_handle_make(uint32_t kind, uint32_t index, uint32_t generation)
{
    return (uint64_t)generation << 32 | (uint64_t)kind << 28 | index;
}
static inline uint32_t ix_handle_kind(uint64_t handle) { return (uint32_t)handle >> 28; }
static inline uint32_t ix_handle_index(uint64_t handle) { return (uint32_t)handle & 0xfffffff; }
static inline uint32_t ix_handle_generation(uint64_t handle) { return (uint32_t)(handle >> 32); }

int ix_udp_bind(struct ix_udp_table *udp, const struct ix_ip *ip, uint8_t family, uint16_t port,
                uint64_t cookie, uint64_t *handle);
int ix_udp_unbind(struct ix_udp_table *udp, uint64_t handle);
/* Delivers a datagram as an event, or drops it (counted; port unreachable if nobody listens in
 * own-address mode). */
enum ix_verdict ix_udp_input(struct ix_udp_table *udp, struct ix_packet *pkt);
/* Runs UDP_SENDV. The memory is the application's again at UDP_SENT, which comes in the same poll:
 * the datagram is copied, so that several may leave from one frame. Returns bytes or -errno. */
int ix_udp_send(struct ix_udp_table *udp, const struct ix_call *call);
/* Runs UDP_RECV_DONE. */
int ix_udp_recv_done(struct ix_udp_table *udp, const struct ix_call *call);

/* May the application name these bytes as something to send? They must lie in one piece in frames
 * that are lent to it or in its arena. */
bool ix_net_sendable(const struct ix_net *net, uint64_t addr, uint32_t bytes);

/* The next free event record, zeroed, or NULL when the array is full. For writing only: what is
 * read back may be what the application put there. */
static inline struct ix_event *ix_io_event(struct ix_arrays *io, uint8_t type)
{
    if (IX_UNLIKELY(io->n_events == io->max_events))
        return NULL;
    struct ix_event *event = &io->events[io->n_events++];
    *event = (struct ix_event){.type = type};
    return event;
}

#endif
