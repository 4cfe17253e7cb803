/* What is sent: copied into the send arena, borrowed from there until it is acknowledged. */
#include "posix/sock.h"

#include <errno.h>
#include <signal.h>
#include <string.h>

enum { PIECES = 64 }; /* of a cycle, each in a frame; a poll takes at least as many calls */

static uint32_t frame_bytes(const struct ix_posix *p)
{
    return 1u << p->io->frame_shift;
}

static uint8_t *arena_at(const struct ix_posix *p, uint32_t chunk, uint32_t offset)
{
    uint64_t frame = (uint64_t)p->io->arena_frame + chunk;
    return p->io->umem + (frame << p->io->frame_shift) + offset;
}

static void free_chunk(struct ix_posix *p, uint32_t chunk)
{
    p->arena[chunk].next = p->arena_free;
    p->arena_free = chunk;
    p->changed = true; /* whoever waits for memory of the arena's */
}

/* Takes a chunk, empty; IX_SOCK_NONE if there is none. */
static uint32_t take_chunk(struct ix_posix *p)
{
    uint32_t chunk = p->arena_free;
    if (chunk == IX_SOCK_NONE)
        return chunk;
    p->arena_free = p->arena[chunk].next;
    uint16_t start = (uint16_t)p->io->tx_headroom; /* where a segment can leave from in place */
    p->arena[chunk] = (struct ix_tx_chunk){.next = IX_SOCK_NONE, .start = start, .end = start};
    return chunk;
}

void ix_sock_drop_sent(struct ix_posix *p, struct ix_sock *s)
{
    while (s->tx_head != IX_SOCK_NONE) {
        uint32_t next = p->arena[s->tx_head].next;
        free_chunk(p, s->tx_head);
        s->tx_head = next;
    }
    s->tx_tail = IX_SOCK_NONE;
    s->tx_bytes = 0;
}

/* Bytes that were written and not yet sent; UINT32_MAX: nobody asks (TCP_NOTSENT_LOWAT). */
static uint32_t lowat(const struct ix_posix *p, const struct ix_sock *s)
{
    return s->opt.notsent_lowat ? s->opt.notsent_lowat : p->cfg.notsent_lowat;
}

static uint32_t unsent(const struct ix_posix *p, const struct ix_sock *s)
{
    struct ix_conn_info info;
    (void)ix_sock_info(p, s, &info);
    return s->tx_bytes > info.unacked_bytes ? s->tx_bytes - info.unacked_bytes : 0;
}

bool ix_sock_writable(const struct ix_posix *p, const struct ix_sock *s)
{
    uint32_t most = lowat(p, s); /* Linux: sk_stream_is_writeable() */
    return ix_sock_space(s) >= s->opt.sndbuf_bytes / 3 &&
           (most == UINT32_MAX || (uint64_t)unsent(p, s) * 2 < most);
}

uint32_t ix_sock_sndbuf_max(const struct ix_posix *p)
{
    return p->io->arena_frames << p->io->frame_shift >> 2;
}

/* Somebody had more to write than there was room for: as the window has grown, so does what may
 * wait behind it, unless SO_SNDBUF said how much (Linux: tcp_new_space()). */
static void grow(const struct ix_posix *p, struct ix_sock *s)
{
    struct ix_conn_info info;
    if (s->opt.sndbuf_set || ix_shard_conn_info(p->cfg.shard, s->handle, &info))
        return;
    uint32_t most = ix_sock_sndbuf_max(p), want = info.sndbuf_bytes;
    want = want < most ? want : most;
    s->opt.sndbuf_bytes = want > s->opt.sndbuf_bytes ? want : s->opt.sndbuf_bytes;
}

