/* The closed range: reserved, filled by the program, taken over by dune_init(). */
#include "lib/dune_lib.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define GIB        ((uint64_t)DUNE_WINDOW)
#define DATA_MOST  ((uint64_t)512 << 30)
#define USED_BYTES (DUNE_SCRATCH_AT + (uint64_t)DUNE_MAX_VCPUS * DUNE_SCRATCH)
#define NOTHING    (MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE)

int dune_reserve(uint64_t data_bytes, struct dune_place *place)
{
    uint64_t data = (data_bytes + GIB - 1) & ~(GIB - 1), bytes = 4 * GIB + data, start, low;
    uint8_t *at = MAP_FAILED;

    if (data_bytes <= DATA_MOST)
        at = mmap(NULL, bytes, PROT_NONE, NOTHING, -1, 0);
    if (at == MAP_FAILED)
        return dune_fail(-ENOMEM,
                         "no %llu GiB of address space for the vault (cure: ulimit -v)",
                         (unsigned long long)(bytes / GIB));
    start = (uint64_t)at;
    low = (start + GIB - 1) & ~(GIB - 1);
    if (low > start)
        munmap(at, low - start);
    munmap((void *)(low + bytes - GIB), start + GIB - low);
    *place = (struct dune_place){.base = low + GIB, .data = low + 2 * GIB, .data_bytes = data};
    return 0;
}

void dune_unreserve(const struct dune_place *place)
{
    munmap((void *)(place->base - GIB), 3 * GIB + place->data_bytes);
}

int dune_place_check(const struct dune_place *place)
{
    uint64_t end;

    if (place->base % GIB || place->base < GIB || place->data != place->base + GIB ||
        place->data_bytes % GIB || place->data_bytes > DATA_MOST ||
        __builtin_add_overflow(place->data, place->data_bytes + GIB, &end) ||
        end > (uint64_t)1 << 47)
        return dune_fail(-EINVAL, "no place for the vault (cure: as dune_reserve() fills it in)");
    return 0;
}

/* A block's first page would cost 2 MiB. */
int dune_place_open(const struct dune_place *place)
{
    void *at = mmap((void *)place->base, USED_BYTES, PROT_READ | PROT_WRITE, NOTHING | MAP_FIXED,
                    -1, 0);

    if (at == MAP_FAILED)
        return dune_fail(-errno, "no memory for the vault: %s", strerror(errno));
    madvise(at, USED_BYTES, MADV_NOHUGEPAGE);
    madvise(at, USED_BYTES, MADV_DONTDUMP);
    if (place->data_bytes && madvise((void *)place->data, place->data_bytes, MADV_DONTFORK) != 0)
        return dune_fail(-errno, "the data windows are not all reserved: %s", strerror(errno));
    return 0;
}

void dune_place_close(const struct dune_place *place)
{
    mmap((void *)place->base, GIB, PROT_NONE, NOTHING | MAP_FIXED, -1, 0);
    madvise((void *)place->data, place->data_bytes, MADV_DOFORK);
}

/* Each mapping of the data windows keeps what it permits. */
static int key_mapping(const struct dune_place *place, const char *line, int key)
{
    unsigned long start, end, high = place->data + place->data_bytes;
    char permits[5];
    int prot;

    if (sscanf(line, "%lx-%lx %4s", &start, &end, permits) != 3)
        return -EPROTO;
    start = start > place->data ? start : place->data;
    end = end < high ? end : high;
    prot = (permits[0] == 'r' ? PROT_READ : 0) | (permits[1] == 'w' ? PROT_WRITE : 0);
    if (start >= end || prot == 0)
        return 0;
    return syscall(SYS_pkey_mprotect, start, end - start, prot, key) == 0 ? 0 : -errno;
}

int dune_place_key(const struct dune_place *place, int key)
{
    FILE *maps = place->data_bytes ? fopen("/proc/self/maps", "re") : NULL;
    char line[512];
    int error = 0;

    if (!maps)
        return place->data_bytes ? -errno : 0;
    while (error == 0 && fgets(line, sizeof(line), maps) != NULL)
        if (strchr(line, '-')) /* not the rest of a long name */
            error = key_mapping(place, line, key);
    fclose(maps);
    return error;
}
