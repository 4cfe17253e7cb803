/* Whose timestamps a run uses, of those that there are: the best that the first pings had, or the
 * ones that were asked for. */
#ifndef IX_BENCH_PING_STAMPS_H
#define IX_BENCH_PING_STAMPS_H

#include <stdbool.h>
#include <stdint.h>

/* From best to worst; AUTO takes the first that there is. */
enum stamp_source {
    STAMP_AUTO,
    STAMP_HARDWARE,   /* the NIC's clock */
    STAMP_COMPLETION, /* AF_XDP in copy mode: when the kernel let go of the sent frame */
    STAMP_SOFTWARE    /* the driver or the XDP program ran, or the system call began */
};

/* What one direction's first pings showed. */
struct stamps_seen {
    enum stamp_source wanted;
    bool hardware;   /* the NIC gave stamps, */
    bool comparable; /* ... which can be compared with the system's clock */
    bool completion;
    int error;       /* why the NIC gave none, -errno; 1: it was not asked */
    int clock_error; /* why its clock can't be read, -errno; 0: nobody said which it is */
};

/* Returns STAMP_HARDWARE, STAMP_COMPLETION or STAMP_SOFTWARE; STAMP_AUTO if what was asked for is
 * not there. why: a sentence on the best that was not taken, "" if there is no better one. */
enum stamp_source stamps_choose(const struct stamps_seen *seen, char *why, uint32_t why_bytes);

/* "auto", "hardware", ... False: no such source. */
bool stamps_parse(const char *text, enum stamp_source *out);
const char *stamps_name(enum stamp_source source);

#endif
