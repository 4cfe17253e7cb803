/* `ixnet bench latency` over the dataplane: an application of `ixnet run --timestamps` (inline). It
 * puts itself around the shard's link and reads the clock there: when the core put the message on
 * the TX ring, when the kernel was to take it, and when the core took the reply from the RX ring.
 * When the reply came in stands before the frame, where the steering program wrote it.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <stdlib.h>

#include "native/app.h"
#include "ping.h"
#include "shard/shard.h"
#include "steer.h"

#define LOCAL_PORT   60990  /* of UDP */
#define FRAME_MIN    100u   /* shorter ones are acknowledgments, not ours */
#define MAX_WAIT_NS  100000u
#define OPEN_WAIT_NS 5000000000ull
#define FIRST_WAIT_S 0.1
#define FIRST_TRIES  20

enum { APP_TO_RING, RING_TO_WIRE, WIRE_AND_PEER, WIRE_TO_CORE, CORE_TO_APP, ROUND_TRIP };

/* Of the ping under way, ns of CLOCK_MONOTONIC; 0: not yet. */
struct stamps {
    uint64_t app_out, ring_out, wire_out, wire_in, core_in, app_in;
    uint64_t chunk; /* frame that the message left in */
};

static struct {
    struct ix_app *app;
    struct ping *ping;
    const struct ix_link_ops *inner;
    struct stamps stamps;
    uint64_t handle;
    uint32_t missing, unacked; /* bytes of the reply, and not yet acknowledged */
    bool open, over, hardware;
} plane;

/* ---- around the link --------------------------------------------------------------- */

static void read_arrival(const struct ix_link *link, const struct ix_desc *desc)
{
    struct ix_steer_stamp stamp;
    memcpy(&stamp, link->umem + desc->addr - sizeof stamp, sizeof stamp);
    if (stamp.magic == IX_STEER_STAMP_MAGIC)
        plane.stamps.wire_in = stamp.arrived_ns;
}

static uint32_t stamp_rx(struct ix_link *link, struct ix_desc *out, uint32_t max)
{
    uint32_t n = plane.inner->rx_burst(link, out, max);
    for (uint32_t i = 0; i < n; i++) {
        if (out[i].len < FRAME_MIN || !plane.stamps.app_out)
            continue;
        plane.stamps.core_in = ping_clock_ns();
        read_arrival(link, &out[i]);
    }
    return n;
}

static uint32_t stamp_tx(struct ix_link *link, const struct ix_desc *descs, uint32_t n)
{
    uint32_t taken = plane.inner->tx_burst(link, descs, n);
    for (uint32_t i = 0; i < taken; i++) {
        if (descs[i].len < FRAME_MIN || plane.stamps.ring_out)
            continue;
        plane.stamps.ring_out = ping_clock_ns();
        plane.stamps.chunk = descs[i].addr >> link->frame_shift;
    }
    return taken;
}

static uint32_t stamp_complete(struct ix_link *link, uint64_t *addrs, uint32_t max)
{
    uint32_t n = plane.inner->complete(link, addrs, max);
    for (uint32_t i = 0; i < n; i++) {
        bool ours = plane.stamps.ring_out && addrs[i] >> link->frame_shift == plane.stamps.chunk;
        if (ours && !plane.stamps.wire_out)
            plane.stamps.wire_out = ping_clock_ns();
    }
    return n;
}

static uint32_t stamp_fill(struct ix_link *link, const uint64_t *addrs, uint32_t n)
{
    return plane.inner->fill(link, addrs, n);
}

static uint32_t stamp_fill_room(struct ix_link *link)
{
    return plane.inner->fill_room(link);
}

/* In copy mode the system call sends what is on the ring, and over a veth the peer may have
 * answered before it returns: so what counts is when it begins. */
static int stamp_wakeup(struct ix_link *link, uint32_t what)
{
    bool ours = what & IX_WAKE_TX && plane.stamps.ring_out && !plane.stamps.wire_out;
    uint64_t before_ns = ours ? ping_clock_ns() : 0;
    int calls = plane.inner->wakeup(link, what);
    if (ours && calls > 0)
        plane.stamps.wire_out = before_ns;
    return calls;
}

