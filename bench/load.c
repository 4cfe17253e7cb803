/* The ordinary client: many TCP connections on the kernel's stack, driven by one thread over epoll.
 *
 *     load rr     --connections N --bytes M --seconds T   one request outstanding on each
 *     load crc    --slots N       --bytes M --seconds T   connect, one request, close, again
 *     load many   --connections N --messages K --max-bytes B   random sizes, then an orderly close
 *     load stream --connections N --mib X                 all of it at once, both ways
 *
 * Every byte that comes back is compared with what was sent. Pin the process to a core from
 * outside. Prints one JSON object. Exit status: 0 all well, 1 errors (they are in the object), 2
 * usage. Nothing waits for ever: without progress for --timeout seconds the run ends with an error.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "bytestream.h"
#include "load_options.h"
#include "load_run.h"

#define EVENTS_MAX       512
#define CONNECTING_MAX   256 /* connects in flight: within any sane listen backlog */
#define CONNECT_RETRIES  20  /* per connection, for a full backlog */
#define CRC_FAILURES_MAX 100 /* in a row: then the server is gone */
#define DRAIN_NS         2000000000ull
#define SECOND_NS        1000000000ull

static volatile sig_atomic_t stop_requested;

static void on_signal(int signum)
{
    (void)signum;
    stop_requested = 1;
}

static uint64_t clock_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * SECOND_NS + (uint64_t)t.tv_nsec;
}

static uint64_t seconds_ns(double seconds)
{
    return (uint64_t)(seconds * 1e9);
}

/* ---- failures ------------------------------------------------------------------------------ */

__attribute__((format(printf, 3, 4))) static void note_failure(struct run *r, enum failure kind,
                                                               const char *format, ...)
{
    r->failures[kind]++;
    if (r->first_error[0])
        return;
    va_list args;
    va_start(args, format);
    vsnprintf(r->first_error, sizeof r->first_error, format, args);
    va_end(args);
}

static enum failure failure_of_errno(int error)
{
    switch (error) {
    case ECONNREFUSED:
        return FAIL_REFUSED;
    case ECONNRESET:
    case EPIPE:
        return FAIL_RESET;
    case ETIMEDOUT:
        return FAIL_TIMEOUT;
    default:
        return FAIL_OTHER;
    }
}

static uint32_t conn_number(const struct run *r, const struct conn *c)
{
    return (uint32_t)(c - r->conns);
}

static bool conn_is_busy(const struct conn *c)
{
    return c->state == CONN_OPEN && c->received < c->goal;
}

static void conn_close(struct run *r, struct conn *c, enum conn_state end)
{
    if (conn_is_busy(c))
        r->busy--;
    close(c->fd);
    c->fd = -1;
    c->state = (uint8_t)end;
    r->live--;
}

static void conn_fail(struct run *r, struct conn *c, enum failure kind, const char *what)
{
    note_failure(r, kind, "connection %u to %s: %s after %llu of %llu bytes", conn_number(r, c),
                 r->opt.target_text, what, (unsigned long long)c->received,
                 (unsigned long long)c->goal);
    r->failures_in_a_row++;
    conn_close(r, c, CONN_FAILED);
}

static void conn_fail_errno(struct run *r, struct conn *c, int error)
{
    conn_fail(r, c, failure_of_errno(error), strerror(error));
}

/* ---- one connection ------------------------------------------------------------------------ */

static void conn_want_write(struct run *r, struct conn *c, bool want)
{
    if (c->want_write == want || r->opt.mode == MODE_CRC)
        return; /* crc: edge-triggered, both directions from the start */
    c->want_write = want;
    struct epoll_event event = {.events = EPOLLIN | (want ? EPOLLOUT : 0), .data.ptr = c};
    epoll_ctl(r->epoll_fd, EPOLL_CTL_MOD, c->fd, &event);
}

/* Sends up to the goal, as far as the socket takes it. */
static void conn_send(struct run *r, struct conn *c)
{
    while (c->sent < c->goal) {
        uint64_t left = c->goal - c->sent;
        size_t n = left < BUFFER_BYTES ? (size_t)left : BUFFER_BYTES;
        bytestream_fill(c->seed, c->sent, r->buffer, n);
        ssize_t sent = send(c->fd, r->buffer, n, MSG_NOSIGNAL);
        if (sent < 0 && (errno == EAGAIN || errno == EINTR))
            sent = 0;
        if (sent < 0) {
            conn_fail_errno(r, c, errno);
            return;
        }
        c->sent += (uint64_t)sent;
        if ((size_t)sent < n) {
            conn_want_write(r, c, true);
            return;
        }
    }
    conn_want_write(r, c, false);
}

