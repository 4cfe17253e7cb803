/* What the control plane gives a shard: its configuration, and later news over a shared
 * ring; and what the shard shows of itself. Part of the cdef; see api.h for the rules.
 */
#ifndef IX_API_CONFIG_H
#define IX_API_CONFIG_H

#ifndef IX_CDEF
#include "base/counters.h"
#include "base/limits.h"
#include <stddef.h>
#include <stdint.h>
#endif

struct ix_link;
struct ix_shard;

/* Sizes and identity of a shard; fixed at creation. 0 where a default is named means the default.
 */
struct ix_config {
    uint64_t now_ns;       /* time of creation, on the clock of every later poll */
    uint64_t secret[8];    /* 512 random bits: keys of the flow table, ISNs, ports, timestamps */
    uint32_t shard_id;     /* 0 .. shard_count-1 */
    uint32_t shard_count;
    uint32_t max_flows;    /* connections, TIME_WAIT included (65,536) */
    uint32_t max_events;   /* events a poll can return (1,024; at least 64) */
    uint32_t max_calls;    /* calls a poll can take (1,024; at least 64) */
    uint32_t max_timers;   /* application timers (1,024) */
    uint32_t max_extents;  /* SENDV records borrowed at a time (4 * pool_frames) */
    uint32_t pool_frames;  /* UMEM frames of the dataplane (at least 64) */
    uint32_t arena_frames; /* UMEM frames of the application's send arena (may be 0) */
    uint32_t batch;        /* 1..256 frames a cycle (64) */
    uint32_t fill_target;  /* frames kept on FILL (half of pool_frames, at most 2,048) */
    uint32_t fill_max;     /* and at most, after it ran dry (fill_target) */
    uint32_t rcvbuf_bytes; /* receive window of a connection, at first (262,144) */
    uint32_t sndbuf_bytes; /* most bytes of a connection borrowed at a time, at first (1,048,576) */
    /* How far these grow when a connection has use for it. Where the first value is the default: a
     * quarter of the pool and half of the UMEM, 4 MiB at most; else not at all. */
    uint32_t rcvbuf_max_bytes, sndbuf_max_bytes;
    uint32_t time_wait_ms; /* 2 MSL (60,000) */
    uint32_t mtu;          /* IP bytes a frame can carry (1,500) */
    uint16_t port_lo,
        port_hi; /* this shard's outgoing ports, both included; 0: no CONNECT without local_port */
    uint16_t all_port_lo, all_port_hi; /* those of all shards of the instance together */
    uint8_t mac[6];
    uint8_t own_address; /* 1: answers ARP and echo for its addresses, and resolves neighbours by
                            itself too */
    uint8_t
        sg_inplace; /* 1: arena payload may be sent from where it lies (0 in the dune placement) */
    uint32_t
        rss_key_bytes; /* 0: unknown; then outgoing ports are tried until replies arrive here */
    uint8_t rss_key[64];
    uint32_t rss_table_len;   /* entries of the indirection table */
    uint16_t rss_table[512];  /* queue of each entry */
    uint32_t queue;           /* this shard's NIC queue */
    /* Where the application has the shared part of the shard's memory, and the UMEM, mapped; 0:
     * where the shard has them. */
    uint64_t app_io, app_umem;
    uint8_t congestion;       /* enum ix_congestion of connections that say no other (CUBIC) */
    uint8_t ecn;              /* enum ix_ecn */
    uint32_t max_half_open;   /* connections in SYN_RCVD (half of max_flows) */
    uint32_t mss_max;         /* no connection's MSS is larger, in neither direction (65,535) */
    uint32_t challenge_acks;  /* challenge ACKs a second, about (1,000) */
    uint8_t syn_cookies;      /* enum ix_cookies */
    uint8_t without;          /* enum ix_without */
    uint8_t run_min;          /* segments that PSH ends, at least (2) */
    uint8_t pacing;           /* 1: connections that say nothing else are paced (IX_OPT_PACING) */
};

/* What no connection has or does. */
enum ix_without {
    IX_WITHOUT_TIMESTAMPS = 1, /* RFC 7323 section 3 */
    IX_WITHOUT_SACK = 2,       /* RFC 2018 */
    IX_WITHOUT_WINDOW_SCALING = 4, /* RFC 7323 section 2 */
    IX_WITHOUT_IDLE_RESTART = 8    /* RFC 5681 4.1 */
};

/* SYN cookies (RFC 4987 3.6). */
enum ix_cookies {
    IX_COOKIES_WHEN_FULL = 0, /* when backlog or max_half_open is reached (default) */
    IX_COOKIES_NEVER = 1,     /* SYNs are dropped then */
    IX_COOKIES_ALWAYS = 2     /* for every connection */
};

/* Bytes of memory that ix_shard_create() needs, a multiple of 4096, and 0 for a
 * configuration that can't be. Applies the defaults to *cfg in place. */
size_t ix_shard_bytes(struct ix_config *cfg);

/* How many bytes at the end of that memory the application shares: struct ix_io and the arrays. */
size_t ix_shard_shared_bytes(const struct ix_config *cfg);

/* Builds a shard in `memory` (zeroed, page-aligned, ix_shard_bytes() long) on `link`, whose UMEM
 * must hold pool_frames + arena_frames frames. Takes fill_target frames: they stand in `fill`
 * (fill_target entries, UMEM addresses) for the link's FILL ring if the link wants them before it
 * exists, or NULL to let the first poll fill. Returns the shard, or NULL for a bad configuration.
 */
