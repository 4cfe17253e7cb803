/* What bench/gate_cost.py counts instructions of: an echo server's shard, polled directly or
 * through the gate.
 *
 *     gate_cost inline|dune lent|arena ROUNDS
 *
 * Two shards in this process (bench/pair.h), 64 connections, one message of 64 bytes outstanding on
 * each: so every round is one batch of 64 for the server: a cycle that takes it, the echo's calls,
 * and the cycle that answers.
 * lent: what was received is sent from where it lies; arena: the answer lies in the send arena,
 * which the dune placement gathers. The cycles to be counted are those inside of measured_*().
 */
#include "bench/pair.h"
#include "gate/gate.h"
#include "native/app.h"

#include <stdio.h>

enum {
    MESSAGES = 64,
    MESSAGE_BYTES = 64,
    PORT = 7,
    STEP_NS = 20000,
};

struct end {
    struct side side;
    uint64_t handle[MESSAGES]; /* of its connections */
    uint64_t lent[MESSAGES];   /* address of the frame that each holds, 0: none */
    uint32_t open, got;
};

static struct end client, server;
static struct ix_gate gate;
static uint64_t now_ns = 1000000000, tick;
static bool by_gate, from_arena;
static uint64_t polls;

__attribute__((noinline)) static int measured_inline(void)
{
    return ix_shard_poll(server.side.shard, now_ns);
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

static struct ix_call *call(struct end *s, uint8_t op, uint64_t handle)
{
    if (s->side.io->n_calls == s->side.io->max_calls)
        abort();
    struct ix_call *c = &s->side.io->calls[s->side.io->n_calls++];
    *c = (struct ix_call){.op = op, .handle = handle};
    return c;
}

static uint64_t arena_at(const struct end *s, uint32_t i)
{
    return ((uint64_t)(s->side.io->arena_frame + i) << FRAME_SHIFT) + s->side.io->tx_headroom;
}

static void send(struct end *s, uint32_t i, uint64_t addr)
{
    struct ix_call *c = call(s, IX_CALL_SENDV, s->handle[i]);
    c->addr = addr;
    c->bytes = MESSAGE_BYTES;
}

static void give_back(struct end *s, uint32_t i)
{
    struct ix_call *c = call(s, IX_CALL_RECV_DONE, s->handle[i]);
    c->addr = s->lent[i];
    c->bytes = MESSAGE_BYTES;
    s->lent[i] = 0;
}

static void serve(struct end *s, int n)
{
    for (int i = 0; i < n; i++) {
        const struct ix_event *e = &s->side.io->events[i];
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

static void use(struct end *s, int n)
{
    for (int i = 0; i < n; i++) {
        const struct ix_event *e = &s->side.io->events[i];
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
    use(&client, ix_shard_poll(client.side.shard, now_ns));
    carry(&client.side, &server.side);
    serve(&server, poll_server());
    carry(&server.side, &client.side);
}

static void connect_all(void)
{
    if (ix_shard_listen(server.side.shard, NULL, 4, PORT, 0, MESSAGES))
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
    const struct ix_config cfg = {
        .now_ns = now_ns, .max_flows = 1024, .pool_frames = 2048, .arena_frames = 512,
        .mtu = 1500, .port_lo = 20000, .port_hi = 40000, .sg_inplace = !by_gate,
    };
    make(&server.side, 1, 2, &cfg);
    make(&client.side, 2, 1, &cfg);
    gate = (struct ix_gate){
        .ticks = &tick, .shard_count = 1, .entry = {{.shard = server.side.shard}}};
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
