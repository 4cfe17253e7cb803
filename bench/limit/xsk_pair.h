/* One AF_XDP socket with nothing on top: what reflect.c and pingpong.c have in common.
 *
 * The smallest XDP program there is redirects every frame of the queue to the socket. It is
 * attached with a bpf_link, so that it goes with the process, however that ends. With --express it
 * is one that also sends, as ixnet's does (xdp/express_bpf.h; a veth with one queue at each end).
 */
#ifndef IX_BENCH_LIMIT_XSK_PAIR_H
#define IX_BENCH_LIMIT_XSK_PAIR_H

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <getopt.h>
#include <linux/bpf.h>
#include <linux/if_link.h>
#include <linux/if_xdp.h>
#include <net/if.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#include <xdp/xsk.h>

#include "express.h"
#include "link/link.h"

#ifndef SO_PREFER_BUSY_POLL
#define SO_PREFER_BUSY_POLL 69
#endif
#ifndef SO_BUSY_POLL_BUDGET
#define SO_BUSY_POLL_BUDGET 70
#endif
#ifndef SO_INCOMING_NAPI_ID
#define SO_INCOMING_NAPI_ID 56
#endif
#ifndef SOL_XDP
#define SOL_XDP 283
#endif

#define FRAME_BYTES  4096u
#define RING_FRAMES  2048u
#define FRAMES       (2 * RING_FRAMES) /* the first half to receive into, the second to send from */
#define BATCH        64u
#define BIND_TRIES   200 /* 10 ms apart */
#define EXPRESS_FROM 16u /* frames at once: FROM_FRAMES of ixnet/control/express.py */

/* Twice the frames that circulate: the kernel shows a frame on RX before it shows the slot of FILL
 * that the frame came from as free, so that a ring of just their number looks full at times. */
#define FILL_SLOTS (2 * RING_FRAMES)

struct pair_options {
    const char *interface;
    uint32_t queue;
    bool busy_poll;  /* preferred busy polling: the socket's own system calls run the NIC's poll */
    bool zero_copy;  /* else copy */
    bool generic;    /* else native XDP */
    const char *express; /* object of the program that also sends (redirect.bpf.c); NULL: none */
    uint32_t budget; /* frames a busy poll may take */
};

struct xsk_pair {
    struct pair_options opt;
    int fd;
    int map_fd, prog_fd, link_fd;
    uint8_t *memory;
    struct xsk_umem *umem;
    struct xsk_socket *socket;
    struct xsk_ring_prod fill, tx;
    struct xsk_ring_cons completion, rx;
    struct bpf_object *object;    /* NULL: the program is load_redirect()'s */
    struct ix_express *express;   /* NULL: all frames go by the TX ring */
    uint64_t express_done[BATCH]; /* UMEM addresses of frames that went by it */
    uint32_t n_express_done;
    uint64_t express_calls, express_frames, express_errors;
    bool tx_waiting; /* the kernel left frames on the TX ring */
    bool heard;      /* something was received */
    int napi_id;     /* of the poll that the socket can drive; 0: none, or nothing received yet */
    uint64_t syscalls;
};

static volatile sig_atomic_t stop_requested;

static void on_signal(int signum)
{
    (void)signum;
    stop_requested = 1;
}

__attribute__((noreturn, format(printf, 2, 3))) static void die(int status, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fprintf(stderr, "%s: ", program_invocation_short_name);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    exit(status);
}

static inline uint64_t clock_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

/* return bpf_redirect_map(&sockets, ctx->rx_queue_index, XDP_PASS) */
static int load_redirect(int map_fd)
{
    struct bpf_insn insns[] = {
        {.code = BPF_LDX | BPF_MEM | BPF_W,
         .dst_reg = BPF_REG_2,
         .src_reg = BPF_REG_1,
         .off = offsetof(struct xdp_md, rx_queue_index)},
        {.code = BPF_LD | BPF_DW | BPF_IMM,
         .dst_reg = BPF_REG_1,
         .src_reg = BPF_PSEUDO_MAP_FD,
         .imm = map_fd},
        {0}, /* the upper half of the 64-bit load */
        {.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = BPF_REG_3, .imm = XDP_PASS},
        {.code = BPF_JMP | BPF_CALL, .imm = BPF_FUNC_redirect_map},
        {.code = BPF_JMP | BPF_EXIT},
    };
    return bpf_prog_load(BPF_PROG_TYPE_XDP, "limit_redirect", "GPL", insns,
                         sizeof insns / sizeof insns[0], NULL);
}

