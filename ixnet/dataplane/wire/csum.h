/* The Internet checksum (RFC 1071). Sums are kept folded to 32 bits at most in host order of 16-bit
 * big-endian words as they lie in memory, so partial sums over even-sized parts can be added. */
#ifndef IX_WIRE_CSUM_H
#define IX_WIRE_CSUM_H

#include "base/types.h"

/* Adds `bytes` bytes at `data` to `sum`. Every part but the last must have even length. */
uint32_t ix_csum_add(const void *data, size_t bytes, uint32_t sum);

/* Copies `bytes` bytes and returns `sum` with them added: one pass over the payload. */
uint32_t ix_csum_copy(void *dst, const void *src, size_t bytes, uint32_t sum);

/* Adds two sums. */
static inline uint32_t ix_csum_combine(uint32_t a, uint32_t b)
{
    uint64_t sum = (uint64_t)a + b;
    return (uint32_t)sum + (uint32_t)(sum >> 32);
}

/* Appends `part`, a sum over bytes that begin at offset `offset` of the whole: byte-swapped if odd. */
static inline uint32_t ix_csum_append(uint32_t sum, uint32_t part, size_t offset)
{
    if (offset & 1) /* RFC 1071 section 2 (B): byte order independence */
        part = ((part & 0x00ff00ffu) << 8) | ((part >> 8) & 0x00ff00ffu);
    return ix_csum_combine(sum, part);
}

/* Folds and complements: the value to store, as it lies in memory. 0 over data that includes a correct checksum. */
static inline uint16_t ix_csum_finish(uint32_t sum)
{
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)~sum;
}

/* The IPv4 pseudo header (RFC 9293 3.1, RFC 768). Addresses as they lie in memory, length in bytes. */
static inline uint32_t ix_csum_pseudo4(uint32_t src, uint32_t dst, uint8_t proto, uint32_t l4_bytes)
{
    uint64_t sum = (uint64_t)src + dst + ((uint32_t)proto << 8) + ix_swap16((uint16_t)l4_bytes);
    return (uint32_t)sum + (uint32_t)(sum >> 32);
}

#endif
