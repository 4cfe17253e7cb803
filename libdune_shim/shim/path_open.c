/* open() and its family. Host side.
 *
 * What exists is opened through the link of the checked descriptor in procfs, without O_CREAT and
 * O_NOFOLLOW: it is the object itself. What doesn't is made with O_EXCL|O_NOFOLLOW in the checked
 * directory, which follows nothing; when somebody was faster, all over again.
 *
 * Differs from Linux: F_GETFL doesn't show O_NOFOLLOW; fs.protected_regular and protected_fifos
 * don't refuse O_CREAT on another user's file in a sticky directory; openat2() with RESOLVE_BENEATH
 * or RESOLVE_IN_ROOT doesn't make the target of a dangling link (-EXDEV), and with RESOLVE_CACHED
 * it always says -EAGAIN.
 */
#include "shim/path_priv.h"

#define TMPFILE (O_TMPFILE & ~O_DIRECTORY)
#define CREATE_TRIES 64

struct open_request {
    char *path; /* in scratch */
    int dirfd;
    uint64_t flags, mode, resolve;
};

static uint32_t open_access(uint64_t flags)
{
    uint32_t access = (flags & O_TRUNC) != 0 ? DUNE_MAY_WRITE : 0;

    if ((flags & O_PATH) != 0)
        return 0;
    if ((flags & O_ACCMODE) != O_WRONLY)
        access |= DUNE_MAY_READ;
    if ((flags & O_ACCMODE) != O_RDONLY)
        access |= DUNE_MAY_WRITE;
    return access;
}

/* The object is known; opens it. */
static long open_object(struct dune_vcpu *cpu, const struct open_request *request,
                        const struct dune_resolved *object)
{
    uint64_t flags = request->flags;
    uint64_t arg[6] = {(uint64_t)cpu->vault->proc_fd, 0, flags & ~(uint64_t)(O_CREAT | O_NOFOLLOW),
                       request->mode, 0, 0};

    if ((flags & O_PATH) != 0)
        return dune_sys3(__NR_fcntl, object->fd,
                         (flags & O_CLOEXEC) != 0 ? F_DUPFD_CLOEXEC : F_DUPFD, 0);
    if (dune_is_type(object, S_IFLNK))
        return -ELOOP; /* O_NOFOLLOW */
    if ((flags & O_CREAT) != 0 && dune_is_type(object, S_IFDIR))
        return -EISDIR;
    if ((flags & TMPFILE) == 0)
        arg[3] = 0;
    arg[1] = (uint64_t)dune_path_link(cpu, object->fd, NULL, false);
    if (arg[1] == 0)
        return -ENOMEM;
    return dune_forward_raw(cpu, __NR_openat, arg);
}

/* Makes `name` in the directory; -EEXIST when it is there. */
static long create_in(struct dune_vcpu *cpu, const struct open_request *request, int directory,
                      const char *name)
{
    uint64_t arg[6] = {(uint64_t)directory, (uint64_t)name,
                       request->flags | O_CREAT | O_EXCL | O_NOFOLLOW, request->mode, 0, 0};

    return dune_forward_raw(cpu, __NR_openat, arg);
}

/* O_EXCL, or slashes behind the name (-EISDIR by the kernel): it is never followed. */
static long create_exclusive(struct dune_vcpu *cpu, const struct dune_call *call,
                             const struct open_request *request, const struct dune_lookup *lookup)
{
    struct dune_resolved parent;
    struct dune_lookup made = *lookup;
    long result;

    made.access |= DUNE_MAY_WRITE;
    result = dune_path_parent(cpu, call, &made, &parent);
    if (result != 0)
        return result;
    result = create_in(cpu, request, parent.fd, parent.last);
    dune_resolved_close(&parent);
    /* "./" and "/" are there: O_EXCL was not asked for */
    return result == -EEXIST && (request->flags & O_EXCL) == 0 ? -EISDIR : result;
}

/* It isn't there: makes it where the symbolic links of the last component end. -EEXIST: it has come
 * up since, look again. */
static long create_missing(struct dune_vcpu *cpu, const struct dune_call *call,
                           const struct open_request *request, const struct dune_lookup *lookup)
{
    struct dune_lookup here = *lookup;
    struct dune_last last;
    struct dune_resolved parent;
    long result;

    result = dune_path_chase(cpu, request->dirfd, request->path, request->resolve, &last);
    if (result != 0)
        return result;
    result = -EEXIST;
    if (last.kind == DUNE_LAST_MISSING && last.slash)
        result = -EISDIR;
    if (last.kind == DUNE_LAST_MISSING && !last.slash) {
        here.dirfd = last.parent;
        here.path = last.name;
        here.ours = true;
        here.resolve = 0;
        here.access |= DUNE_MAY_WRITE;
        result = dune_path_parent(cpu, call, &here, &parent);
        if (result == 0) {
            result = create_in(cpu, request, parent.fd, parent.last);
            dune_resolved_close(&parent);
        }
    }
    dune_sys1(__NR_close, last.parent);
    return result;
}

