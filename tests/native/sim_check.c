/* What must be true of two shards and their applications:
 *
 * While it runs, every byte that an application gets is the right one at its place, memory that is
 * lent to an application stays as it is until given back, every event is legal in its connection's
 * state, and calls have the results that they must have (sim_events.c). After each poll the
 * invariants of all modules of that shard hold. Both ends of a connection agree on its options,
 * and neither thinks to know of more than the other has sent, received or offered.
 *
 * Connections that end in order are complete at both ends, with SENT for every byte taken and DEAD
 * 0. Some time after the faults have stopped every connection has ended.
 *
 * At the end all frames are back, no flow, timer, extent or record is left, and there is
 * nothing to wait for. Where nothing was lost on the way, nothing was sent twice.
 */
#include "tests/native/sim_world.h"

/* ---- while it runs ----------------------------------------------------------------- */

/* What the dataplane says of a connection, and what the application knows of it. */
static void check_accounts(struct sim_world *w, const struct sim_end *end)
{
    struct sim_side *side = &w->side[end->side];
    struct ix_conn_info info;
    if (end->state != SIM_OPEN || side->io->n_events == side->io->max_events ||
        ix_shard_conn_info(side->shard, end->handle, &info) != 0 || info.state == IX_TCP_CLOSED ||
        info.state == IX_TCP_TIME_WAIT)
        return;
    if (info.lent_bytes != end->held_bytes)
        sim_fail(w, "conn %u end %u: %u bytes are lent, it holds %u", end->id / 2, end->id % 2,
                 info.lent_bytes, end->held_bytes);
    if (info.queued_bytes != end->tx_accepted - end->tx_sent)
        sim_fail(w, "conn %u end %u: %u bytes are queued, %u borrowed", end->id / 2, end->id % 2,
                 info.queued_bytes, end->tx_accepted - end->tx_sent);
}

/* What the two shards think of one connection agrees. */
static void check_pair(struct sim_world *w, const struct sim_conn *conn)
{
    const struct ix_tcb *tcb[2];
    for (uint32_t e = 0; e < 2; e++) {
        const struct sim_end *end = &conn->end[e];
        tcb[e] = end->state == SIM_OPEN
                     ? ix_tcp_of_handle(&w->side[end->side].shard->tcp, end->handle)
                     : NULL;
        if (!tcb[e] || tcb[e]->state == IX_TCP_CLOSED || tcb[e]->state == IX_TCP_TIME_WAIT)
            return;
    }
    for (uint32_t e = 0; e < 2; e++)
        if ((tcb[e]->ecn & (IX_ECNF_ON | IX_ECNF_MUTE)) == IX_ECNF_ON &&
            !(tcb[1 - e]->ecn & IX_ECNF_ON))
            sim_fail(w, "conn %u: end %u sends ECT, the other would not echo marks",
                     conn->end[0].id / 2, e);
    uint32_t number = conn->end[0].id / 2, agreed = IX_TF_TS | IX_TF_SACK | IX_TF_WSCALE;
    if ((tcb[0]->flags ^ tcb[1]->flags) & agreed || tcb[0]->snd_wscale != tcb[1]->rcv_wscale ||
        tcb[1]->snd_wscale != tcb[0]->rcv_wscale)
        sim_fail(w, "conn %u: the ends agreed on different options", number);
    for (uint32_t e = 0; e < 2; e++) {
        const struct ix_tcb *from = tcb[e], *to = tcb[1 - e];
        if (ix_seq_gt(from->snd_una, to->rcv_nxt) || ix_seq_gt(to->rcv_nxt, from->snd_max))
            sim_fail(w, "conn %u end %u: una %u, max %u, the other end expects %u", number, e,
                     from->snd_una, from->snd_max, to->rcv_nxt);
        if (ix_seq_gt(to->rcv_nxt, to->rcv_adv))
            sim_fail(w, "conn %u end %u: expects %u, offered %u", number, 1 - e, to->rcv_nxt,
                     to->rcv_adv);
        if (ix_seq_gt(from->snd_una + from->snd_wnd, to->rcv_adv))
            sim_fail(w, "conn %u end %u: it may send up to %u, the other end offered %u", number, e,
                     from->snd_una + from->snd_wnd, to->rcv_adv);
    }
}

void sim_check_conns(struct sim_world *w)
{
    for (uint32_t k = 0; k < 2 * w->conn_count; k++)
        check_accounts(w, sim_end_of(w, k));
    for (uint32_t i = 0; i < w->conn_count; i++)
        check_pair(w, &w->conns[i]);
}

void sim_check_shard(struct sim_world *w, uint32_t side)
{
    const char *wrong = ix_shard_check(w->side[side].shard);
    if (wrong)
        sim_fail(w, "side %u: %s", side, wrong);
}

void sim_check_wire(struct sim_world *w)
{
    const char *wrong = ix_sim_wire_check(&w->wire);
    if (wrong)
        sim_fail(w, "%s", wrong);
    for (uint32_t i = 0; i < 2; i++) {
        const struct ix_sim_end_counters *n = &w->wire.end[i].counters;
        if (n->misuse || n->tx_invalid || n->fill_invalid)
            sim_fail(w, "side %u: link: misuse %lu, tx_invalid %lu, fill_invalid %lu", i, n->misuse,
                     n->tx_invalid, n->fill_invalid);
        if (n->tx_modified && w->c->side[i].completion_delay_ns == 0)
            sim_fail(w, "side %u: %lu frames were written to while they were sent", i,
                     n->tx_modified);
    }
}

