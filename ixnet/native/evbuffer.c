/* Byte queues: chains of extents. See evbuffer.h. */
#include "native/evbuffer.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { EXTENT_MAX_BYTES = 1 << 30 };

void ix_evbuffer_init(struct ix_evbuffer *b, struct ix_evpool *pool, struct ix_evowner *owner)
{
    *b = (struct ix_evbuffer){.pool = pool, .owner = owner};
}

struct ix_evbuffer *ix_evbuffer_new(struct ix_evpool *pool)
{
    struct ix_evbuffer *b = malloc(sizeof *b);
    if (!b)
        return NULL;
    ix_evbuffer_init(b, pool, NULL);
    pool->references++;
    return b;
}

void ix_evbuffer_free(struct ix_evbuffer *b)
{
    if (!b)
        return;
    ix_evbuffer_clear(b);
    ix_evpool_unref(b->pool);
    free(b);
}

void ix_evbuffer_clear(struct ix_evbuffer *b)
{
    ix_evextent_release_all(b->pool, b->head);
    b->head = b->tail = NULL;
    b->bytes = 0;
    b->has_arena = 0;
}

static void tell(struct ix_evbuffer *b)
{
    if (b->owner)
        ix_evpool_queue(b->pool, b->owner);
}

/* ---- the chain; none of these counts b->bytes ---------------------------- */

static void link_tail(struct ix_evbuffer *b, struct ix_evextent *e)
{
    e->next = NULL;
    if (b->tail)
        b->tail->next = e;
    else
        b->head = e;
    b->tail = e;
    if (e->kind == IX_EVEXTENT_ARENA)
        b->has_arena = 1;
}

static void link_head(struct ix_evbuffer *b, struct ix_evextent *e)
{
    e->next = b->head;
    b->head = e;
    if (!b->tail)
        b->tail = e;
}

static struct ix_evextent *unlink_head(struct ix_evbuffer *b)
{
    struct ix_evextent *e = b->head;
    b->head = e->next;
    if (!b->head) {
        b->tail = NULL;
        b->has_arena = 0;
    }
    e->next = NULL;
    return e;
}

/* Cuts the first extent so that it ends after n bytes. Returns 0 or -ENOMEM. */
static int cut_head(struct ix_evbuffer *b, uint32_t n)
{
    struct ix_evextent *e = b->head, *rest = ix_evextent_split(b->pool, e, n);
    if (!rest)
        return -ENOMEM;
    rest->next = e->next;
    e->next = rest;
    if (b->tail == e)
        b->tail = rest;
    return 0;
}

/* ---- adding -------------------------------------------------------------- */

/* Drops what was appended behind `tail`, which had tail_bytes then. */
static void undo_add(struct ix_evbuffer *b, struct ix_evextent *tail, uint32_t tail_bytes,
                     uint64_t bytes)
{
    ix_evextent_release_all(b->pool, tail ? tail->next : b->head);
    if (tail) {
        tail->next = NULL;
        tail->bytes = tail_bytes;
    } else {
        b->head = NULL;
    }
    b->tail = tail;
    b->bytes = bytes;
}

static struct ix_evextent *new_tail(struct ix_evbuffer *b, size_t n)
{
    struct ix_evextent *e = b->sends ? ix_evextent_arena(b->pool, b->owner) : NULL;
    if (!e)
        e = ix_evextent_heap(b->pool, n < EXTENT_MAX_BYTES ? n : EXTENT_MAX_BYTES, 0);
    if (e)
        link_tail(b, e);
    return e;
}

int ix_evbuffer_add(struct ix_evbuffer *b, const void *data, size_t n)
{
    struct ix_evextent *old_tail = b->tail;
    uint32_t old_tail_bytes = old_tail ? old_tail->bytes : 0;
    uint64_t old_bytes = b->bytes;
    const uint8_t *from = data;
    if (b->closed)
        return -EBADF;
    if (!n || b->discards)
        return 0;
    while (n) {
        uint32_t room = b->tail ? ix_evextent_room(b->pool, b->tail) : 0;
        if (!room) {
            struct ix_evextent *e = new_tail(b, n);
            if (!e) {
                undo_add(b, old_tail, old_tail_bytes, old_bytes);
                return -ENOMEM;
            }
            room = ix_evextent_room(b->pool, e);
        }
        uint32_t part = n < room ? (uint32_t)n : room;
        ix_evextent_append(b->pool, b->tail, from, part);
        b->bytes += part;
        from += part;
        n -= part;
    }
    tell(b);
    return 0;
}

