#include "ping.h"

#include <errno.h>
#include <getopt.h>
#include <netdb.h>
#include <stdlib.h>
#include <time.h>

#include "bench/load/bytestream.h"

#define COMPARE_EVERY_NS 50000000u

static __attribute__((noreturn)) void usage(const char *why)
{
    fprintf(stderr,
            "ixping: %s\n"
            "usage: ixping udp|tcp --host IP --port N [--bytes B] [--seconds T] [--warmup T]\n"
            "              [--interval T] [--timeout T] [--clock /dev/ptpN] [--report FILE]\n"
            "              [--received auto|hardware|software]\n"
            "              [--transmitted auto|hardware|completion|software]\n",
            why);
    exit(2);
}

static double number(const char *text, double least, double most)
{
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end || !(value >= least && value <= most))
        usage("an option's number is out of range");
    return value;
}

static void resolve(struct ping_options *o, const char *host, const char *port)
{
    struct addrinfo hints = {.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV,
                             .ai_socktype = SOCK_DGRAM};
    struct addrinfo *found = NULL;
    if (!host || !port || getaddrinfo(host, port, &hints, &found) != 0)
        usage("--host takes an IP address, --port a number");
    memcpy(&o->target, found->ai_addr, found->ai_addrlen);
    o->target_bytes = found->ai_addrlen;
    freeaddrinfo(found);
}

static enum stamp_source source_of(const char *text)
{
    enum stamp_source source;
    if (!stamps_parse(text, &source))
        usage("stamps are auto, hardware, completion or software");
    return source;
}

void ping_parse(struct ping *p, int argc, char **argv)
{
    static const struct option known[] = {
        {"host", required_argument, NULL, 'h'},     {"port", required_argument, NULL, 'p'},
        {"bytes", required_argument, NULL, 'b'},    {"seconds", required_argument, NULL, 's'},
        {"warmup", required_argument, NULL, 'w'},   {"interval", required_argument, NULL, 'i'},
        {"timeout", required_argument, NULL, 't'},  {"clock", required_argument, NULL, 'c'},
        {"received", required_argument, NULL, 'r'}, {"transmitted", required_argument, NULL, 'x'},
        {"report", required_argument, NULL, 'o'},
        {NULL, 0, NULL, 0}};
    struct ping_options *o = &p->opt;
    const char *host = NULL, *port = NULL;
    *o = (struct ping_options){.bytes = 64, .seconds = 1, .warmup_s = 0.2, .timeout_s = 1};
    opterr = 0;
    for (int opt; (opt = getopt_long(argc, argv, "", known, NULL)) != -1;) {
        if (opt == 'h')
            host = optarg;
        else if (opt == 'p')
            port = optarg;
        else if (opt == 'b')
            o->bytes = (uint32_t)number(optarg, PING_BYTES_MIN, PING_BYTES_MAX);
        else if (opt == 's')
            o->seconds = number(optarg, 0.01, 86400);
        else if (opt == 'w')
            o->warmup_s = number(optarg, 0, 86400);
        else if (opt == 'i')
            o->interval_s = number(optarg, 0, 60);
        else if (opt == 't')
            o->timeout_s = number(optarg, 0.001, 60);
        else if (opt == 'c')
            o->clock = optarg;
        else if (opt == 'o')
            o->report = optarg;
        else if (opt == 'r')
            p->received.seen.wanted = source_of(optarg);
        else if (opt == 'x')
            p->transmitted.seen.wanted = source_of(optarg);
        else
            usage("unknown option");
    }
    if (optind + 1 != argc ||
        (strcmp(argv[optind], "udp") != 0 && strcmp(argv[optind], "tcp") != 0))
        usage("udp or tcp?");
    o->udp = strcmp(argv[optind], "udp") == 0;
    resolve(o, host, port);
}

uint32_t ping_add_stage(struct ping *p, const char *name, const char *clock)
{
    p->stages[p->stage_count].name = name;
    p->stages[p->stage_count].clock = clock;
    return p->stage_count++;
}

void ping_set_clock(struct ping *p, uint32_t stage, const char *clock)
{
    p->stages[stage].clock = clock;
}

