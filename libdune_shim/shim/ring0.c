/* Ring 0: page tables and hooks, for libdune (lib/ring0.c), under vault->lock. */
#include "shim/ring0.h"
#include "shim/pagetable.h"

/* The windows that the code behind the switch needs at once: its own, and that of its stack, which
 * an exception's frame goes onto. */
static long switch_root(struct dune_vcpu *cpu, const struct dune_ring0_call *call)
{
    struct dune_vault *vault = cpu->vault;
    int error = dune_root_open_window(vault, call->root, call->va);

    if (error == 0)
        error = dune_root_open_window(vault, call->root, call->source);
    if (error != 0)
        return error;
    cpu->root = call->root;
    __asm__ volatile("mov %0, %%cr3"
                     :
                     : "r"(dune_root_switch_cr3(vault, call->root, cpu->index))
                     : "memory");
    return 0;
}

static void set_hooks(struct dune_vault *vault, const struct dune_ring0_call *call)
{
    vault->syscall_handler_flags = call->flags;
    __atomic_store_n(&vault->syscall_handler, call->handler, __ATOMIC_RELEASE);
    for (uint32_t i = 0; i < vault->n_vcpus; i++) {
        struct dune_vcpu *cpu = dune_vcpu_at(vault, i);

        if (call->handler)
            __atomic_fetch_or(&cpu->hooks, DUNE_HOOK_HANDLER, __ATOMIC_RELEASE);
        else
            __atomic_fetch_and(&cpu->hooks, (uint8_t)~DUNE_HOOK_HANDLER, __ATOMIC_RELEASE);
    }
}

static long locked_call(struct dune_vcpu *cpu, struct dune_ring0_call *c)
{
    struct dune_vault *vault = cpu->vault;

    switch ((enum dune_ring0_what)c->what) {
    case DUNE_RING0_MAP:
        return dune_root_map(vault, c->root, c->va, c->source, c->bytes, c->flags);
    case DUNE_RING0_PROTECT:
        return dune_root_protect(vault, c->root, c->va, c->bytes, c->flags);
    case DUNE_RING0_UNMAP:
        return dune_root_unmap(vault, c->root, c->va, c->bytes);
    case DUNE_RING0_FOLLOW:
        return dune_root_follow(vault, c->root, c->va, c->bytes);
    case DUNE_RING0_CLONE:
        return dune_root_clone(vault, c->root, &c->made);
    case DUNE_RING0_FREE:
        return dune_root_free(vault, c->root);
    case DUNE_RING0_SWITCH:
        return switch_root(cpu, c);
    case DUNE_RING0_HOOKS:
        set_hooks(vault, c);
        return 0;
    default:
        return -ENOSYS;
    }
}

long dune_ring0_call(struct dune_vcpu *cpu, struct dune_ring0_call *call)
{
    struct dune_vault *vault = cpu->vault;
    long result;

    if (call->what == DUNE_RING0_LOOKUP)
        return dune_root_lookup(vault, call->root, call->va, call->entry);
    if (call->what == DUNE_RING0_WALK)
        return dune_root_walk(vault, call->root, call->va, call->bytes, call->visit, call->arg,
                              call->flags != 0);
    dune_lock(&vault->lock);
    result = locked_call(cpu, call);
    dune_unlock(&vault->lock);
    return result;
}
