/* What a connection sent, from frames to commands. */
#include "apps/memcached/conn.h"

#include "apps/memcached/txn.h"

#include <stdlib.h>
#include <string.h>

/* The input of the oldest frame that is not handled. */
static const uint8_t *rest_of_frame(const struct ix_mc_server *s, const struct ix_mc_conn *c,
                                    uint32_t *n)
{
    const struct ix_io *io = s->app->io;
    const struct ix_mc_extent *x = &s->extents[c->in.head];
    *n = x->bytes - c->in_at;
    return io->umem + ((uint64_t)c->in.head << io->frame_shift) + x->offset + c->in_at;
}

/* n bytes of the oldest frame are handled. */
static void advance(struct ix_mc_server *s, struct ix_mc_conn *c, uint32_t n)
{
    uint32_t frame = c->in.head;
    c->in_at += n;
    s->use.counts->bytes_read += n;
    if (c->in_at < s->extents[frame].bytes)
        return;
    c->in.head = s->extents[frame].next;
    c->in_at = 0;
    s->extents[frame].next = IX_MC_NONE;
    if (s->done.head == IX_MC_NONE)
        s->done.head = frame;
    else
        s->extents[s->done.tail].next = frame;
    s->done.tail = frame;
}

void ix_mc_input_drop(struct ix_mc_server *s, struct ix_mc_conn *c)
{
    while (c->in.head != IX_MC_NONE)
        advance(s, c, s->extents[c->in.head].bytes - c->in_at);
}

/* Appends n bytes to the line that is being put together. */
static bool append(struct ix_mc_conn *c, const uint8_t *data, uint32_t n)
{
    if (c->line_bytes + n > c->line_room) {
        uint32_t room = c->line_room ? c->line_room : 256;
        while (room < c->line_bytes + n)
            room *= 2;
        uint8_t *line = realloc(c->line, room);
        if (!line)
            return false;
        c->line = line;
        c->line_room = room;
    }
    memcpy(c->line + c->line_bytes, data, n);
    c->line_bytes += n;
    return true;
}

static void line_done(struct ix_mc_conn *c)
{
    c->line_bytes = 0;
    if (c->line_room > IX_MC_LINE_MAX) {
        free(c->line);
        c->line = NULL;
        c->line_room = 0;
    }
}

static void end_input(struct ix_mc_server *s, struct ix_mc_conn *c)
{
    c->state = IX_MC_ENDED;
    line_done(c);
    ix_mc_input_drop(s, c);
}

const uint8_t *ix_mc_peek(struct ix_mc_server *s, struct ix_mc_conn *c, uint32_t n)
{
    uint32_t have;
    if (c->line_bytes >= n)
        return c->line;
    if (!c->line_bytes && c->in.head != IX_MC_NONE) {
        const uint8_t *at = rest_of_frame(s, c, &have);
        if (have >= n)
            return at;
    }
    while (c->line_bytes < n && c->in.head != IX_MC_NONE) {
        const uint8_t *at = rest_of_frame(s, c, &have);
        uint32_t part = n - c->line_bytes < have ? n - c->line_bytes : have;
        if (!append(c, at, part)) {
            end_input(s, c);
            return NULL;
        }
        advance(s, c, part);
    }
    return c->line_bytes >= n ? c->line : NULL;
}

void ix_mc_consume(struct ix_mc_server *s, struct ix_mc_conn *c, uint32_t n)
{
    if (c->line_bytes)
        line_done(c);
    else if (n)
        advance(s, c, n);
}

/* ---- lines -------------------------------------------------------------------- */

static bool may_be_long(const uint8_t *line, uint32_t n)
{
    uint32_t at = 0;
    while (at < n && at <= 100 && line[at] == ' ')
        at++;
    line += at;
    n -= at;
    return at <= 100 && ((n >= 4 && !memcmp(line, "get ", 4)) ||
                         (n >= 5 && !memcmp(line, "gets ", 5)));
}

