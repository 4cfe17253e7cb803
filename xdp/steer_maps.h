/* The steering program's maps. The loader finds them by name and fills all but two: `datagrams`,
 * the program's memory, and `verdicts`, its counters. */
#ifndef IX_XDP_STEER_MAPS_H
#define IX_XDP_STEER_MAPS_H

#include "steer.h"

#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

struct {
    __uint(type, BPF_MAP_TYPE_XSKMAP);
    __uint(max_entries, IX_STEER_MAX_QUEUES);
    __type(key, __u32);
    __type(value, __u32);
} xsks SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, IX_STEER_MAX_CLAIMS);
    __type(key, struct ix_steer_flow);
    __type(value, __u32);
} claims SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, IX_STEER_MAX_RANGES);
    __type(key, __u32);
    __type(value, struct ix_steer_range);
} ranges SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, IX_STEER_MAX_ADDRS);
    __type(key, struct ix_steer_addr);
    __type(value, __u32);
} local_addrs SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, IX_STEER_MAX_ADDRS);
    __type(key, struct ix_steer_addr);
    __type(value, __u32);
} own_addrs SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(map_flags, BPF_F_MMAPABLE);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, struct ix_steer_table);
} table SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_LRU_HASH);
    __uint(max_entries, IX_STEER_MAX_DATAGRAMS);
    __type(key, struct ix_steer_datagram);
    __type(value, __u64);
} datagrams SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, IX_STEER_N_VERDICTS);
    __type(key, __u32);
    __type(value, __u64);
} verdicts SEC(".maps");

#endif
