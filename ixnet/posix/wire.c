/* See wire.h. */
#include "posix/wire.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>

enum { FRAME_SHIFT = 12, ETH_BYTES = 14, RX_HEADROOM = 256, UMEM_ALIGN = 4096, MTU = 1500 };

const uint8_t ix_wire_mac[6] = {0x02, 0, 0, 0, 0, 0x01};
const uint8_t ix_wire_router_mac[6] = {0x02, 0, 0, 0, 0, 0xfe};

/* A packet on its way out. */
struct sent {
    struct sent *next;
    uint64_t now_ns;
    size_t bytes;
    uint8_t packet[];
};

/* A ring of as many entries as there are frames, so that it is never full. */
struct ring {
    struct ix_desc *at;
    uint32_t head, count;
};

struct ix_wire {
    struct ix_link link;
    uint32_t frames;
    uint64_t now_ns;
    struct ring fill, rx, done;
    struct sent *first, **last;
};

static struct ix_wire *wire_of(struct ix_link *link)
{
    return IX_CONTAINER_OF(link, struct ix_wire, link);
}

static void push(struct ix_wire *w, struct ring *ring, uint64_t addr, uint32_t len)
{
    ring->at[(ring->head + ring->count++) % w->frames] = (struct ix_desc){.addr = addr, .len = len};
}

static struct ix_desc pull(struct ix_wire *w, struct ring *ring)
{
    struct ix_desc desc = ring->at[ring->head];
    ring->head = (ring->head + 1) % w->frames;
    ring->count--;
    return desc;
}

static uint32_t wire_rx_burst(struct ix_link *link, struct ix_desc *out, uint32_t max)
{
    struct ix_wire *w = wire_of(link);
    uint32_t n = 0;
    while (n < max && w->rx.count)
        out[n++] = pull(w, &w->rx);
    return n;
}

static bool keep(struct ix_wire *w, const struct ix_desc *desc)
{
    size_t bytes = desc->len - ETH_BYTES;
    struct sent *sent = malloc(sizeof *sent + bytes);
    if (!sent)
        return false;
    *sent = (struct sent){.now_ns = w->now_ns, .bytes = bytes};
    memcpy(sent->packet, ix_link_ptr(&w->link, desc->addr + ETH_BYTES), bytes);
    *w->last = sent;
    w->last = &sent->next;
    return true;
}

static uint32_t wire_tx_burst(struct ix_link *link, const struct ix_desc *descs, uint32_t n)
{
    struct ix_wire *w = wire_of(link);
    for (uint32_t i = 0; i < n; i++) {
        if (w->done.count == w->frames || !keep(w, &descs[i]))
            return i;
        push(w, &w->done, descs[i].addr, descs[i].len);
    }
    return n;
}

static uint32_t wire_complete(struct ix_link *link, uint64_t *addrs, uint32_t max)
{
    struct ix_wire *w = wire_of(link);
    uint32_t n = 0;
    while (n < max && w->done.count)
        addrs[n++] = pull(w, &w->done).addr;
    return n;
}

static uint32_t wire_fill_room(struct ix_link *link)
{
    struct ix_wire *w = wire_of(link);
    return w->frames - w->fill.count;
}

static uint32_t wire_fill(struct ix_link *link, const uint64_t *addrs, uint32_t n)
{
    struct ix_wire *w = wire_of(link);
    uint32_t room = wire_fill_room(link), taken = n < room ? n : room;
    for (uint32_t i = 0; i < taken; i++)
        push(w, &w->fill, addrs[i], 0);
    return taken;
}

static int wire_wakeup(struct ix_link *link, uint32_t what)
{
    (void)link, (void)what;
    return 0;
}

static const struct ix_link_ops wire_ops = {
    .rx_burst = wire_rx_burst,
    .tx_burst = wire_tx_burst,
    .complete = wire_complete,
    .fill = wire_fill,
    .fill_room = wire_fill_room,
    .wakeup = wire_wakeup,
};

struct ix_wire *ix_wire_new(uint32_t frames)
{
    struct ix_wire *w = calloc(1, sizeof *w);
    if (!w)
        return NULL;
    w->frames = frames;
    w->last = &w->first;
    w->link = (struct ix_link){
        .ops = &wire_ops,
        .umem_bytes = (uint64_t)frames << FRAME_SHIFT,
        .frame_shift = FRAME_SHIFT,
        .rx_headroom = RX_HEADROOM,
    };
    w->link.umem = aligned_alloc(UMEM_ALIGN, (size_t)frames << FRAME_SHIFT);
    w->fill.at = calloc(frames, sizeof *w->fill.at);
    w->rx.at = calloc(frames, sizeof *w->rx.at);
    w->done.at = calloc(frames, sizeof *w->done.at);
    if (!w->link.umem || !w->fill.at || !w->rx.at || !w->done.at) {
        ix_wire_free(w);
        return NULL;
    }
    return w;
}

void ix_wire_free(struct ix_wire *w)
{
    for (struct sent *sent = w->first, *next; sent; sent = next) {
        next = sent->next;
        free(sent);
    }
    free(w->done.at);
    free(w->rx.at);
    free(w->fill.at);
    free(w->link.umem);
    free(w);
}

