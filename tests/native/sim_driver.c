/* Runs a simulation. What is checked stands at the head of sim_check.c. */
#include "tests/native/sim_world.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    STEPS_MAX = 400000,
    FINISH_S = 900,
    QUIET_S = 300,
    WIRE_CHECK_EVERY = 16,
    IDLE_RUN_MAX = 2000
};

void sim_fail(struct sim_world *w, const char *format, ...)
{
    if (sim_failed(w))
        return;
    char *out = w->result->failure;
    size_t bytes = sizeof w->result->failure;
    int at =
        snprintf(out, bytes, "at %.6f ms, step %lu: ", (double)w->now_ns / 1e6, w->result->steps);
    va_list args;
    va_start(args, format);
    vsnprintf(out + at, bytes - (size_t)at, format, args);
    va_end(args);
    sim_trace(w, "FAILED: %s", out);
}

/* ---- set-up ------------------------------------------------------------------------ */

static void *take(size_t bytes)
{
    void *memory = aligned_alloc(4096, (bytes + 4095) & ~(size_t)4095);
    IX_ASSERT(memory);
    return memory;
}

static void *take_zeroed(size_t bytes)
{
    return memset(take(bytes), 0, bytes);
}

static void configure(struct sim_world *w, uint32_t i)
{
    const struct ix_simd_side *plan = &w->c->side[i];
    struct ix_mac mac = sim_side_mac(i);
    struct ix_config *cfg = &w->side[i].cfg;
    *cfg = (struct ix_config){
        .now_ns = plan->clock_ns,
        .max_flows = plan->max_flows,
        .max_events = plan->max_events,
        .max_calls = plan->max_calls,
        .max_timers = plan->max_timers,
        .max_extents = plan->max_extents,
        .pool_frames = plan->pool_frames,
        .arena_frames = plan->arena_frames,
        .batch = plan->batch,
        .fill_target = plan->fill_target,
        .fill_max = plan->fill_target && w->c->grow
                        ? IX_MAX(plan->fill_target, plan->pool_frames / 2)
                        : 0,
        .rcvbuf_bytes = plan->rcvbuf_bytes,
        .sndbuf_bytes = plan->sndbuf_bytes,
        .rcvbuf_max_bytes = plan->rcvbuf_bytes * (w->c->grow ? 8 : 1),
        .sndbuf_max_bytes = plan->sndbuf_bytes * (w->c->grow ? 8 : 1),
        .time_wait_ms = plan->time_wait_ms,
        .syn_cookies = w->c->cookies ? IX_COOKIES_ALWAYS : IX_COOKIES_NEVER,
        .mtu = plan->mtu,
        .port_lo = SIM_PORT_FIRST,
        .port_hi = SIM_PORT_LAST,
        .own_address = w->c->own_address,
        .congestion = plan->congestion,
        .ecn = plan->ecn,
        .pacing = plan->pacing,
        .sg_inplace = plan->sg_inplace,
    };
    memcpy(cfg->mac, mac.b, 6);
    for (uint32_t k = 0; k < 8; k++)
        cfg->secret[k] = ix_random(&w->random);
}

static uint64_t umem_bytes(const struct ix_simd_side *plan)
{
    return (uint64_t)(plan->pool_frames + plan->arena_frames) << plan->frame_shift;
}

