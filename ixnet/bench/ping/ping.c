#include "ping.h"

#include <getopt.h>
#include <netdb.h>
#include <stdlib.h>
#include <time.h>

#include "bench/load/bytestream.h"

static __attribute__((noreturn)) void usage(const char *why)
{
    fprintf(stderr,
            "ixping: %s\n"
            "usage: ixping udp|tcp --host IP --port N [--bytes B] [--seconds T] [--warmup T]\n"
            "              [--interval T] [--timeout T]\n",
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

void ping_parse(struct ping *p, int argc, char **argv)
{
    static const struct option known[] = {
        {"host", required_argument, NULL, 'h'},     {"port", required_argument, NULL, 'p'},
        {"bytes", required_argument, NULL, 'b'},    {"seconds", required_argument, NULL, 's'},
        {"warmup", required_argument, NULL, 'w'},   {"interval", required_argument, NULL, 'i'},
        {"timeout", required_argument, NULL, 't'},  {NULL, 0, NULL, 0}};
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
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

void ping_report(const struct ping *p, FILE *out)
{
    fprintf(out,
            "{\"protocol\": \"%s\", \"bytes\": %u, \"sent\": %llu, \"lost\": %llu, "
            "\"incomplete\": %llu, \"error\": \"%s\", \"stages\": [",
            p->opt.udp ? "udp" : "tcp", p->opt.bytes, (unsigned long long)p->sent,
            (unsigned long long)p->lost, (unsigned long long)p->incomplete, p->error);
    for (uint32_t i = 0; i < p->stage_count; i++) {
        fprintf(out, "%s{\"name\": \"%s\", \"clock\": \"%s\", \"histogram\": ", i ? ", " : "",
                p->stages[i].name, p->stages[i].clock);
        histogram_print_buckets(&p->stages[i].times, out);
        fputs("}", out);
    }
    fputs("]}\n", out);
}
