/* What a seed means: the case, and its connections. */
#include "tests/native/sim_world.h"

#include <stdio.h>

static const uint64_t plan_stream = 0x706c616eull, conn_stream = 0x636f6e6eull,
                      congestion_stream = 0x636f6e67ull,
                      cookie_stream = 0x636f6f6bull, world_stream = 0x776f7264ull;

uint64_t sim_log_range(uint64_t *random, uint64_t lo, uint64_t hi)
{
    uint32_t octaves = 0;
    while (lo << (octaves + 1) <= hi)
        octaves++;
    uint64_t from = lo << sim_range(random, 0, octaves);
    return sim_range(random, from, IX_MIN(2 * from - 1, hi));
}

static uint64_t state_for(uint64_t seed, uint64_t purpose)
{
    uint64_t state = seed * 0xd1342543de82ef95ull ^ purpose;
    (void)ix_random(&state);
    return state;
}

/* ---- the case ---------------------------------------------------------------------- */

static void plan_path(uint64_t *r, struct ix_sim_path *p, bool faulty)
{
    if (sim_chance(r, 850000))
        p->delay_ns = sim_log_range(r, 1000, 40 * SIM_MS);
    if (sim_chance(r, 400000))
        p->jitter_ns = sim_log_range(r, 1000, 10 * SIM_MS);
    if (!faulty)
        return;
    if (sim_chance(r, 250000)) {
        p->rate_bytes_per_s = sim_log_range(r, 200000, 1000000000);
        p->queue_frames = sim_chance(r, 700000) ? (uint32_t)sim_log_range(r, 4, 200) : 0;
    }
    if (sim_chance(r, 600000))
        p->loss_ppm = (uint32_t)sim_log_range(r, 1000, 250000);
    if (p->loss_ppm && sim_chance(r, 300000)) {
        p->loss_burst_frames = (uint32_t)sim_log_range(r, 2, IX_SIM_BURST_MAX);
        p->loss_ppm = IX_MAX(p->loss_ppm / p->loss_burst_frames, 1000u);
    }
    if (sim_chance(r, 300000))
        p->dup_ppm = (uint32_t)sim_log_range(r, 1000, 200000);
    if (sim_chance(r, 400000)) {
        p->reorder_ppm = (uint32_t)sim_log_range(r, 1000, 300000);
        p->reorder_hold_ns = sim_log_range(r, 1000, 200 * SIM_MS);
    }
    if (sim_chance(r, 300000))
        p->corrupt_ppm = (uint32_t)sim_log_range(r, 1000, 100000);
}

/* Drawn from a stream of their own, so that seeds keep what they had before there were these. */
static void plan_congestion(uint64_t *r, struct ix_simd_case *c, bool faulty)
{
    for (uint32_t i = 0; i < 2; i++) {
        struct ix_sim_path *p = &c->path[i];
        c->side[i].congestion = (uint8_t)sim_range(r, IX_CC_DEFAULT, IX_CC_DCTCP);
        c->side[i].ecn = (uint8_t)sim_range(r, IX_ECN_ACCEPT, IX_ECN_REQUEST);
        if (!faulty)
            continue;
        if (p->rate_bytes_per_s && sim_chance(r, 500000)) /* marks before it drops */
            p->mark_frames = (uint32_t)sim_log_range(r, 1, 64);
        if (sim_chance(r, 100000)) /* ACKs alone are lost, and many of them */
            p->loss_max_bytes = 94;
        if (p->loss_max_bytes)
            p->loss_ppm = IX_MAX(p->loss_ppm, (uint32_t)sim_range(r, 10000, 400000));
        if (sim_chance(r, 150000)) { /* standstills that outlast a timeout */
            p->spike_every_ns = sim_log_range(r, 50 * SIM_MS, 4 * SIM_S);
            p->spike_ns = sim_range(r, p->spike_every_ns / 20, p->spike_every_ns / 2);
        }
    }
    for (uint32_t i = 0; i < 2; i++)
        c->side[i].pacing = sim_chance(r, 500000);
}

