/* dune_signals.c: how a signal goes from the kernel to the guest's handler. */
#define HANDLER_1 0x402000
#define HANDLER_2 0x403000

static long act(int number, uint64_t handler, uint64_t flags, uint64_t mask)
{
    struct dune_sigaction *action = (struct dune_sigaction *)GUEST_STACK;
    struct dune_call call = {__NR_rt_sigaction, {number, GUEST_STACK, GUEST_STACK + 64, 8}};

    *action = (struct dune_sigaction){handler, flags | SA_RESTORER, (uint64_t)restorer, mask};
    return dune_do_rt_sigaction(cpu, &call);
}

static struct dune_sigframe *frame_on_top(void)
{
    return (struct dune_sigframe *)guest.tf.rsp;
}

static void return_from_handler(void)
{
    struct dune_call call = {.nr = __NR_rt_sigreturn};

    guest.where = DUNE_AT_SYSCALL;
    guest.tf.rsp += 8;
    EQUAL(dune_do_rt_sigreturn(cpu, &call), DUNE_NO_RESULT);
}

static void set_host_mask(uint64_t mask)
{
    dune_sys4(__NR_rt_sigprocmask, SIG_SETMASK, &mask, 0, 8);
}

static uint64_t pending_at_kernel(void)
{
    uint64_t set = 0;

    dune_sys2(__NR_rt_sigpending, &set, 8);
    return set;
}

/* Status of a process that does this. */
static int status_of(void (*f)(void))
{
    int status;
    pid_t pid = fork();

    if (pid == 0) {
        on_host_stack(f);
        _exit(0);
    }
    CHECK(waitpid(pid, &status, 0) == pid);
    return status;
}

static int killed_by(int status)
{
    return WIFSIGNALED(status) ? WTERMSIG(status) : -status;
}

/* ---- recorded, delivered, returned from ---------------------------------------------------------
 */

static void recorded(void)
{
    struct dune_tf before = guest.tf;
    siginfo_t *info;

    set_host_mask(MASK(SIGHUP));
    EQUAL(act(SIGUSR1, HANDLER_1, SA_SIGINFO, MASK(SIGALRM) | MASK(SIGKILL)), 0);
    send(SIGUSR1);
    EQUAL(cpu->pending.recorded, 1);
    EQUAL(run.immediate_exit, 1);
    EQUAL(host_mask(), ~(MASK(SIGKILL) | MASK(SIGSTOP)));
    send(SIGUSR1); /* waits at the kernel */
    dune_deliver(cpu);
    EQUAL(cpu->pending.recorded, 0);
    EQUAL(run.immediate_exit, 0);
    EQUAL(host_mask(), MASK(SIGHUP) | MASK(SIGALRM) | MASK(SIGUSR1));
    EQUAL(pending_at_kernel(), MASK(SIGUSR1));
    EQUAL(guest.tf.rip, HANDLER_1);
    EQUAL(frame_on_top()->mask, MASK(SIGHUP));
    EQUAL(frame_on_top()->rip, before.rip);
    info = (siginfo_t *)frame_on_top()->info;
    EQUAL(info->si_code, SI_TKILL);
    EQUAL(info->si_pid, getpid());
    return_from_handler(); /* and the second arrives with that */
    EQUAL(cpu->pending.recorded, 1);
    CHECK(memcmp(&guest.tf, &before, sizeof(before)) == 0);
    dune_deliver(cpu);
    EQUAL(guest.tf.rip, HANDLER_1);
    return_from_handler();
    EQUAL(cpu->pending.recorded, 0);
    CHECK(memcmp(&guest.tf, &before, sizeof(before)) == 0);
    EQUAL(host_mask(), MASK(SIGHUP));
}
static void case_recorded(void)
{
    on_host_stack(recorded);
}

/* Two wait: Linux builds the lower number's frame first, so that the other's handler runs first. */
static void nested(void)
{
    struct dune_tf before = guest.tf;
    uint64_t first;

    EQUAL(act(SIGUSR1, HANDLER_1, SA_SIGINFO, 0), 0);
    EQUAL(act(SIGUSR2, HANDLER_2, SA_SIGINFO, 0), 0);
    set_host_mask(MASK(SIGUSR1) | MASK(SIGUSR2));
    send(SIGUSR2);
    send(SIGUSR1);
    set_host_mask(0);
    dune_deliver(cpu);
    EQUAL(guest.tf.rip, HANDLER_2);
    EQUAL(frame_on_top()->rip, HANDLER_1);
    EQUAL(frame_on_top()->mask, MASK(SIGUSR1));
    EQUAL(host_mask(), MASK(SIGUSR1) | MASK(SIGUSR2));
    first = frame_on_top()->rsp;
    CHECK(first < before.rsp - 128 && guest.tf.rsp < first - 128);
    return_from_handler();
    EQUAL(guest.tf.rip, HANDLER_1);
    EQUAL(guest.tf.rsp, first);
    EQUAL(host_mask(), MASK(SIGUSR1));
    return_from_handler();
    CHECK(memcmp(&guest.tf, &before, sizeof(before)) == 0);
    EQUAL(host_mask(), 0);
}
static void case_nested(void)
{
    on_host_stack(nested);
}