void ix_sock_acked(struct ix_posix *p, struct ix_sock *s, uint32_t bytes)
{
    bool was_full = !ix_sock_writable(p, s);
    s->tx_bytes -= bytes;
    while (bytes) {
        struct ix_tx_chunk *chunk = &p->arena[s->tx_head];
        uint32_t held = (uint32_t)(chunk->end - chunk->start), part = held < bytes ? held : bytes;
        chunk->start += (uint16_t)part;
        bytes -= part;
        if (chunk->start < chunk->end)
            break;
        uint32_t next = chunk->next;
        free_chunk(p, s->tx_head);
        s->tx_head = next;
        if (next == IX_SOCK_NONE)
            s->tx_tail = IX_SOCK_NONE;
    }
    p->changed = true; /* a linger, or a write that wants little */
    if (s->no_space)
        grow(p, s);
    if (was_full && s->no_space && ix_sock_writable(p, s)) {
        s->no_space = false;
        ix_sock_wake(p, s, EPOLLOUT);
    }
}

uint32_t ix_sock_space(const struct ix_sock *s)
{
    return s->tx_bytes < s->opt.sndbuf_bytes ? s->opt.sndbuf_bytes - s->tx_bytes : 0;
}

/* ---- streams */

struct from {
    const struct msghdr *msg;
    size_t vec, offset, left;
};

static struct from begin(const struct msghdr *msg)
{
    struct from from = {.msg = msg};
    for (size_t i = 0; i < msg->msg_iovlen; i++)
        from.left += msg->msg_iov[i].iov_len;
    return from;
}

/* Copies to `to`, or only passes over the bytes. */
static void get(struct from *from, uint8_t *to, uint32_t bytes)
{
    from->left -= bytes;
    while (bytes) {
        const struct iovec *vec = &from->msg->msg_iov[from->vec];
        size_t part = vec->iov_len - from->offset < bytes ? vec->iov_len - from->offset : bytes;
        if (to) {
            memcpy(to, (const uint8_t *)vec->iov_base + from->offset, part);
            to += part;
        }
        bytes -= (uint32_t)part;
        from->offset += part;
        if (from->offset == vec->iov_len) {
            from->vec++;
            from->offset = 0;
        }
    }
}

/* The chunk to write into: the last, while it has room, or a new one at the end. */
static uint32_t tail_chunk(struct ix_posix *p, struct ix_sock *s)
{
    if (s->tx_tail != IX_SOCK_NONE && p->arena[s->tx_tail].end < frame_bytes(p))
        return s->tx_tail;
    uint32_t chunk = take_chunk(p);
    if (chunk == IX_SOCK_NONE)
        return chunk;
    if (s->tx_tail == IX_SOCK_NONE)
        s->tx_head = chunk;
    else
        p->arena[s->tx_tail].next = chunk;
    s->tx_tail = chunk;
    return chunk;
}

/* The core took only `kept` bytes of call `at`, and nothing of those after it: that memory is not
 * lent. Each piece but the first began a chunk. */
static void take_back(struct ix_posix *p, struct ix_sock *s, const struct ix_call *calls,
                      const uint32_t *chunks, uint32_t n, uint32_t at, uint32_t kept)
{
    for (uint32_t i = at + 1; i < n; i++) {
        s->tx_bytes -= calls[i].bytes;
        free_chunk(p, chunks[i]);
    }
    p->arena[chunks[at]].next = IX_SOCK_NONE;
    p->arena[chunks[at]].end -= (uint16_t)(calls[at].bytes - kept);
    s->tx_bytes -= calls[at].bytes - kept;
    s->tx_tail = chunks[at];
}

/* Copies and sends `bytes` bytes at most, in one cycle, so that TCP sees one burst. Returns how
 * many were taken, 0 if memory or the core is full, or -errno. */
