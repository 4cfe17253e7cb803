/* A socket's life, from socket() to close(). */
#include "posix/sock.h"

#include <errno.h>
#include <netinet/in.h>
#include <string.h>

enum { BACKLOG_MAX = 4096 }; /* Linux: somaxconn */

static const uint8_t mapped[12] = {[10] = 0xff, 0xff};

/* ---- addresses */

void ix_sock_put_addr(const struct ix_sock *s, const struct ix_addr *addr, struct sockaddr *out,
                      socklen_t *len)
{
    struct sockaddr_in in4 = {.sin_family = AF_INET, .sin_port = htons(addr->port)};
    struct sockaddr_in6 in6 = {.sin6_family = AF_INET6, .sin6_port = htons(addr->port)};
    memcpy(&in4.sin_addr, addr->ip, sizeof in4.sin_addr);
    if (addr->family == 4) { /* shown as an IPv4-mapped one (RFC 4291 2.5.5.2) */
        memcpy(&in6.sin6_addr, mapped, sizeof mapped);
        memcpy((uint8_t *)&in6.sin6_addr + sizeof mapped, addr->ip, 4);
    } else {
        memcpy(&in6.sin6_addr, addr->ip, sizeof in6.sin6_addr);
    }
    const void *from = s->family == 4 ? (const void *)&in4 : &in6;
    socklen_t size = s->family == 4 ? sizeof in4 : sizeof in6;
    memcpy(out, from, *len < size ? *len : size);
    *len = size;
}

int ix_sock_take_addr(const struct ix_sock *s, const struct sockaddr *addr, socklen_t len,
                      struct ix_addr *out)
{
    struct sockaddr_in in4;
    struct sockaddr_in6 in6;
    *out = (struct ix_addr){.port = 0};
    if (!addr || len < (s->family == 4 ? sizeof in4 : sizeof in6))
        return -EINVAL;
    if (addr->sa_family != (s->family == 4 ? AF_INET : AF_INET6))
        return -EAFNOSUPPORT;
    if (s->family == 4) {
        memcpy(&in4, addr, sizeof in4);
        memcpy(out->ip, &in4.sin_addr, sizeof in4.sin_addr);
        out->port = ntohs(in4.sin_port);
        out->family = 4;
        return 0;
    }
    memcpy(&in6, addr, sizeof in6);
    memcpy(out->ip, &in6.sin6_addr, sizeof in6.sin6_addr);
    out->port = ntohs(in6.sin6_port);
    out->family = 6;
    if (memcmp(out->ip, mapped, sizeof mapped) != 0)
        return 0;
    if (s->opt.v6only)
        return -ENETUNREACH;
    out->family = 4;
    memmove(out->ip, out->ip + sizeof mapped, 4);
    memset(out->ip + 4, 0, sizeof mapped);
    return 0;
}

static bool is_any(const struct ix_addr *addr)
{
    static const uint8_t zero[16];
    return memcmp(addr->ip, zero, sizeof zero) == 0;
}

/* Of which family every address is, for one that is bound to it. */
static uint8_t any_family(const struct ix_sock *s)
{
    return s->family == 4 ? 4 : s->opt.v6only ? 6 : 0;
}

static bool families_meet(uint8_t a, uint8_t b)
{
    return a == b || a == 0 || b == 0;
}

/* ---- socket, bind, listen */

int ix_posix_socket(struct ix_posix *p, int domain, int type, int protocol)
{
    int base = type & ~(SOCK_NONBLOCK | SOCK_CLOEXEC);
    bool tcp = base == SOCK_STREAM && (protocol == 0 || protocol == IPPROTO_TCP);
    bool udp = base == SOCK_DGRAM && (protocol == 0 || protocol == IPPROTO_UDP);
    if (domain != AF_INET && domain != AF_INET6)
        return -EAFNOSUPPORT;
    if (!tcp && !udp)
        return base == SOCK_STREAM || base == SOCK_DGRAM ? -EPROTONOSUPPORT : -ESOCKTNOSUPPORT;
    ix_posix_enter(p);
    struct ix_sock *s = ix_sock_new(p, tcp ? IX_SOCK_TCP : IX_SOCK_UDP, domain == AF_INET ? 4 : 6);
    int fd = -ENFILE;
    if (s) {
        s->nonblock = type & SOCK_NONBLOCK;
        fd = ix_sock_give_fd(p, s);
        ix_sock_release(p, s);
    }
    ix_posix_leave(p);
    return fd;
}

