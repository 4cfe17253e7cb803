/* Signals that others send: handlers, masks, stacks, interrupted calls. PROGRAM bare|dune CASE, see
 * both.h. */
#include "both.h"

#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>

#define STORM_SIGNALS 5000

static volatile sig_atomic_t calls;
static int pipe_fd[2];

static void set_handler(int number, void (*handler)(int, siginfo_t *, void *), int flags)
{
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = flags | SA_SIGINFO};

    CHECK(sigaction(number, &action, NULL) == 0);
}

static void alarm_in(int ms)
{
    struct itimerval timer = {.it_value = {.tv_sec = ms / 1000, .tv_usec = ms % 1000 * 1000}};

    CHECK(setitimer(ITIMER_REAL, &timer, NULL) == 0);
}

/* The low 31 signals of a mask; glibc's own are of no interest. */
static unsigned bits(const sigset_t *set)
{
    unsigned mask = 0;

    for (int number = 1; number < 32; number++)
        if (sigismember(set, number))
            mask |= 1u << (number - 1);
    return mask;
}

static unsigned mask_now(void)
{
    sigset_t set;

    CHECK(sigprocmask(SIG_BLOCK, NULL, &set) == 0);
    return bits(&set);
}

static sigset_t set_of(int one, int other)
{
    sigset_t set;

    sigemptyset(&set);
    if (one)
        sigaddset(&set, one);
    if (other)
        sigaddset(&set, other);
    return set;
}

static void show_call(const char *name, long result)
{
    int error = result < 0 ? errno : 0;

    printf("%s: %ld error %d signals %d\n", name, result, error, (int)calls);
    calls = 0;
}

/* ---- what the handler is told -------------------------------------------------------------------
 */

static void tell(int number, siginfo_t *info, void *context)
{
    ucontext_t *uc = context;

    calls++;
    printf("signal %d signo %d code %d own %d value %d mask %x saved %x\n", number, info->si_signo,
           info->si_code, info->si_code <= 0 && info->si_pid == getpid(),
           info->si_code == SI_QUEUE || info->si_code == SI_TIMER ? info->si_value.sival_int : 0,
           mask_now(), bits(&uc->uc_sigmask));
}

static void tell_child(int number, siginfo_t *info, void *context)
{
    (void)context;
    printf("child %d code %d status %d\n", number, info->si_code, info->si_status);
    calls++;
}

static void handlers(void)
{
    struct sigevent event = {
        .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 3, .sigev_value.sival_int = 77};
    struct itimerspec once = {.it_value.tv_nsec = 1000000};
    timer_t timer;

    for (int number = 1; number <= SIGRTMAX; number++)
        if (number != SIGKILL && number != SIGSTOP && number != 32 && number != 33)
            set_handler(number, tell, 0);
    raise(SIGUSR1);
    kill(getpid(), SIGUSR2);
    CHECK(sigqueue(getpid(), SIGRTMIN + 1, (union sigval){.sival_int = 1234}) == 0);
    raise(SIGSEGV);
    raise(SIGFPE);
    kill(getpid(), SIGTRAP);
    calls = 0;
    alarm_in(5);
    while (!calls)
        pause();
    calls = 0;
    CHECK(timer_create(CLOCK_MONOTONIC, &event, &timer) == 0);
    CHECK(timer_settime(timer, 0, &once, NULL) == 0);
    while (!calls)
        getppid();
    set_handler(SIGCHLD, tell_child, 0);
    for (int how = 0; how < 3; how++) {
        pid_t pid;

        calls = 0;
        fflush(stdout);
        pid = fork();
        if (pid == 0) {
            signal(SIGTERM, SIG_DFL);
            if (how == 1)
                kill(getpid(), SIGTERM);
            if (how == 2)
                abort();
            _exit(3);
        }
        while (!calls)
            usleep(1000);
        CHECK(waitpid(pid, NULL, 0) == pid);
    }
}

/* ---- nesting and masks
 * ---------------------------------------------------------------------------- */

static void nested_inner(int number, siginfo_t *info, void *context)
{
    (void)info, (void)context;
    printf("inner %d mask %x\n", number, mask_now());
}

static void nested_outer(int number, siginfo_t *info, void *context)
{
    (void)info, (void)context;
    printf("outer %d mask %x\n", number, mask_now());
    raise(SIGUSR2);
    raise(SIGTERM); /* waits until the handler returns */
    if (calls++ == 0)
        raise(SIGUSR1); /* so does itself */
    printf("outer ends\n");
}

