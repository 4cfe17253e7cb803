/* Memory at chosen addresses: what the dune placement's shards lie in, and what of it ring 3 sees.
 *
 * Addresses are numbers here: most of them are of mappings that this process never touches.
 * Functions return 0 or -errno.
 */
#ifndef IX_NATIVE_PLACED_H
#define IX_NATIVE_PLACED_H

#ifndef IX_CDEF
#include <stdint.h>
#endif

enum ix_placed_flags {
    IX_PLACED_WRITE = 1, /* else read-only */
    IX_PLACED_FILL = 2,  /* every page present at once */
    IX_PLACED_HUGE = 4   /* huge pages where the kernel likes */
};

/* Reserves `bytes` bytes of addresses at a multiple of `align`: nothing can be read or written. */
int ix_placed_reserve(uint64_t bytes, uint64_t align, uint64_t *at);
/* Maps `bytes` bytes of fd from `offset` on (fd -1: of fresh memory), shared, over what is at `at`.
 * -ENOMEM: among others, too few huge pages. */
int ix_placed_map(uint64_t at, uint64_t bytes, int fd, uint64_t offset, uint32_t flags);
/* Back to a reservation. */
int ix_placed_clear(uint64_t at, uint64_t bytes);
/* Gives the addresses back too. */
int ix_placed_release(uint64_t at, uint64_t bytes);

#endif
