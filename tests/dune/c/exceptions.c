/* Exceptions: the program's handlers in ring 0, and the signals that they become without one. */
#include "open.h"

#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>

#define COUNT       1000
#define STACK_BYTES 65536
#define BAD_ADDRESS 0x10
#define DEPTH       5

static uint8_t user_stack[STACK_BYTES] __attribute__((aligned(4096)));
static volatile long seen, depth;
static volatile struct dune_tf last;
static uint8_t *page;

static void *stack_top(void)
{
    return user_stack + STACK_BYTES;
}

/* A page that exists, is touched, and that nothing but the guest's page tables guards. */
static void make_page(void)
{
    page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(page != MAP_FAILED);
    page[0] = 1;
}

/* ---- each vector, in ring 3 and in ring 0 -------------------------------------------------- */

extern const char after_ud[], after_de[], after_gp[], after_pf[];

__attribute__((noinline)) static void raise_ud(void)
{
    __asm__ volatile("ud2\n.globl after_ud\nafter_ud:" : : : "memory");
}

__attribute__((noinline)) static void raise_de(void)
{
    __asm__ volatile("xor %%edx, %%edx\n\txor %%ecx, %%ecx\n\tmov $1, %%eax\n\t"
                     "div %%ecx\n.globl after_de\nafter_de:"
                     :
                     :
                     : "rax", "rcx", "rdx", "memory");
}

__attribute__((noinline)) static void raise_bp(void)
{
    __asm__ volatile("int3" : : : "memory");
}

/* Not canonical: a #GP in every ring. */
__attribute__((noinline)) static void raise_gp(void)
{
    __asm__ volatile("mov (%0), %%rax\n.globl after_gp\nafter_gp:"
                     :
                     : "r"(0x8000000000000000ull)
                     : "rax", "memory");
}

__attribute__((noinline)) static void raise_pf(void)
{
    __asm__ volatile("movb $9, (%0)\n.globl after_pf\nafter_pf:" : : "r"(page) : "memory");
}

static const struct raising {
    unsigned vector;
    void (*raise)(void);
    const char *after; /* where to go on; NULL: the CPU does */
} raisings[] = {
    {0, raise_de, after_de},  {3, raise_bp, NULL},      {6, raise_ud, after_ud},
    {13, raise_gp, after_gp}, {14, raise_pf, after_pf},
};
#define RAISINGS (sizeof(raisings) / sizeof(raisings[0]))

static bool skips(struct dune_tf *tf)
{
    seen = seen + 1;
    memcpy((void *)&last, tf, sizeof(last));
    for (size_t i = 0; i < RAISINGS; i++)
        if (raisings[i].vector == tf->vector && raisings[i].after != NULL)
            tf->rip = (uint64_t)raisings[i].after;
    return true;
}

static void raise_many(void *arg)
{
    const struct raising *r = arg;

    for (int i = 0; i < COUNT; i++)
        r->raise();
}

static void handlers(void)
{
    make_page();
    open_ring0();
    EQUAL(dune_protect(NULL, (uint64_t)page, 4096, DUNE_PTE_READ | DUNE_PTE_USER), 0);
    for (size_t i = 0; i < RAISINGS; i++)
        EQUAL(dune_set_trap_handler(raisings[i].vector, skips, 0), 0);
    for (size_t i = 0; i < 2 * RAISINGS; i++) {
        const struct raising *r = &raisings[i / 2];
        struct dune_stats before, after;

        raise_many((void *)r); /* touches the code */
        dune_run_user(raise_many, (void *)r, stack_top());
        seen = 0;
        before = open_stats();
        if (i % 2)
            EQUAL(dune_run_user(raise_many, (void *)r, stack_top()), 0);
        else
            raise_many((void *)r);
        after = open_stats();
        EQUAL(seen, COUNT);
        EQUAL(last.vector, r->vector);
        EQUAL(last.cs & 3, i % 2 ? 3 : 0);
        if (r->vector == 14) {
            EQUAL(last.cr2, page);
            EQUAL(last.error, i % 2 ? 7 : 3);
        }
        EQUAL(after.exits - before.exits - (after.interrupted - before.interrupted), 0);
    }
    printf("exits_per_1000_exceptions 0\n");
    EQUAL(page[0], 1);
    open_leave();
}

/* ---- what a handler leaves alone ----------------------------------------------------------- */

