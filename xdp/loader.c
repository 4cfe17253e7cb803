#include "loader.h"

#include <errno.h>
#include <net/if.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <arpa/inet.h>
#include <linux/bpf.h>
#include <linux/if_link.h>
#include <sys/mman.h>

#include <bpf/bpf.h>
#include <bpf/libbpf.h>

#include "handle.h"

#define PROGRAM_NAME "ix_steer"
#ifndef BPF_F_XDP_DEV_BOUND_ONLY /* since Linux 6.3 */
#define BPF_F_XDP_DEV_BOUND_ONLY (1U << 6)
#endif

/* ---- error text ------------------------------------------------------------------ */

struct text {
    char *at;
    size_t bytes, used;
};

__attribute__((format(printf, 2, 0))) static void text_vadd(struct text *t, const char *format,
                                                            va_list args)
{
    int n;

    if (t->used + 1 >= t->bytes)
        return;
    n = vsnprintf(t->at + t->used, t->bytes - t->used, format, args);
    if (n > 0)
        t->used = (size_t)n < t->bytes - t->used ? t->used + (size_t)n : t->bytes - 1;
}

__attribute__((format(printf, 2, 3))) static void text_add(struct text *t, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    text_vadd(t, format, args);
    va_end(args);
}

/* libbpf's log callback takes no context, so where its words go is a matter of
 * which thread asks: set during a call that has a text, NULL (dropped) otherwise. */
static __thread struct text *log_to;

static int log_line(enum libbpf_print_level level, const char *format, va_list args)
{
    if (log_to && level != LIBBPF_DEBUG)
        text_vadd(log_to, format, args);
    return 0;
}

static void log_begin(struct text *t, char *err, size_t err_bytes)
{
    *t = (struct text){.at = err, .bytes = err_bytes};
    if (err_bytes)
        err[0] = 0;
    log_to = t;
    libbpf_set_print(log_line);
}

/* On success libbpf's remarks are of no interest. */
static int log_end(struct text *t, int result)
{
    log_to = NULL;
    if (result >= 0 && t->bytes) {
        t->at[0] = 0;
        t->used = 0;
    }
    return result;
}

/* ---- loading ---------------------------------------------------------------------- */

static int find_parts(struct ix_steer *s)
{
    const struct {
        const char *name;
        int *fd;
    } maps[] = {
        {"xsks", &s->xsks_fd},       {"claims", &s->claims_fd},
        {"ranges", &s->ranges_fd},   {"local_addrs", &s->local_addrs_fd},
        {"own_addrs", &s->own_addrs_fd}, {"table", &s->table_fd},
        {"verdicts", &s->verdicts_fd},
    };
    struct bpf_program *program = bpf_object__find_program_by_name(s->object, PROGRAM_NAME);

    if (!program)
        return -ENOENT;
    s->prog_fd = bpf_program__fd(program);
    for (size_t i = 0; i < sizeof maps / sizeof maps[0]; i++) {
        *maps[i].fd = bpf_object__find_map_fd_by_name(s->object, maps[i].name);
        if (*maps[i].fd < 0)
            return -ENOENT;
    }
    s->table = mmap(NULL, sizeof *s->table, PROT_READ | PROT_WRITE, MAP_SHARED, s->table_fd, 0);
    return s->table == MAP_FAILED ? -errno : 0;
}

/* ifindex: of the device that the program is to be bound to, or 0. */
static int load_object(struct ix_steer *s, uint32_t ifindex)
{
    struct bpf_program *program = bpf_object__find_program_by_name(s->object, PROGRAM_NAME);

    if (ifindex && program) {
        bpf_program__set_ifindex(program, ifindex);
        bpf_program__set_flags(program, BPF_F_XDP_DEV_BOUND_ONLY);
    }
    return bpf_object__load(s->object);
}

static int open_object(struct ix_steer *s, const char *path, uint32_t ifindex, struct text *t)
{
    int e;

    s->object = bpf_object__open_file(path, NULL);
    if (!s->object) {
        e = -errno;
        text_add(t, "open %s: %s", path, strerror(-e));
        return e;
    }
    e = load_object(s, ifindex);
    if (e) {
        text_add(t, "load %s: %s", path, strerror(-e));
    } else {
        e = find_parts(s);
        if (e == -ENOENT)
            text_add(t, "%s lacks the program or a map that this build expects", path);
        else if (e)
            text_add(t, "map the table of %s: %s", path, strerror(-e));
    }
    if (e)
        bpf_object__close(s->object);
    return e;
}