static void load_program(struct xsk_pair *p)
{
    p->map_fd = bpf_map_create(BPF_MAP_TYPE_XSKMAP, "limit_sockets", 4, 4, 64, NULL);
    if (p->map_fd < 0)
        die(1, "can't make an XSKMAP: %s (needs root)", strerror(errno));
    p->prog_fd = load_redirect(p->map_fd);
    if (p->prog_fd < 0)
        die(1, "can't load the XDP program: %s", strerror(errno));
}

static void load_express(struct xsk_pair *p, int ifindex)
{
    const char *path = p->opt.express;
    p->object = bpf_object__open_file(path, NULL);
    if (!p->object)
        die(1, "can't open %s: %s", path, strerror(errno));
    struct bpf_program *program = bpf_object__find_program_by_name(p->object, "limit_redirect");
    if (!program)
        die(1, "%s has no program limit_redirect", path);
    int error = bpf_object__load(p->object);
    if (error)
        die(1, "can't load %s: %s (needs root)", path, strerror(-error));
    p->prog_fd = bpf_program__fd(program);
    p->map_fd = bpf_object__find_map_fd_by_name(p->object, "limit_sockets");
    error = ix_express_open_program(
        p->prog_fd, bpf_object__find_map_fd_by_name(p->object, "express"),
        bpf_object__find_map_fd_by_name(p->object, "express_out"), (uint32_t)ifindex, &p->express);
    if (error)
        die(1, "can't send by %s: %s", path, strerror(-error));
}

static void attach_program(struct xsk_pair *p, int ifindex)
{
    if (p->opt.express)
        load_express(p, ifindex);
    else
        load_program(p);
    LIBBPF_OPTS(bpf_link_create_opts, how,
                .flags = p->opt.generic ? XDP_FLAGS_SKB_MODE : XDP_FLAGS_DRV_MODE);
    p->link_fd = bpf_link_create(p->prog_fd, ifindex, BPF_XDP, &how);
    if (p->link_fd < 0)
        die(1, "can't attach to %s in %s mode: %s%s", p->opt.interface,
            p->opt.generic ? "generic" : "native", strerror(errno),
            errno == EBUSY ? " (another XDP program is attached)" : "");
    uint32_t key = p->opt.queue;
    if (bpf_map_update_elem(p->map_fd, &key, &p->fd, 0) < 0)
        die(1, "can't enter the socket for queue %u: %s", key, strerror(errno));
}

static void set_busy_poll(const struct xsk_pair *p)
{
    int one = 1, us = 20, budget = (int)p->opt.budget;
    if (setsockopt(p->fd, SOL_SOCKET, SO_PREFER_BUSY_POLL, &one, sizeof one) < 0 ||
        setsockopt(p->fd, SOL_SOCKET, SO_BUSY_POLL, &us, sizeof us) < 0 ||
        setsockopt(p->fd, SOL_SOCKET, SO_BUSY_POLL_BUDGET, &budget, sizeof budget) < 0)
        die(1, "no busy polling: %s (Linux 5.11 or newer has it)", strerror(errno));
}

/* Registers the frames and binds to the queue. Returns 0 or -errno. */
static int xsk_pair_bind(struct xsk_pair *p)
{
    const struct pair_options *o = &p->opt;
    struct xsk_umem_config umem = {
        .fill_size = FILL_SLOTS, .comp_size = RING_FRAMES, .frame_size = FRAME_BYTES};
    int error = xsk_umem__create(&p->umem, p->memory, (uint64_t)FRAMES * FRAME_BYTES, &p->fill,
                                 &p->completion, &umem);
    if (error)
        die(1, "can't register frames: %s (needs root)", strerror(-error));
    struct xsk_socket_config config = {.rx_size = RING_FRAMES,
                                       .tx_size = RING_FRAMES,
                                       .libxdp_flags = XSK_LIBXDP_FLAGS__INHIBIT_PROG_LOAD,
                                       .bind_flags = (o->zero_copy ? XDP_ZEROCOPY : XDP_COPY) |
                                                     XDP_USE_NEED_WAKEUP};
    error =
        xsk_socket__create(&p->socket, o->interface, o->queue, p->umem, &p->rx, &p->tx, &config);
    if (error)
        xsk_umem__delete(p->umem);
    return error;
}

