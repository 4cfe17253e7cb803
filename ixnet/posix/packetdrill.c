/* ixnet as packetdrill's stack under test: one shard on a wire of function calls, its sockets, and
 * a clock that only this file moves. See packetdrill.h. */
#include "posix/packetdrill.h"

#include "posix/settings.h"
#include "posix/wire.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    POOL_FRAMES = 4096,
    ARENA_FRAMES = 4096,
    FDS = 4096,
    PORT_LO = 32768, /* Linux: ip_local_port_range */
    PORT_HI = 60999,
    RCVBUF_MAX = 6 << 20, /* Linux: tcp_rmem; so a SYN's window scale is Linux's, 7 */
    SNDBUF_MAX = 4 << 20, /* Linux: tcp_wmem */
    LOCALS_MAX = 16,
};
#define START_NS 1700000000000000000ull

struct stack {
    struct ix_wire *wire;
    struct ix_shard *shard;
    struct ix_posix *posix;
    void *memory;
    char *flags;
    pthread_t driver;       /* the thread that moves the clock: the one that made this */
    uint64_t now_ns;        /* read by all threads */
    pthread_mutex_t moving; /* held while the clock moves */
    uint64_t other_ns; /* when the other thread last entered a call; UINT64_MAX: the end of that
                        * call has been asked for */
    uint32_t locals;
    struct ix_posix_address local[LOCALS_MAX];
};

static void fail(const char *what)
{
    fprintf(stderr, "ixnet-packetdrill: %s\n", what);
    exit(EXIT_FAILURE);
}

/* ---- time */

static uint64_t clock_ns(void *arg)
{
    return __atomic_load_n(&((struct stack *)arg)->now_ns, __ATOMIC_ACQUIRE);
}

static void set_clock(struct stack *st, uint64_t now_ns)
{
    if (now_ns > st->now_ns)
        __atomic_store_n(&st->now_ns, now_ns, __ATOMIC_RELEASE);
    ix_wire_set_now(st->wire, st->now_ns);
}

static void make(struct stack *st);

/* The shard is made when it is first needed: the commands that a script begins with, sysctls among
 * them, have been run by then. */
static struct stack *stack_of(void *userdata)
{
    struct stack *st = userdata;
    if (!st->shard)
        make(st);
    return st;
}

static bool is_driver(const struct stack *st)
{
    return pthread_equal(pthread_self(), st->driver);
}

/* A call that blocks in the driver's own thread: nobody else would move the clock. */
static bool drive(void *arg, uint64_t until_ns)
{
    struct stack *st = arg;
    if (!is_driver(st))
        return false;
    if (until_ns == UINT64_MAX)
        fail("a call blocks for ever: nothing can happen that would end it");
    set_clock(st, until_ns > st->now_ns ? until_ns : st->now_ns + 1000);
    return true;
}

static void pump_to(struct stack *st, uint64_t now_ns)
{
    set_clock(st, now_ns);
    ix_posix_pump(st->posix);
}

/* Lets everything happen that is due in the next `ns`, each at its time. */
static void run_for(struct stack *st, uint64_t ns)
{
    pthread_mutex_lock(&st->moving);
    uint64_t until_ns = st->now_ns + ns, next_ns;
    while ((next_ns = ix_posix_next_deadline(st->posix)) <= until_ns)
        pump_to(st, next_ns > st->now_ns ? next_ns : st->now_ns + 1000);
    pump_to(st, until_ns);
    pthread_mutex_unlock(&st->moving);
}

static int pd_usleep(void *userdata, useconds_t us)
{
    run_for(stack_of(userdata), us * 1000ull);
    return 0;
}

static int pd_gettimeofday(void *userdata, struct timeval *tv, struct timezone *tz)
{
    struct stack *st = stack_of(userdata);
    (void)tz;
    /* The thread that makes the blocking calls asks when its call ended: when it was woken, however
     * far the driver has come meanwhile. At other times the driver waits for it. */
    uint64_t now_ns = is_driver(st) ? 0 : ix_posix_woken_ns(st->posix);
    if (is_driver(st) || now_ns < st->other_ns) {
        run_for(st, 1000);
        now_ns = clock_ns(st);
    } else {
        st->other_ns = UINT64_MAX;
    }
    tv->tv_sec = (time_t)(now_ns / 1000000000);
    tv->tv_usec = (suseconds_t)(now_ns / 1000 % 1000000);
    return 0;
}

