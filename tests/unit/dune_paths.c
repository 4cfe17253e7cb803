/* The path broker (libdune_shim/shim/path*.c, fd.c, policy.c) without a guest: the vCPU and the
 * vault are plain memory, "ring 3" is this process, and forwarding is the system call itself.
 * Included whole, so that a test builds one file.
 */
#include "shim/fd.c"
#include "shim/path.c"
#include "shim/path_danger.c"
#define forward forward_dir
#include "shim/path_dir.c"
#undef forward
#undef MAY_ALL
#define forward forward_inode
#include "shim/path_inode.c"
#undef forward
#include "shim/path_meta.c"
#include "shim/path_open.c"
#include "shim/path_unix.c"
#include "shim/path_walk.c"
#include "shim/policy.c"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#pragma GCC visibility push(default)

#define BLOCKS 4096

/* Scratch: a block of its own for each piece, so that the address sanitizer sees its end. */
struct pieces {
    void *block[BLOCKS];
    unsigned n;
};

struct world {
    struct dune_vault vault;
    struct dune_policy policy;
    char last_refusal[8192];
    unsigned refusals;
    void (*before_forward)(void);
};

static struct world world;
static _Thread_local struct pieces pieces;
static _Thread_local struct dune_vcpu this_vcpu;

void *dune_scratch(struct dune_vcpu *cpu, uint64_t bytes)
{
    void *block;

    cpu->scratch_used += (uint32_t)((bytes + 15) & ~(uint64_t)15);
    if (cpu->scratch_used > DUNE_SCRATCH || pieces.n == BLOCKS)
        return NULL;
    block = malloc(bytes);
    memset(block, 0xa5, bytes);
    pieces.block[pieces.n++] = block;
    return block;
}

struct piece { /* struct iovec */
    void *base;
    uint64_t bytes;
};

int dune_copy_in(struct dune_vcpu *cpu, void *to, uint64_t from, uint64_t bytes)
{
    struct piece local = {to, bytes}, remote = {(void *)from, bytes};
    long done = dune_sys6(__NR_process_vm_readv, dune_sys0(__NR_getpid), &local, 1, &remote, 1, 0);

    (void)cpu;
    return bytes == 0 || done == (long)bytes ? 0 : -EFAULT;
}

int dune_copy_out(struct dune_vcpu *cpu, uint64_t to, const void *from, uint64_t bytes)
{
    struct piece local = {(void *)from, bytes}, remote = {(void *)to, bytes};
    long done = dune_sys6(__NR_process_vm_writev, dune_sys0(__NR_getpid), &local, 1, &remote, 1, 0);

    (void)cpu;
    return done == (long)bytes ? 0 : -EFAULT;
}

/* A page at a time: what lies behind the string need not be there. */
long dune_copy_string(struct dune_vcpu *cpu, char *to, uint64_t from, uint64_t limit)
{
    uint64_t filled = 0;

    while (filled < limit) {
        uint64_t part = 4096 - ((from + filled) & 4095), end;

        part = part > limit - filled ? limit - filled : part;
        if (dune_copy_in(cpu, to + filled, from + filled, part) != 0)
            return -EFAULT;
        end = strnlen(to + filled, part);
        filled += end;
        if (end < part)
            return (long)filled;
    }
    return -ENAMETOOLONG;
}

long dune_forward_raw(struct dune_vcpu *cpu, uint64_t nr, const uint64_t arg[6])
{
    (void)cpu;
    if (world.before_forward != NULL)
        world.before_forward();
    return dune_sys((long)nr, arg[0], arg[1], arg[2], arg[3], arg[4], arg[5]);
}

long dune_refuse(struct dune_vcpu *cpu, const struct dune_call *call, const char *why, long error)
{
    (void)cpu;
    (void)call;
    strncpy(world.last_refusal, why, sizeof(world.last_refusal) - 1);
    world.refusals++;
    return error;
}

#define CALLS(X)                                                                                 \
    X(open) X(openat) X(creat) X(openat2) X(stat) X(lstat) X(newfstatat) X(statx) X(access)      \
    X(faccessat) X(faccessat2) X(readlink) X(readlinkat) X(statfs) X(chdir) X(chroot)            \
    X(inotify_add_watch) X(chmod) X(fchmod) X(fchmodat) X(fchmodat2) X(chown) X(lchown)          \
    X(fchown) X(fchownat) X(utimensat) X(utime) X(utimes) X(futimesat) X(truncate) X(setxattr)   \
    X(lsetxattr) X(getxattr) X(lgetxattr) X(listxattr) X(llistxattr) X(removexattr)              \
    X(lremovexattr) X(fsetxattr) X(fremovexattr) X(mkdir) X(mkdirat) X(mknod) X(mknodat)         \
    X(unlink) X(rmdir) X(unlinkat) X(symlink) X(symlinkat) X(rename) X(renameat) X(renameat2)    \
    X(link) X(linkat) X(socket) X(bind) X(connect) X(close) X(dup) X(dup2) X(dup3)     \
    X(fcntl) X(close_range)

/* One of ring 3's calls: as the dispatcher makes it, its result. */
long paths_call(long nr, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f)
{
    struct dune_call call = {.nr = (uint64_t)nr, .arg = {a, b, c, d, e, f}};
    long result;

    this_vcpu.vault = &world.vault;
    this_vcpu.scratch_used = 0;
    this_vcpu.tid = (int32_t)dune_sys0(__NR_gettid);
    switch (nr) {
#define CASE(name)                                                                               \
    case __NR_##name:                                                                            \
        result = dune_do_##name(&this_vcpu, &call);                                              \
        break;
        CALLS(CASE)
    default:
        result = -ENOSYS;
    }
    while (pieces.n > 0)
        free(pieces.block[--pieces.n]);
    return result;
}

