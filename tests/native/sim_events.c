/* What the dataplane tells the applications, and whether it may. */
#include "tests/native/sim_world.h"

#include <string.h>

static struct sim_conn *conn_of(struct sim_world *w, const struct sim_end *end)
{
    return &w->conns[end->id / 2];
}

static struct sim_end *other(struct sim_world *w, const struct sim_end *end)
{
    return sim_end_of(w, end->id ^ 1);
}

bool sim_conn_over(const struct sim_world *w, const struct sim_conn *conn)
{
    const struct sim_end *a = &conn->end[0], *b = &conn->end[1];
    if (a->state == SIM_IDLE && w->quitting)
        return b->state == SIM_IDLE || b->state == SIM_OVER;
    if (a->state != SIM_OVER)
        return false;
    return b->state == SIM_OVER ||
           (b->state == SIM_IDLE && (a->status || conn->kind == SIM_REJECT));
}

/* It may be what a connection on the other side has waited for. */
static void over(struct sim_world *w, struct sim_end *end, int32_t status)
{
    end->state = SIM_OVER;
    end->status = status;
    w->side[1 - end->side].app_next_ns = 0;
}

/* ---- results of calls -------------------------------------------------------------- */

static void connect_result(struct sim_world *w, struct sim_conn *conn, struct sim_end *end,
                           const struct ix_call *call)
{
    if (call->result == 0) {
        end->handle = call->handle;
        if (end == &conn->end[0])
            conn->given_port = call->local_port;
        return;
    }
    end->state = SIM_IDLE; /* the port is in TIME_WAIT, the table full: again later */
    conn->start_ns = w->now_ns + 300 * SIM_MS;
    if (call->result != -IX_EADDRINUSE && call->result != -IX_ENOBUFS)
        sim_fail(w, "conn %u: CONNECT says %d", end->id / 2, call->result);
}

static void sendv_result(struct sim_world *w, struct sim_side *side, struct sim_end *end,
                         const struct ix_call *call, uint32_t at)
{
    struct sim_chunk *chunk = &side->chunks[at];
    if (call->result == -IX_EPIPE) {
        end->told_epipe = true; /* DEAD is on its way */
        return;
    }
    if (call->result < 0 || (uint32_t)call->result > call->bytes) {
        sim_fail(w, "conn %u end %u: SENDV of %u bytes says %d", end->id / 2, end->id % 2,
                 call->bytes, call->result);
        return;
    }
    if (call->result && at != end->chunk_next)
        sim_fail(w, "conn %u end %u: SENDV took %d bytes after it had refused earlier ones",
                 end->id / 2, end->id % 2, call->result);
    chunk->accepted += (uint32_t)call->result;
    end->tx_accepted += (uint32_t)call->result;
    if (chunk->accepted == chunk->bytes && at == end->chunk_next)
        end->chunk_next = chunk->next;
    end->blocked |= call->result == 0;
    /* The canary: what was taken last has not left yet. */
    if (w->c->canary == IX_SIMD_TOUCH_BORROWED && !w->canary_done &&
        end->tx_accepted - end->tx_sent > 20000 && call->result > 0) {
        side->io->umem[chunk->addr + chunk->accepted - 1] ^= 1;
        w->canary_done = true;
    }
}

static void one_result(struct sim_world *w, struct sim_side *side, const struct sim_call *note,
                       const struct ix_call *call)
{
    if (note->nonsense) {
        if (call->result >= 0)
            sim_fail(w, "a call that makes no sense was taken: op %u", call->op);
        return;
    }
    struct sim_end *end = note->end == IX_NONE ? NULL : sim_end_of(w, note->end);
    switch (call->op) {
    case IX_CALL_CONNECT:
        connect_result(w, conn_of(w, end), end, call);
        return;
    case IX_CALL_SENDV:
        end->calling = false;
        sendv_result(w, side, end, call, note->chunk);
        return;
    case IX_CALL_ACCEPT:
    case IX_CALL_REJECT:
        end->calling = false;
        if (call->result == 0 && call->op == IX_CALL_ACCEPT)
            end->state = SIM_OPEN;
        else if (call->result == 0)
            over(w, end, end->again ? end->status : 0);
        break;
    case IX_CALL_RECV_DONE:
        end->held_bytes -= call->bytes;
        break;
    case IX_CALL_TIMER_SET:
        if (!(call->flags & IX_TIMER_CANCEL)) {
            end->timer = call->handle;
            end->timer_due_ns = side->shard_ns + call->value;
        }
        break;
    default:
        break;
    }
    if (call->result != 0)
        sim_fail(w, "op %u of conn %u says %d", call->op, note->end / 2, call->result);
}

