/* Calls that look at an object or change its inode. Host side.
 *
 * None of them reaches an object's content, so where no rules apply to names there is nothing to
 * check, and they are forwarded as they are (what /proc/self/exe says excepted). Under rules they
 * act on the checked descriptor.
 */
#include "shim/path_priv.h"

#ifndef __NR_fchmodat2
#define __NR_fchmodat2 452
#endif
#define IN_DONT_FOLLOW 0x02000000u
#define MODE_READ 4 /* access() */
#define MODE_WRITE 2
#define MODE_EXEC 1

struct subject {
    uint64_t dirfd, path;
    uint32_t flags, access;
};

static long forward(struct dune_vcpu *cpu, const struct dune_call *call)
{
    return dune_forward_raw(cpu, call->nr, call->arg);
}

uint64_t dune_path_empty(struct dune_vcpu *cpu)
{
    char *text = dune_scratch(cpu, 1);

    if (text != NULL)
        *text = '\0';
    return (uint64_t)text;
}

long dune_path_act(struct dune_vcpu *cpu, struct dune_resolved *object, uint64_t nr, uint64_t a,
                   uint64_t b, uint64_t c, uint64_t d, uint64_t e)
{
    uint64_t arg[6] = {a, b, c, d, e, 0};
    long result = dune_forward_raw(cpu, nr, arg);

    dune_resolved_close(object);
    return result;
}

static long resolve(struct dune_vcpu *cpu, const struct dune_call *call,
                    const struct subject *subject, struct dune_resolved *object)
{
    return dune_path_resolve(cpu, call, (int)subject->dirfd, subject->path,
                             subject->flags | DUNE_PATH_META, subject->access, object);
}

/* What a look at a path comes to. */
enum look {
    LOOK_AS_IT_IS, /* nothing to check */
    LOOK_OWN,      /* AT_EMPTY_PATH of a descriptor that it has: nothing to check, but the path is
                    * to stay empty */
    LOOK_CHECKED,  /* the object, resolved */
};

/* *look, and the object when that is LOOK_CHECKED. */
static long begin_look(struct dune_vcpu *cpu, const struct dune_call *call,
                       struct subject *subject, enum look *look, struct dune_resolved *object)
{
    struct dune_lookup lookup = {.dirfd = (int)subject->dirfd, .flags = DUNE_PATH_META};
    bool empty = (subject->flags & AT_EMPTY_PATH) != 0;
    char *copy;
    long error;

    *look = empty && subject->path == 0 ? LOOK_OWN : LOOK_AS_IT_IS;
    if ((!dune_path_ruled(cpu) && cpu->vault->policy->self[0] == '\0') || *look == LOOK_OWN)
        return 0;
    error = dune_path_copy(cpu, subject->path, 0, &copy);
    if (error != 0)
        return error;
    if (empty && copy[0] == '\0') {
        *look = LOOK_OWN;
        return 0;
    }
    lookup.path = copy;
    lookup.oflags = (subject->flags & AT_SYMLINK_NOFOLLOW) != 0 ? O_NOFOLLOW : 0;
    if (!dune_path_ruled(cpu)) {
        error = dune_path_redirect(cpu, &lookup);
        if (error != 0 || lookup.path == copy)
            return error;
    }
    *look = LOOK_CHECKED;
    subject->path = (uint64_t)lookup.path;
    subject->flags |= DUNE_PATH_HERE;
    return resolve(cpu, call, subject, object);
}

static long look_stat(struct dune_vcpu *cpu, struct dune_call *call, uint64_t dirfd,
                      uint64_t path, uint64_t buffer, uint32_t flags)
{
    struct subject subject = {.dirfd = dirfd, .path = path, .flags = flags};
    struct dune_resolved object;
    enum look look;
    long error = begin_look(cpu, call, &subject, &look, &object);

    if (error != 0)
        return error;
    if (look == LOOK_OWN && path != 0)
        call->arg[1] = dune_path_empty(cpu);
    if (look != LOOK_CHECKED)
        return forward(cpu, call);
    return dune_path_act(cpu, &object, __NR_newfstatat, (uint64_t)object.fd, dune_path_empty(cpu),
                         buffer, AT_EMPTY_PATH | (flags & AT_NO_AUTOMOUNT), 0);
}

long dune_do_stat(struct dune_vcpu *cpu, struct dune_call *call)
{
    return look_stat(cpu, call, DUNE_AT_CWD, call->arg[0], call->arg[1], 0);
}

