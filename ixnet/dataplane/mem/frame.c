/* Frame ownership. Every change of owner goes through move(), which keeps the counts. */
#include "mem/frame.h"

/* The arena is the application's for ever; only pool frames change hands and are counted. */
static bool in_pool(const struct ix_frames *f, uint32_t frame)
{
    return frame < f->pool_frames;
}

static void move(struct ix_frames *f, uint32_t frame, enum ix_frame_owner owner)
{
    struct ix_frame *m = &f->meta[frame];
    f->count[m->owner]--;
    f->count[owner]++;
    m->owner = owner;
}

static void push_free(struct ix_frames *f, uint32_t frame)
{
    struct ix_frame *m = &f->meta[frame];
    move(f, frame, IX_FRAME_FREE);
    m->next = f->free_head;
    m->flow = IX_NONE;
    m->handle = 0;
    f->free_head = frame;
}

/* Last in, first out: the frame freed last is the likeliest to be in the cache. */
static uint32_t pop_free(struct ix_frames *f, enum ix_frame_owner owner)
{
    uint32_t frame = f->free_head;
    if (frame == IX_NONE)
        return IX_NONE;
    struct ix_frame *m = &f->meta[frame];
    f->free_head = m->next;
    m->next = IX_NONE;
    move(f, frame, owner);
    return frame;
}

void ix_frames_init(struct ix_frames *f, struct ix_frame *meta, uint32_t pool_frames,
                    uint32_t arena_frames, uint32_t frame_shift)
{
    IX_ASSERT(frame_shift >= IX_FRAME_SHIFT_MIN && frame_shift <= IX_FRAME_SHIFT_MAX);
    IX_ASSERT(pool_frames <= IX_FRAMES_MAX && arena_frames <= IX_FRAMES_MAX - pool_frames);
    uint32_t unreserved = pool_frames > IX_FRAMES_RESERVE ? pool_frames - IX_FRAMES_RESERVE : 0;
    *f = (struct ix_frames){
        .meta = meta,
        .pool_frames = pool_frames,
        .total = pool_frames + arena_frames,
        .frame_shift = frame_shift,
        .free_head = pool_frames ? 0 : IX_NONE,
        .count = {[IX_FRAME_FREE] = pool_frames},
        .lend_max = IX_MAX(unreserved, pool_frames / 4),
    };
    for (uint32_t i = 0; i < f->total; i++) {
        bool pooled = in_pool(f, i);
        meta[i] = (struct ix_frame){
            .next = i + 1 < pool_frames ? i + 1 : IX_NONE,
            .owner = pooled ? IX_FRAME_FREE : IX_FRAME_APP,
            .flow = IX_NONE,
        };
    }
}

uint32_t ix_frame_alloc(struct ix_frames *f)
{
    return pop_free(f, IX_FRAME_TX);
}

uint32_t ix_frame_take_fill(struct ix_frames *f)
{
    return pop_free(f, IX_FRAME_FILL);
}

void ix_frame_untake_fill(struct ix_frames *f, uint32_t frame)
{
    IX_ASSERT(in_pool(f, frame) && f->meta[frame].owner == IX_FRAME_FILL);
    push_free(f, frame);
}

bool ix_frame_from_rx(struct ix_frames *f, uint32_t frame)
{
    if (IX_UNLIKELY(!in_pool(f, frame) || f->meta[frame].owner != IX_FRAME_FILL))
        return false;
    move(f, frame, IX_FRAME_RX);
    return true;
}

void ix_frame_free(struct ix_frames *f, uint32_t frame)
{
    IX_ASSERT(in_pool(f, frame));
    const struct ix_frame *m = &f->meta[frame];
    IX_ASSERT(m->owner == IX_FRAME_RX || m->owner == IX_FRAME_TX);
    IX_ASSERT(m->tx_refs == 0);
    push_free(f, frame);
}

