/* See plan.h. */
#include "native/plan.h"

#include "link/link.h"

#include <errno.h>
#include <string.h>

static uint32_t no_descs(struct ix_link *link, struct ix_desc *out, uint32_t max)
{
    (void)link, (void)out, (void)max;
    return 0;
}

static uint32_t no_tx(struct ix_link *link, const struct ix_desc *descs, uint32_t n)
{
    (void)link, (void)descs, (void)n;
    return 0;
}

static uint32_t no_completions(struct ix_link *link, uint64_t *addrs, uint32_t max)
{
    (void)link, (void)addrs, (void)max;
    return 0;
}

static uint32_t no_fill(struct ix_link *link, const uint64_t *addrs, uint32_t n)
{
    (void)link, (void)addrs, (void)n;
    return 0;
}

static uint32_t no_room(struct ix_link *link)
{
    (void)link;
    return 0;
}

static int no_wakeup(struct ix_link *link, uint32_t what)
{
    (void)link, (void)what;
    return 0;
}

int ix_plan_fill(void *memory, size_t bytes, struct ix_config *cfg, void *umem, uint64_t umem_bytes,
                 uint32_t frame_shift, uint32_t rx_headroom, uint64_t *fill)
{
    static const struct ix_link_ops nowhere = {no_descs, no_tx,   no_completions,
                                               no_fill,  no_room, no_wakeup};
    struct ix_link link = {.ops = &nowhere,
                           .umem = umem,
                           .umem_bytes = umem_bytes,
                           .frame_shift = frame_shift,
                           .rx_headroom = rx_headroom};
    struct ix_shard *shard = ix_shard_create(memory, bytes, cfg, &link, fill);
    memset(memory, 0, bytes);
    return shard ? (int)cfg->fill_target : -EINVAL;
}
