/* The path broker: every system call that takes a path, and what it may lead to.
 *
 * A path is looked up once, by the kernel, to an O_PATH descriptor; what is checked and what is
 * acted upon is that descriptor, never the path again. So neither a symbolic link nor another
 * thread can change the answer in between.
 *
 * The descriptor. openat() gives the lowest free number, which ring 3's other threads may name:
 * they could close it, or put another file there. It is therefore copied to a number >=
 * vault->first_fd, which ring 3 can't name, and only this copy is looked at and used. Whatever a
 * thread put under the low number meanwhile is then simply the file that is checked. The low one is
 * an O_PATH descriptor: nobody can read, write, map or ioctl it, and to open it again is to come by
 * here again.
 *
 * Acting on it: by *at() calls with AT_EMPTY_PATH, with the parent's descriptor and a last
 * component that the call doesn't follow, or by its link in procfs. procfs is reached by vault->
 * proc_fd, so that chroot() can't put another one in its place; calls that have no *at() form say
 * "/proc/thread-self/fd/N", and only while chroot() is refused. "thread-self": the group's
 * leader may have ended, and its /proc/self/fd is then empty.
 */
#ifndef DUNE_PATH_H
#define DUNE_PATH_H

#include "shim/policy.h"
#include "shim/shim.h"

#define DUNE_PATH_MAX 4096

#pragma GCC visibility push(hidden) /* no GOT in the image */

/* For dune_path_resolve(), besides AT_SYMLINK_NOFOLLOW and AT_EMPTY_PATH of the kernel. */
#define DUNE_PATH_PARENT 0x01000000u /* the directory of the last component, and its name */
#define DUNE_PATH_META 0x02000000u   /* only to look at it or change its inode: no danger in it */
#define DUNE_PATH_HERE 0x04000000u   /* the path is the shim's own memory, not ring 3's */
#define DUNE_PATH_NAME 0x08000000u   /* the name is wanted, whether rules apply or not */
#define DUNE_PATH_DIRECTORY 0x10000000u /* -ENOTDIR for anything else */

/* What a rule may grant besides DUNE_MAY_*: to see that it is there (a rule lies below it). */
#define DUNE_MAY_SEE 0x100u

/* An object that a path led to. */
struct dune_resolved {
    int32_t fd;       /* O_PATH, close-on-exec, >= first_fd; -1: none. dune_resolved_close() */
    uint32_t mode;    /* st_mode; PARENT: the directory's */
    uint32_t links;   /* st_nlink */
    uint32_t major, minor;   /* of a device file */
    uint64_t device, inode;  /* st_dev (major << 32 | minor), st_ino */
    bool mount_root;         /* a mount shows it here: its name isn't its file system's */
    char *name;       /* its canonical name (PARENT: the last component's), in scratch; NULL: not
                       * asked for; no leading '/': it has none (a pipe, a socket) */
    uint32_t name_bytes;     /* of it, without the NUL */
    char *last;       /* PARENT: the last component as it was given, slashes after it included */
};

/* Looks the path up and checks it: against what could reach the vault (unless META), and against
 * the policy, where every bit of `access` (DUNE_MAY_*, 0: to see it) must be granted. dirfd is
 * ring 3's. Returns 0 or a negative errno; nothing to close then. The calls refused are logged as
 * `call`. Uses the scratch of the call under way (about 12 KiB). */
long dune_path_resolve(struct dune_vcpu *cpu, const struct dune_call *call, int dirfd,
                       uint64_t path, uint32_t flags, uint32_t access, struct dune_resolved *out);
void dune_resolved_close(struct dune_resolved *object);

/* In scratch: "thread-self/fd/N", to be used with vault->proc_fd (`absolute`: "/proc/..." for
 * calls without a directory argument). A suffix other than NULL comes behind a '/'. NULL: the
 * scratch is used up. */
char *dune_path_link(struct dune_vcpu *cpu, int fd, const char *suffix, bool absolute);

/* At dune_init(), once vault->first_fd and the policy are set: opens what the broker needs of
 * procfs. -ENOENT: /proc isn't mounted or isn't procfs. */
int dune_path_init(struct dune_vault *vault);

/* Moves a descriptor up out of ring 3's reach: its new number, >= first_fd, or a negative errno.
 * The old one is closed either way. Negative numbers are returned as they are. */
long dune_fd_raise(const struct dune_vault *vault, long fd);
/* False: a descriptor that ring 3 has no business with (-EBADF). Negative ones are fine here. */
static inline bool dune_fd_is_free(const struct dune_vault *vault, uint64_t fd)
{
    return (int32_t)fd < vault->first_fd;
}
/* What a forwarded call that makes a descriptor returned: closes it and says -EMFILE when it lies
 * beyond ring 3's limit. */
long dune_fd_result(struct dune_vcpu *cpu, long fd);
/* RLIMIT_NOFILE as ring 3 sees it ([0] soft, [1] hard), and as it sets it: the process's own stays,
 * since the shim's descriptors lie above. */
void dune_fd_get_limit(const struct dune_vault *vault, uint64_t limit[2]);
long dune_fd_set_limit(struct dune_vault *vault, const uint64_t limit[2]);

/* A socket address that ring 3 gave, copied in to shim memory (`bytes` of it). Where rules apply,
 * and for an AF_UNIX path, *to becomes one in scratch that leads to the checked object, and *fd
 * what to close behind the call (else -1); otherwise *to is a copy in scratch. `make`: bind().
 * Returns the new length, or a negative errno. */
long dune_path_sockaddr(struct dune_vcpu *cpu, const struct dune_call *call, const void *address,
                        uint64_t bytes, bool make, void **to, int *fd);

/* ---- policy.c -------------------------------------------------------------------------------- */

/* Everything but what protects the vault. */
void dune_policy_default(struct dune_policy *policy);
/* What the rules grant for a canonical name: DUNE_MAY_*, of its longest match. */
uint32_t dune_policy_access(const struct dune_policy *policy, const char *name, uint32_t bytes);
/* True: a rule is about something strictly below the name. */
bool dune_policy_below(const struct dune_policy *policy, const char *name, uint32_t bytes);
/* 0, or -EPERM (logged as `call`) when the policy denies one of these DUNE_CLASS_*. */
long dune_policy_class(struct dune_vcpu *cpu, const struct dune_call *call, uint32_t classes);

#pragma GCC visibility pop

#endif
