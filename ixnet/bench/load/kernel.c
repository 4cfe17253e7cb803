/* The transport over the kernel's sockets: one thread on epoll.
 *
 * Every socket is edge-triggered for both directions from the start; receiving goes on until the
 * socket is empty.
 */
#include "load.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#define EVENTS_MAX   512
#define BUFFER_BYTES (256u * 1024)

/* What a socket did not take: [from, to). */
struct pending {
    uint32_t from, to;
    uint8_t bytes[];
};

static struct {
    int epoll_fd;
    uint32_t next_port, port_lo, port_hi; /* connrate: local ports are taken in turn */
    uint32_t next_source;
    uint8_t buffer[BUFFER_BYTES];
} kernel;

static volatile sig_atomic_t stop_requested;

static void on_signal(int signum)
{
    (void)signum;
    stop_requested = 1;
}

static void die(const char *what)
{
    fprintf(stderr, "ixload: %s: %s\n", what, strerror(errno));
    exit(1);
}

/* ---- connecting -------------------------------------------------------------------- */

static void read_port_range(void)
{
    FILE *file = fopen("/proc/sys/net/ipv4/ip_local_port_range", "r");
    if (!file || fscanf(file, "%u %u", &kernel.port_lo, &kernel.port_hi) != 2 ||
        kernel.port_lo > kernel.port_hi)
        kernel.port_lo = 32768, kernel.port_hi = 60999;
    if (file)
        fclose(file);
    kernel.next_port = kernel.port_lo;
}

static bool bind_to(const struct load *l, int fd, uint32_t port)
{
    union {
        struct sockaddr any;
        struct sockaddr_storage storage;
        struct sockaddr_in in;
        struct sockaddr_in6 in6;
    } local = {.any.sa_family = l->opt.target.ss_family};
    if (l->opt.source_count)
        local.storage = l->opt.sources[kernel.next_source++ % l->opt.source_count];
    if (local.any.sa_family == AF_INET6)
        local.in6.sin6_port = htons((uint16_t)port);
    else
        local.in.sin_port = htons((uint16_t)port);
    return bind(fd, &local.any, l->opt.target_bytes) == 0;
}

/* Takes the next local port of the range. Left to itself connect() looks for a free one among the
 * TIME_WAITs of all that came before, and after some seconds spends a third of the client's time on
 * it: then the client is what is measured. Where the bind fails connect() chooses. */
static void take_next_port(const struct load *l, int fd)
{
    int one = 1;
    if (!kernel.next_port)
        read_port_range();
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    for (int tries = 0; tries < 16; tries++) {
        uint32_t port = kernel.next_port;
        kernel.next_port = port == kernel.port_hi ? kernel.port_lo : port + 1;
        if (bind_to(l, fd, port))
            return;
    }
}

