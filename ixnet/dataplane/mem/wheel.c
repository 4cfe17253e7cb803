/* Timing wheels.
 *
 * A timer's place follows from its tick and the wheel's time alone: read both as numbers in base
 * 256, and the highest digit in which they differ names the level, the timer's digit there the
 * slot. So every slot in use lies ahead of the wheel's time within its level, all timers of a
 * level are due before those of the next, and timers of one tick always share a slot, in the
 * order in which they were set. When time reaches a slot of a higher level, its timers are sorted
 * in again (cascade) and land lower.
 *
 * A timer that is moved to a later tick, or cancelled, stays where it is linked, and is sorted out
 * when time reaches that slot: most timers (retransmission, delayed ACK) are moved or cancelled
 * many times before they would be due, and what a list costs is the cache lines of neighbours.
 *
 * Ticks that differ above the last level are parked. Slot 0 of the last level is free for that: no
 * digit of a timer there can be 0, for it is greater than the wheel's own.
 */
#include "mem/wheel.h"

enum { LAST = IX_WHEEL_LEVELS - 1, PARKED = LAST * IX_WHEEL_SLOTS };

#define EPOCH_SHIFT (IX_WHEEL_BITS * IX_WHEEL_LEVELS) /* log2 of the ticks that the levels span */
/* The last tick whose time in ns fits 64 bits. */
#define TICK_MAX (UINT64_MAX >> IX_WHEEL_TICK_SHIFT)

static uint32_t digit(uint64_t tick, uint32_t level)
{
    return (uint32_t)(tick >> (level * IX_WHEEL_BITS)) & (IX_WHEEL_SLOTS - 1);
}

static uint32_t place(uint64_t now, uint64_t tick)
{
    uint64_t differ = now ^ tick;
    if (differ >> EPOCH_SHIFT)
        return PARKED;
    uint32_t level = (63 - (uint32_t)__builtin_clzll(differ | 1)) / IX_WHEEL_BITS;
    return level * IX_WHEEL_SLOTS + digit(tick, level);
}

/* When time reaches a slot in use. Not of PARKED. */
static uint64_t slot_tick(const struct ix_wheel *w, uint32_t slot)
{
    uint32_t shift = slot / IX_WHEEL_SLOTS * IX_WHEEL_BITS;
    uint64_t above = w->now >> shift >> IX_WHEEL_BITS << IX_WHEEL_BITS;
    return (above | slot % IX_WHEEL_SLOTS) << shift;
}

static uint64_t *busy_word(struct ix_wheel *w, uint32_t slot)
{
    return &w->busy[slot / IX_WHEEL_SLOTS][slot % IX_WHEEL_SLOTS / 64];
}

/* Appends: the head's prev is the slot's last timer. */
static void link_timer(struct ix_wheel *w, uint32_t id)
{
    struct ix_timer *t = &w->timers[id];
    uint32_t slot = place(w->now, t->tick);
    uint32_t head = w->head[slot];
    t->slot = slot;
    t->next = IX_NONE;
    w->linked++;
    if (head == IX_NONE) {
        w->head[slot] = t->prev = id;
        *busy_word(w, slot) |= 1ull << (slot % 64);
        return;
    }
    t->prev = w->timers[head].prev;
    w->timers[t->prev].next = id;
    w->timers[head].prev = id;
}

static void unlink_timer(struct ix_wheel *w, uint32_t id)
{
    struct ix_timer *t = &w->timers[id];
    uint32_t slot = t->slot, head = w->head[slot];
    if (head == id) {
        w->head[slot] = t->next;
        if (t->next == IX_NONE)
            *busy_word(w, slot) &= ~(1ull << (slot % 64));
    } else {
        w->timers[t->prev].next = t->next;
    }
    if (t->next != IX_NONE)
        w->timers[t->next].prev = t->prev;
    else if (head != id)
        w->timers[head].prev = t->prev;
    t->slot = IX_NONE;
    w->linked--;
}