static uint64_t next_message_bytes(const struct run *r, const struct conn *c)
{
    switch (r->opt.mode) {
    case MODE_MANY:
        return 1 + bytestream_word(~c->seed, c->messages_left) % r->opt.max_bytes;
    case MODE_STREAM:
        return r->opt.stream_bytes;
    default:
        return r->opt.message_bytes;
    }
}

static void conn_start_message(struct run *r, struct conn *c)
{
    c->goal += next_message_bytes(r, c);
    c->started_ns = r->now_ns;
    r->busy++;
    conn_send(r, c);
}

/* The whole of a message is back. */
static void conn_message_done(struct run *r, struct conn *c)
{
    r->busy--;
    r->progress_ns = r->now_ns;
    if (r->measuring) {
        r->completed++;
        histogram_add(&r->latency, r->now_ns - c->started_ns);
    }
    switch (r->opt.mode) {
    case MODE_CRC:
        r->failures_in_a_row = 0;
        conn_close(r, c, CONN_DONE);
        return;
    case MODE_RR:
        if (!r->draining)
            conn_start_message(r, c);
        return;
    case MODE_MANY:
    case MODE_STREAM:
        if (c->messages_left > 0) {
            c->messages_left--;
            conn_start_message(r, c);
        } else {
            c->state = CONN_FINISHING;
            shutdown(c->fd, SHUT_WR);
        }
    }
}

static void conn_receive(struct run *r, struct conn *c)
{
    ssize_t got = recv(c->fd, r->buffer, BUFFER_BYTES, 0);
    if (got < 0) {
        if (errno != EAGAIN && errno != EINTR)
            conn_fail_errno(r, c, errno);
        return;
    }
    r->now_ns = clock_ns();
    if (got == 0) {
        if (c->state == CONN_FINISHING)
            conn_close(r, c, CONN_DONE);
        else
            conn_fail(r, c, FAIL_CLOSED, "the server closed it");
        r->progress_ns = r->now_ns;
        return;
    }
    if ((uint64_t)got > c->goal - c->received) {
        conn_fail(r, c, FAIL_MISMATCH, "more came back than was sent");
        return;
    }
    if (!bytestream_matches(c->seed, c->received, r->buffer, (size_t)got)) {
        conn_fail(r, c, FAIL_MISMATCH, "the echo differs from what was sent");
        return;
    }
    r->verified_bytes += (uint64_t)got;
    c->received += (uint64_t)got;
    if (c->received == c->goal)
        conn_message_done(r, c);
    else
        r->progress_ns = r->now_ns;
    /* Edge-triggered, what is left in the socket would not be announced again. */
    if (r->opt.mode == MODE_CRC && got == BUFFER_BYTES && c->state == CONN_OPEN)
        conn_receive(r, c);
}

/* ---- connecting ---------------------------------------------------------------------------- */

static void read_port_range(struct run *r)
{
    FILE *file = fopen("/proc/sys/net/ipv4/ip_local_port_range", "r");
    if (!file || fscanf(file, "%u %u", &r->port_lo, &r->port_hi) != 2 || r->port_lo > r->port_hi)
        r->port_lo = 32768, r->port_hi = 60999;
    if (file)
        fclose(file);
    r->next_port = r->port_lo;
}

/* Takes the next local port of the range. Left to itself connect() looks for a free one among the
 * TIME_WAITs of all that came before, and after some seconds of crc spends a third of the client's
 * time on it: then the client is what is measured. Where the bind fails connect() chooses. */
static void take_next_port(struct run *r, const struct conn *c)
{
    int one = 1;
    union {
        struct sockaddr any;
        struct sockaddr_in in;
        struct sockaddr_in6 in6;
    } local = {.any.sa_family = r->opt.target.ss_family};
    if (!r->next_port)
        read_port_range(r);
    setsockopt(c->fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    for (int tries = 0; tries < 16; tries++) {
        uint16_t port = htons((uint16_t)r->next_port);
        r->next_port = r->next_port == r->port_hi ? r->port_lo : r->next_port + 1;
        if (local.any.sa_family == AF_INET6)
            local.in6.sin6_port = port;
        else
            local.in.sin_port = port;
        if (bind(c->fd, &local.any, r->opt.target_bytes) == 0)
            return;
    }
}

/* Starts a connect. False: no local port is free at the moment. */
static bool conn_connect(struct run *r, struct conn *c)
{
    const struct options *o = &r->opt;
    c->fd = socket(o->target.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0) {
        fprintf(stderr, "load: socket: %s\n", strerror(errno));
        exit(1);
    }
    int one = 1;
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (o->mode == MODE_CRC)
        take_next_port(r, c);
    int result = connect(c->fd, (const struct sockaddr *)&o->target, o->target_bytes);
    int error = result < 0 && errno != EINPROGRESS ? errno : 0;
    if (error == EADDRNOTAVAIL || error == EAGAIN) {
        close(c->fd);
        r->port_waits++;
        return false;
    }
    r->live++;
    c->state = CONN_CONNECTING;
    c->want_write = true;
    c->sent = c->goal = c->received = 0;
    if (error) {
        conn_fail_errno(r, c, error);
        return true;
    }
    uint32_t edge = o->mode == MODE_CRC ? EPOLLET : 0;
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | edge, .data.ptr = c};
    if (epoll_ctl(r->epoll_fd, EPOLL_CTL_ADD, c->fd, &event) < 0) {
        fprintf(stderr, "load: epoll_ctl: %s\n", strerror(errno));
        exit(1);
    }
    return true;
}

