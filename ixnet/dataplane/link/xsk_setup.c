#include "link/xsk_setup.h"

#include <errno.h>
#include <net/if.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <linux/if_link.h>
#include <linux/if_xdp.h>
#include <xdp/libxdp.h>
#include <xdp/xsk.h>

#include "base/huge_hosted.h"
#include "link/xsk.h"
#include "link/xsk_meta_hosted.h"

/* Absent from the C library's or the kernel's headers of Debian 12. */
#ifndef SO_PREFER_BUSY_POLL
#define SO_PREFER_BUSY_POLL 69
#endif
#ifndef SO_BUSY_POLL_BUDGET
#define SO_BUSY_POLL_BUDGET 70
#endif
#ifndef SOL_XDP
#define SOL_XDP 283
#endif
#define MAX_TX_SKB_BUDGET     9  /* XDP_MAX_TX_SKB_BUDGET, since Linux 6.17 */
#define DEFAULT_TX_SKB_BUDGET 32 /* the kernel's TX_BATCH_SIZE */
#define WANTED_TX_SKB_BUDGET  256

/* In copy mode a frame is charged to the socket until the NIC sent it; the
 * default would stop at about 90 frames of 1,500 bytes. */
#define SEND_BUFFER_BYTES (8 << 20)

#define HUGE_BYTES (UINT64_C(2) << 20)
#define RETRY_STEP_MS 10

struct ix_xsk_socket {
    struct ix_xsk rings;
    struct xsk_umem *umem;
    struct xsk_socket *socket;
    /* What libxdp fills in; it keeps pointers to the first two. */
    struct xsk_ring_prod fill, tx;
    struct xsk_ring_cons completion, rx;
    void *place; /* as in the configuration */
    uint64_t place_bytes;
    int fd;
    int busy_poll_status;
    uint32_t tx_budget;
    uint32_t tx_metadata_bytes; /* not 0: made without libxdp */
};

__attribute__((format(printf, 4, 5))) static int fail(int errnum, char *err, size_t n,
                                                      const char *format, ...)
{
    va_list args;

    if (n) {
        va_start(args, format);
        vsnprintf(err, n, format, args);
        va_end(args);
    }
    return -errnum;
}

/* ---- UMEM memory --------------------------------------------------------------- */

static uint64_t round_up(uint64_t bytes, uint64_t to)
{
    return (bytes + to - 1) / to * to;
}

/* Shared memory at a 2 MiB boundary: without it the kernel can't map huge pages. */
static void *map_aligned(uint64_t bytes)
{
    uint8_t *room, *at;
    void *mem;

    room = mmap(NULL, bytes + HUGE_BYTES, PROT_NONE,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (room == MAP_FAILED)
        return MAP_FAILED;
    at = (uint8_t *)round_up((uintptr_t)room, HUGE_BYTES);
    mem = mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    if (mem == MAP_FAILED) {
        munmap(room, bytes + HUGE_BYTES);
        return MAP_FAILED;
    }
    if (at > room)
        munmap(room, at - room);
    munmap(at + bytes, room + HUGE_BYTES - at);
    return mem;
}

int ix_umem_alloc(uint64_t bytes, int huge_pages, void **mem, uint64_t *got_bytes, uint32_t *kind)
{
    const int hugetlb = MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE | MAP_HUGETLB |
                        (21 << MAP_HUGE_SHIFT);
    void *at;

    if (!bytes || bytes > UINT64_MAX / 2)
        return -EINVAL;
    bytes = round_up(bytes, HUGE_BYTES);
    *got_bytes = bytes;
    if (huge_pages) {
        at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, hugetlb, -1, 0);
        if (at != MAP_FAILED) {
            *mem = at;
            *kind = IX_UMEM_HUGETLB;
            return 0;
        }
    }
    at = map_aligned(bytes);
    if (at == MAP_FAILED)
        return -errno;
    *kind = huge_pages && ix_huge_collapse(at, bytes) ? IX_UMEM_THP : IX_UMEM_PAGES;
    /* Every page now, so that the first frames don't fault. */
    memset(at, 0, bytes);
    *mem = at;
    return 0;
}

void ix_umem_free(void *mem, uint64_t bytes)
{
    if (mem)
        munmap(mem, bytes);
}

/* ---- the kick ------------------------------------------------------------------- */

