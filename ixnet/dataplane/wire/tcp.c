#include "wire/tcp.h"

/* Field offsets (RFC 9293 3.1). */
enum {
    DST_PORT_AT = 2,
    SEQ_AT = 4,
    ACK_AT = 8,
    OFFSET_AT = 12,
    FLAGS_AT = 13,
    WINDOW_AT = 14,
    URGENT_AT = 18,
};

/* Option kinds and lengths (RFC 9293 3.2, RFC 7323 2.2 and 3.2, RFC 2018 2 and 3). */
enum {
    KIND_END = 0,
    KIND_NOP = 1,
    KIND_MSS = 2,
    KIND_WSCALE = 3,
    KIND_SACK_OK = 4,
    KIND_SACK = 5,
    KIND_TS = 8,

    MSS_BYTES = 4,
    WSCALE_BYTES = 3,
    SACK_OK_BYTES = 2,
    SACK_HEAD_BYTES = 2,
    SACK_BLOCK_BYTES = 8,
    TS_BYTES = 10,

    TS_PADDED_BYTES = IX_TCP_TS_BYTES,
    WSCALE_MAX = 14, /* RFC 7323 2.3 */
    OPTIONS_MAX = IX_TCP_HEADER_MAX - IX_TCP_BYTES,
};

/* A timestamp as nearly every segment of a connection carries it (RFC 7323 appendix A), and
 * its two no-operations apart. */
#define WORD_NOP_NOP_TS ((uint32_t)KIND_NOP << 24 | KIND_NOP << 16 | KIND_TS << 8 | TS_BYTES)
IX_STATIC_ASSERT(WORD_NOP_NOP_TS == IX_TCP_TS_WORD, "written as it is read");
/* The same in a SYN, where SACK-permitted takes the place of the no-operations. */
#define WORD_SACK_OK_TS                                                                            \
    ((uint32_t)KIND_SACK_OK << 24 | SACK_OK_BYTES << 16 | KIND_TS << 8 | TS_BYTES)

IX_STATIC_ASSERT(SACK_HEAD_BYTES + IX_SACK_BLOCKS_RX * SACK_BLOCK_BYTES <= OPTIONS_MAX &&
                     SACK_HEAD_BYTES + (IX_SACK_BLOCKS_RX + 1) * SACK_BLOCK_BYTES > OPTIONS_MAX,
                 "sack[] holds what fits into the options, so no parsed block is lost");
IX_STATIC_ASSERT(TS_PADDED_BYTES + 4 + IX_SACK_BLOCKS_TX * SACK_BLOCK_BYTES <= OPTIONS_MAX,
                 "the blocks sent fit beside a timestamp");

static void parse_sack(const uint8_t *option, size_t length, struct ix_tcp_hdr *hdr)
{
    size_t block_bytes = length - SACK_HEAD_BYTES;
    if (block_bytes == 0 || block_bytes % SACK_BLOCK_BYTES != 0)
        return;
    hdr->sack_count = (uint8_t)(block_bytes / SACK_BLOCK_BYTES);
    for (size_t i = 0; i < hdr->sack_count; i++) {
        const uint8_t *block = option + SACK_HEAD_BYTES + i * SACK_BLOCK_BYTES;
        hdr->sack[i].start = ix_load_be32(block);
        hdr->sack[i].end = ix_load_be32(block + 4);
    }
}

/* One option of `length` bytes, kind and length included, that lies inside the header. */
static void parse_option(const uint8_t *option, size_t length, struct ix_tcp_hdr *hdr)
{
    bool syn = hdr->flags & IX_TCP_SYN;
    switch (option[0]) {
    case KIND_MSS:
        if (syn && length == MSS_BYTES)
            hdr->mss = ix_load_be16(option + 2);
        break;
    case KIND_WSCALE:
        if (syn && length == WSCALE_BYTES)
            hdr->wscale = (int8_t)IX_MIN(option[2], WSCALE_MAX);
        break;
    case KIND_SACK_OK:
        if (syn && length == SACK_OK_BYTES)
            hdr->sack_ok = true;
        break;
    case KIND_SACK:
        if (!syn)
            parse_sack(option, length, hdr);
        break;
    case KIND_TS:
        if (length == TS_BYTES) {
            hdr->has_ts = true;
            hdr->ts_val = ix_load_be32(option + 2);
            hdr->ts_ecr = ix_load_be32(option + 6);
        }
        break;
    default: /* unknown: skipped (RFC 9293 3.2, MUST-6) */
        break;
    }
}

