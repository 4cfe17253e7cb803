/* A shard whose link, clock, peer and application are this file. */
#include "tests/fuzz/world.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "wire/csum.h"

#define MS 1000000ull

const struct ix_mac world_mac = {{2, 0, 0, 0, 0, 1}}, world_peer_mac = {{2, 0, 0, 0, 0, 2}};
/* 10.0.0.1 and 10.0.0.2 as they lie in memory */
const uint32_t world_ip = 0x0100000a, world_peer_ip = 0x0200000a;

void world_fail(const char *what)
{
    fprintf(stderr, "fuzz: %s\n", what);
    abort();
}

/* ---- the link -------------------------------------------------------------------------- */

static struct world *of_link(struct ix_link *link)
{
    return (struct world *)(void *)link;
}

static uint32_t rx_burst(struct ix_link *link, struct ix_desc *out, uint32_t max)
{
    struct world *w = of_link(link);
    uint32_t n = IX_MIN(max, w->rx_count);
    memcpy(out, w->rx, n * sizeof *out);
    memmove(w->rx, w->rx + n, (w->rx_count - n) * sizeof *out);
    w->rx_count -= n;
    return n;
}

static uint32_t tx_burst(struct ix_link *link, const struct ix_desc *descs, uint32_t n)
{
    struct world *w = of_link(link);
    uint32_t i = 0;
    for (; i < n && !w->stuck && w->tx_tail - w->tx_head < WORLD_RING; i++) {
        if (descs[i].addr + descs[i].len > link->umem_bytes || descs[i].len < 14)
            world_fail("a descriptor on TX leads out of the UMEM");
        w->dirty[descs[i].addr >> WORLD_FRAME_SHIFT] = true;
        w->tx[w->tx_tail++ % WORLD_RING] =
            (struct world_tx){.addr = descs[i].addr, .polls = w->header.tx_delay % 4};
    }
    return i;
}

static uint32_t complete(struct ix_link *link, uint64_t *addrs, uint32_t max)
{
    struct world *w = of_link(link);
    uint32_t n = 0;
    while (n < max && w->tx_head != w->tx_tail) {
        struct world_tx *tx = &w->tx[w->tx_head % WORLD_RING];
        if (tx->polls && w->header.tx_delay % 4) {
            tx->polls--;
            break;
        }
        addrs[n++] = tx->addr;
        w->tx_head++;
    }
    return n;
}

static uint32_t fill_room(struct ix_link *link)
{
    struct world *w = of_link(link);
    return WORLD_RING - (w->fill_tail - w->fill_head);
}

static uint32_t fill(struct ix_link *link, const uint64_t *addrs, uint32_t n)
{
    struct world *w = of_link(link);
    n = IX_MIN(n, fill_room(link));
    for (uint32_t i = 0; i < n; i++)
        w->fill[w->fill_tail++ % WORLD_RING] = addrs[i];
    return n;
}

static int wakeup(struct ix_link *link, uint32_t what)
{
    (void)link;
    (void)what;
    return 0;
}

const struct ix_link_ops world_link_ops = {
    .rx_burst = rx_burst,
    .tx_burst = tx_burst,
    .complete = complete,
    .fill = fill,
    .fill_room = fill_room,
    .wakeup = wakeup,
};

void world_inject(struct world *w, const uint8_t *frame, uint32_t bytes)
{
    bytes = IX_MIN(bytes, (1u << w->link.frame_shift) - w->link.rx_headroom);
    if (w->fill_head == w->fill_tail || w->rx_count == IX_BATCH_MAX)
        return;
    uint64_t addr = w->fill[w->fill_head++ % WORLD_RING] + w->link.rx_headroom;
    memcpy(w->umem + addr, frame, bytes);
    w->dirty[addr >> WORLD_FRAME_SHIFT] = true;
    w->rx[w->rx_count++] = (struct ix_desc){.addr = addr, .len = bytes};
}

struct ix_ip world_address(const struct world *w, uint32_t ip)
{
    if (!w->six)
        return ix_ip_from_v4(ip);
    struct ix_ip out = {.b = {0x20, 1, 0xd, 0xb8}};
    memcpy(&out.b[12], &ip, 4);
    return out;
}

uint8_t world_family(const struct world *w)
{
    return w->six ? 6 : 4;
}

uint32_t world_sum(const struct world *w, uint32_t ip)
{
    struct ix_ip address = world_address(w, ip);
    return ix_ip_sum(&address, world_family(w));
}

