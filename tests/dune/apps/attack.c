/* An echo server whose second worker attacks the dataplane from ring 3 when it is told to, and then
 * goes on echoing. For tests/dune/test_dataplane_attack.py:
 *
 *     ixnet run --placement dune ... attack.so -- DIR PORT
 *
 * Shard 0 echoes on PORT, shard 1 on PORT + 1 and takes orders: names of attacks, from the FIFO
 * DIR/orders. After each it writes a line to DIR/answers: the name, how many attempts were refused
 * as they should be, and the first that wasn't.
 */
#define ix_app_main echo_main
#include "apps/echo.c"
#undef ix_app_main

#include "attack_kit.h"
/* In their order: memory, calls, code. */
#include "attack_memory.h"
#include "attack_calls.h"
#include "attack_code.h"

struct attack {
    const char *name;
    void (*before)(struct ix_app *app);       /* the cycle that follows */
    void (*after)(struct ix_app *app, int n); /* it; NULL: nothing */
};

static const struct attack attacks[] = {
    {"nothing", attack_nothing, NULL},
    {"closed-memory", attack_closed_memory, NULL},
    {"closed-calls", attack_closed_calls, NULL},
    {"payload", attack_payload, NULL},
    {"map-files", attack_map_files, NULL},
    {"holes", attack_holes, NULL},
    {"io-pages", attack_io_pages, NULL},
    {"io-lies", lie_in_io, take_io_back},
    {"forged", put_forged, see_refused},
    {"addresses", put_lies, see_refused},
    {"arena", put_arena, unmap_arena},
    {"gate", attack_gate, NULL},
    {"background", attack_background, NULL},
    {"race", start_race, NULL},
    {"race-ends", end_race, NULL},
    {"hoard", start_hoard, NULL},
    {"release", end_hoard, NULL},
    {"jump", attack_jump, NULL},
    {"privileged", attack_privileged, NULL},
    {"spin", attack_spin, NULL},
    {"die", attack_die, NULL},
};

static const struct ix_app_ops *gate_ops;

static const struct attack *ordered(void)
{
    char name[64] = "";
    ssize_t bytes = read(kit.orders, name, sizeof name - 1);
    if (bytes <= 0)
        return NULL;
    name[strcspn(name, "\n")] = 0;
    for (size_t i = 0; i < sizeof attacks / sizeof attacks[0]; i++)
        if (!strcmp(attacks[i].name, name))
            return &attacks[i];
    kit_begin();
    kit_expect(false, "no attack is named so");
    kit_answer(name);
    return NULL;
}

static int attacking_poll(struct ix_app *app, uint64_t now_ns)
{
    const struct attack *attack = ordered();
    if (attack) {
        kit_begin();
        attack->before(app);
    }
    race_turn(app);
    int n = gate_ops->poll(app, now_ns);
    if (attack && attack->after)
        attack->after(app, n);
    race_results(app);
    hoard_turn(app, n);
    for (int i = 0; i < n; i++)
        if (app->io->events[i].type == IX_EV_RECV && app->io->events[i].bytes)
            kit.live = app->io->events[i];
    if (attack)
        kit_answer(attack->name);
    return n;
}

int ix_app_main(struct ix_app *app, int argc, char **argv)
{
    static struct ix_app_ops hooked;
    char port[16], option[] = "--port", program[] = "attack";
    char *echo_argv[] = {program, option, port, NULL};
    if (argc != 3)
        return 2;
    snprintf(port, sizeof port, "%d", atoi(argv[2]) + (int)app->shard_id);
    if (app->shard_id == 1) {
        if (!kit_open(argv[1]))
            return 3;
        gate_ops = app->ops;
        hooked = *app->ops;
        hooked.poll = attacking_poll;
        app->ops = &hooked;
    }
    return echo_main(app, 3, echo_argv);
}
