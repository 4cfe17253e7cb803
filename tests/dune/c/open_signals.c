/* Signals of a program in ring 0, and of its threads outside. PROGRAM CASE, see open.h. */
#include "open.h"

#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>

static volatile sig_atomic_t calls, ring, code;
static sigjmp_buf out;

static void set_handler(int number, void (*handler)(int, siginfo_t *, void *), int flags)
{
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = flags | SA_SIGINFO};

    EQUAL(sigaction(number, &action, NULL), 0);
}

static void note(int number, siginfo_t *info, void *context)
{
    (void)number, (void)context;
    calls++;
    ring = dune_ring();
    code = info->si_code;
    __asm__ volatile("pcmpeqd %%xmm2, %%xmm2" ::: "xmm2");
}

static void every(int us)
{
    struct itimerval timer = {{0, us}, {0, us}};

    EQUAL(setitimer(ITIMER_REAL, &timer, NULL), 0);
}

/* ---- ring 0 -----------------------------------------------------------------------------------
 */

/* The red zone, a vector and flags over some time: whatever interrupts leaves them alone. */
static bool red_zone_stays(uint64_t seed)
{
    uint64_t zone, vector;

    __asm__ volatile("movq %2, %%xmm2\n"
                     "mov %2, -8(%%rsp)\n mov %2, -128(%%rsp)\n"
                     "mov $3000, %%ecx\n1: dec %%ecx\n jnz 1b\n"
                     "mov -128(%%rsp), %0\n xor -8(%%rsp), %0\n"
                     "movq %%xmm2, %1\n"
                     : "=&r"(zone), "=&r"(vector)
                     : "r"(seed)
                     : "rcx", "memory", "cc", "xmm2");
    return zone == 0 && vector == seed;
}

static void handlers(void)
{
    open_ring0();
    set_handler(SIGUSR1, note, 0);
    raise(SIGUSR1);
    EQUAL(calls, 1);
    EQUAL(ring, 0);
    EQUAL(code, SI_TKILL);
    set_handler(SIGALRM, note, SA_RESTART);
    every(1000);
    for (uint64_t i = 1; calls < 500; i++) {
        CHECK(red_zone_stays(i));
        if (i % 4 == 0)
            CHECK(getppid() > 0);
    }
    every(0);
    open_leave();
    raise(SIGUSR1);
    EQUAL(ring, -1);
    puts("done");
}

static void jump(int number, siginfo_t *info, void *context)
{
    note(number, info, context);
    siglongjmp(out, 1);
}

static void mend(int number, siginfo_t *info, void *context)
{
    note(number, info, context);
    EQUAL(mprotect((void *)((uint64_t)info->si_addr & ~4095ul), 4096, PROT_READ | PROT_WRITE), 0);
}

/* What nobody in ring 0 handles is a signal, there too. */
static void faults(void)
{
    volatile char *page = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    open_ring0();
    set_handler(SIGSEGV, jump, 0);
    set_handler(SIGFPE, jump, 0);
    for (volatile int i = 0; i < 10; i++) {
        if (sigsetjmp(out, 1) == 0)
            __asm__ volatile("movb $1, 8");
        if (sigsetjmp(out, 1) == 0)
            __asm__ volatile("xor %%ecx, %%ecx\n div %%ecx" ::: "rax", "rcx", "rdx");
    }
    EQUAL(calls, 20);
    EQUAL(ring, 0);
    set_handler(SIGSEGV, mend, 0);
    page[7] = 3;
    EQUAL(calls, 21);
    EQUAL(page[7], 3);
    open_leave();
    puts("done");
}

static void user(void *arg)
{
    raise(SIGUSR1);
    EQUAL(ring, 3);
    while (calls < (long)arg)
        ;
    dune_return(calls);
}

