/* `ixnet bench latency` over the dataplane: an application of `ixnet run --timestamps`. Inline it
 * puts itself around the shard's link and reads the clock there: when the core put the message on
 * the TX ring, when the kernel was to take it, and when the core took the reply from the RX ring.
 * When the reply came in stands before the frame, where the steering program wrote it, by the
 * system's clock and by the NIC's. When the message left by the NIC's clock the driver writes
 * before that frame (Documentation/networking/xsk-tx-metadata.rst).
 *
 * In the dune placement the link is in ring 0, out of reach: what stands before the reply is all.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <stdlib.h>

#include "link/xsk.h"
#include "native/app.h"
#include "ping.h"
#include "shard/shard.h"
#include "steer.h"

#define LOCAL_PORT   60990  /* of UDP */
#define FRAME_MIN    100u   /* shorter ones are acknowledgments, not ours */
#define MAX_WAIT_NS  100000u
#define OPEN_WAIT_NS 20000000000ull
#define FIRST_WAIT_S  0.25
#define FIRST_TRIES   80 /* a NIC may be without its link for some seconds after a program came */
#define COMPLETION_NS 10000000u /* how long after the reply */
#define RX_HEADROOM   256u      /* XDP_PACKET_HEADROOM: where frames begin in a chunk */
#define BURST_MAX     64u

enum { APP_TO_RING, RING_TO_WIRE, WIRE_AND_PEER, WIRE_TO_CORE, CORE_TO_APP, ROUND_TRIP };
/* In the dune placement. */
enum { APP_TO_PEER_AND_BACK, WIRE_TO_APP, WHOLE };

/* struct xsk_tx_metadata as far as it is used here; Debian 12's headers have none. */
struct tx_metadata {
    uint64_t flags; /* bit 0: XDP_TXMD_FLAGS_TIMESTAMP */
    uint64_t tx_timestamp;
    uint64_t launch_time;
};

/* Of the ping under way, ns of CLOCK_MONOTONIC unless said otherwise; 0: not yet. */
struct stamps {
    uint64_t app_out, ring_out, call_out, wire_in, core_in, app_in;
    uint64_t device_in;    /* the NIC's clock */
    uint64_t completion;   /* the NIC's clock, in copy mode CLOCK_TAI */
    uint64_t chunk;        /* frame that the message left in */
    bool completed;
};

static struct {
    struct ix_app *app;
    struct ping *ping;
    const struct ix_link_ops *inner;
    struct stamps stamps;
    uint64_t handle;
    uint32_t missing, unacked; /* bytes of the reply, and not yet acknowledged */
    int64_t tai_offset_ns; /* from CLOCK_TAI to CLOCK_MONOTONIC */
    bool open, over, zerocopy;
} plane;

/* ---- around the link --------------------------------------------------------------- */

static void read_arrival(const uint8_t *frame)
{
    struct stamps_seen *seen = &plane.ping->received.seen;
    struct ix_steer_stamp stamp;
    memcpy(&stamp, frame - sizeof stamp, sizeof stamp);
    if (stamp.magic != IX_STEER_STAMP_MAGIC)
        return;
    plane.stamps.wire_in = stamp.arrived_ns;
    plane.stamps.device_in = stamp.device_ns;
    seen->hardware |= stamp.device_ns != 0;
    seen->error = stamp.device_error;
}

static uint32_t stamp_rx(struct ix_link *link, struct ix_desc *out, uint32_t max)
{
    uint32_t n = plane.inner->rx_burst(link, out, max);
    for (uint32_t i = 0; i < n; i++) {
        if (out[i].len < FRAME_MIN || !plane.stamps.app_out)
            continue;
        plane.stamps.core_in = ping_clock_ns();
        read_arrival(link->umem + out[i].addr);
    }
    return n;
}

static uint8_t *metadata_of(const struct ix_link *link, uint64_t addr)
{
    return link->umem + addr - link->tx_metadata_bytes;
}

/* Asks for the time when the message leaves. */
static void ask_for_stamp(const struct ix_link *link, struct ix_desc *desc)
{
    const struct tx_metadata ask = {.flags = 1};
    if (link->tx_metadata_bytes < sizeof ask)
        return;
    memcpy(metadata_of(link, desc->addr), &ask, sizeof ask);
    desc->flags |= IX_DESC_TX_METADATA;
}

