/* Descriptors: ring 3 has the numbers below vault->first_fd, the shim those above. Host side.
 *
 * The process's own RLIMIT_NOFILE stays above first_fd, or the shim could make no descriptor. So
 * the kernel would give ring 3 a number beyond its limit once all below are used: dune_fd_result()
 * takes that back. Such a number is useless to ring 3 in any case, as every call refuses it.
 */
#include "shim/path.h"
#include "shim/sys.h"

#include <asm/errno.h>
#include <linux/close_range.h>
#include <linux/fcntl.h>

#ifndef F_GETOWNER_UIDS
#define F_GETOWNER_UIDS 17
#endif
#ifndef F_DUPFD_QUERY
#define F_DUPFD_QUERY (F_LINUX_SPECIFIC_BASE + 3)
#endif
#ifndef F_CREATED_QUERY
#define F_CREATED_QUERY (F_LINUX_SPECIFIC_BASE + 4)
#endif

#define FLOCK_BYTES 32  /* struct flock */
#define OWNER_BYTES 8   /* struct f_owner_ex; two uids */
#define HINT_BYTES 8

long dune_fd_raise(const struct dune_vault *vault, long fd)
{
    long high;

    if (fd < 0 || fd >= vault->first_fd)
        return fd;
    high = dune_sys3(__NR_fcntl, fd, F_DUPFD_CLOEXEC, vault->first_fd);
    dune_sys1(__NR_close, fd);
    return high;
}

long dune_fd_result(struct dune_vcpu *cpu, long fd)
{
    if (fd < 0 || (uint64_t)fd < cpu->vault->fd_soft)
        return fd;
    dune_sys1(__NR_close, fd);
    return -EMFILE;
}

void dune_fd_get_limit(const struct dune_vault *vault, uint64_t limit[2])
{
    limit[0] = vault->fd_soft;
    limit[1] = vault->fd_hard;
}

long dune_fd_set_limit(struct dune_vault *vault, const uint64_t limit[2])
{
    if (limit[0] > limit[1])
        return -EINVAL;
    if (limit[1] > vault->fd_hard)
        return -EPERM;
    vault->fd_soft = (uint32_t)limit[0];
    vault->fd_hard = (uint32_t)limit[1];
    return 0;
}

long dune_do_close(struct dune_vcpu *cpu, struct dune_call *call)
{
    if (!dune_fd_is_free(cpu->vault, call->arg[0]))
        return -EBADF;
    return dune_forward_raw(cpu, call->nr, call->arg);
}

long dune_do_dup(struct dune_vcpu *cpu, struct dune_call *call)
{
    if (!dune_fd_is_free(cpu->vault, call->arg[0]))
        return -EBADF;
    return dune_fd_result(cpu, dune_forward_raw(cpu, call->nr, call->arg));
}

/* dup2, dup3: the new number must be ring 3's too. */
static long duplicate_onto(struct dune_vcpu *cpu, struct dune_call *call)
{
    if (!dune_fd_is_free(cpu->vault, call->arg[0]) ||
        (uint32_t)call->arg[1] >= cpu->vault->fd_soft)
        return -EBADF;
    return dune_forward_raw(cpu, call->nr, call->arg);
}

long dune_do_dup2(struct dune_vcpu *cpu, struct dune_call *call)
{
    /* onto itself it only asks whether it is open, whatever the limit has become since */
    if ((uint32_t)call->arg[0] == (uint32_t)call->arg[1] &&
        dune_fd_is_free(cpu->vault, call->arg[0]))
        return dune_forward_raw(cpu, call->nr, call->arg);
    return duplicate_onto(cpu, call);
}

long dune_do_dup3(struct dune_vcpu *cpu, struct dune_call *call)
{
    return duplicate_onto(cpu, call);
}

/* The bytes behind the third argument of fcntl(); 0: it is a number; -1: not a command that is
 * let through. */
