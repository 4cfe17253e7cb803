/* A binary heap of timers that know their place in it, so that any of them can be moved or
 * taken out in O(log n). */
#include "native/evtimer.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

void ix_evtimers_init(struct ix_evtimers *timers)
{
    memset(timers, 0, sizeof *timers);
}

void ix_evtimers_destroy(struct ix_evtimers *timers)
{
    for (uint32_t i = 0; i < timers->count; i++)
        timers->heap[i]->place = 0;
    free(timers->heap);
    memset(timers, 0, sizeof *timers);
}

static void put(struct ix_evtimers *timers, uint32_t i, struct ix_evtimer *timer)
{
    timers->heap[i] = timer;
    timer->place = i + 1;
}

static void sift_up(struct ix_evtimers *timers, uint32_t i, struct ix_evtimer *timer)
{
    while (i) {
        uint32_t parent = (i - 1) / 2;
        if (timers->heap[parent]->deadline_ns <= timer->deadline_ns)
            break;
        put(timers, i, timers->heap[parent]);
        i = parent;
    }
    put(timers, i, timer);
}

static void sift_down(struct ix_evtimers *timers, uint32_t i, struct ix_evtimer *timer)
{
    for (;;) {
        uint32_t child = 2 * i + 1;
        if (child >= timers->count)
            break;
        if (child + 1 < timers->count &&
            timers->heap[child + 1]->deadline_ns < timers->heap[child]->deadline_ns)
            child++;
        if (timer->deadline_ns <= timers->heap[child]->deadline_ns)
            break;
        put(timers, i, timers->heap[child]);
        i = child;
    }
    put(timers, i, timer);
}

static bool grow(struct ix_evtimers *timers)
{
    uint32_t capacity = timers->capacity ? timers->capacity * 2 : 64;
    struct ix_evtimer **heap = realloc(timers->heap, capacity * sizeof *heap);
    if (!heap)
        return false;
    timers->heap = heap;
    timers->capacity = capacity;
    return true;
}

int ix_evtimer_set(struct ix_evtimers *timers, struct ix_evtimer *timer, uint64_t deadline_ns)
{
    if (!timer->place) {
        if (timers->count == timers->capacity && !grow(timers))
            return -ENOMEM;
        timer->deadline_ns = deadline_ns;
        sift_up(timers, timers->count++, timer);
        return 0;
    }
    bool later = deadline_ns > timer->deadline_ns;
    timer->deadline_ns = deadline_ns;
    if (later)
        sift_down(timers, timer->place - 1, timer);
    else
        sift_up(timers, timer->place - 1, timer);
    return 0;
}

void ix_evtimer_cancel(struct ix_evtimers *timers, struct ix_evtimer *timer)
{
    if (!timer->place)
        return;
    uint32_t i = timer->place - 1;
    struct ix_evtimer *last = timers->heap[--timers->count];
    timer->place = 0;
    if (last == timer)
        return;
    /* The last one takes the hole and moves whichever way it must. */
    if (last->deadline_ns < timer->deadline_ns)
        sift_up(timers, i, last);
    else
        sift_down(timers, i, last);
}

uint64_t ix_evtimers_next(const struct ix_evtimers *timers)
{
    return timers->count ? timers->heap[0]->deadline_ns : UINT64_MAX;
}

struct ix_evtimer *ix_evtimers_pop(struct ix_evtimers *timers, uint64_t now_ns)
{
    if (ix_evtimers_next(timers) > now_ns || !timers->count)
        return NULL;
    struct ix_evtimer *timer = timers->heap[0];
    ix_evtimer_cancel(timers, timer);
    return timer;
}

const char *ix_evtimers_check(const struct ix_evtimers *timers)
{
    for (uint32_t i = 0; i < timers->count; i++) {
        if (timers->heap[i]->place != i + 1)
            return "a timer does not know its place";
        if (i && timers->heap[(i - 1) / 2]->deadline_ns > timers->heap[i]->deadline_ns)
            return "a parent is later than its child";
    }
    return NULL;
}
