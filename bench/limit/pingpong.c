/* The limit of a link, near end: keeps a number of UDP frames on their way to a reflector and back.
 *
 *     pingpong --interface IF --destination MAC [--outstanding W] [--bytes N] [--seconds T] ...
 *
 * Each frame carries its number and the time it was made, so that the round-trip time of every
 * frame is known, and one that comes back altered, twice or after a later one is counted. Prints
 * one JSON object. A frame that seems lost is made up for after 50 ms without any arrival; those
 * that did not come later either are "missing". Exit status 1 if no frame came back.
 */
#include "bench/load/histogram.h"
#include "xsk_pair.h"

#define HEADERS_BYTES 42u /* Ethernet, IPv4, UDP */
#define LOSS_NS       50000000ull
#define PATIENCE_NS   2000000000ull /* at the end, for what is under way */
#define MAGIC         0x69786e65742d6c6dull

/* The UDP payload. */
struct probe {
    uint64_t magic;
    uint64_t run; /* frames of an earlier run don't count */
    uint64_t number;
    uint64_t made_ns;
};

struct generator {
    struct xsk_pair pair;
    uint32_t outstanding_goal;
    uint32_t frame_bytes;
    uint64_t run;
    uint8_t destination[6], source[6];
    uint64_t spare[RING_FRAMES]; /* UMEM addresses of frames to send from */
    uint32_t spares;
    uint32_t outstanding;
    uint64_t now_ns;
    uint64_t sent, received, batches, lost, foreign;
    uint64_t came;            /* all of received, those of the warm-up and after the end too */
    uint64_t next, reordered; /* number after the last that came; frames that came after it */
    struct histogram latency;
};

static uint16_t ip_checksum(const uint8_t *header)
{
    uint32_t sum = 0;
    for (int i = 0; i < 20; i += 2)
        sum += (uint32_t)header[i] << 8 | header[i + 1];
    sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t) ~((sum & 0xffff) + (sum >> 16));
}

static void put16(uint8_t *at, uint32_t value)
{
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}

/* Headers once; the reflector exchanges addresses in its own memory, not here. UDP's checksum is
 * left out, as RFC 768 allows. */
static void make_frames(struct generator *g)
{
    static const uint8_t addresses[8] = {10, 77, 0, 2, 10, 77, 0, 1};
    for (uint32_t i = 0; i < RING_FRAMES; i++) {
        uint64_t addr = (uint64_t)(RING_FRAMES + i) * FRAME_BYTES;
        uint8_t *f = g->pair.memory + addr;
        memcpy(f, g->destination, 6);
        memcpy(f + 6, g->source, 6);
        put16(f + 12, 0x0800);
        f[14] = 0x45;
        put16(f + 16, g->frame_bytes - 14);
        f[22] = 64;
        f[23] = 17;
        memcpy(f + 26, addresses, sizeof addresses);
        put16(f + 24, ip_checksum(f + 14));
        put16(f + 34, 9001);
        put16(f + 36, 9000);
        put16(f + 38, g->frame_bytes - 34);
        g->spare[g->spares++] = addr;
    }
}

static void reclaim(struct generator *g)
{
    g->spares += xsk_pair_complete(&g->pair, g->spare + g->spares);
}

static void take_probe(struct generator *g, const struct xdp_desc *got)
{
    struct probe probe;
    if (got->len != g->frame_bytes) {
        g->foreign++;
        return;
    }
    memcpy(&probe, g->pair.memory + got->addr + HEADERS_BYTES, sizeof probe);
    if (probe.magic != MAGIC || probe.run != g->run || probe.number >= g->sent) {
        g->foreign++;
        return;
    }
    g->received++;
    g->came++;
    g->reordered += probe.number < g->next;
    g->next = probe.number + 1;
    if (g->outstanding > 0)
        g->outstanding--;
    histogram_add(&g->latency, g->now_ns - probe.made_ns);
}

/* Returns how many frames were found. */
static uint32_t receive(struct generator *g)
{
    struct xsk_pair *p = &g->pair;
    uint32_t from, to, n = xsk_ring_cons__peek(&p->rx, BATCH, &from);
    if (n == 0)
        return 0;
    g->now_ns = clock_ns();
    xsk_pair_heard(p);
    if (xsk_ring_prod__reserve(&p->fill, n, &to) != n)
        die(1, "the fill ring is full, which can't be");
    for (uint32_t i = 0; i < n; i++) {
        const struct xdp_desc *got = xsk_ring_cons__rx_desc(&p->rx, from + i);
        take_probe(g, got);
        *xsk_ring_prod__fill_addr(&p->fill, to + i) = frame_start(got->addr);
    }
    xsk_ring_prod__submit(&p->fill, n);
    xsk_ring_cons__release(&p->rx, n);
    g->batches++;
    return n;
}

/* Tops the frames under way up to the goal. Returns how many were sent. */
static uint32_t send_more(struct generator *g)
{
    uint32_t n = g->outstanding_goal - g->outstanding;
    n = n < BATCH ? n : BATCH;
    n = n < g->spares ? n : g->spares;
    struct ix_desc descs[BATCH];
    if (n == 0 || !xsk_pair_has_room(&g->pair, n))
        return 0;
    for (uint32_t i = 0; i < n; i++) {
        uint64_t addr = g->spare[--g->spares];
        struct probe probe = {MAGIC, g->run, g->sent++, g->now_ns};
        memcpy(g->pair.memory + addr + HEADERS_BYTES, &probe, sizeof probe);
        descs[i] = (struct ix_desc){.addr = addr, .len = g->frame_bytes};
    }
    xsk_pair_send(&g->pair, descs, n);
    g->outstanding += n;
    return n;
}

