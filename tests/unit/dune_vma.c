/* The shim's view of /proc/self/maps on the host, both ways of asking. Compiled by
 * test_dune_vma.py. */
#define _GNU_SOURCE
#include "shim/vma.c"

#include <stdlib.h>
#include <sys/mman.h>

void dune_lock(struct dune_lock *lock)
{
    lock->word = 1;
}

void dune_unlock(struct dune_lock *lock)
{
    lock->word = 0;
}

int dune_fd_up(struct dune_vault *vault, int fd)
{
    (void)vault;
    return fd;
}

/* 0: the ioctl, where there is one. 1: reading. The mapping goes to out: start, end, flags. */
__attribute__((visibility("default"))) int test_ask(int how, int fd, uint64_t address,
                                                    uint64_t out[3])
{
    struct dune_vma vma = {0};
    int error = how ? read_maps(fd, address, &vma) : query(fd, address, &vma);

    out[0] = vma.start;
    out[1] = vma.end;
    out[2] = vma.flags;
    return error;
}

/* The descriptor that a vault of this process and one of its child's gets; -1: not opened anew. */
__attribute__((visibility("default"))) int test_descriptors(int pid, int child)
{
    struct dune_vault *vault = calloc(1, sizeof(*vault));
    uint8_t *pool = mmap(0, DUNE_TABLES_AT + DUNE_PAGE, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    int first, again, other;
    bool fine;

    vault->base = (uint64_t)pool;
    vault->pid = pid;
    first = dune_vma_fd(vault);
    again = dune_vma_fd(vault);
    vault->pid = child;
    other = dune_vma_fd(vault); /* the first one's number is free again by then */
    dune_sys1(__NR_close, other);
    munmap(pool, DUNE_TABLES_AT + DUNE_PAGE);
    fine = first >= 0 && first == again && other == first && !vault->mm_lock.word;
    free(vault);
    return fine ? first : -1;
}