/* A connect has come to its end. A reset or a time-out then is a full backlog: tried again. */
static void conn_connected(struct run *r, struct conn *c)
{
    int error = 0;
    socklen_t bytes = sizeof error;
    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &bytes);
    if ((error == ECONNRESET || error == ETIMEDOUT) && c->retries < CONNECT_RETRIES) {
        c->retries++;
        conn_close(r, c, CONN_IDLE);
        return;
    }
    if (error) {
        conn_fail_errno(r, c, error);
        return;
    }
    c->state = CONN_OPEN;
    r->opened++;
    r->progress_ns = r->now_ns;
    conn_want_write(r, c, false);
}

static void conn_event(struct run *r, struct conn *c, uint32_t events)
{
    if (c->state == CONN_CONNECTING) {
        if (!(events & (EPOLLOUT | EPOLLERR | EPOLLHUP)))
            return;
        uint64_t connect_called_ns = c->started_ns;
        conn_connected(r, c);
        if (c->state == CONN_OPEN && r->opt.mode == MODE_CRC) {
            conn_start_message(r, c);
            c->started_ns = connect_called_ns;
        }
        return;
    }
    if (events & (EPOLLIN | EPOLLERR | EPOLLHUP))
        conn_receive(r, c);
    if ((events & EPOLLOUT) && c->state == CONN_OPEN && c->sent < c->goal)
        conn_send(r, c);
}

/* ---- the loop ------------------------------------------------------------------------------ */

/* Handles what there is to handle, waiting at most wait_ms for it. */
static void turn(struct run *r, int wait_ms)
{
    struct epoll_event events[EVENTS_MAX];
    int n = epoll_wait(r->epoll_fd, events, EVENTS_MAX, r->opt.spin ? 0 : wait_ms);
    if (n < 0 && errno != EINTR) {
        fprintf(stderr, "load: epoll_wait: %s\n", strerror(errno));
        exit(1);
    }
    if (n <= 0 || r->opt.mode == MODE_CRC)
        r->now_ns = clock_ns();
    for (int i = 0; i < n; i++)
        conn_event(r, events[i].data.ptr, events[i].events);
}

/* False: end now, before the time. */
static bool still_going(struct run *r)
{
    if (r->over)
        return false;
    if (stop_requested) {
        note_failure(r, FAIL_OTHER, "interrupted");
        r->over = true;
    }
    if (r->now_ns > r->progress_ns && r->now_ns - r->progress_ns > seconds_ns(r->opt.timeout_s)) {
        note_failure(r, FAIL_TIMEOUT, "nothing moved for %g s; %u of %u connections are open",
                     r->opt.timeout_s, r->live, r->opt.connections);
        r->over = true;
    }
    return !r->over;
}

/* Opens all connections, a bounded number at a time. False: not all could be opened. */
static bool connect_all(struct run *r)
{
    uint32_t total = r->opt.connections, next = 0;
    r->now_ns = r->progress_ns = clock_ns();
    while (r->opened < total) {
        if (!still_going(r) || any_failure(r))
            return false;
        uint32_t scanned = 0;
        while (r->live - r->opened < CONNECTING_MAX && r->live < total && scanned++ < total) {
            struct conn *c = &r->conns[next];
            next = (next + 1) % total;
            if (c->state == CONN_IDLE && !conn_connect(r, c))
                break;
        }
        turn(r, 10);
    }
    return true;
}

/* Runs until a point in time, or until no connection is left. */
static void turn_until(struct run *r, uint64_t until_ns)
{
    while (r->live > 0 && r->now_ns < until_ns && still_going(r))
        turn(r, 10);
}

