/* Into ring 0 and back; ring 3 called from there; system calls and what they cost in exits. */
#include "open.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/syscall.h>

#define CALLS       1000
#define STACK_BYTES 65536
#define OWN_CALL    5000 /* no system call of Linux */

static uint8_t user_stack[STACK_BYTES] __attribute__((aligned(4096)));
static __thread int tls_value;
static volatile long calls_seen;

static void *stack_top(void)
{
    return user_stack + STACK_BYTES;
}

static long raw_call(long nr, long a)
{
    long result;

    __asm__ volatile("syscall" : "=a"(result) : "0"(nr), "D"(a) : "rcx", "r11", "memory");
    return result;
}

/* ---- entering and leaving ------------------------------------------------------------------ */

/* Values in every register that a call keeps, and in the vector registers, over dune_enter() or
 * dune_leave(). */
static void keeps_registers(int (*call)(void))
{
    uint64_t out[6], vector[2] = {0x1122334455667788, 0x99aabbccddeeff00}, kept[2];
    uint32_t mxcsr = 0x3f80, mxcsr_out; /* rounds down */
    uint16_t control = 0x0f7f, control_out;
    int result;

    __asm__ volatile(
        "movdqu %[v], %%xmm9\n\t"
        "ldmxcsr %[m]\n\t"
        "fldcw %[c]\n\t"
        "push %%rbx\n\tpush %%rbp\n\tpush %%r12\n\tpush %%r13\n\tpush %%r14\n\tpush %%r15\n\t"
        "push %%rdi\n\tsub $8, %%rsp\n\t"
        "mov $0x101, %%rbx\n\tmov $0x202, %%rbp\n\tmov $0x303, %%r12\n\t"
        "mov $0x404, %%r13\n\tmov $0x505, %%r14\n\tmov $0x606, %%r15\n\t"
        "call *%%rsi\n\t"
        "add $8, %%rsp\n\tpop %%rdi\n\t"
        "mov %%rbx, 0(%%rdi)\n\tmov %%rbp, 8(%%rdi)\n\tmov %%r12, 16(%%rdi)\n\t"
        "mov %%r13, 24(%%rdi)\n\tmov %%r14, 32(%%rdi)\n\tmov %%r15, 40(%%rdi)\n\t"
        "pop %%r15\n\tpop %%r14\n\tpop %%r13\n\tpop %%r12\n\tpop %%rbp\n\tpop %%rbx\n\t"
        : "=a"(result), "+S"(call)
        : "D"(out), [v] "m"(vector), [m] "m"(mxcsr), [c] "m"(control)
        : "rcx", "rdx", "r8", "r9", "r10", "r11", "memory", "xmm9");
    __asm__ volatile("stmxcsr %0\n\tfnstcw %1" : "=m"(mxcsr_out), "=m"(control_out));
    __asm__ volatile("movdqu %%xmm9, %0" : "=m"(kept));
    EQUAL(result, 0);
    for (int i = 0; i < 6; i++)
        EQUAL(out[i], (uint64_t)(i + 1) * 0x101);
    EQUAL(mxcsr_out & ~0x3fu, mxcsr);
    EQUAL(control_out, control);
    (void)kept; /* a call may change it; what must hold is the control registers */
    mxcsr = 0x1f80;
    control = 0x037f;
    __asm__ volatile("ldmxcsr %0\n\tfldcw %1" : : "m"(mxcsr), "m"(control));
}

static void round_trips(void)
{
    volatile char local[256];

    EQUAL(dune_init(NULL), 0);
    memset((void *)local, 0x5a, sizeof(local));
    for (int i = 0; i < 20; i++) {
        errno = 1000 + i;
        tls_value = i;
        keeps_registers(dune_enter);
        EQUAL(dune_ring(), 0);
        EQUAL(errno, 1000 + i);
        EQUAL(tls_value, i);
        tls_value = -i;
        keeps_registers(dune_leave);
        EQUAL(dune_ring(), -1);
        EQUAL(errno, 1000 + i);
        EQUAL(tls_value, -i);
    }
    for (size_t i = 0; i < sizeof(local); i++)
        EQUAL(local[i], 0x5a);
}

static void entering(void)
{
    struct dune_stats before, after;

    EQUAL(dune_init(NULL), 0);
    before = open_stats();
    EQUAL(dune_enter(), 0);
    after = open_stats();
    printf("exits_entering %llu\n", (unsigned long long)(after.exits - before.exits));
    CHECK(after.exits - before.exits < 50);
    EQUAL(after.vcpus, 1);
    open_leave();
}

