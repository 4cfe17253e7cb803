/* An AF_XDP socket whose frames may carry TX metadata (Linux 6.11;
 * Documentation/networking/xsk-tx-metadata.rst): what the driver is asked for, and its answer,
 * stand in the bytes before each frame. The libxdp of Debian 12 can't register such a UMEM, so
 * these sockets are made without it. Hosted: used by xsk_setup.c alone.
 */
#ifndef IX_LINK_XSK_META_HOSTED_H
#define IX_LINK_XSK_META_HOSTED_H

#ifndef IX_CDEF
#include <xdp/xsk.h>

#include "link/xsk_setup.h"

/* libxdp's views of the four rings, to be filled in. */
struct ix_xsk_views {
    struct xsk_ring_prod *fill, *tx;
    struct xsk_ring_cons *completion, *rx;
};

/* Socket, UMEM with config's tx_metadata_bytes, rings; not bound. Returns the descriptor or -errno
 * (-EINVAL: this kernel has no TX metadata). */
int ix_xsk_meta_open(const struct ix_xsk_config *config, const struct ix_xsk_views *rings);
/* bind_flags: XDP_ZEROCOPY and the like. 0 or -errno. */
int ix_xsk_meta_bind(int fd, const struct ix_xsk_config *config, uint32_t bind_flags);
/* Unmaps the rings, wherever they are, and closes the socket. */
void ix_xsk_meta_close(int fd, const struct ix_xsk_views *rings);
#endif

#endif
