/* The memory functions that the compiler may call, the core's own: the core links against no libc.
 * Hidden, and localised in the linked object, so that they can't clash with the host's. */
#ifndef IX_BASE_MEMOPS_H
#define IX_BASE_MEMOPS_H

#include "base/types.h"

void *memcpy(void *restrict dst, const void *restrict src, size_t bytes);
void *memmove(void *dst, const void *src, size_t bytes);
void *memset(void *dst, int value, size_t bytes);
int memcmp(const void *a, const void *b, size_t bytes);

#endif
