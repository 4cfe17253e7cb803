/* epoll, level- and edge-triggered.
 *
 * As Linux has it: a socket's news puts its items on their epoll's ready list; epoll_wait() takes
 * them off, looks what holds now, and puts level-triggered ones that hold back at the end. */
#include "posix/sock.h"

#include <errno.h>

static const uint32_t FLAGS = EPOLLET | EPOLLONESHOT | EPOLLEXCLUSIVE | EPOLLWAKEUP;

static void make_ready(struct ix_posix *p, uint32_t index)
{
    struct ix_epoll_item *item = &p->items[index];
    struct ix_sock *epoll = &p->socks[item->epoll];
    p->changed = true;
    if (item->ready)
        return;
    item->ready = true;
    item->ready_next = IX_SOCK_NONE;
    if (epoll->ready_tail == IX_SOCK_NONE)
        epoll->ready_head = index;
    else
        p->items[epoll->ready_tail].ready_next = index;
    epoll->ready_tail = index;
}

static void drop_ready(struct ix_posix *p, uint32_t index)
{
    struct ix_epoll_item *item = &p->items[index];
    struct ix_sock *epoll = &p->socks[item->epoll];
    uint32_t before = IX_SOCK_NONE;
    if (!item->ready)
        return;
    for (uint32_t i = epoll->ready_head; i != index; i = p->items[i].ready_next)
        before = i;
    if (before == IX_SOCK_NONE)
        epoll->ready_head = item->ready_next;
    else
        p->items[before].ready_next = item->ready_next;
    if (epoll->ready_tail == index)
        epoll->ready_tail = before;
    item->ready = false;
}

void ix_epoll_note(struct ix_posix *p, struct ix_sock *s, uint32_t events)
{
    for (uint32_t i = s->watchers; i != IX_SOCK_NONE; i = p->items[i].watch_next)
        if (p->items[i].event.events & events & ~FLAGS)
            make_ready(p, i);
}

/* What an item asks for and has now. */
static uint32_t holds(struct ix_posix *p, const struct ix_epoll_item *item)
{
    return ix_sock_events(p, &p->socks[item->sock]) & item->event.events & ~FLAGS;
}

/* ---- epoll_create, epoll_ctl */

int ix_posix_epoll_create(struct ix_posix *p)
{
    ix_posix_enter(p);
    struct ix_sock *epoll = ix_sock_new(p, IX_SOCK_EPOLL, 4);
    int fd = epoll ? ix_sock_give_fd(p, epoll) : -ENFILE;
    if (epoll)
        ix_sock_release(p, epoll);
    ix_posix_leave(p);
    return fd;
}

static uint32_t find_item(const struct ix_posix *p, uint32_t epoll, const struct ix_sock *s, int fd)
{
    uint32_t i = s->watchers;
    while (i != IX_SOCK_NONE && (p->items[i].epoll != epoll || p->items[i].fd != fd))
        i = p->items[i].watch_next;
    return i;
}

static void remove_item(struct ix_posix *p, uint32_t index)
{
    struct ix_epoll_item *item = &p->items[index];
    uint32_t *at = &p->socks[item->sock].watchers;
    drop_ready(p, index);
    while (*at != index)
        at = &p->items[*at].watch_next;
    *at = item->watch_next;
    item->sock = IX_SOCK_NONE;
    item->watch_next = p->item_free;
    p->item_free = index;
}

static int set_item(struct ix_posix *p, uint32_t index, const struct epoll_event *event)
{
    struct ix_epoll_item *item = &p->items[index];
    item->event = *event;
    item->event.events |= EPOLLERR | EPOLLHUP;
    if (holds(p, item))
        make_ready(p, index);
    return 0;
}

static int add_item(struct ix_posix *p, uint32_t epoll, struct ix_sock *s, int fd,
                    const struct epoll_event *event)
{
    uint32_t index = p->item_free;
    if (index == IX_SOCK_NONE)
        return -ENOSPC;
    p->item_free = p->items[index].watch_next;
    p->items[index] = (struct ix_epoll_item){
        .epoll = epoll, .sock = ix_sock_index(p, s), .fd = fd, .watch_next = s->watchers};
    s->watchers = index;
    return set_item(p, index, event);
}