static int fcntl_pointer(uint32_t command)
{
    switch (command) {
    case F_GETLK:
    case F_SETLK:
    case F_SETLKW:
    case F_OFD_GETLK:
    case F_OFD_SETLK:
    case F_OFD_SETLKW:
        return FLOCK_BYTES;
    case F_SETOWN_EX:
    case F_GETOWN_EX:
    case F_GETOWNER_UIDS:
        return OWNER_BYTES;
    case F_GET_RW_HINT:
    case F_SET_RW_HINT:
    case F_GET_FILE_RW_HINT:
    case F_SET_FILE_RW_HINT:
        return HINT_BYTES;
    case F_DUPFD:
    case F_DUPFD_CLOEXEC:
    case F_DUPFD_QUERY:
    case F_CREATED_QUERY:
    case F_GETFD:
    case F_SETFD:
    case F_GETFL:
    case F_SETFL:
    case F_GETOWN:
    case F_SETOWN:
    case F_GETSIG:
    case F_SETSIG:
    case F_GETLEASE:
    case F_SETLEASE:
    case F_NOTIFY:
    case F_SETPIPE_SZ:
    case F_GETPIPE_SZ:
    case F_ADD_SEALS:
    case F_GET_SEALS:
        return 0;
    default:
        return -1;
    }
}

/* Whose signal it will be, where the policy denies to signal other processes: one's own only. */
static long check_owner(struct dune_vcpu *cpu, struct dune_call *call)
{
    int32_t owner[2] = {1, (int32_t)call->arg[2]}; /* type, id: F_OWNER_PID */

    if ((cpu->vault->policy->denied & DUNE_CLASS_SIGNAL) == 0)
        return 0;
    if ((uint32_t)call->arg[1] == F_SETOWN_EX) {
        int32_t *copy = dune_scratch(cpu, sizeof(owner));

        if (copy == NULL)
            return -ENOMEM;
        if (dune_copy_in(cpu, copy, call->arg[2], sizeof(owner)) != 0)
            return -EFAULT;
        call->arg[2] = (uint64_t)copy; /* as checked */
        __builtin_memcpy(owner, copy, sizeof(owner));
    }
    if (owner[1] == 0 || (owner[0] == 0 && owner[1] == cpu->tid) ||
        (owner[0] == 1 && owner[1] == dune_sys0(__NR_getpid)))
        return 0;
    return dune_refuse(cpu, call, "the policy denies signals to other processes", -EPERM);
}

long dune_do_fcntl(struct dune_vcpu *cpu, struct dune_call *call)
{
    const struct dune_vault *vault = cpu->vault;
    uint32_t command = (uint32_t)call->arg[1];
    int bytes = fcntl_pointer(command);
    long result;

    if (!dune_fd_is_free(vault, call->arg[0]))
        return -EBADF;
    if (bytes < 0)
        return -EINVAL;
    if (bytes > 0 && !dune_range_is_free(vault, call->arg[2], (uint64_t)bytes))
        return -EFAULT;
    if (command == F_DUPFD_QUERY && !dune_fd_is_free(vault, call->arg[2]))
        return -EBADF;
    if ((command == F_DUPFD || command == F_DUPFD_CLOEXEC) &&
        (uint32_t)call->arg[2] >= vault->fd_soft)
        return -EINVAL;
    if (command == F_SETOWN || command == F_SETOWN_EX) {
        result = check_owner(cpu, call);
        if (result != 0)
            return result;
    }
    result = dune_forward_raw(cpu, call->nr, call->arg);
    if (command == F_DUPFD || command == F_DUPFD_CLOEXEC)
        return dune_fd_result(cpu, result);
    return result;
}

long dune_do_close_range(struct dune_vcpu *cpu, struct dune_call *call)
{
    uint32_t first = (uint32_t)call->arg[0], last = (uint32_t)call->arg[1];
    uint32_t end = (uint32_t)cpu->vault->first_fd - 1;
    uint64_t arg[6] = {first, last < end ? last : end, (uint32_t)call->arg[2], 0, 0, 0};

    /* A descriptor table of this thread's own (CLOSE_RANGE_UNSHARE) would miss the vCPUs that
     * others make later: as on a kernel that doesn't know the flag. */
    if ((arg[2] & ~(uint64_t)CLOSE_RANGE_CLOEXEC) != 0 || first > last)
        return -EINVAL;
    if (first > end)
        return 0;
    return dune_forward_raw(cpu, call->nr, arg);
}