/* Does another socket hold this address? With SO_REUSEADDR on both only a listener is in the way
 * (Linux: inet_csk_bind_conflict()). */
static bool taken(const struct ix_posix *p, const struct ix_sock *me, const struct ix_addr *addr)
{
    for (uint32_t i = 0; i < p->cfg.max_sockets; i++) {
        const struct ix_sock *s = &p->socks[i];
        if (s == me || s->kind != me->kind || !s->bound || s->local.port != addr->port ||
            !families_meet(s->local.family, addr->family) || s->state == IX_SOCK_DEAD)
            continue;
        if (me->opt.reuseaddr && s->opt.reuseaddr && s->state != IX_SOCK_LISTEN)
            continue;
        if (is_any(addr) || is_any(&s->local) || memcmp(addr->ip, s->local.ip, 16) == 0)
            return true;
    }
    return false;
}

static int choose_port(struct ix_posix *p, const struct ix_sock *s, struct ix_addr *addr)
{
    uint32_t range = (uint32_t)p->cfg.port_hi - p->cfg.port_lo + 1;
    for (uint32_t i = 0; p->cfg.port_lo && i < range; i++) {
        addr->port = p->next_port;
        p->next_port = p->next_port == p->cfg.port_hi ? p->cfg.port_lo : p->next_port + 1;
        if (!taken(p, s, addr))
            return 0;
    }
    return -EADDRINUSE;
}

static int bind_to(struct ix_posix *p, struct ix_sock *s, struct ix_addr *addr)
{
    int err = addr->port == 0 ? choose_port(p, s, addr) : taken(p, s, addr) ? -EADDRINUSE : 0;
    if (err)
        return err;
    if (s->kind == IX_SOCK_UDP)
        err = ix_shard_udp_bind(p->cfg.shard, addr->ip, addr->family, addr->port,
                                ix_sock_cookie(p, s), &s->handle);
    if (err)
        return err;
    s->local = *addr;
    s->bound = true;
    return 0;
}

int ix_sock_autobind(struct ix_posix *p, struct ix_sock *s)
{
    struct ix_addr addr = {.family = any_family(s)};
    return s->bound ? 0 : bind_to(p, s, &addr);
}

int ix_posix_bind(struct ix_posix *p, int fd, const struct sockaddr *addr, socklen_t len)
{
    struct ix_addr to;
    ix_posix_enter(p);
    struct ix_sock *s = ix_sock_of_fd(p, fd);
    int result = !s ? -EBADF : s->kind == IX_SOCK_EPOLL ? -ENOTSOCK : 0;
    if (!result)
        result = ix_sock_take_addr(s, addr, len, &to);
    if (result == -ENETUNREACH) /* Linux: a mapped address for one of IPv6 only */
        result = -EINVAL;
    if (!result && to.family == 6 && is_any(&to))
        to.family = any_family(s);
    if (!result)
        result = s->bound || s->state != IX_SOCK_NEW ? -EINVAL : bind_to(p, s, &to);
    ix_posix_leave(p);
    return result;
}