static const struct ix_link_ops stamping = {.rx_burst = stamp_rx, .tx_burst = stamp_tx,
                                            .complete = stamp_complete, .fill = stamp_fill,
                                            .fill_room = stamp_fill_room, .wakeup = stamp_wakeup};

/* ---- events ------------------------------------------------------------------------ */

static void fail(const char *what)
{
    snprintf(plane.ping->error, sizeof plane.ping->error, "%s", what);
    plane.over = true;
}

static void on_payload(const struct ix_event *ev)
{
    struct ping *p = plane.ping;
    bool udp = ev->type == IX_EV_UDP_RECV;
    struct ix_call *done =
        ix_app_call(plane.app, udp ? IX_CALL_UDP_RECV_DONE : IX_CALL_RECV_DONE, ev->handle);
    done->addr = ((uint64_t)ev->frame << plane.app->io->frame_shift) + ev->offset;
    done->bytes = ev->bytes;
    if (ev->bytes > plane.missing || memcmp(ix_app_payload(plane.app, ev),
                                            p->message + p->opt.bytes - plane.missing, ev->bytes)) {
        if (!udp) /* a datagram may be the late answer to one that was given up */
            fail("the reply differs from what was sent");
        return;
    }
    plane.missing -= ev->bytes;
    if (!plane.missing)
        plane.stamps.app_in = ping_clock_ns();
}

static void on_event(const struct ix_event *ev)
{
    switch (ev->type) {
    case IX_EV_CONNECTED:
        plane.open = ev->status == 0;
        if (ev->status)
            fail(strerror(-ev->status));
        break;
    case IX_EV_RECV:
        if (!ev->bytes)
            fail("the server closed the connection");
        else
            on_payload(ev);
        break;
    case IX_EV_UDP_RECV:
        on_payload(ev);
        break;
    case IX_EV_SENT:
        plane.unacked -= ev->bytes;
        break;
    case IX_EV_UDP_SENT:
        plane.unacked = 0;
        break;
    case IX_EV_DEAD:
        fail(ev->status ? strerror(-ev->status) : "the server closed the connection");
        break;
    default:
        break;
    }
}

static void turn(void)
{
    int n = ix_app_poll(plane.app, MAX_WAIT_NS);
    if (n < 0) {
        fail("interrupted");
        return;
    }
    for (int i = 0; i < n; i++)
        on_event(&plane.app->io->events[i]);
}

/* ---- pings ------------------------------------------------------------------------- */

static void set_peer(struct ix_call *call)
{
    const struct sockaddr_storage *to = &plane.ping->opt.target;
    call->family = to->ss_family == AF_INET6 ? 6 : 4;
    call->peer_port = ntohs(((const struct sockaddr_in *)to)->sin_port);
    if (call->family == 6)
        memcpy(call->peer, &((const struct sockaddr_in6 *)to)->sin6_addr, 16);
    else
        memcpy(call->peer, &((const struct sockaddr_in *)to)->sin_addr, 4);
}

static void open_up(void)
{
    char why[320] = "";
    if (plane.ping->opt.udp) {
        if (ix_app_udp_bind(plane.app, NULL, LOCAL_PORT, 0, &plane.handle, why, sizeof why))
            fail(why);
        return;
    }
    struct ix_call *call = ix_app_call(plane.app, IX_CALL_CONNECT, 0);
    set_peer(call);
    uint64_t until_ns = ping_clock_ns() + OPEN_WAIT_NS;
    turn();
    plane.handle = plane.app->io->calls[0].handle;
    if (plane.app->io->calls[0].result < 0)
        fail(strerror(-plane.app->io->calls[0].result));
    while (!plane.open && !plane.over && ping_clock_ns() < until_ns)
        turn();
    if (!plane.open && !plane.over)
        fail("the connection did not open in time");
}

