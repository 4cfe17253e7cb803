/* What the steering program steers: sockets, claims, addresses and ranges (loader.h). */
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include <arpa/inet.h>
#include <linux/bpf.h>

#include <bpf/bpf.h>

#include "handle.h"

static int add_key(int map_fd, const void *key)
{
    const __u32 present = 1;

    return bpf_map_update_elem(map_fd, key, &present, BPF_NOEXIST) ? -errno : 0;
}

static int del_key(int map_fd, const void *key)
{
    return bpf_map_delete_elem(map_fd, key) ? -errno : 0;
}

/* The program reads the table as this writes it: whole bytes and words, in this order. */
static void set_wants(uint8_t *wants, uint8_t bit, bool on)
{
    __atomic_store_n(wants, (uint8_t)(on ? *wants | bit : *wants & ~bit), __ATOMIC_RELEASE);
}

static void add_to(__u32 *count, int change)
{
    __atomic_store_n(count, *count + (__u32)change, __ATOMIC_RELEASE);
}

int ix_steer_set_socket(struct ix_steer *steer, uint32_t queue, int fd)
{
    const __u32 value = (__u32)fd;

    if (fd < 0)
        return bpf_map_delete_elem(steer->xsks_fd, &queue) ? -errno : 0;
    return bpf_map_update_elem(steer->xsks_fd, &queue, &value, BPF_ANY) ? -errno : 0;
}

static bool valid_family(uint8_t family)
{
    return family == IX_STEER_IPV4 || family == IX_STEER_IPV6;
}

static int make_flow(struct ix_steer_flow *flow, uint8_t family, uint8_t proto,
                     const uint8_t *addr, uint16_t port)
{
    if (!valid_family(family) || (proto != IPPROTO_TCP && proto != IPPROTO_UDP) || !port)
        return -EINVAL;
    *flow = (struct ix_steer_flow){.family = family, .proto = proto, .port = htons(port)};
    memcpy(flow->addr, addr, sizeof flow->addr);
    return 0;
}

static bool is_everywhere(const struct ix_steer_flow *flow)
{
    static const __u8 every[sizeof flow->addr];

    return memcmp(flow->addr, every, sizeof every) == 0;
}

static int claim_everywhere(struct ix_steer *s, const struct ix_steer_flow *flow, bool on)
{
    uint8_t *wants = &s->table->wants[ix_steer_kind(flow->family, flow->proto)][flow->port];

    if (on == !!(*wants & IX_STEER_WANT_EVERYWHERE))
        return on ? -EEXIST : -ENOENT;
    set_wants(wants, IX_STEER_WANT_EVERYWHERE, on);
    return 0;
}

/* The bit is set for as long as an entry may be found: before the first and after the last. */
static int claim_at(struct ix_steer *s, const struct ix_steer_flow *flow, bool on)
{
    __u32 kind = ix_steer_kind(flow->family, flow->proto);
    uint8_t *wants = &s->table->wants[kind][flow->port];
    uint16_t *n = &s->claims[kind][flow->port];
    int e;

    if (on)
        set_wants(wants, IX_STEER_WANT_SOMEWHERE, true);
    e = on ? add_key(s->claims_fd, flow) : del_key(s->claims_fd, flow);
    if (!e)
        *n = (uint16_t)(on ? *n + 1 : *n - 1);
    set_wants(wants, IX_STEER_WANT_SOMEWHERE, *n > 0);
    return e;
}

static int claim(struct ix_steer *s, const struct ix_steer_flow *flow, bool on)
{
    return is_everywhere(flow) ? claim_everywhere(s, flow, on) : claim_at(s, flow, on);
}

int ix_steer_add_claim(struct ix_steer *steer, uint8_t family, uint8_t proto, const uint8_t *addr,
                       uint16_t port)
{
    struct ix_steer_flow flow;
    int e = make_flow(&flow, family, proto, addr, port);

    return e ? e : claim(steer, &flow, true);
}

int ix_steer_del_claim(struct ix_steer *steer, uint8_t family, uint8_t proto, const uint8_t *addr,
                       uint16_t port)
{
    struct ix_steer_flow flow;
    int e = make_flow(&flow, family, proto, addr, port);

    return e ? e : claim(steer, &flow, false);
}

static int make_addr(struct ix_steer_addr *key, uint8_t family, const uint8_t *addr)
{
    if (!valid_family(family))
        return -EINVAL;
    *key = (struct ix_steer_addr){.family = family};
    memcpy(key->addr, addr, sizeof key->addr);
    return 0;
}

static struct ix_steer_addr *find_near(const struct ix_steer *s, const struct ix_steer_addr *addr)
{
    for (int i = 0; i < IX_STEER_NEAR; i++)
        if (memcmp(&s->table->near[i], addr, sizeof *addr) == 0)
            return &s->table->near[i];
    return NULL;
}

static struct ix_steer_addr *free_near(const struct ix_steer *s)
{
    for (int i = 0; i < IX_STEER_NEAR; i++)
        if (!s->table->near[i].family)
            return &s->table->near[i];
    return NULL;
}

int ix_steer_add_local_addr(struct ix_steer *steer, uint8_t family, const uint8_t *addr)
{
    struct ix_steer_addr key, *near;
    int e = make_addr(&key, family, addr);

    if (!e)
        e = add_key(steer->local_addrs_fd, &key);
    if (e)
        return e;
    near = free_near(steer);
    if (near) {
        memcpy(near->addr, key.addr, sizeof near->addr);
        __atomic_store_n(&near->family, key.family, __ATOMIC_RELEASE);
    } else {
        add_to(&steer->table->far, 1);
    }
    return 0;
}

