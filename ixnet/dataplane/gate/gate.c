/* See gate.h. */
#include "gate/gate.h"

#include "api/api.h"

enum { CLOCK_TRIES = 64, ENOSYS = 38 };

static uint64_t ticks(const struct ix_gate *gate)
{
    return gate->ticks ? *gate->ticks : __builtin_ia32_rdtsc();
}

void ix_gate_set_clock(struct ix_gate *gate, uint64_t tick, uint64_t ns, uint64_t rate)
{
    struct ix_gate_clock *c = &gate->clock;
    uint32_t sequence = c->sequence;
    __atomic_store_n(&c->sequence, sequence + 1, __ATOMIC_RELAXED);
    /* Release fences: a reader that sees any of the new words sees the odd number too, and one that
     * sees the next even number sees all of them. */
    __atomic_thread_fence(__ATOMIC_RELEASE);
    __atomic_store_n(&c->tick, tick, __ATOMIC_RELAXED);
    __atomic_store_n(&c->ns, ns, __ATOMIC_RELAXED);
    __atomic_store_n(&c->rate, rate, __ATOMIC_RELAXED);
    __atomic_store_n(&c->sequence, sequence + 2, __ATOMIC_RELEASE);
}

/* False while the writer is at it. */
static bool read_clock(const struct ix_gate_clock *c, struct ix_gate_clock *out)
{
    uint32_t before = __atomic_load_n(&c->sequence, __ATOMIC_ACQUIRE);
    out->tick = __atomic_load_n(&c->tick, __ATOMIC_RELAXED);
    out->ns = __atomic_load_n(&c->ns, __ATOMIC_RELAXED);
    out->rate = __atomic_load_n(&c->rate, __ATOMIC_RELAXED);
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    return !(before & 1) && __atomic_load_n(&c->sequence, __ATOMIC_RELAXED) == before;
}

uint64_t ix_gate_now(struct ix_gate *gate)
{
    struct ix_gate_clock c;
    bool whole = false;
    /* The writer may have been taken off its core: then time stands still for this call. */
    for (uint32_t i = 0; i < CLOCK_TRIES && !whole; i++)
        whole = read_clock(&gate->clock, &c);
    if (whole) {
        int64_t since = (int64_t)(ticks(gate) - c.tick);
        uint64_t now_ns = c.ns;
        if (since > 0)
            now_ns += (uint64_t)((unsigned __int128)(uint64_t)since * c.rate >> 32);
        gate->now_ns = IX_MAX(gate->now_ns, now_ns);
    }
    return gate->now_ns;
}

struct endpoint {
    uint8_t ip[16];
    uint16_t port;
    uint8_t family;
    uint32_t backlog;
};

/* ADDRESS of api/gate.h. */
static bool take_endpoint(const uint64_t arg[5], struct endpoint *out)
{
    __builtin_memcpy(out->ip, &arg[1], 16);
    out->port = (uint16_t)arg[3];
    out->family = (uint8_t)(arg[3] >> 16);
    out->backlog = (uint32_t)(arg[3] >> 32);
    return !(arg[3] >> 24 & 0xff);
}

static long may_sleep_ns(struct ix_gate *gate, struct ix_shard *shard)
{
    uint64_t now_ns = ix_gate_now(gate);
    uint64_t deadline_ns = ix_shard_next_deadline(shard, now_ns);
    uint64_t left_ns = deadline_ns > now_ns ? deadline_ns - now_ns : 0;
    return (long)IX_MIN(left_ns, (uint64_t)INT64_MAX);
}

static long listen(struct ix_shard *shard, const uint64_t arg[5])
{
    struct endpoint e;
    if (!take_endpoint(arg, &e))
        return -IX_EINVAL;
    return ix_shard_listen(shard, e.ip, e.family, e.port, arg[4], e.backlog);
}

static long listen_option(struct ix_shard *shard, const uint64_t arg[5])
{
    struct endpoint e;
    if (!take_endpoint(arg, &e))
        return -IX_EINVAL;
    return ix_shard_listen_option(shard, e.ip, e.family, e.port, e.backlog, arg[4]);
}

static long unlisten(struct ix_shard *shard, const uint64_t arg[5])
{
    struct endpoint e;
    if (!take_endpoint(arg, &e))
        return -IX_EINVAL;
    return ix_shard_unlisten(shard, e.ip, e.family, e.port);
}

static long udp_bind(struct ix_shard *shard, const uint64_t arg[5])
{
    struct endpoint e;
    uint64_t handle = 0;
    if (!take_endpoint(arg, &e))
        return -IX_EINVAL;
    int err = ix_shard_udp_bind(shard, e.ip, e.family, e.port, arg[4], &handle);
    return err ? err : (long)handle;
}

static long call_shard(struct ix_gate *gate, struct ix_shard *shard, uint64_t n,
                       const uint64_t arg[5])
{
    switch (n) {
    case IX_GATE_POLL:
        return ix_shard_poll(shard, ix_gate_now(gate));
    case IX_GATE_MAY_SLEEP_NS:
        return may_sleep_ns(gate, shard);
    case IX_GATE_LISTEN:
        return listen(shard, arg);
    case IX_GATE_LISTEN_OPTION:
        return listen_option(shard, arg);
    case IX_GATE_UNLISTEN:
        return unlisten(shard, arg);
    case IX_GATE_UDP_BIND:
        return udp_bind(shard, arg);
    case IX_GATE_UDP_UNBIND:
        return ix_shard_udp_unbind(shard, arg[1]);
    case IX_GATE_STATS:
        (void)ix_shard_stats(shard);
        return 0;
    default:
        return -ENOSYS;
    }
}

long ix_gate_call(struct ix_gate *gate, uint64_t n, const uint64_t arg[5])
{
    long result = -IX_ENOENT;
    gate->calls++;
    if (arg[0] < gate->shard_count && arg[0] < IX_GATE_SHARDS)
        result = call_shard(gate, gate->entry[arg[0]].shard, n, arg);
    gate->refused += result < 0;
    return result;
}
