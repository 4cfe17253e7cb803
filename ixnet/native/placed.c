/* See placed.h. */
#include "native/placed.h"

#include <errno.h>
#include <stddef.h>
#include <sys/mman.h>

#include "base/huge_hosted.h"

#define NOTHING (MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE)

static void *pointer(uint64_t at)
{
    return (void *)(uintptr_t)at;
}

int ix_placed_reserve(uint64_t bytes, uint64_t align, uint64_t *at)
{
    if (!bytes || bytes % 4096 || align < 4096 || align & (align - 1))
        return -EINVAL;
    uint8_t *room = mmap(NULL, bytes + align, PROT_NONE, NOTHING, -1, 0);
    if (room == MAP_FAILED)
        return -errno;
    uint8_t *start = pointer(((uint64_t)(uintptr_t)room + align - 1) & ~(align - 1));
    if (start > room)
        munmap(room, (size_t)(start - room));
    munmap(start + bytes, (size_t)(room + align - start));
    *at = (uint64_t)(uintptr_t)start;
    return 0;
}

int ix_placed_map(uint64_t at, uint64_t bytes, int fd, uint64_t offset, uint32_t flags)
{
    int prot = PROT_READ | (flags & IX_PLACED_WRITE ? PROT_WRITE : 0);
    int how = MAP_SHARED | MAP_FIXED | (fd < 0 ? MAP_ANONYMOUS : 0);
    if (!at || at % 4096)
        return -EINVAL;
    if (mmap(pointer(at), bytes, prot, how, fd, (off_t)offset) == MAP_FAILED)
        return -errno;
    if (flags & IX_PLACED_HUGE)
        ix_huge_collapse(pointer(at), bytes);
    if (!(flags & IX_PLACED_FILL))
        return 0;
    int advice = flags & IX_PLACED_WRITE ? MADV_POPULATE_WRITE : MADV_POPULATE_READ;
    if (!madvise(pointer(at), bytes, advice))
        return 0;
    int err = errno;
    ix_placed_clear(at, bytes);
    return -err;
}

int ix_placed_clear(uint64_t at, uint64_t bytes)
{
    return mmap(pointer(at), bytes, PROT_NONE, NOTHING | MAP_FIXED, -1, 0) == MAP_FAILED ? -errno
                                                                                          : 0;
}

int ix_placed_release(uint64_t at, uint64_t bytes)
{
    return munmap(pointer(at), bytes) ? -errno : 0;
}