static void nested(void)
{
    struct sigaction action = {
        .sa_sigaction = nested_outer, .sa_flags = SA_SIGINFO, .sa_mask = set_of(SIGTERM, SIGKILL)};
    sigset_t both = set_of(SIGUSR2, SIGTERM), old;

    sigaction(SIGUSR1, &action, NULL);
    set_handler(SIGUSR2, nested_inner, 0);
    set_handler(SIGTERM, nested_inner, 0);
    raise(SIGUSR1);
    sigprocmask(SIG_BLOCK, &both, &old);
    printf("blocked %x, before %x\n", mask_now(), bits(&old));
    raise(SIGTERM);
    raise(SIGUSR2);
    raise(SIGUSR2);
    sigpending(&both);
    printf("pending %x\n", bits(&both));
    sigprocmask(SIG_SETMASK, &old, NULL);
    printf("and now %x\n", mask_now());
}

static void once(int number, siginfo_t *info, void *context)
{
    struct sigaction now;

    (void)info, (void)context;
    sigaction(number, NULL, &now);
    printf("once %d: default again %d mask %x\n", number, now.sa_handler == SIG_DFL, mask_now());
    if (number == SIGUSR2 && calls++ < 3)
        raise(SIGUSR2);
}

static void flags(void)
{
    struct sigaction old;
    int status;
    pid_t pid;

    set_handler(SIGUSR1, once, SA_RESETHAND);
    set_handler(SIGUSR2, once, SA_NODEFER);
    raise(SIGUSR2);
    raise(SIGUSR1);
    fflush(stdout);
    pid = fork();
    if (pid == 0) {
        raise(SIGUSR1);
        _exit(0);
    }
    waitpid(pid, &status, 0);
    printf("the second ends it: %x\n", status);
    show_call("sigaction", sigaction(SIGKILL, &(struct sigaction){.sa_handler = SIG_IGN}, NULL));
    show_call("sigaction", sigaction(65, NULL, &old));
    CHECK(sigaction(SIGUSR2, NULL, &old) == 0);
    printf("flags %x\n", old.sa_flags & ~0x04000000);
    CHECK(signal(SIGUSR1, SIG_IGN) == SIG_DFL);
    raise(SIGUSR1);
    CHECK(signal(SIGUSR1, SIG_DFL) == SIG_IGN);
}

/* ---- the alternate stack
 * ------------------------------------------------------------------------------ */

static char *alternate;
#define ALTERNATE_BYTES 65536

static void show_stack(const char *where)
{
    char here;
    stack_t stack;

    sigaltstack(NULL, &stack);
    printf("%s: on it %d flags %x size %zu\n", where,
           &here > alternate && &here < alternate + ALTERNATE_BYTES, stack.ss_flags, stack.ss_size);
}

static void on_stack(int number, siginfo_t *info, void *context)
{
    stack_t none = {.ss_flags = SS_DISABLE};
    ucontext_t *uc = context;

    (void)info;
    show_stack("handler");
    show_call("change", sigaltstack(&none, NULL));
    printf("saved flags %x size %zu\n", uc->uc_stack.ss_flags, uc->uc_stack.ss_size);
    if (number == SIGUSR1)
        raise(SIGUSR2);
}

