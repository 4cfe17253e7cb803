/* The path broker's core: from a path to a checked descriptor. path.h says why this way. */
#include "shim/path_priv.h"

#define MAY_ALL (DUNE_MAY_READ | DUNE_MAY_WRITE | DUNE_MAY_EXEC)

/* object->name, once. */
long dune_path_want_name(struct dune_vcpu *cpu, struct dune_resolved *object)
{
    long bytes;

    if (object->name != NULL)
        return 0;
    object->name = dune_scratch(cpu, DUNE_PATH_MAX);
    if (object->name == NULL)
        return -ENOMEM;
    bytes = dune_path_name(cpu, object->fd, object->name);
    if (bytes < 0) {
        object->name = NULL;
        return bytes;
    }
    object->name_bytes = (uint32_t)bytes;
    return 0;
}

/* What the kernel puts behind the name of a file that was removed. */
static bool cut_deleted(struct dune_resolved *object)
{
    static const char mark[] = " (deleted)";
    uint32_t n = sizeof(mark) - 1;

    if (object->links != 0 || object->name_bytes <= n ||
        __builtin_memcmp(object->name + object->name_bytes - n, mark, n) != 0)
        return false;
    object->name_bytes -= n;
    object->name[object->name_bytes] = '\0';
    return true;
}

/* Says what may not be done to which name; composed in scratch. */
static long refuse_name(struct dune_vcpu *cpu, const struct dune_call *call, const char *name,
                        uint32_t bytes, uint32_t missing)
{
    const char *verb = (missing & DUNE_MAY_WRITE) != 0  ? "no rule lets it write "
                       : (missing & DUNE_MAY_EXEC) != 0 ? "no rule lets it execute "
                       : (missing & DUNE_MAY_READ) != 0 ? "no rule lets it read "
                                                        : "no rule lets it see ";
    uint32_t n = dune_text_bytes(verb);
    char *why = dune_scratch(cpu, n + bytes + 1);

    if (why == NULL)
        return dune_refuse(cpu, call, "no rule lets it", -EACCES);
    __builtin_memcpy(why, verb, n);
    for (uint32_t i = 0; i < bytes; i++) /* no line breaks: a name can't forge a log line */
        why[n + i] = name[i] > 0 && name[i] < ' ' ? '?' : name[i];
    why[n + bytes] = '\0';
    return dune_refuse(cpu, call, why, -EACCES);
}

long dune_path_rules(struct dune_vcpu *cpu, const struct dune_call *call, const char *name,
                     uint32_t bytes, uint32_t access)
{
    const struct dune_policy *policy = cpu->vault->policy;
    uint32_t granted, need = (access & MAY_ALL) | DUNE_MAY_SEE;
    char self[16], *alias;
    long n;

    granted = dune_policy_access(policy, name, bytes);
    if ((need & ~granted) == 0)
        return 0;
    /* rules may say /proc/self: the canonical name has this process's number there */
    n = dune_proc_self(cpu, self);
    if (n > 0 && bytes >= 6 + (uint32_t)n && __builtin_memcmp(name, "/proc/", 6) == 0 &&
        __builtin_memcmp(name + 6, self, (uint64_t)n) == 0 &&
        (bytes == 6 + (uint32_t)n || name[6 + n] == '/')) {
        uint32_t rest = bytes - 6 - (uint32_t)n;

        alias = dune_scratch(cpu, 10 + rest + 1);
        if (alias == NULL)
            return -ENOMEM;
        __builtin_memcpy(alias, "/proc/self", 10);
        __builtin_memcpy(alias + 10, name + 6 + n, rest);
        granted |= dune_policy_access(policy, alias, 10 + rest);
        if ((need & ~granted) == 0)
            return 0;
    }
    return refuse_name(cpu, call, name, bytes, need & ~granted);
}

/* One of this process's own descriptors, or its cwd, root or exe: the only way to objects without
 * a name that rules leave. `out` is what it is now, as it may be another since. */
