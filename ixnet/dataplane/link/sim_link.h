/* A simulated wire with virtual time between two ends, each of them a link.
 *
 *     end[0] --TX--> direction 0 (delay, rate, faults) --RX--> end[1]
 *     end[0] <--RX-- direction 1 (delay, rate, faults) <--TX-- end[1]
 *
 * Each end has a UMEM and the four rings of AF_XDP, and does what the kernel does in copy mode:
 * nothing on TX moves before wakeup(), every frame received costs one from FILL, and what doesn't
 * fit is dropped and counted. A frame is copied off the UMEM when it is sent and into the
 * receiver's UMEM when it is due, which is when ix_sim_wire_advance() reaches that time.
 *
 * What befalls a frame is a pure function of (seed, direction, number of the frame in its
 * direction), so a run repeats exactly, and switching one fault on leaves the others' choices as
 * they were. No allocation, no I/O, no clock: memory and time are arguments.
 *
 * The wire also watches how its user treats frames; see `misuse` and `tx_modified` below.
 */
#ifndef IX_LINK_SIM_LINK_H
#define IX_LINK_SIM_LINK_H

#include "base/types.h"
#include "link/link.h"

enum {
    IX_SIM_ENDS = 2,
    IX_SIM_RX_HEADROOM = 256, /* what XDP leaves before a frame: XDP_PACKET_HEADROOM */
    IX_SIM_DROPS_MAX = 64,    /* frames that a path can be told by number to drop */
    IX_SIM_BURST_MAX = 64,    /* frames lost in a row by one loss */
    IX_SIM_WIRE_FRAMES_MAX = 1 << 16,
    IX_SIM_RING_MAX = 1 << 16,
};

#define IX_SIM_PPM 1000000u /* a chance of 1, in parts per million */

/* What one direction of the wire does to frames. All zero: a perfect wire without delay. */
struct ix_sim_path {
    uint64_t delay_ns;         /* from the end of sending to arrival */
    uint64_t jitter_ns;        /* up to so much more, evenly spread; does not reorder */
    uint64_t rate_bytes_per_s; /* frame bytes; 0: sending takes no time */
    uint32_t queue_frames; /* most frames that wait for the rate, 0: any number; more overflow */
    uint32_t loss_ppm;     /* chance that a frame, and with it a burst, is lost */
    uint32_t loss_burst_frames; /* length of the burst; 0 and 1: that frame alone */
    uint32_t loss_max_bytes;    /* longer frames are not lost at random: so that pure ACKs alone
                                 * are; 0: any are */
    uint32_t mtu; /* IP packets that are longer are dropped by a router on the way, 0: there is none
                   * ... */
    bool mute;    /* ... and it sends no ICMP error back: a black hole */
    uint32_t mark_frames; /* so many waiting for the rate: ECT frames that join are marked CE (RFC
                           * 3168); 0: never */
    uint32_t dup_ppm;           /* chance that a frame arrives twice */
    uint32_t reorder_ppm;       /* chance that a frame is held back, and overtaken ... */
    uint32_t corrupt_ppm;       /* chance that a bit flips behind the Ethernet header of IPv4 and
                                 * IPv6 frames (nothing would catch it in others) */
    uint64_t reorder_hold_ns;   /* ... for so long */
    uint64_t spike_every_ns;    /* so often the wire stands still ... */
    uint64_t spike_ns; /* ... for so long, at the end of that time: frames arrive when it is over */
    uint64_t faults_until_ns;   /* frames sent from then on suffer no random fault; 0: no end */
    uint32_t drops;             /* how many of `drop` are set; not subject to faults_until_ns */
    uint64_t drop[IX_SIM_DROPS_MAX]; /* numbers of frames to drop; the first sent is number 0 */
};

/* X(name, meaning), for each direction. `overflow` to `link_down` are drops. */
#define IX_SIM_COUNTERS(X) \
    X(sent, "frames that the sending end put on the wire; the next one's number") \
    X(sent_bytes, "their bytes") \
    X(delivered, "frames put on the receiving end's RX, duplicates included") \
    X(delivered_bytes, "their bytes") \
    X(dup, "frames duplicated") \
    X(errors, "ICMP errors about frames of the other direction, that the wire put in") \
    X(reordered, "frames held back") \
    X(corrupted, "frames with a bit flipped") \
    X(marked, "frames marked as having met congestion") \
    X(overflow, "frames dropped because the queue or the wire was full") \
    X(lost, "frames lost at random") \
    X(dropped, "frames dropped by number") \
    X(too_big, "frames dropped because they were longer than the path's MTU") \
    X(no_fill, "frames dropped for want of a FILL entry (kernel: rx_fill_ring_empty_descs)") \
    X(rx_full, "frames dropped because RX was full (kernel: rx_ring_full)") \
    X(too_long, \
      "frames dropped because they did not fit the receiver's chunk (kernel: rx_dropped)") \
    X(link_down, "frames dropped because the receiving end was down")

