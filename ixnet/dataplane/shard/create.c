/* A shard's memory: sizes, layout, creation. Nothing is allocated afterwards. */
#include "shard/shard.h"

enum { PAGE_BYTES = 4096 };
IX_STATIC_ASSERT(sizeof(((struct ix_stats *)0)->counters) >= sizeof(struct ix_counters),
                 "every counter has its place in the statistics");

static uint32_t or_default(uint32_t value, uint32_t fallback)
{
    return value ? value : fallback;
}

/* The limits of what windows grow to follow from the memory that there is: a frame of the pool
 * holds a segment of 1,448 bytes. */
static void buffer_defaults(struct ix_config *cfg)
{
    const uint32_t rcvbuf = 262144, sndbuf = 1048576, most = 4u << 20;
    uint64_t pool = (uint64_t)cfg->pool_frames / 4 * 1448;
    uint64_t umem = ((uint64_t)cfg->pool_frames + cfg->arena_frames) << (IX_FRAME_SHIFT_MIN - 1);
    uint32_t rcv_max = (uint32_t)IX_MAX(IX_MIN(pool, (uint64_t)most), (uint64_t)rcvbuf);
    uint32_t snd_max = (uint32_t)IX_MAX(IX_MIN(umem, (uint64_t)most), (uint64_t)sndbuf);
    cfg->rcvbuf_max_bytes =
        or_default(cfg->rcvbuf_max_bytes, cfg->rcvbuf_bytes ? cfg->rcvbuf_bytes : rcv_max);
    cfg->sndbuf_max_bytes =
        or_default(cfg->sndbuf_max_bytes, cfg->sndbuf_bytes ? cfg->sndbuf_bytes : snd_max);
    cfg->rcvbuf_bytes = or_default(cfg->rcvbuf_bytes, rcvbuf);
    cfg->sndbuf_bytes = or_default(cfg->sndbuf_bytes, sndbuf);
}

static void apply_defaults(struct ix_config *cfg)
{
    cfg->shard_count = or_default(cfg->shard_count, 1);
    cfg->max_flows = or_default(cfg->max_flows, 65536);
    cfg->max_events = or_default(cfg->max_events, 1024);
    cfg->max_calls = or_default(cfg->max_calls, 1024);
    cfg->max_timers = or_default(cfg->max_timers, 1024);
    cfg->max_extents = or_default(cfg->max_extents, 4 * cfg->pool_frames);
    cfg->batch = or_default(cfg->batch, IX_BATCH_DEFAULT);
    cfg->fill_target = or_default(cfg->fill_target, IX_MIN(cfg->pool_frames / 2, 2048u));
    cfg->fill_max = or_default(cfg->fill_max, cfg->fill_target);
    buffer_defaults(cfg);
    cfg->time_wait_ms = or_default(cfg->time_wait_ms, 60000);
    cfg->mtu = or_default(cfg->mtu, 1500);
    cfg->max_half_open = or_default(cfg->max_half_open, IX_MAX(cfg->max_flows / 2, 1u));
    cfg->mss_max = or_default(cfg->mss_max, UINT16_MAX);
    cfg->challenge_acks = or_default(cfg->challenge_acks, 1000);
}

static bool valid(const struct ix_config *cfg)
{
    return cfg->shard_id < cfg->shard_count && cfg->max_flows <= IX_FLOWS_MAX &&
           cfg->max_events >= 64 && cfg->max_calls >= 64 && cfg->max_events <= 1u << 20 &&
           cfg->max_calls <= 1u << 20 && cfg->max_timers <= IX_APP_TIMERS_MAX &&
           cfg->pool_frames >= IX_POOL_FRAMES_MIN && cfg->pool_frames <= IX_FRAMES_MAX &&
           cfg->arena_frames <= IX_FRAMES_MAX && cfg->batch <= IX_BATCH_MAX &&
           cfg->fill_target <= cfg->fill_max &&
           cfg->fill_max <= cfg->pool_frames - cfg->pool_frames / 16 &&
           cfg->rcvbuf_bytes >= IX_MSS_DEFAULT && cfg->rcvbuf_bytes <= cfg->rcvbuf_max_bytes &&
           cfg->sndbuf_bytes >= IX_MSS_DEFAULT && cfg->sndbuf_bytes <= cfg->sndbuf_max_bytes &&
           cfg->rcvbuf_max_bytes <= 1u << 30 && cfg->sndbuf_max_bytes <= 1u << 30 &&
           cfg->congestion <= IX_CC_DCTCP && cfg->ecn <= IX_ECN_REQUEST &&
           cfg->mtu >= IX_MTU_MIN && cfg->syn_cookies <= IX_COOKIES_ALWAYS &&
           cfg->challenge_acks <= 1u << 30 && cfg->mss_max >= IX_MSS_MIN &&
           cfg->mss_max <= UINT16_MAX && cfg->port_hi >= cfg->port_lo &&
           cfg->rss_key_bytes <= sizeof cfg->rss_key &&
           cfg->rss_table_len <= IX_ARRAY_LEN(cfg->rss_table);
}