static long own_magic(struct dune_vcpu *cpu, const struct dune_call *call,
                      const struct dune_lookup *lookup, struct dune_resolved *out)
{
    struct dune_last last;
    enum dune_proc_place place;
    long error = dune_path_chase(cpu, lookup->dirfd, lookup->path, lookup->resolve, &last);

    if (error != 0)
        return error;
    place = dune_proc_place(cpu, last.parent);
    if (last.kind != DUNE_LAST_MAGIC || place < DUNE_PROC_SELF ||
        dune_path_number(last.name) >= cpu->vault->first_fd) {
        dune_sys1(__NR_close, last.parent);
        return dune_refuse(cpu, call, "a nameless object that isn't its own", -EACCES);
    }
    error = dune_path_lookup(cpu, last.parent, last.name, lookup->oflags & ~O_NOFOLLOW, 0);
    dune_sys1(__NR_close, last.parent);
    if (error < 0)
        return error;
    dune_resolved_close(out);
    out->fd = (int32_t)error;
    out->name = NULL;
    error = dune_path_look(out);
    return error != 0 ? error : dune_path_want_name(cpu, out);
}

/* True: its name is a name in this mount namespace, and its own. */
static bool is_named_so(struct dune_vcpu *cpu, const struct dune_resolved *object)
{
    struct dune_resolved again = {0};
    bool same;
    long fd = dune_path_lookup(cpu, AT_FDCWD, object->name, O_NOFOLLOW, RESOLVE_NO_SYMLINKS);

    if (fd < 0)
        return false;
    again.fd = (int32_t)fd;
    same = dune_path_look(&again) == 0 && again.device == object->device &&
           again.inode == object->inode;
    dune_resolved_close(&again);
    return same;
}

/* The rules for an object that was reached through a magic link of procfs: those lead out of the
 * file tree, into other namespaces too, where names mean other things. */
static long check_magic(struct dune_vcpu *cpu, const struct dune_call *call,
                        const struct dune_lookup *lookup, struct dune_resolved *out)
{
    long error = dune_path_want_name(cpu, out);

    if (error != 0)
        return error;
    if (out->name[0] == '/' && is_named_so(cpu, out))
        return dune_path_rules(cpu, call, out->name, out->name_bytes, lookup->access);
    error = own_magic(cpu, call, lookup, out);
    if (error != 0)
        return error;
    if (out->name[0] != '/')
        return 0; /* it has it already, so it may have it again */
    if (!is_named_so(cpu, out) && cut_deleted(out) &&
        __builtin_memcmp(out->name, "/memfd:", out->name_bytes < 7 ? out->name_bytes : 7) == 0)
        return 0;
    return dune_path_rules(cpu, call, out->name, out->name_bytes, lookup->access);
}

/* Without rules. A regular file without a name is the memory behind some mapping, of the data
 * windows or of the process that made them, to which /proc/PID/map_files leads: ring 3 may have
 * only what it has open. Or it lost its name just now: then it is what a plain path leads to. */
static long check_nameless(struct dune_vcpu *cpu, const struct dune_call *call,
                           const struct dune_lookup *lookup, struct dune_resolved *out)
{
    long fd = dune_path_lookup(cpu, lookup->dirfd, lookup->path, lookup->oflags,
                               lookup->resolve | RESOLVE_NO_MAGICLINKS);

    if (fd == -ELOOP)
        return own_magic(cpu, call, lookup, out);
    if (fd < 0)
        return fd;
    dune_resolved_close(out);
    out->fd = (int32_t)fd;
    return dune_path_look(out);
}

/* Fills *out for the descriptor in it: what it is, and whether ring 3 may have it. */
static long check(struct dune_vcpu *cpu, const struct dune_call *call,
                  const struct dune_lookup *lookup, bool magic, struct dune_resolved *out)
{
    const char *danger;
    long error = dune_path_look(out);

    if (error != 0)
        return error;
    if (dune_path_ruled(cpu)) {
        if (magic) {
            error = check_magic(cpu, call, lookup, out);
        } else {
            error = dune_path_want_name(cpu, out);
            if (error == 0)
                cut_deleted(out);
            if (error == 0)
                error = dune_path_rules(cpu, call, out->name, out->name_bytes, lookup->access);
        }
    } else if (out->links == 0 && dune_is_type(out, S_IFREG) &&
               (lookup->flags & DUNE_PATH_META) == 0) {
        error = check_nameless(cpu, call, lookup, out);
    }
    if (error != 0)
        return error;
    if ((lookup->flags & DUNE_PATH_META) == 0) {
        danger = dune_path_danger(cpu, out, lookup->access);
        if (danger != NULL)
            return dune_refuse(cpu, call, danger, -EACCES);
    }
    return (lookup->flags & DUNE_PATH_NAME) != 0 ? dune_path_want_name(cpu, out) : 0;
}

