/* UDP endpoints, input and output. */
#include "net/udp.h"

#include "wire/csum.h"
#include "wire/icmp4.h"
#include "wire/udp.h"

static struct ix_udp_end *find(struct ix_udp_table *udp, const struct ix_ip *local, uint8_t family,
                               uint16_t port)
{
    struct ix_udp_end *wild = NULL;
    if (IX_UNLIKELY(port == 0)) /* it marks slots that are free */
        return NULL;
    for (uint32_t i = 0; i < IX_UDP_MAX && udp->in_use; i++) {
        struct ix_udp_end *end = &udp->ends[i];
        if (end->port != port || (end->family && end->family != family))
            continue;
        if (end->family && ix_ip_equal(&end->ip, local))
            return end; /* the exact address before the wildcard */
        if (ix_ip_is_zero(&end->ip))
            wild = end;
    }
    return wild;
}

static struct ix_udp_end *of_handle(struct ix_udp_table *udp, uint64_t handle)
{
    uint32_t index = ix_handle_index(handle);
    if (ix_handle_kind(handle) != IX_HANDLE_UDP || index >= IX_UDP_MAX)
        return NULL;
    struct ix_udp_end *end = &udp->ends[index];
    return end->port && end->generation == ix_handle_generation(handle) ? end : NULL;
}

int ix_udp_bind(struct ix_udp_table *udp, const struct ix_ip *ip, uint8_t family, uint16_t port,
                uint64_t cookie, uint64_t *handle)
{
    struct ix_udp_end *free_end = NULL;
    if (port == 0 || (family != 4 && family != 6 && (family || !ix_ip_is_zero(ip))))
        return -IX_EINVAL;
    for (uint32_t i = 0; i < IX_UDP_MAX; i++) {
        struct ix_udp_end *end = &udp->ends[i];
        if (end->port == port && ix_families_meet(end->family, family) &&
            ix_ip_equal(&end->ip, ip))
            return -IX_EADDRINUSE;
        if (end->port == 0 && !free_end)
            free_end = end;
    }
    if (!free_end)
        return -IX_ENOSPC;
    uint32_t generation = free_end->generation + 1;
    *free_end = (struct ix_udp_end){.ip = *ip,
                                    .port = port,
                                    .family = family,
                                    .generation = generation ? generation : 1,
                                    .cookie = cookie};
    udp->in_use++;
    *handle = ix_handle_make(IX_HANDLE_UDP, (uint32_t)(free_end - udp->ends), free_end->generation);
    return 0;
}

int ix_udp_unbind(struct ix_udp_table *udp, uint64_t handle)
{
    struct ix_udp_end *end = of_handle(udp, handle);
    if (!end)
        return -IX_ENOENT;
    end->port = 0;
    udp->in_use--;
    return 0;
}

/* The event of a datagram's payload, or of a part of it. */
static void put_event(struct ix_udp_table *udp, const struct ix_udp_end *end,
                      const struct ix_packet *pkt, const struct ix_udp *hdr,
                      struct ix_event *event, uint32_t frame, uint32_t offset, uint32_t bytes)
{
    uint64_t handle =
        ix_handle_make(IX_HANDLE_UDP, (uint32_t)(end - udp->ends), end->generation);
    event->family = pkt->family;
    event->bytes = bytes;
    event->handle = handle;
    event->cookie = end->cookie;
    event->frame = frame;
    event->offset = (uint16_t)offset;
    event->peer_port = hdr->src_port;
    event->local_port = hdr->dst_port;
    __builtin_memcpy(event->peer, pkt->src.b, 16);
    __builtin_memcpy(event->local, pkt->dst.b, 16);
    if (bytes) /* else nothing to lend: the event alone tells of an empty datagram */
        ix_frame_lend(udp->net->frames, frame, handle, (uint16_t)offset, (uint16_t)bytes);
}

static struct ix_udp_end *endpoint_of(struct ix_udp_table *udp, const struct ix_packet *pkt,
                                      const struct ix_udp *hdr)
{
    struct ix_udp_end *end = find(udp, &pkt->dst, pkt->family, hdr->dst_port);
    if (!end)
        udp->net->counters->drop_udp_port++;
    return end;
}

/* RFC 8200 8.1: over IPv6 there is always one. */
static bool csum_missing(const struct ix_packet *pkt, const struct ix_udp *hdr)
{
    return pkt->family == 6 && !hdr->has_csum;
}

/* Header and checksum of a datagram whose parts lie in several frames. The first holds the header;
 * all but the last are multiples of 8 bytes, so their sums add up. */
