/* TCP headers and options (RFC 9293 3.1 and 3.2, RFC 7323, RFC 2018). */
#ifndef IX_WIRE_TCP_H
#define IX_WIRE_TCP_H

#include "base/limits.h"
#include "base/types.h"
#include "wire/ipv4.h"
#include "wire/parse.h"
#include "wire/put.h"

enum {
    IX_TCP_BYTES = 20,
    IX_TCP_HEADER_MAX = 60,
    IX_TCP_CSUM_AT = 16,
    IX_TCP_TS_BYTES = 12, /* a timestamp with two no-operations before it (RFC 7323 appendix A) */
    IX_TCP_TS_WORD = 0x0101080a, /* ... and its first four bytes */
    IX_TCP_FIN = 0x01,
    IX_TCP_SYN = 0x02,
    IX_TCP_RST = 0x04,
    IX_TCP_PSH = 0x08,
    IX_TCP_ACK = 0x10,
    IX_TCP_URG = 0x20,
    IX_TCP_ECE = 0x40,
    IX_TCP_CWR = 0x80,
};

struct ix_tcp_sack {
    uint32_t start; /* first sequence number of the block */
    uint32_t end;   /* the one after its last */
};

/* A header that holds no nonsense: the options are parsed, their lengths checked. */
struct ix_tcp_hdr {
    uint16_t src_port, dst_port; /* host order */
    uint32_t seq, ack;           /* host order */
    uint16_t window;             /* as in the header, unscaled */
    uint16_t urgent;
    uint8_t flags;        /* IX_TCP_* */
    uint8_t header_bytes; /* 20..60; emit computes it */
    uint16_t mss;         /* 0: no MSS option */
    int8_t wscale;        /* -1: no window scale option; else 0..14 (more: 14, RFC 7323 2.3) */
    bool sack_ok;         /* SACK-permitted */
    bool has_ts;
    uint8_t sack_count; /* blocks in sack[] */
    uint32_t ts_val, ts_ecr;
    struct ix_tcp_sack sack[IX_SACK_BLOCKS_RX];
};

/* Parses header and options of a segment of `bytes` bytes. The checksum is verified against the
 * pseudo header before any option is looked at. Unknown options are skipped. An option that runs
 * over the end of the header, or whose length is below 2, makes the segment IX_PARSE_HEADER; one of
 * a known kind with a wrong length is ignored, and so is one that has no meaning in this segment:
 * MSS, window scale and SACK-permitted without SYN, SACK with it. Of repeated options the last
 * counts. SACK blocks are as the peer wrote them: whether they make sense is for TCP to judge. */
enum ix_parse ix_tcp_parse(const uint8_t *segment, size_t bytes, uint32_t src, uint32_t dst,
                           struct ix_tcp_hdr *out);

/* The size that ix_tcp_emit() will write for these options, a multiple of 4. */
uint32_t ix_tcp_header_bytes(const struct ix_tcp_hdr *tcp);

/* Writes the header. Option order is Linux's: SYN: mss, sackOK, timestamp, nop, wscale; else nop
 * nop timestamp, nop nop sack. Options without meaning in the segment are left out, as in
 * ix_tcp_parse(); of the SACK blocks as many as fit are sent, the first ones. payload_sum:
 * ix_csum_add() of the payload_bytes bytes that follow. Returns header bytes. */
uint32_t ix_tcp_emit(uint8_t *segment, const struct ix_tcp_hdr *tcp, uint32_t src, uint32_t dst,
                     uint32_t payload_bytes, uint32_t payload_sum);

/* The parts of ix_tcp_emit(): what comes before the options, the timestamp, and the checksum. */
static inline struct ix_put ix_tcp_put_fixed(uint8_t *segment, const struct ix_tcp_hdr *tcp,
                                             uint32_t header_bytes, uint32_t src, uint32_t dst,
                                             uint32_t payload_bytes, uint32_t payload_sum)
{
    uint16_t l4_bytes = (uint16_t)(header_bytes + payload_bytes);
    struct ix_put put = {.at = segment, .sum = (uint64_t)src + dst + payload_sum};
    put.sum += ((uint32_t)IX_PROTO_TCP << 8) + ix_swap16(l4_bytes) + ix_swap32(tcp->urgent);
    ix_put_be16x2(&put, tcp->src_port, tcp->dst_port);
    ix_put_be32(&put, tcp->seq);
    ix_put_be32(&put, tcp->ack);
    ix_put_be16x2(&put, (uint16_t)(header_bytes << 10 | tcp->flags), tcp->window);
    put.at += 4;
    return put;
}

static inline void ix_tcp_put_ts(struct ix_put *put, const struct ix_tcp_hdr *tcp)
{
    ix_put_be32(put, IX_TCP_TS_WORD);
    ix_put_be32(put, tcp->ts_val);
    ix_put_be32(put, tcp->ts_ecr);
}

static inline void ix_tcp_put_csum(const struct ix_put *put, uint8_t *segment,
                                   const struct ix_tcp_hdr *tcp)
{
    uint32_t word = ix_put_finish(put) | ix_swap32(tcp->urgent);
    __builtin_memcpy(segment + IX_TCP_CSUM_AT, &word, 4);
}

/* Is a timestamp the only option at most? Nearly all headers are such: then the two functions below
 * do the same as those above, inline. */
static inline bool ix_tcp_is_plain(const struct ix_tcp_hdr *tcp)
{
    return !(tcp->flags & IX_TCP_SYN) && tcp->sack_count == 0;
}
static inline uint32_t ix_tcp_plain_bytes(bool has_ts)
{
    return IX_TCP_BYTES + (has_ts ? IX_TCP_TS_BYTES : 0);
}
static inline __attribute__((always_inline)) void
ix_tcp_emit_plain(uint8_t *segment, const struct ix_tcp_hdr *tcp, uint32_t src, uint32_t dst,
                  uint32_t payload_bytes, uint32_t payload_sum)
{
    uint32_t header_bytes = ix_tcp_plain_bytes(tcp->has_ts);
    struct ix_put put =
        ix_tcp_put_fixed(segment, tcp, header_bytes, src, dst, payload_bytes, payload_sum);
    if (tcp->has_ts)
        ix_tcp_put_ts(&put, tcp);
    ix_tcp_put_csum(&put, segment, tcp);
}

/* Sequence number comparison modulo 2^32 (RFC 9293 3.4). */
static inline bool ix_seq_lt(uint32_t a, uint32_t b)
{
    return (int32_t)(a - b) < 0;
}
static inline bool ix_seq_leq(uint32_t a, uint32_t b)
{
    return (int32_t)(a - b) <= 0;
}
static inline bool ix_seq_gt(uint32_t a, uint32_t b)
{
    return (int32_t)(a - b) > 0;
}
static inline bool ix_seq_geq(uint32_t a, uint32_t b)
{
    return (int32_t)(a - b) >= 0;
}
static inline uint32_t ix_seq_max(uint32_t a, uint32_t b)
{
    return ix_seq_gt(a, b) ? a : b;
}

#endif
