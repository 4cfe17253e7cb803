/* What arrives: lent frames, queued by socket, copied out and given back. */
#include "posix/sock.h"

#include <errno.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <string.h>

enum { GIVE_BACK_BATCH = 32 }; /* RECV_DONEs of one cycle */

void ix_sock_received(struct ix_posix *p, struct ix_sock *s, const struct ix_event *event)
{
    if (event->bytes == 0 && event->type == IX_EV_RECV) {
        s->eof = true;
        ix_sock_wake(p, s, EPOLLIN | EPOLLRDHUP);
        return;
    }
    struct ix_rx_node *node = &p->rx[event->frame];
    s->lender = event->handle;
    *node = (struct ix_rx_node){
        .next = IX_SOCK_NONE, .offset = event->offset, .bytes = (uint16_t)event->bytes};
    if (event->type == IX_EV_UDP_RECV) {
        node->peer.port = event->peer_port;
        node->peer.family = event->family & ~IX_UDP_MORE;
        memcpy(node->peer.ip, event->peer, sizeof node->peer.ip);
    }
    if (s->rx_tail == IX_SOCK_NONE)
        s->rx_head = event->frame;
    else
        p->rx[s->rx_tail].next = event->frame;
    s->rx_tail = event->frame;
    s->rx_bytes += event->bytes;
    ix_sock_wake(p, s, EPOLLIN);
}

static const uint8_t *payload(const struct ix_posix *p, uint32_t frame)
{
    return p->io->umem + ((uint64_t)frame << p->io->frame_shift) + p->rx[frame].offset;
}

static void unlink_head(struct ix_posix *p, struct ix_sock *s)
{
    s->rx_head = p->rx[s->rx_head].next;
    if (s->rx_head == IX_SOCK_NONE)
        s->rx_tail = IX_SOCK_NONE;
}

/* Takes `bytes` bytes off the head and notes what gives them back as one more call. */
static void consume(struct ix_posix *p, struct ix_sock *s, uint32_t bytes, uint32_t *calls)
{
    uint32_t frame = s->rx_head;
    struct ix_rx_node *node = &p->rx[frame];
    p->io->calls[(*calls)++] =
        (struct ix_call){.op = s->kind == IX_SOCK_UDP ? IX_CALL_UDP_RECV_DONE : IX_CALL_RECV_DONE,
                         .handle = s->lender,
                         .addr = ((uint64_t)frame << p->io->frame_shift) + node->offset,
                         .bytes = bytes};
    s->rx_bytes -= bytes;
    node->offset += (uint16_t)bytes;
    node->bytes -= (uint16_t)bytes;
    if (node->bytes == 0)
        unlink_head(p, s);
    if (*calls == GIVE_BACK_BATCH) {
        ix_sock_cycle(p, *calls);
        *calls = 0;
    }
}

void ix_sock_drop_received(struct ix_posix *p, struct ix_sock *s)
{
    uint32_t calls = 0;
    while (s->rx_head != IX_SOCK_NONE)
        consume(p, s, p->rx[s->rx_head].bytes, &calls);
    if (calls)
        ix_sock_cycle(p, calls);
}

/* ---- recvmsg */

/* Where in the application's buffers the next byte goes. */
struct into {
    const struct msghdr *msg;
    size_t vec, offset;
};

static size_t room(const struct msghdr *msg)
{
    size_t bytes = 0;
    for (size_t i = 0; i < msg->msg_iovlen; i++)
        bytes += msg->msg_iov[i].iov_len;
    return bytes;
}

static void put(struct into *to, const uint8_t *from, size_t bytes)
{
    while (bytes) {
        const struct iovec *vec = &to->msg->msg_iov[to->vec];
        size_t part = vec->iov_len - to->offset < bytes ? vec->iov_len - to->offset : bytes;
        memcpy((uint8_t *)vec->iov_base + to->offset, from, part);
        from += part;
        bytes -= part;
        to->offset += part;
        if (to->offset == vec->iov_len) {
            to->vec++;
            to->offset = 0;
        }
    }
}

/* Takes up to `want` bytes off the stream; MSG_TRUNC leaves the buffers alone. */
static size_t take_stream(struct ix_posix *p, struct ix_sock *s, struct into *to, size_t want,
                          int flags)
{
    size_t done = 0;
    uint32_t calls = 0, frame = s->rx_head;
    while (done < want && frame != IX_SOCK_NONE) {
        uint32_t bytes = p->rx[frame].bytes, next = p->rx[frame].next;
        if (bytes > want - done)
            bytes = (uint32_t)(want - done);
        if (!(flags & MSG_TRUNC))
            put(to, payload(p, frame), bytes);
        if (!(flags & MSG_PEEK))
            consume(p, s, bytes, &calls);
        done += bytes;
        frame = next;
    }
    if (calls)
        ix_sock_cycle(p, calls);
    return done;
}

/* What a stream says that has nothing to give: 0 at its end, -EAGAIN while more may come. */
static ssize_t empty_stream(struct ix_sock *s)
{
    if (s->error)
        return ix_sock_take_error(s);
    if (s->eof || s->rd_shut)
        return 0;
    if (s->state == IX_SOCK_NEW || s->state == IX_SOCK_LISTEN)
        return -ENOTCONN;
    return -EAGAIN;
}

/* TCP_INQ: how much is left to be read; the peer's end of the stream counts as a byte (Linux:
 * tcp_inq_hint()). */
