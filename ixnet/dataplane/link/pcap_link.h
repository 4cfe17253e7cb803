/* A link that records what passes through another one.
 *
 * Every operation goes to the inner link; each frame received or accepted for sending is also
 * appended, in the pcap format with nanosecond timestamps, to a buffer that the caller supplies.
 * The caller writes the buffer out from time to time; nothing here does I/O or reads a clock.
 *
 *     ix_pcap_link_init(&recorder, inner, buffer, sizeof buffer, snap_bytes);
 *     shard uses &recorder.link; before each poll: ix_pcap_link_set_now(&recorder, now_ns);
 *     after it: data = ix_pcap_link_take(&recorder, &bytes); write(file, data, bytes);
 *
 * What take() returned, one after the other, is one pcap file. Records that don't fit until the
 * next take() are left out and counted.
 */
#ifndef IX_LINK_PCAP_LINK_H
#define IX_LINK_PCAP_LINK_H

#include "base/types.h"
#include "link/link.h"

enum {
    IX_PCAP_FILE_HEADER_BYTES = 24,
    IX_PCAP_RECORD_HEADER_BYTES = 16,
    IX_PCAP_SNAP_BYTES_MAX = 1 << 16,
};

struct ix_pcap_link {
    struct ix_link link;   /* first: a struct ix_link * is a struct ix_pcap_link * */
    struct ix_link *inner; /* does the work; must outlive this one */
    uint8_t *buffer;       /* the caller's */
    size_t buffer_bytes;
    size_t used_bytes;   /* not yet taken */
    uint64_t now_ns;     /* stamped on records; since 1970 if readers are to show a date */
    uint32_t snap_bytes; /* bytes kept of each frame, from its start */
    uint64_t records;    /* written, ever */
    uint64_t left_out;   /* that did not fit, or whose descriptor led out of the UMEM, ever */
};

/* Records around `inner`, starting with the file header in `buffer` (borrowed, at least
 * IX_PCAP_FILE_HEADER_BYTES). snap_bytes: 1 to IX_PCAP_SNAP_BYTES_MAX; 0 for the most.
 * Returns 0 or -IX_EINVAL. */
IX_MUST_CHECK int ix_pcap_link_init(struct ix_pcap_link *p, struct ix_link *inner, uint8_t *buffer,
                                    size_t buffer_bytes, uint32_t snap_bytes);
/* The time of what happens from now on, ns. */
void ix_pcap_link_set_now(struct ix_pcap_link *p, uint64_t now_ns);
/* Takes what was written since the last time. *bytes: how much. The buffer is empty again at once:
 * the returned bytes are valid until the link is next used. */
const uint8_t *ix_pcap_link_take(struct ix_pcap_link *p, size_t *bytes);

/* Returns NULL or what is wrong. */
const char *ix_pcap_link_check(const struct ix_pcap_link *p);

#endif
