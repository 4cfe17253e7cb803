/* Received data: in order to the application, out of order into the reassembly queue; and the
 * window. */
#include "tcp/tcp.h"

enum {
    DELAYED_ACK_MS = 40, /* RFC 9293 3.8.6.3 allows 500; what Linux takes at least */
    FRAME_CHARGE = 512,  /* bytes */
    FRAMES_LEAST = 32,
    FRAMES_FEW = 4, /* a connection that holds fewer is always to be served */
    COPY_MOST = 256, /* bytes; what a frame less is worth */
};

static struct ix_frame *meta_of(const struct ix_tcp *tcp, uint32_t frame)
{
    return &tcp->net->frames->meta[frame];
}

/* ---- window ------------------------------------------------------------- */

/* A connection is refused another frame when it holds as many as are left (the dynamic threshold of
 * Choudhury and Hahne, INFOCOM '96): alone it can have half of them, n that are greedy at a time
 * leave one part of n + 1 to all others. A window doesn't see to that: it counts bytes, and a peer
 * that sends them one by one and reads no answer has a frame kept for each. */
uint32_t ix_tcp_frames_left(const struct ix_tcp *tcp, uint32_t most)
{
    const uint32_t *count = tcp->net->frames->count;
    uint32_t held = count[IX_FRAME_APP] + count[IX_FRAME_RX];
    return most > held ? most - held : 0;
}

/* Frames that the connection may hold: no more than are left, and as if each took FRAME_CHARGE of
 * its buffer; or of those who come in turn each would take half of what the others left. A buffer
 * that has grown counts as it was at first while less than a quarter of all is left. */
static uint32_t frames_most(const struct ix_tcp *tcp, const struct ix_tcb *tcb, uint32_t left)
{
    /* The buffer may have been made smaller than what it was offered for. */
    uint32_t offered = tcb->rcv_adv - tcb->rcv_nxt + tcb->lent_bytes;
    uint32_t bytes = IX_MAX(tcb->rcvbuf_bytes, offered);
    if (left < tcp->net->frames->lend_max / 4)
        bytes = IX_MIN(bytes, tcp->cfg->rcvbuf_bytes);
    return IX_MIN(IX_MAX(bytes / FRAME_CHARGE, (uint32_t)FRAMES_LEAST), left);
}

/* Does it hold so many already? */
static bool holds_most(const struct ix_tcp *tcp, const struct ix_tcb *tcb, uint32_t left)
{
    uint32_t held = tcb->held_frames;
    return held >= left || (held >= FRAMES_LEAST && held >= frames_most(tcp, tcb, left));
}

/* What the buffer has room for: no window_space() is more. */
static uint32_t buffer_space(const struct ix_tcb *tcb)
{
    return tcb->rcvbuf_bytes > tcb->lent_bytes ? tcb->rcvbuf_bytes - tcb->lent_bytes : 0;
}

/* What the connection could take now, from rcv_nxt on. */
static uint32_t window_space(const struct ix_tcp *tcp, const struct ix_tcb *tcb)
{
    const struct ix_frames *frames = tcp->net->frames;
    uint32_t space = buffer_space(tcb);
    uint32_t left = ix_tcp_frames_left(tcp, frames->lend_max);
    uint32_t held = tcb->held_frames, most = frames_most(tcp, tcb, left);
    /* Each that it takes is one more that it holds and one less that is left. */
    uint32_t own = most > held ? IX_MIN((left - held + 1) / 2, most - held) : 0;
    uint32_t bytes = ix_tcb_mss(tcb);
    if (IX_UNLIKELY(held > most / 4)) /* as long as what it has sent so far */
        bytes = IX_MIN(bytes, tcb->lent_bytes / held + 1);
    if (IX_UNLIKELY(own < space / bytes))
        space = own * bytes;
    /* Few frames left: promise no more than one flow's fair part of them. */
    if (IX_UNLIKELY(left < frames->pool_frames / 4))
        space = IX_MIN(space, (left + 3) / 4 * ix_tcb_mss(tcb));
    return space;
}

