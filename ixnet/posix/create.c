/* A shard's socket layer: its memory, and which socket a descriptor means. */
#include "posix/sock.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { FDS_DEFAULT = 1024, ITEMS_PER_FD = 4 };

static bool take_memory(struct ix_posix *p)
{
    const struct ix_posix_config *cfg = &p->cfg;
    p->max_items = cfg->max_fds * ITEMS_PER_FD;
    p->fds = malloc(cfg->max_fds * sizeof *p->fds);
    p->socks = calloc(cfg->max_sockets, sizeof *p->socks);
    p->rx = calloc(cfg->pool_frames, sizeof *p->rx);
    p->arena = calloc(p->io->arena_frames, sizeof *p->arena);
    p->items = calloc(p->max_items, sizeof *p->items);
    return p->fds && p->socks && p->rx && p->arena && p->items;
}

static void link_free_lists(struct ix_posix *p)
{
    const struct ix_posix_config *cfg = &p->cfg;
    for (uint32_t i = 0; i < cfg->max_fds; i++)
        p->fds[i] = IX_SOCK_NONE;
    for (uint32_t i = 0; i < cfg->max_sockets; i++) {
        p->socks[i].generation = 1;
        p->socks[i].next = i + 1 < cfg->max_sockets ? i + 1 : IX_SOCK_NONE;
    }
    for (uint32_t i = 0; i < p->io->arena_frames; i++)
        p->arena[i].next = i + 1 < p->io->arena_frames ? i + 1 : IX_SOCK_NONE;
    for (uint32_t i = 0; i < p->max_items; i++) {
        p->items[i].sock = IX_SOCK_NONE;
        p->items[i].watch_next = i + 1 < p->max_items ? i + 1 : IX_SOCK_NONE;
    }
    p->arena_free = p->io->arena_frames ? 0 : IX_SOCK_NONE;
}

struct ix_posix *ix_posix_new(const struct ix_posix_config *config)
{
    struct ix_posix *p = calloc(1, sizeof *p);
    if (!p)
        return NULL;
    p->cfg = *config;
    if (!p->cfg.max_fds)
        p->cfg.max_fds = FDS_DEFAULT;
    if (!p->cfg.notsent_lowat)
        p->cfg.notsent_lowat = UINT32_MAX;
    if (!p->cfg.max_sockets)
        p->cfg.max_sockets = 2 * p->cfg.max_fds;
    p->io = ix_shard_io(config->shard);
    if (p->io->max_calls < p->io->max_events) { /* see ix_sock_later() */
        free(p);
        return NULL;
    }
    p->next_port = config->port_lo;
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->wake, NULL);
    pthread_cond_init(&p->settled, NULL);
    if (!take_memory(p)) {
        ix_posix_free(p);
        return NULL;
    }
    link_free_lists(p);
    return p;
}

void ix_posix_free(struct ix_posix *p)
{
    for (uint32_t slot = 0; slot < p->cfg.max_fds && p->cfg.env.fd_close; slot++)
        if (p->fds[slot] != IX_SOCK_NONE)
            p->cfg.env.fd_close(p->cfg.env.arg, p->cfg.fd_base + (int)slot);
    pthread_cond_destroy(&p->settled);
    pthread_cond_destroy(&p->wake);
    pthread_mutex_destroy(&p->lock);
    free(p->items);
    free(p->arena);
    free(p->rx);
    free(p->socks);
    free(p->fds);
    free(p);
}

struct ix_sock *ix_sock_of_fd(struct ix_posix *p, int fd)
{
    int64_t slot = (int64_t)fd - p->cfg.fd_base;
    if (slot < 0 || slot >= p->cfg.max_fds || p->fds[slot] == IX_SOCK_NONE)
        return NULL;
    return &p->socks[p->fds[slot]];
}

struct ix_sock *ix_sock_new(struct ix_posix *p, uint8_t kind, uint8_t family)
{
    if (p->sock_free == IX_SOCK_NONE)
        return NULL;
    struct ix_sock *s = &p->socks[p->sock_free];
    p->sock_free = s->next;
    *s = (struct ix_sock){
        .kind = kind,
        .family = family,
        .generation = s->generation,
        .rx_head = IX_SOCK_NONE,
        .rx_tail = IX_SOCK_NONE,
        .tx_head = IX_SOCK_NONE,
        .tx_tail = IX_SOCK_NONE,
        .queue_head = IX_SOCK_NONE,
        .queue_tail = IX_SOCK_NONE,
        .queue_next = IX_SOCK_NONE,
        .listener = IX_SOCK_NONE,
        .ready_head = IX_SOCK_NONE,
        .ready_tail = IX_SOCK_NONE,
        .watchers = IX_SOCK_NONE,
        .next = IX_SOCK_NONE,
    };
    ix_sock_default_options(p, s);
    return s;
}

static int lowest_fd(const struct ix_posix *p)
{
    uint32_t i = 0;
    while (i < p->cfg.max_fds && p->fds[i] != IX_SOCK_NONE)
        i++;
    return p->cfg.fd_base + (int)i;
}

int ix_sock_give_fd(struct ix_posix *p, struct ix_sock *s)
{
    const struct ix_posix_env *env = &p->cfg.env;
    int fd = env->fd_open ? env->fd_open(env->arg) : lowest_fd(p);
    int64_t slot = (int64_t)fd - p->cfg.fd_base;
    if (fd < 0)
        return fd;
    if (slot < 0 || slot >= p->cfg.max_fds) {
        if (env->fd_close)
            env->fd_close(env->arg, fd);
        return -EMFILE;
    }
    p->fds[slot] = ix_sock_index(p, s);
    s->fds++;
    return fd;
}

void ix_sock_take_fd(struct ix_posix *p, int fd)
{
    const struct ix_posix_env *env = &p->cfg.env;
    p->socks[p->fds[fd - p->cfg.fd_base]].fds--;
    p->fds[fd - p->cfg.fd_base] = IX_SOCK_NONE;
    if (env->fd_close)
        env->fd_close(env->arg, fd);
}

void ix_sock_release(struct ix_posix *p, struct ix_sock *s)
{
    bool over = s->handle == 0; /* no event can name it any more */
    if (s->kind == IX_SOCK_FREE || s->fds || s->users || !over || s->listener != IX_SOCK_NONE)
        return;
    s->kind = IX_SOCK_FREE;
    s->generation++;
    s->next = p->sock_free;
    p->sock_free = ix_sock_index(p, s);
}

int ix_posix_dup(struct ix_posix *p, int fd)
{
    ix_posix_enter(p);
    struct ix_sock *s = ix_sock_of_fd(p, fd);
    int result = s ? ix_sock_give_fd(p, s) : -EBADF;
    ix_posix_leave(p);
    return result;
}