/* Parts of the memory, in order. The last, what the application may write, has pages of its own. */
struct layout {
    size_t frames, timers, app_timers, tcp, shared, end;
};

static size_t place(size_t *at, size_t bytes, size_t align)
{
    size_t start = (*at + align - 1) & ~(align - 1);
    *at = start + bytes;
    return start;
}

static struct layout lay_out(const struct ix_config *cfg)
{
    struct layout l;
    size_t at = sizeof(struct ix_shard);
    size_t timers = (size_t)cfg->max_flows * IX_TIMERS_PER_FLOW + cfg->max_timers;
    size_t frames = (size_t)cfg->pool_frames + cfg->arena_frames;
    l.frames = place(&at, frames * sizeof(struct ix_frame), IX_CACHE_LINE);
    l.timers = place(&at, timers * sizeof(struct ix_timer), IX_CACHE_LINE);
    l.app_timers = place(&at, cfg->max_timers * sizeof(struct ix_app_timer), IX_CACHE_LINE);
    l.tcp = place(&at, ix_tcp_arena_bytes(cfg), IX_CACHE_LINE);
    l.shared = place(&at,
                     IX_CACHE_LINE + sizeof(struct ix_io) +
                         cfg->max_events * sizeof(struct ix_event) +
                         cfg->max_calls * sizeof(struct ix_call),
                     PAGE_BYTES);
    l.end = place(&at, 0, PAGE_BYTES);
    return l;
}

const struct ix_tcb *ix_shard_flows(const void *memory, const struct ix_config *cfg)
{
    return (const struct ix_tcb *)((const uint8_t *)memory + lay_out(cfg).tcp);
}

size_t ix_shard_bytes(struct ix_config *cfg)
{
    apply_defaults(cfg);
    return valid(cfg) ? lay_out(cfg).end : 0;
}

/* What lies at `at`, counted from `here`, as the application sees it: from `there`, if it has a
 * mapping of its own. */
static void *view(uint64_t there, const void *here, void *at)
{
    return there ? (void *)(uintptr_t)(there + (uint64_t)((uint8_t *)at - (const uint8_t *)here))
                 : at;
}

static void init_io(struct ix_shard *shard, uint8_t *memory)
{
    const struct ix_config *cfg = &shard->cfg;
    struct ix_io *io = (struct ix_io *)(void *)memory;
    uint8_t *arrays = memory + ((sizeof *io + IX_CACHE_LINE - 1) & ~(size_t)(IX_CACHE_LINE - 1));
    shard->io = (struct ix_arrays){
        .shared = io,
        .events = (struct ix_event *)(void *)arrays,
        .calls = (struct ix_call *)(void *)(arrays + cfg->max_events * sizeof(struct ix_event)),
        .max_events = cfg->max_events,
        .max_calls = cfg->max_calls,
    };
    *io = (struct ix_io){
        .events = view(cfg->app_io, memory, shard->io.events),
        .calls = view(cfg->app_io, memory, shard->io.calls),
        .max_events = cfg->max_events,
        .max_calls = cfg->max_calls,
        .umem = view(cfg->app_umem, shard->link->umem, shard->link->umem),
        .umem_bytes = shard->link->umem_bytes,
        .frame_shift = shard->link->frame_shift,
        .arena_frame = cfg->pool_frames,
        .arena_frames = cfg->arena_frames,
        .tx_headroom = IX_TX_HEADROOM,
    };
}

size_t ix_shard_shared_bytes(const struct ix_config *cfg)
{
    struct layout l = lay_out(cfg);
    return l.end - l.shared;
}