static void raced_to(uint64_t handler, int number)
{
    set_host_mask(0);
    EQUAL(act(number, HANDLER_1, 0, 0), 0);
    send(number);
    EQUAL(cpu->pending.recorded, 1);
    EQUAL(act(number, handler, 0, 0), 0);
    dune_deliver(cpu);
    EQUAL(cpu->pending.recorded, 0);
    EQUAL(guest.tf.rip, 0x401000);
    EQUAL(host_mask(), 0);
}
static void raced_ignored(void)
{
    raced_to(1, SIGTERM);
    raced_to(1, SIGSEGV);
    raced_to(0, SIGCHLD);
}
static void raced_term(void)
{
    raced_to(0, SIGTERM);
}
static void raced_segv(void)
{
    raced_to(0, SIGSEGV);
}
static void case_raced(void)
{
    EQUAL(status_of(raced_ignored), 0);
    EQUAL(killed_by(status_of(raced_term)), SIGTERM);
    EQUAL(killed_by(status_of(raced_segv)), SIGSEGV);
}

static void resethand(void)
{
    struct dune_sigaction host;

    EQUAL(act(SIGUSR1, HANDLER_1, SA_RESETHAND, 0), 0);
    send(SIGUSR1);
    dune_deliver(cpu);
    EQUAL(guest.tf.rip, HANDLER_1);
    EQUAL(vault->sighand.action[SIGUSR1].handler, 0);
    dune_sys4(__NR_rt_sigaction, SIGUSR1, 0, &host, 8);
    EQUAL(host.handler, 0);
}
static void case_resethand(void)
{
    on_host_stack(resethand);
}

static void nodefer(void)
{
    EQUAL(act(SIGUSR1, HANDLER_1, SA_NODEFER, MASK(SIGHUP)), 0);
    send(SIGUSR1);
    dune_deliver(cpu);
    EQUAL(host_mask(), MASK(SIGHUP));
}
static void case_nodefer(void)
{
    on_host_stack(nodefer);
}

static void in_shim(void)
{
    struct dune_tf trap = guest.tf;

    EQUAL(act(SIGUSR1, HANDLER_1, 0, 0), 0);
    guest.where = DUNE_IN_SHIM;
    send(SIGUSR1);
    dune_deliver(cpu);
    EQUAL(cpu->attention, DUNE_ATTENTION_PENDING);
    EQUAL(cpu->pending.recorded, 1);
    EQUAL(run.immediate_exit, 0);
    guest.where = DUNE_AT_TRAP;
    guest.trap = &trap;
    dune_deliver(cpu);
    EQUAL(cpu->attention, 0);
    EQUAL(guest.tf.rip, HANDLER_1);
}
static void case_in_shim(void)
{
    on_host_stack(in_shim);
}

/* ---- the guest's own faults
 * ----------------------------------------------------------------------- */

static const struct dune_tf fault = {.vector = 14, .error = 7, .cr2 = 0x1234};

static void forced(void)
{
    siginfo_t *info;

    EQUAL(act(SIGSEGV, HANDLER_1, SA_SIGINFO, 0), 0);
    dune_force_signal(cpu, SIGSEGV, SEGV_ACCERR, 0x1234, &fault);
    EQUAL(guest.tf.rip, HANDLER_1);
    EQUAL(frame_on_top()->rip, 0x401000);
    EQUAL(frame_on_top()->trapno, 14);
    EQUAL(frame_on_top()->error, 7);
    EQUAL(frame_on_top()->cr2, 0x1234);
    info = (siginfo_t *)frame_on_top()->info;
    EQUAL(info->si_signo, SIGSEGV);
    EQUAL(info->si_code, SEGV_ACCERR);
    EQUAL(info->si_addr, 0x1234);
    EQUAL(host_mask(), MASK(SIGSEGV));
}
static void case_forced(void)
{
    on_host_stack(forced);
}

