/* What loader.c and steered.c share: the loaded program and its maps. */
#ifndef IX_XDP_HANDLE_H
#define IX_XDP_HANDLE_H

#include <stdint.h>

#include "loader.h"
#include "steer.h"

struct ix_steer {
    struct bpf_object *object;
    int prog_fd;
    int link_fd; /* -1: not attached */
    int xsks_fd, claims_fd, ranges_fd, local_addrs_fd, own_addrs_fd, table_fd, verdicts_fd;
    struct ix_steer_table *table;            /* mapped */
    uint16_t claims[IX_STEER_KINDS][65536]; /* how many addresses have this port in `claims` */
};

#endif