void sim_app_results(struct sim_world *w, struct sim_side *side, uint32_t n_calls)
{
    for (uint32_t i = 0; i < n_calls && !sim_failed(w); i++)
        one_result(w, side, &side->calls[i], &side->io->calls[i]);
}

/* ---- events ------------------------------------------------------------------------ */

#define REQUIRE(w, end, cond, format, ...) \
    do { \
        if (!(cond)) { \
            sim_fail(w, "conn %u end %u: " format, (end)->id / 2, \
                     (end)->id % 2 __VA_OPT__(, ) __VA_ARGS__); \
            return; \
        } \
    } while (0)

/* A connection that the acceptor knows only by its addresses. */
static struct sim_end *knocking(struct sim_world *w, const struct sim_side *side,
                                const struct ix_event *ev)
{
    uint32_t me = (uint32_t)(side - w->side);
    struct ix_ip peer = sim_side_ip(w, 1 - me);
    if (ev->family != sim_family(w) || memcmp(ev->peer, peer.b, sizeof ev->peer) != 0)
        return NULL;
    for (uint32_t i = w->conn_count; i-- > 0;) {
        struct sim_conn *conn = &w->conns[i];
        struct sim_end *end = &conn->end[1];
        /* A cookie is good for a while. What was under way when its connection ended by a reset
         * brings it once more (RFC 4987 3.6: the server has nothing to know it by). */
        bool again = end->state == SIM_OVER && w->c->cookies;
        if (end->side == me && (end->state == SIM_IDLE || again) && conn->end[0].handle &&
            conn->given_port == ev->peer_port && conn->server_port == ev->local_port &&
            conn->kind != SIM_SIMOPEN) {
            end->again |= again;
            return end;
        }
    }
    return NULL;
}

static void on_knock(struct sim_world *w, struct sim_side *side, const struct ix_event *ev)
{
    struct sim_end *end = knocking(w, side, ev);
    if (!end) {
        sim_fail(w, "KNOCK of a connection that nobody opened, from port %u", ev->peer_port);
        return;
    }
    REQUIRE(w, end, ev->cookie == side->listener_cookie, "KNOCK with cookie %lx", ev->cookie);
    end->state = SIM_KNOCKED;
    end->handle = ev->handle;
    conn_of(w, end)->accept_at_ns = w->now_ns + conn_of(w, end)->accept_delay_ns;
}

/* More connections at once than a listener, a table or the wire could take: all try again at the
 * same times, so the same ones may fail over and over. */
static bool crowded(const struct sim_world *w)
{
    const struct ix_counters *a = &w->side[0].shard->counters, *b = &w->side[1].shard->counters;
    return a->drop_tcp_backlog || a->drop_tcp_flows || a->drop_tcp_accept_full ||
           a->drop_tcp_half_open || b->drop_tcp_half_open || b->drop_tcp_accept_full ||
           b->drop_tcp_backlog || b->drop_tcp_flows || w->wire.direction[0].counters.overflow ||
           w->wire.direction[1].counters.overflow;
}

