/* The loop around bufferevents: turns, lists of what is due, records. See evloop.h. */
#include "native/evloop.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { TIMER_APP = 0, TIMER_BEV = 1 };
enum { DUE_EVENTS = 1 };

uint64_t ix_evloop_now(const struct ix_evloop *loop)
{
    struct timespec now;
    if (loop->app->clock)
        return loop->app->clock();
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

struct ix_evloop *ix_evloop_new(struct ix_app *app)
{
    struct ix_evloop *loop = calloc(1, sizeof *loop);
    if (!loop)
        return NULL;
    loop->app = app;
    loop->free_head = UINT32_MAX;
    ix_evtimers_init(&loop->timers);
    loop->pending = calloc(app->io->max_calls, sizeof *loop->pending);
    loop->pool = ix_evpool_new(app->io);
    if (!loop->pending || !loop->pool) {
        ix_evloop_free(loop);
        return NULL;
    }
    ix_evbuffer_init(&loop->closed, loop->pool, NULL);
    loop->closed.closed = 1;
    return loop;
}

void ix_evloop_chain(struct ix_evloop *first, struct ix_evloop *loop)
{
    while (first->next)
        first = first->next;
    first->next = loop;
}

void ix_evloop_free(struct ix_evloop *loop)
{
    if (!loop)
        return;
    for (uint32_t i = 0; i < loop->page_count * IX_EVLOOP_PAGE; i++) {
        struct ix_bev *bev = ix_evloop_at(loop, i);
        ix_evbuffer_clear(&bev->input);
        ix_evbuffer_clear(&bev->output);
        ix_evbuffer_clear(&bev->backlog);
        ix_evbuffer_clear(&bev->inflight);
    }
    if (loop->pool) {
        ix_evpool_drop_taken(loop->pool);
        loop->pool->changed_head = loop->pool->changed_tail = NULL;
        ix_evpool_unref(loop->pool);
    }
    ix_evtimers_destroy(&loop->timers);
    for (uint32_t i = 0; i < loop->page_count; i++)
        free(loop->pages[i]);
    free(loop->pages);
    free(loop->early);
    free(loop->read);
    free(loop->write);
    free(loop->late);
    free(loop->timers_due);
    free(loop->pending);
    free(loop);
}

/* ---- records of bufferevents --------------------------------------------- */

struct ix_bev *ix_evloop_at(const struct ix_evloop *loop, uint32_t index)
{
    return &loop->pages[index / IX_EVLOOP_PAGE][index % IX_EVLOOP_PAGE];
}

static bool grow_list(uint32_t **list, size_t entries)
{
    uint32_t *grown = realloc(*list, entries * sizeof **list);
    if (grown)
        *list = grown;
    return grown != NULL;
}

/* One more page of records, and lists long enough that every bufferevent fits on each. */
static bool grow(struct ix_evloop *loop)
{
    size_t count = ((size_t)loop->page_count + 1) * IX_EVLOOP_PAGE;
    if (!grow_list(&loop->early, 2 * count) || !grow_list(&loop->late, 2 * count) ||
        !grow_list(&loop->read, count) || !grow_list(&loop->write, count))
        return false;
    struct ix_bev **pages = realloc(loop->pages, (loop->page_count + 1) * sizeof *pages);
    if (!pages)
        return false;
    loop->pages = pages;
    struct ix_bev *page = calloc(IX_EVLOOP_PAGE, sizeof *page);
    if (!page)
        return false;
    loop->pages[loop->page_count] = page;
    for (uint32_t i = IX_EVLOOP_PAGE; i-- > 0;) {
        page[i].index = loop->page_count * IX_EVLOOP_PAGE + i;
        page[i].free_next = loop->free_head;
        loop->free_head = page[i].index;
        page[i].loop = loop;
        ix_evbuffer_init(&page[i].input, loop->pool, NULL);
        page[i].output = page[i].backlog = page[i].inflight = page[i].input;
    }
    loop->page_count++;
    return true;
}

struct ix_bev *ix_evloop_bev(struct ix_evloop *loop)
{
    if (loop->free_head == UINT32_MAX && !grow(loop))
        return NULL;
    struct ix_bev *bev = ix_evloop_at(loop, loop->free_head);
    uint32_t index = bev->index, generation = (bev->generation + 1) & 0x7fffffff;
    loop->free_head = bev->free_next;
    *bev = (struct ix_bev){.loop = loop, .index = index, .generation = generation ? generation : 1};
    ix_evbuffer_init(&bev->input, loop->pool, &bev->changed);
    bev->output = bev->backlog = bev->inflight = bev->input;
    bev->output.sends = 1;
    bev->state = IX_BEV_IDLE;
    bev->enabled = IX_BEV_WRITE;
    bev->timer.kind = TIMER_BEV;
    bev->timer.id = index;
    loop->bev_count++;
    loop->attached++;
    return bev;
}

void ix_evloop_recycle(struct ix_evloop *loop, struct ix_bev *bev)
{
    ix_evbuffer_clear(&bev->input);
    ix_evbuffer_clear(&bev->output);
    ix_evbuffer_clear(&bev->backlog);
    ix_evbuffer_clear(&bev->inflight);
    bev->inflight_acked = 0;
    bev->state = IX_BEV_FREE;
    bev->free_next = loop->free_head;
    loop->free_head = bev->index;
    loop->bev_count--;
}

/* The bufferevent that a cookie names, or NULL if it is gone. */
static struct ix_bev *find(const struct ix_evloop *loop, uint64_t cookie)
{
    uint32_t index = (uint32_t)cookie;
    if (index / IX_EVLOOP_PAGE >= loop->page_count)
        return NULL;
    struct ix_bev *bev = ix_evloop_at(loop, index);
    return bev->generation == cookie >> 32 && bev->state != IX_BEV_FREE ? bev : NULL;
}

/* ---- what is due --------------------------------------------------------- */

void ix_evloop_due_read(struct ix_evloop *loop, struct ix_bev *bev)
{
    if (!(bev->due & IX_BEV_READ))
        loop->read[loop->read_count++] = bev->index;
    bev->due |= IX_BEV_READ;
}

void ix_evloop_due_write(struct ix_evloop *loop, struct ix_bev *bev)
{
    if (!(bev->due & IX_BEV_WRITE))
        loop->write[loop->write_count++] = bev->index;
    bev->due |= IX_BEV_WRITE;
}

void ix_evloop_due_events(struct ix_evloop *loop, struct ix_bev *bev)
{
    if (!(bev->due & DUE_EVENTS))
        loop->late[2 * loop->late_count++] = bev->index;
    bev->due |= DUE_EVENTS;
}

static void due_early(struct ix_evloop *loop, struct ix_bev *bev, uint32_t listener)
{
    loop->early[2 * loop->early_count] = bev->index;
    loop->early[2 * loop->early_count + 1] = listener;
    loop->early_count++;
}

/* The events that are told are those that happened up to the end of the cycle. CONNECTED goes
 * before data. */
static void settle_events(struct ix_evloop *loop)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < loop->late_count; i++) {
        struct ix_bev *bev = ix_evloop_at(loop, loop->late[2 * i]);
        bev->due &= (uint8_t)~DUE_EVENTS;
        if (bev->events & IX_BEV_CONNECTED)
            due_early(loop, bev, IX_EVLOOP_CONNECTED);
        bev->events &= (uint16_t)~IX_BEV_CONNECTED;
        if (!bev->events)
            continue;
        loop->late[2 * kept] = bev->index;
        loop->late[2 * kept + 1] = bev->events;
        bev->events = 0;
        kept++;
    }
    loop->late_count = kept;
}

