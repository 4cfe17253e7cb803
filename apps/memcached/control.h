/* What the control process does with a memcached server's store (store.h): makes it, and mends it
 * when a worker has died. Python sees this header.
 */
#ifndef IX_MC_CONTROL_H
#define IX_MC_CONTROL_H

#ifndef IX_CDEF
#include <stddef.h>
#include <stdint.h>
#endif

struct ix_mc;

/* How a store and its server are to be; ix_mc_config_init() fills in memcached's defaults. */
struct ix_mc_config {
    uint64_t limit_bytes;    /* -m */
    uint64_t now_ns;         /* CLOCK_MONOTONIC */
    uint64_t wall_s;         /* CLOCK_REALTIME at now_ns */
    uint64_t hash_key;       /* random */
    uint32_t item_max_bytes; /* -I */
    uint32_t chunk_min_bytes; /* -n */
    uint32_t growth_percent; /* -f, in hundredths */
    uint32_t chunk_max_bytes; /* -o slab_chunk_max */
    uint32_t conns_max;      /* -c, of all workers together */
    uint32_t workers;        /* -t */
    uint32_t verbose;        /* -v */
    uint32_t tcp_port, udp_port;
    uint32_t backlog, idle_timeout_s, reqs_per_event;
    uint32_t hot_percent, warm_percent;
    uint32_t hot_factor_percent, warm_factor_percent;
    int32_t temp_ttl_s;      /* -1: no TEMP segment */
    uint32_t hash_power;     /* -o hashpower; 0: by limit_bytes */
    uint8_t no_eviction;     /* -M */
    uint8_t no_cas;          /* -C */
    uint8_t no_flush;        /* -F */
    uint8_t no_dump;         /* -X */
    uint8_t no_watch;        /* -W */
    uint8_t segmented, lru_crawler, maintainer, maxconns_fast;
    uint8_t automove;        /* -o slab_automove: 0, 1, 2 */
    uint8_t no_reassign;     /* -o no_slab_reassign */
    uint8_t large_pages;
    uint32_t automove_percent; /* -o slab_automove_ratio, in hundredths */
    uint8_t protocol;        /* -B: 0 auto, 1 ascii, 2 binary */
    uint8_t shutdown_command; /* -A */
    uint8_t track_sizes;
    char listen[48];         /* -l; empty: every address */
};

void ix_mc_config_init(struct ix_mc_config *config);
/* Maps and makes a store, shared with later children. NULL: no memory, or a configuration that
 * can't be; `why` says. */
struct ix_mc *ix_mc_new(const struct ix_mc_config *config, char *why, size_t why_bytes);
void ix_mc_free(struct ix_mc *mc);
/* Takes back what a dead worker left, while other workers run. worker: 0 .. config.workers-1. */
void ix_mc_recover(struct ix_mc *mc, uint32_t worker);
/* Items that are linked, and their bytes. */
uint64_t ix_mc_items(const struct ix_mc *mc);
uint64_t ix_mc_bytes(const struct ix_mc *mc);
/* NULL, or which invariant does not hold. Slow; for when no worker runs. */
const char *ix_mc_check(struct ix_mc *mc);

#endif
