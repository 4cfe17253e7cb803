/* The native echo server and the native client on two shards over the simulated wire:
 *
 *     native_pair LOSS_PPM MAX_CALLS POOL_FRAMES echo|connrate|... [options of ixload]
 *
 * Each application runs in a thread of its own, and its poll hook passes the turn to the other one,
 * so that one of them runs at a time and neither knows. Time is real. Exit status: the client's, or
 * 3 when something was not given back.
 */
#include <arpa/inet.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "link/sim_link.h"
#include "native/app.h"

int echo_main(struct ix_app *app, int argc, char **argv);
int ixload_main(struct ix_app *app, int argc, char **argv);

enum { ARENA = 256, RING = 1024 };

struct side {
    struct ix_app app;
    struct ix_config cfg;
    uint8_t *umem;
    int argc;
    char **argv;
    int status;
};

struct pair {
    struct ix_sim_wire wire;
    struct side side[2];
    pthread_mutex_t lock;
    pthread_cond_t passed;
    int turn; /* whose */
    uint32_t stop[2];
    struct ix_app_ops ops; /* those of the inline placement, but poll */
};

static struct pair pair;

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void pass_turn(int to)
{
    pair.turn = to;
    pthread_cond_broadcast(&pair.passed);
}

static void await_turn(int me)
{
    while (pair.turn != me)
        pthread_cond_wait(&pair.passed, &pair.lock);
}

static int poll_and_pass(struct ix_app *app, uint64_t now)
{
    struct ix_shard *shard = app->shard;
    int me = shard == pair.side[1].app.shard;
    ix_sim_wire_advance(&pair.wire, now);
    int n = ix_shard_poll(shard, now);
    const char *wrong = ix_shard_check(shard);
    if (wrong) {
        fprintf(stderr, "native_pair: %s\n", wrong);
        abort();
    }
    pass_turn(1 - me);
    await_turn(me);
    return n;
}

static void *run_echo(void *argument)
{
    (void)argument;
    pthread_mutex_lock(&pair.lock);
    await_turn(0);
    pair.side[0].status = echo_main(&pair.side[0].app, pair.side[0].argc, pair.side[0].argv);
    pass_turn(1);
    pthread_mutex_unlock(&pair.lock);
    return NULL;
}

static void tell(struct ix_shard *shard, struct ix_ctl_msg msg, const char *ip)
{
    msg.family = 4;
    inet_pton(AF_INET, ip, msg.ip);
    if (ix_ctl_send(shard, &msg))
        abort();
}

static void make_wire(uint32_t pool, uint32_t loss_ppm)
{
    struct ix_sim_setup setup = {.seed = 1, .now_ns = now_ns(), .wire_frames = 4096};
    for (int i = 0; i < 2; i++) {
        uint64_t bytes = (uint64_t)(pool + ARENA) << 11;
        pair.side[i].umem = aligned_alloc(4096, bytes);
        setup.end[i] = (struct ix_sim_end_setup){.umem = pair.side[i].umem,
                                                 .umem_bytes = bytes,
                                                 .frame_shift = 11,
                                                 .rx_headroom = IX_SIM_RX_HEADROOM,
                                                 .fill_entries = RING,
                                                 .rx_entries = RING,
                                                 .tx_entries = RING,
                                                 .completion_entries = RING};
    }
    if (ix_sim_wire_init(&pair.wire, &setup, aligned_alloc(64, ix_sim_wire_bytes(&setup))))
        abort();
    struct ix_sim_path path = {.loss_ppm = loss_ppm};
    for (uint32_t i = 0; i < 2; i++)
        if (ix_sim_wire_set_path(&pair.wire, i, &path))
            abort();
}

