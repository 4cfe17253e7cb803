/* The last word to the peers of a worker that died: a RST for each of its connections.
 */
#ifndef IX_SHARD_FAREWELL_HOSTED_H
#define IX_SHARD_FAREWELL_HOSTED_H

#ifndef IX_CDEF
#include "api/config.h"
#endif

/* Resets the connections of a dead shard, by segments that the kernel routes to `ifindex` (0:
 * anywhere). memory: the shard's, whatever state it is in; cfg: its configuration, as
 * ix_shard_bytes() left it. Nobody may run the shard meanwhile or afterwards. Needs CAP_NET_RAW.
 * Returns how many connections were reset, or -errno when none can be (no socket). A peer that the
 * kernel can't reach is left out. */
int ix_farewell(const void *memory, const struct ix_config *cfg, uint32_t ifindex);

#endif
