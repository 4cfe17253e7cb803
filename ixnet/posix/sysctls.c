/* Linux's settings of its own TCP, for a stack that is to behave as that would. */
#include "posix/posix.h"

#include "api/api.h"
#include "api/config.h"

#include <stdio.h>
#include <string.h>

enum { SNDBUF_LEAST = 2 * 10 * 4352 }; /* of segments of 1460 bytes with what Linux adds to each */

/* The first line of /proc/sys/net/ipv4/NAME; false if there is none. */
static bool line_of(const char *name, char *line, size_t bytes)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/sys/net/ipv4/%s", name);
    FILE *file = fopen(path, "re");
    bool got = file && fgets(line, (int)bytes, file);
    if (file)
        fclose(file);
    return got;
}

static bool number_of(const char *name, unsigned *value)
{
    char line[64];
    return line_of(name, line, sizeof line) && sscanf(line, "%u", value) == 1;
}

/* Least, default and most: the last two. */
static void sizes_of(const char *name, uint32_t *first, uint32_t *most)
{
    char line[64];
    unsigned values[3];
    if (!line_of(name, line, sizeof line) ||
        sscanf(line, "%u %u %u", &values[0], &values[1], &values[2]) != 3 ||
        values[1] < IX_MSS_DEFAULT || values[2] < values[1] || values[2] > 1u << 30)
        return;
    *first = values[1];
    *most = values[2];
}

void ix_posix_sysctls(struct ix_config *cfg)
{
    static const struct {
        const char *name;
        uint8_t without;
    } switches[] = {{"tcp_timestamps", IX_WITHOUT_TIMESTAMPS},
                    {"tcp_sack", IX_WITHOUT_SACK},
                    {"tcp_window_scaling", IX_WITHOUT_WINDOW_SCALING},
                    {"tcp_slow_start_after_idle", IX_WITHOUT_IDLE_RESTART}};
    static const uint8_t ecn[] = {IX_ECN_OFF, IX_ECN_REQUEST, IX_ECN_ACCEPT};
    static const uint8_t cookies[] = {IX_COOKIES_NEVER, IX_COOKIES_WHEN_FULL, IX_COOKIES_ALWAYS};
    unsigned value;
    char name[32];
    sizes_of("tcp_rmem", &cfg->rcvbuf_bytes, &cfg->rcvbuf_max_bytes);
    sizes_of("tcp_wmem", &cfg->sndbuf_bytes, &cfg->sndbuf_max_bytes);
    /* tcp_sndbuf_expand(), when a connection stands: twice the initial window, in Linux's units. */
    if (cfg->sndbuf_bytes && cfg->sndbuf_bytes < SNDBUF_LEAST)
        cfg->sndbuf_bytes = SNDBUF_LEAST;
    if (cfg->sndbuf_max_bytes && cfg->sndbuf_max_bytes < cfg->sndbuf_bytes)
        cfg->sndbuf_max_bytes = cfg->sndbuf_bytes;
    for (size_t i = 0; i < sizeof switches / sizeof *switches; i++)
        if (number_of(switches[i].name, &value) && value == 0)
            cfg->without |= switches[i].without;
    if (number_of("tcp_ecn", &value) && value < sizeof ecn)
        cfg->ecn = ecn[value];
    if (number_of("tcp_syncookies", &value) && value < sizeof cookies)
        cfg->syn_cookies = cookies[value];
    if (number_of("tcp_min_tso_segs", &value))
        cfg->run_min = (uint8_t)(value < UINT8_MAX ? value : UINT8_MAX);
    if (line_of("tcp_congestion_control", name, sizeof name))
        cfg->congestion = !strncmp(name, "reno", 4)    ? IX_CC_NEWRENO
                          : !strncmp(name, "dctcp", 5) ? IX_CC_DCTCP
                                                       : IX_CC_CUBIC;
}

uint32_t ix_posix_sysctl_notsent_lowat(void)
{
    unsigned value;
    return number_of("tcp_notsent_lowat", &value) ? value : 0;
}