/* ---- the wire */

static void tell_shard(struct stack *st, const struct ix_ctl_msg *msg)
{
    while (ix_ctl_send(st->shard, msg) == -EAGAIN)
        ix_posix_pump(st->posix);
}

/* Makes an address the stack's, unless it is already. */
static void add_local(struct stack *st, const struct ix_posix_address *local)
{
    static const uint8_t any[16];
    struct ix_ctl_msg msg = {.type = IX_CTL_ADDR_ADD, .family = local->family};
    for (uint32_t i = 0; i < st->locals; i++)
        if (memcmp(&st->local[i], local, sizeof *local) == 0)
            return;
    if (st->locals == LOCALS_MAX || memcmp(local->ip, any, sizeof any) == 0)
        return;
    st->local[st->locals++] = *local;
    memcpy(msg.ip, local->ip, sizeof msg.ip);
    tell_shard(st, &msg);
}

/* That of a bind(), or none: family 0. IPv4-mapped ones are IPv4's. */
static struct ix_posix_address address_of(const struct sockaddr *addr, socklen_t len)
{
    struct ix_posix_address out = {.family = 0};
    struct sockaddr_in in4;
    struct sockaddr_in6 in6;
    if (len >= sizeof in4 && addr->sa_family == AF_INET) {
        memcpy(&in4, addr, sizeof in4);
        memcpy(out.ip, &in4.sin_addr, 4);
        out.family = 4;
    } else if (len >= sizeof in6 && addr->sa_family == AF_INET6) {
        memcpy(&in6, addr, sizeof in6);
        out.family = IN6_IS_ADDR_V4MAPPED(&in6.sin6_addr) ? 4 : 6;
        memcpy(out.ip, (const uint8_t *)&in6.sin6_addr + (out.family == 4 ? 12 : 0),
               out.family == 4 ? 4 : 16);
    }
    return out;
}

/* The way to everybody; connect() goes out from `local`. */
static void add_router(struct stack *st, const struct ix_posix_address *local)
{
    static const struct ix_posix_address routers[] = {
        {{192, 0, 2, 254}, 4},
        {{0x20, 1, 0xd, 0xb8, [15] = 0xfe}, 6},
    };
    const struct ix_posix_address *router = &routers[local->family == 6];
    struct ix_ctl_msg route = {.type = IX_CTL_ROUTE_SET, .family = local->family};
    struct ix_ctl_msg neigh = {.type = IX_CTL_NEIGH_SET, .family = local->family};
    memcpy(route.gateway, router->ip, sizeof route.gateway);
    memcpy(route.source, local->ip, sizeof route.source);
    memcpy(neigh.ip, router->ip, sizeof neigh.ip);
    memcpy(neigh.mac, ix_wire_router_mac, sizeof neigh.mac);
    tell_shard(st, &route);
    tell_shard(st, &neigh);
}

static int pd_netdev_send(void *userdata, const void *buf, size_t bytes)
{
    struct stack *st = stack_of(userdata);
    const uint8_t *packet = buf;
    struct ix_posix_address dst = {.family = bytes ? packet[0] >> 4 : 0};
    if (bytes >= 20 && dst.family == 4 && packet[16] < 224) {
        memcpy(dst.ip, packet + 16, 4);
        add_local(st, &dst);
    } else if (bytes >= 40 && dst.family == 6 && packet[24] != 0xff) {
        memcpy(dst.ip, packet + 24, 16);
        add_local(st, &dst);
    }
    int err = ix_wire_put(st->wire, buf, bytes);
    if (err) {
        errno = -err;
        return -1;
    }
    pump_to(st, st->now_ns);
    return 0;
}

static int pd_netdev_receive(void *userdata, void *buf, size_t *bytes, long long *time_us)
{
    struct stack *st = stack_of(userdata);
    size_t room = *bytes, got;
    uint64_t at_ns = st->now_ns, next_ns = 0;
    while ((got = ix_wire_take(st->wire, buf, room, &at_ns)) == 0 && next_ns != UINT64_MAX) {
        next_ns = ix_posix_next_deadline(st->posix);
        if (next_ns != UINT64_MAX)
            pump_to(st, next_ns > st->now_ns ? next_ns : st->now_ns + 1000);
    }
    *bytes = got;
    *time_us = (long long)(at_ns / 1000);
    return 0;
}

/* ---- sockets: -errno becomes errno */