static void plan_sizes(uint64_t *r, struct ix_simd_side *s)
{
    s->pool_frames = SIM_POOL;
    s->arena_frames = (uint32_t)sim_log_range(r, 16, 256);
    s->fill_target = sim_chance(r, 300000) ? (uint32_t)sim_log_range(r, 8, 900) : 0;
    s->batch = sim_chance(r, 500000) ? 64 : (uint32_t)sim_log_range(r, 1, 256);
    s->max_flows = sim_chance(r, 150000) ? (uint32_t)sim_log_range(r, 8, 64) : 160;
    s->max_events = sim_chance(r, 400000) ? 64 : 256;
    s->max_calls = sim_chance(r, 400000) ? 64 : 256;
    s->max_extents = sim_chance(r, 200000) ? (uint32_t)sim_log_range(r, 4, 64) : 0;
    s->max_timers = 256;
    s->rcvbuf_bytes = sim_chance(r, 300000) ? 262144 : (uint32_t)sim_log_range(r, 536, 262144);
    s->sndbuf_bytes = sim_chance(r, 500000) ? 0 : (uint32_t)sim_log_range(r, 536, 262144);
    s->ring_entries = 1u << sim_range(r, sim_chance(r, 200000) ? 5 : 8, 10);
    s->backlog = sim_chance(r, 300000) ? (uint32_t)sim_log_range(r, 1, 8) : 0;
    s->time_wait_ms = sim_chance(r, 700000) ? 60000 : (uint32_t)sim_log_range(r, 100, 60000);
}

static void plan_side(uint64_t *r, struct ix_simd_side *s)
{
    plan_sizes(r, s);
    s->frame_shift = 11;
    s->mtu = sim_chance(r, 700000) ? 1500 : (uint32_t)sim_log_range(r, 576, 1700);
    if (sim_chance(r, 100000)) {
        s->frame_shift = 12;
        s->mtu = (uint32_t)sim_log_range(r, 576, 3700);
    }
    s->poll_ns = sim_log_range(r, 1000, sim_chance(r, 200000) ? 50 * SIM_MS : SIM_MS);
    s->idle_polls_ppm = sim_chance(r, 500000) ? 100000 : 0;
    s->back_ppm = sim_chance(r, 200000) ? 10000 : 0;
    s->clock_ns = sim_log_range(r, 1, 1ull << 50);
    if (sim_chance(r, 200000)) /* the clock of timestamps wraps around during the run */
        s->clock_ns = (1ull << 32) * SIM_MS - sim_log_range(r, SIM_MS, 20 * SIM_S);
    s->completion_delay_ns = sim_chance(r, 250000) ? sim_log_range(r, 1000, 20 * SIM_MS) : 0;
    s->tx_budget = sim_chance(r, 150000) ? (uint32_t)sim_log_range(r, 1, 32) : 0;
    s->sg_inplace = sim_chance(r, 500000);
    s->arena_frames_only = sim_chance(r, 500000);
    s->fill_at_creation = sim_chance(r, 500000);
}

enum { UPSETS_IN_ORDER = 4 };

static void plan_upsets(uint64_t *r, struct ix_simd_case *c)
{
    uint64_t at_ns = 0;
    c->upset_count = sim_chance(r, 250000) ? (uint32_t)sim_range(r, 1, UPSETS_IN_ORDER) : 0;
    for (uint32_t i = 0; i < c->upset_count; i++) {
        struct ix_simd_upset *u = &c->upsets[i];
        u->kind = (uint32_t)sim_range(r, IX_SIMD_STALL, IX_SIMD_NEIGH);
        u->side = (uint32_t)sim_range(r, 0, 1);
        u->at_ns = at_ns + sim_log_range(r, 10000, c->faults_until_ns / 4);
        u->for_ns = sim_log_range(r, SIM_MS, c->faults_until_ns / 4);
        at_ns = u->at_ns;
    }
}

