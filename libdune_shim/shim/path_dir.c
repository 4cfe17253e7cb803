/* Calls that make, remove and rename names. Host side.
 *
 * Without rules forwarded as they are: a name leads to nothing that the call itself would open.
 * Under rules they act on the last component in its parent's checked directory, which none of them
 * follows. A name may not give an object more than its old one did: rename() and link() into a
 * place with wider rules are -EXDEV (mv and cp copy then, for which reading is enough).
 */
#include "shim/path_priv.h"

#ifndef RENAME_EXCHANGE
#define RENAME_EXCHANGE 2u
#endif
#define RENAME_FLAGS 7u /* NOREPLACE, EXCHANGE, WHITEOUT */
#define S_IFBLK 0060000
#define MAY_ALL (DUNE_MAY_READ | DUNE_MAY_WRITE | DUNE_MAY_EXEC)

static long forward(struct dune_vcpu *cpu, const struct dune_call *call)
{
    return dune_forward_raw(cpu, call->nr, call->arg);
}

/* The directory, to change `path` in it. */
static long parent_of(struct dune_vcpu *cpu, const struct dune_call *call, uint64_t dirfd,
                      uint64_t path, struct dune_resolved *parent)
{
    return dune_path_resolve(cpu, call, (int)dirfd, path, DUNE_PATH_PARENT | DUNE_PATH_META,
                             DUNE_MAY_WRITE, parent);
}

static long make(struct dune_vcpu *cpu, struct dune_call *call, uint64_t dirfd, uint64_t path,
                 uint64_t nr, const uint64_t rest[2])
{
    struct dune_resolved parent;
    long error;

    if (!dune_path_ruled(cpu))
        return forward(cpu, call);
    error = parent_of(cpu, call, dirfd, path, &parent);
    if (error != 0)
        return error;
    return dune_path_act(cpu, &parent, nr, (uint64_t)parent.fd, (uint64_t)parent.last, rest[0],
                         rest[1], 0);
}

long dune_do_mkdir(struct dune_vcpu *cpu, struct dune_call *call)
{
    return make(cpu, call, DUNE_AT_CWD, call->arg[0], __NR_mkdirat, call->arg + 1);
}

long dune_do_mkdirat(struct dune_vcpu *cpu, struct dune_call *call)
{
    return make(cpu, call, call->arg[0], call->arg[1], __NR_mkdirat, call->arg + 2);
}

/* A device file in a writable place would be a way around what the rules say of the device. */
static long make_node(struct dune_vcpu *cpu, struct dune_call *call, uint64_t dirfd,
                      uint64_t path, const uint64_t rest[2])
{
    uint32_t type = (uint32_t)rest[0] & S_IFMT;

    if (dune_path_ruled(cpu) && (type == S_IFCHR || type == S_IFBLK))
        return dune_refuse(cpu, call, "a new device file, where rules apply", -EPERM);
    return make(cpu, call, dirfd, path, __NR_mknodat, rest);
}

long dune_do_mknod(struct dune_vcpu *cpu, struct dune_call *call)
{
    return make_node(cpu, call, DUNE_AT_CWD, call->arg[0], call->arg + 1);
}

long dune_do_mknodat(struct dune_vcpu *cpu, struct dune_call *call)
{
    return make_node(cpu, call, call->arg[0], call->arg[1], call->arg + 2);
}

long dune_do_unlink(struct dune_vcpu *cpu, struct dune_call *call)
{
    static const uint64_t flags[2];

    return make(cpu, call, DUNE_AT_CWD, call->arg[0], __NR_unlinkat, flags);
}

long dune_do_rmdir(struct dune_vcpu *cpu, struct dune_call *call)
{
    static const uint64_t flags[2] = {AT_REMOVEDIR, 0};

    return make(cpu, call, DUNE_AT_CWD, call->arg[0], __NR_unlinkat, flags);
}

long dune_do_unlinkat(struct dune_vcpu *cpu, struct dune_call *call)
{
    if (((uint32_t)call->arg[2] & ~(uint32_t)AT_REMOVEDIR) != 0)
        return -EINVAL;
    return make(cpu, call, call->arg[0], call->arg[1], __NR_unlinkat, call->arg + 2);
}

static long make_symlink(struct dune_vcpu *cpu, struct dune_call *call, uint64_t target,
                         uint64_t dirfd, uint64_t path)
{
    struct dune_resolved parent;
    long error;

    if (!dune_path_ruled(cpu))
        return forward(cpu, call);
    error = parent_of(cpu, call, dirfd, path, &parent);
    if (error != 0)
        return error;
    return dune_path_act(cpu, &parent, __NR_symlinkat, target, (uint64_t)parent.fd,
                         (uint64_t)parent.last, 0, 0);
}

