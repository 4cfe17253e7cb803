/* dune_signals.c: system calls about signals, forwarded calls that they interrupt, threads outside,
 * and faults of the host side. */
#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/time.h>

int dune_touch_memory(uint64_t address, int write, const uint64_t *mask);

/* ---- system calls
 * ------------------------------------------------------------------------------------ */

static void case_sigaction(void)
{
    struct dune_sigaction *old = (struct dune_sigaction *)(GUEST_STACK + 64);
    struct dune_call call = {__NR_rt_sigaction, {SIGUSR1, 0, GUEST_STACK + 64, 8}};

    EQUAL(act(SIGKILL, HANDLER_1, 0, 0), -EINVAL);
    EQUAL(act(SIGSTOP, 0, 0, 0), -EINVAL);
    EQUAL(act(0, HANDLER_1, 0, 0), -EINVAL);
    EQUAL(act(65, HANDLER_1, 0, 0), -EINVAL);
    EQUAL(act(SIGUSR1, BASE + 0x1000, 0, 0), -EFAULT);
    EQUAL(cpu->counts.refused, 1);
    EQUAL(act(SIGUSR1, HANDLER_1, SA_RESTART | 0x400, ~0ull), 0);
    EQUAL(old->handler, 0);
    EQUAL(dune_do_rt_sigaction(cpu, &call), 0);
    EQUAL(old->handler, HANDLER_1);
    EQUAL(old->flags, SA_RESTART | SA_RESTORER); /* what the kernel doesn't know, it forgets */
    EQUAL(old->mask, ~(MASK(SIGKILL) | MASK(SIGSTOP)));
    EQUAL(old->restorer, restorer);
    call.arg[0] = SIGKILL;
    EQUAL(dune_do_rt_sigaction(cpu, &call), 0);
    EQUAL(old->handler, 0);
    call.arg[3] = 16;
    EQUAL(dune_do_rt_sigaction(cpu, &call), -EINVAL);
    call.arg[3] = 8;
    call.arg[0] = SIGUSR1;
    call.arg[1] = BASE + DUNE_VAULT_AT;
    EQUAL(dune_do_rt_sigaction(cpu, &call), -EFAULT);
    call.arg[1] = 0;
    call.arg[2] = BASE + DUNE_VAULT_AT;
    EQUAL(dune_do_rt_sigaction(cpu, &call), -EFAULT);
    EQUAL(vault->base, BASE);
}

static void sigreturn_blocks(void)
{
    EQUAL(act(SIGUSR1, HANDLER_1, 0, 0), 0);
    EQUAL(act(SIGUSR2, HANDLER_2, 0, 0), 0);
    send(SIGUSR1);
    dune_deliver(cpu);
    frame_on_top()->mask = ~0ull; /* as a handler may do by its ucontext */
    send(SIGUSR2);
    EQUAL(cpu->pending.recorded, 1);
    return_from_handler();
    EQUAL(cpu->pending.recorded, 0);
    EQUAL(run.immediate_exit, 0);
    EQUAL(host_mask(), ~(MASK(SIGKILL) | MASK(SIGSTOP)));
    EQUAL(pending_at_kernel(), MASK(SIGUSR2));
}
static void case_sigreturn(void)
{
    on_host_stack(sigreturn_blocks);
}