/* Returns false if an option does not end inside the header or has a length that leads nowhere
 * (RFC 9293 3.2, MUST-7). */
static bool parse_options(const uint8_t *options, size_t bytes, struct ix_tcp_hdr *hdr)
{
    size_t at = 0;
    while (at < bytes && options[at] != KIND_END) {
        if (options[at] == KIND_NOP) {
            at++;
            continue;
        }
        if (bytes - at < 2)
            return false;
        size_t length = options[at + 1];
        if (length < 2 || length > bytes - at)
            return false;
        parse_option(options + at, length, hdr);
        at += length;
    }
    return true;
}

/* Are these the options of a SYN as Linux and we write them: MSS, SACK-permitted, timestamp, window
 * scale? Then all four are set. */
static bool parse_usual_syn(const uint8_t *options, size_t bytes, struct ix_tcp_hdr *hdr)
{
    if (bytes != MSS_BYTES + TS_PADDED_BYTES + 1 + WSCALE_BYTES ||
        ix_load_be16(options) != (KIND_MSS << 8 | MSS_BYTES) ||
        ix_load_be32(options + 4) != WORD_SACK_OK_TS ||
        ix_load_be32(options + 16) >> 8 != (KIND_NOP << 16 | KIND_WSCALE << 8 | WSCALE_BYTES))
        return false;
    hdr->mss = ix_load_be16(options + 2);
    hdr->sack_ok = hdr->has_ts = true;
    hdr->ts_val = ix_load_be32(options + 8);
    hdr->ts_ecr = ix_load_be32(options + 12);
    hdr->wscale = (int8_t)IX_MIN(options[19], WSCALE_MAX);
    return true;
}

/* All but the options, which are set to absent. */
static inline void read_fields(const uint8_t *segment, size_t header_bytes, struct ix_tcp_hdr *hdr)
{
    *hdr = (struct ix_tcp_hdr){
        .src_port = ix_load_be16(segment),
        .dst_port = ix_load_be16(segment + DST_PORT_AT),
        .seq = ix_load_be32(segment + SEQ_AT),
        .ack = ix_load_be32(segment + ACK_AT),
        .window = ix_load_be16(segment + WINDOW_AT),
        .urgent = ix_load_be16(segment + URGENT_AT),
        .flags = segment[FLAGS_AT],
        .header_bytes = (uint8_t)header_bytes,
        .wscale = -1,
    };
}

/* Other options than a timestamp alone. `out` stays as it was if they are malformed. Not for every
 * segment: the copy reads narrow stores in wide loads, and waits for them. */
static IX_NOINLINE enum ix_parse parse_unusual(const uint8_t *segment, size_t header_bytes,
                                               struct ix_tcp_hdr *out)
{
    const uint8_t *options = segment + IX_TCP_BYTES;
    size_t option_bytes = header_bytes - IX_TCP_BYTES;
    struct ix_tcp_hdr hdr;
    read_fields(segment, header_bytes, &hdr);
    if (!(hdr.flags & IX_TCP_SYN && parse_usual_syn(options, option_bytes, &hdr)) &&
        !parse_options(options, option_bytes, &hdr))
        return IX_PARSE_HEADER;
    *out = hdr;
    return IX_PARSE_OK;
}

enum ix_parse ix_tcp_parse(const uint8_t *segment, size_t bytes, uint32_t src, uint32_t dst,
                           struct ix_tcp_hdr *out)
{
    if (bytes < IX_TCP_BYTES)
        return IX_PARSE_SHORT;
    size_t header_bytes = (segment[OFFSET_AT] >> 4) * 4u;
    if (header_bytes < IX_TCP_BYTES)
        return IX_PARSE_HEADER;
    if (header_bytes > bytes)
        return IX_PARSE_SHORT;
    uint64_t pseudo = ix_csum_pseudo4_unfolded(src, dst, IX_PROTO_TCP, (uint32_t)bytes);
    if (IX_UNLIKELY(ix_csum_finish(ix_csum_add(segment, bytes, pseudo)) != 0))
        return IX_PARSE_CSUM;