/* Applications that make it hard: a flood of tiny segments, readers that hold all they get. */
static void plan_trouble(uint64_t *r, struct ix_simd_case *c, bool faulty)
{
    bool tiny = sim_chance(r, 80000), hoard = sim_chance(r, 50000);
    if (!tiny && !hoard)
        return;
    c->conns = (uint32_t)sim_log_range(r, 1, 12);
    c->bytes = sim_log_range(r, 20000, 100000);
    c->chunk_max = (uint32_t)sim_log_range(r, 8, 64);
    if (hoard)
        c->pause_ppm = 1000000;
    for (uint32_t i = 0; i < 2; i++) {
        struct ix_simd_side *s = &c->side[i];
        s->rcvbuf_bytes = 262144;
        s->sndbuf_bytes = 0;
        s->arena_frames = 256;
        s->max_extents = 0;
        s->poll_ns = IX_MIN(s->poll_ns, 100000ull);
        if (faulty && s->max_flows > 100)
            s->ring_entries = 1u << sim_range(r, 4, 10);
    }
}

/* Tiny segments by the hundred on a long way that loses some: reassembly at its limits. */
static void plan_flood(uint64_t *r, struct ix_simd_case *c)
{
    c->conns = (uint32_t)sim_log_range(r, 1, 8);
    c->bytes = sim_log_range(r, 8000, 30000);
    c->chunk_max = (uint32_t)sim_log_range(r, 8, 16);
    c->wire_frames = 8192;
    for (uint32_t i = 0; i < 2; i++) {
        struct ix_simd_side *s = &c->side[i];
        s->rcvbuf_bytes = 262144;
        s->sndbuf_bytes = s->max_extents = s->completion_delay_ns = s->tx_budget = 0;
        s->pool_frames = 2048;
        s->arena_frames = 256;
        s->ring_entries = 1024;
        s->batch = 64;
        s->poll_ns = 5000;
        c->path[i] = (struct ix_sim_path){
            .delay_ns = 10 * SIM_MS, .loss_ppm = 30000, .faults_until_ns = c->faults_until_ns};
    }
}

/* Routers on the way, and paths too narrow for what the sides send, which they are told or not. */
static void plan_topology(uint64_t *r, struct ix_simd_case *c)
{
    c->gateway = !c->own_address && sim_chance(r, 250000);
    for (uint32_t i = 0; i < 2; i++) {
        if (sim_chance(r, 880000))
            continue;
        c->path[i].mtu = (uint32_t)sim_range(r, c->six ? IX_IPV6_MTU_MIN : IX_MTU_MIN, 1499);
        c->path[i].mute = sim_chance(r, 300000);
    }
}

static void add_upset(uint64_t *r, struct ix_simd_case *c, uint32_t kind, uint64_t most_ns)
{
    if (c->upset_count == IX_SIMD_UPSETS)
        return;
    c->upsets[c->upset_count++] =
        (struct ix_simd_upset){.kind = kind,
                               .side = (uint32_t)sim_range(r, 0, 1),
                               .at_ns = sim_log_range(r, 10000, c->faults_until_ns / 4),
                               .for_ns = sim_log_range(r, SIM_MS, most_ns)};
}

/* Drawn last, so that seeds keep what they had before there was this. */
static void plan_world(uint64_t *r, struct ix_simd_case *c, bool faulty)
{
    plan_topology(r, c);
    for (uint32_t i = 0; i < 2; i++) {
        struct ix_simd_side *s = &c->side[i];
        if (!sim_chance(r, 200000))
            continue;
        s->pool_frames = (uint32_t)sim_log_range(r, IX_POOL_FRAMES_MIN, SIM_POOL - 1);
        if (s->fill_target > s->pool_frames / 2)
            s->fill_target = 0;
    }
    if (faulty && sim_chance(r, 120000))
        add_upset(r, c, IX_SIMD_JUMP, 30 * SIM_S);
    if (faulty && sim_chance(r, 60000))
        add_upset(r, c, IX_SIMD_NARROW, c->faults_until_ns / 4);
}

