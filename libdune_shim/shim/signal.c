/* Signals of guest threads: recorded when they arrive, delivered by the loop.
 *
 *   kernel -> dune_host_signal(), on the vCPU's host stack, wherever the host side was. It copies
 * the siginfo and blocks everything: one signal at a time is on its way. KVM_RUN returns, or
 * returns at once (immediate_exit, so there is no moment in which a signal is overlooked). loop ->
 * dune_deliver(): Linux's frame on the guest's stack, the handler's mask on the host. What the
 * kernel holds back meanwhile arrives with that, and gets its frame on top, as outside.
 *
 * The host's thread has the guest's mask and the host's action has the guest's flags, so the kernel
 * decides about restarting: when it backs up to dune_forward_raw()'s SYSCALL it wants the call made
 * again after the handler, and so the guest does it. Stop, continue, SIG_DFL and SIG_IGN never
 * come here.
 */
#include "shim/signal.h"
#include "shim/sys.h"

#include <asm/errno.h>

#define FAULT_WRITE 2 /* of a page fault's error code */
#define ALL_SIGNALS   (~(uint64_t)0)
#define BIT(number)   ((uint64_t)1 << ((number)-1))
#define NEVER_BLOCKED (BIT(SIGKILL) | BIT(SIGSTOP))
/* Faults of the host side's own probes come by these. */
#define FAULTS (BIT(SIGILL) | BIT(SIGTRAP) | BIT(SIGBUS) | BIT(SIGFPE) | BIT(SIGSEGV))
#define KNOWN_FLAGS \
    (SA_NOCLDSTOP | SA_NOCLDWAIT | SA_SIGINFO | SA_ONSTACK | SA_RESTART | SA_NODEFER | \
     SA_RESETHAND | 0x800u /* SA_EXPOSE_TAGBITS */ | SA_RESTORER)
#define HOST_FLAGS (SA_NOCLDSTOP | SA_NOCLDWAIT | SA_RESTART)

#define SYSCALL_BYTES     2
#define VECTOR_PAGE_FAULT 14
#define FLAG_TF           0x100u

static bool has_handler(const struct dune_sigaction *action)
{
    return action->handler > 1; /* neither SIG_DFL nor SIG_IGN */
}

static bool is_fault(int number)
{
    return (FAULTS & BIT(number)) != 0;
}

static void set_mask(uint64_t mask)
{
    dune_sys4(__NR_rt_sigprocmask, SIG_SETMASK, &mask, NULL, DUNE_KERNEL_SIGSET_BYTES);
}

static void host_sigaction(int number, const struct dune_sigaction *action)
{
    dune_sys4(__NR_rt_sigaction, number, action, NULL, DUNE_KERNEL_SIGSET_BYTES);
}

/* To this thread again, as it came. */
static void send_to_self(const siginfo_t *info)
{
    dune_sys4(__NR_rt_tgsigqueueinfo, dune_sys0(__NR_getpid), dune_sys0(__NR_gettid),
              info->si_signo, info);
}

/* ---- what the host's kernel is told ---------------------------------------------------------- */

/* An action of the program's, as the host's kernel is to have it. */
static void install(const struct dune_vault *vault, int number, const struct dune_sigaction *action)
{
    struct dune_sigaction host = *action;

    if (has_handler(action) || is_fault(number)) {
        host.handler = vault->host_signal_entry;
        host.flags = (action->flags & HOST_FLAGS) | SA_SIGINFO | SA_RESTORER;
        host.restorer = vault->host_restorer;
        host.mask = ALL_SIGNALS;
        if (!has_handler(action))
            host.flags |= SA_RESTART;
        /* For threads outside. The host side of one in the guest has no alternate stack, and when
         * sealed it must not be possible that it has one. */
        if (!(vault->flags & DUNE_SEALED))
            host.flags |= action->flags & SA_ONSTACK;
    }
    host_sigaction(number, &host);
}

