/* poll(), and what it and epoll mean by ready (Linux: tcp_poll(), udp_poll()). */
#include "posix/sock.h"

#include <errno.h>

static uint32_t tcp_events(const struct ix_posix *p, struct ix_sock *s)
{
    uint32_t events = s->error ? EPOLLERR : 0;
    bool over = s->state == IX_SOCK_NEW || s->state == IX_SOCK_DEAD;
    if (s->state == IX_SOCK_LISTEN)
        return s->queue_head != IX_SOCK_NONE ? EPOLLIN | EPOLLRDNORM : 0;
    bool rd_shut = s->eof || s->rd_shut;
    if ((rd_shut && s->wr_shut) || over)
        events |= EPOLLHUP;
    if (rd_shut)
        events |= EPOLLIN | EPOLLRDNORM | EPOLLRDHUP;
    if (s->state == IX_SOCK_CONNECTING)
        return events;
    if (s->rx_bytes)
        events |= EPOLLIN | EPOLLRDNORM;
    if (s->wr_shut || over || ix_sock_writable(p, s))
        events |= EPOLLOUT | EPOLLWRNORM;
    else
        s->no_space = true;
    return events;
}

uint32_t ix_sock_events(struct ix_posix *p, struct ix_sock *s)
{
    switch (s->kind) {
    case IX_SOCK_TCP:
        return tcp_events(p, s);
    case IX_SOCK_UDP: /* a datagram leaves at once, or not at all */
        return EPOLLOUT | EPOLLWRNORM | (s->rx_head != IX_SOCK_NONE ? EPOLLIN | EPOLLRDNORM : 0u);
    default:
        return ix_epoll_any_ready(p, s) ? EPOLLIN | EPOLLRDNORM : 0;
    }
}

/* The events of poll() and of epoll have the same numbers on Linux. */
_Static_assert(POLLIN == EPOLLIN && POLLOUT == EPOLLOUT && POLLHUP == EPOLLHUP &&
                   POLLERR == EPOLLERR && POLLRDHUP == EPOLLRDHUP && POLLRDNORM == EPOLLRDNORM &&
                   POLLWRNORM == EPOLLWRNORM,
               "one set of numbers");

static int look(struct ix_posix *p, struct pollfd *fds, nfds_t n)
{
    int ready = 0;
    for (nfds_t i = 0; i < n; i++) {
        struct ix_sock *s = fds[i].fd < 0 ? NULL : ix_sock_of_fd(p, fds[i].fd);
        uint32_t asked = (uint32_t)(uint16_t)fds[i].events | EPOLLERR | EPOLLHUP;
        fds[i].revents = 0;
        if (s)
            fds[i].revents = (short)(ix_sock_events(p, s) & asked);
        else if (fds[i].fd >= 0)
            fds[i].revents = POLLNVAL;
        ready += fds[i].revents != 0;
    }
    return ready;
}

static uint64_t timeout_ns(int timeout_ms)
{
    return timeout_ms < 0 ? IX_POSIX_NEVER : (uint64_t)timeout_ms * 1000000;
}

int ix_posix_poll(struct ix_posix *p, struct pollfd *fds, nfds_t n, int timeout_ms)
{
    ix_posix_enter(p);
    struct ix_sock_wait wait = {.deadline_ns = ix_posix_deadline(p, timeout_ns(timeout_ms))};
    int ready;
    while ((ready = look(p, fds, n)) == 0 && ix_sock_wait(p, &wait))
        ;
    ix_sock_wait_end(p, &wait);
    ix_posix_leave(p);
    return ready;
}