inline void ix_frame_lend(struct ix_frames *f, uint32_t frame, uint64_t handle, uint16_t offset,
                          uint16_t bytes)
{
    IX_ASSERT(in_pool(f, frame) && f->meta[frame].owner == IX_FRAME_RX);
    IX_ASSERT(handle != 0 && bytes > 0);
    IX_ASSERT((uint32_t)offset + bytes <= 1u << f->frame_shift);
    struct ix_frame *m = &f->meta[frame];
    move(f, frame, IX_FRAME_APP);
    m->next = IX_NONE;
    m->flow = IX_NONE;
    m->handle = handle;
    m->offset = offset;
    m->bytes = bytes;
    m->lent_bytes = bytes;
}

int ix_frame_done(struct ix_frames *f, uint32_t frame, uint64_t handle, uint32_t bytes)
{
    if (!in_pool(f, frame))
        return -IX_EINVAL;
    struct ix_frame *m = &f->meta[frame];
    if (m->owner != IX_FRAME_APP || m->handle != handle || bytes > m->lent_bytes)
        return -IX_EINVAL;
    m->lent_bytes -= (uint16_t)bytes;
    if (m->lent_bytes > 0)
        return 0;
    /* An echo gives a frame back that is still being sent: the link must not see it reused. */
    m->handle = 0;
    if (m->tx_refs > 0)
        move(f, frame, IX_FRAME_TX);
    else
        push_free(f, frame);
    return 0;
}

void ix_frame_tx_begin(struct ix_frames *f, uint32_t frame)
{
    IX_ASSERT(frame < f->total);
    struct ix_frame *m = &f->meta[frame];
    IX_ASSERT(m->owner == IX_FRAME_TX || m->owner == IX_FRAME_APP);
    IX_ASSERT(m->tx_refs < IX_FRAME_TX_REFS_MAX);
    m->tx_refs++;
}

uint32_t ix_frame_tx_end(struct ix_frames *f, uint32_t frame)
{
    /* What the completion ring says is the kernel's word, not ours: checked, never asserted. */
    if (IX_UNLIKELY(frame >= f->total || f->meta[frame].tx_refs == 0))
        return IX_NONE;
    struct ix_frame *m = &f->meta[frame];
    if (--m->tx_refs > 0)
        return IX_NONE;
    uint32_t flow = m->flow;
    if (m->owner == IX_FRAME_TX)
        push_free(f, frame);
    return flow;
}

static const char *check_record(const struct ix_frames *f, uint32_t frame)
{
    const struct ix_frame *m = &f->meta[frame];
    bool app = m->owner == IX_FRAME_APP;
    if (m->owner >= IX_FRAME_OWNERS)
        return "frame: no such owner";
    if (!in_pool(f, frame))
        return app && m->handle == 0 ? NULL : "frame: the arena changed hands";
    if (m->tx_refs > 0 && !app && m->owner != IX_FRAME_TX)
        return "frame: under transmission, but neither APP nor TX";
    if (app && (m->handle == 0 || m->lent_bytes == 0 || m->lent_bytes > m->bytes))
        return "frame: lent to nobody, or with nothing out";
    return NULL;
}

const char *ix_frames_check(const struct ix_frames *f)
{
    uint32_t count[IX_FRAME_OWNERS] = {0};
    for (uint32_t i = 0; i < f->total; i++) {
        const char *wrong = check_record(f, i);
        if (wrong)
            return wrong;
        if (in_pool(f, i))
            count[f->meta[i].owner]++;
    }
    for (uint32_t i = 0; i < IX_FRAME_OWNERS; i++)
        if (count[i] != f->count[i])
            return "frame: counts do not match the records";
    uint32_t listed = 0;
    for (uint32_t i = f->free_head; i != IX_NONE; i = f->meta[i].next) {
        if (!in_pool(f, i) || f->meta[i].owner != IX_FRAME_FREE)
            return "frame: the free list holds a frame that is not free";
        if (++listed > f->count[IX_FRAME_FREE])
            return "frame: the free list is longer than there are free frames";
    }
    return listed == f->count[IX_FRAME_FREE] ? NULL : "frame: a free frame is not on the free list";
}