static uint32_t stamp_tx(struct ix_link *link, const struct ix_desc *descs, uint32_t n)
{
    struct ix_desc mine[BURST_MAX];
    n = n < BURST_MAX ? n : BURST_MAX;
    for (uint32_t i = 0; i < n; i++) {
        mine[i] = descs[i];
        if (mine[i].len >= FRAME_MIN && !plane.stamps.ring_out)
            ask_for_stamp(link, &mine[i]);
    }
    uint32_t taken = plane.inner->tx_burst(link, mine, n);
    for (uint32_t i = 0; i < taken; i++) {
        if (descs[i].len < FRAME_MIN || plane.stamps.ring_out)
            continue;
        plane.stamps.ring_out = ping_clock_ns();
        plane.stamps.chunk = descs[i].addr >> link->frame_shift;
    }
    return taken;
}

static void read_completion(const struct ix_link *link, uint64_t addr)
{
    struct stamps_seen *seen = &plane.ping->transmitted.seen;
    struct tx_metadata answer = {0};
    if (link->tx_metadata_bytes >= sizeof answer)
        memcpy(&answer, metadata_of(link, addr), sizeof answer);
    plane.stamps.completion = answer.tx_timestamp;
    plane.stamps.completed = true;
    if (!answer.tx_timestamp)
        return;
    seen->hardware |= plane.zerocopy;
    seen->completion |= !plane.zerocopy;
}