/* The header before `at`, which begins with what says what follows it. */
static uint8_t *push_header(uint8_t *at, const void *header, uint32_t bytes, uint8_t *next,
                            uint8_t type)
{
    at -= bytes;
    memcpy(at, header, bytes);
    at[0] = *next;
    *next = type;
    return at;
}

static void packet6(struct world *w, const struct ix_ipv4 *ip, const uint8_t *payload,
                    uint32_t bytes)
{
    enum { FRAGMENT_BYTES = 8 };
    uint8_t frame[2048] = {0};
    uint8_t *at = frame + 256, *end = at + bytes;
    struct ix_ip src = world_address(w, ip->src), dst = world_address(w, ip->dst);
    uint8_t next = ip->proto == IX_PROTO_ICMP ? IX_PROTO_ICMP6 : ip->proto;
    memcpy(at, payload, bytes);
    if (ip->frag_bytes || ip->more_fragments) {
        uint8_t fragment[FRAGMENT_BYTES] = {0};
        ix_store_be16(fragment + 2, (uint16_t)(ip->frag_bytes | ip->more_fragments));
        ix_store_be32(fragment + 4, ip->id);
        at = push_header(at, fragment, sizeof fragment, &next, IX_PROTO_FRAGMENT);
    }
    if (w->extension_bytes)
        at = push_header(at, w->extension, w->extension_bytes, &next, w->extension_type);
    w->extension_bytes = 0;
    struct ix_ipv6 header = {.payload_bytes = (uint16_t)(end - at),
                             .next = next,
                             .hop_limit = ip->ttl,
                             .traffic_class = ip->tos};
    memcpy(header.src, src.b, 16);
    memcpy(header.dst, dst.b, 16);
    at -= IX_IPV6_BYTES;
    ix_ipv6_emit(at, &header);
    at -= IX_ETH_BYTES;
    ix_eth_emit(at, &(struct ix_eth){
                        .dst = world_mac, .src = world_peer_mac, .type = IX_ETH_IPV6});
    world_inject(w, at, (uint32_t)(end - at));
}

void world_packet(struct world *w, const struct ix_ipv4 *ip, const uint8_t *payload, uint32_t bytes)
{
    if (w->six) {
        packet6(w, ip, payload, IX_MIN(bytes, 1500u - IX_IPV6_BYTES));
        return;
    }
    uint8_t frame[2048] = {0};
    struct ix_ipv4 header = *ip;
    bytes = IX_MIN(bytes, 1500u - IX_IPV4_BYTES);
    header.total_bytes = (uint16_t)(IX_IPV4_BYTES + bytes);
    ix_eth_emit(frame, &(struct ix_eth){
                           .dst = world_mac, .src = world_peer_mac, .type = IX_ETH_IPV4});
    ix_ipv4_emit(frame + IX_ETH_BYTES, &header);
    memcpy(frame + IX_ETH_BYTES + IX_IPV4_BYTES, payload, bytes);
    world_inject(w, frame, IX_MAX(IX_ETH_BYTES + IX_IPV4_BYTES + bytes, 60u));
}

void world_segment(struct world *w, uint16_t peer_port, const struct ix_tcp_hdr *hdr,
                   const uint8_t *options, uint32_t option_bytes, uint32_t payload_bytes)
{
    uint8_t segment[2048] = {0};
    struct ix_tcp_hdr out = *hdr;
    out.src_port = peer_port;
    out.dst_port = w->key.local_port;
    uint32_t header_bytes = ix_tcp_header_bytes(&out);
    option_bytes = IX_MIN(option_bytes, IX_TCP_HEADER_MAX - header_bytes) & ~3u;
    uint32_t most = 1500u - ix_ip_header_bytes(world_family(w)) - header_bytes - option_bytes;
    payload_bytes = IX_MIN(payload_bytes, most);
    uint32_t src_sum = world_sum(w, world_peer_ip), dst_sum = world_sum(w, world_ip);
    ix_tcp_emit(segment, &out, src_sum, dst_sum, 0, 0);
    if (option_bytes)
        memcpy(segment + header_bytes, options, option_bytes);
    header_bytes += option_bytes;
    segment[12] = (uint8_t)(header_bytes / 4 << 4);
    for (uint32_t i = 0; i < payload_bytes; i++)
        segment[header_bytes + i] = (uint8_t)(hdr->seq + i);
    uint32_t bytes = header_bytes + payload_bytes;
    memset(segment + 16, 0, 2);
    uint32_t sum = ix_csum_pseudo4(src_sum, dst_sum, IX_PROTO_TCP, bytes);
    uint16_t csum = ix_csum_finish(ix_csum_add(segment, bytes, sum));
    memcpy(segment + 16, &csum, 2);
    world_packet(w,
                 &(struct ix_ipv4){.src = world_peer_ip,
                                   .dst = world_ip,
                                   .proto = IX_PROTO_TCP,
                                   .ttl = 64,
                                   .dont_fragment = true},
                 segment, bytes);
}

