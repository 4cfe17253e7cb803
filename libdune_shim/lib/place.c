/* The closed range: reserved, filled by the program, taken over by dune_init(). */
#include "lib/dune_lib.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
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

/* ---- what is mapped in the data windows ------------------------------------------------------ */

struct mapping {
    uint64_t start, end;
    int prot;
    struct dune_object object; /* inode 0: private memory */
};

/* A line of /proc/self/maps. False: nothing of it can be used in the data windows. */
static bool parse(const struct dune_place *place, const char *line, struct mapping *mapping)
{
    uint64_t high = place->data + place->data_bytes;
    unsigned long start, end, inode;
    unsigned major, minor;
    char permits[5];

    if (sscanf(line, "%lx-%lx %4s %*x %x:%x %lu", &start, &end, permits, &major, &minor, &inode) !=
        6)
        return false; /* the rest of a long name */
    mapping->start = start > place->data ? start : place->data;
    mapping->end = end < high ? end : high;
    mapping->prot =
        (permits[0] == 'r' ? PROT_READ : 0) | (permits[1] == 'w' ? PROT_WRITE : 0);
    mapping->object = (struct dune_object){(uint64_t)major << 32 | minor, inode};
    return mapping->start < mapping->end && mapping->prot != 0;
}

static int remember(struct dune_vault *vault, const struct dune_object *object)
{
    for (uint32_t i = 0; i < vault->n_data_objects; i++)
        if (vault->data_object[i].device == object->device &&
            vault->data_object[i].inode == object->inode)
            return 0;
    if (vault->n_data_objects == DUNE_DATA_OBJECTS)
        return dune_fail(-E2BIG, "more than %u files are mapped in the data windows",
                         DUNE_DATA_OBJECTS);
    vault->data_object[vault->n_data_objects++] = *object;
    return 0;
}

/* Each keeps what it permits. */
static int take_mapping(struct dune_vault *vault, const struct mapping *mapping)
{
    if (vault->pkey >= 0 && syscall(SYS_pkey_mprotect, mapping->start,
                                    mapping->end - mapping->start, mapping->prot, vault->pkey) != 0)
        return dune_fail(-errno, "the data windows' protection key: %s", strerror(errno));
    return mapping->object.inode != 0 ? remember(vault, &mapping->object) : 0;
}

int dune_place_take(struct dune_vault *vault, const struct dune_place *place)
{
    FILE *maps = place->data_bytes ? fopen("/proc/self/maps", "re") : NULL;
    struct mapping mapping;
    char line[512];
    int error = 0;

    if (!place->data_bytes)
        return 0;
    if (!maps)
        return dune_fail(-errno, "/proc/self/maps: %s", strerror(errno));
    while (error == 0 && fgets(line, sizeof(line), maps) != NULL)
        if (parse(place, line, &mapping))
            error = take_mapping(vault, &mapping);
    fclose(maps);
    return error;
}

/* ---- descriptors that would lead there ------------------------------------------------------- */

static bool same(const struct stat *one, const struct dune_object *other)
{
    return ((uint64_t)major(one->st_dev) << 32 | minor(one->st_dev)) == other->device &&
           one->st_ino == other->inode;
}

/* An AF_XDP socket's, say, whose rings are mapped there: ring 3 won't have it. */
static bool is_modules(const struct dune_module *module, int fd)
{
    for (uint32_t i = 0; module != NULL && i < module->n_descriptors; i++)
        if (module->descriptor[i] == fd)
            return true;
    return false;
}

static int check_descriptor(const struct dune_vault *vault, int fd,
                            const struct dune_module *module)
{
    struct stat is, kicked;

    if (fstat(fd, &is) != 0 || is_modules(module, fd))
        return 0;
    for (uint32_t i = 0; i < vault->n_data_objects; i++)
        if (same(&is, &vault->data_object[i]))
            return dune_fail(-EBUSY,
                             "descriptor %d is of memory in the data windows (cure: close it)", fd);
    for (uint32_t i = 0; module != NULL && i < module->n_descriptors; i++)
        if (fstat(module->descriptor[i], &kicked) == 0 &&
            kicked.st_dev == is.st_dev && kicked.st_ino == is.st_ino)
            return dune_fail(-EBUSY, "descriptor %d is the module's %d (cure: close it)", fd,
                             module->descriptor[i]);
    return 0;
}

int dune_place_check_descriptors(const struct dune_vault *vault, const struct dune_module *module)
{
    DIR *descriptors = opendir("/proc/self/fd");
    struct dirent *entry;
    int error = 0;

    if (!descriptors)
        return dune_fail(-errno, "/proc/self/fd: %s", strerror(errno));
    while (error == 0 && (entry = readdir(descriptors)) != NULL)
        if (entry->d_name[0] != '.')
            error = check_descriptor(vault, atoi(entry->d_name), module);
    closedir(descriptors);
    return error;
}
