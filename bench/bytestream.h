/* The bytes that a test connection carries: a pseudo-random stream in which every byte follows from
 * (seed, offset). Sender and checker need no buffer in common, and a byte that was lost, doubled,
 * moved, or taken from another connection does not match.
 */
#ifndef IX_BENCH_BYTESTREAM_H
#define IX_BENCH_BYTESTREAM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

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

/* Writes the stream's bytes [offset, offset + bytes). */
static inline void bytestream_fill(uint64_t seed, uint64_t offset, uint8_t *out, size_t bytes)
{
    while (bytes > 0) {
        uint64_t word = bytestream_word(seed, offset / 8);
        size_t skip = offset % 8;
        size_t n = 8 - skip < bytes ? 8 - skip : bytes;
        if (n == 8)
            memcpy(out, &word, 8);
        else
            memcpy(out, (const uint8_t *)&word + skip, n);
        out += n;
        offset += n;
        bytes -= n;
    }
}

/* Whether data is the stream's bytes [offset, offset + bytes). */
static inline bool bytestream_matches(uint64_t seed, uint64_t offset, const uint8_t *data,
                                      size_t bytes)
{
    uint8_t wanted[512];
    while (bytes > 0) {
        size_t n = bytes < sizeof wanted ? bytes : sizeof wanted;
        bytestream_fill(seed, offset, wanted, n);
        if (memcmp(wanted, data, n) != 0)
            return false;
        data += n;
        offset += n;
        bytes -= n;
    }
    return true;
}

#endif
