/* Answers: into frames of the arena, a frame at a time, within what a connection may have. */
#include "apps/memcached/conn.h"

#include "apps/memcached/txn.h"

#include <stdlib.h>
#include <string.h>

static uint8_t *frame_memory(const struct ix_mc_server *s, uint32_t frame)
{
    const struct ix_io *io = s->app->io;
    return io->umem + (((uint64_t)io->arena_frame + frame) << io->frame_shift) + io->tx_headroom;
}

/* How many frames more the connection may take. A quarter is only for those that have few. */
static uint32_t frames_left(const struct ix_mc_server *s, const struct ix_mc_conn *c)
{
    uint32_t free_frames = s->arena_free_count, reserve = s->app->io->arena_frames / 4;
    uint32_t fair = c->out_count < IX_MC_FRAMES_FAIR ? IX_MC_FRAMES_FAIR - c->out_count : 0;
    uint32_t most = c->out_count < IX_MC_FRAMES_CONN ? IX_MC_FRAMES_CONN - c->out_count : 0;
    uint32_t plenty = free_frames > reserve ? free_frames - reserve : 0;
    if (c->datagram)
        return free_frames;
    if (most > plenty)
        most = plenty;
    if (most < fair)
        most = fair;
    return most < free_frames ? most : free_frames;
}

uint32_t ix_mc_room(struct ix_mc_server *s, struct ix_mc_conn *c)
{
    return c->room + frames_left(s, c) * (c->datagram ? IX_MC_DATAGRAM_BYTES : IX_MC_FRAME_BYTES);
}

static void next_frame(struct ix_mc_server *s, struct ix_mc_conn *c)
{
    uint32_t frame = s->arena_free[--s->arena_free_count];
    s->frames[frame] = (struct ix_mc_frame){.next = IX_MC_NONE};
    if (c->out_head == IX_MC_NONE)
        c->out_head = frame;
    else
        s->frames[c->out_tail].next = frame;
    c->out_tail = frame;
    if (c->out_unsent == IX_MC_NONE)
        c->out_unsent = frame;
    c->out_count++;
    c->at = frame_memory(s, frame);
    c->room = IX_MC_FRAME_BYTES;
    if (c->datagram) { /* udp.c writes the header */
        c->at += IX_MC_UDP_HEADER_BYTES;
        c->room = IX_MC_DATAGRAM_BYTES;
        s->frames[frame].bytes = IX_MC_UDP_HEADER_BYTES;
    }
}

void ix_mc_frame_free(struct ix_mc_server *s, uint32_t frame)
{
    s->arena_free[s->arena_free_count++] = frame;
}

void ix_mc_put(struct ix_mc_server *s, struct ix_mc_conn *c, const void *data, uint32_t n)
{
    const uint8_t *from = data;
    while (n) {
        if (!c->room)
            next_frame(s, c);
        uint32_t part = n < c->room ? n : c->room;
        memcpy(c->at, from, part);
        ix_mc_filled(s, c, part);
        from += part;
        n -= part;
    }
}

uint8_t *ix_mc_reserve(struct ix_mc_server *s, struct ix_mc_conn *c, uint32_t n)
{
    if (!c->room && n <= IX_MC_DATAGRAM_BYTES) /* a frame of either kind has that */
        next_frame(s, c);
    return n <= c->room ? c->at : NULL;
}

void ix_mc_filled(struct ix_mc_server *s, struct ix_mc_conn *c, uint32_t n)
{
    s->frames[c->out_tail].bytes += n;
    c->at += n;
    c->room -= n;
}

static void put_line(struct ix_mc_server *s, struct ix_mc_conn *c, const char *text)
{
    uint32_t n = (uint32_t)strlen(text);
    uint8_t *to = ix_mc_reserve(s, c, n + 2);
    if (!to) {
        ix_mc_put(s, c, text, n);
        ix_mc_put(s, c, "\r\n", 2);
        return;
    }
    memcpy(to, text, n);
    memcpy(to + n, "\r\n", 2);
    ix_mc_filled(s, c, n + 2);
}

void ix_mc_say(struct ix_mc_server *s, struct ix_mc_conn *c, const char *text)
{
    if (!c->noreply)
        put_line(s, c, text);
    c->noreply = false;
}

void ix_mc_say_error(struct ix_mc_server *s, struct ix_mc_conn *c, const char *text)
{
    c->noreply = false;
    put_line(s, c, text);
}

void ix_mc_put_blob(struct ix_mc_server *s, struct ix_mc_conn *c, uint8_t *blob, uint32_t bytes)
{
    c->blob = blob;
    c->blob_bytes = bytes;
    c->blob_at = 0;
    ix_mc_emit(s, c);
}

void ix_mc_put_value(struct ix_mc_server *s, struct ix_mc_conn *c, struct ix_mc_item *item,
                     uint32_t bytes)
{
    struct ix_mc_cursor cursor = ix_mc_begin(s->mc, item);
    if (bytes <= c->room || (bytes <= IX_MC_COPY_MAX && bytes <= ix_mc_room(s, c)) ||
        !ix_mc_hold(&s->use, ix_mc_hold_of(s, c), item)) {
        while (bytes) {
            uint8_t *from;
            uint32_t n = ix_mc_run(s->mc, &cursor, bytes, &from);
            ix_mc_put(s, c, from, n);
            bytes -= n;
        }
        return;
    }
    c->cursor = cursor;
    c->emit_left = bytes;
}

static bool emit_blob(struct ix_mc_server *s, struct ix_mc_conn *c)
{
    uint32_t left = c->blob_bytes - c->blob_at, room = ix_mc_room(s, c);
    uint32_t n = left < room ? left : room;
    ix_mc_put(s, c, c->blob + c->blob_at, n);
    c->blob_at += n;
    if (n < left)
        return false;
    free(c->blob);
    c->blob = NULL;
    return true;
}

bool ix_mc_emit(struct ix_mc_server *s, struct ix_mc_conn *c)
{
    if (c->emit_left) {
        for (uint32_t room; c->emit_left && (room = ix_mc_room(s, c));) {
            uint8_t *from;
            uint32_t most = c->emit_left < room ? c->emit_left : room;
            uint32_t n = ix_mc_run(s->mc, &c->cursor, most, &from);
            ix_mc_put(s, c, from, n);
            c->emit_left -= n;
        }
        if (c->emit_left)
            return false;
        ix_mc_drop(&s->use, ix_mc_hold_of(s, c));
    }
    return !c->blob || emit_blob(s, c);
}

uint8_t *ix_mc_u64_text(uint8_t *to, uint64_t value)
{
    uint8_t digits[20];
    uint32_t n = 0;
    if (value < 10) {
        *to = (uint8_t)('0' + value);
        return to + 1;
    }
    do {
        digits[n++] = (uint8_t)('0' + value % 10);
    } while (value /= 10);
    while (n)
        *to++ = digits[--n];
    return to;
}