/* Offers more than `offered`, if there is room for a step more. */
static IX_NOINLINE uint32_t open_window(struct ix_tcp *tcp, struct ix_tcb *tcb, uint32_t offered,
                                        uint32_t step)
{
    uint32_t space = window_space(tcp, tcb);
    if (tcb->state == IX_TCP_SYN_SENT || tcb->state == IX_TCP_SYN_RCVD)
        space = IX_MIN(space, 65535u); /* SYNs carry it unscaled */
    else
        space = space >> tcb->rcv_wscale << tcb->rcv_wscale;
    if (space <= offered) /* the right edge never moves left (RFC 9293 3.8.6) */
        return offered;
    if (space - offered < step && offered)
        return offered;
    if (space < step) {
        if (offered == 0 && tcb->held_frames < FRAMES_FEW &&
            ix_tcp_frames_left(tcp, tcp->net->frames->lend_max) <= tcb->held_frames)
            ix_tcp_starved(tcp, true);
        return offered;
    }
    tcb->rcv_adv = tcb->rcv_nxt + space;
    return space;
}

inline uint32_t ix_tcp_receive_window(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    uint32_t offered = tcb->rcv_adv - tcb->rcv_nxt;
    /* Receiver's silly window avoidance (RFC 9293 3.8.6.2.2): open by a segment or half the buffer.
     */
    uint32_t step = IX_MIN(tcb->rcvbuf_bytes / 2, ix_tcb_mss(tcb));
    if (IX_LIKELY(offered && buffer_space(tcb) < offered + step))
        return offered; /* most segments: no need to look closer */
    return open_window(tcp, tcb, offered, step);
}

bool ix_tcp_window_update_due(const struct ix_tcp *tcp, const struct ix_tcb *tcb)
{
    uint32_t offered = tcb->rcv_adv - tcb->rcv_nxt;
    if (IX_LIKELY(offered > tcb->rcvbuf_bytes - tcb->rcvbuf_bytes / 2))
        return false; /* the rest of the buffer is less than half of it */
    uint32_t space = window_space(tcp, tcb);
    if (space <= offered || !ix_tcb_receives(tcb))
        return false;
    uint32_t more = space - offered;
    if (more >= tcb->rcvbuf_bytes / 2)
        return true;
    /* The peer may be waiting: its window has become small. */
    return more >= 2u * tcb->mss && offered < tcb->rcvbuf_bytes / 4;
}

/* ---- reassembly --------------------------------------------------------- */

/* Frames that continue one another are a run. `handle` of its first frame is its last one, as a
 * frame that waits has no holder: so a walk takes a step for each hole, not for each frame. */
static uint32_t run_end(const struct ix_tcp *tcp, uint32_t first)
{
    const struct ix_frame *last = meta_of(tcp, (uint32_t)meta_of(tcp, first)->handle);
    return last->seq + last->bytes;
}

static uint32_t *after_run(const struct ix_tcp *tcp, uint32_t first)
{
    return &meta_of(tcp, (uint32_t)meta_of(tcp, first)->handle)->next;
}

/* Takes the first frame out of its queue. */
static uint32_t ooo_take(struct ix_tcp *tcp, struct ix_tcb *tcb, uint32_t *link)
{
    uint32_t frame = *link;
    *link = meta_of(tcp, frame)->next;
    tcb->ooo_count--;
    return frame;
}

static void free_run(struct ix_tcp *tcp, struct ix_tcb *tcb, uint32_t *link)
{
    uint32_t last = (uint32_t)meta_of(tcp, *link)->handle, frame;
    do {
        frame = ooo_take(tcp, tcb, link);
        ix_frame_free(tcp->net->frames, frame);
    } while (frame != last);
    tcb->ooo_runs--;
}

