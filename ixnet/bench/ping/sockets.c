/* `ixnet bench latency` over the kernel's sockets, with the kernel's own timestamps
 * (SO_TIMESTAMPING; Documentation/networking/timestamping.rst): when a message entered the queueing
 * discipline, when the driver had it, and when it came in. Hardware ones where the driver gives
 * them. The stamps are CLOCK_REALTIME, so the application's are too.
 */
#include <errno.h>
#include <time.h>

#include <linux/errqueue.h>
#include <linux/net_tstamp.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <unistd.h>

#include "ping.h"

enum { APP_TO_STACK, STACK_TO_WIRE, WIRE_AND_PEER, WIRE_TO_APP, ROUND_TRIP };

/* Of the ping under way, ns; 0: not seen. */
struct stamps {
    uint64_t app_out, stack_out, wire_out, wire_in, app_in;
};

static uint64_t realtime_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint64_t ns_of(const struct timespec *t)
{
    return (uint64_t)t->tv_sec * 1000000000u + (uint64_t)t->tv_nsec;
}

static __attribute__((noreturn)) void die(const char *what)
{
    fprintf(stderr, "ixping: %s: %s\n", what, strerror(errno));
    exit(1);
}

static int connect_to(const struct ping *p)
{
    const struct ping_options *o = &p->opt;
    int one = 1, fd = socket(o->target.ss_family, o->udp ? SOCK_DGRAM : SOCK_STREAM, 0);
    if (fd < 0)
        die("socket");
    if (connect(fd, (const struct sockaddr *)&o->target, o->target_bytes) < 0)
        die("connect");
    if (!o->udp)
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    uint32_t flags = SOF_TIMESTAMPING_TX_SCHED | SOF_TIMESTAMPING_TX_SOFTWARE |
                     SOF_TIMESTAMPING_RX_SOFTWARE | SOF_TIMESTAMPING_SOFTWARE |
                     SOF_TIMESTAMPING_OPT_TSONLY | SOF_TIMESTAMPING_OPT_ID;
    if (setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPING, &flags, sizeof flags) < 0)
        die("SO_TIMESTAMPING");
    return fd;
}

/* The software stamp of a message, and of which kind the error queue says it is. */
static uint64_t stamp_of(struct msghdr *m, uint32_t *kind)
{
    uint64_t ns = 0;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c; c = CMSG_NXTHDR(m, c)) {
        if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_TIMESTAMPING) {
            struct scm_timestamping t;
            memcpy(&t, CMSG_DATA(c), sizeof t);
            ns = ns_of(&t.ts[0]);
        } else if (kind && (c->cmsg_type == IP_RECVERR || c->cmsg_type == IPV6_RECVERR)) {
            struct sock_extended_err e;
            memcpy(&e, CMSG_DATA(c), sizeof e);
            *kind = e.ee_info;
        }
    }
    return ns;
}

/* Returns how many there were. */
static uint32_t read_sent_stamps(int fd, struct stamps *s)
{
    for (uint32_t count = 0;; count++) {
        char control[512], data[1];
        struct iovec iov = {data, sizeof data};
        struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control,
                           .msg_controllen = sizeof control};
        uint32_t kind = UINT32_MAX;
        if (recvmsg(fd, &m, MSG_ERRQUEUE | MSG_DONTWAIT) < 0)
            return count;
        uint64_t ns = stamp_of(&m, &kind);
        if (kind == SCM_TSTAMP_SCHED)
            s->stack_out = ns;
        else if (kind == SCM_TSTAMP_SND)
            s->wire_out = ns;
    }
}

/* Waits for the whole reply. False: it is late, or the connection is broken. */
static bool await_reply(struct ping *p, int fd, struct stamps *s)
{
    uint8_t reply[PING_BYTES_MAX];
    uint32_t got = 0;
    while (got < p->opt.bytes) {
        struct pollfd pfd = {.fd = fd, .events = POLLIN};
        if (poll(&pfd, 1, (int)(p->opt.timeout_s * 1000)) <= 0)
            return false;
        if (!(pfd.revents & POLLIN) && read_sent_stamps(fd, s))
            continue;
        char control[512];
        struct iovec iov = {reply + got, p->opt.bytes - got};
        struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control,
                           .msg_controllen = sizeof control};
        ssize_t n = recvmsg(fd, &m, 0);
        s->app_in = realtime_ns();
        if (n <= 0) {
            snprintf(p->error, sizeof p->error, "%s", n ? strerror(errno) : "the server closed");
            return false;
        }
        uint64_t ns = stamp_of(&m, NULL);
        s->wire_in = ns ? ns : s->wire_in;
        got += (uint32_t)n;
    }
    if (memcmp(reply, p->message, p->opt.bytes) != 0)
        snprintf(p->error, sizeof p->error, "the reply differs from what was sent");
    return !p->error[0];
}

static void ping_once(struct ping *p, int fd)
{
    struct stamps s = {0};
    ping_next_message(p);
    s.app_out = realtime_ns();
    if (send(fd, p->message, p->opt.bytes, 0) != (ssize_t)p->opt.bytes) {
        snprintf(p->error, sizeof p->error, "send: %s", strerror(errno));
        return;
    }
    if (!await_reply(p, fd, &s)) {
        p->lost++;
        return;
    }
    read_sent_stamps(fd, &s);
    ping_record(p, APP_TO_STACK, s.app_out, s.stack_out);
    ping_record(p, STACK_TO_WIRE, s.stack_out, s.wire_out);
    ping_record(p, WIRE_AND_PEER, s.wire_out, s.wire_in);
    ping_record(p, WIRE_TO_APP, s.wire_in, s.app_in);
    ping_record(p, ROUND_TRIP, s.app_out, s.app_in);
}

int main(int argc, char **argv)
{
    static struct ping p;
    ping_parse(&p, argc, argv);
    ping_add_stage(&p, "app to stack", "software");
    ping_add_stage(&p, "stack to wire", "software");
    ping_add_stage(&p, "wire and peer", "software");
    ping_add_stage(&p, "wire to app", "software");
    ping_add_stage(&p, "round trip", "software");
    int fd = connect_to(&p);
    uint64_t from_ns = ping_clock_ns();
    uint64_t measured_ns = from_ns + (uint64_t)(p.opt.warmup_s * 1e9);
    uint64_t until_ns = measured_ns + (uint64_t)(p.opt.seconds * 1e9);
    for (uint64_t now = from_ns; now < until_ns && !p.error[0]; now = ping_clock_ns()) {
        if (!p.begin_ns && now >= measured_ns)
            p.begin_ns = now;
        ping_once(&p, fd);
        if (p.opt.interval_s > 0)
            usleep((useconds_t)(p.opt.interval_s * 1e6));
    }
    close(fd);
    ping_report(&p, stdout);
    return p.error[0] ? 1 : 0;
}