int dune_signals_init(struct dune_vault *vault)
{
    for (int number = 1; number <= DUNE_SIGNALS; number++) {
        struct dune_sigaction old;

        if (BIT(number) & NEVER_BLOCKED)
            continue;
        if (dune_sys4(__NR_rt_sigaction, number, NULL, &old, DUNE_KERNEL_SIGSET_BYTES) != 0 ||
            old.handler == vault->host_signal_entry)
            continue;
        vault->sighand.action[number] = old;
        if (has_handler(&old) || is_fault(number))
            install(vault, number, &old);
    }
    return 0;
}

void dune_signals_end(struct dune_vault *vault)
{
    for (int number = 1; number <= DUNE_SIGNALS; number++) {
        struct dune_sigaction old;

        if (dune_sys4(__NR_rt_sigaction, number, NULL, &old, DUNE_KERNEL_SIGSET_BYTES) == 0 &&
            old.handler == vault->host_signal_entry)
            host_sigaction(number, &vault->sighand.action[number]);
    }
}

void dune_signals_exec(struct dune_vcpu *cpu, bool begins)
{
    for (int number = 1; number <= DUNE_SIGNALS; number++) {
        const struct dune_sigaction *action = &cpu->sighand->action[number];

        if (!is_fault(number) || action->handler != (uint64_t)SIG_IGN)
            continue;
        if (begins)
            host_sigaction(number, action);
        else
            install(cpu->vault, number, action);
    }
}

void dune_signals_enter(struct dune_vcpu *cpu)
{
    uint64_t none[3] = {0, DUNE_SS_DISABLE, 0};

    dune_sys2(__NR_sigaltstack, NULL, cpu->altstack);
    if (cpu->altstack[2] == 0)
        cpu->altstack[1] = 0;
    else
        cpu->altstack[1] &= ~(uint64_t)DUNE_SS_ONSTACK;
    dune_sys2(__NR_sigaltstack, none, NULL);
}

/* ---- the guest's mask ------------------------------------------------------------------------ */

/* From here to release() nothing more arrives. What the guest has blocked. */
static uint64_t hold(const struct dune_vcpu *cpu)
{
    uint64_t all = ALL_SIGNALS, before = 0;

    dune_sys4(__NR_rt_sigprocmask, SIG_SETMASK, &all, &before, DUNE_KERNEL_SIGSET_BYTES);
    return cpu->pending.recorded ? cpu->pending.blocked : before;
}

/* Nothing is recorded any more, the guest's mask is `mask`, and more may arrive at once. */
static void forget(struct dune_vcpu *cpu, uint64_t mask)
{
    cpu->pending.recorded = 0;
    cpu->run->immediate_exit = 0;
    cpu->attention &= (uint8_t)~DUNE_ATTENTION_PENDING;
    set_mask(mask);
}

/* The guest's mask is `mask`. What is recorded and blocked by it goes back to the kernel. */
static void release(struct dune_vcpu *cpu, uint64_t mask)
{
    const siginfo_t *info = (const siginfo_t *)cpu->pending.info;

    mask &= ~NEVER_BLOCKED;
    if (!cpu->pending.recorded) {
        set_mask(mask);
    } else if (mask & BIT(info->si_signo)) {
        send_to_self(info);
        forget(cpu, mask);
    } else {
        cpu->pending.mask = cpu->pending.blocked = mask;
    }
}

void dune_signals_leave(struct dune_vcpu *cpu)
{
    uint64_t mask = hold(cpu), stack[3];

    __builtin_memcpy(stack, cpu->altstack, sizeof(stack));
    if (stack[2] == 0)
        stack[1] = DUNE_SS_DISABLE;
    dune_sys2(__NR_sigaltstack, stack, NULL);
    if (cpu->pending.recorded) {
        send_to_self((const siginfo_t *)cpu->pending.info);
        forget(cpu, mask);
    } else {
        set_mask(mask);
    }
}

/* ---- a signal arrives ------------------------------------------------------------------------ */

