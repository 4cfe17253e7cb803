/* The operations of Tables 2 and 3 of the Dune paper (OSDI '12), one way at a time:
 *
 *     tables linux|dune [OPERATIONS]
 *
 * linux: system calls as ever, ptrace, mprotect with SIGSEGV. dune: in guest ring 0, with its page
 * tables and handlers. One line a row: name, operations, ns an operation, exits to user space and
 * exits of any kind in all of them (both 0 for linux).
 */
#include "dune.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#define PAGE        4096ul
#define APPEL_PAGES 100  /* as Appel and Li have it */
#define WALK_PAGES  8192 /* more than a TLB holds */
#define STACK_BYTES 65536
#define RW          (DUNE_PTE_READ | DUNE_PTE_WRITE | DUNE_PTE_USER)
#define RO          (DUNE_PTE_READ | DUNE_PTE_USER)

static long operations = 2000;
static bool dune;
static uint8_t *pages; /* APPEL_PAGES of them */
static volatile long traps;
static uint8_t user_stack[STACK_BYTES] __attribute__((aligned(4096)));

__attribute__((noreturn)) static void fail(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, dune ? dune_error() : "failed");
    exit(1);
}

static uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* ---- measuring ---------------------------------------------------------------------------------
 */

static struct dune_stats before;
static uint64_t began;

static void begin(void)
{
    traps = 0;
    if (dune && dune_stats(&before) != 0)
        fail("dune_stats");
    began = now_ns();
}

static void end(const char *row, long n)
{
    uint64_t ns = now_ns() - began, exits = 0, all = 0;
    struct dune_stats after;

    if (dune) {
        if (dune_stats(&after) != 0)
            fail("dune_stats");
        exits = after.exits - before.exits - (after.interrupted - before.interrupted);
        all = after.kvm_exits - before.kvm_exits;
    }
    printf("%s %ld %.1f %llu %llu\n", row, n, (double)ns / (double)n, (unsigned long long)exits,
           (unsigned long long)all);
}

static long raw_getpid(void)
{
    long result;

    __asm__ volatile("syscall" : "=a"(result) : "0"(SYS_getpid) : "rcx", "r11", "memory");
    return result;
}

/* ---- Table 2 -----------------------------------------------------------------------------------
 */

static void getpid_calls(void)
{
    raw_getpid();
    begin();
    for (long i = 0; i < operations; i++)
        raw_getpid();
    end("getpid", operations);
}

