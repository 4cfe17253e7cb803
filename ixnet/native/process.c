/* See process.h. */
#include "native/process.h"

#include <errno.h>
#include <grp.h>
#include <linux/capability.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int ix_process_follow(int parent_pid, const char *name)
{
    if (prctl(PR_SET_PDEATHSIG, SIGKILL))
        return -errno;
    prctl(PR_SET_NAME, name);
    /* The signal is not sent for a parent that died before it was asked for. */
    return getppid() == parent_pid ? 0 : -ESRCH;
}

/* Before the user changes: it takes a capability itself. A process that lacks it has
 * PR_SET_NO_NEW_PRIVS, which keeps programs from giving any. */
static void empty_bounding_set(void)
{
    int there;
    for (unsigned long cap = 0; (there = prctl(PR_CAPBSET_READ, cap, 0, 0, 0)) >= 0; cap++)
        if (there && prctl(PR_CAPBSET_DROP, cap, 0, 0, 0))
            return;
}

static int become(uint32_t uid, const uint32_t *groups, uint32_t n_groups)
{
    if (setgroups(n_groups, groups) || setresgid(groups[0], groups[0], groups[0]) ||
        setresuid(uid, uid, uid))
        return -errno;
    return 0;
}

int ix_process_drop(uint32_t uid, const uint32_t *groups, uint32_t n_groups, int hide)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = {{0}};
    int err = 0;
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        return -errno;
    empty_bounding_set();
    if (uid != UINT32_MAX)
        err = become(uid, groups, n_groups);
    if (err)
        return err;
    if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) ||
        syscall(SYS_capset, &header, none))
        return -errno;
    return hide && prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) ? -errno : 0;
}

uint64_t ix_process_now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}
