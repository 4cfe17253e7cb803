/* Threads and processes: clone in its three kinds, and the end of a thread.
 *
 * thread  (CLONE_VM | CLONE_THREAD) A vCPU of its own from the pool, and a host thread on the host
 *         stack of that vCPU's block. It starts in ring 3 with its parent's registers.
 * vfork   (CLONE_VM | CLONE_VFORK) As a thread, in a process of its own; Linux holds the parent
 *         until the child execs or ends, and then the parent gives the vCPU back.
 * fork    The child has a copy of everything, the vault included, but a VM belongs to its address
 *         space: the child makes a VM of its own, puts its one vCPU into the state it had, and
 *         returns from the call. Where that fails it ends: it must never run without the vault.
 *
 * Refused, whatever the policy: namespaces, CLONE_VM alone (another process in the same memory that
 * nobody waits for), a descriptor table shared between two VMs or not shared between two
 * threads (KVM's descriptors lie in it), clone3 (its arguments lie in memory: libcs fall back).
 */
#include "shim/policy.h"
#include "shim/sys.h"
#include "shim/thread.h"

#include <errno.h>
#include <linux/sched.h>

#define ALL_SIGNALS (~(uint64_t)0)
#define SIG_SETMASK 2
#define SI_TKILL    (-6)
#define RFLAGS_TF   0x100u

#define PROT_READ     1
#define PROT_WRITE    2
#define MAP_PRIVATE   2
#define MAP_FIXED     0x10
#define MAP_ANONYMOUS 0x20

#define CLONE_DETACHED_UNUSED 0x00400000ull /* no meaning since Linux 2.6.2; musl sets it */
#define CLONE_TIDS            (CLONE_PARENT_SETTID | CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID)
#define CLONE_NAMESPACES \
    (CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID | \
     CLONE_NEWNET)

#define THREAD_NEEDS (CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD)
#define THREAD_MAY \
    (THREAD_NEEDS | CLONE_SYSVSEM | CLONE_SETTLS | CLONE_IO | CLONE_TIDS | CLONE_DETACHED_UNUSED | \
     CSIGNAL)
#define VFORK_NEEDS (CLONE_VM | CLONE_VFORK)
#define VFORK_MAY \
    (VFORK_NEEDS | CLONE_FS | CLONE_FILES | CLONE_SYSVSEM | CLONE_SETTLS | CLONE_IO | \
     CLONE_PARENT | CLONE_PIDFD | CLONE_TIDS | CSIGNAL)
#define FORK_MAY \
    (CLONE_VFORK | CLONE_FS | CLONE_SYSVSEM | CLONE_SETTLS | CLONE_IO | CLONE_PARENT | \
     CLONE_PIDFD | CLONE_TIDS | CSIGNAL)

/* clone()'s arguments, by whichever call they came. */
struct clone_args_raw {
    uint64_t flags, stack, parent_tid, child_tid, tls;
};

/* What a vCPU needs to go on as another one did. */
struct cpu_state {
    struct dune_regs regs;
    struct dune_regs synced; /* fork: what the host side has made of them since */
    uint64_t fs_base, gs_base;
};

/* ---- signals ----------------------------------------------------------------------------------
 */

/* Blocks all signals on this host thread. Returns what to set afterwards; *guest is the mask that
 * ring 3 knows of, which is another one while a signal is recorded. */
static uint64_t block_signals(struct dune_vcpu *cpu, uint64_t *guest)
{
    uint64_t all = ALL_SIGNALS, before = 0;

    dune_sys4(__NR_rt_sigprocmask, SIG_SETMASK, &all, &before, DUNE_KERNEL_SIGSET_BYTES);
    *guest = cpu->pending.recorded ? cpu->pending.blocked : before;
    return before;
}

static void set_mask(uint64_t mask)
{
    dune_sys4(__NR_rt_sigprocmask, SIG_SETMASK, &mask, 0, DUNE_KERNEL_SIGSET_BYTES);
}

/* A thread that ends has taken down a signal that was for the whole process: another thread's turn.
 * All signals are blocked. */
static void pass_on_signal(struct dune_vcpu *cpu)
{
    const int32_t *info = (const int32_t *)cpu->pending.info; /* si_signo, si_errno, si_code */

    if (!cpu->pending.recorded)
        return;
    cpu->pending.recorded = 0;
    if (!cpu->pending.forced && info[2] != SI_TKILL)
        dune_sys3(__NR_rt_sigqueueinfo, dune_sys0(__NR_getpid), info[0], info);
}