struct ix_link *ix_wire_link(struct ix_wire *w)
{
    return &w->link;
}

static int put_one(struct ix_wire *w, const uint8_t *packet, size_t bytes)
{
    if (bytes + ETH_BYTES + RX_HEADROOM > 1u << FRAME_SHIFT)
        return -EMSGSIZE;
    if (w->fill.count == 0)
        return -ENOBUFS;
    uint64_t addr = pull(w, &w->fill).addr + RX_HEADROOM;
    uint8_t *frame = ix_link_ptr(&w->link, addr);
    bool v4 = *packet >> 4 == 4;
    memcpy(frame, ix_wire_mac, 6);
    memcpy(frame + 6, ix_wire_router_mac, 6);
    frame[12] = v4 ? 0x08 : 0x86;
    frame[13] = v4 ? 0x00 : 0xdd;
    memcpy(frame + ETH_BYTES, packet, bytes);
    push(w, &w->rx, addr, (uint32_t)bytes + ETH_BYTES);
    return 0;
}

static void put16(uint8_t *at, uint32_t value)
{
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}

static uint32_t get32(const uint8_t *at)
{
    return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

/* RFC 1071, 16-bit words in network byte order. */
static uint32_t add_words(const uint8_t *data, size_t bytes, uint32_t sum)
{
    for (size_t i = 0; i < bytes; i++)
        sum += i % 2 ? data[i] : (uint32_t)data[i] << 8;
    return (sum & 0xffff) + (sum >> 16);
}

/* The checksum's field, filled in anew; sum: of what it covers besides. */
static void checksum(uint8_t *data, size_t bytes, uint8_t *field, uint32_t sum)
{
    put16(field, 0);
    sum = add_words(data, bytes, sum);
    put16(field, ~((sum & 0xffff) + (sum >> 16)));
}

/* One part of a longer segment: [at, at + part) of its payload, behind headers of its own. */
static int put_part(struct ix_wire *w, const uint8_t *packet, size_t ip_bytes, size_t tcp_bytes,
                    size_t at, size_t part, bool last)
{
    uint8_t whole[MTU], *tcp = whole + ip_bytes;
    size_t headers = ip_bytes + tcp_bytes, l4_bytes = tcp_bytes + part;
    bool v4 = packet[0] >> 4 == 4;
    memcpy(whole, packet, headers);
    memcpy(whole + headers, packet + headers + at, part);
    put16(whole + (v4 ? 2 : 4), (uint32_t)(v4 ? headers + part : l4_bytes));
    if (v4)
        checksum(whole, ip_bytes, whole + 10, 0);
    uint32_t seq = get32(tcp + 4) + (uint32_t)at;
    put16(tcp + 4, seq >> 16);
    put16(tcp + 6, seq & 0xffff);
    if (!last)
        tcp[13] &= (uint8_t) ~(TH_FIN | TH_PUSH);
    uint32_t pseudo = add_words(whole + (v4 ? 12 : 8), v4 ? 8 : 32, IPPROTO_TCP);
    pseudo += (uint32_t)l4_bytes;
    checksum(tcp, l4_bytes, tcp + 16, pseudo);
    return put_one(w, whole, headers + part);
}

/* A TCP segment longer than the MTU, as a NIC's receive offload makes them and scripts have them.
 * It arrives as the segments that it must have been. */
static int put_long(struct ix_wire *w, const uint8_t *packet, size_t bytes)
{
    bool v4 = packet[0] >> 4 == 4;
    size_t ip_bytes = v4 ? (size_t)(packet[0] & 15) * 4 : 40;
    if ((v4 ? packet[9] : packet[6]) != IPPROTO_TCP)
        return put_one(w, packet, bytes);
    size_t tcp_bytes = (size_t)(packet[ip_bytes + 12] >> 4) * 4, headers = ip_bytes + tcp_bytes;
    if (ip_bytes < 20 || tcp_bytes < 20 || headers >= MTU)
        return -EINVAL;
    size_t payload = bytes - headers, most = MTU - headers;
    for (size_t at = 0; at < payload; at += most) {
        size_t left = payload - at, part = left < most ? left : most;
        int err = put_part(w, packet, ip_bytes, tcp_bytes, at, part, part == left);
        if (err)
            return err;
    }
    return 0;
}

int ix_wire_put(struct ix_wire *w, const void *packet, size_t bytes)
{
    uint8_t version = bytes ? *(const uint8_t *)packet >> 4 : 0;
    if (version != 4 && version != 6)
        return -EINVAL;
    return bytes > MTU ? put_long(w, packet, bytes) : put_one(w, packet, bytes);
}

size_t ix_wire_take(struct ix_wire *w, void *packet, size_t max, uint64_t *now_ns)
{
    struct sent *sent = w->first;
    if (!sent)
        return 0;
    w->first = sent->next;
    if (!w->first)
        w->last = &w->first;
    size_t bytes = sent->bytes < max ? sent->bytes : max;
    memcpy(packet, sent->packet, bytes);
    *now_ns = sent->now_ns;
    free(sent);
    return bytes;
}

void ix_wire_set_now(struct ix_wire *w, uint64_t now_ns)
{
    w->now_ns = now_ns;
}
