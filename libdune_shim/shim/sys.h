/* Raw system calls of the host side: no errno, no libc, no thread-local storage. */
#ifndef DUNE_SYS_H
#define DUNE_SYS_H

#include <asm/unistd.h>
#include <stdint.h>

/* The result, or a negative errno. */
static inline long dune_sys(long nr, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e,
                            uint64_t f)
{
    register uint64_t r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
    long result;

    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "0"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

#define DUNE_SYS_CAST(x) ((uint64_t)(x))
#define dune_sys0(nr) dune_sys(nr, 0, 0, 0, 0, 0, 0)
#define dune_sys1(nr, a) dune_sys(nr, DUNE_SYS_CAST(a), 0, 0, 0, 0, 0)
#define dune_sys2(nr, a, b) dune_sys(nr, DUNE_SYS_CAST(a), DUNE_SYS_CAST(b), 0, 0, 0, 0)
#define dune_sys3(nr, a, b, c) \
    dune_sys(nr, DUNE_SYS_CAST(a), DUNE_SYS_CAST(b), DUNE_SYS_CAST(c), 0, 0, 0)
#define dune_sys4(nr, a, b, c, d) \
    dune_sys(nr, DUNE_SYS_CAST(a), DUNE_SYS_CAST(b), DUNE_SYS_CAST(c), DUNE_SYS_CAST(d), 0, 0)
#define dune_sys6(nr, a, b, c, d, e, f)                                                      \
    dune_sys(nr, DUNE_SYS_CAST(a), DUNE_SYS_CAST(b), DUNE_SYS_CAST(c), DUNE_SYS_CAST(d),       \
             DUNE_SYS_CAST(e), DUNE_SYS_CAST(f))

#endif