static int send_pieces(struct ix_posix *p, struct ix_sock *s, struct from *from, uint32_t bytes,
                       uint16_t flags)
{
    struct ix_call calls[PIECES];
    uint32_t chunks[PIECES], n = 0, done = 0;
    struct from before = *from;
    while (n < PIECES && bytes) {
        uint32_t index = tail_chunk(p, s);
        if (index == IX_SOCK_NONE)
            break;
        struct ix_tx_chunk *chunk = &p->arena[index];
        uint32_t room = frame_bytes(p) - chunk->end, piece = bytes < room ? bytes : room;
        uint8_t *at = arena_at(p, index, chunk->end);
        get(from, at, piece);
        bytes -= piece;
        chunks[n] = index;
        calls[n++] = (struct ix_call){.op = IX_CALL_SENDV,
                                      .flags = bytes ? IX_SEND_MORE : flags,
                                      .handle = s->handle,
                                      .addr = (uint64_t)(at - p->io->umem),
                                      .bytes = piece};
        /* An acknowledgement may come in the very cycle: what it covers must be ours already. */
        chunk->end += (uint16_t)piece;
        s->tx_bytes += piece;
    }
    if (n == 0)
        return 0;
    ix_sock_calls(p, calls, n);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t kept = calls[i].result > 0 ? (uint32_t)calls[i].result : 0;
        done += kept;
        if (kept == calls[i].bytes)
            continue;
        if (s->state != IX_SOCK_DEAD) {
            take_back(p, s, calls, chunks, n, i, kept);
            *from = before;
            get(from, NULL, done);
        }
        return done ? (int)done : calls[i].result;
    }
    return (int)done;
}

static ssize_t not_sendable(struct ix_sock *s)
{
    if (s->error)
        return ix_sock_take_error(s);
    if (s->wr_shut || s->state == IX_SOCK_NEW || s->state == IX_SOCK_LISTEN ||
        s->state == IX_SOCK_DEAD)
        return -EPIPE;
    return s->state == IX_SOCK_CONNECTING ? -EAGAIN : 0;
}

/* What one step of a write may add. Linux looks before it begins a buffer whether what is queued is
 * less than SO_SNDBUF, and what is unsent less than TCP_NOTSENT_LOWAT, and then fills the buffer:
 * half of the largest window that the peer has offered, in whole segments. */
static uint32_t space_now(const struct ix_posix *p, const struct ix_sock *s)
{
    uint32_t most = lowat(p, s);
    if (most == UINT32_MAX && !s->opt.sndbuf_set)
        return ix_sock_space(s);
    struct ix_conn_info info;
    (void)ix_sock_info(p, s, &info);
    uint32_t mss = info.mss ? info.mss : 1, half = info.snd_wnd / 2, waits = unsent(p, s);
    uint32_t goal = (half < SNDBUF_OVER ? half : SNDBUF_OVER) / mss * mss;
    goal = goal > mss ? goal : mss;
    uint32_t part = waits % goal;
    if (!s->opt.sndbuf_set) {
        uint32_t space = ix_sock_space(s), room = part ? goal - part : waits < most ? goal : 0;
        return room < space ? room : space;
    }
    return part ? goal - part : waits < most && ix_sock_space(s) ? goal : 0;
}

static ssize_t send_stream(struct ix_posix *p, struct ix_sock *s, const struct msghdr *msg,
                           int flags)
{
    struct ix_sock_wait wait = {.deadline_ns = ix_posix_deadline(
                                    p, s->opt.sndtimeo_ns ? s->opt.sndtimeo_ns : IX_POSIX_NEVER)};
    struct from from = begin(msg);
    bool block = !s->nonblock && !(flags & MSG_DONTWAIT), waited = false;
    size_t done = 0;
    ssize_t why = 0;
    s->users++;
    while (from.left || why == -EAGAIN) {
        why = not_sendable(s);
        /* Linux: who waits is woken when a third of the buffer is free, not by less. */
        uint32_t space = waited && !ix_sock_writable(p, s) ? 0 : space_now(p, s);
        uint32_t want = from.left < space ? (uint32_t)from.left : space;
        if (why == 0 && want) {
            uint16_t how = want < from.left   ? IX_SEND_MORE | IX_SEND_CORKED
                           : flags & MSG_MORE ? IX_SEND_MORE
                           : s->opt.cork      ? IX_SEND_MORE | IX_SEND_CORKED
                                              : 0;
            if (flags & MSG_EOR && want == from.left)
                how |= IX_SEND_EOR;
            int taken = send_pieces(p, s, &from, want, how);
            if (taken > 0) {
                waited = false;
                done += (size_t)taken;
                continue;
            }
            why = taken == 0 ? -EAGAIN : taken == -ENOENT ? not_sendable(s) : taken;
        } else if (why == 0) {
            why = from.left ? -EAGAIN : 0;
        }
        s->no_space |= why == -EAGAIN;
        if (why != -EAGAIN || !block || !s->fds || !ix_sock_wait(p, &wait))
            break;
        waited = true;
    }
    ix_sock_wait_end(p, &wait);
    s->users--;
    ix_sock_release(p, s);
    return done ? (ssize_t)done : why;
}

