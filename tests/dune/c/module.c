/* A module in ring 0, used as it should be and as it should not: PROGRAM CASE. */
#include "module/host.h"
#include "module/registers.h"

#include <cpuid.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/time.h>

#define CALLS 1000
#define QUEUED 200

/* ---- calls ----------------------------------------------------------------------------------- */

static void adds(void)
{
    for (uint64_t i = 0; i < CALLS; i++)
        EQUAL(dune_module_call(SMALL_ADD, i, 2, 3, 4, 5), i + 14);
    EQUAL(dune_module_call(SMALL_ADD, ~0ull, 1, 0, 0, 0), 0);
    EQUAL(call(SMALL_CALLS, 0, 0), SMALL_UNKNOWN);
    EQUAL(call(DUNE_CALL_MODULES - 1, 0, 0), SMALL_UNKNOWN);
    EQUAL(call(DUNE_CALL_MODULES, 0, 0), -ENOSYS);
    EQUAL(syscall(DUNE_CALL_MODULE - 1), -1);
    EQUAL(errno, ENOSYS);
    EQUAL(call(SMALL_BALLAST_WORD, 10000, 0), 10001);
    EQUAL(alias->small.calls, CALLS + 2);
}

static void case_adds(void)
{
    EQUAL(host_run(adds), 0);
    EQUAL(data->small.calls, CALLS + 2);
    EQUAL(data->shared.counts.module_calls, CALLS + 4);
    EQUAL(data->shared.crash.state, DUNE_CRASH_NONE);
}

static void stores(void)
{
    for (uint64_t i = 0; i < SMALL_WORDS; i++)
        EQUAL(call(SMALL_STORE, i, i * i), 0);
    EQUAL(call(SMALL_STORE, SMALL_WORDS, 0), -1);
    for (uint64_t i = 0; i < SMALL_WORDS; i++) {
        EQUAL(call(SMALL_LOAD, i, 0), i * i);
        EQUAL(alias->small.word[i], i * i);
    }
}

static void case_stores(void)
{
    EQUAL(host_run(stores), 0);
    EQUAL(data->small.word[1000], 1000000);
}

static void kicks(void)
{
    EQUAL(call(SMALL_KICK, 0, DUNE_KICK_RX), -EAGAIN);
    EQUAL(call(SMALL_KICK, 0, DUNE_KICK_TX), 0);
    EQUAL(call(SMALL_KICK, DUNE_MODULE_FDS, DUNE_KICK_TX), -EBADF);
    EQUAL(call(SMALL_KICK, 2, DUNE_KICK_TX), -EBADF);
    EQUAL(call(SMALL_KICK, ~0ull, DUNE_KICK_TX), -EBADF);
    EQUAL(call(SMALL_KICK, 0, 3), -EINVAL);
    EQUAL(recv(sockets[1], NULL, 0, MSG_DONTWAIT), 0); /* an empty datagram */
    EQUAL(recv(sockets[1], NULL, 0, MSG_DONTWAIT), -1);
    EQUAL(send(sockets[1], "x", 1, 0), 1);
    EQUAL(call(SMALL_KICK, 0, DUNE_KICK_RX), 0);
    EQUAL(fcntl(sockets[0], F_GETFD), -1); /* closed where it was */
    EQUAL(errno, EBADF);
}

static void case_kicks(void)
{
    EQUAL(host_run(kicks), 0);
    EQUAL(data->shared.counts.kicks, 7);
}

/* ---- registers ------------------------------------------------------------------------------- */

static void registers(void)
{
    static struct registers before, after;

    for (unsigned avx = 0; avx <= registers_has_avx(); avx++) {
        for (unsigned plain = 0; plain < 2; plain++) {
            long result = registers_call(DUNE_CALL_MODULE + SMALL_VECTORS, avx, plain, &before,
                                         &after);

            EQUAL(result, 0);
            registers_compare(&before, &after);
            CHECK(!registers_hold(&after, SMALL_SECRET));
        }
    }
}

