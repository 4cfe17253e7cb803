/* Extents: where the bytes of buffers lie, and how they are given back. See evpool.h. */
#include "native/evpool.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { SLAB_EXTENTS = 1024, CHUNK_MIN_BYTES = 4096 - 16 };

struct ix_evslab {
    struct ix_evslab *next;
    struct ix_evextent extents[SLAB_EXTENTS];
};

struct ix_evchunk {
    uint32_t extents; /* how many lie in it */
    uint32_t size;    /* of bytes[] */
    uint32_t begin;   /* first byte in use by any extent: put_front may go below */
    uint32_t end;     /* behind the last byte in use by any extent: append goes on there */
    uint8_t bytes[];
};

struct ix_evpool *ix_evpool_new(struct ix_io *io)
{
    struct ix_evpool *pool = calloc(1, sizeof *pool);
    uint32_t frames = io->arena_frames, room = (1u << io->frame_shift) - io->tx_headroom;
    if (!pool)
        return NULL;
    pool->io = io;
    pool->references = 1;
    pool->segment_bytes = room < IX_EVPOOL_SEGMENT_BYTES ? room : IX_EVPOOL_SEGMENT_BYTES;
    pool->arena = calloc(frames + 1, sizeof *pool->arena);
    pool->arena_free = calloc(frames + 1, sizeof *pool->arena_free);
    if (!pool->arena || !pool->arena_free) {
        ix_evpool_unref(pool);
        return NULL;
    }
    for (uint32_t i = frames; i-- > 0;)
        pool->arena_free[pool->arena_free_count++] = i;
    return pool;
}

void ix_evpool_unref(struct ix_evpool *pool)
{
    if (--pool->references)
        return;
    ix_evpool_drop_taken(pool);
    while (pool->slabs) {
        struct ix_evslab *slab = pool->slabs;
        pool->slabs = slab->next;
        free(slab);
    }
    free(pool->arena);
    free(pool->arena_free);
    free(pool);
}

/* ---- the queue of the changed -------------------------------------------- */

void ix_evpool_queue(struct ix_evpool *pool, struct ix_evowner *owner)
{
    if (owner->queued)
        return;
    owner->queued = 1;
    owner->next = NULL;
    if (pool->changed_tail)
        pool->changed_tail->next = owner;
    else
        pool->changed_head = owner;
    pool->changed_tail = owner;
}

struct ix_evowner *ix_evpool_unqueue(struct ix_evpool *pool)
{
    struct ix_evowner *owner = pool->changed_head;
    if (!owner)
        return NULL;
    pool->changed_head = owner->next;
    if (!pool->changed_head)
        pool->changed_tail = NULL;
    owner->queued = 0;
    return owner;
}

/* ---- extent records ------------------------------------------------------ */

static bool grow(struct ix_evpool *pool)
{
    struct ix_evslab *slab = malloc(sizeof *slab);
    if (!slab)
        return false;
    slab->next = pool->slabs;
    pool->slabs = slab;
    for (uint32_t i = SLAB_EXTENTS; i-- > 0;) {
        slab->extents[i].next = pool->free_extents;
        pool->free_extents = &slab->extents[i];
    }
    return true;
}

bool ix_evpool_reserve(struct ix_evpool *pool)
{
    return pool->free_extents || grow(pool);
}

static struct ix_evextent *extent_new(struct ix_evpool *pool, uint8_t kind, uint8_t *data)
{
    if (!ix_evpool_reserve(pool))
        return NULL;
    struct ix_evextent *e = pool->free_extents;
    pool->free_extents = e->next;
    pool->extents_used++;
    *e = (struct ix_evextent){.data = data, .kind = kind};
    return e;
}

static void extent_free(struct ix_evpool *pool, struct ix_evextent *e)
{
    e->next = pool->free_extents;
    pool->free_extents = e;
    pool->extents_used--;
}

static uint64_t addr_of(const struct ix_evpool *pool, const struct ix_evextent *e)
{
    return (uint64_t)(e->data - pool->io->umem);
}

static uint32_t arena_index(const struct ix_evpool *pool, const struct ix_evextent *e)
{
    return (uint32_t)(addr_of(pool, e) >> pool->io->frame_shift) - pool->io->arena_frame;
}