/* ctx is the descriptor itself, so it holds in a forked child too. */
static int kick_socket(void *ctx, uint32_t what)
{
    int fd = (int)(intptr_t)ctx;
    ssize_t n;

    if (what == IX_XSK_KICK_TX)
        n = sendto(fd, NULL, 0, MSG_DONTWAIT, NULL, 0);
    else
        n = recvfrom(fd, NULL, 0, MSG_DONTWAIT, NULL, NULL);
    return n < 0 ? -errno : 0;
}

/* ---- opening -------------------------------------------------------------------- */

static bool power_of_two(uint32_t n)
{
    return n && (n & (n - 1)) == 0;
}

static int check_config(const struct ix_xsk_config *c, char *err, size_t n)
{
    uint64_t frame_bytes = UINT64_C(1) << (c->frame_shift & 31);

    if (c->frame_shift != 11 && c->frame_shift != 12)
        return fail(EINVAL, err, n, "frames must be of 2048 or 4096 bytes");
    if (!c->umem || (uintptr_t)c->umem % 4096 || !c->umem_bytes || c->umem_bytes % frame_bytes)
        return fail(EINVAL, err, n, "UMEM must be page-aligned and a multiple of the frame size");
    if (!power_of_two(c->fill_entries) || !power_of_two(c->completion_entries) ||
        !power_of_two(c->rx_entries) || !power_of_two(c->tx_entries))
        return fail(EINVAL, err, n, "ring sizes must be powers of two");
    if (c->tx_metadata_bytes % 8 || c->tx_metadata_bytes >= 256)
        return fail(EINVAL, err, n, "TX metadata of %u bytes", c->tx_metadata_bytes);
    if (c->n_initial_fill > c->fill_entries)
        return fail(EINVAL, err, n, "%u frames do not fit a FILL ring of %u", c->n_initial_fill,
                    c->fill_entries);
    for (uint32_t i = 0; i < c->n_initial_fill; i++)
        if (c->initial_fill[i] > c->umem_bytes - frame_bytes)
            return fail(EINVAL, err, n, "initial frame %u lies outside the UMEM", i);
    return 0;
}

static void put_initial_fill(struct xsk_ring_prod *fill, const struct ix_xsk_config *c)
{
    uint32_t at;

    if (!c->n_initial_fill || !xsk_ring_prod__reserve(fill, c->n_initial_fill, &at))
        return;
    for (uint32_t i = 0; i < c->n_initial_fill; i++)
        *xsk_ring_prod__fill_addr(fill, at + i) = c->initial_fill[i];
    xsk_ring_prod__submit(fill, c->n_initial_fill);
}

static uint32_t bind_flags(const struct ix_xsk_config *c)
{
    return (c->flags & IX_XSK_OPEN_ZEROCOPY ? XDP_ZEROCOPY : XDP_COPY) |
           (c->flags & IX_XSK_OPEN_NO_NEED_WAKEUP ? 0 : XDP_USE_NEED_WAKEUP);
}

static int bind_failed(int e, const struct ix_xsk_config *c, const char *ifname, char *err,
                       size_t n)
{
    return fail(-e, err, n, "bind to queue %u of %s with %s: %s", c->queue, ifname,
                c->flags & IX_XSK_OPEN_ZEROCOPY ? "XDP_ZEROCOPY" : "XDP_COPY", strerror(-e));
}

static struct ix_xsk_views views_of(struct ix_xsk_socket *s)
{
    return (struct ix_xsk_views){&s->fill, &s->tx, &s->completion, &s->rx};
}

static int open_with_metadata(struct ix_xsk_socket *s, const struct ix_xsk_config *c,
                              const char *ifname, char *err, size_t n)
{
    const struct ix_xsk_views rings = views_of(s);
    int e;

    s->fd = ix_xsk_meta_open(c, &rings);
    if (s->fd < 0)
        return fail(-s->fd, err, n, "register UMEM with TX metadata: %s", strerror(-s->fd));
    put_initial_fill(&s->fill, c);
    e = ix_xsk_meta_bind(s->fd, c, bind_flags(c));
    if (e) {
        ix_xsk_meta_close(s->fd, &rings);
        return bind_failed(e, c, ifname, err, n);
    }
    s->tx_metadata_bytes = c->tx_metadata_bytes;
    return 0;
}

