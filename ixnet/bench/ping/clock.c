#include "clock.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <linux/ptp_clock.h>

#define READINGS    8
#define SECOND_NS   1000000000ull
#define RATE_FROM_NS 50000000ull /* a rate from pairs less far apart would be worse than none */

static uint64_t ns_of(const struct ptp_clock_time *t)
{
    return (uint64_t)t->sec * SECOND_NS + t->nsec;
}

uint64_t clock_read_ns(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * SECOND_NS + (uint64_t)t.tv_nsec;
}

int64_t clock_offset_ns(clockid_t from, clockid_t to, uint64_t *error_ns)
{
    int64_t offset = 0;
    *error_ns = UINT64_MAX;
    for (int i = 0; i < READINGS; i++) {
        uint64_t before = clock_read_ns(from), middle = clock_read_ns(to);
        uint64_t width = clock_read_ns(from) - before;
        if (width / 2 >= *error_ns)
            continue;
        *error_ns = width / 2;
        offset = (int64_t)(middle - (before + width / 2));
    }
    return offset;
}

int device_clock_open(struct device_clock *c, const char *path, clockid_t against)
{
    *c = (struct device_clock){.against = against};
    c->fd = open(path, O_RDONLY | O_CLOEXEC);
    return c->fd < 0 ? -errno : device_clock_compare(c);
}

void device_clock_close(struct device_clock *c)
{
    if (c->fd >= 0)
        close(c->fd);
    c->fd = -1;
}

int device_clock_compare(struct device_clock *c)
{
    struct ptp_sys_offset_extended request = {.n_samples = READINGS};
    struct clock_reading readings[READINGS];
    uint64_t error_ns = 0;
    if (ioctl(c->fd, PTP_SYS_OFFSET_EXTENDED, &request) < 0)
        return -errno;
    for (int i = 0; i < READINGS; i++)
        readings[i] = (struct clock_reading){ns_of(&request.ts[i][0]), ns_of(&request.ts[i][1]),
                                             ns_of(&request.ts[i][2])};
    /* The kernel compares with CLOCK_REALTIME. */
    int64_t offset_ns = c->against == CLOCK_REALTIME
                            ? 0
                            : clock_offset_ns(CLOCK_REALTIME, c->against, &error_ns);
    device_clock_add(c, readings, READINGS, offset_ns, error_ns);
    return 0;
}

void device_clock_add(struct device_clock *c, const struct clock_reading *readings, uint32_t n,
                      int64_t offset_ns, uint64_t offset_error_ns)
{
    const struct clock_reading *best = readings;
    for (uint32_t i = 1; i < n; i++) {
        if (readings[i].after_ns - readings[i].before_ns < best->after_ns - best->before_ns)
            best = &readings[i];
    }
    uint64_t half_ns = (best->after_ns - best->before_ns) / 2;
    c->last = (struct clock_pair){best->device_ns,
                                  best->before_ns + half_ns + (uint64_t)offset_ns,
                                  half_ns + offset_error_ns};
    if (!c->pairs++)
        c->first = c->last;
}

uint64_t device_clock_convert(const struct device_clock *c, uint64_t device_ns)
{
    if (!device_ns || !c->pairs)
        return 0;
    double rate = 1;
    int64_t apart_ns = (int64_t)(c->last.device_ns - c->first.device_ns);
    if (apart_ns >= (int64_t)RATE_FROM_NS)
        rate = (double)(int64_t)(c->last.system_ns - c->first.system_ns) / (double)apart_ns;
    int64_t since_ns = (int64_t)(device_ns - c->last.device_ns);
    return c->last.system_ns + (uint64_t)(int64_t)((double)since_ns * rate);
}
