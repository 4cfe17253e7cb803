/* Signals that the program's own instructions make. PROGRAM bare|dune CASE, see both.h. */
#include "both.h"

#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <ucontext.h>

#define PAGE 4096

static volatile sig_atomic_t calls;
static uint8_t *page;
static sigjmp_buf out;

static void set_handler(int number, void (*handler)(int, siginfo_t *, void *), int flags)
{
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = flags | SA_SIGINFO};

    CHECK(sigaction(number, &action, NULL) == 0);
}

static uint8_t *new_page(int protection)
{
    uint8_t *at = mmap(NULL, PAGE, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    CHECK(at != MAP_FAILED);
    return at;
}

/* ---- what the handler is told -------------------------------------------------------------------
 */

static void tell_and_leave(int number, siginfo_t *info, void *context)
{
    ucontext_t *uc = context;
    long long *regs = uc->uc_mcontext.gregs;
    uint64_t address = (uint64_t)info->si_addr;

    if (address - (uint64_t)page < PAGE)
        address -= (uint64_t)page;
    else if (address == (uint64_t)regs[REG_RIP])
        address = 0x1111;
    printf("signal %d code %d address %lx trap %lld", number, info->si_code, address,
           regs[REG_TRAPNO]);
    if (regs[REG_TRAPNO] == 14)
        printf(" error %llx same %d", regs[REG_ERR] & 2 ? regs[REG_ERR] & ~1ll : regs[REG_ERR],
               (uint64_t)regs[REG_CR2] == (uint64_t)info->si_addr);
    printf(" step %d\n", (int)(regs[REG_EFL] >> 8 & 1));
    siglongjmp(out, 1);
}

#define TRY(name, text) \
    do { \
        printf(name ": "); \
        fflush(stdout); \
        if (sigsetjmp(out, 1) == 0) { \
            text; \
            printf("nothing\n"); \
        } \
    } while (0)

static void *file_page(void)
{
    FILE *file = tmpfile();

    CHECK(file != NULL);
    return mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fileno(file), 0);
}

static void divide(void)
{
    __asm__ volatile("xor %%ecx, %%ecx\n div %%ecx" : : : "rax", "rcx", "rdx");
}

static void told(void)
{
    static const int number[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP};
    volatile int zero = 0;
    uint64_t scratch;

    for (unsigned i = 0; i < sizeof(number) / sizeof(*number); i++)
        set_handler(number[i], tell_and_leave, 0);
    page = NULL;
    TRY("null", *(volatile int *)(page + zero));
    TRY("null write", *(volatile int *)(page + zero + 8) = 1);
    page = new_page(PROT_NONE);
    TRY("closed read", *(volatile char *)(page + 5));
    TRY("closed write", *(volatile char *)(page + 6) = 1);
    page = new_page(PROT_READ);
    TRY("read only", *(volatile char *)(page + 7) = 1);
    *(volatile char *)page;
    TRY("read only, there", *(volatile char *)(page + 7) = 1);
    page = new_page(PROT_READ | PROT_WRITE);
    page[0] = 0xc3;
    TRY("not executable", ((void (*)(void))page)());
    munmap(page, PAGE);
    TRY("unmapped", *(volatile char *)(page + 9));
    TRY("jump to nowhere", ((void (*)(void))page)());
    TRY("not canonical", __asm__ volatile("mov (%0), %%al" : : "r"(1ull << 63) : "rax"));
    TRY("kernel's half", __asm__ volatile("mov (%0), %%al" : : "r"(~0xfffull) : "rax"));
    page = file_page();
    TRY("behind the file", *(volatile char *)(page + 11));
    TRY("division", divide());
    TRY("undefined", __asm__ volatile("ud2"));
    TRY("privileged", __asm__ volatile("hlt"));
    TRY("port", __asm__ volatile("out %al, $0x10"));
    TRY("breakpoint", __asm__ volatile("int3"));
    TRY("gate", __asm__ volatile("int $0x30"));
    TRY("step", __asm__ volatile("pushfq\n orq $0x100, (%%rsp)\n popfq\n nop\n nop"
                                 :
                                 :
                                 : "memory", "cc"));
    TRY("aligned", __asm__ volatile("movaps (%0), %%xmm0"
                                    :
                                    : "r"((uint64_t)&scratch | 1)
                                    : "xmm0"));
    {
        uint32_t mxcsr = 0x1f80 & ~0x200u; /* division by zero is unmasked */

        TRY("vectors", __asm__ volatile("ldmxcsr %0\n pxor %%xmm0, %%xmm0\n pxor %%xmm1, %%xmm1\n"
                                        "cvtsi2sd %1, %%xmm1\n divsd %%xmm0, %%xmm1"
                                        :
                                        : "m"(mxcsr), "r"(1)
                                        : "xmm0", "xmm1"));
    }
    {
        uint16_t control = 0x37b; /* for the x87, too */

        TRY("x87", __asm__ volatile("fldcw %0\n fldz\n fld1\n fdivp\n fwait" : : "m"(control)));
    }
}