/* One attempt: UMEM, FILL, socket, bind, in this order. */
static int open_once(struct ix_xsk_socket *s, const struct ix_xsk_config *c, const char *ifname,
                     char *err, size_t n)
{
    const struct xsk_umem_config umem_config = {
        .fill_size = c->fill_entries,
        .comp_size = c->completion_entries,
        .frame_size = 1u << c->frame_shift,
        .frame_headroom = c->headroom,
    };
    const struct xsk_socket_config socket_config = {
        .rx_size = c->rx_entries,
        .tx_size = c->tx_entries,
        .libxdp_flags = XSK_LIBXDP_FLAGS__INHIBIT_PROG_LOAD,
        .bind_flags = (uint16_t)bind_flags(c),
    };
    int e;

    e = xsk_umem__create(&s->umem, c->umem, c->umem_bytes, &s->fill, &s->completion, &umem_config);
    if (e)
        return fail(-e, err, n, "register UMEM of %llu bytes: %s",
                    (unsigned long long)c->umem_bytes, strerror(-e));
    put_initial_fill(&s->fill, c);
    e = xsk_socket__create(&s->socket, ifname, c->queue, s->umem, &s->rx, &s->tx, &socket_config);
    if (e) {
        xsk_umem__delete(s->umem);
        return bind_failed(e, c, ifname, err, n);
    }
    s->fd = xsk_socket__fd(s->socket);
    return 0;
}

/* ---- rings at a chosen place ------------------------------------------------------- */

#define PAGE_BYTES UINT64_C(4096)
#define MOST_BEFORE_ENTRIES PAGE_BYTES /* producer, consumer, flags: before a ring's entries */

static uint64_t struct_bytes(void)
{
    return round_up(sizeof(struct ix_xsk_socket), PAGE_BYTES);
}

static uint64_t ring_bytes(uint64_t before, uint64_t entries, uint64_t entry_bytes)
{
    return round_up(before + entries * entry_bytes, PAGE_BYTES);
}

uint64_t ix_xsk_place_bytes(const struct ix_xsk_config *c)
{
    return struct_bytes() +
           ring_bytes(MOST_BEFORE_ENTRIES, c->fill_entries, sizeof(uint64_t)) +
           ring_bytes(MOST_BEFORE_ENTRIES, c->completion_entries, sizeof(uint64_t)) +
           ring_bytes(MOST_BEFORE_ENTRIES, c->rx_entries, sizeof(struct xdp_desc)) +
           ring_bytes(MOST_BEFORE_ENTRIES, c->tx_entries, sizeof(struct xdp_desc));
}

/* One of libxdp's rings: its fields have the same names whichever side it is. libxdp unmaps by
 * what stands there, so a moved ring is unmapped where it is. */
#define MOVE_RING(r, offsets, entry_bytes, to)                                                   \
    do {                                                                                         \
        uint8_t *from = (uint8_t *)(r)->ring - (offsets)->desc;                                  \
        uint64_t bytes = (offsets)->desc + (uint64_t)(r)->size * (entry_bytes);                  \
        if ((offsets)->desc > MOST_BEFORE_ENTRIES ||                                             \
            mremap(from, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, to) == MAP_FAILED)         \
            return -errno;                                                                       \
        (r)->ring = (to) + (offsets)->desc;                                                      \
        (r)->producer = (void *)((to) + (offsets)->producer);                                    \
        (r)->consumer = (void *)((to) + (offsets)->consumer);                                    \
        (r)->flags = (void *)((to) + (offsets)->flags);                                          \
        (to) += ring_bytes(0, bytes, 1);                                                         \
    } while (0)

static int move_rings(struct ix_xsk_socket *s)
{
    struct xdp_mmap_offsets offsets;
    socklen_t n = sizeof offsets;
    uint8_t *to = (uint8_t *)s->place + struct_bytes();

    if (getsockopt(s->fd, SOL_XDP, XDP_MMAP_OFFSETS, &offsets, &n))
        return -errno;
    MOVE_RING(&s->fill, &offsets.fr, sizeof(uint64_t), to);
    MOVE_RING(&s->completion, &offsets.cr, sizeof(uint64_t), to);
    MOVE_RING(&s->rx, &offsets.rx, sizeof(struct xdp_desc), to);
    MOVE_RING(&s->tx, &offsets.tx, sizeof(struct xdp_desc), to);
    return 0;
}

static struct ix_xsk_socket *map_struct(const struct ix_xsk_config *c)
{
    int fixed = c->place ? MAP_FIXED : 0;

    return mmap(c->place, struct_bytes(), PROT_READ | PROT_WRITE,
                MAP_SHARED | MAP_ANONYMOUS | fixed, -1, 0);
}