/* libc's own system calls, in ring 0. */
static void libc(void)
{
    char line[128] = "", *memory;
    pid_t outside = getpid();
    double x;
    int fd;

    open_ring0();
    EQUAL(getpid(), outside);
    memory = malloc(3u << 20);
    CHECK(memory != NULL);
    memset(memory, 7, 3u << 20);
    EQUAL(memory[(3u << 20) - 1], 7);
    free(memory);
    fd = open("/proc/self/status", O_RDONLY);
    CHECK(fd >= 0);
    CHECK(read(fd, line, sizeof(line) - 1) > 0);
    EQUAL(close(fd), 0);
    EQUAL(open("/nowhere/at/all", O_RDONLY), -1);
    EQUAL(errno, ENOENT);
    x = strtod("2.5", NULL);
    printf("from ring 0: %.4s %.2f\n", line, x * 2);
    open_leave();
    printf("from outside\n");
}

static void refusals(void)
{
    struct dune_stats stats;

    EQUAL(dune_ring(), -1);
    EQUAL(dune_enter(), -EINVAL);
    EQUAL(dune_stats(&stats), -EINVAL);
    EQUAL(dune_set_trap_handler(14, NULL, 0), -EPERM);
    CHECK(strstr(dune_error(), "cure") != NULL);
    EQUAL(dune_protect(NULL, 0x1000, 4096, 0), -EPERM);
    CHECK(dune_root() == NULL);
    open_ring0();
    EQUAL(dune_init(NULL), -EALREADY);
    EQUAL(dune_enter(), -EALREADY);
    EQUAL(dune_set_trap_handler(32, NULL, 0), -EINVAL);
    EQUAL(dune_set_trap_handler(8, NULL, 0), -EINVAL);
    EQUAL(dune_set_trap_handler(2, NULL, 0), -EINVAL);
    EQUAL(dune_set_trap_handler(14, NULL, 64), -EINVAL);
    open_leave();
    EQUAL(dune_leave(), -EINVAL);
}

/* ---- ring 3, called from ring 0 ------------------------------------------------------------ */

static void says_ring(void *arg)
{
    *(int *)arg = dune_ring();
}

static void returns_early(void *arg)
{
    dune_return((long)arg + 1);
}

static void nothing(void *arg)
{
    (void)arg;
}

static void run_user(void)
{
    int ring = 77;

    open_ring0();
    EQUAL(dune_run_user(says_ring, &ring, stack_top()), 0);
    EQUAL(ring, 3);
    EQUAL(dune_ring(), 0);
    EQUAL(dune_run_user(returns_early, (void *)41, stack_top()), 42);
    EQUAL(dune_run_user(returns_early, (void *)-43, stack_top()), -42);
    open_leave();
}

/* Many of them once everything is touched: no exit at all. */
static void run_user_costs(void)
{
    struct dune_stats before, after;

    open_ring0();
    EQUAL(dune_run_user(nothing, NULL, stack_top()), 0);
    before = open_stats();
    for (long i = 0; i < CALLS; i++)
        EQUAL(dune_run_user(returns_early, (void *)i, stack_top()), i + 1);
    after = open_stats();
    printf("exits_per_1000_run_user %llu\n", (unsigned long long)(after.exits - before.exits));
    EQUAL(after.exits - before.exits - (after.interrupted - before.interrupted), 0);
    open_leave();
}

static bool answers(struct dune_tf *tf)
{
    if (tf->rax != OWN_CALL)
        return false;
    calls_seen = calls_seen + 1;
    tf->rax = tf->rdi * 2;
    return true;
}

static bool declines(struct dune_tf *tf)
{
    calls_seen += tf->rax == SYS_getppid;
    return false;
}

static bool forwards(struct dune_tf *tf)
{
    dune_forward(tf);
    calls_seen = calls_seen + 1;
    return true;
}

static void makes_own_calls(void *arg)
{
    for (long i = 0; i < (long)arg; i++)
        EQUAL(raw_call(OWN_CALL, i), i * 2);
}

static void asks_for_parent(void *arg)
{
    long parent = raw_call(SYS_getppid, 0);

    for (long i = 1; i < (long)arg; i++)
        EQUAL(raw_call(SYS_getppid, 0), parent);
    dune_return(parent);
}