static int listen_on(struct ix_posix *p, struct ix_sock *s, int backlog)
{
    if (s->kind != IX_SOCK_TCP)
        return -EOPNOTSUPP;
    /* Linux's queue is full with one more than was asked for (sk_acceptq_is_full()). */
    uint32_t room = backlog < 0 || backlog > BACKLOG_MAX ? BACKLOG_MAX : (uint32_t)backlog;
    if (s->state == IX_SOCK_LISTEN)
        return ix_sock_listen_option(p, s, IX_OPT_BACKLOG, room + 1);
    if (s->state != IX_SOCK_NEW)
        return -EINVAL;
    int err = ix_sock_autobind(p, s);
    if (err)
        return err;
    err = ix_shard_listen(p->cfg.shard, s->local.ip, s->local.family, s->local.port,
                          ix_sock_cookie(p, s), room + 1);
    if (!err) /* payload may come before accept() */
        err = ix_sock_listen_option(p, s, IX_OPT_QUICKACK, IX_SOCK_QUICK_ACKS);
    if (!err && s->opt.congestion)
        err = ix_sock_listen_option(p, s, IX_OPT_CONGESTION, s->opt.congestion);
    if (!err && s->opt.rcvbuf_set)
        err = ix_sock_listen_option(p, s, IX_OPT_RCVBUF, s->opt.rcvbuf_bytes);
    if (!err && s->opt.maxseg)
        err = ix_sock_listen_option(p, s, IX_OPT_MSS, s->opt.maxseg);
    if (!err && s->opt.pacing != UINT64_MAX)
        err = ix_sock_listen_option(p, s, IX_OPT_PACING, s->opt.pacing);
    if (!err)
        s->state = IX_SOCK_LISTEN;
    return err;
}

int ix_posix_listen(struct ix_posix *p, int fd, int backlog)
{
    ix_posix_enter(p);
    struct ix_sock *s = ix_sock_of_fd(p, fd);
    int result = s ? listen_on(p, s, backlog) : -EBADF;
    ix_posix_leave(p);
    return result;
}

/* ---- children of a listener */

void ix_sock_unqueue(struct ix_posix *p, struct ix_sock *child)
{
    struct ix_sock *listener = &p->socks[child->listener];
    uint32_t index = ix_sock_index(p, child), before = IX_SOCK_NONE;
    for (uint32_t i = listener->queue_head; i != index; i = p->socks[i].queue_next)
        before = i;
    if (before == IX_SOCK_NONE)
        listener->queue_head = child->queue_next;
    else
        p->socks[before].queue_next = child->queue_next;
    if (listener->queue_tail == index)
        listener->queue_tail = before;
    child->listener = child->queue_next = IX_SOCK_NONE;
}

void ix_sock_knock(struct ix_posix *p, struct ix_sock *listener, const struct ix_event *event)
{
    struct ix_sock *child =
        listener->state == IX_SOCK_LISTEN ? ix_sock_new(p, IX_SOCK_TCP, listener->family) : NULL;
    if (!child) {
        ix_sock_later(p, &(struct ix_call){.op = IX_CALL_REJECT, .handle = event->handle});
        return;
    }
    uint32_t index = ix_sock_index(p, child);
    child->state = IX_SOCK_KNOCKING;
    child->handle = event->handle;
    child->opt = listener->opt;
    child->local.family = child->peer.family = event->family;
    child->local.port = event->local_port;
    child->peer.port = event->peer_port;
    memcpy(child->local.ip, event->local, sizeof child->local.ip);
    memcpy(child->peer.ip, event->peer, sizeof child->peer.ip);
    child->listener = ix_sock_index(p, listener);
    if (listener->queue_tail == IX_SOCK_NONE)
        listener->queue_head = index;
    else
        p->socks[listener->queue_tail].queue_next = index;
    listener->queue_tail = index;
    ix_sock_wake(p, listener, EPOLLIN);
}

void ix_sock_knock_dead(struct ix_posix *p, struct ix_sock *listener, const struct ix_event *event)
{
    for (uint32_t i = listener->queue_head; i != IX_SOCK_NONE; i = p->socks[i].queue_next) {
        struct ix_sock *child = &p->socks[i];
        if (child->handle != event->handle)
            continue;
        /* accept() still returns it, and read() says what became of it, as on Linux. */
        child->state = IX_SOCK_DEAD;
        child->handle = 0;
        child->error = -event->status;
        child->eof = child->wr_shut = true;
        return;
    }
}

