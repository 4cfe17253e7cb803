/* Attacks by calls: forged records and handles, lies about memory, races, other threads. */

#include <pthread.h>
#include <sys/wait.h>

/* ---- the shared page ------------------------------------------------------------- */

static struct ix_io honest;

/* Nothing but n_calls is read of it, so nothing but the count may have an effect. */
static void lie_in_io(struct ix_app *app)
{
    uint32_t n = app->io->n_calls;
    honest = *app->io;
    for (uint32_t i = n; i < honest.max_calls; i++) {
        memset(&honest.calls[i], 0, sizeof honest.calls[i]);
        honest.calls[i].op = IX_CALL_ABORT;
        honest.calls[i].handle = UINT64_MAX - i;
    }
    memset(app->io, 0xa5, sizeof *app->io);
    app->io->n_calls = UINT32_MAX;
}

static void take_io_back(struct ix_app *app, int n)
{
    uint32_t n_calls = app->io->n_calls;
    kit_expect(n_calls == 0, "n_calls is %u after a cycle", n_calls);
    *app->io = honest;
    app->io->n_calls = 0;
    app->io->n_events = (uint32_t)n;
    kit_expect(n >= 0 && (uint32_t)n <= honest.max_events, "%d events", n);
    kit_expect(honest.calls[honest.max_calls - 1].result < 0, "a forged ABORT was taken");
}

/* ---- forged records -------------------------------------------------------------- */

static uint32_t first_forged, last_forged;

static struct ix_call *forge(struct ix_app *app, uint8_t op, uint64_t handle)
{
    struct ix_call *call = ix_app_call(app, op, handle);
    last_forged = app->io->n_calls;
    return call;
}

static void put_forged(struct ix_app *app)
{
    static const uint8_t ops[] = {
        IX_CALL_ACCEPT, IX_CALL_REJECT,        IX_CALL_SENDV,     IX_CALL_RECV_DONE,
        IX_CALL_CLOSE,  IX_CALL_ABORT,         IX_CALL_UDP_SENDV, IX_CALL_UDP_RECV_DONE,
        IX_CALL_OPTION, IX_CALL_OPTION + 1,    64,                255,
    };
    uint64_t live = kit.live.handle;
    /* Nobody's; another generation, kind and index of one that lives; out of all tables. */
    uint64_t handles[] = {0,           1,           UINT64_MAX,        1ull << 63,
                          live ^ (1ull << 40), live ^ (1ull << 62), live + (1u << 20), ~live};
    first_forged = app->io->n_calls;
    for (uint32_t i = 0; i < sizeof ops; i++)
        for (uint32_t k = 0; k < sizeof handles / sizeof handles[0]; k++) {
            struct ix_call *call = forge(app, ops[i], handles[k]);
            if (!call)
                return;
            call->addr = (uint64_t)app->io->arena_frame << app->io->frame_shift;
            call->bytes = 64;
            call->family = 4;
            call->peer_port = 9;
            call->flags = (uint16_t)(k & 1);
        }
    for (uint32_t k = 1; k < sizeof handles / sizeof handles[0]; k++)
        forge(app, IX_CALL_TIMER_SET, handles[k]);
}

/* Lies about memory on a connection that lives. */
static void put_lies(struct ix_app *app)
{
    const struct ix_io *io = app->io;
    uint64_t frame = 1ull << io->frame_shift, live = kit.live.handle;
    uint64_t arena = (uint64_t)io->arena_frame * frame, end = io->umem_bytes;
    const struct {
        uint64_t addr;
        uint32_t bytes;
    } lies[] = {
        {end, 1},          {end - 1, 2},       {UINT64_MAX, 1},         {UINT64_MAX - 63, 128},
        {0 - frame, 1},    {1ull << 63, 64},   {(uint64_t)io->umem, 64}, {arena, UINT32_MAX},
        {arena - 32, 64},  {0, 0x7fffffff},    {end * 2, 64},           {UINT64_MAX, UINT32_MAX},
    };
    first_forged = io->n_calls;
    for (uint32_t i = 0; i < sizeof lies / sizeof lies[0]; i++)
        for (uint32_t done = 0; done < 2; done++) {
            struct ix_call *call = forge(app, done ? IX_CALL_RECV_DONE : IX_CALL_SENDV, live);
            if (!call)
                return;
            call->addr = lies[i].addr;
            call->bytes = lies[i].bytes;
        }
    /* Frames of the pool that nobody lent: free, the NIC's, other connections'. */
    for (uint32_t i = 0; i < io->arena_frame; i += io->arena_frame / 64) {
        struct ix_call *call = i == kit.live.frame ? NULL : forge(app, IX_CALL_RECV_DONE, live);
        if (call) {
            call->addr = i * frame + 300;
            call->bytes = 64;
        }
    }
}

