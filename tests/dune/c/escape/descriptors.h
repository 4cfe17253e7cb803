/* By the descriptors that the shim has: the VM's, the vCPUs', and what else it needs. */
#ifndef ESCAPE_DESCRIPTORS_H
#define ESCAPE_DESCRIPTORS_H

#include "kit.h"

#include <linux/kvm.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>

#define SHIM_DESCRIPTORS 12 /* that many from first_fd are tried */

static void descriptor_calls(int fd)
{
    struct kvm_userspace_memory_region slot = {
        .slot = 0, .userspace_addr = given.vault, .memory_size = GIB};
    struct epoll_event event = {.events = EPOLLIN};
    struct stat is;
    char what[96];

#define FD(call) (snprintf(what, sizeof what, call " of descriptor %d", fd), what)
    fails(FD("ioctl KVM_SET_USER_MEMORY_REGION"),
          CALL(SYS_ioctl, fd, KVM_SET_USER_MEMORY_REGION, &slot));
    fails(FD("ioctl KVM_CREATE_VM"), CALL(SYS_ioctl, fd, KVM_CREATE_VM, 0));
    fails(FD("ioctl KVM_RUN"), CALL(SYS_ioctl, fd, KVM_RUN, 0));
    fails(FD("ioctl FIOCLEX"), CALL(SYS_ioctl, fd, FIONCLEX, 0));
    fails(FD("mmap"), CALL(SYS_mmap, 0, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
    fails(FD("dup"), CALL(SYS_dup, fd));
    fails(FD("dup2 from"), CALL(SYS_dup2, fd, 50));
    fails(FD("dup2 onto"), CALL(SYS_dup2, a_file, fd));
    fails(FD("dup3 from"), CALL(SYS_dup3, fd, 50, 0));
    fails(FD("dup3 onto"), CALL(SYS_dup3, a_file, fd, 0));
    fails(FD("fcntl F_DUPFD"), CALL(SYS_fcntl, fd, F_DUPFD, 0));
    fails(FD("fcntl F_DUPFD_CLOEXEC"), CALL(SYS_fcntl, fd, F_DUPFD_CLOEXEC, 0));
    fails(FD("fcntl F_SETFD"), CALL(SYS_fcntl, fd, F_SETFD, 0));
    fails(FD("fcntl F_GETFL"), CALL(SYS_fcntl, fd, F_GETFL));
    fails(FD("fcntl F_SETFL"), CALL(SYS_fcntl, fd, F_SETFL, O_ASYNC));
    fails(FD("fcntl F_DUPFD up to"), CALL(SYS_fcntl, a_file, F_DUPFD, fd));
    fails(FD("close"), CALL(SYS_close, fd));
    fails(FD("fstat"), CALL(SYS_fstat, fd, &is));
    fails(FD("newfstatat"), CALL(SYS_newfstatat, fd, "", &is, AT_EMPTY_PATH));
    fails(FD("read"), CALL(SYS_read, fd, good, 8));
    fails(FD("write"), CALL(SYS_write, fd, good, 8));
    fails(FD("pread64"), CALL(SYS_pread64, fd, good, 8, 0));
    fails(FD("lseek"), CALL(SYS_lseek, fd, 0, 0));
    fails(FD("fchdir"), CALL(SYS_fchdir, fd));
    fails(FD("openat below"), CALL(SYS_openat, fd, "self/mem", O_RDWR));
    fails(FD("execveat"), CALL(SYS_execveat, fd, "", NULL, NULL, AT_EMPTY_PATH));
    fails(FD("linkat"), CALL(SYS_linkat, fd, "", AT_FDCWD, "/tmp/escape-link", AT_EMPTY_PATH));
    fails(FD("epoll_ctl add"), CALL(SYS_epoll_ctl, CALL(SYS_epoll_create1, 0), 1, fd, &event));
    fails(FD("sendfile to"), CALL(SYS_sendfile, fd, a_file, 0, 8));
    fails(FD("sendfile from"), CALL(SYS_sendfile, a_socket, fd, 0, 8));
    fails(FD("splice"), CALL(SYS_splice, fd, 0, a_pipe[1], 0, 8, 0));
    fails(FD("flock"), CALL(SYS_flock, fd, 1));
    fails(FD("ftruncate"), CALL(SYS_ftruncate, fd, 0));
    fails(FD("kcmp"), CALL(SYS_kcmp, getpid(), getpid(), 0, fd, fd));
    fails(FD("perf_event_open group"), CALL(SYS_perf_event_open, good, 0, -1, fd, 0));
    fails(FD("fanotify_mark"), CALL(SYS_fanotify_mark, fd, 1, 1, fd, 0));
    fails(FD("pidfd_send_signal"), CALL(SYS_pidfd_send_signal, fd, 0, 0, 0));
#undef FD
}

static void descriptor_sent(int fd)
{
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(sizeof fd)];
    } control = {.head = {.cmsg_len = CMSG_LEN(sizeof fd),
                          .cmsg_level = SOL_SOCKET,
                          .cmsg_type = SCM_RIGHTS}};
    struct iovec data = {good, 1};
    struct msghdr message = {.msg_iov = &data,
                             .msg_iovlen = 1,
                             .msg_control = &control,
                             .msg_controllen = sizeof control};
    struct mmsghdr many = {.msg_hdr = message};
    char what[96];

    memcpy(CMSG_DATA(&control.head), &fd, sizeof fd);
    snprintf(what, sizeof what, "SCM_RIGHTS of descriptor %d", fd);
    fails(what, CALL(SYS_sendmsg, a_socket, &message, MSG_DONTWAIT));
    snprintf(what, sizeof what, "SCM_RIGHTS of descriptor %d by sendmmsg", fd);
    fails(what, CALL(SYS_sendmmsg, a_socket, &many, 1, MSG_DONTWAIT));
}