static int change(struct ix_posix *p, struct ix_sock *epoll, struct ix_sock *s, int op, int fd,
                  const struct epoll_event *event)
{
    uint32_t number = ix_sock_index(p, epoll), index = find_item(p, number, s, fd);
    switch (op) {
    case EPOLL_CTL_ADD:
        return index == IX_SOCK_NONE ? add_item(p, number, s, fd, event) : -EEXIST;
    case EPOLL_CTL_MOD:
        return index == IX_SOCK_NONE ? -ENOENT : set_item(p, index, event);
    case EPOLL_CTL_DEL:
        if (index == IX_SOCK_NONE)
            return -ENOENT;
        remove_item(p, index);
        return 0;
    default:
        return -EINVAL;
    }
}

int ix_posix_epoll_ctl(struct ix_posix *p, int epfd, int op, int fd, struct epoll_event *event)
{
    ix_posix_enter(p);
    struct ix_sock *epoll = ix_sock_of_fd(p, epfd), *s = ix_sock_of_fd(p, fd);
    int result = -EBADF;
    if (epoll && s) /* an epoll in an epoll would need a guard against cycles */
        result = epoll->kind != IX_SOCK_EPOLL || s->kind == IX_SOCK_EPOLL
                     ? -EINVAL
                     : change(p, epoll, s, op, fd, event);
    ix_posix_leave(p);
    return result;
}

void ix_epoll_forget(struct ix_posix *p, struct ix_sock *s, int fd)
{
    for (uint32_t i = s->watchers, next; i != IX_SOCK_NONE; i = next) {
        next = p->items[i].watch_next;
        if (p->items[i].fd == fd)
            remove_item(p, i);
    }
}

void ix_epoll_close(struct ix_posix *p, struct ix_sock *epoll)
{
    uint32_t number = ix_sock_index(p, epoll);
    for (uint32_t i = 0; i < p->max_items; i++)
        if (p->items[i].sock != IX_SOCK_NONE && p->items[i].epoll == number)
            remove_item(p, i);
}

/* ---- epoll_wait */

bool ix_epoll_any_ready(struct ix_posix *p, struct ix_sock *epoll)
{
    for (uint32_t i = epoll->ready_head; i != IX_SOCK_NONE; i = p->items[i].ready_next)
        if (holds(p, &p->items[i]))
            return true;
    return false;
}

/* Each item that is on the list now is looked at once. */
static int take(struct ix_posix *p, struct ix_sock *epoll, struct epoll_event *events, int max)
{
    uint32_t last = epoll->ready_tail;
    int n = 0;
    while (epoll->ready_head != IX_SOCK_NONE && n < max) {
        uint32_t index = epoll->ready_head;
        struct ix_epoll_item *item = &p->items[index];
        uint32_t now = holds(p, item);
        drop_ready(p, index);
        if (now) {
            events[n++] = (struct epoll_event){.events = now, .data = item->event.data};
            if (item->event.events & EPOLLONESHOT)
                item->event.events &= FLAGS;
            else if (!(item->event.events & EPOLLET))
                make_ready(p, index);
        }
        if (index == last)
            break;
    }
    return n;
}

int ix_posix_epoll_wait(struct ix_posix *p, int epfd, struct epoll_event *events, int max,
                        int timeout_ms)
{
    ix_posix_enter(p);
    struct ix_sock *epoll = ix_sock_of_fd(p, epfd);
    int result = !epoll ? -EBADF : epoll->kind != IX_SOCK_EPOLL || max <= 0 ? -EINVAL : 0;
    if (!result) {
        uint64_t ns = timeout_ms < 0 ? IX_POSIX_NEVER : (uint64_t)timeout_ms * 1000000;
        struct ix_sock_wait wait = {.deadline_ns = ix_posix_deadline(p, ns)};
        epoll->users++;
        while ((result = take(p, epoll, events, max)) == 0 && epoll->fds && ix_sock_wait(p, &wait))
            ;
        ix_sock_wait_end(p, &wait);
        epoll->users--;
        ix_sock_release(p, epoll);
    }
    ix_posix_leave(p);
    return result;
}
