/* What both sides of `ixnet bench latency` have in common: one message at a time to an echo server
 * and back, the stages that it goes through, and the report.
 */
#ifndef IX_BENCH_PING_H
#define IX_BENCH_PING_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/socket.h>

#include "bench/load/histogram.h"
#include "clock.h"
#include "stamps.h"

#define PING_BYTES_MIN 64u /* so that no bare acknowledgment is as long */
#define PING_BYTES_MAX 1400u
#define STAGES_MAX     6

struct ping_options {
    struct sockaddr_storage target;
    socklen_t target_bytes;
    bool udp;
    uint32_t bytes;
    double seconds, warmup_s, interval_s; /* interval: between two pings; 0: at once */
    double timeout_s;                     /* for a reply */
    const char *clock; /* the NIC's, /dev/ptpN; NULL: it has none, or it is not wanted */
    const char *report; /* a file; NULL: standard output */
};

/* Of one direction: whose stamps were asked for, seen and taken. */
struct ping_stamps {
    struct stamps_seen seen;
    enum stamp_source source;
    char why[120]; /* not the better one */
};

/* A part of the way. clock: what its ends were measured by. */
struct stage {
    const char *name;
    const char *clock;
    struct histogram times;
};

struct ping {
    struct ping_options opt;
    struct stage stages[STAGES_MAX];
    uint32_t stage_count;
    uint64_t sent, lost, incomplete; /* incomplete: a stamp was missing */
    uint64_t begin_ns, end_ns;       /* of the measured time, CLOCK_MONOTONIC */
    struct ping_stamps received, transmitted;
    struct device_clock clock;
    uint64_t compared_ns, clock_error_ns; /* when its clock was last compared; the worst */
    char error[160];
    uint8_t message[PING_BYTES_MAX];
};

/* Fills p->opt; ends the process with a usage line if it can't. */
void ping_parse(struct ping *p, int argc, char **argv);
/* A stage more; returns its number. */
uint32_t ping_add_stage(struct ping *p, const char *name, const char *clock);
void ping_set_clock(struct ping *p, uint32_t stage, const char *clock);
/* Opens the NIC's clock, if one was named, to compare it with `against`. */
void ping_open_clock(struct ping *p, clockid_t against);
/* Between two pings: compares the clocks again if that is some time ago. */
void ping_compare_clock(struct ping *p, uint64_t now_ns);
/* The measured time begins: decides by what was seen. False: what was asked for is not there, and
 * p->error says so. */
bool ping_begin(struct ping *p, uint64_t now_ns);
/* A stage of one ping took from `from_ns` to `to_ns`; what began before the measured time, or has a
 * stamp of 0, does not count. */
void ping_record(struct ping *p, uint32_t stage, uint64_t from_ns, uint64_t to_ns);
/* The next message: none is like the one before. */
void ping_next_message(struct ping *p);
/* The report, one line of JSON, to where the options say. */
void ping_report(const struct ping *p);
uint64_t ping_clock_ns(void);

#endif
