/* Memory that the control plane maps before it forks the workers: the same address in all of them.
 */
#ifndef IX_NATIVE_REGION_H
#define IX_NATIVE_REGION_H

#ifndef IX_CDEF
#include <stddef.h>
#include <stdint.h>
#endif

/* What pages of 2 MiB a region is to lie on. */
enum ix_region_huge {
    IX_REGION_SMALL = 0,    /* none */
    IX_REGION_HUGETLB = 1,  /* those of the hugetlb pool */
    IX_REGION_COLLAPSED = 2 /* what the kernel makes of small ones, as far as it can */
};

struct ix_region {
    uint8_t *base;    /* page-aligned; NULL when there is none */
    size_t bytes;     /* usable, from base on */
    void *map;        /* what ix_region_unmap() gives back */
    size_t map_bytes;
    uint32_t huge;    /* 1: on huge pages of 2 MiB */
};

/* Maps `bytes` zeroed bytes, shared with later children, all present at once. head_bytes (a
 * multiple of 4096; 0 with head_fd -1) of them, the first, are those of the file head_fd, so
 * that a stranger can map only these. huge: enum ix_region_huge. Returns 0, -ENOMEM (with
 * IX_REGION_HUGETLB: too few free huge pages), -EINVAL. */
int ix_region_map(struct ix_region *region, size_t bytes, uint32_t huge, int head_fd,
                  size_t head_bytes);
void ix_region_unmap(struct ix_region *region);

#endif
