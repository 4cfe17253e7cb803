/* See region.h. */
#include "native/region.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>

#include "base/huge_hosted.h"

#define PAGE ((size_t)4096)
#define HUGE_PAGE ((size_t)2 << 20)

static size_t round_up(size_t bytes, size_t unit)
{
    return (bytes + unit - 1) & ~(unit - 1);
}

static int map_at(uint8_t *at, size_t bytes, int flags, int fd)
{
    void *got = mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | flags, fd, 0);
    return got == MAP_FAILED ? -errno : 0;
}

/* Huge pages that are missing show up as SIGBUS on first touch, in the middle of traffic, unless
 * they are taken now; small pages would cost a fault each there. */
static int populate(uint8_t *base, size_t bytes)
{
    return madvise(base, bytes, MADV_POPULATE_WRITE) ? -errno : 0;
}

int ix_region_map(struct ix_region *region, size_t bytes, uint32_t huge, int head_fd,
                  size_t head_bytes)
{
    size_t unit = huge ? HUGE_PAGE : PAGE;
    bool hugetlb = huge == IX_REGION_HUGETLB;
    memset(region, 0, sizeof *region);
    if (!bytes || head_bytes % PAGE || head_bytes > bytes || (head_fd < 0) != (head_bytes == 0))
        return -EINVAL;
    /* | slack | head: file pages | body: anonymous pages, aligned to their size | slack | */
    size_t body_bytes = round_up(bytes - head_bytes, unit);
    size_t map_bytes = unit + round_up(head_bytes, unit) + body_bytes;
    uint8_t *map =
        mmap(NULL, map_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED)
        return -errno;
    uint8_t *body = (uint8_t *)round_up((uintptr_t)map + head_bytes, unit);
    uint8_t *base = body - head_bytes;
    int err = 0;
    if (body_bytes)
        err = map_at(body, body_bytes, MAP_ANONYMOUS | (hugetlb ? MAP_HUGETLB : 0), -1);
    if (!err && head_bytes)
        err = map_at(base, head_bytes, 0, head_fd);
    if (huge == IX_REGION_COLLAPSED && !err) /* before its small pages are there: nothing to copy */
        huge = (uint32_t)ix_huge_collapse(body, body_bytes);
    if (!err)
        err = populate(base, head_bytes + body_bytes);
    if (err) {
        munmap(map, map_bytes);
        return err;
    }
    region->base = base;
    region->bytes = bytes;
    region->map = map;
    region->map_bytes = map_bytes;
    region->huge = huge != 0;
    return 0;
}

void ix_region_unmap(struct ix_region *region)
{
    if (region->map)
        munmap(region->map, region->map_bytes);
    memset(region, 0, sizeof *region);
}
