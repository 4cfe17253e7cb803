/* The Dune paper's Tables 2 and 3 (OSDI '12): operations that cost more in Dune, and those that
 * cost less. `tables linux` or `tables dune`; a line each, with tabs between: NAME, ns, exits to
 * user space, all exits, per operation.
 *
 *   getpid      a system call; in Dune from ring 0 and from ring 3
 *   pagefault   first touch of a page of anonymous memory
 *   pagewalk    a load from a page that no TLB holds
 *   ptrace      another party sees getpid and passes it on: by ptrace, by a handler in ring 0
 *   intercept   the same, answered without Linux (ptrace: the call is replaced by none)
 *   trap        a store to a protected page reaches a handler, which steps over it
 *   appel1      prot1 + trap + unprot (Appel and Li, ASPLOS '91): a store to a protected page; the
 *               handler permits it and protects another
 *   appel2      protN + trap + unprot: 100 pages are protected at once and permitted one by one
 *
 * One process a side: Linux's signals go through libdune's handlers once it has been in use. */
#include "dune.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#define PAGE 4096
#define CALLS 2000
#define PTRACED 100
#define FAULT_PAGES 1024
#define WALK_PAGES 16384 /* 64 MiB: more than a TLB holds */
#define TRAPS 1000
#define APPEL_PAGES 100
#define APPEL_ROUNDS 10
#define STORE_BYTES 3 /* of store()'s instruction */
#define RESULTS 16

struct result {
    const char *name;
    double ns, exits, all_exits;
};

static bool in_dune;
static struct result results[RESULTS];
static unsigned n_results;
static uint8_t *pages;         /* APPEL_PAGES of them */
static volatile unsigned next; /* appel1: which to protect in exchange */
static enum { STEP_OVER, EXCHANGE, PERMIT } on_fault;
static uint8_t stack[65536] __attribute__((aligned(16)));

static void fail(const char *what)
{
    dprintf(2, "tables: %s fails (%s)\n", what, in_dune ? dune_error() : "errno");
    _exit(1);
}

/* ---- measuring ------------------------------------------------------------------------------- */

static double now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static struct dune_stats stats(void)
{
    struct dune_stats now = {0};

    if (in_dune && dune_stats(&now) != 0)
        fail("dune_stats");
    return now;
}

/* Counted over the run, less what asking for the counters costs itself. */
static double share(uint64_t before, uint64_t between, uint64_t after, double operations)
{
    return ((double)(after - between) - (double)(between - before)) / operations;
}

static void measure(const char *name, void (*run)(void), double operations)
{
    struct dune_stats before, between, after;
    double began, ns;

    run(); /* warms up: pages, translations, first fetches */
    before = stats();
    between = stats();
    began = now_ns();
    run();
    ns = now_ns() - began;
    after = stats();
    results[n_results++] = (struct result){
        .name = name,
        .ns = ns / operations,
        .exits = share(before.exits, between.exits, after.exits, operations),
        .all_exits = share(before.kvm_exits, between.kvm_exits, after.kvm_exits, operations),
    };
}

/* ---- table 2 --------------------------------------------------------------------------------- */

static void call_getpid(void)
{
    for (int i = 0; i < CALLS; i++)
        syscall(SYS_getpid);
}

static void user_getpid(void *arg)
{
    (void)arg;
    call_getpid();
    dune_return(0);
}

static void getpid_from_ring3(void)
{
    dune_run_user(user_getpid, NULL, stack + sizeof(stack));
}