/* The offset of the extent's end in its arena frame. */
static uint32_t arena_end(const struct ix_evpool *pool, const struct ix_evextent *e)
{
    uint32_t mask = (1u << pool->io->frame_shift) - 1;
    return (uint32_t)(addr_of(pool, e) & mask) + e->bytes;
}

struct ix_evextent *ix_evextent_lent(struct ix_evpool *pool, uint8_t *data, uint32_t bytes,
                                     uint64_t handle)
{
    struct ix_evextent *e = extent_new(pool, IX_EVEXTENT_LENT, data);
    if (!e)
        return NULL;
    e->bytes = bytes;
    e->handle = handle;
    pool->lent_bytes += bytes;
    return e;
}

/* Half of the arena goes to whoever asks first. Of the other half each owner gets only a few
 * frames, so that some peers who stopped reading can't keep all others from sending. */
static bool arena_may_give(const struct ix_evpool *pool, const struct ix_evowner *owner)
{
    return pool->arena_free_count && (pool->arena_free_count > pool->io->arena_frames / 2 ||
                                      owner->arena_frames < IX_EVPOOL_FAIR_FRAMES);
}

struct ix_evextent *ix_evextent_arena(struct ix_evpool *pool, struct ix_evowner *owner)
{
    if (!arena_may_give(pool, owner))
        return NULL;
    const struct ix_io *io = pool->io;
    uint32_t i = pool->arena_free[pool->arena_free_count - 1];
    uint64_t addr = ((uint64_t)(io->arena_frame + i) << io->frame_shift) + io->tx_headroom;
    struct ix_evextent *e = extent_new(pool, IX_EVEXTENT_ARENA, io->umem + addr);
    if (!e)
        return NULL;
    pool->arena_free_count--;
    pool->arena[i] = (struct ix_arena_frame){.owner = owner, .extents = 1, .end = io->tx_headroom};
    owner->arena_frames++;
    return e;
}

struct ix_evextent *ix_evextent_heap(struct ix_evpool *pool, size_t room, size_t front)
{
    size_t size = room + front < CHUNK_MIN_BYTES ? CHUNK_MIN_BYTES : room + front;
    if (size > UINT32_MAX / 2)
        return NULL;
    struct ix_evchunk *chunk = malloc(sizeof *chunk + size);
    struct ix_evextent *e = chunk ? extent_new(pool, IX_EVEXTENT_HEAP, chunk->bytes + front) : NULL;
    if (!e) {
        free(chunk);
        return NULL;
    }
    chunk->extents = 1;
    chunk->size = (uint32_t)size;
    chunk->begin = chunk->end = (uint32_t)front;
    pool->heap_bytes += size;
    e->chunk = chunk;
    return e;
}

/* ---- growing, cutting, releasing ----------------------------------------- */

uint32_t ix_evextent_room(const struct ix_evpool *pool, const struct ix_evextent *e)
{
    if (e->kind == IX_EVEXTENT_ARENA) {
        const struct ix_arena_frame *frame = &pool->arena[arena_index(pool, e)];
        uint32_t limit = pool->io->tx_headroom + pool->segment_bytes;
        return frame->end == arena_end(pool, e) ? limit - frame->end : 0;
    }
    if (e->kind == IX_EVEXTENT_HEAP && e->data + e->bytes == e->chunk->bytes + e->chunk->end)
        return e->chunk->size - e->chunk->end;
    return 0;
}

void ix_evextent_append(struct ix_evpool *pool, struct ix_evextent *e, const void *data, uint32_t n)
{
    memcpy(e->data + e->bytes, data, n);
    e->bytes += n;
    if (e->kind == IX_EVEXTENT_ARENA)
        pool->arena[arena_index(pool, e)].end += n;
    else
        e->chunk->end += n;
}

uint32_t ix_evextent_put_front(struct ix_evextent *e, const uint8_t *data, size_t n)
{
    if (e->kind != IX_EVEXTENT_HEAP || e->data != e->chunk->bytes + e->chunk->begin)
        return 0;
    uint32_t take = n < e->chunk->begin ? (uint32_t)n : e->chunk->begin;
    e->chunk->begin -= take;
    e->data -= take;
    e->bytes += take;
    memcpy(e->data, data + (n - take), take);
    return take;
}

