/* The Internet checksum (RFC 1071).
 *
 * A partial sum holds 16-bit words as they lie in memory (host order, not swapped), added modulo
 * 65535 and folded to 32 bits at most. Sums over parts of even size can be added in any order.
 */
#ifndef IX_WIRE_CSUM_H
#define IX_WIRE_CSUM_H

#include "base/types.h"

/* Adds `bytes` bytes at `data` to `sum`, which need not be folded. Every part but the last must
 * have even length. */
uint32_t ix_csum_add(const void *data, size_t bytes, uint64_t sum);

/* Copies `bytes` bytes and returns `sum` with them added: one pass over the payload. The regions
 * must not overlap. */
uint32_t ix_csum_copy(void *dst, const void *src, size_t bytes, uint32_t sum);

/* Folds to 32 bits. Both halves become the sum of both; the upper one gets the carry of the lower
 * one, which is the same as its own. */
static inline uint32_t ix_csum_fold(uint64_t sum)
{
    return (uint32_t)((sum + (sum >> 32 | sum << 32)) >> 32);
}

/* Adds 8 bytes, and the carry to what that gives. */
static inline uint64_t ix_csum_add8(uint64_t sum, uint64_t word)
{
    sum += word;
    return sum + (sum < word);
}

/* The sum of 20 bytes: an IPv4 header without options. */
static inline uint32_t ix_csum_20(const void *data)
{
    uint64_t q[2];
    uint32_t last;
    __builtin_memcpy(q, data, sizeof q);
    __builtin_memcpy(&last, (const uint8_t *)data + sizeof q, sizeof last);
    return ix_csum_fold(ix_csum_add8(ix_csum_add8(q[0], q[1]), last));
}

/* Adds two sums. */
static inline uint32_t ix_csum_combine(uint32_t a, uint32_t b)
{
    return ix_csum_fold((uint64_t)a + b);
}

/* Appends `part`, a sum over bytes that begin at offset `offset` of the whole: byte-swapped if
 * odd (RFC 1071 section 2 (B), byte order independence). */
static inline uint32_t ix_csum_append(uint32_t sum, uint32_t part, size_t offset)
{
    if (offset & 1)
        part = ((part & 0x00ff00ffu) << 8) | ((part >> 8) & 0x00ff00ffu);
    return ix_csum_combine(sum, part);
}

/* Folds and complements: the value to store, as it lies in memory. 0 over data that includes a
 * correct checksum. */
static inline uint16_t ix_csum_finish(uint32_t sum)
{
    return (uint16_t)~((sum + (sum >> 16 | sum << 16)) >> 16); /* as ix_csum_fold() */
}

/* An IP address's part of the pseudo header; of an IPv4 address followed by zeros the address
 * itself. */
static inline uint32_t ix_csum_address(const uint8_t ip[16])
{
    uint64_t q[2];
    __builtin_memcpy(q, ip, sizeof q);
    return ix_csum_fold(ix_csum_add8(q[0], q[1]));
}

/* The pseudo header (RFC 9293 3.1, RFC 768). src, dst: IPv4 addresses as they lie in memory, or
 * ix_csum_address() of IPv6 ones, whose pseudo header (RFC 8200 8.1) adds up to the same. */
static inline uint64_t ix_csum_pseudo4_unfolded(uint32_t src, uint32_t dst, uint8_t proto,
                                                uint32_t l4_bytes)
{
    return (uint64_t)src + dst + ((uint32_t)proto << 8) + ix_swap16((uint16_t)l4_bytes);
}
static inline uint32_t ix_csum_pseudo4(uint32_t src, uint32_t dst, uint8_t proto, uint32_t l4_bytes)
{
    return ix_csum_fold(ix_csum_pseudo4_unfolded(src, dst, proto, l4_bytes));
}

/* Whether a checksum field, as it lies in memory, holds the bare pseudo header sum: what Linux
 * leaves there for a NIC to complete (CHECKSUM_PARTIAL), and what a veth peer with tx offload on
 * sends. */
static inline bool ix_csum_is_partial(uint16_t stored, uint32_t pseudo)
{
    return (stored ^ ix_csum_finish(pseudo)) == 0xffff;
}

#endif
