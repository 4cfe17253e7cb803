/* `ixnet bench latency` over the kernel's sockets, with the kernel's own timestamps
 * (SO_TIMESTAMPING; Documentation/networking/timestamping.rst): when a message entered the queueing
 * discipline, when the driver had it, and when it came in. The NIC's own of the last two where it
 * gives them and its clock can be compared (--clock). The kernel's are CLOCK_REALTIME, so the
 * application's are too.
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

#define STAMP_WAIT_MS 10 /* a NIC's stamp of what was sent comes later than the reply may */

/* Of the ping under way, ns; 0: not seen. nic_*: by the NIC's clock. */
struct stamps {
    uint64_t app_out, stack_out, driver_out, driver_in, app_in;
    uint64_t nic_out, nic_in;
};

/* The kernel's and the NIC's of one message. */
struct pair {
    uint64_t software, hardware;
};

static uint64_t ns_of(const struct timespec *t)
{
    return (uint64_t)t->tv_sec * 1000000000u + (uint64_t)t->tv_nsec;
}

static void fail(struct ping *p, const char *what)
{
    snprintf(p->error, sizeof p->error, "%s: %s", what, strerror(errno));
}

/* -1: p->error says why not. */
static int connect_to(struct ping *p)
{
    const struct ping_options *o = &p->opt;
    int one = 1, fd = socket(o->target.ss_family, o->udp ? SOCK_DGRAM : SOCK_STREAM, 0);
    if (fd < 0) {
        fail(p, "socket");
        return -1;
    }
    if (connect(fd, (const struct sockaddr *)&o->target, o->target_bytes) < 0) {
        fail(p, "connect");
        return fd;
    }
    if (!o->udp)
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    uint32_t flags = SOF_TIMESTAMPING_TX_SCHED | SOF_TIMESTAMPING_TX_SOFTWARE |
                     SOF_TIMESTAMPING_RX_SOFTWARE | SOF_TIMESTAMPING_SOFTWARE |
                     SOF_TIMESTAMPING_OPT_TSONLY | SOF_TIMESTAMPING_OPT_ID;
    if (p->clock.fd >= 0)
        flags |= SOF_TIMESTAMPING_TX_HARDWARE | SOF_TIMESTAMPING_RX_HARDWARE |
                 SOF_TIMESTAMPING_RAW_HARDWARE | SOF_TIMESTAMPING_OPT_TX_SWHW;
    if (setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPING, &flags, sizeof flags) < 0)
        fail(p, "SO_TIMESTAMPING");
    return fd;
}

/* The stamps of a message, and of which kind the error queue says they are. */
static struct pair stamps_of(struct msghdr *m, uint32_t *kind)
{
    struct pair found = {0};
    for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c; c = CMSG_NXTHDR(m, c)) {
        if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_TIMESTAMPING) {
            struct scm_timestamping t;
            memcpy(&t, CMSG_DATA(c), sizeof t);
            found = (struct pair){ns_of(&t.ts[0]), ns_of(&t.ts[2])};
        } else if (kind && (c->cmsg_type == IP_RECVERR || c->cmsg_type == IPV6_RECVERR)) {
            struct sock_extended_err e;
            memcpy(&e, CMSG_DATA(c), sizeof e);
            *kind = e.ee_info;
        }
    }
    return found;
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
        struct pair found = stamps_of(&m, &kind);
        if (kind == SCM_TSTAMP_SCHED)
            s->stack_out = found.software;
        else if (kind == SCM_TSTAMP_SND && found.hardware)
            s->nic_out = found.hardware;
        else if (kind == SCM_TSTAMP_SND)
            s->driver_out = found.software;
    }
}

/* Takes what came in. True: that is the whole reply. A datagram that isn't is the late one to a
 * message that was given up. */
static bool is_reply(struct ping *p, const uint8_t *reply, uint32_t *got)
{
    bool same = memcmp(reply, p->message, *got) == 0;
    if (same && *got == p->opt.bytes)
        return true;
    if (p->opt.udp)
        *got = 0;
    else if (!same)
        snprintf(p->error, sizeof p->error, "the reply differs from what was sent");
    return false;
}