/* Takes the oldest child. */
static int take_child(struct ix_posix *p, struct ix_sock *listener, struct ix_sock **out)
{
    struct ix_sock *child = *out = &p->socks[listener->queue_head];
    int fd = ix_sock_give_fd(p, child);
    if (fd < 0)
        return fd;
    ix_sock_unqueue(p, child);
    if (child->state == IX_SOCK_DEAD)
        return fd;
    child->state = IX_SOCK_CONNECTED;
    struct ix_call accept = {
        .op = IX_CALL_ACCEPT, .handle = child->handle, .cookie = ix_sock_cookie(p, child)};
    if (ix_sock_call(p, &accept) < 0 && child->state != IX_SOCK_DEAD) {
        child->state = IX_SOCK_DEAD; /* it ended in the same cycle */
        child->handle = 0;
        child->error = ECONNRESET;
        child->eof = child->wr_shut = true;
    }
    ix_sock_apply_options(p, child);
    return fd;
}

int ix_posix_accept(struct ix_posix *p, int fd, struct sockaddr *addr, socklen_t *len, int flags)
{
    ix_posix_enter(p);
    struct ix_sock *s = ix_sock_of_fd(p, fd), *child;
    int result = !s ? -EBADF : s->kind != IX_SOCK_TCP ? -EOPNOTSUPP : 0;
    if (!result && s->state != IX_SOCK_LISTEN)
        result = -EINVAL;
    if (!result) {
        struct ix_sock_wait wait = {
            .deadline_ns =
                ix_posix_deadline(p, s->opt.rcvtimeo_ns ? s->opt.rcvtimeo_ns : IX_POSIX_NEVER)};
        s->users++;
        while (s->state == IX_SOCK_LISTEN && s->fds && s->queue_head == IX_SOCK_NONE &&
               !s->nonblock && ix_sock_wait(p, &wait))
            ;
        if (s->state != IX_SOCK_LISTEN || !s->fds)
            result = -EINVAL;
        else if (s->queue_head == IX_SOCK_NONE)
            result = -EAGAIN;
        else
            result = take_child(p, s, &child);
        ix_sock_wait_end(p, &wait);
        s->users--;
        ix_sock_release(p, s);
    }
    if (result >= 0) {
        child->nonblock = flags & SOCK_NONBLOCK;
        if (addr)
            ix_sock_put_addr(child, &child->peer, addr, len);
    }
    ix_posix_leave(p);
    return result;
}

/* ---- connect */

static int begin_connect(struct ix_posix *p, struct ix_sock *s)
{
    struct ix_call call = {.op = IX_CALL_CONNECT,
                           .family = s->peer.family,
                           .cookie = ix_sock_cookie(p, s),
                           .bytes = s->opt.congestion,
                           .peer_port = s->peer.port,
                           .local_port = s->bound ? s->local.port : 0};
    call.open.rcvbuf_bytes = s->opt.rcvbuf_set ? s->opt.rcvbuf_bytes : 0;
    call.open.mss = (uint16_t)s->opt.maxseg;
    call.open.syn_retries = s->opt.syncnt;
    memcpy(call.peer, s->peer.ip, sizeof call.peer);
    memcpy(call.local, s->local.ip, sizeof call.local);
    if (s->bound && !families_meet(s->local.family, s->peer.family))
        return -EINVAL;
    s->state = IX_SOCK_CONNECTING;
    s->error = 0;
    int result = ix_sock_call(p, &call);
    if (result < 0) {
        s->state = IX_SOCK_NEW;
        return result;
    }
    if (s->state == IX_SOCK_DEAD) /* ... and failed in the same cycle */
        return 0;
    s->handle = call.handle;
    s->local.port = call.local_port;
    ix_sock_apply_options(p, s);
    return 0;
}

static int finish_connect(struct ix_posix *p, struct ix_sock *s)
{
    struct ix_sock_wait wait = {.deadline_ns = ix_posix_deadline(
                                    p, s->opt.sndtimeo_ns ? s->opt.sndtimeo_ns : IX_POSIX_NEVER)};
    s->users++;
    while (s->state == IX_SOCK_CONNECTING && s->fds && !s->nonblock && ix_sock_wait(p, &wait))
        ;
    int result = -EINPROGRESS;
    if (s->state == IX_SOCK_CONNECTED) {
        s->fresh = false;
        result = 0;
    } else if (s->state != IX_SOCK_CONNECTING) {
        result = s->error ? ix_sock_take_error(s) : -ECONNABORTED;
        s->state = IX_SOCK_NEW; /* it may try again */
        s->eof = s->wr_shut = s->bound = false;
    }
    ix_sock_wait_end(p, &wait);
    s->users--;
    return result;
}

