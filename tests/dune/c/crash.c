/* How a guest ends, and what its crash record says of that: PROGRAM CASE. */
#include "module/host.h"

#include <pthread.h>
#include <signal.h>
#include <stddef.h>

#define UNDEFINED  6
#define PAGE_FAULT 14
#define NOWHERE    0x123456789000ull
#define MARK       0x4d41524bull /* on ring 3's stack */

static const struct dune_crash *crash(void)
{
    return &data->shared.crash;
}

/* Ring 3's call is in the trace, behind those of the module's and the shim's functions that have
 * frames. */
static void expect_caller(void)
{
    unsigned i = 0, shims = 0;

    while (i < crash()->n_trace && crash()->trace[i] - place.base < GIB)
        shims += crash()->trace[i++] - crash()->shim < crash()->shim_bytes;
    CHECK(shims <= 1 && i >= 2 && i < crash()->n_trace);
    CHECK(crash()->trace[i] - (uint64_t)dune_module_call < 256);
}

static bool in_module(uint64_t address)
{
    return address - crash()->module < crash()->module_bytes;
}

/* The record of a worker that ended by `number`. */
static void expect(int status, int number, const char *what, int ring)
{
    EQUAL(WTERMSIG(status), number);
    EQUAL(crash()->state, DUNE_CRASH_WHOLE);
    printf("%s (0x%lx)\n", crash()->what, crash()->value);
    EQUAL(strcmp(crash()->what, what), 0);
    EQUAL(crash()->signal, number);
    EQUAL(crash()->ring, ring);
    CHECK(crash()->tid > 0);
    EQUAL(crash()->shim, place.base);
    CHECK(crash()->shim_bytes > 0 && crash()->module > place.base);
    EQUAL(crash()->module_bytes % 4096, 0);
    CHECK(crash()->module_bytes > SMALL_BALLAST);
}

/* ... in the module: stack and trace are ring 0's, and lead on. */
static void expect_module(int status, uint64_t vector)
{
    expect(status, SIGABRT, "an exception in the module", 0);
    EQUAL(crash()->value, vector);
    EQUAL(crash()->tf.vector, vector);
    CHECK(in_module(crash()->tf.rip));
    EQUAL(crash()->trace[0], crash()->tf.rip);
    CHECK(crash()->tf.rsp - place.base < GIB && crash()->n_stack > 8);
    EQUAL(crash()->tf.cs, 8);
}

/* ---- in ring 0 ------------------------------------------------------------------------------- */

static void trap(void)
{
    volatile long result = call(SMALL_TRAP, 0, 0);

    (void)result;
}

static void case_trap(void)
{
    expect_module(host_run(trap), UNDEFINED);
    expect_caller();
}

static void peek(void)
{
    call(SMALL_PEEK, NOWHERE, 0);
}

static void case_peek(void)
{
    expect_module(host_run(peek), PAGE_FAULT);
    EQUAL(crash()->tf.cr2, NOWHERE);
    EQUAL(crash()->tf.error, 0);
}

static void poke_text(void)
{
    call(SMALL_POKE, place.base + 0x04000000 + 0x1000, 0);
}

/* Even the module can't change itself, its tables, or the shim. */
static void case_poke_text(void)
{
    expect_module(host_run(poke_text), PAGE_FAULT);
    EQUAL(crash()->tf.error, 3);
}

static void poke_table(void)
{
    call(SMALL_POKE, place.base + 0x04000000, 0);
}

static void case_poke_table(void)
{
    expect_module(host_run(poke_table), PAGE_FAULT);
    EQUAL(crash()->tf.error, 3);
}

static void users(void)
{
    static uint64_t word = 1;

    call(SMALL_PEEK, (uint64_t)&word, 0);
    _exit(7); /* this CPU has no SMAP */
}

/* Ring 3's memory is not in reach of ring 0. */
static void case_users(void)
{
    int status = host_run(users);

    if (WIFEXITED(status) && WEXITSTATUS(status) == 7) {
        printf("no SMAP\n");
        return;
    }
    expect_module(status, PAGE_FAULT);
    EQUAL(crash()->tf.error, 1);
}

static void deep(void)
{
    call(SMALL_DEEP, 0, 0);
}

static void case_deep(void)
{
    expect_module(host_run(deep), PAGE_FAULT);
    CHECK(crash()->tf.cr2 - (crash()->module + 0x0400f000) < 4096); /* the guard page */
    EQUAL(crash()->n_trace, DUNE_TRACE_FRAMES);
}

static void hole(void)
{
    call(SMALL_PEEK, place.data + place.data_bytes - 4096, 0);
}

/* In the data windows, but nothing is mapped there. */
static void case_hole(void)
{
    expect(host_run(hole), SIGABRT, "memory that ring 0 needs is not there", 0);
    CHECK(in_module(crash()->value) && in_module(crash()->tf.rip));
}

static void triple(void)
{
    call(SMALL_TRIPLE, 0, 0);
}