long dune_do_symlink(struct dune_vcpu *cpu, struct dune_call *call)
{
    return make_symlink(cpu, call, call->arg[0], DUNE_AT_CWD, call->arg[1]);
}

long dune_do_symlinkat(struct dune_vcpu *cpu, struct dune_call *call)
{
    return make_symlink(cpu, call, call->arg[0], call->arg[1], call->arg[2]);
}

/* What was reached by one name is to be reached by another. */
static long may_move(struct dune_vcpu *cpu, const struct dune_call *call,
                     const struct dune_resolved *from, const struct dune_resolved *to)
{
    const struct dune_policy *policy = cpu->vault->policy;
    uint32_t old, new;

    if (from->name[0] != '/')
        return 0; /* no name yet; the kernel says whether it can get one */
    old = dune_policy_access(policy, from->name, from->name_bytes);
    new = dune_policy_access(policy, to->name, to->name_bytes);
    if ((new & MAY_ALL & ~old) != 0)
        return dune_refuse(cpu, call, "its new name would give it wider rights", -EXDEV);
    if (dune_policy_below(policy, from->name, from->name_bytes) ||
        dune_policy_below(policy, to->name, to->name_bytes))
        return dune_refuse(cpu, call, "rules are about something below it", -EXDEV);
    return 0;
}

static long move(struct dune_vcpu *cpu, struct dune_call *call, const uint64_t from[2],
                 const uint64_t to[2], uint64_t flags)
{
    struct dune_resolved old, new;
    long error;

    if (!dune_path_ruled(cpu))
        return forward(cpu, call);
    error = parent_of(cpu, call, from[0], from[1], &old);
    if (error != 0)
        return error;
    error = parent_of(cpu, call, to[0], to[1], &new);
    if (error == 0) {
        error = may_move(cpu, call, &old, &new);
        if (error == 0 && (flags & RENAME_EXCHANGE) != 0)
            error = may_move(cpu, call, &new, &old);
        if (error == 0)
            error = dune_path_act(cpu, &new, __NR_renameat2, (uint64_t)old.fd, (uint64_t)old.last,
                                  (uint64_t)new.fd, (uint64_t)new.last, (uint32_t)flags);
        dune_resolved_close(&new);
    }
    dune_resolved_close(&old);
    return error;
}

long dune_do_rename(struct dune_vcpu *cpu, struct dune_call *call)
{
    const uint64_t from[2] = {DUNE_AT_CWD, call->arg[0]}, to[2] = {DUNE_AT_CWD, call->arg[1]};

    return move(cpu, call, from, to, 0);
}

long dune_do_renameat(struct dune_vcpu *cpu, struct dune_call *call)
{
    return move(cpu, call, call->arg, call->arg + 2, 0);
}

long dune_do_renameat2(struct dune_vcpu *cpu, struct dune_call *call)
{
    if (((uint32_t)call->arg[4] & ~RENAME_FLAGS) != 0)
        return -EINVAL;
    return move(cpu, call, call->arg, call->arg + 2, call->arg[4]);
}

static long make_link(struct dune_vcpu *cpu, struct dune_call *call, const uint64_t from[2],
                      const uint64_t to[2], uint32_t flags)
{
    uint32_t how = ((flags & AT_SYMLINK_FOLLOW) != 0 ? 0 : AT_SYMLINK_NOFOLLOW) |
                   (flags & AT_EMPTY_PATH) | DUNE_PATH_META;
    struct dune_resolved object, parent;
    uint64_t link;
    long error;

    if (!dune_path_ruled(cpu))
        return forward(cpu, call);
    if ((flags & ~(uint32_t)(AT_SYMLINK_FOLLOW | AT_EMPTY_PATH)) != 0)
        return -EINVAL;
    error = dune_path_resolve(cpu, call, (int)from[0], from[1], how, 0, &object);
    if (error != 0)
        return error;
    error = parent_of(cpu, call, to[0], to[1], &parent);
    if (error == 0) {
        link = (uint64_t)dune_path_link(cpu, object.fd, NULL, false);
        error = may_move(cpu, call, &object, &parent);
        if (error == 0)
            error = dune_path_act(cpu, &parent, __NR_linkat, (uint64_t)cpu->vault->proc_fd, link,
                                  (uint64_t)parent.fd, (uint64_t)parent.last, AT_SYMLINK_FOLLOW);
        dune_resolved_close(&parent);
    }
    dune_resolved_close(&object);
    return error;
}

long dune_do_link(struct dune_vcpu *cpu, struct dune_call *call)
{
    const uint64_t from[2] = {DUNE_AT_CWD, call->arg[0]}, to[2] = {DUNE_AT_CWD, call->arg[1]};

    return make_link(cpu, call, from, to, 0);
}

long dune_do_linkat(struct dune_vcpu *cpu, struct dune_call *call)
{
    return make_link(cpu, call, call->arg, call->arg + 2, (uint32_t)call->arg[4]);
}
