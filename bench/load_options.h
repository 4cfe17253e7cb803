/* load's command line. */
#ifndef IX_BENCH_LOAD_OPTIONS_H
#define IX_BENCH_LOAD_OPTIONS_H

#include <getopt.h>
#include <netdb.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>

enum mode { MODE_RR, MODE_CRC, MODE_MANY, MODE_STREAM };

static const char *const mode_names[] = {"rr", "crc", "many", "stream"};

struct options {
    enum mode mode;
    struct sockaddr_storage target;
    socklen_t target_bytes;
    const char *target_text;
    uint32_t connections;
    uint32_t message_bytes;
    uint32_t messages;
    uint32_t max_bytes;
    uint64_t stream_bytes;
    double seconds, warmup_s, timeout_s, wait_s;
    uint64_t seed;
    bool spin;
};

static void usage(const char *why)
{
    fprintf(stderr,
            "load: %s\n"
            "usage: load rr|crc|many|stream --host IP --port N [options]\n"
            "  --connections N, --slots N  1\n"
            "  --bytes M      rr, crc: bytes a message, 64\n"
            "  --seconds T    rr, crc: measured time, 2\n"
            "  --warmup T     rr, crc: time before that, 0.2\n"
            "  --messages K   many: messages a connection, 100\n"
            "  --max-bytes B  many: sizes are 1 to B, 4096\n"
            "  --mib X        stream: MiB a connection, 64\n"
            "  --timeout T    most seconds without progress, 10\n"
            "  --wait T       most seconds to wait for the server to listen, 0\n"
            "  --seed S       of the bytes sent, 1\n"
            "  --spin         never sleep in epoll_wait\n",
            why);
    exit(2);
}

static double number(const char *name, const char *text, double least, double most)
{
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end || !(value >= least && value <= most)) {
        char why[128];
        snprintf(why, sizeof why, "--%s takes a number from %g to %g, not %s", name, least, most,
                 text);
        usage(why);
    }
    return value;
}

static void resolve(struct options *o, const char *host, const char *port)
{
    struct addrinfo hints = {.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV,
                             .ai_socktype = SOCK_STREAM};
    struct addrinfo *found = NULL;
    if (!host || getaddrinfo(host, port, &hints, &found) != 0)
        usage("--host takes an IP address, --port a number");
    memcpy(&o->target, found->ai_addr, found->ai_addrlen);
    o->target_bytes = found->ai_addrlen;
    freeaddrinfo(found);
    static char text[128];
    snprintf(text, sizeof text, strchr(host, ':') ? "[%s]:%s" : "%s:%s", host, port);
    o->target_text = text;
}

enum {
    OPT_HOST = 1,
    OPT_PORT,
    OPT_CONNECTIONS,
    OPT_BYTES,
    OPT_SECONDS,
    OPT_WARMUP,
    OPT_MESSAGES,
    OPT_MAX_BYTES,
    OPT_MIB,
    OPT_TIMEOUT,
    OPT_WAIT,
    OPT_SEED,
    OPT_SPIN
};

static const struct option known_options[] = {
    {"host", required_argument, NULL, OPT_HOST},
    {"port", required_argument, NULL, OPT_PORT},
    {"connections", required_argument, NULL, OPT_CONNECTIONS},
    {"slots", required_argument, NULL, OPT_CONNECTIONS},
    {"bytes", required_argument, NULL, OPT_BYTES},
    {"seconds", required_argument, NULL, OPT_SECONDS},
    {"warmup", required_argument, NULL, OPT_WARMUP},
    {"messages", required_argument, NULL, OPT_MESSAGES},
    {"max-bytes", required_argument, NULL, OPT_MAX_BYTES},
    {"mib", required_argument, NULL, OPT_MIB},
    {"timeout", required_argument, NULL, OPT_TIMEOUT},
    {"wait", required_argument, NULL, OPT_WAIT},
    {"seed", required_argument, NULL, OPT_SEED},
    {"spin", no_argument, NULL, OPT_SPIN},
    {NULL, 0, NULL, 0}};

static void set_option(struct options *o, int opt, const char *name)
{
    switch (opt) {
    case OPT_CONNECTIONS:
        o->connections = (uint32_t)number(name, optarg, 1, 1000000);
        break;
    case OPT_BYTES:
        o->message_bytes = (uint32_t)number(name, optarg, 1, 1 << 30);
        break;
    case OPT_SECONDS:
        o->seconds = number(name, optarg, 0.01, 86400);
        break;
    case OPT_WARMUP:
        o->warmup_s = number(name, optarg, 0, 86400);
        break;
    case OPT_MESSAGES:
        o->messages = (uint32_t)number(name, optarg, 1, 1e9);
        break;
    case OPT_MAX_BYTES:
        o->max_bytes = (uint32_t)number(name, optarg, 1, 1 << 30);
        break;
    case OPT_MIB:
        o->stream_bytes = (uint64_t)(number(name, optarg, 0.001, 1e6) * 1048576);
        break;
    case OPT_TIMEOUT:
        o->timeout_s = number(name, optarg, 0.1, 86400);
        break;
    case OPT_WAIT:
        o->wait_s = number(name, optarg, 0, 86400);
        break;
    case OPT_SEED:
        o->seed = (uint64_t)number(name, optarg, 0, 9e15);
        break;
    case OPT_SPIN:
        o->spin = true;
        break;
    default:
        usage("unknown option");
    }
}

static void parse_options(struct options *o, int argc, char **argv)
{
    *o = (struct options){.connections = 1,
                          .message_bytes = 64,
                          .messages = 100,
                          .max_bytes = 4096,
                          .stream_bytes = 64 << 20,
                          .seconds = 2,
                          .warmup_s = 0.2,
                          .timeout_s = 10,
                          .seed = 1};
    const char *host = NULL, *port = "7000";
    int opt, which = 0;
    opterr = 0; /* usage() says it */
    while ((opt = getopt_long(argc, argv, "", known_options, &which)) != -1) {
        if (opt == OPT_HOST)
            host = optarg;
        else if (opt == OPT_PORT)
            port = optarg;
        else
            set_option(o, opt, opt == '?' ? "" : known_options[which].name);
    }
    if (optind + 1 != argc)
        usage("which mode?");
    int mode = 0;
    while (mode <= MODE_STREAM && strcmp(mode_names[mode], argv[optind]) != 0)
        mode++;
    if (mode > MODE_STREAM)
        usage("the modes are rr, crc, many and stream");
    o->mode = (enum mode)mode;
    resolve(o, host, port);
}

static void raise_fd_limit(uint32_t connections)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
        if (limit.rlim_max < connections + 16ull) {
            fprintf(stderr, "load: %u connections need more file descriptors than %llu\n",
                    connections, (unsigned long long)limit.rlim_max);
            exit(2);
        }
    }
}

#endif
