/* The bytes that a connection carries: one long pseudo-random sequence, from a position of the
 * connection's own on. Sender and checker need no buffer in common, and a byte that was lost,
 * doubled, moved, or taken from another connection does not match.
 *
 * The sequence repeats after a prime number of bytes, so no power of two is a multiple of it. It
 * lies in memory once, and far enough beyond its period that a slice of up to a MiB is contiguous:
 * to write or to check it is a memcpy() or a memcmp().
 */
#ifndef IX_BENCH_BYTESTREAM_H
#define IX_BENCH_BYTESTREAM_H

#include <stdint.h>
#include <string.h>

#define BYTESTREAM_PERIOD 65521u
#define BYTESTREAM_SLICE  (1u << 20)

struct bytestream {
    uint8_t bytes[BYTESTREAM_PERIOD + BYTESTREAM_SLICE];
};

/* The finalizer of SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number
 * generators", OOPSLA 2014). */
static inline uint64_t bytestream_mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

static inline uint64_t bytestream_word(uint64_t seed, uint64_t index)
{
    return bytestream_mix(seed + (index + 1) * 0x9e3779b97f4a7c15ull);
}

static inline void bytestream_init(struct bytestream *s)
{
    for (uint32_t i = 0; i < BYTESTREAM_PERIOD; i += 8) {
        uint64_t word = bytestream_word(0, i / 8);
        uint32_t n = BYTESTREAM_PERIOD - i < 8 ? BYTESTREAM_PERIOD - i : 8;
        memcpy(s->bytes + i, &word, n);
    }
    for (uint32_t i = BYTESTREAM_PERIOD; i < sizeof s->bytes; i++)
        s->bytes[i] = s->bytes[i - BYTESTREAM_PERIOD];
}

/* Where connection (or value) `number` of a run with this seed begins. */
static inline uint32_t bytestream_start(uint64_t seed, uint64_t number)
{
    return (uint32_t)(bytestream_word(seed, number) % BYTESTREAM_PERIOD);
}

/* The position `bytes` bytes after another. */
static inline uint32_t bytestream_after(uint32_t at, uint32_t bytes)
{
    uint64_t after = (uint64_t)at + bytes;
    return (uint32_t)(after < BYTESTREAM_PERIOD ? after : after % BYTESTREAM_PERIOD);
}

/* Up to BYTESTREAM_SLICE bytes from a position on. */
static inline const uint8_t *bytestream_at(const struct bytestream *s, uint32_t at)
{
    return s->bytes + at;
}

#endif