static void init_net(struct ix_shard *shard)
{
    struct ix_net *net = &shard->net;
    net->link = shard->link;
    net->frames = &shard->frames;
    net->counters = &shard->counters;
    net->shard = shard;
    net->now_ns = shard->now_ns;
    net->random = shard->cfg.secret[7] ^ shard->cfg.shard_id;
    __builtin_memcpy(net->mac.b, shard->cfg.mac, 6);
    net->own_address = shard->cfg.own_address;
    net->carrier = true;
    net->mtu = shard->cfg.mtu;
    net->epoch = 1;
    ix_pmtu_init(&net->pmtu);
    ix_reass_init(&net->reass);
    net->nd_doubt_ns = UINT64_MAX;
    net->ip_id = (uint16_t)ix_random(&net->random);
    net->neigh_key = (struct ix_key){{ix_random(&net->random), ix_random(&net->random)}};
}

static void init_timers(struct ix_shard *shard, uint8_t *memory, const struct layout *l)
{
    const struct ix_config *cfg = &shard->cfg;
    shard->timers = (struct ix_app_timer *)(void *)(memory + l->app_timers);
    shard->timer_free = cfg->max_timers ? 0 : IX_NONE;
    for (uint32_t i = 0; i < cfg->max_timers; i++) {
        shard->timers[i].generation = 1;
        shard->timers[i].next = i + 1 < cfg->max_timers ? i + 1 : IX_NONE;
    }
    ix_wheel_init(&shard->wheel, (struct ix_timer *)(void *)(memory + l->timers),
                  cfg->max_flows * IX_TIMERS_PER_FLOW + cfg->max_timers, shard->now_ns);
}

static bool link_fits(const struct ix_config *cfg, const struct ix_link *link)
{
    uint64_t frames = (uint64_t)cfg->pool_frames + cfg->arena_frames;
    return link && link->frame_shift >= IX_FRAME_SHIFT_MIN &&
           link->frame_shift <= IX_FRAME_SHIFT_MAX &&
           frames << link->frame_shift <= link->umem_bytes &&
           cfg->mtu + IX_ETH_BYTES + IX_TX_HEADROOM <= 1u << link->frame_shift;
}

struct ix_shard *ix_shard_create(void *memory, size_t bytes, struct ix_config *cfg,
                                 struct ix_link *link, uint64_t *fill)
{
    size_t need = ix_shard_bytes(cfg);
    if (need == 0 || bytes < need || !link_fits(cfg, link))
        return NULL;
    struct layout l = lay_out(cfg);
    uint8_t *base = memory;
    struct ix_shard *shard = memory;
    shard->cfg = *cfg;
    shard->link = link;
    shard->now_ns = cfg->now_ns;
    shard->batch = cfg->batch;
    init_io(shard, base + l.shared);
    ix_frames_init(&shard->frames, (struct ix_frame *)(void *)(base + l.frames), cfg->pool_frames,
                   cfg->arena_frames, link->frame_shift);
    init_timers(shard, base, &l);
    init_net(shard);
    shard->tcp.net = shard->udp.net = &shard->net;
    shard->tcp.wheel = &shard->wheel;
    shard->tcp.counters = &shard->counters;
    shard->tcp.io = shard->udp.io = &shard->io;
    shard->tcp.now_ns = shard->now_ns;
    shard->tcp.now_ms = (uint32_t)(shard->now_ns / 1000000);
    shard->tcp.now_us = (uint32_t)(shard->now_ns / 1000);
    ix_tcp_init(&shard->tcp, &shard->cfg, base + l.tcp);
    shard->fill_target = cfg->fill_target;
    for (uint32_t i = 0; fill && i < cfg->fill_target; i++)
        fill[i] = ix_frame_addr(&shard->frames, ix_frame_take_fill(&shard->frames));
    ix_shard_update_stats(shard);
    return shard;
}

struct ix_io *ix_shard_io(struct ix_shard *shard)
{
    return shard->io.shared;
}

int ix_shard_set_batch(struct ix_shard *shard, uint32_t batch)
{
    if (batch < 1 || batch > IX_BATCH_MAX)
        return -IX_EINVAL;
    shard->batch = batch;
    return 0;
}

static bool take_ip(const uint8_t *ip, uint8_t family, struct ix_ip *out)
{
    *out = (struct ix_ip){.q = {0, 0}};
    if (ip)
        __builtin_memcpy(out->b, ip, family == 4 ? 4 : 16);
    return family == 4 || family == 6 || (family == 0 && ix_ip_is_zero(out));
}

