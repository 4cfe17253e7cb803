/* What bench/gate_cost.py counts instructions of: an echo server's shard, polled directly or
 * through the gate.
 *
 *     gate_cost inline|dune lent|arena ROUNDS
 *
 * Two shards in this process, each on AF_XDP rings in plain memory; this program is the kernel
 * between them. 64 connections, one message of 64 bytes outstanding on each, so every round is one
 * batch of 64 for the server: a cycle that takes it, the echo's calls, and the cycle that answers.
 * lent: what was received is sent from where it lies; arena: the answer lies in the send arena,
 * which the dune placement gathers. The cycles to be counted are those inside of measured_*().
 */
#include "api/config.h"
#include "gate/gate.h"
#include "link/xsk.h"
#include "native/app.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    MESSAGES = 64,
    MESSAGE_BYTES = 64,
    FRAME_SHIFT = 11,
    POOL_FRAMES = 2048,
    ARENA_FRAMES = 512,
    RING = 2048,
    HEADROOM = 256,
    PORT = 7,
    STEP_NS = 20000,
};

struct side {
    struct ix_xsk xsk;
    uint32_t index[4][2], flags[4]; /* RX, TX, FILL, COMPLETION */
    uint32_t fill_taken, tx_taken, rx_put, completion_put; /* the kernel's own indices */
    struct ix_config cfg;
    struct ix_shard *shard;
    struct ix_io *io;
    uint64_t handle[MESSAGES]; /* of its connections */
    uint64_t lent[MESSAGES];   /* address of the frame that each holds, 0: none */
    uint32_t open, got;
};

static struct side client, server;
static struct ix_gate gate;
static uint64_t now_ns = 1000000000, tick;
static bool by_gate, from_arena;
static uint64_t polls;

static void *take(size_t bytes)
{
    void *memory = aligned_alloc(1 << 12, (bytes + 4095) & ~4095ul);
    if (!memory)
        abort();
    return memset(memory, 0, bytes);
}

/* ---- the kernel ----------------------------------------------------------------------- */

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

/* ---- the shards ------------------------------------------------------------------------- */

static void tell(struct side *s, struct ix_ctl_msg message)
{
    message.family = 4;
    if (ix_ctl_send(s->shard, &message))
        abort();
}

static void make(struct side *s, uint8_t self, uint8_t other)
{
    struct ix_xsk *x = &s->xsk;
    uint64_t bytes = (uint64_t)(POOL_FRAMES + ARENA_FRAMES) << FRAME_SHIFT;
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
    s->cfg = (struct ix_config){
        .now_ns = now_ns, .secret = {self}, .shard_count = 1, .max_flows = 1024,
        .pool_frames = POOL_FRAMES, .arena_frames = ARENA_FRAMES, .mtu = 1500, .port_lo = 20000,
        .port_hi = 40000, .mac = {2, 0, 0, 0, 0, self}, .sg_inplace = !by_gate,
    };
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
    ix_shard_poll(s->shard, now_ns); /* frames for FILL */
}

__attribute__((noinline)) static int measured_inline(void)
{
    return ix_shard_poll(server.shard, now_ns);
}

/* As libdune hands it over: the arguments lie on ring 0's stack. */
__attribute__((noinline)) static int measured_dune(void)
{
    const uint64_t arg[5] = {0};
    return (int)ix_gate_call(&gate, IX_GATE_POLL, arg);
}

static int poll_server(void)
{
    polls++;
    return by_gate ? measured_dune() : measured_inline();
}

/* ---- the applications ---------------------------------------------------------------------- */

static struct ix_call *call(struct side *s, uint8_t op, uint64_t handle)
{
    if (s->io->n_calls == s->io->max_calls)
        abort();
    struct ix_call *c = &s->io->calls[s->io->n_calls++];
    *c = (struct ix_call){.op = op, .handle = handle};
    return c;
}