static void make_wire(struct sim_world *w)
{
    struct ix_sim_setup setup = {.seed = w->c->seed, .wire_frames = w->c->wire_frames};
    for (uint32_t i = 0; i < 2; i++) {
        const struct ix_simd_side *plan = &w->c->side[i];
        w->umem[i] = take(umem_bytes(plan));
        memset(w->umem[i], 0xdb, umem_bytes(plan));
        setup.end[i] = (struct ix_sim_end_setup){
            .umem = w->umem[i],
            .umem_bytes = umem_bytes(plan),
            .frame_shift = plan->frame_shift,
            .rx_headroom = IX_SIM_RX_HEADROOM,
            .fill_entries = plan->fill_at_creation ? 1024 : plan->ring_entries,
            .rx_entries = plan->ring_entries,
            .tx_entries = plan->ring_entries,
            .completion_entries = plan->ring_entries,
        };
    }
    w->wire_memory = take(ix_sim_wire_bytes(&setup));
    int err = ix_sim_wire_init(&w->wire, &setup, w->wire_memory);
    IX_ASSERT(err == 0);
    for (uint32_t i = 0; i < 2; i++) {
        err = ix_sim_wire_set_path(&w->wire, i, &w->c->path[i]);
        IX_ASSERT(err == 0);
        w->wire.end[i].completion_delay_ns = w->c->side[i].completion_delay_ns;
        w->wire.end[i].tx_budget = w->c->side[i].tx_budget;
        sim_tap_init(w, i, &w->wire.end[i].link);
    }
}

static void tell(struct sim_world *w, uint32_t i, struct ix_ctl_msg msg)
{
    msg.family = sim_family(w);
    int err = ix_ctl_send(w->side[i].shard, &msg);
    IX_ASSERT(err == 0);
}

static void tell_neighbour(struct sim_world *w, uint32_t i, uint8_t type)
{
    struct ix_ctl_msg msg = {.type = type};
    struct ix_mac mac = sim_side_mac(1 - i);
    struct ix_ip ip = sim_next_hop(w, i);
    memcpy(msg.ip, ip.b, sizeof msg.ip);
    memcpy(msg.mac, mac.b, 6);
    tell(w, i, msg);
}

static void make_shard(struct sim_world *w, uint32_t i)
{
    struct sim_side *side = &w->side[i];
    const struct ix_simd_side *plan = &w->c->side[i];
    configure(w, i);
    size_t bytes = ix_shard_bytes(&side->cfg);
    IX_ASSERT(bytes);
    side->memory = take_zeroed(bytes);
    uint64_t *fill = plan->fill_at_creation ? calloc(side->cfg.fill_target, sizeof *fill) : NULL;
    side->shard = ix_shard_create(side->memory, bytes, &side->cfg, &side->tap.link, fill);
    IX_ASSERT(side->shard);
    if (fill) {
        uint32_t n = side->tap.link.ops->fill(&side->tap.link, fill, side->cfg.fill_target);
        IX_ASSERT(n == side->cfg.fill_target);
        free(fill);
    }
    side->io = ix_shard_io(side->shard);
    side->clock_ns = plan->clock_ns;
    struct ix_ip ip = sim_side_ip(w, i);
    struct ix_ctl_msg addr = {.type = IX_CTL_ADDR_ADD, .value = w->c->own_address};
    struct ix_ctl_msg route = {.type = IX_CTL_ROUTE_SET, .prefix = w->c->six ? 64 : 24};
    memcpy(addr.ip, ip.b, sizeof addr.ip);
    memcpy(route.ip, ip.b, sizeof route.ip); /* the shard masks it */
    struct ix_ip next_hop = sim_next_hop(w, i);
    if (w->c->gateway)
        memcpy(route.gateway, next_hop.b, sizeof route.gateway);
    tell(w, i, addr);
    tell(w, i, route);
    if (!w->c->own_address)
        tell_neighbour(w, i, IX_CTL_NEIGH_SET);
    side->listener_cookie = 0x115700ull + i;
    int err = ix_shard_listen(side->shard, NULL, i ? 0 : sim_family(w), SIM_SERVER_PORT,
                              side->listener_cookie, plan->backlog);
    IX_ASSERT(err == 0);
}