static void make_shard(int i, uint32_t max_calls, uint32_t pool)
{
    struct side *side = &pair.side[i];
    side->cfg = (struct ix_config){.now_ns = now_ns(),
                                   .secret = {1, 2, 3, (uint64_t)i},
                                   .max_calls = max_calls,
                                   .max_flows = 8192,
                                   .pool_frames = pool,
                                   .arena_frames = ARENA,
                                   .port_lo = 20000,
                                   .port_hi = 60000,
                                   .time_wait_ms = 1,
                                   .mac = {2, 0, 0, 0, 0, (uint8_t)(1 + i)},
                                   .sg_inplace = 1};
    size_t bytes = (ix_shard_bytes(&side->cfg) + 4095) & ~(size_t)4095;
    void *memory = memset(aligned_alloc(4096, bytes), 0, bytes);
    struct ix_shard *shard =
        ix_shard_create(memory, bytes, &side->cfg, &pair.wire.end[i].link, NULL);
    if (!shard)
        abort();
    tell(shard, (struct ix_ctl_msg){.type = IX_CTL_ADDR_ADD}, i ? "10.0.0.2" : "10.0.0.1");
    tell(shard, (struct ix_ctl_msg){.type = IX_CTL_ROUTE_SET, .prefix = 24}, "10.0.0.0");
    tell(shard,
         (struct ix_ctl_msg){.type = IX_CTL_NEIGH_SET, .mac = {2, 0, 0, 0, 0, (uint8_t)(2 - i)}},
         i ? "10.0.0.1" : "10.0.0.2");
    side->app = (struct ix_app){.shard = shard,
                                .io = ix_shard_io(shard),
                                .ops = &pair.ops,
                                .request_fd = -1,
                                .link_fd = -1,
                                .spin_ns = -1,
                                .kick_fd = -1,
                                .stop = &pair.stop[i],
                                .stats = ix_shard_stats(shard)};
}

static bool anything_left(void)
{
    uint64_t left = 0;
    for (int i = 0; i < 2; i++) {
        struct ix_stats *stats = ix_shard_stats(pair.side[i].app.shard);
        left += stats->flows + stats->frames_app;
    }
    return left;
}

int main(int argc, char **argv)
{
    if (argc < 5)
        return 2;
    uint32_t pool = (uint32_t)atoi(argv[3]);
    pthread_t thread;
    pair.ops = *ix_app_inline_ops();
    pair.ops.poll = poll_and_pass;
    make_wire(pool, (uint32_t)atoi(argv[1]));
    for (int i = 0; i < 2; i++)
        make_shard(i, (uint32_t)atoi(argv[2]), pool);
    pair.side[0].argc = 3;
    pair.side[0].argv = (char *[]){"echo", "--port", "7", NULL};
    pthread_mutex_init(&pair.lock, NULL);
    pthread_cond_init(&pair.passed, NULL);
    pthread_create(&thread, NULL, run_echo, NULL);
    /* The server reads its options before the client does: getopt has one state. */
    pthread_mutex_lock(&pair.lock);
    await_turn(1);
    int status = ixload_main(&pair.side[1].app, argc - 3, argv + 3);
    /* The server goes on until it has seen the end of every connection. Then nothing may be lent.
     */
    for (uint64_t end = now_ns() + 20000000000u; anything_left() && now_ns() < end;)
        poll_and_pass(&pair.side[1].app, now_ns());
    pair.stop[0] = 1;
    pass_turn(0);
    await_turn(1);
    pthread_mutex_unlock(&pair.lock);
    pthread_join(thread, NULL);
    if (status || pair.side[0].status)
        return status ? status : pair.side[0].status;
    for (int i = 0; i < 2; i++) {
        const struct ix_stats *stats = ix_shard_stats(pair.side[i].app.shard);
        if (stats->flows || stats->frames_app)
            fprintf(stderr, "native_pair: %llu flows and %llu lent frames are left at end %d\n",
                    (unsigned long long)stats->flows, (unsigned long long)stats->frames_app, i);
    }
    return anything_left() ? 3 : 0;
}