long paths_plain(long nr, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f)
{
    return dune_sys(nr, a, b, c, d, e, f);
}

int paths_init(int first_fd)
{
    world.vault.base = 0x600000000000;
    world.vault.first_fd = first_fd;
    world.vault.policy = &world.policy;
    dune_policy_default(&world.policy);
    return dune_path_init(&world.vault);
}

struct dune_policy *paths_policy(void)
{
    return &world.policy;
}

void paths_rule(const char *path, uint32_t access)
{
    struct dune_rule *rule = &world.policy.rule[world.policy.n_rules++];

    strcpy(rule->path, path);
    rule->length = (uint32_t)strlen(path);
    rule->access = access;
    world.policy.check_paths = 1;
}

void paths_no_rules(void)
{
    dune_policy_default(&world.policy);
}

void paths_set(uint32_t denied, const char *self)
{
    world.policy.denied = denied;
    strcpy(world.policy.self, self);
}

/* Runs between the checks and each forwarded call: what another thread might do just then. */
void paths_before(void (*forward)(void))
{
    world.before_forward = forward;
}

unsigned paths_refusals(void)
{
    return world.refusals;
}

const char *paths_why(void)
{
    return world.last_refusal;
}

uint64_t paths_limits(void)
{
    return (uint64_t)world.vault.fd_soft << 32 | world.vault.fd_hard;
}

long paths_set_limit(uint64_t soft, uint64_t hard)
{
    const uint64_t limit[2] = {soft, hard};

    return dune_fd_set_limit(&world.vault, limit);
}

/* ---- races: threads of ring 3 that change what a path, or a low descriptor, leads to -------- */

struct race {
    const char *link, *good, *bad; /* a symbolic link that flips between two targets */
    int first, last;               /* that get `file` put over them; first > last: none */
    int file;
    struct dune_resolved want, other; /* what `good` and `file` are */
    atomic_int stop;
    atomic_long flips;
};

static void *flip(void *arg)
{
    struct race *race = arg;
    char fresh[4096];

    snprintf(fresh, sizeof(fresh), "%s.next", race->link);
    while (!atomic_load(&race->stop)) {
        const char *target = atomic_fetch_add(&race->flips, 1) & 1 ? race->bad : race->good;

        dune_sys2(__NR_symlink, target, fresh);
        dune_sys2(__NR_rename, fresh, race->link);
    }
    return NULL;
}

static void *put_over(void *arg)
{
    struct race *race = arg;

    while (!atomic_load(&race->stop)) {
        for (int fd = race->first; fd <= race->last; fd++) {
            paths_call(__NR_dup2, (uint64_t)race->file, (uint64_t)fd, 0, 0, 0, 0);
            paths_call(__NR_close, (uint64_t)fd, 0, 0, 0, 0, 0);
        }
    }
    return NULL;
}

/* For the test's message: what it was that should not have been opened. */
static long note_wrong(const struct dune_resolved *got)
{
    char link[64], name[512];
    long bytes;

    snprintf(link, sizeof(link), "/proc/self/fd/%d", got->fd);
    bytes = dune_sys3(__NR_readlink, link, name, sizeof(name) - 1);
    name[bytes < 0 ? 0 : bytes] = '\0';
    fprintf(stderr, "descriptor %d: %s (mode %o, device %lx, inode %lu, links %u)\n", got->fd, name,
            got->mode, got->device, got->inode, got->links);
    return 1;
}

/* Opens the link `times` times while the others work, longer where one target was never met.
 * [0] opened the good file, [1] refused, [2] other errors, [3] opened anything that is neither the
 * good file nor race->file. */
static void open_often(struct race *race, long times, uint64_t flags, long counts[4])
{
    struct dune_resolved want = race->want, other = race->other, got = {0};
    long fd;

    for (long i = 0; i < times || (i < 50 * times && (counts[0] == 0 || counts[1] == 0)); i++) {
        fd = paths_call(__NR_open, (uint64_t)race->link, flags, 0, 0, 0, 0);
        if (fd < 0) {
            counts[fd == -EACCES ? 1 : 2]++;
            continue;
        }
        got.fd = (int32_t)fd;
        if (dune_path_look(&got) != 0)
            counts[2]++; /* the other thread has closed it already */
        else if (got.device == want.device && got.inode == want.inode)
            counts[0]++;
        else if (got.device != other.device || got.inode != other.inode)
            counts[3] += note_wrong(&got);
        dune_sys1(__NR_close, fd);
    }
}

void paths_race(const char *link, const char *good, const char *bad, int first, int last, int file,
                long times, uint64_t flags, long counts[4])
{
    struct race race = {.link = link, .good = good, .bad = bad};
    pthread_t flipper, putter;

    memset(counts, 0, 4 * sizeof(*counts));
    race.first = first;
    race.last = last;
    race.file = file;
    race.want.fd = (int32_t)dune_sys3(__NR_openat, AT_FDCWD, good, O_PATH);
    race.other.fd = file;
    dune_path_look(&race.want);
    dune_path_look(&race.other);
    dune_resolved_close(&race.want);
    pthread_create(&flipper, NULL, flip, &race);
    if (first <= last)
        pthread_create(&putter, NULL, put_over, &race);
    open_often(&race, times, flags, counts);
    atomic_store(&race.stop, 1);
    pthread_join(flipper, NULL);
    if (first <= last)
        pthread_join(putter, NULL);
}
