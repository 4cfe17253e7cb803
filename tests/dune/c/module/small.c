/* A module to test modules with: what each call does is in calls.h. */
#include "calls.h"

#include "module/module.h"

typedef long (*small_call)(struct small *small, const uint64_t arg[5]);

static long add(struct small *small, const uint64_t arg[5])
{
    small->calls++;
    return (long)(arg[0] + arg[1] + arg[2] + arg[3] + arg[4]);
}

static long store(struct small *small, const uint64_t arg[5])
{
    if (arg[0] >= SMALL_WORDS)
        return -1;
    small->word[arg[0]] = arg[1];
    return 0;
}

static long load(struct small *small, const uint64_t arg[5])
{
    return arg[0] < SMALL_WORDS ? (long)small->word[arg[0]] : -1;
}

static long kick(struct small *small, const uint64_t arg[5])
{
    small->calls++;
    return dune_module_kick((uint32_t)arg[0], (uint32_t)arg[1]);
}

static long spin(struct small *small, const uint64_t arg[5])
{
    *(volatile uint64_t *)&small->begun += 1;
    for (uint64_t i = 0; i < arg[0] && i < 1000000; i++)
        __asm__ volatile("");
    *(volatile uint64_t *)&small->ended += 1;
    return 0;
}

#define EACH(do) \
    do(0) do(1) do(2) do(3) do(4) do(5) do(6) do(7) do(8) do(9) do(10) do(11) do(12) do(13) \
    do(14) do(15)
#define SSE(n) "movq %0, %%xmm" #n "\n\tpunpcklqdq %%xmm" #n ", %%xmm" #n "\n\t"
#define AVX(n) "vinsertf128 $1, %%xmm" #n ", %%ymm" #n ", %%ymm" #n "\n\t"

static long vectors(struct small *small, const uint64_t arg[5])
{
    uint32_t mxcsr = 0x7fbf; /* other rounding, flags raised */

    small->calls++;
    __asm__ volatile(EACH(SSE) : : "r"(SMALL_SECRET));
    if (arg[0])
        __asm__ volatile(EACH(AVX) : :);
    __asm__ volatile("ldmxcsr %0" : : "m"(mxcsr));
    return 0;
}

static long peek(struct small *small, const uint64_t arg[5])
{
    small->calls++;
    return *(volatile long *)arg[0];
}

static long poke(struct small *small, const uint64_t arg[5])
{
    small->calls++;
    *(volatile uint64_t *)arg[0] = arg[1];
    return 0;
}

static long trap(struct small *small, const uint64_t arg[5])
{
    (void)arg;
    small->calls++;
    __builtin_trap();
}

static uint64_t __attribute__((noinline)) deeper(volatile uint64_t *above)
{
    volatile uint64_t here[64];

    here[0] = above[0] + 1;
    return here[0] == ~0ull ? 0 : deeper(here) + here[0];
}

static long deep(struct small *small, const uint64_t arg[5])
{
    volatile uint64_t start = arg[0];

    small->calls++;
    return (long)deeper(&start);
}

static long triple(struct small *small, const uint64_t arg[5])
{
    struct {
        uint16_t limit;
        uint64_t base;
    } __attribute__((packed)) none = {0, 0};

    (void)arg;
    small->calls++;
    __asm__ volatile("lidt %0" : : "m"(none));
    __builtin_trap();
}

static const uint64_t ballast[SMALL_BALLAST / 8] = {[0] = 1, [1000] = 1001, [10000] = 10001};

static long ballast_word(struct small *small, const uint64_t arg[5])
{
    small->calls++;
    return arg[0] < SMALL_BALLAST / 8 ? (long)((const volatile uint64_t *)ballast)[arg[0]] : -1;
}

/* Tables of addresses need relocation. */
static const small_call calls[SMALL_CALLS] = {
    [SMALL_ADD] = add,
    [SMALL_STORE] = store,
    [SMALL_LOAD] = load,
    [SMALL_KICK] = kick,
    [SMALL_SPIN] = spin,
    [SMALL_VECTORS] = vectors,
    [SMALL_PEEK] = peek,
    [SMALL_POKE] = poke,
    [SMALL_TRAP] = trap,
    [SMALL_DEEP] = deep,
    [SMALL_TRIPLE] = triple,
    [SMALL_BALLAST_WORD] = ballast_word,
};

long dune_module_main(void *context, uint64_t n, const uint64_t arg[5])
{
    if (n >= SMALL_CALLS || !calls[n])
        return SMALL_UNKNOWN;
    return calls[n](context, arg);
}
