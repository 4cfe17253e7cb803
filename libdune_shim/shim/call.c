/* A system call of ring 3's: looked up in the table, checked, forwarded or emulated. Host side.
 *
 * Nothing here trusts ring 3's memory: it is copied by process_vm_readv(), which fails where a load
 * of the host side's own would fault, and never twice for the same purpose.
 */
#include "shim/call.h"
#include "shim/path.h"
#include "shim/policy.h"
#include "shim/sys.h"

#include "dune_syscalls.h"

#include <asm/errno.h>

#define SYSCALL_BYTES 2
#define STRING_PIECE  256

/* ---- lengths --------------------------------------------------------------------------------- */

static uint64_t as_length(uint64_t value, uint32_t width)
{
    switch (width) {
    case DUNE_WIDTH_U32:
        return (uint32_t)value;
    case DUNE_WIDTH_I32:
        return (int32_t)value < 0 ? 0 : (uint32_t)value;
    case DUNE_WIDTH_RW:
        return value < DUNE_RW_MAX ? value : DUNE_RW_MAX;
    default:
        return value;
    }
}

/* The bytes that an argument covers; UINT64_MAX, which no address can have, when that overflows.
 * -EFAULT: a length that can't be read. */
static int length_of(struct dune_vcpu *cpu, const struct dune_call *call,
                     const struct dune_arg_rule *rule, uint64_t *bytes)
{
    uint64_t given = call->arg[rule->count], n = as_length(given, rule->width);
    uint32_t pointed;

    switch (rule->unit) {
    case DUNE_UNIT_TIMES:
        if (__builtin_mul_overflow(n, rule->size, bytes) ||
            __builtin_add_overflow(*bytes, rule->base, bytes))
            *bytes = UINT64_MAX;
        return 0;
    case DUNE_UNIT_BITS:
        *bytes = (n / 64 + (n % 64 != 0)) * 8;
        return 0;
    case DUNE_UNIT_PAGES:
        *bytes = n / DUNE_PAGE + (n % DUNE_PAGE != 0);
        return 0;
    case DUNE_UNIT_POINTED:
        if (dune_copy_in(cpu, &pointed, given, sizeof(pointed)) != 0)
            return -EFAULT;
        *bytes = as_length(pointed, DUNE_WIDTH_I32);
        return 0;
    default:
        *bytes = rule->base;
        return 0;
    }
}

/* ---- the check ------------------------------------------------------------------------------- */

static long check_argument(struct dune_vcpu *cpu, const struct dune_call *call,
                           const struct dune_arg_rule *rule, uint64_t value,
                           struct dune_verdict *verdict)
{
    uint64_t bytes = 1;

    switch (rule->kind) {
    case DUNE_ARG_FD:
        if (dune_fd_is_free(cpu->vault, value))
            return 0;
        verdict->why = "a descriptor of the shim's";
        verdict->quiet = 1; /* who closes all that there could be isn't after these */
        return -EBADF;
    case DUNE_ARG_POINTER:
    case DUNE_ARG_STRING:
        if (value == 0)
            return 0;
        if (rule->kind == DUNE_ARG_POINTER && length_of(cpu, call, rule, &bytes) != 0) {
            verdict->why = "a length that can't be read";
            verdict->quiet = 1;
            return -EFAULT;
        }
        if (dune_range_is_free(cpu->vault, value, bytes))
            return 0;
        verdict->why = "a pointer into the vault";
        return -EFAULT;
    case DUNE_ARG_RANGE:
        length_of(cpu, call, rule, &bytes);
        if (dune_range_is_free(cpu->vault, value, bytes))
            return 0;
        verdict->why = "a range of addresses with the vault in it";
        return -ENOMEM; /* as if nothing were mapped there */
    default:
        return 0;
    }
}

long dune_check_call(struct dune_vcpu *cpu, const struct dune_call *call,
                     struct dune_verdict *verdict)
{
    const struct dune_call_rule *rule;

    *verdict = (struct dune_verdict){.action = DUNE_CALL_DENY, .quiet = 1, .why = "no such call"};
    if (call->nr >= DUNE_CALLS || dune_call_rules[call->nr].action == DUNE_CALL_NONE)
        return -ENOSYS;
    rule = verdict->rule = &dune_call_rules[call->nr];
    verdict->quiet = 0;
    if (rule->classes & cpu->vault->policy->denied) {
        verdict->why = "the policy denies this class of calls";
        return -EPERM;
    }
    if (rule->action == DUNE_CALL_DENY) {
        verdict->why = &dune_call_texts[rule->why];
        if ((rule->flags & DUNE_CALL_OPEN) && !(cpu->vault->flags & DUNE_SEALED)) {
            verdict->action = DUNE_CALL_ALLOW;
            return 0;
        }
        verdict->quiet = rule->error == ENOSYS || rule->error == EINTR;
        return -(long)rule->error;
    }
    for (int i = 0; i < 6; i++) {
        long error = check_argument(cpu, call, &rule->arg[i], call->arg[i], verdict);

        if (error != 0)
            return error;
    }
    verdict->action = rule->action;
    return 0;
}

long dune_check_range(struct dune_vcpu *cpu, const struct dune_call *call, uint64_t address,
                      uint64_t bytes)
{
    if (dune_range_is_free(cpu->vault, address, bytes))
        return 0;
    return dune_refuse(cpu, call, "a pointer into the vault", -EFAULT);
}

/* ---- refusing -------------------------------------------------------------------------------- */