static void tell_inq(const struct ix_sock *s, struct msghdr *msg, bool got)
{
    struct cmsghdr *at = CMSG_FIRSTHDR(msg);
    int left = (int)s->rx_bytes;
    if (left == 0 && s->eof)
        left = 1;
    bool tell = s->opt.inq && got && at && msg->msg_controllen >= CMSG_SPACE(sizeof left);
    msg->msg_controllen = tell ? CMSG_SPACE(sizeof left) : 0;
    if (!tell)
        return;
    at->cmsg_level = IPPROTO_TCP;
    at->cmsg_type = TCP_CM_INQ;
    at->cmsg_len = CMSG_LEN(sizeof left);
    memcpy(CMSG_DATA(at), &left, sizeof left);
}

static ssize_t recv_stream(struct ix_posix *p, struct ix_sock *s, struct msghdr *msg, int flags)
{
    struct ix_sock_wait wait = {.deadline_ns = ix_posix_deadline(
                                    p, s->opt.rcvtimeo_ns ? s->opt.rcvtimeo_ns : IX_POSIX_NEVER)};
    struct into to = {.msg = msg};
    size_t want = room(msg), done = 0;
    ssize_t why = 0;
    bool block = !s->nonblock && !(flags & MSG_DONTWAIT);
    s->users++;
    for (;;) {
        done += take_stream(p, s, &to, want - done, flags);
        bool enough = done == want || (done && !(flags & MSG_WAITALL)) || flags & MSG_PEEK;
        if (done && enough)
            break;
        why = want ? empty_stream(s) : 0;
        if (why != -EAGAIN || !block || !s->fds || !ix_sock_wait(p, &wait))
            break;
    }
    ix_sock_wait_end(p, &wait);
    s->users--;
    ix_sock_release(p, s);
    msg->msg_namelen = 0;
    msg->msg_flags = 0;
    tell_inq(s, msg, done != 0);
    return done ? (ssize_t)done : why;
}

static ssize_t take_datagram(struct ix_posix *p, struct ix_sock *s, struct msghdr *msg, int flags)
{
    const struct ix_rx_node *node = &p->rx[s->rx_head];
    struct into to = {.msg = msg};
    size_t bytes = node->bytes, want = room(msg);
    size_t copied = bytes < want ? bytes : want;
    put(&to, payload(p, s->rx_head), copied);
    msg->msg_flags = copied < bytes ? MSG_TRUNC : 0;
    msg->msg_controllen = 0;
    if (msg->msg_name)
        ix_sock_put_addr(s, &node->peer, msg->msg_name, &msg->msg_namelen);
    if (!(flags & MSG_PEEK)) {
        uint32_t calls = 0;
        consume(p, s, (uint32_t)bytes, &calls);
        ix_sock_cycle(p, calls);
    }
    return (ssize_t)(flags & MSG_TRUNC ? bytes : copied);
}

static ssize_t recv_datagram(struct ix_posix *p, struct ix_sock *s, struct msghdr *msg, int flags)
{
    struct ix_sock_wait wait = {.deadline_ns = ix_posix_deadline(
                                    p, s->opt.rcvtimeo_ns ? s->opt.rcvtimeo_ns : IX_POSIX_NEVER)};
    s->users++;
    while (s->rx_head == IX_SOCK_NONE && s->fds && !s->nonblock && !(flags & MSG_DONTWAIT) &&
           ix_sock_wait(p, &wait))
        ;
    ssize_t result = s->rx_head == IX_SOCK_NONE ? -EAGAIN : take_datagram(p, s, msg, flags);
    ix_sock_wait_end(p, &wait);
    s->users--;
    ix_sock_release(p, s);
    return result;
}

ssize_t ix_posix_recvmsg(struct ix_posix *p, int fd, struct msghdr *msg, int flags)
{
    const int known =
        MSG_DONTWAIT | MSG_PEEK | MSG_TRUNC | MSG_WAITALL | MSG_NOSIGNAL | MSG_ERRQUEUE;
    ix_posix_enter(p);
    struct ix_sock *s = ix_sock_of_fd(p, fd);
    ssize_t result;
    if (!s)
        result = -EBADF;
    else if (s->kind == IX_SOCK_EPOLL)
        result = -EINVAL;
    else if (flags & MSG_OOB && s->kind == IX_SOCK_TCP)
        result = -EINVAL; /* there never is urgent data */
    else if (flags & ~known)
        result = -EOPNOTSUPP;
    else if (flags & MSG_ERRQUEUE)
        result = -EAGAIN; /* IP_RECVERR is not to be had: it is empty */
    else if (!ix_posix_vec_usable(msg))
        result = -EFAULT;
    else
        result = s->kind == IX_SOCK_UDP ? recv_datagram(p, s, msg, flags)
                                        : recv_stream(p, s, msg, flags);
    ix_posix_leave(p);
    return result;
}

ssize_t ix_posix_recvfrom(struct ix_posix *p, int fd, void *buf, size_t bytes, int flags,
                          struct sockaddr *addr, socklen_t *len)
{
    struct iovec vec = {.iov_base = buf, .iov_len = bytes};
    struct msghdr msg = {
        .msg_name = addr, .msg_namelen = addr && len ? *len : 0, .msg_iov = &vec, .msg_iovlen = 1};
    ssize_t result = ix_posix_recvmsg(p, fd, &msg, flags);
    if (result >= 0 && addr && len)
        *len = msg.msg_namelen;
    return result;
}
