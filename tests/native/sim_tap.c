/* A link around the simulated one that shows frames, and spoils one if it is told to. */
#include "tests/native/sim_world.h"

#include <stdarg.h>
#include <stdio.h>

void sim_trace(const struct sim_world *w, const char *format, ...)
{
    if (!w->c->trace)
        return;
    va_list args;
    va_start(args, format);
    fprintf(stderr, "%14.6f ms  ", (double)w->now_ns / 1e6);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
}

static struct sim_tap *tap_of(struct ix_link *link)
{
    return IX_CONTAINER_OF(link, struct sim_tap, link);
}

/* The parsed TCP segment in a frame; NULL if it is none. */
static const uint8_t *segment_in(const uint8_t *frame, uint32_t bytes, struct ix_tcp_hdr *tcp,
                                 uint32_t *payload_bytes)
{
    struct ix_eth eth;
    struct ix_ipv4 ip = {.proto = 0};
    struct ix_ipv6 ip6;
    if (ix_eth_parse(frame, bytes, &eth) != IX_PARSE_OK)
        return NULL;
    const uint8_t *packet = frame + IX_ETH_BYTES;
    bytes -= IX_ETH_BYTES;
    if (eth.type == IX_ETH_IPV6 && ix_ipv6_parse(packet, bytes, &ip6) == IX_PARSE_OK) {
        ip = (struct ix_ipv4){.src = ix_csum_address(ip6.src),
                              .dst = ix_csum_address(ip6.dst),
                              .header_bytes = IX_IPV6_BYTES,
                              .total_bytes = (uint16_t)(IX_IPV6_BYTES + ip6.payload_bytes),
                              .proto = ip6.next};
    } else if (eth.type != IX_ETH_IPV4 || ix_ipv4_parse(packet, bytes, &ip) != IX_PARSE_OK) {
        return NULL;
    }
    const uint8_t *segment = packet + ip.header_bytes;
    uint32_t segment_bytes = (uint32_t)ip.total_bytes - ip.header_bytes;
    if (ip.proto != IX_PROTO_TCP ||
        ix_tcp_parse(segment, segment_bytes, ip.src, ip.dst, tcp) != IX_PARSE_OK)
        return NULL;
    *payload_bytes = segment_bytes - tcp->header_bytes;
    return segment;
}

static void show(const struct sim_tap *tap, const char *what, const struct ix_desc *desc)
{
    struct ix_tcp_hdr tcp;
    uint32_t payload;
    const uint8_t *frame = ix_link_ptr(tap->inner, desc->addr);
    if (!segment_in(frame, desc->len, &tcp, &payload)) {
        sim_trace(tap->world, "side %u %s: %u bytes, type %04x or broken", tap->side, what,
                  desc->len, ix_load_be16(frame + 12));
        return;
    }
    char sacks[128] = "";
    for (uint32_t i = 0, at = 0; i < tcp.sack_count; i++)
        at += (uint32_t)snprintf(sacks + at, sizeof sacks - at, " sack %u-%u", tcp.sack[i].start,
                                 tcp.sack[i].end);
    sim_trace(tap->world, "side %u %s: %u > %u %s%s%s%s%s seq %u +%u ack %u wnd %u ts %u %u%s",
              tap->side, what, tcp.src_port, tcp.dst_port, tcp.flags & IX_TCP_SYN ? "S" : "",
              tcp.flags & IX_TCP_FIN ? "F" : "", tcp.flags & IX_TCP_RST ? "R" : "",
              tcp.flags & IX_TCP_PSH ? "P" : "", tcp.flags & IX_TCP_ACK ? "." : "", tcp.seq,
              payload, tcp.ack, tcp.window, tcp.ts_val, tcp.ts_ecr, sacks);
}

/* Two 16-bit words of the payload change places: the checksum does not see it. */
static bool flip(uint8_t *frame, uint32_t bytes)
{
    struct ix_tcp_hdr tcp;
    uint32_t payload_bytes;
    const uint8_t *segment = segment_in(frame, bytes, &tcp, &payload_bytes);
    if (!segment)
        return false;
    uint8_t *payload = frame + (segment - frame) + tcp.header_bytes;
    for (uint32_t at = 0; at + 4 <= payload_bytes; at += 2) {
        uint16_t a = ix_load_be16(payload + at), b = ix_load_be16(payload + at + 2);
        if (a == b)
            continue;
        ix_store_be16(payload + at, b);
        ix_store_be16(payload + at + 2, a);
        return true;
    }
    return false;
}

static uint32_t tap_rx_burst(struct ix_link *link, struct ix_desc *out, uint32_t max)
{
    struct sim_tap *tap = tap_of(link);
    uint32_t n = tap->inner->ops->rx_burst(tap->inner, out, max);
    for (uint32_t i = 0; i < n; i++) {
        struct sim_world *w = tap->world;
        if (w->c->trace)
            show(tap, "rx", &out[i]);
        if (w->c->canary == IX_SIMD_FLIP_PAYLOAD && !w->canary_done)
            w->canary_done = flip(ix_link_ptr(link, out[i].addr), out[i].len);
    }
    return n;
}

static uint32_t tap_tx_burst(struct ix_link *link, const struct ix_desc *descs, uint32_t n)
{
    struct sim_tap *tap = tap_of(link);
    n = tap->inner->ops->tx_burst(tap->inner, descs, n);
    for (uint32_t i = 0; i < n && tap->world->c->trace; i++)
        show(tap, "tx", &descs[i]);
    return n;
}

static uint32_t tap_complete(struct ix_link *link, uint64_t *addrs, uint32_t max)
{
    struct sim_tap *tap = tap_of(link);
    return tap->inner->ops->complete(tap->inner, addrs, max);
}

static uint32_t tap_fill(struct ix_link *link, const uint64_t *addrs, uint32_t n)
{
    struct sim_tap *tap = tap_of(link);
    return tap->inner->ops->fill(tap->inner, addrs, n);
}

static uint32_t tap_fill_room(struct ix_link *link)
{
    struct sim_tap *tap = tap_of(link);
    return tap->inner->ops->fill_room(tap->inner);
}

static int tap_wakeup(struct ix_link *link, uint32_t what)
{
    struct sim_tap *tap = tap_of(link);
    return tap->inner->ops->wakeup(tap->inner, what);
}

static const struct ix_link_ops tap_ops = {
    .rx_burst = tap_rx_burst,
    .tx_burst = tap_tx_burst,
    .complete = tap_complete,
    .fill = tap_fill,
    .fill_room = tap_fill_room,
    .wakeup = tap_wakeup,
};

void sim_tap_init(struct sim_world *w, uint32_t side, struct ix_link *inner)
{
    struct sim_tap *tap = &w->side[side].tap;
    tap->inner = inner;
    tap->world = w;
    tap->side = side;
    tap->link = *inner;
    tap->link.ops = &tap_ops;
}
