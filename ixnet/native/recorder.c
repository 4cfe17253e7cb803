/* See recorder.h. */
#include "native/recorder.h"
#include "native/process.h"

#include <errno.h>
#include <time.h>
#include <unistd.h>

/* A cycle receives at most 256 frames and sends at most a TX ring, 2,048: at an MTU of 1,500 that
 * is 3.5 MB. What does not fit is counted as lost. */
#define BUFFER_BYTES ((size_t)4 << 20)

size_t ix_recorder_bytes(void)
{
    return sizeof(struct ix_recorder) + BUFFER_BYTES;
}

static int64_t wall_offset_ns(void)
{
    struct timespec wall;
    uint64_t now_ns = ix_process_now_ns();
    clock_gettime(CLOCK_REALTIME, &wall);
    return (int64_t)wall.tv_sec * 1000000000 + wall.tv_nsec - (int64_t)now_ns;
}

struct ix_recorder *ix_recorder_init(void *memory, size_t bytes, int fd, uint32_t snap_bytes)
{
    struct ix_recorder *r = memory;
    if (bytes < ix_recorder_bytes() || fd < 0 || snap_bytes > IX_PCAP_SNAP_BYTES_MAX)
        return NULL;
    r->fd = fd;
    r->snap_bytes = snap_bytes;
    r->wall_offset_ns = wall_offset_ns();
    return r;
}

/* Frames in the buffer that will never be written. */
static void forget_buffered(struct ix_recorder *r)
{
    r->pcap.left_out += r->pcap.records - r->frames_recorded;
    r->pcap.records = r->frames_recorded;
    r->frames_lost = r->pcap.left_out;
}

/* A buffer without room: each frame that passes is counted as left out, and nothing is copied. */
static void stop(struct ix_recorder *r, int error)
{
    r->error = error;
    r->pcap.buffer_bytes = r->pcap.used_bytes = 0;
    forget_buffered(r);
    ix_recorder_trim(r);
}

int ix_recorder_attach(struct ix_recorder *r, struct ix_link *inner)
{
    size_t header_bytes;
    forget_buffered(r);
    uint64_t records = r->pcap.records, left_out = r->pcap.left_out;
    int err = ix_pcap_link_init(&r->pcap, inner, r->buffer, BUFFER_BYTES, r->snap_bytes);
    if (err)
        return -EINVAL;
    r->pcap.records = records;
    r->pcap.left_out = left_out;
    ix_recorder_begin(r, ix_process_now_ns());
    if (r->error) {
        stop(r, r->error);
        return 0;
    }
    if (ftruncate(r->fd, (off_t)r->file_bytes))
        return -errno;
    if (r->file_bytes)
        (void)ix_pcap_link_take(&r->pcap, &header_bytes);
    return 0;
}

struct ix_link *ix_recorder_link(struct ix_recorder *r)
{
    return &r->pcap.link;
}

void ix_recorder_begin(struct ix_recorder *r, uint64_t now_ns)
{
    ix_pcap_link_set_now(&r->pcap, now_ns + (uint64_t)r->wall_offset_ns);
}

/* Returns 0 or -errno. */
static int write_at(int fd, const uint8_t *data, size_t bytes, uint64_t at)
{
    while (bytes) {
        ssize_t n = pwrite(fd, data, bytes, (off_t)at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n ? -errno : -EIO;
        data += n;
        bytes -= (size_t)n;
        at += (uint64_t)n;
    }
    return 0;
}

void ix_recorder_end(struct ix_recorder *r)
{
    size_t bytes;
    const uint8_t *data = ix_pcap_link_take(&r->pcap, &bytes);
    if (bytes) {
        int err = write_at(r->fd, data, bytes, r->file_bytes);
        if (err) {
            stop(r, err);
            return;
        }
        r->file_bytes += bytes;
        r->frames_recorded = r->pcap.records;
    }
    r->frames_lost = r->pcap.left_out;
}

void ix_recorder_trim(struct ix_recorder *r)
{
    /* The file is readable up to there in any case. */
    (void)!ftruncate(r->fd, (off_t)r->file_bytes);
}
