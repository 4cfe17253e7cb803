/* The applications' calls: what each end of each connection does next. */
#include "tests/native/sim_world.h"

#include <string.h>

enum {
    SENDVS_PER_ACT = 3,
    HOLD_NS = 5000000, /* frames are not held longer for want of more */
    POISON = 0xee,     /* fills memory that is not lent */
};

/* ---- memory ------------------------------------------------------------------------ */

static uint64_t arena_addr(const struct sim_side *side)
{
    return (uint64_t)side->io->arena_frame << side->io->frame_shift;
}

static bool blocks_free(const struct sim_side *side, uint32_t first, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        if (first + i >= side->block_count || side->blocks[first + i])
            return false;
    return true;
}

/* A run of free blocks that starts at a multiple of `step`, or IX_NONE. */
static uint32_t find_blocks(struct sim_world *w, struct sim_side *side, uint32_t count,
                            uint32_t step)
{
    uint32_t places = side->block_count / step;
    uint32_t at = (uint32_t)sim_range(&w->random, 0, places - 1);
    for (uint32_t i = 0; i < places; i++, at = (at + 1) % places)
        if (blocks_free(side, at * step, count))
            return at * step;
    return IX_NONE;
}

static void mark(struct sim_side *side, uint64_t addr, uint32_t bytes, uint8_t used)
{
    uint64_t first = (addr - arena_addr(side)) / SIM_BLOCK_BYTES;
    uint64_t last = (addr + bytes - 1 - arena_addr(side)) / SIM_BLOCK_BYTES;
    for (uint64_t i = first; i <= last; i++) {
        side->blocks[i] = used;
        side->blocks_used += used ? 1 : -1u;
    }
    side->arena_full = false;
}

/* An offset, at most `most`, such that full segments from there on meet the headroom of a frame:
 * where payload may be sent from where it lies. `most` itself if there is none. */
static uint32_t on_headroom(uint64_t addr, uint32_t frame_bytes, uint32_t most)
{
    enum { FULL_SEGMENT_BYTES = 1448 };
    for (uint32_t n = 1; n < 8; n++) {
        uint32_t need = (uint32_t)(IX_TX_HEADROOM - addr - n * FULL_SEGMENT_BYTES) % frame_bytes;
        if (need < most)
            return need;
    }
    return most;
}

/* Memory of the arena for at most *bytes bytes; 0 if there is none. */
static uint64_t arena_take(struct sim_world *w, struct sim_side *side, uint32_t *bytes)
{
    const struct ix_simd_side *plan = &w->c->side[side == &w->side[1]];
    uint32_t frame_bytes = 1u << side->io->frame_shift, offset, step = 1;
    for (; !side->arena_full; *bytes /= 2) {
        if (plan->arena_frames_only) {
            *bytes = IX_MIN(*bytes, frame_bytes - IX_TX_HEADROOM);
            offset = IX_TX_HEADROOM;
            step = frame_bytes / SIM_BLOCK_BYTES;
        } else {
            offset = (uint32_t)sim_range(&w->random, 0, IX_TX_HEADROOM - 1);
        }
        uint32_t count = (offset + *bytes + SIM_BLOCK_BYTES - 1) / SIM_BLOCK_BYTES;
        uint32_t at = *bytes ? find_blocks(w, side, count, step) : IX_NONE;
        if (at != IX_NONE) {
            uint64_t addr = arena_addr(side) + (uint64_t)at * SIM_BLOCK_BYTES;
            addr += plan->arena_frames_only ? offset : on_headroom(addr, frame_bytes, offset);
            mark(side, addr, *bytes, 1);
            return addr;
        }
        side->arena_full = *bytes <= 1;
    }
    return 0;
}

void sim_chunk_append(struct sim_side *side, struct sim_end *end, uint64_t addr, uint32_t bytes,
                      uint32_t frame)
{
    uint32_t at = side->chunk_free;
    IX_ASSERT(at != IX_NONE);
    side->chunk_free = side->chunks[at].next;
    side->chunks_used++;
    side->chunks[at] =
        (struct sim_chunk){.addr = addr, .bytes = bytes, .frame = frame, .next = IX_NONE};
    if (end->chunk_tail == IX_NONE)
        end->chunk_head = at;
    else
        side->chunks[end->chunk_tail].next = at;
    end->chunk_tail = at;
    if (end->chunk_next == IX_NONE)
        end->chunk_next = at;
    end->tx_made += bytes;
}