long dune_refuse(struct dune_vcpu *cpu, const struct dune_call *call, const char *why, long error)
{
    const char *name = "?";

    cpu->counts.refused++;
    if (call->nr < DUNE_CALLS)
        name = &dune_call_texts[dune_call_rules[call->nr].name];
    dune_log(cpu, "refused %s(%x, %x, %x, %x, %x, %x): %s (error %d)", name, call->arg[0],
             call->arg[1], call->arg[2], call->arg[3], call->arg[4], call->arg[5], why,
             (int64_t)-error);
    return error;
}

/* ---- the whole call -------------------------------------------------------------------------- */

static long make_call(struct dune_vcpu *cpu, struct dune_call *call)
{
    struct dune_verdict verdict;
    long result = dune_check_call(cpu, call, &verdict);

    if (result != 0)
        return verdict.quiet ? result : dune_refuse(cpu, call, verdict.why, result);
    if (verdict.action == DUNE_CALL_EMULATE)
        result = dune_emulate(cpu, call);
    else
        result = dune_forward_raw(cpu, call->nr, call->arg);
    if (verdict.rule->flags & DUNE_CALL_MAKES_FD)
        result = dune_fd_result(cpu, result);
    return result;
}

void dune_call_dispatch(struct dune_vcpu *cpu)
{
    struct kvm_regs *regs = &cpu->run->s.regs.regs;
    /* The kernel takes the number from 32 bits. */
    struct dune_call call = {
        .nr = (uint32_t)regs->rax,
        .arg = {regs->rdi, regs->rsi, regs->rdx, regs->r10, regs->r8, regs->r9}};
    uint64_t nr = call.nr;
    long result;

    cpu->scratch_used = 0;
    result = make_call(cpu, &call);
    if (result == DUNE_NO_RESULT)
        return;
    if (result == DUNE_RESTART) {
        /* Whether the call is to be made again has been decided by the kernel, which knows what the
         * handler's SA_RESTART is; or the signal came before it began, so that it is made
         * after the handler in any case. */
        regs->rax = nr;
        regs->rcx -= SYSCALL_BYTES;
    } else {
        regs->rax = (uint64_t)result;
    }
    cpu->run->kvm_dirty_regs |= KVM_SYNC_X86_REGS;
}

/* ---- ring 3's memory ------------------------------------------------------------------------- */

/* By the kernel, as if to another process: no fault, and no thread of ring 3's can make one. */
static long transfer(struct dune_vcpu *cpu, long nr, void *own, uint64_t other, uint64_t bytes)
{
    uint64_t local[2] = {(uint64_t)own, bytes}, remote[2] = {other, bytes};
    long done;

    if (bytes == 0)
        return 0;
    if (!dune_range_is_free(cpu->vault, other, bytes))
        return -EFAULT;
    do {
        done = dune_sys6(nr, cpu->tid, local, 1, remote, 1, 0);
    } while (done == -EINTR);
    return done;
}

/* A stack that may have to grow: copies don't make it do so, but what the kernel itself reads does.
 * Nothing comes of this read, for 99 is no way to change a signal mask. */
static bool grown(const struct dune_vcpu *cpu, uint64_t other, uint64_t bytes)
{
    if (!dune_range_is_free(cpu->vault, other, bytes))
        return false;
    for (uint64_t at = other & ~7ull; at < other + bytes; at = (at | (DUNE_PAGE - 1)) + 1)
        if (dune_sys4(__NR_rt_sigprocmask, 99, at, 0, DUNE_KERNEL_SIGSET_BYTES) == -EFAULT)
            return false;
    return true;
}

int dune_copy_in(struct dune_vcpu *cpu, void *to, uint64_t from, uint64_t bytes)
{
    if (transfer(cpu, __NR_process_vm_readv, to, from, bytes) == (long)bytes)
        return 0;
    if (!grown(cpu, from, bytes))
        return -EFAULT;
    return transfer(cpu, __NR_process_vm_readv, to, from, bytes) == (long)bytes ? 0 : -EFAULT;
}

int dune_copy_out(struct dune_vcpu *cpu, uint64_t to, const void *from, uint64_t bytes)
{
    void *own = (void *)from;

    if (transfer(cpu, __NR_process_vm_writev, own, to, bytes) == (long)bytes)
        return 0;
    if (!grown(cpu, to, bytes))
        return -EFAULT;
    return transfer(cpu, __NR_process_vm_writev, own, to, bytes) == (long)bytes ? 0 : -EFAULT;
}

/* In pieces that don't cross a page: behind the string's end there may be nothing. */
long dune_copy_string(struct dune_vcpu *cpu, char *to, uint64_t from, uint64_t limit)
{
    uint64_t done = 0;

    while (done < limit) {
        uint64_t at = from + done, bytes = DUNE_PAGE - at % DUNE_PAGE;

        if (bytes > STRING_PIECE)
            bytes = STRING_PIECE;
        if (bytes > limit - done)
            bytes = limit - done;
        if (dune_copy_in(cpu, to + done, at, bytes) != 0)
            return -EFAULT;
        for (uint64_t i = done; i < done + bytes; i++)
            if (to[i] == 0)
                return (long)i;
        done += bytes;
    }
    return -ENAMETOOLONG;
}

void *dune_scratch(struct dune_vcpu *cpu, uint64_t bytes)
{
    uint32_t at = (cpu->scratch_used + 15) & ~15u;

    if (bytes > DUNE_SCRATCH || at > DUNE_SCRATCH - bytes)
        return NULL;
    cpu->scratch_used = at + (uint32_t)bytes;
    return cpu->scratch + at;
}