static void on_connected(struct sim_world *w, struct sim_end *end, const struct ix_event *ev)
{
    struct sim_conn *conn = conn_of(w, end);
    REQUIRE(w, end, end->state == SIM_OPENING, "CONNECTED in state %u", end->state);
    end->state = SIM_OPEN;
    if (ev->status)
        over(w, end, ev->status);
    if (conn->kind == SIM_CANCEL && ev->status == 0) /* ABORT or CLOSE came too late to be first */
        end->close_wr = end->close_rd = end->told_epipe;
    bool neighbour_gone = ev->status == -IX_EHOSTUNREACH && w->c->upset_count;
    if (((ev->status == -IX_ETIMEDOUT && crowded(w)) || neighbour_gone) && conn->tries++ < 3) {
        end->state = SIM_IDLE; /* again */
        end->handle = 0;
        conn->start_ns = w->now_ns + sim_range(&w->random, 0, SIM_S);
        return;
    }
    bool may_fail = conn->tries || conn->kind == SIM_REFUSED || conn->kind == SIM_SIMOPEN ||
                    conn->kind == SIM_CANCEL || conn->kind == SIM_REJECT;
    REQUIRE(w, end, ev->status == 0 || may_fail, "CONNECTED says %d", ev->status);
    REQUIRE(w, end, ev->status != 0 || conn->kind != SIM_REFUSED, "connected to a closed port");
    if (conn->kind == SIM_REFUSED)
        REQUIRE(w, end, ev->status == -IX_ECONNREFUSED, "refused connection says %d", ev->status);
}

static void on_eof(struct sim_world *w, struct sim_end *end)
{
    const struct sim_end *peer = other(w, end);
    REQUIRE(w, end, peer->close_wr, "end of stream, and the peer did not close");
    REQUIRE(w, end, end->rx_got == peer->tx_accepted, "end of stream after %u of %u bytes",
            end->rx_got, peer->tx_accepted);
    end->eof = true;
}

static void on_recv(struct sim_world *w, struct sim_side *side, struct sim_end *end,
                    const struct ix_event *ev)
{
    struct sim_conn *conn = conn_of(w, end);
    REQUIRE(w, end, end->state == SIM_OPEN, "RECV in state %u", end->state);
    REQUIRE(w, end, !end->close_rd, "RECV after CLOSE");
    REQUIRE(w, end, !end->eof, "RECV after the end of the stream");
    if (ev->bytes == 0) {
        on_eof(w, end);
        return;
    }
    uint32_t frame_bytes = 1u << side->io->frame_shift;
    REQUIRE(w, end, ev->frame < side->io->arena_frame && ev->offset + ev->bytes <= frame_bytes,
            "RECV of frame %u, bytes %u at %u", ev->frame, ev->bytes, ev->offset);
    struct sim_held *held = &side->held[ev->frame];
    REQUIRE(w, end, held->handle == 0 && !held->echoing, "RECV of frame %u, which is lent already",
            ev->frame);
    const uint8_t *data =
        side->io->umem + ((uint64_t)ev->frame << side->io->frame_shift) + ev->offset;
    uint32_t good = sim_stream_check(conn->key[~end->id & 1], end->rx_got, data, ev->bytes);
    REQUIRE(w, end, good == ev->bytes, "byte %u of the stream is wrong (RECV of %u bytes at %u)",
            end->rx_got + good, ev->bytes, end->rx_got);
    *held = (struct sim_held){.handle = ev->handle,
                              .position = end->rx_got,
                              .end = end->id,
                              .offset = ev->offset,
                              .bytes = (uint16_t)ev->bytes};
    side->held_count++;
    end->rx_got += ev->bytes;
    end->held_bytes += ev->bytes;
    w->result->bytes += ev->bytes;
    REQUIRE(w, end, end->rx_got <= other(w, end)->tx_accepted, "%u bytes received of %u sent",
            end->rx_got, other(w, end)->tx_accepted);
    if (end->done_head == IX_NONE)
        end->done_due_ns = w->now_ns + 5 * SIM_MS;
    if (conn->pattern == SIM_ECHO && (end->id & 1) && !end->close_wr) {
        held->echoing = true;
        sim_chunk_append(side, end, (uint64_t)(data - side->io->umem), ev->bytes, ev->frame);
    } else {
        sim_give_back(side, end, ev->frame);
    }
}

