/* Keyed hashes and the shard's random numbers. No entropy is drawn here: keys come with
 * the configuration. */
#ifndef IX_BASE_HASH_H
#define IX_BASE_HASH_H

#include "base/types.h"

/* 128-bit key. */
struct ix_key {
    uint64_t k[2];
};

/* SipHash-2-4 (Aumasson, Bernstein 2012) over `bytes` bytes: a PRF, for ISNs (RFC 6528) and
 * port choice (RFC 6056). */
uint64_t ix_siphash(const struct ix_key *key, const void *data, size_t bytes);

/* A fast keyed hash of three words for the flow table: two folded 64x64-bit multiplications. A
 * peer that doesn't know the key can't choose addresses that collide. */
static inline uint64_t ix_hash_fold(uint64_t a, uint64_t b)
{
    unsigned __int128 product = (unsigned __int128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static inline uint64_t ix_hash_words(const struct ix_key *key, uint64_t a, uint64_t b, uint64_t c)
{
    uint64_t h = ix_hash_fold(a ^ key->k[0], b ^ key->k[1]);
    return ix_hash_fold(h ^ key->k[1], c ^ key->k[0] ^ 0x9e3779b97f4a7c15ull);
}

/* splitmix64 (Steele, Lea, Flood 2014): for jitter and random early choices, not for secrets. */
static inline uint64_t ix_random(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

#endif
