/* A pointer into the vault in every place where a system call takes one. */
#ifndef ESCAPE_POINTERS_H
#define ESCAPE_POINTERS_H

#include "kit.h"

#include <linux/futex.h>
#include <mqueue.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/xattr.h>

/* Words of an argument list: V the secret, G the good page, and the descriptors. */
enum {
    V = 0x7000001,
    V_EDGE, /* begins below the guard and leads into it */
    V_SCRATCH,
    G,
    G_PATH,  /* "/tmp" */
    FILE_FD, /* a memfd of 64 KiB */
    SOCK_FD,
    PIPE_IN,
    PIPE_OUT,
    EPOLL_FD,
    TIMER_FD,
    INET_FD,
    HERE, /* AT_FDCWD */
    ME,   /* getpid() */
};

struct
try {
    const char *what;
    long nr;
    long arg[6];
    bool harmless; /* Linux, too, says nothing of a bad pointer here */
};

#define T(name, ...) \
    { \
#name, SYS_##name, {__VA_ARGS__ }, false \
    }
#define H(name, ...) \
    { \
#name, SYS_##name, {__VA_ARGS__ }, true \
    }

static const struct try tries[] = {
    T(read, FILE_FD, V, 64),
    T(read, FILE_FD, V_EDGE, 64),
    T(read, FILE_FD, V_SCRATCH, 64),
    T(read, FILE_FD, G, 1l << 46),
    T(write, FILE_FD, V, 64),
    T(write, FILE_FD, V_EDGE, 8192),
    T(write, FILE_FD, V_SCRATCH, 64),
    T(pread64, FILE_FD, V, 64, 0),
    T(pwrite64, FILE_FD, V, 64, 0),
    T(readv, FILE_FD, V, 1),
    T(writev, FILE_FD, V, 1),
    T(preadv, FILE_FD, V, 1, 0),
    T(pwritev, FILE_FD, V, 1, 0),
    T(preadv2, FILE_FD, V, 1, 0),
    T(pwritev2, FILE_FD, V, 1, 0),
    T(open, V, 0),
    T(openat, HERE, V, 0),
    T(openat2, HERE, V, G, 24),
    T(openat2, HERE, G_PATH, V, 24),
    T(creat, V, 0600),
    T(stat, V, G),
    T(stat, G_PATH, V),
    T(lstat, V, G),
    T(lstat, G_PATH, V),
    T(fstat, FILE_FD, V),
    T(newfstatat, HERE, V, G, 0),
    T(newfstatat, HERE, G_PATH, V, 0),
    T(statx, HERE, V, 0, 0x7ff, G),
    T(statx, HERE, G_PATH, 0, 0x7ff, V),
    T(access, V, 0),
    T(faccessat, HERE, V, 0),
    T(faccessat2, HERE, V, 0, 0),
    T(statfs, V, G),
    T(statfs, G_PATH, V),
    T(fstatfs, FILE_FD, V),
    T(poll, V, 1, 0),
    T(ppoll, V, 1, 0, 0, 8),
    T(ppoll, 0, 0, V, 0, 8),
    T(ppoll, 0, 0, 0, V, 8),
    T(select, 8, V, 0, 0, G),
    T(select, 8, 0, V, 0, G),
    T(select, 8, 0, 0, V, G),
    T(select, 0, 0, 0, 0, V),
    T(pselect6, 8, V, 0, 0, G, 0),
    T(pselect6, 0, 0, 0, 0, V, 0),
    T(pselect6, 0, 0, 0, 0, G, V),
    T(epoll_ctl, EPOLL_FD, 1, SOCK_FD, V),
    T(epoll_wait, EPOLL_FD, V, 1, 0),
    T(epoll_pwait, EPOLL_FD, V, 1, 0, 0, 8),
    T(epoll_pwait, EPOLL_FD, G, 1, 0, V, 8),
    T(epoll_pwait2, EPOLL_FD, V, 1, G, 0, 8),
    T(epoll_pwait2, EPOLL_FD, G, 1, V, 0, 8),
    T(ioctl, PIPE_IN, FIONREAD, V),
    T(ioctl, SOCK_FD, FIONBIO, V),
    T(ioctl, INET_FD, SIOCGIFCONF, V),
    T(ioctl, INET_FD, SIOCGIFFLAGS, V),
    T(ioctl, INET_FD, 0x8906, V),
    T(ioctl, FILE_FD, 0xc020660b, V),
    T(fcntl, FILE_FD, F_GETLK, V),
    T(fcntl, FILE_FD, F_SETLK, V),
    T(fcntl, FILE_FD, F_OFD_GETLK, V),
    T(fcntl, SOCK_FD, F_GETOWN_EX, V),
    T(fcntl, SOCK_FD, F_SETOWN_EX, V),
    T(pipe, V),
    T(pipe2, V, 0),
    T(nanosleep, V, G),
    T(clock_nanosleep, 1, 0, V, G),
    T(clock_gettime, 1, V),
    T(clock_getres, 1, V),
    T(clock_settime, 0, V),
    T(clock_adjtime, 0, V),
    T(adjtimex, V),
    T(gettimeofday, V, 0),
    T(gettimeofday, 0, V),
    T(settimeofday, V, 0),
    T(time, V),
    T(times, V),
    T(getitimer, 0, V),
    T(setitimer, 0, V, 0),
    T(setitimer, 0, G, V),
    T(timer_create, 1, V, G),
    T(timer_create, 1, 0, V),
    T(timerfd_settime, TIMER_FD, 0, V, 0),
    T(timerfd_settime, TIMER_FD, 0, G, V),
    T(timerfd_gettime, TIMER_FD, V),
    T(sendto, SOCK_FD, V, 64, 0, 0, 0),
    T(sendto, INET_FD, G, 1, 0, V, 16),
    T(recvfrom, SOCK_FD, V, 64, 0, 0, 0),
    T(recvfrom, SOCK_FD, G, 64, MSG_DONTWAIT, V, G),
    T(recvfrom, SOCK_FD, G, 64, MSG_DONTWAIT, G, V),
    T(sendmsg, SOCK_FD, V, 0),
    T(recvmsg, SOCK_FD, V, MSG_DONTWAIT),
    T(sendmmsg, SOCK_FD, V, 1, 0),
    T(recvmmsg, SOCK_FD, V, 1, MSG_DONTWAIT, 0),
    T(recvmmsg, SOCK_FD, G, 0, MSG_DONTWAIT, V),
    T(connect, INET_FD, V, 16),
    T(bind, INET_FD, V, 16),
    T(accept, INET_FD, V, G),
    T(accept4, INET_FD, G, V, 0),
    T(getsockname, INET_FD, V, G),
    T(getsockname, INET_FD, G, V),
    T(getpeername, INET_FD, V, G),
    T(socketpair, AF_UNIX, SOCK_DGRAM, 0, V),
    T(setsockopt, INET_FD, SOL_SOCKET, SO_RCVBUF, V, 4),
    T(getsockopt, INET_FD, SOL_SOCKET, SO_RCVBUF, V, G),
    T(getsockopt, INET_FD, SOL_SOCKET, SO_RCVBUF, G, V),
    T(getsockopt, SOCK_FD, SOL_SOCKET, SO_PEERCRED, V, G),
    H(wait4, -1, V, WNOHANG, 0),
    H(wait4, -1, 0, WNOHANG, V),
    H(waitid, P_ALL, 0, V, WNOHANG | WEXITED, 0),
    H(waitid, P_ALL, 0, G, WNOHANG | WEXITED, V),
    T(uname, V),
    T(getcwd, V, 4096),
    T(chdir, V),
    T(chroot, V),
    T(rename, V, G),
    T(rename, G_PATH, V),
    T(renameat2, HERE, V, HERE, G, 0),
    T(mkdir, V, 0700),
    T(rmdir, V),
    T(link, V, G),
    T(link, G_PATH, V),
    T(symlink, V, G),
    T(symlink, G_PATH, V),
    T(unlink, V),
    T(unlinkat, HERE, V, 0),
    T(readlink, V, G, 64),
    T(readlinkat, HERE, V, G, 64),
    T(chmod, V, 0600),
    T(fchmodat, HERE, V, 0600),
    T(chown, V, 0, 0),
    T(lchown, V, 0, 0),
    T(mknod, V, 0, 0),
    T(truncate, V, 0),
    T(utime, V, G),
    T(utimes, V, G),
    T(utimensat, HERE, V, G, 0),
    T(utimensat, HERE, G_PATH, V, 0),
    T(getdents64, FILE_FD, V, 4096),
    T(getdents, FILE_FD, V, 4096),
    T(getrlimit, RLIMIT_CORE, V),
    T(setrlimit, RLIMIT_CORE, V),
    T(prlimit64, 0, RLIMIT_CORE, V, 0),
    T(prlimit64, 0, RLIMIT_CORE, 0, V),
    T(getrusage, 0, V),
    T(sysinfo, V),
    T(getgroups, 65536, V),
    T(setgroups, 1, V),
    T(getresuid, V, G, G),
    T(getresuid, G, V, G),
    T(getresgid, G, G, V),
    T(capget, V, G),
    T(capget, G, V),
    T(capset, V, G),
    T(rt_sigaction, SIGUSR1, V, 0, 8),
    T(rt_sigaction, SIGUSR1, 0, V, 8),
    T(rt_sigprocmask, 0, V, 0, 8),
    T(rt_sigprocmask, 0, 0, V, 8),
    T(rt_sigpending, V, 8),
    T(rt_sigtimedwait, V, G, G, 8),
    T(rt_sigtimedwait, G, G, V, 8),
    T(rt_sigqueueinfo, ME, SIGUSR1, V),
    T(rt_tgsigqueueinfo, ME, ME, SIGUSR1, V),
    T(rt_sigsuspend, V, 8),
    T(sigaltstack, V, 0),
    T(sigaltstack, 0, V),
    T(signalfd4, -1, V, 8, 0),
    T(pidfd_send_signal, FILE_FD, 0, V, 0),
    T(sched_setaffinity, 0, 8, V),
    T(sched_getaffinity, 0, 8, V),
    T(sched_getparam, 0, V),
    T(sched_setparam, 0, V),
    T(sched_setscheduler, 0, 0, V),
    T(sched_rr_get_interval, 0, V),
    T(sched_getattr, 0, V, 56, 0),
    T(sched_setattr, 0, V, 0),
    T(prctl, PR_SET_NAME, V),
    T(prctl, PR_GET_NAME, V),
    T(prctl, PR_GET_PDEATHSIG, V),
    T(prctl, PR_GET_TSC, V),
    T(prctl, PR_GET_CHILD_SUBREAPER, V),
    T(prctl, PR_GET_TID_ADDRESS, V),
    T(arch_prctl, 0x1003, V),
    T(arch_prctl, 0x1004, V),
    T(arch_prctl, 0x1021, V),
    T(arch_prctl, 0x1022, V),
    T(futex, V, FUTEX_WAIT, 0, 0),
    T(futex, V, FUTEX_WAIT | FUTEX_PRIVATE_FLAG, 0, 0),
    T(futex, G, FUTEX_WAIT, 0, V),
    T(futex, V, FUTEX_WAKE, 1),
    T(futex, V, FUTEX_WAKE_OP, 1, 1, G, 0),
    T(futex, G, FUTEX_WAKE_OP, 1, 1, V, 1),
    T(futex, V, FUTEX_LOCK_PI, 0, 0),
    T(futex, V, FUTEX_TRYLOCK_PI, 0, 0),
    T(futex, V, FUTEX_UNLOCK_PI, 0),
    T(futex, G, FUTEX_CMP_REQUEUE, 1, 1, V, 0),
    T(futex, G, FUTEX_CMP_REQUEUE_PI, 1, 1, V, 0),
    T(futex, G, FUTEX_WAIT_BITSET, 0, V, 0, 1),
    T(futex_waitv, V, 1, 0, 0, 0),
    T(futex_wake, V, 1, 1, 2),
    T(futex_wait, V, 0, 1, 2, 0, 0),
    T(set_robust_list, V, 24),
    T(get_robust_list, 0, V, G),
    T(get_robust_list, 0, G, V),
    T(mincore, G, 4096, V),
    T(getrandom, V, 64, 0),
    T(memfd_create, V, 0),
    T(sendfile, SOCK_FD, FILE_FD, V, 16),
    T(copy_file_range, FILE_FD, V, FILE_FD, G, 16, 0),
    T(copy_file_range, FILE_FD, G, FILE_FD, V, 16, 0),
    T(splice, FILE_FD, V, PIPE_OUT, 0, 16, 0),
    T(splice, PIPE_IN, 0, FILE_FD, V, 16, 0),
    T(vmsplice, PIPE_OUT, V, 1, 0),
    T(setxattr, V, G_PATH, G, 4, 0),
    T(setxattr, G_PATH, V, G, 4, 0),
    T(setxattr, G_PATH, G_PATH, V, 4, 0),
    T(fsetxattr, FILE_FD, V, G, 4, 0),
    T(getxattr, V, G_PATH, G, 64),
    T(getxattr, G_PATH, V, G, 64),
    T(listxattr, V, G, 64),
    T(fremovexattr, FILE_FD, V),
    T(inotify_add_watch, FILE_FD, V, 1),
    T(name_to_handle_at, HERE, V, G, G, 0),
    T(name_to_handle_at, HERE, G_PATH, V, G, 0),
    T(name_to_handle_at, HERE, G_PATH, G, V, 0),
    T(open_by_handle_at, HERE, V, 0),
    T(mq_open, V, O_RDWR | O_CREAT, 0600, 0),
    T(mq_unlink, V),
    T(shmctl, 0, 13, V),
    T(semop, 0, V, 1),
    T(semctl, 0, 0, 13, V),
    T(msgsnd, 0, V, 16, 0),
    T(msgrcv, 0, V, 16, 0, 0),
    T(msgctl, 0, 13, V),
    T(getcpu, V, 0),
    T(getcpu, 0, V),
    T(io_setup, 8, V),
    T(io_submit, 0, 1, V),
    T(io_getevents, 0, 0, 1, V, G),
    T(execve, V, G, G),
    T(execve, G_PATH, V, 0),
    T(execveat, HERE, V, G, G, 0),
    T(syslog, 3, V, 64),
    T(sethostname, V, 4),
    T(setdomainname, V, 4),
    T(mount, V, G_PATH, G, 0, 0),
    T(umount2, V, 0),
    T(swapon, V, 0),
    T(acct, V),
    T(add_key, V, G, G, 8, 0),
    T(request_key, V, G, G, 0),
    T(ustat, 0, V),
    T(landlock_create_ruleset, V, 8, 0),
    T(cachestat, FILE_FD, V, G, 0),
    T(cachestat, FILE_FD, G, V, 0),
    T(statmount, V, G, 64, 0),
    T(listmount, V, G, 1, 0),
    T(clone3, V, 88),
    T(set_mempolicy, 2, V, 64),
    T(get_mempolicy, V, 0, 0, 0, 0),
    T(kexec_load, 0, 1, V, 0),
    T(init_module, V, 16, G),
    T(bpf, 0, V, 64),
    T(perf_event_open, V, 0, -1, -1, 0),
    T(io_uring_setup, 4, V),
    T(rseq, V, 32, 0, 0x53053053),
    T(move_pages, 0, 1, V, 0, G, 0),
    T(move_pages, 0, 1, G, 0, V, 0),
    T(modify_ldt, 0, V, 64),
    T(modify_ldt, 1, V, 16),
    T(set_thread_area, V),
    T(get_thread_area, V),
    T(quotactl, 0, V, 0, G),
    T(uselib, V),
    T(sysfs, 1, V),
    T(_sysctl, V),
    T(lookup_dcookie, 0, V, 64),
    T(fspick, HERE, V, 0),
    T(fsopen, V, 0),
    T(open_tree, HERE, V, 0),
    T(move_mount, HERE, V, HERE, G, 0),
    T(mount_setattr, HERE, V, 0, G, 32),
    T(fanotify_mark, FILE_FD, 1, 1, HERE, V),
    T(delete_module, V, 0),
    H(set_tid_address, V),
    H(clone, 0x00100000 | SIGCHLD, 0, V, 0, 0),
    H(clone, 0x01000000 | SIGCHLD, 0, 0, V, 0),
    H(clone, 0x00200000 | SIGCHLD, 0, 0, V, 0),
};

