/* See gateops.h. */
#include "native/gateops.h"

#include "api/gate.h"
#include "libdune_shim/dune.h"

#include <string.h>

_Static_assert((int)IX_GATE_SHARDS <= (int)DUNE_MODULE_FDS, "a socket for each shard");

/* As dune_module_call(); libixnet.so does without libdune.so. */
static long gate(const struct ix_app *app, uint64_t n, uint64_t a1, uint64_t a2, uint64_t a3,
                 uint64_t a4)
{
    register uint64_t r10 __asm__("r10") = a3, r8 __asm__("r8") = a4;
    long result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "0"(DUNE_CALL_MODULE + n), "D"((uint64_t)app->gate_shard), "S"(a1), "d"(a2),
                       "r"(r10), "r"(r8)
                     : "rcx", "r11", "memory");
    return result;
}

/* Calls with ADDRESS (api/gate.h). */
static long gate_address(const struct ix_app *app, uint64_t n, const uint8_t *ip, uint8_t family,
                         uint16_t port, uint64_t cookie, uint32_t backlog)
{
    uint64_t words[2];
    memcpy(words, ip, sizeof words);
    return gate(app, n, words[0], words[1],
                port | (uint32_t)family << 16 | (uint64_t)backlog << 32, cookie);
}

static int gate_poll(struct ix_app *app, uint64_t now_ns)
{
    (void)now_ns;
    return (int)gate(app, IX_GATE_POLL, 0, 0, 0, 0);
}

static uint64_t gate_may_sleep_ns(struct ix_app *app, uint64_t now_ns)
{
    (void)now_ns;
    long left_ns = gate(app, IX_GATE_MAY_SLEEP_NS, 0, 0, 0, 0);
    if (left_ns < 0)
        return 0;
    return left_ns == INT64_MAX ? UINT64_MAX : (uint64_t)left_ns;
}

static int gate_listen(struct ix_app *app, const uint8_t *ip, uint8_t family, uint16_t port,
                       uint64_t cookie, uint32_t backlog)
{
    return (int)gate_address(app, IX_GATE_LISTEN, ip, family, port, cookie, backlog);
}

static int gate_listen_option(struct ix_app *app, const uint8_t *ip, uint8_t family, uint16_t port,
                              uint32_t option, uint64_t value)
{
    return (int)gate_address(app, IX_GATE_LISTEN_OPTION, ip, family, port, value, option);
}

static int gate_unlisten(struct ix_app *app, const uint8_t *ip, uint8_t family, uint16_t port)
{
    return (int)gate_address(app, IX_GATE_UNLISTEN, ip, family, port, 0, 0);
}

static int gate_udp_bind(struct ix_app *app, const uint8_t *ip, uint8_t family, uint16_t port,
                         uint64_t cookie, uint64_t *handle)
{
    long result = gate_address(app, IX_GATE_UDP_BIND, ip, family, port, cookie, 0);
    if (result < 0)
        return (int)result;
    *handle = (uint64_t)result;
    return 0;
}

static int gate_udp_unbind(struct ix_app *app, uint64_t handle)
{
    return (int)gate(app, IX_GATE_UDP_UNBIND, handle, 0, 0, 0);
}

static const struct ix_stats *gate_stats(struct ix_app *app)
{
    (void)gate(app, IX_GATE_STATS, 0, 0, 0, 0);
    return app->stats;
}

const struct ix_app_ops *ix_app_gate_ops(void)
{
    static const struct ix_app_ops ops = {
        .poll = gate_poll,
        .may_sleep_ns = gate_may_sleep_ns,
        .listen = gate_listen,
        .listen_option = gate_listen_option,
        .unlisten = gate_unlisten,
        .udp_bind = gate_udp_bind,
        .udp_unbind = gate_udp_unbind,
        .stats = gate_stats,
    };
    return &ops;
}
