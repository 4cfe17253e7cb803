#include "express.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <linux/bpf.h>
#include <linux/if_ether.h>

#include <bpf/bpf.h>

#include "link/xsk.h"
#include "link/xsk_setup.h"
#include "loader.h"
#include "steer.h"

#ifndef BPF_F_TEST_XDP_LIVE_FRAMES /* since Linux 5.18 */
#define BPF_F_TEST_XDP_LIVE_FRAMES (1U << 1)
#endif

/* The kernel lets the receiving end run after as many frames: no more than 256 wait at a veth. */
#define NAPI_WEIGHT 64u

struct ix_express {
    int prog_fd;
    struct ix_steer_express *mapped;
};

int ix_express_open_program(int prog_fd, int map_fd, int out_fd, uint32_t ifindex,
                            struct ix_express **out)
{
    const uint32_t only = 0;
    struct ix_express *e;
    int error;

    *out = NULL;
    if (map_fd < 0)
        return map_fd;
    if (bpf_map_update_elem(out_fd, &only, &ifindex, BPF_ANY))
        return -errno;
    e = malloc(sizeof *e);
    if (!e)
        return -ENOMEM;
    e->prog_fd = fcntl(prog_fd, F_DUPFD_CLOEXEC, 0);
    e->mapped = mmap(NULL, sizeof *e->mapped, PROT_READ | PROT_WRITE, MAP_SHARED, map_fd, 0);
    if (e->prog_fd < 0 || e->mapped == MAP_FAILED) {
        error = -errno;
        ix_express_close(e);
        return error;
    }
    *out = e;
    return 0;
}

int ix_express_open(const struct ix_steer *steer, uint32_t ifindex, struct ix_express **out)
{
    return ix_express_open_program(ix_steer_prog_fd(steer), ix_steer_map_fd(steer, "express"),
                                   ix_steer_map_fd(steer, "express_out"), ifindex, out);
}

void ix_express_close(struct ix_express *e)
{
    if (!e)
        return;
    if (e->mapped != MAP_FAILED)
        munmap(e->mapped, sizeof *e->mapped);
    if (e->prog_fd >= 0)
        close(e->prog_fd);
    free(e);
}

int ix_express_fd(const struct ix_express *e)
{
    return e->prog_fd;
}

uint64_t ix_express_refused(const struct ix_express *e)
{
    return __atomic_load_n(&e->mapped->refused, __ATOMIC_RELAXED);
}

static int send_burst(struct ix_xsk *x, const struct ix_desc *descs, uint32_t n)
{
    struct ix_express *e = x->express_ctx;
    uint64_t before = ix_express_refused(e);
    int sent = ix_express_send(e, x->link.umem, descs, n);

    x->stats.express_refused += ix_express_refused(e) - before;
    return sent;
}

void ix_express_use(struct ix_express *e, struct ix_xsk_socket *socket, uint32_t from_frames)
{
    struct ix_xsk *x = ix_xsk_rings(socket);

    if (!x->express) {
        x->express_ctx = e;
        x->express = send_burst;
    }
    __atomic_store_n(&x->express_from, from_frames ? from_frames : UINT32_MAX, __ATOMIC_RELAXED);
}

/* How many were put up for the program. *longest: bytes. */
static uint32_t put_up(struct ix_steer_express *to, const uint8_t *umem,
                       const struct ix_desc *descs, uint32_t n, uint32_t *longest)
{
    uint32_t i;

    *longest = 0;
    n = IX_MIN(n, (uint32_t)IX_STEER_EXPRESS_FRAMES);
    for (i = 0; i < n; i++) {
        if (descs[i].len < ETH_HLEN || descs[i].len >= IX_STEER_EXPRESS_BYTES || descs[i].flags)
            break;
        to->frames[i].addr = (uintptr_t)(umem + descs[i].addr);
        to->frames[i].bytes = descs[i].len;
        *longest = IX_MAX(*longest, descs[i].len);
    }
    to->next = 0;
    return i;
}

int ix_express_send(struct ix_express *e, const uint8_t *umem, const struct ix_desc *descs,
                    uint32_t n)
{
    static const uint8_t blank[IX_STEER_EXPRESS_BYTES];
    struct xdp_md from = {.ingress_ifindex = IX_STEER_EXPRESS_FROM};
    union bpf_attr attr;

    /* Blanks as long as the longest: the kernel fills what a frame grows by, cutting is cheap. */
    n = put_up(e->mapped, umem, descs, n, &from.data_end);
    if (!n)
        return 0;
    memset(&attr, 0, sizeof attr);
    attr.test.prog_fd = (uint32_t)e->prog_fd;
    attr.test.data_in = (uintptr_t)blank;
    attr.test.data_size_in = from.data_end;
    attr.test.ctx_in = (uintptr_t)&from;
    attr.test.ctx_size_in = sizeof from;
    attr.test.repeat = n;
    attr.test.batch_size = IX_MIN(n, NAPI_WEIGHT);
    attr.test.flags = BPF_F_TEST_XDP_LIVE_FRAMES;
    if (syscall(SYS_bpf, BPF_PROG_TEST_RUN, &attr, sizeof attr.test) && !e->mapped->next)
        return -errno;
    /* Less than n: the kernel ran out of memory half-way, and those before have gone. */
    return (int)IX_MIN(__atomic_load_n(&e->mapped->next, __ATOMIC_RELAXED), n);
}
