/* The odds and ends: segment bases, prctl, resource limits, unshare, madvise. What is not in a list
 * here is answered as a kernel would that doesn't know it. */
#include "shim/path.h"
#include "shim/policy.h"
#include "shim/sys.h"
#include "shim/thread.h"

#include <asm/prctl.h>
#include <errno.h>
#include <linux/prctl.h>
#include <linux/sched.h>

#define USER_END 0x7ffffffff000ull /* TASK_SIZE_MAX, with 4-level page tables */

#ifndef ARCH_GET_XCOMP_SUPP
#define ARCH_GET_XCOMP_SUPP 0x1021
#define ARCH_GET_XCOMP_PERM 0x1022
#define ARCH_REQ_XCOMP_PERM 0x1023
#endif
#define PR_GET_AUXV_NR 0x41555856 /* Linux 6.4 */
#define PR_GET_MDWE_NR 66
#define MADV_HWPOISON     100
#define MADV_SOFT_OFFLINE 101
#define RLIMIT_NOFILE  7
#define RLIMIT_AS      9
#define NAME_BYTES     16 /* TASK_COMM_LEN */
#define VMA_NAME_BYTES 80 /* ANON_VMA_NAME_MAX_LEN */

static bool is_sealed(const struct dune_vcpu *cpu)
{
    return cpu->vault->flags & DUNE_SEALED;
}

/* ---- arch_prctl ---------------------------------------------------------------------------------
 */

static long set_base(struct dune_vcpu *cpu, bool fs, uint64_t base)
{
    uint64_t bases[2];

    if (base >= USER_END)
        return -EPERM;
    dune_vcpu_get_bases(cpu, &bases[0], &bases[1]);
    bases[fs ? 0 : 1] = base;
    dune_vcpu_set_bases(cpu, bases[0], bases[1]);
    return 0;
}

static long get_base(struct dune_vcpu *cpu, const struct dune_call *call, bool fs)
{
    uint64_t bases[2];

    if (!dune_range_is_free(cpu->vault, call->arg[1], sizeof(bases[0])))
        return dune_refuse(cpu, call, "an argument lies in the vault", -EFAULT);
    dune_vcpu_get_bases(cpu, &bases[0], &bases[1]);
    return dune_copy_out(cpu, call->arg[1], &bases[fs ? 0 : 1], sizeof(bases[0]));
}

long dune_do_arch_prctl(struct dune_vcpu *cpu, struct dune_call *call)
{
    switch (call->arg[0]) {
    case ARCH_SET_FS:
        return set_base(cpu, true, call->arg[1]);
    case ARCH_SET_GS:
        return set_base(cpu, false, call->arg[1]);
    case ARCH_GET_FS:
        return get_base(cpu, call, true);
    case ARCH_GET_GS:
        return get_base(cpu, call, false);
    case ARCH_GET_CPUID: /* 1: the instruction doesn't fault */
        return 1;
    case ARCH_GET_XCOMP_SUPP: /* what needs no permission: this guest has nothing else */
    case ARCH_GET_XCOMP_PERM:
        if (!dune_range_is_free(cpu->vault, call->arg[1], sizeof(uint64_t)))
            return dune_refuse(cpu, call, "an argument lies in the vault", -EFAULT);
        return dune_copy_out(cpu, call->arg[1], &cpu->vault->xcr0, sizeof(uint64_t));
    case ARCH_REQ_XCOMP_PERM:
        if (call->arg[1] >= 64)
            return -EINVAL;
        return cpu->vault->xcr0 >> call->arg[1] & 1 ? 0 : -EOPNOTSUPP;
    default: /* shadow stacks, the vDSO's place, CPUID faulting */
        return -EINVAL;
    }
}

/* ---- prctl --------------------------------------------------------------------------------------
 */

