/* Calls that change an inode: mode, owner, times, size, extended attributes. Host side.
 *
 * As in path_meta.c: without rules forwarded as they are. Under rules the object must be writable
 * by them, also when it is given as a descriptor, which may have been opened for reading only.
 */
#include "shim/path_priv.h"

struct utimbuf_kernel {
    int64_t access, modification; /* seconds */
};

struct timespec_kernel {
    int64_t seconds, nanoseconds;
};

static long forward(struct dune_vcpu *cpu, const struct dune_call *call)
{
    return dune_forward_raw(cpu, call->nr, call->arg);
}

/* The object of a call that changes it. A descriptor: path 0 and AT_EMPTY_PATH. */
static long changing(struct dune_vcpu *cpu, const struct dune_call *call, uint64_t dirfd,
                     uint64_t path, uint32_t flags, struct dune_resolved *object)
{
    return dune_path_resolve(cpu, call, (int)dirfd, path,
                             (flags & (AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH)) | DUNE_PATH_META,
                             DUNE_MAY_WRITE, object);
}

static uint64_t link_of(struct dune_vcpu *cpu, const struct dune_resolved *object, bool absolute)
{
    return (uint64_t)dune_path_link(cpu, object->fd, NULL, absolute);
}

static long change_mode(struct dune_vcpu *cpu, struct dune_call *call, uint64_t dirfd,
                        uint64_t path, uint64_t mode, uint32_t flags)
{
    struct dune_resolved object;
    long error;

    if (!dune_path_ruled(cpu))
        return forward(cpu, call);
    if ((flags & ~(uint32_t)(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH)) != 0)
        return -EINVAL;
    error = changing(cpu, call, dirfd, path, flags, &object);
    if (error != 0)
        return error;
    if (dune_is_type(&object, S_IFLNK)) { /* no file system here has modes of links */
        dune_resolved_close(&object);
        return -EOPNOTSUPP;
    }
    return dune_path_act(cpu, &object, __NR_fchmodat, (uint64_t)cpu->vault->proc_fd,
                         link_of(cpu, &object, false), mode, 0, 0);
}

long dune_do_chmod(struct dune_vcpu *cpu, struct dune_call *call)
{
    return change_mode(cpu, call, DUNE_AT_CWD, call->arg[0], call->arg[1], 0);
}

long dune_do_fchmod(struct dune_vcpu *cpu, struct dune_call *call)
{
    return change_mode(cpu, call, call->arg[0], 0, call->arg[1], AT_EMPTY_PATH);
}

long dune_do_fchmodat(struct dune_vcpu *cpu, struct dune_call *call)
{
    return change_mode(cpu, call, call->arg[0], call->arg[1], call->arg[2], 0);
}

long dune_do_fchmodat2(struct dune_vcpu *cpu, struct dune_call *call)
{
    return change_mode(cpu, call, call->arg[0], call->arg[1], call->arg[2],
                       (uint32_t)call->arg[3]);
}

static long change_owner(struct dune_vcpu *cpu, struct dune_call *call, uint64_t dirfd,
                         uint64_t path, const uint64_t owner[2], uint32_t flags)
{
    struct dune_resolved object;
    long error;

    if (!dune_path_ruled(cpu))
        return forward(cpu, call);
    if ((flags & ~(uint32_t)(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH)) != 0)
        return -EINVAL;
    error = changing(cpu, call, dirfd, path, flags, &object);
    if (error != 0)
        return error;
    return dune_path_act(cpu, &object, __NR_fchownat, (uint64_t)object.fd, dune_path_empty(cpu),
                         owner[0], owner[1], AT_EMPTY_PATH);
}

long dune_do_chown(struct dune_vcpu *cpu, struct dune_call *call)
{
    return change_owner(cpu, call, DUNE_AT_CWD, call->arg[0], call->arg + 1, 0);
}

long dune_do_lchown(struct dune_vcpu *cpu, struct dune_call *call)
{
    return change_owner(cpu, call, DUNE_AT_CWD, call->arg[0], call->arg + 1, AT_SYMLINK_NOFOLLOW);
}