/* The fault's frame comes first, and what was on its way gets its own on top: or waits. */
static void forced_while_recorded(void)
{
    EQUAL(act(SIGSEGV, HANDLER_1, SA_SIGINFO, 0), 0);
    EQUAL(act(SIGUSR1, HANDLER_2, SA_SIGINFO, 0), 0);
    send(SIGUSR1);
    dune_force_signal(cpu, SIGSEGV, SEGV_MAPERR, 0x1234, &fault);
    dune_deliver(cpu);
    EQUAL(guest.tf.rip, HANDLER_2);
    EQUAL(frame_on_top()->rip, HANDLER_1);
    EQUAL(frame_on_top()->mask, MASK(SIGSEGV));
    return_from_handler();
    return_from_handler();
    EQUAL(host_mask(), 0);
    EQUAL(act(SIGSEGV, HANDLER_1, SA_SIGINFO, MASK(SIGUSR1)), 0);
    send(SIGUSR1);
    EQUAL(cpu->pending.recorded, 1);
    dune_force_signal(cpu, SIGSEGV, SEGV_MAPERR, 0x1234, &fault);
    dune_deliver(cpu);
    EQUAL(guest.tf.rip, HANDLER_1);
    EQUAL(cpu->pending.recorded, 0);
    EQUAL(pending_at_kernel(), MASK(SIGUSR1));
    return_from_handler();
    EQUAL(cpu->pending.recorded, 1);
    dune_deliver(cpu);
    EQUAL(guest.tf.rip, HANDLER_2);
}
static void case_forced_while_recorded(void)
{
    on_host_stack(forced_while_recorded);
}

static void forced_when_blocked(void)
{
    EQUAL(act(SIGSEGV, HANDLER_1, SA_SIGINFO, 0), 0);
    set_host_mask(MASK(SIGSEGV));
    dune_force_signal(cpu, SIGSEGV, SEGV_MAPERR, 0x1234, &fault);
}
static void forced_when_ignored(void)
{
    EQUAL(act(SIGFPE, 1, 0, 0), 0);
    dune_force_signal(cpu, SIGFPE, FPE_INTDIV, 0x1234, &fault);
}
static void forced_when_default(void)
{
    dune_force_signal(cpu, SIGILL, ILL_ILLOPN, 0x1234, &fault);
}
static void case_forced_blocked(void)
{
    EQUAL(killed_by(status_of(forced_when_blocked)), SIGSEGV);
    EQUAL(killed_by(status_of(forced_when_ignored)), SIGFPE);
    EQUAL(killed_by(status_of(forced_when_default)), SIGILL);
}

/* A frame that doesn't fit becomes a SIGSEGV of the kernel's, on the alternate stack if need be. */
static void bad_stack_helped(void)
{
    EQUAL(act(SIGUSR1, HANDLER_1, SA_SIGINFO, 0), 0);
    EQUAL(act(SIGSEGV, HANDLER_2, SA_SIGINFO | SA_ONSTACK, 0), 0);
    cpu->altstack[0] = GUEST_STACK + 0x8000;
    cpu->altstack[2] = 0x8000;
    guest.tf.rsp = 64;
    send(SIGUSR1);
    dune_deliver(cpu);
    EQUAL(guest.tf.rip, HANDLER_2);
    EQUAL(guest.tf.rdi, SIGSEGV);
    EQUAL(((siginfo_t *)frame_on_top()->info)->si_code, SI_KERNEL);
    EQUAL(frame_on_top()->rip, 0x401000);
    EQUAL(frame_on_top()->rsp, 64);
    CHECK(guest.tf.rsp - (GUEST_STACK + 0x8000) < 0x8000);
}
static void bad_stack(void)
{
    EQUAL(act(SIGUSR1, HANDLER_1, SA_SIGINFO, 0), 0);
    EQUAL(act(SIGSEGV, HANDLER_2, SA_SIGINFO, 0), 0);
    guest.tf.rsp = BASE + 0x8000;
    send(SIGUSR1);
    dune_deliver(cpu);
}
static void bad_return(void)
{
    struct dune_call call = {.nr = __NR_rt_sigreturn};

    guest.where = DUNE_AT_SYSCALL;
    guest.tf.rsp = BASE + 0x8000;
    dune_do_rt_sigreturn(cpu, &call);
}
static void case_bad_stack(void)
{
    EQUAL(status_of(bad_stack_helped), 0);
    EQUAL(killed_by(status_of(bad_stack)), SIGSEGV);
    EQUAL(killed_by(status_of(bad_return)), SIGSEGV);
}
