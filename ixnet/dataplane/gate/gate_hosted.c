/* See gate_hosted.h. */
#include "gate/gate_hosted.h"

#include "gate/gate.h"
#include "link/xsk_setup.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

enum {
    PAIR_TRIES = 8,
    FIRST_RATE_NS = 10000000,
    RATE_LEAST_NS = 500000000, /* between the two times that a rate is made of */
    SPIN_NS = 1000000,
    NAP_NS = 50000,
    LOOKS_PER_CLOCK = 64,
};

struct ix_gate_host {
    struct ix_gate gate; /* first: the module's context */
    /* The rate is measured from here to now. The control plane's alone. */
    uint64_t since_tick, since_ns;
    int by_word;
    struct {
        uint32_t word IX_ALIGNED(IX_CACHE_LINE); /* ring 0 sets, the kicker takes */
    } kick[IX_GATE_SHARDS];
};

uint64_t ix_gate_ticks(void)
{
    return __builtin_ia32_rdtsc();
}

static uint64_t monotonic_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* One moment on both clocks: of several tries the one that took the shortest, which an interrupt
 * did not fall into. */
static void read_pair(uint64_t *tick, uint64_t *ns)
{
    uint64_t best = UINT64_MAX;
    for (int i = 0; i < PAIR_TRIES; i++) {
        uint64_t before = ix_gate_ticks(), now_ns = monotonic_ns(), took = ix_gate_ticks() - before;
        if (took < best) {
            best = took;
            *tick = before + took / 2;
            *ns = now_ns;
        }
    }
}

static uint64_t rate_of(uint64_t ns, uint64_t ticks)
{
    return ticks ? (uint64_t)(((unsigned __int128)ns << 32) / ticks) : 0;
}

uint64_t ix_gate_host_bytes(void)
{
    return sizeof(struct ix_gate_host);
}

struct ix_gate_host *ix_gate_host_make(void *memory, int by_word)
{
    struct ix_gate_host *host = memory;
    uint64_t tick, ns;
    memset(host, 0, sizeof *host);
    host->by_word = by_word;
    read_pair(&host->since_tick, &host->since_ns);
    nanosleep(&(struct timespec){.tv_nsec = FIRST_RATE_NS}, NULL);
    read_pair(&tick, &ns);
    ix_gate_set_clock(&host->gate, tick, ns, rate_of(ns - host->since_ns, tick - host->since_tick));
    return host;
}

int ix_gate_host_add(struct ix_gate_host *host, struct ix_shard *shard,
                     struct ix_xsk_socket *socket)
{
    uint32_t i = host->gate.shard_count;
    if (i == IX_GATE_SHARDS)
        return -IX_ENOSPC;
    host->gate.entry[i] = (struct ix_gate_entry){
        .shard = shard,
        .xsk = ix_xsk_rings(socket),
        .kick_word = host->by_word ? &host->kick[i].word : NULL,
    };
    host->gate.shard_count++;
    return (int)i;
}

void ix_gate_host_set_clock(struct ix_gate_host *host)
{
    uint64_t tick, ns, rate = host->gate.clock.rate;
    read_pair(&tick, &ns);
    if (ns - host->since_ns >= RATE_LEAST_NS) {
        rate = rate_of(ns - host->since_ns, tick - host->since_tick);
        host->since_tick = tick;
        host->since_ns = ns;
    }
    ix_gate_set_clock(&host->gate, tick, ns, rate);
}

uint64_t ix_gate_host_calls(const struct ix_gate_host *host)
{
    return __atomic_load_n(&host->gate.calls, __ATOMIC_RELAXED);
}

uint64_t ix_gate_host_refused(const struct ix_gate_host *host)
{
    return __atomic_load_n(&host->gate.refused, __ATOMIC_RELAXED);
}

/* ---- the kicker ------------------------------------------------------------------- */

struct place {
    uint32_t *word;
    int fd;
    uint64_t calls;
};

struct ix_kicker {
    pthread_t thread;
    pthread_mutex_t lock; /* of the places; the thread holds it while it looks at them */
    bool stop;
    uint32_t most;
    struct place places[];
};

static bool serve(struct place *p)
{
    if (!p->word || !__atomic_load_n(p->word, __ATOMIC_RELAXED))
        return false;
    /* Acquire: Linux, asked by us, must see the ring's index that was written before the word. */
    uint32_t what = __atomic_exchange_n(p->word, 0, __ATOMIC_ACQUIRE);
    if (what & IX_XSK_KICK_TX)
        (void)!sendto(p->fd, NULL, 0, MSG_DONTWAIT, NULL, 0);
    if (what & IX_XSK_KICK_RX)
        (void)!recvfrom(p->fd, NULL, 0, MSG_DONTWAIT, NULL, NULL);
    __atomic_fetch_add(&p->calls, (uint64_t)__builtin_popcount(what & 3), __ATOMIC_RELAXED);
    return true;
}

static bool look(struct ix_kicker *k)
{
    bool busy = false;
    pthread_mutex_lock(&k->lock);
    for (uint32_t i = 0; i < k->most; i++)
        busy |= serve(&k->places[i]);
    pthread_mutex_unlock(&k->lock);
    return busy;
}

static void *run(void *argument)
{
    struct ix_kicker *k = argument;
    uint64_t busy_ns = monotonic_ns();
    while (!__atomic_load_n(&k->stop, __ATOMIC_RELAXED)) {
        bool busy = false;
        for (int i = 0; i < LOOKS_PER_CLOCK; i++) {
            busy |= look(k);
            __builtin_ia32_pause();
        }
        uint64_t now_ns = monotonic_ns();
        if (busy)
            busy_ns = now_ns;
        else if (now_ns - busy_ns > SPIN_NS)
            nanosleep(&(struct timespec){.tv_nsec = NAP_NS}, NULL);
    }
    return NULL;
}

struct ix_kicker *ix_kicker_start(uint32_t most, int core)
{
    struct ix_kicker *k = calloc(1, sizeof *k + most * sizeof k->places[0]);
    sigset_t all, before;
    if (!k)
        return NULL;
    k->most = most;
    pthread_mutex_init(&k->lock, NULL);
    /* Signals are the other threads'. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int err = pthread_create(&k->thread, NULL, run, k);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (err) {
        free(k);
        return NULL;
    }
    if (core >= 0) {
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET((size_t)core, &set);
        pthread_setaffinity_np(k->thread, sizeof set, &set);
    }
    return k;
}

void ix_kicker_set(struct ix_kicker *k, uint32_t i, struct ix_gate_host *host, uint32_t shard,
                   int fd)
{
    pthread_mutex_lock(&k->lock);
    k->places[i].word = host && shard < IX_GATE_SHARDS ? &host->kick[shard].word : NULL;
    k->places[i].fd = fd;
    pthread_mutex_unlock(&k->lock);
}

uint64_t ix_kicker_calls(const struct ix_kicker *k, uint32_t i)
{
    return __atomic_load_n(&k->places[i].calls, __ATOMIC_RELAXED);
}

void ix_kicker_stop(struct ix_kicker *k)
{
    __atomic_store_n(&k->stop, true, __ATOMIC_RELAXED);
    pthread_join(k->thread, NULL);
    free(k);
}
