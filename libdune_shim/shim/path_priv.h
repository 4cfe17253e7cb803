/* Between the parts of the path broker. */
#ifndef DUNE_PATH_PRIV_H
#define DUNE_PATH_PRIV_H

#include "shim/path.h"
#include "shim/sys.h"

#include <asm/errno.h>
#include <linux/fcntl.h>
#include <linux/openat2.h>
#include <linux/stat.h>

#ifndef S_IFMT /* the kernel's header leaves them to libc */
#define S_IFMT 00170000
#define S_IFREG 0100000
#define S_IFLNK 0120000
#define S_IFDIR 0040000
#define S_IFCHR 0020000
#endif

#define DUNE_LINKS_MAX 40      /* the kernel's MAXSYMLINKS */
#define DUNE_LINK_BYTES 48     /* of "/proc/thread-self/fd/N/" */
#define DUNE_AT_CWD ((uint64_t)AT_FDCWD)

#pragma GCC visibility push(hidden)

/* The kernel's openat(O_PATH) or openat2() on a path in shim memory; the descriptor is raised. */
long dune_path_lookup(struct dune_vcpu *cpu, int dirfd, const char *path, uint32_t oflags,
                      uint64_t resolve);

/* dune_path_resolve() for a path in shim memory (which it keeps), with the caller's O_NOFOLLOW,
 * O_DIRECTORY and RESOLVE_* as they are. */
struct dune_lookup {
    const char *path;
    int dirfd;
    uint32_t oflags;  /* O_NOFOLLOW, O_DIRECTORY */
    uint64_t resolve; /* RESOLVE_* */
    uint32_t flags;   /* DUNE_PATH_META, DUNE_PATH_NAME */
    uint32_t access;
    bool ours; /* dirfd is the shim's, found by any way, magic links included */
};
long dune_path_object(struct dune_vcpu *cpu, const struct dune_call *call,
                      const struct dune_lookup *lookup, struct dune_resolved *out);
long dune_path_parent(struct dune_vcpu *cpu, const struct dune_call *call,
                      const struct dune_lookup *lookup, struct dune_resolved *out);

/* lookup->path becomes policy->self where it says /proc/self/exe; -ENOENT for one of the shim's
 * descriptors in /proc/self/fd. */
long dune_path_redirect(struct dune_vcpu *cpu, struct dune_lookup *lookup);

/* Cuts a path in two, in place: the last component (with the slashes behind it) is returned, the
 * rest is *parent. "/" alone is its own last component. */
char *dune_path_split(char *path, const char **parent);
/* Of the last component, without the slashes behind it. */
uint32_t dune_path_component(const char *last);

/* Where the symbolic links of a last component end. */
struct dune_last {
    int32_t parent; /* >= first_fd: the directory */
    enum { DUNE_LAST_FOUND, DUNE_LAST_MISSING, DUNE_LAST_MAGIC } kind;
    bool slash;     /* slashes came behind it */
    char *name;     /* in scratch */
};
long dune_path_chase(struct dune_vcpu *cpu, int dirfd, const char *path, uint64_t resolve,
                     struct dune_last *last);

/* The canonical name in a buffer of DUNE_PATH_MAX bytes: its length, or a negative errno. */
long dune_path_name(struct dune_vcpu *cpu, int fd, char *name);
/* Checks the name against the rules; logs. `name` must have room for a NUL. */
long dune_path_rules(struct dune_vcpu *cpu, const struct dune_call *call, const char *name,
                     uint32_t bytes, uint32_t access);
/* fstat() into *object. */
long dune_path_look(struct dune_resolved *object);
/* object->name, once. */
long dune_path_want_name(struct dune_vcpu *cpu, struct dune_resolved *object);
/* PARENT: the directory's name becomes that of the last component in it. */
long dune_path_child(struct dune_vcpu *cpu, struct dune_resolved *out);
/* Why ring 3 must not open it; NULL: it may. object->name is filled if it was needed. */
const char *dune_path_danger(struct dune_vcpu *cpu, struct dune_resolved *object, uint32_t access);

/* Whose directory of procfs it is. */
enum dune_proc_place {
    DUNE_PROC_NONE,    /* not procfs */
    DUNE_PROC_ELSE,
    DUNE_PROC_SELF,    /* this process's, or one of its threads' */
    DUNE_PROC_SELF_FD, /* "fd" in that */
};
enum dune_proc_place dune_proc_place(struct dune_vcpu *cpu, int fd);
/* This process's number in procfs, as text: its length, or a negative errno. */
long dune_proc_self(struct dune_vcpu *cpu, char text[16]);

uint32_t dune_text_bytes(const char *text); /* without the NUL */
int64_t dune_path_number(const char *text); /* of digits alone, at most ten; else -1 */

/* Forwards with these arguments, then closes the object's descriptor. */
long dune_path_act(struct dune_vcpu *cpu, struct dune_resolved *object, uint64_t nr, uint64_t a,
                   uint64_t b, uint64_t c, uint64_t d, uint64_t e);
/* "" in scratch; 0: used up */
uint64_t dune_path_empty(struct dune_vcpu *cpu);

/* A path that was copied in (or is the shim's), in scratch. */
long dune_path_copy(struct dune_vcpu *cpu, uint64_t path, uint32_t flags, char **copy);
static inline bool dune_is_type(const struct dune_resolved *object, uint32_t type)
{
    return (object->mode & S_IFMT) == type;
}
/* Rules apply to names. */
static inline bool dune_path_ruled(const struct dune_vcpu *cpu)
{
    return cpu->vault->policy->check_paths != 0;
}

#pragma GCC visibility pop

#endif