static void cut_head(struct ix_frame *meta, uint32_t cut)
{
    meta->seq += cut;
    meta->offset = (uint16_t)(meta->offset + cut);
    meta->bytes = (uint16_t)(meta->bytes - cut);
}

uint32_t ix_tcp_prune(struct ix_tcp *tcp, struct ix_tcb *tcb, uint32_t most)
{
    uint32_t *link = &tcb->ooo_head, pruned = 0;
    /* What lies nearer to rcv_nxt is of use sooner. The peer keeps what it was told by SACK until
     * it is acknowledged (RFC 2018 section 8). */
    for (uint32_t keep = tcb->ooo_runs / 2; keep; keep--)
        link = after_run(tcp, *link);
    while (*link != IX_NONE && pruned < most) {
        uint32_t first = *link, last = (uint32_t)meta_of(tcp, first)->handle;
        ix_frame_free(tcp->net->frames, ooo_take(tcp, tcb, link));
        pruned++;
        if (first == last)
            tcb->ooo_runs--;
        else
            meta_of(tcp, *link)->handle = last;
    }
    return pruned;
}

/* Is a frame worth more than a copy? */
static bool frames_dear(const struct ix_tcp *tcp, const struct ix_tcb *tcb)
{
    const struct ix_frames *frames = tcp->net->frames;
    return tcb->held_frames + tcb->ooo_count >= FRAMES_LEAST ||
           ix_tcp_frames_left(tcp, frames->lend_max) < frames->lend_max / 4;
}

/* Copies a small frame's payload behind that of the one before, which has not been lent either. */
static IX_NOINLINE bool collapse(struct ix_tcp *tcp, const struct ix_tcb *tcb, uint32_t into,
                                 uint32_t frame)
{
    struct ix_frame *to = meta_of(tcp, into);
    const struct ix_frame *from = meta_of(tcp, frame);
    uint32_t end = to->offset + to->bytes;
    if (from->bytes > COPY_MOST || !frames_dear(tcp, tcb) ||
        from->bytes > (1u << tcp->net->frames->frame_shift) - end)
        return false;
    __builtin_memcpy(ix_net_frame_ptr(tcp->net, into) + end,
                     ix_net_frame_ptr(tcp->net, frame) + from->offset, from->bytes);
    to->bytes = (uint16_t)(to->bytes + from->bytes);
    tcp->counters->tcp_collapsed++;
    return true;
}

/* The run that ends where the next one begins is one with it. */
static void join_runs(struct ix_tcp *tcp, struct ix_tcb *tcb, uint32_t run)
{
    uint32_t after = *after_run(tcp, run);
    if (after != IX_NONE && meta_of(tcp, after)->seq == run_end(tcp, run)) {
        meta_of(tcp, run)->handle = meta_of(tcp, after)->handle;
        tcb->ooo_runs--;
    }
}

/* Links a frame in at *link; `before` is the run that it continues, or IX_NONE. */
static void ooo_link(struct ix_tcp *tcp, struct ix_tcb *tcb, uint32_t frame, uint32_t *link,
                     uint32_t before)
{
    struct ix_frame *new = meta_of(tcp, frame);
    new->handle = frame;
    new->flow = ix_tcb_index(tcp, tcb);
    new->next = *link;
    *link = frame;
    tcb->ooo_count++;
    tcb->ooo_runs++;
    join_runs(tcp, tcb, frame);
    if (before != IX_NONE)
        join_runs(tcp, tcb, before);
}

enum ooo_insert { OOO_OLD, OOO_KEPT, OOO_COPIED };

/* Puts a frame (seq, offset, bytes set) into the queue; overlaps are cut off the new one, and runs
 * that it covers wholly go. OOO_OLD: nothing of it is new. OOO_COPIED: the frame is not needed. */