void sim_chunk_drop_head(struct sim_world *w, struct sim_side *side, struct sim_end *end)
{
    uint32_t at = end->chunk_head;
    struct sim_chunk *chunk = &side->chunks[at];
    if (chunk->frame != IX_NONE) {
        side->held[chunk->frame].echoing = false;
        sim_give_back(side, end, chunk->frame);
    } else {
        mark(side, chunk->addr, chunk->bytes, 0);
        memset(side->io->umem + chunk->addr, POISON, chunk->bytes);
    }
    end->done_due_ns = w->now_ns;
    end->chunk_head = chunk->next;
    if (end->chunk_next == at)
        end->chunk_next = chunk->next;
    if (end->chunk_head == IX_NONE)
        end->chunk_tail = IX_NONE;
    chunk->next = side->chunk_free;
    side->chunk_free = at;
    side->chunks_used--;
}

void sim_give_back(struct sim_side *side, struct sim_end *end, uint32_t frame)
{
    side->held[frame].next = IX_NONE;
    if (end->done_tail == IX_NONE)
        end->done_head = frame;
    else
        side->held[end->done_tail].next = frame;
    end->done_tail = frame;
    end->done_count++;
}

/* ---- calls ------------------------------------------------------------------------- */

static bool may_call(const struct sim_side *side)
{
    return side->io->n_calls < side->io->max_calls;
}

static struct ix_call *call(struct sim_side *side, const struct sim_end *end, uint8_t op)
{
    IX_ASSERT(may_call(side));
    uint32_t at = side->io->n_calls++;
    side->calls[at] = (struct sim_call){.end = end ? end->id : IX_NONE, .chunk = IX_NONE};
    side->io->calls[at] = (struct ix_call){.op = op, .handle = end ? end->handle : 0};
    return &side->io->calls[at];
}

static void at_latest(struct sim_side *side, uint64_t when_ns)
{
    side->app_next_ns = IX_MIN(side->app_next_ns, when_ns);
}

static void act_connect(struct sim_world *w, struct sim_side *side, struct sim_conn *conn,
                        struct sim_end *end)
{
    bool first = end == &conn->end[0];
    if (!first && conn->kind != SIM_SIMOPEN)
        return;
    if (w->quitting || (conn->after != IX_NONE && !sim_conn_over(w, &w->conns[conn->after])))
        return;
    uint64_t start_ns = conn->start_ns + (first ? 0 : conn->accept_delay_ns % SIM_MS);
    if (w->now_ns < start_ns) {
        at_latest(side, start_ns);
        return;
    }
    struct ix_call *c = call(side, end, IX_CALL_CONNECT);
    struct ix_ip peer = sim_side_ip(w, 1 - end->side);
    c->family = sim_family(w);
    c->cookie = sim_cookie(end->id);
    memcpy(c->peer, peer.b, sizeof c->peer);
    c->peer_port = first ? conn->server_port : conn->port;
    c->local_port = first ? conn->port : conn->server_port;
    end->state = SIM_OPENING;
    sim_trace(w, "side %u: CONNECT %u.%u port %u -> %u", end->side, end->id / 2, end->id % 2,
              c->local_port, c->peer_port);
}

static void act_knocked(struct sim_world *w, struct sim_side *side, struct sim_conn *conn,
                        struct sim_end *end)
{
    if (w->now_ns < conn->accept_at_ns) {
        at_latest(side, conn->accept_at_ns);
        return;
    }
    if (end->calling)
        return;
    bool reject = conn->kind == SIM_REJECT || end->again;
    call(side, end, reject ? IX_CALL_REJECT : IX_CALL_ACCEPT)->cookie = sim_cookie(end->id);
    end->calling = true;
    sim_trace(w, "side %u: %s %u", end->side, reject ? "REJECT" : "ACCEPT", end->id / 2);
}

static void option(struct sim_side *side, struct sim_end *end, uint32_t which, uint64_t value)
{
    struct ix_call *c = call(side, end, IX_CALL_OPTION);
    c->bytes = which;
    c->value = value;
}

static void act_options(struct sim_side *side, struct sim_end *end)
{
    if (end->options_set || side->io->max_calls - side->io->n_calls < 3)
        return;
    if (end->nagle)
        option(side, end, IX_OPT_NODELAY, 0);
    if (end->keepalive_ns)
        option(side, end, IX_OPT_KEEPALIVE_NS, end->keepalive_ns);
    if (end->rcvbuf_bytes)
        option(side, end, IX_OPT_RCVBUF, end->rcvbuf_bytes);
    end->options_set = true;
}

/* How many bytes of its stream the end may have produced by now. */
static uint32_t may_make(const struct sim_conn *conn, const struct sim_end *end)
{
    bool first = end == &conn->end[0];
    switch (conn->pattern) {
    case SIM_REQUESTS:
        return first ? IX_MIN(end->tx_total, conn->request * (1 + end->rx_got / conn->reply))
                     : conn->reply * (end->rx_got / conn->request);
    case SIM_ECHO: /* made of what is received */
        return first ? end->tx_total : end->tx_made;
    case SIM_ECHO_COPY:
        return first ? end->tx_total : end->rx_got;
    default:
        return end->tx_total;
    }
}

