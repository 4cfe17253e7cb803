/* What packetdrill calls in a stack that it loads with --so_filename: the names, their order and
 * their types are its interface (README and packetdrill.h of github.com/google/packetdrill). Every
 * function gets `userdata` first, and reports errors as system calls do: -1 and errno.
 *
 *   packetdrill --so_filename=build/ixnet-packetdrill.so [--so_flags=mtu=1500,...] SCRIPT
 *
 * Time is virtual: it passes in usleep(), in netdev_receive() while no packet leaves, in calls of
 * the main thread that block, and by a microsecond with every gettimeofday(). */
#ifndef IX_POSIX_PACKETDRILL_H
#define IX_POSIX_PACKETDRILL_H

#include "posix/posix.h"

#include <sys/time.h>

struct packetdrill_interface {
    void *userdata;
    void (*free)(void *userdata);
    int (*socket)(void *userdata, int domain, int type, int protocol);
    int (*bind)(void *userdata, int fd, const struct sockaddr *addr, socklen_t len);
    int (*listen)(void *userdata, int fd, int backlog);
    int (*accept)(void *userdata, int fd, struct sockaddr *addr, socklen_t *len);
    int (*connect)(void *userdata, int fd, const struct sockaddr *addr, socklen_t len);
    ssize_t (*read)(void *userdata, int fd, void *buf, size_t bytes);
    ssize_t (*readv)(void *userdata, int fd, const struct iovec *iov, int n);
    ssize_t (*recv)(void *userdata, int fd, void *buf, size_t bytes, int flags);
    ssize_t (*recvfrom)(void *userdata, int fd, void *buf, size_t bytes, int flags,
                        struct sockaddr *addr, socklen_t *len);
    ssize_t (*recvmsg)(void *userdata, int fd, struct msghdr *msg, int flags);
    ssize_t (*write)(void *userdata, int fd, const void *buf, size_t bytes);
    ssize_t (*writev)(void *userdata, int fd, const struct iovec *iov, int n);
    ssize_t (*send)(void *userdata, int fd, const void *buf, size_t bytes, int flags);
    ssize_t (*sendto)(void *userdata, int fd, const void *buf, size_t bytes, int flags,
                      const struct sockaddr *addr, socklen_t len);
    ssize_t (*sendmsg)(void *userdata, int fd, const struct msghdr *msg, int flags);
    int (*fcntl)(void *userdata, int fd, int command, ...);
    int (*ioctl)(void *userdata, int fd, unsigned long request, ...);
    int (*close)(void *userdata, int fd);
    int (*shutdown)(void *userdata, int fd, int how);
    int (*getsockopt)(void *userdata, int fd, int level, int name, void *value, socklen_t *len);
    int (*setsockopt)(void *userdata, int fd, int level, int name, const void *value,
                      socklen_t len);
    int (*poll)(void *userdata, struct pollfd *fds, nfds_t n, int timeout_ms);
    /* An IP packet for the stack. */
    int (*netdev_send)(void *userdata, const void *buf, size_t bytes);
    /* The next one from it; *bytes in: room, out: length, 0 if none will ever come. */
    int (*netdev_receive)(void *userdata, void *buf, size_t *bytes, long long *time_us);
    int (*usleep)(void *userdata, useconds_t us);
    int (*gettimeofday)(void *userdata, struct timeval *tv, struct timezone *tz);
    int (*epoll_create)(void *userdata, int size);
    int (*epoll_ctl)(void *userdata, int epfd, int op, int fd, struct epoll_event *event);
    int (*epoll_wait)(void *userdata, int epfd, struct epoll_event *events, int max,
                      int timeout_ms);
    int (*pipe)(void *userdata, int fds[2]);
    int (*splice)(void *userdata, int in, loff_t *in_offset, int out, loff_t *out_offset,
                  size_t bytes, unsigned int flags);
};

/* Fills in the interface. flags: NULL, or settings that commas separate: local=ADDRESS (the one of
 * its family that connect() goes out from; bind() and packets add theirs), mtu=N, time_wait_ms=N,
 * rcvbuf=N, rcvbuf=FIRST:MOST (it grows), sndbuf likewise, half_open=N, cookies=N (enum
 * ix_cookies), sysctls=0: pay no heed to Linux's sysctls, which else count (see
 * ix_posix_sysctls()) as they are at the first event of the script.
 * What can't be is said on standard error, and ends the process. */
void packetdrill_interface_init(const char *flags, struct packetdrill_interface *interface);

/* How many calls of other threads wait: for runners that can't look whether a thread sleeps. */
unsigned ixnet_packetdrill_sleepers(void *userdata);
/* All invariants of the shard: NULL, or what is wrong. */
const char *ixnet_packetdrill_check(void *userdata);

#endif