int ix_steer_open_bound(const char *path, uint32_t ifindex, struct ix_steer **out, char *err,
                        size_t err_bytes)
{
    struct ix_steer *s = calloc(1, sizeof *s);
    struct text t;
    int e;

    *out = NULL;
    if (!s)
        return -ENOMEM;
    s->link_fd = -1;
    log_begin(&t, err, err_bytes);
    e = open_object(s, path, ifindex, &t);
    if (e)
        free(s);
    else
        *out = s;
    return log_end(&t, e);
}

int ix_steer_open(const char *path, struct ix_steer **out, char *err, size_t err_bytes)
{
    return ix_steer_open_bound(path, 0, out, err, err_bytes);
}

static void release(struct ix_steer *s)
{
    munmap(s->table, sizeof *s->table);
    bpf_object__close(s->object);
    free(s);
}

void ix_steer_close(struct ix_steer *steer)
{
    if (!steer)
        return;
    ix_steer_detach(steer);
    release(steer);
}

void ix_steer_forget(struct ix_steer *steer)
{
    if (!steer)
        return;
    /* Closing a descriptor detaches only if it is the last: the parent has its own. */
    if (steer->link_fd >= 0)
        close(steer->link_fd);
    release(steer);
}

/* ---- attaching --------------------------------------------------------------------- */

static uint32_t mode_of_kernel(uint8_t attach_mode)
{
    switch (attach_mode) {
    case XDP_ATTACHED_DRV:
        return IX_STEER_MODE_NATIVE;
    case XDP_ATTACHED_SKB:
        return IX_STEER_MODE_GENERIC;
    case XDP_ATTACHED_HW:
        return IX_STEER_MODE_OFFLOAD;
    default:
        return IX_STEER_MODE_NONE;
    }
}

static void program_name(uint32_t id, char name[16])
{
    struct bpf_prog_info info = {0};
    __u32 bytes = sizeof info;
    int fd = bpf_prog_get_fd_by_id(id);

    if (fd < 0)
        return;
    if (!bpf_obj_get_info_by_fd(fd, &info, &bytes))
        memcpy(name, info.name, 16);
    name[15] = 0;
    close(fd);
}

int ix_steer_query(uint32_t ifindex, struct ix_steer_attached *out)
{
    LIBBPF_OPTS(bpf_xdp_query_opts, opts);
    int e = bpf_xdp_query((int)ifindex, 0, &opts);

    memset(out, 0, sizeof *out);
    if (e)
        return e;
    out->mode = mode_of_kernel(opts.attach_mode);
    out->prog_id = opts.prog_id;
    /* Several modes at once: the kernel names no single one; any of them is in the way. */
    if (opts.attach_mode == XDP_ATTACHED_MULTI) {
        out->mode = opts.drv_prog_id ? IX_STEER_MODE_NATIVE : IX_STEER_MODE_GENERIC;
        out->prog_id = opts.drv_prog_id ? opts.drv_prog_id : opts.skb_prog_id;
    }
    if (out->prog_id)
        program_name(out->prog_id, out->name);
    return 0;
}

static const char *mode_name(uint32_t mode)
{
    return mode == IX_STEER_MODE_NATIVE ? "native" : "generic";
}

/* -EBUSY with the occupant's name, or 0 if the hook is free. */
static int refuse_occupied(const char *ifname, uint32_t ifindex, struct text *t)
{
    struct ix_steer_attached other;
    int e = ix_steer_query(ifindex, &other);

    if (e) {
        text_add(t, "query XDP program of %s: %s", ifname, strerror(-e));
        return e;
    }
    if (!other.prog_id)
        return 0;
    text_add(t, "%s has XDP program %u (%s) attached in %s mode", ifname, other.prog_id,
             other.name[0] ? other.name : "unnamed",
             other.mode == IX_STEER_MODE_OFFLOAD ? "offload" : mode_name(other.mode));
    return -EBUSY;
}