/* Waits for the replies that are still due. */
static void drain(struct run *r)
{
    r->draining = true;
    uint64_t until_ns = r->now_ns + DRAIN_NS;
    while (r->busy > 0 && r->now_ns < until_ns && still_going(r))
        turn(r, 10);
    if (r->busy > 0 && !r->over)
        note_failure(r, FAIL_TIMEOUT, "%u replies are still missing %g s after the last request",
                     r->busy, DRAIN_NS / 1e9);
}

static void begin_measuring(struct run *r)
{
    r->measuring = true;
    r->completed = 0;
    histogram_reset(&r->latency);
}

static void run_rr(struct run *r)
{
    if (!connect_all(r))
        return;
    r->now_ns = clock_ns();
    for (uint32_t i = 0; i < r->opt.connections; i++) {
        if (r->conns[i].state == CONN_OPEN)
            conn_start_message(r, &r->conns[i]);
    }
    turn_until(r, r->now_ns + seconds_ns(r->opt.warmup_s));
    begin_measuring(r);
    uint64_t from_ns = r->now_ns = clock_ns();
    turn_until(r, from_ns + seconds_ns(r->opt.seconds));
    r->measuring = false;
    r->elapsed_s = (double)(r->now_ns - from_ns) / 1e9;
    drain(r);
}

static void crc_refill(struct run *r)
{
    for (uint32_t i = 0; i < r->opt.connections; i++) {
        struct conn *c = &r->conns[i];
        if (c->fd >= 0)
            continue;
        c->seed = bytestream_mix(c->seed);
        c->retries = CONNECT_RETRIES; /* here a failed connect is a failed transaction */
        c->started_ns = r->now_ns;
        if (!conn_connect(r, c))
            return;
    }
}

static void crc_until(struct run *r, uint64_t until_ns)
{
    while (r->now_ns < until_ns && still_going(r) && r->failures_in_a_row < CRC_FAILURES_MAX) {
        crc_refill(r);
        turn(r, 1);
    }
}

static void run_crc(struct run *r)
{
    r->now_ns = r->progress_ns = clock_ns();
    crc_until(r, r->now_ns + seconds_ns(r->opt.warmup_s));
    begin_measuring(r);
    uint64_t from_ns = r->now_ns = clock_ns();
    crc_until(r, from_ns + seconds_ns(r->opt.seconds));
    r->measuring = false;
    r->elapsed_s = (double)(r->now_ns - from_ns) / 1e9;
    uint64_t until_ns = r->now_ns + DRAIN_NS;
    while (r->live > 0 && r->now_ns < until_ns && still_going(r))
        turn(r, 10);
    if (r->live > 0)
        note_failure(r, FAIL_TIMEOUT, "%u transactions did not end", r->live);
}

/* many and stream: a given amount of work, all connections open before the first byte. */
static void run_transfer(struct run *r)
{
    if (!connect_all(r))
        return;
    begin_measuring(r);
    uint64_t from_ns = r->now_ns = clock_ns();
    for (uint32_t i = 0; i < r->opt.connections; i++) {
        if (r->conns[i].state == CONN_OPEN)
            conn_start_message(r, &r->conns[i]);
    }
    turn_until(r, UINT64_MAX);
    r->elapsed_s = (double)(r->now_ns - from_ns) / 1e9;
}

/* Until somebody listens, or --wait seconds are over; the connection is thrown away. */
static void wait_for_server(struct run *r)
{
    uint64_t until_ns = clock_ns() + seconds_ns(r->opt.wait_s);
    while (r->opt.wait_s > 0 && clock_ns() < until_ns && !stop_requested) {
        int fd = socket(r->opt.target.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
        struct timeval patience = {.tv_sec = 1};
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
        int result = connect(fd, (const struct sockaddr *)&r->opt.target, r->opt.target_bytes);
        close(fd);
        if (result == 0)
            return;
        usleep(20000);
    }
}

int main(int argc, char **argv)
{
    static struct run run;
    parse_options(&run.opt, argc, argv);
    raise_fd_limit(run.opt.connections);
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    run.epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    run.conns = calloc(run.opt.connections, sizeof *run.conns);
    if (run.epoll_fd < 0 || !run.conns) {
        fprintf(stderr, "load: no memory for %u connections\n", run.opt.connections);
        return 1;
    }
    for (uint32_t i = 0; i < run.opt.connections; i++) {
        run.conns[i].fd = -1;
        run.conns[i].seed = bytestream_word(run.opt.seed, i);
        run.conns[i].messages_left = run.opt.mode == MODE_MANY ? run.opt.messages - 1 : 0;
    }
    wait_for_server(&run);
    if (run.opt.mode == MODE_RR)
        run_rr(&run);
    else if (run.opt.mode == MODE_CRC)
        run_crc(&run);
    else
        run_transfer(&run);
    report(&run);
    return any_failure(&run) ? 1 : 0;
}