static void unmap_struct(struct ix_xsk_socket *s, void *place, uint64_t place_bytes)
{
    if (place)
        mmap(place, place_bytes, PROT_NONE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    else
        munmap(s, struct_bytes());
}

static void delete_socket(struct ix_xsk_socket *s)
{
    const struct ix_xsk_views rings = views_of(s);

    if (s->tx_metadata_bytes) {
        ix_xsk_meta_close(s->fd, &rings);
        return;
    }
    xsk_socket__delete(s->socket);
    xsk_umem__delete(s->umem);
}

/* SO_PREFER_BUSY_POLL makes the kernel take a busy poll for the wakeup of TX too
 * (xsk_no_wakeup in net/xdp/xsk.c). What is polled is the NAPI context that receives:
 * a driver that sends in another one, as virtio-net and igb with few queues do,
 * would never send. So with zero-copy it is left out, and our kicks both poll and
 * wake. In copy mode sending needs no driver's context. */
static int set_busy_poll(int fd, const struct ix_xsk_config *c)
{
    bool prefer = !(c->flags & IX_XSK_OPEN_ZEROCOPY);
    int on = 1, us = (int)c->busy_poll_us, budget = (int)c->busy_poll_budget;

    if (!us)
        return -ENODATA;
    if (prefer && setsockopt(fd, SOL_SOCKET, SO_PREFER_BUSY_POLL, &on, sizeof on))
        return -errno;
    if (setsockopt(fd, SOL_SOCKET, SO_BUSY_POLL, &us, sizeof us))
        return -errno;
    if (budget && setsockopt(fd, SOL_SOCKET, SO_BUSY_POLL_BUDGET, &budget, sizeof budget))
        return -errno;
    return 0;
}

/* Things that make copy mode faster where the kernel has them; none is needed. */
static void set_tx_limits(struct ix_xsk_socket *s, const struct ix_xsk_config *c)
{
    int bytes = SEND_BUFFER_BYTES;
    int budget = IX_MIN(WANTED_TX_SKB_BUDGET, (int)c->tx_entries);

    setsockopt(s->fd, SOL_SOCKET, SO_SNDBUFFORCE, &bytes, sizeof bytes);
    s->tx_budget = DEFAULT_TX_SKB_BUDGET;
    if (budget > DEFAULT_TX_SKB_BUDGET &&
        !setsockopt(s->fd, SOL_XDP, MAX_TX_SKB_BUDGET, &budget, sizeof budget))
        s->tx_budget = (uint32_t)budget;
}

static void copy_prod(struct ix_xsk_ring *to, const struct xsk_ring_prod *from)
{
    *to = (struct ix_xsk_ring){from->producer, from->consumer, from->flags, from->ring, from->mask,
                               0, 0};
}

static void copy_cons(struct ix_xsk_ring *to, const struct xsk_ring_cons *from)
{
    *to = (struct ix_xsk_ring){from->producer, from->consumer, from->flags, from->ring, from->mask,
                               0, 0};
}

static void init_rings(struct ix_xsk_socket *s, const struct ix_xsk_config *c)
{
    struct ix_xsk *x = &s->rings;

    copy_cons(&x->rx, &s->rx);
    copy_prod(&x->tx, &s->tx);
    copy_prod(&x->fill, &s->fill);
    copy_cons(&x->completion, &s->completion);
    x->link.umem = c->umem;
    x->link.umem_bytes = c->umem_bytes;
    x->link.frame_shift = c->frame_shift;
    x->link.rx_headroom = XDP_PACKET_HEADROOM + c->headroom;
    x->link.tx_metadata_bytes = s->tx_metadata_bytes;
    x->kick = kick_socket;
    x->kick_ctx = (void *)(intptr_t)s->fd;
    x->mode = 0;
    if (ix_xsk_is_zerocopy(s) > 0)
        x->mode |= IX_XSK_MODE_ZEROCOPY;
    if (!(c->flags & IX_XSK_OPEN_NO_NEED_WAKEUP))
        x->mode |= IX_XSK_MODE_NEED_WAKEUP;
    if (s->busy_poll_status == 0)
        x->mode |= IX_XSK_MODE_BUSY_POLL;
    ix_xsk_init(x);
}

int ix_xsk_open(const struct ix_xsk_config *config, struct ix_xsk_socket **out, char *err,
                size_t err_bytes)
{
    struct ix_xsk_socket *s;
    char ifname[IF_NAMESIZE];
    int e;

    *out = NULL;
    fail(0, err, err_bytes, "%s", "");
    e = check_config(config, err, err_bytes);
    if (e)
        return e;
    if (!if_indextoname(config->ifindex, ifname))
        return fail(ENODEV, err, err_bytes, "no interface with index %u", config->ifindex);
    s = map_struct(config);
    if (s == MAP_FAILED)
        return fail(ENOMEM, err, err_bytes, "no memory");
    /* Its warnings would go to stderr; what failed is told by our own text. */
    libxdp_set_print(NULL);
    /* The kernel frees a queue a moment after its socket is closed, even when
     * the owner was killed. */
    for (uint32_t waited_ms = 0;; waited_ms += RETRY_STEP_MS) {
        e = config->tx_metadata_bytes ? open_with_metadata(s, config, ifname, err, err_bytes)
                                      : -EINVAL;
        if (e == -EINVAL)
            e = open_once(s, config, ifname, err, err_bytes);
        if (e != -EBUSY || waited_ms >= config->retry_ms)
            break;
        nanosleep(&(struct timespec){.tv_nsec = RETRY_STEP_MS * 1000000L}, NULL);
    }
    s->place = config->place;
    s->place_bytes = config->place ? ix_xsk_place_bytes(config) : 0;
    if (!e && s->place && (e = move_rings(s))) {
        fail(-e, err, err_bytes, "move rings: %s", strerror(-e));
        delete_socket(s);
    }
    if (e) {
        unmap_struct(s, s->place, s->place_bytes);
        return e;
    }
    s->busy_poll_status = set_busy_poll(s->fd, config);
    set_tx_limits(s, config);
    init_rings(s, config);
    fail(0, err, err_bytes, "%s", "");
    *out = s;
    return 0;
}

void ix_xsk_close(struct ix_xsk_socket *socket)
{
    if (!socket)
        return;
    delete_socket(socket);
    unmap_struct(socket, socket->place, socket->place_bytes);
}

/* ---- questions ------------------------------------------------------------------- */

int ix_xsk_fd(const struct ix_xsk_socket *socket)
{
    return socket->fd;
}

struct ix_link *ix_xsk_link(struct ix_xsk_socket *socket)
{
    return &socket->rings.link;
}

struct ix_xsk *ix_xsk_rings(struct ix_xsk_socket *socket)
{
    return &socket->rings;
}

int ix_xsk_is_zerocopy(const struct ix_xsk_socket *socket)
{
    struct xdp_options options = {0};
    socklen_t n = sizeof options;

    if (getsockopt(socket->fd, SOL_XDP, XDP_OPTIONS, &options, &n))
        return -errno;
    return options.flags & XDP_OPTIONS_ZEROCOPY ? 1 : 0;
}

int ix_xsk_busy_poll_status(const struct ix_xsk_socket *socket)
{
    return socket->busy_poll_status;
}

uint32_t ix_xsk_tx_budget(const struct ix_xsk_socket *socket)
{
    return socket->tx_budget;
}

uint32_t ix_xsk_tx_metadata_bytes(const struct ix_xsk_socket *socket)
{
    return socket->tx_metadata_bytes;
}

int ix_xsk_kernel_stats(const struct ix_xsk_socket *socket, struct ix_xsk_kernel_stats *out)
{
    struct xdp_statistics got = {0};
    socklen_t n = sizeof got;

    if (getsockopt(socket->fd, SOL_XDP, XDP_STATISTICS, &got, &n))
        return -errno;
    *out = (struct ix_xsk_kernel_stats){
        .rx_dropped = got.rx_dropped,
        .rx_invalid_descs = got.rx_invalid_descs,
        .tx_invalid_descs = got.tx_invalid_descs,
        .rx_ring_full = got.rx_ring_full,
        .rx_fill_ring_empty_descs = got.rx_fill_ring_empty_descs,
        .tx_ring_empty_descs = got.tx_ring_empty_descs,
    };
    return 0;
}

#define N_STATS (sizeof(struct ix_xsk_stats) / sizeof(uint64_t))

uint32_t ix_xsk_stats(const struct ix_xsk_socket *socket, uint64_t *values, uint32_t n)
{
    const struct ix_xsk_stats *stats = &socket->rings.stats;

    memcpy(values, stats, IX_MIN((size_t)n, N_STATS) * sizeof *values);
    return N_STATS;
}

const char *ix_xsk_stat_name(uint32_t i)
{
    static const char *const names[N_STATS] = {
        "kicks_tx",  "kicks_rx",    "kicks_leftover", "kick_again",
        "kick_busy", "kick_nobufs", "kick_intr",      "tx_full",
        "express_calls", "express_frames", "express_errors", "express_refused",
    };

    return i < N_STATS ? names[i] : NULL;
}
