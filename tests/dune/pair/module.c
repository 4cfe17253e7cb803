/* See pair.h. */
#include "pair.h"

#include "api/api.h"
#include "gate/gate.h"
#include "link/sim_link.h"
#include "module/module.h"

enum { WIRE_FRAMES = 4096, RING = 1024 };

struct pair_state {
    struct ix_gate gate;
    uint64_t now_ns; /* the gate's counter: a tick is a nanosecond of virtual time */
    struct ix_sim_wire wire;
    struct ix_shard *shard[2];
};

static struct pair_state *state_of(struct pair_setup *setup)
{
    return (struct pair_state *)((uint8_t *)setup + PAIR_STATE);
}

static int make_wire(const struct pair_setup *setup, struct pair_state *state)
{
    struct ix_sim_setup wire = {
        .seed = setup->seed, .now_ns = setup->now_ns, .wire_frames = WIRE_FRAMES,
    };
    for (int i = 0; i < 2; i++) {
        struct ix_sim_end_setup *end = &wire.end[i];
        end->umem = (uint8_t *)setup->umem[i];
        end->umem_bytes = setup->umem_bytes;
        end->frame_shift = 11;
        end->rx_headroom = IX_SIM_RX_HEADROOM;
        end->fill_entries = end->rx_entries = end->tx_entries = end->completion_entries = RING;
    }
    if (ix_sim_wire_bytes(&wire) > setup->wire_bytes)
        return -IX_EINVAL;
    return ix_sim_wire_init(&state->wire, &wire, (void *)setup->wire);
}

static long make(struct pair_setup *setup, struct pair_state *state)
{
    const struct ix_config *config = (const void *)((uint8_t *)setup + PAIR_CONFIGS);
    int err = make_wire(setup, state);
    if (err)
        return err;
    state->now_ns = setup->now_ns;
    state->gate.ticks = &state->now_ns;
    ix_gate_set_clock(&state->gate, 0, 0, 1ull << 32);
    for (int i = 0; i < 2; i++) {
        struct ix_config copy = config[i];
        state->shard[i] = ix_shard_create((void *)setup->shard[i], setup->shard_bytes[i], &copy,
                                          &state->wire.end[i].link, NULL);
        if (!state->shard[i])
            return -IX_EINVAL;
        state->gate.entry[i].shard = state->shard[i];
    }
    state->gate.shard_count = 2;
    return 0;
}

static long set_path(const struct pair_setup *setup, struct pair_state *state, uint32_t direction)
{
    const uint64_t *word = (const uint64_t *)setup->page;
    struct ix_sim_path path = {
        .delay_ns = word[0],
        .loss_ppm = (uint32_t)word[1],
        .dup_ppm = (uint32_t)word[2],
        .reorder_ppm = (uint32_t)word[3],
        .reorder_hold_ns = word[4],
        .corrupt_ppm = (uint32_t)word[5],
    };
    return ix_sim_wire_set_path(&state->wire, direction, &path);
}

static long check(const struct pair_setup *setup, struct pair_state *state)
{
    const char *wrong = ix_sim_wire_check(&state->wire);
    for (int i = 0; i < 2 && !wrong; i++)
        wrong = ix_shard_check(state->shard[i]);
    for (int i = 0; wrong && i < PAIR_TEXT; i++) {
        ((char *)setup->page)[i] = wrong[i];
        if (!wrong[i])
            break;
    }
    return wrong != NULL;
}

static long time_of(uint64_t ns)
{
    return ns > INT64_MAX ? -1 : (long)ns;
}

long dune_module_main(void *context, uint64_t n, const uint64_t arg[5])
{
    struct pair_setup *setup = context;
    struct pair_state *state = state_of(setup);
    switch (n) {
    case PAIR_MAKE:
        return make(setup, state);
    case PAIR_ADVANCE:
        state->now_ns = arg[0];
        ix_sim_wire_advance(&state->wire, arg[0]);
        return 0;
    case PAIR_PATH:
        return set_path(setup, state, (uint32_t)arg[0] & 1);
    case PAIR_NEXT_NS:
        return time_of(ix_sim_wire_next_ns(&state->wire));
    case PAIR_DEADLINE:
        return time_of(ix_shard_next_deadline(state->shard[arg[0] & 1], state->now_ns));
    case PAIR_TELL:
        return ix_ctl_send(state->shard[arg[0] & 1], (const struct ix_ctl_msg *)setup->page);
    case PAIR_CHECK:
        return check(setup, state);
    default:
        return ix_gate_call(&state->gate, n, arg);
    }
}
