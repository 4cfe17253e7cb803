/* The limit of a link, far end: sends every frame of a queue back where it came from.
 *
 *     reflect --interface IF [--queue N] [--busy-poll] [--budget N] [--zero-copy] [--generic]
 *             [--express OBJECT]
 *
 * A received frame is sent from where it lies, with the Ethernet addresses (and those of IPv4, and
 * UDP's ports) exchanged in place, which leaves both checksums right. Prints "ready ..." when it
 * serves, and on SIGTERM or SIGINT one JSON object.
 */
#include "xsk_pair.h"

static void swap_bytes(uint8_t *a, uint8_t *b, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        uint8_t t = a[i];
        a[i] = b[i];
        b[i] = t;
    }
}

static void turn_around(uint8_t *frame, uint32_t bytes)
{
    if (bytes < 14)
        return;
    swap_bytes(frame, frame + 6, 6);
    bool ipv4 = bytes >= 42 && frame[12] == 0x08 && frame[13] == 0x00 && frame[14] == 0x45;
    if (!ipv4)
        return;
    swap_bytes(frame + 26, frame + 30, 4);
    if (frame[23] == 17)
        swap_bytes(frame + 34, frame + 36, 2);
}

/* Frames that were sent go back to be received into. */
static void recycle(struct xsk_pair *p)
{
    uint64_t sent[BATCH];
    uint32_t to, n = xsk_pair_complete(p, sent);
    if (n == 0)
        return;
    /* There is room: the fill ring has more slots than frames circulate. */
    if (xsk_ring_prod__reserve(&p->fill, n, &to) != n)
        die(1, "the fill ring is full, which can't be");
    for (uint32_t i = 0; i < n; i++)
        *xsk_ring_prod__fill_addr(&p->fill, to + i) = sent[i];
    xsk_ring_prod__submit(&p->fill, n);
}

/* Returns how many frames were sent back. */
static uint32_t reflect_batch(struct xsk_pair *p)
{
    struct ix_desc back[BATCH];
    uint32_t from, n = xsk_ring_cons__peek(&p->rx, BATCH, &from);
    if (n == 0) {
        xsk_pair_idle(p);
        return 0;
    }
    xsk_pair_heard(p);
    if (!xsk_pair_has_room(p, n)) {
        xsk_ring_cons__cancel(&p->rx, n);
        xsk_pair_kick(p);
        return 0;
    }
    for (uint32_t i = 0; i < n; i++) {
        const struct xdp_desc *got = xsk_ring_cons__rx_desc(&p->rx, from + i);
        turn_around(p->memory + got->addr, got->len);
        back[i] = (struct ix_desc){.addr = got->addr, .len = got->len};
    }
    xsk_ring_cons__release(&p->rx, n);
    xsk_pair_send(p, back, n);
    return n;
}

int main(int argc, char **argv)
{
    static const struct option known[] = {PAIR_OPTIONS, {NULL, 0, NULL, 0}};
    struct xsk_pair pair = {.opt = {.budget = BATCH}};
    for (int opt; (opt = getopt_long(argc, argv, "", known, NULL)) != -1;) {
        if (!pair_option(&pair.opt, opt))
            die(2, "usage: reflect " PAIR_USAGE);
    }
    pair_check_options(&pair.opt);
    stop_on_signals();
    xsk_pair_open(&pair);
    printf("ready %s queue %u %s%s\n", pair.opt.interface, pair.opt.queue, xsk_pair_mode(&pair),
           pair.opt.busy_poll ? " busy-poll" : "");
    fflush(stdout);
    uint64_t frames = 0, batches = 0;
    while (!stop_requested) {
        recycle(&pair);
        if (pair.tx_waiting)
            xsk_pair_kick(&pair);
        uint32_t n = reflect_batch(&pair);
        frames += n;
        batches += n > 0;
    }
    printf("{\"frames\": %llu, \"mean_batch\": %.2f, \"syscalls\": %llu, ",
           (unsigned long long)frames, batches ? (double)frames / (double)batches : 0.0,
           (unsigned long long)pair.syscalls);
    xsk_pair_print_statistics(&pair);
    printf("}\n");
    xsk_pair_close(&pair);
    return 0;
}