/* Options whose arguments are numbers, or not used. */
static bool prctl_takes_numbers(uint32_t option)
{
    switch (option) {
    case PR_SET_PDEATHSIG:
    case PR_GET_DUMPABLE:
    case PR_SET_DUMPABLE:
    case PR_GET_KEEPCAPS:
    case PR_SET_KEEPCAPS:
    case PR_GET_TIMING:
    case PR_GET_SECCOMP:
    case PR_CAPBSET_READ:
    case PR_CAPBSET_DROP:
    case PR_GET_SECUREBITS:
    case PR_GET_TIMERSLACK:
    case PR_SET_TIMERSLACK:
    case PR_SET_CHILD_SUBREAPER:
    case PR_SET_NO_NEW_PRIVS:
    case PR_GET_NO_NEW_PRIVS:
    case PR_GET_THP_DISABLE:
    case PR_SET_THP_DISABLE:
    case PR_CAP_AMBIENT:
    case PR_GET_SPECULATION_CTRL:
    case PR_GET_MDWE_NR:
    case PR_MCE_KILL_GET:
        return true;
    default:
        return false;
    }
}

/* Options whose second argument is a pointer: the bytes behind it; 0: none of them. */
static uint64_t prctl_pointer_bytes(const struct dune_call *call)
{
    switch ((uint32_t)call->arg[0]) {
    case PR_SET_NAME:
    case PR_GET_NAME:
        return NAME_BYTES;
    case PR_GET_PDEATHSIG:
    case PR_GET_CHILD_SUBREAPER:
    case PR_GET_TSC:
        return sizeof(int32_t);
    case PR_GET_TID_ADDRESS:
        return sizeof(uint64_t);
    case PR_GET_AUXV_NR:
        return call->arg[2];
    default:
        return 0;
    }
}

/* PR_SET_VMA_ANON_NAME names a range, for /proc/PID/maps. */
static long set_vma(struct dune_vcpu *cpu, struct dune_call *call)
{
    const struct dune_vault *vault = cpu->vault;

    if (call->arg[1] != PR_SET_VMA_ANON_NAME)
        return -EINVAL;
    if (!dune_range_is_free(vault, call->arg[2], call->arg[3]) ||
        !dune_range_is_free(vault, call->arg[4], VMA_NAME_BYTES))
        return dune_refuse(cpu, call, "an argument reaches the vault", -EFAULT);
    return dune_forward_raw(cpu, call->nr, call->arg);
}

long dune_do_prctl(struct dune_vcpu *cpu, struct dune_call *call)
{
    uint32_t option = (uint32_t)call->arg[0];
    uint64_t bytes = prctl_pointer_bytes(call);

    if (option == PR_SET_VMA)
        return set_vma(cpu, call);
    if (prctl_takes_numbers(option))
        return dune_forward_raw(cpu, call->nr, call->arg);
    if (bytes == 0) /* seccomp, system call dispatch, RDTSC, the memory map, ptrace ... */
        return dune_refuse(cpu, call, "an option of prctl() that is not let through", -EINVAL);
    if (!dune_range_is_free(cpu->vault, call->arg[1], bytes))
        return dune_refuse(cpu, call, "an argument lies in the vault", -EFAULT);
    return dune_forward_raw(cpu, call->nr, call->arg);
}

/* ---- resource limits ----------------------------------------------------------------------------
 */

static long get_limit(struct dune_vcpu *cpu, uint32_t resource, uint64_t limit[2])
{
    uint64_t *raw = dune_scratch(cpu, 2 * sizeof(uint64_t));
    long error;

    if (resource == RLIMIT_NOFILE) { /* the process's own leaves room for the shim's */
        dune_fd_get_limit(cpu->vault, limit);
        return 0;
    }
    if (!raw)
        return -ENOMEM;
    error = dune_sys4(__NR_prlimit64, 0, resource, 0, raw);
    limit[0] = raw[0];
    limit[1] = raw[1];
    return error;
}