struct ix_sim_counters {
#define X(name, meaning) uint64_t name;
    IX_SIM_COUNTERS(X)
#undef X
};

/* X(name, meaning), for each end. */
#define IX_SIM_END_COUNTERS(X) \
    X(wakeups, "wakeups that found something on TX: system calls") \
    X(tx_invalid, "TX descriptors skipped, never completed (kernel: tx_invalid_descs)") \
    X(fill_invalid, "FILL entries skipped (kernel: rx_invalid_descs)") \
    X(tx_modified, "frames that changed between tx_burst() and complete(): still the link's then") \
    X(misuse, "chunks put on FILL or TX while on FILL, on RX or (FILL only) under transmission")

struct ix_sim_end_counters {
#define X(name, meaning) uint64_t name;
    IX_SIM_END_COUNTERS(X)
#undef X
};

/* One ring: entries [tail, head), free-running indices. */
struct ix_sim_ring {
    uint32_t size; /* entries, a power of two */
    uint32_t head; /* next to be written */
    uint32_t tail; /* next to be read */
};

/* A descriptor on TX or on the way to completion. */
struct ix_sim_tx {
    struct ix_desc desc;
    uint64_t digest; /* of the frame as it was handed over */
    uint64_t due_ns; /* when it completes */
};

struct ix_sim_wire;

struct ix_sim_end {
    struct ix_link link; /* first: a struct ix_link * of an end is a struct ix_sim_end * */
    struct ix_sim_wire *wire;
    uint32_t index; /* which end of the wire; its frames travel in the direction of that number */
    bool down;      /* see ix_sim_end_set_down() */
    bool kicked;    /* woken, and TX not empty since */
    struct ix_sim_ring fill, rx, tx, completion;
    uint64_t *fill_addrs;
    struct ix_desc *rx_descs;
    struct ix_sim_tx *tx_descs;
    struct ix_sim_tx *completion_descs;
    uint16_t *chunks;             /* per chunk: transmissions under way, IX_SIM_CHUNK_* */
    uint64_t completion_delay_ns; /* from sending to completion; may be changed at any time */
    uint32_t tx_budget;           /* most frames sent per wakeup or advance; 0: all on the ring */
    struct ix_sim_end_counters counters;
};

#define IX_SIM_CHUNK_GIVEN 0x8000u /* on FILL or RX: the link may write to it */

/* A frame on the wire. */
struct ix_sim_slot {
    uint64_t due_ns; /* when it arrives */
    uint64_t order;  /* of being sent: decides between frames that are due at once */
    uint32_t bytes;
    uint32_t next; /* next in the free list, or IX_NONE */
};

struct ix_sim_direction {
    struct ix_sim_path path;
    struct ix_sim_counters counters;
    uint64_t line_free_ns; /* when the rate lets the next frame start */
    uint64_t last_due_ns;  /* when the last frame in order arrives: jitter must not overtake it */
    uint64_t order;        /* slots ever used */
    uint64_t *departs;     /* [wire_frames] when each frame that waits for the rate has left */
    struct ix_sim_ring queue;  /* indices into departs */
    struct ix_sim_slot *slots; /* [wire_frames] */
    uint8_t *data;             /* [wire_frames] of slot_bytes */
    uint32_t *heap;            /* [wire_frames] slots on the wire, the next due first */
    uint32_t heap_count;
    uint32_t free_slot; /* free list, or IX_NONE */
};

struct ix_sim_wire {
    struct ix_sim_end end[IX_SIM_ENDS];
    struct ix_sim_direction direction[IX_SIM_ENDS];
    uint64_t now_ns;
    uint64_t seed;
    uint32_t wire_frames; /* frames that one direction can hold, a power of two */
    uint32_t slot_bytes;  /* the longest frame */
};

/* Sizes must be powers of two. */
struct ix_sim_end_setup {
    uint8_t *umem;       /* the caller's, for the life of the wire */
    uint64_t umem_bytes; /* a multiple of the frame size */
    uint32_t frame_shift;
    uint32_t rx_headroom; /* IX_SIM_RX_HEADROOM, unless a test wants another */
    uint32_t fill_entries;
    uint32_t rx_entries;
    uint32_t tx_entries;
    uint32_t completion_entries; /* TX stops while that many are under way or not yet taken */
};