static void on_sent(struct sim_world *w, struct sim_side *side, struct sim_end *end,
                    const struct ix_event *ev)
{
    REQUIRE(w, end, end->state == SIM_OPEN, "SENT in state %u", end->state);
    REQUIRE(w, end, ev->bytes > 0, "SENT of nothing");
    REQUIRE(w, end, ev->bytes <= end->tx_accepted - end->tx_sent, "SENT of %u bytes, %u borrowed",
            ev->bytes, end->tx_accepted - end->tx_sent);
    REQUIRE(w, end, ev->window <= side->cfg.sndbuf_max_bytes, "a window of %u bytes", ev->window);
    end->tx_sent += ev->bytes;
    end->sent_of_head += ev->bytes;
    while (end->chunk_head != IX_NONE && end->sent_of_head >= side->chunks[end->chunk_head].bytes) {
        end->sent_of_head -= side->chunks[end->chunk_head].bytes;
        sim_chunk_drop_head(w, side, end);
    }
    for (uint32_t i = 0; i < 2 * w->conn_count; i++) /* there is room again, for everybody */
        sim_end_of(w, i)->blocked = false;
}

/* Was a connection of the end's side reset because frames were used up, and might it be? A small
 * pool is used up by applications that pause, too. */
static bool pressed(const struct sim_world *w, const struct sim_end *end)
{
    bool may = w->c->greedy || w->c->side[end->side].pool_frames < SIM_POOL;
    return may && w->side[end->side].shard->counters.tcp_pressure_resets;
}

/* May the connection have ended so? */
static bool end_is_right(const struct sim_world *w, const struct sim_conn *conn,
                         const struct sim_end *end, const struct sim_end *peer)
{
    bool complete =
        end->tx_sent == end->tx_accepted && (end->eof || (end->close_rd && end->close_wr));
    if (end->status == 0)
        return complete && end->close_wr;
    if (end->status == -IX_ENOBUFS)
        return pressed(w, end);
    if (end->status == -IX_ECONNRESET && pressed(w, peer))
        return true;
    if (conn->kind == SIM_ORDERLY || conn->kind == SIM_SIMOPEN) {
        /* Our last FIN was repeated after the peer's TIME_WAIT had ended: answered by RST. */
        bool forgotten = peer->state == SIM_OVER && peer->status == 0 && end->close_wr &&
                         end->rx_got == end->rx_total && peer->rx_got == peer->rx_total;
        bool simopen_failed =
            conn->kind == SIM_SIMOPEN && peer->state == SIM_OVER && peer->status < 0;
        bool given_up = crowded(w) && end->rx_got == 0 && peer->state == SIM_IDLE;
        bool early = w->c->side[peer->side].time_wait_ms < 60000 ||
                     w->c->side[peer->side].max_flows < 160 || w->c->upset_count;
        if (end->status == -IX_ETIMEDOUT) /* its cookie never found room: nobody answers */
            return given_up && w->c->cookies;
        return end->status == -IX_ECONNRESET &&
               ((forgotten && early) || simopen_failed || given_up);
    }
    if (end->status == -IX_ECONNABORTED)
        return end->told_epipe;
    return end->status == -IX_ECONNRESET || end->status == -IX_ETIMEDOUT;
}

static void on_dead(struct sim_world *w, struct sim_side *side, struct sim_end *end,
                    const struct ix_event *ev)
{
    struct sim_conn *conn = conn_of(w, end);
    const struct sim_end *peer = other(w, end);
    REQUIRE(w, end, end->state == SIM_OPEN || end->state == SIM_KNOCKED, "DEAD in state %u",
            end->state);
    bool was_open = end->state == SIM_OPEN;
    over(w, end, ev->status);
    REQUIRE(w, end, !was_open || end_is_right(w, conn, end, peer),
            "DEAD says %d; sent %u of %u taken of %u, got %u of %u, eof %d, closed %d %d; the peer "
            "is in state %u (%d)",
            end->status, end->tx_sent, end->tx_accepted, end->tx_total, end->rx_got, end->rx_total,
            end->eof, end->close_wr, end->close_rd, peer->state, peer->status);
    while (end->chunk_head != IX_NONE)
        sim_chunk_drop_head(w, side, end);
    for (uint32_t i = 0; i < 2 * w->conn_count; i++)
        sim_end_of(w, i)->blocked = false;
}

