/* How an application in ring 3 reaches its shard in ring 0: the operations of struct ix_app in the
 * dune placement, each one system call of libdune's that Linux never sees (api/gate.h).
 */
#ifndef IX_NATIVE_GATEOPS_H
#define IX_NATIVE_GATEOPS_H

#ifndef IX_CDEF
#include "native/app.h"
#endif

/* For an app whose io and stats are mappings that ring 3 may see, and whose shard is NULL. */
const struct ix_app_ops *ix_app_gate_ops(void);

#endif
