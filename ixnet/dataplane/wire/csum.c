/* The Internet checksum, with or without a copy, in one pass of 64-byte steps.
 *
 * A sum of 16-bit words modulo 65535 may be taken over words of any larger size, since 2^16, 2^32
 * and 2^64 are all 1 modulo 65535 (RFC 1071 section 2 (C)). Only 16-byte vectors, which are part of
 * every x86-64: the same object runs in ring 0, where wider registers are not saved.
 */
#include "wire/csum.h"

enum { STEP_BYTES = 64 };

typedef uint64_t vec16 __attribute__((vector_size(16)));

/* Per 64-bit lane: all words added modulo 2^64, and the upper halves alone, which can't
 * overflow. Together they give the exact sum without looking at a carry. */
struct lanes {
    vec16 whole, upper;
};

static inline vec16 load16(const uint8_t *p)
{
    vec16 v;
    __builtin_memcpy(&v, p, 16);
    return v;
}

static inline void store16(uint8_t *p, vec16 v)
{
    __builtin_memcpy(p, &v, 16);
}

static inline void lanes_add(struct lanes *lanes, vec16 v)
{
    lanes->whole += v;
    lanes->upper += v >> 32;
}

/* whole - upper * 2^32 is the sum of the lower halves; 2^32 is 1 modulo 65535. */
static inline uint64_t lanes_sum(const struct lanes *lanes)
{
    vec16 sum = lanes->whole - (lanes->upper << 32) + lanes->upper;
    return sum[0] + sum[1];
}

static inline __attribute__((always_inline)) uint64_t take8(bool copy, uint8_t *restrict dst,
                                                            const uint8_t *restrict src, size_t at)
{
    uint64_t v;
    __builtin_memcpy(&v, src + at, 8);
    if (copy)
        __builtin_memcpy(dst + at, &v, 8);
    return v;
}

/* A region of 1 to 7 bytes, little endian, zero padded. */
static inline __attribute__((always_inline)) uint64_t take_few(bool copy, uint8_t *restrict dst,
                                                               const uint8_t *restrict src,
                                                               size_t bytes)
{
    uint64_t value = 0;
    size_t at = 0;
    if (bytes & 4) {
        uint32_t v;
        __builtin_memcpy(&v, src, 4);
        if (copy)
            __builtin_memcpy(dst, &v, 4);
        value = v;
        at = 4;
    }
    if (bytes & 2) {
        uint16_t v;
        __builtin_memcpy(&v, src + at, 2);
        if (copy)
            __builtin_memcpy(dst + at, &v, 2);
        value |= (uint64_t)v << (8 * at);
        at += 2;
    }
    if (bytes & 1) {
        if (copy)
            dst[at] = src[at];
        value |= (uint64_t)src[at] << (8 * at);
    }
    return value;
}

static inline uint32_t fold(unsigned __int128 sum)
{
    uint64_t folded;
    if (__builtin_add_overflow((uint64_t)sum, (uint64_t)(sum >> 64), &folded))
        folded++;
    return ix_csum_fold(folded);
}

/* `copy` is a constant in both callers, so that one of them has no stores. */
static inline __attribute__((always_inline)) uint32_t sum_pass(bool copy, uint8_t *restrict dst,
                                                               const uint8_t *restrict src,
                                                               size_t bytes, uint32_t sum)
{
    size_t at = 0;
    /* Two accumulators of each kind, so that additions do not wait for each other. */
    unsigned __int128 even = sum, odd = 0;
    if (bytes >= STEP_BYTES) {
        struct lanes a = {{0}, {0}}, b = {{0}, {0}};
        for (; bytes - at >= STEP_BYTES; at += STEP_BYTES) {
            vec16 v0 = load16(src + at), v1 = load16(src + at + 16);
            vec16 v2 = load16(src + at + 32), v3 = load16(src + at + 48);
            if (copy) {
                store16(dst + at, v0);
                store16(dst + at + 16, v1);
                store16(dst + at + 32, v2);
                store16(dst + at + 48, v3);
            }
            lanes_add(&a, v0);
            lanes_add(&b, v1);
            lanes_add(&a, v2);
            lanes_add(&b, v3);
        }
        odd = (unsigned __int128)lanes_sum(&a) + lanes_sum(&b);
    }
    for (; bytes - at >= 16; at += 16) {
        even += take8(copy, dst, src, at);
        odd += take8(copy, dst, src, at + 8);
    }
    if (bytes - at >= 8) {
        odd += take8(copy, dst, src, at);
        at += 8;
    }
    if (bytes == at)
        return fold(even + odd);
    if (bytes >= 8) /* the 8 bytes that end with the last one, less those that were counted */
        even += take8(copy, dst, src, bytes - 8) >> (8 * (8 - (bytes - at)));
    else
        even += take_few(copy, dst, src, bytes);
    return fold(even + odd);
}

uint32_t ix_csum_add(const void *data, size_t bytes, uint32_t sum)
{
    return sum_pass(false, NULL, data, bytes, sum);
}

uint32_t ix_csum_copy(void *dst, const void *src, size_t bytes, uint32_t sum)
{
    return sum_pass(true, dst, src, bytes, sum);
}