long dune_do_lstat(struct dune_vcpu *cpu, struct dune_call *call)
{
    return look_stat(cpu, call, DUNE_AT_CWD, call->arg[0], call->arg[1], AT_SYMLINK_NOFOLLOW);
}

long dune_do_newfstatat(struct dune_vcpu *cpu, struct dune_call *call)
{
    uint32_t flags = (uint32_t)call->arg[3];

    if ((flags & ~(uint32_t)(AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | AT_EMPTY_PATH)) != 0)
        return -EINVAL;
    return look_stat(cpu, call, call->arg[0], call->arg[1], call->arg[2], flags);
}

long dune_do_statx(struct dune_vcpu *cpu, struct dune_call *call)
{
    uint32_t flags = (uint32_t)call->arg[2];
    struct subject subject = {.dirfd = call->arg[0], .path = call->arg[1], .flags = flags &
                              (uint32_t)(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH)};
    struct dune_resolved object;
    enum look look;
    long error = begin_look(cpu, call, &subject, &look, &object);

    if (error != 0)
        return error;
    if (look == LOOK_OWN && call->arg[1] != 0)
        call->arg[1] = dune_path_empty(cpu);
    if (look != LOOK_CHECKED)
        return forward(cpu, call);
    return dune_path_act(cpu, &object, __NR_statx, (uint64_t)object.fd, dune_path_empty(cpu),
                         (flags & ~(uint32_t)AT_SYMLINK_NOFOLLOW) | AT_EMPTY_PATH, call->arg[3],
                         call->arg[4]);
}

static long look_access(struct dune_vcpu *cpu, struct dune_call *call, uint64_t dirfd,
                        uint64_t path, uint64_t mode, uint32_t flags)
{
    struct subject subject = {.dirfd = dirfd, .path = path, .flags = flags &
                              (uint32_t)(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH)};
    struct dune_resolved object;
    enum look look;
    long error;

    if ((mode & ~(uint64_t)7) != 0 ||
        (flags & ~(uint32_t)(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH | AT_EACCESS)) != 0)
        return -EINVAL;
    subject.access = ((mode & MODE_READ) != 0 ? DUNE_MAY_READ : 0) |
                     ((mode & MODE_WRITE) != 0 ? DUNE_MAY_WRITE : 0);
    error = begin_look(cpu, call, &subject, &look, &object);
    if (error != 0)
        return error;
    if (look == LOOK_OWN && path != 0)
        call->arg[1] = dune_path_empty(cpu);
    if (look != LOOK_CHECKED)
        return forward(cpu, call);
    /* what may be executed is a matter of rules; a directory is not, it is searched */
    if ((mode & MODE_EXEC) != 0 && !dune_is_type(&object, S_IFDIR) && dune_path_ruled(cpu)) {
        error = dune_path_rules(cpu, call, object.name, object.name_bytes, DUNE_MAY_EXEC);
        if (error != 0) {
            dune_resolved_close(&object);
            return error;
        }
    }
    return dune_path_act(cpu, &object, __NR_faccessat2, (uint64_t)object.fd, dune_path_empty(cpu),
                         mode, AT_EMPTY_PATH | (flags & AT_EACCESS), 0);
}

long dune_do_access(struct dune_vcpu *cpu, struct dune_call *call)
{
    return look_access(cpu, call, DUNE_AT_CWD, call->arg[0], (uint32_t)call->arg[1], 0);
}

long dune_do_faccessat(struct dune_vcpu *cpu, struct dune_call *call)
{
    return look_access(cpu, call, call->arg[0], call->arg[1], (uint32_t)call->arg[2], 0);
}

long dune_do_faccessat2(struct dune_vcpu *cpu, struct dune_call *call)
{
    return look_access(cpu, call, call->arg[0], call->arg[1], (uint32_t)call->arg[2],
                       (uint32_t)call->arg[3]);
}

/* What /proc/self/exe says when policy->self is set. */
static long read_self(struct dune_vcpu *cpu, uint64_t buffer, int32_t size)
{
    const char *self = cpu->vault->policy->self;
    uint32_t bytes = dune_text_bytes(self);

    if (bytes > (uint32_t)size)
        bytes = (uint32_t)size;
    return dune_copy_out(cpu, buffer, self, bytes) != 0 ? -EFAULT : (long)bytes;
}

