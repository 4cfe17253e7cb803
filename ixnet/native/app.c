/* The loop's turn of the crank on the application's side, and its talk with the control plane. See
 * app.h.
 */
#include "native/app.h"
#include "native/fibers.h"
#include "native/process.h"
#include "native/recorder.h"
#include "native/request.h"

#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* A sleeper looks at the stop flag this often even if nobody kicks it. */
#define SLEEP_MAX_NS 100000000u
/* The control plane may be resolving a neighbour or listing sockets; it answers within
 * milliseconds. */
#define REPLY_TIMEOUT_MS 10000
/* Every packet to an unresolved neighbour is a miss; one nudge a millisecond is enough. */
#define NUDGE_INTERVAL_NS 1000000u

static uint64_t app_clock(const struct ix_app *app)
{
    return app->clock ? app->clock() : ix_process_now_ns();
}

static bool stopped(const struct ix_app *app)
{
    return app->stop && __atomic_load_n(app->stop, __ATOMIC_ACQUIRE);
}

/* ---- talk with the control plane ------------------------------------------------- */

/* Without waiting for an answer. A full socket is no loss: the control plane looks by itself,
 * only later. */
static void tell(struct ix_app *app, uint8_t op)
{
    struct ix_request request = {
        .magic = IX_REQUEST_MAGIC, .op = op, .shard = (uint8_t)app->gate_shard};
    if (app->request_fd >= 0)
        (void)!send(app->request_fd, &request, sizeof request, MSG_DONTWAIT | MSG_NOSIGNAL);
}

static void give_reason(char *why, size_t why_bytes, const char *text)
{
    if (why && why_bytes)
        snprintf(why, why_bytes, "%s", text);
}

/* The answer to request number `sequence`; older ones, whose senders gave up, are skipped. */
static int await_reply(int fd, uint32_t sequence, struct ix_reply *reply)
{
    for (;;) {
        struct pollfd pfd = {.fd = fd, .events = POLLIN};
        int ready = poll(&pfd, 1, REPLY_TIMEOUT_MS);
        if (ready < 0 && errno == EINTR)
            continue;
        if (ready <= 0)
            return ready ? -errno : -ETIMEDOUT;
        ssize_t got = recv(fd, reply, sizeof *reply, 0);
        if (got < 0)
            return -errno;
        if (got == 0)
            return -EPIPE;
        if (got == (ssize_t)sizeof *reply && reply->sequence == sequence)
            return 0;
    }
}

/* Sends the request and waits for its answer. Returns 0 or -errno, with the reason in `why`. */
static int ask(struct ix_app *app, struct ix_request *request, char *why, size_t why_bytes)
{
    struct ix_reply reply;
    if (app->request_fd < 0)
        return 0;
    request->magic = IX_REQUEST_MAGIC;
    request->shard = (uint8_t)app->gate_shard;
    request->sequence = ++app->sequence;
    if (send(app->request_fd, request, sizeof *request, MSG_NOSIGNAL) < 0) {
        int err = -errno;
        give_reason(why, why_bytes, "the control plane is gone (cure: start again with ixnet run)");
        return err;
    }
    int err = await_reply(app->request_fd, request->sequence, &reply);
    if (err) {
        give_reason(why, why_bytes,
                    "the control plane does not answer (cure: start again with ixnet run)");
        return err;
    }
    reply.text[sizeof reply.text - 1] = 0;
    give_reason(why, why_bytes, reply.text);
    return reply.error;
}

/* Family and address of `ip`, as ix_app_listen() takes it. */
static int parse_ip(const char *ip, struct ix_request *request, char *why, size_t why_bytes)
{
    static const uint8_t mapped[12] = {[10] = 0xff, 0xff}; /* RFC 4291 2.5.5.2 */
    char text[160];
    request->family = 0;
    if (!ip || !*ip || !strcmp(ip, "::"))
        return 0;
    request->family = 4;
    if (inet_pton(AF_INET, ip, request->ip) == 1)
        return 0;
    request->family = 6;
    if (!strcmp(ip, IX_APP_V6ONLY))
        return 0;
    if (inet_pton(AF_INET6, ip, request->ip) == 1) {
        if (memcmp(request->ip, mapped, sizeof mapped))
            return 0;
        request->family = 4;
        memcpy(request->ip, request->ip + sizeof mapped, 4);
        memset(request->ip + 4, 0, sizeof mapped);
        return 0;
    }
    snprintf(text, sizeof text,
             "'%.60s' is not an address (cure: use one like 192.0.2.1 or 2001:db8::1, "
             "or none for all)", ip);
    give_reason(why, why_bytes, text);
    return -EINVAL;
}