static bool parse_parts(struct ix_udp_table *udp, const struct ix_packet *pkt, struct ix_udp *hdr)
{
    struct ix_net *net = udp->net;
    const struct ix_frame *meta = net->frames->meta;
    uint32_t bytes = 0, sum = 0;
    for (uint32_t i = pkt->fragments; i != IX_NONE; i = meta[i].next) {
        sum = ix_csum_add(ix_net_frame_ptr(net, i) + meta[i].offset, meta[i].bytes, sum);
        bytes += meta[i].bytes;
    }
    const uint8_t *header = ix_net_frame_ptr(net, pkt->fragments) + meta[pkt->fragments].offset;
    *hdr = (struct ix_udp){.src_port = ix_load_be16(header),
                           .dst_port = ix_load_be16(header + 2),
                           .total_bytes = ix_load_be16(header + 4),
                           .has_csum = ix_load_be16(header + 6)};
    if (hdr->total_bytes != bytes || csum_missing(pkt, hdr)) {
        net->counters->drop_udp_short++;
        return false;
    }
    uint32_t pseudo =
        ix_csum_pseudo4(ix_ip_sum(&pkt->src, pkt->family), ix_ip_sum(&pkt->dst, pkt->family),
                        IX_PROTO_UDP, bytes);
    if (hdr->has_csum && ix_csum_finish(ix_csum_fold((uint64_t)sum + pseudo)) != 0) {
        net->counters->drop_udp_csum++;
        return false;
    }
    return true;
}

/* All parts or none: an event each, in order. */
static void deliver_parts(struct ix_udp_table *udp, const struct ix_packet *pkt)
{
    struct ix_frames *frames = udp->net->frames;
    struct ix_frame *first = &frames->meta[pkt->fragments];
    uint32_t parts = 0, head = pkt->fragments;
    struct ix_udp hdr;
    struct ix_udp_end *end = parse_parts(udp, pkt, &hdr) ? endpoint_of(udp, pkt, &hdr) : NULL;
    for (uint32_t i = head; i != IX_NONE; i = frames->meta[i].next)
        parts++;
    bool room = udp->io->max_events - udp->io->n_events >= parts &&
                frames->count[IX_FRAME_APP] + parts <= frames->lend_max;
    if (end && !room)
        udp->net->counters->drop_udp_full++;
    if (!end || !room) {
        ix_reass_free(udp->net, head);
        return;
    }
    first->offset = (uint16_t)(first->offset + IX_UDP_BYTES);
    first->bytes = (uint16_t)(first->bytes - IX_UDP_BYTES);
    udp->net->counters->udp_in++;
    while (head != IX_NONE) {
        uint32_t frame = head, bytes = frames->meta[frame].bytes;
        head = frames->meta[frame].next;
        if (bytes == 0) { /* the first held the header and no more */
            ix_frame_free(frames, frame);
            continue;
        }
        struct ix_event *event = ix_io_event(udp->io, IX_EV_UDP_RECV);
        put_event(udp, end, pkt, &hdr, event, frame, frames->meta[frame].offset, bytes);
        if (head != IX_NONE)
            event->family |= IX_UDP_MORE;
    }
}

enum ix_verdict ix_udp_input(struct ix_udp_table *udp, struct ix_packet *pkt)
{
    struct ix_net *net = udp->net;
    struct ix_counters *n = net->counters;
    struct ix_udp hdr;
    if (IX_UNLIKELY(pkt->fragments != IX_NONE)) {
        deliver_parts(udp, pkt);
        return IX_VERDICT_KEPT;
    }
    enum ix_parse parse = ix_udp_parse(pkt->l4, pkt->l4_bytes, ix_ip_sum(&pkt->src, pkt->family),
                                       ix_ip_sum(&pkt->dst, pkt->family), &hdr);
    if (parse == IX_PARSE_OK && csum_missing(pkt, &hdr))
        parse = IX_PARSE_HEADER;
    if (parse != IX_PARSE_OK) {
        if (parse != IX_PARSE_CSUM)
            n->drop_udp_short++;
        else if (!ix_net_partial_csum(net, pkt, 6))
            n->drop_udp_csum++;
        return IX_VERDICT_DROP;
    }
    struct ix_udp_end *end = endpoint_of(udp, pkt, &hdr);
    if (!end) {
        ix_icmp_port_unreachable(net, pkt); /* RFC 1122 4.1.3.1, RFC 4443 3.1 */
        return IX_VERDICT_DROP;
    }
    struct ix_event *event =
        ix_frame_may_lend(net->frames) ? ix_io_event(udp->io, IX_EV_UDP_RECV) : NULL;
    if (!event) {
        n->drop_udp_full++;
        return IX_VERDICT_DROP;
    }
    const uint8_t *payload = pkt->l4 + IX_UDP_BYTES;
    uint32_t offset = (uint32_t)(payload - ix_net_frame_ptr(net, pkt->frame));
    uint32_t bytes = (uint32_t)hdr.total_bytes - IX_UDP_BYTES;
    put_event(udp, end, pkt, &hdr, event, pkt->frame, offset, bytes);
    n->udp_in++;
    return bytes ? IX_VERDICT_KEPT : IX_VERDICT_DROP;
}

