/* Sockets as POSIX has them, over one shard's batched API.
 *
 * For programs that were written for sockets: each function is the system call of its name, over
 * descriptors of this layer's own, and returns what that returns, or -errno. Payload is copied,
 * once each way: into the send arena, and out of the frames that RECV lent.
 *
 * Threads. One lock a shard; every function takes it, so any thread may call at any time. Each
 * call runs the shard's cycle by itself, so a write has left, if the window lets it, when it
 * returns. What has to wait (an empty receive queue, a full send queue, epoll_wait) asks the
 * environment's drive() what waiting means: this thread runs the shard, or it sleeps until another
 * thread's ix_posix_pump() has brought what it waits for. */
#ifndef IX_POSIX_POSIX_H
#define IX_POSIX_POSIX_H

#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>

struct ix_config;
struct ix_shard;
struct ix_posix;

/* What the layer needs of the world. */
struct ix_posix_env {
    /* The shard's clock. Any thread calls it. */
    uint64_t (*now_ns)(void *arg);
    /* A call waits for something to happen, until until_ns (UINT64_MAX: for ever) at most. Called
     * without the lock. Either lets time pass until the link has frames or until_ns, whichever is
     * first, and returns true: the calling thread then runs a cycle; or returns false: the calling
     * thread then sleeps until another's pump wakes it. */
    bool (*drive)(void *arg, uint64_t until_ns);
    /* Descriptors that the kernel gives to nobody else while they are ours, so that programs may
     * mix both kinds: fd_open() returns one (or -errno), fd_close() gives it back. NULL: the
     * lowest free one from fd_base on. */
    int (*fd_open)(void *arg);
    void (*fd_close)(void *arg, int fd);
    void *arg;
    /* With a virtual clock: a pump that wakes sleepers returns only after each of them has returned
     * or sleeps again, so that time stands still for them meanwhile. */
    bool lockstep;
};

struct ix_posix_config {
    struct ix_shard *shard; /* this layer alone polls it from now on */
    struct ix_posix_env env;
    int fd_base;          /* the lowest descriptor's number */
    uint32_t max_fds;     /* from there on; 0: 1,024 */
    uint32_t max_sockets; /* closed ones that are not over yet included; 0: twice max_fds */
    uint32_t pool_frames; /* of the shard's configuration, as is sndbuf_bytes */
    uint32_t sndbuf_bytes;
    uint32_t rcvbuf_bytes;
    uint16_t port_lo, port_hi; /* what bind() to port 0 chooses from */
    uint32_t notsent_lowat;    /* TCP_NOTSENT_LOWAT of sockets that set none; 0: no limit */
    bool sigpipe;              /* raise SIGPIPE with EPIPE, unless MSG_NOSIGNAL says otherwise */
};

/* Sets in a configuration what Linux's sysctls say of TCP, in this network namespace: sizes of
 * buffers, timestamps, SACK, window scaling, ECN, SYN cookies, congestion control. */
void ix_posix_sysctls(struct ix_config *cfg);
/* tcp_notsent_lowat, for ix_posix_config. */
uint32_t ix_posix_sysctl_notsent_lowat(void);

/* Returns NULL if memory is out, or the shard takes fewer calls a poll than it returns events. The
 * memory is libc's, taken here and at no other time. */
struct ix_posix *ix_posix_new(const struct ix_posix_config *config);
/* No call may be under way. Connections are left as they are: the shard goes with them. */
void ix_posix_free(struct ix_posix *posix);

/* Runs cycles until there is nothing left to do at this time, and wakes whoever waits for what they
 * brought. */
void ix_posix_pump(struct ix_posix *posix);
/* When there is something to do next, for the shard or for a call with a timeout; UINT64_MAX:
 * never. */
uint64_t ix_posix_next_deadline(struct ix_posix *posix);
/* How many calls sleep. */
uint32_t ix_posix_sleepers(struct ix_posix *posix);
/* When a call that slept last came to its end. */
uint64_t ix_posix_woken_ns(struct ix_posix *posix);

/* AF_INET and AF_INET6; SOCK_STREAM and SOCK_DGRAM, with SOCK_NONBLOCK. */
int ix_posix_socket(struct ix_posix *posix, int domain, int type, int protocol);
int ix_posix_bind(struct ix_posix *posix, int fd, const struct sockaddr *addr, socklen_t len);
int ix_posix_listen(struct ix_posix *posix, int fd, int backlog);
/* flags: SOCK_NONBLOCK. */
int ix_posix_accept(struct ix_posix *posix, int fd, struct sockaddr *addr, socklen_t *len,
                    int flags);
int ix_posix_connect(struct ix_posix *posix, int fd, const struct sockaddr *addr, socklen_t len);
int ix_posix_getsockname(struct ix_posix *posix, int fd, struct sockaddr *addr, socklen_t *len);
int ix_posix_getpeername(struct ix_posix *posix, int fd, struct sockaddr *addr, socklen_t *len);
/* The other functions that read and write are these. Flags: MSG_DONTWAIT, MSG_PEEK, MSG_TRUNC,
 * MSG_WAITALL; MSG_DONTWAIT, MSG_MORE, MSG_NOSIGNAL. Others are an error (EOPNOTSUPP). */
ssize_t ix_posix_recvmsg(struct ix_posix *posix, int fd, struct msghdr *msg, int flags);
ssize_t ix_posix_sendmsg(struct ix_posix *posix, int fd, const struct msghdr *msg, int flags);
ssize_t ix_posix_recvfrom(struct ix_posix *posix, int fd, void *buf, size_t bytes, int flags,
                          struct sockaddr *addr, socklen_t *len);
ssize_t ix_posix_sendto(struct ix_posix *posix, int fd, const void *buf, size_t bytes, int flags,
                        const struct sockaddr *addr, socklen_t len);
int ix_posix_shutdown(struct ix_posix *posix, int fd, int how);
/* With SO_LINGER waits as long as that says; with unread payload resets, as Linux does (RFC 2525
 * section 2.17). */
int ix_posix_close(struct ix_posix *posix, int fd);
int ix_posix_dup(struct ix_posix *posix, int fd);
/* SOL_SOCKET, IPPROTO_TCP: see opt.c for which; TCP_CONGESTION is cubic, reno or dctcp. What is not
 * known is ENOPROTOOPT. */
int ix_posix_getsockopt(struct ix_posix *posix, int fd, int level, int name, void *value,
                        socklen_t *len);
int ix_posix_setsockopt(struct ix_posix *posix, int fd, int level, int name, const void *value,
                        socklen_t len);
/* F_GETFL, F_SETFL (O_NONBLOCK), F_GETFD, F_SETFD. */
int ix_posix_fcntl(struct ix_posix *posix, int fd, int command, long arg);
/* FIONREAD (SIOCINQ), TIOCOUTQ (SIOCOUTQ), SIOCOUTQNSD, FIONBIO. */
int ix_posix_ioctl(struct ix_posix *posix, int fd, unsigned long request, void *arg);
/* Descriptors that are not this layer's are POLLNVAL. */
int ix_posix_poll(struct ix_posix *posix, struct pollfd *fds, nfds_t n, int timeout_ms);
int ix_posix_epoll_create(struct ix_posix *posix);
int ix_posix_epoll_ctl(struct ix_posix *posix, int epfd, int op, int fd, struct epoll_event *event);
int ix_posix_epoll_wait(struct ix_posix *posix, int epfd, struct epoll_event *events, int max,
                        int timeout_ms);

#endif