static void forget_due(struct ix_evloop *loop)
{
    for (uint32_t i = 0; i < loop->read_count; i++)
        ix_evloop_at(loop, loop->read[i])->due = 0;
    for (uint32_t i = 0; i < loop->write_count; i++)
        ix_evloop_at(loop, loop->write[i])->due = 0;
    loop->early_count = loop->read_count = loop->write_count = 0;
    loop->late_count = loop->timers_due_count = 0;
}

static int64_t own_due(const struct ix_evloop *loop)
{
    uint32_t more =
        loop->early_count | loop->write_count | loop->late_count | loop->timers_due_count;
    return (int64_t)loop->read_count + (more ? IX_EVLOOP_MORE : 0);
}

/* What a turn of the chain returns. */
static int64_t due(const struct ix_evloop *first)
{
    int64_t sum = own_due(first);
    for (const struct ix_evloop *loop = first->next; loop; loop = loop->next)
        if (sum < IX_EVLOOP_MORE && own_due(loop))
            sum += IX_EVLOOP_MORE;
    return sum;
}

/* ---- calls and their results --------------------------------------------- */

struct ix_call *ix_evloop_call(struct ix_evloop *loop, struct ix_bev *bev, uint8_t op, bool watch)
{
    struct ix_call *call = ix_app_call(loop->app, op, bev->handle);
    if (!call)
        return NULL;
    call->cookie = (uint64_t)bev->generation << 32 | bev->index;
    if (watch)
        loop->pending[loop->pending_count++] =
            (struct ix_evpending){.bev = bev, .call = loop->app->io->n_calls - 1};
    return call;
}