static bool spoils(struct dune_tf *tf)
{
    uint64_t junk[2] = {0xdead, 0xbeef};

    __asm__ volatile("movdqu %0, %%xmm0\n\tmovdqu %0, %%xmm6\n\tmovdqu %0, %%xmm14\n\tfninit\n\t"
                     "fldpi\n\txor %%r8d, %%r8d\n\txor %%r9d, %%r9d\n\txor %%r10d, %%r10d"
                     :
                     : "m"(junk)
                     : "r8", "r9", "r10", "xmm0", "xmm6", "xmm14", "memory");
    tf->rip += 2;
    return true;
}

static void checks_registers(void *arg)
{
    uint64_t in[2] = {0x0123456789abcdef, 0xfedcba9876543210}, out[2][2], regs[8];

    (void)arg;
    __asm__ volatile("movdqu %[in], %%xmm6\n\tmovdqu %[in], %%xmm14\n\t"
                     "mov $1, %%eax\n\tmov $2, %%ecx\n\tmov $3, %%edx\n\tmov $4, %%esi\n\t"
                     "mov $5, %%r8d\n\tmov $6, %%r9d\n\tmov $7, %%r10d\n\tmov $8, %%r11d\n\t"
                     "movq $0x77, -64(%%rsp)\n\t" /* the red zone */
                     "stc\n\tud2\n\tsbb $0, %%eax\n\tcmpq $0x77, -64(%%rsp)\n\tje 1f\n\t"
                     "mov $99, %%eax\n1:\t"
                     "mov %%rax, 0(%%rdi)\n\tmov %%rcx, 8(%%rdi)\n\tmov %%rdx, 16(%%rdi)\n\t"
                     "mov %%rsi, 24(%%rdi)\n\tmov %%r8, 32(%%rdi)\n\tmov %%r9, 40(%%rdi)\n\t"
                     "mov %%r10, 48(%%rdi)\n\tmov %%r11, 56(%%rdi)\n\t"
                     "movdqu %%xmm6, %[a]\n\tmovdqu %%xmm14, %[b]"
                     : [a] "=m"(out[0]), [b] "=m"(out[1])
                     : [in] "m"(in), "D"(regs)
                     : "rax", "rcx", "rdx", "rsi", "r8", "r9", "r10", "r11", "xmm6", "xmm14",
                       "memory", "cc");
    EQUAL(regs[0], 0); /* 1, less the carry flag */
    for (uint64_t i = 1; i < 8; i++)
        EQUAL(regs[i], i + 1);
    EQUAL(memcmp(in, out[0], 16), 0);
    EQUAL(memcmp(in, out[1], 16), 0);
}

static void registers_kept(void)
{
    open_ring0();
    EQUAL(dune_set_trap_handler(6, spoils, 0), 0);
    for (int i = 0; i < 50; i++) {
        checks_registers(NULL);
        EQUAL(dune_run_user(checks_registers, NULL, stack_top()), 0);
    }
    open_leave();
}

/* ---- exceptions within handlers ------------------------------------------------------------ */

static bool nests(struct dune_tf *tf)
{
    seen = seen + 1;
    if (depth < DEPTH) {
        depth = depth + 1;
        raise_ud();
        depth = depth - 1;
    }
    return skips(tf);
}

static void nested(void)
{
    open_ring0();
    EQUAL(dune_set_trap_handler(6, nests, 0), 0);
    for (int i = 0; i < 20; i++) {
        seen = 0;
        raise_ud();
        EQUAL(seen, 2 * (DEPTH + 1)); /* nests() and skips() */
        EQUAL(depth, 0);
    }
    seen = 0;
    EQUAL(dune_run_user((void (*)(void *))(void (*)(void))raise_ud, NULL, stack_top()), 0);
    EQUAL(seen, 2 * (DEPTH + 1));
    open_leave();
}

static bool ends(struct dune_tf *tf)
{
    dune_end_user((long)tf->vector);
    return true;
}

static void ended_by_exception(void)
{
    open_ring0();
    EQUAL(dune_set_trap_handler(6, ends, 0), 0);
    for (int i = 0; i < 20; i++)
        EQUAL(dune_run_user((void (*)(void *))(void (*)(void))raise_ud, NULL, stack_top()), 6);
    open_leave();
}

/* ---- what nobody handles becomes a signal -------------------------------------------------- */

static sigjmp_buf back;
static volatile siginfo_t got;
static volatile int got_signal, got_ring;
static volatile uint64_t got_rip, got_trapno;

