/* See huge_hosted.h. */
#include "base/huge_hosted.h"

#include <stdbool.h>
#include <stdio.h>
#include <sys/mman.h>

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25 /* since Linux 6.1 */
#endif
#define HUGE_BYTES ((uintptr_t)2 << 20)

/* Asking is one thing, getting another: the kernel tells it by mapping. */
static bool is_huge(uintptr_t start, uintptr_t end)
{
    char line[256];
    bool inside = false, huge = false;
    unsigned long lo, hi, kib;
    FILE *smaps = fopen("/proc/self/smaps", "re");
    if (!smaps)
        return false;
    while (!huge && fgets(line, sizeof line, smaps)) {
        if (sscanf(line, "%lx-%lx ", &lo, &hi) == 2)
            inside = lo < end && start < hi;
        else if (inside && (sscanf(line, "ShmemPmdMapped: %lu", &kib) == 1 ||
                            sscanf(line, "AnonHugePages: %lu", &kib) == 1))
            huge = kib > 0;
    }
    fclose(smaps);
    return huge;
}

int ix_huge_collapse(void *at, uint64_t bytes)
{
    uintptr_t start = ((uintptr_t)at + HUGE_BYTES - 1) & ~(HUGE_BYTES - 1);
    uintptr_t end = ((uintptr_t)at + bytes) & ~(HUGE_BYTES - 1);
    if (start >= end)
        return 0;
    madvise((void *)start, end - start, MADV_HUGEPAGE); /* for what is mapped from now on */
    /* Where no page is there yet nothing would be moved. */
    for (uintptr_t unit = start; unit < end; unit += HUGE_BYTES)
        (void)*(volatile const uint8_t *)unit;
    madvise((void *)start, end - start, MADV_COLLAPSE);
    return is_huge(start, end);
}