static void make_app(struct sim_world *w, uint32_t i)
{
    struct sim_side *side = &w->side[i];
    const struct ix_simd_side *plan = &w->c->side[i];
    side->block_count = (plan->arena_frames << plan->frame_shift) / SIM_BLOCK_BYTES;
    side->blocks = calloc(side->block_count, 1);
    side->chunk_count = side->block_count + plan->pool_frames;
    side->chunks = calloc(side->chunk_count, sizeof *side->chunks);
    for (uint32_t k = 0; k < side->chunk_count; k++)
        side->chunks[k].next = k + 1 < side->chunk_count ? k + 1 : IX_NONE;
    side->held = calloc(plan->pool_frames, sizeof *side->held);
    side->calls = calloc(side->io->max_calls, sizeof *side->calls);
    IX_ASSERT(side->blocks && side->chunks && side->held && side->calls);
}

/* Moves the clocks on until the sequence numbers of the first connection are about to wrap around:
 * the ISN counts with the clock. */
static void near_wrap(struct sim_world *w)
{
    const struct sim_conn *conn = &w->conns[0];
    for (uint32_t e = 0; e < 2; e++) {
        struct sim_side *side = &w->side[conn->end[e].side];
        struct ix_flow_key key = {
            .peer = sim_side_ip(w, 1 - conn->end[e].side),
            .local = sim_side_ip(w, conn->end[e].side),
            .peer_port = e ? conn->port : conn->server_port,
            .local_port = e ? conn->server_port : conn->port,
            .family = sim_family(w),
        };
        uint32_t isn = ix_tcp_isn(&side->shard->tcp, &key);
        uint32_t target = 0u - (uint32_t)sim_log_range(&w->random, 1, 20000);
        side->clock_ns += (uint64_t)(target - isn) << 12;
    }
}

static struct sim_world *make_world(const struct ix_simd_case *c, struct ix_simd_result *result)
{
    struct sim_world *w = calloc(1, sizeof *w);
    IX_ASSERT(w);
    w->c = c;
    w->result = result;
    w->random = c->seed ^ 0x776f726c64ull;
    make_wire(w);
    sim_plan_conns(w);
    for (uint32_t i = 0; i < 2; i++) {
        make_shard(w, i);
        make_app(w, i);
    }
    if (c->wrap_isn)
        near_wrap(w);
    return w;
}

static void free_world(struct sim_world *w)
{
    for (uint32_t i = 0; i < 2; i++) {
        free(w->side[i].memory);
        free(w->side[i].blocks);
        free(w->side[i].chunks);
        free(w->side[i].held);
        free(w->side[i].calls);
        free(w->umem[i]);
    }
    free(w->wire_memory);
    free(w);
}

/* ---- time -------------------------------------------------------------------------- */

/* When the side is to be polled next. As its owner would: when its link is readable (poll(2) says
 * so of RX, not of COMPLETION), at its deadline, or when its application has something to do. */
static uint64_t next_poll_ns(const struct sim_world *w, uint32_t i)
{
    const struct sim_side *side = &w->side[i];
    const struct ix_sim_ring *rx = &w->wire.end[i].rx;
    uint64_t want_ns = side->app_next_ns;
    uint64_t deadline_ns = ix_shard_next_deadline(side->shard, w->now_ns + side->clock_ns);
    if (deadline_ns != UINT64_MAX)
        deadline_ns = deadline_ns > side->clock_ns ? deadline_ns - side->clock_ns : 0;
    want_ns = IX_MIN(want_ns, deadline_ns);
    if (rx->head != rx->tail || side->idle_poll)
        want_ns = 0;
    if (want_ns == SIM_NEVER)
        return SIM_NEVER;
    want_ns = IX_MAX(want_ns, side->earliest_ns);
    return IX_MAX(want_ns, side->stalled_until_ns);
}