int ix_evbuffer_prepend(struct ix_evbuffer *b, const void *data, size_t n)
{
    if (b->closed)
        return -EBADF;
    if (!n || b->discards)
        return 0;
    if (n > EXTENT_MAX_BYTES)
        return -ENOMEM;
    uint32_t fitted = b->head ? ix_evextent_put_front(b->head, data, n) : 0;
    if (fitted < n) {
        /* Room is left in front for as much again: protocols prepend a header to a header. */
        struct ix_evextent *e = ix_evextent_heap(b->pool, 0, n < 256 ? 512 : 2 * n);
        if (!e) {
            if (fitted)
                ix_evextent_trim(b->pool, b->head, fitted);
            return -ENOMEM;
        }
        ix_evextent_put_front(e, data, n - fitted);
        link_head(b, e);
    }
    b->bytes += n;
    tell(b);
    return 0;
}

int ix_evbuffer_add_lent(struct ix_evbuffer *b, uint8_t *data, uint32_t n, uint64_t handle)
{
    struct ix_evextent *e = ix_evextent_lent(b->pool, data, n, handle);
    if (!e)
        return -ENOMEM;
    link_tail(b, e);
    b->bytes += n;
    return 0;
}

/* ---- moving -------------------------------------------------------------- */

/* Arena frames are charged to their owner and end with it, and lent memory goes back through its
 * own loop. */
static bool may_move(const struct ix_evextent *e, const struct ix_evbuffer *from,
                     const struct ix_evbuffer *to)
{
    return from->pool == to->pool &&
           (e->kind != IX_EVEXTENT_ARENA || (from->owner && from->owner == to->owner));
}

/* Moves the first extent. Returns 0 or -ENOMEM. */
static int move_head(struct ix_evbuffer *from, struct ix_evbuffer *to)
{
    struct ix_evextent *e = from->head;
    uint32_t n = e->bytes;
    if (may_move(e, from, to)) {
        link_tail(to, unlink_head(from));
        to->bytes += n;
    } else {
        int err = ix_evbuffer_add(to, e->data, n);
        if (err)
            return err;
        ix_evextent_release(from->pool, unlink_head(from));
    }
    from->bytes -= n;
    return 0;
}

int64_t ix_evbuffer_remove_buffer(struct ix_evbuffer *from, struct ix_evbuffer *to, uint64_t n)
{
    uint64_t left = n < from->bytes ? n : from->bytes, moved = left;
    int err = 0;
    if (to->closed)
        return -EBADF;
    if (from == to || !left)
        return (int64_t)moved;
    if (to->discards)
        return (int64_t)ix_evbuffer_drain(from, left);
    if (left < from->bytes || from->has_arena || from->pool != to->pool) {
        while (left && !err) {
            if (from->head->bytes > left)
                err = cut_head(from, (uint32_t)left);
            if (!err) {
                uint32_t bytes = from->head->bytes;
                err = move_head(from, to);
                left -= err ? 0 : bytes;
            }
        }
    } else {
        if (to->tail)
            to->tail->next = from->head;
        else
            to->head = from->head;
        to->tail = from->tail;
        to->bytes += from->bytes;
        from->head = from->tail = NULL;
        from->bytes = 0;
    }
    tell(from);
    tell(to);
    return err ? err : (int64_t)moved;
}

int ix_evbuffer_add_buffer(struct ix_evbuffer *to, struct ix_evbuffer *from)
{
    int64_t moved = ix_evbuffer_remove_buffer(from, to, UINT64_MAX);
    return moved < 0 ? (int)moved : 0;
}

int ix_evbuffer_shift(struct ix_evbuffer *from, struct ix_evbuffer *to, uint32_t n)
{
    if (n < from->head->bytes && cut_head(from, n))
        return -ENOMEM;
    link_tail(to, unlink_head(from));
    from->bytes -= n;
    to->bytes += n;
    return 0;
}