static uint32_t stamp_complete(struct ix_link *link, uint64_t *addrs, uint32_t max)
{
    uint32_t n = plane.inner->complete(link, addrs, max);
    for (uint32_t i = 0; i < n; i++) {
        bool ours = plane.stamps.ring_out && addrs[i] >> link->frame_shift == plane.stamps.chunk;
        if (!ours || plane.stamps.completed)
            continue;
        read_completion(link, addrs[i]);
        if (!plane.stamps.call_out)
            plane.stamps.call_out = ping_clock_ns();
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
    bool ours = what & IX_WAKE_TX && plane.stamps.ring_out && !plane.stamps.call_out;
    uint64_t before_ns = ours ? ping_clock_ns() : 0;
    int calls = plane.inner->wakeup(link, what);
    if (ours && calls > 0)
        plane.stamps.call_out = before_ns;
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
    if (!plane.inner)
        read_arrival(plane.app->io->umem + ((uint64_t)ev->frame << plane.app->io->frame_shift) +
                     RX_HEADROOM);
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

/* By the stamps that were chosen. */
static uint64_t arrived_ns(void)
{
    const struct stamps *s = &plane.stamps;
    bool hardware = plane.ping->received.source == STAMP_HARDWARE;
    return hardware ? device_clock_convert(&plane.ping->clock, s->device_in) : s->wire_in;
}

static uint64_t left_ns(void)
{
    const struct stamps *s = &plane.stamps;
    switch (plane.ping->transmitted.source) {
    case STAMP_HARDWARE:
        return device_clock_convert(&plane.ping->clock, s->completion);
    case STAMP_COMPLETION:
        return s->completion ? s->completion + (uint64_t)plane.tai_offset_ns : 0;
    default:
        return s->call_out;
    }
}

static void record(void)
{
    struct ping *p = plane.ping;
    const struct stamps *s = &plane.stamps;
    uint64_t wire_in = arrived_ns();
    if (!plane.inner) {
        ping_record(p, APP_TO_PEER_AND_BACK, s->app_out, wire_in);
        ping_record(p, WIRE_TO_APP, wire_in, s->app_in);
        ping_record(p, WHOLE, s->app_out, s->app_in);
        return;
    }
    uint64_t wire_out = left_ns();
    ping_record(p, APP_TO_RING, s->app_out, s->ring_out);
    ping_record(p, RING_TO_WIRE, s->ring_out, wire_out);
    ping_record(p, WIRE_AND_PEER, wire_out, wire_in);
    ping_record(p, WIRE_TO_CORE, wire_in, s->core_in);
    ping_record(p, CORE_TO_APP, s->core_in, s->app_in);
    ping_record(p, ROUND_TRIP, s->app_out, s->app_in);
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
        if (!p->opt.udp && !plane.over) /* what comes later would be taken for the next one's */
            fail("the server did not answer in time (cure: a longer --timeout)");
        return;
    }
    bool wanted = plane.inner && p->transmitted.source != STAMP_SOFTWARE;
    until_ns = ping_clock_ns() + COMPLETION_NS;
    while (wanted && !plane.stamps.completed && !plane.over && ping_clock_ns() < until_ns)
        turn();
    record();
}

/* The first datagrams may be lost while the neighbour's address is asked for. */
static void first_ping(void)
{
    struct ping *p = plane.ping;
    double timeout_s = p->opt.timeout_s;
    if (p->opt.udp)
        p->opt.timeout_s = timeout_s < FIRST_WAIT_S ? timeout_s : FIRST_WAIT_S;
    for (int tries = 0; !plane.over && tries < FIRST_TRIES; tries++) {
        ping_once();
        if (!plane.missing)
            break;
    }
    if (plane.missing && !plane.over)
        fail("no datagram came back (cure: an echo server for UDP there, --protocol tcp, or a NIC "
             "of one queue: ethtool -L)");
    p->opt.timeout_s = timeout_s;
    p->sent = p->lost = 0;
}

/* Says whose the stages' ends are. */
static void name_clocks(void)
{
    static const char *const left[] = {
        [STAMP_HARDWARE] = "software, core; hardware, NIC",
        [STAMP_COMPLETION] = "software, core; software, kernel's completion",
        [STAMP_SOFTWARE] = "software, system call begins"};
    struct ping *p = plane.ping;
    bool out = p->transmitted.source == STAMP_HARDWARE, in = p->received.source == STAMP_HARDWARE;
    if (!plane.inner && in) {
        ping_set_clock(p, APP_TO_PEER_AND_BACK, "software, application; hardware, NIC");
        ping_set_clock(p, WIRE_TO_APP, "hardware, NIC; software, application");
    }
    if (!plane.inner)
        return;
    ping_set_clock(p, RING_TO_WIRE, left[p->transmitted.source]);
    ping_set_clock(p, WIRE_AND_PEER,
                   out && in ? "hardware, NIC"
                   : out     ? "hardware, NIC; software, XDP"
                   : in      ? "software; hardware, NIC"
                             : "software");
    ping_set_clock(p, WIRE_TO_CORE, in ? "hardware, NIC; software, core" : "software, XDP");
}

static void begin(uint64_t now_ns)
{
    struct ping *p = plane.ping;
    if (!plane.inner)
        p->transmitted.seen.wanted = STAMP_SOFTWARE; /* no stage ends there */
    if (!ping_begin(p, now_ns))
        plane.over = true;
    else
        name_clocks();
}

static void run_pings(void)
{
    struct ping *p = plane.ping;
    first_ping();
    uint64_t measured_ns = ping_clock_ns() + (uint64_t)(p->opt.warmup_s * 1e9);
    uint64_t until_ns = measured_ns + (uint64_t)(p->opt.seconds * 1e9), error_ns;
    for (uint64_t now; !plane.over && (now = ping_clock_ns()) < until_ns;) {
        ping_compare_clock(p, now);
        plane.tai_offset_ns = clock_offset_ns(CLOCK_TAI, CLOCK_MONOTONIC, &error_ns);
        if (!p->begin_ns && now >= measured_ns)
            begin(now);
        if (!plane.over)
            ping_once();
        uint64_t next_ns = now + (uint64_t)(p->opt.interval_s * 1e9);
        while (!plane.over && ping_clock_ns() < next_ns)
            turn();
    }
}

static void add_stages(void)
{
    struct ping *p = plane.ping;
    if (!plane.inner) {
        ping_add_stage(p, "app to peer and back", "software, application; software, XDP");
        ping_add_stage(p, "wire to app", "software, XDP");
        ping_add_stage(p, "round trip", "software, application");
        return;
    }
    ping_add_stage(p, "app to ring", "software, core");
    ping_add_stage(p, "ring to wire", "software, system call begins");
    ping_add_stage(p, "wire and peer", "software");
    ping_add_stage(p, "wire to core", "software, XDP");
    ping_add_stage(p, "core to app", "software, core");
    ping_add_stage(p, "round trip", "software, core");
}

int ix_app_main(struct ix_app *app, int argc, char **argv)
{
    struct ping *p = calloc(1, sizeof *p);
    if (!p || !app->io->arena_frames) {
        fprintf(stderr, "ixping: needs memory and a send arena\n");
        free(p);
        return 1;
    }
    optind = 1;
    ping_parse(p, argc, argv);
    plane.app = app;
    plane.ping = p;
    struct ix_link *link = app->shard ? app->shard->link : NULL;
    p->received.seen.error = 1;
    p->transmitted.seen.error = !link || !link->tx_metadata_bytes;
    ping_open_clock(p, CLOCK_MONOTONIC);
    if (link) {
        plane.inner = link->ops;
        plane.zerocopy = IX_CONTAINER_OF(link, struct ix_xsk, link)->mode & IX_XSK_MODE_ZEROCOPY;
        link->ops = &stamping;
    }
    add_stages();
    open_up();
    run_pings();
    if (link)
        link->ops = plane.inner;
    ping_report(p);
    device_clock_close(&p->clock);
    int status = p->error[0] ? 1 : 0;
    free(p);
    return status;
}
