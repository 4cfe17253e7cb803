/* Streams whose every byte is known from its position, so that nothing has to be remembered. */
#include "tests/native/sim_world.h"

#include <string.h>

static uint64_t word_at(uint64_t key, uint64_t index)
{
    uint64_t z = key + index * 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 31)) * 0xbf58476d1ce4e5b9ull;
    return z ^ (z >> 29);
}

/* The part of the word at `position` that lies in the next `bytes` bytes. Returns its length. */
static uint32_t part_at(uint64_t key, uint64_t position, uint32_t bytes, uint64_t *part)
{
    uint32_t skip = (uint32_t)(position & 7);
    *part = word_at(key, position >> 3) >> (8 * skip);
    return IX_MIN(8 - skip, bytes);
}

void sim_stream_fill(uint64_t key, uint64_t position, uint8_t *out, uint32_t bytes)
{
    uint64_t part;
    for (uint32_t n; bytes; position += n, out += n, bytes -= n) {
        n = part_at(key, position, bytes, &part);
        memcpy(out, &part, n);
    }
}

uint32_t sim_stream_check(uint64_t key, uint64_t position, const uint8_t *data, uint32_t bytes)
{
    uint64_t part;
    for (uint32_t at = 0, n; at < bytes; at += n) {
        n = part_at(key, position + at, bytes - at, &part);
        if (memcmp(data + at, &part, n) == 0)
            continue;
        while (data[at] == (uint8_t)part) {
            at++;
            part >>= 8;
        }
        return at;
    }
    return bytes;
}
