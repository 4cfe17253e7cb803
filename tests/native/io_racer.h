/* A thread that overwrites memory while a test uses it: an application that changes call records
 * and arrays while the dataplane reads them. */
#ifndef IX_TESTS_IO_RACER_H
#define IX_TESTS_IO_RACER_H

#ifndef IX_CDEF
#include <stddef.h>
#include <stdint.h>
#endif

struct ix_racer;

/* Writes words of `pool` (n_pool of them), and random ones, over random places of `memory` until
 * stopped. */
struct ix_racer *ix_racer_start(void *memory, size_t bytes, const uint64_t *pool, uint32_t n_pool,
                                uint64_t seed);
/* Returns how many words it wrote. */
uint64_t ix_racer_stop(struct ix_racer *racer);

#endif
