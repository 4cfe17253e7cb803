/* The loop around KVM_RUN, one a thread: what made the guest exit, and who takes care of it. */
#include "shim/fault.h"
#include "shim/image.h"
#include "shim/pagetable.h"
#include "shim/policy.h"
#include "shim/ring0.h"
#include "shim/signal.h"
#include "shim/sys.h"

#include <stdarg.h>

#pragma GCC visibility push(hidden)
/* stub.S: the stretches that are begun again after an interruption. */
extern const char dune_stub_start[], dune_stub_user_check[], dune_stub_user_end[],
    dune_stub_ring0_check[], dune_stub_ring0_borrowed[], dune_stub_ring0_end[],
    dune_stub_frame_check[], dune_stub_frame_end[], dune_stub_copy[];
extern void dune_host_resume(const struct dune_regs *regs) __attribute__((noreturn));
extern void dune_host_enter(struct dune_vcpu *cpu) __attribute__((noreturn));
#pragma GCC visibility pop

#define KVM_EXIT_MEMORY_FAULT_NR 39 /* Linux 6.8 */
#define SIG_SETMASK 2

static void say(const char *format, ...);

static struct dune_regs *regs_of(struct dune_vcpu *cpu)
{
    return (struct dune_regs *)&cpu->run->s.regs.regs;
}

static uint64_t offset_of(const char *label)
{
    return (uint64_t)(label - dune_stub_start);
}

static bool within(uint64_t offset, const char *first, const char *last)
{
    return offset >= offset_of(first) && offset <= offset_of(last);
}

/* ---- where the guest is ---------------------------------------------------------------------- */

/* The guest was stopped between two instructions. In a stub's last stretch it is set back to its
 * beginning, where it sees DUNE_ATTENTION_PENDING. */
static void settle(struct dune_vcpu *cpu)
{
    struct dune_regs *regs = regs_of(cpu);
    uint64_t offset = regs->rip - (uint64_t)dune_block(cpu);
    const char *again = NULL;

    cpu->where = DUNE_AT_INTERRUPT;
    if (dune_range_is_free(cpu->vault, regs->rip, 1))
        return;
    cpu->where = DUNE_IN_SHIM;
    if (offset >= DUNE_PAGE)
        return;
    if (within(offset, dune_stub_user_check, dune_stub_user_end))
        again = dune_stub_user_check;
    else if (within(offset, dune_stub_frame_check, dune_stub_frame_end))
        again = dune_stub_frame_check;
    else if (within(offset, dune_stub_ring0_check, dune_stub_ring0_end))
        again = dune_stub_ring0_check;
    if (again == NULL)
        return;
    if (again == dune_stub_ring0_check && offset >= offset_of(dune_stub_ring0_borrowed) &&
        offset < offset_of(dune_stub_ring0_end))
        regs->rsp = cpu->saved[0];
    regs->rip = (uint64_t)dune_block(cpu) + offset_of(again);
    cpu->run->kvm_dirty_regs |= KVM_SYNC_X86_REGS;
}

static void tf_from_regs(struct dune_tf *tf, const struct dune_regs *regs, int ring)
{
    *tf = (struct dune_tf){
        .r15 = regs->r15, .r14 = regs->r14, .r13 = regs->r13, .r12 = regs->r12, .rbp = regs->rbp,
        .rbx = regs->rbx, .r11 = regs->r11, .r10 = regs->r10, .r9 = regs->r9, .r8 = regs->r8,
        .rax = regs->rax, .rcx = regs->rcx, .rdx = regs->rdx, .rsi = regs->rsi, .rdi = regs->rdi,
        .rip = regs->rip, .rflags = regs->rflags, .rsp = regs->rsp,
        .cs = ring == 3 ? DUNE_USER_CS : DUNE_KERNEL_CS,
        .ss = ring == 3 ? DUNE_USER_DS : DUNE_KERNEL_DS};
}