/* Waits for the whole reply. False: it is late, or the connection is broken. */
static bool await_reply(struct ping *p, int fd, struct stamps *s)
{
    uint8_t reply[PING_BYTES_MAX];
    uint64_t until_ns = ping_clock_ns() + (uint64_t)(p->opt.timeout_s * 1e9);
    for (uint32_t got = 0;;) {
        uint64_t now_ns = ping_clock_ns();
        struct pollfd pfd = {.fd = fd, .events = POLLIN};
        int wait_ms = now_ns < until_ns ? (int)((until_ns - now_ns) / 1000000) + 1 : 0;
        if (poll(&pfd, 1, wait_ms) <= 0)
            return false;
        if (!(pfd.revents & POLLIN) && read_sent_stamps(fd, s))
            continue;
        char control[512];
        struct iovec iov = {reply + got, p->opt.bytes - got};
        struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control,
                           .msg_controllen = sizeof control};
        ssize_t n = recvmsg(fd, &m, 0);
        s->app_in = clock_read_ns(CLOCK_REALTIME);
        if (n <= 0) {
            snprintf(p->error, sizeof p->error, "%s",
                     n ? strerror(errno) : "the server closed the connection");
            return false;
        }
        struct pair found = stamps_of(&m, NULL);
        s->driver_in = found.software ? found.software : s->driver_in;
        s->nic_in = found.hardware ? found.hardware : s->nic_in;
        got += (uint32_t)n;
        if (is_reply(p, reply, &got))
            return true;
        if (p->error[0])
            return false;
    }
}

/* What was sent has all its stamps, or they don't come. */
static void await_sent_stamps(const struct ping *p, int fd, struct stamps *s)
{
    read_sent_stamps(fd, s);
    if (p->clock.fd < 0 || p->transmitted.source == STAMP_SOFTWARE)
        return;
    for (struct pollfd pfd = {.fd = fd}; !s->nic_out && poll(&pfd, 1, STAMP_WAIT_MS) > 0;) {
        if (!read_sent_stamps(fd, s))
            return;
    }
}

static void record(struct ping *p, const struct stamps *s)
{
    bool out = p->transmitted.source == STAMP_HARDWARE, in = p->received.source == STAMP_HARDWARE;
    uint64_t wire_out = out ? device_clock_convert(&p->clock, s->nic_out) : s->driver_out;
    uint64_t wire_in = in ? device_clock_convert(&p->clock, s->nic_in) : s->driver_in;
    p->transmitted.seen.hardware |= s->nic_out != 0;
    p->received.seen.hardware |= s->nic_in != 0;
    ping_record(p, APP_TO_STACK, s->app_out, s->stack_out);
    ping_record(p, STACK_TO_WIRE, s->stack_out, wire_out);
    ping_record(p, WIRE_AND_PEER, wire_out, wire_in);
    ping_record(p, WIRE_TO_APP, wire_in, s->app_in);
    ping_record(p, ROUND_TRIP, s->app_out, s->app_in);
}

static void ping_once(struct ping *p, int fd)
{
    struct stamps s = {0};
    ping_next_message(p);
    s.app_out = clock_read_ns(CLOCK_REALTIME);
    if (send(fd, p->message, p->opt.bytes, 0) != (ssize_t)p->opt.bytes) {
        snprintf(p->error, sizeof p->error, "send: %s", strerror(errno));
        return;
    }
    if (!await_reply(p, fd, &s)) {
        p->lost++;
        if (!p->opt.udp && !p->error[0]) /* what comes later would be taken for the next one's */
            snprintf(p->error, sizeof p->error,
                     "the server did not answer in %g s (cure: a longer --timeout)",
                     p->opt.timeout_s);
        return;
    }
    await_sent_stamps(p, fd, &s);
    record(p, &s);
}

/* The measured time begins: which stamps it is by. */
static void begin(struct ping *p, uint64_t now_ns)
{
    if (!ping_begin(p, now_ns))
        return;
    bool out = p->transmitted.source == STAMP_HARDWARE, in = p->received.source == STAMP_HARDWARE;
    if (out)
        ping_set_clock(p, STACK_TO_WIRE, "software; hardware, NIC");
    if (out || in)
        ping_set_clock(p, WIRE_AND_PEER,
                       out && in ? "hardware, NIC"
                       : out     ? "hardware, NIC; software"
                                 : "software; hardware, NIC");
    if (in)
        ping_set_clock(p, WIRE_TO_APP, "hardware, NIC; software");
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
    ping_open_clock(&p, CLOCK_REALTIME);
    p.received.seen.error = p.transmitted.seen.error = p.clock.fd < 0;
    int fd = connect_to(&p);
    if (!p.error[0])
        ping_once(&p, fd); /* so that something was seen, however short the warm-up */
    p.sent = p.lost = 0;
    uint64_t from_ns = ping_clock_ns();
    uint64_t measured_ns = from_ns + (uint64_t)(p.opt.warmup_s * 1e9);
    uint64_t until_ns = measured_ns + (uint64_t)(p.opt.seconds * 1e9);
    for (uint64_t now = from_ns; now < until_ns && !p.error[0]; now = ping_clock_ns()) {
        ping_compare_clock(&p, now);
        if (!p.begin_ns && now >= measured_ns)
            begin(&p, now);
        if (!p.error[0])
            ping_once(&p, fd);
        if (p.opt.interval_s > 0)
            usleep((useconds_t)(p.opt.interval_s * 1e6));
    }
    close(fd);
    device_clock_close(&p.clock);
    ping_report(&p);
    return p.error[0] ? 1 : 0;
}