void ix_wheel_init(struct ix_wheel *w, struct ix_timer *timers, uint32_t count, uint64_t now_ns)
{
    IX_ASSERT(count < IX_NONE);
    *w = (struct ix_wheel){
        .timers = timers,
        .count = count,
        .now = now_ns >> IX_WHEEL_TICK_SHIFT,
    };
    for (uint32_t i = 0; i < IX_ARRAY_LEN(w->head); i++)
        w->head[i] = IX_NONE;
    for (uint32_t i = 0; i < count; i++)
        timers[i] = (struct ix_timer){.next = IX_NONE, .prev = IX_NONE, .slot = IX_NONE};
}

void ix_wheel_set(struct ix_wheel *w, uint32_t id, uint64_t deadline_ns)
{
    IX_ASSERT(id < w->count);
    struct ix_timer *t = &w->timers[id];
    /* Rounded up, so that it can't fire early, without the overflow of adding first. */
    uint64_t tick = deadline_ns >> IX_WHEEL_TICK_SHIFT;
    if (deadline_ns & ((1ull << IX_WHEEL_TICK_SHIFT) - 1) && tick < TICK_MAX)
        tick++;
    tick = IX_MAX(tick, w->now);
    uint64_t before = t->tick;
    w->armed += !t->armed;
    t->armed = true;
    t->tick = tick;
    if (t->slot != IX_NONE) {
        /* Mostly to later than it was set for: then the slot is early enough. */
        if (t->slot != PARKED && (tick >= before || tick >= slot_tick(w, t->slot)))
            return;
        unlink_timer(w, id);
    }
    link_timer(w, id);
}

void ix_wheel_cancel(struct ix_wheel *w, uint32_t id)
{
    IX_ASSERT(id < w->count);
    if (!w->timers[id].armed)
        return;
    w->timers[id].armed = false;
    w->armed--;
}

/* The first busy slot of `level` at or after slot `from`, or IX_WHEEL_SLOTS. */
static uint32_t first_busy(const struct ix_wheel *w, uint32_t level, uint32_t from)
{
    for (uint32_t word = from / 64; word < IX_WHEEL_SLOTS / 64; word++) {
        uint64_t bits = w->busy[level][word];
        if (word == from / 64)
            bits &= ~0ull << (from % 64);
        if (bits)
            return word * 64 + (uint32_t)__builtin_ctzll(bits);
    }
    return IX_WHEEL_SLOTS;
}

/* The next slot that time reaches, and the tick at which it does. IX_NONE if nothing is linked. */
static uint32_t next_slot(const struct ix_wheel *w, uint64_t *tick)
{
    if (w->linked == 0)
        return IX_NONE;
    for (uint32_t level = 0; level < IX_WHEEL_LEVELS; level++) {
        /* On level 0 the current slot counts: it holds what was set for now or for the past. */
        uint32_t from = digit(w->now, level) + (level > 0);
        uint32_t slot = from < IX_WHEEL_SLOTS ? first_busy(w, level, from) : IX_WHEEL_SLOTS;
        if (slot == IX_WHEEL_SLOTS)
            continue;
        slot += level * IX_WHEEL_SLOTS;
        *tick = slot_tick(w, slot);
        return slot;
    }
    *tick = ((w->now >> EPOCH_SHIFT) + 1) << EPOCH_SHIFT;
    return PARKED;
}

/* Parked timers are sorted in when their span of 2^32 ticks begins. Spans in which none is due are
 * stepped over, so that a jump over thousands of them costs one pass. */
static uint64_t unpark_tick(const struct ix_wheel *w, uint64_t tick, uint64_t target)
{
    uint64_t first = target;
    for (uint32_t id = w->head[PARKED]; id != IX_NONE; id = w->timers[id].next)
        first = IX_MIN(first, w->timers[id].tick);
    return IX_MAX(tick, first >> EPOCH_SHIFT << EPOCH_SHIFT);
}

/* Time has reached a slot: sorts its timers in again, but for those of this very tick on level 0.
 * Those it takes out, up to `max`, into `fired`. Returns how many. */
