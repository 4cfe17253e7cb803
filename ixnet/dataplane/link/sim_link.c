#include "link/sim_link.h"

#include "base/hash.h"

enum { ETHERNET_BYTES = 14 };

#define NS_PER_S 1000000000ull

/* ---- rings ------------------------------------------------------------------------ */

static uint32_t ring_used(const struct ix_sim_ring *r)
{
    return r->head - r->tail;
}

static uint32_t ring_room(const struct ix_sim_ring *r)
{
    return r->size - ring_used(r);
}

/* The place of the next entry to write or read. */
static uint32_t ring_put(struct ix_sim_ring *r)
{
    IX_ASSERT(ring_room(r) > 0);
    return r->head++ & (r->size - 1);
}

static uint32_t ring_take(struct ix_sim_ring *r)
{
    IX_ASSERT(ring_used(r) > 0);
    return r->tail++ & (r->size - 1);
}

/* ---- frames on the wire: a binary heap by due time ---------------------------------- */

static bool is_due_before(const struct ix_sim_direction *d, uint32_t a, uint32_t b)
{
    const struct ix_sim_slot *x = &d->slots[a], *y = &d->slots[b];
    return x->due_ns < y->due_ns || (x->due_ns == y->due_ns && x->order < y->order);
}

static void heap_push(struct ix_sim_direction *d, uint32_t slot)
{
    uint32_t at = d->heap_count++;
    while (at > 0 && is_due_before(d, slot, d->heap[(at - 1) / 2])) {
        d->heap[at] = d->heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    d->heap[at] = slot;
}

static uint32_t heap_pop(struct ix_sim_direction *d)
{
    uint32_t first = d->heap[0];
    uint32_t moved = d->heap[--d->heap_count];
    uint32_t at = 0;
    for (;;) {
        uint32_t child = 2 * at + 1;
        if (child + 1 < d->heap_count && is_due_before(d, d->heap[child + 1], d->heap[child]))
            child++;
        if (child >= d->heap_count || !is_due_before(d, d->heap[child], moved))
            break;
        d->heap[at] = d->heap[child];
        at = child;
    }
    d->heap[at] = moved;
    return first;
}

static uint8_t *slot_data(const struct ix_sim_wire *wire, const struct ix_sim_direction *d,
                          uint32_t slot)
{
    return d->data + (size_t)slot * wire->slot_bytes;
}

/* Copies a frame onto the wire. Returns its slot, or IX_NONE if the wire is full. */
static uint32_t put_on_wire(struct ix_sim_wire *wire, struct ix_sim_direction *d,
                            const uint8_t *frame, uint32_t bytes, uint64_t due_ns)
{
    uint32_t slot = d->free_slot;
    if (slot == IX_NONE)
        return IX_NONE;
    d->free_slot = d->slots[slot].next;
    d->slots[slot] = (struct ix_sim_slot){
        .due_ns = due_ns, .order = d->order++, .bytes = bytes, .next = IX_NONE};
    __builtin_memcpy(slot_data(wire, d, slot), frame, bytes);
    heap_push(d, slot);
    return slot;
}

/* ---- sending ------------------------------------------------------------------------ */

/* Waits in the queue for the rate. Returns when the frame has left, or UINT64_MAX if the queue is
 * full. */
static uint64_t depart(struct ix_sim_wire *wire, struct ix_sim_direction *d, uint32_t bytes)
{
    const struct ix_sim_path *p = &d->path;
    struct ix_sim_ring *q = &d->queue;
    while (ring_used(q) > 0 && d->departs[q->tail & (q->size - 1)] <= wire->now_ns)
        ring_take(q);
    if (ring_room(q) == 0 || (p->queue_frames > 0 && ring_used(q) >= p->queue_frames))
        return UINT64_MAX;
    uint64_t start = IX_MAX(wire->now_ns, d->line_free_ns);
    uint64_t sending_ns = p->rate_bytes_per_s ? bytes * NS_PER_S / p->rate_bytes_per_s : 0;
    d->line_free_ns = start + sending_ns;
    d->departs[ring_put(q)] = d->line_free_ns;
    return d->line_free_ns;
}

/* The random faults of a frame that is not lost. */
static void put_with_faults(struct ix_sim_wire *wire, uint32_t direction, uint64_t number,
                            const uint8_t *frame, uint32_t bytes, uint64_t due_ns, bool mark)
{
    struct ix_sim_direction *d = &wire->direction[direction];
    const struct ix_sim_path *p = &d->path;
    bool held = ix_sim_happens(wire, direction, number, IX_SIM_REORDER, p->reorder_ppm);
    uint64_t first_ns = due_ns + (held ? p->reorder_hold_ns : 0);
    uint32_t slot = put_on_wire(wire, d, frame, bytes, first_ns);
    if (slot == IX_NONE) {
        d->counters.overflow++;
        return;
    }
    d->counters.reordered += held;
    d->counters.marked += mark && ix_sim_mark(slot_data(wire, d, slot), bytes);
    if (ix_sim_happens(wire, direction, number, IX_SIM_CORRUPT, p->corrupt_ppm)) {
        uint64_t random = ix_sim_roll(wire, direction, number, IX_SIM_CORRUPT_BIT);
        d->counters.corrupted += ix_sim_flip_bit(slot_data(wire, d, slot), bytes, random);
    }
    if (ix_sim_happens(wire, direction, number, IX_SIM_DUP, p->dup_ppm)) {
        uint64_t again_ns = due_ns + ix_sim_jitter(wire, direction, number, IX_SIM_DUP_JITTER);
        d->counters.dup += put_on_wire(wire, d, frame, bytes, again_ns) != IX_NONE;
    }
}

/* A router on the way drops a frame, and tells its sender. */
static void drop_too_big(struct ix_sim_wire *wire, uint32_t direction, const uint8_t *frame,
                         uint32_t bytes)
{
    const struct ix_sim_path *p = &wire->direction[direction].path;
    struct ix_sim_direction *back = &wire->direction[1 - direction];
    uint8_t error[IX_SIM_ERROR_MAX];
    wire->direction[direction].counters.too_big++;
    uint32_t error_bytes = p->mute ? 0 : ix_sim_too_big(frame, bytes, p->mtu, error);
    if (error_bytes && put_on_wire(wire, back, error, error_bytes, wire->now_ns + p->delay_ns) !=
                           IX_NONE)
        back->counters.errors++;
}

static void send_frame(struct ix_sim_wire *wire, uint32_t direction, const uint8_t *frame,
                       uint32_t bytes)
{
    struct ix_sim_direction *d = &wire->direction[direction];
    const struct ix_sim_path *p = &d->path;
    uint64_t number = d->counters.sent++;
    d->counters.sent_bytes += bytes;
    bool faults = p->faults_until_ns == 0 || wire->now_ns < p->faults_until_ns;
    uint64_t left_ns = depart(wire, d, bytes);
    bool mark = p->mark_frames && ring_used(&d->queue) >= p->mark_frames;
    if (left_ns == UINT64_MAX) {
        d->counters.overflow++;
        return;
    }
    if (p->mtu && bytes > ETHERNET_BYTES + p->mtu) {
        drop_too_big(wire, direction, frame, bytes);
        return;
    }
    if (ix_sim_is_dropped(p, number)) {
        d->counters.dropped++;
        return;
    }
    if (faults && ix_sim_is_lost(wire, direction, number, bytes)) {
        d->counters.lost++;
        return;
    }
    uint64_t due_ns = left_ns + p->delay_ns + ix_sim_jitter(wire, direction, number, IX_SIM_JITTER);
    if (faults)
        due_ns = IX_MAX(due_ns, ix_sim_spike(p, wire->now_ns));
    d->last_due_ns = due_ns = IX_MAX(due_ns, d->last_due_ns);
    if (faults)
        put_with_faults(wire, direction, number, frame, bytes, due_ns, mark);
    else if (put_on_wire(wire, d, frame, bytes, due_ns) == IX_NONE)
        d->counters.overflow++;
}

/* As the kernel's xp_aligned_validate_desc() has it: inside one chunk, and long enough to be sent.
 */
static bool is_valid_tx(const struct ix_link *link, const struct ix_desc *desc)
{
    uint64_t chunk_bytes = 1ull << link->frame_shift;
    uint64_t offset = desc->addr & (chunk_bytes - 1);
    return desc->flags == 0 && desc->len >= ETHERNET_BYTES && desc->addr < link->umem_bytes &&
           offset + desc->len <= chunk_bytes;
}

static uint16_t *chunk_of(const struct ix_sim_end *end, uint64_t addr)
{
    return &end->chunks[addr >> end->link.frame_shift];
}

/* A digest of the frame, to see whether it stays as it was handed over. */
static uint64_t digest(const struct ix_link *link, const struct ix_desc *desc)
{
    const uint8_t *at = link->umem + desc->addr;
    uint64_t h = desc->len;
    uint32_t left = desc->len;
    for (; left >= 8; left -= 8, at += 8) {
        uint64_t word;
        __builtin_memcpy(&word, at, 8);
        h = (h ^ word) * 0x9e3779b97f4a7c15ull;
        h ^= h >> 32;
    }
    for (; left > 0; left--)
        h = (h ^ *at++) * 0x100000001b3ull;
    return h;
}

/* What a wakeup makes the kernel do: sends what is on TX, as far as the budget and COMPLETION's
 * room go. The rest follows with the next wakeup or advance. */
static void run_tx(struct ix_sim_end *end)
{
    uint32_t budget = end->tx_budget ? end->tx_budget : UINT32_MAX;
    while (ring_used(&end->tx) > 0 && ring_room(&end->completion) > 0 && budget-- > 0) {
        struct ix_sim_tx t = end->tx_descs[ring_take(&end->tx)];
        if (!is_valid_tx(&end->link, &t.desc)) {
            end->counters.tx_invalid++;
            continue;
        }
        send_frame(end->wire, end->index, end->link.umem + t.desc.addr, t.desc.len);
        t.due_ns = end->wire->now_ns + end->completion_delay_ns;
        end->completion_descs[ring_put(&end->completion)] = t;
    }
    end->kicked = ring_used(&end->tx) > 0;
}

/* ---- receiving ---------------------------------------------------------------------- */

/* The next frame to receive into; false if FILL holds none. */
static bool take_fill(struct ix_sim_end *end, uint64_t *addr)
{
    while (ring_used(&end->fill) > 0) {
        *addr = end->fill_addrs[ring_take(&end->fill)];
        if (*addr < end->link.umem_bytes)
            return true;
        end->counters.fill_invalid++;
    }
    return false;
}

static void deliver(struct ix_sim_end *end, struct ix_sim_counters *c, const uint8_t *frame,
                    uint32_t bytes)
{
    uint64_t chunk_bytes = 1ull << end->link.frame_shift, addr;
    if (end->down) {
        c->link_down++;
    } else if (bytes > chunk_bytes - end->link.rx_headroom) {
        c->too_long++;
    } else if (ring_room(&end->rx) == 0) {
        c->rx_full++;
    } else if (!take_fill(end, &addr)) {
        c->no_fill++;
    } else {
        addr = (addr & ~(chunk_bytes - 1)) + end->link.rx_headroom;
        __builtin_memcpy(end->link.umem + addr, frame, bytes);
        end->rx_descs[ring_put(&end->rx)] = (struct ix_desc){.addr = addr, .len = bytes};
        c->delivered++;
        c->delivered_bytes += bytes;
    }
}

void ix_sim_wire_advance(struct ix_sim_wire *wire, uint64_t now_ns)
{
    wire->now_ns = IX_MAX(wire->now_ns, now_ns);
    for (uint32_t i = 0; i < IX_SIM_ENDS; i++)
        if (wire->end[i].kicked && !wire->end[i].down)
            run_tx(&wire->end[i]);
    for (uint32_t i = 0; i < IX_SIM_ENDS; i++) {
        struct ix_sim_direction *d = &wire->direction[i];
        while (d->heap_count > 0 && d->slots[d->heap[0]].due_ns <= wire->now_ns) {
            uint32_t slot = heap_pop(d);
            deliver(&wire->end[1 - i], &d->counters, slot_data(wire, d, slot),
                    d->slots[slot].bytes);
            d->slots[slot].next = d->free_slot;
            d->free_slot = slot;
        }
    }
}

uint64_t ix_sim_wire_next_ns(const struct ix_sim_wire *wire)
{
    uint64_t next = UINT64_MAX;
    for (uint32_t i = 0; i < IX_SIM_ENDS; i++) {
        const struct ix_sim_direction *d = &wire->direction[i];
        const struct ix_sim_end *end = &wire->end[i];
        if (d->heap_count > 0)
            next = IX_MIN(next, d->slots[d->heap[0]].due_ns);
        if (end->kicked && !end->down && ring_room(&end->completion) > 0)
            next = IX_MIN(next, wire->now_ns);
        if (ring_used(&end->completion) > 0) {
            const struct ix_sim_ring *r = &end->completion;
            uint64_t due_ns = end->completion_descs[r->tail & (r->size - 1)].due_ns;
            if (due_ns > wire->now_ns)
                next = IX_MIN(next, due_ns);
        }
    }
    return next;
}

/* ---- the link operations -------------------------------------------------------------- */

static struct ix_sim_end *end_of(struct ix_link *link)
{
    return IX_CONTAINER_OF(link, struct ix_sim_end, link);
}

static uint32_t sim_rx_burst(struct ix_link *link, struct ix_desc *out, uint32_t max)
{
    struct ix_sim_end *end = end_of(link);
    uint32_t n = IX_MIN(ring_used(&end->rx), max);
    for (uint32_t i = 0; i < n; i++) {
        out[i] = end->rx_descs[ring_take(&end->rx)];
        *chunk_of(end, out[i].addr) &= (uint16_t)~IX_SIM_CHUNK_GIVEN;
    }
    return n;
}

static uint32_t sim_tx_burst(struct ix_link *link, const struct ix_desc *descs, uint32_t n)
{
    struct ix_sim_end *end = end_of(link);
    n = IX_MIN(n, ring_room(&end->tx));
    for (uint32_t i = 0; i < n; i++) {
        struct ix_sim_tx t = {.desc = descs[i]};
        if (is_valid_tx(link, &descs[i])) {
            uint16_t *chunk = chunk_of(end, descs[i].addr);
            t.digest = digest(link, &descs[i]);
            end->counters.misuse += (*chunk & IX_SIM_CHUNK_GIVEN) != 0;
            (*chunk)++;
        }
        end->tx_descs[ring_put(&end->tx)] = t;
    }
    return n;
}

static uint32_t sim_complete(struct ix_link *link, uint64_t *addrs, uint32_t max)
{
    struct ix_sim_end *end = end_of(link);
    struct ix_sim_ring *r = &end->completion;
    uint32_t n = 0;
    while (n < max && ring_used(r) > 0) {
        const struct ix_sim_tx *t = &end->completion_descs[r->tail & (r->size - 1)];
        if (t->due_ns > end->wire->now_ns)
            break;
        ring_take(r);
        end->counters.tx_modified += digest(link, &t->desc) != t->digest;
        (*chunk_of(end, t->desc.addr))--;
        addrs[n++] = t->desc.addr;
    }
    return n;
}

static uint32_t sim_fill(struct ix_link *link, const uint64_t *addrs, uint32_t n)
{
    struct ix_sim_end *end = end_of(link);
    n = IX_MIN(n, ring_room(&end->fill));
    for (uint32_t i = 0; i < n; i++) {
        if (addrs[i] < link->umem_bytes) {
            /* Not 0: given already, or a transmission reads it while we would write. */
            end->counters.misuse += *chunk_of(end, addrs[i]) != 0;
            *chunk_of(end, addrs[i]) |= IX_SIM_CHUNK_GIVEN;
        }
        end->fill_addrs[ring_put(&end->fill)] = addrs[i];
    }
    return n;
}

static uint32_t sim_fill_room(struct ix_link *link)
{
    return ring_room(&end_of(link)->fill);
}

static int sim_wakeup(struct ix_link *link, uint32_t what)
{
    (void)what; /* as in copy mode: what is left on TX is reason enough, RX needs no push */
    struct ix_sim_end *end = end_of(link);
    if (end->down)
        return -IX_ENETDOWN;
    if (ring_used(&end->tx) == 0)
        return 0;
    end->counters.wakeups++;
    run_tx(end);
    return 1;
}

static const struct ix_link_ops sim_ops = {
    .rx_burst = sim_rx_burst,
    .tx_burst = sim_tx_burst,
    .complete = sim_complete,
    .fill = sim_fill,
    .fill_room = sim_fill_room,
    .wakeup = sim_wakeup,
};

bool ix_sim_end_ready(const struct ix_sim_end *end)
{
    const struct ix_sim_ring *r = &end->completion;
    if (ring_used(&end->rx) > 0)
        return true;
    return ring_used(r) > 0 &&
           end->completion_descs[r->tail & (r->size - 1)].due_ns <= end->wire->now_ns;
}

void ix_sim_end_set_down(struct ix_sim_end *end, bool down)
{
    end->down = down;
}

/* ---- creation -------------------------------------------------------------------------- */

/* Hands out pieces of the caller's memory; with base NULL it only counts. */
struct carver {
    uint8_t *base;
    size_t used;
};

static void *carve(struct carver *c, size_t bytes)
{
    void *piece = c->base ? c->base + c->used : NULL;
    c->used += (bytes + IX_CACHE_LINE - 1) & ~(size_t)(IX_CACHE_LINE - 1);
    return piece;
}

static bool is_power_of_two(uint32_t n, uint32_t max)
{
    return n > 0 && n <= max && (n & (n - 1)) == 0;
}

static bool is_sane(const struct ix_sim_setup *s)
{
    for (uint32_t i = 0; i < IX_SIM_ENDS; i++) {
        const struct ix_sim_end_setup *e = &s->end[i];
        if (!is_power_of_two(e->fill_entries, IX_SIM_RING_MAX) ||
            !is_power_of_two(e->rx_entries, IX_SIM_RING_MAX) ||
            !is_power_of_two(e->tx_entries, IX_SIM_RING_MAX) ||
            !is_power_of_two(e->completion_entries, IX_SIM_RING_MAX))
            return false;
        if (e->frame_shift < 11 || e->frame_shift > 12 || e->umem_bytes == 0 ||
            e->umem_bytes & ((1ull << e->frame_shift) - 1) ||
            e->rx_headroom >= 1u << e->frame_shift)
            return false;
    }
    return is_power_of_two(s->wire_frames, IX_SIM_WIRE_FRAMES_MAX);
}

static void lay_out(struct ix_sim_wire *w, const struct ix_sim_setup *s, struct carver *c)
{
    size_t frames = s->wire_frames;
    w->wire_frames = s->wire_frames;
    w->slot_bytes = 1u << IX_MAX(s->end[0].frame_shift, s->end[1].frame_shift);
    for (uint32_t i = 0; i < IX_SIM_ENDS; i++) {
        const struct ix_sim_end_setup *from = &s->end[i];
        struct ix_sim_end *e = &w->end[i];
        struct ix_sim_direction *d = &w->direction[i];
        e->fill.size = from->fill_entries;
        e->rx.size = from->rx_entries;
        e->tx.size = from->tx_entries;
        e->completion.size = from->completion_entries;
        d->queue.size = s->wire_frames;
        e->fill_addrs = carve(c, e->fill.size * sizeof *e->fill_addrs);
        e->rx_descs = carve(c, e->rx.size * sizeof *e->rx_descs);
        e->tx_descs = carve(c, e->tx.size * sizeof *e->tx_descs);
        e->completion_descs = carve(c, e->completion.size * sizeof *e->completion_descs);
        e->chunks = carve(c, (from->umem_bytes >> from->frame_shift) * sizeof *e->chunks);
        d->departs = carve(c, frames * sizeof *d->departs);
        d->slots = carve(c, frames * sizeof *d->slots);
        d->heap = carve(c, frames * sizeof *d->heap);
        d->data = carve(c, frames * w->slot_bytes);
    }
}

size_t ix_sim_wire_bytes(const struct ix_sim_setup *setup)
{
    struct ix_sim_wire scratch = {0};
    struct carver c = {0};
    if (!is_sane(setup))
        return 0;
    lay_out(&scratch, setup, &c);
    return c.used;
}

int ix_sim_wire_init(struct ix_sim_wire *wire, const struct ix_sim_setup *setup, void *memory)
{
    struct carver c = {.base = memory};
    if (!is_sane(setup) || !memory || !setup->end[0].umem || !setup->end[1].umem)
        return -IX_EINVAL;
    *wire = (struct ix_sim_wire){.seed = setup->seed, .now_ns = setup->now_ns};
    lay_out(wire, setup, &c);
    for (uint32_t i = 0; i < IX_SIM_ENDS; i++) {
        const struct ix_sim_end_setup *from = &setup->end[i];
        struct ix_sim_end *e = &wire->end[i];
        struct ix_sim_direction *d = &wire->direction[i];
        e->link = (struct ix_link){
            .ops = &sim_ops,
            .umem = from->umem,
            .umem_bytes = from->umem_bytes,
            .frame_shift = from->frame_shift,
            .rx_headroom = from->rx_headroom,
            .fill_entries = from->fill_entries,
        };
        e->wire = wire;
        e->index = i;
        __builtin_memset(e->chunks, 0, (from->umem_bytes >> from->frame_shift) * sizeof *e->chunks);
        d->free_slot = 0;
        for (uint32_t slot = 0; slot < wire->wire_frames; slot++)
            d->slots[slot].next = slot + 1 < wire->wire_frames ? slot + 1 : IX_NONE;
    }
    return 0;
}

int ix_sim_wire_set_path(struct ix_sim_wire *wire, uint32_t direction,
                         const struct ix_sim_path *path)
{
    if (direction >= IX_SIM_ENDS || path->loss_ppm > IX_SIM_PPM || path->dup_ppm > IX_SIM_PPM ||
        path->reorder_ppm > IX_SIM_PPM || path->corrupt_ppm > IX_SIM_PPM ||
        path->loss_burst_frames > IX_SIM_BURST_MAX || path->drops > IX_SIM_DROPS_MAX)
        return -IX_EINVAL;
    wire->direction[direction].path = *path;
    return 0;
}

/* ---- invariants -------------------------------------------------------------------------- */

static const char *check_direction(const struct ix_sim_wire *wire, const struct ix_sim_direction *d)
{
    const struct ix_sim_counters *c = &d->counters;
    uint64_t gone =
        c->overflow + c->lost + c->dropped + c->too_big + c->no_fill + c->rx_full + c->too_long +
        c->link_down;
    if (c->sent + c->dup + c->errors != c->delivered + gone + d->heap_count)
        return "sim: a frame vanished, or came from nowhere";
    for (uint32_t i = 1; i < d->heap_count; i++)
        if (is_due_before(d, d->heap[i], d->heap[(i - 1) / 2]))
            return "sim: the heap is out of order";
    uint32_t slots = d->heap_count;
    for (uint32_t slot = d->free_slot; slot != IX_NONE; slot = d->slots[slot].next)
        if (++slots > wire->wire_frames)
            return "sim: a slot is free and in use";
    return slots == wire->wire_frames ? NULL : "sim: a slot is lost";
}

const char *ix_sim_wire_check(const struct ix_sim_wire *wire)
{
    for (uint32_t i = 0; i < IX_SIM_ENDS; i++) {
        const struct ix_sim_end *e = &wire->end[i];
        const struct ix_sim_ring *rings[] = {&e->fill, &e->rx, &e->tx, &e->completion};
        for (uint32_t r = 0; r < IX_ARRAY_LEN(rings); r++)
            if (ring_used(rings[r]) > rings[r]->size)
                return "sim: a ring holds more than its size";
        const char *wrong = check_direction(wire, &wire->direction[i]);
        if (wrong)
            return wrong;
    }
    return NULL;
}
