/* Clocks compared: a NIC's own with the system's, and the system's with each other. */
#ifndef IX_BENCH_PING_CLOCK_H
#define IX_BENCH_PING_CLOCK_H

#include <stdbool.h>
#include <stdint.h>
#include <time.h>

/* One comparison. error_ns: the system's time lies within so much of it. */
struct clock_pair {
    uint64_t device_ns, system_ns, error_ns;
};

/* A NIC's clock (/dev/ptpN) seen from one of the system's. */
struct device_clock {
    int fd; /* -1: there is none */
    clockid_t against;
    struct clock_pair first, last; /* what its rate is from, and the newest */
    uint32_t pairs;
};

/* One reading of the device's clock between two of the system's. */
struct clock_reading {
    uint64_t before_ns, device_ns, after_ns;
};

uint64_t clock_read_ns(clockid_t clock);
/* to - from, ns, by the narrowest of a few readings; *error_ns says how narrow. */
int64_t clock_offset_ns(clockid_t from, clockid_t to, uint64_t *error_ns);

/* 0 or -errno. */
int device_clock_open(struct device_clock *c, const char *path, clockid_t against);
void device_clock_close(struct device_clock *c);
/* Compares once more (some 20 us). 0 or -errno. */
int device_clock_compare(struct device_clock *c);
/* The same with readings that were made: the narrowest of them counts. */
void device_clock_add(struct device_clock *c, const struct clock_reading *readings, uint32_t n,
                      int64_t offset_ns, uint64_t offset_error_ns);
/* A time of the device in the system's clock; 0 for 0, and before the first comparison. */
uint64_t device_clock_convert(const struct device_clock *c, uint64_t device_ns);

#endif