/* The same calls to the kernel and here. */
static void case_altstack(void)
{
    static uint8_t room[65536];
    uint64_t at = (uint64_t)room;
    uint64_t tried[][3] = {{at, 0, 65536}, {at, 0, 100},           {at, 2, 65536},
                           {at, 1, 65536}, {at, 4, 65536},         {at, 3, 65536},
                           {0, 2, 0},      {at, 1u << 31, 65536},  {at, 1u << 31 | 2, 65536},
                           {at, 0, 2047},  {at, 0x40000000, 65536}};
    uint64_t *stack = (uint64_t *)GUEST_STACK;
    struct dune_call call = {__NR_sigaltstack, {GUEST_STACK, GUEST_STACK + 64}};

    for (unsigned i = 0; i < sizeof(tried) / sizeof(*tried); i++) {
        uint64_t old[3] = {9, 9, 9};
        long due = dune_sys2(__NR_sigaltstack, tried[i], old);

        memcpy(stack, tried[i], sizeof(tried[i]));
        memset(stack + 8, 9, 24);
        EQUAL(dune_do_sigaltstack(cpu, &call), due);
        for (int k = 0; due == 0 && k < 3; k++)
            EQUAL(k == 1 ? (uint32_t)stack[8 + k] : stack[8 + k],
                  k == 1 ? (uint32_t)old[k] : old[k]);
    }
    stack[0] = BASE + 0x1000;
    stack[1] = 0;
    stack[2] = 65536;
    EQUAL(dune_do_sigaltstack(cpu, &call), -EFAULT);
    stack[0] = GUEST_STACK;
    stack[2] = GUEST_BYTES;
    EQUAL(dune_do_sigaltstack(cpu, &call), 0);
    EQUAL(dune_do_sigaltstack(cpu, &call), -EPERM);
    call.arg[0] = 0;
    EQUAL(dune_do_sigaltstack(cpu, &call), 0);
    EQUAL((uint32_t)stack[9], DUNE_SS_ONSTACK);
}

/* ---- forwarded calls
 * ---------------------------------------------------------------------------------- */

static void in_a_while(int number)
{
    struct itimerval soon = {.it_value.tv_usec = 30000};

    CHECK(number == SIGALRM);
    setitimer(ITIMER_REAL, &soon, NULL);
}

static void forward(void)
{
    uint64_t none[6] = {0}, mask = 0;

    cpu->pending.keyed = 0;
    EQUAL(dune_forward_raw(cpu, __NR_getpid, none), getpid());
    EQUAL(dune_forward_raw(cpu, 9999, none), -ENOSYS);
    EQUAL(act(SIGUSR1, HANDLER_1, 0, 0), 0);
    send(SIGUSR1);
    EQUAL(dune_forward_raw(cpu, __NR_getpid, none), DUNE_RESTART);
    dune_deliver(cpu);
    EQUAL(dune_forward_raw(cpu, __NR_getpid, none), getpid());
    return_from_handler();
    /* One that the call itself lets in comes behind it, not in its place. */
    set_host_mask(MASK(SIGUSR1));
    send(SIGUSR1);
    EQUAL(dune_forward_raw(cpu, __NR_rt_sigprocmask,
                           (uint64_t[6]){SIG_SETMASK, (uint64_t)&mask, 0, 8}),
          0);
    EQUAL(cpu->pending.recorded, 1);
    EQUAL(cpu->pending.mask, 0);
}
static void case_forward(void)
{
    on_host_stack(forward);
}

static void forward_restart(void)
{
    struct timespec second = {1, 0};
    uint8_t byte;
    int fd[2];

    CHECK(pipe(fd) == 0);
    EQUAL(act(SIGALRM, HANDLER_1, SA_RESTART, 0), 0);
    in_a_while(SIGALRM);
    EQUAL(dune_forward_raw(cpu, __NR_read, (uint64_t[6]){fd[0], (uint64_t)&byte, 1}), DUNE_RESTART);
    EQUAL(cpu->pending.recorded, 1);
    EQUAL(cpu->pending.blocked, 0);
    dune_deliver(cpu);
    return_from_handler();
    in_a_while(SIGALRM);
    EQUAL(dune_forward_raw(cpu, __NR_nanosleep, (uint64_t[6]){(uint64_t)&second, 0}), -EINTR);
    dune_deliver(cpu);
    return_from_handler();
    EQUAL(act(SIGALRM, HANDLER_1, 0, 0), 0);
    in_a_while(SIGALRM);
    EQUAL(dune_forward_raw(cpu, __NR_read, (uint64_t[6]){fd[0], (uint64_t)&byte, 1}), -EINTR);
}
static void case_forward_restart(void)
{
    on_host_stack(forward_restart);
}

