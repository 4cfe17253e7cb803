/* Records what passes a shard's link into a pcap file, for `ixnet run --pcap`.
 *
 * The control process creates the recorder in shared memory and attaches it to a link before the
 * shard is made on ix_recorder_link(); the worker brackets each cycle with begin() and end(), and
 * end() writes what the cycle recorded (app.c does so where struct ix_app has a recorder). The
 * control process reads the counters at any time, and after the worker's death trims what was
 * written by half.
 *
 * Writing to a file can wait for the disk, and traffic then waits with it: recording is for looking
 * for something, not for ever. A write that fails ends the recording, never the traffic.
 */
#ifndef IX_NATIVE_RECORDER_H
#define IX_NATIVE_RECORDER_H

#ifndef IX_CDEF
#include "link/pcap_link.h"

#include <stddef.h>
#include <stdint.h>
#endif

struct ix_link;

struct ix_recorder {
    struct ix_pcap_link pcap;  /* records into `buffer` */
    int fd;                    /* the caller's; a regular file */
    int error;                 /* -errno of the write that ended the recording; 0: none did */
    uint32_t snap_bytes;       /* bytes kept of each frame */
    int64_t wall_offset_ns;    /* CLOCK_REALTIME less CLOCK_MONOTONIC, at creation */
    uint64_t file_bytes;       /* file header and whole records: where the next write goes */
    uint64_t frames_recorded;  /* in the file */
    uint64_t frames_lost;      /* that passed and are not in it */
    uint8_t buffer[];
};

/* Bytes of memory that ix_recorder_init() wants. They hold what one cycle can receive and send;
 * only those that are used are ever touched. */
size_t ix_recorder_bytes(void);
/* Makes a recorder in zeroed `memory` that will write to `fd` (borrowed, not written to yet).
 * snap_bytes as for ix_pcap_link_init(). Returns it, or NULL for a bad argument. */
struct ix_recorder *ix_recorder_init(void *memory, size_t bytes, int fd, uint32_t snap_bytes);
/* Records around `inner` from now on. The first time empties the file; later ones, after the worker
 * died, go on behind its last whole record. Returns 0 or -errno. */
int ix_recorder_attach(struct ix_recorder *recorder, struct ix_link *inner);
/* The link for the shard; valid until the next attach. */
struct ix_link *ix_recorder_link(struct ix_recorder *recorder);

/* Before a cycle: what passes now is stamped with now_ns (CLOCK_MONOTONIC) as wall-clock time. */
void ix_recorder_begin(struct ix_recorder *recorder, uint64_t now_ns);
/* After it: writes whole records to the file. */
void ix_recorder_end(struct ix_recorder *recorder);
/* Cuts off a record that was written by half. For when no worker is running. */
void ix_recorder_trim(struct ix_recorder *recorder);

#endif