/* A whole line with its \n, or NULL. *take: bytes of the frame to be handled with it. */
static const uint8_t *find_line(struct ix_mc_server *s, struct ix_mc_conn *c, uint32_t *n,
                                uint32_t *take)
{
    *take = 0;
    while (c->in.head != IX_MC_NONE) {
        uint32_t have;
        const uint8_t *at = rest_of_frame(s, c, &have);
        const uint8_t *end = memchr(at, '\n', have);
        uint32_t part = end ? (uint32_t)(end - at) + 1 : have;
        if (end && !c->line_bytes) {
            *n = *take = part;
            return at;
        }
        if (!append(c, at, part)) {
            end_input(s, c);
            return NULL;
        }
        advance(s, c, part);
        if (end) {
            *n = c->line_bytes;
            return c->line;
        }
        if (c->line_bytes > IX_MC_LINE_MAX &&
            (c->line_bytes > IX_MC_GET_LINE_MAX || !may_be_long(c->line, c->line_bytes))) {
            end_input(s, c);
            return NULL;
        }
    }
    return NULL;
}

static void finish_command(struct ix_mc_server *s, struct ix_mc_conn *c)
{
    ix_mc_consume(s, c, c->command_bytes);
    c->command_bytes = 0;
}

/* Handles one line. False: there is none. */
static bool one_line(struct ix_mc_server *s, struct ix_mc_conn *c)
{
    uint32_t n = 0, take;
    const uint8_t *line = find_line(s, c, &n, &take);
    if (!line)
        return false;
    c->command_bytes = take;
    n--;
    if (n > 1 && line[n - 1] == '\r')
        n--;
    const uint8_t *nul = memchr(line, 0, n);
    if (nul)
        n = (uint32_t)(nul - line);
    if (ix_mc_watched(&s->use, IX_MC_WATCH_RAWCMDS))
        ix_mc_tell_line(&s->use, line, n);
    ix_mc_text_command(s, c, line, n);
    if (c->state == IX_MC_ENDED)
        end_input(s, c);
    else if (c->state != IX_MC_GET_KEYS)
        finish_command(s, c);
    return true;
}

/* ---- data --------------------------------------------------------------------- */

static bool read_data(struct ix_mc_server *s, struct ix_mc_conn *c)
{
    while (c->left && c->in.head != IX_MC_NONE) {
        uint32_t have;
        const uint8_t *at = rest_of_frame(s, c, &have);
        uint32_t part = c->left < have ? (uint32_t)c->left : have;
        if (c->state == IX_MC_READ_DATA)
            ix_mc_write(s->mc, &c->cursor, at, part);
        advance(s, c, part);
        c->left -= part;
    }
    if (c->left)
        return false;
    bool data = c->state == IX_MC_READ_DATA;
    c->state = IX_MC_READ_COMMAND;
    if (data && c->protocol == IX_MC_BINARY)
        ix_mc_binary_data(s, c);
    else if (data)
        ix_mc_text_data(s, c);
    return true;
}

/* ---- what most commands are --------------------------------------------------- */

/* How many of n bytes come before the first that is no part of a key: a space or what is below. */
static uint32_t key_bytes(const uint8_t *at, uint32_t n)
{
    const uint64_t ones = 0x0101010101010101, tops = ones << 7;
    uint32_t i = 0;
    for (; i + 8 <= n; i += 8) {
        uint64_t v;
        memcpy(&v, at + i, 8);
        /* The top bit of each byte below 0x21; the first that is set is right, others may err. */
        v = (v - ones * (' ' + 1)) & ~v & tops;
        if (v)
            return i + (uint32_t)__builtin_ctzll(v) / 8;
    }
    while (i < n && at[i] > ' ')
        i++;
    return i;
}