static void case_registers(void)
{
    EQUAL(host_run(registers), 0);
    EQUAL(data->small.calls, 2 * (1 + registers_has_avx()));
}

/* ---- what it costs --------------------------------------------------------------------------- */

static const volatile struct dune_stats *seen(void)
{
    return &alias->shared.counts;
}

static void counts(void)
{
    uint64_t exits, kicked, calls, syscalls;

    call(SMALL_KICK, 0, DUNE_KICK_RX); /* all is touched */
    getppid();
    exits = seen()->exits;
    calls = seen()->module_calls;
    for (uint64_t i = 0; i < CALLS; i++)
        call(SMALL_ADD, i, 0);
    EQUAL(seen()->exits - exits, 0);
    EQUAL(seen()->module_calls - calls, CALLS);
    exits = seen()->exits;
    kicked = seen()->kicks;
    for (uint64_t i = 0; i < CALLS; i++)
        call(SMALL_KICK, 0, DUNE_KICK_RX);
    EQUAL(seen()->exits - exits, CALLS);
    EQUAL(seen()->kicks - kicked, CALLS);
    exits = seen()->exits;
    syscalls = seen()->syscalls;
    for (uint64_t i = 0; i < CALLS; i++)
        getppid();
    EQUAL(seen()->exits - exits, CALLS);
    EQUAL(seen()->syscalls - syscalls, CALLS);
    EQUAL(seen()->refused, 0);
    syscall(SYS_read, 0, place.base, 1);
    getppid();
    EQUAL(seen()->refused, 1);
}

static void case_counts(void)
{
    EQUAL(host_run(counts), 0);
    EQUAL(data->shared.counts.kicks, CALLS + 1);
    CHECK(data->shared.counts.syscalls >= CALLS);
}

static uint64_t all_cycles(uint64_t *ring0, uint64_t *kick, uint64_t *host)
{
    *ring0 = *(volatile uint64_t *)&alias->shared.cycles_ring0;
    *kick = *(volatile uint64_t *)&alias->shared.cycles_kick;
    *host = *(volatile uint64_t *)&alias->shared.cycles_host;
    return dune_now();
}

/* Each kind of work takes its own share, and no other's. */
static void cycles(void)
{
    uint64_t ring0[4], kick[4], host[4], now[4];

    now[0] = all_cycles(&ring0[0], &kick[0], &host[0]);
    CHECK(alias->shared.began && alias->shared.began < now[0]);
    for (unsigned i = 0; i < 20; i++)
        call(SMALL_SPIN, 200000, 0);
    now[1] = all_cycles(&ring0[1], &kick[1], &host[1]);
    for (unsigned i = 0; i < CALLS; i++)
        call(SMALL_KICK, 0, DUNE_KICK_RX);
    now[2] = all_cycles(&ring0[2], &kick[2], &host[2]);
    for (unsigned i = 0; i < CALLS; i++)
        getppid();
    now[3] = all_cycles(&ring0[3], &kick[3], &host[3]);
    CHECK(ring0[1] - ring0[0] > (now[1] - now[0]) / 2);
    EQUAL(kick[1] - kick[0], 0);
    CHECK(kick[2] - kick[1] > (now[2] - now[1]) / 2);
    CHECK(host[3] - host[2] > host[2] - host[1]);
    EQUAL(kick[3] - kick[2], 0);
    for (unsigned i = 0; i < 3; i++)
        CHECK(ring0[i + 1] - ring0[i] + kick[i + 1] - kick[i] + host[i + 1] - host[i] <=
              now[i + 1] - now[i]);
    printf("cycles_ring0 %lu of %lu\ncycles_kick %lu of %lu\ncycles_host %lu of %lu\n",
           ring0[1] - ring0[0], now[1] - now[0], kick[2] - kick[1], now[2] - now[1],
           host[3] - host[2], now[3] - now[2]);
}

static void case_cycles(void)
{
    EQUAL(host_run(cycles), 0);
}

/* ---- who may call ---------------------------------------------------------------------------- */