static void touch_fresh_pages(void)
{
    volatile uint8_t *fresh = mmap(NULL, FAULT_PAGES * PAGE, PROT_READ | PROT_WRITE,
                                   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (fresh == MAP_FAILED)
        fail("mmap");
    madvise((void *)fresh, FAULT_PAGES * PAGE, MADV_NOHUGEPAGE);
    for (int i = 0; i < FAULT_PAGES; i++)
        fresh[i * PAGE] = 1;
    munmap((void *)fresh, FAULT_PAGES * PAGE);
}

static void **walk_start;

/* Where page n of the walk has its word: each page at another cache line. */
static void **word_of(uint8_t *area, unsigned n)
{
    return (void **)(area + (size_t)n * PAGE + n % 64 * 64);
}

/* A circle through all pages in random order. */
static void make_walk(void)
{
    uint8_t *area = mmap(NULL, (size_t)WALK_PAGES * PAGE, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    unsigned *order = malloc(WALK_PAGES * sizeof(*order));

    if (area == MAP_FAILED || order == NULL)
        fail("mmap");
    madvise(area, (size_t)WALK_PAGES * PAGE, MADV_NOHUGEPAGE);
    for (unsigned i = 0; i < WALK_PAGES; i++)
        order[i] = i;
    for (unsigned i = WALK_PAGES - 1; i > 0; i--) {
        unsigned j = (unsigned)random() % (i + 1), kept = order[i];

        order[i] = order[j];
        order[j] = kept;
    }
    for (unsigned i = 0; i < WALK_PAGES; i++)
        *word_of(area, order[i]) = word_of(area, order[(i + 1) % WALK_PAGES]);
    walk_start = word_of(area, order[0]);
    free(order);
}

static void walk(void)
{
    void **at = walk_start;

    for (int i = 0; i < WALK_PAGES; i++)
        at = *(void *volatile *)at;
}

/* ---- interposition --------------------------------------------------------------------------- */

static bool pass_on(struct dune_tf *tf)
{
    dune_forward(tf);
    return true;
}

static bool answer(struct dune_tf *tf)
{
    if (tf->rax != SYS_getpid)
        return false;
    tf->rax = 1;
    return true;
}

static void traced_child(void)
{
    ptrace(PTRACE_TRACEME, 0, 0, 0);
    raise(SIGSTOP);
    for (int i = 0; i < PTRACED; i++)
        syscall(SYS_getpid);
    _exit(0);
}

/* Per call: the time from the first stop to the end, two stops each. */
static void trace(const char *name, bool replace)
{
    double began;
    int status;
    pid_t child = fork();

    if (child == 0)
        traced_child();
    waitpid(child, &status, 0);
    ptrace(PTRACE_SETOPTIONS, child, 0, PTRACE_O_TRACESYSGOOD);
    began = now_ns();
    while (!WIFEXITED(status)) {
        struct user_regs_struct regs;

        if (WIFSTOPPED(status) && WSTOPSIG(status) == (SIGTRAP | 0x80)) {
            ptrace(PTRACE_GETREGS, child, 0, &regs);
            if (replace && regs.orig_rax == SYS_getpid) {
                regs.orig_rax = (unsigned long long)-1;
                ptrace(PTRACE_SETREGS, child, 0, &regs);
            }
        }
        ptrace(PTRACE_SYSCALL, child, 0, 0);
        waitpid(child, &status, 0);
    }
    results[n_results++] = (struct result){.name = name, .ns = (now_ns() - began) / PTRACED};
}

/* ---- traps ----------------------------------------------------------------------------------- */

static void protect(uint8_t *from, unsigned n, bool writable)
{
    uint32_t flags = DUNE_PTE_READ | DUNE_PTE_USER | DUNE_PTE_SMALL;
    int error;

    if (in_dune)
        error = dune_protect(dune_root(), (uint64_t)from, (uint64_t)n * PAGE,
                             flags | (writable ? DUNE_PTE_WRITE : 0));
    else
        error = mprotect(from, (size_t)n * PAGE, PROT_READ | (writable ? PROT_WRITE : 0));
    if (error != 0)
        fail("protect");
    if (in_dune && n == 1)
        dune_flush_page((uint64_t)from);
    else if (in_dune)
        dune_flush_tlb();
}

/* A store of a known length, so that a handler can step over it. */
static void store(uint8_t *to)
{
    __asm__ volatile("movb $0, (%%rdi)" : : "D"(to) : "memory");
}

/* How far to step. */
static unsigned handle_fault(uint64_t address)
{
    uint8_t *page = (uint8_t *)(address & ~(uint64_t)(PAGE - 1));

    if (on_fault == STEP_OVER)
        return STORE_BYTES;
    if (on_fault == EXCHANGE)
        protect(pages + (size_t)next * PAGE, 1, false);
    protect(page, 1, true);
    return 0;
}

static void on_signal(int number, siginfo_t *info, void *context)
{
    ucontext_t *at = context;

    (void)number;
    at->uc_mcontext.gregs[REG_RIP] += handle_fault((uint64_t)info->si_addr);
}

static bool on_trap(struct dune_tf *tf)
{
    if (tf->cr2 - (uint64_t)pages >= APPEL_PAGES * PAGE)
        return false;
    tf->rip += handle_fault(tf->cr2);
    return true;
}

static void trap_stores(void)
{
    on_fault = STEP_OVER;
    protect(pages, 1, false);
    for (int i = 0; i < TRAPS; i++)
        store(pages);
    protect(pages, 1, true);
}

static void appel1(void)
{
    unsigned at = 0;

    on_fault = EXCHANGE;
    protect(pages, 1, false);
    for (int i = 0; i < APPEL_PAGES * APPEL_ROUNDS; i++) {
        next = (at + 37) % APPEL_PAGES; /* visits all */
        store(pages + (size_t)at * PAGE);
        at = next;
    }
    protect(pages, APPEL_PAGES, true);
}

static void appel2(void)
{
    on_fault = PERMIT;
    for (int round = 0; round < APPEL_ROUNDS; round++) {
        protect(pages, APPEL_PAGES, false);
        for (int i = 0; i < APPEL_PAGES; i++)
            store(pages + (size_t)(i * 37 % APPEL_PAGES) * PAGE);
    }
}

/* ---- the two sides --------------------------------------------------------------------------- */

static void measure_both(void)
{
    measure("pagefault", touch_fresh_pages, FAULT_PAGES);
    measure("pagewalk", walk, WALK_PAGES);
    measure("trap", trap_stores, TRAPS);
    measure("appel1", appel1, APPEL_PAGES * APPEL_ROUNDS);
    measure("appel2", appel2, APPEL_PAGES * APPEL_ROUNDS);
}

static void measure_linux(void)
{
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO};

    sigaction(SIGSEGV, &action, NULL);
    measure("getpid", call_getpid, CALLS);
    trace("ptrace", false);
    trace("intercept", true);
    measure_both();
}

static void measure_dune(void)
{
    in_dune = true;
    if (dune_init(NULL) != 0 || dune_enter() != 0)
        fail("entering");
    measure("getpid", call_getpid, CALLS);
    measure("getpid, ring 3", getpid_from_ring3, CALLS);
    dune_set_syscall_handler(pass_on, DUNE_HANDLER_NO_FPU);
    measure("ptrace", getpid_from_ring3, CALLS);
    dune_set_syscall_handler(answer, DUNE_HANDLER_NO_FPU);
    measure("intercept", getpid_from_ring3, CALLS);
    dune_set_syscall_handler(NULL, 0);
    dune_set_trap_handler(14, on_trap, DUNE_HANDLER_NO_FPU);
    measure_both();
    dune_set_trap_handler(14, NULL, 0);
    if (dune_leave() != 0)
        fail("leaving");
}

int main(int argc, char **argv)
{
    bool dune = argc == 2 && strcmp(argv[1], "dune") == 0;

    if (argc != 2 || (!dune && strcmp(argv[1], "linux") != 0)) {
        fprintf(stderr, "usage: tables linux|dune\n");
        return 2;
    }
    pages = mmap(NULL, APPEL_PAGES * PAGE, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (pages == MAP_FAILED)
        fail("mmap");
    make_walk();
    if (dune)
        measure_dune();
    else
        measure_linux();
    for (unsigned i = 0; i < n_results; i++)
        printf("%s\t%.1f\t%.4f\t%.4f\n", results[i].name, results[i].ns, results[i].exits,
               results[i].all_exits);
    return 0;
}
