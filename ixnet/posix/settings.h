/* The settings of a stack as text: NAME=VALUE, separated by commas. packetdrill.h lists them. */
#ifndef IX_POSIX_SETTINGS_H
#define IX_POSIX_SETTINGS_H

#include "api/config.h"

#include <stdbool.h>

struct ix_posix_address {
    uint8_t ip[16]; /* IPv4 in the first 4 bytes */
    uint8_t family; /* 4 or 6 */
};

struct ix_posix_settings {
    struct ix_config cfg;
    struct ix_posix_address local[2]; /* IPv4, IPv6 */
    bool sysctls;
};

/* Sets what the text names, and leaves the rest. False: a setting is none that is known. */
bool ix_posix_read_settings(const char *text, struct ix_posix_settings *to);

#endif
