/* The gate: what ring 3 may ask of the shards in ring 0 (api/gate.h has the calls).
 *
 * One gate a guest. It lies beside the shards, where ring 3 can't reach it, and trusts no word that
 * it is handed. Nothing of ring 3's memory is read or written here; the shards' shared arrays are
 * the shards' matter.
 */
#ifndef IX_GATE_GATE_H
#define IX_GATE_GATE_H

#include "api/config.h"
#include "api/gate.h"
#include "base/types.h"
#include "link/xsk.h"

/* Time from the CPU's own counter. The control plane, which can ask Linux, says now and then what
 * CLOCK_MONOTONIC was at a count and how fast it goes, so that the two never drift apart by more
 * than Linux slews its clock between two such news (500 ppm: 0.5 ms in a second). One writer, the
 * control plane; one reader, the gate. */
struct ix_gate_clock {
    uint32_t sequence; /* odd: being written */
    uint64_t tick;     /* the counter when CLOCK_MONOTONIC was `ns` */
    uint64_t ns;
    uint64_t rate;     /* ns a tick, times 2^32 */
};

struct ix_gate_entry {
    struct ix_shard *shard;
    struct ix_xsk *xsk;   /* its link; NULL in tests, whose link is another */
    uint32_t *kick_word;  /* where wakeups are left for a helper thread; NULL: kick by an exit */
};

struct ix_gate {
    struct ix_gate_clock clock;
    const uint64_t *ticks; /* the counter; NULL: the CPU's. For tests */
    uint64_t now_ns;       /* the latest that the clock said: it never goes back */
    uint64_t calls;        /* all, those refused included */
    uint64_t refused;
    uint32_t shard_count;
    uint32_t attached;     /* ring 0's code has put its own functions into the links */
    struct ix_gate_entry entry[IX_GATE_SHARDS];
};

/* Tells the gate's clock that at `tick` the time was `ns`, and how fast it goes. The control
 * plane's, at any time. */
void ix_gate_set_clock(struct ix_gate *gate, uint64_t tick, uint64_t ns, uint64_t rate);

/* The time now, CLOCK_MONOTONIC's. */
uint64_t ix_gate_now(struct ix_gate *gate);

/* Runs call number n of ring 3. `arg` is the callee's own copy. Returns its result or -errno. */
long ix_gate_call(struct ix_gate *gate, uint64_t n, const uint64_t arg[5]);

#endif