static void see_refused(struct ix_app *app, int n)
{
    (void)n;
    for (uint32_t i = first_forged; i < last_forged; i++) {
        const struct ix_call *call = &app->io->calls[i];
        kit_expect(call->result < 0, "call %u: op %u, handle %lx, addr %lx, %u bytes: result %d",
                   i - first_forged, call->op, call->handle, call->addr, call->bytes,
                   call->result);
    }
}

/* ---- the send arena -------------------------------------------------------------- */

enum { ARENA_FRAMES = 4, ARENA_BYTES = 1024 };

/* Sends from it, and unmaps it while that is under way. The peer must see what was sent. */
static void put_arena(struct ix_app *app)
{
    struct ix_io *io = app->io;
    first_forged = io->n_calls;
    for (uint32_t i = 0; i < ARENA_FRAMES; i++) {
        uint64_t addr = (uint64_t)(io->arena_frame + i) << io->frame_shift;
        memset(io->umem + addr, 'Z', ARENA_BYTES);
        struct ix_call *call = forge(app, IX_CALL_SENDV, kit.live.handle);
        if (!call)
            return;
        call->addr = addr;
        call->bytes = ARENA_BYTES;
    }
}

static void unmap_arena(struct ix_app *app, int n)
{
    struct ix_io *io = app->io;
    uint64_t arena = (uint64_t)io->arena_frame << io->frame_shift;
    (void)n;
    kit_expect(munmap(io->umem + arena, io->umem_bytes - arena) == 0, "munmap() of the arena");
    for (uint32_t i = first_forged; i < last_forged; i++)
        kit_expect(io->calls[i].result == ARENA_BYTES, "a SENDV of the arena: %d",
                   io->calls[i].result);
}

/* ---- the gate -------------------------------------------------------------------- */

static void attack_gate(struct ix_app *app)
{
    (void)app;
    static const uint64_t shards[] = {1, 2, 7, 8, 1ull << 32, 1ull << 63, UINT64_MAX};
    for (uint64_t n = 0; n < 16; n++)
        for (uint32_t i = 0; i < sizeof shards / sizeof shards[0]; i++)
            kit_expect(kit_call(n, shards[i], 0, 0, 0) < 0, "call %lu of shard %lx", n, shards[i]);
    for (uint64_t n = 32; n < DUNE_CALL_MODULES; n++)
        kit_expect(kit_call(n, 0, UINT64_MAX, UINT64_MAX, UINT64_MAX) < 0, "call %lu", n);
    kit_expect(kit_call(IX_GATE_LISTEN, 0, 0, 0, 0xffff00000000 | 99u << 16 | 7) < 0,
               "LISTEN of no family");
    kit_expect(kit_call(IX_GATE_UDP_UNBIND, 0, kit.live.handle, 0, 0) < 0, "a forged UDP_UNBIND");
}

/* Only the thread that entered first has a dataplane. */
static void *other_thread(void *result)
{
    *(long *)result = kit_call(IX_GATE_POLL, 0, 0, 0, 0);
    return NULL;
}

static void attack_background(struct ix_app *app)
{
    pthread_t thread;
    long result = 0;
    int status = -1;
    (void)app;
    if (pthread_create(&thread, NULL, other_thread, &result))
        return kit_expect(false, "no thread");
    pthread_join(thread, NULL);
    kit_expect(result == -EPERM, "a thread's poll: %ld", result);
    pid_t child = fork();
    if (!child)
        _exit(kit_call(IX_GATE_POLL, 0, 0, 0, 0) == -EPERM ? 0 : 1);
    waitpid(child, &status, 0);
    kit_expect(status == 0, "a child's poll: status %x", (unsigned)status);
}