    const uint8_t *options = segment + IX_TCP_BYTES;
    if (IX_UNLIKELY(header_bytes != IX_TCP_BYTES + TS_PADDED_BYTES ||
                    ix_load_be32(options) != WORD_NOP_NOP_TS))
        return parse_unusual(segment, header_bytes, out);
    read_fields(segment, IX_TCP_BYTES + TS_PADDED_BYTES, out);
    out->has_ts = true;
    out->ts_val = ix_load_be32(options + 4);
    out->ts_ecr = ix_load_be32(options + 8);
    return IX_PARSE_OK;
}

/* How many SACK blocks of a segment without SYN find room. */
static uint32_t sack_blocks_sent(const struct ix_tcp_hdr *tcp)
{
    uint32_t room = tcp->has_ts ? IX_SACK_BLOCKS_TX : IX_SACK_BLOCKS_RX;
    return IX_MIN(tcp->sack_count, room);
}

static uint32_t syn_option_bytes(const struct ix_tcp_hdr *tcp)
{
    uint32_t bytes = tcp->mss ? MSS_BYTES : 0;
    if (tcp->has_ts)
        bytes += TS_PADDED_BYTES; /* SACK-permitted takes the place of the two no-operations */
    else if (tcp->sack_ok)
        bytes += 2 + SACK_OK_BYTES;
    if (tcp->wscale >= 0)
        bytes += 1 + WSCALE_BYTES;
    return bytes;
}

uint32_t ix_tcp_header_bytes(const struct ix_tcp_hdr *tcp)
{
    if (tcp->flags & IX_TCP_SYN)
        return IX_TCP_BYTES + syn_option_bytes(tcp);
    uint32_t bytes = IX_TCP_BYTES + (tcp->has_ts ? TS_PADDED_BYTES : 0);
    uint32_t blocks = sack_blocks_sent(tcp);
    return blocks ? bytes + 2 + SACK_HEAD_BYTES + blocks * SACK_BLOCK_BYTES : bytes;
}

static void put_syn_options(struct ix_put *put, const struct ix_tcp_hdr *tcp)
{
    if (tcp->mss)
        ix_put_be16x2(put, KIND_MSS << 8 | MSS_BYTES, tcp->mss);
    uint16_t before = tcp->sack_ok ? KIND_SACK_OK << 8 | SACK_OK_BYTES : KIND_NOP << 8 | KIND_NOP;
    if (tcp->has_ts) {
        ix_put_be16x2(put, before, KIND_TS << 8 | TS_BYTES);
        ix_put_be32(put, tcp->ts_val);
        ix_put_be32(put, tcp->ts_ecr);
    } else if (tcp->sack_ok) {
        ix_put_be16x2(put, KIND_NOP << 8 | KIND_NOP, before);
    }
    if (tcp->wscale >= 0) {
        IX_ASSERT(tcp->wscale <= WSCALE_MAX);
        ix_put_be16x2(put, KIND_NOP << 8 | KIND_WSCALE,
                      (uint16_t)(WSCALE_BYTES << 8 | tcp->wscale));
    }
}

static void put_options(struct ix_put *put, const struct ix_tcp_hdr *tcp)
{
    if (tcp->has_ts)
        ix_tcp_put_ts(put, tcp);
    uint32_t blocks = sack_blocks_sent(tcp);
    ix_put_be16x2(put, KIND_NOP << 8 | KIND_NOP,
                  (uint16_t)(KIND_SACK << 8 | (SACK_HEAD_BYTES + blocks * SACK_BLOCK_BYTES)));
    for (uint32_t i = 0; i < blocks; i++) {
        ix_put_be32(put, tcp->sack[i].start);
        ix_put_be32(put, tcp->sack[i].end);
    }
}

uint32_t ix_tcp_emit(uint8_t *segment, const struct ix_tcp_hdr *tcp, uint32_t src, uint32_t dst,
                     uint32_t payload_bytes, uint32_t payload_sum)
{
    uint32_t header_bytes = ix_tcp_header_bytes(tcp);
    if (ix_tcp_is_plain(tcp)) {
        ix_tcp_emit_plain(segment, tcp, src, dst, payload_bytes, payload_sum);
        return header_bytes;
    }
    struct ix_put put =
        ix_tcp_put_fixed(segment, tcp, header_bytes, src, dst, payload_bytes, payload_sum);
    if (tcp->flags & IX_TCP_SYN)
        put_syn_options(&put, tcp);
    else
        put_options(&put, tcp);
    IX_ASSERT(put.at == segment + header_bytes);
    ix_tcp_put_csum(&put, segment, tcp);
    return header_bytes;
}
