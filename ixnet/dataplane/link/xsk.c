#include "link/xsk.h"

/* A lagging TX ring or a raised FILL flag is kicked at once when there is news,
 * and else only every so many wakeups: the kernel may be at it on another core,
 * and some drivers leave the flag raised all the time. */
#define REKICK_EVERY 16u

/* What kick() may say besides the errors of base/types.h; Linux's values. */
enum { XSK_EINTR = 4, XSK_EBUSY = 16 };

#define NEED_WAKEUP 1u /* XDP_RING_NEED_WAKEUP */

static struct ix_xsk *xsk_of(struct ix_link *link)
{
    return IX_CONTAINER_OF(link, struct ix_xsk, link);
}

/* ---- ring indices ---------------------------------------------------------- */

/* Acquire, to pair with the kernel's release of the producer index: whoever sees
 * the index sees the entries below it. */
static uint32_t ring_avail(struct ix_xsk_ring *r, uint32_t max)
{
    uint32_t n = r->cached_prod - r->cached_cons;

    if (n == 0) {
        r->cached_prod = __atomic_load_n(r->producer, __ATOMIC_ACQUIRE);
        n = r->cached_prod - r->cached_cons;
    }
    return IX_MIN(n, max);
}

/* Release: the kernel may overwrite these entries as soon as it sees the index,
 * so our reads of them must be done by then. */
static void ring_consumed(struct ix_xsk_ring *r, uint32_t n)
{
    r->cached_cons += n;
    __atomic_store_n(r->consumer, r->cached_cons, __ATOMIC_RELEASE);
}

/* Acquire, to pair with the kernel's release of the consumer index: it has read
 * the entries below it, and we may overwrite them. */
static uint32_t ring_room(struct ix_xsk_ring *r, uint32_t want)
{
    uint32_t size = r->mask + 1;
    uint32_t room = size - (r->cached_prod - r->cached_cons);

    if (room < want) {
        r->cached_cons = __atomic_load_n(r->consumer, __ATOMIC_ACQUIRE);
        room = size - (r->cached_prod - r->cached_cons);
    }
    return room;
}

/* Release: the entries, and the frames that they point to, must be visible to
 * the kernel before the index that covers them. */
static void ring_produced(struct ix_xsk_ring *r, uint32_t n)
{
    r->cached_prod += n;
    __atomic_store_n(r->producer, r->cached_prod, __ATOMIC_RELEASE);
}

/* Relaxed, and with no full barrier between our index and this flag: the kernel
 * may raise it just after we looked. The next wakeup sees it, and there is one
 * every cycle; before it sleeps, a caller goes through poll(), which kicks too. */
static bool wants_wakeup(const struct ix_xsk_ring *r)
{
    return __atomic_load_n(r->flags, __ATOMIC_RELAXED) & NEED_WAKEUP;
}

/* ---- the operations --------------------------------------------------------- */

static uint32_t xsk_rx_burst(struct ix_link *link, struct ix_desc *out, uint32_t max)
{
    struct ix_xsk_ring *r = &xsk_of(link)->rx;
    const struct ix_desc *ring = r->entries;
    uint32_t n = ring_avail(r, max);

    for (uint32_t i = 0; i < n; i++) {
        out[i] = ring[(r->cached_cons + i) & r->mask];
        /* The kernel's options say nothing that this stack uses. */
        out[i].flags = 0;
        __builtin_prefetch(link->umem + out[i].addr);
    }
    if (n)
        ring_consumed(r, n);
    return n;
}

/* TX must be empty: what is on it was to go first. Returns how many frames were sent. */
static IX_NOINLINE uint32_t tx_express(struct ix_xsk *x, const struct ix_desc *descs, uint32_t n)
{
    uint32_t room = IX_XSK_EXPRESS_FRAMES - x->n_express_done;

    if (!room || __atomic_load_n(x->tx.consumer, __ATOMIC_RELAXED) != x->tx.cached_prod)
        return 0;
    int sent = x->express(x, descs, IX_MIN(n, room));

    x->express_waits++;
    if (sent <= 0) {
        x->stats.express_errors++;
        return 0;
    }
    for (int i = 0; i < sent; i++)
        x->express_done[x->n_express_done++] = descs[i].addr;
    x->stats.express_calls++;
    x->stats.express_frames += (uint32_t)sent;
    return (uint32_t)sent;
}