/* ---- state ------------------------------------------------------------------------------------
 */

static uint8_t *xsave_area(struct dune_vcpu *cpu)
{
    return (uint8_t *)dune_block(cpu) + DUNE_BLOCK_XSAVE;
}

/* The caller of clone() as its child will be: in ring 3 behind the call, with 0 for result. */
static void child_state(struct dune_vcpu *cpu, const struct clone_args_raw *args,
                        struct cpu_state *state)
{
    struct dune_context context;
    const struct dune_tf *tf = &context.tf;

    dune_get_context(cpu, &context);
    dune_vcpu_get_bases(cpu, &state->fs_base, &state->gs_base);
    if (cpu->step.fast) /* step.c runs this very SYSCALL alone: that is not the child's business */
        context.tf.rflags = (tf->rflags & ~RFLAGS_TF) | cpu->step.flags;
    state->regs = (struct dune_regs){
        .rax = 0,
        .rbx = tf->rbx,
        .rcx = tf->rip,
        .rdx = tf->rdx,
        .rsi = tf->rsi,
        .rdi = tf->rdi,
        .rsp = args->stack ? args->stack : tf->rsp,
        .rbp = tf->rbp,
        .r8 = tf->r8,
        .r9 = tf->r9,
        .r10 = tf->r10,
        .r11 = tf->rflags,
        .r12 = tf->r12,
        .r13 = tf->r13,
        .r14 = tf->r14,
        .r15 = tf->r15,
        .rip = tf->rip,
        .rflags = tf->rflags,
    };
    if (args->flags & CLONE_SETTLS)
        state->fs_base = args->tls;
}

/* ---- threads and vfork: another vCPU of this VM
 * -------------------------------------------------- */

/* The child's first words, on its host stack, all signals blocked. */
static void child_starts(struct dune_vcpu *child)
{
    child->tid = (int32_t)dune_sys0(__NR_gettid);
    set_mask(child->fork_scratch[DUNE_THREAD_MASK]);
    dune_loop(child);
}

static void copy_sighand(struct dune_sighand *to, struct dune_sighand *from)
{
    dune_lock(&from->lock);
    __builtin_memcpy(to->action, from->action, sizeof(to->action));
    dune_unlock(&from->lock);
}

/* What was on its way to the vCPU's last owner, if that was killed in the middle of it. */
static long forget_events(struct dune_vcpu *child)
{
    struct kvm_vcpu_events none = {.flags = KVM_VCPUEVENT_VALID_SHADOW};

    return dune_sys3(__NR_ioctl, child->fd, KVM_SET_VCPU_EVENTS, &none);
}

/* A vCPU in the state of a child to be; NULL: there are no more. */
static struct dune_vcpu *make_child(struct dune_vcpu *cpu, const struct clone_args_raw *args)
{
    struct dune_vcpu *child = dune_vcpu_take(cpu->vault);
    struct cpu_state state;

    if (!child)
        return NULL;
    child_state(cpu, args, &state);
    child->root = cpu->step.fast ? cpu->step.fast : cpu->root;
    child->sighand = cpu->sighand;
    if (args->flags & CLONE_CHILD_CLEARTID)
        child->clear_tid = args->child_tid;
    if (forget_events(child) || dune_vcpu_get_fpu(cpu, xsave_area(child)) ||
        dune_vcpu_place(child, &state.regs, 3, state.fs_base, state.gs_base, xsave_area(child))) {
        __atomic_store_n(&child->state, DUNE_VCPU_FREE, __ATOMIC_RELEASE);
        return NULL;
    }
    /* A thread of ring 3 goes by ring 0's handlers as its parent does; one that ring 0 itself makes
     * is a background thread. */
    child->hooks = cpu->mode == 3 ? cpu->hooks & (uint8_t)~DUNE_HOOK_MODULE : 0;
    child->where = DUNE_AT_INTERRUPT; /* a signal may come before its first instruction */
    return child;
}