static enum ooo_insert ooo_insert(struct ix_tcp *tcp, struct ix_tcb *tcb, uint32_t frame)
{
    struct ix_frame *new = meta_of(tcp, frame);
    uint32_t *link = &tcb->ooo_head, before = IX_NONE, end = new->seq + new->bytes;
    while (*link != IX_NONE) {
        uint32_t run = *link, start = meta_of(tcp, run)->seq, stop = run_end(tcp, run);
        if (ix_seq_leq(end, start))
            break;
        if (ix_seq_lt(stop, new->seq)) {
            link = after_run(tcp, run);
        } else if (ix_seq_leq(start, new->seq) && ix_seq_geq(stop, end)) {
            return OOO_OLD;
        } else if (ix_seq_leq(new->seq, start) && ix_seq_geq(end, stop)) {
            free_run(tcp, tcb, link);
        } else if (ix_seq_lt(new->seq, start)) { /* its tail is there already */
            new->bytes = (uint16_t)(start - new->seq);
            break;
        } else { /* its head is there already, or it begins where the run stops */
            cut_head(new, stop - new->seq);
            before = run;
            link = after_run(tcp, run);
        }
    }
    if (before != IX_NONE &&
        collapse(tcp, tcb, (uint32_t)meta_of(tcp, before)->handle, frame)) {
        join_runs(tcp, tcb, before);
        return OOO_COPIED;
    }
    ooo_link(tcp, tcb, frame, link, before);
    return OOO_KEPT;
}

static bool holds(const struct ix_tcp_sack *run, uint32_t seq)
{
    return ix_seq_leq(run->start, seq) && ix_seq_lt(seq, run->end);
}

/* The blocks that were reported latest come first (RFC 2018 section 4). */
uint32_t ix_tcp_sack_blocks(const struct ix_tcp *tcp, const struct ix_tcb *tcb,
                            struct ix_tcp_sack *out, uint32_t max)
{
    const uint32_t *latest = tcb->ooo_latest;
    uint32_t count = 0, ranked = 0;
    for (uint32_t i = tcb->ooo_head; i != IX_NONE; i = *after_run(tcp, i)) {
        struct ix_tcp_sack run = {meta_of(tcp, i)->seq, run_end(tcp, i)};
        uint32_t rank = 0, at = 0;
        while (rank < IX_OOO_LATEST && !holds(&run, latest[rank]))
            rank++;
        if (rank == IX_OOO_LATEST) /* of the others the oldest data */
            at = count;
        for (uint32_t k = 0; rank < IX_OOO_LATEST && k < ranked; k++) {
            uint32_t other = 0;
            while (!holds(&out[k], latest[other]))
                other++;
            at += other < rank;
        }
        if (at >= max)
            continue;
        for (uint32_t k = IX_MIN(count, max - 1); k > at; k--)
            out[k] = out[k - 1];
        out[at] = run;
        count = IX_MIN(count + 1, max);
        ranked = IX_MIN(ranked + (rank < IX_OOO_LATEST), max);
    }
    return count;
}

/* The latest arrival among what is out of order. */
static void note_latest(const struct ix_tcp *tcp, struct ix_tcb *tcb, uint32_t seq)
{
    uint32_t *latest = tcb->ooo_latest, k = 0;
    for (uint32_t i = tcb->ooo_head; i != IX_NONE; i = *after_run(tcp, i)) {
        struct ix_tcp_sack run = {meta_of(tcp, i)->seq, run_end(tcp, i)};
        if (!holds(&run, seq))
            continue;
        while (k < IX_OOO_LATEST - 1 && !holds(&run, latest[k]))
            k++; /* its block moves up from there */
        break;
    }
    for (; k > 0; k--)
        latest[k] = latest[k - 1];
    latest[0] = seq;
}

/* ---- data --------------------------------------------------------------- */

