/* What the files of this folder share: a socket, a shard's table of them, and who waits.
 *
 * Reading order: create.c (memory, descriptors), pump.c (cycles, events, waiting), conn.c (from
 * socket() to close()), recv.c, send.c, opt.c, poll.c, epoll.c. Functions named ix_sock_* are
 * called with the lock held. */
#ifndef IX_POSIX_SOCK_H
#define IX_POSIX_SOCK_H

#include "api/api.h"
#include "api/config.h"
#include "posix/posix.h"

#include <pthread.h>

#define IX_SOCK_NONE   UINT32_MAX
#define IX_SOCK_QUICK_ACKS 16 /* Linux: TCP_MAX_QUICKACKS */
#define IX_POSIX_NEVER UINT64_MAX

enum ix_sock_kind { IX_SOCK_FREE = 0, IX_SOCK_TCP, IX_SOCK_UDP, IX_SOCK_EPOLL };

enum ix_sock_state {
    IX_SOCK_NEW = 0, /* TCP: no connection yet */
    IX_SOCK_LISTEN,
    IX_SOCK_KNOCKING, /* in a listener's queue, not yet accepted */
    IX_SOCK_CONNECTING,
    IX_SOCK_CONNECTED, /* until DEAD, half-closed or not */
    IX_SOCK_DEAD,      /* its connection is over; `handle` is void */
};

struct ix_addr {
    uint8_t ip[16]; /* network byte order; IPv4 in the first 4 bytes; all 0: any */
    uint16_t port;  /* host byte order */
    uint8_t family; /* 4 or 6; 0: any address of both */
};

/* Options, as the application set them. */
struct ix_sock_options {
    bool nodelay, cork, keepalive, reuseaddr, reuseport, linger_on, v6only;
    int linger_s;
    uint32_t keepidle_s, keepintvl_s, keepcnt;
    uint32_t user_timeout_ms, fin_wait_s; /* TCP_LINGER2; 0: the core's */
    uint8_t syncnt;          /* TCP_SYNCNT; 0: the core's */
    bool pingpong;           /* TCP_QUICKACK was turned off */
    uint32_t maxseg;         /* TCP_MAXSEG; 0: as the path has it */
    uint8_t tos, pmtudisc;   /* IP_TOS, IP_MTU_DISCOVER */
    bool rcvbuf_set, sndbuf_set, inq; /* SO_RCVBUF, SO_SNDBUF were set; TCP_INQ */
    uint32_t congestion;                 /* enum ix_congestion */
    uint32_t sndbuf_bytes, rcvbuf_bytes; /* as getsockopt shows them */
    uint64_t rcvtimeo_ns, sndtimeo_ns;   /* 0: for ever */
    uint64_t pacing;        /* SO_MAX_PACING_RATE, bytes a second; UINT64_MAX: none */
    uint32_t notsent_lowat; /* TCP_NOTSENT_LOWAT; 0: the layer's */
};

struct ix_sock {
    uint8_t kind;   /* enum ix_sock_kind */
    uint8_t state;  /* enum ix_sock_state */
    uint8_t family; /* of the application's addresses, 4 or 6: one of IPv6 may talk IPv4 */
    bool nonblock;
    bool bound; /* UDP: `handle` is an endpoint; TCP: `local` was given */
    bool eof;   /* the peer ended its half */
    bool rd_shut, wr_shut;
    bool fresh;          /* connect() has not yet said that it succeeded */
    bool no_space;       /* somebody found the send queue full: its end is worth an event */
    int error;           /* SO_ERROR, a positive errno; 0: none */
    uint32_t fds;        /* descriptors; 0: closed, and free when its connection is over */
    uint32_t users;      /* calls under way in it, which must not find it freed */
    uint32_t generation; /* in the cookie: events of the slot's former owner don't count */
    uint64_t handle;     /* of the connection or endpoint; 0: none */
    uint64_t lender;     /* the handle that what was received goes back under, void or not */
    struct ix_addr local, peer;
    struct ix_sock_options opt;
    /* received: nodes of posix->rx, by frame */
    uint32_t rx_head, rx_tail;
    uint32_t rx_bytes;
    /* sent and not acknowledged: chunks of posix->arena, by frame; the last is being filled */
    uint32_t tx_head, tx_tail;
    uint32_t tx_bytes;
    /* listener: children that knock, oldest first; child: the next, its listener */
    uint32_t queue_head, queue_tail, queue_next, listener;
    /* epoll: items that may be ready; others: items that watch it. IX_SOCK_NONE: none */
    uint32_t ready_head, ready_tail, watchers;
    uint32_t next; /* free list */
};