long dune_do_fchown(struct dune_vcpu *cpu, struct dune_call *call)
{
    return change_owner(cpu, call, call->arg[0], 0, call->arg + 1, AT_EMPTY_PATH);
}

long dune_do_fchownat(struct dune_vcpu *cpu, struct dune_call *call)
{
    return change_owner(cpu, call, call->arg[0], call->arg[1], call->arg + 2,
                        (uint32_t)call->arg[4]);
}

long dune_do_utimensat(struct dune_vcpu *cpu, struct dune_call *call)
{
    uint32_t flags = (uint32_t)call->arg[3];
    struct dune_resolved object;
    long error;

    /* no path and no descriptor either: the kernel's -EFAULT */
    if (!dune_path_ruled(cpu) || (call->arg[1] == 0 && (int32_t)call->arg[0] == AT_FDCWD))
        return forward(cpu, call);
    if (call->arg[1] == 0 && flags == 0)
        flags = AT_EMPTY_PATH;
    if ((flags & ~(uint32_t)(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH)) != 0)
        return -EINVAL;
    error = changing(cpu, call, call->arg[0], call->arg[1], flags, &object);
    if (error != 0)
        return error;
    return dune_path_act(cpu, &object, __NR_utimensat, (uint64_t)object.fd, dune_path_empty(cpu),
                         call->arg[2], AT_EMPTY_PATH, 0);
}

long dune_do_utime(struct dune_vcpu *cpu, struct dune_call *call)
{
    struct utimbuf_kernel given;
    struct timespec_kernel *times = NULL;
    struct dune_resolved object;
    long error;

    if (!dune_path_ruled(cpu))
        return forward(cpu, call);
    if (call->arg[1] != 0) {
        times = dune_scratch(cpu, 2 * sizeof(*times));
        if (times == NULL)
            return -ENOMEM;
        if (dune_copy_in(cpu, &given, call->arg[1], sizeof(given)) != 0)
            return -EFAULT;
        times[0] = (struct timespec_kernel){given.access, 0};
        times[1] = (struct timespec_kernel){given.modification, 0};
    }
    error = changing(cpu, call, DUNE_AT_CWD, call->arg[0], 0, &object);
    if (error != 0)
        return error;
    return dune_path_act(cpu, &object, __NR_utimensat, (uint64_t)object.fd, dune_path_empty(cpu),
                         (uint64_t)times, AT_EMPTY_PATH, 0);
}

static long change_times(struct dune_vcpu *cpu, struct dune_call *call, uint64_t dirfd,
                         uint64_t path, uint64_t times)
{
    uint32_t flags = path == 0 ? AT_EMPTY_PATH : 0; /* futimesat(fd, NULL): the descriptor */
    struct dune_resolved object;
    long error;

    if (!dune_path_ruled(cpu) || (path == 0 && (int32_t)dirfd == AT_FDCWD))
        return forward(cpu, call);
    error = changing(cpu, call, dirfd, path, flags, &object);
    if (error != 0)
        return error;
    return dune_path_act(cpu, &object, __NR_futimesat, (uint64_t)cpu->vault->proc_fd,
                         link_of(cpu, &object, false), times, 0, 0);
}

long dune_do_utimes(struct dune_vcpu *cpu, struct dune_call *call)
{
    return change_times(cpu, call, DUNE_AT_CWD, call->arg[0], call->arg[1]);
}

long dune_do_futimesat(struct dune_vcpu *cpu, struct dune_call *call)
{
    return change_times(cpu, call, call->arg[0], call->arg[1], call->arg[2]);
}

long dune_do_truncate(struct dune_vcpu *cpu, struct dune_call *call)
{
    struct dune_resolved object;
    long error;

    if (!dune_path_ruled(cpu))
        return forward(cpu, call);
    error = changing(cpu, call, DUNE_AT_CWD, call->arg[0], 0, &object);
    if (error != 0)
        return error;
    return dune_path_act(cpu, &object, __NR_truncate, link_of(cpu, &object, true), call->arg[1], 0,
                         0, 0);
}

