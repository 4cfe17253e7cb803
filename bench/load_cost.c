/* What bench/load_cost.py counts instructions of: the load generator and a server, both as
 * applications of the dataplane, each with its shard (bench/pair.h).
 *
 *     load_cost SERVER.so CLIENT.so FIRST COUNT CLIENT_ARGUMENT...
 *
 * Each runs in a thread of its own, so that callgrind tells them apart, and they take turns: one
 * turn of the application and one cycle of its shard, then what that sent is carried over. The time
 * is made up, so every run is the same. What comes before message number FIRST at the server is
 * forgotten (measured_from()), and after COUNT more the process ends and says how many there were.
 */
#include "bench/pair.h"
#include "native/app.h"

#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

enum { CYCLE_NS = 75000 }; /* about what one with a batch of 64 takes */

struct end {
    struct side side;
    struct ix_app app;
    struct ix_app_ops ops;
    struct end *peer;
    sem_t turn;
    bool forgotten;
};

static struct end server, client;
static uint64_t now_ns = 1000000000;
static unsigned long messages, first, count;

/* The clock of everything in this process. */
int clock_gettime(clockid_t clock, struct timespec *t)
{
    (void)clock;
    *t = (struct timespec){.tv_sec = (time_t)(now_ns / 1000000000),
                           .tv_nsec = (long)(now_ns % 1000000000)};
    return 0;
}

/* callgrind forgets here what the thread has cost so far. */
__attribute__((noinline)) static void measured_from(void)
{
    __asm__ volatile("");
}

/* Ends the process when enough was measured. */
static void look_at_count(struct end *e)
{
    if (messages >= first && !e->forgotten) {
        e->forgotten = true;
        measured_from();
    }
    if (messages >= first + count && server.forgotten && client.forgotten) {
        printf("%lu\n", messages - first);
        exit(0);
    }
}

static void count_messages(const struct end *e, int n)
{
    for (int i = 0; i < n; i++)
        messages += e->side.io->events[i].type == IX_EV_RECV && e->side.io->events[i].bytes;
}

static int poll_in_turn(struct ix_app *app, uint64_t cycle_ns)
{
    struct end *e = app == &server.app ? &server : &client;
    look_at_count(e);
    int n = ix_shard_poll(e->side.shard, cycle_ns);
    if (e == &server)
        count_messages(e, n);
    carry(&e->side, &e->peer->side);
    now_ns += CYCLE_NS;
    sem_post(&e->peer->turn);
    sem_wait(&e->turn);
    return n;
}

static void make_end(struct end *e, uint8_t self, struct end *peer, uint8_t other)
{
    const struct ix_config cfg = {
        .now_ns = now_ns, .pool_frames = 8192, .arena_frames = 4096, .port_lo = 20000,
        .port_hi = 60000, .sg_inplace = 1,
    };
    make(&e->side, self, other, &cfg);
    e->peer = peer;
    e->ops = *ix_app_inline_ops();
    e->ops.poll = poll_in_turn;
    e->app = (struct ix_app){
        .shard = e->side.shard, .io = e->side.io, .ops = &e->ops, .request_fd = -1, .link_fd = -1,
        .spin_ns = -1, .shard_count = 1, .stats = ix_shard_stats(e->side.shard),
    };
    sem_init(&e->turn, 0, 0);
}

static void run(struct end *e, const char *path, int argc, char **argv)
{
    char why[256] = "";
    int ran, status = ix_app_run_native(&e->app, path, argc, argv, &ran, why, sizeof why);
    fprintf(stderr, "load_cost: %s ended with %d%s%s\n", path, status, ran ? "" : ": ", why);
    exit(1);
}

static void *run_server(void *path)
{
    char *argv[] = {"server", "--port", "7000", NULL};
    run(&server, path, 3, argv);
    return NULL;
}

int main(int argc, char **argv)
{
    if (argc < 6)
        return 2;
    first = strtoul(argv[3], NULL, 10);
    count = strtoul(argv[4], NULL, 10);
    make_end(&server, 1, &client, 2);
    make_end(&client, 2, &server, 1);
    pthread_t thread;
    if (pthread_create(&thread, NULL, run_server, argv[1]))
        return 1;
    sem_wait(&client.turn); /* until the server listens */
    run(&client, argv[2], argc - 4, argv + 4);
}
