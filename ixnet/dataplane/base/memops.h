/* The memory functions that the compiler may call, the core's own: the core links against no libc.
 * Hidden, and localised in the linked object, so that they can't clash with the host's.
 *
 * The ix_base_* names are the implementations. The C names are aliases of them, except in a build
 * with AddressSanitizer: there the sanitizer's checked versions serve the core, and the tests reach
 * the core's own by the ix_base_* names. */
#ifndef IX_BASE_MEMOPS_H
#define IX_BASE_MEMOPS_H

#include "base/types.h"

void *memcpy(void *restrict dst, const void *restrict src, size_t bytes);
void *memmove(void *dst, const void *src, size_t bytes);
void *memset(void *dst, int value, size_t bytes);
int memcmp(const void *a, const void *b, size_t bytes);

void *ix_base_memcpy(void *restrict dst, const void *restrict src, size_t bytes);
void *ix_base_memmove(void *dst, const void *src, size_t bytes);
void *ix_base_memset(void *dst, int value, size_t bytes);
int ix_base_memcmp(const void *a, const void *b, size_t bytes);

#endif
