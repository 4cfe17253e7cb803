/* The insides of the fuzz targets: a shard, its link, its peer's numbers and its application. */
#ifndef IX_TESTS_FUZZ_WORLD_H
#define IX_TESTS_FUZZ_WORLD_H

#include "shard/shard.h"
#include "tests/fuzz/fuzz.h"

/* As small as can be: all of it is restored before each input, and checked after each record. */
enum {
    WORLD_POOL = 128,
    WORLD_ARENA = 16,
    WORLD_FRAMES = WORLD_POOL + WORLD_ARENA,
    WORLD_FRAME_SHIFT = 11,
    WORLD_UMEM_BYTES = WORLD_FRAMES << WORLD_FRAME_SHIFT,
    WORLD_FLOWS = 16,
    WORLD_RING = 512,
    WORLD_EVENTS = 64,
    WORLD_LENT_MAX = 512,
    WORLD_HANDLES_MAX = 32,
    WORLD_PORT = 80,
    WORLD_UDP_PORT = 53,
    WORLD_PEER_PORT = 50000,
    WORLD_ISS = 0x7ffffff0, /* the peer's; wraps from positive to negative early */
};

struct world_lent {
    uint64_t handle, addr;
    uint32_t bytes;
    bool udp;
};

struct world_tx {
    uint64_t addr;
    uint32_t polls; /* until it completes */
};

struct world {
    struct ix_link link; /* first: the link's functions find the world by it */
    uint8_t *umem, *memory;
    size_t memory_bytes;
    struct ix_config cfg;
    struct ix_shard *shard;
    struct ix_io *io;
    uint64_t now_ns;
    struct fuzz_header header; /* may change; start does not */
    struct fuzz_header start;
    struct ix_flow_key key; /* of the main connection, as the shard sees it */
    uint64_t handle;        /* of the main connection */
    struct ix_tcb last;     /* its TCB when it was last seen: numbers to go on from */
    uint64_t udp_handle;
    bool six;               /* the network is IPv6's */
    uint8_t extension[40];  /* goes before the next packet's payload, its first byte filled in */
    uint8_t extension_type;
    uint32_t extension_bytes; /* 0: none */

    uint64_t fill[WORLD_RING];
    uint32_t fill_head, fill_tail;
    struct ix_desc rx[IX_BATCH_MAX];
    uint32_t rx_count;
    struct world_tx tx[WORLD_RING];
    uint32_t tx_head, tx_tail;
    bool stuck; /* the link takes nothing */

    struct world_lent lent[WORLD_LENT_MAX];
    uint32_t lent_count;
    uint64_t handles[WORLD_HANDLES_MAX]; /* that the application has been told of */
    uint32_t handle_count;
    bool dirty[WORLD_FRAMES]; /* frames that are not as they were at the very beginning */
};

/* A shard in the state that the header names. The world is the same memory each time. What led
 * there counts for no coverage: whether it was done or copied is then the same. */
struct world *world_make(const uint8_t *data, size_t size);
/* The next worlds are made, not copied. */
void world_forget(void);
/* What it is made of: the shard's configuration, which depends on the header only in what takes no
 * memory; then the shard itself, and the way to its state. */
void world_configure(struct world *w);
void world_build(struct world *w);
/* One cycle, the invariants, and what the application makes of the events. */
void world_poll(struct world *w);
/* The next call of the application, zeroed; runs the calls first where the array is full. */
struct ix_call *world_call(struct world *w, uint8_t op);
void world_give_back(struct world *w, uint32_t most);
/* Puts a frame on RX (dropped where no frame is filled). */
void world_inject(struct world *w, const uint8_t *frame, uint32_t bytes);
/* The TCB of the main connection; when it is gone, as it was at last. */
const struct ix_tcb *world_tcb(struct world *w);
/* Sends a segment of the main connection: relative to nothing, numbers as they go on the wire. */
void world_segment(struct world *w, uint16_t peer_port, const struct ix_tcp_hdr *hdr,
                   const uint8_t *options, uint32_t option_bytes, uint32_t payload_bytes);
/* An address of IPv4 in the world's family, that of the world, and its part of a pseudo header. */
struct ix_ip world_address(const struct world *w, uint32_t ip);
uint8_t world_family(const struct world *w);
uint32_t world_sum(const struct world *w, uint32_t ip);
/* Puts IP and Ethernet headers before a payload and injects it; of IPv6 the headers that mean the
 * same. */
void world_packet(struct world *w, const struct ix_ipv4 *ip, const uint8_t *payload,
                  uint32_t bytes);
/* The application leaves, time passes, and nothing may be left. */
void world_end(struct world *w);
/* Something is wrong: says so and ends the process. */
void world_fail(const char *what);

extern const struct ix_link_ops world_link_ops;
extern const struct ix_mac world_mac, world_peer_mac;
extern const uint32_t world_ip, world_peer_ip;

#endif