/* ---- at the end -------------------------------------------------------------------- */

static void check_end(struct sim_world *w, uint32_t i)
{
    struct sim_side *side = &w->side[i];
    const struct ix_tcp *tcp = &side->shard->tcp;
    const uint32_t *count = side->shard->frames.count;
    if (count[IX_FRAME_RX] || count[IX_FRAME_APP] || count[IX_FRAME_TX])
        sim_fail(w, "side %u: frames left: rx %u, app %u, tx %u", i, count[IX_FRAME_RX],
                 count[IX_FRAME_APP], count[IX_FRAME_TX]);
    if (tcp->extents_used || tcp->recs_used || tcp->recoveries_used || tcp->half_open ||
        tcp->time_wait)
        sim_fail(w, "side %u: left: extents %u, records %u %u, half open %u, time wait %u", i,
                 tcp->extents_used, tcp->recs_used, tcp->recoveries_used, tcp->half_open,
                 tcp->time_wait);
    if (tcp->listeners[0].pending)
        sim_fail(w, "side %u: the listener still counts %u", i, tcp->listeners[0].pending);
    if (side->blocks_used || side->chunks_used)
        sim_fail(w, "side %u: %u chunks were never given back", i, side->chunks_used);
    if (ix_shard_next_deadline(side->shard, 1) != UINT64_MAX)
        sim_fail(w, "side %u: it waits for something", i);
    uint64_t delivered = w->wire.direction[1 - i].counters.delivered;
    if (side->shard->counters.rx_frames != delivered)
        sim_fail(w, "side %u: %lu frames arrived, %lu were counted", i, delivered,
                 side->shard->counters.rx_frames);
}

/* What no fault can bring about: only a shard that breaks the protocol can. */
static void check_manners(struct sim_world *w)
{
    const struct ix_counters *n = &w->result->counters;
    uint64_t broken = n->drop_eth_short + n->drop_eth_type + n->drop_ip_short + n->drop_ip_header +
                      n->drop_ip_csum + n->drop_tcp_short + n->drop_tcp_header + n->drop_tcp_csum +
                      n->drop_partial_csum;
    if (broken && w->result->wire.corrupted == 0)
        sim_fail(w, "%lu broken frames, and the wire broke none", broken);
    if (n->drop_tcp_wnd)
        sim_fail(w, "%lu bytes were sent beyond the receiver's window", n->drop_tcp_wnd);
    if (n->drop_tcp_foreign || n->drop_ip_frag || n->drop_ip_src || n->calls_stale > n->call_errors)
        sim_fail(w, "foreign %lu, fragments %lu, impossible sources %lu", n->drop_tcp_foreign,
                 n->drop_ip_frag, n->drop_ip_src);
}

/* What must not have happened when nothing was lost, delayed beyond measure or refused. */
static void check_lossless(struct sim_world *w)
{
    const struct ix_simd_case *c = w->c;
    const struct ix_counters *n = &w->result->counters;
    const struct ix_sim_counters *s = &w->result->wire;
    uint64_t frames_lost = s->sent + s->dup + s->errors - s->delivered;
    uint64_t slow_ns = 0;
    for (uint32_t i = 0; i < 2; i++)
        slow_ns += c->side[i].poll_ns * (1 + 256 / c->side[i].batch) + c->path[i].delay_ns +
                   c->path[i].jitter_ns + c->side[i].completion_delay_ns;
    bool upright = frames_lost == 0 && c->path[0].spike_ns + c->path[1].spike_ns == 0 &&
                   s->reordered == 0 && s->corrupted == 0 && s->dup == 0 &&
                   c->upset_count == 0 && c->path[0].rate_bytes_per_s == 0 &&
                   c->path[1].rate_bytes_per_s == 0 && slow_ns < 100 * SIM_MS &&
                   c->side[0].tx_budget + c->side[1].tx_budget == 0 &&
                   c->side[0].back_ppm + c->side[1].back_ppm == 0;
    bool refused = n->tcp_aborted || n->drop_tcp_backlog || n->drop_tcp_accept_full ||
                   n->drop_tcp_half_open ||
                   n->drop_tcp_flows || n->drop_tcp_lend_limit || n->tx_no_frame || n->tx_full ||
                   n->fill_starved || n->drop_neigh;
    w->result->lossless = upright && !refused;
    /* A port taken up again within the millisecond finds TIME_WAIT as new as itself: one SYN more.
     */
    uint64_t again = 0;
    for (uint32_t i = 0; i < w->conn_count; i++)
        again += w->conns[i].after != IX_NONE;
    if (w->result->lossless &&
        (n->tcp_rto || n->tcp_fast_rexmit || n->tcp_rexmit > again + n->tcp_tlp))
        sim_fail(w, "nothing was lost, and %lu segments were sent again (%lu timeouts)",
                 n->tcp_rexmit, n->tcp_rto);
}

void sim_check_end(struct sim_world *w)
{
    sim_check_wire(w);
    sim_check_conns(w);
    for (uint32_t i = 0; i < 2; i++) {
        sim_check_shard(w, i);
        check_end(w, i);
    }
    check_manners(w);
    check_lossless(w);
}