static uint8_t *fresh(unsigned long n)
{
    uint8_t *memory =
        mmap(NULL, n * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (memory == MAP_FAILED)
        fail("mmap");
    madvise(memory, n * PAGE, MADV_NOHUGEPAGE);
    return memory;
}

static void page_faults(void)
{
    volatile uint8_t *memory = fresh((unsigned long)operations + 1);

    memory[(unsigned long)operations * PAGE] = 1;
    begin();
    for (long i = 0; i < operations; i++)
        memory[(unsigned long)i * PAGE] = 1;
    end("page_fault", operations);
    munmap((void *)memory, ((unsigned long)operations + 1) * PAGE);
}

/* A chain through all the pages in a random order, a word of each: the walker's work, but for one
 * cache line that every access takes. */
static void page_walks(void)
{
    uint8_t *memory = fresh(WALK_PAGES);
    uint32_t *order = malloc(WALK_PAGES * sizeof(*order));
    void **at;

    for (uint32_t i = 0; i < WALK_PAGES; i++)
        order[i] = i;
    srandom(1);
    for (uint32_t i = WALK_PAGES - 1; i > 0; i--) {
        uint32_t j = (uint32_t)random() % (i + 1), kept = order[i];

        order[i] = order[j];
        order[j] = kept;
    }
    for (uint32_t i = 0; i < WALK_PAGES; i++)
        *(void **)(memory + order[i] * PAGE + order[i] % 64 * 64) =
            memory + order[(i + 1) % WALK_PAGES] * PAGE + order[(i + 1) % WALK_PAGES] % 64 * 64;
    at = (void **)(memory + order[0] * PAGE + order[0] % 64 * 64);
    for (long i = 0; i < WALK_PAGES; i++)
        at = *at;
    begin();
    for (long i = 0; i < 4 * WALK_PAGES; i++)
        at = *(void **volatile *)at;
    end("page_walk", 4 * WALK_PAGES);
    free(order);
    munmap(memory, WALK_PAGES * PAGE);
}

/* ---- Table 3: a system call that somebody looks at first ---------------------------------------
 */

static void ptrace_linux(void)
{
    pid_t child = fork();
    int status;

    if (child == 0) {
        ptrace(PTRACE_TRACEME, 0, NULL, NULL);
        raise(SIGSTOP);
        for (;;)
            raw_getpid();
    }
    waitpid(child, &status, 0);
    begin();
    for (long i = 0; i < 2 * operations; i++) { /* at its entry and at its exit */
        ptrace(PTRACE_SYSCALL, child, NULL, NULL);
        waitpid(child, &status, 0);
        if (!WIFSTOPPED(status))
            fail("ptrace");
    }
    end("ptrace", operations);
    kill(child, SIGKILL);
    waitpid(child, &status, 0);
}

static bool looks_at(struct dune_tf *tf)
{
    traps = traps + 1;
    dune_forward(tf);
    return true;
}

static bool answers(struct dune_tf *tf)
{
    traps = traps + 1;
    tf->rax = 1;
    return true;
}

static void calls(void *arg)
{
    for (long i = (long)arg; i > 0; i--)
        raw_getpid();
}

static void interposed(const char *row, dune_handler handler)
{
    if (dune_set_syscall_handler(handler, DUNE_HANDLER_NO_FPU) != 0)
        fail("dune_set_syscall_handler");
    dune_run_user(calls, (void *)10, user_stack + STACK_BYTES);
    begin();
    dune_run_user(calls, (void *)operations, user_stack + STACK_BYTES);
    end(row, operations);
    if (traps < operations)
        fail(row);
    dune_set_syscall_handler(NULL, 0);
}

/* ---- Table 3: traps and protection -------------------------------------------------------------
 */

static void protect(unsigned long first, unsigned long n, bool closed)
{
    void *at = pages + first * PAGE;

    if (dune ? dune_protect(NULL, (uint64_t)at, n * PAGE, closed ? RO : RW)
             : mprotect(at, n * PAGE, closed ? PROT_READ : PROT_READ | PROT_WRITE))
        fail("protect");
}

/* Writes with an instruction of three bytes, so that a handler can step over it. */
static void write_to(unsigned long page)
{
    __asm__ volatile("movb $1, (%0)" : : "a"(pages + page * PAGE) : "memory");
}

static unsigned long page_of(uint64_t address)
{
    return (address - (uint64_t)pages) / PAGE;
}

static unsigned long next_closed; /* appel1: what the handler closes in exchange */
static enum { STEP_OVER, OPEN, EXCHANGE } way;

/* What a handler does; true: the instruction is stepped over. */
static bool trapped(uint64_t address)
{
    traps = traps + 1;
    if (way == STEP_OVER)
        return true;
    protect(page_of(address), 1, false);
    if (way == EXCHANGE)
        protect(next_closed, 1, true);
    return false;
}

static bool on_trap(struct dune_tf *tf)
{
    if (trapped(tf->cr2))
        tf->rip += 3;
    return true;
}

static void on_signal(int number, siginfo_t *info, void *context)
{
    ucontext_t *uc = context;

    (void)number;
    if (trapped((uint64_t)info->si_addr))
        uc->uc_mcontext.gregs[REG_RIP] += 3;
}

static void catch_traps(void)
{
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO};

    if (dune ? dune_set_trap_handler(14, on_trap, DUNE_HANDLER_NO_FPU)
             : sigaction(SIGSEGV, &action, NULL))
        fail("handler");
    for (unsigned long i = 0; i < APPEL_PAGES; i++)
        pages[i * PAGE] = 1;
    protect(0, APPEL_PAGES, true); /* splits what has to be split, and touches the code */
    way = OPEN;
    for (unsigned long i = 0; i < APPEL_PAGES; i++)
        write_to(i);
}

static void trap(void)
{
    protect(0, 1, true);
    way = STEP_OVER;
    begin();
    for (long i = 0; i < operations; i++)
        write_to(0);
    end("trap", operations);
    if (traps != operations)
        fail("trap");
    protect(0, 1, false);
}

/* prot1, trap, unprot: a fault opens its page and closes another. */
static void appel1(void)
{
    protect(0, APPEL_PAGES, true);
    way = EXCHANGE;
    write_to(0); /* closes page 0 again, as next_closed */
    begin();
    for (long i = 0; i < operations; i++) {
        unsigned long page = (unsigned long)i % APPEL_PAGES;

        next_closed = (page + APPEL_PAGES - 1) % APPEL_PAGES;
        write_to(page);
    }
    end("appel1", operations);
    protect(0, APPEL_PAGES, false);
}

/* protN, trap, unprot: all are closed at once, each fault opens its page. */
static void appel2(void)
{
    long rounds = operations / APPEL_PAGES > 0 ? operations / APPEL_PAGES : 1;

    way = OPEN;
    begin();
    for (long i = 0; i < rounds; i++) {
        protect(0, APPEL_PAGES, true);
        for (unsigned long page = 0; page < APPEL_PAGES; page++)
            write_to(page * 37 % APPEL_PAGES); /* not in order */
    }
    end("appel2", rounds * APPEL_PAGES);
    if (traps != rounds * APPEL_PAGES)
        fail("appel2");
}

int main(int argc, char **argv)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc < 2 || (strcmp(argv[1], "linux") != 0 && strcmp(argv[1], "dune") != 0)) {
        fprintf(stderr, "%s linux|dune [OPERATIONS]\n", argv[0]);
        return 2;
    }
    if (argc > 2)
        operations = atol(argv[2]);
    dune = strcmp(argv[1], "dune") == 0;
    pages = fresh(APPEL_PAGES);
    if (dune && (dune_init(NULL) != 0 || dune_enter() != 0))
        fail("libdune");
    getpid_calls();
    page_faults();
    page_walks();
    if (dune) {
        interposed("ptrace", looks_at);
        interposed("answered", answers);
    } else {
        ptrace_linux();
    }
    catch_traps();
    trap();
    appel1();
    appel2();
    if (dune && dune_leave() != 0)
        fail("dune_leave");
    return 0;
}