static long set_limit(struct dune_vcpu *cpu, const struct dune_call *call, uint32_t resource,
                      const uint64_t limit[2])
{
    uint64_t *raw = dune_scratch(cpu, 2 * sizeof(uint64_t)), old[2];
    long error = get_limit(cpu, resource, old);

    if (error || !raw)
        return error ? error : -ENOMEM;
    if (resource == RLIMIT_NOFILE)
        return dune_fd_set_limit(cpu->vault, limit);
    if (limit[1] > old[1] && is_sealed(cpu))
        return dune_refuse(cpu, call, "a hard limit is not raised in here", -EPERM);
    if (resource == RLIMIT_AS && limit[0] > old[0] && cpu->vault->policy->memory_bytes)
        return dune_refuse(cpu, call, "the policy limits memory", -EPERM);
    raw[0] = limit[0];
    raw[1] = limit[1];
    return dune_sys4(__NR_prlimit64, 0, resource, raw, 0);
}

/* `from`, `to`: ring 3's struct rlimit, or 0. */
static long limits(struct dune_vcpu *cpu, const struct dune_call *call, uint32_t resource,
                   uint64_t from, uint64_t to)
{
    uint64_t old[2], new[2];
    long error;

    if (from && dune_copy_in(cpu, new, from, sizeof(new)))
        return -EFAULT;
    error = get_limit(cpu, resource, old);
    if (error == 0 && from)
        error = set_limit(cpu, call, resource, new);
    if (error == 0 && to)
        error = dune_copy_out(cpu, to, old, sizeof(old));
    return error;
}

long dune_do_getrlimit(struct dune_vcpu *cpu, struct dune_call *call)
{
    if (call->arg[1] == 0)
        return -EFAULT;
    return limits(cpu, call, (uint32_t)call->arg[0], 0, call->arg[1]);
}

long dune_do_setrlimit(struct dune_vcpu *cpu, struct dune_call *call)
{
    if (call->arg[1] == 0)
        return -EFAULT;
    return limits(cpu, call, (uint32_t)call->arg[0], call->arg[1], 0);
}

long dune_do_prlimit64(struct dune_vcpu *cpu, struct dune_call *call)
{
    int32_t pid = (int32_t)call->arg[0];

    if (pid == 0 || pid == cpu->tid || pid == (int32_t)dune_sys0(__NR_getpid))
        return limits(cpu, call, (uint32_t)call->arg[1], call->arg[2], call->arg[3]);
    if (call->arg[2] && is_sealed(cpu))
        return dune_refuse(cpu, call, "another process's limits", -EPERM);
    if (!dune_range_is_free(cpu->vault, call->arg[2], 2 * sizeof(uint64_t)) ||
        !dune_range_is_free(cpu->vault, call->arg[3], 2 * sizeof(uint64_t)))
        return dune_refuse(cpu, call, "an argument lies in the vault", -EFAULT);
    return dune_forward_raw(cpu, call->nr, call->arg);
}

/* ---- unshare ------------------------------------------------------------------------------------
 */

/* A descriptor table of a thread's own would have no KVM descriptors of vCPUs made later; and
 * namespaces change what paths, users and processes mean. */
long dune_do_unshare(struct dune_vcpu *cpu, struct dune_call *call)
{
    uint64_t flags = call->arg[0];

    if (flags & (CLONE_FILES | CLONE_VM | CLONE_THREAD | CLONE_SIGHAND))
        return dune_refuse(cpu, call, "threads share their descriptors here", -EINVAL);
    if ((flags & ~(uint64_t)(CLONE_FS | CLONE_SYSVSEM)) && is_sealed(cpu))
        return dune_refuse(cpu, call, "a new namespace", -EPERM);
    return dune_forward_raw(cpu, call->nr, call->arg);
}

/* ---- madvise ------------------------------------------------------------------------------------
 */

/* As root a program may take pages out of the machine, also of a file that it can only read, and of
 * what it shares with others, who then die of SIGBUS: no policy gives it that. */
long dune_do_madvise(struct dune_vcpu *cpu, struct dune_call *call)
{
    int32_t advice = (int32_t)call->arg[2];

    if ((advice == MADV_HWPOISON || advice == MADV_SOFT_OFFLINE) && is_sealed(cpu))
        return dune_refuse(cpu, call, "takes memory out of the machine", -EPERM);
    return dune_forward_raw(cpu, call->nr, call->arg);
}