static int claim(struct ix_app *app, struct ix_request *request, uint8_t proto, const char *ip,
                 uint16_t port, char *why, size_t why_bytes)
{
    memset(request, 0, sizeof *request);
    give_reason(why, why_bytes, "");
    if (!port) {
        give_reason(why, why_bytes, "port 0 is none (cure: name the port)");
        return -EINVAL;
    }
    int err = parse_ip(ip, request, why, why_bytes);
    if (err)
        return err;
    request->op = IX_REQUEST_CLAIM;
    request->proto = proto;
    request->port = port;
    return ask(app, request, why, why_bytes);
}

static int unclaim(struct ix_app *app, struct ix_request *request)
{
    request->op = IX_REQUEST_UNCLAIM;
    return ask(app, request, NULL, 0);
}

static const char *shard_refusal(int err)
{
    switch (err) {
    case -EADDRINUSE:
        return "this worker uses this address and port already (cure: close the other user first)";
    case -ENOSPC:
        return "the shard's table of listeners is full (cure: close some)";
    default:
        return "the shard refused";
    }
}

/* After a claim: err is what the shard said. A refusal gives the claim back. */
static int settle(struct ix_app *app, struct ix_request *request, int err, char *why,
                  size_t why_bytes)
{
    if (err) {
        give_reason(why, why_bytes, shard_refusal(err));
        unclaim(app, request);
    }
    return err;
}

int ix_app_listen(struct ix_app *app, const char *ip, uint16_t port, uint64_t cookie,
                  uint32_t backlog, char *why, size_t why_bytes)
{
    struct ix_request request;
    int err = claim(app, &request, IPPROTO_TCP, ip, port, why, why_bytes);
    if (err)
        return err;
    err = app->ops->listen(app, request.ip, request.family, port, cookie, backlog);
    return settle(app, &request, err, why, why_bytes);
}

int ix_app_listen_option(struct ix_app *app, const char *ip, uint16_t port, uint32_t option,
                         uint64_t value)
{
    struct ix_request request = {.proto = IPPROTO_TCP, .port = port};
    int err = parse_ip(ip, &request, NULL, 0);
    if (!err)
        err = app->ops->listen_option(app, request.ip, request.family, port, option, value);
    return err;
}

int ix_app_unlisten(struct ix_app *app, const char *ip, uint16_t port)
{
    struct ix_request request = {.proto = IPPROTO_TCP, .port = port};
    int err = parse_ip(ip, &request, NULL, 0);
    if (!err)
        err = app->ops->unlisten(app, request.ip, request.family, port);
    return err ? err : unclaim(app, &request);
}

int ix_app_udp_bind(struct ix_app *app, const char *ip, uint16_t port, uint64_t cookie,
                    uint64_t *handle, char *why, size_t why_bytes)
{
    struct ix_request request;
    int err = claim(app, &request, IPPROTO_UDP, ip, port, why, why_bytes);
    if (err)
        return err;
    err = app->ops->udp_bind(app, request.ip, request.family, port, cookie, handle);
    return settle(app, &request, err, why, why_bytes);
}

int ix_app_udp_unbind(struct ix_app *app, uint64_t handle, const char *ip, uint16_t port)
{
    struct ix_request request = {.proto = IPPROTO_UDP, .port = port};
    int err = parse_ip(ip, &request, NULL, 0);
    if (!err)
        err = app->ops->udp_unbind(app, handle);
    return err ? err : unclaim(app, &request);
}

/* ---- the shard in this very process ---------------------------------------------- */

static int inline_poll(struct ix_app *app, uint64_t now_ns)
{
    return ix_shard_poll(app->shard, now_ns);
}

static uint64_t inline_may_sleep_ns(struct ix_app *app, uint64_t now_ns)
{
    uint64_t deadline = ix_shard_next_deadline(app->shard, now_ns);
    return deadline > now_ns ? deadline - now_ns : 0;
}

static int inline_listen(struct ix_app *app, const uint8_t *ip, uint8_t family, uint16_t port,
                         uint64_t cookie, uint32_t backlog)
{
    return ix_shard_listen(app->shard, ip, family, port, cookie, backlog);
}