/* A call that waits with a mask of its own: the frame has the mask before, the handler runs with
 * the call's and its own. */
static void wait_with_mask(uint64_t nr, const uint64_t arg[6])
{
    set_host_mask(MASK(SIGALRM) | MASK(SIGHUP));
    in_a_while(SIGALRM);
    EQUAL(dune_forward_raw(cpu, nr, arg), -EINTR);
    EQUAL(cpu->pending.mask, MASK(SIGALRM) | MASK(SIGHUP));
    dune_deliver(cpu);
    EQUAL(frame_on_top()->mask, MASK(SIGALRM) | MASK(SIGHUP));
    EQUAL(host_mask(), MASK(SIGUSR2) | MASK(SIGTERM) | MASK(SIGALRM));
    return_from_handler();
    EQUAL(host_mask(), MASK(SIGALRM) | MASK(SIGHUP));
}

static void forward_waits(void)
{
    uint64_t *scratch = (uint64_t *)cpu->scratch, at = (uint64_t)scratch;
    struct epoll_event event;
    int fd = epoll_create1(0);

    EQUAL(act(SIGALRM, HANDLER_1, 0, MASK(SIGTERM)), 0);
    scratch[0] = MASK(SIGUSR2);
    scratch[1] = at;
    scratch[2] = 8;
    wait_with_mask(__NR_rt_sigsuspend, (uint64_t[6]){at, 8});
    wait_with_mask(__NR_ppoll, (uint64_t[6]){0, 0, 0, at, 8});
    wait_with_mask(__NR_pselect6, (uint64_t[6]){0, 0, 0, 0, 0, at + 8});
    wait_with_mask(__NR_epoll_pwait, (uint64_t[6]){fd, (uint64_t)&event, 1, -1, at, 8});
    wait_with_mask(__NR_epoll_pwait2, (uint64_t[6]){fd, (uint64_t)&event, 1, 0, at, 8});
}
static void case_forward_waits(void)
{
    on_host_stack(forward_waits);
}

/* ---- threads outside, and what existed before
 * ------------------------------------------------------------ */

static volatile int outside_calls;

static void outside(int number, siginfo_t *info, void *ucontext)
{
    EQUAL(number, info->si_signo);
    EQUAL(host_mask(), MASK(SIGHUP) | MASK(SIGALRM) | MASK(SIGUSR1));
    EQUAL(((struct dune_sigframe *)((char *)ucontext - 8))->mask, MASK(SIGHUP));
    outside_calls++;
}

static void outside_dies(void)
{
    EQUAL(act(SIGTERM, HANDLER_1, 0, 0), 0);
    vault->sighand.action[SIGTERM].handler = 0; /* as when it was taken away just now */
    cpu->state = DUNE_VCPU_LEFT;
    send(SIGTERM);
}

static void case_outside(void)
{
    set_host_mask(MASK(SIGHUP));
    EQUAL(act(SIGUSR1, (uint64_t)outside, SA_SIGINFO | SA_RESETHAND, MASK(SIGALRM)), 0);
    send(SIGUSR1);
    EQUAL(outside_calls, 1);
    EQUAL(host_mask(), MASK(SIGHUP));
    EQUAL(vault->sighand.action[SIGUSR1].handler, 0);
    EQUAL(act(SIGUSR1, 1, 0, 0), 0);
    send(SIGUSR1);
    EQUAL(act(SIGBUS, 1, 0, 0), 0);
    send(SIGBUS);
    EQUAL(outside_calls, 1);
    EQUAL(killed_by(status_of(outside_dies)), SIGTERM);
}