static struct stack *enter(void *userdata)
{
    struct stack *st = stack_of(userdata);
    if (!is_driver(st))
        st->other_ns = clock_ns(st);
    return st;
}

static ssize_t leave(ssize_t result)
{
    if (result >= 0)
        return result;
    errno = (int)-result;
    return -1;
}

/* packetdrill closes what a script leaves open by the kernel's close(), so each descriptor is one
 * of the kernel's. */
static int fd_open(void *arg)
{
    int fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    (void)arg;
    return fd < 0 ? -errno : fd;
}

static void fd_close(void *arg, int fd)
{
    (void)arg;
    close(fd);
}

/* Else it is a pipe. */
static bool is_ours(void *userdata, int fd)
{
    return ix_posix_fcntl(stack_of(userdata)->posix, fd, F_GETFD, 0) >= 0;
}

static int pd_socket(void *userdata, int domain, int type, int protocol)
{
    return (int)leave(ix_posix_socket(enter(userdata)->posix, domain, type, protocol));
}

static int pd_bind(void *userdata, int fd, const struct sockaddr *addr, socklen_t len)
{
    struct stack *st = enter(userdata);
    struct ix_posix_address local = address_of(addr, len);
    if (local.family)
        add_local(st, &local);
    return (int)leave(ix_posix_bind(st->posix, fd, addr, len));
}

static int pd_listen(void *userdata, int fd, int backlog)
{
    return (int)leave(ix_posix_listen(enter(userdata)->posix, fd, backlog));
}

static int pd_accept(void *userdata, int fd, struct sockaddr *addr, socklen_t *len)
{
    return (int)leave(ix_posix_accept(enter(userdata)->posix, fd, addr, len, 0));
}

static int pd_connect(void *userdata, int fd, const struct sockaddr *addr, socklen_t len)
{
    return (int)leave(ix_posix_connect(enter(userdata)->posix, fd, addr, len));
}

static ssize_t pd_recvfrom(void *userdata, int fd, void *buf, size_t bytes, int flags,
                           struct sockaddr *addr, socklen_t *len)
{
    if (!is_ours(userdata, fd))
        return read(fd, buf, bytes);
    return leave(ix_posix_recvfrom(enter(userdata)->posix, fd, buf, bytes, flags, addr, len));
}

static ssize_t pd_recv(void *userdata, int fd, void *buf, size_t bytes, int flags)
{
    return pd_recvfrom(userdata, fd, buf, bytes, flags, NULL, NULL);
}

static ssize_t pd_read(void *userdata, int fd, void *buf, size_t bytes)
{
    return pd_recvfrom(userdata, fd, buf, bytes, 0, NULL, NULL);
}

static ssize_t pd_recvmsg(void *userdata, int fd, struct msghdr *msg, int flags)
{
    return leave(ix_posix_recvmsg(enter(userdata)->posix, fd, msg, flags));
}

static ssize_t pd_readv(void *userdata, int fd, const struct iovec *iov, int n)
{
    struct msghdr msg = {.msg_iov = (struct iovec *)(uintptr_t)iov, .msg_iovlen = (size_t)n};
    return pd_recvmsg(userdata, fd, &msg, 0);
}

static ssize_t pd_sendto(void *userdata, int fd, const void *buf, size_t bytes, int flags,
                         const struct sockaddr *addr, socklen_t len)
{
    if (!is_ours(userdata, fd))
        return write(fd, buf, bytes);
    return leave(ix_posix_sendto(enter(userdata)->posix, fd, buf, bytes, flags, addr, len));
}

static ssize_t pd_send(void *userdata, int fd, const void *buf, size_t bytes, int flags)
{
    return pd_sendto(userdata, fd, buf, bytes, flags, NULL, 0);
}

static ssize_t pd_write(void *userdata, int fd, const void *buf, size_t bytes)
{
    return pd_sendto(userdata, fd, buf, bytes, 0, NULL, 0);
}

static ssize_t pd_sendmsg(void *userdata, int fd, const struct msghdr *msg, int flags)
{
    return leave(ix_posix_sendmsg(enter(userdata)->posix, fd, msg, flags));
}

static ssize_t pd_writev(void *userdata, int fd, const struct iovec *iov, int n)
{
    struct msghdr msg = {.msg_iov = (struct iovec *)(uintptr_t)iov, .msg_iovlen = (size_t)n};
    return pd_sendmsg(userdata, fd, &msg, 0);
}