static uint64_t arena_at(const struct side *s, uint32_t i)
{
    return ((uint64_t)(s->io->arena_frame + i) << FRAME_SHIFT) + s->io->tx_headroom;
}

static void send(struct side *s, uint32_t i, uint64_t addr)
{
    struct ix_call *c = call(s, IX_CALL_SENDV, s->handle[i]);
    c->addr = addr;
    c->bytes = MESSAGE_BYTES;
}

static void give_back(struct side *s, uint32_t i)
{
    struct ix_call *c = call(s, IX_CALL_RECV_DONE, s->handle[i]);
    c->addr = s->lent[i];
    c->bytes = MESSAGE_BYTES;
    s->lent[i] = 0;
}

static void serve(struct side *s, int n)
{
    for (int i = 0; i < n; i++) {
        const struct ix_event *e = &s->io->events[i];
        uint32_t conn = (uint32_t)e->cookie;
        if (e->type == IX_EV_KNOCK) {
            s->handle[s->open] = e->handle;
            call(s, IX_CALL_ACCEPT, e->handle)->cookie = s->open++;
        } else if (e->type == IX_EV_RECV) {
            s->lent[conn] = ((uint64_t)e->frame << FRAME_SHIFT) + e->offset;
            send(s, conn, from_arena ? arena_at(s, conn) : s->lent[conn]);
            s->got++;
            if (from_arena)
                give_back(s, conn);
        } else if (e->type == IX_EV_SENT && !from_arena) {
            give_back(s, conn);
        }
    }
}

static void use(struct side *s, int n)
{
    for (int i = 0; i < n; i++) {
        const struct ix_event *e = &s->io->events[i];
        uint32_t conn = (uint32_t)e->cookie;
        if (e->type == IX_EV_CONNECTED) {
            s->handle[conn] = e->handle;
            s->open++;
        } else if (e->type == IX_EV_RECV) {
            s->lent[conn] = ((uint64_t)e->frame << FRAME_SHIFT) + e->offset;
            give_back(s, conn);
            s->got++;
        }
    }
}

/* A turn of everything. */
static void turn(void)
{
    now_ns += STEP_NS;
    tick = now_ns;
    use(&client, ix_shard_poll(client.shard, now_ns));
    carry(&client, &server);
    serve(&server, poll_server());
    carry(&server, &client);
}

static void connect_all(void)
{
    if (ix_shard_listen(server.shard, NULL, 4, PORT, 0, MESSAGES))
        abort();
    for (uint32_t i = 0; i < MESSAGES; i++) {
        struct ix_call *c = call(&client, IX_CALL_CONNECT, 0);
        c->family = 4;
        c->cookie = i;
        c->peer_port = PORT;
        memcpy(c->peer, (uint8_t[]){10, 0, 0, 1}, 4);
    }
    for (uint32_t i = 0; i < 1000 && (client.open < MESSAGES || server.open < MESSAGES); i++)
        turn();
    if (client.open != MESSAGES || server.open != MESSAGES)
        abort();
}

int main(int argc, char **argv)
{
    if (argc != 4)
        return 2;
    by_gate = !strcmp(argv[1], "dune");
    from_arena = !strcmp(argv[2], "arena");
    uint32_t rounds = (uint32_t)atoi(argv[3]);
    make(&server, 1, 2);
    make(&client, 2, 1);
    gate = (struct ix_gate){.ticks = &tick, .shard_count = 1, .entry = {{.shard = server.shard}}};
    ix_gate_set_clock(&gate, 0, 0, 1ull << 32);
    connect_all();
    uint32_t before = server.got;
    for (uint32_t round = 1; round <= rounds; round++) {
        for (uint32_t i = 0; i < MESSAGES; i++)
            send(&client, i, arena_at(&client, i));
        for (int i = 0; i < 100 && client.got < round * MESSAGES; i++)
            turn();
        if (client.got != round * MESSAGES)
            abort();
    }
    printf("%u %lu\n", server.got - before, polls);
    return 0;
}