void ix_simd_plan(uint64_t seed, struct ix_simd_case *c)
{
    uint64_t state = state_for(seed, plan_stream), *r = &state;
    *c = (struct ix_simd_case){.seed = seed};
    bool faulty = sim_chance(r, 850000);
    bool both = sim_chance(r, 700000);
    c->faults_until_ns = sim_log_range(r, 20 * SIM_MS, 20 * SIM_S);
    plan_path(r, &c->path[0], faulty);
    plan_path(r, &c->path[1], faulty && both);
    for (uint32_t i = 0; i < 2; i++) {
        c->path[i].faults_until_ns = c->faults_until_ns;
        plan_side(r, &c->side[i]);
    }
    c->wire_frames = faulty && sim_chance(r, 200000) ? 64 : 1024;
    c->own_address = sim_chance(r, 400000);
    c->wrap_isn = sim_chance(r, 400000);
    c->conns = (uint32_t)sim_log_range(r, 1, 50);
    c->odd_ppm = sim_chance(r, 500000) ? 300000 : 0;
    c->pause_ppm = sim_chance(r, 400000) ? 300000 : 0;
    c->spread_ns = sim_log_range(r, 1000, 2 * SIM_S);
    c->bytes = sim_log_range(r, 1000, 600000);
    plan_trouble(r, c, faulty);
    if (sim_chance(r, 10000))
        plan_flood(r, c);
    c->nonsense_ppm = sim_chance(r, 500000) ? 30000 : 0;
    if (faulty)
        plan_upsets(r, c);
    c->check_every = 1;
    state = state_for(seed, congestion_stream);
    plan_congestion(r, c, faulty);
    uint64_t cookie_state = state_for(seed, cookie_stream);
    c->cookies = sim_chance(&cookie_state, 100000);
    c->grow = sim_chance(&cookie_state, 400000);
    c->six = sim_chance(&cookie_state, 350000);
    state = state_for(seed, world_stream);
    plan_world(r, c, faulty);
}

/* ---- its connections --------------------------------------------------------------- */

static void plan_end(uint64_t *r, const struct ix_simd_case *c, struct sim_conn *conn, uint32_t e)
{
    struct sim_end *end = &conn->end[e];
    uint32_t all = end->tx_total + end->rx_total;
    *end = (struct sim_end){.id = end->id,
                            .side = conn->opener ^ e,
                            .tx_total = end->tx_total,
                            .rx_total = end->rx_total,
                            .quit_at = IX_NONE,
                            .pause_at = IX_NONE,
                            .chunk_head = IX_NONE,
                            .chunk_tail = IX_NONE,
                            .chunk_next = IX_NONE,
                            .done_head = IX_NONE,
                            .done_tail = IX_NONE};
    end->chunk_max = (uint32_t)sim_log_range(r, IX_MAX(16u, end->tx_total / 500), 20000);
    if (c->chunk_max)
        end->chunk_max = c->chunk_max;
    end->hold_frames = sim_chance(r, 700000) ? 1 : (uint32_t)sim_log_range(r, 2, 32);
    end->close_half = sim_chance(r, 500000);
    end->close_after_eof = sim_chance(r, 200000) && !(e == 1 && conn->end[0].close_after_eof);
    end->nagle = sim_chance(r, 300000);
    end->send_more = sim_chance(r, 200000);
    end->rcvbuf_bytes = sim_chance(r, 150000) ? (uint32_t)sim_log_range(r, 536, 65536) : 0;
    if (c->plain) {
        end->hold_frames = 1;
        end->nagle = end->send_more = end->close_after_eof = false;
        end->rcvbuf_bytes = 0;
    }
    if (sim_chance(r, c->pause_ppm)) {
        end->pause_at = (uint32_t)sim_range(r, 0, c->pause_ppm < 1000000 ? end->rx_total : 0);
        end->pause_ns = sim_log_range(r, SIM_MS, 20 * SIM_S);
    }
    if (conn->kind != SIM_ORDERLY || sim_chance(r, 100000) || c->cookies)
        /* nine probes in a row are not all lost */
        end->keepalive_ns = sim_log_range(r, 500 * SIM_MS, 10 * SIM_S) + c->faults_until_ns / 8;
    if ((conn->kind == SIM_ABORT || conn->kind == SIM_CLOSE_EARLY) && e == (all & 1)) {
        end->quit_at = (uint32_t)sim_range(r, 0, all);
        end->quit_after_close = conn->kind == SIM_ABORT && sim_chance(r, 300000);
    }
}