/* ---- handlers that mend
 * ----------------------------------------------------------------------------- */

static void mend(int number, siginfo_t *info, void *context)
{
    uint64_t at = (uint64_t)info->si_addr & ~(uint64_t)(PAGE - 1);

    (void)number, (void)context;
    calls++;
    CHECK(mprotect((void *)at, PAGE, PROT_READ | PROT_WRITE) == 0);
}

static void mended(void)
{
    enum { PAGES = 100 };
    uint8_t *area = mmap(NULL, PAGES * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    unsigned sum = 0;

    set_handler(SIGSEGV, mend, 0);
    for (int i = 0; i < PAGES; i++)
        area[i * PAGE + i] = (uint8_t)i;
    for (int i = 0; i < PAGES; i++)
        sum += area[i * PAGE + i];
    CHECK(mprotect(area, PAGES * PAGE, PROT_READ) == 0);
    for (int i = 0; i < PAGES; i++)
        area[i * PAGE + i]++;
    for (int i = 0; i < PAGES; i++)
        sum += area[i * PAGE + i];
    printf("calls %d sum %u\n", (int)calls, sum);
}

static void skip(int number, siginfo_t *info, void *context)
{
    ucontext_t *uc = context;

    (void)info;
    calls++;
    uc->uc_mcontext.gregs[REG_RIP] += number == SIGTRAP ? 0 : 2;
}

static void skipped(void)
{
    long value = 41;

    set_handler(SIGILL, skip, 0);
    set_handler(SIGTRAP, skip, 0);
    for (int i = 0; i < 50; i++)
        __asm__ volatile("ud2\n int3\n" : "+r"(value));
    printf("calls %d value %ld\n", (int)calls, value + 1);
}

/* Each instruction a signal: a debugger in the process itself. */
static void single_steps(void)
{
    long value = 0;

    set_handler(SIGTRAP, skip, 0);
    __asm__ volatile("pushfq\n orq $0x100, (%%rsp)\n popfq\n"
                     "mov $20, %%ecx\n"
                     "1: inc %0\n dec %%ecx\n jnz 1b\n"
                     "mov $39, %%eax\n syscall\n"
                     "pushfq\n andq $~0x100, (%%rsp)\n popfq\n"
                     : "+r"(value)
                     :
                     : "rax", "rcx", "r11", "memory", "cc");
    printf("steps %d value %ld\n", (int)calls, value);
}

static volatile sig_atomic_t alarms, illegal, traps;

static void count_fault(int number, siginfo_t *info, void *context)
{
    ucontext_t *uc = context;

    CHECK(info->si_code > 0);
    if (number == SIGILL) {
        CHECK(uc->uc_mcontext.gregs[REG_RIP] == (long long)info->si_addr);
        uc->uc_mcontext.gregs[REG_RIP] += 2;
        illegal++;
    } else {
        traps++;
    }
}

static void count_alarm(int number, siginfo_t *info, void *context)
{
    (void)number, (void)info, (void)context;
    alarms++;
}

/* Each fault once, where it is, however many other signals come in between. */
static void exact(void)
{
    struct itimerval often = {{0, 500}, {0, 500}}, none = {{0, 0}, {0, 0}};
    int rounds = 0;

    set_handler(SIGILL, count_fault, 0);
    set_handler(SIGTRAP, count_fault, 0);
    set_handler(SIGALRM, count_alarm, 0);
    setitimer(ITIMER_REAL, &often, NULL);
    for (; alarms < 300; rounds++)
        __asm__ volatile("ud2\n int3\n" ::: "memory");
    setitimer(ITIMER_REAL, &none, NULL);
    printf("missing %d %d\n", rounds - illegal, rounds - traps);
}

/* ---- stacks that end
 * ---------------------------------------------------------------------------------- */

static char alternate[65536];

static void overflowed(int number, siginfo_t *info, void *context)
{
    char here;

    (void)context;
    CHECK(&here > alternate && &here < alternate + sizeof(alternate));
    if (calls++ == 0)
        printf("signal %d code %d\n", number, info->si_code);
    siglongjmp(out, 1);
}

static int recurse(int depth)
{
    volatile char room[2000];

    room[0] = (char)depth;
    return depth < 0 ? 0 : recurse(depth + 1) + room[0];
}

static void overflow(void)
{
    struct rlimit small = {1 << 20, 8 << 20};
    stack_t stack = {.ss_sp = alternate, .ss_size = sizeof(alternate)};

    CHECK(setrlimit(RLIMIT_STACK, &small) == 0);
    CHECK(sigaltstack(&stack, NULL) == 0);
    set_handler(SIGSEGV, overflowed, SA_ONSTACK);
    for (volatile int i = 0; i < 10; i++)
        if (sigsetjmp(out, 1) == 0)
            printf("%d\n", recurse(0));
    printf("calls %d\n", (int)calls);
}

/* ---- the end
 * ------------------------------------------------------------------------------------------------
 */

static void nothing(int number, siginfo_t *info, void *context)
{
    (void)number, (void)info, (void)context;
}

static void end_null(void)
{
    *(volatile char *)0;
}
static void end_blocked(void)
{
    sigset_t set;

    set_handler(SIGSEGV, nothing, 0);
    sigemptyset(&set);
    sigaddset(&set, SIGSEGV);
    sigprocmask(SIG_BLOCK, &set, NULL);
    *(volatile char *)0;
}
static void end_ignored(void)
{
    signal(SIGILL, SIG_IGN);
    __asm__ volatile("ud2");
}
static void end_overflow(void)
{
    set_handler(SIGSEGV, nothing, 0);
    recurse(0);
}
static void end_division(void)
{
    divide();
}
static void end_stack(void)
{
    set_handler(SIGUSR1, nothing, 0);
    __asm__ volatile("mov $64, %%rsp\n mov $62, %%eax\n syscall" : : "D"((long)getpid()), "S"(10L));
}
static void end_return(void)
{
    __asm__ volatile("mov $64, %rsp\n mov $15, %eax\n syscall");
}
static void end_handler(void)
{
    set_handler(SIGUSR1, (void (*)(int, siginfo_t *, void *))(1ull << 63), 0);
    raise(SIGUSR1);
}
static void ignored_by_kill(void)
{
    signal(SIGSEGV, SIG_IGN);
    raise(SIGSEGV);
    _exit(1);
}

static void ends(void)
{
    static const struct {
        const char *name;
        void (*run)(void);
    } way[] = {{"null", end_null},
               {"blocked", end_blocked},
               {"ignored", end_ignored},
               {"overflow", end_overflow},
               {"division", end_division},
               {"stack", end_stack},
               {"return", end_return},
               {"handler", end_handler},
               {"sent and ignored", ignored_by_kill}};

    for (unsigned i = 0; i < sizeof(way) / sizeof(*way); i++) {
        int status;
        pid_t pid;

        fflush(stdout);
        pid = fork();
        if (pid == 0) {
            way[i].run();
            _exit(17);
        }
        CHECK(waitpid(pid, &status, 0) == pid);
        printf("%s: %x\n", way[i].name, status);
    }
}

/* Where cores are wanted, one is made. */
static void core(void)
{
    struct rlimit any = {RLIM_INFINITY, RLIM_INFINITY};
    char place[] = "/tmp/dune_core_XXXXXX";
    int status;
    pid_t pid;

    CHECK(mkdtemp(place) && chdir(place) == 0);
    pid = fork();
    if (pid == 0) {
        setrlimit(RLIMIT_CORE, &any);
        end_null();
    }
    CHECK(waitpid(pid, &status, 0) == pid);
    printf("%x\n", status);
}

int main(int argc, char **argv)
{
    static const struct both_case cases[] = {
        {"told", told},          {"mended", mended},     {"skipped", skipped},
        {"steps", single_steps}, {"overflow", overflow}, {"exact", exact},
        {"ends", ends},          {"core", core},         {NULL, NULL},
    };

    return both_main(argc, argv, cases);
}