/* setxattr, lsetxattr and so on: path first, what follows is not a path. `follows`: the number of
 * the call that follows links. It does for all but a link itself, for which there is only the
 * name in its checked directory. */
static long attribute(struct dune_vcpu *cpu, struct dune_call *call, uint64_t follows,
                      uint32_t access)
{
    const uint64_t *arg = call->arg;
    uint32_t flags = DUNE_PATH_META | DUNE_PATH_HERE;
    struct dune_resolved object;
    char *copy;
    long error;

    if (!dune_path_ruled(cpu))
        return forward(cpu, call);
    error = dune_path_copy(cpu, arg[0], 0, &copy);
    if (error != 0)
        return error;
    error = dune_path_resolve(cpu, call, AT_FDCWD, (uint64_t)copy,
                              flags | (call->nr != follows ? AT_SYMLINK_NOFOLLOW : 0), access,
                              &object);
    if (error != 0)
        return error;
    if (!dune_is_type(&object, S_IFLNK))
        return dune_path_act(cpu, &object, follows, link_of(cpu, &object, true), arg[1], arg[2],
                             arg[3], arg[4]);
    dune_resolved_close(&object);
    error = dune_path_resolve(cpu, call, AT_FDCWD, (uint64_t)copy, flags | DUNE_PATH_PARENT, access,
                              &object);
    if (error != 0)
        return error;
    return dune_path_act(cpu, &object, call->nr,
                         (uint64_t)dune_path_link(cpu, object.fd, object.last, true), arg[1],
                         arg[2], arg[3], arg[4]);
}

long dune_do_setxattr(struct dune_vcpu *cpu, struct dune_call *call)
{
    return attribute(cpu, call, __NR_setxattr, DUNE_MAY_WRITE);
}

long dune_do_lsetxattr(struct dune_vcpu *cpu, struct dune_call *call)
{
    return attribute(cpu, call, __NR_setxattr, DUNE_MAY_WRITE);
}

long dune_do_getxattr(struct dune_vcpu *cpu, struct dune_call *call)
{
    return attribute(cpu, call, __NR_getxattr, DUNE_MAY_READ);
}

long dune_do_lgetxattr(struct dune_vcpu *cpu, struct dune_call *call)
{
    return attribute(cpu, call, __NR_getxattr, DUNE_MAY_READ);
}

long dune_do_listxattr(struct dune_vcpu *cpu, struct dune_call *call)
{
    return attribute(cpu, call, __NR_listxattr, DUNE_MAY_READ);
}

long dune_do_llistxattr(struct dune_vcpu *cpu, struct dune_call *call)
{
    return attribute(cpu, call, __NR_listxattr, DUNE_MAY_READ);
}

long dune_do_removexattr(struct dune_vcpu *cpu, struct dune_call *call)
{
    return attribute(cpu, call, __NR_removexattr, DUNE_MAY_WRITE);
}

long dune_do_lremovexattr(struct dune_vcpu *cpu, struct dune_call *call)
{
    return attribute(cpu, call, __NR_removexattr, DUNE_MAY_WRITE);
}

/* fsetxattr, fremovexattr: on the link of an O_PATH copy, by the call with a path. */
static long attribute_of(struct dune_vcpu *cpu, struct dune_call *call, uint64_t by_path)
{
    const uint64_t *arg = call->arg;
    struct dune_resolved object;
    long error;

    if (!dune_path_ruled(cpu))
        return forward(cpu, call);
    error = changing(cpu, call, arg[0], 0, AT_EMPTY_PATH, &object);
    if (error != 0)
        return error;
    return dune_path_act(cpu, &object, by_path, link_of(cpu, &object, true), arg[1], arg[2],
                         arg[3], arg[4]);
}

long dune_do_fsetxattr(struct dune_vcpu *cpu, struct dune_call *call)
{
    return attribute_of(cpu, call, __NR_setxattr);
}

long dune_do_fremovexattr(struct dune_vcpu *cpu, struct dune_call *call)
{
    return attribute_of(cpu, call, __NR_removexattr);
}
