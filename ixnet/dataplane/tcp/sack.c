/* The SACK scoreboard (RFC 2018) and what RFC 6675 computes from it.
 *
 * A flow takes a board from the shard's pool when the first SACK block arrives and gives it back
 * when nothing is outstanding. Without a board (none left), or with more ranges than it holds,
 * information is lost, which RFC 2018 section 8 allows: SACK is advice.
 */
#include "tcp/tcp.h"

static struct ix_sack_board *board_of(const struct ix_tcp *tcp, const struct ix_tcb *tcb)
{
    return tcb->sack_board == IX_NONE ? NULL : &tcp->boards[tcb->sack_board];
}

static struct ix_sack_board *board_take(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    if (tcb->sack_board == IX_NONE) {
        if (tcp->board_free == IX_NONE)
            return NULL;
        tcb->sack_board = tcp->board_free;
        tcp->board_free = tcp->boards[tcb->sack_board].next;
        tcp->boards_used++;
        tcp->boards[tcb->sack_board].count = 0;
        tcp->boards[tcb->sack_board].high_rxt = tcb->snd_una;
    }
    return &tcp->boards[tcb->sack_board];
}

void ix_sack_drop(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    if (tcb->sack_board == IX_NONE)
        return;
    tcp->boards[tcb->sack_board].next = tcp->board_free;
    tcp->board_free = tcb->sack_board;
    tcp->boards_used--;
    tcb->sack_board = IX_NONE;
}

static void remove_at(struct ix_sack_board *board, uint32_t i)
{
    board->count--;
    for (; i < board->count; i++)
        board->range[i] = board->range[i + 1];
}

static bool covers(const struct ix_sack_board *board, const struct ix_tcp_sack *block)
{
    for (uint32_t i = 0; i < board->count; i++)
        if (ix_seq_leq(board->range[i].start, block->start) &&
            ix_seq_geq(board->range[i].end, block->end))
            return true;
    return false;
}

/* Adds [start, end), merging with what it touches. */
static void insert(struct ix_sack_board *board, uint32_t start, uint32_t end)
{
    uint32_t i = 0;
    while (i < board->count && ix_seq_lt(board->range[i].end, start))
        i++;
    while (i < board->count && ix_seq_leq(board->range[i].start, end)) {
        if (ix_seq_lt(board->range[i].start, start))
            start = board->range[i].start;
        end = ix_seq_max(end, board->range[i].end);
        remove_at(board, i);
    }
    if (board->count == IX_SACK_RANGES)
        return;
    for (uint32_t j = board->count++; j > i; j--)
        board->range[j] = board->range[j - 1];
    board->range[i] = (struct ix_tcp_sack){start, end};
}

bool ix_sack_update(struct ix_tcp *tcp, struct ix_tcb *tcb, const struct ix_tcp_hdr *hdr)
{
    bool news = false;
    for (uint32_t i = 0; i < hdr->sack_count; i++) {
        struct ix_tcp_sack block = hdr->sack[i];
        /* Only what is outstanding and above the ACK: older blocks are D-SACKs, others are lies. */
        if (!ix_seq_lt(block.start, block.end) || ix_seq_leq(block.start, hdr->ack) ||
            ix_seq_leq(block.start, tcb->snd_una) || ix_seq_gt(block.end, tcb->snd_max))
            continue;
        struct ix_sack_board *board = board_take(tcp, tcb);
        if (!board)
            return true;
        if (!covers(board, &block)) {
            news = true;
            insert(board, block.start, block.end);
        }
    }
    return news;
}

void ix_sack_advance(struct ix_tcp *tcp, struct ix_tcb *tcb)
{
    struct ix_sack_board *board = board_of(tcp, tcb);
    if (!board)
        return;
    while (board->count && ix_seq_leq(board->range[0].end, tcb->snd_una))
        remove_at(board, 0);
    if (board->count && ix_seq_lt(board->range[0].start, tcb->snd_una))
        board->range[0].start = tcb->snd_una;
    board->high_rxt = ix_seq_max(board->high_rxt, tcb->snd_una);
    if (board->count == 0 && !(tcb->flags & IX_TF_RECOVERY))
        ix_sack_drop(tcp, tcb);
}

uint32_t ix_sack_sacked_bytes(const struct ix_tcp *tcp, const struct ix_tcb *tcb)
{
    const struct ix_sack_board *board = board_of(tcp, tcb);
    uint32_t bytes = 0;
    for (uint32_t i = 0; board && i < board->count; i++)
        bytes += board->range[i].end - board->range[i].start;
    return bytes;
}

/* The highest sequence number below which every hole is lost: more than (DupThresh - 1) * SMSS
 * bytes, or DupThresh ranges, are SACKed above it. snd_una if there is none. */
static uint32_t lost_below(const struct ix_tcb *tcb, const struct ix_sack_board *board)
{
    uint32_t above = 0;
    for (uint32_t i = board->count; i-- > 0;) {
        above += board->range[i].end - board->range[i].start;
        if (above > (IX_TCP_DUP_THRESH - 1) * ix_tcb_mss(tcb) ||
            board->count - i >= IX_TCP_DUP_THRESH)
            return board->range[i].start;
    }
    return tcb->snd_una;
}

bool ix_sack_is_lost(const struct ix_tcp *tcp, const struct ix_tcb *tcb, uint32_t seq)
{
    const struct ix_sack_board *board = board_of(tcp, tcb);
    return board && ix_seq_lt(seq, lost_below(tcb, board));
}

/* How much of [start, end) lies below `limit`. */
static uint32_t part_below(uint32_t start, uint32_t end, uint32_t limit)
{
    if (ix_seq_geq(start, limit))
        return 0;
    return (ix_seq_lt(end, limit) ? end : limit) - start;
}

uint32_t ix_sack_pipe(const struct ix_tcp *tcp, const struct ix_tcb *tcb)
{
    const struct ix_sack_board *board = board_of(tcp, tcb);
    if (!board)
        return ix_tcb_flight(tcb);
    uint32_t lost_limit = lost_below(tcb, board);
    uint32_t pipe = 0, at = tcb->snd_una;
    /* Each octet that is not SACKed counts once if it isn't lost, and once more if it was
     * retransmitted. */
    for (uint32_t i = 0; i <= board->count; i++) {
        uint32_t end = i < board->count ? board->range[i].start : tcb->snd_max;
        if (ix_seq_lt(at, end))
            pipe +=
                (end - at) - part_below(at, end, lost_limit) + part_below(at, end, board->high_rxt);
        if (i < board->count)
            at = board->range[i].end;
    }
    return pipe;
}

bool ix_sack_next_hole(const struct ix_tcp *tcp, const struct ix_tcb *tcb, uint32_t *seq,
                       uint32_t *bytes)
{
    const struct ix_sack_board *board = board_of(tcp, tcb);
    if (!board)
        return false;
    uint32_t lost_limit = lost_below(tcb, board);
    uint32_t at = ix_seq_max(tcb->snd_una, board->high_rxt);
    for (uint32_t i = 0; i < board->count; i++) {
        uint32_t end = board->range[i].start;
        if (ix_seq_lt(at, end)) {
            *seq = at;
            *bytes = part_below(at, end, lost_limit);
            return *bytes > 0;
        }
        at = ix_seq_max(at, board->range[i].end);
    }
    return false;
}
