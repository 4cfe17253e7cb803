#include "link/xsk_meta_hosted.h"

#include <errno.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/if_xdp.h>

#ifndef SOL_XDP
#define SOL_XDP 283
#endif
#ifndef AF_XDP
#define AF_XDP 44
#endif
#define UMEM_TX_METADATA_LEN (1u << 2) /* XDP_UMEM_TX_METADATA_LEN */

/* struct xdp_umem_reg as Linux has it since 6.8. */
struct umem_reg {
    uint64_t addr, len;
    uint32_t chunk_size, headroom, flags, tx_metadata_len;
};

static int register_umem(int fd, const struct ix_xsk_config *c)
{
    const struct umem_reg reg = {.addr = (uintptr_t)c->umem, .len = c->umem_bytes,
                                 .chunk_size = 1u << c->frame_shift, .headroom = c->headroom,
                                 .flags = UMEM_TX_METADATA_LEN,
                                 .tx_metadata_len = c->tx_metadata_bytes};

    return setsockopt(fd, SOL_XDP, XDP_UMEM_REG, &reg, sizeof reg);
}

static int offsets_of(int fd, struct xdp_mmap_offsets *out)
{
    socklen_t n = sizeof *out;

    return getsockopt(fd, SOL_XDP, XDP_MMAP_OFFSETS, out, &n);
}

/* Where a ring is: its size, which socket option sets that, and where it is mapped from. */
struct place {
    uint32_t entries, entry_bytes;
    int option;
    uint64_t page_offset;
    const struct xdp_ring_offset *fields;
};

static uint8_t *map_ring(int fd, const struct place *p)
{
    if (setsockopt(fd, SOL_XDP, p->option, &p->entries, sizeof p->entries))
        return NULL;
    void *at = mmap(NULL, p->fields->desc + (uint64_t)p->entries * p->entry_bytes,
                    PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, (off_t)p->page_offset);
    return at == MAP_FAILED ? NULL : at;
}

/* libxdp's views of rings to write and to read have the same fields but not the same type. free:
 * how many entries this side may write at first. */
#define SET_VIEW(view, at, p, free)                                                              \
    (*(view) = (typeof(*(view))){.cached_cons = (free), .mask = (p).entries - 1,                 \
                                 .size = (p).entries,                                            \
                                 .producer = (void *)((at) + (p).fields->producer),              \
                                 .consumer = (void *)((at) + (p).fields->consumer),              \
                                 .flags = (void *)((at) + (p).fields->flags),                    \
                                 .ring = (at) + (p).fields->desc})

static bool map_rings(int fd, const struct ix_xsk_config *c, const struct ix_xsk_views *v)
{
    struct xdp_mmap_offsets o;
    const struct place fill = {c->fill_entries, sizeof(uint64_t), XDP_UMEM_FILL_RING,
                               XDP_UMEM_PGOFF_FILL_RING, &o.fr};
    const struct place completion = {c->completion_entries, sizeof(uint64_t),
                                     XDP_UMEM_COMPLETION_RING, XDP_UMEM_PGOFF_COMPLETION_RING,
                                     &o.cr};
    const struct place rx = {c->rx_entries, sizeof(struct xdp_desc), XDP_RX_RING, XDP_PGOFF_RX_RING,
                             &o.rx};
    const struct place tx = {c->tx_entries, sizeof(struct xdp_desc), XDP_TX_RING, XDP_PGOFF_TX_RING,
                             &o.tx};
    uint8_t *at;

    if (offsets_of(fd, &o) || !(at = map_ring(fd, &fill)))
        return false;
    SET_VIEW(v->fill, at, fill, fill.entries);
    if (!(at = map_ring(fd, &completion)))
        return false;
    SET_VIEW(v->completion, at, completion, 0);
    if (!(at = map_ring(fd, &rx)))
        return false;
    SET_VIEW(v->rx, at, rx, 0);
    if (!(at = map_ring(fd, &tx)))
        return false;
    SET_VIEW(v->tx, at, tx, tx.entries);
    return true;
}

static void unmap_ring(void *ring, uint32_t size, uint32_t entry_bytes,
                       const struct xdp_ring_offset *fields)
{
    if (ring)
        munmap((uint8_t *)ring - fields->desc, fields->desc + (uint64_t)size * entry_bytes);
}

int ix_xsk_meta_open(const struct ix_xsk_config *config, const struct ix_xsk_views *rings)
{
    int fd = socket(AF_XDP, SOCK_RAW | SOCK_CLOEXEC, 0);

    rings->fill->ring = rings->tx->ring = rings->completion->ring = rings->rx->ring = NULL;
    if (fd < 0)
        return -errno;
    if (register_umem(fd, config) || !map_rings(fd, config, rings)) {
        int e = -errno;

        ix_xsk_meta_close(fd, rings);
        return e;
    }
    return fd;
}

int ix_xsk_meta_bind(int fd, const struct ix_xsk_config *config, uint32_t bind_flags)
{
    const struct sockaddr_xdp address = {.sxdp_family = AF_XDP, .sxdp_flags = (uint16_t)bind_flags,
                                         .sxdp_ifindex = config->ifindex,
                                         .sxdp_queue_id = config->queue};

    return bind(fd, (const struct sockaddr *)&address, sizeof address) ? -errno : 0;
}

void ix_xsk_meta_close(int fd, const struct ix_xsk_views *rings)
{
    struct xdp_mmap_offsets o;

    if (!offsets_of(fd, &o)) {
        unmap_ring(rings->fill->ring, rings->fill->size, sizeof(uint64_t), &o.fr);
        unmap_ring(rings->completion->ring, rings->completion->size, sizeof(uint64_t), &o.cr);
        unmap_ring(rings->rx->ring, rings->rx->size, sizeof(struct xdp_desc), &o.rx);
        unmap_ring(rings->tx->ring, rings->tx->size, sizeof(struct xdp_desc), &o.tx);
    }
    close(fd);
}