struct ix_evextent *ix_evbuffer_sendable(struct ix_evbuffer *b, struct ix_evextent **at)
{
    struct ix_evextent *e = *at;
    if (e->kind != IX_EVEXTENT_HEAP)
        return e;
    struct ix_evextent *a = ix_evextent_arena(b->pool, b->owner);
    if (!a)
        return NULL;
    b->has_arena = 1;
    for (uint32_t room;
         e && e->kind == IX_EVEXTENT_HEAP && (room = ix_evextent_room(b->pool, a));) {
        uint32_t n = e->bytes < room ? e->bytes : room;
        ix_evextent_append(b->pool, a, e->data, n);
        if (n < e->bytes) {
            ix_evextent_trim(b->pool, e, n);
            break;
        }
        struct ix_evextent *next = e->next;
        if (b->tail == e)
            b->tail = a;
        ix_evextent_release(b->pool, e);
        e = next;
    }
    a->next = e;
    *at = a;
    return a;
}

/* ---- consuming ----------------------------------------------------------- */

static uint64_t drop(struct ix_evbuffer *b, uint64_t n)
{
    uint64_t left = n < b->bytes ? n : b->bytes, before = left;
    while (left) {
        struct ix_evextent *e = b->head;
        if (e->bytes > left) {
            if (ix_evextent_trim(b->pool, e, (uint32_t)left))
                break;
            b->bytes -= left;
            left = 0;
        } else {
            left -= e->bytes;
            b->bytes -= e->bytes;
            ix_evextent_release(b->pool, unlink_head(b));
        }
    }
    return before - left;
}

uint64_t ix_evbuffer_drain(struct ix_evbuffer *b, uint64_t n)
{
    uint64_t dropped = drop(b, n);
    if (dropped)
        tell(b);
    return dropped;
}

uint64_t ix_evbuffer_copyout(const struct ix_evbuffer *b, uint64_t offset, void *out, uint64_t n)
{
    uint64_t copied = 0;
    for (const struct ix_evextent *e = b->head; e && copied < n; e = e->next) {
        if (offset >= e->bytes) {
            offset -= e->bytes;
            continue;
        }
        uint64_t part = e->bytes - offset < n - copied ? e->bytes - offset : n - copied;
        memcpy((uint8_t *)out + copied, e->data + offset, part);
        copied += part;
        offset = 0;
    }
    return copied;
}

uint64_t ix_evbuffer_remove(struct ix_evbuffer *b, void *out, uint64_t n)
{
    return ix_evbuffer_drain(b, ix_evbuffer_copyout(b, 0, out, n));
}

const char *ix_evbuffer_pullup(struct ix_evbuffer *b, int64_t n)
{
    static const char nothing[1];
    uint64_t want = n < 0 ? b->bytes : (uint64_t)n;
    if (want > b->bytes || want > EXTENT_MAX_BYTES)
        return NULL;
    if (!want)
        return b->head ? (const char *)b->head->data : nothing;
    if (b->head->bytes >= want)
        return (const char *)b->head->data;
    struct ix_evextent *e = ix_evextent_heap(b->pool, want, 0);
    if (!e || !ix_evpool_reserve(b->pool)) { /* for the cut in the last extent */
        ix_evextent_release_all(b->pool, e);
        return NULL;
    }
    for (uint64_t left = want; left;) {
        const struct ix_evextent *from = b->head;
        uint32_t part = from->bytes < left ? from->bytes : (uint32_t)left;
        ix_evextent_append(b->pool, e, from->data, part);
        left -= drop(b, part);
    }
    link_head(b, e);
    b->bytes += want;
    /* What was copied goes back to the dataplane: the window opens, so the loop must turn to it. */
    tell(b);
    return (const char *)e->data;
}

const char *ix_evbuffer_take(struct ix_evbuffer *b, uint64_t n)
{
    const char *data = ix_evbuffer_pullup(b, (int64_t)n);
    if (!data || !n)
        return data;
    if (b->head->bytes > n && cut_head(b, (uint32_t)n))
        return NULL;
    ix_evpool_drop_taken(b->pool);
    b->pool->taken = unlink_head(b);
    b->bytes -= n;
    tell(b);
    return data;
}