static void *thread(void *argument)
{
    EQUAL(call(SMALL_ADD, 1, 2), -EPERM);
    EQUAL(call(SMALL_KICK, 0, DUNE_KICK_TX), -EPERM);
    return argument;
}

static void threads(void)
{
    pthread_t made[8];

    for (unsigned i = 0; i < 8; i++)
        EQUAL(pthread_create(&made[i], NULL, thread, NULL), 0);
    for (unsigned i = 0; i < CALLS; i++)
        EQUAL(call(SMALL_ADD, i, 2), i + 2);
    for (unsigned i = 0; i < 8; i++)
        pthread_join(made[i], NULL);
    EQUAL(pthread_create(&made[0], NULL, thread, NULL), 0); /* a vCPU that was another's */
    pthread_join(made[0], NULL);
    EQUAL(call(SMALL_ADD, 1, 2), 3);
}

static void *outlives(void *leader)
{
    pthread_join((pthread_t)leader, NULL);
    for (unsigned i = 0; i < 20; i++) { /* their vCPUs are the first's, among others */
        pthread_t made;

        EQUAL(pthread_create(&made, NULL, thread, NULL), 0);
        pthread_join(made, NULL);
    }
    thread(NULL);
    _exit(0);
}

static void leader_leaves(void)
{
    pthread_t other;

    EQUAL(call(SMALL_ADD, 1, 2), 3);
    EQUAL(pthread_create(&other, NULL, outlives, (void *)pthread_self()), 0);
    pthread_exit(NULL);
}

static void case_threads(void)
{
    EQUAL(host_run(threads), 0);
    EQUAL(data->small.calls, CALLS + 1);
    EQUAL(data->shared.counts.kicks, 0);
}

static void case_leader_leaves(void)
{
    EQUAL(host_run(leader_leaves), 0);
    EQUAL(data->small.calls, 1);
}

static int go[2];

/* Nothing of the data is mapped in this process, but its place is taken. */
static void check_maps(pid_t pid)
{
    uint64_t covered = place.data;
    char line[512], name[64];
    FILE *maps;

    snprintf(name, sizeof(name), "/proc/%d/maps", pid);
    maps = fopen(name, "re");
    CHECK(maps != NULL);
    while (fgets(line, sizeof(line), maps) != NULL) {
        unsigned long start, end;
        char rights[5];

        if (sscanf(line, "%lx-%lx %4s", &start, &end, rights) != 3 || end <= covered ||
            start >= place.data + place.data_bytes)
            continue;
        CHECK(start <= covered && strcmp(rights, "---p") == 0);
        covered = end;
    }
    CHECK(covered >= place.data + place.data_bytes);
    fclose(maps);
}

static void forks(void)
{
    pid_t pid = fork();
    int status;

    if (pid == 0) {
        char byte;

        EQUAL(call(SMALL_ADD, 1, 2), -EPERM);
        EQUAL(call(SMALL_KICK, 1, DUNE_KICK_TX), -EPERM);
        CHECK(*(volatile uint64_t *)&alias->small.calls <= 2); /* what is mapped elsewhere stays */
        pid = fork();
        if (pid == 0)
            _exit(call(SMALL_ADD, 1, 2) == -EPERM ? 0 : 1);
        EQUAL(waitpid(pid, &status, 0), pid);
        EQUAL(status, 0);
        EQUAL(write(go[1], "c", 1), 1);
        EQUAL(read(go[0], &byte, 1), 1);
        _exit(0);
    }
    EQUAL(call(SMALL_ADD, 1, 2), 3);
    pid = vfork();
    if (pid == 0)
        _exit(call(SMALL_ADD, 1, 2) == -EPERM ? 0 : 1);
    EQUAL(waitpid(pid, &status, 0), pid);
    EQUAL(status, 0);
    EQUAL(call(SMALL_ADD, 1, 2), 3);
    EQUAL(write(go[1], &pid, 0), 0);
}

static pid_t child_of(pid_t parent)
{
    char name[64];
    int pid = 0;
    FILE *file;

    snprintf(name, sizeof(name), "/proc/%d/task/%d/children", parent, parent);
    file = fopen(name, "re");
    CHECK(file != NULL && fscanf(file, "%d", &pid) == 1);
    fclose(file);
    return pid;
}

