/* SipHash-2-4 (Aumasson, Bernstein: "SipHash: a fast short-input PRF", 2012, section 2.2). */
#include "base/hash.h"

enum { COMPRESS_ROUNDS = 2, FINAL_ROUNDS = 4 };

struct sip_state {
    uint64_t v0, v1, v2, v3;
};

static inline uint64_t rotate_left(uint64_t v, int bits)
{
    return v << bits | v >> (64 - bits);
}

static inline void sip_rounds(struct sip_state *s, int rounds)
{
#pragma GCC unroll 4
    for (int i = 0; i < rounds; i++) {
        s->v0 += s->v1;
        s->v2 += s->v3;
        s->v1 = rotate_left(s->v1, 13) ^ s->v0;
        s->v3 = rotate_left(s->v3, 16) ^ s->v2;
        s->v0 = rotate_left(s->v0, 32);
        s->v2 += s->v1;
        s->v0 += s->v3;
        s->v1 = rotate_left(s->v1, 17) ^ s->v2;
        s->v3 = rotate_left(s->v3, 21) ^ s->v0;
        s->v2 = rotate_left(s->v2, 32);
    }
}

static inline void sip_compress(struct sip_state *s, uint64_t word)
{
    s->v3 ^= word;
    sip_rounds(s, COMPRESS_ROUNDS);
    s->v0 ^= word;
}

/* Up to 7 bytes, little endian. */
static inline uint64_t take_few(const uint8_t *at, size_t bytes)
{
    uint64_t value = 0;
    uint32_t four = 0;
    for (size_t i = bytes & 4; i < bytes; i++)
        value |= (uint64_t)at[i] << (8 * i);
    if (bytes & 4)
        __builtin_memcpy(&four, at, sizeof four);
    return value | four;
}

uint64_t ix_siphash(const struct ix_key *key, const void *data, size_t bytes)
{
    /* The constants spell "somepseudorandomlygeneratedbytes". */
    struct sip_state s = {
        .v0 = key->k[0] ^ 0x736f6d6570736575ull,
        .v1 = key->k[1] ^ 0x646f72616e646f6dull,
        .v2 = key->k[0] ^ 0x6c7967656e657261ull,
        .v3 = key->k[1] ^ 0x7465646279746573ull,
    };
    const uint8_t *at = data;
    const uint8_t *tail = at + (bytes & ~(size_t)7);
    for (; at < tail; at += 8) {
        uint64_t word;
        __builtin_memcpy(&word, at, 8);
        sip_compress(&s, word);
    }
    sip_compress(&s, (uint64_t)bytes << 56 | take_few(tail, bytes & 7));
    s.v2 ^= 0xff;
    sip_rounds(&s, FINAL_ROUNDS);
    return s.v0 ^ s.v1 ^ s.v2 ^ s.v3;
}