static void serve_requests(struct sim_world *w, uint32_t i)
{
    struct ix_ctl_msg msg;
    bool upset = false;
    for (uint32_t k = 0; k < w->c->upset_count; k++)
        upset |= w->c->upsets[k].kind == IX_SIMD_NEIGH && w->c->upsets[k].side == i &&
                 w->c->upsets[k].at_ns <= w->now_ns &&
                 w->now_ns < w->c->upsets[k].at_ns + w->c->upsets[k].for_ns;
    while (ix_ctl_recv(w->side[i].shard, &msg))
        if (msg.type == IX_CTL_NEIGH_MISS && !w->c->own_address && !upset)
            tell_neighbour(w, i, IX_CTL_NEIGH_SET);
}

static void poll_side(struct sim_world *w, uint32_t i)
{
    struct sim_side *side = &w->side[i];
    const struct ix_simd_side *plan = &w->c->side[i];
    sim_app_act(w, side);
    uint32_t n_calls = side->io->n_calls;
    uint64_t now_ns = w->now_ns + side->clock_ns;
    if (sim_chance(&w->random, plan->back_ppm))
        now_ns -= sim_range(&w->random, 0, IX_MIN(now_ns, SIM_S));
    uint64_t idle = side->shard->counters.cycles_idle;
    (void)ix_shard_poll(side->shard, now_ns);
    side->idle_run =
        side->shard->counters.cycles_idle == idle ? 0 : side->idle_run + !side->idle_poll;
    if (side->idle_run > IDLE_RUN_MAX)
        sim_fail(w, "side %u: %u polls in a row had nothing to do", i, side->idle_run);
    side->shard_ns = IX_MAX(side->shard_ns, now_ns);
    if (w->c->check_every && ++side->polls % w->c->check_every == 0)
        sim_check_shard(w, i);
    w->result->steps++;
    sim_app_results(w, side, n_calls);
    sim_app_events(w, side);
    serve_requests(w, i);
    sim_app_act(w, side);
    side->earliest_ns =
        w->now_ns + plan->poll_ns + sim_range(&w->random, 0, IX_MAX(plan->poll_ns / 4, 1u));
    side->idle_poll = sim_chance(&w->random, plan->idle_polls_ppm);
}

/* Packets may be no longer than what every path must carry; later what they could be at first. */
static void narrow(struct sim_world *w, uint32_t side, bool narrow)
{
    struct ix_sim_path path = w->c->path[side];
    if (narrow)
        path.mtu = w->c->six ? IX_IPV6_MTU_MIN : IX_MTU_MIN;
    int err = ix_sim_wire_set_path(&w->wire, side, &path);
    IX_ASSERT(err == 0);
}

static void upset(struct sim_world *w, const struct ix_simd_upset *u, bool begins)
{
    sim_trace(w, "upset %u of side %u %s", u->kind, u->side, begins ? "begins" : "ends");
    switch (u->kind) {
    case IX_SIMD_STALL:
        if (begins)
            w->side[u->side].stalled_until_ns = u->at_ns + u->for_ns;
        break;
    case IX_SIMD_DOWN:
        ix_sim_end_set_down(&w->wire.end[u->side], begins);
        break;
    case IX_SIMD_JUMP:
        w->side[u->side].clock_ns += begins ? u->for_ns : 0;
        break;
    case IX_SIMD_NARROW:
        narrow(w, u->side, begins);
        break;
    default:
        if (begins)
            tell_neighbour(w, u->side, IX_CTL_NEIGH_DEL);
        else if (!w->c->own_address)
            tell_neighbour(w, u->side, IX_CTL_NEIGH_SET);
    }
}

/* Upsets are in the order of their beginning. Returns when the next begins or ends. */
static uint64_t run_upsets(struct sim_world *w)
{
    uint64_t next_ns = SIM_NEVER;
    static const uint32_t begun = 1, ended = 2;
    uint32_t *state = w->upset_state;
    for (uint32_t i = 0; i < w->c->upset_count; i++) {
        const struct ix_simd_upset *u = &w->c->upsets[i];
        if (!(state[i] & begun) && u->at_ns <= w->now_ns) {
            state[i] |= begun;
            upset(w, u, true);
        }
        if (!(state[i] & ended) && u->at_ns + u->for_ns <= w->now_ns) {
            state[i] |= ended;
            upset(w, u, false);
        }
        if (!(state[i] & begun))
            next_ns = IX_MIN(next_ns, u->at_ns);
        else if (!(state[i] & ended))
            next_ns = IX_MIN(next_ns, u->at_ns + u->for_ns);
    }
    return next_ns;
}