static int descriptor[INET_FD + 1 - FILE_FD];

static uint64_t word_of(long arg)
{
    switch (arg) {
    case V:
        return given.target + 64;
    case V_EDGE:
        return given.vault - GIB - 32;
    case V_SCRATCH:
        return given.scratch + 64;
    case G:
        return U(good) + PAGE;
    case G_PATH:
        return U(good) + 2 * PAGE;
    case HERE:
        return U(AT_FDCWD);
    case ME:
        return U(getpid());
    }
    if (arg >= FILE_FD && arg <= INET_FD)
        return U(descriptor[arg - FILE_FD]);
    return U(arg);
}

static void describe(const struct try *try, char what[128])
{
    int used = snprintf(what, 128, "%s(", try->what);

    for (int n = 0; n < 6; n++)
        if (try->arg[n] == V || try->arg[n] == V_EDGE || try->arg[n] == V_SCRATCH)
            used += snprintf(what + used, 128 - (size_t)used, "argument %d%s", n + 1,
                             try->arg[n] == V_EDGE      ? ": into the guard"
                             : try->arg[n] == V_SCRATCH ? ": scratch"
                                                        : "");
    snprintf(what + used, 128 - (size_t)used, ")");
}

static void pointers_plain(void)
{
    const int opened[] = {a_file,
                          a_socket,
                          a_pipe[0],
                          a_pipe[1],
                          (int)CALL(SYS_epoll_create1, 0),
                          (int)CALL(SYS_timerfd_create, 1, 0),
                          (int)CALL(SYS_socket, AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0)};

    group = "pointer argument";
    memcpy(descriptor, opened, sizeof opened);
    for (size_t n = 0; n < sizeof tries / sizeof *tries; n++) {
        const struct try *try = &tries[n];
        char what[128];
        uint64_t arg[6];
        long result;

        memset(good, 0, 4 * PAGE);
        strcpy(good + 2 * PAGE, "/tmp");
        for (int i = 0; i < 6; i++)
            arg[i] = word_of(try->arg[i]);
        if (try->nr == SYS_recvfrom) { /* something to receive */
            CALL(SYS_write, other_socket, good, 32);
            *(int *)(good + PAGE) = 64;
        }
        if (try->nr == SYS_getsockopt || try->nr == SYS_getsockname)
            *(int *)(good + PAGE) = 64;
        result = call6(try->nr, arg[0], arg[1], arg[2], arg[3], arg[4], arg[5]);
        if (result == 0 && try->nr == SYS_clone)
            CALL(SYS_exit_group, 0);
        describe(try, what);
        (try->harmless ? harmless : fails)(what, result);
        if (leaked(good, 16 * PAGE))
            say(false, what, "the secret was read");
    }
    while (waitpid(-1, NULL, 0) > 0)
        ;
}

