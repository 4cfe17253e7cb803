/* The target on the application's array: records of struct ix_call, as they are but for what could
 * never be hit by chance: `result`, which the dataplane only writes, says what is put in. */
#include "tests/fuzz/world.h"

#include <string.h>

IX_STATIC_ASSERT(sizeof(struct ix_call) == FUZZ_RECORD_BYTES, "a call is a record");

enum directive {
    POLL = 1,      /* the calls so far run now */
    ACK_ALL = 2,   /* the peer acknowledges all that was sent */
    DATA = 4,      /* the peer sends a segment */
    TIME = 8,      /* 50 ms pass */
    OP = 16,       /* op is taken modulo the number of ops */
    ARENA = 32,    /* addr lies in the arena */
    LENT = 64,     /* addr is lent */
    DATAGRAM = 128, /* the peer sends a datagram */
    HANDLE_SHIFT = 8, /* 8 bits: 0 the handle as it is, else one of those that there are */
};

static void substitute(struct world *w, struct ix_call *call, uint32_t how)
{
    uint32_t which = (how >> HANDLE_SHIFT) & 255;
    uint32_t known = IX_MIN(w->handle_count, (uint32_t)WORLD_HANDLES_MAX);
    if (how & OP)
        call->op %= IX_CALL_OPTION + 2;
    if (which == 255)
        call->handle = w->udp_handle;
    else if (which && known)
        call->handle = w->handles[(which - 1) % known];
    bool addresses = call->op != IX_CALL_CONNECT;
    if (how & ARENA && addresses)
        call->addr = ((uint64_t)WORLD_POOL << w->link.frame_shift) +
                     call->addr % (WORLD_ARENA << WORLD_FRAME_SHIFT);
    if (how & LENT && addresses && w->lent_count) {
        const struct world_lent *lent = &w->lent[call->addr % w->lent_count];
        call->addr = lent->addr + (call->bytes & 1);
        call->handle = which ? call->handle : lent->handle;
    }
    if (call->op == IX_CALL_CONNECT && how & ARENA) {
        memset(call->local, 0, sizeof call->local);
        struct ix_ip peer = world_address(w, world_peer_ip);
        call->family = world_family(w);
        memcpy(call->peer, peer.b, sizeof call->peer);
    }
}

static void from_peer(struct world *w, uint32_t how)
{
    const struct ix_tcb *tcb = world_tcb(w);
    struct ix_tcp_hdr hdr = {.flags = IX_TCP_ACK,
                             .seq = tcb->rcv_nxt,
                             .ack = how & ACK_ALL ? tcb->snd_max : tcb->snd_una,
                             .window = 60000,
                             .has_ts = tcb->flags & IX_TF_TS,
                             .ts_val = tcb->ts_recent,
                             .wscale = -1};
    if (how & (ACK_ALL | DATA))
        world_segment(w, w->key.peer_port, &hdr, NULL, 0, how & DATA ? 200 : 0);
    if (how & DATAGRAM) {
        static const uint8_t datagram[12] = {0x10, 0, 0, WORLD_UDP_PORT, 0, 12};
        world_packet(w,
                     &(struct ix_ipv4){.src = world_peer_ip,
                                       .dst = world_ip,
                                       .proto = IX_PROTO_UDP,
                                       .ttl = 64},
                     datagram, sizeof datagram);
    }
}

int ix_fuzz_calls(const uint8_t *data, size_t size)
{
    struct world *w = world_make(data, size);
    for (size_t at = FUZZ_HEADER_BYTES; at + FUZZ_RECORD_BYTES <= size; at += FUZZ_RECORD_BYTES) {
        struct ix_call call;
        memcpy(&call, data + at, sizeof call);
        uint32_t how = (uint32_t)call.result;
        substitute(w, &call, how);
        *world_call(w, IX_CALL_NONE) = call;
        if (how & TIME)
            w->now_ns += 50000000;
        from_peer(w, how);
        if (how & POLL)
            world_poll(w);
    }
    world_poll(w);
    world_end(w);
    return 0;
}