#ifndef DUNE_OWN_VAULT /* a harness has its own way */
#define DUNE_OWN_VAULT dune_own_vault
#endif

/* Takes the action for a signal that is about to be acted upon. */
static struct dune_sigaction take_action(struct dune_vault *vault, struct dune_sighand *sighand,
                                         int number)
{
    struct dune_sigaction *kept = &sighand->action[number], action;

    dune_lock(&sighand->lock);
    action = *kept;
    if (has_handler(&action) && (action.flags & SA_RESETHAND)) {
        kept->handler = (uint64_t)SIG_DFL;
        install(vault, number, kept);
    }
    dune_unlock(&sighand->lock);
    return action;
}

static uint64_t handlers_mask(const struct dune_sigaction *action, int number, uint64_t blocked)
{
    return blocked | action->mask | (action->flags & SA_NODEFER ? 0 : BIT(number));
}

/* A thread of the process that is not in the guest: its program's handler runs natively. */
static void act_outside(struct dune_vault *vault, int number, siginfo_t *info,
                        struct dune_sigframe *frame)
{
    struct dune_sigaction action = take_action(vault, &vault->sighand, number);
    struct dune_sigaction plain = {.handler = (uint64_t)SIG_DFL};
    void (*handler)(int, siginfo_t *, void *) = (void (*)(int, siginfo_t *, void *))action.handler;

    if (has_handler(&action)) {
        set_mask(handlers_mask(&action, number, frame->mask));
        handler(number, info, &frame->uc_flags);
        return;
    }
    if (action.handler == (uint64_t)SIG_IGN && !(is_fault(number) && info->si_code > 0))
        return;
    host_sigaction(number, &plain);
    if (info->si_code <= 0) /* a fault comes again by itself */
        send_to_self(info);
}

static bool is_between(uint64_t rip, const char *first, const char *last)
{
    return rip >= (uint64_t)first && rip <= (uint64_t)last;
}

static bool is_touching(const struct dune_sigframe *frame)
{
    return frame->rip >= (uint64_t)dune_touch_begin && frame->rip < (uint64_t)dune_touch_end;
}

static bool read_word(struct dune_vcpu *cpu, uint64_t from, uint64_t *word)
{
    if (from - (uint64_t)cpu->scratch < DUNE_SCRATCH - sizeof(*word)) {
        *word = *(const uint64_t *)from;
        return true;
    }
    return dune_copy_in(cpu, word, from, sizeof(*word)) == 0;
}

/* The calls that replace the mask while they wait leave it so for the handler that ends them, and
 * the frame has the one before. Here that one is in the host's frame, and theirs where they got it.
 */
static uint64_t waited_mask(struct dune_vcpu *cpu, const struct dune_sigframe *frame)
{
    uint64_t mask = frame->mask, from = 0;

    if (frame->rip != (uint64_t)dune_forward_syscall + SYSCALL_BYTES ||
        frame->rax != (uint64_t)-EINTR)
        return mask;
    switch (frame->r12) { /* dune_forward_raw() has the number there */
    case __NR_rt_sigsuspend:
        from = frame->rdi;
        break;
    case __NR_ppoll:
        from = frame->r10;
        break;
    case __NR_pselect6:
        if (frame->r9 != 0 && !read_word(cpu, frame->r9, &from))
            from = 0;
        break;
    case __NR_epoll_pwait:
    case __NR_epoll_pwait2:
        from = frame->r8;
        break;
    }
    if (from != 0)
        read_word(cpu, from, &mask);
    return mask & ~NEVER_BLOCKED;
}

/* In dune_forward_raw(): before its SYSCALL nothing has happened yet, and on it, either that or the
 * kernel wants the call made again. After a stop it wants restart_syscall() instead; a handler that
 * comes upon that ends the call. */