/* What ring 3 finds at /proc/self/exe is the program that it is, not the one that started it; and
 * the shim's descriptors in /proc/self/fd aren't to be opened (to look at them does no harm, and
 * `ls -l` there does). Only when the path itself says so: a symbolic
 * link to there may still tell. */
long dune_path_redirect(struct dune_vcpu *cpu, struct dune_lookup *lookup)
{
    const char *last = lookup->path, *self = cpu->vault->policy->self, *parent;
    bool number, exe;
    char *copy;
    long fd;
    enum dune_proc_place place;

    for (const char *p = lookup->path; *p != '\0'; p++)
        last = *p == '/' ? p + 1 : last;
    number = (lookup->flags & DUNE_PATH_META) == 0 &&
             dune_path_number(last) >= cpu->vault->first_fd;
    exe = self[0] != '\0' && (lookup->oflags & O_NOFOLLOW) == 0 && last[0] == 'e' &&
          last[1] == 'x' && last[2] == 'e' && last[3] == '\0';
    if (!number && !exe)
        return 0;
    copy = dune_scratch(cpu, DUNE_PATH_MAX);
    if (copy == NULL)
        return -ENOMEM;
    __builtin_memcpy(copy, lookup->path, dune_text_bytes(lookup->path) + 1);
    dune_path_split(copy, &parent);
    fd = dune_path_lookup(cpu, lookup->dirfd, parent, O_DIRECTORY, lookup->resolve);
    if (fd < 0)
        return 0; /* the lookup itself will say why */
    place = dune_proc_place(cpu, (int)fd);
    dune_sys1(__NR_close, fd);
    if (number && place == DUNE_PROC_SELF_FD)
        return -ENOENT;
    if (exe && place == DUNE_PROC_SELF)
        lookup->path = self;
    return 0;
}

/* Looks up and checks; the flags are the kernel's. */
static long find(struct dune_vcpu *cpu, const struct dune_call *call,
                 const struct dune_lookup *lookup, struct dune_resolved *out)
{
    uint64_t strict = dune_path_ruled(cpu) ? RESOLVE_NO_MAGICLINKS : 0;
    bool magic = lookup->ours;
    long result = dune_path_lookup(cpu, lookup->dirfd, lookup->path, lookup->oflags,
                                   lookup->resolve | strict);

    if (result == -ELOOP && strict != 0) {
        magic = true;
        result = dune_path_lookup(cpu, lookup->dirfd, lookup->path, lookup->oflags,
                                  lookup->resolve);
    }
    if (result < 0)
        return result;
    out->fd = (int32_t)result;
    result = check(cpu, call, lookup, magic, out);
    if (result != 0)
        dune_resolved_close(out);
    return result;
}

/* The caller's directory as the kernel shall see it. A number of the shim's is none: an absolute
 * path goes on, any other is -EBADF. */
static int directory_of(const struct dune_vcpu *cpu, const struct dune_lookup *lookup)
{
    bool fine = lookup->ours || dune_fd_is_free(cpu->vault, (uint64_t)lookup->dirfd);

    return fine ? lookup->dirfd : -1;
}

long dune_path_object(struct dune_vcpu *cpu, const struct dune_call *call,
                      const struct dune_lookup *lookup, struct dune_resolved *out)
{
    struct dune_lookup actual = *lookup;
    long error;

    __builtin_memset(out, 0, sizeof(*out));
    out->fd = -1;
    actual.dirfd = directory_of(cpu, lookup);
    error = dune_path_redirect(cpu, &actual);
    return error != 0 ? error : find(cpu, call, &actual, out);
}

