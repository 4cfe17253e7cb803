/* The last instructions of dune-sandbox, in ring 3: they leave the registers as execve() does. */
#include "sandbox/sandbox.h"

#include <asm/prctl.h>
#include <asm/unistd.h>
#include <cpuid.h>

#define OSXSAVE    (1u << 27) /* CPUID 1, ECX */
#define STATE_PKRU (1u << 9)

/* XSAVE's or FXSAVE's image of a fresh program: all in the initial state, but MXCSR and the x87
 * control word, which FXRSTOR takes from here. */
struct fpu_image {
    uint16_t control;
    uint8_t unused0[22];
    uint32_t mxcsr;
    uint8_t unused1[484];
    uint8_t header[64]; /* XSTATE_BV 0: initial states */
} __attribute__((aligned(64)));

static const struct fpu_image fresh = {.control = 0x37f, .mxcsr = 0x1f80};

static void clear_fpu(void)
{
    uint32_t a, b, c = 0, d;

    if (__get_cpuid(1, &a, &b, &c, &d) && c & OSXSAVE)
        /* Protection keys stay: their initial state would open all. */
        __asm__ volatile("xrstor64 %0" : : "m"(fresh), "a"(~STATE_PKRU), "d"(0x7fffffff));
    else
        __asm__ volatile("fxrstor64 %0" : : "m"(fresh));
    __asm__ volatile("ldmxcsr %0" : : "m"(fresh.mxcsr));
}

__attribute__((noreturn, optimize("no-stack-protector"))) void sandbox_start(uint64_t stack,
                                                                             uint64_t entry)
{
    clear_fpu();
    /* The entry point waits just below the stack pointer, where nobody looks. FS base 0, as at
     * execve: libc's of dune-sandbox is of no use to the program. */
    __asm__ volatile("mov %[entry], -8(%[stack])\n\t"
                     "mov %[stack], %%rsp\n\t"
                     "lea -256(%%rsp), %%rsp\n\t" /* a signal now must not touch it */
                     "mov %[nr], %%eax\n\t"
                     "mov %[set_fs], %%edi\n\t"
                     "xor %%esi, %%esi\n\t"
                     "syscall\n\t"
                     "lea 256(%%rsp), %%rsp\n\t"
                     "xor %%eax, %%eax\n\t"
                     "xor %%ebx, %%ebx\n\t"
                     "xor %%ecx, %%ecx\n\t"
                     "xor %%edx, %%edx\n\t"
                     "xor %%esi, %%esi\n\t"
                     "xor %%edi, %%edi\n\t"
                     "xor %%ebp, %%ebp\n\t"
                     "xor %%r8d, %%r8d\n\t"
                     "xor %%r9d, %%r9d\n\t"
                     "xor %%r10d, %%r10d\n\t"
                     "xor %%r11d, %%r11d\n\t"
                     "xor %%r12d, %%r12d\n\t"
                     "xor %%r13d, %%r13d\n\t"
                     "xor %%r14d, %%r14d\n\t"
                     "xor %%r15d, %%r15d\n\t"
                     "cld\n\t"
                     "jmp *-8(%%rsp)"
                     :
                     : [entry] "r"(entry), [stack] "r"(stack), [nr] "i"(__NR_arch_prctl),
                       [set_fs] "i"(ARCH_SET_FS)
                     : "memory");
    __builtin_unreachable();
}
