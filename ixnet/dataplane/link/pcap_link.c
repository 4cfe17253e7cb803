/* The format: "PCAP Capture File Format" (IETF draft-ietf-opsawg-pcap), section 4 file header,
 * section 5 packet record. Fields are in the writer's byte order, which the magic number tells. */
#include "link/pcap_link.h"

#define PCAP_MAGIC_NS 0xa1b23c4du
#define NS_PER_S      1000000000ull

enum { PCAP_VERSION_MAJOR = 2, PCAP_VERSION_MINOR = 4, LINKTYPE_ETHERNET = 1 };

struct pcap_file_header {
    uint32_t magic;
    uint16_t version_major, version_minor;
    uint32_t reserved[2];
    uint32_t snap_bytes;
    uint32_t link_type;
};
IX_STATIC_ASSERT(sizeof(struct pcap_file_header) == IX_PCAP_FILE_HEADER_BYTES, "as on disk");

struct pcap_record_header {
    uint32_t seconds, nanoseconds;
    uint32_t captured_bytes;
    uint32_t original_bytes;
};
IX_STATIC_ASSERT(sizeof(struct pcap_record_header) == IX_PCAP_RECORD_HEADER_BYTES, "as on disk");

static void append(struct ix_pcap_link *p, const void *data, size_t bytes)
{
    __builtin_memcpy(p->buffer + p->used_bytes, data, bytes);
    p->used_bytes += bytes;
}

static void record(struct ix_pcap_link *p, const struct ix_desc *desc)
{
    uint32_t kept = IX_MIN(desc->len, p->snap_bytes);
    struct pcap_record_header header = {
        .seconds = (uint32_t)(p->now_ns / NS_PER_S),
        .nanoseconds = (uint32_t)(p->now_ns % NS_PER_S),
        .captured_bytes = kept,
        .original_bytes = desc->len,
    };
    bool inside = desc->addr < p->link.umem_bytes && kept <= p->link.umem_bytes - desc->addr;
    if (!inside || p->buffer_bytes - p->used_bytes < sizeof header + kept) {
        p->left_out++;
        return;
    }
    append(p, &header, sizeof header);
    append(p, ix_link_ptr(&p->link, desc->addr), kept);
    p->records++;
}

static struct ix_pcap_link *pcap_of(struct ix_link *link)
{
    return IX_CONTAINER_OF(link, struct ix_pcap_link, link);
}

static uint32_t pcap_rx_burst(struct ix_link *link, struct ix_desc *out, uint32_t max)
{
    struct ix_pcap_link *p = pcap_of(link);
    uint32_t n = p->inner->ops->rx_burst(p->inner, out, max);
    for (uint32_t i = 0; i < n; i++)
        record(p, &out[i]);
    return n;
}

static uint32_t pcap_tx_burst(struct ix_link *link, const struct ix_desc *descs, uint32_t n)
{
    struct ix_pcap_link *p = pcap_of(link);
    /* Only what was accepted: the rest is offered again. Nobody writes to a frame that is being
     * sent, so reading it afterwards is safe. */
    uint32_t accepted = p->inner->ops->tx_burst(p->inner, descs, n);
    for (uint32_t i = 0; i < accepted; i++)
        record(p, &descs[i]);
    return accepted;
}

static uint32_t pcap_complete(struct ix_link *link, uint64_t *addrs, uint32_t max)
{
    struct ix_link *inner = pcap_of(link)->inner;
    return inner->ops->complete(inner, addrs, max);
}

static uint32_t pcap_fill(struct ix_link *link, const uint64_t *addrs, uint32_t n)
{
    struct ix_link *inner = pcap_of(link)->inner;
    return inner->ops->fill(inner, addrs, n);
}

static uint32_t pcap_fill_room(struct ix_link *link)
{
    struct ix_link *inner = pcap_of(link)->inner;
    return inner->ops->fill_room(inner);
}

static int pcap_wakeup(struct ix_link *link, uint32_t what)
{
    struct ix_link *inner = pcap_of(link)->inner;
    return inner->ops->wakeup(inner, what);
}

static const struct ix_link_ops pcap_ops = {
    .rx_burst = pcap_rx_burst,
    .tx_burst = pcap_tx_burst,
    .complete = pcap_complete,
    .fill = pcap_fill,
    .fill_room = pcap_fill_room,
    .wakeup = pcap_wakeup,
};

int ix_pcap_link_init(struct ix_pcap_link *p, struct ix_link *inner, uint8_t *buffer,
                      size_t buffer_bytes, uint32_t snap_bytes)
{
    if (!inner || !buffer || buffer_bytes < IX_PCAP_FILE_HEADER_BYTES ||
        snap_bytes > IX_PCAP_SNAP_BYTES_MAX)
        return -IX_EINVAL;
    *p = (struct ix_pcap_link){
        .link = *inner,
        .inner = inner,
        .buffer = buffer,
        .buffer_bytes = buffer_bytes,
        .snap_bytes = snap_bytes ? snap_bytes : IX_PCAP_SNAP_BYTES_MAX,
    };
    p->link.ops = &pcap_ops;
    struct pcap_file_header header = {
        .magic = PCAP_MAGIC_NS,
        .version_major = PCAP_VERSION_MAJOR,
        .version_minor = PCAP_VERSION_MINOR,
        .snap_bytes = p->snap_bytes,
        .link_type = LINKTYPE_ETHERNET,
    };
    append(p, &header, sizeof header);
    return 0;
}

void ix_pcap_link_set_now(struct ix_pcap_link *p, uint64_t now_ns)
{
    p->now_ns = now_ns;
}

const uint8_t *ix_pcap_link_take(struct ix_pcap_link *p, size_t *bytes)
{
    *bytes = p->used_bytes;
    p->used_bytes = 0;
    return p->buffer;
}

const char *ix_pcap_link_check(const struct ix_pcap_link *p)
{
    if (p->used_bytes > p->buffer_bytes)
        return "pcap: wrote beyond the buffer";
    if (p->link.ops != &pcap_ops || p->link.umem != p->inner->umem)
        return "pcap: not the recorder that was set up";
    return NULL;
}