struct ix_shard *ix_shard_create(void *memory, size_t bytes, struct ix_config *cfg,
                                 struct ix_link *link, uint64_t *fill);

/* Frames per batch, 1..256, from the next cycle on. */
int ix_shard_set_batch(struct ix_shard *shard, uint32_t batch);

/* ---- news from the control plane, and requests to it -------------------- */

enum ix_ctl_type {
    IX_CTL_NONE = 0,
    IX_CTL_NEIGH_SET = 1, /* ip is at mac */
    IX_CTL_NEIGH_DEL = 2, /* ip is not resolved any more */
    IX_CTL_ROUTE_SET =
        3, /* dst ip/prefix via gateway (all 0: on link), preferred source `source` */
    IX_CTL_ROUTE_DEL = 4,
    IX_CTL_ADDR_ADD = 5, /* ip is a local address; value 1: own (not the kernel's) */
    IX_CTL_ADDR_DEL = 6,
    IX_CTL_LINK = 7,      /* value 1: carrier, 0: none */
    IX_CTL_ABORT_ALL = 8, /* reset every connection (a shutdown) */
    /* from the shard: */
    IX_CTL_NEIGH_MISS = 16,  /* please resolve ip */
    IX_CTL_PARTIAL_CSUM = 17, /* the peer sends partial checksums: said once */
    IX_CTL_DUPLICATE = 18     /* mac has the own address ip, too; value 1: ours is new */
};

struct ix_ctl_msg {
    uint8_t type; /* enum ix_ctl_type */
    uint8_t family;
    uint8_t prefix;
    uint8_t mac[6];
    uint8_t pad[3];
    uint32_t value;
    uint8_t ip[16];      /* network byte order, IPv4 in the first 4 bytes */
    uint8_t gateway[16];
    uint8_t source[16];
};

/* Puts a message on the shard's ring. Returns 0, or -EAGAIN when it is full: try again after a
 * poll. One writer (the control plane), which may be another process that shares the memory. */
int ix_ctl_send(struct ix_shard *shard, const struct ix_ctl_msg *msg);
/* Takes a request that the shard made. Returns 1, or 0 when there is none. */
int ix_ctl_recv(struct ix_shard *shard, struct ix_ctl_msg *msg);

/* ---- what a shard shows ------------------------------------------------- */

enum { IX_BATCH_HIST = 257 };

struct ix_stats {
    uint64_t magic;        /* IX_STATS_MAGIC once the shard stands */
    uint64_t now_ns;       /* of the last cycle */
    uint64_t flows;        /* in any state */
    uint64_t flows_half_open;
    uint64_t flows_time_wait;
    uint64_t frames_free, frames_fill, frames_rx, frames_app, frames_tx; /* pool frames by owner */
    uint64_t timers_armed;
    uint64_t batch_hist[257]; /* [n]: cycles that took n frames from RX */
    uint64_t counter_count;   /* how many of counters[] there are */
    uint64_t counters[128];   /* in the order of ix_counter_name() */
};

/* The statistics lie at the start of the shard's memory, so that a process that only maps it can
 * read them. Gauges are brought up to date by ix_shard_stats(), and every 1,024 cycles. */
struct ix_stats *ix_shard_stats(struct ix_shard *shard);
/* Name and meaning of counter i, or NULL beyond the last. */
const char *ix_counter_name(uint32_t i);
const char *ix_counter_meaning(uint32_t i);

/* All invariants of all modules of the shard: NULL, or what is wrong. For tests; slow. */
const char *ix_shard_check(struct ix_shard *shard);

/* Connection facts for tools and tests. Returns 0 or -ENOENT for a void handle. */
struct ix_conn_info {
    uint8_t family, state; /* state: enum ix_tcp_state */
    uint16_t peer_port, local_port;
    uint8_t peer[16], local[16];
    uint32_t mss, cwnd_bytes, ssthresh_bytes, srtt_us, rto_us;
    uint32_t snd_wnd, rcv_wnd, unacked_bytes, queued_bytes, lent_bytes;
    uint32_t retransmits;
    uint8_t congestion; /* enum ix_congestion */
    uint8_t ecn;        /* 1: both sides agreed on ECN */
    uint8_t timestamps, sack;        /* 1: agreed on */
    int8_t snd_wscale, rcv_wscale;   /* -1: not agreed on */
    uint8_t recovery;   /* 1: from loss, 2: from a timeout */
    uint8_t reordering; /* 1: the network was seen to reorder */
    uint8_t retries, probes; /* of the same data; of a closed window */
    uint32_t rttvar_us, min_rtt_us, rcv_mss, path_mtu, sacked_bytes, lost_bytes, rcvbuf_bytes;
    uint32_t sndbuf_bytes; /* most that may be borrowed at this time */
    uint64_t pace_rate; /* bytes a second at this time; UINT64_MAX: no limit */
    uint32_t sent_ms_ago, heard_ms_ago; /* data last sent, anything last received */
};
int ix_shard_conn_info(struct ix_shard *shard, uint64_t handle, struct ix_conn_info *info);
/* Walks the table of connections, open and closing: the handle of the next flow at or after *index
 * (advanced), 0 at the end. */
uint64_t ix_shard_next_conn(struct ix_shard *shard, uint32_t *index);

#endif