/* Appends a frame that continues the stream at rcv_nxt. False if it is not needed: copied. */
static inline bool accept_frame(struct ix_tcp *tcp, struct ix_tcb *tcb, uint32_t frame)
{
    struct ix_frame *meta = meta_of(tcp, frame);
    tcb->rcv_nxt += meta->bytes;
    tcb->lent_bytes += meta->bytes;
    ix_tcp_want_event(tcp, tcb, 0);
    if (tcb->wait_tail != IX_NONE && collapse(tcp, tcb, tcb->wait_tail, frame))
        return false;
    meta->next = IX_NONE;
    meta->flow = ix_tcb_index(tcp, tcb);
    if (tcb->wait_tail == IX_NONE)
        tcb->wait_head = frame;
    else
        meta_of(tcp, tcb->wait_tail)->next = frame;
    tcb->wait_tail = frame;
    tcb->held_frames++;
    return true;
}

/* Moves what has become contiguous out of the reassembly queue: whole runs. */
static IX_NOINLINE void drain_ooo(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    while (tcb->ooo_head != IX_NONE && ix_seq_leq(meta_of(tcp, tcb->ooo_head)->seq, tcb->rcv_nxt)) {
        uint32_t last = (uint32_t)meta_of(tcp, tcb->ooo_head)->handle, frame;
        tcb->ooo_runs--;
        do {
            frame = ooo_take(tcp, tcb, &tcb->ooo_head);
            struct ix_frame *meta = meta_of(tcp, frame);
            uint32_t cut = tcb->rcv_nxt - meta->seq;
            meta->handle = 0;
            bool new = cut < meta->bytes;
            if (new)
                cut_head(meta, cut);
            if (!new || !accept_frame(tcp, tcb, frame))
                ix_frame_free(tcp->net->frames, frame);
        } while (frame != last);
    }
}

/* The peer was silent for long after the data before this, to which we had no answer: to wait with
 * the ACK would save no segment this time either. The peer keeps what it sent meanwhile, and begins
 * slowly after such a pause (RFC 5681 4.1). */
static bool waits_in_vain(const struct ix_tcp *tcp, const struct ix_tcb *tcb)
{
    uint32_t before_ms = tcb->ack_due_ms - DELAYED_ACK_MS;
    int32_t pause_ms = (int32_t)(tcp->now_ms - before_ms);
    return IX_UNLIKELY(pause_ms > DELAYED_ACK_MS) && pause_ms > (int32_t)(tcb->rto_us / 1000) &&
           tcb->last_tx_ms - before_ms > DELAYED_ACK_MS;
}

/* Every second segment is acknowledged at once, a single one after a while, or with what the
 * application sends meanwhile (RFC 9293 3.8.6.3). */
static void schedule_ack(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    bool at_once = waits_in_vain(tcp, tcb);
    tcb->ack_due_ms = tcp->now_ms + DELAYED_ACK_MS;
    if (tcb->unacked_segs < 255)
        tcb->unacked_segs++;
    if (IX_UNLIKELY(tcb->quick_acks)) { /* the peer's slow start needs them (RFC 5681 4.2) */
        tcb->quick_acks--;
        ix_tcp_ack_now(tcp, tcb);
        return;
    }
    if (tcb->unacked_segs >= 2 || at_once) {
        ix_tcp_ack_now(tcp, tcb);
        return;
    }
    uint32_t timer = ix_tcb_timer(tcp, tcb, IX_TIMER_ACK);
    uint64_t due_ns = tcp->now_ns + DELAYED_ACK_MS * 1000000ull;
    /* If it is armed it is set again when it fires: no list work per segment. But not if it stands
     * for what the pace holds, later. */
    if (!ix_wheel_armed(tcp->wheel, timer) ||
        (IX_UNLIKELY(tcb->flags & IX_TF_PACE_HELD) &&
         ix_wheel_deadline(tcp->wheel, timer) > due_ns))
        ix_wheel_set(tcp->wheel, timer, due_ns);
}

void ix_tcp_report_duplicate(struct ix_tcp *tcp, struct ix_tcb *tcb, uint32_t start, uint32_t end)
{
    if (!(tcb->flags & IX_TF_SACK) || !ix_seq_lt(start, end))
        return;
    tcb->rack |= IX_RACK_DSACK_DUE;
    tcp->dsack = (struct ix_tcp_sack){start, end};
    tcp->dsack_flow = ix_tcb_index(tcp, tcb);
}

