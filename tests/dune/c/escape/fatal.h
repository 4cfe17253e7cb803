/* Attempts that Linux, too, answers with the end of the process: each in one of its own. The
 * harness tells how it ended. */
#ifndef ESCAPE_FATAL_H
#define ESCAPE_FATAL_H

#include "kit.h"

static void handler_that_must_not_run(int number)
{
    (void)number;
    CALL(SYS_exit_group, 66);
}

static void handle_faults(int flags)
{
    struct sigaction action = {.sa_handler = handler_that_must_not_run, .sa_flags = flags};

    for (size_t n = 0; n < sizeof watched / sizeof *watched; n++)
        sigaction(watched[n], &action, NULL);
}

/* The frame would have to be written where the stack pointer is. */
static void fault_with_stack_at(uint64_t stack)
{
    handle_faults(0);
    __asm__ volatile("mov %0, %%rsp\n\txor %%eax, %%eax\n\tmov (%%rax), %%eax" ::"r"(stack)
                     : "memory");
}

static void fatal_stack_in_secret(void)
{
    fault_with_stack_at(given.target + 8192);
}

static void fatal_stack_in_host_stack(void)
{
    fault_with_stack_at(given.vault + 0x1001f000);
}

static void fatal_stack_at_guard(void)
{
    fault_with_stack_at(given.vault - GIB + 64);
}

static void fatal_stack_nowhere(void)
{
    fault_with_stack_at(0x8000000000000000);
}

static void fatal_trap_with_stack_in_secret(void)
{
    handle_faults(0);
    __asm__ volatile("mov %0, %%rsp\n\tint3" ::"r"(given.target + 8192) : "memory");
}

static void fatal_kill_with_stack_in_secret(void)
{
    struct sigaction action = {.sa_handler = handler_that_must_not_run};
    long pid = getpid();

    sigaction(SIGUSR1, &action, NULL);
    __asm__ volatile("mov %0, %%rsp\n\tsyscall\n1: jmp 1b" ::"r"(given.target + 8192),
                     "a"(SYS_kill), "D"(pid), "S"(SIGUSR1)
                     : "rcx", "r11", "memory");
}

/* An alternate stack is checked when it is set; its end must be, too. */
static void fatal_alternate_stack(void)
{
    stack_t stack = {.ss_sp = (void *)given.target, .ss_size = 32768};

    if (CALL(SYS_sigaltstack, &stack, 0) < 0)
        raise(SIGSEGV); /* refused: as good */
    handle_faults(SA_ONSTACK);
    __asm__ volatile("movl $1, 8" ::: "memory");
}

static void fatal_thread_stack(void)
{
    /* CLONE_VM | FS | FILES | SIGHAND | THREAD | SYSVSEM, on a stack in the secret */
    long result = CALL(SYS_clone, 0x50f00, given.target + 8192, 0, 0, 0);

    if (result < 0)
        raise(SIGSEGV); /* refused: as good */
    if (result == 0)
        __asm__ volatile("push $0");
    usleep(2000000);
    CALL(SYS_exit_group, 67);
}

static void fatal_thread_fs(void)
{
    static char stack[65536] __attribute__((aligned(64)));
    /* ... and CLONE_SETTLS */
    long result = CALL(SYS_clone, 0xd0f00, stack + sizeof stack, 0, 0, given.target);

    if (result < 0)
        raise(SIGSEGV);
    if (result == 0)
        __asm__ volatile("movq $0, %fs:0");
    usleep(2000000);
    CALL(SYS_exit_group, 67);
}

static void fatal_handler_in_vault(void)
{
    struct sigaction action = {.sa_handler = (void (*)(int))given.vault};

    signal(SIGSEGV, SIG_DFL);
    if (sigaction(SIGUSR1, &action, NULL) != 0)
        raise(SIGSEGV);
    raise(SIGUSR1);
}

static void fatal_restorer_in_vault(void)
{
    struct {
        void *handler;
        uint64_t flags;
        void *restorer;
        uint64_t mask;
    } action = {(void *)SIG_IGN, 0x04000000, (void *)given.vault, 0};
    static const unsigned char just_return[] = {0xc3};
    void *code =
        mmap(NULL, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    signal(SIGSEGV, SIG_DFL);
    memcpy(code, just_return, 1);
    action.handler = code;
    if (CALL(SYS_rt_sigaction, SIGUSR1, &action, 0, 8) < 0)
        raise(SIGSEGV);
    CALL(SYS_kill, getpid(), SIGUSR1);
}

static const struct {
    const char *name;
    void (*run)(void);
} fatal[] = {
    {"stack-in-secret", fatal_stack_in_secret},
    {"stack-in-host-stack", fatal_stack_in_host_stack},
    {"stack-at-guard", fatal_stack_at_guard},
    {"stack-nowhere", fatal_stack_nowhere},
    {"trap-with-stack-in-secret", fatal_trap_with_stack_in_secret},
    {"kill-with-stack-in-secret", fatal_kill_with_stack_in_secret},
    {"alternate-stack", fatal_alternate_stack},
    {"thread-stack", fatal_thread_stack},
    {"thread-fs", fatal_thread_fs},
    {"handler-in-vault", fatal_handler_in_vault},
    {"restorer-in-vault", fatal_restorer_in_vault},
};

#endif