static long clone_thread(struct dune_vcpu *cpu, const struct clone_args_raw *args)
{
    struct dune_vcpu *child = make_child(cpu, args);
    uint64_t before;
    long tid;

    if (!child)
        return -EAGAIN;
    before = block_signals(cpu, &child->fork_scratch[DUNE_THREAD_MASK]);
    tid = dune_host_clone(args->flags, (uint8_t *)dune_block(child) + DUNE_BLOCK_TOP,
                          args->parent_tid, args->child_tid, args->tls, child_starts, child);
    set_mask(before);
    if (tid < 0)
        __atomic_store_n(&child->state, DUNE_VCPU_FREE, __ATOMIC_RELEASE);
    return tid;
}

static long clone_vfork(struct dune_vcpu *cpu, const struct clone_args_raw *args)
{
    struct dune_vcpu *child = make_child(cpu, args);
    uint64_t before;
    long pid;

    if (!child)
        return -EAGAIN;
    copy_sighand(&child->own_sighand, cpu->sighand);
    child->sighand = &child->own_sighand;
    child->vforked = 1;
    __builtin_memcpy(child->altstack, cpu->altstack, sizeof(child->altstack)); /* threads: none */
    before = block_signals(cpu, &child->fork_scratch[DUNE_THREAD_MASK]);
    pid = dune_host_clone(args->flags, (uint8_t *)dune_block(child) + DUNE_BLOCK_TOP,
                          args->parent_tid, args->child_tid, args->tls, child_starts, child);
    /* The child left this memory: nobody uses its block. */
    dune_exec_area_give(child);
    __atomic_store_n(&child->state, DUNE_VCPU_FREE, __ATOMIC_RELEASE);
    set_mask(before);
    return pid;
}

/* ---- fork: another VM
 * ------------------------------------------------------------------------------ */

/* The child's side: the other threads and the parent's VM are gone. What it had mapped of the
 * parent's vCPUs becomes plain memory, so that the vault has no holes. */