/* ---- the application ------------------------------------------------------------------- */

static void learn(struct world *w, uint64_t handle)
{
    w->handles[w->handle_count++ % WORLD_HANDLES_MAX] = handle;
}

static void take_lent(struct world *w, const struct ix_event *event)
{
    if (event->bytes == 0)
        return;
    if (w->lent_count == WORLD_LENT_MAX) /* the fuzzer gave some back by itself */
        w->lent_count = 0;
    uint64_t addr = ((uint64_t)event->frame << w->link.frame_shift) + event->offset;
    if (addr + event->bytes > w->link.umem_bytes)
        world_fail("an event leads out of the UMEM");
    w->lent[w->lent_count++] = (struct world_lent){.handle = event->handle,
                                                   .addr = addr,
                                                   .bytes = event->bytes,
                                                   .udp = event->type == IX_EV_UDP_RECV};
}

struct ix_call *world_call(struct world *w, uint8_t op)
{
    if (w->io->n_calls == w->io->max_calls)
        world_poll(w);
    struct ix_call *call = &w->io->calls[w->io->n_calls++];
    *call = (struct ix_call){.op = op};
    return call;
}

void world_give_back(struct world *w, uint32_t most)
{
    for (; w->lent_count && most; most--) {
        struct world_lent lent = w->lent[--w->lent_count];
        struct ix_call *call =
            world_call(w, lent.udp ? IX_CALL_UDP_RECV_DONE : IX_CALL_RECV_DONE);
        call->handle = lent.handle;
        call->addr = lent.addr;
        call->bytes = lent.bytes;
    }
}

static void take_events(struct world *w)
{
    struct ix_event events[WORLD_EVENTS]; /* what follows may run the next cycle */
    uint32_t n = w->io->n_events;
    memcpy(events, w->io->events, n * sizeof *events);
    for (uint32_t i = 0; i < n; i++) {
        const struct ix_event event = events[i];
        switch (event.type) {
        case IX_EV_KNOCK:
            learn(w, event.handle);
            if (!w->handle)
                w->handle = event.handle;
            *world_call(w, IX_CALL_ACCEPT) =
                (struct ix_call){.op = IX_CALL_ACCEPT, .handle = event.handle, .cookie = 7};
            break;
        case IX_EV_CONNECTED:
            learn(w, event.handle);
            break;
        case IX_EV_RECV:
        case IX_EV_UDP_RECV:
            take_lent(w, &event);
            break;
        case IX_EV_SENT:
        case IX_EV_DEAD:
        case IX_EV_UDP_SENT:
        case IX_EV_TIMER:
            break;
        default:
            world_fail("an event of no type");
        }
    }
    if (!(w->header.options & FUZZ_HOLD))
        world_give_back(w, w->io->max_calls / 2);
}

void world_poll(struct world *w)
{
    (void)ix_shard_poll(w->shard, w->now_ns);
    const char *wrong = ix_shard_check(w->shard);
    if (wrong)
        world_fail(wrong);
    take_events(w);
}

/* ---- the beginning --------------------------------------------------------------------- */

const struct ix_tcb *world_tcb(struct world *w)
{
    struct ix_tcp *tcp = &w->shard->tcp;
    const struct ix_tcb *tcb = ix_tcp_find(tcp, &w->key, ix_tcp_hash(tcp, &w->key));
    if (tcb)
        w->last = *tcb;
    return &w->last;
}

static void tell(struct world *w, struct ix_ctl_msg msg)
{
    msg.family = world_family(w);
    (void)ix_ctl_send(w->shard, &msg);
}

static void tell_network(struct world *w)
{
    struct ix_ctl_msg addr = {.type = IX_CTL_ADDR_ADD, .value = w->cfg.own_address};
    struct ix_ctl_msg neigh = {.type = IX_CTL_NEIGH_SET};
    struct ix_ip own = world_address(w, world_ip), peer = world_address(w, world_peer_ip);
    memcpy(addr.ip, own.b, sizeof addr.ip);
    memcpy(neigh.ip, peer.b, sizeof neigh.ip);
    memcpy(neigh.mac, world_peer_mac.b, 6);
    tell(w, addr);
    tell(w, neigh);
    tell(w, (struct ix_ctl_msg){.type = IX_CTL_ROUTE_SET});
}