uint32_t ix_evbuffer_peek(const struct ix_evbuffer *b, struct ix_evvec *out, uint32_t max)
{
    uint32_t n = 0;
    for (const struct ix_evextent *e = b->head; e; e = e->next, n++)
        if (n < max)
            out[n] = (struct ix_evvec){.data = e->data, .bytes = e->bytes};
    return n;
}

/* ---- searching ----------------------------------------------------------- */

/* Do the n bytes of `what` stand at offset `at` of extent e? */
static bool stands_at(const struct ix_evextent *e, uint64_t at, const uint8_t *what, size_t n)
{
    while (e && n) {
        uint64_t part = e->bytes - at < n ? e->bytes - at : n;
        if (memcmp(e->data + at, what, part))
            return false;
        what += part;
        n -= part;
        at = 0;
        e = e->next;
    }
    return !n;
}

int64_t ix_evbuffer_search(const struct ix_evbuffer *b, const void *what, size_t n, uint64_t start)
{
    const uint8_t *first = what;
    uint64_t base = 0; /* the position of e's first byte */
    if (!n || start > b->bytes || n > b->bytes - start)
        return -1;
    for (const struct ix_evextent *e = b->head; e; base += e->bytes, e = e->next) {
        uint64_t at = start > base ? start - base : 0;
        while (at < e->bytes) {
            const uint8_t *hit = memchr(e->data + at, first[0], e->bytes - at);
            if (!hit)
                break;
            at = (uint64_t)(hit - e->data);
            if (stands_at(e, at, first, n))
                return (int64_t)(base + at);
            at++;
        }
    }
    return -1;
}

static int byte_at(const struct ix_evbuffer *b, uint64_t position)
{
    uint8_t byte;
    return ix_evbuffer_copyout(b, position, &byte, 1) ? byte : -1;
}

static int64_t search_any_eol(const struct ix_evbuffer *b, uint32_t *eol_bytes)
{
    int64_t cr = ix_evbuffer_search(b, "\r", 1, 0), lf = ix_evbuffer_search(b, "\n", 1, 0);
    int64_t at = cr < 0 || (lf >= 0 && lf < cr) ? lf : cr;
    if (at < 0)
        return -1;
    uint64_t end = (uint64_t)at + 1;
    for (int c; (c = byte_at(b, end)) == '\r' || c == '\n';)
        end++;
    *eol_bytes = (uint32_t)(end - (uint64_t)at);
    return at;
}

int64_t ix_evbuffer_search_eol(const struct ix_evbuffer *b, uint32_t style, uint32_t *eol_bytes)
{
    int64_t at;
    *eol_bytes = 1;
    switch (style) {
    case IX_EOL_ANY:
        return search_any_eol(b, eol_bytes);
    case IX_EOL_CRLF:
        at = ix_evbuffer_search(b, "\n", 1, 0);
        if (at <= 0 || byte_at(b, (uint64_t)at - 1) != '\r')
            return at;
        *eol_bytes = 2;
        return at - 1;
    case IX_EOL_CRLF_STRICT:
        *eol_bytes = 2;
        return ix_evbuffer_search(b, "\r\n", 2, 0);
    case IX_EOL_LF:
        return ix_evbuffer_search(b, "\n", 1, 0);
    default:
        return ix_evbuffer_search(b, "", 1, 0);
    }
}

/* ---- invariants ---------------------------------------------------------- */

const char *ix_evbuffer_check(const struct ix_evbuffer *b)
{
    uint64_t bytes = 0;
    bool arena = false;
    for (const struct ix_evextent *e = b->head; e; e = e->next) {
        if (!e->bytes)
            return "an extent in a buffer is empty";
        if (!e->next && e != b->tail)
            return "the last extent is not the tail";
        bytes += e->bytes;
        arena |= e->kind == IX_EVEXTENT_ARENA;
    }
    if (bytes != b->bytes)
        return "the extents don't add up to the length";
    if (!b->head && b->tail)
        return "a tail without a head";
    if (arena && (!b->has_arena || !b->owner))
        return "arena frames in a buffer that must not have them";
    return NULL;
}