static void on_signal(int number, siginfo_t *info, void *context)
{
    const ucontext_t *uc = context;

    got_signal = number;
    memcpy((void *)&got, info, sizeof(got));
    got_rip = (uint64_t)uc->uc_mcontext.gregs[REG_RIP];
    got_trapno = (uint64_t)uc->uc_mcontext.gregs[REG_TRAPNO];
    got_ring = dune_ring();
    siglongjmp(back, 1);
}

static void catch_all(void)
{
    static const int numbers[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP};
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO};

    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++)
        EQUAL(sigaction(numbers[i], &action, NULL), 0);
}

static void touch_bad(void)
{
    __asm__ volatile("movb $1, (%0)" : : "r"(BAD_ADDRESS) : "memory");
}

static void touch_readonly(void)
{
    *(volatile uint8_t *)page = 1;
}

static void expect_signal(void (*raise)(void), int number, int code, uint64_t address)
{
    int ring = dune_ring();

    got_signal = 0;
    if (sigsetjmp(back, 1) == 0)
        raise();
    EQUAL(got_signal, number);
    EQUAL(got.si_code, code);
    EQUAL(got_ring, ring);
    if (address != ~0ull)
        EQUAL(got.si_addr, address);
}

static void all_signals(void *arg)
{
    (void)arg;
    for (int i = 0; i < 3; i++) {
        expect_signal(touch_bad, SIGSEGV, SEGV_MAPERR, BAD_ADDRESS);
        EQUAL(got_trapno, 14);
        expect_signal(touch_readonly, SIGSEGV, SEGV_ACCERR, (uint64_t)page);
        expect_signal(raise_gp, SIGSEGV, SI_KERNEL, 0);
        EQUAL(got_trapno, 13);
        expect_signal(raise_ud, SIGILL, ILL_ILLOPN, (uint64_t)after_ud - 2);
        EQUAL(got_rip, (uint64_t)after_ud - 2);
        expect_signal(raise_de, SIGFPE, FPE_INTDIV, (uint64_t)after_de - 2);
        expect_signal(raise_bp, SIGTRAP, SI_KERNEL, 0);
    }
}

static void signals_outside(void)
{
    make_page();
    EQUAL(mprotect(page, 4096, PROT_READ), 0);
    catch_all();
    all_signals(NULL);
}

static void signals_in_ring0(void)
{
    make_page();
    EQUAL(mprotect(page, 4096, PROT_READ), 0);
    catch_all();
    open_ring0();
    all_signals(NULL);
    EQUAL(dune_ring(), 0);
    open_leave();
}

static void signals_in_ring3(void)
{
    make_page();
    EQUAL(mprotect(page, 4096, PROT_READ), 0);
    EQUAL(dune_init(NULL), 0);
    EQUAL(dune_enter_user(), 0);
    catch_all();
    all_signals(NULL);
    EQUAL(dune_ring(), 3);
    open_leave();
}

static bool declines(struct dune_tf *tf)
{
    (void)tf;
    seen = seen + 1;
    return false;
}

static void declined(void)
{
    catch_all();
    open_ring0();
    EQUAL(dune_set_trap_handler(6, declines, 0), 0);
    EQUAL(dune_set_trap_handler(14, declines, 0), 0);
    seen = 0;
    expect_signal(raise_ud, SIGILL, ILL_ILLOPN, (uint64_t)after_ud - 2);
    EQUAL(seen, 1);
    open_leave();
}

/* Ends by the signal. */
static void killed(void)
{
    open_ring0();
    printf("now\n");
    touch_bad();
}

/* ---- what can't be handled ----------------------------------------------------------------- */

/* No stack for an exception's frame: the vault's own code faults. */
static void bad_stack(void)
{
    open_ring0();
    printf("now\n");
    __asm__ volatile("mov %0, %%rsp\n\tud2" : : "r"(0x4000000000000000ull));
}

static void bad_page_tables(void)
{
    open_ring0();
    printf("now\n");
    __asm__ volatile("lidt (%0)\n\tud2" : : "r"("\0\0\0\0\0\0\0\0\0\0"));
}

int main(int argc, char **argv)
{
    static const struct open_case cases[] = {
        {"handlers", handlers},
        {"registers_kept", registers_kept},
        {"nested", nested},
        {"ended_by_exception", ended_by_exception},
        {"signals_outside", signals_outside},
        {"signals_in_ring0", signals_in_ring0},
        {"signals_in_ring3", signals_in_ring3},
        {"declined", declined},
        {"killed", killed},
        {"bad_stack", bad_stack},
        {"no_idt", bad_page_tables},
        {NULL, NULL},
    };

    return open_main(argc, argv, cases);
}
