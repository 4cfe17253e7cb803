/* The send queue: memory that the application lent with SENDV, until the peer has it.
 *
 * A list of extents; the byte at q_head_off of the first is snd_una's. A cursor remembers where
 * snd_max lies, so that sending in order never walks the list.
 */
#include "tcp/tcp.h"

uint32_t ix_sendq_room(const struct ix_tcp *tcp, const struct ix_tcb *tcb)
{
    uint32_t limit = ix_tcp_send_limit(tcp, tcb);
    return limit > tcb->queued_bytes ? limit - tcb->queued_bytes : 0;
}

/* From the free list, which is not empty, to the end of the queue. */
static void append_extent(struct ix_tcp *tcp, struct ix_tcb *tcb, uint64_t addr, uint32_t bytes)
{
    uint32_t at = tcp->extent_free;
    struct ix_extent *new = &tcp->extents[at];
    tcp->extent_free = new->next;
    tcp->extents_used++;
    *new = (struct ix_extent){.addr = addr, .bytes = bytes, .next = IX_NONE};
    *(tcb->q_tail == IX_NONE ? &tcb->q_head : &tcp->extents[tcb->q_tail].next) = at;
    tcb->q_tail = at;
}

uint32_t ix_sendq_append(struct ix_tcp *tcp, struct ix_tcb *tcb, uint64_t addr, uint32_t bytes)
{
    uint32_t room = ix_sendq_room(tcp, tcb), taken = IX_MIN(bytes, room);
    /* Without a free extent not even what the last one could hold: the record before this may have
     * been refused for want of one, and the stream must not skip it. */
    if (taken == 0 || tcp->extent_free == IX_NONE)
        return 0;
    struct ix_extent *tail = tcb->q_tail == IX_NONE ? NULL : &tcp->extents[tcb->q_tail];
    uint32_t offset = 0;
    if (tail && !tail->eor && tail->addr + tail->bytes == addr &&
        tail->bytes <= INT32_MAX - taken) {
        offset = tail->bytes;
        tail->bytes += taken;
    } else {
        append_extent(tcp, tcb, addr, taken);
    }
    if (tcb->cursor.extent == IX_NONE)
        tcb->cursor = (struct ix_send_cursor){
            .seq = ix_tcb_data_end(tcb), .extent = tcb->q_tail, .offset = offset};
    tcb->queued_bytes += taken;
    return taken;
}

static void free_head(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    uint32_t head = tcb->q_head;
    tcb->q_head = tcp->extents[head].next;
    if (tcb->q_head == IX_NONE)
        tcb->q_tail = IX_NONE;
    tcp->extents[head].next = tcp->extent_free;
    tcp->extent_free = head;
    tcp->extents_used--;
    tcb->q_head_off = 0;
}

inline void ix_sendq_acked(struct ix_tcp *tcp, struct ix_tcb *tcb, uint32_t bytes)
{
    /* Called before snd_una moves: new_una is what it will be. */
    uint32_t new_una = tcb->snd_una + bytes;
    IX_ASSERT(bytes <= tcb->queued_bytes);
    tcb->queued_bytes -= bytes;
    while (bytes) {
        uint32_t rest = tcp->extents[tcb->q_head].bytes - tcb->q_head_off;
        if (bytes < rest) {
            tcb->q_head_off += bytes;
            break;
        }
        bytes -= rest;
        free_head(tcp, tcb);
    }
    /* At new_una itself too: the cursor may stand behind the last byte of an extent that is gone.
     */
    if (tcb->cursor.extent != IX_NONE && ix_seq_leq(tcb->cursor.seq, new_una))
        tcb->cursor = (struct ix_send_cursor){
            .seq = new_una, .extent = tcb->q_head, .offset = tcb->q_head_off};
}

struct ix_send_cursor ix_sendq_walk(const struct ix_tcp *tcp, const struct ix_tcb *tcb,
                                    uint32_t seq)
{
    struct ix_send_cursor at = tcb->cursor;
    if (at.extent == IX_NONE || ix_seq_lt(seq, at.seq))
        at = (struct ix_send_cursor){
            .seq = tcb->snd_una, .extent = tcb->q_head, .offset = tcb->q_head_off};
    while (at.extent != IX_NONE) {
        const struct ix_extent *extent = &tcp->extents[at.extent];
        uint32_t skip = seq - at.seq, rest = extent->bytes - at.offset;
        if (skip < rest) {
            at.offset += skip;
            at.seq = seq;
            return at;
        }
        at = (struct ix_send_cursor){.seq = at.seq + rest, .extent = extent->next, .offset = 0};
    }
    return at;
}

uint32_t ix_sendq_record(const struct ix_tcp *tcp, const struct ix_tcb *tcb, uint32_t seq,
                         uint32_t bytes)
{
    struct ix_send_cursor at = ix_sendq_seek(tcp, tcb, seq);
    uint32_t held = 0;
    for (uint32_t i = at.extent, offset = at.offset; held < bytes && i != IX_NONE; offset = 0) {
        const struct ix_extent *extent = &tcp->extents[i];
        held += extent->bytes - offset;
        i = extent->eor ? IX_NONE : extent->next;
    }
    return IX_MIN(held, bytes);
}

void ix_sendq_drop(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    while (tcb->q_head != IX_NONE)
        free_head(tcp, tcb);
    tcb->q_head_off = 0;
    tcb->queued_bytes = 0;
    tcb->cursor.extent = IX_NONE;
}