/* The canaries that live in the world around the applications. */
static void let_canary_loose(struct sim_world *w)
{
    if (w->canary_done || w->result->bytes < 1000)
        return;
    if (w->c->canary == IX_SIMD_BLACK_HOLE) {
        struct ix_sim_path path = {.loss_ppm = IX_SIM_PPM};
        w->canary_done = ix_sim_wire_set_path(&w->wire, 0, &path) == 0;
    } else if (w->c->canary == IX_SIMD_ASSERTION) {
        w->canary_done = true;
        ix_frame_untake_fill(&w->side[0].shard->frames, w->side[0].io->arena_frame);
    }
}

/* Goes on to the next thing that happens. Returns false if nothing will ever happen again. */
static bool step(struct sim_world *w)
{
    uint64_t next_ns = IX_MIN(ix_sim_wire_next_ns(&w->wire), run_upsets(w));
    uint64_t due_ns[2];
    for (uint32_t i = 0; i < 2; i++) {
        due_ns[i] = next_poll_ns(w, i);
        next_ns = IX_MIN(next_ns, due_ns[i]);
    }
    if (next_ns == SIM_NEVER)
        return false;
    w->now_ns = IX_MAX(w->now_ns, next_ns);
    let_canary_loose(w);
    ix_sim_wire_advance(&w->wire, w->now_ns);
    for (uint32_t i = 0; i < 2 && !sim_failed(w); i++)
        if (due_ns[i] <= w->now_ns)
            poll_side(w, i);
    if (w->result->steps % WIRE_CHECK_EVERY == 0) {
        sim_check_wire(w);
        sim_check_conns(w);
    }
    return !sim_failed(w);
}

/* ---- the course of it -------------------------------------------------------------- */

static bool all_over(const struct sim_world *w)
{
    for (uint32_t i = 0; i < w->conn_count; i++)
        if (!sim_conn_over(w, &w->conns[i]))
            return false;
    return true;
}

static bool all_quiet(const struct sim_world *w)
{
    for (uint32_t i = 0; i < 2; i++) {
        const struct sim_side *side = &w->side[i];
        if (side->shard->tcp.in_use || side->held_count || side->io->n_calls ||
            ix_shard_next_deadline(side->shard, 1) != UINT64_MAX ||
            ix_sim_wire_in_flight(&w->wire, i))
            return false;
        const struct ix_sim_ring *rings[] = {&w->wire.end[i].rx, &w->wire.end[i].tx,
                                             &w->wire.end[i].completion};
        for (uint32_t k = 0; k < 3; k++)
            if (rings[k]->head != rings[k]->tail)
                return false;
    }
    return all_over(w);
}

