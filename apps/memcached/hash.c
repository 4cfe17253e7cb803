/* The hash of keys: 64x64 to 128 bit multiplications, folded, over 16 bytes at a time; keyed, so
 * that clients can't choose keys that share a bucket. */
#include "apps/memcached/store.h"

#include <string.h>

static inline uint64_t fold(uint64_t a, uint64_t b)
{
    unsigned __int128 product = (unsigned __int128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static inline uint64_t load8(const uint8_t *p)
{
    uint64_t v;
    memcpy(&v, p, 8);
    return v;
}

/* 1 to 7 bytes, without reading beyond them. */
static inline uint64_t load_short(const uint8_t *p, uint32_t n)
{
    if (n >= 4) {
        uint32_t a, b;
        memcpy(&a, p, 4);
        memcpy(&b, p + n - 4, 4);
        return (uint64_t)a << 32 | b;
    }
    return (uint64_t)p[0] << 16 | (uint64_t)p[n / 2] << 8 | p[n - 1];
}

uint32_t ix_mc_hash(const struct ix_mc *mc, const uint8_t *key, uint32_t nkey)
{
    /* Odd numbers with about as many ones as zeros. */
    const uint64_t k0 = 0x9e3779b97f4a7c15, k1 = 0xd6e8feb86659fd93;
    uint64_t h = mc->config.hash_key ^ nkey * k1;
    for (; nkey > 16; key += 16, nkey -= 16)
        h = fold(load8(key) ^ k0, load8(key + 8) ^ h);
    uint64_t a = 0, b = 0;
    if (nkey >= 8) {
        a = load8(key);
        b = load8(key + nkey - 8);
    } else if (nkey) {
        a = load_short(key, nkey);
    }
    h = fold(a ^ k0, b ^ h);
    h = fold(h ^ k1, mc->config.hash_key ^ k0);
    return (uint32_t)(h ^ h >> 32);
}
