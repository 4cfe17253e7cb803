/* See process.h. */
#include "native/process.h"

#include <errno.h>
#include <signal.h>
#include <sys/prctl.h>
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

uint64_t ix_process_now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}
