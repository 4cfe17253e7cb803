/* Writing a header as 32-bit words and summing them on the way. Reading narrow stores back in wide
 * loads for the checksum would stall on store forwarding, once per packet sent. */
#ifndef IX_WIRE_PUT_H
#define IX_WIRE_PUT_H

#include "wire/csum.h"

struct ix_put {
    uint8_t *at;  /* where the next word goes */
    uint64_t sum; /* of the words so far, as they lie in memory; ix_csum_fold() it */
};

static inline void ix_put_raw32(struct ix_put *put, uint32_t as_in_memory)
{
    __builtin_memcpy(put->at, &as_in_memory, 4);
    put->at += 4;
    put->sum += as_in_memory;
}

static inline void ix_put_be32(struct ix_put *put, uint32_t v)
{
    ix_put_raw32(put, ix_swap32(v));
}

/* The two halves in the order in which they stand in the packet. */
static inline void ix_put_be16x2(struct ix_put *put, uint16_t first, uint16_t second)
{
    ix_put_be32(put, (uint32_t)first << 16 | second);
}

/* The value for the header's checksum field, as it lies in memory. A sum and itself with its halves
 * exchanged add up, in each half, to both halves with the other one's carry. */
static inline uint16_t ix_put_finish(const struct ix_put *put)
{
    uint64_t sum = put->sum + (put->sum << 32 | put->sum >> 32);
    uint32_t high = (uint32_t)(sum >> 32);
    high += high << 16 | high >> 16;
    return (uint16_t)~(high >> 16);
}

#endif
