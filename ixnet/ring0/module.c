/* The dataplane as a module in guest ring 0: the gate behind libdune's call, and the kick. Linked
 * with the core alone; it has no variables, and what it works on lies in the data windows.
 */
#include "gate/gate.h"
#include "module/module.h"

_Static_assert((int)IX_XSK_KICK_TX == DUNE_KICK_TX && (int)IX_XSK_KICK_RX == DUNE_KICK_RX,
               "what the link asks for is what Linux is asked for");

/* One exit: Linux looks at the socket. ctx: the descriptor's number. */
static int kick_by_exit(void *ctx, uint32_t what)
{
    return (int)dune_module_kick((uint32_t)(uintptr_t)ctx, what);
}

/* No exit: a thread of the control plane on another core looks at the word, and sends. Release: the
 * rings' new indices must be seen by who sees the word. */
static int kick_by_word(void *ctx, uint32_t what)
{
    (void)__atomic_fetch_or((uint32_t *)ctx, what, __ATOMIC_RELEASE);
    return 0;
}

/* The links were made by another copy of this code, whose functions ring 0 can't call. */
static void attach(struct ix_gate *gate)
{
    for (uint32_t i = 0; i < gate->shard_count; i++) {
        struct ix_gate_entry *e = &gate->entry[i];
        ix_xsk_init(e->xsk);
        e->xsk->kick = e->kick_word ? kick_by_word : kick_by_exit;
        e->xsk->kick_ctx = e->kick_word ? (void *)e->kick_word : (void *)(uintptr_t)i;
    }
    gate->attached = 1;
}

long dune_module_main(void *context, uint64_t n, const uint64_t arg[5])
{
    struct ix_gate *gate = context;
    if (IX_UNLIKELY(!gate->attached))
        attach(gate);
    return ix_gate_call(gate, n, arg);
}