static int attach(struct ix_steer *s, uint32_t ifindex, uint32_t mode, struct text *t)
{
    char name[IF_NAMESIZE];
    LIBBPF_OPTS(bpf_link_create_opts, opts,
                .flags = mode == IX_STEER_MODE_NATIVE ? XDP_FLAGS_DRV_MODE : XDP_FLAGS_SKB_MODE);
    int e, fd;

    if (s->link_fd >= 0)
        return -EALREADY;
    if (mode != IX_STEER_MODE_NATIVE && mode != IX_STEER_MODE_GENERIC)
        return -EINVAL;
    if (!if_indextoname(ifindex, name)) {
        text_add(t, "no interface with index %u", ifindex);
        return -ENODEV;
    }
    e = refuse_occupied(name, ifindex, t);
    if (e)
        return e;
    /* A link never replaces what is attached, so a program that came in since the
     * query is safe too: the kernel then says EBUSY or EEXIST. */
    fd = bpf_link_create(s->prog_fd, (int)ifindex, BPF_XDP, &opts);
    if (fd < 0) {
        e = -errno;
        text_add(t, "attach XDP program to %s in %s mode: %s", name, mode_name(mode), strerror(-e));
        return e == -EEXIST ? -EBUSY : e;
    }
    s->link_fd = fd;
    return 0;
}

int ix_steer_attach(struct ix_steer *steer, uint32_t ifindex, uint32_t mode, char *err,
                    size_t err_bytes)
{
    struct text t;

    log_begin(&t, err, err_bytes);
    return log_end(&t, attach(steer, ifindex, mode, &t));
}

int ix_steer_detach(struct ix_steer *steer)
{
    int e;

    if (steer->link_fd < 0)
        return -ENOENT;
    /* Explicitly, not by closing alone: a forked child may hold the link as well. */
    e = bpf_link_detach(steer->link_fd) ? -errno : 0;
    close(steer->link_fd);
    steer->link_fd = -1;
    return e;
}

int ix_steer_prog_id(const struct ix_steer *steer, uint32_t *id)
{
    struct bpf_prog_info info = {0};
    __u32 bytes = sizeof info;

    if (bpf_obj_get_info_by_fd(steer->prog_fd, &info, &bytes))
        return -errno;
    *id = info.id;
    return 0;
}

int ix_steer_prog_fd(const struct ix_steer *steer)
{
    return steer->prog_fd;
}

int ix_steer_map_fd(const struct ix_steer *steer, const char *name)
{
    const struct bpf_map *map = bpf_object__find_map_by_name(steer->object, name);

    return map ? bpf_map__fd(map) : -ENOENT;
}

/* ---- counters and tests ------------------------------------------------------------------ */

int ix_steer_verdicts(const struct ix_steer *steer, uint64_t *frames, uint32_t n)
{
    int cpus = libbpf_num_possible_cpus();
    __u64 *each;

    if (cpus < 0)
        return cpus;
    each = calloc((size_t)cpus, sizeof *each);
    if (!each)
        return -ENOMEM;
    for (uint32_t v = 0; v < n && v < IX_STEER_N_VERDICTS; v++) {
        frames[v] = 0;
        if (bpf_map_lookup_elem(steer->verdicts_fd, &v, each)) {
            int e = -errno;

            free(each);
            return e;
        }
        for (int c = 0; c < cpus; c++)
            frames[v] += each[c];
    }
    free(each);
    return IX_STEER_N_VERDICTS;
}

#define VERDICT_NAME(e, name, redirected, text) name,
#define VERDICT_TEXT(e, name, redirected, text) text,

const char *ix_steer_verdict_name(uint32_t verdict)
{
    static const char *const names[] = {IX_STEER_VERDICTS(VERDICT_NAME)};

    return verdict < IX_STEER_N_VERDICTS ? names[verdict] : NULL;
}

const char *ix_steer_verdict_text(uint32_t verdict)
{
    static const char *const texts[] = {IX_STEER_VERDICTS(VERDICT_TEXT)};

    return verdict < IX_STEER_N_VERDICTS ? texts[verdict] : NULL;
}

int ix_steer_test_run(struct ix_steer *steer, const uint8_t *frame, uint32_t bytes, uint32_t times,
                      uint32_t *ns)
{
    LIBBPF_OPTS(bpf_test_run_opts, opts, .data_in = frame, .data_size_in = bytes,
                .repeat = (int)times);

    if (bpf_prog_test_run_opts(steer->prog_fd, &opts))
        return -errno;
    *ns = opts.duration;
    return (int)opts.retval;
}