static void on_timer(struct sim_world *w, struct sim_side *side, struct sim_end *end,
                     const struct ix_event *ev)
{
    if (ev->handle != end->timer)
        return; /* it was cancelled in this very poll */
    REQUIRE(w, end, side->shard_ns >= end->timer_due_ns, "TIMER %lu ns too early",
            end->timer_due_ns - side->shard_ns);
    end->timer = 0;
    end->paused = false;
}

static struct sim_end *end_of_event(struct sim_world *w, struct sim_side *side,
                                    const struct ix_event *ev)
{
    for (uint32_t i = 0; i < 2 * w->conn_count; i++) {
        struct sim_end *end = sim_end_of(w, i);
        if (end->side != (uint32_t)(side - w->side))
            continue;
        if (ev->cookie == sim_cookie(i) || (ev->cookie == side->listener_cookie &&
                                            end->state == SIM_KNOCKED && end->handle == ev->handle))
            return end;
    }
    return NULL;
}

static void one_event(struct sim_world *w, struct sim_side *side, const struct ix_event *ev)
{
    if (ev->type == IX_EV_KNOCK) {
        on_knock(w, side, ev);
        return;
    }
    struct sim_end *end = end_of_event(w, side, ev);
    if (!end) {
        sim_fail(w, "event %u of nobody: handle %lx, cookie %lx", ev->type, ev->handle, ev->cookie);
        return;
    }
    if (ev->type == IX_EV_TIMER) {
        on_timer(w, side, end, ev);
        return;
    }
    REQUIRE(w, end, ev->handle == end->handle, "event %u with handle %lx instead of %lx", ev->type,
            ev->handle, end->handle);
    switch (ev->type) {
    case IX_EV_CONNECTED:
        on_connected(w, end, ev);
        break;
    case IX_EV_RECV:
        on_recv(w, side, end, ev);
        break;
    case IX_EV_SENT:
        on_sent(w, side, end, ev);
        break;
    case IX_EV_DEAD:
        on_dead(w, side, end, ev);
        break;
    default:
        sim_fail(w, "event of type %u", ev->type);
    }
}

/* The canaries that live between dataplane and application. Returns how often the event counts. */
static uint32_t times(struct sim_world *w, struct sim_side *side, const struct ix_event *ev)
{
    uint32_t canary = w->c->canary;
    if (canary == IX_SIMD_HEALTHY || w->canary_done)
        return 1;
    const struct sim_end *end = end_of_event(w, side, ev);
    bool waits = end && (end->close_half || end->close_after_eof); /* for the end of the stream */
    bool it = (canary == IX_SIMD_LOSE_SENT && ev->type == IX_EV_SENT) ||
              (canary == IX_SIMD_LOSE_EOF && waits && ev->type == IX_EV_RECV && !ev->bytes) ||
              (canary == IX_SIMD_REPEAT_RECV && ev->type == IX_EV_RECV && ev->bytes);
    if (!it)
        return 1;
    w->canary_done = true;
    return canary == IX_SIMD_REPEAT_RECV ? 2 : 0;
}

void sim_app_events(struct sim_world *w, struct sim_side *side)
{
    for (uint32_t i = 0; i < side->io->n_events && !sim_failed(w); i++) {
        const struct ix_event *ev = &side->io->events[i];
        sim_trace(w, "side %u: event %u handle %lx cookie %lx bytes %u frame/status %d",
                  (unsigned)(side - w->side), ev->type, ev->handle, ev->cookie & 0xffff, ev->bytes,
                  ev->status);
        for (uint32_t n = times(w, side, ev); n-- > 0;)
            one_event(w, side, ev);
    }
}
