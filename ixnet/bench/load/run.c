/* A worker's life: connections opened, warm-up, the measured time, what is still due; once from the
 * command line, or again and again as ixnet bench says through the control page. */
#include "load.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#define CLOSING_NS 2000000000ull
#define OVERDUE_NS 200000000ull /* open loop: how long after the end requests still go out */

struct plan {
    uint64_t start_ns, warmup_ns, measure_ns;
    double rate, probe_rate;
    uint32_t window;
};

static double cpu_seconds(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
           (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

static uint32_t under_way(const struct load *l)
{
    return l->groups[GROUP_LOAD].under_way + l->groups[GROUP_PROBE].under_way;
}

/* False: it ended before. */
static bool turn_until(struct load *l, uint64_t until_ns)
{
    while (l->now_ns < until_ns) {
        if (l->opt.mode != MODE_CONNRATE && !l->open && !l->connecting)
            return false;
        if (!load_turn(l, until_ns))
            return false;
    }
    return true;
}

static void set_group(struct group *g, double rate, uint64_t window, uint64_t start_ns)
{
    g->rate = rate;
    g->window = (uint32_t)(window < UINT32_MAX ? window : UINT32_MAX);
    g->next_due_ns = start_ns;
    g->next_due_rest = 0;
    g->completed = g->late = 0;
}

static void begin_measuring(struct load *l)
{
    for (int i = 0; i < GROUPS; i++) {
        histogram_reset(&l->groups[i].latency);
        histogram_reset(&l->groups[i].slice);
        l->groups[i].slice_to_ns = l->now_ns + SLICE_NS;
        l->groups[i].slices = 0;
        l->groups[i].completed = 0;
    }
    memcached_reset_counts(l);
    l->window_bytes = 0;
    l->measuring = true;
    l->cpu_s = cpu_seconds();
}

static void end_measuring(struct load *l, uint64_t from_ns)
{
    l->measuring = false;
    l->cpu_s = cpu_seconds() - l->cpu_s;
    l->elapsed_s = (double)(l->now_ns - from_ns) / 1e9;
}

static bool overdue(const struct load *l)
{
    for (int i = 0; i < GROUPS; i++) {
        if (l->groups[i].rate > 0 && l->groups[i].next_due_ns < l->to_ns)
            return true;
    }
    return false;
}

/* What was due in the measured time and could not be sent has waited at least until now. */
static void count_late(struct load *l)
{
    for (int i = 0; i < GROUPS; i++) {
        struct group *g = &l->groups[i];
        double mean_ns = g->rate > 0 ? 1e9 / g->rate : 0;
        while (g->rate > 0 && g->next_due_ns < l->to_ns) {
            if (g->next_due_ns >= l->from_ns) {
                histogram_add(&g->latency, l->now_ns - g->next_due_ns);
                g->late++;
            }
            g->next_due_ns += (uint64_t)mean_ns + 1;
        }
    }
}

/* Waits for the replies that are still due. */
static void drain(struct load *l)
{
    uint64_t until_ns = l->now_ns + OVERDUE_NS;
    while (overdue(l) && l->now_ns < until_ns && load_turn(l, until_ns))
        ;
    l->issuing = false;
    until_ns = l->now_ns + seconds_ns(l->opt.timeout_s);
    bool connrate = l->opt.mode == MODE_CONNRATE;
    while ((under_way(l) || (connrate && l->open)) && l->now_ns < until_ns) {
        if (connrate)
            load_drop_waiting(l);
        if (!load_turn(l, until_ns))
            break;
    }
    if (under_way(l) && !l->over)
        load_note(l, FAIL_TIMEOUT, "%u replies are still missing %g s after the last request",
                  under_way(l), l->opt.timeout_s);
    count_late(l);
    l->from_ns = l->to_ns = 0;
}

static void run_measured(struct load *l, const struct plan *p)
{
    l->now_ns = l->progress_ns = clock_ns();
    if (!turn_until(l, p->start_ns))
        return;
    uint64_t start_ns = p->start_ns ? p->start_ns : l->now_ns;
    uint64_t per_conn = l->opt.mode == MODE_CONNRATE ? 1 : l->opt.depth;
    struct group *g = l->groups;
    set_group(&g[GROUP_LOAD], p->rate,
              p->window ? p->window : per_conn * g[GROUP_LOAD].conn_count, start_ns);
    set_group(&g[GROUP_PROBE], p->probe_rate, g[GROUP_PROBE].conn_count, start_ns);
    l->from_ns = start_ns + p->warmup_ns;
    l->to_ns = UINT64_MAX;
    l->issuing = true;
    bool well = turn_until(l, l->from_ns);
    begin_measuring(l);
    /* From when it really begins: on a busy machine that may be later than it was to. */
    l->from_ns = l->now_ns;
    l->to_ns = l->from_ns + p->measure_ns;
    if (well)
        turn_until(l, l->to_ns);
    end_measuring(l, l->from_ns);
    drain(l);
}

/* A given amount of work, all connections open before the first byte. */
static void run_transfer(struct load *l)
{
    begin_measuring(l);
    uint64_t from_ns = l->now_ns = clock_ns();
    for (uint32_t i = 0; i < l->opt.connections; i++) {
        if (l->conns[i].state == CONN_OPEN)
            load_start(l, i, l->now_ns);
    }
    turn_until(l, UINT64_MAX);
    end_measuring(l, from_ns);
}

static bool preload(struct load *l)
{
    struct group *g = &l->groups[GROUP_LOAD];
    l->now_ns = l->progress_ns = clock_ns();
    memcached_begin_storing(l);
    set_group(g, 0, (uint64_t)l->opt.depth * g->conn_count, l->now_ns);
    l->preloading = l->issuing = true;
    while ((l->issuing || g->under_way) && !load_failed(l) && load_turn(l, UINT64_MAX))
        ;
    l->preloading = l->issuing = false;
    return !load_failed(l);
}

static void close_all(struct load *l)
{
    l->issuing = false;
    for (uint32_t i = 0; i < l->conn_count; i++) {
        if (l->conns[i].state == CONN_OPEN && !l->conns[i].requests) {
            l->conns[i].state = CONN_CLOSING;
            transport_close(l, i, false);
        }
    }
    uint64_t until_ns = l->now_ns + CLOSING_NS;
    while (l->open && l->now_ns < until_ns && load_turn(l, until_ns))
        ;
}

/* ---- once -------------------------------------------------------------------------- */

static void run_once(struct load *l)
{
    const struct options *o = &l->opt;
    struct plan plan = {.warmup_ns = seconds_ns(o->warmup_s), .measure_ns = seconds_ns(o->seconds),
                        .rate = o->rate, .probe_rate = o->probe_rate, .window = o->window};
    if (!load_open(l, o->connections))
        return;
    if (o->mode == MODE_TRANSFER)
        run_transfer(l);
    else if (!o->preload || preload(l))
        run_measured(l, &plan);
    if (!l->over)
        close_all(l);
}

/* ---- by command -------------------------------------------------------------------- */

static void write_result(const struct load *l)
{
    char path[4096];
    snprintf(path, sizeof path, "%s.%u", l->opt.control, l->opt.worker);
    FILE *out = fopen(path, "w");
    if (!out)
        return;
    load_report(l, out);
    fclose(out);
}

static void forget_failures(struct load *l)
{
    memset(l->failures, 0, sizeof l->failures);
    l->first_error[0] = 0;
    l->failures_in_a_row = 0;
    l->verified_bytes = l->port_waits = 0;
}

static void carry_out(struct load *l, const struct control *page)
{
    if (page->op == CONTROL_OPEN) {
        load_open(l, (uint32_t)page->connections);
    } else if (page->op == CONTROL_LOAD) {
        preload(l);
    } else if (page->op == CONTROL_RUN) {
        struct plan plan = {.start_ns = page->start_ns, .warmup_ns = page->warmup_ns,
                            .measure_ns = page->measure_ns, .rate = page->rate,
                            .probe_rate = page->probe_rate, .window = (uint32_t)page->window};
        run_measured(l, &plan);
    }
    write_result(l);
}

static void serve(struct load *l, struct control *page)
{
    uint64_t done = 0;
    __atomic_store_n(&l->self->ready, 1, __ATOMIC_RELEASE);
    while (!l->over) {
        uint64_t number = __atomic_load_n(&page->number, __ATOMIC_ACQUIRE);
        /* Python writes the number byte by byte, over zeroes: only the next one is a command. */
        if (number != done + 1) {
            l->now_ns = clock_ns();
            load_turn(l, l->now_ns + 1000000);
            continue;
        }
        if (page->op == CONTROL_QUIT)
            break;
        carry_out(l, page);
        done = number;
        l->self->failed = load_failed(l);
        forget_failures(l); /* what breaks from here on is the next command's */
        __atomic_store_n(&l->self->done, done, __ATOMIC_RELEASE);
    }
    if (!l->over)
        close_all(l);
}

static struct control *map_control(const char *path)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);
    struct control *page = MAP_FAILED;
    if (fd >= 0) {
        page = mmap(NULL, sizeof *page, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        close(fd);
    }
    if (page == MAP_FAILED || page->magic != CONTROL_MAGIC) {
        fprintf(stderr, "ixload: %s is not a control page\n", path);
        return NULL;
    }
    return page;
}

int load_main(struct load *l)
{
    static struct control_worker nobody;
    l->self = &nobody;
    l->give_up_ns = clock_ns() + seconds_ns(l->opt.wait_s);
    if (load_init(l) < 0) {
        fprintf(stderr, "ixload: no memory for %u connections\n", l->conn_count);
        return 1;
    }
    if (!l->opt.control) {
        run_once(l);
        load_report(l, stdout);
        fflush(stdout);
        return load_failed(l) ? 1 : 0;
    }
    struct control *page = map_control(l->opt.control);
    if (!page)
        return 2;
    l->self = &page->worker[l->opt.worker];
    serve(l, page);
    return l->over ? 1 : 0;
}