static void redirect_forward(struct dune_sigframe *frame)
{
    if (!is_between(frame->rip, dune_forward_check, dune_forward_syscall))
        return;
    if (frame->rip == (uint64_t)dune_forward_syscall && frame->rax == __NR_restart_syscall &&
        frame->r12 != __NR_restart_syscall) {
        frame->rip += SYSCALL_BYTES;
        frame->rax = (uint64_t)-EINTR;
    } else {
        frame->rip = (uint64_t)dune_forward_restart;
    }
}

/* True: the host side itself is at fault, and not ring 3 that sends something of the kind. */
static bool is_own_fault(int number, const siginfo_t *info)
{
    return is_fault(number) && info->si_code > 0 &&
           !(number == SIGBUS && info->si_code == BUS_MCEERR_AO);
}

static void record(struct dune_vcpu *cpu, const siginfo_t *info, struct dune_sigframe *frame)
{
    if (cpu->pending.recorded) { /* something unblocked too early: one at a time */
        send_to_self(info);
        frame->mask = ALL_SIGNALS;
        return;
    }
    cpu->pending.mask = frame->mask;
    cpu->pending.blocked = waited_mask(cpu, frame);
    __builtin_memcpy(cpu->pending.info, info, sizeof(cpu->pending.info));
    frame->mask = ALL_SIGNALS;
    redirect_forward(frame);
    if (is_touching(frame)) /* a fault would now find its signal blocked */
        frame->rip = (uint64_t)dune_touch_fixup;
    __atomic_store_n(&cpu->pending.recorded, 1, __ATOMIC_RELEASE);
    if (cpu->run != NULL)
        cpu->run->immediate_exit = 1;
}

void dune_host_signal(int number, void *information, void *ucontext)
{
    struct dune_sigframe *frame = (struct dune_sigframe *)((uint8_t *)ucontext - sizeof(uint64_t));
    struct dune_vault *vault = DUNE_OWN_VAULT();
    struct dune_vcpu *cpu = dune_this_vcpu();
    siginfo_t *info = information;

    if ((uint64_t)cpu - (vault->base + DUNE_BLOCKS_AT) >= DUNE_SCRATCH_AT - DUNE_BLOCKS_AT ||
        cpu->state == DUNE_VCPU_LEFT) { /* on its way out, see dune_signals_leave() */
        act_outside(vault, number, info, frame);
        return;
    }
    if (!is_own_fault(number, info)) {
        record(cpu, info, frame);
    } else if (is_touching(frame)) {
        __builtin_memcpy(cpu->probed, info, sizeof(cpu->probed));
        cpu->pending.trapno = frame->trapno;
        cpu->pending.error = frame->error;
        if (frame->r9 != 0) /* touch.S: it writes; an emulator's LOCK OR may read first */
            cpu->pending.error |= FAULT_WRITE;
        cpu->pending.cr2 = frame->cr2;
        frame->rip = (uint64_t)dune_touch_fixup;
    } else {
        dune_panic(cpu, "a fault of the host side", frame->rip);
    }
}

/* ---- delivering ------------------------------------------------------------------------------ */

/* The process ends by the signal, with the status and the core that are due. Its lock stays held,
 * so that no other thread takes the default action away. */
static void __attribute__((noreturn)) die(struct dune_vcpu *cpu, const siginfo_t *info)
{
    struct dune_sigaction plain = {.handler = (uint64_t)SIG_DFL};
    struct dune_context context;

    hold(cpu);
    dune_get_context(cpu, &context);
    if (info->si_code > 0) { /* a fault of its own */
        context.tf.vector = cpu->pending.trapno;
        context.tf.error = cpu->pending.error;
        context.tf.cr2 = cpu->pending.cr2;
    }
    dune_shared_crash(cpu, "a signal without a handler", (uint64_t)info->si_addr, info->si_signo,
                      &context);
    dune_lock(&cpu->sighand->lock);
    host_sigaction(info->si_signo, &plain);
    send_to_self(info);
    set_mask(~BIT(info->si_signo));
    for (;;) /* only a namespace's init survives that */
        dune_sys1(__NR_exit_group, 128 + info->si_signo);
}