/* What the registers are then, KVM decides. */
static void case_triple(void)
{
    int status = host_run(triple);

    EQUAL(WTERMSIG(status), SIGABRT);
    EQUAL(crash()->state, DUNE_CRASH_WHOLE);
    EQUAL(strcmp(crash()->what, "triple fault"), 0);
    EQUAL(data->small.calls, 1);
}

/* ---- in ring 3 ------------------------------------------------------------------------------- */

static void __attribute__((noipa)) segv_within(uint64_t mark)
{
    *(volatile uint64_t *)NOWHERE = mark;
}

static void __attribute__((noipa)) segv(void)
{
    volatile uint64_t here[4] = {MARK, MARK};

    segv_within(here[0]);
    here[1] = 0;
}

static void case_segv(void)
{
    bool marked = false;
    int status = host_run(segv);

    expect(status, SIGSEGV, "a signal without a handler", 3);
    EQUAL(crash()->value, NOWHERE);
    EQUAL(crash()->tf.vector, PAGE_FAULT);
    EQUAL(crash()->tf.cr2, NOWHERE);
    EQUAL(crash()->tf.error, 6);
    EQUAL(crash()->tf.cs, 0x23);
    for (unsigned i = 0; i < crash()->n_stack; i++)
        marked |= crash()->stack[i] == MARK;
    CHECK(marked);
    CHECK(crash()->trace[0] - (uint64_t)segv_within < 256);
    CHECK(crash()->trace[1] - (uint64_t)segv < 256 || crash()->stack[0] - (uint64_t)segv < 256);
    CHECK(WIFSIGNALED(status));
}

static void into_text(void)
{
    ((void (*)(void))(place.base + 0x04001000))();
}

static void case_into_text(void)
{
    expect(host_run(into_text), SIGSEGV, "a signal without a handler", 3);
    EQUAL(crash()->tf.rip, place.base + 0x04001000);
}

static void *thread(void *argument)
{
    segv();
    return argument;
}

static void threads_segv(void)
{
    pthread_t made;

    pthread_create(&made, NULL, thread, NULL);
    for (;;)
        call(SMALL_SPIN, 1000, 0);
}

static void case_thread(void)
{
    pid_t pid = host_start(threads_segv);

    expect(host_wait(pid), SIGSEGV, "a signal without a handler", 3);
    CHECK(crash()->tid != pid);
}

static void lost_stack(void)
{
    __asm__ volatile("mov %0, %%rsp\n\tmov %%rsp, %%rbp\n\tud2" : : "r"(NOWHERE + 8));
}

/* The record doesn't depend on a stack that is there. */
static void case_lost_stack(void)
{
    expect(host_run(lost_stack), SIGILL, "a signal without a handler", 3);
    EQUAL(crash()->n_stack, 0);
    EQUAL(crash()->n_trace, 1);
}

/* ---- without a record ------------------------------------------------------------------------ */

static void on_segv(int number)
{
    (void)number;
    _exit(3);
}

static void handled(void)
{
    signal(SIGSEGV, on_segv);
    segv();
}

static void waits(void)
{
    for (;;)
        pause();
}

static void child_crashes(void)
{
    int status;
    pid_t pid = fork();

    if (pid == 0)
        segv();
    EQUAL(waitpid(pid, &status, 0), pid);
    EQUAL(WTERMSIG(status), SIGSEGV);
    pid = vfork();
    if (pid == 0)
        segv();
    EQUAL(waitpid(pid, &status, 0), pid);
    EQUAL(WTERMSIG(status), SIGSEGV);
    EQUAL(call(SMALL_ADD, 1, 1), 2);
}

static void ends(void)
{
    call(SMALL_ADD, 1, 1);
}

static void case_none(void)
{
    EQUAL(host_run(ends), 0);
    EQUAL(crash()->state, DUNE_CRASH_NONE);
}

static void case_handled(void)
{
    EQUAL(WEXITSTATUS(host_run(handled)), 3);
    EQUAL(crash()->state, DUNE_CRASH_NONE);
}

static void case_children(void)
{
    EQUAL(host_run(child_crashes), 0);
    EQUAL(crash()->state, DUNE_CRASH_NONE);
}

static void case_killed(void)
{
    pid_t pid = host_start(waits);

    usleep(200000);
    kill(pid, SIGKILL);
    EQUAL(WTERMSIG(host_wait(pid)), SIGKILL);
    EQUAL(crash()->state, DUNE_CRASH_NONE);
}

static const struct both_case cases[] = {
    {"trap", case_trap},
    {"peek", case_peek},
    {"poke_text", case_poke_text},
    {"poke_table", case_poke_table},
    {"users", case_users},
    {"deep", case_deep},
    {"hole", case_hole},
    {"triple", case_triple},
    {"segv", case_segv},
    {"into_text", case_into_text},
    {"thread", case_thread},
    {"lost_stack", case_lost_stack},
    {"none", case_none},
    {"handled", case_handled},
    {"children", case_children},
    {"killed", case_killed},
    {NULL, NULL},
};

int main(int argc, char **argv)
{
    return host_main(argc, argv, cases);
}