bool ix_mc_look(struct ix_mc_server *s, struct ix_mc_conn *c)
{
    uint32_t n;
    if (c->state != IX_MC_READ_COMMAND || c->line_bytes || c->in.head == IX_MC_NONE ||
        c->protocol == IX_MC_BINARY)
        return false;
    const uint8_t *key = rest_of_frame(s, c, &n) + 4;
    if (n < 6 || memcmp(key - 4, "get ", 4))
        return false;
    n -= 4;
    uint32_t nkey = key_bytes(key, n < IX_MC_KEY_MAX + 1 ? n : IX_MC_KEY_MAX + 1);
    uint32_t end = nkey + (nkey < n && key[nkey] == '\r');
    if (!nkey || nkey > IX_MC_KEY_MAX || end >= n || key[end] != '\n')
        return false;
    c->pre_hash = ix_mc_hash(s->mc, key, nkey);
    c->pre_key = key;
    c->pre_nkey = nkey;
    c->pre_bytes = 4 + end + 1;
    c->pre_valid = true;
    __builtin_prefetch(ix_mc_bucket(&s->use, c->pre_hash));
    return true;
}

static bool quick(struct ix_mc_server *s, struct ix_mc_conn *c)
{
    if (ix_mc_watched(&s->use, IX_MC_WATCH_RAWCMDS) || (!c->pre_valid && !ix_mc_look(s, c)))
        return false;
    c->pre_valid = false;
    if (!ix_mc_text_quick(s, c))
        return false;
    c->protocol = IX_MC_TEXT;
    advance(s, c, c->pre_bytes);
    return true;
}

/* One step. False: nothing can be done before more input comes. */
static bool step(struct ix_mc_server *s, struct ix_mc_conn *c)
{
    switch (c->state) {
    case IX_MC_READ_COMMAND:
        if (quick(s, c))
            return true;
        if (c->protocol == IX_MC_ANY) {
            const uint8_t *first = ix_mc_peek(s, c, 1);
            if (!first)
                return false;
            c->protocol = *first == 0x80 ? IX_MC_BINARY : IX_MC_TEXT;
        }
        return c->protocol == IX_MC_BINARY ? ix_mc_binary_command(s, c) : one_line(s, c);
    case IX_MC_GET_KEYS:
        if (!ix_mc_text_key(s, c)) {
            c->state = IX_MC_READ_COMMAND;
            finish_command(s, c);
        }
        return true;
    case IX_MC_READ_DATA:
    case IX_MC_SWALLOW:
        return read_data(s, c);
    case IX_MC_WATCH:
        return ix_mc_watch_step(s, c);
    case IX_MC_DUMP:
        ix_mc_dump_step(s, c);
        return true;
    default:
        return false;
    }
}

static void starve(struct ix_mc_server *s, struct ix_mc_conn *c)
{
    /* With frames of its own under way it goes on when they come back. */
    if (c->out_count || c->starved || c->datagram)
        return;
    c->starved = true;
    ix_mc_push(&s->starved, s->starve_next, (uint32_t)(c - s->conns));
}

void ix_mc_input(struct ix_mc_server *s, struct ix_mc_conn *c)
{
    uint32_t steps = 0;
    c->last_ns = s->use.now_ns;
    s->use.conn = (uint32_t)(c - s->conns);
    for (;; steps++) {
        bool sending = c->emit_left || c->blob;
        if ((sending && !ix_mc_emit(s, c)) || !ix_mc_has_room(s, c)) {
            starve(s, c);
            break;
        }
        if (steps == IX_MC_TURN_COMMANDS) {
            s->use.counts->conn_yields++;
            ix_mc_ready(s, c);
            break;
        }
        if (!step(s, c)) {
            if (c->eof || c->state == IX_MC_ENDED)
                ix_mc_call_soon(s, c, IX_MC_TODO_CLOSE);
            break;
        }
    }
    c->room = 0; /* the frame leaves as it is */
    if (c->out_unsent != IX_MC_NONE && !c->blocked)
        ix_mc_call_soon(s, c, IX_MC_TODO_SEND);
}