/* ---- every call with every argument
 * ---------------------------------------------------------------- */

/* Calls that end, stop or replace this process, or take the test's own things away, by plan. */
/* clang-format off */
static const long not_swept[] = {
    SYS_exit, SYS_exit_group, SYS_pause, SYS_rt_sigreturn, SYS_fork, SYS_vfork, SYS_clone,
    SYS_clone3, SYS_kill, SYS_tkill, SYS_tgkill, SYS_reboot, SYS_close, SYS_close_range, SYS_dup2,
    SYS_dup3, SYS_setsid, SYS_alarm, SYS_sched_setscheduler, SYS_rt_sigsuspend, SYS_setrlimit,
    SYS_prlimit64, SYS_setuid, SYS_setgid, SYS_setreuid, SYS_setregid, SYS_setresuid,
    SYS_setresgid, SYS_setfsuid, SYS_setfsgid, SYS_unshare, SYS_setns, SYS_munmap, SYS_brk,
    SYS_mprotect, SYS_mremap, SYS_mmap, SYS_arch_prctl, SYS_prctl, SYS_rt_sigprocmask, SYS_wait4,
    SYS_waitid, SYS_personality, SYS_vhangup, SYS_munlockall, SYS_mlockall, SYS_setpgid,
    SYS_madvise, SYS_sync, SYS_syncfs, SYS_pidfd_send_signal, SYS_set_tid_address, SYS_nanosleep,
    SYS_clock_nanosleep, SYS_fcntl, SYS_flock, SYS_ioctl, SYS_setitimer, SYS_futex, SYS_capset,
    SYS_sched_setaffinity, SYS_iopl, SYS_ioperm, SYS_ptrace, SYS_umask,
};
/* clang-format on */

static bool left_out(long nr)
{
    for (size_t n = 0; n < sizeof not_swept / sizeof *not_swept; n++)
        if (not_swept[n] == nr)
            return true;
    return false;
}

static void pointers_sweep(void)
{
    unsigned calls = 0, refused = 0;

    group = "pointer argument";
    for (long nr = 0; nr < 470; nr++) {
        if (left_out(nr))
            continue;
        for (int at = 0; at < 7; at++) {
            uint64_t arg[6] = {1ull << 20, 1ull << 20, 1ull << 20, 0, 0, 0};
            long result;

            for (int n = 0; n < 6; n++)
                if (n == at || at == 6)
                    arg[n] = given.target + 256;
            result = call6(nr, arg[0], arg[1], arg[2], arg[3], arg[4], arg[5]);
            calls++;
            refused += result < 0;
        }
    }
    say(true, "every call, every argument", "%u calls, %u with an error", calls, refused);
}

static void pointers_all(void)
{
    pointers_plain();
    pointers_sweep();
}

#endif