static long look_readlink(struct dune_vcpu *cpu, struct dune_call *call, uint64_t dirfd,
                          uint64_t path, uint64_t buffer, int32_t size)
{
    struct subject subject = {.dirfd = dirfd, .flags = AT_SYMLINK_NOFOLLOW | DUNE_PATH_HERE};
    struct dune_lookup lookup = {.dirfd = (int)dirfd, .flags = DUNE_PATH_META};
    struct dune_resolved object;
    char *copy;
    long error;

    if (size <= 0)
        return -EINVAL;
    if (!dune_path_ruled(cpu) && cpu->vault->policy->self[0] == '\0')
        return forward(cpu, call);
    error = dune_path_copy(cpu, path, 0, &copy);
    if (error != 0)
        return error;
    lookup.path = copy;
    error = dune_path_redirect(cpu, &lookup);
    if (error != 0)
        return error;
    if (lookup.path != copy)
        return read_self(cpu, buffer, size);
    if (!dune_path_ruled(cpu) || copy[0] == '\0') {
        /* "": an O_PATH descriptor of a link that it has */
        uint64_t arg[6] = {dirfd, (uint64_t)copy, buffer, (uint64_t)size, 0, 0};

        return dune_forward_raw(cpu, __NR_readlinkat, arg);
    }
    subject.path = (uint64_t)copy;
    error = resolve(cpu, call, &subject, &object);
    if (error != 0)
        return error;
    if (!dune_is_type(&object, S_IFLNK)) {
        dune_resolved_close(&object);
        return -EINVAL;
    }
    return dune_path_act(cpu, &object, __NR_readlinkat, (uint64_t)object.fd, dune_path_empty(cpu),
                         buffer, (uint64_t)size, 0);
}

long dune_do_readlink(struct dune_vcpu *cpu, struct dune_call *call)
{
    return look_readlink(cpu, call, DUNE_AT_CWD, call->arg[0], call->arg[1],
                         (int32_t)call->arg[2]);
}

long dune_do_readlinkat(struct dune_vcpu *cpu, struct dune_call *call)
{
    return look_readlink(cpu, call, call->arg[0], call->arg[1], call->arg[2],
                         (int32_t)call->arg[3]);
}

long dune_do_statfs(struct dune_vcpu *cpu, struct dune_call *call)
{
    struct subject subject = {.dirfd = DUNE_AT_CWD, .path = call->arg[0]};
    struct dune_resolved object;
    long error;

    if (!dune_path_ruled(cpu))
        return forward(cpu, call);
    error = resolve(cpu, call, &subject, &object);
    if (error != 0)
        return error;
    return dune_path_act(cpu, &object, __NR_fstatfs, (uint64_t)object.fd, call->arg[1], 0, 0, 0);
}

long dune_do_chdir(struct dune_vcpu *cpu, struct dune_call *call)
{
    struct subject subject = {
        .dirfd = DUNE_AT_CWD, .path = call->arg[0], .flags = DUNE_PATH_DIRECTORY};
    struct dune_resolved object;
    long error;

    if (!dune_path_ruled(cpu))
        return forward(cpu, call);
    error = resolve(cpu, call, &subject, &object);
    if (error != 0)
        return error;
    return dune_path_act(cpu, &object, __NR_fchdir, (uint64_t)object.fd, 0, 0, 0, 0);
}

long dune_do_chroot(struct dune_vcpu *cpu, struct dune_call *call)
{
    /* Rules are about names as they are now, and "/proc" must stay what it is. */
    if (dune_path_ruled(cpu))
        return dune_refuse(cpu, call, "would change what paths mean", -EPERM);
    return forward(cpu, call);
}

long dune_do_inotify_add_watch(struct dune_vcpu *cpu, struct dune_call *call)
{
    bool stay = ((uint32_t)call->arg[2] & IN_DONT_FOLLOW) != 0;
    struct subject subject = {.dirfd = DUNE_AT_CWD,
                              .path = call->arg[1],
                              .flags = stay ? AT_SYMLINK_NOFOLLOW : 0,
                              .access = DUNE_MAY_READ};
    struct dune_resolved object;
    long error;

    if (!dune_path_ruled(cpu))
        return forward(cpu, call);
    error = resolve(cpu, call, &subject, &object);
    if (error != 0)
        return error;
    if (dune_is_type(&object, S_IFLNK)) { /* a link itself has no other way to it */
        dune_resolved_close(&object);
        return -EACCES;
    }
    return dune_path_act(cpu, &object, __NR_inotify_add_watch, call->arg[0],
                         (uint64_t)dune_path_link(cpu, object.fd, NULL, true),
                         (uint32_t)call->arg[2] & ~IN_DONT_FOLLOW, 0, 0);
}
