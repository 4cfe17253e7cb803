/* The command line of a load worker. `ixnet bench` writes it; tests and the demo do too. */
#ifndef IX_BENCH_OPTIONS_H
#define IX_BENCH_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

#define SOURCES_MAX 64

enum mode {
    MODE_ECHO,     /* messages that come back, again and again */
    MODE_CONNRATE, /* connect, one message, close; again */
    MODE_TRANSFER, /* a given number of messages a connection, then an orderly close */
    MODE_MEMCACHED /* requests of a memcached client, in the text protocol */
};

struct options {
    enum mode mode;
    struct sockaddr_storage target;
    socklen_t target_bytes;
    const char *target_text;
    struct sockaddr_storage sources[SOURCES_MAX]; /* local addresses, used in turn */
    uint32_t source_count;
    uint32_t connections;
    uint32_t depth;         /* most requests under way on one connection */
    uint32_t window;        /* closed loop: requests under way; 0: as many as fit */
    double rate;            /* requests a second; 0: closed loop */
    bool fixed;             /* they come at equal intervals, not as a Poisson process */
    uint32_t probes;        /* connections beside the load that only measure */
    double probe_rate;      /* their requests a second; 0: closed loop */
    uint32_t message_bytes; /* echo, connrate */
    uint32_t messages;      /* transfer */
    uint32_t max_bytes;     /* transfer: sizes are drawn from 1 to this; 0: message_bytes */
    double seconds, warmup_s, timeout_s, wait_s;
    uint64_t seed;
    bool spin;  /* never sleep */
    bool reset; /* connrate: end connections by RST */
    uint32_t segment_bytes; /* dataplane: payload of a full segment */
    const char *control;    /* the page of ixnet bench, or NULL: run once */
    uint32_t worker, workers;
    /* memcached */
    uint32_t items;
    const char *workload; /* etc, usr, or KEY_BYTES,VALUE_BYTES */
    double gets;          /* share of requests that are GETs; negative: the workload's */
    double zipf;          /* exponent of the keys' popularity; 0: all are alike */
    bool preload;         /* store the items before the run */
};

extern const char *const mode_names[];

/* Fills *o; ends the process with status 2 and a usage line if it can't. */
void parse_options(struct options *o, int argc, char **argv);
__attribute__((noreturn)) void usage(const char *why);

#endif
