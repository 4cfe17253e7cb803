/* Where members of the running kernel's structures lie, by its own description (BTF).
 *
 * For programs that are compiled where they run (xdp/trace/): the structures change from kernel to
 * kernel, and few kernels' headers can be compiled by any one compiler.
 */
#ifndef IX_XDP_KERNEL_TYPES_H
#define IX_XDP_KERNEL_TYPES_H

#ifndef IX_CDEF
#include <stddef.h>
#include <stdint.h>
#endif

/* A member, and, after ix_kernel_offsets(), its offset in bytes; -ENOENT: there is none. */
struct ix_kernel_member {
    char type[32];   /* the structure's name */
    char member[32]; /* also one of an anonymous structure or union inside */
    int32_t offset;
};

/* Looks up `n` members. -errno if the kernel doesn't describe itself. */
int ix_kernel_offsets(struct ix_kernel_member *members, size_t n);

#endif
