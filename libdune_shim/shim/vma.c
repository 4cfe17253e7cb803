/* What Linux maps where, asked of /proc/self/maps: by one ioctl since Linux 6.11, else by reading
 * it. The descriptor belongs to the address space that it was opened in, so a fork's child opens
 * its own; a vfork's child shares both. */
#include "shim/fault.h"
#include "shim/pagetable.h"
#include "shim/sys.h"

#include <asm/errno.h>
#include <asm/fcntl.h>

#define AT_FDCWD (-100)

/* <linux/fs.h> of Linux 6.11. */
struct procmap_query {
    uint64_t size, query_flags, query_addr;
    uint64_t vma_start, vma_end, vma_flags, vma_page_size, vma_offset, inode;
    uint32_t dev_major, dev_minor, vma_name_size, build_id_size;
    uint64_t vma_name_addr, build_id_addr;
};
#define PROCMAP_QUERY 0xc0686611u /* _IOWR('f', 17, struct procmap_query) */
_Static_assert(sizeof(struct procmap_query) == 0x68, "the kernel's");

int dune_vma_fd(struct dune_vault *vault)
{
    struct dune_tables *tables = dune_tables(vault);
    int fd;

    if (__atomic_load_n(&tables->maps_pid, __ATOMIC_ACQUIRE) == vault->pid)
        return tables->maps_fd;
    dune_lock(&vault->mm_lock);
    fd = tables->maps_fd;
    if (tables->maps_pid != vault->pid) {
        if (tables->maps_pid)
            dune_sys1(__NR_close, fd); /* the parent's, as inherited */
        fd = (int)dune_sys4(__NR_openat, AT_FDCWD, "/proc/self/maps", O_RDONLY | O_CLOEXEC, 0);
        fd = fd < 0 ? -ENOSYS : dune_fd_up(vault, fd);
        tables->maps_fd = fd;
        __atomic_store_n(&tables->maps_pid, fd < 0 ? 0 : vault->pid, __ATOMIC_RELEASE);
    }
    dune_unlock(&vault->mm_lock);
    return fd;
}

static int query(int fd, uint64_t address, struct dune_vma *vma)
{
    struct procmap_query query = {.size = sizeof(query), .query_addr = address};
    long error = dune_sys3(__NR_ioctl, fd, PROCMAP_QUERY, &query);

    if (error)
        return (int)error;
    vma->start = query.vma_start;
    vma->end = query.vma_end;
    vma->flags = (uint32_t)query.vma_flags & (DUNE_VMA_READ | DUNE_VMA_WRITE | DUNE_VMA_EXEC);
    return 0;
}

/* One line's state: "start-end rwxp ...\n". */
struct line {
    struct dune_vma vma;
    unsigned field; /* 0 start, 1 end, 2 the flags, 3 the rest */
};

/* True: the line is complete. */
static bool parse(struct line *line, char c)
{
    uint64_t *number = line->field == 0 ? &line->vma.start : &line->vma.end;

    if (c == '\n')
        return true;
    if (line->field < 2) {
        if (c == '-' || c == ' ')
            line->field++;
        else
            *number = *number << 4 | (uint64_t)(c <= '9' ? c - '0' : c - 'a' + 10);
    } else if (line->field == 2) {
        line->vma.flags |= c == 'r'   ? DUNE_VMA_READ
                           : c == 'w' ? DUNE_VMA_WRITE
                           : c == 'x' ? DUNE_VMA_EXEC
                                      : 0;
        if (c == ' ')
            line->field = 3;
    }
    return false;
}

static int read_maps(int fd, uint64_t address, struct dune_vma *vma)
{
    struct line line = {.field = 0};
    char text[2048];
    uint64_t at = 0;
    long got;

    while ((got = dune_sys4(__NR_pread64, fd, text, sizeof(text), at)) > 0) {
        at += (uint64_t)got;
        for (long i = 0; i < got; i++) {
            if (!parse(&line, text[i]))
                continue;
            if (address >= line.vma.start && address < line.vma.end) {
                *vma = line.vma;
                return 0;
            }
            line = (struct line){.field = 0};
        }
    }
    return got < 0 ? (int)got : -ENOENT;
}

int dune_vma_query(int fd, uint64_t address, struct dune_vma *vma)
{
    int error;

    if (fd < 0)
        return fd;
    error = query(fd, address, vma);
    return error == -ENOTTY || error == -EINVAL ? read_maps(fd, address, vma) : error;
}

int dune_vma_at(struct dune_vault *vault, uint64_t address, struct dune_vma *vma)
{
    return dune_vma_query(dune_vma_fd(vault), address, vma);
}
