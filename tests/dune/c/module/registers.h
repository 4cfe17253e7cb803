/* All registers before and behind a system call, vector registers by XSAVE. */
#ifndef MODULE_REGISTERS_H
#define MODULE_REGISTERS_H

#include <cpuid.h>
#include <stdint.h>

#define LEGACY_BYTES 416 /* x87, MXCSR, XMM */
#define AVX_AT       576
#define AVX_BYTES    256

struct registers {
    uint64_t general[16]; /* rbx rdx rsi rdi rbp r8 r9 r10 r12 r13 r14 r15 rsp */
    uint8_t xsave[16384] __attribute__((aligned(64)));
};

static inline unsigned registers_has_avx(void)
{
    unsigned a, b, c, d;

    __cpuid(1, a, b, c, d);
    return (c & (bit_AVX | bit_OSXSAVE)) == (bit_AVX | bit_OSXSAVE);
}

#define STORE(where)                                                                             \
    "mov %%rbx, 0x00(" where ")\n\tmov %%rdx, 0x08(" where ")\n\tmov %%rsi, 0x10(" where ")\n\t"  \
    "mov %%rdi, 0x18(" where ")\n\tmov %%rbp, 0x20(" where ")\n\tmov %%r8, 0x28(" where ")\n\t"   \
    "mov %%r9, 0x30(" where ")\n\tmov %%r10, 0x38(" where ")\n\tmov %%r12, 0x40(" where ")\n\t"   \
    "mov %%r13, 0x48(" where ")\n\tmov %%r14, 0x50(" where ")\n\tmov %%r15, 0x58(" where ")\n\t"  \
    "mov %%rsp, 0x60(" where ")\n\t"

/* The call with a0; plain: with the vector registers as after a process's start. `before` and
 * `after` are reached by addresses at the bottom of the red-zone-free stack. */
static long __attribute__((noinline)) registers_call(uint64_t nr, uint64_t a0, unsigned plain,
                                                     struct registers *before,
                                                     struct registers *after)
{
    static const uint64_t pattern[4] = {0x1111222233334444, 0x5555666677778888, 0x99990000aaaabbbb,
                                        0xccccddddeeeeffff};
    uint64_t frame[4] = {(uint64_t)before, (uint64_t)after, nr, a0};
    uint32_t mxcsr = plain ? 0x1f80 : 0x5fa0; /* other rounding, a flag raised */
    long result;

    memset(before, 0, sizeof(*before));
    memset(after, 0, sizeof(*after));
    __asm__ volatile("fninit\n\tldmxcsr %0" : : "m"(mxcsr));
    if (plain && registers_has_avx())
        __asm__ volatile("vzeroall");
    else if (registers_has_avx())
        __asm__ volatile("fldpi\n\tfldl2e\n\tvmovdqu %0, %%ymm0\n\tvpermilps $0x1b, %%ymm0, "
                         "%%ymm7\n\tvmovdqu %0, %%ymm15\n\tvmovaps %%ymm7, %%ymm3"
                         :
                         : "m"(pattern));
    __asm__ volatile("push %%rbp\n\tpush %%rbx\n\t"
                     "push %[frame]\n\t" /* 0(%rsp) */
                     "mov $0x1234567, %%ebx\n\tmov $0x2345678, %%r12d\n\tmov $0x3456789, %%r13d\n\t"
                     "mov $0x456789a, %%r14d\n\tmov $0x56789ab, %%r15d\n\tmov $0x6789abc, %%ebp\n\t"
                     "mov $0x789abcd, %%esi\n\tmov $0x89abcde, %%r8d\n\tmov $0x9abcdef, %%r9d\n\t"
                     "mov $0xabcdef0, %%r10d\n\t"
                     "mov (%%rsp), %%r11\n\tmov 0x18(%%r11), %%rdi\n\tmov (%%r11), %%rcx\n\t"
                     "mov $0x7, %%eax\n\txor %%edx, %%edx\n\txsave64 0x80(%%rcx)\n\t" STORE(
                         "%%rcx") "mov 0x10(%%r11), %%rax\n\t"
                                  "syscall\n\t"
                                  "mov (%%rsp), %%rcx\n\tmov 8(%%rcx), %%rcx\n\t" STORE(
                                      "%%rcx") "mov %%rax, %%r11\n\t"
                                               "mov $0x7, %%eax\n\txor %%edx, %%edx\n\t"
                                               "xsave64 0x80(%%rcx)\n\t"
                                               "mov %%r11, %%rax\n\t"
                                               "pop %%rcx\n\tpop %%rbx\n\tpop %%rbp\n\t"
                     : "=&a"(result)
                     : [frame] "r"(frame)
                     : "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
                       "r15", "memory", "cc");
    __asm__ volatile("fninit\n\tldmxcsr %0" : : "m"((const uint32_t){0x1f80}));
    return result;
}

static inline void registers_compare(const struct registers *before, const struct registers *after)
{
    for (unsigned i = 0; i < 13; i++)
        EQUAL(after->general[i], before->general[i]);
    CHECK(memcmp(before->xsave, after->xsave, LEGACY_BYTES) == 0);
    if (registers_has_avx())
        CHECK(memcmp(before->xsave + AVX_AT, after->xsave + AVX_AT, AVX_BYTES) == 0);
}

static inline bool registers_hold(const struct registers *registers, uint64_t word)
{
    for (size_t i = 0; i + sizeof(word) <= sizeof(*registers); i++)
        if (memcmp((const char *)registers + i, &word, sizeof(word)) == 0)
            return true;
    return false;
}

#endif