static int pd_fcntl(void *userdata, int fd, int command, ...)
{
    va_list args;
    va_start(args, command);
    long arg = va_arg(args, long);
    va_end(args);
    return (int)leave(ix_posix_fcntl(enter(userdata)->posix, fd, command, arg));
}

static int pd_ioctl(void *userdata, int fd, unsigned long request, ...)
{
    va_list args;
    va_start(args, request);
    void *arg = va_arg(args, void *);
    va_end(args);
    return (int)leave(ix_posix_ioctl(enter(userdata)->posix, fd, request, arg));
}

static int pd_close(void *userdata, int fd)
{
    if (!is_ours(userdata, fd))
        return close(fd);
    return (int)leave(ix_posix_close(enter(userdata)->posix, fd));
}

static int pd_shutdown(void *userdata, int fd, int how)
{
    return (int)leave(ix_posix_shutdown(enter(userdata)->posix, fd, how));
}

static int pd_getsockopt(void *userdata, int fd, int level, int name, void *value, socklen_t *len)
{
    return (int)leave(ix_posix_getsockopt(enter(userdata)->posix, fd, level, name, value, len));
}

static int pd_setsockopt(void *userdata, int fd, int level, int name, const void *value,
                         socklen_t len)
{
    return (int)leave(ix_posix_setsockopt(enter(userdata)->posix, fd, level, name, value, len));
}

static int pd_poll(void *userdata, struct pollfd *fds, nfds_t n, int timeout_ms)
{
    return (int)leave(ix_posix_poll(enter(userdata)->posix, fds, n, timeout_ms));
}

static int pd_epoll_create(void *userdata, int size)
{
    return (int)leave(size > 0 ? ix_posix_epoll_create(enter(userdata)->posix) : -EINVAL);
}

static int pd_epoll_ctl(void *userdata, int epfd, int op, int fd, struct epoll_event *event)
{
    return (int)leave(ix_posix_epoll_ctl(enter(userdata)->posix, epfd, op, fd, event));
}

static int pd_epoll_wait(void *userdata, int epfd, struct epoll_event *events, int max,
                         int timeout_ms)
{
    return (int)leave(ix_posix_epoll_wait(enter(userdata)->posix, epfd, events, max, timeout_ms));
}

static int pd_pipe(void *userdata, int fds[2])
{
    (void)userdata;
    return pipe(fds);
}

/* Through a buffer: one end is a pipe of the kernel's, the other a socket of ours. */
static int pd_splice(void *userdata, int in, loff_t *in_offset, int out, loff_t *out_offset,
                     size_t bytes, unsigned int flags)
{
    uint8_t buffer[1 << 14];
    size_t done = 0;
    (void)flags;
    if (in_offset || out_offset)
        return (int)leave(-ESPIPE);
    while (done < bytes) {
        size_t part = bytes - done < sizeof buffer ? bytes - done : sizeof buffer;
        ssize_t got = pd_read(userdata, in, buffer, part);
        if (got <= 0)
            return done ? (int)done : (int)got;
        ssize_t put = pd_write(userdata, out, buffer, (size_t)got);
        if (put != got)
            return put < 0 ? -1 : (int)(done + (size_t)put);
        done += (size_t)got;
        if ((size_t)got < part)
            break;
    }
    return (int)done;
}

/* ---- making and freeing */

static void pd_free(void *userdata)
{
    struct stack *st = userdata;
    pthread_mutex_destroy(&st->moving);
    if (st->shard) {
        ix_posix_free(st->posix);
        ix_wire_free(st->wire);
    }
    free(st->memory);
    free(st->flags);
    free(st);
}

