/* Ring 0: ring 3's FPU state, kept and given back. */
#ifndef DUNE_FPU_H
#define DUNE_FPU_H

#include "shim/shim.h"

#define DUNE_XSAVE_HEADER_AT    512
#define DUNE_XSAVE_HEADER_BYTES 64
#define DUNE_MXCSR_DEFAULT      0x1f80u

/* area: 64-byte aligned, vault->xsave_bytes, its XSAVE header zero at first (XRSTOR refuses what is
 * not zero there). XSAVEC writes only what is in use: not 8 KiB of AMX tiles. */
static inline void dune_fpu_save(const struct dune_vault *vault, void *area)
{
    uint32_t low = (uint32_t)vault->xcr0, high = (uint32_t)(vault->xcr0 >> 32);

    if (vault->features & DUNE_HAS_XSAVEC)
        __asm__ volatile("xsavec64 (%0)" : : "r"(area), "a"(low), "d"(high) : "memory");
    else if (vault->features & DUNE_HAS_XSAVE)
        __asm__ volatile("xsave64 (%0)" : : "r"(area), "a"(low), "d"(high) : "memory");
    else
        __asm__ volatile("fxsave64 (%0)" : : "r"(area) : "memory");
}

static inline void dune_fpu_restore(const struct dune_vault *vault, const void *area)
{
    uint32_t low = (uint32_t)vault->xcr0, high = (uint32_t)(vault->xcr0 >> 32);

    if (vault->features & DUNE_HAS_XSAVE)
        __asm__ volatile("xrstor64 (%0)" : : "r"(area), "a"(low), "d"(high) : "memory");
    else
        __asm__ volatile("fxrstor64 (%0)" : : "r"(area) : "memory");
}

/* SSE's exceptions masked, as the ABI wants it at a function's start. */
static inline void dune_fpu_plain_sse(void)
{
    uint32_t mxcsr = DUNE_MXCSR_DEFAULT;

    __asm__ volatile("ldmxcsr %0" : : "m"(mxcsr));
}

#endif