static void run_until(struct generator *g, uint64_t until_ns)
{
    uint64_t heard_ns = g->now_ns = clock_ns();
    while (g->now_ns < until_ns && !stop_requested) {
        reclaim(g);
        uint32_t got = receive(g);
        if (got)
            heard_ns = g->now_ns;
        else
            g->now_ns = clock_ns();
        uint32_t put = send_more(g);
        if (g->pair.tx_waiting)
            xsk_pair_kick(&g->pair);
        else if (put == 0 && got == 0)
            xsk_pair_idle(&g->pair);
        if (g->now_ns - heard_ns > LOSS_NS) {
            g->lost += g->outstanding;
            g->outstanding = 0;
            heard_ns = g->now_ns;
        }
    }
}

/* Frames that never came back. */
static uint64_t await_missing(struct generator *g)
{
    uint64_t heard_ns = g->now_ns;
    while (g->came < g->sent && g->now_ns - heard_ns < PATIENCE_NS && !stop_requested) {
        if (g->pair.tx_waiting)
            xsk_pair_kick(&g->pair);
        if (receive(g)) {
            heard_ns = g->now_ns;
        } else {
            g->now_ns = clock_ns();
            xsk_pair_idle(&g->pair);
        }
    }
    return g->sent - g->came;
}

/* All but the end of the object. */
static void report(const struct generator *g, double elapsed_s)
{
    printf("{\"interface\": \"%s\", \"mode\": \"%s\", \"busy_poll\": %s, \"napi_id\": %d, "
           "\"outstanding\": %u, "
           "\"frame_bytes\": %u, \"seconds\": %.6f, \"sent\": %llu, \"received\": %llu, "
           "\"per_second\": %.1f, \"mean_batch\": %.2f, \"lost\": %llu, \"foreign\": %llu, "
           "\"reordered\": %llu, \"syscalls\": %llu, ",
           g->pair.opt.interface, xsk_pair_mode(&g->pair), g->pair.opt.busy_poll ? "true" : "false",
           g->pair.napi_id, g->outstanding_goal, g->frame_bytes, elapsed_s,
           (unsigned long long)g->sent, (unsigned long long)g->received,
           (double)g->received / elapsed_s,
           g->batches ? (double)g->received / (double)g->batches : 0.0, (unsigned long long)g->lost,
           (unsigned long long)g->foreign, (unsigned long long)g->reordered,
           (unsigned long long)g->pair.syscalls);
    xsk_pair_print_statistics(&g->pair);
    printf(", \"us\": ");
    histogram_print_us(&g->latency, stdout);
}

static void parse_mac(const char *text, uint8_t mac[6])
{
    char rest;
    if (sscanf(text, "%2hhx:%2hhx:%2hhx:%2hhx:%2hhx:%2hhx%c", mac, mac + 1, mac + 2, mac + 3,
               mac + 4, mac + 5, &rest) != 6)
        die(2, "%s is not an Ethernet address", text);
}

static double parse_options(struct generator *g, int argc, char **argv)
{
    static const struct option known[] = {PAIR_OPTIONS,
                                          {"destination", required_argument, NULL, 'd'},
                                          {"source", required_argument, NULL, 's'},
                                          {"outstanding", required_argument, NULL, 'w'},
                                          {"bytes", required_argument, NULL, 'n'},
                                          {"seconds", required_argument, NULL, 't'},
                                          {NULL, 0, NULL, 0}};
    const char *destination = NULL;
    char *end = "";
    double seconds = 2;
    for (int opt; (opt = getopt_long(argc, argv, "", known, NULL)) != -1;) {
        switch (opt) {
        case 'd':
            destination = optarg;
            break;
        case 's':
            parse_mac(optarg, g->source);
            break;
        case 'w':
            g->outstanding_goal = number(optarg, 1, 512);
            break;
        case 'n':
            g->frame_bytes = number(optarg, HEADERS_BYTES + sizeof(struct probe), 1514);
            break;
        case 't':
            seconds = strtod(optarg, &end);
            break;
        default:
            if (!pair_option(&g->pair.opt, opt))
                die(2, "usage: pingpong " PAIR_USAGE " --destination MAC [--source MAC]"
                       " [--outstanding 1..512] [--bytes N] [--seconds T]");
        }
    }
    pair_check_options(&g->pair.opt);
    if (!destination)
        die(2, "which --destination MAC?");
    if (*end || !(seconds > 0 && seconds <= 86400))
        die(2, "--seconds takes a number above 0");
    parse_mac(destination, g->destination);
    return seconds;
}

int main(int argc, char **argv)
{
    static struct generator g = {.pair.opt.budget = BATCH,
                                 .outstanding_goal = 1,
                                 .frame_bytes = HEADERS_BYTES + 64,
                                 .source = {0x02, 0x69, 0x78, 0, 0, 0x02}};
    double seconds = parse_options(&g, argc, argv);
    stop_on_signals();
    xsk_pair_open(&g.pair);
    g.run = clock_ns();
    make_frames(&g);
    run_until(&g, clock_ns() + 100000000ull); /* warm-up */
    uint64_t from_ns = clock_ns();
    g.received = g.batches = g.pair.syscalls = 0;
    uint64_t lost_in_warmup = g.lost;
    histogram_reset(&g.latency);
    run_until(&g, from_ns + (uint64_t)(seconds * 1e9));
    g.lost -= lost_in_warmup;
    report(&g, (double)(g.now_ns - from_ns) / 1e9);
    bool any = g.received > 0;
    printf(", \"missing\": %llu}\n", (unsigned long long)await_missing(&g));
    xsk_pair_close(&g.pair);
    return any ? 0 : 1;
}
