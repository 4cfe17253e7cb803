/* A module in ring 0, used as it should be: PROGRAM CASE. Figures are printed as "name value". */
#include "module/host.h"

#define CALLS 1000

static void adds(void)
{
    for (uint64_t i = 0; i < CALLS; i++)
        EQUAL(dune_module_call(SMALL_ADD, i, 2, 3, 4, 5), i + 14);
    EQUAL(dune_module_call(SMALL_ADD, ~0ull, 1, 0, 0, 0), 0);
    EQUAL(call(SMALL_CALLS, 0, 0), SMALL_UNKNOWN);
    EQUAL(call(DUNE_CALL_MODULES - 1, 0, 0), SMALL_UNKNOWN);
    EQUAL(call(DUNE_CALL_MODULES, 0, 0), -ENOSYS);
    EQUAL(alias->small.calls, CALLS + 1);
}

static void case_adds(void)
{
    EQUAL(host_run(adds), 0);
    EQUAL(data->small.calls, CALLS + 1);
    EQUAL(data->shared.counts.module_calls, CALLS + 3);
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
    EQUAL(call(SMALL_KICK, 1, DUNE_KICK_TX), -EBADF);
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
    EQUAL(data->shared.counts.kicks, 6);
}

static const struct both_case cases[] = {
    {"adds", case_adds},
    {"stores", case_stores},
    {"kicks", case_kicks},
    {NULL, NULL},
};

int main(int argc, char **argv)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (const struct both_case *one = cases; argc == 2 && one->name; one++) {
        if (strcmp(one->name, argv[1]) != 0)
            continue;
        host_prepare();
        one->run();
        return 0;
    }
    fprintf(stderr, "%s CASE\n", argv[0]);
    return 2;
}