/* A segment of the peer that is as it should be; seq counts from what the shard expects. */
static void proper(struct world *w, uint8_t flags, int32_t seq, uint32_t bytes)
{
    const struct ix_tcb *tcb = world_tcb(w);
    struct ix_tcp_hdr hdr = {.flags = flags,
                             .seq = tcb->rcv_nxt + (uint32_t)seq,
                             .ack = tcb->snd_max,
                             .window = w->header.window,
                             .wscale = -1};
    if (tcb->flags & IX_TF_TS) {
        hdr.has_ts = true;
        hdr.ts_val = tcb->ts_recent;
        hdr.ts_ecr = w->shard->tcp.now_ms + tcb->ts_offset;
    }
    world_segment(w, w->key.peer_port, &hdr, NULL, 0, bytes);
    world_poll(w);
}

static void syn(struct world *w, uint8_t flags)
{
    const uint8_t options = w->header.options;
    struct ix_tcp_hdr hdr = {.flags = flags,
                             .seq = WORLD_ISS,
                             .window = w->header.window,
                             .mss = (uint16_t)(88 + 8 * w->header.mss),
                             .wscale = options & FUZZ_WSCALE ? 3 : -1,
                             .sack_ok = options & FUZZ_SACK,
                             .has_ts = options & FUZZ_TS,
                             .ts_val = UINT32_MAX - 5};
    if (flags & IX_TCP_ACK)
        hdr.ack = world_tcb(w)->snd_max;
    world_segment(w, w->key.peer_port, &hdr, NULL, 0, 0);
    world_poll(w);
}

static void close_half(struct world *w)
{
    struct ix_call *call = world_call(w, IX_CALL_CLOSE);
    call->handle = w->handle;
    call->flags = IX_CLOSE_WRITE;
    world_poll(w);
}

static void active_open(struct world *w)
{
    struct ix_call *call = world_call(w, IX_CALL_CONNECT);
    struct ix_ip peer = world_address(w, world_peer_ip);
    call->family = world_family(w);
    call->peer_port = WORLD_PEER_PORT;
    call->local_port = w->key.local_port = 40000;
    memcpy(call->peer, peer.b, sizeof call->peer);
    (void)ix_shard_poll(w->shard, w->now_ns);
    if (call->result < 0)
        world_fail("CONNECT is refused");
    w->handle = call->handle;
    learn(w, w->handle);
    take_events(w);
}

static void queue_data(struct world *w)
{
    uint32_t segments = w->header.segments % 32;
    if (!segments)
        return;
    struct ix_call *call = world_call(w, IX_CALL_SENDV);
    call->handle = w->handle;
    call->addr = ((uint64_t)WORLD_POOL << w->link.frame_shift) + IX_TX_HEADROOM;
    call->bytes = segments * 1448;
    world_poll(w);
}

static void go_to_state(struct world *w)
{
    /* What a half-closed connection took to be where it is: C closes, A the peer acknowledges, F
     * the peer closes, f it does so without acknowledging. */
    static const char *const steps[FUZZ_STATES] = {
        [IX_TCP_ESTABLISHED] = "", [IX_TCP_FIN_WAIT_1] = "C",  [IX_TCP_FIN_WAIT_2] = "CA",
        [IX_TCP_CLOSE_WAIT] = "F", [IX_TCP_CLOSING] = "Cf",    [IX_TCP_LAST_ACK] = "FC",
        [IX_TCP_TIME_WAIT] = "CAF",
    };
    uint8_t state = w->header.state % FUZZ_STATES;
    world_poll(w);
    if (state == IX_TCP_SYN_SENT)
        active_open(w);
    if (state < IX_TCP_SYN_RCVD)
        return;
    syn(w, IX_TCP_SYN);
    if (state == IX_TCP_SYN_RCVD)
        return;
    proper(w, IX_TCP_ACK, 0, 0);
    world_poll(w);
    queue_data(w);
    for (uint32_t i = 0; i < w->header.holes % 8u; i++)
        proper(w, IX_TCP_ACK, (int32_t)(100 + 300 * i), 150);
    for (const char *step = steps[state]; *step; step++) {
        if (*step == 'C')
            close_half(w);
        else if (*step == 'f')
            proper(w, IX_TCP_FIN, 0, 0);
        else
            proper(w, IX_TCP_ACK | (*step == 'F' ? IX_TCP_FIN : 0), 0, 0);
    }
}

