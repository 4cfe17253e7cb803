/* Requests in datagrams: each has a frame header of 8 bytes (request id, sequence number, datagrams
 * in this message, 0), and so have the datagrams of the answer. A request is one datagram. */
#include "apps/memcached/conn.h"

#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>

/* Where a frame's datagram goes. */
struct ix_mc_udp_to {
    uint8_t peer[16];
    uint16_t peer_port;
    uint8_t family;
};

static struct ix_mc_conn *pseudo_conn(struct ix_mc_server *s)
{
    return &s->conns[s->conn_count - 1];
}

int ix_mc_udp_open(struct ix_mc_server *s, const char *ip, uint16_t port, char *why,
                   size_t why_bytes)
{
    s->udp_to = calloc(s->app->io->arena_frames, sizeof *s->udp_to);
    if (!s->udp_to)
        return -1;
    return ix_app_udp_bind(s->app, ip, port, 0, &s->udp_handle, why, why_bytes);
}

static uint8_t *header(const struct ix_mc_server *s, uint32_t frame)
{
    const struct ix_io *io = s->app->io;
    return io->umem + (((uint64_t)io->arena_frame + frame) << io->frame_shift) + io->tx_headroom;
}

static void forget_answer(struct ix_mc_server *s, struct ix_mc_conn *c)
{
    while (c->out_head != IX_MC_NONE) {
        uint32_t frame = c->out_head;
        c->out_head = s->frames[frame].next;
        ix_mc_frame_free(s, frame);
    }
}

/* Hands the answer's datagrams over to be sent. */
static void answer(struct ix_mc_server *s, struct ix_mc_conn *c, const struct ix_event *ev,
                   const uint8_t *id)
{
    uint16_t sequence = 0, total = htons((uint16_t)c->out_count);
    for (uint32_t frame = c->out_head, next; frame != IX_MC_NONE; frame = next) {
        uint8_t *h = header(s, frame);
        uint16_t number = htons(sequence++);
        memcpy(h, id, 2);
        memcpy(h + 2, &number, 2);
        memcpy(h + 4, &total, 2);
        memset(h + 6, 0, 2);
        next = s->frames[frame].next;
        s->udp_to[frame] = (struct ix_mc_udp_to){.peer_port = ev->peer_port, .family = ev->family};
        memcpy(s->udp_to[frame].peer, ev->peer, sizeof ev->peer);
        s->frames[frame].next = IX_MC_NONE;
        if (s->udp_out.head == IX_MC_NONE)
            s->udp_out.head = frame;
        else
            s->frames[s->udp_out.tail].next = frame;
        s->udp_out.tail = frame;
    }
    c->out_head = IX_MC_NONE;
}

static void run(struct ix_mc_server *s, struct ix_mc_conn *c, const struct ix_event *ev,
                const uint8_t *datagram)
{
    if (datagram[4] || datagram[5] != 1) {
        ix_mc_say(s, c, "SERVER_ERROR multi-packet request not supported");
        ix_mc_input_drop(s, c);
    } else {
        ix_mc_input(s, c);
    }
    bool whole = !c->emit_left && !c->blob;
    ix_mc_input_drop(s, c);
    ix_mc_drop(&s->use, ix_mc_hold_of(s, c));
    free(c->blob);
    free(c->line);
    /* Without frames for all of it nothing is sent: the client asks again. */
    if (whole && c->out_count <= UINT16_MAX)
        answer(s, c, ev, datagram);
    else
        forget_answer(s, c);
    memset(c, 0, sizeof *c);
}

static void begin(struct ix_mc_server *s, struct ix_mc_conn *c)
{
    if (c->datagram)
        return;
    *c = (struct ix_mc_conn){.in = {IX_MC_NONE, IX_MC_NONE}, .out_head = IX_MC_NONE,
                             .out_unsent = IX_MC_NONE, .datagram = true,
                             .protocol = s->mc->config.protocol};
}

/* A datagram that came in fragments is lent in parts, one behind the other. */
void ix_mc_udp_recv(struct ix_mc_server *s, const struct ix_event *ev)
{
    const struct ix_io *io = s->app->io;
    struct ix_mc_conn *c = pseudo_conn(s);
    if (!ev->bytes)
        return;
    begin(s, c);
    s->extents[ev->frame] = (struct ix_mc_extent){
        .handle = ev->handle, .next = IX_MC_NONE, .offset = ev->offset, .bytes = ev->bytes};
    if (c->in.head == IX_MC_NONE)
        c->in.head = ev->frame;
    else
        s->extents[c->in.tail].next = ev->frame;
    c->in.tail = ev->frame;
    if (ev->family & IX_UDP_MORE)
        return;
    const struct ix_mc_extent *first = &s->extents[c->in.head];
    s->use.counts->udp_requests++;
    if (first->bytes <= IX_MC_UDP_HEADER_BYTES) {
        ix_mc_input_drop(s, c);
        c->datagram = false;
        return;
    }
    c->in_at = IX_MC_UDP_HEADER_BYTES;
    run(s, c, ev, io->umem + ((uint64_t)c->in.head << io->frame_shift) + first->offset);
}

/* False: the array of calls is full. */
bool ix_mc_udp_calls(struct ix_mc_server *s)
{
    const struct ix_io *io = s->app->io;
    while (s->udp_out.head != IX_MC_NONE) {
        uint32_t frame = s->udp_out.head;
        struct ix_call *call = ix_app_call(s->app, IX_CALL_UDP_SENDV, s->udp_handle);
        if (!call)
            return false;
        call->family = s->udp_to[frame].family;
        call->peer_port = s->udp_to[frame].peer_port;
        memcpy(call->peer, s->udp_to[frame].peer, sizeof call->peer);
        call->addr = ((uint64_t)(io->arena_frame + frame) << io->frame_shift) + io->tx_headroom;
        call->bytes = s->frames[frame].bytes;
        s->call_conn[io->n_calls - 1] = frame;
        s->udp_out.head = s->frames[frame].next;
    }
    return true;
}