/* Ring 3 under ring 0: its signals are delivered in ring 3. */
static void under_ring0(void)
{
    char *stack = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    open_ring0();
    set_handler(SIGUSR1, note, 0);
    set_handler(SIGALRM, note, 0);
    every(2000);
    CHECK(dune_run_user(user, (void *)50, stack + (1 << 20)) >= 50);
    every(0);
    EQUAL(dune_ring(), 0);
    raise(SIGUSR1);
    EQUAL(ring, 0);
    open_leave();
    puts("done");
}

/* ---- outside ------------------------------------------------------------------------------------
 */

static volatile int quit;

static void *stay_outside(void *arg)
{
    (void)arg;
    while (!quit)
        usleep(1000);
    EQUAL(dune_ring(), -1);
    return NULL;
}

static void wait_for(int due)
{
    for (int i = 0; calls < due && i < 5000; i++)
        usleep(1000);
    EQUAL(calls, due);
}

static void outside(void)
{
    pthread_t thread;
    sigset_t set;

    set_handler(SIGUSR1, note, 0);
    EQUAL(pthread_create(&thread, NULL, stay_outside, NULL), 0);
    open_ring0();
    pthread_kill(thread, SIGUSR1);
    wait_for(1);
    EQUAL(ring, -1);
    set_handler(SIGUSR2, note, SA_RESETHAND); /* set in the guest, met outside */
    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    kill(getpid(), SIGUSR2);
    wait_for(2);
    EQUAL(ring, -1);
    raise(SIGUSR1);
    EQUAL(ring, 0);
    quit = 1;
    EQUAL(pthread_join(thread, NULL), 0);
    open_leave();
    puts("done");
}

/* Going in and out under a storm of queued signals: each arrives once, in order. */
static volatile int due_value;

static void in_order(int number, siginfo_t *info, void *context)
{
    note(number, info, context);
    EQUAL(info->si_value.sival_int, due_value);
    due_value++;
}

static void *send_all(void *arg)
{
    pthread_t to = *(pthread_t *)arg;

    for (int i = 0; i < 500; i++)
        while (pthread_sigqueue(to, SIGRTMIN + 1, (union sigval){.sival_int = i}) != 0)
            usleep(500);
    return NULL;
}

static void in_and_out(void)
{
    pthread_t self = pthread_self(), thread;
    uint64_t seed = 1;

    set_handler(SIGRTMIN + 1, in_order, 0);
    EQUAL(dune_init(NULL), 0);
    EQUAL(pthread_create(&thread, NULL, send_all, &self), 0);
    for (int i = 0; i < 50 || due_value < 500; i++) {
        EQUAL(dune_enter(), 0);
        CHECK(red_zone_stays(++seed));
        EQUAL(dune_leave(), 0);
        CHECK(red_zone_stays(++seed));
    }
    EQUAL(pthread_join(thread, NULL), 0);
    EQUAL(due_value, 500);
    puts("done");
}

/* The alternate stack goes in and comes out with the thread. */
static void altstack(void)
{
    static char room[65536];
    stack_t stack = {.ss_sp = room, .ss_size = sizeof(room)}, now;

    EQUAL(sigaltstack(&stack, NULL), 0);
    open_ring0();
    EQUAL(sigaltstack(NULL, &now), 0);
    CHECK(now.ss_sp == room && now.ss_size == sizeof(room) && now.ss_flags == 0);
    set_handler(SIGUSR1, note, SA_ONSTACK);
    raise(SIGUSR1);
    EQUAL(ring, 0);
    open_leave();
    EQUAL(sigaltstack(NULL, &now), 0);
    CHECK(now.ss_sp == room && now.ss_size == sizeof(room) && now.ss_flags == 0);
    raise(SIGUSR1);
    EQUAL(ring, -1);
    puts("done");
}

int main(int argc, char **argv)
{
    static const struct open_case cases[] = {
        {"handlers", handlers}, {"faults", faults},         {"under_ring0", under_ring0},
        {"outside", outside},   {"in_and_out", in_and_out}, {"altstack", altstack},
        {NULL, NULL},
    };

    return open_main(argc, argv, cases);
}
