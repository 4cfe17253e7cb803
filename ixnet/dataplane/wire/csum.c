/* The Internet checksum, with or without a copy, in one pass: short data by words of 8 bytes, long
 * data in vectors.
 *
 * A sum of 16-bit words modulo 65535 may be taken over words of any larger size, since 2^16, 2^32
 * and 2^64 are all 1 modulo 65535 (RFC 1071 section 2 (C)). Only 16-byte vectors, which are part of
 * every x86-64: the same object runs in ring 0, where wider registers are not saved.
 */
#include "wire/csum.h"

enum {
    CHAIN_BYTES = 32,
    STEP_BYTES = 64,
    LONG_BYTES = 256, /* from here on vectors are worth their setting up */
};

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

/* A sum to which words are added one after the other, the carry of each with the next. By value: so
 * gcc keeps it in registers and the carry where the processor has it. */
struct chain {
    unsigned long long sum;
    unsigned char carry;
};

static inline __attribute__((always_inline)) struct chain link8(struct chain before, uint64_t word)
{
    unsigned long long sum;
    unsigned char carry = __builtin_ia32_addcarryx_u64(before.carry, before.sum, word, &sum);
    return (struct chain){sum, carry};
}

/* Words of 8 bytes, then what is left. `copy` is a constant everywhere, so that what only sums has
 * no stores. */
static inline __attribute__((always_inline)) uint32_t sum_short(bool copy, uint8_t *restrict dst,
                                                                const uint8_t *restrict src,
                                                                size_t bytes, uint64_t sum)
{
    const uint8_t *to = src + bytes / CHAIN_BYTES * CHAIN_BYTES;
    for (; src != to; src += CHAIN_BYTES, dst = copy ? dst + CHAIN_BYTES : NULL) {
        struct chain c = link8((struct chain){sum, 0}, take8(copy, dst, src, 0));
        c = link8(c, take8(copy, dst, src, 8));
        c = link8(c, take8(copy, dst, src, 16));
        c = link8(c, take8(copy, dst, src, 24));
        sum = c.sum + c.carry; /* which can't carry once more: a sum that carried is not all ones */
    }
    for (to += bytes % CHAIN_BYTES / 8 * 8; src != to; src += 8, dst = copy ? dst + 8 : NULL)
        sum = ix_csum_add8(sum, take8(copy, dst, src, 0));
    size_t left = bytes % 8, again = 8 - left;
    if (left == 0)
        return ix_csum_fold(sum);
    uint64_t rest;
    if (bytes >= 8) /* the 8 bytes that end with the last one, less those that were counted */
        rest = take8(copy, copy ? dst - again : NULL, src - again, 0) >> 8 * again;
    else
        rest = take_few(copy, dst, src, left);
    return ix_csum_fold(ix_csum_add8(sum, rest));
}

/* In steps, as far as they go. */
static inline __attribute__((always_inline)) uint32_t sum_long(bool copy, uint8_t *restrict dst,
                                                               const uint8_t *restrict src,
                                                               size_t bytes, uint64_t sum)
{
    /* Two accumulators of each kind, so that additions do not wait for each other. */
    struct lanes a = {{0}, {0}}, b = {{0}, {0}};
    size_t at = 0;
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
    sum = ix_csum_add8(sum, lanes_sum(&a) + lanes_sum(&b));
    return sum_short(copy, copy ? dst + at : NULL, src + at, bytes - at, sum);
}

/* Apart, as each keeps others in registers. */
static IX_NOINLINE uint32_t add_long(const uint8_t *src, size_t bytes, uint64_t sum)
{
    return sum_long(false, NULL, src, bytes, sum);
}

static IX_NOINLINE uint32_t copy_long(uint8_t *restrict dst, const uint8_t *restrict src,
                                      size_t bytes, uint64_t sum)
{
    return sum_long(true, dst, src, bytes, sum);
}

uint32_t ix_csum_add(const void *data, size_t bytes, uint64_t sum)
{
    return IX_LIKELY(bytes < LONG_BYTES) ? sum_short(false, NULL, data, bytes, sum)
                                         : add_long(data, bytes, sum);
}

uint32_t ix_csum_copy(void *dst, const void *src, size_t bytes, uint32_t sum)
{
    return IX_LIKELY(bytes < LONG_BYTES) ? sum_short(true, dst, src, bytes, sum)
                                         : copy_long(dst, src, bytes, sum);
}
