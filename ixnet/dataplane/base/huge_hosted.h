/* Huge pages for memory that is mapped already. A shard's tables and a UMEM are far larger than
 * what the TLB covers in pages of 4 KiB: without huge pages a cold connection costs a walk of the
 * page tables (two nested ones in a virtual machine) for every structure that it touches.
 */
#ifndef IX_BASE_HUGE_HOSTED_H
#define IX_BASE_HUGE_HOSTED_H

#ifndef IX_CDEF
#include <stddef.h>
#include <stdint.h>
#endif

/* Asks the kernel to put what lies in whole 2 MiB units of [at, at + bytes) on huge pages now; of
 * shared memory, too, which settings leave on small ones as a rule (MADV_COLLAPSE, Linux 6.1).
 * What can't be is left as it is. Contents stay. Returns 1 if any of it is on huge pages. */
int ix_huge_collapse(void *at, uint64_t bytes);

#endif
