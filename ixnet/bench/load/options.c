#include "options.h"

#include <getopt.h>
#include <netdb.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "control.h"

const char *const mode_names[] = {"echo", "connrate", "transfer", "memcached"};

void usage(const char *why)
{
    fprintf(
        stderr,
        "ixload: %s\n"
        "usage: ixload echo|connrate|transfer|memcached --host IP --port N [options]\n"
        "  --connections N   1\n"
        "  --depth D         most requests under way on a connection, 1\n"
        "  --window W        most requests under way in all; 0: as many as fit, 0\n"
        "  --rate R          open loop: requests a second; 0: closed loop, 0\n"
        "  --fixed           at equal intervals instead of a Poisson process\n"
        "  --probes N        connections beside the load that only measure, 0\n"
        "  --probe-rate R    requests a second of these; 0: closed loop, 1000\n"
        "  --bytes M         bytes a message, 64\n"
        "  --seconds T       measured time, 2\n"
        "  --warmup T        time before that, 0.2\n"
        "  --messages K      transfer: messages a connection, 100\n"
        "  --max-bytes B     transfer: sizes are 1 to B\n"
        "  --rst             connrate: end connections by RST, not FIN\n"
        "  --items N         memcached: items, 100000\n"
        "  --workload W      memcached: etc, usr or KEY,VALUE bytes, etc\n"
        "  --gets S          memcached: share of GETs, the workload's\n"
        "  --zipf S          memcached: exponent of popularity; 0: uniform, 0.99\n"
        "  --preload         memcached: store the items first\n"
        "  --source IP,...   local addresses, used in turn\n"
        "  --timeout T       most seconds without progress, 10\n"
        "  --wait T          most seconds to wait for the server to listen, 0\n"
        "  --seed S          of all that is random, 1\n"
        "  --segment B       dataplane: payload of a full segment, 1448\n"
        "  --spin            kernel: never sleep\n"
        "  --control FILE --worker I --workers N   commands come from ixnet bench\n",
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

/* Options that are numbers, by what they set. */
enum number_type { U32, U64, REAL };

#define FIELD(type, field) type, offsetof(struct options, field)

static const struct {
    const char *name;
    enum number_type type;
    size_t offset;
    double least, most;
} numbers[] = {
    {"connections", FIELD(U32, connections), 1, 4e6},
    {"depth", FIELD(U32, depth), 1, 65535},
    {"window", FIELD(U32, window), 0, 4e6},
    {"rate", FIELD(REAL, rate), 0, 1e9},
    {"probes", FIELD(U32, probes), 0, 1e4},
    {"probe-rate", FIELD(REAL, probe_rate), 0, 1e9},
    {"bytes", FIELD(U32, message_bytes), 1, 1 << 30},
    {"seconds", FIELD(REAL, seconds), 0.01, 86400},
    {"warmup", FIELD(REAL, warmup_s), 0, 86400},
    {"messages", FIELD(U32, messages), 1, 1e9},
    {"max-bytes", FIELD(U32, max_bytes), 1, 1 << 30},
    {"timeout", FIELD(REAL, timeout_s), 0.1, 86400},
    {"wait", FIELD(REAL, wait_s), 0, 86400},
    {"seed", FIELD(U64, seed), 0, 9e15},
    {"segment", FIELD(U32, segment_bytes), 64, 4096},
    {"worker", FIELD(U32, worker), 0, CONTROL_WORKERS - 1},
    {"workers", FIELD(U32, workers), 1, CONTROL_WORKERS},
    {"items", FIELD(U32, items), 1, 1 << 28},
    {"gets", FIELD(REAL, gets), 0, 1},
    {"zipf", FIELD(REAL, zipf), 0, 10},
};

#define NUMBERS (sizeof numbers / sizeof numbers[0])

enum { OPT_HOST = NUMBERS, OPT_PORT, OPT_SOURCE, OPT_CONTROL, OPT_WORKLOAD, OPT_FIXED, OPT_RST,
       OPT_SPIN, OPT_PRELOAD };

static const struct option words[] = {{"host", required_argument, NULL, OPT_HOST},
                                      {"port", required_argument, NULL, OPT_PORT},
                                      {"source", required_argument, NULL, OPT_SOURCE},
                                      {"control", required_argument, NULL, OPT_CONTROL},
                                      {"workload", required_argument, NULL, OPT_WORKLOAD},
                                      {"fixed", no_argument, NULL, OPT_FIXED},
                                      {"rst", no_argument, NULL, OPT_RST},
                                      {"spin", no_argument, NULL, OPT_SPIN},
                                      {"preload", no_argument, NULL, OPT_PRELOAD}};

#define WORDS (sizeof words / sizeof words[0])

static socklen_t resolve(struct sockaddr_storage *to, const char *host, const char *port)
{
    struct addrinfo hints = {.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV,
                             .ai_socktype = SOCK_STREAM};
    struct addrinfo *found = NULL;
    if (!host || getaddrinfo(host, port, &hints, &found) != 0)
        usage("--host and --source take IP addresses, --port a number");
    socklen_t bytes = found->ai_addrlen;
    memcpy(to, found->ai_addr, bytes);
    freeaddrinfo(found);
    return bytes;
}

static void add_sources(struct options *o, char *list)
{
    for (char *rest = list, *one; (one = strsep(&rest, ",")) != NULL;) {
        if (o->source_count == SOURCES_MAX)
            usage("too many --source addresses");
        resolve(&o->sources[o->source_count++], one, "0");
    }
}

static void set_number(struct options *o, size_t i, const char *text)
{
    double value = number(numbers[i].name, text, numbers[i].least, numbers[i].most);
    char *field = (char *)o + numbers[i].offset;
    if (numbers[i].type == REAL)
        memcpy(field, &value, sizeof value);
    else if (numbers[i].type == U64)
        *(uint64_t *)(void *)field = (uint64_t)value;
    else
        *(uint32_t *)(void *)field = (uint32_t)value;
}

static void set_word(struct options *o, int opt, const char **host, const char **port)
{
    switch (opt) {
    case OPT_HOST:
        *host = optarg;
        break;
    case OPT_PORT:
        *port = optarg;
        break;
    case OPT_SOURCE:
        add_sources(o, optarg);
        break;
    case OPT_CONTROL:
        o->control = optarg;
        break;
    case OPT_WORKLOAD:
        o->workload = optarg;
        break;
    case OPT_FIXED:
        o->fixed = true;
        break;
    case OPT_RST:
        o->reset = true;
        break;
    case OPT_SPIN:
        o->spin = true;
        break;
    case OPT_PRELOAD:
        o->preload = true;
        break;
    default:
        usage("unknown option");
    }
}

static enum mode mode_of(const char *text)
{
    for (int mode = 0; mode <= MODE_MEMCACHED; mode++) {
        if (strcmp(mode_names[mode], text) == 0)
            return (enum mode)mode;
    }
    usage("the modes are echo, connrate, transfer and memcached");
}

static void check(const struct options *o)
{
    if (o->worker >= o->workers)
        usage("--worker is a number below --workers");
    for (uint32_t i = 0; i < o->source_count; i++) {
        if (o->sources[i].ss_family != o->target.ss_family)
            usage("--source and --host are of different families");
    }
}

void parse_options(struct options *o, int argc, char **argv)
{
    *o = (struct options){.connections = 1, .depth = 1, .probe_rate = 1000, .message_bytes = 64,
                          .messages = 100, .seconds = 2, .warmup_s = 0.2, .timeout_s = 10,
                          .seed = 1, .segment_bytes = 1448, .workers = 1, .items = 100000,
                          .workload = "etc", .gets = -1, .zipf = 0.99};
    struct option known[NUMBERS + WORDS + 1] = {0};
    for (size_t i = 0; i < NUMBERS; i++)
        known[i] = (struct option){numbers[i].name, required_argument, NULL, (int)i};
    memcpy(known + NUMBERS, words, sizeof words);
    const char *host = NULL, *port = "7000";
    opterr = 0; /* usage() says it */
    for (int opt; (opt = getopt_long(argc, argv, "", known, NULL)) != -1;) {
        if (opt == '?')
            usage("unknown option");
        if (opt < (int)NUMBERS)
            set_number(o, (size_t)opt, optarg);
        else
            set_word(o, opt, &host, &port);
    }
    if (optind + 1 != argc)
        usage("which mode?");
    o->mode = mode_of(argv[optind]);
    o->target_bytes = resolve(&o->target, host, port);
    static char text[128];
    snprintf(text, sizeof text, strchr(host, ':') ? "[%s]:%s" : "%s:%s", host, port);
    o->target_text = text;
    check(o);
}