static void plan_streams(uint64_t *r, const struct ix_simd_case *c, struct sim_conn *conn)
{
    uint64_t most = IX_MAX(c->bytes / c->conns, 2u);
    uint32_t a = (uint32_t)sim_log_range(r, 1, most), b = (uint32_t)sim_log_range(r, 1, most);
    if (c->chunk_max)
        a = b = (uint32_t)most;
    conn->pattern = (uint32_t)sim_range(r, 0, SIM_PATTERNS - 1);
    if (c->pattern)
        conn->pattern = c->pattern - 1;
    /* An echo holds frames until they are acknowledged. If both sides did, each could hold all that
     * it has and wait for the other, for ever: applications' fault, not the dataplane's. */
    if (conn->pattern == SIM_ECHO && conn->opener == 1)
        conn->pattern = SIM_ECHO_COPY;
    conn->key[0] = ix_random(r);
    conn->key[1] = ix_random(r);
    if (conn->pattern == SIM_ONE_WAY)
        *(sim_chance(r, 500000) ? &a : &b) = 0;
    if (conn->pattern == SIM_REQUESTS) {
        conn->request = (uint32_t)sim_log_range(r, 1, 4000);
        conn->reply = (uint32_t)sim_log_range(r, 1, 10000);
        uint32_t rounds = (uint32_t)(most / (conn->request + conn->reply)) + 1;
        rounds = IX_MIN(rounds, 60u);
        a = rounds * conn->request;
        b = rounds * conn->reply;
    }
    if (conn->pattern == SIM_ECHO || conn->pattern == SIM_ECHO_COPY) {
        b = a;
        conn->key[1] = conn->key[0];
    }
    conn->end[0].tx_total = conn->end[1].rx_total = a;
    conn->end[1].tx_total = conn->end[0].rx_total = b;
}

/* A connection with the ports of the one before, once that is over. */
static void plan_again(struct sim_world *w, uint32_t i)
{
    struct sim_conn *conn = &w->conns[i], *before = &w->conns[i - 1];
    conn->after = i - 1;
    conn->kind = SIM_ORDERLY;
    conn->opener = before->opener;
    if (before->port == 0)
        before->port = (uint16_t)(20000 + i);
    conn->port = before->port;
    /* The acceptor closes first, so that it is the one in TIME_WAIT. */
    before->end[0].close_after_eof = true;
    before->end[1].close_after_eof = false;
}

