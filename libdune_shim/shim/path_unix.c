/* Sockets by path, and which sockets there may be. Host side.
 *
 * Only where rules apply does a path of AF_UNIX need a check (a socket's other end can't reach the
 * vault). It becomes "/proc/thread-self/fd/N": race-free, and short enough for the 108 bytes of
 * sun_path. Then getsockname() and the peer see that name instead of the one that was given.
 */
#include "shim/path_priv.h"

#define FAMILY_UNSPEC 0
#define FAMILY_UNIX 1
#define FAMILY_RDS 21
#define FAMILY_IB 27

#define FAMILY_BYTES 2
#define ADDRESS_MAX 128 /* struct sockaddr_storage */
#define UNIX_PATH 108

long dune_do_socket(struct dune_vcpu *cpu, struct dune_call *call)
{
    int32_t family = (int32_t)call->arg[0];

    /* They register memory by address for a remote machine to write to. */
    if (family == FAMILY_RDS || family == FAMILY_IB)
        return dune_refuse(cpu, call, "remote access to the process's memory", -EAFNOSUPPORT);
    if (family != FAMILY_UNIX && (cpu->vault->policy->denied & DUNE_CLASS_NET) != 0)
        return dune_refuse(cpu, call, "the policy denies network sockets", -EACCES);
    return dune_fd_result(cpu, dune_forward_raw(cpu, call->nr, call->arg));
}

/* A path of a socket becomes a link to what was checked. *bytes: of the address. */
static long by_link(struct dune_vcpu *cpu, const struct dune_call *call, char *address,
                    uint64_t *bytes, bool making, int *fd)
{
    uint32_t flags = DUNE_PATH_META | DUNE_PATH_HERE | (making ? DUNE_PATH_PARENT : 0), n;
    char *path = dune_scratch(cpu, UNIX_PATH + 1), *link;
    struct dune_resolved object;
    long error;

    if (path == NULL)
        return -ENOMEM;
    n = (uint32_t)*bytes - FAMILY_BYTES;
    if (n > UNIX_PATH)
        return -EINVAL;
    __builtin_memcpy(path, address + FAMILY_BYTES, n);
    path[n] = '\0';
    error = dune_path_resolve(cpu, call, AT_FDCWD, (uint64_t)path, flags, DUNE_MAY_WRITE, &object);
    if (error != 0)
        return error;
    link = dune_path_link(cpu, object.fd, making ? object.last : NULL, true);
    n = link != NULL ? dune_text_bytes(link) : 0;
    if (n == 0 || n >= UNIX_PATH) {
        dune_resolved_close(&object);
        return n == 0 ? -ENOMEM : -ENAMETOOLONG;
    }
    __builtin_memcpy(address + FAMILY_BYTES, link, n + 1);
    *bytes = FAMILY_BYTES + n + 1;
    *fd = object.fd;
    return 0;
}

long dune_path_sockaddr(struct dune_vcpu *cpu, const struct dune_call *call, const void *address,
                        uint64_t bytes, bool making, void **to, int *fd)
{
    bool no_net = (cpu->vault->policy->denied & DUNE_CLASS_NET) != 0;
    uint16_t family = FAMILY_UNSPEC;
    char *copy = dune_scratch(cpu, ADDRESS_MAX);
    long error;

    *fd = -1;
    if (copy == NULL)
        return -ENOMEM;
    if (bytes > ADDRESS_MAX)
        return -EINVAL;
    __builtin_memcpy(copy, address, bytes);
    *to = copy;
    if (bytes >= FAMILY_BYTES)
        __builtin_memcpy(&family, copy, FAMILY_BYTES);
    if (family == FAMILY_UNSPEC)
        return (long)bytes;
    if (family != FAMILY_UNIX)
        return no_net ? dune_refuse(cpu, call, "the policy denies network sockets", -EACCES)
                      : (long)bytes;
    if (bytes == FAMILY_BYTES)
        return (long)bytes; /* autobind, or none */
    if (copy[FAMILY_BYTES] == '\0') /* abstract: named in the network namespace */
        return no_net ? dune_refuse(cpu, call, "the policy denies network sockets", -EACCES)
                      : (long)bytes;
    if (!dune_path_ruled(cpu))
        return (long)bytes;
    error = by_link(cpu, call, copy, &bytes, making, fd);
    return error != 0 ? error : (long)bytes;
}

/* A call with an address in arguments `at` and at + 1. */
static long with_address(struct dune_vcpu *cpu, struct dune_call *call, unsigned at, bool making)
{
    uint64_t arg[6];
    int32_t given = (int32_t)call->arg[at + 1];
    char address[ADDRESS_MAX];
    void *checked;
    long result;
    int fd;

    if (given < 0 || given > ADDRESS_MAX)
        return -EINVAL;
    if (dune_copy_in(cpu, address, call->arg[at], (uint64_t)given) != 0)
        return -EFAULT;
    result = dune_path_sockaddr(cpu, call, address, (uint64_t)given, making, &checked, &fd);
    if (result < 0)
        return result;
    __builtin_memcpy(arg, call->arg, sizeof(arg));
    arg[at] = (uint64_t)checked;
    arg[at + 1] = (uint64_t)result;
    result = dune_forward_raw(cpu, call->nr, arg);
    if (fd >= 0)
        dune_sys1(__NR_close, fd);
    return result;
}

/* Nothing in an address concerns the policy. */
static bool open_to_all(const struct dune_vcpu *cpu)
{
    return !dune_path_ruled(cpu) && (cpu->vault->policy->denied & DUNE_CLASS_NET) == 0;
}

long dune_do_bind(struct dune_vcpu *cpu, struct dune_call *call)
{
    if (open_to_all(cpu))
        return dune_forward_raw(cpu, call->nr, call->arg);
    return with_address(cpu, call, 1, true);
}

long dune_do_connect(struct dune_vcpu *cpu, struct dune_call *call)
{
    if (open_to_all(cpu))
        return dune_forward_raw(cpu, call->nr, call->arg);
    return with_address(cpu, call, 1, false);
}