/* A frame that can't be built becomes a SIGSEGV, and that one's the end. */
static void frame_failed(struct dune_vcpu *cpu, int number)
{
    siginfo_t info = {.si_signo = SIGSEGV, .si_code = SI_KERNEL};

    if (number == SIGSEGV)
        die(cpu, &info);
    dune_force_info(cpu, &info, NULL);
}

void dune_force_info(struct dune_vcpu *cpu, const void *information, const struct dune_tf *tf)
{
    const siginfo_t *info = information;
    uint64_t blocked = hold(cpu);
    int number = info->si_signo;
    struct dune_sigaction action = take_action(cpu->vault, cpu->sighand, number);
    struct dune_context context;

    if (tf != NULL) {
        cpu->pending.trapno = tf->vector;
        cpu->pending.error = tf->error;
        if (tf->vector == VECTOR_PAGE_FAULT)
            cpu->pending.cr2 = tf->cr2;
    }
    if ((blocked & BIT(number)) || !has_handler(&action))
        die(cpu, info);
    dune_get_context(cpu, &context);
    if (dune_frame_build(cpu, &context, &action, info, blocked) != 0) {
        release(cpu, blocked);
        frame_failed(cpu, number);
        return;
    }
    dune_set_context(cpu, &context);
    release(cpu, handlers_mask(&action, number, blocked));
}

void dune_force_signal(struct dune_vcpu *cpu, int number, int code, uint64_t address,
                       const struct dune_tf *tf)
{
    siginfo_t info = {.si_signo = number, .si_code = code};

    info.si_addr = (void *)address;
    dune_force_info(cpu, &info, tf);
}

/* True: an exception has begun that KVM still has to deliver (nested paging stopped it half-way).
 * It belongs to the registers as they are. */
static bool has_exception_under_way(const struct dune_vcpu *cpu)
{
    struct kvm_vcpu_events events;

    if (dune_sys3(__NR_ioctl, cpu->fd, KVM_GET_VCPU_EVENTS, &events) != 0)
        return false;
    return events.exception.injected || events.exception.pending;
}

/* True: the recorded signal has been dealt with. */
static bool deliver_one(struct dune_vcpu *cpu)
{
    siginfo_t info;
    struct dune_context context;
    struct dune_sigaction action;
    uint64_t mask = cpu->pending.mask, blocked = cpu->pending.blocked;

    dune_get_context(cpu, &context);
    if (context.where == DUNE_IN_SHIM ||
        (context.where == DUNE_AT_INTERRUPT && has_exception_under_way(cpu))) {
        /* The way out of the shim comes by here. */
        cpu->attention |= DUNE_ATTENTION_PENDING;
        cpu->run->immediate_exit = 0;
        return false;
    }
    __builtin_memcpy(&info, cpu->pending.info, sizeof(info));
    if (blocked & BIT(info.si_signo)) { /* dune_touch() let in what ring 3 has blocked */
        send_to_self(&info);
        forget(cpu, mask);
        return true;
    }
    action = take_action(cpu->vault, cpu->sighand, info.si_signo);
    if (!has_handler(&action)) { /* it was taken away meanwhile: the kernel's business */
        if (action.handler == (uint64_t)SIG_DFL && is_fault(info.si_signo))
            die(cpu, &info);
        if (action.handler == (uint64_t)SIG_DFL)
            send_to_self(&info);
        forget(cpu, mask);
    } else if (dune_frame_build(cpu, &context, &action, &info, mask) == 0) {
        dune_set_context(cpu, &context);
        forget(cpu, handlers_mask(&action, info.si_signo, blocked));
    } else {
        forget(cpu, blocked);
        frame_failed(cpu, info.si_signo);
    }
    return true;
}

/* SYSRET with TF set traps before the next instruction, IRETQ behind it, as a program that steps
 * itself expects (and Linux does likewise); in ring 0's stub the trap would hit the stub. */