/* Returns whether the frame is kept. */
static IX_NOINLINE bool out_of_order(struct ix_tcp *tcp, struct ix_tcb *tcb, uint32_t frame)
{
    struct ix_frame *meta = meta_of(tcp, frame);
    enum ooo_insert inserted;
    bool kept = false;
    if (tcb->ooo_runs >= IX_OOO_RUNS_MAX || tcb->ooo_count == UINT16_MAX) {
        tcp->counters->drop_tcp_ooo_limit++;
    } else if ((inserted = ooo_insert(tcp, tcb, frame)) != OOO_OLD) {
        kept = inserted == OOO_KEPT;
        note_latest(tcp, tcb, meta->seq);
        tcp->counters->tcp_ooo++;
    } else {
        tcp->counters->tcp_dup_data++;
        ix_tcp_report_duplicate(tcp, tcb, meta->seq, meta->seq + meta->bytes);
        note_latest(tcp, tcb, meta->seq); /* its block comes second (RFC 2883 4.1) */
    }
    /* RFC 5681 4.2: a duplicate ACK for each. With SACK one a batch says as much. */
    if (tcb->flags & IX_TF_SACK ||
        !ix_tcp_send_segment(tcp, tcb, ix_tcb_ack_seq(tcb), 0, IX_TCP_ACK, false))
        ix_tcp_ack_now(tcp, tcb);
    return kept;
}

/* Not acknowledged, so the peer sends it again; the application has to give frames back. */
static IX_NOINLINE void refuse(struct ix_tcp *tcp, struct ix_tcb *tcb, bool in_order)
{
    (*(in_order ? &tcp->counters->drop_tcp_lend_limit : &tcp->counters->drop_tcp_ooo_limit))++;
    if (tcb->held_frames + tcb->ooo_count < FRAMES_FEW)
        ix_tcp_starved(tcp, in_order);
    if (!in_order)
        ix_tcp_ack_now(tcp, tcb);
}

/* Cuts off what is old and what is beyond the window. Returns the payload that is left. */
static uint32_t trim(struct ix_tcp *tcp, struct ix_tcb *tcb, uint32_t *seq, uint8_t **payload,
                     uint32_t bytes, bool *fin)
{
    if (ix_seq_lt(*seq, tcb->rcv_nxt)) {
        uint32_t cut = IX_MIN(tcb->rcv_nxt - *seq, bytes);
        *seq += cut;
        *payload += cut;
        bytes -= cut;
    }
    uint32_t room = ix_seq_lt(*seq, tcb->rcv_adv) ? tcb->rcv_adv - *seq : 0;
    if (bytes > room) {
        tcp->counters->drop_tcp_wnd += bytes - room;
        bytes = room;
        *fin = false;
    }
    return bytes;
}

static void take_fin(struct ix_tcp *tcp, struct ix_tcb *tcb, uint32_t fin_seq)
{
    if (fin_seq != tcb->rcv_nxt) {
        tcb->flags |= IX_TF_FIN_OOO;
        tcb->fin_seq = fin_seq;
        return;
    }
    tcb->rcv_nxt++;
    /* A FIN is taken with the window closed, too; what follows it carries this number. */
    tcb->rcv_adv = ix_seq_max(tcb->rcv_adv, tcb->rcv_nxt);
    tcb->flags = (tcb->flags | IX_TF_FIN_RCVD) & ~IX_TF_FIN_OOO;
    ix_tcp_want_event(tcp, tcb, IX_TF_EV_EOF);
    ix_tcp_ack_now(tcp, tcb);
}

