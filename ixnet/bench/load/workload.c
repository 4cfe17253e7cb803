/* What the bytes of a request and of its reply are. Echo: the reply is the request. */
#include "load.h"

static uint32_t message_bytes(const struct load *l, const struct conn *c, uint32_t index)
{
    const struct options *o = &l->opt;
    if (o->mode != MODE_TRANSFER || !o->max_bytes)
        return o->message_bytes;
    return 1 + (uint32_t)(bytestream_word(~bytestream_word(o->seed, index), c->messages_left) %
                          o->max_bytes);
}

void workload_choose(struct load *l, struct conn *c, uint32_t index, struct request *r)
{
    if (l->opt.mode == MODE_MEMCACHED)
        memcached_choose(l, r);
    else
        r->wire_bytes = message_bytes(l, c, index);
}

void workload_render(struct load *l, struct conn *c, const struct request *r, uint32_t at,
                     uint8_t *out, uint32_t n)
{
    if (l->opt.mode == MODE_MEMCACHED) {
        memcached_render(l, r, at, out, n);
        return;
    }
    memcpy(out, bytestream_at(&l->stream, c->send_at), n);
    c->send_at = bytestream_after(c->send_at, n);
}

uint32_t workload_reply_bytes(struct load *l, const struct request *r, uint8_t first)
{
    return l->opt.mode == MODE_MEMCACHED ? memcached_reply_bytes(l, r, first) : r->wire_bytes;
}

bool workload_matches(struct load *l, struct conn *c, const struct request *r, uint32_t at,
                      const uint8_t *data, uint32_t n)
{
    if (l->opt.mode == MODE_MEMCACHED)
        return memcached_matches(l, r, c->reply_bytes, at, data, n);
    bool same = memcmp(data, bytestream_at(&l->stream, c->recv_at), n) == 0;
    c->recv_at = bytestream_after(c->recv_at, n);
    return same;
}