static void regs_from_tf(struct dune_regs *regs, const struct dune_tf *tf)
{
    *regs = (struct dune_regs){
        .r15 = tf->r15, .r14 = tf->r14, .r13 = tf->r13, .r12 = tf->r12, .rbp = tf->rbp,
        .rbx = tf->rbx, .r11 = tf->r11, .r10 = tf->r10, .r9 = tf->r9, .r8 = tf->r8,
        .rax = tf->rax, .rcx = tf->rcx, .rdx = tf->rdx, .rsi = tf->rsi, .rdi = tf->rdi,
        .rip = tf->rip, .rflags = tf->rflags, .rsp = tf->rsp};
}

void dune_get_context(struct dune_vcpu *cpu, struct dune_context *context)
{
    const struct dune_regs *regs = regs_of(cpu);

    context->where = cpu->where;
    context->trap = cpu->trap;
    if (cpu->where == DUNE_AT_TRAP) {
        context->tf = *cpu->trap;
    } else if (cpu->attention & DUNE_ATTENTION_FULL) {
        context->tf = cpu->tf;
    } else if (cpu->where == DUNE_AT_SYSCALL) {
        tf_from_regs(&context->tf, regs, cpu->mode);
        context->tf.rip = regs->rcx;
        context->tf.rflags = regs->r11;
    } else {
        tf_from_regs(&context->tf, regs,
                     cpu->where == DUNE_AT_INTERRUPT ? dune_vcpu_get_ring(cpu) : 0);
    }
}

void dune_set_context(struct dune_vcpu *cpu, const struct dune_context *context)
{
    if (context->where == DUNE_AT_TRAP) {
        *context->trap = context->tf;
    } else if (context->where == DUNE_AT_SYSCALL) {
        cpu->tf = context->tf;
        cpu->attention |= DUNE_ATTENTION_FULL;
    } else if (context->where == DUNE_AT_INTERRUPT) {
        regs_from_tf(regs_of(cpu), &context->tf);
        cpu->run->kvm_dirty_regs |= KVM_SYNC_X86_REGS;
        if ((context->tf.cs & 3) != cpu->mode)
            dune_vcpu_set_ring(cpu, context->tf.cs & 3);
    } else {
        dune_panic(cpu, "the guest can't be redirected inside the shim", regs_of(cpu)->rip);
    }
}

/* ---- leaving --------------------------------------------------------------------------------- */

static void restore_fpu(const void *xsave, uint64_t xcr0)
{
    __asm__ volatile("xrstor64 %0"
                     :
                     : "m"(*(const char *)xsave), "a"((uint32_t)xcr0),
                       "d"((uint32_t)(xcr0 >> 32))
                     : "memory");
}

/* The thread goes on as it is, outside. */
static void leave(struct dune_vcpu *cpu)
{
    const struct dune_vault *vault = cpu->vault;
    void *xsave = (uint8_t *)dune_block(cpu) + DUNE_BLOCK_XSAVE;
    struct dune_context context;
    uint64_t fs_base, gs_base;
    struct dune_regs regs;

    dune_get_context(cpu, &context);
    context.tf.rax = 0;
    regs_from_tf(&regs, &context.tf);
    dune_vcpu_get_bases(cpu, &fs_base, &gs_base);
    dune_sys2(__NR_arch_prctl, 0x1002, fs_base); /* ARCH_SET_FS */
    dune_sys2(__NR_arch_prctl, 0x1001, gs_base); /* ARCH_SET_GS */
    if (dune_vcpu_get_fpu(cpu, xsave) != 0)
        dune_panic(cpu, "KVM doesn't tell the FPU state", 0);
    if (vault->features & DUNE_HAS_XSAVE)
        restore_fpu(xsave, vault->xcr0);
    else
        __asm__ volatile("fxrstor64 %0" : : "m"(*(const char *)xsave));
    dune_vcpu_give(cpu);
    dune_signals_leave(cpu);
    dune_host_resume(&regs);
}

/* The module called by who may not. */
static bool strangers_call(struct dune_vcpu *cpu)
{
    struct dune_regs *regs = regs_of(cpu);

    if (!cpu->vault->module.main || regs->rax - DUNE_CALL_MODULE >= DUNE_CALL_MODULES)
        return false;
    regs->rax = (uint64_t)-EPERM;
    cpu->run->kvm_dirty_regs |= KVM_SYNC_X86_REGS;
    return true;
}