static int connect_tcp(struct ix_posix *p, struct ix_sock *s)
{
    switch (s->state) {
    case IX_SOCK_NEW: {
        int err = begin_connect(p, s);
        return err ? err : finish_connect(p, s);
    }
    case IX_SOCK_CONNECTING:
        return s->nonblock ? -EALREADY : finish_connect(p, s);
    case IX_SOCK_CONNECTED:
        if (!s->fresh)
            return -EISCONN;
        s->fresh = false;
        return 0;
    case IX_SOCK_DEAD:
        return finish_connect(p, s);
    default:
        return -EISCONN;
    }
}

int ix_posix_connect(struct ix_posix *p, int fd, const struct sockaddr *addr, socklen_t len)
{
    struct ix_addr to;
    ix_posix_enter(p);
    struct ix_sock *s = ix_sock_of_fd(p, fd);
    int result = !s ? -EBADF : s->kind == IX_SOCK_EPOLL ? -ENOTSOCK : 0;
    if (!result)
        result = ix_sock_take_addr(s, addr, len, &to);
    if (!result && s->state == IX_SOCK_NEW)
        s->peer = to;
    if (!result)
        result = s->kind == IX_SOCK_UDP ? ix_sock_autobind(p, s) : connect_tcp(p, s);
    if (s)
        ix_sock_release(p, s);
    ix_posix_leave(p);
    return result;
}

/* ---- names */

static int name(struct ix_posix *p, int fd, struct sockaddr *addr, socklen_t *len, bool peer)
{
    ix_posix_enter(p);
    struct ix_sock *s = ix_sock_of_fd(p, fd);
    int result = !s ? -EBADF : s->kind == IX_SOCK_EPOLL ? -ENOTSOCK : 0;
    bool connected =
        s && (s->kind == IX_SOCK_UDP ? s->peer.port != 0 : s->state == IX_SOCK_CONNECTED);
    if (!result && peer && !connected)
        result = -ENOTCONN;
    if (!result)
        ix_sock_put_addr(s, peer ? &s->peer : &s->local, addr, len);
    ix_posix_leave(p);
    return result;
}

int ix_posix_getsockname(struct ix_posix *p, int fd, struct sockaddr *addr, socklen_t *len)
{
    return name(p, fd, addr, len, false);
}

int ix_posix_getpeername(struct ix_posix *p, int fd, struct sockaddr *addr, socklen_t *len)
{
    return name(p, fd, addr, len, true);
}

/* ---- shutdown, close */

static void close_listener(struct ix_posix *p, struct ix_sock *s)
{
    (void)ix_shard_unlisten(p->cfg.shard, s->local.ip, s->family, s->local.port);
    s->state = IX_SOCK_NEW;
    while (s->queue_head != IX_SOCK_NONE) {
        struct ix_sock *child = &p->socks[s->queue_head];
        struct ix_call reject = {.op = IX_CALL_REJECT, .handle = child->handle};
        ix_sock_unqueue(p, child);
        if (child->handle)
            (void)ix_sock_call(p, &reject);
        child->handle = 0;
        ix_sock_release(p, child);
    }
}

/* Linux (inet_shutdown()): to a listener SHUT_WR is nothing; all else ends what has not begun. */
static int shutdown_early(struct ix_posix *p, struct ix_sock *s, int how)
{
    struct ix_call abort = {.op = IX_CALL_ABORT, .handle = s->handle};
    if (s->state == IX_SOCK_LISTEN && how == SHUT_WR)
        return 0;
    if (s->state == IX_SOCK_LISTEN)
        close_listener(p, s);
    else if (s->state == IX_SOCK_CONNECTING)
        (void)ix_sock_call(p, &abort);
    else
        return -ENOTCONN;
    s->state = IX_SOCK_NEW;
    s->handle = 0;
    s->error = 0;
    s->eof = s->wr_shut = false;
    return 0;
}