int ix_steer_del_local_addr(struct ix_steer *steer, uint8_t family, const uint8_t *addr)
{
    struct ix_steer_addr key, *near;
    int e = make_addr(&key, family, addr);

    if (!e)
        e = del_key(steer->local_addrs_fd, &key);
    if (e)
        return e;
    near = find_near(steer, &key);
    if (near)
        __atomic_store_n(&near->family, 0, __ATOMIC_RELEASE);
    else
        add_to(&steer->table->far, -1);
    return 0;
}

static int own_addr(struct ix_steer *s, uint8_t family, const uint8_t *addr, bool on)
{
    struct ix_steer_addr key;
    int e = make_addr(&key, family, addr);

    if (!e)
        e = on ? add_key(s->own_addrs_fd, &key) : del_key(s->own_addrs_fd, &key);
    if (!e)
        add_to(&s->table->own_addrs, on ? 1 : -1);
    return e;
}

int ix_steer_add_own_addr(struct ix_steer *steer, uint8_t family, const uint8_t *addr)
{
    return own_addr(steer, family, addr, true);
}

int ix_steer_del_own_addr(struct ix_steer *steer, uint8_t family, const uint8_t *addr)
{
    return own_addr(steer, family, addr, false);
}

/* ---- ranges ---------------------------------------------------------------------------- */

static int read_range(const struct ix_steer *s, uint32_t i, struct ix_steer_range *out)
{
    return bpf_map_lookup_elem(s->ranges_fd, &i, out) ? -errno : 0;
}

static int write_range(struct ix_steer *s, uint32_t i, struct ix_steer_range *range, uint32_t state)
{
    range->state = state;
    return bpf_map_update_elem(s->ranges_fd, &i, range, BPF_ANY) ? -errno : 0;
}

static bool same_range(const struct ix_steer_range *a, const struct ix_steer_range *b)
{
    return a->family == b->family && a->proto == b->proto && a->lo == b->lo && a->hi == b->hi &&
           memcmp(a->addr, b->addr, sizeof a->addr) == 0;
}

static int make_range(struct ix_steer_range *range, uint8_t family, uint8_t proto,
                      const uint8_t *addr, uint16_t lo, uint16_t hi)
{
    if (!valid_family(family) || (proto != IPPROTO_TCP && proto != IPPROTO_UDP) || !lo || lo > hi)
        return -EINVAL;
    *range = (struct ix_steer_range){.family = family, .proto = proto, .lo = lo, .hi = hi};
    memcpy(range->addr, addr, sizeof range->addr);
    return 0;
}

/* The first entry that isn't LIVE, or the one equal to `range` (*found). -ENOSPC. */
static int find_range(const struct ix_steer *s, const struct ix_steer_range *range, bool *found)
{
    int room = -ENOSPC;

    *found = false;
    for (uint32_t i = 0; i < IX_STEER_MAX_RANGES; i++) {
        struct ix_steer_range at;
        int e = read_range(s, i, &at);

        if (e)
            return e;
        if (at.state == IX_STEER_RANGE_LIVE && same_range(&at, range)) {
            *found = true;
            return (int)i;
        }
        if (at.state != IX_STEER_RANGE_LIVE && room < 0)
            room = (int)i;
        if (at.state == IX_STEER_RANGE_END)
            break;
    }
    return room;
}

static bool is_in_a_range(const struct ix_steer_range *ranges, int n, uint32_t kind, uint32_t port)
{
    for (int i = 0; i < n; i++)
        if (ix_steer_kind(ranges[i].family, ranges[i].proto) == kind && port >= ranges[i].lo &&
            port <= ranges[i].hi)
            return true;
    return false;
}

/* After a range of this kind came or went. */
static int follow_ranges(struct ix_steer *s, uint32_t kind)
{
    struct ix_steer_range live[IX_STEER_MAX_RANGES];
    int n = 0;

    for (uint32_t i = 0; i < IX_STEER_MAX_RANGES; i++) {
        int e = read_range(s, i, &live[n]);

        if (e)
            return e;
        n += live[n].state == IX_STEER_RANGE_LIVE;
    }
    for (uint32_t port = 0; port < 65536; port++)
        set_wants(&s->table->wants[kind][htons((uint16_t)port)], IX_STEER_WANT_RANGE,
                  is_in_a_range(live, n, kind, port));
    return 0;
}

static int set_range(struct ix_steer *s, uint8_t family, uint8_t proto, const uint8_t *addr,
                     uint16_t lo, uint16_t hi, bool on)
{
    struct ix_steer_range range;
    bool found;
    int i, e = make_range(&range, family, proto, addr, lo, hi);

    if (e)
        return e;
    i = find_range(s, &range, &found);
    if (i < 0 && i != -ENOSPC)
        return i;
    if (found == on)
        return on ? -EEXIST : -ENOENT;
    if (i < 0)
        return i;
    e = write_range(s, (uint32_t)i, &range, IX_STEER_RANGE_FREE);
    if (!e && on)
        e = write_range(s, (uint32_t)i, &range, IX_STEER_RANGE_LIVE);
    return e ? e : follow_ranges(s, ix_steer_kind(family, proto));
}

int ix_steer_add_range(struct ix_steer *steer, uint8_t family, uint8_t proto, const uint8_t *addr,
                       uint16_t lo, uint16_t hi)
{
    return set_range(steer, family, proto, addr, lo, hi, true);
}

int ix_steer_del_range(struct ix_steer *steer, uint8_t family, uint8_t proto, const uint8_t *addr,
                       uint16_t lo, uint16_t hi)
{
    return set_range(steer, family, proto, addr, lo, hi, false);
}
