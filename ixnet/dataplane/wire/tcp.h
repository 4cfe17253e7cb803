/* TCP headers and options (RFC 9293 3.1 and 3.2, RFC 7323, RFC 2018). */
#ifndef IX_WIRE_TCP_H
#define IX_WIRE_TCP_H

#include "base/limits.h"
#include "base/types.h"
#include "wire/parse.h"

enum {
    IX_TCP_BYTES = 20,
    IX_TCP_HEADER_MAX = 60,
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