/* A frame of the pool while it is lent to us. */
struct ix_rx_node {
    uint32_t next;
    uint16_t offset;
    uint16_t bytes;      /* not yet read */
    struct ix_addr peer; /* UDP */
};

/* A frame of the send arena: [start, end) is not yet acknowledged. */
struct ix_tx_chunk {
    uint32_t next;
    uint16_t start, end;
};

/* One epoll_ctl(ADD). */
struct ix_epoll_item {
    struct epoll_event event; /* events 0: disabled by EPOLLONESHOT */
    uint32_t epoll, sock;     /* sock IX_SOCK_NONE: free */
    int fd;
    bool ready; /* on the list */
    uint32_t ready_next, watch_next;
};

/* A call that waits; on its thread's stack. */
struct ix_sock_wait {
    uint64_t deadline_ns;
    struct ix_sock_wait *next;
    bool asleep, woken;
};

struct ix_posix {
    struct ix_posix_config cfg;
    struct ix_io *io;
    pthread_mutex_t lock;
    pthread_cond_t wake;    /* something changed, or a deadline passed */
    pthread_cond_t settled; /* the last of those that were woken is done */
    struct ix_sock_wait *waits;
    uint32_t unsettled; /* woken, and neither asleep again nor returned */
    uint64_t woken_ns;
    bool changed;  /* since the last wakeup */
    uint32_t *fds; /* sockets by descriptor less fd_base */
    struct ix_sock *socks;
    uint32_t sock_free;
    struct ix_rx_node *rx;
    struct ix_tx_chunk *arena;
    uint32_t arena_free;
    struct ix_epoll_item *items;
    uint32_t item_free, max_items;
    uint16_t next_port;
};

/* ---- create.c */
/* The socket of a descriptor, or NULL. */
struct ix_sock *ix_sock_of_fd(struct ix_posix *p, int fd);
/* A new socket without a descriptor, or NULL. */
struct ix_sock *ix_sock_new(struct ix_posix *p, uint8_t kind, uint8_t family);
/* A free descriptor, now the socket's; or -EMFILE. */
int ix_sock_give_fd(struct ix_posix *p, struct ix_sock *s);
/* It means nothing any more. */
void ix_sock_take_fd(struct ix_posix *p, int fd);
/* Frees a socket that nobody can reach any more; else does nothing. */
void ix_sock_release(struct ix_posix *p, struct ix_sock *s);
static inline uint32_t ix_sock_index(const struct ix_posix *p, const struct ix_sock *s)
{
    return (uint32_t)(s - p->socks);
}
static inline uint64_t ix_sock_cookie(const struct ix_posix *p, const struct ix_sock *s)
{
    return (uint64_t)s->generation << 32 | ix_sock_index(p, s);
}

/* What a listener's connections begin with; options that accept() sees to are left to it. */
int ix_sock_listen_option(struct ix_posix *p, const struct ix_sock *s, uint32_t option,
                          uint64_t value);

/* ---- info.c */
struct tcp_info;
/* What the core knows of its connection, all 0 if it has none. Returns Linux's number of its state.
 */
uint8_t ix_sock_info(const struct ix_posix *p, const struct ix_sock *s, struct ix_conn_info *info);
void ix_sock_tcp_info(const struct ix_posix *p, const struct ix_sock *s, struct tcp_info *out);

/* Is it a pointer? What lies below the first page that Linux maps (vm.mmap_min_addr) is none, nor
 * is what lies in the kernel's half (-1, say): that is what programs hand over by mistake. Others
 * that lead nowhere end the process. */
#define IX_POSIX_ADDRESS_END (1ull << 47)
static inline bool ix_posix_usable(const void *p)
{
    return (uintptr_t)p >= 4096 && (uintptr_t)p < IX_POSIX_ADDRESS_END;
}

static inline bool ix_posix_vec_usable(const struct msghdr *msg)
{
    for (size_t i = 0; i < msg->msg_iovlen; i++)
        if (msg->msg_iov[i].iov_len && !ix_posix_usable(msg->msg_iov[i].iov_base))
            return false;
    return true;
}