/* What libdune asks for by a system call of no Linux: from ring 0, and open from ring 3 too. */
static bool own_call(struct dune_vcpu *cpu)
{
    struct dune_regs *regs = regs_of(cpu);
    struct dune_context context;

    if (cpu->vault->flags & DUNE_SEALED)
        return strangers_call(cpu);
    if (regs->rax == DUNE_CALL_LEAVE)
        leave(cpu);
    if (cpu->mode == 0 && dune_ring0_own_call(cpu, regs->rax, regs->rdi, &regs->rax)) {
        cpu->run->kvm_dirty_regs |= KVM_SYNC_X86_REGS;
        return true;
    }
    if (regs->rax != DUNE_CALL_USER)
        return false;
    dune_get_context(cpu, &context);
    context.tf.rax = 0;
    context.tf.cs = DUNE_USER_CS;
    context.tf.ss = DUNE_USER_DS;
    dune_set_context(cpu, &context);
    return true;
}

/* ---- exits ----------------------------------------------------------------------------------- */

/* A handler in ring 0 passes on ring 3's system call, which it has as a frame. The registers are
 * exchanged for the frame's meanwhile, so that nothing below needs to know. */
static void forward_frame(struct dune_vcpu *cpu)
{
    struct dune_regs *regs = regs_of(cpu), ring0 = *regs;
    struct dune_tf *tf = (struct dune_tf *)regs->rdi;
    uint8_t mode = cpu->mode;

    regs_from_tf(regs, tf);
    regs->rcx = tf->rip;
    regs->r11 = tf->rflags;
    cpu->mode = tf->cs & 3;
    if (!own_call(cpu))
        dune_call_dispatch(cpu);
    if (cpu->attention & DUNE_ATTENTION_FULL) {
        *tf = cpu->tf;
        cpu->attention &= (uint8_t)~DUNE_ATTENTION_FULL;
    } else {
        tf->rax = regs->rax;
        tf->rip = regs->rcx;
    }
    *regs = ring0;
    cpu->mode = mode;
    cpu->where = DUNE_IN_SHIM;
    cpu->run->kvm_dirty_regs |= KVM_SYNC_X86_REGS;
}

static void handle_port(struct dune_vcpu *cpu)
{
    struct dune_regs *regs = regs_of(cpu);

    cpu->trap = (struct dune_tf *)regs->rdi;
    switch (cpu->run->io.port) {
    case DUNE_PORT_SYSCALL:
        cpu->counts.syscalls++;
        cpu->where = DUNE_AT_SYSCALL;
        if (!own_call(cpu))
            dune_call_dispatch(cpu);
        break;
    case DUNE_PORT_FORWARD:
        cpu->counts.syscalls++;
        cpu->where = DUNE_AT_SYSCALL;
        forward_frame(cpu);
        break;
    case DUNE_PORT_TRAP:
        cpu->where = DUNE_AT_TRAP;
        dune_handle_trap(cpu, cpu->trap);
        break;
    case DUNE_PORT_RETURN:
        cpu->where = DUNE_AT_SYSCALL;
        cpu->attention &= (uint8_t)~DUNE_ATTENTION_PENDING;
        break;
    case DUNE_PORT_RETURN_TF:
        cpu->where = DUNE_AT_TRAP;
        cpu->attention &= (uint8_t)~DUNE_ATTENTION_PENDING;
        break;
    case DUNE_PORT_KICK:
        cpu->where = DUNE_IN_SHIM;
        cpu->host_since = 0; /* the kick counts it */
        regs->rax = (uint64_t)dune_kick(cpu, (uint32_t)regs->rdi, (uint32_t)regs->rsi);
        cpu->run->kvm_dirty_regs |= KVM_SYNC_X86_REGS;
        break;
    case DUNE_PORT_PANIC:
        cpu->where = DUNE_AT_TRAP;
        if (cpu->trap->rip == (uint64_t)dune_block(cpu) + offset_of(dune_stub_copy))
            say("dune: ring 0's stack can't take an exception: rip %x rsp %x", cpu->saved[0],
                cpu->saved[1]);
        dune_panic(cpu, dune_is_module(cpu->vault, cpu->trap->rip) ? "an exception in the module"
                                                                   : "an exception in the shim",
                   cpu->trap->vector);
    default: /* ring 0's own code, which may do as it likes */
        cpu->where = DUNE_IN_SHIM;
    }
}