bool ix_net_sendable(const struct ix_net *net, uint64_t addr, uint32_t bytes)
{
    const struct ix_frames *frames = net->frames;
    uint64_t frame = addr >> frames->frame_shift;
    if (frame >= frames->pool_frames) {
        /* Not umem_bytes: the UMEM may end behind the last frame. */
        uint64_t end = (uint64_t)frames->total << frames->frame_shift;
        return bytes && addr < end && bytes <= end - addr;
    }
    /* A lent frame: exactly what was lent of it, nothing of its neighbours. */
    const struct ix_frame *meta = &frames->meta[frame];
    uint32_t offset = (uint32_t)(addr - (frame << frames->frame_shift));
    uint32_t end = (uint32_t)meta->offset + meta->bytes;
    return bytes && meta->owner == IX_FRAME_APP && offset >= meta->offset && offset <= end &&
           bytes <= end - offset;
}

int ix_udp_send(struct ix_udp_table *udp, const struct ix_call *call)
{
    struct ix_net *net = udp->net;
    struct ix_udp_end *end = of_handle(udp, call->handle);
    if (!end)
        return -IX_ENOENT;
    if ((call->family != 4 && call->family != 6) || !ix_families_meet(end->family, call->family) ||
        call->peer_port == 0 || (call->bytes && !ix_net_sendable(net, call->addr, call->bytes)))
        return -IX_EINVAL;
    uint32_t headers = IX_UDP_BYTES + ix_ip_header_bytes(call->family);
    if (call->bytes > net->mtu - headers)
        return -IX_EMSGSIZE;
    struct ix_flow_key key = {.local = end->ip,
                              .peer_port = call->peer_port,
                              .local_port = end->port,
                              .family = call->family};
    __builtin_memcpy(key.peer.b, call->peer, call->family == 6 ? 16 : 4);
    if (ix_ip_is_zero(&key.local))
        key.local = ix_net_source_for(net, key.family, &key.peer);
    bool has_source = !ix_ip_is_zero(&key.local);
    if (!has_source || !ix_net_route(net, key.family, &key.peer))
        return has_source ? -IX_ENETUNREACH : -IX_EADDRNOTAVAIL;
    struct ix_dst to = {.epoch = 0};
    if (!ix_net_resolve(net, key.family, &key.peer, &to)) {
        net->counters->drop_neigh++;
        return -IX_EAGAIN; /* the neighbour is being resolved */
    }
    if (call->bytes > to.mtu - headers)
        return -IX_EMSGSIZE; /* the path is narrower than the link */
    if (!ix_net_tx_room(net) || udp->io->n_events == udp->io->max_events)
        return -IX_EAGAIN;
    uint32_t frame = ix_net_alloc(net);
    if (frame == IX_NONE)
        return -IX_EAGAIN;
    uint8_t *datagram = ix_net_frame_ptr(net, frame) + IX_TX_HEADROOM;
    uint32_t sum = 0; /* of an empty datagram the address says nothing, and was not checked */
    if (call->bytes)
        sum = ix_csum_copy(datagram + IX_UDP_BYTES, ix_link_ptr(net->link, call->addr),
                           call->bytes, 0);
    ix_udp_emit(datagram,
                &(struct ix_udp){.src_port = end->port,
                                 .dst_port = call->peer_port,
                                 .total_bytes = (uint16_t)(IX_UDP_BYTES + call->bytes),
                                 .has_csum = true},
                ix_ip_sum(&key.local, key.family), ix_ip_sum(&key.peer, key.family), sum);
    ix_net_output(net, frame, datagram, IX_UDP_BYTES + call->bytes, IX_PROTO_UDP, 0, &key, &to.mac);
    net->counters->udp_out++;
    struct ix_event *event = ix_io_event(udp->io, IX_EV_UDP_SENT);
    event->handle = call->handle;
    event->cookie = call->cookie;
    event->bytes = call->bytes;
    event->frame = ix_frame_of(net->frames, call->addr);
    event->offset = (uint16_t)(call->addr & (((uint64_t)1 << net->frames->frame_shift) - 1));
    return (int)call->bytes;
}

int ix_udp_recv_done(struct ix_udp_table *udp, const struct ix_call *call)
{
    uint32_t frame = ix_frame_of(udp->net->frames, call->addr);
    if (ix_handle_kind(call->handle) != IX_HANDLE_UDP || frame >= udp->net->frames->pool_frames)
        return -IX_EINVAL;
    return ix_frame_done(udp->net->frames, frame, call->handle, call->bytes);
}