/* ---- races ----------------------------------------------------------------------- */

enum { RACED = 8 };

static struct race {
    pthread_t thread;
    struct ix_call *raced[RACED];
    uint64_t addr;
    uint32_t cycles;
    bool on, stop;
} race;

/* Each record is now a live handle with an address that is none, now the other way round, now a
 * record of another kind: what is checked and what is used must be one copy. */
static void *racer(void *unused)
{
    uint64_t turn = 0;
    while (!__atomic_load_n(&race.stop, __ATOMIC_RELAXED)) {
        for (uint32_t i = 0; i < RACED; i++) {
            volatile struct ix_call *call = race.raced[i];
            bool odd = (turn + i) & 1;
            call->handle = odd ? kit.live.handle : ~0ull;
            call->addr = odd ? UINT64_MAX - 31 : race.addr;
            call->bytes = odd ? 64 : UINT32_MAX;
            call->op = odd ? IX_CALL_SENDV : (uint8_t)(IX_CALL_CONNECT + turn % 11);
        }
        turn++;
    }
    return unused;
}

static void start_race(struct ix_app *app)
{
    const struct ix_io *io = app->io;
    race.addr = (uint64_t)io->arena_frame << io->frame_shift;
    race.stop = false;
    race.cycles = 0;
    for (uint32_t i = 0; i < RACED; i++)
        race.raced[i] = &io->calls[io->max_calls - 1 - i];
    race.on = !pthread_create(&race.thread, NULL, racer, NULL);
    kit_expect(race.on, "no thread");
}

/* Every cycle runs the whole array; between echo's calls and the raced ones there are none. */
static void race_turn(struct ix_app *app)
{
    struct ix_io *io = app->io;
    if (!race.on)
        return;
    for (uint32_t i = io->n_calls; i < io->max_calls - RACED; i++)
        io->calls[i].op = IX_CALL_NONE;
    io->n_calls = io->max_calls;
}

static void race_results(struct ix_app *app)
{
    if (!race.on)
        return;
    race.cycles++;
    app->io->n_calls = 0;
}

static void end_race(struct ix_app *app)
{
    (void)app;
    if (!race.on)
        return kit_expect(false, "there is no race");
    __atomic_store_n(&race.stop, true, __ATOMIC_RELAXED);
    pthread_join(race.thread, NULL);
    race.on = false;
    kit_expect(race.cycles > 3, "only %u cycles were raced", race.cycles);
    kit.attempts = race.cycles * RACED;
}

/* ---- frames ---------------------------------------------------------------------- */

static struct hoard {
    struct ix_event event[65536];
    uint32_t n;
    bool on, giving;
} hoard;

static void start_hoard(struct ix_app *app)
{
    (void)app;
    hoard.on = true;
    kit_expect(true, "hoard");
}

static void end_hoard(struct ix_app *app)
{
    (void)app;
    hoard.on = false;
    hoard.giving = true;
    kit_expect(hoard.n > 0, "nothing was hoarded");
    kit.attempts = hoard.n;
}

/* Keeps what arrives, and tells echo nothing; in the end gives all of it back. */
static void hoard_turn(struct ix_app *app, int n)
{
    for (int i = 0; hoard.on && i < n; i++) {
        struct ix_event *event = &app->io->events[i];
        if (event->type == IX_EV_RECV && event->bytes && hoard.n < 65536) {
            hoard.event[hoard.n++] = *event;
            event->type = IX_EV_NONE;
        }
    }
    while (hoard.giving && hoard.n) {
        const struct ix_event *event = &hoard.event[hoard.n - 1];
        struct ix_call *call = ix_app_call(app, IX_CALL_RECV_DONE, event->handle);
        if (!call)
            return;
        call->addr = ((uint64_t)event->frame << app->io->frame_shift) + event->offset;
        call->bytes = event->bytes;
        hoard.n--;
    }
}