static void altstack(void)
{
    stack_t stack = {.ss_size = ALTERNATE_BYTES};

    stack.ss_sp = alternate =
        mmap(NULL, ALTERNATE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    show_stack("before");
    show_call("too small", sigaltstack(&(stack_t){.ss_sp = alternate, .ss_size = 100}, NULL));
    CHECK(sigaltstack(&stack, NULL) == 0);
    set_handler(SIGUSR1, on_stack, SA_ONSTACK);
    set_handler(SIGUSR2, on_stack, SA_ONSTACK);
    raise(SIGUSR1);
    set_handler(SIGUSR2, on_stack, 0);
    stack.ss_flags = (int)(1u << 31); /* SS_AUTODISARM */
    CHECK(sigaltstack(&stack, NULL) == 0);
    raise(SIGUSR1);
    show_stack("after");
}

/* ---- interrupted calls
 * --------------------------------------------------------------------------------- */

static void count(int number, siginfo_t *info, void *context)
{
    (void)number, (void)info, (void)context;
    calls++;
}

static void count_and_feed(int number, siginfo_t *info, void *context)
{
    count(number, info, context);
    CHECK(write(pipe_fd[1], "x", 1) == 1);
}

static void interrupted_calls(void)
{
    struct timespec second = {1, 0}, left = {0, 0};
    struct timeval second_too = {1, 0};
    struct pollfd one = {.fd = pipe_fd[0], .events = POLLIN};
    int word = 0, status;
    fd_set set;
    pid_t pid;

    alarm_in(30);
    show_call("nanosleep", nanosleep(&second, &left));
    printf("left %d\n", left.tv_sec == 0 && left.tv_nsec > 100000000);
    alarm_in(30);
    show_call("poll", poll(&one, 1, 1000));
    FD_ZERO(&set);
    FD_SET(pipe_fd[0], &set);
    alarm_in(30);
    show_call("select", select(pipe_fd[0] + 1, &set, NULL, NULL, &second_too));
    alarm_in(30);
    show_call("pause", pause());
    alarm_in(30);
    show_call("futex", syscall(SYS_futex, &word, FUTEX_WAIT, 0, &second, NULL, 0));
    fflush(stdout);
    pid = fork();
    if (pid == 0) {
        usleep(150000);
        _exit(7);
    }
    alarm_in(30);
    show_call("wait", waitpid(pid, &status, 0) == pid ? 0 : -1);
    if (waitpid(pid, &status, 0) == pid)
        printf("only now\n");
    printf("status %x\n", status);
    alarm_in(30);
    show_call("clock_nanosleep",
              -(long)clock_nanosleep(CLOCK_MONOTONIC, 0, &(struct timespec){0, 200000000}, NULL));
}

static void interrupted(void)
{
    char byte;

    CHECK(pipe(pipe_fd) == 0);
    set_handler(SIGALRM, count, 0);
    alarm_in(30);
    show_call("read", read(pipe_fd[0], &byte, 1));
    interrupted_calls();
    set_handler(SIGALRM, count, SA_RESTART);
    printf("with SA_RESTART\n");
    interrupted_calls();
    set_handler(SIGALRM, count_and_feed, SA_RESTART);
    alarm_in(30);
    show_call("read", read(pipe_fd[0], &byte, 1));
}

static void tell_mask(int number, siginfo_t *info, void *context)
{
    ucontext_t *uc = context;

    (void)info;
    printf("handler of %d: mask %x, then %x\n", number, mask_now(), bits(&uc->uc_sigmask));
}

/* The calls that wait with a mask of their own. */
static void waits(void)
{
    sigset_t blocked = set_of(SIGALRM, SIGHUP), waited = set_of(SIGUSR2, 0);
    int fd = epoll_create1(0);
    struct epoll_event event;
    struct sigaction action = {
        .sa_sigaction = tell_mask, .sa_flags = SA_SIGINFO, .sa_mask = set_of(SIGTERM, 0)};
    struct timespec second = {2, 0};

    sigaction(SIGALRM, &action, NULL);
    sigprocmask(SIG_SETMASK, &blocked, NULL);
    alarm_in(20);
    show_call("sigsuspend", sigsuspend(&waited));
    alarm_in(20);
    show_call("ppoll", ppoll(NULL, 0, &second, &waited));
    alarm_in(20);
    show_call("pselect", pselect(0, NULL, NULL, NULL, &second, &waited));
    alarm_in(20);
    show_call("epoll_pwait", epoll_pwait(fd, &event, 1, 2000, &waited));
    printf("afterwards %x\n", mask_now());
    raise(SIGALRM); /* one that waits already */
    show_call("sigsuspend", sigsuspend(&waited));
    raise(SIGALRM);
    show_call("ppoll", ppoll(NULL, 0, &second, &waited));
    waited = blocked;
    second.tv_nsec = 1000000;
    second.tv_sec = 0;
    show_call("ppoll in vain", ppoll(NULL, 0, &second, &waited));
    printf("afterwards %x\n", mask_now());
}

static void taken(void)
{
    sigset_t set = set_of(SIGUSR1, SIGUSR2);
    struct timespec little = {0, 1000000};
    struct signalfd_siginfo read_info;
    siginfo_t info;
    int fd;

    sigprocmask(SIG_BLOCK, &set, NULL);
    sigqueue(getpid(), SIGUSR1, (union sigval){.sival_int = 5});
    show_call("sigwaitinfo", sigwaitinfo(&set, &info));
    printf("code %d value %d\n", info.si_code, info.si_value.sival_int);
    show_call("sigtimedwait", sigtimedwait(&set, &info, &little));
    set_handler(SIGALRM, count, SA_RESTART);
    alarm_in(20);
    show_call("sigwaitinfo", sigwaitinfo(&set, &info));
    fd = signalfd(-1, &set, 0);
    raise(SIGUSR2);
    CHECK(read(fd, &read_info, sizeof(read_info)) == sizeof(read_info));
    printf("signalfd %d\n", (int)read_info.ssi_signo);
}

/* ---- state
 * ------------------------------------------------------------------------------------------------
 */

static void clobber(int number, siginfo_t *info, void *context)
{
    double x = 1.5;

    (void)number, (void)info, (void)context;
    calls++;
    __asm__ volatile("pcmpeqd %%xmm0, %%xmm0\n pcmpeqd %%xmm7, %%xmm7\n pcmpeqd %%xmm15, %%xmm15\n"
                     "fldl %0\n fldl %0\n fldl %0\n"
                     :
                     : "m"(x)
                     : "xmm0", "xmm7", "xmm15");
}

/* A round of registers and vectors that a call or a handler must leave alone. False: it didn't. */
static int round_of_registers(uint64_t seed)
{
    uint64_t in[14], out[14];

    for (int i = 0; i < 14; i++)
        in[i] = seed * (uint64_t)(2 * i + 3) + 0x123456789abcdefull;
    __asm__ volatile(
        "push %%rbp\n"
        "movq 0(%0), %%xmm0\n movq 8(%0), %%xmm7\n movq 16(%0), %%xmm15\n"
        "fildll 24(%0)\n"
        "mov 32(%0), %%rbx\n mov 40(%0), %%r12\n mov 48(%0), %%r13\n mov 56(%0), %%r14\n"
        "mov 64(%0), %%r15\n mov 72(%0), %%r8\n mov 80(%0), %%r9\n mov 88(%0), %%r10\n"
        "mov 96(%0), %%rbp\n mov 104(%0), %%rdi\n"
        "push %0\n push %1\n"
        "mov $39, %%eax\n syscall\n"
        "mov $2000, %%ecx\n1: dec %%ecx\n jnz 1b\n"
        "pop %1\n pop %0\n"
        "movq %%xmm0, 0(%1)\n movq %%xmm7, 8(%1)\n movq %%xmm15, 16(%1)\n"
        "fistpll 24(%1)\n"
        "mov %%rbx, 32(%1)\n mov %%r12, 40(%1)\n mov %%r13, 48(%1)\n mov %%r14, 56(%1)\n"
        "mov %%r15, 64(%1)\n mov %%r8, 72(%1)\n mov %%r9, 80(%1)\n mov %%r10, 88(%1)\n"
        "mov %%rbp, 96(%1)\n mov %%rdi, 104(%1)\n"
        "pop %%rbp\n"
        :
        : "S"(in), "d"(out)
        : "rax", "rbx", "rcx", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "xmm0",
          "xmm7", "xmm15", "memory", "cc");
    return memcmp(in, out, sizeof(in)) == 0;
}

static void storm(void)
{
    struct itimerval often = {.it_interval.tv_usec = 1000, .it_value.tv_usec = 1000}, none = {0};
    const char *limit = getenv("STORM_SIGNALS");
    int due = limit ? atoi(limit) : STORM_SIGNALS;
    uint64_t rounds = 0;

    set_handler(SIGALRM, clobber, SA_RESTART);
    CHECK(round_of_registers(1));
    setitimer(ITIMER_REAL, &often, NULL);
    while (calls < due) {
        /* The stack's red zone belongs to the compiler: no handler may use it, and none does. */
        CHECK(round_of_registers(++rounds));
    }
    setitimer(ITIMER_REAL, &none, NULL);
    fprintf(stderr, "signals %d rounds %lu\n", (int)calls, (unsigned long)rounds);
    printf("no register changed\n");
}

static sigjmp_buf out;

static void jump(int number, siginfo_t *info, void *context)
{
    (void)number, (void)info, (void)context;
    calls++;
    siglongjmp(out, calls);
}

static void longjmp_out(void)
{
    set_handler(SIGUSR1, jump, 0);
    set_handler(SIGALRM, jump, 0);
    for (volatile int i = 0; i < 200; i++) {
        if (sigsetjmp(out, 1) == 0) {
            raise(SIGUSR1);
            CHECK(0);
        }
        CHECK(mask_now() == 0);
    }
    for (volatile int i = 0; i < 20; i++) {
        if (sigsetjmp(out, 1) == 0) {
            alarm_in(2);
            for (;;)
                if (i % 2)
                    getppid();
        }
    }
    printf("jumps %d mask %x\n", (int)calls, mask_now());
}

static void edit(int number, siginfo_t *info, void *context)
{
    ucontext_t *uc = context;
    uint8_t *image = (uint8_t *)uc->uc_mcontext.fpregs;

    (void)number, (void)info;
    uc->uc_mcontext.gregs[REG_RAX] = 0x77;
    uc->uc_mcontext.gregs[REG_R12] = 0x1234;
    sigaddset(&uc->uc_sigmask, SIGHUP);
    sigdelset(&uc->uc_sigmask, SIGTERM);
    memset(image + 160 + 16 * 5, 0x5a, 8); /* xmm5 */
    *(uint32_t *)(image + 24) = 0x9f80;    /* MXCSR: flush to zero */
}

/* What a handler changes in its frame is what the program goes on with. */
static void edited(void)
{
    sigset_t blocked = set_of(SIGTERM, 0);
    uint64_t rax, r12, xmm5;
    uint32_t mxcsr, inside;

    sigprocmask(SIG_SETMASK, &blocked, NULL);
    set_handler(SIGUSR1, edit, 0);
    __asm__ volatile("mov $62, %%eax\n syscall\n mov %%r12, %1\n movq %%xmm5, %2\n stmxcsr %3\n"
                     : "=a"(rax), "=r"(r12), "=r"(xmm5), "=m"(mxcsr)
                     : "D"((long)getpid()), "S"((long)SIGUSR1)
                     : "rcx", "r11", "r12", "xmm5", "memory");
    inside = 0x1f80;
    __asm__ volatile("ldmxcsr %0" : : "m"(inside));
    printf("rax %lx r12 %lx xmm5 %lx mxcsr %x mask %x\n", (long)rax, (long)r12, (long)xmm5, mxcsr,
           mask_now());
}

static void look_at_state(int number, siginfo_t *info, void *context)
{
    uint16_t control;
    uint32_t mxcsr;
    uint64_t flags;
    ucontext_t *uc = context;
    uint32_t *software = (uint32_t *)((uint8_t *)uc->uc_mcontext.fpregs + 464);

    (void)number, (void)info;
    __asm__ volatile("fnstcw %0\n stmxcsr %1\n pushfq\n pop %2"
                     : "=m"(control), "=m"(mxcsr), "=r"(flags));
    printf("control %x mxcsr %x direction %d\n", control, mxcsr, (int)(flags >> 10 & 1));
    printf("uc_flags %lx cs %llx magic %x %x aligned %d\n", uc->uc_flags,
           uc->uc_mcontext.gregs[REG_CSGSFS], software[0],
           *(uint32_t *)((uint8_t *)uc->uc_mcontext.fpregs + software[4]),
           (int)((uint64_t)uc->uc_mcontext.fpregs % 64));
    printf("saved control %x mxcsr %x direction %d\n", uc->uc_mcontext.fpregs->cwd,
           uc->uc_mcontext.fpregs->mxcsr, (int)(uc->uc_mcontext.gregs[REG_EFL] >> 10 & 1));
}

static void fresh_state(void)
{
    uint16_t control = 0x27f, after;
    uint32_t mxcsr = 0x9fc0, mxcsr_after;
    long result = 62;

    set_handler(SIGUSR1, look_at_state, 0);
    __asm__ volatile("fldcw %3\n ldmxcsr %4\n std\n syscall\n cld\n fnstcw %1\n stmxcsr %2\n"
                     : "+a"(result), "=m"(after), "=m"(mxcsr_after)
                     : "m"(control), "m"(mxcsr), "D"((long)getpid()), "S"((long)SIGUSR1)
                     : "rcx", "r11", "memory", "cc");
    printf("after: %x %x\n", after, mxcsr_after);
}

#include "signals_more.h"

int main(int argc, char **argv)
{
    static const struct both_case cases[] = {
        {"handlers", handlers},
        {"nested", nested},
        {"flags", flags},
        {"altstack", altstack},
        {"waits", waits},
        {"interrupted", interrupted},
        {"taken", taken},
        {"storm", storm},
        {"longjmp", longjmp_out},
        {"edited", edited},
        {"fresh_state", fresh_state},
        {"defaults", defaults},
        {"stops", stops},
        {"threads", threads},
        {"inherited", inherited},
        {"children", children},
        {"storms", storms},
        {"fork_storm", fork_storm},
        {NULL, NULL},
    };

    return both_main(argc, argv, cases);
}