void world_configure(struct world *w)
{
    const uint8_t options = w->header.options;
    w->cfg = (struct ix_config){
        .now_ns = w->now_ns,
        .secret = {1, 2, 3, 4, 5, 6, 7, 8},
        .max_flows = WORLD_FLOWS,
        .max_events = WORLD_EVENTS,
        .max_calls = 64,
        .max_timers = 8,
        .max_extents = 64,
        .pool_frames = WORLD_POOL,
        .arena_frames = WORLD_ARENA,
        .fill_target = WORLD_POOL / 2,
        .rcvbuf_bytes = options & FUZZ_SMALL_BUFFER ? 4000 : 0,
        .port_lo = 40000,
        .port_hi = 40010,
        .all_port_lo = 40000,
        .all_port_hi = 40020,
        .own_address = !!(options & FUZZ_OWN_ADDRESS),
        .sg_inplace = !(options & FUZZ_COPY),
    };
    memcpy(w->cfg.mac, world_mac.b, 6);
}

void world_build(struct world *w)
{
    w->six = w->header.version == FUZZ_IPV6;
    w->now_ns = 5000000 * MS;
    world_configure(w);
    memset(w->memory, 0, w->memory_bytes);
    w->shard = ix_shard_create(w->memory, w->memory_bytes, &w->cfg, &w->link, NULL);
    if (!w->shard)
        world_fail("the configuration is refused");
    w->io = ix_shard_io(w->shard);
    w->key = (struct ix_flow_key){.peer = world_address(w, world_peer_ip),
                                  .local = world_address(w, world_ip),
                                  .peer_port = WORLD_PEER_PORT,
                                  .local_port = WORLD_PORT,
                                  .family = world_family(w)};
    tell_network(w);
    (void)ix_shard_listen(w->shard, NULL, 0, WORLD_PORT, 77,
                          w->header.options & FUZZ_SMALL_BACKLOG ? 1 : 0);
    (void)ix_shard_udp_bind(w->shard, NULL, 0, WORLD_UDP_PORT, 78, &w->udp_handle);
    go_to_state(w);
}

/* ---- the end --------------------------------------------------------------------------- */

/* What is lent, by the shard's own account: the fuzzer may have given parts back by itself. */
static void give_all_back(struct world *w)
{
    const struct ix_frames *frames = &w->shard->frames;
    for (uint32_t i = 0; frames->count[IX_FRAME_APP] && i < WORLD_POOL; i++) {
        const struct ix_frame *meta = &frames->meta[i];
        if (meta->owner != IX_FRAME_APP || w->io->n_calls == w->io->max_calls)
            continue;
        bool udp = ix_handle_kind(meta->handle) == IX_HANDLE_UDP;
        struct ix_call *call =
            world_call(w, udp ? IX_CALL_UDP_RECV_DONE : IX_CALL_RECV_DONE);
        call->handle = meta->handle;
        call->addr = ix_frame_addr(frames, i);
        call->bytes = meta->lent_bytes;
    }
}

static uint32_t frames_out(const struct world *w)
{
    const uint32_t *count = w->shard->frames.count;
    return count[IX_FRAME_APP] + count[IX_FRAME_RX] + count[IX_FRAME_TX];
}

static bool all_back(const struct world *w)
{
    return !w->shard->tcp.in_use && !frames_out(w) && !w->io->n_calls;
}

void world_end(struct world *w)
{
    struct ix_tcp *tcp = &w->shard->tcp;
    w->stuck = false;
    w->header.options |= FUZZ_HOLD;
    w->header.tx_delay = 0;
    w->lent_count = 0;
    world_poll(w);
    for (uint32_t i = 0; i < tcp->max_flows; i++)
        if (tcp->flows[i].hash) {
            struct ix_call *call = world_call(w, IX_CALL_ABORT);
            call->handle = ix_tcb_handle(tcp, &tcp->flows[i]);
        }
    /* TIME_WAIT takes a minute, half-open connections that nobody answers longer. */
    for (uint32_t i = 0; i < 40 && !all_back(w); i++) {
        w->now_ns += i < 16 ? MS : 5000 * MS;
        give_all_back(w);
        (void)ix_shard_poll(w->shard, w->now_ns);
    }
    world_poll(w);
    if (tcp->in_use)
        world_fail("a flow is left at the end");
    if (frames_out(w))
        world_fail("a frame is left at the end");
    if (tcp->extents_used || tcp->recs_used || tcp->recoveries_used)
        world_fail("an extent, a record or a recovery is left at the end");
}