static uint32_t empty(struct ix_wheel *w, uint32_t slot, uint32_t *fired, uint32_t max)
{
    uint32_t n = 0, last = w->timers[w->head[slot]].prev, id;
    do {
        id = w->head[slot];
        struct ix_timer *t = &w->timers[id];
        if (t->armed && slot < IX_WHEEL_SLOTS && t->tick <= w->now) {
            if (n == max)
                return n;
            fired[n++] = id;
            ix_wheel_cancel(w, id);
        }
        unlink_timer(w, id);
        if (t->armed)
            link_timer(w, id);
    } while (id != last);
    return n;
}

uint32_t ix_wheel_advance(struct ix_wheel *w, uint64_t now_ns, uint32_t *fired, uint32_t max)
{
    uint64_t target = IX_MAX(now_ns >> IX_WHEEL_TICK_SHIFT, w->now);
    uint32_t n = 0;
    while (n < max) {
        uint64_t tick;
        uint32_t slot = next_slot(w, &tick);
        if (slot == IX_NONE || tick > target) {
            w->now = target;
            break;
        }
        if (slot == PARKED)
            tick = unpark_tick(w, tick, target);
        w->now = tick;
        n += empty(w, slot, fired + n, max - n);
    }
    return n;
}

uint64_t ix_wheel_next_ns(const struct ix_wheel *w)
{
    uint64_t tick;
    if (w->armed == 0 || next_slot(w, &tick) == IX_NONE)
        return UINT64_MAX;
    return tick << IX_WHEEL_TICK_SHIFT;
}

/* Can a timer be due at this tick that waits in this slot? */
static bool in_time(const struct ix_wheel *w, uint32_t slot, uint64_t tick)
{
    if (slot == PARKED)
        return place(w->now, tick) == PARKED;
    uint32_t level = slot / IX_WHEEL_SLOTS, at = slot % IX_WHEEL_SLOTS;
    return at >= digit(w->now, level) + (level > 0) && tick >= slot_tick(w, slot);
}

/* Counts the timers of one busy slot into *seen, and checks each one's place and links. */
static const char *check_slot(const struct ix_wheel *w, uint32_t slot, uint32_t *seen)
{
    uint32_t head = w->head[slot], last = IX_NONE;
    for (uint32_t id = head; id != IX_NONE; id = w->timers[id].next) {
        if (id >= w->count || ++*seen > w->linked)
            return "wheel: a slot's list leads astray";
        const struct ix_timer *t = &w->timers[id];
        if (t->slot != slot || (t->armed && !in_time(w, slot, t->tick)))
            return "wheel: a timer is in the wrong slot";
        if (id != head && t->prev != last)
            return "wheel: a timer's prev is not the one before it";
        last = id;
    }
    return w->timers[head].prev == last ? NULL : "wheel: the head does not know its last timer";
}

/* A bit for each of the 64 slots from `first` that is not empty. */
static uint64_t slots_in_use(const struct ix_wheel *w, uint32_t first)
{
    uint64_t bits = 0;
    for (uint32_t i = 0; i < 64; i++)
        bits |= (uint64_t)(w->head[first + i] != IX_NONE) << i;
    return bits;
}

const char *ix_wheel_check(const struct ix_wheel *w)
{
    uint32_t seen = 0, linked = 0, armed = 0;
    for (uint32_t first = 0; first < IX_ARRAY_LEN(w->head); first += 64) {
        uint64_t busy = w->busy[first / IX_WHEEL_SLOTS][first % IX_WHEEL_SLOTS / 64];
        if (busy != slots_in_use(w, first))
            return "wheel: a busy bit does not match its slot";
        for (; busy; busy &= busy - 1) {
            const char *wrong = check_slot(w, first + (uint32_t)__builtin_ctzll(busy), &seen);
            if (wrong)
                return wrong;
        }
    }
    for (uint32_t id = 0; id < w->count; id++) {
        const struct ix_timer *t = &w->timers[id];
        linked += t->slot != IX_NONE;
        armed += t->armed;
        if (t->armed && t->slot == IX_NONE)
            return "wheel: an armed timer is in no slot";
    }
    if (seen != linked || linked != w->linked || armed != w->armed)
        return "wheel: timers that are listed, linked or armed and their counts differ";
    return NULL;
}