int transport_connect(struct load *l, uint32_t index)
{
    struct conn *c = &l->conns[index];
    const struct options *o = &l->opt;
    int one = 1, fd = socket(o->target.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        die("socket");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (o->mode == MODE_CONNRATE) {
        take_next_port(l, fd);
    } else if (o->source_count) {
        setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
        if (!bind_to(l, fd, 0))
            die("bind to an address of --source");
    }
    if (connect(fd, (const struct sockaddr *)&o->target, o->target_bytes) < 0 &&
        errno != EINPROGRESS) {
        int err = -errno;
        close(fd);
        return err;
    }
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET,
                                .data.u32 = index};
    if (epoll_ctl(kernel.epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0)
        die("epoll_ctl");
    c->fd = fd;
    return 0;
}

static void forget(struct conn *c)
{
    close(c->fd);
    c->fd = -1;
    free(c->pending);
    c->pending = NULL;
}

void transport_close(struct load *l, uint32_t index, bool reset)
{
    struct conn *c = &l->conns[index];
    struct linger linger = {.l_onoff = 1};
    if (reset)
        setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
    forget(c);
    load_closed(l, index);
}

void transport_finish(struct load *l, uint32_t index)
{
    shutdown(l->conns[index].fd, SHUT_WR);
}

static void broken(struct load *l, uint32_t index, int error)
{
    forget(&l->conns[index]);
    load_broken(l, index, error);
}

/* ---- sending and receiving --------------------------------------------------------- */

/* False: the connection is broken. */
static bool send_pending(struct load *l, uint32_t index)
{
    struct conn *c = &l->conns[index];
    while (c->pending) {
        struct pending *p = c->pending;
        ssize_t sent = send(c->fd, p->bytes + p->from, p->to - p->from, MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN && errno != EINTR) {
            broken(l, index, errno);
            return false;
        }
        if (sent < 0)
            return true;
        l->progress_ns = l->now_ns;
        p->from += (uint32_t)sent;
        if (p->from == p->to) {
            free(p);
            c->pending = NULL;
        }
    }
    return true;
}

static void keep(struct conn *c, uint32_t from, uint32_t to)
{
    c->pending = malloc(sizeof *c->pending + to - from);
    if (!c->pending)
        die("malloc");
    c->pending->from = 0;
    c->pending->to = to - from;
    memcpy(c->pending->bytes, kernel.buffer + from, to - from);
}

void transport_kick(struct load *l, uint32_t index)
{
    struct conn *c = &l->conns[index];
    if (c->pending)
        return; /* EPOLLOUT comes */
    uint32_t n;
    while (c->state == CONN_OPEN && (n = load_fill(l, index, kernel.buffer, BUFFER_BYTES)) > 0) {
        ssize_t sent = send(c->fd, kernel.buffer, n, MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN && errno != EINTR) {
            broken(l, index, errno);
            return;
        }
        uint32_t taken = sent < 0 ? 0 : (uint32_t)sent;
        if (taken < n) {
            keep(c, taken, n);
            return;
        }
    }
}

static void receive(struct load *l, uint32_t index)
{
    struct conn *c = &l->conns[index];
    int fd = c->fd;
    static uint8_t buffer[BUFFER_BYTES];
    for (;;) {
        ssize_t got = recv(fd, buffer, sizeof buffer, 0);
        if (got < 0) {
            if (errno != EAGAIN && errno != EINTR)
                broken(l, index, errno);
            return;
        }
        l->now_ns = clock_ns();
        if (got == 0)
            load_peer_closed(l, index);
        else
            load_received(l, index, buffer, (uint32_t)got);
        /* A short read emptied the socket: what comes later is announced. */
        if (c->fd != fd || got == 0 || (size_t)got < sizeof buffer)
            return;
    }
}

static void on_event(struct load *l, uint32_t index, uint32_t events)
{
    struct conn *c = &l->conns[index];
    if (c->fd < 0)
        return; /* closed since */
    if (c->state == CONN_CONNECTING) {
        if (!(events & (EPOLLOUT | EPOLLERR | EPOLLHUP)))
            return;
        int error = 0;
        socklen_t bytes = sizeof error;
        getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &bytes);
        if (error)
            forget(c);
        load_connected(l, index, error);
        if (error || !(events & EPOLLIN))
            return;
    }
    if ((events & EPOLLOUT) && c->pending && send_pending(l, index))
        transport_kick(l, index);
    if (c->fd >= 0 && (events & (EPOLLIN | EPOLLERR | EPOLLHUP | EPOLLRDHUP)))
        receive(l, index);
    /* A short read does not tell of the FIN behind it, and that edge is this one. */
    if (c->fd >= 0 && (events & (EPOLLRDHUP | EPOLLHUP)))
        receive(l, index);
}

bool transport_turn(struct load *l, uint64_t wait_ns)
{
    struct epoll_event events[EVENTS_MAX];
    if (l->opt.spin)
        wait_ns = 0;
    struct timespec wait = {.tv_sec = (time_t)(wait_ns / SECOND_NS),
                            .tv_nsec = (long)(wait_ns % SECOND_NS)};
    int n = epoll_pwait2(kernel.epoll_fd, events, EVENTS_MAX, &wait, NULL);
    if (n < 0 && errno != EINTR)
        die("epoll_pwait2");
    l->now_ns = clock_ns();
    for (int i = 0; i < n; i++)
        on_event(l, events[i].data.u32, events[i].events);
    return !stop_requested;
}

static void raise_fd_limit(uint32_t connections)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
        return;
    if (limit.rlim_max < connections + 16ull) { /* root may */
        struct rlimit more = {connections + 64ull, connections + 64ull};
        if (setrlimit(RLIMIT_NOFILE, &more) == 0)
            return;
        fprintf(stderr, "ixload: %u connections need more file descriptors than %llu "
                        "(cure: a higher ulimit -Hn, more --processes, or --client ixnet)\n",
                connections, (unsigned long long)limit.rlim_max);
        exit(2);
    }
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
}

int main(int argc, char **argv)
{
    static struct load load;
    parse_options(&load.opt, argc, argv);
    raise_fd_limit(load.opt.connections + load.opt.probes);
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    prctl(PR_SET_TIMERSLACK, 1ul); /* requests are due to the microsecond */
    kernel.epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (kernel.epoll_fd < 0)
        die("epoll_create1");
    int status = load_main(&load);
    load_free(&load);
    return status;
}