/* ---- pump.c */
/* Runs one call now, and takes the events that its cycle brings. Returns the call's result. */
int ix_sock_call(struct ix_posix *p, struct ix_call *call);
void ix_sock_calls(struct ix_posix *p, struct ix_call *calls, uint32_t n);
/* A call to be run with the next cycle. */
void ix_sock_later(struct ix_posix *p, const struct ix_call *call);
/* Runs `n` calls that stand in io->calls. */
void ix_sock_cycle(struct ix_posix *p, uint32_t n);
/* Waits until something may have changed. Returns false if the deadline has passed. */
bool ix_sock_wait(struct ix_posix *p, struct ix_sock_wait *w);
/* The call that waited (or not) is at its end. */
void ix_sock_wait_end(struct ix_posix *p, struct ix_sock_wait *w);
/* Readiness of a socket changed: `events` are EPOLL*. */
void ix_sock_wake(struct ix_posix *p, struct ix_sock *s, uint32_t events);
/* Ends a public function: wakes whom it has to, and gives back the lock. */
void ix_posix_leave(struct ix_posix *p);
static inline void ix_posix_enter(struct ix_posix *p)
{
    pthread_mutex_lock(&p->lock);
}
static inline uint64_t ix_posix_now(struct ix_posix *p)
{
    return p->cfg.env.now_ns(p->cfg.env.arg);
}
/* now + ns, or never for UINT64_MAX. */
uint64_t ix_posix_deadline(struct ix_posix *p, uint64_t ns);

/* ---- conn.c */
/* A peer knocks at a listener. */
void ix_sock_knock(struct ix_posix *p, struct ix_sock *listener, const struct ix_event *event);
/* The connection of a child that was not yet accepted is over. */
void ix_sock_knock_dead(struct ix_posix *p, struct ix_sock *listener, const struct ix_event *event);
/* Takes a child out of its listener's queue. */
void ix_sock_unqueue(struct ix_posix *p, struct ix_sock *child);
/* An address as the application sees it; len in: room, out: its size. */
void ix_sock_put_addr(const struct ix_sock *s, const struct ix_addr *addr, struct sockaddr *out,
                      socklen_t *len);
int ix_sock_take_addr(const struct ix_sock *s, const struct sockaddr *addr, socklen_t len,
                      struct ix_addr *out);
/* Gives a socket without a port one. */
int ix_sock_autobind(struct ix_posix *p, struct ix_sock *s);

/* ---- recv.c, send.c */
void ix_sock_received(struct ix_posix *p, struct ix_sock *s, const struct ix_event *event);
/* Gives back what was received and not read. */
void ix_sock_drop_received(struct ix_posix *p, struct ix_sock *s);
/* The connection is over, and what was borrowed ours again. */
void ix_sock_drop_sent(struct ix_posix *p, struct ix_sock *s);
/* No socket borrows more than a quarter of the send arena. */
uint32_t ix_sock_sndbuf_max(const struct ix_posix *p);
void ix_sock_acked(struct ix_posix *p, struct ix_sock *s, uint32_t bytes);
/* A write may go beyond SO_SNDBUF by less than a buffer of Linux's. */
#define SNDBUF_OVER 65535u
/* Bytes that a write would take now. */
uint32_t ix_sock_space(const struct ix_sock *s);
/* Is there enough of it to call the socket writable? */
bool ix_sock_writable(const struct ix_posix *p, const struct ix_sock *s);

/* ---- opt.c */
void ix_sock_default_options(const struct ix_posix *p, struct ix_sock *s);
/* Tells the core what the application has set on a socket whose connection has just begun. */
void ix_sock_apply_options(struct ix_posix *p, struct ix_sock *s);
/* Takes the pending error: -errno or 0. */
static inline int ix_sock_take_error(struct ix_sock *s)
{
    int error = s->error;
    s->error = 0;
    return -error;
}

/* ---- poll.c, epoll.c */
/* What of EPOLL* holds of a socket now. */
uint32_t ix_sock_events(struct ix_posix *p, struct ix_sock *s);
void ix_epoll_note(struct ix_posix *p, struct ix_sock *s, uint32_t events);
/* A descriptor is closed: it is watched no longer. */
void ix_epoll_forget(struct ix_posix *p, struct ix_sock *s, int fd);
void ix_epoll_close(struct ix_posix *p, struct ix_sock *epoll);
bool ix_epoll_any_ready(struct ix_posix *p, struct ix_sock *epoll);

#endif