static enum ix_verdict take_payload(struct ix_tcp *tcp, struct ix_tcb *tcb, struct ix_packet *pkt,
                                    uint32_t seq, const uint8_t *payload, uint32_t bytes)
{
    struct ix_frames *frames = tcp->net->frames;
    bool in_order = seq == tcb->rcv_nxt;
    /* What is out of order frees no frame until a hole is filled, so it gets half of them at most:
     * or a few connections with holes could take all, and nothing that fills one could come in. */
    uint32_t left = ix_tcp_frames_left(tcp, in_order ? frames->lend_max : frames->lend_max / 2);
    if (IX_UNLIKELY(in_order ? holds_most(tcp, tcb, left) : tcb->ooo_count >= left)) {
        refuse(tcp, tcb, in_order);
        return IX_VERDICT_DROP;
    }
    if (IX_UNLIKELY(tcp->pressure.since_ns) && in_order && tcb->held_frames < FRAMES_FEW)
        tcp->pressure.taken++;
    struct ix_frame *meta = meta_of(tcp, pkt->frame);
    meta->seq = seq;
    meta->offset = (uint16_t)(payload - ix_net_frame_ptr(tcp->net, pkt->frame));
    meta->bytes = (uint16_t)bytes;
    if (IX_UNLIKELY(!in_order))
        return out_of_order(tcp, tcb, pkt->frame) ? IX_VERDICT_KEPT : IX_VERDICT_DROP;
    bool kept = accept_frame(tcp, tcb, pkt->frame);
    if (IX_LIKELY(tcb->ooo_head == IX_NONE)) {
        schedule_ack(tcp, tcb);
    } else {
        drain_ooo(tcp, tcb);
        ix_tcp_ack_now(tcp, tcb); /* RFC 5681 4.2: at once when it fills a gap */
    }
    return kept ? IX_VERDICT_KEPT : IX_VERDICT_DROP;
}

enum ix_verdict ix_tcp_data(struct ix_tcp *tcp, struct ix_tcb *tcb, struct ix_packet *pkt,
                            const struct ix_tcp_hdr *hdr)
{
    uint32_t arrived = pkt->l4_bytes - hdr->header_bytes;
    uint8_t *payload = pkt->l4 + hdr->header_bytes;
    uint32_t seq = hdr->seq;
    bool fin = hdr->flags & IX_TCP_FIN;
    uint32_t fin_seq = seq + arrived;
    enum ix_verdict verdict = IX_VERDICT_DROP;

    uint32_t bytes = arrived;
    if (IX_UNLIKELY(seq != tcb->rcv_nxt || bytes > tcb->rcv_adv - seq)) {
        if (fin && ix_seq_lt(fin_seq, tcb->rcv_nxt))
            fin = false; /* taken before */
        bytes = trim(tcp, tcb, &seq, &payload, arrived, &fin);
        /* What was cut off. */
        ix_tcp_report_duplicate(tcp, tcb, hdr->seq, ix_seq_max(hdr->seq, seq));
    }
    if (bytes) {
        verdict = take_payload(tcp, tcb, pkt, seq, payload, bytes);
        if (verdict == IX_VERDICT_DROP && seq == tcb->rcv_nxt)
            return verdict; /* for want of frames: the FIN comes again with it */
    } else if (arrived) {
        tcp->counters->tcp_dup_data++;
        ix_tcp_ack_now(tcp, tcb);
    }
    if (fin)
        take_fin(tcp, tcb, fin_seq);
    else if (tcb->flags & IX_TF_FIN_OOO && tcb->fin_seq == tcb->rcv_nxt)
        take_fin(tcp, tcb, tcb->fin_seq);
    return verdict;
}

void ix_tcp_drop_queues(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    while (tcb->ooo_head != IX_NONE)
        free_run(tcp, tcb, &tcb->ooo_head);
    while (tcb->wait_head != IX_NONE) {
        uint32_t frame = tcb->wait_head;
        tcb->wait_head = meta_of(tcp, frame)->next;
        tcb->lent_bytes -= meta_of(tcp, frame)->bytes;
        tcb->held_frames--;
        ix_frame_free(tcp->net->frames, frame);
    }
    tcb->wait_tail = IX_NONE;
}