static void descriptor_by_path(int fd)
{
    static const char *const places[] = {"/proc/self/fd/%d",
                                         "/dev/fd/%d",
                                         "/proc/thread-self/fd/%d",
                                         "/proc/self/task/../fd/%d",
                                         "/proc/self/root/proc/self/fd/%d",
                                         "/proc/self/fdinfo/../fd/%d"};
    static const int modes[] = {O_RDWR, O_RDONLY, O_PATH};
    char path[96], what[160];

    for (size_t n = 0; n < sizeof places / sizeof *places; n++) {
        snprintf(path, sizeof path, places[n], fd);
        for (int mode = 0; mode < 3; mode++) {
            long got = CALL(SYS_open, path, modes[mode]);

            snprintf(what, sizeof what, "open %s%s", path,
                     modes[mode] == O_PATH ? " (O_PATH)" : "");
            fails(what, got);
            if (got >= 0)
                CALL(SYS_close, got);
        }
    }
}

static void descriptors_together(void)
{
    struct pollfd poll = {.fd = given.first_fd, .events = POLLIN};
    struct rlimit limit = {1 << 20, 1 << 20};
    long result, pidfd = CALL(SYS_pidfd_open, getpid(), 0);

    harmless("close_range of all", CALL(SYS_close_range, given.first_fd, ~0u, 0));
    harmless("close_range CLOEXEC of all", CALL(SYS_close_range, given.first_fd, ~0u, 4));
    harmless("close_range from below", CALL(SYS_close_range, given.first_fd - 100, ~0u, 0));
    for (int n = 0; n < SHIM_DESCRIPTORS; n++) {
        result = CALL(SYS_pidfd_getfd, pidfd, given.first_fd + n, 0);
        fails("pidfd_getfd of it", result);
        result = CALL(SYS_pidfd_getfd, pidfd, 0, 0);
        fails("pidfd_getfd of any", result);
    }
    result = CALL(SYS_poll, &poll, 1, 0);
    say(result < 0 || poll.revents == POLLNVAL, "poll", "returned %ld, events 0x%x", result,
        (unsigned)poll.revents);
    harmless("setrlimit RLIMIT_NOFILE", CALL(SYS_setrlimit, RLIMIT_NOFILE, &limit));
    fails("dup2 above, with the limit raised", CALL(SYS_dup2, a_file, given.first_fd + 2000));
    result =
        CALL(SYS_getdents64, CALL(SYS_open, "/proc/self/fd", O_RDONLY | O_DIRECTORY), good, PAGE);
    harmless("list of /proc/self/fd", result);
    for (long nr = 425; nr < 428; nr++)
        fails("io_uring by number", CALL(nr, 8, good, 1));
    CALL(SYS_close, pidfd);
}

static void descriptors_all(void)
{
    group = "the VM's descriptors";
    for (int n = 0; n < SHIM_DESCRIPTORS; n++) {
        descriptor_calls(given.first_fd + n);
        descriptor_sent(given.first_fd + n);
        descriptor_by_path(given.first_fd + n);
    }
    descriptors_together();
}

#endif