static void fail_stuck(struct sim_world *w, const char *when)
{
    for (uint32_t k = 0; k < 2 * w->conn_count; k++) {
        const struct sim_end *end = sim_end_of(w, k);
        const struct sim_conn *conn = &w->conns[k / 2];
        if (sim_conn_over(w, conn) || end->state == SIM_OVER)
            continue;
        struct ix_conn_info info = {0};
        int err =
            end->handle ? ix_shard_conn_info(w->side[end->side].shard, end->handle, &info) : 1;
        sim_fail(
            w,
            "%s: conn %u end %u (side %u, kind %u, pattern %u) in state %u: sent %u of %u taken "
            "of %u, got %u of %u, eof %d, closed %d %d, paused %d, to give back %u; tcp (%d): "
            "state %u, unacked %u, queued %u, lent %u, windows %u %u, cwnd %u, rto %u us",
            when, k / 2, k % 2, end->side, conn->kind, conn->pattern, end->state, end->tx_sent,
            end->tx_accepted, end->tx_total, end->rx_got, end->rx_total, end->eof, end->close_wr,
            end->close_rd, end->paused, end->done_count, err, info.state, info.unacked_bytes,
            info.queued_bytes, info.lent_bytes, info.snd_wnd, info.rcv_wnd, info.cwnd_bytes,
            info.rto_us);
    }
    for (uint32_t i = 0; i < 2; i++) {
        struct sim_side *side = &w->side[i];
        const struct ix_stats *s = ix_shard_stats(side->shard);
        sim_fail(
            w,
            "%s: side %u: flows %lu (half open %lu, time wait %lu), timers %lu, frames free %lu "
            "fill %lu rx %lu app %lu tx %lu, held %u; other side: flows %u, timers %u",
            when, i, s->flows, s->flows_half_open, s->flows_time_wait, s->timers_armed,
            s->frames_free, s->frames_fill, s->frames_rx, s->frames_app, s->frames_tx,
            side->held_count, w->side[1 - i].shard->tcp.in_use, w->side[1 - i].shard->wheel.armed);
        if (s->flows || s->timers_armed || side->held_count)
            return;
        w->result->failure[0] = 0;
    }
    sim_fail(w, "%s: it is not quiet", when);
}

/* Until `done` says so; at most until limit_ns. */
static void run_until(struct sim_world *w, bool (*done)(const struct sim_world *),
                      uint64_t limit_ns, const char *what)
{
    while (!done(w)) {
        if (w->result->steps >= STEPS_MAX || w->now_ns > limit_ns)
            fail_stuck(w, what);
        if (!step(w)) {
            if (!sim_failed(w) && !done(w))
                fail_stuck(w, "nothing left to wait for");
            return;
        }
    }
}

static void sum_up(struct sim_world *w)
{
    struct ix_simd_result *r = w->result;
    r->now_ns = w->now_ns;
    for (uint32_t i = 0; i < 2; i++) {
        const uint64_t *from = (const uint64_t *)&w->side[i].shard->counters;
        const uint64_t *wire = (const uint64_t *)&w->wire.direction[i].counters;
        for (uint32_t k = 0; k < IX_COUNTER_COUNT; k++)
            ((uint64_t *)&r->counters)[k] += from[k];
        for (uint32_t k = 0; k < sizeof r->wire / sizeof *wire; k++)
            ((uint64_t *)&r->wire)[k] += wire[k];
    }
    for (uint32_t i = 0; i < w->conn_count; i++) {
        const struct sim_end *end = w->conns[i].end;
        r->orderly += end[0].state == SIM_OVER && end[1].state == SIM_OVER && end[0].status == 0 &&
                      end[1].status == 0;
    }
}

static void run(struct sim_world *w)
{
    sim_app_act(w, &w->side[0]);
    sim_app_act(w, &w->side[1]);
    run_until(w, all_over, 3 * w->c->faults_until_ns + FINISH_S * SIM_S, "not over");
    w->result->over_ns = w->now_ns;
    w->quitting = true;
    if (!sim_failed(w))
        run_until(w, all_quiet, w->now_ns + 3 * w->c->faults_until_ns + QUIET_S * SIM_S,
                  "not quiet");
    sum_up(w);
    sim_check_end(w);
}

int ix_simd_run(const struct ix_simd_case *c, struct ix_simd_result *result)
{
    memset(result, 0, sizeof *result);
    struct sim_world *w = make_world(c, result);
    const char *assertion = sim_guarded(run, w);
    if (assertion)
        sim_fail(w, "%s", assertion);
    result->canary = w->canary_done;
    free_world(w);
    return result->failure[0] ? -1 : 0;
}
