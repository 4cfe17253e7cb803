/* Worlds in the state that a header names: made once, and copied from then on. */
#include "tests/fuzz/world.h"

#include <stdlib.h>
#include <string.h>

enum { SNAPSHOTS = 64, UNTOUCHED = 0x5a };

/* A world as it was when its state was reached. All pointers into it stay as they are: it is
 * always copied back to where it was. */
struct snapshot {
    bool taken;
    struct world world;
    uint8_t *memory, *umem;
};
static struct snapshot snapshots[SNAPSHOTS];

void world_forget(void)
{
    for (uint32_t i = 0; i < SNAPSHOTS; i++)
        snapshots[i].taken = false;
}

static struct snapshot *snapshot_of(const struct fuzz_header *header)
{
    uint64_t words[2];
    IX_STATIC_ASSERT(sizeof words == sizeof *header, "all of the header");
    memcpy(words, header, sizeof words);
    return &snapshots[(words[0] * 0x9e3779b97f4a7c15ull ^ words[1]) >> 32 & (SNAPSHOTS - 1)];
}

static void take_snapshot(struct snapshot *to, const struct world *w)
{
    if (!to->memory) {
        to->memory = malloc(w->memory_bytes);
        to->umem = malloc(WORLD_UMEM_BYTES);
    }
    to->taken = true;
    to->world = *w;
    memcpy(to->memory, w->memory, w->memory_bytes);
    memcpy(to->umem, w->umem, WORLD_UMEM_BYTES);
}

static void restore(struct world *w, const struct snapshot *from)
{
    for (uint32_t i = 0; i < WORLD_FRAMES; i++) {
        size_t at = (size_t)i << WORLD_FRAME_SHIFT;
        if (w->dirty[i] || from->world.dirty[i])
            memcpy(w->umem + at, from->umem + at, 1u << WORLD_FRAME_SHIFT);
    }
    *w = from->world;
    memcpy(w->memory, from->memory, w->memory_bytes);
}

/* As it was before there was anything. */
static void clean(struct world *w)
{
    for (uint32_t i = 0; i < WORLD_FRAMES; i++)
        if (w->dirty[i])
            memset(w->umem + ((size_t)i << WORLD_FRAME_SHIFT), UNTOUCHED, 1u << WORLD_FRAME_SHIFT);
    size_t kept = offsetof(struct world, cfg);
    memset((uint8_t *)w + kept, 0, sizeof *w - kept);
}

static struct world *memory_of(void)
{
    static struct world *w;
    if (w)
        return w;
    w = calloc(1, sizeof *w);
    w->link = (struct ix_link){.ops = &world_link_ops,
                               .umem_bytes = WORLD_UMEM_BYTES,
                               .frame_shift = WORLD_FRAME_SHIFT,
                               .rx_headroom = 256};
    w->umem = w->link.umem = aligned_alloc(4096, WORLD_UMEM_BYTES);
    memset(w->umem, UNTOUCHED, WORLD_UMEM_BYTES);
    world_configure(w); /* its size does not depend on the header */
    w->memory_bytes = ix_shard_bytes(&w->cfg);
    w->memory = aligned_alloc(4096, w->memory_bytes);
    return w;
}

/* libFuzzer's counters of edges; only its programs have them. */
extern uint8_t __start___sancov_cntrs[] __attribute__((weak));
extern uint8_t __stop___sancov_cntrs[] __attribute__((weak));

struct world *world_make(const uint8_t *data, size_t size)
{
    struct world *w = memory_of();
    struct fuzz_header header = {0};
    memcpy(&header, data, IX_MIN(size, sizeof header));
    struct snapshot *snapshot = snapshot_of(&header);
    if (snapshot->taken && memcmp(&snapshot->world.start, &header, sizeof header) == 0) {
        restore(w, snapshot);
    } else {
        clean(w);
        w->header = w->start = header;
        world_build(w);
        take_snapshot(snapshot, w);
    }
    if (__start___sancov_cntrs)
        memset(__start___sancov_cntrs, 0,
               (size_t)(__stop___sancov_cntrs - __start___sancov_cntrs));
    return w;
}
