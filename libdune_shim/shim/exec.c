/* execve and execveat: another program in this process.
 *
 * Where the policy names a sandbox, the call becomes
 *     execve(sandbox, {sandbox, "--inherit", FD, "--", PROGRAM, argv...}, envp)
 * FD: a sealed memfd with the policy, which ring 3 never had a descriptor of. The sandbox resolves
 * and checks PROGRAM again, so what is found here decides only which error the caller gets. Without
 * a sandbox the program leaves Dune and runs as Linux runs any.
 *
 * Linux reads argv and envp while it works, through pointers: they are copied to where ring 3 can't
 * change them, and each is checked, or a string "in" the vault would become the new program's
 * argument. The strings need no copy: one that starts outside of the vault ends before it, at
 * the guard window.
 */
#include "shim/path.h"
#include "shim/signal.h"
#include "shim/sys.h"
#include "shim/thread.h"

#include <errno.h>

#define AT_FDCWD            (-100)
#define AT_SYMLINK_NOFOLLOW 0x100
#define AT_EACCESS          0x200
#define AT_EMPTY_PATH       0x1000
#define X_OK                1
#define S_IFMT              0170000
#define S_IFREG             0100000
#define S_IFLNK             0120000
#define O_CLOEXEC           02000000
#define O_NONBLOCK          04000
#define F_SETFD             2
#define F_ADD_SEALS         1033
#define FD_CLOEXEC          1
#define MFD_CLOEXEC         1
#define MFD_ALLOW_SEALING   2
#define ALL_SEALS           15 /* SEAL, SHRINK, GROW, WRITE */
#define PROT_NONE           0
#define PROT_READ           1
#define PROT_WRITE          2
#define MAP_PRIVATE         2
#define MAP_FIXED           0x10
#define MAP_ANONYMOUS       0x20
#define MAP_NORESERVE       0x4000
#define EM_X86_64           62
#define RLIMIT_NOFILE       7

#define PREFIX      5    /* sandbox --inherit FD -- PROGRAM */
#define SMALL_LISTS 8192 /* pointers that scratch has room for */
/* Linux allows 6 MiB for pointers and strings together; more pointers than that are E2BIG. */
#define LARGE_LISTS (DUNE_EXEC_AREA / sizeof(uint64_t))

struct lists {
    uint64_t *pointer; /* argv, NULL, envp, NULL, behind PREFIX free words */
    uint64_t room, used;
    uint64_t argc;
    uint64_t envp; /* index */
};

struct exec {
    struct dune_vcpu *cpu;
    struct dune_call *call;
    int dirfd;
    uint32_t flags;
    uint64_t path, argv, envp; /* ring 3's */
    char *given;               /* the path, in scratch */
    struct dune_resolved object;
    struct lists lists;
    int policy_fd; /* -1: none */
};

/* ---- argv and envp ------------------------------------------------------------------------------
 */

static uint8_t *area_address(const struct dune_vault *vault, uint64_t number)
{
    return (uint8_t *)vault->base + DUNE_EXEC_AT + (number - 1) * DUNE_EXEC_AREA;
}

