/* Which frames a shard will receive into first, before its link exists.
 */
#ifndef IX_NATIVE_PLAN_H
#define IX_NATIVE_PLAN_H

#ifndef IX_CDEF
#include "api/config.h"
#endif

/* Some drivers take receive buffers when an AF_XDP socket is bound and never again, so the
 * socket wants addresses for its FILL ring before the shard, which hands frames out and wants
 * the socket's link, can be made. Making a shard is deterministic: this makes it once over a
 * link that leads nowhere, notes the frames it gave away (fill_target of them, in `fill`), and
 * zeroes `memory` again. Then ix_shard_create() with the same configuration gives the same ones.
 * Returns how many, or -EINVAL for a bad configuration. */
int ix_plan_fill(void *memory, size_t bytes, struct ix_config *cfg, void *umem, uint64_t umem_bytes,
                 uint32_t frame_shift, uint32_t rx_headroom, uint64_t *fill);

#endif