void sim_plan_conns(struct sim_world *w)
{
    const struct ix_simd_case *c = w->c;
    uint64_t state = state_for(c->seed, conn_stream), *r = &state;
    bool one_way = sim_chance(r, 400000);
    w->conn_count = IX_MIN(c->conns, (uint32_t)SIM_CONNS_MAX);
    for (uint32_t i = 0; i < w->conn_count; i++) {
        struct sim_conn *conn = &w->conns[i];
        conn->end[0].id = 2 * i;
        conn->end[1].id = 2 * i + 1;
        conn->after = IX_NONE;
        conn->kind = SIM_ORDERLY;
        if (sim_chance(r, c->odd_ppm))
            conn->kind = (uint32_t)sim_range(r, 1, SIM_KINDS - 1);
        conn->opener = one_way ? 0 : (uint32_t)sim_range(r, 0, 1);
        conn->start_ns = sim_range(r, 0, c->spread_ns);
        conn->accept_delay_ns = sim_chance(r, 200000) ? sim_log_range(r, 1000, 2 * SIM_S) : 0;
        if (c->plain)
            conn->accept_delay_ns = 0;
        conn->server_port = conn->kind == SIM_REFUSED   ? SIM_CLOSED_PORT
                            : conn->kind == SIM_SIMOPEN ? (uint16_t)(30000 + i)
                                                        : SIM_SERVER_PORT;
        if (conn->kind == SIM_SIMOPEN || i == 0 || sim_chance(r, 200000))
            conn->port = (uint16_t)(20000 + i);
        bool again = i > 0 && sim_chance(r, 200000) && w->conns[i - 1].kind == SIM_ORDERLY;
        if (again)
            plan_again(w, i);
        plan_streams(r, c, conn);
        plan_end(r, c, conn, 0);
        plan_end(r, c, conn, 1);
        if (again)
            conn->server_port = SIM_SERVER_PORT;
    }
}

/* ---- in words ---------------------------------------------------------------------- */

static int describe_side(const struct ix_simd_case *c, uint32_t i, char *out, size_t bytes)
{
    const struct ix_simd_side *s = &c->side[i];
    const struct ix_sim_path *p = &c->path[i];
    return snprintf(
        out, bytes,
        "  side %u: poll %lu ns, batch %u, mtu %u, rcvbuf %u, sndbuf %u, flows %u, events %u, "
        "calls "
        "%u, extents %u, arena %u, fill %u, rings %u, backlog %u, time_wait %u ms, completion %lu "
        "ns, tx budget %u, in place %d, pool %u\n"
        "  its path: delay %lu ns, jitter %lu, rate %lu/s, queue %u, ppm: loss %u (burst %u) dup "
        "%u "
        "reorder %u (hold %lu ns) corrupt %u; lost up to %u bytes, marked from %u, stands still "
        "%lu of %lu ns, mtu %u (mute %d), congestion %u, ecn %u, pacing %d\n",
        i, s->poll_ns, s->batch, s->mtu, s->rcvbuf_bytes, s->sndbuf_bytes, s->max_flows,
        s->max_events, s->max_calls, s->max_extents, s->arena_frames, s->fill_target,
        s->ring_entries, s->backlog, s->time_wait_ms, s->completion_delay_ns, s->tx_budget,
        s->sg_inplace, s->pool_frames, p->delay_ns, p->jitter_ns, p->rate_bytes_per_s,
        p->queue_frames, p->loss_ppm, p->loss_burst_frames, p->dup_ppm, p->reorder_ppm,
        p->reorder_hold_ns, p->corrupt_ppm, p->loss_max_bytes, p->mark_frames, p->spike_ns,
        p->spike_every_ns, p->mtu, p->mute, s->congestion, s->ecn, s->pacing);
}

int ix_simd_describe(const struct ix_simd_case *c, char *out, size_t bytes)
{
    size_t at = (size_t)snprintf(
        out, bytes,
        "seed %lu: %u connections in %lu ns, %lu bytes, odd %u, pauses %u, faults until %lu ns, "
        "upsets %u, wire %u, %s, %s, %s\n",
        c->seed, c->conns, c->spread_ns, c->bytes, c->odd_ppm, c->pause_ppm, c->faults_until_ns,
        c->upset_count, c->wire_frames, c->own_address ? "arp or nd" : "neighbours told",
        c->six ? "IPv6" : "IPv4", c->gateway ? "by a router" : "on link");
    for (uint32_t i = 0; i < 2 && at < bytes; i++)
        at += (size_t)describe_side(c, i, out + at, bytes - at);
    return (int)IX_MIN(at, bytes - 1);
}