/* Lent memory goes back before anything is sent, so that what is sent announces the opened window.
 * It leaves a quarter of the array to other calls. */
static void flush_done(struct ix_evloop *loop)
{
    struct ix_io *io = loop->app->io;
    uint64_t handle, addr;
    uint32_t bytes;
    while (io->n_calls < io->max_calls - io->max_calls / 4 &&
           ix_evpool_pop_done(loop->pool, &handle, &addr, &bytes)) {
        struct ix_call *call = ix_app_call(loop->app, IX_CALL_RECV_DONE, handle);
        call->addr = addr;
        call->bytes = bytes;
    }
}

static void flush(struct ix_evloop *loop)
{
    struct ix_evowner *last = loop->pool->changed_tail, *owner = NULL;
    /* Calls that a poll did not run (it was time to stop) still stand there. */
    if (loop->pending_count)
        return;
    flush_done(loop);
    /* Those that queue themselves again meanwhile wait for the next turn. */
    while (owner != last && (owner = ix_evpool_unqueue(loop->pool))) {
        if (!ix_bev_flush((struct ix_bev *)owner)) {
            ix_evpool_queue(loop->pool, owner);
            break;
        }
    }
}

static void book_results(struct ix_evloop *loop)
{
    const struct ix_io *io = loop->app->io;
    for (uint32_t i = 0; i < loop->pending_count; i++) {
        const struct ix_call *call = &io->calls[loop->pending[i].call];
        struct ix_bev *bev = loop->pending[i].bev;
        if (call->op == IX_CALL_SENDV)
            ix_bev_sent_to_dataplane(bev, call);
        else if (call->result < 0)
            ix_bev_call_failed(bev, call);
        else if (call->op == IX_CALL_CONNECT)
            bev->handle = call->handle;
    }
    loop->pending_count = 0;
}

/* ---- events -------------------------------------------------------------- */

static void on_knock(struct ix_evloop *loop, const struct ix_event *ev)
{
    struct ix_bev *bev = ev->cookie & IX_EVLOOP_LISTENER ? ix_evloop_bev(loop) : NULL;
    if (!bev) {
        loop->knocks_refused++;
        (void)ix_app_call(loop->app, IX_CALL_REJECT, ev->handle);
        return;
    }
    bev->handle = ev->handle;
    bev->state = IX_BEV_KNOCKED;
    bev->todo = IX_BEV_TODO_ACCEPT;
    bev->family = ev->family;
    bev->peer_port = ev->peer_port;
    bev->local_port = ev->local_port;
    memcpy(bev->peer, ev->peer, sizeof bev->peer);
    memcpy(bev->local, ev->local, sizeof bev->local);
    ix_evpool_queue(loop->pool, &bev->changed);
    due_early(loop, bev, (uint32_t)ev->cookie);
}

/* Payload for a bufferevent that is gone: nobody will read it. */
static void give_back(struct ix_evloop *loop, const struct ix_event *ev)
{
    const struct ix_io *io = loop->app->io;
    uint8_t *data = io->umem + ((uint64_t)ev->frame << io->frame_shift) + ev->offset;
    struct ix_evextent *e = NULL;
    if (ev->bytes)
        e = ix_evextent_lent(loop->pool, data, ev->bytes, ev->handle);
    if (e)
        ix_evextent_release(loop->pool, e);
}

static void book_events(struct ix_evloop *loop, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        const struct ix_event *ev = &loop->app->io->events[i];
        if (ev->type == IX_EV_KNOCK) {
            on_knock(loop, ev);
            continue;
        }
        struct ix_bev *bev = find(loop, ev->cookie);
        if (!bev) {
            if (ev->type == IX_EV_RECV)
                give_back(loop, ev);
            continue;
        }
        switch (ev->type) {
        case IX_EV_RECV:
            ix_bev_on_recv(bev, ev);
            break;
        case IX_EV_SENT:
            ix_bev_on_sent(bev, ev->bytes, ev->window);
            break;
        case IX_EV_DEAD:
            ix_bev_on_end(bev, ev->status);
            break;
        case IX_EV_CONNECTED:
            ix_bev_on_connected(bev, ev);
            break;
        default:
            break;
        }
    }
}

/* ---- timers -------------------------------------------------------------- */