static long open_or_create(struct dune_vcpu *cpu, const struct dune_call *call,
                           const struct open_request *request, const struct dune_lookup *lookup)
{
    uint32_t used = cpu->scratch_used, bytes = dune_text_bytes(request->path);
    struct dune_resolved object;
    long result = -EEXIST;

    if (bytes == 0)
        return -ENOENT;
    if ((request->flags & O_EXCL) != 0 || (bytes > 1 && request->path[bytes - 1] == '/'))
        return create_exclusive(cpu, call, request, lookup);
    for (unsigned i = 0; i < CREATE_TRIES && result == -EEXIST; i++) {
        cpu->scratch_used = used; /* each try takes as much again */
        result = dune_path_object(cpu, call, lookup, &object);
        if (result == 0) {
            result = open_object(cpu, request, &object);
            dune_resolved_close(&object);
            return result;
        }
        if (result == -ENOENT)
            result = create_missing(cpu, call, request, lookup);
    }
    return result;
}

/* Flags that the kernel refuses before it looks at the path: it says so itself, at no path. */
static long check_flags(uint64_t flags, uint64_t mode)
{
    long result;

    if ((flags & TMPFILE) == 0 && (flags & (O_CREAT | O_DIRECTORY)) != (O_CREAT | O_DIRECTORY))
        return 0;
    result = dune_sys4(__NR_openat, AT_FDCWD, "", flags, mode);
    return result == -ENOENT ? 0 : result;
}

static long open_path(struct dune_vcpu *cpu, const struct dune_call *call,
                      struct open_request *request)
{
    uint64_t flags = request->flags;
    struct dune_lookup lookup = {.path = request->path,
                                 .dirfd = request->dirfd,
                                 .resolve = request->resolve,
                                 .access = open_access(flags)};
    struct dune_resolved object;
    long result;

    lookup.oflags = (uint32_t)(flags & (O_NOFOLLOW | O_DIRECTORY));
    if ((flags & O_PATH) == 0 && (flags & TMPFILE) == 0 && (flags & O_CREAT) != 0)
        return dune_fd_result(cpu, open_or_create(cpu, call, request, &lookup));
    result = dune_path_object(cpu, call, &lookup, &object);
    if (result != 0)
        return result;
    result = open_object(cpu, request, &object);
    dune_resolved_close(&object);
    return dune_fd_result(cpu, result);
}

static long open_common(struct dune_vcpu *cpu, const struct dune_call *call, uint64_t dirfd,
                        uint64_t path, uint64_t flags, uint64_t mode)
{
    struct open_request request = {.dirfd = (int)dirfd, .flags = (uint32_t)flags, .mode = mode};
    long error = check_flags(request.flags, mode);

    if (error == 0)
        error = dune_path_copy(cpu, path, 0, &request.path);
    return error != 0 ? error : open_path(cpu, call, &request);
}

long dune_do_open(struct dune_vcpu *cpu, struct dune_call *call)
{
    return open_common(cpu, call, DUNE_AT_CWD, call->arg[0], call->arg[1], call->arg[2]);
}

long dune_do_openat(struct dune_vcpu *cpu, struct dune_call *call)
{
    return open_common(cpu, call, call->arg[0], call->arg[1], call->arg[2], call->arg[3]);
}

long dune_do_creat(struct dune_vcpu *cpu, struct dune_call *call)
{
    return open_common(cpu, call, DUNE_AT_CWD, call->arg[0], O_CREAT | O_WRONLY | O_TRUNC,
                       call->arg[1]);
}

long dune_do_openat2(struct dune_vcpu *cpu, struct dune_call *call)
{
    struct open_request request = {.dirfd = (int)call->arg[0]};
    uint64_t bytes = call->arg[3];
    struct open_how *how;
    long result;

    if (bytes < sizeof(*how))
        return -EINVAL;
    if (bytes > DUNE_PATH_MAX)
        return -E2BIG;
    how = dune_scratch(cpu, bytes);
    if (how == NULL)
        return -ENOMEM;
    if (dune_copy_in(cpu, how, call->arg[2], bytes) != 0)
        return -EFAULT;
    /* The kernel's own opinion of the structure, all of it: at no path. */
    result = dune_sys4(__NR_openat2, AT_FDCWD, "", how, bytes);
    if (result != -ENOENT)
        return result < 0 ? result : -EINVAL;
    if ((how->resolve & RESOLVE_CACHED) != 0)
        return -EAGAIN;
    request.flags = how->flags;
    request.mode = how->mode;
    request.resolve = how->resolve;
    result = dune_path_copy(cpu, call->arg[1], 0, &request.path);
    return result != 0 ? result : open_path(cpu, call, &request);
}