static void handle_exit(struct dune_vcpu *cpu)
{
    switch (cpu->run->exit_reason) {
    case KVM_EXIT_IO:
        handle_port(cpu);
        break;
    case KVM_EXIT_MMIO:
        settle(cpu);
        dune_memory_fault(cpu);
        break;
    case KVM_EXIT_SHUTDOWN:
        dune_panic(cpu, "triple fault", regs_of(cpu)->rip);
    case KVM_EXIT_FAIL_ENTRY:
        dune_panic(cpu, "KVM can't enter the guest",
                   cpu->run->fail_entry.hardware_entry_failure_reason);
    case KVM_EXIT_INTERNAL_ERROR:
        dune_panic(cpu, "KVM's internal error", cpu->run->internal.suberror);
    default:
        cpu->where = DUNE_IN_SHIM;
        dune_panic(cpu, "an exit that nobody expects", cpu->run->exit_reason);
    }
}

void dune_loop(struct dune_vcpu *cpu)
{
    for (;;) {
        long result;

        if (cpu->step.fast != NULL)
            dune_step_check(cpu);
        dune_deliver(cpu);
        dune_shared_before(cpu);
        result = dune_sys3(__NR_ioctl, cpu->fd, KVM_RUN, 0);
        dune_shared_behind(cpu);
        cpu->counts.exits++;
        if (result == 0) {
            handle_exit(cpu);
        } else if (result == -EINTR || result == -EAGAIN) {
            cpu->counts.interrupted++;
            settle(cpu);
        } else if (result == -EFAULT) {
            settle(cpu);
            dune_memory_fault(cpu);
        } else {
            cpu->where = DUNE_IN_SHIM;
            dune_panic(cpu, "KVM_RUN fails", (uint64_t)-result);
        }
    }
}

/* A window that is about to be used. In ring 0 an exception's frame goes onto the interrupted
 * stack, so that one must be there before the first. */
static void open_ahead(struct dune_vcpu *cpu, uint64_t address)
{
    struct dune_vault *vault = cpu->vault;

    if (dune_window_open(vault, address) != 0)
        return;
    dune_lock(&vault->lock);
    dune_root_open_window(vault, cpu->root, address);
    dune_unlock(&vault->lock);
}

/* For libdune: this thread goes on in the guest. Returns only when it can't. */
int dune_thread_enter(struct dune_vault *vault, const struct dune_entering *entering)
{
    struct dune_vcpu *cpu = dune_vcpu_take(vault);
    int error;

    if (cpu == NULL)
        return -EAGAIN;
    cpu->tid = (int32_t)dune_sys0(__NR_gettid);
    error = dune_vcpu_place(cpu, &entering->regs, (int)entering->ring, entering->fs_base,
                            entering->gs_base, entering->xsave);
    if (error != 0) {
        dune_vcpu_give(cpu);
        return error;
    }
    open_ahead(cpu, entering->regs.rip);
    open_ahead(cpu, entering->regs.rsp);
    cpu->hooks = vault->syscall_handler != NULL;
    dune_module_enter(cpu);
    cpu->where = DUNE_AT_INTERRUPT;
    dune_signals_enter(cpu);
    dune_host_enter(cpu);
}

/* ---- words ----------------------------------------------------------------------------------- */

static char *put_number(char *at, char *end, uint64_t value, uint32_t base)
{
    char digit[24];
    uint32_t n = 0;

    do {
        digit[n++] = "0123456789abcdef"[value % base];
        value /= base;
    } while (value != 0);
    while (n > 0 && at < end)
        *at++ = digit[--n];
    return at;
}

