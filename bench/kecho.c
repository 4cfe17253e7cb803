/* The yardstick: a TCP echo server on the kernel's stack, one thread, epoll.
 *
 *     kecho [--address IP] [--port N] [--edge] [--spin]
 *
 * Each readable connection gets one recv() and one send() a turn; what the peer doesn't take is
 * kept, and nothing more is read from that connection until it is gone. Prints "ready IP PORT" when
 * it listens. SIGTERM or SIGINT ends it with a line of counts.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define EVENTS_MAX   512
#define BUFFER_BYTES (64 * 1024)
#define BACKLOG      4096

struct client {
    int fd;
    uint32_t interest; /* what epoll was last asked for */
    uint8_t *pending;  /* received, not yet sent: [pending_from, pending_to); NULL if none */
    size_t pending_from;
    size_t pending_to;
};

struct server {
    int epoll_fd;
    int listen_fd;
    bool edge; /* edge-triggered: read until the socket is empty */
    bool spin; /* never sleep in epoll_wait */
    uint64_t accepted;
    uint64_t messages; /* recv() calls that brought data */
    uint64_t bytes;
    uint8_t buffer[BUFFER_BYTES];
};

static volatile sig_atomic_t stop_requested;

static void on_signal(int signum)
{
    (void)signum;
    stop_requested = 1;
}

static void die(const char *what)
{
    fprintf(stderr, "kecho: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void client_drop(struct client *c)
{
    close(c->fd); /* leaves the epoll set with it */
    free(c->pending);
    free(c);
}

static void client_want(struct server *s, struct client *c, uint32_t interest)
{
    if (s->edge || c->interest == interest)
        return; /* edge-triggered clients ask for both once and for all */
    c->interest = interest;
    struct epoll_event event = {.events = interest, .data.ptr = c};
    if (epoll_ctl(s->epoll_fd, EPOLL_CTL_MOD, c->fd, &event) < 0)
        die("epoll_ctl");
}

/* Sends data; keeps a copy of what the socket doesn't take. False: the connection is broken. */
static bool client_send(struct server *s, struct client *c, const uint8_t *data, size_t bytes)
{
    ssize_t sent = send(c->fd, data, bytes, MSG_NOSIGNAL);
    if (sent < 0) {
        if (errno != EAGAIN && errno != EINTR)
            return false;
        sent = 0;
    }
    if ((size_t)sent == bytes)
        return true;
    c->pending_from = 0;
    c->pending_to = bytes - (size_t)sent;
    c->pending = malloc(c->pending_to);
    if (!c->pending)
        return false;
    memcpy(c->pending, data + sent, c->pending_to);
    client_want(s, c, EPOLLOUT);
    return true;
}

/* Sends what was kept. False: the connection is broken. */
static bool client_flush(struct server *s, struct client *c)
{
    while (c->pending) {
        size_t left = c->pending_to - c->pending_from;
        ssize_t sent = send(c->fd, c->pending + c->pending_from, left, MSG_NOSIGNAL);
        if (sent < 0)
            return errno == EAGAIN || errno == EINTR;
        c->pending_from += (size_t)sent;
        if (c->pending_from == c->pending_to) {
            free(c->pending);
            c->pending = NULL;
        }
    }
    client_want(s, c, EPOLLIN);
    return true;
}

/* False: the connection is over. */
static bool client_echo(struct server *s, struct client *c)
{
    while (!c->pending) {
        ssize_t got = recv(c->fd, s->buffer, sizeof s->buffer, 0);
        if (got < 0)
            return errno == EAGAIN || errno == EINTR;
        if (got == 0)
            return false; /* nothing is pending here, so all of it is echoed */
        s->messages++;
        s->bytes += (uint64_t)got;
        if (!client_send(s, c, s->buffer, (size_t)got))
            return false;
        if (!s->edge)
            return true; /* if there is more, epoll says so, after the others had their turn */
    }
    return true;
}

static void client_event(struct server *s, struct client *c, uint32_t events)
{
    bool alive = true;
    if (c->pending && (events & (EPOLLOUT | EPOLLERR | EPOLLHUP)))
        alive = client_flush(s, c);
    if (alive && !c->pending && (events & (EPOLLIN | EPOLLERR | EPOLLHUP | EPOLLOUT)))
        alive = client_echo(s, c);
    if (!alive)
        client_drop(c);
}

static void accept_all(struct server *s)
{
    for (;;) {
        int fd = accept4(s->listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) {
            if (errno == EAGAIN || errno == ECONNABORTED || errno == EINTR)
                return;
            die("accept"); /* out of descriptors too: nothing measured then would mean much */
        }
        struct client *c = calloc(1, sizeof *c);
        if (!c) {
            close(fd);
            return;
        }
        int one = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        c->fd = fd;
        c->interest = s->edge ? EPOLLIN | EPOLLOUT | EPOLLET : EPOLLIN;
        struct epoll_event event = {.events = c->interest, .data.ptr = c};
        if (epoll_ctl(s->epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0)
            die("epoll_ctl");
        s->accepted++;
    }
}

static void serve(struct server *s)
{
    struct epoll_event events[EVENTS_MAX];
    while (!stop_requested) {
        int n = epoll_wait(s->epoll_fd, events, EVENTS_MAX, s->spin ? 0 : -1);
        if (n < 0 && errno != EINTR)
            die("epoll_wait");
        for (int i = 0; i < n; i++) {
            if (events[i].data.ptr)
                client_event(s, events[i].data.ptr, events[i].events);
            else
                accept_all(s);
        }
    }
}

static int listen_on(const char *address, const char *port)
{
    struct addrinfo hints = {.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV | AI_PASSIVE,
                             .ai_socktype = SOCK_STREAM};
    struct addrinfo *found = NULL;
    int error = getaddrinfo(address, port, &hints, &found);
    if (error) {
        fprintf(stderr, "kecho: %s port %s: %s\n", address, port, gai_strerror(error));
        exit(2);
    }
    int fd = socket(found->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    int one = 1;
    if (fd < 0)
        die("socket");
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, found->ai_addr, found->ai_addrlen) < 0)
        die("bind");
    if (listen(fd, BACKLOG) < 0)
        die("listen");
    freeaddrinfo(found);
    return fd;
}

static void raise_fd_limit(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

int main(int argc, char **argv)
{
    static const struct option known[] = {{"address", required_argument, NULL, 'a'},
                                          {"port", required_argument, NULL, 'p'},
                                          {"edge", no_argument, NULL, 'e'},
                                          {"spin", no_argument, NULL, 's'},
                                          {NULL, 0, NULL, 0}};
    static struct server server;
    const char *address = "0.0.0.0", *port = "7000";
    for (int opt; (opt = getopt_long(argc, argv, "", known, NULL)) != -1;) {
        switch (opt) {
        case 'a':
            address = optarg;
            break;
        case 'p':
            port = optarg;
            break;
        case 'e':
            server.edge = true;
            break;
        case 's':
            server.spin = true;
            break;
        default:
            fprintf(stderr, "usage: kecho [--address IP] [--port N] [--edge] [--spin]\n");
            return 2;
        }
    }
    raise_fd_limit();
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    server.listen_fd = listen_on(address, port);
    server.epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    if (server.epoll_fd < 0 || epoll_ctl(server.epoll_fd, EPOLL_CTL_ADD, server.listen_fd, &event))
        die("epoll");
    printf("ready %s %s\n", address, port);
    fflush(stdout);
    serve(&server);
    printf("accepted %llu messages %llu bytes %llu\n", (unsigned long long)server.accepted,
           (unsigned long long)server.messages, (unsigned long long)server.bytes);
    return 0;
}
