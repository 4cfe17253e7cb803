/* See settings.h. */
#include "posix/settings.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* NAME=FIRST or NAME=FIRST:MOST. `name` ends with the equals sign. */
static bool read_sizes(const char *text, const char *name, uint32_t *first, uint32_t *most)
{
    unsigned values[2];
    size_t length = strlen(name);
    int n = strncmp(text, name, length) ? 0 : sscanf(text + length, "%u:%u", values, values + 1);
    if (n < 1)
        return false;
    *first = values[0];
    *most = values[n - 1];
    return true;
}

static bool read_setting(const char *text, struct ix_posix_settings *to)
{
    unsigned value;
    char address[INET6_ADDRSTRLEN];
    struct ix_config *cfg = &to->cfg;
    if (sscanf(text, "local=%45s", address) == 1 &&
        (inet_pton(AF_INET, address, to->local[0].ip) == 1 ||
         inet_pton(AF_INET6, address, to->local[1].ip) == 1))
        return true;
    if (sscanf(text, "mtu=%u", &value) == 1)
        cfg->mtu = value;
    else if (sscanf(text, "time_wait_ms=%u", &value) == 1)
        cfg->time_wait_ms = value;
    else if (read_sizes(text, "rcvbuf=", &cfg->rcvbuf_bytes, &cfg->rcvbuf_max_bytes) ||
             read_sizes(text, "sndbuf=", &cfg->sndbuf_bytes, &cfg->sndbuf_max_bytes))
        return true;
    else if (sscanf(text, "half_open=%u", &value) == 1)
        cfg->max_half_open = value;
    else if (sscanf(text, "cookies=%u", &value) == 1 && value <= IX_COOKIES_ALWAYS)
        cfg->syn_cookies = (uint8_t)value;
    else if (sscanf(text, "sysctls=%u", &value) == 1)
        to->sysctls = value;
    else
        return false;
    return true;
}

bool ix_posix_read_settings(const char *text, struct ix_posix_settings *to)
{
    char *copy = strdup(text), *at = copy, *one;
    bool known = copy != NULL;
    while (known && (one = strsep(&at, ",")) != NULL)
        known = !*one || read_setting(one, to);
    free(copy);
    return known;
}