static void ping_once(void)
{
    struct ping *p = plane.ping;
    const struct ix_io *io = plane.app->io;
    uint64_t addr = ((uint64_t)io->arena_frame << io->frame_shift) + io->tx_headroom;
    uint64_t until_ns = ping_clock_ns() + (uint64_t)(p->opt.timeout_s * 1e9);
    while (plane.unacked && !plane.over && ping_clock_ns() < until_ns)
        turn(); /* the memory is lent */
    ping_next_message(p);
    memcpy(io->umem + addr, p->message, p->opt.bytes);
    plane.missing = plane.unacked = p->opt.bytes;
    plane.stamps = (struct stamps){.app_out = ping_clock_ns()};
    struct ix_call *call =
        ix_app_call(plane.app, p->opt.udp ? IX_CALL_UDP_SENDV : IX_CALL_SENDV, plane.handle);
    call->addr = addr;
    call->bytes = p->opt.bytes;
    if (p->opt.udp)
        set_peer(call);
    while (plane.missing && !plane.over && ping_clock_ns() < until_ns)
        turn();
    if (plane.missing) {
        p->lost++;
        return;
    }
    const struct stamps *s = &plane.stamps;
    ping_record(p, APP_TO_RING, s->app_out, s->ring_out);
    ping_record(p, RING_TO_WIRE, s->ring_out, s->wire_out);
    ping_record(p, WIRE_AND_PEER, s->wire_out, s->wire_in);
    ping_record(p, WIRE_TO_CORE, s->wire_in, s->core_in);
    ping_record(p, CORE_TO_APP, s->core_in, s->app_in);
    ping_record(p, ROUND_TRIP, s->app_out, s->app_in);
}

/* The first may be lost while the neighbour's address is asked for. */
static void first_ping(void)
{
    struct ping *p = plane.ping;
    double timeout_s = p->opt.timeout_s;
    p->opt.timeout_s = timeout_s < FIRST_WAIT_S ? timeout_s : FIRST_WAIT_S;
    for (int tries = 0; !plane.over && tries < FIRST_TRIES; tries++) {
        ping_once();
        if (!plane.missing)
            break;
    }
    p->opt.timeout_s = timeout_s;
    p->sent = p->lost = 0;
}

static void run_pings(void)
{
    struct ping *p = plane.ping;
    first_ping();
    uint64_t measured_ns = ping_clock_ns() + (uint64_t)(p->opt.warmup_s * 1e9);
    uint64_t until_ns = measured_ns + (uint64_t)(p->opt.seconds * 1e9);
    for (uint64_t now; !plane.over && (now = ping_clock_ns()) < until_ns;) {
        if (!p->begin_ns && now >= measured_ns)
            p->begin_ns = now;
        ping_once();
        uint64_t next_ns = now + (uint64_t)(p->opt.interval_s * 1e9);
        while (!plane.over && ping_clock_ns() < next_ns)
            turn();
    }
}

int ix_app_main(struct ix_app *app, int argc, char **argv)
{
    struct ping *p = calloc(1, sizeof *p);
    if (!p || !app->shard || !app->io->arena_frames) {
        fprintf(stderr, "ixping: needs --placement inline, and a send arena\n");
        free(p);
        return 1;
    }
    optind = 1;
    ping_parse(p, argc, argv);
    plane.app = app;
    plane.ping = p;
    ping_add_stage(p, "app to ring", "software, core");
    ping_add_stage(p, "ring to wire", "software, system call begins");
    ping_add_stage(p, "wire and peer", "software");
    ping_add_stage(p, "wire to core", "software, XDP");
    ping_add_stage(p, "core to app", "software, core");
    ping_add_stage(p, "round trip", "software, core");
    struct ix_link *link = app->shard->link;
    plane.inner = link->ops;
    link->ops = &stamping;
    open_up();
    run_pings();
    link->ops = plane.inner;
    ping_report(p, stdout);
    fflush(stdout);
    int status = p->error[0] ? 1 : 0;
    free(p);
    return status;
}
