/* Two shards in one process, each on AF_XDP rings in plain memory; who includes this is the kernel
 * between them. For programs whose instructions are counted. */
#ifndef IX_BENCH_PAIR_H
#define IX_BENCH_PAIR_H

#include "api/api.h"
#include "api/config.h"
#include "link/xsk.h"

#include <stdlib.h>
#include <string.h>

enum { FRAME_SHIFT = 11, RING = 2048, HEADROOM = 256 };

struct side {
    struct ix_xsk xsk;
    uint32_t index[4][2], flags[4]; /* RX, TX, FILL, COMPLETION */
    uint32_t fill_taken, tx_taken, rx_put, completion_put; /* the kernel's own indices */
    struct ix_config cfg;
    struct ix_shard *shard;
    struct ix_io *io;
};

static void *take(size_t bytes)
{
    void *memory = aligned_alloc(1 << 12, (bytes + 4095) & ~4095ul);
    if (!memory)
        abort();
    return memset(memory, 0, bytes);
}

static int no_kick(void *ctx, uint32_t what)
{
    (void)ctx;
    (void)what;
    return 0;
}

static struct ix_xsk_ring ring(struct side *s, int i, size_t entry_bytes)
{
    return (struct ix_xsk_ring){
        .producer = &s->index[i][0],
        .consumer = &s->index[i][1],
        .flags = &s->flags[i],
        .entries = take(RING * entry_bytes),
        .mask = RING - 1,
    };
}

/* Moves what `from` put on TX into frames that `to` put on FILL, and completes it. */
static void carry(struct side *from, struct side *to)
{
    const struct ix_desc *tx = from->xsk.tx.entries;
    const uint64_t *fill = to->xsk.fill.entries;
    struct ix_desc *rx = to->xsk.rx.entries;
    uint64_t *completion = from->xsk.completion.entries;
    while (from->tx_taken != *from->xsk.tx.producer) {
        const struct ix_desc *d = &tx[from->tx_taken++ & (RING - 1)];
        if (to->fill_taken == *to->xsk.fill.producer)
            abort();
        uint64_t addr = fill[to->fill_taken++ & (RING - 1)] + HEADROOM;
        memcpy(to->xsk.link.umem + addr, from->xsk.link.umem + d->addr, d->len);
        rx[to->rx_put++ & (RING - 1)] = (struct ix_desc){.addr = addr, .len = d->len};
        completion[from->completion_put++ & (RING - 1)] = d->addr;
    }
    *from->xsk.tx.consumer = from->tx_taken;
    *to->xsk.fill.consumer = to->fill_taken;
    *to->xsk.rx.producer = to->rx_put;
    *from->xsk.completion.producer = from->completion_put;
}

static void tell(struct side *s, struct ix_ctl_msg message)
{
    message.family = 4;
    if (ix_ctl_send(s->shard, &message))
        abort();
}

/* 10.0.0.SELF, whose peer is 10.0.0.OTHER. cfg: what is not the same for all. */
static void make(struct side *s, uint8_t self, uint8_t other, const struct ix_config *cfg)
{
    struct ix_xsk *x = &s->xsk;
    uint64_t bytes = (uint64_t)(cfg->pool_frames + cfg->arena_frames) << FRAME_SHIFT;
    x->link = (struct ix_link){
        .umem = take(bytes), .umem_bytes = bytes, .frame_shift = FRAME_SHIFT,
        .rx_headroom = HEADROOM,
    };
    x->rx = ring(s, 0, sizeof(struct ix_desc));
    x->tx = ring(s, 1, sizeof(struct ix_desc));
    x->fill = ring(s, 2, sizeof(uint64_t));
    x->completion = ring(s, 3, sizeof(uint64_t));
    x->kick = no_kick;
    x->mode = IX_XSK_MODE_NEED_WAKEUP;
    ix_xsk_init(x);
    s->cfg = *cfg;
    s->cfg.secret[0] = self;
    s->cfg.shard_count = 1;
    s->cfg.mac[0] = 2;
    s->cfg.mac[5] = self;
    size_t shard_bytes = ix_shard_bytes(&s->cfg);
    s->shard = ix_shard_create(take(shard_bytes), shard_bytes, &s->cfg, &x->link, NULL);
    if (!s->shard)
        abort();
    s->io = ix_shard_io(s->shard);
    tell(s, (struct ix_ctl_msg){.type = IX_CTL_ADDR_ADD, .ip = {10, 0, 0, self}});
    tell(s, (struct ix_ctl_msg){.type = IX_CTL_ROUTE_SET, .ip = {10}, .prefix = 24,
                                .source = {10, 0, 0, self}});
    tell(s, (struct ix_ctl_msg){.type = IX_CTL_NEIGH_SET, .ip = {10, 0, 0, other},
                                .mac = {2, 0, 0, 0, 0, other}});
    tell(s, (struct ix_ctl_msg){.type = IX_CTL_LINK, .value = 1});
    ix_shard_poll(s->shard, cfg->now_ns); /* frames for FILL */
}

#endif