/* Exits that a run of ring 3 takes, with signals (a timer of the lab's) left out. */
static long long exits_of(void (*entry)(void *), long count, long *result)
{
    struct dune_stats before, after;

    *result = dune_run_user(entry, (void *)(count / 10), stack_top()); /* touches everything */
    calls_seen = 0;
    before = open_stats();
    *result = dune_run_user(entry, (void *)count, stack_top());
    after = open_stats();
    return (long long)(after.exits - before.exits - (after.interrupted - before.interrupted));
}

static void calls_to_ring0(void)
{
    long long exits;
    long result;

    open_ring0();
    EQUAL(dune_set_syscall_handler(answers, 0), 0);
    exits = exits_of(makes_own_calls, CALLS, &result);
    EQUAL(calls_seen, CALLS);
    printf("exits_per_1000_calls_to_ring0 %lld\n", exits);
    EQUAL(exits, 0);
    EQUAL(dune_set_syscall_handler(answers, DUNE_HANDLER_NO_FPU), 0);
    EQUAL(exits_of(makes_own_calls, CALLS, &result), 0);
    EQUAL(calls_seen, CALLS);
    EQUAL(dune_set_syscall_handler(NULL, 0), 0);
    open_leave();
}

static void forwarded_calls(void)
{
    long parent = getppid(), result;
    bool (*handlers[])(struct dune_tf *) = {NULL, declines, forwards};

    open_ring0();
    for (int i = 0; i < 3; i++) {
        EQUAL(dune_set_syscall_handler(handlers[i], 0), 0);
        EQUAL(exits_of(asks_for_parent, CALLS, &result), CALLS);
        EQUAL(result, parent);
        EQUAL(calls_seen, i == 0 ? 0 : i == 1 ? CALLS : CALLS);
    }
    printf("exits_per_1000_forwarded_calls 1000\n");
    open_leave();
}

/* One exit from ring 0, too. */
static void calls_of_ring0(void)
{
    struct dune_stats before, after;
    long parent = getppid();

    open_ring0();
    EQUAL(raw_call(SYS_getppid, 0), parent);
    before = open_stats();
    for (int i = 0; i < CALLS; i++)
        EQUAL(raw_call(SYS_getppid, 0), parent);
    after = open_stats();
    EQUAL(after.syscalls - before.syscalls, CALLS);
    EQUAL(after.exits - before.exits - (after.interrupted - before.interrupted), CALLS);
    open_leave();
}

/* A handler's arithmetic doesn't show in ring 3's vector registers. */
static bool uses_vectors(struct dune_tf *tf)
{
    uint64_t junk[4] = {0xdead, 0xbeef, 0xdead, 0xbeef};

    if (tf->rax != OWN_CALL)
        return false;
    __asm__ volatile("movdqu %0, %%xmm0\n\tmovdqu %0, %%xmm7\n\tmovdqu %0, %%xmm15\n\tfldpi"
                     :
                     : "m"(junk)
                     : "xmm0", "xmm7", "xmm15", "memory");
    return true;
}

static void checks_vectors(void *arg)
{
    uint64_t in[2] = {0x0123456789abcdef, 0xfedcba9876543210}, out[3][2];

    (void)arg;
    for (int i = 0; i < 100; i++) {
        __asm__ volatile("movdqu %[in], %%xmm0\n\tmovdqu %[in], %%xmm7\n\tmovdqu %[in], %%xmm15\n\t"
                         "syscall\n\t"
                         "movdqu %%xmm0, %[a]\n\tmovdqu %%xmm7, %[b]\n\tmovdqu %%xmm15, %[c]"
                         : [a] "=m"(out[0]), [b] "=m"(out[1]), [c] "=m"(out[2])
                         : "a"(OWN_CALL), [in] "m"(in)
                         : "rcx", "r11", "xmm0", "xmm7", "xmm15", "memory");
        for (int j = 0; j < 3; j++)
            EQUAL(memcmp(in, out[j], sizeof(in)), 0);
    }
}

/* The same of AVX's upper halves. */
static bool uses_avx(struct dune_tf *tf)
{
    if (tf->rax != OWN_CALL)
        return false;
    __asm__ volatile("vxorps %%ymm5, %%ymm5, %%ymm5\n\tvxorps %%ymm12, %%ymm12, %%ymm12"
                     :
                     :
                     : "xmm5", "xmm12");
    return true;
}

