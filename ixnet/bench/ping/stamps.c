#include "stamps.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static const char *const names[] = {"auto", "hardware", "completion", "software"};

bool stamps_parse(const char *text, enum stamp_source *out)
{
    for (uint32_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (strcmp(names[i], text) == 0) {
            *out = (enum stamp_source)i;
            return true;
        }
    }
    return false;
}

const char *stamps_name(enum stamp_source source)
{
    return names[source];
}

static void say_why(const struct stamps_seen *s, char *why, uint32_t n)
{
    if (s->hardware && s->clock_error)
        snprintf(why, n, "the NIC's clock can't be read: %s", strerror(-s->clock_error));
    else if (s->hardware)
        snprintf(why, n, "nothing tells which clock the NIC's stamps are of");
    else if (s->error < 0)
        snprintf(why, n, "the driver gave none: %s", strerror(-s->error));
    else if (s->error > 0)
        snprintf(why, n, "the NIC was not asked");
    else
        snprintf(why, n, "the driver gave none: a stamp of 0");
}

enum stamp_source stamps_choose(const struct stamps_seen *s, char *why, uint32_t why_bytes)
{
    why[0] = 0;
    bool hardware = s->hardware && s->comparable;
    if (hardware && (s->wanted == STAMP_AUTO || s->wanted == STAMP_HARDWARE))
        return STAMP_HARDWARE;
    if (!hardware)
        say_why(s, why, why_bytes);
    else
        snprintf(why, why_bytes, "as asked");
    if (s->wanted == STAMP_HARDWARE)
        return STAMP_AUTO;
    if (s->wanted != STAMP_COMPLETION)
        return STAMP_SOFTWARE;
    if (s->completion)
        return STAMP_COMPLETION;
    snprintf(why, why_bytes, "completions carry no stamp here");
    return STAMP_AUTO;
}