static void forget_others(struct dune_vcpu *cpu)
{
    struct dune_vault *vault = cpu->vault;

    for (uint32_t i = 0; i < vault->n_vcpus; i++) {
        struct dune_vcpu *other = dune_vcpu_at(vault, i);
        uint8_t *run = (uint8_t *)dune_block(other) + DUNE_BLOCK_RUN;

        if (other->state == DUNE_VCPU_NONE)
            continue;
        dune_sys1(__NR_close, other->fd);
        if (other->stats_fd >= 0)
            dune_sys1(__NR_close, other->stats_fd);
        other->fd = other->stats_fd = -1;
        dune_sys6(__NR_mmap, run, vault->run_bytes, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        if (vault->pkey >= 0)
            dune_sys4(__NR_pkey_mprotect, run, vault->run_bytes, PROT_READ | PROT_WRITE,
                      vault->pkey);
        if (other != cpu)
            other->state = DUNE_VCPU_NONE;
    }
    dune_sys1(__NR_close, vault->vm_fd);
    vault->vm_fd = -1;
}

/* A vfork child's own handlers become the process's, now that it has memory of its own. */
static void own_process(struct dune_vcpu *cpu)
{
    struct dune_vault *vault = cpu->vault;

    if (cpu->sighand != &vault->sighand)
        __builtin_memcpy(vault->sighand.action, cpu->sighand->action,
                         sizeof(vault->sighand.action));
    cpu->sighand = &vault->sighand;
    cpu->vforked = 0;
    cpu->tid = (int32_t)dune_sys0(__NR_gettid);
    cpu->fork_scratch[DUNE_THREAD_ROBUST] = 0;
    vault->exec_areas = 0; /* other threads' */
    cpu->pending.recorded = 0;
    cpu->pending.forced = 0;
}

/* The vCPU as it was in the middle of its system call, which it had come to by an OUT: that is done
 * again, or KVM would not know that it has to step over it. */
static int make_own(struct dune_vcpu *cpu, const struct cpu_state *state)
{
    struct dune_vault *vault = cpu->vault;
    int error = dune_vm_create(vault);
    long result;

    if (error == 0)
        error = dune_vcpu_create(cpu);
    if (error == 0)
        error =
            dune_vcpu_place(cpu, &state->regs, 0, state->fs_base, state->gs_base, xsave_area(cpu));
    if (error)
        return error;
    do {
        result = dune_sys3(__NR_ioctl, cpu->fd, KVM_RUN, 0);
    } while (result == -EAGAIN);
    if (result)
        return (int)result;
    return cpu->run->exit_reason == KVM_EXIT_IO ? 0 : -EPROTO;
}

static void rebuild(struct dune_vcpu *cpu, const struct cpu_state *state)
{
    uint8_t mode = cpu->mode, attention = cpu->attention & (uint8_t)~DUNE_ATTENTION_PENDING;
    int error;

    own_process(cpu);
    forget_others(cpu);
    error = dune_module_forget(cpu);
    if (error == 0)
        error = make_own(cpu, state);
    if (error) {
        static const char text[] = "dune: a forked process can't make its own VM: it ends\n";

        dune_log(cpu, "a forked process can't make its own VM (error %d): it ends", -error);
        dune_sys3(__NR_write, 2, text, sizeof(text) - 1);
        dune_sys1(__NR_exit_group, 127);
    }
    __builtin_memcpy(&cpu->run->s.regs.regs, &state->synced, sizeof(state->synced));
    cpu->run->kvm_dirty_regs = KVM_SYNC_X86_REGS;
    cpu->mode = mode; /* not ring 0's, perhaps: that of the call that is under way */
    cpu->attention = attention;
}

/* The state of this vCPU itself, in the middle of its system call. */
static int own_state(struct dune_vcpu *cpu, const struct clone_args_raw *args,
                     struct cpu_state *state)
{
    struct kvm_regs regs;
    long error = dune_sys3(__NR_ioctl, cpu->fd, KVM_GET_REGS, &regs);

    if (error)
        return (int)error;
    __builtin_memcpy(&state->regs, &regs, sizeof(state->regs));
    __builtin_memcpy(&state->synced, &cpu->run->s.regs.regs, sizeof(state->synced));
    dune_vcpu_get_bases(cpu, &state->fs_base, &state->gs_base);
    if (args->flags & CLONE_SETTLS)
        state->fs_base = args->tls;
    return dune_vcpu_get_fpu(cpu, xsave_area(cpu));
}

static long clone_fork(struct dune_vcpu *cpu, const struct clone_args_raw *args)
{
    struct dune_vault *vault = cpu->vault;
    struct dune_context context;
    struct cpu_state state;
    uint64_t before, guest;
    long pid;

    if (own_state(cpu, args, &state))
        return -ENOMEM;
    before = block_signals(cpu, &guest);
    /* No other thread may be in the middle of changing what the child gets a copy of. */
    dune_lock(&vault->mm_lock);
    dune_lock(&cpu->sighand->lock);
    dune_lock(&vault->lock);
    pid = dune_host_clone(args->flags, NULL, args->parent_tid, args->child_tid, args->tls, NULL,
                          NULL);
    dune_unlock(&vault->lock);
    dune_unlock(&cpu->sighand->lock);
    dune_unlock(&vault->mm_lock);
    if (pid == 0)
        rebuild(cpu, &state);
    set_mask(pid == 0 ? guest : before);
    if (pid != 0 || !args->stack)
        return pid;
    dune_get_context(cpu, &context);
    context.tf.rsp = args->stack;
    context.tf.rax = 0;
    dune_set_context(cpu, &context);
    return DUNE_NO_RESULT;
}

/* ---- the calls
 * ------------------------------------------------------------------------------------- */

/* What Linux will write to. */
static bool pointers_are_free(const struct dune_vcpu *cpu, const struct clone_args_raw *args)
{
    const struct dune_vault *vault = cpu->vault;

    if ((args->flags & (CLONE_PARENT_SETTID | CLONE_PIDFD)) &&
        !dune_range_is_free(vault, args->parent_tid, sizeof(int32_t)))
        return false;
    return !(args->flags & (CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID)) ||
           dune_range_is_free(vault, args->child_tid, sizeof(int32_t));
}

static long clone(struct dune_vcpu *cpu, const struct dune_call *call,
                  const struct clone_args_raw *args)
{
    struct clone_args_raw plain = *args;
    uint64_t flags = args->flags;

    if (flags & CLONE_NAMESPACES)
        return dune_refuse(cpu, call, "a new namespace", -EPERM);
    if (!pointers_are_free(cpu, args))
        return dune_refuse(cpu, call, "an argument lies in the vault", -EFAULT);
    if (flags & CLONE_THREAD) {
        if ((flags & THREAD_NEEDS) != THREAD_NEEDS || (flags & ~THREAD_MAY))
            return dune_refuse(cpu, call, "this combination of flags for a thread", -EINVAL);
        if (cpu->vforked) /* its vCPU's descriptor would lie in the child's table alone */
            return dune_refuse(cpu, call, "a thread of a vfork child", -EAGAIN);
        return clone_thread(cpu, args);
    }
    if (cpu->vault->policy->denied & DUNE_CLASS_FORK)
        return dune_refuse(cpu, call, "the policy allows no processes", -EPERM);
    if (flags & CLONE_VM) {
        if ((flags & VFORK_NEEDS) != VFORK_NEEDS || (flags & ~VFORK_MAY))
            return dune_refuse(cpu, call, "this combination of flags for a process", -EINVAL);
        if (!cpu->vforked)
            return clone_vfork(cpu, args);
        plain.flags &= ~(uint64_t)(CLONE_VM | CLONE_FILES); /* within a vfork child: a copy */
        return clone_fork(cpu, &plain);
    }
    if (flags & ~FORK_MAY)
        return dune_refuse(cpu, call, "this combination of flags for a process", -EINVAL);
    return clone_fork(cpu, args);
}

long dune_do_clone(struct dune_vcpu *cpu, struct dune_call *call)
{
    struct clone_args_raw args = {.flags =
                                      call->arg[0] & 0xffffffffu, /* as Linux: the lower half */
                                  .stack = call->arg[1],
                                  .parent_tid = call->arg[2],
                                  .child_tid = call->arg[3],
                                  .tls = call->arg[4]};

    return clone(cpu, call, &args);
}

long dune_do_fork(struct dune_vcpu *cpu, struct dune_call *call)
{
    struct clone_args_raw args = {.flags = 17}; /* SIGCHLD */

    return clone(cpu, call, &args);
}

long dune_do_vfork(struct dune_vcpu *cpu, struct dune_call *call)
{
    struct clone_args_raw args = {.flags = CLONE_VM | CLONE_VFORK | 17};

    return clone(cpu, call, &args);
}

/* This thread gives up its vCPU. True: it was the process's last, which ends with *status then: the
 * leader's, as Linux has it. */
static bool leave_last(struct dune_vcpu *cpu, uint64_t *status)
{
    struct dune_vault *vault = cpu->vault;
    bool last = true;

    cpu->fork_scratch[DUNE_THREAD_STATUS] = *status;
    dune_lock(&vault->lock);
    dune_vcpu_give(cpu);
    for (uint32_t i = 0; i < vault->n_vcpus && last; i++) {
        const struct dune_vcpu *other = dune_vcpu_at(vault, i);

        if (other->state == DUNE_VCPU_RUNS && !other->vforked)
            last = false;
        else if (other->state == DUNE_VCPU_LEFT && other->tid == vault->pid)
            *status = other->fork_scratch[DUNE_THREAD_STATUS];
    }
    dune_unlock(&vault->lock);
    return last;
}

long dune_do_exit(struct dune_vcpu *cpu, struct dune_call *call)
{
    uint64_t guest, status = call->arg[0], nr = __NR_exit;

    block_signals(cpu, &guest);
    dune_robust_release(cpu);
    pass_on_signal(cpu);
    dune_shared_before(cpu);
    /* The block is taken again only once this thread's number is gone; a vfork child's parent gives
     * its own. KVM has a thread of its own in the process (Linux 6.14), with which it would
     * stay after the program's last one ended. In the open way there may be threads that never
     * entered the guest. */
    if (!cpu->vforked && leave_last(cpu, &status) && (cpu->vault->flags & DUNE_SEALED))
        nr = __NR_exit_group;
    for (;;)
        dune_sys1(nr, nr == __NR_exit ? call->arg[0] : status);
}

long dune_do_exit_group(struct dune_vcpu *cpu, struct dune_call *call)
{
    uint64_t guest;

    block_signals(cpu, &guest);
    dune_robust_release(cpu);
    dune_shared_before(cpu);
    for (;;)
        dune_sys1(__NR_exit_group, call->arg[0]);
}

long dune_do_set_tid_address(struct dune_vcpu *cpu, struct dune_call *call)
{
    if (!dune_range_is_free(cpu->vault, call->arg[0], sizeof(int32_t)))
        return dune_refuse(cpu, call, "an argument lies in the vault", -EFAULT);
    cpu->clear_tid = call->arg[0];
    return dune_forward_raw(cpu, call->nr, call->arg);
}