int ix_evloop_timer_set(struct ix_evloop *loop, struct ix_evtimer *timer, uint64_t delay_ns)
{
    uint64_t now = ix_evloop_now(loop);
    timer->kind = TIMER_APP;
    return ix_evtimer_set(&loop->timers, timer,
                          now > UINT64_MAX - delay_ns ? UINT64_MAX - 1 : now + delay_ns);
}

void ix_evloop_timer_cancel(struct ix_evloop *loop, struct ix_evtimer *timer)
{
    ix_evtimer_cancel(&loop->timers, timer);
}

static bool timer_due(struct ix_evloop *loop, uint32_t id)
{
    if (loop->timers_due_count == loop->timers_due_capacity) {
        uint32_t capacity = loop->timers_due_capacity ? 2 * loop->timers_due_capacity : 64;
        if (!grow_list(&loop->timers_due, capacity))
            return false;
        loop->timers_due_capacity = capacity;
    }
    loop->timers_due[loop->timers_due_count++] = id;
    return true;
}

static void run_timers(struct ix_evloop *loop)
{
    uint64_t now = loop->app->now_ns;
    for (struct ix_evtimer *timer; (timer = ix_evtimers_pop(&loop->timers, now));) {
        if (timer->kind == TIMER_BEV) {
            ix_bev_on_timer(ix_evloop_at(loop, timer->id));
        } else if (!timer_due(loop, timer->id)) {
            ix_evtimer_set(&loop->timers, timer, timer->deadline_ns);
            break;
        }
    }
}

/* ---- a turn -------------------------------------------------------------- */

/* How long the dataplane may sleep: not at all when there is something to do for us. */
static uint64_t sleep_bound(const struct ix_evloop *loop, uint64_t now, uint64_t max_wait_ns)
{
    do {
        uint64_t next = ix_evtimers_next(&loop->timers);
        if (loop->pool->changed_head || loop->pool->done_head || own_due(loop) || next <= now)
            return 0;
        if (next - now < max_wait_ns)
            max_wait_ns = next - now;
    } while ((loop = loop->next));
    return max_wait_ns;
}

/* One cycle. Returns false when it is time to stop. */
static inline bool cycle(struct ix_evloop *loop, uint64_t max_wait_ns)
{
    int n = ix_app_poll(loop->app, max_wait_ns);
    if (n < 0)
        return false;
    loop->turns++;
    book_results(loop);
    book_events(loop, (uint32_t)n);
    run_timers(loop);
    settle_events(loop);
    return true;
}

int64_t ix_evloop_turn(struct ix_evloop *first, uint64_t max_wait_ns)
{
    uint64_t end_ns = 0, left_ns = max_wait_ns, now = first->app->now_ns;
    struct ix_evloop *loop = first;
    do {
        ix_evpool_drop_taken(loop->pool);
        forget_due(loop);
    } while ((loop = loop->next));
    for (;;) {
        int64_t found;
        loop = first;
        do {
            flush(loop);
            /* What was found due before the stop is still told. */
            if (!cycle(loop, sleep_bound(first, now, left_ns)))
                return (found = due(first)) ? found : -1;
            now = loop->app->now_ns;
        } while ((loop = loop->next));
        if (!end_ns)
            end_ns = max_wait_ns < UINT64_MAX - now ? now + max_wait_ns : UINT64_MAX;
        found = due(first);
        if (found || now >= end_ns)
            return found;
        left_ns = end_ns - now;
    }
}

static uint32_t active(const struct ix_evloop *loop)
{
    uint32_t timers = 0;
    for (uint32_t i = 0; i < loop->timers.count && !timers; i++)
        timers += loop->timers.heap[i]->kind == TIMER_APP;
    return loop->bev_count + timers;
}

uint32_t ix_evloop_active(const struct ix_evloop *loop)
{
    uint32_t sum = 0;
    for (; loop; loop = loop->next)
        sum += active(loop);
    return sum;
}

const char *ix_evloop_check(const struct ix_evloop *loop)
{
    const char *wrong = ix_evpool_check(loop->pool);
    uint32_t used = 0;
    if (!wrong)
        wrong = ix_evtimers_check(&loop->timers);
    for (uint32_t i = 0; i < loop->page_count * IX_EVLOOP_PAGE && !wrong; i++) {
        const struct ix_bev *bev = ix_evloop_at(loop, i);
        used += bev->state != IX_BEV_FREE;
        wrong = ix_bev_check(bev);
    }
    if (!wrong && used != loop->bev_count)
        wrong = "the count of bufferevents is wrong";
    return wrong;
}