void ping_open_clock(struct ping *p, clockid_t against)
{
    p->clock.fd = -1;
    if (!p->opt.clock)
        return;
    int error = device_clock_open(&p->clock, p->opt.clock, against);
    p->received.seen.clock_error = p->transmitted.seen.clock_error = error;
    p->received.seen.comparable = p->transmitted.seen.comparable = !error;
}

void ping_compare_clock(struct ping *p, uint64_t now_ns)
{
    if (p->clock.fd < 0 || now_ns - p->compared_ns < COMPARE_EVERY_NS)
        return;
    p->compared_ns = now_ns;
    if (device_clock_compare(&p->clock) == 0 && p->clock.last.error_ns > p->clock_error_ns)
        p->clock_error_ns = p->clock.last.error_ns;
}

static bool choose(struct ping *p, struct ping_stamps *s, const char *which)
{
    s->source = stamps_choose(&s->seen, s->why, sizeof s->why);
    if (s->source == STAMP_AUTO)
        snprintf(p->error, sizeof p->error, "no %s stamps %s: %s", stamps_name(s->seen.wanted),
                 which, s->why);
    return s->source != STAMP_AUTO;
}

bool ping_begin(struct ping *p, uint64_t now_ns)
{
    p->begin_ns = now_ns;
    return choose(p, &p->received, "on receipt") && choose(p, &p->transmitted, "on sending");
}

void ping_record(struct ping *p, uint32_t stage, uint64_t from_ns, uint64_t to_ns)
{
    if (!p->begin_ns)
        return;
    if (!from_ns || !to_ns)
        p->incomplete++;
    else /* clocks of different CPUs may differ by a few ns */
        histogram_add(&p->stages[stage].times, to_ns > from_ns ? to_ns - from_ns : 0);
}

void ping_next_message(struct ping *p)
{
    for (uint32_t i = 0; i < p->opt.bytes; i += 8) {
        uint64_t word = bytestream_word(p->sent, i / 8);
        memcpy(p->message + i, &word, p->opt.bytes - i < 8 ? p->opt.bytes - i : 8);
    }
    p->sent++;
}

uint64_t ping_clock_ns(void)
{
    return clock_read_ns(CLOCK_MONOTONIC);
}

static void report_stamps(const struct ping_stamps *s, const char *name, FILE *out)
{
    fprintf(out, "\"%s\": {\"source\": \"%s\", \"why\": \"%s\", \"asked\": %s}, ", name,
            stamps_name(s->source), s->why, s->seen.error > 0 ? "false" : "true");
}

static void print_report(const struct ping *p, FILE *out)
{
    fprintf(out,
            "{\"protocol\": \"%s\", \"bytes\": %u, \"sent\": %llu, \"lost\": %llu, "
            "\"incomplete\": %llu, \"error\": \"%s\", \"begun\": %s, \"clock_error_ns\": %llu, ",
            p->opt.udp ? "udp" : "tcp", p->opt.bytes, (unsigned long long)p->sent,
            (unsigned long long)p->lost, (unsigned long long)p->incomplete, p->error,
            p->begin_ns ? "true" : "false",
            (unsigned long long)p->clock_error_ns);
    report_stamps(&p->received, "received", out);
    report_stamps(&p->transmitted, "transmitted", out);
    fputs("\"stages\": [", out);
    for (uint32_t i = 0; i < p->stage_count; i++) {
        fprintf(out, "%s{\"name\": \"%s\", \"clock\": \"%s\", \"histogram\": ", i ? ", " : "",
                p->stages[i].name, p->stages[i].clock);
        histogram_print_buckets(&p->stages[i].times, out);
        fputs("}", out);
    }
    fputs("]}\n", out);
}

void ping_report(const struct ping *p)
{
    FILE *out = p->opt.report ? fopen(p->opt.report, "w") : stdout;
    if (!out) {
        fprintf(stderr, "ixping: %s: %s\n", p->opt.report, strerror(errno));
        return;
    }
    print_report(p, out);
    if (out == stdout ? fflush(out) : fclose(out))
        fprintf(stderr, "ixping: the report: %s\n", strerror(errno));
}