struct ix_evextent *ix_evextent_split(struct ix_evpool *pool, struct ix_evextent *e, uint32_t n)
{
    struct ix_evextent *rest = extent_new(pool, e->kind, e->data + n);
    if (!rest)
        return NULL;
    rest->bytes = e->bytes - n;
    rest->handle = e->handle;
    if (e->kind == IX_EVEXTENT_ARENA)
        pool->arena[arena_index(pool, e)].extents++;
    else if (e->kind == IX_EVEXTENT_HEAP) {
        rest->chunk = e->chunk;
        e->chunk->extents++;
    }
    e->bytes = n;
    return rest;
}

static void put_done(struct ix_evpool *pool, struct ix_evextent *e)
{
    e->next = NULL;
    if (pool->done_tail)
        pool->done_tail->next = e;
    else
        pool->done_head = e;
    pool->done_tail = e;
}

static void arena_unref(struct ix_evpool *pool, uint32_t i)
{
    struct ix_arena_frame *frame = &pool->arena[i];
    assert(frame->owner && frame->extents);
    if (--frame->extents)
        return;
    frame->owner->arena_frames--;
    frame->owner = NULL;
    pool->arena_free[pool->arena_free_count++] = i;
}

void ix_evextent_release(struct ix_evpool *pool, struct ix_evextent *e)
{
    if (e->kind == IX_EVEXTENT_LENT) {
        put_done(pool, e);
        return;
    }
    if (e->kind == IX_EVEXTENT_ARENA)
        arena_unref(pool, arena_index(pool, e));
    else if (!--e->chunk->extents) {
        pool->heap_bytes -= e->chunk->size;
        free(e->chunk);
    }
    extent_free(pool, e);
}

void ix_evextent_release_all(struct ix_evpool *pool, struct ix_evextent *e)
{
    while (e) {
        struct ix_evextent *next = e->next;
        ix_evextent_release(pool, e);
        e = next;
    }
}

int ix_evextent_trim(struct ix_evpool *pool, struct ix_evextent *e, uint32_t n)
{
    if (e->kind == IX_EVEXTENT_LENT) {
        struct ix_evextent *done = extent_new(pool, IX_EVEXTENT_LENT, e->data);
        if (!done)
            return -ENOMEM;
        done->bytes = n;
        done->handle = e->handle;
        put_done(pool, done);
    }
    e->data += n;
    e->bytes -= n;
    return 0;
}

bool ix_evpool_pop_done(struct ix_evpool *pool, uint64_t *handle, uint64_t *addr, uint32_t *bytes)
{
    struct ix_evextent *e = pool->done_head;
    if (!e)
        return false;
    *handle = e->handle;
    *addr = addr_of(pool, e);
    *bytes = e->bytes;
    pool->lent_bytes -= e->bytes;
    pool->done_head = e->next;
    if (!pool->done_head)
        pool->done_tail = NULL;
    extent_free(pool, e);
    return true;
}

void ix_evpool_drop_taken(struct ix_evpool *pool)
{
    ix_evextent_release_all(pool, pool->taken);
    pool->taken = NULL;
}

/* ---- invariants ---------------------------------------------------------- */

const char *ix_evpool_check(const struct ix_evpool *pool)
{
    uint64_t records = 0, free_records = 0, free_frames = 0;
    for (const struct ix_evslab *slab = pool->slabs; slab; slab = slab->next)
        records += SLAB_EXTENTS;
    for (const struct ix_evextent *e = pool->free_extents; e; e = e->next)
        if (++free_records > records)
            return "the free list of extents loops";
    if (free_records + pool->extents_used != records)
        return "an extent record is neither free nor in use";
    for (uint32_t i = 0; i < pool->io->arena_frames; i++) {
        const struct ix_arena_frame *frame = &pool->arena[i];
        free_frames += !frame->owner;
        if (!frame->owner != !frame->extents)
            return "an arena frame has an owner and no extents, or extents and no owner";
        if (frame->owner && frame->end > pool->io->tx_headroom + pool->segment_bytes)
            return "an arena frame is over-full";
    }
    if (free_frames != pool->arena_free_count)
        return "the stack of free arena frames does not match their records";
    for (const struct ix_evextent *e = pool->done_head; e; e = e->next)
        if (e->kind != IX_EVEXTENT_LENT || !e->bytes || (!e->next && e != pool->done_tail))
            return "what is to be given back is not lent memory";
    return NULL;
}
