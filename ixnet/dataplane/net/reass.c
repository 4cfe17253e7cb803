/* Reassembly of fragments into datagrams. */
#include "net/reass.h"

#include "net/net.h"

enum { LENGTH_MAX = 65535, UDP_HEADER_BYTES = 8 };
#define WAIT_NS 30000000000ull /* Linux: ipfrag_time */

void ix_reass_init(struct ix_reass *reass)
{
    *reass = (struct ix_reass){.next_ns = UINT64_MAX};
}

void ix_reass_free(struct ix_net *net, uint32_t head)
{
    while (head != IX_NONE) {
        uint32_t frame = head;
        head = net->frames->meta[frame].next;
        ix_frame_free(net->frames, frame);
    }
}

static void give_up(struct ix_net *net, struct ix_reass_datagram *d, uint64_t *counter)
{
    *counter += 1;
    net->reass.frames -= d->frames;
    ix_reass_free(net, d->head);
    d->until_ns = 0;
}

void ix_reass_expire(struct ix_net *net)
{
    struct ix_reass *reass = &net->reass;
    reass->next_ns = UINT64_MAX;
    for (uint32_t i = 0; i < IX_REASS_MAX; i++) {
        struct ix_reass_datagram *d = &reass->slots[i];
        if (d->until_ns && d->until_ns <= net->now_ns)
            give_up(net, d, &net->counters->drop_reass_timeout);
        else if (d->until_ns)
            reass->next_ns = IX_MIN(reass->next_ns, d->until_ns);
    }
}

static uint32_t frames_most(const struct ix_net *net)
{
    return IX_MIN((uint32_t)IX_REASS_FRAMES_MAX, net->frames->pool_frames / 16);
}

static struct ix_reass_datagram *oldest(struct ix_reass *reass, const struct ix_ip *source)
{
    struct ix_reass_datagram *found = NULL;
    for (uint32_t i = 0; i < IX_REASS_MAX; i++) {
        struct ix_reass_datagram *d = &reass->slots[i];
        if (d->until_ns && (!source || ix_ip_equal(&d->src, source)) &&
            (!found || d->until_ns < found->until_ns))
            found = d;
    }
    return found;
}

/* The datagram that the fragment is a part of; a new one at the cost of an old one, if need be of
 * its own source. */
static struct ix_reass_datagram *datagram_of(struct ix_net *net, const struct ix_fragment *f)
{
    struct ix_reass *reass = &net->reass;
    struct ix_reass_datagram *slot = NULL;
    uint32_t of_source = 0;
    for (uint32_t i = 0; i < IX_REASS_MAX; i++) {
        struct ix_reass_datagram *d = &reass->slots[i];
        if (!d->until_ns) {
            slot = slot ? slot : d;
            continue;
        }
        if (d->family != f->family || !ix_ip_equal(&d->src, &f->src))
            continue;
        if (d->id == f->id && ix_ip_equal(&d->dst, &f->dst))
            return d;
        of_source++;
    }
    if (of_source >= IX_REASS_PER_SOURCE || !slot) {
        slot = oldest(reass, of_source >= IX_REASS_PER_SOURCE ? &f->src : NULL);
        give_up(net, slot, &net->counters->drop_reass_full);
    }
    *slot = (struct ix_reass_datagram){.src = f->src,
                                       .dst = f->dst,
                                       .until_ns = net->now_ns + WAIT_NS,
                                       .id = f->id,
                                       .head = IX_NONE,
                                       .family = f->family};
    reass->next_ns = IX_MIN(reass->next_ns, slot->until_ns);
    return slot;
}

enum place { PLACE_FREE, PLACE_REPEATED, PLACE_WRONG };

/* Where the fragment goes: *link is to point to it. What overlaps, or contradicts the length that
 * another fragment gave, spoils the whole datagram (RFC 5722 section 4; Linux does so for IPv4,
 * too). A plain repetition does not: networks duplicate. */