static void map_area(struct dune_vcpu *cpu, uint64_t number, int prot)
{
    dune_sys6(__NR_mmap, area_address(cpu->vault, number), DUNE_EXEC_AREA, prot,
              MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
}

void dune_exec_area_give(struct dune_vcpu *cpu)
{
    uint64_t number = cpu->fork_scratch[DUNE_THREAD_EXEC_AREA];

    if (!number)
        return;
    cpu->fork_scratch[DUNE_THREAD_EXEC_AREA] = 0;
    map_area(cpu, number, PROT_NONE);
    __atomic_fetch_and(&cpu->vault->exec_areas, ~(1u << (number - 1)), __ATOMIC_RELEASE);
}

static uint64_t *area_take(struct dune_vcpu *cpu)
{
    uint32_t taken = __atomic_load_n(&cpu->vault->exec_areas, __ATOMIC_RELAXED), bit;

    do {
        if (taken == ~0u)
            return NULL;
        bit = ~taken & (taken + 1);
    } while (!__atomic_compare_exchange_n(&cpu->vault->exec_areas, &taken, taken | bit, false,
                                          __ATOMIC_ACQUIRE, __ATOMIC_RELAXED));
    cpu->fork_scratch[DUNE_THREAD_EXEC_AREA] = (uint64_t)__builtin_ctz(bit) + 1;
    map_area(cpu, (uint64_t)__builtin_ctz(bit) + 1, PROT_READ | PROT_WRITE);
    return (uint64_t *)area_address(cpu->vault, (uint64_t)__builtin_ctz(bit) + 1);
}

/* Appends ring 3's list with its NULL. -E2BIG: no room. */
static long append(struct exec *exec, uint64_t from)
{
    struct lists *lists = &exec->lists;

    if (from == 0) { /* as Linux: an empty list */
        if (lists->used == lists->room)
            return -E2BIG;
        lists->pointer[lists->used++] = 0;
        return 0;
    }
    for (;;) {
        uint64_t *to = lists->pointer + lists->used;
        uint64_t n = (DUNE_PAGE - from % DUNE_PAGE) / sizeof(uint64_t); /* what lies behind its end
                                                                         * may not be mapped */
        n = n ? n : 1;
        if (n > lists->room - lists->used)
            n = lists->room - lists->used;
        if (n == 0)
            return -E2BIG;
        if (dune_copy_in(exec->cpu, to, from, n * sizeof(uint64_t)))
            return -EFAULT;
        for (uint64_t i = 0; i < n; i++) {
            lists->used++;
            if (to[i] == 0)
                return 0;
            if (!dune_range_is_free(exec->cpu->vault, to[i], 1))
                return dune_refuse(exec->cpu, exec->call, "an argument lies in the vault", -EFAULT);
        }
        from += n * sizeof(uint64_t);
    }
}

static long append_both(struct exec *exec)
{
    struct lists *lists = &exec->lists;
    long error;

    lists->used = PREFIX;
    error = append(exec, exec->argv);
    if (error)
        return error;
    lists->argc = lists->used - PREFIX - 1;
    if (lists->argc == 0 && lists->used < lists->room) { /* as Linux: one empty string */
        char *empty = dune_scratch(exec->cpu, 1);

        if (!empty)
            return -ENOMEM;
        *empty = 0;
        lists->pointer[PREFIX] = (uint64_t)empty;
        lists->pointer[lists->used++] = 0;
        lists->argc = 1;
    }
    lists->envp = lists->used;
    return append(exec, exec->envp);
}

static long copy_lists(struct exec *exec)
{
    long error;

    exec->lists.room = SMALL_LISTS;
    exec->lists.pointer = dune_scratch(exec->cpu, SMALL_LISTS * sizeof(uint64_t));
    if (!exec->lists.pointer)
        return -ENOMEM;
    error = append_both(exec);
    if (error != -E2BIG)
        return error;
    exec->lists.room = LARGE_LISTS;
    exec->lists.pointer = area_take(exec->cpu);
    return exec->lists.pointer ? append_both(exec) : -EAGAIN;
}

/* ---- the program
 * --------------------------------------------------------------------------------- */

/* Whether the sandbox, which can only exit with a status, would run it: what Linux would say here.
 */
static long check_format(struct exec *exec)
{
    struct dune_vault *vault = exec->cpu->vault;
    char *link = dune_path_link(exec->cpu, exec->object.fd, NULL, false);
    uint8_t head[20];
    long fd, got;

    if (!link)
        return -ENOMEM;
    fd = dune_fd_raise(vault,
                       dune_sys4(__NR_openat, vault->proc_fd, link, O_CLOEXEC | O_NONBLOCK, 0));
    if (fd < 0)
        return fd;
    got = dune_sys4(__NR_pread64, fd, head, sizeof(head), 0);
    dune_sys1(__NR_close, fd);
    if (got < 0)
        return got;
    if (got >= 2 && head[0] == '#' && head[1] == '!')
        return 0;
    return got == sizeof(head) && head[0] == 0x7f && head[1] == 'E' && head[2] == 'L' &&
                   head[3] == 'F' && head[4] == 2 && head[18] == EM_X86_64
               ? 0
               : -ENOEXEC;
}

static long check_object(struct exec *exec)
{
    struct dune_resolved *object = &exec->object;
    char *empty = dune_scratch(exec->cpu, 1);
    long error;

    if (!empty)
        return -ENOMEM;
    *empty = 0;
    if ((object->mode & S_IFMT) == S_IFLNK)
        return -ELOOP;
    if ((object->mode & S_IFMT) != S_IFREG)
        return -EACCES;
    error = dune_sys4(__NR_faccessat2, object->fd, empty, X_OK, AT_EMPTY_PATH | AT_EACCESS);
    if (error)
        return error;
    return exec->cpu->vault->policy->sandbox[0] ? check_format(exec) : 0;
}

static long find(struct exec *exec)
{
    struct dune_vcpu *cpu = exec->cpu;
    uint32_t flags = exec->flags | DUNE_PATH_NAME;
    long error;

    if (exec->flags & ~(uint32_t)(AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW))
        return -EINVAL;
    exec->given = dune_scratch(cpu, DUNE_PATH_MAX);
    if (!exec->given)
        return -ENOMEM;
    error = dune_copy_string(cpu, exec->given, exec->path, DUNE_PATH_MAX);
    if (error < 0)
        return error;
    /* The copy is what is looked up: ring 3 may be changing the other. */
    error = dune_path_resolve(cpu, exec->call, exec->dirfd, (uint64_t)exec->given,
                              flags | DUNE_PATH_HERE, DUNE_MAY_EXEC, &exec->object);
    if (error)
        return error;
    error = check_object(exec);
    if (error)
        dune_resolved_close(&exec->object);
    return error;
}

static bool begins(const char *string, const char *with)
{
    while (*with)
        if (*string++ != *with++)
            return false;
    return true;
}

/* The name under which another process finds the program: as given, so that scripts see their own
 * $0; else the canonical one, where "as given" would mean something else there or might come to. */
static char *name_for_others(struct exec *exec, bool exact)
{
    const struct dune_resolved *object = &exec->object;
    bool absolute = exec->given[0] == '/', relative = exec->given[0] && !absolute;

    if (!exact && (absolute || (relative && exec->dirfd == AT_FDCWD)) &&
        !begins(exec->given, "/proc/") && !begins(exec->given, "/dev/fd/"))
        return exec->given;
    return object->name && object->name[0] == '/' && object->links ? object->name : NULL;
}

/* ---- the call
 * ------------------------------------------------------------------------------------ */

static char *scratch_string(struct dune_vcpu *cpu, const char *string)
{
    uint64_t bytes = 0;
    char *copy;

    while (string[bytes++])
        ;
    copy = dune_scratch(cpu, bytes);
    if (copy)
        __builtin_memcpy(copy, string, bytes);
    return copy;
}

static char *scratch_number(struct dune_vcpu *cpu, uint32_t value)
{
    char *text = dune_scratch(cpu, 12), *at = text + 11;

    if (!text)
        return NULL;
    *at = 0;
    do {
        *--at = (char)('0' + value % 10);
        value /= 10;
    } while (value);
    return at;
}

/* The limit of descriptors for the new program; this process's is higher, for the shim's. */
static void program_limit(const struct dune_vault *vault, uint64_t limit[2])
{
    limit[0] = vault->nofile[0];
    limit[1] = vault->nofile[1];
    if (vault->fd_hard < limit[1] && vault->fd_hard < (uint32_t)vault->first_fd)
        limit[1] = vault->fd_hard;
    if (vault->fd_soft < (uint32_t)vault->first_fd)
        limit[0] = vault->fd_soft;
    if (limit[0] > limit[1])
        limit[0] = limit[1];
}

/* The policy in a sealed memfd that survives exec, and so does the log. */
static long open_policy(struct exec *exec)
{
    const struct dune_policy *policy = exec->cpu->vault->policy;
    char *name = scratch_string(exec->cpu, "policy");
    long fd, result;
    uint64_t limit[2];

    if (!name)
        return -ENOMEM;
    fd = dune_fd_raise(exec->cpu->vault,
                       dune_sys2(__NR_memfd_create, name, MFD_CLOEXEC | MFD_ALLOW_SEALING));
    if (fd < 0)
        return fd;
    exec->policy_fd = (int)fd;
    program_limit(exec->cpu->vault, limit);
    result = dune_sys3(__NR_write, fd, policy, sizeof(*policy));
    if (result == sizeof(*policy) &&
        dune_sys4(__NR_pwrite64, fd, limit, sizeof(limit),
                  __builtin_offsetof(struct dune_policy, nofile)) == sizeof(limit))
        result = dune_sys3(__NR_fcntl, fd, F_ADD_SEALS, ALL_SEALS);
    else
        result = -ENOSPC;
    if (result == 0)
        result = dune_sys3(__NR_fcntl, fd, F_SETFD, 0);
    if (result == 0 && policy->log_fd != ~0u)
        dune_sys3(__NR_fcntl, policy->log_fd, F_SETFD, 0);
    return result;
}

static void close_policy(struct exec *exec)
{
    const struct dune_policy *policy = exec->cpu->vault->policy;

    if (exec->policy_fd < 0)
        return;
    dune_sys1(__NR_close, exec->policy_fd);
    if (policy->log_fd != ~0u)
        dune_sys3(__NR_fcntl, policy->log_fd, F_SETFD, FD_CLOEXEC);
}

/* The arguments of execveat() for the sandbox. */
static long through_sandbox(struct exec *exec, uint64_t arg[6])
{
    struct dune_vcpu *cpu = exec->cpu;
    char *program = name_for_others(exec, false);
    uint64_t *pointer = exec->lists.pointer;
    long error;

    if (!program)
        return dune_refuse(cpu, exec->call, "a file without a name can't be run in the sandbox",
                           -EACCES);
    error = open_policy(exec);
    if (error)
        return error;
    pointer[0] = (uint64_t)scratch_string(cpu, cpu->vault->policy->sandbox);
    pointer[1] = (uint64_t)scratch_string(cpu, "--inherit");
    pointer[2] = (uint64_t)scratch_number(cpu, (uint32_t)exec->policy_fd);
    pointer[3] = (uint64_t)scratch_string(cpu, "--");
    pointer[4] = (uint64_t)program;
    if (!pointer[0] || !pointer[1] || !pointer[2] || !pointer[3])
        return -ENOMEM;
    arg[0] = (uint64_t)AT_FDCWD;
    arg[1] = pointer[0];
    arg[2] = (uint64_t)pointer;
    arg[4] = 0;
    if (!begins((const char *)arg[1], "/proc/"))
        return 0;
    /* What runs already can't be replaced, unlike a name; but it must be the true procfs. The
     * group's leader may have ended: its "self" has no program any more. */
    arg[0] = (uint64_t)cpu->vault->proc_fd;
    arg[1] += 6;
    if (begins((const char *)arg[1], "self/"))
        arg[1] = (uint64_t)scratch_string(cpu, "thread-self/exe");
    return arg[1] ? 0 : -ENOMEM;
}

/* For the program itself, outside of Dune. */
static long outside(struct exec *exec, uint64_t arg[6])
{
    arg[0] = (uint64_t)exec->dirfd;
    arg[1] = (uint64_t)exec->given;
    arg[2] = (uint64_t)(exec->lists.pointer + PREFIX);
    arg[4] = exec->flags;
    if (!exec->cpu->vault->policy->check_paths)
        return 0;
    arg[0] = (uint64_t)AT_FDCWD;
    arg[1] = (uint64_t)name_for_others(exec, true);
    arg[4] = 0;
    return arg[1] ? 0 : -EACCES;
}

/* Outside of Dune the soft limit is as it should be. A sandbox needs what there is, and hears what
 * its program may have. */
static void lower_limit(struct dune_vcpu *cpu, uint64_t before[2])
{
    uint64_t limit[2];

    dune_sys4(__NR_prlimit64, 0, RLIMIT_NOFILE, 0, before);
    if (cpu->vault->policy->sandbox[0])
        return;
    program_limit(cpu->vault, limit);
    limit[1] = before[1]; /* lowered, it could not be raised again if the call fails */
    dune_sys4(__NR_prlimit64, 0, RLIMIT_NOFILE, limit, 0);
}

/* Nothing of this thread's may outlive a call that works; all is as before when it doesn't. */
static long replace(struct exec *exec, const uint64_t arg[6])
{
    struct dune_vcpu *cpu = exec->cpu;
    uint64_t robust = cpu->fork_scratch[DUNE_THREAD_ROBUST], limit[2] = {0};
    long result;

    /* Linux walks the list once all other threads are gone and the memory is about to go. A
     * vfork child has none, nor may it touch its parent's memory so. */
    if (robust)
        dune_sys2(__NR_set_robust_list, robust, DUNE_ROBUST_HEAD_BYTES);
    dune_signals_exec(cpu, true);
    lower_limit(cpu, limit);
    result = dune_forward_raw(cpu, __NR_execveat, arg);
    dune_sys4(__NR_prlimit64, 0, RLIMIT_NOFILE, limit, 0);
    dune_signals_exec(cpu, false);
    if (robust)
        dune_sys2(__NR_set_robust_list, 0, DUNE_ROBUST_HEAD_BYTES);
    return result;
}

static long run(struct exec *exec)
{
    struct dune_vcpu *cpu = exec->cpu;
    uint64_t arg[6] = {0};
    long error = dune_policy_class(cpu, exec->call, DUNE_CLASS_EXEC);

    exec->policy_fd = -1;
    if (error)
        return error;
    error = find(exec);
    if (error)
        return error;
    error = copy_lists(exec);
    if (!error)
        error = cpu->vault->policy->sandbox[0] ? through_sandbox(exec, arg) : outside(exec, arg);
    dune_resolved_close(&exec->object);
    arg[3] = (uint64_t)(exec->lists.pointer + exec->lists.envp);
    if (!error)
        error = replace(exec, arg);
    close_policy(exec);
    dune_exec_area_give(cpu);
    return error;
}

long dune_do_execve(struct dune_vcpu *cpu, struct dune_call *call)
{
    struct exec exec = {.cpu = cpu,
                        .call = call,
                        .dirfd = AT_FDCWD,
                        .path = call->arg[0],
                        .argv = call->arg[1],
                        .envp = call->arg[2]};

    return run(&exec);
}

long dune_do_execveat(struct dune_vcpu *cpu, struct dune_call *call)
{
    struct exec exec = {.cpu = cpu,
                        .call = call,
                        .dirfd = (int)call->arg[0],
                        .flags = (uint32_t)call->arg[4],
                        .path = call->arg[1],
                        .argv = call->arg[2],
                        .envp = call->arg[3]};

    if (!dune_fd_is_free(cpu->vault, call->arg[0]))
        return -EBADF;
    return run(&exec);
}
