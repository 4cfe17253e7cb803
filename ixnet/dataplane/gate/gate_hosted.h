/* A gate from the control plane's side: it makes it in memory that the guest's ring 0 will see,
 * sets its clock now and then, and serves its wakeups where a thread does that. Hosted.
 */
#ifndef IX_GATE_GATE_HOSTED_H
#define IX_GATE_GATE_HOSTED_H

#ifndef IX_CDEF
#include <stdint.h>
#endif

struct ix_gate_host;
struct ix_kicker;
struct ix_shard;
struct ix_xsk_socket;

/* Bytes of zeroed memory that a gate takes. */
uint64_t ix_gate_host_bytes(void);

/* Makes the gate of a guest, without shards yet. by_word 1: wakeups are left in a word a shard for
 * an ix_kicker; 0: they are exits. `memory` is at the same address in the guest. Measures the
 * clock, which takes 10 ms. Returns it; the guest's module gets the same address. */
struct ix_gate_host *ix_gate_host_make(void *memory, int by_word);
/* Adds a shard on its socket, before the guest begins; both are at the same addresses there.
 * Returns its number at the gate, or -ENOSPC: IX_GATE_SHARDS are there. */
int ix_gate_host_add(struct ix_gate_host *host, struct ix_shard *shard,
                     struct ix_xsk_socket *socket);
/* Tells the gate the time and the clock's rate of late. Every second or so is often enough. */
void ix_gate_host_set_clock(struct ix_gate_host *host);

/* The gate's counters. */
uint64_t ix_gate_host_calls(const struct ix_gate_host *host);
uint64_t ix_gate_host_refused(const struct ix_gate_host *host);

/* The CPU's counter, which the gate's clock and libdune's cycles run on. */
uint64_t ix_gate_ticks(void);

/* A thread that looks at the kick words of up to `most` shards and asks Linux to send and to
 * receive what they say. It spins while there is something to do and for a millisecond after, then
 * looks every 50 us. core -1: any. NULL: no thread, no memory. */
struct ix_kicker *ix_kicker_start(uint32_t most, int core);
/* Shard number `shard` of gate `host` is at place i from now on, its socket is `fd`; host NULL:
 * none any more, and when this returns the thread has let go of the old one. */
void ix_kicker_set(struct ix_kicker *kicker, uint32_t i, struct ix_gate_host *host, uint32_t shard,
                   int fd);
/* System calls made so far for place i. */
uint64_t ix_kicker_calls(const struct ix_kicker *kicker, uint32_t i);
void ix_kicker_stop(struct ix_kicker *kicker);

#endif