static int shutdown_connection(struct ix_posix *p, struct ix_sock *s, int how)
{
    struct ix_call call = {.op = IX_CALL_CLOSE, .flags = IX_CLOSE_WRITE, .handle = s->handle};
    bool write = how != SHUT_RD && !s->wr_shut;
    s->rd_shut |= how != SHUT_WR;
    s->wr_shut |= write;
    if (s->rd_shut && s->wr_shut) /* what still comes resets, as on Linux */
        call.flags = 0;
    if (write || call.flags == 0)
        (void)ix_sock_call(p, &call);
    return 0;
}

int ix_posix_shutdown(struct ix_posix *p, int fd, int how)
{
    ix_posix_enter(p);
    struct ix_sock *s = ix_sock_of_fd(p, fd);
    int result = !s ? -EBADF : s->kind != IX_SOCK_TCP ? -ENOTSOCK : 0;
    if (!result && (how < SHUT_RD || how > SHUT_RDWR))
        result = -EINVAL;
    if (!result)
        result = s->state == IX_SOCK_CONNECTED ? shutdown_connection(p, s, how)
                                               : shutdown_early(p, s, how);
    if (!result)
        ix_sock_wake(p, s, EPOLLIN | EPOLLOUT | EPOLLRDHUP);
    ix_posix_leave(p);
    return result;
}

/* Is there something for a linger to wait for: data or a FIN that is not acknowledged? */
static bool lingering(const struct ix_posix *p, const struct ix_sock *s)
{
    struct ix_conn_info info;
    return s->state == IX_SOCK_CONNECTED &&
           ix_shard_conn_info(p->cfg.shard, s->handle, &info) == 0 &&
           (info.unacked_bytes || info.queued_bytes);
}

static void close_connection(struct ix_posix *p, struct ix_sock *s)
{
    bool abort = s->rx_bytes || (s->opt.linger_on && s->opt.linger_s == 0);
    bool block = s->opt.linger_on && s->opt.linger_s; /* Linux: O_NONBLOCK or not */
    struct ix_call call = {.op = abort ? IX_CALL_ABORT : IX_CALL_CLOSE, .handle = s->handle};
    ix_sock_drop_received(p, s);
    (void)ix_sock_call(p, &call);
    if (abort || !block)
        return;
    struct ix_sock_wait wait = {.deadline_ns =
                                    ix_posix_deadline(p, (uint64_t)s->opt.linger_s * 1000000000)};
    s->users++;
    while (lingering(p, s) && ix_sock_wait(p, &wait))
        ;
    ix_sock_wait_end(p, &wait);
    s->users--;
}

static void close_last(struct ix_posix *p, struct ix_sock *s)
{
    if (s->kind == IX_SOCK_EPOLL) {
        ix_epoll_close(p, s);
    } else if (s->kind == IX_SOCK_UDP) {
        ix_sock_drop_received(p, s);
        if (s->bound)
            (void)ix_shard_udp_unbind(p->cfg.shard, s->handle);
        s->handle = 0;
    } else if (s->state == IX_SOCK_LISTEN) {
        close_listener(p, s);
    } else if (s->handle) {
        close_connection(p, s);
    } else {
        ix_sock_drop_received(p, s);
    }
}

int ix_posix_close(struct ix_posix *p, int fd)
{
    ix_posix_enter(p);
    struct ix_sock *s = ix_sock_of_fd(p, fd);
    if (s) {
        ix_epoll_forget(p, s, fd);
        s->users++;
        ix_sock_take_fd(p, fd);
        if (s->fds == 0) {
            p->changed = true; /* whoever waits in it */
            close_last(p, s);
        }
        s->users--;
        ix_sock_release(p, s);
    }
    ix_posix_leave(p);
    return s ? 0 : -EBADF;
}