/* `pid` other than 0 comes first. What ring 3 gave (a path) can't make a line of its own. */
static void log_line(int fd, uint64_t pid, const char *format, va_list arguments)
{
    char line[512], *at = line, *end = line + sizeof(line) - 1;

    if (pid != 0) {
        at = put_number(at, end, pid, 10);
        *at++ = ' ';
    }
    for (; *format != 0 && at < end; format++) {
        if (*format != '%') {
            *at++ = *format;
            continue;
        }
        format++;
        if (*format == 's') {
            for (const char *s = va_arg(arguments, const char *); *s != 0 && at < end; s++)
                *at++ = (uint8_t)*s < ' ' || *s == 0x7f ? '?' : *s;
        } else if (*format == 'd') {
            int64_t value = va_arg(arguments, int64_t);

            if (value < 0 && at < end)
                *at++ = '-';
            at = put_number(at, end, value < 0 ? -(uint64_t)value : (uint64_t)value, 10);
        } else if (*format == 'u' || *format == 'x') {
            at = put_number(at, end, va_arg(arguments, uint64_t), *format == 'u' ? 10 : 16);
        } else {
            *at++ = *format;
        }
    }
    *at++ = '\n';
    dune_sys3(__NR_write, fd, line, at - line);
}

void dune_log(struct dune_vcpu *cpu, const char *format, ...)
{
    va_list arguments;

    if (cpu->vault->policy->log_fd == ~0u)
        return;
    va_start(arguments, format);
    log_line((int)cpu->vault->policy->log_fd, (uint64_t)dune_sys0(__NR_getpid), format, arguments);
    va_end(arguments);
}

static void say(const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    log_line(2, 0, format, arguments);
    va_end(arguments);
}

static void say_registers(struct dune_vcpu *cpu, const struct dune_context *context)
{
    const struct dune_tf *tf = &context->tf;

    say("dune: rip %x cs %x rflags %x rsp %x ss %x vector %u error %x cr2 %x", tf->rip, tf->cs,
        tf->rflags, tf->rsp, tf->ss, tf->vector, tf->error, tf->cr2);
    say("dune: rax %x rbx %x rcx %x rdx %x rsi %x rdi %x rbp %x", tf->rax, tf->rbx, tf->rcx,
        tf->rdx, tf->rsi, tf->rdi, tf->rbp);
    say("dune: r8 %x r9 %x r10 %x r11 %x r12 %x r13 %x r14 %x r15 %x", tf->r8, tf->r9, tf->r10,
        tf->r11, tf->r12, tf->r13, tf->r14, tf->r15);
    say("dune: vault %x, vCPU %u, exit %u, attention %u, mode %u", cpu->vault->base,
        (uint64_t)cpu->index, (uint64_t)cpu->run->exit_reason, (uint64_t)cpu->attention,
        (uint64_t)cpu->mode);
}

/* By SIGABRT, past any handler. */
void dune_panic(struct dune_vcpu *cpu, const char *what, uint64_t value)
{
    struct dune_sigaction none = {0};
    uint64_t all_but_abort = ~((uint64_t)1 << 5);
    struct dune_context context;

    say("dune: the guest is ended: %s (%x)", what, value);
    if (cpu->run != NULL) {
        dune_get_context(cpu, &context);
        say_registers(cpu, &context);
    }
    dune_shared_crash(cpu, what, value, 6, cpu->run != NULL ? &context : NULL);
    dune_sys4(__NR_rt_sigaction, 6, &none, 0, DUNE_KERNEL_SIGSET_BYTES);
    dune_sys3(__NR_tgkill, dune_sys0(__NR_getpid), dune_sys0(__NR_gettid), 6);
    dune_sys4(__NR_rt_sigprocmask, SIG_SETMASK, &all_but_abort, 0, DUNE_KERNEL_SIGSET_BYTES);
    for (;;)
        dune_sys1(__NR_exit_group, 255);
}