static int inline_listen_option(struct ix_app *app, const uint8_t *ip, uint8_t family,
                                uint16_t port, uint32_t option, uint64_t value)
{
    return ix_shard_listen_option(app->shard, ip, family, port, option, value);
}

static int inline_unlisten(struct ix_app *app, const uint8_t *ip, uint8_t family, uint16_t port)
{
    return ix_shard_unlisten(app->shard, ip, family, port);
}

static int inline_udp_bind(struct ix_app *app, const uint8_t *ip, uint8_t family, uint16_t port,
                           uint64_t cookie, uint64_t *handle)
{
    return ix_shard_udp_bind(app->shard, ip, family, port, cookie, handle);
}

static int inline_udp_unbind(struct ix_app *app, uint64_t handle)
{
    return ix_shard_udp_unbind(app->shard, handle);
}

static const struct ix_stats *inline_stats(struct ix_app *app)
{
    return ix_shard_stats(app->shard);
}

const struct ix_app_ops *ix_app_inline_ops(void)
{
    static const struct ix_app_ops ops = {
        .poll = inline_poll,
        .may_sleep_ns = inline_may_sleep_ns,
        .listen = inline_listen,
        .listen_option = inline_listen_option,
        .unlisten = inline_unlisten,
        .udp_bind = inline_udp_bind,
        .udp_unbind = inline_udp_unbind,
        .stats = inline_stats,
    };
    return &ops;
}

/* ---- the loop -------------------------------------------------------------------- */

static const struct ix_counters *counters(const struct ix_app *app)
{
    return (const struct ix_counters *)app->stats->counters;
}

/* Did the shard ask for a neighbour? The control plane looks at its ring only now and then by
 * itself. The counters are those of the last update: every 1,024 cycles, and before a sleep. */
static void nudge_on_miss(struct ix_app *app)
{
    uint64_t misses = counters(app)->neigh_misses;
    if (misses == app->misses_told || app->now_ns - app->misses_told_ns < NUDGE_INTERVAL_NS)
        return;
    app->misses_told = misses;
    app->misses_told_ns = app->now_ns;
    tell(app, IX_REQUEST_NUDGE);
}

static int poll_shard(struct ix_app *app, uint64_t now_ns)
{
    if (!app->recorder)
        return app->ops->poll(app, now_ns);
    ix_recorder_begin(app->recorder, now_ns);
    int n = app->ops->poll(app, now_ns);
    ix_recorder_end(app->recorder);
    return n;
}

/* One cycle; keeps idle_since_ns. Frames that only carried ACKs make no event and are not
 * idleness. */
static int cycle(struct ix_app *app)
{
    bool busy = app->io->n_calls != 0;
    uint64_t empty_cycles = app->stats ? app->stats->batch_hist[0] : 0;
    app->now_ns = app_clock(app);
    int n = poll_shard(app, app->now_ns);
    if (app->stats) {
        busy |= app->stats->batch_hist[0] == empty_cycles;
        nudge_on_miss(app);
    }
    if (n || busy)
        app->idle_since_ns = 0;
    else if (!app->idle_since_ns)
        app->idle_since_ns = app->now_ns;
    return n;
}

/* ---- siblings -------------------------------------------------------------------- */

static uint32_t sibling_count(const struct ix_app *app)
{
    return app->n_siblings > 1 ? app->n_siblings : 1;
}

static struct ix_app *sibling(struct ix_app *app, uint32_t i)
{
    return app->n_siblings > 1 ? app->siblings[i] : app;
}

/* The worker runs its loop once every shard of it was polled. */
static void begin_serving(struct ix_app *app)
{
    bool all = true;
    app->serving = 1;
    for (uint32_t i = 0; i < sibling_count(app); i++)
        all &= sibling(app, i)->serving;
    if (all)
        tell(app, IX_REQUEST_READY);
}

/* Have the others, like this one, been idle for long, and is there nothing that they are to be
 * asked? */
static bool siblings_idle(struct ix_app *app)
{
    for (uint32_t i = 0; i < app->n_siblings; i++) {
        const struct ix_app *other = app->siblings[i];
        if (!other->idle_since_ns || other->io->n_calls ||
            app->now_ns - other->idle_since_ns < (uint64_t)app->spin_ns)
            return false;
    }
    return true;
}