static void act_send(struct sim_world *w, struct sim_side *side, struct sim_conn *conn,
                     struct sim_end *end)
{
    if (end->calling || end->blocked || end->close_wr || end->told_epipe)
        return;
    uint32_t at = end->chunk_next, limit = may_make(conn, end);
    uint32_t most = w->c->chunk_max ? 1 : SENDVS_PER_ACT; /* or several would share a segment */
    for (uint32_t n = 0; n < most && may_call(side); n++) {
        if (at == IX_NONE && end->tx_made < limit) {
            uint32_t bytes = (uint32_t)sim_range(&w->random, 1, end->chunk_max),
                     made = end->tx_made;
            bytes = IX_MIN(bytes, limit - made);
            uint64_t addr = arena_take(w, side, &bytes);
            if (addr == 0)
                return;
            sim_stream_fill(conn->key[end->id & 1], made, side->io->umem + addr, bytes);
            sim_chunk_append(side, end, addr, bytes, IX_NONE);
            at = end->chunk_tail;
        }
        if (at == IX_NONE)
            return;
        struct sim_chunk *chunk = &side->chunks[at];
        struct ix_call *c = call(side, end, IX_CALL_SENDV);
        c->addr = chunk->addr + chunk->accepted;
        c->bytes = chunk->bytes - chunk->accepted;
        if (end->send_more && end->tx_made < limit && n + 1 < most)
            c->flags = IX_SEND_MORE;
        side->calls[side->io->n_calls - 1].chunk = at;
        end->calling = true;
        at = chunk->next;
    }
}

static void close_end(struct sim_world *w, struct sim_side *side, struct sim_end *end, bool half)
{
    call(side, end, IX_CALL_CLOSE)->flags = half ? IX_CLOSE_WRITE : 0;
    end->close_wr = true;
    end->close_rd |= !half;
    sim_trace(w, "side %u: CLOSE%s %u.%u", end->side, half ? " WRITE" : "", end->id / 2,
              end->id % 2);
}

static void act_close(struct sim_world *w, struct sim_side *side, struct sim_conn *conn,
                      struct sim_end *end)
{
    uint32_t done = end->rx_got + end->tx_sent;
    if (!may_call(side))
        return;
    bool quit = end->quit_after_close ? end->close_wr : done >= end->quit_at;
    if (end->quit_at != IX_NONE && quit && !end->calling) {
        end->quit_at = IX_NONE;
        if (conn->kind == SIM_CLOSE_EARLY) {
            close_end(w, side, end, false);
        } else {
            call(side, end, IX_CALL_ABORT);
            end->told_epipe = end->close_wr = end->close_rd = true;
            sim_trace(w, "side %u: ABORT %u.%u", end->side, end->id / 2, end->id % 2);
        }
    } else if (end->close_wr) {
        if (end->eof && !end->close_rd && sim_chance(&w->random, 100000))
            close_end(w, side, end, false);
    } else if (end->tx_accepted == end->tx_total && (end->eof || !end->close_after_eof) &&
               (end->close_half || end->rx_got == end->rx_total)) {
        close_end(w, side, end, end->close_half);
    }
}

static void act_pause(struct sim_world *w, struct sim_side *side, struct sim_end *end)
{
    if (end->paused || end->pause_at == IX_NONE || end->rx_got < end->pause_at || !may_call(side))
        return;
    end->paused = true;
    end->pause_at = IX_NONE;
    struct ix_call *c = call(side, end, IX_CALL_TIMER_SET);
    c->handle = 0;
    c->cookie = sim_cookie(end->id);
    c->value = end->pause_ns;
    sim_trace(w, "side %u: pause %u.%u", end->side, end->id / 2, end->id % 2);
}