static uint32_t tx_ring_burst(struct ix_xsk *x, const struct ix_desc *descs, uint32_t n)
{
    struct ix_xsk_ring *r = &x->tx;
    struct ix_desc *ring = r->entries;
    uint32_t room = ring_room(r, n);

    if (room < n) {
        n = room;
        x->stats.tx_full++;
    }
    for (uint32_t i = 0; i < n; i++) {
        struct ix_desc *d = &ring[(r->cached_prod + i) & r->mask];

        *d = descs[i];
    }
    if (n)
        ring_produced(r, n);
    return n;
}

static uint32_t xsk_tx_burst(struct ix_link *link, const struct ix_desc *descs, uint32_t n)
{
    struct ix_xsk *x = xsk_of(link);
    uint32_t sent = 0;

    if (x->express && n >= __atomic_load_n(&x->express_from, __ATOMIC_RELAXED))
        sent = tx_express(x, descs, n);
    return sent == n ? n : sent + tx_ring_burst(x, descs + sent, n - sent);
}

static uint32_t xsk_complete(struct ix_link *link, uint64_t *addrs, uint32_t max)
{
    struct ix_xsk *x = xsk_of(link);
    struct ix_xsk_ring *r = &x->completion;
    const uint64_t *ring = r->entries;

    if (x->n_express_done) {
        uint32_t done = IX_MIN(x->n_express_done, max);

        for (uint32_t i = 0; i < done; i++)
            addrs[i] = x->express_done[--x->n_express_done];
        return done;
    }
    uint32_t n = ring_avail(r, max);

    for (uint32_t i = 0; i < n; i++)
        addrs[i] = ring[(r->cached_cons + i) & r->mask];
    if (n)
        ring_consumed(r, n);
    return n;
}

static uint32_t xsk_fill(struct ix_link *link, const uint64_t *addrs, uint32_t n)
{
    struct ix_xsk_ring *r = &xsk_of(link)->fill;
    uint64_t *ring = r->entries;
    uint32_t room = ring_room(r, n);

    n = IX_MIN(n, room);
    for (uint32_t i = 0; i < n; i++)
        ring[(r->cached_prod + i) & r->mask] = addrs[i];
    if (n)
        ring_produced(r, n);
    return n;
}

static uint32_t xsk_fill_room(struct ix_link *link)
{
    struct ix_xsk_ring *r = &xsk_of(link)->fill;

    return ring_room(r, r->mask + 1);
}

/* ---- wakeup ------------------------------------------------------------------ */

/* Whether TX needs a kick. In copy mode nothing moves without one, a kick sends a
 * bounded number of frames (32, or XDP_MAX_TX_SKB_BUDGET), and the rest waits for
 * the next: so a lag of the consumer is reason enough, news or not. With
 * zero-copy the NIC lags by nature and the flag says when it went to sleep. */
static bool tx_needs_kick(struct ix_xsk *x, uint32_t what)
{
    bool news = what & IX_WAKE_TX;

    if (__atomic_load_n(x->tx.consumer, __ATOMIC_RELAXED) == x->tx.cached_prod) {
        x->tx_waited = 0;
        return false;
    }
    if (!(x->mode & IX_XSK_MODE_BUSY_POLL) && (x->mode & IX_XSK_MODE_NEED_WAKEUP) &&
        !wants_wakeup(&x->tx))
        return false;
    /* When busy polling, RX's kick polls the NIC meanwhile. */
    if ((x->mode & IX_XSK_MODE_ZEROCOPY) && !news && ++x->tx_waited < REKICK_EVERY)
        return false;
    x->tx_waited = 0;
    if (!news)
        x->stats.kicks_leftover++;
    return true;
}

/* Whether RX needs one: always when busy polling, as the NIC is looked at only
 * inside our calls; else when the driver ran out of FILL and says so. */