static void return_with_trap_flag(struct dune_vcpu *cpu)
{
    struct dune_context context;

    if (cpu->where != DUNE_AT_SYSCALL || !(cpu->run->s.regs.regs.r11 & FLAG_TF))
        return;
    dune_get_context(cpu, &context);
    dune_set_context(cpu, &context);
}

void dune_deliver(struct dune_vcpu *cpu)
{
    return_with_trap_flag(cpu);
    while (__atomic_load_n(&cpu->pending.recorded, __ATOMIC_ACQUIRE) && deliver_one(cpu))
        ;
}

/* ---- system calls ---------------------------------------------------------------------------- */

/* Ring 3 may not even name the vault as a handler. */
static bool action_is_free(const struct dune_vault *vault, const struct dune_sigaction *action)
{
    return (!has_handler(action) || dune_range_is_free(vault, action->handler, 1)) &&
           (!(action->flags & SA_RESTORER) || dune_range_is_free(vault, action->restorer, 1));
}

/* rt_sigaction(signum, act, oldact, sigsetsize) */
long dune_do_rt_sigaction(struct dune_vcpu *cpu, struct dune_call *call)
{
    struct dune_sighand *sighand = cpu->sighand;
    struct dune_sigaction action, old;
    int number = (int)call->arg[0];
    bool changes = call->arg[1] != 0;

    if (call->arg[3] != DUNE_KERNEL_SIGSET_BYTES)
        return -EINVAL;
    if (changes && dune_copy_in(cpu, &action, call->arg[1], sizeof(action)) != 0)
        return -EFAULT;
    if (number < 1 || number > DUNE_SIGNALS || (changes && (BIT(number) & NEVER_BLOCKED)))
        return -EINVAL;
    if (changes && !action_is_free(cpu->vault, &action))
        return dune_refuse(cpu, call, "a signal's handler lies in the vault", -EFAULT);
    dune_lock(&sighand->lock);
    old = sighand->action[number];
    if (changes) {
        action.flags &= KNOWN_FLAGS;
        action.mask &= ~NEVER_BLOCKED;
        sighand->action[number] = action;
        install(cpu->vault, number, &action);
    }
    dune_unlock(&sighand->lock);
    if (call->arg[2] != 0 && dune_copy_out(cpu, call->arg[2], &old, sizeof(old)) != 0)
        return -EFAULT;
    return 0;
}

/* rt_sigreturn(void) */
long dune_do_rt_sigreturn(struct dune_vcpu *cpu, struct dune_call *call)
{
    siginfo_t fault = {.si_signo = SIGSEGV, .si_code = SI_KERNEL};
    uint64_t mask = hold(cpu);
    struct dune_context context;
    int error;

    (void)call;
    dune_get_context(cpu, &context);
    error = dune_frame_restore(cpu, &context, &mask);
    if (error == 0)
        dune_set_context(cpu, &context);
    release(cpu, mask);
    if (error != 0)
        dune_force_info(cpu, &fault, NULL);
    return DUNE_NO_RESULT;
}

/* sigaltstack(ss, old_ss) */
long dune_do_sigaltstack(struct dune_vcpu *cpu, struct dune_call *call)
{
    uint64_t stack[3], old[3];
    struct dune_context context;
    long error = 0;

    dune_get_context(cpu, &context);
    if (call->arg[0] != 0 && dune_copy_in(cpu, stack, call->arg[0], sizeof(stack)) != 0)
        return -EFAULT;
    dune_altstack_get(cpu, old, context.tf.rsp);
    if (call->arg[0] != 0)
        error = dune_altstack_set(cpu, stack, context.tf.rsp);
    if (error == -EFAULT)
        return dune_refuse(cpu, call, "a signal stack that reaches the vault", error);
    if (error == 0 && call->arg[1] != 0)
        error = dune_copy_out(cpu, call->arg[1], old, sizeof(old));
    return error;
}