/* ---- datagrams */

static ssize_t send_datagram(struct ix_posix *p, struct ix_sock *s, const struct msghdr *msg)
{
    struct from from = begin(msg);
    struct ix_addr to = s->peer;
    int err = msg->msg_name ? ix_sock_take_addr(s, msg->msg_name, msg->msg_namelen, &to) : 0;
    if (!err && to.port == 0)
        err = msg->msg_name ? -EINVAL : -EDESTADDRREQ;
    if (!err && from.left > frame_bytes(p) - p->io->tx_headroom)
        err = -EMSGSIZE;
    if (!err)
        err = ix_sock_autobind(p, s);
    if (err)
        return err;
    uint32_t chunk = take_chunk(p), bytes = (uint32_t)from.left;
    if (chunk == IX_SOCK_NONE)
        return -ENOBUFS;
    uint8_t *at = arena_at(p, chunk, p->arena[chunk].start);
    get(&from, at, bytes);
    struct ix_call call = {.op = IX_CALL_UDP_SENDV,
                           .family = to.family,
                           .handle = s->handle,
                           .addr = (uint64_t)(at - p->io->umem),
                           .bytes = bytes,
                           .peer_port = to.port};
    memcpy(call.peer, to.ip, sizeof call.peer);
    int result = ix_sock_call(p, &call); /* copies: UDP_SENT comes in the same poll */
    free_chunk(p, chunk);
    return result;
}

ssize_t ix_posix_sendmsg(struct ix_posix *p, int fd, const struct msghdr *msg, int flags)
{
    /* MSG_ZEROCOPY is nothing without SO_ZEROCOPY, which there isn't. */
    const int known = MSG_DONTWAIT | MSG_MORE | MSG_EOR | MSG_NOSIGNAL | MSG_ZEROCOPY;
    ix_posix_enter(p);
    struct ix_sock *s = ix_sock_of_fd(p, fd);
    ssize_t result;
    if (!s)
        result = -EBADF;
    else if (s->kind == IX_SOCK_EPOLL)
        result = -EINVAL;
    else if (flags & ~known)
        result = -EOPNOTSUPP;
    else if (!ix_posix_vec_usable(msg))
        result = -EFAULT;
    else
        result = s->kind == IX_SOCK_UDP ? send_datagram(p, s, msg) : send_stream(p, s, msg, flags);
    ix_posix_leave(p);
    if (result == -EPIPE && p->cfg.sigpipe && !(flags & MSG_NOSIGNAL))
        raise(SIGPIPE);
    return result;
}

ssize_t ix_posix_sendto(struct ix_posix *p, int fd, const void *buf, size_t bytes, int flags,
                        const struct sockaddr *addr, socklen_t len)
{
    struct iovec vec = {.iov_base = (void *)(uintptr_t)buf, .iov_len = bytes};
    struct msghdr msg = {
        .msg_name = (void *)(uintptr_t)addr, .msg_namelen = len, .msg_iov = &vec, .msg_iovlen = 1};
    return ix_posix_sendmsg(p, fd, &msg, flags);
}