static void make(struct stack *st)
{
    struct ix_posix_settings set = {
        .sysctls = true,
        /* Of packetdrill's 192.168.0.0/16 and fd3d:a0b:17d6::/48. */
        .local = {{{192, 168, 0, 2}, 4}, {{0xfd, 0x3d, 0x0a, 0x0b, 0x17, 0xd6, [15] = 2}, 6}},
        .cfg = {.now_ns = START_NS,
                .shard_count = 1,
                .max_flows = 1024,
                .pool_frames = POOL_FRAMES,
                .arena_frames = ARENA_FRAMES,
                .rcvbuf_max_bytes = RCVBUF_MAX,
                .sndbuf_max_bytes = SNDBUF_MAX,
                .sg_inplace = 1,
                .port_lo = PORT_LO,
                .port_hi = PORT_HI,
                .all_port_lo = PORT_LO,
                .all_port_hi = PORT_HI},
    };
    struct ix_config *cfg = &set.cfg;
    (void)ix_posix_read_settings(st->flags, &set);
    if (set.sysctls) {
        ix_posix_sysctls(cfg);
        (void)ix_posix_read_settings(st->flags, &set); /* which have the last word */
    }
    for (uint64_t i = 0; i < 8; i++) /* the same numbers in every run */
        cfg->secret[i] = (i + 1) * 0x9e3779b97f4a7c15ull;
    memcpy(cfg->mac, ix_wire_mac, sizeof cfg->mac);
    size_t bytes = ix_shard_bytes(cfg);
    if (!bytes)
        fail("the settings in --so_flags can't be");
    st->wire = ix_wire_new(POOL_FRAMES + ARENA_FRAMES);
    st->memory = aligned_alloc(4096, bytes);
    if (!st->wire || !st->memory)
        fail("out of memory");
    memset(st->memory, 0, bytes);
    st->shard = ix_shard_create(st->memory, bytes, cfg, ix_wire_link(st->wire), NULL);
    uint32_t lowat = set.sysctls ? ix_posix_sysctl_notsent_lowat() : 0;
    st->posix = ix_posix_new(&(struct ix_posix_config){.shard = st->shard,
                                                       .env = {.now_ns = clock_ns,
                                                               .drive = drive,
                                                               .fd_open = fd_open,
                                                               .fd_close = fd_close,
                                                               .arg = st,
                                                               .lockstep = true},
                                                       .max_fds = FDS,
                                                       .pool_frames = POOL_FRAMES,
                                                       .sndbuf_bytes = cfg->sndbuf_bytes,
                                                       .rcvbuf_bytes = cfg->rcvbuf_bytes,
                                                       .notsent_lowat = lowat,
                                                       .port_lo = PORT_LO,
                                                       .port_hi = PORT_HI});
    if (!st->posix)
        fail("out of memory");
    for (int i = 0; i < 2; i++) {
        add_local(st, &set.local[i]);
        add_router(st, &set.local[i]);
    }
    ix_posix_pump(st->posix);
}

static struct stack *begin(const char *flags)
{
    struct stack *st = calloc(1, sizeof *st);
    struct ix_posix_settings tried = {.sysctls = true};
    if (!st || (st->flags = strdup(flags ? flags : "")) == NULL)
        fail("out of memory");
    if (!ix_posix_read_settings(st->flags, &tried))
        fail("a setting in --so_flags is none that I know");
    st->driver = pthread_self();
    st->now_ns = START_NS;
    st->other_ns = UINT64_MAX;
    pthread_mutex_init(&st->moving, NULL);
    return st;
}

void packetdrill_interface_init(const char *flags, struct packetdrill_interface *interface)
{
    *interface = (struct packetdrill_interface){
        .userdata = begin(flags),
        .free = pd_free,
        .socket = pd_socket,
        .bind = pd_bind,
        .listen = pd_listen,
        .accept = pd_accept,
        .connect = pd_connect,
        .read = pd_read,
        .readv = pd_readv,
        .recv = pd_recv,
        .recvfrom = pd_recvfrom,
        .recvmsg = pd_recvmsg,
        .write = pd_write,
        .writev = pd_writev,
        .send = pd_send,
        .sendto = pd_sendto,
        .sendmsg = pd_sendmsg,
        .fcntl = pd_fcntl,
        .ioctl = pd_ioctl,
        .close = pd_close,
        .shutdown = pd_shutdown,
        .getsockopt = pd_getsockopt,
        .setsockopt = pd_setsockopt,
        .poll = pd_poll,
        .netdev_send = pd_netdev_send,
        .netdev_receive = pd_netdev_receive,
        .usleep = pd_usleep,
        .gettimeofday = pd_gettimeofday,
        .epoll_create = pd_epoll_create,
        .epoll_ctl = pd_epoll_ctl,
        .epoll_wait = pd_epoll_wait,
        .pipe = pd_pipe,
        .splice = pd_splice,
    };
}

unsigned ixnet_packetdrill_sleepers(void *userdata)
{
    return ix_posix_sleepers(stack_of(userdata)->posix);
}

const char *ixnet_packetdrill_check(void *userdata)
{
    return ix_shard_check(stack_of(userdata)->shard);
}