static bool rx_needs_kick(struct ix_xsk *x, uint32_t what)
{
    if (!(what & IX_WAKE_RX))
        return false;
    if (x->mode & IX_XSK_MODE_BUSY_POLL)
        return true;
    if (!(x->mode & IX_XSK_MODE_NEED_WAKEUP) || !wants_wakeup(&x->fill)) {
        x->rx_waited = 0;
        return false;
    }
    return x->rx_waited++ % REKICK_EVERY == 0;
}

/* Sorts a kick's error into tolerated (0) and reported (-errno). The tolerated
 * ones leave work on TX, which the next wakeup finds by the consumer's lag. */
static int after_kick(struct ix_xsk *x, int err)
{
    switch (-err) {
    case 0:
        return 0;
    case IX_EAGAIN:
        x->stats.kick_again++;
        return 0;
    case XSK_EBUSY:
        x->stats.kick_busy++;
        return 0;
    case IX_ENOBUFS:
        x->stats.kick_nobufs++;
        return 0;
    case XSK_EINTR:
        x->stats.kick_intr++;
        return 0;
    default:
        return err;
    }
}

static int xsk_wakeup(struct ix_link *link, uint32_t what)
{
    struct ix_xsk *x = xsk_of(link);
    uint32_t kick;
    int err;

    /* One call at most. A kick for TX serves RX as well: when busy polling the
     * kernel polls the NIC in either, and otherwise RX can wait for a cycle. */
    if (tx_needs_kick(x, what)) {
        kick = IX_XSK_KICK_TX;
        x->stats.kicks_tx++;
    } else if (rx_needs_kick(x, what)) {
        kick = IX_XSK_KICK_RX;
        x->stats.kicks_rx++;
    } else {
        kick = 0;
    }
    uint32_t calls = x->express_waits + !!kick;
    x->express_waits = 0;
    err = kick ? after_kick(x, x->kick(x->kick_ctx, kick)) : 0;
    return err ? err : (int)calls;
}

/* ---- creation ----------------------------------------------------------------- */

static const struct ix_link_ops xsk_ops = {
    .rx_burst = xsk_rx_burst,
    .tx_burst = xsk_tx_burst,
    .complete = xsk_complete,
    .fill = xsk_fill,
    .fill_room = xsk_fill_room,
    .wakeup = xsk_wakeup,
};

static void take_indices(struct ix_xsk_ring *r)
{
    r->cached_prod = __atomic_load_n(r->producer, __ATOMIC_ACQUIRE);
    r->cached_cons = __atomic_load_n(r->consumer, __ATOMIC_ACQUIRE);
}

void ix_xsk_init(struct ix_xsk *x)
{
    x->link.ops = &xsk_ops;
    take_indices(&x->rx);
    take_indices(&x->tx);
    take_indices(&x->fill);
    take_indices(&x->completion);
    x->link.fill_entries = x->fill.mask + 1;
    x->tx_waited = 0;
    x->rx_waited = 0;
    x->express = NULL;
    x->express_from = UINT32_MAX;
    x->express_waits = x->n_express_done = 0;
    x->stats = (struct ix_xsk_stats){0};
    IX_ASSERT(!ix_xsk_check(x));
}

static bool ring_is_sound(const struct ix_xsk_ring *r)
{
    return (r->mask & (r->mask + 1)) == 0 && r->cached_prod - r->cached_cons <= r->mask + 1;
}

const char *ix_xsk_check(const struct ix_xsk *x)
{
    if (!ring_is_sound(&x->rx))
        return "RX indices";
    if (!ring_is_sound(&x->tx))
        return "TX indices";
    if (!ring_is_sound(&x->fill))
        return "FILL indices";
    if (!ring_is_sound(&x->completion))
        return "COMPLETION indices";
    if (x->n_express_done > IX_XSK_EXPRESS_FRAMES)
        return "frames sent by express";
    return x->link.ops == &xsk_ops ? NULL : "operations";
}

IX_STATIC_ASSERT(sizeof(struct ix_desc) == 16, "it lies on the rings as struct xdp_desc");
IX_STATIC_ASSERT(offsetof(struct ix_desc, addr) == 0 && offsetof(struct ix_desc, len) == 8 &&
                     offsetof(struct ix_desc, flags) == 12,
                 "the fields lie as struct xdp_desc has them");