static enum place find_place(struct ix_net *net, struct ix_reass_datagram *d,
                             const struct ix_fragment *f, uint32_t **link)
{
    uint32_t end = f->at + f->bytes, covered = 0;
    *link = &d->head;
    for (uint32_t i = d->head; i != IX_NONE; i = net->frames->meta[i].next) {
        struct ix_frame *meta = &net->frames->meta[i];
        if (meta->seq == f->at && meta->bytes == f->bytes && f->more == (end != d->total))
            return PLACE_REPEATED;
        if (f->at < meta->seq + meta->bytes && meta->seq < end)
            return PLACE_WRONG;
        if (meta->seq < f->at)
            *link = &meta->next;
        covered = meta->seq + meta->bytes;
    }
    bool beyond = d->total ? end > d->total : !f->more && end < covered;
    return beyond || (d->total && !f->more) ? PLACE_WRONG : PLACE_FREE;
}

bool ix_reass_add(struct ix_net *net, const struct ix_fragment *f, uint32_t frame, uint32_t *head)
{
    struct ix_counters *n = net->counters;
    struct ix_reass *reass = &net->reass;
    *head = IX_NONE;
    /* IPv4's length counts its header, IPv6's does not. */
    uint32_t most = f->family == 6 ? LENGTH_MAX : LENGTH_MAX - IX_IPV4_BYTES;
    /* RFC 791 3.2: all but the last are multiples of 8 bytes; one that cuts through the UDP header
     * is an evasion (RFC 1858). */
    if (f->bytes == 0 || f->at + f->bytes > most || (f->more && f->bytes % 8) ||
        (f->at == 0 && f->bytes < UDP_HEADER_BYTES)) {
        n->drop_ip_frag++;
        return false;
    }
    struct ix_reass_datagram *d = datagram_of(net, f);
    uint32_t *link;
    enum place place = find_place(net, d, f, &link);
    if (place == PLACE_WRONG)
        give_up(net, d, &n->drop_reass_overlap);
    if (place != PLACE_FREE) {
        n->drop_ip_frag++;
        return false;
    }
    if (reass->frames >= frames_most(net)) {
        struct ix_reass_datagram *old = oldest(reass, NULL);
        give_up(net, old, &n->drop_reass_full);
        if (old == d) {
            n->drop_ip_frag++;
            return false;
        }
    }
    struct ix_frame *meta = &net->frames->meta[frame];
    meta->seq = f->at;
    meta->offset = f->offset;
    meta->bytes = (uint16_t)f->bytes;
    meta->next = *link;
    *link = frame;
    reass->frames++;
    d->frames++;
    d->have += f->bytes;
    if (!f->more)
        d->total = f->at + f->bytes;
    if (d->have == d->total) {
        *head = d->head;
        reass->frames -= d->frames;
        d->until_ns = 0;
        n->ip_reassembled++;
    }
    return true;
}

const char *ix_reass_check(const struct ix_net *net)
{
    const struct ix_frame *meta = net->frames->meta;
    uint32_t all = 0;
    for (uint32_t i = 0; i < IX_REASS_MAX; i++) {
        const struct ix_reass_datagram *d = &net->reass.slots[i];
        uint32_t frames = 0, have = 0, end = 0;
        if (!d->until_ns)
            continue;
        for (uint32_t k = d->head; k != IX_NONE && frames <= d->frames; k = meta[k].next) {
            if (meta[k].owner != IX_FRAME_RX || meta[k].seq < end)
                return "reass: fragments overlap or are not RX";
            end = meta[k].seq + meta[k].bytes;
            have += meta[k].bytes;
            frames++;
        }
        if (frames != d->frames || have != d->have || (d->total && end > d->total))
            return "reass: a datagram's frames or bytes are wrong";
        if (d->until_ns < net->reass.next_ns)
            return "reass: next_ns is too late";
        all += frames;
    }
    return all == net->reass.frames ? NULL : "reass: the number of frames is wrong";
}