/* Gives frames back, some of them in two parts. What was lent must still be as it came. */
static void act_done(struct sim_world *w, struct sim_side *side, struct sim_end *end)
{
    if (end->done_head == IX_NONE || (end->paused && end->state == SIM_OPEN))
        return;
    if (end->state == SIM_OPEN && end->done_count < end->hold_frames &&
        w->now_ns < end->done_due_ns) {
        at_latest(side, end->done_due_ns);
        return;
    }
    while (end->done_head != IX_NONE && may_call(side)) {
        uint32_t frame = end->done_head;
        struct sim_held *held = &side->held[frame];
        uint64_t addr = ((uint64_t)frame << side->io->frame_shift) + held->offset;
        uint32_t bytes = held->bytes - held->returned;
        if (bytes > 1 && held->returned == 0 && sim_chance(&w->random, 100000))
            bytes = (uint32_t)sim_range(&w->random, 1, bytes - 1);
        uint64_t key = w->conns[held->end / 2].key[~held->end & 1];
        uint32_t good = sim_stream_check(key, held->position, side->io->umem + addr, held->bytes);
        if (good < held->bytes)
            sim_fail(w, "conn %u end %u: lent frame %u was written to at byte %u of %u",
                     held->end / 2, held->end % 2, frame, good, held->bytes);
        struct ix_call *c = call(side, end, IX_CALL_RECV_DONE);
        c->handle = held->handle;
        c->addr = addr + held->returned;
        c->bytes = bytes;
        held->returned = (uint16_t)(held->returned + bytes);
        if (held->returned < held->bytes)
            continue;
        held->handle = 0;
        side->held_count--;
        end->done_head = held->next;
        end->done_count--;
        if (end->done_head == IX_NONE)
            end->done_tail = IX_NONE;
        if (w->c->canary == IX_SIMD_FORGET_DONE && !w->canary_done) {
            w->canary_done = true;
            side->io->n_calls--;
        }
    }
    end->done_due_ns = w->now_ns + HOLD_NS;
}

/* The timer of a pause that ended early. */
static void act_cancel(struct sim_side *side, struct sim_end *end)
{
    if (end->timer == 0 || !may_call(side))
        return;
    struct ix_call *c = call(side, end, IX_CALL_TIMER_SET);
    c->handle = end->timer;
    c->flags = IX_TIMER_CANCEL;
    end->timer = 0;
}

static void act_end(struct sim_world *w, struct sim_side *side, struct sim_conn *conn,
                    struct sim_end *end)
{
    switch (end->state) {
    case SIM_IDLE:
        act_connect(w, side, conn, end);
        break;
    case SIM_OPENING:
        if (conn->kind == SIM_CANCEL && end->handle && !end->told_epipe) {
            call(side, end, sim_chance(&w->random, 500000) ? IX_CALL_ABORT : IX_CALL_CLOSE);
            end->told_epipe = true;
        }
        break;
    case SIM_KNOCKED:
        act_knocked(w, side, conn, end);
        break;
    case SIM_OPEN:
        act_options(side, end);
        act_pause(w, side, end);
        act_done(w, side, end);
        act_send(w, side, conn, end);
        act_close(w, side, conn, end);
        break;
    default:
        act_done(w, side, end);
        act_cancel(side, end);
    }
}

/* Something that must be refused, whatever state things are in. */
static void act_nonsense(struct sim_world *w, struct sim_side *side)
{
    if (!sim_chance(&w->random, w->c->nonsense_ppm) || !may_call(side))
        return;
    struct sim_end *end =
        &w->conns[sim_range(&w->random, 0, w->conn_count - 1)].end[sim_range(&w->random, 0, 1)];
    bool live = end->side == (uint32_t)(side - w->side) && end->state == SIM_OPEN;
    uint32_t what = (uint32_t)sim_range(&w->random, 0, 7);
    static const uint8_t ops[8] = {
        IX_CALL_SENDV,  IX_CALL_SENDV,  IX_CALL_RECV_DONE, IX_CALL_RECV_DONE,
        IX_CALL_ACCEPT, IX_CALL_REJECT, IX_CALL_CONNECT,   77};
    struct ix_call *c = call(side, NULL, ops[what]);
    side->calls[side->io->n_calls - 1].nonsense = true;
    c->handle = live ? end->handle : ix_random(&w->random);
    c->addr = side->io->umem_bytes - (what == 0 ? 1 : 0);
    c->bytes = what == 1 ? 0 : 2;
    c->family = 5;
    if (what == 3) { /* a frame that is lent to somebody else, or to nobody */
        c->addr = sim_range(&w->random, 0, side->io->arena_frame - 1) << side->io->frame_shift;
        c->handle ^= 1ull << 40;
    }
}

void sim_app_act(struct sim_world *w, struct sim_side *side)
{
    side->app_next_ns = SIM_NEVER;
    act_nonsense(w, side);
    for (uint32_t n = 0; n < w->conn_count; n++) {
        struct sim_conn *conn = &w->conns[(side->next_conn + n) % w->conn_count];
        for (uint32_t e = 0; e < 2; e++) {
            if (conn->end[e].side != (uint32_t)(side - w->side))
                continue;
            if (!may_call(side)) { /* whoever is left starts next time */
                side->next_conn = (side->next_conn + n) % w->conn_count;
                return;
            }
            act_end(w, side, conn, &conn->end[e]);
        }
    }
}
