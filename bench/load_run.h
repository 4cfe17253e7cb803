/* load's state: a run and its connections, and the report that is made of it. */
#ifndef IX_BENCH_LOAD_RUN_H
#define IX_BENCH_LOAD_RUN_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "histogram.h"
#include "load_options.h"

#define BUFFER_BYTES (256 * 1024)

enum conn_state {
    CONN_IDLE = 0,   /* no socket */
    CONN_CONNECTING, /* connect() is under way */
    CONN_OPEN,       /* established */
    CONN_FINISHING,  /* all is echoed and FIN is sent: waiting for the server's FIN */
    CONN_DONE,       /* closed in order */
    CONN_FAILED,     /* closed after an error, which is counted */
};

enum failure {
    FAIL_REFUSED,
    FAIL_RESET,
    FAIL_CLOSED,
    FAIL_TIMEOUT,
    FAIL_MISMATCH,
    FAIL_OTHER,
    FAILURES
};

static const char *const failure_names[FAILURES] = {"refused", "reset",    "closed_early",
                                                    "timeout", "mismatch", "other"};

struct conn {
    int fd;
    uint8_t state;          /* enum conn_state */
    bool want_write;        /* EPOLLOUT is asked for */
    uint16_t retries;       /* connects that failed so far */
    uint32_t messages_left; /* after the one under way */
    uint64_t seed;          /* of its byte stream */
    uint64_t sent;          /* stream bytes handed to the kernel */
    uint64_t goal;          /* stream bytes that may be sent by now */
    uint64_t received;      /* stream bytes that came back, and matched */
    uint64_t started_ns;    /* when the message under way was sent (crc: when connect was called) */
};

struct run {
    struct options opt;
    int epoll_fd;
    struct conn *conns;
    uint64_t now_ns;            /* the latest reading of the clock */
    uint64_t progress_ns;       /* when something last moved */
    bool measuring;             /* completions count */
    bool draining;              /* no new requests */
    bool over;                  /* ended before its time; the reason is on record */
    uint32_t live;              /* connections neither idle, done nor failed */
    uint32_t opened;            /* connections that were established so far */
    uint32_t busy;              /* connections with a request outstanding */
    uint32_t failures_in_a_row; /* crc */
    uint64_t completed;         /* requests, messages or transactions, while measuring */
    uint64_t verified_bytes;
    uint32_t next_port;  /* crc: local ports are taken in turn; 0: the range has not been read */
    uint32_t port_lo, port_hi;
    uint64_t port_waits; /* crc: no local port was free for a moment */
    uint64_t failures[FAILURES];
    double elapsed_s;
    char first_error[256];
    struct histogram latency;
    uint8_t buffer[BUFFER_BYTES];
};

static bool any_failure(const struct run *r)
{
    for (int i = 0; i < FAILURES; i++) {
        if (r->failures[i])
            return true;
    }
    return false;
}

static void print_string(const char *text)
{
    putchar('"');
    for (; *text; text++) {
        if (*text == '"' || *text == '\\')
            putchar('\\');
        putchar((unsigned char)*text < 0x20 ? ' ' : *text);
    }
    putchar('"');
}

static void report(const struct run *r)
{
    const struct options *o = &r->opt;
    double elapsed_s = r->elapsed_s > 0 ? r->elapsed_s : 1e-9;
    printf("{\"mode\": \"%s\", \"target\": ", mode_names[o->mode]);
    print_string(o->target_text);
    printf(", \"connections\": %u, \"opened\": %u, ", o->connections, r->opened);
    if (o->mode == MODE_RR || o->mode == MODE_CRC)
        printf("\"message_bytes\": %u, ", o->message_bytes);
    printf("\"seconds\": %.6f, \"completed\": %llu, \"per_second\": %.1f, ", r->elapsed_s,
           (unsigned long long)r->completed, (double)r->completed / elapsed_s);
    printf("\"verified_bytes\": %llu, \"us\": ", (unsigned long long)r->verified_bytes);
    histogram_print_us(&r->latency, stdout);
    printf(", \"port_waits\": %llu, \"errors\": {", (unsigned long long)r->port_waits);
    for (int i = 0; i < FAILURES; i++)
        printf("%s\"%s\": %llu", i ? ", " : "", failure_names[i],
               (unsigned long long)r->failures[i]);
    printf("}, \"ok\": %s, \"first_error\": ", any_failure(r) ? "false" : "true");
    if (r->first_error[0])
        print_string(r->first_error);
    else
        printf("null");
    printf("}\n");
}

#endif