struct ix_sim_setup {
    uint64_t seed;
    uint64_t now_ns;
    uint32_t wire_frames; /* frames that one direction can hold; more overflow */
    struct ix_sim_end_setup end[IX_SIM_ENDS];
};

/* Bytes of memory for a wire with this set-up; 0 if the set-up makes no sense. */
size_t ix_sim_wire_bytes(const struct ix_sim_setup *setup);
/* memory: ix_sim_wire_bytes() bytes, cache-line aligned, for the life of the wire. Paths are
 * perfect until set. Returns 0 or -IX_EINVAL. */
IX_MUST_CHECK int ix_sim_wire_init(struct ix_sim_wire *wire, const struct ix_sim_setup *setup,
                                   void *memory);
/* Changes a direction's path (copied) for frames sent from now on. Returns 0, or -IX_EINVAL for a
 * chance above 1, too long a burst or too many drops. */
IX_MUST_CHECK int ix_sim_wire_set_path(struct ix_sim_wire *wire, uint32_t direction,
                                       const struct ix_sim_path *path);
/* Takes an end down, and up again. While it is down wakeup() says -IX_ENETDOWN, what is on TX
 * stays there, and frames that arrive are dropped and counted. */
void ix_sim_end_set_down(struct ix_sim_end *end, bool down);

/* Moves time on to now_ns (backward is taken as standing still) and delivers what is due by then.
 * Until the next call everything that happens, happens at now_ns. */
void ix_sim_wire_advance(struct ix_sim_wire *wire, uint64_t now_ns);
/* When advancing will next change something for an end: a frame arrives, a sending completes.
 * UINT64_MAX: not by itself. */
uint64_t ix_sim_wire_next_ns(const struct ix_sim_wire *wire);
/* What poll(2) would say: RX or COMPLETION has something to take. */
bool ix_sim_end_ready(const struct ix_sim_end *end);
/* Frames on the wire in one direction. */
static inline uint32_t ix_sim_wire_in_flight(const struct ix_sim_wire *wire, uint32_t direction)
{
    return wire->direction[direction].heap_count;
}

/* ---- sim_faults.c: what a random number decides. Each has its own, so that faults don't influence
 * each other. */
enum ix_sim_fault {
    IX_SIM_LOSS = 1,
    IX_SIM_DUP,
    IX_SIM_REORDER,
    IX_SIM_CORRUPT,
    IX_SIM_CORRUPT_BIT,
    IX_SIM_JITTER,
    IX_SIM_DUP_JITTER
};
uint64_t ix_sim_roll(const struct ix_sim_wire *wire, uint32_t direction, uint64_t number,
                     enum ix_sim_fault fault);
bool ix_sim_happens(const struct ix_sim_wire *wire, uint32_t direction, uint64_t number,
                    enum ix_sim_fault fault, uint32_t ppm);
bool ix_sim_is_lost(const struct ix_sim_wire *wire, uint32_t direction, uint64_t number,
                    uint32_t bytes);
/* By its number? */
bool ix_sim_is_dropped(const struct ix_sim_path *p, uint64_t number);
uint64_t ix_sim_jitter(const struct ix_sim_wire *wire, uint32_t direction, uint64_t number,
                       enum ix_sim_fault which);
/* When a frame that is sent now arrives at the earliest, as far as spikes go. */
uint64_t ix_sim_spike(const struct ix_sim_path *p, uint64_t now_ns);
/* Both return whether there was something to change. */
bool ix_sim_flip_bit(uint8_t *frame, uint32_t bytes, uint64_t random);
bool ix_sim_mark(uint8_t *frame, uint32_t bytes);

/* ---- sim_router.c: writes the ICMP error of a router for which the frame was too big, at most
 * IX_SIM_ERROR_MAX bytes, back to its sender. Returns its length, 0 if the frame holds no IP. */
enum { IX_SIM_ERROR_MAX = 128 };
uint32_t ix_sim_too_big(const uint8_t *frame, uint32_t bytes, uint32_t mtu, uint8_t *error);

/* Invariants: every frame sent is delivered, dropped for one counted reason or on the wire; rings,
 * heap and free lists are sound. Returns NULL or what is wrong. */
const char *ix_sim_wire_check(const struct ix_sim_wire *wire);

#endif