int ix_shard_listen(struct ix_shard *shard, const uint8_t *ip, uint8_t family, uint16_t port,
                    uint64_t cookie, uint32_t backlog)
{
    struct ix_tcp *tcp = &shard->tcp;
    struct ix_ip address;
    uint32_t at = IX_LISTENERS_MAX;
    if (!take_ip(ip, family, &address) || port == 0)
        return -IX_EINVAL;
    for (uint32_t i = 0; i < IX_LISTENERS_MAX; i++) {
        struct ix_listener *l = &tcp->listeners[i];
        if (l->port == port && ix_families_meet(l->family, family) && ix_ip_equal(&l->ip, &address))
            return -IX_EADDRINUSE;
        if (l->port == 0 && l->pending == 0 && at == IX_LISTENERS_MAX)
            at = i;
    }
    if (at == IX_LISTENERS_MAX)
        return -IX_ENOSPC;
    tcp->listeners[at] = (struct ix_listener){.ip = address,
                                              .port = port,
                                              .family = family,
                                              .backlog = or_default(backlog, IX_BACKLOG_DEFAULT),
                                              .cookie = cookie};
    tcp->listener_count = IX_MAX(tcp->listener_count, at + 1);
    return 0;
}

static struct ix_listener *find_listener(struct ix_shard *shard, const struct ix_ip *ip,
                                         uint8_t family, uint16_t port)
{
    for (uint32_t i = 0; port && i < shard->tcp.listener_count; i++) {
        struct ix_listener *l = &shard->tcp.listeners[i];
        if (l->port == port && l->family == family && ix_ip_equal(&l->ip, ip))
            return l;
    }
    return NULL;
}

/* The listener's slot will be another's: its connections count for nobody any more. */
static void forget_connections(struct ix_tcp *tcp, struct ix_listener *l)
{
    for (uint32_t i = 0; i < tcp->max_flows && l->connections; i++)
        if (tcp->flows[i].hash && tcp->flows[i].accepted_by == l - tcp->listeners + 1)
            ix_tcp_leave_listener(tcp, &tcp->flows[i]);
}

int ix_shard_unlisten(struct ix_shard *shard, const uint8_t *ip, uint8_t family, uint16_t port)
{
    struct ix_ip address;
    if (!take_ip(ip, family, &address))
        return -IX_EINVAL;
    struct ix_listener *l = find_listener(shard, &address, family, port);
    if (!l)
        return -IX_ENOENT;
    l->port = 0; /* connections that still knock keep the slot through `pending` */
    forget_connections(&shard->tcp, l);
    return 0;
}

int ix_shard_listen_option(struct ix_shard *shard, const uint8_t *ip, uint8_t family, uint16_t port,
                           uint32_t option, uint64_t value)
{
    struct ix_ip address;
    if (!take_ip(ip, family, &address))
        return -IX_EINVAL;
    struct ix_listener *l = find_listener(shard, &address, family, port);
    if (!l)
        return -IX_ENOENT;
    if (option == IX_OPT_CONGESTION && ix_cc_known(value))
        l->cc = (uint8_t)value;
    else if (option == IX_OPT_CONNECTIONS && value <= IX_FLOWS_MAX)
        l->max_connections = (uint32_t)value;
    else if (option == IX_OPT_BACKLOG && value <= UINT32_MAX)
        l->backlog = or_default((uint32_t)value, IX_BACKLOG_DEFAULT);
    else if (option == IX_OPT_RCVBUF && ix_tcp_rcvbuf_ok(value))
        l->rcvbuf_bytes = (uint32_t)value;
    else if (option == IX_OPT_MSS && ix_tcp_mss_ok(value))
        l->mss = (uint16_t)value;
    else if (option == IX_OPT_QUICKACK)
        l->quick_acks = (uint8_t)IX_MIN(value, 255ull);
    else if (option == IX_OPT_PACING)
        l->pace_max = ix_pace_of_option(value), l->pace_set = true;
    else
        return -IX_EINVAL;
    return 0;
}

int ix_shard_udp_bind(struct ix_shard *shard, const uint8_t *ip, uint8_t family, uint16_t port,
                      uint64_t cookie, uint64_t *handle)
{
    struct ix_ip address;
    if (!take_ip(ip, family, &address))
        return -IX_EINVAL;
    return ix_udp_bind(&shard->udp, &address, family, port, cookie, handle);
}

int ix_shard_udp_unbind(struct ix_shard *shard, uint64_t handle)
{
    return ix_udp_unbind(&shard->udp, handle);
}