long dune_path_parent(struct dune_vcpu *cpu, const struct dune_call *call,
                      const struct dune_lookup *lookup, struct dune_resolved *out)
{
    struct dune_lookup parent = *lookup;
    char *copy = dune_scratch(cpu, DUNE_PATH_MAX);
    long error;

    __builtin_memset(out, 0, sizeof(*out));
    out->fd = -1;
    if (copy == NULL)
        return -ENOMEM;
    if (lookup->path[0] == '\0')
        return -ENOENT;
    __builtin_memcpy(copy, lookup->path, dune_text_bytes(lookup->path) + 1);
    out->last = dune_path_split(copy, &parent.path);
    parent.dirfd = directory_of(cpu, lookup);
    parent.oflags = O_DIRECTORY;
    parent.flags = DUNE_PATH_META; /* a directory has no content that could be dangerous */
    parent.access = 0;             /* what counts is the name in it */
    error = find(cpu, call, &parent, out);
    if (error != 0 || (!dune_path_ruled(cpu) && (lookup->flags & DUNE_PATH_NAME) == 0))
        return error;
    error = dune_path_child(cpu, out);
    if (error == 0 && dune_path_ruled(cpu))
        error = dune_path_rules(cpu, call, out->name, out->name_bytes, lookup->access);
    if (error != 0)
        dune_resolved_close(out);
    return error;
}

/* AT_EMPTY_PATH: an O_PATH copy of ring 3's own descriptor. Not a dup(): closing that would drop
 * the process's record locks on the file. */
static long from_descriptor(struct dune_vcpu *cpu, const struct dune_call *call, int fd,
                            const struct dune_lookup *lookup, struct dune_resolved *out)
{
    char *link = dune_path_link(cpu, fd, NULL, false);
    long result;

    __builtin_memset(out, 0, sizeof(*out));
    out->fd = -1;
    if (link == NULL)
        return -ENOMEM;
    if (fd == AT_FDCWD)
        result = dune_path_lookup(cpu, fd, ".", 0, 0);
    else if (fd < 0 || !dune_fd_is_free(cpu->vault, (uint64_t)fd))
        return -EBADF;
    else
        result = dune_path_lookup(cpu, cpu->vault->proc_fd, link, 0, 0);
    if (result < 0)
        return result == -ENOENT ? -EBADF : result;
    out->fd = (int32_t)result;
    result = dune_path_look(out);
    if (result == 0 && (dune_path_ruled(cpu) || (lookup->flags & DUNE_PATH_NAME) != 0))
        result = dune_path_want_name(cpu, out);
    if (result == 0 && dune_path_ruled(cpu) && out->name[0] == '/') {
        bool memory = cut_deleted(out) && out->name_bytes >= 7 &&
                      __builtin_memcmp(out->name, "/memfd:", 7) == 0;

        if (!memory)
            result = dune_path_rules(cpu, call, out->name, out->name_bytes, lookup->access);
    }
    if (result != 0)
        dune_resolved_close(out);
    return result;
}

long dune_path_resolve(struct dune_vcpu *cpu, const struct dune_call *call, int dirfd,
                       uint64_t path, uint32_t flags, uint32_t access, struct dune_resolved *out)
{
    struct dune_lookup lookup = {.dirfd = dirfd, .flags = flags, .access = access};
    char *copy;
    long error;

    out->fd = -1;
    if (path == 0 && (flags & AT_EMPTY_PATH) != 0)
        return from_descriptor(cpu, call, dirfd, &lookup, out);
    error = dune_path_copy(cpu, path, flags, &copy);
    if (error != 0)
        return error;
    lookup.path = copy;
    lookup.oflags = ((flags & AT_SYMLINK_NOFOLLOW) != 0 ? O_NOFOLLOW : 0) |
                    ((flags & DUNE_PATH_DIRECTORY) != 0 ? O_DIRECTORY : 0);
    if (copy[0] == '\0' && (flags & AT_EMPTY_PATH) != 0)
        return from_descriptor(cpu, call, dirfd, &lookup, out);
    if ((flags & DUNE_PATH_PARENT) != 0)
        return dune_path_parent(cpu, call, &lookup, out);
    return dune_path_object(cpu, call, &lookup, out);
}