/* Takes what is needed, and ends the program with the reason if it can't be had. */
static void xsk_pair_open(struct xsk_pair *p)
{
    const struct pair_options *o = &p->opt;
    int ifindex = (int)if_nametoindex(o->interface);
    if (!ifindex)
        die(1, "no interface %s here", o->interface);
    p->memory = mmap(NULL, (size_t)FRAMES * FRAME_BYTES, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (p->memory == MAP_FAILED)
        die(1, "no memory for %u frames", FRAMES);
    /* The kernel lets go of a queue some time after its owner ended. */
    int error = xsk_pair_bind(p);
    for (int tries = 0; error == -EBUSY && tries < BIND_TRIES && !stop_requested; tries++) {
        usleep(10000);
        error = xsk_pair_bind(p);
    }
    if (error)
        die(1, "can't bind to queue %u of %s with %s: %s%s", o->queue, o->interface,
            o->zero_copy ? "zero-copy" : "copy", strerror(-error),
            error == -EBUSY ? " (the queue has an owner)" : "");
    p->fd = xsk_socket__fd(p->socket);
    if (o->busy_poll)
        set_busy_poll(p);
    uint32_t at = 0;
    if (xsk_ring_prod__reserve(&p->fill, RING_FRAMES, &at) != RING_FRAMES)
        die(1, "the fill ring is not empty at the start");
    for (uint32_t i = 0; i < RING_FRAMES; i++)
        *xsk_ring_prod__fill_addr(&p->fill, at + i) = (uint64_t)i * FRAME_BYTES;
    xsk_ring_prod__submit(&p->fill, RING_FRAMES);
    attach_program(p, ifindex);
}

static void xsk_pair_close(struct xsk_pair *p)
{
    ix_express_close(p->express);
    close(p->link_fd);
    xsk_socket__delete(p->socket);
    xsk_umem__delete(p->umem);
    if (p->object) {
        bpf_object__close(p->object);
    } else {
        close(p->prog_fd);
        close(p->map_fd);
    }
    munmap(p->memory, (size_t)FRAMES * FRAME_BYTES);
}

static inline uint64_t frame_start(uint64_t addr)
{
    return addr & ~(uint64_t)(FRAME_BYTES - 1);
}

/* After frames were put on the TX ring: in copy mode this call sends them, some (32 by default) at
 * a time, and says EAGAIN if there were more. Call it again while tx_waiting is set. */
static inline void xsk_pair_kick(struct xsk_pair *p)
{
    p->tx_waiting = false;
    if (!p->opt.busy_poll && !xsk_ring_prod__needs_wakeup(&p->tx))
        return;
    p->syscalls++;
    if (sendto(p->fd, NULL, 0, MSG_DONTWAIT, NULL, 0) < 0)
        p->tx_waiting = errno == EAGAIN || errno == EBUSY || errno == ENOBUFS;
}

/* Whether xsk_pair_send() would take n frames. */
static inline bool xsk_pair_has_room(struct xsk_pair *p, uint32_t n)
{
    return xsk_prod_nb_free(&p->tx, n) >= n;
}

/* The TX ring must be empty: what is on it was to go first. Returns how many frames were sent. */
static inline uint32_t send_express(struct xsk_pair *p, const struct ix_desc *descs, uint32_t n)
{
    if (p->n_express_done || xsk_prod_nb_free(&p->tx, RING_FRAMES) < RING_FRAMES)
        return 0;
    p->syscalls++;
    p->express_calls++;
    int sent = ix_express_send(p->express, p->memory, descs, n);
    if (sent <= 0) {
        p->express_errors++;
        return 0;
    }
    for (int i = 0; i < sent; i++)
        p->express_done[p->n_express_done++] = descs[i].addr;
    p->express_frames += (uint32_t)sent;
    return (uint32_t)sent;
}

/* Sends at most BATCH frames, for which there is room: the way that ixnet's link/xsk.c does. */
static inline void xsk_pair_send(struct xsk_pair *p, const struct ix_desc *descs, uint32_t n)
{
    uint32_t to, sent = p->express && n >= EXPRESS_FROM ? send_express(p, descs, n) : 0;
    if (sent == n)
        return;
    descs += sent;
    n -= sent;
    if (xsk_ring_prod__reserve(&p->tx, n, &to) != n)
        die(1, "the TX ring is full, which can't be");
    for (uint32_t i = 0; i < n; i++)
        *xsk_ring_prod__tx_desc(&p->tx, to + i) =
            (struct xdp_desc){.addr = descs[i].addr, .len = descs[i].len};
    xsk_ring_prod__submit(&p->tx, n);
    xsk_pair_kick(p);
}

/* Frames that were sent and are free again: start addresses of at most BATCH. */
static inline uint32_t xsk_pair_complete(struct xsk_pair *p, uint64_t addrs[BATCH])
{
    uint32_t from, n = p->n_express_done, ring;
    for (uint32_t i = 0; i < n; i++)
        addrs[i] = frame_start(p->express_done[i]);
    p->n_express_done = 0;
    ring = xsk_ring_cons__peek(&p->completion, BATCH - n, &from);
    for (uint32_t i = 0; i < ring; i++)
        addrs[n++] = frame_start(*xsk_ring_cons__comp_addr(&p->completion, from + i));
    if (ring)
        xsk_ring_cons__release(&p->completion, ring);
    return n;
}

/* After the first frames arrived. A socket drives the NIC's poll only if it knows the NAPI
 * instance: older kernels tell it with the first frame; those since Linux 6.13 do so in bind(),
 * some of them for zero-copy alone, and then the calls of a socket in copy mode that are to poll do
 * nothing. */
static inline void xsk_pair_heard(struct xsk_pair *p)
{
    if (p->heard)
        return;
    p->heard = true;
    socklen_t bytes = sizeof p->napi_id;
    if (getsockopt(p->fd, SOL_SOCKET, SO_INCOMING_NAPI_ID, &p->napi_id, &bytes) < 0)
        p->napi_id = 0;
}

/* After nothing was found on the RX ring: busy polling is this call, where it can be done at all.
 */
static inline void xsk_pair_idle(struct xsk_pair *p)
{
    bool polls = p->opt.busy_poll && (p->napi_id || !p->heard);
    if (polls || xsk_ring_prod__needs_wakeup(&p->fill)) {
        p->syscalls++;
        recvfrom(p->fd, NULL, 0, MSG_DONTWAIT, NULL, NULL);
    }
}

static const char *xsk_pair_mode(const struct xsk_pair *p)
{
    if (p->opt.generic)
        return "generic copy";
    if (p->opt.express)
        return "native copy, express";
    return p->opt.zero_copy ? "native zero-copy" : "native copy";
}

/* Prints what went by express, and the socket's own counters of losses, as members of a JSON
 * object. */
static void xsk_pair_print_statistics(const struct xsk_pair *p)
{
    struct xdp_statistics s = {0};
    socklen_t bytes = sizeof s;
    getsockopt(p->fd, SOL_XDP, XDP_STATISTICS, &s, &bytes);
    printf("\"rx_dropped\": %llu, \"rx_ring_full\": %llu, \"fill_ring_empty\": %llu, "
           "\"tx_invalid\": %llu, \"express_calls\": %llu, \"express_frames\": %llu, "
           "\"express_errors\": %llu, \"express_refused\": %llu",
           (unsigned long long)s.rx_dropped, (unsigned long long)s.rx_ring_full,
           (unsigned long long)s.rx_fill_ring_empty_descs, (unsigned long long)s.tx_invalid_descs,
           (unsigned long long)p->express_calls, (unsigned long long)p->express_frames,
           (unsigned long long)p->express_errors,
           p->express ? (unsigned long long)ix_express_refused(p->express) : 0);
}

/* ---- options that both take ---------------------------------------------------------------- */

#define PAIR_OPTIONS \
    {"interface", required_argument, NULL, 'i'}, {"queue", required_argument, NULL, 'q'}, \
        {"busy-poll", no_argument, NULL, 'b'}, {"zero-copy", no_argument, NULL, 'z'}, \
        {"generic", no_argument, NULL, 'g'}, {"express", required_argument, NULL, 'x'}, \
    { \
        "budget", required_argument, NULL, 'u' \
    }

#define PAIR_USAGE \
    "--interface IF [--queue N] [--busy-poll] [--budget N] [--zero-copy] [--generic]" \
    " [--express OBJECT]"

static uint32_t number(const char *text, uint32_t least, uint32_t most)
{
    char *end;
    unsigned long value = strtoul(text, &end, 10);
    if (end == text || *end || value < least || value > most)
        die(2, "%s is not a number from %u to %u", text, least, most);
    return (uint32_t)value;
}

/* False: not one of the common options. */
static bool pair_option(struct pair_options *o, int opt)
{
    switch (opt) {
    case 'i':
        o->interface = optarg;
        return true;
    case 'q':
        o->queue = number(optarg, 0, 63);
        return true;
    case 'b':
        o->busy_poll = true;
        return true;
    case 'z':
        o->zero_copy = true;
        return true;
    case 'g':
        o->generic = true;
        return true;
    case 'x':
        o->express = optarg;
        return true;
    case 'u':
        o->budget = number(optarg, 1, 1024);
        return true;
    default:
        return false;
    }
}

static void pair_check_options(const struct pair_options *o)
{
    if (!o->interface)
        die(2, "which --interface?");
    if (o->generic && o->zero_copy)
        die(2, "generic XDP has no zero-copy");
    if (o->express && (o->generic || o->zero_copy))
        die(2, "--express needs native XDP in copy mode");
}

static void stop_on_signals(void)
{
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
}

#endif