/* ---- sleep ----------------------------------------------------------------------- */

/* Readers see what the shard is while it sleeps. */
static void show_stats(struct ix_app *app)
{
    if (app->stats) {
        (void)app->ops->stats(app);
        nudge_on_miss(app);
    }
}

/* Sleeps until a shard has something to do, its link or the control plane has something for it, or
 * max_wait_ns are over. Returns false when there was nothing to sleep for. */
static bool sleep_for_work(struct ix_app *app, uint64_t max_wait_ns)
{
    struct pollfd fds[1 + IX_APP_SIBLINGS];
    uint32_t n = sibling_count(app);
    uint64_t now_ns = app_clock(app), wait = SLEEP_MAX_NS;
    wait = max_wait_ns < wait ? max_wait_ns : wait;
    fds[0] = (struct pollfd){.fd = app->kick_fd > 0 ? app->kick_fd : -1, .events = POLLIN};
    for (uint32_t i = 0; i < n; i++) {
        struct ix_app *one = sibling(app, i);
        uint64_t may = one->ops->may_sleep_ns(one, now_ns);
        wait = may < wait ? may : wait;
        fds[1 + i] = (struct pollfd){.fd = one->link_fd, .events = POLLIN};
    }
    if (!wait)
        return false;
    for (uint32_t i = 0; i < n; i++)
        show_stats(sibling(app, i));
    struct timespec timeout = {.tv_nsec = (long)wait};
    int ready = ppoll(fds, 1 + n, &timeout, NULL);
    if (ready > 0 && fds[0].revents) {
        uint64_t kicks;
        (void)!read(app->kick_fd, &kicks, sizeof kicks);
    }
    return true;
}

int ix_app_poll(struct ix_app *app, uint64_t max_wait_ns)
{
    if (app->fiber)
        max_wait_ns = ix_fibers_pass(app, max_wait_ns);
    if (stopped(app))
        return -1;
    if (!app->serving)
        begin_serving(app);
    int n = cycle(app);
    if (!app->idle_since_ns || !max_wait_ns || app->spin_ns < 0 || app->link_fd < 0 ||
        app->now_ns - app->idle_since_ns < (uint64_t)app->spin_ns || !siblings_idle(app))
        return n;
    if (!sleep_for_work(app, max_wait_ns))
        return n;
    if (stopped(app))
        return -1;
    return cycle(app);
}

/* ---- the end --------------------------------------------------------------------- */

int ix_app_abort_all(struct ix_app *app)
{
    struct ix_request request = {.op = IX_REQUEST_LEAVE};
    return ask(app, &request, NULL, 0);
}

/* A cycle. Returns whether the shard has segments on their way or connections, or -1. */
static int drain(struct ix_app *app, uint64_t now_ns)
{
    if (poll_shard(app, now_ns) < 0)
        return -1;
    const struct ix_stats *stats = app->ops->stats(app);
    return stats->flows != stats->flows_time_wait || stats->frames_tx;
}

void ix_app_leave(struct ix_app *app, uint64_t drain_ns)
{
    uint64_t start = app_clock(app), now = start;
    uint32_t n = sibling_count(app);
    for (uint32_t i = 0; i < n; i++)
        if (ix_app_abort_all(sibling(app, i)))
            return;
    /* What the application queued in its last turn still counts. */
    for (bool left = true; left && now - start < drain_ns;) {
        now = app_clock(app);
        left = false;
        for (uint32_t i = 0; i < n; i++) {
            int has = drain(sibling(app, i), now);
            if (has < 0)
                return;
            left |= has != 0;
        }
    }
}

int ix_app_run_native(struct ix_app *app, const char *path, int argc, char **argv, int *ran,
                      char *why, size_t why_bytes)
{
    *ran = 0;
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        give_reason(why, why_bytes, dlerror());
        return -ENOEXEC;
    }
    int (*app_main)(struct ix_app *, int, char **);
    *(void **)&app_main = dlsym(library, "ix_app_main");
    if (!app_main) {
        give_reason(why, why_bytes, "it has no function ix_app_main: see ixnet/native/app.h");
        dlclose(library);
        return -ENOEXEC;
    }
    *ran = 1;
    return app->n_siblings > 1 ? ix_fibers_run(app, app_main, argc, argv)
                               : app_main(app, argc, argv);
}