static void checks_avx(void *arg)
{
    uint64_t in[4] = {1, 2, 3, 4}, out[2][4];

    (void)arg;
    for (int i = 0; i < 100; i++) {
        __asm__ volatile("vmovdqu %[in], %%ymm5\n\tvmovdqu %[in], %%ymm12\n\tsyscall\n\t"
                         "vmovdqu %%ymm5, %[a]\n\tvmovdqu %%ymm12, %[b]"
                         : [a] "=m"(out[0]), [b] "=m"(out[1])
                         : "a"(OWN_CALL), [in] "m"(in)
                         : "rcx", "r11", "xmm5", "xmm12", "memory");
        EQUAL(memcmp(in, out[0], sizeof(in)), 0);
        EQUAL(memcmp(in, out[1], sizeof(in)), 0);
    }
}

static void vectors_kept(void)
{
    bool avx = __builtin_cpu_supports("avx");

    open_ring0();
    EQUAL(dune_set_syscall_handler(uses_vectors, 0), 0);
    EQUAL(dune_run_user(checks_vectors, NULL, stack_top()), 0);
    if (avx) {
        EQUAL(dune_set_syscall_handler(uses_avx, 0), 0);
        EQUAL(dune_run_user(checks_avx, NULL, stack_top()), 0);
    }
    printf("AVX %s\n", avx ? "kept" : "is not there");
    open_leave();
}

/* ---- a ring 3 that stays ------------------------------------------------------------------- */

static void user_from_ring0(void)
{
    open_ring0();
    EQUAL(dune_set_syscall_handler(answers, 0), 0);
    EQUAL(dune_enter_user(), 0);
    EQUAL(dune_ring(), 3);
    for (long i = 0; i < 100; i++)
        EQUAL(raw_call(OWN_CALL, i), 2 * i);
    EQUAL(calls_seen, 100);
    printf("from ring 3\n");
    open_leave();
    EQUAL(dune_enter(), 0);
    EQUAL(dune_set_syscall_handler(NULL, 0), 0);
    EQUAL(dune_enter_user(), 0);
    EQUAL(raw_call(OWN_CALL, 1), -ENOSYS);
    open_leave();
}

static void user_from_outside(void)
{
    struct dune_stats stats;

    EQUAL(dune_init(NULL), 0);
    EQUAL(dune_enter_user(), 0);
    EQUAL(dune_ring(), 3);
    EQUAL(dune_stats(&stats), -EPERM);
    EQUAL(dune_enter_user(), -EALREADY);
    printf("from ring 3\n");
    open_leave();
    EQUAL(dune_enter(), 0);
    EQUAL(dune_ring(), 0);
    open_leave();
}

/* dune_run_user() inside a handler of the outer one's system call. */
static bool runs_another(struct dune_tf *tf)
{
    static uint8_t stack[STACK_BYTES] __attribute__((aligned(4096)));

    if (tf->rax != OWN_CALL)
        return false;
    tf->rax = (uint64_t)dune_run_user(returns_early, (void *)tf->rdi, stack + sizeof(stack));
    return true;
}

static void calls_outward(void *arg)
{
    for (long i = 0; i < 100; i++)
        EQUAL(raw_call(OWN_CALL, i), i + 1);
    dune_return((long)arg);
}

static void nested_runs(void)
{
    open_ring0();
    EQUAL(dune_set_syscall_handler(runs_another, 0), 0);
    EQUAL(dune_run_user(calls_outward, (void *)9, stack_top()), 9);
    EQUAL(dune_run_user(calls_outward, (void *)8, stack_top()), 8);
    open_leave();
}

static bool ends_it(struct dune_tf *tf)
{
    if (tf->rax == OWN_CALL)
        dune_end_user((long)tf->rdi + 5);
    return true;
}

static void calls_for_ever(void *arg)
{
    for (;;)
        raw_call(OWN_CALL, (long)arg);
}

static void ended_by_handler(void)
{
    open_ring0();
    EQUAL(dune_set_syscall_handler(ends_it, 0), 0);
    for (long i = 0; i < 100; i++)
        EQUAL(dune_run_user(calls_for_ever, (void *)i, stack_top()), i + 5);
    open_leave();
}

int main(int argc, char **argv)
{
    static const struct open_case cases[] = {
        {"round_trips", round_trips},
        {"entering", entering},
        {"libc", libc},
        {"refusals", refusals},
        {"run_user", run_user},
        {"run_user_costs", run_user_costs},
        {"calls_to_ring0", calls_to_ring0},
        {"forwarded_calls", forwarded_calls},
        {"calls_of_ring0", calls_of_ring0},
        {"vectors_kept", vectors_kept},
        {"user_from_ring0", user_from_ring0},
        {"user_from_outside", user_from_outside},
        {"nested_runs", nested_runs},
        {"ended_by_handler", ended_by_handler},
        {NULL, NULL},
    };

    return open_main(argc, argv, cases);
}