/* The worker's child lives on; the module's socket doesn't. */
static void forks_and_waits(void)
{
    forks();
    pause();
}

static void case_forks(void)
{
    struct pollfd closed = {.fd = streams[1], .events = POLLIN};
    int pair[2];
    char byte;
    pid_t pid, child;

    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    go[0] = go[1] = pair[1];
    pid = host_start(forks_and_waits);
    EQUAL(read(pair[0], &byte, 1), 1);
    child = child_of(pid);
    check_maps(child);
    EQUAL(poll(&closed, 1, 0), 0);
    EQUAL(kill(pid, SIGKILL), 0);
    EQUAL(host_wait(pid), SIGKILL);
    EQUAL(poll(&closed, 1, 5000), 1);
    CHECK(closed.revents & POLLHUP);
    EQUAL(kill(child, 0), 0); /* while the child is still there */
    EQUAL(write(pair[0], "g", 1), 1);
    EQUAL(data->small.calls, 2);
    EQUAL(data->shared.crash.state, DUNE_CRASH_NONE); /* SIGKILL leaves no record */
}

/* ---- signals --------------------------------------------------------------------------------- */

static volatile uint64_t ticks, values, in_between;

static void on_signal(int number, siginfo_t *info, void *context)
{
    const volatile struct small *small = &alias->small;

    (void)context;
    if (number == SIGALRM)
        ticks++;
    else
        in_between += (uint64_t)info->si_value.sival_int != values++;
    in_between += small->begun != small->ended; /* never in the middle of a call */
    if (ticks % 7 == 0)
        in_between += call(SMALL_ADD, ticks, 1) != (long)ticks + 1; /* handlers may call, too */
}

static void handle_signals(void)
{
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_RESTART};

    sigaction(SIGALRM, &action, NULL);
    sigaction(SIGRTMIN, &action, NULL);
}

/* A storm of the timer's, and numbered signals from outside. */
static void signals(void)
{
    struct itimerval often = {{0, 500}, {0, 500}}, never = {{0, 0}, {0, 0}};
    uint64_t expected = 0;

    handle_signals();
    EQUAL(write(go[1], "r", 1), 1);
    setitimer(ITIMER_REAL, &often, NULL);
    while (values < QUEUED || ticks < 100) {
        EQUAL(call(SMALL_SPIN, 3000, 0), 0);
        expected++;
        EQUAL(alias->small.ended, expected);
        EQUAL(dune_module_call(SMALL_ADD, 1, 2, 3, 4, expected), expected + 10);
        EQUAL(call(SMALL_KICK, 0, DUNE_KICK_RX), -EAGAIN);
    }
    setitimer(ITIMER_REAL, &never, NULL);
    EQUAL(values, QUEUED);
    EQUAL(in_between, 0);
    printf("ticks %lu calls %lu\n", ticks, expected);
}

static void case_signals(void)
{
    int pair[2];
    char byte;
    pid_t pid;

    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    go[0] = go[1] = pair[1];
    pid = host_start(signals);
    EQUAL(read(pair[0], &byte, 1), 1);
    for (int i = 0; i < QUEUED; i++) {
        EQUAL(sigqueue(pid, SIGRTMIN, (union sigval){.sival_int = i}), 0);
        usleep(300);
    }
    EQUAL(host_wait(pid), 0);
    CHECK(data->shared.counts.interrupted > 0);
}

static const struct both_case cases[] = {
    {"adds", case_adds},
    {"stores", case_stores},
    {"kicks", case_kicks},
    {"registers", case_registers},
    {"counts", case_counts},
    {"cycles", case_cycles},
    {"threads", case_threads},
    {"leader_leaves", case_leader_leaves},
    {"forks", case_forks},
    {"signals", case_signals},
    {NULL, NULL},
};

int main(int argc, char **argv)
{
    return host_main(argc, argv, cases);
}