static void case_inherits(void)
{
    struct dune_sigaction host;

    native_action(SIGUSR1, outside, SA_RESTART | SA_ONSTACK, MASK(SIGALRM));
    native_action(SIGUSR2, (void *)1, 0, 0);
    EQUAL(dune_signals_init(vault), 0);
    EQUAL(dune_signals_init(vault), 0);
    EQUAL(vault->sighand.action[SIGUSR1].handler, outside);
    EQUAL(vault->sighand.action[SIGUSR2].handler, 1);
    dune_sys4(__NR_rt_sigaction, SIGUSR1, 0, &host, 8);
    EQUAL(host.handler, dune_host_signal_entry);
    EQUAL(host.flags, SA_RESTART | SA_ONSTACK | SA_SIGINFO | SA_RESTORER);
    EQUAL(host.mask, ~(MASK(SIGKILL) | MASK(SIGSTOP)));
    dune_sys4(__NR_rt_sigaction, SIGSEGV, 0, &host, 8);
    EQUAL(host.handler, dune_host_signal_entry);
    dune_sys4(__NR_rt_sigaction, SIGUSR2, 0, &host, 8);
    EQUAL(host.handler, 1);
    dune_signals_end(vault);
    dune_sys4(__NR_rt_sigaction, SIGUSR1, 0, &host, 8);
    EQUAL(host.handler, outside);
    dune_sys4(__NR_rt_sigaction, SIGSEGV, 0, &host, 8);
    EQUAL(host.handler, 0);
}

/* ---- probes and faults of the host side
 * ----------------------------------------------------------------- */

static void touch(void)
{
    uint8_t *page = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    siginfo_t *info = (siginfo_t *)cpu->probed;
    uint64_t mask = 0;

    dune_signals_init(vault);
    EQUAL(dune_touch_memory((uint64_t)page + 5, 0, &mask), 1);
    EQUAL(info->si_signo, SIGSEGV);
    EQUAL(info->si_code, SEGV_ACCERR);
    EQUAL(info->si_addr, page + 5);
    EQUAL(cpu->pending.cr2, page + 5);
    EQUAL(cpu->pending.trapno, 14);
    EQUAL(cpu->pending.recorded, 0);
    mprotect(page, 4096, PROT_READ);
    EQUAL(dune_touch_memory((uint64_t)page + 5, 0, &mask), 0);
    EQUAL(dune_touch_memory((uint64_t)page + 5, 1, &mask), 1);
    EQUAL(cpu->pending.error, 7);
    EQUAL(act(SIGSEGV, HANDLER_1, 0, 0), 0);
    set_host_mask(MASK(SIGSEGV));
    send(SIGSEGV); /* one that only waited for the mask: no fault, but the probe ends */
    info->si_signo = 0;
    EQUAL(dune_touch_memory((uint64_t)page + 5, 0, &mask), 1);
    EQUAL(info->si_signo, 0);
    EQUAL(cpu->pending.recorded, 1);
}
static void case_touch(void)
{
    on_host_stack(touch);
}

static void host_fault(void)
{
    dune_signals_init(vault);
    __asm__ volatile("movb $1, 8");
}
static void case_host_fault(void)
{
    EQUAL(WEXITSTATUS(status_of(host_fault)), 99);
}

/* Stopped and continued, a sleep goes on by restart_syscall() inside dune_forward_raw(). */
static void sleeps(void)
{
    struct timespec time = {0, 200000000};

    EQUAL(dune_forward_raw(cpu, __NR_nanosleep, (uint64_t[6]){(uint64_t)&time, 0}), 0);
}
static void case_stopped(void)
{
    int status;
    pid_t pid = fork();

    if (pid == 0) {
        on_host_stack(sleeps);
        _exit(0);
    }
    usleep(50000);
    kill(pid, SIGSTOP);
    CHECK(waitpid(pid, &status, WUNTRACED) == pid && WIFSTOPPED(status));
    kill(pid, SIGCONT);
    CHECK(waitpid(pid, &status, 0) == pid);
    EQUAL(status, 0);
}
